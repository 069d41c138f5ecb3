# SPDX-License-Identifier: Apache-2.0
"""The verbs, on paths: what the command line calls and what `import weightpack` offers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from weightpack.errors import ChecksumError, OptionError, PathNotFoundError, located
from weightpack.format.manifest import MANIFEST, PACKED_SAFETENSORS, PACKED_SUFFIX
from weightpack.io.fetch import fetch_repo, is_repo_id, published_weights
from weightpack.io.files import LocalFile, RandomReader, named_path, refuse_irregular_file
from weightpack.io.parallel import thread_count
from weightpack.io.remote import RemoteFile, is_url
from weightpack.models.delete import delete_source as remove_source
from weightpack.models.delete import refuse_undeletable
from weightpack.models.directory import has_manifest, model_files
from weightpack.models.in_place import pack_in_place, unpack_in_place
from weightpack.models.jobs import FileProgress, FileResult, Job, JobResult, open_packed, pack_one, unpack_one
from weightpack.models.look import estimate_directory, inspect_directory
from weightpack.models.overlap import refuse_target
from weightpack.models.pack import pack_directory
from weightpack.models.report import Reports, Total
from weightpack.models.standing import stand
from weightpack.models.unpack import unpack_directory
from weightpack.models.verify import verify_directory
from weightpack.options import DEFAULT_LIMITS, Limits, PackOptions, load_profile
from weightpack.reading.bases import Base, lineage, weights_below
from weightpack.reading.inspect import FileReport, inspect_file
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.unpack import stream_source
from weightpack.reading.verify import VerifyResult, verify_file
from weightpack.sources.safetensors import is_packed_file
from weightpack.writing.estimate import EstimateReport, estimate_file

PathLike = str | os.PathLike[str]
_REMOTE_SAMPLE_BYTES = 32 << 20


def pack(
    src: PathLike,
    dst: PathLike | None = None,
    *,
    base: PathLike | None = None,
    options: PackOptions | None = None,
    threads: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    in_place: bool = False,
    delete_source: bool = False,
    hf_flag: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    progress: FileProgress | None = None,
) -> JobResult:
    """Pack a file of any kind, a model directory, or a Hub repo.

    Of a directory, weights of every kind are packed: safetensors files under their own names, others as NAME.wp. All other files, and folders, are
    carried over with permissions and times; links are followed. The result says what was left out.

    Parameters
    ----------
    src
        A file, a directory, or a repo id such as "bert-base-uncased".
    dst
        Default: `model.wp.safetensors` beside `model.safetensors`, `model.gguf.wp` beside `model.gguf` and so for every other name; `name-wp` beside the
        directory `name`, or here for a repo. It may not be the source, lie in it, or hold it.
    base
        What the source has been trained from, or an earlier checkpoint of it: a file, a directory or a repo id (`name` or `name@revision`), plain or packed.
        The source is stored as its difference from it, where that is smaller, and can be restored only with it.
    options
        Default: the profile "fast".
    threads
        Default: the CPUs of this process. The packed bytes do not depend on it.
    verify
        Decode what was written and compare it with the source before the target appears.
    overwrite
        Replace an existing target; of a directory only files of the names that are written.
    in_place
        Replace the source: a safetensors file by its packed form, under its own name; those of a directory one after the other, so that scratch space is one
        shard. A job that did not end goes on when it is run again; `unpack(..., in_place=True)` goes back.
    delete_source
        Delete the source when the target is complete and was compared with it.
    hf_flag
        Of a directory: let config.json say that it is packed (as a quantisation method), so that transformers without weightpack names it when it fails.
        Unpacking restores the old config.json.
    revision, token, cache_dir
        For a repo id; as in `huggingface_hub.snapshot_download`.

    Raises
    ------
    FormatError
        The source is named .safetensors and is no safetensors file, or a shard of a directory is missing.
    OptionError
        The call can't be carried out: no such source, the target exists, the source is packed already, or has a name that could not be restored.
    LosslessError
        The source changed meanwhile, or the result does not decode to it. No target is written.
    """
    path = named_path(src)
    job = Job(
        threads=thread_count(threads),
        overwrite=overwrite,
        progress=progress,
        options=options or load_profile(),
        verify=verify,
        hf_flag=hf_flag,
        base=_base(base, path, token, cache_dir),
    )
    if not path.exists():
        if not is_repo_id(os.fspath(src)):
            raise _no_such(os.fspath(src))
        if in_place or delete_source:
            raise OptionError("only files and directories of this machine are packed in place or deleted", path=os.fspath(src))
        path = fetch_repo(os.fspath(src), revision=revision, token=token, cache_dir=cache_dir)
        dst = packed_path(src) if dst is None else dst
    if in_place:
        _refuse_target(dst, delete_source)
        return pack_in_place(path, job)
    if delete_source:
        refuse_undeletable(path, job)
    target = _named(dst) if dst is not None else packed_path(path)
    if path.is_dir():
        result = pack_directory(path, target, job)
    else:
        target = packed_path(path, target) if target.is_dir() else target
        refuse_target(path, target, job)
        result = JobResult(str(target), (pack_one(path, target, job),))
    if delete_source:
        remove_source(path, result, packed=True)
    return result


def unpack(
    src: PathLike, dst: PathLike | None = None, *, base: PathLike | None = None, threads: int | None = None, verify: bool = True, overwrite: bool = False,
    in_place: bool = False, delete_source: bool = False, limits: Limits = DEFAULT_LIMITS, progress: FileProgress | None = None,
) -> JobResult:  # fmt: skip
    """Restore the source of a packed file or directory, byte for byte; each chunk's checksum is checked on the way.

    Parameters
    ----------
    dst
        Default: `model.safetensors` for `model.wp.safetensors`, `model.gguf` for `model.gguf.wp`; `name` for a directory `name-wp`.
    base
        Of a file that is stored as a difference: a file, a directory or a repo id. Default: it is looked for beside the file, in the folders beside its
        folder, in those that the environment variable WEIGHTPACK_BASES names, and on the Hub if the file says that it is there.
    verify
        Of a directory: refuse it if a file that was carried over is not as it was, or is missing. False: restore what is there.
    overwrite
        As in `pack`.
    in_place, delete_source
        As in `pack`; what is restored is read again and its SHA-256 compared with the index first.

    Raises
    ------
    FormatError, LimitError
        The packed file is damaged or claims too much; a directory's is another's than its manifest says, or missing. No target is written.
    BaseNotFoundError, WrongBaseError
        The file is a difference from a base that was not found, or is another than the one named. No target is written.
    """
    path = named_path(src)
    job = Job(threads=thread_count(threads), overwrite=overwrite, progress=progress, verify=verify, limits=limits, base=found_base(base))
    if not path.exists():
        raise PathNotFoundError("no such file or directory", path=os.fspath(src))
    if in_place:
        _refuse_target(dst, delete_source)
        return unpack_in_place(path, job)
    if delete_source:
        refuse_undeletable(path, job)
    target = _named(dst) if dst is not None else unpacked_path(path, limits=limits)
    if path.is_dir():
        result = unpack_directory(path, target, job)
    else:
        target = unpacked_path(path, target, limits=limits) if target.is_dir() else target
        refuse_target(path, target, job)
        result = JobResult(str(target), (unpack_one(path, target, job, prove=delete_source),))
    if delete_source:
        remove_source(path, result, packed=False)
    return result


def _no_such(src: str) -> PathNotFoundError:
    return PathNotFoundError("what is to be packed has to be on this machine: download it first" if is_url(src) else "no such file or directory", path=src)


def packed_path(src: PathLike, folder: Path | None = None) -> Path:
    """Return where `pack` puts a source that is to have no other target: beside it, and a repo here.

    A safetensors file keeps its name in a `folder`, as in packed directories, and is `.wp.safetensors` beside itself. Any other gets `.wp` at its end
    everywhere: no loader that takes every *.safetensors of a folder takes it for a shard.
    """
    path = named_path(src)
    if path.is_dir():
        name = path.resolve().name
        return folder / name if folder is not None else path.resolve().with_name(f"{name}-wp")
    if not path.exists():
        name = os.fspath(src).rsplit("/")[-1]
        return folder / name if folder is not None else Path(f"{name}-wp")
    if path.suffix != ".safetensors":
        return (path.parent if folder is None else folder) / f"{path.name}{PACKED_SUFFIX}"
    return path.with_suffix(PACKED_SAFETENSORS) if folder is None else folder / path.name


def unpacked_path(src: PathLike, folder: Path | None = None, *, limits: Limits = DEFAULT_LIMITS) -> Path:
    """Return where `unpack` puts the source of a file or directory that is to have no other target: beside it, or in a `folder`.

    Raises
    ------
    PathNotFoundError
        There is no such source.
    OptionError
        Its name says nothing: beside it, the target would have the same.
    """
    path = named_path(src)
    if not path.exists():
        raise PathNotFoundError("no such file or directory", path=os.fspath(src))
    if path.is_dir():
        name = path.resolve().name
        if folder is not None:
            return folder / name.removesuffix("-wp")
        return path.resolve().with_name(name.removesuffix("-wp") if name.endswith("-wp") else f"{name}-unpacked")
    if path.suffix == PACKED_SUFFIX:
        name = path.stem
    elif path.name.endswith(PACKED_SAFETENSORS):  # earlier versions wrote this behind other names, too
        name = f"{path.name.removesuffix(PACKED_SAFETENSORS)}{'.safetensors' if source_format(path, limits) == 'safetensors' else ''}"
    elif folder is None:
        raise OptionError(
            f"name the target with -o (dst=): only for files named *{PACKED_SAFETENSORS} or *{PACKED_SUFFIX} it follows from the name", path=str(path)
        )
    else:
        name = path.name
    return (path.parent if folder is None else folder) / name


def unpack_stream(
    src: PathLike, write: Callable[[memoryview], object], *, base: PathLike | None = None, threads: int | None = None, limits: Limits = DEFAULT_LIMITS,
    progress: FileProgress | None = None,
) -> FileResult:  # fmt: skip
    """Restore the source of a packed file in its order, piece by piece, into a function that writes: for what can't be written at any offset, such as a pipe.

    Raises
    ------
    FormatError, LimitError, BaseNotFoundError, WrongBaseError
        As `unpack`; what was written by then is not the whole source.
    """
    path = named_path(src)
    if not path.exists():
        raise PathNotFoundError("no such file or directory", path=os.fspath(src))
    if path.is_dir():
        raise OptionError("a directory is no stream of bytes: unpack it to a directory", path=os.fspath(src))
    job = Job(threads=thread_count(threads), progress=progress)
    with open_packed(path, limits, found_base(base)) as packed:
        stream_source(packed, write, threads=job.threads, progress=job.bind(path))
        return FileResult(str(path), "", packed.index.source_bytes, packed.file.size, packed.index.source_sha256)


def _base(base: PathLike | None, src: Path, token: str | None, cache_dir: str | None) -> Base | None:
    """Return the files that `src` is packed against."""
    if base is None:
        return None
    path, text = named_path(base), os.fspath(base)
    if path.is_file():
        return Base((path,))
    if path.is_dir():
        return Base(_base_files(path, src))
    refuse_irregular_file(path)
    folder = fetched_base(text, token, cache_dir)
    return Base(_base_files(folder, src), text.partition("@")[0], folder.name)  # a snapshot's folder is named by its commit


def fetched_base(repo: str, token: str | None = None, cache_dir: str | None = None) -> Path:
    """Return the folder of a base that is a repo, `name[@revision]`."""
    repo_id, _, revision = repo.partition("@")
    if not is_repo_id(repo_id):
        raise PathNotFoundError("the base is no file or directory", path=repo)
    return fetch_repo(repo_id, revision=revision or None, token=token, cache_dir=cache_dir)


def _base_files(folder: Path, src: Path) -> tuple[Path, ...]:
    if src.is_file() and (folder / src.name).is_file():
        return (folder / src.name,)
    files = tuple(folder / name for name in model_files(folder).weights) or tuple(weights_below(folder))
    if not files:
        raise OptionError("the base has no weights", path=str(folder))
    return files


def found_base(base: PathLike | None) -> Base | None:
    """Return the files that the base of a packed file is to be among."""
    if base is None:
        return None
    path = named_path(base)
    return Base(tuple(weights_below(path if path.exists() else fetched_base(os.fspath(base)))))


def source_format(path: Path, limits: Limits = DEFAULT_LIMITS) -> str:
    """Return what kind of file a packed one restores to: "safetensors", "torch", "gguf", ..."""
    with LocalFile(path) as file:
        return PackedFile(file, limits).index.source_format


def _refuse_target(dst: PathLike | None, delete_source: bool) -> None:
    if dst is not None or delete_source:
        raise OptionError("in place there is no other target, and no source to delete")


def verify(
    src: PathLike, *, against: PathLike | None = None, base: PathLike | None = None, decode: bool = True, threads: int | None = None,
    revision: str | None = None, token: str | None = None, limits: Limits = DEFAULT_LIMITS, progress: FileProgress | None = None,
) -> Reports[VerifyResult]:  # fmt: skip
    """Prove that a packed file, directory or Hub repo restores to what its index says (SHA-256), and to the original if one is named.

    Of a directory every file is compared with the manifest: weights by what they restore to, others by their bytes.

    Parameters
    ----------
    src
        A file, a directory, or a repo id (which is downloaded).
    against
        The original: a file, a directory, or a repo `name[@revision]`, of which nothing is downloaded: the Hub publishes the SHA-256 of each large file. With a
        directory all files are compared; with a repo the safetensors files are.
    base
        As in `unpack`.
    decode
        False: only compare the SHA-256 in the index with that of the repo `against`, which needs the packed file's header alone.

    Returns
    -------
    Reports of VerifyResult
        One a file, and their `total`.

    Raises
    ------
    FormatError
        It does not.
    FolderError
        Of a directory: `problems` names each file that differs, is missing or is too many. A job in place that has not ended is a problem too.
    """
    path, text = named_path(src), os.fspath(src)
    published = None
    if against is not None and not named_path(against).exists():
        published = _published_sha256(os.fspath(against), token)
    if not decode and published is None:
        raise OptionError("without decoding there is only a Hub repo's SHA-256 to compare with: name one with --against")
    if not decode:
        results = _indexes(src, revision, token, limits)
    else:
        if not path.exists():
            if not is_repo_id(text):
                raise PathNotFoundError("no such file or directory", path=text)
            path = fetch_packed(text, revision=revision, token=token)
        job = Job(threads=thread_count(threads), progress=progress, limits=limits, base=found_base(base))
        original = None if against is None or published is not None else Path(against)
        if original is not None and original.is_dir() != path.is_dir():
            raise OptionError(f"a directory is compared with a directory, a file with a file: not with {os.fspath(against or '')!r}", path=text)
        results = verify_directory(path, job, original) if path.is_dir() else _verify_one(path, job, original)
    if published is not None:
        _compare_published(results, published, os.fspath(against or ""))
    return results


def _verify_one(path: Path, job: Job, against: Path | None) -> Reports[VerifyResult]:
    with ExitStack() as stack:
        packed = stack.enter_context(open_packed(path, job.limits, job.base))
        original = None if against is None else stack.enter_context(LocalFile(against))
        result = verify_file(packed, against=original, threads=job.threads, progress=job.bind(path))
    return Reports([replace(result, name=path.name)], Total(1, result.source_bytes, result.packed_bytes))


def _indexes(src: PathLike, revision: str | None, token: str | None, limits: Limits) -> Reports[VerifyResult]:
    """Return what the packed files of a file, a directory, a URL or a repo say of their sources."""
    path, results = Path(src), []
    with open_weights(src, revision=revision, token=token) as files:
        for file in files:
            name = PurePosixPath(file.name).name if path.is_file() else _relative_name(file.name, os.fspath(src))
            index = PackedFile(file, limits).index
            results.append(VerifyResult(index.source_bytes, file.size, index.source_sha256, False, name))
    return Reports(results, Total(len(results), sum(each.source_bytes for each in results), sum(each.packed_bytes for each in results)))


def fetch_packed(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Download a packed repo into the Hub client's cache, with all files that its manifest names; of a repo without a manifest only that is looked for."""
    folder = fetch_repo(repo_id, revision=revision, token=token, include=[MANIFEST])
    return fetch_repo(repo_id, revision=revision, token=token, include=["*"]) if (folder / MANIFEST).exists() else folder


