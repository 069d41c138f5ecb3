# SPDX-License-Identifier: Apache-2.0
"""One tensor without a file (FORMAT section 9): `encode` and `decode`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.arrays import dtype_name, numpy_dtype
from weightpack.chunk_decoder import decode_chunk
from weightpack.chunk_encoder import chunk_crc, encode_chunk
from weightpack.dtypes import DTYPE_BITS, layout_of, tensor_bytes
from weightpack.errors import ChecksumError, CorruptionError, LimitError, OptionError, TruncatedError, UnsupportedError
from weightpack.files import pieces
from weightpack.format.constants import KEPT_PIECE_BYTES, MAX_CHUNK_BYTES
from weightpack.format.record import RecordHead, parse_record_head, table_bytes, table_end
from weightpack.kernels import active
from weightpack.options import PackOptions, load_profile
from weightpack.parallel import ordered_map, thread_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.dtypes import Layout

MAGIC = b"\x89WPT"
_VERSION = 1
_KEPT, _PACKED = 0, 1
_HEAD = struct.Struct("<4sBBBB")


def encode_record(data: NDArray[np.uint8], layout: Layout, options: PackOptions, threads: int = 1) -> bytes:
    """Encode a whole tensor in memory as a record (FORMAT section 6)."""
    chunk_bytes = min(options.chunk_elems * layout.elem_bytes, MAX_CHUNK_BYTES)
    parts = [(number, data[offset : offset + n]) for number, (offset, n) in enumerate(pieces(data.size, chunk_bytes))]
    encoded = list(ordered_map(lambda part: (encode_chunk(part[1], layout, options), chunk_crc(part[1], part[0])), parts, threads))
    offsets = np.cumsum([table_end(len(parts)), *(chunk.n_bytes for chunk, _ in encoded)])
    crcs = np.array([crc for _, crc in encoded], np.uint32)
    head = RecordHead(layout, data.size // layout.elem_bytes, chunk_bytes // layout.elem_bytes, offsets, crcs)
    return b"".join([head.to_bytes(), *(memoryview(part) for chunk, _ in encoded for part in chunk.parts)])


def decode_record(record: memoryview, out: NDArray[np.uint8], threads: int = 1) -> None:
    """Decode a record in memory into `out`, (n_bytes,) uint8."""
    head = parse_record_head(record[: table_bytes(record, out.size, len(record))], out.size, len(record))
    offsets, chunk_bytes = head.offsets.tolist(), head.chunk_elems * head.layout.elem_bytes

    def work(i: int) -> None:
        decode_chunk(
            head.layout, record[offsets[i] : offsets[i + 1]], head.elems_of(i), i, int(head.crcs[i]), out[i * chunk_bytes : (i + 1) * chunk_bytes]
        )

    for _ in ordered_map(work, range(head.n_chunks), threads):
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
    layout = layout_of(dtype)
    record = encode_record(data, layout, options or load_profile(), thread_count(threads)) if data.size and data.size % layout.elem_bytes == 0 else None
    packed = record is not None and len(record) < data.size
    head = _HEAD.pack(MAGIC, _VERSION, _PACKED if packed else _KEPT, len(dtype), len(shape)) + dtype.encode() + struct.pack(f"<{len(shape)}Q", *shape)
    head += active().crc32c(head).to_bytes(4, "little")
    if packed:
        assert record is not None
        return head + record
    crcs = [chunk_crc(data[offset : offset + n], i) for i, (offset, n) in enumerate(pieces(data.size, KEPT_PIECE_BYTES))]
    return head + struct.pack(f"<{len(crcs)}I", *crcs) + data.tobytes()


def decode(frame: bytes | bytearray | memoryview, *, threads: int | None = 1, max_bytes: int = 1 << 40) -> NDArray[Any]:
    """Decode a tensor frame into a new array.

    Raises
    ------
    FormatError
        The frame is damaged.
    LimitError
        It claims more than `max_bytes`.
    """
    data, dtype, shape = decode_bytes(frame, threads=threads, max_bytes=max_bytes)
    return data.view(numpy_dtype(dtype)).reshape(shape)


def decode_bytes(
    frame: bytes | bytearray | memoryview, *, threads: int | None = 1, max_bytes: int = 1 << 40
) -> tuple[NDArray[np.uint8], str, tuple[int, ...]]:
    """Decode a tensor frame; return (n_bytes,) uint8, dtype and shape."""
    view = memoryview(frame).cast("B")
    if len(view) < _HEAD.size:
        raise TruncatedError("the frame ends inside its header")
    magic, version, storage, dtype_bytes, n_dims = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise CorruptionError("not a tensor frame: wrong magic")
    if version != _VERSION or storage not in (_KEPT, _PACKED):
        raise UnsupportedError("a tensor frame of a newer version: upgrade weightpack")
    end = _HEAD.size + dtype_bytes + 8 * n_dims
    if len(view) < end + 4:
        raise TruncatedError("the frame ends inside its header")
    if active().crc32c(bytes(view[:end])) != int.from_bytes(view[end : end + 4], "little"):
        raise ChecksumError("the frame's header does not match its checksum")
    dtype = bytes(view[_HEAD.size : _HEAD.size + dtype_bytes]).decode("ascii", "replace")
    shape = struct.unpack_from(f"<{n_dims}Q", view, _HEAD.size + dtype_bytes)
    if n_dims > 64 or not dtype_bytes <= 32:
        raise CorruptionError("the frame's header is damaged")
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
