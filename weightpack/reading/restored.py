# SPDX-License-Identifier: Apache-2.0
"""The source of a packed file, read at any offset: so that a packed file serves as base like a plain one."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import TruncatedError
from weightpack.format.index import Gap
from weightpack.io.files import RandomReader
from weightpack.reading.packed_file import PackedFile, Piece, StoredTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


_CHUNKS_KEPT = 8  # by each file; one has 8 MiB at most


class RestoredFile:
    """The source of an open packed file, as a file: what is read is decoded."""

    def __init__(self, packed: PackedFile) -> None:
        self.packed = packed
        self.name, self.size, self.piece_bytes = packed.file.name, packed.index.source_bytes, packed.file.piece_bytes
        self._parts = [(begin, begin + (part.n_bytes if isinstance(part, Gap) else part.tensor.n_bytes), part) for begin, part in packed.parts()]
        self._ends = np.array([end for _, end, _ in self._parts], np.int64)
        self._lock_of = os.getpid(), threading.Lock()
        self._chunks: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self._last_gap: tuple[Gap, NDArray[np.uint8]] | None = None
        self.depth = 0 if packed.index.base is None else 1 + max((depth_of(base) for base in packed.bases), default=0)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the source."""
        stop = offset + len(buffer)
        if stop > self.size:
            raise TruncatedError(f"bytes to {stop} are wanted, there are {self.size}", path=self.name)
        out: NDArray[np.uint8] = np.frombuffer(buffer, np.uint8)
        for begin, end, part in self._parts[int(np.searchsorted(self._ends, offset, "right")) :]:
            if begin >= stop:
                break
            low, high = max(begin, offset), min(end, stop)
            to = out[low - offset : high - offset]
            if isinstance(part, Gap):
                to[:] = self._gap(part)[low - begin : high - begin]
            else:
                self._decode(part, low - begin, to)

    def _decode(self, stored: StoredTensor, begin: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` from byte `begin` of a tensor. Chunks that are wanted in part are kept for a while: whoever reads row by row wants them again."""
        for piece in self.packed.pieces(stored, begin, begin + out.size):
            low, high = max(begin, piece.begin), min(begin + out.size, piece.end)
            to = out[low - begin : high - begin]
            if (low, high) == (piece.begin, piece.end):
                self.packed.decode_piece(stored, piece, to)
            else:
                to[:] = self._chunk(stored, piece)[low - piece.begin : high - piece.begin]

    def _chunk(self, stored: StoredTensor, piece: Piece) -> NDArray[np.uint8]:
        """Return a decoded chunk. Without a lock: two threads may decode the same one, and a fork can't leave a lock held."""
        key = stored.tensor.name, piece.begin
        chunk = self._chunks.pop(key, None)
        if chunk is None:
            chunk = np.empty(piece.n_bytes, np.uint8)
            self.packed.decode_piece(stored, piece, chunk)
        self._chunks[key] = chunk  # the last used stands last
        for old in list(self._chunks)[:-_CHUNKS_KEPT]:
            self._chunks.pop(old, None)
        return chunk

    def _gap(self, gap: Gap) -> NDArray[np.uint8]:
        """Return a gap's bytes; one is held at a time, and decoded by one thread: it may have the 256 MiB that `Limits` allow."""
        if self._lock_of[0] != os.getpid():  # a fork may have left it held
            self._lock_of = os.getpid(), threading.Lock()
        with self._lock_of[1]:
            if self._last_gap is None or self._last_gap[0] is not gap:
                self._last_gap = None
                self._last_gap = gap, np.frombuffer(self.packed.decode_gap(gap), np.uint8)
            return self._last_gap[1]

    def changed(self) -> bool:
        return self.packed.file.changed()

    def close(self) -> None:
        close_packed(self.packed)


def depth_of(reader: RandomReader) -> int:
    return reader.depth if isinstance(reader, RestoredFile) else 0


def close_packed(packed: PackedFile) -> None:
    """Close a packed file and its bases."""
    packed.file.close()
    bases, packed.bases = packed.bases, ()  # first: others may share them, and a base that is closed again is as many calls as there are ways to it
    for base in bases:
        base.close()
