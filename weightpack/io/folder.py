# SPDX-License-Identifier: Apache-2.0
"""Directories that a job fills: a working folder takes the target's name when it is whole, or its files take their places in a target that is there.

A working folder is this user's alone (mode 700) and locked. A job that was killed is continued by running it again: it takes over the folder, if that is its
own, and each file in it once that was proven.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from weightpack.errors import OptionError, WeightpackError
from weightpack.io.atomic import kind_of, refuse_irregular, replace_file, state_of, sync_folder
from weightpack.io.working_names import belongs_to_user, leftovers, make_locked, remove, working_name

_JOURNAL = ".weightpack-journal.json"
Result = TypeVar("Result")


class WorkFolder:
    """A folder in work; what is written below `path`, under the names that the job gave, becomes part of the target."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def n_bytes(self) -> int:
        """What the files in it have, all together."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if not path.is_dir())

    def clear(self, names: Iterable[PurePosixPath]) -> None:
        """Remove files that a killed process left, and that are written anew without looking at them."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def resumed(self, name: PurePosixPath, prove: Callable[[Path], Result]) -> Result | None:
        """Return what `prove` says of a file that a killed process had finished; None if there is none, and it is to be written now.

        Parameters
        ----------
        prove
            Reads a file and raises if it is not, to the last bit, one that the job would write. Such a one is removed.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if state_of(path) is None:
            return None
        try:
            return prove(path)
        except (WeightpackError, OSError):
            path.unlink()
            return None


@contextlib.contextmanager
def work_folder(
    target: Path, *, source: Path, names: Collection[PurePosixPath], folders: Collection[PurePosixPath] = (), job: str, overwrite: bool = False
) -> Iterator[WorkFolder]:
    """Give a folder to fill with the files `names`, which become `target` when the block ends; it vanishes if that fails.

    A new target appears as a whole. In one that is there each file takes its place, one after the other, and what has other names stays. If the process is
    killed meanwhile, the same job goes on when it is run again: it makes what did not come into its place.

    Parameters
    ----------
    source
        The directory that the job reads. Directories that are made get its permissions, and those of the directories in it.
    names
        Every file that the job writes, relative to the target.
    folders
        Directories that are to be there, whether they hold files or not.
    job
        What makes a job the same job: a killed one's folder is taken over, others of the target's are removed.
    overwrite
        Write into a target that exists.

    Raises
    ------
    OptionError
        Source and target overlap; the target exists; something in it that is no file, or no directory, stands where one is to be written.
    """
    refuse_overlap(source, target)
    for name in (*names, *folders):
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise OptionError(f"a file outside the directory is to be written: {str(name)!r}", path=str(target))
    folders = _all_folders(names, folders)
    goal = _existing(target, overwrite)
    if goal is None:
        _make_parents(target)
    else:
        _refuse_clashes(goal, names, folders)
    path, fd = _take_over(goal or target, target if goal is None else goal / goal.name, names, folders, job)
    moving = False
    try:
        if fd < 0:
            fd = make_locked(path, lambda: _make_folder(path))
            replace_file(path / _JOURNAL, json.dumps({"job": job}).encode())
        yield WorkFolder(path)
        if goal is None:
            _become(path, target, source, folders)
        else:
            moving = True
            _move(path, goal, source, names, folders)
            moving = False
    except OSError as error:  # nobody knows the working folder
        if isinstance(error.filename, str) and not isinstance(error, WeightpackError) and Path(error.filename).is_relative_to(path):
            error.filename = str(target / Path(error.filename).relative_to(path))
        raise
    finally:
        if not moving:  # else what is in it is to go on into its place
            remove(path)
        if fd >= 0:
            os.close(fd)


def refuse_overlap(source: Path, target: Path, *, what: str = "source") -> None:
    """Raise OptionError if one of two paths is the other, or lies in it, however they are spelt. `what`: the source's name in the message."""
    try:
        here, there = source.resolve(), target.resolve()
    except (OSError, RuntimeError) as error:
        raise OptionError(f"a path that leads nowhere: {error}", path=str(target)) from None
    if here == there or _is_same(here, there):
        raise OptionError(f"{what} and target are the same", path=str(target))
    if any(folder == here or _is_same(folder, here) for folder in there.parents):
        raise OptionError(f"the target lies in the {what}, {str(source)!r}", path=str(target))
    if any(folder == there or _is_same(folder, there) for folder in here.parents):
        raise OptionError(f"the {what} lies in the target: {str(source)!r}", path=str(target))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _existing(target: Path, overwrite: bool) -> Path | None:
    """Return a target that is there, links resolved; None if there is none."""
    state = state_of(target)
    if state is None:
        return None
    if not target.is_dir():
        raise OptionError(f"the target is {kind_of(state)}, and a directory is to be written", path=str(target))
    if not overwrite:
        raise OptionError("the target exists: use --force (overwrite=True) to replace its files", path=str(target))
    return target.resolve()


def _all_folders(names: Collection[PurePosixPath], folders: Collection[PurePosixPath]) -> list[PurePosixPath]:
    """Return the directories that files are in and those that are to be there anyhow, each after the one that it is in; not the top."""
    parents = {parent for name in (*names, *folders) for parent in name.parents if parent.parts}
    return sorted(parents | set(folders), key=lambda folder: (len(folder.parts), folder))


