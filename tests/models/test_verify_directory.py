# SPDX-License-Identifier: Apache-2.0
"""`verify` of a directory looks at every file: with the manifest alone, and against the original."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import folders
import pytest
import samples
from command import call

import weightpack
from weightpack._humane import human_bytes
from weightpack.errors import ChecksumError, CorruptionError, FolderError, TruncatedError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def model(tmp_path):
    folder = folders.sharded(tmp_path / "m")
    folders.write(folder / "modeling_x.py", "print(1)")
    folders.write(folder / "pytorch_model.bin", samples.weights(100_000, "F32"))
    (folder / "empty").mkdir()
    weightpack.pack(folder, hf_flag=True)  # which changes config.json
    return folder


def problems(folder, **kwargs):
    """Return path below the folder (or the original) -> reason."""
    with pytest.raises(FolderError) as caught:
        weightpack.verify(folder, **kwargs)
    for problem in caught.value.problems:
        assert str(problem) in str(caught.value)
    assert len({problem.path for problem in caught.value.problems}) == len(caught.value.problems)
    return {Path(problem.path).name: problem for problem in caught.value.problems}


def test_what_is_well(model):
    packed = model.with_name("m-wp")
    states = {result.name: (result.state, result.compared) for result in weightpack.verify(packed, against=model)}
    shards = {f"model-0000{i}-of-00002.safetensors": ("packed", True) for i in (1, 2)}
    carried = dict.fromkeys(("tokenizer.json", "modeling_x.py", "model.safetensors.index.json"), ("carried", True))
    assert states == {**shards, **carried, "pytorch_model.bin": ("packed", True), "config.json": ("changed", True)}
    assert {result.compared for result in weightpack.verify(packed)} == {False}
    total = weightpack.verify(packed).total
    assert total.source_bytes == sum(len(data) for data in folders.contents(model).values() if data is not None)
    assert total.packed_bytes == sum(len(data) for data in folders.contents(packed).values() if data is not None)
    assert total.n_files == 7


def test_damage_is_seen_without_the_original(model):
    packed = model.with_name("m-wp")
    folders.write(packed / "tokenizer.json", "garbage")
    folders.write(packed / "config.json", '{"model_type": "gpt2"}')
    (packed / "modeling_x.py").unlink()
    shard = packed / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-64] + bytes(64))
    found = problems(packed)
    assert {name: type(problem) for name, problem in found.items()} == {
        "tokenizer.json": ChecksumError, "config.json": ChecksumError, "modeling_x.py": TruncatedError, shard.name: type(found[shard.name]),
    }  # fmt: skip
    assert isinstance(found[shard.name], CorruptionError)
    assert "missing" in str(found["modeling_x.py"])


def test_what_differs_is_missing_or_is_too_many_is_named(model):
    packed = model.with_name("m-wp")
    folders.write(packed / "extra.txt", "x")
    folders.write(model / "tokenizer.json", '{"vocab": ["c"]}')
    folders.write(model / "config.json", '{"model_type": "t5"}')
    folders.write(model / "new.json", "{}")
    (model / "new_empty").mkdir()
    (model / "modeling_x.py").unlink()
    folders.write(model / "pytorch_model.bin", samples.weights(100_000, "F32")[::-1])
    folders.write(model / "model-00001-of-00002.safetensors", samples.bf16_file(seed=9, name="w0", n=4000))
    found = problems(packed, against=model)
    assert found.keys() == {
        "extra.txt", "tokenizer.json", "config.json", "new.json", "new_empty", "modeling_x.py", "pytorch_model.bin.wp",
        "model-00001-of-00002.safetensors",
    }  # fmt: skip
    assert "differs from" in str(found["tokenizer.json"])
    assert f"is not in {model}" in str(found["extra.txt"])
    assert f"is not in {packed}" in str(found["new.json"])


def test_a_file_that_came_later_is_said_not_to_be_covered(model):
    packed = model.with_name("m-wp")
    folders.write(packed / "extra.txt", "x")
    assert [result.name for result in weightpack.verify(packed) if result.state == "not covered"] == ["extra.txt"]
    result = weightpack.unpack(packed, model.with_name("back"))
    assert (model.with_name("back") / "extra.txt").read_text() == "x"
    assert [(note.name, "does not name it" in note.reason) for note in result.warnings] == [("extra.txt", True)]
    folders.write(packed / ".gitattributes", "made by the Hub")
    (packed / "extra.txt").unlink()
    assert [result.name for result in weightpack.verify(packed, against=model) if result.state == "added"] == [".gitattributes"]


def test_shards_that_were_swapped(model):
    """Each is sound in itself."""
    packed = model.with_name("m-wp")
    one, two = (packed / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    assert problems(packed).keys() == {one.name, two.name}
    with pytest.raises(CorruptionError, match="the packed form of a file of SHA-256"):
        weightpack.unpack(packed, model.with_name("back"))
    before = folders.contents(packed)
    with pytest.raises(CorruptionError, match="the packed form of a file of SHA-256"):
        weightpack.unpack(packed, in_place=True)
    assert folders.contents(packed) == before


def test_unpacking_what_is_no_longer_as_it_was(model):
    packed, back = model.with_name("m-wp"), model.with_name("back")
    folders.write(packed / "tokenizer.json", "edited")
    (packed / "modeling_x.py").unlink()
    for match in ("modeling_x", "tokenizer"):
        with pytest.raises((TruncatedError, FolderError), match=match):
            weightpack.unpack(packed, back)
        assert not back.exists()
        folders.write(packed / "modeling_x.py", "print(1)")
    (packed / "modeling_x.py").unlink()
    folders.write(packed / "config.json", "edited too")
    result = weightpack.unpack(packed, back, verify=False)
    restored = folders.contents(back)
    assert restored.pop("tokenizer.json") == b"edited"
    expected = folders.contents(model)
    del expected["tokenizer.json"], expected["modeling_x.py"]
    assert restored == expected
    assert {Path(note.name).name for note in result.warnings} == {"tokenizer.json", "modeling_x.py", "config.json"}
    with pytest.raises(weightpack.errors.OptionError, match="no-verify"):
        weightpack.unpack(packed, model.with_name("again"), verify=False, delete_source=True)


def test_a_missing_shard_is_refused(model):
    packed = model.with_name("m-wp")
    (packed / "pytorch_model.bin.wp").unlink()
    assert problems(packed).keys() == {"pytorch_model.bin.wp"}
    for verify in (True, False):
        with pytest.raises(TruncatedError, match=r"pytorch_model\.bin\.wp"):
            weightpack.unpack(packed, model.with_name("back"), verify=verify)


def test_delete_source_stays_with_what_is_not_proven(model):
    packed = model.with_name("m-wp")
    shutil.rmtree(packed)
    (model / "linked").symlink_to("empty")
    before = folders.contents(model)
    with pytest.raises(weightpack.errors.OptionError, match="holds a link"):
        weightpack.pack(model, delete_source=True)
    assert not packed.exists()
    (model / "linked").unlink()
    (model / "empty").mkdir(exist_ok=True)
    result = weightpack.pack(model, delete_source=True)
    assert not model.exists()
    assert result.ratio < 1
    weightpack.unpack(packed, model, delete_source=True)
    del before["linked"]
    assert folders.contents(model) == before
    assert not packed.exists()


def test_directories_of_version_1(tmp_path):
    """Packed by the first release: what its manifest knows is proven, and what it does not know is said."""
    packed = tmp_path / "packed"
    shutil.copytree(GOLDEN / "manifest-1" / "packed", packed)
    states = {result.name: result.state for result in weightpack.verify(packed)}
    assert {name for name, state in states.items() if state == "packed"} == {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert {name for name, state in states.items() if state == "not covered"} == {"tokenizer.json", "1_Pooling/config.json", "model.safetensors.index.json"}
    assert states["config.json"] == "changed"
    weightpack.unpack(packed, tmp_path / "back")
    expected = json.loads((GOLDEN / "manifest-1" / "source.json").read_text())
    assert {name: hashlib.sha256(data).hexdigest() for name, data in folders.contents(tmp_path / "back").items() if data is not None} == expected
    weightpack.verify(packed, against=tmp_path / "back")
    folders.write(tmp_path / "back" / "tokenizer.json", "changed")
    assert problems(packed, against=tmp_path / "back").keys() == {"tokenizer.json"}
    weightpack.unpack(packed, in_place=True)
    assert {name: hashlib.sha256(data).hexdigest() for name, data in folders.contents(packed).items() if data is not None} == expected


def test_the_command_line_ends_with_a_total_of_all_files(model):
    packed = model.with_name("m-wp")
    done = call("verify", packed, cwd=model.parent)
    n_bytes = sum(len(data) for data in folders.contents(packed).values() if data is not None)
    n_files = len([data for data in folders.contents(model).values() if data is not None])
    assert done.stdout.splitlines()[-1].startswith(f"all {n_files} files: {human_bytes(n_bytes)} for ")
