# SPDX-License-Identifier: Apache-2.0
"""Names of packed files: NAME.wp for what is no safetensors file, alone and in directories; the names of earlier versions are read."""

from __future__ import annotations

import json
from pathlib import Path

import folders
import pytest
import samples

import weightpack
from weightpack.errors import FormatError

FLOATS = b"some header of it" + samples.weights(60_000, "F32")


def model(folder):
    folders.write(folder / "pytorch_model.bin", FLOATS)
    return folders.sharded(folder)


def with_old_names(folder):
    """Give the packed files of a directory the names that earlier versions gave them."""
    manifest = json.loads((folder / "weightpack.json").read_text())
    for name, entry in manifest["files"].items():
        if entry.get("packed", name) != name:
            (folder / entry["packed"]).rename(folder / f"{name}.wp.safetensors")
            entry["packed"] = f"{name}.wp.safetensors"
    folders.write(folder / "weightpack.json", json.dumps(manifest))


def test_what_loads_every_safetensors_file_of_a_folder_finds_shards_alone(tmp_path):
    source = model(tmp_path / "m")
    packed = Path(weightpack.pack(source).target)
    weightpack.pack(source / "pytorch_model.bin")
    for folder in (source, packed):
        assert sorted(path.name for path in folder.glob("*.safetensors")) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        assert (folder / "pytorch_model.bin.wp").is_file()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "noext", "MODEL.SAFETENSORS", "a.wp", "a.safetensors.wp", "weights.safetensors"])
@pytest.mark.parametrize("data", [FLOATS, samples.bf16_file(seed=1, name="w", n=4000)], ids=["other", "safetensors"])
def test_every_name_comes_back(tmp_path, name, data):
    if name.endswith(".safetensors") and data is FLOATS:
        pytest.skip("a file named .safetensors must be one")
    source = folders.write(tmp_path / name, data)
    packed = Path(weightpack.pack(source).target)
    assert packed.name == ("weights.wp.safetensors" if name.endswith(".safetensors") else f"{name}.wp")
    source.unlink()
    assert weightpack.unpack(packed).target == str(source)
    assert source.read_bytes() == data
    (tmp_path / "in").mkdir()
    into = Path(weightpack.pack(source, tmp_path / "in").target)
    assert into.name == (name if name.endswith(".safetensors") else f"{name}.wp")


def test_directories_with_the_old_names_are_read(tmp_path):
    source = model(tmp_path / "m")
    packed = Path(weightpack.pack(source).target)
    with_old_names(packed)
    assert (packed / "pytorch_model.bin.wp.safetensors").is_file()
    weightpack.verify(packed, against=source)
    assert len(weightpack.inspect(packed)) == 3
    weightpack.unpack(packed, tmp_path / "back")
    weightpack.unpack(packed, in_place=True)
    assert folders.contents(tmp_path / "back") == folders.contents(packed) == folders.contents(source)


def test_files_with_the_old_names_are_unpacked_to_the_same(tmp_path):
    for name, data in (("pytorch_model.bin", FLOATS), ("model.safetensors", samples.bf16_file(seed=1, name="w", n=4000))):
        source = folders.write(tmp_path / name, data)
        weightpack.pack(source, tmp_path / f"{name.removesuffix('.safetensors')}.wp.safetensors", delete_source=True)
        weightpack.unpack(tmp_path / f"{name.removesuffix('.safetensors')}.wp.safetensors")
        assert source.read_bytes() == data


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"version https://git-lfs.github.com/spec/v1\n", FLOATS])
def test_a_damaged_packed_file_is_not_called_missing(tmp_path, damage):
    packed = Path(weightpack.pack(model(tmp_path / "m")).target)
    folders.write(packed / "pytorch_model.bin.wp", damage)
    for call in (
        weightpack.inspect,
        weightpack.verify,
        lambda path: weightpack.unpack(path, tmp_path / "back"),
        lambda path: weightpack.unpack(path, in_place=True),
    ):
        with pytest.raises(FormatError, match=r"pytorch_model\.bin\.wp") as error:
            call(packed)
        assert "missing" not in str(error.value)


def test_a_directory_of_packed_files_without_a_manifest(tmp_path):
    source = model(tmp_path / "m")
    packed = Path(weightpack.pack(source).target)
    (packed / "weightpack.json").unlink()
    assert {Path(report.path).name for report in weightpack.inspect(packed)} == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin.wp",
    }  # fmt: skip
    with pytest.raises(weightpack.errors.OptionError, match="packed already"):
        weightpack.pack(packed)


def test_a_base_that_was_packed_as_another_kind_is_found(tmp_path):
    base = folders.write(tmp_path / "base" / "pytorch_model.bin", FLOATS)
    tuned = folders.write(tmp_path / "tuned" / "pytorch_model.bin", FLOATS[:-4] + b"\x00\x00\x80\x3f")
    packed = weightpack.pack(tuned, base=base).target
    weightpack.pack(base, delete_source=True)
    weightpack.unpack(packed, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == tuned.read_bytes()
