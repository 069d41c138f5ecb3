# SPDX-License-Identifier: Apache-2.0
"""The files of packed sources by their own names, whatever stands for them: what `unpack` would write, without writing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from weightpack.api import unpacked_path
from weightpack.errors import FormatError, OptionError, PathNotFoundError
from weightpack.format.manifest import MANIFEST, PACKED_SUFFIX
from weightpack.io.files import named_path
from weightpack.models.directory import Note, list_files
from weightpack.models.standing import refuse_missing, stand
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.sources.safetensors import is_packed_file


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What gives the bytes of a file of the source: the file `path` as it is, or what it restores to, or `data`.

    Permissions and times are those of `path`, which is absolute.
    """

    path: Path
    is_packed: bool = False
    data: bytes | None = None


@dataclass(slots=True)
class SourceTree:
    """Files and folders by their path in the tree. `left_out` has what is not in it, and why."""

    files: dict[PurePosixPath, SourceFile] = field(default_factory=dict)
    folders: dict[PurePosixPath, Path] = field(default_factory=dict)
    left_out: list[Note] = field(default_factory=list)

    def add_file(self, name: PurePosixPath, file: SourceFile) -> None:
        """Add a file, and the folders that it is in. OptionError if another has its name."""
        if name in self.files or name in self.folders:
            raise OptionError(f"two files would have the name {str(name)!r}", path=str(file.path))
        self.files[name] = file
        self.add_folder(name.parent, file.path.parent)

    def add_folder(self, name: PurePosixPath, path: Path) -> None:
        """Add a folder, and those that it is in; `path` has the permissions and times."""
        if name in self.files:
            raise OptionError(f"a file and a folder would have the name {str(name)!r}", path=str(path))
        if name not in self.folders:
            self.folders[name] = path
            if name != name.parent:
                self.add_folder(name.parent, path.parent if path.parent.is_dir() else path)


def source_tree(sources: Sequence[str | Path], limits: Limits = DEFAULT_LIMITS) -> SourceTree:
    """Return the files of one directory, or of several sources, each under its own name.

    Of a directory with a manifest these are the files that it was packed from. Of any other, packed files have the names of their sources, all others are as
    they are, and so for the directories in it.

    Raises
    ------
    PathNotFoundError
        There is no such file or directory.
    OptionError
        A file is not packed, or none of a directory; two sources have the same name.
    FormatError
        A manifest is damaged, or a packed file is missing.
    """
    tree = SourceTree()
    for source in sources:
        path = named_path(source)
        if not path.exists():
            raise PathNotFoundError("no such file or directory", path=str(source))
        path = path.absolute()
        if path.is_dir():
            name = PurePosixPath() if len(sources) == 1 else PurePosixPath(unpacked_path(path, Path()).name)
            _add_directory(tree, name, path, limits)
        elif not is_packed_file(path):
            raise OptionError("the file is not packed", path=str(source))
        else:
            tree.add_file(PurePosixPath(unpacked_path(path, Path(), limits=limits).name), SourceFile(path, is_packed=True))
    if not any(file.is_packed for file in tree.files.values()):
        raise OptionError("nothing in it is packed", path=", ".join(map(str, sources)))
    return tree


def _add_directory(tree: SourceTree, name: PurePosixPath, folder: Path, limits: Limits) -> None:
    tree.add_folder(name, folder)
    if (folder / MANIFEST).is_file():
        _add_packed_directory(tree, name, folder)
        return
    listed = list_files(folder)
    inner = {path.parent for path in listed.files if path.name == MANIFEST}
    inner = {path for path in inner if not inner & set(path.parents)}
    for path in sorted(inner):
        _add_directory(tree, name / path, folder / path, limits)
    loose = [path for path in listed.files if not inner & set(path.parents)]
    packed = [path for path in loose if path.suffix in (".safetensors", PACKED_SUFFIX) and _is_packed(folder / path)]
    for path in loose:
        if path not in packed:
            tree.add_file(name / path, SourceFile(folder / path))
    for path in packed:
        source = name / path.with_name(unpacked_path(folder / path, folder, limits=limits).name)
        if source in tree.files:
            tree.left_out.append(Note(str(name / path), f"{source.name} is there as well"))
        else:
            tree.add_file(source, SourceFile(folder / path, is_packed=True))
    for path in listed.empty_folders:
        if not inner & {path, *path.parents}:
            tree.add_folder(name / path, folder / path)
    tree.left_out += [Note(str(name / note.name), note.reason) for note in listed.left_out]


def _is_packed(path: Path) -> bool:
    try:
        return is_packed_file(path)
    except FormatError:  # whoever reads the file is told what it is
        return False


def _add_packed_directory(tree: SourceTree, name: PurePosixPath, folder: Path) -> None:
    standing = stand(folder)
    refuse_missing(standing, carried=False)
    for empty in (*map(PurePosixPath, standing.manifest.folders), *standing.files.empty_folders):
        tree.add_folder(name / empty, folder / empty if (folder / empty).is_dir() else folder)
    for source, packed in standing.packed.items():
        tree.add_file(name / source, SourceFile(folder / packed, is_packed=True))
    for source, path in {**standing.carried, **standing.plain, **{str(path): path for path in standing.extra}}.items():
        tree.add_file(name / source, SourceFile(folder / path))
    for source in standing.changed:
        edited = folder / source
        tree.add_file(name / source, SourceFile(edited if edited.is_file() else folder / MANIFEST, data=standing.manifest.originals[source]))
    tree.left_out += [Note(str(name / missing), "it is missing") for missing in standing.missing]
    tree.left_out += [Note(str(name / note.name), note.reason) for note in standing.files.left_out]
