# SPDX-License-Identifier: Apache-2.0
"""A model of a store -> its files, byte for byte, with permissions and times."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from weightpack.errors import ChecksumError, located
from weightpack.format.store import ModelFile, StoreManifest
from weightpack.io.atomic import AtomicFile
from weightpack.io.files import LocalFile, read_at, sha256_of
from weightpack.io.folder import work_folder
from weightpack.io.parallel import ordered_map
from weightpack.io.progress import Meter, Progress
from weightpack.models.unpack import refuse_full_disk
from weightpack.store.storage import Storage
from weightpack.store.tensors import FileReader, PartCache


def restore_model(
    storage: Storage, manifest: StoreManifest, target: Path, *, threads: int = 1, overwrite: bool = False, progress: Progress | None = None
) -> None:  # fmt: skip
    """Write all files of a model into a folder, which appears whole. A job that was killed goes on after the last file.

    Raises
    ------
    OptionError
        The target exists.
    FormatError
        What the store has is damaged; no target is written.
    """
    meter = Meter(progress, manifest.n_bytes)
    names = {PurePosixPath(file.path): file for file in manifest.files}
    folders = [PurePosixPath(folder) for folder in manifest.folders]
    job = f"store get {storage.url} {manifest.name} {manifest.commit}"
    with work_folder(target, source=Path(storage.url), names=names, folders=folders, job=job, overwrite=overwrite) as work:
        refuse_full_disk(work.path, manifest.n_bytes - work.n_bytes)
        for name, file in names.items():

            def prove(path: Path, file: ModelFile = file) -> bool:
                with LocalFile(path) as opened:
                    if sha256_of(opened) != file.sha256:
                        raise ChecksumError("not the file", path=str(path))
                return True

            if work.resumed(name, prove) is None:
                restore_file(storage, manifest, file, work.path / name, threads, meter)
            else:
                meter.add(file.n_bytes)


def restore_file(storage: Storage, manifest: StoreManifest, file: ModelFile, target: Path, threads: int, meter: Meter) -> None:
    """Write one file, whose SHA-256 must be the manifest's."""
    with AtomicFile(target) as out, located(path=file.path):
        digest = hashlib.sha256()
        for offset, data in file_pieces(storage, manifest, file, threads):
            digest.update(data)
            out.write_at(offset, data)
            meter.add(len(data))
        check_sha256(file, digest.hexdigest())
        with contextlib.suppress(OSError, AttributeError):  # a disk without permissions; Windows
            os.fchmod(out.fd, file.mode)
        os.utime(out.fd if os.utime in os.supports_fd else out.path, ns=(file.mtime_ns, file.mtime_ns))
        out.commit()


def check_sha256(file: ModelFile, sha256: str) -> None:
    """Raise ChecksumError if a file was restored to something else."""
    if sha256 != file.sha256:
        raise ChecksumError(f"restores to SHA-256 {sha256}, the manifest says {file.sha256}: `weightpack store verify` finds what is damaged", path=file.path)


def file_pieces(
    storage: Storage, manifest: StoreManifest, file: ModelFile, threads: int, begin: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytearray]]:
    """Yield (offset, bytes) of a file, decoded, from a byte to another."""
    reader = FileReader(storage, file, manifest.items, PartCache())
    pieces = reader.pieces(begin, end)
    decoded = ordered_map(lambda piece: read_at(reader, *piece), pieces, threads, lambda piece: piece[1])
    for (offset, _), data in zip(pieces, decoded, strict=True):
        yield offset, data
