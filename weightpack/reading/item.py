# SPDX-License-Identifier: Apache-2.0
"""A packed item of a distributed checkpoint -> what DCP wrote (FORMAT section 16)."""

from __future__ import annotations

import io

import numpy as np
import zstandard

from weightpack.errors import ChecksumError, LimitError
from weightpack.format.item import DICTIONARY, ItemTable, covered_head, parse_head, parse_table
from weightpack.format.record import table_bytes
from weightpack.format.zstd import decode_sized_frame
from weightpack.io.parallel import thread_count
from weightpack.kernels import crc32c_of
from weightpack.reading.record import decode_record

MAX_BYTES = 1 << 40
_dictionary = zstandard.ZstdCompressionDict(DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def unpack_item(item: bytes | bytearray | memoryview, threads: int | None = 1, max_bytes: int = MAX_BYTES) -> io.BytesIO:
    """Restore what DCP has written of an item.

    Raises
    ------
    FormatError
        The item is damaged.
    LimitError
        It claims more than `max_bytes`, or more memory than there is.
    """
    packed, crc, body = parse_head(memoryview(item).cast("B"))
    if packed:
        return _unpack_parts(body, crc, thread_count(threads), max_bytes)
    if len(body) > max_bytes:
        raise LimitError(f"the item has {len(body)} bytes, the limit is {max_bytes}")
    if crc32c_of(covered_head(packed=False), body) != crc:
        raise ChecksumError("the item's bytes do not match their checksum: the file is damaged")
    return io.BytesIO(body)


def _unpack_parts(body: memoryview, crc: int, threads: int, max_bytes: int) -> io.BytesIO:
    table, table_end = parse_table(body, max_bytes)
    stored_parts = _stored_parts(body, table, table_end)
    stored_rest = bytes(body[table_end : table_end + table.stored_rest_bytes])
    rest = memoryview(stored_rest if len(stored_rest) == table.rest_bytes else decode_rest(stored_rest, table.rest_bytes))
    if crc32c_of(covered_head(packed=True), body[:table_end], rest) != crc:
        raise ChecksumError("the item's header does not match its checksum: the file is damaged")
    room = _room(table.n_bytes)
    with room.getbuffer() as out:
        at = begin = 0  # in the source, and in the rest
        for part, stored in zip(table.parts, stored_parts, strict=True):
            out[at : at + part.gap] = rest[begin : begin + part.gap]
            at, begin = at + part.gap, begin + part.gap
            if part.stored_bytes == part.n_bytes:
                out[at : at + part.n_bytes] = stored
            else:
                decode_record(stored, np.frombuffer(out[at : at + part.n_bytes], np.uint8), threads)
            at += part.n_bytes
        out[at:] = rest[begin:]
    return room


def _stored_parts(body: memoryview, table: ItemTable, table_end: int) -> list[memoryview]:
    """Return the stored bytes of each part; their checksums are right."""
    stored_parts, position = [], table_end + table.stored_rest_bytes
    for part in table.parts:
        stored = body[position : position + part.stored_bytes]
        if crc32c_of(stored[: covered_bytes(stored, part.n_bytes)]) != part.crc:
            raise ChecksumError("a part of the item does not match its checksum: the file is damaged")
        stored_parts.append(stored)
        position += part.stored_bytes
    return stored_parts


def covered_bytes(stored: memoryview, n_bytes: int) -> int:
    """Return how many bytes of a stored part its CRC is of: all, or a record's header and chunk table."""
    return n_bytes if len(stored) == n_bytes else table_bytes(stored[:8], n_bytes, len(stored))


def decode_rest(frame: bytes, n_bytes: int) -> bytes:
    """Decode what lies between an item's parts."""
    return decode_sized_frame(frame, n_bytes, _dictionary)


def _room(n_bytes: int) -> io.BytesIO:
    """Return a file of `n_bytes` in memory, to be filled through its buffer: decoding into it saves a copy."""
    room = io.BytesIO()
    if n_bytes:
        try:
            room.seek(n_bytes - 1)
            room.write(b"\0")
        except (MemoryError, OverflowError):
            raise LimitError(f"the item has {n_bytes} bytes: more than there is memory") from None
        room.seek(0)
    return room
