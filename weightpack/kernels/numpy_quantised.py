# SPDX-License-Identifier: Apache-2.0
"""Values times scales in numpy (FORMAT section 18), and the scales of tiles found: what native/src/quantised.c does, double for double."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.errors import TruncatedError
from weightpack.format.constants import MAX_VALUES, VERBATIM_TILE
from weightpack.kernels.interface import FittedTiles
from weightpack.kernels.numpy_checks import expect, need, u8

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Buffer, Bytes, Words
    from weightpack.format.layouts import Layout
    from weightpack.format.record import Tiling
    from weightpack.kernels.interface import Grid

    Doubles = NDArray[np.float64]

_LARGEST, _LEAST_NORMAL = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_MOST_DISTINCT = 512


def quantised_decode(layout: Layout, values: Bytes, scales: Bytes, tiling: Tiling, codes: Bytes, verbatim: Buffer, out: Bytes) -> None:
    """As `wp_quantised_decode` of the native core, but for the CRC."""
    n_tiles = tiling.tiles(codes.size)
    need(layout.has_products and 0 < values.size <= 4 * MAX_VALUES and n_tiles <= codes.size, "the chunk's tiles")
    expect(scales.size == 4 * n_tiles, "scales")
    floats = values.view("<f4")
    need(not _irregular(floats.view("<u4") & 0x7FFFFFFF, zero=True).any(), "a value of the chunk")
    need(int(codes.max()) < floats.size, "a code of the chunk")
    bits = np.zeros(n_tiles, np.uint32)
    for plane in scales.reshape(4, -1):
        bits = bits << np.uint32(8) | plane
    has_scale = bits != VERBATIM_TILE
    need(not _irregular(bits[has_scale], zero=False).any() and not (bits[has_scale] >> 31).any(), "a scale of the chunk")
    magnitudes = np.abs(floats[floats != 0]).astype(np.float64)
    products = bits[has_scale].view(np.float32).astype(np.float64)[:, None] * (np.array([magnitudes.min(), magnitudes.max()]) if magnitudes.size else 1.0)
    need(not magnitudes.size or bool((products[:, 0] >= _LEAST_NORMAL).all() and (products[:, -1] <= _LARGEST).all()), "a product of the chunk")
    tile = tiling.tile_of(codes.size)
    coded = has_scale[tile]
    need(not codes[~coded].any(), "a code of a tile without a scale")
    elems, words = u8(verbatim), out[: codes.size * layout.elem_bytes].view(_word(layout))
    n_verbatim = int(np.count_nonzero(~coded)) * layout.elem_bytes
    need(elems.size >= n_verbatim, "the elements of tiles without a scale", TruncatedError)
    need(elems.size == n_verbatim, "the elements of tiles without a scale")
    scale = np.where(has_scale, bits, 0).view(np.float32).astype(np.float64)
    words[:] = _rounded(layout, scale[tile] * floats.astype(np.float64)[codes])
    words[~coded] = elems.view(_word(layout))


def quantised_fit(layout: Layout, elems: Bytes, tiling: Tiling, grid: Grid) -> FittedTiles:
    """As `wp_quantised_fit` of the native core."""
    words = elems.view(_word(layout))
    scales, codes = np.full(tiling.tiles(words.size), VERBATIM_TILE, np.uint32), np.zeros(words.size, np.uint8)
    n_verbatim = 0
    for tile, places in enumerate(_tiles(tiling, words.size)):
        distinct, number = np.unique(_keys(words[places], layout), return_inverse=True)
        fitted = _fit_tile(layout, distinct, grid) if distinct.size < _MOST_DISTINCT else None
        if fitted is None:
            n_verbatim += places.size
        else:
            scales[tile], code_of = fitted
            codes[places] = code_of[number]
    return FittedTiles(scales, codes, n_verbatim)


def _word(layout: Layout) -> str:
    return f"<u{layout.elem_bytes}"


def _irregular(magnitudes: NDArray[Any], *, zero: bool) -> NDArray[np.bool_]:
    """Which bits are of infinities, NaNs, subnormals and, unless they are allowed, zeros?"""
    exponents = magnitudes >> 23 & 255
    irregular: NDArray[np.bool_] = (exponents == 255) | ((exponents == 0) & (not zero or magnitudes != 0))
    return irregular


def _tiles(tiling: Tiling, n_elems: int) -> Iterator[NDArray[np.int64]]:
    """Return the places of each tile's elements."""
    tile = tiling.tile_of(n_elems)
    order = np.argsort(tile, kind="stable")
    yield from np.split(order, np.searchsorted(tile[order], np.arange(1, tiling.tiles(n_elems))))


