# SPDX-License-Identifier: Apache-2.0
"""What a store's objects hold, in a database of this machine that is made of the objects' headers: which tensors are there, and which are alike.

It holds nothing that the store does not: without it, it is made anew. An object that has gone takes its rows with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from weightpack.errors import PathNotFoundError, TruncatedError, located
from weightpack.format.safetensors import header_bytes
from weightpack.format.store import MAX_CHAIN, Item, PlacedItem, parse_object_header
from weightpack.io.parallel import ordered_map
from weightpack.kernels import active
from weightpack.store.sketch import bands
from weightpack.store.storage import ListedFile, Storage
from weightpack.store.tensors import object_path

CACHE_VARIABLE = "WEIGHTPACK_CACHE"
_FIRST_BYTES = 1 << 16
_READERS, _HANDED_OVER = 8, 1 << 21  # threads, which wait for a storage more than they work
_MOST_RELATIVES = 64
MOST_LOOKUPS = 4096  # of items, to find one with all that it needs
_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (name TEXT PRIMARY KEY, n_bytes INTEGER NOT NULL, model TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (key TEXT, object TEXT, start INTEGER, described TEXT, sketch BLOB, PRIMARY KEY (key, object)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS models_of_objects ON objects (model);
CREATE INDEX IF NOT EXISTS items_of_objects ON items (object);
CREATE TABLE IF NOT EXISTS bands (hash INTEGER, key TEXT, object TEXT, PRIMARY KEY (hash, key, object)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS bands_of_objects ON bands (object);
PRAGMA user_version = 1;
"""


class StoreIndex:
    """Items by key, and relatives by sketch. For one thread."""

    def __init__(self, storage: Storage, store_id: str) -> None:
        self._storage = storage
        self.path = _cache_path(storage.url, store_id)
        self._database = _opened(self.path)

    def refresh(self) -> None:
        """Read the headers of objects that are new, and forget those that have gone."""
        listed = listed_objects(self._storage)
        known = dict(self._database.execute("SELECT name, n_bytes FROM objects"))
        with self._database:
            for name in known.keys() - listed.keys():
                self._forget(name)

        def header(name: str) -> tuple[str, list[tuple[Item, int]]] | None:
            with contextlib.suppress(PathNotFoundError):  # removed meanwhile
                return read_object_header(self._storage, name, listed[name].n_bytes)
            return None

        new = sorted(listed.keys() - known.keys())
        for name, described in zip(new, ordered_map(header, new, _READERS, lambda name: _HANDED_OVER), strict=True):
            if described is not None:
                self.insert(name, listed[name].n_bytes, *described)

    def insert(self, name: str, n_bytes: int, model: str, items: Iterable[tuple[Item, int]]) -> None:
        """Take in an object."""
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?)", (name, n_bytes, model))
            for item, begin in items:
                described = json.dumps([item.dtype, item.shape, item.part_bytes, item.records, item.base, item.moves, item.name])
                self._database.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", (item.key, name, begin, described, item.sketch))
                if item.sketch:
                    rows = [(band, item.key, name) for band in bands(item.sketch, item.dtype, item.shape)]
                    self._database.executemany("INSERT OR REPLACE INTO bands VALUES (?, ?, ?)", rows)

    def _forget(self, name: str) -> None:
        for table in ("items", "bands"):
            self._database.execute(f"DELETE FROM {table} WHERE object = ?", (name,))
        self._database.execute("DELETE FROM objects WHERE name = ?", (name,))

    def find(self, key: str, above: tuple[str, ...] = (), left: Iterator[int] | None = None) -> PlacedItem | None:
        """Return an item and what it needs; None if the store has it not, or not all of that.

        Parameters
        ----------
        above
            Keys that it may not need: of two that differ from each other, each was stored at least once without the other.
        left
            Of the lookups that are made at most: a bucket of objects made by hand may have as many ways as there are atoms.
        """
        left = iter(range(MOST_LOOKUPS)) if left is None else left
        if len(above) > MAX_CHAIN or next(left, None) is None:
            return None
        for name, begin, described, sketch in self._database.execute(
            "SELECT object, start, described, sketch FROM items WHERE key = ? ORDER BY object", (key,)
        ):
            item = _item(key, described, sketch)
            if item.base is None:
                return PlacedItem(item, name, begin)
            if item.base not in (*above, key) and (base := self.find(item.base, (*above, key), left)) is not None:
                return PlacedItem(item, name, begin, base)
        return None

    def relatives(self, sketch: bytes, dtype: str, shape: tuple[int, ...]) -> list[tuple[str, str, bytes]]:
        """Return (key, model that it came with, sketch) of items that are alike, those with most in common first."""
        hashes = bands(sketch, dtype, shape)
        query = (
            f"SELECT bands.key, objects.model, items.sketch FROM bands JOIN items USING (key, object) JOIN objects ON objects.name = bands.object"
            f" WHERE bands.hash IN ({','.join('?' * len(hashes))}) GROUP BY bands.key ORDER BY COUNT(DISTINCT bands.hash) DESC, bands.key LIMIT ?"
        )
        return list(self._database.execute(query, (*hashes, _MOST_RELATIVES)))

    def models(self) -> list[str]:
        """Return the models that the items came with."""
        return [str(name) for (name,) in self._database.execute("SELECT DISTINCT model FROM objects ORDER BY model")]

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def _item(key: str, described: str, sketch: bytes) -> Item:
    dtype, shape, part_bytes, records, base, moves, name = json.loads(described)
    return Item(key, dtype, tuple(shape), part_bytes, tuple(records), base, None if moves is None else tuple(map(tuple, moves)), name, sketch)


def listed_objects(storage: Storage) -> dict[str, ListedFile]:
    """Return all objects of a store by name."""
    return {Path(path).stem: file for path, file in storage.listed("objects").items() if path == object_path(Path(path).stem)}


def read_object_header(storage: Storage, name: str, n_bytes: int) -> tuple[str, list[tuple[Item, int]]]:
    """Read and check what an object says of itself: the model that its items came with, and the items with the places where they begin.

    Raises
    ------
    FormatError, LimitError
        The object is damaged.
    """
    path = object_path(name)
    with located(path=f"{storage.url}/{path}"):
        first = bytes(storage.read(path, 0, min(_FIRST_BYTES, n_bytes)))
        end = 8 + header_bytes(first[:8], n_bytes)
        text = first[8:end] if end <= len(first) else first[8:] + bytes(storage.read(path, len(first), end))
        if len(text) != end - 8:
            raise TruncatedError("the object ends inside its header")
        return parse_object_header(text, n_bytes, active().crc32c)


def _cache_path(url: str, store_id: str) -> str:
    """Return where the database of a store is."""
    folder = os.environ.get(CACHE_VARIABLE) or os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "weightpack")
    return os.path.join(folder, f"store-{hashlib.sha256(f'{store_id} {url}'.encode()).hexdigest()[:32]}.sqlite")


def _opened(path: str) -> sqlite3.Connection:
    """Open a database, or make it; in memory where none can be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return _connected(path)
    except (OSError, sqlite3.OperationalError):
        return _connected(":memory:")
    except sqlite3.DatabaseError:  # it is damaged, and holds nothing that the store has not
        for suffix in ("", "-wal", "-shm"):
            Path(path + suffix).unlink(missing_ok=True)
        return _connected(path)


def _connected(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    if path != ":memory:":
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
    database.executescript(_SCHEMA)
    return database
