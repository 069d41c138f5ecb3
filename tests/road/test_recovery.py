# SPDX-License-Identifier: Apache-2.0
"""Processes that die, disks that are full, two that want the same: sources and old targets stay whole, nothing half has a final name, a second run does it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import samples

import weightpack
from weightpack.errors import LosslessError, OptionError
from weightpack.io import folder as workfolder
from weightpack.io.atomic import AtomicFile
from weightpack.io.working_names import PARTIAL, leftovers, working_name


def command(*arguments):
    return [sys.executable, "-m", "weightpack", *map(str, arguments), "-q"]


def run(*arguments, **kwargs):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, **kwargs)


def model(folder, shards=3, n=1_500_000):
    """A model directory of some shards."""
    folder.mkdir()
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(samples.bf16_file(seed=i, name=f"w{i}", n=n))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(names)}}))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed(arguments, seconds):
    """Run and kill -9 after a while; True if it was killed before it ended."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() != 0


def moments(arguments, undo, kills):
    """Return random moments inside a run, from how long one takes."""
    start = time.perf_counter()
    assert run(*arguments).returncode == 0
    seconds = time.perf_counter() - start
    undo()
    rng = random.Random(1)
    return [seconds * rng.uniform(0.2, 1) for _ in range(kills)]


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("what", ["file", "directory"])
@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_killed_at_random_moments(tmp_path, kills, what, verb):
    plain = model(tmp_path / "plain")
    source = plain if what == "directory" else plain / "model-00001-of-00003.safetensors"
    if verb == "unpack":
        source = Path(weightpack.pack(source, tmp_path / ("packed" if what == "directory" else "packed.safetensors")).target)
    before, target = contents(tmp_path), tmp_path / "target"
    arguments = (verb, source, "-o", target)

    def undo():
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)

    for seconds in moments(arguments, undo, kills):
        if killed(arguments, seconds):
            assert {name: data for name, data in contents(tmp_path).items() if not name.startswith((".target", "target"))} == before
        if not target.exists():
            done = run(*arguments)
            assert done.returncode == 0, done.stderr
        assert not hidden(tmp_path)
        packed, original = (target, source) if verb == "pack" else (source, target)
        weightpack.verify(packed, against=original)
        undo()


def test_old_target_survives_a_kill(tmp_path, kills):
    """Each of its files is the old one or the new one, whole; those that have other names stay."""
    source = model(tmp_path / "plain")
    target = tmp_path / "target"
    arguments = ("pack", source, "-o", target, "--force")
    old = model(tmp_path / "old", shards=1)
    new = contents(Path(weightpack.pack(source, tmp_path / "new").target))
    shutil.copytree(old, target)

    def undo():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(old, target)

    for seconds in moments(arguments, undo, kills):
        killed(arguments, seconds)
        now = {name: data for name, data in contents(target).items() if PARTIAL not in name}
        assert all(data in (contents(old).get(name), new.get(name)) for name, data in now.items())
        assert now.keys() >= contents(old).keys()
        assert run(*arguments).returncode == 0
        assert contents(target) == {**contents(old), **new}
        assert not hidden(target)
        undo()


