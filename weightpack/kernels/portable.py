# SPDX-License-Identifier: Apache-2.0
"""The kernels in numpy: every backend's bytes, a few MB/s, no compiler needed. Sections are those of docs/FORMAT.md.

rANS runs over all 128 lanes of a group at once, Huffman over its four bitstreams, planes over whole chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from weightpack.dtypes import LAYOUTS, Layout, LayoutId
from weightpack.errors import ChecksumError, CorruptionError, TruncatedError, UnsupportedError
from weightpack.format.constants import MAX_CHUNK_BLOCKS, MAX_CHUNK_BYTES, Codec, Mode
from weightpack.format.record import parse_chunk
from weightpack.kernels import RansBook, SplitPlanes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.kernels import Bytes, Stream

LANES = 128
MAX_CODE_BITS = 12


def _u8(data: Stream) -> Bytes:
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


class PortableKernels:
    """See `weightpack.kernels.Kernels` for what the methods do."""

    name = "numpy"

    def crc32c(self, data: Bytes | bytes, crc: int = 0) -> int:
        return _crc32c(_u8(data), crc)

    def histogram(self, symbols: Bytes) -> NDArray[np.uint32]:
        return np.bincount(symbols, minlength=256).astype(np.uint32)

    def split(self, layout: Layout, elems: Bytes) -> SplitPlanes:
        return _split(layout, _u8(elems))

    def rans_choose(self, counts: NDArray[np.uint32]) -> tuple[RansBook, int]:
        return _rans_choose([int(c) for c in counts])

    def rans_encode(self, book: RansBook, symbols: Bytes) -> Bytes:
        return _rans_encode(book, symbols)

    def huffman_encode(self, lengths: bytes, symbols: Bytes) -> Bytes:
        return _huffman_encode(lengths, symbols)

    def decode_chunk(self, layout: Layout, chunk: Stream, n_elems: int, chunk_number: int, crc: int, out: Bytes) -> bool:
        parsed = parse_chunk(memoryview(chunk), layout)
        if any(codec == Codec.ZSTD for codec, _ in parsed.streams):
            return False
        if self.decode_streams(layout, parsed.mode, parsed.streams, n_elems, chunk_number, out) != crc:
            raise ChecksumError("the decoded bytes do not match their checksum: the file is damaged")
        return True

    def decode_streams(
        self, layout: Layout, mode: int, streams: Sequence[tuple[int, Stream]], n_elems: int, chunk_number: int, out: Bytes
    ) -> int:
        n_bytes = n_elems * layout.elem_bytes
        if not 0 < n_bytes <= MAX_CHUNK_BYTES or n_elems > MAX_CHUNK_BLOCKS * LANES:
            raise CorruptionError("the chunk's size is out of bounds")
        if mode == Mode.WHOLE:
            out[:n_bytes] = _decode_plane(streams[0][0], _u8(streams[0][1]), n_bytes, 8)
        else:
            _merge(layout, streams, n_elems, out[:n_bytes])
        return _crc32c(_u8(out[:n_bytes]), _crc32c(_u8(chunk_number.to_bytes(4, "little")), 0))

    def count_repeats(self, words: Bytes) -> int:
        values = np.frombuffer(words, "<u8", len(words) // 8)
        return int(values.size - np.unique(values).size)


# ---- CRC-32C (1.7): columns of a matrix in step, then columns joined in pairs

_POLYNOMIAL = 0x82F63B78
_CRC_COLUMNS = 4096  # a power of two


@cache
def _crc_table() -> NDArray[np.uint32]:
    table: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & np.uint32(1), np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


@cache
def _zeros_operator(n_bytes: int) -> tuple[int, ...]:
    """Return what `n_bytes` zero bytes make of each bit of a CRC register: 32 columns over GF(2)."""
    if n_bytes == 1:
        return tuple(int(_crc_table()[(1 << i) & 255] ^ ((1 << i) >> 8)) for i in range(32))
    half = _zeros_operator(n_bytes // 2)
    twice = tuple(_apply(half, column) for column in half)
    if n_bytes % 2 == 0:
        return twice
    return tuple(_apply(_zeros_operator(1), column) for column in twice)


def _apply(operator: tuple[int, ...], value: int) -> int:
    result = 0
    for i, column in enumerate(operator):
        if value >> i & 1:
            result ^= column
    return result


def _crc32c(data: Bytes, crc: int) -> int:
    table = _crc_table()
    register = crc ^ 0xFFFFFFFF
    n_rows = data.size // _CRC_COLUMNS
    if n_rows >= 4:
        columns = np.zeros(_CRC_COLUMNS, np.uint32)
        matrix = data[: n_rows * _CRC_COLUMNS].reshape(_CRC_COLUMNS, n_rows).T.copy()
        columns[0] = register
        for row in matrix:
            columns = (columns >> np.uint32(8)) ^ table[(columns ^ row) & np.uint32(255)]
        length = n_rows
        while columns.size > 1:  # left part, then as many zeros as the right part is long, plus the right part
            shifted = np.zeros(columns.size // 2, np.uint32)
            for i, column in enumerate(_zeros_operator(length)):
                shifted ^= np.where(columns[::2] >> np.uint32(i) & 1, np.uint32(column), np.uint32(0))
            columns, length = shifted ^ columns[1::2], 2 * length
        register = int(columns[0])
        data = data[n_rows * _CRC_COLUMNS :]
    plain = table.tolist()
    for byte in data.tolist():
        register = register >> 8 ^ plain[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF


# ---- planes (section 7)


def _blocks(n: int) -> tuple[int, int]:
    """Return the count of blocks, and the elements of the last one."""
    n_blocks = -(-n // LANES)
    return n_blocks, n - LANES * (n_blocks - 1)


def _split(layout: Layout, data: Bytes) -> SplitPlanes:
    n = data.size // layout.elem_bytes
    if layout.mantissa_bits is None:
        return SplitPlanes(np.ascontiguousarray(data.reshape(n, layout.elem_bytes).T), np.empty(0, np.uint8), np.empty(0, np.uint8))
    elems = data.view(f"<u{layout.elem_bytes}").astype(np.uint64)
    mantissa, r = np.uint64(layout.mantissa_bits), layout.raw_bits
    symbols, shift = [], int(mantissa)
    for width in layout.plane_bits:
        symbols.append((elems >> np.uint64(shift) & np.uint64((1 << width) - 1)).astype(np.uint8))
        shift += width
    raw = (elems >> np.uint64(shift)) << mantissa | elems & np.uint64((1 << int(mantissa)) - 1)
    n_blocks, tail = _blocks(n)
    padded = np.zeros((n_blocks, LANES), np.uint64)
    padded.reshape(-1)[:n] = raw
    union = np.bitwise_or.reduce(padded, axis=1)
    lowest = union & (~union + np.uint64(1))
    zeros = np.where(union == 0, r, np.log2(np.maximum(lowest, 1).astype(np.float64)).astype(np.int64))  # exact: a power of two below 2^53
    widths = (r - zeros).astype(np.uint8)
    parts: list[Bytes] = [np.empty(0, np.uint8)] * n_blocks
    full = np.arange(n_blocks) < n_blocks - (tail < LANES)
    for w in np.unique(widths[full]).tolist():  # blocks of one width together
        picked = np.flatnonzero(full & (widths == w))
        for block, part in zip(picked.tolist(), _block_bytes(padded[picked], w, r), strict=True):
            parts[block] = part
    if tail < LANES:
        parts[-1] = _block_bytes(padded[-1:, :tail], int(widths[-1]), r)[0]
    return SplitPlanes(np.stack(symbols), widths, np.concatenate(parts))


def _block_bytes(raw: NDArray[np.uint64], w: int, r: int) -> Bytes:
    """Return the bits (7.4) of blocks of one width, one row a block."""
    v = raw >> np.uint64(r - w)
    planes = [(v >> np.uint64(w - 8 * (k + 1))).astype(np.uint8) for k in range(w // 8)]
    planes += [np.packbits((v >> np.uint64(k) & np.uint64(1)).astype(np.uint8), axis=1, bitorder="little") for k in reversed(range(w % 8))]
    return np.concatenate(planes, axis=1) if planes else np.empty((len(raw), 0), np.uint8)


def _merge(layout: Layout, streams: Sequence[tuple[int, Stream]], n: int, out: Bytes) -> None:
    if len(streams) != layout.n_streams:
        raise CorruptionError("the chunk's header is damaged")
    n_planes, r = len(layout.plane_bits), layout.raw_bits
    raw = np.zeros(n, np.uint64)
    if r:
        if streams[-1][0] != Codec.RAW:
            raise (CorruptionError if streams[-1][0] <= Codec.ZSTD else UnsupportedError)("the bits have a codec that they can't have")
        raw = _raw_words(_decode_plane(streams[n_planes][0], _u8(streams[n_planes][1]), _blocks(n)[0], 8), _u8(streams[-1][1]), r, n)
    planes = [
        _decode_plane(codec, _u8(stream), n, bits).astype(np.uint64) for (codec, stream), bits in zip(streams[:n_planes], layout.plane_bits, strict=True)
    ]
    if layout.mantissa_bits is None:
        out.reshape(n, layout.elem_bytes)[:] = np.stack(planes, axis=1)
        return
    mantissa = layout.mantissa_bits
    elems, shift = raw & np.uint64((1 << mantissa) - 1), mantissa
    for plane, bits in zip(planes, layout.plane_bits, strict=True):
        elems |= plane << np.uint64(shift)
        shift += bits
    elems |= raw >> np.uint64(mantissa) << np.uint64(shift)
    out[:] = elems.astype(f"<u{layout.elem_bytes}").view(np.uint8)


def _raw_words(widths: Bytes, bits: Bytes, r: int, n: int) -> NDArray[np.uint64]:
    n_blocks, tail = _blocks(n)
    if int(widths.max()) > r:
        raise CorruptionError("a block is wider than its raw word")
    elems = np.full(n_blocks, LANES, np.int64)
    elems[-1] = tail
    lengths = widths // 8 * elems + widths % 8 * ((elems + 7) // 8)
    if int(lengths.sum()) != bits.size:
        raise (TruncatedError if bits.size < int(lengths.sum()) else CorruptionError)("the bits do not match their widths")
    begins = np.cumsum(lengths) - lengths
    raw = np.zeros((n_blocks, LANES), np.uint64)
    full = elems == LANES
    for w in np.unique(widths[full]).tolist():
        picked = np.flatnonzero(full & (widths == w))
        size = 16 * w
        raw[picked] = _block_words(bits[begins[picked, None] + np.arange(size)], w, r, LANES)
    if tail < LANES:
        raw[-1, :tail] = _block_words(bits[None, begins[-1] :], int(widths[-1]), r, tail)[0]
    return raw.reshape(-1)[:n]


def _block_words(data: Bytes, w: int, r: int, m: int) -> NDArray[np.uint64]:
    v = np.zeros((len(data), m), np.uint64)
    for k in range(w // 8):
        v = v << np.uint64(8) | data[:, k * m : (k + 1) * m]
    size = (m + 7) // 8
    for k in range(w % 8):
        begin = w // 8 * m + k * size
        plane = np.unpackbits(data[:, begin : begin + size], axis=1, bitorder="little")
        if plane[:, m:].any():
            raise CorruptionError("unused bits of a bit plane are not zero")
        v = v << np.uint64(1) | plane[:, :m]
    return v << np.uint64(r - w)


# ---- codecs (section 8)


def _decode_plane(codec: int, stream: Bytes, n: int, plane_bits: int) -> Bytes:
    if codec == Codec.RAW:
        if stream.size != n:
            raise (TruncatedError if stream.size < n else CorruptionError)("a raw plane has the wrong length")
        symbols = stream
    elif codec == Codec.CONSTANT:
        if stream.size != 1:
            raise (TruncatedError if stream.size < 1 else CorruptionError)("a constant plane is not one byte")
        symbols = np.full(n, stream[0], np.uint8)
    elif codec == Codec.RANS:
        symbols = _rans_decode(stream, n)
    elif codec == Codec.HUFFMAN:
        symbols = _huffman_decode(stream, n)
    else:
        raise UnsupportedError(f"unknown codec {codec}: upgrade weightpack")
    if plane_bits < 8 and int(symbols.max()) >> plane_bits:
        raise CorruptionError("a symbol is wider than its field")
    return symbols


# rANS (8.3)


@cache
def _log2_table() -> tuple[int, ...]:
    """round(2^16 * log2(v)) for v = 0..256 by repeated squaring, in integers, as in native/src/rans.c."""
    table = [0]
    for v in range(1, 257):
        whole = v.bit_length() - 1
        x, fraction = v << (31 - whole), 0
        for _ in range(17):
            x = x * x >> 31
            fraction <<= 1
            if x >> 32:
                fraction |= 1
                x >>= 1
        table.append((whole << 16) + ((fraction + 1) >> 1))
    return tuple(table)


def _share(counts: list[int], total: int) -> tuple[list[int], int]:
    """Share 256 among counts, each at least 1 and at most 255, close to the least cost; return also the cost in bits * 2^16."""
    log2 = _log2_table()
    freqs = [min(255, max(1, (c << 8) // total)) for c in counts]
    while sum(freqs) < 256:
        _, i = max((c * (log2[f + 1] - log2[f]), -i) for i, (c, f) in enumerate(zip(counts, freqs, strict=True)) if f < 255)
        freqs[-i] += 1
    while sum(freqs) > 256:
        _, i = min((c * (log2[f] - log2[f - 1]), i) for i, (c, f) in enumerate(zip(counts, freqs, strict=True)) if f > 1)
        freqs[i] -= 1
    return freqs, sum(c * ((8 << 16) - log2[f]) for c, f in zip(counts, freqs, strict=True))


def _rans_choose(counts: list[int]) -> tuple[RansBook, int]:
    present = sorted((s for s in range(256) if counts[s]), key=lambda s: (-counts[s], s))
    total = sum(counts)
    best: tuple[int, RansBook] | None = None
    for k in range(1, min(16, len(present)) + 1):
        kept = present[:k]
        escaped = total - sum(counts[s] for s in kept)
        if (escaped and k == 16) or (not escaped and k < 2):
            continue
        freqs, cost = _share([counts[s] for s in kept] + ([escaped] if escaped else []), total)
        cost += (escaped * 8 + 16 * k) << 16
        if best is None or cost < best[0]:
            best = cost, RansBook(bytes(kept), bytes(freqs[:k]), freqs[k] if escaped else 0)
    assert best is not None, "at least two symbols must occur"
    return best[1], (best[0] >> 19) + 1 + 2 * LANES + 6


def _rans_encode(book: RansBook, symbols: Bytes) -> Bytes:
    k = len(book.symbols)
    ranks = np.full(256, k, np.uint8)
    ranks[list(book.symbols)] = np.arange(k)
    freq = np.array([*book.freqs, book.escape_freq or 1], np.uint32)
    start = np.cumsum(freq, dtype=np.uint32) - freq
    rank = ranks[symbols]
    x = np.full(LANES, 256, np.uint32)
    emitted: list[Bytes] = []
    for begin in reversed(range(0, len(symbols), LANES)):
        r = rank[begin : begin + LANES]
        m = r.size
        f, state = freq[r], x[:m]
        over = state >= f << 8
        emitted.append(state[over].astype(np.uint8))
        state = np.where(over, state >> 8, state)
        x[:m] = (state // f << 8) + state % f + start[r]
    renorm = np.concatenate(emitted[::-1])
    head = bytes((k, book.escape_freq)) + book.symbols + book.freqs + x.astype("<u2").tobytes() + renorm.size.to_bytes(4, "little")
    return np.concatenate([_u8(head), renorm, symbols[rank == k]])


def _rans_decode(stream: Bytes, n: int) -> Bytes:
    if stream.size < 2:
        raise TruncatedError("a rANS stream ends inside its head")
    k, escape = int(stream[0]), int(stream[1])
    if not 1 <= k <= 16 or (escape and k > 15):
        raise CorruptionError("a rANS codebook has a wrong count of symbols")
    head = 2 + 2 * k + 2 * LANES + 4
    if stream.size < head:
        raise TruncatedError("a rANS stream ends inside its head")
    values, freqs = stream[2 : 2 + k], [*stream[2 + k : 2 + 2 * k].tolist(), escape]
    if len(set(values.tolist())) != k or 0 in freqs[:k] or sum(freqs) != 256:
        raise CorruptionError("a rANS codebook is damaged")
    rank_of_slot = np.repeat(np.arange(k + 1), freqs)
    freq = np.array(freqs, np.uint32)
    bias = np.arange(256, dtype=np.uint32) - (np.cumsum(freq, dtype=np.uint32) - freq)[rank_of_slot]
    freq_of_slot = freq[rank_of_slot]
    x = stream[head - 4 - 2 * LANES : head - 4].view("<u2").astype(np.uint32)
    if (x < 256).any():
        raise CorruptionError("a rANS state is out of range")
    n_renorm = int.from_bytes(stream[head - 4 : head].tobytes(), "little")
    if n_renorm > stream.size - head:
        raise TruncatedError("a rANS stream ends inside its renormalisation bytes")
    renorm, literals = stream[head : head + n_renorm], stream[head + n_renorm :]
    ranks = np.empty(n, np.uint8)
    position = 0
    for begin in range(0, n, LANES):
        m = min(LANES, n - begin)
        slot = x[:m] & 255
        ranks[begin : begin + m] = rank_of_slot[slot]
        state = freq_of_slot[slot] * (x[:m] >> 8) + bias[slot]
        low = np.flatnonzero(state < 256)
        taken = renorm[position : position + low.size]
        if taken.size < low.size:
            raise TruncatedError("a rANS stream has too few renormalisation bytes")
        state[low] = state[low] << 8 | taken
        position += low.size
        x[:m] = state
    escaped = np.flatnonzero(ranks == k)
    if escaped.size > literals.size:
        raise TruncatedError("a rANS stream has too few literals")
    if escaped.size < literals.size or position != n_renorm or (x != 256).any():
        raise CorruptionError("a rANS stream does not end where it should")
    symbols = np.append(values, np.uint8(0))[ranks]
    symbols[escaped] = literals
    return symbols


# Huffman (8.4)


def _codes(lengths: Sequence[int]) -> dict[int, int]:
    """Return the canonical code of each symbol, its first bit lowest."""
    if sum(1 << (MAX_CODE_BITS - n) for n in lengths if n) != 1 << MAX_CODE_BITS:
        raise CorruptionError("a Huffman code is not complete")
    codes, code, previous = {}, 0, 0
    for n, s in sorted((n, s) for s, n in enumerate(lengths) if n):
        code <<= n - previous
        codes[s] = int(f"{code:0{n}b}"[::-1], 2)
        code, previous = code + 1, n
    return codes


def _huffman_encode(lengths: bytes, symbols: Bytes) -> Bytes:
    codes = _codes(lengths)
    present = sorted(codes)
    if len(present) < 32:
        symbol_set = bytes(present)
    else:
        symbol_set = np.packbits(np.isin(np.arange(256), present), bitorder="little").tobytes()
    nibbles = [lengths[s] for s in present] + [0]
    packed = bytes(nibbles[i] | nibbles[i + 1] << 4 for i in range(0, len(present), 2))
    code_of = np.zeros(256, np.uint16)
    code_of[present] = [codes[s] for s in present]
    length_of = np.frombuffer(lengths, np.uint8).astype(np.int64)
    bitstreams = []
    for i in range(4):
        part = symbols[i::4]
        n_bits = length_of[part]
        ends = np.cumsum(n_bits)
        total = int(ends[-1]) if part.size else 0
        # Bit j of the stream is bit j - begin of the code that covers it.
        owner = np.repeat(np.arange(part.size), n_bits)
        offset = np.arange(total) - (ends - n_bits)[owner]
        bitstreams.append(np.packbits((code_of[part][owner] >> offset & 1).astype(np.uint8), bitorder="little"))
    sizes = b"".join(len(stream).to_bytes(3, "little") for stream in bitstreams[:3])
    return np.concatenate([_u8(bytes([len(present) - 1]) + symbol_set + packed + sizes), *bitstreams])


def _huffman_decode(stream: Bytes, n: int) -> Bytes:
    data = stream.tobytes()
    if not data:
        raise TruncatedError("a Huffman stream is empty")
    n_symbols = data[0] + 1
    if n_symbols < 2:
        raise CorruptionError("a Huffman code has one symbol")
    set_bytes, length_bytes = min(n_symbols, 32), (n_symbols + 1) // 2
    head = 1 + set_bytes + length_bytes + 9
    if len(data) < head:
        raise TruncatedError("a Huffman stream ends inside its head")
    if n_symbols < 32:
        present = list(data[1 : 1 + set_bytes])
    else:
        present = np.flatnonzero(np.unpackbits(stream[1:33], bitorder="little")).tolist()
    nibbles = [n for byte in data[1 + set_bytes : 1 + set_bytes + length_bytes] for n in (byte & 15, byte >> 4)]
    lengths = nibbles[:n_symbols]
    if len(present) != n_symbols or present != sorted(set(present)) or min(lengths) < 1 or max(lengths) > MAX_CODE_BITS or any(nibbles[n_symbols:]):
        raise CorruptionError("a Huffman code's table is damaged")
    by_symbol = [0] * 256
    for s, length in zip(present, lengths, strict=True):
        by_symbol[s] = length
    symbol_of, length_of = np.zeros(1 << MAX_CODE_BITS, np.uint8), np.zeros(1 << MAX_CODE_BITS, np.uint8)
    for s, code in _codes(by_symbol).items():
        symbol_of[code :: 1 << by_symbol[s]] = s
        length_of[code :: 1 << by_symbol[s]] = by_symbol[s]
    symbols = np.empty(n, np.uint8)
    position = head
    for i in range(4):
        size = int.from_bytes(data[head - 9 + 3 * i : head - 6 + 3 * i], "little") if i < 3 else len(data) - position
        if position + size > len(data):
            raise TruncatedError("a Huffman bitstream ends behind its stream")
        symbols[i::4] = _huffman_bitstream(stream[position : position + size], len(range(i, n, 4)), symbol_of, length_of)
        position += size
    return symbols


def _huffman_bitstream(data: Bytes, n: int, symbol_of: Bytes, length_of: Bytes) -> Bytes:
    """The window of 12 bits at every bit position gives symbol and step there; a chain of steps from 0 picks those that count."""
    if n == 0:
        if data.size:
            raise CorruptionError("a Huffman bitstream has bits left over")
        return np.empty(0, np.uint8)
    padded = np.concatenate([data, np.zeros(3, np.uint8)]).astype(np.uint32)
    words = padded[:-2] | padded[1:-1] << 8 | padded[2:] << 16
    windows = (words[:-1, None] >> np.arange(8, dtype=np.uint32) & 0xFFF).reshape(-1)
    steps, at, n_bits = length_of[windows].tolist(), 0, 8 * data.size
    visited = []
    for _ in range(n):
        if at >= n_bits:
            raise TruncatedError("a Huffman bitstream ends early")
        visited.append(at)
        at += steps[at]
    if at > n_bits:
        raise TruncatedError("a Huffman bitstream ends early")
    if n_bits - at >= 8 or np.unpackbits(data, bitorder="little")[at:].any():
        raise CorruptionError("a Huffman bitstream has bits left over")
    symbols: Bytes = symbol_of[windows[visited]]
    return symbols


assert LAYOUTS[LayoutId.F64].raw_bits <= 53  # _split finds widths through float64
