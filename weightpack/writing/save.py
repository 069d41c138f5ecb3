# SPDX-License-Identifier: Apache-2.0
"""Tensors in memory -> packed file: as if a safetensors file had been written and packed, without writing it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from weightpack.format.layouts import DTYPE_BITS
from weightpack.format.safetensors import Entry, build_header
from weightpack.io.atomic import AtomicFile
from weightpack.io.files import MemoryFile
from weightpack.io.parallel import thread_count
from weightpack.options import PackOptions, load_profile
from weightpack.writing.packer import PackResult, pack_file

TensorBuffers = Mapping[str, tuple[str, tuple[int, ...], memoryview]]
"""Name -> (dtype, shape, bytes)."""


def safetensors_image(tensors: TensorBuffers, metadata: Mapping[str, str] | None) -> MemoryFile:
    """Return the safetensors file of these tensors as buffers: larger elements first, then by name, as the official writer orders them."""
    entries, parts, position = [], [], 0
    for name, (dtype, shape, data) in sorted(tensors.items(), key=lambda item: (-DTYPE_BITS[item[1][0]], item[0])):
        entries.append(Entry(name, dtype, shape, position, position + len(data)))
        parts.append(data)
        position += len(data)
    header = build_header(metadata, entries)
    header = header.ljust(-(-len(header) // 8) * 8)
    return MemoryFile([len(header).to_bytes(8, "little") + header, *parts])


def save_tensors(
    tensors: TensorBuffers, filename: str | os.PathLike[str], metadata: Mapping[str, str] | None, *,
    options: PackOptions | None, threads: int | None,
) -> PackResult:  # fmt: skip
    """Pack tensors into a file, which is replaced if it exists (as safetensors does)."""
    with AtomicFile(filename, overwrite=True) as target:
        result = pack_file(safetensors_image(tensors, metadata), target, options or load_profile(), threads=thread_count(threads))
        target.commit()
    return result


def pack_tensors(tensors: TensorBuffers, metadata: Mapping[str, str] | None, *, options: PackOptions | None) -> bytes:
    """Return the packed file's bytes."""
    with tempfile.TemporaryDirectory(prefix="weightpack-") as folder:
        path = Path(folder) / "packed.safetensors"
        save_tensors(tensors, path, metadata, options=options, threads=None)
        return path.read_bytes()
