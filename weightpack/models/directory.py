# SPDX-License-Identifier: Apache-2.0
"""What is in a model's directory: which files hold weights, what else there is, and what no job takes along.

Links to files and to folders are followed, as the Hub client's cache is made of them. Nothing is left out that is not listed as left out.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from weightpack.errors import CorruptionError, FormatError, LimitError, OptionError, TruncatedError, located
from weightpack.format.constants import MAX_HEADER_BYTES
from weightpack.format.manifest import MANIFEST, Manifest, parse_manifest
from weightpack.format.safetensors import parse_json
from weightpack.io.working_names import is_working_name

MAX_ENTRIES = 1_000_000  # of a directory and all below it: links can make a few folders look like many
_SAFETENSORS, _INDEX = ".safetensors", ".safetensors.index.json"
# Names under which weights of other kinds are kept; what is in the file decides.
_OTHER_WEIGHTS = re.compile(
    r".+(\.(bin|pt|pth|ckpt|pkl|gguf|ggml|onnx|onnx_data|npz|npy|h5|hdf5|keras|msgpack|ot|tflite|pdparams|safetensors|wp)|\.data-\d+-of-\d+)", re.I | re.S
)
_ONNX = re.compile(r".+\.onnx", re.I | re.S)
# Beside an ONNX file any name may be that of its data, but for these.
_NO_ONNX_DATA = re.compile(r"\..*|.+\.(json|jsonl|txt|md|py|model|jinja|ya?ml|toml|png|jpe?g|gif|svg|csv|tsv|xml|html|pdf|vocab|spm|lock)", re.I | re.S)


@dataclass(frozen=True, slots=True)
class Note:
    """What there is to know of a file or folder, by its path in the directory."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Relative paths of a model directory, sorted.

    Parameters
    ----------
    weights
        Files named .safetensors.
    others
        Files that hold no weights.
    other_weights
        Files with names under which weights of other kinds are kept.
    folders
        All folders below the directory.
    left_out
        What is not part of a model, or can't be copied.
    linked
        Files and folders that are links, or are reached through one.
    warnings
        Indexes of shards that do not fit what is there.
    """

    folder: Path
    weights: tuple[PurePosixPath, ...]
    others: tuple[PurePosixPath, ...]
    other_weights: tuple[PurePosixPath, ...] = ()
    folders: tuple[PurePosixPath, ...] = ()
    left_out: tuple[Note, ...] = ()
    linked: frozenset[PurePosixPath] = frozenset()
    warnings: tuple[Note, ...] = ()

    @property
    def files(self) -> tuple[PurePosixPath, ...]:
        """All files."""
        return tuple(sorted((*self.weights, *self.other_weights, *self.others)))

    @property
    def empty_folders(self) -> tuple[PurePosixPath, ...]:
        """Folders that hold neither files nor folders."""
        parents = {path.parent for path in (*self.files, *self.folders)}
        return tuple(path for path in self.folders if path not in parents)


def list_files(folder: Path) -> ModelFiles:
    """List a directory.

    Raises
    ------
    OSError
        It, or a folder below it, can't be read.
    LimitError
        It holds more than `MAX_ENTRIES` files and folders.
    """
    files: list[PurePosixPath] = []
    folders: list[PurePosixPath] = []
    left_out: list[Note] = []
    linked: set[PurePosixPath] = set()
    waiting: list[tuple[PurePosixPath, tuple[tuple[int, int], ...]]] = [(PurePosixPath(), (_identity(folder),))]
    while waiting:
        name, above = waiting.pop()
        for entry in sorted(os.listdir(folder / name)):
            path, is_link = name / entry, (folder / name / entry).is_symlink()
            if len(files) + len(folders) + len(left_out) >= MAX_ENTRIES:
                raise LimitError(f"the directory holds more than {MAX_ENTRIES} files and folders, with what its links lead to", path=str(folder))
            try:
                mode = (folder / path).stat().st_mode
            except OSError as error:
                if not is_link:
                    raise
                left_out.append(Note(str(path), f"a link that leads nowhere: {error.strerror}"))
                continue
            if (reason := _why_left_out(path, mode)) is not None:
                left_out.append(Note(str(path), reason))
                continue
            if stat.S_ISREG(mode):
                files.append(path)
            elif (identity := _identity(folder / path)) not in above:
                folders.append(path)
                waiting.append((path, (*above, identity)))
            else:
                left_out.append(Note(str(path), "a link to a folder that it is in"))
                continue
            if is_link or name in linked:
                linked.add(path)
    parents = {path.parent for path in (*files, *folders)}
    folders = [path for path in folders if path.name != ".cache" or path in parents or not any(note.name.startswith(f"{path}/") for note in left_out)]
    left_out.sort(key=lambda note: note.name)
    return _by_kind(ModelFiles(folder, (), tuple(sorted(files)), (), tuple(sorted(folders)), tuple(left_out), frozenset(linked)))


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _why_left_out(path: PurePosixPath, mode: int) -> str | None:
    if path.name == ".git":
        return "git's own"
    if path.name == "__pycache__":
        return "Python's own"
    if path.parts[-2:] == (".cache", "huggingface"):
        return "the Hub client's own"
    if is_working_name(path.name):
        return "left by a job that was killed, or of one that is at work"
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return "neither a file nor a folder"
    return None


def _by_kind(files: ModelFiles) -> ModelFiles:
    """Tell weights from other files, by their names."""
    beside_onnx = {path.parent for path in files.others if _ONNX.fullmatch(path.name)}
    weights = tuple(path for path in files.others if path.suffix == _SAFETENSORS)
    other_weights = tuple(
        path
        for path in files.others
        if path.suffix != _SAFETENSORS and (_OTHER_WEIGHTS.fullmatch(path.name) or (path.parent in beside_onnx and not _NO_ONNX_DATA.fullmatch(path.name)))
    )
    holding = {*weights, *other_weights}
    others = tuple(path for path in files.others if path not in holding)
    return replace(files, weights=weights, others=others, other_weights=other_weights)


def model_files(folder: Path) -> ModelFiles:
    """List a model directory and check that the shards which its indexes name are there.

    Raises
    ------
    OptionError
        The directory holds no weights.
    TruncatedError
        A model is not whole: some of its shards are there and others not, and no file that holds all of them; or none is there, nor any other weights.
    """
    files = list_files(folder)
    warnings = check_shards(files)
    if not files.weights and not files.other_weights:
        raise OptionError("no weights in this directory: no .safetensors, .bin, .gguf or other file that may hold them", path=str(folder))
    return replace(files, warnings=tuple(warnings))


def check_shards(files: ModelFiles) -> list[Note]:
    """Check the indexes of safetensors shards; return what is odd about them: one that is none, or that names shards which nothing needs.

    Raises
    ------
    TruncatedError
        As in `model_files`.
    """
    warnings = []
    there = set(files.weights)
    folders_with_weights = {path.parent for path in (*files.weights, *files.other_weights)}
    for path in files.others:
        if not path.name.endswith(_INDEX):
            continue
        try:
            shards = {path.parent / shard for shard in _shards(files.folder / path)}
        except (FormatError, LimitError) as error:
            warnings.append(Note(str(path), f"{error.reason}: it is carried over as it is"))
            continue
        missing = sorted(shards - there)
        whole = path.with_name(path.name.removesuffix(".index.json")) in there
        if not missing:
            continue
        if (len(missing) < len(shards) and not whole) or path.parent not in folders_with_weights:
            raise TruncatedError(f"the shard {missing[0].name!r} that {path} names is missing: fetch the model again", path=str(files.folder / path))
        warnings.append(Note(str(path), f"it names {len(missing)} of {len(shards)} shards that are not there; other weights are"))
    return warnings


def _shards(path: Path) -> set[str]:
    try:
        shards = set(parse_json(small_file(path))["weight_map"].values())
    except (KeyError, TypeError, AttributeError):
        raise CorruptionError("not an index of shards: it has no weight_map", path=str(path)) from None
    for shard in shards:
        if not isinstance(shard, str) or not shard or "\\" in shard or PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts:
            raise CorruptionError(f"it names a shard outside its directory: {shard!r}", path=str(path))
    return shards


def small_file(path: Path) -> bytes:
    """Read a small file of a checkpoint; the JSON of one with hundreds of thousands of tensors has some tens of megabytes.

    Raises
    ------
    CorruptionError
        It is a device, a pipe or a folder.
    LimitError
        It has more than `MAX_HEADER_BYTES`.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise CorruptionError("it is not a regular file", path=str(path))
        data = b""
        if state.st_size <= MAX_HEADER_BYTES:
            with open(fd, "rb", closefd=False) as file:
                data = file.read(MAX_HEADER_BYTES + 1)
        if max(len(data), state.st_size) > MAX_HEADER_BYTES:
            raise LimitError(f"the file is larger than the {MAX_HEADER_BYTES} bytes that such files have", path=str(path))
        return data
    finally:
        os.close(fd)


