#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What weights take that were quantised once and written out again, beside rivals; writes results/quantised.json and results/quantised.md.

    python benchmarks/quantised.py [--rivals PYTHON] [--folder /dev/shm/weightpack-quantised]

MiniLM's matrices, quantised to each kind as its makers do it and multiplied out to bf16, fp16 or fp32: one file a kind. Every tool's round trip is compared
before its size counts. Seconds are the medians of three, on one thread, the packed file verified.
The floor is the order-0 entropy of a file's codes, one table for all of it, and its scales as they are in the kind, nothing for the table.

PYTHON has zipnn, z4ai and glyd (benchmarks/tools.toml).
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zstandard
from floors import entropy_bits
from report import RESULTS
from safetensors.torch import load_file, save_file

import weightpack

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import fetch_models  # noqa: E402

NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
RIVALS = """
import sys, numpy as np
name, dtype, path = sys.argv[1:4]
data = open(path, "rb").read()
if name == "zipnn":
    from zipnn import ZipNN
    tool = ZipNN(bytearray_dtype=dtype, input_format="byte", threads=1)
    packed = tool.compress(bytearray(data)); back = tool.decompress(packed)
elif name == "z4ai":
    import z4ai
    packed = z4ai.compress(data, dtype=dtype.replace("float", "fp").replace("bfp", "bf")); back = z4ai.decompress(packed)
else:
    import glyd
    packed = glyd.compress(data, name.split()[1], threads=1); back = glyd.decompress(packed)
assert bytes(back) == data
print(len(packed))
"""
RIVAL_NAMES = "zipnn", "z4ai", "glyd max", "glyd ultra"
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}

Coded = tuple[torch.Tensor, torch.Tensor, int]
"""What a matrix was quantised to, written out again; its codes; and the bits of its scales."""


