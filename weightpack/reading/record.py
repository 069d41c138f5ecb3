# SPDX-License-Identifier: Apache-2.0
"""A record in memory -> the tensor's bytes (FORMAT section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightpack.format.record import parse_record_head, table_bytes
from weightpack.io.parallel import ordered_map
from weightpack.reading.chunks import decode_chunks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RUN_BYTES = 2 << 20  # for one thread in one go


def decode_record(record: memoryview, out: NDArray[np.uint8], threads: int = 1) -> None:
    """Decode a record into `out`, (n_bytes,) uint8.

    Raises
    ------
    FormatError
        The record is damaged, or needs a base.
    """
    head = parse_record_head(record[: table_bytes(record, out.size, len(record))], out.size, len(record))
    chunk_elems, elem_bytes = head.chunk_elems, head.layout.elem_bytes
    per_run = head.n_chunks if threads == 1 else max(1, _RUN_BYTES // (chunk_elems * elem_bytes))

    def work(first: int) -> None:
        last = min(first + per_run, head.n_chunks)
        offsets, begin, end = head.offsets[first : last + 1], first * chunk_elems, min(last * chunk_elems, head.n_elems)
        data = record[int(offsets[0]) : int(offsets[-1])]
        decode_chunks(head.layout, data, offsets, head.crcs[first:last], chunk_elems, end - begin, first, out[begin * elem_bytes : end * elem_bytes])

    for _ in ordered_map(work, range(0, head.n_chunks, per_run), threads, lambda first: _RUN_BYTES):
        pass
