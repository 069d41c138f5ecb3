# SPDX-License-Identifier: Apache-2.0
"""torch modules with packed weights, beside the same modules with plain ones: every output, gradient and state to the last bit."""

from __future__ import annotations

import copy
import io

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

from weightpack.errors import OptionError
from weightpack.torch import PackedEmbedding, PackedLinear, PackedTensor, compress

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class ScaledEmbedding(torch.nn.Embedding):
    """As transformers has them: its own forward."""

    def forward(self, numbers):
        return super().forward(numbers) * 3


class Model(torch.nn.Module):
    """An embedding that is tied to the head, and one of a class of its own."""

    def __init__(self):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(900, 256), ScaledEmbedding(400, 256)
        self.up, self.down = torch.nn.Linear(256, 600), torch.nn.Linear(600, 256)
        self.small, self.head = torch.nn.Linear(256, 256, bias=False), torch.nn.Linear(256, 900, bias=False)
        self.small.weight = torch.nn.Parameter(torch.eye(256)[:16].repeat(16, 1))
        self.head.weight = self.words.weight

    def forward(self, numbers):
        hidden = self.words(numbers) + self.places(numbers % 400)
        return self.head(hidden + self.down(torch.relu(self.up(hidden))) + self.small(hidden))


@pytest.fixture(params=DTYPES, ids=str)
def plain(request):
    torch.manual_seed(0)
    return Model().to(request.param)


NUMBERS = torch.arange(33).reshape(3, 11) * 37 % 900


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(type(b[name]) is torch.Tensor and same(a[name], b[name]) for name in a)


