# SPDX-License-Identifier: Apache-2.0
"""A run's store and limits: what others put there is not followed, and what the job's limits do not allow is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from pathlib import Path

import pytest
import samples

from weightpack import series
from weightpack.errors import LimitError, OptionError
from weightpack.models.jobs import Job
from weightpack.options import Limits
from weightpack.runs.store import make_store, stored_file, stored_files, stored_steps

AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files to others")
STRANGER = 54321
WEIGHTS = "model.safetensors"


def make_run(folder, steps=4):
    """A run whose weights move little from step to step."""
    data, rng = bytearray(samples.bf16_file(seed=1, name="w", n=50_000)), random.Random(1)
    for step in range(1, steps + 1):
        for _ in range(200):
            data[rng.randrange(1000, len(data))] ^= 1
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / WEIGHTS).write_bytes(data)
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def depths(run):
    return [each.depth for each in series.series(run).checkpoints]


# ---- limits


def test_limits_are_those_of_the_job_when_a_checkpoint_is_restored(run, tmp_path):
    before = contents(run / "checkpoint-3")
    series.pack_run(run, Job())
    assert depths(run) == [0, 1, 2, 3]
    for limits, words in ((Limits(max_depth=1), "chain"), (Limits(max_source_bytes=50_000), "100")):
        with pytest.raises(LimitError, match=words):
            series.restore(run, 3, tmp_path / "three", Job(limits=limits))
        assert not (tmp_path / "three").exists()
        with pytest.raises(LimitError, match=words):
            series.verify(run, Job(limits=limits))
    series.restore(run, 3, tmp_path / "three", Job(limits=Limits(max_depth=2)))
    assert contents(tmp_path / "three") == before


def test_limits_are_those_of_the_job_when_a_checkpoint_is_packed(run, tmp_path):
    whole, short = (Path(shutil.copytree(run, tmp_path / name)) for name in ("whole", "short"))
    series.pack_run(short, Job(limits=Limits(max_depth=1)))
    assert depths(short) == [0, 1, 0, 1]
    series.pack_checkpoint(whole, 1, Job())
    series.pack_checkpoint(whole, 2, Job(limits=Limits(max_source_bytes=50_000)))  # the base is beyond them: it is not opened
    assert depths(whole)[:2] == [0, 0]
    series.pack_checkpoint(run, 1, Job())
    shutil.copyfile(run / "checkpoint-1" / WEIGHTS, run / "checkpoint-2" / WEIGHTS)
    with pytest.raises(LimitError, match="100"):
        series.pack_checkpoint(run, 2, Job(limits=Limits(max_source_bytes=50_000)))


def test_what_is_stored_already_is_opened_within_the_limits(run):
    """The bytes of another checkpoint again: they are compared with what the store restores to."""
    shutil.copyfile(run / "checkpoint-1" / WEIGHTS, run / "checkpoint-2" / WEIGHTS)
    series.pack_checkpoint(run, 1, Job())
    before = contents(run / "checkpoint-2")
    with pytest.raises(LimitError, match="100"):
        series.pack_checkpoint(run, 2, Job(limits=Limits(max_source_bytes=50_000)))
    assert contents(run / "checkpoint-2") == before


def test_options_and_progress_are_those_of_the_job(run):
    seen = set()
    series.pack_run(run, Job(progress=lambda path, *_: seen.add(path)))
    assert seen == {str(run / f"checkpoint-{step}" / WEIGHTS) for step in range(1, 5)}


# ---- what is not this run's


def test_a_linked_store_is_not_changed(run, tmp_path):
    """`collect` would delete in what it leads to."""
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in (f"{'0' * 64}.safetensors", "staging-thesis", "steps.json"):
        (precious / name).write_bytes(b"precious")
    (run / series.STORE).symlink_to(precious)
    before, checkpoint = contents(precious), contents(run / "checkpoint-1")
    for change in (
        lambda: series.collect(run), lambda: series.pack_checkpoint(run, 1, Job()), lambda: series.pack_run(run, Job()), lambda: series.unshare(run, 0),
    ):  # fmt: skip
        with pytest.raises(OptionError, match="a link"):
            change()
    assert contents(precious) == before
    assert contents(run / "checkpoint-1") == checkpoint
    assert len(series.series(run).checkpoints) == 4


@AS_ROOT
def test_a_stranger_s_store_is_not_used(run):
    make_store(run)
    os.chown(run / series.STORE, STRANGER, STRANGER)
    for change in (lambda: series.collect(run), lambda: series.pack_checkpoint(run, 1, Job())):
        with pytest.raises(OptionError, match="another user"):
            change()
    os.chown(run, STRANGER, STRANGER)  # the run is theirs too: root packs it for them
    series.pack_checkpoint(run, 1, Job())
    assert depths(run)[0] == 0


def test_a_linked_lock_is_not_opened(run, tmp_path):
    (make_store(run) / "lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="lock"):
        series.pack_checkpoint(run, 1, Job())
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "listed",
    [
        {"1": {WEIGHTS: "../../../precious"}}, {"1": {WEIGHTS: "/etc/passwd"}}, {"1": {WEIGHTS: 5}}, {"1": {WEIGHTS: "a" * 63}}, {"1": {WEIGHTS: "A" * 64}},
        {"1": [1]}, {"-1": {}}, {"1e3": {}}, {"9" * 5000: {}}, [], 5, None, "x",
    ],
    ids=repr,
)  # fmt: skip
def test_what_the_list_of_steps_says_is_no_path(run, tmp_path, listed):
    outside = tmp_path / "precious.safetensors"
    series.pack_checkpoint(run, 1, Job())
    shutil.copyfile(run / "checkpoint-1" / WEIGHTS, outside)  # a packed file, which could be a base
    shutil.rmtree(run / "checkpoint-1")
    (run / series.STORE / "steps.json").write_text(json.dumps(listed))
    assert stored_steps(run) == {}
    series.pack_checkpoint(run, 2, Job())
    assert depths(run)[0] == 0
    assert outside.exists()
    with pytest.raises(Exception, match="no SHA-256"):
        stored_file(run, "../../precious")


@pytest.mark.parametrize("name", ["_weightpack/steps.json", "checkpoint-1/trainer_state.json"])
def test_pipes_and_devices_are_not_read(run, name):
    make_store(run)
    for make in (os.mkfifo, lambda path: path.symlink_to(os.devnull)):
        (run / name).unlink(missing_ok=True)
        make(run / name)
        listed = series.series(run).checkpoints
        assert [each.step for each in listed if each.problem is not None] == ([] if "steps" in name else [1])
    if "steps" not in name:
        assert "trainer_state.json: it is not a regular file" in listed[0].problem
        (run / name).unlink()
        (run / name).mkdir()
        assert "trainer_state.json: it is not a regular file" in series.series(run).checkpoints[0].problem


# ---- modes and times


def test_modes_and_times_stay(run, tmp_path):
    for step, mode in ((1, 0o600), (2, 0o640)):
        path = run / f"checkpoint-{step}" / WEIGHTS
        path.chmod(mode)
        os.utime(path, ns=(10**18 + step, 10**18 + step))
    series.pack_run(run, Job())
    for step, mode in ((1, 0o600), (2, 0o640)):
        series.restore(run, step, tmp_path / str(step), Job())
        for path in (run / f"checkpoint-{step}" / WEIGHTS, tmp_path / str(step) / WEIGHTS):
            assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns) == (mode, 10**18 + step)
    assert len(stored_files(run)) == 4
    series.unshare(run, 0)
    for step, mode in ((1, 0o600), (2, 0o640)):
        path = run / f"checkpoint-{step}" / WEIGHTS
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns, path.stat().st_nlink) == (mode, 10**18 + step, 1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("damaged", [False, True])
def test_a_killed_restore_goes_on(run, tmp_path, monkeypatch, damaged):
    """What it had restored is proven and not restored again, unless it is not what it should be."""
    before, target = contents(run / "checkpoint-4"), tmp_path / "target"
    series.pack_run(run, Job())
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("weightpack.runs.restore.carry_over", lambda *_: os._exit(7))  # after the weights
        try:
            series.restore(run, 4, target, Job())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    (left,) = tmp_path.glob(".target.*")
    assert (left / WEIGHTS).read_bytes() == before[WEIGHTS]
    if damaged:
        (left / WEIGHTS).write_bytes(b"planted")
    worked_on = set()
    result = series.restore(run, 4, target, Job(progress=lambda path, *_: worked_on.add(Path(path).name)))
    assert worked_on == ({WEIGHTS} if damaged else set())
    assert [file.target for file in result.files] == [str(target / WEIGHTS)]
    assert contents(target) == before
    assert not list(tmp_path.glob(".*"))


def test_restore_with_force_keeps_strangers(run, tmp_path):
    """Only files of the names that are written are replaced."""
    series.pack_run(run, Job())
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.tex").write_text("theirs")
    (target / WEIGHTS).write_text("old")
    series.restore(run, 3, target, Job(overwrite=True))
    assert contents(target).keys() == {"thesis.tex", WEIGHTS, "trainer_state.json"}
    for inside in (run, run / "checkpoint-3", run / "checkpoint-3" / "new"):
        before = contents(run)
        with pytest.raises(OptionError, match=r"lies in|the same"):
            series.restore(run, 3, inside, Job(overwrite=True))
        assert contents(run) == before
