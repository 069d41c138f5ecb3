# SPDX-License-Identifier: Apache-2.0
"""Codes and scales on every backend: the same from each, decoded by each and by the reference decoder; damage refused alike.

Sections are those of docs/FORMAT.md.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import quantised
from backends import BACKENDS, CONSTANT, HUFFMAN, NAMES, RAW, ZSTD, chunk_crc, same

from weightpack import kernels, reference
from weightpack.errors import ChecksumError, CorruptionError, FormatError, TruncatedError, UnsupportedError
from weightpack.format.constants import MAX_TILE_SIDE, VERBATIM_TILE, Mode
from weightpack.format.layouts import LAYOUTS, LayoutId, layout_of
from weightpack.format.record import Tiling, build_chunk, build_quantised_chunk
from weightpack.kernels import Grid
from weightpack.options import PackOptions
from weightpack.reading.chunks import decode_chunks
from weightpack.writing.choose import zstd_stream
from weightpack.writing.quantised import Quantisation, encode_quantised, grid_named

PRODUCTS = [layout for layout in LAYOUTS.values() if layout.has_products]
by_layout = pytest.mark.parametrize("layout", PRODUCTS, ids=lambda layout: layout.id.name)
WHOLE = MAX_TILE_SIDE
TILINGS = [Tiling(32, 1, 32), Tiling(48, 4, 16), Tiling(50, 3, 7), Tiling(40, WHOLE, 1), Tiling(WHOLE, 1, WHOLE), Tiling(1, 1, 1), Tiling(1, 5, 1)]
ONE = 0x3F800000


def floats(values):
    return np.array(values, "<f4").view(np.uint8)


def planes(scales):
    return np.ascontiguousarray(np.array(scales, ">u4").view(np.uint8).reshape(-1, 4).T).reshape(-1)


def dtype_of(layout):
    return layout.id.name.removesuffix("_LEAD")


def fit(layout, words, tiling, grid):
    """Fit with every backend."""
    results = {}
    for name, backend in BACKENDS.items():
        fitted = backend.quantised_fit(layout, np.ascontiguousarray(words).reshape(-1).view(np.uint8), tiling, grid)
        results[name] = fitted.scales.tolist(), fitted.codes.tolist(), fitted.n_verbatim
    return same(results)


def decode(layout, values, scales, tiling, codes, verbatim=b""):
    """Decode with every backend: their words, or the class of what they raise."""
    results = {}
    for name, backend in BACKENDS.items():
        out = np.empty(len(codes) * layout.elem_bytes, np.uint8)
        try:
            crc = backend.quantised_decode(layout, floats(values), planes(scales), tiling, np.array(codes, np.uint8), verbatim, 5, out)
        except FormatError as error:
            results[name] = type(error)
        else:
            assert crc == chunk_crc(out, 5)
            results[name] = out.tobytes()
    result = same(results)
    return result if isinstance(result, type) else np.frombuffer(result, f"<u{layout.elem_bytes}")


def outcome(layout, chunk, n, crc):
    """Decode a chunk on every backend and by the reference decoder: the elements, or the class of what is raised."""
    chunk = bytes(chunk)
    chunk += bytes(-len(chunk) % 16)
    results = {}
    for name in NAMES:
        out = np.empty(n * layout.elem_bytes, np.uint8)
        with kernels.use_isa(name):
            try:
                decode_chunks(layout, chunk, np.array([0, len(chunk)]), np.array([crc], np.uint32), 128 * -(-n // 128), n, 0, out)
            except FormatError as error:
                results[name] = type(error)
            else:
                results[name] = out.tobytes()
    result = same(results)
    try:
        expected, _ = reference.decode_chunk(chunk, 0, reference.LAYOUTS[layout.id], n)
    except reference.UnsupportedError:
        assert result is UnsupportedError
    except reference.FormatError:
        assert result in (CorruptionError, TruncatedError), result
    else:
        assert result == expected or (result is ChecksumError and reference.numbered_crc(0, expected) != crc)
    return result


# ---- products


@by_layout
def test_products_are_rounded_twice_to_the_nearest(layout):
    """18.3: single precision first; ties to even, both zeros, subnormal numbers of F16, infinity beyond the largest."""
    rng = np.random.default_rng(3)
    special = [-0.0, 0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-9, 2**-14, 2**-24, 3 * 2**-25, 65504, 65520]
    values = np.sort(np.concatenate([rng.normal(0, 1, 200), special])).astype(np.float32)
    scales = np.concatenate([np.exp2(rng.uniform(-20, 4, 30)), [1, 2**-10, 1 + 2**-23, 1.5]]).astype(np.float32)
    codes = np.tile(np.arange(values.size), scales.size)
    words = decode(layout, values, scales.view(np.uint32), Tiling(values.size, 1, values.size), codes)
    expected = quantised.words((scales[:, None].astype(np.float64) * values).astype(np.float32), dtype_of(layout))
    assert words.tolist() == expected.reshape(-1).tolist()


@by_layout
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("n", [1, 31, 128, 150, 1000])
def test_each_tile_has_its_scale(layout, tiling, n):
    n_tiles = tiling.tiles(n)
    scales = (1 + np.arange(n_tiles) % 97).astype(np.float32)
    if n_tiles > n:
        assert decode(layout, [1.0], scales.view(np.uint32), tiling, [0] * n) is CorruptionError
        return
    words = decode(layout, [1.0], scales.view(np.uint32), tiling, [0] * n)
    assert words.tolist() == quantised.words(scales[tiling.tile_of(n)], dtype_of(layout)).tolist()
    rows, cols = np.divmod(np.arange(n), tiling.cols)
    across = -(-tiling.cols // tiling.tile_cols)
    assert tiling.tile_of(n).tolist() == (rows // tiling.tile_rows * across + cols // tiling.tile_cols).tolist()


@by_layout
def test_tiles_without_a_scale_are_verbatim(layout):
    word = f"<u{layout.elem_bytes}"
    elems = np.random.default_rng(1).integers(0, 1 << 8 * layout.elem_bytes, 60).astype(word)
    scales, tiling = [ONE, VERBATIM_TILE, VERBATIM_TILE, ONE], Tiling(60, 2, 30)
    codes = [1] * 30 + [0] * 30 + [1] * 30 + [0] * 30 + [0] * 30 + [1] * 30 + [0] * 30 + [1] * 30
    words = decode(layout, [0.5, 1.0], scales, tiling, codes, np.concatenate([elems, elems]).tobytes())
    one = quantised.words(np.ones(30, np.float32), dtype_of(layout)).tolist()
    kept = elems.tolist()
    assert words.tolist() == one + kept[:30] + one + kept[30:] + kept[:30] + one + kept[30:] + one
    assert decode(layout, [0.5, 1.0], scales, tiling, codes, elems.tobytes()) is TruncatedError
    assert decode(layout, [0.5, 1.0], scales, tiling, codes, np.concatenate([elems, elems, elems[:1]]).tobytes()) is CorruptionError
    assert decode(layout, [0.5, 1.0], scales, tiling, [1] * 240, np.concatenate([elems, elems]).tobytes()) is CorruptionError


DAMAGE = {
    "a value that is infinite": ([1.0, np.inf], [ONE]),
    "a value that is none": ([np.nan, 1.0], [ONE]),
    "a subnormal value": ([2.0**-130, 1.0], [ONE]),
    "a negative scale": ([1.0, 2.0], [ONE | 1 << 31]),
    "a scale of zero": ([1.0, 2.0], [0]),
    "a negative scale of zero": ([1.0, 2.0], [1 << 31]),
    "a subnormal scale": ([1.0, 2.0], [1]),
    "an infinite scale": ([1.0, 2.0], [0x7F800000]),
    "a scale that is none": ([1.0, 2.0], [0x7FC00000]),
    "a product that is subnormal": ([1.0, 2.0**-100], [0x0D800000]),
    "a product beyond all": ([1.0, 2.0**100], [0x72000000]),
    "no value for a code": ([1.0], [ONE]),
}


@by_layout
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_alike(layout, damage):
    values, scales = DAMAGE[damage]
    assert decode(layout, values, scales, Tiling(128, 1, 128), [0, 1] * 20) is CorruptionError
    chunk = build_quantised_chunk([(RAW, floats(values)), *_scale_streams(scales), (RAW, bytes([0, 1] * 20)), (RAW, b"")], Tiling(128, 1, 128), len(values))
    assert outcome(layout, chunk, 40, 0) is CorruptionError


def test_products_at_the_bounds_are_good():
    """18.3: at least 2^-126, at most the largest float; zeros always."""
    layout, tiling = LAYOUTS[LayoutId.F32], Tiling(128, 1, 128)
    largest = float(np.finfo(np.float32).max)
    for values, scale in (([0.0, 2.0**-126], 1.0), ([-0.0, largest], 1.0), ([0.0, 2.0**-100], 2.0**-26), ([1.0, 2.0**63], largest / 2.0**63)):
        words = decode(layout, values, [int(np.float32(scale).view(np.uint32))], tiling, [0, 1])
        assert words.view(np.float32)[1] == np.float32(values[1] * scale)
        assert np.signbit(words.view(np.float32)[0]) == np.signbit(values[0])


# ---- chunks


def _scale_streams(scales):
    return [(RAW, plane.tobytes()) for plane in planes(scales).reshape(4, -1)]


GOOD = [(RAW, floats([-1.0, 0.0, 1.0])), *_scale_streams([ONE, VERBATIM_TILE]), (RAW, bytes([0, 1, 2, 2, 0, 0])), (RAW, bytes(range(4)))]


def good_crc():
    words = np.concatenate([quantised.words(np.array([-1, 0, 1, 1], np.float32), "BF16"), np.frombuffer(bytes(range(4)), "<u2")])
    return chunk_crc(words.view(np.uint8), 0)


def changed(**streams):
    names = {"values": 0, "scale": 1, "codes": 5, "verbatim": 6}
    every = list(GOOD)
    for name, stream in streams.items():
        every[names[name]] = stream
    return build_quantised_chunk(every, Tiling(4, 1, 4), 3)


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (changed(), None),
        (changed(values=(ZSTD, zstd_stream(floats([-1.0, 0.0, 1.0]), PackOptions()))), None),
        (changed(verbatim=(ZSTD, zstd_stream(np.arange(4, dtype=np.uint8), PackOptions()))), None),
        (changed(codes=(ZSTD, zstd_stream(np.array([0, 1, 2, 2, 0, 0], np.uint8), PackOptions()))), None),
        (changed(verbatim=(RAW, bytes(range(3)))), TruncatedError),
        (changed(verbatim=(RAW, bytes(range(5)))), CorruptionError),
        (changed(verbatim=(ZSTD, zstd_stream(np.arange(5, dtype=np.uint8), PackOptions()))), CorruptionError),
        (changed(verbatim=(ZSTD, zstd_stream(np.arange(99, dtype=np.uint8), PackOptions()))), CorruptionError),
        (changed(verbatim=(CONSTANT, b"\0")), CorruptionError),
        (changed(verbatim=(HUFFMAN, b"\0")), CorruptionError),
        (changed(verbatim=(99, b"\0")), UnsupportedError),
        (changed(codes=(99, b"\0")), UnsupportedError),
        (changed(values=(99, b"\0")), UnsupportedError),
        (changed(scale=(7, b"\0")), CorruptionError),
        (changed(codes=(RAW, bytes(5))), TruncatedError),
        (changed(codes=(RAW, bytes(7))), CorruptionError),
        (changed(codes=(RAW, bytes([0, 1, 2, 2, 0, 1]))), CorruptionError),
        (changed(values=(RAW, bytes(11))), TruncatedError),
        (build_quantised_chunk(GOOD, Tiling(0, 1, 1), 3), CorruptionError),
        (build_quantised_chunk(GOOD, Tiling(4, 0, 4), 3), CorruptionError),
        (build_quantised_chunk(GOOD, Tiling(4, 1, 0), 3), CorruptionError),
        (build_quantised_chunk(GOOD, Tiling(4, 1, 5), 3), CorruptionError),
        (build_quantised_chunk(GOOD, Tiling(WHOLE + 1, 1, 4), 3), CorruptionError),
        (build_quantised_chunk(GOOD, Tiling(4, WHOLE + 1, 4), 3), CorruptionError),
        (build_quantised_chunk(GOOD, Tiling(7, 1, 1), 3), CorruptionError),
        (build_quantised_chunk(GOOD, Tiling(4, 1, 4), 0), CorruptionError),
        (build_quantised_chunk(GOOD, Tiling(4, 1, 4), 257), CorruptionError),
        (build_quantised_chunk(GOOD[:-1], Tiling(4, 1, 4), 3), CorruptionError),
        (build_chunk(Mode.QUANTISED, GOOD, struct.pack("<IIIHH", 4, 1, 4, 3, 1)), CorruptionError),
        (build_chunk(Mode.QUANTISED, [(RAW, b"")] * 7)[:40], TruncatedError),
    ],
)  # fmt: skip
def test_each_field_of_a_chunk_is_checked(chunk, expected):
    """6.9, 18.1, 18.2; product and reference decoder refuse for the same kind of reason."""
    result = outcome(LAYOUTS[LayoutId.BF16], chunk, 6, good_crc())
    assert isinstance(result, bytes) if expected is None else result is expected


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS.values() if not layout.has_products], ids=lambda layout: layout.id.name)
def test_other_layouts_have_no_such_chunks(layout):
    assert outcome(layout, changed(), 6, 0) is CorruptionError


def test_every_prefix_of_a_chunk_is_refused():
    layout, words = layout_of("F16"), quantised.groups_of_integers(4, 128, "F16", 4, 32)
    chunk = encode_quantised(words.reshape(-1).view(np.uint8), layout, Quantisation(grid_named("integers"), Tiling(32, 1, 32)), PackOptions())
    crc = chunk_crc(words.reshape(-1).view(np.uint8), 0)
    assert outcome(layout, chunk, words.size, crc) == words.tobytes()
    for n in range(0, len(chunk) - 15, 7):
        assert isinstance(outcome(layout, chunk[:n], words.size, crc), type)


# ---- fitting


@pytest.mark.parametrize("kind", quantised.kinds(40, 128))
def test_every_backend_finds_the_same_scales(kind):
    dtype, words = quantised.kinds(40, 128)[kind]
    for name in ("integers", "rounded", "e2m1", "e4m3", "nf4", "fp4"):
        for tiling in (Tiling(16, 1, 16), Tiling(128, 1, 128), Tiling(128, 16, 30), Tiling(128, WHOLE, 1)):
            scales, codes, n_verbatim = fit(layout_of(dtype), words, tiling, grid_named(name))
            verbatim = np.array(scales, np.uint32)[tiling.tile_of(words.size)] == VERBATIM_TILE
            assert np.count_nonzero(verbatim) == n_verbatim
            assert not np.array(codes)[verbatim].any()
            grid = grid_named(name)
            decoded = decode(layout_of(dtype), grid.values, scales, tiling, codes, words.reshape(-1)[verbatim].tobytes())
            assert decoded.tolist() == words.reshape(-1).tolist()


@by_layout
def test_special_elements_have_no_scale_or_the_right_one(layout):
    """Infinities, NaNs, subnormal numbers, zeros of both signs, the largest: alone and beside ordinary ones, on every backend."""
    width, word = 8 * layout.elem_bytes, f"<u{layout.elem_bytes}"
    top = ((1 << layout.exponent_bits) - 1) << (width - 1 - layout.exponent_bits)
    special = [0, 1, 2, top - 1, top, top + 1, (1 << width - 1) - 1, 1 << width - 1, (1 << width - 1) + 1, (1 << width) - 1]
    half = int(quantised.words(np.array([0.5], np.float32), dtype_of(layout))[0])
    for grid in (grid_named("integers"), grid_named("rounded"), grid_named("e4m3"), grid_named("nf4")):
        tiles = [[word_] * 4 for word_ in special] + [[word_, half, half, 0] for word_ in special]
        words = np.array(tiles, word)
        scales, codes, _ = fit(layout, words, Tiling(4, 1, 4), grid)
        verbatim = np.array(scales, np.uint32).repeat(4) == VERBATIM_TILE
        decoded = decode(layout, grid.values, scales, Tiling(4, 1, 4), codes, words.reshape(-1)[verbatim].tobytes())
        assert decoded.tolist() == words.reshape(-1).tolist()


def test_a_tile_of_too_many_elements_has_no_scale():
    words = quantised.words(np.random.default_rng(2).normal(0, 1, (2, 700)).astype(np.float32), "F32")
    grid = Grid("any", np.linspace(-1, 1, 256, dtype=np.float32), np.ones(1, np.float32), from_least=False)
    scales, codes, n_verbatim = fit(layout_of("F32"), words, Tiling(700, 1, 700), grid)
    assert scales == [VERBATIM_TILE] * 2
    assert n_verbatim == words.size
    assert not any(codes)


def test_the_simplest_scale_is_taken():
    """Of all scales that give the elements, the one with the fewest bits: it costs the least."""
    words = quantised.words(np.array([[-3, -1, 0, 2, 5, 7, 1, 4]], np.float32) * np.float32(0.75), "BF16")
    scales, _, _ = fit(layout_of("BF16"), words, Tiling(8, 1, 8), grid_named("integers"))
    assert np.array(scales, np.uint32).view(np.float32).tolist() == [0.75]
