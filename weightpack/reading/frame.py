# SPDX-License-Identifier: Apache-2.0
"""A tensor frame -> its tensor (FORMAT section 9): `weightpack.decode`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.arrays.dtypes import shaped
from weightpack.arrays.memory import aligned_bytes
from weightpack.errors import ChecksumError, LimitError, TruncatedError
from weightpack.format.constants import KEPT_PIECE_BYTES
from weightpack.format.frame import CRC_BYTES, head_bytes, parse_head
from weightpack.format.record import table_bytes
from weightpack.io.files import pieces
from weightpack.io.parallel import thread_count
from weightpack.kernels import active, chunk_crc
from weightpack.reading.record import decode_record

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


def decode_bytes(frame: bytes | bytearray | memoryview, *, threads: int | None = 1, max_bytes: int = 1 << 40) -> tuple[NDArray[np.uint8], str, tuple[int, ...]]:
    """Decode a tensor frame; return (n_bytes,) uint8, dtype and shape."""
    view = memoryview(frame).cast("B")
    end = head_bytes(view)
    if active().crc32c(bytes(view[:end])) != int.from_bytes(view[end : end + CRC_BYTES], "little"):
        raise ChecksumError("the frame's header does not match its checksum")
    head = parse_head(view[:end])
    n_bytes = head.n_bytes
    if n_bytes > max_bytes:
        raise LimitError(f"the tensor has {n_bytes} bytes, the limit is {max_bytes}")
    body = view[end + CRC_BYTES :]
    if head.packed:
        table_bytes(body[:8], n_bytes, len(body))  # before anything of n_bytes is allocated
        out = aligned_bytes(n_bytes)
        decode_record(body, out, thread_count(threads))
    else:
        out = _kept(body, n_bytes)
    return out, head.dtype, head.shape


def _kept(body: memoryview, n_bytes: int) -> NDArray[np.uint8]:
    """Return a copy of the bytes of a kept tensor, whose checksums stand before them (FORMAT 5.5)."""
    n_pieces = -(-n_bytes // KEPT_PIECE_BYTES)
    if len(body) != 4 * n_pieces + n_bytes:
        raise TruncatedError(f"the frame has {len(body)} bytes after its header, expected {4 * n_pieces + n_bytes}")
    out = aligned_bytes(n_bytes)
    out[:] = np.frombuffer(body[4 * n_pieces :], np.uint8)
    crcs = struct.unpack_from(f"<{n_pieces}I", body)
    for number, (offset, n) in enumerate(pieces(n_bytes, KEPT_PIECE_BYTES)):
        if chunk_crc(out[offset : offset + n], number) != crcs[number]:
            raise ChecksumError("the bytes do not match their checksum", chunk=number)
    return out
