# SPDX-License-Identifier: Apache-2.0
"""A Hub repo to a directory, packed as it is or unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightpack import api
from weightpack.errors import OptionError
from weightpack.format.manifest import MANIFEST
from weightpack.io.fetch import commit_of, fetch_repo, is_repo_id
from weightpack.models.directory import has_manifest

if TYPE_CHECKING:
    from weightpack.models.jobs import FileProgress


def pull(
    repo_id: str, target: api.PathLike | None = None, *, unpack: bool = False, revision: str | None = None, include: Sequence[str] | None = None,
    token: str | None = None, threads: int | None = None, overwrite: bool = False, progress: FileProgress | None = None,
) -> Path:  # fmt: skip
    """Download a repo into a directory, and unpack it if that is wanted; an interrupted download goes on where it stopped.

    Parameters
    ----------
    target
        Default: the repo's name, here; without a `-wp` at its end if it is unpacked.
    include
        Only files that match one of these patterns, as in `hf download`.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    PathNotFoundError
        The Hub has no such repo, or it may not be read with this token.
    OptionError
        It has no such revision; the target exists; the repo is not packed and is to be unpacked.
    OSError
        The Hub can't be reached.
    """
    if not is_repo_id(repo_id):
        raise OptionError(f"not a repo id: {repo_id!r}; it is `owner/name`")
    name = repo_id.rsplit("/")[-1]
    if not unpack:
        folder = Path(target) if target is not None else Path(name)
        commit = commit_of(repo_id, revision=revision, token=token)  # asked first: where the Hub can't be reached, a folder that is there passes for the repo
        return fetch_repo(repo_id, revision=commit, token=token, target=folder, include=include)
    folder = Path(target) if target is not None else Path(name.removesuffix("-wp"))
    if folder.exists() and not overwrite:
        raise OptionError("the target exists: use --force (overwrite=True) to replace it", path=str(folder))
    if include:
        raise OptionError("--include and --unpack exclude each other: unpacking needs the whole repo")
    snapshot = api.fetch_packed(repo_id, revision=revision, token=token)
    if not has_manifest(snapshot):
        raise OptionError(f"the repo {repo_id!r} is not packed (it has no {MANIFEST}): pull it without --unpack")
    api.unpack(snapshot, folder, threads=threads, overwrite=overwrite, progress=progress)
    return folder
