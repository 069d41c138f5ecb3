# SPDX-License-Identifier: Apache-2.0
"""Code lengths for the huffman codec (FORMAT 8.4): dahuffman's tree, limited to 12 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from dahuffman import HuffmanCodec

from weightpack.format.constants import MAX_CODE_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray


def code_lengths(counts: NDArray[np.uint32]) -> bytes:
    """Return 256 code lengths (0: no code) of a complete code for counts (256,) with at least two symbols.

    Where the tree is deeper than 12, the long codes are cut and the sum of 2^-length is repaired with integers: first by lengthening the rarest
    codes below the limit, then by shortening the commonest that still fit.
    """
    present = {int(s): int(counts[s]) for s in counts.nonzero()[0]}
    # dahuffman adds an end symbol unless it is in the table already; ours is, so that the code stays complete.
    table = HuffmanCodec.from_frequencies(present, eof=next(iter(present))).get_code_table()
    lengths = {s: min(bits, MAX_CODE_BITS) for s, (bits, _) in table.items()}
    by_count = sorted(lengths, key=lambda s: (present[s], s))
    full = 1 << MAX_CODE_BITS
    used = sum(full >> n for n in lengths.values())
    while used > full:
        s = next(s for s in by_count if lengths[s] < MAX_CODE_BITS)
        used -= full >> (lengths[s] + 1)
        lengths[s] += 1
    for s in reversed(by_count):
        while lengths[s] > 1 and used + (full >> lengths[s]) <= full:
            used += full >> lengths[s]
            lengths[s] -= 1
    by_symbol = bytearray(256)
    for s, n in lengths.items():
        by_symbol[s] = n
    return bytes(by_symbol)


def stream_bytes(lengths: bytes, counts: NDArray[np.uint32]) -> int:
    """Return the length of the stream that these code lengths give, up to the fill bits of its four bitstreams."""
    n_symbols = 256 - lengths.count(0)
    bits = int(np.frombuffer(lengths, np.uint8) @ counts.astype(np.int64))
    return 1 + min(n_symbols, 32) + (n_symbols + 1) // 2 + 9 + bits // 8 + 4
