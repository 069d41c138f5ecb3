# SPDX-License-Identifier: Apache-2.0
"""safetensors for everybody, reading packed files: `enable` puts a packed-aware `safe_open` where libraries have bound safetensors' own.

transformers, accelerate, diffusers, peft, sentence-transformers, vLLM and SGLang all read through `safetensors.safe_open` or `safetensors.torch`. They have
no hook for how bytes are read, so the name itself is rebound, in their modules and in safetensors', and given back by `disable`. For a plain file the stock
object does everything. Whoever asks for names, shapes, dtypes or metadata is told what the plain file would say: a loader that takes its dtype from the first
float that it finds takes the plain model's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from weightpack.errors import MissingExtraError, OptionError
from weightpack.io.files import MemoryFile
from weightpack.io.remote import is_url
from weightpack.reading.tensors import SafeOpen, safe_open
from weightpack.sources.safetensors import looks_packed

# Names are rebound in the modules of these packages alone.
_PACKAGES = {"accelerate", "diffusers", "huggingface_hub", "peft", "safetensors", "sentence_transformers", "sglang", "torch", "transformers", "vllm"}
# vLLM looks there for a dtype that config.json does not name.
_VLLM_MODULE, _VLLM_HEADER = "vllm.transformers_utils.utils", "parse_safetensors_file_metadata"
_stock: dict[str, Any] = {}  # what was there before; empty while disabled


class packed_aware_safe_open:
    """`safetensors.safe_open` that also opens packed files: a call gives the stock object for a plain file."""

    def __new__(cls, filename: str | os.PathLike[str], framework: str = "pt", device: Any = "cpu", **kwargs: Any) -> Any:
        stock = _stock.get("safe_open") or _safetensors().safe_open
        if isinstance(filename, str) and is_url(filename):
            return safe_open(filename, framework, device)
        if not looks_packed(filename):
            return stock(filename, framework, device=device, **kwargs)
        if framework not in ("pt", "torch", "pytorch", "np", "numpy"):
            raise OptionError(f"packed tensors can't be given as {framework!r}, only as torch or numpy: `weightpack unpack` restores the plain file",
                              path=os.fspath(filename))  # fmt: skip
        return safe_open(filename, framework, device)


def packed_aware_load(data: bytes) -> dict[str, Any]:
    """`safetensors.torch.load` that also takes the bytes of a packed file."""
    if not looks_packed(MemoryFile([data])):
        result: dict[str, Any] = _stock["load"](data)
        return result
    from weightpack.arrays.memory import TorchFramework

    with SafeOpen(MemoryFile([data]), TorchFramework()) as opened:
        return opened.get_tensors(opened.offset_keys())


def packed_aware_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """vLLM's `parse_safetensors_file_metadata`, which reads a header by itself: of a packed file, the source's dtypes, shapes and metadata.

    Without `data_offsets`: the plain file's would be wrong in this one.
    """
    if not looks_packed(path):
        result: dict[str, Any] = _stock[_VLLM_HEADER](path)
        return result
    with safe_open(path) as opened:
        slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
        entries = {name: {"dtype": each.get_dtype(), "shape": each.get_shape()} for name, each in slices.items()}
        return {"__metadata__": opened.metadata() or {}, **entries}


def enable() -> None:
    """Let every library here that reads safetensors files read packed ones. Calling it twice is calling it once.

    A name that a program has bound itself (`from safetensors import safe_open` in a script) before this call is not changed.

    Raises
    ------
    MissingExtraError
        safetensors is not installed.
    """
    safetensors = _safetensors()
    if not _stock:
        _stock["safe_open"] = safetensors.safe_open
        if "torch" in sys.modules or _has_torch():
            import safetensors.torch as safetensors_torch

            _stock["load"] = safetensors_torch.load
    if _VLLM_HEADER not in _stock and hasattr(sys.modules.get(_VLLM_MODULE), _VLLM_HEADER):
        _stock[_VLLM_HEADER] = getattr(sys.modules[_VLLM_MODULE], _VLLM_HEADER)
    _rebind(_stock, _ours())


def disable() -> None:
    """Undo `enable`."""
    _rebind(_ours(), dict(_stock))
    _stock.clear()


def is_enabled() -> bool:
    """Are packed files read through safetensors now?"""
    return bool(_stock)


def _ours() -> dict[str, Any]:
    return {"safe_open": packed_aware_safe_open, "load": packed_aware_load, _VLLM_HEADER: packed_aware_header}


def _rebind(old: dict[str, Any], new: dict[str, Any]) -> None:
    for module in _modules():
        for name, value in list(vars(module).items()):  # not getattr: some modules import on access
            for key, was in old.items():
                if value is was and key in new:
                    setattr(module, name, new[key])


def _modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES and isinstance(module, ModuleType):
            yield module


def _safetensors() -> ModuleType:
    try:
        import safetensors
    except ImportError:
        raise MissingExtraError("this needs safetensors: `pip install weightpack[torch]`") from None
    return safetensors


def _has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None
