# SPDX-License-Identifier: Apache-2.0
"""Removing from a store what no model needs."""

from __future__ import annotations

from dataclasses import dataclass

from weightpack.options import Limits
from weightpack.store.index import listed_objects
from weightpack.store.leases import collecting
from weightpack.store.models import generations, manifest_path, parsed_manifest
from weightpack.store.storage import Storage
from weightpack.store.tensors import object_path


@dataclass(frozen=True, slots=True)
class Collected:
    """What `gc` removed, or would remove: a count of objects, and their bytes."""

    objects: int
    n_bytes: int


def collect(storage: Storage, limits: Limits, *, dry_run: bool) -> Collected:
    """Remove manifests that newer ones replace, objects that no manifest names, and what killed writers have left.

    Raises
    ------
    OptionError
        Somebody else is at work in the store. Nothing was removed.
    FormatError, LimitError
        A manifest is damaged, so that it can't be told what is needed. Nothing was removed.
    """
    with collecting(storage):
        found = generations(storage)
        needed = {name for model, numbers in found.items() for name in parsed_manifest(storage, model, numbers[-1], limits).objects}
        unneeded = {name: file.n_bytes for name, file in listed_objects(storage).items() if name not in needed}
        if not dry_run:
            for model, numbers in found.items():
                for generation in numbers[:-1]:
                    storage.remove(manifest_path(model, generation))
            for name in unneeded:
                storage.remove(object_path(name))
            storage.clean()
        return Collected(len(unneeded), sum(unneeded.values()))
