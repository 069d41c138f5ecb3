# SPDX-License-Identifier: Apache-2.0
"""How array libraries make tensors of bytes: numpy, and torch where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from weightpack.arrays.dtypes import numpy_dtype, shaped
from weightpack.errors import LimitError, MissingExtraError, OptionError
from weightpack.format.layouts import tensor_bytes

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes


TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32",
    "U32": "uint32", "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip


ALIGN_BYTES = 64
"""Every tensor that is handed out begins at a multiple of this, as torch's own do: a vector load crosses no cache line, whatever file it came from."""

T = TypeVar("T")


class Framework(Protocol[T]):
    """How an array library makes a tensor of bytes."""

    def empty(self, dtype: str, shape: Sequence[int]) -> tuple[T, Bytes]:
        """Return a new tensor and its memory, (n_bytes,) uint8, to be filled. It is aligned to ALIGN_BYTES."""

    def finish(self, tensor: T) -> T:
        """Return the filled tensor, on its device."""

    def part(self, tensor: T, key: Any) -> T:
        """Return `tensor[key]` in memory of its own, contiguous and aligned, so that the rest can be freed; the whole tensor is returned as it is."""


class NumpyFramework:
    """Makes numpy arrays of bytes.

    Parameters
    ----------
    raw
        Give dtypes that numpy itself lacks as unsigned integers that hold their bits.
    """

    def __init__(self, raw: bool = False) -> None:
        self._raw = raw

    def empty(self, dtype: str, shape: Sequence[int]) -> tuple[NDArray[Any], Bytes]:
        numpy_dtype(dtype, raw=self._raw)  # refuses those whose size nobody knows
        memory = aligned_bytes(tensor_bytes(dtype, tuple(shape)) or 0)
        return shaped(memory, dtype, shape, raw=self._raw), memory

    def finish(self, tensor: NDArray[Any]) -> NDArray[Any]:
        return tensor

    def part(self, tensor: NDArray[Any], key: Any) -> NDArray[Any]:
        chosen: NDArray[Any] = np.asarray(tensor[key])  # a scalar, too, is an array without dimensions
        if chosen.shape == tensor.shape and chosen.strides == tensor.strides and np.may_share_memory(chosen, tensor):
            return chosen
        copy: NDArray[Any] = aligned_bytes(chosen.nbytes).view(chosen.dtype).reshape(chosen.shape)
        copy[...] = chosen
        return copy


def aligned_bytes(n_bytes: int) -> Bytes:
    """Return memory, (n_bytes,) uint8: numpy aligns to 16 bytes, so there are some before and after."""
    memory = np.empty(n_bytes + ALIGN_BYTES - 1, np.uint8)
    begin = -memory.ctypes.data % ALIGN_BYTES
    return memory[begin : begin + n_bytes]


class TorchFramework:
    """Makes torch tensors of bytes, in CPU memory, which torch aligns to 64 bytes, and moves them to `device`; or there at once (`empty_on`)."""

    def __init__(self, device: Any = "cpu") -> None:
        try:
            import torch
        except ImportError:
            raise MissingExtraError("torch tensors need PyTorch: `pip install weightpack[torch]`") from None
        self._torch = torch
        self.device = torch.device(device)

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchFramework, (self.device,)

    def empty(self, dtype: str, shape: Sequence[int]) -> tuple[torch.Tensor, Bytes]:
        tensor, memory = self.empty_on("cpu", dtype, shape)
        return tensor, memory.numpy()

    def empty_on(self, device: Any, dtype: str, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a new tensor on a device and its memory there, (n_bytes,) uint8, to be filled."""
        if dtype not in TORCH_NAMES or not hasattr(self._torch, TORCH_NAMES[dtype]):
            raise OptionError(f"this torch has no dtype for {dtype}")
        memory = self._torch.empty(tensor_bytes(dtype, tuple(shape)) or 0, dtype=self._torch.uint8, device=device)
        if dtype == "F4":  # two elements a byte: safetensors gives the packed shape
            shape = (*shape[:-1], shape[-1] // 2)
        flat = memory.view(getattr(self._torch, TORCH_NAMES[dtype]))
        try:
            return flat.reshape(tuple(shape)), memory
        except (RuntimeError, OverflowError) as error:
            raise LimitError(f"torch has no {dtype} tensor of shape {list(shape)}: {error}") from None

    def finish(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def part(self, tensor: torch.Tensor, key: Any) -> torch.Tensor:
        chosen = tensor[key]
        if chosen.shape == tensor.shape and chosen.stride() == tensor.stride() and chosen.data_ptr() == tensor.data_ptr():
            return chosen
        as_bytes = chosen.view(self._torch.uint8) if chosen.element_size() == 1 else chosen  # torch can't copy float4
        return as_bytes.clone(memory_format=self._torch.contiguous_format).view(chosen.dtype)
