# SPDX-License-Identifier: Apache-2.0
"""Plugins of serving engines, where the engines are not: their modules are stubs that have what their loaders bind and read. tests/ecosystem/test_vllm.py has
the real vLLM; SGLang has these tests alone, and docs/ECOSYSTEM.md says so.
"""

from __future__ import annotations

import json
import re
import sys
import types
from importlib.metadata import entry_points
from pathlib import Path

import hub_double
import pytest
import safetensors
import safetensors.torch
import torch
from huggingface_hub import HfApi

import weightpack
from weightpack.integrations import engine, serving, swap
from weightpack.models.directory import without_flag

EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"


@pytest.fixture
def files(tmp_path):
    """A model of one expert in 8 bits, and it packed."""
    torch.manual_seed(0)
    tensors = {EXPERT: (torch.randn(400, 300) * 0.1).to(torch.float8_e4m3fn), "norm.weight": torch.ones(300).bfloat16()}
    (tmp_path / "m").mkdir()
    safetensors.torch.save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    weightpack.pack(tmp_path / "m", tmp_path / "m-wp")
    yield tensors, tmp_path / "m", tmp_path / "m-wp"
    weightpack.disable()


@pytest.fixture
def module(monkeypatch):
    """Return a function that puts a module there, and what is above it."""

    def put(name, **contents):
        for end in range(name.count(".") + 1):
            above = ".".join(name.split(".")[: end + 1])
            if above not in sys.modules:
                monkeypatch.setitem(sys.modules, above, types.ModuleType(above))
                if end:
                    setattr(sys.modules[above.rpartition(".")[0]], above.rpartition(".")[2], sys.modules[above])
        vars(sys.modules[name]).update(contents)
        return sys.modules[name]

    return put


@pytest.mark.parametrize(("group", "name"), [("vllm.general_plugins", "vllm.model_executor.weight_utils"), ("sglang.srt.plugins", "sglang.srt.weight_utils")])
def test_plugins_read_packed_files_whatever_else_is_missing(files, module, caplog, group, name):
    tensors, _, packed = files
    stub = module(name, safetensors=safetensors, safe_open=safetensors.safe_open, load=safetensors.torch.load)
    (plugin,) = [point for point in entry_points(group=group) if point.name == "weightpack"]
    plugin.load()()
    plugin.load()()  # in every process, perhaps twice
    assert "weightpack does not know this version" in caplog.text
    assert stub.safe_open is swap.packed_aware_safe_open
    with stub.safe_open(packed / "model.safetensors", framework="pt") as opened:  # how both iterate over weights
        assert all(torch.equal(opened.get_tensor(name).view(torch.uint8), tensors[name].view(torch.uint8)) for name in opened.keys())
    assert sorted(stub.load((packed / "model.safetensors").read_bytes())) == sorted(tensors)
    weightpack.disable()
    assert stub.safe_open is safetensors.safe_open


def dtype_of_experts(model_path):
    """As SGLang 0.5.23 finds it out (probe_routed_expert_weight_dtype)."""
    with (sorted(Path(model_path).glob("*.safetensors"))[0]).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return next((entry["dtype"] for name, entry in header.items() if re.search(r"\.experts\.\d+\.up_proj\.weight$", name)), None)


def all_at_once(hf_weights_files, max_workers):
    raise AssertionError("packed files are not read so")
    yield


def test_sglang(files, module):
    tensors, plain, packed = files
    weight_utils = module("sglang.srt.model_loader.weight_utils", probe_routed_expert_weight_dtype=dtype_of_experts,
                          buffered_multi_thread_safetensors_weights_iterator=all_at_once)  # fmt: skip
    loader = module("sglang.srt.model_loader.loader", buffered_multi_thread_safetensors_weights_iterator=all_at_once)
    assert weight_utils.probe_routed_expert_weight_dtype(str(packed)) == "U8"
    serving.sglang()
    assert weight_utils.probe_routed_expert_weight_dtype(str(packed)) == weight_utils.probe_routed_expert_weight_dtype(str(plain)) == "F8_E4M3"
    read = dict(loader.buffered_multi_thread_safetensors_weights_iterator([str(packed / "model.safetensors")], 8))
    assert torch.equal(read["norm.weight"], tensors["norm.weight"])
    with pytest.raises(AssertionError, match="not read so"):
        next(loader.buffered_multi_thread_safetensors_weights_iterator([str(plain / "model.safetensors")], 8))


def test_header_on_a_hub(files, monkeypatch):
    """Who asks the Hub for a header is told the source's, from what the Hub's client has fetched."""
    _, plain, packed = files
    monkeypatch.setattr(HfApi, "parse_safetensors_file_metadata", HfApi.parse_safetensors_file_metadata)  # and given back
    with hub_double.serve({"org/plain": plain, "org/packed": packed}) as hub:
        api = HfApi(endpoint=hub.url, token=False)
        told = [api.get_safetensors_metadata(repo).files_metadata["model.safetensors"] for repo in ("org/plain", "org/packed")]
        assert told[1].tensors["norm.weight"].dtype == "U8"
        weightpack.enable()
        engine.wrap_headers_on_the_hub()
        told[1] = api.get_safetensors_metadata("org/packed").files_metadata["model.safetensors"]
    assert told[0].metadata == told[1].metadata
    assert told[0].parameter_count == told[1].parameter_count
    assert {name: (info.dtype, info.shape) for name, info in told[0].tensors.items()} == {n: (info.dtype, info.shape) for n, info in told[1].tensors.items()}


@pytest.mark.parametrize("method", [None, {"quant_method": "gptq", "bits": 4}])
def test_flag(tmp_path, files, method):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **({"quantization_config": method} if method else {})}
    (files[1] / "config.json").write_text(json.dumps(config))
    weightpack.pack(files[1], tmp_path / "flagged", hf_flag=True)
    flagged = json.loads((tmp_path / "flagged" / "config.json").read_text())
    assert flagged["quantization_config"]["quant_method"] == "weightpack"
    assert without_flag(flagged) == without_flag(config) == config
