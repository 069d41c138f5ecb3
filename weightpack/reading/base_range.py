# SPDX-License-Identifier: Apache-2.0
"""Elements of a base, where a tensor needs them: read from where they are, moved or turned, and converted (FORMAT 15.2 to 15.6)."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import CorruptionError
from weightpack.format.constants import MAX_TURNED_BYTES
from weightpack.format.index import BaseRange
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader, read_at
from weightpack.reading.convert import convert, converts
from weightpack.sources.model import Tensor

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes


def check_range(base: BaseRange, tensor: Tensor, file_bytes: int) -> None:
    """Refuse a range that leaves its file, or does not fit the tensor."""
    bits = DTYPE_BITS.get(base.dtype, 0)
    if bits not in (8, 16, 32) or base.n_bytes % (bits // 8) or base.offset + base.n_bytes > file_bytes or not converts(base.dtype, tensor.dtype):
        raise CorruptionError("the tensor's range of the base is impossible")
    n_base, n_elems, end = base.n_bytes * 8 // bits, tensor.n_bytes * 8 // DTYPE_BITS[tensor.dtype], 0
    if base.columns and (n_base != n_elems or n_base % base.columns or base.n_bytes > MAX_TURNED_BYTES):
        raise CorruptionError("the base's matrix that the tensor is the transpose of is impossible")
    for to, from_, count in base.moves or ():
        if to < end or count == 0 or to + count > n_elems or from_ + count > n_base:
            raise CorruptionError("the moves of the tensor's range of the base are impossible")
        end = to + count


class BaseElements:
    """Gives the elements of a base. A matrix that is turned is read as a whole, and the last one is held: its chunks are wanted one after the other."""

    def __init__(self) -> None:
        self._turned: tuple[RandomReader, BaseRange, Bytes] | None = None

    def __call__(self, reader: RandomReader, base: BaseRange, dtype: str, first: int, count: int) -> Bytes:
        """Return what elements [first, first + count) of a tensor of `dtype` differ from, (n_bytes,) uint8."""
        if not base.columns:
            return _moved(reader, base, dtype, first, count)
        last, size = self._turned, DTYPE_BITS[base.dtype] // 8
        if last is None or last[0] is not reader or last[1] != base:  # without a lock: twice is no harm
            matrix = np.frombuffer(read_at(reader, base.offset, base.n_bytes), f"<u{size}").reshape(-1, base.columns)
            last = self._turned = reader, base, np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint8)
        return convert(last[2][first * size : (first + count) * size], base.dtype, dtype)


def _moved(reader: RandomReader, base: BaseRange, dtype: str, first: int, count: int) -> Bytes:
    size = DTYPE_BITS[base.dtype] // 8
    moves = base.moves if base.moves is not None else ((0, 0, base.n_bytes // size),)
    data = np.zeros(count * size, np.uint8)
    for to, from_, n in moves[max(bisect_right(moves, first, key=lambda move: move[0]) - 1, 0) :]:
        if to >= first + count:
            break
        begin, end = max(to, first), min(to + n, first + count)
        if begin < end:
            reader.read_into(base.offset + (from_ + begin - to) * size, memoryview(data)[(begin - first) * size : (end - first) * size])
    return convert(data, base.dtype, dtype)
