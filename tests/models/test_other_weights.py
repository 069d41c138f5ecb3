# SPDX-License-Identifier: Apache-2.0
"""Directories as people have them: weights of other kinds, indexes that are stale, pointers of Git LFS, sizes of all files."""

from __future__ import annotations

import json
import os

import folders
import numpy as np
import pytest
import samples

import weightpack
from weightpack.errors import FormatError, OptionError, TruncatedError

FLOATS = samples.weights(60_000, "F32")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"7" * 64 + b"\nsize 160088\n"


def on_disk(folder):
    return sum(len(data) for data in folders.contents(folder).values() if data is not None)


def trip(source):
    """Pack, verify, unpack, compare; return the result of packing and the names of the packed directory."""
    packed = source.with_name("m-wp")
    result = weightpack.pack(source)
    weightpack.verify(packed, against=source)
    weightpack.unpack(packed, source.with_name("back"))
    assert folders.contents(source.with_name("back")) == folders.contents(source)
    assert (result.source_bytes, result.packed_bytes) == (on_disk(source), on_disk(packed))
    back = weightpack.unpack(packed, source.with_name("again"))
    assert (back.source_bytes, back.packed_bytes) == (on_disk(source), on_disk(packed))
    reports = weightpack.inspect(packed)
    assert (reports.total.source_bytes, reports.total.packed_bytes, reports.total.unfinished) == (on_disk(source), on_disk(packed), None)
    assert len(reports) == len(result.files)
    return result, set(folders.contents(packed))


def torch_file(path):
    torch = pytest.importorskip("torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.from_numpy(np.frombuffer(FLOATS, "<f4").reshape(600, 100).copy())}, path)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "optimizer.pt", "flax_model.msgpack", "tf_model.h5", "rust_model.ot", "a.ckpt", "m.ckpt.data-00000-of-00001", "MODEL.SAFETENSORS"],
)
def test_a_directory_with_only_one_file_of_another_kind(tmp_path, name):
    data = samples.bf16_file(seed=1, name="w") if name.endswith("SAFETENSORS") else b"some header of it" + FLOATS
    folders.write(tmp_path / "m" / "sub" / name, data)
    folders.write(tmp_path / "m" / "config.json", "{}")
    result, names = trip(tmp_path / "m")
    assert names == {"config.json", "sub", f"sub/{name}.wp", "weightpack.json"}
    assert result.ratio < 0.9
    assert json.loads((tmp_path / "m-wp" / "weightpack.json").read_text())["files"][f"sub/{name}"]["packed"] == f"sub/{name}.wp"


def test_weights_of_many_kinds_in_one_directory(tmp_path):
    source = folders.sharded(tmp_path / "m")
    torch_file(source / "pytorch_model.bin")
    np.save(source / "table.npy", np.frombuffer(FLOATS, "<f4"))
    np.savez(source / "table.npz", np.frombuffer(FLOATS, "<f4"))
    folders.write(source / "spm.bin", os.urandom(200_000))  # no weights
    folders.write(source / "tiny.bin", FLOATS[:40_000])
    folders.write(source / "tokenizer.model", FLOATS)  # no name of weights: loaders want it as it is
    result, names = trip(source)
    assert {name.removesuffix(".wp") for name in names if name.endswith(".wp")} == {"pytorch_model.bin", "table.npy", "table.npz"}
    assert {"spm.bin", "tiny.bin", "tokenizer.model", "model-00001-of-00002.safetensors"} <= names
    assert [note.name for note in result.kept] == ["spm.bin"]
    estimated = weightpack.estimate(source)
    assert len(estimated) == 5
    assert estimated.total.source_bytes == on_disk(source)
    assert abs(estimated.total.packed_bytes / result.packed_bytes - 1) < 0.02