def test_outputs_state_and_names(plain):
    packed = compress(copy.deepcopy(plain))
    assert isinstance(packed.words, PackedEmbedding) and isinstance(packed.up, PackedLinear) and isinstance(packed.places, ScaledEmbedding)
    assert sum(isinstance(parameter, PackedTensor) for parameter in packed.parameters()) == 5
    assert same(packed(NUMBERS), plain(NUMBERS)) and same_state(plain, packed)
    assert [name for name, _ in packed.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert {name: (p.shape, p.dtype) for name, p in packed.named_parameters()} == {name: (p.shape, p.dtype) for name, p in plain.named_parameters()}
    assert not any(parameter.requires_grad for parameter in packed.parameters() if isinstance(parameter, PackedTensor))
    assert "packed to" in repr(packed.up) and "packed to" in repr(packed.places)
    assert compress(packed) is packed and same(packed(NUMBERS), plain(NUMBERS))  # twice is once


def test_what_is_left_alone():
    model = torch.nn.ModuleDict({
        "small": torch.nn.Linear(10, 10), "wide": torch.nn.Linear(300, 300).double(), "renormed": torch.nn.Embedding(300, 300, max_norm=1),
        "noise": torch.nn.Linear(300, 300, bias=False),
    })  # fmt: skip
    with torch.no_grad():
        model["noise"].weight.view(torch.int32).random_(-(2**31), 2**31 - 1)
    assert not any(isinstance(parameter, PackedTensor) for parameter in compress(model).parameters())
    assert any(isinstance(parameter, PackedTensor) for parameter in compress(torch.nn.Sequential(torch.nn.Linear(30, 30)), least_elems=100).parameters())
    with pytest.raises(OptionError, match="max_norm"):
        PackedEmbedding(model["renormed"])


def test_a_tie_to_what_is_left_alone(plain):
    """Both stay plain, and tied."""
    plain.register_parameter("table", plain.words.weight)
    packed = compress(plain)
    assert packed.table is packed.words.weight is packed.head.weight
    assert not isinstance(packed.table, PackedTensor) and isinstance(packed.up.weight, PackedTensor)


def test_ties(plain):
    packed = compress(copy.deepcopy(plain))
    again = io.BytesIO()
    torch.save(packed, again)
    again.seek(0)
    copies = [packed, copy.deepcopy(packed), torch.load(again, weights_only=False), compress(copy.deepcopy(plain)).to(torch.float64)]
    for made in copies:
        assert made.head.weight is made.words.weight and isinstance(made.head.weight, torch.nn.Parameter) and isinstance(made.places, ScaledEmbedding)
        state = made.state_dict()
        assert state["head.weight"].data_ptr() == state["words.weight"].data_ptr()
        assert same(made(NUMBERS), copy.deepcopy(plain).to(made.up.bias.dtype)(NUMBERS))
    away = packed.to("meta")
    assert away.head.weight is away.words.weight and away.head.weight.device.type == "meta" and not isinstance(away.up.weight, PackedTensor)


def test_load_state_dict(plain):
    packed, other = compress(copy.deepcopy(plain)), Model().to(plain.up.weight.dtype)
    packed.load_state_dict(other.state_dict())
    assert isinstance(packed.up.weight, PackedTensor) and same_state(other, packed) and same(packed(NUMBERS), other(NUMBERS))
    packed.load_state_dict(plain.state_dict(), assign=True)
    assert not isinstance(packed.up.weight, PackedTensor) and same(packed(NUMBERS), plain(NUMBERS))
    assert same(plain(NUMBERS), compress(packed)(NUMBERS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_to_dtype(plain, dtype):
    """What is converted is packed again."""
    packed = compress(copy.deepcopy(plain)).to(dtype)
    assert isinstance(packed.up.weight, PackedTensor) and packed.up.weight.dtype == dtype and packed.head.weight is packed.words.weight
    assert same_state(plain.to(dtype), packed) and same(packed(NUMBERS), plain(NUMBERS))


def test_gradients(plain):
    """Of what the weights are applied to, and of biases."""
    packed, gradients = compress(copy.deepcopy(plain)), []
    for model in (plain, packed):
        hidden = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(1)).to(plain.up.weight.dtype).requires_grad_()
        model.down(torch.relu(model.up(hidden))).float().square().sum().backward()
        gradients.append((hidden.grad, model.up.bias.grad, model.down.bias.grad))
    assert all(same(a, b) for a, b in zip(*gradients, strict=True)) and packed.up.weight.grad is None


def test_autocast():
    torch.manual_seed(0)
    plain, gradients = Model(), []
    packed = compress(copy.deepcopy(plain))
    for model in (plain, packed):
        hidden = torch.randn(2, 256, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = model.up(hidden)
        result.float().square().sum().backward()
        gradients.append((result, hidden.grad))
    assert all(same(a, b) for a, b in zip(*gradients, strict=True))


def test_any_operator(plain):
    weight, stock = compress(copy.deepcopy(plain)).up.weight, plain.up.weight.detach()
    operators = [
        lambda w: w[3], lambda w: w.t() @ w, lambda w: w.float().sum(0), lambda w: torch.cat([w, w]), lambda w: w.view(torch.uint8), lambda w: w.clone(),
        lambda w: torch.addmm(torch.ones(600).to(w.dtype), torch.ones(2, 256).to(w.dtype), w.t()), lambda w: torch.empty_like(w).copy_(w), lambda w: w * 2,
    ]  # fmt: skip
    assert all(same(operator(stock), operator(weight)) for operator in operators)
    assert weight.tolist() == stock.tolist() and repr(weight).startswith("PackedTensor(")


def test_changes(plain):
    """An operator that changes the weight itself packs it anew; a view is a copy."""
    packed, stock = compress(copy.deepcopy(plain)), copy.deepcopy(plain)
    with torch.no_grad():
        for model in (packed, stock):
            model.up.weight.data += 1
            model.up.weight[5] = 7
            model.words.weight.mul_(0.5)
            model.down.weight.data = model.down.weight.data.clone() * 3
    assert isinstance(packed.up.weight, PackedTensor) and same_state(stock, packed) and same(packed(NUMBERS), stock(NUMBERS))
    with torch.no_grad():
        packed.up.weight[0].zero_()
    assert same_state(stock, packed)


@pytest.mark.filterwarnings("default")
def test_torch_compile():
    """The packed modules stay out of the graphs."""
    torch.manual_seed(0)
    plain = Model()
    torch._dynamo.reset()
    compiled = torch.compile(compress(copy.deepcopy(plain)), backend="eager")
    with torch.no_grad():
        assert same(compiled(NUMBERS), plain(NUMBERS))


def test_an_index_that_is_not_there(plain):
    with pytest.raises(IndexError):
        compress(plain)(torch.tensor([900]))
