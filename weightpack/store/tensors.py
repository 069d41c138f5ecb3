# SPDX-License-Identifier: Apache-2.0
"""Items and files of a store, read at any offset: what is read is fetched, and decoded."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from weightpack.errors import CorruptionError, OptionError, PathNotFoundError, TruncatedError, located
from weightpack.format.index import BaseRange, Gap
from weightpack.format.layouts import DTYPE_BITS, layout_of
from weightpack.format.safetensors import Entry, build_header
from weightpack.format.store import ModelFile, PlacedItem
from weightpack.io.files import MemoryFile, RandomReader
from weightpack.io.parallel import ordered_map
from weightpack.reading.base_range import BaseElements, check_range
from weightpack.reading.record import decode_record
from weightpack.sources.cursor import Part
from weightpack.sources.model import Tensor
from weightpack.sources.safetensors import read_header
from weightpack.store.storage import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GROUP_BYTES = 256 << 20  # decoded, of records that are fetched at once: up to there a tensor is one request for each item of its chain
_PARTS_KEPT = 8


class PartCache:
    """The last parts that were wanted in part: whoever reads rows wants them again."""

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[str, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> NDArray[np.uint8] | None:
        """Return a part that is here."""
        with self._lock:
            if key in self._parts:
                self._parts.move_to_end(key)
            return self._parts.get(key)

    def put(self, key: tuple[str, int], part: NDArray[np.uint8]) -> None:
        """Keep a part, and forget the one that was wanted longest ago."""
        with self._lock:
            self._parts[key] = part
            while len(self._parts) > _PARTS_KEPT:
                self._parts.popitem(last=False)


class ItemReader:
    """A stored tensor's bytes. Safe to use from many threads."""

    def __init__(self, storage: Storage, placed: PlacedItem, cache: PartCache, threads: int = 1) -> None:
        item = placed.item
        self.name, self.size, self.piece_bytes = item.key, item.n_bytes, item.part_bytes
        self.placed, self._storage, self._cache, self._threads = placed, storage, cache, threads
        self._begins = [placed.begin, *accumulate(item.records, initial=placed.begin)][1:]  # of the records, and the end of the last
        self._base = None if placed.base is None else ItemReader(storage, placed.base, cache, threads)
        if self._base is not None:
            base = self._base.placed.item
            with located(tensor=item.key):
                check_range(BaseRange(0, base.dtype, 0, base.n_bytes, item.moves), Tensor(item.key, item.dtype, item.shape, 0, item.n_bytes), base.n_bytes)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the tensor.

        Raises
        ------
        FormatError
            What holds the bytes, or what these differ from, is damaged, or gone.
        """
        out: NDArray[np.uint8] = np.frombuffer(buffer, np.uint8)
        end, part_bytes = offset + out.size, self.piece_bytes
        if end > self.size:
            raise TruncatedError(f"bytes to {end} are wanted, there are {self.size}", path=self.name)
        position = offset
        while position < end:
            number, within = divmod(position, part_bytes)
            part_end = min((number + 1) * part_bytes, self.size)
            if within == 0 and part_end <= end:
                whole_end = end if end == self.size else end // part_bytes * part_bytes
                group_end = min(whole_end, (number + max(1, _GROUP_BYTES // part_bytes)) * part_bytes)
                self._decode(number, out[position - offset : group_end - offset])
                position = group_end
            else:
                n = min(end, part_end) - position
                out[position - offset : position - offset + n] = self._part(number)[within : within + n]
                position += n

    def _part(self, number: int) -> NDArray[np.uint8]:
        part = self._cache.get((self.name, number))
        if part is None:
            part = np.empty(min(self.piece_bytes, self.size - number * self.piece_bytes), np.uint8)
            self._decode(number, part)
            self._cache.put((self.name, number), part)
        return part

    def _decode(self, first: int, out: NDArray[np.uint8]) -> None:
        """Decode whole parts, which begin with number `first`, from one range of the object."""
        item, part_bytes = self.placed.item, self.piece_bytes
        last = first + -(-out.size // part_bytes)
        with located(path=f"{self._storage.url}/{object_path(self.placed.object)}", tensor=item.key):
            stored = self._fetched(self._begins[first], self._begins[last])
            base = self._base_elems(first * part_bytes, out.size)
            elem_bytes = layout_of(item.dtype).elem_bytes

            def decode(number: int) -> None:
                begin = (number - first) * part_bytes
                record = stored[self._begins[number] - self._begins[first] : self._begins[number + 1] - self._begins[first]]
                of_part = None if base is None else base[begin : begin + part_bytes]

                def elems(first_elem: int, n: int) -> NDArray[np.uint8]:
                    if of_part is None:
                        raise CorruptionError("the item holds differences, but has no base")
                    return of_part[first_elem * elem_bytes : (first_elem + n) * elem_bytes]

                decode_record(record, out[begin : begin + part_bytes], base=elems)

            for _ in ordered_map(decode, range(first, last), self._threads, lambda number: part_bytes):
                pass

    def _fetched(self, begin: int, end: int) -> memoryview:
        try:
            return memoryview(self._storage.read(object_path(self.placed.object), begin, end))
        except PathNotFoundError:
            reason = "the object is not there: the model was removed meanwhile, or the store is damaged; `weightpack store verify` says what is missing"
            raise CorruptionError(reason) from None

    def _base_elems(self, begin: int, n_bytes: int) -> NDArray[np.uint8] | None:
        """Return what bytes [begin, begin + n_bytes) of the tensor may differ from."""
        return (
            None if self._base is None else base_bytes(self._base, self._base.placed.item.dtype, self.placed.item.dtype, self.placed.item.moves, begin, n_bytes)
        )

    def changed(self) -> bool:
        """Objects do not change."""
        return False

    def close(self) -> None:
        """Nothing to give back."""


def base_bytes(base: RandomReader, base_dtype: str, dtype: str, moves: Sequence[tuple[int, int, int]] | None, begin: int, n_bytes: int) -> NDArray[np.uint8]:
    """Return what bytes [begin, begin + n_bytes) of a tensor of `dtype` differ from; the base is read once, from the first to the last byte that is needed."""
    from_size, size = DTYPE_BITS[base_dtype] // 8, DTYPE_BITS[dtype] // 8
    moves = ((0, 0, base.size // from_size),) if moves is None else tuple(moves)
    first, last = begin // size, (begin + n_bytes) // size
    served = [(from_ + max(first - to, 0), from_ + min(last - to, n)) for to, from_, n in moves if to < last and to + n > first]
    low, high = min((begin for begin, _ in served), default=0), max((end for _, end in served), default=0)
    window = np.empty((high - low) * from_size, np.uint8)
    base.read_into(low * from_size, memoryview(window))
    return BaseElements()(MemoryFile([window]), BaseRange(0, base_dtype, -low * from_size, base.size, moves), dtype, first, last - first)


def object_path(name: str) -> str:
    """Return where an object is in its storage."""
    return f"objects/{name[:2]}/{name}.safetensors"


class FileReader:
    """A file of a model in a store, as a file: what is read is decoded. Safe to use from many threads."""

    def __init__(self, storage: Storage, file: ModelFile, items: Sequence[PlacedItem], cache: PartCache, threads: int = 1) -> None:
        self.name, self.size, self.piece_bytes = file.path, file.n_bytes, 16 << 20
        self._parts = [part if isinstance(part, Gap) else ItemReader(storage, items[part], cache, threads) for part in file.parts]
        self._begins = [0, *accumulate(part.n_bytes if isinstance(part, Gap) else part.size for part in self._parts)]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the file; see `ItemReader.read_into`."""
        for part, begin, to in _touched(self._parts, self._begins, offset, buffer, self.name):
            if isinstance(part, Gap):
                to[:] = part.decode()[begin : begin + len(to)]
            else:
                part.read_into(begin, to)

    def pieces(self, begin: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        """Return (offset, length) of what is best read at once, from a byte to another: no part of an item is in two."""
        end = self.size if end is None else end
        found = []
        number = max(bisect_right(self._begins, begin) - 1, 0)
        position = begin
        while position < end:
            part, part_begin = self._parts[number], self._begins[number]
            part_end = min(end, self._begins[number + 1])
            while position < part_end:
                step_end = part_end
                if isinstance(part, ItemReader):
                    step_end = min(part_end, part_begin + ((position - part_begin) // part.piece_bytes + 1) * part.piece_bytes)
                found.append((position, step_end - position))
                position = step_end
            number += 1
        return found

    def changed(self) -> bool:
        """What a manifest names does not change."""
        return False

    def close(self) -> None:
        """Nothing to give back."""


class JoinedFile:
    """Files one after the other, as one."""

    def __init__(self, name: str, files: Sequence[RandomReader]) -> None:
        self.name, self.piece_bytes, self._files = name, 16 << 20, files
        self._begins = [0, *accumulate(file.size for file in files)]
        self.size = self._begins[-1]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on."""
        for file, begin, to in _touched(self._files, self._begins, offset, buffer, self.name):
            file.read_into(begin, to)

    def changed(self) -> bool:
        """What a manifest names does not change."""
        return False

    def close(self) -> None:
        """Nothing to give back."""


Touched = TypeVar("Touched")


def _touched(parts: Sequence[Touched], begins: Sequence[int], offset: int, buffer: memoryview, name: str) -> Iterator[tuple[Touched, int, memoryview]]:
    """Yield (part, where in it to begin, what to fill) of what makes up a file from `offset` on; `begins` are those of the parts, and the file's end."""
    end, position = offset + len(buffer), offset
    if end > begins[-1]:
        raise TruncatedError(f"bytes to {end} are wanted, there are {begins[-1]}", path=name)
    while position < end:
        number = bisect_right(begins, position) - 1
        n = min(end, begins[number + 1]) - position
        yield parts[number], position - begins[number], buffer[position - offset : position - offset + n]
        position += n


def joined_shards(shards: Sequence[FileReader]) -> JoinedFile:
    """Return safetensors files as one that has all their tensors, under a header of its own.

    Raises
    ------
    OptionError
        Two have a tensor of one name.
    FormatError, LimitError
        One is no safetensors file.
    """
    headers = [read_header(shard) for shard in shards]
    entries: dict[str, Entry] = {}
    shift = 0
    for shard, header in zip(shards, headers, strict=True):
        if twice := entries.keys() & header.entries.keys():
            raise OptionError("two files of the model have a tensor of this name: open them one by one", path=shard.name, tensor=min(twice))
        entries |= {name: entry._replace(begin=entry.begin + shift, end=entry.end + shift) for name, entry in header.entries.items()}
        shift += shard.size - header.data_begin
    text = build_header(headers[0].metadata, list(entries.values()))
    data = [Part(shard, shard.name, header.data_begin, shard.size - header.data_begin) for shard, header in zip(shards, headers, strict=True)]
    return JoinedFile(f"{len(shards)} shards", [MemoryFile([len(text).to_bytes(8, "little"), text]), *data])
