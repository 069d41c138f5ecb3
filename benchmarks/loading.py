#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From `from_pretrained` to the end of a first forward pass, packed beside plain, with reads as fast as memory, as the disk, and slower.

    .venv-ecosystem/bin/python benchmarks/loading.py     # results in benchmarks/results/loading.{json,md}; scripts/test-ecosystem makes the environment

Each figure is the median of processes of their own, imports not timed. "Cold" evicts the files from the page cache; the throttled runs do that too and hold the
process to a rate with the block-I/O controller (cgroup v1, as root; left out where there is none).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
GROUP = Path("/sys/fs/cgroup/blkio/weightpack-bench")
RATES = {"warm": None, "cold": None, "1 GB/s": 1_000_000_000, "100 MB/s": 100_000_000}


def load(folder: Path, condition: str) -> float:
    """Load and run a model in this process; return seconds."""
    import torch
    import transformers

    import weightpack.transformers  # noqa: F401

    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            if condition == "warm":
                while opened.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if RATES[condition]:
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    ids = torch.arange(16)[None]
    start = time.perf_counter()
    config = transformers.AutoConfig.from_pretrained(folder)
    model = (transformers.AutoModelForCausalLM if config.architectures == ["LlamaForCausalLM"] else transformers.AutoModel).from_pretrained(folder)
    with torch.no_grad():
        model(ids)
    return time.perf_counter() - start


@contextlib.contextmanager
def throttled(path: Path, rate: int | None):
    """Make a group whose processes read from the disk of `path` at no more than `rate` bytes a second."""
    if rate is None:
        yield
        return
    device = os.stat(path).st_dev
    GROUP.mkdir()
    try:
        (GROUP / "blkio.throttle.read_bps_device").write_text(f"{os.major(device)}:{os.minor(device)} {rate}")
        yield
    finally:
        GROUP.rmdir()


def large_llama(folder: Path) -> None:
    """Write a LLaMA-type model of 537 MB in bf16, its weights drawn from MiniLM's, so that their statistics are real."""
    import numpy as np
    import torch
    import transformers
    from corpora import build

    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16, vocab_size=32000,
        tie_word_embeddings=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        pool = torch.from_numpy(np.fromfile(build("MiniLM bf16", Path(scratch)).elements, np.int16))
    pool = torch.cat([pool, pool])
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).bfloat16()
    tensors = {}
    for name, parameter in model.state_dict().items():
        at = int(torch.randint(len(pool) - parameter.numel(), (1,), generator=generator)) if parameter.numel() < len(pool) else 0
        drawn = pool[at : at + parameter.numel()]
        tensors[name] = torch.ones_like(parameter, device="cpu") if parameter.ndim == 1 else drawn.view(torch.bfloat16).reshape(parameter.shape).clone()
    model.load_state_dict(tensors, assign=True)
    model.save_pretrained(folder)


def page(result: dict) -> str:
    """Return loading.md."""
    m = result["machine"]
    lines = [
        "# Loading a model", "",
        f"Written by `benchmarks/loading.py` at commit {m['commit']}. {m['cpu']} (a virtual machine, {m['cores']} cores), transformers",
        f"{result['transformers']}. Seconds from `from_pretrained` to the end of a first forward pass of 16 tokens, medians, imports not timed; files on the",
        "virtual machine's disk (ext4).",
        "A plain load maps the file, so the forward pass is what reads it, and rows of the embedding that no token asks for are never read.", "",
        "| model | plain file | packed file | reads | plain, s | packed, s | packed / plain |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        plain, packed = row["plain_seconds"], row["packed_seconds"]
        sizes = f"{row['plain_bytes'] / 1e6:.0f} MB | {row['packed_bytes'] / 1e6:.0f} MB"
        lines.append(f"| {row['model']} | {sizes} | {row['reads']} | {plain:.2f} | {packed:.2f} | {packed / plain:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "CONDITION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(load(Path(arguments.load[0]), arguments.load[1]))
        return
    import transformers
    from corpora import fetch_models
    from suite import machine

    import weightpack

    rows = []
    with tempfile.TemporaryDirectory(prefix="weightpack-loading-", dir=HERE.parent) as name:
        plain = {"MiniLM fp32": Path(name, "minilm"), "LLaMA type bf16": Path(name, "llama")}
        fetched = fetch_models.fetch("minilm")
        plain["MiniLM fp32"].mkdir()
        for file in fetched.iterdir():
            if file.is_file():
                (plain["MiniLM fp32"] / file.name).write_bytes(file.read_bytes())
        large_llama(plain["LLaMA type bf16"])
        for model, folder in plain.items():
            packed = Path(weightpack.pack(folder).target)
            os.sync()
            for condition, rate in RATES.items():
                if rate and not GROUP.parent.is_dir():
                    continue
                times: dict[Path, list[float]] = {folder: [], packed: []}
                with throttled(folder, rate):
                    for _ in range(3 if rate == 100_000_000 else 5):
                        for path in times:
                            done = subprocess.run(
                                [sys.executable, __file__, "--load", path, condition], capture_output=True, text=True, check=True,
                                env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
                            )  # fmt: skip
                            times[path].append(float(done.stdout.split()[-1]))
                a, b = (statistics.median(times[path]) for path in (folder, packed))
                sizes = [sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (folder, packed)]
                rows.append({"model": model, "reads": condition, "plain_bytes": sizes[0], "packed_bytes": sizes[1], "plain_seconds": a, "packed_seconds": b})
                print(rows[-1], flush=True)
    result = {"machine": machine(len(os.sched_getaffinity(0))), "transformers": transformers.__version__, "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "loading.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "loading.md").write_text(page(result))


if __name__ == "__main__":
    main()
