# SPDX-License-Identifier: Apache-2.0
"""Packed file -> source file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from weightpack.errors import ChecksumError
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


def stream_source(packed: PackedFile, write: Callable[[memoryview], object], *, threads: int = 1, progress: Progress | None = None) -> None:
    """Restore the source in its order, piece by piece, into `write`.

    Raises
    ------
    FormatError
        The packed file is damaged. Each chunk is checked before it is written, but earlier ones have been written then.
    """
    index, digest, meter = packed.index, hashlib.sha256(), Meter(progress, packed.index.source_bytes)
    packed.check_records()
    for piece in restored_pieces(packed, threads, lambda _, data: data, keep=True):
        digest.update(piece.result)
        write(memoryview(piece.result))
        meter.add(piece.n_bytes)
    if digest.hexdigest() != index.source_sha256:
        raise ChecksumError(f"what was written has SHA-256 {digest.hexdigest()}, the index says {index.source_sha256}", path=packed.file.name)


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
