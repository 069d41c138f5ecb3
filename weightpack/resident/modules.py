# SPDX-License-Identifier: Apache-2.0
"""torch modules whose weight is packed, and how a model comes by them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from weightpack.arrays.memory import TORCH_NAMES
from weightpack.errors import OptionError
from weightpack.resident.tensor import PackedTensor
from weightpack.resident.weight import PackedWeight

if TYPE_CHECKING:
    from weightpack.options import PackOptions
    from weightpack.reading.tensors import TensorSlice

LEAST_ELEMS = 1 << 16
"""Weights of fewer elements stay as they are: they are a small part of a model, and decoding them would cost most."""
_DTYPE_NAMES = ("BF16", "F16", "F32")
_DTYPES = frozenset(getattr(torch, TORCH_NAMES[name]) for name in _DTYPE_NAMES)
_N_DIMS = 2


def compress(model: torch.nn.Module, *, fused: bool = False, least_elems: int = LEAST_ELEMS, options: PackOptions | None = None) -> torch.nn.Module:
    """Pack the large weights of a model's `Linear`, `Embedding` and transformers' `Conv1D` modules, in place; returns the model.

    Each such module becomes one of a class derived from its own, which decodes its weight where it uses it: the model's outputs are the same bits as before.
    Packed weights get no gradient; what they are applied to does, so adapters can be trained on top. Weights that are tied stay tied, and are packed once. A
    model's `state_dict` holds plain tensors, and `load_state_dict` takes them.

    Parameters
    ----------
    fused
        Multiply while decoding, where a `Linear` is applied to few rows and no gradient is wanted: faster, and nothing is written to memory, but sums are
        added in another order, so that outputs differ in their last bits.
    least_elems
        Smaller weights are left alone, as are those of other dtypes than bfloat16, float16 and float32, those on other devices than the CPU, those that are
        tied to what is left alone, and those that packing does not make smaller.
    options
        As for `weightpack.pack`.
    """
    wanted: dict[int, list[torch.nn.Module]] = {}
    others = set()  # a weight that is tied to what can't be packed stays plain
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and name == "weight" and parameter.device.type == "cpu" and packs(module, parameter, least_elems):
                wanted.setdefault(id(parameter), []).append(module)
            else:
                others.add(id(parameter))
    for modules in [modules for number, modules in wanted.items() if number not in others]:
        weight: Any = modules[0]._parameters["weight"]
        packed = PackedTensor(weight.packed, fused) if isinstance(weight, PackedTensor) else PackedTensor.of(weight, options, fused)
        if packed.packed.packed_bytes < packed.packed.n_bytes:
            parameter = torch.nn.Parameter(packed, requires_grad=False)
            for module in modules:
                module._parameters["weight"] = parameter
                module.__class__ = _packed_class(type(module))
    return model


def packs(module: torch.nn.Module, weight: torch.Tensor, least_elems: int = LEAST_ELEMS) -> bool:
    """Is a module's weight one that `compress` packs, if it is on the CPU?"""
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", torch.nn.Linear)
    if not isinstance(module, (torch.nn.Linear, torch.nn.Embedding, conv1d)) or getattr(module, "max_norm", None) is not None:
        return False
    return weight.ndim == _N_DIMS and weight.numel() >= least_elems and weight.dtype in _DTYPES


def unpack_others(model: torch.nn.Module) -> None:
    """Decode the packed parameters of modules that have not been made for them."""
    decoded: dict[PackedWeight, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, PackedTensor) and not isinstance(module, _Packed):
                if parameter.packed not in decoded:
                    decoded[parameter.packed] = torch.nn.Parameter(parameter.decoded())
                module._parameters[name] = decoded[parameter.packed]


def keep_packed(tensor: TensorSlice[torch.Tensor], least_elems: int = LEAST_ELEMS) -> None:
    """Let `[...]` give a tensor as its record, if it is one that `compress` would pack."""
    dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
    if dtype not in _DTYPE_NAMES or len(shape) != _N_DIMS or shape[0] * shape[1] < least_elems:
        return
    record = tensor.get_record()
    if record is not None:
        tensor.whole = lambda: PackedTensor(PackedWeight(dtype, shape, record))


