# SPDX-License-Identifier: Apache-2.0
"""What packing will make of each file of a directory, and whether it can: everything is looked at before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weightpack.errors import OptionError, located
from weightpack.format.manifest import MANIFEST, MAX_PART_BYTES, PACKED_SUFFIX, name_problem
from weightpack.io.files import LocalFile
from weightpack.models.directory import ModelFiles, Note, has_manifest, model_files, packed_config
from weightpack.models.jobs import Job
from weightpack.models.standing import stand
from weightpack.options import PackOptions
from weightpack.sources import is_pointer, segment
from weightpack.sources.safetensors import is_packed_file
from weightpack.writing.estimate import estimate_file

CONFIG = PurePosixPath("config.json")
IS_LINK = "this is a link, such as the Hub's cache has: copy the directory, or pack it to another"
REACHED_BY_LINK = "it is reached through a link to a folder, which others may use too"
ONLY_SAFETENSORS = "only safetensors files are packed in place: packed, it would be no such file under its name"
_LEAST_BYTES = 1 << 16  # of a file of another kind than safetensors; below, its packed form is of no use to anybody
_MOST_SHARE = 0.98
_SAMPLE_BYTES = 16 << 20
_IS_POINTER = "a pointer of Git LFS, not the file: run `git lfs pull`"


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each file of a directory.

    Parameters
    ----------
    packed
        Path in the source -> path of its packed form.
    carried
        Files that are carried over, but for `config`.
    config
        What stands in the place of config.json; None if that stays as it is.
    kept
        Weights among `carried`, and why they are not packed.
    warnings
        What may not be as it was meant.
    """

    files: ModelFiles
    packed: dict[PurePosixPath, PurePosixPath]
    carried: tuple[PurePosixPath, ...]
    config: bytes | None
    kept: tuple[Note, ...]
    warnings: tuple[Note, ...]

    @property
    def names(self) -> list[PurePosixPath]:
        """All files of the packed directory."""
        return [*self.packed.values(), *self.carried, *([CONFIG] if self.config is not None else []), PurePosixPath(MANIFEST)]


def plan_packing(folder: Path, job: Job, *, in_place: bool = False) -> Plan:
    """Look at every file of a directory.

    Raises
    ------
    OptionError
        There is nothing to pack, or it is packed already; a name can't be restored; in place, weights are links.
    FormatError
        A file named .safetensors is none.
    TruncatedError
        A shard is missing.
    OSError
        A file can't be read.
    """
    files = model_files(folder)
    refuse_names(folder, (*files.files, *files.folders))
    kept: list[Note] = []
    packed: dict[PurePosixPath, PurePosixPath] = {}
    for path in files.weights:
        if in_place and path in files.linked and not (folder / path).is_symlink():
            kept.append(Note(str(path), REACHED_BY_LINK))
        elif is_packed_file(folder / path):
            kept.append(Note(str(path), "it is packed already"))
        else:
            check_plain(folder / path, in_place=in_place)
            packed[path] = path
    for path in files.other_weights:
        if path.suffix == PACKED_SUFFIX and is_packed_file(folder / path):
            kept.append(Note(str(path), "it is packed already"))
            continue
        if _is_lfs_pointer(folder / path):
            continue
        if not _is_worth_packing(folder / path, job.options):
            if (folder / path).stat().st_size >= _LEAST_BYTES:
                kept.append(Note(str(path), "it holds no weights that packing makes smaller by 2 %"))
            continue
        name = path.with_name(f"{path.name}{PACKED_SUFFIX}")
        if in_place:
            kept.append(Note(str(path), ONLY_SAFETENSORS))
        elif (folder / name).exists():
            kept.append(Note(str(path), f"{name.name} is there, which would be the name of its packed form"))
        elif len(name.name.encode()) > MAX_PART_BYTES:
            kept.append(Note(str(path), "the name of its packed form would be too long"))
        else:
            packed[path] = name
    pointers = [Note(str(path), _IS_POINTER) for path in (*files.other_weights, *files.others) if _is_lfs_pointer(folder / path)]
    if not packed:
        raise OptionError(_nothing([*pointers, *kept]), path=str(folder))
    config = packed_config(files) if job.hf_flag else None
    if in_place and config is not None and CONFIG in files.linked:
        raise OptionError(IS_LINK, path=str(folder / CONFIG))
    carried = tuple(path for path in files.files if path not in packed and not (path == CONFIG and config is not None))
    return Plan(files, packed, carried, config, tuple(kept), (*files.warnings, *pointers))


def check_plain(path: Path, *, in_place: bool) -> None:
    """Raise if a file that is named .safetensors can't be packed: FormatError if it is none, OptionError if it is a link that would be replaced."""
    if in_place and path.is_symlink():
        raise OptionError(IS_LINK, path=str(path))
    with located(path=str(path)), LocalFile(path) as file:
        segment(file)


def _nothing(kept: list[Note]) -> str:
    if kept and all(note.reason == "it is packed already" for note in kept):
        return "the directory is packed already, file by file, without a manifest"
    reasons = "".join(f"; {note.name}: {note.reason}" for note in kept[:3])
    return f"nothing in this directory can be packed{reasons}"


def refuse_packed(folder: Path) -> None:
    """Raise OptionError if a directory is packed, whole or in part."""
    if not has_manifest(folder):
        return
    job = stand(folder).unfinished
    if job is None:
        raise OptionError(f"the directory is packed already: it has a {MANIFEST}", path=str(folder))
    raise OptionError(
        f"a job in place (`{job} --in-place`) has not ended: run it again, or go back with `{'unpack' if job == 'pack' else 'pack'} --in-place`",
        path=str(folder),
    )


def refuse_names(folder: Path, names: Iterable[PurePosixPath]) -> None:
    """Raise OptionError if a file or folder of a directory has a name that a manifest can't hold, so that it could not be restored."""
    for path in names:
        if (problem := name_problem(str(path))) is not None:
            raise OptionError(f"{str(path)!r} can't be packed with the directory, as it could not be restored everywhere: {problem}", path=str(folder))


def _is_lfs_pointer(path: Path) -> bool:
    with LocalFile(path) as file:
        return is_pointer(file)


def _is_worth_packing(path: Path, options: PackOptions) -> bool:
    """Does a file of another kind than safetensors hold weights, that packing makes smaller? From samples."""
    with located(path=str(path)), LocalFile(path) as file:
        if file.size < _LEAST_BYTES:
            return False
        found = segment(file)
        floats = sum(tensor.n_bytes for tensor in found.tensors if tensor.dtype not in ("U8", "I8"))
        if found.source_format == "bytes" and 2 * floats < file.size:
            return False
        return estimate_file(file, options, sample_chunks=2, budget_bytes=_SAMPLE_BYTES).packed_bytes <= _MOST_SHARE * file.size
