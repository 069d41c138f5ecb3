# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints of `torch.distributed.checkpoint` (DCP): each item that DCP writes goes through a stream transform, and back when it is read.

::

    import torch.distributed.checkpoint as dcp
    import weightpack.dcp

    dcp.save(state, storage_writer=weightpack.dcp.writer(path))
    dcp.load(state, storage_reader=weightpack.dcp.reader(path))

An item is a chunk of a tensor, as the zip file that `torch.save` makes of it, or a pickled Python object, as such a zip file too. Nothing of it is unpickled:
`weightpack.sources` finds the storages in it. docs/DCP.md says what to expect.

The format of an item
---------------------
DCP's metadata name the transform: "stream.weightpack/1". All integers are little-endian. The stream that DCP wrote is called the source.

======  ====  ======================================================================
offset  size
======  ====  ======================================================================
0       4     89 57 50 44
4       1     version of this layout, 1
5       1     0: kept, 1: packed
6       4     CRC-32C: see below
======  ====  ======================================================================

*Kept*: the source follows, to the end of the item. The CRC is that of bytes 0 to 5 and of the source.

*Packed*: the source is a sequence of parts and of what lies between them, the rest, whose bytes are joined.

======  ====  ======================================================================
10      8     bytes of the source
18      8     bytes of the stored rest
26      4     n, number of parts
30      28 n  for each part, in the source's order: u64 bytes of the rest between it and the part before, u64 bytes of the source, u64 stored bytes, u32 CRC-32C
...           the stored rest, then each stored part; nothing behind the last
======  ====  ======================================================================

The rest has as many bytes as the source has outside its parts. It is stored as it is if it is stored in as many bytes, else as one zstd frame that gives its
content's size; the frame's dictionary is raw content, the 1766 bytes of `_DICTIONARY` below (CRC-32C 0f78d123). The CRC at offset 6 is that of bytes 0
to 5, of bytes 10 to 29 + 28 n, and of the decoded rest.

