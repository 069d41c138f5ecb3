# SPDX-License-Identifier: Apache-2.0
"""`safetensors.torch` for packed files: the same names and arguments, so that a change of import is a change of format. Plain files are read too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.dtypes import DTYPE_BITS
from weightpack.errors import MissingExtraError, OptionError
from weightpack.files import MemoryFile
from weightpack.frameworks import TORCH_NAMES, TorchFramework
from weightpack.save import pack_tensors, save_tensors
from weightpack.tensors import SafeOpen
from weightpack.tensors import safe_open as _safe_open

try:
    import torch
except ImportError:
    raise MissingExtraError("weightpack.torch needs PyTorch: `pip install weightpack[torch]`") from None

if TYPE_CHECKING:
    from weightpack.options import PackOptions

__all__ = ["load", "load_file", "load_model", "safe_open", "save", "save_file", "save_model"]

_DTYPE_NAMES = {getattr(torch, attribute): name for name, attribute in TORCH_NAMES.items() if hasattr(torch, attribute)}


def safe_open(filename: str | os.PathLike[str], framework: str = "pt", device: str | int = "cpu", **kwargs: Any) -> SafeOpen:
    """See `weightpack.safe_open`."""
    return _safe_open(filename, framework, device, **kwargs)


def load_file(filename: str | os.PathLike[str], device: str | int = "cpu", *, threads: int | None = None) -> dict[str, torch.Tensor]:
    """Load every tensor of a packed or plain file, in the order of their bytes."""
    with safe_open(filename, device=device, threads=threads) as opened:
        return opened.get_tensors(opened.offset_keys())


def load(data: bytes, *, threads: int | None = None) -> dict[str, torch.Tensor]:
    """Load every tensor from the bytes of a packed or plain file."""
    opened = SafeOpen(MemoryFile([data]), TorchFramework(), threads=threads)
    return opened.get_tensors(opened.offset_keys())


def save_file(
    tensors: Mapping[str, torch.Tensor], filename: str | os.PathLike[str], metadata: Mapping[str, str] | None = None, *,
    options: PackOptions | None = None, threads: int | None = None,
) -> None:  # fmt: skip
    """Save tensors as a packed file; `weightpack unpack` turns it into a plain safetensors file."""
    save_tensors(_buffers(tensors), filename, metadata, options=options, threads=threads)


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, *, options: PackOptions | None = None) -> bytes:
    """Return the bytes of a packed file."""
    return pack_tensors(_buffers(tensors), metadata, options=options)


def save_model(model: torch.nn.Module, filename: str, metadata: dict[str, str] | None = None, force_contiguous: bool = True) -> None:
    """Save a module, shared tensors once, by the rules of `safetensors.torch.save_model`."""
    rules = _safetensors_torch()
    state_dict = model.state_dict()
    metadata = dict(metadata or {})
    for kept, dropped in rules._remove_duplicate_names(state_dict).items():
        for name in dropped:
            metadata.setdefault(name, kept)
            del state_dict[name]
    if force_contiguous:
        state_dict = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    save_file(state_dict, filename, metadata or None)


def load_model(model: torch.nn.Module, filename: str | os.PathLike[str], strict: bool = True, device: str | int = "cpu") -> tuple[list[str], list[str]]:
    """Load a file into a module; returns (missing, unexpected) names, by the rules of `safetensors.torch.load_model`."""
    rules = _safetensors_torch()
    state_dict = load_file(filename, device=device)
    duplicates = rules._remove_duplicate_names(model.state_dict(), preferred_names=state_dict.keys())
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    left = set(missing)
    for group in duplicates.values():
        for name in group:
            if name in left:
                left.remove(name)
            else:
                unexpected.append(name)
    if strict and (left or unexpected):
        lines = [f"Error(s) in loading state_dict for {model.__class__.__name__}:"]
        lines += [f"    {what} key(s) in state_dict: {', '.join(sorted(names))}" for what, names in (("Missing", left), ("Unexpected", unexpected)) if names]
        raise RuntimeError("\n".join(lines))
    return sorted(left), list(unexpected)


def _safetensors_torch() -> Any:
    """Which of several names of one storage is the model's own is safetensors' rule, so it is asked."""
    try:
        import safetensors.torch
    except ImportError:
        raise MissingExtraError("saving or loading a whole module needs safetensors: `pip install weightpack[torch]`") from None
    return safetensors.torch


def _buffers(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
    if not isinstance(tensors, Mapping):
        raise OptionError(f"expected a dict of tensors, got {type(tensors).__name__}")
    result = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_NAMES:
            raise OptionError(f"safetensors has no dtype for {tensor.dtype}", tensor=name)
        if not tensor.is_contiguous():
            raise OptionError("the tensor is not contiguous: call .contiguous() first", tensor=name)
        dtype = _DTYPE_NAMES[tensor.dtype]
        shape = tuple(tensor.shape)
        if dtype == "F4":
            shape = (*shape[:-1], shape[-1] * 2)
        # reshape(-1) first: a 0-d tensor can't be viewed as another size
        data = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        assert data.size * 8 == DTYPE_BITS[dtype] * int(np.prod(shape, dtype=np.int64))
        result[name] = (dtype, shape, memoryview(data))
    return result
