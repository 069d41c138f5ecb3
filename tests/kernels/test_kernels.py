# SPDX-License-Identifier: Apache-2.0
"""Every backend encodes and every other decodes: identical bytes, identical answers to damage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st

from weightpack import kernels, reference
from weightpack.errors import FormatError, OptionError
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import parse_chunk
from weightpack.options import PackOptions
from weightpack.reading.chunks import decode_chunks
from weightpack.writing.chunks import chunk_crc
from weightpack.writing.huffman import code_lengths

BACKENDS = {name: kernels._make(name) for name in kernels.available_isas()}
LENGTHS = [*range(1, 20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 511, 513, 4095, 4096, 4097, 8192 + 77]


def elements(layout, n, kind):
    """Bytes of n elements of a layout, of some statistics."""
    rng = np.random.default_rng(n)
    size = n * layout.elem_bytes
    if kind == "noise":
        return rng.integers(0, 256, size, np.uint8)
    if kind == "zeros":
        return np.zeros(size, np.uint8)
    if kind == "few":
        return rng.choice(np.array([0, 1, 2, 0x3F, 0x80, 0xFF], np.uint8), size)
    if layout.mantissa_bits is None:
        return np.clip(rng.standard_normal(size) * 9 + 128, 0, 255).astype(np.uint8)
    values = (rng.standard_normal(n) * 0.03).astype("<f8").view("<u8")  # weights: take exponent and mantissa apart, put them together narrower
    exponent_bits = sum(layout.plane_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    exponent = np.clip((values >> np.uint64(52) & np.uint64(0x7FF)).astype(np.int64) - 1023 + bias + (bias // 2 if bias < 20 else 0), 0, 2 * bias + 1)
    mantissa = (values & np.uint64((1 << 52) - 1)) >> np.uint64(52 - layout.mantissa_bits)
    if kind == "rows":  # some blocks have trailing zeros
        mantissa[n // 3 : n // 2] &= np.uint64(~0 << max(0, layout.mantissa_bits - 2) & (1 << 64) - 1)
    words = values >> np.uint64(63) << np.uint64(8 * layout.elem_bytes - 1) | exponent.astype(np.uint64) << np.uint64(layout.mantissa_bits) | mantissa
    return words.astype(f"<u{layout.elem_bytes}").view(np.uint8)


@pytest.mark.parametrize("kind", ["weights", "rows", "noise", "zeros", "few"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.id.name)
def test_chunks_are_the_same_from_every_backend_and_decode_on_every_other(layout, kind):
    for n in LENGTHS:
        data = elements(layout, n, kind)
        chunks = {}
        for name in BACKENDS:
            with kernels.use_isa(name):
                chunks[name] = (samples.encode_one(data, layout, PackOptions()), chunk_crc(data, n))
        assert len(set(chunks.values())) == 1, f"{n} elements"
        chunk, crc = chunks["numpy"]
        for name in BACKENDS:
            out = np.full(data.size + 64, 0xA5, np.uint8)
            with kernels.use_isa(name):
                decode_chunks(layout, chunk, np.array([0, len(chunk)]), np.array([crc], np.uint32), n, n, n, out[32:-32])
            assert (out[32:-32] == data).all(), (name, n)
            assert (out[:32] == 0xA5).all(), "written before the output"
            assert (out[-32:] == 0xA5).all(), "written behind the output"


@pytest.mark.parametrize("n", [1, 5, 127, 128, 129, 1000, 5000])
@pytest.mark.parametrize("n_symbols", [2, 3, 15, 16, 17, 60, 256])
def test_codecs_agree_with_the_reference(n, n_symbols):
    rng = np.random.default_rng(n * n_symbols)
    weights = rng.random(n_symbols) ** 6 + 1e-6
    alphabet = rng.permutation(256)[:n_symbols].astype(np.uint8)
    symbols = np.concatenate([alphabet[:2], rng.choice(alphabet, n, p=weights / weights.sum())])
    counts = BACKENDS["numpy"].histogram(symbols)
    lengths = code_lengths(counts)
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


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_crc32c_continues_and_agrees(data, cut, start):
    expected = reference.crc32c(data)
    for backend in BACKENDS.values():
        assert backend.crc32c(data) == expected
        assert backend.crc32c(data[cut:], backend.crc32c(data[:cut])) == expected
        assert backend.crc32c(data, start) == BACKENDS["numpy"].crc32c(data, start)


def test_crc32c_of_the_specification():
    assert {backend.crc32c(b"123456789") for backend in BACKENDS.values()} == {0xE3069283}
    long = samples.rng().bytes(1 << 20)
    assert len({backend.crc32c(long) for backend in BACKENDS.values()}) == 1


def damaged(chunk):
    """Yield every truncation and every single-bit flip of a chunk."""
    for n in range(len(chunk)):
        yield chunk[:n]
    for i, bit in itertools.product(range(len(chunk)), range(8)):
        copy = bytearray(chunk)
        copy[i] ^= 1 << bit
        yield bytes(copy)


@pytest.mark.parametrize(
    ("layout", "codecs", "n"),
    [(LayoutId.BF16, ("rans",), 700), (LayoutId.F16, ("huffman",), 150), (LayoutId.F32, ("rans",), 650), (LayoutId.BYTES1, ("rans",), 900)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_damage_gives_the_same_outcome_on_every_backend(layout, codecs, n):
    layout = LAYOUTS[layout]
    data = elements(layout, n, "weights")
    if layout.id == LayoutId.BYTES1:
        data = np.minimum(data, 130)
    chunk = samples.encode_one(data, layout, PackOptions(codecs=codecs))
    assert {codec for codec, _ in parse_chunk(chunk, layout).streams} & {2, 3}
    crc = chunk_crc(data, 0)
    for bad in damaged(chunk):
        outcomes = {}
        for name, backend in BACKENDS.items():
            out = np.zeros(data.size, np.uint8)
            try:
                done = samples.decode_one(backend, layout, bad, n, 0, crc, out)
                outcomes[name] = out.tobytes() == data.tobytes() if done else "zstd"
            except FormatError:
                outcomes[name] = "refused"
        assert len(set(outcomes.values())) == 1, outcomes
        assert False not in outcomes.values(), "wrong bytes"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(LAYOUTS)), st.sampled_from([0, 1]), st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=400)), max_size=8),
    st.integers(1, 300),
)  # fmt: skip
def test_random_streams_are_refused_or_decode_alike(layout_id, mode, streams, n):
    layout = LAYOUTS[layout_id]
    outcomes = set()
    for backend in BACKENDS.values():
        out = np.zeros(n * layout.elem_bytes, np.uint8)
        try:
            wanted = layout.n_streams if mode == 0 else 1
            if len(streams) != wanted or any(codec == 4 for codec, _ in streams):
                return
            outcomes.add(backend.decode_streams(layout, mode, streams, n, 0, out))
        except FormatError:
            outcomes.add("refused")
    assert len(outcomes) == 1


def test_unknown_isa_is_an_error(monkeypatch):
    with pytest.raises(OptionError, match="numpy"), kernels.use_isa("sse9"):
        pass
    monkeypatch.setenv("WEIGHTPACK_ISA", "sse9")
    monkeypatch.setattr(kernels, "_active", None)
    with pytest.raises(OptionError, match="sse9"):
        kernels.active()


def test_best_isa_is_what_the_cpu_says(monkeypatch):
    try:
        with open("/proc/cpuinfo") as file:
            flags = set(next(line for line in file if line.startswith("flags")).split())
    except (OSError, StopIteration):
        pytest.skip("no /proc/cpuinfo with x86 flags here")
    best = "scalar"
    if {"avx2", "bmi1", "bmi2", "pclmulqdq", "sse4_2", "popcnt"} <= flags:
        best = "avx2"
        if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vbmi2", "vpclmulqdq"} <= flags:
            best = "avx512"
    monkeypatch.delenv("WEIGHTPACK_ISA", raising=False)
    monkeypatch.setattr(kernels, "_active", None)
    assert kernels.isa() == best


def test_numpy_alone_works_and_says_so_once(monkeypatch):
    from weightpack.kernels import native

    monkeypatch.delenv("WEIGHTPACK_ISA", raising=False)
    monkeypatch.setattr(native, "_BUILT", False)
    monkeypatch.setattr(kernels, "_active", None)
    with pytest.warns(RuntimeWarning, match="native core is not built"):
        assert kernels.isa() == "numpy"
    assert kernels.isa() == "numpy"  # warnings are errors here: a second one would fail
