# SPDX-License-Identifier: Apache-2.0
"""The index in a packed file's metadata (FORMAT section 5)."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass

import zstandard

from weightpack.errors import CorruptionError, LimitError, UnsupportedError
from weightpack.format.constants import VERSION
from weightpack.format.safetensors import MAX_DIMS, from_base64, is_count, parse_json
from weightpack.format.zstd import decode_frame

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GAP_LEVELS = (1 << 14, 19), (1 << 20, 15)  # up to so many bytes, this level of zstd: headers are small, and JSON shrinks tenfold
_LONG_GAP_LEVELS = (3, 9)  # the smaller: of many entries that are nearly the same, level 3 makes less


@dataclass(frozen=True, slots=True)
class Gap:
    """Source bytes that belong to no tensor, as a zstd frame; `n_bytes` is their decoded length."""

    offset: int
    n_bytes: int
    frame: bytes

    @classmethod
    def of(cls, offset: int, data: bytes) -> Gap:
        """Compress the bytes at `offset` of the source."""
        levels = next(((level,) for most, level in _GAP_LEVELS if len(data) <= most), _LONG_GAP_LEVELS)
        return cls(offset, len(data), min((zstandard.ZstdCompressor(level=level).compress(data) for level in levels), key=len))

    def decode(self) -> bytes:
        """Return the bytes; `n_bytes` bounds what is allocated."""
        return decode_frame(self.frame, self.n_bytes)


@dataclass(frozen=True, slots=True)
class BaseFile:
    """A file of the base; `name` is for people."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BaseReference:
    """The base that a file is a difference from (FORMAT section 15).

    `repo` and `revision`: where on a Hub it is, if that is known. `depth`: how many files have to be decoded, one from the other: 1 if the base stands alone.
    """

    files: tuple[BaseFile, ...]
    repo: str | None
    revision: str | None
    depth: int


@dataclass(frozen=True, slots=True)
class BaseRange:
    """What serves a tensor as base: `n_bytes` of file number `file` from `offset`, elements of `dtype`.

    `moves`: (to, from, count) in elements, by rising `to`: element `to + i` of the tensor has the base's `from + i`. None: each has the one of its own
    number. What has none has zero. `columns`: the tensor is the transpose of the base's matrix, whose rows have so many elements; 0 if it is not.
    """

    file: int
    dtype: str
    offset: int
    n_bytes: int
    moves: tuple[tuple[int, int, int], ...] | None = None
    columns: int = 0


