# SPDX-License-Identifier: Apache-2.0
"""Which files of a run's checkpoints are packed or could be, and what their indexes say of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from weightpack.io.files import LocalFile
from weightpack.io.working_names import is_working_name
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.reading.packed_file import PackedFile
from weightpack.sources.safetensors import looks_packed

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,18})")
# What is worth packing, at the top of a checkpoint. Schedulers, random states and arguments have some kilobytes.
_PACKABLE = re.compile(r".+\.safetensors|(optimizer|pytorch_model.*|adapter_model)\.(pt|bin)")
_SHARDED_STATE = re.compile(r"global_step\d+|pytorch_model_fsdp.*|optimizer_\d+|.+_fsdp\.bin")  # DeepSpeed's and FSDP's own


@dataclass(frozen=True, slots=True)
class SeriesFile:
    """A file of a checkpoint that is or could be packed. Of a plain one `sha256` is not known, and both lengths are the same.

    `depth`: how many files must be decoded below it: 0 for a full one. `bases`: the SHA-256 of each that it is a delta to.
    """

    name: str
    packed: bool
    source_bytes: int
    packed_bytes: int
    sha256: str | None = None
    depth: int = 0
    bases: tuple[str, ...] = ()


def step_of(path: Path) -> int | None:
    """Return the step in a checkpoint's name; None if it is none."""
    match = _CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else None


def steps(run: Path) -> list[tuple[int, Path]]:
    """Return (step, directory) of a run's checkpoints, by step."""
    paths = list(run.iterdir()) if run.is_dir() else []
    return sorted((step, path) for path in paths if (step := step_of(path)) is not None and path.is_dir())


def packable(path: Path) -> list[str]:
    """Return the names of a checkpoint's files that are packed or could be, sorted."""
    names = sorted(entry.name for entry in path.iterdir())
    sharded = any(_SHARDED_STATE.fullmatch(name) for name in names)
    return [
        name for name in names
        if _PACKABLE.fullmatch(name) and not is_working_name(name) and (path / name).is_file() and (name.endswith(".safetensors") or not sharded)
    ]  # fmt: skip


def packed_names(path: Path) -> list[str]:
    """Return the names of a checkpoint's files that are packed, sorted."""
    return [name for name in packable(path) if looks_packed(path / name)]


def has_sharded_state(path: Path) -> bool:
    """Did DeepSpeed or FSDP write the optimizer's state into a checkpoint?"""
    return any(_SHARDED_STATE.fullmatch(entry.name) for entry in path.iterdir())


def described(path: Path, limits: Limits = DEFAULT_LIMITS) -> SeriesFile:
    """Describe a file by its header.

    Raises
    ------
    FormatError, LimitError
        It is packed, and damaged or beyond the limits.
    """
    n_bytes = path.stat().st_size
    if not looks_packed(path):
        return SeriesFile(path.name, False, n_bytes, n_bytes)
    with LocalFile(path) as file:
        index = PackedFile(file, limits).index
    depth, bases = (0, ()) if index.base is None else (index.base.depth, tuple(base.sha256 for base in index.base.files))
    return SeriesFile(path.name, True, index.source_bytes, n_bytes, index.source_sha256, depth, bases)
