#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint larger than memory: packed, verified and unpacked under `ulimit -v`, with the memory of the process recorded over time. Run by scripts/soak.

The file is on disk, bf16 and fp32 by turns: tensors of 16 MB, each a window, at a random place, of MiniLM's weights joined end to end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import report
from corpora import build
from suite import machine

TENSOR_BYTES = 16 << 20


def make(path: Path, n_bytes: int) -> str:
    """Write the file; return its SHA-256."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pools = {
            "BF16": np.fromfile(build("MiniLM bf16", folder).elements, np.uint16), "F32": np.fromfile(build("MiniLM fp32", folder).elements, np.uint32),
        }  # fmt: skip
    rng, header, digest = np.random.default_rng(0), {}, hashlib.sha256()
    n_tensors = -(-n_bytes // TENSOR_BYTES)
    for i in range(n_tensors):
        dtype, size = ("BF16", 2) if i % 2 else ("F32", 4)
        header[f"layer.{i}"] = {"dtype": dtype, "shape": [TENSOR_BYTES // size], "data_offsets": [i * TENSOR_BYTES, (i + 1) * TENSOR_BYTES]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        head = len(text).to_bytes(8, "little") + text
        file.write(head)
        digest.update(head)
        for entry in header.values():
            pool, n = pools[entry["dtype"]], entry["shape"][0]
            at = int(rng.integers(0, pool.size - n))
            file.write(pool[at : at + n])
            digest.update(pool[at : at + n])
    return digest.hexdigest()


def watched(arguments: list[str], memory_bytes: int) -> dict:
    """Run the command line under a limit of its address space; record its own memory over time."""
    samples, start = [], time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "weightpack", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes)),
    )  # fmt: skip
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            samples.append([round(time.perf_counter() - start, 2), kilobytes * 1024])
        except (OSError, StopIteration):
            pass
        time.sleep(0.25)
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {err}")
    return {"seconds": time.perf_counter() - start, "peak_rss_bytes": max(s[1] for s in samples), "rss": samples, "said": out.strip()}


def page(result: dict) -> str:
    """Return soak.md."""
    m = result["machine"]
    lines = [
        "# A large checkpoint with little memory", "",
        f"Written by `scripts/soak` at commit {m['commit']}. {m['cpu']} (a virtual machine, {m['cores']} cores), on disk. A safetensors file of",
        f"{result['source_bytes'] / 1e9:.2f} GB, packed to {result['packed_bytes'] / 1e9:.2f} GB, under `ulimit -v` of {result['memory_bytes'] / 1e6:.0f} MB.",
        "The restored file has the source's SHA-256.", "", "![memory over time](soak.png)", "", "| step | seconds | peak RSS |", "|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {name} | {run['seconds']:.0f} | {run['peak_rss_bytes'] / 1e6:.0f} MB |" for name, run in result["runs"].items()]
    return "\n".join([*lines, ""])


def plot(result: dict, path: Path) -> None:
    """Draw memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.5))
    for name, run in result["runs"].items():
        axis.plot([s[0] for s in run["rss"]], [s[1] / 1e6 for s in run["rss"]], label=name)
    axis.set(xlabel="seconds", ylabel="resident memory, MB", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--megabytes-of-memory", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    arguments = parser.parse_args()
    memory = arguments.megabytes_of_memory * 1_000_000
    with tempfile.TemporaryDirectory(prefix="weightpack-soak-", dir=Path(__file__).resolve().parents[1]) as name:
        source, packed, restored = (Path(name, f"{stem}.safetensors") for stem in ("source", "packed", "restored"))
        sha256 = make(source, int(arguments.gigabytes * 1e9))
        runs = {"pack": watched(["pack", str(source), "-o", str(packed)], memory), "verify": watched(["verify", str(packed)], memory)}
        source_bytes = source.stat().st_size
        source.unlink()
        runs["unpack"] = watched(["unpack", str(packed), "-o", str(restored)], memory)
        digest = hashlib.sha256()
        with restored.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
        if digest.hexdigest() != sha256:
            raise SystemExit("the restored file has another SHA-256")
        result = {
            "machine": machine(len(os.sched_getaffinity(0))), "source_bytes": source_bytes, "packed_bytes": packed.stat().st_size, "memory_bytes": memory,
            "sha256": sha256, "runs": runs,
        }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "soak.json").write_text(json.dumps(result) + "\n")
    (arguments.out / "soak.md").write_text(page(result))
    plot(result, arguments.out / "soak.png")
    print(page(result))


if __name__ == "__main__":
    main()
