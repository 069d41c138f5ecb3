# SPDX-License-Identifier: Apache-2.0
"""Packed file -> source file, and the proof that it would be."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpack.errors import ChecksumError, CorruptionError
from weightpack.io.files import AtomicFile, RandomReader, equal_at
from weightpack.io.parallel import Scratch
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.pieces import restored_pieces
from weightpack.writing.packer import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What was proven: the restored source has this length and SHA-256, as the index says; and equals the original, if one was named."""

    source_bytes: int
    packed_bytes: int
    source_sha256: str
    compared: bool


def unpack_file(packed: PackedFile, target: AtomicFile, *, threads: int = 1, progress: Progress | None = None) -> int:
    """Restore the source into `target`, which the caller commits; every chunk's checksum is checked. Returns its length."""
    total = packed.index.source_bytes
    packed.check_records()
    _allocate(target.fd, total)
    done = 0
    for piece in restored_pieces(packed, threads, lambda offset, data: target.write_at(offset, memoryview(data))):
        done += piece.n_bytes
        if progress:
            progress(done, total)
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


def verify_file(
    packed: PackedFile, *, against: RandomReader | None = None, threads: int = 1, progress: Progress | None = None
) -> VerifyResult:
    """Restore the source in memory, piece by piece, and compare its SHA-256 with the index; and its bytes with `against`.

    Raises
    ------
    FormatError
        The packed file is damaged.
    CorruptionError
        It restores to something else than the original.
    """
    index, digest, done = packed.index, hashlib.sha256(), 0
    if against is not None and against.size != index.source_bytes:
        raise CorruptionError(f"restores to {index.source_bytes} bytes, {against.name} has {against.size}", path=packed.file.name)

    scratch = Scratch()

    def compare(offset: int, data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        return data, against is None or equal_at(against, offset, data, scratch)

    for piece in restored_pieces(packed, threads, compare, keep=True):
        data, same = piece.result
        if not same:
            raise CorruptionError(f"differs from {against.name} at or behind byte {piece.offset}", path=packed.file.name)  # type: ignore[union-attr]
        digest.update(data)
        done += piece.n_bytes
        if progress:
            progress(done, index.source_bytes)
    if digest.hexdigest() != index.source_sha256:
        raise ChecksumError(f"the restored file's SHA-256 is {digest.hexdigest()}, the index says {index.source_sha256}", path=packed.file.name)
    return VerifyResult(done, packed.file.size, index.source_sha256, against is not None)


__all__ = ["VerifyResult", "unpack_file", "verify_file"]