def fp8_blocks(w: torch.Tensor, dtype: torch.dtype) -> Coded:
    """Blocks of 128 x 128, a float of single precision each."""
    rows, cols = (side // 128 for side in w.shape)
    blocks = w[: rows * 128, : cols * 128].reshape(rows, 128, cols, 128)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
    codes = (blocks / scale).to(torch.float8_e4m3fn)
    return (codes.float() * scale).reshape(rows * 128, -1).to(dtype), codes.view(torch.uint8), 32 * rows * cols


def integers(bits: int, group: int) -> Callable[[torch.Tensor, torch.dtype], Coded]:
    """GPTQ, AWQ: `scale * (q - zero)`, the scale of half precision, for groups along a row; 0: for rows."""

    def quantise(w: torch.Tensor, dtype: torch.dtype) -> Coded:
        groups = w[:, : w.shape[1] // (group or 1) * (group or 1)].reshape(-1, group or w.shape[1])
        top, bottom = groups.amax(1, keepdim=True), groups.amin(1, keepdim=True)
        scale = ((top - bottom) / (2**bits - 1)).half().float()
        zero = (-bottom / scale).round().clamp(0, 2**bits - 1)
        codes = (groups / scale + zero).round().clamp(0, 2**bits - 1)
        return ((codes - zero) * scale).reshape(w.shape[0], -1).to(dtype), codes.to(torch.uint8), (16 + bits) * len(groups)

    return quantise


def symmetric(group: int) -> Callable[[torch.Tensor, torch.dtype], Coded]:
    """int8 around zero: rows (0), or GGUF's Q8_0 for 32."""

    def quantise(w: torch.Tensor, dtype: torch.dtype) -> Coded:
        groups = w.reshape(-1, group or w.shape[1])
        scale = groups.abs().amax(1, keepdim=True) / 127
        scale = scale.half().float() if group else scale
        codes = (groups / scale.clamp_min(1e-30)).round().to(torch.int8)
        return (codes.float() * scale).reshape(w.shape).to(dtype), codes.view(torch.uint8), (16 if group else 32) * len(groups)

    return quantise


def small_floats(group: int) -> Callable[[torch.Tensor, torch.dtype], Coded]:
    """MXFP4 for 32, a power of two each; NVFP4 for 16, an e4m3 each."""

    def quantise(w: torch.Tensor, dtype: torch.dtype) -> Coded:
        groups = w.reshape(-1, group)
        largest = groups.abs().amax(1, keepdim=True).clamp_min(1e-30)
        if group == 32:
            scale = torch.exp2(torch.floor(torch.log2(largest)) - 2)
        else:
            whole = w.abs().max() / (448 * 6)
            scale = (largest / 6 / whole).to(torch.float8_e4m3fn).float().clamp_min(2**-9) * whole
        codes = torch.bucketize((groups / scale).abs(), (E2M1[1:] + E2M1[:-1]) / 2)
        return (E2M1[codes] * groups.sign() * scale).reshape(w.shape).to(dtype), (codes + 8 * (groups < 0)).to(torch.uint8), 8 * len(groups)

    return quantise


def nf4(w: torch.Tensor, dtype: torch.dtype) -> Coded:
    """bitsandbytes: 16 quantiles of a normal distribution, for 64."""
    groups = w.reshape(-1, 64)
    scale = groups.abs().amax(1, keepdim=True)
    codes = torch.bucketize(groups / scale, (NF4[1:] + NF4[:-1]) / 2)
    return (NF4[codes] * scale).reshape(w.shape).to(dtype), codes.to(torch.uint8), 32 * len(groups)


def ternary(w: torch.Tensor, dtype: torch.dtype) -> Coded:
    """BitNet: one scale for a matrix."""
    scale = w.abs().mean()
    codes = (w / scale).round().clamp(-1, 1)
    return (codes * scale + 0.0).to(dtype), (codes + 1).to(torch.uint8), 32


KINDS: dict[str, tuple[torch.dtype, Callable[[torch.Tensor, torch.dtype], Coded]]] = {
    "fp8 e4m3, blocks of 128 x 128, in bf16": (torch.bfloat16, fp8_blocks),
    "fp8 e4m3, blocks of 128 x 128, in fp32": (torch.float32, fp8_blocks),
    "MXFP4 in bf16": (torch.bfloat16, small_floats(32)),
    "NVFP4 in bf16": (torch.bfloat16, small_floats(16)),
    "NF4 in bf16": (torch.bfloat16, nf4),
    "NF4 in fp16": (torch.float16, nf4),
    "int4, groups of 128, in fp16": (torch.float16, integers(4, 128)),
    "int4, groups of 32, in bf16": (torch.bfloat16, integers(4, 32)),
    "int8, rows, in bf16": (torch.bfloat16, symmetric(0)),
    "Q8_0 in fp16": (torch.float16, symmetric(32)),
    "ternary in bf16": (torch.bfloat16, ternary),
}


def build(path: Path, dtype: torch.dtype, quantise: Callable[[torch.Tensor, torch.dtype], Coded]) -> float:
    """Write a kind's file; return its floor in bytes."""
    weights = {name: w.float() for name, w in load_file(fetch_models.fetch("minilm") / "model.safetensors").items() if w.ndim == 2 and min(w.shape) >= 128}
    tensors, codes, scale_bits = {}, [], 0
    for name, w in weights.items():
        tensor, code, bits = quantise(w, dtype)
        tensors[name] = tensor.contiguous()
        codes.append(code.reshape(-1).numpy())
        scale_bits += bits
    save_file(tensors, path)
    return (entropy_bits(np.concatenate(codes)) + scale_bits) / 8


def ours(source: Path, profile: str) -> dict[str, float]:
    """Pack and unpack, three times; the round trip is compared first."""
    packed, restored, seconds = source.with_suffix(".wp"), source.with_suffix(".restored"), []
    for _ in range(3):
        start = time.perf_counter()
        weightpack.pack(source, packed, options=weightpack.options.load_profile(profile), threads=1, overwrite=True)
        middle = time.perf_counter()
        weightpack.unpack(packed, restored, threads=1, overwrite=True)
        seconds.append((middle - start, time.perf_counter() - middle))
        assert restored.read_bytes() == source.read_bytes()
    n = source.stat().st_size
    pack, unpack = (n / statistics.median(each) / 1e9 for each in zip(*seconds, strict=True))
    return {"bytes": packed.stat().st_size, "pack_gb_s": round(pack, 3), "unpack_gb_s": round(unpack, 3)}


def zstd_bytes(source: Path, level: int) -> int:
    data = source.read_bytes()
    packed = zstandard.ZstdCompressor(level=level).compress(data)
    assert zstandard.ZstdDecompressor().decompress(packed) == data
    return len(packed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", metavar="PYTHON", help="has zipnn, z4ai and glyd")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/weightpack-quantised"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind, (dtype, quantise) in KINDS.items():
        source = args.folder / "source.safetensors"
        floor = build(source, dtype, quantise)
        row = {"kind": kind, "bytes": source.stat().st_size, "floor": round(floor), "zstd-3": zstd_bytes(source, 3), "zstd-19": zstd_bytes(source, 19)}
        row |= {profile: ours(source, profile) for profile in ("fast", "dense")}
        for rival in RIVAL_NAMES if args.rivals else ():
            command = [args.rivals, "-c", RIVALS, rival, DTYPES[dtype], str(source)]
            row[rival] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    shutil.rmtree(args.folder)
    machine = f"{platform.processor() or platform.machine()}, {weightpack.kernels.active().name}, {datetime.date.today()}"
    (RESULTS / "quantised.json").write_text(json.dumps({"machine": machine, "weightpack": weightpack.__version__, "kinds": rows}, indent=1) + "\n")
    (RESULTS / "quantised.md").write_text(page(rows, machine))


def page(rows: list[dict], machine: str) -> str:
    """The results as a table, in per cent of the file."""
    rivals = [name for name in ("zstd-3", "zstd-19", *RIVAL_NAMES) if name in rows[0]]
    lines = ["# Weights that were quantised once and written out again", "", (__doc__ or "").split("\n\n")[2], "", f"Machine: {machine}.", ""]
    lines += ["| kind | floor | fast | dense | " + " | ".join(rivals) + " | fast: pack, GB/s | unpack |", "|---|" + "---|" * (5 + len(rivals))]
    for row in rows:
        shares = [row["floor"], row["fast"]["bytes"], row["dense"]["bytes"], *(row[name] for name in rivals)]
        cells = [f"{100 * share / row['bytes']:.2f} %" for share in shares]
        lines.append("| " + " | ".join([row["kind"], *cells, str(row["fast"]["pack_gb_s"]), str(row["fast"]["unpack_gb_s"])]) + " |")
    return "\n".join([*lines, "", "Written by `benchmarks/quantised.py`.", ""])


if __name__ == "__main__":
    main()
