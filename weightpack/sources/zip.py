# SPDX-License-Identifier: Apache-2.0
"""Segments of a zip file: PyTorch's checkpoints (.bin, .pt, .pth, .ckpt), numpy's .npz, and any other. Members that are stored, not deflated, are tensors.

A checkpoint's pickle is not unpickled. Its opcodes are read as text is, for one thing: which dtype a storage has.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from math import prod

from weightpack.errors import CorruptionError, FormatError
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader, read_at
from weightpack.sources.model import Segments, Tensor, tiled
from weightpack.sources.npy import array_in

_MOST_PICKLE = 100_000_000
_LOCAL_HEADER = 30
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64", "IntStorage": "I32",
    "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
_UNTYPED = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip


class _Stream(io.RawIOBase):
    """A source as the kind of file that zipfile reads."""

    def __init__(self, source: RandomReader) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n = max(0, min(len(buffer), self._source.size - self._at))
        self._source.read_into(self._at, memoryview(buffer)[:n])
        self._at += n
        return n


def segment_zip(source: RandomReader) -> Segments:
    """Find the stored members of a zip file.

    Raises
    ------
    FormatError
        It is damaged, or no zip.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Stream(source))) as archive:
            members = archive.infolist()
            pickles = [member.filename for member in members if member.filename.endswith("/data.pkl") and member.file_size <= _MOST_PICKLE]
            kinds = _storage_kinds(archive.read(pickles[0])) if pickles else {}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OverflowError, OSError) as error:
        raise CorruptionError(f"not a zip file that can be read: {error}") from None
    root = pickles[0].removesuffix("data.pkl") + "data/" if pickles else None
    tensors = []
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size == 0 or member.file_size != member.compress_size:
            continue
        begin = _data_begin(source, member)
        if root is not None and member.filename.startswith(root):
            tensors.append(_storage(member, begin, *kinds.get(member.filename.removeprefix(root), ("U8", ()))))
        elif member.filename.endswith(".npy"):
            try:
                tensors.append(array_in(source, member.filename, begin, begin + member.file_size))
            except FormatError:
                tensors.append(_storage(member, begin, "U8"))
        elif root is None:
            tensors.append(_storage(member, begin, "U8"))
    kind = "torch" if root is not None else "npz" if any(member.filename.endswith(".npy") for member in members) else "zip"
    return tiled(kind, tensors, source.size)


def _data_begin(source: RandomReader, member: zipfile.ZipInfo) -> int:
    """Return where a member's bytes begin: behind its local header, which may be longer than the directory says."""
    at = member.header_offset
    if at < 0 or at + _LOCAL_HEADER > source.size:
        raise CorruptionError("a zip member lies behind the end")
    header = bytes(read_at(source, at, _LOCAL_HEADER))
    begin = at + _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if not header.startswith(b"PK\x03\x04") or begin + member.file_size > source.size:
        raise CorruptionError("a zip member without a header of its own")
    return begin


def _storage(member: zipfile.ZipInfo, begin: int, dtype: str, shape: tuple[int, ...] = ()) -> Tensor:
    n_bytes, elem_bytes = member.file_size, DTYPE_BITS[dtype] // 8
    dtype, n_elems = (dtype, n_bytes // elem_bytes) if n_bytes % elem_bytes == 0 else ("U8", n_bytes)
    row = shape[-1] if len(shape) > 1 and prod(shape) == n_elems else 0  # of the tensor that has the whole storage
    return Tensor(member.filename, dtype, (n_elems,), begin, n_bytes, row=row)


def _storage_kinds(pickle: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return storage key -> dtype, and the shape of the first tensor that is made of it.

    A checkpoint's pickle names storages by persistent ids, ('storage', torch.FloatStorage, key, device, length). Newer dtypes have no storage class: there it
    is `UntypedStorage`, and the dtype is named later, among the arguments that make the tensor. Behind the id stand the tensor's offset in the
    storage and its sizes, a tuple.
    """
    dtypes: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    untyped: str | None = None
    waiting: str | None = None  # for its sizes
    numbers: list[int] = []
    try:
        for recent, opcode in _pushed_values(pickle):
            if waiting is not None:
                if opcode.startswith("TUPLE") or opcode == "EMPTY_TUPLE":
                    shapes.setdefault(waiting, tuple(numbers[-int(opcode[5:]) :] if opcode[5:].isdigit() else numbers[1:]))
                    waiting = None
                elif opcode.startswith(("BININT", "LONG", "INT")) and recent and isinstance(recent[-1], int):
                    numbers.append(recent[-1])
            if opcode == "BINPERSID" and len(recent) >= 5 and recent[-5] == "storage" and isinstance(recent[-3], str):
                storage, key = str(recent[-4]).rpartition(" ")[2], recent[-3]
                untyped = key if storage == "UntypedStorage" else None
                waiting, numbers = key, []
                if storage in _STORAGES:
                    dtypes[key] = _STORAGES[storage]
            elif untyped is not None and recent and str(recent[-1]).removeprefix("torch ") in _UNTYPED:
                dtypes[untyped] = _UNTYPED[str(recent[-1]).removeprefix("torch ")]
                untyped = None
    except Exception:  # whatever the opcodes of a strange pickle are: what it has told so far is enough
        pass
    return {key: (dtype, shapes.get(key, ())) for key, dtype in dtypes.items()}


def _pushed_values(pickle: bytes) -> Iterator[tuple[list[object], str]]:
    """Yield, for each opcode, the last values that were pushed (or came from the memo), and its name."""
    recent: list[object] = []
    memo: dict[int, object] = {}
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int):
            memo[argument] = recent[-1] if recent else None
        elif name == "MEMOIZE":
            memo[len(memo)] = recent[-1] if recent else None
        elif name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            recent.append(memo.get(argument))
        elif name == "STACK_GLOBAL":
            recent[-2:] = [" ".join(map(str, recent[-2:]))]
        elif argument is not None:
            recent.append(argument)
        yield recent, name
        del recent[:-8]
