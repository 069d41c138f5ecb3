# SPDX-License-Identifier: Apache-2.0
"""Names of other packages, bound to something of ours: in the module that defines them and in every one that has imported them since."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

# Names are rebound in the modules of these packages alone, unless it is said otherwise.
_PACKAGES = {"accelerate", "diffusers", "huggingface_hub", "peft", "safetensors", "sentence_transformers", "sglang", "torch", "transformers", "vllm"}
_MARK = "wrapped_by_weightpack"


def rebind(pairs: Sequence[tuple[Any, Any]], *, everywhere: bool = False) -> None:
    """Bind each name that has the first object of a pair to the second; `everywhere`: in modules of packages that nobody here knows, too."""
    for module in _modules(everywhere):
        for name, value in list(vars(module).items()):  # not getattr: some modules import on access
            for old, new in pairs:
                if value is old:
                    setattr(module, name, new)


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put a function around one of a module or a class: `around` gets what was there, then the arguments. Doing it twice is doing it once.

    Raises
    ------
    AttributeError
        It has no such function: another version of the package may keep it elsewhere.
    """
    if name not in vars(owner):
        raise AttributeError(f"{owner.__name__} has no {name}")
    there = vars(owner)[name]
    stock = there.__func__ if isinstance(there, classmethod) else there
    if hasattr(stock, _MARK):
        return

    @functools.wraps(stock)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(stock, *args, **kwargs)

    setattr(wrapper, _MARK, True)
    if isinstance(owner, ModuleType):
        rebind([(stock, wrapper)])
    setattr(owner, name, classmethod(wrapper) if isinstance(there, classmethod) else wrapper)


def _modules(everywhere: bool) -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if (everywhere or name.partition(".")[0] in _PACKAGES) and isinstance(module, ModuleType):
            yield module
