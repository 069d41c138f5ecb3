# SPDX-License-Identifier: Apache-2.0
"""Segments of a zip file: PyTorch's checkpoints (.bin, .pt, .pth, .ckpt), numpy's .npz, and any other. Members that are stored, not deflated, are tensors.

A member that is a file of a known format is looked into, as if it stood alone.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from weightpack.errors import CorruptionError, WeightpackError
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader, read_at
from weightpack.sources.cursor import Part
from weightpack.sources.model import Segments, Tensor, tiled
from weightpack.sources.pickle import storage_kinds
from weightpack.sources.sniff import sniffed

_MOST_PICKLE, _MOST_EXPANSION = 100_000_000, 64  # bytes, and times what it takes deflated, where that is more than a megabyte
_STEP = 1 << 20
_MOST_DIRECTORY = 32 << 20  # bytes: Python's objects take twenty times as much
_LOCAL_HEADER = 30
_TINY_BYTES, _MANY_TINY = 64, 1000  # so many so small members are left between tensors: an entry of each would take more than its bytes
_LEAST_FILE = 16  # bytes of a member that may be a file of its own kind


class _Stream(io.RawIOBase):
    """A source as the kind of file that zipfile reads; not in one go more than a directory takes that may be."""

    def __init__(self, source: RandomReader) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Refuse a directory that is too long: zipfile reads it at once."""
        if not 0 <= size <= _MOST_DIRECTORY and self._source.size - self._at > _MOST_DIRECTORY:
            raise CorruptionError("the zip file's directory is too long")
        return super().read(size)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n = max(0, min(len(buffer), self._source.size - self._at))
        self._source.read_into(self._at, memoryview(buffer)[:n])
        self._at += n
        return n


def segment_zip(source: RandomReader, segment_member: Callable[[RandomReader], Segments | None]) -> Segments:
    """Find what is in the stored members of a zip file: storages of a checkpoint by what its pickle says, others by their content.

    Parameters
    ----------
    segment_member
        Finds the segments of a member that is a file of a known format; None if it is none.

    Raises
    ------
    FormatError
        It is damaged, or no zip.
    """
    members, pickle, pickle_name = _opened(source)
    places = _places(source, members)
    root = pickle_name.removesuffix("data.pkl") if pickle_name is not None else None
    tiny = sum(place.size <= _TINY_BYTES for place in places)
    kinds = storage_kinds(pickle, len(places)) if root is not None and not _big_endian(source, places, f"{root}byteorder") else {}
    tensors: list[Tensor] = []
    for place in places:
        if place.size <= _TINY_BYTES and tiny > _MANY_TINY:
            continue
        key = place.name.removeprefix(f"{root}data/") if root is not None and place.name.startswith(f"{root}data/") else None
        if key in kinds:
            tensors.append(_storage(place, *kinds[key]))
        else:
            tensors += _member(source, place, segment_member, only_known=root is not None and key is None)
    kind = "torch" if root is not None else "npz" if any(member.filename.endswith(".npy") for member in members) else "zip"
    return tiled(kind, tensors, source.size)


@dataclass(frozen=True, slots=True)
class _Place:
    """A stored member: `size` bytes from byte `begin` of the file."""

    name: str
    begin: int
    size: int


def _opened(source: RandomReader) -> tuple[list[zipfile.ZipInfo], bytes, str | None]:
    """Return the members, the checkpoint's pickle (as much of it as can be read) and its name."""
    try:
        with zipfile.ZipFile(_Stream(source)) as archive:
            members = archive.infolist()
            pickle = next((member for member in members if member.filename.endswith("/data.pkl") and member.file_size <= _MOST_PICKLE), None)
            return members, b"" if pickle is None else _read(archive, pickle), None if pickle is None else pickle.filename
    except Exception as error:
        if not _of_zipfile(error):
            raise
        raise CorruptionError(f"not a zip file that can be read: {error!r}") from None


def _of_zipfile(error: Exception) -> bool:
    """Is an error one of the many that zipfile and its decompressors raise for damaged files, and not one of the disk?"""
    return not isinstance(error, WeightpackError) and not (isinstance(error, OSError) and error.errno is not None)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return a pickle; nothing if it is damaged, or compressed in a way that nobody writes: its storages are then taken for what they look like."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return b""
    most, pickle = max(_STEP, _MOST_EXPANSION * member.compress_size), bytearray()
    try:
        with archive.open(member) as opened:
            while len(pickle) < most and (step := opened.read(_STEP)):
                pickle += step
    except Exception as error:
        if not _of_zipfile(error):
            raise
        return b""
    return bytes(pickle)


def _places(source: RandomReader, members: list[zipfile.ZipInfo]) -> list[_Place]:
    """Return where the bytes of stored members are; members that share bytes are refused before anything is looked for in them."""
    places = [
        _Place(member.filename, _data_begin(source, member), member.file_size)
        for member in members
        if member.compress_type == zipfile.ZIP_STORED and 0 < member.file_size == member.compress_size
    ]
    places.sort(key=lambda place: place.begin)
    if any(one.begin + one.size > other.begin for one, other in pairwise(places)):
        raise CorruptionError("members of the zip file overlap")
    return places


def _data_begin(source: RandomReader, member: zipfile.ZipInfo) -> int:
    """Return where a member's bytes begin: after its local header, which may be longer than the directory says."""
    at = member.header_offset
    if at < 0 or at + _LOCAL_HEADER > source.size:
        raise CorruptionError("a zip member lies after the end")
    header = bytes(read_at(source, at, _LOCAL_HEADER))
    begin = at + _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if not header.startswith(b"PK\x03\x04") or begin + member.file_size > source.size:
        raise CorruptionError("a zip member without a header of its own")
    return begin


def _big_endian(source: RandomReader, places: list[_Place], name: str) -> bool:
    """Was the checkpoint written by a machine of the other byte order? Then its floats are none to ours."""
    place = next((place for place in places if place.name == name), None)
    return place is not None and place.size == 3 and read_at(source, place.begin, 3) == b"big"


def _storage(place: _Place, dtype: str, shape: tuple[int, ...]) -> Tensor:
    n_bytes, elem_bytes = place.size, DTYPE_BITS[dtype] // 8
    dtype, n_elems = (dtype, n_bytes // elem_bytes) if n_bytes % elem_bytes == 0 else ("U8", n_bytes)
    row = shape[-1] if len(shape) > 1 and prod(shape) == n_elems and min(shape) > 0 else 0  # of the tensor that has the whole storage
    return Tensor(place.name, dtype, (n_elems,), place.begin, n_bytes, row=row)


def _member(source: RandomReader, place: _Place, segment_member: Callable[[RandomReader], Segments | None], *, only_known: bool) -> list[Tensor]:
    """Return the tensors of a member that is a file itself, or else what its bytes look like; with `only_known`, of the former alone."""
    found = segment_member(Part(source, f"{source.name}: {place.name}", place.begin, place.size)) if place.size >= _LEAST_FILE else None
    if found is None:
        return [] if only_known else sniffed(source, place.name, place.begin, place.size)
    tensors: list[Tensor] = []
    for tensor in found.tensors:
        name = place.name if found.source_format == "npy" and len(found.tensors) == 1 else f"{place.name}/{tensor.name}"
        if tensor.dtype in DTYPE_BITS:
            tensors.append(replace(tensor, name=name, offset=place.begin + tensor.offset))
        else:  # a safetensors file may have newer ones
            tensors += sniffed(source, name, place.begin + tensor.offset, tensor.n_bytes)
    return tensors
