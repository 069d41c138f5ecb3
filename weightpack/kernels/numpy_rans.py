# SPDX-License-Identifier: Apache-2.0
"""rANS in numpy: one codebook (FORMAT 8.3), several (8.7), in the context of another plane (8.6) or of a base (8.8).

All 128 lanes of a group go at once. What native/src/rans.c, tables.c, context.c and conditional.c do, in the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from weightpack.errors import TruncatedError
from weightpack.format.constants import CLASS_BITS, LANES, MAX_RATE, MAX_TABLES, N_CELLS, N_CONTEXTS
from weightpack.kernels.integers import fullest_window, log2_bits
from weightpack.kernels.interface import RansBook
from weightpack.kernels.numpy_checks import expect, need, u8

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes, Words
    from weightpack.kernels.interface import ConditionalBooks


@cache
def _log2_table() -> tuple[int, ...]:
    """round(2^16 * log2(v)) for v = 0..256 in integers, as in native/src/rans.c: the same on every machine."""
    return (0, *((bits + 1) >> 1 for bits in log2_bits(256, 17).tolist()))


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


def rans_choose(counts: list[int]) -> tuple[RansBook, int]:
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


def rans_encode(book: RansBook, symbols: Bytes) -> Bytes:
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
    freq: Words
    bias: Words
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


def rans_decode(stream: Bytes, n: int, plane_bits: int) -> Bytes:
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


# ---- several codebooks (8.7)


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


def choose_tables(plane: Bytes, counts: NDArray[Any], most: int) -> _Tables | None:
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
            book, cost = rans_choose(exact.tolist())
            cost -= 2 * LANES + 4
        escapes += int(exact.sum() - exact[list(book.symbols)].sum())
        numbers[i] = len(books)
        books.append(book)
        cost_bytes += cost
    if len(books) < 2:
        return None
    return _Tables(books, numbers[ids], cost_bytes + (n_runs * _id_bits(len(books)) + 7) // 8, escapes)


def tables_encode(tables: _Tables, plane: Bytes) -> Bytes:
    books, width = tables.books, _id_bits(len(tables.books))
    ids = np.packbits((tables.ids[:, None] >> np.arange(width) & 1).astype(np.uint8).reshape(-1), bitorder="little")
    which = np.repeat(tables.ids, _RUN_GROUPS * LANES)[: plane.size]
    head = u8(bytes((len(books) - 1, _RUN_GROUPS)))
    return np.concatenate([head, *map(book_bytes, books), ids, encode_symbols(books, which, plane)])


def tables_decode(stream: Bytes, n: int, plane_bits: int) -> Bytes:
    need(stream.size >= 2, "a rANS stream", TruncatedError)
    n_books, run_groups = int(stream[0]) + 1, int(stream[1])
    need(2 <= n_books <= MAX_TABLES and run_groups > 0, "the count of codebooks")
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


# ---- in a context (8.6)


def contexts(next_plane: Bytes, base: int) -> Bytes:
    clamped: Bytes = np.clip(next_plane.astype(np.int16) - base, 0, N_CONTEXTS - 1).astype(np.uint8)
    return clamped


def context_encode(next_plane: Bytes, symbols: Bytes) -> Bytes:
    base = fullest_window(np.bincount(next_plane, minlength=256))
    counts = np.bincount(contexts(next_plane, base) * 4 + symbols, minlength=4 * N_CONTEXTS).reshape(N_CONTEXTS, 4)
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


def context_decode(stream: Bytes, next_plane: Bytes) -> Bytes:
    head = 1 + 3 * N_CONTEXTS + 2 * LANES
    need(stream.size >= head, "a stream in a context", TruncatedError)
    starts = np.zeros((N_CONTEXTS, 5), np.uint32)
    starts[:, 1:4], starts[:, 4] = stream[1:49].reshape(N_CONTEXTS, 3), 256
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


# ---- a codebook for each cell (8.8)


def conditional_decode(stream: Bytes, rates: Bytes, exponents: Bytes) -> Bytes:
    """As `_decode_symbols`, with a codebook for each symbol."""
    need(stream.size >= 3, "a conditional stream", TruncatedError)
    n_books, base_exponent, n_rates = int(stream[0]) + 1, int(stream[1]), int(stream[2])
    need(n_books <= MAX_TABLES and 1 <= n_rates <= MAX_RATE, "a conditional stream's head")
    at = 3 + N_CONTEXTS // 2 * n_rates
    need(stream.size >= at, "a conditional stream", TruncatedError)
    book_of, of_rates = np.zeros(N_CELLS, np.uint8), slice(N_CONTEXTS, N_CONTEXTS * (1 + n_rates))
    book_of[of_rates] = np.stack([stream[3:at] & 15, stream[3:at] >> 4], axis=1).reshape(-1)
    need(int(book_of.max()) < n_books, "the codebook of a cell")
    books = []
    for _ in range(n_books):
        book, at = read_book(stream, at, CLASS_BITS)
        books.append(book)
    head = at + 2 * LANES + 4
    need(stream.size >= head, "a conditional stream", TruncatedError)
    x = stream[at : at + 2 * LANES].view("<u2").astype(np.uint32) if at % 2 == 0 else stream[at : at + 2 * LANES].copy().view("<u2").astype(np.uint32)
    need(int(x.min()) >= 256, "a rANS state")
    n_renorm = int.from_bytes(stream[head - 4 : head].tobytes(), "little")
    need(n_renorm <= stream.size - head, "a conditional stream", TruncatedError)
    renorm, literals = stream[head : head + n_renorm], stream[head + n_renorm :]
    need((any(book.has_escape for book in books) or not literals.size) and int(literals.max(initial=0)) >> CLASS_BITS == 0, "rANS literals")
    need(int(rates.max()) <= n_rates, "the rate of a block")
    which = book_of[rates.astype(np.intp) * N_CONTEXTS + contexts(exponents, base_exponent)]
    freq, bias = np.stack([book.freq for book in books]), np.stack([book.bias for book in books])
    symbol = np.stack([book.symbols[book.rank] for book in books])
    escape = np.stack([book.rank == book.symbols.size - 1 for book in books])
    symbols, is_escape, position = np.empty(which.size, np.uint8), np.empty(which.size, bool), 0
    for begin in range(0, which.size, LANES):
        book_ids = which[begin : begin + LANES]
        m = book_ids.size
        slot = x[:m] & 255
        symbols[begin : begin + m] = symbol[book_ids, slot]
        is_escape[begin : begin + m] = escape[book_ids, slot]
        state = freq[book_ids, slot] * (x[:m] >> 8) + bias[book_ids, slot]
        low = np.flatnonzero(state < 256)
        need(position + low.size <= n_renorm, "a conditional stream", TruncatedError)
        state[low] = state[low] << 8 | renorm[position : position + low.size]
        position += low.size
        x[:m] = state
    escaped = np.flatnonzero(is_escape)
    need(escaped.size <= literals.size, "a conditional stream", TruncatedError)
    need(escaped.size == literals.size and position == n_renorm and bool((x == 256).all()), "a conditional stream's end")
    symbols[escaped] = literals
    return symbols


def conditional_encode(books: ConditionalBooks, cells: Bytes, symbols: Bytes) -> Bytes:
    expect(1 <= len(books.books) <= MAX_TABLES and 1 <= books.n_rates <= MAX_RATE and int(books.book_of.max()) < len(books.books), "conditional codebooks")
    which = books.book_of[cells].astype(np.intp)
    lacks = np.array([not book.escape_freq for book in books.books])[:, None] & ~np.array([np.isin(np.arange(256), list(book.symbols)) for book in books.books])
    expect(int(symbols.max(initial=0)) >> CLASS_BITS == 0 and not lacks[which, symbols].any() and all(map(is_book, books.books)), "classes or codebooks")
    row = books.book_of[N_CONTEXTS : N_CONTEXTS * (1 + books.n_rates)]
    head = bytes((len(books.books) - 1, books.base_exponent, books.n_rates)) + (row[::2] | row[1::2] << 4).tobytes()
    coded = encode_symbols(books.books, which, symbols)
    return np.concatenate([u8(head), *map(book_bytes, books.books), coded])
