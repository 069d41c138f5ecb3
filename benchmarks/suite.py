#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""weightpack and its rivals on real weights: size, speed, memory. Run by scripts/bench.

    scripts/bench                                # everything: about an hour, results in benchmarks/results/
    scripts/bench --quick --out /tmp/results     # one small corpus, weightpack and zstd only
    scripts/bench --only "MiniLM bf16"           # some corpora; the others' results stay

Tools and their versions are in tools.toml, how each is called in adapter.py, the weights in corpora.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import asdict
from pathlib import Path

import report
from corpora import CORPORA, NAMES, OTHER_FILES, ROOT, build

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = ROOT / ".venv-rivals"


def environment(name: str, requirements: list[str]) -> Path:
    """Make a tool's environment if it is not there; return its Python."""
    folder = ENVIRONMENTS / name
    done = folder / "installed.txt"
    if not done.exists() or done.read_text() != json.dumps(requirements):
        print(f"setting up {name} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *requirements], check=True)
        done.write_text(json.dumps(requirements))
    return folder / "bin" / "python"


def run(python: Path, spec: dict, cores: int) -> dict:
    """Run the adapter; a tool that crashes is a result too."""
    threads = {name: str(cores) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    try:
        done = subprocess.run(
            [python, HERE / "adapter.py", json.dumps(spec)], capture_output=True, text=True, timeout=900, check=False, env={**os.environ, **threads}
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"not_applicable": "took over 15 minutes"}
    except (ValueError, IndexError):
        return {"not_applicable": f"crashed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"}


def machine(cores: int) -> dict[str, object]:
    """Describe where this runs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": cpu, "python": platform.python_version(), "system": platform.platform(), "commit": commit, "cores": cores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small corpus, weightpack and zstd, few repeats: shows that the suite runs")
    parser.add_argument("--only", action="append", choices=NAMES, help="only this corpus (repeatable); merged into what is in --out")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    arguments = parser.parse_args()
    config = tomllib.loads((HERE / "tools.toml").read_text())
    tools = {tool: env for tool, env in config["tools"].items() if not arguments.quick or tool.startswith(("weightpack", "zstd"))}
    pythons = {env: environment(env, config["environments"][env]) for env in dict.fromkeys(tools.values()) if env}
    pythons[""] = Path(sys.executable)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = ["WordLlama fp16"] if arguments.quick else arguments.only or NAMES
    repeats, seconds = (1, 0.1) if arguments.quick else (5, 2.0)

    old = report.load(arguments.out / "suite.json")["corpora"] if arguments.only and (arguments.out / "suite.json").exists() else {}
    measured = {}
    with tempfile.TemporaryDirectory(prefix="weightpack-suite-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for name in names:
            corpus = build(name, Path(folder))
            results: dict[str, dict[str, dict]] = {"1": {}, "all": {}}
            for label, threads in (("1", 1), ("all", cores)):
                for tool, env in tools.items():
                    spec = {"tool": tool, "threads": threads, "repeats": repeats, "seconds": seconds, **asdict(corpus)}
                    if label == "1" or (threads > 1 and "road" in results["1"][tool]):
                        results[label][tool] = run(pythons[env], spec, threads)
                        print(f"{name}, {label} thread(s), {tool}: {results[label][tool].get('not_applicable', 'ok')}", flush=True)
            measured[name] = {"model": (CORPORA | OTHER_FILES)[name][0], "dtype": corpus.dtype, "n_bytes": corpus.n_bytes, "results": results}
            for path in (corpus.file, corpus.elements):
                Path(path).unlink()
            merged = {each: measured.get(each) or old.get(each) for each in NAMES if each in measured or each in old}
            result = {"command": "scripts/bench", "machine": machine(cores), "corpora": merged}
            report.write(result, arguments.out, readme=arguments.out == report.RESULTS and len(measured) == len(names))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
