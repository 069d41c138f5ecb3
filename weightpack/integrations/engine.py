# SPDX-License-Identifier: Apache-2.0
"""What the plugins of serving engines share. They read weights through safetensors, whose `safe_open` is what `enable` exchanges. That leaves what engines read
by themselves: headers, of which they want names and dtypes, a config.json that names our quantisation method, and load formats with readers of their own.

Each function of an engine that is concerned is wrapped; where another version has none of that name, a warning says what will not work, and the rest does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from logging import Logger
from types import ModuleType
from typing import Any, cast

from weightpack.errors import WeightpackError
from weightpack.format.constants import INDEX_KEY
from weightpack.format.index import Index
from weightpack.integrations.rebind import wrap
from weightpack.integrations.swap import is_enabled, packed_aware_safe_open
from weightpack.io.remote import RemoteFile, is_url
from weightpack.models.directory import without_flag
from weightpack.options import DEFAULT_LIMITS
from weightpack.reading.packed_file import source_header
from weightpack.sources.safetensors import looks_packed


def take_steps(engine: str, steps: Mapping[str, Callable[[], None]], log: Logger) -> None:
    """Take a plugin's steps, each named by what does not work without it. Never an error: the engine would not start, for plain models neither."""
    for what, step in steps.items():
        try:
            step()
        except Exception as error:
            log.warning("weightpack does not know this version of %s: %s (%s: %s)", engine, what, type(error).__name__, error)


def wrap_configs() -> None:
    """Take the flag out of each config.json that transformers reads."""
    from transformers import PreTrainedConfig

    wrap(PreTrainedConfig, "get_config_dict", _config)


def _config(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    config, rest = stock(*args, **kwargs)
    return (without_flag(config) if is_enabled() else config), rest


def wrap_headers_on_the_hub() -> None:
    """Let the Hub's client say what the source's header says."""
    from huggingface_hub import HfApi

    wrap(HfApi, "parse_safetensors_file_metadata", _header_on_the_hub)


def _header_on_the_hub(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The source's header stands in the packed file's, which has been fetched. Offsets stay what they are in this file."""
    from huggingface_hub.utils import TensorInfo

    parsed = stock(*args, **kwargs)
    text = (parsed.metadata or {}).get(INDEX_KEY)
    if text is None or not is_enabled():
        return parsed
    index = Index.parse(text, DEFAULT_LIMITS.max_gap_bytes, DEFAULT_LIMITS.max_json_memory)
    if index.tensors is not None:  # packed of a file that is no safetensors file
        return parsed
    header = source_header(index, DEFAULT_LIMITS)
    offsets = {name: info.data_offsets for name, info in parsed.tensors.items()}
    tensors = {e.name: TensorInfo(dtype=cast(Any, e.dtype), shape=list(e.shape), data_offsets=offsets.get(e.name, (0, 0))) for e in header.entries.values()}
    return replace(parsed, metadata=header.metadata or {}, tensors=tensors)


def wrap_iterators(module: ModuleType, load_formats: Mapping[str, str], log: Logger) -> None:
    """Read packed files by `safe_open`, tensor by tensor, where a function of the module would read them otherwise.

    Parameters
    ----------
    load_formats
        By the name of the function, what the user calls it; empty: he does not know of it, and is not told.
    """
    missing = []
    for name, load_format in load_formats.items():
        try:
            wrap(module, name, functools.partial(_iterate, load_format, log))
        except AttributeError as error:
            missing.append(str(error))
    if missing:
        raise AttributeError("; ".join(missing))


def _iterate(load_format: str, log: Logger, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    files = args[0] if args else kwargs["hf_weights_files"]
    if not is_enabled() or not any(_is_packed(path, log) for path in files):
        return stock(*args, **kwargs)
    if load_format:
        log.warning("packed files are read by weightpack, not by %s, which reads plain ones (`weightpack unpack`)", load_format)
    return _weights(files)


def _weights(files: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for path in files:
        with packed_aware_safe_open(path, framework="pt") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)


def _is_packed(path: str | os.PathLike[str], log: Logger) -> bool:
    if not isinstance(path, str) or not is_url(path):
        return looks_packed(path)
    try:
        return looks_packed(RemoteFile(path))
    except (WeightpackError, OSError) as error:
        log.warning("weightpack can't tell whether %s is packed: %s", path, error)
        return False
