# SPDX-License-Identifier: Apache-2.0
"""What a run has: its checkpoints, which of them are whole, and what they stand on. Nothing is changed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from weightpack.errors import FormatError, LimitError, PathNotFoundError, TruncatedError, WeightpackError
from weightpack.format.safetensors import check_tiles
from weightpack.io.files import LocalFile, named_path
from weightpack.models.directory import check_shards, list_files, small_file
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.runs.files import SeriesFile, described, has_sharded_state, packable, step_of, steps
from weightpack.runs.store import stored_files, stored_steps
from weightpack.sources.safetensors import read_header

_STATE, _SENTINEL = "trainer_state.json", "checkpoint-is-incomplete.txt"  # written last; there while transformers answers SIGTERM with a checkpoint


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a run. `problem` says what is not whole of it; None if nothing.

    `base_step`: the step of the checkpoint that it is a delta to, which may have been deleted since: its files are in the store then.
    """

    step: int
    path: str
    files: tuple[SeriesFile, ...]
    problem: str | None
    resumable: bool
    base_step: int | None = None

    @property
    def source_bytes(self) -> int:
        return sum(file.source_bytes for file in self.files)

    @property
    def packed_bytes(self) -> int:
        return sum(file.packed_bytes for file in self.files)

    @property
    def depth(self) -> int:
        return max((file.depth for file in self.files), default=0)

    @property
    def is_packed(self) -> bool:
        """Is all of it packed that could be?"""
        return bool(self.files) and all(file.packed for file in self.files)


@dataclass(frozen=True, slots=True)
class Series:
    """A run's checkpoints, by step. `store_bytes`: what the bases of deleted checkpoints occupy."""

    path: str
    checkpoints: tuple[Checkpoint, ...]
    store_bytes: int


def series(run: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> Series:
    """List a run's checkpoints; only headers and indexes are read.

    Raises
    ------
    OptionError
        There is no such directory.
    """
    folder = named_path(run)
    if not folder.is_dir():
        raise PathNotFoundError("no such directory", path=str(folder))
    checkpoints: list[Checkpoint] = []
    steps_of = {sha: step for step, files in stored_steps(folder).items() for sha in files.values()}
    for step, path in steps(folder):
        try:
            listed = checkpoint(path, step, limits)
        except FileNotFoundError:
            continue  # deleted while it was looked at
        wanted = {sha for file in listed.files for sha in file.bases}
        steps_of.update({file.sha256: step for file in listed.files if file.sha256 is not None})
        checkpoints.append(replace(listed, base_step=max((steps_of[sha] for sha in wanted if sha in steps_of), default=None)))
    kept = [path.stat() for path in stored_files(folder)]
    return Series(str(folder), tuple(checkpoints), sum(state.st_size for state in kept if state.st_nlink == 1))


def checkpoint(path: Path, step: int, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe one checkpoint."""
    files, problem = [], None
    for name in packable(path):
        try:
            files.append(described(path / name, limits))
        except WeightpackError as error:
            n_bytes = (path / name).stat().st_size
            files.append(SeriesFile(name, True, n_bytes, n_bytes))
            problem = problem or f"{name} is {'beyond a limit' if isinstance(error, LimitError) else 'cut or damaged'}: {error.reason}"
    return Checkpoint(step, str(path), tuple(files), problem or _problem(path, step, tuple(files)), _resumable(path))


def refuse_incomplete(found: Checkpoint, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise TruncatedError if a checkpoint is not whole, LimitError if one of its files is beyond the limits."""
    if found.problem is None:
        return
    for file in found.files:
        with contextlib.suppress(FormatError):
            described(Path(found.path) / file.name, limits)
    raise TruncatedError(f"incomplete: {found.problem}", path=found.path)


def last_checkpoint(run: str | os.PathLike[str], *, weights_only: bool = False) -> Path | None:
    """Return the newest checkpoint that is whole, and warn of newer ones that are not; None if there is none.

    Parameters
    ----------
    weights_only
        Also take checkpoints without an optimizer's state, as `save_only_model` writes them.
    """
    for step, path in reversed(steps(Path(run))):
        problem = checkpoint_problem(path, weights_only=weights_only)
        if problem is None:
            return path
        warnings.warn(f"checkpoint-{step} is passed over: {problem}", RuntimeWarning, stacklevel=2)
    return None


def checkpoint_problem(path: Path, *, weights_only: bool = False) -> str | None:
    """Return why training can't go on at a checkpoint, None if it can."""
    step = step_of(path)
    listed = checkpoint(path, -1 if step is None else step)
    if listed.problem is None and not weights_only and not listed.resumable:
        return "it has no state of the optimizer and the scheduler: training would begin anew with these weights"
    return listed.problem


def _problem(path: Path, step: int, files: tuple[SeriesFile, ...]) -> str | None:
    """Return what is missing or cut. transformers writes weights, optimizer, scheduler, random state and `trainer_state.json`, in this order."""
    if (path / _SENTINEL).exists():
        return f"{_SENTINEL} is there: the trainer was stopped while it wrote the checkpoint"
    try:
        written = json.loads(small_file(path / _STATE))["global_step"]
    except FileNotFoundError:
        return f"{_STATE} is missing: the trainer was stopped while it wrote the checkpoint"
    except OSError as error:
        return f"{_STATE}: {error.strerror}"
    except WeightpackError as error:
        return f"{_STATE}: {error.reason}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{_STATE} is cut: the trainer was stopped while it wrote the checkpoint"
    if step >= 0 and written != step:
        return f"{_STATE} is of step {written}"
    try:
        there = list_files(path)
        check_shards(there)
    except WeightpackError as error:
        return error.reason
    if not there.weights and not any(file.name.startswith(("pytorch_model", "adapter_model")) for file in files) and not has_sharded_state(path):
        return "it has no weights"
    for file in files:
        if not file.packed and (reason := _cut(path / file.name)):
            return f"{file.name} is cut: {reason}"
    saved = {entry.name for entry in path.iterdir()}
    if not has_sharded_state(path) and (("optimizer.pt" in saved) != ("scheduler.pt" in saved) or ("scheduler.pt" not in saved and _random_states(saved))):
        missing = "optimizer.pt" if "optimizer.pt" not in saved else "scheduler.pt"
        return f"{missing} is missing: transformers would go on with a fresh one, silently"
    return None


def _random_states(names: Iterable[str]) -> bool:
    return any(re.fullmatch(r"rng_state(_\d+)?\.pth", name) for name in names)


def _resumable(path: Path) -> bool:
    return ((path / "optimizer.pt").is_file() and (path / "scheduler.pt").is_file()) or has_sharded_state(path)


def _cut(path: Path) -> str | None:
    """Return what shows that a plain file is not whole."""
    if path.suffix == ".safetensors":
        try:
            with LocalFile(path) as file:
                header = read_header(file)
                check_tiles(header, file.size - header.data_begin)
        except (FormatError, LimitError) as error:
            return error.reason
        return None
    with open(path, "rb") as opened:
        old = opened.read(1) == b"\x80"  # a pickle, as torch.save wrote before version 1.6
    return None if old or zipfile.is_zipfile(path) else "no PyTorch file"  # a zip's directory stands at its end
