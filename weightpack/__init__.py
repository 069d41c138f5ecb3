# SPDX-License-Identifier: Apache-2.0
"""Lossless compression of model weights.

Importing it changes nothing anywhere: `weightpack.enable()` lets other libraries read packed files. docs/DESIGN.md says which room holds what.

Examples
--------
>>> import weightpack
>>> weightpack.pack("model.safetensors")        # doctest: +SKIP
>>> weightpack.unpack("model.wp.safetensors")   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightpack._version import __version__ as __version__

if TYPE_CHECKING:
    from weightpack.api import estimate, inspect, pack, unpack, verify
    from weightpack.errors import WeightpackError
    from weightpack.hub import pull, push
    from weightpack.integrations.swap import disable, enable
    from weightpack.numpy import load_file, save_file
    from weightpack.options import Limits, PackOptions, load_profile
    from weightpack.reading.frame import decode
    from weightpack.reading.tensors import safe_open
    from weightpack.store import Store
    from weightpack.writing.frame import encode

# Imported at first use: `import weightpack` stays cheap, and changes nothing anywhere.
_HOME = {
    "estimate": "api", "inspect": "api", "pack": "api", "unpack": "api", "verify": "api",
    "decode": "reading.frame", "encode": "writing.frame",
    "pull": "hub", "push": "hub",
    "load_file": "numpy", "save_file": "numpy",
    "safe_open": "reading.tensors",
    "Store": "store",
    "disable": "integrations.swap", "enable": "integrations.swap",
    "Limits": "options", "PackOptions": "options", "load_profile": "options",
    "WeightpackError": "errors",
}  # fmt: skip

__all__ = [
    "Limits", "PackOptions", "Store", "WeightpackError", "decode", "disable", "enable", "encode", "estimate", "inspect", "load_file", "load_profile", "pack",
    "pull", "push", "safe_open", "save_file", "unpack", "verify",
]  # fmt: skip


_MODULES = ("delta", "errors", "kernels", "numpy", "reference", "torch")


def __getattr__(name: str) -> object:
    if name not in _HOME and name not in _MODULES:
        raise AttributeError(f"module 'weightpack' has no attribute {name!r}")
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"weightpack.{name}")
    return getattr(importlib.import_module(f"weightpack.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
