# SPDX-License-Identifier: Apache-2.0
"""vLLM's default loader with options for packed files. Imported where vLLM is, by its plugin."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm.config import get_current_vllm_config
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from weightpack.api import fetched_base
from weightpack.integrations.swap import ReadingOptions, reading_with
from weightpack.io.parallel import thread_count

log = logging.getLogger("vllm.weightpack")


class PackedModelLoader(DefaultModelLoader):
    """`--load-format weightpack`: as vLLM loads by default, plain files among the packed ones too.

    `--model-loader-extra-config` may name `base`, a file, a folder or a repo on the Hub (`name[@revision]`), for models that are differences from one that is
    not found by itself, and `num_threads`, with which each worker decodes: by default, its share of the CPUs. What else it has is the default loader's.
    """

    def __init__(self, load_config: Any) -> None:
        extra = dict(load_config.model_loader_extra_config)
        self._base, self._threads = extra.pop("base", None), extra.pop("num_threads", None)
        if not isinstance(self._base, str | None):
            raise ValueError(f"base must be a path or the name of a repo, got {self._base!r}")
        if self._threads is not None and not (type(self._threads) is int and self._threads > 0):
            raise ValueError(f"num_threads must be a positive integer, got {self._threads!r}")
        super().__init__(replace(load_config, load_format="auto", model_loader_extra_config=extra))

    def load_weights(self, model: Any, model_config: Any) -> None:
        threads = thread_count(self._threads, _n_workers())
        log.info("weightpack decodes with %d thread%s", threads, "s" * (threads > 1))
        with reading_with(ReadingOptions(threads, _base(self._base))):
            super().load_weights(model, model_config)


def _base(text: str | None) -> Path | None:
    if text is None:
        return None
    return Path(text) if Path(text).exists() else fetched_base(text)


def _n_workers() -> int:
    """Workers of this machine: they load at the same time, and each sees all CPUs."""
    parallel = get_current_vllm_config().parallel_config
    return int(getattr(parallel, "local_world_size", 1)) * int(getattr(parallel, "data_parallel_size_local", 1))
