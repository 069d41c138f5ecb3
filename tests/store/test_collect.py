# SPDX-License-Identifier: Apache-2.0
"""What no model needs is removed, and nothing else: whoever is at work, and whoever was killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from folders import contents
from stores import model, restored, some_weights, steps

from weightpack import Store
from weightpack.errors import FormatError, LosslessError, OptionError
from weightpack.store import leases
from weightpack.store.models import manifest_path


def objects(store):
    return sorted(path.stem for path in Path(store.url, "objects").rglob("*.safetensors"))


def test_a_removed_model_is_collected(store, tmp_path):
    base = some_weights()
    store.add(model(tmp_path / "base", base))
    needed = objects(store)
    store.add(model(tmp_path / "tuned", steps(base, 10)))
    assert store.gc().objects == 0
    store.rm("base")
    assert [ref.name for ref in store.ls()] == ["tuned"]
    assert store.gc().objects == 0  # what differs from it needs it
    assert contents(tmp_path / "tuned") == contents(restored(store, "tuned", tmp_path / "again"))
    store.rm("tuned")
    assert store.gc(dry_run=True).objects == 2 and needed[0] in objects(store)
    assert store.gc().objects == 2 and objects(store) == []
    with pytest.raises(OptionError, match="no model"):
        store.rm("tuned")
    store.verify()


def test_nothing_is_removed_while_somebody_adds(store, tmp_path, monkeypatch):
    pack = store._pack_units

    def collect_and_pack(units, tell):
        for packed in pack(units, tell):
            with pytest.raises(OptionError, match="at work"):
                Store(store.url).gc()
            yield packed

    monkeypatch.setattr(store, "_pack_units", collect_and_pack)
    ref = store.add(model(tmp_path / "base", some_weights()))
    assert store.verify([ref]).objects == 1
    assert store.gc().objects == 0


def test_who_adds_waits_for_gc(store, tmp_path):
    with leases.collecting(store._storage):
        adder = threading.Thread(target=store.add, args=(model(tmp_path / "base", some_weights()),))
        adder.start()
        time.sleep(0.5)
        assert objects(store) == [] and adder.is_alive()
        with pytest.raises(OptionError, match="at work"):
            store.gc()
    adder.join()
    store.verify(["base"])


def test_the_lease_of_a_killed_adder_lapses(store, tmp_path):
    code = "import os, sys\nfrom weightpack.store import leases, storage\nwith leases.adding(storage.open_storage(sys.argv[1])):\n    os.kill(os.getpid(), 9)\n"
    subprocess.run([sys.executable, "-c", code, store.url], timeout=60)
    assert len(list(Path(store.url, "leases").iterdir())) == 1
    store.gc()
    assert list(Path(store.url, "leases").iterdir()) == []


def test_who_lost_the_lease_adds_nothing(store, tmp_path, monkeypatch):
    pack = store._pack_units

    def lose_and_pack(units, tell):
        for path in Path(store.url, "leases").iterdir():
            path.unlink()
        return pack(units, tell)

    monkeypatch.setattr(store, "_pack_units", lose_and_pack)
    with pytest.raises(LosslessError, match="not heard of"):
        store.add(model(tmp_path / "base", some_weights()))
    assert store.ls() == []
    monkeypatch.undo()


def test_older_generations_are_removed(store, tmp_path):
    store.add(model(tmp_path / "base", some_weights()))
    first = Path(store.url, manifest_path("base", 0))
    Path(store.url, manifest_path("base", 1)).write_bytes(first.read_bytes())
    store.gc()
    assert not first.exists()
    assert store.verify(["base"]).models == 1


def test_a_damaged_manifest_stops_gc(store, tmp_path):
    store.add(model(tmp_path / "base", some_weights()))
    path = Path(store.url, manifest_path("base", 0))
    path.write_bytes(path.read_bytes()[:-5])
    before = objects(store)
    with pytest.raises(FormatError):
        store.gc()
    assert objects(store) == before
    store.rm("base")
    assert store.gc().objects == 1


def test_objects_that_are_half_empty_are_repacked(store, tmp_path):
    """Of a model that is removed, another needs one tensor of ten: the rest goes."""
    base = some_weights(n=10)
    store.add(model(tmp_path / "base", base))
    store.add(model(tmp_path / "shares", {"w": base["layer.3.weight"]}))
    store.add(model(tmp_path / "differs", steps({"w": base["layer.3.weight"]}, 10)))
    store.rm("base")
    before = store.stored_bytes()
    assert store.gc().repacked == 1
    assert store.gc().objects == 1
    assert store.stored_bytes() < before / 3
    for name in ("shares", "differs"):
        assert contents(tmp_path / name) == contents(restored(store, name, tmp_path / "again"))
    assert store.verify(["shares", "differs"]).objects == 2
    assert (store.gc().objects, store.gc().repacked) == (0, 0)
    assert store.add(tmp_path / "shares", "other").new_tensors == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_rebase(store, tmp_path, depth):
    tensors = some_weights()
    for step in range(4):
        store.add(model(tmp_path / f"step{step}", tensors))
        tensors = steps(tensors, 10 * step + 10)
    commit = store.manifest("step3").commit
    assert store.rebase(["step3"], depth=depth) == 3
    assert {placed.depth for placed in store.manifest("step3").own_items.values()} == {depth}
    assert store.rebase(["step3"], depth=depth) == 0
    assert store.manifest("step3").commit == commit
    for step in range(4):
        assert contents(tmp_path / f"step{step}") == contents(restored(store, f"step{step}", tmp_path / "again"))
    store.verify([f"step{step}" for step in range(4)])
    assert store.gc().objects == 1  # what step3 was before
    store.rebase(depth=depth)
    assert all(placed.depth <= depth for manifest in store.manifests().values() for placed in manifest.own_items.values())
    store.gc()
    store.verify([f"step{step}" for step in range(4)])


def test_export(store, tmp_path):
    for name in ("me/one", "two"):
        store.add(model(tmp_path / name, some_weights(len(name))), name)
    targets = store.export(tmp_path / "out")
    assert targets == [tmp_path / "out" / "me" / "one", tmp_path / "out" / "two"]
    for name in ("me/one", "two"):
        assert contents(tmp_path / name) == contents(tmp_path / "out" / name)
    assert store.export(tmp_path / "out", ["two"]) == targets[1:]


def killed_after(arguments, seconds):
    """Run the program and kill it after a while."""
    process = subprocess.Popen([sys.executable, "-m", "weightpack", "store", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def test_killed_at_random_moments(store, tmp_path, kills):
    """`add` and `gc` of models that share and differ: whatever was killed, what is added is whole, and the next run ends as if nothing had been."""
    rng, base = random.Random(5), some_weights(n=6)
    folders = [model(tmp_path / "base", base, "F32"), model(tmp_path / "tuned", steps(base, 10), "F32"), model(tmp_path / "other", some_weights(60, 6), "F32")]
    start = time.perf_counter()
    store.add(folders[0])
    subprocess.run([sys.executable, "-m", "weightpack", "store", "ls", store.url], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    n_killed = 0
    for _ in range(max(1, kills // 2)):
        folder = rng.choice(folders)
        n_killed += killed_after(["add", store.url, str(folder)], rng.uniform(0.1, 1.3) * seconds)
        n_killed += killed_after(["gc", store.url], rng.uniform(0.3, 1.2) * seconds)
        n_killed += killed_after(["rebase", store.url], rng.uniform(0.3, 1.2) * seconds)
        names = [ref.name for ref in store.ls()]
        store.verify(names)
        if names and rng.random() < 0.5:
            store.rm(rng.choice(names))
    for folder in folders:
        store.add(folder)
        assert contents(folder) == contents(restored(store, folder.name, tmp_path / "again"))
    store.gc()
    needed = {name for manifest in store.manifests().values() for name in manifest.objects}
    assert set(objects(store)) == needed
    assert not [path for path in Path(store.url).rglob("*") if path.name.endswith(".wp-partial") or path.parent.name == "leases"]
    assert os.listdir(tmp_path / "store")
    print(f"{n_killed} kills")
