# SPDX-License-Identifier: Apache-2.0
"""The verbs, on paths: what the command line calls and what `import weightpack` offers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weightpack.checkpoint import MANIFEST, Manifest, carry_over, model_files, new_folder, packed_config
from weightpack.errors import ChecksumError, OptionError, TruncatedError, located
from weightpack.fetch import fetch_repo, is_repo_id, published_weights
from weightpack.files import AtomicFile, LocalFile, RandomReader
from weightpack.options import DEFAULT_LIMITS, Limits, PackOptions, load_profile
from weightpack.packer import PackResult, Progress, pack_file
from weightpack.parallel import thread_count
from weightpack.reader import PackedFile, is_packed, read_header
from weightpack.remote import RemoteFile, is_url
from weightpack.report import EstimateReport, FileReport, estimate_file, inspect_file
from weightpack.unpacker import VerifyResult, unpack_file, verify_file

PathLike = str | os.PathLike[str]
FileProgress = Callable[[str, int, int], None]
"""Called with (path, bytes done, bytes in all) while a file is worked on."""

PACKED_SUFFIX = ".wp.safetensors"
_REMOTE_SAMPLE_BYTES = 32 << 20


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
    hf_flag: bool = False,
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
    hf_flag
        Of a directory: let config.json say that it is packed (as a quantisation method), so that transformers without weightpack names it when it fails.
        Unpacking restores the old config.json.
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
        return _pack_directory(path, target, options, n_threads, verify, overwrite, hf_flag, progress)
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
    folder: Path, target: Path, options: PackOptions, threads: int, verify: bool, overwrite: bool, hf_flag: bool, progress: FileProgress | None
) -> JobResult:
    _refuse_same(folder, target)
    if (folder / MANIFEST).exists():
        raise OptionError("the directory is packed already", path=str(folder))
    files = model_files(folder)
    config = packed_config(files, flag=hf_flag)
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
    src: PathLike, *, against: PathLike | None = None, decode: bool = True, threads: int | None = None, revision: str | None = None,
    token: str | None = None, limits: Limits = DEFAULT_LIMITS, progress: FileProgress | None = None,
) -> list[VerifyResult]:  # fmt: skip
    """Prove that a packed file, directory or Hub repo restores to what its index says (SHA-256), and to the original if one is named.

    Parameters
    ----------
    src
        A file, a directory, or a repo id (which is downloaded).
    against
        The original: a file, a directory, or a repo `name[@revision]`, of which nothing is downloaded: the Hub publishes the SHA-256 of each large file.
    decode
        False: only compare the SHA-256 in the index with that of the repo `against`, which needs the packed file's header alone.

    Raises
    ------
    FormatError
        It does not.
    """
    path, text, n_threads = Path(src), os.fspath(src), thread_count(threads)
    published = None
    if against is not None and not Path(against).exists():
        published = _published_sha256(os.fspath(against), token)
    if not decode and published is None:
        raise OptionError("without decoding there is only a Hub repo's SHA-256 to compare with: name one with --against")
    if not decode:
        with open_weights(src, revision=revision, token=token) as files:
            names = [PurePosixPath(file.name).name if path.is_file() else _relative_name(file.name, text) for file in files]
            opened = [PackedFile(file, limits) for file in files]
            results = [VerifyResult(packed.index.source_bytes, packed.file.size, packed.index.source_sha256, False) for packed in opened]
            _compare_published(list(zip(names, results, strict=True)), published or {}, os.fspath(against or ""))
            return results
    if not path.exists():
        if not is_repo_id(text):
            raise OptionError("no such file or directory", path=text)
        path = fetch_repo(text, revision=revision, token=token)
    if path.is_dir():
        manifest = Manifest.read(path)
        _refuse_missing(path, manifest)
        model_files(path)
        names = sorted(manifest.packed)
        pairs = [(path / name, None if against is None or published is not None else Path(against) / name) for name in names]
    else:
        names = [path.name]
        pairs = [(path, None if against is None or published is not None else Path(against))]
    results = []
    for packed_path, original_path in pairs:
        with ExitStack() as stack:
            packed = stack.enter_context(open_packed(packed_path, limits))
            original = None if original_path is None else stack.enter_context(LocalFile(original_path))
            results.append(verify_file(packed, against=original, threads=n_threads, progress=_bind(progress, packed_path)))
    if published is not None:
        _compare_published(list(zip(names, results, strict=True)), published, os.fspath(against or ""))
    return results


def _published_sha256(repo: str, token: str | None) -> dict[str, str | None]:
    """Return path -> SHA-256 of a repo's weights, as the Hub publishes them."""
    repo_id, _, revision = repo.partition("@")
    if not is_repo_id(repo_id):
        raise OptionError("no such file or directory", path=repo)
    return {file.path: file.sha256 for file in published_weights(repo_id, revision=revision or None, token=token)}


