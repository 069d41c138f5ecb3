# SPDX-License-Identifier: Apache-2.0
"""Fields of a binary header, read one after the other through a window of the file."""

from __future__ import annotations

import struct

from weightpack.errors import CorruptionError
from weightpack.io.files import RandomReader, read_at

_WINDOW = 1 << 18


class Cursor:
    """A place in a file. Nothing behind `end` is read, and nothing larger than a field is held."""

    def __init__(self, source: RandomReader, end: int) -> None:
        self._source, self.at, self.end = source, 0, min(end, source.size)
        self._window, self._begin = b"", 0

    def take(self, n_bytes: int) -> bytes:
        """Return the next bytes, and move behind them."""
        if n_bytes > self.end - self.at:
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
