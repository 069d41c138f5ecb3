# SPDX-License-Identifier: Apache-2.0
"""What a backend provides, and what it takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Buffer, Bytes, Stream, Words
    from weightpack.format.layouts import Layout
    from weightpack.format.record import Tiling


def numbered_crc(crc32c: Callable[[Buffer, int], int], data: Bytes, chunk_number: int) -> int:
    """Return the CRC-32C of `u32 chunk_number || data` (FORMAT 6.2); the number is there so that chunks can't trade places."""
    return crc32c(data, crc32c(chunk_number.to_bytes(4, "little"), 0))


@dataclass(frozen=True, slots=True)
class RansBook:
    """A rANS codebook (FORMAT 8.3): `symbols` by rank with `freqs`, and the escape's frequency (0: no escape); all sum to 256."""

    symbols: bytes
    freqs: bytes
    escape_freq: int


@dataclass(frozen=True, slots=True)
class SplitPlanes:
    """A split chunk of n elements: `symbols` (n_planes, n) uint8, `widths` (ceil(n/128),) uint8, `bits` (any,) uint8; FORMAT section 7."""

    symbols: Bytes
    widths: Bytes
    bits: Bytes


class EncodedPlane(NamedTuple):
    """One stream of an encoded chunk, and what the statistics of its plane say.

    `begin` is of the stream in the chunk, `plane_begin` of the plane in the workspace; `repeats` is `Kernels.sample_repeats` of the plane.
    """

    codec: int
    begin: int
    n_bytes: int
    plane_begin: int
    plane_bytes: int
    repeats: int


@dataclass(frozen=True, slots=True)
class SplitChunk:
    """What is known of a chunk that was encoded in split mode: its planes, and `Kernels.sample_repeats` of its elements.

    `workspace` holds the planes until the thread's next call.
    """

    repeats: int
    planes: list[EncodedPlane]
    workspace: Bytes

    def plane(self, i: int) -> Bytes:
        """Return plane i as it was before it was encoded, (plane_bytes,) uint8."""
        plane = self.planes[i]
        return self.workspace[plane.plane_begin : plane.plane_begin + plane.plane_bytes]


class NativeCodecs(NamedTuple):
    """Which codecs the kernels may choose: rANS with up to `most_tables` codebooks, or in contexts (0: neither), and Huffman."""

    most_tables: int
    huffman: bool


@dataclass(frozen=True, slots=True)
class EncodedChunks:
    """Consecutive chunks: lengths in bytes, and the CRC-32C of `u32 chunk_number || elements` of each; `last` is set if zstd may make the last smaller."""

    sizes: list[int]
    crcs: list[int]
    last: SplitChunk | None


class DifferenceCode(NamedTuple):
    """The elements of the changed blocks of a chunk as differences (FORMAT section 14), n of them.

    `cells` and `classes` are (n,) uint8, `counts` is (256, 128) uint32: how often a cell has a class. `extras` are the extra bits.
    """

    cells: Bytes
    classes: Bytes
    counts: Words
    extras: Bytes


class ConditionalBooks(NamedTuple):
    """Codebooks of FORMAT 8.8; `book_of` is (256,) uint8, by cell. Cells of rates above `n_rates` do not occur."""

    books: list[RansBook]
    book_of: Bytes
    base_exponent: int
    n_rates: int


class Product(NamedTuple):
    """What the elements of a matrix are multiplied with, and where the products are added.

    `dtype` is BF16, F16 or F32. `x` is (batch, n_cols) float32, `batch` at most `MAX_BATCH`; `sums` is (n_rows, batch) float32: of the rows of the matrix, of
    `n_cols` elements each, from the one on that the first element is of.
    """

    dtype: str
    x: NDArray[np.float32]
    sums: NDArray[np.float32]


MAX_BATCH = 64
MAX_ANCHORS = 16


