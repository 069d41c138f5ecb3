# SPDX-License-Identifier: Apache-2.0
"""Which range of a base serves which tensor: by name, by the name but for a prefix, or by content; and which rows, where there are more or fewer of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.index import BaseRange
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader, pieces, read_at
from weightpack.reading.convert import converts
from weightpack.sources.model import Segments, Tensor

if TYPE_CHECKING:
    from weightpack.reading.bases import OpenBase

_MOST_MOVES = 1 << 14
_SAMPLE_BYTES = 1 << 10
_SAMPLES = 4
_READ_BYTES = 1 << 20
_LEAST_BY_CONTENT = 1 << 12  # bytes; smaller tensors are alike by chance


def match_tensors(source: RandomReader, segments: Segments, bases: Sequence[OpenBase]) -> dict[str, BaseRange]:
    """Return tensor name -> the range that it is to be compared with; tensors without one are left out."""
    candidates = [(number, file.reader, tensor) for number, file in enumerate(bases) for tensor in file.segments.tensors if _usable(tensor)]
    by_name: dict[str, tuple[int, RandomReader, Tensor]] = {}
    by_tail: dict[str, list[tuple[int, RandomReader, Tensor]]] = {}
    for candidate in candidates:
        by_name.setdefault(candidate[2].name, candidate)
        for tail in _tails(candidate[2].name):
            by_tail.setdefault(tail, []).append(candidate)
    matches, used = {}, set()
    left = []
    for tensor in segments.tensors:
        if not _usable(tensor):
            continue
        named = [by_name[tensor.name]] if tensor.name in by_name else _renamed(tensor, by_name, by_tail)
        found = next((candidate for candidate in named if _fits(tensor, candidate[2])), None)
        if found is None:
            left.append(tensor)
            continue
        matches[tensor.name] = _range(source, tensor, *found)
        used.add((found[0], found[2].name))
    by_kind: dict[tuple[str, tuple[int, ...]], list[tuple[int, RandomReader, Tensor]]] = {}
    for candidate in candidates:
        if (candidate[0], candidate[2].name) not in used:
            by_kind.setdefault((candidate[2].dtype, candidate[2].shape), []).append(candidate)
    for tensor in left:
        alike = _most_alike(source, tensor, by_kind.get((tensor.dtype, tensor.shape), ()))
        if alike is not None:
            matches[tensor.name] = _range(source, tensor, *alike)
    return matches


def _usable(tensor: Tensor) -> bool:
    return tensor.n_bytes > 0 and DTYPE_BITS.get(tensor.dtype) in (8, 16, 32) and not tensor.fields


def _tails(name: str) -> Iterator[str]:
    """Yield what is left of a name behind each of its dots."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _renamed(
    tensor: Tensor, by_name: dict[str, tuple[int, RandomReader, Tensor]], by_tail: dict[str, list[tuple[int, RandomReader, Tensor]]]
) -> list[tuple[int, RandomReader, Tensor]]:
    """Candidates whose name is this one's without a prefix, or the reverse; only where there is no doubt."""
    without = [by_name[tail] for tail in _tails(tensor.name) if tail in by_name]
    longer = by_tail.get(tensor.name, [])
    return without[:1] or (longer if len(longer) == 1 else [])


def _fits(tensor: Tensor, other: Tensor) -> bool:
    """May one serve the other: the same shape, or one of other length but with the same rows?"""
    if not converts(other.dtype, tensor.dtype):
        return False
    return tensor.shape == other.shape or (len(tensor.shape) == len(other.shape) and len(tensor.shape) > 0 and tensor.shape[1:] == other.shape[1:])


def _range(source: RandomReader, tensor: Tensor, number: int, reader: RandomReader, other: Tensor) -> BaseRange:
    moves = None
    if tensor.shape != other.shape and tensor.dtype == other.dtype and len(tensor.shape) > 1:
        moves = _moves(_row_digests(source, tensor), _row_digests(reader, other), tensor.n_bytes * 8 // DTYPE_BITS[tensor.dtype] // tensor.shape[0])
    return BaseRange(number, other.dtype, other.offset, other.n_bytes, moves)


# ---- rows


def _row_digests(reader: RandomReader, tensor: Tensor) -> list[bytes]:
    row = tensor.n_bytes // tensor.shape[0]
    digests: list[bytes] = []
    for offset, n in pieces(tensor.n_bytes, max(1, _READ_BYTES // row) * row):
        data = memoryview(read_at(reader, tensor.offset + offset, n))
        digests += [hashlib.blake2b(data[i : i + row], digest_size=16).digest() for i in range(0, n, row)]
    return digests


def _moves(rows: list[bytes], base_rows: list[bytes], row_elems: int) -> tuple[tuple[int, int, int], ...] | None:
    """Where the base's rows are in the tensor: equal rows say how far those around them have moved. None: nowhere but where they were."""
    where: dict[bytes, int] = {}
    for i, digest in enumerate(base_rows):
        where.setdefault(digest, i)
    shifts: list[int | None] = []
    for i, digest in enumerate(rows):
        same_place = i < len(base_rows) and base_rows[i] == digest
        shifts.append(0 if same_place else where[digest] - i if digest in where else None)
    shift = next((s for s in shifts if s is not None), 0)
    moves: list[tuple[int, int, int]] = []
    for i, known in enumerate(shifts):
        shift = shift if known is None else known
        if not 0 <= i + shift < len(base_rows):
            continue
        if moves and moves[-1][0] + moves[-1][2] == i and moves[-1][1] + moves[-1][2] == i + shift:
            moves[-1] = (moves[-1][0], moves[-1][1], moves[-1][2] + 1)
        else:
            moves.append((i, i + shift, 1))
    if len(moves) > _MOST_MOVES or (len(moves) == 1 and moves[0][:2] == (0, 0)):
        return None
    return tuple((to * row_elems, from_ * row_elems, n * row_elems) for to, from_, n in moves)


# ---- content


def _most_alike(source: RandomReader, tensor: Tensor, candidates: Iterable[tuple[int, RandomReader, Tensor]]) -> tuple[int, RandomReader, Tensor] | None:
    """Return the candidate that a sample says is nearest; None if none is near."""
    if tensor.n_bytes < _LEAST_BY_CONTENT:
        return None
    sample, best, best_distance = _sample(source, tensor), None, DTYPE_BITS[tensor.dtype] * 5 // 8
    for candidate in candidates:
        distance = _distance(sample, _sample(candidate[1], candidate[2]))
        if distance < best_distance:
            best, best_distance = candidate, distance
    return best


def _sample(reader: RandomReader, tensor: Tensor) -> np.ndarray:
    size = DTYPE_BITS[tensor.dtype] // 8
    n = min(_SAMPLE_BYTES, tensor.n_bytes) // size * size
    begins = [(tensor.n_bytes - n) * i // (_SAMPLES - 1) // size * size for i in range(_SAMPLES)]
    data = b"".join(bytes(read_at(reader, tensor.offset + begin, n)) for begin in begins)
    return np.frombuffer(data, f"<u{size}")


def _distance(a: np.ndarray, b: np.ndarray) -> int:
    """Mean bits of what differs, from the highest bit that does, rounded down."""
    differing = (a ^ b).astype(np.uint64)
    n_bits = np.frexp(differing.astype(np.float64))[1]
    return int(n_bits.sum()) // max(a.size, 1)
