# SPDX-License-Identifier: Apache-2.0
"""Elements of a base in another dtype than its own, in bits that are the same on every machine (FORMAT 15.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import CorruptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes


_FLOATS = ("F32", "F16", "BF16")


def converts(from_dtype: str, to_dtype: str) -> bool:
    """Can a base of one dtype serve elements of the other?"""
    return from_dtype == to_dtype or (from_dtype in _FLOATS and to_dtype in _FLOATS)


def convert(data: Bytes, from_dtype: str, to_dtype: str) -> Bytes:
    """Convert elements, both (n_bytes,) uint8; to the nearest, ties to even, and NaN to a quiet NaN where bits are lost."""
    if from_dtype == to_dtype:
        return data
    if not converts(from_dtype, to_dtype):
        raise CorruptionError(f"a base of {from_dtype} can't serve a tensor of {to_dtype}")
    words = _to_f32(data, from_dtype)
    return words.view(np.uint8) if to_dtype == "F32" else (_to_bf16(words) if to_dtype == "BF16" else _to_f16(words)).view(np.uint8)


def _to_f32(data: Bytes, dtype: str) -> NDArray[np.uint32]:
    if dtype == "F32":
        return data.view("<u4")
    halves = data.view("<u2")
    if dtype == "BF16":
        return halves.astype(np.uint32) << np.uint32(16)
    words: NDArray[np.uint32] = halves.view("<f2").astype("<f4").view("<u4")
    is_nan = (halves & 0x7FFF) > 0x7C00  # whose payload the CPU may change
    widened = halves.astype(np.uint32)
    return np.where(is_nan, (widened & 0x8000) << 16 | 0x7F800000 | (widened & 0x3FF) << 13, words).astype("<u4")


def _to_bf16(words: NDArray[np.uint32]) -> NDArray[np.uint16]:
    top = words >> np.uint32(16)
    rounded = (words.astype(np.uint64) + (0x7FFF + (top & 1)) >> np.uint64(16)).astype(np.uint32)
    is_nan = (words & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, top | 0x40, rounded).astype("<u2")


def _to_f16(words: NDArray[np.uint32]) -> NDArray[np.uint16]:
    with np.errstate(over="ignore", invalid="ignore"):
        halves = words.view("<f4").astype("<f2").view("<u2")
    is_nan = (words & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, words >> np.uint32(16) & 0x8000 | 0x7E00, halves).astype("<u2")
