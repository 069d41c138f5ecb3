# SPDX-License-Identifier: Apache-2.0
"""Bases: the files that others are differences from (FORMAT section 15). They are known by the SHA-256 of their sources; `base_search` says where they may be.

A base may be plain or packed, even a difference itself: what counts is what it restores to. No path that stands in a file is followed. A repo's name is, as
for adapters of models: the Hub client fetches the revision that the index pins, and the SHA-256 proves it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from weightpack.errors import BaseNotFoundError, FormatError, LimitError, OptionError, PathNotFoundError, WrongBaseError
from weightpack.format.index import BaseFile, BaseReference, Index
from weightpack.io.files import LocalFile, RandomReader, refuse_irregular_file
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.reading.base_search import FETCH_VARIABLE, SEARCH_VARIABLE, SUFFIXES, candidates, known_sha256
from weightpack.reading.packed_file import PackedFile, described
from weightpack.reading.restored import RestoredFile, depth_of
from weightpack.sources import segment
from weightpack.sources.model import Segments
from weightpack.sources.safetensors import is_packed_file

Known = dict[tuple[str, int], RandomReader]
"""Open bases by SHA-256 and length."""


# ---- a file that is packed against others


@dataclass(frozen=True, slots=True)
class OpenBase:
    """A file to be differed from, opened: what it restores to, what is in that, and how many files it is a difference from, one from the other.

    `repo` and `revision`: the Hub's that it came from, if it did.
    """

    file: BaseFile
    reader: RandomReader
    segments: Segments
    depth: int
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """What the user names as base: files, plain or packed, and the repo whose they are, if they are one's."""

    paths: tuple[Path, ...]
    repo: str | None = None
    revision: str | None = None

    @contextmanager
    def opened(self, limits: Limits = DEFAULT_LIMITS) -> Iterator[list[OpenBase]]:
        """Open all files, to pack others against them; they are closed after the block."""
        with ExitStack() as stack:
            bases = []
            for path in self.paths:
                file = stack.enter_context(LocalFile(path))
                base = replace(_open_base(file, path, limits), repo=self.repo, revision=self.revision)
                stack.callback(base.reader.close)
                bases.append(base)
            yield bases

    @property
    def identity(self) -> list[str]:
        """What tells a job from one with another base."""
        return [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in self.paths]


def _open_base(file: LocalFile, path: Path, limits: Limits) -> OpenBase:
    if not is_packed_file(file, limits.max_json_memory):
        return OpenBase(BaseFile(path.name, file.size, known_sha256(path)), file, segment(file), 0)
    packed = open_with_bases(file, limits)
    index = packed.index
    tensors = tuple(stored.tensor for stored in packed.tensors.values())
    segments = Segments(index.source_format, tensors, tuple((gap.offset, gap.n_bytes) for gap in index.gaps), packed.metadata)
    depth = index.base.depth if index.base else 0
    return OpenBase(BaseFile(path.name, index.source_bytes, index.source_sha256), RestoredFile(packed), segments, depth)


# ---- a packed file that needs others


def open_with_bases(
    file: RandomReader, limits: Limits = DEFAULT_LIMITS, *, base: Sequence[Path] | None = None, depth: int = 0, known: Known | None = None
) -> PackedFile:
    """Open a packed file, and the bases that it is a difference from.

    Parameters
    ----------
    base
        Files that the base is among; by default it is looked for.
    depth
        How many files need this one.
    known
        Bases that are open, by what they are: each is opened once, however many ways lead to it.

    Raises
    ------
    BaseNotFoundError, WrongBaseError
        With the name of what is missing.
    LimitError
        The chain is longer than `limits.max_depth`.
    """
    packed = PackedFile(file, limits)
    reference = packed.index.base
    if reference is None:
        return packed
    if depth + 1 > limits.max_depth:
        raise LimitError(f"the file is one of a chain of more than {limits.max_depth} differences", path=file.name)
    known = {} if known is None else known
    before = set(known)
    try:
        packed.bases = tuple(_find(wanted, reference, file, base, limits, depth, known) for wanted in reference.files)
    except BaseException:
        for key in known.keys() - before:  # each alone: what it shares with others stays open
            opened = known.pop(key)
            (opened.packed.file if isinstance(opened, RestoredFile) else opened).close()
        raise
    return packed


