"""Which range of a base serves which tensor: by name, by the name but for a prefix, or by content, as a whole or in parts; and which rows, where there are more
or fewer of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from weightpack.format.constants import MAX_TURNED_BYTES
from weightpack.format.index import BaseRange
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader, pieces, read_at
from weightpack.reading.convert import convert, converts
from weightpack.sources.model import Segments, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.reading.bases import OpenBase

_MOST_MOVES = 1 << 14
_READ_BYTES = 1 << 20
_LEAST_BY_CONTENT = 1 << 12  # bytes; smaller tensors are alike by chance
_SAMPLES, _SAMPLE_ELEMS = 4, 256
_TURNED_ELEMS = 32  # of a matrix that may be turned: each is read by itself
_NEAR = 5 / 8  # of an element's bits
_MOST_COMPARISONS = 1 << 17  # some seconds, where many tensors have no names in common


class _There(NamedTuple):
    """A tensor of a file: one of the base's, by its number, or the source."""

    file: int
    reader: RandomReader
    tensor: Tensor

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return DTYPE_BITS[self.tensor.dtype] // 8

    @property
    def n_elems(self) -> int:
        return self.tensor.n_bytes // self.size

    @property
    def row_elems(self) -> int:
        """Elements of a row; 0 if there are no rows."""
        row = self.tensor.row_elems
        return row if row and self.n_elems % row == 0 else 0


def match_tensors(source: RandomReader, segments: Segments, bases: Sequence[OpenBase]) -> dict[str, BaseRange]:
    """Return tensor name -> the range that it is to be compared with; tensors without one are left out."""
    candidates = [_There(number, base.reader, tensor) for number, base in enumerate(bases) for tensor in base.segments.tensors if usable(tensor)]
    by_name: dict[str, _There] = {}
    by_tail: dict[str, list[_There]] = {}
    for candidate in candidates:
        by_name.setdefault(candidate.tensor.name, candidate)
        for tail in _tails(candidate.tensor.name):
            by_tail.setdefault(tail, []).append(candidate)
    content, matches, used = _Content(), {}, set()
    unnamed = []
    for tensor in segments.tensors:
        if not usable(tensor):
            continue
        named = [by_name[tensor.name]] if tensor.name in by_name else _renamed(tensor, by_name, by_tail)
        there = _There(0, source, tensor)
        namesake = next((candidate for candidate in named if _fits(tensor, candidate.tensor)), None)
        found = None if namesake is None else _range(content, there, namesake)
        if namesake is None or found is None:
            unnamed.append(there)
            continue
        matches[tensor.name] = found
        used.add((namesake.file, namesake.tensor.name))
    free = [candidate for candidate in candidates if (candidate.file, candidate.tensor.name) not in used]
    return matches | _by_content(content, unnamed, free)


def usable(tensor: Tensor) -> bool:
    """May a tensor be a difference, or be differed from?"""
    return tensor.n_bytes > 0 and DTYPE_BITS.get(tensor.dtype) in (8, 16, 32) and not tensor.fields


def _tails(name: str) -> Iterator[str]:
    """Yield what is left of a name behind each of its dots."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _renamed(tensor: Tensor, by_name: dict[str, _There], by_tail: dict[str, list[_There]]) -> list[_There]:
    """Candidates whose name is this one's without a prefix, or the reverse; only where there is no doubt."""
    without = [by_name[tail] for tail in _tails(tensor.name) if tail in by_name]
    longer = by_tail.get(tensor.name, [])
    return without[:1] or (longer if len(longer) == 1 else [])


def _fits(tensor: Tensor, other: Tensor) -> bool:
    """May one serve the other: the same shape, its transpose, or one of other length but with the same rows?"""
    if not converts(other.dtype, tensor.dtype):
        return False
    return tensor.shape in (other.shape, _turned(other.shape)) or (
        len(tensor.shape) == len(other.shape) and len(tensor.shape) > 0 and tensor.shape[1:] == other.shape[1:]
    )


