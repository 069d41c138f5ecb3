#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast a file of bf16 weights is packed and unpacked on tmpfs, beside `cp` and rivals, in one run; writes results/file_road.json.

    python benchmarks/file_road.py [--rivals PYTHON] [--repeats N] [--folder /dev/shm/weightpack-road]

The weights are all float tensors of five models of scripts/fetch_models.py, cast to bf16, over 200 MB. Round trips are compared first. Then all are timed
in turn, N times over: wall seconds, medians. One thread means one CPU. PYTHON has zipnn (benchmarks/tools.toml), which codes in memory, without files;
lmz is timed by scripts/bench alone.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import weightpack

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import fetch_models

RESULT = Path(__file__).parent / "results" / "file_road.json"
MODELS = ("minilm", "mgm", "crepe", "whisper", "wordllama")
ZIPNN = """
import sys, time
from zipnn import ZipNN
data = open(sys.argv[1], "rb").read()
tool = ZipNN(bytearray_dtype="bfloat16", input_format="byte", threads=1)
start = time.perf_counter(); packed = tool.compress(bytearray(data)); encode = time.perf_counter() - start
start = time.perf_counter(); back = tool.decompress(packed); decode = time.perf_counter() - start
assert bytes(back) == data
print(encode, decode, len(packed))
"""


def source(path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {}
    for model in MODELS:
        for name, tensor in load_file(fetch_models.fetch(model) / "model.safetensors").items():
            if tensor.is_floating_point():
                tensors[f"{model}.{name}"] = tensor.to(torch.bfloat16).contiguous()
    save_file(tensors, path)


def timed(work: Callable[[], object], cpus: set[int]) -> float:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rivals", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/weightpack-road"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    try:
        plain, packed, back = folder / "source.safetensors", folder / "packed.safetensors", folder / "back.safetensors"
        source(plain)
        cpus = sorted(os.sched_getaffinity(0))
        one, two = {cpus[0]}, set(cpus[:2])

        def pack(threads: int) -> Callable[[], object]:
            return lambda: weightpack.pack(plain, packed, threads=threads, overwrite=True)

        works: dict[str, tuple[Callable[[], object], set[int]]] = {
            "cp": (lambda: subprocess.run(["cp", plain, folder / "copy"], check=True), one),
            "pack, 1 thread": (pack(1), one),
            "pack, 2 threads": (pack(2), two),
            "unpack, 1 thread": (lambda: weightpack.unpack(packed, back, threads=1, overwrite=True), one),
            "unpack, 2 threads": (lambda: weightpack.unpack(packed, back, threads=2, overwrite=True), two),
        }
        for work, on in works.values():
            timed(work, on)
        assert filecmp.cmp(plain, back, shallow=False)
        sizes, seconds = {"weightpack": packed.stat().st_size}, {name: [] for name in works}
        for _ in range(arguments.repeats):
            for name, (work, on) in works.items():
                seconds[name].append(timed(work, on))
            if arguments.rivals:
                command = ["taskset", "-c", str(cpus[0]), arguments.rivals, "-c", ZIPNN, plain]
                encode, decode, size = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-3:]
                seconds.setdefault("ZipNN, in memory, encode", []).append(float(encode))
                seconds.setdefault("ZipNN, in memory, decode", []).append(float(decode))
                sizes["ZipNN"] = int(size)
        n, medians = plain.stat().st_size, {name: statistics.median(each) for name, each in seconds.items()}
        result = {
            "version": weightpack.__version__, "machine": platform.machine(), "cpu": cpu_name(), "cpus": len(cpus), "load": os.getloadavg()[0],
            "source_bytes": n, "bytes": sizes, "repeats": arguments.repeats,
            "gigabytes_a_second": {name: round(n / each / 1e9, 4) for name, each in medians.items()},
            "of_cp": {name: round(medians["cp"] / each, 3) for name, each in medians.items()},
            "two_threads": round(medians["pack, 1 thread"] / medians["pack, 2 threads"], 3),
        }  # fmt: skip
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
    finally:
        shutil.rmtree(folder)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
