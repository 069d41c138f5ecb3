#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How small, and how fast in memory, on real weights: weightpack on each ISA, zstd and (if installed) ZipNN, beside memcpy.

    scripts/bench                 # sets up, pins one core, writes benchmarks/results/

Every round trip is compared before anything is timed; times are medians of `--repeats` after one warm-up, all in one process on one core. weightpack's
decode includes its checksums. Data are the elements of a model's float tensors, joined. ZipNN changes its input buffer, so each run of it gets a copy made
outside the timed part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import zstandard

import weightpack
from weightpack import kernels
from weightpack.dtypes import layout_of
from weightpack.frame import decode_record, encode_record
from weightpack.options import load_profile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import fetch_models  # noqa: E402


def median_seconds(work, repeats: int, prepare=lambda: None) -> float:
    """Median time of `work(prepare())`; the preparation is not timed."""
    work(prepare())
    times = []
    for _ in range(repeats):
        argument = prepare()
        start = time.perf_counter()
        work(argument)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def floats(name: str) -> np.ndarray:
    """Return a model's fp32 or fp16 elements, joined, (n,)."""
    tensors = weightpack.load_file(fetch_models.fetch(name) / "model.safetensors")
    parts = [tensor.reshape(-1) for tensor in tensors.values() if tensor.dtype.kind == "f"]
    return np.concatenate(parts)


def bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 bits (to nearest, ties to even)."""
    bits = values.view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def corpora() -> dict[str, tuple[str, np.ndarray]]:
    """Return name -> (dtype, bytes)."""
    import torch

    minilm = floats("minilm")
    tensor = torch.from_numpy(minilm)
    rows = fetch_models.fetch("minilm") / "model.safetensors"
    scaled = [t / np.abs(t).max(axis=-1, keepdims=True) * 127 for t in weightpack.load_file(rows).values() if t.dtype.kind == "f" and t.ndim == 2]
    return {
        "minilm bf16": ("BF16", bf16(minilm).view(np.uint8)),
        "minilm fp16": ("F16", minilm.astype("<f2").view(np.uint8)),
        "minilm fp32": ("F32", minilm.view(np.uint8)),
        "mgm (GPT-2 type) fp32": ("F32", floats("mgm").view(np.uint8)),
        "minilm fp8 e4m3 (x8)": ("F8_E4M3", (tensor * 8).to(torch.float8_e4m3fn).view(torch.uint8).numpy()),
        "minilm fp8 e5m2": ("F8_E5M2", tensor.to(torch.float8_e5m2).view(torch.uint8).numpy()),
        "minilm int8 (per row)": ("I8", np.concatenate([np.round(t).astype(np.int8).reshape(-1) for t in scaled]).view(np.uint8)),
        "minilm bf16 upcast to fp32": ("F32", tensor.bfloat16().float().numpy().view(np.uint8)),
        "wordllama fp16": ("F16", floats("wordllama").view(np.uint8)),
    }


def time_codec(data: np.ndarray, layout, options, isa: str, repeats: int) -> tuple[int, float, float]:
    """Return packed bytes and the seconds to encode and to decode, with the round trip compared."""
    out = np.zeros_like(data)
    with kernels.use_isa(isa):
        record = memoryview(encode_record(data, layout, options))
        decode_record(record, out)
        assert np.array_equal(out, data), isa
        encode = median_seconds(lambda _: encode_record(data, layout, options), max(5, repeats // 3))
        return len(record), encode, median_seconds(lambda _: decode_record(record, out), repeats)


def measure(dtype: str, data: np.ndarray, repeats: int) -> list[dict[str, object]]:
    """Return a row for each tool."""
    rows = []
    out = np.zeros_like(data)
    memcpy = median_seconds(lambda _: np.copyto(out, data), repeats)

    def row(tool: str, packed_bytes: int, encode: float, decode: float) -> None:
        gb = data.size / 1e9
        rows.append(
            {
                "tool": tool, "ratio": packed_bytes / data.size, "encode_gb_per_s": gb / encode, "decode_gb_per_s": gb / decode,
                "encode_vs_memcpy": memcpy / encode, "decode_vs_memcpy": memcpy / decode, "memcpy_gb_per_s": gb / memcpy,
            }
        )  # fmt: skip

    layout, options = layout_of(dtype), load_profile()
    for isa in kernels.available_isas():
        if isa == "numpy":
            continue
        row(f"weightpack {isa}", *time_codec(data, layout, options, isa, repeats))
    level3 = zstandard.ZstdCompressor(level=3)
    frame = level3.compress(data)
    assert zstandard.ZstdDecompressor().decompress(frame) == data.tobytes()
    unzstd = zstandard.ZstdDecompressor()
    row("zstd -3", len(frame), median_seconds(lambda _: level3.compress(data), 5), median_seconds(lambda _: unzstd.decompress(frame), 5))
    try:
        from zipnn import ZipNN
    except ImportError:
        return rows
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    if dtype not in names:
        return rows
    zipnn = ZipNN(bytearray_dtype=names[dtype], input_format="byte", threads=1)
    packed = bytes(zipnn.compress(bytearray(data)))
    assert bytes(zipnn.decompress(packed)) == data.tobytes(), "zipnn"
    row(
        "zipnn 0.5.4", len(packed), median_seconds(lambda copy: zipnn.compress(copy), 5, lambda: bytearray(data)),
        median_seconds(lambda copy: zipnn.decompress(copy), 5, lambda: bytes(packed)),
    )  # fmt: skip
    return rows


def machine() -> dict[str, object]:
    """Describe where this runs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": cpu, "python": platform.python_version(), "system": platform.platform(), "commit": commit, "cores_used": 1}


def markdown(result: dict) -> str:
    """Return the tables as a page."""
    m = result["machine"]
    lines = [
        "# Codec, in memory, one core", "",
        f"Written by `{result['command']}` at commit {m['commit']}. CPU: {m['cpu']} (a virtual machine), Python {m['python']}. Medians; "
        "GB = 10^9 bytes of original; "
        "round trips compared before timing; weightpack includes its checksums. Ratios to memcpy are of the same run.",
    ]  # fmt: skip
    for name, rows in result["corpora"].items():
        lines += ["", f"## {name}", "", f"memcpy: {rows[0]['memcpy_gb_per_s']:.1f} GB/s", ""]
        lines += ["| tool | packed, of original | encode GB/s | decode GB/s | decode / memcpy |", "|---|---|---|---|---|"]
        lines += [
            f"| {r['tool']} | {100 * r['ratio']:.2f} % | {r['encode_gb_per_s']:.2f} | {r['decode_gb_per_s']:.2f} | {r['decode_vs_memcpy']:.2f} |" for r in rows
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for codec.json and codec.md")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = {
        "command": "scripts/bench", "machine": machine(),
        "corpora": {name: measure(dtype, data, arguments.repeats) for name, (dtype, data) in corpora().items()},
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "codec.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "codec.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
