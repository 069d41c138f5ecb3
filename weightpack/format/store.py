# SPDX-License-Identifier: Apache-2.0
"""A store's own files (docs/STORE.md): objects, which hold tensors and are safetensors files, and manifests, which say of what tensors the files of a model are
made."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weightpack.errors import ChecksumError, CorruptionError, LimitError, NotPackedError, UnsupportedError, located
from weightpack.format.index import Gap
from weightpack.format.layouts import DTYPE_BITS, tensor_bytes
from weightpack.format.manifest import Manifest as DirectoryManifest
from weightpack.format.manifest import ManifestFile, check_names
from weightpack.format.safetensors import MAX_DIMS, Entry, build_header, check_tiles, from_base64, is_count, parse_header, parse_json

VERSION = 1
PART_BYTES = 16 << 20
MAX_PART_BYTES = 64 << 20
MAX_CHAIN = 64  # of items that have to be decoded one from the other: more than any writer makes
OBJECT_KEY, OBJECT_CRC_KEY = "weightpack.store", "weightpack.store.crc32c"
_ALIGN = 64
_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
_SKETCH_BYTES = 256

Moves = tuple[tuple[int, int, int], ...]


def name_problem(name: str) -> str | None:
    """Say why a model can't have a name; None if it can. Names are those of repos on the Hub: `name` or `owner/name`."""
    if _NAME.fullmatch(name) is None or ".." in name or "--" in name or name.endswith((".", "-", ".git")) or "./" in name or "-/" in name:
        return "a model's name is `name` or `owner/name`, of letters, digits, `_`, `-` and `.`, without `..` or `--`, as repos on the Hub have them"
    return None


def tensor_key(dtype: str, shape: Sequence[int]) -> Any:
    """Return the hash of a tensor's key, to which its bytes are to be added: SHA-256 of dtype and shape, a line end, and the bytes."""
    return hashlib.sha256(f"{dtype} {','.join(map(str, shape))}\n".encode())


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor as an object holds it: a record (FORMAT section 6) for each part of it, one after the other.

    Parameters
    ----------
    key
        See `tensor_key`.
    part_bytes
        Decoded length of every part but the last.
    records
        Lengths of the records.
    base, moves
        The key of the tensor that chunks may be differences from, and which of its elements serve which (FORMAT 15.2).
    name
        What the tensor was called in the model that it came with; for those who look for a base.
    sketch
        Samples of it, for the same; empty if it has none.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    part_bytes: int
    records: tuple[int, ...]
    base: str | None = None
    moves: Moves | None = None
    name: str = ""
    sketch: bytes = b""

    @property
    def n_bytes(self) -> int:
        """Decoded length."""
        return tensor_bytes(self.dtype, self.shape) or 0

    @property
    def stored_bytes(self) -> int:
        """Length in the object."""
        return sum(self.records)

    @property
    def description(self) -> list[object]:
        """What JSON says of it, but for key, base, name and sketch."""
        return [self.dtype, list(self.shape), self.part_bytes, list(self.records)]


@dataclass(frozen=True, slots=True)
class PlacedItem:
    """An item, where it stands, and the item that it is a difference from."""

    item: Item
    object: str
    begin: int
    base: PlacedItem | None = None

    @property
    def depth(self) -> int:
        """How many items have to be decoded before this one."""
        return 0 if self.base is None else 1 + self.base.depth

    @property
    def chain(self) -> list[PlacedItem]:
        """Return it, and what it needs."""
        return [self] if self.base is None else [self, *self.base.chain]


def numbered_items(wanted: Iterable[PlacedItem]) -> tuple[PlacedItem, ...]:
    """Return items and those that they need, each once, and after what it needs."""
    found: dict[str, PlacedItem] = {}
    for placed in wanted:
        for each in reversed(placed.chain):
            found.setdefault(each.item.key, each)
    return tuple(found.values())


# ---- objects


