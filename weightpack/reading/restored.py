# SPDX-License-Identifier: Apache-2.0
"""The source of a packed file, read at any offset: so that a packed file serves as base like a plain one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import TruncatedError
from weightpack.format.index import Gap
from weightpack.io.files import RandomReader
from weightpack.reading.packed_file import PackedFile, StoredTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RestoredFile:
    """The source of an open packed file, as a file: what is read is decoded."""

    def __init__(self, packed: PackedFile) -> None:
        self.packed = packed
        self.name, self.size, self.piece_bytes = packed.file.name, packed.index.source_bytes, packed.file.piece_bytes
        parts: list[tuple[int, int, Gap | StoredTensor]] = [(gap.offset, gap.offset + gap.n_bytes, gap) for gap in packed.index.gaps]
        parts += [(s.tensor.offset, s.tensor.offset + s.tensor.n_bytes, s) for s in packed.tensors.values() if s.tensor.n_bytes]
        self._parts = sorted(parts, key=lambda part: part[0])
        self._ends = np.array([end for _, end, _ in self._parts], np.int64)
        self.depth = 0 if packed.index.base is None else 1 + max((depth_of(base) for base in packed.bases), default=0)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the source."""
        stop = offset + len(buffer)
        if stop > self.size:
            raise TruncatedError(f"bytes to {stop} are wanted, there are {self.size}", path=self.name)
        out: NDArray[np.uint8] = np.frombuffer(buffer, np.uint8)
        for begin, end, part in self._parts[int(np.searchsorted(self._ends, offset, "right")) :]:
            if begin >= stop:
                break
            low, high = max(begin, offset), min(end, stop)
            to = out[low - offset : high - offset]
            if isinstance(part, Gap):
                to[:] = np.frombuffer(self.packed.decode_gap(part), np.uint8)[low - begin : high - begin]
            else:
                for piece in self.packed.pieces(part, low - begin, high - begin):
                    self.packed.decode_part(part, piece, low - begin, to)

    def changed(self) -> bool:
        return self.packed.file.changed()

    def close(self) -> None:
        close_packed(self.packed)


def depth_of(reader: RandomReader) -> int:
    return reader.depth if isinstance(reader, RestoredFile) else 0


def close_packed(packed: PackedFile) -> None:
    """Close a packed file and its bases."""
    packed.file.close()
    bases, packed.bases = packed.bases, ()  # first: others may share them, and a base that is closed again is as many calls as there are ways to it
    for base in bases:
        base.close()
