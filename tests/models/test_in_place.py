# SPDX-License-Identifier: Apache-2.0
"""Packing and unpacking in place: refused before anything changes, or gone on with from whatever state a job was stopped in."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from pathlib import Path

import folders
import pytest
import samples

import weightpack
from weightpack.errors import FolderError, FormatError, OptionError
from weightpack.models import in_place

GOLDEN = Path(__file__).parent / "golden" / "manifest-1"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"7" * 64 + b"\nsize 160088\n"


def refused(folder, error, match, verb=weightpack.pack):
    before = folders.contents(folder), folders.states(folder)
    with pytest.raises(error, match=match):
        verb(folder, in_place=True)
    assert (folders.contents(folder), folders.states(folder)) == before


# ---- refused, with nothing changed


def snapshot(tmp_path):
    """A snapshot of the Hub client's cache: every file is a link to a blob."""
    folders.sharded(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{path.name}")
    return tmp_path / "snapshot"


def test_a_snapshot_of_the_hub_s_cache_is_refused(tmp_path):
    folder = snapshot(tmp_path)
    refused(folder, OptionError, "link")
    assert all(path.is_symlink() for path in folder.iterdir())
    result = weightpack.pack(folder, tmp_path / "out")  # as before, then
    weightpack.verify(result.target, against=folder)


def test_a_packed_snapshot_is_refused(tmp_path):
    source = folders.sharded(tmp_path / "m")
    packed = weightpack.pack(source, tmp_path / "blobs").target
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{path.name}")
    refused(tmp_path / "snapshot", OptionError, "link", weightpack.unpack)
    assert weightpack.unpack(tmp_path / "snapshot", tmp_path / "back").files
    assert folders.contents(tmp_path / "back") == folders.contents(source)
    assert packed


def test_a_linked_config_is_refused(tmp_path):
    folder = folders.sharded(tmp_path / "m")
    shutil.move(folder / "config.json", tmp_path / "config.json")
    (folder / "config.json").symlink_to("../config.json")
    refused(folder, OptionError, "link", functools.partial(weightpack.pack, hf_flag=True))
    weightpack.pack(folder, in_place=True)  # leaves config.json as it is
    assert (folder / "config.json").is_symlink()
    weightpack.verify(folder)


@pytest.mark.parametrize("damage", ["pointer", "cut", "empty", "text"])
def test_one_shard_that_is_none(tmp_path, damage):
    folder = folders.sharded(tmp_path / "m", shards=3)
    shard = folder / "model-00003-of-00003.safetensors"
    shard.write_bytes({"pointer": LFS_POINTER, "cut": shard.read_bytes()[:-7], "empty": b"", "text": b"<html>not found</html>"}[damage])
    refused(folder, FormatError, "model-00003-of-00003")


def test_a_missing_shard_and_a_name_that_can_not_be_restored(tmp_path):
    folder = folders.sharded(tmp_path / "m")
    shard = folder / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.unlink()
    refused(folder, FormatError, "model-00002-of-00002")
    shard.write_bytes(data)
    folders.write(folder / "unet\\model.safetensors", data)
    refused(folder, OptionError, "backslash")


def test_other_kinds_alone(tmp_path):
    folders.write(tmp_path / "m" / "pytorch_model.bin", samples.weights(100_000, "F32"))
    refused(tmp_path / "m", OptionError, "only safetensors files are packed in place")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    folder = folders.sharded(tmp_path / "m")
    folder.chmod(0o555)
    try:
        refused(folder, PermissionError, "can't be replaced")
    finally:
        folder.chmod(0o755)


def test_no_write_permission_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    """As `test_a_folder_that_may_not_be_written_to`, for root: the system's answer is put in its place."""
    folder = folders.sharded(tmp_path / "m")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    refused(folder, PermissionError, "can't be replaced")


def test_a_disk_without_room_to_unpack_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    folder = folders.sharded(tmp_path / "m")
    weightpack.pack(folder, in_place=True)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=9000))
    refused(folder, OSError, "No space left", weightpack.unpack)


def test_a_base_that_is_not_there_is_seen_before_anything_is_unpacked(tmp_path):
    base = folders.sharded(tmp_path / "base", n=40_000)
    folder = folders.sharded(tmp_path / "tuned", n=40_000)
    weightpack.pack(folder, in_place=True, base=base)
    shutil.move(base / "model-00002-of-00002.safetensors", tmp_path / "elsewhere")
    refused(folder, weightpack.errors.BaseNotFoundError, "model-00002", weightpack.unpack)


# ---- what is replaced, and what stays