def test_data_beside_an_onnx_file(tmp_path):
    """It has any name, which is in the ONNX file."""
    folders.write(tmp_path / "m" / "onnx" / "model.onnx", b"\x08\x07" + os.urandom(50))
    for name in ("model.onnx_data", "weights", "encoder.layer.0.weight", "model.onnx.data"):
        folders.write(tmp_path / "m" / "onnx" / name, FLOATS)
    for name in ("notes.txt", "vocab.json", ".hidden"):
        folders.write(tmp_path / "m" / "onnx" / name, FLOATS)
    folders.write(tmp_path / "m" / "weights", FLOATS)  # beside none
    result, _ = trip(tmp_path / "m")
    assert {os.path.basename(file.source) for file in result.files} == {"model.onnx_data", "weights", "encoder.layer.0.weight", "model.onnx.data"}
    assert all("/onnx/" in file.source for file in result.files)


@pytest.mark.parametrize("bits", [16, 19])
def test_floats_of_32_bits_that_were_shorter_before_are_found(tmp_path, bits):
    """As exports have them: the end of each mantissa is zero."""
    words = np.frombuffer(FLOATS, "<u4") >> (32 - bits) << (32 - bits)
    for name in ("tf_model.h5", "flax_model.msgpack"):
        folders.write(tmp_path / "m" / name, b"\x89HDF some header" + words.tobytes())
    result, _ = trip(tmp_path / "m")
    assert len(result.files) == 2
    assert result.ratio < 0.48


def test_nothing_to_pack(tmp_path):
    folders.write(tmp_path / "m" / "notes.txt", "x")
    with pytest.raises(OptionError, match="no weights in this directory"):
        weightpack.pack(tmp_path / "m")
    folders.write(tmp_path / "m" / "noise.bin", os.urandom(100_000))
    with pytest.raises(OptionError, match=r"nothing in this directory can be packed; noise\.bin"):
        weightpack.pack(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_name_that_the_packed_form_would_have_is_taken(tmp_path):
    source = folders.sharded(tmp_path / "m")
    folders.write(source / "old.bin", FLOATS)
    weightpack.pack(source / "old.bin")
    result, _ = trip(source)
    assert {note.name for note in result.kept} == {"old.bin", "old.bin.wp"}


# ---- indexes of shards


STALE = {
    "whole file beside": ({"model.safetensors": ["a", "b"]}, ["model-1.safetensors", "model-2.safetensors"]),
    "whole file and one shard": ({"model.safetensors": ["a"], "model-1.safetensors": ["b"]}, ["model-1.safetensors", "model-2.safetensors"]),
    "other weights": ({"other.safetensors": ["a"]}, ["model-1.safetensors", "model-2.safetensors"]),
}


@pytest.mark.parametrize("case", STALE)
def test_a_stale_index_is_a_warning(tmp_path, case):
    files, shards = STALE[case]
    for i, name in enumerate(files):
        folders.write(tmp_path / "m" / name, samples.bf16_file(seed=i, name="w", n=4000))
    folders.write(tmp_path / "m" / "model.safetensors.index.json", json.dumps({"weight_map": {str(i): name for i, name in enumerate(shards)}}))
    result, _ = trip(tmp_path / "m")
    assert [note.name for note in result.warnings] == ["model.safetensors.index.json"]
    assert "not there" in result.warnings[0].reason


@pytest.mark.parametrize("there", [["model-1.safetensors"], []])
def test_a_model_that_is_not_whole_is_an_error(tmp_path, there):
    """Some shards are there; or none is, nor anything else beside the index."""
    for name in there:
        folders.write(tmp_path / "m" / "unet" / name, samples.bf16_file(seed=1, name="w", n=4000))
    folders.write(tmp_path / "m" / "vae" / "model.safetensors", samples.bf16_file(seed=1, name="w", n=4000))
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    folders.write(tmp_path / "m" / "unet" / "model.safetensors.index.json", json.dumps({"weight_map": shards}))
    with pytest.raises(TruncatedError, match=rf"model-{2 if there else 1}\.safetensors"):
        weightpack.pack(tmp_path / "m")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xef\xbb\xbf{}", b'{"weight_map": {"a": 4}}', b'{"weight_map": {"a": "../x.safetensors"}}', b'{"weight_map": ["a"]}', b"\x00" * 9,
     b'{"metadata": {"total_size": NaN}, "weight_map": {"a": "model.safetensors"}}', b'{"weight_map": {"a": "/etc/passwd"}}', b"[" * 100_000],
)  # fmt: skip
def test_an_odd_index_is_a_warning(tmp_path, data):
    folders.write(tmp_path / "m" / "model.safetensors", samples.bf16_file(seed=1, name="w", n=4000))
    folders.write(tmp_path / "m" / "model.safetensors.index.json", data)
    result, _ = trip(tmp_path / "m")
    assert [note.name for note in result.warnings] == ["model.safetensors.index.json"]