def object_header(items: Sequence[Item], model: str, crc32c: Any) -> bytes:
    """Serialise what stands before an object's items, which are given in the order in which they stand. `model`: with which they came.

    Parameters
    ----------
    crc32c
        Function that returns the CRC-32C of bytes.
    """
    entries, position = [], 0
    for item in items:
        entries.append(Entry(item.key, "U8", (item.stored_bytes,), position, position + item.stored_bytes))
        position += item.stored_bytes
    described = {
        item.key: [*item.description, item.base, _moves_json(item.moves), item.name, base64.b64encode(item.sketch).decode()] for item in items
    }  # fmt: skip
    table = json.dumps({"version": VERSION, "model": model, "items": described}, separators=(",", ":"))
    header = build_header({OBJECT_KEY: table, OBJECT_CRC_KEY: f"{crc32c(table.encode()):08x}"}, entries)
    header += b" " * (-(8 + len(header)) % _ALIGN)
    return len(header).to_bytes(8, "little") + header


def parse_object_header(text: bytes, object_bytes: int, crc32c: Any, max_memory: int = 1 << 30) -> tuple[str, list[tuple[Item, int]]]:
    """Parse an object's header, without its first 8 bytes; return the model that its items came with, and each item with the place where it begins.

    Raises
    ------
    FormatError, LimitError
    """
    header = parse_header(text, object_bytes - 8 - len(text), max_memory=max_memory)
    check_tiles(header, object_bytes - header.data_begin)
    table = (header.metadata or {}).get(OBJECT_KEY)
    if table is None:
        raise NotPackedError("not an object of a store: it has no table")
    encoded = table.encode("utf-8", "surrogatepass")
    if (header.metadata or {}).get(OBJECT_CRC_KEY) != f"{crc32c(encoded):08x}":
        raise ChecksumError("the object's table does not match its checksum")
    root = _versioned(encoded, "object", max_memory)
    model, described = root.get("model"), root.get("items")
    if not isinstance(model, str) or not isinstance(described, dict) or described.keys() != header.entries.keys():
        raise CorruptionError("the object's table does not name the object's items")
    items = []
    for key, fields in described.items():
        if not isinstance(fields, list) or len(fields) != 8 or not isinstance(fields[6], str):
            raise CorruptionError("an entry of the object's table is damaged", tensor=key)
        base = fields[4]
        if base is not None and not _is_key(base):
            raise CorruptionError("the item's base is no key", tensor=key)
        item = _item(key, fields[:4], base, fields[5], fields[6], _sketch(fields[7], key))
        entry = header.entries[key]
        if item.stored_bytes != entry.end - entry.begin:
            raise CorruptionError("the item's records are not as long as its entry", tensor=key)
        items.append((item, header.data_begin + entry.begin))
    return model, items


