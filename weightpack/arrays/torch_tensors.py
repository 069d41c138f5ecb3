# SPDX-License-Identifier: Apache-2.0
"""torch tensors as bytes. Only for modules that need torch anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from weightpack.arrays.memory import TORCH_NAMES
from weightpack.errors import OptionError

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes

DTYPE_NAMES = {getattr(torch, attribute): name for name, attribute in TORCH_NAMES.items() if hasattr(torch, attribute)}


def dtype_name(dtype: torch.dtype) -> str:
    """Return safetensors' name of a torch dtype; OptionError if it has none."""
    if dtype not in DTYPE_NAMES:
        raise OptionError(f"safetensors has no dtype for {dtype}")
    return DTYPE_NAMES[dtype]


def bytes_of(tensor: torch.Tensor) -> Bytes:
    """Return the bytes of a contiguous tensor, (n_bytes,) uint8: its own memory, if it is on the CPU."""
    # reshape(-1) first: a 0-d tensor can't be viewed as another size
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
