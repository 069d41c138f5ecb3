#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A zoo of models in a store: bytes, seconds and memory, beside rivals' methods on the same files. Run by scripts/bench-zoo.

The rivals are written here, as small as they can be: `file dedupe`, equal files once; `tensor dedupe`, equal tensors once; and ZipLLM's method, equal tensors
once, the XOR with the tensor of the same name in the model that this one was made of where shape and dtype are the same, and zstd. They are told which model
that is; weightpack is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from delta_adapter import read_tensors
from delta_pairs import FULL, fewer_rows, models_folder, more_rows, one_tensor, place, renamed, write_tensors

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_ZSTD_LEVEL = 3
_STEPS = [f"{FULL}/step-{step}.bf16.safetensors" for step in (200, 250, 300)]


@dataclass(frozen=True, slots=True)
class Member:
    """A model: a file of the fine-tunes, a model of scripts/fetch_models.py, or what a function makes of the fine-tunes. `base`: what it was made of."""

    name: str
    source: str | Callable[[Path], dict]
    base: str | None = None


def _as_fp16(models: Path) -> dict:
    return {
        name: ("F16", shape, data.view("<f4").astype("<f2").view(np.uint8))
        for name, (_, shape, data) in read_tensors(models / FULL / "base.safetensors").items()
    }


ZOO = [
    Member("minilm", "minilm"),
    Member("minilm-copy", f"{FULL}/base.safetensors", "minilm"),
    Member("minilm-bf16", f"{FULL}/base.bf16.safetensors", "minilm"),
    Member("minilm-fp16", _as_fp16, "minilm"),
    Member("tuned-200-bf16", _STEPS[0], "minilm-bf16"),
    Member("tuned-250-bf16", _STEPS[1], "tuned-200-bf16"),
    Member("tuned-300-bf16", _STEPS[2], "tuned-250-bf16"),
    Member("tuned-300-fp32", f"{FULL}/finetuned.safetensors", "minilm"),
    Member("step-250-with-adamw", f"{FULL}/step-250.full.safetensors", "tuned-300-fp32"),
    Member("step-300-with-adamw", f"{FULL}/step-300.full.safetensors", "step-250-with-adamw"),
    Member("more-words", more_rows, "tuned-300-bf16"),
    Member("fewer-words", fewer_rows, "tuned-300-bf16"),
    Member("one-tensor-tuned", one_tensor, "minilm-bf16"),
    Member("renamed", renamed, "tuned-300-bf16"),
    Member("mgm", "mgm"),
    Member("crepe", "crepe"),
    Member("whisper", "whisper"),
    Member("wordllama", "wordllama"),
]


def build(folder: Path, models: Path) -> None:
    """Write every member as a folder of its own."""
    import fetch_models

    for member in ZOO:
        target = folder / member.name
        target.mkdir()
        if isinstance(member.source, str) and "/" not in member.source:
            for path in fetch_models.fetch(member.source).iterdir():
                if path.is_file():
                    (target / path.name).write_bytes(path.read_bytes())
        elif isinstance(member.source, str):
            place(member.source, models, target / "model.safetensors")
        else:
            write_tensors(target / "model.safetensors", member.source(models))


def zoo_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- rivals: each adds a model's folder to a store, and gives a file back


class Rival:
    """Keeps blobs by SHA-256."""

    def __init__(self, store: Path) -> None:
        self.store = store
        store.mkdir(exist_ok=True)

    def put(self, key: str, make: Callable[[], bytes]) -> None:
        path = self.store / key
        if not path.exists():
            path.write_bytes(make())

    def add(self, folder: Path, base: Path | None) -> None:
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            self.put(hashlib.sha256(data).hexdigest(), lambda data=data: data)


class TensorDedupe(Rival):
    """Equal tensors once, as they are."""

    def coded(self, name: str, tensor: tuple, base: dict) -> bytes:
        return tensor[2].tobytes()

    def add(self, folder: Path, base: Path | None) -> None:
        known = read_tensors(base / "model.safetensors") if base else {}
        for path in sorted(folder.iterdir()):
            if path.suffix != ".safetensors":
                super().put(hashlib.sha256(path.read_bytes()).hexdigest(), path.read_bytes)
                continue
            for name, tensor in read_tensors(path).items():
                key = hashlib.sha256(f"{tensor[0]} {tensor[1]} ".encode() + tensor[2].tobytes()).hexdigest()
                self.put(key, lambda name=name, tensor=tensor: self.coded(name, tensor, known))


