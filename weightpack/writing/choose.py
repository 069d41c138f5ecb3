# SPDX-License-Identifier: Apache-2.0
"""Where zstd is tried, after the kernels have coded a chunk: where its bytes repeat. Integers decide, so that every machine chooses the same."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import zstandard

from weightpack.format.constants import Codec
from weightpack.kernels import NativeCodecs, active

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes, Stream
    from weightpack.options import PackOptions

_SAMPLE_BYTES = 1 << 14  # of Kernels.sample_repeats
_REPEAT_SHARE = 16


def native_codecs(options: PackOptions) -> NativeCodecs:
    """Return what the kernels may choose from."""
    return NativeCodecs(options.tables if "rans" in options.codecs else 0, "huffman" in options.codecs)


def repeat_share(options: PackOptions) -> int:
    """Return which share of a chunk's words must repeat for zstd to be tried, 1 in so many; a profile may say to try always: 0."""
    return 0 if options.exhaustive else _REPEAT_SHARE


def worth_zstd(n_bytes: int, repeats: int, options: PackOptions) -> bool:
    """Do the bytes repeat enough for zstd to find something? `repeats` is `Kernels.sample_repeats` of them."""
    if not n_bytes or "zstd" not in options.codecs:
        return False
    return options.exhaustive or repeats * _REPEAT_SHARE > min(n_bytes, _SAMPLE_BYTES) // 8


def repeats_much(data: Bytes, options: PackOptions) -> bool:
    """Is it worth trying zstd?"""
    return worth_zstd(data.size, active().sample_repeats(data), options)


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


def bytes_stream(data: Bytes, options: PackOptions) -> Stream:
    """Return codec and stream of bytes: raw, unless they repeat."""
    if data.size and repeats_much(data, options):
        frame = zstd_stream(data, options)
        if len(frame) < data.size:
            return (Codec.ZSTD, frame)
    return (Codec.RAW, data)
