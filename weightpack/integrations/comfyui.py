# SPDX-License-Identifier: Apache-2.0
"""ComfyUI reads packed files: what its node pack (integrations/comfyui) calls when ComfyUI loads it.

ComfyUI's own nodes, and most of others, load weights through `comfy.utils.load_torch_file`. That calls `safetensors.safe_open`, which `weightpack.enable`
exchanges; but with Dynamic VRAM on it parses the raw header and maps the file, and a packed file would be rows of bytes. So the function itself is wrapped,
in `comfy.utils` and wherever it has been bound. The tensors of a packed file are in memory of their own: ComfyUI copies them where it needs them, as it does
any that no file stands behind.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from weightpack.integrations.rebind import rebind
from weightpack.integrations.swap import disable as disable_safetensors
from weightpack.integrations.swap import enable as enable_safetensors
from weightpack.io.files import LocalFile
from weightpack.reading.packed_file import PackedFile, source_header_bytes
from weightpack.reading.tensors import safe_open
from weightpack.sources.safetensors import looks_packed

_MODULE = "comfy.utils"
_stock: dict[str, Any] = {}  # what was there before; empty while disabled
_ours: dict[str, Any] = {}


def _load(stock: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def load_torch_file(ckpt: Any, *arguments: Any, **named: Any) -> Any:
        if not _is_packed(ckpt):
            return stock(ckpt, *arguments, **named)
        asked = signature.bind(ckpt, *arguments, **named).arguments
        device = asked.get("device")
        with safe_open(ckpt, "pt", "cpu" if device is None or _has_dynamic_vram() else device.type) as opened:
            tensors = opened.get_tensors()
            return (tensors, opened.metadata()) if asked.get("return_metadata") else tensors

    return load_torch_file


def _is_packed(path: Any) -> bool:
    """Is it a packed file of a name that ComfyUI reads as safetensors?"""
    return isinstance(path, str | os.PathLike) and os.fspath(path).lower().endswith((".safetensors", ".sft")) and looks_packed(path)


def _has_dynamic_vram() -> bool:
    """With it, weights are loaded to the CPU whatever the device is."""
    return bool(getattr(sys.modules.get("comfy.memory_management"), "aimdo_enabled", False))


def _header(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def safetensors_header(safetensors_path: Any, max_size: int = 100 * 1024 * 1024) -> Any:
        if not _is_packed(safetensors_path):
            return stock(safetensors_path, max_size=max_size)
        with LocalFile(safetensors_path) as file:
            header = source_header_bytes(PackedFile(file).index)
        return header if len(header) <= max_size else None

    return safetensors_header


_WRAPPERS = {"load_torch_file": _load, "safetensors_header": _header}


def enable() -> None:
    """Let this ComfyUI read packed files. Calling it twice is calling it once.

    Raises
    ------
    ImportError
        ComfyUI is not here.
    """
    import comfy.utils

    enable_safetensors()
    for name, wrap in _WRAPPERS.items():
        if name not in _stock and hasattr(comfy.utils, name):
            _stock[name] = getattr(comfy.utils, name)
            _ours[name] = wrap(_stock[name])
    rebind([(stock, _ours[name]) for name, stock in _stock.items()], everywhere=True)


def disable() -> None:
    """Undo `enable`."""
    rebind([(_ours[name], stock) for name, stock in _stock.items()], everywhere=True)
    _stock.clear()
    _ours.clear()
    disable_safetensors()
