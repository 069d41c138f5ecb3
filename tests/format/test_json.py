# SPDX-License-Identifier: Apache-2.0
"""JSON of untrusted headers: what it takes in memory is foreseen, whatever the width of its characters, and half a surrogate pair is corruption."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

import weightpack
from weightpack.errors import CorruptionError, LimitError
from weightpack.format.safetensors import parse_json
from weightpack.io.files import LocalFile
from weightpack.options import Limits
from weightpack.reading.packed_file import PackedFile

N = 1 << 20
WIDE = {
    "astral_escape": b'{"a":"\\ud83d\\ude00' + b"x" * N + b'"}',
    "astral_escape_at_the_end": b'{"a":"' + b"x" * N + b'\\uD83D\\uDE00"}',
    "astral_escape_in_a_key": b'{"\\ud83d\\ude00' + b"x" * N + b'":"b"}',
    "astral_escape_after_others": b'{"a":"' + b"\\n" * (N // 2) + b'\\ud83d\\ude00"}',
    "other_escape": b'{"a":"\\u0416' + b"x" * N + b'"}',
    "newline": b'{"a":"\\n' + b"x" * N + b'"}',
    "astral": '{"a":"😀'.encode() + b"x" * N + b'"}',
    "astral_and_escapes": '{"a":"😀'.encode() + b"xx\\n" * (N // 4) + b'"}',
    "astral_apart": '{"😀":"'.encode() + b"x" * N + b'"}',
    "escape_apart": b'["\\ud83d\\ude00","' + b"x" * N + b'"]',
    "cyrillic": '{"a":"Ж'.encode() + b"x" * N + b'"}',
    "cyrillic_and_astral_escape": '{"a":"Ж'.encode() + b"x" * N + b'\\ud83d\\ude00"}',
    "latin": '{"a":"é'.encode() + b"x" * N + b'"}',
}


@pytest.mark.parametrize("text", WIDE.values(), ids=WIDE)
def test_wide_characters_are_counted(text):
    """What parsing takes at most is less than what is foreseen: with that as its limit, it is refused."""
    tracemalloc.start()
    parse_json(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with pytest.raises(LimitError):
        parse_json(text, peak - 4096)


def test_the_limit_of_a_file_with_a_wide_header(tmp_path):
    text = b'{"__metadata__":{"a":"' + b"x" * (20 << 20) + b'\\ud83d\\ude00"}}'  # each of its characters takes four bytes
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with LocalFile(tmp_path / "a.safetensors") as file, pytest.raises(LimitError):
        PackedFile(file, Limits(max_json_memory=100 << 20))


PIECES = ["\\ud83d", "\\uDE00", "\\udbff", "\\uDC00", "\\u0041", "\\\\", "\\n", "a", "ud83d", "\\ud7ff", "\\ue000", "😀", "Ж"]


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_half_a_surrogate_pair_is_corruption(pieces):
    text = '"' + "".join(pieces) + '"'
    value = json.loads(text)
    try:
        value.encode()
    except UnicodeEncodeError:
        with pytest.raises(CorruptionError):
            parse_json(text.encode())
    else:
        assert parse_json(text.encode()) == value


def test_names_beyond_the_first_plane(tmp_path):
    data = samples.safetensors_file({"😀.weight": ("F32", (3,), bytes(12))}, {"who": "Ж😀"})
    (tmp_path / "a.safetensors").write_bytes(data)
    weightpack.pack(tmp_path / "a.safetensors", tmp_path / "packed")
    weightpack.unpack(tmp_path / "packed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
