# SPDX-License-Identifier: Apache-2.0
"""Directories that jobs fill: killed and taken over, planted by others, into targets that are there."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path, PurePosixPath

import pytest

from weightpack.errors import FormatError, OptionError
from weightpack.io.folder import private_folder, refuse_overlap, work_folder
from weightpack.io.working_names import PARTIAL, working_name

AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files to others")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
STRANGER = 54321
NAMES = ("a", "sub/b", "sub/deep/c", "z")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"new {name}".encode())
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hidden(folder):
    return list(folder.rglob(".*.wp-partial"))


def copy(source, target, *, job="job", overwrite=False, stop=None, names=NAMES):
    """A job: copies the files `names`; returns those that it found finished."""
    resumed = []
    with work_folder(target, source=source, names=[PurePosixPath(name) for name in names], job=job, overwrite=overwrite) as work:
        for name in names:
            if name == stop:
                os._exit(0)
            data = (source / name).read_bytes()

            def prove(path, data=data, name=name):
                if path.read_bytes() != data:
                    raise FormatError("another file")
                return name

            if work.resumed(PurePosixPath(name), prove) is None:
                (work.path / name).write_bytes(data)
            else:
                resumed.append(name)
    return resumed


def in_child(work):
    """Run `work()` in a child, which may die in it as by kill -9."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leave(source, target, **options):
    """Die in the middle of a job; return the folder that it leaves."""
    assert in_child(lambda: copy(source, target, stop="sub/deep/c", **options)) == 0
    (left,) = hidden(target.parent)
    assert contents(left).keys() == {"a", "sub/b", ".weightpack-journal.json"}
    return left


# ---- new targets


def test_a_target_appears_as_a_whole(source, tmp_path):
    target = tmp_path / "some" / "where" / "target"
    assert copy(source, target) == []
    assert contents(target) == contents(source)
    with pytest.raises(OptionError, match="exists"):
        copy(source, target)
    assert hidden(tmp_path) == []


