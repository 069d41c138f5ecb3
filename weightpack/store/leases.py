# SPDX-License-Identifier: Apache-2.0
"""Who is at work in a store: `add` and the like, many at once, or `gc`, alone. Each says so with a lease before it looks for others, so that of two that begin
at once one sees the other at least.

A lease of a process that ended without giving it back lapses: in a folder at once, by the lock that the system gives back; on object storage when it was not
renewed for an hour.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from weightpack.errors import LosslessError, OptionError, WeightpackError
from weightpack.store.storage import Storage

LAPSES_AFTER = 3600.0
"""Seconds since a lease was renewed."""

_RENEWED_EVERY = LAPSES_AFTER / 6
_WAITS = 600.0
_ADD, _GC = "leases/add-", "leases/gc-"


@contextmanager
def adding(storage: Storage) -> Iterator[str]:
    """Keep `gc` away during the block, and wait for one that is at work; give the lease's name.

    Raises
    ------
    OptionError
        A `gc` does not end.
    """
    deadline = time.monotonic() + _WAITS
    while True:
        with _lease(storage, _ADD) as lease:
            if not _others(storage, lease, (_GC,)):
                yield lease
                return
        if time.monotonic() > deadline:
            raise OptionError("`weightpack store gc` is at work: add the model when it has ended", path=storage.url)
        time.sleep(0.2)


def refuse_lapsed(storage: Storage, lease: str) -> None:
    """Raise LosslessError if a lease has lapsed and was taken away: what was written under it may be gone."""
    if lease not in storage.listed("leases"):
        raise LosslessError("this process was not heard of for an hour, and `weightpack store gc` ran meanwhile: add the model again", path=storage.url)


@contextmanager
def collecting(storage: Storage) -> Iterator[None]:
    """Be alone in the store during the block.

    Raises
    ------
    OptionError
        Somebody else is at work.
    """
    with _lease(storage, _GC) as lease:
        others = _others(storage, lease, (_ADD, _GC))
        if others:
            raise OptionError(f"others are at work in the store ({len(others)}): run gc again when they have ended; nothing was removed", path=storage.url)
        yield


def _others(storage: Storage, mine: str, kinds: tuple[str, ...]) -> list[str]:
    """Return others' leases, after taking those away that have lapsed; by the storage's own clock, which wrote mine."""
    listed = storage.listed("leases")
    now = listed[mine].age if mine in listed else 0.0
    found = []
    for name, file in listed.items():
        if name != mine and name.startswith(kinds) and not storage.release_lapsed(name, file.age - now > LAPSES_AFTER):
            found.append(name)
    return found


@contextmanager
def _lease(storage: Storage, kind: str) -> Iterator[str]:
    name, ended = f"{kind}{secrets.token_hex(8)}", threading.Event()
    with storage.held(name) as renew:

        def keep() -> None:
            while not ended.wait(_RENEWED_EVERY):
                with suppress(OSError, WeightpackError):  # there are five more tries before it lapses
                    renew()

        keeper = threading.Thread(target=keep, name=f"weightpack-{os.path.basename(name)}", daemon=True)
        keeper.start()
        try:
            yield name
        finally:
            ended.set()
            keeper.join()
