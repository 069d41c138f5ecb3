# SPDX-License-Identifier: Apache-2.0
"""Packing and unpacking files and model directories: beside the source, or in its place. Nothing is replaced or deleted before its successor is proven."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from weightpack.errors import ChecksumError, LosslessError, OptionError, TruncatedError
from weightpack.format.constants import VERSION
from weightpack.io.atomic import AtomicFile, replace_file, sync_folder
from weightpack.io.files import LocalFile, sha256_of
from weightpack.io.folder import WorkFolder, refuse_overlap, work_folder
from weightpack.io.progress import Progress
from weightpack.models.directory import MANIFEST, Manifest, ModelFiles, carry_over, model_files, packed_config
from weightpack.options import DEFAULT_LIMITS, Limits, PackOptions, load_profile
from weightpack.reading.bases import Base, open_with_bases
from weightpack.reading.packed_file import PackedFile, is_packed, read_header
from weightpack.reading.restored import close_packed
from weightpack.reading.unpack import unpack_file
from weightpack.reading.verify import verify_file
from weightpack.sources import segment
from weightpack.writing.packer import PackResult, pack_file

FileProgress = Callable[[str, int, int], None]
"""Called with (path, bytes done, bytes in all) while a file is worked on."""

_CONFIG = PurePosixPath("config.json")


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
    """A finished `pack` or `unpack`: the target, and each weights file in it."""

    target: str
    files: tuple[FileResult, ...]

    @property
    def source_bytes(self) -> int:
        return sum(file.source_bytes for file in self.files)

    @property
    def packed_bytes(self) -> int:
        return sum(file.packed_bytes for file in self.files)

    @property
    def ratio(self) -> float:
        """Packed bytes / source bytes: smaller is better."""
        return self.packed_bytes / self.source_bytes if self.source_bytes else 1.0


@dataclass(frozen=True, slots=True)
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
    """Open a packed file, with the bases that it needs, and close them behind the block."""
    with LocalFile(path) as file:
        packed = open_with_bases(file, limits, base=None if base is None else base.paths)
        try:
            yield packed
        finally:
            close_packed(packed)


# ---- one file


def pack_one(path: Path, target: Path, job: Job) -> FileResult:
    """Pack a file; `target` may be `path` itself, if the job verifies and overwrites."""
    with ExitStack() as stack:
        source = stack.enter_context(LocalFile(path))
        bases = [] if job.base is None else stack.enter_context(job.base.opened(job.limits))
        file = stack.enter_context(AtomicFile(target, overwrite=job.overwrite, like=path))
        result: PackResult = pack_file(source, file, job.options, bases=bases, threads=job.threads, verify=job.verify, progress=job.bind(path))
        file.commit()
    return FileResult(str(path), str(target), result.source_bytes, result.packed_bytes, result.source_sha256)


def unpack_one(path: Path, target: Path, job: Job, *, prove: bool = False) -> FileResult:
    """Restore a file's source. With `prove`, what was written is read again, and its SHA-256 compared with the index, before it gets its name."""
    with open_packed(path, job.limits, job.base) as packed, AtomicFile(target, overwrite=job.overwrite, like=path) as file:
        unpack_file(packed, file, threads=job.threads, progress=job.bind(path))
        index = packed.index
        if prove:
            with LocalFile(file.path) as restored:
                if (found := sha256_of(restored)) != index.source_sha256:
                    raise ChecksumError(f"restores to SHA-256 {found}, the index says {index.source_sha256}", path=str(path))
        file.commit()
        return FileResult(str(path), str(target), index.source_bytes, packed.file.size, index.source_sha256)


def is_packed_weight(path: Path) -> bool:
    """Is a safetensors file packed?"""
    with LocalFile(path) as file:
        return is_packed(read_header(file))


def _described(path: Path, limits: Limits) -> FileResult:
    """Return the result of a packed file that is there already."""
    with LocalFile(path) as file:
        packed = PackedFile(file, limits)
        return FileResult(str(path), str(path), packed.index.source_bytes, packed.file.size, packed.index.source_sha256)


def _entry(result: FileResult) -> dict[str, int | str]:
    return {"source_bytes": result.source_bytes, "packed_bytes": result.packed_bytes, "source_sha256": result.source_sha256}


# ---- a directory, to another


