# SPDX-License-Identifier: Apache-2.0
"""The kernels in numpy: every backend's bytes, some ten MB/s, no compiler needed. Section numbers are those of docs/FORMAT.md.

rANS runs over all 128 lanes of a group at once, Huffman bitstream by bitstream, planes over whole chunks. Checks stand in the order of the
native core's, so that damage gives the same exception on every backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from weightpack.errors import ChecksumError, CorruptionError, TruncatedError, UnsupportedError, WeightpackError, located
from weightpack.format.constants import CODEC_NAMES, MAX_CHUNK_BLOCKS, MAX_CHUNK_BYTES, Codec, Mode
from weightpack.format.layouts import LAYOUTS, Layout, LayoutId
from weightpack.format.record import CHUNK_HEAD_BYTES, build_chunk, parse_chunk
from weightpack.kernels import ConditionalBooks, DifferenceCode, EncodedChunks, EncodedPlane, RansBook, SplitChunk, SplitPlanes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.kernels import Attention, Bytes, Stream, Words

LANES = 128  # also the elements of a block
MAX_CODE_BITS = 12
_SEGMENT_BYTES = 1 << 14
_SAMPLE_BYTES = 1 << 13


def u8(data: Stream) -> Bytes:
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


def expect(ok: bool, what: str) -> None:
    """Refuse what only a caller inside weightpack can get wrong: the native core refuses it too, and wrong bytes would be worse."""
    if not ok:
        raise WeightpackError(f"{what}: this is a bug in weightpack")


def need(ok: bool, what: str, error: type[CorruptionError | TruncatedError] = CorruptionError) -> None:
    if not ok:
        raise error(f"{what} {'ends early' if error is TruncatedError else 'contradicts the format'}: the file is damaged")


class PortableKernels:
    """See `weightpack.kernels.Kernels` for what the methods do."""

    name = "numpy"

    def crc32c(self, data: Bytes | bytes, crc: int = 0) -> int:
        return _crc32c(u8(data), crc)

    def histogram(self, symbols: Bytes) -> NDArray[np.uint32]:
        return np.bincount(u8(symbols), minlength=256).astype(np.uint32)

    def split(self, layout: Layout, elems: Bytes) -> SplitPlanes:
        return _split(layout, u8(elems))

    def rans_choose(self, counts: NDArray[np.uint32]) -> tuple[RansBook, int]:
        return _rans_choose([int(c) for c in counts])

    def rans_encode(self, book: RansBook, symbols: Bytes) -> Bytes:
        return _rans_encode(book, u8(symbols))

    def huffman_encode(self, lengths: bytes, symbols: Bytes) -> Bytes:
        return _huffman_encode(lengths, u8(symbols))

    def encode_chunks(
        self, layout: Layout, elems: Bytes, chunk_elems: int, first_number: int, most_tables: int, attention: Attention, out: Bytes
    ) -> EncodedChunks:
        """Encode one chunk, and say that it deserves attention: here nothing is gained by more at once."""
        elems = u8(elems)[: chunk_elems * layout.elem_bytes]
        split = _split(layout, elems)
        planes = [*split.symbols, *([split.widths, split.bits] if layout.raw_bits else [])]
        streams, facts, begin, plane_begin = [], [], CHUNK_HEAD_BYTES + 4 * len(planes), 0
        for i, plane in enumerate(planes):
            if layout.raw_bits and i + 1 == len(planes):
                coded = Codec.RAW, plane, plane.size, 0  # 7.5
            else:
                coded = _encode_plane(plane, most_tables, planes[i + 1] if layout.has_context(i) else None)
            codec, stream, rans_bytes, escapes = coded
            repeats = 0 if codec == Codec.CONSTANT else self.sample_repeats(plane)
            facts.append(EncodedPlane(codec, begin, stream.size, plane_begin, plane.size, rans_bytes, escapes, repeats))
            streams.append((codec, stream))
            begin, plane_begin = begin + stream.size, plane_begin + plane.size
        chunk = build_chunk(Mode.SPLIT, streams)
        expect(out.size >= len(chunk), "the output is too small")
        out[: len(chunk)] = u8(chunk)
        return EncodedChunks([len(chunk)], [chunk_crc(elems, first_number)], SplitChunk(self.sample_repeats(elems), facts, np.concatenate(planes)))

    def decode_chunks(
        self, layout: Layout, data: Stream, offsets: NDArray[np.int64], crcs: NDArray[np.uint32], first: int, chunk_elems: int, n_elems: int,
        first_number: int, out: Bytes,
    ) -> int:  # fmt: skip
        view, begins = memoryview(data).cast("B"), (offsets - offsets[0]).tolist()
        expect(len(begins) == len(crcs) + 1 and 0 < n_elems <= chunk_elems * len(crcs) and begins[-1] <= len(view), "chunks")
        for i in range(first, len(crcs)):
            with located(chunk=first_number + i):
                if begins[i + 1] - begins[i] >= CHUNK_HEAD_BYTES and view[begins[i]] in (Mode.FIELDS, Mode.DIFFERENCE, Mode.SCALED):
                    return i  # the caller's, good or bad
                parsed = parse_chunk(view[begins[i] : begins[i + 1]], layout)
                if any(codec == Codec.ZSTD for codec, _ in parsed.streams):
                    return i
                n = min(chunk_elems, n_elems - i * chunk_elems)
                part = out[i * chunk_elems * layout.elem_bytes :]
                if self.decode_streams(layout, parsed.mode, parsed.streams, n, first_number + i, part) != int(crcs[i]):
                    raise ChecksumError("the decoded bytes do not match their checksum: the file is damaged")
        return len(crcs)

    def decode_streams(self, layout: Layout, mode: int, streams: Sequence[tuple[int, Stream]], n_elems: int, chunk_number: int, out: Bytes) -> int:
        if mode not in (Mode.SPLIT, Mode.WHOLE):
            raise UnsupportedError(f"unknown chunk mode {mode}: upgrade weightpack")
        need(len(streams) == (layout.n_streams if mode == Mode.SPLIT else 1), "the chunk's count of streams")
        n_bytes = n_elems * layout.elem_bytes
        need(0 < n_bytes <= MAX_CHUNK_BYTES and n_elems <= MAX_CHUNK_BLOCKS * LANES, "the chunk's size")
        if mode == Mode.WHOLE:  # 6.4: what BYTES1 would be
            layout, n_elems = LAYOUTS[LayoutId.BYTES1], n_bytes
        _merge(layout, [(codec, u8(stream)) for codec, stream in streams], n_elems, out[:n_bytes])
        return chunk_crc(out[:n_bytes], chunk_number)

    def decode_difference(
        self, layout: Layout, shift: int, frequent: Words, streams: Sequence[tuple[int, Stream]], base: Bytes, n_elems: int, chunk_number: int,
        out: Bytes,
    ) -> int:
        from weightpack.kernels import numpy_differences as in_numpy  # which builds on this module

        return in_numpy.decode_difference(layout, shift, frequent, streams, base, n_elems, chunk_number, out)

    def difference_planes(self, layout: Layout, shift: int, elems: Bytes, base: Bytes) -> tuple[Bytes, Bytes]:
        from weightpack.kernels import numpy_differences as in_numpy

        return in_numpy.difference_planes(layout, shift, elems, base)

    def difference_code(self, layout: Layout, shift: int, elems: Bytes, base: Bytes, rates: Bytes, base_exponent: int, frequent: Words) -> DifferenceCode:
        from weightpack.kernels import numpy_differences as in_numpy

        return in_numpy.difference_code(layout, shift, elems, base, rates, base_exponent, frequent)

    def conditional_encode(self, books: ConditionalBooks, cells: Bytes, symbols: Bytes) -> Bytes:
        from weightpack.kernels import numpy_differences as in_numpy

        return in_numpy.conditional_encode(books, cells, symbols)

    def scaled_base(self, layout: Layout, scales: Bytes, cols: int, phase: int, signs: Bytes, n_elems: int) -> Bytes:
        from weightpack.kernels import numpy_differences as in_numpy

        return in_numpy.scaled_base(layout, scales, cols, phase, signs, n_elems)

    def sample_repeats(self, data: Bytes) -> int:
        middle = len(data) // 2 & ~7
        return sum(_count_repeats(data[begin : begin + _SAMPLE_BYTES]) for begin in (0, middle))


def _count_repeats(data: Bytes) -> int:
    words = np.frombuffer(data, "<u8", len(data) // 8)
    return int(words.size - np.unique(words).size)


def chunk_crc(elems: Bytes, chunk_number: int) -> int:
    return _crc32c(elems, _crc32c(u8(chunk_number.to_bytes(4, "little")), 0))


def _encode_plane(plane: Bytes, most_tables: int, next_plane: Bytes | None) -> tuple[Codec, Bytes, int, int]:
    """Return the smallest of constant, rans (or context, if there is a next plane) and raw: codec, stream, its estimated bytes, symbols it has no code for."""
    n = plane.size
    if (plane == plane[0]).all():
        return Codec.CONSTANT, plane[:1], n, 0
    if not most_tables:
        return Codec.RAW, plane, n, 0
    if next_plane is not None:
        stream = _context_encode(next_plane, plane)
        return (Codec.CONTEXT, stream, stream.size, 0) if stream.size < n else (Codec.RAW, plane, n, 0)
    counts = np.bincount(plane, minlength=256)
    book, rans_bytes = _rans_choose(counts.tolist())
    escapes = n - int(counts[list(book.symbols)].sum())
    several = _choose_tables(plane, counts, most_tables) if most_tables > 1 else None
    if several is not None and several.cost_bytes < rans_bytes:
        rans_bytes, escapes = several.cost_bytes, several.escapes
    else:
        several = None
    if rans_bytes < n:
        stream = _rans_encode(book, plane) if several is None else _tables_encode(several, plane)
        if stream.size < n:
            return Codec.RANS if several is None else Codec.TABLES, stream, rans_bytes, escapes
    return Codec.RAW, plane, rans_bytes, escapes


# ---- CRC-32C (1.7). The CRC is linear: columns of a matrix go in step, each from its own start; then neighbours are joined in pairs.

_CRC_COLUMNS = 4096  # a power of two, as are the rows: few operators to keep


@cache
def _crc_table() -> NDArray[np.uint32]:
    table: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> np.uint32(1) ^ (table & np.uint32(1)) * np.uint32(0x82F63B78)
    return table


@cache
def _zeros_operator(log2_bytes: int) -> NDArray[np.uint32]:
    """Return what 2^log2_bytes zero bytes make of a register's byte i of value v, at [i, v]."""
    if log2_bytes == 0:
        registers = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
        operator: NDArray[np.uint32] = registers >> 8 ^ _crc_table()[registers & 255]
        return operator
    half = _zeros_operator(log2_bytes - 1)
    return _apply(half, half)


