# SPDX-License-Identifier: Apache-2.0
"""What is in a packed file, tensor by tensor, without decoding it; and what packing a plain file would save, from samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from weightpack.format.constants import CODEC_NAMES, MAX_CHUNK_BYTES, MAX_STREAMS, Codec, Mode
from weightpack.format.layouts import DTYPE_BITS, Layout, layout_of
from weightpack.format.record import CHUNK_HEAD_BYTES, chunk_bound, parse_chunk, table_end
from weightpack.io.files import RandomReader, read_at
from weightpack.options import PackOptions
from weightpack.reading.packed_file import PackedFile, StoredTensor
from weightpack.sources import Tensor, segment
from weightpack.writing.chunks import chunk_bytes_of, encode_chunks, encode_fields


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
    """A packed file. `lineage`: what it is a difference from, what that is a difference from, and so on; empty for a file that stands alone."""

    path: str
    source_bytes: int
    packed_bytes: int
    source_sha256: str
    tensors: tuple[TensorReport, ...]
    lineage: tuple[str, ...] = ()


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
        streams = chunk.streams[1:2] if chunk.mode == Mode.DIFFERENCE else chunk.streams[3:4] if chunk.mode == Mode.SCALED else chunk.streams
        streams = streams[: len(chunk.widths) or len(head.layout.plane_bits)]
        names = [CODEC_NAMES[Codec(codec)] if codec in CODEC_NAMES else str(codec) for codec, _ in streams]
        seen[_MODE_NAMES[chunk.mode] + "+".join(names)] += 1
    return seen.most_common(1)[0][0]


_MODE_NAMES = {Mode.SPLIT: "", Mode.WHOLE: "whole:", Mode.FIELDS: "fields:", Mode.DIFFERENCE: "difference:", Mode.SCALED: "scaled:"}
_DIFFERENCE_PLANES = ("rates", "classes", "extra bits")


@dataclass(frozen=True, slots=True)
class PlanesReport:
    """Where a tensor's bytes go: plane -> bytes in the packed file. "tables" are record and chunk headers and padding."""

    name: str
    dtype: str
    n_elems: int
    planes: dict[str, int]


def plane_names(layout: Layout) -> tuple[str, ...]:
    """Name the streams of a split chunk, in their order."""
    if not layout.raw_bits:
        return tuple(f"byte {i}" for i in range(len(layout.plane_bits)))
    if layout.has_context(0):
        symbols: tuple[str, ...] = ("leading mantissa bits", "exponents")
    else:
        symbols = ("exponents",) * len(layout.plane_bits)
    return (*symbols, "widths", "sign and mantissa")


def inspect_planes(packed: PackedFile) -> list[PlanesReport]:
    """Say where the bytes of each tensor go, by falling size; reads the header of every chunk, and decodes nothing."""
    reports = []
    for stored in packed.tensors.values():
        n_elems = stored.tensor.n_bytes * 8 // DTYPE_BITS.get(stored.tensor.dtype, 8)
        if n_elems and stored.storage != "t":
            planes = _record_planes(packed, stored) if stored.has_record else {"kept": stored.packed_bytes}
            reports.append(PlanesReport(stored.tensor.name, stored.tensor.dtype, n_elems, planes))
    return sorted(reports, key=lambda report: (-sum(report.planes.values()), report.name))


def _record_planes(packed: PackedFile, stored: StoredTensor) -> dict[str, int]:
    head = packed.record_head(stored)
    names, planes = plane_names(head.layout), Counter[str]()
    for begin, end in pairwise(head.offsets.tolist()):
        chunk = read_at(packed.file, stored.begin + begin, min(end - begin, CHUNK_HEAD_BYTES + 4 * MAX_STREAMS))
        mode, n_streams = chunk[0], min(chunk[1], MAX_STREAMS)
        for i in range(n_streams):
            at = CHUNK_HEAD_BYTES + 4 * i
            name = _stream_name(mode, i, names)
            planes[name] += int.from_bytes(chunk[at + 1 : at + 4], "little")
    planes["tables"] = stored.packed_bytes - planes.total()
    return dict(planes)


