# SPDX-License-Identifier: Apache-2.0
"""The plugin of SGLang: packed models with no flag. SGLang calls `plug_in` in its processes, perhaps more than once."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightpack.integrations.engine import take_steps, wrap_configs, wrap_iterators
from weightpack.integrations.rebind import wrap
from weightpack.integrations.swap import enable, is_enabled
from weightpack.io.files import LocalFile
from weightpack.reading.packed_file import PackedFile, source_header_bytes
from weightpack.sources.safetensors import looks_packed

_LOAD_FORMATS = {
    "buffered_multi_thread_safetensors_weights_iterator": "",  # it would hold several decoded files, and decoding has threads of its own
    "fastsafetensors_weights_iterator": "fastsafetensors",
    "instanttensor_weights_iterator": "instanttensor",
    "runai_safetensors_weights_iterator": "runai_streamer",
}

log = logging.getLogger("sglang.weightpack")


def plug_in() -> None:
    """Let this SGLang process read packed models."""
    take_steps("SGLang", _STEPS, log)


def _wrap_iterators() -> None:
    from sglang.srt.model_loader import weight_utils

    wrap_iterators(weight_utils, _LOAD_FORMATS, log)


def _wrap_experts() -> None:
    from sglang.srt.model_loader import weight_utils

    wrap(weight_utils, "probe_routed_expert_weight_dtype", _on_headers)


def _wrap_fp8_experts() -> None:
    from sglang.srt.utils import common

    wrap(common, "has_fp8_weights_in_checkpoint", _on_headers)


def _on_headers(stock: Callable[..., Any], model_path: str, *args: Any, **kwargs: Any) -> Any:
    """These look into the files of a model for the dtype of its experts, and read nothing but headers: give them the sources' headers, alone."""
    packed = [path for path in Path(model_path).glob("*.safetensors") if looks_packed(path)] if is_enabled() else []
    if not packed:
        return stock(model_path, *args, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(model_path).glob("*.json"):
            shutil.copy(path, folder)
        for path in packed:
            with LocalFile(path) as file:
                header = source_header_bytes(PackedFile(file).index)
            (Path(folder) / path.name).write_bytes(len(header).to_bytes(8, "little") + header)
        return stock(folder, *args, **kwargs)


_STEPS: dict[str, Callable[[], None]] = {
    "packed files are not read": enable,
    "models packed with --hf-flag are refused": wrap_configs,
    "some load formats do not read packed files": _wrap_iterators,
    "it takes packed experts for ones of 4 bits": _wrap_experts,
    "it does not see that packed experts have 8 bits": _wrap_fp8_experts,
}