def has_manifest(folder: Path) -> bool:
    """Is the directory packed, or was it about to be?"""
    return os.path.lexists(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a packed directory.

    Raises
    ------
    OptionError
        There is none.
    FormatError, LimitError
        It is none, or names what can't be a file of the directory.
    """
    path = folder / MANIFEST
    with located(path=str(path)):
        try:
            manifest = parse_manifest(small_file(path))
        except FileNotFoundError:
            raise OptionError(f"not a packed directory: it has no {MANIFEST}", path=str(folder)) from None
        for name in (*manifest.files, *manifest.standing, *manifest.folders, *manifest.added):
            if any(is_working_name(part) for part in name.split("/")):
                raise CorruptionError(f"the manifest names a working file: {name!r}")
        return manifest


def path_below(folder: Path, name: str) -> Path:
    """Return where a file that a manifest names is, for writing to it: nothing on the way there is a link.

    Raises
    ------
    CorruptionError
        It would be outside of the directory, or inside of another file.
    """
    path = folder
    for part in PurePosixPath(name).parts:
        if os.name == "nt" and (":" in part or part != part.rstrip(" .")):
            raise CorruptionError(f"the manifest names {name!r}, which is another file's name on Windows", path=str(folder))
        if path != folder and os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
            raise CorruptionError(f"the manifest names {name!r}, but {path} is a link, or no folder", path=str(folder))
        path = path / part
    return path


def packed_config(files: ModelFiles) -> bytes | None:
    """Return `config.json` with the quantisation method "weightpack" around the model's own; None if there is none, or it says so already.

    Nothing else of it is changed, and without `--hf-flag` not even this: what transformers reads out of the weights' headers, such as a dtype that
    the config does not name, the packed-aware `safe_open` answers as the plain file would.
    """
    path = files.folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or not {"model_type", "architectures"} & config.keys():
        return None  # not transformers' own: diffusers and others take every key for an argument
    inner = config.get("quantization_config")
    if isinstance(inner, dict) and inner.get("quant_method") == "weightpack":
        return None
    config["quantization_config"] = {"quant_method": "weightpack", "inner": inner}
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def without_flag(config: dict[str, Any]) -> dict[str, Any]:
    """Return what was in a `config.json` before `packed_config` put the quantisation method "weightpack" around the model's own."""
    flag = config.get("quantization_config")
    if not isinstance(flag, dict) or flag.get("quant_method") != "weightpack":
        return config
    inner = flag.get("inner")
    return {**{key: value for key, value in config.items() if key != "quantization_config"}, **({"quantization_config": inner} if inner else {})}
