# SPDX-License-Identifier: Apache-2.0
"""Copies inside a tensor are stored once, and every way of reading gives them back (FORMAT 6.10)."""

from __future__ import annotations

import json
import struct

import numpy as np
import packed_parts
import pytest
import quantised
import samples
import zstandard

import weightpack
from weightpack import reference
from weightpack.errors import CorruptionError, FormatError, TruncatedError
from weightpack.format.constants import Mode
from weightpack.options import load_profile

EXPERT = np.frombuffer(samples.weights(128 * 512, "BF16"), "<u2").reshape(128, 512)
TABLE = np.frombuffer(samples.weights(77 * 768, "F32"), "<u4").reshape(1, 77, 768)


def pack(tmp_path, tensors, threads=1, profile="fast", metadata=None):
    source = samples.safetensors_file(tensors, metadata)
    (tmp_path / "source.safetensors").write_bytes(source)
    weightpack.pack(tmp_path / "source.safetensors", tmp_path / "packed", options=load_profile(profile), threads=threads, overwrite=True)
    weightpack.unpack(tmp_path / "packed", tmp_path / "restored", overwrite=True, threads=threads)
    assert (tmp_path / "restored").read_bytes() == source
    packed = (tmp_path / "packed").read_bytes()
    assert b"".join(reference.source_parts(packed, 1 << 30, reference.Shelf([]))) == source
    return source, packed


def entry(dtype, array):
    return dtype, array.shape, array.tobytes()


def version(packed):
    header = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
    return json.loads(header["__metadata__"]["weightpack"])["version"]


COPIES = {
    "experts": ("BF16", np.stack([EXPERT] * 8)),
    "experts, fused": ("BF16", np.concatenate([EXPERT] * 8)),
    "a table for a batch": ("F32", np.concatenate([TABLE] * 6)),
    "two experts of eight": ("BF16", np.stack([EXPERT + np.uint16(i % 7) for i in range(8)])),
    "halves": ("BF16", np.concatenate([EXPERT, EXPERT])),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("profile", ["fast", "dense"])
@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_stored_once(tmp_path, kind, profile, threads):
    dtype, array = COPIES[kind]
    source, packed = pack(tmp_path, {"w": entry(dtype, array)}, threads, profile)
    n_copies = 2 if kind == "halves" else len(array) if array.ndim == 3 else 8
    n_different = 7 if kind == "two experts of eight" else 1
    assert len(packed) < len(source) * 0.86 * n_different / n_copies + 2000
    assert kind == "two experts of eight" or len(packed) < len(zstandard.compress(source, 3))
    assert version(packed) == [1, 4]


def test_what_is_quantised_and_copied_is_both(tmp_path):
    words = np.concatenate([quantised.groups_of_integers(128, 512, "F16", 4, 128)] * 4)
    source, packed = pack(tmp_path, {"w": entry("F16", words)})
    assert len(packed) < 0.08 * len(source)


def test_packed_bytes_do_not_depend_on_threads(tmp_path):
    tensors = {name: entry(dtype, array) for name, (dtype, array) in COPIES.items()}
    assert pack(tmp_path, tensors, 1)[1] == pack(tmp_path, tensors, 4)[1]


def test_parts_of_a_tensor_are_read_from_where_they_are(tmp_path):
    _, array = COPIES["experts"]
    pack(tmp_path, {"w": entry("BF16", array), "v": entry("F32", TABLE)})
    with weightpack.safe_open(tmp_path / "packed", framework="np") as file:
        for low, high in ((0, 1), (3, 4), (2, 7), (7, 8), (0, 8)):
            got = np.asarray(file.get_slice("w")[low:high]).view("<u2")
            assert got.tobytes() == array[low:high].tobytes()
        assert np.asarray(file.get_tensor("w")).tobytes() == array.tobytes()


def test_ordinary_tensors_are_left_alone(tmp_path):
    """Rows of zeros, and rows that are alike by chance, are no copies."""
    array = np.frombuffer(samples.weights(8 * 128 * 512, "BF16"), "<u2").reshape(8, 128, 512).copy()
    assert version(pack(tmp_path, {"w": entry("BF16", array)})[1]) == [1, 0]
    array[2:] = 0
    assert version(pack(tmp_path, {"w": entry("BF16", array)})[1]) == [1, 0]


def test_samples_that_deceive(tmp_path):
    """What is sampled is the same, what is between is not: nothing is taken for a copy that is none."""
    array = COPIES["experts"][1].copy()
    array[:, 5, 7] += np.arange(8, dtype=np.uint16)
    source, packed = pack(tmp_path, {"w": entry("BF16", array)})
    assert len(packed) > len(source) // 2
    array[5] = array[0]
    assert len(pack(tmp_path, {"w": entry("BF16", array)})[1]) < len(packed) * 0.9


# ---- damage: the second chunk of two that are the same


def damaged(tmp_path, change):
    """Pack two copies, change the repeated chunk's 8 bytes, and return what product and reference decoder make of it."""
    _, packed = pack(tmp_path, {"w": entry("BF16", np.stack([EXPERT, EXPERT]))})
    chunk = struct.pack("<BBHI", Mode.REPEATED, 0, 0, 0)
    assert packed.count(chunk) == 1
    bad = packed.replace(chunk, change(chunk))
    (tmp_path / "bad").write_bytes(bad)
    try:
        result = packed_parts.restore(bad)
    except FormatError as error:
        result = type(error)
    try:
        expected = reference.decode_file(bad)
    except reference.FormatError:
        assert result in (CorruptionError, TruncatedError), result
    else:
        assert result == expected
    return result


@pytest.mark.parametrize(
    "chunk",
    [
        struct.pack("<BBHI", Mode.REPEATED, 0, 0, 1),
        struct.pack("<BBHI", Mode.REPEATED, 0, 0, 2),
        struct.pack("<BBHI", Mode.REPEATED, 0, 0, 0xFFFFFFFF),
        struct.pack("<BBHI", Mode.REPEATED, 0, 1, 0),
        struct.pack("<BBHI", Mode.REPEATED, 1, 0, 0),
    ],
    ids=["itself", "behind the last", "far behind", "reserved", "streams"],
)
def test_each_field_is_checked(tmp_path, chunk):
    assert damaged(tmp_path, lambda _: chunk) is CorruptionError


def test_a_chunk_may_not_repeat_one_that_repeats(tmp_path):
    _, packed = pack(tmp_path, {"w": entry("BF16", np.stack([EXPERT] * 3))})
    chunk = struct.pack("<BBHI", Mode.REPEATED, 0, 0, 0)
    second = packed.rindex(chunk)
    bad = packed[:second] + struct.pack("<BBHI", Mode.REPEATED, 0, 0, 1) + packed[second + 8 :]
    with pytest.raises(CorruptionError):
        packed_parts.restore(bad)
    with pytest.raises(reference.CorruptError):
        reference.decode_file(bad)
