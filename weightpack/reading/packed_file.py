# SPDX-License-Identifier: Apache-2.0
"""A packed file, opened: everything that the header and the index claim is checked here, before any tensor is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import BaseNotFoundError, ChecksumError, CorruptionError, LimitError, NotPackedError, TensorNotFoundError, UnsupportedError, located
from weightpack.format.constants import INDEX_CRC_KEY, INDEX_KEY, KEPT_PIECE_BYTES, MAX_HEADER_BYTES
from weightpack.format.index import BaseRange, BaseReference, Gap, Index
from weightpack.format.layouts import DTYPE_BITS, tensor_bytes
from weightpack.format.record import RecordHead, parse_record_head, table_bytes
from weightpack.format.safetensors import Entry, Header, check_tiles, parse_header
from weightpack.io.files import RandomReader, pieces, read_at
from weightpack.io.parallel import Scratch
from weightpack.kernels import chunk_crc, crc32c_of
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.reading.base_range import BaseElements, check_range
from weightpack.reading.chunks import decode_chunks
from weightpack.sources.model import Segments, Tensor, tiled
from weightpack.sources.safetensors import is_packed, read_header, segments_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes


_NO_CRCS = np.empty(0, np.uint32)
_FIRST_BYTES = 256  # read of a record at first


@dataclass(frozen=True, slots=True)
class Piece:
    """What is decoded at once: consecutive chunks of a packed tensor, or pieces of a kept one, from number `first` to before `last`.

    `begin` and `end` are bytes of the tensor.
    """

    first: int
    last: int
    begin: int
    end: int

    @property
    def n_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and where its bytes are.

    `storage` is p (packed), d (differs from a base), x (from a base's matrix that is turned), b (is the base's), k (kept), t (tied), g (first of a group, 5.8)
    or m (member of one: its `holder`); `begin` and `end` are bytes of the packed file, of a group's first the whole group's, and of some none.
    """

    tensor: Tensor
    storage: str
    holder: str
    begin: int
    end: int
    crcs: NDArray[np.uint32]  # of kept pieces
    base: BaseRange | None = None

    @property
    def has_record(self) -> bool:
        return self.storage in "pdxg"

    @property
    def packed_bytes(self) -> int:
        return self.end - self.begin


