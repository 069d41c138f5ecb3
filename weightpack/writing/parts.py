# SPDX-License-Identifier: Apache-2.0
"""A source, cut into what is read in one go: a batch is a range of the file, and the tensors' runs and the gaps that tile it, in the order of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from weightpack.format.constants import KEPT_PIECE_BYTES, MAX_RECORD_BYTES
from weightpack.format.index import BaseRange, Gap
from weightpack.io.files import pieces
from weightpack.options import PackOptions
from weightpack.sources.model import Tensor
from weightpack.writing.chunks import Chunking, ReadElems

_BATCH_BYTES = 1 << 20  # read, hashed, encoded and compared while they are in the cache; what is packed does not depend on it


@dataclass(frozen=True, slots=True)
class Run:
    """One unit of encoding: consecutive chunks of a tensor, `n_bytes` at `offset` of the source, the first of them number `first`.

    `chunking` is None where no record can hold the tensor; then `first` counts pieces of `KEPT_PIECE_BYTES`. `base` serves the tensor, if there is one.
    """

    tensor: Tensor
    chunking: Chunking | None
    base: BaseRange | None
    first: int
    offset: int
    n_bytes: int
    last: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """`n_bytes` at `offset` of the source, which the parts tile."""

    offset: int
    n_bytes: int
    parts: tuple[Run | Gap, ...]

    def bound(self) -> int:
        """Return room for the chunks of all its runs."""
        return sum(part.chunking.bound(part.n_bytes) for part in self.parts if isinstance(part, Run) and part.chunking)


def batches(
    tensors: Iterable[Tensor], gaps: Iterable[Gap], options: PackOptions, matches: Mapping[str, BaseRange], read: Callable[[int, int], ReadElems]
) -> Iterator[Batch]:
    """Cut a source that `tensors` and `gaps` tile; a gap is not cut.

    `read(offset, n_bytes)` gives the reader of a tensor's samples, from which is decided how it is coded.
    """
    taken: list[Run | Gap] = []
    offset = n_bytes = 0
    for part in _parts(tensors, gaps, options, matches, read):
        if not taken:
            offset = part.offset
        taken.append(part)
        n_bytes += part.n_bytes
        if n_bytes >= _BATCH_BYTES:
            yield Batch(offset, n_bytes, tuple(taken))
            taken, n_bytes = [], 0
    if taken:
        yield Batch(offset, n_bytes, tuple(taken))


def _parts(
    tensors: Iterable[Tensor], gaps: Iterable[Gap], options: PackOptions, matches: Mapping[str, BaseRange], read: Callable[[int, int], ReadElems]
) -> Iterator[Run | Gap]:
    wholes: list[Tensor | Gap] = [*(tensor for tensor in tensors if tensor.n_bytes), *gaps]
    for whole in sorted(wholes, key=lambda each: each.offset):
        if isinstance(whole, Gap):
            yield whole
            continue
        chunking = _chunking(whole, options, read)
        base = matches.get(whole.name) if chunking is not None and chunking.differs else None
        run_bytes, run_chunks = (KEPT_PIECE_BYTES, 1) if chunking is None else (chunking.run_bytes, chunking.run_chunks)
        for i, (offset, n) in enumerate(pieces(whole.n_bytes, run_bytes)):
            yield Run(whole, chunking, base, i * run_chunks, whole.offset + offset, n, offset + n == whole.n_bytes)


def _chunking(tensor: Tensor, options: PackOptions, read: Callable[[int, int], ReadElems]) -> Chunking | None:
    """Return how a tensor is coded; None if it is no whole count of elements, or longer than records are."""
    layout = options.layout(tensor.dtype, tensor.n_bytes)
    if tensor.n_bytes % layout.elem_bytes or tensor.n_bytes > MAX_RECORD_BYTES:
        return None
    samples = read(tensor.offset, tensor.n_bytes)
    return Chunking.of(layout, options, tensor.n_bytes, samples, fields=tensor.fields, row_elems=tensor.row_elems)
