# SPDX-License-Identifier: Apache-2.0
"""A tensor as its record in memory: decoded whole, or in rows."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from weightpack.format.layouts import DTYPE_BITS, tensor_bytes
from weightpack.io.parallel import Scratch, spread
from weightpack.kernels import Product
from weightpack.options import PackOptions, load_profile
from weightpack.reading.record import Record
from weightpack.writing.record import encode_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes

_RUN_BYTES = 1 << 20  # for one thread in one go
_RUNS_OF_A_THREAD = 4  # of a product: one that another program holds up is waited for by less
_MATRIX_DIMS = 2
_scratch = Scratch()


class PackedWeight:
    """A tensor of at least one dimension and one element that is held as a record.

    Parameters
    ----------
    dtype
        In safetensors' spelling.
    record : (packed_bytes,) uint8
        Of the tensor's bytes. It may be mapped from a file.

    Raises
    ------
    FormatError
        The record is damaged, or of a tensor of another size.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], record: Bytes) -> None:
        self.dtype, self.shape = dtype, shape
        self.n_bytes = tensor_bytes(dtype, shape) or 0
        self._record = Record(memoryview(record), self.n_bytes)

    @classmethod
    def of(cls, dtype: str, shape: tuple[int, ...], data: Bytes, options: PackOptions | None = None, threads: int = 1) -> PackedWeight:
        """Pack a tensor's bytes, (n_bytes,) uint8; `options` as for `weightpack.pack`."""
        options = options or load_profile()
        record = encode_record(data, options.layout(dtype, data.size), options, threads=threads, row_elems=shape[-1] if len(shape) > 1 else 0)
        return cls(dtype, shape, np.array(record))  # a copy: room was made for a record that gains nothing

    @property
    def record(self) -> Bytes:
        return np.frombuffer(self._record.data, np.uint8)

    @property
    def packed_bytes(self) -> int:
        return len(self._record.data)

    @property
    def multiplies(self) -> bool:
        """Can `product` take it: a matrix of floats whose record says the same of their size?"""
        floats = self.dtype in ("BF16", "F16", "F32") and 8 * self._record.head.layout.elem_bytes == DTYPE_BITS[self.dtype]
        return floats and len(self.shape) == _MATRIX_DIMS

    def put(self, data: Bytes, threads: int = 1) -> None:
        """Hold other bytes of the same count, (n_bytes,) uint8, instead."""
        self._record = PackedWeight.of(self.dtype, self.shape, data, threads=threads)._record

    def decode(self, out: Bytes, threads: int = 1) -> None:
        """Decode the whole tensor into `out`, (n_bytes,) uint8.

        Raises
        ------
        FormatError
            The record is damaged.
        """
        record = self._record
        n_chunks, chunk_bytes = record.head.n_chunks, record.chunk_bytes
        per_run = max(1, min(_RUN_BYTES // chunk_bytes, -(-n_chunks // threads)))

        def decode_run(first: int) -> None:
            last = min(first + per_run, n_chunks)
            record.decode(first, last, out[first * chunk_bytes : last * chunk_bytes])

        spread(decode_run, range(0, n_chunks, per_run), min(threads, -(-n_chunks // per_run)))

    def rows(self, numbers: NDArray[np.int64], threads: int = 1) -> Bytes:
        """Return rows by number, (len(numbers), row_bytes) uint8; of the tensor only the chunks that hold them are decoded.

        Raises
        ------
        IndexError
            There is no such row.
        FormatError
            The record is damaged.
        """
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.shape[0]:
            raise IndexError(f"the tensor has {self.shape[0]} rows, row {int(numbers.min() if numbers.min() < 0 else numbers.max())} is wanted")
        wanted, places = np.unique(numbers, return_inverse=True)
        row_bytes, chunk_bytes = self.n_bytes // self.shape[0], self._record.chunk_bytes
        picked = np.empty((wanted.size, row_bytes), np.uint8)
        begins = wanted * row_bytes
        firsts, lasts = begins // chunk_bytes, (begins + row_bytes - 1) // chunk_bytes  # the chunks in which each row begins and ends

        def pick_from(number: int) -> None:
            n_bytes = min(chunk_bytes, self.n_bytes - number * chunk_bytes)
            chunk = _scratch.get(n_bytes)
            self._record.decode(number, number + 1, chunk)
            for i in range(np.searchsorted(lasts, number), np.searchsorted(firsts, number, "right")):
                at = int(begins[i]) - number * chunk_bytes
                begin, end = max(at, 0), min(at + row_bytes, n_bytes)
                picked[i, begin - at : end - at] = chunk[begin:end]

        chunks = sorted({number for first, last in set(zip(firsts.tolist(), lasts.tolist(), strict=True)) for number in range(first, last + 1)})
        spread(pick_from, chunks, min(threads, len(chunks)))
        return picked[places.reshape(-1)]

    def product(self, x: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
        """Multiply with rows while the tensor, (n_rows, n_cols), is decoded: nothing of it is written to memory. Of one that `multiplies`.

        Parameters
        ----------
        x : (batch, n_cols) float32
            At most `weightpack.kernels.MAX_BATCH` rows.

        Returns
        -------
        (n_rows, batch) float32
            Sums of single precision, in an order of the backend's own: but for the last bits what any other gives. The count of threads does not change them,
            unless rows are longer than chunks.

        Raises
        ------
        FormatError
            The record is damaged.
        """
        record, (n_rows, n_cols) = self._record, self.shape
        n_chunks, chunk_elems = record.head.n_chunks, record.head.chunk_elems
        per_run = -(-n_chunks // (threads * _RUNS_OF_A_THREAD))
        parts: dict[int, NDArray[np.float32]] = {}

        def multiply_run(first: int) -> None:
            last = min(first + per_run, n_chunks)
            begin, end = first * chunk_elems // n_cols, -(-min(last * chunk_elems, n_rows * n_cols) // n_cols)
            sums = np.zeros((end - begin, len(x)), np.float32)
            record.multiply(first, last, Product(self.dtype, x, sums))
            parts[first] = sums

        spread(multiply_run, range(0, n_chunks, per_run), min(threads, -(-n_chunks // per_run)))
        result = np.zeros((n_rows, len(x)), np.float32)
        for first in sorted(parts):
            begin = first * chunk_elems // n_cols
            result[begin : begin + len(parts[first])] += parts[first]  # runs may meet inside a row
        return result

    def __copy__(self) -> PackedWeight:
        return PackedWeight(self.dtype, self.shape, self.record)  # records are not written to

    def __deepcopy__(self, memo: dict[int, object]) -> PackedWeight:
        return copy.copy(self)

    def __reduce__(self) -> tuple[object, ...]:
        return PackedWeight, (self.dtype, self.shape, np.array(self.record))