A part has at least one byte. It is stored as it is if it is stored in as many bytes, and its CRC is that of its bytes. Otherwise it is stored in fewer, as a
record (FORMAT section 6), which knows its layout and has CRCs of its own, and its CRC is that of the record's header and chunk table: so no part can take
another's place.
"""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import zstandard

from weightpack.errors import ChecksumError, CorruptionError, LimitError, LosslessError, MissingExtraError, NotPackedError, TruncatedError, UnsupportedError
from weightpack.format.record import table_bytes
from weightpack.io.files import MemoryFile, equal_bytes
from weightpack.io.parallel import Scratch, thread_count
from weightpack.io.remote import is_url
from weightpack.kernels import active
from weightpack.options import load_profile
from weightpack.sources import segment
from weightpack.writing.record import decode_record, encode_record

try:
    from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
    from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
except ImportError as error:
    raise MissingExtraError(
        f"weightpack.dcp needs a PyTorch whose distributed checkpoints have stream extensions, 2.7 or later: `pip install 'torch>=2.7'` ({error})"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Buffer

    from weightpack.options import PackOptions

__all__ = ["WeightpackExtension", "reader", "registry", "writer"]

_NAME = "stream.weightpack"
_MAGIC = b"\x89WPD"
_VERSION = 1
_KEPT, _PACKED = 0, 1
_HEAD = struct.Struct("<4sBBI")
_SIZES = struct.Struct("<QQI")
_PART = struct.Struct("<QQQI")
_MAX_BYTES = 1 << 40

_LEAST_PART = 512  # smaller storages are compressed with the rest: a record of so few elements gains nothing, or less than a table entry costs
_MOST_PART = 1 << 25  # larger storages are cut, so that verifying needs no second copy of a whole shard
_ZSTD_LEVEL = 9
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# What `torch.save` writes about a tensor is a kilobyte and a half, nearly the same for each. These are names of storages, and the zip file of one tensor
# without its storage; given them, zstd needs some hundred bytes. They are part of the format.
_DICTIONARY = zlib.decompress(base64.b85decode(
    "c-o~@&x_MQ7@aizWrXgoAd8DG-GflU?KWwXwu&yq5|j#dcUdW3LYhw7V45_OX=ObLvIqYGkDmM=yn6E}%7PccgCKbF>d~2IlP0O#qWeKJ^QH5?_r94ok!{;Nz&6tQFfSir=+EyBG~~|@1~$Te^1u"
    "qF4{fXO&l~o*V+QE^n%N7gDyFSrUh?xp3m=VO*H2XhJ7dG_sv`|)Lx>@oy~5CPZKO`h`5vuNQ(<LT?pZ-54uyQH$tD5FX2D#nf=fU{`oNgLovwzp;^?WV$T{#N5-$=uQKAou>KGfQ%gvDsoC6Alc"
    "7{}RJ<Sf|LAYsWr;Tt<qRo&sC5LUZWYkAvC)s4MliF*7CUfkh=_B(>*KN~;IyP*}<sP9fM6la1bj&%~8~e@$>~Q<e#bT?O$zHp>ee#-AqQA4dTnE>KE{i=I4K=JzAaY54Mc#@v`<LJ;)w^F`UsCb"
    "RLaGf=ol%|cg{qlG-x@*-D{^@`+k8kBDq#1S^D{vx5(@>af!#nrhnUr-+o#C4|A*HP)4<q-RKxL|?^n`<CB0BX4&05nYNw>gx6UDeGGG1H*dlZwxsZ7!)O~Qm=jy%8QT9)7`iIN+eiI0@!=E<pLS"
    "&HBf38t4t43Fmi~lHw7pp>zuh&JMuZb0@QZ5NnsaoReLR~7At2MF43l&iksLICM_g@M`M`5axp<)A_;hVBLr#$`*h@->iUymSvgwV0O6)zGt@J6J_9s?HKns}YC3D+WZK8NZA=8wa}PRd2#j}su~"
    "+c-AtgOv#OB!oSq|M2l_M!@?lSYn)3Go8Na+l<`~keS%{k@3dgtTz(e^sf&oFZaG)skDd5OxJsB{{Tf#pr!"
))  # fmt: skip
_dictionary = zstandard.ZstdCompressionDict(_DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
_scratch = Scratch()


class WeightpackExtension(StreamTransformExtension):
    """DCP's hook: packs what is written to a stream, and restores it. Give it to a writer as `_extensions=[WeightpackExtension()]`.

    It must be the writer's only extension: PyTorch 2.13 undoes several in the order in which it did them, so that loading fails whatever they are.

    Parameters
    ----------
    options
        Default: the profile "fast".
    threads
        Of items of many MB; None: one a core. DCP's own `thread_count` spreads items.
    verify
        Decode each item when it is written, and compare; LosslessError if anything differs.
    max_bytes
        LimitError for an item that claims more when it is read.
    """

    def __init__(self, options: PackOptions | None = None, *, threads: int | None = 1, verify: bool = True, max_bytes: int = _MAX_BYTES) -> None:
        self.options, self.threads, self.verify, self.max_bytes = options or load_profile(), threads, verify, max_bytes
        thread_count(threads)  # refuses what is none

    @staticmethod
    def registry_name() -> str:
        return _NAME

    def get_descriptor(self) -> str:
        return f"{_NAME}/{_VERSION}"

    @staticmethod
    def from_descriptor(version: str) -> WeightpackExtension:
        """Return the extension that reads what `get_descriptor` of some release named; UnsupportedError if that release was newer."""
        _check_version(version)
        return WeightpackExtension()

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        """Return a stream that writes the packed item to `output` when it is closed, then closes `output`, as DCP wants it."""
        return _PackingStream(output, self)  # type: ignore[return-value]  # IO[bytes] is no protocol

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        """Return the item's source in memory, seekable, so that `torch.load` needs no further copy.

        Raises
        ------
        FormatError
            The item is damaged.
        LimitError
            It claims more than `max_bytes`, or more memory than there is.
        """
        return unpack_item(b"".join(iter(input.read, b"")), self.threads, self.max_bytes)


def writer(
    path: str | os.PathLike[str], *, options: PackOptions | None = None, threads: int | None = 1, verify: bool = True, **kwargs: Any
) -> FileSystemWriter:
    """Return DCP's writer for a folder, or for a URL that fsspec knows, with `WeightpackExtension` in it; `kwargs` are the writer's own."""
    extensions = [WeightpackExtension(options, threads=threads, verify=verify)]
    if isinstance(path, str) and is_url(path):
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(path, _extensions=extensions, **kwargs)
    return FileSystemWriter(path, _extensions=extensions, **kwargs)


def reader(path: str | os.PathLike[str], *, threads: int | None = 1, max_bytes: int = _MAX_BYTES, **kwargs: Any) -> FileSystemReader:
    """Return DCP's reader for a folder, or for a URL that fsspec knows, of packed checkpoints and of plain ones; `kwargs` are the reader's own."""
    known = registry(threads=threads, max_bytes=max_bytes)
    if isinstance(path, str) and is_url(path):
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        found = FsspecReader(path, **kwargs)
        found.transforms = type(found.transforms)(known)  # its constructor has no argument for it
        return found
    return FileSystemReader(path, _extension_registry=known, **kwargs)


def registry(*, threads: int | None = 1, max_bytes: int = _MAX_BYTES) -> ExtensionRegistry:
    """Return the registry by which a reader finds `WeightpackExtension`, with these arguments: `FileSystemReader(path, _extension_registry=registry())`."""

    class Configured(WeightpackExtension):
        """DCP makes extensions of descriptors alone."""

        @staticmethod
        def from_descriptor(version: str) -> WeightpackExtension:
            _check_version(version)
            return WeightpackExtension(threads=threads, max_bytes=max_bytes)

    found = ExtensionRegistry()
    found.register(Configured)
    return found


def _check_version(version: str) -> None:
    if version.partition(".")[0] != str(_VERSION):
        raise UnsupportedError(f"the checkpoint was packed by a newer weightpack ({_NAME}/{version}): upgrade weightpack")


class _PackingStream(io.RawIOBase):
    """Holds what is written until it is closed: where the storages are, the end of a zip file says."""

    def __init__(self, output: IO[bytes], extension: WeightpackExtension) -> None:
        self._output, self._extension, self._data = output, extension, bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        if self.closed:
            raise ValueError("write to a closed stream")
        view = memoryview(data)
        self._data += view  # a copy: what torch.save gives is valid during the call alone
        return view.nbytes

    def close(self) -> None:
        if self.closed:
            return
        super().close()  # first: what fails must not be written in a second attempt
        data, self._data = self._data, bytearray()
        for piece in pack_item(data, self._extension.options, self._extension.threads, verify=self._extension.verify):
            self._output.write(piece)
        self._output.close()

    def __del__(self) -> None:
        """A stream that was never closed belongs to a save that failed: io's destructor would write half an item."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A range of the source and how it is stored; `gap` counts the bytes of the rest before it."""

    gap: int
    n_bytes: int
    stored: memoryview
    crc: int


