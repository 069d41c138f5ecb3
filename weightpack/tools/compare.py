# SPDX-License-Identifier: Apache-2.0
"""Which tensors differ between two models, and how much: the work of `weightpack diff`. Files may be plain or packed, whole or in shards, either side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack import api
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import LocalFile, RandomReader, equal_bytes
from weightpack.io.parallel import thread_count
from weightpack.reading.tensors import TensorReader
from weightpack.sources.model import Tensor
from weightpack.tools.extract import tensor_windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

_WINDOW_BYTES = 6 << 20  # whole elements of any width


class Change(StrEnum):
    """What a tensor of the second model is to that of the first."""

    EQUAL = "equal"
    VALUES = "values"
    SHAPE = "shape"
    DTYPE = "dtype"
    ONLY_FIRST = "only in the first"
    ONLY_SECOND = "only in the second"


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor of either model.

    Parameters
    ----------
    name
        With the folder of its file before it, where that is not the model's own; with the file where one folder has the name twice.
    dtypes, shapes
        In the first and in the second; None where it is not.
    n_elems
        Elements that were compared; 0 if dtype or shape differ.
    n_different
        Of those, how many differ by at least one bit.
    max_abs_difference
        Of floats: the largest |first - second|, NaN left out; infinite where one is and the other is not, None where no two differ in value.
    """

    name: str
    change: Change
    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    n_elems: int = 0
    n_different: int = 0
    max_abs_difference: float | None = None


def compare(
    first: api.PathLike, second: api.PathLike, *, threads: int | None = None, base: api.PathLike | None = None, revision: str | None = None,
    token: str | None = None,
) -> Iterator[TensorDifference]:  # fmt: skip
    """Compare the tensors of two models by name; yield each, in the order of names.

    Parameters
    ----------
    first, second
        A file, a directory, a URL or a repo id.
    base
        Of files that are stored as differences, as in `weightpack.safe_open`.

    Raises
    ------
    PathNotFoundError
        There is no such model.
    FormatError, LimitError
        A file is damaged, or no safetensors file.
    """
    n_threads = thread_count(threads)
    with ExitStack() as stack:
        sides = [_Side(stack.enter_context(api.open_weights(root, revision=revision, token=token)), root, base, stack) for root in (first, second)]
        qualified = any(side.has_twice for side in sides)
        one, other = (side.by_name(qualified) for side in sides)
        for name in sorted(one.keys() | other.keys()):
            yield _compared(name, one.get(name), other.get(name), n_threads)


class _Side:
    """One of the models: its files open, and where each stands in its folder."""

    def __init__(self, files: Sequence[RandomReader], root: api.PathLike, base: api.PathLike | None, stack: ExitStack) -> None:
        named = None if base is None else os.fspath(base)
        self.readers = [(_place(file, root), stack.enter_context(closing(TensorReader(file, base=named)))) for file in files]

    @property
    def has_twice(self) -> bool:
        """Has one folder a name in two files, as variants of a model do?"""
        names = [(place.parent, name) for place, reader in self.readers for name in reader.tensors]
        return len(set(names)) < len(names)

    def by_name(self, qualified: bool) -> dict[str, tuple[TensorReader, Tensor]]:
        found: dict[str, tuple[TensorReader, Tensor]] = {}
        for place, reader in self.readers:
            before = f"{place}: " if qualified else "" if place.parent == PurePosixPath() else f"{place.parent}/"
            found |= {f"{before}{name}": (reader, tensor) for name, tensor in reader.tensors.items()}
        return found


def _place(file: RandomReader, root: api.PathLike) -> PurePosixPath:
    """Return a file's path in its model's folder or repo; of a file that was named itself, its name."""
    if isinstance(file, LocalFile) and Path(root).is_dir():
        return PurePosixPath(Path(file.name).relative_to(root).as_posix())
    if file.name.startswith("hf://") and not os.fspath(root).startswith("hf://"):
        return PurePosixPath(file.name.removeprefix("hf://").split("@", 1)[-1].split("/", 1)[-1])
    return PurePosixPath(Path(file.name).name)


