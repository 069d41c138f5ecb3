#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each dtype can give, beside what the profiles give.   .venv-bench/bin/python benchmarks/floors.py   (after scripts/bench; a minute)

The floor is the order-0 entropy of a corpus' natural symbols, one table for all of it, nothing for the table: for floats exponent and two leading mantissa bits
together, the other bits as they are, less the trailing zeros of each 128 elements; for integers the byte. Tables that follow the tensors, and repetition,
can go below it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from corpora import CORPORA, build
from report import RESULTS

import weightpack
from weightpack.dtypes import layout_of
from weightpack.kernels import active


def entropy_bits(symbols: np.ndarray) -> float:
    """Order-0 entropy of all symbols together."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def floor_bits(dtype: str, data: np.ndarray) -> tuple[float, float]:
    """Return the floor with exponents alone, and with two leading mantissa bits, in bits."""
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
