# SPDX-License-Identifier: Apache-2.0
"""Packed file -> the source's bytes, piece by piece in the order of the source. What is done with a piece is the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from weightpack.format.index import Gap
from weightpack.io.parallel import Scratch, ordered_map
from weightpack.reading.packed_file import PackedFile, Piece, StoredTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

Result = TypeVar("Result")

_PIECE_BYTES = 1 << 20  # at once in the second-level cache: decoded, then written or compared


@dataclass(frozen=True, slots=True)
class RestoredPiece(Generic[Result]):
    """`n_bytes` of the source at `offset`, and what the caller's function made of them."""

    offset: int
    n_bytes: int
    result: Result


def restored_pieces(
    packed: PackedFile, threads: int, use: Callable[[int, NDArray[np.uint8]], Result], *, keep: bool = False
) -> Iterator[RestoredPiece[Result]]:
    """Decode the whole source and call `use(offset, bytes)` on each piece, in worker threads; yield the results in order.

    The array that `use` gets is overwritten by the thread's next piece, which saves page faults and keeps it in the cache, unless it asks to `keep` it.
    """
    scratch = Scratch()

    def work(task: Gap | tuple[StoredTensor, Piece]) -> RestoredPiece[Result]:
        if isinstance(task, Gap):
            data = np.frombuffer(packed.decode_gap(task), np.uint8)
            return RestoredPiece(task.offset, data.size, use(task.offset, data))
        stored, piece = task
        out = np.empty(piece.n_bytes, np.uint8) if keep else scratch.get(piece.n_bytes)
        packed.decode_piece(stored, piece, out)
        offset = stored.tensor.offset + piece.begin
        return RestoredPiece(offset, out.size, use(offset, out))

    return ordered_map(work, _tasks(packed), threads, lambda task: task.n_bytes if isinstance(task, Gap) else task[1].n_bytes)


def _tasks(packed: PackedFile) -> Iterator[Gap | tuple[StoredTensor, Piece]]:
    for _, part in packed.parts():
        if isinstance(part, Gap):
            yield part
        else:
            yield from ((part, piece) for piece in packed.pieces(part, piece_bytes=_PIECE_BYTES))
