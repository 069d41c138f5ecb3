# SPDX-License-Identifier: Apache-2.0
"""`linear` that multiplies while it decodes: its error beside torch's own, and where it is used."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import numpy as np
import torch

from weightpack.arrays.contents import contents
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.options import load_profile
from weightpack.resident.tensor import MOST_FUSED_ROWS
from weightpack.resident.weight import PackedWeight
from weightpack.torch import PackedLinear, PackedTensor, compress
from weightpack.writing.record import encode_record

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Largest error of ours by torch's own: rounding to 16 bits is most of the error of both; sums of float32 differ by their order.
MOST_ERROR = {torch.float32: 4.0, torch.bfloat16: 1.05, torch.float16: 1.05}


@pytest.mark.parametrize("n_rows", [1, 3, MOST_FUSED_ROWS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_beside_torch(isa, dtype, n_rows):
    """Both against sums in double precision."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(3000, 120)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(std=0.02, generator=generator)
    linear = linear.to(dtype)
    inputs = torch.randn(n_rows, 3000, generator=generator).to(dtype)
    with torch.inference_mode():
        exact = copy.deepcopy(linear).double()(inputs.double())
        error, stock = ((result.double() - exact).abs().max().item() for result in (PackedLinear(linear, fused=True)(inputs), linear(inputs)))
    assert 0 < error <= MOST_ERROR[dtype] * stock, (error, stock)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_it_is_used(dtype):
    """Few rows and no gradient wanted; else the plain model's bits."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(3000, 120).to(dtype)
    fused = compress(torch.nn.Sequential(copy.deepcopy(plain)), fused=True)[0]
    assert isinstance(fused.weight, PackedTensor) and fused.weight.fused and copy.deepcopy(fused).weight.fused and fused.to(torch.float64).weight.fused
    fused = PackedLinear(plain, fused=True)
    many, few = torch.randn(MOST_FUSED_ROWS + 1, 3000).to(dtype), torch.randn(2, 1, 3000).to(dtype)
    assert torch.equal(fused(many), plain(many)) and torch.equal(fused(few), plain(few))  # the bias wants a gradient
    with torch.inference_mode():
        assert torch.equal(fused(many), plain(many)) and fused(few).shape == plain(few).shape and fused(few).dtype == dtype
        assert dtype is not torch.float32 or not torch.equal(fused(few), plain(few))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fused(few), plain(few))
        with pytest.raises(RuntimeError, match="rows of 1500"):
            fused(few.reshape(4, 1500))
        assert fused(few[:0]).shape == plain(few[:0]).shape


def test_a_record_of_bytes():
    """As no writer of ours makes it: what can't be multiplied is decoded first."""
    plain = torch.nn.Linear(3000, 120, bias=False).bfloat16()
    dtype, shape, data = contents(plain.weight)
    packed = PackedWeight(dtype, shape, np.array(encode_record(data, LAYOUTS[LayoutId.BYTES1], load_profile())))
    assert not packed.multiplies
    few = torch.randn(2, 3000).bfloat16()
    with torch.inference_mode():
        assert torch.equal(torch.nn.functional.linear(few, PackedTensor(packed, fused=True)), plain(few))