def _stream_name(mode: int, i: int, names: tuple[str, ...]) -> str:
    if mode == Mode.SPLIT:
        return names[i]
    if mode == Mode.DIFFERENCE:
        return _DIFFERENCE_PLANES[i]
    if mode == Mode.SCALED:
        return ("scales", "signs", *_DIFFERENCE_PLANES)[i]
    return "whole chunks" if mode == Mode.WHOLE else f"field {i}"


@dataclass(frozen=True, slots=True)
class EstimateReport:
    """What packing would give; `sampled_bytes` of the source were encoded to find out. `by_dtype`: dtype -> (source bytes, packed bytes)."""

    path: str
    source_bytes: int
    packed_bytes: int
    sampled_bytes: int
    by_dtype: dict[str, tuple[int, int]]


MODELLING_STEPS: dict[str, PackOptions] = {
    "Huffman codes for exponents": PackOptions(codecs=("huffman",)),
    "rANS as well": PackOptions(codecs=("huffman", "rans")),
    "zstd for what repeats": PackOptions(),
    "up to 16 codebooks a plane": PackOptions(tables=16),
    "leading mantissa bits, given the exponent": PackOptions(tables=16, lead=True),
}
"""What each step of modelling adds to the one before it, for `estimate --steps`."""


def estimate_file(source: RandomReader, options: PackOptions, sample_chunks: int = 6, budget_bytes: int | None = None) -> EstimateReport:
    """Encode up to `sample_chunks` chunks of each tensor, spread evenly, and scale up.

    With a budget, tensors of a dtype are sampled in turn, by falling size, one of so many that about `budget_bytes` are read (one tensor of each dtype
    at least); the others are taken to shrink as the sampled do.
    """
    tensors = segment(source).tensors
    groups: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    by_dtype: dict[str, tuple[int, int]] = {}
    sampled = 0
    for dtype, group in groups.items():
        group.sort(key=lambda tensor: (-tensor.n_bytes, tensor.name))
        chunk_bytes = min(options.chunk_elems * layout_of(dtype).elem_bytes, MAX_CHUNK_BYTES)
        stride = 1 if budget_bytes is None else max(1, -(-sum(min(tensor.n_bytes, sample_chunks * chunk_bytes) for tensor in group) // budget_bytes))
        before = after = 0
        for tensor in group[::stride]:
            taken, estimate = _estimate(source, tensor, options, sample_chunks)
            sampled, before, after = sampled + taken, before + tensor.n_bytes, after + estimate
        n_bytes = sum(tensor.n_bytes for tensor in group)
        by_dtype[dtype] = n_bytes, after * n_bytes // before if before else 0
    header_bytes = source.size - sum(tensor.n_bytes for tensor in tensors)
    return EstimateReport(source.name, source.size, sum(after for _, after in by_dtype.values()) + header_bytes, sampled, by_dtype)


def _estimate(source: RandomReader, tensor: Tensor, options: PackOptions, sample_chunks: int) -> tuple[int, int]:
    layout = options.layout(tensor.dtype, tensor.n_bytes)
    chunk_bytes = chunk_bytes_of(layout, tensor.fields, options)
    n_chunks = -(-tensor.n_bytes // chunk_bytes)
    if n_chunks == 0 or tensor.n_bytes % layout.elem_bytes:
        return 0, tensor.n_bytes
    n_picks = min(sample_chunks, n_chunks)
    picks = [(2 * i + 1) * n_chunks // (2 * n_picks) for i in range(n_picks)]
    taken = coded = 0
    out = np.empty(chunk_bound(layout, chunk_bytes // layout.elem_bytes), np.uint8)
    for i in picks:
        n = min(chunk_bytes, tensor.n_bytes - i * chunk_bytes)
        data = np.frombuffer(read_at(source, tensor.offset + i * chunk_bytes, n), np.uint8)
        taken += n
        if tensor.fields:
            coded += encode_fields(data, tensor.fields, chunk_bytes, i, options, out)[0].n_bytes
        else:
            coded += encode_chunks(data, layout, chunk_bytes // layout.elem_bytes, i, options, out)[0].n_bytes
    return taken, min(tensor.n_bytes, table_end(n_chunks) + coded * tensor.n_bytes // taken)
