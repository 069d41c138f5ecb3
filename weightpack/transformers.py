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

from weightpack.errors import MissingExtraError, OptionError
from weightpack.integrations.swap import disable, enable, is_enabled
from weightpack.reading.tensors import TensorSlice

try:
    import torch
    from transformers import __version__ as _version
    from transformers.quantizers import AutoHfQuantizer, HfQuantizer
    from transformers.quantizers import auto as _registry
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, register_quantization_config, register_quantizer
    from transformers.quantizers.quantizers_utils import get_module_from_name
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise MissingExtraError(f"weightpack.transformers needs transformers, 4.57 or later, and PyTorch: {error}") from None

from weightpack.resident.modules import compress, keep_packed, packs, unpack_others
from weightpack.resident.tensor import PackedTensor

if TYPE_CHECKING:
    from weightpack.options import PackOptions

__all__ = ["WeightpackConfig", "disable", "enable", "is_enabled", "save_pretrained"]

_METHOD = "weightpack"
_V5 = int(_version.split(".")[0]) >= 5


class WeightpackConfig(QuantizationConfigMixin):
    """How a packed model is loaded; and what a flagged config.json holds.

    Parameters
    ----------
    inner
        The model's own quantisation config, if it has one.
    resident
        Keep the large weights packed in memory, as `weightpack.torch.compress` does, on the CPU. They go from the packed file to memory as they are; from a
        local file they are mapped. With an `inner` config it is refused.
    fused
        Of a resident model, as for `weightpack.torch.compress`.
    """

    def __init__(self, inner: dict[str, Any] | None = None, resident: bool = False, fused: bool = False, **_: Any) -> None:
        self.quant_method = _METHOD
        self.inner, self.resident, self.fused = inner, resident, fused
        self.dequantize = True  # what comes out is the plain model: transformers takes the config away after loading

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return what a config that is given to `from_pretrained` says in place of the one in config.json."""
        return {"resident": self.resident, "fused": self.fused}


class WeightpackQuantizer(HfQuantizer):
    """Quantises nothing: it makes sure that packed files are read, and steps aside for the model's own quantizer."""

    def __new__(cls, quantization_config: WeightpackConfig, **kwargs: Any) -> Any:
        enable()
        if quantization_config.inner:
            if quantization_config.resident:
                raise OptionError("a model that is quantised otherwise can't be kept packed in memory")
            return AutoHfQuantizer.from_config(dict(quantization_config.inner), **kwargs)
        return super().__new__(cls)

    def __init__(self, quantization_config: WeightpackConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **{**kwargs, "pre_quantized": True})

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Called by transformers 5 for each tensor of a checkpoint before it is read."""
        if self.quantization_config.resident and isinstance(param, TensorSlice) and not getattr(converter, "operations", ()):
            keep_packed(param)
        return super().get_new_dtype(converter, param, dtype)

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Called by transformers 4, which then has the parameter made by `create_quantized_param`."""
        if _V5 or not self.quantization_config.resident:
            return False
        module, name = get_module_from_name(model, param_name)
        return name == "weight" and packs(module, model.get_parameter(param_name))

    def create_quantized_param(self, model: Any, param_value: Any, param_name: str, *_: Any, **__: Any) -> None:
        """Pack a weight again that transformers 4 has decoded."""
        module, _ = get_module_from_name(model, param_name)
        module.weight = torch.nn.Parameter(PackedTensor.of(param_value), requires_grad=False)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self.quantization_config.resident:
            compress(model, fused=self.quantization_config.fused)
            unpack_others(model)
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
    if _V5:  # those whose loading attributes are taken from the call, where config.json has a config, too
        _registry.LOADING_ATTRIBUTES_CONFIG_TYPES = (*_registry.LOADING_ATTRIBUTES_CONFIG_TYPES, WeightpackConfig)
enable()
