# SPDX-License-Identifier: Apache-2.0
"""Sketches: samples by which a tensor is recognised as another's relative, and hashes of some of them, by which relatives are found among any number of
tensors."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.layouts import DTYPE_BITS
from weightpack.reading.convert import convert, converts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes

LEAST_BYTES = 1 << 12
"""Smaller tensors have no sketch: they are alike by chance."""

_SAMPLES, _LEVELS, _BAND = 128, 4, 8
_GOLDEN = 0x9E3779B97F4A7C15  # multiples of it spread evenly over any range
_MOST_DISTANCE = 9.0  # of 16 bits: unrelated weights differ in 13 or more
SKETCH_DTYPES = frozenset(dtype for dtype, bits in DTYPE_BITS.items() if bits in (8, 16, 32))


def sample_places(n_elems: int) -> NDArray[np.int64]:
    """Return which elements are sampled, (128,) in no order.

    They lie in the first 2^k, 2^(k-2), 2^(k-4) and 2^(k-6) elements, 2^k being the largest power that fits: so a tensor that got some rows more at its end has
    the same ones, and what changed in the middle leaves the first ones alone.
    """
    top = n_elems.bit_length() - 1
    return np.array([(i + 1) * _GOLDEN % (1 << max(top - 2 * (i % _LEVELS), 0)) for i in range(_SAMPLES)], np.int64)


class Sampler:
    """Takes a tensor's samples while it is read, window by window; no element is in two."""

    def __init__(self, dtype: str, n_bytes: int) -> None:
        self._dtype, self._size = dtype, DTYPE_BITS[dtype] // 8
        self._offsets = sample_places(n_bytes // self._size) * self._size
        self._samples = np.zeros((_SAMPLES, self._size), np.uint8)

    def take(self, begin: int, window: Bytes) -> None:
        """Take what is sampled of the bytes from `begin` on."""
        inside = np.flatnonzero((self._offsets >= begin) & (self._offsets < begin + window.size))
        self._samples[inside] = window[(self._offsets[inside] - begin)[:, None] + np.arange(self._size)]

    def sketch(self) -> bytes:
        """Return the sketch, 256 bytes: of each sample the upper 16 bits, of floats as those of float32."""
        samples = self._samples.reshape(-1)
        if converts(self._dtype, "F32"):
            words = convert(samples, self._dtype, "F32").view("<u4") >> np.uint32(16)
        else:
            words = samples.view(f"<u{self._size}").astype(np.uint64) << np.uint64(16) >> np.uint64(8 * self._size)
        return words.astype("<u2").tobytes()


def bands(sketch: bytes, dtype: str, shape: tuple[int, ...]) -> list[int]:
    """Return hashes, signed 64-bit, one of which a relative's sketch very likely has, too: each is of some signs and exponents, and of what a row is."""
    kind = "float" if converts(dtype, "F32") else dtype
    upper = np.frombuffer(sketch, "<u2").reshape(-1, _LEVELS) >> 7
    found = []
    for level in range(_LEVELS):
        for begin in range(0, 2 * _BAND, _BAND):
            text = f"{kind} {shape[1:]} {level} {begin} ".encode() + upper[begin : begin + _BAND, level].tobytes()
            found.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True))
    return found


def distance(one: bytes, other: bytes) -> float:
    """Return how many of 16 bits differ, counted from the highest that does, on average over the samples."""
    differing = np.frombuffer(one, "<u2") ^ np.frombuffer(other, "<u2")
    return float(np.frexp(differing.astype(np.float64))[1].mean())


def related(one: bytes, other: bytes) -> bool:
    """May one be worth differing from the other?"""
    return distance(one, other) < _MOST_DISTANCE