class Grid(NamedTuple):
    """What elements may have been quantised to: values that a tile's scale multiplies.

    `values` are (n,) float32, n at most 256, ascending; minus zero, if there is one, stands before zero. A tile's scale is looked for with its least magnitude
    that is no zero, or its largest, taken for each of the `anchors`, (m,) float32 with m at most `MAX_ANCHORS`, in turn.
    """

    name: str
    values: NDArray[np.float32]
    anchors: NDArray[np.float32]
    from_least: bool


class FittedTiles(NamedTuple):
    """Of each tile its scale, the bits of a float32, or `VERBATIM_TILE`; of each element the number of its value; elements of the tiles without a scale."""

    scales: Words
    codes: Bytes
    n_verbatim: int


class Kernels(Protocol):
    """What a backend provides. Buffers are C-contiguous uint8 arrays or bytes-likes; all functions release the GIL where they can."""

    name: str

    def crc32c(self, data: Buffer, crc: int = 0) -> int:
        """CRC-32C, continuing from `crc`."""

    def histogram(self, symbols: Bytes) -> Words:
        """Return the (256,) uint32 counts."""

    def split(self, layout: Layout, elems: Bytes) -> SplitPlanes:
        """Split elements into planes, each block with its least width."""

    def rans_choose(self, counts: Words) -> tuple[RansBook, int]:
        """Return the codebook of least estimated size, and that size in bytes; at least two symbols must occur."""

    def rans_encode(self, book: RansBook, symbols: Bytes) -> Bytes:
        """Return the stream of FORMAT 8.3."""

    def huffman_lengths(self, counts: Words) -> bytes:
        """Return 256 code lengths (0: no code), at most 12, of the complete code that is best for the counts; at least two symbols must occur."""

    def huffman_encode(self, lengths: bytes, symbols: Bytes) -> Bytes:
        """Return the stream of FORMAT 8.4 for 256 code lengths (0: no code)."""

    def encode_chunks(
        self, layout: Layout, elems: Bytes, chunk_elems: int, first_number: int, codecs: NativeCodecs, repeat_share: int, out: Bytes
    ) -> EncodedChunks:
        """Encode chunks (FORMAT 6.3) in split mode, one behind the other in `out`: each plane constant, raw, or of one of the `codecs`.

        What is least by its statistics is taken. Stops behind a chunk that zstd may make smaller: more than 1/repeat_share of a plane's sampled words
        repeat, or of the elements', or the chunk is not smaller than its elements; with a share of 0, behind each. `out` has
        `format.record.chunk_bound` for each.
        """

    def decode_chunks(
        self, layout: Layout, data: Buffer, offsets: NDArray[np.int64], crcs: Words, first: int, chunk_elems: int, n_elems: int,
        first_number: int, out: Bytes,
    ) -> int:  # fmt: skip
        """Decode chunks `first` and on of a run of `len(crcs)` that hold `n_elems`, and check their CRCs.

        Chunk i stands at `offsets[i] - offsets[0]` of `data` (`offsets` has one more, the end), goes to `out` from element `chunk_elems * i`, and has the
        number `first_number + i`. Returns the first that is the caller's to take apart, because it has zstd streams or a
        mode other than split and whole, or `len(crcs)`. Errors name the chunk.
        """

    def multiply_chunks(
        self, layout: Layout, data: Buffer, offsets: NDArray[np.int64], crcs: Words, first: int, chunk_elems: int, n_elems: int,
        first_number: int, product: Product,
    ) -> int:  # fmt: skip
        """Multiply with chunks as `decode_chunks` decodes them; the run begins with element `first_number * chunk_elems` of the matrix.

        Sums are of single precision, in an order of the backend's own. Of a chunk that is the caller's, nothing has been added.
        """

    def multiply(self, elems: Bytes, elem: int, product: Product) -> None:
        """Multiply with decoded elements, (n_bytes,) uint8, the first of which is number `elem` of the matrix."""

    def decode_streams(self, layout: Layout, mode: int, streams: Sequence[Stream], n_elems: int, chunk_number: int, out: Bytes) -> int:
        """Decode streams, none of them zstd, into `out`; return the CRC-32C of `u32 chunk_number || out`."""

    def decode_difference(
        self, layout: Layout, shift: int, frequent: Words, streams: Sequence[Stream], base: Bytes, n_elems: int, chunk_number: int, out: Bytes
    ) -> int:
        """Decode rates, classes and extras, none of them zstd, onto `base` (n_elems * elem_bytes,) into `out`; return the CRC as `decode_streams` does.

        `frequent`, at most 64 uint32, are the differences that are classes of their own.
        """

    def difference_planes(self, layout: Layout, shift: int, elems: Bytes, base: Bytes) -> tuple[Bytes, Bytes]:
        """Return the exponents of the base (n_elems,), and of each block 0 if it equals its base, else the size of its differences.

        That is 1 + floor(log2) of their sum, each weighted by its base's exponent. Both uint8.
        """

    def modular_differences(self, layout: Layout, shift: int, elems: Bytes, base: Bytes) -> Words:
        """Return the differences (n_elems,) modulo 2^(word bits - shift) (FORMAT 14.2): what `frequent` is chosen from."""

    def difference_code(self, layout: Layout, shift: int, elems: Bytes, base: Bytes, rates: Bytes, base_exponent: int, frequent: Words) -> DifferenceCode:
        """Code the blocks whose rate (n_blocks,) is not 0 (FORMAT section 14)."""

    def conditional_books(self, counts: Words, base_exponent: int) -> ConditionalBooks:
        """Choose codebooks of FORMAT 8.8 for counts[cell, class], (256, 128) uint32, of which at least one is not 0 and those of cells of rate 0 are."""

    def conditional_encode(self, books: ConditionalBooks, cells: Bytes, symbols: Bytes) -> Bytes:
        """Return the stream of FORMAT 8.8."""

    def scaled_base(self, layout: Layout, scales: Bytes, cols: int, phase: int, signs: Bytes, n_elems: int) -> Bytes:
        """Return the base that scales and signs make (FORMAT 14.5), (n_elems * elem_bytes,) uint8.

        `scales` are little-endian i16, of the rows that the elements touch, then of `cols` columns.
        """

    def scales_gain(self, upper: NDArray[np.uint16]) -> int:
        """Say how much scales of rows and columns tell of a sample, in sixteenths of a bit a value.

        That is the entropy of eighths of an octave, less that of what the scales leave. `upper` is (n_rows, n_cols) uint16, at most 4096 values: the 15 bits
        behind the elements' signs, of which zeros are left out.
        """

    def quantised_fit(self, layout: Layout, elems: Bytes, tiling: Tiling, grid: Grid) -> FittedTiles:
        """Find each tile's scale: the simplest that makes every element of it, exactly, from a value of the grid (FORMAT section 18)."""

    def quantised_decode(
        self, layout: Layout, values: Bytes, scales: Bytes, tiling: Tiling, codes: Bytes, verbatim: Buffer, chunk_number: int, out: Bytes
    ) -> int:
        """Multiply values and scales (FORMAT section 18) into `out`; return the CRC as `decode_streams` does.

        `values` are the bytes of float32s, `scales` (4 * n_tiles,) the byte planes of the tiles', the highest first, `codes` (n_elems,) the numbers of values,
        `verbatim` the elements of tiles without a scale.
        """

    def equal(self, one: Bytes, other: Bytes) -> bool:
        """Are two buffers, (n,) uint8, the same?"""

    def sample_repeats(self, data: Bytes) -> int:
        """Count the 8-byte words of a sample that equal an earlier one: the cue to try zstd.

        The sample is two runs of up to 8 KiB, from the begin and from the middle (rounded down to 8), each counted for itself; tails of under 8 bytes are
        ignored. Up to 4096 bytes are looked at as a whole, wherever what repeats stands: each longest match of 6 bytes and more counts for all but 5 of
        them, and eight such bytes for a word.
        """
