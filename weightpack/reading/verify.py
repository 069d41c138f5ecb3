# SPDX-License-Identifier: Apache-2.0
"""The proof that a packed file restores to its source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpack.errors import ChecksumError, CorruptionError
from weightpack.io.files import RandomReader, equal_at
from weightpack.io.parallel import Scratch
from weightpack.io.progress import Meter, Progress
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.pieces import restored_pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What was proven of a file.

    Parameters
    ----------
    source_bytes, packed_bytes, source_sha256
        Its source has this length and SHA-256, as the index says, or the directory's manifest.
    compared
        Its source equals the original that was named.
    name
        Of a file of a directory, or of a repo: its path there.
    state
        "packed"; and of other files of a directory: "plain" (to be packed by a job in place that has not ended), "carried" (over, as it was), "changed" (the
        source is in the manifest), "not covered" (the manifest does not know it), "added" (the source had no such file).
    """

    source_bytes: int
    packed_bytes: int
    source_sha256: str
    compared: bool
    name: str = ""
    state: str = "packed"


def verify_file(packed: PackedFile, *, against: RandomReader | None = None, threads: int = 1, progress: Progress | None = None) -> VerifyResult:
    """Restore the source in memory, piece by piece, and compare its SHA-256 with the index; and its bytes with `against`.

    Raises
    ------
    FormatError
        The packed file is damaged.
    CorruptionError
        It restores to something else than the original.
    """
    index, digest, meter = packed.index, hashlib.sha256(), Meter(progress, packed.index.source_bytes)
    if against is not None and against.size != index.source_bytes:
        raise CorruptionError(f"restores to {index.source_bytes} bytes, {against.name} has {against.size}", path=packed.file.name)
    scratch = Scratch()

    def compare(offset: int, data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        return data, against is None or equal_at(against, offset, data, scratch)

    for piece in restored_pieces(packed, threads, compare, keep=True):
        data, same = piece.result
        if not same:
            raise CorruptionError(f"differs from {against.name} at or after byte {piece.offset}", path=packed.file.name)  # type: ignore[union-attr]
        digest.update(data)
        meter.add(piece.n_bytes)
    if digest.hexdigest() != index.source_sha256:
        raise ChecksumError(f"the restored file's SHA-256 is {digest.hexdigest()}, the index says {index.source_sha256}", path=packed.file.name)
    return VerifyResult(index.source_bytes, packed.file.size, index.source_sha256, against is not None)