def pack_item(source: bytes | bytearray | memoryview, options: PackOptions, threads: int | None = 1, *, verify: bool = True) -> list[bytes | memoryview]:
    """Pack what DCP has written of an item; return the pieces of the packed item, which may refer to `source`.

    Raises
    ------
    LosslessError
        What was packed does not decode to `source`.
    """
    view, file, n_threads = memoryview(source).cast("B"), MemoryFile([source]), thread_count(threads)
    parts: list[_Part] = []
    rest, end = bytearray(), 0  # of what has been seen
    for offset, n_bytes, dtype in _ranges(file):
        gap = view[end:offset]
        rest += gap
        part = view[offset : offset + n_bytes]
        parts.append(_packed_part(part, dtype, options, n_threads, verify, len(gap)))
        end = offset + n_bytes
    rest += view[end:]
    stored_rest = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, dict_data=_dictionary, write_checksum=False).compress(rest) if rest else b""
    if len(stored_rest) >= len(rest):
        stored_rest = bytes(rest)
    elif verify and _zstd_decode(stored_rest, len(rest)) != rest:
        raise LosslessError("what lies between the item's storages does not decode to what it was: this is a bug in weightpack")
    sizes = _SIZES.pack(len(view), len(stored_rest), len(parts))
    sizes += b"".join(_PART.pack(part.gap, part.n_bytes, len(part.stored), part.crc) for part in parts)
    if len(sizes) + len(stored_rest) + sum(len(part.stored) for part in parts) >= len(view):
        return [_head(_KEPT, view), view]
    return [_head(_PACKED, sizes, rest), sizes, stored_rest, *(part.stored for part in parts)]