@dataclass(frozen=True, slots=True)
class Index:
    """`storage`: one of p, d, x, k, t, g for each tensor by name but the members of groups; `tied`: for each t the position of the tensor that holds its bytes.

    `tensors`: dtype, shape and offset of each by name; None for safetensors, whose
    header says it. `base`, and `ranges`: for each d and x what it differs from. `same`: the number of
    the base's file that the source is, byte for byte; no tensor has an entry then (FORMAT 15.7). `groups`: for each g how many members it has (FORMAT 5.8).
    """

    source_format: str
    source_bytes: int
    source_sha256: str
    gaps: tuple[Gap, ...]
    storage: str
    tied: tuple[int, ...]
    kept_crc32c: bytes
    minor_version: int = 0
    tensors: tuple[tuple[str, tuple[int, ...], int], ...] | None = None
    base: BaseReference | None = None
    ranges: tuple[BaseRange, ...] = ()
    groups: tuple[int, ...] = ()
    same: int | None = None

    def to_json(self) -> str:
        """Serialise; the same index gives the same text."""
        root: dict[str, object] = {
            "version": [VERSION[0], self.minor_version],
            "source": {"format": self.source_format, "bytes": self.source_bytes, "sha256": self.source_sha256},
            "gaps": [[gap.offset, gap.n_bytes, base64.b64encode(gap.frame).decode()] for gap in self.gaps],
            "storage": self.storage,
            "tied": list(self.tied),
            "kept_crc32c": base64.b64encode(self.kept_crc32c).decode(),
        }
        if self.tensors is not None:
            root["tensors"] = [[dtype, list(shape), offset] for dtype, shape, offset in self.tensors]
        if self.groups:
            root["groups"] = list(self.groups)
        if self.base is not None:
            root["base"] = {
                "files": [[file.name, file.n_bytes, file.sha256] for file in self.base.files],
                "repo": self.base.repo,
                "revision": self.base.revision,
                "depth": self.base.depth,
            }
            if self.same is not None:
                root["same"] = self.same
            root["ranges"] = [_range_json(each) for each in self.ranges]
        return json.dumps(root, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str, max_gap_bytes: int, max_memory: int = 1 << 30) -> Index:
        """Parse and check the fields one by one; what they say about the file is checked by the reader."""
        root = parse_json(text.encode("utf-8", "surrogatepass"), max_memory)
        if not isinstance(root, dict):
            raise CorruptionError("the index is not a JSON object")
        version = root.get("version")
        if not (isinstance(version, list) and len(version) == 2 and all(map(is_count, version))):
            raise CorruptionError("the index has no version")
        if version[0] != VERSION[0]:
            raise UnsupportedError(f"the file has format version {version[0]}.{version[1]}, this library reads {VERSION[0]}.x: upgrade weightpack")
        source = root.get("source")
        if not isinstance(source, dict) or not is_count(source.get("bytes")) or not isinstance(source.get("format"), str):
            raise CorruptionError("the index does not describe the source")
        tensors = None if source["format"] == "safetensors" else _tensors(root, source["format"])
        if not (isinstance(source.get("sha256"), str) and _SHA256.fullmatch(source["sha256"])):
            raise CorruptionError("the index has no SHA-256 of the source")
        gaps, total, position = [], 0, 0
        for gap in _list(root, "gaps"):
            if not (isinstance(gap, list) and len(gap) == 3 and is_count(gap[0]) and is_count(gap[1]) and gap[1] > 0 and isinstance(gap[2], str)):
                raise CorruptionError("a gap of the index is not [offset, size, text]")
            if gap[0] < position or gap[0] + gap[1] > source["bytes"]:
                raise CorruptionError("the gaps of the index overlap or leave the source")
            position = gap[0] + gap[1]
            total += gap[1]
            if total > max_gap_bytes:
                raise LimitError(f"the gaps hold more than {max_gap_bytes} bytes")
            gaps.append(Gap(gap[0], gap[1], from_base64(gap[2], "a gap of the index")))
        storage, tied = root.get("storage"), _list(root, "tied")
        if not isinstance(storage, str):
            raise CorruptionError("the index's storage is not a string")
        if set(storage) - set("pdxktg"):
            raise UnsupportedError("the index has a kind of storage that this version does not know: upgrade weightpack")
        positions = [i for i in tied if isinstance(i, int) and is_count(i) and i < len(storage)]
        if len(positions) != len(tied) or len(tied) != storage.count("t"):
            raise CorruptionError("the index's tied tensors do not match its storage")
        kept = root.get("kept_crc32c")
        if not isinstance(kept, str):
            raise CorruptionError("the index has no checksums of kept tensors")
        kept_crcs = from_base64(kept, "what the index says of kept tensors")
        with_base = [letter for letter in storage if letter in "dx"]
        same = root.get("same")
        base, ranges = (_base(root), _ranges(root, with_base)) if with_base or same is not None else (None, ())
        if base is not None and any(r.file >= len(base.files) for r in ranges):
            raise CorruptionError("the index's ranges of the base do not match its storage")
        if same is not None and not (
            isinstance(same, int) and is_count(same) and base is not None and same < len(base.files) and not storage and not kept and tensors is None
            and base.files[same].sha256 == source["sha256"] and base.files[same].n_bytes == source["bytes"]
        ):  # fmt: skip
            raise CorruptionError("the index does not say which file of the base the source is the same as")
        groups = _list(root, "groups") if "g" in storage else []
        counts = [n for n in groups if isinstance(n, int) and is_count(n) and n >= 1]
        if len(counts) != len(groups) or len(groups) != storage.count("g"):
            raise CorruptionError("the index's groups do not match its storage")
        return cls(
            source["format"], source["bytes"], source["sha256"], tuple(gaps), storage, tuple(positions), kept_crcs, version[1], tensors, base, ranges,
            tuple(counts), same,
        )  # fmt: skip


