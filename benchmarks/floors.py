#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each dtype can give, beside what the profiles give.   .venv-bench/bin/python benchmarks/floors.py   (after scripts/bench; a minute)

Beside the corpora of the suite, MiniLM's matrices quantised to 4 bits as GPTQ, bitsandbytes and MXFP4 keep them (round to nearest: the shapes of the
distributions are theirs, the error correction is not).

The floor is the order-0 entropy of a corpus' natural symbols, one table for all of it, nothing for the table: for floats exponent and two leading mantissa bits
together, the other bits as they are, less the trailing zeros of each 128 elements; for integers the byte, for 4-bit values the nibble. Tables that follow the
tensors, and repetition, can go below it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from corpora import CORPORA, build, fetch_models
from report import RESULTS
from safetensors.torch import load_file, save_file

import weightpack
from weightpack.format.layouts import layout_of
from weightpack.kernels import active


def entropy_bits(symbols: np.ndarray) -> float:
    """Order-0 entropy of all symbols together."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def floor_bits(dtype: str, data: np.ndarray) -> tuple[float, float]:
    """Return the floor with exponents alone, and with two leading mantissa bits, in bits."""
    if dtype == "I32":  # eight codes of 4 bits
        return (entropy_bits(np.concatenate([data & 15, data >> 4])),) * 2
    plain, lead = layout_of(dtype), layout_of(dtype, lead=True)
    floors = []
    for layout in (plain, lead):
        step, total, symbols = (1 << 18) * layout.elem_bytes, 0, []
        for begin in range(0, data.size, step):
            planes = active().split(layout, data[begin : begin + step])
            total += 8 * planes.bits.size
            symbols.append(sum(plane.astype(np.uint32) << (8 * i) for i, plane in enumerate(planes.symbols)))
        floors.append(total + entropy_bits(np.concatenate(symbols)))
    return floors[0], floors[1]


Tensors = dict[str, torch.Tensor]
_NF4 = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]  # QLoRA, arXiv:2305.14314
_E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def _groups(tensor: torch.Tensor, size: int) -> torch.Tensor:
    flat = tensor.reshape(-1)
    return flat[: flat.numel() // size * size].reshape(-1, size)


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """Two 4-bit codes a byte."""
    codes = codes.reshape(-1, 2).to(torch.uint8)
    return codes[:, 0] | codes[:, 1] << 4


def nf4(tensor: torch.Tensor) -> Tensors:
    """bitsandbytes: the nearest of 16 quantiles of a normal distribution, two a byte, a float for 64."""
    groups = _groups(tensor, 64)
    scale = groups.abs().amax(dim=1, keepdim=True)
    edges = (torch.tensor(_NF4[1:]) + torch.tensor(_NF4[:-1])) / 2
    return {"weight": _pairs(torch.bucketize(groups / scale.clamp_min(1e-12), edges)), "absmax": scale.reshape(-1)}


def mxfp4(tensor: torch.Tensor) -> Tensors:
    """OCP MX: e2m1, two a byte, an e8m0 exponent for 32."""
    groups = _groups(tensor, 32)
    exponent = torch.floor(torch.log2(groups.abs().amax(dim=1, keepdim=True).clamp_min(1e-30))) - 2
    edges = (torch.tensor(_E2M1[1:]) + torch.tensor(_E2M1[:-1])) / 2
    codes = torch.bucketize((groups / 2**exponent).abs(), edges) + 8 * (groups < 0)
    return {"blocks": _pairs(codes), "scales": (exponent.reshape(-1) + 127).to(torch.uint8)}


LOW_BITS = {"MiniLM NF4 (bitsandbytes layout)": nf4, "MiniLM MXFP4": mxfp4}


def low_bits_row(quantise: Callable[[torch.Tensor], Tensors], folder: Path) -> dict:
    """Measure one way to keep 4-bit weights; the floor is the entropy of the nibbles and of the scales' bytes, plane by plane."""
    tensors = {}
    for name, tensor in load_file(fetch_models.fetch("minilm") / "model.safetensors").items():
        if tensor.is_floating_point() and tensor.ndim == 2:
            tensors |= {f"{name}.{part}": each.contiguous() for part, each in quantise(tensor.float()).items()}
    floor = n_bytes = 0.0
    for part in sorted({name.rpartition(".")[2] for name in tensors}):
        data = np.concatenate([t.reshape(-1).view(torch.uint8).numpy() for name, t in tensors.items() if name.endswith(f".{part}")])
        n_bytes += data.size
        if part in ("qweight", "weight", "blocks"):
            floor += entropy_bits(np.concatenate([data & 15, data >> 4])) / 8
        else:
            elem_bytes = next(t for name, t in tensors.items() if name.endswith(f".{part}")).element_size()
            floor += sum(entropy_bits(data[i::elem_bytes]) for i in range(elem_bytes)) / 8
    source, target = folder / "source.safetensors", folder / "packed.safetensors"
    save_file(tensors, source)
    row = {"dtype": "4 bits", "n_bytes": int(n_bytes), "floor": floor / n_bytes, "floor_lead": floor / n_bytes}
    for profile in ("fast", "dense"):
        row[profile] = weightpack.pack(source, target, options=weightpack.load_profile(profile), overwrite=True).ratio
    return row


def main() -> None:
    rows = {}
    with tempfile.TemporaryDirectory(prefix="weightpack-floors-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for name in CORPORA:
            corpus = build(name, Path(folder))
            data = np.fromfile(corpus.elements, np.uint8)
            floors = floor_bits(corpus.dtype, data)
            row = {"dtype": corpus.dtype, "n_bytes": data.size, "floor": floors[0] / 8 / data.size, "floor_lead": floors[1] / 8 / data.size}
            for profile in ("fast", "dense"):
                target = Path(folder) / "packed.safetensors"
                result = weightpack.pack(corpus.file, target, options=weightpack.load_profile(profile), overwrite=True)
                row[profile] = result.ratio
            rows[name] = row
            print(name, row, flush=True)
            for path in (corpus.file, corpus.elements):
                Path(path).unlink()
        for name, quantise in LOW_BITS.items():
            rows[name] = low_bits_row(quantise, Path(folder))
            print(name, rows[name], flush=True)
    (RESULTS / "floors.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "floors.md").write_text(page(rows))


def page(rows: dict) -> str:
    """Return floors.md."""
    lines = ["# What each dtype can give", "", *(__doc__ or "").split("\n\n", 1)[1].strip().splitlines(), ""]
    lines += ["| weights | floor: exponents | floor: and two leading bits | fast | dense |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        is_float = row["floor"] != row["floor_lead"]
        cells = [row["floor"], row["floor_lead"] if is_float else None, row["fast"], row["dense"]]
        lines.append(f"| {name} | " + " | ".join("-" if cell is None else f"{100 * cell:.2f} %" for cell in cells) + " |")
    return "\n".join([*lines, "", "Written by `benchmarks/floors.py`; fast and dense are whole files, headers and integer tensors included.", ""])


if __name__ == "__main__":
    main()
