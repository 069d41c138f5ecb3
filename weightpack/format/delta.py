# SPDX-License-Identifier: Apache-2.0
"""Head and table of a delta: what tensors in memory have become (FORMAT section 19)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum

import zstandard

from weightpack.errors import CorruptionError, LimitError, NotPackedError, TruncatedError, UnsupportedError
from weightpack.format.layouts import DTYPE_BITS, tensor_bytes
from weightpack.format.zstd import decode_frame

MAGIC = b"\x89WPU"
_VERSION, _RESERVED = 1, bytes(3)
_HEAD = struct.Struct("<4sB3sIII")
CRC_BYTES = 4  # behind the table
_ENTRY = struct.Struct("<BBBBIIIIQ")
_MOST_DIMS = 64
MAX_TABLE_BYTES = 1 << 28
_ZSTD_LEVEL = 9


class Storage(IntEnum):
    """How a tensor's new bytes are stored."""

    KEPT = 0  # as they are
    PACKED = 1  # a record that stands alone
    DIFFERENCE = 2  # a record with differences from the base
    UNCHANGED = 3  # not at all: they are the base's


_STORAGES = frozenset(Storage)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the table says of a tensor.

    `base_crc`: the CRC-32C of the base's bytes, where they are needed, else 0; `body_crc`: that of what is stored. `body`: the number of the entry that it is
    stored for: this one's, or an earlier one's, of a tensor that has become the same from the same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: Storage
    base_crc: int
    body: int
    body_bytes: int
    body_crc: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor."""
        n_bytes = tensor_bytes(self.dtype, self.shape)
        if n_bytes is None:
            raise CorruptionError(f"{self.dtype} of shape {list(self.shape)} is not a whole count of bytes", tensor=self.name)
        return n_bytes

    @property
    def needs_base(self) -> bool:
        return self.storage in (Storage.DIFFERENCE, Storage.UNCHANGED)

    def to_bytes(self) -> bytes:
        """Serialise."""
        name = self.name.encode()
        fixed = _ENTRY.pack(self.storage, len(self.dtype), len(self.shape), 0, len(name), self.base_crc, self.body_crc, self.body, self.body_bytes)
        return fixed + self.dtype.encode() + struct.pack(f"<{len(self.shape)}Q", *self.shape) + name


def head_of(entries: list[Entry]) -> bytes:
    """Serialise head and table, without their CRC."""
    table = b"".join(entry.to_bytes() for entry in entries)
    stored = min(table, zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False).compress(table), key=len)
    return _HEAD.pack(MAGIC, _VERSION, _RESERVED, len(entries), len(table), len(stored)) + stored


def head_bytes(delta: memoryview) -> int:
    """Return the length of head and table, without their CRC; all are inside the delta."""
    if len(delta) < _HEAD.size:
        raise TruncatedError("the delta ends inside its header")
    magic, version, reserved, _, table_bytes, stored_bytes = _HEAD.unpack_from(delta)
    if magic != MAGIC:
        raise NotPackedError("not a delta: wrong magic")
    if version != _VERSION:
        raise UnsupportedError("a delta of a newer version: upgrade weightpack")
    if reserved != _RESERVED:
        raise CorruptionError("the delta's header is damaged")
    if table_bytes > MAX_TABLE_BYTES:
        raise LimitError(f"the delta's table has {table_bytes} bytes, the limit is {MAX_TABLE_BYTES}")
    end: int = _HEAD.size + stored_bytes
    if len(delta) < end + CRC_BYTES:
        raise TruncatedError("the delta ends inside its table")
    return end


def parse_head(head: memoryview) -> list[Entry]:
    """Parse head and table, whose CRC is right."""
    _, _, _, n_entries, table_bytes, stored_bytes = _HEAD.unpack_from(head)
    stored = head[_HEAD.size :]
    table = bytes(stored) if stored_bytes == table_bytes else decode_frame(stored, table_bytes)
    if n_entries * _ENTRY.size > table_bytes:
        raise CorruptionError("the delta's table is too short for its tensors")
    entries: list[Entry] = []
    names: set[str] = set()
    position = 0
    for number in range(n_entries):
        if position + _ENTRY.size > table_bytes:
            raise CorruptionError("the delta's table is damaged")
        storage, n_dtype, n_dims, reserved, n_name, base_crc, body_crc, body, body_bytes = _ENTRY.unpack_from(table, position)
        shape_begin = position + _ENTRY.size + n_dtype
        name_begin = shape_begin + 8 * n_dims
        position = name_begin + n_name
        if position > table_bytes or n_dims > _MOST_DIMS or reserved or storage not in _STORAGES:
            raise CorruptionError("an entry of the delta's table is damaged")
        try:
            name, dtype = table[name_begin:position].decode(), table[shape_begin - n_dtype : shape_begin].decode("ascii")
        except UnicodeError:
            raise CorruptionError("a name in the delta's table is damaged") from None
        if dtype not in DTYPE_BITS:
            raise UnsupportedError(f"unknown dtype {dtype!r}", tensor=name)
        if name in names:
            raise CorruptionError("the delta has the tensor twice", tensor=name)
        names.add(name)
        entry = Entry(name, dtype, struct.unpack_from(f"<{n_dims}Q", table, shape_begin), Storage(storage), base_crc, body, body_bytes, body_crc)
        most = {Storage.UNCHANGED: (0, 0), Storage.KEPT: (entry.n_bytes, entry.n_bytes)}.get(entry.storage, (1, entry.n_bytes))
        shared = replace(entry, name=entries[body].name, body=entries[body].body) if body < number else entry
        if not most[0] <= body_bytes <= most[1] or (base_crc and not entry.needs_base) or body > number or (body < number and shared != entries[body]):
            raise CorruptionError("an entry of the delta's table is damaged", tensor=name)
        entries.append(entry)
    if position != table_bytes:
        raise CorruptionError("the delta's table has bytes behind its last entry")
    return entries
