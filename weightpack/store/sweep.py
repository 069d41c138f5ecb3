# SPDX-License-Identifier: Apache-2.0
"""Removing from a store what no model needs."""

from __future__ import annotations

from dataclasses import dataclass

from weightpack.errors import CorruptionError
from weightpack.options import Limits
from weightpack.store.index import listed_objects
from weightpack.store.leases import collecting
from weightpack.store.models import generations, manifest_path, parsed_manifest
from weightpack.store.rewrite import Places, moved, repack, with_items, write_generation
from weightpack.store.storage import Storage
from weightpack.store.tensors import object_path


@dataclass(frozen=True, slots=True)
class Collected:
    """What `gc` removed, or would remove: a count of objects, and their bytes. `repacked`: objects that were half empty, and whose rest stands elsewhere now;
    the next `gc` removes them."""

    objects: int
    n_bytes: int
    repacked: int


def collect(storage: Storage, limits: Limits, *, dry_run: bool) -> Collected:
    """Remove manifests that newer ones replace, objects that no manifest names, and what killed writers have left; repack objects that are half empty.

    Raises
    ------
    OptionError
        Somebody else is at work in the store. Nothing was removed.
    FormatError, LimitError
        A manifest is damaged, so that it can't be told what is needed. Nothing was removed.
    """
    with collecting(storage):
        found = generations(storage)
        manifests = {model: parsed_manifest(storage, model, numbers[-1], limits) for model, numbers in found.items()}
        needed: dict[str, set[str]] = {}
        for placed in (placed for manifest in manifests.values() for placed in manifest.items):
            needed.setdefault(placed.object, set()).add(placed.item.key)
        objects = listed_objects(storage)
        if lost := needed.keys() - objects.keys():
            raise CorruptionError(f"{len(lost)} objects that models need are not there: `weightpack store verify` says which", path=storage.url)
        unneeded = {name: file.n_bytes for name, file in objects.items() if name not in needed}
        places: Places = {}
        if not dry_run:
            for model, numbers in found.items():
                for generation in numbers[:-1]:
                    storage.remove(manifest_path(model, generation))
            for name in unneeded:
                storage.remove(object_path(name))
            storage.clean()
            places = repack(storage, objects, needed)
            left = {name for name, _ in places}
            for model, manifest in manifests.items():
                if manifest.objects & left:
                    write_generation(storage, with_items(manifest, lambda placed: moved(placed, places)), found[model][-1])
        return Collected(len(unneeded), sum(unneeded.values()), len({name for name, _ in places}))