def pack_directory(folder: Path, target: Path, job: Job) -> JobResult:
    """Pack a model directory. A job that was killed goes on after the last shard that it finished."""
    if (folder / MANIFEST).exists():
        raise OptionError("the directory is packed already", path=str(folder))
    files = model_files(folder)
    config = packed_config(files, flag=job.hf_flag)
    one = replace(job, overwrite=False)
    base = job.base.identity if job.base else None
    for path in job.base.paths if job.base else ():
        refuse_overlap(path, target, what="base")
    names = [*files.weights, *files.others, PurePosixPath(MANIFEST)]
    identity = _name("pack", folder, asdict(job.options), job.verify, base)
    with work_folder(target, source=folder, names=names, job=identity, overwrite=job.overwrite) as work:
        results = [_resumed(work, folder, weight, target, one, pack_one, _proven_packed) for weight in files.weights]
        originals = {}
        for other in files.others:
            changed = config if other == _CONFIG else None
            if changed is not None:
                originals[str(other)] = (folder / other).read_bytes()
            carry_over(folder / other, work.path / other, changed)
        manifest = Manifest({str(weight): _entry(r) for weight, r in zip(files.weights, results, strict=True)}, originals)
        carry_over(folder, work.path / MANIFEST, manifest.to_bytes())
    return JobResult(str(target), tuple(results))


def unpack_directory(folder: Path, target: Path, job: Job) -> JobResult:
    """Restore a packed directory."""
    manifest = Manifest.read(folder)
    files = model_files(folder)
    refuse_missing(folder, manifest)
    packed = _packed_weights(folder, files, manifest)
    one = replace(job, overwrite=False)
    results = []
    names = [path for path in (*files.weights, *files.others) if str(path) != MANIFEST]
    with work_folder(target, source=folder, names=names, job=_name("unpack", folder), overwrite=job.overwrite) as work:
        for path in (*files.weights, *files.others):
            if path in packed:
                results.append(_resumed(work, folder, path, target, one, unpack_one, _proven_unpacked))
            elif str(path) != MANIFEST:
                carry_over(folder / path, work.path / path, manifest.originals.get(str(path)))
    return JobResult(str(target), tuple(results))


def _packed_weights(folder: Path, files: ModelFiles, manifest: Manifest) -> set[PurePosixPath]:
    """Return the files to unpack: those of the manifest, and such as a killed job in place had packed but not yet listed."""
    return {path for path in files.weights if str(path) in manifest.packed or is_packed_weight(folder / path)}


def refuse_missing(folder: Path, manifest: Manifest) -> None:
    """Raise TruncatedError if a packed file of the manifest is not there."""
    for name in manifest.packed:
        if not (folder / name).is_file():
            raise TruncatedError(f"the packed file {name!r} that {MANIFEST} names is missing", path=str(folder))


def _name(verb: str, folder: Path, *how: object) -> str:
    """Return what makes a job the same job."""
    return hashlib.sha256(json.dumps([verb, VERSION, str(folder.resolve()), how], sort_keys=True, default=str).encode()).hexdigest()


def _resumed(
    work: WorkFolder, folder: Path, name: PurePosixPath, target: Path, job: Job,
    do: Callable[[Path, Path, Job], FileResult], prove: Callable[[Path, Path, Job], FileResult],
) -> FileResult:  # fmt: skip
    """Do a file of the folder, unless a killed process has done it, which is proven; return the result with the names that it will have."""
    source, path = folder / name, work.path / name
    result = work.resumed(name, lambda written: prove(source, written, job)) or do(source, path, job)
    return replace(result, source=str(source), target=str(target / name))


def _proven_packed(source: Path, path: Path, job: Job) -> FileResult:
    """Prove that a packed file restores to its source; raise if it does not."""
    with LocalFile(source) as original, open_packed(path, job.limits, job.base) as packed:
        proof = verify_file(packed, against=original, threads=job.threads)
    return FileResult(str(source), str(path), proof.source_bytes, proof.packed_bytes, proof.source_sha256)


def _proven_unpacked(source: Path, path: Path, job: Job) -> FileResult:
    """Prove that a file is what a packed one restores to; raise if it is not."""
    with LocalFile(path) as restored:
        result = _described(source, job.limits)
        if sha256_of(restored) != result.source_sha256:
            raise ChecksumError("not what the packed file restores to", path=str(path))
    return result


