#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a trainer sends to those who generate with its model: weightpack.delta beside XOR with zstd; writes results/weight_sync.json and results/weight_sync.md.

    .venv-ecosystem/bin/python benchmarks/weight_sync.py      # scripts/setup ecosystem makes that environment

MiniLM is trained for real on the sentences of this repository's documents (AdamW, in-batch contrastive loss); its weights are sent in bf16 after every step, as
trainers of language models with reinforcement do. Every message is applied and compared before it counts. Seconds are medians of 7 on one thread, in memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
import zstandard
from report import RESULTS

import weightpack.delta
from weightpack.arrays.contents import contents

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import fetch_models  # noqa: E402

Weights = dict[str, torch.Tensor]
RUNS = 7
RATES = 1e-6, 2e-5
STEPS = 1, 2, 4


def sentences() -> list[str]:
    text = " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    return [sentence for sentence in re.split(r"(?<=[.:])\s+", re.sub(r"[`|*#\[\]]", " ", text)) if 40 < len(sentence) < 300]


def trained(folder: Path, rate: float) -> Iterator[Weights]:
    """Yield the weights in bf16 before the first step and after each."""
    torch.manual_seed(0)
    model, tokenizer = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32), transformers.AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    texts = sentences()
    for step in range(max(STEPS) + 1):
        yield {name: tensor.detach().to(torch.bfloat16).clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        batch = tokenizer(texts[step * 16 : step * 16 + 16], padding=True, truncation=True, max_length=64, return_tensors="pt")
        one, other = (torch.nn.functional.normalize(model(**batch).last_hidden_state.mean(1), dim=1) for _ in range(2))  # dropout makes them differ
        loss = torch.nn.functional.cross_entropy(one @ other.T * 20, torch.arange(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name].view(torch.int16), other[name].view(torch.int16)) for name in one)


def seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def copied(weights: Weights) -> Weights:
    return {name: tensor.clone() for name, tensor in weights.items()}


def by_weightpack(base: Weights, target: Weights) -> dict[str, float]:
    message, there = weightpack.delta.encode(target, base, threads=1), copied(base)
    weightpack.delta.apply(message, there, threads=1)
    assert same(there, target)
    back = weightpack.delta.encode(base, target, threads=1)

    def there_and_back() -> None:
        weightpack.delta.apply(back, there, threads=1)
        weightpack.delta.apply(message, there, threads=1)

    return {"bytes": len(message), "encode_s": seconds(lambda: weightpack.delta.encode(target, base, threads=1)), "apply_s": seconds(there_and_back) / 2}


def by_xor(base: Weights, target: Weights, *, planes: bool) -> dict[str, float]:
    """XOR of all tensors, through zstd -3; in planes: all upper bytes, then all lower ones."""

    def joined(weights: Weights) -> np.ndarray:
        return np.concatenate([contents(tensor)[2] for tensor in weights.values()])

    def encode() -> bytes:
        differing = joined(base) ^ joined(target)
        return zstandard.compress(np.ascontiguousarray(differing.reshape(-1, 2).T) if planes else differing, 3)

    def applied(there: Weights) -> None:
        differing = np.frombuffer(zstandard.decompress(message), np.uint8)
        if planes:
            differing = np.ascontiguousarray(differing.reshape(2, -1).T).reshape(-1)
        position = 0
        for tensor in there.values():
            memory = contents(tensor)[2]
            memory ^= differing[position : position + memory.size]
            position += memory.size

    message, there = encode(), copied(base)
    applied(there)
    assert same(there, target)
    return {"bytes": len(message), "encode_s": seconds(encode), "apply_s": seconds(lambda: applied(there))}


TOOLS: dict[str, Callable[[Weights, Weights], dict[str, float]]] = {
    "weightpack.delta": by_weightpack,
    "xor, zstd -3": lambda base, target: by_xor(base, target, planes=False),
    "xor, byte planes, zstd -3": lambda base, target: by_xor(base, target, planes=True),
}


def page(result: dict[str, object]) -> str:
    lines = [
        "# Weights on their way to engines",
        "",
        f"Written by `benchmarks/weight_sync.py` on {result['date']}. {result['machine']}, one thread, in memory, medians of {RUNS}.",
        "MiniLM, 22.7 million weights, AdamW on sentences of `docs/`, sent in bf16; every message was applied and compared.",
        "Size: of the weights; GB/s: of weights. The least size is bold.",
        "",
        "| learning rate | steps between | tool | size | bits a weight | encode, GB/s | apply, GB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = result["rows"]
    assert isinstance(rows, list)
    for row in rows:
        n, least = row["weight_bytes"], min(tool["bytes"] for tool in row["tools"].values())
        for name, tool in row["tools"].items():
            size = f"{tool['bytes'] / n:.2%}"
            lines.append(
                f"| {row['rate']:g} | {row['steps']} | {name} | {'**' + size + '**' if tool['bytes'] == least else size} | {16 * tool['bytes'] / n:.2f} | "
                f"{n / tool['encode_s'] / 1e9:.2f} | {n / tool['apply_s'] / 1e9:.2f} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    folder = fetch_models.fetch("minilm")
    rows = []
    for rate in RATES:
        weights = list(trained(folder, rate))
        for steps in STEPS:
            base, target = weights[-1 - steps], weights[-1]
            tools = {name: tool(base, target) for name, tool in TOOLS.items()}
            rows.append({"rate": rate, "steps": steps, "weight_bytes": sum(tensor.nbytes for tensor in target.values()), "tools": tools})
            print(rows[-1], flush=True)
    info = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in (info.read_text().splitlines() if info.exists() else []) if line.startswith("model name")]
    machine = f"{models[0] if models else platform.processor()}, Python {platform.python_version()}"
    result = {"date": f"{datetime.date.today()}", "machine": machine, "rows": rows}
    (RESULTS / "weight_sync.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "weight_sync.md").write_text(page(result))


if __name__ == "__main__":
    main()
