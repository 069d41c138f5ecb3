# SPDX-License-Identifier: Apache-2.0
"""A source file as segments: named, typed ranges (tensors) and what lies between them (gaps). One module a file format."""

from __future__ import annotations

from dataclasses import dataclass

from weightpack.files import RandomReader

__all__ = ["Segments", "Tensor", "segment"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the source; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Segments:
    """What a source holds: `tensors` in the order of their names' code points, `gaps` as ascending (offset, length), both tile the file."""

    source_format: str
    tensors: tuple[Tensor, ...]
    gaps: tuple[tuple[int, int], ...]
    metadata: dict[str, str] | None


def segment(source: RandomReader) -> Segments:
    """Find the segments of a source file.

    Raises
    ------
    FormatError
        It is no safetensors file.
    """
    from weightpack.segments.safetensors import segment_safetensors

    return segment_safetensors(source)
