# SPDX-License-Identifier: Apache-2.0
"""A source file as segments: tensors and gaps. One module a file format; which one is asked is decided here, by what the file begins with.

Nothing is unpickled, and nothing that a file says can do more than make it a row of bytes: a file that is not what it seems to be is packed as "bytes".
"""

from __future__ import annotations

from weightpack.errors import FormatError, LimitError, located
from weightpack.io.files import RandomReader, read_at
from weightpack.sources.gguf import segment_gguf
from weightpack.sources.mistaken import LFS_POINTER, MOST_POINTER_BYTES
from weightpack.sources.model import Segments, listable
from weightpack.sources.npy import segment_npy
from weightpack.sources.onnx import looks_like_onnx, segment_onnx
from weightpack.sources.safetensors import must_be_safetensors, segment_safetensors
from weightpack.sources.sniff import with_small_gaps
from weightpack.sources.zip import segment_zip

__all__ = ["is_pointer", "refuse_pointer", "segment"]

_MOST_DEPTH = 2  # of files in files


def segment(source: RandomReader) -> Segments:
    """Find the segments of a source file: by what it begins with, not by its name, but that a file that is named .safetensors must be one.

    Raises
    ------
    FormatError, LimitError
        The file is named .safetensors and is none, or its header claims too much.
    """
    with located(path=source.name):
        if must_be_safetensors(source):
            return segment_safetensors(source)
        found = _known(source)
        if found is not None and found.source_format == "safetensors":
            return found
        try:
            if found is not None:
                return listable(with_small_gaps(source, found))
        except (FormatError, LimitError):
            pass
        return with_small_gaps(source, Segments("bytes", (), ((0, source.size),) if source.size else (), None))


def is_pointer(source: RandomReader) -> bool:
    """Is this a pointer of Git LFS, as a clone has it in the place of a file that was not fetched?"""
    return source.size < MOST_POINTER_BYTES and bytes(read_at(source, 0, min(len(LFS_POINTER), source.size))) == LFS_POINTER


def refuse_pointer(source: RandomReader) -> None:
    """Raise FormatError if a file that is to be packed is a pointer of Git LFS: packed, it would look as if the weights were."""
    if is_pointer(source):
        raise FormatError("not the file, but a Git LFS pointer to it: run `git lfs pull` where it was cloned", path=source.name)


def _known(source: RandomReader, depth: int = 0) -> Segments | None:
    """Return the segments of a file of a known format; None if it is none, or damaged."""
    try:
        return _by_content(source, depth)
    except (FormatError, LimitError):
        return None


def _by_content(source: RandomReader, depth: int) -> Segments:
    first = bytes(read_at(source, 0, min(9, source.size)))
    if first.startswith(b"GGUF"):
        return segment_gguf(source)
    if first.startswith(b"PK\x03\x04"):
        return segment_zip(source, lambda member: _known(member, depth + 1) if depth < _MOST_DEPTH else None)
    if first.startswith(b"\x93NUMPY"):
        return segment_npy(source)
    if looks_like_onnx(first) and first[8:] != b"{":  # of a safetensors file, these eight bytes are a length
        return segment_onnx(source)
    return segment_safetensors(source)
