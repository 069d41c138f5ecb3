# SPDX-License-Identifier: Apache-2.0
"""What DCP writes of an item -> a packed item (FORMAT section 16).

An item is a chunk of a tensor, as the zip file that `torch.save` makes of it, or a pickled Python object, as such a zip file too. Nothing of it is unpickled:
`weightpack.sources` finds the storages in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from weightpack.errors import LosslessError
from weightpack.format.item import DICTIONARY, ItemPart, ItemTable, covered_head, head_with
from weightpack.io.files import MemoryFile, equal_bytes
from weightpack.io.parallel import Scratch, thread_count
from weightpack.kernels import crc32c_of
from weightpack.options import PackOptions
from weightpack.reading.item import covered_bytes, decode_rest
from weightpack.reading.record import decode_record
from weightpack.sources import segment
from weightpack.sources.model import Tensor
from weightpack.writing.record import encode_record

_LEAST_PART = 512  # smaller storages are compressed with the rest: a record of so few elements gains nothing, or less than a table entry costs
_MOST_PART = 1 << 25  # larger storages are cut, so that verifying needs no second copy of a whole shard
_ZSTD_LEVEL = 9
_dictionary = zstandard.ZstdCompressionDict(DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
_scratch = Scratch()


@dataclass(frozen=True, slots=True)
class _Range:
    """Bytes of the source that are to be a part: `n_bytes` of a storage, from its byte `begin`."""

    storage: Tensor
    begin: int
    n_bytes: int

    @property
    def offset(self) -> int:
        """Where they stand in the source."""
        return self.storage.offset + self.begin


def pack_item(source: bytes | bytearray | memoryview, options: PackOptions, threads: int | None = 1, *, verify: bool = True) -> list[bytes | memoryview]:
    """Pack what DCP has written of an item; return the pieces of the packed item, which may refer to `source`.

    Raises
    ------
    LosslessError
        What was packed does not decode to `source`.
    """
    view, n_threads = memoryview(source).cast("B"), thread_count(threads)
    parts: list[ItemPart] = []
    stored_parts: list[memoryview] = []
    rest, end = bytearray(), 0  # of what has been seen
    for part_range in _ranges(MemoryFile([source])):
        gap, end_of_part = view[end : part_range.offset], part_range.offset + part_range.n_bytes
        rest += gap
        stored = _stored(view[part_range.offset : end_of_part], part_range, options, n_threads, verify=verify)
        parts.append(ItemPart(len(gap), part_range.n_bytes, len(stored), crc32c_of(stored[: covered_bytes(stored, part_range.n_bytes)])))
        stored_parts.append(stored)
        end = end_of_part
    rest += view[end:]
    stored_rest = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, dict_data=_dictionary, write_checksum=False).compress(rest) if rest else b""
    if len(stored_rest) >= len(rest):
        stored_rest = bytes(rest)
    elif verify and decode_rest(stored_rest, len(rest)) != rest:
        raise LosslessError("what lies between the item's storages does not decode to what it was: this is a bug in weightpack")
    table = ItemTable(len(view), len(stored_rest), tuple(parts)).to_bytes()
    if len(table) + len(stored_rest) + sum(len(stored) for stored in stored_parts) >= len(view):
        return [head_with(crc32c_of(covered_head(packed=False), view), packed=False), view]
    return [head_with(crc32c_of(covered_head(packed=True), table, rest), packed=True), table, stored_rest, *stored_parts]


def _ranges(file: MemoryFile) -> Iterator[_Range]:
    """Yield what is to be a part, ascending."""
    for storage in sorted(segment(file).tensors, key=lambda tensor: tensor.offset):
        if storage.n_bytes >= _LEAST_PART:
            for begin in range(0, storage.n_bytes, _MOST_PART):
                yield _Range(storage, begin, min(_MOST_PART, storage.n_bytes - begin))


def _stored(part: memoryview, part_range: _Range, options: PackOptions, threads: int, *, verify: bool) -> memoryview:
    """Return a part as a record, or as it is where that is no larger."""
    data = np.frombuffer(part, np.uint8)
    layout = options.layout(part_range.storage.dtype, data.size)
    if data.size % layout.elem_bytes:
        return part
    first_elem = part_range.begin // layout.elem_bytes
    record = encode_record(data, layout, options, threads=threads, row_elems=part_range.storage.row_elems, first_elem=first_elem)
    if len(record) >= data.size:
        return part
    if verify:
        decoded = _scratch.get(data.size)
        decode_record(record, decoded, threads)
        if not equal_bytes(decoded, data):
            raise LosslessError("a storage does not decode to what it was: this is a bug in weightpack")
    return record
