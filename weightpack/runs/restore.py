# SPDX-License-Identifier: Apache-2.0
"""Checkpoints restored: into a directory, in memory as a proof, or for as long as a trainer reads them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from weightpack.errors import OptionError
from weightpack.io.files import named_path
from weightpack.io.folder import private_folder, refuse_overlap, work_folder
from weightpack.io.working_names import is_working_name
from weightpack.models.carry import carry_over
from weightpack.models.jobs import Job, JobResult, open_packed, unpack_one
from weightpack.models.overlap import refuse_packed_target
from weightpack.models.pack import proven_unpacked, resumed
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.reading.verify import VerifyResult, verify_file
from weightpack.runs.files import packed_names, steps
from weightpack.runs.look import refuse_incomplete, series
from weightpack.runs.store import STORE, make_store


def restore(run: str | os.PathLike[str], step: int, target: str | os.PathLike[str], job: Job) -> JobResult:
    """Restore a checkpoint into a directory, as the trainer wrote it: packed files are unpacked and proven by their SHA-256, others copied. A job that was
    killed goes on after the last file.

    Raises
    ------
    OptionError
        There is no such checkpoint, the target exists, or overlaps with the checkpoint.
    FormatError
        A file is damaged, or a base is missing. There is no target then.
    LimitError
        A file, or the chain that it stands on, is beyond the job's limits. There is no target then.
    """
    path, goal = named_path(run) / f"checkpoint-{step}", named_path(target)
    if not path.is_dir():
        there = ", ".join(str(number) for number, _ in steps(Path(run))) or "none"
        raise OptionError(f"no checkpoint of step {step}; there are: {there}", path=str(run))
    refuse_overlap(Path(run) / STORE, goal, what="run's store")
    if job.overwrite:
        refuse_packed_target(goal)
    one = replace(job, overwrite=False, base=None)
    packed = {PurePosixPath(name) for name in packed_names(path)}
    names = sorted(PurePosixPath(entry.relative_to(path).as_posix()) for entry in path.rglob("*") if entry.is_file())
    names = [name for name in names if not any(is_working_name(part) for part in name.parts)]
    results = []
    with work_folder(goal, source=path, names=names, job=f"restore {path.resolve()}", overwrite=job.overwrite) as work:
        for name in names:
            if name in packed:
                results.append(resumed(work, path / name, name, goal, one, partial(unpack_one, prove=True), proven_unpacked))
            else:
                work.clear([name])
                carry_over(path / name, work.path / name)
    return JobResult(str(goal), tuple(results))


def verify(run: str | os.PathLike[str], job: Job) -> list[tuple[str, VerifyResult]]:
    """Prove that each packed file of a run restores to the SHA-256 that its index names; FormatError if one does not, or a checkpoint is incomplete."""
    results = []
    for each in series(run, job.limits).checkpoints:
        refuse_incomplete(each, job.limits)
        for file in each.files:
            if file.packed:
                path = Path(each.path) / file.name
                with open_packed(path, job.limits) as packed:
                    results.append((str(path), verify_file(packed, threads=job.threads, progress=job.bind(path))))
    return results


@contextlib.contextmanager
def plain_files(path: Path, prefixes: tuple[str, ...], threads: int = 1, limits: Limits = DEFAULT_LIMITS) -> Iterator[Path]:
    """Give a checkpoint whose PyTorch files with such names are plain: itself, or a temporary directory of restored and linked files.

    Its other packed files that are no safetensors are left out.
    """
    packed = [path / name for name in packed_names(path) if not name.endswith(".safetensors")] if path.is_dir() else []
    if not any(file.name.startswith(prefixes) for file in packed):
        yield path
        return
    job = Job(threads=threads, limits=limits)
    with _temporary(path.resolve().parent) as folder:
        for entry in path.iterdir():
            if entry in packed:
                if entry.name.startswith(prefixes):
                    unpack_one(entry, folder / entry.name, job, prove=True)
            elif not is_working_name(entry.name) and entry.suffix != ".safetensors":
                try:
                    (folder / entry.name).symlink_to(entry.resolve())
                except OSError:  # Windows lets only some make them
                    if entry.is_file():
                        shutil.copyfile(entry, folder / entry.name)
        yield folder


@contextlib.contextmanager
def _temporary(run: Path) -> Iterator[Path]:
    """Give a folder on the run's disk, where there is room for a checkpoint; elsewhere if that can't be written to."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(make_store(run) / "resume"))
        except (OSError, OptionError):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield folder
