# SPDX-License-Identifier: Apache-2.0
"""Source file -> packed file, in one reading of the source. The target appears when all of it was decoded and compared, and was read back as it was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import numpy as np

from weightpack.errors import FormatError, LosslessError, OptionError, WeightpackError, located
from weightpack.format.constants import INDEX_CRC_KEY, INDEX_KEY, KEPT_PIECE_BYTES, MAX_HEADER_BYTES, MINOR_VERSIONS, Mode
from weightpack.format.index import BaseRange, BaseReference, Gap, Index, range_bytes
from weightpack.format.layouts import DTYPE_BITS
from weightpack.format.record import RecordHead, build_repeated_chunk, table_end
from weightpack.format.safetensors import Entry, build_header
from weightpack.io.atomic import AtomicFile
from weightpack.io.files import LocalFile, RandomReader, pieces, read_at
from weightpack.io.parallel import Buffers, Scratch, ordered_map
from weightpack.io.progress import Meter, Progress
from weightpack.kernels import active, chunk_crc, crc32c_of
from weightpack.options import PackOptions
from weightpack.reading.base_range import BaseElements
from weightpack.reading.bases import OpenBase
from weightpack.reading.chunks import decode_chunks
from weightpack.reading.packed_file import PackedFile
from weightpack.sources import refuse_pointer, segment
from weightpack.sources.model import Segments, Tensor
from weightpack.writing.chunks import Chunking, ReadElems, encode_runs
from weightpack.writing.ledger import Ledger
from weightpack.writing.match import match_tensors
from weightpack.writing.parts import Batch, Run, Unit, batches, units
from weightpack.writing.repeats import repeated_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DATA_ALIGN = 64
_COPY_BYTES = 1 << 20
_REFERENCE_BYTES = 300  # what an index takes to name a base
_WASTE_SHARE = 1000  # of the packed file, 1 in so many bytes: less than that is not worth packing it again


class Source(RandomReader, Protocol):
    """What can be packed."""

    def changed(self) -> bool:
        """Was it written to since it was opened?"""


@dataclass(frozen=True, slots=True)
class PackResult:
    """What packing did: lengths of source and packed file in bytes, and the source's SHA-256."""

    source_bytes: int
    packed_bytes: int
    source_sha256: str

    @property
    def ratio(self) -> float:
        """Packed bytes / source bytes: smaller is better."""
        return self.packed_bytes / self.source_bytes if self.source_bytes else 1.0


@dataclass(slots=True)
class _Work:
    """A batch on its way: its bytes, room for its chunks, and when they have been hashed. `buffer` is what `data` is a part of."""

    batch: Batch
    buffer: NDArray[np.uint8]
    data: NDArray[np.uint8]
    out: NDArray[np.uint8]
    hashed: Future[None] | None = None


@dataclass(frozen=True, slots=True)
class _Coded:
    """What came of a run: the chunks one after the other, and what is known of each. Of one that no record can hold: no data, the CRCs of its pieces.

    `saved`: bytes, by a base. `contents`, where chunks may be the same as earlier ones: the CRC of each without its number.
    """

    run: Run
    data: memoryview
    sizes: list[int]
    crcs: list[int]
    modes: set[Mode]
    saved: int = 0
    contents: tuple[int, ...] = ()


@dataclass(slots=True)
class _Stored:
    """How tensors ended up: entries by name (offsets from the data section), storage letters, ties, CRCs of kept ones."""

    entries: dict[str, Entry] = field(default_factory=dict)
    storage: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    kept_crcs: dict[str, list[int]] = field(default_factory=dict)
    heads: dict[str, RecordHead] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by its first tensor's name, the others
    ranges: dict[str, BaseRange] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)  # bytes, by those ranges
    same: int | None = None  # number of the base's file that is the source, so that nothing is stored


