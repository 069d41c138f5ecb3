# SPDX-License-Identifier: Apache-2.0
"""The proof that a packed directory restores to its source: every file of it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath

from weightpack.errors import ChecksumError, CorruptionError, FolderError, FormatError, TruncatedError
from weightpack.format.manifest import MANIFEST
from weightpack.io.files import LocalFile
from weightpack.models.carry import described
from weightpack.models.directory import list_files
from weightpack.models.jobs import Job, open_packed, refuse_other
from weightpack.models.report import Reports, Total
from weightpack.models.standing import Standing, stand
from weightpack.models.unpack import difference
from weightpack.reading.verify import VerifyResult, verify_file


def verify_directory(folder: Path, job: Job, against: Path | None = None) -> Reports[VerifyResult]:
    """Prove that each file of a packed directory is, or restores to, the file of the source that the manifest names; and of an original, if one is named.

    Raises
    ------
    FolderError
        Files differ, are missing, or are too many; or a job in place has not ended.
    BaseNotFoundError, WrongBaseError
        A file is a difference from what is not there.
    """
    standing = stand(folder)
    results: list[VerifyResult] = []
    problems: list[FormatError] = list(_unfinished(folder, standing))
    for name, path in standing.packed.items():
        try:
            results.append(_packed(folder, standing, name, path, job, against))
        except FormatError as error:
            error.path = error.path or str(folder / path)
            problems.append(error)
    copies = {**standing.carried, **standing.plain, **{str(path): path for path in standing.extra}}
    for name, path in copies.items():
        result, problem = _copied(folder, standing, name, path, against)
        results.append(result)
        problems += problem
    for name in standing.changed:
        result, problem = _changed(folder, standing, name, against)
        results.append(result)
        problems += problem
    results += [replace(_as_it_is(folder / path, str(path)), state="added") for path in standing.added]
    for name in standing.missing:
        problems.append(TruncatedError(f"is missing: {MANIFEST} names it", path=str(folder / (standing.manifest.files[name].packed or name))))
    if against is not None:
        problems += _only_in(against, folder, standing)
    n_files = len(results) + len(standing.missing)
    if problems:
        raise FolderError(problems, n_files, path=str(folder))
    source_bytes = sum(result.source_bytes for result in results if result.state != "added")
    packed_bytes = sum(result.packed_bytes for result in results) + (folder / MANIFEST).stat().st_size
    return Reports(sorted(results, key=lambda result: result.name), Total(n_files, source_bytes, packed_bytes))


def _unfinished(folder: Path, standing: Standing) -> Iterator[FormatError]:
    if (job := standing.unfinished) is None:
        return
    other = "unpack" if job == "pack" else "pack"
    states = "; ".join(f"{state}: {', '.join(map(repr, names)) or 'none'}" for state, names in (("packed", standing.packed), ("plain", standing.plain)))
    yield CorruptionError(f"`{job} --in-place` has not ended: run it again, or go back with `{other} --in-place`. {states}", path=str(folder))


def _packed(folder: Path, standing: Standing, name: str, path: PurePosixPath, job: Job, against: Path | None) -> VerifyResult:
    with ExitStack() as stack:
        packed = stack.enter_context(open_packed(folder / path, job.limits, job.base))
        refuse_other(packed, standing.sha256(name))
        original = None
        if against is not None:
            if not (against / name).is_file():
                raise CorruptionError(f"restores to {name!r}, which is not in {against}", path=str(folder / path))
            original = stack.enter_context(LocalFile(against / name))
        return replace(verify_file(packed, against=original, threads=job.threads, progress=job.bind(folder / path)), name=name)


def _copied(folder: Path, standing: Standing, name: str, path: PurePosixPath, against: Path | None) -> tuple[VerifyResult, list[FormatError]]:
    result, problems = _as_it_is(folder / path, name), []
    covered = standing.sha256(name) is not None
    state = "plain" if name in standing.plain else "carried" if covered else "not covered"
    if (problem := difference(folder / path, standing, name, described(folder / path))) is not None:
        problems.append(problem)
    elif against is not None:
        problems += _compared(folder / path, against, name, result.source_sha256)
    return replace(result, state=state, compared=against is not None and not problems), problems


def _changed(folder: Path, standing: Standing, name: str, against: Path | None) -> tuple[VerifyResult, list[FormatError]]:
    file, path = standing.manifest.files[name], folder / name
    problems: list[FormatError] = []
    if not path.is_file():
        problems.append(TruncatedError("is missing", path=str(path)))
    elif file.changed_sha256 is not None and (now := described(path).sha256) not in (file.changed_sha256, file.sha256):
        problems.append(ChecksumError(f"is not what it was when the directory was packed: SHA-256 {now}, not {file.changed_sha256}", path=str(path)))
    if against is not None:
        problems += _compared(path, against, name, file.sha256)
    packed_bytes = path.stat().st_size if path.is_file() else 0
    return VerifyResult(file.n_bytes, packed_bytes, file.sha256 or "", against is not None and not problems, name, "changed"), problems


def _as_it_is(path: Path, name: str) -> VerifyResult:
    file = described(path)
    return VerifyResult(file.n_bytes, file.n_bytes, file.sha256 or "", False, name, "carried")


def _compared(path: Path, against: Path, name: str, sha256: str | None) -> list[FormatError]:
    if not (against / name).is_file():
        return [CorruptionError(f"is not in {against}", path=str(path))]
    if described(against / name).sha256 != sha256:
        return [CorruptionError(f"differs from {against / name}", path=str(path))]
    return []


def _only_in(against: Path, folder: Path, standing: Standing) -> list[FormatError]:
    """Return what an original has and the packed directory has nothing of."""
    original = list_files(against)
    known = {*standing.packed, *standing.plain, *standing.carried, *standing.changed, *standing.missing, *map(str, standing.extra)}
    folders = {*map(PurePosixPath, standing.manifest.folders), *standing.files.folders}
    only = [path for path in original.files if str(path) not in known] + [path for path in original.empty_folders if path not in folders]
    return [CorruptionError(f"is not in {folder}", path=str(against / path)) for path in only]
