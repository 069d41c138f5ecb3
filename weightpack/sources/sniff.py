# SPDX-License-Identifier: Apache-2.0
"""What bytes of no known format look like: floats of 32 or 16 bits, or bytes.

Many formats keep weights as plain arrays: HDF5, msgpack, CTranslate2, old checkpoints of PyTorch, data beside an ONNX file. A piece of such a file is taken for
the kind of element whose exponents (or bytes) have the least entropy; a wrong guess costs size and nothing else, since the bytes are restored whatever
they were taken for.

Entropies are computed in integers, so that the guess is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader, read_at
from weightpack.sources.model import Segments, Tensor, tiled

_MOST_GAP = 1 << 12  # of other formats than safetensors: gaps are held in memory, and in the index as text
_LEAST_PIECE = 1 << 16
_MOST_PIECES = 4096
_SAMPLE = 1 << 14
_UNIT = 64  # of information: a bit has so many
_SURE = _UNIT // 8  # for each byte, that floats must save more than bytes do: bytes may find repetition too
_ELEM_BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
_EXPONENT = {"F16": (10, 31), "BF16": (7, 255), "F32": (23, 255)}  # shift and mask


def with_small_gaps(source: RandomReader, segments: Segments) -> Segments:
    """Make tensors out of large gaps: a gap is held in memory and in the index, a tensor streams through in chunks."""
    names = {tensor.name for tensor in segments.tensors}
    large = []
    for gap, length in segments.gaps:
        if length <= _MOST_GAP and segments.source_format != "bytes":
            continue
        for dtype, offset, n_bytes in sniff(source, gap, length):
            name = f"bytes at {offset}"
            while name in names:
                name += "'"
            large.append(Tensor(name, dtype, (n_bytes * 8 // DTYPE_BITS[dtype],), offset, n_bytes))
    end = max((offset + n_bytes for offset, n_bytes in segments.gaps), default=0)
    file_bytes = max([end, *(tensor.offset + tensor.n_bytes for tensor in segments.tensors)])
    return tiled(segments.source_format, (*segments.tensors, *large), file_bytes, segments.metadata)


def sniffed(source: RandomReader, name: str, offset: int, n_bytes: int) -> list[Tensor]:
    """Return tensors that cover bytes whose name is known but not what they are: one, or where not all are alike, one for each run, named by its place."""
    runs = list(sniff(source, offset, n_bytes)) if n_bytes > _MOST_GAP else []
    if [run[1:] for run in runs] == [(offset, n_bytes)]:
        dtype = runs[0][0]
        return [Tensor(name, dtype, (n_bytes * 8 // DTYPE_BITS[dtype],), offset, n_bytes)]
    if not runs:
        return [Tensor(name, "U8", (n_bytes,), offset, n_bytes)]
    return [Tensor(f"{name} at {begin}", dtype, (n * 8 // DTYPE_BITS[dtype],), begin, n) for dtype, begin, n in runs]


def sniff(source: RandomReader, offset: int, n_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Yield (dtype, offset, bytes) of runs that are alike, ascending; up to three bytes between two of them belong to none."""
    piece = _LEAST_PIECE
    while n_bytes > piece * _MOST_PIECES:
        piece *= 2
    end, run, begin = offset + n_bytes, ("", 0), offset
    for at in range(offset, end, piece):
        if (kind := _kind(source, at, min(piece, end - at))) != run:
            yield from _whole(run, begin, at)
            run, begin = kind, at
    yield from _whole(run, begin, end)


def _whole(run: tuple[str, int], begin: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yield the whole elements between two offsets."""
    dtype, phase = run
    if dtype:
        size = _ELEM_BYTES[dtype]
        begin += (phase - begin) % size
        if (n := max(0, end - begin) // size * size) > 0:
            yield dtype, begin, n


def _kind(source: RandomReader, offset: int, n_bytes: int) -> tuple[str, int]:
    """Return the dtype that a piece looks like, and its elements' offset modulo their size."""
    begin = offset + max(0, n_bytes - _SAMPLE) // 2
    sample = np.frombuffer(bytes(read_at(source, begin, min(_SAMPLE, n_bytes))), np.uint8)
    best, kind = _information(sample) - _SURE * sample.size, ("U8", 0)
    for dtype, (shift, mask) in _EXPONENT.items():
        size = _ELEM_BYTES[dtype]
        for skip in range(min(size, max(0, sample.size - 64))):
            words = sample[skip : skip + (sample.size - skip) // size * size].view(f"<u{size}")
            exponents = words >> shift & mask
            cost = _information(exponents) + _UNIT * (8 * sample.size - words.size * int(mask).bit_length())
            if dtype == "F32" and (least := _information(words)) <= words.size * _UNIT:  # of 16 or 19 bits before: mantissas end with zeros
                cost += least + _information(words >> 8) - 2 * 8 * words.size * _UNIT
            # What is fp16 looks like bf16 too, whose exponents would be its own and the first bits of its mantissas, and a little better.
            if cost + (_SURE * sample.size if kind[0] == "F16" else 0) < best:
                best, kind = cost, (dtype, (begin + skip) % size)
    return kind


def _information(symbols: np.ndarray) -> int:
    """Return the order-0 entropy of all symbols, in 1/64 bits, rounded."""
    counts = np.bincount(symbols.astype(np.uint8))
    return sum(c * (_log2(symbols.size) - _log2(c)) for c in counts.tolist() if c)


@lru_cache(_SAMPLE)
def _log2(n: int) -> int:
    """Return 64 times the binary logarithm of n, rounded down."""
    power: int = n**_UNIT
    return power.bit_length() - 1
