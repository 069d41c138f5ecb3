# SPDX-License-Identifier: Apache-2.0
"""Chunks -> elements, straight into the caller's buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack import kernels as kernel_choice
from weightpack.dtypes import LAYOUTS, LayoutId
from weightpack.errors import ChecksumError, CorruptionError, located
from weightpack.format.constants import MAX_CHUNK_BLOCKS, Codec, Mode
from weightpack.format.index import zstd_decode
from weightpack.format.record import Chunk, parse_chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.dtypes import Layout
    from weightpack.kernels import Stream


def decode_chunks(
    layout: Layout, data: Stream, offsets: NDArray[np.int64], crcs: NDArray[np.uint32], chunk_elems: int, n_elems: int, first_number: int,
    out: NDArray[np.uint8],
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

    Raises
    ------
    FormatError
        Of the kind that fits; it names the chunk.
    """
    kernels, n_chunks, i = kernel_choice.active(), len(crcs), 0
    while i < n_chunks and (i := kernels.decode_chunks(layout, data, offsets, crcs, i, chunk_elems, n_elems, first_number, out)) < n_chunks:
        # zstd streams are expanded here, by a library, and go to the kernels as raw planes; and fields are put together here.
        begin, end = (offsets[i : i + 2] - offsets[0]).tolist()
        n, number = min(chunk_elems, n_elems - i * chunk_elems), first_number + i
        with located(chunk=number):
            parsed = parse_chunk(memoryview(data)[begin:end], layout)
            to = out[i * chunk_elems * layout.elem_bytes :]
            if parsed.mode == Mode.FIELDS:
                _decode_fields(parsed, to[:n])
                crc = kernels.crc32c(to[:n], kernels.crc32c(number.to_bytes(4, "little")))
            else:
                crc = kernels.decode_streams(layout, parsed.mode, _expand(parsed, layout, n), n, number, to)
            if crc != int(crcs[i]):
                raise ChecksumError("the decoded bytes do not match their checksum: the file is damaged")
        i += 1


def _decode_fields(chunk: Chunk, out: NDArray[np.uint8]) -> None:
    """Decode each field's bytes, and deal them out to the blocks (FORMAT 6.6)."""
    kernels, block = kernel_choice.active(), sum(chunk.widths)
    if out.size % block:
        raise CorruptionError("the chunk is not a whole count of blocks")
    blocks, begin = out.reshape(-1, block), 0
    for width, (codec, stream) in zip(chunk.widths, chunk.streams, strict=True):
        n = len(blocks) * width
        plane = np.empty(n, np.uint8)
        raw: tuple[int, Stream] = (Codec.RAW, zstd_decode(stream, n)) if codec == Codec.ZSTD else (codec, stream)
        kernels.decode_streams(LAYOUTS[LayoutId.BYTES1], Mode.WHOLE, [raw], n, 0, plane)
        blocks[:, begin : begin + width] = plane.reshape(-1, width)
        begin += width


def _expand(chunk: Chunk, layout: Layout, n_elems: int) -> list[tuple[int, Stream]]:
    n_planes, n_blocks = len(layout.plane_bits), -(-n_elems // 128)
    streams: list[tuple[int, Stream]] = []
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
        streams.append((Codec.RAW, zstd_decode(stream, n)))
    return streams


def _bits_bytes(widths: tuple[int, Stream], layout: Layout, n_elems: int, n_blocks: int) -> int:
    """Return the length of the bits stream that these widths imply (FORMAT 7.4)."""
    plane = np.empty(n_blocks, np.uint8)
    if n_blocks > MAX_CHUNK_BLOCKS:
        raise CorruptionError("the chunk has too many blocks")
    kernel_choice.active().decode_streams(LAYOUTS[LayoutId.BYTES1], Mode.WHOLE, [widths], n_blocks, 0, plane)
    if int(plane.max()) > layout.raw_bits:
        raise CorruptionError("a block is wider than its raw word")
    elems = np.full(n_blocks, 128, np.int64)
    elems[-1] = n_elems - 128 * (n_blocks - 1)
    return int((plane // 8 * elems + plane % 8 * ((elems + 7) // 8)).sum())
