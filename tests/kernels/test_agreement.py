# SPDX-License-Identifier: Apache-2.0
"""Each backend encodes, each other decodes: the same bytes from all, of every function, layout, codec and length.

Section numbers are those of docs/FORMAT.md.
"""

from __future__ import annotations

import numpy as np
import pytest
import samples
from backends import (
    BACKENDS,
    CONTEXT,
    FASTEST,
    FIRST,
    HUFFMAN,
    NAMES,
    RANS,
    RAW,
    SPLIT,
    TABLES,
    WHOLE,
    ZSTD,
    check_decodes,
    chunk_by_kernels,
    chunk_crc,
    encode_plane,
    make_chunk,
    same,
    split_all,
    split_chunk,
    streams_of,
    tables_by_hand,
)
from elements import ANY_KINDS, FLOAT_KINDS, elements, elements_in_rows, kinds_of, moved, symbols_of
from hypothesis import given, settings
from hypothesis import strategies as st

from weightpack import kernels, reference
from weightpack.errors import FormatError, WeightpackError
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.kernels import RansBook
from weightpack.kernels import chunk_crc as numbered_crc
from weightpack.options import PackOptions
from weightpack.reading.chunks import decode_chunks

LENGTHS = [*range(1, 20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 511, 513, 4095, 4096, 4097, 8192 + 77]
FEW_LENGTHS = [1, 2, 7, 8, 9, 63, 64, 127, 128, 129, 255, 257, 391]
EDGES = [4095, 4096, 4097, 3 * 4096 - 1, 3 * 4096 + 1]  # the native core's batches
LARGE = [(1 << 18) - 1, 1 << 18, (1 << 18) + 1]

by_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.id.name)
LAYOUT_KINDS = [pytest.param(layout, kind, id=f"{layout.id.name}-{kind}") for layout in LAYOUTS.values() for kind in kinds_of(layout)]


# ---- chunks, made by hand


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


@pytest.mark.parametrize("layout_id", [LayoutId.BF16, LayoutId.F8_E4M3, LayoutId.F16_LEAD], ids=lambda each: each.name)
@pytest.mark.parametrize("n", [1 << 14, (1 << 14) + 200, 1 << 17, (1 << 17) + 257])
def test_rows_get_codebooks_of_their_own(layout_id, n):
    layout = LAYOUTS[layout_id]
    for n_scales, length in ((2, 256), (4, 256), (7, 300)):
        data = elements_in_rows(layout, n, n_scales, length)
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


# ---- chunks, as packing makes them


@pytest.mark.parametrize("kind", ["weights", "weights_with_rows", "noise", "zeros", "few_symbols"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.id.name)
def test_chunks_of_the_road(layout, kind):
    for n in LENGTHS:
        data = elements(layout, n, kind)
        chunks = {}
        for name in NAMES:
            with kernels.use_isa(name):
                chunks[name] = (samples.encode_one(data, layout, PackOptions()), numbered_crc(data, n))
        chunk, crc = same(chunks)
        for name in NAMES:
            out = np.full(data.size + 64, 0xA5, np.uint8)
            with kernels.use_isa(name):
                decode_chunks(layout, chunk, np.array([0, len(chunk)]), np.array([crc], np.uint32), n, n, n, out[32:-32])
            assert (out[32:-32] == data).all(), (name, n)
            assert (out[:32] == 0xA5).all(), f"{name} wrote before the output"
            assert (out[-32:] == 0xA5).all(), f"{name} wrote after the output"


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


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_crc32c_continues_and_agrees(data, cut, start):
    expected = reference.crc32c(data)
    for backend in BACKENDS.values():
        assert backend.crc32c(data) == expected
        assert backend.crc32c(data[cut:], backend.crc32c(data[:cut])) == expected
        assert backend.crc32c(data, start) == FIRST.crc32c(data, start)


def test_sample_repeats():
    rng = np.random.default_rng(6)
    for n in [513, 1023, 1024, 1025, 2047, 2048, 2049, 4097, 30000]:
        for distinct in (1, 2, 50, 1 << 62):
            words = np.append(rng.integers(0, distinct, n, np.uint64).view(np.uint8), np.zeros(n % 8, np.uint8))  # a tail that is ignored
            runs = [words[begin : begin + 8192] for begin in (0, words.size // 2 // 8 * 8)]
            expected = sum(run.size // 8 - len(set(run[: run.size // 8 * 8].view(np.uint64).tolist())) for run in runs)
            assert same({name: backend.sample_repeats(words) for name, backend in BACKENDS.items()}) == expected


def test_sample_repeats_of_little():
    rng = np.random.default_rng(16)
    for n in [*range(40), 255, 256, 4095, 4096]:
        for distinct in (1, 2, 4, 50, 256):
            symbols = rng.integers(0, distinct, n).astype(np.uint8)
            for data in (symbols, np.resize(symbols[:37], n) if n else symbols, np.sort(symbols)):
                assert 0 <= same({name: backend.sample_repeats(data) for name, backend in BACKENDS.items()}) <= n // 8
    twice = np.resize(rng.integers(0, 256, 100).astype(np.uint8), 200)
    assert FASTEST.sample_repeats(twice) == (100 - 5) // 8


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


@pytest.mark.parametrize("n", [1, 5, 127, 128, 129, 1000, 5000])
@pytest.mark.parametrize("n_symbols", [2, 3, 15, 16, 17, 60, 256])
def test_codecs_agree_with_the_reference(n, n_symbols):
    rng = np.random.default_rng(n * n_symbols)
    weights = rng.random(n_symbols) ** 6 + 1e-6
    alphabet = rng.permutation(256)[:n_symbols].astype(np.uint8)
    symbols = np.concatenate([alphabet[:2], rng.choice(alphabet, n, p=weights / weights.sum())])
    counts = FIRST.histogram(symbols)
    lengths = same({name: backend.huffman_lengths(counts) for name, backend in BACKENDS.items()})
    assert sum(2.0**-length for length in lengths if length) == 1.0
    streams = set()
    for backend in BACKENDS.values():
        assert (backend.histogram(symbols) == counts).all()
        book, cost = backend.rans_choose(counts)
        assert sum(book.freqs) + book.escape_freq == 256
        rans, huffman = bytes(backend.rans_encode(book, symbols)), bytes(backend.huffman_encode(lengths, symbols))
        assert len(rans) <= cost + 300
        streams.add((book, cost, rans, huffman))
    assert len(streams) == 1
    _, _, rans, huffman = streams.pop()
    assert (reference.decode_stream(2, rans, symbols.size) == symbols).all()
    assert (reference.decode_stream(3, huffman, symbols.size) == symbols).all()


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
