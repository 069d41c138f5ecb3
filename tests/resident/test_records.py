# SPDX-License-Identifier: Apache-2.0
"""Records out of a packed file, not decoded: which tensors have one, mapped or read, and what a loader gets in the tensor's place."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

import weightpack
from weightpack.arrays.memory import TorchFramework
from weightpack.io.files import LocalFile, MemoryFile
from weightpack.reading.tensors import SafeOpen
from weightpack.resident.modules import keep_packed
from weightpack.torch import PackedTensor, safe_open, save_file

LARGE = (torch.randn(300, 400, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
TENSORS = {
    "large": LARGE, "the same": LARGE.clone(), "small": LARGE[:2].clone(), "bits": torch.randint(-(2**15), 2**15 - 1, (300, 400)).to(torch.int16),
    "flat": LARGE.reshape(-1) * 2, "noise": torch.randint(-(2**15), 2**15 - 1, (300, 400)).to(torch.int16).view(torch.bfloat16),
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def whole(opened, name):
    tensor = opened.get_slice(name)
    keep_packed(tensor)
    return tensor[...]


def test_what_a_loader_gets(path):
    with safe_open(path) as opened:
        given = {name: whole(opened, name) for name in opened.keys()}
        assert {name for name, tensor in given.items() if isinstance(tensor, PackedTensor)} == {"large", "the same"}  # one is stored as the other
        assert torch.equal(opened.get_slice("large")[...], LARGE)  # nobody asked for another form
        kept = opened.get_slice("large")
        keep_packed(kept)
        assert torch.equal(kept[3:5], LARGE[3:5])
    for name, tensor in given.items():  # the file is closed: what is mapped stays
        plain = tensor.plain() if isinstance(tensor, PackedTensor) else tensor
        assert torch.equal(plain.view(torch.uint8), TENSORS[name].view(torch.uint8))
    assert not given["large"].packed.record.flags.writeable


def test_a_file_that_is_not_on_this_machine(path):
    """Its records are read."""
    opened = SafeOpen(MemoryFile([path.read_bytes()]), TorchFramework())
    given = whole(opened, "large")
    assert isinstance(given, PackedTensor) and torch.equal(given.plain(), LARGE)


def test_a_plain_file_and_a_difference_have_no_records(tmp_path):
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    for target, tensor in ((base, LARGE), (tuned, (LARGE.float() + 1e-6).bfloat16())):
        save_file({"large": tensor}, tmp_path / "packed")
        weightpack.unpack(tmp_path / "packed", target)
    weightpack.pack(tuned, tmp_path / "tuned.wp.safetensors", base=base)
    for path in (base, tmp_path / "tuned.wp.safetensors"):
        with safe_open(path) as opened:
            assert opened.get_slice("large").get_record() is None and not isinstance(whole(opened, "large"), PackedTensor)


def test_mapped(path):
    with LocalFile(path) as file:
        mapped = file.mapped()
        assert file.mapped() is mapped
    assert mapped.tobytes() == path.read_bytes() and not mapped.flags.writeable
