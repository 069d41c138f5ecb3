# SPDX-License-Identifier: Apache-2.0
"""A record in memory -> the tensor's bytes (FORMAT section 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.record import parse_record_head, table_bytes
from weightpack.io.parallel import Scratch, ordered_map
from weightpack.reading.chunks import decode_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RUN_BYTES = 2 << 20  # for one thread in one go


def decode_record(record: memoryview, out: NDArray[np.uint8], threads: int = 1, *, in_place: bool = False) -> None:
    """Decode a record into `out`, (n_bytes,) uint8; with `in_place`, onto what stands there as its base.

    Raises
    ------
    FormatError
        The record is damaged, or needs a base.
    """
    head = parse_record_head(record[: table_bytes(record, out.size, len(record))], out.size, len(record))
    chunk_elems, elem_bytes = head.chunk_elems, head.layout.elem_bytes
    per_run = head.n_chunks if threads == 1 and not in_place else max(1, _RUN_BYTES // (chunk_elems * elem_bytes))
    scratch = Scratch()

    def base_elems(first: int, n: int) -> NDArray[np.uint8]:
        return out[first * elem_bytes : (first + n) * elem_bytes]

    base = base_elems if in_place else None

    def decode(first: int, last: int, to: NDArray[np.uint8], earlier: Callable[[int], NDArray[np.uint8]] | None) -> None:
        offsets = head.offsets[first : last + 1]
        data = record[int(offsets[0]) : int(offsets[-1])]
        decode_chunks(head.layout, data, offsets, head.crcs[first:last], chunk_elems, to.size // elem_bytes, first, to, base, earlier)

    def one(number: int) -> NDArray[np.uint8]:
        chunk = np.empty(head.elems_of(number) * elem_bytes, np.uint8)
        decode(number, number + 1, chunk, None)
        return chunk

    def work(first: int) -> None:
        last = min(first + per_run, head.n_chunks)
        to = out[first * chunk_elems * elem_bytes : last * chunk_elems * elem_bytes]
        if in_place:  # no chunk repeats another there: that may have become another
            decoded = scratch.get(to.size)
            decode(first, last, decoded, None)
            to[:] = decoded
        else:
            decode(first, last, to, one)

    for _ in ordered_map(work, range(0, head.n_chunks, per_run), threads, lambda first: _RUN_BYTES):
        pass
