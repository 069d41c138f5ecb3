# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets of the Python side: functions that take any bytes and raise where the package breaks its promise.

The promise: one of our own exceptions, or what the reference decoder gives too. Anything else that is raised here (an AssertionError, a KeyError, a
MemoryError) is a finding. `scripts/fuzz` feeds them by coverage, `tests/hostile/test_fuzz_corpus.py` with what it found before. The native targets are in
`native/fuzz/`.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import samples

import weightpack.numpy
from weightpack import reference
from weightpack.errors import BaseNotFoundError, LimitError, MissingExtraError, OptionError, WeightpackError
from weightpack.format.delta import Storage
from weightpack.format.index import Index
from weightpack.format.manifest import parse_manifest
from weightpack.format.safetensors import parse_header
from weightpack.io.files import MemoryFile
from weightpack.models.directory import model_files
from weightpack.options import Limits
from weightpack.reading.delta import apply_delta, check_base, open_delta
from weightpack.reading.frame import decode, decode_bytes
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.pieces import restored_pieces
from weightpack.reading.record import decode_record

GOLDEN = Path(__file__).parents[1] / "golden" / "1.0"
MAX_BYTES = 1 << 20  # of what is decoded, so that honest claims stay quick
MOST_TENSOR_BYTES = 1600  # of a record alone: the reference decoder takes its time
LIMITS = Limits(max_tensors=1000, max_source_bytes=MAX_BYTES, max_gap_bytes=MAX_BYTES)


def refused_alike(product: Callable[[], object], oracle: Callable[[], object]) -> None:
    """Both refuse, or both accept and give the same. Our own limits are no matter of the format: what they stop is not compared."""
    try:
        ours = product()
    except LimitError:
        return
    except WeightpackError as error:
        ours = error
    try:
        theirs = oracle()
    except (reference.FormatError, reference.BaseNotFoundError) as error:
        theirs = error
    refused = isinstance(ours, WeightpackError), isinstance(theirs, reference.FormatError | reference.BaseNotFoundError)
    assert refused[0] == refused[1], f"product: {ours!r:.200}\nreference: {theirs!r:.200}"
    assert refused[0] or ours == theirs, "product and reference give different results"


def header(data: bytes) -> None:
    """A safetensors header. Input: flags (1: of a source), u16 bytes of the data section, JSON."""
    of_source, data_bytes, text = bool(data[:1] > b"\x7f"), int.from_bytes(data[1:3], "little"), data[3:]

    def product() -> object:
        parsed = parse_header(text, data_bytes, unknown_dtypes=of_source)
        return parsed.metadata or {}, {e.name: (e.dtype, e.shape, e.begin, e.end) for e in parsed.entries.values()}

    def oracle() -> object:
        _, metadata, tensors = reference.read_header(len(text).to_bytes(8, "little") + text, "header")
        entries = reference.read_entries(tensors, of_source)
        reference.need(all(entry.end <= data_bytes for entry in entries.values()), "beyond the data section")
        return metadata, {name: (e.dtype, e.shape, e.begin, e.end) for name, e in entries.items()}

    refused_alike(product, oracle)


def index(data: bytes) -> None:
    """The index, and its gaps. Input: its text; not all of it is UTF-8."""
    try:
        parsed = Index.parse(data.decode("utf-8", "surrogateescape"), MAX_BYTES)
        for gap in parsed.gaps:
            assert len(gap.decode()) == gap.n_bytes
    except WeightpackError:
        return
    assert Index.parse(parsed.to_json(), MAX_BYTES) == parsed


def tensor(data: bytes) -> None:
    """A record. Input: u16 bytes of the tensor, record."""
    n_bytes, record = int.from_bytes(data[:2], "little") % MOST_TENSOR_BYTES, data[2:]

    def product() -> bytes:
        out = np.empty(n_bytes, np.uint8)
        decode_record(memoryview(record), out)
        return out.tobytes()

    refused_alike(product, lambda: reference.decode_record(record, n_bytes))


def frame(data: bytes) -> None:
    """A tensor frame."""

    def product() -> reference.Decoded:
        decoded, dtype, shape = decode_bytes(data, max_bytes=MAX_BYTES)
        with contextlib.suppress(LimitError, MissingExtraError, OptionError):  # numpy has not every dtype and shape
            assert decode(data, max_bytes=MAX_BYTES).tobytes() == decoded.tobytes()
        return dtype, shape, decoded.tobytes()

    refused_alike(product, lambda: reference.decode_frame(data, MAX_BYTES))


def delta(data: bytes) -> None:
    """A delta of tensors in memory, whose bases are all 0, 1, 2 and so on. The checksum of its head is made right."""
    end = 20 + int.from_bytes(data[16:20], "little")
    data = data[:end] + reference.crc32c(data[:end]).to_bytes(4, "little") + data[end + 4 :]
    base, tensors = {}, {}
    try:
        for entry, body in open_delta(data):
            if entry.n_bytes > MAX_BYTES:
                return
            base[entry.name] = bytes(i & 255 for i in range(entry.n_bytes))
            memory = np.frombuffer(bytearray(base[entry.name]), np.uint8)
            check_base(entry, memory)
            if entry.storage != Storage.UNCHANGED:
                apply_delta(entry, body, memory, 1)
            tensors[entry.name] = entry.dtype, entry.shape, memory.tobytes()
    except WeightpackError:
        return
    assert reference.decode_delta(data, base) == tensors


