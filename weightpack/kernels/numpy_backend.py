# SPDX-License-Identifier: Apache-2.0
"""The kernels in numpy: every backend's bytes, some ten MB/s, no compiler needed. Section numbers are those of docs/FORMAT.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import ChecksumError, UnsupportedError, located
from weightpack.format.constants import BLOCK_ELEMS, MAX_CHUNK_BLOCKS, MAX_CHUNK_BYTES, Codec, Mode
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import CHUNK_HEAD_BYTES, build_chunk, parse_chunk
from weightpack.io.files import equal_bytes
from weightpack.kernels.interface import EncodedChunks, EncodedPlane, SplitChunk, numbered_crc
from weightpack.kernels.numpy_checks import expect, need, u8
from weightpack.kernels.numpy_codebooks import conditional_books
from weightpack.kernels.numpy_codecs import encode_plane
from weightpack.kernels.numpy_crc import crc32c
from weightpack.kernels.numpy_differences import decode_difference, difference_code, difference_planes, modular_differences, scaled_base, scales_gain
from weightpack.kernels.numpy_huffman import huffman_encode, huffman_lengths
from weightpack.kernels.numpy_planes import merge, split
from weightpack.kernels.numpy_quantised import quantised_decode, quantised_fit
from weightpack.kernels.numpy_rans import conditional_encode, rans_choose, rans_encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Buffer, Bytes, Stream, Words
    from weightpack.format.layouts import Layout
    from weightpack.format.record import Tiling
    from weightpack.kernels.interface import ConditionalBooks, DifferenceCode, FittedTiles, Grid, NativeCodecs, Product, RansBook, SplitPlanes

_OF_THE_CALLER = frozenset(Mode) - {Mode.SPLIT, Mode.WHOLE}
_SAMPLE_BYTES = 1 << 13
_TINY_BYTES, _HASH_BITS, _LEAST_MATCH, _MATCH_COST = 4096, 11, 6, 5  # as in native/src/encode.c


class NumpyKernels:
    """See `weightpack.kernels.Kernels` for what the methods do."""

    name = "numpy"

    def crc32c(self, data: Buffer, crc: int = 0) -> int:
        return crc32c(data, crc)

    def histogram(self, symbols: Bytes) -> Words:
        return np.bincount(u8(symbols), minlength=256).astype(np.uint32)

    def split(self, layout: Layout, elems: Bytes) -> SplitPlanes:
        return split(layout, u8(elems))

    def rans_choose(self, counts: Words) -> tuple[RansBook, int]:
        return rans_choose([int(c) for c in counts])

    def rans_encode(self, book: RansBook, symbols: Bytes) -> Bytes:
        return rans_encode(book, u8(symbols))

    def huffman_lengths(self, counts: Words) -> bytes:
        return huffman_lengths([int(c) for c in counts])

    def huffman_encode(self, lengths: bytes, symbols: Bytes) -> Bytes:
        return huffman_encode(lengths, u8(symbols))

    def encode_chunks(
        self, layout: Layout, elems: Bytes, chunk_elems: int, first_number: int, codecs: NativeCodecs, repeat_share: int, out: Bytes
    ) -> EncodedChunks:
        """Encode one chunk, and leave zstd to the caller, whatever it repeats: here nothing is gained by more at once."""
        elems = u8(elems)[: chunk_elems * layout.elem_bytes]
        parts = split(layout, elems)
        planes = [*parts.symbols, *([parts.widths, parts.bits] if layout.raw_bits else [])]
        streams, facts, begin, plane_begin = [], [], CHUNK_HEAD_BYTES + 4 * len(planes), 0
        for i, plane in enumerate(planes):
            if layout.raw_bits and i + 1 == len(planes):
                codec, stream = Codec.RAW, plane  # 7.5
            else:
                codec, stream = encode_plane(plane, codecs, planes[i + 1] if layout.has_context(i) else None)
            repeats = 0 if codec == Codec.CONSTANT else self.sample_repeats(plane)
            facts.append(EncodedPlane(codec, begin, stream.size, plane_begin, plane.size, repeats))
            streams.append((codec, stream))
            begin, plane_begin = begin + stream.size, plane_begin + plane.size
        chunk = build_chunk(Mode.SPLIT, streams)
        expect(out.size >= len(chunk), "the output is too small")
        out[: len(chunk)] = u8(chunk)
        return EncodedChunks([len(chunk)], [numbered_crc(crc32c, elems, first_number)], SplitChunk(self.sample_repeats(elems), facts, np.concatenate(planes)))

    def decode_chunks(
        self, layout: Layout, data: Buffer, offsets: NDArray[np.int64], crcs: Words, first: int, chunk_elems: int, n_elems: int,
        first_number: int, out: Bytes,
    ) -> int:  # fmt: skip
        view, begins = memoryview(data).cast("B"), (offsets - offsets[0]).tolist()
        expect(len(begins) == len(crcs) + 1 and 0 < n_elems <= chunk_elems * len(crcs) and begins[-1] <= len(view), "chunks")
        for i in range(first, len(crcs)):
            with located(chunk=first_number + i):
                if begins[i + 1] - begins[i] >= CHUNK_HEAD_BYTES and view[begins[i]] in _OF_THE_CALLER:
                    return i  # the caller's, good or bad
                parsed = parse_chunk(view[begins[i] : begins[i + 1]], layout)
                if any(codec == Codec.ZSTD for codec, _ in parsed.streams):
                    return i
                n = min(chunk_elems, n_elems - i * chunk_elems)
                part = out[i * chunk_elems * layout.elem_bytes :]
                if self.decode_streams(layout, parsed.mode, parsed.streams, n, first_number + i, part) != int(crcs[i]):
                    raise ChecksumError("the decoded bytes do not match their checksum: the file is damaged")
        return len(crcs)

    def multiply_chunks(
        self, layout: Layout, data: Buffer, offsets: NDArray[np.int64], crcs: Words, first: int, chunk_elems: int, n_elems: int,
        first_number: int, product: Product,
    ) -> int:  # fmt: skip
        return first  # the caller's: nothing is won by decoding them here

    def multiply(self, elems: Bytes, elem: int, product: Product) -> None:
        values = _floats(product.dtype, elems)
        n_cols = product.x.shape[1]
        col = elem % n_cols
        for row in range(-(-(col + values.size) // n_cols)):
            begin, end = max(row * n_cols - col, 0), min((row + 1) * n_cols - col, values.size)
            at = (col + begin) % n_cols
            product.sums[row] += product.x[:, at : at + end - begin] @ values[begin:end]

    def decode_streams(self, layout: Layout, mode: int, streams: Sequence[Stream], n_elems: int, chunk_number: int, out: Bytes) -> int:
        if mode not in (Mode.SPLIT, Mode.WHOLE):
            raise UnsupportedError(f"unknown chunk mode {mode}: upgrade weightpack")
        need(len(streams) == (layout.n_streams if mode == Mode.SPLIT else 1), "the chunk's count of streams")
        n_bytes = n_elems * layout.elem_bytes
        need(0 < n_bytes <= MAX_CHUNK_BYTES and n_elems <= MAX_CHUNK_BLOCKS * BLOCK_ELEMS, "the chunk's size")
        if mode == Mode.WHOLE:  # 6.4: what BYTES1 would be
            layout, n_elems = LAYOUTS[LayoutId.BYTES1], n_bytes
        merge(layout, [(codec, u8(stream)) for codec, stream in streams], n_elems, out[:n_bytes])
        return numbered_crc(crc32c, out[:n_bytes], chunk_number)

    def decode_difference(
        self, layout: Layout, shift: int, frequent: Words, streams: Sequence[Stream], base: Bytes, n_elems: int, chunk_number: int, out: Bytes
    ) -> int:
        decode_difference(layout, shift, frequent, streams, base, n_elems, out)
        return numbered_crc(crc32c, out[: n_elems * layout.elem_bytes], chunk_number)

    def difference_planes(self, layout: Layout, shift: int, elems: Bytes, base: Bytes) -> tuple[Bytes, Bytes]:
        return difference_planes(layout, shift, elems, base)

    def modular_differences(self, layout: Layout, shift: int, elems: Bytes, base: Bytes) -> Words:
        return modular_differences(layout, shift, elems, base)

    def difference_code(self, layout: Layout, shift: int, elems: Bytes, base: Bytes, rates: Bytes, base_exponent: int, frequent: Words) -> DifferenceCode:
        return difference_code(layout, shift, elems, base, rates, base_exponent, frequent)

    def conditional_books(self, counts: Words, base_exponent: int) -> ConditionalBooks:
        return conditional_books(counts, base_exponent)

    def conditional_encode(self, books: ConditionalBooks, cells: Bytes, symbols: Bytes) -> Bytes:
        return conditional_encode(books, cells, symbols)

    def scaled_base(self, layout: Layout, scales: Bytes, cols: int, phase: int, signs: Bytes, n_elems: int) -> Bytes:
        return scaled_base(layout, scales, cols, phase, signs, n_elems)

    def scales_gain(self, upper: NDArray[np.uint16]) -> int:
        return scales_gain(upper)

    def quantised_fit(self, layout: Layout, elems: Bytes, tiling: Tiling, grid: Grid) -> FittedTiles:
        return quantised_fit(layout, elems, tiling, grid)

    def quantised_decode(
        self, layout: Layout, values: Bytes, scales: Bytes, tiling: Tiling, codes: Bytes, verbatim: Buffer, chunk_number: int, out: Bytes
    ) -> int:
        quantised_decode(layout, values, scales, tiling, codes, verbatim, out)
        return numbered_crc(crc32c, out[: codes.size * layout.elem_bytes], chunk_number)

    def equal(self, one: Bytes, other: Bytes) -> bool:
        return equal_bytes(one, other)

    def sample_repeats(self, data: Bytes) -> int:
        if len(data) <= _TINY_BYTES:
            return _matched_bytes(bytes(data)) // 8
        middle = len(data) // 2 & ~7
        return sum(_count_repeats(data[begin : begin + _SAMPLE_BYTES]) for begin in (0, middle))


def _floats(dtype: str, elems: Bytes) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (elems.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return elems.view("<f2" if dtype == "F16" else "<f4").astype(np.float32)


def _count_repeats(data: Bytes) -> int:
    words = np.frombuffer(data, "<u8", len(data) // 8)
    return int(words.size - np.unique(words).size)


def _matched_bytes(data: bytes) -> int:
    """Count the bytes that matches save; at each place the last one with the same hash is tried, and what it matches is passed over."""
    last: dict[int, int] = {}
    saved = i = 0
    while i + 4 <= len(data):
        slot = int.from_bytes(data[i : i + 4], "little") * 0x9E3779B1 % (1 << 32) >> 32 - _HASH_BITS
        earlier, length = last.get(slot), 0
        last[slot] = i
        if earlier is not None:
            while i + length < len(data) and data[earlier + length] == data[i + length]:
                length += 1
        if length >= _LEAST_MATCH:
            saved += length - _MATCH_COST
            i += length
        else:
            i += 1
    return saved
