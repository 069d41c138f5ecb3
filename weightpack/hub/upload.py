# SPDX-License-Identifier: Apache-2.0
"""Packed models to and from a Hub, through huggingface_hub: its API, its token, its HF_ENDPOINT."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpack import api
from weightpack._humane import human_bytes, percent
from weightpack.errors import OptionError
from weightpack.format.manifest import MANIFEST, Manifest, ManifestFile
from weightpack.io.fetch import fetch_repo, hub_errors, is_repo_id
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

CARD = "README.md"
TAGS = ("weightpack", "lossless-compression")
# Files below this go with the commit itself or stay in memory; the Hub takes larger ones as LFS or Xet objects only, ahead of it.
_SMALL_BYTES = 10_000_000
_BEGIN, _END = "<!-- weightpack -->", "<!-- end of weightpack -->"


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

    text, folder = os.fspath(src), Path(src)
    if not is_repo_id(repo_id):
        raise OptionError(f"not a repo id: {repo_id!r}; it is `owner/name`")
    if not folder.exists() and is_repo_id(text):
        folder, base_model = fetch_repo(text, token=token), base_model or text
    if not folder.is_dir():
        raise OptionError("no such directory or repo: a model directory is pushed", path=text)
    hub = HfApi(token=token, library_name="weightpack")
    with hub_errors(repo_id, revision):
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision and not create_pr:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
    job = _Push(hub, repo_id, revision, create_pr, hf_flag)
    with hub_errors(repo_id, revision):
        manifest = (job.add_packed if has_manifest(folder) else job.add_plain)(folder, options or load_profile(), threads, verify, progress)
        source_bytes = sum(file.n_bytes for file in manifest.packed.values())
        packed_bytes = sum(file.packed_bytes for file in manifest.packed.values())
        old_card = (folder / CARD).read_bytes() if (folder / CARD).is_file() and CARD not in manifest.added else None
        original_card = manifest.originals.get(CARD, old_card)
        card = _card(original_card.decode() if original_card is not None else "", folder, repo_id, base_model, source_bytes, packed_bytes)
        job.add_bytes(CARD, card.encode())
        job.add_bytes(MANIFEST, _with_card(manifest, original_card).to_bytes())
        commit = hub.create_commit(
            repo_id, job.operations, revision=revision, create_pr=create_pr,
            commit_message=commit_message or f"Pack with weightpack: {human_bytes(source_bytes)} -> {human_bytes(packed_bytes)}",
        )  # fmt: skip
    return PushResult(repo_id, commit.pr_url or f"{hub.endpoint}/{repo_id}", commit.oid, source_bytes, packed_bytes, len(job.operations))


def _with_card(manifest: Manifest, original: bytes | None) -> Manifest:
    """Return a manifest that knows of a card, which may be edited afterwards, and of the one that the source had, if it had one."""
    if original is None:
        return replace(manifest, added=tuple({*manifest.added, CARD}))
    entry = ManifestFile(len(original), hashlib.sha256(original).hexdigest(), original=original)
    return replace(manifest, files={**manifest.files, CARD: entry})


class _Push:
    """The operations of one commit; what is large is uploaded as it is added."""

    def __init__(self, hub: Any, repo_id: str, revision: str | None, create_pr: bool, hf_flag: bool) -> None:
        self.hub, self.repo_id, self.revision, self.create_pr, self.hf_flag = hub, repo_id, revision, create_pr, hf_flag
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

    def add_plain(self, folder: Path, options: PackOptions, threads: int | None, verify: bool, progress: FileProgress | None) -> Manifest:
        """Pack the weights, one after the other, and add everything but card and manifest."""
        plan, files = plan_packing(folder, Job(options=options, hf_flag=self.hf_flag)), {}
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

    def add_packed(self, folder: Path, options: PackOptions, threads: int | None, verify: bool, progress: FileProgress | None) -> Manifest:
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


def _card(text: str, folder: Path, repo_id: str, base_model: str | None, source_bytes: int, packed_bytes: int) -> str:
    """Return a model card: the text there is, its metadata where it has any, and a section of ours."""
    from huggingface_hub import ModelCard

    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    data.tags = [*(data.tags or []), *(tag for tag in TAGS if tag not in (data.tags or []))]
    if data.library_name is None and (folder / "config.json").is_file():
        data.library_name = "transformers"
    if base_model is not None and data.base_model is None:
        data.base_model = base_model
        data.base_model_relation = "quantized"  # the nearest that the Hub knows; it has no word for a lossless copy
    section = _SECTION.format(
        repo_id=repo_id, original=f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "the original", load=_how_to_load(folder, repo_id),
        before=human_bytes(source_bytes), after=human_bytes(packed_bytes), share=percent(packed_bytes, source_bytes),
    )  # fmt: skip
    body = re.sub(f"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", "\n", card.text, flags=re.S).strip("\n")
    title = body or f"# {repo_id.rsplit('/')[-1]}"
    return f"---\n{data.to_yaml()}\n---\n\n{title}\n\n{_BEGIN}\n{section}\n{_END}\n"


_SECTION = """## Packed with weightpack

The weights are {original}'s, losslessly packed: {before} are {after} here ({share}), and they load to the last bit as they were.

```python
{load}
```

`pip install weightpack` first. `weightpack pull {repo_id} --unpack` restores the original files, byte for byte. The parameter count and the dtypes that the
Hub shows are those of the packed bytes (U8), not of the model."""


def _how_to_load(folder: Path, repo_id: str) -> str:
    try:
        config = json.loads((folder / "config.json").read_bytes())
        name = str(config["architectures"][0]) if isinstance(config, dict) and config.get("architectures") else "AutoModel"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 'import weightpack.torch\n\ntensors = weightpack.torch.load_file("model.safetensors")'
    known = name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else "AutoModel"
    return f'import weightpack.transformers\nfrom transformers import {known}\n\nmodel = {known}.from_pretrained("{repo_id}")'


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
    """
    if not is_repo_id(repo_id):
        raise OptionError(f"not a repo id: {repo_id!r}; it is `owner/name`")
    name = repo_id.rsplit("/")[-1]
    if not unpack:
        folder = Path(target) if target is not None else Path(name)
        return fetch_repo(repo_id, revision=revision, token=token, target=folder, include=include)
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
