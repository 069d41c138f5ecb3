# SPDX-License-Identifier: Apache-2.0
"""What a source file is taken for: named, typed ranges (tensors) and what lies between them (gaps)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weightpack.errors import CorruptionError


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
