# SPDX-License-Identifier: Apache-2.0
"""Reference decoder of the weightpack format, written from docs/FORMAT.md alone.

It is the oracle of the tests and a rescue tool: slow, plain, and independent of the rest of the package. It runs as a lone file with
only numpy and zstandard: ``python reference.py PACKED [--base FILE]... [-o OUT]``. The numbers in the docstrings are those of FORMAT.md's sections.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import mmap
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":  # run where it stands, its folder's numpy.py would hide numpy
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np
import numpy.typing as npt
import zstandard

Buffer = bytes | bytearray | memoryview
Plane = npt.NDArray[np.uint8]
Words = npt.NDArray[Any]  # unsigned integers of 64 bits
Decoded = tuple[str, tuple[int, ...], bytes]
Bases = Mapping[str, Buffer] | Iterable[Buffer]
BaseOf = Callable[[int, int], Words]

DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
BLOCK = 128  # elements
PIECE = 1 << 20  # bytes of a kept tensor under one CRC
MAX_HEADER = 100_000_000
MAX_CHUNK = 1 << 23
MAX_DEPTH = 64  # files that are decoded one from the other
MAX_COLS = 1 << 20
MAX_SCALES = 1 << 22  # bytes
MAX_WINDOW = 1 << 27  # of a zstd frame: it decides what the decoder allocates


class FormatError(ValueError):
    """The bytes cannot be decoded."""


class CorruptError(FormatError):
    """The bytes break a rule of the format."""


class TruncatedError(CorruptError):
    """Bytes are missing."""


class UnsupportedError(FormatError):
    """Valid perhaps, but unknown to this reader or above its limits."""


class NotPackedError(FormatError):
    """Not a packed file at all."""


class BaseNotFoundError(LookupError):
    """The file is a difference from one that was not given."""


# ------------------------------------------------------------------------------------------------------------ 1 Conventions


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc32c(data: Buffer, crc: int = 0) -> int:
    """1.7 CRC-32C of ``data``; ``crc`` is that of the bytes before it."""
    table = CRC_TABLE
    crc ^= 0xFFFFFFFF
    for byte in memoryview(data).cast("B"):
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def numbered_crc(number: int, data: Buffer) -> int:
    """1.7 CRC-32C of a u32 number and ``data``, as 5.5 and 6.2 ask for it."""
    return crc32c(data, crc32c(struct.pack("<I", number)))


def take(data: Buffer, at: int, size: int, what: str) -> memoryview:
    """1.6 ``data[at:at + size]``, or truncated."""
    if at + size > len(data):
        raise TruncatedError(f"{what}: {size} bytes at {at}, but only {len(data)} bytes are there")
    return memoryview(data)[at : at + size]


def uint(data: Buffer, at: int, size: int, what: str) -> int:
    """1.2 the little-endian integer at ``data[at:at + size]``."""
    return int.from_bytes(take(data, at, size, what), "little")


def need(condition: object, message: str) -> None:
    """1.6 corrupt unless ``condition``."""
    if not condition:
        raise CorruptError(message)


def ceil_div(a: int, b: int) -> int:
    """1.4 ``ceil(a/b)``."""
    return -(-a // b)


# ---------------------------------------------------------------------------------------------------------- 4 The container


@dataclass(frozen=True)
class Entry:
    """A tensor's entry in a safetensors header; the range is from the start of the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """1.9 an object whose keys differ."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("duplicate keys")
    return dict(pairs)


def no_constant(text: str) -> NoReturn:
    """1.9 NaN and Infinity are not JSON."""
    raise ValueError(f"{text} is not JSON")


def read_json(text: bytes, what: str) -> dict[str, Any]:
    """1.9 a JSON object."""
    try:
        value: Any = json.loads(text.decode(), object_pairs_hook=unique_keys, parse_constant=no_constant)
        if b"\\ud" in text.lower():  # half a surrogate pair is a str to Python, but no Unicode text
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what}: {error}") from None
    need(isinstance(value, dict), f"{what}: not an object")
    return dict(value)


def is_uints(value: object) -> bool:
    """1.9 a list of integers that JSON may hold (its true is not one)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """7.6 length of a tensor."""
    if dtype not in DTYPE_BITS:
        raise UnsupportedError(f"dtype {dtype!r}")
    count = 0 if 0 in shape else 1
    for dim in shape:
        count *= dim
    bits = count * DTYPE_BITS[dtype]
    need(bits % 8 == 0, "shape: not a whole number of bytes")
    return bits // 8


def read_header(data: Buffer, what: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """4.1 start of the data section, metadata and tensors of a safetensors file."""
    n_bytes = uint(data, 0, 8, what)
    need(n_bytes <= MAX_HEADER, f"{what}: {n_bytes} bytes, above the limit")
    text = bytes(take(data, 8, n_bytes, what))
    tensors = read_json(text, what)
    metadata = tensors.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # 4.3
    need(isinstance(metadata, dict) and all(isinstance(item, str) for item in metadata.values()), f"{what}: bad __metadata__")
    return 8 + n_bytes, metadata, tensors


def read_entries(tensors: dict[str, Any], of_source: bool = False) -> dict[str, Entry]:
    """4.1 the tensor entries, in ascending order of their names' code points; a source may have unknown dtypes (7.6)."""
    entries = {}
    for name, fields in sorted(tensors.items()):
        need(isinstance(fields, dict), f"tensor {name!r}: not an object")
        dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
        need(isinstance(dtype, str) and is_uints(shape) and len(shape) <= 64, f"tensor {name!r}: bad dtype or shape")
        need(is_uints(offsets) and len(offsets) == 2, f"tensor {name!r}: bad data_offsets")
        entries[name] = entry = Entry(dtype, tuple(shape), *offsets)
        need(entry.begin <= entry.end, f"tensor {name!r}: ends before it begins")
        if entry.dtype in DTYPE_BITS or not of_source:
            need(entry.end - entry.begin == tensor_bytes(entry.dtype, entry.shape), f"tensor {name!r}: length and shape differ")
    return entries


def read_container(data: Buffer) -> tuple[dict[str, Entry], memoryview, dict[str, Any]]:
    """4 The container: the tensor entries in ascending order of their names, the data section, and the index."""
    start, metadata, tensors = read_header(data, "header")
    if "weightpack" not in metadata:
        raise NotPackedError("not a packed file: the header has no weightpack index")
    entries = read_entries(tensors)
    section = memoryview(data)[start:]
    end = 0
    for begin, entry_end in sorted((entry.begin, entry.end) for entry in entries.values()):
        need(begin == end, "data_offsets: the entries do not tile the data section")
        end = entry_end
    take(section, 0, end, "data section")
    need(len(section) == end, "data section: bytes after the last tensor")
    index = metadata["weightpack"].encode()
    need(metadata.get("weightpack.crc32c") == f"{crc32c(index):08x}", "index: CRC mismatch")
    return entries, section, read_json(index, "index")


# --------------------------------------------------------------------------------------------------------------- 5 The index


@dataclass(frozen=True)
class Gap:
    """Source bytes that belong to no tensor."""

    offset: int
    n_bytes: int
    frame: bytes


@dataclass(frozen=True)
class BaseFile:
    """15 a file of the base."""

    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Range:
    """15.2 what a tensor of `to_dtype` is a difference from; the moves are (to, from, count)."""

    file: int
    dtype: str
    offset: int
    n_bytes: int
    moves: list[tuple[int, int, int]]
    to_dtype: str
    columns: int = 0  # 15.6