def opened(data: bytes, base: bytes | None = None) -> PackedFile:
    """Open a packed file; where it needs bases, `base` has to be each of them."""
    packed = PackedFile(MemoryFile([data]), LIMITS)
    reference = packed.index.base
    if reference is not None:
        if base is None or any((file.sha256, file.n_bytes) != (hashlib.sha256(base).hexdigest(), len(base)) for file in reference.files):
            raise BaseNotFoundError("another base")
        packed.bases = [MemoryFile([base]) for _ in reference.files]
    return packed


def restore(data: bytes, base: bytes | None = None) -> bytes:
    """Return the source of a packed file by the product's road, its SHA-256 checked as `weightpack verify` does; each tensor alone must give the same."""
    packed = opened(data, base)
    source = b"".join(piece.result for piece in restored_pieces(packed, 1, lambda _, part: part.tobytes()))
    for stored in packed.tensors.values():
        parts = []
        for piece in packed.pieces(stored):
            parts.append(np.empty(piece.n_bytes, np.uint8))
            packed.decode_piece(stored, piece, parts[-1])
        assert b"".join(part.tobytes() for part in parts) == source[stored.tensor.offset : stored.tensor.offset + stored.tensor.n_bytes]
    assert len(source) == packed.index.source_bytes
    if hashlib.sha256(source).hexdigest() != packed.index.source_sha256:
        raise WeightpackError("the SHA-256 differs")
    if base is None:
        with contextlib.suppress(LimitError, MissingExtraError, OptionError):  # numpy has not every dtype and shape
            weightpack.numpy.load(data, threads=1)
    return source


def packed(data: bytes) -> None:
    """A packed file, beside the reference decoder."""
    refused_alike(lambda: restore(data), lambda: reference.decode_file(data, MAX_BYTES))


@cache
def base_file() -> bytes:
    """Return the base of the target `based`: a tensor of each dtype that converts, and bytes."""
    tensors = {name: (name, (n,), samples.weights(n, name)) for name, n in (("BF16", 420), ("F16", 300), ("F32", 260))}
    return samples.safetensors_file({**tensors, "U8": ("U8", (300,), bytes(i * i % 251 for i in range(300)))})


def based(data: bytes) -> None:
    """A packed file that may be a difference from `base_file`, beside the reference decoder."""
    refused_alike(lambda: restore(data, base_file()), lambda: reference.decode_file(data, MAX_BYTES, [base_file()]))


@cache
def golden_files() -> list[tuple[bytes, bytes]]:
    """Return (packed file, source) of each golden file, by name."""
    files = [path.read_bytes() for path in sorted(GOLDEN.glob("*.safetensors"))]
    return [(file, reference.decode_file(file)) for file in files]


def damaged(data: bytes) -> None:
    """A golden file with damage that nobody repaired: our error, or the source's very bytes.

    Input: u8 which file, then edits of 5 bytes: u8 kind, u24 place, u8 value.
    """
    file, source = golden_files()[data[0] % len(golden_files())] if data else golden_files()[0]
    changed = bytearray(file)
    for i in range(1, len(data) - 4, 5):
        kind, place, value = data[i] % 5, int.from_bytes(data[i + 1 : i + 4], "little") % (len(changed) + 1), data[i + 4]
        if kind == 0:
            changed[place : place + 1] = bytes([value])
        elif kind == 1:
            del changed[place : place + 1 + value]
        elif kind == 2:
            changed[place:place] = bytes(value)
        elif kind == 3:
            changed[place : place + 8] = changed[place + 8 : place + 16]
        else:
            del changed[place:]
    try:
        restored = restore(bytes(changed))
    except WeightpackError:
        return
    assert restored == source, "damage gives other bytes, unnoticed"


@cache
def _folder(name: str) -> Path:
    """Return a folder in memory, if there is one, for parsers that take paths."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix=f"weightpack-fuzz-{name}-", dir=memory if memory.is_dir() else None)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def manifest(data: bytes) -> None:
    """The manifest of a packed directory."""
    try:
        parsed = parse_manifest(data)
    except WeightpackError:
        return
    folder = _folder("manifest")
    for name in (*parsed.files, *parsed.folders, *parsed.added, *(file.packed or "" for file in parsed.packed.values())):
        assert (folder / name).is_relative_to(folder) and ".." not in Path(name).parts, f"{name!r} leaves the directory"
        assert name.isprintable(), f"{name!r} shows as something else"
    assert parse_manifest(parsed.to_bytes()) == parsed


def shards(data: bytes) -> None:
    """The index of a checkpoint's shards."""
    folder = _folder("shards")
    (folder / "a.safetensors").touch()
    (folder / "model.safetensors.index.json").write_bytes(data)
    try:
        found = model_files(folder)
    except WeightpackError:
        return
    assert [str(path) for path in found.weights] == ["a.safetensors"]


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (header, index, tensor, frame, delta, packed, based, damaged, manifest, shards)
}
