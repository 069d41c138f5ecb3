# SPDX-License-Identifier: Apache-2.0
"""safetensors' dtype names and numpy's. bfloat16 and float8 are numpy dtypes where `ml_dtypes` is installed; their bits are words anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.errors import LimitError, MissingExtraError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMPY_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "I32": "int32", "U32": "uint32",
    "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip
_ML_DTYPES = {
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_RAW = {"BF16": "uint16", **dict.fromkeys(_ML_DTYPES.keys() - {"BF16"}, "uint8")}
_NAMES = {numpy: name for name, numpy in (NUMPY_NAMES | _ML_DTYPES).items()}


def numpy_dtype(dtype: str, *, raw: bool = False) -> np.dtype[Any]:
    """Return numpy's dtype for a safetensors name; with `raw`, of those that numpy itself lacks, that of unsigned integers as wide.

    Raises
    ------
    MissingExtraError
        It needs `ml_dtypes`.
    OptionError
        numpy has none: read the tensor with `weightpack.torch`.
    """
    if dtype in NUMPY_NAMES:
        return np.dtype(NUMPY_NAMES[dtype]).newbyteorder("<")
    if raw and dtype in _RAW:
        return np.dtype(_RAW[dtype]).newbyteorder("<")
    if dtype in _ML_DTYPES:
        try:
            import ml_dtypes
        except ImportError:
            raise MissingExtraError(
                f"numpy has no {dtype}: `pip install weightpack[numpy]` (ml_dtypes), read it with weightpack.torch, or with raw=True as {_RAW[dtype]} words"
            ) from None
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[dtype]))
        return found
    raise OptionError(f"numpy has no {dtype}: read the tensor with weightpack.torch")


def shaped(data: NDArray[np.uint8], dtype: str, shape: Sequence[int], *, raw: bool = False) -> NDArray[Any]:
    """View a tensor's bytes as an array; `raw` as for `numpy_dtype`.

    Raises
    ------
    MissingExtraError, OptionError
        As `numpy_dtype`.
    LimitError
        numpy has no such shape: a size of 0 lets a file name others that no array has.
    """
    flat = data.view(numpy_dtype(dtype, raw=raw))
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise LimitError(f"numpy has no array of shape {list(shape)}: {error}") from None


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return safetensors' name of a numpy dtype; OptionError if it has none."""
    if dtype.byteorder == ">" or dtype.name not in _NAMES:
        raise OptionError(f"safetensors has no dtype for numpy's {dtype}")
    return _NAMES[dtype.name]
