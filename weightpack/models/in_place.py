# SPDX-License-Identifier: Apache-2.0
"""Files and directories packed and unpacked in their own place: each result is proven before it replaces its source.

A directory gets its manifest first, with a note that a job is at work, and loses the note, or the manifest, last. In between each of its weights is whole,
plain or packed, and which of the two is seen from the file: the same job, or the opposite one, goes on from there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from weightpack.errors import OptionError, located
from weightpack.format.manifest import MANIFEST, Manifest, ManifestFile
from weightpack.io.atomic import replace_file, sync_folder
from weightpack.io.files import LocalFile
from weightpack.io.working_names import leftovers, remove
from weightpack.models.carry import described, replace_like
from weightpack.models.directory import ModelFiles, Note, has_manifest, packed_config, path_below
from weightpack.models.jobs import Job, JobResult, described_packed, open_packed, pack_one, refuse_other, refuse_unproven, unpack_one
from weightpack.models.pack import changed_entry, other_bytes, packed_entry
from weightpack.models.plan import CONFIG, IS_LINK, ONLY_SAFETENSORS, check_plain, plan_packing, refuse_names
from weightpack.models.standing import Standing, refuse_missing, stand
from weightpack.models.unpack import edited, full_disk
from weightpack.sources import refuse_pointer, segment


@dataclass(frozen=True, slots=True)
class _Start:
    """What a directory is packed from: the manifest to begin with, what stands for config.json (None: what is there), and the files that are packed already."""

    files: ModelFiles
    manifest: Manifest
    config: bytes | None
    packed: dict[str, PurePosixPath]
    kept: tuple[Note, ...]
    warnings: tuple[Note, ...] = ()


def pack_in_place(path: Path, job: Job) -> JobResult:
    """Replace a plain file, or the safetensors files of a directory one after the other, by what decodes to it. Run again, a job that was killed goes on."""
    refuse_unproven(path, job)
    one = replace(job, overwrite=True)
    if path.is_file():
        with located(path=str(path)), LocalFile(path) as file:
            refuse_pointer(file)
            if (kind := segment(file).source_format) != "safetensors":
                raise OptionError(f"only safetensors files are packed in place: packed, it would be no {kind} file under its name", path=str(path))
        return JobResult(str(path), (pack_one(path, path, one),))
    start = _go_on(path, job) if has_manifest(path) else _begin(path, job)
    weights = [name for name in start.manifest.packed if name not in start.packed]
    _refuse_read_only(path, [*weights, MANIFEST])
    hidden_as = None if start.config is None else path / CONFIG
    replace_file(path / MANIFEST, start.manifest.to_bytes(), hidden_as=hidden_as)  # before anything changes: it holds the old config
    if start.config is not None:
        replace_like(path / CONFIG, start.config)
    files, results = dict(start.manifest.files), []
    for name in start.manifest.packed:
        there = start.packed.get(name)
        result = pack_one(path / name, path / name, one) if there is None else described_packed(path / there, path / there, job.limits)
        results.append(result)
        files[name] = packed_entry(result, there or PurePosixPath(name))
    _remove_leftovers(path, start.packed)
    manifest = replace(start.manifest, files=files, in_place=None)
    replace_file(path / MANIFEST, manifest.to_bytes())
    return JobResult(str(path), tuple(results), *other_bytes(path, manifest), start.files.left_out, start.kept, start.warnings)


def _begin(folder: Path, job: Job) -> _Start:
    plan = plan_packing(folder, job, in_place=True)
    files = {str(name): described(folder / name) for name in plan.carried}
    files |= {str(name): _to_be_packed(folder, str(name)) for name in plan.packed}
    if plan.config is not None:
        files[str(CONFIG)] = changed_entry(folder / CONFIG, plan.config)
    manifest = Manifest(files, tuple(map(str, plan.files.empty_folders)), in_place="pack")
    return _Start(plan.files, manifest, plan.config, {}, plan.kept, plan.warnings)


def _go_on(folder: Path, job: Job) -> _Start:
    standing = stand(folder)
    if standing.unfinished is None:
        raise OptionError(f"the directory is packed already: it has a {MANIFEST}", path=str(folder))
    refuse_missing(standing, carried=False)
    refuse_names(folder, (*standing.extra, *standing.files.empty_folders))
    files, kept = dict(standing.manifest.files), []
    for name, path in standing.plain.items():
        if path.suffix != ".safetensors" or (path in standing.files.linked and not (folder / path).is_symlink()):
            kept.append(Note(name, ONLY_SAFETENSORS))
            files[name] = described(folder / path)
        else:
            check_plain(folder / path, in_place=True)
            files[name] = _to_be_packed(folder, name)
    for name in standing.packed:  # of version 1, which listed them one by one
        files.setdefault(name, _to_be_packed(folder, name))
    for path in standing.extra:
        files[str(path)] = described(folder / path)
    config = None
    if (original := standing.manifest.originals.get(str(CONFIG))) is not None and (folder / CONFIG).is_file():
        if CONFIG in standing.files.linked:
            raise OptionError(IS_LINK, path=str(folder / CONFIG))
        if job.hf_flag and (folder / CONFIG).read_bytes() == original and (config := packed_config(standing.files)) is not None:
            files[str(CONFIG)] = changed_entry(folder / CONFIG, config)
    folders = tuple(map(str, standing.files.empty_folders))
    manifest = Manifest(files, folders, standing.manifest.added, in_place="pack")
    return _Start(standing.files, manifest, config, standing.packed, tuple(kept))


def _to_be_packed(folder: Path, name: str) -> ManifestFile:
    return ManifestFile((folder / name).stat().st_size, None, name)


def unpack_in_place(path: Path, job: Job) -> JobResult:
    """Replace a packed file, or those of a directory one after the other, by their sources. Run again, a job that was killed goes on."""
    refuse_unproven(path, job)
    one = replace(job, overwrite=True)
    if path.is_file():
        return JobResult(str(path), (unpack_one(path, path, one, prove=True),))
    standing = stand(path)
    refuse_missing(standing, carried=False)
    _refuse_unreplaceable(path, standing, job)
    notes = edited(path, standing)
    packed_bytes = standing.other_bytes
    replace_file(path / MANIFEST, replace(standing.manifest, in_place="unpack").to_bytes())
    results = []
    for name, packed in standing.packed.items():
        if name in standing.doubled:
            results.append(described_packed(path / packed, path / name, job.limits))
        else:
            results.append(unpack_one(path / packed, path / name, one, prove=True))
        if name != str(packed):
            (path / packed).unlink()
            sync_folder((path / packed).parent)
    for name, original in standing.manifest.originals.items():
        target = path_below(path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_like(target, original)
    _remove_leftovers(path, standing.plain)
    (path / MANIFEST).unlink()
    sync_folder(path)
    names = map(str, (*standing.carried.values(), *standing.plain.values(), *standing.extra, *standing.changed))
    return JobResult(str(path), tuple(results), sum((path / name).stat().st_size for name in names), packed_bytes, standing.files.left_out, (), tuple(notes))


def _refuse_unreplaceable(folder: Path, standing: Standing, job: Job) -> None:
    """Raise before anything is written if a file can't be restored in its place."""
    for name, packed in standing.packed.items():
        if packed in standing.files.linked:
            raise OptionError(IS_LINK, path=str(folder / packed))
        target = path_below(folder, name)
        if name in standing.doubled and described(target).sha256 != standing.sha256(name):
            raise OptionError(f"a file stands where {str(packed)!r} is to be unpacked to, and is another: move it away", path=str(target))
    for name in standing.changed:
        if path_below(folder, name).is_symlink():
            raise OptionError(IS_LINK, path=str(folder / name))
    _refuse_read_only(folder, [*standing.packed, *standing.changed, MANIFEST])
    growth = 0
    free = shutil.disk_usage(folder).free
    for name, packed in standing.packed.items():
        with open_packed(folder / packed, job.limits, job.base) as opened:
            refuse_other(opened, standing.sha256(name))
            if growth + opened.index.source_bytes > free > 0:
                raise full_disk(folder, growth + opened.index.source_bytes, free)
            growth += opened.index.source_bytes - opened.file.size


def _remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what killed jobs left beside files that this one does not write anew: nobody else would, and it can be as large as they are."""
    for name in names:
        for path, _ in leftovers(folder / name):
            remove(path)


def _refuse_read_only(folder: Path, names: Iterable[str]) -> None:
    for parent in sorted({(folder / name).parent for name in names}):
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "files in this folder can't be replaced: no permission to write", str(parent))
