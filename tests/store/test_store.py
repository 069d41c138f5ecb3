# SPDX-License-Identifier: Apache-2.0
"""A store of models in a folder: what goes in comes out, tensors are there once, and what is alike is a difference."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import samples
import torch
from finetunes import COLS, ROWS, encoded, stepped, weights
from folders import contents, sharded
from stores import Counting, model, packing_what_changed, restored, some_weights, steps

import weightpack.torch
from weightpack import Store, load_profile
from weightpack.errors import LosslessError, OptionError, PathNotFoundError
from weightpack.store import storage as storages
from weightpack.store.relatives import MAX_DEPTH


def listing(store):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(Path(store.url).rglob("*")) if path.is_file()}


def test_every_file_comes_back(store, tmp_path):
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    tensors = {
        "a": ("F32", (300, 40), samples.rows("F32", 300, 40)), "b": ("BF16", (300, 40), samples.rows("BF16", 300, 40)), "none": ("F32", (0,), b""),
        "scalar": ("F32", (), b"\0\0\x80?"), "int": ("I64", (900,), np.arange(900).tobytes()), "bool": ("BOOL", (901,), b"\1\0" * 450 + b"\1"),
        "complex": ("C64", (50,), bytes(range(200)) * 2), "f4": ("F4", (600,), bytes(300)), "f8": ("F8_E4M3", (1000,), os.urandom(1000)),
    }  # fmt: skip
    files = {
        "model.safetensors": samples.safetensors_file(tensors, {"format": "pt"}, indent=1),
        "sub/holes.safetensors": samples.safetensors_file(tensors, hole=5, trailer=b"end"),
        "weights.gguf": samples.gguf_file({"t": (2, (64, 32), os.urandom(64 * 32 // 32 * 18))}), "tokenizer.json": b'{"a": 1}' * 9000, "empty.txt": b"",
        "odd.bin": os.urandom(70_001),
    }  # fmt: skip
    for name, data in files.items():
        (source / name).write_bytes(data)
    (source / "tokenizer.json").chmod(0o640)
    os.utime(source / "odd.bin", ns=(10**18 + 1, 10**18 + 7))
    ref = store.add(source, "me/any")
    assert str(ref) == "me/any" and ref.source_bytes == sum(map(len, files.values()))
    target = restored(store, ref, tmp_path / "target")
    assert contents(source) == contents(target)
    for name in files:
        assert (target / name).stat().st_mode == (source / name).stat().st_mode
        assert (target / name).stat().st_mtime_ns == (source / name).stat().st_mtime_ns
    store.verify([ref])


def test_a_second_add_writes_nothing(store, tmp_path):
    folder = model(tmp_path / "base", some_weights())
    first = store.add(folder)
    before = listing(store)
    second = store.add(folder)
    assert (second.commit, second.new_tensors, second.new_bytes) == (first.commit, 0, 0)
    assert listing(store) == before


def test_tensors_are_stored_once(store, tmp_path):
    base = some_weights()
    store.add(model(tmp_path / "base", base))
    other = {"renamed": base["layer.1.weight"], "new": weights(50)}
    ref = store.add(model(tmp_path / "other", other))
    assert (ref.tensors, ref.new_tensors) == (2, 1)
    assert contents(tmp_path / "other") == contents(restored(store, ref, tmp_path / "again"))


@pytest.mark.parametrize("change", ["none", "names", "more rows", "other dtype"])
def test_a_fine_tune_is_a_difference(store, tmp_path, change):
    base = some_weights()
    alone = store.add(model(tmp_path / "base", base, "F32" if change == "other dtype" else "BF16")).new_bytes
    tuned = steps(base, 10)
    shape = (ROWS, COLS)
    if change == "names":
        tuned = {f"other.{i}": values for i, values in enumerate(tuned.values())}
    if change == "more rows":
        tuned = {name: np.concatenate([values, values[: 2 * COLS]]) for name, values in tuned.items()}
        shape = (ROWS + 2, COLS)
    ref = store.add(model(tmp_path / "tuned", tuned, shape=shape))
    own = store.manifest(ref).own_items.values()
    assert sum(placed.base is not None for placed in own) == 3
    assert ref.new_bytes < 0.5 * alone
    assert contents(tmp_path / "tuned") == contents(restored(store, ref, tmp_path / "again"))
    (branch,) = [branch for branch in store.log() if branch.name == "tuned"]
    assert branch.parent == "base"
    store.verify([ref])


def test_what_is_not_alike_is_no_difference(store, tmp_path):
    store.add(model(tmp_path / "base", some_weights()))
    ref = store.add(model(tmp_path / "other", some_weights(90)))
    assert all(placed.base is None for placed in store.manifest(ref).items)
    assert [branch.parent for branch in store.log()] == [None, None]


def test_never_larger_than_alone(store, tmp_path):
    """Also where the user names a base that is none: tensors of the same names are tried, and lose."""
    store.add(model(tmp_path / "base", some_weights()))
    folder = model(tmp_path / "other", some_weights(90))
    alone = Store(tmp_path / "alone", make=True).add(folder, base="none")
    given = store.add(folder, base="base")
    assert given.new_bytes <= alone.new_bytes


def test_a_base_is_found_by_the_lineage(store, tmp_path):
    """A tensor too small to have a sketch differs from the one of its name in the model that the card names."""
    small = {"norm": weights(3, 600), "large": weights(4)}

    def make(folder, tensors, card):
        folder.mkdir()
        (folder / "README.md").write_text(card)
        shapes = {"norm": (600,), "large": (ROWS, COLS)}
        data = {name: ("F32", shapes[name], encoded(values, "F32")) for name, values in tensors.items()}
        (folder / "model.safetensors").write_bytes(samples.safetensors_file(data))
        return folder

    store.add(make(tmp_path / "base", small, "none"), "them/base")
    unlike = {"norm": stepped(small["norm"], 8, 1e-7), "large": weights(70)}
    ref = store.add(make(tmp_path / "tuned", unlike, "---\nbase_model: them/base\n---\n"))
    bases = {placed.item.shape: placed.base for placed in store.manifest(ref).own_items.values()}
    assert bases[600,] is not None
    assert store.manifest(ref).lineage == ("them/base",)


def test_a_tensor_is_three_reads_at_most(store, tmp_path, monkeypatch):
    tensors = some_weights(n=2)
    store.add(model(tmp_path / "step0", tensors, "F32"))
    for step in range(1, 5):
        tensors = steps(tensors, 10 * step)
        store.add(model(tmp_path / f"step{step}", tensors, "F32"))
    depths = [max(placed.depth for placed in store.manifest(f"step{step}").items) for step in range(5)]
    assert depths == [0, 1, 2, 2, 2] and max(depths) == MAX_DEPTH
    counting = Counting(store._storage)
    monkeypatch.setattr(store, "_storage", counting)
    with store.open("step4") as opened:
        assert counting.reads == []  # the header is in the manifest
        array = opened.get_tensor("layer.1.weight")
        assert len(counting.reads) == 3
        assert array.tobytes() == tensors["layer.1.weight"].tobytes()
        rows = opened.get_slice("layer.1.weight")[7:9]
        assert rows.tobytes() == tensors["layer.1.weight"].reshape(ROWS, COLS)[7:9].tobytes()
        assert opened.keys() == sorted(tensors)


def test_shards_are_opened_as_one(store, tmp_path):
    folder = sharded(tmp_path / "sharded", 3)
    store.add(folder)
    with store.open("sharded", framework="pt") as opened, store.open("sharded", "model-00002-of-00003.safetensors", "pt") as second:
        assert opened.keys() == ["w0", "w1", "w2"] and second.keys() == ["w1"]
        for i, name in enumerate(opened.keys()):
            expected = weightpack.torch.load_file(folder / f"model-0000{i + 1}-of-00003.safetensors")[name]
            assert torch.equal(opened.get_tensor(name).view(torch.int16), expected.view(torch.int16))
            assert torch.equal(opened.get_slice(name)[5:9].view(torch.int16), expected[5:9].view(torch.int16))
    (folder / "other.safetensors").write_bytes((folder / "model-00002-of-00003.safetensors").read_bytes())
    store.add(folder, "twice")
    with pytest.raises(OptionError, match="two files"):
        store.open("twice")


def test_a_tensor_of_many_parts(store, tmp_path, monkeypatch):
    monkeypatch.setattr("weightpack.store.pack.PART_BYTES", 1 << 14)
    values = weights(1, 64 * 1024)
    store.add(model(tmp_path / "base", {"w": values}, "F32", (1024, 64)))
    tuned = stepped(values, 2)
    ref = store.add(model(tmp_path / "tuned", {"w": tuned}, "F32", (1024, 64)))
    half = store.add(model(tmp_path / "half", {"w": tuned[: 900 * 64]}, "BF16", (900, 64)))
    (placed,) = [placed for placed in store.manifest(ref).own_items.values() if placed.item.dtype == "F32"]
    assert len(placed.item.records) == 16
    for name in ("base", "tuned", "half"):
        assert contents(tmp_path / name) == contents(restored(store, name, tmp_path / "again"))
    with store.open(ref) as opened:
        assert opened.get_slice("w")[100:700].tobytes() == tuned.reshape(1024, 64)[100:700].tobytes()
    assert store.manifest(half).own_items
    store.verify([ref, half])


def test_the_same_bytes_whatever_the_threads(tmp_path):
    folder = model(tmp_path / "base", some_weights(n=9), "F32")
    names = []
    for threads in (1, 3):
        store = Store(tmp_path / f"store{threads}", make=True, threads=threads)
        store.add(folder)
        names.append(sorted(path.name for path in (tmp_path / f"store{threads}" / "objects").rglob("*.safetensors")))
    assert names[0] == names[1]


def test_profiles(tmp_path):
    folder = model(tmp_path / "base", {"w": weights(0, 1 << 18)}, shape=(512, 512))
    sizes = [Store(tmp_path / name, make=True, options=load_profile(name)).add(folder).new_bytes for name in ("fast", "dense")]
    assert sizes[1] < sizes[0]
    assert contents(folder) == contents(Store(tmp_path / "dense").get("base", tmp_path / "again"))


@pytest.mark.parametrize("state", ["gone", "damaged", "a folder's"])
def test_the_index_is_made_anew(store, tmp_path, state):
    base = some_weights()
    store.add(model(tmp_path / "base", base))
    (database,) = (tmp_path / "cache").glob("*.sqlite")
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    if state == "damaged":
        database.write_bytes(b"no database, but of some length" * 100)
    if state == "a folder's":
        database.mkdir()
    ref = store.add(model(tmp_path / "tuned", steps(base, 10)))
    assert sum(placed.base is not None for placed in store.manifest(ref).own_items.values()) == 3


def test_du_adds_up(store, tmp_path):
    base = some_weights()
    for name, tensors in (("base", base), ("tuned", steps(base, 10)), ("other", some_weights(90))):
        store.add(model(tmp_path / name, tensors))
    rows = {row.name: row for row in store.du()}
    items = {placed.item.key: placed.item.stored_bytes for manifest in store.manifests().values() for placed in manifest.items}
    assert sum(row.fair_bytes for row in rows.values()) == pytest.approx(sum(items.values()))
    assert sum(items.values()) < store.stored_bytes()  # headers
    assert rows["base"].own_bytes == 0 and rows["other"].own_bytes > 100_000  # all but the configuration


def test_two_adders_at_once(store, tmp_path):
    folder, results = model(tmp_path / "base", some_weights(n=8), "F32"), []

    def add():
        try:
            results.append(Store(store.url, threads=1).add(folder).commit)
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [store.manifest("base").commit] * 3
    assert store.verify(["base"]).objects == 1


def test_an_adder_that_meets_what_another_has_just_written(store, tmp_path, monkeypatch):
    """What it was about to write is there, and is no base of itself; nor are two that differ from each other a circle."""
    base = some_weights()
    folders = [model(tmp_path / "base", base), model(tmp_path / "tuned", steps(base, 10))]
    choose = store._choice

    def choose_later(*arguments):
        chosen = choose(*arguments)

        def chosen_later(tensors):
            if tensors:
                monkeypatch.setattr(store, "_choice", choose)
                for folder in folders:
                    store.add(folder, f"other-{folder.name}")
            return chosen(tensors)

        return chosen_later

    for folder in reversed(folders):
        monkeypatch.setattr(store, "_choice", choose_later)
        store.add(folder)
        assert contents(folder) == contents(restored(store, folder.name, tmp_path / "again"))
    assert all(placed.base is None or placed.base.item.key != placed.item.key for manifest in store.manifests().values() for placed in manifest.items)
    store.verify(["base", "tuned", "other-base", "other-tuned"])
    store.add(folders[0], "again")
    store.gc()
    store.verify(["again"])


def test_a_file_that_changes_meanwhile(store, tmp_path, monkeypatch):
    folder = model(tmp_path / "base", some_weights())
    monkeypatch.setattr(store, "_pack_units", packing_what_changed(store, folder))
    with pytest.raises(LosslessError, match="changed"):
        store.add(folder)
    assert store.ls() == []


def test_what_is_refused(store, tmp_path):
    folder = model(tmp_path / "base", some_weights())
    store.add(folder)
    with pytest.raises(OptionError, match="a store already"):
        Store(store.url, make=True)
    with pytest.raises(OptionError, match="store init"):
        Store(tmp_path)
    with pytest.raises(PathNotFoundError):
        store.add(tmp_path / "nothing" / "there")
    for name in ("a/b/c", "..", "a..b", "-a", "a b", "a/", "@0", "a.git", "\u00e4"):
        with pytest.raises(OptionError, match="name"):
            store.add(folder, name)
    with pytest.raises(OptionError, match="no model"):
        store.open("other")
    with pytest.raises(OptionError, match="no model"):
        store.add(folder, "x", base="other")
    with pytest.raises(OptionError, match="no model"):
        store.rm("../base")
    with pytest.raises(OptionError, match="unknown framework"):
        store.open("base", framework="jax")
    with pytest.raises(OptionError, match="exists"):
        store.get("base", folder)
    with pytest.raises(OptionError, match="no safetensors file"):
        store.open("base", "config.json")
    (folder / "config.json").write_text("{}")
    with pytest.raises(OptionError, match="another model"):
        store.add(folder)
    (tmp_path / "no-weights").mkdir()
    with pytest.raises(OptionError, match="no weights"):
        store.add(tmp_path / "no-weights")


def test_a_target_that_is_there(store, tmp_path):
    folder = model(tmp_path / "base", some_weights())
    store.add(folder)
    target = store.get("base", tmp_path / "target")
    (target / "model.safetensors").write_bytes(b"")
    store.get("base", target, overwrite=True)
    assert contents(folder) == contents(target)


def test_storage_is_a_folder_or_a_url(tmp_path):
    assert isinstance(storages.open_storage(tmp_path), storages.Folder)
    assert isinstance(storages.open_storage("memory://a/b"), storages.Bucket)