@dataclass(frozen=True)
class Tensor:
    """A tensor of the source, and the record (with its base, if any) or the kept bytes (with their CRCs) that stand for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    storage: str
    body: memoryview
    crcs: memoryview
    base: Range | None = None
    group_bytes: int = 0  # 5.8 of a tensor in a group: how many bytes its record holds, and from which of them its own begin
    group_begin: int = 0
    same: int = 0  # 15.7 the number of the base's file that has the tensor where the source has it


@dataclass(frozen=True)
class Index:
    """The source as the index describes it; ``tensors`` ascend by name."""

    n_bytes: int
    sha256: str
    gaps: list[Gap]
    tensors: list[Tensor]
    base: list[BaseFile]


def read_index(data: Buffer, max_bytes: int) -> Index:
    """5 The index."""
    packed, section, index = read_container(data)
    version: Any = index.get("version")
    need(is_uints(version) and len(version) == 2, "index: bad version")
    if version[0] != 1:
        raise UnsupportedError(f"format version {version[0]}.{version[1]}")
    source: Any = index.get("source")
    need(isinstance(source, dict) and isinstance(source.get("format"), str), "index: bad source")
    if source["format"] != "safetensors" and "tensors" not in index:
        raise UnsupportedError(f"source format {source['format']!r}")
    n_bytes, sha256 = source.get("bytes"), source.get("sha256")
    need(is_uints([n_bytes]) and isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256), "index: bad source")
    if n_bytes > max_bytes:
        raise UnsupportedError(f"the source has {n_bytes} bytes, above the limit of {max_bytes}")
    gaps = read_gaps(index.get("gaps"), n_bytes)
    start, entries = read_source_header(gaps) if source["format"] == "safetensors" else (0, read_tensors(index["tensors"], list(packed)))

    base: list[BaseFile] = []
    of_base: list[Tensor] = []
    storage: Any = index.get("storage")
    need(isinstance(storage, str) and len(storage) == len(packed), "index: bad storage")
    if unknown := set(storage) - set("pdxktg"):
        raise UnsupportedError(f"tensor storage {min(unknown)!r}")
    groups: list[list[str]] = []
    if "g" in storage:
        need(source["format"] == "safetensors", "index: a group in a source that is no safetensors file")
        groups = read_groups(index.get("groups"), [name for name, kind in zip(packed, storage, strict=True) if kind == "g"], entries)
    members = {name for group in groups for name in group[1:]}
    same: Any = index.get("same")
    if same is not None:  # 15.7
        base = read_base(index.get("base"))
        need(source["format"] == "safetensors" and is_uints([same]) and same < len(base), "index: bad same")
        need(index.get("ranges") == [] and (base[same].n_bytes, base[same].sha256) == (n_bytes, sha256), "index: same as another file")
        none = memoryview(b"")
        of_base = [Tensor(name, e.dtype, e.shape, start + e.begin, e.end - e.begin, "b", none, none, same=same) for name, e in entries.items()]
        entries = {}
    everyone, entries = entries, {name: entry for name, entry in entries.items() if name not in members}
    need(entries.keys() == packed.keys(), "index: the tensor names of source and packed file differ")
    crcs, crcs_end = read_base64(index.get("kept_crc32c"), "kept_crc32c"), 0
    tensors = []
    for (name, entry), kind in zip(entries.items(), storage, strict=True):
        size, stored, crcs_begin = entry.end - entry.begin, packed[name], crcs_end
        if kind == "k":
            known = entry.dtype in DTYPE_BITS
            need(known or size == 0, f"kept tensor {name!r}: unknown dtype")
            need((stored.dtype, stored.shape) == ((entry.dtype, entry.shape) if known else ("U8", (0,))), f"kept tensor {name!r}: wrong dtype or shape")
            crcs_end += 4 * ceil_div(size, PIECE)
        else:
            need(size > 0, f"tensor {name!r}: empty, but not kept")
            need(stored.dtype == "U8" and len(stored.shape) == 1, f"tensor {name!r}: not U8 of one dimension")
            need(kind in "pdxg" or stored.shape == (0,), f"tied tensor {name!r}: not empty")
        piece_crcs = take(crcs, crcs_begin, crcs_end - crcs_begin, "kept_crc32c")
        body = section[stored.begin : stored.end]
        tensors.append(Tensor(name, entry.dtype, entry.shape, start + entry.begin, size, kind, body, piece_crcs))
    need(crcs_end == len(crcs), "kept_crc32c: too long")
    if set(storage) & set("dx"):
        base = read_base(index.get("base"))
        differing = [i for i, kind in enumerate(storage) if kind in "dx"]
        for i, tensor_base in zip(differing, read_ranges(index.get("ranges"), base, [tensors[i] for i in differing]), strict=True):
            tensors[i] = replace(tensors[i], base=tensor_base)
    tied: Any = index.get("tied")
    need(is_uints(tied) and len(tied) == storage.count("t"), "index: bad tied")
    for position, target in zip((i for i, kind in enumerate(storage) if kind == "t"), tied, strict=True):
        tensor = tensors[position]
        need(target < len(storage) and storage[target] not in "tg", f"tied tensor {tensor.name!r}: bad target")
        holder = tensors[target]
        need(holder.n_bytes == tensor.n_bytes, f"tied tensor {tensor.name!r}: lengths differ")
        tensors[position] = replace(tensor, storage=holder.storage, body=holder.body, crcs=holder.crcs, base=holder.base)
    if groups:
        by_name = {tensor.name: tensor for tensor in tensors}
        for group in groups:
            body, begin = by_name[group[0]].body, everyone[group[0]].begin
            group_bytes = everyone[group[-1]].end - begin
            for name in group:
                entry = everyone[name]
                place = start + entry.begin, entry.end - entry.begin
                by_name[name] = Tensor(name, entry.dtype, entry.shape, *place, "g", body, memoryview(b""), None, group_bytes, entry.begin - begin)
        tensors = [by_name[name] for name in everyone]

    tensors += of_base
    end = 0
    items: list[Gap | Tensor] = [*gaps, *tensors]
    for offset, size in sorted((item.offset, item.n_bytes) for item in items):
        need(offset <= n_bytes, "source header: a tensor beyond the source")
        if size > 0:
            need(offset == end, "index: gaps and tensors do not tile the source")
            end += size
    need(end == n_bytes, "index: gaps and tensors do not tile the source")
    return Index(n_bytes, sha256, gaps, tensors, base)


def read_base64(text: object, what: str) -> bytes:
    """5 bytes in base64."""
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except ValueError:
        raise CorruptError(f"{what}: not base64") from None


def read_gaps(items: Any, n_bytes: int) -> list[Gap]:
    """5 the key `gaps`."""
    need(isinstance(items, list), "gaps: not a list")
    gaps, end = [], 0
    for item in items:
        need(isinstance(item, list) and len(item) == 3 and is_uints(item[:2]) and item[1] > 0, "gaps: bad item")
        need(end <= item[0], "gaps: not ascending, or overlapping")
        end = item[0] + item[1]
        need(end <= n_bytes, "gaps: beyond the source")
        gaps.append(Gap(item[0], item[1], read_base64(item[2], "gaps")))
    return gaps


def read_source_header(gaps: list[Gap]) -> tuple[int, dict[str, Entry]]:
    """5.2 start of the source's data section, and its tensor entries."""
    need(gaps and gaps[0].offset == 0, "gaps: none at offset 0")
    head = bytearray()
    for part in zstd_parts(gaps[0].frame, gaps[0].n_bytes):
        if len(head) < 8 + MAX_HEADER:  # what follows the header may be huge
            head += part
    start, _, tensors = read_header(head, "source header")
    return start, read_entries(tensors, of_source=True)


def read_base(base: Any) -> list[BaseFile]:
    """15 the key `base`."""
    need(isinstance(base, dict) and isinstance(base.get("files"), list), "base: not there, or without files")
    need({"repo", "revision"} <= base.keys() and all(base[key] is None or isinstance(base[key], str) for key in ("repo", "revision")), "base: bad repo")
    need(is_uints([base.get("depth")]) and base["depth"] > 0, "base: bad depth")
    files = []
    for item in base["files"]:
        need(isinstance(item, list) and len(item) == 3 and isinstance(item[0], str) and is_uints(item[1:2]), "base: bad file")
        need(isinstance(item[2], str) and re.fullmatch("[0-9a-f]{64}", item[2]), "base: bad SHA-256")
        files.append(BaseFile(item[1], item[2]))
    return files


def read_ranges(items: Any, base: list[BaseFile], tensors: list[Tensor]) -> Iterator[Range]:
    """15.2 to 15.4 the key `ranges`: what each of the tensors is a difference from."""
    need(isinstance(items, list) and len(items) == len(tensors), "ranges: not a list of all tensors with a base")
    for item, tensor in zip(items, tensors, strict=True):
        need(isinstance(item, list) and len(item) == 5, "ranges: bad item")
        number, dtype, offset, n_bytes, moves = item
        need(is_uints([number, offset, n_bytes]) and isinstance(dtype, str), "ranges: bad item")
        need(number < len(base), "ranges: no such file")
        need(offset + n_bytes <= base[number].n_bytes, "ranges: beyond the file")
        need(dtype == tensor.dtype or {dtype, tensor.dtype} <= {"F32", "F16", "BF16"}, f"ranges: {dtype} for {tensor.dtype}")
        need(DTYPE_BITS.get(dtype) in (8, 16, 32), f"ranges: dtype {dtype!r}")
        n_base, n = n_bytes * 8 // DTYPE_BITS[dtype], tensor.n_bytes * 8 // DTYPE_BITS[tensor.dtype]
        need(n_bytes * 8 % DTYPE_BITS[dtype] == 0, "ranges: not a whole count of elements")
        if tensor.storage == "x":  # 15.6
            need(is_uints([moves]) and moves > 0 and n_base == n and n_base % moves == 0 and n_bytes <= 1 << 28, "ranges: no matrix to be turned")
            yield Range(number, dtype, offset, n_bytes, [(0, 0, n)], tensor.dtype, moves)
            continue
        yield Range(number, dtype, offset, n_bytes, read_moves(moves, n, n_base), tensor.dtype)


def read_moves(items: Any, n: int, n_base: int) -> list[tuple[int, int, int]]:
    """15.3 moves of ``n_base`` elements to ``n``."""
    if items is None:
        return [(0, 0, min(n, n_base))]
    need(isinstance(items, list), "moves: not a list")
    moves, end = [], 0
    for item in items:
        need(is_uints(item) and len(item) == 3 and item[2] > 0, "moves: bad item")
        to, start, count = item
        need(end <= to, "moves: not ascending, or overlapping")
        end = to + count
        need(end <= n and start + count <= n_base, "moves: beyond the tensor or the range")
        moves.append((to, start, count))
    return moves


def read_tensors(items: Any, names: list[str]) -> dict[str, Entry]:
    """5.7 the source's tensors, from the key `tensors`; names ascend."""
    need(isinstance(items, list) and len(items) == len(names), "tensors: not a list of all")
    entries: dict[str, Entry] = {}
    last = [(0, 0)]
    for name, item in zip(names, items, strict=True):
        need(isinstance(item, list) and len(item) == 3 and isinstance(item[0], str), "tensors: bad item")
        need(is_uints(item[1]) and len(item[1]) <= 64 and is_uints(item[2:]), "tensors: bad item")
        size = tensor_bytes(item[0], tuple(item[1]))
        entries[name] = Entry(item[0], tuple(item[1]), item[2], item[2] + size)
        if size:
            last.append((item[2], item[2] + size))
    last.sort()
    need(all(before[1] <= after[0] for before, after in itertools.pairwise(last)), "tensors: overlapping")
    return entries


