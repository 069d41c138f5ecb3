# SPDX-License-Identifier: Apache-2.0
"""`import weightpack.transformers` once, and `from_pretrained` reads packed models, as it does plain ones.

Importing it calls `weightpack.enable`, which does the work; `weightpack.disable` undoes that. It also registers the quantisation method "weightpack", for
repos packed with `--hf-flag`: their config.json says that they are packed, so that transformers without weightpack names it before it gives up.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpack.errors import MissingExtraError
from weightpack.integrations.swap import disable, enable, is_enabled

try:
    from transformers.quantizers import AutoHfQuantizer, HfQuantizer
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise MissingExtraError(f"weightpack.transformers needs transformers, 4.57 or later, and PyTorch: {error}") from None

if TYPE_CHECKING:
    from weightpack.options import PackOptions

__all__ = ["WeightpackConfig", "disable", "enable", "is_enabled", "save_pretrained"]

_METHOD = "weightpack"


class WeightpackConfig(QuantizationConfigMixin):
    """What a flagged config.json holds; `inner` is the model's own quantisation config, if it has one."""

    def __init__(self, inner: dict[str, Any] | None = None, **_: Any) -> None:
        self.quant_method = _METHOD
        self.inner = inner
        self.dequantize = True  # what comes out is the plain model: transformers takes the config away after loading


class WeightpackQuantizer(HfQuantizer):
    """Quantises nothing: it makes sure that packed files are read, and steps aside for the model's own quantizer."""

    def __new__(cls, quantization_config: WeightpackConfig, **kwargs: Any) -> Any:
        enable()
        if quantization_config.inner:
            return AutoHfQuantizer.from_config(dict(quantization_config.inner), **kwargs)
        return super().__new__(cls)

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self.remove_quantization_config(model)
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def save_pretrained(model: Any, save_directory: str | os.PathLike[str], *, options: PackOptions | None = None, overwrite: bool = False, **kwargs: Any) -> None:
    """Save a model, a tokenizer or anything else that has `save_pretrained`, packed. (`model.save_pretrained` itself writes plain files.)

    Parameters
    ----------
    save_directory
        Made whole, or not at all.
    kwargs
        For the model's own `save_pretrained`, such as `max_shard_size`.
    """
    from weightpack import api

    target = Path(save_directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as plain:
        model.save_pretrained(plain, **kwargs)
        api.pack(plain, target, options=options, overwrite=overwrite)


if _METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(_METHOD)(WeightpackConfig)
    register_quantizer(_METHOD)(WeightpackQuantizer)
enable()
