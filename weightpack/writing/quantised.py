# SPDX-License-Identifier: Apache-2.0
"""Elements that were quantised once and written out again -> codes and scales (FORMAT section 18).

Releases that say bfloat16 are often fp8, MXFP4 or integers of 4 and 8 bits times a scale for each run, row or block, and merged adapters keep what
bitsandbytes, GPTQ and AWQ made of their base. Whether a tensor is such a one, of which grid and in which tiles, is found once, from samples; each tile's
scale is then proven bit by bit, and tiles that have none stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from math import lcm
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from weightpack import kernels as kernel_choice
from weightpack.format.constants import BLOCK_ELEMS, MAX_CHUNK_BYTES, MAX_TILE_SIDE, MAX_VALUES, VERBATIM_TILE, Codec
from weightpack.format.record import Tiling, build_quantised_chunk, chunk_bound
from weightpack.kernels import MAX_ANCHORS, Grid
from weightpack.kernels.integers import log2_16
from weightpack.reading.convert import convert
from weightpack.writing.choose import bytes_stream
from weightpack.writing.plain import encode_chunks, encode_plane

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes, Stream
    from weightpack.format.layouts import Layout
    from weightpack.options import PackOptions

    ReadElems = Callable[[int, int], Bytes]

_LEAST_ELEMS = 1 << 14
_WINDOWS, _WINDOW_ELEMS = 16, 128
_MANY_OF_LONG = 4 * 108  # quarters of a window's 128 elements: ordinary weights have more distinct ones, in every dtype
_SHORT, _MANY_OF_SHORT = 32, 4 * 31 - 2  # and of 32, where tiles are short, or are columns
_MANY_ELEMS = 1 << 18  # from here on columns are looked at as well
_RUNS = 16, 32, 64, 128, 256
_BLOCK = 128
_FIRST_ELEMS, _SAMPLE_ELEMS = 1 << 11, 1 << 14
_MOST_VERBATIM = 4  # one element in so many; above, a chunk is not worth a second way of coding
_SCALE_BITS = 4  # of a scale, beside its mantissa
_GAIN = 32  # what is gained must be one part in so many, at least
_MOST_ROW = 1 << 20  # elements; of longer rows no sample is taken


class Quantisation(NamedTuple):
    """What the elements of a tensor were quantised to, and which of them share a scale."""

    grid: Grid
    tiling: Tiling

    @property
    def step_elems(self) -> int:
        """A chunk is a multiple of this, so that no tile is in two."""
        cols, rows, _ = (1 if side == MAX_TILE_SIDE else side for side in self.tiling)  # what has no end takes any chunk
        return lcm(BLOCK_ELEMS, rows * cols)


# NF4 of QLoRA (Dettmers et al., arXiv:2305.14314, appendix E), and the FP4 of bitsandbytes.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = 0.005208333333333333, 0.16666667, 0.25, 0.33333333, 0.5, 0.66666667, 1.0


@cache
def _grids() -> tuple[Grid, ...]:
    """Integers of up to 8 bits, and those that were rounded as floats and have a minus zero; floats of 8 bits and of 4 (OCP Microscaling); NF4, FP4.

    Which integer the least is must be tried, and which mantissa the largest float has; a constant may be the largest of its tile or not.
    """
    least = np.arange(1, 9, dtype=np.float32)
    return (
        Grid("integers", np.arange(-128, 128, dtype=np.float32), least, from_least=True),
        Grid("rounded", _signed(np.arange(1, 128, dtype=np.float32)), least, from_least=True),
        Grid("e2m1", _floats(1, 0, 2), np.array([4, 6, 3, 2], np.float32), from_least=False),
        Grid("e4m3", _floats(3, -6, 8), 256 + 32 * np.arange(8, dtype=np.float32), from_least=False),
        Grid("e5m2", _floats(2, -14, 15), 32768 + 8192 * np.arange(4, dtype=np.float32), from_least=False),
        Grid("nf4", np.array(_NF4, np.float32), _magnitudes(_NF4), from_least=False),
        Grid("fp4", _signed(np.array(_FP4, np.float32)), _magnitudes(_FP4), from_least=False),
    )


def grid_named(name: str) -> Grid:
    """Return one of the grids that are tried."""
    return next(grid for grid in _grids() if grid.name == name)


def _magnitudes(values: tuple[float, ...]) -> NDArray[np.float32]:
    """Return what is no zero, the largest first."""
    magnitudes = np.unique(np.abs(np.array(values, np.float32)))[::-1]
    return np.ascontiguousarray(magnitudes[magnitudes > 0])


def _floats(mantissa_bits: int, least_exponent: int, most_exponent: int) -> NDArray[np.float32]:
    """Return all values of a small float, both zeros among them."""
    steps = np.arange(1 << mantissa_bits) / (1 << mantissa_bits)
    normal = ((1 + steps) * 2.0 ** np.arange(least_exponent, most_exponent + 1)[:, None]).reshape(-1)
    return _signed(np.concatenate([steps[1:] * 2.0**least_exponent, normal]).astype(np.float32))


def _signed(magnitudes: NDArray[np.float32]) -> NDArray[np.float32]:
    zero = np.zeros(1, np.float32)
    return np.concatenate([-magnitudes[::-1], -zero, zero, magnitudes])


def find_quantisation(read: ReadElems, n_bytes: int, layout: Layout, row_elems: int, options: PackOptions) -> Quantisation | None:
    """Say what a tensor was quantised to, from samples; None for ordinary weights, of which hardly more is looked at than a few windows.

    Parameters
    ----------
    read
        (offset, n_bytes) -> bytes of the tensor, which has `n_bytes`.
    row_elems
        Elements of a row; 0 if there are none.
    """
    n_elems = n_bytes // layout.elem_bytes
    if not layout.has_products or n_elems < _LEAST_ELEMS or not _repeats(read, n_elems, layout, row_elems):
        return None
    n = min(n_elems, _SAMPLE_ELEMS)
    begin = (n_elems - n) // 2 // _SAMPLE_ELEMS * _SAMPLE_ELEMS
    flat = read(begin * layout.elem_bytes, n * layout.elem_bytes)
    best, best_bits = None, _plain_bits(flat, layout, options) * (_GAIN - 1) // _GAIN
    for quantisation, bits in _fitting(read, n_elems, layout, row_elems, flat):
        if bits < best_bits and quantisation.step_elems * layout.elem_bytes <= MAX_CHUNK_BYTES:
            best, best_bits = quantisation, bits
    return best


def _repeats(read: ReadElems, n_elems: int, layout: Layout, row_elems: int) -> bool:
    """Do windows of a tensor, along rows or columns, hold fewer values than those of ordinary weights?"""

    def words(begin: int, n: int) -> NDArray[Any]:
        return read(begin * layout.elem_bytes, n * layout.elem_bytes).view(f"<u{layout.elem_bytes}")

    step = (n_elems - _WINDOW_ELEMS) // (_WINDOWS - 1)
    windows = np.stack([words(step * i // _WINDOW_ELEMS * _WINDOW_ELEMS, _WINDOW_ELEMS) for i in range(_WINDOWS)])
    if _few(windows, _MANY_OF_LONG) or _few(windows.reshape(-1, _SHORT), _MANY_OF_SHORT):
        return True
    if n_elems < _MANY_ELEMS or row_elems < _SHORT or n_elems < _SHORT * row_elems:
        return False
    begin = n_elems // row_elems // 2 * row_elems + row_elems // 2 // _SHORT * _SHORT
    columns = np.stack([words(begin + row * row_elems, _SHORT) for row in range(-_SHORT // 2, _SHORT // 2)]).T
    return _few(columns, _MANY_OF_SHORT)


def _few(windows: NDArray[Any], many: int) -> bool:
    """Have the windows, (n, n_elems), fewer than so many quarters of distinct elements on average? Constant ones tell nothing."""
    in_order = np.sort(windows, axis=1)
    distinct = 1 + np.count_nonzero(in_order[:, 1:] != in_order[:, :-1], axis=1)
    distinct = distinct[distinct > 1]
    return bool(distinct.size) and 4 * int(distinct.sum()) < many * distinct.size


def _plain_bits(sample: Bytes, layout: Layout, options: PackOptions) -> int:
    """Return the bits that `_SAMPLE_ELEMS` elements take otherwise."""
    n_elems = sample.size // layout.elem_bytes
    chunk_elems = -(-n_elems // BLOCK_ELEMS) * BLOCK_ELEMS
    room = np.empty(chunk_bound(layout, n_elems), np.uint8)
    return sum(chunk.n_bytes for chunk in encode_chunks(sample, layout, chunk_elems, 0, options, room)) * 8 * _SAMPLE_ELEMS // n_elems


def _fitting(read: ReadElems, n_elems: int, layout: Layout, row_elems: int, flat: Bytes) -> Iterator[tuple[Quantisation, int]]:
    """Return each grid and tiling that most of a sample fits, and the bits that `_SAMPLE_ELEMS` elements take so."""
    samples = _samples(read, n_elems, layout, row_elems)
    first = flat[: _FIRST_ELEMS * layout.elem_bytes]
    for grid in _grids():
        if _bits(layout, first, Tiling(_RUNS[0], 1, _RUNS[0]), grid) is not None:
            # What fits a long run fits a short one: so no more is tried when the first fails, and none that is longer than one that fails.
            for run in _RUNS:
                if (bits := _bits(layout, flat, Tiling(run, 1, run), grid)) is None:
                    break
                yield Quantisation(grid, Tiling(run, 1, run)), bits
            for tiling, sample, own in samples[1:]:
                if (bits := _bits(layout, sample, own, grid)) is not None:
                    yield Quantisation(grid, tiling), bits
        elif samples and (bits := _bits(layout, samples[0][1], samples[0][2], grid)) is not None:
            yield Quantisation(grid, samples[0][0]), bits
    words = np.unique(flat.view(f"<u{layout.elem_bytes}"))
    if words.size <= MAX_VALUES and (values := _as_floats(words, layout)) is not None:
        whole = Tiling(MAX_TILE_SIDE, 1, MAX_TILE_SIDE)
        grid = Grid("values", values, np.ascontiguousarray(np.unique(np.abs(values))[: -MAX_ANCHORS - 1 : -1]), from_least=False)
        if (bits := _bits(layout, flat, whole, grid)) is not None:
            yield Quantisation(grid, whole), bits


def _samples(read: ReadElems, n_elems: int, layout: Layout, row_elems: int) -> list[tuple[Tiling, Bytes, Tiling]]:
    """Return tilings by columns, rows and blocks, with samples that have tilings of their own; none if there are no rows."""
    n_rows = n_elems // row_elems if row_elems else 0
    if n_rows < _RUNS[0] or row_elems > _MOST_ROW:
        return []
    n, cols = min(n_rows, _BLOCK), min(row_elems, _BLOCK)
    row_bytes = row_elems * layout.elem_bytes
    begin = (n_rows - n) // 2 // _BLOCK * _BLOCK * row_bytes
    corner = np.concatenate([read(begin + i * row_bytes, cols * layout.elem_bytes) for i in range(n)])
    rows = read(begin, min(n, max(1, _SAMPLE_ELEMS // row_elems)) * row_bytes)
    return [
        (Tiling(row_elems, MAX_TILE_SIDE, 1), corner, Tiling(cols, MAX_TILE_SIDE, 1)),
        (Tiling(row_elems, 1, row_elems), rows, Tiling(row_elems, 1, row_elems)),
        (Tiling(row_elems, _BLOCK, cols), corner, Tiling(cols, _BLOCK, cols)),
    ]


def _as_floats(words: NDArray[Any], layout: Layout) -> NDArray[np.float32] | None:
    """Return elements as floats, ascending; None if one is no zero and no normal float."""
    values = convert(words.view(np.uint8), layout.id.name.removesuffix("_LEAD"), "F32").view(np.float32)
    magnitudes = np.abs(values)
    if not np.isfinite(values).all() or ((magnitudes < np.finfo(np.float32).tiny) & (magnitudes != 0)).any():
        return None
    return values[np.lexsort((~np.signbit(values), values))]


def _bits(layout: Layout, sample: Bytes, tiling: Tiling, grid: Grid) -> int | None:
    """Estimate the bits that `_SAMPLE_ELEMS` elements take as codes and scales, in integers; None if too many have no scale."""
    fitted = kernel_choice.active().quantised_fit(layout, sample, tiling, grid)
    n, scales = fitted.codes.size, fitted.scales[fitted.scales != VERBATIM_TILE]
    if fitted.n_verbatim * _MOST_VERBATIM > n:
        return None
    mantissas = (scales & 0x7FFFFF | 0x800000).astype(np.int64)
    trailing_zeros = np.frexp(mantissas & -mantissas)[1] - 1
    scale_bits = int((_SCALE_BITS + 23 - trailing_zeros).sum())
    counts = [count for count in kernel_choice.active().histogram(fitted.codes).tolist() if count]
    code_bits = (n * log2_16(n) - sum(count * log2_16(count) for count in counts)) // 16
    n_bits: int = (code_bits + scale_bits + fitted.n_verbatim * 8 * layout.elem_bytes) * _SAMPLE_ELEMS // n
    return n_bits


def encode_quantised(data: Bytes, layout: Layout, quantisation: Quantisation, options: PackOptions) -> bytes | None:
    """Encode one chunk as codes and scales; None if too many of its tiles have no scale."""
    grid, tiling = quantisation
    fitted = kernel_choice.active().quantised_fit(layout, data, tiling, grid)
    if fitted.n_verbatim * _MOST_VERBATIM > fitted.codes.size:
        return None
    used = np.flatnonzero(kernel_choice.active().histogram(fitted.codes))
    number = np.zeros(MAX_VALUES, np.uint8)
    number[used] = np.arange(used.size)
    streams: list[Stream] = [(Codec.RAW, grid.values[used].astype("<f4").view(np.uint8))]
    streams += [encode_plane(np.ascontiguousarray(plane), options) for plane in fitted.scales.astype(">u4").view(np.uint8).reshape(-1, 4).T]
    codes = np.frombuffer(fitted.codes.tobytes().translate(number.tobytes()), np.uint8)
    streams += [encode_plane(codes, options)]
    verbatim = data[:0]
    if fitted.n_verbatim:
        verbatim = data.reshape(-1, layout.elem_bytes)[fitted.scales[tiling.tile_of(fitted.codes.size)] == VERBATIM_TILE].reshape(-1)
    return build_quantised_chunk([*streams, bytes_stream(verbatim, options)], tiling, used.size)