def read_groups(counts: Any, firsts: list[str], entries: dict[str, Entry]) -> list[list[str]]:
    """5.8 the names of each group's tensors, in the order of the source."""
    need(is_uints(counts) and len(counts) == len(firsts) and min(counts, default=0) >= 1, "index: bad groups")
    by_offset = sorted((name for name, entry in entries.items() if entry.end > entry.begin), key=lambda name: entries[name].begin)
    place = {name: i for i, name in enumerate(by_offset)}
    groups: list[list[str]] = []
    seen: set[str] = set()
    for first, count in zip(firsts, counts, strict=True):
        need(first in place, f"group {first!r}: no such tensor, or an empty one")
        need(count < len(by_offset) - place[first], f"group {first!r}: more members than tensors")
        group = by_offset[place[first] : place[first] + count + 1]
        need(all(entries[one].end == entries[other].begin for one, other in itertools.pairwise(group)), f"group {first!r}: not neighbours")
        need(seen.isdisjoint(group), f"group {first!r}: overlaps another")
        seen.update(group)
        groups.append(group)
    return groups


def kept_parts(body: Buffer, crcs: Buffer) -> Iterator[bytes]:
    """5.5 a kept tensor, checked piece by piece."""
    for number, begin in enumerate(range(0, len(body), PIECE)):
        piece = bytes(body[begin : begin + PIECE])
        need(numbered_crc(number, piece) == uint(crcs, 4 * number, 4, "kept CRC"), f"kept piece {number}: CRC mismatch")
        yield piece


def parts(item: Gap | Tensor, base: list[Buffer]) -> Iterator[bytes]:
    """5.4 the bytes of a gap or a tensor, part by part; ``base`` are the base's files."""
    if isinstance(item, Gap):
        yield from zstd_parts(item.frame, item.n_bytes)
        return
    try:
        if item.storage == "k":
            yield from kept_parts(item.body, item.crcs)
        elif item.storage == "b":
            yield bytes(memoryview(base[item.same])[item.offset : item.offset + item.n_bytes])
        elif item.storage == "g":
            yield b"".join(record_parts(item.body, item.group_bytes))[item.group_begin : item.group_begin + item.n_bytes]
        else:
            yield from record_parts(item.body, item.n_bytes, None if item.base is None else (item.base.to_dtype, base_elements(item.base, base)))
    except FormatError as error:
        raise type(error)(f"tensor {item.name!r}: {error}") from None


def source_parts(data: Buffer, max_bytes: int, shelf: Shelf) -> Iterator[bytes]:
    """5.1 the source, part by part; corrupt at its end if the SHA-256 differs."""
    index = read_index(data, max_bytes)
    base = find_bases(index.base, shelf, max_bytes)
    items: list[Gap | Tensor] = [*index.gaps, *(tensor for tensor in index.tensors if tensor.n_bytes)]
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.offset):
        if isinstance(item, Tensor) and item.storage == "g":
            if item.group_begin:
                continue  # it came with the first of its group
            item = replace(item, n_bytes=item.group_bytes)
        for part in parts(item, base):
            digest.update(part)
            yield part
    need(digest.hexdigest() == index.sha256, f"{index.n_bytes} bytes, but the SHA-256 does not match")


def decode_file(data: bytes, max_bytes: int = 1 << 40, bases: Bases = ()) -> bytes:
    """5 the source of the packed file ``data``, SHA-256 checked; ``bases`` may be packed themselves."""
    return b"".join(source_parts(data, max_bytes, Shelf(bases)))


def decode_tensors(data: bytes, max_bytes: int = 1 << 40, bases: Bases = ()) -> dict[str, Decoded]:
    """5.3 the tensors of the packed file ``data``: name -> dtype, shape, bytes."""
    index = read_index(data, max_bytes)
    base = find_bases(index.base, Shelf(bases), max_bytes)
    return {tensor.name: (tensor.dtype, tensor.shape, b"".join(parts(tensor, base))) for tensor in index.tensors}


# ----------------------------------------------------------------------------------------------------------------- 6 Records


def record_parts(record: Buffer, n_bytes: int, base: tuple[str, BaseOf] | None = None, may_repeat: bool = True) -> Iterator[bytes]:
    """6 Records: the chunks of one, decoded and checked; ``base`` is the tensor's dtype, and what it is a difference from."""
    layout_id, reserved, chunk_blocks, record_16 = struct.unpack("<BBHI", take(record, 0, 8, "record header"))
    if layout_id not in LAYOUTS:
        raise UnsupportedError(f"record: layout {layout_id}")
    layout = LAYOUTS[layout_id]
    need(reserved == 0, "record: reserved byte")
    need(n_bytes > 0 and n_bytes % layout.elem_bytes == 0, f"record: {n_bytes} bytes are not a count of {layout.name} elements")
    n_elems, chunk_elems = n_bytes // layout.elem_bytes, BLOCK * chunk_blocks
    need(chunk_blocks > 0 and chunk_elems * layout.elem_bytes <= MAX_CHUNK, "record: bad Chunk_Blocks")
    take(record, 0, 16 * record_16, "record")
    need(len(record) == 16 * record_16, "record: longer than it says")
    n_chunks = ceil_div(n_elems, chunk_elems)
    table = take(record, 8, 8 * n_chunks, "chunk table")
    end = 8 + len(table)
    for number in range(n_chunks):
        offset_16, crc = struct.unpack_from("<II", table, 8 * number)
        start = skip_padding(record, end)
        need(16 * offset_16 == start, f"chunk {number}: wrong offset")
        n = min(chunk_elems, n_elems - number * chunk_elems)
        repeats = repeated_chunk(record, start)
        if repeats is None:
            chunk, end = decode_chunk(record, start, layout, n, base, number * chunk_elems)
        else:  # 6.10, 19.2
            need(may_repeat and repeats < number and n == min(chunk_elems, n_elems - repeats * chunk_elems), f"chunk {number}: repeats chunk {repeats}")
            chunk, _ = decode_chunk(record, 16 * uint(table, 8 * repeats, 4, "chunk table"), layout, n, base, repeats * chunk_elems)
            need(numbered_crc(repeats, chunk) == uint(table, 8 * repeats + 4, 4, "chunk table"), f"chunk {repeats}: CRC mismatch")
            end = start + 8
        need(numbered_crc(number, chunk) == crc, f"chunk {number}: CRC mismatch")
        yield chunk
    need(skip_padding(record, end) == len(record), "record: bytes after the last chunk")


def skip_padding(record: Buffer, end: int) -> int:
    """6.1 ``end`` rounded up to 16, over zero bytes."""
    start = 16 * ceil_div(end, 16)
    need(not any(take(record, end, start - end, "padding")), f"record: padding at {end} is not zero")
    return start


def repeated_chunk(record: Buffer, start: int) -> int | None:
    """6.10 the number of the chunk that the one at ``start`` repeats; None if it is of another mode."""
    if uint(record, start, 1, "chunk header") != 6:
        return None
    _, n_streams, reserved, number = struct.unpack("<BBHI", take(record, start, 8, "chunk header"))
    need(n_streams == 0 and reserved == 0, "chunk: header of a repeated one")
    return int(number)