def _compared(name: str, one: tuple[TensorReader, Tensor] | None, other: tuple[TensorReader, Tensor] | None, threads: int) -> TensorDifference:
    dtypes = (None if one is None else one[1].dtype, None if other is None else other[1].dtype)
    shapes = (None if one is None else one[1].shape, None if other is None else other[1].shape)
    if one is None or other is None:
        return TensorDifference(name, Change.ONLY_SECOND if one is None else Change.ONLY_FIRST, dtypes, shapes)
    if dtypes[0] != dtypes[1]:
        return TensorDifference(name, Change.DTYPE, dtypes, shapes)
    if shapes[0] != shapes[1] or one[1].n_bytes != other[1].n_bytes:  # of a dtype that nobody knows, a shape can have any length
        return TensorDifference(name, Change.SHAPE, dtypes, shapes)
    dtype, tensor = one[1].dtype, one[1]
    n_different, largest = 0, math.nan
    for x, y in zip(*(tensor_windows(reader, wanted, threads, _WINDOW_BYTES) for reader, wanted in (one, other)), strict=True):
        if not equal_bytes(x, y):
            n, most = _window_difference(dtype, x, y)
            n_different += n
            largest = np.fmax(largest, most)
    n_elems = tensor.n_bytes * 8 // DTYPE_BITS.get(dtype, 8)
    change = Change.VALUES if n_different else Change.EQUAL
    return TensorDifference(name, change, dtypes, shapes, n_elems, n_different, None if math.isnan(largest) else float(largest))


def _window_difference(dtype: str, x: Bytes, y: Bytes) -> tuple[int, float]:
    """Return how many elements differ, and the largest absolute difference; NaN if there is none or the dtype is no float."""
    bits = DTYPE_BITS.get(dtype, 8)
    if bits % 8:
        different = np.unpackbits(x ^ y, bitorder="little").reshape(-1, bits).any(axis=1)
        return int(different.sum()), math.nan
    words = [data.view(f"<u{bits // 8}") for data in (x, y)]
    where = words[0] != words[1]
    values = [float_values(dtype, side[where]) for side in words]
    if values[0] is None or values[1] is None:
        return int(where.sum()), math.nan
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.abs(values[0] - values[1])
    distances = distances[~np.isnan(distances)]
    return int(where.sum()), float(distances.max()) if distances.size else math.nan


_F8 = {"F8_E4M3": (3, 7), "F8_E5M2": (2, 15), "F8_E4M3FNUZ": (3, 8), "F8_E5M2FNUZ": (2, 16)}  # bits of the mantissa, bias


def float_values(dtype: str, words: NDArray[Any]) -> NDArray[np.float64] | NDArray[np.complex128] | None:
    """Return floats of any dtype as float64 or complex128, exactly; None for what is no float.

    Parameters
    ----------
    words
        (n,) unsigned integers of the elements' width.
    """
    if dtype == "C64":
        pairs: NDArray[np.complex64] = words.view("<c8")
        with np.errstate(invalid="ignore"):
            return pairs.astype(np.complex128)
    if dtype in ("F16", "F32", "F64", "BF16"):
        floats: NDArray[Any] = words.view(f"<f{words.dtype.itemsize}") if dtype != "BF16" else (words.astype("<u4") << np.uint32(16)).view("<f4")
        with np.errstate(invalid="ignore"):  # a NaN that signals is said to be invalid
            doubles: NDArray[np.float64] = floats.astype(np.float64)
        return doubles
    if dtype in _F8 or dtype == "F8_E8M0":
        looked_up: NDArray[np.float64] = _f8_table(dtype)[words]
        return looked_up
    return None


def _f8_table(dtype: str) -> NDArray[np.float64]:
    """Return the values of the 256 elements that a dtype of one byte has."""
    codes = np.arange(256)
    if dtype == "F8_E8M0":
        powers: NDArray[np.float64] = np.ldexp(1.0, codes - 127)
        powers[255] = math.nan
        return powers
    mantissa_bits, bias = _F8[dtype]
    mantissa, exponent = codes & (1 << mantissa_bits) - 1, (codes & 0x7F) >> mantissa_bits
    significand = np.where(exponent == 0, mantissa, mantissa + (1 << mantissa_bits)).astype(np.float64)
    magnitude = np.ldexp(significand, np.maximum(exponent, 1) - bias - mantissa_bits)
    values: NDArray[np.float64] = np.where(codes < 128, magnitude, -magnitude)
    if dtype.endswith("FNUZ"):
        values[0x80] = math.nan  # in the place of a negative zero
    elif dtype == "F8_E4M3":
        values[[0x7F, 0xFF]] = math.nan
    else:
        values[exponent == 31] = np.where(mantissa == 0, np.copysign(math.inf, values), math.nan)[exponent == 31]
    return values


__all__ = ["Change", "TensorDifference", "compare", "float_values"]
