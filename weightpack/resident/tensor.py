# SPDX-License-Identifier: Apache-2.0
"""A torch tensor that is held packed: whatever is done with it is done with its decoded copy."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils._pytree import tree_map

from weightpack.arrays.contents import contents
from weightpack.arrays.memory import TORCH_NAMES, TorchFramework
from weightpack.io.parallel import Scratch
from weightpack.resident.weight import PackedWeight

if TYPE_CHECKING:
    from weightpack.options import PackOptions

MOST_FUSED_ROWS = 16
"""Of more, decoding the weight once for a matrix product of torch's is faster: measured where torch is fastest beside ours, in float32 with AVX2."""

_THREAD_BYTES = 2 << 20
_ATEN = torch.ops.aten
_framework = TorchFramework()
_scratch = Scratch()


class PackedTensor(torch.Tensor):
    """A tensor on the CPU whose bytes are a record. It has shape and dtype, and no gradient.

    An operator gets the decoded tensor, which is freed afterwards; `linear` decodes into memory that is used again, and `embedding` only the rows that are
    looked up. With `fused`, `linear` of few rows multiplies while it decodes (`linear` below). An operator that changes the tensor itself (`copy_`, `add_`,
    `tensor[i] = ...`, `tensor.data = ...`) packs the result in place of what was there; a view is a copy.
    """

    packed: PackedWeight
    fused: bool
    _unpacked: torch.nn.Parameter | None = None

    def __new__(cls, packed: PackedWeight, fused: bool = False) -> PackedTensor:
        made: PackedTensor = torch.Tensor._make_wrapper_subclass(cls, packed.shape, dtype=getattr(torch, TORCH_NAMES[packed.dtype]))
        made.packed, made.fused = packed, fused
        return made

    @classmethod
    def of(cls, tensor: torch.Tensor, options: PackOptions | None = None, fused: bool = False) -> PackedTensor:
        """Pack a tensor; `options` as for `weightpack.pack`."""
        return cls(PackedWeight.of(*contents(tensor), options, torch.get_num_threads()), fused)

    def decoded(self) -> torch.Tensor:
        """Return the tensor decoded, in new memory."""
        tensor, memory = _framework.empty(self.packed.dtype, self.packed.shape)
        self.packed.decode(memory, self._threads())
        return tensor

    def plain(self) -> torch.Tensor:
        """Return the tensor decoded: the same memory to all who hold it at the same time, so that tied weights stay tied."""
        kept = _plain.get(self.packed)
        tensor = None if kept is None else kept()
        if tensor is None:
            tensor = self.decoded()
            _plain[self.packed] = weakref.ref(tensor)
        return tensor

    def converted(self, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Parameter:
        """Return this parameter, its elements converted by a function; another one, if they do not stay packed: the same to all who convert it so."""
        result = function(self)
        if isinstance(result, PackedTensor):
            self.data = result
            return self  # type: ignore[return-value]
        if self._unpacked is None or (self._unpacked.device, self._unpacked.dtype) != (result.device, result.dtype):
            self._unpacked = torch.nn.Parameter(result, requires_grad=False)
        return self._unpacked

    def in_scratch(self) -> torch.Tensor:
        """Return the tensor decoded into memory that this thread's next call overwrites."""
        memory = _scratch.get(self.packed.n_bytes)
        self.packed.decode(memory, self._threads())
        return torch.from_numpy(memory).view(self.dtype).view(self.shape)

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return rows by number, of the shape of `numbers` and a row."""
        rows = self.packed.rows(numbers.detach().reshape(-1).numpy().astype(np.int64), torch.get_num_threads())
        return torch.from_numpy(rows).view(self.dtype).view(*numbers.shape, *self.shape[1:])

    def _threads(self) -> int:
        """As many as torch has, but fewer for a small weight: torch's own threads wait busily for their next operator, and ours would wait for them."""
        return max(1, min(torch.get_num_threads(), self.packed.n_bytes // _THREAD_BYTES))

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and _is_linear(*args, **kwargs):
            return linear(*args, **kwargs)
        if func in _NEED_MEMORY:
            return func(args[0].decoded(), *args[1:], **kwargs)
        if func == _SET_DATA and isinstance(args[0], PackedTensor):
            value = args[1] if isinstance(args[1], PackedTensor) else PackedTensor.of(args[1], fused=args[0].fused)
            with torch._C.DisableTorchFunctionSubclass():
                func(args[0], value)
            args[0].packed = value.packed
            return None
        if func is torch.Tensor.__setitem__ and isinstance(args[0], PackedTensor):
            changed = args[0].decoded()
            changed[args[1]] = args[2]
            args[0].copy_(changed)
            return None
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        if func in (_ATEN.detach.default, _ATEN.alias.default):
            return PackedTensor(args[0].packed, args[0].fused)
        if func is _ATEN._to_copy.default and _stays(args[0], **kwargs):
            dtype, fused = kwargs.get("dtype") or args[0].dtype, args[0].fused
            return PackedTensor(copy.copy(args[0].packed), fused) if dtype == args[0].dtype else PackedTensor.of(args[0].decoded().to(dtype), fused=fused)
        if func is _ATEN.embedding.default and isinstance(args[0], PackedTensor) and args[1].device.type == "cpu":
            return args[0].rows(args[1])
        decoded: dict[int, torch.Tensor] = {}

        def decode(value: Any) -> Any:
            if not isinstance(value, PackedTensor):
                return value
            if id(value.packed) not in decoded:
                decoded[id(value.packed)] = value.in_scratch() if func in _PRODUCTS and not decoded else value.decoded()
            return decoded[id(value.packed)]

        result = func(*tree_map(decode, args), **tree_map(decode, kwargs))
        for value, argument in zip(args, func._schema.arguments, strict=False):
            if isinstance(value, PackedTensor) and argument.alias_info is not None and argument.alias_info.is_write:
                value.packed.put(contents(decode(value))[2], torch.get_num_threads())
                _plain.pop(value.packed, None)
                result = value
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            memo[id(self)] = _restored(copy.copy(self.packed), self.fused, isinstance(self, torch.nn.Parameter))
        made: torch.Tensor = memo[id(self)]
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (self.packed, self.fused, isinstance(self, torch.nn.Parameter))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedTensor({self.packed.packed_bytes} of {self.packed.n_bytes} bytes, shape={tuple(self.shape)}, dtype={self.dtype})"


def linear(input: torch.Tensor, weight: PackedTensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return what `torch.nn.functional.linear` does for the plain weight, (n_out, n_in), to the last bit.

    If the weight is `fused`, no gradient is wanted and `input` has at most `MOST_FUSED_ROWS` rows of the weight's dtype, it is multiplied while it is decoded:
    with sums of single precision, in another order than torch's.
    """
    if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
        result: torch.Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
        return result
    if weight.fused and _suits_fused(input, weight):
        return _fused_linear(input, weight, bias)
    return functional.linear(input, weight.in_scratch(), bias)


def _suits_fused(input: torch.Tensor, weight: PackedTensor) -> bool:
    few = 0 < input.numel() <= MOST_FUSED_ROWS * weight.shape[1]
    return few and weight.packed.multiplies and input.dtype == weight.dtype and not torch.is_autocast_enabled("cpu")


def _fused_linear(input: torch.Tensor, weight: PackedTensor, bias: torch.Tensor | None) -> torch.Tensor:
    if input.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"the input has rows of {input.shape[-1]} elements, the weight of {weight.shape[1]}")
    rows = input.detach().reshape(-1, weight.shape[1]).float().contiguous()
    sums = torch.from_numpy(weight.packed.product(rows.numpy(), weight._threads())).t()
    if bias is not None:
        sums = sums + bias.float()
    return sums.to(input.dtype).reshape(*input.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    """The gradients of input and bias; for that of the input the weight is decoded again."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: PackedTensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight, ctx.input_dtype, ctx.bias_dtype = weight, input.dtype, None if bias is None else bias.dtype
        return functional.linear(input, weight.in_scratch(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (gradient,) = gradients
        of_input = of_bias = None
        if ctx.needs_input_grad[0]:
            of_input = (gradient @ ctx.weight.in_scratch().to(gradient.dtype)).to(ctx.input_dtype)  # another dtype: autocast
        if ctx.needs_input_grad[2]:
            of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0).to(ctx.bias_dtype)
        return of_input, None, of_bias


_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]  # a new object each time
_plain: weakref.WeakKeyDictionary[PackedWeight, weakref.ref[torch.Tensor]] = weakref.WeakKeyDictionary()
_PRODUCTS = frozenset({_ATEN.mm.default, _ATEN.addmm.default})  # what they give shares no memory with what they take
_NEED_MEMORY = frozenset({torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__})


def _is_linear(input: Any, weight: Any, bias: Any = None) -> bool:
    return type(weight) is PackedTensor and not isinstance(input, PackedTensor) and input.device.type == "cpu"


def _stays(tensor: torch.Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> bool:
    """Does a tensor stay packed when it is converted so?"""
    return (device is None or torch.device(device).type == "cpu") and (dtype is None or dtype.is_floating_point)


def _restored(packed: PackedWeight, fused: bool, is_parameter: bool) -> torch.Tensor:
    made = PackedTensor(packed, fused)
    return torch.nn.Parameter(made, requires_grad=False) if is_parameter else made
