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
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from weightpack.errors import MissingExtraError, OptionError
from weightpack.integrations.rebind import rebind
from weightpack.io.files import MemoryFile
from weightpack.io.remote import is_url
from weightpack.reading.tensors import SafeOpen, safe_open
from weightpack.sources.safetensors import looks_packed

_stock: dict[str, Any] = {}  # what was there before; empty while disabled


@dataclass(frozen=True)
class ReadingOptions:
    """How packed files are opened by libraries that know nothing of them; as `weightpack.safe_open` has it."""

    threads: int | None = None
    base: str | os.PathLike[str] | None = None


_reading = ReadingOptions()


@contextmanager
def reading_with(options: ReadingOptions) -> Iterator[None]:
    """Open packed files so for the length of a block, in all threads of this process."""
    global _reading
    before, _reading = _reading, options
    try:
        yield
    finally:
        _reading = before


class packed_aware_safe_open:
    """`safetensors.safe_open` that also opens packed files: a call gives the stock object for a plain file."""

    def __new__(cls, filename: str | os.PathLike[str], framework: str = "pt", device: Any = "cpu", **kwargs: Any) -> Any:
        stock = _stock.get("safe_open") or _safetensors().safe_open
        if isinstance(filename, str) and is_url(filename):
            return safe_open(filename, framework, device, threads=_reading.threads, base=_reading.base)
        if not looks_packed(filename):
            return stock(filename, framework, device=device, **kwargs)
        if framework not in ("pt", "torch", "pytorch", "np", "numpy"):
            raise OptionError(f"packed tensors can't be given as {framework!r}, only as torch or numpy: `weightpack unpack` restores the plain file",
                              path=os.fspath(filename))  # fmt: skip
        return safe_open(filename, framework, device, threads=_reading.threads, base=_reading.base)


def packed_aware_load(data: bytes) -> dict[str, Any]:
    """`safetensors.torch.load` that also takes the bytes of a packed file."""
    if not looks_packed(MemoryFile([data])):
        result: dict[str, Any] = _stock["load"](data)
        return result
    from weightpack.arrays.memory import TorchFramework

    with SafeOpen(MemoryFile([data]), TorchFramework(), threads=_reading.threads, base=_reading.base) as opened:
        return opened.get_tensors(opened.offset_keys())


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
    rebind([(stock, _OURS[name]) for name, stock in _stock.items()])


def disable() -> None:
    """Undo `enable`. What an engine's plugin has put around the engine's own functions then does nothing."""
    rebind([(_OURS[name], stock) for name, stock in _stock.items()])
    _stock.clear()


def is_enabled() -> bool:
    """Are packed files read through safetensors now?"""
    return bool(_stock)


_OURS: dict[str, Any] = {"safe_open": packed_aware_safe_open, "load": packed_aware_load}


def _safetensors() -> ModuleType:
    try:
        import safetensors
    except ImportError:
        raise MissingExtraError("this needs safetensors: `pip install weightpack[torch]`") from None
    return safetensors


def _has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None
