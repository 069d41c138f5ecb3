# SPDX-License-Identifier: Apache-2.0
"""Real weights, in the dtypes and the files that people store them in: each as a file, and as its elements, joined."""

from __future__ import annotations

import shutil
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
    """`file` is a safetensors file; `elements` has the bytes of its tensors of `dtype` (safetensors' spelling), joined.

    Of other kinds of files `elements` is the file itself, but for bytes behind the last whole element.
    """

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


def _int4(tensors: Tensors) -> Tensors:
    """The matrices as GPTQ keeps them: unsigned codes around 8, eight an int32, one scale for 128. Rounded to nearest."""
    quantised = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            groups = tensor.reshape(-1)[: tensor.numel() // 128 * 128].reshape(-1, 128)
            scale = groups.abs().amax(dim=1, keepdim=True) / 7
            codes = (torch.round(groups / scale.clamp_min(1e-12)) + 8).to(torch.int64).reshape(-1, 8)
            words = sum(codes[:, i] << 4 * i for i in range(8))
            quantised[f"{name}.qweight"] = (words - (words >> 31 << 32)).to(torch.int32)
            quantised[f"{name}.scales"] = scale.reshape(-1).half()
    return quantised


def _as_shipped(tensors: Tensors) -> Tensors:
    return tensors


def _shipped(folder: Path, name: str) -> Path:
    source = fetch_models.fetch_file(name)
    return Path(shutil.copyfile(source, folder / source.name))


def _torch_bin(folder: Path) -> Path:
    torch.save(load_file(fetch_models.fetch("minilm") / "model.safetensors"), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def _gguf_q8(folder: Path) -> Path:
    """Matrices in Q8_0, the rest as it is."""
    import gguf

    writer = gguf.GGUFWriter(folder / "model.gguf", "bert")
    for name, tensor in load_file(fetch_models.fetch("minilm") / "model.safetensors").items():
        if tensor.is_floating_point():
            q8 = gguf.GGMLQuantizationType.Q8_0
            is_matrix = tensor.ndim == 2 and tensor.shape[1] % 32 == 0
            writer.add_tensor(name, gguf.quantize(tensor.numpy(), q8) if is_matrix else tensor.numpy(), raw_dtype=q8 if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


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
    "Whisper tiny.en fp16": ("whisper", "F16", _as_shipped),
    "MiniLM int4 in int32 (GPTQ layout)": ("minilm", "I32", _int4),
}
# Files of other kinds. name -> model, what their elements are told to be, how the file is made
OTHER_FILES: dict[str, tuple[str, str, Callable[[Path], Path]]] = {
    "MiniLM pytorch_model.bin fp32": ("minilm", "F32", _torch_bin),
    "Resemblyzer .pt with Adam's state": ("resemblyzer", "F32", lambda folder: _shipped(folder, "resemblyzer")),
    "SmolLM2-135M GGUF Q4_1": ("smollm2", "U8", lambda folder: _shipped(folder, "smollm2")),
    "MiniLM GGUF Q8_0": ("minilm", "U8", _gguf_q8),
    "Kokoro-82M ONNX int8": ("kokoro", "U8", lambda folder: _shipped(folder, "kokoro")),
}
NAMES = [*CORPORA, *OTHER_FILES]
_TORCH_DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
    "I32": torch.int32,
}  # fmt: skip


def build(name: str, folder: Path) -> Corpus:
    """Write one corpus into `folder`."""
    if name in OTHER_FILES:
        _, dtype, make = OTHER_FILES[name]
        path = make(folder)
        data = path.read_bytes()
        elements = folder / f"{path.name}.elements"
        elements.write_bytes(data[: len(data) // 4 * 4])
        return Corpus(name, dtype, str(path), str(elements), elements.stat().st_size)
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