def _turned(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of a matrix's transpose."""
    return shape[::-1] if len(shape) == 2 and min(shape) > 1 else None


def _range(content: _Content, there: _There, base: _There) -> BaseRange | None:
    """Return the range of a tensor of the base that fits; None if it does not after all.

    Where rows are more or fewer, or the tensors are not alike, the rows may have moved, or the matrix may be turned.
    """
    tensor, other = there.tensor, base.tensor
    alike = tensor.shape == other.shape and content.nearest(there, 0, [base]) is not None
    if not alike and tensor.shape == _turned(other.shape) and other.n_bytes <= MAX_TURNED_BYTES and content.is_turned(there, base):
        return BaseRange(base.file, other.dtype, other.offset, other.n_bytes, None, other.shape[1])
    if tensor.shape[1:] != other.shape[1:]:
        return None
    moves = None
    if not alike and len(tensor.shape) > 1 and tensor.dtype == other.dtype:
        moves = _moves(_row_digests(there), _row_digests(base), there.n_elems // tensor.shape[0])
        shift = there.n_elems - base.n_elems
        if moves is None and content.nearer_to_the_end(there, base):
            moves = ((max(shift, 0), max(-shift, 0), min(there.n_elems, base.n_elems)),)
    return BaseRange(base.file, other.dtype, other.offset, other.n_bytes, moves)


def range_for(source: RandomReader, tensor: Tensor, reader: RandomReader, other: Tensor) -> BaseRange | None:
    """Return how `other`, which `reader` reads, serves a tensor: which of its rows serve which, if they have moved; None if it does not."""
    return _range(_Content(), _There(0, source, tensor), _There(0, reader, other))


# ---- rows


def _row_digests(there: _There) -> list[bytes]:
    tensor = there.tensor
    row = tensor.n_bytes // tensor.shape[0]
    digests: list[bytes] = []
    for offset, n in pieces(tensor.n_bytes, max(1, _READ_BYTES // row) * row):
        data = memoryview(read_at(there.reader, tensor.offset + offset, n))
        digests += [hashlib.blake2b(data[i : i + row], digest_size=16).digest() for i in range(0, n, row)]
    return digests


def _moves(rows: list[bytes], base_rows: list[bytes], row_elems: int) -> tuple[tuple[int, int, int], ...] | None:
    """Where the base's rows are in the tensor: rows that are once in both say how far those around them have moved. None: nowhere but where they were.

    What stands several times, as rows of zeros and of tokens that never occurred do, says nothing of where it came from.
    """
    times, base_times = Counter(rows), Counter(base_rows)
    where = {digest: i for i, digest in enumerate(base_rows) if base_times[digest] == times[digest] == 1}
    shifts = [where[digest] - i if digest in where else None for i, digest in enumerate(rows)]
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


class _Content:
    """Compares samples of tensors, each of which is read once."""

    def __init__(self) -> None:
        self._samples: dict[tuple[int, int, int], NDArray[np.uint8]] = {}
        self._left = _MOST_COMPARISONS

    def nearest(self, tensor: _There, begin: int, others: Iterable[_There]) -> _There | None:
        """Return which of the others is most like the part of the tensor from element `begin` that is as long; None if none is near."""
        best, best_distance = None, DTYPE_BITS[tensor.tensor.dtype] * _NEAR
        for other in others:
            if self._left == 0:
                return best
            self._left -= 1
            distance = self._distance(tensor, begin, other, 0, other.n_elems)
            if distance < best_distance:
                best, best_distance = other, distance
        return best

    def nearer_to_the_end(self, tensor: _There, base: _There) -> bool:
        """Is a tensor more like a base of another length when their ends, and not their begins, are at the same place?"""
        n_elems = min(tensor.n_elems, base.n_elems)
        ends = self._distance(tensor, tensor.n_elems - n_elems, base, base.n_elems - n_elems, n_elems)
        return ends < self._distance(tensor, 0, base, 0, n_elems)

    def is_turned(self, tensor: _There, base: _There) -> bool:
        """Is a matrix near the transpose of another?"""
        n_rows, n_cols = tensor.tensor.shape
        distances = []
        for i in range(_SAMPLES):
            row, first = (n_rows - 1) * i // (_SAMPLES - 1), max(n_cols - _TURNED_ELEMS, 0) * i // (_SAMPLES - 1)
            n = min(_TURNED_ELEMS, n_cols)
            one = np.frombuffer(read_at(tensor.reader, tensor.tensor.offset + (row * n_cols + first) * tensor.size, n * tensor.size), f"<u{tensor.size}")
            places = [base.tensor.offset + (col * n_rows + row) * base.size for col in range(first, first + n)]
            other = np.frombuffer(b"".join(bytes(read_at(base.reader, place, base.size)) for place in places), np.uint8)
            distances.append(_bits_that_differ(one, convert(other, base.tensor.dtype, tensor.tensor.dtype).view(one.dtype)))
        return sum(distances) < _SAMPLES * DTYPE_BITS[tensor.tensor.dtype] * _NEAR

    def _distance(self, tensor: _There, begin: int, base: _There, base_begin: int, n_elems: int) -> float:
        """Return the mean bits of what differs in `n_elems`, from the highest bit that does."""
        sample = self._sample(tensor, begin, n_elems).view(f"<u{tensor.size}")
        other = convert(self._sample(base, base_begin, n_elems), base.tensor.dtype, tensor.tensor.dtype).view(sample.dtype)
        return _bits_that_differ(sample, other)

    def _sample(self, there: _There, begin: int, n_elems: int) -> NDArray[np.uint8]:
        """Return some of `n_elems` elements, (n_bytes,) uint8; of as many elements in another place those in the same places."""
        offset, size = there.tensor.offset + begin * there.size, there.size
        key = id(there.reader), offset, n_elems
        if key not in self._samples:
            n = min(_SAMPLE_ELEMS, n_elems)
            places = [offset + (n_elems - n) * i // (_SAMPLES - 1) * size for i in range(_SAMPLES)]
            self._samples[key] = np.frombuffer(b"".join(bytes(read_at(there.reader, place, n * size)) for place in places), np.uint8)
        return self._samples[key]


def _bits_that_differ(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the mean, from the highest bit that does."""
    return float(np.frexp((one ^ other).astype(np.float64))[1].sum()) / one.size


def _by_content(content: _Content, tensors: list[_There], bases: list[_There]) -> dict[str, BaseRange]:
    """Match what no name matches: with one of the base's tensors, with several, one after the other, or with a part of one (projections fused and split)."""
    matches = {}
    tensors = [tensor for tensor in tensors if tensor.tensor.n_bytes >= _LEAST_BY_CONTENT]
    by_length: dict[int, list[_There]] = {}
    for base in bases:
        by_length.setdefault(base.n_elems, []).append(base)
    unmatched = []
    for tensor in tensors:
        alike = content.nearest(tensor, 0, [base for base in by_length.get(tensor.n_elems, ()) if converts(base.tensor.dtype, tensor.tensor.dtype)])
        if alike is None:
            unmatched.append(tensor)
        else:
            matches[tensor.tensor.name] = BaseRange(alike.file, alike.tensor.dtype, alike.tensor.offset, alike.tensor.n_bytes)
    for tensor in unmatched:
        parts = _parts(content, tensor, bases)
        if len(parts) > 1 and parts[-1][0] + parts[-1][1].n_elems == tensor.n_elems and (fused := _fused(parts)) is not None:
            matches[tensor.tensor.name] = fused
    unmatched = [tensor for tensor in unmatched if tensor.tensor.name not in matches]
    for base in bases:
        for begin, tensor in _parts(content, base, unmatched):
            matches[tensor.tensor.name] = BaseRange(base.file, base.tensor.dtype, base.tensor.offset + begin * base.size, tensor.tensor.n_bytes)
    return matches


def _parts(content: _Content, whole: _There, others: list[_There]) -> list[tuple[int, _There]]:
    """Return which of the others follow each other in a tensor from its begin, each once, and the elements that they begin at; they have rows as long."""
    parts: list[tuple[int, _There]] = []
    begin, left = 0, [other for other in others if whole.row_elems and (other.row_elems, other.tensor.dtype) == (whole.row_elems, whole.tensor.dtype)]
    while (part := content.nearest(whole, begin, [other for other in left if other.n_elems <= whole.n_elems - begin])) is not None:
        parts.append((begin, part))
        left.remove(part)
        begin += part.n_elems
    return parts


def _fused(parts: list[tuple[int, _There]]) -> BaseRange | None:
    """Return the range from the first to the last of the base's tensors, and the moves that take each to its place; None if no range has them all."""
    first = parts[0][1]
    offset = min(part.tensor.offset for _, part in parts)
    end = max(part.tensor.offset + part.tensor.n_bytes for _, part in parts)
    if any(part.file != first.file or (part.tensor.offset - offset) % first.size for _, part in parts):
        return None
    moves = tuple((begin, (part.tensor.offset - offset) // first.size, part.n_elems) for begin, part in parts)
    return BaseRange(first.file, first.tensor.dtype, offset, end - offset, moves)
