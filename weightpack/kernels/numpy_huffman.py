# SPDX-License-Identifier: Apache-2.0
"""Huffman codes in numpy, bitstream by bitstream (FORMAT 8.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import TruncatedError
from weightpack.format.constants import MAX_CODE_BITS
from weightpack.kernels.numpy_checks import expect, need, u8

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes

_SEGMENT_BYTES = 1 << 14


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


def huffman_lengths(counts: Sequence[int]) -> bytes:
    """Return code lengths of at most 12 bits for 256 counts, at least two of them not 0; as `wp_huffman_lengths` of the native core."""
    leaves = sorted((count, s) for s, count in enumerate(counts) if count)
    n, full = len(leaves), 1 << MAX_CODE_BITS
    expect(n >= 2, "fewer than two symbols")
    weights, parent = [count for count, _ in leaves], [0] * (2 * n - 1)  # of leaves, then of inner nodes in the order in which they are made
    leaf, node = 0, n
    for made in range(n, 2 * n - 1):
        weights.append(0)
        for _ in range(2):
            if leaf < n and (node >= made or weights[leaf] <= weights[node]):
                child, leaf = leaf, leaf + 1
            else:
                child, node = node, node + 1
            weights[made] += weights[child]
            parent[child] = made
    depth = [0] * (2 * n - 1)
    for i in reversed(range(2 * n - 2)):
        depth[i] = depth[parent[i]] + 1
    # Codes that are too long are cut, and the sum of 2^-length is repaired: by lengthening the rarest below the limit, then by shortening the commonest that
    # still fit.
    lengths = [min(each, MAX_CODE_BITS) for each in depth[:n]]
    used, i = sum(full >> length for length in lengths), 0
    while used > full:
        if lengths[i] == MAX_CODE_BITS:
            i += 1
        else:
            lengths[i] += 1
            used -= full >> lengths[i]
    for i in reversed(range(n)):
        while lengths[i] > 1 and used + (full >> lengths[i]) <= full:
            used += full >> lengths[i]
            lengths[i] -= 1
    of_symbol = bytearray(256)
    for (_, s), length in zip(leaves, lengths, strict=True):
        of_symbol[s] = length
    return bytes(of_symbol)


def huffman_bytes(lengths: bytes, counts: NDArray[np.int64]) -> int:
    """Return the length of the stream that these code lengths give, but for the fill bits of its four bitstreams: at most so much."""
    n_symbols = 256 - lengths.count(0)
    bits = int(np.frombuffer(lengths, np.uint8) @ counts)
    return 1 + min(n_symbols, 32) + (n_symbols + 1) // 2 + 9 + bits // 8 + 4


def huffman_encode(lengths: bytes, symbols: Bytes) -> Bytes:
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


def huffman_decode(stream: Bytes, n: int, plane_bits: int) -> Bytes:
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
