# SPDX-License-Identifier: Apache-2.0
"""zstd frames in untrusted files (FORMAT 1.10): what a frame claims is not believed, and bounds nothing."""

from __future__ import annotations

import zstandard

from weightpack.errors import CorruptionError, LimitError

_MAGIC = b"\x28\xb5\x2f\xfd"
_BITE = 1 << 10
_HEAD_BYTES = 18  # the longest header of a frame


def decode_frame(frame: bytes | memoryview, n_bytes: int) -> bytes:
    """Decode one zstd frame that must give exactly `n_bytes` (FORMAT 1.10), without trusting what the frame claims."""
    try:
        size = zstandard.frame_content_size(bytes(frame[:_HEAD_BYTES])) if bytes(frame[:4]) == _MAGIC else -1
    except zstandard.ZstdError:
        size = -1  # it is refused below
    if size not in (n_bytes, -1):
        raise CorruptionError(f"a zstd stream claims {size} bytes, expected {n_bytes}")
    data = decode_frame_of_at_most(frame, n_bytes)
    if len(data) != n_bytes:
        raise CorruptionError(f"a zstd stream does not decode to {n_bytes} bytes")
    return data


def decode_frame_of_at_most(frame: bytes | memoryview, most: int) -> bytes:
    """Decode one zstd frame that must give at most `most` bytes."""
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    try:
        if bytes(frame[:4]) != _MAGIC:
            raise CorruptionError("not a zstd frame")
        parts, total = [], 0
        # Small bites bound what a frame without a size can grow to before it is stopped: a block of 128 KiB for each 3 bytes or more.
        for begin in range(0, len(frame), _BITE):
            parts.append(decoder.decompress(bytes(frame[begin : begin + _BITE])))
            total += len(parts[-1])
            if total > most or (decoder.eof and begin + _BITE < len(frame)):
                raise CorruptionError("a zstd stream holds more than it should")
    except zstandard.ZstdError as error:
        raise CorruptionError(f"a zstd stream is damaged: {error}") from None
    if not decoder.eof or decoder.unused_data:
        raise CorruptionError("a zstd stream is cut, or has bytes behind its end")
    return b"".join(parts)


def decode_sized_frame(frame: bytes, n_bytes: int, dictionary: zstandard.ZstdCompressionDict) -> bytes:
    """Decode one zstd frame, with a dictionary, that must claim and give exactly `n_bytes` (FORMAT 16.3)."""
    try:
        if frame[:4] != _MAGIC or zstandard.frame_content_size(frame) != n_bytes:
            raise CorruptionError(f"not a zstd frame of {n_bytes} bytes")
        data: bytes = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 27).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptionError(f"a zstd frame is damaged: {error}") from None
    except (MemoryError, OverflowError):
        raise LimitError(f"a zstd frame claims {n_bytes} bytes: more than there is memory") from None
    if len(data) != n_bytes:
        raise CorruptionError(f"a zstd frame does not decode to {n_bytes} bytes")
    return data
