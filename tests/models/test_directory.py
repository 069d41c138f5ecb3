# SPDX-License-Identifier: Apache-2.0
"""A model's folder, there and back: shards, their index, and what lies beside them."""

from __future__ import annotations

import base64
import json

import pytest
import samples

import weightpack


def test_sharded_directory_round_trips(model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "sharded"
    folder.mkdir()
    tensors = load_file(model("minilm") / "model.safetensors")
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[:50], names[50:])):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("kept")

    job = weightpack.pack(folder)
    packed = tmp_path / "sharded-wp"
    assert job.target == str(packed)
    assert len(job.files) == 2
    assert (packed / "config.json").read_text() == '{"model_type": "bert"}'
    assert sorted(p.name for p in packed.glob("*.safetensors")) == sorted(set(weight_map.values()))
    weightpack.verify(packed, against=folder)
    back = tmp_path / "back"
    weightpack.unpack(packed, back)
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {p.relative_to(back): p.read_bytes() for p in back.rglob("*") if p.is_file()} == before


def test_directories_of_before_restore_the_config_that_they_changed(tmp_path):
    """Until 0.1, packing added a dtype to a config.json that named none; the manifest, of version 1, holds the old one."""
    source, packed = tmp_path / "m", tmp_path / "m-wp"
    source.mkdir()
    (source / "model.safetensors").write_bytes(samples.mixed_file())
    (source / "config.json").write_text('{"model_type": "bert"}')
    weightpack.pack(source)
    file = json.loads((packed / "weightpack.json").read_text())["files"]["model.safetensors"]
    entry = {"source_bytes": file["bytes"], "packed_bytes": file["packed_bytes"], "source_sha256": file["sha256"]}
    originals = {"config.json": base64.b64encode((source / "config.json").read_bytes()).decode()}
    (packed / "weightpack.json").write_text(json.dumps({"weightpack_manifest": 1, "packed": {"model.safetensors": entry}, "originals": originals}))
    (packed / "config.json").write_text('{"model_type": "bert", "dtype": "float32"}')
    weightpack.verify(packed, against=source)
    weightpack.unpack(packed, tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    weightpack.unpack(packed, in_place=True)
    assert (packed / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_missing_shard_is_named(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(samples.safetensors_file({}))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')
    with pytest.raises(weightpack.errors.TruncatedError, match=r"b\.safetensors"):
        weightpack.pack(folder)
