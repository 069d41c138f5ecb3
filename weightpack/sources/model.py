# SPDX-License-Identifier: Apache-2.0
"""What a source file is taken for: named, typed ranges (tensors) and what lies between them (gaps)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from weightpack.errors import CorruptionError, LimitError
from weightpack.format.constants import MAX_HEADER_BYTES
from weightpack.format.layouts import DTYPE_BITS, tensor_bytes
from weightpack.format.safetensors import MAX_DIMS, METADATA_KEY, is_count

_MOST_GAP_BYTES = 64 << 20  # of all gaps: they are held in memory, and in the index as text
_ENTRY_BYTES = 200  # what a tensor takes in a packed file's header beside its name, about


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


def listable(segments: Segments) -> Segments:
    """Return segments that an index can list: of tensors with the same name, or that of the header's metadata, all but the first get a number.

    Raises
    ------
    CorruptionError, LimitError
        A tensor is none that an index can list, or they are too many.
    """
    taken, times = {METADATA_KEY, *(tensor.name for tensor in segments.tensors)}, Counter({METADATA_KEY: 1})
    tensors = []
    for tensor in segments.tensors:
        if tensor.dtype not in DTYPE_BITS or len(tensor.shape) > MAX_DIMS or not all(map(is_count, tensor.shape)):
            raise CorruptionError("not a tensor that an index can list", tensor=tensor.name)
        if tensor_bytes(tensor.dtype, tensor.shape) != tensor.n_bytes:
            raise CorruptionError(f"{tensor.n_bytes} bytes do not hold {tensor.dtype} of shape {list(tensor.shape)}", tensor=tensor.name)
        number = times[tensor.name] + 1
        while number > 1 and f"{tensor.name}#{number}" in taken:
            number += 1
        times[tensor.name] = number
        tensors.append(tensor if number == 1 else replace(tensor, name=f"{tensor.name}#{number}"))
        taken.add(tensors[-1].name)
    if sum(length for _, length in segments.gaps) > _MOST_GAP_BYTES:
        raise LimitError(f"more than {_MOST_GAP_BYTES} bytes lie between tensors")
    if sum(_ENTRY_BYTES + len(json.dumps(tensor.name)) for tensor in tensors) > MAX_HEADER_BYTES:
        raise LimitError("the tensors' names are longer than a header may be")
    return replace(segments, tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)))
