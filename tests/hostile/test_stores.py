# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile stores: whatever stands in a manifest or an object, the worst outcome is an exception of ours, and nothing is written elsewhere."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from stores import model, restored, some_weights, steps

from weightpack import Store
from weightpack.errors import FolderError, FormatError, LimitError, OptionError, WeightpackError
from weightpack.store.models import manifest_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a model, its fine-tune, and a store of both."""
    folder, base = tmp_path_factory.mktemp("stores"), some_weights(n=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTPACK_CACHE", str(folder / "cache"))
        store = Store(folder / "store", make=True, threads=1)
        store.add(model(folder / "base", base))
        store.add(model(folder / "tuned", steps(base, 10)))
    return folder


@pytest.fixture
def store(whole, tmp_path, monkeypatch):
    """A copy of the store."""
    monkeypatch.setenv("WEIGHTPACK_CACHE", str(tmp_path / "cache"))
    return Store(shutil.copytree(whole / "store", tmp_path / "store"), threads=1)


def manifest_file(store):
    return Path(store.url, manifest_path("tuned", 0))


def first_file(root):
    return next(file for file in root["files"] if file[0] == "model.safetensors")


def item_with_base(root):
    return next(item for item in root["items"] if item[5] is not None)


MANIFESTS = {
    "no version": lambda root: root.pop("version"),
    "a newer version": lambda root: root.update(version=2),
    "another's name": lambda root: root.update(name="base"),
    "a name that leaves the store": lambda root: root.update(name="../tuned"),
    "a file that leaves the folder": lambda root: first_file(root).__setitem__(0, "../model.safetensors"),
    "an absolute file": lambda root: first_file(root).__setitem__(0, "/tmp/model.safetensors"),
    "a file in a file": lambda root: first_file(root).__setitem__(0, "config.json/model.safetensors"),
    "two files of one name": lambda root: first_file(root).__setitem__(0, "config.json"),
    "a folder that leaves": lambda root: root["folders"].append("a/../../b"),
    "a folder that is none": lambda root: root["folders"].append(1),
    "an object that leaves the store": lambda root: root["objects"].__setitem__(0, "../../../etc/passwd"),
    "an object that is not there": lambda root: root["objects"].__setitem__(0, "0" * 64),
    "no objects": lambda root: root.update(objects=[]),
    "an item's key": lambda root: root["items"][0].__setitem__(0, "x"),
    "an item's dtype": lambda root: root["items"][0].__setitem__(1, "F12"),
    "an item of another dtype": lambda root: root["items"][0].__setitem__(1, "F32"),
    "a shape of no bytes": lambda root: root["items"][0].__setitem__(2, [0]),
    "a shape beyond counts": lambda root: root["items"][0].__setitem__(2, [1 << 62, 1 << 62]),
    "a negative shape": lambda root: root["items"][0].__setitem__(2, [-1]),
    "more parts than records": lambda root: root["items"][0].__setitem__(3, 1),
    "a part of no bytes": lambda root: root["items"][0].__setitem__(3, 0),
    "a part beyond the limit": lambda root: root["items"][0].__setitem__(3, 1 << 40),
    "a record of no bytes": lambda root: root["items"][0].__setitem__(4, [0]),
    "a record that is too short": lambda root: root["items"][0].__setitem__(4, [16]),
    "a record beyond the object": lambda root: root["items"][0].__setitem__(4, [1 << 40]),
    "no records": lambda root: root["items"][0].__setitem__(4, 7),
    "a base after the item": lambda root: item_with_base(root).__setitem__(5, len(root["items"])),
    "an item that is its own base": lambda root: item_with_base(root).__setitem__(5, root["items"].index(item_with_base(root))),
    "no base": lambda root: item_with_base(root).__setitem__(5, None),
    "moves that are none": lambda root: item_with_base(root).__setitem__(6, [[1, 2]]),
    "moves beyond the base": lambda root: item_with_base(root).__setitem__(6, [[0, 1 << 40, 5]]),
    "moves that overlap": lambda root: item_with_base(root).__setitem__(6, [[0, 0, 5], [1, 0, 5]]),
    "a place beyond the object": lambda root: root["items"][0].__setitem__(8, 1 << 50),
    "another place": lambda root: root["items"][0].__setitem__(8, 16),
    "another SHA-256": lambda root: first_file(root).__setitem__(2, "0" * 64),
    "no SHA-256": lambda root: first_file(root).__setitem__(2, None),
    "a longer file": lambda root: first_file(root).__setitem__(1, 1 << 50),
    "permissions of more than files have": lambda root: first_file(root).__setitem__(3, 0o4755),
    "a time beyond time": lambda root: first_file(root).__setitem__(4, 1 << 80),
    "a part that is no item": lambda root: first_file(root)[5].__setitem__(1, 99),
    "parts in another order": lambda root: first_file(root)[5].reverse(),
    "bytes that are none": lambda root: first_file(root)[5].__setitem__(0, [5, "!"]),
    "a bomb": lambda root: (first_file(root)[5].append([1 << 40, "KLUv/QBYAAA="]), first_file(root).__setitem__(1, first_file(root)[1] + (1 << 40))),
    "no list": lambda root: root.update(items=5),
}  # fmt: skip


@pytest.mark.parametrize("change", MANIFESTS)
def test_hostile_manifests(store, tmp_path, change):
    path = manifest_file(store)
    root = json.loads(path.read_bytes())
    MANIFESTS[change](root)
    path.write_bytes(json.dumps(root).encode())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightpackError):
        store.get("tuned", tmp_path / "target")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(WeightpackError):
        store.verify(["tuned"])


def test_times_before_any_year_that_the_system_has(store, tmp_path):
    """What a manifest may say and the system may not take: an error of the system, or a file with some time."""
    path = manifest_file(store)
    root = json.loads(path.read_bytes())
    first_file(root)[4] = -(1 << 63)
    path.write_bytes(json.dumps(root).encode())
    try:
        store.get("tuned", tmp_path / "target")
    except (OSError, WeightpackError):
        assert not (tmp_path / "target").exists()


def test_damaged_objects(store, whole, tmp_path):
    """Each bit that flips is found by `verify`, and no file is restored wrong."""
    rng, expected = random.Random(1), (whole / "tuned" / "model.safetensors").read_bytes()
    objects = sorted(Path(store.url, "objects").rglob("*.safetensors"))
    for path in objects:
        whole = path.read_bytes()
        for _ in range(12):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            with pytest.raises(FolderError):
                store.verify()
            try:
                assert (restored(store, "tuned", tmp_path / "again") / "model.safetensors").read_bytes() == expected  # a byte that it does not need
            except FormatError:
                assert not (tmp_path / "again").exists()
        path.write_bytes(whole[:-7])
        with pytest.raises(FolderError):
            store.verify(decode=False)
        path.unlink()
        with pytest.raises(FolderError, match="missing"):
            store.verify()
        path.write_bytes(whole)
    store.verify(["tuned"])


def object_with(path, change):
    """Rewrite an object's table, under the name that it has then, with a checksum that is right; return its path."""
    from weightpack.kernels import active

    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    table = json.loads(header["__metadata__"]["weightpack.store"])
    change(table, header)
    header["__metadata__"]["weightpack.store"] = text = json.dumps(table)
    header["__metadata__"]["weightpack.store.crc32c"] = f"{active().crc32c(text.encode()):08x}"
    new = json.dumps(header).encode()
    data = len(new).to_bytes(8, "little") + new + data[8 + n :]
    name = hashlib.sha256(data).hexdigest()
    target = path.parent.parent / name[:2] / f"{name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    path.unlink()
    target.write_bytes(data)
    return target