# ---- in place of the source


def refuse_unproven(path: Path, job: Job) -> None:
    """Raise OptionError where the only copy would be given away unproven."""
    if not job.verify:
        raise OptionError("the source is replaced or deleted only after a verified restore: do without --no-verify", path=str(path))
    if path.is_symlink():
        raise OptionError("this is a link, such as the Hub's cache has: copy the file, or name the one that it points to", path=str(path))


def pack_in_place(path: Path, job: Job) -> JobResult:
    """Replace a plain file, or the weights of a directory one after the other, by what decodes to it. A killed job is continued by running it again."""
    refuse_unproven(path, job)
    one = replace(job, overwrite=True)
    if path.is_file():
        with LocalFile(path) as file:
            if (kind := segment(file).source_format) != "safetensors":
                raise OptionError(f"only safetensors files are packed in place: packed, it would be no {kind} file under its name", path=str(path))
        return JobResult(str(path), (pack_one(path, path, one),))
    files = model_files(path)
    done = {weight for weight in files.weights if is_packed_weight(path / weight)}
    manifest = Manifest.read(path) if (path / MANIFEST).exists() else Manifest({}, {})
    if len(done) == len(files.weights) and all(str(weight) in manifest.packed for weight in done):
        raise OptionError("the directory is packed already", path=str(path))
    config = None if done else packed_config(files, flag=job.hf_flag)  # what it says of dtypes is seen in plain weights only
    if config is not None and str(_CONFIG) not in manifest.originals:
        manifest.originals[str(_CONFIG)] = (path / _CONFIG).read_bytes()
    replace_file(path / MANIFEST, manifest.to_bytes())  # before anything changes: it holds the old config
    if config is not None:
        replace_file(path / _CONFIG, config)
    results = []
    for weight in files.weights:
        refuse_unproven(path / weight, job)
        result = _described(path / weight, job.limits) if weight in done else pack_one(path / weight, path / weight, one)
        results.append(result)
        manifest.packed[str(weight)] = _entry(result)
        replace_file(path / MANIFEST, manifest.to_bytes())
    return JobResult(str(path), tuple(results))


def unpack_in_place(path: Path, job: Job) -> JobResult:
    """Replace a packed file, or those of a directory one after the other, by their sources. A killed job is continued by running it again."""
    refuse_unproven(path, job)
    one = replace(job, overwrite=True)
    if path.is_file():
        return JobResult(str(path), (unpack_one(path, path, one, prove=True),))
    manifest = Manifest.read(path)
    files = model_files(path)
    refuse_missing(path, manifest)
    results = []
    for weight in files.weights:
        if is_packed_weight(path / weight):
            refuse_unproven(path / weight, job)
            results.append(unpack_one(path / weight, path / weight, one, prove=True))
    for name, data in manifest.originals.items():
        replace_file(path / name, data)
    (path / MANIFEST).unlink()
    sync_folder(path)
    return JobResult(str(path), tuple(results))


def delete_source(path: Path, result: JobResult, *, packed: bool) -> None:
    """Delete what a job has made another form of, once more proven: weights by SHA-256, other files of a directory by bytes. What the job left out stays.

    Parameters
    ----------
    packed
        Is the result packed, and the source plain, or the reverse?
    """
    for file in result.files:
        plain = Path(file.source if packed else file.target)
        with LocalFile(plain) as opened:
            if sha256_of(opened) != file.source_sha256:
                raise LosslessError("the file is no longer what was packed: the source stays", path=str(plain))
    if path.is_file():
        path.unlink()
        sync_folder(path.parent)
        return
    target = Path(result.target)
    manifest = Manifest.read(target if packed else path)
    others = [name for name in model_files(path).others if str(name) != MANIFEST]
    for name in others:
        changed = manifest.originals.get(str(name))  # what stands for it on the packed side is another file
        same = (
            filecmp.cmp(path / name, target / name, shallow=False) if changed is None else ((path if packed else target) / name).read_bytes() == changed
        )
        if not same:
            raise LosslessError("the file is no longer what was copied: the source stays", path=str(path / name))
    for deleted in [*(Path(file.source) for file in result.files), *(path / name for name in others), path / MANIFEST]:
        deleted.unlink(missing_ok=True)
    for folder in sorted((p for p in path.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
        _remove_if_empty(folder)
    _remove_if_empty(path)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
