# SPDX-License-Identifier: Apache-2.0
"""Results -> Markdown and plots. Reads suite.json only, so that what is shown can't differ from what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
README = Path(__file__).resolve().parents[1] / "README.md"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MEASURED_PROFILES = ("fast", "dense")
BEGIN, END = "<!-- figures: written by benchmarks/report.py from benchmarks/results/suite.json -->", "<!-- end of figures -->"

FAIRNESS = """
## What is compared

- Every tool runs in a process and an environment of its own, on the same bytes, pinned to one core ("1 thread") or on all cores. Its round trip is
  compared with the original before it is timed; one that fails is not timed. Times are medians of at least 5 after a warm-up; GB = 10^9 bytes of
  original. memcpy (or the copy of the file) is measured in the same process, and "/ copy" is the speed as a share of that one: on this machine it swings
  by up to a factor of two between processes.
- *In memory*: from a buffer to a buffer. weightpack and memcpy write into buffers that exist; the others return new ones, as their interfaces have it,
  and pay for the pages. weightpack includes a CRC-32C of every chunk both ways; the others have the checksums of their defaults, if any.
- *Files*: a safetensors file on tmpfs to a file on tmpfs, beside `shutil.copyfile`. weightpack computes the SHA-256 of the source, and "verified" also
  decodes the result and compares it with the source before it gets its name. BigSmall restores the tensors, not the file's bytes (its header differs).
- ZipNN changes its input, so it gets a copy, made outside the timed part. Tools that are told a dtype are told the right one; bf16 goes to pcodec as
  16-bit integers, because it has no bf16; pcodec refuses 8-bit types by default. OpenZL runs its float nodes (deconstruct), the exponents to its Huffman
  or FSE, the rest to its generic graph; z4ai its default effort; blosc2 bitshuffle and zstd at level 5.
