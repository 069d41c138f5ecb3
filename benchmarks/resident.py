#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Models whose weights stay packed in memory beside the same models plain: memory, speed, load time, and what still runs under a limit of memory.

    .venv-ecosystem/bin/python benchmarks/resident.py    # results in benchmarks/results/resident.{json,md}; scripts/test-ecosystem makes the environment

Each way of holding a model is a process of its own. Nothing is written unless, before, the outputs were compared: with exact sums every logit is the plain
model's to the last bit; with fused ones the differences stand in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WAYS = ("plain", "exact", "fused")
LLAMA = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    "tie_word_embeddings": True,
}  # fmt: skip
PROMPT, TOKENS, RUNS = 4, 8, 3
SENTENCES = ["The exponents of trained weights hold 2.6 bits of information.", "Not one bit is lost."]
LIMIT = 0.8  # of the plain file, for what a process may ask for beyond its imports


def memory() -> dict[str, int]:
    """Return what this process holds of physical memory, in bytes: all, and what of that is mapped files; and its address space."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: 1024 * int(status[key].split()[0]) for name, key in (("resident", "VmRSS"), ("mapped", "RssFile"), ("address_space", "VmSize"))}


def run(way: str, folder: Path, saved: Path, n_threads: list[int], limit: int) -> dict[str, object]:
    """Load a model in this process, time it, and save what it says."""
    import numpy as np
    import torch
    import transformers

    from weightpack.torch import PackedTensor
    from weightpack.transformers import WeightpackConfig

    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model_class(transformers.AutoConfig.for_model(config.model_type, **SMALL[config.model_type]))  # imports what it needs
    before = memory()
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (before["address_space"] + limit,) * 2)
    begin = time.perf_counter()
    quantization = {} if way == "plain" else {"quantization_config": WeightpackConfig(resident=True, fused=way == "fused")}
    model = model_class.from_pretrained(folder, dtype="auto", **quantization).eval()
    result: dict[str, object] = {"load_seconds": time.perf_counter() - begin}
    speeds = {}
    with torch.inference_mode():
        for threads in n_threads:
            torch.set_num_threads(threads)
            speeds[str(threads)] = tokens_a_second(model) if config.model_type == "llama" else sentences_a_second(model, folder)
        result |= {"before": before, "after": memory(), "speed": speeds}
        for tensor in (*model.parameters(), *model.buffers()):
            if not isinstance(tensor, PackedTensor):
                tensor.data = tensor.data.clone()  # where a mapped file has weights at another alignment, sums may differ in the last bit
        np.save(saved, says(model, folder).float().numpy())
    return result


SMALL = {
    "llama": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8},
    "bert": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8},
}


def tokens_a_second(model) -> float:
    """Return how many tokens are made one after the other, the best of some runs: others may be at work on the machine."""
    import torch

    best = 0.0
    for _ in range(RUNS):
        answer = model(torch.arange(PROMPT)[None], use_cache=True)
        begin = time.perf_counter()
        for _ in range(TOKENS):
            answer = model(answer.logits[:, -1:].argmax(-1), past_key_values=answer.past_key_values, use_cache=True)
        best = max(best, TOKENS / (time.perf_counter() - begin))
    return best


def sentences_a_second(model, folder: Path) -> float:
    """Return how many sentences are encoded one by one, the best of some runs."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = [tokenizer(sentence, return_tensors="pt") for sentence in SENTENCES]
    best = 0.0
    for _ in range(RUNS):
        begin = time.perf_counter()
        for _ in range(8):
            for one in inputs:
                model(**one)
        best = max(best, 8 * len(inputs) / (time.perf_counter() - begin))
    return best


def says(model, folder: Path):
    """Return the outputs that are compared."""
    import torch
    import transformers

    if model.config.model_type == "llama":
        answer = model(torch.arange(PROMPT)[None], use_cache=True)
        logits = [answer.logits[0]]
        for token in range(3):
            answer = model(torch.tensor([[1000 * token]]), past_key_values=answer.past_key_values, use_cache=True)
            logits.append(answer.logits[0])
        return torch.cat(logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return torch.cat([model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0] for sentence in SENTENCES])