def test_a_job_that_fails_leaves_nothing(source, tmp_path):
    (source / "z").unlink()
    with pytest.raises(FileNotFoundError):
        copy(source, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_target_that_appears_meanwhile_is_not_replaced(source, tmp_path, overwrite):
    for number, appear in enumerate((lambda path: path.write_bytes(b"theirs"), lambda path: (path.mkdir(), (path / "a").write_bytes(b"theirs")))):
        target = tmp_path / str(number)
        with (
            pytest.raises(OptionError, match="meanwhile"),
            work_folder(target, source=source, names=[PurePosixPath("a")], job="job", overwrite=overwrite) as work,
        ):
            (work.path / "a").write_bytes(b"ours")
            appear(target)
        assert (target if target.is_file() else target / "a").read_bytes() == b"theirs"
        assert hidden(tmp_path) == []


def test_what_is_in_work_is_private_and_the_target_has_the_source_s_permissions(source, tmp_path):
    modes = {"": 0o750, "sub": 0o700, "sub/deep": 0o555}
    for name in NAMES:
        (source / name).chmod(0o644)
    for name, mode in modes.items():
        (source / name).chmod(mode)
    try:
        with work_folder(tmp_path / "target", source=source, names=[PurePosixPath(name) for name in NAMES], job="job") as work:
            assert stat.S_IMODE(work.path.stat().st_mode) == 0o700
            for name in NAMES:
                work.resumed(PurePosixPath(name), Path.read_bytes)
                (work.path / name).write_bytes(b"")
        found = {name: stat.S_IMODE((tmp_path / "target" / name).stat().st_mode) for name in modes}
        assert found == {"": 0o750, "sub": 0o700, "sub/deep": 0o755}
    finally:
        (source / "sub" / "deep").chmod(0o755)


# ---- killed, and run again


def test_a_killed_job_goes_on(source, tmp_path):
    leave(source, tmp_path / "target")
    assert copy(source, tmp_path / "target") == ["a", "sub/b"]
    assert contents(tmp_path / "target") == contents(source)
    assert hidden(tmp_path) == []


def test_another_job_does_not(source, tmp_path):
    left = leave(source, tmp_path / "target")
    assert copy(source, tmp_path / "target", job="another") == []
    assert not left.exists()


def test_what_is_taken_over_is_proven(source, tmp_path):
    """A file that the disk lost, or whose source is another now, is written again."""
    left = leave(source, tmp_path / "target")
    (left / "a").write_bytes(b"half")
    (source / "sub" / "b").write_bytes(b"changed")
    assert copy(source, tmp_path / "target") == []
    assert contents(tmp_path / "target") == contents(source)


def test_what_the_job_does_not_write_is_not_taken_over(source, tmp_path):
    """Deleted from the source meanwhile, or put there by others."""
    left = leave(source, tmp_path / "target")
    (left / "modeling_evil.py").write_text("print('evil')")
    (left / "more" / "of").mkdir(parents=True)
    (left / "more" / "of" / "it").write_bytes(b"")
    (left / "sub" / "link").symlink_to("/etc")
    (left / "z").symlink_to(source / "z")
    names = [name for name in NAMES if name != "sub/b"]
    assert copy(source, tmp_path / "target", names=names) == ["a"]
    assert contents(tmp_path / "target") == {name: data for name, data in contents(source).items() if name in names}
    assert not (tmp_path / "target" / "z").is_symlink()
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["a", "sub", "z"]


def plant(source, target):
    """Put a finished folder of the same job there, with other contents."""
    planted = working_name(target)
    for name in NAMES:
        (planted / name).parent.mkdir(parents=True, exist_ok=True)
        (planted / name).write_bytes((source / name).read_bytes())
    (planted / ".weightpack-journal.json").write_text(json.dumps({"job": "job"}))
    planted.chmod(0o700)
    return planted


def test_a_sound_folder_is_taken_over(source, tmp_path):
    """So that the refusals below have no other reason."""
    plant(source, tmp_path / "target")
    assert copy(source, tmp_path / "target") == list(NAMES)


@AS_ROOT
def test_a_stranger_s_folder_is_left_alone(source, tmp_path):
    planted = plant(source, tmp_path / "target")
    os.chown(planted, STRANGER, STRANGER)
    before = contents(planted)
    assert copy(source, tmp_path / "target") == []
    assert contents(planted) == before


@AS_ROOT
def test_a_stranger_s_file_is_not_taken_over(source, tmp_path):
    planted = plant(source, tmp_path / "target")
    os.chown(planted / "sub" / "b", STRANGER, STRANGER)
    assert copy(source, tmp_path / "target") == ["a", "sub/deep/c", "z"]
    assert (tmp_path / "target" / "sub" / "b").stat().st_uid == os.geteuid()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_taken_over(source, tmp_path, mode):
    planted = plant(source, tmp_path / "target")
    planted.chmod(mode)
    assert copy(source, tmp_path / "target") == []
    assert not planted.exists()


def test_a_link_is_not_taken_over(source, tmp_path):
    planted = plant(source, tmp_path / "target")
    elsewhere = planted.rename(tmp_path / "elsewhere")
    planted.symlink_to(elsewhere)
    before = contents(elsewhere)
    assert copy(source, tmp_path / "target") == []
    assert contents(elsewhere) == before


# ---- targets that are there


def test_only_files_of_the_names_that_are_written_are_replaced(source, tmp_path):
    target = tmp_path / "target"
    (target / "sub").mkdir(parents=True)
    (target / "theirs").mkdir()
    for name in ("a", "sub/strange", "theirs/too", ".hidden"):
        (target / name).write_bytes(b"old")
    (target / "theirs").chmod(0o711)
    kept = {"sub/strange": b"old", "theirs/too": b"old", ".hidden": b"old"}
    assert copy(source, target, overwrite=True) == []
    assert contents(target) == {**contents(source), **kept}
    assert stat.S_IMODE((target / "theirs").stat().st_mode) == 0o711
    assert hidden(tmp_path) == []


def test_killed_before_any_move_and_run_again(source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_bytes(b"old")
    (target / "theirs").write_bytes(b"theirs")
    assert in_child(lambda: copy(source, target, overwrite=True, stop="sub/deep/c")) == 0
    assert {name: data for name, data in contents(target).items() if PARTIAL not in name} == {"a": b"old", "theirs": b"theirs"}
    assert copy(source, target, overwrite=True) == ["a", "sub/b"]
    assert contents(target) == {**contents(source), "theirs": b"theirs"}
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("moves", range(len(NAMES) + 1))
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_stopped_while_files_take_their_places(source, tmp_path, moves, how):
    """Every file is the old or the new one, whole; the same command makes the rest."""
    target, old = tmp_path / "target", {"a": b"old", "sub/b": b"old", "theirs": b"theirs"}
    for name, data in old.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    new = contents(source)

    def work():
        really, left = os.replace, [moves]

        def replace(a, b):
            if Path(b).is_relative_to(target) and PARTIAL not in str(Path(b).relative_to(target)):
                if left[0] == 0:
                    if how == "killed":
                        os._exit(0)
                    raise OSError("the disk fails")
                left[0] -= 1
            really(a, b)

        os.replace = replace
        try:
            copy(source, target, overwrite=True)
        except OSError as error:
            os._exit(0 if str(error) == "the disk fails" else 2)
        os._exit(0 if moves == len(NAMES) else 3)

    assert in_child(work) == 0
    now = {name: data for name, data in contents(target).items() if PARTIAL not in name}
    assert now == {**old, **{name: new[name] for name in NAMES[:moves]}}
    assert copy(source, target, overwrite=True) == (list(NAMES[moves:]) if moves < len(NAMES) else [])
    assert contents(target) == {**new, "theirs": b"theirs"}
    assert hidden(tmp_path) == []


def test_a_file_where_a_directory_must_be_and_the_reverse(source, tmp_path):
    target, before = tmp_path / "target", contents(source)
    for name, make, words in (
        ("sub", lambda path: path.write_bytes(b"theirs"), "a file stands where a directory"),
        ("sub", lambda path: path.symlink_to(tmp_path / "elsewhere"), "a link stands where a directory"),
        ("sub/deep/c", lambda path: path.mkdir(parents=True), "a directory, and a file is to be written"),
        ("z", lambda path: path.symlink_to(source / "z"), "a link"),
        ("z", os.mkfifo, "a pipe, and a file is to be written"),
    ):
        target.mkdir()
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (target / "a").write_bytes(b"old")
        make(target / name)
        with pytest.raises(OptionError, match=words) as error:
            copy(source, target, overwrite=True)
        assert str(target / name) in str(error.value)
        assert (target / "a").read_bytes() == b"old"
        assert list((tmp_path / "elsewhere").iterdir()) == []
        assert hidden(tmp_path) == []
        target.rename(tmp_path / f"was {len(list(tmp_path.iterdir()))}")
    assert contents(source) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_target_that_is_no_directory(source, tmp_path, overwrite):
    (tmp_path / "target").write_bytes(b"a file")
    with pytest.raises(OptionError, match="the target is a file, and a directory"):
        copy(source, tmp_path / "target", overwrite=overwrite)
    assert (tmp_path / "target").read_bytes() == b"a file"
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(OptionError, match="the target is a link, and a directory"):
        copy(source, tmp_path / "link", overwrite=overwrite)
    assert not (tmp_path / "nothing").exists()


def test_a_target_that_is_a_link_to_a_directory_is_that_directory(source, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "theirs").write_bytes(b"theirs")
    (tmp_path / "target").symlink_to("far")
    copy(source, tmp_path / "target", overwrite=True)
    assert (tmp_path / "target").is_symlink()
    assert contents(tmp_path / "far") == {**contents(source), "theirs": b"theirs"}


@AS_ROOT
def test_a_target_in_a_directory_that_is_not_writable(source, tmp_path):
    """As a mounted disk is, or a home: only the target itself is written to."""
    home = tmp_path / "homes"
    (home / "target").mkdir(parents=True)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and not folder.stat().st_mode & 0o005:
            folder.chmod(0o755)
    os.chown(home / "target", STRANGER, STRANGER)

    def work():
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        copy(source, home / "target", overwrite=True)
        os._exit(0)

    assert in_child(work) == 0
    assert contents(home / "target") == contents(source)


# ---- overlaps


@pytest.mark.parametrize(
    ("target", "words"),
    [("source", "the same"), ("source/../source", "the same"), ("link", "the same"), ("source/sub", "lies in the source"),
     ("source/new/er", "lies in the source"), ("link/new", "lies in the source"), (".", "source lies in the target"), ("up", "source lies in the target")],
)  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, True])
def test_source_and_target_must_not_overlap(source, tmp_path, target, words, overwrite):
    (tmp_path / "link").symlink_to("source")
    (tmp_path / "up").symlink_to(".")
    before = contents(source)
    with pytest.raises(OptionError, match=words):
        copy(source, tmp_path / target, overwrite=overwrite)
    assert contents(source) == before
    assert hidden(tmp_path) == []