- Peak RSS is what the process grew by while it encoded once and decoded once, results included.
- Not run: DFloat11 (decodes on CUDA only). "dense" is the profile of that name; the other rows of weightpack are the default, "fast".
"""


RIVALS = ("zipnn", "openzl huffman", "openzl fse", "z4ai", "lmz")
"""That dense is to beat in size."""

WHY_LARGER = {
    "MiniLM int8 per row": "codebooks of Huffman or of 8-bit frequencies lie 0.1 points above the entropy of bytes (floors.md); lmz reaches it",
    "MGM (GPT-2 type) bf16": "half of the file are integer masks, which zstd codes",
    "Whisper tiny.en fp16": "z4ai is told the dtype; the file's is guessed by weightpack piece by piece",
    "MiniLM int4 in int32 (GPTQ layout)": "two nibbles are one symbol, whose codebook lies 0.3 points above the entropy of nibbles (floors.md); lmz goes below",
    "Resemblyzer .pt with Adam's state": "z4ai is told that all is fp32; weightpack guesses, and takes no table for Adam's second moment",
    "SmolLM2-135M GGUF Q4_1": "nibbles, as in the int4 file",
    "Kokoro-82M ONNX int8": "bytes, as in the int8 file",
}


def larger_rows(result: dict) -> list[str]:
    """Return the corpora of which the smallest rival's file is smaller than dense's, as rows of a table."""

    def speed(r: dict) -> str:
        return f"{r['source_bytes'] / 1e9 / r['decode_seconds']:.2f}"

    rows = []
    for name, corpus in result["corpora"].items():
        results = {tool: r for tool, r in corpus["results"]["1"].items() if "road" in r}
        sizes = {tool: r["packed_bytes"] / r["source_bytes"] for tool, r in results.items()}
        ours = [tool for tool in sizes if tool.startswith("weightpack") and "dense" in tool]
        dense = min(ours, key=lambda tool: (sizes[tool], results[tool]["decode_seconds"]))
        rival = min((tool for tool in RIVALS if tool in sizes), key=lambda tool: sizes[tool])
        if sizes[rival] < sizes[dense]:
            columns = [name, f"{100 * sizes[dense]:.2f} %", speed(results[dense]), rival, f"{100 * sizes[rival]:.2f} %", speed(results[rival])]
            rows.append(f"| {' | '.join(columns)} | {WHY_LARGER.get(name, 'not looked into')} |")
    return rows


def load(path: Path = RESULTS / "suite.json") -> dict:
    return json.loads(path.read_text())


def _row(tool: str, r: dict) -> str:
    gb = r["source_bytes"] / 1e9
    return (
        f"| {tool} | {100 * r['packed_bytes'] / r['source_bytes']:.2f} % | {gb / r['encode_seconds']:.2f} | {r['copy_seconds'] / r['encode_seconds']:.2f} "
        f"| {gb / r['decode_seconds']:.2f} | {r['copy_seconds'] / r['decode_seconds']:.2f} | {r['peak_rss_bytes'] / 1e6:.0f} MB |"
    )


def page(result: dict) -> str:
    """Return suite.md."""
    m = result["machine"]
    lines = [
        "# weightpack and its rivals", "",
        f"Written by `{result['command']}` at commit {m['commit']}. {m['cpu']} (a virtual machine, {m['cores']} cores), Python {m['python']}.",
        *FAIRNESS.splitlines(), "",
        "![size against decode speed](suite-minilm.png)", "",
        "## Where another tool's file is smaller than dense's", "",
        "| weights | dense | decode GB/s | smallest rival | its size | decode GB/s | why |", "|---|---|---|---|---|---|---|", *larger_rows(result), "",
    ]  # fmt: skip
    for name, corpus in result["corpora"].items():
        lines += [f"## {name}", "", f"{corpus['n_bytes'] / 1e6:.1f} MB of {corpus['dtype']}", ""]
        for threads in ("1", "all"):
            results = corpus["results"][threads]
            for road, title in (("memory", "in memory"), ("files", "files")):
                rows = {tool: r for tool, r in results.items() if r.get("road") == road}
                if not rows:
                    continue
                label = "1 thread" if threads == "1" else f"all cores ({m['cores']})"
                lines += [f"**{title}, {label}**", "", "| tool | packed | encode GB/s | / copy | decode GB/s | / copy | peak RSS |"]
                lines += ["|---|---|---|---|---|---|---|", *(_row(tool, r) for tool, r in rows.items()), ""]
        missing = {tool: r["not_applicable"] for tool, r in corpus["results"]["1"].items() if "not_applicable" in r}
        lines += [f"Not measured: {'; '.join(f'{tool} ({why.splitlines()[0]})' for tool, why in missing.items())}.", ""] if missing else []
    return "\n".join(lines)


def readme_table(result: dict) -> str:
    """Return the README's table."""
    names = ["MiniLM bf16", "MGM (GPT-2 type) bf16", "MiniLM fp32", "MGM (GPT-2 type) fp32", "CREPE (CNN) fp32", "MiniLM fp16", "WordLlama fp16"]
    best = next(isa for isa in ("avx512", "avx2", "neon", "scalar") if "road" in result["corpora"][names[0]]["results"]["1"].get(f"weightpack {isa}", {}))
    tools = [f"weightpack {best}", f"weightpack dense {best}", "zipnn", "openzl fse", "zstd-3"]
    lines = ["| real weights, one core | " + " | ".join(f"{tool}" for tool in tools) + " | memcpy |", "|---|" + "---|" * (len(tools) + 1)]
    for name in names:
        if name not in result["corpora"]:
            continue
        rows = result["corpora"][name]["results"]["1"]
        cells = []
        for tool in tools:
            r = rows[tool]
            if "road" not in r:
                cells.append("-")
                continue
            cells.append(f"{100 * r['packed_bytes'] / r['source_bytes']:.2f} %, {r['source_bytes'] / 1e9 / r['decode_seconds']:.1f} GB/s")
        ours = rows[tools[0]]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {ours['source_bytes'] / 1e9 / ours['copy_seconds']:.1f} GB/s |")
    return "\n".join(lines)


def profile_figures(result: dict, profile: str) -> str:
    """Return what a profile costs and buys, for its description."""
    rows = result["corpora"]["MiniLM bf16"]["results"]["1"]
    named = "weightpack" if profile == "fast" else f"weightpack {profile}"
    isa = next(isa for isa in ("avx512", "avx2", "neon", "scalar") if "road" in rows.get(f"{named} {isa}", {}))
    r = rows[f"{named} {isa}"]
    encoded, decoded = (r["source_bytes"] / 1e9 / r[f"{way}_seconds"] for way in ("encode", "decode"))
    share = 100 * r["packed_bytes"] / r["source_bytes"]
    return f"MiniLM in bf16: {share:.2f} % of its size, in memory packed at {encoded:.1f} and unpacked at {decoded:.1f} GB/s a core ({isa})."


