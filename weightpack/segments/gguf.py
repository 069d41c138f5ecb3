# SPDX-License-Identifier: Apache-2.0
"""Segments of a GGUF file, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Tensors of block types are rows of blocks of bytes."""

from __future__ import annotations

import struct

from weightpack.errors import CorruptionError
from weightpack.files import RandomReader, read_at
from weightpack.segments import Segments, Tensor, tiled

_PLAIN = {0: ("F32", 4), 1: ("F16", 2), 24: ("I8", 1), 25: ("I16", 2), 26: ("I32", 4), 27: ("I64", 8), 28: ("F64", 8), 30: ("BF16", 2)}
# type -> elements and bytes of a block
_BLOCKS = {
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),  # Q4_0 Q4_1 Q5_0 Q5_1 Q8_0
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),  # Q2_K .. Q6_K, Q8_K
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56),  # IQ2_XXS ..
    34: (256, 54), 35: (256, 66), 39: (32, 17),  # TQ1_0 TQ2_0 MXFP4
}  # fmt: skip
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _U32 = 8, 9, 4
_WINDOW = 1 << 20
_MOST_HEADER = 256 << 20
_MOST_DIMS = 8


class _Reader:
    """Reads fields one after the other, through a window of the file."""

    def __init__(self, source: RandomReader) -> None:
        self._source, self.at = source, 0
        self._window, self._begin = b"", 0

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > min(self._source.size, _MOST_HEADER) - self.at:
            raise CorruptionError("the GGUF header ends early, or is too long")
        offset = self.at - self._begin
        if not 0 <= offset <= len(self._window) - n_bytes:
            self._window = bytes(read_at(self._source, self.at, min(max(n_bytes, _WINDOW), self._source.size - self.at)))
            self._begin, offset = self.at, 0
        self.at += n_bytes
        return self._window[offset : offset + n_bytes]

    def number(self, format: str) -> int:
        return int(struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}")))[0])

    def skip(self, n_bytes: int) -> None:
        if n_bytes > min(self._source.size, _MOST_HEADER) - self.at:
            raise CorruptionError("the GGUF header ends early, or is too long")
        self.at += n_bytes

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self.skip(self.number("Q"))
        elif kind == _ARRAY and depth < 4:
            inner, count = self.number("I"), self.number("Q")
            if inner in _VALUE_BYTES:
                self.skip(_VALUE_BYTES[inner] * count)
            else:
                for _ in range(count):  # each takes 8 bytes of the file at least
                    self.skip_value(inner, depth + 1)
        elif kind in _VALUE_BYTES:
            self.skip(_VALUE_BYTES[kind])
        else:
            raise CorruptionError(f"a GGUF value of type {kind}")


def segment_gguf(source: RandomReader) -> Segments:
    """Read the header of a GGUF file and find its tensors."""
    reader = _Reader(source)
    reader.skip(4)
    if reader.number("I") not in (2, 3):
        raise CorruptionError("a GGUF version that is not known")
    n_tensors, n_values, alignment = reader.number("Q"), reader.number("Q"), 32
    for _ in range(n_values):
        key, kind = reader.take(reader.number("Q")), reader.number("I")
        if key == b"general.alignment" and kind == _U32:
            alignment = reader.number("I")
        else:
            reader.skip_value(kind)
    infos = []
    for _ in range(n_tensors):
        name = reader.take(reader.number("Q"))
        n_dims = reader.number("I")
        if n_dims > _MOST_DIMS:
            raise CorruptionError("a GGUF tensor of too many dimensions")
        infos.append((name, tuple(reader.number("Q") for _ in range(n_dims)), reader.number("I"), reader.number("Q")))
    if alignment == 0:
        raise CorruptionError("a GGUF alignment of 0")
    begin = -(-reader.at // alignment) * alignment
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
        elems, n_bytes = _BLOCKS[kind]
        return Tensor(name.decode(), "U8", (n_elems // elems, n_bytes), begin + offset, n_elems // elems * n_bytes)
    return None
