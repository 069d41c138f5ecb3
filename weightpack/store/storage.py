# SPDX-License-Identifier: Apache-2.0
"""Where a store's files are: a folder of this machine, or what fsspec knows by a URL, such as a bucket. Files appear whole, under names that are free, or not
at all, and are not changed afterwards."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from weightpack.errors import LimitError, OptionError, PathNotFoundError
from weightpack.io.atomic import AtomicFile, state_of, sync_folder
from weightpack.io.files import LocalFile, named_path, read_at
from weightpack.io.remote import explained, is_url
from weightpack.io.working_names import HAS_LOCKS, is_working_name, leftovers, lock, make_locked, remove

if TYPE_CHECKING:
    from weightpack.format.buffers import Buffer


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file's length in bytes, and how many seconds ago it was written, by the clock of whoever keeps it."""

    n_bytes: int
    age: float


class Storage(Protocol):
    """Files by name, with slashes. `url` names the storage to people, and to `open_storage`."""

    url: str

    def put(self, name: str, pieces: Iterable[Buffer]) -> bool:
        """Write a file, to last, if its name is free; False if it is not."""

    def get(self, name: str, most: int) -> bytes:
        """Return a file. PathNotFoundError if there is none, LimitError if it has more than `most` bytes."""

    def read(self, name: str, begin: int, end: int) -> Buffer:
        """Return bytes [begin, end) of a file. PathNotFoundError, TruncatedError."""

    def listed(self, folder: str) -> dict[str, ListedFile]:
        """Return what is in a folder and below it, by name."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def clean(self) -> None:
        """Remove what killed writers have left."""

    def held(self, name: str) -> AbstractContextManager[Callable[[], None]]:
        """Hold a file that says that somebody is at work, for a block; give the function that renews it, unless it was taken away."""

    def release_lapsed(self, name: str, is_old: bool) -> bool:
        """Remove a file of `held` whose holder has ended, or, where that can't be told, that `is_old`; False if it stays."""


def open_storage(url: str | os.PathLike[str], *, make: bool = False) -> Storage:
    """Return the storage at a path or a URL; `make` it if it is a folder that is not there."""
    text = os.fspath(url)
    if is_url(text):
        return Bucket(text)
    path = named_path(text)
    if make:
        path.mkdir(parents=True, exist_ok=True)
    return Folder(path.absolute())


class Folder:
    """A folder of this machine, or of a disk that several mount."""

    def __init__(self, path: Path) -> None:
        self.url, self._path = str(path), path

    def put(self, name: str, pieces: Iterable[Buffer]) -> bool:
        path = self._path / name
        self._make(path.parent)
        if state_of(path) is not None:
            return False
        try:
            with AtomicFile(path) as file:
                position = 0
                for piece in pieces:
                    file.write_at(position, piece)
                    position += memoryview(piece).nbytes
                file.commit()
        except OptionError:
            if state_of(path) is None:
                raise
            return False  # another process was first
        return True

    def _make(self, folder: Path) -> None:
        """Make a folder and those it is in, to last."""
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)

    def get(self, name: str, most: int) -> bytes:
        with self._open(name) as file:
            if file.size > most:
                raise LimitError(f"the file has {file.size} bytes, the limit is {most}", path=file.name)
            return bytes(read_at(file, 0, file.size))

    def read(self, name: str, begin: int, end: int) -> Buffer:
        with self._open(name) as file:
            return read_at(file, begin, end - begin)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[LocalFile]:
        try:
            file = LocalFile(self._path / name)
        except (FileNotFoundError, NotADirectoryError):
            raise PathNotFoundError("the store has no such file", path=str(self._path / name)) from None
        with file:
            yield file

    def listed(self, folder: str) -> dict[str, ListedFile]:
        now, found = time.time(), {}
        for here, _, names in os.walk(self._path / folder):
            for name in names:
                if is_working_name(name):
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    state = Path(here, name).lstat()
                    found[PurePosixPath(os.path.relpath(os.path.join(here, name), self._path)).as_posix()] = ListedFile(state.st_size, now - state.st_mtime)
        return found

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def clean(self) -> None:
        for here, _, names in os.walk(self._path):
            for name in names:
                if is_working_name(name):
                    for left, _ in leftovers(Path(here, name[1:].rsplit(".", 2)[0])):
                        remove(left)

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[Callable[[], None]]:
        path = self._path / name
        self._make(path.parent)
        fd = make_locked(path, lambda: os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666))
        try:
            yield lambda: os.utime(fd if os.utime in os.supports_fd else path)
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)

    def release_lapsed(self, name: str, is_old: bool) -> bool:
        try:
            fd = os.open(self._path / name, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return True
        try:
            lapsed = lock(fd) or (is_old and not HAS_LOCKS)
            if lapsed:
                (self._path / name).unlink(missing_ok=True)
            return lapsed
        finally:
            os.close(fd)


class Bucket:
    """What fsspec knows by a URL: objects of S3 and the like. Its `put` is conditional where the filesystem knows that (s3fs: If-None-Match)."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        with explained(self.url):
            self._filesystem, self._root = fsspec.core.url_to_fs(self.url)
        self._root = self._root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def put(self, name: str, pieces: Iterable[Buffer]) -> bool:
        data = b"".join(pieces)
        with explained(f"{self.url}/{name}"):
            try:
                self._filesystem.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" not in f"{error} {error.__cause__}" and "At least one of the pre-conditions" not in str(error):
                    raise
                return False
        return True

    def get(self, name: str, most: int) -> bytes:
        with explained(f"{self.url}/{name}"):
            n_bytes = self._size(self._filesystem.info(self._path(name)))
            if n_bytes > most:
                raise LimitError(f"the file has {n_bytes} bytes, the limit is {most}")
            data: bytes = self._filesystem.cat_file(self._path(name))
            return data

    def read(self, name: str, begin: int, end: int) -> Buffer:
        with explained(f"{self.url}/{name}"):
            data: bytes = self._filesystem.cat_file(self._path(name), start=begin, end=end)
        if len(data) != end - begin:
            raise PathNotFoundError(f"bytes {begin} to {end} were asked for, {len(data)} came", path=f"{self.url}/{name}")
        return data

    def listed(self, folder: str) -> dict[str, ListedFile]:
        with explained(f"{self.url}/{folder}"):
            self._filesystem.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._filesystem.find(self._path(folder), detail=True)
        now = time.time()
        return {name.removeprefix(f"{self._root}/"): ListedFile(self._size(info), now - _written(info, now)) for name, info in found.items()}

    @staticmethod
    def _size(info: dict[str, Any]) -> int:
        return int(info.get("size") or 0)

    def remove(self, name: str) -> None:
        with explained(f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(self._path(name))

    def clean(self) -> None:
        """Uploads that were not completed are no files; buckets have rules for removing them."""

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[Callable[[], None]]:
        def renew() -> None:
            if name in self.listed(name.rpartition("/")[0]):
                self._filesystem.pipe_file(self._path(name), b"{}")

        self.put(name, [b"{}"])
        try:
            yield renew
        finally:
            self.remove(name)

    def release_lapsed(self, name: str, is_old: bool) -> bool:
        if is_old:
            self.remove(name)
        return is_old


def _written(info: dict[str, Any], now: float) -> float:
    """Return when a file was written, as its filesystem says; now, if it does not."""
    for key in ("LastModified", "created", "mtime", "last_modified"):
        value = info.get(key)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return now