class ZipLLM(TensorDedupe):
    """Equal tensors once; XOR with the base's tensor of the same name, shape and dtype; zstd."""

    def coded(self, name: str, tensor: tuple, base: dict) -> bytes:
        dtype, shape, data = tensor
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        if name in base and base[name][:2] == (dtype, shape):
            return compressor.compress((data ^ base[name][2]).tobytes())
        return compressor.compress(data.tobytes())


class Weightpack:
    """The store of this package."""

    def __init__(self, store: Path, profile: str = "fast", threads: int = 1) -> None:
        import weightpack

        self.store = weightpack.Store(store, make=not store.exists(), threads=threads, options=weightpack.load_profile(profile))

    def add(self, folder: Path, base: Path | None) -> None:
        self.store.add(folder)


TOOLS = {
    "file dedupe": Rival, "tensor dedupe": TensorDedupe, "tensor dedupe + XOR + zstd": ZipLLM, "weightpack": Weightpack,
    "weightpack dense": lambda store: Weightpack(store, "dense"),
}  # fmt: skip


def child(tool: str, zoo: Path, store: Path) -> dict:
    """Add the zoo, one model after the other, on one thread."""
    opened, rows = TOOLS[tool](store), []
    for member in ZOO:
        before, begin, cpu = zoo_bytes(store), time.perf_counter(), time.process_time()
        opened.add(zoo / member.name, zoo / member.base if member.base else None)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
        rows.append({"model": member.name, "stored_bytes": zoo_bytes(store) - before, "seconds": seconds, "cpu_seconds": cpu_seconds})
    return {"models": rows, "stored_bytes": zoo_bytes(store), "peak_rss_bytes": peak_rss()}


