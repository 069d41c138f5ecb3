# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all: what they replace, what they take over, and disks that fail under them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

import pytest

import weightpack
from weightpack.errors import OptionError, PathNotFoundError
from weightpack.io.atomic import AtomicFile, replace_file, sync_folder
from weightpack.io.working_names import leftovers, working_name

AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files to others")
STRANGER = 54321


def write(target, data=b"new", **options):
    with AtomicFile(target, **options) as file:
        file.write_at(0, data)
        file.commit()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@contextlib.contextmanager
def umask(mask):
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


# ---- what is replaced


def test_a_file_is_replaced_only_if_that_is_wanted(tmp_path):
    target = tmp_path / "target"
    write(target, b"old")
    with pytest.raises(OptionError, match="exists"):
        write(target)
    assert target.read_bytes() == b"old"
    write(target, overwrite=True)
    assert target.read_bytes() == b"new"
    assert hidden(tmp_path) == []


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_device(path):
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null


def make_link(path):
    path.with_name("other").write_bytes(b"other")
    path.symlink_to("other")


def make_loose_link(path):
    path.symlink_to("nothing")


@pytest.mark.parametrize(
    ("make", "word"),
    [(Path.mkdir, "a directory"), (make_pipe, "a pipe"), (make_socket, "a socket"), (make_link, "a link, to 'other'"),
     (make_loose_link, "a link, to 'nothing'"), pytest.param(make_device, "a device", marks=AS_ROOT)],
)  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, make, word, overwrite):
    target = tmp_path / "t"
    make(target)
    before = target.lstat()
    with pytest.raises(OptionError, match=word):
        write(target, overwrite=overwrite)
    after = target.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert not (tmp_path / "nothing").exists()
    assert not (tmp_path / "other").exists() or (tmp_path / "other").read_bytes() == b"other"
    assert hidden(tmp_path) == []


@AS_ROOT
def test_a_device_stays_one_when_a_file_is_packed_into_it(tmp_path):
    """A device of its own: one of the machine's would be lost if this ever failed."""
    (tmp_path / "source").write_bytes(b"some bytes")
    make_device(tmp_path / "null")
    with pytest.raises(OptionError, match=r"null: .* a device"):
        weightpack.pack(tmp_path / "source", tmp_path / "null", overwrite=True)
    assert stat.S_ISCHR((tmp_path / "null").lstat().st_mode)


# ---- what is taken over


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_and_times_of_the_source(tmp_path, mask):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"secret")
    source.chmod(0o600)
    os.utime(source, ns=(1_500_000_000_123_456_789, 1_600_000_000_987_654_321))
    with umask(mask):
        for like in (source, str(source), source.stat()):
            with AtomicFile(target, overwrite=True, like=like) as file:
                assert mode(file.path) == 0o600
                file.write_at(0, b"packed")
                file.commit()
            assert (mode(target), target.stat().st_mtime_ns) == (0o600, source.stat().st_mtime_ns)
        source.chmod(0o4755)
        write(target, overwrite=True, like=source)
        assert mode(target) == 0o755
        source.chmod(0o444)
        write(target, overwrite=True, like=source)
        assert mode(target) == 0o444


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_without_a_model_the_permissions_are_those_of_new_files(tmp_path, mask):
    with umask(mask):
        write(tmp_path / "target")
        assert mode(tmp_path / "target") == 0o666 & ~mask


def test_nobody_else_can_read_what_replaces_a_private_file_before_it_does(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"secret")
    target.chmod(0o640)
    with umask(0), AtomicFile(target, overwrite=True) as file:
        file.write_at(0, b"another secret")
        assert mode(file.path) == 0o600
        file.commit()
    assert mode(target) == 0o640
    old = target.stat()
    replace_file(target, b"third")
    assert (mode(target), target.stat().st_uid) == (0o640, old.st_uid)


