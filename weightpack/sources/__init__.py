# SPDX-License-Identifier: Apache-2.0
"""A source file as segments: tensors and gaps. One module a file format; which one is asked is decided here, by what the file begins with.

Nothing is unpickled, and nothing that a file says can do more than make it a row of bytes: a file that is not what it seems to be is packed as "bytes".
"""

from __future__ import annotations

from weightpack.errors import FormatError, LimitError
from weightpack.io.files import RandomReader, read_at
from weightpack.sources.gguf import segment_gguf
from weightpack.sources.model import Segments
from weightpack.sources.npy import segment_npy
from weightpack.sources.onnx import looks_like_onnx, segment_onnx
from weightpack.sources.safetensors import must_be_safetensors, segment_safetensors
from weightpack.sources.sniff import with_small_gaps
from weightpack.sources.zip import segment_zip

__all__ = ["segment"]


def segment(source: RandomReader) -> Segments:
    """Find the segments of a source file: by what it begins with, not by its name, but that a file that is named .safetensors must be one.

    Raises
    ------
    FormatError, LimitError
        The file is named .safetensors and is none, or its header claims too much.
    """
    if must_be_safetensors(source):
        return segment_safetensors(source)
    try:
        found = _segment_by_content(source)
        if len({tensor.name for tensor in found.tensors}) == len(found.tensors):
            return found
    except (FormatError, LimitError):
        pass
    return with_small_gaps(source, Segments("bytes", (), ((0, source.size),) if source.size else (), None))


def _segment_by_content(source: RandomReader) -> Segments:
    first = bytes(read_at(source, 0, min(9, source.size)))
    if first.startswith(b"GGUF"):
        return with_small_gaps(source, segment_gguf(source))
    if first.startswith(b"PK\x03\x04"):
        return with_small_gaps(source, segment_zip(source))
    if first.startswith(b"\x93NUMPY"):
        return with_small_gaps(source, segment_npy(source))
    if looks_like_onnx(first) and first[8:] != b"{":  # of a safetensors file, these eight bytes are a length
        return with_small_gaps(source, segment_onnx(source))
    return segment_safetensors(source)
