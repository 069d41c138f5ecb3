# SPDX-License-Identifier: Apache-2.0
"""Elements -> chunks: where the mode of a chunk is chosen, for files, frames, items of distributed checkpoints and estimates alike.

A run of chunks is coded at a time, so that a tensor of any size needs the memory of a few chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import lcm
from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.constants import BLOCK_ELEMS, MAX_CHUNK_BYTES, Mode
from weightpack.format.record import chunk_bound
from weightpack.io.files import pieces
from weightpack.kernels import chunk_crc
from weightpack.writing.choose import repeats_much
from weightpack.writing.differences import SCALED_ROWS, encode_difference, encode_scaled, scales_help
from weightpack.writing.plain import EncodedChunk, encode_chunks, encode_fields
from weightpack.writing.quantised import Quantisation, encode_quantised, find_quantisation
from weightpack.writing.repeats import chunk_elems_of_copies

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes
    from weightpack.format.layouts import Layout
    from weightpack.options import PackOptions


ReadElems = Callable[[int, int], "Bytes"]
"""(offset, n_bytes) -> bytes of a tensor, (n_bytes,) uint8."""

_CLEARLY_SMALLER = 4  # a difference of so small a part of its elements is taken, and nothing else is tried, unless they repeat
_RUN_BYTES = 1 << 20  # coded by one thread in one go, in the second-level cache


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a tensor is cut into chunks, and what of it is known to whoever codes them.

    Parameters
    ----------
    layout
        Of its elements.
    chunk_bytes
        Of each chunk but the last: a whole count of blocks of 128 elements.
    fields
        Of a tensor of blocks of bytes: the widths of a block's fields.
    row_elems
        Elements of a row; 0 if there are none.
    first_elem
        The number, in the tensor that has these rows, of the first element here.
    scaled
        Is each chunk to be tried as differences from what scales of rows and columns predict?
    quantised
        What the elements were quantised to once, and in which tiles; chunks are whole rows of tiles.
    copies
        May whole chunks be the same as earlier ones of the tensor?
    """

    layout: Layout
    chunk_bytes: int
    fields: tuple[int, ...] = ()
    row_elems: int = 0
    first_elem: int = 0
    scaled: bool = False
    quantised: Quantisation | None = None
    copies: bool = False

    @classmethod
    def of(
        cls,
        layout: Layout,
        options: PackOptions,
        n_bytes: int,
        read: ReadElems,
        *,
        fields: tuple[int, ...] = (),
        row_elems: int = 0,
        first_elem: int = 0,
        shape: tuple[int, ...] = (),
    ) -> Chunking:
        """Cut a tensor of `n_bytes` as the options say; blocks of fields are not cut. What may help to code it is decided here, once, from samples."""
        chunk_bytes = min(options.chunk_elems * layout.elem_bytes, MAX_CHUNK_BYTES)
        if fields:
            step = lcm(BLOCK_ELEMS, sum(fields))
            chunk_bytes = max(step, chunk_bytes // step * step)
        else:
            copies = chunk_elems_of_copies(read, shape, n_bytes, layout.elem_bytes, options.chunk_elems)
            quantised = find_quantisation(read, n_bytes, layout, row_elems, options) if options.quantised else None
            step = quantised.step_elems if quantised else BLOCK_ELEMS
            if copies is not None:  # where they are is where chunks end; tiles must end there too
                quantised = quantised if copies % step == 0 else None
                return cls(layout, copies * layout.elem_bytes, row_elems=row_elems, first_elem=first_elem, quantised=quantised, copies=True)
            if quantised is not None:
                chunk_elems = max(step, options.chunk_elems // step * step)
                return cls(layout, chunk_elems * layout.elem_bytes, row_elems=row_elems, first_elem=first_elem, quantised=quantised)
        chunking = cls(layout, chunk_bytes, fields, row_elems, first_elem)
        if not (options.scales and row_elems and not fields and min(n_bytes, chunking.run_bytes) >= SCALED_ROWS * row_elems * layout.elem_bytes):
            return chunking
        return replace(chunking, scaled=scales_help(read, n_bytes, layout, row_elems, first_elem % row_elems))

    @property
    def chunk_elems(self) -> int:
        """Elements of each chunk but the last."""
        return self.chunk_bytes // self.layout.elem_bytes

    @property
    def run_chunks(self) -> int:
        """Chunks of a run."""
        return max(1, _RUN_BYTES // self.chunk_bytes)

    @property
    def run_bytes(self) -> int:
        """Bytes of a run."""
        return self.run_chunks * self.chunk_bytes

    @property
    def differs(self) -> bool:
        """May chunks be differences from a base?"""
        return self.layout.has_differences and not self.fields

    def bound(self, n_bytes: int) -> int:
        """Return room for the chunks of `n_bytes` of elements."""
        return sum(chunk_bound(self.layout, n // self.layout.elem_bytes) for _, n in pieces(n_bytes, self.chunk_bytes))


def encode_runs(data: Bytes, chunking: Chunking, first_number: int, options: PackOptions, out: Bytes, base: Bytes | None = None) -> list[EncodedChunk]:
    """Encode consecutive chunks, each in the mode that makes it smallest: by itself, as the difference from `base`, or from what scales predict.

    Parameters
    ----------
    data : (n_bytes,) uint8
        Whole runs, but for what ends the tensor.
    first_number
        The first chunk's number in its record: a multiple of `chunking.run_chunks`.
    out : uint8
        At least `chunking.bound(data.size)`; the chunks stand at its begin afterwards, one after the other.
    base : (n_bytes,) uint8, optional
        What each element is to differ from, in the same layout.
    """
    if chunking.fields:
        return encode_fields(data, chunking.fields, chunking.chunk_bytes, first_number, options, out)
    if base is None and not chunking.scaled and chunking.quantised is None:
        return encode_chunks(data, chunking.layout, chunking.chunk_elems, first_number, options, out)
    chunks, position = [], 0
    for number, (offset, n) in enumerate(pieces(data.size, chunking.chunk_bytes), first_number):
        part = slice(offset, offset + n)
        chunks.append(_encode_smallest(data[part], chunking, number, options, out[position:], None if base is None else base[part]))
        position += chunks[-1].n_bytes
    return chunks


def _encode_smallest(elems: Bytes, chunking: Chunking, number: int, options: PackOptions, out: Bytes, base: Bytes | None) -> EncodedChunk:
    difference = None if base is None else encode_difference(elems, base, chunking.layout, options)
    if difference is not None and len(difference) * _CLEARLY_SMALLER < elems.size and not repeats_much(elems, options):
        out[: len(difference)] = np.frombuffer(difference, np.uint8)
        return EncodedChunk(len(difference), chunk_crc(elems, number), Mode.DIFFERENCE, elems.size // 2 - len(difference))
    (plain,) = encode_chunks(elems, chunking.layout, chunking.chunk_elems, number, options, out)
    smallest, alone = None, plain.n_bytes
    if chunking.scaled:
        scaled = encode_scaled(elems, chunking.layout, chunking.row_elems, _phase(chunking, number), options)
        if len(scaled) < alone:
            smallest, alone = scaled, len(scaled)
    if chunking.quantised is not None:
        quantised = encode_quantised(elems, chunking.layout, chunking.quantised, options)
        if quantised is not None and len(quantised) < alone:
            smallest, alone = quantised, len(quantised)
    if difference is not None and len(difference) < alone:
        smallest = difference
    if smallest is None:
        return plain
    out[: len(smallest)] = np.frombuffer(smallest, np.uint8)
    return EncodedChunk(len(smallest), plain.crc, Mode(smallest[0]), alone - len(smallest))


def _phase(chunking: Chunking, number: int) -> int:
    """Return the column of a chunk's first element."""
    return (chunking.first_elem + number * chunking.chunk_elems) % chunking.row_elems
