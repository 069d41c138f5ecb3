# SPDX-License-Identifier: Apache-2.0
"""What stands for each file of the source in a packed directory: also while a job in place has not ended, and where files came or went since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weightpack.errors import FormatError, TruncatedError
from weightpack.format.manifest import MANIFEST, Manifest
from weightpack.models.directory import ModelFiles, list_files, read_manifest
from weightpack.sources.safetensors import is_packed_file

_HUB_FILES = {".gitattributes"}  # which the Hub puts into every repo


@dataclass(frozen=True, slots=True)
class Standing:
    """A packed directory beside its manifest. Mappings go from names of the source to names of the packed directory.

    Parameters
    ----------
    packed
        Packed files.
    plain
        Files that the manifest names as packed, and that are plain.
    carried
        Files that are as they were.
    changed
        Files whose source is in the manifest.
    missing
        Files of which nothing is there.
    extra
        Files that the manifest does not name.
    added
        Files that the source had not, as the manifest says.
    doubled
        Files that stand beside their packed forms.
    """

    manifest: Manifest
    files: ModelFiles
    packed: dict[str, PurePosixPath]
    plain: dict[str, PurePosixPath]
    carried: dict[str, PurePosixPath]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[PurePosixPath, ...]
    added: tuple[PurePosixPath, ...]
    doubled: tuple[str, ...]

    @property
    def unfinished(self) -> str | None:
        """The job in place that has not ended, "pack" or "unpack"; None if there is none."""
        return self.manifest.in_place or ("pack" if self.plain else None)

    @property
    def other_bytes(self) -> int:
        """Bytes of all files of the directory that are not packed, as they are on the disk."""
        packed = set(self.packed.values())
        return sum((self.files.folder / path).stat().st_size for path in self.files.files if path not in packed)

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of a file of the source; None if the manifest does not know it."""
        file = self.manifest.files.get(name)
        return None if file is None else file.sha256


def stand(folder: Path) -> Standing:
    """Look at a packed directory; of packed files the headers are read.

    Raises
    ------
    OptionError
        It has no manifest.
    FormatError, LimitError
        The manifest is damaged.
    """
    manifest, files = read_manifest(folder), list_files(folder)
    there = {str(path): path for path in files.files}
    packed: dict[str, PurePosixPath] = {}
    plain: dict[str, PurePosixPath] = {}
    carried: dict[str, PurePosixPath] = {}
    changed, missing, doubled = [], [], []
    named = {MANIFEST, *manifest.files, *manifest.standing, *manifest.added, *_HUB_FILES}
    for name, file in manifest.files.items():
        if file.original is not None:
            changed.append(name)
        elif file.packed is None and name in there:
            carried[name] = there[name]
        elif file.packed in there and (file.packed != name or _is_packed(folder / name)):
            packed[name] = there[file.packed]
            doubled += [name] if name != file.packed and name in there else []
        elif file.packed is not None and name in there:
            plain[name] = there[name]
        else:
            missing.append(name)
    extra = [path for name, path in there.items() if name not in named]
    if not manifest.complete:  # version 1 packed all of them
        for path in [path for path in extra if path in files.weights]:
            (packed if _is_packed(folder / path) else plain)[str(path)] = path
            extra.remove(path)
    added = tuple(path for name, path in there.items() if name in {*manifest.added, *_HUB_FILES} - manifest.files.keys())
    return Standing(manifest, files, packed, plain, carried, tuple(changed), tuple(missing), tuple(extra), added, tuple(doubled))


def _is_packed(path: Path) -> bool:
    """Is a file packed? One that is damaged is taken for packed: whoever reads it says what it is."""
    try:
        return is_packed_file(path)
    except FormatError:
        return True


def refuse_missing(standing: Standing, *, carried: bool) -> None:
    """Raise TruncatedError if a file is missing: a packed one, or also one that was `carried` over."""
    for name in standing.missing:
        file = standing.manifest.files[name]
        if file.packed is not None or carried:
            what = "packed file" if file.packed is not None else "file"
            raise TruncatedError(f"the {what} {file.packed or name!r} that {MANIFEST} names is missing", path=str(standing.files.folder))