def first_item(table):
    return next(iter(table["items"].values()))


OBJECTS = {
    "no version": lambda table, header: table.pop("version"),
    "no model": lambda table, header: table.update(model=5),
    "an item that is not there": lambda table, header: table["items"].update({"0" * 64: first_item(table)}),
    "an entry of nothing": lambda table, header: table["items"].update({next(iter(table["items"])): []}),
    "a dtype": lambda table, header: first_item(table).__setitem__(0, "X"),
    "a shape": lambda table, header: first_item(table).__setitem__(1, [1 << 61]),
    "records": lambda table, header: first_item(table).__setitem__(3, [1]),
    "a base": lambda table, header: first_item(table).__setitem__(4, ".."),
    "a base in a circle": lambda table, header: first_item(table).__setitem__(4, next(iter(table["items"]))),
    "a sketch": lambda table, header: first_item(table).__setitem__(7, "AAAA"),
    "a name": lambda table, header: first_item(table).__setitem__(6, 5),
    "a hole": lambda table, header: header[next(iter(table["items"]))].update(data_offsets=[16, 32]),
    "no metadata": lambda table, header: header["__metadata__"].pop("other", None) or table.clear(),
}  # fmt: skip


@pytest.mark.parametrize("change", OBJECTS)
def test_hostile_objects(store, whole, tmp_path, change):
    path = sorted(Path(store.url, "objects").rglob("*.safetensors"))[0]
    object_with(path, OBJECTS[change])
    with pytest.raises(FolderError):
        store.verify()
    with suppress(WeightpackError):  # who adds may need none of it
        store.add(whole / "base", "again")
        store.get("again", tmp_path / "target")


def test_a_key_that_is_another_tensors(store):
    """Whoever writes objects can name bytes by another's key: no file comes out wrong, and `verify` says where it is."""
    path = sorted(Path(store.url, "objects").rglob("*.safetensors"))[0]
    keys = []

    def swap(table, header):
        keys.extend(list(table["items"])[:2])
        one, other = keys
        table["items"][one], table["items"][other] = table["items"][other], table["items"][one]
        header[one], header[other] = header[other], header[one]

    object_with(path, swap)
    with pytest.raises(FolderError, match="it is another"):
        store.verify()


def test_a_manifest_beyond_the_limits(store, tmp_path):
    from weightpack import Limits

    with pytest.raises(LimitError):
        Store(store.url, limits=Limits(max_json_memory=100)).get("tuned", tmp_path / "target")
    with pytest.raises(LimitError):
        Store(store.url, limits=Limits(max_gap_bytes=10)).get("tuned", tmp_path / "target")


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"version": 1, "id": "../../x"}', b'{"version": 9, "id": "' + b"0" * 32 + b'"}'])
def test_a_store_that_is_none(store, text):
    Path(store.url, "weightpack-store.json").write_bytes(text)
    with pytest.raises(FormatError):
        Store(store.url)


def test_files_of_others_in_a_store(store, tmp_path):
    """What has other names than a store gives is nobody's."""
    for name in (
        "objects/note.txt",
        "objects/ab/cd.safetensors",
        "models/x.json",
        "models/tuned/@1.json",
        "models/a b/@00000000.json",
        "models/a/@00000000.json/x",
    ):
        Path(store.url, name).parent.mkdir(parents=True, exist_ok=True)
        Path(store.url, name).write_bytes(b"?")
    assert [ref.name for ref in store.ls()] == ["base", "tuned"]
    store.verify(["tuned"])
    store.gc()
    assert Path(store.url, "objects/note.txt").exists()
    with pytest.raises(OptionError):
        store.get("a b", tmp_path / "target")
