# SPDX-License-Identifier: Apache-2.0
"""A source, cut into what is read in one go: a batch is a range of the file, and the tensors' runs and the gaps that tile it, in the order of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from weightpack.format.constants import KEPT_PIECE_BYTES, MAX_RECORD_BYTES
from weightpack.format.index import BaseRange, Gap
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import pieces
from weightpack.options import PackOptions
from weightpack.sources.model import Tensor
from weightpack.writing.chunks import Chunking, ReadElems

_BATCH_BYTES = 1 << 20  # read, hashed, encoded and compared while they are in the cache; what is packed does not depend on it


_TINY_BYTES, _LEAST_MEMBERS = 512, 64  # so many so small neighbours are a group: an entry of each would take more than its bytes
_GROUP_CHUNK_BYTES = 1 << 16  # who wants one tensor of a group decodes a chunk


@dataclass(frozen=True, slots=True)
class Unit:
    """What one record, or none, holds: a tensor, or a group of neighbours (FORMAT 5.8), of which `tensor` has the first one's name and all bytes."""

    tensor: Tensor
    members: tuple[str, ...] = ()  # of a group, but the first


def units(tensors: Iterable[Tensor]) -> list[Unit]:
    """Find the groups among the tensors that are not empty. In the order of the source."""
    found: list[Unit] = []
    near: list[Tensor] = []
    for tensor in sorted((each for each in tensors if each.n_bytes), key=lambda each: each.offset):
        if near and (tensor.n_bytes > _TINY_BYTES or near[-1].offset + near[-1].n_bytes != tensor.offset):
            found += _grouped(near)
            near = []
        if tensor.n_bytes <= _TINY_BYTES:
            near.append(tensor)
        else:
            found.append(Unit(tensor))
    return found + _grouped(near)


def _grouped(tensors: list[Tensor]) -> list[Unit]:
    """Make one unit of tiny neighbours, if they are many; its elements are theirs, if all have the same, else bytes."""
    if len(tensors) < _LEAST_MEMBERS:
        return [Unit(tensor) for tensor in tensors]
    n_bytes, dtype = sum(tensor.n_bytes for tensor in tensors), tensors[0].dtype
    if any(tensor.dtype != dtype for tensor in tensors) or DTYPE_BITS.get(dtype, 0) < 8:
        dtype = "U8"
    whole = Tensor(tensors[0].name, dtype, (n_bytes * 8 // DTYPE_BITS[dtype],), tensors[0].offset, n_bytes)
    return [Unit(whole, tuple(tensor.name for tensor in tensors[1:]))]


@dataclass(frozen=True, slots=True)
class Run:
    """What is encoded in one go: consecutive chunks of a unit, `n_bytes` at `offset` of the source, the first of them number `first`.

    `chunking` is None where no record can hold the tensor; then `first` counts pieces of `KEPT_PIECE_BYTES`. `base` serves the tensor, if there is one.
    """

    unit: Unit
    chunking: Chunking | None
    base: BaseRange | None
    first: int
    offset: int
    n_bytes: int
    last: bool

    @property
    def tensor(self) -> Tensor:
        return self.unit.tensor


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
    units: Iterable[Unit], gaps: Iterable[Gap], options: PackOptions, matches: Mapping[str, BaseRange], read: Callable[[int, int], ReadElems]
) -> Iterator[Batch]:
    """Cut a source that `units` and `gaps` tile; a gap is not cut.

    `read(offset, n_bytes)` gives the reader of a tensor's samples, from which is decided how it is coded.
    """
    taken: list[Run | Gap] = []
    offset = n_bytes = 0
    for part in _parts(units, gaps, options, matches, read):
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
    units: Iterable[Unit], gaps: Iterable[Gap], options: PackOptions, matches: Mapping[str, BaseRange], read: Callable[[int, int], ReadElems]
) -> Iterator[Run | Gap]:
    wholes: list[Unit | Gap] = [*units, *gaps]
    for whole in sorted(wholes, key=lambda each: each.offset if isinstance(each, Gap) else each.tensor.offset):
        if isinstance(whole, Gap):
            yield whole
            continue
        tensor = whole.tensor
        chunking = _chunking(whole, options, read)
        base = matches.get(tensor.name) if chunking is not None and chunking.differs and not whole.members else None
        run_bytes, run_chunks = (KEPT_PIECE_BYTES, 1) if chunking is None else (chunking.run_bytes, chunking.run_chunks)
        for i, (offset, n) in enumerate(pieces(tensor.n_bytes, run_bytes)):
            yield Run(whole, chunking, base, i * run_chunks, tensor.offset + offset, n, offset + n == tensor.n_bytes)


def _chunking(unit: Unit, options: PackOptions, read: Callable[[int, int], ReadElems]) -> Chunking | None:
    """Return how a unit is coded; None if it is no whole count of elements, or longer than records are."""
    tensor = unit.tensor
    layout = options.layout(tensor.dtype, tensor.n_bytes)
    if tensor.n_bytes % layout.elem_bytes or tensor.n_bytes > MAX_RECORD_BYTES:
        return None
    if unit.members:
        options = replace(options, chunk_elems=min(options.chunk_elems, _GROUP_CHUNK_BYTES // layout.elem_bytes))
    samples = read(tensor.offset, tensor.n_bytes)
    return Chunking.of(layout, options, tensor.n_bytes, samples, fields=tensor.fields, row_elems=tensor.row_elems, shape=() if unit.members else tensor.shape)
