# SPDX-License-Identifier: Apache-2.0
"""What is in a packed file, tensor by tensor, without decoding it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from weightpack.errors import CorruptionError, TruncatedError, UnsupportedError, located
from weightpack.format.constants import CODEC_NAMES, MAX_STREAMS, Codec, Mode
from weightpack.format.layouts import DTYPE_BITS, Layout
from weightpack.format.record import CHUNK_HEAD_BYTES, parse_chunk
from weightpack.io.files import RandomReader, read_at
from weightpack.reading.packed_file import PackedFile, StoredTensor
from weightpack.sources import segment


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor: bytes before and after, and how it is stored: "kept", "tied to NAME", "packed", or the codecs of its planes, joined by +."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source_bytes: int
    packed_bytes: int
    codec: str

    @property
    def bits_per_element(self) -> float:
        """Bits an element takes in the packed file."""
        n_elems = self.source_bytes * 8 // DTYPE_BITS.get(self.dtype, 8)
        return self.packed_bytes * 8 / n_elems if n_elems else 0.0


@dataclass(frozen=True, slots=True)
class FileReport:
    """A packed file, or of a directory, `state` "plain", also one that is not packed (yet): of that the SHA-256 is not known.

    `lineage`: what it is a difference from, what that is a difference from, and so on; empty for a file that stands alone.
    """

    path: str
    source_bytes: int
    packed_bytes: int
    source_sha256: str
    tensors: tuple[TensorReport, ...]
    lineage: tuple[str, ...] = ()
    state: str = "packed"


def inspect_plain(file: RandomReader) -> FileReport:
    """Describe a file that is not packed."""
    tensors = tuple(TensorReport(t.name, t.dtype, t.shape, t.n_bytes, t.n_bytes, "plain") for t in segment(file).tensors)
    return FileReport(file.name, file.size, file.size, "", tensors, state="plain")


def inspect_file(packed: PackedFile, *, codecs: bool = True, lineage: tuple[str, ...] = ()) -> FileReport:
    """Describe a packed file; without `codecs` only its header is read, else some chunks of every tensor too."""
    tensors = tuple(_describe(packed, stored, codecs) for stored in packed.tensors.values())
    return FileReport(packed.file.name, packed.index.source_bytes, packed.file.size, packed.index.source_sha256, tensors, lineage)


def _describe(packed: PackedFile, stored: StoredTensor, codecs: bool) -> TensorReport:
    tensor = stored.tensor
    if stored.storage == "k":
        codec = "kept"
    elif stored.storage == "t":
        codec = f"tied to {stored.holder}"
    elif stored.storage == "b":
        codec = "as in the base"
    elif stored.storage == "m":
        codec = f"in the group of {stored.holder}"
    else:
        codec = _codecs(packed, stored) if codecs else "packed"
    return TensorReport(tensor.name, tensor.dtype, tensor.shape, tensor.n_bytes, stored.packed_bytes, codec)


def _codecs(packed: PackedFile, stored: StoredTensor) -> str:
    """Return the commonest choice among the record's first chunks: the codecs of its symbol planes, "whole:" before one of all bytes."""
    head = packed.record_head(stored)
    seen: Counter[str] = Counter()
    for i in range(min(head.n_chunks, 8)):
        begin, end = head.offsets[i : i + 2].tolist()
        chunk = parse_chunk(read_at(packed.file, stored.begin + begin, end - begin), head.layout)
        streams = chunk.streams[_SHOWN[chunk.mode]] if chunk.mode in _SHOWN else chunk.streams
        streams = streams[: len(chunk.widths) or len(head.layout.plane_bits)]
        names = [CODEC_NAMES[Codec(codec)] if codec in CODEC_NAMES else str(codec) for codec, _ in streams]
        seen[_MODE_NAMES[chunk.mode] + "+".join(names)] += 1
    return seen.most_common(1)[0][0]


