# SPDX-License-Identifier: Apache-2.0
"""Weights that were quantised once and written out again, as people have them: each kind of releases and of adapters that were merged."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Words = NDArray[Any]

NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


def words(values: Floats, dtype: str) -> Words:
    """Round to BF16, F16 or F32, to the nearest, ties to even."""
    single = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return single.view(np.uint32)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return single.astype(np.float16).view(np.uint16)
    bits = single.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def weights(rows: int, cols: int, seed: int = 0) -> Floats:
    """Weights as a model has them: rows and columns of different scale. Sums of integers, so that they are the same on every machine."""
    rng = np.random.default_rng(seed)
    row, col = rng.integers(16, 40, (rows, 1)), rng.integers(16, 32, (1, cols))
    bell = rng.integers(-128, 128, (6, rows, cols), np.int16).astype(np.int32).sum(axis=0)
    return (bell * (row * col)).astype(np.float32) * np.float32(2.0**-23)


def small_floats(mantissa_bits: int, least_exponent: int, largest: float) -> Floats:
    """Return the magnitudes of a small float, ascending."""
    steps = np.arange(1 << mantissa_bits) / (1 << mantissa_bits)
    exponents = np.arange(least_exponent, 16)
    every = np.concatenate([steps * 2.0**least_exponent, ((1 + steps) * 2.0 ** exponents[:, None]).reshape(-1)])
    return every[every <= largest].astype(np.float32)


def nearest(values: Floats, grid: Floats) -> Floats:
    """Round magnitudes to those of the grid, ties down, keeping signs, of zeros too."""
    between = (grid[:-1] + grid[1:]) / 2
    return np.copysign(grid[np.searchsorted(between, np.abs(values))], values).astype(np.float32)


def blocks_of_fp8(rows: int, cols: int, dtype: str = "BF16", seed: int = 0, side: int = 128) -> Words:
    """fp8 e4m3 times a float of single precision for each block, the last of which may be cut."""
    w, out = weights(rows, cols, seed), np.empty((rows, cols), np.float32)
    for r in range(0, rows, side):
        for c in range(0, cols, side):
            block = w[r : r + side, c : c + side]
            scale = np.float32(np.abs(block).max() / 448)
            out[r : r + side, c : c + side] = nearest(block / scale, small_floats(3, -6, 448)) * scale
    return words(out, dtype)


def groups_of_integers(rows: int, cols: int, dtype: str, n_bits: int, group: int, seed: int = 0) -> Words:
    """GPTQ and AWQ: `scale * (q - zero)` for groups along a row, scales of half precision, zeros that are integers."""
    w = weights(rows, cols, seed).reshape(-1, group)
    top, bottom = w.max(axis=1, keepdims=True), w.min(axis=1, keepdims=True)
    scale = ((top - bottom) / (2**n_bits - 1)).astype(np.float16).astype(np.float32)
    zero = np.clip(np.round(-bottom / scale), 0, 2**n_bits - 1)
    q = np.clip(np.round(w / scale + zero), 0, 2**n_bits - 1).astype(np.int32)
    return words(((q - zero.astype(np.int32)) * scale).astype(np.float32).reshape(rows, cols), dtype)


def rows_of_int8(rows: int, cols: int, dtype: str, seed: int = 0) -> Words:
    """int8, one scale a row."""
    w = weights(rows, cols, seed)
    scale = (np.abs(w).max(axis=1, keepdims=True) / 127).astype(np.float32)
    return words((np.round(w / scale).astype(np.int8) * scale).astype(np.float32), dtype)


def fake_int8(rows: int, cols: int, dtype: str, seed: int = 0) -> Words:
    """int8 that was never an integer: training with rounded weights, whose zeros keep their sign."""
    w = weights(rows, cols, seed)
    scale = (np.abs(w).max(axis=1, keepdims=True) / 127).astype(np.float32)
    return words(np.round(w / scale) * scale, dtype)


def columns_of_int8(rows: int, cols: int, dtype: str, seed: int = 0) -> Words:
    """int8, one scale a column: what a transposed matrix has."""
    return np.ascontiguousarray(rows_of_int8(cols, rows, dtype, seed).T)


def mxfp4(rows: int, cols: int, dtype: str = "BF16", seed: int = 0) -> Words:
    """OCP Microscaling: e2m1 times a power of two for each 32."""
    w = weights(rows, cols, seed).reshape(-1, 32)
    scale = np.ldexp(np.float32(1), np.frexp(np.abs(w).max(axis=1, keepdims=True))[1] - 3)
    return words((nearest(w / scale, small_floats(1, 0, 6)) * scale).reshape(rows, cols), dtype)


def nvfp4(rows: int, cols: int, dtype: str = "BF16", seed: int = 0) -> Words:
    """e2m1 times an e4m3 for each 16, times a float of single precision for the tensor."""
    w = weights(rows, cols, seed).reshape(-1, 16)
    whole = np.float32(np.abs(w).max() / (448 * 6))
    scale = nearest(np.abs(w).max(axis=1, keepdims=True) / 6 / whole, small_floats(3, -6, 448)) * whole
    return words((nearest(w / np.maximum(scale, whole * 2**-9), small_floats(1, 0, 6)) * scale).reshape(rows, cols), dtype)


def nf4(rows: int, cols: int, dtype: str = "BF16", seed: int = 0) -> Words:
    """QLoRA: NF4 times the largest magnitude of each 64."""
    w = weights(rows, cols, seed).reshape(-1, 64)
    scale = np.abs(w).max(axis=1, keepdims=True).astype(np.float32)
    between = (NF4[:-1] + NF4[1:]) / 2
    return words((NF4[np.searchsorted(between, w / scale)] * scale).reshape(rows, cols), dtype)


def q8_0(rows: int, cols: int, dtype: str = "F16", seed: int = 0) -> Words:
    """GGUF's Q8_0: int8 times a half for each 32."""
    w = weights(rows, cols, seed).reshape(-1, 32)
    scale = (np.abs(w).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    return words((np.round(w / scale).astype(np.int8) * scale).astype(np.float32).reshape(rows, cols), dtype)


def ternary(rows: int, cols: int, dtype: str = "BF16", seed: int = 0) -> Words:
    """One scale for all: BitNet."""
    w = weights(rows, cols, seed)
    scale = np.float32(np.abs(w).mean())
    return words(np.clip(np.round(w / scale), -1, 1).astype(np.int8) * scale, dtype)


def palette(rows: int, cols: int, dtype: str = "F16", seed: int = 0) -> Words:
    """Few values without a rule: what k-means leaves."""
    rng = np.random.default_rng(seed)
    values = np.sort(rng.normal(0, 0.03, 200)).astype(np.float32)
    return words(values[np.clip(rng.normal(100, 40, (rows, cols)).astype(np.int64), 0, 199)], dtype)


def kinds(rows: int, cols: int) -> dict[str, tuple[str, Words]]:
    """Return name -> (dtype, (rows, cols) words); `cols` is a multiple of 128."""
    return {
        "fp8 blocks, bf16": ("BF16", blocks_of_fp8(rows, cols)),
        "fp8 blocks, fp32": ("F32", blocks_of_fp8(rows, cols, "F32", 1)),
        "int4 groups, fp16": ("F16", groups_of_integers(rows, cols, "F16", 4, 128, 2)),
        "int4 groups of 32, bf16": ("BF16", groups_of_integers(rows, cols, "BF16", 4, 32, 3)),
        "int8 rows, bf16": ("BF16", rows_of_int8(rows, cols, "BF16", 4)),
        "int8 rows, fp32": ("F32", rows_of_int8(rows, cols, "F32", 5)),
        "fake int8 rows, fp16": ("F16", fake_int8(rows, cols, "F16", 14)),
        "int8 columns, fp16": ("F16", columns_of_int8(rows, cols, "F16", 6)),
        "MXFP4, bf16": ("BF16", mxfp4(rows, cols, "BF16", 7)),
        "NVFP4, bf16": ("BF16", nvfp4(rows, cols, "BF16", 8)),
        "NF4, bf16": ("BF16", nf4(rows, cols, "BF16", 9)),
        "NF4, fp16": ("F16", nf4(rows, cols, "F16", 10)),
        "Q8_0, fp16": ("F16", q8_0(rows, cols, "F16", 11)),
        "ternary, bf16": ("BF16", ternary(rows, cols, "BF16", 12)),
        "palette, fp16": ("F16", palette(rows, cols, "F16", 13)),
    }
