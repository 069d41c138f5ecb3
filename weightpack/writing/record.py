# SPDX-License-Identifier: Apache-2.0
"""One tensor without a file (FORMAT section 9): `encode` and `decode`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.arrays.dtypes import dtype_name, shaped
from weightpack.errors import ChecksumError, CorruptionError, LimitError, NotPackedError, OptionError, TruncatedError, UnsupportedError
from weightpack.format.constants import KEPT_PIECE_BYTES, MAX_CHUNK_BYTES
from weightpack.format.layouts import DTYPE_BITS, tensor_bytes
from weightpack.format.record import RecordHead, chunk_bound, parse_record_head, record_bound, table_bytes, table_end
from weightpack.io.files import pieces
from weightpack.io.parallel import Scratch, Turnstile, ordered_map, thread_count
from weightpack.kernels import active
from weightpack.options import PackOptions, load_profile
from weightpack.reading.chunks import decode_chunks
from weightpack.writing.chunks import EncodedChunk, chunk_crc, encode_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.layouts import Layout

MAGIC = b"\x89WPT"
_VERSION = 1
_KEPT, _PACKED = 0, 1
_HEAD = struct.Struct("<4sBBBB")
_RUN_BYTES = 2 << 20  # for one thread in one go


def encode_record(
    data: NDArray[np.uint8], layout: Layout, options: PackOptions, threads: int = 1, out: NDArray[np.uint8] | None = None
) -> memoryview:
    """Encode a whole tensor in memory as a record (FORMAT section 6), in a part of `out` (of `record_bound`) or of a new buffer."""
    chunk_bytes = min(options.chunk_elems * layout.elem_bytes, MAX_CHUNK_BYTES)
    chunk_elems, n_chunks = chunk_bytes // layout.elem_bytes, -(-data.size // chunk_bytes)
    begin = table_end(n_chunks)
    if out is None:
        out = np.empty(record_bound(layout, data.size // layout.elem_bytes, chunk_elems), np.uint8)
    per_run = n_chunks if threads == 1 else max(1, _RUN_BYTES // chunk_bytes)
    turnstile, scratch = Turnstile(begin), Scratch()

    def encode_run(turn: int) -> list[EncodedChunk]:
        first = turn * per_run
        part = data[first * chunk_bytes : (first + per_run) * chunk_bytes]
        if threads == 1:
            return encode_chunks(part, layout, chunk_elems, first, options, out[begin:])
        try:  # where a run begins is known when those before it are done
            room = scratch.get(per_run * chunk_bound(layout, chunk_elems))
            chunks = encode_chunks(part, layout, chunk_elems, first, options, room)
            n_bytes = sum(chunk.n_bytes for chunk in chunks)
            position = turnstile.take(turn, n_bytes)
            out[position : position + n_bytes] = room[:n_bytes]
            return chunks
        except BaseException:
            turnstile.fail()
            raise

    offsets, crcs = [begin], []
    for chunks in ordered_map(encode_run, range(-(-n_chunks // per_run)), threads, lambda turn: _RUN_BYTES):
        for chunk in chunks:
            offsets.append(offsets[-1] + chunk.n_bytes)
            crcs.append(chunk.crc)
    head = RecordHead(layout, data.size // layout.elem_bytes, chunk_elems, np.array(offsets, np.int64), np.array(crcs, np.uint32))
    out[:begin] = np.frombuffer(head.to_bytes(), np.uint8)
    return memoryview(out)[: offsets[-1]]


def decode_record(record: memoryview, out: NDArray[np.uint8], threads: int = 1) -> None:
    """Decode a record in memory into `out`, (n_bytes,) uint8."""
    head = parse_record_head(record[: table_bytes(record, out.size, len(record))], out.size, len(record))
    chunk_elems, elem_bytes = head.chunk_elems, head.layout.elem_bytes
    per_run = head.n_chunks if threads == 1 else max(1, _RUN_BYTES // (chunk_elems * elem_bytes))

    def work(first: int) -> None:
        last = min(first + per_run, head.n_chunks)
        offsets, begin, end = head.offsets[first : last + 1], first * chunk_elems, min(last * chunk_elems, head.n_elems)
        data = record[int(offsets[0]) : int(offsets[-1])]
        decode_chunks(head.layout, data, offsets, head.crcs[first:last], chunk_elems, end - begin, first, out[begin * elem_bytes : end * elem_bytes])

    for _ in ordered_map(work, range(0, head.n_chunks, per_run), threads, lambda first: _RUN_BYTES):
        pass


def encode(array: NDArray[Any], *, options: PackOptions | None = None, threads: int | None = 1) -> bytes:
    """Encode one array as a tensor frame.

    Parameters
    ----------
    array
        Of any dtype that safetensors has; bfloat16 and float8 through `ml_dtypes`. Made C-contiguous if it is not.
    options
        Default: the profile "fast".

    Raises
    ------
    OptionError
        safetensors has no such dtype.
    """
    array = np.asarray(array)
    shape = array.shape
    return encode_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8), dtype_name(array.dtype), shape, options=options, threads=threads)


def encode_bytes(
    data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...], *, options: PackOptions | None = None, threads: int | None = 1
) -> bytes:
    """Encode a tensor's bytes, (n_bytes,) uint8, as a frame; `dtype` in safetensors' spelling."""
    if dtype not in DTYPE_BITS or tensor_bytes(dtype, shape) != data.size:
        raise OptionError(f"{data.size} bytes do not hold {dtype} of shape {list(shape)}")
    options = options or load_profile()
    layout = options.layout(dtype, data.size)
    record = encode_record(data, layout, options, thread_count(threads)) if data.size and data.size % layout.elem_bytes == 0 else None
    packed = record is not None and len(record) < data.size
    head = _HEAD.pack(MAGIC, _VERSION, _PACKED if packed else _KEPT, len(dtype), len(shape)) + dtype.encode() + struct.pack(f"<{len(shape)}Q", *shape)
    head += active().crc32c(head).to_bytes(4, "little")
    if packed:
        assert record is not None
        return b"".join([head, record])
    crcs = [chunk_crc(data[offset : offset + n], i) for i, (offset, n) in enumerate(pieces(data.size, KEPT_PIECE_BYTES))]
    return head + struct.pack(f"<{len(crcs)}I", *crcs) + data.tobytes()


def decode(frame: bytes | bytearray | memoryview, *, threads: int | None = 1, max_bytes: int = 1 << 40) -> NDArray[Any]:
    """Decode a tensor frame into a new array.

    Raises
    ------
    FormatError
        The frame is damaged.
    LimitError
        It claims more than `max_bytes`, or a shape that numpy has not.
    """
    data, dtype, shape = decode_bytes(frame, threads=threads, max_bytes=max_bytes)
    return shaped(data, dtype, shape)


def decode_bytes(
    frame: bytes | bytearray | memoryview, *, threads: int | None = 1, max_bytes: int = 1 << 40
) -> tuple[NDArray[np.uint8], str, tuple[int, ...]]:
    """Decode a tensor frame; return (n_bytes,) uint8, dtype and shape."""
    view = memoryview(frame).cast("B")
    if len(view) < _HEAD.size:
        raise TruncatedError("the frame ends inside its header")
    magic, version, storage, dtype_bytes, n_dims = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise NotPackedError("not a tensor frame: wrong magic")
    if version != _VERSION:
        raise UnsupportedError("a tensor frame of a newer version: upgrade weightpack")
    end = _HEAD.size + dtype_bytes + 8 * n_dims
    if len(view) < end + 4:
        raise TruncatedError("the frame ends inside its header")
    if active().crc32c(bytes(view[:end])) != int.from_bytes(view[end : end + 4], "little"):
        raise ChecksumError("the frame's header does not match its checksum")
    if storage not in (_KEPT, _PACKED):
        raise UnsupportedError("a tensor frame with a storage that this version does not know: upgrade weightpack")
    name = bytes(view[_HEAD.size : _HEAD.size + dtype_bytes])
    shape = struct.unpack_from(f"<{n_dims}Q", view, _HEAD.size + dtype_bytes)
    if n_dims > 64 or not 1 <= dtype_bytes <= 32 or not name.isascii():
        raise CorruptionError("the frame's header is damaged")
    dtype = name.decode()
    if dtype not in DTYPE_BITS:
        raise UnsupportedError(f"unknown dtype {dtype!r}")
    n_bytes = tensor_bytes(dtype, shape)
    if n_bytes is None:
        raise CorruptionError(f"{dtype} of shape {list(shape)} is not a whole count of bytes")
    if n_bytes > max_bytes:
        raise LimitError(f"the tensor has {n_bytes} bytes, the limit is {max_bytes}")
    body = view[end + 4 :]
    if storage == _PACKED:
        table_bytes(body[:8], n_bytes, len(body))  # before anything of n_bytes is allocated
        out = np.empty(n_bytes, np.uint8)
        decode_record(body, out, thread_count(threads))
        return out, dtype, shape
    n_pieces = -(-n_bytes // KEPT_PIECE_BYTES)
    if len(body) != 4 * n_pieces + n_bytes:
        raise TruncatedError(f"the frame has {len(body)} bytes behind its header, expected {4 * n_pieces + n_bytes}")
    out = np.frombuffer(body[4 * n_pieces :], np.uint8).copy()
    crcs = struct.unpack_from(f"<{n_pieces}I", body)
    for i, (offset, n) in enumerate(pieces(n_bytes, KEPT_PIECE_BYTES)):
        if chunk_crc(out[offset : offset + n], i) != crcs[i]:
            raise ChecksumError("the bytes do not match their checksum", chunk=i)
    return out, dtype, shape