def _ranges(file: MemoryFile) -> Iterator[tuple[int, int, str]]:
    """Yield (offset, bytes, dtype) of what is to be a part, ascending."""
    for tensor in sorted(segment(file).tensors, key=lambda tensor: tensor.offset):
        if tensor.n_bytes >= _LEAST_PART:
            for begin in range(0, tensor.n_bytes, _MOST_PART):
                yield tensor.offset + begin, min(_MOST_PART, tensor.n_bytes - begin), tensor.dtype


def _packed_part(part: memoryview, dtype: str, options: PackOptions, threads: int, verify: bool, gap: int) -> _Part:
    data = np.frombuffer(part, np.uint8)
    layout = options.layout(dtype, data.size)
    if data.size % layout.elem_bytes == 0:
        record = encode_record(data, layout, options, threads)
        if len(record) < data.size:
            if verify:
                decoded = _scratch.get(data.size)
                decode_record(record, decoded, threads)
                if not equal_bytes(decoded, data):
                    raise LosslessError("a storage does not decode to what it was: this is a bug in weightpack")
            return _Part(gap, data.size, record, _crc(record[: table_bytes(record[:8], data.size, len(record))]))
    return _Part(gap, data.size, part, _crc(part))


def unpack_item(item: bytes | bytearray | memoryview, threads: int | None = 1, max_bytes: int = _MAX_BYTES) -> io.BytesIO:
    """Restore what DCP has written of an item.

    Raises
    ------
    FormatError
        The item is damaged.
    LimitError
        It claims more than `max_bytes`, or more memory than there is.
    """
    view = memoryview(item).cast("B")
    if len(view) < _HEAD.size:
        raise TruncatedError("the item ends inside its header")
    magic, version, storage, crc = _HEAD.unpack_from(view)
    if magic != _MAGIC:
        raise NotPackedError("not a packed item of a distributed checkpoint: wrong magic")
    if version != _VERSION or storage not in (_KEPT, _PACKED):
        raise UnsupportedError("an item of a newer version, or damaged: if its file is whole, upgrade weightpack")
    body = view[_HEAD.size :]
    if storage == _PACKED:
        return _unpack_parts(view, body, crc, thread_count(threads), max_bytes)
    if len(body) > max_bytes:
        raise LimitError(f"the item has {len(body)} bytes, the limit is {max_bytes}")
    if _item_crc(_KEPT, body) != crc:
        raise ChecksumError("the item's bytes do not match their checksum: the file is damaged")
    return io.BytesIO(body)


