# SPDX-License-Identifier: Apache-2.0
"""A directory packed into another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

from weightpack.errors import ChecksumError
from weightpack.format.constants import VERSION
from weightpack.format.manifest import MANIFEST, Manifest, ManifestFile
from weightpack.io.atomic import replace_file
from weightpack.io.files import LocalFile, sha256_of
from weightpack.io.folder import WorkFolder, work_folder
from weightpack.models.carry import carry_over
from weightpack.models.directory import Note, list_files
from weightpack.models.jobs import FileResult, Job, JobResult, described_packed, open_packed, pack_one
from weightpack.models.overlap import refuse_linked_target, refuse_target
from weightpack.models.plan import CONFIG, plan_packing, refuse_packed
from weightpack.reading.verify import verify_file


def pack_directory(folder: Path, target: Path, job: Job) -> JobResult:
    """Pack a model directory into another. A job that was killed goes on after the last shard that it finished."""
    refuse_target(folder, target, job)
    refuse_packed(folder)
    plan = plan_packing(folder, job)
    refuse_linked_target(plan.files, target)
    one = replace(job, overwrite=False)
    identity = job_name("pack", folder, asdict(job.options), job.verify, job.base.identity if job.base else None)
    entries: dict[str, ManifestFile] = {}
    results = []
    empty = plan.files.empty_folders
    with work_folder(target, source=folder, names=plan.names, folders=empty, job=identity, overwrite=job.overwrite) as work:
        work.clear((*plan.carried, CONFIG, PurePosixPath(MANIFEST)))
        for name in plan.carried:
            entries[str(name)] = carry_over(folder / name, work.path / name)
        if plan.config is not None:
            entries[str(CONFIG)] = changed_entry(folder / CONFIG, plan.config)
            carry_over(folder / CONFIG, work.path / CONFIG, plan.config)
        for name, packed in plan.packed.items():
            result = resumed(work, folder / name, packed, target, one, pack_one, _proven_packed)
            results.append(result)
            entries[str(name)] = packed_entry(result, packed)
        manifest = Manifest(entries, tuple(map(str, empty)))
        replace_file(work.path / MANIFEST, manifest.to_bytes(), hidden_as=None if plan.config is None else folder / CONFIG)  # which it holds
    names = set(plan.names)
    strangers = [path for path in list_files(target).files if path not in names] if job.overwrite else []
    warnings = (*plan.warnings, *(Note(str(path), "it was in the target before, and is no part of what was packed") for path in strangers))
    return JobResult(str(target), tuple(results), *other_bytes(target, manifest), plan.files.left_out, plan.kept, warnings)


def packed_entry(result: FileResult, packed: PurePosixPath) -> ManifestFile:
    """Return what the manifest says of a packed file."""
    return ManifestFile(result.source_bytes, result.source_sha256, str(packed), result.packed_bytes)


def changed_entry(path: Path, changed: bytes) -> ManifestFile:
    """Return what the manifest says of a file that other bytes stand for."""
    original = path.read_bytes()
    return ManifestFile(len(original), hashlib.sha256(original).hexdigest(), original=original, changed_sha256=hashlib.sha256(changed).hexdigest())


def other_bytes(folder: Path, manifest: Manifest) -> tuple[int, int]:
    """Return the bytes of all files that were not packed, of the source and as they are in a packed directory, there with the manifest."""
    others = {name: file for name, file in manifest.files.items() if file.packed is None}
    paths = [folder / name for name in (*others, *manifest.added, MANIFEST)]
    return sum(file.n_bytes for file in others.values()), sum(path.stat().st_size for path in paths if path.is_file())


def job_name(verb: str, folder: Path, *how: object) -> str:
    """Return what makes a job the same job."""
    return hashlib.sha256(json.dumps([verb, VERSION, str(folder.resolve()), how], sort_keys=True, default=str).encode()).hexdigest()


def resumed(
    work: WorkFolder, source: Path, name: PurePosixPath, target: Path, job: Job,
    do: Callable[[Path, Path, Job], FileResult], prove: Callable[[Path, Path, Job], FileResult],
) -> FileResult:  # fmt: skip
    """Make the file `name` of the folder, unless a killed process has made it, which is proven; return the result with the names that it will have."""
    path = work.path / name
    result = work.resumed(name, lambda written: prove(source, written, job)) or do(source, path, job)
    return replace(result, source=str(source), target=str(target / name))


def _proven_packed(source: Path, path: Path, job: Job) -> FileResult:
    """Prove that a packed file restores to its source; raise if it does not."""
    with LocalFile(source) as original, open_packed(path, job.limits, job.base) as packed:
        proof = verify_file(packed, against=original, threads=job.threads)
    return FileResult(str(source), str(path), proof.source_bytes, proof.packed_bytes, proof.source_sha256)


def proven_unpacked(source: Path, path: Path, job: Job) -> FileResult:
    """Prove that a file is what a packed one restores to; raise if it is not."""
    with LocalFile(path) as restored:
        result = described_packed(source, path, job.limits)
        if sha256_of(restored) != result.source_sha256:
            raise ChecksumError("not what the packed file restores to", path=str(path))
    return result
