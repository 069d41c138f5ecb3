# SPDX-License-Identifier: Apache-2.0
"""Packed file -> source file."""

from __future__ import annotations

import os

from weightpack.io.atomic import AtomicFile
from weightpack.io.progress import Meter, Progress
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.pieces import restored_pieces


def unpack_file(packed: PackedFile, target: AtomicFile, *, threads: int = 1, progress: Progress | None = None) -> int:
    """Restore the source into `target`, which the caller commits; every chunk's checksum is checked. Returns its length."""
    total = packed.index.source_bytes
    packed.check_records()
    _allocate(target.fd, total)
    meter = Meter(progress, total)
    for piece in restored_pieces(packed, threads, lambda offset, data: target.write_at(offset, memoryview(data))):
        meter.add(piece.n_bytes)
    return total


def _allocate(fd: int, n_bytes: int) -> None:
    """Claim the room first, so that a full disk shows at once."""
    os.ftruncate(fd, n_bytes)
    if n_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, n_bytes)
        except OSError as error:
            import errno

            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
