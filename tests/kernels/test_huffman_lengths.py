# SPDX-License-Identifier: Apache-2.0
"""Code lengths of the huffman codec, on each backend: as short as those of dahuffman's tree, complete, and at most 12 bits where the tree is deeper."""

from __future__ import annotations

import numpy as np
import pytest
from dahuffman import HuffmanCodec

from weightpack.format.constants import MAX_CODE_BITS
from weightpack.kernels import active


def counts_of(kind, rng):
    counts = np.zeros(256, np.uint32)
    if kind == "two":
        counts[[3, 200]] = 1, 1 << 20
    elif kind == "equal":
        counts[:] = 7
    elif kind == "weights":
        counts[:] = np.bincount(np.clip(rng.standard_normal(1 << 18) * 6 + 118, 0, 255).astype(int), minlength=256)
    elif kind == "fibonacci":  # the deepest tree that there is
        a, b = 1, 1
        for s in range(24):
            counts[s], a, b = a, b, a + b
    else:
        present = rng.choice(256, rng.integers(2, 257), replace=False)
        counts[present] = rng.integers(1, 1 << rng.integers(1, 20), present.size)
    return counts


@pytest.mark.parametrize("kind", ["two", "equal", "weights", "fibonacci", *(f"random {i}" for i in range(20))])
def test_lengths(isa, kind):
    counts = counts_of(kind, np.random.default_rng(len(kind) + int(kind.split()[-1]) if kind[-1].isdigit() else 0))
    lengths = np.frombuffer(active().huffman_lengths(counts), np.uint8)
    assert ((lengths > 0) == (counts > 0)).all()
    assert lengths.max() <= MAX_CODE_BITS
    assert (2.0 ** -lengths[lengths > 0].astype(float)).sum() == 1
    present = {int(s): int(counts[s]) for s in counts.nonzero()[0]}
    table = HuffmanCodec.from_frequencies(present, eof=next(iter(present))).get_code_table()
    bits, best = int(lengths.astype(np.int64) @ counts), sum(length * present[s] for s, (length, _) in table.items())
    if max(length for length, _ in table.values()) <= MAX_CODE_BITS:
        assert bits == best
    else:
        assert best <= bits <= best * 1.02
