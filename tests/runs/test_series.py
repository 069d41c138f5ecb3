# SPDX-License-Identifier: Apache-2.0
"""A run's checkpoints, packed in place as deltas: listed, restored byte for byte, deleted under their successors, killed while they are packed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the checkpoints are PyTorch's own")

import safetensors.torch
import series_run
import torch

from weightpack import series
from weightpack.errors import BaseNotFoundError, FormatError, OptionError, TruncatedError
from weightpack.models.jobs import Job
from weightpack.runs.store import stored_files

PACKED = ("model.safetensors", "optimizer.pt")


def command(*arguments):
    return [sys.executable, "-m", "weightpack", "series", *map(str, arguments)]


def call(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoints(run):
    """Return what is in each checkpoint."""
    return {path.name: contents(path) for path in sorted(run.glob("checkpoint-*"))}


def hidden(run):
    return [path for path in run.rglob(".*") if path.name != ".gitignore"]


def depths(run):
    return [each.depth for each in series.series(run).checkpoints]


def same_as(run, before, tmp_path):
    """Assert that every checkpoint that is whole restores to what the trainer wrote; return the others."""
    cut = []
    for each in series.series(run).checkpoints:
        if each.problem is not None:
            cut.append(each)
            continue
        shutil.rmtree(tmp_path / "restored", ignore_errors=True)
        series.restore(run, each.step, tmp_path / "restored", Job())
        assert contents(tmp_path / "restored") == before[Path(each.path).name], each
    return cut


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A plain run of eight checkpoints."""
    return series_run.plain(tmp_path_factory.mktemp("trained") / "run", 8)


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_pack_list_verify_restore(run, tmp_path):
    before = checkpoints(run)
    assert all(each.problem is None and each.resumable and not each.is_packed for each in series.series(run).checkpoints)
    done = call(run, "--pack", "--anchor-every", 3)
    assert done.returncode == 0, done.stderr
    assert depths(run) == [0, 1, 2, 0, 1, 2, 0, 1]
    found = json.loads(call(run, "--json").stdout)
    assert [each["base_step"] for each in found["checkpoints"]] == [None, 1, 2, None, 4, 5, None, 7]
    assert found["store_bytes"] == 0
    for each in found["checkpoints"]:
        assert each["packed_bytes"] < 0.95 * each["source_bytes"]
        assert {file["name"] for file in each["files"]} == set(PACKED)
    text = call(run).stdout
    assert re.search(r"8 .* delta to 7 +1  complete", text), text
    assert re.search(r"\n +all .*%\n", text), text
    assert call(run, "--verify").stdout.count("ok: ") == 16
    done = call(run, "--restore", 6, "-o", tmp_path / "six")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "six") == before["checkpoint-6"]
    assert same_as(run, before, tmp_path) == []
    assert not hidden(run)
    now = contents(run)
    assert call(run, "--pack").returncode == 0
    assert contents(run) == now


def test_a_delta_is_smaller(run, tmp_path):
    """Weights move little between checkpoints: that is what deltas are for."""
    whole = shutil.copytree(run, tmp_path / "whole")
    series.pack_run(run, Job())
    series.pack_run(whole, Job(), anchor_every=1)
    assert depths(whole) == [0] * 8
    assert depths(run) == list(range(8))
    sizes = [sum((folder / f"checkpoint-{step}" / "model.safetensors").stat().st_size for step in range(2, 9)) for folder in (run, whole)]
    assert sizes[0] < 0.9 * sizes[1]


def test_plain_checkpoints_are_left_to_one_who_asks(run):
    """A trainer that begins to pack in the middle of a run does not touch what was there."""
    before = checkpoints(run)
    assert series.pack_run(run, Job(), unfinished=True) == []
    series.pack_checkpoint(run, 6, Job())
    assert {name for name, now in checkpoints(run).items() if now != before[name]} == {"checkpoint-6"}
    series.pack_run(run, Job(), unfinished=True, last=7)
    assert {name for name, now in checkpoints(run).items() if now != before[name]} == {"checkpoint-6", "checkpoint-7"}


