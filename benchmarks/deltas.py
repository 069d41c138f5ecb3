#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and fine-tunes given their base: weightpack and its rivals on the same pairs. Run by scripts/bench-deltas.

    scripts/bench-deltas                              # everything: about an hour, results in benchmarks/results/deltas.json and deltas.md
    scripts/bench-deltas --sizes                      # sizes and round trips only; times that are there stay
    scripts/bench-deltas --only "bf16: base -> step"  # pairs whose name has this; the others' results stay
    scripts/bench-deltas --tool weightpack            # tools whose name begins with this; the others' results stay
    scripts/bench-deltas --page                       # writes deltas.md anew from deltas.json

The pairs are in delta_pairs.py, how each tool is called in delta_adapter.py, versions in tools.toml, the entropies in delta_ideals.py. The fine-tunes are
trained here if they are not in --corpus: real training, so that their bytes, and the sizes, differ a little between CPUs; deltas.json has their SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
from delta_ideals import MODELS, ideals
from delta_pairs import PAIRS, ROOT, Pair, models_folder, n_elements, place

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BUSY = 3.3  # a load average over which a time says more about the machine than about the tool
SLOW, SLOW_BYTES = ("bigsmall", "zstd --patch-from -19"), 100_000_000
ABOUT = """
- A *pair* is a target and its base; the size is of what is needed beside the base. GB = 10^9 bytes of target. *Bits* are bits of packed file an element of
  the target. Every tool runs in a process and an environment of its own, pinned to one core, from files to a file on tmpfs, the base read from its own file
  each time (lmz: from its archive). What it restores is compared with the target, byte for byte, before anything is timed; a difference fails the run. Times
  are medians of 3; of a packing that takes over {slow} s, one run. memcpy of the target and `shutil.copyfile` are measured in the same process.
- weightpack: `pack(target, packed, base=base, verify=False)`: without its own comparison, for that is done here; with the SHA-256 of the source.
- bitx: ZipLLM's BitX as its published code has it (JerryW35/ZipLLM, `bitx_bytes.rs`), rewritten in numpy, so that its sizes are BitX's and its times are not:
  XOR of the tensors of one name, dtype and shape, as 16-bit words whatever the dtype; exponent bits and the rest of each tensor through zstd -3; tensors
  without a pair through zstd -3.
- xor planes zstd: the same idea, stronger: XOR, the exponent and every byte of the mantissa as a plane of all tensors of a dtype, each through zstd -3 or -19;
  tensors without a pair likewise. A base of another float dtype is cast to the target's first.
- zipnn: its delta mode (`delta_compressed_type="byte"`: it takes the XOR of two buffers and codes it as ever), on the tensors of a dtype, joined; a base of
  another dtype cast first. ZipNN on the XOR is the same thing.
- lmz: its delta coding, of tensors of one name, dtype and size: `append` to an archive that has the base; the size is what the archive grows by, the times
  those of `append` and `extract`.
- bigsmall: its `compress_delta`, XOR or the tensor alone, whichever is smaller; it restores the tensors, not the file's bytes (its header differs).
- zstd --patch-from: the base as a prefix in zstd's window, long distances on.
- Without a base, each tool packs the target alone, as it does by default.
- Entropies are of order 0, in bits an element, over the floats that have a pair, tables free: what a model can give, not what a file costs.
"""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(python: Path, spec: dict) -> dict:
    """Run the adapter; a tool that crashes is a result too, a wrong round trip is the end."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            [python, HERE / "delta_adapter.py", json.dumps(spec)], capture_output=True, text=True, timeout=1800, check=False, env={**os.environ, **threads}
        )
        result = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"not_applicable": "took over half an hour"}
    except (ValueError, IndexError):
        return {"not_applicable": f"crashed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"}
    if result.get("wrong"):
        sys.exit(f"{spec['tool']}, {spec['target']}: {result['not_applicable']}")
    return result


def measure_pair(pair: Pair, old: dict, tools: dict[str, Path], models: Path, folder: Path, arguments: argparse.Namespace) -> dict:
    """Measure one pair; what is not measured now stays as it was, if the files are the same."""
    target, base = place(pair.target, models, folder / "target.safetensors"), place(pair.base, models, folder / "base.safetensors")
    files = {"target_sha256": sha256(target), "base_sha256": sha256(base) if base else None}
    if any(old.get(key) != value for key, value in files.items()):
        old = {}
    made_by = pair.target if isinstance(pair.target, str) else pair.target.__name__.strip("_")
    known = old.get("ideals", {})
    result = {
        **files, "target": made_by, "base": pair.base, "target_bytes": target.stat().st_size, "elements": n_elements(target),
        "ideals": known if known and (base is None or MODELS.keys() <= known.keys()) else ideals(target, base), "results": dict(old.get("results", {})),
    }  # fmt: skip
    cpu = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    for tool, python in tools.items():
        alone = tool.endswith(", no base")
        if alone and base is None:
            continue
        spec = {
            "tool": tool.removesuffix(", no base"), "target": str(target), "base": str(base) if base and not alone else None,
            "timed": pair.timed and not arguments.sizes, "repeats": 3, "slow_seconds": arguments.slow, "folder": str(folder), "cpu": cpu,
        }  # fmt: skip
        before = result["results"].get(tool, {})
        if tool in SLOW and (target.stat().st_size > SLOW_BYTES or not pair.timed):
            measured = {"not_applicable": f"slow: left out of files over {SLOW_BYTES // 1_000_000} MB and of pairs of which only sizes are measured"}
        else:
            measured = run(python, spec)
        if "packed_bytes" in measured and not spec["timed"] and before.get("packed_bytes") == measured["packed_bytes"]:
            measured = before
        result["results"][tool] = measured
        told = measured.get("not_applicable") or f"{100 * measured['packed_bytes'] / measured['source_bytes']:.3f} %"
        print(f"{pair.name}, {tool}: {told}", flush=True)
    for path in (target, base):
        if path:
            path.unlink()
    return result


def sizes(pair: dict) -> dict[str, int]:
    return {tool: r["packed_bytes"] for tool, r in pair["results"].items() if "packed_bytes" in r}


def ours(tool: str) -> bool:
    return tool.startswith("weightpack")


def summary(pairs: dict[str, dict], order: list[str]) -> list[str]:
    """Every tool's size of every pair, the smallest in bold."""
    rows = [f"| target given base | {' | '.join(order)} |", "|---" * (len(order) + 1) + "|"]
    for name, pair in pairs.items():
        found = sizes(pair)
        smallest = min(found.values(), default=0)
        cells = []
        for tool in order:
            cell = f"{100 * found[tool] / pair['target_bytes']:.2f} %" if tool in found else "-"
            cells.append(f"**{cell}**" if found.get(tool) == smallest else cell)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def loads(pairs: dict[str, dict]) -> str:
    """Say how busy the machine was while times were taken."""
    found = [r["load"] for pair in pairs.values() for r in pair["results"].values() if "load" in r]
    calm = [load for load in found if load <= BUSY]
    if not calm:
        return "No times yet."
    left_out = f" {len(found) - len(calm)} times taken at a load over {BUSY} are not shown (deltas.json has them)." if len(calm) < len(found) else ""
    return f"The load average after a measurement was {min(calm):.1f} to {max(calm):.1f}: 1 is the measurement itself, the rest others' work.{left_out}"


