# SPDX-License-Identifier: Apache-2.0
"""Weights that were quantised and written out again are found, whatever they were quantised to; ordinary ones are left alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import quantised
import samples
import zstandard

import weightpack
from weightpack import kernels, reference
from weightpack.format.layouts import layout_of
from weightpack.options import PackOptions, load_profile
from weightpack.reading.frame import decode_bytes
from weightpack.writing.frame import encode_bytes
from weightpack.writing.quantised import find_quantisation

# What a kind may take at most, in per cent of its bytes: its codes' entropy, its scales, and a point.
AT_MOST = {
    "fp8 blocks, bf16": 43.5, "fp8 blocks, fp32": 22, "int4 groups, fp16": 23.5, "int4 groups of 32, bf16": 28.5, "int8 rows, bf16": 47,
    "int8 rows, fp32": 24, "fake int8 rows, fp16": 47, "int8 columns, fp16": 47, "MXFP4, bf16": 26, "NVFP4, bf16": 29, "NF4, bf16": 26.5,
    "NF4, fp16": 26.5, "Q8_0, fp16": 53, "ternary, bf16": 12, "palette, fp16": 47,
}  # fmt: skip
KINDS = quantised.kinds(512, 512)


def pack(tmp_path, tensors, options=None, threads=1):
    """Pack and unpack a file of these tensors; return both."""
    source = samples.safetensors_file(tensors)
    (tmp_path / "source.safetensors").write_bytes(source)
    weightpack.pack(tmp_path / "source.safetensors", tmp_path / "packed", options=options, threads=threads, overwrite=True)
    weightpack.unpack(tmp_path / "packed", tmp_path / "restored", overwrite=True)
    assert (tmp_path / "restored").read_bytes() == source
    return source, (tmp_path / "packed").read_bytes()


def file_of(dtype, words):
    return {"w": (dtype, words.shape, words.tobytes())}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found(tmp_path, kind):
    dtype, words = KINDS[kind]
    source, packed = pack(tmp_path, file_of(dtype, words), load_profile())
    assert 100 * len(packed) < AT_MOST[kind] * len(source)
    assert len(packed) < len(zstandard.compress(source, 3))
    header = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
    assert json.loads(header["__metadata__"]["weightpack"])["version"] == [1, 4]
    assert b"".join(reference.source_parts(packed, 1 << 30, reference.Shelf([]))) == source


@pytest.mark.parametrize(
    ("rows", "cols"), [(200, 200), (130, 131), (1, 40000), (40000, 1), (7, 3001), (129, 257), (16384, 2)], ids=lambda size: str(size)
)  # fmt: skip
@pytest.mark.parametrize("side", [128, 64])
def test_ragged_blocks_come_back(tmp_path, rows, cols, side):
    """Blocks that the matrix cuts, and tiles that are not those of the quantiser: whatever is found, the bytes are the source's."""
    pack(tmp_path, file_of("BF16", quantised.blocks_of_fp8(rows, cols, "BF16", 0, side)))


@pytest.mark.parametrize(("chunk_elems", "share"), [(128, 1.0), (1280, 0.8), (1 << 15, 0.5)])
def test_chunks_are_whole_rows_of_tiles(tmp_path, chunk_elems, share):
    for kind in ("fp8 blocks, bf16", "int4 groups, fp16"):
        source, packed = pack(tmp_path, file_of(*KINDS[kind]), PackOptions(chunk_elems=chunk_elems))
        assert len(packed) < len(source) * share


def test_what_does_not_fit_stays_verbatim(tmp_path):
    """Some tiles with an element that no scale gives, infinities and NaNs among them: the others are still coded."""
    dtype, words = quantised.kinds(512, 512)["int4 groups, fp16"]
    words = words.copy()
    words.reshape(-1, 128)[::20, 5] ^= 0x155
    words[3, 7], words[100, 9], words[200, 11] = 0x7C00, 0xFE00, 0x0001
    source, packed = pack(tmp_path, file_of(dtype, words))
    assert len(packed) < 0.3 * len(source)


def test_a_part_that_was_not_quantised(tmp_path):
    """Half of a matrix is ordinary: its chunks are coded as ever."""
    _, words = quantised.kinds(1024, 512)["int4 groups, fp16"]
    words = np.concatenate([words, np.frombuffer(samples.weights(1024 * 512, "F16"), "<u2").reshape(1024, 512)])
    source, packed = pack(tmp_path, file_of("F16", words))
    assert len(packed) < 0.6 * len(source)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_ordinary_weights_are_left_alone(dtype):
    words = quantised.words(quantised.weights(600, 512), dtype)
    data, read_bytes = words.reshape(-1).view(np.uint8), []

    def read(offset, n):
        read_bytes.append(n)
        return data[offset : offset + n]

    assert find_quantisation(read, data.size, layout_of(dtype), 512, load_profile()) is None
    assert sum(read_bytes) <= 8192 * words.itemsize  # a look at a few windows, no more


def test_packed_bytes_do_not_depend_on_backend_or_threads(tmp_path):
    small = quantised.kinds(128, 128)
    tensors = {name: (small[name][0], small[name][1].shape, small[name][1].tobytes()) for name in ("fp8 blocks, bf16", "NF4, fp16", "int8 rows, fp32")}
    packed = {}
    for isa in kernels.available_isas():
        with kernels.use_isa(isa):
            for threads in (1,) if isa == "numpy" else (1, 3):
                packed[isa, threads] = pack(tmp_path, tensors, threads=threads)[1]
    assert len(set(packed.values())) == 1, {key: len(value) for key, value in packed.items()}


def test_it_can_be_left_out(tmp_path):
    dtype, words = KINDS["NF4, bf16"]
    _, packed = pack(tmp_path, file_of(dtype, words), PackOptions(quantised=False))
    header = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
    assert json.loads(header["__metadata__"]["weightpack"])["version"] == [1, 0]


def test_frames_and_estimates_find_it_too(tmp_path):
    dtype, words = KINDS["MXFP4, bf16"]
    frame = encode_bytes(words.reshape(-1).view(np.uint8), dtype, words.shape)
    assert len(frame) < 0.26 * words.nbytes
    assert decode_bytes(frame)[0].tobytes() == words.tobytes()
    pack(tmp_path, file_of(dtype, words))
    (estimate,) = weightpack.estimate(tmp_path / "source.safetensors")
    assert abs(estimate.packed_bytes - (tmp_path / "packed").stat().st_size) < 0.02 * words.nbytes
