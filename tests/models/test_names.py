# SPDX-License-Identifier: Apache-2.0
"""Names that could not be restored are refused before anything is written; others come back as they were."""

from __future__ import annotations

import os
import sys

import folders
import pytest
import samples

import weightpack
from weightpack.errors import OptionError
from weightpack.format.manifest import name_problem

WEIGHTS = samples.bf16_file(seed=1, name="w", n=4000)


@pytest.fixture
def folder(tmp_path):
    folders.write(tmp_path / "m" / "model.safetensors", WEIGHTS)
    return tmp_path / "m"


REFUSED = {
    "backslash": b"unet\\model.safetensors",
    "Latin-1": b"mod\xe8le.safetensors",
    "Latin-1, not weights": b"lis\xe9z-moi.txt",
    "in a folder": b"sub\\dir/notes.txt",
    "empty folder": b"empty\\folder/",
    "newline": b"new\nline.safetensors",
    "right to left": "tokenizer\u202ejson.txt".encode(),
    "device": b"aux.txt",
    "manifest": b"WeightPack.json",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_that_could_not_be_restored(folder, case):
    name = os.fsdecode(REFUSED[case])
    if name.endswith("/"):
        (folder / name).mkdir()
    else:
        folders.write(folder / name, WEIGHTS)
    before = folders.contents(folder.parent)
    for call in (
        lambda: weightpack.pack(folder), lambda: weightpack.pack(folder, in_place=True), lambda: weightpack.pack(folder, delete_source=True),
        lambda: weightpack.estimate(folder),
    ):  # fmt: skip
        with pytest.raises(OptionError, match="could not be restored") as caught:
            call()
        assert repr(name.rstrip("/"))[1:-1] in str(caught.value)
        assert folders.contents(folder.parent) == before


def test_odd_names_that_are_restored(folder):
    names = [
        "modèle é.safetensors", "with space.safetensors", "semi;colon&.safetensors", "-o.safetensors", "12:30.safetensors", "model.safetensors.bak",
        ".hidden.safetensors", "模型.safetensors", "~backup", "a" * 200 + ".safetensors", "x" * 240, "sub/CONFIG.JSON", "sub/weightpack.json", "%00", "'\"`$x",
    ]  # fmt: skip
    if sys.platform == "win32":
        names = [name for name in names if ":" not in name and '"' not in name]
    for name in names:
        folders.write(folder / name, WEIGHTS)
    result = weightpack.pack(folder)
    weightpack.verify(result.target, against=folder)
    weightpack.unpack(result.target, folder.parent / "back")
    assert folders.contents(folder.parent / "back") == folders.contents(folder)
    before = folders.contents(folder)
    weightpack.pack(folder, in_place=True)
    weightpack.unpack(folder, in_place=True)
    assert folders.contents(folder) == before


def test_what_is_refused_and_what_not():
    good = (
        "a", "a/b/c.json", "aux-weights.bin", "console.txt", "nulls", "lpt/x", "com10", "a~", "~a", "a/~/b", "ab:c", "..a", "a..b/...", "sub/weightpack.json",
    )  # fmt: skip
    assert [name for name in good if name_problem(name)] == []
    bad = (
        "", ".", "./", "..", "../x", "a/../b", "a//b", "/a", "a/", "a/.", "a\x00b", "a\x7f", "a\x85b", "a\u2028b", "C:x", "C:/x", "c:\\x", "~", "~/x", "~me/x",
        "a\\b", "CON", "con.txt", "a/NUL", "aux .x", "COM1", "lpt9.log", "COM\u00b9", "conin$", "weightpack.json", "WEIGHTPACK.JSON", "weightpack.json. ",
        "\uff57eightpack.json", "x" * 256, "é" * 128, "/".join(["ab"] * 1500), "\udce9", "a\u202eb", "a\u2066b", "a\u200fb",
    )  # fmt: skip
    assert [name for name in bad if name_problem(name) is None] == []