def larger_rows(pairs: dict[str, dict]) -> list[str]:
    """Return the pairs of which a rival's file is smaller than weightpack's smallest."""
    rows = []
    for name, pair in pairs.items():
        found = sizes(pair)
        mine = min((n for tool, n in found.items() if ours(tool)), default=None)
        rival = min((tool for tool in found if not ours(tool)), key=lambda tool: found[tool], default=None)
        if mine is not None and rival is not None and found[rival] < mine:
            rows.append(f"| {name} | {mine:,} | {rival} | {found[rival]:,} |")
    return rows


def tool_row(tool: str, r: dict, n: int) -> str:
    cells = [f"{r['packed_bytes']:,}", f"{100 * r['packed_bytes'] / r['source_bytes']:.2f} %", f"{8 * r['packed_bytes'] / n:.3f}"]
    if r.get("load", BUSY + 1) <= BUSY:
        gb = r["source_bytes"] / 1e9
        for seconds in (r["pack_seconds"], r["unpack_seconds"]):
            cells += [f"{seconds:.3f}", f"{gb / seconds:.3f}"]
        cells += [f"{gb / r['memcpy_seconds']:.1f}", f"{gb / r['copy_seconds']:.1f}"]
    else:
        cells += ["-"] * 6
    return f"| {tool} | {' | '.join(cells)} |"