def range_bytes(base: BaseRange) -> int:
    """Return what a range takes in the index."""
    return len(json.dumps(_range_json(base), separators=(",", ":"))) + 1


def _range_json(base: BaseRange) -> list[object]:
    return [base.file, base.dtype, base.offset, base.n_bytes, base.columns or (None if base.moves is None else list(map(list, base.moves)))]


def _tensors(root: dict[str, object], source_format: str) -> tuple[tuple[str, tuple[int, ...], int], ...]:
    """FORMAT 5.7."""
    if "tensors" not in root:
        raise UnsupportedError(f"the source has format {source_format!r}, which this version does not know: upgrade weightpack")
    tensors = []
    for item in _list(root, "tensors"):
        if not (isinstance(item, list) and len(item) == 3 and isinstance(item[0], str) and isinstance(item[1], list) and is_count(item[2])):
            raise CorruptionError("a tensor of the index is not [dtype, shape, offset]")
        if len(item[1]) > MAX_DIMS or not all(map(is_count, item[1])):
            raise CorruptionError("the shape of a tensor of the index is not a list of sizes")
        tensors.append((item[0], tuple(item[1]), item[2]))
    return tuple(tensors)


def _base(root: dict[str, object]) -> BaseReference:
    """FORMAT 15.1."""
    base = root.get("base")
    if not isinstance(base, dict):
        raise CorruptionError("the index does not say which base its tensors differ from")
    files = []
    for item in _list(base, "files"):
        if not (isinstance(item, list) and len(item) == 3 and isinstance(item[0], str) and is_count(item[1]) and isinstance(item[2], str)):
            raise CorruptionError("a file of the base is not [name, bytes, sha256]")
        if not _SHA256.fullmatch(item[2]):
            raise CorruptionError("a file of the base has no SHA-256")
        files.append(BaseFile(*item))
    repo, revision, depth = base.get("repo", 0), base.get("revision", 0), base.get("depth")
    if not (isinstance(repo, str | None) and isinstance(revision, str | None) and isinstance(depth, int) and is_count(depth) and depth >= 1):
        raise CorruptionError("the index's base is not described as it should be")
    return BaseReference(tuple(files), repo, revision, depth)


def _ranges(root: dict[str, object], letters: list[str]) -> tuple[BaseRange, ...]:
    """FORMAT 15.2, and 15.6 for tensors of the letter x; whether they fit their tensors is for the reader to check."""
    ranges, items = [], _list(root, "ranges")
    if len(items) != len(letters):
        raise CorruptionError("the index's ranges of the base do not match its storage")
    for letter, item in zip(letters, items, strict=True):
        if not (isinstance(item, list) and len(item) == 5 and isinstance(item[1], str) and all(map(is_count, (item[0], *item[2:4])))):
            raise CorruptionError("a range of the base is not [file, dtype, offset, bytes, moves]")
        moves = item[4]
        if letter == "x":
            if not (is_count(moves) and moves > 0):
                raise CorruptionError("a range of a base's matrix does not say how many columns that has")
            ranges.append(BaseRange(item[0], item[1], item[2], item[3], None, moves))
            continue
        if moves is not None:
            if not (isinstance(moves, list) and all(isinstance(m, list) and len(m) == 3 and all(map(is_count, m)) for m in moves)):
                raise CorruptionError("the moves of a range are not [to, from, count]")
            moves = tuple((m[0], m[1], m[2]) for m in moves)
        ranges.append(BaseRange(item[0], item[1], item[2], item[3], moves))
    return tuple(ranges)


def _list(root: dict[str, object], key: str) -> list[object]:
    value = root.get(key)
    if not isinstance(value, list):
        raise CorruptionError(f"the index's {key} is not a list")
    return value
