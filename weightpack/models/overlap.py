# SPDX-License-Identifier: Apache-2.0
"""Refusing targets that what is read, or what a job needs later, would be replaced by."""

from __future__ import annotations

from pathlib import Path

from weightpack.errors import OptionError
from weightpack.format.manifest import MANIFEST
from weightpack.io.folder import refuse_overlap
from weightpack.models.directory import ModelFiles, has_manifest
from weightpack.models.jobs import Job


def refuse_target(source: Path, target: Path, job: Job) -> None:
    """Raise OptionError if source or a base, and target, are the same, or one is in the other."""
    refuse_overlap(source, target)
    for base in job.base.paths if job.base else ():
        refuse_overlap(base, target, what="base")


def refuse_packed_target(target: Path) -> None:
    """Raise OptionError if plain files would come into a packed directory, whose manifest would then say of them that they are packed."""
    if has_manifest(target):
        raise OptionError(
            f"the target is a packed directory: its {MANIFEST} would be false of what is unpacked into it. Name another, or remove that file", path=str(target)
        )


def refuse_linked_target(files: ModelFiles, target: Path) -> None:
    """Raise OptionError if a link in a directory leads into the target, or to what holds it."""
    for name in sorted(files.linked):
        refuse_overlap(files.folder / name, target, what=f"link {str(name)!r} in the source")
