# SPDX-License-Identifier: Apache-2.0
"""The modules that pack tensors inside a model."""

from __future__ import annotations

import pytest
import torch

from weightpack.errors import FormatError, LimitError, OptionError
from weightpack.torch import HuffmanCompressor, HuffmanDecompressor

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("codec", ["huffman", "rans", "zstd", "raw", "auto"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bit_exact(dtype, codec):
    torch.manual_seed(0)
    compressor, decompressor = HuffmanCompressor(codec), HuffmanDecompressor()
    for shape in ((64, 700), (3,), (), (0, 5)):
        tensor = (torch.randn(shape) * 3).to(dtype)
        back = decompressor(compressor(tensor))
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(back), bits(tensor))


def test_weights_of_a_model_shrink_and_its_outputs_stay():
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(128, 4, 256, batch_first=True).bfloat16().eval()
    x = torch.randn(2, 9, 128).bfloat16()
    before, compressor, decompressor = model(x), HuffmanCompressor(), HuffmanDecompressor()
    packed = {name: compressor(tensor) for name, tensor in model.state_dict().items()}
    assert sum(map(len, packed.values())) < 0.75 * sum(2 * tensor.numel() for tensor in model.state_dict().values())
    model.load_state_dict({name: decompressor(frame) for name, frame in packed.items()})
    assert torch.equal(model(x), before)


def test_strange_values_views_and_gradients():
    compressor, decompressor = HuffmanCompressor(), HuffmanDecompressor()
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.4e38]).repeat(500)
    odd.view(torch.int32)[7] = 0x7FC01234  # a NaN with a payload
    assert torch.equal(bits(decompressor(compressor(odd))), bits(odd))
    view = torch.randn(60, 80).t()[3:50:2]
    assert torch.equal(decompressor(compressor(view)), view)
    weight = torch.nn.Parameter(torch.randn(40, 40))
    assert not compressor(weight).requires_grad


def test_state_dict_and_options():
    module = torch.nn.Sequential(HuffmanCompressor("rans", "dense"), HuffmanDecompressor())
    other = torch.nn.Sequential(HuffmanCompressor(), HuffmanDecompressor())
    other.load_state_dict(module.state_dict())
    assert other[0].codec == "rans"
    assert other[0].profile == "dense"
    assert "rans" in repr(other)
    x = torch.randn(300, 300).half()
    assert torch.equal(other(x), x)
    with pytest.raises(OptionError):
        HuffmanCompressor("lzma")


def test_damage_and_limits():
    compressor = HuffmanCompressor()
    packed = compressor(torch.randn(5000).bfloat16())
    packed[packed.numel() // 2] ^= 1
    with pytest.raises(FormatError):
        HuffmanDecompressor()(packed)
    with pytest.raises(LimitError):
        HuffmanDecompressor(max_bytes=1000)(compressor(torch.randn(5000)))
    with pytest.raises(OptionError):
        HuffmanDecompressor()(torch.zeros(4))
