# SPDX-License-Identifier: Apache-2.0
"""Files that are read at any offset: on this machine, and in memory."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from weightpack.errors import OptionError, PathNotFoundError, TruncatedError
from weightpack.io.parallel import Scratch

if TYPE_CHECKING:
    from weightpack.format.buffers import Buffer, Bytes

_HASH_BYTES = 1 << 20
_NOT_REGULAR = "a pipe, a device or a socket can't be read at any offset: write what it gives to a file first"


class RandomReader(Protocol):
    """Bytes that can be read at any offset, by many threads at once. `piece_bytes`: how much is best read at once."""

    name: str
    size: int
    piece_bytes: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; TruncatedError if the bytes end early."""

    def changed(self) -> bool:
        """Has the file been written to since it was opened, as far as can be told?"""

    def close(self) -> None:
        """Give back what reading needs; do not read any more."""


def read_at(reader: RandomReader, offset: int, n_bytes: int) -> bytearray:
    """Return `n_bytes` at `offset`; the reader's size is checked before anything is allocated."""
    if offset < 0 or n_bytes < 0 or offset + n_bytes > reader.size:
        raise TruncatedError(f"bytes {offset} to {offset + n_bytes} are wanted, there are {reader.size}", path=reader.name)
    buffer = bytearray(n_bytes)
    reader.read_into(offset, memoryview(buffer))
    return buffer


def equal_at(reader: RandomReader, offset: int, data: Bytes, scratch: Scratch) -> bool:
    """Are the bytes at `offset` those of `data`, (n,) uint8?"""
    there = scratch.get(data.size)
    reader.read_into(offset, memoryview(there))
    return equal_bytes(data, there)


def equal_bytes(one: Bytes, other: Bytes) -> bool:
    """Are two buffers, both (n,) uint8, the same? By words, which is several times as fast as by bytes."""
    words = one.size // 8 * 8
    return np.array_equal(one[:words].view(np.uint64), other[:words].view(np.uint64)) and np.array_equal(one[words:], other[words:])


def sha256_of(source: RandomReader) -> str:
    """Return the SHA-256 of a source, in hexadecimal."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_HASH_BYTES, source.size) or 1))
    for offset, n in pieces(source.size, len(buffer)):
        source.read_into(offset, buffer[:n])
        digest.update(buffer[:n])
    return digest.hexdigest()


class LocalFile:
    """A file on this machine. It is read, not mapped: a file that shrinks meanwhile is an error, not a crash.

    Raises
    ------
    OptionError
        The path does not name a regular file, but a pipe, a device or a socket; or one whose size is not known, as of those below /proc.
    """

    piece_bytes = 2 << 20

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._fd: int | None = None
        self._mapped: Bytes | None = None
        self._fd, state = _open_regular(self.name)
        self.size = state.st_size
        self._state = (state.st_size, state.st_mtime_ns)
        self._seek_lock = threading.Lock()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if self._fd is None:
            raise OptionError("the file is closed", path=self.name)
        done = 0
        while done < len(buffer):
            try:
                n = self._pread(offset + done, buffer[done:])
            except OSError as error:
                error.filename = self.name  # calls on descriptors name no file
                raise
            if n == 0:
                raise TruncatedError(f"the file ends at byte {offset + done}, expected {offset + len(buffer)}", path=self.name)
            done += n

    def _pread(self, offset: int, buffer: memoryview) -> int:
        assert self._fd is not None
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [buffer], offset)
        with self._seek_lock:  # Windows
            os.lseek(self._fd, offset, os.SEEK_SET)
            data = os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def mapped(self) -> Bytes:
        """Return the file's bytes, (size,) uint8, mapped and not to be written to: memory that processes share. They stay when this file is closed.

        A file that is cut short while it is mapped ends the process that reads there; replacing it, as weightpack does, is no harm.
        """
        if self._fd is None:
            raise OptionError("the file is closed", path=self.name)
        if self._mapped is None:
            self._mapped = np.frombuffer(mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ), np.uint8)
        return self._mapped

    def changed(self) -> bool:
        """Has the file been written to since it was opened?"""
        assert self._fd is not None
        state = os.fstat(self._fd)
        return (state.st_size, state.st_mtime_ns) != self._state

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = self._mapped = None

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _open_regular(path: str) -> tuple[int, os.stat_result]:
    """Open a regular file to be read. Anything else is refused, and not waited for: a pipe that nobody writes to would block for ever."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EOPNOTSUPP):  # a socket
            raise OptionError(_NOT_REGULAR, path=path) from None
        raise
    try:
        state = os.fstat(fd)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(state.st_mode):
            raise OptionError(_NOT_REGULAR, path=path)
        if state.st_size == 0 and os.read(fd, 1):  # as of those below /proc
            raise OptionError("the file's size is not known before it is read: write what it gives to a file first", path=path)
    except BaseException:
        os.close(fd)
        raise
    return fd, state


def named_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that was given by its name, which is not empty: an empty one is a variable that was not set, not the folder that one is in.

    Raises
    ------
    PathNotFoundError
        It is empty.
    """
    if not os.fspath(path):
        raise PathNotFoundError("no name at all: a variable that is not set?", path="")
    return Path(path)


def refuse_irregular_file(path: str | os.PathLike[str]) -> None:
    """Raise OptionError if a path names a pipe, a device or a socket; nothing if it names a file, a folder, or nothing that can be seen."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OptionError(_NOT_REGULAR, path=os.fspath(path))


class MemoryFile:
    """Buffers that stand for a file, one after the other, without being copied."""

    piece_bytes = 2 << 20

    def __init__(self, parts: Sequence[Buffer], name: str = "<memory>") -> None:
        self.name = name
        self._parts = [memoryview(part).cast("B") for part in parts if len(part)]
        self._begins = [0]
        for part in self._parts:
            self._begins.append(self._begins[-1] + len(part))
        self.size = self._begins[-1]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise TruncatedError(f"bytes to {offset + len(buffer)} are wanted, there are {self.size}", path=self.name)
        done = 0
        while done < len(buffer):
            i = bisect_right(self._begins, offset + done) - 1
            begin = offset + done - self._begins[i]
            part = self._parts[i][begin : begin + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def changed(self) -> bool:
        """Buffers are the caller's to keep still."""
        return False

    def close(self) -> None:
        """Nothing to give back."""


def pieces(n_bytes: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of pieces that cover `n_bytes`."""
    for offset in range(0, n_bytes, piece_bytes):
        yield offset, min(piece_bytes, n_bytes - offset)