def pack_file(
    source: Source,
    target: AtomicFile,
    options: PackOptions,
    *,
    bases: Sequence[OpenBase] = (),
    threads: int = 1,
    verify: bool = True,
    progress: Progress | None = None,
) -> PackResult:
    """Pack one source into `target`, which the caller commits; with bases, as the difference from them where that is smaller.

    Raises
    ------
    FormatError
        The source is no file that can be packed.
    LosslessError
        The source changed meanwhile, or the packed file does not decode to it (a bug).
    """
    with located(path=source.name):
        refuse_pointer(source)
        segments = segment(source)
        if segments.metadata is not None and {INDEX_KEY, INDEX_CRC_KEY} & segments.metadata.keys():
            raise OptionError("the file is packed already")
        meter = Meter(progress, source.size * (2 if verify else 1))
        matches = match_tensors(source, segments, bases) if bases else {}
        packer = _Packer(source, segments, target, options, bases, matches, threads, meter, verify=verify)
        packer.write_data()
        if (same := packer.same_as()) is not None:
            packer.store_nothing(same)
        elif useless := packer.useless_ranges():
            matches = {name: base for name, base in matches.items() if name not in useless}
            packer = _Packer(source, segments, target, options, bases, matches, threads, meter, verify=verify)
            packer.write_data()
        packed_bytes = packer.write_header()
        if verify:
            packer.prove(packed_bytes)
        if source.changed() or any(base.reader.changed() for base in bases):
            raise LosslessError("the source changed while it was packed: nothing was written")
    return PackResult(source.size, packed_bytes, packer.sha256)


