# SPDX-License-Identifier: Apache-2.0
"""Chunks -> elements, straight into the caller's buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import ChecksumError, CorruptionError, UnsupportedError, located
from weightpack.format.constants import BLOCK_ELEMS, CODEC_NAMES, MAX_CHUNK_BLOCKS, MAX_SCALE_BYTES, Codec, Mode
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import Chunk, Tiling, parse_chunk
from weightpack.format.zstd import decode_frame, decode_frame_of_at_most
from weightpack.kernels import active, chunk_crc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Buffer, Bytes, Stream, Words
    from weightpack.format.layouts import Layout


def decode_chunks(
    layout: Layout, data: Buffer, offsets: NDArray[np.int64], crcs: Words, chunk_elems: int, n_elems: int, first_number: int,
    out: Bytes, base: Callable[[int, int], Bytes] | None = None, earlier: Callable[[int], Bytes] | None = None,
) -> None:  # fmt: skip
    """Decode a run of chunks into `out` and check their CRCs (FORMAT 6.2).

    Parameters
    ----------
    data
        Chunk i stands at `offsets[i] - offsets[0]`, up to 15 bytes of padding included.
    offsets : (n_chunks + 1,) int64
    crcs : (n_chunks,) uint32
    chunk_elems, n_elems
        Elements of a chunk, and of the run.
    first_number
        The first chunk's number in its record.
    out : (n_elems * layout.elem_bytes,) uint8
        Filled completely, or left undefined if an error is raised.
    base
        Of a tensor that has one (FORMAT section 15): (first element of the tensor, count) -> the base's elements in the tensor's layout, (n_bytes,) uint8.
    earlier
        Number of a chunk before this run -> its bytes, decoded by this function without `earlier`, so that no chunk repeats one that repeats another.

    Raises
    ------
    FormatError
        Of the kind that fits; it names the chunk.
    """
    kernels, n_chunks, i = active(), len(crcs), 0
    while i < n_chunks and (i := kernels.decode_chunks(layout, data, offsets, crcs, i, chunk_elems, n_elems, first_number, out)) < n_chunks:
        # zstd streams are expanded here, by a library, and go to the kernels as raw planes; fields are put together here, and bases found.
        begin, end = (offsets[i : i + 2] - offsets[0]).tolist()
        n, number = min(chunk_elems, n_elems - i * chunk_elems), first_number + i
        with located(chunk=number):
            parsed = parse_chunk(memoryview(data)[begin:end], layout)
            to = out[i * chunk_elems * layout.elem_bytes :]
            if parsed.mode == Mode.FIELDS:
                _decode_fields(parsed, to[:n])
                crc = chunk_crc(to[:n], number)
            elif parsed.mode == Mode.DIFFERENCE:
                if base is None:
                    raise CorruptionError("the chunk holds differences, but its tensor has no base")
                crc = _decode_difference(parsed, layout, base(number * chunk_elems, n), n, number, to)
            elif parsed.mode == Mode.SCALED:
                crc = _decode_difference(parsed, layout, _scaled_base(parsed, layout, n), n, number, to)
            elif parsed.mode == Mode.REPEATED:
                to[: n * layout.elem_bytes] = _repeated(parsed.repeats, number, n * layout.elem_bytes, earlier)
                crc = chunk_crc(to[: n * layout.elem_bytes], number)
            elif parsed.tiling is not None:
                crc = _decode_quantised(parsed, parsed.tiling, layout, n, number, to)
            else:
                crc = kernels.decode_streams(layout, parsed.mode, _expand(parsed, layout, n), n, number, to)
            if crc != int(crcs[i]):
                raise ChecksumError("the decoded bytes do not match their checksum: the file is damaged")
        i += 1


def _decode_fields(chunk: Chunk, out: Bytes) -> None:
    """Decode each field's bytes, and deal them out to the blocks (FORMAT 6.6)."""
    block = sum(chunk.widths)
    if out.size % block:
        raise CorruptionError("the chunk is not a whole count of blocks")
    blocks, begin = out.reshape(-1, block), 0
    for width, (codec, stream) in zip(chunk.widths, chunk.streams, strict=True):
        n = len(blocks) * width
        blocks[:, begin : begin + width] = _plane(codec, stream, n).reshape(-1, width)
        begin += width