class PackedFile:
    """An open packed file. Safe to use from many threads.

    Parameters
    ----------
    bases
        The files that `index.base` names, in its order, as their sources were; without them what differs from a base can't be decoded, but described.
        `weightpack.reading.bases` finds them.

    Attributes
    ----------
    tensors : dict of str to StoredTensor
        In the order of the names' code points.
    metadata : dict or None
        The source's own.
    index : Index

    Raises
    ------
    NotPackedError
        The file has no index.
    FormatError, LimitError
        Something that the file claims can't be.
    """

    def __init__(self, file: RandomReader, limits: Limits = DEFAULT_LIMITS, bases: Sequence[RandomReader] = ()) -> None:
        self.file, self.bases = file, bases
        with located(path=file.name):
            self._open(limits)

    def _open(self, limits: Limits) -> None:
        file = self.file
        header = read_header(file, limits.max_json_memory)
        if header.metadata is None or not is_packed(header):
            raise NotPackedError("not a packed file: it has no weightpack index")
        check_tiles(header, file.size - header.data_begin)
        if len(header.entries) > limits.max_tensors:
            raise LimitError(f"the file has {len(header.entries)} tensors, the limit is {limits.max_tensors}")
        text = header.metadata[INDEX_KEY]
        crc = crc32c_of(text.encode("utf-8"))
        if header.metadata.get(INDEX_CRC_KEY) != f"{crc:08x}":
            raise ChecksumError("the index does not match its checksum: the file is damaged")
        index = self.index = Index.parse(text, limits.max_gap_bytes, limits.max_json_memory)
        if index.source_bytes > limits.max_source_bytes:
            raise LimitError(f"the source has {index.source_bytes} bytes, the limit is {limits.max_source_bytes}")

        if index.tensors is None:
            source = source_header(index, limits)
            segments = segments_of(source, index.source_bytes)
        else:
            segments = _listed(index, sorted(header.entries))
        self.metadata = segments.metadata
        if segments.gaps != tuple((gap.offset, gap.n_bytes) for gap in index.gaps):
            raise CorruptionError("the tensors and gaps that the index describes do not tile the source")
        if len(segments.tensors) > limits.max_tensors:
            raise LimitError(f"the file has {len(segments.tensors)} tensors, the limit is {limits.max_tensors}")
        if len(index.storage) != len(header.entries):
            raise CorruptionError("the index does not say how each tensor is stored")
        self._last_chunk: tuple[str, int, Bytes] | None = None
        self._heads: dict[str, RecordHead] = {}
        self._scratch, self._elements = Scratch(), BaseElements()
        self._groups, self._group_of = {}, {}
        if index.same is not None:  # no tensor has an entry
            self.tensors = {
                tensor.name: StoredTensor(tensor, "b", tensor.name, file.size, file.size, _NO_CRCS, BaseRange(index.same, "U8", tensor.offset, tensor.n_bytes))
                for tensor in segments.tensors
            }
            return
        if index.tensors is not None and index.groups:
            raise CorruptionError("the index has groups of tensors, which only those of safetensors files can have")
        names = sorted(header.entries)
        counts = dict(zip((name for name, storage in zip(names, index.storage, strict=True) if storage == "g"), index.groups, strict=True))
        self._groups = _groups(segments.tensors, counts)
        self._group_of = {name: first for first, (_, members) in self._groups.items() for name in members}
        if [tensor.name for tensor in segments.tensors if self._group_of.get(tensor.name, tensor.name) == tensor.name] != names:
            raise CorruptionError("the file's tensors are not those of its source's header")
        self.tensors = self._stored(segments.tensors, header, index, names)

    def _stored(self, tensors: tuple[Tensor, ...], header: Header, index: Index, names: list[str]) -> dict[str, StoredTensor]:
        if len(index.kept_crc32c) % 4:
            raise CorruptionError("the index's checksums of kept tensors are cut")
        kept_crcs = np.frombuffer(index.kept_crc32c, "<u4")
        n_kept, ties, ranges = 0, iter(index.tied), iter(index.ranges)
        stored: dict[str, StoredTensor] = {}
        letters, of_name = iter(index.storage), {tensor.name: tensor for tensor in tensors} if index.tied else {}
        for tensor in tensors:
            holder = self._group_of.get(tensor.name, tensor.name)
            if holder != tensor.name:
                end = header.data_begin + header.entries[holder].end
                stored[tensor.name] = StoredTensor(tensor, "m", holder, end, end, kept_crcs[:0])
                continue
            entry, storage = header.entries[tensor.name], next(letters)
            n_crcs, base = 0, None
            with located(tensor=tensor.name):
                _check_entry(entry, tensor, storage)
                if storage == "k":
                    n_crcs = -(-tensor.n_bytes // KEPT_PIECE_BYTES)
                elif storage == "t":
                    i = next(ties)
                    holder = names[i]
                    if index.storage[i] in "tg" or of_name[holder].n_bytes != tensor.n_bytes:
                        raise CorruptionError("the tensor is tied to one that can't hold its bytes")
                elif storage in "dx" and index.base is not None:
                    base = next(ranges)
                    check_range(base, tensor, index.base.files[base.file].n_bytes)
            crcs = kept_crcs[n_kept : n_kept + n_crcs]
            n_kept += n_crcs
            stored[tensor.name] = StoredTensor(tensor, storage, holder, header.data_begin + entry.begin, header.data_begin + entry.end, crcs, base)
        if n_kept != len(kept_crcs):
            raise CorruptionError("the index's checksums of kept tensors do not match their count")
        return stored

    def stored(self, name: str) -> StoredTensor:
        """Return where a tensor is; TensorNotFoundError if there is none of that name."""
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorNotFoundError("the file has no such tensor", path=self.file.name, tensor=name) from None

    def place(self, stored: StoredTensor) -> tuple[StoredTensor, int]:
        """Return what is decoded for a tensor, and where its bytes begin in that: itself, or of one in a group the whole group, under the first's name."""
        first = self._group_of.get(stored.tensor.name)
        if first is None:
            return stored, 0
        whole = self._groups[first][0]
        return replace(self.tensors[first], tensor=whole), stored.tensor.offset - whole.offset

    def wholes(self) -> Iterator[StoredTensor]:
        """Yield what restores all tensors that are not empty, by name: each, and in the place of those of a group the whole group."""
        for stored in self.tensors.values():
            if stored.tensor.n_bytes and stored.storage != "m":
                yield self.place(stored)[0]

    def parts(self) -> list[tuple[int, Gap | StoredTensor]]:
        """Return what tiles the source, each with its offset, in order: gaps, and what `wholes` yields."""
        parts: list[tuple[int, Gap | StoredTensor]] = [(gap.offset, gap) for gap in self.index.gaps]
        parts += [(stored.tensor.offset, stored) for stored in self.wholes()]
        return sorted(parts, key=lambda part: part[0])

    def record_head(self, stored: StoredTensor) -> RecordHead:
        """Return the record head of a packed tensor, read once."""
        head = self._heads.get(stored.tensor.name)
        if head is None:
            with located(path=self.file.name, tensor=stored.tensor.name):
                first = read_at(self.file, stored.begin, min(_FIRST_BYTES, stored.packed_bytes))  # the whole table of most
                n_bytes = self.place(stored)[0].tensor.n_bytes
                n = table_bytes(first, n_bytes, stored.packed_bytes)
                table = first if n <= len(first) else read_at(self.file, stored.begin, n)
                head = parse_record_head(table, n_bytes, stored.packed_bytes)
            self._heads[stored.tensor.name] = head  # no lock: two threads may both read it, and a fork can't leave one held
        return head

    def check_records(self) -> None:
        """Refuse records that can't hold as much as the header claims, before room for it is asked for."""
        for stored in self.tensors.values():
            if stored.has_record:
                self.record_head(stored)

    def pieces(self, stored: StoredTensor, begin: int = 0, end: int | None = None, piece_bytes: int | None = None) -> list[Piece]:
        """Return the pieces that cover bytes [begin, end) of a tensor (all of it by default), each of about `piece_bytes` (default: the file's).

        A chunk that is wanted in part is a piece of its own.
        """
        n_bytes = stored.tensor.n_bytes
        end = n_bytes if end is None else end
        holder = self.tensors[stored.holder]
        if holder.has_record:
            head = self.record_head(holder)
            size = head.chunk_elems * head.layout.elem_bytes
        else:
            size = KEPT_PIECE_BYTES
        if begin >= end:
            return []
        first, last, step = begin // size, -(-end // size), max(1, (piece_bytes or self.file.piece_bytes) // size)
        if last - first == 1:
            return [Piece(first, last, first * size, min(last * size, n_bytes))]
        cuts = {first, last} | ({first + 1} if begin % size else set()) | ({last - 1} if end % size and end < n_bytes else set())
        firsts = [i for low, high in pairwise(sorted(cuts)) for i in range(low, high, step)]
        return [Piece(i, next_, i * size, min(next_ * size, n_bytes)) for i, next_ in zip(firsts, [*firsts[1:], last], strict=True)]

    def decode_part(self, stored: StoredTensor, piece: Piece, begin: int, out: Bytes) -> None:
        """Decode what lies of a piece in bytes [begin, begin + out.size) of the tensor, to its place in `out`."""
        low, high = max(begin, piece.begin), min(begin + out.size, piece.end)
        to = out[low - begin : high - begin]
        if (low, high) == (piece.begin, piece.end):
            self.decode_piece(stored, piece, to)
            return
        to[:] = self._chunk(stored, piece)[low - piece.begin : high - piece.begin]

    def _chunk(self, stored: StoredTensor, piece: Piece) -> Bytes:
        """Return a decoded piece; the last of a group is held, since whoever reads its tensors one by one wants it again. Without a lock: twice is no harm."""
        last, is_group = self._last_chunk, stored.storage == "g"
        if is_group and last is not None and last[:2] == (stored.tensor.name, piece.first) and last[2].size == piece.n_bytes:
            return last[2]
        chunk: Bytes = np.empty(piece.n_bytes, np.uint8)
        self.decode_piece(stored, piece, chunk)
        if is_group:
            self._last_chunk = stored.tensor.name, piece.first, chunk
        return chunk

    def decode_piece(self, stored: StoredTensor, piece: Piece, out: Bytes) -> None:
        """Decode and check one piece into `out`, (piece.n_bytes,) uint8."""
        holder = self.tensors[stored.holder]
        with located(path=self.file.name, tensor=stored.tensor.name):
            if holder.has_record:
                head = self.record_head(holder)
                packed = self._scratch.get(int(head.offsets[piece.last] - head.offsets[piece.first]))
                self._decode_chunks(holder, head, piece.first, piece.last, packed, out, lambda number: self._earlier(holder, head, number))
            elif holder.storage == "b" and holder.base is not None:
                self._base(holder.base).read_into(holder.base.offset + piece.begin, memoryview(out))
            else:
                self.file.read_into(holder.begin + piece.begin, memoryview(out))
                for number, (offset, n) in enumerate(pieces(out.size, KEPT_PIECE_BYTES), piece.first):
                    if chunk_crc(out[offset : offset + n], number) != int(holder.crcs[number]):
                        raise ChecksumError("the bytes do not match their checksum: the file is damaged", chunk=number)

    def _decode_chunks(
        self, holder: StoredTensor, head: RecordHead, first: int, last: int, packed: Bytes, out: Bytes, earlier: Callable[[int], Bytes] | None
    ) -> None:
        """Read chunks [first, last) of a record into `packed`, and decode them."""
        offsets = head.offsets[first : last + 1]
        self.file.read_into(holder.begin + int(offsets[0]), memoryview(packed))
        base = None if holder.base is None else self._base_elems(holder, holder.base)
        n_elems = out.size // head.layout.elem_bytes
        decode_chunks(head.layout, packed, offsets, head.crcs[first:last], head.chunk_elems, n_elems, first, out, base, earlier)

    def _earlier(self, holder: StoredTensor, head: RecordHead, number: int) -> Bytes:
        """Return a chunk that a later one repeats; the thread's buffer is in use by the run of the later one."""
        chunk = np.empty(head.elems_of(number) * head.layout.elem_bytes, np.uint8)
        packed = np.empty(int(head.offsets[number + 1] - head.offsets[number]), np.uint8)
        self._decode_chunks(holder, head, number, number + 1, packed, chunk, None)
        return chunk

    def _base_elems(self, stored: StoredTensor, base: BaseRange) -> Callable[[int, int], Bytes]:
        """Return what gives the base's elements in the tensor's layout, from the first of the tensor, and a count."""
        reader = self._base(base)
        return lambda first, count: self._elements(reader, base, stored.tensor.dtype, first, count)

    def _base(self, base: BaseRange) -> RandomReader:
        reference = self.index.base
        assert reference is not None
        if not self.bases:
            raise BaseNotFoundError(f"the tensor is stored as its difference from a base that was not opened: {described(reference)}")
        return self.bases[base.file]

    def decode_gap(self, gap: Gap) -> bytes:
        """Return the bytes of a gap."""
        with located(path=self.file.name):
            return gap.decode()


def source_header_bytes(index: Index) -> bytes:
    """Decode the gap at offset 0, and return the source's header out of it, without its length (FORMAT 5.2)."""
    if not index.gaps or index.gaps[0].offset != 0 or not 8 <= index.gaps[0].n_bytes <= index.source_bytes:
        raise CorruptionError("the index does not hold the source's header")
    first = index.gaps[0].decode()
    n = int.from_bytes(first[:8], "little")
    if n > MAX_HEADER_BYTES or n > len(first) - 8:
        raise CorruptionError("the index does not hold the whole header of the source")
    return first[8 : 8 + n]


def source_header(index: Index, limits: Limits) -> Header:
    """Return the source's header, parsed."""
    header = source_header_bytes(index)
    return parse_header(header, index.source_bytes - 8 - len(header), unknown_dtypes=True, max_memory=limits.max_json_memory)


def _listed(index: Index, names: list[str]) -> Segments:
    """The source's tensors as the index lists them (FORMAT 5.7)."""
    if index.tensors is None or len(index.tensors) != len(names):
        raise CorruptionError("the index does not list the file's tensors")
    tensors = []
    for name, (dtype, shape, offset) in zip(names, index.tensors, strict=True):
        if dtype not in DTYPE_BITS:
            raise UnsupportedError(f"unknown dtype {dtype!r}: upgrade weightpack", tensor=name)
        n_bytes = tensor_bytes(dtype, shape)
        if n_bytes is None or offset + n_bytes > index.source_bytes:
            raise CorruptionError("the tensor is not inside the source", tensor=name)
        tensors.append(Tensor(name, dtype, shape, offset, n_bytes))
    return tiled(index.source_format, tensors, index.source_bytes)


def described(reference: BaseReference) -> str:
    """Name a base for people."""
    files = ", ".join(f"{file.name} (SHA-256 {file.sha256})" for file in reference.files[:3]) + (", ..." if len(reference.files) > 3 else "")
    where = f" of {reference.repo}" + (f"@{reference.revision}" if reference.revision else "") if reference.repo else ""
    return f"{files}{where}"


def _groups(tensors: tuple[Tensor, ...], counts: dict[str, int]) -> dict[str, tuple[Tensor, list[str]]]:
    """Return of each group (FORMAT 5.8), by the name of its first tensor, all its bytes as one tensor, and the names of its tensors.

    `counts` are of members, by the first's name.
    """
    groups: dict[str, tuple[Tensor, list[str]]] = {}
    by_offset = sorted((tensor for tensor in tensors if tensor.n_bytes), key=lambda tensor: tensor.offset) if counts else []
    left = end = 0
    names: list[str] = []
    for i, tensor in enumerate(by_offset):
        if left and (tensor.offset != end or tensor.name in counts):
            raise CorruptionError("the tensor is in a group whose tensors are not neighbours", tensor=tensor.name)
        if left:
            names.append(tensor.name)
            left, end = left - 1, end + tensor.n_bytes
        elif tensor.name in counts:
            left, names, end = counts[tensor.name], [tensor.name], tensor.offset + tensor.n_bytes
            if left >= len(by_offset) - i:
                break
            last = by_offset[i + left]
            n_bytes = last.offset + last.n_bytes - tensor.offset
            groups[tensor.name] = Tensor(tensor.name, "U8", (n_bytes,), tensor.offset, n_bytes), names
    if len(groups) != len(counts):
        raise CorruptionError("a group has more tensors than there are")
    return groups


def _check_entry(entry: Entry, tensor: Tensor, storage: str) -> None:
    """FORMAT 5.4 to 5.6."""
    if storage == "k" and tensor.dtype in DTYPE_BITS:
        good = entry.dtype == tensor.dtype and entry.shape == tensor.shape
    elif storage == "k":
        good = entry.dtype == "U8" and entry.shape == (0,) and tensor.n_bytes == 0
    elif storage == "t":
        good = entry.dtype == "U8" and entry.shape == (0,) and tensor.n_bytes > 0
    else:
        good = entry.dtype == "U8" and len(entry.shape) == 1 and tensor.n_bytes > 0
    if not good:
        raise CorruptionError(f"the entry is {entry.dtype} {list(entry.shape)}, which its storage {storage!r} does not allow")
