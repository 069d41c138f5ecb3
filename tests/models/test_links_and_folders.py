# SPDX-License-Identifier: Apache-2.0
"""Linked files and folders, empty folders, hidden ones, permissions and times: carried over, or said to be left out."""

from __future__ import annotations

import os
import socket

import folders
import pytest
import samples

import weightpack
from weightpack.errors import LimitError
from weightpack.models import directory

WEIGHTS = samples.bf16_file(seed=1, name="w", n=4000)


def trip(source):
    """Pack, verify, unpack; return the packed and the restored folder."""
    packed, back = source.with_name("packed"), source.with_name("back")
    result = weightpack.pack(source, packed)
    weightpack.verify(packed, against=source)
    weightpack.unpack(packed, back)
    return result, packed, back


def test_linked_folders_and_files_are_followed(tmp_path):
    """As those of a diffusers pipeline whose text encoder is shared; and as the Hub client's cache is made."""
    shared = tmp_path / "shared" / "t5"
    folders.write(shared / "model.safetensors", WEIGHTS)
    folders.write(shared / "config.json", "{}")
    (shared / "more").symlink_to("../elsewhere")
    folders.write(tmp_path / "shared" / "elsewhere" / "vocab.txt", "a b c")
    pipe = tmp_path / "pipe"
    folders.write(pipe / "unet" / "diffusion_pytorch_model.safetensors", WEIGHTS)
    (pipe / "text_encoder").symlink_to("../shared/t5")
    (pipe / "text_encoder_2").symlink_to(shared)
    (pipe / "model_index.json").symlink_to(folders.write(tmp_path / "blobs" / "abc", '{"_class_name": "P"}'))
    result, packed, back = trip(pipe)
    assert len(result.files) == 3
    assert result.left_out == ()
    assert folders.contents(back) == folders.contents(pipe)
    assert not any(path.is_symlink() for folder in (packed, back) for path in folder.rglob("*"))


def test_links_that_lead_back_and_links_that_lead_nowhere_are_said(tmp_path):
    folder = tmp_path / "m"
    folders.write(folder / "sub" / "model.safetensors", WEIGHTS)
    (folder / "loop").symlink_to(".")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "broken").symlink_to("../gone")
    (folder / "itself").symlink_to("itself")
    os.mkfifo(folder / "pipe")
    result, _, back = trip(folder)
    left_out = {note.name: note.reason for note in result.left_out}
    assert left_out.keys() == {"loop", "sub/up", "broken", "itself", "pipe"}
    assert "a folder that it is in" in left_out["loop"]
    assert "leads nowhere" in left_out["broken"]
    assert folders.contents(back) == {"sub": None, "sub/model.safetensors": WEIGHTS}


def test_sockets_are_said(tmp_path, monkeypatch):
    folders.write(tmp_path / "m" / "model.safetensors", WEIGHTS)
    monkeypatch.chdir(tmp_path / "m")  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        result, *_ = trip(tmp_path / "m")
    assert [note.name for note in result.left_out] == ["socket"]


def test_links_that_make_few_folders_look_like_many(tmp_path, monkeypatch):
    folders.write(tmp_path / "m" / "model.safetensors", WEIGHTS)
    for i in range(12):
        for name in ("a", "b"):
            (tmp_path / f"d{i}").mkdir(exist_ok=True)
            (tmp_path / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    (tmp_path / "d12").mkdir()
    (tmp_path / "m" / "links").symlink_to("../d0")
    monkeypatch.setattr(directory, "MAX_ENTRIES", 2000)
    with pytest.raises(LimitError, match="more than 2000"):
        weightpack.pack(tmp_path / "m")


def test_deep_folders(tmp_path):
    deep = tmp_path / "m"
    for _ in range(300):
        deep = deep / "d"
    folders.write(deep / "notes.txt", "deep")
    folders.write(tmp_path / "m" / "model.safetensors", WEIGHTS)
    _, _, back = trip(tmp_path / "m")
    assert folders.contents(back) == folders.contents(tmp_path / "m")


def test_hidden_and_empty_folders_stay_and_working_files_are_said(tmp_path):
    folder = tmp_path / "m"
    kept = ["model.safetensors", ".hidden", ".gitattributes", ".eval/results.json", ".cache/mine", "a/b/c.txt", "runs/.keep"]
    left = [".git/HEAD", "__pycache__/a.pyc", "code/__pycache__/b.pyc", ".cache/huggingface/download/x", f".model.safetensors.{'0' * 16}.wp-partial"]
    for name in (*kept, *left):
        folders.write(folder / name, WEIGHTS if name.endswith("safetensors") else name)
    for name in ("empty", "logs/empty", ".empty"):
        (folder / name).mkdir(parents=True)
    result, packed, back = trip(folder)
    assert [note.name for note in result.left_out] == [
        ".cache/huggingface", ".git", f".model.safetensors.{'0' * 16}.wp-partial", "__pycache__", "code/__pycache__"
    ]  # fmt: skip
    working = (".git/", "__pycache__", "huggingface", "partial")
    expected = {name: data for name, data in folders.contents(folder).items() if name != ".git" and not any(part in name for part in working)}
    assert folders.contents(back) == expected
    assert {name for name, data in folders.contents(packed).items() if data is None} == {name for name, data in expected.items() if data is None}


def test_a_cache_of_the_hub_client_alone_leaves_no_empty_folder(tmp_path):
    folders.write(tmp_path / "m" / "model.safetensors", WEIGHTS)
    folders.write(tmp_path / "m" / ".cache" / "huggingface" / "x", "x")
    result, packed, _ = trip(tmp_path / "m")
    assert [note.name for note in result.left_out] == [".cache/huggingface"]
    assert not (packed / ".cache").exists()


def test_permissions_and_times_are_kept(tmp_path):
    folder = tmp_path / "m"
    modes = {"model.safetensors": 0o640, "run.sh": 0o755, "secret.key": 0o600, "config.json": 0o664, "sub/modeling_x.py": 0o444, "pytorch_model.bin": 0o604}
    for i, (name, mode) in enumerate(modes.items()):
        data = WEIGHTS if name.endswith("safetensors") else samples.weights(100_000, "F32") if name.endswith("bin") else '{"model_type": "bert"}'
        folders.write(folder / name, data).chmod(mode)
        os.utime(folder / name, ns=(10**18 + i, 10**18 + 2 * i))
    (folder / "empty").mkdir(mode=0o750)
    (folder / "sub").chmod(0o700)
    folder.chmod(0o711)
    before = folders.states(folder)
    _, packed, back = trip(folder)
    assert folders.states(back) == before
    of_packed = {name.removesuffix(".wp"): state for name, state in folders.states(packed).items() if name != "weightpack.json"}
    assert of_packed == before
    assert packed.stat().st_mode & 0o777 == back.stat().st_mode & 0o777 == 0o711


def test_a_file_alone_keeps_permissions_and_times(tmp_path):
    source = folders.write(tmp_path / "model.safetensors", WEIGHTS)
    source.chmod(0o640)
    os.utime(source, ns=(10**18, 10**18 + 5))
    weightpack.pack(source)
    source.rename(tmp_path / "original")
    weightpack.unpack(tmp_path / "model.wp.safetensors")
    for name in ("model.wp.safetensors", "model.safetensors"):
        state = (tmp_path / name).stat()
        assert (state.st_mode & 0o777, state.st_mtime_ns) == (0o640, 10**18 + 5)
