# SPDX-License-Identifier: Apache-2.0
"""Which base a file is read with: the one that is named, one that lies around, none; and the source of a packed file, read anywhere."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from finetunes import COLS, pair_of_files, restored

import weightpack
from weightpack.errors import BaseNotFoundError, FormatError, LimitError, OptionError, WrongBaseError
from weightpack.io.files import LocalFile
from weightpack.reading import bases
from weightpack.reading.restored import RestoredFile


@pytest.fixture
def pair(tmp_path):
    return pair_of_files(tmp_path)


def test_unpack_needs_the_base_and_writes_nothing_without(pair, tmp_path, monkeypatch):
    monkeypatch.delenv("WEIGHTPACK_BASES", raising=False)
    base, tuned = pair
    lonely = tmp_path / "far" / "away"
    lonely.mkdir(parents=True)
    weightpack.pack(tuned, lonely / "model.wp.safetensors", base=base)
    with pytest.raises(BaseNotFoundError, match=hashlib.sha256(base.read_bytes()).hexdigest()) as missing:
        weightpack.unpack(lonely / "model.wp.safetensors")
    assert "--base" in str(missing.value)
    assert sorted(path.name for path in lonely.iterdir()) == ["model.wp.safetensors"]
    with pytest.raises(WrongBaseError):
        weightpack.unpack(lonely / "model.wp.safetensors", base=tuned)
    with pytest.raises(WrongBaseError):
        weightpack.safe_open(lonely / "model.wp.safetensors", base=tuned)
    with pytest.raises(BaseNotFoundError):
        weightpack.safe_open(lonely / "model.wp.safetensors")
    with pytest.raises(OptionError):
        weightpack.unpack(lonely / "model.wp.safetensors", base=tmp_path / "nowhere" / "at.all")
    assert sorted(path.name for path in lonely.iterdir()) == ["model.wp.safetensors"]
    monkeypatch.setenv("WEIGHTPACK_BASES", str(base.parent))
    weightpack.unpack(lonely / "model.wp.safetensors")
    assert (lonely / "model.safetensors").read_bytes() == tuned.read_bytes()


def test_a_base_of_the_same_length_is_not_taken_for_the_base(pair, tmp_path):
    base, tuned = pair
    (tmp_path / "d").mkdir()
    weightpack.pack(tuned, tmp_path / "d" / "model.wp.safetensors", base=base)
    changed = bytearray(base.read_bytes())
    changed[-1] ^= 1
    base.write_bytes(changed)
    tuned.unlink()
    with pytest.raises(BaseNotFoundError):
        weightpack.unpack(tmp_path / "d" / "model.wp.safetensors")
    with pytest.raises(WrongBaseError):
        weightpack.verify(tmp_path / "d" / "model.wp.safetensors", base=base)


def test_a_base_is_found_beside_and_in_neighbours_plain_or_packed(pair, tmp_path):
    base, tuned = pair
    weightpack.pack(tuned, tuned.parent / "model.wp.safetensors", base=base)
    content = tuned.read_bytes()
    tuned.unlink()
    assert restored(tuned.parent / "model.wp.safetensors") == content  # ../base/model.safetensors
    weightpack.pack(base, base.with_name("renamed.wp.safetensors"), delete_source=True)
    assert restored(tuned.parent / "model.wp.safetensors") == content  # packed
    (tuned.parent / "below").mkdir()
    shutil.move(base.with_name("renamed.wp.safetensors"), tuned.parent / "below" / "x.safetensors")
    assert restored(tuned.parent / "model.wp.safetensors") == content
    with weightpack.safe_open(tuned.parent / "model.wp.safetensors", "pt") as opened:
        assert opened.get_slice("layer.1.weight")[3:5].shape == (2, COLS)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_neighbours_that_can_not_be_opened_are_passed_over(pair, packed):
    """Other people's files lie around: damaged, hostile, unreadable, of the base's very length."""
    base, tuned = pair
    weightpack.pack(tuned, tuned.parent / "x.wp.safetensors", base=base)
    content, size = tuned.read_bytes(), base.stat().st_size
    tuned.unlink()
    if packed:
        weightpack.pack(base, base.with_name("packed.safetensors"), delete_source=True)
    many = b"[" * 20_000_000  # by what it may take in memory, over a limit; nothing of it is parsed
    for folder in (tuned.parent, base.parent, base.parent.parent):
        (folder / "0-deep.safetensors").write_bytes(len(many).to_bytes(8, "little") + many)
        (folder / "0-empty.safetensors").touch()
        (folder / "0-noise.safetensors").write_bytes(bytes(range(256)) * 10)
        (folder / "0-length.safetensors").write_bytes(bytes(size))
        (folder / "0-folder.safetensors").mkdir()
        (folder / "0-nowhere.safetensors").symlink_to(folder / "no such file")
    with pytest.raises(LimitError):
        weightpack.inspect(tuned.parent / "0-deep.safetensors")
    assert restored(tuned.parent / "x.wp.safetensors") == content
    (report,) = weightpack.inspect(tuned.parent / "x.wp.safetensors")
    assert len(report.lineage) == 1
    weightpack.safe_open(tuned.parent / "x.wp.safetensors").close()


def test_no_path_of_a_file_is_followed(pair, tmp_path):
    """The base's name is for people: one that leads elsewhere leads nowhere."""
    base, tuned = pair
    weightpack.pack(tuned, tmp_path / "x.wp.safetensors", base=base)
    data = (tmp_path / "x.wp.safetensors").read_bytes()
    hidden = tmp_path / "hidden" / "deep" / "model.safetensors"
    hidden.parent.mkdir(parents=True)
    shutil.move(base, hidden)
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    index = json.loads(header["__metadata__"]["weightpack"])
    index["base"]["files"][0][0] = "hidden/deep/model.safetensors"
    text = json.dumps(index)
    header["__metadata__"] |= {"weightpack": text, "weightpack.crc32c": f"{weightpack.kernels.active().crc32c(text.encode()):08x}"}
    head = json.dumps(header).encode()
    (tmp_path / "x.wp.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data[8 + n :])
    with pytest.raises(BaseNotFoundError):
        weightpack.unpack(tmp_path / "x.wp.safetensors", tmp_path / "out")
    assert restored(tmp_path / "x.wp.safetensors", hidden) == tuned.read_bytes()


def test_a_base_that_changes_while_it_is_used_is_noticed(pair, tmp_path):
    base, tuned = pair
    weightpack.pack(tuned, tmp_path / "x", base=base)
    with weightpack.safe_open(tmp_path / "x", base=base) as opened:
        data = bytearray(base.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        with base.open("r+b") as file:
            file.write(data)
        with pytest.raises(FormatError):
            opened.get_tensors()


def test_reading_the_source_of_a_packed_file_anywhere(pair):
    _, tuned = pair
    weightpack.pack(tuned, tuned.with_suffix(".p"), options=weightpack.PackOptions(chunk_elems=1280))
    content = tuned.read_bytes()
    file = RestoredFile(bases.open_with_bases(LocalFile(tuned.with_suffix(".p"))))
    generator = np.random.default_rng(1)
    for _ in range(200):
        begin, end = sorted(generator.integers(0, len(content) + 1, 2).tolist())
        buffer = bytearray(end - begin)
        file.read_into(begin, memoryview(buffer))
        assert buffer == content[begin:end]
    file.close()