def process(way: str, folder: Path, saved: Path, n_threads: list[int], limit: int = 0) -> dict[str, object] | None:
    """Do `run` in a process of its own; None if it ran out of memory."""
    command = [sys.executable, __file__, "--run", way, str(folder), str(saved), json.dumps(n_threads), str(limit)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if limit:
        environment["MALLOC_ARENA_MAX"] = "1"  # each thread's arena is 64 MB of address space, used or not
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        if limit and any(sign in done.stderr for sign in ("MemoryError", "Cannot allocate memory", "can't allocate memory", "not enough memory")):
            return None
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def models(folder: Path):
    """Write the models; yield name and folder of each."""
    import fetch_models
    import torch
    import transformers

    source = fetch_models.fetch("minilm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    for name, dtype in (("MiniLM fp32", torch.float32), ("MiniLM bf16", torch.bfloat16)):
        target = folder / name.replace(" ", "-")
        transformers.AutoModel.from_pretrained(source).to(dtype).save_pretrained(target)
        tokenizer.save_pretrained(target)
        yield name, target
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).bfloat16()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.ndim == 1 else (0.02 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    target = folder / "LLaMA-type-bf16"
    model.save_pretrained(target)
    del model, tensors
    yield "LLaMA type bf16", target


def measured(name: str, folder: Path, n_threads: list[int], scratch: Path) -> dict[str, object]:
    """Measure a model in each way, and compare what it says."""
    import numpy as np

    import weightpack

    packed = Path(weightpack.pack(folder).target)
    ways, outputs = {}, {}
    for way in WAYS:
        saved = scratch / f"{way}.npy"
        ways[way] = process(way, folder if way == "plain" else packed, saved, n_threads)
        outputs[way] = np.load(saved)
        print(name, way, ways[way], flush=True)
    if not np.array_equal(outputs["plain"], outputs["exact"]):
        raise RuntimeError(f"{name}: the outputs of the resident model differ from the plain one's")
    difference, largest = float(np.abs(outputs["fused"] - outputs["plain"]).max()), float(np.abs(outputs["plain"]).max())
    if difference > 0.05 * largest:
        raise RuntimeError(f"{name}: the outputs with fused sums differ by {difference}, the largest is {largest}")
    sizes = {kind: sum(file.stat().st_size for file in path.glob("*.safetensors")) for kind, path in (("plain", folder), ("packed", packed))}
    return {"model": name, "files": sizes, "ways": ways, "fused_difference": difference, "largest_output": largest, "packed_folder": str(packed)}


def page(result: dict) -> str:
    """Return resident.md."""
    m = result["machine"]
    lines = [
        "# Models that stay packed in memory", "",
        f"Written by `benchmarks/resident.py` at commit {m['commit']}. {m['cpu']} (a virtual machine, {m['cores']} cores), kernels: {result['isa']};",
        f"torch {result['torch']} ({result['torch_capability']}), transformers {result['transformers']}; load average at the begin {result['load']:.1f}.",
        "*exact*: decoded to a buffer, then torch's operator: the outputs are the plain model's to the last bit, which was compared. *fused*: multiplied",
        "while it is decoded. *model in memory* is what the process holds of physical memory after it ran, less what it held before it loaded: mapped files",
        "are counted. MiniLM encodes single sentences, the LLaMA type makes tokens one after the other; the best of some runs. The weights of the LLaMA",
        "type are normal numbers of standard deviation 0.02.",
        "", "| model | way | model in memory | of plain | process | load, s | a second, 1 thread | of plain |"
        f" a second, {m['cores']} threads | of plain | largest difference |", "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        plain = row["ways"]["plain"]
        for way in WAYS:
            one = row["ways"][way]
            grown, stock = (at["after"]["resident"] - at["before"]["resident"] for at in (one, plain))
            speeds = [f"{speed:.2f} | {speed / plain['speed'][threads]:.2f}" for threads, speed in one["speed"].items()]
            differs = "0" if way != "fused" else f"{row['fused_difference']:.2g} of {row['largest_output']:.3g}"
            lines.append(
                f"| {row['model']} | {way} | {grown / 1e6:.0f} MB | {grown / stock:.2f} | {one['after']['resident'] / 1e6:.0f} MB | {one['load_seconds']:.2f} |"
                f" {' | '.join(speeds)} | {differs} |"
            )
    limited = result["limited"]
    lines += [
        "", f"Under a limit of address space (`ulimit -v`) of {LIMIT:.0%} of the plain file beyond what the imports take, {limited['limit'] / 1e6:.0f} MB:",
        f"the plain {limited['model']} {'runs' if limited['plain'] else 'runs out of memory'}, the resident one, fused, "
        f"{'runs' if limited['fused'] else 'runs out of memory'}.",
    ]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--run", nargs=5, metavar=("WAY", "FOLDER", "SAVED", "THREADS", "LIMIT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        way, folder, saved, threads, limit = arguments.run
        print(json.dumps(run(way, Path(folder), Path(saved), json.loads(threads), int(limit))))
        return
    sys.path.insert(0, str(HERE.parent / "scripts"))
    import torch
    import transformers
    from suite import machine

    from weightpack.kernels import isa

    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    n_threads = sorted({1, cores})
    with tempfile.TemporaryDirectory(prefix="weightpack-resident-") as name:
        rows = [measured(model, folder, n_threads, Path(name)) for model, folder in models(Path(name))]
        last = rows[-1]
        limit = int(LIMIT * last["files"]["plain"])
        plain = last["packed_folder"].removesuffix("-wp")
        limited = {
            "model": last["model"], "limit": limit, "plain": process("plain", Path(plain), Path(name) / "limited.npy", [1], limit),
            "fused": process("fused", Path(last["packed_folder"]), Path(name) / "limited.npy", [1], limit),
        }  # fmt: skip
        print(limited, flush=True)
    result = {
        "machine": machine(cores), "isa": isa(), "torch": torch.__version__, "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "transformers": transformers.__version__, "load": load, "rows": [{key: row[key] for key in row if key != "packed_folder"} for row in rows],
        "limited": limited,
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "resident.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "resident.md").write_text(page(result))


if __name__ == "__main__":
    main()
