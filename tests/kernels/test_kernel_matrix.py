# SPDX-License-Identifier: Apache-2.0
"""The matrix of backends: each function gives the same bytes on all, and each backend decodes what any other encoded.

Equality is checked against the first backend, which says it of every pair. `WEIGHTPACK_TEST_ISAS` (names, comma-separated) restricts the backends.
Section numbers are those of docs/FORMAT.md.
"""

from __future__ import annotations

import os
import struct
import tracemalloc

import numpy as np
import pytest
import samples

from weightpack import kernels, reference
from weightpack.errors import ChecksumError, CorruptionError, FormatError, TruncatedError, UnsupportedError, WeightpackError
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import chunk_bound
from weightpack.kernels import Attention, RansBook
from weightpack.kernels import numpy_backend as portable
from weightpack.writing.huffman import code_lengths

NAMES = [name for name in os.environ.get("WEIGHTPACK_TEST_ISAS", "").split(",") if name] or kernels.available_isas()
BACKENDS = {name: kernels._make(name) for name in NAMES}
FIRST, FASTEST = BACKENDS[NAMES[0]], BACKENDS[NAMES[-1]]

SPLIT, WHOLE = 0, 1
RAW, CONSTANT, RANS, HUFFMAN, ZSTD, CONTEXT, TABLES = range(7)
FEW_LENGTHS = [1, 2, 7, 8, 9, 63, 64, 127, 128, 129, 255, 257, 391]
EDGES = [4095, 4096, 4097, 3 * 4096 - 1, 3 * 4096 + 1]  # the native core's batches
LARGE = [(1 << 18) - 1, 1 << 18, (1 << 18) + 1]

ANY_KINDS = ["gaussian", "zeros", "constant", "noise", "all256", "one_escape", "many_escapes"]
FLOAT_KINDS = ["trailing7", "trailing7_in_some_blocks", "nan_payloads", "minus_zero", "subnormals"]
F32_KINDS = ["bf16_in_f32", "f16_in_some_rows_of_f32"]

by_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.id.name)


def kinds_of(layout):
    return ANY_KINDS + (FLOAT_KINDS if layout.raw_bits else []) + (F32_KINDS if layout.id == LayoutId.F32 else [])


LAYOUT_KINDS = [pytest.param(layout, kind, id=f"{layout.id.name}-{kind}") for layout in LAYOUTS.values() for kind in kinds_of(layout)]


# ---- inputs


def skewed(rng, n, n_symbols):
    """Symbols 100, 101, ... of falling frequency."""
    return (100 + np.minimum(rng.geometric(0.4, n) - 1, n_symbols - 1)).astype(np.uint8)


