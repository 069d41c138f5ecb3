# SPDX-License-Identifier: Apache-2.0
"""What is fetched in place of a file (LFS pointers, pages that say why not), or has the wrong name: every door names the file and says what it is."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import samples

import weightpack
from weightpack.errors import FormatError
from weightpack.integrations.swap import packed_aware_safe_open
from weightpack.io.files import MemoryFile
from weightpack.sources.mistaken import kind_of_mistake
from weightpack.sources.safetensors import read_header

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"7" * 64 + b"\nsize 160088\n"
MISTAKEN = {
    "lfs_pointer": (POINTER, "Git LFS pointer.*run `git lfs pull`"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page, .*fetch the file again"),
    "html_in_capitals": (b"<HTML><HEAD><TITLE>Not Found</TITLE>", "an HTML page"),
    "xml": (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>', "XML, .*fetch the file again"),
    "json": (b'\xef\xbb\xbf{"error":"Repository not found"}', "JSON, .*fetch the file again"),
    "text": (b"Invalid username or password.", "text, .*fetch the file again"),
    "hub_text": (b"Entry not found", "text, .*fetch the file again"),
    "zeros": (bytes(5000), "zeros, .*fetch the file again"),
    "torch": (samples.other_files()["torch"], "zip file, as torch.save writes"),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "pickle"),
    "gguf": (samples.other_files()["gguf"], "GGUF"),
    "npy": (samples.other_files()["npy"], "numpy array"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "gzip"),
}


@pytest.mark.parametrize(("data", "kind"), MISTAKEN.values(), ids=MISTAKEN)
def test_every_door_says_what_the_file_is(tmp_path, data, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    doors = {
        "pack": weightpack.pack, "pack in place": lambda path: weightpack.pack(path, in_place=True), "estimate": weightpack.estimate,
        "inspect": weightpack.inspect, "verify": weightpack.verify, "unpack": lambda path: weightpack.unpack(path, tmp_path / "out"),
        "unpack in place": lambda path: weightpack.unpack(path, in_place=True), "open": weightpack.safe_open, "base": lambda path: weightpack.pack(
            _plain(tmp_path), base=path),
    }  # fmt: skip
    for door, opens in doors.items():
        with pytest.raises(FormatError, match=kind) as caught:
            opens(path)
        assert caught.value.path == str(path), door
    assert path.read_bytes() == data


def _plain(folder):
    (folder / "plain.safetensors").write_bytes(samples.bf16_file(seed=1, name="w", n=1000))
    return folder / "plain.safetensors"


@pytest.mark.parametrize("config", [{}, {"model_type": "bert"}, {"model_type": "bert", "dtype": "float32"}], ids=["no_config", "no_dtype", "dtype"])
def test_a_pointer_among_shards(tmp_path, config):
    """As `git clone` without git-lfs leaves them; plain, and packed."""
    plain, packed = tmp_path / "m", tmp_path / "m-wp"
    plain.mkdir()
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, name in enumerate(names):
        (plain / name).write_bytes(samples.bf16_file(seed=i, name=f"w{i}", n=1000))
    (plain / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(names)}}))
    if config:
        (plain / "config.json").write_text(json.dumps(config))
    weightpack.pack(plain)
    for folder in (plain, packed):
        (folder / names[1]).write_bytes(POINTER)

    def refused(opens, folder):
        with pytest.raises(FormatError, match="git lfs pull") as caught:
            opens(folder)
        assert str(folder) in str(caught.value)
        assert names[1] in str(caught.value)

    refused(lambda folder: weightpack.pack(folder, tmp_path / "new"), plain)
    refused(lambda folder: weightpack.pack(folder, in_place=True), plain)
    refused(weightpack.estimate, plain)
    refused(lambda folder: weightpack.unpack(folder, tmp_path / "new"), packed)
    refused(weightpack.verify, packed)
    refused(weightpack.inspect, packed)
    refused(lambda folder: weightpack.unpack(folder, in_place=True), packed)
    assert not (tmp_path / "new").exists()


def test_the_stock_library_gets_what_is_not_packed(tmp_path):
    """It says what is wrong in its own words."""
    import safetensors

    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(safetensors.SafetensorError):
        packed_aware_safe_open(tmp_path / "model.safetensors", "np")


def test_by_another_name_it_is_packed_as_bytes_but_for_a_pointer(tmp_path):
    for data, kind in MISTAKEN.values():
        (tmp_path / "file.bin").write_bytes(data)
        if data == POINTER:
            with pytest.raises(FormatError, match=kind):
                weightpack.pack(tmp_path / "file.bin", tmp_path / "packed", overwrite=True)
            continue
        weightpack.pack(tmp_path / "file.bin", tmp_path / "packed", overwrite=True)
        weightpack.unpack(tmp_path / "packed", tmp_path / "back", overwrite=True)
        assert (tmp_path / "back").read_bytes() == data


def test_safetensors_files_are_no_mistake():
    """Nor is a damaged one something else: what is wrong with it is said."""
    data = samples.mixed_file()
    assert kind_of_mistake(data[:512]) is None
    for n in (0, 1, 7, 8, 9, 100):
        with pytest.raises(FormatError) as caught:
            read_header(MemoryFile([data[:n]], "model.safetensors"))
        assert "not a safetensors file" not in str(caught.value)
    saved = io.BytesIO()
    np.savez(saved, a=np.zeros(3))
    assert kind_of_mistake(saved.getvalue()[:512]) is not None