def _published_sha256(repo: str, token: str | None) -> dict[str, str | None]:
    """Return path -> SHA-256 of a repo's weights, as the Hub publishes them."""
    repo_id, _, revision = repo.partition("@")
    if not is_repo_id(repo_id):
        raise PathNotFoundError("no such file or directory", path=repo)
    return {file.path: file.sha256 for file in published_weights(repo_id, revision=revision or None, token=token)}


def _compare_published(results: list[VerifyResult], published: dict[str, str | None], repo: str) -> None:
    names = [(result, result.name.replace(PACKED_SAFETENSORS, ".safetensors")) for result in results if result.state == "packed"]
    names = [(result, name) for result, name in names if name.endswith(".safetensors")]
    if not names:
        raise OptionError(f"no safetensors file is here to compare with one of the repo {repo!r}")
    for result, name in names:
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
) -> Reports[FileReport]:
    """Describe a packed file, or each packed file of a directory or Hub repo; nothing is decoded.

    Parameters
    ----------
    src
        A file, a directory, a URL, or a repo id. Of what is not on this machine only headers are fetched.
    codecs
        Look at the first chunks of each tensor to say which codecs it uses; default: only where the file is on this machine.

    Returns
    -------
    Reports of FileReport
        One a file of weights, and the `total`: of a directory that of all files on the disk.
    """
    if named_path(src).is_dir():
        return inspect_directory(Path(src), limits, codecs=codecs is not False)
    with open_weights(src, revision=revision, token=token) as files:
        reports = []
        for file in files:
            packed = PackedFile(file, limits)
            reports.append(inspect_file(packed, codecs=isinstance(file, LocalFile) if codecs is None else codecs, lineage=tuple(lineage(packed, limits))))
    return Reports(reports, _total(reports))