def _item(key: str, fields: list[Any], base: str | None, moves: object, name: str = "", sketch: bytes = b"") -> Item:
    """Check what JSON says of an item."""
    if not _is_key(key):
        raise CorruptionError(f"no key of a tensor: {key!r}")
    dtype, shape, part_bytes, records = fields
    if dtype not in DTYPE_BITS:
        raise UnsupportedError(f"unknown dtype {dtype!r}", tensor=key)
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMS and all(map(is_count, shape))):
        raise CorruptionError("the item's shape is not a list of sizes", tensor=key)
    n_bytes = tensor_bytes(dtype, tuple(shape))
    if not n_bytes or not is_count(n_bytes):
        raise CorruptionError(f"{dtype} of shape {shape} is no count of bytes that an item may have", tensor=key)
    if not (is_count(part_bytes) and 0 < part_bytes <= MAX_PART_BYTES):
        raise CorruptionError("the item's parts are too long", tensor=key)
    if not (isinstance(records, list) and len(records) == -(-n_bytes // part_bytes) and all(is_count(n) and n > 0 for n in records)):
        raise CorruptionError("the item's records are not those of its parts", tensor=key)
    if moves is not None and base is None:
        raise CorruptionError("an item without a base has moves", tensor=key)
    return Item(key, dtype, tuple(shape), part_bytes, tuple(records), base, _moves(moves, key), name, sketch)


def _moves(moves: object, key: str) -> Moves | None:
    """Check that moves are triples of counts; whether they fit the base, whoever reads it checks."""
    if moves is None:
        return None
    if not isinstance(moves, list) or not all(isinstance(move, list) and len(move) == 3 and all(map(is_count, move)) for move in moves):
        raise CorruptionError("the item's moves are damaged", tensor=key)
    return tuple((to, from_, n) for to, from_, n in moves)


def _moves_json(moves: Moves | None) -> list[list[int]] | None:
    return None if moves is None else [list(move) for move in moves]


def _sketch(text: object, key: str) -> bytes:
    with located(tensor=key):
        sketch = from_base64(text, "the item's sketch")
        if len(sketch) not in (0, _SKETCH_BYTES):
            raise CorruptionError("the item's sketch is damaged")
    return sketch


def _is_key(value: object) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def _versioned(text: bytes, what: str, max_memory: int) -> dict[str, Any]:
    root = parse_json(text, max_memory)
    if not isinstance(root, dict) or not is_count(root.get("version")):
        raise CorruptionError(f"the {what} has no version")
    if root["version"] != VERSION:
        raise UnsupportedError(f"the {what} is of version {root['version']} of stores, this library reads {VERSION}: upgrade weightpack")
    return root


# ---- manifests


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model: its parts, each an item's number or bytes that stand in the manifest itself, make it up one after the other.

    `mode`: permissions; `mtime_ns`: when it was last changed, nanoseconds since 1970.
    """

    path: str
    n_bytes: int
    sha256: str
    mode: int
    mtime_ns: int
    parts: tuple[int | Gap, ...]


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """A model in a store.

    Parameters
    ----------
    name
        Its name.
    added
        When it was added: UTC, ISO 8601.
    lineage
        Names of models that it says it was made from.
    items
        Those of its files, and those that these need; what an item needs stands before it.
    files, folders
        Its files, and its empty folders.
    """

    name: str
    added: str
    lineage: tuple[str, ...]
    items: tuple[PlacedItem, ...]
    files: tuple[ModelFile, ...]
    folders: tuple[str, ...] = ()

    @property
    def commit(self) -> str:
        """40 hexadecimal digits that tell this model from any other, whatever it is stored as."""
        told = [[file.path, file.sha256, file.mode] for file in sorted(self.files, key=lambda file: file.path)]
        return hashlib.sha256(json.dumps([told, sorted(self.folders)]).encode()).hexdigest()[:40]

    @property
    def n_bytes(self) -> int:
        """Bytes of its files."""
        return sum(file.n_bytes for file in self.files)

    @property
    def own_items(self) -> dict[str, PlacedItem]:
        """Return what its files are made of, by key, without what only serves as a base."""
        numbers = dict.fromkeys(part for file in self.files for part in file.parts if isinstance(part, int))
        return {self.items[number].item.key: self.items[number] for number in numbers}

    @property
    def objects(self) -> frozenset[str]:
        """Names of the objects that it needs."""
        return frozenset(placed.object for placed in self.items)

    def to_bytes(self) -> bytes:
        """Serialise; the same manifest gives the same bytes."""
        objects = sorted(self.objects)
        number_of_object = {name: i for i, name in enumerate(objects)}
        number_of_key = {placed.item.key: i for i, placed in enumerate(self.items)}
        items = []
        for placed in self.items:
            item = placed.item
            base = None if item.base is None else number_of_key[item.base]
            items.append([item.key, *item.description, base, _moves_json(item.moves), number_of_object[placed.object], placed.begin])
        files = [
            [
                file.path, file.n_bytes, file.sha256, file.mode, file.mtime_ns,
                [part if isinstance(part, int) else [part.n_bytes, base64.b64encode(part.frame).decode()] for part in file.parts],
            ]
            for file in self.files
        ]  # fmt: skip
        root = {
            "version": VERSION, "name": self.name, "added": self.added, "lineage": list(self.lineage), "objects": objects, "items": items, "files": files,
            "folders": list(self.folders),
        }  # fmt: skip
        return json.dumps(root, separators=(",", ":")).encode()


def parse_store_manifest(text: bytes, max_memory: int = 1 << 30, max_gap_bytes: int = 256 << 20) -> StoreManifest:
    """Parse and check a manifest.

    Raises
    ------
    FormatError, LimitError
    """
    root = _versioned(text, "manifest", max_memory)
    name, added, lineage, objects = (root.get(key) for key in ("name", "added", "lineage", "objects"))
    if not isinstance(name, str) or name_problem(name) is not None:
        raise CorruptionError(f"the manifest has a name that no model can have: {name!r}")
    if not isinstance(added, str) or not isinstance(lineage, list) or not all(isinstance(each, str) for each in lineage):
        raise CorruptionError("the manifest does not say when its model was added, or what it was made from")
    if not isinstance(objects, list) or not all(map(_is_key, objects)):
        raise CorruptionError("the manifest names an object that is none")
    items: list[PlacedItem] = []
    for fields in _list(root, "items"):
        items.append(_placed_item(fields, objects, items))
    if len({placed.item.key for placed in items}) != len(items):
        raise CorruptionError("the manifest has an item twice")
    files, gap_bytes = [], 0
    for fields in _list(root, "files"):
        files.append(_file(fields, items))
        gap_bytes += sum(part.n_bytes for part in files[-1].parts if isinstance(part, Gap))
        if gap_bytes > max_gap_bytes:
            raise LimitError(f"the manifest holds more than {max_gap_bytes} bytes of its files itself: raise Limits.max_gap_bytes if you trust the store")
    folders = tuple(_list(root, "folders"))
    if not all(isinstance(folder, str) for folder in folders) or len({file.path for file in files}) != len(files):
        raise CorruptionError("the manifest's folders are no names, or two files have one")
    check_names(DirectoryManifest({file.path: ManifestFile(file.n_bytes, file.sha256) for file in files}, folders))
    return StoreManifest(name, added, tuple(lineage), tuple(items), tuple(files), folders)


def _placed_item(fields: object, objects: list[str], before: list[PlacedItem]) -> PlacedItem:
    if not isinstance(fields, list) or len(fields) != 9 or not all(map(is_count, fields[7:])) or fields[7] >= len(objects):
        raise CorruptionError("an item of the manifest is damaged")
    key, *described, number, moves, object_number, begin = fields
    base = None
    if number is not None:
        if not is_count(number) or number >= len(before):
            raise CorruptionError("an item's base does not stand before it", tensor=str(key))
        base = before[number]
        if base.depth >= MAX_CHAIN:
            raise LimitError(f"more than {MAX_CHAIN} items would have to be decoded, one from the other", tensor=str(key))
    item = _item(key, described, None if base is None else base.item.key, moves)
    return PlacedItem(item, objects[object_number], begin, base)


def _file(fields: object, items: list[PlacedItem]) -> ModelFile:
    if not isinstance(fields, list) or len(fields) != 6 or not isinstance(fields[0], str) or not _is_key(fields[2]) or not isinstance(fields[5], list):
        raise CorruptionError("a file of the manifest is damaged")
    path, n_bytes, sha256, mode, mtime_ns, described = fields
    if not is_count(n_bytes) or not is_count(mode) or mode > 0o777 or type(mtime_ns) is not int or not -(1 << 63) <= mtime_ns < 1 << 63:
        raise CorruptionError(f"length, permissions or time of {path!r} are impossible")
    parts: list[int | Gap] = []
    position = 0
    for part in described:
        if is_count(part) and part < len(items):
            parts.append(part)
            position += items[part].item.n_bytes
        elif isinstance(part, list) and len(part) == 2 and is_count(part[0]) and part[0] > 0:
            parts.append(Gap(position, part[0], from_base64(part[1], f"a part of {path!r}")))
            position += part[0]
        else:
            raise CorruptionError(f"a part of {path!r} is damaged")
    if position != n_bytes:
        raise CorruptionError(f"the parts of {path!r} have {position} bytes, it has {n_bytes}")
    return ModelFile(path, n_bytes, sha256, mode, mtime_ns, tuple(parts))


def _list(root: dict[str, Any], key: str) -> Iterable[Any]:
    value = root.get(key)
    if not isinstance(value, list):
        raise CorruptionError(f"the manifest has no {key!r}")
    return value