def peak_rss() -> int:
    """Return the most memory that this process had; what getrusage says begins with its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# ---- what else a store has to do


class _Counting:
    """A storage that counts the ranges that are read."""

    def __init__(self, inner) -> None:
        self.inner, self.url, self.n_reads = inner, inner.url, 0

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def read(self, name: str, begin: int, end: int):
        self.n_reads += 1
        return self.inner.read(name, begin, end)


def same(one: Path, other: Path) -> bool:
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    return names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def rest(zoo: Path, place_: Path, again: Path) -> dict:
    """Restore every model, add every model again, and read one tensor of each."""
    import weightpack

    store = weightpack.Store(place_, threads=1)
    restored = []
    for member in ZOO:
        begin = time.perf_counter()
        target = store.get(member.name, again / member.name)
        restored.append({"model": member.name, "seconds": time.perf_counter() - begin})
        if not same(zoo / member.name, target):
            raise SystemExit(f"{member.name} does not come back")
    before = {path: path.stat().st_mtime_ns for path in place_.rglob("*") if path.is_file()}
    begin = time.perf_counter()
    for member in ZOO:
        store.add(zoo / member.name)
    second = time.perf_counter() - begin
    if {path: path.stat().st_mtime_ns for path in place_.rglob("*") if path.is_file()} != before:
        raise SystemExit("a second add wrote something")
    reads = {}
    counting = store._storage = _Counting(store._storage)
    for member in ZOO:
        with store.open(member.name, framework="pt") as opened:
            n_reads = []
            for name in opened.keys():
                counting.n_reads = 0
                opened.get_tensor(name)
                n_reads.append(counting.n_reads)
        reads[member.name] = max(n_reads)
    begin = time.perf_counter()
    verified = store.verify()
    tree = [{"name": branch.name, "parent": branch.parent, "depth": branch.depth} for branch in store.log()]
    return {
        "restored": restored, "second_add_seconds": second, "most_reads_of_a_tensor": reads, "verify_seconds": time.perf_counter() - begin,
        "tensors": verified.tensors, "objects": verified.objects, "tree": tree,
    }  # fmt: skip


def overhead(store: Path, cache: Path) -> dict:
    """Return what items take beside their bytes."""
    headers = [int.from_bytes(path.open("rb").read(8), "little") for path in (store / "objects").rglob("*.safetensors")]
    manifests = [path.read_bytes() for path in (store / "models").rglob("*.json")]
    n_items = sum(len(json.loads(path.open("rb").read(8 + n)[8:])) - 1 for path, n in zip((store / "objects").rglob("*.safetensors"), headers, strict=True))
    return {
        "items": n_items, "header_bytes": sum(headers), "manifest_bytes": sum(map(len, manifests)),
        "named_items": sum(len(json.loads(manifest)["items"]) for manifest in manifests), "database_bytes": zoo_bytes(cache),
    }  # fmt: skip


def page(result: dict) -> str:
    """Return zoo.md."""
    m, total, rest = result["machine"], result["source_bytes"], result["rest"]
    restored = sum(row["seconds"] for row in rest["restored"])
    lines = [
        "# A zoo of models in a store", "",
        f"Written by `scripts/bench-zoo` at commit {m['commit']}. {m['cpu']} (a virtual machine, {m['cores']} cores), one thread; the load average was",
        f"{result['load_before']:.1f} before and {result['load_after']:.1f} after. {len(result['models'])} models, {total / 1e6:,.0f} MB: MiniLM, real",
        "fine-tunes of it with and without AdamW's state, other dtypes, near copies, and models that have nothing to do with it. Rivals are told what each",
        "was made of; weightpack finds it.", "",
        "| tool | stored, MB | off | add, s | of the CPU, s | MB/s | peak RSS, MB |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for tool, run in result["tools"].items():
        seconds, stored = sum(row["seconds"] for row in run["models"]), run["stored_bytes"]
        cpu_seconds = sum(row["cpu_seconds"] for row in run["models"])
        cells = [f"{stored / 1e6:,.1f}", f"{100 * (1 - stored / total):.1f} %", f"{seconds:.1f}", f"{cpu_seconds:.1f}", f"{total / seconds / 1e6:.0f}"]
        lines.append(f"| {tool} | {' | '.join(cells)} | {run['peak_rss_bytes'] / 1e6:.0f} |")
    lines += ["", f"| model | MB | {' | '.join(result['tools'])} | in weightpack's tree a child of |", "|---" * (len(result["tools"]) + 3) + "|"]
    parents = {row["name"]: row["parent"] or "-" for row in rest["tree"]}
    for i, model in enumerate(result["models"]):
        cells = [f"{run['models'][i]['stored_bytes'] / 1e6:.2f}" for run in result["tools"].values()]
        lines.append(f"| {model['name']} | {model['bytes'] / 1e6:.1f} | {' | '.join(cells)} | {parents[model['name']]} |")
    over = rest["overhead"]
    lines += [
        "", f"Every model came back byte for byte: {restored:.1f} s, {total / restored / 1e6:.0f} MB/s. Adding all of them again wrote nothing, and took",
        f"{rest['second_add_seconds']:.1f} s. `verify` decodes all {rest['tensors']:,} stored tensors in {rest['verify_seconds']:.1f} s.",
        f"Any one tensor of any model takes {max(rest['most_reads_of_a_tensor'].values())} range reads at most, after its manifest.",
        f"An item takes {over['header_bytes'] / over['items']:.0f} bytes of its object's header, {over['manifest_bytes'] / over['named_items']:.0f} of each",
        f"manifest that names it, and {over['database_bytes'] / over['items']:.0f} of the database on the machine that adds.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--corpus", type=Path, default=ROOT / "demo" / "finetunes", help="where the fine-tunes are, or are trained to")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="only these (repeatable)")
    parser.add_argument("--page", action="store_true", help="only the page, from zoo.json")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        tool, zoo, store = arguments.child
        print(json.dumps(child(tool, Path(zoo), Path(store))))
        return
    if arguments.page:
        (arguments.out / "zoo.md").write_text(page(json.loads((arguments.out / "zoo.json").read_text())))
        return
    import tomllib

    import suite

    sys.path.insert(0, str(ROOT / "scripts"))
    config = tomllib.loads((ROOT / "benchmarks" / "tools.toml").read_text())
    models = models_folder(arguments.corpus, lambda: suite.environment("corpus", config["environments"]["corpus"]), (FULL,))
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="weightpack-zoo-") as name:
        folder = Path(name)
        zoo = folder / "zoo"
        zoo.mkdir()
        build(zoo, models)
        tools = {}
        for tool in arguments.tool or TOOLS:
            command = [sys.executable, __file__, "--child", tool, str(zoo), str(folder / tool)]
            os.environ["WEIGHTPACK_CACHE"] = str(folder / f"{tool}-cache")
            tools[tool] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(f"{tool}: {tools[tool]['stored_bytes'] / 1e6:.1f} MB", flush=True)
        os.environ["WEIGHTPACK_CACHE"] = str(folder / "weightpack-cache")
        result = {
            "machine": suite.machine(len(os.sched_getaffinity(0))), "load_before": load_before, "load_after": os.getloadavg()[0],
            "source_bytes": zoo_bytes(zoo), "models": [{"name": member.name, "bytes": zoo_bytes(zoo / member.name)} for member in ZOO], "tools": tools,
            "rest": {**rest(zoo, folder / "weightpack", folder / "again"), "overhead": overhead(folder / "weightpack", folder / "weightpack-cache")},
        }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "zoo.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "zoo.md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
