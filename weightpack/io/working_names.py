# SPDX-License-Identifier: Apache-2.0
"""Working files beside a target, `.NAME.HEX.wp-partial` and `.NAME.HEX.wp-old`: who writes them holds a lock, so that those of killed processes are known.

The system gives a lock back when its process ends, however it ends. Where there are no locks (Windows, some network disks) nothing is taken for a leftover.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

PARTIAL, OLD = "wp-partial", "wp-old"


def working_name(target: Path, kind: str) -> Path:
    """Return a fresh name beside the target."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.{kind}")


def is_working_name(name: str) -> bool:
    """Is this the name of somebody's working file?"""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{16}}\.({PARTIAL}|{OLD})", name) is not None


def lock(fd: int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds it, there are no locks here, or it could not be opened (-1)."""
    if fd < 0:
        return False
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def is_at(fd: int, path: Path) -> bool:
    """Does the name still stand for this open file?"""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def leftovers(target: Path, kind: str) -> Iterator[tuple[Path, int]]:
    """Yield (path, locked descriptor) of what killed processes left of this target; the descriptor is closed afterwards unless the caller keeps a duplicate."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.{kind}")
    with contextlib.suppress(FileNotFoundError):
        names = sorted(entry.name for entry in os.scandir(target.parent) if pattern.fullmatch(entry.name))
        for name in names:
            path = target.with_name(name)
            try:
                fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError:
                continue  # gone meanwhile, or not ours to open
            try:
                if lock(fd) and is_at(fd, path):
                    yield path, fd
            finally:
                os.close(fd)


def remove(path: Path) -> None:
    """Remove a leftover, if it lets itself."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
