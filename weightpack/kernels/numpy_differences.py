# SPDX-License-Identifier: Apache-2.0
"""Differences from a base in numpy (FORMAT section 14); what native/src/difference.c does, in the same integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.errors import CorruptionError, TruncatedError, UnsupportedError
from weightpack.format.constants import (
    BLOCK_ELEMS,
    CLASS_BITS,
    CODEC_NAMES,
    FIRST_FREQUENT,
    MAX_CHUNK_BLOCKS,
    MAX_CHUNK_BYTES,
    MAX_FREQUENT,
    MAX_RATE,
    N_CELLS,
    N_CLASSES,
    N_CONTEXTS,
    NO_SCALE,
    Codec,
)
from weightpack.kernels.integers import fit_scales, logs_16
from weightpack.kernels.interface import DifferenceCode
from weightpack.kernels.numpy_checks import expect, need, u8
from weightpack.kernels.numpy_codecs import decode_plane
from weightpack.kernels.numpy_rans import conditional_decode, contexts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes, Stream, Words
    from weightpack.format.layouts import Layout

_MANTISSAS = np.array(
    [0, 371395, 759234, 1164243, 1587184, 2028850, 2490071, 2971711, 3474675, 3999908, 4548394, 5121164, 5719293, 6343903, 6996167, 7677309], np.int64
)


def _words(data: Bytes, layout: Layout) -> Words:
    return data.view(f"<u{layout.elem_bytes}").astype(np.uint32)


def _in_order(words: Words, bits: int, layout: Layout) -> Words:
    """Words <-> integers in the order of the values (14.2); its own inverse."""
    if not layout.is_float:
        return words
    return words ^ (words >> np.uint32(bits - 1)) * np.uint32((1 << (bits - 1)) - 1)


def _turned(words: Words, bits: int, layout: Layout) -> NDArray[np.bool_]:
    """Which differences are of the other sign than in the order of the values: those of negative floats."""
    return words >> np.uint32(bits - 1) != 0 if layout.is_float else np.zeros(words.size, np.bool_)


def _exponents(base: Words, layout: Layout) -> Bytes:
    exponents: Bytes = (base >> layout.exponent_shift & (1 << layout.exponent_bits) - 1).astype(np.uint8)
    return exponents


def _extra_bits(classes: Bytes) -> NDArray[np.int64]:
    """How many extra bits each class has, the sign among them (14.3)."""
    return np.array([0, 1, *(c // 2 for c in range(2, FIRST_FREQUENT)), *[0] * MAX_FREQUENT], np.int64)[classes]


# ---- decoding


def decode_difference(layout: Layout, shift: int, frequent: Words, streams: Sequence[Stream], base: Bytes, n_elems: int, out: Bytes) -> None:
    n_bytes = n_elems * layout.elem_bytes
    need(0 < n_bytes <= MAX_CHUNK_BYTES and n_elems <= MAX_CHUNK_BLOCKS * BLOCK_ELEMS, "the chunk's size")
    need(layout.has_differences and (not shift or shift + 2 <= 8 * layout.elem_bytes), "the mode of the chunk")
    expect(len(streams) == 3 and base.size >= n_bytes and out.size >= n_bytes, "streams or base")
    need(frequent.size <= MAX_FREQUENT and not (frequent.astype(np.uint64) >> np.uint64(8 * layout.elem_bytes - shift)).any(), "a frequent difference")
    (rate_codec, rate_stream), (class_codec, class_stream), (extra_codec, extra_stream) = ((codec, u8(stream)) for codec, stream in streams)
    rates = decode_plane(rate_codec, rate_stream, -(-n_elems // BLOCK_ELEMS), 8)
    need(int(rates.max()) <= MAX_RATE, "the rate of a block")
    if extra_codec != Codec.RAW:
        raise (CorruptionError if extra_codec in CODEC_NAMES else UnsupportedError)(f"the extra bits have codec {extra_codec}")
    rate_of = np.repeat(rates, BLOCK_ELEMS)[:n_elems]
    changed = rate_of != 0
    out[:n_bytes] = base[:n_bytes]
    if not changed.any():
        need(class_codec == Codec.RAW and not class_stream.size and not extra_stream.size, "a chunk without differences")
        return
    words = _words(base[:n_bytes], layout)[changed]
    if class_codec == Codec.CONDITIONAL:
        classes = conditional_decode(class_stream, rate_of[changed], _exponents(words, layout))
    else:
        classes = decode_plane(class_codec, class_stream, int(changed.sum()), CLASS_BITS)
    bits = 8 * layout.elem_bytes - shift
    is_frequent = classes >= FIRST_FREQUENT
    largest = int(np.where(is_frequent, 0, classes).max())
    need(largest < 2 * bits - 1 and int(classes.max()) < FIRST_FREQUENT + frequent.size, "the class of a difference")
    difference = _read_differences(classes, extra_stream)
    difference[is_frequent] = frequent[classes[is_frequent] - FIRST_FREQUENT]
    difference = np.where(_turned(words >> np.uint32(shift), bits, layout), -difference, difference)
    moved = _in_order(words >> np.uint32(shift), bits, layout).astype(np.int64) + difference & (1 << bits) - 1
    elems = out[:n_bytes].view(f"<u{layout.elem_bytes}")
    elems[changed] = _in_order(moved.astype(np.uint32), bits, layout) << np.uint32(shift)


def _read_differences(classes: Bytes, stream: Bytes) -> NDArray[np.int64]:
    n_bits = _extra_bits(classes)
    ends = np.cumsum(n_bits)
    total = int(ends[-1])
    need(total <= 8 * stream.size, "the extra bits", TruncatedError)
    need(total > 8 * (stream.size - 1), "the extra bits' length")
    padded = np.append(stream, np.zeros(8, np.uint8))
    begins = ends - n_bits
    values = np.zeros(classes.size, np.uint64)
    for i in range(5):  # at most 31 bits from any bit on
        values |= padded[begins // 8 + i].astype(np.uint64) << np.uint64(8 * i)
    values = values >> (begins % 8).astype(np.uint64) & (np.uint64(1) << n_bits.astype(np.uint64)) - np.uint64(1)
    if total % 8:
        need(int(stream[-1]) >> total % 8 == 0, "the unused extra bits")
    low = np.maximum(n_bits - 1, 0)
    lead = np.where(classes < 2, classes, (2 | classes.astype(np.int64) & 1) << low)
    magnitude = lead | (values >> np.uint64(1)).astype(np.int64)
    signed: NDArray[np.int64] = magnitude * (1 - 2 * (values & np.uint64(1)).astype(np.int64))
    return signed


# ---- encoding


def _differences(layout: Layout, shift: int, elems: Words, base: Words) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return magnitudes and signs; the sign of floats is whether the element's magnitude is less."""
    bits = 8 * layout.elem_bytes - shift
    low = np.uint32(shift)
    d = _in_order(elems >> low, bits, layout).astype(np.int64) - _in_order(base >> low, bits, layout) & (1 << bits) - 1
    less = d >> (bits - 1) != 0
    return np.where(less, (1 << bits) - d, d), less ^ _turned(base >> low, bits, layout)


