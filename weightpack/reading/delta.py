# SPDX-License-Identifier: Apache-2.0
"""A delta -> tensors in memory, changed in their place (FORMAT section 19)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import ChecksumError, CorruptionError, TruncatedError, WrongBaseError, located
from weightpack.format.delta import CRC_BYTES, Entry, Storage, head_bytes, parse_head
from weightpack.kernels import active, crc32c_of
from weightpack.reading.record import decode_record

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes


def open_delta(delta: bytes | bytearray | memoryview) -> list[tuple[Entry, memoryview]]:
    """Return what a delta says of each tensor, and what is stored of it; all checksums are right.

    Raises
    ------
    FormatError
        The delta is damaged.
    LimitError
        Its table is larger than any needs to be.
    """
    view = memoryview(delta).cast("B")
    end = head_bytes(view)
    if crc32c_of(view[:end]) != int.from_bytes(view[end : end + CRC_BYTES], "little"):
        raise ChecksumError("the delta's table does not match its checksum")
    entries, position = parse_head(view[:end]), end + CRC_BYTES
    bodies: list[memoryview] = []
    for number, entry in enumerate(entries):
        if entry.body < number:
            bodies.append(bodies[entry.body])
            continue
        bodies.append(view[position : position + entry.body_bytes])
        position += entry.body_bytes
        if position > len(view):
            raise TruncatedError("the delta ends inside a tensor", tensor=entry.name)
        if crc32c_of(bodies[-1]) != entry.body_crc:
            raise ChecksumError("what the delta holds of the tensor does not match its checksum", tensor=entry.name)
    if position != len(view):
        raise CorruptionError("the delta has bytes behind its last tensor")
    return list(zip(entries, bodies, strict=True))


def check_base(entry: Entry, memory: Bytes) -> None:
    """Refuse a tensor that is not what the delta was made from."""
    if entry.needs_base and active().crc32c(memory) != entry.base_crc:
        raise WrongBaseError("the tensor is not the one that the delta was made from", tensor=entry.name)


def apply_delta(entry: Entry, body: memoryview, memory: Bytes, threads: int) -> None:
    """Make of the bytes of a tensor that is not unchanged, (n_bytes,) uint8, those that the delta says."""
    with located(tensor=entry.name):
        if entry.storage == Storage.KEPT:
            memory[:] = np.frombuffer(body, np.uint8)
        else:
            decode_record(body, memory, threads, in_place=entry.storage == Storage.DIFFERENCE)
