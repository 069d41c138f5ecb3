# SPDX-License-Identifier: Apache-2.0
"""Integer arithmetic that every backend and the writer share: the same on every machine."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from weightpack.format.constants import N_CONTEXTS, NO_SCALE

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SAMPLE = 4096  # elements of a sample of which scales are tried


def log2_bits(most: int, n: int) -> NDArray[np.uint64]:
    """Return the upper n bits behind the point of log2(v), and those before it, for v = 1 to `most`, by repeated squaring of v in 32 bits."""
    v = np.arange(1, most + 1, dtype=np.uint64)
    whole = np.frexp(v.astype(np.float64))[1].astype(np.uint64) - np.uint64(1)
    x, bits = v << (np.uint64(31) - whole), whole
    for _ in range(n):
        x = x * x >> np.uint64(31)
        carry = x >> np.uint64(32)
        bits, x = bits << np.uint64(1) | carry, x >> carry
    return bits


def fullest_window(counts: NDArray[Any]) -> int:
    """Return the first of the 16 consecutive symbols, of 256, that occur most; the lowest such."""
    return int(sliding_window_view(counts.astype(np.int64), N_CONTEXTS).sum(axis=1).argmax())


def log2_16(v: int) -> int:
    """16 * log2(v), rounded down: the 16th power has as many bits."""
    power: int = v**16
    return power.bit_length() - 1


@cache
def logs_16() -> NDArray[np.uint8]:
    """Return `log2_16` of 1 to as many as a sample has, and 0 for 0."""
    return np.array([0, *map(log2_16, range(1, MAX_SAMPLE + 1))], np.uint8)


@cache
def logs_4096() -> NDArray[np.uint16]:
    """Return 2^12 * log2(v), rounded down, for v = 1 to 4096, and 0 for 0."""
    return np.concatenate([[0], log2_bits(4096, 12)]).astype(np.uint16)


def fit_scales(magnitudes: NDArray[np.int64], cols: int, phase: int) -> NDArray[np.int64]:
    """Return the scales of rows, then of columns, in sixteenths of an octave.

    `magnitudes` are the upper 15 bits behind the sign, which are log2 of the value in 1/128 but for the curve of the mantissa. Zeros are left out; what has
    nothing else has no scale.
    """
    n_rows = -(-(phase + magnitudes.size) // cols)
    padded = np.zeros(n_rows * cols, np.int64)
    padded[phase : phase + magnitudes.size] = magnitudes
    grid = padded.reshape(n_rows, cols)
    there = grid != 0
    logs = np.where(there, grid - (127 << 7), 0)
    in_row, in_col = there.sum(axis=1), there.sum(axis=0)
    rows = logs.sum(axis=1) // np.maximum(in_row, 1)
    columns = np.where(there, logs - rows[:, None], 0).sum(axis=0) // np.maximum(in_col, 1)
    rows16, cols16 = (rows + 4) >> 3, (columns + 4) >> 3
    return np.concatenate([np.where(in_row, rows16, NO_SCALE), np.where(in_col, cols16, NO_SCALE)])
