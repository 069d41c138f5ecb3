# SPDX-License-Identifier: Apache-2.0
"""weightpack.enable, on safetensors itself."""

from __future__ import annotations

import sys

import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

import weightpack
from weightpack.errors import OptionError


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
