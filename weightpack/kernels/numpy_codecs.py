# SPDX-License-Identifier: Apache-2.0
"""Planes of symbols in numpy, whatever their codec is (FORMAT section 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import TruncatedError, UnsupportedError
from weightpack.format.constants import Codec
from weightpack.kernels.numpy_checks import expect, need
from weightpack.kernels.numpy_huffman import huffman_bytes, huffman_decode, huffman_encode, huffman_lengths
from weightpack.kernels.numpy_rans import choose_tables, context_decode, context_encode, rans_choose, rans_decode, rans_encode, tables_decode, tables_encode

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes
    from weightpack.kernels.interface import NativeCodecs

_SMALL_PLANE, _ESCAPE_SHARE = 1 << 15, 64  # as in native/src/encode.c


def decode_plane(codec: int, stream: Bytes, n: int, plane_bits: int, next_plane: Bytes | None = None) -> Bytes:
    """Decode n symbols that MUST fit `plane_bits` (7.2). As in the native core, symbols of a codebook must fit whether they occur or not."""
    if codec == Codec.CONTEXT:
        need(next_plane is not None, "a codec that needs a context")
        assert next_plane is not None
        return context_decode(stream, next_plane)
    if codec == Codec.RANS:
        return rans_decode(stream, n, plane_bits)
    if codec == Codec.TABLES:
        return tables_decode(stream, n, plane_bits)
    if codec == Codec.HUFFMAN:
        return huffman_decode(stream, n, plane_bits)
    if codec not in (Codec.RAW, Codec.CONSTANT):
        need(codec != Codec.CONDITIONAL, "a codec that is for differences only")
        expect(codec != Codec.ZSTD, "a zstd stream that was not expanded")
        raise UnsupportedError(f"unknown codec {codec}: upgrade weightpack")
    n_bytes = n if codec == Codec.RAW else 1
    need(stream.size >= n_bytes, "a raw or constant stream", TruncatedError)
    need(stream.size == n_bytes and int(stream.max()) >> plane_bits == 0, "a raw or constant stream")
    return stream if codec == Codec.RAW else np.full(n, stream[0], np.uint8)


def encode_plane(plane: Bytes, codecs: NativeCodecs, next_plane: Bytes | None) -> tuple[Codec, Bytes]:
    """Return codec and stream: the smallest, by its statistics, of constant, raw and the codecs that are allowed; with a next plane, context is its rANS."""
    n = plane.size
    if (plane == plane[0]).all():
        return Codec.CONSTANT, plane[:1]
    counts = np.bincount(plane, minlength=256)
    least = escapes = n
    context = book = several = None
    if codecs.most_tables and next_plane is not None:
        context = context_encode(next_plane, plane)
        if context.size < n:
            least, escapes = context.size, 0
    elif codecs.most_tables:
        book, least = rans_choose(counts.tolist())
        escapes = n - int(counts[list(book.symbols)].sum())
        several = choose_tables(plane, counts, codecs.most_tables) if codecs.most_tables > 1 else None
        if several is not None and several.cost_bytes < least:
            least, escapes = several.cost_bytes, several.escapes
        else:
            several = None
    if codecs.huffman and (n < _SMALL_PLANE or escapes * _ESCAPE_SHARE > n):
        lengths = huffman_lengths(counts.tolist())
        if huffman_bytes(lengths, counts) < min(least, n):
            return Codec.HUFFMAN, huffman_encode(lengths, plane)
    if least < n:
        if context is not None:
            return Codec.CONTEXT, context
        assert book is not None
        stream = rans_encode(book, plane) if several is None else tables_encode(several, plane)
        if stream.size < n:
            return Codec.RANS if several is None else Codec.TABLES, stream
    return Codec.RAW, plane
