# SPDX-License-Identifier: Apache-2.0
"""Source file -> packed file. Tensors stream through in chunks; the target appears when it has been decoded and compared with the source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from weightpack.errors import LosslessError, OptionError, WeightpackError, located
from weightpack.format.constants import INDEX_CRC_KEY, INDEX_KEY, KEPT_PIECE_BYTES, MAX_HEADER_BYTES, MAX_RECORD_BYTES, MINOR_VERSIONS, Mode
from weightpack.format.index import BaseRange, BaseReference, Gap, Index
from weightpack.format.layouts import DTYPE_BITS
from weightpack.format.record import RecordHead, table_end
from weightpack.format.safetensors import Entry, build_header
from weightpack.io.atomic import AtomicFile
from weightpack.io.files import LocalFile, RandomReader, equal_at, pieces, read_at, sha256_of
from weightpack.io.parallel import Scratch, ordered_map
from weightpack.io.progress import Meter, Progress
from weightpack.kernels import active, chunk_crc
from weightpack.options import PackOptions
from weightpack.reading.base_range import base_elems
from weightpack.reading.bases import OpenBase
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.pieces import restored_pieces
from weightpack.sources import refuse_pointer, segment
from weightpack.sources.model import Segments, Tensor
from weightpack.writing.chunks import Chunking, encode_runs
from weightpack.writing.match import match_tensors
from weightpack.writing.plain import EncodedChunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DATA_ALIGN = 64
_COPY_BYTES = 1 << 20


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


@dataclass(frozen=True, slots=True)
class _Run:
    """One unit of encoding: consecutive chunks of a tensor. `offset` is in the source; `base` serves the tensor, if there is one."""

    tensor: Tensor
    chunking: Chunking
    base: BaseRange | None
    first: int
    offset: int
    n_bytes: int
    last: bool


@dataclass(frozen=True, slots=True)
class _EncodedRun:
    """What came out: the chunks one after the other, and what is known of each."""

    run: _Run
    data: memoryview
    chunks: list[EncodedChunk]


@dataclass(slots=True)
class _Stored:
    """How tensors ended up: entries by name (offsets from the data section), storage letters, ties, CRCs of kept ones."""

    entries: dict[str, Entry] = field(default_factory=dict)
    storage: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    kept_crcs: dict[str, list[int]] = field(default_factory=dict)
    ranges: dict[str, BaseRange] = field(default_factory=dict)


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
        with ThreadPoolExecutor(1, thread_name_prefix="weightpack-sha256") as pool:
            # Hashing is as slow as packing on one core, so with more than one it has its own thread.
            digest: Future[str] | None = pool.submit(sha256_of, source) if threads > 1 else None
            packer = _Packer(source, segments, target, options, bases, threads, Meter(progress, source.size * (2 if verify else 1)))
            packer.write_data()
            sha256 = digest.result() if digest else sha256_of(source)
        packed_bytes = packer.write_header(sha256)
        if verify:
            _compare(source, target, packer.needed_bases(), threads, packer.meter)
        if source.changed() or any(base.reader.changed() for base in bases):
            raise LosslessError("the source changed while it was packed: nothing was written")
    return PackResult(source.size, packed_bytes, sha256)


class _Packer:
    """Writes the data section first, behind room for the longest header that could come of it, then the header."""

    def __init__(
        self, source: Source, segments: Segments, target: AtomicFile, options: PackOptions, bases: Sequence[OpenBase], threads: int, meter: Meter
    ) -> None:
        self.source, self.segments, self.target, self.options, self.threads, self.meter = source, segments, target, options, threads, meter
        self.bases, self.matches = bases, match_tensors(source, segments, bases) if bases else {}
        self._minor_version = int(segments.source_format != "safetensors")  # of the format, that the file needs
        self.gaps = tuple(Gap.of(offset, bytes(read_at(source, offset, n))) for offset, n in segments.gaps)
        self.stored = _Stored()
        self.data_begin = self._header_bound()
        self.position = 0  # end of what is written, from data_begin
        self._record_begin = 0  # of the record in work, from data_begin
        self._offsets: list[int] = []  # of its chunks, from its begin; the last is its end so far
        self._modes: set[Mode] = set()  # of its chunks
        self._by_crcs: dict[tuple[int, bytes], Tensor] = {}
        self._scratch = Scratch()

    def _write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        self.target.write_at(self.data_begin + position, data)

    # ---- data section

    def write_data(self) -> None:
        """Encode every tensor, in the order of the source; then copy those that gained nothing, larger elements first (FORMAT 4.5)."""
        by_offset = sorted(self.segments.tensors, key=lambda t: (t.offset, t.name))
        crcs: list[int] = []
        for encoded in ordered_map(self._encode, self._runs(by_offset), self.threads, lambda run: run.n_bytes):
            run = encoded.run
            if run.first == 0:
                self._begin_record(run)
                crcs = []
            self._append(encoded)
            crcs += [chunk.crc for chunk in encoded.chunks]
            self.meter.add(run.n_bytes)
            if run.last:
                self._end_record(run, np.array(crcs, np.uint32))
        kept = [t for t in by_offset if t.name not in self.stored.storage]
        for tensor in sorted(kept, key=lambda t: -DTYPE_BITS.get(t.dtype, 8)):
            self._keep(tensor)

    def _runs(self, tensors: list[Tensor]) -> Iterator[_Run]:
        for tensor in tensors:
            layout = self.options.layout(tensor.dtype, tensor.n_bytes)
            if tensor.n_bytes == 0 or tensor.n_bytes % layout.elem_bytes or tensor.n_bytes > MAX_RECORD_BYTES:
                continue
            chunking = Chunking.of(layout, self.options, fields=tensor.fields, row_elems=tensor.row_elems)
            base = self.matches.get(tensor.name) if chunking.differs else None
            for i, (offset, n) in enumerate(pieces(tensor.n_bytes, chunking.run_bytes)):
                yield _Run(tensor, chunking, base, i * chunking.run_chunks, tensor.offset + offset, n, offset + n == tensor.n_bytes)

    def _encode(self, run: _Run) -> _EncodedRun:
        out = np.empty(run.chunking.bound(run.n_bytes), np.uint8)
        with located(tensor=run.tensor.name):
            data = self._scratch.get(run.n_bytes)
            self.source.read_into(run.offset, memoryview(data))
            chunks = encode_runs(data, run.chunking, run.first, self.options, out, self._base_elems(run))
        return _EncodedRun(run, memoryview(out)[: sum(chunk.n_bytes for chunk in chunks)], chunks)

    def _base_elems(self, run: _Run) -> NDArray[np.uint8] | None:
        """Return what the run's elements are to differ from."""
        if run.base is None:
            return None
        first_elem, n_elems = run.first * run.chunking.chunk_elems, run.n_bytes // run.chunking.layout.elem_bytes
        return base_elems(self.bases[run.base.file].reader, run.base, run.tensor.dtype, first_elem, n_elems)

    def _begin_record(self, run: _Run) -> None:
        self._record_begin, self._modes = self.position, set()
        self._offsets = [table_end(-(-run.tensor.n_bytes // run.chunking.chunk_bytes))]

    def _append(self, encoded: _EncodedRun) -> None:
        """Write the chunks at their place; once the record is no smaller than the tensor they are only counted."""
        begin, tensor = self._offsets[-1], encoded.run.tensor
        if begin + len(encoded.data) < tensor.n_bytes or tensor.dtype not in DTYPE_BITS:
            self._write(self._record_begin + begin, encoded.data)
        for chunk in encoded.chunks:
            self._offsets.append(self._offsets[-1] + chunk.n_bytes)
            self._modes.add(chunk.mode)

    def _end_record(self, run: _Run, crcs: NDArray[np.uint32]) -> None:
        tensor, chunking = run.tensor, run.chunking
        twin = self._twin(tensor, crcs)
        if twin is not None:
            self.stored.tied[tensor.name] = twin
            self.stored.storage[tensor.name] = "t"
            self.stored.entries[tensor.name] = Entry(tensor.name, "U8", (0,), 0, 0)
            return
        record_bytes = self._offsets[-1]
        if record_bytes >= tensor.n_bytes and tensor.dtype in DTYPE_BITS:
            return  # kept; an unknown dtype can't stand in a packed file's header (FORMAT 7.6)
        self._minor_version = max(self._minor_version, self.options.minor_version, *(MINOR_VERSIONS.get(mode, 0) for mode in self._modes))
        head = RecordHead(chunking.layout, tensor.n_bytes // chunking.layout.elem_bytes, chunking.chunk_elems, np.array(self._offsets, np.int64), crcs)
        self._write(self._record_begin, head.to_bytes())
        self.position = self._record_begin + record_bytes
        needs_base = Mode.DIFFERENCE in self._modes
        self.stored.storage[tensor.name] = "d" if needs_base else "p"
        if needs_base:
            self.stored.ranges[tensor.name] = self.matches[tensor.name]
        self.stored.entries[tensor.name] = Entry(tensor.name, "U8", (record_bytes,), self._record_begin, self.position)

    # ---- equal tensors

    def _twin(self, tensor: Tensor, crcs: NDArray[np.uint32]) -> str | None:
        """Return an earlier tensor with the same bytes: CRCs find it, a comparison proves it."""
        earlier = self._by_crcs.setdefault((tensor.n_bytes, crcs.tobytes()), tensor)
        if earlier is tensor:
            return None
        same = all(
            read_at(self.source, tensor.offset + offset, n) == read_at(self.source, earlier.offset + offset, n)
            for offset, n in pieces(tensor.n_bytes, _COPY_BYTES)
        )
        return earlier.name if same else None

    def _keep(self, tensor: Tensor) -> None:
        begin, crcs = self.position, []
        for number, (offset, n) in enumerate(pieces(tensor.n_bytes, KEPT_PIECE_BYTES)):
            data = read_at(self.source, tensor.offset + offset, n)
            crcs.append(chunk_crc(np.frombuffer(data, np.uint8), number))
            self._write(begin + offset, data)
        self.position += tensor.n_bytes
        self.stored.storage[tensor.name] = "k"
        self.stored.kept_crcs[tensor.name] = crcs
        dtype, shape = (tensor.dtype, tensor.shape) if tensor.dtype in DTYPE_BITS else ("U8", (0,))
        self.stored.entries[tensor.name] = Entry(tensor.name, dtype, shape, begin, self.position)

    # ---- header

    def _header(self, stored: _Stored, sha256: str) -> bytes:
        names = [tensor.name for tensor in self.segments.tensors]
        ranges = [stored.ranges[name] for name in names if name in stored.ranges]
        reference, ranges = self._reference(ranges)
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
        ).to_json()
        metadata = {**(self.segments.metadata or {}), INDEX_KEY: index, INDEX_CRC_KEY: f"{active().crc32c(index.encode()):08x}"}
        return build_header(metadata, list(stored.entries.values()))

    def _used(self, ranges: list[BaseRange]) -> list[int]:
        """Return the numbers of the base's files that are needed; the index names no other."""
        return sorted({each.file for each in ranges})

    def _reference(self, ranges: list[BaseRange]) -> tuple[BaseReference | None, list[BaseRange]]:
        if not ranges:
            return None, []
        used = self._used(ranges)
        bases = [self.bases[number] for number in used]
        reference = BaseReference(tuple(base.file for base in bases), bases[0].repo, bases[0].revision, 1 + max(base.depth for base in bases))
        return reference, [replace(each, file=used.index(each.file)) for each in ranges]

    def needed_bases(self) -> list[RandomReader]:
        """Return the files that the index names, in its order."""
        return [self.bases[number].reader for number in self._used(list(self.stored.ranges.values()))]

    def _header_bound(self) -> int:
        """Return room for the longest header that these tensors could get: each may be packed, kept or tied."""
        big = self.source.size * 2 + 100
        worst = _Stored()
        n_ties = 0
        for tensor in self.segments.tensors:
            packed = Entry(tensor.name, "U8", (big,), big, big)
            kept = Entry(tensor.name, tensor.dtype, tensor.shape, big, big)
            worst.entries[tensor.name] = max(packed, kept, key=lambda entry: len(f"{entry.dtype}{list(entry.shape)}"))
            worst.storage[tensor.name] = "p"
            worst.kept_crcs[tensor.name] = [0] * -(-tensor.n_bytes // KEPT_PIECE_BYTES)
            if tensor.name in self.matches:
                worst.storage[tensor.name] = "d"
                worst.ranges[tensor.name] = self.matches[tensor.name]
            n_ties += 1
        digits = len(str(len(self.segments.tensors)))
        bound = 8 + len(self._header(worst, "0" * 64)) + n_ties * (digits + 1) + _DATA_ALIGN
        return -(-bound // _DATA_ALIGN) * _DATA_ALIGN

    def write_header(self, sha256: str) -> int:
        """Write the header before the data; where it left much of its room unused, move the data down. Returns the file's length."""
        for name in self.stored.tied:  # empty ranges stand at the end, where they are in nobody's way
            self.stored.entries[name] = Entry(name, "U8", (0,), self.position, self.position)
        header = self._header(self.stored, sha256)
        data_begin = -(-(8 + len(header)) // _DATA_ALIGN) * _DATA_ALIGN
        if data_begin - 8 > MAX_HEADER_BYTES:
            raise WeightpackError(f"the packed file's header would have {data_begin - 8} bytes, safetensors allows {MAX_HEADER_BYTES}")
        assert data_begin <= self.data_begin
        if (self.data_begin - data_begin) * 1000 > self.position:
            self._move_data(data_begin)
        header = header.ljust(self.data_begin - 8)
        self.target.write_at(0, len(header).to_bytes(8, "little") + header)
        os.ftruncate(self.target.fd, self.data_begin + self.position)
        return self.data_begin + self.position

    def _move_data(self, data_begin: int) -> None:
        with LocalFile(self.target.path) as written:
            for offset, n in pieces(self.position, _COPY_BYTES):
                self.target.write_at(data_begin + offset, read_at(written, self.data_begin + offset, n))
        self.data_begin = data_begin


def _compare(source: Source, target: AtomicFile, bases: list[RandomReader], threads: int, meter: Meter) -> None:
    """Decode what was written and compare it with the source, byte for byte."""
    with LocalFile(target.path) as written:
        packed, scratch = PackedFile(written, bases=bases), Scratch()
        position = 0
        for piece in restored_pieces(packed, threads, lambda offset, data: equal_at(source, offset, data, scratch)):
            if piece.offset != position or not piece.result:
                raise LosslessError(
                    f"what was packed differs from the source at or behind byte {piece.offset}: the source changed, or this is a bug in weightpack; "
                    "nothing was written"
                )
            position += piece.n_bytes
            meter.add(piece.n_bytes)
        if position != source.size:
            raise LosslessError(f"what was packed restores to {position} bytes, the source has {source.size}: this is a bug in weightpack")
