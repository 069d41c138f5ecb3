# SPDX-License-Identifier: Apache-2.0
"""The files of packed sources by their own names: those that `unpack` would write."""

from __future__ import annotations

from pathlib import PurePosixPath

import folders
import pytest
import samples

import weightpack
from weightpack.errors import OptionError, PathNotFoundError, TruncatedError
from weightpack.integrations.source_tree import source_tree


def names(tree):
    return {str(name): file.is_packed for name, file in tree.files.items()}


def test_a_packed_directory(tmp_path):
    """As the manifest has it: also what was changed, and folders without files."""
    model = folders.sharded(tmp_path / "model")
    folders.write(model / "gguf" / "model.gguf", samples.gguf_file({"w": (30, (400, 250), samples.weights(100_000, "BF16"))}))
    folders.write(model / "sub" / "notes.txt", "notes")
    (model / "empty").mkdir()
    weightpack.pack(model, hf_flag=True)
    tree = source_tree([tmp_path / "model-wp"])
    assert names(tree) == {
        "model-00001-of-00002.safetensors": True, "model-00002-of-00002.safetensors": True, "model.safetensors.index.json": False, "config.json": False,
        "tokenizer.json": False, "gguf/model.gguf": True, "sub/notes.txt": False,
    }  # fmt: skip
    assert tree.files[PurePosixPath("config.json")].data == (model / "config.json").read_bytes() != (tmp_path / "model-wp" / "config.json").read_bytes()
    assert {str(name) for name in tree.folders} == {".", "gguf", "sub", "empty"}
    assert not tree.left_out
    (tmp_path / "model-wp" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(TruncatedError, match="model-00001-of-00002"):
        source_tree([tmp_path / "model-wp"])


def test_a_collection(tmp_path):
    """No manifest: packed files by the names of their sources, others as they are; directories in it that have one, as they were."""
    collection = tmp_path / "models"
    model = folders.sharded(tmp_path / "model", shards=1)
    weightpack.pack(model, collection / "llm" / "tiny")
    for name in ("a.safetensors", "b.safetensors"):
        folders.write(tmp_path / name, samples.bf16_file(seed=1, name="w", n=3000))
        weightpack.pack(tmp_path / name, collection / name.replace(".s", ".wp.s"))
    folders.write(collection / "b.safetensors", samples.bf16_file(seed=2, name="w", n=3000))
    folders.write(collection / "lora" / "no.safetensors", "no such file")
    folders.write(tmp_path / "m.gguf", samples.other_files()["gguf"])
    weightpack.pack(tmp_path / "m.gguf", collection / "m.gguf.wp")
    (collection / "nothing").mkdir()
    tree = source_tree([collection])
    assert names(tree) == {
        "a.safetensors": True, "b.safetensors": False, "m.gguf": True, "lora/no.safetensors": False, "llm/tiny/model-00001-of-00001.safetensors": True,
        "llm/tiny/config.json": False, "llm/tiny/tokenizer.json": False, "llm/tiny/model.safetensors.index.json": False,
    }  # fmt: skip
    assert {str(name) for name in tree.folders} == {".", "llm", "llm/tiny", "lora", "nothing"}
    assert [(note.name, note.reason) for note in tree.left_out] == [("b.wp.safetensors", "b.safetensors is there as well")]


def test_several_sources(tmp_path):
    model = folders.sharded(tmp_path / "model", shards=1)
    weightpack.pack(model)
    folders.write(tmp_path / "one.safetensors", samples.bf16_file(seed=1, name="w", n=3000))
    weightpack.pack(tmp_path / "one.safetensors")
    tree = source_tree([tmp_path / "model-wp", tmp_path / "one.wp.safetensors"])
    assert {name for name, is_packed in names(tree).items() if is_packed} == {"model/model-00001-of-00001.safetensors", "one.safetensors"}
    assert {str(name) for name in tree.folders} == {".", "model"}
    assert names(source_tree([str(tmp_path / "one.wp.safetensors")])) == {"one.safetensors": True}
    with pytest.raises(OptionError, match=r"the name 'one\.safetensors'"):
        source_tree([tmp_path / "one.wp.safetensors"] * 2)
    with pytest.raises(OptionError, match="not packed"):
        source_tree([tmp_path / "one.safetensors"])
    with pytest.raises(OptionError, match="nothing in it is packed"):
        source_tree([model])
    with pytest.raises(PathNotFoundError):
        source_tree([tmp_path / "none"])
