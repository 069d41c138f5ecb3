# SPDX-License-Identifier: Apache-2.0
"""A store, as programs use it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpack.errors import LimitError, LosslessError, OptionError, PathNotFoundError, WeightpackError
from weightpack.format.constants import MAX_HEADER_BYTES
from weightpack.format.store import PlacedItem, StoreManifest, name_problem
from weightpack.io.fetch import fetch_repo, is_repo_id
from weightpack.io.files import named_path
from weightpack.io.parallel import thread_count
from weightpack.io.progress import Meter
from weightpack.models.directory import Note
from weightpack.options import DEFAULT_LIMITS, Limits, PackOptions, load_profile
from weightpack.reading.tensors import SafeOpen, framework_named
from weightpack.store.add import Adder, ModelFolder, model_at, units
from weightpack.store.index import StoreIndex, listed_objects
from weightpack.store.leases import adding, refuse_lapsed
from weightpack.store.models import generations, make_store, manifest_path, no_model, parsed_manifest, read_manifest, remove_model, store_id
from weightpack.store.pack import NewItem, PackedUnit, SourceTensor, Unit, pack_unit
from weightpack.store.ray import pack_on_ray
from weightpack.store.relatives import choose_bases, named_models
from weightpack.store.restore import restore_model
from weightpack.store.rewrite import shorter, with_items, write_generation
from weightpack.store.serve import served
from weightpack.store.storage import open_storage
from weightpack.store.sweep import Collected, collect
from weightpack.store.tensors import FileReader, PartCache, joined_shards
from weightpack.store.usage import Branch, Usage, family_tree, usage
from weightpack.store.verify import Verified, verify_models, verify_store

if TYPE_CHECKING:
    from weightpack.models.jobs import FileProgress

PathLike = str | os.PathLike[str]
_SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Ref:
    """A model of a store.

    Parameters
    ----------
    name, commit
        Its name, and 40 hexadecimal digits that tell what is in it.
    source_bytes
        Bytes of its files.
    tensors, new_tensors, new_bytes
        Of the `add` that returned this: tensors in its files, those of them that the store had not, and bytes of objects that were written for them.
    left_out
        Of the same: what was not added, and why.
    """

    name: str
    commit: str
    source_bytes: int
    tensors: int = 0
    new_tensors: int = 0
    new_bytes: int = 0
    left_out: tuple[Note, ...] = ()

    def __str__(self) -> str:
        return self.name


class Store:
    """A store of models, in a folder or wherever fsspec writes to (docs/STORE.md).

    Parameters
    ----------
    url
        A path, or a URL such as `s3://bucket/prefix`.
    make
        Make the store; it must not be there.
    threads
        Default: the CPUs of this process. What is written does not depend on it.
    options
        How tensors are packed; default: the profile "fast".
    limits
        What a manifest may claim.
    ray
        The address of a Ray cluster whose workers pack what is new, or "local" for one of this machine. They must reach the store, and what is added, under
        the same names.

    Raises
    ------
    OptionError
        There is no store, or there is one already.
    """

    def __init__(
        self, url: PathLike, *, make: bool = False, threads: int | None = None, options: PackOptions | None = None, limits: Limits = DEFAULT_LIMITS,
        ray: str | None = None,
    ) -> None:  # fmt: skip
        self._storage = open_storage(url, make=make)
        self._threads, self._options, self._limits, self._ray = thread_count(threads), options or load_profile(), limits, ray
        if make:
            make_store(self._storage)
        self._id = store_id(self._storage)
        self.url = self._storage.url

    # ---- models

    def ls(self) -> list[Ref]:
        """Return the models, by name."""
        return [_ref(manifest) for manifest in self.manifests().values()]

    def manifests(self) -> dict[str, StoreManifest]:
        """Return the manifests of all models, by name."""
        return {name: parsed_manifest(self._storage, name, numbers[-1], self._limits) for name, numbers in generations(self._storage).items()}

    def manifest(self, ref: Ref | str) -> StoreManifest:
        """Return a model's manifest. OptionError if the store has no such model."""
        return read_manifest(self._storage, str(ref), self._limits)[0]

    def add(self, path: PathLike, name: str | None = None, *, base: str = "auto", progress: FileProgress | None = None) -> Ref:
        """Add a model: of its tensors, those that the store has not, each as the difference from one that is alike where that is smaller.

        An `add` that was killed left nothing but objects, which the same call finds.

        Parameters
        ----------
        path
            A file, a folder, or a repo id of a Hub.
        name
            `name` or `owner/name`; default: the repo id, or the name of the folder, or that of the file without its suffix.
        base
            "auto": what is alike is looked for; "none": nothing differs from anything; else the name of a model of the store, whose tensors of the same
            name come first.

        Raises
        ------
        OptionError
            There is nothing to add, or another model has the name.
        FormatError
            A file is damaged, or missing.
        LosslessError
            A file changed meanwhile.
        """
        folder, name = self._found(path, name)
        if base not in ("auto", "none"):
            self.manifest(base)  # must be there
        model = model_at(folder)
        bar = None if progress is None else lambda done, total: progress(name, done, total)
        with adding(self._storage) as lease, self._index() as index:
            added = Adder(index, self._choice(index, model, base), self._pack_units, self._threads).add(model, name, bar)
            self._commit(added.manifest, lease)
        ref = _ref(added.manifest)
        return Ref(ref.name, ref.commit, ref.source_bytes, added.n_tensors, added.n_new_tensors, added.new_bytes, model.left_out)

    def du(self) -> list[Usage]:
        """Return what each model costs, given the others, by name."""
        return usage(self.manifests())

    def log(self) -> list[Branch]:
        """Return the models as a tree: each after the one that it has most tensors of, or differs from most."""
        return family_tree(self.manifests())

    def stored_bytes(self) -> int:
        """Return how many bytes all objects have, those that no model needs among them."""
        return sum(file.n_bytes for file in self._storage.listed("objects").values())

    def verify(self, refs: Sequence[Ref | str] = (), *, decode: bool = True, progress: FileProgress | None = None) -> Verified:
        """Prove that all objects are whole, that each tensor decodes to what its key says, and that manifests name what is there.

        Parameters
        ----------
        refs
            Of these models the files, too, are restored, without being written, and their SHA-256s compared.
        decode
            False: tensors are not decoded; objects are proven by their SHA-256.

        Raises
        ------
        FolderError
            Something is damaged or missing; `problems` has all of it.
        """
        manifests: dict[str, StoreManifest | WeightpackError] = {}
        for name, numbers in generations(self._storage).items():
            try:
                manifests[name] = parsed_manifest(self._storage, name, numbers[-1], self._limits)
            except WeightpackError as error:
                manifests[name] = error
        objects = listed_objects(self._storage)
        bar = None if progress is None else lambda done, total: progress(self.url, done, total)
        verified = verify_store(self._storage, manifests, objects, decode=decode, threads=self._threads, progress=bar)
        verify_models(self._storage, [self.manifest(ref) for ref in refs], threads=self._threads, progress=progress)
        return verified

    def _found(self, path: PathLike, name: str | None) -> tuple[Path, str]:
        """Return the file or folder that is to be added, and its name."""
        text, here = os.fspath(path), named_path(path)
        if here.exists():
            chosen = name or (here.resolve().name if here.is_dir() else here.stem)
        elif is_repo_id(text):
            chosen, here = name or text, fetch_repo(text)
        else:
            raise PathNotFoundError("no such file or directory", path=text)
        problem = name_problem(chosen)
        if problem is not None:
            raise OptionError(f"{problem}: not {chosen!r}; name it with --name (name=)", path=text)
        return here, chosen

    @contextmanager
    def _index(self) -> Iterator[StoreIndex]:
        index = StoreIndex(self._storage, self._id)
        try:
            index.refresh()
            yield index
        except sqlite3.Error as error:
            raise OSError(f"{index.path}: {error}; remove this file, it is made anew") from error
        finally:
            index.close()

    def _choice(self, index: StoreIndex, model: ModelFolder, base: str) -> Callable[[Sequence[SourceTensor]], list[NewItem]]:
        def choose(tensors: Sequence[SourceTensor]) -> list[NewItem]:
            if base == "none":
                return [NewItem(source) for source in tensors]
            if not tensors:
                return []
            lineage = [base] if base != "auto" else named_models(model.lineage, index, self._manifest_if_there)
            return choose_bases(tensors, index, self._storage, lineage, self._manifest_if_there)

        return choose

    def _manifest_if_there(self, name: str) -> StoreManifest | None:
        try:
            return self.manifest(name)
        except WeightpackError:  # also one that is damaged: it serves nobody as a base
            return None

    def _pack_units(self, units: Sequence[Unit], tell: Callable[[int], None]) -> Iterator[PackedUnit]:
        if self._ray is not None:
            yield from pack_on_ray(self._ray, self._storage.url, self._options, units, tell)
            return
        for unit in units:
            yield pack_unit(unit, self._storage, self._options, threads=self._threads, progress=tell)

    def _commit(self, manifest: StoreManifest, lease: str) -> None:
        """Add a model, unless it is there."""
        name, text = manifest.name, manifest.to_bytes()
        if len(text) > MAX_HEADER_BYTES:
            raise LimitError(f"the model's manifest would have {len(text)} bytes, the limit is {MAX_HEADER_BYTES}", path=name)
        refuse_lapsed(self._storage, lease)
        if name not in generations(self._storage, name) and self._storage.put(manifest_path(name, 0), [text]):
            try:
                refuse_lapsed(self._storage, lease)  # between the two, a gc may have taken what the manifest names
            except LosslessError:
                remove_model(self._storage, name)
                raise
        elif self.manifest(name).commit != manifest.commit:
            raise OptionError(
                f"the store has another model {name!r}: add this one under another name (--name), or remove that one (`weightpack store rm`)", path=self.url
            )

    def rm(self, ref: Ref | str) -> None:
        """Remove a model. What it alone needed stays until `gc`. OptionError if the store has no such model."""
        if not remove_model(self._storage, str(ref)):
            raise no_model(self._storage, str(ref))

    def gc(self, *, dry_run: bool = False) -> Collected:
        """Remove what no model needs, such as what a killed `add` has left.

        Raises
        ------
        OptionError
            Somebody else is at work in the store. Nothing was removed.
        FormatError
            A manifest is damaged, so that it can't be told what is needed. Nothing was removed.
        """
        return collect(self._storage, self._limits, dry_run=dry_run)

    def rebase(self, refs: Sequence[Ref | str] = (), *, depth: int = 0, progress: FileProgress | None = None) -> int:
        """Store tensors anew of which more than `depth` others have to be decoded first, so that they are read faster; return how many.

        What they differed from stays until `gc`, and longer where others need it: the store grows.

        Parameters
        ----------
        refs
            Models; none: all.

        Raises
        ------
        OptionError
            The store has no such model, or somebody else rebases it.
        """
        n_tensors = 0
        with adding(self._storage) as lease:
            for name in [str(ref) for ref in refs] or list(generations(self._storage)):
                manifest, generation = read_manifest(self._storage, name, self._limits)
                new = shorter(self._storage, manifest, depth)
                meter = Meter(None if progress is None else lambda done, total: progress(name, done, total), sum(each.source.tensor.n_bytes for each in new))  # noqa: B023
                placed: dict[str, PlacedItem] = {}
                for packed in self._pack_units(units(name, new), meter.add):
                    bases = {each.base.item.key: each.base for each in new if each.base is not None}
                    placed |= {item.key: PlacedItem(item, packed.object, begin, bases.get(item.base or "")) for item, begin in packed.items}
                if placed:
                    refuse_lapsed(self._storage, lease)
                    write_generation(self._storage, with_items(manifest, lambda each: placed.get(each.item.key, each)), generation)  # noqa: B023
                n_tensors += len(placed)
        return n_tensors

    def export(self, folder: PathLike, refs: Sequence[Ref | str] = (), *, progress: FileProgress | None = None) -> list[Path]:
        """Restore models, all of the store if none is named, each into the folder of its name in `folder`; return these.

        One that is there is left as it is, so that an export that was interrupted goes on.
        """
        targets = []
        for name in [str(ref) for ref in refs] or list(generations(self._storage)):
            target = named_path(folder) / name
            targets.append(target if target.exists() else self.get(name, target, progress=progress))
        return targets

    def get(self, ref: Ref | str, target: PathLike, *, overwrite: bool = False, progress: FileProgress | None = None) -> Path:
        """Restore a model's files into a folder, byte for byte, with permissions and times.

        Raises
        ------
        OptionError
            The store has no such model, or the target exists.
        FormatError
            What holds it is damaged; no target is written.
        """
        manifest, folder = self.manifest(ref), named_path(target)
        bar = None if progress is None else lambda done, total: progress(manifest.name, done, total)
        restore_model(self._storage, manifest, folder, threads=self._threads, overwrite=overwrite, progress=bar)
        return folder

    def serve(
        self, host: str = "127.0.0.1", port: int = 0, *, report: Callable[[str], None] = lambda line: None
    ) -> AbstractContextManager[ThreadingHTTPServer]:  # fmt: skip
        """Return a server that answers as a Hub from which models can be read; it listens while the `with` block that it is for lasts, and answers while its
        `serve_forever` runs.

        Parameters
        ----------
        host, port
            Where to listen; 0: a port that is free, which the server's `server_address` says. Everybody who reaches it can read every model.
        report
            Is told what could not be read.
        """
        return served(self._storage, host, port, self._limits, report)

    def open(self, ref: Ref | str, file: str | None = None, framework: str = "numpy", device: str | int = "cpu") -> SafeOpen[Any]:
        """Open a model's safetensors file, or all of its shards as one, as `weightpack.safe_open` does: only what is asked for is fetched and decoded.

        Parameters
        ----------
        file
            Its path in the model. Default: `model.safetensors`; where there is none, all that are not in folders.
        framework, device
            As in `weightpack.safe_open`.

        Raises
        ------
        OptionError
            The store has no such model, or that has no such file.
        """
        manifest = self.manifest(ref)
        names = {each.path: each for each in manifest.files if each.path.endswith(".safetensors")}
        chosen = [file or _SINGLE] if file is not None or _SINGLE in names else sorted(name for name in names if "/" not in name)
        if not chosen or not names.keys() >= set(chosen):
            raise OptionError(f"the model has no safetensors file {file!r}, but {', '.join(sorted(names)) or 'none at all'}", path=manifest.name)
        made, cache = framework_named(framework, device), PartCache()
        files = [FileReader(self._storage, names[name], manifest.items, cache, self._threads) for name in chosen]
        return SafeOpen(files[0] if len(files) == 1 else joined_shards(files), made, threads=self._threads, limits=self._limits)


def _ref(manifest: StoreManifest) -> Ref:
    return Ref(manifest.name, manifest.commit, manifest.n_bytes)
