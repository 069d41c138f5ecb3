# SPDX-License-Identifier: Apache-2.0
"""Files of a model -> objects and a manifest. The manifest comes last: before it nothing is added, and what was written by then is found again."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from weightpack.errors import LosslessError, OptionError, located
from weightpack.format.constants import INDEX_KEY
from weightpack.format.index import Gap
from weightpack.format.layouts import DTYPE_BITS
from weightpack.format.store import ModelFile, PlacedItem, StoreManifest, numbered_items
from weightpack.io.files import LocalFile, read_at, sha256_of
from weightpack.io.parallel import ordered_map
from weightpack.io.progress import Meter, Progress
from weightpack.models.directory import Note, model_files
from weightpack.models.plan import refuse_names, refuse_packed
from weightpack.sources import refuse_pointer, segment
from weightpack.sources.model import Tensor
from weightpack.store.index import StoreIndex
from weightpack.store.pack import NewItem, PackedUnit, SourceTensor, Unit, describe_tensor
from weightpack.store.relatives import lineage_of

ChooseBases = Callable[[Sequence[SourceTensor]], list[NewItem]]
PackUnits = Callable[[Sequence[Unit], Callable[[int], None]], Iterator[PackedUnit]]
"""Packs units, on this machine or on others, in their order; tells how many bytes of tensors are done."""

_HANDED_OVER = 1 << 21  # to a thread at a time: one tensor, or a whole file
UNIT_BYTES = 96 << 20  # of tensors: two thirds of it, or less, become an object
_MOST_ITEMS = 10_000  # of an object: its header is read before any of them
_INLINE_BYTES = 1 << 20  # what lies between tensors, and is not longer, stands in the manifest
_TINY_BYTES = 256  # so do tensors that are not longer: an item of their own would take more


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What is to be added: files by their names in the model, folders that hold none, what is left out, and of what the model says that it was made."""

    files: dict[str, Path]
    folders: tuple[str, ...] = ()
    left_out: tuple[Note, ...] = ()
    lineage: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Added:
    """What adding a model did: the manifest that is to be written, and how many tensors, and bytes of objects, were new."""

    manifest: StoreManifest
    n_tensors: int
    n_new_tensors: int
    new_bytes: int


@dataclass(slots=True)
class _File:
    """A file that is added: `parts`, tensors and what stands in the manifest itself, tile it. `described` is of its tensors, in their order."""

    name: str
    path: Path
    state: os.stat_result
    parts: list[Tensor | Gap]
    sha256: str = ""
    described: list[SourceTensor] = field(default_factory=list)

    @property
    def tensors(self) -> list[Tensor]:
        return [part for part in self.parts if isinstance(part, Tensor)]


def model_at(path: Path) -> ModelFolder:
    """List what is to be added of a file or of a folder.

    Raises
    ------
    OptionError
        It is packed, or holds no weights.
    FormatError
        A shard is missing.
    """
    if not path.is_dir():
        return ModelFolder({path.name: path})
    refuse_packed(path)
    listed = model_files(path)
    refuse_names(path, (*listed.files, *listed.empty_folders))
    files = {str(name): path / name for name in listed.files}
    return ModelFolder(files, tuple(map(str, listed.empty_folders)), listed.left_out, lineage_of(path))


