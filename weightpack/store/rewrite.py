# SPDX-License-Identifier: Apache-2.0
"""Items that come to stand elsewhere, or as other differences: new objects, and a new generation of each manifest that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from weightpack.errors import OptionError
from weightpack.format.store import Item, PlacedItem, StoreManifest, numbered_items, object_header
from weightpack.kernels import active
from weightpack.sources.model import Tensor
from weightpack.store.index import read_object_header
from weightpack.store.models import manifest_path
from weightpack.store.pack import NewItem, describe_tensor
from weightpack.store.storage import ListedFile, Storage
from weightpack.store.tensors import ItemReader, PartCache, object_path

_OBJECT_BYTES = 64 << 20
Places = Mapping[tuple[str, str], tuple[str, int]]
"""(object, key) of an item -> the object where it stands now, and the place where it begins there."""


def with_items(manifest: StoreManifest, change: Callable[[PlacedItem], PlacedItem]) -> StoreManifest:
    """Return a manifest whose items are others, of the same tensors."""
    items = numbered_items(change(placed) for placed in manifest.own_items.values())
    number_of = {placed.item.key: number for number, placed in enumerate(items)}
    files = []
    for file in manifest.files:
        parts = tuple(number_of[manifest.items[part].item.key] if isinstance(part, int) else part for part in file.parts)
        files.append(replace(file, parts=parts))
    return replace(manifest, items=items, files=tuple(files))


def write_generation(storage: Storage, manifest: StoreManifest, generation: int) -> None:
    """Write the generation of a manifest that follows this one, and remove this one.

    Raises
    ------
    OptionError
        Somebody else wrote it meanwhile.
    """
    if not storage.put(manifest_path(manifest.name, generation + 1), [manifest.to_bytes()]):
        raise OptionError(f"somebody else changed how {manifest.name!r} is stored: run it again", path=storage.url)
    storage.remove(manifest_path(manifest.name, generation))


# ---- shorter chains


def shorter(storage: Storage, manifest: StoreManifest, depth: int) -> list[NewItem]:
    """Return the tensors of a model of which more than `depth` others have to be decoded, and what each is to differ from instead."""
    cache, found = PartCache(), []
    for placed in manifest.own_items.values():
        if placed.depth > depth:
            item, base = placed.item, placed.base
            moves = item.moves
            while base is not None and base.depth >= depth:  # its own base is alike, too, if no rows have moved
                base, moves = (None, None) if base.item.moves is not None or moves is not None else (base.base, None)
            tensor = Tensor(item.name, item.dtype, item.shape, 0, item.n_bytes)
            source = replace(describe_tensor(ItemReader(storage, placed, cache), tensor), stored=placed)
            found.append(NewItem(source, base, moves))
    return found


# ---- fuller objects


def repack(storage: Storage, objects: Mapping[str, ListedFile], needed: Mapping[str, set[str]]) -> dict[tuple[str, str], tuple[str, int]]:
    """Copy what is needed of objects that are half empty, or more, into new ones; return where it stands now.

    Parameters
    ----------
    needed
        Object -> keys of its items that a model needs.
    """
    places: dict[tuple[str, str], tuple[str, int]] = {}
    taken: list[tuple[str, Item, int]] = []
    for name, keys in sorted(needed.items()):
        _, items = read_object_header(storage, name, objects[name].n_bytes)
        live = [(name, item, begin) for item, begin in items if item.key in keys]
        if 2 * sum(item.stored_bytes for _, item, _ in live) > objects[name].n_bytes:
            continue
        taken += live
        if sum(item.stored_bytes for _, item, _ in taken) >= _OBJECT_BYTES:
            places |= _copied(storage, taken)
            taken = []
    return places | (_copied(storage, taken) if taken else {})


def _copied(storage: Storage, items: Sequence[tuple[str, Item, int]]) -> dict[tuple[str, str], tuple[str, int]]:
    """Write an object of copies of items, each once."""
    unique = {item.key: (name, item, begin) for name, item, begin in items}
    header = object_header([item for _, item, _ in unique.values()], "", active().crc32c)

    def written() -> Iterator[bytes]:
        yield header
        for name, item, begin in unique.values():
            yield bytes(storage.read(object_path(name), begin, begin + item.stored_bytes))

    digest = hashlib.sha256()
    for piece in written():
        digest.update(piece)
    name, position, begins = digest.hexdigest(), len(header), {}
    storage.put(object_path(name), written())
    for _, item, _ in unique.values():
        begins[item.key] = position
        position += item.stored_bytes
    return {(old, item.key): (name, begins[item.key]) for old, item, _ in items}


def moved(placed: PlacedItem, places: Places) -> PlacedItem:
    """Return an item, and what it needs, where they stand now."""
    name, begin = places.get((placed.object, placed.item.key), (placed.object, placed.begin))
    return PlacedItem(placed.item, name, begin, None if placed.base is None else moved(placed.base, places))
