# SPDX-License-Identifier: Apache-2.0
"""Which codebook for which cell of a chunk of differences (FORMAT 8.8): k-means over the cells' histograms; then books that don't pay are joined.

A codebook's bits are the distance. Integers only, so that every machine finds the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.constants import LANES, MAX_TABLES, N_CELLS, N_CONTEXTS
from weightpack.kernels.integers import logs_4096
from weightpack.kernels.interface import ConditionalBooks, RansBook
from weightpack.kernels.numpy_rans import rans_choose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

_SYMBOLS_A_BOOK = 1 << 11  # with fewer, a book's bytes cost more than it gains
_ROUNDS = 8
_STREAM_HEAD = 2 * LANES + 4 + 2  # of 8.3, in the estimates of `Kernels.rans_choose`


def conditional_books(counts: NDArray[np.uint32], base_exponent: int) -> ConditionalBooks:
    """As `wp_conditional_books` of the native core."""
    used = np.flatnonzero(counts.any(axis=1))
    classes = np.flatnonzero(counts.any(axis=0))
    cells: Counts = counts[np.ix_(used, classes)].astype(np.int64)
    n_books = min(MAX_TABLES, used.size, max(1, int(cells.sum()) // _SYMBOLS_A_BOOK))
    ids = _cluster(cells, n_books)
    sums = [s for s in (cells[ids == i].sum(axis=0) for i in range(n_books)) if s.any()]
    numbers = np.cumsum([bool((ids == i).any()) for i in range(n_books)]) - 1
    joined, books = _join(sums, classes)
    book_of = np.zeros(N_CELLS, np.uint8)  # cells that do not occur have book 0
    book_of[used] = np.array(joined, np.uint8)[numbers[ids]]
    return ConditionalBooks(books, book_of, base_exponent, int(used[-1]) // N_CONTEXTS)


def _cluster(cells: Counts, n_books: int) -> NDArray[np.intp]:
    """Return the cluster of each cell. They start as equal shares of the symbols, by rising mean class."""
    totals = cells.sum(axis=1)
    means = (cells @ np.arange(cells.shape[1])) * 256 // totals
    order = np.argsort(means, kind="stable")
    before = np.cumsum(totals[order]) - totals[order]
    ids = np.empty(totals.size, np.intp)
    ids[order] = before * n_books // int(totals.sum())
    for _ in range(_ROUNDS):
        sums = np.zeros((n_books, cells.shape[1]), np.int64)
        np.add.at(sums, ids, cells)
        costs = _costs(sums)
        nearest = (cells @ costs.T).argmin(axis=1)
        if (nearest == ids).all():
            break
        ids = nearest
    return ids


def _costs(sums: Counts) -> Counts:
    """Bits * 2^12 of each class in each cluster, from its frequency there."""
    totals = sums.sum(axis=1, keepdims=True)
    costs: Counts = (12 << 12) - logs_4096()[sums * 4096 // np.maximum(totals, 1)].astype(np.int64)  # what no cell has costs 12 bits
    costs[totals[:, 0] == 0] = 1 << 20
    return costs


def _join(sums: list[Counts], classes: NDArray[np.intp]) -> tuple[list[int], list[RansBook]]:
    """Join neighbours (clusters stand in the order of their means) while that makes the stream smaller. Returns each cluster's book, and the books."""

    def coded(count: Counts) -> tuple[RansBook, int]:
        histogram = np.zeros(256, np.int64)
        histogram[classes] = count
        present = np.flatnonzero(histogram)
        if present.size == 1:
            return RansBook(bytes(present.tolist()), b"\xff", 1), 4 + int(count.sum()) // 1024
        book, cost = rans_choose(histogram.tolist())
        return book, cost - _STREAM_HEAD + 2

    groups = [([i], count, *coded(count)) for i, count in enumerate(sums)]
    while len(groups) > 1:
        best, best_gain, best_group = -1, 0, None
        for i in range(len(groups) - 1):
            (members, count, _, cost), (others, other_count, _, other_cost) = groups[i], groups[i + 1]
            book, joined_cost = coded(count + other_count)
            gain = cost + other_cost - joined_cost
            if gain > best_gain:
                best, best_gain, best_group = i, gain, ([*members, *others], count + other_count, book, joined_cost)
        if best_group is None:
            break
        groups[best : best + 2] = [best_group]
    book_of = [0] * len(sums)
    for number, (members, *_) in enumerate(groups):
        for member in members:
            book_of[member] = number
    return book_of, [book for _, _, book, _ in groups]