def test_there_and_back(tmp_path):
    folder = folders.sharded(tmp_path / "m")
    folders.write(folder / "pytorch_model.bin", samples.weights(100_000, "F32"))
    folders.write(folder / "run.sh", "#!/bin/sh\n").chmod(0o750)
    (folder / "empty").mkdir()
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18 + 7))
    (folder / "model-00001-of-00002.safetensors").chmod(0o640)
    before = folders.contents(folder), folders.states(folder)
    result = weightpack.pack(folder, in_place=True)
    assert [note.name for note in result.kept] == ["pytorch_model.bin"]
    assert len(result.files) == 2
    assert result.source_bytes == sum(len(data) for data in before[0].values() if data is not None)
    assert result.packed_bytes == sum(len(data) for data in folders.contents(folder).values() if data is not None)
    assert {name: state for name, state in folders.states(folder).items() if name != "weightpack.json"} == before[1]
    assert weightpack.verify(folder).total.n_files == 7
    with pytest.raises(OptionError, match="packed already"):
        weightpack.pack(folder, in_place=True)
    result = weightpack.unpack(folder, in_place=True)
    assert (folders.contents(folder), folders.states(folder)) == before
    assert result.source_bytes == sum(len(data) for data in before[0].values() if data is not None)


def test_weights_that_are_reached_through_a_linked_folder_stay_as_they_are(tmp_path):
    shared = folders.sharded(tmp_path / "t5")
    folder = folders.sharded(tmp_path / "pipe")
    (folder / "text_encoder").symlink_to("../t5")
    before = folders.contents(tmp_path)
    result = weightpack.pack(folder, in_place=True)
    assert [note.name for note in result.kept] == [f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert folders.contents(shared) == {name.removeprefix("t5/"): data for name, data in before.items() if name.startswith("t5/")}
    weightpack.verify(folder)
    weightpack.unpack(folder, in_place=True)
    assert folders.contents(tmp_path) == before
    assert (folder / "text_encoder").is_symlink()


def test_other_kinds_are_unpacked_in_place_one_after_the_other(tmp_path):
    source = folders.sharded(tmp_path / "m")
    folders.write(source / "pytorch_model.bin", samples.weights(100_000, "F32"))
    folder = tmp_path / "m-wp"
    weightpack.pack(source)
    assert (folder / "pytorch_model.bin.wp").exists()
    weightpack.unpack(folder, in_place=True)
    assert folders.contents(folder) == folders.contents(source)


def test_a_stranger_where_a_file_is_to_be_unpacked(tmp_path):
    source = folders.sharded(tmp_path / "m")
    folders.write(source / "pytorch_model.bin", samples.weights(100_000, "F32"))
    weightpack.pack(source)
    folders.write(tmp_path / "m-wp" / "pytorch_model.bin", "somebody's own")
    refused(tmp_path / "m-wp", OptionError, "is another", weightpack.unpack)


# ---- half-done states


class Stop(BaseException):
    """What stops a job, as a kill does: nothing in the library catches it."""


def in_its_place(folder, verb):
    """Pack or unpack in place; packing changes config.json too."""
    return verb(folder, in_place=True, **({"hf_flag": True} if verb is weightpack.pack else {}))


def stopped(monkeypatch, folder, verb, at):
    """Run a job in place and stop it before its file number `at`; True if it was stopped."""
    name = f"{verb.__name__}_one"
    real, n = getattr(in_place, name), 0

    def one(*arguments, **kwargs):
        nonlocal n
        n += 1
        if n > at:
            raise Stop
        return real(*arguments, **kwargs)

    monkeypatch.setattr(in_place, name, one)
    try:
        in_its_place(folder, verb)
    except Stop:
        return True
    finally:
        monkeypatch.undo()
    return False


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("verb", [weightpack.pack, weightpack.unpack], ids=["pack", "unpack"])
def test_a_half_done_directory_is_known_by_every_command(tmp_path, monkeypatch, verb, at):
    source = folders.sharded(tmp_path / "source", shards=3)
    folder = tmp_path / "m"
    shutil.copytree(source, folder)
    if verb is weightpack.unpack:
        in_its_place(folder, weightpack.pack)
    assert stopped(monkeypatch, folder, verb, at)
    plain = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3) if (i > at) == (verb is weightpack.pack)]
    for call in (lambda: weightpack.pack(folder), lambda: weightpack.estimate(folder)):
        with pytest.raises(OptionError, match=rf"`{verb.__name__} --in-place`\) has not ended: run it again"):
            call()
    with pytest.raises(FolderError, match=rf"`{verb.__name__} --in-place` has not ended") as caught:
        weightpack.verify(folder)
    assert f"plain: {', '.join(map(repr, plain)) or 'none'}" in str(caught.value)
    reports = weightpack.inspect(folder)
    assert [os.path.basename(report.path) for report in reports if report.state == "plain"] == plain
    assert reports.total.unfinished == verb.__name__
    assert reports.total.source_bytes == sum(len(data) for data in folders.contents(source).values())
    weightpack.unpack(folder, tmp_path / "back")
    assert folders.contents(tmp_path / "back") == folders.contents(source)

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    in_its_place(folder, weightpack.pack)
    weightpack.verify(folder, against=source)
    assert "weightpack" in (folder / "config.json").read_text()
    weightpack.unpack(folder, in_place=True)
    assert folders.contents(folder) == folders.contents(source)
    weightpack.unpack(other, in_place=True)
    assert folders.contents(other) == folders.contents(source)