def _log2_floor(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of values from 1 up: floats are exact where the highest bit is concerned, once the bits below the highest 32 are gone."""
    high = values >> 32
    big = high > 0
    exponents: NDArray[Any] = np.frexp(np.where(big, high, values & 0xFFFFFFFF).astype(np.float64))[1] - 1
    return np.where(big, exponents + 32, exponents).astype(np.int64)


def _modular(magnitudes: NDArray[np.int64], negative: NDArray[np.bool_], layout: Layout, shift: int) -> Words:
    modular: NDArray[np.int64] = np.where(negative, -magnitudes, magnitudes) & (1 << 8 * layout.elem_bytes - shift) - 1
    return modular.astype(np.uint32)


def modular_differences(layout: Layout, shift: int, elems: Bytes, base: Bytes) -> Words:
    expect(layout.has_differences and shift + 2 <= 8 * layout.elem_bytes and len(elems) == len(base), "differences")
    return _modular(*_differences(layout, shift, _words(u8(elems), layout), _words(u8(base), layout)), layout, shift)


def difference_planes(layout: Layout, shift: int, elems: Bytes, base: Bytes) -> tuple[Bytes, Bytes]:
    expect(layout.has_differences and shift + 2 <= 8 * layout.elem_bytes and len(elems) == len(base) > 0, "differences")
    words = _words(u8(base), layout)
    exponents = _exponents(words, layout)
    targets = _words(u8(elems), layout)
    magnitudes, _ = _differences(layout, shift, targets, words)
    e = exponents.astype(np.int64)
    lowest = max(int(e.max()) - 24, 0)
    weighted = np.where(e >= lowest, magnitudes << np.maximum(e - lowest, 0), magnitudes >> np.clip(lowest - e, 0, 31))
    begins = np.arange(0, magnitudes.size, BLOCK_ELEMS)
    # The bits that are dropped count, too: a block of rate 0 is its base as a whole.
    sums, differs = np.add.reduceat(weighted, begins), np.bitwise_or.reduceat(targets ^ words, begins)
    scales: Bytes = np.where(differs, 1 + np.where(sums, _log2_floor(np.maximum(sums, 1)), 0), 0).astype(np.uint8)
    return exponents, scales


def difference_code(layout: Layout, shift: int, elems: Bytes, base: Bytes, rates: Bytes, base_exponent: int, frequent: Words) -> DifferenceCode:
    expect(layout.has_differences and shift + 2 <= 8 * layout.elem_bytes and int(rates.max(initial=0)) <= MAX_RATE, "differences")
    expect(frequent.size <= MAX_FREQUENT, "frequent differences")
    words, targets = _words(u8(base), layout), _words(u8(elems), layout)
    rate_of = np.repeat(rates, BLOCK_ELEMS)[: words.size]
    changed = rate_of != 0
    words, targets, rate_of = words[changed], targets[changed], rate_of[changed]
    magnitudes, negative = _differences(layout, shift, targets, words)
    k = _log2_floor(np.maximum(magnitudes, 1))
    classes: Bytes = np.where(magnitudes < 2, magnitudes, 2 * k + (magnitudes >> np.maximum(k - 1, 0) & 1)).astype(np.uint8)
    modular = _modular(magnitudes, negative, layout, shift)
    for i, value in reversed(list(enumerate(frequent.tolist()))):  # the first of equal ones
        classes[modular == value] = FIRST_FREQUENT + i
    cells: Bytes = rate_of * np.uint8(N_CONTEXTS) + contexts(_exponents(words, layout), base_exponent)
    counts = np.bincount(cells.astype(np.intp) * N_CLASSES + classes, minlength=N_CELLS * N_CLASSES).astype(np.uint32).reshape(N_CELLS, N_CLASSES)
    n_bits = _extra_bits(classes)
    values = (magnitudes & (1 << np.maximum(n_bits - 1, 0)) - 1) << 1 | negative
    steps = np.arange(31)
    bits = (values[:, None] >> steps & 1).astype(np.uint8)[steps < n_bits[:, None]]
    return DifferenceCode(cells, classes, counts, np.packbits(bits, bitorder="little"))


def scaled_base(layout: Layout, scales: Bytes, cols: int, phase: int, signs: Bytes, n_elems: int) -> Bytes:
    need(layout.has_scales, "the mode of the chunk")
    n_rows = -(-(phase + n_elems) // cols)
    values = u8(scales).view("<i2").astype(np.int64)
    expect(values.size == n_rows + cols and phase < cols, "scales")
    at = np.arange(phase, phase + n_elems)
    of_row, of_col = values[at // cols], values[n_rows + at % cols]
    sums, missing = of_row + of_col + (127 << 4), (of_row == NO_SCALE) | (of_col == NO_SCALE)
    words = np.where(sums >= 255 << 4, 0x7F7FFFFF, sums >> 4 << 23 | _MANTISSAS[sums & 15])
    words = np.where(missing | (sums < 16), 0, words)
    words |= np.unpackbits(u8(signs), bitorder="little")[:n_elems].astype(np.int64) << 31
    return (words >> (32 - 8 * layout.elem_bytes)).astype(f"<u{layout.elem_bytes}").view(np.uint8)


def scales_gain(upper: NDArray[np.uint16]) -> int:
    """As `wp_scales_gain` of the native core."""
    n_rows, n_cols = upper.shape
    sample = upper.astype(np.int64)
    there = sample != 0
    if not there.any():
        return 0
    scales = fit_scales(sample.reshape(-1), n_cols, 0)
    predicted = (scales[:n_rows, None] + scales[n_rows:] << 3) + (127 << 7)
    plain, rest = (sample >> 4)[there], ((sample - predicted) >> 4)[there]  # eighths of an octave
    return _entropy_16(plain) - _entropy_16(rest)


def _entropy_16(values: NDArray[np.int64]) -> int:
    """Entropy in sixteenths of a bit a value, in integers."""
    counts, logs = np.bincount(values - values.min()), logs_16().astype(np.int64)
    return (values.size * int(logs[values.size]) - int(counts @ logs[counts])) // values.size
