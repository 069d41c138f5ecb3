# SPDX-License-Identifier: Apache-2.0
"""What is written of a packed file, noted with its checksums, so that the file can be held against the notes before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from weightpack.errors import LosslessError
from weightpack.format.buffers import Buffer
from weightpack.io.atomic import AtomicFile
from weightpack.io.files import LocalFile, pieces, read_at
from weightpack.io.parallel import Scratch, ordered_map
from weightpack.kernels import active, crc32c_of

_PENDING_BYTES = 1 << 18  # short writes that follow each other are one
_PIECE_BYTES = 1 << 20


class Ledger:
    """Writes to a data section that begins at byte `begin` of the target, in any order, each byte once.

    Attributes
    ----------
    begin : int
        Until `move`, there is room for a header before it.
    """

    def __init__(self, target: AtomicFile, begin: int) -> None:
        self.target, self.begin = target, begin
        self._notes: list[tuple[int, int, int]] = []  # position, length, CRC-32C; in the order of writing
        self._header: tuple[int, int] = 0, 0
        self._pending, self._pending_begin = bytearray(), 0

    def write(self, position: int, data: Buffer) -> None:
        """Write at a position of the data section."""
        if len(self._pending) and position != self._pending_begin + len(self._pending):
            self._flush()
        if len(data) < _PENDING_BYTES:
            if not self._pending:
                self._pending_begin = position
            self._pending += memoryview(data)
            if len(self._pending) >= _PENDING_BYTES:
                self._flush()
        else:
            self._flush()
            self._note(position, data)

    def forget(self, position: int) -> None:
        """Take back what was written last, at `position` and behind it: it is to be written over."""
        self._flush()
        while self._notes and self._notes[-1][0] >= position:
            self._notes.pop()

    def _flush(self) -> None:
        if self._pending:
            self._note(self._pending_begin, self._pending)
            self._pending = bytearray()

    def _note(self, position: int, data: Buffer) -> None:
        self.target.write_at(self.begin + position, data)
        self._notes.append((position, len(data), crc32c_of(data)))

    def write_header(self, header: bytes) -> None:
        """Write all that stands before the data section."""
        assert len(header) == self.begin
        self._flush()
        self.target.write_at(0, header)
        self._header = len(header), crc32c_of(header)

    def move(self, begin: int, n_bytes: int) -> None:
        """Let the data section, of `n_bytes`, begin earlier."""
        self._flush()
        with LocalFile(self.target.path) as written:
            for offset, n in pieces(n_bytes, _PIECE_BYTES):
                self.target.write_at(begin + offset, read_at(written, self.begin + offset, n))
        self.begin = begin

    def prove(self, n_bytes: int, threads: int, told: Callable[[int], None]) -> None:
        """Read the file, `n_bytes` long, and compare its checksums with those of what was written; `told` gets the length of each piece.

        Raises
        ------
        LosslessError
            They differ, or something was not written, or twice.
        """
        scratch = Scratch()
        with LocalFile(self.target.path) as written:

            def same(note: tuple[int, int, int]) -> tuple[int, int, bool]:
                begin, n, crc = note
                there, data = 0, scratch.get(min(n, _PIECE_BYTES))
                for offset, length in pieces(n, _PIECE_BYTES):
                    written.read_into(begin + offset, memoryview(data)[:length])
                    there = active().crc32c(data[:length], there)
                return begin, n, there == crc

            position = 0
            for begin, n, good in ordered_map(same, self._sorted(), threads, lambda note: note[1]):
                if begin != position or not good:
                    raise LosslessError(f"what was read of the packed file is not what was written, at or behind byte {position}: nothing was written")
                position += n
                told(n)
            if position != n_bytes or written.size != n_bytes:
                raise LosslessError(f"the packed file should have {n_bytes} bytes, {position} were written and there are {written.size}: nothing was written")

    def _sorted(self) -> Iterator[tuple[int, int, int]]:
        return chain([(0, *self._header)], ((self.begin + position, n, crc) for position, n, crc in sorted(self._notes)))
