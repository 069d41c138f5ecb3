# SPDX-License-Identifier: Apache-2.0
"""Is a file packed? One place answers: strictly for jobs, and without a word for whoever meets files that are not his."""

from __future__ import annotations

import json

import pytest
import samples

import weightpack
from weightpack import series
from weightpack.errors import FormatError, LimitError, OptionError
from weightpack.io.files import MemoryFile
from weightpack.sources.safetensors import is_packed_file, looks_packed, read_header

PLAIN = samples.safetensors_file({"w": ("F32", (3,), bytes(12))})
SAYS_THE_WORD = samples.safetensors_file({"w": ("F32", (3,), bytes(12))}, {"written by": "weightpack"})
UNKNOWN_DTYPE = samples.safetensors_file({"w": ("Q3", (3,), bytes(12))})
EMPTY_HEADER = (2).to_bytes(8, "little") + b"{}"


def packed_bytes(tmp_path):
    (tmp_path / "source.safetensors").write_bytes(samples.mixed_file())
    weightpack.pack(tmp_path / "source.safetensors", tmp_path / "packed")
    return (tmp_path / "packed").read_bytes()


def test_packed_and_plain_files(tmp_path):
    packed = packed_bytes(tmp_path)
    for data, expected in ((packed, True), (PLAIN, False), (SAYS_THE_WORD, False), (UNKNOWN_DTYPE, False), (EMPTY_HEADER, False)):
        (tmp_path / "a.safetensors").write_bytes(data)
        for file in (tmp_path / "a.safetensors", str(tmp_path / "a.safetensors"), MemoryFile([data]), MemoryFile([data], "a.safetensors")):
            assert is_packed_file(file) is looks_packed(file) is expected


@pytest.mark.parametrize(
    "damage",
    {
        "empty": lambda packed: b"", "seven_bytes": lambda packed: packed[:7], "only_a_length": lambda packed: packed[:8], "cut": lambda packed: packed[:200],
        "text": lambda packed: b"some text that is no model at all" * 9, "no_json": lambda packed: PLAIN[:8] + b"[" + PLAIN[9:],
    }.values(),
)  # fmt: skip
def test_what_is_no_safetensors_file(tmp_path, damage):
    """Is not packed; but a file that is named .safetensors must be one."""
    data = damage(packed_bytes(tmp_path))
    assert not is_packed_file(MemoryFile([data], "model.bin"))
    assert not looks_packed(MemoryFile([data], "model.bin"))
    assert not looks_packed(MemoryFile([data], "model.safetensors"))
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        is_packed_file(tmp_path / "model.safetensors")
    assert caught.value.path == str(tmp_path / "model.safetensors")


def test_a_damaged_packed_file_looks_packed(tmp_path):
    """So that it is read by who can say what is wrong with it, and not taken for a plain one."""
    packed = bytearray(packed_bytes(tmp_path))
    packed[9] = ord("x")
    assert looks_packed(MemoryFile([bytes(packed)]))
    with pytest.raises(FormatError):
        is_packed_file(MemoryFile([bytes(packed)], "model.safetensors"))


def test_the_limit_of_the_header(tmp_path):
    packed = packed_bytes(tmp_path)
    with pytest.raises(LimitError):
        is_packed_file(MemoryFile([packed], "model.safetensors"), 1000)
    with pytest.raises(LimitError):
        read_header(MemoryFile([packed]), 1000)


def test_files_that_can_not_be_opened(tmp_path):
    assert not looks_packed(tmp_path / "nowhere.safetensors")
    assert not looks_packed(tmp_path)
    with pytest.raises(FileNotFoundError):
        is_packed_file(tmp_path / "nowhere.safetensors")
    with pytest.raises(IsADirectoryError):
        is_packed_file(tmp_path)


def test_estimates_of_packed_files_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(packed_bytes(tmp_path))
    with pytest.raises(OptionError, match="packed already"):
        weightpack.estimate(tmp_path / "model.bin")
    assert weightpack.estimate(tmp_path / "source.safetensors")[0].source_bytes


def test_a_run_with_a_plain_file_that_names_weightpack(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(SAYS_THE_WORD)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    assert [file.packed for file in series.series(tmp_path).checkpoints[0].files] == [False]
