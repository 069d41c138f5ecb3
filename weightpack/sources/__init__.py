# SPDX-License-Identifier: Apache-2.0
"""A source file as segments: named, typed ranges (tensors) and what lies between them (gaps). One module a file format.

Nothing is unpickled, and nothing that a file says can do more than make it a row of bytes: a file that is not what it seems to be is packed as "bytes".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weightpack.errors import CorruptionError, FormatError
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader, read_at
from weightpack.sources.sniff import sniff

__all__ = ["Segments", "Tensor", "segment", "tiled"]

_MOST_GAP = 1 << 12  # of other formats than safetensors: gaps are held in memory, and in the index as text
_SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the source; `offset` counts from the start of the file.

    `fields`: of a tensor of blocks of bytes, the widths of a block's fields (scales, quants, ...), which are coded apart; none where there are no blocks.
    `row`: how many elements are a row, where `shape` does not tell.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    fields: tuple[int, ...] = ()
    row: int = 0

    @property
    def row_elems(self) -> int:
        """Elements of a row: of the last dimension, or what the format says of a tensor that it knows as a row of numbers; 0 if it has none."""
        return self.row or (self.shape[-1] if len(self.shape) > 1 else 0)


@dataclass(frozen=True, slots=True)
class Segments:
    """What a source holds: `tensors` in the order of their names' code points, `gaps` as ascending (offset, length), both tile the file."""

    source_format: str
    tensors: tuple[Tensor, ...]
    gaps: tuple[tuple[int, int], ...]
    metadata: dict[str, str] | None


def tiled(source_format: str, tensors: Iterable[Tensor], file_bytes: int, metadata: dict[str, str] | None = None) -> Segments:
    """Find the gaps between tensors; overlapping tensors are refused, since they have no place in a tiling."""
    gaps, covered = [], 0
    by_name = tuple(sorted(tensors, key=lambda tensor: tensor.name))
    for tensor in sorted((t for t in by_name if t.n_bytes), key=lambda t: t.offset):
        if tensor.offset < covered:
            raise CorruptionError("the tensor overlaps another", tensor=tensor.name)
        if tensor.offset > covered:
            gaps.append((covered, tensor.offset - covered))
        covered = tensor.offset + tensor.n_bytes
    if covered > file_bytes:
        raise CorruptionError("a tensor ends behind the file")
    if file_bytes > covered:
        gaps.append((covered, file_bytes - covered))
    return Segments(source_format, by_name, tuple(gaps), metadata)


def segment(source: RandomReader) -> Segments:
    """Find the segments of a source file: by what it begins with, not by its name, but that a file that is named .safetensors must be one.

    Raises
    ------
    FormatError
        The file is named .safetensors and is none.
    """
    from weightpack.sources.safetensors import segment_safetensors

    first = bytes(read_at(source, 0, min(9, source.size)))
    if source.name.endswith(_SAFETENSORS):
        return segment_safetensors(source)
    try:
        found = _segment_by_content(source, first)
        if len({tensor.name for tensor in found.tensors}) == len(found.tensors):
            return found
    except FormatError:
        pass
    return _with_small_gaps(source, Segments("bytes", (), ((0, source.size),) if source.size else (), None))


def _segment_by_content(source: RandomReader, first: bytes) -> Segments:
    from weightpack.sources.gguf import segment_gguf
    from weightpack.sources.npy import segment_npy
    from weightpack.sources.onnx import looks_like_onnx, segment_onnx
    from weightpack.sources.safetensors import segment_safetensors
    from weightpack.sources.zip import segment_zip

    if first.startswith(b"GGUF"):
        return _with_small_gaps(source, segment_gguf(source))
    if first.startswith(b"PK\x03\x04"):
        return _with_small_gaps(source, segment_zip(source))
    if first.startswith(b"\x93NUMPY"):
        return _with_small_gaps(source, segment_npy(source))
    if looks_like_onnx(first) and first[8:] != b"{":  # of a safetensors file, these eight bytes are a length
        return _with_small_gaps(source, segment_onnx(source))
    return segment_safetensors(source)


def _with_small_gaps(source: RandomReader, segments: Segments) -> Segments:
    """Make tensors out of large gaps: a gap is held in memory and in the index, a tensor streams through in chunks."""
    names = {tensor.name for tensor in segments.tensors}
    large = []
    for gap, length in segments.gaps:
        if length <= _MOST_GAP and segments.source_format != "bytes":
            continue
        for dtype, offset, n_bytes in sniff(source, gap, length):
            name = f"bytes at {offset}"
            while name in names:
                name += "'"
            large.append(Tensor(name, dtype, (n_bytes * 8 // DTYPE_BITS[dtype],), offset, n_bytes))
    end = max((offset + n_bytes for offset, n_bytes in segments.gaps), default=0)
    file_bytes = max([end, *(tensor.offset + tensor.n_bytes for tensor in segments.tensors)])
    return tiled(segments.source_format, (*segments.tensors, *large), file_bytes, segments.metadata)