@AS_ROOT
def test_root_leaves_a_file_to_its_owner(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    os.chown(target, STRANGER, STRANGER + 1)
    target.chmod(0o640)
    write(target, overwrite=True)
    state = target.stat()
    assert (state.st_uid, state.st_gid, mode(target)) == (STRANGER, STRANGER + 1, 0o640)
    assert target.read_bytes() == b"new"


def as_user(user, work):
    """Run `work()` in a child as another user; return whether it returned True."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            status = 0 if work() else 2
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@AS_ROOT
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_group_that_can_not_be_kept_gets_no_more_than_everybody(tmp_path, tmp_path_factory):
    """The source may be read by its group; the file would belong to another one."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and not folder.stat().st_mode & 0o005:
            folder.chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for name, bits, expected in (("a", 0o640, 0o600), ("b", 0o664, 0o644), ("c", 0o644, 0o644)):
        source = shared / name
        source.write_bytes(b"")
        os.chown(source, STRANGER, STRANGER + 1)
        source.chmod(bits)
        target = shared / f"{name}.target"
        assert as_user(STRANGER, lambda target=target, source=source: write(target, like=source) is None)
        assert (mode(target), target.stat().st_uid, target.stat().st_gid) == (expected, STRANGER, STRANGER)


# ---- disks and systems that fail


def test_a_folder_that_can_not_be_synced_is_an_error(tmp_path, monkeypatch):
    """Else a source would be deleted whose successor may not last."""
    really = os.fsync

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        really(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    source = tmp_path / "source"
    source.write_bytes(b"some bytes")
    for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            sync_folder(tmp_path)
        assert error.value.filename == str(tmp_path)
        with pytest.raises(OSError, match=os.strerror(number)):
            weightpack.pack(source, tmp_path / "packed", overwrite=True, delete_source=True)
        assert source.read_bytes() == b"some bytes"
    for number in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # systems that have no such thing  # noqa: B007
        sync_folder(tmp_path)
    weightpack.pack(source, tmp_path / "packed", overwrite=True, delete_source=True)
    assert not source.exists()


def test_a_working_file_that_can_not_be_removed_is_no_other_target(tmp_path, monkeypatch):
    def unlink(self, missing_ok=False):
        raise PermissionError(errno.EPERM, "not now", str(self))

    target = tmp_path / "target"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        write(target)
    assert target.read_bytes() == b"new"
    assert len(hidden(tmp_path)) == 1
    write(target, b"newer", overwrite=True)
    assert target.read_bytes() == b"newer"
    assert hidden(tmp_path) == []


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", link)
    write(tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"new"
    with AtomicFile(tmp_path / "late") as file:
        (tmp_path / "late").write_bytes(b"another's")
        with pytest.raises(OptionError, match="meanwhile"):
            file.commit()
    assert (tmp_path / "late").read_bytes() == b"another's"
    assert hidden(tmp_path) == []


# ---- leftovers


def test_what_is_planted_is_no_leftover(tmp_path):
    """Pipes without a writer are not waited for, links are not followed."""
    target = tmp_path / "target"
    pipe, link, loose = (working_name(target) for _ in range(3))
    os.mkfifo(pipe)
    (tmp_path / "precious").write_bytes(b"precious")
    link.symlink_to("precious")
    loose.symlink_to("nothing")
    assert list(leftovers(target)) == []
    write(target)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert {path.name for path in (pipe, link, loose)} == set(hidden(tmp_path))


@AS_ROOT
def test_a_stranger_s_file_is_no_leftover(tmp_path):
    target = tmp_path / "target"
    theirs = working_name(target)
    theirs.write_bytes(b"theirs")
    os.chown(theirs, STRANGER, STRANGER)
    write(target)
    assert theirs.read_bytes() == b"theirs"


@pytest.mark.parametrize("verb", [weightpack.pack, weightpack.unpack])
def test_a_folder_that_is_not_there_is_named(tmp_path, verb):
    (tmp_path / "model.bin").write_bytes(b"x" * 100)
    source = weightpack.pack(tmp_path / "model.bin").target if verb is weightpack.unpack else tmp_path / "model.bin"
    with pytest.raises(PathNotFoundError, match="no such folder") as error:
        verb(source, tmp_path / "none" / "deeper" / "x")
    assert error.value.filename == str(tmp_path / "none" / "deeper")


def test_errors_name_the_target_and_no_working_file(tmp_path):
    with pytest.raises(OSError, match="too long") as error:
        write(tmp_path / ("x" * 300))
    assert error.value.filename == str(tmp_path / ("x" * 300))
