# SPDX-License-Identifier: Apache-2.0
"""Jobs on one file, and what all jobs have in common: how they are done, and what they are said to have done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from weightpack.errors import ChecksumError, CorruptionError, OptionError
from weightpack.io.atomic import AtomicFile
from weightpack.io.files import LocalFile, sha256_of
from weightpack.io.progress import Progress
from weightpack.models.directory import Note
from weightpack.options import DEFAULT_LIMITS, Limits, PackOptions, load_profile
from weightpack.reading.bases import Base, open_with_bases
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.restored import close_packed
from weightpack.reading.unpack import unpack_file
from weightpack.writing.packer import PackResult, pack_file

FileProgress = Callable[[str, int, int], None]
"""Called with (path, bytes done, bytes in all) while a file is worked on."""


@dataclass(frozen=True, slots=True)
class FileResult:
    """One file of a job: where it came from and went, and its lengths in bytes."""

    source: str
    target: str
    source_bytes: int
    packed_bytes: int
    source_sha256: str


@dataclass(frozen=True, slots=True)
class JobResult:
    """A finished `pack` or `unpack`: the target, and each file in it that was packed or unpacked.

    Parameters
    ----------
    other_source_bytes, other_packed_bytes
        Of a directory: what all other files in it have, the manifest among them, on each side.
    left_out
        What the target has nothing of, and why.
    kept
        Weights that were carried over as they are, and why.
    warnings
        What may not be as it was meant.
    """

    target: str
    files: tuple[FileResult, ...]
    other_source_bytes: int = 0
    other_packed_bytes: int = 0
    left_out: tuple[Note, ...] = ()
    kept: tuple[Note, ...] = ()
    warnings: tuple[Note, ...] = ()

    @property
    def source_bytes(self) -> int:
        """Bytes of all files of the source."""
        return sum(file.source_bytes for file in self.files) + self.other_source_bytes

    @property
    def packed_bytes(self) -> int:
        """Bytes of all files of the packed side, as they are on the disk."""
        return sum(file.packed_bytes for file in self.files) + self.other_packed_bytes

    @property
    def ratio(self) -> float:
        """Packed bytes / source bytes: smaller is better."""
        return self.packed_bytes / self.source_bytes if self.source_bytes else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How a job is done; see `weightpack.pack` and `unpack`."""

    threads: int = 1
    overwrite: bool = False
    progress: FileProgress | None = None
    options: PackOptions = field(default_factory=load_profile)
    verify: bool = True
    hf_flag: bool = False
    limits: Limits = DEFAULT_LIMITS
    base: Base | None = None

    def bind(self, path: Path) -> Progress | None:
        """Return the progress of one file."""
        progress = self.progress
        return None if progress is None else lambda done, total: progress(str(path), done, total)


@contextmanager
def open_packed(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, base: Base | None = None) -> Iterator[PackedFile]:
    """Open a packed file, with the bases that it needs, and close them after the block."""
    with LocalFile(path) as file:
        packed = open_with_bases(file, limits, base=None if base is None else base.paths)
        try:
            yield packed
        finally:
            close_packed(packed)


def pack_one(path: Path, target: Path, job: Job) -> FileResult:
    """Pack a file; `target` may be `path` itself, if the job verifies and overwrites."""
    with ExitStack() as stack:
        source = stack.enter_context(LocalFile(path))
        bases = [] if job.base is None else stack.enter_context(job.base.opened(job.limits))
        file = stack.enter_context(AtomicFile(target, overwrite=job.overwrite, like=path))
        result: PackResult = pack_file(source, file, job.options, bases=bases, threads=job.threads, verify=job.verify, progress=job.bind(path))
        file.commit()
    return FileResult(str(path), str(target), result.source_bytes, result.packed_bytes, result.source_sha256)


def unpack_one(path: Path, target: Path, job: Job, *, prove: bool = False, sha256: str | None = None) -> FileResult:
    """Restore a file's source.

    Parameters
    ----------
    prove
        Read what was written again, and compare its SHA-256 with the index, before it gets its name.
    sha256
        What the index has to say; CorruptionError if it says something else.
    """
    with open_packed(path, job.limits, job.base) as packed:
        refuse_other(packed, sha256)
        with AtomicFile(target, overwrite=job.overwrite, like=path) as file:
            unpack_file(packed, file, threads=job.threads, progress=job.bind(path))
            index = packed.index
            if prove:
                with LocalFile(file.path) as restored:
                    if (restored_sha256 := sha256_of(restored)) != index.source_sha256:
                        raise ChecksumError(f"restores to SHA-256 {restored_sha256}, the index says {index.source_sha256}", path=str(path))
            file.commit()
        return FileResult(str(path), str(target), index.source_bytes, packed.file.size, index.source_sha256)


def refuse_other(packed: PackedFile, sha256: str | None) -> None:
    """Raise CorruptionError if a packed file is another's than the one with this SHA-256; None is any's."""
    if sha256 is not None and packed.index.source_sha256 != sha256:
        raise CorruptionError(
            f"is the packed form of a file of SHA-256 {packed.index.source_sha256}, the manifest names one of {sha256} here", path=packed.file.name
        )


def described_packed(path: Path, target: Path, limits: Limits) -> FileResult:
    """Return the result of a packed file that is there already."""
    with LocalFile(path) as file:
        packed = PackedFile(file, limits)
        return FileResult(str(path), str(target), packed.index.source_bytes, packed.file.size, packed.index.source_sha256)


def refuse_unproven(path: Path, job: Job) -> None:
    """Raise OptionError where the only copy would be given away unproven."""
    if not job.verify:
        raise OptionError("the source is replaced or deleted only after a verified restore: do without --no-verify", path=str(path))
    if path.is_symlink():
        raise OptionError("this is a link, such as the Hub's cache has: copy the file, or name the one that it points to", path=str(path))
