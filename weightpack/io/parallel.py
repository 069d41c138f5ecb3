# SPDX-License-Identifier: Apache-2.0
"""Work on many chunks at once, results in order, a bounded number in flight; and the buffers that each thread keeps."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from weightpack.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS_VARIABLE = "WEIGHTPACK_THREADS"
_BATCH_BYTES = 2 << 20
_MOST_KEPT = 16 << 20
_MOST_HELPERS = 1024  # as many threads are started as are asked for at once


class Scratch(threading.local):
    """One growing buffer a thread: a fresh one for each chunk would cost more in page faults than the coding."""

    _buffer = np.empty(0, np.uint8)

    def get(self, n_bytes: int) -> NDArray[np.uint8]:
        """Return (n_bytes,) uint8, aligned to 16, that this thread may use until it asks again; what is in them is undefined."""
        if self._buffer.size < n_bytes:
            self._buffer = np.empty(n_bytes, np.uint8)
        return self._buffer[:n_bytes]


class Buffers:
    """Buffers that go from one thread to another and come back: for one thread that takes and gives them."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, n_bytes: int) -> NDArray[np.uint8]:
        """Return (at least n_bytes,) uint8; what is in them is undefined."""
        while self._free:
            buffer = self._free.pop()
            if buffer.size >= n_bytes:
                return buffer
        return np.empty(-(-n_bytes // _BATCH_BYTES) * _BATCH_BYTES, np.uint8)

    def give(self, buffer: NDArray[np.uint8]) -> None:
        """Give back what was taken, whole."""
        if buffer.size <= _MOST_KEPT:
            self._free.append(buffer)


class Turnstile:
    """Hands out consecutive places, in the order of turns: whoever has turn i waits until turns 0 to i - 1 have said how much they take."""

    def __init__(self, begin: int) -> None:
        self._next, self._position, self._failed = 0, begin, False
        self._condition = threading.Condition()

    def take(self, turn: int, n_bytes: int) -> int:
        """Return where the `n_bytes` of this turn begin."""
        with self._condition:
            self._condition.wait_for(lambda: self._next == turn or self._failed)
            if self._failed:
                raise RuntimeError("an earlier turn failed")
            position = self._position
            self._next, self._position = turn + 1, position + n_bytes
            self._condition.notify_all()
            return position

    def fail(self) -> None:
        """Release everyone who waits: their turn will not come."""
        with self._condition:
            self._failed = True
            self._condition.notify_all()


def thread_count(threads: int | None, n_processes: int | None = None) -> int:
    """Return a checked thread count.

    Parameters
    ----------
    threads
        None: as many as the environment variable WEIGHTPACK_THREADS says, or this process's share of the CPUs that it may use.
    n_processes
        How many processes share them. None: as many as torchrun has started on this machine (LOCAL_WORLD_SIZE), or 1.

    Raises
    ------
    OptionError
        The count, or that of the environment variable, is not at least 1.
    """
    if threads is None:
        text = os.environ.get(THREADS_VARIABLE, "")
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise OptionError(f"{THREADS_VARIABLE} is {text!r}: it must be a number, at least 1")
            return int(text)
        if n_processes is None:
            others = os.environ.get("LOCAL_WORLD_SIZE", "")
            n_processes = int(others) if others.isdecimal() else 1
        n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, n_cpus // max(1, n_processes))
    if threads < 1:
        raise OptionError(f"threads is {threads}: it must be at least 1")
    return threads


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], threads: int, size: Callable[[Item], int]) -> Iterator[Result]:
    """Yield `work(item)` in the order of the items.

    `size(item)` says how many bytes of work an item is: a thread gets about 2 MiB at a time, because handing work over takes as long as decoding
    half a megabyte. At most two batches a thread are in flight, which bounds memory. One thread, or one batch, means this thread. When the consumer stops or an
    item fails, what has not begun is cancelled.
    """
    batches = _batches(items, size)
    first, second = next(batches, []), None if threads == 1 else next(batches, None)
    if second is None:
        yield from map(work, chain(first, chain.from_iterable(batches)))
        return

    def work_all(batch: list[Item]) -> list[Result]:
        return [work(item) for item in batch]

    with ThreadPoolExecutor(threads, thread_name_prefix="weightpack") as pool:
        in_flight: deque[Future[list[Result]]] = deque()
        try:
            for batch in chain((first, second), batches):
                in_flight.append(pool.submit(work_all, batch))
                if len(in_flight) >= 2 * threads:
                    yield from in_flight.popleft().result()
            while in_flight:
                yield from in_flight.popleft().result()
        finally:
            for future in in_flight:
                future.cancel()


def spread(work: Callable[[Item], object], items: Iterable[Item], threads: int) -> None:
    """Call `work` on each item, in this thread and in others that are kept for the next call: what takes a millisecond can't wait for threads to start.

    Items begin in their order. What an item raises is raised when no other is at work any more.
    """
    waiting = iter(items)

    def work_on() -> None:
        for item in waiting:
            work(item)

    helpers = [_kept_pool().submit(work_on) for _ in range(threads - 1)]
    try:
        work_on()
    finally:
        wait([helper for helper in helpers if not helper.cancel()])
    for helper in helpers:
        if not helper.cancelled():
            helper.result()


@cache
def _kept_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_HELPERS, thread_name_prefix="weightpack-kept")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept_pool.cache_clear)  # a child has none of its parent's threads


def _batches(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    n_bytes = 0
    for item in items:
        batch.append(item)
        n_bytes += size(item)
        if n_bytes >= _BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch
