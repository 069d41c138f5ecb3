# SPDX-License-Identifier: Apache-2.0
"""The source of a packed file for readers who come back: what was decoded last is kept, and what a reader in sequence will want next is decoded ahead of it."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import FormatError
from weightpack.format.index import Gap
from weightpack.reading.packed_file import PackedFile, Piece
from weightpack.reading.restored import close_packed

if TYPE_CHECKING:
    from numpy.typing import NDArray

Key = tuple[int, int, int]
"""Of a piece: the number of its file, of the part of it, and of the piece in that part."""

_PIECE_BYTES = 1 << 20  # decoded at once: a chunk of most layouts
_AHEAD_BYTES = 4 << 20  # for each thread


class DecodedPieces:
    """Decoded pieces of any number of files, in a bounded memory: those that were used last. Each is decoded once, however many ask for it at the same time.

    All decoding is done by threads of its own, which begin with the first piece: a process may fork before that.

    Parameters
    ----------
    max_bytes
        Of pieces that are kept. One is always kept, and those that are being decoded or read come on top.
    threads
        That decode.
    """

    def __init__(self, max_bytes: int, threads: int) -> None:
        self.ahead_bytes = min(_AHEAD_BYTES * threads, max_bytes // 4)
        self._max_bytes, self._n_bytes = max_bytes, 0
        self._pieces: OrderedDict[Key, tuple[Future[NDArray[np.uint8]], int]] = OrderedDict()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="weightpack")

    def __contains__(self, key: Key) -> bool:
        """Is the piece here, or being decoded?"""
        return key in self._pieces

    def ask(self, key: Key, n_bytes: int, decode: Callable[[], NDArray[np.uint8]]) -> Future[NDArray[np.uint8]]:
        """Return a piece of `n_bytes`, which is decoded unless it is here. One that fails is forgotten: whoever asks again tries again."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
                return self._pieces[key][0]
            piece = self._pool.submit(decode)
            self._pieces[key] = piece, n_bytes
            self._n_bytes += n_bytes
            self._shrink(key)
        piece.add_done_callback(lambda ended: self._failed(key, ended))
        return piece

    def _shrink(self, last: Key) -> None:
        """Forget the pieces that were not used for longest, but for those that are being decoded, and the last one."""
        for key in list(self._pieces) if self._n_bytes > self._max_bytes else ():
            if self._n_bytes <= self._max_bytes:
                return
            if key != last and self._pieces[key][0].done():
                self._forget(key)

    def _forget(self, key: Key) -> None:
        self._n_bytes -= self._pieces.pop(key)[1]

    def _failed(self, key: Key, ended: Future[NDArray[np.uint8]]) -> None:
        if ended.cancelled() or ended.exception() is not None:
            with self._lock:
                if key in self._pieces and self._pieces[key][0] is ended:
                    self._forget(key)

    @property
    def n_bytes(self) -> int:
        """Bytes of all pieces that are here or being decoded."""
        return self._n_bytes

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(cancel_futures=True)


class CachedSource:
    """The source of an open packed file, read at any offset by many threads at once, through the pieces that a `DecodedPieces` keeps.

    A reader is in sequence if what stands before his place is here; the more of it, the more is decoded ahead, up to the cache's `ahead_bytes`. So several
    readers in one file do not disturb each other, and one who jumps gets what he asks for, and no more.

    Parameters
    ----------
    number
        Of this file among those that share the cache.

    Attributes
    ----------
    name : str
        Of the packed file.
    size : int
        Bytes of the source.
    """

    def __init__(self, packed: PackedFile, cache: DecodedPieces, number: int = 0) -> None:
        self.packed, self._cache, self._number = packed, cache, number
        self.name, self.size = packed.file.name, packed.index.source_bytes
        self._parts = packed.parts()
        self._begins = [begin for begin, _ in self._parts]
        self._pieces: dict[int, list[Piece]] = {}

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return up to `n_bytes` of the source from `offset` on, fewer only at its end.

        Raises
        ------
        FormatError
            What holds them is damaged. Other bytes can still be read.
        """
        end = min(offset + n_bytes, self.size)
        found = []
        while offset < end:
            part, i, begin = self._place(offset)
            piece = self._ask(part, i)
            self._look_ahead(part, i)
            data = piece.result()[offset - begin : end - begin]
            found.append(data.tobytes())
            offset += data.size
        return found[0] if len(found) == 1 else b"".join(found)

    def _place(self, offset: int) -> tuple[int, int, int]:
        """Return which part an offset is in, which piece of that, and where this begins in the source."""
        part = bisect_right(self._begins, offset) - 1
        begin = self._begins[part]
        pieces = self._pieces_of(part)
        i = (offset - begin) // pieces[0].n_bytes  # all but the last are of one length
        return part, i, begin + pieces[i].begin

    def _pieces_of(self, part: int) -> list[Piece]:
        """Return the pieces of a part; no lock: two threads may both make them."""
        pieces = self._pieces.get(part)
        if pieces is None:
            what = self._parts[part][1]
            pieces = [Piece(0, 1, 0, what.n_bytes)] if isinstance(what, Gap) else self.packed.pieces(what, piece_bytes=_PIECE_BYTES)
            self._pieces[part] = pieces
        return pieces

    def _ask(self, part: int, i: int) -> Future[NDArray[np.uint8]]:
        piece, what = self._pieces_of(part)[i], self._parts[part][1]

        def decode() -> NDArray[np.uint8]:
            if isinstance(what, Gap):
                return np.frombuffer(self.packed.decode_gap(what), np.uint8)
            out = np.empty(piece.n_bytes, np.uint8)
            self.packed.decode_piece(what, piece, out)
            return out

        return self._cache.ask((self._number, part, i), piece.n_bytes, decode)

    def _look_ahead(self, part: int, i: int) -> None:
        """Ask for as many bytes after a piece as are here before it. What is damaged there is told to whoever reads that far."""
        with suppress(FormatError, OSError):
            self._ask_ahead(part, i)

    def _ask_ahead(self, part: int, i: int) -> None:
        window = 0
        for before in self._before(part, i):
            if window >= self._cache.ahead_bytes or (self._number, *before) not in self._cache:
                break
            window += self._pieces_of(before[0])[before[1]].n_bytes
        for after in self._after(part, i):
            if window <= 0:
                return
            if (self._number, *after) not in self._cache:
                self._ask(*after)
            window -= self._pieces_of(after[0])[after[1]].n_bytes

    def _before(self, part: int, i: int) -> Iterator[tuple[int, int]]:
        while True:
            if i == 0 and part == 0:
                return
            part, i = (part, i - 1) if i else (part - 1, len(self._pieces_of(part - 1)) - 1)
            yield part, i

    def _after(self, part: int, i: int) -> Iterator[tuple[int, int]]:
        while True:
            if i + 1 < len(self._pieces_of(part)):
                i += 1
            elif part + 1 < len(self._parts):
                part, i = part + 1, 0
            else:
                return
            yield part, i

    def close(self) -> None:
        """Close the file and its bases."""
        close_packed(self.packed)
