# SPDX-License-Identifier: Apache-2.0
"""Tiny neighbours that share a record (FORMAT 5.8), through every door; and groups that can't be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import samples

import weightpack
from weightpack import reference
from weightpack.errors import FormatError
from weightpack.format.constants import INDEX_CRC_KEY, INDEX_KEY
from weightpack.kernels import crc32c_of, use_isa
from weightpack.numpy import load_file
from weightpack.options import PackOptions


@pytest.fixture
def packed(tmp_path):
    (tmp_path / "source.safetensors").write_bytes(samples.tiny_file())
    weightpack.pack(tmp_path / "source.safetensors", tmp_path / "packed.safetensors")
    return tmp_path / "packed.safetensors"


def head(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def index_of(path: Path) -> dict:
    return json.loads(head(path)[0]["__metadata__"][INDEX_KEY])


def test_there_are_groups(packed):
    header, index = head(packed)[0], index_of(packed)
    assert index["version"] == [1, 3]
    assert sorted(index["groups"]) == [63, 69, 79]
    assert index["storage"].count("g") == 3
    assert len(header) - 1 == len(index["storage"]) == 8
    assert len(packed.read_bytes()) < len(samples.tiny_file()) // 2


def test_every_door(packed, tmp_path):
    source = samples.tiny_file()
    weightpack.unpack(packed, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source
    assert reference.decode_file(packed.read_bytes()) == source
    weightpack.verify(packed)
    plain, restored, decoded = load_file(tmp_path / "source.safetensors"), load_file(packed), reference.decode_tensors(packed.read_bytes())
    assert plain.keys() == restored.keys() == decoded.keys()
    with weightpack.safe_open(packed, "np") as opened:
        for name in sorted(plain, key=lambda name: name[::-1]):
            expected = plain[name].tobytes()
            assert restored[name].tobytes() == opened.get_tensor(name).tobytes() == decoded[name][2] == expected
            if plain[name].ndim:
                assert opened.get_slice(name)[1:].tobytes() == plain[name][1:].tobytes()
    report = weightpack.inspect(packed)[0]
    assert [tensor.name for tensor in report.tensors] == sorted(plain)
    assert sum(tensor.codec.startswith("in the group of") for tensor in report.tensors) == 63 + 69 + 79


def test_a_packed_file_with_groups_is_a_base(packed, tmp_path):
    changed = bytearray(samples.tiny_file())
    changed[-1] ^= 1
    (tmp_path / "tuned.safetensors").write_bytes(changed)
    weightpack.pack(tmp_path / "tuned.safetensors", tmp_path / "delta.safetensors", base=packed)
    weightpack.unpack(tmp_path / "delta.safetensors", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == changed


def test_same_bytes_whatever_packs(packed, tmp_path):
    for number, (isa, threads) in enumerate([("numpy", 1), ("scalar", 3)]):
        with use_isa(isa):
            weightpack.pack(tmp_path / "source.safetensors", tmp_path / f"{number}", threads=threads)
        assert (tmp_path / f"{number}").read_bytes() == packed.read_bytes()
    weightpack.pack(tmp_path / "source.safetensors", tmp_path / "raw", options=PackOptions(codecs=()))
    assert reference.decode_file((tmp_path / "raw").read_bytes()) == samples.tiny_file()


def rebuilt(path: Path, change) -> bytes:
    """Return the packed file with another index, and whatever else `change(index, header)` changes."""
    header, data = head(path)
    index = json.loads(header["__metadata__"][INDEX_KEY])
    change(index, header)
    text = json.dumps(index)
    header["__metadata__"] |= {INDEX_KEY: text, INDEX_CRC_KEY: f"{crc32c_of(text.encode()):08x}"}
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


@pytest.mark.parametrize(
    "change",
    [
        lambda index, _: index.pop("groups"),
        lambda index, _: index.update(groups=7),
        lambda index, _: index.update(groups=index["groups"][:-1]),
        lambda index, _: index.update(groups=[*index["groups"], 1]),
        lambda index, _: index.update(groups=[0, *index["groups"][1:]]),
        lambda index, _: index.update(groups=[n + 1 for n in index["groups"]]),
        lambda index, _: index.update(groups=[n - 1 for n in index["groups"]]),
        lambda index, _: index.update(groups=[1 << 62] * 3),
        lambda index, _: index.update(groups=[-1] * 3),
        lambda index, _: index.update(groups=[True] * 3),
        lambda index, _: index.update(groups=index["groups"][::-1]),
        lambda index, _: index.update(storage=index["storage"].replace("g", "p")),
        lambda index, _: index.update(storage=index["storage"].replace("p", "g"), groups=[1] * (3 + index["storage"].count("p"))),
        lambda index, _: index.update(storage=index["storage"] + "g"),
        lambda _, header: header.update({"scale.3": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
    ],
)  # fmt: skip
def test_groups_that_can_not_be(packed, change):
    data = rebuilt(packed, change)
    packed.write_bytes(data)
    with pytest.raises(FormatError):
        load_file(packed)
    with pytest.raises(reference.FormatError):
        reference.decode_file(data)


def test_damage_is_found(packed):
    data = bytearray(packed.read_bytes())
    header, _ = head(packed)
    begin = len(data) - max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    for name in (n for n, letter in zip(sorted(n for n in header if n != "__metadata__"), index_of(packed)["storage"], strict=True) if letter == "g"):
        low, high = header[name]["data_offsets"]
        for at in np.linspace(low, high - 1, 40).astype(int):
            damaged = bytearray(data)
            damaged[begin + at] ^= 4
            with pytest.raises(FormatError):
                weightpack.verify(write(packed, damaged))
            with pytest.raises(reference.FormatError):
                reference.decode_file(bytes(damaged))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