def symbols_of(kind, rng, n):
    """Symbols of 8 bits."""
    if kind == "zeros":
        return np.zeros(n, np.uint8)
    if kind == "constant":
        return np.full(n, 0xA7, np.uint8)
    if kind == "all256":
        return rng.permutation(np.arange(n) % 256).astype(np.uint8)
    if kind == "one_escape":
        symbols = skewed(rng, n, 15)
        symbols[n // 2] = 250
        return symbols
    if kind == "many_escapes":
        return np.where(rng.random(n) < 0.3, 120, rng.integers(0, 256, n)).astype(np.uint8)
    if kind == "gaussian":
        return np.clip(rng.standard_normal(n) * 4 + 118, 0, 255).astype(np.uint8)
    return rng.integers(0, 256, n, np.uint8)


def elements(layout, n, kind):
    """Bytes of n elements."""
    rng = np.random.default_rng([n, layout.id, len(kind)])
    if layout.mantissa_bits is None:
        return symbols_of(kind, rng, n * layout.elem_bytes)
    if kind == "noise":
        return rng.integers(0, 256, n * layout.elem_bytes, np.uint8)
    if kind in F32_KINDS:
        weights = (rng.standard_normal(n) * 0.03).astype("<f4")
        if kind == "bf16_in_f32":
            return (weights.view("<u4") & np.uint32(0xFFFF0000)).view(np.uint8)
        rows = np.arange(n) // 200 % 3 == 1  # not at blocks' borders
        weights[rows] = weights[rows].astype("<f2").astype("<f4")
        return weights.view(np.uint8)
    exponent_bits, mantissa_bits = sum(layout.plane_bits), layout.mantissa_bits
    sign = rng.integers(0, 2, n, np.uint64)
    mantissa = rng.integers(0, 1 << mantissa_bits, n, np.uint64)
    top = (1 << exponent_bits) - 1
    if kind in ("zeros", "constant"):
        exponent = sign = mantissa = np.full(n, kind == "constant", np.uint64)
    elif kind == "nan_payloads":
        exponent, mantissa = np.full(n, top, np.uint64), mantissa | np.uint64(1)
    elif kind == "minus_zero":
        exponent, mantissa, sign = np.zeros(n, np.uint64), np.zeros(n, np.uint64), sign | np.uint64(1)
    elif kind == "subnormals":
        exponent = np.zeros(n, np.uint64)
    elif kind in ("all256", "one_escape", "many_escapes"):
        low = symbols_of(kind, rng, n).astype(np.uint64)
        exponent = low << np.uint64(exponent_bits - 8) if exponent_bits >= 8 else low & np.uint64(top)
    else:
        exponent = np.clip(rng.standard_normal(n) * 2 + top // 2 - 4, 0, top).astype(np.uint64)
    if kind.startswith("trailing7"):
        low_bits = min(7, mantissa_bits)
        blocks = np.arange(n) // 128 % 3 == 1 if kind == "trailing7_in_some_blocks" else np.ones(n, bool)
        mantissa[blocks] = mantissa[blocks] >> np.uint64(low_bits) << np.uint64(low_bits)
    words = (sign << np.uint64(exponent_bits) | exponent) << np.uint64(mantissa_bits) | mantissa
    return words.astype(f"<u{layout.elem_bytes}").view(np.uint8)


def moved(data, offset):
    """Copy `data` to an address that is `offset` beyond a multiple of 64."""
    room = np.empty(len(data) + 128, np.uint8)
    begin = -room.ctypes.data % 64 + offset
    room[begin : begin + len(data)] = np.frombuffer(data, np.uint8) if len(data) else 0
    return room[begin : begin + len(data)]


# ---- chunks


def make_chunk(mode, streams):
    """6.3, without padding."""
    head = struct.pack("<BBH", mode, len(streams), 0) + b"".join(struct.pack("<I", codec | len(stream) << 8) for codec, stream in streams)
    return head + b"".join(bytes(stream) for _, stream in streams)


def chunk_crc(data, number):
    return FASTEST.crc32c(data, FASTEST.crc32c(struct.pack("<I", number)))


def same(results):
    """Return what all backends gave."""
    first = results[NAMES[0]]
    for name, result in results.items():
        assert result == first, f"{name} differs from {NAMES[0]}"
    return first


def encode_plane(codec, symbols, with_choice=True):
    """Return (codec, stream), the same from every backend; raw or constant where a plane has too few symbols for the codec."""
    counts = FASTEST.histogram(symbols)
    if codec == RAW:
        return RAW, bytes(symbols)
    if np.count_nonzero(counts) < 2:
        return CONSTANT, bytes(symbols[:1])
    if codec == HUFFMAN:
        lengths = code_lengths(counts)
        return HUFFMAN, same({name: bytes(backend.huffman_encode(lengths, symbols)) for name, backend in BACKENDS.items()})
    book, _ = same({name: each.rans_choose(counts) for name, each in BACKENDS.items()}) if with_choice else FASTEST.rans_choose(counts)
    return RANS, same({name: bytes(backend.rans_encode(book, symbols)) for name, backend in BACKENDS.items()})


def split_all(layout, data):
    """Split on every backend; return symbols, widths and bits as the one that all gave."""
    results = {}
    for name, backend in BACKENDS.items():
        planes = backend.split(layout, data)
        assert planes.symbols.shape == (len(layout.plane_bits), len(data) // layout.elem_bytes), name
        results[name] = (bytes(planes.symbols), bytes(planes.widths), bytes(planes.bits))
    same(results)
    return planes


def split_chunk(layout, planes, codec, **options):
    streams = [encode_plane(codec, symbols, **options) for symbols in planes.symbols]
    if layout.raw_bits:
        streams += [encode_plane(codec, planes.widths, **options), (RAW, planes.bits)]
    return make_chunk(SPLIT, streams)


def check_decodes(layout, chunk, data, number=3):
    n, crc = len(data) // layout.elem_bytes, chunk_crc(data, number)
    for name, backend in BACKENDS.items():
        out = np.full(len(data) + 64, 0xA5, np.uint8)
        assert samples.decode_one(backend, layout, chunk, n, number, crc, out[32:-32]) is True, name
        assert (out[32:-32] == data).all(), name
        assert (out[:32] == 0xA5).all(), f"{name} wrote before the output"
        assert (out[-32:] == 0xA5).all(), f"{name} wrote behind the output"


CODECS = pytest.mark.parametrize("codec", [RANS, HUFFMAN, RAW], ids=["rans", "huffman", "raw"])


@CODECS
@by_layout
def test_every_length_to_257(layout, codec):
    for n in range(1, 258):
        data = moved(elements(layout, n, "gaussian"), n % 64)
        chunk = moved(split_chunk(layout, split_all(layout, data), codec, with_choice=False), (5 * n) % 64)
        check_decodes(layout, chunk, data, number=n)


@pytest.mark.parametrize(("layout", "kind"), LAYOUT_KINDS)
def test_statistics(layout, kind):
    for n in FEW_LENGTHS:
        data = elements(layout, n, kind)
        planes = split_all(layout, data)
        for codec in (RANS, HUFFMAN):
            check_decodes(layout, split_chunk(layout, planes, codec), data)
        check_decodes(layout, make_chunk(WHOLE, [encode_plane(RANS if n % 2 else HUFFMAN, data)]), data)


@pytest.mark.parametrize(("layout", "kind"), LAYOUT_KINDS)
def test_edges_of_batches(layout, kind):
    for n in EDGES if kind in ("gaussian", "trailing7_in_some_blocks", "f16_in_some_rows_of_f32") else EDGES[-1:]:
        data = elements(layout, n, kind)
        planes = split_all(layout, data)
        check_decodes(layout, split_chunk(layout, planes, HUFFMAN if n % 4 == 3 else RANS, with_choice=False), data)


@pytest.mark.parametrize("codec", [RANS, HUFFMAN], ids=["rans", "huffman"])
@pytest.mark.parametrize("n", LARGE)
def test_edges_of_large_chunks(n, codec):
    for layout_id, kind in ((LayoutId.BF16, "gaussian"), (LayoutId.F32, "f16_in_some_rows_of_f32"), (LayoutId.BYTES1, "many_escapes")):
        data = elements(LAYOUTS[layout_id], n, kind)
        check_decodes(LAYOUTS[layout_id], split_chunk(LAYOUTS[layout_id], split_all(LAYOUTS[layout_id], data), codec), data)


@pytest.mark.parametrize("n_bytes", [1, 127, 128, 129, 4095, 4096, 4104])
@by_layout
def test_whole_chunks(layout, n_bytes):
    n_bytes = -(-n_bytes // layout.elem_bytes) * layout.elem_bytes
    data = elements(LAYOUTS[LayoutId.BYTES1], n_bytes, "gaussian")
    for codec in (RAW, RANS, HUFFMAN):
        check_decodes(layout, make_chunk(WHOLE, [encode_plane(codec, data)]), data)


def streams_of(chunk):
    """Return the (codec, bytes) pairs of a chunk."""
    streams, at = [], 4 + 4 * chunk[1]
    for i in range(chunk[1]):
        n = int.from_bytes(chunk[5 + 4 * i : 8 + 4 * i], "little")
        streams.append((chunk[4 + 4 * i], chunk[at : at + n]))
        at += n
    return streams


def chunk_by_kernels(layout, data, most_tables=1):
    """As every backend's encoder makes it, without padding."""
    out = np.empty(chunk_bound(layout, data.size // layout.elem_bytes), np.uint8)

    def encode(backend):
        made = backend.encode_chunks(layout, data, data.size // layout.elem_bytes, 0, most_tables, Attention(0, 64, 16), out)
        return out[: made.sizes[0]].tobytes()

    chunk = same({name: encode(backend) for name, backend in BACKENDS.items()})
    return make_chunk(SPLIT, streams_of(chunk))


LEAD_LAYOUTS = [layout for layout in LAYOUTS.values() if layout.has_context(0)]


@pytest.mark.parametrize("kind", [*ANY_KINDS, *FLOAT_KINDS])
@pytest.mark.parametrize("layout", LEAD_LAYOUTS, ids=lambda layout: layout.id.name)
def test_leading_bits_in_context(layout, kind):
    for n in [*FEW_LENGTHS, 600, 1000, 1152, *EDGES]:
        data = moved(elements(layout, n, kind), n % 64)
        chunk = chunk_by_kernels(layout, data)
        if kind in ("gaussian", "noise") and n >= 600:
            assert chunk[4] == CONTEXT
        check_decodes(layout, chunk, data)
        planes = reference.decode_split(reference.LAYOUTS[int(layout.id)], [(c, memoryview(s)) for c, s in streams_of(chunk)], n)
        assert planes == data.tobytes()


def test_every_context_and_symbol():
    """Exponents below, in and above the window of 16 contexts, each with symbols of its own frequencies: the encoders divide by every frequency they meet."""
    layout, rng = LAYOUTS[LayoutId.BF16_LEAD], np.random.default_rng(12)
    for low in (0, 3, 100, 236, 246):
        exponents = np.clip(low + np.arange(24), 0, 255).repeat(700).astype("<u2")
        lead = np.concatenate([rng.choice(4, 700, p=p) for p in rng.dirichlet([0.4] * 4, 24)]).astype("<u2")
        order = rng.permutation(exponents.size)
        data = (exponents[order] << 7 | lead[order] << 5 | 9).view(np.uint8)
        chunk = chunk_by_kernels(layout, data)
        assert chunk[4] == CONTEXT
        check_decodes(layout, chunk, data)


def rows(layout, n, n_scales, length):
    """Elements in rows of `length`, each of one of a few scales."""
    rng = np.random.default_rng([n, n_scales])
    scale = rng.integers(0, n_scales, -(-n // length)).repeat(length)[:n]
    bits = sum(layout.plane_bits)
    exponent = np.clip(rng.standard_normal(n) * 1.3 + (1 << bits - 1) - 2.5 * scale, 0, (1 << bits) - 1).astype(np.uint64)
    low = layout.mantissa_bits or 0
    words = exponent << np.uint64(low) | rng.integers(0, 1 << low, n, np.uint64) | rng.integers(0, 2, n, np.uint64) << np.uint64(8 * layout.elem_bytes - 1)
    return words.astype(f"<u{layout.elem_bytes}").view(np.uint8)


@pytest.mark.parametrize("layout_id", [LayoutId.BF16, LayoutId.F8_E4M3, LayoutId.F16_LEAD], ids=lambda each: each.name)
@pytest.mark.parametrize("n", [1 << 14, (1 << 14) + 200, 1 << 17, (1 << 17) + 257])
def test_rows_get_codebooks_of_their_own(layout_id, n):
    layout = LAYOUTS[layout_id]
    for n_scales, length in ((2, 256), (4, 256), (7, 300)):
        data = rows(layout, n, n_scales, length)
        one, several = chunk_by_kernels(layout, data), chunk_by_kernels(layout, data, 16)
        stream = 1 if layout.has_context(0) else 0
        assert several[4 + 4 * stream] == TABLES
        assert len(several) < len(one)
        check_decodes(layout, several, data)
        streams = [(codec, memoryview(each)) for codec, each in streams_of(several)]
        assert reference.decode_split(reference.LAYOUTS[int(layout.id)], streams, n) == data.tobytes()


def test_one_codebook_where_there_is_nothing_to_choose():
    layout = LAYOUTS[LayoutId.BYTES1]
    flat = np.tile(np.arange(8, dtype=np.uint8), 1 << 12)
    for data in (flat, flat[: 1 << 13], np.sort(flat)):
        assert len(chunk_by_kernels(layout, data, 16)) <= len(chunk_by_kernels(layout, data))
    assert chunk_by_kernels(layout, flat, 16)[4] == RANS
    sorted_chunk = chunk_by_kernels(layout, np.sort(np.repeat(np.arange(2, dtype=np.uint8), 1 << 13)), 16)
    assert sorted_chunk[4] == TABLES  # each run has one symbol: K = 1 and an escape that never occurs
    check_decodes(layout, sorted_chunk, np.sort(np.repeat(np.arange(2, dtype=np.uint8), 1 << 13)))


def tables_by_hand():
    """Return (symbols, chunk): 400 of them in runs of one group, three codebooks, escapes in two of them."""
    books = [RansBook(b"\1\2\3", bytes([200, 40, 10]), 6), RansBook(b"\7", b"\xff", 1), RansBook(b"\5\6", bytes([100, 156]), 0)]
    ids, rng = np.array([2, 0, 1, 0]), np.random.default_rng(3)
    which = ids.repeat(128)[:400]
    first = rng.choice([1, 2, 3, 9, 250], 400, p=[0.7, 0.2, 0.05, 0.03, 0.02])
    symbols = np.choose(which, [first, rng.choice([7, 99], 400, p=[0.97, 0.03]), rng.choice([5, 6], 400)]).astype(np.uint8)
    head = bytes([2, 1]) + b"".join(portable.book_bytes(book).tobytes() for book in books) + bytes([2 | 0 << 2 | 1 << 4 | 0 << 6])
    return symbols, make_chunk(SPLIT, [(TABLES, head + portable.encode_symbols(books, which, symbols).tobytes())])


def test_codebooks_by_hand():
    symbols, chunk = tables_by_hand()
    check_decodes(LAYOUTS[LayoutId.BYTES1], chunk, symbols)
    assert reference.decode_stream(TABLES, streams_of(chunk)[0][1], 400).tobytes() == symbols.tobytes()


def test_kinds_are_what_they_say():
    f32 = LAYOUTS[LayoutId.F32]
    assert set(FIRST.split(f32, elements(f32, 1280, "bf16_in_f32")).widths) == {8}
    assert set(FIRST.split(f32, elements(f32, 1280, "trailing7")).widths) == {17}
    assert len(set(FIRST.split(f32, elements(f32, 1280, "f16_in_some_rows_of_f32")).widths)) > 1
    assert np.isnan(elements(f32, 500, "nan_payloads").view("<f4")).all()
    assert set(elements(f32, 500, "minus_zero").view("<u4")) == {1 << 31}
    assert np.count_nonzero(FIRST.histogram(FIRST.split(LAYOUTS[LayoutId.BF16], elements(LAYOUTS[LayoutId.BF16], 600, "all256")).symbols[0])) == 256
    for kind in ("one_escape", "many_escapes"):
        assert FIRST.rans_choose(FIRST.histogram(symbols_of(kind, np.random.default_rng(1), 4000)))[0].escape_freq


# ---- one function at a time


@by_layout
def test_split_of_nothing(layout):
    planes = split_all(layout, np.empty(0, np.uint8))
    assert planes.widths.size == planes.bits.size == 0


def test_other_functions_on_nothing():
    nothing = np.empty(0, np.uint8)
    assert not same({name: backend.histogram(nothing).tolist() for name, backend in BACKENDS.items()})[0]
    assert same({name: backend.crc32c(nothing, 77) for name, backend in BACKENDS.items()}) == 77
    assert same({name: backend.sample_repeats(nothing) for name, backend in BACKENDS.items()}) == 0
    book, lengths = RansBook(b"\1\2", b"\x80\x80", 0), bytes([1, 1, *[0] * 254])
    stream = same({name: bytes(backend.rans_encode(book, nothing)) for name, backend in BACKENDS.items()})
    assert len(stream) == 2 + 4 + 256 + 4
    assert len(same({name: bytes(backend.huffman_encode(lengths, nothing)) for name, backend in BACKENDS.items()})) == 1 + 2 + 1 + 9


@pytest.mark.parametrize("kind", ANY_KINDS)
def test_histogram(kind):
    for n in [*FEW_LENGTHS, *EDGES, LARGE[-1]]:
        symbols = moved(symbols_of(kind, np.random.default_rng(n), n), n % 64)
        counts = same({name: backend.histogram(symbols).tolist() for name, backend in BACKENDS.items()})
        assert counts == np.bincount(symbols, minlength=256).tolist()
    assert all(backend.histogram(symbols).dtype == np.uint32 for backend in BACKENDS.values())


def test_crc32c():
    data = moved(np.random.default_rng(5).bytes((1 << 20) + 333), 0)
    assert same({name: backend.crc32c(b"123456789") for name, backend in BACKENDS.items()}) == 0xE3069283
    lengths = [*range(300), 511, 512, 513, 1023, 1025, *EDGES, 16383, 16384, 16385, 32767, 65537, *LARGE, (1 << 20) - 1, 1 << 20, data.size]
    for n in lengths:
        begin = n % 64 if n + 64 <= data.size else 0
        part = data[begin : begin + n]
        whole = same({name: backend.crc32c(part) for name, backend in BACKENDS.items()})
        same({name: backend.crc32c(part, 0xDEADBEEF) for name, backend in BACKENDS.items()})
        cut = n * 2 // 3
        assert same({name: backend.crc32c(part[cut:], backend.crc32c(part[:cut])) for name, backend in BACKENDS.items()}) == whole


def test_sample_repeats():
    rng = np.random.default_rng(6)
    for n in [*range(40), 255, 256, 1023, 1024, 1025, 2047, 2048, 2049, 4097, 30000]:
        for distinct in (1, 2, 50, 1 << 62):
            words = np.append(rng.integers(0, distinct, n, np.uint64).view(np.uint8), np.zeros(n % 8, np.uint8))  # a tail that is ignored
            runs = [words[begin : begin + 8192] for begin in (0, words.size // 2 // 8 * 8)]
            expected = sum(run.size // 8 - len(set(run[: run.size // 8 * 8].view(np.uint64).tolist())) for run in runs)
            assert same({name: backend.sample_repeats(words) for name, backend in BACKENDS.items()}) == expected


def count_vectors():
    """Yield histograms with ties, extremes, and the numbers of symbols at which a codebook's shape changes."""
    rng = np.random.default_rng(7)
    for n_symbols in (2, 3, 14, 15, 16, 17, 18, 40, 255, 256):
        chosen = rng.permutation(256)[:n_symbols]
        for counts in (
            np.ones(n_symbols), np.full(n_symbols, 1 << 15), 2.0 ** np.minimum(np.arange(n_symbols), 18), np.arange(1, n_symbols + 1),
            *[rng.integers(1, high, n_symbols) for high in (2, 3, 100, 1 << 15) if high > 1], *[rng.geometric(p, n_symbols) for p in (0.9, 0.01)],
        ):  # fmt: skip
            vector = np.zeros(256, np.uint32)
            vector[chosen] = counts
            yield vector
    for common, rare in ((1 << 23, 1), (1 << 31, 1), (1 << 31, 1 << 31)):  # a sum above 2^31; frequencies 255 and 1
        vector = np.zeros(256, np.uint32)
        vector[[9, 3]] = common, rare
        yield vector


def test_rans_choose():
    for vector in count_vectors():
        book, cost = same({name: backend.rans_choose(vector) for name, backend in BACKENDS.items()})
        assert sum(book.freqs) + book.escape_freq == 256
        assert 0 < len(book.symbols) == len(book.freqs) <= (15 if book.escape_freq else 16)
        assert cost > 0


def check_rans(book, symbols):
    stream = same({name: bytes(backend.rans_encode(book, symbols)) for name, backend in BACKENDS.items()})
    check_decodes(LAYOUTS[LayoutId.BYTES1], make_chunk(SPLIT, [(RANS, stream)]), symbols)


def test_rans_with_every_frequency():
    """The native encoders divide by multiplication: each divisor, with many states."""
    rng = np.random.default_rng(8)
    for f in range(1, 256):
        symbols = np.where(rng.random(1500) < max(0.2, f / 256), 7, 200).astype(np.uint8)
        check_rans(RansBook(b"\x07\xc8", bytes((f, 256 - f)), 0), symbols)
        check_rans(RansBook(b"\x07", bytes((f,)), 256 - f), symbols[:300])


@pytest.mark.parametrize(("k", "escape"), [(1, 1), (1, 255), (2, 0), (2, 100), (7, 0), (7, 1), (15, 0), (15, 1), (15, 100), (16, 0)])
def test_rans_with_every_size_of_codebook(k, escape):
    rng = np.random.default_rng(k)
    freqs = np.ones(k, int)
    freqs[-1] += 256 - escape - k
    chosen = rng.permutation(256)[:k].astype(np.uint8)
    book = RansBook(bytes(chosen), bytes(freqs.tolist()), escape)
    for n in (1, 127, 128, 129, 1000, 4097):
        check_rans(book, rng.choice(chosen, n))
        if escape:
            check_rans(book, rng.integers(0, 256, n, np.uint8))  # nearly all escaped
            check_rans(book, np.full(n, chosen[0] ^ 1, np.uint8) if chosen[0] ^ 1 not in chosen else rng.choice(chosen, n))


def huffman_lengths(n_symbols, shape, rng):
    """A complete code: the longest possible, or the flattest."""
    lengths = [1, 1]
    while len(lengths) < n_symbols:  # part a leaf: the deepest that may grow, or the highest
        at = max((i for i, x in enumerate(lengths) if x < 12), key=lambda i: lengths[i] if shape == "deep" else -lengths[i])
        lengths[at] += 1
        lengths.append(lengths[at])
    table = bytearray(256)
    for s, length in zip(rng.permutation(256)[:n_symbols].tolist(), lengths, strict=True):
        table[s] = length
    return bytes(table)


@pytest.mark.parametrize("shape", ["deep", "flat"])
@pytest.mark.parametrize("n_symbols", [2, 3, 12, 13, 14, 31, 32, 33, 200, 255, 256])
def test_huffman_with_every_shape_of_code(n_symbols, shape):
    rng = np.random.default_rng(n_symbols)
    lengths = huffman_lengths(n_symbols, shape, rng)
    assert sum(2.0**-x for x in lengths if x) == 1
    alphabet = np.flatnonzero(np.frombuffer(lengths, np.uint8)).astype(np.uint8)
    for n in (*range(1, 20), 127, 128, 129, 4097):
        for symbols in (rng.choice(alphabet, n), np.full(n, alphabet[np.argmax([lengths[s] for s in alphabet])], np.uint8)):
            stream = same({name: bytes(backend.huffman_encode(lengths, symbols)) for name, backend in BACKENDS.items()})
            check_decodes(LAYOUTS[LayoutId.BYTES1], make_chunk(SPLIT, [(HUFFMAN, stream)]), symbols)


def test_huffman_codes_stand_as_the_specification_says():
    lengths = bytes([1, 2, 3, 3, *[0] * 252])  # codes 0, 10, 110, 111: 8.4.3 has 110 as the byte 0x03
    assert {bytes(backend.huffman_encode(lengths, b"\x02"))[-1] for backend in BACKENDS.values()} == {3}


def test_bytes_are_buffers_too():
    book, lengths = RansBook(b"\1\2", b"\x80\x80", 0), bytes([0, 1, 1, *[0] * 253])
    for backend in BACKENDS.values():
        assert backend.histogram(b"\1\2\1")[1] == 2
        assert bytes(backend.rans_encode(book, b"\1\2")) == bytes(FASTEST.rans_encode(book, np.array([1, 2], np.uint8)))
        assert bytes(backend.huffman_encode(lengths, b"\1\2")) == bytes(FASTEST.huffman_encode(lengths, np.array([1, 2], np.uint8)))
        assert backend.split(LAYOUTS[LayoutId.BF16], b"\0\1\2\3").symbols.tolist() == [[2, 6]]
        for kind in (bytes, bytearray, memoryview):
            out = np.zeros(2, np.uint8)
            chunk = kind(make_chunk(SPLIT, [(RAW, b"ab")]))
            assert samples.decode_one(backend, LAYOUTS[LayoutId.BYTES1], chunk, 2, 0, chunk_crc(b"ab", 0), out)


WRONG_CALLS = {
    "rans_choose_one_symbol": lambda k: k.rans_choose(np.bincount([3], minlength=256).astype(np.uint32)),
    "rans_symbol_not_in_book": lambda k: k.rans_encode(RansBook(b"\1\2", b"\x80\x80", 0), np.array([9], np.uint8)),
    "rans_sum_255": lambda k: k.rans_encode(RansBook(b"\1\2", b"\x80\x7f", 0), np.array([1], np.uint8)),
    "rans_frequency_0": lambda k: k.rans_encode(RansBook(b"\1\2\3", b"\x80\x80\0", 0), np.array([1], np.uint8)),
    "rans_symbol_twice": lambda k: k.rans_encode(RansBook(b"\1\1", b"\x80\x80", 0), np.array([1], np.uint8)),
    "rans_16_symbols_and_escape": lambda k: k.rans_encode(RansBook(bytes(range(16)), bytes([15] * 16), 16), np.array([1], np.uint8)),
    "huffman_symbol_without_code": lambda k: k.huffman_encode(bytes([1, 1, *[0] * 254]), np.array([9], np.uint8)),
    "huffman_incomplete": lambda k: k.huffman_encode(bytes([1, 2, *[0] * 254]), np.array([0], np.uint8)),
    "huffman_13_bits": lambda k: k.huffman_encode(bytes([13] * 256), np.array([0], np.uint8)),
    "zstd_not_expanded": lambda k: k.decode_streams(LAYOUTS[LayoutId.BYTES1], SPLIT, [(ZSTD, b"a")], 1, 0, np.zeros(1, np.uint8)),
}


@pytest.mark.parametrize("call", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_calls_are_refused_rather_than_written(call):
    for backend in BACKENDS.values():
        with pytest.raises(WeightpackError, match="bug in weightpack") as caught:
            call(backend)
        assert not isinstance(caught.value, FormatError)


# ---- damage


def outcome(backend, layout, chunk, n, crc):
    """Return the class that was raised, or what was decoded; with the bytes, where only the checksum told."""
    out = np.zeros(n * layout.elem_bytes, np.uint8)
    try:
        done = samples.decode_one(backend, layout, chunk, n, 0, crc, out)
    except ChecksumError:
        return ChecksumError, out.tobytes()
    except FormatError as error:  # anything else fails the test
        return type(error), b""
    return (True, out.tobytes()) if done else (False, b"")


def agreed_outcome(layout, chunk, n, crc, what, exact=True):
    outcomes = {name: outcome(backend, layout, chunk, n, crc) for name, backend in BACKENDS.items()}
    if exact:
        assert len(set(outcomes.values())) == 1, (what, {name: kind for name, (kind, _) in outcomes.items()})
    else:  # more than one thing may be wrong, and the native core meets them in another order
        assert len({kind if isinstance(kind, bool) else "refused" for kind, _ in outcomes.values()}) == 1, (what, outcomes)
    return outcomes[NAMES[0]]


DAMAGED = [
    # layout, kind, n, codec, mode
    (LayoutId.BF16, "gaussian", 130, RANS, SPLIT), (LayoutId.BF16, "many_escapes", 140, RANS, SPLIT), (LayoutId.BF16, "gaussian", 75, HUFFMAN, SPLIT),
    (LayoutId.F16, "trailing7_in_some_blocks", 133, HUFFMAN, SPLIT), (LayoutId.F16, "one_escape", 131, RANS, SPLIT),
    (LayoutId.F32, "trailing7", 9, RANS, SPLIT), (LayoutId.F32, "f16_in_some_rows_of_f32", 203, HUFFMAN, SPLIT),
    (LayoutId.F64, "gaussian", 21, RANS, SPLIT), (LayoutId.F64, "gaussian", 19, HUFFMAN, SPLIT), (LayoutId.F64, "constant", 13, RANS, SPLIT),
    (LayoutId.F8_E4M3, "gaussian", 201, RANS, SPLIT), (LayoutId.F8_E5M2, "gaussian", 77, HUFFMAN, SPLIT),
    (LayoutId.BYTES1, "many_escapes", 300, RANS, SPLIT), (LayoutId.BYTES1, "all256", 290, HUFFMAN, SPLIT),
    (LayoutId.BYTES2, "gaussian", 31, HUFFMAN, SPLIT), (LayoutId.BYTES4, "gaussian", 5, RAW, SPLIT), (LayoutId.BYTES8, "constant", 40, RANS, SPLIT),
    (LayoutId.F8_E5M2_LEAD, "gaussian", 450, CONTEXT, SPLIT), (LayoutId.BYTES1, "rows", 400, TABLES, SPLIT), (LayoutId.BF16_LEAD, "constant", 30, RANS, SPLIT),
    (LayoutId.F32, "gaussian", 70, HUFFMAN, WHOLE), (LayoutId.BF16, "one_escape", 66, RANS, WHOLE),
]  # fmt: skip


def damaged_id(value):
    names = {RAW: "raw", RANS: "rans", HUFFMAN: "huffman", CONTEXT: "context", TABLES: "tables"}
    layout, kind, n, codec, mode = value
    return f"{layout.name}-{kind}-{n}-{names[codec]}{'-whole' if mode else ''}"


@pytest.fixture(params=DAMAGED, ids=damaged_id)
def sound(request):
    """A layout, n, source bytes, chunk and its CRC."""
    layout_id, kind, n, codec, mode = request.param
    layout = LAYOUTS[layout_id]
    data = elements(layout, n, kind)
    if codec == CONTEXT:
        chunk = chunk_by_kernels(layout, data)
    elif codec == TABLES:
        data, chunk = tables_by_hand()
    else:
        chunk = make_chunk(WHOLE, [encode_plane(codec, data)]) if mode else split_chunk(layout, split_all(layout, data), codec)
    assert codec == RAW or kind == "constant" or codec in chunk[4 : 4 + 4 * chunk[1] : 4], "the sample misses its codec"
    crc = chunk_crc(data, 0)
    assert agreed_outcome(layout, chunk, n, crc, "sound") == (True, data.tobytes())
    return layout, n, data, chunk, crc


def test_every_truncation(sound):
    layout, n, _, chunk, crc = sound
    for size in range(len(chunk)):
        kind, _ = agreed_outcome(layout, chunk[:size], n, crc, f"{size} of {len(chunk)} bytes")
        assert kind is TruncatedError


def test_every_flipped_bit(sound):
    layout, n, data, chunk, crc = sound
    table_end = 4 + 4 * chunk[1]
    # With wrong contexts, a stream may seem to end early before the plane that gave them is found to be wrong; numpy decodes that one to its end first.
    first_exact = 8 * (len(chunk) if layout.has_context(0) else table_end)
    for bit in range(8 * len(chunk)):
        bad = bytearray(chunk)
        bad[bit // 8] ^= 1 << bit % 8
        kind, out = agreed_outcome(layout, bad, n, crc, f"bit {bit % 8} of byte {bit // 8}", exact=bit >= first_exact)
        # A codec turned into zstd is the caller's to expand; nothing was decoded then.
        assert (kind is True and out == data.tobytes()) or (kind is False and bit < 8 * table_end) or not isinstance(kind, bool)


def test_random_damage(sound):
    layout, n, data, chunk, crc = sound
    rng = np.random.default_rng(len(chunk))
    for i in range(200):
        bad = np.frombuffer(chunk, np.uint8).copy()
        at = rng.integers(0, bad.size, 1 + i % 5)
        bad[at] = rng.choice(np.array([0, 1, 127, 128, 255, *rng.integers(0, 256, 5)], np.uint8), at.size)
        if i % 7 == 0:
            bad = np.delete(bad, slice(at[0], at[0] + 1 + i % 11))
        kind, out = agreed_outcome(layout, bad, n, crc, f"damage {i}", exact=False)
        assert kind is not True or out == data.tobytes()


def test_wrong_lengths_and_numbers(sound):
    layout, n, data, chunk, crc = sound
    for other in (n - 1, n + 1, n + 128, 2 * n):
        if other:
            assert agreed_outcome(layout, chunk, other, crc, f"{other} elements", exact=False)[0] is not True
    for backend in BACKENDS.values():
        with pytest.raises(ChecksumError):
            samples.decode_one(backend, layout, chunk, n, 1, crc, np.zeros(len(data), np.uint8))


def test_padding(sound):
    layout, n, data, chunk, crc = sound
    for size in range(1, 16):
        assert agreed_outcome(layout, chunk + bytes(size), n, crc, f"{size} bytes of padding") == (True, data.tobytes())
        assert agreed_outcome(layout, chunk + bytes(size - 1) + b"\1", n, crc, "padding of 1")[0] is CorruptionError
    assert agreed_outcome(layout, chunk + bytes(16), n, crc, "16 bytes of padding")[0] is CorruptionError


def hand_made(codec, symbols, extra):
    """A stream of a codebook that has a symbol, `extra`, which does not occur."""
    if codec == RANS:
        return bytes(FIRST.rans_encode(RansBook(bytes((1, 2, extra)), b"\x80\x7f\x01", 0), symbols))
    lengths = bytearray(256)
    lengths[1], lengths[2], lengths[extra] = 1, 2, 2
    return bytes(FIRST.huffman_encode(bytes(lengths), symbols))


BYTES1, F16, BF16 = LAYOUTS[LayoutId.BYTES1], LAYOUTS[LayoutId.F16], LAYOUTS[LayoutId.BF16]
AB = np.array([1, 2, 1], np.uint8)
BF16_LEAD = LAYOUTS[LayoutId.BF16_LEAD]
# One symbol of four that are as likely, in lane 0: its state goes from 1024 to 64 * 4 + 0. The other lanes have none.
IN_CONTEXT = bytes([7]) + bytes([64, 128, 192]) * 16 + b"\0\4" + b"\0\1" * 127


# 8.7: two codebooks of two symbols that are as likely, runs of one group; each symbol is a bit of its lane's state, so 129 of them need no other byte.
BOOK_A, BOOK_B = b"\2\0\1\2\x80\x80", b"\2\0\5\6\x80\x80"


def with_tables(first=b"\1", groups=b"\1", second=BOOK_B, ids=b"\2", symbols=129, end=b""):
    states = [1 << (8 + (lane < symbols) + (lane + 128 < symbols)) for lane in range(128)]
    return first + groups + BOOK_A + second + ids + np.array(states, "<u2").tobytes() + bytes(4) + end


def lead_chunk(codec, stream, exponents=(RAW, b"\7")):
    return make_chunk(SPLIT, [(codec, stream), exponents, (CONSTANT, b"\0"), (RAW, b"")])


def changed(at, value):
    return IN_CONTEXT[:at] + bytes([value]) + IN_CONTEXT[at + 1 :]


FIELDS = {
    # name: layout, n, chunk, expected
    "empty": (BYTES1, 1, b"", TruncatedError),
    "mode_2": (BYTES1, 1, b"\2\1\0\0\0\1\0\0a", False),  # fields are put together by the caller
    "mode_3": (BYTES1, 1, b"\3\1\0\0\0\1\0\0a", False),  # and bases found
    "mode_4": (BYTES1, 1, b"\4\1\0\0\0\1\0\0a", False),
    "mode_5": (BYTES1, 1, b"\5\1\0\0\0\1\0\0a", UnsupportedError),
    "no_streams": (BYTES1, 1, b"\0\0\0\0", CorruptionError),
    "two_streams": (BYTES1, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"a")]), CorruptionError),
    "whole_of_no_streams": (BF16, 1, make_chunk(WHOLE, []), CorruptionError),
    "whole_of_two_streams": (BYTES1, 1, make_chunk(WHOLE, [(RAW, b"a"), (RAW, b"a")]), CorruptionError),
    "whole_of_split_streams": (BF16, 1, make_chunk(WHOLE, [(RAW, b"a"), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "reserved": (BYTES1, 1, b"\0\1\1\0\0\1\0\0a", CorruptionError),
    "codec_200": (BYTES1, 1, make_chunk(SPLIT, [(200, b"a")]), UnsupportedError),
    "zstd": (BYTES1, 1, make_chunk(SPLIT, [(ZSTD, b"a")]), False),
    "zstd_beside_codec_9": (BF16, 1, make_chunk(SPLIT, [(9, b"a"), (ZSTD, b"a"), (RAW, b"")]), False),
    "raw_short": (BYTES1, 2, make_chunk(SPLIT, [(RAW, b"a")]), TruncatedError),
    "raw_long": (BYTES1, 2, make_chunk(SPLIT, [(RAW, b"abc")]), CorruptionError),
    "constant_empty": (BYTES1, 2, make_chunk(SPLIT, [(CONSTANT, b"")]), TruncatedError),
    "constant_long": (BYTES1, 2, make_chunk(SPLIT, [(CONSTANT, b"aa")]), CorruptionError),
    "rans_empty": (BYTES1, 1, make_chunk(SPLIT, [(RANS, b"")]), TruncatedError),
    "huffman_empty": (BYTES1, 1, make_chunk(SPLIT, [(HUFFMAN, b"")]), TruncatedError),
    "bits_constant": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (CONSTANT, b"\0")]), CorruptionError),
    "bits_rans": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (RANS, b"\0")]), CorruptionError),
    "bits_huffman": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (HUFFMAN, b"\0")]), CorruptionError),
    "bits_codec_200": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (200, b"\0")]), UnsupportedError),
    "bits_context": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (CONTEXT, b"\0")]), CorruptionError),
    # 8.6
    "context_without_next_plane": (BYTES1, 1, make_chunk(SPLIT, [(CONTEXT, IN_CONTEXT)]), CorruptionError),
    "context_of_8_bits": (LAYOUTS[LayoutId.F64], 1, make_chunk(SPLIT, [(CONTEXT, IN_CONTEXT), (RAW, b"\0"), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "context_of_the_last_plane": (BF16_LEAD, 1, lead_chunk(RAW, b"\0", (CONTEXT, IN_CONTEXT)), CorruptionError),
    "context_of_a_whole_chunk": (BF16_LEAD, 1, make_chunk(WHOLE, [(CONTEXT, IN_CONTEXT)]), CorruptionError),
    "context_of_widths": (BF16_LEAD, 1, make_chunk(SPLIT, [(RAW, b"\0"), (RAW, b"\0"), (CONTEXT, IN_CONTEXT), (RAW, b"")]), CorruptionError),
    "context_empty": (BF16_LEAD, 1, lead_chunk(CONTEXT, b""), TruncatedError),
    "context_head_cut": (BF16_LEAD, 1, lead_chunk(CONTEXT, IN_CONTEXT[:304]), TruncatedError),
    "context_needs_a_byte": (BF16_LEAD, 2, lead_chunk(CONTEXT, IN_CONTEXT, (RAW, b"\7\7")), TruncatedError),
    "context_has_a_byte_more": (BF16_LEAD, 1, lead_chunk(CONTEXT, IN_CONTEXT + b"\0"), CorruptionError),
    "context_start_0": (BF16_LEAD, 1, lead_chunk(CONTEXT, changed(1, 0)), CorruptionError),
    "context_starts_equal": (BF16_LEAD, 1, lead_chunk(CONTEXT, changed(48, 128)), CorruptionError),
    "context_starts_fall": (BF16_LEAD, 1, lead_chunk(CONTEXT, changed(47, 200)), CorruptionError),
    "context_state_255": (BF16_LEAD, 1, lead_chunk(CONTEXT, changed(304, 0)), CorruptionError),
    "context_is_sound": (BF16_LEAD, 1, lead_chunk(CONTEXT, IN_CONTEXT), ChecksumError),
    "lead_of_3_bits": (BF16_LEAD, 1, lead_chunk(RAW, b"\4"), CorruptionError),
    "bits_tables": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (TABLES, b"\0")]), CorruptionError),
    # 8.7
    "tables_are_sound": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables())]), ChecksumError),
    "tables_in_a_whole_chunk": (BF16, 65, make_chunk(WHOLE, [(TABLES, with_tables(symbols=130))]), ChecksumError),
    "tables_empty": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, b"")]), TruncatedError),
    "tables_one": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(first=b"\0"))]), CorruptionError),
    "tables_17": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(first=b"\x10"))]), CorruptionError),
    "tables_of_3_that_are_2": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(first=b"\2"))]), CorruptionError),
    "tables_run_of_0_groups": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(groups=b"\0"))]), CorruptionError),
    "tables_run_of_2_groups": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(groups=b"\2"))]), CorruptionError),  # then bit 1 is unused
    "tables_bad_codebook": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(second=b"\2\0\5\6\x80\x7f"))]), CorruptionError),
    "tables_unused_bit": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(ids=b"\6"))]), CorruptionError),
    "tables_id_of_none": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(first=b"\2", second=BOOK_B + BOOK_A, ids=b"\x0c"))]), CorruptionError),
    "tables_ids_cut": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables()[:14])]), TruncatedError),
    "tables_literal_without_escape": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(end=b"a"))]), CorruptionError),
    "tables_symbol_too_wide": (
        F16, 129, make_chunk(SPLIT, [(TABLES, with_tables(second=b"\2\0\5\x20\x80\x80")), (CONSTANT, b"\0"), (RAW, b"")]), CorruptionError
    ),
    "bits_short": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\2"), (RAW, b"\0")]), TruncatedError),
    "bits_long": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (RAW, b"\0\0")]), CorruptionError),
    "width_9_of_8": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\x09"), (RAW, b"\0\0")]), CorruptionError),
    "unused_bit_set": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (RAW, b"\2")]), CorruptionError),
    "field_raw": (F16, 1, make_chunk(SPLIT, [(RAW, b"\x20"), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "field_constant": (F16, 3, make_chunk(SPLIT, [(CONSTANT, b"\x20"), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    # FORMAT 7.2 leaves open whether a codebook's symbol that never occurs must fit the field; this is what the native core does.
    "field_rans_unused": (F16, 3, make_chunk(SPLIT, [(RANS, hand_made(RANS, AB, 32)), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "field_huffman_unused": (F16, 3, make_chunk(SPLIT, [(HUFFMAN, hand_made(HUFFMAN, AB, 32)), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "field_rans_unused_but_fits": (F16, 3, make_chunk(SPLIT, [(RANS, hand_made(RANS, AB, 31)), (RAW, b"\0"), (RAW, b"")]), ChecksumError),
    "field_huffman_unused_but_fits": (F16, 3, make_chunk(SPLIT, [(HUFFMAN, hand_made(HUFFMAN, AB, 31)), (RAW, b"\0"), (RAW, b"")]), ChecksumError),
}


@pytest.mark.parametrize(("layout", "n", "chunk", "expected"), FIELDS.values(), ids=FIELDS)
def test_fields(layout, n, chunk, expected):
    assert agreed_outcome(layout, chunk, n, 0, "field")[0] is expected


STREAMS = {
    "mode_2": (2, [(RAW, b"a")], UnsupportedError),
    "whole_of_none": (WHOLE, [], CorruptionError),
    "whole_of_two": (WHOLE, [(RAW, b"a"), (RAW, b"a")], CorruptionError),
    "split_of_none": (SPLIT, [], CorruptionError),
    "codec_200": (SPLIT, [(200, b"a")], UnsupportedError),
}


@pytest.mark.parametrize(("mode", "streams", "expected"), STREAMS.values(), ids=STREAMS)
def test_decode_streams_refuses(mode, streams, expected):
    for backend in BACKENDS.values():
        with pytest.raises(expected):
            backend.decode_streams(BYTES1, mode, streams, 1, 0, np.zeros(1, np.uint8))


@pytest.mark.parametrize("layout_id", [LayoutId.BYTES1, LayoutId.BYTES8, LayoutId.BF16, LayoutId.F32, LayoutId.F8_E4M3], ids=lambda each: each.name)
def test_memory_stays_a_few_times_the_chunk(layout_id):
    layout, n_bytes = LAYOUTS[layout_id], 1 << 20
    n = n_bytes // layout.elem_bytes
    planes = FASTEST.split(layout, elements(layout, n, "gaussian"))
    streams = [(RAW, symbols) for symbols in planes.symbols] + ([(RAW, planes.widths), (RAW, planes.bits)] if layout.raw_bits else [])
    assert peak(lambda backend: backend.decode_streams(layout, SPLIT, streams, n, 0, np.empty(n_bytes, np.uint8))) < 8 * n_bytes


def test_memory_does_not_follow_a_stream_that_no_symbol_needs():
    """Four symbols, and a Huffman bitstream of megabytes behind them."""
    stream = bytes(FASTEST.huffman_encode(bytes([1, 1, *[0] * 254]), np.zeros(4, np.uint8))) + bytes(4 << 20)

    def decode(backend):
        with pytest.raises(CorruptionError):
            backend.decode_streams(BYTES1, SPLIT, [(HUFFMAN, stream)], 4, 0, np.zeros(4, np.uint8))

    assert peak(decode) < 3 * len(stream)


def peak(work):
    """Return the most that any backend allocates in Python and numpy."""
    most = 0
    for backend in BACKENDS.values():
        work(backend)  # tables that stay are not counted
        tracemalloc.start()
        try:
            work(backend)
            most = max(most, tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return most
