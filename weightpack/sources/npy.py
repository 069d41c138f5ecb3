# SPDX-License-Identifier: Apache-2.0
"""Segments of a numpy array file (numpy.lib.format, versions 1 to 3), alone or as a member of an .npz."""

from __future__ import annotations

import ast

from weightpack.errors import CorruptionError
from weightpack.io.files import RandomReader, read_at
from weightpack.sources.model import Segments, Tensor, tiled

_MOST_HEADER = 1 << 16
_DTYPES = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<f2": "F16", "<u4": "U32", "<i4": "I32", "<f4": "F32",
    "<u8": "U64", "<i8": "I64", "<f8": "F64", "<c8": "C64",
}  # fmt: skip


def segment_npy(source: RandomReader) -> Segments:
    """Find the array of a .npy file."""
    return tiled("npy", [array_in(source, "array", 0, source.size)], source.size)


def array_in(source: RandomReader, name: str, begin: int, end: int) -> Tensor:
    """Return the array of the .npy that is bytes [begin, end) of the source; as bytes, if safetensors has no name for its dtype, or it is in Fortran's order.

    Raises
    ------
    CorruptionError
        There is none.
    """
    head = bytes(read_at(source, begin, min(12, end - begin)))
    if len(head) < 12 or not head.startswith(b"\x93NUMPY") or head[6] not in (1, 2, 3):
        raise CorruptionError("not a numpy array")
    size_bytes = 2 if head[6] == 1 else 4
    n = int.from_bytes(head[8 : 8 + size_bytes], "little")
    data = begin + 8 + size_bytes + n
    if n > _MOST_HEADER or data > end:
        raise CorruptionError("a numpy header that is too long")
    try:
        header = ast.literal_eval(bytes(read_at(source, data - n, n)).decode("utf-8" if head[6] == 3 else "latin-1"))
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise CorruptionError("a numpy header that is none") from None
    dtype = _DTYPES.get(descr) if isinstance(descr, str) else None
    if dtype and not fortran and isinstance(shape, tuple) and len(shape) <= 64 and all(type(size) is int and size >= 0 for size in shape):
        n_bytes = int(descr[2:])
        for size in shape:
            n_bytes *= size
        if n_bytes == end - data:
            return Tensor(name, dtype, shape, data, n_bytes)
    return Tensor(name, "U8", (end - data,), data, end - data)
