# SPDX-License-Identifier: Apache-2.0
"""Tensors of files -> an object of a store. A unit of work needs nothing but the files and the storage, so that any process may do it, and do it again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import FormatError, LosslessError, located
from weightpack.format.constants import Mode
from weightpack.format.record import parse_record_head
from weightpack.format.store import PART_BYTES, Item, Moves, PlacedItem, object_header, tensor_key
from weightpack.io.files import LocalFile, RandomReader, pieces, read_at
from weightpack.io.parallel import Scratch, ordered_map
from weightpack.kernels import active, crc32c_of
from weightpack.reading.record import decode_record
from weightpack.sources.model import Tensor
from weightpack.store.sketch import LEAST_BYTES, SKETCH_DTYPES, Sampler
from weightpack.store.storage import Storage
from weightpack.store.tensors import ItemReader, PartCache, base_bytes, object_path
from weightpack.writing.record import encode_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.options import PackOptions

_READ_BYTES = 1 << 20  # hashed while it is in the cache
_SPOOLED_BYTES = 128 << 20  # of an object, in memory; more are on disk


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of a file, as it was read first: its key, the CRC-32C of each of its parts, and its sketch. `stored`: of one that a store has, its item."""

    path: str
    tensor: Tensor
    key: str
    part_bytes: int
    crcs: tuple[int, ...]
    sketch: bytes
    stored: PlacedItem | None = None


@dataclass(frozen=True, slots=True)
class NewItem:
    """A tensor that is to be stored, and what it may differ from."""

    source: SourceTensor
    base: PlacedItem | None = None
    moves: Moves | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """What becomes an object. `model`: the name of the one that it comes with."""

    model: str
    items: tuple[NewItem, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(new.source.tensor.n_bytes for new in self.items)


@dataclass(frozen=True, slots=True)
class PackedUnit:
    """What came of a unit: an object, its length, and its items with the places where they begin."""

    object: str
    n_bytes: int
    model: str
    items: tuple[tuple[Item, int], ...]


def describe_tensor(file: RandomReader, tensor: Tensor) -> SourceTensor:
    """Read a tensor once: all that tells it from others, and which may be alike."""
    key, crcs = tensor_key(tensor.dtype, tensor.shape), []
    block = sum(tensor.fields) or 1
    part_bytes = PART_BYTES // block * block
    sampler = None
    if tensor.n_bytes >= LEAST_BYTES and tensor.dtype in SKETCH_DTYPES and not tensor.fields:
        sampler = Sampler(tensor.dtype, tensor.n_bytes)
    window = np.empty(min(_READ_BYTES, tensor.n_bytes), np.uint8)
    for begin, part in pieces(tensor.n_bytes, part_bytes):
        crc = crc32c_of(b"")
        for offset, n in pieces(part, window.size):
            data = window[:n]
            file.read_into(tensor.offset + begin + offset, memoryview(data))
            key.update(data)
            crc = active().crc32c(data, crc)
            if sampler is not None:
                sampler.take(begin + offset, data)
        crcs.append(crc)
    return SourceTensor(file.name, tensor, key.hexdigest(), part_bytes, tuple(crcs), b"" if sampler is None else sampler.sketch())


def pack_unit(unit: Unit, storage: Storage, options: PackOptions, *, threads: int = 1, progress: Callable[[int], None] = lambda n_bytes: None) -> PackedUnit:
    """Write the object of a unit; the same unit gives the same object.

    Raises
    ------
    LosslessError
        A file changed since it was read first, or what was packed does not decode to it (a bug).
    """
    cache, scratch = PartCache(), Scratch()
    with ExitStack() as stack:
        spool = stack.enter_context(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))
        files: dict[str, RandomReader] = {}
        for source in (new.source for new in unit.items):
            if source.stored is not None:
                files[source.path] = ItemReader(storage, source.stored, cache)
            elif source.path not in files:
                files[source.path] = stack.enter_context(LocalFile(source.path))
        readers = {new.base.item.key: ItemReader(storage, new.base, cache) for new in unit.items if new.base is not None}

        def work(task: tuple[NewItem, int, int]) -> tuple[bytes, bool]:
            new, begin, n_bytes = task
            base = None
            if new.base is not None:
                base = base_bytes(readers[new.base.item.key], new.base.item.dtype, new.source.tensor.dtype, new.moves, begin, n_bytes)
            with located(path=new.source.path, tensor=new.source.tensor.name):
                return _encode_part(files[new.source.path], new.source, begin, n_bytes, options, base, scratch)

        tasks = [(new, begin, n) for new in unit.items for begin, n in pieces(new.source.tensor.n_bytes, new.source.part_bytes)]
        results = ordered_map(work, tasks, threads, lambda task: task[2])
        items: list[Item] = []
        for new in unit.items:
            records, differs = [], False
            for _, n_bytes in pieces(new.source.tensor.n_bytes, new.source.part_bytes):
                record, part_differs = next(results)
                spool.write(record)
                records.append(len(record))
                differs = differs or part_differs
                progress(n_bytes)
            items.append(_item(new, tuple(records), differs))
        header = object_header(items, unit.model, active().crc32c)

        def written() -> Iterator[bytes]:
            yield header
            spool.seek(0)
            yield from iter(lambda: spool.read(_READ_BYTES), b"")

        digest = hashlib.sha256()
        for piece in written():
            digest.update(piece)
        name = digest.hexdigest()
        storage.put(object_path(name), written())
    placed, position = [], len(header)
    for item in items:
        placed.append((item, position))
        position += item.stored_bytes
    return PackedUnit(name, position, unit.model, tuple(placed))


def _item(new: NewItem, records: tuple[int, ...], differs: bool) -> Item:
    source = new.source
    item = Item(source.key, source.tensor.dtype, source.tensor.shape, source.part_bytes, records, name=source.tensor.name, sketch=source.sketch)
    return replace(item, base=new.base.item.key, moves=new.moves) if differs and new.base is not None else item


def _encode_part(
    file: RandomReader, source: SourceTensor, begin: int, n_bytes: int, options: PackOptions, base: NDArray[np.uint8] | None, scratch: Scratch
) -> tuple[bytes, bool]:
    """Encode a part, and prove that it decodes to what was read at first; say whether it needs the base."""
    tensor = source.tensor
    data = np.frombuffer(read_at(file, tensor.offset + begin, n_bytes), np.uint8)
    if crc32c_of(data) != source.crcs[begin // source.part_bytes]:
        raise LosslessError("the file changed while it was added: add it again")
    layout = options.layout(tensor.dtype, tensor.n_bytes)
    first_elem = begin // layout.elem_bytes
    record = encode_record(data, layout, options, row_elems=tensor.row_elems, first_elem=first_elem, fields=tensor.fields, base=base)

    def base_of(first: int, n: int) -> NDArray[np.uint8]:
        assert base is not None
        return base[first * layout.elem_bytes : (first + n) * layout.elem_bytes]

    decoded = scratch.get(n_bytes)
    try:
        decode_record(record, decoded, base=None if base is None else base_of)
        same = active().equal(decoded, data)
    except FormatError as error:
        raise LosslessError(f"what was packed does not decode: this is a bug in weightpack ({error})") from error
    if not same:
        raise LosslessError("what was packed differs from the file: this is a bug in weightpack")
    head = parse_record_head(record, n_bytes, len(record))
    return bytes(record), any(record[begin] == Mode.DIFFERENCE for begin in head.offsets[:-1].tolist())