def test_oldest_are_deleted(run, tmp_path):
    """`save_total_limit`: what a living delta stands on stays in the store, and goes when nobody stands on it."""
    before = checkpoints(run)
    limit, stored = 2, []
    for step in range(1, 7):
        if step > limit:
            shutil.rmtree(run / f"checkpoint-{step - limit}")  # as the trainer does, before it calls callbacks
        series.pack_checkpoint(run, step, Job(), anchor_every=3)
        stored.append(len(stored_files(run)) // 2)
    assert stored == [1, 2, 3, 4, 2, 3]
    for step in (7, 8):
        shutil.rmtree(run / f"checkpoint-{step}")
    assert depths(run) == [1, 2]
    assert series.series(run).store_bytes > 0
    assert "deleted" in call(run).stdout
    assert same_as(run, before, tmp_path) == []
    shutil.rmtree(run / "checkpoint-5")
    assert series.series(run).checkpoints[0].base_step == 5
    assert "delta to 5 " in call(run).stdout
    assert same_as(run, before, tmp_path) == []
    shutil.rmtree(run / "checkpoint-6")
    series.collect(run)
    assert stored_files(run) == []


def test_one_checkpoint_at_a_time(run, tmp_path):
    """`save_total_limit=1`: the one before is deleted when the next one comes to be packed, and is its base all the same."""
    before, seen = checkpoints(run), []
    later = shutil.move(run, tmp_path / "later")
    run.mkdir()
    for step in range(1, 9):
        shutil.rmtree(run / f"checkpoint-{step - 1}", ignore_errors=True)
        shutil.copytree(later / f"checkpoint-{step}", run / f"checkpoint-{step}")
        series.pack_checkpoint(run, step, Job(), anchor_every=3)
        assert same_as(run, before, tmp_path) == []
        seen += [(depths(run)[0], len(stored_files(run)) // 2)]
    assert seen == [(0, 1), (1, 2), (2, 3), (0, 1), (1, 2), (2, 3), (0, 1), (1, 2)]


def test_the_folder_keeps_its_time(run):
    """Trainer deletes the oldest by it."""
    os.utime(run / "checkpoint-3", ns=(10**18, 10**18))
    series.pack_run(run, Job())
    assert (run / "checkpoint-3").stat().st_mtime_ns == 10**18


def test_equal_files_are_stored_once(run, tmp_path):
    """Frozen weights: the same file again is no delta to itself."""
    for step in range(2, 6):
        shutil.copyfile(run / "checkpoint-1" / "model.safetensors", run / f"checkpoint-{step}" / "model.safetensors")
    before = checkpoints(run)
    series.pack_run(run, Job())
    assert len({(run / f"checkpoint-{step}" / "model.safetensors").stat().st_ino for step in range(1, 6)}) == 1
    assert same_as(run, before, tmp_path) == []


def test_no_links(run, tmp_path, monkeypatch):
    """A disk without hard links: the store has copies."""

    def link(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", link)
    before = checkpoints(run)
    series.pack_run(run, Job(), anchor_every=3)
    shutil.rmtree(run / "checkpoint-4")
    series.collect(run)
    assert same_as(run, before, tmp_path) == []
    assert not hidden(run)


def test_sharded_weights(run, tmp_path):
    for step in range(1, 9):
        folder = run / f"checkpoint-{step}"
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for i, name in enumerate(names):
            safetensors.torch.save_file({key: value for j, (key, value) in enumerate(tensors.items()) if j % 2 == i}, folder / name, {"format": "pt"})
        weight_map = {key: names[j % 2] for j, key in enumerate(tensors)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (folder / "model.safetensors").unlink()
    before = checkpoints(run)
    series.pack_run(run, Job())
    assert all(len(each.files) == 3 and each.is_packed for each in series.series(run).checkpoints)
    assert same_as(run, before, tmp_path) == []
    (run / "checkpoint-8" / "model-00002-of-00002.safetensors").unlink()
    assert "shard" in series.series(run).checkpoints[-1].problem


# ---- what is not whole


def cut(name, n_bytes):
    def spoil(folder):
        os.truncate(folder / name, n_bytes)

    return spoil


def delete(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


INCOMPLETE = {
    "no trainer_state.json": (delete("trainer_state.json"), "trainer_state.json is missing"),
    "a cut trainer_state.json": (cut("trainer_state.json", 10), "trainer_state.json is cut"),
    "an empty trainer_state.json": (cut("trainer_state.json", 0), "trainer_state.json is cut"),
    "cut weights": (cut("model.safetensors", 50_000), "model.safetensors is cut"),
    "empty weights": (cut("model.safetensors", 0), "model.safetensors is cut"),
    "a cut optimizer.pt": (cut("optimizer.pt", 50_000), "optimizer.pt is cut"),
    "no optimizer.pt": (delete("optimizer.pt"), "optimizer.pt is missing"),
    "no scheduler.pt": (delete("scheduler.pt"), "scheduler.pt is missing"),
    "no optimizer.pt, no scheduler.pt": (delete("optimizer.pt", "scheduler.pt"), "optimizer.pt is missing"),
    "no weights": (delete("model.safetensors"), "no weights"),
    "of another step": (lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 5}'), "of step 5"),
    "a SIGTERM's": (lambda folder: (folder / "checkpoint-is-incomplete.txt").touch(), "checkpoint-is-incomplete.txt"),
}


@pytest.mark.parametrize("what", INCOMPLETE)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_incomplete_checkpoints_are_seen_and_passed_over(run, what, packed):
    spoil, why = INCOMPLETE[what]
    if packed:
        series.pack_run(run, Job())
    spoil(run / "checkpoint-8")
    before = checkpoints(run)
    with pytest.warns(RuntimeWarning, match=f"checkpoint-8 is passed over: .*{why}"):
        assert series.last_checkpoint(run) == run / "checkpoint-7"
    with pytest.raises(TruncatedError, match="incomplete"):
        series.pack_checkpoint(run, 8, Job())
    with pytest.raises(FormatError):
        series.verify(run, Job())
    series.pack_run(run, Job())
    assert checkpoints(run)["checkpoint-8"] == before["checkpoint-8"]
    assert [each.step for each in series.series(run).checkpoints if each.problem is None] == list(range(1, 8))
    assert "passed over" not in call(run).stderr


def test_checkpoints_without_an_optimizer(run):
    """save_only_model: whole, but training would begin anew."""
    for path in run.iterdir():
        delete("optimizer.pt", "scheduler.pt", "rng_state.pth")(path)
    assert series.last_checkpoint(run, weights_only=True) == run / "checkpoint-8"
    with pytest.warns(RuntimeWarning, match="no state of the optimizer"):
        assert series.last_checkpoint(run) is None
    series.pack_run(run, Job())
    assert all(each.is_packed and len(each.files) == 1 for each in series.series(run).checkpoints)
    assert series.last_checkpoint(run, weights_only=True) == run / "checkpoint-8"


@pytest.mark.parametrize("names", [("global_step8/rank_0_optim_states.pt", "latest"), ("optimizer_0/__0_0.distcp",), ("pytorch_model_fsdp.bin",)])
def test_sharded_state_stays_as_it_is(run, names):
    """DeepSpeed's and FSDP's own files: their loaders know nothing of packed ones. Weights are packed."""
    folder = run / "checkpoint-8"
    shutil.copyfile(folder / "optimizer.pt", folder / "optimizer.bin")
    (folder / "optimizer.pt").unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"theirs")
    before = contents(folder)
    series.pack_checkpoint(run, 8, Job())
    now = contents(folder)
    assert {name for name in before if now[name] != before[name]} == {"model.safetensors"}
    assert series.last_checkpoint(run) == folder


# ---- what goes wrong


def test_a_trainer_that_writes_over_a_packed_checkpoint(trained, run, tmp_path):
    """Resumed at step 4, it saves steps 5 to 8 again. torch.save writes into the file that is there, which is one with the store's."""
    before = checkpoints(run)
    series.pack_run(run, Job())
    series.unshare(run, 4)
    training = series_run.Training(120)
    training.load(trained / "checkpoint-4")
    torch.manual_seed(5)
    for step in (5, 6):
        training.step()
        training.save(run / f"checkpoint-{step}", step)
    again = checkpoints(run)
    expected = {**before, "checkpoint-5": again["checkpoint-5"], "checkpoint-6": again["checkpoint-6"]}
    assert same_as(run, expected, tmp_path) == []
    series.pack_checkpoint(run, 5, Job())
    series.pack_checkpoint(run, 6, Job())
    assert same_as(run, expected, tmp_path) == []
    assert series.series(run).checkpoints[5].base_step == 5


def test_a_lost_base_is_named(run, tmp_path):
    series.pack_run(run, Job())
    shutil.rmtree(run / series.STORE)
    shutil.rmtree(run / "checkpoint-2")
    series.restore(run, 1, tmp_path / "one", Job())
    with pytest.raises(BaseNotFoundError) as error:
        series.restore(run, 3, tmp_path / "three", Job())
    assert re.search(r"[0-9a-f]{64}", str(error.value))
    assert not (tmp_path / "three").exists()
    done = call(run, "--restore", 8, "-o", tmp_path / "eight")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_damage_is_found(run, tmp_path):
    series.pack_run(run, Job())
    path = run / "checkpoint-3" / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-3000] ^= 1
    path.write_bytes(damaged)  # and with it the store's: they are one file
    with pytest.raises(FormatError):
        series.verify(run, Job())
    for step, good in ((2, True), (3, False), (4, False)):
        assert (call(run, "--restore", step, "-o", tmp_path / str(step)).returncode == 0) is good
        assert (tmp_path / str(step)).exists() is good


def test_bad_calls(run, tmp_path):
    for arguments, words in (
        ((tmp_path / "nothing",), "no such directory"), ((run, "--restore", 9, "-o", tmp_path / "x"), "1, 2, 3, 4, 5, 6, 7, 8"), ((run, "--restore", 8), "-o"),
        ((run, "--pack", "--verify"), "one of"), ((run, "--anchor-every", 2), "--pack"), ((run, "--pack", "--anchor-every", 0), "anchor-every"),
        ((run, "--restore", 8, "-o", run / "checkpoint-1"), "exists"), ((run, "--restore", 8, "-o", run, "--force"), "lies in the target"),
        ((run, "--restore", 8, "-o", run / "checkpoint-8", "--force"), "the same"),
    ):  # fmt: skip
        done = call(*arguments)
        assert done.returncode == 2
        assert words in done.stderr
    (tmp_path / "empty").mkdir()
    assert "no checkpoints" in call(tmp_path / "empty").stdout
    for step in (9, 1):
        with pytest.raises(OptionError):
            series.pack_checkpoint(run, step, Job(), anchor_every=step - 1)


def test_a_torch_file_that_is_wanted_plain(run):
    series.pack_run(run, Job())
    folder = run / "checkpoint-8"
    with series.plain_files(folder, ("optimizer",)) as plain:
        assert torch.load(plain / "optimizer.pt", weights_only=True)["state"]
        assert (plain / "scheduler.pt").read_bytes() == (folder / "scheduler.pt").read_bytes()
        assert plain.parent == run / series.STORE
    assert not plain.exists()
    with series.plain_files(folder, ("pytorch_model",)) as plain:
        assert plain == folder


# ---- killed


def test_killed_at_random_moments(run, tmp_path, kills):
    before = checkpoints(run)
    keep = shutil.copytree(run, tmp_path / "keep")
    start = time.perf_counter()
    assert call(run, "--pack").returncode == 0
    seconds, rng, killed = time.perf_counter() - start, random.Random(1), 0
    for _ in range(kills):
        shutil.rmtree(run)
        shutil.copytree(keep, run)
        for _ in range(2):  # a killed one is killed again
            process = subprocess.Popen(command(run, "--pack"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(seconds * rng.uniform(0.2, 1))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
            process.wait()
            assert same_as(run, before, tmp_path) == []
        done = call(run, "--pack")
        assert done.returncode == 0, done.stderr
        assert depths(run) == list(range(8))
        assert not hidden(run)
        assert {path.name for path in (run / series.STORE).iterdir()} == {"README", "lock", "steps.json", *(path.name for path in stored_files(run))}
        assert len(stored_files(run)) == 16
        assert same_as(run, before, tmp_path) == []
    print(f"{killed} kills")


@pytest.mark.long
def test_a_training_run_killed_at_random_moments(trained, tmp_path, kills):
    """Trains, deletes the oldest, packs. Whenever it is killed: what was packed restores, at most the newest is lost, and the run comes to the same end."""
    before, rng, run = checkpoints(trained), random.Random(2), tmp_path / "run"
    lost = killed = 0
    for _ in range(max(1, kills // 3)):
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        ended, newest, patience = False, 0, 1.5
        while not ended:
            process = subprocess.Popen([sys.executable, series_run.__file__, str(run), "8", "3"], stdout=subprocess.PIPE, text=True)
            assert process.stdout.readline() == "begin\n"
            try:
                process.wait(rng.uniform(0, patience))
            except subprocess.TimeoutExpired:
                process.kill()
                killed, patience = killed + 1, patience + 0.2  # on a slow machine too it comes to an end
            ended = process.stdout.read() == "end\n"
            process.wait()
            process.stdout.close()
            incomplete = same_as(run, before, tmp_path)
            whole = [each.step for each in series.series(run).checkpoints if each.problem is None]
            assert len(incomplete) <= 1
            assert all(each.step > max(whole, default=0) for each in incomplete)
            assert max(whole, default=0) >= newest
            newest, lost = max(whole, default=0), lost + len(incomplete)
        assert whole == [6, 7, 8]
        assert all(each.is_packed for each in series.series(run).checkpoints)
        assert not hidden(run)
    print(f"{killed} kills, {lost} of them while a checkpoint was saved")


def test_two_processes_pack_one_run(run, tmp_path):
    before = checkpoints(run)
    processes = [subprocess.Popen(command(run, "--pack"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert same_as(run, before, tmp_path) == []
    assert len(stored_files(run)) == 16
    assert not hidden(run)
