# SPDX-License-Identifier: Apache-2.0
"""A packed directory restored into another: every file that its manifest names, from whatever stands for it, and what else is there."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

from weightpack.errors import ChecksumError, FolderError, FormatError
from weightpack.format.manifest import MANIFEST, ManifestFile
from weightpack.io.folder import work_folder
from weightpack.models.carry import carry_over, described
from weightpack.models.directory import Note
from weightpack.models.jobs import Job, JobResult, open_packed, refuse_other, unpack_one
from weightpack.models.overlap import refuse_linked_target, refuse_packed_target, refuse_target
from weightpack.models.pack import job_name, proven_unpacked, resumed
from weightpack.models.standing import Standing, refuse_missing, stand


def unpack_directory(folder: Path, target: Path, job: Job) -> JobResult:
    """Restore a packed directory into another, also one in which a job in place has not ended. A job that was killed goes on after the last file.

    Without `job.verify`, files that were carried over are restored as they are now, and those that are missing stay so.

    Raises
    ------
    TruncatedError
        A file of it is missing.
    FolderError
        Files that were carried over are not as they were.
    """
    refuse_target(folder, target, job)
    if job.overwrite:
        refuse_packed_target(target)
    standing = stand(folder)
    refuse_linked_target(standing.files, target)
    refuse_missing(standing, carried=job.verify)
    n_bytes = refuse_unrestorable(folder, standing, job)
    copies = {**standing.carried, **standing.plain, **{str(path): path for path in standing.extra}}
    names = [*map(PurePosixPath, (*standing.packed, *copies, *standing.changed))]
    empty = list(dict.fromkeys((*map(PurePosixPath, standing.manifest.folders), *standing.files.empty_folders)))
    one = replace(job, overwrite=False)
    results, problems, others_bytes = [], [], 0
    with work_folder(target, source=folder, names=names, folders=empty, job=job_name("unpack", folder), overwrite=job.overwrite) as work:
        work.clear((*map(PurePosixPath, (*copies, *standing.changed)),))
        refuse_full_disk(work.path, n_bytes - work.n_bytes)
        for name, path in copies.items():
            copy = carry_over(folder / path, work.path / name)
            others_bytes += copy.n_bytes
            if (problem := difference(folder / path, standing, name, copy)) is not None:
                problems.append(problem)
        if problems and job.verify:
            raise FolderError(problems, len(names), path=str(folder))
        for name in standing.changed:
            original = standing.manifest.originals[name]
            others_bytes += len(original)
            carry_over(folder / (name if (folder / name).is_file() else MANIFEST), work.path / name, original)
        for name, path in standing.packed.items():
            results.append(resumed(work, folder / path, PurePosixPath(name), target, one, unpack_one, proven_unpacked))
    notes = [*(Note(problem.path or "", problem.reason) for problem in problems), *edited(folder, standing)]
    notes += [Note(name, "it stands beside its packed form, from which it was restored") for name in standing.doubled]
    notes += [Note(name, "it is missing") for name in standing.missing]
    if standing.manifest.complete:
        notes += [Note(str(path), f"{MANIFEST} does not name it: it is carried over as it is") for path in standing.extra]
    left_out = (*standing.files.left_out, *(Note(str(path), "the source had no such file") for path in standing.added))
    return JobResult(str(target), tuple(results), others_bytes, standing.other_bytes, left_out, (), tuple(notes))


def refuse_unrestorable(folder: Path, standing: Standing, job: Job) -> int:
    """Open every packed file with its bases, and compare what it says of its source with the manifest; return how many bytes all files restore to.

    Raises
    ------
    FormatError, LimitError
        One is damaged, or another's than the manifest says.
    BaseNotFoundError, WrongBaseError
        One is a difference from what is not there.
    """
    n_bytes = 0
    for name, path in standing.packed.items():
        with open_packed(folder / path, job.limits, job.base) as packed:
            refuse_other(packed, standing.sha256(name))
            n_bytes += packed.index.source_bytes
    return n_bytes + sum(standing.files.folder.joinpath(path).stat().st_size for path in (*standing.carried.values(), *standing.plain.values()))


def refuse_full_disk(folder: Path, n_bytes: int) -> None:
    """Raise OSError if a disk has no room for so many bytes, before they are written. Some disks do not say."""
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < n_bytes:
        raise full_disk(folder, n_bytes, usage.free)


def full_disk(folder: Path, n_bytes: int, free: int) -> OSError:
    """Return the error for a disk that has too little room."""
    return OSError(errno.ENOSPC, f"No space left on device: {n_bytes} bytes are to be written, {free} are free", str(folder))


def difference(path: Path, standing: Standing, name: str, now: ManifestFile) -> FormatError | None:
    """Return what tells a file from the one that the manifest names."""
    file = standing.manifest.files.get(name)
    if file is None or file.sha256 is None or (file.n_bytes, file.sha256) == (now.n_bytes, now.sha256):
        return None
    return ChecksumError(f"is not what it was when the directory was packed: SHA-256 {now.sha256}, {MANIFEST} says {file.sha256}", path=str(path))


def edited(folder: Path, standing: Standing) -> list[Note]:
    """Return which files of those that are restored from the manifest were edited after the directory was packed."""
    notes = []
    for name in standing.changed:
        file, path = standing.manifest.files[name], folder / name
        if path.is_file() and file.changed_sha256 is not None and described(path).sha256 not in (file.changed_sha256, file.sha256):
            notes.append(Note(name, "it was edited after the directory was packed; what is restored is the file before that"))
    return notes
