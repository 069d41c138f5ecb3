# SPDX-License-Identifier: Apache-2.0
"""Chunk -> elements, straight into the caller's buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack import kernels as kernel_choice
from weightpack.dtypes import LAYOUTS, LayoutId
from weightpack.errors import ChecksumError, CorruptionError
from weightpack.format.constants import MAX_CHUNK_BLOCKS, Codec, Mode
from weightpack.format.index import zstd_decode
from weightpack.format.record import Chunk, parse_chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.dtypes import Layout
    from weightpack.kernels import Stream


def decode_chunk(layout: Layout, chunk: bytes | bytearray | memoryview, n_elems: int, chunk_number: int, crc: int, out: NDArray[np.uint8]) -> None:
    """Decode one chunk into `out` and check its CRC (FORMAT 6.2).

    Parameters
    ----------
    chunk
        The chunk and up to 15 bytes of padding.
    out : (n_elems * layout.elem_bytes,) uint8
        Filled completely, or left undefined if an error is raised.

    Raises
    ------
    FormatError
        Of the kind that fits.
    """
    kernels = kernel_choice.active()
    if kernels.decode_chunk(layout, chunk, n_elems, chunk_number, crc, out):
        return
    # zstd streams are expanded here, by a library, and go to the kernels as raw planes.
    parsed = parse_chunk(chunk, layout)
    if kernels.decode_streams(layout, parsed.mode, _expand(parsed, layout, n_elems), n_elems, chunk_number, out) != crc:
        raise ChecksumError("the decoded bytes do not match their checksum: the file is damaged")


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