class _Packed:
    """What modules with a packed weight have before the class that they were of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _outside_graphs(super().forward)(*args, **kwargs)  # type: ignore[misc]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        weight = self._parameters["weight"]  # type: ignore[attr-defined]
        if isinstance(weight, PackedTensor) and prefix + "weight" in destination:
            destination[prefix + "weight"] = weight.plain()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Convert the weight, which tied modules share: what stays packed stays the same object, what does not is made once."""
        parameters: dict[str, torch.nn.Parameter | None] = self._parameters  # type: ignore[attr-defined]
        weight = parameters["weight"]
        if not isinstance(weight, PackedTensor):
            return super()._apply(fn, recurse)  # type: ignore[misc]
        parameters["weight"] = None
        try:
            super()._apply(fn, recurse)
        finally:
            parameters["weight"] = weight
        with torch.no_grad():
            parameters["weight"] = weight.converted(fn)
        return self

    def extra_repr(self) -> str:
        text: str = super().extra_repr()  # type: ignore[misc]
        weight = self._parameters["weight"]  # type: ignore[attr-defined]
        if not isinstance(weight, PackedTensor):
            return text
        return f"{text}, packed to {weight.packed.packed_bytes / weight.packed.n_bytes:.1%}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if type(self) in (PackedLinear, PackedEmbedding):
            return reduced
        return (_new, (type(self).__mro__[2],), *reduced[2:])  # no module has the class by name


class PackedLinear(_Packed, torch.nn.Linear):
    """A `torch.nn.Linear` whose weight is packed.

    Parameters
    ----------
    linear
        It is left as it is; bias and hooks are shared with it.
    fused
        As for `compress`.
    options
        As for `weightpack.pack`.
    """

    def __init__(self, linear: torch.nn.Linear, *, fused: bool = False, options: PackOptions | None = None) -> None:
        _become(self, linear, options, fused)


class PackedEmbedding(_Packed, torch.nn.Embedding):
    """A `torch.nn.Embedding` whose weight is packed: what holds the rows that are looked up is decoded. `embedding` as for `PackedLinear`."""

    def __init__(self, embedding: torch.nn.Embedding, *, options: PackOptions | None = None) -> None:
        if embedding.max_norm is not None:
            raise OptionError("an embedding with a max_norm changes its weight when it is used: it can't be packed")
        _become(self, embedding, options)


_classes: dict[type[torch.nn.Module], type[torch.nn.Module]] = {torch.nn.Linear: PackedLinear, torch.nn.Embedding: PackedEmbedding}


def _become(made: torch.nn.Module, module: torch.nn.Module, options: PackOptions | None, fused: bool = False) -> None:
    torch.nn.Module.__init__(made)
    made.__dict__.update(module.__dict__, _parameters=dict(module._parameters))
    weight = module._parameters["weight"]
    assert weight is not None
    made._parameters["weight"] = torch.nn.Parameter(PackedTensor.of(weight, options, fused), requires_grad=False)


def _packed_class(cls: type[torch.nn.Module]) -> type[torch.nn.Module]:
    if issubclass(cls, _Packed):
        return cls
    if cls not in _classes:
        _classes[cls] = type(f"Packed{cls.__name__}", (_Packed, cls), {"__module__": cls.__module__, "__doc__": f"A {cls.__name__} whose weight is packed."})
    return _classes[cls]


def _new(cls: type[torch.nn.Module]) -> torch.nn.Module:
    made = _packed_class(cls)
    return made.__new__(made)


def _outside_graphs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile from looking into a function; as torch.compiler.disable, which takes seconds to import where nobody compiles."""
    dynamo = sys.modules.get("torch._dynamo")
    return forward if dynamo is None else dynamo.disable(forward)
