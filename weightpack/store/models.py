# SPDX-License-Identifier: Apache-2.0
"""The models of a store: their manifests, each under `models/NAME/@GENERATION.json`. The highest generation is the model's; one that is written adds it."""

from __future__ import annotations

import contextlib
import json
import re
import secrets

from weightpack.errors import CorruptionError, OptionError, PathNotFoundError, located
from weightpack.format.constants import MAX_HEADER_BYTES
from weightpack.format.safetensors import is_count, parse_json
from weightpack.format.store import VERSION, StoreManifest, name_problem, parse_store_manifest
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.store.storage import Storage

CONFIG = "weightpack-store.json"
_MANIFEST = re.compile(r"models/(.+)/@(\d{8})\.json", re.ASCII)
_ID = re.compile(r"[0-9a-f]{32}")


def make_store(storage: Storage) -> None:
    """Make a store. OptionError if there is one already."""
    text = json.dumps({"version": VERSION, "id": secrets.token_hex(16)}).encode()
    if not storage.put(CONFIG, [text]):
        raise OptionError("there is a store already", path=storage.url)


def store_id(storage: Storage) -> str:
    """Return what tells a store from others.

    Raises
    ------
    OptionError
        There is no store.
    FormatError
        It is of a newer version, or damaged.
    """
    with located(path=f"{storage.url}/{CONFIG}"):
        try:
            root = parse_json(storage.get(CONFIG, MAX_HEADER_BYTES))
        except PathNotFoundError:
            raise OptionError(f"there is no store here: make one with `weightpack store init {storage.url}`", path=storage.url) from None
        if not isinstance(root, dict) or not is_count(root.get("version")) or not isinstance(root.get("id"), str) or not _ID.fullmatch(root["id"]):
            raise CorruptionError("not the description of a store")
        if root["version"] != VERSION:
            raise CorruptionError(f"a store of version {root['version']}: this library knows {VERSION}; upgrade weightpack")
        return str(root["id"])


def manifest_path(name: str, generation: int) -> str:
    """Return where a model's manifest is."""
    return f"models/{name}/@{generation:08}.json"


def generations(storage: Storage, name: str | None = None) -> dict[str, list[int]]:
    """Return the generations that there are, ascending, of one model or of all, by name."""
    found: dict[str, list[int]] = {}
    if name is not None and name_problem(name) is not None:
        return found
    for path in storage.listed("models" if name is None else f"models/{name}"):
        match = _MANIFEST.fullmatch(path)
        if match and name_problem(match[1]) is None and name in (None, match[1]):
            found.setdefault(match[1], []).append(int(match[2]))
    return {model: sorted(numbers) for model, numbers in sorted(found.items())}


def read_manifest(storage: Storage, name: str, limits: Limits = DEFAULT_LIMITS) -> tuple[StoreManifest, int]:
    """Return a model's manifest and its generation.

    Raises
    ------
    OptionError
        The store has no such model.
    FormatError, LimitError
        The manifest is damaged.
    """
    while True:
        generation = newest_generation(storage, name)
        with contextlib.suppress(PathNotFoundError):  # a newer one came meanwhile
            return parsed_manifest(storage, name, generation, limits), generation


def newest_generation(storage: Storage, name: str) -> int:
    """Return the generation that is a model's. OptionError if the store has no such model."""
    problem = name_problem(name)
    if problem is not None:
        raise OptionError(f"{problem}: {name!r}")
    numbers = generations(storage, name).get(name)
    if not numbers:
        raise no_model(storage, name)
    return numbers[-1]


def parsed_manifest(storage: Storage, name: str, generation: int, limits: Limits = DEFAULT_LIMITS) -> StoreManifest:
    """Read and check one generation of a manifest."""
    path = manifest_path(name, generation)
    with located(path=f"{storage.url}/{path}"):
        manifest = parse_store_manifest(storage.get(path, MAX_HEADER_BYTES), limits.max_json_memory, limits.max_gap_bytes)
        if manifest.name != name:
            raise CorruptionError(f"the manifest is that of {manifest.name!r}")
        return manifest


def no_model(storage: Storage, name: str) -> OptionError:
    """Return the error for a model that a store has not."""
    return OptionError(f"the store has no model {name!r}: `weightpack store ls` lists what it has", path=storage.url)


def remove_model(storage: Storage, name: str) -> bool:
    """Remove all generations of a model's manifest, the one that counts last: until then the model is there. False if there is none."""
    numbers = generations(storage, name).get(name, [])
    for generation in numbers:
        storage.remove(manifest_path(name, generation))
    return bool(numbers)
