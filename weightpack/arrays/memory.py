# SPDX-License-Identifier: Apache-2.0
"""How array libraries make tensors of bytes: numpy, and torch where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from weightpack.arrays.dtypes import numpy_dtype, shaped
from weightpack.errors import LimitError, MissingExtraError, OptionError
from weightpack.format.layouts import tensor_bytes

if TYPE_CHECKING:

    from weightpack.format.buffers import Bytes


TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32",
    "U32": "uint32", "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip


class Framework(Protocol):
    """How an array library makes a tensor of bytes."""

    def empty(self, dtype: str, shape: Sequence[int]) -> tuple[Any, Bytes]:
        """Return a new tensor and its memory, (n_bytes,) uint8, to be filled."""

    def finish(self, tensor: Any) -> Any:
        """Return the filled tensor, on its device."""


class NumpyFramework:
    """Makes numpy arrays of bytes."""

    def empty(self, dtype: str, shape: Sequence[int]) -> tuple[Any, Bytes]:
        numpy_dtype(dtype)  # refuses those whose size nobody knows
        memory = np.empty(tensor_bytes(dtype, tuple(shape)) or 0, np.uint8)
        return shaped(memory, dtype, shape), memory

    def finish(self, tensor: Any) -> Any:
        return tensor


class TorchFramework:
    """Makes torch tensors of bytes. They are decoded in CPU memory, then moved to `device`."""

    def __init__(self, device: Any = "cpu") -> None:
        try:
            import torch
        except ImportError:
            raise MissingExtraError("torch tensors need PyTorch: `pip install weightpack[torch]`") from None
        self._torch = torch
        self._device = torch.device(device)

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchFramework, (self._device,)

    def empty(self, dtype: str, shape: Sequence[int]) -> tuple[Any, Bytes]:
        if dtype not in TORCH_NAMES or not hasattr(self._torch, TORCH_NAMES[dtype]):
            raise OptionError(f"this torch has no dtype for {dtype}")
        memory = self._torch.empty(tensor_bytes(dtype, tuple(shape)) or 0, dtype=self._torch.uint8)
        if dtype == "F4":  # two elements a byte: safetensors gives the packed shape
            shape = (*shape[:-1], shape[-1] // 2)
        flat = memory.view(getattr(self._torch, TORCH_NAMES[dtype]))
        try:
            return flat.reshape(tuple(shape)), memory.numpy()
        except (RuntimeError, OverflowError) as error:
            raise LimitError(f"torch has no {dtype} tensor of shape {list(shape)}: {error}") from None

    def finish(self, tensor: Any) -> Any:
        return tensor if self._device.type == "cpu" else tensor.to(self._device)
