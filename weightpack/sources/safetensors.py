# SPDX-License-Identifier: Apache-2.0
"""Segments of a safetensors file. Files that the official library refuses (holes, bytes behind the last tensor) are taken too: those bytes are gaps."""

from __future__ import annotations

from weightpack.format.safetensors import Header, header_bytes, parse_header
from weightpack.io.files import RandomReader, read_at
from weightpack.sources import Segments, Tensor, tiled


def segment_safetensors(source: RandomReader) -> Segments:
    """Read the header of a safetensors file and find its tensors and gaps."""
    n = header_bytes(bytes(read_at(source, 0, min(8, source.size))), source.size)
    header = parse_header(bytes(read_at(source, 8, n)), source.size - 8 - n, unknown_dtypes=True)
    return segments_of(header, source.size)


def segments_of(header: Header, file_bytes: int) -> Segments:
    """Turn a source's header into segments that tile the file; overlapping tensors are refused, since they have no place in a tiling."""
    tensors = (Tensor(e.name, e.dtype, e.shape, header.data_begin + e.begin, e.end - e.begin) for e in header.entries.values())
    return tiled("safetensors", tensors, file_bytes, header.metadata)
