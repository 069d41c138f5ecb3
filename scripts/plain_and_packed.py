# SPDX-License-Identifier: Apache-2.0
"""What demo_ner.py and demo_generate.py share: a model loaded plain and packed, timed, and compared by bits."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import time
from pathlib import Path

import torch
import transformers

import weightpack
from weightpack._humane import human_bytes, percent, table
from weightpack.integrations.swap import is_enabled

LOADS = 5


def quiet() -> None:
    """No bars and load reports of transformers between the tables."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def save(model, tokenizer, folder: Path) -> None:
    """Save a model as transformers does, in place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(cls, folder: Path):
    """Return (model, settled, and seconds of each load). The first load is not counted: it imports code and brings the files into the page cache."""
    cls.from_pretrained(folder, dtype="auto")
    seconds = []
    for _ in range(LOADS):
        start = time.perf_counter()
        model = cls.from_pretrained(folder, dtype="auto")
        seconds.append(time.perf_counter() - start)
    return settle(model.eval()), seconds


def settle(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a model's weights, in place, into memory of torch's own, so that what it says can be compared with another's to the last bit.

    A plain model's weights are views of the mapped file, and begin wherever the file has them; a packed one's begin at multiples of 64 bytes. Equal weights
    at other alignments may take other paths through a matrix product, which add in another order: the last bits of its sums differ.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def load_plain(cls, folder: Path):
    """By transformers and safetensors alone: weightpack must not be in the way yet."""
    if is_enabled():
        raise RuntimeError("weightpack reads already: the plain load would not be transformers' own")
    return load(cls, folder)


def load_packed(cls, folder: Path):
    """The one more line that a program needs is this import."""
    import weightpack.transformers  # noqa: F401

    return load(cls, folder)


def pack(source: Path, target: Path) -> dict[str, int]:
    """Pack a model's folder; return the sizes of its weights."""
    shutil.rmtree(target, ignore_errors=True)
    job = weightpack.pack(source, target)
    return {"plain": job.source_bytes, "packed": job.packed_bytes}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, NaNs and signs of zeros included."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """The same names, in each the same bits."""
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(same_bits(ours[name], theirs[name]) for name in ours)


def sizes_and_times(sizes: dict[str, int], seconds: dict[str, list[float]]) -> str:
    """A table of what the weights take, and how long they take to load."""
    rows = [
        [name, human_bytes(sizes[name]), percent(sizes[name], sizes["plain"]), f"{1000 * statistics.median(seconds[name]):.0f} ms"]
        for name in ("plain", "packed")
    ]
    return table([["model", "weights", "of plain", f"from_pretrained, median of {LOADS}"], *rows], right="lrrr")


def machine() -> dict[str, object]:
    """Where it ran, and with what."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.platform(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__, "weightpack": weightpack.__version__,
    }  # fmt: skip


def conclude(equal: dict[str, bool], result: dict[str, object], path: Path | None) -> int:
    """Print what is equal, write the results, and return the exit status: 1 if anything differs."""
    for name, same in equal.items():
        print(f"{name}: {'equal' if same else 'DIFFERENT'}")
    if path:
        path.write_text(json.dumps({"machine": machine(), **result, "equal": equal}, indent=1) + "\n")
    return 0 if all(equal.values()) else 1