def decode_chunk(record: Buffer, start: int, layout: Layout, n: int, base: tuple[str, BaseOf] | None = None, first: int = 0) -> tuple[bytes, int]:
    """6.3 the ``n`` elements of the chunk at ``start``, from element ``first`` of the tensor, and the chunk's end."""
    mode, n_streams, reserved = struct.unpack("<BBH", take(record, start, 4, "chunk header"))
    if mode > 6:
        raise UnsupportedError(f"chunk: mode {mode}")
    need(mode != 6, "chunk: repeats one that repeats another")  # 6.10
    need(mode != 2 or (2 <= n_streams <= 8 and layout.name == "BYTES1"), "chunk: fields")
    need(mode == 2 or n_streams == (layout.n_streams, 1, 0, 3, 5, 7)[mode], f"chunk: {n_streams} streams")
    need(reserved == 0, "chunk: reserved bytes")
    table_end = end = start + 4 + 4 * n_streams
    extra = bytes(take(record, table_end, (0, 0, n_streams, 2, 10, 16)[mode], "end of the chunk header"))
    end += len(extra)
    frequent: tuple[int, ...] = ()
    if mode in (3, 4):  # 6.7, 6.8
        need(extra[1] <= 64, f"chunk: N_Frequent is {extra[1]}")
        frequent = struct.unpack(f"<{extra[1]}I", take(record, end, 4 * extra[1], "end of the chunk header"))
        end += 4 * extra[1]
    streams = []
    for at in range(start + 4, table_end, 4):
        size = uint(record, at + 1, 3, "stream table")
        streams.append((uint(record, at, 1, "stream table"), take(record, end, size, "stream")))
        end += size
    if mode == 1:  # 6.4
        return decode_stream(*streams[0], n * layout.elem_bytes).tobytes(), end
    if mode == 2:
        return decode_fields(list(extra), streams, n), end
    if mode == 3:  # 6.7
        if base is None:
            raise CorruptError("difference: the tensor has no base")
        need(layout.elem_bytes == DTYPE_BITS[base[0]] // 8, "difference: elements of another length than the dtype's")  # 15.5
        return decode_difference(layout, extra[0], frequent, base[1](first, n), streams), end
    if mode == 4:  # 6.8
        shift, _, cols, phase = struct.unpack("<BBII", extra)
        scaled = scaled_elements(layout, cols, phase, streams[:2], n)
        return decode_difference(layout, shift, frequent, scaled, streams[2:]), end
    if mode == 5:  # 6.9
        return decode_quantised(layout, extra, streams, n), end
    return decode_split(layout, streams, n), end


def decode_fields(widths: list[int], streams: list[tuple[int, memoryview]], n: int) -> bytes:
    """6.6 the ``n`` bytes of a chunk of blocks of fields."""
    need(0 not in widths and n % sum(widths) == 0, "fields: bad widths")
    blocks = np.empty((n // sum(widths), sum(widths)), np.uint8)
    begin = 0
    for width, (codec, stream) in zip(widths, streams, strict=True):
        blocks[:, begin : begin + width] = decode_stream(codec, stream, len(blocks) * width).reshape(-1, width)
        begin += width
    return blocks.tobytes()


def decode_record(record: bytes, n_bytes: int) -> bytes:
    """6 Records: the tensor's ``n_bytes`` source bytes."""
    return b"".join(record_parts(record, n_bytes))


# ------------------------------------------------------------------------------------------------------ 7 Layouts and planes


@dataclass(frozen=True)
class Layout:
    """A layout: its symbol planes as (lowest bit, width), and the raw word's width (0: it has none)."""

    name: str
    elem_bytes: int
    fields: tuple[tuple[int, int], ...]
    raw_bits: int = 0

    @property
    def n_streams(self) -> int:
        """7.1."""
        return len(self.fields) + (2 if self.raw_bits else 0)


def _bytes_layout(n: int) -> Layout:
    return Layout(f"BYTES{n}", n, tuple((8 * i, 8) for i in range(n)))


# In every raw word the sign, the element's top bit, stands above the element's low bits.
LAYOUTS = {
    1: _bytes_layout(1),
    2: _bytes_layout(2),
    3: _bytes_layout(4),
    4: _bytes_layout(8),
    5: Layout("BF16", 2, ((7, 8),), 8),
    6: Layout("F16", 2, ((10, 5),), 11),
    7: Layout("F32", 4, ((23, 8),), 24),
    8: Layout("F64", 8, ((52, 8), (60, 3)), 53),
    9: Layout("F8_E4M3", 1, ((3, 4),), 4),
    10: Layout("F8_E5M2", 1, ((2, 5),), 3),
    11: Layout("BF16_LEAD", 2, ((5, 2), (7, 8)), 6),
    12: Layout("F16_LEAD", 2, ((8, 2), (10, 5)), 9),
    13: Layout("F32_LEAD", 4, ((21, 2), (23, 8)), 22),
    14: Layout("F8_E4M3_LEAD", 1, ((1, 2), (3, 4)), 2),
    15: Layout("F8_E5M2_LEAD", 1, ((0, 2), (2, 5)), 1),
}


def decode_split(layout: Layout, streams: list[tuple[int, memoryview]], n: int) -> bytes:
    """7 Layouts and planes: the ``n`` elements of a split chunk."""
    elems = np.zeros(n, np.uint64)
    plane = None
    for i in reversed(range(len(layout.fields))):  # 8.6: the next plane first
        (low, width), (codec, stream) = layout.fields[i], streams[i]
        if codec == CONTEXT and plane is not None and width == 2:
            plane = decode_context(bytes(stream), plane)
        else:
            plane = decode_stream(codec, stream, n)
        need(plane.max() < 1 << width, f"split: a symbol of more than {width} bits")  # 7.2
        elems |= plane.astype(np.uint64) << low
    if layout.raw_bits:
        widths, bits = streams[-2:]
        raw = decode_raw_words(layout.raw_bits, widths, bits, n)
        low_bits = layout.raw_bits - 1
        elems |= raw & (1 << low_bits) - 1
        elems |= raw >> low_bits << 8 * layout.elem_bytes - 1
    return elems.astype(f"<u{layout.elem_bytes}").tobytes()


def decode_raw_words(r: int, widths: tuple[int, memoryview], bits: tuple[int, memoryview], n: int) -> npt.NDArray[np.uint64]:
    """7.3 the raw words of ``n`` elements, from the streams *widths* and *bits*."""
    n_blocks = ceil_div(n, BLOCK)
    w = decode_stream(*widths, n_blocks).astype(np.int64)
    need(w.max() <= r, f"widths: {w.max()} of {r} bits")
    m = np.full(n_blocks, BLOCK)
    m[-1] = n - BLOCK * (n_blocks - 1)
    sizes = w // 8 * m + w % 8 * -(-m // 8)
    ends = np.cumsum(sizes)
    codec, stream = bits
    need(codec in (0, 4) or codec not in (*CODECS, CONTEXT, CONDITIONAL), f"bits: codec {codec}")  # 7.5
    plane = decode_stream(codec, stream, int(ends[-1]))
    words = np.zeros((n_blocks, BLOCK), np.uint64)
    for width in np.unique(w):
        # The last block may be shorter than the others of its width, so it goes alone.
        for which in (np.flatnonzero(w[:-1] == width), np.flatnonzero(w == width)[-1:]):
            if len(which):
                count, size = int(m[which[0]]), int(sizes[which[0]])
                rows = plane[(ends - sizes)[which][:, None] + np.arange(size)]
                words[which, :count] = block_words(rows, count, int(width)) << (r - int(width))
    return words.reshape(-1)[:n]


def block_words(rows: Plane, m: int, w: int) -> npt.NDArray[np.uint64]:
    """7.4 the ``m`` values of ``w`` bits in each row, a block."""
    v: npt.NDArray[Any] = np.zeros((len(rows), m), np.uint64)
    at = 0
    for _ in range(w // 8):
        v = v << 8 | rows[:, at : at + m]
        at += m
    for _ in range(w % 8):
        plane = np.unpackbits(rows[:, at : at + ceil_div(m, 8)], axis=1, bitorder="little")
        need(not plane[:, m:].any(), "bits: unused bits are not zero")
        v = v << 1 | plane[:, :m]
        at += ceil_div(m, 8)
    return v


# ------------------------------------------------------------------------------------------------------------------ 8 Codecs


def decode_stream(codec: int, stream: Buffer, n: int) -> Plane:
    """8 Codecs: the plane of ``n`` symbols that ``stream`` stands for."""
    need(codec != CONTEXT, "context: no next plane, or not 2 bits")
    need(codec != CONDITIONAL, "conditional: not of classes")
    if codec not in CODECS:
        raise UnsupportedError(f"codec {codec}")
    need(n <= MAX_CHUNK, f"plane: {n} symbols, above the limit")
    need(n > 0 or codec in (0, 4), "plane: no symbols")
    return CODECS[codec](bytes(stream), n)


def decode_raw(stream: bytes, n: int) -> Plane:
    """8.1 raw."""
    need(len(stream) == n, f"raw: {len(stream)} bytes for {n} symbols")
    return np.frombuffer(stream, np.uint8)


def decode_constant(stream: bytes, n: int) -> Plane:
    """8.2 constant."""
    need(len(stream) == 1, f"constant: {len(stream)} bytes")
    return np.full(n, stream[0], np.uint8)


@dataclass(frozen=True)
class Codebook:
    """8.3 a codebook: its symbols by rank, and what each slot stands for."""

    symbols: bytes
    slot_symbol: Plane
    slot_escape: npt.NDArray[np.bool_]
    slot_freq: npt.NDArray[np.int64]
    slot_above_start: npt.NDArray[np.int64]


def read_codebook(stream: bytes, at: int) -> tuple[Codebook, int]:
    """8.3 the codebook at ``at``, and its end."""
    k, escape_freq = take(stream, at, 2, "rans")
    need(1 <= k <= (15 if escape_freq else 16), f"rans: K is {k}")
    symbols = bytes(take(stream, at + 2, k, "rans"))
    freqs = [*take(stream, at + 2 + k, k, "rans"), escape_freq]
    need(len(set(symbols)) == k, "rans: a symbol stands twice")
    need(0 not in freqs[:k] and sum(freqs) == 256, "rans: bad frequencies")
    book = Codebook(
        symbols,
        np.repeat(np.frombuffer(symbols + b"\0", np.uint8), freqs),
        np.repeat(np.arange(k + 1) == k, freqs),
        np.repeat(freqs, freqs),
        np.concatenate([np.arange(freq) for freq in freqs]),
    )
    return book, at + 2 + 2 * k


def decode_rans(stream: bytes, n: int) -> Plane:
    """8.3 rans128x8."""
    book, at = read_codebook(stream, 0)
    return decode_groups(stream, at, [book], np.zeros(n, np.int64))


def decode_tables(stream: bytes, n: int) -> Plane:
    """8.7 tables."""
    n_books, run_groups = uint(stream, 0, 1, "tables") + 1, uint(stream, 1, 1, "tables")
    need(2 <= n_books <= 16, f"tables: {n_books} codebooks")
    need(run_groups > 0, "tables: Run_Groups is 0")
    books, at = [], 2
    for _ in range(n_books):
        book, at = read_codebook(stream, at)
        books.append(book)
    width = 1 if n_books == 2 else 2 if n_books <= 4 else 4
    n_runs = ceil_div(n, 128 * run_groups)
    packed = take(stream, at, ceil_div(n_runs * width, 8), "tables")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    need(not bits[n_runs * width :].any(), "tables: unused bits are not zero")
    ids = bits[: n_runs * width].reshape(n_runs, width) @ (1 << np.arange(width))
    need(ids.max() < n_books, "tables: an id of no codebook")
    return decode_groups(stream, at + len(packed), books, np.repeat(ids, 128 * run_groups)[:n])


def decode_groups(stream: bytes, at: int, books: list[Codebook], ids: npt.NDArray[np.int64]) -> Plane:
    """8.3.2 the symbols, ``ids`` says the codebook of each; states and streams begin at ``at``."""
    n = len(ids)
    x = np.frombuffer(take(stream, at, 256, "rans"), "<u2").astype(np.int64)
    need(x.min() >= 256, "rans: a state below 256")
    at += 256
    n_renorm = uint(stream, at, 4, "rans")
    renorm = np.frombuffer(take(stream, at + 4, n_renorm, "rans"), np.uint8)
    literals = np.frombuffer(stream[at + 4 + n_renorm :], np.uint8)

    need(len(literals) == 0 or any(book.slot_escape.any() for book in books), "rans: Literals without an escape")
    symbols, escapes = np.stack([book.slot_symbol for book in books]), np.stack([book.slot_escape for book in books])
    freqs, above_starts = np.stack([book.slot_freq for book in books]), np.stack([book.slot_above_start for book in books])
    plane = np.empty(n, np.uint8)
    escaped = np.zeros(n, bool)
    used = 0
    for i in range(0, n, 128):
        lanes = x[: n - i]  # the last group may be shorter
        at_slot = ids[i : i + 128], lanes & 255
        plane[i : i + 128] = symbols[at_slot]
        escaped[i : i + 128] = escapes[at_slot]
        lanes[:] = freqs[at_slot] * (lanes >> 8) + above_starts[at_slot]
        low = np.flatnonzero(lanes < 256)
        need(used + len(low) <= len(renorm), "rans: Renorm is too short")
        lanes[low] = lanes[low] << 8 | renorm[used : used + len(low)]
        used += len(low)
    need((x == 256).all(), "rans: a final state is not 256")
    need(used == len(renorm), "rans: Renorm is too long")
    need(np.count_nonzero(escaped) == len(literals), "rans: wrong count of Literals")
    plane[escaped] = literals
    return plane


def decode_huffman(stream: bytes, n: int) -> Plane:
    """8.4 huffman."""
    count = uint(stream, 0, 1, "huffman") + 1
    need(count >= 2, "huffman: one symbol")
    set_bytes = min(count, 32)
    symbol_set = bytes(take(stream, 1, set_bytes, "huffman"))
    if count < 32:
        symbols = list(symbol_set)
        need(symbols == sorted(set(symbols)), "huffman: symbols do not ascend")
    else:
        symbols = [symbol for symbol in range(256) if symbol_set[symbol // 8] >> symbol % 8 & 1]
        need(len(symbols) == count, "huffman: wrong count of symbols")
    at = 1 + set_bytes
    lengths = [half for byte in take(stream, at, ceil_div(count, 2), "huffman") for half in (byte & 15, byte >> 4)]
    need(not any(lengths[count:]), "huffman: the unused half is not zero")
    lengths = lengths[:count]
    need(all(1 <= length <= 12 for length in lengths), "huffman: bad length")
    need(sum(4096 >> length for length in lengths) == 4096, "huffman: the code is not complete")
    at += ceil_div(count, 2)
    sizes = [uint(stream, at + 3 * j, 3, "huffman") for j in range(3)]
    at += 9
    sizes.append(max(0, len(stream) - at - sum(sizes)))

    table = [(0, 0)] * 4096  # by the next 12 bits of a bitstream
    code = last_length = 0
    for length, symbol in sorted(zip(lengths, symbols, strict=True)):
        code <<= length - last_length
        reverse = int(f"{code:0{length}b}"[::-1], 2)
        for bits in range(reverse, 4096, 1 << length):
            table[bits] = (symbol, length)
        code, last_length = code + 1, length

    plane = np.empty(n, np.uint8)
    for j in range(4):
        bitstream = take(stream, at, sizes[j], "huffman")
        at += sizes[j]
        plane[j::4] = np.frombuffer(decode_bitstream(bitstream, table, len(range(j, n, 4))), np.uint8)
    return plane


def decode_bitstream(bitstream: Buffer, table: list[tuple[int, int]], n: int) -> bytearray:
    """8.4 the ``n`` symbols of a bitstream."""
    symbols = bytearray(n)
    at = bits = n_bits = 0
    for i in range(n):
        while n_bits < 12 and at < len(bitstream):
            bits |= bitstream[at] << n_bits
            at, n_bits = at + 1, n_bits + 8
        symbols[i], length = table[bits & 4095]
        need(length <= n_bits, "huffman: a bitstream is too short")
        bits, n_bits = bits >> length, n_bits - length
    need(at == len(bitstream) and n_bits < 8, "huffman: a bitstream is too long")
    need(bits == 0, "huffman: the last bits are not zero")
    return symbols


def zstd_parts(frame: bytes, n: int) -> Iterator[bytes]:
    """8.5 the ``n`` bytes of a zstd frame, part by part."""
    need(frame[:4] == b"\x28\xb5\x2f\xfd", "zstd: not a frame")  # a skippable one is none
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
    rest = n
    # 4 bytes may expand to 128 KiB, so the input goes in by little and the output stays small.
    for at in range(0, len(frame), 256):
        need(not decoder.eof, "zstd: bytes after the frame")
        try:
            part = decoder.decompress(frame[at : at + 256])
        except zstandard.ZstdError as error:
            raise CorruptError(f"zstd: {error}") from None
        need(len(part) <= rest and not decoder.unused_data, "zstd: more bytes than there should be")
        rest -= len(part)
        yield part
    if not decoder.eof:
        raise TruncatedError("zstd: the frame has no end")
    need(rest == 0, "zstd: fewer bytes than there should be")


def decode_zstd(stream: bytes, n: int) -> Plane:
    """8.5 zstd."""
    return np.frombuffer(b"".join(zstd_parts(stream, n)), np.uint8)


def decode_context(stream: bytes, next_plane: Plane) -> Plane:
    """8.6 context."""
    base = uint(stream, 0, 1, "context")
    starts = np.zeros((16, 5), np.int64)
    starts[:, 1:4] = np.frombuffer(take(stream, 1, 48, "context"), np.uint8).reshape(16, 3)
    starts[:, 4] = 256
    need((np.diff(starts) > 0).all(), "context: bad Starts")
    x = np.frombuffer(take(stream, 49, 256, "context"), "<u2").astype(np.int64)
    need(x.min() >= 256, "context: a state below 256")
    renorm = np.frombuffer(stream[305:], np.uint8)
    contexts = np.minimum(np.maximum(next_plane.astype(np.int64) - base, 0), 15)
    plane = np.empty(len(contexts), np.uint8)
    used = 0
    for i in range(0, len(contexts), 128):
        lanes = x[: len(contexts) - i]
        slot = lanes & 255
        c = contexts[i : i + 128]
        s = (starts[c] <= slot[:, None]).sum(axis=1) - 1
        plane[i : i + 128] = s
        lanes[:] = (starts[c, s + 1] - starts[c, s]) * (lanes >> 8) + slot - starts[c, s]
        low = np.flatnonzero(lanes < 256)
        need(used + len(low) <= len(renorm), "context: Renorm is too short")
        lanes[low] = lanes[low] << 8 | renorm[used : used + len(low)]
        used += len(low)
    need((x == 256).all(), "context: a final state is not 256")
    need(used == len(renorm), "context: Renorm is too long")
    return plane


def decode_conditional(stream: bytes, rates: Plane, exponents: Words) -> Plane:
    """8.8 conditional: the classes of elements in blocks of these rates, whose base elements have these exponents."""
    n_books, base_exponent, n_rates = uint(stream, 0, 1, "conditional") + 1, uint(stream, 1, 1, "conditional"), uint(stream, 2, 1, "conditional")
    need(n_books <= 16 and 1 <= n_rates <= 15, f"conditional: {n_books} codebooks, {n_rates} rates")
    book_of_cell = np.array([half for byte in take(stream, 3, 8 * n_rates, "conditional") for half in (byte & 15, byte >> 4)])
    need(book_of_cell.max() < n_books, "conditional: a number of no codebook")
    books, at = [], 3 + 8 * n_rates
    for _ in range(n_books):
        book, at = read_codebook(stream, at)
        books.append(book)
    need(all(symbol < 128 for book in books for symbol in book.symbols), "conditional: a symbol of no class")
    need(rates.max() <= n_rates, "conditional: a rate above N_Rates")
    cells = 16 * rates.astype(np.int64) + np.minimum(np.maximum(exponents.astype(np.int64) - base_exponent, 0), 15)  # 14.4
    plane = decode_groups(stream, at, books, book_of_cell[cells - 16])
    need(plane.max() < 128, "conditional: a literal of no class")
    return plane


CODECS = {0: decode_raw, 1: decode_constant, 2: decode_rans, 3: decode_huffman, 4: decode_zstd, 6: decode_tables}
CONTEXT = 5  # 8.6, which needs more than a stream
CONDITIONAL = 7  # 8.8, which does too


# ----------------------------------------------------------------------------------------------------------- 9 Tensor frames


def decode_frame(data: bytes, max_bytes: int = 1 << 40) -> Decoded:
    """9 Tensor frames: dtype, shape and bytes of one."""
    if bytes(take(data, 0, 4, "frame")) != b"\x89WPT":
        raise NotPackedError("not a tensor frame")
    version, storage, dtype_bytes, n_dims = take(data, 4, 4, "frame")
    if version != 1:
        raise UnsupportedError(f"tensor frame version {version}")
    need(1 <= dtype_bytes <= 32 and n_dims <= 64, "frame: bad Dtype_Bytes or N_Dims")
    at = 8 + dtype_bytes + 8 * n_dims
    head = take(data, 0, at, "frame")
    need(crc32c(head) == uint(data, at, 4, "frame"), "frame: head CRC mismatch")
    if storage > 1:
        raise UnsupportedError(f"tensor frame storage {storage}")
    shape = struct.unpack_from(f"<{n_dims}Q", head, 8 + dtype_bytes)
    try:
        dtype = bytes(head[8 : 8 + dtype_bytes]).decode("ascii")
    except UnicodeDecodeError:
        raise CorruptError("frame: the dtype is not ASCII") from None
    n_bytes = tensor_bytes(dtype, shape)
    if n_bytes > max_bytes:
        raise UnsupportedError(f"the tensor has {n_bytes} bytes, above the limit of {max_bytes}")
    at += 4
    if storage == 1:
        return dtype, shape, decode_record(data[at:], n_bytes)
    crcs = take(data, at, 4 * ceil_div(n_bytes, PIECE), "frame")
    at += len(crcs)
    body = take(data, at, n_bytes, "frame")
    need(at + n_bytes == len(data), "frame: bytes after the tensor")
    return dtype, shape, b"".join(kept_parts(body, crcs))


# ------------------------------------------------------------------------------------------------------------ 14 Differences


def decode_difference(layout: Layout, shift: int, frequent: tuple[int, ...], base: Words, streams: list[tuple[int, memoryview]]) -> bytes:
    """14 Differences: the elements of a chunk that differ from ``base``; the streams are rates, classes and extra bits."""
    w, n = 8 * layout.elem_bytes, len(base)
    need(w <= 32, f"difference: layout {layout.name}")
    need(shift <= w - 2, f"difference: Shift is {shift}")  # 14.1
    v = w - shift
    need(all(step >> v == 0 for step in frequent), "difference: a Frequent that is too large")  # 14.3
    block_rates = decode_stream(*streams[0], ceil_div(n, BLOCK))  # 14.4
    need(block_rates.max() <= 15, "rates: above 15")
    rates = np.repeat(block_rates, BLOCK)[:n]
    changed = np.flatnonzero(rates)
    elems = base.copy()
    if len(changed):
        low, width = layout.fields[-1] if layout.raw_bits else (4, 4) if w == 8 else (0, 0)
        exponents = base[changed] >> low & (1 << width) - 1
        distances = read_distances(streams[1], streams[2], v, frequent, rates[changed], exponents)
        from_ = base[changed] >> shift
        if layout.raw_bits:  # 14.2
            distances = np.where(from_ >> v - 1 == 1, -distances, distances)
        moved = order(from_, v, layout).astype(np.int64) + distances
        elems[changed] = order((moved & (1 << v) - 1).astype(np.uint64), v, layout) << shift
    else:
        need(all(codec == 0 and len(stream) == 0 for codec, stream in streams[1:]), "difference: nothing changed, but there are classes or extra bits")
    return elems.astype(f"<u{layout.elem_bytes}").tobytes()


def order(x: Words, v: int, layout: Layout) -> Words:
    """14.2 integers of ``v`` bits in the order of what they stand for, and back."""
    return np.where(x >> v - 1 == 1, x ^ (1 << v - 1) - 1, x) if layout.raw_bits else x


def read_distances(
    classes: tuple[int, memoryview], extra: tuple[int, memoryview], v: int, frequent: tuple[int, ...], rates: Plane, exponents: Words
) -> npt.NDArray[np.int64]:
    """14.3 the differences of the elements that changed, at least one, from the streams *classes* and *extra bits*."""
    codec, stream = classes
    plane = decode_conditional(bytes(stream), rates, exponents) if codec == CONDITIONAL else decode_stream(codec, stream, len(rates))
    steps = np.zeros(len(plane), np.int64)
    is_frequent = plane >= 64
    need(plane.max() < 64 + len(frequent), f"classes: {plane.max()} with {len(frequent)} frequent differences")
    steps[is_frequent] = np.array(frequent or [0], np.int64)[plane[is_frequent].astype(np.int64) - 64]
    c = np.where(is_frequent, 0, plane).astype(np.int64)
    need(c.max() < 2 * v - 1, f"classes: {c.max()} with {v} bits")
    m = np.maximum(c // 2 - 1, 0)
    n_bits = np.where(c > 0, 1 + m, 0)
    ends = np.cumsum(n_bits)
    starts, total = ends - n_bits, int(ends[-1])
    codec, stream = extra
    need(codec in (0, 4) or codec not in (*CODECS, CONTEXT, CONDITIONAL), f"extra bits: codec {codec}")  # 14.4
    bits = np.unpackbits(decode_stream(codec, stream, ceil_div(total, 8)), bitorder="little")
    need(not bits[total:].any(), "extra bits: unused bits are not zero")
    magnitudes = np.where(c > 1, 2 + c % 2, c) << m
    for k in range(int(m.max())):
        has = np.flatnonzero(m > k)
        magnitudes[has] |= bits[starts[has] + 1 + k].astype(np.int64) << k
    has = np.flatnonzero(c)
    negative = np.zeros(len(c), bool)
    negative[has] = bits[starts[has]] == 1
    return np.where(is_frequent, steps, np.where(negative, -magnitudes, magnitudes))


SIXTEENTHS = np.array(  # 14.5, M
    [
        0, 371395, 759234, 1164243, 1587184, 2028850, 2490071, 2971711, 3474675, 3999908, 4548394, 5121164, 5719293, 6343903, 6996167, 7677309,
    ],
    np.int64,
)  # fmt: skip


def scaled_elements(layout: Layout, cols: int, phase: int, streams: list[tuple[int, memoryview]], n: int) -> Words:
    """14.5 the base elements that scales of rows and columns and the signs give; the streams are scales and signs."""
    need(layout.name.removesuffix("_LEAD") in ("BF16", "F32"), f"scaled: layout {layout.name}")
    need(1 <= cols <= MAX_COLS and phase < cols, f"scaled: Cols is {cols}, Phase {phase}")  # 6.8
    n_rows = ceil_div(phase + n, cols)
    need(2 * (n_rows + cols) <= MAX_SCALES, "scaled: too many scales")
    scales = decode_stream(*streams[0], 2 * (n_rows + cols)).view("<i2").astype(np.int64)
    signs = np.unpackbits(decode_stream(*streams[1], ceil_div(n, 8)), bitorder="little")
    need(not signs[n:].any(), "signs: unused bits are not zero")
    places = np.arange(phase, phase + n)
    row, col = scales[places // cols], scales[n_rows + places % cols]
    s = row + col + 2032
    p = np.where(s >= 4080, 0x7F7FFFFF, (s // 16 << 23) + SIXTEENTHS[s % 16])
    p[(row == -32768) | (col == -32768) | (s < 16)] = 0
    p |= signs[:n].astype(np.int64) << 31
    return p.astype(np.uint64) >> (32 - 8 * layout.elem_bytes)


# ------------------------------------------------------------------------------------------------------------------ 15 Bases


class Shelf:
    """15.1 files that may be bases, found by the SHA-256 of what they restore to."""

    def __init__(self, bases: Bases) -> None:
        self.files = list(bases.values() if isinstance(bases, Mapping) else bases)
        self.found: dict[str, Buffer] | None = None
        self.depth = 0

    def find(self, file: BaseFile, max_bytes: int) -> Buffer:
        """15.1 what the base's file holds: one of the files, or what a packed one restores to."""
        if self.found is None:
            self.found = {hashlib.sha256(data).hexdigest(): data for data in self.files}
        if file.sha256 not in self.found:
            packed = next((data for data in self.files if claimed_sha256(data) == file.sha256), None)
            if packed is None:
                raise BaseNotFoundError(f"a difference from a file with the SHA-256 {file.sha256}, which is not among the bases")
            if self.depth == MAX_DEPTH:
                raise UnsupportedError(f"a chain of more than {MAX_DEPTH} differences")
            self.depth += 1
            self.found[file.sha256] = b"".join(source_parts(packed, max_bytes, self))
            self.depth -= 1
        data = self.found[file.sha256]
        need(len(data) == file.n_bytes, f"base: {file.n_bytes} bytes, but the file with that SHA-256 has {len(data)}")
        return data


def claimed_sha256(data: Buffer) -> str | None:
    """15.1 what a packed file says that it restores to; None if it is none."""
    try:
        source = read_container(data)[2].get("source")
    except FormatError:
        return None
    sha256 = source.get("sha256") if isinstance(source, dict) else None
    return sha256 if isinstance(sha256, str) else None


def base_elements(base: Range, files: list[Buffer]) -> BaseOf:
    """15.3 a function that gives base elements: of ``n`` elements, from ``first`` on."""
    size = DTYPE_BITS[base.dtype] // 8
    source = np.frombuffer(memoryview(files[base.file])[base.offset : base.offset + base.n_bytes], f"<u{size}")
    if base.columns:  # 15.6
        source = source.reshape(-1, base.columns).T.reshape(-1)

    def elements(first: int, n: int) -> Words:
        """15.3."""
        words = np.zeros(n, np.uint64)
        for to, start, count in base.moves:
            begin, end = max(to, first), min(to + count, first + n)
            if begin < end:
                part = source[start + begin - to : start + end - to].astype(np.uint64)
                words[begin - first : end - first] = converted(part, base.dtype, base.to_dtype)
        return words

    return elements


def converted(x: Words, dtype: str, to: str) -> Words:
    """15.4 elements of one dtype as those of another."""
    if dtype == to:
        return x
    if dtype == "BF16":
        x = x << 16
    elif dtype == "F16":
        wide = x.astype("<u2").view("<f2").astype("<f4").view("<u4").astype(np.uint64)
        is_nan = x & 0x7FFF > 0x7C00
        x = np.where(is_nan, (x & 0x8000) << 16 | 0x7F800000 | (x & 0x3FF) << 13, wide)
    if to == "F32":
        return x
    is_nan = x & 0x7FFFFFFF > 0x7F800000
    if to == "BF16":
        return np.where(is_nan, x >> 16 | 0x40, x + 0x7FFF + (x >> 16 & 1) >> 16)
    with np.errstate(all="ignore"):
        half = x.astype("<u4").view("<f4").astype("<f2").view("<u2").astype(np.uint64)
    return np.where(is_nan, x >> 16 & 0x8000 | 0x7E00, half)


def find_bases(files: list[BaseFile], shelf: Shelf, max_bytes: int) -> list[Buffer]:
    """15.1 the files of a base."""
    return [shelf.find(file, max_bytes) for file in files]


# --------------------------------------------------------------------------------------- 16 Items of distributed checkpoints

# 16.3 the rest's dictionary
REST_DICTIONARY = zlib.decompress(
    base64.b85decode(
        b"c-o~@&x_MQ7@aizWrXgoAd8DG-GflU?KWwXwu&yq5|j#dcUdW3LYhw7V45_OX=ObLvIqYGkDmM=yn6E}%7PccgCKbF>d~2IlP0O#qWeKJ^QH5?_r94ok!{;Nz&6tQFfSir=+EyBG~~|@"
        b"1~$Te^1uqF4{fXO&l~o*V+QE^n%N7gDyFSrUh?xp3m=VO*H2XhJ7dG_sv`|)Lx>@oy~5CPZKO`h`5vuNQ(<LT?pZ-54uyQH$tD5FX2D#nf=fU{`oNgLovwzp;^?WV$T{#N5-$=uQKAou"
        b">KGfQ%gvDsoC6Alc7{}RJ<Sf|LAYsWr;Tt<qRo&sC5LUZWYkAvC)s4MliF*7CUfkh=_B(>*KN~;IyP*}<sP9fM6la1bj&%~8~e@$>~Q<e#bT?O$zHp>ee#-AqQA4dTnE>KE{i=I4K=Jz"
        b"AaY54Mc#@v`<LJ;)w^F`UsCbRLaGf=ol%|cg{qlG-x@*-D{^@`+k8kBDq#1S^D{vx5(@>af!#nrhnUr-+o#C4|A*HP)4<q-RKxL|?^n`<CB0BX4&05nYNw>gx6UDeGGG1H*dlZwxsZ7!"
        b")O~Qm=jy%8QT9)7`iIN+eiI0@!=E<pLS&HBf38t4t43Fmi~lHw7pp>zuh&JMuZb0@QZ5NnsaoReLR~7At2MF43l&iksLICM_g@M`M`5axp<)A_;hVBLr#$`*h@->iUymSvgwV0O6)zGt"
        b"@J6J_9s?HKns}YC3D+WZK8NZA=8wa}PRd2#j}su~+c-AtgOv#OB!oSq|M2l_M!@?lSYn)3Go8Na+l<`~keS%{k@3dgtTz(e^sf&oFZaG)skDd5OxJsB{{Tf#pr!"
    )
)


def decode_item(data: bytes, max_bytes: int = 1 << 40) -> bytes:
    """16 Items of distributed checkpoints: the source of one."""
    if bytes(take(data, 0, 4, "item")) != b"\x89WPD":
        raise NotPackedError("not a packed item")
    version, storage = take(data, 4, 2, "item")
    if version != 1 or storage > 1:
        raise UnsupportedError(f"item version {version}, storage {storage}")
    item_crc, head = uint(data, 6, 4, "item"), crc32c(data[:6])
    if storage == 0:
        need(crc32c(data[10:], head) == item_crc, "item: CRC mismatch")
        return bytes(data[10:])
    n_bytes, stored_rest_bytes, n_parts = uint(data, 10, 8, "item"), uint(data, 18, 8, "item"), uint(data, 26, 4, "item")
    if n_bytes > max_bytes:
        raise UnsupportedError(f"the item has {n_bytes} bytes, above the limit of {max_bytes}")
    table = take(data, 30, 28 * n_parts, "item: table")
    at = 30 + len(table)
    stored_rest = take(data, at, stored_rest_bytes, "item: rest")
    at += stored_rest_bytes
    entries = list(struct.iter_unpack("<QQQI", table))
    rest_bytes = n_bytes - sum(part_bytes for _, part_bytes, _, _ in entries)
    need(sum(gap + part_bytes for gap, part_bytes, _, _ in entries) <= n_bytes, "item: the parts leave the source")
    rest = bytes(stored_rest) if stored_rest_bytes == rest_bytes else decode_rest(bytes(stored_rest), rest_bytes)
    need(crc32c(rest, crc32c(data[10 : 30 + len(table)], head)) == item_crc, "item: CRC mismatch")
    source, begin = [], 0
    for gap, part_bytes, stored_bytes, part_crc in entries:
        need(1 <= stored_bytes <= part_bytes, "item: a part of impossible length")
        stored = take(data, at, stored_bytes, "item: part")
        at += stored_bytes
        covered = stored_bytes if stored_bytes == part_bytes else record_table_end(stored, part_bytes)
        need(crc32c(take(stored, 0, covered, "item: record")) == part_crc, "item: CRC mismatch of a part")
        source += [rest[begin : begin + gap], bytes(stored) if stored_bytes == part_bytes else decode_record(bytes(stored), part_bytes)]
        begin += gap
    need(at == len(data), "item: bytes after the last part")
    return b"".join([*source, rest[begin:]])


def record_table_end(record: Buffer, n_bytes: int) -> int:
    """6.1 where the first chunk of a record begins."""
    layout = LAYOUTS.get(uint(record, 0, 1, "record"))
    if layout is None:
        raise UnsupportedError("record: unknown layout")
    chunk_bytes = uint(record, 2, 2, "record") * BLOCK * layout.elem_bytes
    need(chunk_bytes, "record: no elements in a chunk")
    return ceil_div(8 + 8 * ceil_div(n_bytes, chunk_bytes), 16) * 16


def decode_rest(frame: bytes, n: int) -> bytes:
    """16.3 the rest, from its zstd frame."""
    dictionary = zstandard.ZstdCompressionDict(REST_DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    try:
        need(frame[:4] == b"\x28\xb5\x2f\xfd" and zstandard.frame_content_size(frame) == n, "item: the rest is no zstd frame of its length")
        rest = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=MAX_WINDOW).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError(f"item: the rest: {error}") from None
    need(len(rest) == n, "item: the rest has another length")
    return bytes(rest)


# ------------------------------------------------------------------------------------------------------ 18 Quantised elements


def decode_quantised(layout: Layout, extra: bytes, streams: list[tuple[int, memoryview]], n: int) -> bytes:
    """18 the ``n`` elements of a chunk of codes and scales; ``extra`` is what stands after the stream table."""
    cols, tile_rows, tile_cols, n_values, reserved = struct.unpack("<IIIHH", extra)
    need(reserved == 0 and 1 <= n_values <= 256, f"quantised: N_Values is {n_values}")  # 6.9
    need(all(1 <= side <= 1 << 23 for side in (cols, tile_rows, tile_cols)) and tile_cols <= cols, "quantised: bad tiles")
    name = layout.name.removesuffix("_LEAD")
    need(name in ("BF16", "F16", "F32"), f"quantised: layout {layout.name}")
    across = ceil_div(cols, tile_cols)
    n_tiles = ceil_div(ceil_div(n, cols), tile_rows) * across
    need(n_tiles <= n, f"quantised: {n_tiles} tiles of {n} elements")
    values = decode_stream(*streams[0], 4 * n_values).view("<f4").astype(np.float64)
    scale_bits = np.zeros(n_tiles, np.uint32)
    for stream in streams[1:5]:
        scale_bits = scale_bits << np.uint32(8) | decode_stream(*stream, n_tiles)
    codes = decode_stream(*streams[5], n)
    need(codes.max() < n_values, "quantised: a code without a value")
    verbatim = scale_bits == 0xFFFFFFFF
    scales = np.where(verbatim, 0x3F800000, scale_bits).astype("<u4").view("<f4").astype(np.float64)
    for numbers, zeros in ((values, True), (scales, False)):
        need(bool(np.isfinite(numbers).all()), "quantised: no number")
        need(bool(np.all((np.abs(numbers) >= 2.0**-126) | (zeros & (numbers == 0)))), "quantised: a subnormal number")
    need(bool((scales > 0).all()), "quantised: a negative scale")
    sizes = np.abs(values[values != 0])
    if sizes.size and not verbatim.all():  # 18.3; the products of doubles are exact
        products = np.outer(scales[~verbatim][[scales[~verbatim].argmin(), scales[~verbatim].argmax()]], [sizes.min(), sizes.max()])
        need(products[0, 0] >= 2.0**-126 and products[1, 1] <= (2 - 2.0**-23) * 2.0**127, "quantised: a product out of range")
    row, col = np.divmod(np.arange(n), cols)
    tile = row // tile_rows * across + col // tile_cols
    single = (scales[tile] * values[codes]).astype("<f4")
    if name == "F32":
        elems: npt.NDArray[Any] = single.view("<u4").copy()
    elif name == "F16":
        with np.errstate(over="ignore"):
            elems = single.astype("<f2").view("<u2").copy()
    else:
        bits = single.view("<u4")
        elems = ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    lone = verbatim[tile]
    need(not codes[lone].any(), "quantised: a code in a verbatim tile")
    codec, kept = streams[6]
    need(codec in (0, 4) or codec not in (*CODECS, CONTEXT, CONDITIONAL), f"verbatim: codec {codec}")  # 18.2
    elems[lone] = decode_stream(codec, kept, int(lone.sum()) * layout.elem_bytes).view(elems.dtype)
    return elems.tobytes()


# -------------------------------------------------------------------------------------------------------------- Command line


# ------------------------------------------------------------------------------------------------- 19 Deltas of tensors in memory


def decode_delta(data: bytes, base: Mapping[str, bytes]) -> dict[str, Decoded]:
    """19 Deltas of tensors in memory: dtype, shape and bytes of each; ``base`` has the bytes of those that are there."""
    if bytes(take(data, 0, 4, "delta")) != b"\x89WPU":
        raise NotPackedError("not a delta")
    if uint(data, 4, 1, "delta") != 1:
        raise UnsupportedError("delta version")
    need(uint(data, 5, 3, "delta") == 0, "delta: reserved bytes")
    n_tensors, table_bytes, stored_bytes = struct.unpack("<III", take(data, 8, 12, "delta"))
    if table_bytes > 1 << 28:
        raise UnsupportedError("a table above the limit")
    stored, at = take(data, 20, stored_bytes, "delta: table"), 24 + stored_bytes
    need(crc32c(data[: at - 4]) == uint(data, at - 4, 4, "delta"), "delta: head CRC mismatch")
    table = bytes(stored) if stored_bytes == table_bytes else b"".join(zstd_parts(bytes(stored), table_bytes))
    entries: list[tuple[Any, ...]] = []
    tensors: dict[str, Decoded] = {}
    position = 0
    for number in range(n_tensors):  # 19.1
        storage, dtype_bytes, n_dims, reserved, name_bytes, base_crc, body_crc, body_of, body_bytes = struct.unpack(
            "<BBBBIIIIQ", take(table, position, 28, "delta: entry")
        )
        need(storage <= 3 and n_dims <= 64 and reserved == 0 and body_of <= number, "delta: a bad entry")
        rest = take(table, position + 28, dtype_bytes + 8 * n_dims + name_bytes, "delta: entry")
        position += 28 + len(rest)
        shape = struct.unpack_from(f"<{n_dims}Q", rest, dtype_bytes)
        try:
            dtype, name = bytes(rest[:dtype_bytes]).decode("ascii"), bytes(rest[dtype_bytes + 8 * n_dims :]).decode()
        except UnicodeDecodeError:
            raise CorruptError("delta: a name is damaged") from None
        n_bytes = tensor_bytes(dtype, shape)
        need(name not in tensors, f"delta: {name} twice")
        need(storage >= 2 or base_crc == 0, "delta: Base_CRC without a base")
        need({0: body_bytes == n_bytes, 3: body_bytes == 0}.get(storage, 0 < body_bytes <= n_bytes), "delta: a body of impossible length")
        fields = storage, dtype, shape, base_crc, body_crc, body_of, body_bytes
        if body_of < number:
            need(entries[body_of][0] == fields, "delta: the body of another entry")
            body = entries[body_of][1]
        else:
            body = take(data, at, body_bytes, "delta: body")
            at += body_bytes
        need(crc32c(body) == body_crc, "delta: CRC mismatch of a body")
        entries.append((fields, body))
        if storage >= 2 and (name not in base or len(base[name]) != n_bytes or crc32c(base[name]) != base_crc):
            raise BaseNotFoundError(f"delta: another {name}")
        tensors[name] = dtype, shape, _of_delta(storage, bytes(body), dtype, n_bytes, base.get(name, b""))
    need(position == len(table), "delta: bytes after the last entry")
    need(at == len(data), "delta: bytes after the last body")
    return tensors


def _of_delta(storage: int, body: bytes, dtype: str, n_bytes: int, base: bytes) -> bytes:
    """19.2 the bytes of one tensor."""
    if storage == 0:
        return body
    if storage == 1:
        return decode_record(body, n_bytes)
    if storage == 3:
        return base

    def elements(first: int, n: int) -> Words:
        """19.2."""
        size = DTYPE_BITS[dtype] // 8
        return np.frombuffer(base, f"<u{size}", n, first * size).astype(np.uint64)

    return b"".join(record_parts(body, n_bytes, (dtype, elements), may_repeat=False))


# ------------------------------------------------------------------------------------------------------------- docs/STORE.md


def decode_model(store: Path, name: str) -> dict[str, bytes]:
    """docs/STORE.md: the files of a model in a store that is a folder, by their paths."""
    manifests = sorted((store / "models" / name).glob("@" + "[0-9]" * 8 + ".json"))
    need(manifests, f"store: no model {name}")
    root = read_json(manifests[-1].read_bytes(), "manifest")
    need(root.get("version") == 1 and root.get("name") == name, "manifest: version or name")
    tensors: list[tuple[str, bytes]] = []  # dtype, bytes
    for key, dtype, shape, part_bytes, records, base, moves, number, begin in root["items"]:
        object_name = root["objects"][number]
        need(re.fullmatch("[0-9a-f]{64}", object_name), "manifest: name of an object")
        data = (store / "objects" / object_name[:2] / f"{object_name}.safetensors").read_bytes()
        need(base is None or base < len(tensors), "item: base")
        n_bytes = tensor_bytes(dtype, tuple(shape))
        tensors.append((dtype, _stored(data, begin, records, n_bytes, part_bytes, dtype, None if base is None else tensors[base], moves)))
        text = f"{dtype} {','.join(map(str, shape))}\n".encode()
        need(hashlib.sha256(text + tensors[-1][1]).hexdigest() == key, f"item {key}: SHA-256 mismatch")
    files = {}
    for path, n_bytes, sha256, _, _, parts_of_file in root["files"]:
        data = b"".join(tensors[part][1] if isinstance(part, int) else b"".join(zstd_parts(read_base64(part[1], "part"), part[0])) for part in parts_of_file)
        need(len(data) == n_bytes and hashlib.sha256(data).hexdigest() == sha256, f"{path}: length or SHA-256")
        files[path] = data
    return files


def _stored(data: bytes, begin: int, records: list[int], n_bytes: int, part_bytes: int, dtype: str, base: tuple[str, bytes] | None, moves: Any) -> bytes:
    """The tensor that an item is."""
    out = b""
    for record_bytes in records:
        record, first_byte = take(data, begin, record_bytes, "record"), len(out)
        part_base = None
        if base is not None:
            moved = read_moves(moves, n_bytes * 8 // DTYPE_BITS[dtype], len(base[1]) * 8 // DTYPE_BITS[base[0]])
            elements, shift = base_elements(Range(0, base[0], 0, len(base[1]), moved, dtype), [base[1]]), first_byte * 8 // DTYPE_BITS[dtype]
            part_base = dtype, lambda first, n, elements=elements, shift=shift: elements(shift + first, n)
        out += b"".join(record_parts(record, min(part_bytes, n_bytes - first_byte), part_base))
        begin += record_bytes
    need(len(out) == n_bytes, "item: parts")
    return out


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _mapped(path: Path) -> Buffer:
    with path.open("rb") as file:
        # An empty file cannot be mapped.
        data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""
    return memoryview(data)


def restore(packed: Path, out: Path, bases: Iterable[Path] = ()) -> int:
    """Write the source of ``packed`` to ``out``, which appears only once its SHA-256 matches; return its size."""
    data, shelf = _mapped(packed), Shelf(map(_mapped, bases))
    beside = Path(f"{out}.{os.getpid()}.tmp")
    size = 0
    try:
        with beside.open("xb") as file:
            for part in source_parts(data, 1 << 40, shelf):
                file.write(part)
                size += len(part)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
    return size


def main(argv: list[str] | None = None) -> int:
    """Run ``reference.py PACKED [--base FILE]... [-o OUT]``: 0 restored, 1 bad data, 2 bad call, 3 input or output failed."""
    parser = _Parser(prog="reference.py", description="Restore the source of a packed file (weightpack format 1.2).")
    parser.add_argument("packed", type=Path, metavar="PACKED")
    parser.add_argument("--base", type=Path, metavar="FILE", action="append", default=[], help="what PACKED is a difference from, plain or packed; repeatable")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="default: PACKED with .restored appended")
    args = parser.parse_args(argv)
    out: Path = args.out or Path(f"{args.packed}.restored")
    try:
        size = restore(args.packed, out, args.base)
    except FormatError as error:
        print(f"reference.py: {args.packed}: {error}", file=sys.stderr)
        return 1
    except BaseNotFoundError as error:
        print(f"reference.py: {args.packed}: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError) as error:
        print(f"reference.py: {str(error) or 'out of memory'}", file=sys.stderr)
        return 3
    print(f"{out}: {size} bytes, SHA-256 matches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
