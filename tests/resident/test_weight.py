# SPDX-License-Identifier: Apache-2.0
"""A tensor held as its record: whole, in rows, changed, copied, and damaged."""

from __future__ import annotations

import copy
import os
import pickle
import threading

import numpy as np
import pytest

from weightpack.errors import ChecksumError, FormatError
from weightpack.io.parallel import spread
from weightpack.options import PackOptions, load_profile
from weightpack.resident.weight import PackedWeight

SHAPES = [(5, 3), (300, 200), (7, 9000), (1, 70_000), (4000, 1), (900, 384)]
SMALL_CHUNKS = PackOptions(codecs=("rans", "huffman", "zstd"), chunk_elems=1024)
REPEATS = np.tile(np.random.default_rng(0).normal(size=5000).astype(np.float32), 20).reshape(100, 1000)

STEPS = np.arange(90_000, dtype=np.float32).reshape(300, 300)


def words(shape, dtype="BF16", seed=0):
    """Return a tensor's bytes: normal numbers."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 0.02
    return {"F32": values, "F16": values.astype(np.float16), "BF16": (values.view(np.uint32) >> 16).astype(np.uint16)}[dtype].reshape(-1).view(np.uint8)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_whole_and_rows(dtype, shape, threads):
    """Rows begin and end where they will: a chunk of 1024 elements holds many of them, or a part of one."""
    data = words(shape, dtype)
    weight = PackedWeight.of(dtype, shape, data, SMALL_CHUNKS, threads)
    out = np.empty_like(data)
    weight.decode(out, threads)
    assert np.array_equal(out, data)
    numbers = np.random.default_rng(1).integers(0, shape[0], 50)
    assert np.array_equal(weight.rows(numbers, threads), data.reshape(shape[0], -1)[numbers])
    assert weight.rows(numbers[:0], threads).shape == (0, data.size // shape[0])


@pytest.mark.parametrize("profile", ["fast", "dense"])
@pytest.mark.parametrize(
    "data", [REPEATS, np.zeros((600, 500), np.float32), np.arange(90_000, dtype=np.float32).reshape(300, 300)], ids=["repeats", "zeros", "steps"]
)
def test_chunks_of_every_mode(profile, data):
    """Chunks that repeat one another, streams of zstd, constants."""
    flat = data.reshape(-1).view(np.uint8)
    weight = PackedWeight.of("F32", data.shape, flat, load_profile(profile))
    out = np.empty_like(flat)
    weight.decode(out, 2)
    assert np.array_equal(out, flat) and weight.packed_bytes < weight.n_bytes
    assert np.array_equal(weight.rows(np.array([len(data) - 1, 0])), flat.reshape(len(data), -1)[[-1, 0]])


@pytest.mark.parametrize("number", [-1, 300])
def test_a_row_that_is_not_there(number):
    with pytest.raises(IndexError, match=f"300 rows, row {number}"):
        PackedWeight.of("BF16", (300, 200), words((300, 200))).rows(np.array([5, number]))


def test_other_bytes_instead():
    weight, other = PackedWeight.of("BF16", (300, 200), words((300, 200))), words((300, 200), seed=7)
    before = copy.copy(weight)
    weight.put(other)
    out = np.empty_like(other)
    weight.decode(out)
    assert np.array_equal(out, other)
    before.decode(out)
    assert np.array_equal(out, words((300, 200)))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda weight: pickle.loads(pickle.dumps(weight))], ids=["copy", "deepcopy", "pickle"])
def test_copies(again):
    made = again(PackedWeight.of("BF16", (300, 200), words((300, 200))))
    out = np.empty(made.n_bytes, np.uint8)
    made.decode(out)
    assert np.array_equal(out, words((300, 200))) and (made.dtype, made.shape) == ("BF16", (300, 200))


def test_damage_is_an_error():
    record = PackedWeight.of("BF16", (300, 200), words((300, 200)), SMALL_CHUNKS).record.copy()
    with pytest.raises(FormatError):
        PackedWeight("BF16", (300, 900), record)
    with pytest.raises(FormatError):
        PackedWeight("BF16", (300, 200), record[:-16])
    record[-40] ^= 1
    damaged = PackedWeight("BF16", (300, 200), record)
    with pytest.raises(ChecksumError, match="chunk 58"):
        damaged.decode(np.empty(damaged.n_bytes, np.uint8), 2)
    with pytest.raises(ChecksumError):
        damaged.rows(np.array([299]))
    assert np.array_equal(damaged.rows(np.array([3])), words((300, 200)).reshape(300, -1)[[3]])  # of another chunk


def test_spread():
    """Every item once, by several threads; the error of an item; and in a child after a fork."""
    seen, names, both = [], set(), threading.Barrier(2, timeout=60)

    def work(item):
        seen.append(item)
        names.add(threading.current_thread().name)
        if item < 2:
            both.wait()  # two threads, or this does not go on

    for _ in range(2):
        seen.clear()
        spread(work, range(40), 2)
        assert sorted(seen) == list(range(40)) and len(names) >= 2
    with pytest.raises(ZeroDivisionError):
        spread(lambda item: 1 // item, [1, 2, 0, 3], 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork():
    weight = PackedWeight.of("BF16", (300, 200), words((300, 200)), SMALL_CHUNKS, 2)
    weight.decode(np.empty(weight.n_bytes, np.uint8), 2)
    child = os.fork()
    if child == 0:
        out = np.empty(weight.n_bytes, np.uint8)
        weight.decode(out, 2)
        os._exit(0 if np.array_equal(out, words((300, 200))) else 1)
    assert os.waitpid(child, 0)[1] == 0