def test_neighbours_do_not_overlap(source, tmp_path):
    for target in ("sourc", "source2", "source-wp"):
        refuse_overlap(source, tmp_path / target)
        copy(source, tmp_path / target)


def test_links_that_lead_nowhere(source, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OptionError):
        copy(source, tmp_path / "loop", overwrite=True)
    with pytest.raises(OptionError):
        copy(source, tmp_path / "loop" / "target")


@pytest.mark.parametrize("name", ["../evil", "/nowhere/evil", "sub/../../evil", "."])
def test_names_outside_the_target(source, tmp_path, name):
    with pytest.raises(OptionError, match="outside"):
        copy(source, tmp_path / "target", names=(name,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


# ---- scratch


def test_scratch_is_private_and_what_killed_processes_left_is_removed(tmp_path):
    def die():
        with private_folder(tmp_path / "scratch") as folder:
            (folder / "shard").write_bytes(b"x")
            os._exit(0)

    assert in_child(die) == 0
    (left,) = hidden(tmp_path)
    with private_folder(tmp_path / "scratch") as folder:
        assert not left.exists()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert re.fullmatch(r"\.scratch\.[0-9a-f]{16}\.wp-partial", folder.name)
        with private_folder(tmp_path / "scratch") as another:  # of a living process
            assert another != folder
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_planted_scratch_is_not_touched(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"precious")
    link = working_name(tmp_path / "scratch")
    link.symlink_to(precious)
    with private_folder(tmp_path / "scratch"):
        pass
    assert (precious / "file").read_bytes() == b"precious"


def test_errors_name_files_of_the_target_and_no_working_folder(tmp_path):
    for name, expected in (("a/b.txt", tmp_path / "new" / "a" / "b.txt"), ("", tmp_path / "new")):
        folder = work_folder(tmp_path / "new", source=tmp_path / "none", names=[PurePosixPath("a/b.txt")], job="x")
        with pytest.raises(OSError, match="No space") as error, folder as work:
            raise OSError(errno.ENOSPC, "No space left on device", str(work.path / name))
        assert error.value.filename == str(expected)
    assert list(tmp_path.iterdir()) == []