class Adder:
    """Adds models to a store.

    Parameters
    ----------
    bases
        Chooses what new tensors are to differ from.
    pack_units
        Packs what is new.
    """

    def __init__(self, index: StoreIndex, bases: ChooseBases, pack_units: PackUnits, threads: int) -> None:
        self._index, self._bases, self._pack_units, self._threads = index, bases, pack_units, threads

    def add(self, model: ModelFolder, name: str, progress: Progress | None) -> Added:
        """Write the objects that a model needs and the store has not, and return what adds it: the manifest.

        Raises
        ------
        OptionError, FormatError
            A file is packed, or damaged.
        LosslessError
            A file changed meanwhile.
        """
        meter = Meter(progress, 2 * sum(path.stat().st_size for path in model.files.values()))
        files: list[_File] = []
        n_new = new_bytes = 0
        for batch in _batches(model.files):
            some = [_opened(file_name, path) for file_name, path in batch]
            files += some
            self._describe(some, meter)
            new = {source.key: source for file in some for source in file.described}
            new = {key: source for key, source in new.items() if self._index.find(key) is None}
            meter.add(sum(file.state.st_size for file in some) - sum(source.tensor.n_bytes for source in new.values()))
            n_new += len(new)
            for packed in self._pack_units(units(name, self._bases(list(new.values()))), meter.add):
                self._index.insert(packed.object, packed.n_bytes, packed.model, packed.items)
                new_bytes += packed.n_bytes
        for file in files:
            state = file.path.stat()
            if (state.st_size, state.st_mtime_ns) != (file.state.st_size, file.state.st_mtime_ns):
                raise LosslessError("the file changed while it was added: add it again", path=str(file.path))
        return Added(self._manifest(model, name, files), sum(len(file.described) for file in files), n_new, new_bytes)

    def _describe(self, files: Sequence[_File], meter: Meter) -> None:
        """Read files once: SHA-256s of whole files and of tensors, and sketches."""
        with ExitStack() as stack:
            opened = [stack.enter_context(LocalFile(file.path)) for file in files]

            def work(task: tuple[int, Tensor | None]) -> SourceTensor | str:
                number, tensor = task
                with located(path=str(files[number].path)):
                    return sha256_of(opened[number]) if tensor is None else describe_tensor(opened[number], tensor)

            tasks = [(number, part) for number, file in enumerate(files) for part in (None, *file.tensors)]
            for (number, _), result in zip(tasks, ordered_map(work, tasks, self._threads, lambda task: _HANDED_OVER), strict=True):
                file = files[number]
                if isinstance(result, str):
                    file.sha256 = result
                    meter.add(file.state.st_size - sum(each.n_bytes for each in file.tensors))
                else:
                    file.described.append(result)
                    meter.add(result.tensor.n_bytes)

    def _manifest(self, model: ModelFolder, name: str, files: Sequence[_File]) -> StoreManifest:
        placed = {source.key: self._placed(source.key) for file in files for source in file.described}
        items = numbered_items(placed.values())
        number_of = {each.item.key: number for number, each in enumerate(items)}
        described = []
        for file in sorted(files, key=lambda file: file.name):
            keys = iter(file.described)
            parts = tuple(part if isinstance(part, Gap) else number_of[next(keys).key] for part in file.parts)
            mode = stat.S_IMODE(file.state.st_mode) & 0o777
            described.append(ModelFile(file.name, file.state.st_size, file.sha256, mode, file.state.st_mtime_ns, parts))
        added = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        return StoreManifest(name, added, model.lineage, items, tuple(described), model.folders)

    def _placed(self, key: str) -> PlacedItem:
        placed = self._index.find(key)
        assert placed is not None  # it was there, or was written
        return placed


def _batches(files: dict[str, Path]) -> Iterator[list[tuple[str, Path]]]:
    """Put small files together, weights first."""
    batch, n_bytes = [], 0
    for name, path in sorted(files.items(), key=lambda file: (not file[0].endswith(".safetensors"), file[0])):
        batch.append((name, path))
        n_bytes += path.stat().st_size
        if n_bytes >= UNIT_BYTES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def _opened(name: str, path: Path) -> _File:
    """Find what a file is made of."""
    with LocalFile(path) as file, located(path=str(path)):
        refuse_pointer(file)
        segments = segment(file)
        if segments.metadata is not None and INDEX_KEY in segments.metadata:
            raise OptionError("the file is packed: unpack it first, so that what it shares with others can be found")
        ranges: list[tuple[int, int, Tensor | None]] = [(tensor.offset, tensor.n_bytes, tensor) for tensor in segments.tensors if tensor.n_bytes]
        ranges += [(offset, n, None) for offset, n in segments.gaps]
        parts: list[Tensor | Gap] = []
        for inline, group in groupby(sorted(ranges, key=itemgetter(0)), key=lambda part: part[2] is None or part[1] <= _TINY_BYTES):
            found = list(group)
            begin, n_bytes = found[0][0], sum(n for _, n, _ in found)
            if not inline:
                parts += [_typed(tensor) for _, _, tensor in found if tensor is not None]
            elif n_bytes <= (_INLINE_BYTES if segments.tensors else _TINY_BYTES):
                parts.append(Gap.of(begin, bytes(read_at(file, begin, n_bytes))))
            else:
                parts.append(Tensor("", "U8", (n_bytes,), begin, n_bytes))
        return _File(name, path, os.stat(path), parts)


def _typed(tensor: Tensor) -> Tensor:
    """Take a tensor of a dtype that nobody knows for a row of bytes."""
    return tensor if tensor.dtype in DTYPE_BITS else replace(tensor, dtype="U8", shape=(tensor.n_bytes,))


def units(model: str, new: Sequence[NewItem]) -> list[Unit]:
    """Put tensors together, in their order, until they are an object."""
    found: list[Unit] = []
    taken: list[NewItem] = []
    n_bytes = 0
    for item in new:
        taken.append(item)
        n_bytes += item.source.tensor.n_bytes
        if n_bytes >= UNIT_BYTES or len(taken) >= _MOST_ITEMS:
            found.append(Unit(model, tuple(taken)))
            taken, n_bytes = [], 0
    return [*found, Unit(model, tuple(taken))] if taken else found
