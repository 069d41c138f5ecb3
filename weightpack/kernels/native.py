# SPDX-License-Identifier: Apache-2.0
"""The native core (`weightpack._core`) as a `Kernels` backend: buffers in, exceptions instead of status codes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import ChecksumError, CorruptionError, TruncatedError, UnsupportedError, WeightpackError, located
from weightpack.format.constants import BLOCK_ELEMS, N_CELLS, N_CLASSES
from weightpack.io.parallel import Scratch
from weightpack.kernels.integers import logs_16, logs_4096
from weightpack.kernels.interface import ConditionalBooks, DifferenceCode, EncodedChunks, EncodedPlane, FittedTiles, RansBook, SplitChunk, SplitPlanes

try:
    from weightpack import _core
except ImportError:
    _BUILT = False
else:
    _BUILT = True

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Buffer, Bytes, Stream, Words
    from weightpack.format.layouts import Layout
    from weightpack.format.record import Tiling
    from weightpack.kernels.interface import Grid, NativeCodecs, Product


class Status(IntEnum):
    """wp_status of native/include/weightpack.h."""

    OK = 0
    UNSUPPORTED = 10
    CORRUPT = 20
    CHECKSUM = 21
    TRUNCATED = 30
    ARGUMENT = 40
    NO_SPACE = 41
    NEEDS_ZSTD = 50
    NEEDS_CALLER = 51


_FLOATS = {"BF16": 0, "F16": 1, "F32": 2}  # wp_float


def available() -> list[str]:
    """Return the ISAs that the core has and this CPU can run, slowest first; none if it was not compiled."""
    return [name for name, runs in _core.isas() if runs] if _BUILT else []


def _check(status: int) -> None:
    if status == Status.OK:
        return
    if status == Status.UNSUPPORTED:
        raise UnsupportedError("a layout, codec or mode that this version does not know: upgrade weightpack")
    if status == Status.CHECKSUM:
        raise ChecksumError("the decoded bytes do not match their checksum: the file is damaged")
    if status == Status.TRUNCATED:
        raise TruncatedError("a stream ends early: the file is damaged")
    if status == Status.CORRUPT:
        raise CorruptionError("a stream contradicts the format: the file is damaged")
    raise WeightpackError(f"the native core refused its arguments (status {status}): this is a bug in weightpack")


def _checked(status: int, done: int, first_number: int) -> int:
    """Return how many chunks of a run are done: all, or those before one that is the caller's."""
    if status not in (Status.OK, Status.NEEDS_ZSTD, Status.NEEDS_CALLER):
        with located(chunk=first_number + done):
            _check(status)
    return done


_BOOK_BYTES = 34


def _packed(book: RansBook) -> bytes:
    """A wp_rans_book."""
    return bytes((len(book.symbols), book.escape_freq)) + book.symbols.ljust(16, b"\0") + book.freqs.ljust(16, b"\0")


def _unpacked(book: bytes) -> RansBook:
    k = book[0]
    return RansBook(book[2 : 2 + k], book[18 : 18 + k], book[1])


