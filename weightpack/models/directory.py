# SPDX-License-Identifier: Apache-2.0
"""A model's directory: which files hold weights, and how the others are carried over.

A packed directory has the same file names, so that every tool finds what it looks for, and a manifest, `weightpack.json`, that says which files are
packed, what they were, and how `config.json` was before a `dtype` was added to it.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from weightpack.errors import CorruptionError, FormatError, LimitError, OptionError, TruncatedError, located
from weightpack.format.constants import MAX_HEADER_BYTES
from weightpack.format.safetensors import parse_json
from weightpack.io.files import LocalFile
from weightpack.io.working_names import is_working_name
from weightpack.sources import segment

MANIFEST = "weightpack.json"
_MANIFEST_VERSION = 1
# Working files of git, the Hub client and Python: not part of a model.
_SKIPPED = {".git", ".cache", "__pycache__", ".gitattributes.lock"}
_CONFIG_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Relative paths of a model directory, sorted: `weights` are safetensors files, `others` everything else."""

    folder: Path
    weights: tuple[PurePosixPath, ...]
    others: tuple[PurePosixPath, ...]


def model_files(folder: Path) -> ModelFiles:
    """List a model directory and check that every shard which an index file names is there.

    Raises
    ------
    OptionError
        The directory holds no safetensors file.
    TruncatedError
        A shard is missing.
    """
    found = sorted(
        PurePosixPath(path.relative_to(folder).as_posix())
        for path in folder.rglob("*")
        if path.is_file() and not any(part in _SKIPPED or is_working_name(part) for part in path.relative_to(folder).parts)
    )
    weights = tuple(path for path in found if path.suffix == ".safetensors")
    if not weights:
        raise OptionError("no .safetensors file in this directory", path=str(folder))
    for path in found:
        if path.name.endswith(".safetensors.index.json"):
            with located(path=str(folder / path)):
                shards = sorted(_shards(folder / path))
            for shard in shards:
                if not (folder / path.parent / shard).is_file():
                    raise TruncatedError(f"the shard {shard!r} that {path} names is missing: fetch the model again", path=str(folder / path))
    return ModelFiles(folder, weights, tuple(path for path in found if path not in weights))


def _small_file(path: Path) -> bytes:
    """Read a file of a checkpoint that is JSON; those of hundreds of thousands of tensors have some tens of megabytes."""
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise LimitError(f"the file is larger than the {MAX_HEADER_BYTES} bytes that such files have", path=str(path))
    return path.read_bytes()


def _shards(path: Path) -> set[str]:
    try:
        weight_map = parse_json(_small_file(path))["weight_map"]
        shards = set(weight_map.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptionError(f"not an index of shards: {error}", path=str(path)) from None
    for shard in shards:
        if not isinstance(shard, str) or "\\" in shard or PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts:
            raise CorruptionError(f"the index names a shard outside its directory: {shard!r}", path=str(path))
    return shards


@dataclass(frozen=True, slots=True)
class Manifest:
    """`packed`: relative path -> {source_bytes, packed_bytes, sha256}; `originals`: relative path -> the source's bytes of a file that was changed."""

    packed: dict[str, dict[str, Any]]
    originals: dict[str, bytes]

    def to_bytes(self) -> bytes:
        """Serialise; the same manifest gives the same bytes."""
        root = {
            "weightpack_manifest": _MANIFEST_VERSION,
            "packed": self.packed,
            "originals": {name: base64.b64encode(data).decode() for name, data in sorted(self.originals.items())},
        }
        return (json.dumps(root, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check the manifest of a packed directory."""
        path = folder / MANIFEST
        try:
            root = parse_json(_small_file(path))
            if root["weightpack_manifest"] != _MANIFEST_VERSION:
                raise CorruptionError("a manifest of another version: upgrade weightpack", path=str(path))
            packed = {str(name): dict(entry) for name, entry in root["packed"].items()}
            originals = {str(name): base64.b64decode(text, validate=True) for name, text in root["originals"].items()}
        except FileNotFoundError:
            raise OptionError(f"not a packed directory: it has no {MANIFEST}", path=str(folder)) from None
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, RecursionError) as error:
            if isinstance(error, FormatError):
                raise
            raise CorruptionError(f"not a manifest: {error!r}", path=str(path)) from None
        for name in (*packed, *originals):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                raise CorruptionError(f"the manifest names a file outside its directory: {name!r}", path=str(path))
        return cls(packed, originals)


def packed_config(files: ModelFiles, *, flag: bool = False) -> bytes | None:
    """Return `config.json` as the packed directory needs it; None if it stays as it is.

    It gets the weights' dtype if it names none: loaders that find no dtype in the config look at the weights' headers, where packed tensors are U8. With
    `flag` its quantisation method becomes "weightpack", around the model's own.
    """
    path = files.folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or not {"model_type", "architectures"} & config.keys():
        return None  # not transformers' own: diffusers and others take every key for an argument
    old = dict(config)
    dtype = None if "dtype" in config or "torch_dtype" in config else _commonest_dtype(files)
    if dtype is not None:
        config["dtype"] = dtype
    if flag:
        config["quantization_config"] = {"quant_method": "weightpack", "inner": config.get("quantization_config")}
    return None if config == old else (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _commonest_dtype(files: ModelFiles) -> str | None:
    n_bytes: dict[str, int] = {}
    for weight in files.weights:
        if len(weight.parts) == 1:
            with LocalFile(files.folder / weight) as file:
                for tensor in segment(file).tensors:
                    if tensor.dtype in _CONFIG_DTYPES:
                        n_bytes[tensor.dtype] = n_bytes.get(tensor.dtype, 0) + tensor.n_bytes
    return _CONFIG_DTYPES[max(sorted(n_bytes), key=lambda dtype: n_bytes[dtype])] if n_bytes else None


def carry_over(source: Path, target: Path, data: bytes | None = None) -> None:
    """Copy a file (or write `data` in its place) and sync it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        shutil.copyfile(source, target)
    else:
        target.write_bytes(data)
    with open(target, "r+b") as file:  # Windows syncs only what may be written to
        os.fsync(file.fileno())
