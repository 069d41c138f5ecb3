# SPDX-License-Identifier: Apache-2.0
"""Packing checkpoints in place under their own names, each as a delta to the one before.

Whatever is killed when: a file of a checkpoint is either as the trainer wrote it, or packed, proven and synced; and what it is packed against is in the store
before.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from weightpack.errors import OptionError, PathNotFoundError, located
from weightpack.io.atomic import state_of, sync_folder
from weightpack.io.files import LocalFile, named_path
from weightpack.models.jobs import FileResult, Job, JobResult, open_packed, pack_one
from weightpack.reading.bases import Base
from weightpack.reading.verify import verify_file
from weightpack.runs.look import checkpoint, refuse_incomplete, series
from weightpack.runs.store import STAGING, collect, collect_locked, locked, newest_before, replace_by_link, share, stored_file, stored_steps

ANCHOR_EVERY = 8


def pack_checkpoint(run: str | os.PathLike[str], step: int, job: Job, *, anchor_every: int = ANCHOR_EVERY) -> JobResult:
    """Pack a checkpoint in place, its files one after the other, each decoded and compared before it replaces its source. Then `collect`.

    Parameters
    ----------
    job
        Threads, options, limits, progress; it verifies and overwrites whatever it says.
    anchor_every
        A file is a delta to that of the newest packed checkpoint before, but each `anchor_every`-th is full; 1: all are. So is a file where the job's limits do
        not allow the chain, or the file before.

    Returns
    -------
    JobResult
        All packed files of the checkpoint, such as were packed already included.

    Raises
    ------
    OptionError
        There is no such checkpoint, or `anchor_every` is less than 1.
    TruncatedError
        The checkpoint is incomplete.
    LimitError
        A file of it is packed already and beyond the limits.
    LosslessError
        A file changed meanwhile, or does not decode to its source. It stays as it is.
    """
    folder = named_path(run)
    path = folder / f"checkpoint-{step}"
    if anchor_every < 1:
        raise OptionError(f"anchor_every is {anchor_every}: it must be at least 1")
    if not path.is_dir():
        raise PathNotFoundError("no such checkpoint", path=str(path))
    max_depth = min(anchor_every - 1, job.limits.max_depth)
    with locked(folder) as store:
        before = checkpoint(path, step, job.limits)
        refuse_incomplete(before, job.limits)
        share(folder, job.limits)
        for file in before.files:
            if not file.packed:
                base = newest_before(folder, file.name, step, max_depth, job.limits)
                one = replace(job, overwrite=True, verify=True, base=None if base is None else Base((base,)))
                _pack_into(store, path / file.name, one)
        after = checkpoint(path, step, job.limits)
        collect_locked(folder, job.limits)
    files = tuple(
        FileResult(str(path / f.name), str(path / f.name), f.source_bytes, f.packed_bytes, f.sha256 or "") for f in after.files if f.packed
    )  # fmt: skip
    return JobResult(str(path), files)


def pack_run(run: str | os.PathLike[str], job: Job, *, anchor_every: int = ANCHOR_EVERY, unfinished: bool = False, last: int | None = None) -> list[JobResult]:
    """Pack the checkpoints of a run that are complete and not packed, the earliest first.

    Parameters
    ----------
    unfinished
        Only what a killed process left: checkpoints of which some files are packed, and such as are newer than the newest packed one.
    last
        Leave checkpoints of later steps alone.
    """
    listed = [each for each in series(run, job.limits).checkpoints if last is None or each.step <= last]
    packed_steps = [each.step for each in listed if each.is_packed] + [step for step in stored_steps(Path(run)) if last is None or step <= last]
    newest = max(packed_steps, default=None)
    results = []
    for each in listed:
        wanted = not unfinished or any(file.packed for file in each.files) or (newest is not None and each.step > newest)
        if each.problem is None and each.files and not each.is_packed and wanted:
            results.append(pack_checkpoint(run, each.step, job, anchor_every=anchor_every))
    if not results:
        collect(run, job.limits)
    return results


def _pack_into(store: Path, path: Path, job: Job) -> None:
    """Replace a file by its packed form, by way of the store."""
    staging = store / f"{STAGING}{path.name}"
    with located(path=str(path)):
        result = pack_one(path, staging, job)
    stored = stored_file(store.parent, result.source_sha256)
    if state_of(stored) is not None:  # the same bytes were packed before: what others are packed against must not change
        with LocalFile(path) as source, open_packed(stored, job.limits) as packed:
            verify_file(packed, against=source, threads=job.threads)
        staging.unlink()
    else:
        os.replace(staging, stored)
        sync_folder(store)
    replace_by_link(path, stored)
