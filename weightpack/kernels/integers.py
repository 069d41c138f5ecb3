# SPDX-License-Identifier: Apache-2.0
"""Integer arithmetic that every backend and the writer share: the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from weightpack.format.constants import N_CONTEXTS

if TYPE_CHECKING:
    from numpy.typing import NDArray


def log2_bits(v: int, n: int) -> int:
    """Return the upper n bits behind the point of log2(v), and those before it, by repeated squaring of v in 32 bits."""
    whole = v.bit_length() - 1
    x, bits = v << (31 - whole), whole
    for _ in range(n):
        x = x * x >> 31
        carry = x >> 32
        bits, x = bits << 1 | carry, x >> carry
    return bits


def fullest_window(counts: NDArray[Any]) -> int:
    """Return the first of the 16 consecutive symbols, of 256, that occur most; the lowest such."""
    return int(sliding_window_view(counts.astype(np.int64), N_CONTEXTS).sum(axis=1).argmax())