def _rounded(layout: Layout, products: Doubles) -> NDArray[Any]:
    """Round exact products to single precision, then to the layout's own, to the nearest, ties to even."""
    single = products.astype(np.float32)
    if layout.elem_bytes == 4:
        return single.view(np.uint32)
    if layout.exponent_bits == 5:
        with np.errstate(over="ignore"):
            return single.astype(np.float16).view(np.uint16)
    bits = single.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _keys(words: NDArray[Any], layout: Layout) -> Words:
    """Turn the sign to the lowest bit, so that keys rise with the magnitude."""
    width = 8 * layout.elem_bytes
    keys = words.astype(np.uint64)
    return ((keys << np.uint64(1) & np.uint64((1 << width) - 1)) | keys >> np.uint64(width - 1)).astype(np.uint32)


def _doubles(magnitudes: NDArray[Any], layout: Layout) -> Doubles:
    """Return the values of magnitudes, infinity among them: for halves it is what would follow the largest."""
    if layout.elem_bytes == 4:
        return magnitudes.astype(np.uint32).view(np.float32).astype(np.float64)
    if layout.exponent_bits == 8:
        return (magnitudes.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    infinite = magnitudes == 0x7C00
    return np.where(infinite, 65536.0, np.where(infinite, 0, magnitudes).astype(np.uint16).view(np.float16).astype(np.float64))


def _fit_tile(layout: Layout, distinct: Words, grid: Grid) -> tuple[int, Bytes] | None:
    """Find the scale of a tile with these distinct elements, ascending keys; return its bits and the code of each."""
    if not distinct.size:
        return None
    bits = grid.values.view(np.uint32)
    zeros = {sign: int(np.flatnonzero(bits == sign << 31)[0]) if (bits == sign << 31).any() else None for sign in (0, 1)}
    infinity = ((1 << layout.exponent_bits) - 1) << layout.exponent_shift
    if int(distinct[-1]) >> 1 >= infinity:
        return None
    magnitudes = [key >> 1 for key in distinct.tolist()]
    first = next((i for i, magnitude in enumerate(magnitudes) if magnitude), None)
    least = float(np.abs(grid.values[grid.values != 0]).min())
    most = float(np.abs(grid.values).max())
    if first is None:
        codes = [zeros[int(key)] for key in distinct]
        return (0x3F800000, np.array(codes, np.uint8)) if None not in codes else None
    around = np.array([magnitudes[i] + step for step in (-1, 0, 1) for i in range(first, len(magnitudes))])
    before, value, after = _doubles(around, layout).reshape(3, -1)
    low, high = (before + value) / 2, value + (after - value) / 2
    for anchor in grid.anchors.tolist():
        fitted = _fit_anchor(layout, distinct, first, (low, value, high), anchor, grid, zeros)
        if fitted is not None:
            scale = float(np.array(fitted[0], np.uint32).view(np.float32))
            return fitted if scale * most <= _LARGEST and scale * least >= _LEAST_NORMAL else None
    return None


def _fit_anchor(
    layout: Layout, distinct: Words, first: int, bounds: tuple[Doubles, Doubles, Doubles], anchor: float, grid: Grid, zeros: dict[int, int | None]
) -> tuple[int, Bytes] | None:
    """Narrow the interval of scales by one element after the other."""
    lows, values, highs = (bound.tolist() for bound in bounds)
    every = grid.values.astype(np.float64)
    grid_values, between = every.tolist(), ((every[:-1] + every[1:]) / 2).tolist()
    at = 0 if grid.from_least else len(values) - 1
    low, high = lows[at] / anchor, highs[at] / anchor
    inverse = 1 / ((low + high) / 2)
    codes = [zeros[int(key)] for key in distinct[:first]]
    for i, key in enumerate(distinct[first:].tolist()):
        x = values[i] * inverse
        code = bisect_left(between, -x if key & 1 else x)
        value = -grid_values[code] if key & 1 else grid_values[code]
        if value <= 0:
            return None
        codes.append(code)
        low, high = max(low, lows[i] * (1 / value)), min(high, highs[i] * (1 / value))
        if low > high:
            return None
        inverse = 1 / ((low + high) / 2)
    if None in codes:
        return None
    code_of = np.array(codes, np.uint8)
    keys = distinct.astype(np.uint64)
    expected = (keys >> np.uint64(1) | (keys & np.uint64(1)) << np.uint64(8 * layout.elem_bytes - 1)).astype(_word(layout))
    for scale in (_simplest(low, high), _bits((low + high) / 2)):
        if 0 < scale >> 23 < 255:
            single = float(np.array(scale, np.uint32).view(np.float32))
            if np.array_equal(_rounded(layout, single * every[code_of]), expected):
                return scale, code_of
    return None


def _bits(value: float) -> int:
    with np.errstate(over="ignore"):
        return int(np.float32(value).view(np.uint32))


def _simplest(low: float, high: float) -> int:
    """Return the float in [low, high] with the most trailing zeros; 0 if there is none."""
    a, b = _bits(low), _bits(high)
    a += float(np.array(a, np.uint32).view(np.float32)) < low
    b -= float(np.array(b, np.uint32).view(np.float32)) > high
    if a > b:
        return 0
    mask = (1 << (a ^ b).bit_length()) - 1
    return a if a & mask == 0 else b & ~(mask >> 1)
