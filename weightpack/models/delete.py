# SPDX-License-Identifier: Apache-2.0
"""A source deleted, once more compared with what was made of it."""

from __future__ import annotations

from pathlib import Path

from weightpack.errors import LosslessError, OptionError
from weightpack.format.manifest import MANIFEST
from weightpack.io.atomic import sync_folder
from weightpack.io.files import LocalFile, sha256_of
from weightpack.models.carry import described
from weightpack.models.directory import list_files, read_manifest
from weightpack.models.jobs import Job, JobResult, refuse_unproven


def refuse_undeletable(path: Path, job: Job) -> None:
    """Raise OptionError, before anything is written, if a source could not be deleted after the job: it is a link, or leads to what others may use."""
    refuse_unproven(path, job)
    if path.is_dir():
        for name in sorted(list_files(path).linked):
            raise OptionError("the source holds a link: what that leads to is not deleted; delete the source yourself", path=str(path / name))


def delete_source(path: Path, result: JobResult, *, packed: bool) -> None:
    """Delete what a job has made another form of, once more proven: weights by their SHA-256, other files of a directory too. What the job left out stays.

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
    originals = read_manifest(target if packed else path).originals
    sources = {Path(file.source) for file in result.files}
    stays = {MANIFEST, *(note.name for note in result.left_out)}
    others = [name for name in list_files(path).files if path / name not in sources and str(name) not in stays]
    for name in others:
        if not (target / name).is_file():
            raise LosslessError("the file is not in what was made of the directory: the source stays", path=str(path / name))
        if str(name) in originals:  # what stands for it on the packed side is another file
            same = ((path if packed else target) / name).read_bytes() == originals[str(name)]
        else:
            same = described(path / name) == described(target / name)
        if not same:
            raise LosslessError("the file is no longer what was copied: the source stays", path=str(path / name))
    for deleted in [*sources, *(path / name for name in others), path / MANIFEST]:
        deleted.unlink(missing_ok=True)
    for folder in sorted((each for each in path.rglob("*") if each.is_dir()), key=lambda each: -len(each.parts)):
        _remove_if_empty(folder)
    _remove_if_empty(path)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