_MODE_NAMES = {
    Mode.SPLIT: "", Mode.WHOLE: "whole:", Mode.FIELDS: "fields:", Mode.DIFFERENCE: "difference:", Mode.SCALED: "scaled:", Mode.QUANTISED: "quantised:",
    Mode.REPEATED: "repeated",
}  # fmt: skip
_SHOWN = {Mode.DIFFERENCE: slice(1, 2), Mode.SCALED: slice(3, 4), Mode.QUANTISED: slice(5, 6)}  # the stream that says most of a chunk
_DIFFERENCE_PLANES = ("rates", "classes", "extra bits")


@dataclass(frozen=True, slots=True)
class PlanesReport:
    """Where a tensor's bytes go: plane -> bytes in the packed file. "tables" are record and chunk headers and padding."""

    name: str
    dtype: str
    n_elems: int
    planes: dict[str, int]


def inspect_planes(packed: PackedFile) -> list[PlanesReport]:
    """Say where the bytes of each tensor go, by falling size; reads the header of every chunk, and decodes nothing."""
    reports = []
    for stored in packed.tensors.values():
        n_elems = stored.tensor.n_bytes * 8 // DTYPE_BITS.get(stored.tensor.dtype, 8)
        if n_elems and stored.storage not in "tmb":
            planes = _record_planes(packed, stored) if stored.has_record else {"kept": stored.packed_bytes}
            reports.append(PlanesReport(stored.tensor.name, stored.tensor.dtype, n_elems, planes))
    return sorted(reports, key=lambda report: (-sum(report.planes.values()), report.name))


def _record_planes(packed: PackedFile, stored: StoredTensor) -> dict[str, int]:
    head, planes = packed.record_head(stored), Counter[str]()
    for number, (begin, end) in enumerate(pairwise(head.offsets.tolist())):
        with located(path=packed.file.name, tensor=stored.tensor.name, chunk=number):
            first = read_at(packed.file, stored.begin + begin, min(end - begin, CHUNK_HEAD_BYTES + 4 * MAX_STREAMS))
            sizes = _stream_sizes(first, head.layout)
            if sum(n_bytes for _, n_bytes in sizes) > end - begin:
                raise TruncatedError("a stream ends after its chunk")
        for name, n_bytes in sizes:
            planes[name] += n_bytes
    planes["tables"] = stored.packed_bytes - planes.total()
    return dict(planes)


def _stream_sizes(first: bytearray, layout: Layout) -> list[tuple[str, int]]:
    """Return (name, bytes) of each stream of a chunk, from its first bytes: header and stream table."""
    if len(first) < CHUNK_HEAD_BYTES or len(first) < CHUNK_HEAD_BYTES + 4 * first[1]:
        raise TruncatedError("the chunk ends inside its stream table")
    mode, n_streams = first[:2]
    if mode == Mode.FIELDS:
        names: tuple[str, ...] = tuple(f"field {i}" for i in range(n_streams))
    elif mode in _STREAM_NAMES:
        names = _STREAM_NAMES[Mode(mode)]
    elif mode == Mode.SPLIT:
        names = layout.stream_names
    else:
        raise UnsupportedError(f"unknown chunk mode {mode}: upgrade weightpack")
    if len(names) != n_streams:
        raise CorruptionError(f"the chunk has {n_streams} streams, its mode has {len(names)}")
    table = np.frombuffer(first, "<u4", n_streams, CHUNK_HEAD_BYTES) >> 8
    return list(zip(names, table.tolist(), strict=True))


_STREAM_NAMES = {
    Mode.WHOLE: ("whole chunks",),
    Mode.DIFFERENCE: _DIFFERENCE_PLANES,
    Mode.SCALED: ("scales", "signs", *_DIFFERENCE_PLANES),
    Mode.QUANTISED: ("values", *["scales"] * 4, "codes", "verbatim"),
    Mode.REPEATED: (),
}