def _apply(operator: NDArray[np.uint32], registers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    moved: NDArray[np.uint32] = operator[0][registers & 255]
    for i in (1, 2, 3):
        moved ^= operator[i][registers >> 8 * i & 255]
    return moved


def _crc32c(data: Bytes, crc: int) -> int:
    table, register = _crc_table(), crc ^ 0xFFFFFFFF
    while data.size >= 4 * _CRC_COLUMNS:
        log2_rows = (data.size // _CRC_COLUMNS).bit_length() - 1
        n_bytes = _CRC_COLUMNS << log2_rows
        columns = np.zeros(_CRC_COLUMNS, np.uint32)
        columns[0] = register
        for row in data[:n_bytes].reshape(_CRC_COLUMNS, -1).T.copy():
            columns = columns >> 8 ^ table[(columns ^ row) & 255]
        while columns.size > 1:  # the left one, moved over as many bytes as the right one has read
            columns = _apply(_zeros_operator(log2_rows), columns[::2]) ^ columns[1::2]
            log2_rows += 1
        register, data = int(columns[0]), data[n_bytes:]
    plain = table.tolist()
    for byte in data.tolist():
        register = register >> 8 ^ plain[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF


# ---- planes (section 7). Words are as wide as elements, not wider: a chunk's temporaries stay a few times its size.


def _split(layout: Layout, data: Bytes) -> SplitPlanes:
    n, r, mantissa = data.size // layout.elem_bytes, layout.raw_bits, layout.mantissa_bits
    if mantissa is None:
        return SplitPlanes(np.ascontiguousarray(data.reshape(n, layout.elem_bytes).T), np.empty(0, np.uint8), np.empty(0, np.uint8))
    elems = data.view(f"<u{layout.elem_bytes}")
    symbols, shift = [], mantissa
    for width in layout.plane_bits:
        symbols.append((elems >> shift & (1 << width) - 1).astype(np.uint8))
        shift += width
    raw = np.zeros((-(-n // LANES), LANES), elems.dtype)
    raw.reshape(-1)[:n] = elems >> shift << mantissa | elems & (1 << mantissa) - 1
    union = np.bitwise_or.reduce(raw, axis=1)
    # 7.3: the least width is r less the union's trailing zeros, which is how many of its r non-empty low parts are not 0.
    widths: Bytes = np.stack([union & (2 << k) - 1 != 0 for k in range(r)]).sum(axis=0, dtype=np.uint8)
    begins = _begins(widths, n)
    bits = np.empty(begins[-1], np.uint8)
    for w, m, blocks in _groups(widths, n):
        coded = _block_bytes(raw[blocks, :m] >> (r - w), w)
        sliding_window_view(bits, coded.shape[1], writeable=True)[begins[blocks]] = coded
    return SplitPlanes(np.stack(symbols), widths, bits)


def _begins(widths: Bytes, n: int) -> NDArray[np.int64]:
    """Return where each block's bits begin (7.4), and where the last one's end."""
    sizes = 16 * widths.astype(np.int64)
    if n % LANES:
        sizes[-1] = _block_size(int(widths[-1]), n % LANES)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _block_size(w: int, m: int) -> int:
    return w // 8 * m + w % 8 * ((m + 7) // 8)


def _groups(widths: Bytes, n: int) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
    """Yield (width, elements of a block, blocks): those that are coded alike go together."""
    full = widths[: n // LANES]
    for w in np.unique(full).tolist():
        yield w, LANES, np.flatnonzero(full == w)
    if n % LANES:
        yield int(widths[-1]), n % LANES, np.array([n // LANES])


def _block_bytes(v: NDArray[Any], w: int) -> Bytes:
    """Code blocks (7.4), one a row of values."""
    planes: list[Bytes] = [(v >> (w - 8 * (k + 1))).astype(np.uint8) for k in range(w // 8)]
    low = v.astype(np.uint8)
    planes += [np.packbits(low >> k & 1, axis=1, bitorder="little") for k in reversed(range(w % 8))]
    return np.concatenate(planes, axis=1) if planes else np.empty((len(v), 0), np.uint8)


def _block_values(data: Bytes, w: int, m: int, v: NDArray[Any]) -> None:
    """Decode blocks (7.4), one a row, into `v`, which is zero."""
    for k in range(w // 8):
        v <<= 8
        v |= data[:, k * m : (k + 1) * m]
    begin, size = w // 8 * m, (m + 7) // 8
    for k in range(w % 8):
        plane = np.unpackbits(data[:, begin + k * size : begin + (k + 1) * size], axis=1, bitorder="little")
        need(not plane[:, m:].any(), "the unused bits of a bit plane")
        v <<= 1
        v |= plane[:, :m]


def _merge(layout: Layout, streams: list[tuple[int, Bytes]], n: int, out: Bytes) -> None:
    r, mantissa, word = layout.raw_bits, layout.mantissa_bits, np.dtype(f"<u{layout.elem_bytes}")
    if mantissa is not None:
        codec, bits = streams[-1]
        if codec != Codec.RAW:  # 7.5
            raise (CorruptionError if codec in CODEC_NAMES else UnsupportedError)(f"the bits have codec {codec}")
        widths = decode_plane(*streams[-2], -(-n // LANES), 8)
        need(int(widths.max()) <= r, "a block's width")  # 7.3
        begins = _begins(widths, n)
        need(bits.size >= int(begins[-1]), "the bits stream", TruncatedError)
        need(bits.size == int(begins[-1]), "the bits stream's length")
    planes: list[Bytes] = []
    for i in reversed(range(len(layout.plane_bits))):  # the last one first: it may be another's context
        planes.insert(0, decode_plane(*streams[i], n, layout.plane_bits[i], planes[0] if layout.has_context(i) else None))
    if mantissa is None:
        for i, plane in enumerate(planes):
            out.reshape(n, -1)[:, i] = plane
        return
    raw = np.zeros((widths.size, LANES), word)
    for w, m, blocks in _groups(widths, n):
        values = np.zeros((blocks.size, m), word)
        _block_values(sliding_window_view(bits, _block_size(w, m))[begins[blocks]], w, m, values)
        raw[blocks, :m] = values << (r - w)
    flat = raw.reshape(-1)[:n]
    elems, shift = flat & (1 << mantissa) - 1, mantissa
    for plane, width in zip(planes, layout.plane_bits, strict=True):
        elems |= plane.astype(word) << shift
        shift += width
    elems |= flat >> mantissa << shift
    out[:] = elems.astype(word, copy=False).view(np.uint8)


# ---- codecs (section 8)


def decode_plane(codec: int, stream: Bytes, n: int, plane_bits: int, next_plane: Bytes | None = None) -> Bytes:
    """Decode n symbols that MUST fit `plane_bits` (7.2). As in the native core, symbols of a codebook must fit whether they occur or not."""
    if codec == Codec.CONTEXT:
        need(next_plane is not None, "a codec that needs a context")
        assert next_plane is not None
        return _context_decode(stream, next_plane)
    if codec == Codec.RANS:
        return _rans_decode(stream, n, plane_bits)
    if codec == Codec.TABLES:
        return _tables_decode(stream, n, plane_bits)
    if codec == Codec.HUFFMAN:
        return _huffman_decode(stream, n, plane_bits)
    if codec not in (Codec.RAW, Codec.CONSTANT):
        need(codec != Codec.CONDITIONAL, "a codec that is for differences only")
        expect(codec != Codec.ZSTD, "a zstd stream that was not expanded")
        raise UnsupportedError(f"unknown codec {codec}: upgrade weightpack")
    n_bytes = n if codec == Codec.RAW else 1
    need(stream.size >= n_bytes, "a raw or constant stream", TruncatedError)
    need(stream.size == n_bytes and int(stream.max()) >> plane_bits == 0, "a raw or constant stream")
    return stream if codec == Codec.RAW else np.full(n, stream[0], np.uint8)


# rANS (8.3)


def log2_bits(v: int, n: int) -> int:
    """Return the upper n bits behind the point of log2(v), and those before it, by repeated squaring of v in 32 bits."""
    whole = v.bit_length() - 1
    x, bits = v << (31 - whole), whole
    for _ in range(n):
        x = x * x >> 31
        carry = x >> 32
        bits, x = bits << 1 | carry, x >> carry
    return bits


@cache
def _log2_table() -> tuple[int, ...]:
    """round(2^16 * log2(v)) for v = 0..256 in integers, as in native/src/rans.c: the same on every machine."""
    return (0, *((log2_bits(v, 17) + 1) >> 1 for v in range(1, 257)))


def _share(counts: list[int], total: int) -> tuple[list[int], int]:
    """Share 256 among counts, each at least 1 and at most 255, close to the least cost; return also the cost in bits * 2^16."""
    log2 = _log2_table()
    freqs = [min(255, max(1, (c << 8) // total)) for c in counts]
    while sum(freqs) < 256:  # give where it gains most; ties go to the lower rank
        best = max((i for i, f in enumerate(freqs) if f < 255), key=lambda i: (counts[i] * (log2[freqs[i] + 1] - log2[freqs[i]]), -i))
        freqs[best] += 1
    while sum(freqs) > 256:  # take from where it costs least
        best = min((i for i, f in enumerate(freqs) if f > 1), key=lambda i: (counts[i] * (log2[freqs[i]] - log2[freqs[i] - 1]), i))
        freqs[best] -= 1
    return freqs, sum(c * ((8 << 16) - log2[f]) for c, f in zip(counts, freqs, strict=True))


def _rans_choose(counts: list[int]) -> tuple[RansBook, int]:
    present = sorted((s for s in range(256) if counts[s]), key=lambda s: (-counts[s], s))
    expect(len(present) >= 2, "a rANS codebook for fewer than two symbols")
    total, best = sum(counts), (1 << 64, RansBook(b"", b"", 0))
    for k in range(1, min(16, len(present)) + 1):
        coded = [counts[s] for s in present[:k]]
        escaped = total - sum(coded)
        if escaped and k == 16:
            break
        freqs, cost = _share([*coded, escaped] if escaped else coded, total)
        cost += (escaped * 8 + 16 * k) << 16
        if cost < best[0]:
            best = cost, RansBook(bytes(present[:k]), bytes(freqs[:k]), freqs[k] if escaped else 0)
    return best[1], (best[0] >> 19) + 1 + 2 * LANES + 6


def is_book(book: RansBook) -> bool:
    """Is a codebook as 8.3.1 has it?"""
    return 1 <= len(book.symbols) <= (15 if book.escape_freq else 16) and _is_book(book.symbols, book.freqs, book.escape_freq)


def _is_book(symbols: bytes, freqs: bytes, escape: int) -> bool:
    return len(set(symbols)) == len(symbols) == len(freqs) and 0 not in freqs and sum(freqs) + escape == 256


def _rans_encode(book: RansBook, symbols: Bytes) -> Bytes:
    expect(is_book(book), "a wrong rANS codebook")
    expect(bool(book.escape_freq) or bool(np.isin(symbols, list(book.symbols)).all()), "a symbol that the rANS codebook lacks")
    return np.concatenate([book_bytes(book), encode_symbols([book], np.zeros(symbols.size, np.intp), symbols)])


def book_bytes(book: RansBook) -> Bytes:
    return u8(bytes((len(book.symbols), book.escape_freq)) + book.symbols + book.freqs)


def encode_symbols(books: Sequence[RansBook], which: NDArray[np.intp], symbols: Bytes) -> Bytes:
    """Return states, renormalisation bytes and literals (8.3); symbol i is coded with the book number which[i]."""
    rank_of, freqs, starts = np.empty((len(books), 256), np.uint8), np.zeros((len(books), 17), np.uint32), np.zeros((len(books), 17), np.uint32)
    escapes = np.array([len(book.symbols) for book in books], np.uint8)
    for i, book in enumerate(books):
        k = len(book.symbols)
        rank_of[i] = k
        rank_of[i, list(book.symbols)] = np.arange(k)
        freqs[i, : k + 1] = [*book.freqs, book.escape_freq]
        starts[i, 1 : k + 1] = np.cumsum(freqs[i, :k])
    rank = rank_of[which, symbols]
    freq, start = freqs[which, rank], starts[which, rank]
    literals = symbols[rank == escapes[which]]
    x = np.full(LANES, 256, np.uint32)
    emitted = [np.empty(0, np.uint8)]
    for begin in reversed(range(0, symbols.size, LANES)):
        f = freq[begin : begin + LANES]
        state = x[: f.size]
        over = state >= f << 8
        emitted.append(state[over].astype(np.uint8))  # lanes in reading order; the groups are reversed below
        state = np.where(over, state >> 8, state)
        x[: f.size] = (state // f << 8) + state % f + start[begin : begin + LANES]
    renorm = np.concatenate(emitted[::-1])
    return np.concatenate([u8(x.astype("<u2").tobytes() + renorm.size.to_bytes(4, "little")), renorm, literals])


class _Slots(NamedTuple):
    """A codebook as a decoder needs it: by slot rank, frequency and slot - start; symbols by rank, and the escape's rank."""

    rank: Bytes
    freq: NDArray[np.uint32]
    bias: NDArray[np.uint32]
    symbols: Bytes
    has_escape: bool


def read_book(stream: Bytes, at: int, plane_bits: int) -> tuple[_Slots, int]:
    """Parse the codebook at `at`; return it and its end."""
    need(stream.size >= at + 2, "a rANS stream", TruncatedError)
    k, escape = int(stream[at]), int(stream[at + 1])
    need(1 <= k <= (15 if escape else 16), "a rANS codebook's size")
    end = at + 2 + 2 * k
    need(stream.size >= end, "a rANS stream", TruncatedError)
    values, freqs = stream[at + 2 : at + 2 + k], stream[at + 2 + k : end].tobytes()
    need(_is_book(values.tobytes(), freqs, escape) and int(values.max()) >> plane_bits == 0, "a rANS codebook")
    freq = np.array([*freqs, escape], np.uint32)
    rank = np.repeat(np.arange(k + 1, dtype=np.uint8), freq)
    bias = np.arange(256, dtype=np.uint32) - (np.cumsum(freq, dtype=np.uint32) - freq)[rank]
    return _Slots(rank, freq[rank], bias, np.append(values, np.uint8(0)), bool(escape)), end


def _rans_decode(stream: Bytes, n: int, plane_bits: int) -> Bytes:
    book, at = read_book(stream, 0, plane_bits)
    return _decode_symbols([book], np.zeros(-(-n // LANES), np.intp), stream[at:], n, plane_bits)


def _decode_symbols(books: Sequence[_Slots], which: NDArray[np.intp], stream: Bytes, n: int, plane_bits: int) -> Bytes:
    """Decode what `encode_symbols` gives; group g has the book number which[g]."""
    head = 2 * LANES + 4
    need(stream.size >= head, "a rANS stream", TruncatedError)
    x = stream[: 2 * LANES].view("<u2").astype(np.uint32)
    need(int(x.min()) >= 256, "a rANS state")
    n_renorm = int.from_bytes(stream[2 * LANES : head].tobytes(), "little")
    need(n_renorm <= stream.size - head, "a rANS stream", TruncatedError)
    renorm, literals = stream[head : head + n_renorm], stream[head + n_renorm :]
    has_escape = any(book.has_escape for book in books)
    need((has_escape or not literals.size) and int(literals.max(initial=0)) >> plane_bits == 0, "rANS literals")
    symbols, is_escape, position = np.empty(n, np.uint8), np.empty(n, bool), 0
    for group, begin in enumerate(range(0, n, LANES)):
        book, m = books[which[group]], min(LANES, n - begin)
        slot = x[:m] & 255
        rank = book.rank[slot]
        symbols[begin : begin + m] = book.symbols[rank]
        is_escape[begin : begin + m] = rank == book.symbols.size - 1
        state = book.freq[slot] * (x[:m] >> 8) + book.bias[slot]
        low = np.flatnonzero(state < 256)
        need(position + low.size <= n_renorm, "a rANS stream", TruncatedError)
        state[low] = state[low] << 8 | renorm[position : position + low.size]
        position += low.size
        x[:m] = state
    escaped = np.flatnonzero(is_escape)
    need(escaped.size <= literals.size, "a rANS stream", TruncatedError)
    need(escaped.size == literals.size and position == n_renorm and bool((x == 256).all()), "a rANS stream's end")
    symbols[escaped] = literals
    return symbols


# rANS with several codebooks (8.7). What native/src/tables.c does, in the same integers.

_RUN_GROUPS = 2
_OTHERS = 15  # the class of all symbols but the 15 commonest
_ROUNDS, _BINS = 3, 256


class _Tables(NamedTuple):
    """Codebooks, the number of each run's, and what the stream is estimated to take."""

    books: list[RansBook]
    ids: NDArray[np.intp]
    cost_bytes: int
    escapes: int


def _id_bits(n_books: int) -> int:
    return 1 if n_books <= 2 else 2 if n_books <= 4 else 4


def _choose_tables(plane: Bytes, counts: NDArray[Any], most: int) -> _Tables | None:
    n = plane.size
    n_ids = min(most, 1 if n < 1 << 14 else 2 if n < 1 << 17 else 4)
    if n_ids < 2:
        return None
    commonest = sorted(np.argsort(-counts.astype(np.int64), kind="stable")[:_OTHERS].tolist())
    class_of = np.full(256, _OTHERS)
    class_of[[s for s in commonest if counts[s]]] = np.arange(np.count_nonzero(counts[commonest]))
    run = np.arange(n) // (_RUN_GROUPS * LANES)
    n_runs = int(run[-1]) + 1
    histograms = np.bincount(run * 16 + class_of[plane], minlength=16 * n_runs).reshape(n_runs, 16)
    means = histograms[:, :_OTHERS] @ np.arange(_OTHERS)
    low, high = int(means.min()), int(means.max())
    if low == high:
        return None
    bins = (means - low) * (_BINS - 1) // (high - low)
    in_bin = np.bincount(bins, minlength=_BINS)
    ids = ((np.cumsum(in_bin) - in_bin + in_bin // 2) * n_ids // (n_runs + 1))[bins]
    log2 = np.array(_log2_table())
    for _ in range(_ROUNDS):
        sums = np.zeros((n_ids, 16), np.int64)
        np.add.at(sums, ids, histograms)
        totals = sums.sum(axis=1, keepdims=True)
        costs = (8 << 16) - log2[np.clip(sums * 256 // np.maximum(totals, 1), 1, 255)] >> 4
        costs[totals[:, 0] == 0] = 1 << 20
        costs[:, _OTHERS] += 8 << 12
        before, ids = ids, (histograms @ costs.T).argmin(axis=1)
        if (before == ids).all():
            break
    books: list[RansBook] = []
    numbers, escapes = np.zeros(n_ids, np.intp), 0
    cost_bytes = 2 * LANES + 4 + 2
    for i in range(n_ids):
        exact = np.bincount(plane[ids[run] == i], minlength=256)
        present = np.flatnonzero(exact)
        if not present.size:
            continue
        if present.size == 1:
            book, cost = RansBook(bytes(present.tolist()), b"\xff", 1), 4 + int(exact[present[0]]) // 1024
        else:
            book, cost = _rans_choose(exact.tolist())
            cost -= 2 * LANES + 4
        escapes += int(exact.sum() - exact[list(book.symbols)].sum())
        numbers[i] = len(books)
        books.append(book)
        cost_bytes += cost
    if len(books) < 2:
        return None
    return _Tables(books, numbers[ids], cost_bytes + (n_runs * _id_bits(len(books)) + 7) // 8, escapes)


def _tables_encode(tables: _Tables, plane: Bytes) -> Bytes:
    books, width = tables.books, _id_bits(len(tables.books))
    ids = np.packbits((tables.ids[:, None] >> np.arange(width) & 1).astype(np.uint8).reshape(-1), bitorder="little")
    which = np.repeat(tables.ids, _RUN_GROUPS * LANES)[: plane.size]
    head = u8(bytes((len(books) - 1, _RUN_GROUPS)))
    return np.concatenate([head, *map(book_bytes, books), ids, encode_symbols(books, which, plane)])


def _tables_decode(stream: Bytes, n: int, plane_bits: int) -> Bytes:
    need(stream.size >= 2, "a rANS stream", TruncatedError)
    n_books, run_groups = int(stream[0]) + 1, int(stream[1])
    need(2 <= n_books <= 16 and run_groups > 0, "the count of codebooks")
    books, at = [], 2
    for _ in range(n_books):
        book, at = read_book(stream, at, plane_bits)
        books.append(book)
    n_runs, width = -(-n // (LANES * run_groups)), _id_bits(n_books)
    id_bytes = (n_runs * width + 7) // 8
    need(stream.size >= at + id_bytes, "a rANS stream", TruncatedError)
    bits = np.unpackbits(stream[at : at + id_bytes], bitorder="little")
    ids = bits[: n_runs * width].reshape(n_runs, width) @ (1 << np.arange(width))
    need(int(ids.max()) < n_books and not bits[n_runs * width :].any(), "the ids of codebooks")
    return _decode_symbols(books, np.repeat(ids, run_groups)[: -(-n // LANES)], stream[at + id_bytes :], n, plane_bits)


# rANS in a context (8.6)


def contexts(next_plane: Bytes, base: int) -> Bytes:
    clamped: Bytes = np.clip(next_plane.astype(np.int16) - base, 0, 15).astype(np.uint8)
    return clamped


def fullest_window(counts: NDArray[Any]) -> int:
    """Return the first of the 16 consecutive symbols, of 256, that occur most; the lowest such."""
    return int(sliding_window_view(counts.astype(np.int64), 16).sum(axis=1).argmax())


def _context_encode(next_plane: Bytes, symbols: Bytes) -> Bytes:
    base = fullest_window(np.bincount(next_plane, minlength=256))
    counts = np.bincount(contexts(next_plane, base) * 4 + symbols, minlength=64).reshape(16, 4)
    freqs = np.array([_share(row, sum(row))[0] if any(row) else [64] * 4 for row in counts.tolist()], np.uint32)
    starts = np.cumsum(freqs, axis=1, dtype=np.uint32) - freqs
    index = contexts(next_plane, base).astype(np.intp) * 4 + symbols
    freq, start = freqs.reshape(-1)[index], starts.reshape(-1)[index]
    x, emitted = np.full(LANES, 256, np.uint32), [np.empty(0, np.uint8)]
    for begin in reversed(range(0, symbols.size, LANES)):
        f = freq[begin : begin + LANES]
        state = x[: f.size]
        over = state >= f << 8
        emitted.append(state[over].astype(np.uint8))
        state = np.where(over, state >> 8, state)
        x[: f.size] = (state // f << 8) + state % f + start[begin : begin + LANES]
    head = bytes([base]) + starts[:, 1:].astype(np.uint8).tobytes() + x.astype("<u2").tobytes()
    return np.concatenate([u8(head), *emitted[::-1]])


def _context_decode(stream: Bytes, next_plane: Bytes) -> Bytes:
    head = 1 + 3 * 16 + 2 * LANES
    need(stream.size >= head, "a stream in a context", TruncatedError)
    starts = np.zeros((16, 5), np.uint32)
    starts[:, 1:4], starts[:, 4] = stream[1:49].reshape(16, 3), 256
    need(bool((starts[:, 1:] > starts[:, :-1]).all()), "the frequencies of a context")
    x, renorm, position = stream[49:head].view("<u2").astype(np.uint32), stream[head:], 0
    need(int(x.min()) >= 256, "a rANS state")
    rows, symbols = starts[contexts(next_plane, int(stream[0]))], np.empty(next_plane.size, np.uint8)
    for begin in range(0, symbols.size, LANES):
        row = rows[begin : begin + LANES]
        lanes = np.arange(len(row))
        slot = x[: len(row)] & 255
        symbol = (slot[:, None] >= row[:, 1:4]).sum(axis=1)
        symbols[begin : begin + LANES] = symbol
        start, end = row[lanes, symbol], row[lanes, symbol + 1]
        state = (end - start) * (x[: len(row)] >> 8) + slot - start
        low = np.flatnonzero(state < 256)
        need(position + low.size <= renorm.size, "a stream in a context", TruncatedError)
        state[low] = state[low] << 8 | renorm[position : position + low.size]
        position += low.size
        x[: len(row)] = state
    need(position == renorm.size and bool((x == 256).all()), "the end of a stream in a context")
    return symbols


# Huffman (8.4)


def _codes(lengths: Sequence[int]) -> dict[int, int] | None:
    """Return the canonical code of each symbol, its first bit lowest, as in a bitstream; None if the code is not complete."""
    if max(lengths) > MAX_CODE_BITS or sum(1 << (MAX_CODE_BITS - n) for n in lengths if n) != 1 << MAX_CODE_BITS:
        return None
    codes, code, previous = {}, 0, 0
    for n, s in sorted((n, s) for s, n in enumerate(lengths) if n):
        code <<= n - previous
        codes[s] = int(f"{code:0{n}b}"[::-1], 2)
        code, previous = code + 1, n
    return codes


def _huffman_encode(lengths: bytes, symbols: Bytes) -> Bytes:
    codes = _codes(lengths)
    expect(codes is not None, "an incomplete Huffman code")
    present = sorted(codes or ())
    is_present = np.isin(np.arange(256), present)
    expect(bool(is_present[symbols].all()), "a symbol without a Huffman code")
    symbol_set = bytes(present) if len(present) < 32 else np.packbits(is_present, bitorder="little").tobytes()
    nibbles = [lengths[s] for s in present] + [0]
    packed = bytes(nibbles[i] | nibbles[i + 1] << 4 for i in range(0, len(present), 2))
    steps = np.arange(MAX_CODE_BITS)
    code_of = np.array([(codes or {}).get(s, 0) for s in range(256)])
    bits_of = (code_of[:, None] >> steps & 1).astype(np.uint8)
    is_bit = steps < np.frombuffer(lengths, np.uint8)[:, None]
    parts = [symbols[i::4] for i in range(4)]
    bitstreams = [np.packbits(bits_of[part][is_bit[part]], bitorder="little") for part in parts]
    sizes = b"".join(len(bitstream).to_bytes(3, "little") for bitstream in bitstreams[:3])
    return np.concatenate([u8(bytes([len(present) - 1]) + symbol_set + packed + sizes), *bitstreams])


def _huffman_decode(stream: Bytes, n: int, plane_bits: int) -> Bytes:
    need(stream.size >= 1, "a Huffman stream", TruncatedError)
    n_symbols = int(stream[0]) + 1
    need(n_symbols >= 2, "a Huffman code of one symbol")
    set_end = 1 + min(n_symbols, 32)
    head = set_end + (n_symbols + 1) // 2 + 9
    need(stream.size >= head, "a Huffman stream", TruncatedError)
    if n_symbols < 32:
        present = stream[1:set_end].tolist()
    else:
        present = np.flatnonzero(np.unpackbits(stream[1:33], bitorder="little")).tolist()
    nibbles = [nibble for byte in stream[set_end : head - 9].tolist() for nibble in (byte & 15, byte >> 4)]
    is_set = len(present) == n_symbols and present == sorted(set(present)) and present[-1] >> plane_bits == 0
    need(is_set and 0 not in nibbles[:n_symbols] and not any(nibbles[n_symbols:]), "a Huffman code's table")
    lengths = [0] * 256
    for s, length in zip(present, nibbles, strict=False):
        lengths[s] = length
    codes = _codes(lengths)
    need(codes is not None, "a Huffman code's lengths")
    symbol_of, length_of = np.zeros(1 << MAX_CODE_BITS, np.uint8), np.zeros(1 << MAX_CODE_BITS, np.uint8)
    for s, code in (codes or {}).items():
        symbol_of[code :: 1 << lengths[s]], length_of[code :: 1 << lengths[s]] = s, lengths[s]
    sizes = [int.from_bytes(stream[at : at + 3].tobytes(), "little") for at in (head - 9, head - 6, head - 3)]
    need(head + sum(sizes) <= stream.size, "a Huffman stream", TruncatedError)
    bitstreams = np.split(stream[head:], np.cumsum(sizes))
    symbols = np.empty(n, np.uint8)
    ends = [_huffman_bitstream(bitstream, symbols[i::4], symbol_of, length_of) for i, bitstream in enumerate(bitstreams)]
    need(all(ends), "a Huffman bitstream's end")  # only now: a bitstream that ends early comes first
    return symbols


def _huffman_bitstream(data: Bytes, out: Bytes, symbol_of: Bytes, length_of: Bytes) -> bool:
    """Decode a bitstream into `out`; return whether it is then used up.

    The 12 bits from every position on give symbol and length there; a chain of lengths from 0 picks those that count. That takes memory by
    the bit, so it goes in segments; and what no code can use is not looked at, so that a long stream of few symbols costs nothing.
    """
    if 8 * data.size - MAX_CODE_BITS * out.size >= 8:
        return False
    padded = np.append(data, np.zeros(2, np.uint8))
    done = at = 0  # symbols so far; bits from the segment's beginning
    for begin in range(0, data.size, _SEGMENT_BYTES):
        part = padded[begin : begin + _SEGMENT_BYTES + 2].astype(np.uint32)
        words = part[:-2] | part[1:-1] << 8 | part[2:] << 16
        windows = (words[:, None] >> np.arange(8, dtype=np.uint32) & 0xFFF).reshape(-1)
        steps, chain = length_of[windows].tobytes(), []
        for _ in range(done, out.size):
            if at >= len(steps):
                break
            chain.append(at)
            at += steps[at]
        out[done : done + len(chain)] = symbol_of[windows[chain]]
        done, at = done + len(chain), at - len(steps)
    need(done == out.size and at <= 0, "a Huffman bitstream", TruncatedError)
    return at > -8 and (at == 0 or int(data[-1]) >> (8 + at) == 0)
