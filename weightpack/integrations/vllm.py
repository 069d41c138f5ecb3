# SPDX-License-Identifier: Apache-2.0
"""The plugin of vLLM: packed models with no flag, and `--load-format weightpack`. vLLM calls `plug_in` in each of its processes."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightpack.integrations.engine import take_steps, wrap_configs, wrap_headers_on_the_hub, wrap_iterators
from weightpack.integrations.rebind import wrap
from weightpack.integrations.swap import enable, is_enabled
from weightpack.io.files import LocalFile
from weightpack.reading.packed_file import PackedFile
from weightpack.sources.safetensors import looks_packed

LOAD_FORMAT = "weightpack"
_LOAD_FORMATS = {
    "fastsafetensors_weights_iterator": "fastsafetensors",
    "instanttensor_weights_iterator": "instanttensor",
    "multi_thread_safetensors_weights_iterator": "",  # it would hold several decoded files, and decoding has threads of its own
    "runai_safetensors_weights_iterator": "runai_streamer",
}

log = logging.getLogger("vllm.weightpack")  # vLLM shows what its own loggers say


def plug_in() -> None:
    """Let this vLLM process read packed models."""
    take_steps("vLLM", _STEPS, log)


def _wrap_headers() -> None:
    from vllm.transformers_utils import utils

    wrap(utils, "parse_safetensors_file_metadata", _header)


def _header(stock: Callable[..., Any], path: str | os.PathLike[str]) -> Any:
    """Of a packed file, what the source's header says, without `data_offsets`: they would be wrong in this file."""
    if not is_enabled() or not looks_packed(path):
        return stock(path)
    with LocalFile(path) as file:
        packed = PackedFile(file)
        entries = {stored.tensor.name: {"dtype": stored.tensor.dtype, "shape": list(stored.tensor.shape)} for stored in packed.tensors.values()}
        return {"__metadata__": packed.metadata or {}, **entries}


def _wrap_iterators() -> None:
    from vllm.model_executor.model_loader import weight_utils

    wrap_iterators(weight_utils, _LOAD_FORMATS, log)


@functools.cache
def _register_loader() -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import register_model_loader

    from weightpack.integrations.vllm_loader import PackedModelLoader

    register_model_loader(LOAD_FORMAT)(PackedModelLoader)
    wrap(EngineArgs, "create_model_config", _model_config)


def _model_config(stock: Callable[..., Any], arguments: Any, *args: Any, **kwargs: Any) -> Any:
    """Of `--load-format auto`, choose ours for a packed model."""
    config = stock(arguments, *args, **kwargs)
    if is_enabled() and arguments.load_format == "auto" and _is_packed_model(config.model, config.revision, arguments.download_dir):
        arguments.load_format = LOAD_FORMAT
        log.info("%s is packed: its weights are read by weightpack", config.model)
    return config


def _is_packed_model(model: str, revision: str | None, cache: str | None) -> bool:
    """Is the first file of weights packed, of a folder, or of a repo as far as it is in the Hub's cache? Nothing is fetched."""
    folder = Path(model) if Path(model).is_dir() else _cached(model, revision, cache)
    first = None if folder is None else min(folder.glob("*.safetensors"), default=None)
    return first is not None and looks_packed(first)


def _cached(repo: str, revision: str | None, cache: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, cache_dir=cache, allow_patterns="*.safetensors", local_files_only=True))
    except (OSError, ValueError):  # it is not there, or this is no name of a repo
        return None


_STEPS: dict[str, Callable[[], None]] = {
    "packed files are not read": enable,
    "dtypes that it takes from the headers of files are wrong": _wrap_headers,
    "dtypes that it asks the Hub for are wrong": wrap_headers_on_the_hub,
    "models packed with --hf-flag are refused": wrap_configs,
    "some load formats do not read packed files": _wrap_iterators,
    "there is no --load-format weightpack": _register_loader,
}
