# SPDX-License-Identifier: Apache-2.0
"""Which stored tensor a new one is to differ from: one that its model's lineage names, or one that is alike, as sketches say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from weightpack.errors import WeightpackError
from weightpack.format.store import PlacedItem, StoreManifest
from weightpack.io.files import LocalFile
from weightpack.models.directory import small_file
from weightpack.reading.convert import converts
from weightpack.sources import segment
from weightpack.sources.model import Tensor
from weightpack.store.index import StoreIndex
from weightpack.store.pack import NewItem, SourceTensor
from weightpack.store.sketch import distance, related
from weightpack.store.storage import Storage
from weightpack.store.tensors import FileReader, ItemReader, PartCache
from weightpack.writing.match import range_for, usable

ManifestOf = Callable[[str], StoreManifest | None]

MAX_DEPTH = 2
"""How many items a writer lets a reader decode before the one that is wanted: a tensor is three requests at most."""

_NAMED_MODELS = 3  # whose tensors of the same name are looked at


def lineage_of(folder: Path) -> tuple[str, ...]:
    """Return the names that a model's card and configurations give of models that it was made from."""
    named: list[object] = []
    with suppress(OSError, WeightpackError, ValueError, RecursionError):
        from huggingface_hub.repocard import metadata_load

        small_file(folder / "README.md")  # refuses what is no small file
        base = (metadata_load(folder / "README.md") or {}).get("base_model")
        named += base if isinstance(base, list) else [base]
    for file, key in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        with suppress(OSError, WeightpackError, ValueError, RecursionError, AttributeError):
            named.append(json.loads(small_file(folder / file)).get(key))
    return tuple(dict.fromkeys(name for name in named if isinstance(name, str) and name))


def named_models(lineage: Iterable[str], index: StoreIndex, manifest_of: ManifestOf) -> list[str]:
    """Return which models of a store a lineage names: by their whole names, or by the last part where one alone has it."""
    found = []
    for wanted in lineage:
        tail = wanted.rstrip("/").rsplit("/")[-1]
        alike = [name for name in index.models() if name.rsplit("/")[-1] == tail]
        if manifest_of(wanted) is not None:
            found.append(wanted)
        elif len(alike) == 1:
            found += alike
    return list(dict.fromkeys(found))


def tensors_of(storage: Storage, manifest: StoreManifest) -> dict[str, PlacedItem]:
    """Return a model's tensors by name, of all its files; of two of one name, the first."""
    found: dict[str, PlacedItem] = {}
    for file in manifest.files:
        begins, position = {}, 0
        for part in file.parts:
            if isinstance(part, int):
                begins[position] = manifest.items[part]
                position += manifest.items[part].item.n_bytes
            else:
                position += part.n_bytes
        if len(begins) < 2 and not file.path.endswith(".safetensors"):
            continue
        with suppress(WeightpackError):  # whoever reads the file is told
            for tensor in segment(FileReader(storage, file, manifest.items, PartCache())).tensors:
                if tensor.offset in begins:
                    found.setdefault(tensor.name, begins[tensor.offset])
    return found


def choose_bases(tensors: Sequence[SourceTensor], index: StoreIndex, storage: Storage, lineage: Sequence[str], manifest_of: ManifestOf) -> list[NewItem]:
    """Choose for each tensor what it is to differ from, if the store has anything that is alike.

    Parameters
    ----------
    lineage
        Models of the store whose tensors of the same name come first.
    manifest_of
        Returns the manifest of a model; None if the store has it not.
    """
    alike = {source.key: _alike(source, index) for source in tensors}
    votes: Counter[str] = Counter()
    for source in tensors:
        for _, model, _ in alike[source.key][:1]:
            votes[model] += source.tensor.n_bytes
    models = list(dict.fromkeys((*lineage, *(name for name, _ in votes.most_common(_NAMED_MODELS)))))[:_NAMED_MODELS]
    by_name = [tensors_of(storage, manifest) for manifest in map(manifest_of, models) if manifest is not None]
    cache = PartCache()
    chosen = []
    for source in tensors:
        base = _base(source, index, alike[source.key], [named[source.tensor.name] for named in by_name if source.tensor.name in named])
        moves = None
        if base is not None and base.item.shape != source.tensor.shape:
            with LocalFile(source.path) as file:
                served = range_for(file, source.tensor, ItemReader(storage, base, cache), _as_tensor(base))
            base, moves = (base, served.moves) if served is not None else (None, None)
        chosen.append(NewItem(source, base, moves))
    return chosen


def _alike(source: SourceTensor, index: StoreIndex) -> list[tuple[str, str, bytes]]:
    """Return (key, model, sketch) of items that are near a tensor, the nearest first."""
    if not source.sketch:
        return []
    candidates = index.relatives(source.sketch, source.tensor.dtype, source.tensor.shape)
    near = [candidate for candidate in candidates if candidate[0] != source.key and related(source.sketch, candidate[2])]  # another adder may have it by now
    return sorted(near, key=lambda candidate: (distance(source.sketch, candidate[2]), candidate[0]))


def _base(source: SourceTensor, index: StoreIndex, alike: Sequence[tuple[str, str, bytes]], named: Sequence[PlacedItem]) -> PlacedItem | None:
    """Return the nearest item that may serve a tensor, whose chain is not too long; else one that has its name."""
    if not usable(source.tensor):
        return None
    candidates = [index.find(key) for key, _, _ in alike]
    for candidate in (*candidates, *named):
        base = candidate
        while base is not None and base.depth >= MAX_DEPTH:  # what it differs from is alike, too
            base = base.base
        if base is not None and _fits(source.tensor, _as_tensor(base)):
            return base
    return None


def _fits(tensor: Tensor, other: Tensor) -> bool:
    """May one serve the other: of a dtype that converts, with the same rows, if not as many?"""
    return converts(other.dtype, tensor.dtype) and len(tensor.shape) == len(other.shape) and tensor.shape[1:] == other.shape[1:]


def _as_tensor(placed: PlacedItem) -> Tensor:
    return Tensor(placed.item.key, placed.item.dtype, placed.item.shape, 0, placed.item.n_bytes)
