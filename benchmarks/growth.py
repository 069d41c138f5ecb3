#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What time and memory cost as checkpoints grow: pack, unpack and load_file from 1 MB to several GB, each run in a process of its own.

    .venv-bench/bin/python benchmarks/growth.py              # results in benchmarks/results/growth.{json,md,png}; after scripts/bench has set up .venv-bench
    .venv-bench/bin/python benchmarks/growth.py --largest 64 --out /tmp/results

Files are bf16 on tmpfs: tensors of 16 MB, each a window, at a random place, of MiniLM's weights joined end to end. "Memory" is the peak of what the process
holds for itself (RssAnon); pages of the page cache that it has mapped are the system's to take away.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import report
from corpora import build
from suite import machine

import weightpack

SIZES = [1, 4, 16, 64, 256, 1024, 4096]  # MB
TENSOR_ELEMS = 8 << 20
OPERATIONS = ["copy", "pack", "pack unverified", "unpack", "load_file", "plain load_file and clone"]


class PeakAnonymous(threading.Thread):
    """Samples this process's own memory every few milliseconds while it is open."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base, self.peak, self.stop = self.now(), 0, threading.Event()

    @staticmethod
    def now() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def run(self) -> None:
        while not self.stop.wait(0.003):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> PeakAnonymous:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()

    @property
    def grown(self) -> int:
        return max(0, self.peak - self.base)


def operate(operation: str, folder: Path) -> dict[str, float]:
    """Run one operation, after a small one that warms up what is imported at first use."""

    def work(source: Path, packed: Path, restored: Path) -> object:
        if operation == "copy":
            return shutil.copyfile(source, restored)
        if operation.startswith("pack"):
            return weightpack.pack(source, packed, overwrite=True, verify=operation == "pack")
        if operation == "unpack":
            return weightpack.unpack(packed, restored, overwrite=True)
        if operation == "load_file":
            from weightpack.torch import load_file

            return load_file(packed)
        import safetensors.torch

        # A plain load is a mapping: to compare, the tensors must be in memory of their own.
        return [tensor.clone() for tensor in safetensors.torch.load_file(source).values()]

    small = [folder / f"small-{name}.safetensors" for name in ("source", "packed", "restored")]
    work(*small)
    with PeakAnonymous() as memory:
        start = time.perf_counter()
        result = work(*(folder / f"{name}.safetensors" for name in ("source", "packed", "restored")))
        seconds = time.perf_counter() - start
    del result
    return {"seconds": seconds, "anonymous_bytes": memory.grown}


def make(path: Path, n_bytes: int, pool: np.ndarray) -> None:
    """Write a safetensors file of about `n_bytes`."""
    rng = np.random.default_rng(n_bytes)
    n_elems, header, offset = n_bytes // 2, {}, 0
    sizes = [min(TENSOR_ELEMS, n_elems - i) for i in range(0, n_elems, TENSOR_ELEMS)]
    for i, n in enumerate(sizes):
        header[f"layer.{i}.weight"] = {"dtype": "BF16", "shape": [n], "data_offsets": [offset, offset + 2 * n]}
        offset += 2 * n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for n in sizes:
            at = int(rng.integers(0, pool.size - n)) if n < pool.size else 0
            file.write(pool[at : at + n])


def page(result: dict) -> str:
    """Return growth.md."""
    m = result["machine"]
    lines = [
        "# Cost against size", "",
        f"Written by `benchmarks/growth.py` at commit {m['commit']}. {m['cpu']} (a virtual machine, {m['cores']} cores), all cores, bf16 on tmpfs. Seconds are",
        "medians; memory is what the process held for itself at its peak (RssAnon; for load_file that includes the tensors).", "",
        "![time and memory against size](growth.png)", "",
        "| size | " + " | ".join(f"{o}, s" for o in OPERATIONS) + " | " + " | ".join(f"{o}, MB" for o in OPERATIONS[1:]) + " |",
        "|---|" + "---|" * (2 * len(OPERATIONS) - 1),
    ]  # fmt: skip
    for row in result["rows"]:
        times = [f"{row['operations'][o]['seconds']:.3g}" for o in OPERATIONS]
        memory = [f"{row['operations'][o]['anonymous_bytes'] / 1e6:.0f}" for o in OPERATIONS[1:]]
        lines.append(f"| {row['n_bytes'] / 1e6:.0f} MB | {' | '.join(times + memory)} |")
    return "\n".join([*lines, ""])


def plot(result: dict, path: Path) -> None:
    """Draw time and memory against size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    sizes = [row["n_bytes"] / 1e6 for row in result["rows"]]
    for operation in OPERATIONS:
        rows = [row["operations"][operation] for row in result["rows"]]
        axes[0].plot(sizes, [r["seconds"] for r in rows], marker="o", ms=3, label=operation)
        axes[1].plot(sizes, [max(r["anonymous_bytes"] / 1e6, 0.1) for r in rows], marker="o", ms=3, label=operation)
    for axis, label in zip(axes, ("seconds", "memory of the process's own, MB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="size of the original, MB", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="MB; default %(default)s")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--operate", nargs=2, metavar=("OPERATION", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.operate:
        print(json.dumps(operate(arguments.operate[0], Path(arguments.operate[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="weightpack-growth-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        real = np.fromfile(build("MiniLM bf16", folder).elements, np.uint16)
        pool = np.concatenate([real, real])
        make(folder / "small-source.safetensors", 1_000_000, pool)
        weightpack.pack(folder / "small-source.safetensors", folder / "small-packed.safetensors")
        for size in [s for s in SIZES if s <= arguments.largest]:
            make(folder / "source.safetensors", size * 1_000_000, pool)
            row: dict = {"n_bytes": (folder / "source.safetensors").stat().st_size, "operations": {}}
            for operation in OPERATIONS:
                runs = []
                for _ in range(arguments.repeats):
                    done = subprocess.run([sys.executable, __file__, "--operate", operation, name], capture_output=True, text=True, check=True)
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
                row["operations"][operation] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                print(f"{size} MB, {operation}: {row['operations'][operation]}", flush=True)
            (folder / "restored.safetensors").unlink()
            row["packed_bytes"] = (folder / "packed.safetensors").stat().st_size
            rows.append(row)
    result = {"machine": machine(len(os.sched_getaffinity(0))), "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "growth.md").write_text(page(result))
    plot(result, arguments.out / "growth.png")


if __name__ == "__main__":
    main()
