# SPDX-License-Identifier: Apache-2.0
"""A directory that is filled beside its target and takes its name when it is whole; what a killed process had finished in it is not done again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightpack.errors import OptionError
from weightpack.io.files import replace_file, sync_folder
from weightpack.io.working_names import OLD, PARTIAL, is_at, leftovers, lock, remove, working_name

_JOURNAL = ".weightpack-journal.json"


class WorkFolder:
    """A folder in work. The journal says which files in it are finished, and of which state of their sources."""

    def __init__(self, path: Path, job: str) -> None:
        self.path, self._job = path, job
        self._done: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            journal = json.loads((path / _JOURNAL).read_bytes())
            if journal["job"] == job:
                self._done = dict(journal["done"])

    @staticmethod
    def is_for(path: Path, job: str) -> bool:
        """Was the folder left behind by the same job?"""
        try:
            return bool(json.loads((path / _JOURNAL).read_bytes())["job"] == job)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def finished(self, name: str, source: Path) -> dict[str, Any] | None:
        """Return what `finish` was told of a file, if it is there and its source is as it was."""
        entry = self._done.get(name)
        if not isinstance(entry, dict) or entry.get("source") != _state(source) or not (self.path / name).is_file():
            return None
        result = entry.get("result")
        return result if isinstance(result, dict) and (self.path / name).stat().st_size == entry.get("n_bytes") else None

    def finish(self, name: str, source: Path, result: dict[str, Any]) -> None:
        """Note that a file is whole and synced."""
        self._done[name] = {"source": _state(source), "n_bytes": (self.path / name).stat().st_size, "result": result}
        self.write_journal()

    def write_journal(self) -> None:
        replace_file(self.path / _JOURNAL, json.dumps({"job": self._job, "done": self._done}).encode())

    def close(self) -> None:
        """Take away what is not part of the result, and sync the rest."""
        (self.path / _JOURNAL).unlink(missing_ok=True)
        for folder in [self.path, *(path for path in self.path.rglob("*") if path.is_dir())]:
            sync_folder(folder)


def _state(source: Path) -> list[int]:
    stat = source.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


@contextlib.contextmanager
def work_folder(target: Path, *, overwrite: bool, job: str) -> Iterator[WorkFolder]:
    """Give a folder beside `target` to fill; it takes the target's name when the block ends, and vanishes if it fails.

    If a process that did the same `job` was killed, its folder is taken over with what it had finished; leftovers of other jobs are removed. A target that was
    moved aside when a process was killed gets its name back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for path, _ in leftovers(target, OLD):
        if target.exists():
            remove(path)
        else:
            os.replace(path, target)
    if target.exists() and not overwrite:
        raise OptionError("the target exists: use --force (overwrite=True) to replace it", path=str(target))
    path, fd = _take_over(target, job)
    try:
        while fd < 0:
            path.mkdir(exist_ok=True)
            fd = _open_folder(path)
            if fd < 0 and path.exists():
                break  # folders can't be opened here
            if fd < 0 or (lock(fd, wait=True) and not is_at(fd, path)):  # another process took it for a leftover before it was locked
                fd = _closed(fd)
        work = WorkFolder(path, job)
        work.write_journal()
        yield work
        work.close()
        _move(path, target)
    finally:
        remove(path)
        if fd >= 0:
            os.close(fd)


def _take_over(target: Path, job: str) -> tuple[Path, int]:
    """Return a killed process's folder and a descriptor that locks it, or a fresh name and -1."""
    found: tuple[Path, int] | None = None
    for path, fd in leftovers(target, PARTIAL):
        if found is None and path.is_dir() and WorkFolder.is_for(path, job):
            found = path, os.dup(fd)  # the lock belongs to the open file, which the duplicate shares
            os.set_inheritable(found[1], False)
        else:
            remove(path)
    return found or (working_name(target, PARTIAL), -1)


def _move(work: Path, target: Path) -> None:
    """Give the folder its name. The old target stays beside it, locked, until that is done."""
    if not target.exists():
        os.replace(work, target)
        sync_folder(target.parent)
        return
    old = working_name(target, OLD)
    fd = _open_folder(target)
    try:
        lock(fd)
        os.replace(target, old)
        os.replace(work, target)
        sync_folder(target.parent)
        remove(old)
    finally:
        if fd >= 0:
            os.close(fd)


def _closed(fd: int) -> int:
    """Close a descriptor, if it is one; return -1."""
    if fd >= 0:
        os.close(fd)
    return -1


def _open_folder(path: Path) -> int:
    """Return a descriptor of a folder; -1 where folders can't be opened (Windows)."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return -1


@contextlib.contextmanager
def scratch_folder(name: Path) -> Iterator[Path]:
    """Give an empty folder of this name, which must be the same for the same job; what a killed process left in it is removed first.

    Raises
    ------
    OptionError
        A process that does the same job is at work in it.
    """
    name.mkdir(parents=True, exist_ok=True)
    fd = _open_folder(name)
    try:
        if fd >= 0 and not lock(fd):
            raise OptionError("another process does the same job now", path=str(name))
        for path in name.iterdir():
            remove(path)
        yield name
        remove(name)
    finally:
        if fd >= 0:
            os.close(fd)
