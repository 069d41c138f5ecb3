# SPDX-License-Identifier: Apache-2.0
"""Every tensor of a file, or of the files that a directory's model is in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from weightpack.arrays.memory import T
from weightpack.errors import CorruptionError, LimitError, OptionError, TruncatedError
from weightpack.format.constants import MAX_HEADER_BYTES
from weightpack.format.safetensors import parse_json
from weightpack.io.files import named_path
from weightpack.io.remote import is_url
from weightpack.reading.tensors import SafeOpen

_SINGLE = "model.safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"

PathOrUrl = str | os.PathLike[str]


def load_tensors(filename: PathOrUrl, open_file: Callable[[PathOrUrl], SafeOpen[T]]) -> dict[str, T]:
    """Return the tensors of a file or of a directory's files, by name, in the order of their bytes.

    Of a directory it is the files that transformers would take: `model.safetensors`; or the shards that an index names; or, where neither is, all
    `*.safetensors` in it.

    Raises
    ------
    OptionError
        The directory holds no safetensors file, several indices and no `model.safetensors`, or a name in two files.
    TruncatedError
        A shard is missing.
    """
    tensors: dict[str, T] = {}
    for path in [filename] if (isinstance(filename, str) and is_url(filename)) or not named_path(filename).is_dir() else _files_of(Path(filename)):
        with open_file(path) as opened:
            names = opened.offset_keys()
            if twice := tensors.keys() & set(names):
                raise OptionError("another file of the directory has a tensor of this name: load the files one by one", path=os.fspath(path), tensor=min(twice))
            tensors |= opened.get_tensors(names)
    return tensors


def _files_of(folder: Path) -> list[Path]:
    files = {path.name: path for path in sorted(folder.glob("*.safetensors")) if path.is_file()}
    if _SINGLE in files:
        return [files[_SINGLE]]
    indices = sorted(path for path in folder.glob(f"*{_INDEX_SUFFIX}") if path.is_file())
    if len(indices) > 1:
        raise OptionError(f"the directory has several indices ({', '.join(path.name for path in indices)}): load its files one by one", path=str(folder))
    if not indices:
        if not files:
            raise OptionError("no .safetensors file in this directory", path=str(folder))
        return list(files.values())
    shards = _shards(indices[0])
    if missing := shards - files.keys():
        raise TruncatedError(f"the shard {min(missing)!r} that {indices[0].name} names is not in this directory", path=str(folder))
    return [files[name] for name in sorted(shards)]


def _shards(index: Path) -> set[str]:
    if index.stat().st_size > MAX_HEADER_BYTES:
        raise LimitError(f"the file is larger than the {MAX_HEADER_BYTES} bytes that such files have", path=str(index))
    root = parse_json(index.read_bytes())
    shards = root.get("weight_map") if isinstance(root, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CorruptionError("not an index of shards", path=str(index))
    return set(shards.values())
