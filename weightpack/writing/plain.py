# SPDX-License-Identifier: Apache-2.0
"""Elements -> chunks that need nothing but themselves: split planes, fields, or the bytes as a whole (FORMAT 6.3 to 6.6)."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from weightpack import kernels as kernel_choice
from weightpack.format.constants import BLOCK_ELEMS, Codec, Mode
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import build_chunk, chunk_bound, parse_chunk
from weightpack.io.files import pieces
from weightpack.writing.choose import native_codecs, repeat_share, worth_zstd, zstd_stream

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes
    from weightpack.format.layouts import Layout
    from weightpack.kernels import SplitChunk
    from weightpack.options import PackOptions


_BYTES = LAYOUTS[LayoutId.BYTES1]
_TINY_PLANE = 4096


class EncodedChunk(NamedTuple):
    """A chunk's length, padding to 16 included, the CRC of what it decodes to (FORMAT 6.2), its mode, and how many bytes a base saved."""

    n_bytes: int
    crc: int
    mode: Mode
    saved: int = 0


def encode_fields(data: Bytes, fields: tuple[int, ...], chunk_bytes: int, first_number: int, options: PackOptions, out: Bytes) -> list[EncodedChunk]:
    """Encode consecutive chunks of a tensor of blocks: each field's bytes are a plane (FORMAT 6.6), coded as a tensor of bytes would be.

    Parameters are those of `encode_chunks`; `data` is a whole count of blocks.
    """
    chunks, position, ends = [], 0, list(accumulate(fields))
    for number, (begin, n) in enumerate(pieces(data.size, chunk_bytes), first_number):
        blocks = data[begin : begin + n].reshape(-1, ends[-1])
        streams = []
        for width, end in zip(fields, ends, strict=True):
            plane = np.ascontiguousarray(blocks[:, end - width : end]).reshape(-1)
            streams.append(encode_plane(plane, options))
        chunk = build_chunk(Mode.FIELDS, streams, fields)
        if len(chunk) >= n:
            chunk = build_chunk(Mode.WHOLE, [(Codec.RAW, blocks.reshape(-1))])
        out[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
        position += len(chunk)
        chunks.append(EncodedChunk(len(chunk), kernel_choice.chunk_crc(blocks.reshape(-1), number), Mode(chunk[0])))
    return chunks


def encode_plane(plane: Bytes, options: PackOptions) -> tuple[int, memoryview]:
    """Encode one plane of symbols, (n,) uint8 with n not 0, as a tensor of bytes would be; return codec and stream."""
    room = np.empty(chunk_bound(_BYTES, plane.size), np.uint8)
    coded = encode_chunks(plane, _BYTES, -(-plane.size // BLOCK_ELEMS) * BLOCK_ELEMS, 0, options, room)[0]
    return parse_chunk(room[: coded.n_bytes].tobytes(), _BYTES).streams[0]  # split or whole: of bytes it is the same


def encode_chunks(data: Bytes, layout: Layout, chunk_elems: int, first_number: int, options: PackOptions, out: Bytes) -> list[EncodedChunk]:
    """Encode consecutive chunks of a tensor, each as the smallest of: split planes, one plane of bytes, the bytes as they are.

    The kernels split and code chunk after chunk; where one repeats, zstd is tried.

    Parameters
    ----------
    data : (n_elems * layout.elem_bytes,) uint8
        What is left over behind the last whole chunk is a shorter one.
    first_number
        The first chunk's number in its record.
    out : uint8
        At least `format.record.chunk_bound` for each chunk; they stand at its begin afterwards, one after the other.
    """
    kernels, chunk_bytes, position = kernel_choice.active(), chunk_elems * layout.elem_bytes, 0
    codecs, share = native_codecs(options), repeat_share(options)
    chunks: list[EncodedChunk] = []
    while len(chunks) * chunk_bytes < data.size:
        rest, number = data[len(chunks) * chunk_bytes :], first_number + len(chunks)
        encoded = kernels.encode_chunks(layout, rest, chunk_elems, number, codecs, share, out[position:])
        chunks += [EncodedChunk(n_bytes, crc, Mode.SPLIT) for n_bytes, crc in zip(encoded.sizes, encoded.crcs, strict=True)]
        position += sum(encoded.sizes)
        if encoded.last is not None:
            begin = position - encoded.sizes[-1]
            elems = data[(len(chunks) - 1) * chunk_bytes : len(chunks) * chunk_bytes]
            smaller = _smaller_chunk(elems, layout, options, encoded.last, out[begin:position])
            if smaller is not None:
                chunks[-1], position = EncodedChunk(len(smaller), encoded.crcs[-1], Mode(smaller[0])), begin + len(smaller)
                out[begin:position] = np.frombuffer(smaller, np.uint8)
    return chunks


def _smaller_chunk(data: Bytes, layout: Layout, options: PackOptions, split: SplitChunk, chunk: Bytes) -> bytes | None:
    """Return the chunk with zstd where that is smaller, or as a whole; None if it is to stay as the kernels coded it."""
    better = {}
    for i, plane in enumerate(split.planes):
        exponents = i < len(layout.plane_bits) and bool(layout.raw_bits)  # of weights: what repeats in them is rarely worth the time
        tried = plane.plane_bytes <= _TINY_PLANE or not exponents or options.exhaustive
        if plane.codec != Codec.CONSTANT and tried and worth_zstd(plane.plane_bytes, plane.repeats, options):
            frame = zstd_stream(split.plane(i), options)
            if len(frame) < plane.n_bytes:
                better[i] = Codec.ZSTD, frame
    split_bytes = sum(len(better[i][1]) if i in better else plane.n_bytes for i, plane in enumerate(split.planes))
    if split_bytes > len(split.planes):
        whole = zstd_stream(data, options) if worth_zstd(data.size, split.repeats, options) else b""
        if whole and len(whole) < min(split_bytes, data.size):
            return build_chunk(Mode.WHOLE, [(Codec.ZSTD, whole)])
        if data.size < split_bytes:
            return build_chunk(Mode.WHOLE, [(Codec.RAW, data)])
    if not better:
        return None
    streams = [better.get(i) or (Codec(plane.codec), chunk[plane.begin : plane.begin + plane.n_bytes]) for i, plane in enumerate(split.planes)]
    return build_chunk(Mode.SPLIT, streams)
