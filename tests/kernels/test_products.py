# SPDX-License-Identifier: Apache-2.0
"""Products with a matrix while it is decoded, on every backend: small integers exactly, and the chunks that are the caller's."""

from __future__ import annotations

import numpy as np
import pytest

from weightpack import kernels
from weightpack.errors import ChecksumError
from weightpack.options import PackOptions, load_profile
from weightpack.resident.weight import PackedWeight

SMALL_CHUNKS = PackOptions(codecs=("rans", "huffman", "zstd"), chunk_elems=1024)
SHAPES = [(40, 53), (5, 3000), (30, 256), (1, 5000), (900, 3)]


def integers(shape, seed=0):
    """Return small integers as floats: any order of additions has the same sum."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def packed(matrix, dtype, options=SMALL_CHUNKS):
    as_dtype = {"F32": matrix, "F16": matrix.astype(np.float16), "BF16": (matrix.view(np.uint32) >> 16).astype(np.uint16)}[dtype]
    return PackedWeight.of(dtype, matrix.shape, as_dtype.reshape(-1).view(np.uint8), options)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(isa, shape, dtype):
    """Chunks begin and end inside rows, and rows inside chunks; threads share both."""
    matrix = integers(shape)
    weight = packed(matrix, dtype)
    for batch, threads in ((1, 1), (1, 3), (7, 2)):
        x = integers((batch, shape[1]), seed=1)
        assert np.array_equal(weight.product(x, threads), matrix @ x.T)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_threads_change_nothing(isa, dtype):
    """Of sums that are rounded, too."""
    weight = packed(np.random.default_rng(0).normal(size=(64, 900)).astype(np.float32), dtype)
    x = np.random.default_rng(1).normal(size=(3, 900)).astype(np.float32)
    assert len({weight.product(x, threads).tobytes() for threads in (1, 2, 3, 5)}) == 1


REPEATS = np.tile(integers((25, 800)), (8, 1))  # chunks that repeat others, zstd
CONSTANT = np.full((200, 800), 3, np.float32)
SCALED = np.arange(1, 65, dtype=np.float32)[:, None] * integers((64, 4096))  # codes times a scale of each row


@pytest.mark.parametrize("profile", ["fast", "dense"])
@pytest.mark.parametrize("matrix", [REPEATS, CONSTANT, SCALED], ids=["repeats", "constant", "scaled"])
def test_chunks_of_every_mode(isa, profile, matrix):
    """What a backend leaves to the caller is decoded, and multiplied then."""
    if isa == "numpy":
        pytest.skip("numpy leaves every chunk to the caller, above too, and takes long")
    x = integers((2, matrix.shape[1]), seed=1)
    weight = packed(matrix, "F32", load_profile(profile))
    assert np.array_equal(weight.product(x, 2), (matrix.astype(np.float64) @ x.T).astype(np.float32))


def test_damage_is_an_error(isa):
    weight = packed(integers((40, 53)), "BF16")
    record = weight.record.copy()
    record[-40] ^= 1
    with pytest.raises(ChecksumError, match="chunk 2"):
        PackedWeight("BF16", (40, 53), record).product(integers((1, 53)), 2)


def test_more_rows_than_there_may_be(isa):
    if isa == "numpy":
        pytest.skip("numpy has no limit")
    with pytest.raises(ValueError, match="wrong size"):
        packed(integers((40, 53)), "BF16").product(integers((kernels.MAX_BATCH + 1, 53)))