def test_a_job_of_an_earlier_version_is_gone_on_with(tmp_path):
    """Version 1 of the manifest listed shards as they were packed."""
    for verb in (weightpack.pack, weightpack.unpack):
        folder = tmp_path / verb.__name__
        shutil.copytree(GOLDEN / "half", folder)
        with pytest.raises(FolderError, match="plain: 'model-00002-of-00002"):
            weightpack.verify(folder)
        with pytest.raises(OptionError, match="has not ended"):
            weightpack.pack(folder, tmp_path / "x")
        verb(folder, in_place=True)
        if verb is weightpack.pack:
            weightpack.verify(folder)
            assert json.loads((folder / "weightpack.json").read_text())["weightpack_manifest"] == 2
            weightpack.unpack(folder, in_place=True)
        weightpack.unpack(GOLDEN / "packed", tmp_path / "expected", overwrite=True)
        assert folders.contents(folder) == folders.contents(tmp_path / "expected")


# ---- failing disks


CALLS = ("write", "pwrite", "fsync", "replace", "rename", "unlink", "link", "open", "mkdir", "ftruncate")


def failing(monkeypatch, calls, at, code):
    """Let call number `at` of these functions of `os` fail; return a counter."""
    n = [0]

    def wrap(name):
        real = getattr(os, name)

        def call(*arguments, **kwargs):
            n[0] += 1
            if n[0] == at:
                raise OSError(code, os.strerror(code), str(arguments[0]))
            return real(*arguments, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, wrap(name))
    return n


def count(monkeypatch, folder, verb):
    n = failing(monkeypatch, CALLS, 0, 0)
    in_its_place(folder, verb)
    monkeypatch.undo()
    return n[0]


@pytest.mark.parametrize("code", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.long)])
@pytest.mark.parametrize("verb", [weightpack.pack, weightpack.unpack], ids=["pack", "unpack"])
def test_each_failing_call_leaves_a_state_that_is_gone_on_from(tmp_path, monkeypatch, verb, code):
    source, start = folders.sharded(tmp_path / "source", n=400), tmp_path / "start"
    if verb is weightpack.pack:
        shutil.copytree(source, start)
    else:
        folders.write(source / "old.bin", samples.weights(20_000, "F32"))  # of another name when packed
        weightpack.pack(source, start, hf_flag=True)
    whole = folders.contents(source)
    shutil.copytree(start, tmp_path / "count")
    calls, failed = count(monkeypatch, tmp_path / "count", verb), 0
    assert calls > 20
    for at in range(1, calls + 1):
        folder = tmp_path / "m"
        shutil.copytree(start, folder)
        failing(monkeypatch, CALLS, at, code)
        try:
            in_its_place(folder, verb)
        except OSError as error:
            failed += 1
            assert error.errno == code
        finally:
            monkeypatch.undo()
        if (folder / "weightpack.json").exists():
            weightpack.unpack(folder, tmp_path / "beside")
            assert folders.contents(tmp_path / "beside") == whole, at
            shutil.rmtree(tmp_path / "beside")
        shutil.copytree(folder, tmp_path / "again")
        again = tmp_path / "again"
        try:
            in_its_place(again, verb)  # goes on, or it is done
        except OptionError as error:
            assert "packed already" in str(error) or "not a packed directory" in str(error)
        if verb is weightpack.pack:
            weightpack.verify(again, against=source)
            assert weightpack.inspect(again).total.unfinished is None
        else:
            assert folders.contents(again) == whole, at
        shutil.rmtree(again)
        if (folder / "weightpack.json").exists():
            weightpack.unpack(folder, in_place=True)
        assert {name: data for name, data in folders.contents(folder).items() if not name.endswith(".wp-partial")} == whole, at
        shutil.rmtree(folder)
    assert failed > calls // 2


@pytest.mark.parametrize("back", [True, False], ids=["the opposite job", "the same job"])
@pytest.mark.parametrize("verb", [weightpack.pack, weightpack.unpack], ids=["pack", "unpack"])
def test_what_a_killed_job_was_writing_does_not_stay(tmp_path, verb, back):
    """It is as large as a shard, and hidden."""
    source, folder = folders.sharded(tmp_path / "source"), tmp_path / "m"
    if verb is weightpack.pack:
        shutil.copytree(source, folder)
    else:
        weightpack.pack(source, folder)
    folders.write(folder / ".model-00001-of-00002.safetensors.0123456789abcdef.wp-partial", b"half a shard")
    weightpack.pack(source, tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "weightpack.json").read_text())
    folders.write(folder / "weightpack.json", json.dumps({**manifest, "in_place": verb.__name__}))
    other = weightpack.unpack if verb is weightpack.pack else weightpack.pack
    (other if back else verb)(folder, in_place=True)
    assert not [name for name in folders.contents(folder) if "partial" in name]


def test_the_manifest_that_holds_a_private_config_is_as_private(tmp_path):
    source = folders.sharded(tmp_path / "m")
    (source / "config.json").chmod(0o600)
    weightpack.pack(source, tmp_path / "packed", hf_flag=True)
    weightpack.pack(source, in_place=True, hf_flag=True)
    for folder in (source, tmp_path / "packed"):
        assert "original" in (folder / "weightpack.json").read_text()
        assert (folder / "weightpack.json").stat().st_mode & 0o077 == 0
