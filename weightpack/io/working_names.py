# SPDX-License-Identifier: Apache-2.0
"""Working files and folders beside a target, `.NAME.HEX.wp-partial`: who writes them holds a lock, so that those of killed processes are known.

The system gives a lock back when its process ends, however it ends. Where there are no locks (Windows, some network disks) nothing is taken for a leftover, and
nothing that another user owns ever is: in a shared folder anybody can put files of such names.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
PARTIAL = "wp-partial"
_MOST_OF_NAME = 200  # bytes: file systems allow 255 for all of it
_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # neither a link nor a pipe without a writer


def working_name(target: Path) -> Path:
    """Return a fresh name beside the target."""
    return target.with_name(f".{_stem(target.name)}.{secrets.token_hex(8)}.{PARTIAL}")


def _stem(name: str) -> str:
    """Return as much of a target's name as its working names have."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _MOST_OF_NAME else encoded[:_MOST_OF_NAME].decode("utf-8", errors="ignore")


def is_working_name(name: str) -> bool:
    """Is this the name of somebody's working file?"""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{16}}\.{PARTIAL}", name) is not None


def lock(fd: int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds it, there are no locks here, or it could not be opened (-1)."""
    if fd < 0 or fcntl is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def is_at(fd: int, path: Path) -> bool:
    """Does the name still stand for this open file?"""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def make_locked(path: Path, make: Callable[[], int]) -> int:
    """Make a working file or folder and lock it; return its descriptor, -1 where it can't be opened.

    Parameters
    ----------
    make
        Makes and opens what is to stand at `path`. It is called again if another process took that for a leftover before it was locked.
    """
    while True:
        fd = make()
        try:
            if not lock(fd, wait=True) or is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def belongs_to_user(state: os.stat_result) -> bool:
    """Is a file this user's? (Windows does not say.)"""
    return not hasattr(os, "geteuid") or state.st_uid == os.geteuid()


def leftovers(target: Path) -> Iterator[tuple[Path, int]]:
    """Yield (path, locked descriptor) of files and folders that killed processes of this user left of this target.

    The descriptor is closed afterwards unless the caller keeps a duplicate.
    """
    pattern = re.compile(rf"\.{re.escape(_stem(target.name))}\.[0-9a-f]{{16}}\.{PARTIAL}")
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(name for name in os.listdir(target.parent) if pattern.fullmatch(name)):
            path = target.with_name(name)
            try:
                fd = os.open(path, _OPEN)
            except OSError:
                continue  # gone meanwhile, a link, or not ours to open
            try:
                state = os.fstat(fd)
                if belongs_to_user(state) and (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)) and lock(fd) and is_at(fd, path):
                    yield path, fd
            finally:
                os.close(fd)


def remove(path: Path) -> None:
    """Remove a leftover, if it lets itself; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
