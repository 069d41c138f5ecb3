#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Distributed checkpoints of a training state, plain and packed: bytes, and seconds to save and to load.

    python benchmarks/dcp.py STATE.safetensors ...      # results in benchmarks/results/dcp.json, and the table of docs/DCP.md

A state is a file that holds a model's tensors and its optimizer's, as a checkpoint does. It is saved by one process, with one thread, to a folder beside it,
with DCP's own zstd extension as the rival; each checkpoint is loaded again and compared by bits. Seconds are the least of `--repeats`; files are not synced, so
that what is measured is not the disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint._extension import ExtensionRegistry, ZStandard

import weightpack.dcp
from weightpack.kernels import active
from weightpack.options import load_profile

RESULTS = Path(__file__).resolve().parent / "results" / "dcp.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "DCP.md"
_BEGIN, _END = "<!-- figures: written by benchmarks/dcp.py -->\n", "<!-- end of figures -->"


def writers(folder: Path) -> dict[str, dcp.FileSystemWriter]:
    """Return each way to save, by name."""
    return {
        "plain": dcp.FileSystemWriter(folder, sync_files=False),
        "zstd (PyTorch's extension)": dcp.FileSystemWriter(folder, sync_files=False, _extensions=[ZStandard()]),
        "weightpack": weightpack.dcp.writer(folder, sync_files=False),
        "weightpack, verify=False": weightpack.dcp.writer(folder, sync_files=False, verify=False),
        "weightpack dense": weightpack.dcp.writer(folder, sync_files=False, options=load_profile("dense")),
    }


def measure(state: dict[str, torch.Tensor], folder: Path, name: str, repeats: int) -> dict[str, Any]:
    """Save and load a state; return bytes and the least seconds."""
    saving, loading = [], []
    for _ in range(repeats):
        shutil.rmtree(folder, ignore_errors=True)
        writer = writers(folder)[name]
        begin = time.perf_counter()
        dcp.save(state, storage_writer=writer)
        saving.append(time.perf_counter() - begin)
        target = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
        registry = ExtensionRegistry() if "zstd" in name else weightpack.dcp.registry()
        begin = time.perf_counter()
        dcp.load(target, storage_reader=dcp.FileSystemReader(folder, _extension_registry=registry))
        loading.append(time.perf_counter() - begin)
        for key, tensor in state.items():
            if not torch.equal(tensor.reshape(-1).view(torch.uint8), target[key].reshape(-1).view(torch.uint8)):
                raise SystemExit(f"{name}: {key} is not what was saved")
    n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    return {"checkpoint_bytes": n_bytes, "save_seconds": round(min(saving), 3), "load_seconds": round(min(loading), 3)}


def main() -> None:
    """Measure each state given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    results = []
    for path in arguments.states:
        state = load_file(path)
        by_dtype: dict[str, int] = {}
        for tensor in state.values():
            by_dtype[str(tensor.dtype).removeprefix("torch.")] = by_dtype.get(str(tensor.dtype).removeprefix("torch."), 0) + tensor.nbytes
        result = {"state": f"{path.parent.name}/{path.name}", "tensors": len(state), "bytes": by_dtype, "ways": {}}
        for name in writers(path.parent):
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                result["ways"][name] = measured = measure(state, Path(folder) / "checkpoint", name, arguments.repeats)
            print(f"{result['state']}  {name:28} {measured}", flush=True)
        results.append(result)
    machine = {"isa": active().name, "cpu": cpu(), "python": platform.python_version(), "torch": torch.__version__, "weightpack": weightpack.__version__}
    arguments.out.write_text(json.dumps({"machine": machine, "repeats": arguments.repeats, "results": results}, indent=1) + "\n")
    if arguments.out == RESULTS:
        PAGE.write_text(with_figures(PAGE.read_text(), results))


def with_figures(page: str, results: list[dict[str, Any]]) -> str:
    """Return the page with the table of these results in it."""
    lines = []
    for result in results:
        kinds = " and ".join(f"{n_bytes / 1e6:.0f} MB {dtype}" for dtype, n_bytes in sorted(result["bytes"].items()) if n_bytes >= 500_000)
        lines += [f"| {result['state']}: {result['tensors']} tensors, {kinds} | bytes | of plain | save, s | load, s |", "|---|---|---|---|---|"]
        plain = result["ways"]["plain"]["checkpoint_bytes"]
        for name, way in result["ways"].items():
            n_bytes = way["checkpoint_bytes"]
            lines.append(f"| {name} | {n_bytes:,} | {100 * n_bytes / plain:.1f} % | {way['save_seconds']:.2f} | {way['load_seconds']:.2f} |")
        lines.append("")
    before, _, behind = page.partition(_BEGIN)
    return before + _BEGIN + "\n".join(lines) + _END + behind.partition(_END)[2]


def cpu() -> str:
    """Return the CPU's name, where it can be had."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
