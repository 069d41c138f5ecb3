# SPDX-License-Identifier: Apache-2.0
"""A model to a Hub, packed shard by shard, in one commit."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpack import api
from weightpack._humane import human_bytes
from weightpack.errors import OptionError, PathNotFoundError
from weightpack.format.manifest import MANIFEST, Manifest, ManifestFile
from weightpack.hub.card import CARD, model_card
from weightpack.io.fetch import fetch_repo, hub_errors, is_repo_id
from weightpack.io.files import named_path
from weightpack.io.folder import private_folder
from weightpack.models.carry import described
from weightpack.models.directory import has_manifest
from weightpack.models.jobs import Job
from weightpack.models.pack import changed_entry, packed_entry
from weightpack.models.plan import CONFIG, plan_packing
from weightpack.models.standing import stand
from weightpack.options import PackOptions, load_profile

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

    from weightpack.models.jobs import FileProgress

# Files below this go with the commit itself or stay in memory; the Hub takes larger ones as LFS or Xet objects only, ahead of it.
_SMALL_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class PushResult:
    """A finished push: where it is, the commit (or pull request), and the weights' bytes before and after."""

    repo_id: str
    url: str
    commit: str
    source_bytes: int
    packed_bytes: int
    n_files: int


def push(
    src: api.PathLike, repo_id: str, *, options: PackOptions | None = None, threads: int | None = None, verify: bool = True, base_model: str | None = None,
    hf_flag: bool = False, private: bool | None = None, revision: str | None = None, create_pr: bool = False, commit_message: str | None = None,
    token: str | None = None, progress: FileProgress | None = None,
) -> PushResult:  # fmt: skip
    """Pack a model and commit it to a Hub repo, which is made if there is none.

    A plain directory is packed shard by shard, and each packed shard is deleted when it has been uploaded, so that scratch space is one shard. An
    interrupted push is resumed by running it again: packing gives the same bytes, and the Hub has kept what it got.

    Parameters
    ----------
    src
        A model directory, plain or packed, or the id of a repo to pack (which becomes `base_model`).
    repo_id
        Where to: `owner/name`.
    verify
        Decode each packed file and compare it with its source before it is uploaded.
    base_model
        The original's repo id, for the model card. An existing card is kept, and gets tags and a section on how to load it.
    hf_flag
        As in `weightpack.pack`; for a plain directory.
    private, revision, create_pr, commit_message, token
        As in `hf upload`.

    Raises
    ------
    OptionError
        There is no such model, or the Hub does not accept the push: the message says why.
    OSError
        The Hub can't be reached.
    """
    from huggingface_hub import HfApi

    text, folder = os.fspath(src), named_path(src)
    if not is_repo_id(repo_id):
        raise OptionError(f"not a repo id: {repo_id!r}; it is `owner/name`")
    if not folder.exists() and is_repo_id(text):
        folder, base_model = fetch_repo(text, token=token), base_model or text
    if not folder.exists():
        raise PathNotFoundError("no such directory or repo", path=text)
    if not folder.is_dir():
        raise OptionError("this is a file: a model directory is pushed", path=text)
    hub = HfApi(token=token, library_name="weightpack")
    with hub_errors(repo_id, revision):
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision and not create_pr:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = _Commit(hub, repo_id, revision, create_pr)
    with hub_errors(repo_id, revision):
        if has_manifest(folder):
            manifest = commit.add_packed(folder, threads, verify, progress)
        else:
            manifest = commit.add_plain(folder, options or load_profile(), threads, verify, progress, hf_flag=hf_flag)
        source_bytes = sum(file.n_bytes for file in manifest.packed.values())
        packed_bytes = sum(file.packed_bytes for file in manifest.packed.values())
        old_card = (folder / CARD).read_bytes() if (folder / CARD).is_file() and CARD not in manifest.added else None
        original_card = manifest.originals.get(CARD, old_card)
        card = model_card(original_card.decode() if original_card is not None else "", folder, repo_id, base_model, source_bytes, packed_bytes)
        commit.add_bytes(CARD, card.encode())
        commit.add_bytes(MANIFEST, _with_card(manifest, original_card).to_bytes())
        created = hub.create_commit(
            repo_id, commit.operations, revision=revision, create_pr=create_pr,
            commit_message=commit_message or f"Pack with weightpack: {human_bytes(source_bytes)} -> {human_bytes(packed_bytes)}",
        )  # fmt: skip
    return PushResult(repo_id, created.pr_url or f"{hub.endpoint}/{repo_id}", created.oid, source_bytes, packed_bytes, len(commit.operations))


def _with_card(manifest: Manifest, original: bytes | None) -> Manifest:
    """Return a manifest that knows of a card, which may be edited afterwards, and of the one that the source had, if it had one."""
    if original is None:
        return replace(manifest, added=tuple({*manifest.added, CARD}))
    entry = ManifestFile(len(original), hashlib.sha256(original).hexdigest(), original=original)
    return replace(manifest, files={**manifest.files, CARD: entry})


class _Commit:
    """The operations of one commit; what is large is uploaded as it is added."""

    def __init__(self, hub: Any, repo_id: str, revision: str | None, create_pr: bool) -> None:
        self.hub, self.repo_id, self.revision, self.create_pr = hub, repo_id, revision, create_pr
        self.operations: list[CommitOperationAdd] = []

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a small file."""
        from huggingface_hub import CommitOperationAdd

        self.operations.append(CommitOperationAdd(name, data))

    def add_file(self, name: str, path: Path) -> None:
        """Add a file; it may be deleted afterwards."""
        from huggingface_hub import CommitOperationAdd

        if path.stat().st_size < _SMALL_BYTES:
            self.add_bytes(name, path.read_bytes())
            return
        operation = CommitOperationAdd(name, str(path))
        self.hub.preupload_lfs_files(self.repo_id, [operation], revision=self.revision, create_pr=self.create_pr)
        self.operations.append(operation)

    def add_plain(self, folder: Path, options: PackOptions, threads: int | None, verify: bool, progress: FileProgress | None, *, hf_flag: bool) -> Manifest:
        """Pack the weights, one after the other, and add everything but card and manifest."""
        plan, files = plan_packing(folder, Job(options=options, hf_flag=hf_flag)), {}
        with private_folder(Path(tempfile.gettempdir(), "weightpack-push")) as scratch:
            for name, packed in plan.packed.items():
                target = scratch / "packed.safetensors"
                (result,) = api.pack(folder / name, target, options=options, threads=threads, verify=verify, progress=progress).files
                files[str(name)] = packed_entry(result, packed)
                self.add_file(str(packed), target)
                target.unlink()
        for name in plan.carried:
            files[str(name)] = described(folder / name)
            if str(name) != CARD:
                self.add_file(str(name), folder / name)
        if plan.config is not None:
            files[str(CONFIG)] = changed_entry(folder / CONFIG, plan.config)
            self.add_bytes(str(CONFIG), plan.config)
        return Manifest(files, tuple(map(str, plan.files.empty_folders)))

    def add_packed(self, folder: Path, threads: int | None, verify: bool, progress: FileProgress | None) -> Manifest:
        """Add a directory that is packed already, but for card and manifest."""
        standing = stand(folder)
        if standing.unfinished is not None:
            raise OptionError(f"`{standing.unfinished} --in-place` has not ended: run it again", path=str(folder))
        if verify:
            api.verify(folder, threads=threads, progress=progress)
        for path in standing.files.files:
            if str(path) not in (CARD, MANIFEST):
                self.add_file(str(path), folder / path)
        return standing.manifest
