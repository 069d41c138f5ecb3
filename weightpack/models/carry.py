# SPDX-License-Identifier: Apache-2.0
"""Files that are carried over as they are: bytes, permissions and times."""

from __future__ import annotations

import hashlib
from pathlib import Path

from weightpack.errors import LosslessError
from weightpack.format.manifest import ManifestFile
from weightpack.io.atomic import AtomicFile
from weightpack.io.files import LocalFile, pieces, sha256_of

_COPY_BYTES = 1 << 20


def carry_over(source: Path, target: Path, data: bytes | None = None) -> ManifestFile:
    """Copy a file, or write `data` in its place, with the source's permissions and times; return what the source was.

    Raises
    ------
    OptionError
        There is a file of that name.
    LosslessError
        The source changed meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with LocalFile(source) as opened, AtomicFile(target, like=source) as file:
        buffer = memoryview(bytearray(min(_COPY_BYTES, opened.size) or 1))
        for offset, n in pieces(opened.size, len(buffer)):
            opened.read_into(offset, buffer[:n])
            digest.update(buffer[:n])
            if data is None:
                file.write_at(offset, buffer[:n])
        if data is not None:
            file.write_at(0, data)
        if opened.changed():
            raise LosslessError("the file changed while it was copied", path=str(source))
        file.commit()
        return ManifestFile(opened.size, digest.hexdigest())


def described(path: Path) -> ManifestFile:
    """Return a file's length and SHA-256."""
    with LocalFile(path) as file:
        return ManifestFile(file.size, sha256_of(file))


def replace_like(path: Path, data: bytes) -> None:
    """Write other bytes in a file's place, with its permissions and times."""
    with AtomicFile(path, overwrite=True, like=path if path.exists() else None) as file:
        file.write_at(0, data)
        file.commit()
