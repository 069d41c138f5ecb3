# SPDX-License-Identifier: Apache-2.0
"""The node pack of ComfyUI, on a double of the functions of `comfy.utils` that it wraps; on ComfyUI itself: tests/ecosystem/test_comfyui.py."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch

import weightpack
from weightpack.integrations import comfyui

FOLDER = Path(__file__).resolve().parents[2] / "integrations" / "comfyui"
DTYPES = {"BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}


def module(name, **members):
    made = types.ModuleType(name)
    vars(made).update(members)
    return made


def double(dynamic_vram):
    """Modules with ComfyUI's names. With Dynamic VRAM it reads the raw header by itself, and takes what that says."""
    memory = module("comfy.memory_management", aimdo_enabled=dynamic_vram)

    def safetensors_header(safetensors_path, max_size=100 * 1024 * 1024):
        data = Path(safetensors_path).read_bytes()
        length = int.from_bytes(data[:8], "little")
        return data[8 : 8 + length] if length <= max_size else None

    def load_torch_file(ckpt, safe_load=False, device=None, return_metadata=False):
        if not ckpt.lower().endswith((".safetensors", ".sft")):
            return torch.load(ckpt, weights_only=True)
        if not memory.aimdo_enabled:
            with safetensors.safe_open(ckpt, framework="pt", device="cpu" if device is None else device.type) as opened:
                tensors, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()
        else:
            data, header = Path(ckpt).read_bytes(), json.loads(safetensors_header(ckpt))
            metadata, begin = header.pop("__metadata__", {}), 8 + int.from_bytes(data[:8], "little")
            tensors = {
                name: torch.frombuffer(bytearray(data[begin:]), dtype=torch.uint8)[slice(*entry["data_offsets"])]
                .view(DTYPES[entry["dtype"]])
                .view(entry["shape"])
                for name, entry in header.items()
            }
        return (tensors, metadata) if return_metadata else tensors

    utils = module("comfy.utils", load_torch_file=load_torch_file, safetensors_header=safetensors_header)
    modules = (module("comfy", utils=utils, memory_management=memory), utils, memory, module("comfy.clip_vision", load_torch_file=load_torch_file))
    return {one.__name__: one for one in modules}


@pytest.fixture(params=[False, True], ids=["memory", "dynamic-vram"])
def modules(request, monkeypatch):
    modules = double(request.param)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield modules
    comfyui.disable()


def load_pack():
    """As ComfyUI loads a folder of custom_nodes."""
    spec = importlib.util.spec_from_file_location("custom_nodes_weightpack", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_packed_files_load_like_plain_ones(modules, tmp_path):
    torch.manual_seed(0)
    tensors = {"w": torch.randn(400, 300).bfloat16(), "b": torch.arange(5)}
    plain, packed, pickled = str(tmp_path / "plain.safetensors"), str(tmp_path / "packed.sft"), str(tmp_path / "a.pt")
    safetensors.torch.save_file(tensors, plain, {"format": "pt"})
    weightpack.pack(plain, packed)
    torch.save(tensors, pickled)
    stock = modules["comfy.utils"].load_torch_file
    pack = load_pack()
    assert (pack.NODE_CLASS_MAPPINGS, pack.NODE_DISPLAY_NAME_MAPPINGS) == ({}, {})
    assert stock is not modules["comfy.utils"].load_torch_file is modules["comfy.clip_vision"].load_torch_file
    load, header = modules["comfy.utils"].load_torch_file, modules["comfy.utils"].safetensors_header
    for path in (plain, packed, pickled):
        loaded = load(path, safe_load=True)
        assert loaded.keys() == tensors.keys()
        assert all(loaded[name].dtype == tensors[name].dtype and torch.equal(loaded[name], tensors[name]) for name in tensors), path
    for path in (plain, packed):
        assert load(path, False, torch.device("cpu"), True)[1] == {"format": "pt"}
        assert header(path) == header(plain)
        assert header(path, max_size=10) is None
    load_pack()  # again is once
    comfyui.disable()
    assert modules["comfy.utils"].load_torch_file is stock is modules["comfy.clip_vision"].load_torch_file


def test_damage_names_file_and_tensor(modules, tmp_path):
    path = tmp_path / "m.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file({"w": torch.randn(400, 300).bfloat16()}, path)
    weightpack.pack(path, in_place=True)
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    load_pack()
    with pytest.raises(weightpack.errors.ChecksumError, match=r"m\.safetensors, tensor 'w'"):
        modules["comfy.utils"].load_torch_file(str(path))


def test_what_the_manager_reads():
    """The registry's rules for pyproject.toml: name, version, licence, and what to install, said twice."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert project["project"]["version"] == weightpack.__version__
    assert project["project"]["dependencies"] == (FOLDER / "requirements.txt").read_text().split()
    assert project["project"]["license"] == {"text": "Apache-2.0"}
    assert (FOLDER / project["project"]["readme"]).is_file()
    assert project["tool"]["comfy"].keys() >= {"PublisherId", "DisplayName"}
