# SPDX-License-Identifier: Apache-2.0
"""Models that are added by workers of Ray, some of which are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

ray = pytest.importorskip("ray", reason="scripts/test-store installs Ray and runs this")

from folders import contents  # noqa: E402
from stores import model, packing_what_changed, restored, some_weights, steps  # noqa: E402

from weightpack import Store  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def units_of_one_tensor(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("weightpack.store.add.UNIT_BYTES", 1)
    yield
    ray.shutdown()


def below_this_process(pid):
    """Is a process a descendant of this one?"""
    while pid > 1:
        if pid == os.getpid():
            return True
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return False


def workers():
    """Return this process's workers of Ray that are at work."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if file.read().startswith(b"ray::_packed") and below_this_process(int(name)):
                    found.append(int(name))
    return found


def test_the_same_store_as_without(tmp_path, units_of_one_tensor):
    base = some_weights(n=5)
    folders = [model(tmp_path / "base", base, "F32"), model(tmp_path / "tuned", steps(base, 10), "F32")]
    objects = []
    for name, address in (("alone", None), ("on-ray", "local")):
        store = Store(tmp_path / name, make=True, ray=address)
        for folder in folders:
            store.add(folder)
            assert contents(folder) == contents(restored(store, folder.name, tmp_path / "again"))
        objects.append(sorted(path.name for path in (tmp_path / name / "objects").rglob("*.safetensors")))
    assert objects[0] == objects[1] and len(objects[0]) == 10


def test_killed_workers_lose_nothing(tmp_path, units_of_one_tensor):
    """A worker is killed every 0.3 seconds for a while: its units are done again."""
    folder, store = model(tmp_path / "base", some_weights(n=60), "F32"), Store(tmp_path / "store", make=True, ray="local")
    adder = threading.Thread(target=store.add, args=(folder,))
    adder.start()
    n_killed = 0
    while adder.is_alive() and n_killed < 5:
        time.sleep(0.3)
        for worker in workers()[:1]:
            os.kill(worker, signal.SIGKILL)
            n_killed += 1
    adder.join()
    print(f"{n_killed} workers killed")
    assert n_killed
    assert contents(folder) == contents(restored(store, "base", tmp_path / "again"))
    assert store.verify(["base"]).tensors == 60


def test_an_error_of_a_worker_is_ours(tmp_path, units_of_one_tensor):
    from weightpack.errors import LosslessError

    folder, store = model(tmp_path / "base", some_weights(), "F32"), Store(tmp_path / "store", make=True, ray="local")
    store._pack_units = packing_what_changed(store, folder)
    with pytest.raises(LosslessError, match="changed"):
        store.add(folder)
    assert store.ls() == []