def page(result: dict) -> str:
    """Return deltas.md."""
    m, pairs = result["machine"], result["pairs"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    lines = [
        "# Given a base: fine-tunes, checkpoints, AdamW's state", "",
        f"Written by `{result['command']}` at commit {m['commit']}. {m['cpu']} (a virtual machine), Python {m['python']}, one core. {versions}.", "",
        "all-MiniLM-L6-v2, 22.7 million weights, fine-tuned for real: AdamW, learning rate 2e-5, batch 8, 300 steps in fp32 and 150 in pure bf16.", "",
        *ABOUT.format(slow=result["slow_seconds"]).strip().splitlines(), f"- {loads(pairs)}", "",
        "## Sizes, of the target", "", *summary(pairs, result["tools"]), "",
    ]  # fmt: skip
    larger = larger_rows(pairs)
    if larger:
        lines += ["## Where another tool's is smaller than weightpack's", ""]
        lines += ["| target given base | weightpack, bytes | tool | its bytes |", "|---|---|---|---|", *larger, ""]
    else:
        lines += ["No other tool's file is smaller than weightpack's smaller one on any pair.", ""]
    lines += ["## Entropies", "", *[f"- *{model}*: {text}." for model, text in MODELS.items()], "", f"| target given base | elements | {' | '.join(MODELS)} |"]
    lines += ["|---" * (len(MODELS) + 2) + "|"]
    for name, pair in pairs.items():
        cells = [f"{pair['ideals'][model]:.3f}" if model in pair["ideals"] else "-" for model in MODELS]
        lines.append(f"| {name} | {pair['ideals'].get('elements', 0):,} | {' | '.join(cells)} |")
    for name, pair in pairs.items():
        rows = {tool: pair["results"][tool] for tool in result["tools"] if tool in pair["results"]}
        lines += ["", f"## {name[0].upper()}{name[1:]}", "", f"{pair['target_bytes']:,} bytes, {pair['elements']:,} elements; `{pair['target']}`"]
        lines[-1] += f" given `{pair['base']}`." if pair["base"] else "."
        lines += ["", "| tool | bytes | of target | bits | pack, s | GB/s | unpack, s | GB/s | memcpy GB/s | copy GB/s |", "|---" * 10 + "|"]
        lines += [tool_row(tool, r, pair["elements"]) for tool, r in rows.items() if "packed_bytes" in r]
        missing = {tool: r["not_applicable"].splitlines()[0] for tool, r in rows.items() if "not_applicable" in r}
        lines += ["", f"Not measured: {'; '.join(f'{tool} ({why})' for tool, why in missing.items())}."] if missing else []
    return "\n".join([*lines, ""])


def write(result: dict, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "deltas.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "deltas.md").write_text(page(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--corpus", type=Path, default=ROOT / "demo" / "finetunes", help="where the fine-tunes are, or are trained to")
    parser.add_argument("--sizes", action="store_true", help="no times")
    parser.add_argument("--only", action="append", help="pairs whose name has this (repeatable)")
    parser.add_argument("--tool", action="append", help="tools whose name begins with this (repeatable)")
    parser.add_argument("--slow", type=float, default=10, help="seconds over which a packing is timed once; default %(default)s")
    parser.add_argument("--page", action="store_true", help="only the page, from deltas.json")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    before = json.loads((arguments.out / "deltas.json").read_text()) if (arguments.out / "deltas.json").exists() else {"pairs": {}}
    if arguments.page:
        write(before, arguments.out)
        return
    import suite

    config = tomllib.loads((HERE / "tools.toml").read_text())
    order = list(config["deltas"])
    chosen = {tool: env for tool, env in config["deltas"].items() if not arguments.tool or any(tool.startswith(each) for each in arguments.tool)}
    environments = {env: suite.environment(env, config["environments"][env]) for env in dict.fromkeys(chosen.values()) if env}
    tools = {tool: environments[env] if env else Path(sys.executable) for tool, env in chosen.items()}
    models = models_folder(arguments.corpus, lambda: suite.environment("corpus", config["environments"]["corpus"]))
    pins = [pin.split(";")[0].split("==") for env in config["deltas"].values() if env for pin in config["environments"][env] if "==" in pin]
    import weightpack

    versions = {"weightpack": weightpack.__version__, **{name: version for name, version in pins if name != "torch"}, "numpy": np.__version__}
    pairs = {pair.name: before["pairs"][pair.name] for pair in PAIRS if pair.name in before["pairs"]}
    with tempfile.TemporaryDirectory(prefix="weightpack-deltas-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for pair in PAIRS:
            if arguments.only and not any(each in pair.name for each in arguments.only):
                continue
            pairs[pair.name] = measure_pair(pair, pairs.get(pair.name, {}), tools, models, Path(folder), arguments)
            machine = {**suite.machine(1), "versions": versions}
            ordered = {each.name: pairs[each.name] for each in PAIRS if each.name in pairs}
            write({"command": "scripts/bench-deltas", "machine": machine, "tools": order, "slow_seconds": arguments.slow, "pairs": ordered}, arguments.out)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
