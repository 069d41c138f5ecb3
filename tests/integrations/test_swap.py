# SPDX-License-Identifier: Apache-2.0
"""weightpack.enable, on safetensors itself and on modules that bind its names as serving engines do.

vLLM and SGLang can't be installed here: their modules are stubs with the documented interface (entry-point groups, and the names that their weight loaders
bind), marked so in docs/ECOSYSTEM.md.
"""

from __future__ import annotations

import json
import sys
import types
from importlib.metadata import entry_points

import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

import weightpack
from weightpack.errors import OptionError
from weightpack.integrations import swap


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    tensors = {"w": torch.randn(400, 300).bfloat16(), "b": torch.arange(5)}
    safetensors.torch.save_file(tensors, tmp_path / "plain.safetensors", {"format": "pt"})
    weightpack.pack(tmp_path / "plain.safetensors", tmp_path / "packed.safetensors")
    yield tensors, tmp_path / "plain.safetensors", tmp_path / "packed.safetensors"
    weightpack.disable()


def same(a, b):
    return sorted(a) == sorted(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_safetensors_reads_both(files):
    tensors, plain, packed = files
    bound_before = safetensors.torch.load_file
    weightpack.enable()
    for path in (plain, packed):
        assert same(safetensors.torch.load_file(path), tensors)
        assert same(bound_before(path), tensors)
        assert same(safetensors.torch.load(path.read_bytes()), tensors)
        with safetensors.safe_open(path, framework="pt", device="cpu") as opened:
            assert opened.keys() == ["b", "w"]
            assert opened.metadata() == {"format": "pt"}
            assert torch.equal(opened.get_slice("w")[7:9, :3], tensors["w"][7:9, :3])
        module = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.zeros(400, 300, dtype=torch.bfloat16))})
        safetensors.torch.load_model(module, path, strict=False)
        assert torch.equal(module["w"], tensors["w"])
    with pytest.raises(OptionError, match="unpack"):
        safetensors.safe_open(packed, framework="flax")
    weightpack.disable()
    assert safetensors.torch.load_file(packed)["w"].dtype == torch.uint8


def test_plain_files_get_the_stock_object(files):
    _, plain, _ = files
    stock = safetensors.safe_open
    weightpack.enable()
    assert type(safetensors.safe_open(plain, "pt")) is stock
    assert isinstance(safetensors.safe_open(filename=str(plain), framework="np"), stock)


def test_importing_weightpack_changes_nothing():
    import subprocess

    program = "import safetensors.torch as t, safetensors as s; a = s.safe_open, t.load; import weightpack, weightpack.torch; assert (s.safe_open, t.load) == a"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("group", "module_name"), [("vllm.general_plugins", "vllm.model_executor.weight_utils"), ("sglang.srt.plugins", "sglang.srt.weight_utils")]
)
def test_serving_engines_plug_in(files, monkeypatch, group, module_name):
    tensors, _, packed = files
    stub = types.ModuleType(module_name)
    exec("from safetensors.torch import load, load_file\nfrom safetensors import safe_open\nimport safetensors", vars(stub))
    monkeypatch.setitem(sys.modules, module_name, stub)
    (plugin,) = [point for point in entry_points(group=group) if point.name == "weightpack"]
    plugin.load()()
    plugin.load()()  # in every process, perhaps twice
    assert stub.safe_open is swap.packed_aware_safe_open
    with stub.safe_open(packed, framework="pt") as opened:  # how both iterate over weights
        assert same({name: opened.get_tensor(name) for name in opened.keys()}, tensors)
    assert same(stub.load(packed.read_bytes()), tensors)
    weightpack.disable()
    assert stub.safe_open is safetensors.safe_open


def test_vllm_is_told_the_dtypes_of_the_plain_model(files, monkeypatch):
    """Where config.json names no dtype, vLLM 0.33 reads the headers by a function of its own, that other modules have bound."""
    _, plain, packed = files
    for name in ("vllm", "vllm.transformers_utils", "vllm.transformers_utils.utils", "vllm.transformers_utils.config"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    utils, config = sys.modules["vllm.transformers_utils.utils"], sys.modules["vllm.transformers_utils.config"]

    def parse_safetensors_file_metadata(path):
        with open(path, "rb") as file:
            return json.loads(file.read(int.from_bytes(file.read(8), "little")))

    for module in (utils, config):
        vars(module)["parse_safetensors_file_metadata"] = parse_safetensors_file_metadata
    weightpack.enable()  # before the plugin, as a program may
    (plugin,) = [point for point in entry_points(group="vllm.general_plugins") if point.name == "weightpack"]
    plugin.load()()
    expected = config.parse_safetensors_file_metadata(plain)
    assert expected["w"]["dtype"] == "BF16"
    assert "data_offsets" in expected["w"]  # the stock function's
    told = config.parse_safetensors_file_metadata(packed)
    assert told == {name: {key: value for key, value in entry.items() if key != "data_offsets"} for name, entry in expected.items()}
    weightpack.disable()
    assert config.parse_safetensors_file_metadata is parse_safetensors_file_metadata
    assert config.parse_safetensors_file_metadata(packed)["w"]["dtype"] == "U8"