def _unpack_parts(view: memoryview, body: memoryview, crc: int, threads: int, max_bytes: int) -> io.BytesIO:
    if len(body) < _SIZES.size:
        raise TruncatedError("the item ends inside its header")
    n_bytes, stored_rest_bytes, n_parts = _SIZES.unpack_from(body)
    position = _SIZES.size + n_parts * _PART.size
    if position + stored_rest_bytes > len(body):
        raise TruncatedError("the item ends inside its table, or inside what lies between its parts")
    sizes, stored_rest = body[:position], body[position : position + stored_rest_bytes]
    if n_bytes > max_bytes:
        raise LimitError(f"the item has {n_bytes} bytes, the limit is {max_bytes}")
    position += stored_rest_bytes
    parts: list[_Part] = []
    rest_bytes = free = n_bytes
    for gap, part_bytes, stored_bytes, part_crc in _PART.iter_unpack(sizes[_SIZES.size :]):
        if not 0 < stored_bytes <= part_bytes or gap + part_bytes > free:
            raise CorruptionError("an entry of the item's table is damaged")
        if position + stored_bytes > len(body):
            raise TruncatedError("the item ends inside a part")
        stored = body[position : position + stored_bytes]
        if _crc(stored[: _covered(stored, part_bytes)]) != part_crc:
            raise ChecksumError("a part of the item does not match its checksum: the file is damaged")
        parts.append(_Part(gap, part_bytes, stored, part_crc))
        free -= gap + part_bytes
        rest_bytes -= part_bytes
        position += stored_bytes
    if position != len(body):
        raise CorruptionError("the item has bytes behind its last part")
    rest = memoryview(bytes(stored_rest) if stored_rest_bytes == rest_bytes else _zstd_decode(bytes(stored_rest), rest_bytes))
    if _item_crc(_PACKED, sizes, rest) != crc:
        raise ChecksumError("the item's header does not match its checksum: the file is damaged")
    room = _room(n_bytes)
    with room.getbuffer() as out:
        at = begin = 0  # in the source, and in the rest
        for part in parts:
            out[at : at + part.gap] = rest[begin : begin + part.gap]
            at, begin = at + part.gap, begin + part.gap
            if len(part.stored) == part.n_bytes:
                out[at : at + part.n_bytes] = part.stored
            else:
                decode_record(part.stored, np.frombuffer(out[at : at + part.n_bytes], np.uint8), threads)
            at += part.n_bytes
        out[at:] = rest[begin:]
    return room


def _covered(stored: memoryview, n_bytes: int) -> int:
    """Return how many bytes of a stored part its CRC is of."""
    return n_bytes if len(stored) == n_bytes else table_bytes(stored[:8], n_bytes, len(stored))


def _room(n_bytes: int) -> io.BytesIO:
    """Return a file of `n_bytes` in memory, to be filled through its buffer: decoding into it saves a copy."""
    room = io.BytesIO()
    if n_bytes:
        try:
            room.seek(n_bytes - 1)
            room.write(b"\0")
        except (MemoryError, OverflowError):
            raise LimitError(f"the item has {n_bytes} bytes: more than there is memory") from None
        room.seek(0)
    return room


def _zstd_decode(frame: bytes, n_bytes: int) -> bytes:
    """Decode one zstd frame that must give exactly `n_bytes`, and claim so before anything is allocated."""
    try:
        if frame[:4] != _ZSTD_MAGIC or zstandard.frame_content_size(frame) != n_bytes:
            raise CorruptionError(f"what lies between the item's parts is no zstd frame of {n_bytes} bytes")
        decoder = zstandard.ZstdDecompressor(dict_data=_dictionary, max_window_size=1 << 27)
        data: bytes = decoder.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptionError(f"what lies between the item's parts is damaged: {error}") from None
    except (MemoryError, OverflowError):
        raise LimitError(f"the item has {n_bytes} bytes outside its parts: more than there is memory") from None
    if len(data) != n_bytes:
        raise CorruptionError(f"what lies between the item's parts does not decode to {n_bytes} bytes")
    return data


def _head(storage: int, *covered: bytes | bytearray | memoryview) -> bytes:
    return _HEAD.pack(_MAGIC, _VERSION, storage, _item_crc(storage, *covered))


def _item_crc(storage: int, *covered: bytes | bytearray | memoryview) -> int:
    crc = _crc(_HEAD.pack(_MAGIC, _VERSION, storage, 0)[:6])
    for data in covered:
        crc = _crc(data, crc)
    return crc


def _crc(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    return active().crc32c(np.frombuffer(data, np.uint8), crc) if len(data) else crc
