# SPDX-License-Identifier: Apache-2.0
"""The head of a tensor frame (FORMAT section 9): dtype and shape of one tensor without a file."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from weightpack.errors import CorruptionError, NotPackedError, TruncatedError, UnsupportedError
from weightpack.format.layouts import DTYPE_BITS, tensor_bytes

MAGIC = b"\x89WPT"
CRC_BYTES = 4  # behind the head
_VERSION = 1
_KEPT, _PACKED = 0, 1
_FIXED = struct.Struct("<4sBBBB")
_MOST_DIMS = 64
_MOST_DTYPE_BYTES = 32


@dataclass(frozen=True, slots=True)
class FrameHead:
    """What a frame says of its tensor; `packed`: a record follows, else the bytes."""

    packed: bool
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor."""
        n_bytes = tensor_bytes(self.dtype, self.shape)
        if n_bytes is None:
            raise CorruptionError(f"{self.dtype} of shape {list(self.shape)} is not a whole count of bytes")
        return n_bytes

    def to_bytes(self) -> bytes:
        """Serialise all but the CRC."""
        fixed = _FIXED.pack(MAGIC, _VERSION, _PACKED if self.packed else _KEPT, len(self.dtype), len(self.shape))
        return fixed + self.dtype.encode() + struct.pack(f"<{len(self.shape)}Q", *self.shape)


def head_bytes(frame: memoryview) -> int:
    """Return the length of a frame's head, without its CRC; both are inside the frame."""
    if len(frame) < _FIXED.size:
        raise TruncatedError("the frame ends inside its header")
    magic, version, _, dtype_bytes, n_dims = _FIXED.unpack_from(frame)
    if magic != MAGIC:
        raise NotPackedError("not a tensor frame: wrong magic")
    if version != _VERSION:
        raise UnsupportedError("a tensor frame of a newer version: upgrade weightpack")
    end: int = _FIXED.size + dtype_bytes + 8 * n_dims
    if len(frame) < end + CRC_BYTES:
        raise TruncatedError("the frame ends inside its header")
    return end


def parse_head(head: memoryview) -> FrameHead:
    """Parse a head whose CRC is right."""
    _, _, storage, dtype_bytes, n_dims = _FIXED.unpack_from(head)
    if storage not in (_KEPT, _PACKED):
        raise UnsupportedError("a tensor frame with a storage that this version does not know: upgrade weightpack")
    name = bytes(head[_FIXED.size : _FIXED.size + dtype_bytes])
    if n_dims > _MOST_DIMS or not 1 <= dtype_bytes <= _MOST_DTYPE_BYTES or not name.isascii():
        raise CorruptionError("the frame's header is damaged")
    if name.decode() not in DTYPE_BITS:
        raise UnsupportedError(f"unknown dtype {name.decode()!r}")
    return FrameHead(storage == _PACKED, name.decode(), struct.unpack_from(f"<{n_dims}Q", head, _FIXED.size + dtype_bytes))
