# SPDX-License-Identifier: Apache-2.0
"""Packed sources as a read-only file system (FUSE): any program opens the plain files, which are decoded as they are read.

`MountedFiles` has the calls that the kernel makes, and needs no FUSE itself; `mount` gives it to libfuse, through mfusepy.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from weightpack.errors import MissingExtraError, OptionError, WeightpackError
from weightpack.integrations.source_tree import SourceFile, SourceTree
from weightpack.io.files import LocalFile
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.reading.bases import open_with_bases
from weightpack.reading.cached import CachedSource, DecodedPieces

CACHE_BYTES = 256 << 20
FILE_SYSTEM = "weightpack"
_FUSE_DEVICE = Path("/dev/fuse")
_LOOP_ENDED = 8  # what libfuse returns when a signal has ended its loop
_CALLS_AT_ONCE = 10  # as libfuse 2 and 3 have it
_BLOCK_BYTES = 512  # that st_blocks counts
# Nothing changes while it is mounted: the kernel may keep what it was told, and the pages that it has read.
_OPTIONS = {
    "ro": True,
    "fsname": FILE_SYSTEM,
    "subtype": FILE_SYSTEM,
    "default_permissions": True,
    "kernel_cache": True,
    "attr_timeout": 3600,
    "entry_timeout": 3600,
}
_INSTALL = {
    "linux": "install the package fuse3 (Debian, Ubuntu: `apt install fuse3`; Fedora: `dnf install fuse3`; Arch: `pacman -S fuse3`)",
    "darwin": "install macFUSE (`brew install --cask macfuse`) or FUSE-T",
}
_NO_DEVICE = "this kernel has no FUSE here: `modprobe fuse` loads it; a container is given it with `docker run --device /dev/fuse --cap-add SYS_ADMIN`"


class MountedFiles:
    """The calls of a file system on a tree of sources, as mfusepy makes them, from many threads at once; paths are absolute ones of the file system.

    Parameters
    ----------
    tree
        Of which every packed file is opened, with its bases: what can't be opened shows before anything is mounted.
    report
        Called with a line about each place that can't be read, once.
    ready
        Called when the kernel has the file system.
    """

    use_ns = True  # times are integers of nanoseconds

    def __init__(
        self, tree: SourceTree, cache: DecodedPieces, report: Callable[[str], None], *, base: Sequence[Path] | None = None, limits: Limits = DEFAULT_LIMITS,
        ready: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._report, self._ready, self._reported = report, ready, set[str]()
        self._sources: dict[str, CachedSource] = {}
        self._files = {_absolute(name): file for name, file in tree.files.items()}
        self._states: dict[str, dict[str, int]] = {}
        self._names: dict[str, list[str]] = {_absolute(name): [".", ".."] for name in tree.folders}
        for name in (*tree.folders, *tree.files):
            if name.name:
                self._names[_absolute(name.parent)].append(name.name)
        with ExitStack() as stack:
            for name, folder in tree.folders.items():
                self._states[_absolute(name)] = _state(folder, stat.S_IFDIR, 0)
            for name, file in tree.files.items():
                path = _absolute(name)
                if file.is_packed:
                    self._sources[path] = _opened(file.path, cache, len(self._sources), base, limits)
                    stack.callback(self._sources[path].close)
                self._states[path] = _state(file.path, stat.S_IFREG, self._size(path, file))
            self._stack = stack.pop_all()

    def _size(self, path: str, file: SourceFile) -> int:
        if file.is_packed:
            return self._sources[path].size
        return file.path.stat().st_size if file.data is None else len(file.data)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self._states[path]["st_size"] for path in self._files)

    # ---- what the kernel asks

    def init(self, path: str) -> None:
        if self._ready is not None:
            self._ready()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        try:
            return self._states[path]
        except KeyError:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def readdir(self, path: str, fh: int) -> list[str]:
        if path not in self._names:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._names[path]

    def open(self, path: str, flags: int) -> int:
        """Return a handle: of a file that is as it is, its descriptor."""
        file = self._files.get(path)
        if file is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return 0 if file.is_packed or file.data is not None else os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Return up to `size` bytes. EIO if they are damaged, after a line that says which file, tensor and chunk, and why."""
        file = self._files[path]
        try:
            if file.is_packed:
                return self._sources[path].read(offset, size)
            return os.pread(fh, size, offset) if file.data is None else file.data[offset : offset + size]
        except (WeightpackError, OSError) as error:
            self._report_once(f"{path}: {error}")
            if isinstance(error, OSError) and error.errno and not isinstance(error, WeightpackError):
                raise
            raise OSError(errno.EIO, os.strerror(errno.EIO), path) from error
        except MemoryError:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path) from None

    def release(self, path: str, fh: int) -> int:
        if not (self._files[path].is_packed or self._files[path].data is not None):
            os.close(fh)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": -(-self.n_bytes // 4096), "f_files": len(self._states), "f_namemax": 255}

    # ----

    def _report_once(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            self._report(line)

    def close(self) -> None:
        """Close all packed files and their bases."""
        self._stack.close()


def _opened(path: Path, cache: DecodedPieces, number: int, base: Sequence[Path] | None, limits: Limits) -> CachedSource:
    file = LocalFile(path)
    try:
        return CachedSource(open_with_bases(file, limits, base=base), cache, number)
    except BaseException:
        file.close()
        raise


def _absolute(name: PurePosixPath) -> str:
    return f"/{name}" if name.name else "/"


def _state(path: Path, kind: int, size: int) -> dict[str, int]:
    """Return what `stat` says of a file that has a path's permissions, owner and times."""
    state = path.stat()
    return {
        "st_mode": kind | stat.S_IMODE(state.st_mode) & 0o777, "st_nlink": 1, "st_size": size, "st_blocks": -(-size // _BLOCK_BYTES), "st_uid": state.st_uid,
        "st_gid": state.st_gid, "st_atime": state.st_atime_ns, "st_mtime": state.st_mtime_ns, "st_ctime": state.st_ctime_ns,
    }  # fmt: skip


def fuse_library() -> ModuleType:
    """Return mfusepy, with the libfuse that it has found.

    Raises
    ------
    MissingExtraError
        It is not installed, or libfuse is not, or what lets one mount who is not root.
    OSError
        This kernel has no FUSE, or does not let us have it.
    OptionError
        No system has FUSE that is like this one.
    """
    if sys.platform == "win32":
        raise OptionError("mounting needs FUSE, which Windows has not: mount in WSL, or restore the files with `weightpack unpack`")
    install = _INSTALL.get(sys.platform, "install FUSE")
    try:
        import mfusepy
    except ImportError:
        raise MissingExtraError("mounting needs mfusepy: `pip install weightpack[mount]`") from None
    except OSError:  # what it raises when it finds no library
        raise MissingExtraError(f"mounting needs libfuse: {install}") from None
    if sys.platform.startswith("linux"):
        if not _FUSE_DEVICE.exists():
            raise OSError(errno.ENODEV, _NO_DEVICE, str(_FUSE_DEVICE))
        if not os.access(_FUSE_DEVICE, os.R_OK | os.W_OK):
            raise OSError(errno.EACCES, "this user may not open it: other systems give it the permissions 666", str(_FUSE_DEVICE))
        if os.geteuid() != 0 and _fusermount() is None:
            raise MissingExtraError(f"mounting needs fusermount3: {install}")
    library: ModuleType = mfusepy
    return library


def _fusermount() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount")


def mount(
    tree: SourceTree, folder: Path, *, report: Callable[[str], None], ready: Callable[[MountedFiles], None], base: Sequence[Path] | None = None,
    threads: int = 1, cache_bytes: int = CACHE_BYTES, daemon: bool = False, allow_other: bool = False, limits: Limits = DEFAULT_LIMITS,
) -> None:  # fmt: skip
    """Mount a tree, and return when it was unmounted, by `unmount` or by a signal that ends programs.

    Parameters
    ----------
    folder
        An empty one; one that is not there is made, and goes when this returns.
    report, ready
        As of `MountedFiles`.
    daemon
        Go on in the background, without a terminal, once the kernel has the file system; this process ends then.
    allow_other
        Let other users in, as far as permissions of files do.

    Raises
    ------
    MissingExtraError, OSError
        As `fuse_library`; or it could not be mounted.
    OptionError
        The folder is no empty folder.
    """
    fuse, folder = fuse_library(), folder.absolute()  # libfuse goes to the root folder
    made = _refuse_mount_point(folder)
    options: dict[str, Any] = {"foreground": not daemon, "allow_other": allow_other, **_OPTIONS}
    if (fuse.fuse_version_major, fuse.fuse_version_minor) >= (3, 12):
        options["max_idle_threads"] = _CALLS_AT_ONCE  # their own default they complain about
    cache, mounted = DecodedPieces(cache_bytes, threads), False

    def now_ready() -> None:
        nonlocal mounted
        mounted = True
        ready(files)

    with ExitStack() as stack:
        stack.callback(cache.close)
        files = MountedFiles(tree, cache, report, base=base, limits=limits, ready=now_ready)
        stack.callback(files.close)
        if made:
            folder.mkdir(parents=True)
            stack.callback(_remove, folder)
        try:
            fuse.FUSE(files, os.path.realpath(folder), **options)
        except RuntimeError as error:
            if not (mounted and error.args == (_LOOP_ENDED,)):
                raise OSError(errno.EIO, f"it could not be mounted (libfuse ended with {error})", str(folder)) from None


def _refuse_mount_point(folder: Path) -> bool:
    """Raise OptionError for what nothing can be mounted on; is the folder to be made?"""
    try:
        if os.listdir(folder):
            raise OptionError("the folder is not empty: name an empty one, or one that is to be made", path=str(folder))
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        raise OptionError("this is no folder", path=str(folder)) from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise OptionError("what was mounted here has died: `weightpack umount` clears it away", path=str(folder)) from None
        raise
    return False


def _remove(folder: Path) -> None:
    with suppress(OSError):  # it is mounted on again, or someone has put something there
        folder.rmdir()


def unmount(folder: Path) -> None:
    """Unmount what `mount` has mounted on a folder.

    Raises
    ------
    OptionError
        That is nothing.
    OSError
        It is in use, or another's.
    """
    path = os.path.realpath(folder)
    if sys.platform.startswith("linux") and path not in mounted_folders():
        raise OptionError("nothing of weightpack is mounted here", path=str(folder))
    fusermount = None if sys.platform == "darwin" else _fusermount()
    command = ["umount", path] if fusermount is None else [fusermount, "-u", path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EBUSY, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it could not be unmounted", str(folder))


def mounted_folders() -> list[str]:
    """Return the folders that something of ours is mounted on, on Linux."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()]
    mounted = [line[4] for line in lines if f"fuse.{FILE_SYSTEM}" in line[6:]]
    return [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name) for name in mounted]