class NativeKernels:
    """See `weightpack.kernels.Kernels` for what the methods do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._isa = [each for each, _ in _core.isas()].index(name)
        self._scratch, self._planes, self._workspace = Scratch(), Scratch(), Scratch()
        self._workspace_bytes = _core.workspace_bytes()

    def crc32c(self, data: Buffer, crc: int = 0) -> int:
        return _core.crc32c(self._isa, data, crc)

    def histogram(self, symbols: Bytes) -> Words:
        counts = np.empty(256, np.uint32)
        _core.histogram(self._isa, symbols, counts)
        return counts

    def split(self, layout: Layout, elems: Bytes) -> SplitPlanes:
        n = len(elems) // layout.elem_bytes
        symbols = np.empty((len(layout.plane_bits), n), np.uint8)
        widths = np.empty(-(-n // BLOCK_ELEMS) if layout.raw_bits else 0, np.uint8)
        bits = np.empty(_core.bits_bound(layout.id, n), np.uint8)
        status, bits_bytes = _core.split(self._isa, layout.id, elems, symbols, widths, bits)
        _check(status)
        return SplitPlanes(symbols, widths, bits[:bits_bytes])

    def rans_choose(self, counts: Words) -> tuple[RansBook, int]:
        status, book, cost = _core.rans_choose(counts)
        _check(status)
        return _unpacked(book), cost

    def rans_encode(self, book: RansBook, symbols: Bytes) -> Bytes:
        k, packed = len(book.symbols), _packed(book)
        # Bound: a renormalisation byte and a literal for each symbol, and the head.
        out = np.empty(2 * len(symbols) + 2 + 2 * k + 256 + 4, np.uint8)
        status, n = _core.rans_encode(self._isa, packed, symbols, self._scratch.get(_core.rans_scratch(len(symbols))), out)
        _check(status)
        return out[:n]

    def huffman_lengths(self, counts: Words) -> bytes:
        status, lengths = _core.huffman_lengths(counts)
        _check(status)
        return lengths

    def huffman_encode(self, lengths: bytes, symbols: Bytes) -> Bytes:
        out = np.empty(len(symbols) * 3 // 2 + 256, np.uint8)  # 12 bits a symbol; head up to 170 bytes, and up to 8 bytes of slack a bitstream
        status, n = _core.huffman_encode(lengths, symbols, out)
        _check(status)
        return out[:n]

    def encode_chunks(
        self, layout: Layout, elems: Bytes, chunk_elems: int, first_number: int, codecs: NativeCodecs, repeat_share: int, out: Bytes
    ) -> EncodedChunks:
        n_elems = elems.size // layout.elem_bytes
        workspace = self._planes.get(_core.encode_workspace_bytes(layout.id, min(n_elems, chunk_elems)))
        sizes, crcs = np.empty((2, -(-n_elems // chunk_elems)), np.uint32)
        status, n, facts = _core.encode_chunks(
            self._isa, layout.id, elems, chunk_elems, first_number, codecs.most_tables, codecs.huffman, repeat_share, workspace, out, sizes, crcs
        )
        _check(status)
        last = SplitChunk(facts[0], [EncodedPlane._make(plane) for plane in facts[1]], workspace) if facts else None
        return EncodedChunks(sizes[:n].tolist(), crcs[:n].tolist(), last)

    def decode_chunks(
        self, layout: Layout, data: Buffer, offsets: NDArray[np.int64], crcs: Words, first: int, chunk_elems: int, n_elems: int,
        first_number: int, out: Bytes,
    ) -> int:  # fmt: skip
        workspace = self._workspace.get(self._workspace_bytes)
        status, done = _core.decode_chunks(self._isa, layout.id, data, offsets, crcs, first, chunk_elems, n_elems, first_number, out, workspace)
        return _checked(status, done, first_number)

    def multiply_chunks(
        self, layout: Layout, data: Buffer, offsets: NDArray[np.int64], crcs: Words, first: int, chunk_elems: int, n_elems: int,
        first_number: int, product: Product,
    ) -> int:  # fmt: skip
        status, done = _core.multiply_chunks(
            self._isa, layout.id, data, offsets, crcs, first, chunk_elems, n_elems, first_number, _FLOATS[product.dtype], product.x, product.x.shape[1],
            product.sums, self._workspace.get(self._workspace_bytes),
        )  # fmt: skip
        return _checked(status, done, first_number)

    def multiply(self, elems: Bytes, elem: int, product: Product) -> None:
        _check(_core.multiply(self._isa, _FLOATS[product.dtype], elems, elem, product.x, product.x.shape[1], product.sums))

    def decode_streams(self, layout: Layout, mode: int, streams: Sequence[Stream], n_elems: int, chunk_number: int, out: Bytes) -> int:
        status, crc = _core.decode_streams(self._isa, layout.id, mode, streams, n_elems, chunk_number, out, self._workspace.get(self._workspace_bytes))
        _check(status)
        return crc

    def decode_difference(
        self, layout: Layout, shift: int, frequent: Words, streams: Sequence[Stream], base: Bytes, n_elems: int, chunk_number: int, out: Bytes
    ) -> int:
        status, crc = _core.decode_difference(
            self._isa, layout.id, shift, frequent, streams, base, n_elems, chunk_number, out, self._workspace.get(self._workspace_bytes)
        )
        _check(status)
        return crc

    def difference_planes(self, layout: Layout, shift: int, elems: Bytes, base: Bytes) -> tuple[Bytes, Bytes]:
        n = elems.size // layout.elem_bytes
        exponents, scales = np.empty(n, np.uint8), np.empty(-(-n // BLOCK_ELEMS), np.uint8)
        _check(_core.difference_planes(self._isa, layout.id, shift, elems, base, exponents, scales))
        return exponents, scales

    def modular_differences(self, layout: Layout, shift: int, elems: Bytes, base: Bytes) -> Words:
        differences = np.empty(len(elems) // layout.elem_bytes, np.uint32)
        _check(_core.modular_differences(layout.id, shift, elems, base, differences))
        return differences

    def difference_code(self, layout: Layout, shift: int, elems: Bytes, base: Bytes, rates: Bytes, base_exponent: int, frequent: Words) -> DifferenceCode:
        n = elems.size // layout.elem_bytes
        cells, classes = np.empty((2, n), np.uint8)
        counts, extras = np.empty((2, N_CELLS, N_CLASSES), np.uint32), np.empty(4 * n + 16, np.uint8)  # wp_difference_extras_bound
        status, n_changed, n_bytes = _core.difference_code(
            self._isa, layout.id, shift, elems, base, rates, base_exponent, frequent, cells, classes, counts, extras
        )
        _check(status)
        return DifferenceCode(cells[:n_changed], classes[:n_changed], counts[0], extras[:n_bytes])

    def conditional_books(self, counts: Words, base_exponent: int) -> ConditionalBooks:
        book_of = np.empty(N_CELLS, np.uint8)
        status, packed, n_rates = _core.conditional_books(counts, logs_4096(), book_of)
        _check(status)
        books = [_unpacked(packed[begin : begin + _BOOK_BYTES]) for begin in range(0, len(packed), _BOOK_BYTES)]
        return ConditionalBooks(books, book_of, base_exponent, n_rates)

    def conditional_encode(self, books: ConditionalBooks, cells: Bytes, symbols: Bytes) -> Bytes:
        packed, n = b"".join(map(_packed, books.books)), symbols.size
        out = np.empty(2 * n + 2048, np.uint8)  # a renormalisation byte and a literal for each symbol; head up to 3 + 120 + 16 * 34 + 260 bytes
        scratch = self._scratch.get(_core.rans_scratch(n))
        status, n_bytes = _core.conditional_encode(self._isa, packed, books.base_exponent, books.n_rates, books.book_of, cells, symbols, scratch, out)
        _check(status)
        return out[:n_bytes]

    def scaled_base(self, layout: Layout, scales: Bytes, cols: int, phase: int, signs: Bytes, n_elems: int) -> Bytes:
        base = np.empty(n_elems * layout.elem_bytes, np.uint8)
        _check(_core.scaled_base(layout.id, scales, cols, phase, signs, n_elems, base))
        return base

    def scales_gain(self, upper: NDArray[np.uint16]) -> int:
        return _core.scales_gain(upper, upper.shape[1], logs_16())

    def quantised_fit(self, layout: Layout, elems: Bytes, tiling: Tiling, grid: Grid) -> FittedTiles:
        n = elems.size // layout.elem_bytes
        scales, codes = np.empty(tiling.tiles(n), np.uint32), np.empty(n, np.uint8)
        scratch = self._scratch.get(_core.quantised_scratch(n))
        status, n_verbatim = _core.quantised_fit(layout.id, elems, *tiling, grid.values, grid.anchors, grid.from_least, scratch, scales, codes)
        _check(status)
        return FittedTiles(scales, codes, n_verbatim)

    def quantised_decode(
        self, layout: Layout, values: Bytes, scales: Bytes, tiling: Tiling, codes: Bytes, verbatim: Buffer, chunk_number: int, out: Bytes
    ) -> int:
        status, crc = _core.quantised_decode(self._isa, layout.id, values, scales, *tiling, codes, verbatim, chunk_number, out)
        _check(status)
        return crc

    def equal(self, one: Bytes, other: Bytes) -> bool:
        return _core.equal(one, other)

    def sample_repeats(self, data: Bytes) -> int:
        return _core.sample_repeats(data)