def _refuse_clashes(goal: Path, names: Collection[PurePosixPath], folders: Collection[PurePosixPath]) -> None:
    disk = goal.stat().st_dev
    for folder in folders:
        state = state_of(goal / folder)
        if state is None:
            continue
        if not stat.S_ISDIR(state.st_mode):
            raise OptionError(f"{kind_of(state)} stands where a directory is to be", path=str(goal / folder))
        if state.st_dev != disk:
            raise OptionError("another disk is mounted in the target: files can't be moved into their places there", path=str(goal / folder))
    for name in names:
        state = state_of(goal / name)
        if state is not None:
            refuse_irregular(goal / name, state)


# ---- the working folder


def _take_over(goal: Path, name: Path, names: Collection[PurePosixPath], folders: Collection[PurePosixPath], job: str) -> tuple[Path, int]:
    """Return a killed process's folder and a descriptor that locks it, or a fresh name and -1; other leftovers of the target are removed.

    Parameters
    ----------
    name
        What the working folder is beside: the target, or in a target that is there (which may be a disk of its own) a name.
    """
    mine: tuple[Path, int] | None = None
    for near in dict.fromkeys((goal, name)):
        for path, fd in leftovers(near):
            if mine is None and near == name and _is_of(path, fd, job):
                mine = path, os.dup(fd)  # the lock belongs to the open file, which the duplicate shares
                os.set_inheritable(mine[1], False)
                _remove_others(path, names, folders)
            else:
                remove(path)
    return mine or (working_name(name), -1)


def _is_of(path: Path, fd: int, job: str) -> bool:
    """Was a leftover left by the same job, and could nobody else write into it?"""
    state = os.fstat(fd)
    if not stat.S_ISDIR(state.st_mode) or state.st_mode & 0o022:
        return False
    try:
        journal = (path / _JOURNAL).lstat()
        if not stat.S_ISREG(journal.st_mode) or not belongs_to_user(journal):
            return False
        return bool(json.loads((path / _JOURNAL).read_bytes())["job"] == job)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _remove_others(path: Path, names: Collection[PurePosixPath], folders: Collection[PurePosixPath]) -> None:
    """Remove from a folder that is taken over what the job does not write, and what is not this user's own file."""
    kept = {path / name for name in names} | {path / _JOURNAL}
    kept_folders = {path / folder for folder in folders}
    for here, below, files in os.walk(path):
        for name in [*below, *files]:
            entry = Path(here, name)
            state = entry.lstat()
            is_folder = stat.S_ISDIR(state.st_mode)
            if not belongs_to_user(state) or not (entry in kept_folders if is_folder else entry in kept and stat.S_ISREG(state.st_mode)):
                remove(entry)
                below[:] = [folder for folder in below if folder != name]


def _make_folder(path: Path) -> int:
    while True:
        path.mkdir(0o700)
        fd = _open_folder(path)
        if fd >= 0 or state_of(path) is not None:  # else another process took it away already
            return fd


def _open_folder(path: Path) -> int:
    """Return a descriptor of a folder; -1 where folders can't be opened (Windows)."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return -1


@contextlib.contextmanager
def private_folder(name: Path) -> Iterator[Path]:
    """Give an empty folder beside `name` that is this user's alone, and remove it afterwards; what killed processes left of such folders is removed first."""
    for path, _ in leftovers(name):
        remove(path)
    path, fd = working_name(name), -1
    try:
        fd = make_locked(path, lambda: _make_folder(path))
        yield path
    finally:
        remove(path)
        if fd >= 0:
            os.close(fd)


# ---- into its place


def _become(path: Path, target: Path, source: Path, folders: Collection[PurePosixPath]) -> None:
    """Give the folder the target's name."""
    for folder in folders:
        (path / folder).mkdir(exist_ok=True)
        _chmod_like(path / folder, source / folder)
    (path / _JOURNAL).unlink()
    _sync(path, folders)
    _chmod_like(path, source)
    try:
        os.replace(path, target)
    except OSError:
        if state_of(target) is None:
            raise
        raise OptionError("the target appeared meanwhile: use --force (overwrite=True) to replace its files", path=str(target)) from None
    sync_folder(target.parent)


def _move(path: Path, goal: Path, source: Path, names: Collection[PurePosixPath], folders: Collection[PurePosixPath]) -> None:
    """Move each file into its place in a directory that is there."""
    for folder in folders:
        if state_of(goal / folder) is None:
            (goal / folder).mkdir(0o700)
            _chmod_like(goal / folder, source / folder)
    for name in names:
        os.replace(path / name, goal / name)
    _sync(goal, folders)


def _chmod_like(folder: Path, model: Path) -> None:
    """Give a directory the permissions that it has in the source, which is no reason for its owner not to write into it."""
    with contextlib.suppress(OSError):  # the source has no such directory; a disk without permissions
        folder.chmod(stat.S_IMODE(model.stat().st_mode) & 0o777 | 0o700)


def _sync(path: Path, folders: Collection[PurePosixPath]) -> None:
    for folder in (*folders, PurePosixPath()):
        sync_folder(path / folder)


def _make_parents(target: Path) -> None:
    """Make the directories that the target is in, to last."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)
