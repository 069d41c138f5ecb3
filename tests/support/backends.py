# SPDX-License-Identifier: Apache-2.0
"""The backends of this machine, side by side: what all give alike, and chunks made by hand that each of them has to decode.

Equality is checked against the first backend, which says it of every pair. `WEIGHTPACK_TEST_ISAS` (names, comma-separated) restricts the backends.
Section numbers are those of docs/FORMAT.md.
"""

from __future__ import annotations

import os
import struct

import numpy as np
import samples

from weightpack import kernels
from weightpack.format.record import chunk_bound
from weightpack.kernels import NativeCodecs, RansBook, numpy_rans

NAMES = [name for name in os.environ.get("WEIGHTPACK_TEST_ISAS", "").split(",") if name] or kernels.available_isas()
SPLIT, WHOLE = 0, 1  # 6.3
RAW, CONSTANT, RANS, HUFFMAN, ZSTD, CONTEXT, TABLES, CONDITIONAL = range(8)  # 8


def backend_of(name):
    with kernels.use_isa(name):
        return kernels.active()


BACKENDS = {name: backend_of(name) for name in NAMES}
FIRST, FASTEST = BACKENDS[NAMES[0]], BACKENDS[NAMES[-1]]


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
        lengths = FASTEST.huffman_lengths(counts)
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
        made = backend.encode_chunks(layout, data, data.size // layout.elem_bytes, 0, NativeCodecs(most_tables, huffman=False), 16, out)
        return out[: made.sizes[0]].tobytes()

    chunk = same({name: encode(backend) for name, backend in BACKENDS.items()})
    return make_chunk(SPLIT, streams_of(chunk))


def tables_by_hand():
    """Return (symbols, chunk): 400 of them in runs of one group, three codebooks, escapes in two of them."""
    books = [RansBook(b"\1\2\3", bytes([200, 40, 10]), 6), RansBook(b"\7", b"\xff", 1), RansBook(b"\5\6", bytes([100, 156]), 0)]
    ids, rng = np.array([2, 0, 1, 0]), np.random.default_rng(3)
    which = ids.repeat(128)[:400]
    first = rng.choice([1, 2, 3, 9, 250], 400, p=[0.7, 0.2, 0.05, 0.03, 0.02])
    symbols = np.choose(which, [first, rng.choice([7, 99], 400, p=[0.97, 0.03]), rng.choice([5, 6], 400)]).astype(np.uint8)
    head = bytes([2, 1]) + b"".join(numpy_rans.book_bytes(book).tobytes() for book in books) + bytes([2 | 0 << 2 | 1 << 4 | 0 << 6])
    return symbols, make_chunk(SPLIT, [(TABLES, head + numpy_rans.encode_symbols(books, which, symbols).tobytes())])
