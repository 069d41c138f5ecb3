# SPDX-License-Identifier: Apache-2.0
"""Segments of a numpy array file (numpy.lib.format, versions 1 to 3), alone or as a member of an .npz."""

from __future__ import annotations

import ast
from dataclasses import replace
from math import prod

from weightpack.errors import CorruptionError
from weightpack.format.layouts import DTYPE_BITS
from weightpack.format.safetensors import MAX_DIMS, is_count
from weightpack.io.files import RandomReader, read_at
from weightpack.sources.model import Segments, Tensor, tiled
from weightpack.sources.sniff import sniffed

_NAME = "array"
_MOST_HEADER = 1 << 16
_DTYPES = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<f2": "F16", "<u4": "U32", "<i4": "I32", "<f4": "F32",
    "<u8": "U64", "<i8": "I64", "<f8": "F64", "<c8": "C64",
}  # fmt: skip


def segment_npy(source: RandomReader) -> Segments:
    """Find the array of a .npy file, and what it is made of.

    An array in Fortran's order is a row of elements, since its shape would name them in another order. Elements that have no name in safetensors are taken
    for what they look like: numpy knows bfloat16 as two bytes of no kind (`|V2`), and those in big-endian order look like no floats.

    Raises
    ------
    CorruptionError
        There is none.
    """
    head = bytes(read_at(source, 0, min(12, source.size)))
    if len(head) < 12 or not head.startswith(b"\x93NUMPY") or head[6] not in (1, 2, 3):
        raise CorruptionError("not a numpy array")
    size_bytes = 2 if head[6] == 1 else 4
    n = int.from_bytes(head[8 : 8 + size_bytes], "little")
    data = 8 + size_bytes + n
    if n > _MOST_HEADER or data > source.size:
        raise CorruptionError("a numpy header that is too long")
    try:
        header = ast.literal_eval(bytes(read_at(source, data - n, n)).decode("utf-8" if head[6] == 3 else "latin-1"))
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise CorruptionError("a numpy header that is none") from None
    return tiled("npy", _arrays(source, descr, bool(fortran), shape, data), source.size)


def _arrays(source: RandomReader, descr: object, fortran: bool, shape: object, data: int) -> list[Tensor]:
    """Return the array whose bytes begin at `data`; as rows of what it looks like, if it can't be an array of a dtype that has a name."""
    sizes = shape if isinstance(shape, tuple) and len(shape) <= MAX_DIMS and all(map(is_count, shape)) else None
    dtype = _DTYPES.get(descr) if isinstance(descr, str) else None
    if dtype and sizes is not None:
        n_elems, n_bytes = prod(sizes), prod(sizes) * DTYPE_BITS[dtype] // 8
        if n_bytes <= source.size - data:  # there may be more arrays after it
            if not fortran or len(sizes) < 2:
                return [Tensor(_NAME, dtype, sizes, data, n_bytes)]
            return [Tensor(_NAME, dtype, (n_elems,), data, n_bytes, row=sizes[0])]
    n_bytes = source.size - data
    tensors = sniffed(source, _NAME, data, n_bytes)
    if len(tensors) == 1 and sizes and len(sizes) > 1 and tensors[0].shape == (prod(sizes),):
        return [replace(tensors[0], row=sizes[0] if fortran else sizes[-1])]
    return tensors
