# SPDX-License-Identifier: Apache-2.0
"""The manifest of a packed directory, `weightpack.json` (FORMAT section 17): every file of the source, and which file stands for it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from weightpack.errors import CorruptionError, UnsupportedError
from weightpack.format.safetensors import from_base64, is_count, parse_json

MANIFEST = "weightpack.json"
MANIFEST_VERSION = 2
PACKED_SUFFIX = ".wp"  # behind a whole name: no loader of *.safetensors takes the file for a shard
PACKED_SAFETENSORS = ".wp.safetensors"  # in the place of .safetensors, beside such a file
MAX_NAME_BYTES, MAX_PART_BYTES = 4096, 255

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:")
_JOBS = ("pack", "unpack")
# Signs that change in which order the ones beside them are shown.
_ORDERING = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *(f"{port}{i}" for port in ("COM", "LPT") for i in "123456789\u00b9\u00b2\u00b3")}


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of the source: its length and SHA-256, and what stands for it in the packed directory: the file itself, unless `packed` or `original` is given.

    Parameters
    ----------
    sha256
        None while a job in place is at work, for a file whose turn has not come.
    packed, packed_bytes
        Name and length of its packed form.
    original, changed_sha256
        Of a file that was changed: the source's bytes, and the SHA-256 of what stands under its name (None if that is not known).
    """

    n_bytes: int
    sha256: str | None
    packed: str | None = None
    packed_bytes: int = 0
    original: bytes | None = None
    changed_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a packed directory was made from.

    Parameters
    ----------
    files
        Path in the source, with slashes, -> the file.
    folders
        Those that hold no file.
    added
        Files of the packed directory that the source had not.
    in_place
        "pack" or "unpack": a job in place that has not ended. Any of the packed files may be plain then.
    complete
        Are these all files of the source? Version 1 named only those that were packed or changed.
    """

    files: dict[str, ManifestFile] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    in_place: str | None = None
    complete: bool = True

    @property
    def packed(self) -> dict[str, ManifestFile]:
        """Those files that were packed."""
        return {name: file for name, file in self.files.items() if file.packed is not None}

    @property
    def standing(self) -> list[str]:
        """Names of the packed directory, in the order of `files`: of the packed form, or the file's own."""
        return [name if file.packed is None else file.packed for name, file in self.files.items()]

    @property
    def originals(self) -> dict[str, bytes]:
        """The source's bytes of those files that were changed."""
        return {name: file.original for name, file in self.files.items() if file.original is not None}

    def to_bytes(self) -> bytes:
        """Serialise; the same manifest gives the same bytes."""
        root: dict[str, Any] = {"weightpack_manifest": MANIFEST_VERSION, "files": {name: _entry(file) for name, file in self.files.items()}}
        root |= {"folders": sorted(self.folders), "added": sorted(self.added)}
        if self.in_place is not None:
            root["in_place"] = self.in_place
        if not self.complete:
            root["complete"] = False
        return (json.dumps(root, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _entry(file: ManifestFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"bytes": file.n_bytes}
    if file.sha256 is not None:
        entry["sha256"] = file.sha256
    if file.packed is not None:
        entry |= {"packed": file.packed, "packed_bytes": file.packed_bytes}
    if file.original is not None:
        entry["original"] = base64.b64encode(file.original).decode()
        if file.changed_sha256 is not None:
            entry["changed_sha256"] = file.changed_sha256
    return entry


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest of any version; nothing that it names can be outside its directory (FORMAT 17.3).

    Raises
    ------
    CorruptionError, UnsupportedError, LimitError
    """
    root = parse_json(data)
    version = root.get("weightpack_manifest") if isinstance(root, dict) else None
    if type(version) is not int or version < 1:
        raise CorruptionError("not a manifest of weightpack")
    if version > MANIFEST_VERSION:
        raise UnsupportedError(f"a manifest of version {version}: upgrade weightpack")
    manifest = _version_1(root) if version == 1 else _version_2(root)
    check_names(manifest)
    return manifest


def _version_1(root: dict[str, Any]) -> Manifest:
    """FORMAT 17.6."""
    files = {}
    for name, entry in _object(root, "packed").items():
        n_bytes, packed_bytes = _count(entry, "source_bytes", name), _count(entry, "packed_bytes", name)
        files[name] = ManifestFile(n_bytes, _sha256(entry, "source_sha256", name), name, packed_bytes)
    for name, text in _object(root, "originals").items():
        if name in files:
            raise CorruptionError(f"the manifest says of {name!r} that it was packed, and that it was changed")
        original = from_base64(text, f"the manifest's original of {name!r}")
        files[name] = ManifestFile(len(original), hashlib.sha256(original).hexdigest(), original=original)
    return Manifest(files, complete=False)


def _version_2(root: dict[str, Any]) -> Manifest:
    in_place, complete = root.get("in_place"), root.get("complete", True)
    if in_place is not None and in_place not in _JOBS:
        raise CorruptionError(f"the manifest names a job in place that is none: {in_place!r}")
    if not isinstance(complete, bool):
        raise CorruptionError("the manifest does not say whether it is complete")
    files = {name: _file(name, entry, unfinished=in_place is not None) for name, entry in _object(root, "files").items()}
    return Manifest(files, _names(root, "folders"), _names(root, "added"), in_place, complete)


def _file(name: str, entry: object, *, unfinished: bool) -> ManifestFile:
    if not isinstance(entry, dict):
        raise CorruptionError(f"the manifest's entry of {name!r} is not an object")
    n_bytes = _count(entry, "bytes", name)
    sha256 = None if unfinished and "sha256" not in entry else _sha256(entry, "sha256", name)
    if "packed" in entry and "original" in entry:
        raise CorruptionError(f"the manifest says of {name!r} that it was packed, and that it was changed")
    if "packed" in entry:
        if not isinstance(entry["packed"], str):
            raise CorruptionError(f"the manifest does not name the packed form of {name!r}")
        return ManifestFile(n_bytes, sha256, entry["packed"], _count(entry, "packed_bytes", name))
    if "original" in entry:
        original = from_base64(entry["original"], f"the manifest's original of {name!r}")
        if (len(original), hashlib.sha256(original).hexdigest()) != (n_bytes, sha256):
            raise CorruptionError(f"the manifest's original of {name!r} is not what it says it is")
        changed = _sha256(entry, "changed_sha256", name) if "changed_sha256" in entry else None
        return ManifestFile(n_bytes, sha256, original=original, changed_sha256=changed)
    return ManifestFile(n_bytes, sha256)


def _object(root: dict[str, Any], key: str) -> dict[str, Any]:
    value = root.get(key)
    if not isinstance(value, dict):
        raise CorruptionError(f"the manifest has no {key!r}")
    return value


def _names(root: dict[str, Any], key: str) -> tuple[str, ...]:
    value = root.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(set(value)) != len(value):
        raise CorruptionError(f"the manifest's {key!r} is no list of different names")
    return tuple(value)


def _count(entry: object, key: str, name: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not int or not is_count(value):
        raise CorruptionError(f"the manifest gives no {key} of {name!r}")
    return value


def _sha256(entry: object, key: str, name: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        raise CorruptionError(f"the manifest gives no {key} of {name!r}")
    return value


def check_names(manifest: Manifest) -> None:
    """FORMAT 17.3 and 17.4: each name, and that no two files, or a file and a folder, of one side would be in one place."""
    for side in ((*manifest.files, *manifest.folders), (*manifest.standing, *manifest.folders, *manifest.added)):
        seen = set(side)
        if len(seen) != len(side):
            raise CorruptionError("the manifest has two files of one name")
        for name in side:
            if (problem := name_problem(name)) is not None:
                raise CorruptionError(f"the manifest names {name!r}, which is no name of a file in its directory: {problem}")
            for parent in _parents(name):
                if parent in seen:
                    raise CorruptionError(f"the manifest names {name!r}, and {parent!r} as a file or as an empty folder")


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[:i]) for i in range(1, len(parts)))


def name_problem(name: str) -> str | None:
    """Say why a relative path, with slashes, can't stand in a manifest (FORMAT 17.3); None if it can.

    What is refused means something else on another system, leaves the directory there, or is shown as another name than it is.
    """
    if "\\" in name:
        return "it has a backslash in it"
    for sign in name:
        category = unicodedata.category(sign)
        if category == "Cs":
            return "it is not UTF-8"
        if category in ("Cc", "Zl", "Zp") or sign in _ORDERING:
            return f"it has the control character U+{ord(sign):04X} in it"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    parts = name.split("/")
    if _DRIVE.match(parts[0]):
        return "it begins with a drive"
    if parts[0].startswith("~") and (len(parts) > 1 or name == "~"):
        return "it begins with a home directory"
    if len(parts) == 1 and unicodedata.normalize("NFKC", name).casefold().rstrip(" .") == MANIFEST:
        return "it is the manifest's own"
    for part in parts:
        if part in ("", ".", ".."):
            return "it has an empty part, or one that leads to a folder" if part else "it is empty, or has an empty part"
        if len(part.encode()) > MAX_PART_BYTES:
            return f"a part of it is longer than {MAX_PART_BYTES} bytes"
        if part.split(".")[0].rstrip(" ").upper() in _DEVICES:
            return "it is a device on Windows"
    return None
