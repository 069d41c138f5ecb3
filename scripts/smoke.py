# SPDX-License-Identifier: Apache-2.0
"""Try an installed weightpack as its user would, in a second or two, with nothing but its dependencies:  python smoke.py [--native]

Run it outside the clone, whose folder would be imported in place of what is installed. --native: the compiled core must be there. Whatever is run to prove a
wheel, a conda package or an image, here or in the workflow, is this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import weightpack
from weightpack import kernels


def model(path: Path) -> None:
    """Write a safetensors file: bf16 and fp32, drawn with a fixed seed, so that every machine has the same."""
    rng = random.Random(1)
    values = np.array([rng.gauss(0, 0.02) for _ in range(60_000)], "<f4")
    parts = {"bf16": ("BF16", (values.view("<u4") >> 16).astype("<u2").tobytes()), "fp32": ("F32", values.tobytes())}
    header, data = {}, b""
    for name, (dtype, content) in parts.items():
        header[name] = {"dtype": dtype, "shape": [300, 200], "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def run(*arguments: str) -> str:
    python = os.environ.get("WEIGHTPACK_SMOKE_RUN", sys.executable)  # scripts/wheels: what runs a Python of another machine
    done = subprocess.run([python, "-m", "weightpack", *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"weightpack {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    isas = kernels.available_isas()
    if "--native" in sys.argv and len(isas) < 2:
        sys.exit(f"no native core in {Path(weightpack.__file__).parent}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, packed, back = folder / "model.safetensors", folder / "model.wp.safetensors", folder / "back.safetensors"
        model(source)
        run("doctor")
        run("pack", str(source))
        run("verify", str(packed), "--against", str(source))
        run("unpack", str(packed), "-o", str(back))
        assert back.read_bytes() == source.read_bytes()
        digests = {}
        for isa in isas:  # every backend of this machine gives the same bytes, and takes them
            with kernels.use_isa(isa):
                other = folder / f"{isa}.wp.safetensors"
                weightpack.pack(source, other)
                digests[isa] = hashlib.sha256(other.read_bytes()).hexdigest()
                assert weightpack.load_file(other, raw=True)["fp32"].shape == (300, 200)
        assert len(set(digests.values())) == 1, digests
    digest = next(iter(digests.values()))[:16]
    print(f"smoke: {platform.system()} {platform.machine()}, Python {platform.python_version()}, backends {', '.join(isas)}: all well, packed {digest}")


if __name__ == "__main__":
    main()
