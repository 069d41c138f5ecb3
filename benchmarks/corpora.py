# SPDX-License-Identifier: Apache-2.0
"""Real weights, in the dtypes that people store them in: each as a safetensors file and as its elements, joined."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import fetch_models  # noqa: E402

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Corpus:
    """`file` is a safetensors file; `elements` has the bytes of its tensors of `dtype` (safetensors' spelling), joined."""

    name: str
    dtype: str
    file: str
    elements: str
    n_bytes: int


def _cast(dtype: torch.dtype, scale: float = 1) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: (tensor * scale).to(dtype) for name, tensor in tensors.items()}


def _int8_rows(tensors: Tensors) -> Tensors:
    """Symmetric int8 with one scale a row, which is stored beside it."""
    quantised = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            continue
        scale = tensor.abs().amax(dim=1, keepdim=True) / 127
        quantised[name] = torch.round(tensor / scale).to(torch.int8)
        quantised[f"{name}_scale"] = scale.reshape(-1)
    return quantised


def _upcast(tensors: Tensors) -> Tensors:
    return {name: tensor.bfloat16().float() for name, tensor in tensors.items()}


def _as_shipped(tensors: Tensors) -> Tensors:
    return tensors


# name -> model, dtype, what is done with its float tensors
CORPORA: dict[str, tuple[str, str, Callable[[Tensors], Tensors]]] = {
    "MiniLM bf16": ("minilm", "BF16", _cast(torch.bfloat16)),
    "MiniLM fp16": ("minilm", "F16", _cast(torch.float16)),
    "MiniLM fp32": ("minilm", "F32", _as_shipped),
    "MiniLM bf16 upcast to fp32": ("minilm", "F32", _upcast),
    "MiniLM fp8 e4m3 (times 8)": ("minilm", "F8_E4M3", _cast(torch.float8_e4m3fn, 8)),
    "MiniLM fp8 e5m2": ("minilm", "F8_E5M2", _cast(torch.float8_e5m2)),
    "MiniLM int8 per row": ("minilm", "I8", _int8_rows),
    "MGM (GPT-2 type) fp32": ("mgm", "F32", _as_shipped),
    "MGM (GPT-2 type) bf16": ("mgm", "BF16", _cast(torch.bfloat16)),
    "CREPE (CNN) fp32": ("crepe", "F32", _as_shipped),
    "WordLlama fp16": ("wordllama", "F16", _as_shipped),
}
_TORCH_DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
}  # fmt: skip


def build(name: str, folder: Path) -> Corpus:
    """Write one corpus into `folder`."""
    model, dtype, change = CORPORA[name]
    floats = {key: t for key, t in load_file(fetch_models.fetch(model) / "model.safetensors").items() if t.is_floating_point()}
    tensors = {key: tensor.contiguous() for key, tensor in change(floats).items()}
    stem = "".join(c if c.isalnum() else "-" for c in name)
    file, elements = folder / f"{stem}.safetensors", folder / f"{stem}.bin"
    save_file(tensors, file)
    parts = [tensor.reshape(-1).view(torch.uint8) for _, tensor in sorted(tensors.items()) if tensor.dtype == _TORCH_DTYPES[dtype]]
    joined = torch.cat(parts).numpy()
    joined.tofile(elements)
    return Corpus(name, dtype, str(file), str(elements), joined.size)
