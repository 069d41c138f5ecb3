# SPDX-License-Identifier: Apache-2.0
"""Where a base may be: in the folders where people keep them, and on a Hub where the user asked for it.

A packed file may come from anywhere, and says itself where its base is. Reading it must not send anything anywhere: a Hub is asked only if the packed file came
from that Hub itself, or if the environment says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from weightpack.format.index import BaseFile, BaseReference
from weightpack.io.fetch import cached_file, cached_repo, download_file, published_file
from weightpack.io.files import LocalFile, RandomReader, sha256_of
from weightpack.io.remote import RemoteFile
from weightpack.reading.packed_file import PackedFile

SEARCH_VARIABLE = "WEIGHTPACK_BASES"
FETCH_VARIABLE = "WEIGHTPACK_FETCH_BASES"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".npz", ".npy", ".wp")
_MOST_CANDIDATES = 10_000


def candidates(file: RandomReader, given: Sequence[Path] | None, wanted: BaseFile, reference: BaseReference) -> Iterator[Path]:
    """Yield files that may be the base, likely ones first. A Hub is asked only where `_hub_origin` says so."""
    if given is not None:
        yield from given
        return
    folders: list[Path] = []
    if isinstance(file, LocalFile):
        path = Path(file.name)
        for here in dict.fromkeys((path.absolute().parent, path.resolve().parent)):  # where a link is, and where it leads, as in the Hub client's cache
            folders += [here, here.parent]
            for parent in (here.parent, here):
                with suppress(OSError):
                    folders += sorted(each for each in parent.iterdir() if each.is_dir() and each != here)
    folders += [Path(folder) for folder in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if folder]
    yield from (path for _, path in zip(range(_MOST_CANDIDATES), _in_folders(folders, file.name, wanted), strict=False))
    if reference.repo is not None and (origin := _hub_origin(file)) is not None:
        with suppress(Exception):  # whatever goes wrong, the base is not found there
            yield from _on_hub(wanted, reference.repo, reference.revision, use_token=reference.repo.partition("/")[0] == origin)


def _in_folders(folders: Iterable[Path], this: str, wanted: BaseFile) -> Iterator[Path]:
    seen = {os.path.realpath(this)}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder), key=lambda name: (wanted.sha256 not in name, name != wanted.name, name))
        except OSError:
            continue
        for name in names:
            path = folder / name
            if name.endswith(SUFFIXES) and os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                yield path


def _on_hub(wanted: BaseFile, repo: str, revision: str | None, *, use_token: bool) -> Iterator[Path]:
    """Yield a repo's file if it is in the Hub client's cache, or if the Hub says that it is the one that is wanted: then it is downloaded.

    What is packed there is asked for its index, and is no longer than what it restores to. The user's token is sent only to whom the packed file came from.
    """
    cached = cached_file(repo, wanted.name, revision)
    if cached is not None:
        yield cached
        return
    published = published_file(repo, wanted.name, revision, use_token=use_token)
    if published.n_bytes == wanted.n_bytes:
        is_wanted = published.sha256 in (None, wanted.sha256)
    else:
        is_wanted = published.n_bytes < wanted.n_bytes and _restores_to(published.url, wanted, use_token=use_token)
    if is_wanted:
        yield download_file(repo, wanted.name, revision, use_token=use_token)


def _restores_to(url: str, wanted: BaseFile, *, use_token: bool) -> bool:
    """Does the index of a packed file elsewhere say that it restores to what is wanted?"""
    file = RemoteFile(url, token=None if use_token else False)
    try:
        return PackedFile(file).index.source_sha256 == wanted.sha256
    finally:
        file.close()


def _hub_origin(file: RandomReader) -> str | None:
    """Return whose repo a packed file came from, "" if the user lets any file fetch its base; None if no Hub may be asked."""
    if file.name.startswith("hf://"):
        return file.name.removeprefix("hf://").partition("/")[0]
    repo = cached_repo(file.name)
    if repo is not None:
        return repo.partition("/")[0]
    return "" if os.environ.get(FETCH_VARIABLE) == "1" else None


def known_sha256(path: Path) -> str:
    """Return a file's SHA-256; of one that has not changed since it was asked for last, the same again."""
    state = path.stat()
    return _sha256_of_state(os.path.realpath(path), state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1 << 16)
def _sha256_of_state(path: str, n_bytes: int, mtime_ns: int, inode: int) -> str:
    with LocalFile(path) as file:
        return sha256_of(file)
