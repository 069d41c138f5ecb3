# SPDX-License-Identifier: Apache-2.0
"""Is everything in a store what it says it is? Objects are hashed, each item is decoded and hashed, and manifests are compared with objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from weightpack.errors import ChecksumError, CorruptionError, FolderError, WeightpackError, located
from weightpack.format.store import MAX_CHAIN, Item, PlacedItem, StoreManifest, tensor_key
from weightpack.io.files import pieces, read_at
from weightpack.io.parallel import ordered_map
from weightpack.io.progress import Meter, Progress
from weightpack.store.index import MOST_LOOKUPS, read_object_header
from weightpack.store.restore import check_sha256, file_pieces
from weightpack.store.storage import ListedFile, Storage
from weightpack.store.tensors import ItemReader, PartCache, object_path

_READ_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at: counts of models, objects and tensors, and bytes of objects."""

    models: int
    objects: int
    tensors: int
    n_bytes: int


def verify_store(
    storage: Storage, manifests: Mapping[str, StoreManifest | WeightpackError], objects: Mapping[str, ListedFile], *, decode: bool, threads: int,
    progress: Progress | None,
) -> Verified:  # fmt: skip
    """Verify all objects, and that they hold what manifests say.

    Raises
    ------
    FolderError
        Something is damaged or missing; `problems` has all of it.
    """
    found: dict[str, dict[str, tuple[Item, int]]] = {}
    problems: list[WeightpackError] = []
    n_bytes = sum(file.n_bytes for file in objects.values())
    meter = Meter(progress, n_bytes * (1 + decode))
    for name, file in sorted(objects.items()):
        with _noted(problems):
            _check_object(storage, name, file.n_bytes)
            found[name] = {item.key: (item, begin) for item, begin in read_object_header(storage, name, file.n_bytes)[1]}
        meter.add(file.n_bytes)
    for manifest in manifests.values():
        if isinstance(manifest, WeightpackError):
            problems.append(manifest)
            continue
        for placed in manifest.items:
            there = found.get(placed.object, {}).get(placed.item.key)
            if there is None or (replace(there[0], name="", sketch=b""), there[1]) != (placed.item, placed.begin):
                lost = "is missing" if placed.object not in objects else "does not hold what the manifest says"
                problems.append(CorruptionError(f"the object {placed.object} {lost}", path=f"model {manifest.name}", tensor=placed.item.key))
    if decode:
        by_key: dict[str, list[PlacedItem]] = {}
        for name, items in found.items():
            for key, (item, begin) in items.items():
                by_key.setdefault(key, []).append(PlacedItem(item, name, begin))
        tasks = [_with_base(placed, by_key, iter(range(MOST_LOOKUPS))) or _baseless(placed) for alike in by_key.values() for placed in alike]

        def work(placed: PlacedItem | WeightpackError) -> WeightpackError | None:
            return placed if isinstance(placed, WeightpackError) else _problem_of(storage, placed)

        for task, problem in zip(tasks, ordered_map(work, tasks, threads, lambda task: _READ_BYTES), strict=True):
            if problem is not None:
                problems.append(problem)
            if isinstance(task, PlacedItem):
                meter.add(task.item.stored_bytes)
    if problems:
        raise FolderError(problems, len(objects) + len(manifests), path=storage.url)
    return Verified(len(manifests), len(objects), sum(map(len, found.values())), n_bytes)


def _check_object(storage: Storage, name: str, n_bytes: int) -> None:
    """Raise ChecksumError if an object is not that of its name."""
    digest = hashlib.sha256()
    for offset, n in pieces(n_bytes, _READ_BYTES):
        digest.update(storage.read(object_path(name), offset, offset + n))
    if digest.hexdigest() != name:
        raise ChecksumError("the object's SHA-256 is not its name: it is damaged", path=f"{storage.url}/{object_path(name)}")


def _with_base(
    placed: PlacedItem, by_key: Mapping[str, Sequence[PlacedItem]], left: Iterator[int], above: tuple[str, ...] = ()
) -> PlacedItem | None:  # fmt: skip
    """Return an item with what it needs, as `StoreIndex.find` does; None if that is not there."""
    item = placed.item
    if item.base is None:
        return placed
    if item.base in (*above, item.key) or len(above) > MAX_CHAIN or next(left, None) is None:
        return None
    bases = (_with_base(base, by_key, left, (*above, item.key)) for base in by_key.get(item.base, ()))
    base = next((base for base in bases if base is not None), None)
    return None if base is None else replace(placed, base=base)


def _baseless(placed: PlacedItem) -> WeightpackError:
    return CorruptionError(f"its base {placed.item.base} is missing, or needs it", path=object_path(placed.object), tensor=placed.item.key)


def _problem_of(storage: Storage, placed: PlacedItem) -> WeightpackError | None:
    """Decode an item, and return what is wrong with it."""
    item = placed.item
    try:
        with located(path=f"{storage.url}/{object_path(placed.object)}", tensor=item.key):
            reader, digest = ItemReader(storage, placed, PartCache()), tensor_key(item.dtype, item.shape)
            for offset, n in pieces(item.n_bytes, item.part_bytes):
                digest.update(read_at(reader, offset, n))
            if digest.hexdigest() != item.key:
                raise ChecksumError(f"the tensor's SHA-256 is {digest.hexdigest()}: it is another")
    except WeightpackError as error:
        return error
    return None


def verify_models(storage: Storage, manifests: Sequence[StoreManifest], *, threads: int, progress: Callable[[str, int, int], None] | None) -> None:
    """Restore all files of models, without writing them, and compare their SHA-256s. FolderError if any differs."""
    problems: list[WeightpackError] = []
    for manifest in manifests:
        meter = Meter(None if progress is None else lambda done, total: progress(manifest.name, done, total), manifest.n_bytes)  # noqa: B023
        for file in manifest.files:
            with _noted(problems), located(path=f"{manifest.name}/{file.path}"):
                digest = hashlib.sha256()
                for _, data in file_pieces(storage, manifest, file, threads):
                    digest.update(np.frombuffer(data, np.uint8))
                    meter.add(len(data))
                check_sha256(file, digest.hexdigest())
    if problems:
        raise FolderError(problems, sum(len(manifest.files) for manifest in manifests), path=storage.url)


@contextmanager
def _noted(problems: list[WeightpackError]) -> Iterator[None]:
    """Keep a problem, and go on."""
    try:
        yield
    except WeightpackError as error:
        problems.append(error)