def test_a_killed_directory_goes_on_at_its_shard(tmp_path):
    source = model(tmp_path / "plain", shards=4)
    target = tmp_path / "target"
    process = subprocess.Popen(command("pack", source, "-o", target), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finished = set()
    while len(finished) < 2 and process.poll() is None:
        finished = {path.name for path in tmp_path.glob(f".target.*.{PARTIAL}/model-*")}
        time.sleep(0.001)
    process.kill()
    assert process.wait() != 0
    finished = {path.name for path in tmp_path.glob(f".target.*.{PARTIAL}/model-*")}
    assert finished
    worked_on = set()
    weightpack.pack(source, target, progress=lambda path, *_: worked_on.add(Path(path).name))
    assert worked_on == {path.name for path in source.glob("*.safetensors")} - finished
    weightpack.verify(target, against=source)
    assert contents(target) == contents(Path(weightpack.pack(source, tmp_path / "at once").target))
    assert not hidden(tmp_path)


def test_leftovers_of_another_job_or_a_changed_source_are_not_used(tmp_path):
    source = model(tmp_path / "plain", shards=2, n=300_000)
    target = tmp_path / "target"

    def leave(options):
        """Die as by kill -9 after the first shard: in a child, without cleaning up."""
        if os.fork() == 0:
            try:
                weightpack.pack(source, target, options=options, progress=lambda path, done, total: os._exit(1) if "00002" in path else None)
            finally:
                os._exit(0)
        os.wait()
        assert len(hidden(tmp_path)) == 1

    leave(weightpack.load_profile())
    worked_on = set()
    weightpack.pack(source, target, options=weightpack.load_profile("thorough"), progress=lambda path, *_: worked_on.add(Path(path).name))
    assert len(worked_on) == 2
    shutil.rmtree(target)
    leave(weightpack.load_profile())
    (source / "model-00001-of-00002.safetensors").write_bytes(samples.bf16_file(seed=9, name="w0", n=300_000))
    worked_on = set()
    weightpack.pack(source, target, progress=lambda path, *_: worked_on.add(Path(path).name))
    assert len(worked_on) == 2
    weightpack.verify(target, against=source)


def test_a_living_process_keeps_its_file(tmp_path):
    with AtomicFile(tmp_path / "target") as first:
        first.write_at(0, b"first")
        assert not list(leftovers(tmp_path / "target"))
        with AtomicFile(tmp_path / "target") as second:
            assert first.path.exists()
            second.write_at(0, b"second")
            second.commit()
        with pytest.raises(OptionError, match="meanwhile"):
            first.commit()
    assert (tmp_path / "target").read_bytes() == b"second"
    assert not hidden(tmp_path)


def test_a_dead_process_s_file_is_removed(tmp_path):
    dead = working_name(tmp_path / "target")
    dead.write_bytes(b"half")
    other = working_name(tmp_path / "another")
    other.write_bytes(b"not mine")
    with AtomicFile(tmp_path / "target") as file:
        file.commit()
    assert not dead.exists()
    assert other.exists()


def test_folder_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    opened = []

    def open_folder(path):
        if not opened:
            path.rmdir()  # as another process does that starts at this moment
        opened.append(path)
        return really(path)

    really = workfolder._open_folder
    monkeypatch.setattr(workfolder, "_open_folder", open_folder)
    source = model(tmp_path / "plain", shards=1, n=10_000)
    weightpack.pack(source, tmp_path / "packed")
    weightpack.verify(tmp_path / "packed", against=source)
    assert opened[0] == opened[1]


def test_two_processes_for_one_target(tmp_path):
    source = model(tmp_path / "plain")
    for arguments in (("pack", source, "-o", tmp_path / "target"), ("pack", source / "model-00001-of-00003.safetensors", "-o", tmp_path / "one.safetensors")):
        processes = [subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        errors = [process.communicate(timeout=300)[1] for process in processes]
        codes = sorted(process.returncode for process in processes)
        assert codes in ([0, 0], [0, 2]), errors
        weightpack.verify(arguments[3], against=arguments[1])
        assert not hidden(tmp_path)


def limited(n_bytes):
    def limit():
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return limit


def test_a_file_that_cannot_be_finished(tmp_path):
    """The system refuses to write more (as a full disk does; a real one is below)."""
    source = model(tmp_path / "plain")
    packed = weightpack.pack(source, tmp_path / "packed").target
    before = contents(tmp_path)
    for arguments in (("pack", source, "-o", tmp_path / "target"), ("unpack", packed, "-o", tmp_path / "target"), ("pack", source, "--in-place")):
        done = run(*arguments, preexec_fn=limited(500_000))
        assert done.returncode == 3, done.stderr
        assert len(done.stderr.splitlines()) == 1
        now = contents(tmp_path)
        now.pop("plain/weightpack.json", None)  # in place: written before the first shard
        changed = [name for name in before if now.get(name) != before[name]]
        assert changed in ([], ["plain/config.json"])
        assert not hidden(tmp_path)


@contextlib.contextmanager
def mounted(folder, options):
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("a disk can't be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk_and_read_only_disk(tmp_path):
    source = model(tmp_path / "plain")
    packed = weightpack.pack(source, tmp_path / "packed").target
    disk = tmp_path / "disk"
    with mounted(disk, "size=3m"):
        for arguments in (("pack", source, "-o", disk / "target"), ("unpack", packed, "-o", disk / "target")):
            done = run(*arguments)
            assert done.returncode == 3, done.stderr
            assert "No space left" in done.stderr
            assert str(disk / "target") in done.stderr or str(disk / ".target") in done.stderr, done.stderr  # the file, not only that a disk is full
            assert list(disk.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = run("pack", source, "-o", disk / "target")
        assert done.returncode == 3
        assert "Read-only" in done.stderr
    weightpack.verify(packed, against=source)


# ---- in place


def test_in_place(tmp_path):
    source = model(tmp_path / "plain")
    (source / "model-00001-of-00003.safetensors").chmod(0o640)
    before = contents(source)
    assert run("pack", source, "--in-place").returncode == 0
    after = contents(source)
    assert after["config.json"] == before["config.json"]
    assert all(len(after[name]) < 0.7 * len(before[name]) for name in before if name.endswith(".safetensors"))
    assert (source / "model-00001-of-00003.safetensors").stat().st_mode & 0o777 == 0o640
    assert "packed already" in run("pack", source, "--in-place").stderr
    assert contents(Path(weightpack.unpack(source, tmp_path / "beside").target)) == before
    assert run("unpack", source, "--in-place").returncode == 0
    assert contents(source) == before

    file = source / "model-00002-of-00003.safetensors"
    assert run("pack", file, "--in-place").returncode == 0
    assert file.stat().st_size < len(before[file.name])
    assert run("unpack", file, "--in-place").returncode == 0
    assert contents(source) == before
    assert not hidden(source)


def test_in_place_killed_and_run_again(tmp_path, kills):
    source = model(tmp_path / "plain")
    before = contents(source)

    def undo():
        weightpack.unpack(source, in_place=True)
        assert contents(source) == before

    for seconds in moments(("pack", source, "--in-place"), undo, kills):
        if killed(("pack", source, "--in-place"), seconds) and (source / "weightpack.json").exists():
            assert contents(Path(weightpack.unpack(source, tmp_path / "beside", overwrite=True).target)) == before
        done = run("pack", source, "--in-place")
        assert done.returncode == 0 or "packed already" in done.stderr, done.stderr
        assert not hidden(source)
        weightpack.verify(source)
        if killed(("unpack", source, "--in-place"), seconds) and (source / "weightpack.json").exists():
            assert run("unpack", source, "--in-place").returncode == 0
        assert contents(source) == before
        assert not hidden(source)


def test_a_killed_job_in_place_flags_the_config_once(tmp_path):
    source = model(tmp_path / "plain", shards=2, n=300_000)
    before = contents(source)
    if os.fork() == 0:
        try:
            weightpack.pack(source, in_place=True, hf_flag=True, progress=lambda *_: os._exit(1))  # the config is written, no weights are
        finally:
            os._exit(0)
    os.wait()
    assert contents(source)["config.json"] != before["config.json"]
    assert contents(source)["model-00001-of-00002.safetensors"] == before["model-00001-of-00002.safetensors"]
    weightpack.pack(source, in_place=True, hf_flag=True)
    assert json.loads(contents(source)["config.json"])["quantization_config"] == {"quant_method": "weightpack", "inner": None}
    weightpack.unpack(source, in_place=True)
    assert contents(source) == before


def test_delete_source(tmp_path):
    source = model(tmp_path / "plain")
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("kept: not part of the model")
    before = contents(source)
    before.pop(".git/HEAD")
    assert run("pack", source, "-o", tmp_path / "packed", "--delete-source").returncode == 0
    assert contents(source) == {".git/HEAD": b"kept: not part of the model"}
    assert run("unpack", tmp_path / "packed", "-o", tmp_path / "back", "--delete-source").returncode == 0
    assert contents(tmp_path / "back") == before
    assert not (tmp_path / "packed").exists()
    file = tmp_path / "back" / "model-00001-of-00003.safetensors"
    assert run("pack", file, "--delete-source").returncode == 0
    assert not file.exists()
    assert run("unpack", file.with_name("model-00001-of-00003.wp.safetensors"), "--delete-source").returncode == 0
    assert contents(tmp_path / "back") == before


def test_nothing_is_given_away_unproven(tmp_path, monkeypatch):
    source = model(tmp_path / "plain", n=300_000)
    before = contents(source)
    for flag in ("--in-place", "--delete-source"):
        assert "no-verify" in run("pack", source, flag, "--no-verify").stderr
    assert run("pack", source, "--in-place", "--delete-source").returncode == 2
    assert run("pack", source, "--in-place", "-o", tmp_path / "x").returncode == 2
    link = tmp_path / "link.safetensors"
    link.symlink_to(source / "model-00001-of-00003.safetensors")
    for flag in ("--in-place", "--delete-source"):
        assert "link" in run("pack", link, flag).stderr
    assert contents(source) == before
    # What is written is damaged on its way to the disk: the comparison must see it.
    write_at = AtomicFile.write_at
    monkeypatch.setattr(AtomicFile, "write_at", lambda self, offset, data: write_at(self, offset, bytes([bytes(data)[0] ^ 1]) + bytes(data)[1:]))
    with pytest.raises((LosslessError, weightpack.WeightpackError)):
        weightpack.pack(source / "model-00001-of-00003.safetensors", in_place=True)
    monkeypatch.undo()
    assert contents(source) == before
    weightpack.pack(source, in_place=True)
    packed = contents(source)
    monkeypatch.setattr(AtomicFile, "write_at", lambda self, offset, data: write_at(self, offset, bytes([bytes(data)[0] ^ 1]) + bytes(data)[1:]))
    with pytest.raises(weightpack.WeightpackError):
        weightpack.unpack(source / "model-00001-of-00003.safetensors", in_place=True)
    monkeypatch.undo()
    assert contents(source) == packed
