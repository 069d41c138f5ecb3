# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all: written beside their target, synced, and given its name."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from weightpack.errors import OptionError, PathNotFoundError, WeightpackError
from weightpack.io.working_names import leftovers, make_locked, remove, working_name

if TYPE_CHECKING:
    from weightpack.format.buffers import Buffer

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDERS_CAN_NOT_BE_SYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
_KINDS = {
    stat.S_IFREG: "a file", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


class AtomicFile:
    """A file that is written beside its target and replaces it in `commit`, synced; without `commit` nothing of it stays.

    What killed processes have left of the same target is removed first.

    Parameters
    ----------
    overwrite
        Replace a file of this name. Its permissions are taken over; its group too, and its owner if this is root, where the system allows that.
    like
        A file, or what `os.stat` says of one, of which this is another form: permissions, group and times are taken over from it, as by `cp -p`. Until then
        nobody else can read what is written.

    Raises
    ------
    OptionError
        The target exists and is not to be replaced; or it can't be: it is a directory, a device, a pipe, or a link (to write through which would change a file
        of another name).
    """

    def __init__(self, target: str | os.PathLike[str], *, overwrite: bool = False, like: str | os.PathLike[str] | os.stat_result | None = None) -> None:
        self.target = Path(target)
        self._overwrite = overwrite
        self._replaced = state_of(self.target)
        if self._replaced is not None:
            refuse_irregular(self.target, self._replaced)
            if not overwrite:
                raise OptionError("the target exists: use --force (overwrite=True) to replace it", path=str(self.target))
        self._like = like if like is None or isinstance(like, os.stat_result) else os.stat(like)
        self.path = working_name(self.target)
        self.fd = -1
        self._seek_lock = threading.Lock()

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`; may be called from many threads."""
        view = memoryview(data)
        while len(view):
            n = self._pwrite(view, offset)
            view, offset = view[n:], offset + n

    def _pwrite(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self.fd, view, offset)
        with self._seek_lock:  # Windows
            os.lseek(self.fd, offset, os.SEEK_SET)
            return os.write(self.fd, view)

    def commit(self) -> None:
        """Sync the file, give it its name, and sync the folder."""
        self._take_over()
        os.fsync(self.fd)
        if os.name == "nt":  # an open file can't be renamed there
            self._close()
        if self._overwrite:
            os.replace(self.path, self.target)
        else:
            self._take_free_name()
        self._close()
        sync_folder(self.target.parent)

    def _take_over(self) -> None:
        """Take over permissions, owner and times."""
        model = self._like or self._replaced
        if model is None:
            return
        mode = stat.S_IMODE(model.st_mode) & 0o777
        if hasattr(os, "fchown") and not self._take_owner(model.st_gid):
            mode &= ~0o070 | mode << 3  # to another group than the model's, no more than to everybody
        if hasattr(os, "fchmod"):
            with contextlib.suppress(OSError):  # a disk without permissions
                os.fchmod(self.fd, mode)
        if self._like is not None:
            os.utime(self.fd if os.utime in os.supports_fd else self.path, ns=(self._like.st_atime_ns, self._like.st_mtime_ns))

    def _take_owner(self, group: int) -> bool:
        """Give the file to a group, and to the owner of what it replaces if this is root; False if the group is another."""
        owner = self._replaced.st_uid if self._replaced is not None and os.geteuid() == 0 else -1
        try:
            os.fchown(self.fd, owner, group)
        except OSError:  # a group that this user is not in; a disk without owners
            return os.fstat(self.fd).st_gid == group
        return True

    def _take_free_name(self) -> None:
        """Rename without replacing what another process may have written meanwhile."""
        try:
            os.link(self.path, self.target)
        except FileExistsError:
            pass
        except OSError:  # a disk without hard links
            if state_of(self.target) is None:
                os.replace(self.path, self.target)
                return
        else:
            remove(self.path)  # if it does not let itself, it is a leftover: the target is whole
            return
        raise OptionError("the target appeared meanwhile: use --force (overwrite=True) to replace it", path=str(self.target))

    def __enter__(self) -> AtomicFile:
        for path, _ in leftovers(self.target):
            if path.is_file():
                remove(path)
        mode = 0o666 if self._like is None and self._replaced is None else 0o600
        try:  # an interrupt may come between any two lines
            self.fd = make_locked(self.path, lambda: os.open(self.path, _CREATE, mode))
            return self
        except BaseException as error:
            self._clean_up()
            self._name(error)
            if isinstance(error, FileNotFoundError) and not self.target.parent.exists():
                raise PathNotFoundError("no such folder, where the target is to be written", path=str(self.target.parent)) from None
            raise

    def _name(self, error: BaseException | None) -> None:
        """Let an error name the target: not a working file, that nobody knows; and calls on descriptors name no file."""
        if not isinstance(error, OSError) or isinstance(error, ConnectionError | WeightpackError):
            return
        if error.errno is not None and error.filename in (None, str(self.path)):
            error.filename = str(self.target)

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._clean_up()
        self._name(exc)

    def _clean_up(self) -> None:
        self._close()
        remove(self.path)

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def replace_file(path: Path, data: bytes, *, hidden_as: Path | None = None) -> None:
    """Write a small file, whole and synced or not at all. A new one can be read by nobody who can't read `hidden_as`."""
    with AtomicFile(path, overwrite=True) as file:
        if hidden_as is not None and hasattr(os, "fchmod"):
            with contextlib.suppress(OSError):  # a disk without permissions
                os.fchmod(file.fd, stat.S_IMODE(os.fstat(file.fd).st_mode) & stat.S_IMODE(hidden_as.stat().st_mode))
        file.write_at(0, data)
        file.commit()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last; nothing where the system can't sync folders.

    Raises
    ------
    OSError
        The disk failed, or is full: what was renamed may not last.
    """
    if os.name == "nt":  # folders can't be opened there
        return
    fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _FOLDERS_CAN_NOT_BE_SYNCED:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(folder)) from None
    finally:
        os.close(fd)


def state_of(path: Path) -> os.stat_result | None:
    """Return what stands at a path, links not followed; None if nothing does."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def kind_of(state: os.stat_result) -> str:
    """Return what something is, in words: "a file", "a directory", "a link", ..."""
    return _KINDS.get(stat.S_IFMT(state.st_mode), "no file")


def refuse_irregular(target: Path, state: os.stat_result) -> None:
    """Raise OptionError if what stands at a target is no regular file: it must not be replaced by one."""
    if stat.S_ISLNK(state.st_mode):
        raise OptionError(f"the target is a link, to {str(target.readlink())!r}: name that file, or remove the link", path=str(target))
    if not stat.S_ISREG(state.st_mode):
        raise OptionError(f"the target is {kind_of(state)}, and a file is to be written", path=str(target))
