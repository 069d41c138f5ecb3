# SPDX-License-Identifier: Apache-2.0
"""The verbs, on paths: what the command line calls and what `import weightpack` offers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weightpack.checkpoint import MANIFEST, Manifest, carry_over, config_with_dtype, model_files, new_folder
from weightpack.errors import OptionError, TruncatedError, located
from weightpack.fetch import fetch_repo, is_repo_id
from weightpack.files import AtomicFile, LocalFile
from weightpack.options import DEFAULT_LIMITS, Limits, PackOptions, load_profile
from weightpack.packer import PackResult, Progress, pack_file
from weightpack.parallel import thread_count
from weightpack.reader import PackedFile, is_packed, read_header
from weightpack.report import EstimateReport, FileReport, estimate_file, inspect_file
from weightpack.unpacker import VerifyResult, unpack_file, verify_file

PathLike = str | os.PathLike[str]
FileProgress = Callable[[str, int, int], None]
"""Called with (path, bytes done, bytes in all) while a file is worked on."""

PACKED_SUFFIX = ".wp.safetensors"


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


def pack(
    src: PathLike,
    dst: PathLike | None = None,
    *,
    options: PackOptions | None = None,
    threads: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    progress: FileProgress | None = None,
) -> JobResult:
    """Pack a safetensors file, a model directory, or a Hub repo.

    Parameters
    ----------
    src
        A file, a directory, or a repo id such as "bert-base-uncased".
    dst
        Default: `model.wp.safetensors` beside `model.safetensors`; `name-wp` beside the directory `name`, or here for a repo.
    options
        Default: the profile "fast".
    threads
        Default: the CPUs of this process. The packed bytes do not depend on it.
    verify
        Decode what was written and compare it with the source before the target appears.
    overwrite
        Replace an existing target.
    revision, token, cache_dir
        For a repo id; as in `huggingface_hub.snapshot_download`.

    Raises
    ------
    FormatError
        The source is not a safetensors file.
    OptionError
        The call can't be carried out: no such source, the target exists, the source is packed already.
    LosslessError
        The source changed meanwhile, or the result does not decode to it. No target is written.
    """
    options, n_threads = options or load_profile(), thread_count(threads)
    path = Path(src)
    if not path.exists():
        if not is_repo_id(os.fspath(src)):
            raise OptionError("no such file or directory", path=os.fspath(src))
        path = fetch_repo(os.fspath(src), revision=revision, token=token, cache_dir=cache_dir)
        dst = Path(dst) if dst is not None else Path(f"{os.fspath(src).rsplit('/')[-1]}-wp")
    if path.is_dir():
        target = Path(dst) if dst is not None else path.resolve().with_name(f"{path.resolve().name}-wp")
        return _pack_directory(path, target, options, n_threads, verify, overwrite, progress)
    target = Path(dst) if dst is not None else path.with_name(f"{path.name.removesuffix('.safetensors')}{PACKED_SUFFIX}")
    if target.is_dir():
        target = target / path.name
    _refuse_same(path, target)
    result = _pack_one(path, target, options, n_threads, verify, overwrite, progress)
    return JobResult(str(target), (result,))


def _pack_one(path: Path, target: Path, options: PackOptions, threads: int, verify: bool, overwrite: bool, progress: FileProgress | None) -> FileResult:
    with LocalFile(path) as source, AtomicFile(target, overwrite=overwrite) as file:
        result: PackResult = pack_file(source, file, options, threads=threads, verify=verify, progress=_bind(progress, path))
        file.commit()
    return FileResult(str(path), str(target), result.source_bytes, result.packed_bytes, result.source_sha256)


def _pack_directory(
    folder: Path, target: Path, options: PackOptions, threads: int, verify: bool, overwrite: bool, progress: FileProgress | None
) -> JobResult:
    _refuse_same(folder, target)
    if (folder / MANIFEST).exists():
        raise OptionError("the directory is packed already", path=str(folder))
    files = model_files(folder)
    config = config_with_dtype(files)
    results: list[FileResult] = []
    with new_folder(target, overwrite=overwrite) as work:
        for weight in files.weights:
            (work / weight).parent.mkdir(parents=True, exist_ok=True)
            results.append(_pack_one(folder / weight, work / weight, options, threads, verify, False, progress))
        originals = {}
        for other in files.others:
            changed = config if other == PurePosixPath("config.json") else None
            if changed is not None:
                originals[str(other)] = (folder / other).read_bytes()
            carry_over(folder / other, work / other, changed)
        manifest = Manifest(
            {
                str(weight): {"source_bytes": r.source_bytes, "packed_bytes": r.packed_bytes, "source_sha256": r.source_sha256}
                for weight, r in zip(files.weights, results, strict=True)
            },
            originals,
        )
        carry_over(folder, work / MANIFEST, manifest.to_bytes())
    return JobResult(str(target), tuple(_moved(result, work, target) for result in results))


def _moved(result: FileResult, work: Path, target: Path) -> FileResult:
    return FileResult(
        result.source, str(target / Path(result.target).relative_to(work)), result.source_bytes, result.packed_bytes, result.source_sha256
    )


def unpack(
    src: PathLike, dst: PathLike | None = None, *, threads: int | None = None, overwrite: bool = False, limits: Limits = DEFAULT_LIMITS,
    progress: FileProgress | None = None,
) -> JobResult:  # fmt: skip
    """Restore the source of a packed file or directory, byte for byte; each chunk's checksum is checked on the way.

    Parameters
    ----------
    dst
        Default: `model.safetensors` for `model.wp.safetensors`; `name` for a directory `name-wp`.

    Raises
    ------
    FormatError, LimitError
        The packed file is damaged or claims too much. No target is written.
    """
    path, n_threads = Path(src), thread_count(threads)
    if not path.exists():
        raise OptionError("no such file or directory", path=os.fspath(src))
    if path.is_dir():
        name = path.resolve().name
        target = Path(dst) if dst is not None else path.resolve().with_name(name.removesuffix("-wp") if name.endswith("-wp") else f"{name}-unpacked")
        return _unpack_directory(path, target, n_threads, overwrite, limits, progress)
    if dst is None and not path.name.endswith(PACKED_SUFFIX):
        raise OptionError(f"name the target with -o (dst=): only for files named *{PACKED_SUFFIX} it follows from the name", path=str(path))
    target = Path(dst) if dst is not None else path.with_name(f"{path.name.removesuffix(PACKED_SUFFIX)}.safetensors")
    if target.is_dir():
        target = target / path.name.replace(PACKED_SUFFIX, ".safetensors")
    _refuse_same(path, target)
    return JobResult(str(target), (_unpack_one(path, target, n_threads, overwrite, limits, progress),))


def _unpack_one(path: Path, target: Path, threads: int, overwrite: bool, limits: Limits, progress: FileProgress | None) -> FileResult:
    with open_packed(path, limits) as packed, AtomicFile(target, overwrite=overwrite) as file:
        unpack_file(packed, file, threads=threads, progress=_bind(progress, path))
        file.commit()
        return FileResult(str(path), str(target), packed.index.source_bytes, packed.file.size, packed.index.source_sha256)


def _unpack_directory(folder: Path, target: Path, threads: int, overwrite: bool, limits: Limits, progress: FileProgress | None) -> JobResult:
    _refuse_same(folder, target)
    manifest = Manifest.read(folder)
    files = model_files(folder)
    _refuse_missing(folder, manifest)
    results: list[FileResult] = []
    with new_folder(target, overwrite=overwrite) as work:
        for path in (*files.weights, *files.others):
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            if str(path) in manifest.packed:
                results.append(_unpack_one(folder / path, work / path, threads, False, limits, progress))
            elif str(path) != MANIFEST:
                carry_over(folder / path, work / path, manifest.originals.get(str(path)))
    return JobResult(str(target), tuple(_moved(result, work, target) for result in results))


def _refuse_missing(folder: Path, manifest: Manifest) -> None:
    for name in manifest.packed:
        if not (folder / name).is_file():
            raise TruncatedError(f"the packed file {name!r} that {MANIFEST} names is missing", path=str(folder))


def verify(
    src: PathLike, *, against: PathLike | None = None, threads: int | None = None, limits: Limits = DEFAULT_LIMITS, progress: FileProgress | None = None
) -> list[VerifyResult]:
    """Prove that a packed file or directory restores to what its index says (SHA-256), and to the original if one is named.

    Raises
    ------
    FormatError
        It does not.
    """
    path, n_threads, results = Path(src), thread_count(threads), []
    if not path.exists():
        raise OptionError("no such file or directory", path=os.fspath(src))
    if against is not None and not Path(against).exists():
        raise OptionError("no such file or directory", path=os.fspath(against))
    if path.is_dir():
        manifest = Manifest.read(path)
        _refuse_missing(path, manifest)
        model_files(path)
        pairs = [(path / name, None if against is None else Path(against) / name) for name in sorted(manifest.packed)]
    else:
        pairs = [(path, None if against is None else Path(against))]
    for packed_path, original_path in pairs:
        with ExitStack() as stack:
            packed = stack.enter_context(open_packed(packed_path, limits))
            original = None if original_path is None else stack.enter_context(LocalFile(original_path))
            results.append(verify_file(packed, against=original, threads=n_threads, progress=_bind(progress, packed_path)))
    return results


def inspect(src: PathLike, *, limits: Limits = DEFAULT_LIMITS) -> list[FileReport]:
    """Describe a packed file, or each packed file of a directory; nothing is decoded."""
    path = Path(src)
    if not path.exists():
        raise OptionError("no such file or directory", path=os.fspath(src))
    paths = [path / name for name in model_files(path).weights] if path.is_dir() else [path]
    reports = []
    for each in paths:
        with open_packed(each, limits) as packed:
            reports.append(inspect_file(packed))
    return reports


def estimate(src: PathLike, *, options: PackOptions | None = None, revision: str | None = None, token: str | None = None) -> list[EstimateReport]:
    """Say what packing would give, from samples of each tensor; nothing is written."""
    reports = []
    for each in weight_files(src, revision=revision, token=token):
        with LocalFile(each) as source, located(path=str(each)):
            if is_packed(read_header(source)):
                raise OptionError("the file is packed already")
            reports.append(estimate_file(source, options or load_profile()))
    return reports


def weight_files(src: PathLike, *, revision: str | None = None, token: str | None = None) -> list[Path]:
    """Return the safetensors files of a file, a directory or a Hub repo (which is downloaded)."""
    path = Path(src)
    if not path.exists():
        if not is_repo_id(os.fspath(src)):
            raise OptionError("no such file or directory", path=os.fspath(src))
        path = fetch_repo(os.fspath(src), revision=revision, token=token)
    return [path / name for name in model_files(path).weights] if path.is_dir() else [path]


@contextmanager
def open_packed(path: PathLike, limits: Limits = DEFAULT_LIMITS) -> Iterator[PackedFile]:
    """Open a packed file and close it behind the block."""
    with LocalFile(path) as file:
        yield PackedFile(file, limits)


def _refuse_same(source: Path, target: Path) -> None:
    if target.exists() and os.path.samefile(source, target):
        raise OptionError("source and target are the same", path=str(target))


def _bind(progress: FileProgress | None, path: Path) -> Progress | None:
    return None if progress is None else lambda done, total: progress(str(path), done, total)
