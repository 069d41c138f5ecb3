# SPDX-License-Identifier: Apache-2.0
"""Tensors in memory -> a delta from others of the same names (FORMAT section 19)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightpack.format.delta import CRC_BYTES, Entry, Storage, head_of
from weightpack.kernels import active, crc32c_of
from weightpack.writing.record import encode_record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weightpack.format.buffers import Bytes
    from weightpack.options import PackOptions

Change = tuple[str, str, tuple[int, ...], "Bytes", "Bytes | None"]
"""Name, dtype, shape and bytes of a tensor, and the bytes of its base; None if it has none."""


def encode_delta(changes: Iterable[Change], options: PackOptions, threads: int) -> bytes:
    """Encode what tensors have become."""
    entries: list[Entry] = []
    bodies: list[memoryview] = []
    earlier: dict[tuple[object, ...], int] = {}  # tensors that share their memory, as tied ones do, are stored once
    for name, dtype, shape, data, base in changes:
        storage, body = _encode(data, base, dtype, shape, options, threads)
        base_crc = active().crc32c(base) if base is not None and storage in (Storage.DIFFERENCE, Storage.UNCHANGED) else 0
        body_crc = crc32c_of(body)
        number = earlier.setdefault((dtype, shape, storage, base_crc, len(body), body_crc), len(entries))
        if number < len(entries) and bodies[number] != body:
            number = len(entries)
        entries.append(Entry(name, dtype, shape, storage, base_crc, number, len(body), body_crc))
        bodies.append(body)
    head = head_of(entries)
    return b"".join([head, crc32c_of(head).to_bytes(CRC_BYTES, "little"), *(body for number, body in enumerate(bodies) if entries[number].body == number)])


def _encode(data: Bytes, base: Bytes | None, dtype: str, shape: tuple[int, ...], options: PackOptions, threads: int) -> tuple[Storage, memoryview]:
    if base is not None and active().equal(data, base):
        return Storage.UNCHANGED, memoryview(b"")
    layout = options.layout(dtype, data.size)
    if not data.size or data.size % layout.elem_bytes:
        return Storage.KEPT, memoryview(data)
    base = base if layout.has_differences else None
    record = encode_record(data, layout, options, threads=threads, row_elems=shape[-1] if len(shape) > 1 else 0, base=base)
    if len(record) >= data.size:
        return Storage.KEPT, memoryview(data)
    return (Storage.PACKED if base is None else Storage.DIFFERENCE), record
