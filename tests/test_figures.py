# SPDX-License-Identifier: Apache-2.0
"""Figures in prose are those of the committed results."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _report():
    spec = importlib.util.spec_from_file_location("benchmark_report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_has_the_committed_figures():
    report = _report()
    text = (ROOT / "README.md").read_text()
    assert report.in_readme(text, report.readme_table(report.load())) == text, "run benchmarks/report.py"


def test_results_page_is_that_of_the_committed_figures():
    report = _report()
    assert (ROOT / "benchmarks" / "results" / "suite.md").read_text() == report.page(report.load()), "run benchmarks/report.py"


def test_profiles_say_the_committed_figures():
    """Of those that the suite measures, `doctor` and `--help` say what they cost and buy; of the others, no figure at all."""
    from weightpack.options import profile_descriptions

    report = _report()
    descriptions = profile_descriptions()
    assert next(iter(descriptions)) == "fast"
    for name, description in descriptions.items():
        if name in report.MEASURED_PROFILES:
            assert description.endswith(report.profile_figures(report.load(), name)), "run benchmarks/report.py"
            description = description.removesuffix(report.profile_figures(report.load(), name))
            path = report.CONFIGS / f"{name}.toml"
            assert report.in_description(path.read_text(), report.profile_figures(report.load(), name)) == path.read_text()
        assert not re.search(r"\d", description), description


def _deltas(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("deltas")


def test_deltas_page_is_that_of_the_committed_figures(monkeypatch):
    import json

    folder = ROOT / "benchmarks" / "results"
    assert (folder / "deltas.md").read_text() == _deltas(monkeypatch).page(json.loads((folder / "deltas.json").read_text())), "run scripts/bench-deltas --page"


def test_page_and_docs_of_the_zoo_are_those_of_the_committed_figures(monkeypatch):
    import json

    folder = ROOT / "benchmarks" / "results"
    result = json.loads((folder / "zoo.json").read_text())
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert (folder / "zoo.md").read_text() == importlib.import_module("zoo").page(result), "run scripts/bench-zoo, then benchmarks/zoo.py --page"
    text = (ROOT / "docs" / "STORE.md").read_text()
    for tool in ("weightpack", "tensor dedupe", "tensor dedupe + XOR + zstd"):
        assert f"{100 * (1 - result['tools'][tool]['stored_bytes'] / result['source_bytes']):.1f} %" in text, f"docs/STORE.md: {tool}"
    assert f"{len(result['models'])} models" in text
    assert max(result["rest"]["most_reads_of_a_tensor"].values()) == 3


def test_pages_have_the_committed_sizes_of_deltas():
    import json

    pairs = json.loads((ROOT / "benchmarks" / "results" / "deltas.json").read_text())["pairs"]

    def share(pair, *, ours):
        results = {tool: r["packed_bytes"] for tool, r in pairs[pair]["results"].items() if "packed_bytes" in r}
        sizes = [n for tool, n in results.items() if (tool == "weightpack" if ours else "weightpack" not in tool)]
        return 100 * min(sizes) / pairs[pair]["target_bytes"]

    named = [
        "fine-tune, fp32: base -> step 300", "fine-tune, bf16: base -> step 300", "checkpoints, bf16: step 250 -> step 300",
        "checkpoint with AdamW's state, fp32: step 250 -> step 300", "checkpoint with AdamW's state, fp32: step 300 alone",
    ]  # fmt: skip
    (sentence,) = [line for line in (ROOT / "docs" / "DELTAS.md").read_text().splitlines() if line.startswith("Of the target:")]
    figures = [f"{share(pair, ours=ours):.1f}" for ours in (True, False) for pair in named]
    assert re.findall(r"\d+\.\d", sentence) == figures
    readme = (ROOT / "README.md").read_text()
    assert f"| {share(named[1], ours=True):.0f} % in bf16, {share(named[0], ours=True):.0f} % in fp32 |" in readme


def test_delta_adapter_measures_what_is_installed_here(tmp_path, monkeypatch):
    """A pair of which all tensors but one have a partner, through weightpack and what needs no more than zstandard."""
    import json

    import numpy as np

    pairs = (_deltas(monkeypatch), importlib.import_module("delta_pairs"))[1]
    base = (np.random.default_rng(1).standard_normal(100_000) * 0.02).astype("<f4")
    target = (base * np.float32(1.0001)).astype("<f4")
    pairs.write_tensors(tmp_path / "base.safetensors", {"a": ("F32", [100_000], base.view(np.uint8))})
    extra = np.arange(7, dtype=np.uint8)
    pairs.write_tensors(tmp_path / "target.safetensors", {"a": ("F32", [100_000], target.view(np.uint8)), "b": ("U8", [7], extra)})
    for tool in ("weightpack", "weightpack dense", "bitx", "xor planes zstd-3", "zstd-3"):
        spec = {"tool": tool, "target": str(tmp_path / "target.safetensors"), "base": str(tmp_path / "base.safetensors"), "timed": True, "repeats": 1}
        spec |= {"slow_seconds": 10, "folder": str(tmp_path)}
        done = subprocess.run([sys.executable, ROOT / "benchmarks" / "delta_adapter.py", json.dumps(spec)], capture_output=True, text=True, check=True)
        result = json.loads(done.stdout.strip().splitlines()[-1])
        assert result["source_bytes"] == (tmp_path / "target.safetensors").stat().st_size, (tool, result)
        assert 0.1 < result["packed_bytes"] / result["source_bytes"] < 0.95, (tool, result)


def test_adapter_measures_what_is_installed_here(tmp_path):
    """The measuring process itself, on weightpack and zstd; the others need environments of their own."""
    import json

    import numpy as np

    values = (np.random.default_rng(1).standard_normal(200_000) * 0.02).astype("<f4")
    (tmp_path / "x.bin").write_bytes(values.tobytes())
    for tool in ("weightpack scalar", "zstd-3"):
        spec = {"tool": tool, "threads": 1, "dtype": "F32", "elements": str(tmp_path / "x.bin"), "file": "", "repeats": 1, "seconds": 0}
        done = subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "adapter.py", json.dumps(spec)], capture_output=True, text=True, check=True, env={**os.environ}
        )
        result = json.loads(done.stdout.strip().splitlines()[-1])
        assert result["source_bytes"] == values.nbytes, result
        assert 0.5 < result["packed_bytes"] / values.nbytes < 0.95


def test_scales_of_distributed_checkpoints_are_those_of_the_committed_results():
    import json

    result = json.loads((ROOT / "benchmarks" / "results" / "dcp_scales.json").read_text())
    sizes = result["checkpoint_bytes"]
    share = {profile: {how: f"{100 * n / result['source_bytes']:.2f}" for how, n in ways.items()} for profile, ways in sizes.items()}
    fast, dense = share["fast"], share["dense"]
    page = (ROOT / "docs" / "DCP.md").read_text()
    assert f"{fast['without']} % into {fast['scales']} %, dense {dense['without']} % into {dense['scales']} %" in page
