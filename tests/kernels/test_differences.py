# SPDX-License-Identifier: Apache-2.0
"""Differences on every backend: the same bytes from each, decoded by each other; damage refused alike. Sections are those of docs/FORMAT.md."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
from backends import BACKENDS, CONDITIONAL, CONSTANT, CONTEXT, FASTEST, HUFFMAN, NAMES, RANS, RAW, ZSTD, chunk_crc, same
from elements import moved

from weightpack import kernels
from weightpack.errors import ChecksumError, CorruptionError, FormatError, TruncatedError, UnsupportedError, WeightpackError
from weightpack.format.constants import MAX_FREQUENT, MAX_SCALED_COLS, Mode
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import build_chunk, build_difference_chunk, parse_chunk
from weightpack.kernels import ConditionalBooks, RansBook
from weightpack.options import PackOptions
from weightpack.reading.chunks import decode_chunks
from weightpack.writing.choose import zstd_stream
from weightpack.writing.differences import _rates, encode_difference, encode_scaled

DIFFERING = [layout for layout in LAYOUTS.values() if layout.elem_bytes <= 4]
SCALED = [LAYOUTS[i] for i in (LayoutId.F32, LayoutId.BF16, LayoutId.F32_LEAD, LayoutId.BF16_LEAD)]
by_layout = pytest.mark.parametrize("layout", DIFFERING, ids=lambda layout: layout.id.name)
NONE = np.empty(0, np.uint32)  # frequent differences
CHANGES = ["none", "sparse", "steps", "dense", "some_blocks", "far_blocks"]
# 14.4: where the exponent of a base element is.
EXPONENTS = {
    LayoutId.BYTES1: (4, 4), LayoutId.BYTES2: (0, 0), LayoutId.BYTES4: (0, 0), LayoutId.BF16: (7, 8), LayoutId.F16: (10, 5), LayoutId.F32: (23, 8),
    LayoutId.F8_E4M3: (3, 4), LayoutId.F8_E5M2: (2, 5), LayoutId.BF16_LEAD: (7, 8), LayoutId.F16_LEAD: (10, 5), LayoutId.F32_LEAD: (23, 8),
    LayoutId.F8_E4M3_LEAD: (3, 4), LayoutId.F8_E5M2_LEAD: (2, 5),
}  # fmt: skip


# ---- inputs


def special_words(layout):
    """Both zeros, the smallest and the largest, infinities, NaN with payloads, all ones, and their neighbours."""
    w, mantissa = 8 * layout.elem_bytes, layout.mantissa_bits or 0
    top = (1 << w - 1 - mantissa) - 1 << mantissa  # infinity, where there is one
    words = {x + d for x in (0, 1 << w - 1, top, top | 1 << w - 1, (1 << w) - 1, 1 << mantissa, 1 << w - 2) for d in (-2, -1, 0, 1, 2)}
    return np.array(sorted(x & (1 << w) - 1 for x in words), f"<u{layout.elem_bytes}")


def base_words(layout, n, rng):
    """Weights mostly, and special words among them."""
    word = f"<u{layout.elem_bytes}"
    if layout.raw_bits and layout.elem_bytes == 4:
        words = (rng.standard_normal(n) * 0.03).astype("<f4").view("<u4")
    elif layout.raw_bits and layout.elem_bytes == 2 and EXPONENTS[layout.id][1] == 8:
        words = ((rng.standard_normal(n) * 0.03).astype("<f4").view("<u4") >> 16).astype("<u2")
    elif layout.raw_bits and layout.elem_bytes == 2:
        words = (rng.standard_normal(n) * 0.03).astype("<f2").view("<u2")
    else:
        words = rng.integers(0, 1 << 8 * layout.elem_bytes, n).astype(word)
    return np.where(rng.random(n) < 0.1, rng.choice(special_words(layout), n), words).astype(word)


def in_order(words, layout, shift=0):
    """14.2, of integers of any width."""
    bits = 8 * layout.elem_bytes - shift
    words = words.astype(np.int64)
    return words ^ (words >> bits - 1) * ((1 << bits - 1) - 1) if layout.raw_bits else words


def turned(base, layout, shift=0):
    """14.2, g: -1 for base elements that are negative floats."""
    return 1 - 2 * (base.astype(np.int64) >> 8 * layout.elem_bytes - shift - 1) if layout.raw_bits else 1


def changed_words(layout, base, kind, shift, rng):
    """Elements whose lower `shift` bits are 0; of the base's, too, where nothing is to change."""
    n, bits = base.size, 8 * layout.elem_bytes - shift
    cut = (base >> shift).astype(base.dtype)
    if kind == "none":
        return cut << shift
    if kind == "dense":
        words = np.where(rng.random(n) < 0.3, rng.choice(special_words(layout), n), rng.integers(0, 1 << 8 * layout.elem_bytes, n)).astype(base.dtype)
        return words >> shift << shift
    steps = np.rint(rng.standard_normal(n) * 3).astype(np.int64)
    if kind == "sparse":
        steps = np.where(rng.random(n) < 0.02, np.sign(steps), 0)
    elif kind == "some_blocks":
        steps = np.where(np.arange(n) // 128 % 3 == 1, steps, 0)
    elif kind == "far_blocks":
        steps = np.where(np.arange(n) // 128 % 2 == 0, steps << rng.integers(0, bits, n), steps)
    moved_words = in_order(in_order(cut, layout, shift) + steps & (1 << bits) - 1, layout, shift)
    return (moved_words << shift).astype(base.dtype)


def differences_of(layout, shift, elems, base):
    """14.2, modulo 2^v; of bytes."""
    word = f"<u{layout.elem_bytes}"
    elems, base = (each.view(word) >> shift for each in (elems, base))
    return (in_order(elems, layout, shift) - in_order(base, layout, shift)) * turned(base, layout, shift) & (1 << 8 * layout.elem_bytes - shift) - 1


def some_frequent(layout, shift, elems, base, count, rng):
    """Differences that are there, the most frequent first, one of them twice, and some that are not."""
    values, counts = np.unique(differences_of(layout, shift, elems, base), return_counts=True)
    there = values[np.argsort(-counts, kind="stable")]
    pool = np.concatenate([there[: max(1, count - 2)], there[:1], rng.integers(0, 1 << 8 * layout.elem_bytes - shift, count)])
    return pool[:count].astype(np.uint32)


def u8(words):
    return np.array(words, np.uint8) if isinstance(words, list) else np.ascontiguousarray(words).view(np.uint8)


# ---- chunks


def planes_of(layout, shift, elems, base):
    """Exponents and scales, from every backend."""
    both = {name: backend.difference_planes(layout, shift, elems, base) for name, backend in BACKENDS.items()}
    exponents, scales = same({name: (bytes(e), bytes(s)) for name, (e, s) in both.items()})
    return np.frombuffer(exponents, np.uint8), np.frombuffer(scales, np.uint8)


def code_of(layout, shift, elems, base, rates, base_exponent, frequent=NONE):
    codes = {name: backend.difference_code(layout, shift, elems, base, rates, base_exponent, frequent) for name, backend in BACKENDS.items()}
    same({name: (bytes(c.cells), bytes(c.classes), c.counts.tobytes(), bytes(c.extras)) for name, c in codes.items()})
    return codes[NAMES[-1]]


def class_stream(codec, code, base_exponent):
    """(codec, stream), the same from every backend; raw where the codec is not for these classes."""
    n_classes = len(set(code.classes.tolist()))
    if codec == CONDITIONAL:
        books = same({name: choose_key(backend, code.counts, base_exponent) for name, backend in BACKENDS.items()})
        books = ConditionalBooks(list(books[0]), np.frombuffer(books[1], np.uint8), *books[2:])
        return codec, same({name: bytes(backend.conditional_encode(books, code.cells, code.classes)) for name, backend in BACKENDS.items()})
    if codec == ZSTD:
        return codec, bytes(zstd_stream(code.classes, PackOptions()))
    if codec == CONSTANT and n_classes == 1:
        return codec, bytes(code.classes[:1])
    if codec in (RANS, HUFFMAN) and n_classes > 1:
        counts = FASTEST.histogram(code.classes)
        if codec == HUFFMAN:
            return codec, bytes(FASTEST.huffman_encode(FASTEST.huffman_lengths(counts), code.classes))
        return codec, bytes(FASTEST.rans_encode(FASTEST.rans_choose(counts)[0], code.classes))
    return RAW, bytes(code.classes)


def choose_key(backend, counts, base_exponent):
    chosen = backend.conditional_books(counts, base_exponent)
    return tuple(chosen.books), bytes(chosen.book_of), chosen.base_exponent, chosen.n_rates


def difference_chunk(layout, shift, elems, base, codec, *, rates=None, base_exponent=None, frequent=NONE, extras_codec=RAW):
    """As an encoder makes it; the rates are those of the product unless they are given."""
    exponents, scales = planes_of(layout, shift, elems, base)
    w = layout.elem_bytes
    for i, scale in enumerate(scales.tolist()):
        assert (scale == 0) == (elems[128 * w * i : 128 * w * (i + 1)] == base[128 * w * i : 128 * w * (i + 1)]).all()
    rates = _rates(scales) if rates is None else np.where(scales, rates[: scales.size], 0).astype(np.uint8)
    if not rates.any():
        return build_difference_chunk([(RAW, bytes(rates)), (RAW, b""), (RAW, b"")], shift, frequent)
    base_exponent = int(exponents.max()) // 2 if base_exponent is None else base_exponent
    code = code_of(layout, shift, elems, base, rates, base_exponent, frequent)
    extras = (ZSTD, bytes(zstd_stream(code.extras, PackOptions()))) if extras_codec == ZSTD else (RAW, bytes(code.extras))
    return build_difference_chunk([(RAW, bytes(rates)), class_stream(codec, code, base_exponent), extras], shift, frequent)


def decode(name, layout, chunk, n, number, crc, base):
    """Decode on one backend, in a buffer with something on both sides."""
    size = layout.elem_bytes
    out = np.full(n * size + 64, 0xA5, np.uint8)
    of_base = None if base is None else lambda first, count: base[: count * size]
    with kernels.use_isa(name):
        decode_chunks(layout, chunk, np.array([0, len(chunk)]), np.array([crc], np.uint32), -(-n // 128) * 128, n, number, out[32:-32], of_base)
    assert (out[:32] == 0xA5).all(), f"{name} wrote before the output"
    assert (out[-32:] == 0xA5).all(), f"{name} wrote behind the output"
    return out[32:-32]


def check_decodes(layout, chunk, elems, base, number=0):
    # The number is that of the first chunk, and a base is asked for the elements behind all chunks before: they are not looked at here.
    for name in NAMES:
        assert (decode(name, layout, chunk, elems.size // layout.elem_bytes, number, chunk_crc(elems, number), base) == elems).all(), name


CLASS_CODECS = [RAW, RANS, HUFFMAN, ZSTD, CONSTANT, CONDITIONAL]


@by_layout
def test_every_length_to_300(layout):
    for n in range(1, 301):
        rng = np.random.default_rng([n, layout.id])
        base = base_words(layout, n, rng)
        shift = n // 7 % (8 * layout.elem_bytes - 1) if n % 3 == 0 else 0
        elems = moved(u8(changed_words(layout, base, CHANGES[n % len(CHANGES)], shift, rng)), n % 64)
        base = moved(u8(base), 3 * n % 64)
        codec = CONDITIONAL if n % 2 else CLASS_CODECS[n // 2 % len(CLASS_CODECS)]
        frequent = some_frequent(layout, shift, elems, base, (1, 2, 24, 64)[n // 5 % 4], rng) if n % 5 == 0 else NONE
        chunk = moved(difference_chunk(layout, shift, elems, base, codec, frequent=frequent), 5 * n % 64)
        check_decodes(layout, chunk, elems, base, number=n)


@pytest.mark.parametrize("kind", CHANGES)
@by_layout
def test_every_shift(layout, kind):
    for shift in range(8 * layout.elem_bytes - 1):
        rng = np.random.default_rng([shift, layout.id])
        base = base_words(layout, 300 + shift, rng)
        elems = u8(changed_words(layout, base, kind, shift, rng))
        for frequent in (NONE, some_frequent(layout, shift, elems, u8(base), 5, rng)):
            check_decodes(layout, difference_chunk(layout, shift, elems, u8(base), CONDITIONAL if shift % 2 else RAW, frequent=frequent), elems, u8(base))


@pytest.mark.parametrize("codec", CLASS_CODECS, ids=["raw", "rans", "huffman", "zstd", "constant", "conditional"])
@by_layout
def test_every_codec_of_classes(layout, codec):
    for n, kind in itertools.product((127, 128, 129, 4095, 4097, 3 * 4096 + 1), ("steps", "some_blocks", "far_blocks", "dense")):
        rng = np.random.default_rng([n, codec])
        base = base_words(layout, n, rng)
        elems = base ^ 1 if codec == CONSTANT and not layout.raw_bits else changed_words(layout, base, kind, 0, rng)
        rates = rng.integers(1, 16, -(-n // 128)).astype(np.uint8)
        frequent = some_frequent(layout, 0, u8(elems), u8(base), 7, rng) if n == 4097 and codec != CONSTANT else NONE
        chunk = difference_chunk(layout, 0, u8(elems), u8(base), codec, rates=rates, frequent=frequent, extras_codec=ZSTD if n % 2 else RAW)
        if codec != CONSTANT and n > 129:
            assert parse_chunk(chunk, layout).streams[1][0] == codec
        check_decodes(layout, chunk, u8(elems), u8(base))


@pytest.mark.parametrize("layout", [layout for layout in DIFFERING if layout.elem_bytes == 1], ids=lambda layout: layout.id.name)
def test_every_pair_of_bytes(layout):
    """Each base with each element, and the code of each difference as 14.3 has it."""
    base, elems = (u8(each.astype(np.uint8).reshape(-1)) for each in np.indices((256, 256)))
    for shift in range(7):
        some = elems & (1 << shift) - 1 == 0
        b, e = base[some], elems[some]
        check_decodes(layout, difference_chunk(layout, shift, e, b, CONDITIONAL), e, b)
        code = code_of(layout, shift, e, b, np.ones(-(-e.size // 128), np.uint8), 0)
        bits = 8 - shift
        d = in_order(e >> shift, layout, shift) - in_order(b >> shift, layout, shift)
        d = ((d + (1 << bits - 1) & (1 << bits) - 1) - (1 << bits - 1)) * turned(b >> shift, layout, shift)
        expected, extras = zip(*(class_of(x) for x in d.tolist()), strict=True)
        assert code.classes.tolist() == list(expected)
        assert bytes(code.extras) == np.packbits(np.array([bit for each in extras for bit in each], np.uint8), bitorder="little").tobytes()
        low, width = EXPONENTS[layout.id]
        assert code.cells.tolist() == (16 + np.minimum(b >> low & (1 << width) - 1, 15)).tolist()


@by_layout
def test_modular_differences(layout):
    for n, shift in itertools.product((1, 127, 129, 1000), range(0, 8 * layout.elem_bytes - 1, 3)):
        rng = np.random.default_rng([n, shift])
        base, elems = moved(u8(base_words(layout, n, rng)), n % 64), moved(u8(base_words(layout, n, rng)), 3 * n % 64)
        expected = differences_of(layout, shift, elems, base).tolist()
        for name, backend in BACKENDS.items():
            differences = backend.modular_differences(layout, shift, elems, base)
            assert (differences.dtype, differences.tolist()) == (np.uint32, expected), name


def test_frequent_differences_are_classes_of_their_own():
    """The first of equal ones, wherever they stand; all 64; one that is 0."""
    layout, rng = LAYOUTS[LayoutId.BYTES1], np.random.default_rng(2)
    base = rng.integers(0, 256, 2000).astype(np.uint8)
    for frequent in ([0], [255], [3, 3, 3], [5, 250, 5, 0], list(range(100, 164)), [1, 1] * 32):
        elems = base + rng.choice(np.array([*frequent, 77], np.uint8), base.size)
        code = code_of(layout, 0, elems, base, np.ones(16, np.uint8), 0, np.array(frequent, np.uint32))
        d = (elems - base).tolist()
        assert code.classes.tolist() == [64 + frequent.index(x) if x in frequent else class_of(x - 256 * (x > 128))[0] for x in d]
        assert len(code.extras) == -(-sum(6 for x in d if x not in frequent) // 8)
        for codec in (RAW, HUFFMAN, CONDITIONAL):
            check_decodes(layout, difference_chunk(layout, 0, elems, base, codec, frequent=np.array(frequent, np.uint32)), elems, base)


def class_of(d):
    """14.3: a difference's class and extra bits."""
    m = abs(d)
    if m < 2:
        return m, [int(d < 0)] * m
    low = m.bit_length() - 2
    return 2 * (low + 1) + (m >> low & 1), [int(d < 0), *(m >> i & 1 for i in range(low))]


@by_layout
def test_special_words_to_special_words(layout):
    words = special_words(layout)
    base, elems = (u8(words[each.reshape(-1)]) for each in np.indices((words.size, words.size)))
    for codec in (RAW, CONDITIONAL):
        check_decodes(layout, difference_chunk(layout, 0, elems, base, codec), elems, base)


def test_bits_that_are_dropped_of_the_base_alone():
    """The elements are the base but for bits that both drop: no block of it is unchanged."""
    rng = np.random.default_rng(5)
    for layout_id, shift in ((LayoutId.F32, 16), (LayoutId.BF16, 4), (LayoutId.BYTES1, 1)):
        layout = LAYOUTS[layout_id]
        base = base_words(layout, 1000, rng) | 1
        base[128:256] &= ~np.array((1 << shift) - 1, base.dtype)
        elems = base >> shift << shift
        chunk = difference_chunk(layout, shift, u8(elems), u8(base), RAW)
        assert np.flatnonzero(np.frombuffer(parse_chunk(chunk, layout).streams[0][1], np.uint8) == 0).tolist() == [1]
        check_decodes(layout, chunk, u8(elems), u8(base))
        whole = same({name: encoded(name, encode_difference, u8(elems), u8(base), layout, PackOptions()) for name in NAMES})
        check_decodes(layout, whole, u8(elems), u8(base))


# ---- codebooks by hand


def random_book(rng, k, escape):
    freqs = rng.multinomial(256 - k - escape, rng.dirichlet([0.3] * k)) + 1
    while freqs.max() > 255:
        freqs[freqs.argmax()], freqs[freqs.argmin()] = freqs.max() - 1, freqs.min() + 1
    return RansBook(bytes(rng.permutation(np.delete(np.arange(128), 63))[:k].tolist()), bytes(freqs.tolist()), escape)


BOOKS = {
    "one, K = 1": lambda rng: [random_book(rng, 1, 1)],
    "one, an escape that is all": lambda rng: [random_book(rng, 1, 255)],
    "one of 16 symbols": lambda rng: [random_book(rng, 16, 0)],
    "one of 15 and an escape": lambda rng: [random_book(rng, 15, 3)],
    "two": lambda rng: [random_book(rng, 2, 0), random_book(rng, 3, 100)],
    "16 of 16 symbols": lambda rng: [random_book(rng, 16, 0) for _ in range(16)],
    "16 of all sizes": lambda rng: [random_book(rng, 1 + i, 0 if i == 15 else 1 + i) for i in range(16)],
    "16 without escapes": lambda rng: [random_book(rng, max(2, 16 - i), 0) for i in range(16)],
}


def extras_for(classes, rng):
    """Random extra bits, of exactly the length that the classes need."""
    n_bits = int(sum(0 if c > 63 else c // 2 if c > 1 else c for c in classes.tolist()))
    return np.packbits(rng.integers(0, 2, n_bits).astype(np.uint8), bitorder="little").tobytes()


@pytest.mark.parametrize("make", BOOKS.values(), ids=BOOKS)
@pytest.mark.parametrize("layout_id", [LayoutId.F32, LayoutId.BYTES4], ids=lambda each: each.name)
def test_codebooks_by_hand(layout_id, make):
    layout = LAYOUTS[layout_id]
    for n, base_exponent, n_rates in ((1, 0, 1), (127, 255, 15), (129, 100, 2), (1000, 118, 15), (5000, 0, 15), (4500, 240, 3)):
        rng = np.random.default_rng([n, base_exponent])
        base, books = rng.integers(0, 1 << 32, n).astype("<u4"), make(rng)
        rates = rng.integers(0, n_rates + 1, -(-n // 128)).astype(np.uint8)
        rates[rng.integers(rates.size)] = n_rates
        book_of = rng.integers(0, len(books), 256).astype(np.uint8)
        rate_of = rates.repeat(128)[:n]
        changed = rate_of > 0
        low, width = EXPONENTS[layout_id]
        exponent = (base >> low & (1 << width) - 1).astype(np.int64)
        cells = (16 * rate_of + np.clip(exponent - base_exponent, 0, 15)).astype(np.uint8)[changed]
        classes = np.empty(cells.size, np.uint8)
        for i, book in enumerate(books):  # as often as the book says, a third of the escapes coded symbols all the same
            mine = np.flatnonzero(book_of[cells] == i)
            symbols = [*book.symbols] + ([int(rng.integers(63)) + 64 * int(rng.integers(2))] if book.escape_freq else [])
            odds = np.array([*book.freqs] + ([book.escape_freq] if book.escape_freq else [])) / 256
            classes[mine] = rng.choice(symbols, mine.size, p=odds)
        chosen = ConditionalBooks(books, book_of, base_exponent, n_rates)
        stream = same({name: bytes(backend.conditional_encode(chosen, cells, classes)) for name, backend in BACKENDS.items()})
        extras, frequent = extras_for(classes, rng), rng.integers(0, 1 << 32, 64).astype(np.uint32)
        results = {}
        for name, backend in BACKENDS.items():
            for codec, coded in ((RAW, bytes(classes)), (CONDITIONAL, stream)):
                out = np.zeros(4 * n, np.uint8)
                crc = backend.decode_difference(layout, 0, frequent, [(RAW, bytes(rates)), (codec, coded), (RAW, extras)], u8(base), n, 9, out)
                results[name, codec] = crc, out.tobytes()
        assert len(set(results.values())) == 1, {key: crc for key, (crc, _) in results.items()}
        crc, out = results[NAMES[0], RAW]
        assert crc == chunk_crc(np.frombuffer(out, np.uint8), 9)
        code = code_of(layout, 0, np.frombuffer(out, np.uint8), u8(base), rates, base_exponent, frequent)
        assert bytes(code.cells) == bytes(cells)


def test_every_frequency_of_a_conditional_codebook():
    """The native encoder divides by multiplication: each divisor, with many states."""
    layout, rng, n = LAYOUTS[LayoutId.BYTES4], np.random.default_rng(8), 1400
    cells, book_of, base = np.full(n, 16, np.uint8), np.zeros(256, np.uint8), rng.integers(0, 1 << 32, n).astype("<u4")
    for f in range(1, 256):
        classes = np.where(rng.random(n) < max(0.2, f / 256), 0, 1).astype(np.uint8)
        for book in (RansBook(b"\0\1", bytes((f, 256 - f)), 0), RansBook(b"\0", bytes((f,)), 256 - f)):
            chosen = ConditionalBooks([book], book_of, 0, 1)
            stream = same({name: bytes(backend.conditional_encode(chosen, cells, classes)) for name, backend in BACKENDS.items()})
        streams = [(CONSTANT, b"\1"), (CONDITIONAL, stream), (RAW, extras_for(classes, rng))]
        same({name: backend.decode_difference(layout, 0, NONE, streams, u8(base), n, 0, np.empty(4 * n, np.uint8)) for name, backend in BACKENDS.items()})


# ---- scales


def scaled_words(layout, scales, n_rows, cols, phase, signs, n):
    """14.5, word by word."""
    mantissas = [round((1 << 23) * (2 ** (k / 16) - 1)) for k in range(16)]
    words = []
    for i in range(n):
        row, col = int(scales[(phase + i) // cols]), int(scales[n_rows + (phase + i) % cols])
        s = row + col + 2032
        p = 0 if -32768 in (row, col) or s < 16 else 0x7F7FFFFF if s >= 4080 else (s // 16 << 23) + mantissas[s % 16]
        words.append((p | (int(signs[i // 8]) >> i % 8 & 1) << 31) >> (32 - 8 * layout.elem_bytes))
    return words


@pytest.mark.parametrize("layout", SCALED, ids=lambda layout: layout.id.name)
def test_bases_out_of_scales(layout):
    rng = np.random.default_rng(3)
    shapes = [(1, 0, 1), (1, 0, 300), (7, 6, 1), (7, 3, 4), (7, 3, 5), (300, 299, 2), (1000, 5, 400)]
    for cols, phase, n in shapes + [(c, c // 2, 259) for c in (2, 3, 16, 127, 128, 129, 258)]:
        n_rows = -(-(phase + n) // cols)
        signs = rng.integers(0, 256, (n + 7) // 8).astype(np.uint8)
        for low, high in ((-32768, 32768), (-1100, 1100), (-40, 40), (-1020, -990), (1018, 1030)):
            scales = rng.integers(low, high, n_rows + cols).astype("<i2")
            scales[rng.random(scales.size) < 0.1] = rng.choice(np.array([-32768, 32767, -32767], "<i2"))
            base = same({name: bytes(each.scaled_base(layout, u8(scales), cols, phase, signs, n)) for name, each in BACKENDS.items()})
            assert np.frombuffer(base, f"<u{layout.elem_bytes}").tolist() == scaled_words(layout, scales, n_rows, cols, phase, signs, n)


def test_layouts_without_scales():
    for layout, backend in itertools.product(LAYOUTS.values(), BACKENDS.values()):
        if layout not in SCALED:
            with pytest.raises(CorruptionError):
                backend.scaled_base(layout, np.zeros(4, np.uint8), 1, 0, b"\0", 1)


# ---- the encoder of the road


def encoded(name, encode, *arguments):
    with kernels.use_isa(name):
        return encode(*arguments)


@pytest.mark.parametrize("kind", CHANGES)
@by_layout
def test_chunks_of_the_road(layout, kind):
    every = ("rans", "huffman", "zstd")
    for n, codecs in ((1, every), (129, ("rans",)), (1500, every), (1500, ()), (9000, ("rans",)), (20_001, ("zstd", "rans"))):
        rng = np.random.default_rng([n, len(kind)])
        base = base_words(layout, n, rng)
        for shift in (0, min(5, 8 * layout.elem_bytes - 2)) if n > 1 else (0,):
            elems = u8(changed_words(layout, base, kind, shift, rng))
            chunk = same({name: encoded(name, encode_difference, elems, u8(base), layout, PackOptions(codecs=codecs)) for name in NAMES})
            check_decodes(layout, chunk, elems, u8(base), number=0)


def moments(layout, n, cols, rng):
    """What grows along rows and columns, with zeros, and special words."""
    grid = np.exp(rng.normal(-9, 3, (-(-n // cols), 1)) + rng.normal(0, 2, (1, cols)) + rng.normal(0, 0.3, (-(-n // cols), cols))).reshape(-1)[:n].astype("<f4")
    words = np.where(rng.random(n) < 0.1, 0, grid.view("<u4") | (rng.integers(0, 2, n) << 31).astype("<u4"))
    words = words.astype("<u4") if layout.elem_bytes == 4 else (words >> 16).astype("<u2")
    return np.where(rng.random(n) < 0.02, rng.choice(special_words(layout), n), words).astype(words.dtype)


@pytest.mark.parametrize("layout", SCALED, ids=lambda layout: layout.id.name)
def test_scaled_chunks_of_the_road(layout):
    widest = (3000, MAX_SCALED_COLS, MAX_SCALED_COLS - 1)
    for n, cols, phase in ((1, 1, 0), (1, 5, 4), (130, 1, 0), (300, 300, 0), (300, 300, 1), (1000, 33, 32), (5000, 70, 3), widest):
        rng = np.random.default_rng([n, cols])
        for keep in (0xFFFFFFFF, 0xFFFFFFF0, 0x80000000, 0):  # all; what bits are dropped for; signs; nothing
            elems = u8(moments(layout, n, cols, rng) & np.array(keep >> 32 - 8 * layout.elem_bytes, f"<u{layout.elem_bytes}"))
            chunk = same({name: encoded(name, encode_scaled, elems, layout, cols, phase, PackOptions()) for name in NAMES})
            check_decodes(layout, chunk, elems, None)


# ---- damage


def outcome(name, layout, chunk, n, crc, base):
    """The class that was raised, or the bytes."""
    try:
        return decode(name, layout, chunk, n, 0, crc, base).tobytes()
    except FormatError as error:  # anything else fails the test
        return type(error)


def agreed(layout, chunk, n, crc, base, what, exact=True):
    outcomes = {name: outcome(name, layout, bytes(chunk), n, crc, base) for name in NAMES}
    if exact:
        assert len(set(outcomes.values())) == 1, (what, outcomes)
    else:  # more than one thing may be wrong, and backends meet them in another order
        assert len({each if isinstance(each, bytes) else "refused" for each in outcomes.values()}) == 1, (what, outcomes)
    return outcomes[NAMES[0]]


DAMAGED = [
    # layout, change, n, codec of the classes or None for a scaled chunk, shift; every other has frequent differences
    (LayoutId.BF16, "steps", 140, CONDITIONAL, 0), (LayoutId.F32, "far_blocks", 131, RANS, 0), (LayoutId.F16, "some_blocks", 260, HUFFMAN, 3),
    (LayoutId.BYTES1, "sparse", 300, CONDITIONAL, 0), (LayoutId.BYTES4, "dense", 20, RAW, 0), (LayoutId.F8_E4M3, "steps", 130, ZSTD, 0),
    (LayoutId.F8_E5M2_LEAD, "none", 129, RAW, 0), (LayoutId.F32, "", 40, None, 0), (LayoutId.BF16_LEAD, "", 70, None, 0),
]  # fmt: skip


@pytest.fixture(params=DAMAGED, ids=lambda value: f"{value[0].name}-{value[1] or 'scaled'}-{value[2]}-{value[3]}")
def sound(request):
    layout_id, kind, n, codec, shift = request.param
    layout, rng = LAYOUTS[layout_id], np.random.default_rng(n)
    if codec is None:
        base, elems = None, u8(moments(layout, n, 11, rng))
        chunk = encode_scaled(elems, layout, 11, 4, PackOptions())
    else:
        base = base_words(layout, n, rng)
        elems = u8(changed_words(layout, base, kind, shift, rng))
        base = u8(base)
        chunk = difference_chunk(layout, shift, elems, base, codec, frequent=some_frequent(layout, shift, elems, base, 3, rng) if n % 20 == 0 else NONE)
    crc = chunk_crc(elems, 0)
    assert agreed(layout, chunk, n, crc, base, "sound") == elems.tobytes()
    return layout, n, elems, chunk, crc, base


def test_every_truncation(sound):
    layout, n, elems, chunk, crc, base = sound
    parsed = parse_chunk(chunk, layout)
    end = 4 + 4 * len(parsed.streams) + (2 if parsed.mode == Mode.DIFFERENCE else 10) + len(parsed.frequent) + sum(len(s) for _, s in parsed.streams)
    for size in range(len(chunk)):
        expected = elems.tobytes() if size >= end else TruncatedError
        assert agreed(layout, chunk[:size], n, crc, base, f"{size} of {len(chunk)} bytes") == expected


def test_every_flipped_bit(sound, flipped_bits):
    layout, n, elems, chunk, crc, base = sound
    for bit in flipped_bits(len(chunk)):
        bad = bytearray(chunk)
        bad[bit // 8] ^= 1 << bit % 8
        result = agreed(layout, bad, n, crc, base, f"bit {bit % 8} of byte {bit // 8}", exact=False)
        assert result == elems.tobytes() or not isinstance(result, bytes), f"wrong bytes: bit {bit % 8} of byte {bit // 8}"


def test_random_damage(sound):
    layout, n, elems, chunk, crc, base = sound
    rng = np.random.default_rng(len(chunk))
    for i in range(200):
        bad = np.frombuffer(chunk, np.uint8).copy()
        at = rng.integers(0, bad.size, 1 + i % 5)
        bad[at] = rng.choice(np.array([0, 1, 62, 63, 64, 127, 128, 255, *rng.integers(0, 256, 5)], np.uint8), at.size)
        if i % 7 == 0:
            bad = np.delete(bad, slice(at[0], at[0] + 1 + i % 11))
        result = agreed(layout, bad.tobytes(), n, crc, base, f"damage {i}", exact=False)
        assert result == elems.tobytes() or not isinstance(result, bytes)


def test_wrong_lengths(sound):
    layout, n, _, chunk, crc, base = sound
    for other in (n - 1, n + 1, n + 128, 2 * n):
        longer = None if base is None else np.resize(base, other * layout.elem_bytes)
        assert not isinstance(agreed(layout, chunk, other, crc, longer, f"{other} elements", exact=False), bytes)


def with_bits(classes, missing=0, tail=b""):
    """Extra bits of classes, all 1, without the last `missing` bytes."""
    n_bits = int(sum(c // 2 if c > 1 else c for c in classes))
    data = np.packbits(np.ones(n_bits, np.uint8), bitorder="little").tobytes()
    return data[: len(data) - missing] + tail


BYTES1, BYTES4, F32, F64, BF16 = (LAYOUTS[LayoutId[name]] for name in ("BYTES1", "BYTES4", "F32", "F64", "BF16"))
ONE_BOOK = b"\2\0\0\1\x80\x80"


def conditional(first=b"\0", rates=b"\1", row=bytes(8), books=ONE_BOOK, symbols=1, tail=bytes(4)):
    """8.8, one codebook of two classes that are as likely: `symbols` of class 0 in lanes of their own."""
    states = [1 << 8 + (lane < symbols) for lane in range(128)]
    return first + b"\0" + rates + row + books + np.array(states, "<u2").tobytes() + tail


def difference(rates, classes, extras=(RAW, b""), shift=0, frequent=NONE):
    return build_difference_chunk([rates, classes, extras], shift, np.array(frequent, np.uint32))


def scaled(scales=(CONSTANT, b"\0"), signs=(RAW, b"\0"), rest=((RAW, b"\0"), (RAW, b""), (RAW, b"")), shift=0, cols=1, phase=0, frequent=NONE):
    return build_difference_chunk([scales, signs, *rest], shift, np.array(frequent, np.uint32), (cols, phase))


ZSTD_NOTHING = bytes(zstd_stream(np.empty(0, np.uint8), PackOptions()))
ON, OFF = (RAW, b"\1"), (RAW, b"\0")
FIELDS = {
    # name: layout, n, chunk, expected. The CRC is wrong: what is sound ends in ChecksumError.
    "unchanged": (BYTES1, 1, difference(OFF, (RAW, b"")), ChecksumError),
    "unchanged_with_classes": (BYTES1, 1, difference(OFF, (RAW, b"\0")), CorruptionError),
    "unchanged_with_constant_classes": (BYTES1, 1, difference(OFF, (CONSTANT, b"\0")), CorruptionError),
    "unchanged_with_conditional_classes": (BYTES1, 1, difference(OFF, (CONDITIONAL, conditional(symbols=0))), CorruptionError),
    "unchanged_with_zstd_of_nothing": (BYTES1, 1, difference(OFF, (ZSTD, ZSTD_NOTHING)), CorruptionError),
    "unchanged_with_zstd_extras": (BYTES1, 1, difference(OFF, (RAW, b""), (ZSTD, ZSTD_NOTHING)), CorruptionError),
    "unchanged_with_extras": (BYTES1, 1, difference(OFF, (RAW, b""), (RAW, b"\0")), CorruptionError),
    "8_bytes": (F64, 1, difference(OFF, (RAW, b"")), CorruptionError),
    "8_bytes_of_integers": (LAYOUTS[LayoutId.BYTES8], 1, difference(OFF, (RAW, b"")), CorruptionError),
    "two_streams": (BYTES1, 1, build_chunk(Mode.DIFFERENCE, [OFF, (RAW, b"")], bytes(2)), CorruptionError),
    "four_streams": (BYTES1, 1, build_chunk(Mode.DIFFERENCE, [OFF] * 4, bytes(2)), CorruptionError),
    "shift_6_of_8": (BYTES1, 1, difference(ON, (RAW, b"\0"), shift=6), ChecksumError),
    "shift_7_of_8": (BYTES1, 1, difference(ON, (RAW, b"\0"), shift=7), CorruptionError),
    "shift_30_of_32": (F32, 1, difference(ON, (RAW, b"\0"), shift=30), ChecksumError),
    "shift_31_of_32": (F32, 1, difference(ON, (RAW, b"\0"), shift=31), CorruptionError),
    "shift_255": (F32, 1, difference(ON, (RAW, b"\0"), shift=255), CorruptionError),
    "rate_15": (BYTES1, 1, difference((RAW, b"\x0f"), (RAW, b"\0")), ChecksumError),
    "rate_16": (BYTES1, 1, difference((RAW, b"\x10"), (RAW, b"\0")), CorruptionError),
    "rates_short": (BYTES1, 129, difference(ON, (RAW, bytes(129))), TruncatedError),
    "rates_long": (BYTES1, 1, difference((RAW, b"\1\1"), (RAW, b"\0")), CorruptionError),
    "rates_conditional": (BYTES1, 1, difference((CONDITIONAL, conditional()), (RAW, b"\0")), CorruptionError),
    "rates_context": (BYTES1, 1, difference((CONTEXT, b""), (RAW, b"\0")), CorruptionError),
    "rates_codec_200": (BYTES1, 1, difference((200, b"\1"), (RAW, b"\0")), UnsupportedError),
    "rates_zstd": (BYTES1, 1, difference((ZSTD, bytes(zstd_stream(b"\1", PackOptions()))), (RAW, b"\0")), ChecksumError),
    "rates_zstd_of_two": (BYTES1, 1, difference((ZSTD, bytes(zstd_stream(b"\1\1", PackOptions()))), (RAW, b"\0")), CorruptionError),
    "rates_not_zstd": (BYTES1, 1, difference((ZSTD, b"\1"), (RAW, b"\0")), CorruptionError),
    "classes_context": (BYTES1, 1, difference(ON, (CONTEXT, b"")), CorruptionError),
    "classes_codec_200": (BYTES1, 1, difference(ON, (200, b"")), UnsupportedError),
    "classes_short": (BYTES1, 2, difference(ON, (RAW, b"\0")), TruncatedError),
    "classes_long": (BYTES1, 1, difference(ON, (RAW, b"\0\0")), CorruptionError),
    "class_64": (BYTES4, 1, difference(ON, (RAW, b"\x40")), CorruptionError),
    "class_64_of_one": (BYTES4, 1, difference(ON, (RAW, b"\x40"), frequent=[(1 << 32) - 1]), ChecksumError),
    "class_65_of_one": (BYTES4, 1, difference(ON, (RAW, b"\x41"), frequent=[1]), CorruptionError),
    "class_127_of_64": (BYTES4, 1, difference(ON, (RAW, b"\x7f"), frequent=[1] * 64), ChecksumError),
    "class_128": (BYTES4, 1, difference(ON, (RAW, b"\x80"), frequent=[1] * 64), CorruptionError),
    "frequent_and_unchanged": (BYTES4, 1, difference(OFF, (RAW, b""), frequent=[1]), ChecksumError),
    "frequent_65": (BYTES4, 1, difference(OFF, (RAW, b""), frequent=[1] * (MAX_FREQUENT + 1)), CorruptionError),
    "frequent_of_9_bits": (BYTES1, 1, difference(ON, (RAW, b"\0"), frequent=[256]), CorruptionError),
    "frequent_of_8_bits": (BYTES1, 1, difference(ON, (RAW, b"\0"), frequent=[255]), ChecksumError),
    "frequent_of_3_bits_shifted": (BYTES1, 1, difference(ON, (RAW, b"\0"), frequent=[4], shift=6), CorruptionError),
    "frequent_in_a_scaled_chunk": (F32, 1, scaled(frequent=[7], rest=(ON, (RAW, b"\x40"), (RAW, b""))), ChecksumError),
    "frequent_cut": (BYTES1, 1, struct.pack("<BBH3IBBI", 3, 3, 0, 0, 0, 0, 0, 2, 1), TruncatedError),
    "class_62_of_32_bits": (BYTES4, 1, difference(ON, (RAW, b"\x3e"), (RAW, bytes(4))), ChecksumError),
    "class_63_of_32_bits": (BYTES4, 1, difference(ON, (RAW, b"\x3f"), (RAW, bytes(4))), CorruptionError),
    "class_14_of_8_bits": (BYTES1, 1, difference(ON, (RAW, b"\x0e"), (RAW, bytes(1))), ChecksumError),
    "class_15_of_8_bits": (BYTES1, 1, difference(ON, (RAW, b"\x0f"), (RAW, bytes(1))), CorruptionError),
    "class_2_of_2_bits": (BYTES1, 1, difference(ON, (RAW, b"\2"), (RAW, b"\0"), shift=6), ChecksumError),
    "class_3_of_2_bits": (BYTES1, 1, difference(ON, (RAW, b"\3"), (RAW, b"\0"), shift=6), CorruptionError),
    "classes_63_everywhere": (BYTES4, 4096, difference((CONSTANT, b"\x0f"), (CONSTANT, b"\x3f"), (RAW, b"")), CorruptionError),
    "classes_62_everywhere": (BYTES4, 4096, difference((CONSTANT, b"\x0f"), (CONSTANT, b"\x3e"), (RAW, with_bits([62] * 4096))), ChecksumError),
    "no_extras": (BYTES4, 4096, difference((CONSTANT, b"\x0f"), (CONSTANT, b"\x3e"), (RAW, b"")), TruncatedError),
    "extras_rans": (BYTES1, 1, difference(ON, (RAW, b"\1"), (RANS, b"\0")), CorruptionError),
    "extras_conditional": (BYTES1, 1, difference(ON, (RAW, b"\1"), (CONDITIONAL, b"\0")), CorruptionError),
    "extras_constant": (BYTES1, 1, difference(ON, (RAW, b"\1"), (CONSTANT, b"\0")), CorruptionError),
    "extras_codec_200": (BYTES1, 1, difference(ON, (RAW, b"\1"), (200, b"\0")), UnsupportedError),
    "extras_short": (BYTES1, 9, difference(ON, (CONSTANT, b"\1"), (RAW, b"\0")), TruncatedError),
    "extras_long": (BYTES1, 8, difference(ON, (CONSTANT, b"\1"), (RAW, b"\0\0")), CorruptionError),
    "extras_unused_bit": (BYTES1, 1, difference(ON, (RAW, b"\1"), (RAW, b"\2")), CorruptionError),
    "extras_zstd_too_long": (BYTES1, 1, difference(ON, (RAW, b"\1"), (ZSTD, bytes(zstd_stream(bytes(1 << 20), PackOptions())))), CorruptionError),
    "extras_of_classes_0": (BYTES1, 1, difference(ON, (RAW, b"\0"), (RAW, b"\0")), CorruptionError),
    # 8.8
    "conditional": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional())), ChecksumError),
    "conditional_of_128": (BYTES1, 128, difference(ON, (CONDITIONAL, conditional(symbols=128))), ChecksumError),
    "conditional_empty": (BYTES1, 1, difference(ON, (CONDITIONAL, b"")), TruncatedError),
    "conditional_head_cut": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional()[:5])), TruncatedError),
    "conditional_book_cut": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional()[:14])), TruncatedError),
    "conditional_states_cut": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional()[:200])), TruncatedError),
    "conditional_17_books": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(first=b"\x10", books=ONE_BOOK * 17))), CorruptionError),
    "conditional_no_rates": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(rates=b"\0"))), CorruptionError),
    "conditional_16_rates": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(rates=b"\x10", row=bytes(128)))), CorruptionError),
    "conditional_book_of_none": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(row=bytes(7) + b"\x10"))), CorruptionError),
    "conditional_class_128": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(books=b"\2\0\0\x80\x80\x80"))), CorruptionError),
    "conditional_sum_255": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(books=b"\2\0\0\1\x80\x7f"))), CorruptionError),
    "conditional_rate_above": (BYTES1, 1, difference((RAW, b"\2"), (CONDITIONAL, conditional())), CorruptionError),
    "conditional_state_255": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(symbols=0)[:17] + b"\xff\0" + conditional(symbols=0)[19:])), CorruptionError),
    "conditional_needs_a_byte": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(symbols=0))), TruncatedError),
    "conditional_has_a_byte_more": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(tail=b"\1\0\0\0a"))), CorruptionError),
    "conditional_renorm_beyond": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(tail=b"\1\0\0\0"))), TruncatedError),
    "conditional_literal_without_escape": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(tail=bytes(5)))), CorruptionError),
    "conditional_literal": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(books=b"\1\x80\0\x80", tail=bytes(5)))), CorruptionError),
    "conditional_literal_128": (BYTES1, 1, difference(ON, (CONDITIONAL, conditional(books=b"\1\x80\0\x80", tail=bytes(4) + b"\x80"))), CorruptionError),
    # 14.5
    "scaled": (F32, 1, scaled(), ChecksumError),
    "scaled_widest": (F32, 1, scaled(cols=MAX_SCALED_COLS, phase=MAX_SCALED_COLS - 1), ChecksumError),
    "scaled_no_cols": (F32, 1, scaled(cols=0), CorruptionError),
    "scaled_too_wide": (F32, 1, scaled(cols=MAX_SCALED_COLS + 1), CorruptionError),
    "scaled_of_2^32_cols": (F32, 1, scaled(cols=(1 << 32) - 1), CorruptionError),
    "scaled_phase_of_the_next_row": (F32, 1, scaled(cols=5, phase=5), CorruptionError),
    "scaled_raw": (BF16, 1, scaled(scales=(RAW, bytes(4))), ChecksumError),
    "scaled_raw_short": (BF16, 1, scaled(scales=(RAW, bytes(3))), TruncatedError),
    "scaled_raw_long": (BF16, 1, scaled(scales=(RAW, bytes(5))), CorruptionError),
    "scaled_zstd": (BF16, 1, scaled(scales=(ZSTD, bytes(zstd_stream(bytes(4), PackOptions())))), ChecksumError),
    "scaled_conditional": (BF16, 1, scaled(scales=(CONDITIONAL, conditional())), CorruptionError),
    "scaled_codec_200": (BF16, 1, scaled(scales=(200, b"")), UnsupportedError),
    "signs_unused": (F32, 1, scaled(signs=(RAW, b"\2")), CorruptionError),
    "signs_short": (F32, 9, scaled(signs=(RAW, b"\0"), rest=((RAW, b"\0"), (RAW, b""), (RAW, b""))), TruncatedError),
    "scaled_three_streams": (F32, 1, build_chunk(Mode.SCALED, [OFF] * 3, struct.pack("<BBII", 0, 0, 1, 0)), CorruptionError),
    **{f"scaled_{layout.id.name}": (layout, 1, scaled(), CorruptionError) for layout in LAYOUTS.values() if layout not in SCALED},
}  # fmt: skip


