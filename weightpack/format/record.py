# SPDX-License-Identifier: Apache-2.0
"""Records: header, chunk table and chunk headers (FORMAT section 6)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from weightpack.errors import CorruptionError, TruncatedError, UnsupportedError
from weightpack.format.constants import (
    ALIGN_BYTES,
    BLOCK_ELEMS,
    MAX_CHUNK_BYTES,
    MAX_FREQUENT,
    MAX_SCALED_COLS,
    MAX_STREAMS,
    MAX_TILE_SIDE,
    MAX_VALUES,
    Mode,
    aligned,
)
from weightpack.format.layouts import LAYOUTS, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Buffer, Stream, Words

HEAD_BYTES = 8
CHUNK_HEAD_BYTES = 4
_HEAD = struct.Struct("<BBHI")
_MODE = struct.Struct("<BBH")
_SCALED = struct.Struct("<II")
_QUANTISED = struct.Struct("<IIIHH")
_REPEATED = struct.Struct("<I")
_N_STREAMS = {Mode.WHOLE: 1, Mode.DIFFERENCE: 3, Mode.SCALED: 5, Mode.QUANTISED: 7, Mode.REPEATED: 0}
# Bytes that every chunk of the mode has behind its stream table.
_BEHIND_TABLE = {Mode.DIFFERENCE: 2, Mode.SCALED: 2 + _SCALED.size, Mode.QUANTISED: _QUANTISED.size, Mode.REPEATED: _REPEATED.size}
_MODES = frozenset(Mode)


def table_end(n_chunks: int) -> int:
    """Return where the first chunk starts."""
    return aligned(HEAD_BYTES + 8 * n_chunks)


@dataclass(frozen=True, slots=True)
class RecordHead:
    """What stands before the chunks. `offsets` has n_chunks + 1 entries, bytes from the record's start; `crcs` has n_chunks."""

    layout: Layout
    n_elems: int
    chunk_elems: int
    offsets: NDArray[np.int64]
    crcs: NDArray[np.uint32]

    @property
    def n_chunks(self) -> int:
        return len(self.crcs)

    def elems_of(self, chunk: int) -> int:
        """Count the elements of a chunk."""
        return min(self.chunk_elems, self.n_elems - chunk * self.chunk_elems)

    def to_bytes(self) -> bytes:
        """Serialise header and table, padded to where the first chunk starts."""
        record_bytes = int(self.offsets[-1])
        table = np.empty((self.n_chunks, 2), "<u4")
        table[:, 0] = self.offsets[:-1] // 16
        table[:, 1] = self.crcs
        head = _HEAD.pack(self.layout.id, 0, self.chunk_elems // BLOCK_ELEMS, record_bytes // 16) + table.tobytes()
        return head.ljust(table_end(self.n_chunks), b"\0")


def table_bytes(first: Buffer, n_bytes: int, record_bytes: int) -> int:
    """Return how many bytes header and table take, from a record's first `HEAD_BYTES`, checked against the record's length."""
    return _parse_head(first, n_bytes, record_bytes)[3]


def _parse_head(first: Buffer, n_bytes: int, record_bytes: int) -> tuple[Layout, int, int, int]:
    """Return layout, count of elements, elements of a chunk, and the bytes of header and table."""
    if len(first) < HEAD_BYTES:
        raise TruncatedError("the record ends inside its header")
    layout_id, reserved, chunk_blocks, bytes_16 = _HEAD.unpack_from(first)
    if layout_id not in LAYOUTS:
        raise UnsupportedError(f"unknown layout {layout_id}: upgrade weightpack")
    layout = LAYOUTS[layout_id]
    chunk_elems = chunk_blocks * BLOCK_ELEMS
    if reserved or chunk_elems == 0 or chunk_elems * layout.elem_bytes > MAX_CHUNK_BYTES:
        raise CorruptionError("the record's header is damaged")
    if bytes_16 * 16 != record_bytes:
        raise CorruptionError(f"the record claims {bytes_16 * 16} bytes, its entry has {record_bytes}")
    if n_bytes == 0 or n_bytes % layout.elem_bytes:
        raise CorruptionError(f"{n_bytes} bytes are not a whole count of {layout.id.name} elements")
    n_elems = n_bytes // layout.elem_bytes
    n_chunks = -(-n_elems // chunk_elems)
    if table_end(n_chunks) > record_bytes:
        raise CorruptionError(f"the record has {record_bytes} bytes, too few for its table of {n_chunks} chunks")
    return layout, n_elems, chunk_elems, table_end(n_chunks)


def parse_record_head(data: Buffer, n_bytes: int, record_bytes: int) -> RecordHead:
    """Parse header and table of the record of a tensor of `n_bytes`; `data` has at least `table_bytes` of it."""
    layout, n_elems, chunk_elems, begin = _parse_head(data, n_bytes, record_bytes)
    if len(data) < begin:
        raise TruncatedError("the record ends inside its chunk table")
    n_chunks = -(-n_elems // chunk_elems)
    table = np.frombuffer(data, "<u4", 2 * n_chunks, HEAD_BYTES).reshape(n_chunks, 2)
    offsets = np.empty(n_chunks + 1, np.int64)
    offsets[:-1] = table[:, 0]
    offsets[:-1] *= 16
    offsets[-1] = record_bytes
    if offsets[0] != begin or (offsets[1:] - offsets[:-1]).min() < 16 or any(bytes(data[HEAD_BYTES + 8 * n_chunks : begin])):
        raise CorruptionError("the record's chunk table is damaged")
    return RecordHead(layout, n_elems, chunk_elems, offsets, table[:, 1].copy())


class Tiling(NamedTuple):
    """Rows of `cols` elements, cut into tiles of `tile_rows` times `tile_cols`, each of which has a scale (FORMAT 18.1)."""

    cols: int
    tile_rows: int
    tile_cols: int

    def tiles(self, n_elems: int) -> int:
        """Count the tiles of a chunk of `n_elems`."""
        n_rows = -(-n_elems // self.cols)
        return -(-n_rows // self.tile_rows) * -(-self.cols // self.tile_cols)

    def tile_of(self, n_elems: int) -> NDArray[np.int64]:
        """Return the number of the tile of each element of a chunk, (n_elems,)."""
        row, col = np.divmod(np.arange(n_elems), self.cols)
        number: NDArray[np.int64] = row // self.tile_rows * -(-self.cols // self.tile_cols) + col // self.tile_cols
        return number


@dataclass(frozen=True, slots=True)
class Chunk:
    """A parsed chunk: its mode, (codec, stream) pairs, and what some modes have besides.

    `widths`: of fields, in bytes. `shift`: of differences, the low bits that are dropped; `frequent`: u32, those that are classes of their own. `cols` and
    `phase`: elements of a row, and the column of the chunk's first element. `tiling` and `n_values`: of what was quantised, its tiles, and how many values
    the codes stand for. `repeats`: the number of the chunk that this one is the same as.
    """

    mode: Mode
    streams: tuple[tuple[int, memoryview], ...]
    widths: tuple[int, ...] = ()
    shift: int = 0
    frequent: bytes = b""
    cols: int = 0
    phase: int = 0
    tiling: Tiling | None = None
    n_values: int = 0
    repeats: int = 0


def parse_chunk(data: Buffer, layout: Layout) -> Chunk:
    """Parse a chunk with up to 15 bytes of padding behind it."""
    view = memoryview(data)
    if len(view) < _MODE.size:
        raise TruncatedError("the chunk ends inside its header")
    mode, n_streams, reserved = _MODE.unpack_from(view)
    if mode not in _MODES:
        raise UnsupportedError(f"unknown chunk mode {mode}: upgrade weightpack")
    if mode == Mode.FIELDS:
        good = 2 <= n_streams <= MAX_STREAMS and layout.has_fields
    else:
        good = n_streams == (layout.n_streams if mode == Mode.SPLIT else _N_STREAMS[Mode(mode)])
    if reserved or not good:
        raise CorruptionError("the chunk's header is damaged")
    table_end = _MODE.size + 4 * n_streams
    position = table_end + (n_streams if mode == Mode.FIELDS else _BEHIND_TABLE.get(Mode(mode), 0))
    if len(view) < position:
        raise TruncatedError("the chunk ends inside its stream table")
    frequent = b""
    if mode in (Mode.DIFFERENCE, Mode.SCALED):
        n_frequent = view[table_end + 1]
        if n_frequent > MAX_FREQUENT:
            raise CorruptionError("the chunk has too many frequent differences")
        frequent = bytes(view[position : position + 4 * n_frequent])
        position += 4 * n_frequent
        if len(view) < position:
            raise TruncatedError("the chunk ends inside its frequent differences")
    widths: tuple[int, ...] = ()
    shift = cols = phase = 0
    if mode == Mode.FIELDS:
        widths = tuple(view[table_end:position])
        if 0 in widths:
            raise CorruptionError("a field of the chunk has no width")
    elif mode in (Mode.DIFFERENCE, Mode.SCALED):
        shift = view[table_end]
    if mode == Mode.SCALED:
        cols, phase = _SCALED.unpack_from(view, table_end + 2)
        if not 0 < cols <= MAX_SCALED_COLS or phase >= cols:
            raise CorruptionError("the rows of the chunk are impossible")
    tiling, n_values = None, 0
    if mode == Mode.QUANTISED:
        *sides, n_values, reserved = _QUANTISED.unpack_from(view, table_end)
        tiling = Tiling(*sides)
        if reserved or not 0 < n_values <= MAX_VALUES or not all(0 < side <= MAX_TILE_SIDE for side in tiling) or tiling.tile_cols > tiling.cols:
            raise CorruptionError("the tiles of the chunk are impossible")
    (repeats,) = _REPEATED.unpack_from(view, table_end) if mode == Mode.REPEATED else (0,)
    if shift and shift + 2 > 8 * layout.elem_bytes:
        raise CorruptionError("the chunk drops more bits than its elements have")
    streams = []
    for (entry,) in struct.iter_unpack("<I", view[_MODE.size : table_end]):
        end = position + (entry >> 8)
        if end > len(view):
            raise TruncatedError("a stream ends behind its chunk")
        streams.append((entry & 255, view[position:end]))
        position = end
    if len(view) - position >= 16 or any(view[position:]):
        raise CorruptionError("the chunk has bytes behind its last stream")
    return Chunk(Mode(mode), tuple(streams), widths, shift, frequent, cols, phase, tiling, n_values, repeats)


def chunk_bound(layout: Layout, n_elems: int) -> int:
    """Return room for any chunk of these elements in split mode, padding included, its last block in full width."""
    n_blocks = -(-n_elems // BLOCK_ELEMS)
    head = CHUNK_HEAD_BYTES + 4 * MAX_STREAMS
    raw = n_blocks * (1 + BLOCK_ELEMS // 8 * layout.raw_bits) if layout.raw_bits else 0
    return head + len(layout.plane_bits) * n_elems + raw + ALIGN_BYTES - 1


def record_bound(layout: Layout, n_elems: int, chunk_elems: int) -> int:
    """Return room for any record of these elements, its chunks in split mode."""
    n_chunks = -(-n_elems // chunk_elems)
    return table_end(n_chunks) + n_chunks * chunk_bound(layout, chunk_elems)


def build_difference_chunk(streams: Sequence[Stream], shift: int, frequent: Words, rows: tuple[int, int] | None = None) -> bytes:
    """Serialise a chunk of the mode *difference*, or of the mode *scaled* if `rows` (elements of a row, column of the first) are given."""
    head = bytes((shift, frequent.size)) + (b"" if rows is None else _SCALED.pack(*rows))
    return build_chunk(Mode.DIFFERENCE if rows is None else Mode.SCALED, streams, head + frequent.astype("<u4").tobytes())


def build_quantised_chunk(streams: Sequence[Stream], tiling: Tiling, n_values: int) -> bytes:
    """Serialise a chunk of the mode *quantised*."""
    return build_chunk(Mode.QUANTISED, streams, _QUANTISED.pack(*tiling, n_values, 0))


def build_repeated_chunk(number: int) -> bytes:
    """Serialise a chunk that is the same as chunk `number` of its record."""
    return build_chunk(Mode.REPEATED, [], _REPEATED.pack(number))


def build_chunk(mode: Mode, streams: Sequence[Stream], behind_table: Sequence[int] = ()) -> bytes:
    """Serialise a chunk, with its padding. `behind_table` are the bytes that the mode has there: fields' widths, a shift."""
    table = [len(stream) << 8 | codec for codec, stream in streams]
    head = _MODE.pack(mode, len(streams), 0) + struct.pack(f"<{len(table)}I", *table) + bytes(behind_table)
    n_bytes = len(head) + sum(len(stream) for _, stream in streams)
    return b"".join([head, *(memoryview(stream) for _, stream in streams), bytes(aligned(n_bytes) - n_bytes)])
