# SPDX-License-Identifier: Apache-2.0
"""Which other codec for a plane, after the kernels have coded it: try what fits, keep the smallest. Integers decide, so that every machine chooses the same."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import zstandard

from weightpack.format.constants import Codec
from weightpack.kernels import Attention, Kernels, SplitChunk
from weightpack.writing import huffman

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes, Stream
    from weightpack.options import PackOptions

_TINY_BYTES = 4096  # below it zstd is always tried: a sample says little there
_SAMPLE_BYTES = 1 << 14  # of Kernels.sample_repeats
# Huffman can win only where rANS pays for its 256 bytes of states or for escapes; elsewhere rANS's fractional bits are always fewer.
_SMALL_PLANE = 1 << 15
_ESCAPE_SHARE = 64
_REPEAT_SHARE = 16


def attention(options: PackOptions) -> Attention:
    """Return when `better_stream` may find something, or a chunk do better as a whole."""
    everything = options.exhaustive or "rans" not in options.codecs
    return Attention(1 << 30 if everything else max(_SMALL_PLANE, _TINY_BYTES), _ESCAPE_SHARE, _REPEAT_SHARE)


def worth_zstd(n_bytes: int, repeats: int, options: PackOptions) -> bool:
    """Do the bytes repeat enough for zstd to find something? `repeats` is `Kernels.sample_repeats` of them; a profile may say to try always."""
    if not n_bytes or "zstd" not in options.codecs:
        return False
    return options.exhaustive or n_bytes <= _TINY_BYTES or repeats * _REPEAT_SHARE > min(n_bytes, _SAMPLE_BYTES) // 8


class _Compressors(threading.local):
    """One zstd compressor a thread and level: making one costs more than compressing a small plane."""

    def __init__(self) -> None:
        self.by_level: dict[int, zstandard.ZstdCompressor] = {}


_compressors = _Compressors()


def zstd_stream(data: Bytes, options: PackOptions) -> bytes:
    """Compress to one frame with its content size and without a checksum: chunks have their own."""
    compressor = _compressors.by_level.get(options.zstd_level)
    if compressor is None:
        compressor = _compressors.by_level[options.zstd_level] = zstandard.ZstdCompressor(level=options.zstd_level, write_checksum=False)
    return compressor.compress(memoryview(data))


def better_stream(kernels: Kernels, split: SplitChunk, i: int, options: PackOptions, *, entropy_coded: bool, try_zstd: bool) -> Stream | None:
    """Return a smaller stream for plane `i` than the kernels chose; None if there is none, or none worth trying.

    Parameters
    ----------
    entropy_coded
        The plane holds symbols: Huffman fits. Not so the bits of raw words.
    try_zstd
        Try zstd if the plane repeats; it is worth its time on planes of integers, not on exponents of weights.
    """
    plane = split.planes[i]
    if plane.codec == Codec.CONSTANT:
        return None
    n, best = plane.plane_bytes, plane.n_bytes
    stream: Stream | None = None
    huffman_may_win = "rans" not in options.codecs or options.exhaustive or n < _SMALL_PLANE or plane.escapes * _ESCAPE_SHARE > n
    if entropy_coded and "huffman" in options.codecs and huffman_may_win:
        counts = kernels.histogram(split.plane(i))
        lengths = huffman.code_lengths(counts)
        if huffman.stream_bytes(lengths, counts) < min(plane.rans_bytes, n):
            coded = kernels.huffman_encode(lengths, split.plane(i))
            if len(coded) < n:
                best, stream = len(coded), (Codec.HUFFMAN, coded)
    tiny = entropy_coded and n <= _TINY_BYTES and "zstd" in options.codecs
    if tiny or ((try_zstd or options.exhaustive) and worth_zstd(n, plane.repeats, options)):
        frame = zstd_stream(split.plane(i), options)
        if len(frame) < best:
            stream = (Codec.ZSTD, frame)
    return stream