class _Packer:
    """Writes the data section first, behind room for the longest header that could come of it, then the header.

    The source is read once, batch by batch: each is hashed, encoded, decoded again and compared while it is in the cache. What is read again, because it is
    kept as it is or equals another tensor, is held against the checksums of the first reading.
    """

    def __init__(
        self, source: Source, segments: Segments, target: AtomicFile, options: PackOptions, bases: Sequence[OpenBase], matches: dict[str, BaseRange],
        threads: int, meter: Meter, *, verify: bool,
    ) -> None:  # fmt: skip
        self.source, self.segments, self.options, self.threads, self.meter, self.verify = source, segments, options, threads, meter, verify
        self.bases, self.matches = bases, matches
        self._minor_version = int(segments.source_format != "safetensors")  # of the format, that the file needs
        self.gaps = tuple(Gap.of(offset, bytes(read_at(source, offset, n))) for offset, n in segments.gaps)
        groups = segments.source_format == "safetensors"  # an index that lists tensors has no names (FORMAT 5.8)
        self.units = units(segments.tensors) if groups else [Unit(tensor) for tensor in segments.tensors if tensor.n_bytes]
        self.stored = _Stored()
        self.ledger = Ledger(target, self._header_bound())
        self.position = 0  # end of what is written, from the data section's begin
        self._record_begin = 0  # of the record in work
        self._offsets: list[int] = []  # of its chunks, from its begin; the last is its end so far
        self._crcs: list[int] = []
        self._modes: set[Mode] = set()
        self._saved = 0
        self._contents: dict[tuple[int, int], int] = {}  # of its chunks, where they may be copies
        self._by_crcs: dict[tuple[int, bytes], Tensor] = {}
        self._seen: dict[str, tuple[int, list[int]]] = {}  # of tensors without a record: the length of a piece, and the pieces' CRCs at the first reading
        self._buffers, self._decoded, self._elements = Buffers(), Scratch(), BaseElements()
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was read."""
        return self._digest.hexdigest()

    # ---- data section

    def write_data(self) -> None:
        """Encode every tensor, in the order of the source; then copy those that gained nothing, larger elements first (FORMAT 4.5)."""
        with ThreadPoolExecutor(1, thread_name_prefix="weightpack-sha256") as hasher:
            # Hashing is as slow as packing on one core, so with more than one it has its own thread.
            works = self._works(hasher if self.threads > 1 else None)
            for work, coded in ordered_map(self._encode, works, self.threads, lambda work: work.batch.n_bytes):
                for each in coded:
                    self._append(each)
                if work.hashed is not None:
                    work.hashed.result()
                self._buffers.give(work.buffer)
                self._buffers.give(work.out)
                self.meter.add(work.batch.n_bytes)
        members = {name for group in self.stored.groups.values() for name in group}
        kept = [t for t in self.segments.tensors if t.name not in self.stored.storage and t.name not in members]
        for tensor in sorted(kept, key=lambda t: (-DTYPE_BITS.get(t.dtype, 8), t.offset, t.name)):
            self._keep(tensor)

    def _works(self, hasher: ThreadPoolExecutor | None) -> Iterator[_Work]:
        """Read the source."""
        position = 0
        for batch in batches(self.units, self.gaps, self.options, self.matches, self._samples):
            assert batch.offset == position  # tensors and gaps tile the source
            position += batch.n_bytes
            skew = batch.offset % _DATA_ALIGN  # tensors are aligned as they are in the file
            buffer = self._buffers.take(skew + batch.n_bytes)
            work = _Work(batch, buffer, buffer[skew : skew + batch.n_bytes], self._buffers.take(batch.bound()))
            self.source.read_into(batch.offset, memoryview(work.data))
            if hasher is None:
                self._digest.update(work.data)
            else:
                work.hashed = hasher.submit(self._digest.update, work.data)
            yield work
        assert position == self.source.size

    def _samples(self, begin: int, _: int) -> ReadElems:
        return lambda offset, n: np.frombuffer(read_at(self.source, begin + offset, n), np.uint8)

    def _encode(self, work: _Work) -> tuple[_Work, list[_Coded]]:
        """Encode a batch, and prove that it decodes to what was read."""
        position, coded = 0, []
        for part in work.batch.parts:
            begin = part.offset - work.batch.offset
            data = work.data[begin : begin + part.n_bytes]
            if isinstance(part, Gap):
                if self.verify and part.decode() != data.tobytes():
                    raise LosslessError(f"bytes {part.offset} and on changed while the file was packed: nothing was written")
            elif part.chunking is None:
                coded.append(_Coded(part, memoryview(b""), [], [chunk_crc(data, part.first)], set()))
            else:
                with located(tensor=part.tensor.name):
                    coded.append(self._encode_run(part, part.chunking, data, work.out[position:]))
                position += len(coded[-1].data)
        return work, coded

    def _encode_run(self, run: Run, chunking: Chunking, data: NDArray[np.uint8], out: NDArray[np.uint8]) -> _Coded:
        base = self._base_elems(run, chunking)
        chunks = encode_runs(data, chunking, run.first, self.options, out, base)
        sizes, crcs = [chunk.n_bytes for chunk in chunks], [chunk.crc for chunk in chunks]
        contents = tuple(active().crc32c(data[begin : begin + n]) for begin, n in pieces(data.size, chunking.chunk_bytes)) if chunking.copies else ()
        coded = _Coded(run, memoryview(out)[: sum(sizes)], sizes, crcs, {chunk.mode for chunk in chunks}, sum(chunk.saved for chunk in chunks), contents)
        if self.verify:
            self._compare(coded, chunking, data, base)
        return coded

    def _compare(self, coded: _Coded, chunking: Chunking, data: NDArray[np.uint8], base: NDArray[np.uint8] | None) -> None:
        """Decode chunks and compare them with what they were made of, byte for byte."""
        elem_bytes, first_byte, decoded = chunking.layout.elem_bytes, coded.run.first * chunking.chunk_bytes, self._decoded.get(data.size)

        def base_of(first: int, n: int) -> NDArray[np.uint8]:
            assert base is not None
            begin = first * elem_bytes - first_byte
            return base[begin : begin + n * elem_bytes]

        try:
            offsets, crcs = np.array([0, *accumulate(coded.sizes)], np.int64), np.array(coded.crcs, np.uint32)
            decode_chunks(
                chunking.layout, coded.data, offsets, crcs, chunking.chunk_elems, data.size // elem_bytes, coded.run.first, decoded,
                None if base is None else base_of,
            )  # fmt: skip
            same = active().equal(decoded, data)
        except FormatError as error:
            raise LosslessError(f"what was packed does not decode: this is a bug in weightpack, nothing was written ({error})") from error
        if not same:
            raise LosslessError(f"what was packed differs from the source at or behind byte {coded.run.offset}: a bug in weightpack; nothing was written")

    def _base_elems(self, run: Run, chunking: Chunking) -> NDArray[np.uint8] | None:
        """Return what the run's elements are to differ from."""
        if run.base is None:
            return None
        first_elem, n_elems = run.first * chunking.chunk_elems, run.n_bytes // chunking.layout.elem_bytes
        return self._elements(self.bases[run.base.file].reader, run.base, run.tensor.dtype, first_elem, n_elems)

    def _append(self, coded: _Coded) -> None:
        """Write the chunks at their place; once the record is no smaller than the tensor they are only counted."""
        run = coded.run
        if run.first == 0:
            self._record_begin, self._modes, self._crcs, self._saved = self.position, set(), [], 0
            self._offsets = [table_end(-(-run.tensor.n_bytes // run.chunking.chunk_bytes))] if run.chunking else [0]
            self._contents = {}
        if coded.contents:
            coded = self._without_copies(coded, run.chunking)
        begin = self._offsets[-1]
        self._offsets += [begin + end for end in accumulate(coded.sizes)]
        self._modes |= coded.modes
        self._saved += coded.saved
        self._crcs += coded.crcs
        if run.chunking is None:
            if run.last:
                self._seen[run.tensor.name] = KEPT_PIECE_BYTES, self._crcs
        elif run.last and run.first == 0:
            self._end_record(run.unit, run.chunking, coded.data)
        else:
            if begin + len(coded.data) < run.tensor.n_bytes or not _may_be_kept(run.unit):
                self.ledger.write(self._record_begin + begin, coded.data)
            if run.last:
                self._end_record(run.unit, run.chunking, None)

    def _without_copies(self, coded: _Coded, chunking: Chunking | None) -> _Coded:
        """Say of chunks that are the same as earlier ones of the tensor only which: CRCs find them, a comparison of the source proves it."""
        assert chunking is not None
        run, chunk_bytes = coded.run, chunking.chunk_bytes
        whole = [n for _, n in pieces(run.n_bytes, chunk_bytes)]

        def same(earlier: int, number: int) -> bool:
            one, other = (run.tensor.offset + chunk * chunk_bytes for chunk in (earlier, number))
            return self._same(one, other, whole[number - run.first])

        repeated = repeated_chunks(self._contents, list(coded.contents), whole, run.first, same)
        if not repeated:
            return coded
        chunks, position = [], 0
        for number, size in enumerate(coded.sizes, run.first):
            chunks.append(build_repeated_chunk(repeated[number]) if number in repeated else bytes(coded.data[position : position + size]))
            position += size
        return replace(coded, data=memoryview(b"".join(chunks)), sizes=[len(chunk) for chunk in chunks], modes=coded.modes | {Mode.REPEATED})

    def _end_record(self, unit: Unit, chunking: Chunking, data: memoryview | None) -> None:
        """Write the record's head, and its chunks `data` unless they are written."""
        tensor, crcs, record_bytes = unit.tensor, np.array(self._crcs, np.uint32), self._offsets[-1]
        twin = None if unit.members else self._twin(tensor, crcs)
        gained = record_bytes < tensor.n_bytes or not _may_be_kept(unit)
        if twin is not None or not gained:
            self.ledger.forget(self._record_begin)
        if twin is not None:
            self.stored.tied[tensor.name] = twin
            self.stored.storage[tensor.name] = "t"
            self.stored.entries[tensor.name] = Entry(tensor.name, "U8", (0,), 0, 0)
            return
        if not gained:
            self._seen[tensor.name] = chunking.chunk_bytes, self._crcs
            return
        self._minor_version = max(self._minor_version, self.options.minor_version, *(MINOR_VERSIONS.get(mode, 0) for mode in self._modes))
        head = RecordHead(chunking.layout, tensor.n_bytes // chunking.layout.elem_bytes, chunking.chunk_elems, np.array(self._offsets, np.int64), crcs)
        self.ledger.write(self._record_begin, head.to_bytes())
        if data is not None:
            self.ledger.write(self._record_begin + self._offsets[0], data)
        self.position = self._record_begin + record_bytes
        needs_base = Mode.DIFFERENCE in self._modes
        self.stored.storage[tensor.name] = ("x" if self.matches[tensor.name].columns else "d") if needs_base else "g" if unit.members else "p"
        if unit.members:
            self._minor_version = max(self._minor_version, MINOR_VERSIONS["g"])
            self.stored.groups[tensor.name] = unit.members
        if needs_base:
            self._minor_version = max(self._minor_version, MINOR_VERSIONS.get(self.stored.storage[tensor.name], 0))
            self.stored.ranges[tensor.name] = self.matches[tensor.name]
            self.stored.saved[tensor.name] = self._saved
        self.stored.heads[tensor.name] = head
        self.stored.entries[tensor.name] = Entry(tensor.name, "U8", (record_bytes,), self._record_begin, self.position)

    def same_as(self) -> int | None:
        """Return the number of the base's file that the source is, byte for byte; None if it is none of them."""
        if self.segments.source_format != "safetensors":
            return None
        return next((i for i, base in enumerate(self.bases) if (base.file.sha256, base.file.n_bytes) == (self.sha256, self.source.size)), None)

    def store_nothing(self, same: int) -> None:
        """Forget what was written: a file of the base has it all (FORMAT 15.7)."""
        self.stored, self.position, self._minor_version = _Stored(same=same), 0, MINOR_VERSIONS["same"]
        self.ledger.forget(0)

    def useless_ranges(self) -> set[str]:
        """Return the tensors whose base costs more in the index than it saves, if the file would be larger for it: they had better be packed without."""
        ranges, saved = self.stored.ranges, self.stored.saved
        costs = {name: range_bytes(base) for name, base in ranges.items()}
        useful = {name for name in ranges if saved[name] > costs[name]}
        if sum(saved[name] - costs[name] for name in useful) <= _REFERENCE_BYTES:
            return set(ranges)
        wasted = sum(costs[name] - saved[name] for name in ranges if name not in useful)
        return set(ranges) - useful if wasted * _WASTE_SHARE > self.position else set()

    # ---- equal tensors

    def _twin(self, tensor: Tensor, crcs: NDArray[np.uint32]) -> str | None:
        """Return an earlier tensor with the same bytes: CRCs find it, a comparison proves it."""
        earlier = self._by_crcs.setdefault((tensor.n_bytes, crcs.tobytes()), tensor)
        if earlier is tensor:
            return None
        return earlier.name if self._same(tensor.offset, earlier.offset, tensor.n_bytes) else None

    def _same(self, one: int, other: int, n_bytes: int) -> bool:
        """Are `n_bytes` of the source from one offset those from another?"""
        return all(read_at(self.source, one + begin, n) == read_at(self.source, other + begin, n) for begin, n in pieces(n_bytes, _COPY_BYTES))

    def _keep(self, tensor: Tensor) -> None:
        """Copy a tensor from the source, whose bytes must have the checksums of the first reading."""
        begin, crcs = self.position, []
        seen = _Recount(*self._seen.get(tensor.name, (KEPT_PIECE_BYTES, [])))
        for number, (offset, n) in enumerate(pieces(tensor.n_bytes, KEPT_PIECE_BYTES)):
            data = np.frombuffer(read_at(self.source, tensor.offset + offset, n), np.uint8)
            seen.add(data)
            crcs.append(chunk_crc(data, number))
            self.ledger.write(begin + offset, data)
        if not seen.agrees():
            raise LosslessError("the source changed while it was packed: nothing was written", tensor=tensor.name)
        self.position += tensor.n_bytes
        self.stored.storage[tensor.name] = "k"
        self.stored.kept_crcs[tensor.name] = crcs
        dtype, shape = (tensor.dtype, tensor.shape) if tensor.dtype in DTYPE_BITS else ("U8", (0,))
        self.stored.entries[tensor.name] = Entry(tensor.name, dtype, shape, begin, self.position)

    # ---- header

    def _header(self, stored: _Stored, sha256: str) -> bytes:
        members = {name for group in stored.groups.values() for name in group}
        names = [tensor.name for tensor in self.segments.tensors if tensor.name not in members] if stored.same is None else []
        ranges = [stored.ranges[name] for name in names if name in stored.ranges]
        reference, ranges = self._reference(ranges, stored.same)
        positions = {name: i for i, name in enumerate(names)}
        index = Index(
            self.segments.source_format,
            self.source.size,
            sha256,
            self.gaps,
            "".join(stored.storage[name] for name in names),
            tuple(positions[stored.tied[name]] for name in names if name in stored.tied),
            np.array([crc for name in names for crc in stored.kept_crcs.get(name, ())], "<u4").tobytes(),
            self._minor_version,
            None if self.segments.source_format == "safetensors" else tuple((t.dtype, t.shape, t.offset) for t in self.segments.tensors),
            reference,
            tuple(ranges),
            tuple(len(stored.groups[name]) for name in names if name in stored.groups),
            None if stored.same is None else 0,
        ).to_json()
        metadata = {**(self.segments.metadata or {}), INDEX_KEY: index, INDEX_CRC_KEY: f"{active().crc32c(index.encode()):08x}"}
        return build_header(metadata, list(stored.entries.values()))

    def _used(self, ranges: Iterable[BaseRange], same: int | None) -> list[int]:
        """Return the numbers of the base's files that are needed; the index names no other."""
        return sorted({each.file for each in ranges}) if same is None else [same]

    def _reference(self, ranges: list[BaseRange], same: int | None) -> tuple[BaseReference | None, list[BaseRange]]:
        used = self._used(ranges, same)
        if not used:
            return None, []
        bases = [self.bases[number] for number in used]
        reference = BaseReference(tuple(base.file for base in bases), bases[0].repo, bases[0].revision, 1 + max(base.depth for base in bases))
        return reference, [replace(each, file=used.index(each.file)) for each in ranges]

    def _needed_bases(self) -> list[RandomReader]:
        """Return the files that the index names, in its order."""
        return [self.bases[number].reader for number in self._used(self.stored.ranges.values(), self.stored.same)]

    def _header_bound(self) -> int:
        """Return room for the longest header that these tensors could get: each may be packed, kept or tied."""
        big = self.source.size * 2 + 100
        worst = _Stored()
        n_ties = 0
        members = {name for unit in self.units for name in unit.members}
        worst.groups |= {unit.tensor.name: unit.members for unit in self.units if unit.members}
        for tensor in self.segments.tensors:
            if tensor.name in members:
                continue
            packed = Entry(tensor.name, "U8", (big,), big, big)
            kept = Entry(tensor.name, tensor.dtype, tensor.shape, big, big)
            worst.entries[tensor.name] = max(packed, kept, key=lambda entry: len(f"{entry.dtype}{list(entry.shape)}"))
            worst.storage[tensor.name] = "p"
            worst.kept_crcs[tensor.name] = [0] * -(-tensor.n_bytes // KEPT_PIECE_BYTES)
            if tensor.name in self.matches:
                worst.storage[tensor.name] = "x" if self.matches[tensor.name].columns else "d"
                worst.ranges[tensor.name] = self.matches[tensor.name]
            n_ties += 1
        digits = len(str(len(self.segments.tensors)))
        bound = 8 + len(self._header(worst, "0" * 64)) + n_ties * (digits + 1) + _DATA_ALIGN
        return -(-bound // _DATA_ALIGN) * _DATA_ALIGN

    def write_header(self) -> int:
        """Write the header before the data; where it left much of its room unused, move the data down. Returns the file's length."""
        for name in self.stored.tied:  # empty ranges stand at the end, where they are in nobody's way
            self.stored.entries[name] = Entry(name, "U8", (0,), self.position, self.position)
        header, ledger = self._header(self.stored, self.sha256), self.ledger
        data_begin = -(-(8 + len(header)) // _DATA_ALIGN) * _DATA_ALIGN
        if data_begin - 8 > MAX_HEADER_BYTES:
            raise WeightpackError(f"the packed file's header would have {data_begin - 8} bytes, safetensors allows {MAX_HEADER_BYTES}")
        assert data_begin <= ledger.begin
        if (ledger.begin - data_begin) * 1000 > self.position:
            ledger.move(data_begin, self.position)
        header = header.ljust(ledger.begin - 8)
        ledger.write_header(len(header).to_bytes(8, "little") + header)
        os.ftruncate(ledger.target.fd, ledger.begin + self.position)
        return ledger.begin + self.position

    # ---- proof

    def prove(self, packed_bytes: int) -> None:
        """Read the packed file back: it has the bytes that were written, and a reader finds in it what was compared, where it was in the source."""
        told = 0

        def tell(n: int) -> None:
            nonlocal told
            before, told = told, told + n
            self.meter.add(told * self.source.size // packed_bytes - before * self.source.size // packed_bytes)

        self.ledger.prove(packed_bytes, self.threads, tell)
        with LocalFile(self.ledger.target.path) as written:
            packed = PackedFile(written, bases=self._needed_bases())
            problem = next(self._misplaced(packed), None)
        if problem is not None:
            raise LosslessError(f"the packed file does not describe its source: {problem}; this is a bug in weightpack, nothing was written")

    def _misplaced(self, packed: PackedFile) -> Iterator[str]:
        """Yield what a reader of the packed file would take for something else than what was written."""
        index, stored, begin = packed.index, self.stored, self.ledger.begin
        if (index.source_bytes, index.source_sha256, index.gaps) != (self.source.size, self.sha256, self.gaps):
            yield "its source's length, SHA-256 or gaps"
        _, ranges = self._reference([stored.ranges[name] for name in sorted(stored.ranges)], stored.same)
        files = [self.bases[number].file.sha256 for number in self._used(stored.ranges.values(), stored.same)]
        if [file.sha256 for file in index.base.files] != files if index.base else files:
            yield "its base"
        by_name = dict(zip(sorted(stored.ranges), ranges, strict=True))
        first_of = {name: first for first, group in stored.groups.items() for name in group}
        for tensor in self.segments.tensors:
            name, found = tensor.name, packed.tensors[tensor.name]
            there = found.tensor
            same = there.dtype == tensor.dtype and there.shape == tensor.shape and there.n_bytes == tensor.n_bytes
            same = same and (there.offset == tensor.offset or not tensor.n_bytes)
            if stored.same is not None:
                same = same and (found.storage, found.base) == ("b", BaseRange(0, "U8", tensor.offset, tensor.n_bytes))
            elif name in first_of:
                same = same and found.storage == "m" and found.holder == first_of[name]
            else:
                entry, head = stored.entries[name], stored.heads.get(name)
                how = found.storage, found.holder, found.base, found.begin - begin, found.end - begin, found.crcs.tolist()
                expected = stored.storage[name], stored.tied.get(name, name), by_name.get(name), entry.begin, entry.end, stored.kept_crcs.get(name, [])
                same = same and how == expected and (head is None or packed.record_head(found).to_bytes() == head.to_bytes())
            if not same:
                yield name


def _may_be_kept(unit: Unit) -> bool:
    """May it stand as it is? Not so what has no dtype that a packed file's header knows (FORMAT 7.6), or no header entry."""
    return unit.tensor.dtype in DTYPE_BITS and not unit.members


class _Recount:
    """Checksums of pieces of `piece_bytes`, as `kernels.chunk_crc` gives them, of bytes that come in other pieces; `expected` is what they are to be."""

    def __init__(self, piece_bytes: int, expected: list[int]) -> None:
        self._piece_bytes, self._expected = piece_bytes, expected
        self._crcs: list[int] = []
        self._left = 0  # of the piece in work

    def add(self, data: NDArray[np.uint8]) -> None:
        """Go on with the next bytes."""
        while data.size:
            if self._left == 0:
                self._left = self._piece_bytes
                self._crcs.append(crc32c_of(len(self._crcs).to_bytes(4, "little")))
            n = min(self._left, data.size)
            self._crcs[-1] = active().crc32c(data[:n], self._crcs[-1])
            self._left, data = self._left - n, data[n:]

    def agrees(self) -> bool:
        """Were the bytes those that are expected?"""
        return self._crcs == self._expected
