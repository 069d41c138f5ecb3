# SPDX-License-Identifier: Apache-2.0
"""Segments of a GGUF file, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Tensors of block types are rows of blocks of bytes."""

from __future__ import annotations

from weightpack.errors import CorruptionError
from weightpack.io.files import RandomReader
from weightpack.sources.cursor import Cursor
from weightpack.sources.model import Segments, Tensor, tiled

_PLAIN = {0: ("F32", 4), 1: ("F16", 2), 24: ("I8", 1), 25: ("I16", 2), 26: ("I32", 4), 27: ("I64", 8), 28: ("F64", 8), 30: ("BF16", 2)}
# type -> elements of a block, and the widths of its fields in bytes: those of a scale are its low and its high byte
_BLOCKS = {
    2: (32, (1, 1, 16)), 3: (32, (1, 1, 1, 1, 16)), 6: (32, (1, 1, 4, 16)), 7: (32, (1, 1, 1, 1, 4, 16)), 8: (32, (1, 1, 32)),  # Q4_0 Q4_1 Q5_0 Q5_1 Q8_0
    10: (256, (16, 64, 1, 1, 1, 1)), 11: (256, (32, 64, 12, 1, 1)), 12: (256, (1, 1, 1, 1, 12, 128)),  # Q2_K Q3_K Q4_K
    13: (256, (1, 1, 1, 1, 12, 32, 128)), 14: (256, (128, 64, 16, 1, 1)), 15: (256, (4, 128, 128, 32)),  # Q5_K Q6_K Q8_K
    16: (256, (1, 1, 64)), 17: (256, (1, 1, 64, 8)), 18: (256, (1, 1, 96)), 19: (256, (1, 1, 32, 16)),  # IQ2_XXS IQ2_XS IQ3_XXS IQ1_S
    20: (32, (1, 1, 16)),  # IQ4_NL
    21: (256, (1, 1, 64, 8, 32, 4)), 22: (256, (1, 1, 64, 8, 8)), 23: (256, (1, 1, 2, 4, 128)), 29: (256, (32, 16, 8)),  # IQ3_S IQ2_S IQ4_XS IQ1_M
    34: (256, (48, 4, 1, 1)), 35: (256, (64, 1, 1)), 39: (32, (1, 16)),  # TQ1_0 TQ2_0 MXFP4
}  # fmt: skip
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _U32 = 8, 9, 4
_MOST_HEADER = 256 << 20
_MOST_DIMS, _MOST_NAME = 8, 1 << 12
_MOST_TENSORS, _MOST_VALUES = 1 << 18, 1 << 16


def _skip_value(cursor: Cursor, kind: int, depth: int = 0) -> None:
    if kind == _STRING:
        cursor.skip(cursor.number("Q"))
    elif kind == _ARRAY and depth < 4:
        inner, count = cursor.number("I"), cursor.number("Q")
        if inner in _VALUE_BYTES:
            cursor.skip(_VALUE_BYTES[inner] * count)
        else:
            for _ in range(count):  # each takes 8 bytes of the file at least
                _skip_value(cursor, inner, depth + 1)
    elif kind in _VALUE_BYTES:
        cursor.skip(_VALUE_BYTES[kind])
    else:
        raise CorruptionError(f"a GGUF value of type {kind}")


def _name(cursor: Cursor) -> bytes:
    n_bytes = cursor.number("Q")
    if n_bytes > _MOST_NAME:
        raise CorruptionError("a GGUF name that is too long")
    return cursor.take(n_bytes)


def segment_gguf(source: RandomReader) -> Segments:
    """Read the header of a GGUF file and find its tensors."""
    cursor = Cursor(source, _MOST_HEADER)
    cursor.skip(4)
    if cursor.number("I") not in (2, 3):
        raise CorruptionError("a GGUF version that is not known")
    n_tensors, n_values, alignment = cursor.number("Q"), cursor.number("Q"), 32
    if n_tensors > _MOST_TENSORS or n_values > _MOST_VALUES:
        raise CorruptionError("a GGUF file of too many tensors or values")
    for _ in range(n_values):
        key, kind = _name(cursor), cursor.number("I")
        if key == b"general.alignment" and kind == _U32:
            alignment = cursor.number("I")
        else:
            _skip_value(cursor, kind)
    infos = []
    for _ in range(n_tensors):
        name = _name(cursor)
        n_dims = cursor.number("I")
        if n_dims > _MOST_DIMS:
            raise CorruptionError("a GGUF tensor of too many dimensions")
        infos.append((name, tuple(cursor.number("Q") for _ in range(n_dims)), cursor.number("I"), cursor.number("Q")))
    if alignment == 0:
        raise CorruptionError("a GGUF alignment of 0")
    begin = -(-cursor.at // alignment) * alignment
    try:
        tensors = [tensor for info in infos if (tensor := _tensor(*info, begin)) is not None]
    except UnicodeDecodeError:
        raise CorruptionError("a GGUF name that is no text") from None
    return tiled("gguf", tensors, source.size)


def _tensor(name: bytes, dims: tuple[int, ...], kind: int, offset: int, begin: int) -> Tensor | None:
    """Return a tensor, None if its type is not known; GGUF has the innermost dimension first."""
    n_elems = 1
    for size in dims:
        n_elems *= size
    if kind in _PLAIN:
        dtype, elem_bytes = _PLAIN[kind]
        return Tensor(name.decode(), dtype, dims[::-1], begin + offset, n_elems * elem_bytes)
    if kind in _BLOCKS and n_elems % _BLOCKS[kind][0] == 0:
        elems, fields = _BLOCKS[kind]
        n_blocks, n_bytes = n_elems // elems, sum(fields)
        return Tensor(name.decode(), "U8", (n_blocks, n_bytes), begin + offset, n_blocks * n_bytes, fields)
    return None
