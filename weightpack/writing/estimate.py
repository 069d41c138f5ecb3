# SPDX-License-Identifier: Apache-2.0
"""What packing a file would save, from samples of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.constants import BLOCK_ELEMS, MAX_CHUNK_BYTES
from weightpack.format.layouts import layout_of
from weightpack.format.record import table_end
from weightpack.io.files import RandomReader, read_at
from weightpack.options import PackOptions
from weightpack.sources import refuse_pointer, segment
from weightpack.sources.model import Tensor
from weightpack.writing.chunks import Chunking, encode_runs

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes
    from weightpack.format.layouts import Layout


_PROBED_ROWS = 128  # blocks of weights that were quantised are no higher


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
    refuse_pointer(source)
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
    if tensor.n_bytes == 0 or tensor.n_bytes % layout.elem_bytes:
        return 0, tensor.n_bytes

    begin, piece = _piece(source, tensor, layout, options)
    n_piece = piece.size

    def read(offset: int, n: int) -> Bytes:
        if begin <= offset and offset + n <= begin + n_piece:
            return piece[offset - begin : offset - begin + n]
        return np.frombuffer(read_at(source, tensor.offset + offset, n), np.uint8)

    # From one piece is decided how the tensor is coded: the source may be far away, where each look costs a request.
    chunking = Chunking.of(layout, options, n_piece, lambda offset, n: piece[offset : offset + n], fields=tensor.fields, row_elems=tensor.row_elems)
    n_chunks = -(-tensor.n_bytes // chunking.chunk_bytes)
    n_picks = min(sample_chunks, n_chunks)
    taken = coded = 0
    out = np.empty(chunking.bound(chunking.chunk_bytes), np.uint8)
    for number in ((2 * i + 1) * n_chunks // (2 * n_picks) for i in range(n_picks)):
        n = min(chunking.chunk_bytes, tensor.n_bytes - number * chunking.chunk_bytes)
        data = read(number * chunking.chunk_bytes, n)
        taken += n
        coded += encode_runs(data, chunking, number, options, out)[0].n_bytes
    return taken, min(tensor.n_bytes, table_end(n_chunks) + coded * tensor.n_bytes // taken)


def _piece(source: RandomReader, tensor: Tensor, layout: Layout, options: PackOptions) -> tuple[int, Bytes]:
    """Return where a piece of a tensor begins, and its bytes: a chunk from its middle, whole rows of tiles."""
    row_bytes = tensor.row_elems * layout.elem_bytes
    n = max(min(tensor.n_bytes, options.chunk_elems * layout.elem_bytes), min(tensor.n_bytes, _PROBED_ROWS * row_bytes, MAX_CHUNK_BYTES))
    step = _PROBED_ROWS * row_bytes or BLOCK_ELEMS * layout.elem_bytes  # tiles begin here
    begin = (tensor.n_bytes - n) // 2 // step * step
    return begin, np.frombuffer(read_at(source, tensor.offset + begin, n), np.uint8)