def _compare_published(results: list[tuple[str, VerifyResult]], published: dict[str, str | None], repo: str) -> None:
    for name, result in results:
        name = name.replace(PACKED_SUFFIX, ".safetensors")
        if name not in published:
            raise OptionError(f"the repo {repo!r} has no file {name!r} to compare with")
        if published[name] is None:
            raise OptionError(f"the repo {repo!r} keeps {name!r} in git, without a SHA-256: download it and compare with that")
        if published[name] != result.source_sha256:
            raise ChecksumError(f"restores to SHA-256 {result.source_sha256}, the repo {repo!r} publishes {published[name]}", path=name)


def _relative_name(name: str, root: str) -> str:
    """Return a file's path below a local folder or in a repo, from the name that its reader has."""
    if name.startswith("hf://"):
        return name.removeprefix("hf://").split("@", 1)[1].split("/", 1)[1]
    return PurePosixPath(os.path.relpath(name, root)).as_posix()


def inspect(
    src: PathLike, *, revision: str | None = None, token: str | None = None, codecs: bool | None = None, limits: Limits = DEFAULT_LIMITS
) -> list[FileReport]:
    """Describe a packed file, or each packed file of a directory or Hub repo; nothing is decoded.

    Parameters
    ----------
    src
        A file, a directory, a URL, or a repo id. Of what is not on this machine only headers are fetched.
    codecs
        Look at the first chunks of each tensor to say which codecs it uses; default: only where the file is on this machine.
    """
    with open_weights(src, revision=revision, token=token) as files:
        return [
            inspect_file(PackedFile(file, limits), codecs=isinstance(file, LocalFile) if codecs is None else codecs) for file in files
        ]  # fmt: skip


def estimate(src: PathLike, *, options: PackOptions | None = None, revision: str | None = None, token: str | None = None) -> list[EstimateReport]:
    """Say what packing would give, from samples of each tensor; nothing is written.

    Of a URL or a Hub repo about 32 MB a file are fetched, in single chunks.
    """
    reports = []
    with open_weights(src, revision=revision, token=token) as files:
        for file in files:
            with located(path=file.name):
                if is_packed(read_header(file)):
                    raise OptionError("the file is packed already")
                samples = {} if isinstance(file, LocalFile) else {"sample_chunks": 1, "budget_bytes": _REMOTE_SAMPLE_BYTES}
                reports.append(estimate_file(file, options or load_profile(), **samples))
    return reports


@contextmanager
def open_weights(src: PathLike, *, revision: str | None = None, token: str | None = None) -> Iterator[list[RandomReader]]:
    """Open the safetensors files of a file, a directory, a URL or a Hub repo; of the latter two only what is read is fetched."""
    path, text = Path(src), os.fspath(src)
    with ExitStack() as stack:
        if path.exists():
            paths = [path / name for name in model_files(path).weights] if path.is_dir() else [path]
            yield [stack.enter_context(closing(LocalFile(each))) for each in paths]
            return
        if is_url(text):
            urls = [text]
        elif is_repo_id(text):
            urls = [file.url for file in published_weights(text, revision=revision, token=token)]
        else:
            raise OptionError("no such file or directory", path=text)
        yield [stack.enter_context(closing(RemoteFile(url, token=token))) for url in urls]


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
