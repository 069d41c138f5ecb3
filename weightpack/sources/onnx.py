# SPDX-License-Identifier: Apache-2.0
"""Segments of an ONNX model (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto): initialisers and constants, wherever in the graphs they are.

The file is one protobuf message. It is walked, not parsed: only the fields that lead to a tensor are entered, and of a tensor its name, type, shape and the
place of its data are taken. Data that stands in other files (`external_data`) is not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from weightpack.errors import CorruptionError
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader
from weightpack.sources.cursor import Cursor
from weightpack.sources.model import Segments, Tensor, tiled
from weightpack.sources.sniff import sniffed

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# message -> field -> the message that it holds
_CHILDREN = {
    "model": {7: "graph", 25: "function"}, "graph": {1: "node", 5: "tensor"}, "function": {7: "node"}, "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}  # fmt: skip
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA, _DOUBLE_DATA = 1, 2, 4, 8, 9, 10  # fields of a tensor
_DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32", 13: "U64", 14: "C64", 16: "BF16",
    17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ", 24: "F8_E8M0",
}  # fmt: skip
_LEAST_BYTES = 64  # smaller ones stay in the gaps: a record costs more than it saves
_MOST_DEPTH = 32  # of messages in messages: graphs in the branches of an If in the body of a Loop ...
_MOST_NAME = 4096
_MOST_DIMS = 64


def looks_like_onnx(first: bytes) -> bool:
    """Return whether a file may be a model, by its first bytes: the version of the format, a small number, then a field that a model has."""
    return len(first) > 2 and first[0] == 8 and 0 < first[1] < 64 and first[2] & 7 == _BYTES and first[2] >> 3 in (2, 3, 4, 6, 7, 8, 14)


def segment_onnx(source: RandomReader) -> Segments:
    """Find the tensors of a model.

    Raises
    ------
    CorruptionError
        It is none, or damaged, or no graph is in it.
    """
    tensors: list[Tensor] = []
    cursor = Cursor(source, source.size)
    graphs = 0
    todo: list[tuple[str, int]] = [("model", source.size)]  # the messages that we are in, and where they end
    while todo:
        message, end = todo[-1]
        if cursor.at == end:
            todo.pop()
            continue
        if message == "tensor":
            tensors += _tensor(source, cursor, end)
            todo.pop()
            continue
        field, wire, n_bytes = _field(cursor, end)
        child = _CHILDREN[message].get(field) if wire == _BYTES else None
        if child is None:
            cursor.skip(n_bytes)
        elif len(todo) == _MOST_DEPTH:
            raise CorruptionError("graphs in graphs in graphs")
        else:
            graphs += child == "graph"
            todo.append((child, cursor.at + n_bytes))
    if not graphs:
        raise CorruptionError("no graph")
    return tiled("onnx", tensors, source.size)


def _field(cursor: Cursor, end: int) -> tuple[int, int, int]:
    """Read a field's tag, and its length if it has one; return number, wire type and the bytes that its value takes, at which the cursor stands."""
    tag = cursor.varint()
    field, wire = tag >> 3, tag & 7
    if wire == _BYTES:
        n_bytes = cursor.varint()
    elif wire == _VARINT:
        begin = cursor.at
        cursor.varint()
        n_bytes, cursor.at = cursor.at - begin, begin
    elif wire in (_FIXED32, _FIXED64):
        n_bytes = 4 if wire == _FIXED32 else 8
    else:
        raise CorruptionError(f"a protobuf field of wire type {wire}")
    if field == 0 or n_bytes > end - cursor.at:
        raise CorruptionError("a protobuf field that is not")
    return field, wire, n_bytes


def _tensor(source: RandomReader, cursor: Cursor, end: int) -> list[Tensor]:
    """Read a tensor; none where its data is small. Of a type without a name in safetensors, it is what it looks like."""
    dims: list[int] = []
    name, data_type, data = "tensor", 0, (0, 0)
    while cursor.at < end:
        field, wire, n_bytes = _field(cursor, end)
        behind = cursor.at + n_bytes
        if field == _DIMS:
            dims += _varints(cursor, behind)
        elif field == _DATA_TYPE and wire == _VARINT:
            data_type = cursor.varint()
        elif field == _NAME and wire == _BYTES and 0 < n_bytes <= _MOST_NAME:
            name = cursor.take(n_bytes).decode(errors="replace")
        elif field in (_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA) and wire == _BYTES and data[1] == 0:
            data = cursor.at, n_bytes
        cursor.at = behind
    if data[1] < _LEAST_BYTES:
        return []
    dtype, shape = _DTYPES.get(data_type), tuple(dims)
    if dtype is not None and 8 * data[1] == math.prod(shape) * DTYPE_BITS[dtype]:
        return [Tensor(name, dtype, shape, *data)]
    return sniffed(source, name, *data)


def _varints(cursor: Cursor, behind: int) -> Iterator[int]:
    n = 0
    while cursor.at < behind and n < _MOST_DIMS:
        yield cursor.varint()
        n += 1
