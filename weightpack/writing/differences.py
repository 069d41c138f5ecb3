# SPDX-License-Identifier: Apache-2.0
"""Elements -> chunks of differences from a base (FORMAT section 14): from another file's elements, or from what the scales of rows and columns predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack import kernels as kernel_choice
from weightpack.format.constants import BLOCK_ELEMS, MAX_RATE, Codec
from weightpack.format.record import build_difference_chunk
from weightpack.kernels.integers import fit_scales, fullest_window, log2_16
from weightpack.writing.choose import bytes_stream
from weightpack.writing.plain import encode_plane

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes, Stream
    from weightpack.format.layouts import Layout
    from weightpack.options import PackOptions

_CONDITIONAL_SYMBOLS = 1 << 10  # with fewer, the stream's head costs more than conditions gain
_OUTLIERS = 200  # one block in so many may have a higher rate than there are
SCALED_ROWS = 16  # with fewer, the scales of columns cost too much
_LEAST_ROW = 16
_NONE_FREQUENT = np.empty(0, np.uint32)
_SAMPLE_BLOCKS, _LEAST_SHARE, _MOST_FREQUENT = 64, 256, 24
_FREQUENT_BITS = 256  # a class of its own costs 32 bits in the chunk, and 16 in each codebook that has it
_SAMPLE_PLACES, _MANY_PLACES, _SAMPLE_COLS = 4, 64, 64  # of SCALED_ROWS rows each
_LEAST_GAIN = 8  # sixteenths of a bit a value: less than that is not worth a slower decoder


def encode_difference(data: Bytes, base: Bytes, layout: Layout, options: PackOptions) -> bytes:
    """Encode one chunk as differences from `base`, of the same length and layout."""
    return _chunk(data, base, layout, options)


def encode_scaled(data: Bytes, layout: Layout, cols: int, phase: int, options: PackOptions) -> bytes:
    """Encode one chunk as differences from what its rows' and columns' scales predict.

    `cols` elements make a row, and the first element is in column `phase`.
    """
    words = data.view(f"<u{layout.elem_bytes}")
    top = words >> (8 * layout.elem_bytes - 16)  # the sign, the exponent and, at least, 7 bits of the mantissa: both layouts have those of BF16
    signs = np.packbits((top >> 15).astype(np.uint8), bitorder="little")
    scales = fit_scales(top.astype(np.int64) & 0x7FFF, cols, phase).astype("<i2").view(np.uint8)
    base = kernel_choice.active().scaled_base(layout, scales, cols, phase, signs, words.size)
    planes: list[Stream] = [bytes_stream(scales, options), encode_plane(signs, options)]
    return _chunk(data, base, layout, options, planes, (cols, phase))


def scales_help(read: Callable[[int, int], Bytes], n_bytes: int, layout: Layout, cols: int, phase: int) -> bool:
    """Say from a sample of rows whether their scales and the columns' predict elements enough to be worth it, as they do for the second moments of Adam.

    Parameters
    ----------
    read
        (offset, n_bytes) -> bytes of the tensor, which has `n_bytes`.
    cols, phase
        Elements of a row, and the column of the first.
    """
    if not layout.has_scales or cols < _LEAST_ROW:
        return False
    row_bytes, first = cols * layout.elem_bytes, (cols - phase) % cols * layout.elem_bytes
    n_rows = (n_bytes - first) // row_bytes
    if n_rows < SCALED_ROWS:
        return False

    def rows_at(n_places: int) -> NDArray[Any]:
        places = np.unique(np.arange(n_places) * (n_rows - SCALED_ROWS) // (n_places - 1)).tolist()
        rows = np.concatenate([read(first + row * row_bytes, SCALED_ROWS * row_bytes) for row in places])
        return rows.view(f"<u{layout.elem_bytes}").reshape(-1, cols)

    sample = _upper_bits(rows_at(_SAMPLE_PLACES)[:, :_SAMPLE_COLS], layout)
    if not sample.any(axis=1).all():  # rows or columns of zeros, as causal masks have, words that never occurred, and what is padded left: others tell more
        sample = _upper_bits(rows_at(_MANY_PLACES), layout)
        sample = sample[sample.any(axis=1)]
        begin = int(sample.any(axis=0).argmax()) // _SAMPLE_COLS * _SAMPLE_COLS if len(sample) else 0
        sample = sample[:: -(-len(sample) // (_SAMPLE_PLACES * SCALED_ROWS)) or 1, begin : begin + _SAMPLE_COLS]
    if len(sample) < SCALED_ROWS:
        return False
    return kernel_choice.active().scales_gain(np.ascontiguousarray(sample)) > _LEAST_GAIN


def _upper_bits(words: NDArray[Any], layout: Layout) -> NDArray[np.uint16]:
    """Return the upper 15 bits after the sign."""
    return (words >> (8 * layout.elem_bytes - 16)).astype(np.uint16) & np.uint16(0x7FFF)


def _shift(data: Bytes, layout: Layout) -> int:
    """Return how many low bits are zero in every element, of those that may be dropped."""
    words = data.view(f"<u{layout.elem_bytes}")
    union = int(np.bitwise_or.reduce(words))
    zeros = (union & -union).bit_length() - 1 if union else 0
    return min(zeros, 8 * layout.elem_bytes - 2)


def _chunk(data: Bytes, base: Bytes, layout: Layout, options: PackOptions, planes: Sequence[Stream] = (), rows: tuple[int, int] | None = None) -> bytes:
    """Return a chunk with the streams rates, classes and extra bits behind `planes`."""
    kernels, shift = kernel_choice.active(), _shift(data, layout)
    exponents, scales = kernels.difference_planes(layout, shift, data, base)
    rates = _rates(scales)
    rate_stream = encode_plane(rates, options)
    if not rates.any():
        return build_difference_chunk([*planes, rate_stream, (Codec.RAW, b""), (Codec.RAW, b"")], shift, _NONE_FREQUENT, rows)
    base_exponent = fullest_window(kernels.histogram(exponents))
    frequent = _frequent(data, base, layout, shift, rates) if rows is None else _NONE_FREQUENT
    code = kernels.difference_code(layout, shift, data, base, rates, base_exponent, frequent)
    class_stream: Stream | None = None
    if "rans" in options.codecs and code.classes.size >= _CONDITIONAL_SYMBOLS:
        books = kernels.conditional_books(code.counts, base_exponent)
        class_stream = (Codec.CONDITIONAL, kernels.conditional_encode(books, code.cells, code.classes))
    if class_stream is None or code.classes.size < 16 * _CONDITIONAL_SYMBOLS:
        plain = encode_plane(code.classes, options)
        if class_stream is None or len(plain[1]) < len(class_stream[1]):
            class_stream = plain
    return build_difference_chunk([*planes, rate_stream, class_stream, bytes_stream(code.extras, options)], shift, frequent, rows)


def _frequent(data: Bytes, base: Bytes, layout: Layout, shift: int, rates: Bytes) -> NDArray[np.uint32]:
    """Return differences so frequent that they are better classes of their own: weight decay moves what nothing else moves by the same few steps.

    From a sample of changed blocks. A difference is worth it if the extra bits that it saves are more than what tells it from the rest of its class.
    """
    block_bytes = BLOCK_ELEMS * layout.elem_bytes
    whole = data.size // block_bytes
    changed = np.flatnonzero(rates[:whole])
    if not changed.size:
        return _NONE_FREQUENT
    picked = changed[np.unique(np.arange(_SAMPLE_BLOCKS) * changed.size // _SAMPLE_BLOCKS)]
    sampled = (elems[: whole * block_bytes].reshape(whole, block_bytes)[picked].reshape(-1) for elems in (data, base))
    values, counts = np.unique(kernel_choice.active().modular_differences(layout, shift, *sampled), return_counts=True)
    total = int(counts.sum())
    if int(counts.max()) * _LEAST_SHARE < total:
        return _NONE_FREQUENT
    wide = values.astype(np.int64)
    magnitudes = np.minimum(wide, (1 << 8 * layout.elem_bytes - shift) - wide)
    low = np.maximum(np.frexp(magnitudes.astype(np.float64))[1].astype(np.int64) - 2, 0)
    classes = magnitudes >> low << low
    gains = []
    for i in np.flatnonzero((low > 0) & (counts * _LEAST_SHARE > total)).tolist():
        count, of_class = int(counts[i]), int(counts[classes == classes[i]].sum())
        gain = count * (16 * (int(low[i]) + 1) - log2_16(of_class) + log2_16(count))  # sixteenths of a bit, in the sample
        if gain * changed.size // picked.size > 16 * _FREQUENT_BITS and gain > 16 * count:
            gains.append((-gain, int(values[i])))
    return np.array(sorted(value for _, value in sorted(gains)[:_MOST_FREQUENT]), np.uint32)


def _rates(scales: Bytes) -> Bytes:
    """Sizes of blocks' differences, log2, -> rates 1 to 15: the highest but for outliers is 15. Unchanged blocks have 0."""
    changed = np.sort(scales[scales != 0]).astype(np.int64)
    if not changed.size:
        return scales
    top = int(changed[-1 - changed.size // _OUTLIERS])
    rates: Bytes = np.where(scales, np.clip(scales.astype(np.int64) - top + MAX_RATE, 1, MAX_RATE), 0).astype(np.uint8)
    return rates