def _decode_difference(chunk: Chunk, layout: Layout, base: Bytes, n_elems: int, number: int, out: Bytes) -> int:
    """Decode rates, classes and extra bits onto the base (FORMAT section 14); returns the CRC."""
    if not layout.has_differences:
        raise CorruptionError("elements of this layout have no differences")
    if base.size != n_elems * layout.elem_bytes:
        raise CorruptionError("the base's elements are not those of the record's layout")
    kernels, streams, n_blocks = active(), list(chunk.streams[-3:]), -(-n_elems // BLOCK_ELEMS)
    (rate_codec, rate_stream), (class_codec, class_stream), (extra_codec, extra_stream) = streams
    planes: list[Stream] = [(rate_codec, rate_stream), (class_codec, class_stream), (extra_codec, extra_stream)]
    if Codec.ZSTD in (rate_codec, class_codec, extra_codec):
        rates = _plane(rate_codec, rate_stream, n_blocks)
        planes[0] = Codec.RAW, rates
        elems = np.full(n_blocks, BLOCK_ELEMS, np.int64)
        elems[-1] = n_elems - BLOCK_ELEMS * (n_blocks - 1)
        n_changed = int(elems[rates != 0].sum())
        if not n_changed and Codec.ZSTD in (class_codec, extra_codec):
            raise CorruptionError("a chunk without differences has streams that are coded")
        if class_codec == Codec.ZSTD:
            planes[1] = Codec.RAW, decode_frame(class_stream, n_changed)
        if extra_codec == Codec.ZSTD:
            planes[2] = Codec.RAW, decode_frame_of_at_most(extra_stream, 4 * n_changed)
    return kernels.decode_difference(layout, chunk.shift, np.frombuffer(chunk.frequent, "<u4"), planes, base, n_elems, number, out)


def _scaled_base(chunk: Chunk, layout: Layout, n_elems: int) -> Bytes:
    """Return the base that the chunk's scales and signs make (FORMAT 14.5)."""
    (scale_codec, scale_stream), (sign_codec, sign_stream) = chunk.streams[:2]
    if not layout.has_scales:
        raise CorruptionError("elements of this layout have no scales")
    n_rows = -(-(chunk.phase + n_elems) // chunk.cols)
    n_scale_bytes = 2 * (n_rows + chunk.cols)
    if n_scale_bytes > MAX_SCALE_BYTES:
        raise CorruptionError("the chunk has too many scales")
    signs = _plane(sign_codec, sign_stream, (n_elems + 7) // 8)
    if n_elems % 8 and int(signs[-1]) >> n_elems % 8:
        raise CorruptionError("the unused signs are not zero")
    scales = _plane(scale_codec, scale_stream, n_scale_bytes)
    return active().scaled_base(layout, scales, chunk.cols, chunk.phase, signs, n_elems)


def _repeated(repeats: int, number: int, n_bytes: int, earlier: Callable[[int], Bytes] | None) -> Bytes:
    """Return the bytes of the chunk that chunk `number` repeats (FORMAT 6.10)."""
    if repeats >= number or earlier is None:
        raise CorruptionError("the chunk repeats one that is not before it, or repeats another itself")
    chunk = earlier(repeats)
    if chunk.size != n_bytes:
        raise CorruptionError("the chunk repeats one of another length")
    return chunk


def _decode_quantised(chunk: Chunk, tiling: Tiling, layout: Layout, n_elems: int, number: int, out: Bytes) -> int:
    """Decode codes, and multiply the values that they stand for and the scales of their tiles (FORMAT section 18); returns the CRC."""
    n_tiles = tiling.tiles(n_elems)
    if not layout.has_products or n_tiles > n_elems:
        raise CorruptionError("the tiles of the chunk are impossible")
    (value_codec, value_stream), *scale_streams, (code_codec, code_stream), (verbatim_codec, verbatim) = chunk.streams
    values = _plane(value_codec, value_stream, 4 * chunk.n_values)
    scales = np.concatenate([_plane(codec, stream, n_tiles) for codec, stream in scale_streams])
    codes = _plane(code_codec, code_stream, n_elems)
    if verbatim_codec not in (Codec.RAW, Codec.ZSTD):
        raise (CorruptionError if verbatim_codec in CODEC_NAMES else UnsupportedError)("the codec of the elements of tiles without a scale")
    elems = decode_frame_of_at_most(verbatim, n_elems * layout.elem_bytes) if verbatim_codec == Codec.ZSTD else verbatim
    return active().quantised_decode(layout, values, scales, tiling, codes, elems, number, out)


def _plane(codec: int, stream: memoryview, n: int) -> Bytes:
    """Decode one plane of n symbols, whatever its codec."""
    if codec == Codec.RAW and len(stream) == n:
        return np.frombuffer(stream, np.uint8)
    plane = np.empty(n, np.uint8)
    raw: Stream = (Codec.RAW, decode_frame(stream, n)) if codec == Codec.ZSTD else (codec, stream)
    active().decode_streams(LAYOUTS[LayoutId.BYTES1], Mode.WHOLE, [raw], n, 0, plane)
    return plane


def _expand(chunk: Chunk, layout: Layout, n_elems: int) -> list[Stream]:
    n_planes, n_blocks = len(layout.plane_bits), -(-n_elems // BLOCK_ELEMS)
    streams: list[Stream] = []
    for i, (codec, stream) in enumerate(chunk.streams):
        if codec != Codec.ZSTD:
            streams.append((codec, stream))
            continue
        if chunk.mode == Mode.WHOLE:
            n = n_elems * layout.elem_bytes
        elif i < n_planes:
            n = n_elems
        elif i == n_planes:
            n = n_blocks
        else:
            n = _bits_bytes(streams[n_planes], layout, n_elems, n_blocks)
        streams.append((Codec.RAW, decode_frame(stream, n)))
    return streams


def _bits_bytes(widths: Stream, layout: Layout, n_elems: int, n_blocks: int) -> int:
    """Return the length of the bits stream that these widths imply (FORMAT 7.4)."""
    plane = np.empty(n_blocks, np.uint8)
    if n_blocks > MAX_CHUNK_BLOCKS:
        raise CorruptionError("the chunk has too many blocks")
    active().decode_streams(LAYOUTS[LayoutId.BYTES1], Mode.WHOLE, [widths], n_blocks, 0, plane)
    if int(plane.max()) > layout.raw_bits:
        raise CorruptionError("a block is wider than its raw word")
    elems = np.full(n_blocks, BLOCK_ELEMS, np.int64)
    elems[-1] = n_elems - BLOCK_ELEMS * (n_blocks - 1)
    return int((plane // 8 * elems + plane % 8 * ((elems + 7) // 8)).sum())
