# SPDX-License-Identifier: Apache-2.0
"""`safetensors.numpy` for packed files: the same names and arguments. Plain files are read too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from weightpack.arrays.contents import contents
from weightpack.arrays.memory import NumpyFramework
from weightpack.io.files import MemoryFile
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.reading.shards import load_tensors
from weightpack.reading.tensors import SafeOpen
from weightpack.reading.tensors import safe_open as _safe_open
from weightpack.writing.save import pack_tensors, save_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.options import PackOptions

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def safe_open(
    filename: str | os.PathLike[str], framework: Literal["np", "numpy"] = "numpy", device: str = "cpu", *, threads: int | None = None,
    limits: Limits = DEFAULT_LIMITS, base: str | os.PathLike[str] | None = None, raw: bool = False,
) -> SafeOpen[NDArray[Any]]:  # fmt: skip
    """See `weightpack.safe_open`."""
    return _safe_open(filename, framework, device, threads=threads, limits=limits, base=base, raw=raw)


def load_file(
    filename: str | os.PathLike[str], *, threads: int | None = None, base: str | os.PathLike[str] | None = None, raw: bool = False
) -> dict[str, NDArray[Any]]:
    """Load every tensor of a packed or plain file, in the order of their bytes, or of a directory's files; `base` and `raw` as in `weightpack.safe_open`.

    Of a directory it is the files that transformers would take: `model.safetensors`; or the shards that an index names; or, where neither is, all
    `*.safetensors` in it.
    """
    return load_tensors(filename, lambda path: safe_open(path, threads=threads, base=base, raw=raw))


def load(data: bytes, *, threads: int | None = None, raw: bool = False) -> dict[str, NDArray[Any]]:
    """Load every tensor from the bytes of a packed or plain file."""
    opened = SafeOpen(MemoryFile([data]), NumpyFramework(raw), threads=threads)
    return opened.get_tensors(opened.offset_keys())


def save_file(
    tensor_dict: Mapping[str, NDArray[Any]], filename: str | os.PathLike[str], metadata: Mapping[str, str] | None = None, *,
    options: PackOptions | None = None, threads: int | None = None,
) -> None:  # fmt: skip
    """Save arrays as a packed file; `weightpack unpack` turns it into a plain safetensors file."""
    save_tensors(_buffers(tensor_dict), filename, metadata, options=options, threads=threads)


def save(tensor_dict: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None, *, options: PackOptions | None = None) -> bytes:
    """Return the bytes of a packed file."""
    return pack_tensors(_buffers(tensor_dict), metadata, options=options)


def _buffers(tensor_dict: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
    return {name: (dtype, shape, memoryview(data)) for name, (dtype, shape, data) in ((name, contents(array)) for name, array in tensor_dict.items())}
