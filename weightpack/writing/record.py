# SPDX-License-Identifier: Apache-2.0
"""A tensor's bytes in memory -> a record (FORMAT section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.record import RecordHead, record_bound, table_end
from weightpack.io.parallel import Scratch, Turnstile, ordered_map
from weightpack.writing.chunks import Chunking, encode_runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.layouts import Layout
    from weightpack.options import PackOptions
    from weightpack.writing.plain import EncodedChunk

_RUNS = 2  # for one thread in one go


def encode_record(
    data: NDArray[np.uint8], layout: Layout, options: PackOptions, *, threads: int = 1, out: NDArray[np.uint8] | None = None, row_elems: int = 0,
    first_elem: int = 0, fields: tuple[int, ...] = (), base: NDArray[np.uint8] | None = None,
) -> memoryview:  # fmt: skip
    """Encode a whole tensor, or a part of one.

    Parameters
    ----------
    data : (n_elems * layout.elem_bytes,) uint8
        Not empty.
    out : uint8, optional
        At least `format.record.record_bound`; a part of it is returned.
    row_elems, first_elem
        Elements of a row of the tensor, 0 if it has none; and the number of the first element here.
    fields
        Of a tensor of blocks of bytes: the widths of a block's fields.
    base : (n_elems * layout.elem_bytes,) uint8, optional
        What chunks may be differences from, where the layout has differences.
    """
    chunking = Chunking.of(
        layout, options, data.size, lambda offset, n: data[offset : offset + n], fields=fields, row_elems=row_elems, first_elem=first_elem
    )  # fmt: skip
    chunk_bytes, n_chunks = chunking.chunk_bytes, -(-data.size // chunking.chunk_bytes)
    begin = table_end(n_chunks)
    if out is None:
        out = np.empty(record_bound(layout, data.size // layout.elem_bytes, chunking.chunk_elems), np.uint8)
    per_turn = n_chunks if threads == 1 else _RUNS * chunking.run_chunks
    turnstile, scratch = Turnstile(begin), Scratch()

    def encode_turn(turn: int) -> list[EncodedChunk]:
        first = turn * per_turn
        place = slice(first * chunk_bytes, (first + per_turn) * chunk_bytes)
        part, its_base = data[place], None if base is None else base[place]
        if threads == 1:
            return encode_runs(part, chunking, first, options, out[begin:], its_base)
        try:  # where a turn begins is known when those before it are done
            room = scratch.get(chunking.bound(part.size))
            chunks = encode_runs(part, chunking, first, options, room, its_base)
            n_bytes = sum(chunk.n_bytes for chunk in chunks)
            position = turnstile.take(turn, n_bytes)
            out[position : position + n_bytes] = room[:n_bytes]
            return chunks
        except BaseException:
            turnstile.fail()
            raise

    offsets, crcs = [begin], []
    for chunks in ordered_map(encode_turn, range(-(-n_chunks // per_turn)), threads, lambda turn: per_turn * chunk_bytes):
        for chunk in chunks:
            offsets.append(offsets[-1] + chunk.n_bytes)
            crcs.append(chunk.crc)
    head = RecordHead(layout, data.size // layout.elem_bytes, chunking.chunk_elems, np.array(offsets, np.int64), np.array(crcs, np.uint32))
    out[:begin] = np.frombuffer(head.to_bytes(), np.uint8)
    return memoryview(out)[: offsets[-1]]
