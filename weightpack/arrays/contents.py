# SPDX-License-Identifier: Apache-2.0
"""Tensors of numpy and torch as bytes: what is in them, and memory through which they are filled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.arrays.dtypes import dtype_name
from weightpack.arrays.memory import TORCH_NAMES
from weightpack.errors import OptionError

if TYPE_CHECKING:
    import torch

    from weightpack.format.buffers import Bytes


def contents(tensor: Any) -> tuple[str, tuple[int, ...], Bytes]:
    """Return dtype (safetensors' name), shape and bytes, (n_bytes,) uint8, of a torch tensor or of what numpy takes for an array.

    The bytes are the tensor's own memory where it lies in the CPU's, contiguous; else a copy.

    Raises
    ------
    OptionError
        safetensors has no such dtype, or the tensor has no bytes: it is sparse, or on the device "meta".
    """
    if not is_torch(tensor):
        array = np.asarray(tensor)
        return dtype_name(array.dtype), array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if tensor.is_meta or str(tensor.layout) != "torch.strided":
        raise OptionError(f"the tensor has no bytes: it is {'on the device meta' if tensor.is_meta else tensor.layout}")
    dtype, shape = torch_dtype(tensor), tuple(tensor.shape)
    if dtype == "F4":  # two elements a byte: torch has the packed shape
        shape = (*shape[:-1], shape[-1] * 2)
    return dtype, shape, _flat(tensor.detach().resolve_conj().resolve_neg().cpu().contiguous())


@contextmanager
def memory_of(tensor: Any) -> Iterator[Bytes]:
    """Give the memory of a tensor that `can_change`, (n_bytes,) uint8; what has none of the CPU's, contiguous, gets its bytes back after the block."""
    if is_torch(tensor):
        there = tensor.detach()
        here = there.cpu().contiguous()
        yield _flat(here)
        if here.data_ptr() != there.data_ptr():
            there.copy_(here)
        return
    contiguous = np.ascontiguousarray(tensor)
    yield contiguous.reshape(-1).view(np.uint8)
    if not np.may_share_memory(contiguous, tensor):
        tensor[...] = contiguous


def can_change(tensor: Any) -> bool:
    """Is it a torch tensor, or a numpy array that can be written to, whose elements have each a place of their own?"""
    if is_torch(tensor):
        if tensor.is_conj() or tensor.is_neg():  # not carried out yet
            return False
        strides = tensor.stride()
    elif isinstance(tensor, np.ndarray) and tensor.flags.writeable:
        strides = tensor.strides
    else:
        return False
    return 0 in tensor.shape or all(stride or size == 1 for stride, size in zip(strides, tensor.shape, strict=True))


def address(tensor: Any) -> int:
    """Return where the memory of a torch tensor or numpy array begins, on its device."""
    return int(tensor.data_ptr() if is_torch(tensor) else tensor.ctypes.data)


def is_torch(tensor: Any) -> bool:
    """Is it a torch tensor? Torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def torch_dtype(tensor: torch.Tensor) -> str:
    """Return safetensors' name of a torch tensor's dtype."""
    attribute = str(tensor.dtype).removeprefix("torch.")
    for name, torch_name in TORCH_NAMES.items():
        if torch_name == attribute:
            return name
    raise OptionError(f"safetensors has no dtype for {tensor.dtype}")


def _flat(tensor: torch.Tensor) -> Bytes:
    flat: Bytes = tensor.reshape(-1).view(sys.modules["torch"].uint8).numpy()  # reshape first: a 0-d tensor can't be viewed as another size
    return flat