def test_an_index_of_shards_in_a_subfolder(tmp_path):
    folders.write(tmp_path / "m" / "a" / "s1.safetensors", samples.bf16_file(seed=1, name="w", n=4000))
    folders.write(tmp_path / "m" / "model.safetensors.index.json", '{"weight_map": {"w": "a/s1.safetensors"}}')
    result, _ = trip(tmp_path / "m")
    assert result.warnings == ()


# ---- Git LFS


def test_a_pointer_among_shards_is_refused_by_its_path(tmp_path):
    source = folders.sharded(tmp_path / "m")
    folders.write(source / "model-00002-of-00002.safetensors", LFS_POINTER)
    for config in ('{"model_type": "bert"}', '{"model_type": "bert", "dtype": "float32"}'):
        folders.write(source / "config.json", config)
        for call in (weightpack.pack, weightpack.estimate):
            with pytest.raises(FormatError, match="model-00002-of-00002"):
                call(source)
    assert not (tmp_path / "m-wp").exists()


def test_a_pointer_of_another_kind_is_a_warning(tmp_path):
    source = folders.sharded(tmp_path / "m")
    folders.write(source / "pytorch_model.bin", LFS_POINTER)
    result, _ = trip(source)
    assert [(note.name, "git lfs pull" in note.reason) for note in result.warnings] == [("pytorch_model.bin", True)]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tokenizer.json", "model.gguf", "model.safetensors", "weights", "model.onnx_data"])
def test_a_pointer_alone_is_refused_under_any_name(tmp_path, name):
    """Packed, it would look as if the weights were."""
    path = folders.write(tmp_path / name, LFS_POINTER)
    calls = (weightpack.pack, weightpack.estimate, lambda path: weightpack.pack(path, in_place=True), lambda path: weightpack.pack(path, delete_source=True))
    for call in calls:
        with pytest.raises(FormatError, match=rf"{name}: .*git lfs pull"):
            call(path)
    assert folders.contents(tmp_path) == {name: LFS_POINTER}


def test_pointers_of_every_name_in_a_directory_are_said(tmp_path):
    source = folders.write(tmp_path / "m" / "pytorch_model.bin", LFS_POINTER).parent
    folders.write(source / "tokenizer.json", LFS_POINTER)
    with pytest.raises(OptionError, match=r"pytorch_model\.bin: a pointer of Git LFS.*git lfs pull"):
        weightpack.pack(source)
    result, _ = trip(folders.sharded(source.parent / "m"))
    assert [note.name for note in result.warnings] == ["pytorch_model.bin"]
    folders.write(source / "tokenizer.json", LFS_POINTER)
    weightpack.pack(source, in_place=True)
    weightpack.unpack(source, in_place=True)
    assert sorted(note.name for note in weightpack.pack(source, tmp_path / "third").warnings) == ["pytorch_model.bin", "tokenizer.json"]


def test_a_text_about_pointers_is_none(tmp_path):
    path = folders.write(tmp_path / "notes.bin", LFS_POINTER + b"#" * 1024)
    weightpack.pack(path)


def test_a_pointer_in_a_packed_directory_is_refused_by_its_path(tmp_path):
    source = folders.sharded(tmp_path / "m")
    packed = tmp_path / "m-wp"
    weightpack.pack(source)
    folders.write(packed / "model-00002-of-00002.safetensors", LFS_POINTER)
    unpacks = (lambda path: weightpack.unpack(path, tmp_path / "back"), lambda path: weightpack.unpack(path, in_place=True))
    for call in (weightpack.verify, weightpack.inspect, *unpacks):
        with pytest.raises(FormatError, match="model-00002-of-00002"):
            call(packed)
    assert not (tmp_path / "back").exists()
