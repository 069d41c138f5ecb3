# SPDX-License-Identifier: Apache-2.0
"""A part of a file as a file, and the fields of a binary header, read one after the other through a window."""

from __future__ import annotations

import struct

from weightpack.errors import CorruptionError, TruncatedError
from weightpack.io.files import RandomReader, read_at

_WINDOW = 1 << 18
_MOST_FIELDS = 1 << 24  # of a header: a hostile one has one in every byte


class Part:
    """Bytes [begin, begin + size) of a source, as a file of their own: a file within a file."""

    def __init__(self, source: RandomReader, name: str, begin: int, size: int) -> None:
        self.name, self.size, self.piece_bytes = name, size, source.piece_bytes
        self._source, self._begin = source, begin

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if not 0 <= offset <= self.size - len(buffer):
            raise TruncatedError(f"bytes {offset} to {offset + len(buffer)} are wanted, there are {self.size}", path=self.name)
        self._source.read_into(self._begin + offset, buffer)

    def changed(self) -> bool:
        return self._source.changed()

    def close(self) -> None:
        """The source is its owner's to close."""


class Cursor:
    """A place in a file. Nothing after `end` is read, nothing larger than a field is held, and no header of endless fields is followed."""

    def __init__(self, source: RandomReader, end: int) -> None:
        self._source, self.at, self.end = source, 0, min(end, source.size)
        self._window, self._begin, self._n_taken = b"", 0, 0

    def take(self, n_bytes: int) -> bytes:
        """Return the next bytes, and move behind them."""
        self._n_taken += 1
        if n_bytes > self.end - self.at or self._n_taken > _MOST_FIELDS:
            raise CorruptionError("the header ends early, or is too long")
        offset = self.at - self._begin
        if not 0 <= offset <= len(self._window) - n_bytes:
            self._window = bytes(read_at(self._source, self.at, min(max(n_bytes, _WINDOW), self._source.size - self.at)))
            self._begin, offset = self.at, 0
        self.at += n_bytes
        return self._window[offset : offset + n_bytes]

    def number(self, format: str) -> int:
        """Return a little-endian integer of one of `struct`'s formats."""
        return int(struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}")))[0])

    def varint(self) -> int:
        """Return an unsigned integer of 7 bits a byte, the lowest first, at most 64 bits (protobuf's)."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value & 0xFFFFFFFFFFFFFFFF
        raise CorruptionError("a varint of more than ten bytes")

    def skip(self, n_bytes: int) -> None:
        """Move on without reading."""
        if n_bytes > self.end - self.at:
            raise CorruptionError("the header ends early, or is too long")
        self.at += n_bytes
