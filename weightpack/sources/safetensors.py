# SPDX-License-Identifier: Apache-2.0
"""Segments of a safetensors file, and whether it is a packed one: packed files are safetensors files with an index in their metadata.

Files that the official library refuses (holes, bytes after the last tensor) are taken too: those bytes are gaps.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from weightpack.errors import FormatError, LimitError, OptionError, located
from weightpack.format.constants import INDEX_KEY, MAX_HEADER_BYTES
from weightpack.format.safetensors import Header, header_bytes, parse_header
from weightpack.io.files import LocalFile, RandomReader, read_at
from weightpack.sources.mistaken import FIRST_BYTES, kind_of_mistake
from weightpack.sources.model import Segments, Tensor, tiled

_SUFFIX = ".safetensors"
_MAX_JSON_MEMORY = 1 << 30


def must_be_safetensors(source: RandomReader) -> bool:
    """Is a file named as one that must be a safetensors file? Any other may be of whatever kind its content shows."""
    return source.name.endswith(_SUFFIX)


def read_header(file: RandomReader, max_json_memory: int = _MAX_JSON_MEMORY, *, unknown_dtypes: bool = False) -> Header:
    """Read and check the header of a safetensors file, packed or plain.

    Parameters
    ----------
    max_json_memory
        Bytes that the header's objects may take (`Limits.max_json_memory`).
    unknown_dtypes
        Take entries of dtypes that are not known, which a source may have (FORMAT 7.6) and a packed file may not.

    Raises
    ------
    FormatError
        It is damaged, or something else: the message says what, where it can be told.
    LimitError
        The header claims too much.
    """
    with located(path=file.name):
        try:
            n = header_bytes(bytes(read_at(file, 0, min(8, file.size))), file.size)
            return parse_header(bytes(read_at(file, 8, n)), file.size - 8 - n, unknown_dtypes=unknown_dtypes, max_memory=max_json_memory)
        except FormatError as error:
            kind = kind_of_mistake(bytes(read_at(file, 0, min(FIRST_BYTES, file.size))))
            if kind is None:
                raise
            raise type(error)(f"not a safetensors file, but {kind}") from None


def is_packed(header: Header) -> bool:
    """Does a safetensors header carry a weightpack index?"""
    return header.metadata is not None and INDEX_KEY in header.metadata


def is_packed_file(file: RandomReader | str | os.PathLike[str], max_json_memory: int = _MAX_JSON_MEMORY) -> bool:
    """Is a file packed? Its whole header is checked: for jobs, which must not take a damaged file for one that is yet to be packed.

    A file that is no safetensors file is not packed; one that is named .safetensors must be one.

    Raises
    ------
    FormatError, LimitError
        A file that is named .safetensors is none, or is damaged; the header claims too much.
    OSError, OptionError
        It can't be opened.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(LocalFile(file)) if isinstance(file, str | os.PathLike) else file
        stack.enter_context(located(path=reader.name))
        try:
            return is_packed(read_header(reader, max_json_memory, unknown_dtypes=True))
        except FormatError:
            if must_be_safetensors(reader):
                raise
            return False


def looks_packed(file: RandomReader | str | os.PathLike[str]) -> bool:
    """Does a file look like a packed one? Never an error: for whoever meets files that are not his, and hands all but packed ones to somebody else.

    A header that does not name the index is searched as text, not parsed. One that does and is damaged looks packed: the reader says what is wrong with it.
    A file that can't be read does not: whoever gets it says so in his own words.
    """
    try:
        with ExitStack() as stack:
            reader = stack.enter_context(LocalFile(file)) if isinstance(file, str | os.PathLike) else file
            n = int.from_bytes(read_at(reader, 0, min(8, reader.size)), "little")
            if n > min(reader.size - 8, MAX_HEADER_BYTES) or f'"{INDEX_KEY}"'.encode() not in read_at(reader, 8, n):
                return False
            try:
                return is_packed(read_header(reader))
            except (FormatError, LimitError):
                return True
    except (OSError, FormatError, OptionError):
        return False


def segment_safetensors(source: RandomReader) -> Segments:
    """Read the header of a safetensors file and find its tensors and gaps."""
    return segments_of(read_header(source, unknown_dtypes=True), source.size)


def segments_of(header: Header, file_bytes: int) -> Segments:
    """Turn a source's header into segments that tile the file; overlapping tensors are refused, since they have no place in a tiling."""
    tensors = (Tensor(e.name, e.dtype, e.shape, header.data_begin + e.begin, e.end - e.begin) for e in header.entries.values())
    return tiled("safetensors", tensors, file_bytes, header.metadata)
