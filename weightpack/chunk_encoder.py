# SPDX-License-Identifier: Apache-2.0
"""Elements -> chunk. One chunk at a time, so that a tensor of any size needs the memory of a few chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightpack import kernels as kernel_choice
from weightpack.coders.choose import encode_bytes, encode_plane
from weightpack.format.constants import Codec, Mode
from weightpack.format.record import EncodedChunk, build_chunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from weightpack.dtypes import Layout
    from weightpack.options import PackOptions


def chunk_crc(data: NDArray[np.uint8], chunk_number: int) -> int:
    """Return `crc32c(u32 chunk_number || data)` (FORMAT 6.2); the number is there so that chunks can't trade places."""
    kernels = kernel_choice.active()
    return kernels.crc32c(data, kernels.crc32c(chunk_number.to_bytes(4, "little")))


def encode_chunk(data: NDArray[np.uint8], layout: Layout, options: PackOptions) -> EncodedChunk:
    """Encode the bytes of one chunk (a whole count of elements) as the smallest of: split planes, one plane of bytes, the bytes as they are.
    """
    kernels = kernel_choice.active()
    planes = kernels.split(layout, data)
    streams = [encode_plane(kernels, plane, options, try_zstd=not layout.raw_bits) for plane in planes.symbols]
    if layout.raw_bits:
        streams += [encode_plane(kernels, planes.widths, options, try_zstd=True), encode_bytes(kernels, planes.bits, options)]
    split_bytes = sum(len(stream) for _, stream in streams)
    whole = encode_bytes(kernels, data, options) if split_bytes > layout.n_streams else (Codec.RAW, data)
    if len(whole[1]) < split_bytes:
        return build_chunk(Mode.WHOLE, [whole])
    return build_chunk(Mode.SPLIT, streams)