def _find(
    wanted: BaseFile, reference: BaseReference, file: RandomReader, given: Sequence[Path] | None, limits: Limits, depth: int, known: Known
) -> RandomReader:
    key = wanted.sha256, wanted.n_bytes
    if key in known:
        if depth + 1 + depth_of(known[key]) > limits.max_depth:
            raise LimitError(f"the file is one of a chain of more than {limits.max_depth} differences", path=file.name)
        return known[key]
    for path in candidates(file, given, wanted, reference):
        found = _restores_to(path, wanted, limits, depth, known)
        if found is not None:
            known[key] = found
            return found
    if given is not None:
        raise WrongBaseError(f"needs another base than the one that was named: {described(reference)}", path=file.name)
    raise BaseNotFoundError(f"is a difference from a base that is not here: {_what_to_do(reference)}. It is {described(reference)}", path=file.name)


def _what_to_do(reference: BaseReference) -> str:
    if reference.repo is None:
        return f"name it with --base (base=), or put its folder into {SEARCH_VARIABLE}"
    revision = f"@{reference.revision}" if reference.revision else ""
    named = f"{reference.repo}{revision}"
    return f"if you trust the file, fetch it with --base {named} (base=), or set {FETCH_VARIABLE}=1; or put its folder into {SEARCH_VARIABLE}"


def _restores_to(path: Path, wanted: BaseFile, limits: Limits, depth: int, known: Known) -> RandomReader | None:
    """Open a candidate if it is the base that is wanted, plain or packed; None if it is not."""
    try:
        file = LocalFile(path)
    except (OSError, OptionError):
        return None
    try:
        index = _index_of(file, limits)
        if index is not None and (index.source_sha256, index.source_bytes) == (wanted.sha256, wanted.n_bytes):
            with suppress(FormatError):
                return RestoredFile(open_with_bases(file, limits, depth=depth + 1, known=known))
        elif index is None and file.size == wanted.n_bytes:
            with suppress(OSError, FormatError):  # it can't be read, or changes meanwhile
                if known_sha256(path) == wanted.sha256:
                    return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _index_of(file: RandomReader, limits: Limits) -> Index | None:
    """Return the index of a candidate; None if it is no packed file, or one that can't be opened: whoever looks for a base meets files that are not his."""
    try:
        return PackedFile(file, limits).index
    except (OSError, FormatError, LimitError):
        return None


def lineage(packed: PackedFile, limits: Limits = DEFAULT_LIMITS) -> Iterator[str]:
    """Name what a file is a difference from, and that in turn, as far as it is found on this machine; nothing is decoded, hashed or fetched."""
    reference, file = packed.index.base, packed.file
    for _ in range(limits.max_depth):
        if reference is None:
            return
        yield described(reference)
        wanted, base = reference.files[0], None
        for path in candidates(file, None, wanted, replace(reference, repo=None)):
            try:
                with LocalFile(path) as candidate:
                    index = _index_of(candidate, limits)
                    if index is not None and index.source_sha256 == wanted.sha256:
                        base, reference, file = path, index.base, candidate
                        break
            except (OSError, OptionError):
                continue
        if base is None:
            return


def weights_below(path: Path) -> list[Path]:
    """Return a file, or the files of a directory that may hold tensors."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        refuse_irregular_file(path)
        raise PathNotFoundError("no such file or directory", path=os.fspath(path))
    return sorted(each for each in path.rglob("*") if each.name.endswith(SUFFIXES) and each.is_file())
