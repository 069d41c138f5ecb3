# SPDX-License-Identifier: Apache-2.0
"""The source of a packed file at any offset, through a cache that is bounded, with pieces decoded ahead, by many threads."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import samples

import weightpack
from weightpack.errors import ChecksumError
from weightpack.io.files import LocalFile
from weightpack.reading.bases import open_with_bases
from weightpack.reading.cached import CachedSource, DecodedPieces

SOURCES = {
    "mixed": samples.mixed_file(), "tiny": samples.tiny_file(), "tiny-tensors": samples.tiny_tensors(300),
    "large": samples.bf16_file(seed=4, name="w", n=3_000_000), **samples.other_files(),
}  # fmt: skip


@contextmanager
def opened(path, cache):
    source = CachedSource(open_with_bases(LocalFile(path), base=None), cache)
    try:
        yield source
    finally:
        source.close()


@pytest.fixture
def cache():
    pieces = DecodedPieces(8 << 20, threads=2)
    yield pieces
    pieces.close()


def packed(folder, data, name="source", **options):
    (folder / name).write_bytes(data)
    weightpack.pack(folder / name, folder / f"{name}.wp", **options)
    return folder / f"{name}.wp"


@pytest.mark.parametrize("name", SOURCES)
def test_any_offset_and_size(name, tmp_path, cache):
    data, rng = SOURCES[name], random.Random(name)
    with opened(packed(tmp_path, data), cache) as source:
        assert source.size == len(data)
        assert source.read(0, len(data) + 10) == data
        for _ in range(200):
            offset, n_bytes = rng.randrange(len(data) + 2), rng.choice([0, 1, 7, 4096, 131072, 3 << 20])
            assert source.read(offset, n_bytes) == data[offset : offset + n_bytes], (offset, n_bytes)


def test_differences(tmp_path, cache):
    """The base is found and read as it is wanted."""
    files = samples.base_files()
    for name in ("base-dtypes", "tuned-dtypes", "tuned-again"):
        data, (base,) = files[name][0], files[name][1] or (None,)
        path = packed(tmp_path, data, name, base=None if base is None else tmp_path / base)
        with opened(path, DecodedPieces(1 << 20, 1)) as source:
            for offset in (0, 1000, len(data) - 5000):
                assert source.read(offset, 5000) == data[offset : offset + 5000]


def test_memory_is_bounded(tmp_path):
    data = SOURCES["large"]
    cache = DecodedPieces(2 << 20, threads=2)
    with opened(packed(tmp_path, data), cache) as source:
        for offset in range(0, len(data), 131072):
            assert source.read(offset, 131072) == data[offset : offset + 131072]
            assert cache.n_bytes <= (2 << 20) + (3 << 20)  # what is kept, and what is being decoded
    cache.close()


def test_a_piece_is_decoded_once(tmp_path, cache):
    """However many threads ask for it while it is decoded, and after."""
    data, decoded, gate = SOURCES["large"], [], threading.Event()
    with opened(packed(tmp_path, data), cache) as source:
        decode = source.packed.decode_piece

        def counted(stored, piece, out):
            decoded.append(piece.first)
            gate.wait(60)
            decode(stored, piece, out)

        source.packed.decode_piece = counted
        with ThreadPoolExecutor(8) as pool:
            reads = [pool.submit(source.read, 500_000 + i, 1000) for i in range(8)]
            gate.set()
            assert [read.result(60) for read in reads] == [data[500_000 + i : 501_000 + i] for i in range(8)]
        source.read(500_000, 10)
        assert decoded.count(decoded[0]) == 1


def test_reads_in_sequence_are_decoded_ahead_and_jumps_are_not(tmp_path, cache):
    data = SOURCES["large"]
    with opened(packed(tmp_path, data), cache) as source:
        source.read(4_000_000, 1000)
        assert cache.n_bytes <= 1 << 20
        for offset in range(0, 2_500_000, 100_000):
            source.read(offset, 100_000)
        here = [i for i in range(100) if (0, 1, i) in cache]
        assert here[0] == 0
        assert max(i for i in here if set(range(i)) <= set(here)) > 2_500_000 >> 20, here


def test_readers_in_several_places(tmp_path, cache):
    data = SOURCES["large"]
    with opened(packed(tmp_path, data), cache) as source, ThreadPoolExecutor(6) as pool:

        def read_through(begin):
            return b"".join(source.read(offset, 50_000) for offset in range(begin, begin + 1_500_000, 50_000))

        begins = [0, 900_001, 1_800_002, 2_700_003, 3_600_004, 10]
        assert list(pool.map(read_through, begins)) == [data[begin : begin + 1_500_000] for begin in begins]


def test_damage(tmp_path, cache):
    """It is an error for those who read what is damaged, each time, and for nobody else."""
    data = SOURCES["large"]
    path = packed(tmp_path, data)
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    wrong = []
    with opened(path, cache) as source:
        for _ in range(2):
            failed = []
            for offset in range(0, len(data), 65536):
                try:
                    assert source.read(offset, 65536) == data[offset : offset + 65536]
                except ChecksumError as error:
                    failed.append(offset)
                    assert (error.path, error.tensor) == (str(path), "w")
                    assert error.chunk is not None
            wrong.append(failed)
    assert wrong[0] == wrong[1]
    assert 0 < len(wrong[0]) <= (1 << 20) // 65536 + 2
    assert np.diff(wrong[0]).max(initial=65536) == 65536, "it is one piece"
