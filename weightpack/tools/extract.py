# SPDX-License-Identifier: Apache-2.0
"""One tensor out of the files of a model: the work of `weightpack cat`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightpack.arrays.dtypes import NUMPY_NAMES, numpy_dtype
from weightpack.errors import OptionError, TensorNotFoundError, located
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.tensors import TensorReader
from weightpack.sources.model import Tensor
from weightpack.sources.safetensors import is_packed, read_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WINDOW_BYTES = 32 << 20


def file_with(files: Sequence[RandomReader], name: str) -> RandomReader:
    """Return the one of a model's files, plain or packed, that has a tensor. Only headers are read.

    Raises
    ------
    TensorNotFoundError
        None has it.
    OptionError
        Several have it: folders of more than one model.
    """
    having = [file for file in files if name in tensor_names(file)]
    if not having:
        where = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        raise TensorNotFoundError("there is no such tensor", path=where, tensor=name)
    if len(having) > 1:
        raise OptionError(f"several files have it, name one of them: {', '.join(file.name for file in having)}", tensor=name)
    return having[0]


def tensor_names(file: RandomReader) -> list[str]:
    """Return the names of a plain or packed file's tensors, sorted."""
    with located(path=file.name):
        header = read_header(file)
        return sorted(PackedFile(file).tensors if is_packed(header) else header.entries)


def tensor_windows(reader: TensorReader, tensor: Tensor, threads: int = 1, window_bytes: int = _WINDOW_BYTES) -> Iterator[NDArray[np.uint8]]:
    """Yield a tensor's bytes in order, (n,) uint8 each with n at most `window_bytes`; a window's memory is written over by the next but one."""
    reader.check(tensor.name)
    buffers = [np.empty(min(window_bytes, tensor.n_bytes), np.uint8) for _ in range(1 + (tensor.n_bytes > window_bytes))]
    for number, begin in enumerate(range(0, tensor.n_bytes, window_bytes)):
        window = buffers[number % len(buffers)][: min(window_bytes, tensor.n_bytes - begin)]
        reader.read([(tensor.name, begin, window)], threads)
        yield window


def npy_header(tensor: Tensor) -> bytes:
    """Return what stands before a tensor's bytes in a .npy file. Elements of dtypes that numpy lacks are void of their length: V2 for BF16.

    Raises
    ------
    OptionError
        Elements are no whole bytes.
    """
    bits = DTYPE_BITS.get(tensor.dtype, 0)
    if bits == 0 or bits % 8:
        raise OptionError(f"a .npy file holds no {tensor.dtype}: take the bytes, without --npy", tensor=tensor.name)
    dtype = numpy_dtype(tensor.dtype) if tensor.dtype in NUMPY_NAMES else np.dtype(f"V{bits // 8}")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tensor.shape})
    return header.getvalue()
