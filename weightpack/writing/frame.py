# SPDX-License-Identifier: Apache-2.0
"""A tensor -> a tensor frame (FORMAT section 9): `weightpack.encode`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpack.arrays.dtypes import dtype_name
from weightpack.errors import OptionError
from weightpack.format.constants import KEPT_PIECE_BYTES
from weightpack.format.frame import CRC_BYTES, FrameHead
from weightpack.format.layouts import DTYPE_BITS, tensor_bytes
from weightpack.io.files import pieces
from weightpack.io.parallel import thread_count
from weightpack.kernels import active, chunk_crc
from weightpack.options import PackOptions, load_profile
from weightpack.writing.record import encode_record

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode(array: NDArray[Any], *, options: PackOptions | None = None, threads: int | None = 1) -> bytes:
    """Encode one array as a tensor frame.

    Parameters
    ----------
    array
        Of any dtype that safetensors has; bfloat16 and float8 through `ml_dtypes`. Made C-contiguous if it is not.
    options
        Default: the profile "fast".

    Raises
    ------
    OptionError
        safetensors has no such dtype.
    """
    array = np.asarray(array)
    shape = array.shape
    return encode_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8), dtype_name(array.dtype), shape, options=options, threads=threads)


def encode_bytes(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...], *, options: PackOptions | None = None, threads: int | None = 1) -> bytes:
    """Encode a tensor's bytes, (n_bytes,) uint8, as a frame; `dtype` in safetensors' spelling."""
    if dtype not in DTYPE_BITS or tensor_bytes(dtype, shape) != data.size:
        raise OptionError(f"{data.size} bytes do not hold {dtype} of shape {list(shape)}")
    options = options or load_profile()
    layout = options.layout(dtype, data.size)
    record: memoryview | None = None
    if data.size and data.size % layout.elem_bytes == 0:
        record = encode_record(data, layout, options, threads=thread_count(threads), row_elems=shape[-1] if len(shape) > 1 else 0)
    packed = record is not None and len(record) < data.size
    head = FrameHead(packed, dtype, shape).to_bytes()
    head += active().crc32c(head).to_bytes(CRC_BYTES, "little")
    if packed:
        assert record is not None
        return b"".join([head, record])
    crcs = [chunk_crc(data[offset : offset + n], number) for number, (offset, n) in enumerate(pieces(data.size, KEPT_PIECE_BYTES))]
    return head + struct.pack(f"<{len(crcs)}I", *crcs) + data.tobytes()
