# SPDX-License-Identifier: Apache-2.0
"""Manifests that were made to harm: what they name stays inside the directory, and the outcome is an error of ours."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import subprocess
import sys

import folders
import pytest

import weightpack
from weightpack.errors import CorruptionError, FormatError, LimitError, UnsupportedError, WeightpackError
from weightpack.format.manifest import MANIFEST, parse_manifest

EVIL = b"evil"
SHA256 = hashlib.sha256(EVIL).hexdigest()
NAMES = {
    "empty": "",
    "dot": ".", "dot slash": "./", "NUL": "a\x00b", "drive": "C:x", "drive and path": "C:/Windows/x", "drive and up": "C:/..", "home": "~/x",
    "somebody's home": "~me/x", "up": "..", "up and down": "a/../../x", "absolute": "/etc/x", "backslash": "..\\x", "too long": "x" * 300,
    "too long in all": "/".join(["x" * 200] * 21), "the manifest": "weightpack.json", "the manifest in capitals": "WEIGHTPACK.JSON",
    "the manifest in part": "WeightPack.json", "the manifest on Windows": "weightpack.json.", "the manifest in full width": "\uff57eightpack.json",
    "working file": f".x.{'0' * 16}.wp-partial",
    "in a working folder": f".x.{'0' * 16}.wp-partial/x",
    "right to left": "a\u202ejson.txt", "isolate": "a\u2066b", "escape": "a\x1b]52;c;x\x07", "line": "a\nb",
    "CON": "CON", "nul.txt": "sub/nul.txt", "trailing slash": "a/", "twice": "a//b", "half a pair": "a\udc80",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    source = folders.sharded(tmp_path_factory.mktemp("models") / "m", shards=1)
    weightpack.pack(source)
    return source.with_name("m-wp")


@pytest.fixture
def packed(model, tmp_path):
    for name, data in folders.contents(model).items():
        folders.write(tmp_path / "m-wp" / name, data)
    return tmp_path / "m-wp"


def original(**more):
    return {"bytes": len(EVIL), "sha256": SHA256, "original": base64.b64encode(EVIL).decode(), **more}


def changed(packed, change, version=2):
    """Change a packed directory's manifest, of the version that is wanted."""
    root = json.loads((packed / MANIFEST).read_text())
    if version == 1:
        files, keys = root["files"], {"source_bytes": "bytes", "packed_bytes": "packed_bytes", "source_sha256": "sha256"}
        entries = {name: {old: f[new] for old, new in keys.items()} for name, f in files.items() if "packed" in f}
        root = {"weightpack_manifest": 1, "packed": entries, "originals": {name: f["original"] for name, f in files.items() if "original" in f}}
    change(root)
    (packed / MANIFEST).write_text(json.dumps(root))


def refused(packed, error=CorruptionError):
    """Every command refuses the directory; nothing in it or beside it changes."""
    before = folders.contents(packed.parent)
    for call in (
        lambda: weightpack.unpack(packed, packed.with_name("back")), lambda: weightpack.unpack(packed, in_place=True), lambda: weightpack.verify(packed),
        lambda: weightpack.inspect(packed), lambda: weightpack.pack(packed, packed.with_name("again")), lambda: weightpack.pack(packed, in_place=True),
        lambda: weightpack.estimate(packed),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            call()
        assert MANIFEST in str(caught.value)
        assert "\x1b" not in str(caught.value)
        assert folders.contents(packed.parent) == before


WAYS = {
    "original": (2, lambda root, name: root["files"].update({name: original()})),
    "carried": (2, lambda root, name: root["files"].update({name: {"bytes": 4, "sha256": SHA256}})),
    "packed": (2, lambda root, name: root["files"].update({name: {"bytes": 4, "sha256": SHA256, "packed": "model.bin.wp.safetensors", "packed_bytes": 4}})),
    "packed form": (2, lambda root, name: root["files"].update({"model.bin": {"bytes": 4, "sha256": SHA256, "packed": name, "packed_bytes": 4}})),
    "folder": (2, lambda root, name: root["folders"].append(name)),
    "added": (2, lambda root, name: root["added"].append(name)),
    "original of version 1": (1, lambda root, name: root["originals"].update({name: base64.b64encode(EVIL).decode()})),
    "packed of version 1": (1, lambda root, name: root["packed"].update({name: {"source_bytes": 4, "packed_bytes": 4, "source_sha256": SHA256}})),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(packed, name):
    whole = (packed / MANIFEST).read_bytes()
    for version, change in WAYS.values():
        (packed / MANIFEST).write_bytes(whole)
        changed(packed, lambda root, change=change: change(root, NAMES[name]), version)
        refused(packed)


CONTRADICTIONS = {
    "original of packed weights": lambda root: root["files"]["model-00001-of-00001.safetensors"].update(original()),
    "original of other bytes": lambda root: root["files"].update({"x": original(sha256="0" * 64)}),
    "original of another length": lambda root: root["files"].update({"x": original(bytes=5)}),
    "original that is no base64": lambda root: root["files"].update({"x": original(original="%%%")}),
    "packed form of two files": lambda root: root["files"].update({"x": {**root["files"]["model-00001-of-00001.safetensors"]}}),
    "packed form under another file's name": lambda root: root["files"]["model-00001-of-00001.safetensors"].update(packed="config.json"),
    "file in a file": lambda root: root["files"].update({"tokenizer.json/x": original()}),
    "folder that is a file": lambda root: root["folders"].append("tokenizer.json"),
    "folder with a file in it": lambda root: (root["folders"].append("sub"), root["files"].update({"sub/x": original()})),
    "added file of the source": lambda root: root["added"].append("tokenizer.json"),
    "folder twice": lambda root: root["folders"].extend(["a", "a"]),
    "no length": lambda root: root["files"].update({"x": {"sha256": SHA256}}),
    "negative length": lambda root: root["files"].update({"x": {"bytes": -1, "sha256": SHA256}}),
    "length of 2**63": lambda root: root["files"].update({"x": {"bytes": 1 << 63, "sha256": SHA256}}),
    "true for a length": lambda root: root["files"].update({"x": {"bytes": True, "sha256": SHA256}}),
    "no SHA-256": lambda root: root["files"].update({"x": {"bytes": 4}}),
    "SHA-256 in capitals": lambda root: root["files"].update({"x": {"bytes": 4, "sha256": SHA256.upper()}}),
    "no files": lambda root: root.pop("files"),
    "files in a list": lambda root: root.update(files=[]),
    "file that is no object": lambda root: root["files"].update({"x": 4}),
    "folders in an object": lambda root: root.update(folders={}),
    "folder that is a number": lambda root: root["folders"].append(4),
    "unknown job in place": lambda root: root.update(in_place="rm"),
    "job in place that is a list": lambda root: root.update(in_place=["pack"]),
    "complete, but no truth": lambda root: root.update(complete=1),
    "no version": lambda root: root.pop("weightpack_manifest"),
    "version 0": lambda root: root.update(weightpack_manifest=0),
    "version true": lambda root: root.update(weightpack_manifest=True),
    "version 2.0": lambda root: root.update(weightpack_manifest=2.0),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions(packed, case):
    changed(packed, CONTRADICTIONS[case])
    refused(packed)


def test_a_later_version_is_said_to_be_one(packed):
    changed(packed, lambda root: root.update(weightpack_manifest=3))
    refused(packed, UnsupportedError)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"x"', b'{"weightpack_manifest": 2', b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1, "a": 2}'])
def test_what_is_no_json(packed, data):
    (packed / MANIFEST).write_bytes(data)
    refused(packed)


def test_unknown_keys_are_passed_over(packed):
    changed(packed, lambda root: (root.update(later={"x": 1}), root["files"]["tokenizer.json"].update(later=1)))
    weightpack.verify(packed)


# ---- links


@pytest.mark.parametrize("version", [1, 2])
def test_a_link_does_not_lead_an_original_elsewhere(packed, version):
    """In place, the directory's own folders are written to."""
    elsewhere = packed.with_name("elsewhere")
    folders.write(elsewhere / "x", "precious")
    (packed / "sub").symlink_to(elsewhere)
    changed(packed, lambda root: WAYS["original" if version == 2 else "original of version 1"][1](root, "sub/x"), version)
    before = folders.contents(packed.parent)
    with pytest.raises(CorruptionError, match="is a link"):
        weightpack.unpack(packed, in_place=True)
    assert folders.contents(packed.parent) == before
    weightpack.unpack(packed, packed.with_name("back"))
    assert (packed.with_name("back") / "sub" / "x").read_bytes() == EVIL
    assert (elsewhere / "x").read_text() == "precious"


def test_a_link_in_the_target_does_not_lead_elsewhere(packed):
    elsewhere, target = packed.with_name("elsewhere"), packed.with_name("target")
    folders.write(elsewhere / "x", "precious")
    target.mkdir()
    (target / "sub").symlink_to(elsewhere)
    changed(packed, lambda root: root["files"].update({"sub/x": original()}))
    before = folders.contents(packed.parent)
    with pytest.raises(WeightpackError, match="link"):
        weightpack.unpack(packed, target, overwrite=True)
    assert folders.contents(packed.parent) == before


def test_originals_do_not_replace_proven_weights(packed):
    """Version 1 let them; on a disk that does not tell capitals apart, neither does a name of another spelling."""
    changed(packed, lambda root: root["originals"].update({"model-00001-of-00001.safetensors": base64.b64encode(EVIL).decode()}), version=1)
    refused(packed)


# ---- what the manifest is


LIMITED = """
import resource, sys, weightpack
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
try:
    getattr(weightpack, sys.argv[1])(sys.argv[2], **({"in_place": True} if sys.argv[1] in ("pack", "unpack") else {}))
except weightpack.errors.WeightpackError as error:
    print(type(error).__name__, "weightpack.json" in str(error))
"""


@pytest.mark.parametrize("verb", ["unpack", "verify", "inspect", "pack", "estimate"])
@pytest.mark.parametrize("what", ["/dev/zero", "pipe", "sparse", "folder"])
def test_a_manifest_that_is_no_small_file(packed, what, verb):
    path = packed / MANIFEST
    path.unlink()
    if what == "/dev/zero":
        path.symlink_to("/dev/zero")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 42)
    done = subprocess.run(  # the limit of time only ends what would hang
        [sys.executable, "-c", LIMITED, verb, str(packed)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == ["LimitError" if what == "sparse" else "CorruptionError", "True"]


@pytest.mark.parametrize("what", ["/dev/zero", "pipe", "sparse"])
def test_an_index_of_shards_that_is_no_small_file(tmp_path, what):
    source = folders.sharded(tmp_path / "m")
    path = source / "model.safetensors.index.json"
    path.unlink()
    if what == "sparse":
        path.touch()
        os.truncate(path, 200_000_000)
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    result = weightpack.pack(source)
    assert path.name in {note.name for note in (*result.left_out, *result.warnings)}


def test_many_names_are_checked_in_time_that_grows_with_them(packed):
    """Megabytes of entries; also deep paths, of each of which all parents are looked up."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    changed(packed, lambda root: root["files"].update({"/".join("abcdefgh") + f"/{i}": {"bytes": 4, "sha256": SHA256} for i in range(30_000)}))
    assert len(parse_manifest((packed / MANIFEST).read_bytes()).files) > 30_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usage < 1 << 20
    with pytest.raises((FormatError, LimitError), match="is missing"):
        weightpack.unpack(packed, packed.with_name("back"))
