# SPDX-License-Identifier: Apache-2.0
"""What each model of a store costs, given the others; and which was made of which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weightpack.format.store import StoreManifest

_LEAST_SHARE = 0.02  # of a model's bytes have to be another's, or differences from them, for it to be its child


@dataclass(frozen=True, slots=True)
class Usage:
    """A model's bytes.

    Parameters
    ----------
    source_bytes
        Of its files.
    own_bytes
        Of stored tensors that no other model needs: what removing it sets free.
    shared_bytes
        Of stored tensors that others need, too.
    fair_bytes
        `own_bytes`, and of each shared tensor the part of one of those who need it: these add up to all that models need.
    """

    name: str
    source_bytes: int
    own_bytes: int
    shared_bytes: int
    fair_bytes: float


def usage(manifests: Mapping[str, StoreManifest]) -> list[Usage]:
    """Return what each model costs, by name."""
    needed_by = Counter(placed.item.key for manifest in manifests.values() for placed in manifest.items)
    rows = []
    for name, manifest in manifests.items():
        own = sum(placed.item.stored_bytes for placed in manifest.items if needed_by[placed.item.key] == 1)
        everything = sum(placed.item.stored_bytes for placed in manifest.items)
        fair = sum(placed.item.stored_bytes / needed_by[placed.item.key] for placed in manifest.items)
        rows.append(Usage(name, manifest.n_bytes, own, everything - own, fair))
    return rows


@dataclass(frozen=True, slots=True)
class Branch:
    """A model in the tree of its store: the model that it has most tensors of, or differs from most, how deep it stands below the first, and its usage."""

    name: str
    parent: str | None
    depth: int
    usage: Usage


def family_tree(manifests: Mapping[str, StoreManifest]) -> list[Branch]:
    """Return models, each after its parent and its parent's other children's families; who has none, and those of one parent, by when they were added."""
    order = sorted(manifests, key=lambda name: (manifests[name].added, name))
    parents = _parents(manifests, order)
    by_name = {row.name: row for row in usage(manifests)}

    def below(parent: str | None, depth: int) -> Iterator[Branch]:
        for name in order:
            if parents[name] == parent:
                yield Branch(name, parent, depth, by_name[name])
                yield from below(name, depth + 1)

    return list(below(None, 0))


def _parents(manifests: Mapping[str, StoreManifest], order: list[str]) -> dict[str, str | None]:
    """Return each model's parent: of those added before it, the one with most bytes that are the model's own, or that it differs from."""
    parents: dict[str, str | None] = {}
    first_with: dict[str, str] = {}  # key -> the first model that has the tensor in its files
    for name in order:
        votes: Counter[str] = Counter()
        own = manifests[name].own_items
        for placed in own.values():
            key = placed.item.key if placed.item.key in first_with else placed.item.base
            if key in first_with:
                votes[first_with[key]] += placed.item.n_bytes
        parent, n_bytes = votes.most_common(1)[0] if votes else (None, 0)
        parents[name] = parent if n_bytes > _LEAST_SHARE * manifests[name].n_bytes else None
        for key in own:
            first_with.setdefault(key, name)
    return parents
