# SPDX-License-Identifier: Apache-2.0
"""A record in memory -> the tensor's bytes (FORMAT section 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.record import parse_record_head, table_bytes
from weightpack.io.parallel import Scratch, ordered_map
from weightpack.kernels import active
from weightpack.reading.chunks import decode_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.kernels import Product

_RUN_BYTES = 2 << 20  # for one thread in one go


class Record:
    """A record in memory, its head parsed and checked.

    Parameters
    ----------
    data : (record_bytes,) uint8
    n_bytes
        Of the tensor.

    Raises
    ------
    FormatError
        The head is damaged.
    """

    def __init__(self, data: memoryview, n_bytes: int) -> None:
        self.data = data
        self.head = parse_record_head(data[: table_bytes(data, n_bytes, len(data))], n_bytes, len(data))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the tensor that a chunk holds; of the last one, at most."""
        return self.head.chunk_elems * self.head.layout.elem_bytes

    def decode(self, first: int, last: int, out: NDArray[np.uint8], base: Callable[[int, int], NDArray[np.uint8]] | None = None) -> None:
        """Decode chunks [first, last) into `out`; `base` as for `decode_chunks`, and then no chunk may repeat another: the base may be where it stood.

        Raises
        ------
        FormatError
            They are damaged, or need a base.
        """
        self._decode(first, last, out, base, self._chunk if base is None else None)

    def multiply(self, first: int, last: int, product: Product) -> None:
        """Add the products of chunks [first, last) to `product.sums`, whose first row is the one that chunk `first` begins in."""
        head, kernels = self.head, active()
        offsets, n_elems = head.offsets[first : last + 1], min(last * head.chunk_elems, head.n_elems) - first * head.chunk_elems
        data, crcs = self.data[int(offsets[0]) : int(offsets[-1])], head.crcs[first:last]
        done = 0
        while (done := kernels.multiply_chunks(head.layout, data, offsets, crcs, done, head.chunk_elems, n_elems, first, product)) < last - first:
            begin = (first + done) * head.chunk_elems
            row = begin // product.x.shape[1] - first * head.chunk_elems // product.x.shape[1]
            kernels.multiply(self._chunk(first + done, self._chunk), begin, product._replace(sums=product.sums[row:]))
            done += 1

    def _decode(
        self, first: int, last: int, out: NDArray[np.uint8], base: Callable[[int, int], NDArray[np.uint8]] | None,
        earlier: Callable[[int], NDArray[np.uint8]] | None,
    ) -> None:  # fmt: skip
        head = self.head
        offsets = head.offsets[first : last + 1]
        data = self.data[int(offsets[0]) : int(offsets[-1])]
        decode_chunks(head.layout, data, offsets, head.crcs[first:last], head.chunk_elems, out.size // head.layout.elem_bytes, first, out, base, earlier)

    def _chunk(self, number: int, earlier: Callable[[int], NDArray[np.uint8]] | None = None) -> NDArray[np.uint8]:
        """Return a chunk; without `earlier` one that repeats no other, as none does that another repeats."""
        chunk = np.empty(self.head.elems_of(number) * self.head.layout.elem_bytes, np.uint8)
        self._decode(number, number + 1, chunk, None, earlier)
        return chunk


def decode_record(
    data: memoryview, out: NDArray[np.uint8], threads: int = 1, *, base: Callable[[int, int], NDArray[np.uint8]] | None = None, in_place: bool = False
) -> None:  # fmt: skip
    """Decode a record into `out`, (n_bytes,) uint8; with `in_place`, onto what stands there as its base.

    Parameters
    ----------
    base
        (first element, count) -> what they may be differences from, in the record's layout, (n_bytes,) uint8.

    Raises
    ------
    FormatError
        The record is damaged, or needs a base that it has not.
    """
    record = Record(data, out.size)
    n_chunks, chunk_bytes, elem_bytes = record.head.n_chunks, record.chunk_bytes, record.head.layout.elem_bytes
    per_run = n_chunks if threads == 1 and not in_place else max(1, _RUN_BYTES // chunk_bytes)
    scratch = Scratch()

    def elems_there(first: int, n: int) -> NDArray[np.uint8]:
        return out[first * elem_bytes : (first + n) * elem_bytes]

    def work(first: int) -> None:
        last = min(first + per_run, n_chunks)
        to = out[first * chunk_bytes : last * chunk_bytes]
        if in_place:
            decoded = scratch.get(to.size)
            record.decode(first, last, decoded, elems_there)
            to[:] = decoded
        else:
            record.decode(first, last, to, base)

    for _ in ordered_map(work, range(0, n_chunks, per_run), threads, lambda first: _RUN_BYTES):
        pass
