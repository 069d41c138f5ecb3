# SPDX-License-Identifier: Apache-2.0
"""Repetition inside a tensor, found from samples: the fused copies of an expert, a table that was tiled for a batch. Chunks are cut where copies are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

from weightpack.format.constants import BLOCK_ELEMS

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes

_LEAST_BYTES = 1 << 18  # of a tensor
_LEAST_SLICE = 4096  # elements; what is shorter zstd sees
_SLICES = 8  # are looked at, spread evenly
_SAMPLE_BYTES = 64
_MOST_CUTS = 4096  # chunks of a slice


def chunk_elems_of_copies(read: Callable[[int, int], Bytes], shape: tuple[int, ...], n_bytes: int, elem_bytes: int, most: int) -> int | None:
    """Return of how many elements, at most `most`, chunks are to be so that copies inside the tensor are whole chunks; None if no sample shows any.

    Parameters
    ----------
    read
        (offset, n_bytes) -> bytes of the tensor, which has `n_bytes`.
    """
    n_elems = n_bytes // elem_bytes
    if n_bytes < _LEAST_BYTES or len(shape) < 2:
        return None
    slices = [n_elems // n for n in accumulate(shape[:-1], mul) if n > 1]  # along the first dimensions
    slices += [n_elems // n for n in (2, 8) if len(shape) == 2 and shape[0] % n == 0]  # copies that stand below each other
    best, best_copies = None, 0
    for elems in sorted({elems for elems in slices if _LEAST_SLICE <= elems < n_elems}, reverse=True):
        chunk = _chunk_of(elems, most)
        if chunk is None:
            continue
        copies = _copies(read, n_elems // elems, elems * elem_bytes)
        if copies > best_copies:
            best, best_copies = chunk, copies
    return best


def _chunk_of(slice_elems: int, most: int) -> int | None:
    """Return the largest chunk that divides a slice."""
    for n in range(-(-slice_elems // most), min(_MOST_CUTS, slice_elems // _LEAST_SLICE) + 1):
        if slice_elems % (n * BLOCK_ELEMS) == 0:
            return slice_elems // n
    return None


def _copies(read: Callable[[int, int], Bytes], n_slices: int, slice_bytes: int) -> int:
    """Count the slices, of some, that have what another has in the same place; what is constant there is no sign."""
    places = sorted({i * n_slices // _SLICES for i in range(_SLICES)} | {0, 1, n_slices - 1})
    at = slice_bytes // 3 // _SAMPLE_BYTES * _SAMPLE_BYTES
    samples = [read(i * slice_bytes + at, _SAMPLE_BYTES).tobytes() for i in places]
    telling = [sample for sample in samples if len(set(sample)) > 8]
    return len(telling) - len(set(telling))


def repeated_chunks(contents: dict[tuple[int, int], int], crcs: list[int], sizes: list[int], first: int, same: Callable[[int, int], bool]) -> dict[int, int]:
    """Return which chunks of a run are the same as an earlier one of their tensor: number -> the earlier one's.

    Parameters
    ----------
    contents
        (CRC, bytes) -> the first chunk with them, of the runs before; those of this run are added.
    crcs, sizes
        Of the chunks' elements, without the chunk's number, and their bytes.
    first
        The number of the run's first chunk.
    same
        Compares two chunks, byte for byte.
    """
    repeated = {}
    for number, key in enumerate(zip(crcs, sizes, strict=True), first):
        earlier = contents.setdefault(key, number)
        if earlier != number and same(earlier, number):
            repeated[number] = earlier
    return repeated
