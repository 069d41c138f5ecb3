# SPDX-License-Identifier: Apache-2.0
"""The memory of what is handed out: aligned to 64 bytes, contiguous, no larger than the tensor."""

from __future__ import annotations

import io

import numpy as np
import pytest
import safetensors.torch
import torch

import weightpack
import weightpack.numpy
import weightpack.torch

KEYS = [
    Ellipsis, slice(None), slice(3, 9), slice(1, 40, 3), 5, -1, (slice(None), slice(1, 4)), (slice(2, 9), 3), (7, 3), (Ellipsis, 2), slice(4, 4),
    [1, 5, 30], None,
]  # fmt: skip


@pytest.fixture(scope="module", params=["packed", "plain"])
def path(request, tmp_path_factory):
    """Odd lengths, so that tensors of the plain file begin anywhere."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{i}": torch.randn(41, 2 * i + 5, generator=generator) for i in range(8)}
    tensors |= {f"{name}.f16": tensor.half() for name, tensor in tensors.items()} | {f"{name}.f64": tensor.double() for name, tensor in tensors.items()}
    tensors |= {"large": torch.randn(3000, 301, generator=generator), "scalar": torch.tensor(0.25), "empty": torch.empty(0, 4)}
    path = tmp_path_factory.mktemp("memory") / "m.safetensors"
    (weightpack.torch.save_file if request.param == "packed" else safetensors.torch.save_file)(tensors, path)
    return path


def in_order(array):
    """Is an array aligned to 64 bytes and contiguous? (An empty one has no address.)"""
    if isinstance(array, torch.Tensor):
        return array.data_ptr() % 64 == 0 and array.is_contiguous()
    return (array.size == 0 or array.ctypes.data % 64 == 0) and array.flags.c_contiguous and array.flags.writeable


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_tensors_and_slices_are_aligned(path, framework):
    with weightpack.safe_open(path, framework) as opened:
        whole = opened.get_tensors()
        assert all(in_order(tensor) for tensor in whole.values())
        for name in ("w0", "w3.f16", "w7.f64", "large"):
            for key in KEYS:
                part, expected = opened.get_slice(name)[key], whole[name][key]
                assert in_order(part), (name, key)
                assert part.shape == expected.shape
                assert part.dtype == expected.dtype
                assert (part == expected).all()


def test_files_and_frames_are_aligned(path):
    for module in (weightpack.numpy, weightpack.torch):
        assert all(in_order(tensor) for tensor in module.load_file(path).values())
        assert all(in_order(tensor) for tensor in module.load(path.read_bytes()).values())
    rng = np.random.default_rng(0)
    for n in range(1, 3000, 100):  # kept and packed ones
        assert in_order(weightpack.decode(weightpack.encode(rng.standard_normal(n).astype(np.float32))))
    unpacked = weightpack.torch.HuffmanDecompressor()(weightpack.torch.HuffmanCompressor()(torch.randn(999, generator=torch.Generator().manual_seed(1))))
    assert in_order(unpacked)


def test_a_torch_tensor_owns_its_bytes_and_no_others(path):
    """What torch.save writes, and what is shared, is the storage."""
    with weightpack.safe_open(path, "pt") as opened:
        for tensor in (opened.get_tensor("large"), opened.get_slice("large")[5:9], opened.get_slice("large")[:, 3:4], opened.get_slice("large")[3, 5]):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            assert tensor.storage_offset() == 0
            file = io.BytesIO()
            torch.save(tensor, file)
            assert len(file.getvalue()) < tensor.nbytes + 2000


def test_a_numpy_slice_does_not_hold_the_whole_tensor(path):
    with weightpack.safe_open(path, "np") as opened:
        part = opened.get_slice("large")[:, 3:4]
    while part.base is not None:
        part = part.base
    assert part.nbytes < 3000 * 4 + 64