def estimate(src: PathLike, *, options: PackOptions | None = None, revision: str | None = None, token: str | None = None) -> Reports[EstimateReport]:
    """Say what packing would give, from samples of each tensor; nothing is written.

    Of a URL or a Hub repo about 32 MB a file are fetched, in single chunks. Of a directory the `total` holds all files.
    """
    if named_path(src).is_dir():
        return estimate_directory(Path(src), options or load_profile())
    reports = []
    with open_weights(src, revision=revision, token=token) as files:
        for file in files:
            with located(path=file.name):
                if is_packed_file(file):
                    raise OptionError("the file is packed already")
                samples = {} if isinstance(file, LocalFile) else {"sample_chunks": 1, "budget_bytes": _REMOTE_SAMPLE_BYTES}
                reports.append(estimate_file(file, options or load_profile(), **samples))
    return Reports(reports, _total(reports))


def _total(reports: Sequence[FileReport | EstimateReport]) -> Total:
    return Total(len(reports), sum(report.source_bytes for report in reports), sum(report.packed_bytes for report in reports))


@contextmanager
def open_weights(src: PathLike, *, revision: str | None = None, token: str | None = None) -> Iterator[list[RandomReader]]:
    """Open a file, or the weights of a directory or a Hub repo, or a URL; of the latter two only what is read is fetched."""
    path, text = named_path(src), os.fspath(src)
    with ExitStack() as stack:
        if path.exists():
            paths = _weights(path) if path.is_dir() else [path]
            yield [stack.enter_context(closing(LocalFile(each))) for each in paths]
            return
        if is_url(text):
            urls = [text]
        elif is_repo_id(text):
            urls = [file.url for file in published_weights(text, revision=revision, token=token)]
        else:
            raise PathNotFoundError("no such file or directory", path=text)
        yield [stack.enter_context(closing(RemoteFile(url, token=token))) for url in urls]


def _weights(folder: Path) -> list[Path]:
    """Return a directory's packed files, or the weights of one that is not packed: those in safetensors files, if there are any."""
    if has_manifest(folder):
        return [folder / name for name in stand(folder).packed.values()]
    files = model_files(folder)
    return [folder / name for name in files.weights or files.other_weights]


def _named(dst: PathLike) -> Path:
    """Return a target whose last part is its name, which `.` and `..` are not."""
    path = named_path(dst)
    return path.resolve() if path.name in ("", "..") else path