@pytest.mark.parametrize(("layout", "n", "chunk", "expected"), FIELDS.values(), ids=FIELDS)
def test_fields(layout, n, chunk, expected):
    assert agreed(layout, chunk, n, 1, np.zeros(n * layout.elem_bytes, np.uint8), "field") is expected


@pytest.mark.parametrize("n", [1, 100, 128, 140, 200, 256, 400])
def test_extra_bits_that_end_early(n):
    """By every count of bytes: the native core reads the last of them from a copy with zeros behind."""
    classes = np.random.default_rng(n).choice(np.array([0, 1, 2, 7, 30, 62], np.uint8), n)
    classes[-1] = 62
    whole = with_bits(classes.tolist())
    base, rates = np.zeros(4 * n, np.uint8), (RAW, b"\1" * -(-n // 128))
    for missing in range(1, min(len(whole), 1100) + 1):
        chunk = difference(rates, (RAW, bytes(classes)), (RAW, whole[: len(whole) - missing]))
        assert agreed(BYTES4, chunk, n, 0, base, f"{missing} bytes are missing") is TruncatedError
    assert agreed(BYTES4, difference(rates, (RAW, bytes(classes)), (RAW, whole + b"\0")), n, 0, base, "one more") is CorruptionError


def test_a_chunk_without_a_base_is_refused():
    for layout in DIFFERING:
        assert agreed(layout, difference(OFF, (RAW, b"")), 1, 0, None, "no base") is CorruptionError


def test_a_base_of_another_size_is_refused():
    for n_bytes in (0, 1, 2, 3, 5, 8, 1 << 20):
        for name in NAMES:
            with kernels.use_isa(name), pytest.raises(CorruptionError):
                chunk = difference(OFF, (RAW, b""))
                decode_chunks(
                    F32, chunk, np.array([0, len(chunk)]), np.zeros(1, np.uint32), 128, 1, 0, np.zeros(4, np.uint8), lambda *_, n=n_bytes: np.zeros(n, np.uint8)
                )


WRONG_CALLS = {
    "class_128": lambda k: k.conditional_encode(ConditionalBooks([RansBook(b"\0", b"\x80", 128)], np.zeros(256, np.uint8), 0, 1), u8([16]), u8([128])),
    "no_books": lambda k: k.conditional_encode(ConditionalBooks([], np.zeros(256, np.uint8), 0, 1), u8([16]), u8([0])),
    "sum_255": lambda k: k.conditional_encode(ConditionalBooks([RansBook(b"\0\1", b"\x80\x7f", 0)], np.zeros(256, np.uint8), 0, 1), u8([16]), u8([0])),
    "no_escape": lambda k: k.conditional_encode(ConditionalBooks([RansBook(b"\0\1", b"\x80\x80", 0)], np.zeros(256, np.uint8), 0, 1), u8([16]), u8([2])),
    "16_rates": lambda k: k.conditional_encode(ConditionalBooks([RansBook(b"\0", b"\x80", 128)], np.zeros(256, np.uint8), 0, 16), u8([16]), u8([0])),
    "book_of_none": lambda k: k.conditional_encode(ConditionalBooks([RansBook(b"\0", b"\x80", 128)], np.ones(256, np.uint8), 0, 1), u8([16]), u8([0])),
    "rate_16": lambda k: k.difference_code(BYTES1, 0, u8([1]), u8([0]), u8([16]), 0, NONE),
    "shift_7_of_8": lambda k: k.difference_planes(BYTES1, 7, u8([0]), u8([0])),
    "differences_of_8_bytes": lambda k: k.difference_planes(F64, 0, np.zeros(8, np.uint8), np.zeros(8, np.uint8)),
    "modular_shift_7_of_8": lambda k: k.modular_differences(BYTES1, 7, u8([0]), u8([0])),
    "modular_differences_of_8_bytes": lambda k: k.modular_differences(F64, 0, np.zeros(8, np.uint8), np.zeros(8, np.uint8)),
    "scales_missing": lambda k: k.scaled_base(F32, np.zeros(2, np.uint8), 1, 0, b"\0", 1),
}


@pytest.mark.parametrize("call", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_calls_are_refused_rather_than_written(call):
    for backend in BACKENDS.values():
        with pytest.raises(WeightpackError, match="bug in weightpack") as caught:
            call(backend)
        assert not isinstance(caught.value, FormatError)


def test_scales_gain():
    rng = np.random.default_rng(12)
    for shape in [(1, 1), (16, 64), (64, 64), (17, 1), (1, 40), (4096, 1), (1, 4096)]:
        for upper in (
            rng.integers(0, 1 << 15, shape), rng.integers(15000, 16300, shape), np.zeros(shape), np.full(shape, 32767),
            rng.integers(0, 2, shape) * 32767, (rng.integers(13000, 16000, (shape[0], 1)) + rng.integers(-200, 200, (1, shape[1]))) * (rng.random(shape) < 0.9),
        ):  # fmt: skip
            same({name: backend.scales_gain(upper.astype(np.uint16)) for name, backend in BACKENDS.items()})


def test_equal():
    rng = np.random.default_rng(13)
    for n in [0, 1, 7, 8, 9, 63, 64, 65, 4099]:
        one = rng.integers(0, 256, n, np.uint8)
        assert same({name: backend.equal(one, one.copy()) for name, backend in BACKENDS.items()})
        for i in range(0, n, 13):
            other = one.copy()
            other[i] ^= 1
            assert not same({name: backend.equal(one, other) for name, backend in BACKENDS.items()})
