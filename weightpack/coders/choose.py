# SPDX-License-Identifier: Apache-2.0
"""Which codec for a plane: try what fits, keep the smallest. Integers decide, so that every machine chooses the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from weightpack.coders import huffman
from weightpack.format.constants import Codec
from weightpack.kernels import Kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from weightpack.options import PackOptions

    Bytes = NDArray[np.uint8]
    Stream = tuple[Codec, Bytes | bytes]

_TINY_BYTES = 4096        # below it every codec is tried: nothing there costs time
_SAMPLE_BYTES = 1 << 14   # looked at for repeats
# Huffman can win only where rANS pays for its 256 bytes of states or for escapes; elsewhere rANS's fractional bits are always fewer.
_SMALL_PLANE = 1 << 15


def worth_zstd(kernels: Kernels, data: Bytes, options: PackOptions) -> bool:
    """Do the bytes repeat enough for zstd to find something? Two samples are looked at, unless the profile says to try always."""
    if "zstd" not in options.codecs:
        return False
    if options.exhaustive or len(data) <= _TINY_BYTES:
        return True
    half = _SAMPLE_BYTES // 2
    middle = len(data) // 2 & ~7
    repeats = kernels.count_repeats(data[:half]) + kernels.count_repeats(data[middle : middle + half])
    return repeats * 16 > min(len(data), _SAMPLE_BYTES) // 8


def zstd_stream(data: Bytes, options: PackOptions) -> bytes:
    """Compress to one frame with its content size and without a checksum: chunks have their own."""
    return zstandard.ZstdCompressor(level=options.zstd_level, write_checksum=False).compress(memoryview(data))


def encode_bytes(kernels: Kernels, data: Bytes, options: PackOptions) -> Stream:
    """Encode bytes that have no symbol statistics to use: constant is not tried, zstd only where they repeat."""
    if len(data) and worth_zstd(kernels, data, options):
        stream = zstd_stream(data, options)
        if len(stream) < len(data):
            return Codec.ZSTD, stream
    return Codec.RAW, data


def encode_plane(kernels: Kernels, symbols: Bytes, options: PackOptions, *, try_zstd: bool = False) -> Stream:
    """Encode a plane of at least one symbol with the codec that makes it smallest; raw if none does.

    Parameters
    ----------
    symbols : (n,) uint8
    try_zstd
        Try zstd if the plane repeats; it is worth its time on planes of integers, not on exponents of weights.
    """
    n = len(symbols)
    counts = kernels.histogram(symbols)
    if int(counts[symbols[0]]) == n:
        return Codec.CONSTANT, symbols[:1]
    best: Stream = (Codec.RAW, symbols)
    rans_bytes = n
    if "rans" in options.codecs:
        book, rans_bytes = kernels.rans_choose(counts)
        escapes = n - sum(int(counts[s]) for s in book.symbols)
    if "huffman" in options.codecs and ("rans" not in options.codecs or options.exhaustive or n < _SMALL_PLANE or escapes * 64 > n):
        lengths = huffman.code_lengths(counts)
        if huffman.stream_bytes(lengths, counts) < min(rans_bytes, n):
            best = (Codec.HUFFMAN, kernels.huffman_encode(lengths, symbols))
    if best[0] is Codec.RAW and rans_bytes < n:
        best = (Codec.RANS, kernels.rans_encode(book, symbols))
    if "zstd" in options.codecs and (options.exhaustive or n <= _TINY_BYTES or (try_zstd and worth_zstd(kernels, symbols, options))):
        stream = zstd_stream(symbols, options)
        if len(stream) < len(best[1]):
            best = (Codec.ZSTD, stream)
    return best if len(best[1]) < n else (Codec.RAW, symbols)