def in_description(text: str, figures: str) -> str:
    """Return a profile's file with these figures at the end of its description."""
    return re.sub(r'^(description = ".*?)( MiniLM in bf16: [^"]*)?"$', lambda m: f'{m[1]} {figures}"', text, flags=re.M)


def in_readme(text: str, table: str) -> str:
    """Return the README with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def plots(result: dict, folder: Path) -> None:
    """Draw one figure a model: packed size against decode speed, one panel a corpus, one thread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models: dict[str, list[str]] = {}
    for name, corpus in result["corpora"].items():
        models.setdefault(corpus["model"], []).append(name)
    for model, names in models.items():
        columns = min(3, len(names))
        figure, axes = plt.subplots(-(-len(names) // columns), columns, figsize=(5.2 * columns, 4.2 * -(-len(names) // columns)), squeeze=False)
        for axis in axes.flat[len(names) :]:
            axis.axis("off")
        for axis, name in zip(axes.flat, names, strict=False):
            _panel(axis, name, result["corpora"][name]["results"]["1"])
        figure.tight_layout()
        figure.savefig(folder / f"suite-{model}.png", dpi=110)
        plt.close(figure)


def _panel(axis, name: str, rows: dict) -> None:
    points = [(tool, r["source_bytes"] / 1e9 / r["decode_seconds"], 100 * r["packed_bytes"] / r["source_bytes"]) for tool, r in rows.items() if "road" in r]
    for tool, x, y in points:
        ours = tool.startswith("weightpack")
        axis.scatter(x, y, s=46 if ours else 26, color="tab:red" if ours else "tab:blue", marker="o" if rows[tool]["road"] == "memory" else "s", zorder=3)
    low, high = min(p[2] for p in points), max(p[2] for p in points)
    span = max(high - low, 0.5)
    bottom, top, gap = low - 0.12 * span, high + 0.12 * span, 0.06 * span
    axis.set_ylim(bottom, top)
    # Labels: as they come from the top, each at least a line below the one before it; then up again where they would leave the panel.
    points.sort(key=lambda p: -p[2])
    places: list[float] = []
    for _, _, y in points:
        places.append(min(y, places[-1] - gap) if places else y)
    for i in reversed(range(len(places))):
        places[i] = max(places[i], places[i + 1] + gap if i + 1 < len(places) else bottom + gap / 2)
    for (tool, x, y), label_y in zip(points, places, strict=True):
        text = tool.replace("weightpack-files", "wp files").replace("weightpack", "wp")
        axis.annotate(text, (x, y), (16, label_y), fontsize=7, va="center", annotation_clip=False, arrowprops={"arrowstyle": "-", "lw": 0.3, "color": "grey"})
    memcpy = max(r["source_bytes"] / 1e9 / r["copy_seconds"] for r in rows.values() if r.get("road") == "memory")
    axis.axvline(memcpy, color="grey", lw=0.8, ls="--")
    axis.set_xscale("log")
    axis.set_xlim(0.02, 110)
    axis.set_title(f"{name}: packed size against decode speed, one core", fontsize=8)
    axis.set_xlabel("decode GB/s (dashed: memcpy; squares: files on tmpfs)", fontsize=7)
    axis.set_ylabel("packed, % of original", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)


def write(result: dict, folder: Path = RESULTS, *, readme: bool = True) -> None:
    """Write suite.json, suite.md, the plots, the README's table and the figures in the profiles' descriptions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "suite.md").write_text(page(result))
    plots(result, folder)
    if readme:
        README.write_text(in_readme(README.read_text(), readme_table(result)))
        for profile in MEASURED_PROFILES:
            path = CONFIGS / f"{profile}.toml"
            path.write_text(in_description(path.read_text(), profile_figures(result, profile)))


if __name__ == "__main__":
    write(load())
