# SPDX-License-Identifier: Apache-2.0
"""CRC-32C in numpy (FORMAT 1.7).

The CRC is linear: columns of a matrix go in step, each from its own start; then neighbours are joined in pairs.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from weightpack.kernels.numpy_checks import u8

if TYPE_CHECKING:
    from weightpack.format.buffers import Buffer, Words


_CRC_COLUMNS = 4096  # a power of two, as are the rows: few operators to keep


@cache
def _crc_table() -> Words:
    table: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> np.uint32(1) ^ (table & np.uint32(1)) * np.uint32(0x82F63B78)
    return table


@cache
def _zeros_operator(log2_bytes: int) -> Words:
    """Return what 2^log2_bytes zero bytes make of a register's byte i of value v, at [i, v]."""
    if log2_bytes == 0:
        registers = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
        operator: Words = registers >> 8 ^ _crc_table()[registers & 255]
        return operator
    half = _zeros_operator(log2_bytes - 1)
    return _apply(half, half)


def _apply(operator: Words, registers: Words) -> Words:
    moved: Words = operator[0][registers & 255]
    for i in (1, 2, 3):
        moved ^= operator[i][registers >> 8 * i & 255]
    return moved


def crc32c(data: Buffer, crc: int) -> int:
    data, table, register = u8(data), _crc_table(), crc ^ 0xFFFFFFFF
    while data.size >= 4 * _CRC_COLUMNS:
        log2_rows = (data.size // _CRC_COLUMNS).bit_length() - 1
        n_bytes = _CRC_COLUMNS << log2_rows
        columns = np.zeros(_CRC_COLUMNS, np.uint32)
        columns[0] = register
        for row in data[:n_bytes].reshape(_CRC_COLUMNS, -1).T.copy():
            columns = columns >> 8 ^ table[(columns ^ row) & 255]
        while columns.size > 1:  # the left one, moved over as many bytes as the right one has read
            columns = _apply(_zeros_operator(log2_rows), columns[::2]) ^ columns[1::2]
            log2_rows += 1
        register, data = int(columns[0]), data[n_bytes:]
    plain = table.tolist()
    for byte in data.tolist():
        register = register >> 8 ^ plain[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF
