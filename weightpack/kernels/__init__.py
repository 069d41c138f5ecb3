# SPDX-License-Identifier: Apache-2.0
"""The hot loops as plain functions on buffers, behind one interface.

`active()` is what the road calls: the native core on the best ISA that this CPU has, or numpy where no core was compiled.
`WEIGHTPACK_ISA` or `use_isa` force one by name. Every backend gives the same bytes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import OptionError
from weightpack.kernels import native
from weightpack.kernels.interface import (
    MAX_ANCHORS,
    MAX_BATCH,
    ConditionalBooks,
    DifferenceCode,
    EncodedChunks,
    EncodedPlane,
    FittedTiles,
    Grid,
    Kernels,
    NativeCodecs,
    Product,
    RansBook,
    SplitChunk,
    SplitPlanes,
    numbered_crc,
)
from weightpack.kernels.native import NativeKernels

if TYPE_CHECKING:
    from weightpack.format.buffers import Buffer, Bytes

__all__ = [
    "MAX_ANCHORS", "MAX_BATCH", "ConditionalBooks", "DifferenceCode", "EncodedChunks", "EncodedPlane", "FittedTiles", "Grid", "Kernels", "NativeCodecs",
    "Product", "RansBook", "SplitChunk", "SplitPlanes", "active", "available_isas", "chunk_crc", "crc32c_of", "isa", "use_isa",
]  # fmt: skip


def available_isas() -> list[str]:
    """Return the names that `use_isa` takes, slowest first: "numpy" always, then the native core's, if it was compiled."""
    return ["numpy", *native.available()]


def _make(name: str) -> Kernels:
    if name not in available_isas():
        raise OptionError(f"unknown or unavailable ISA {name!r}: this machine has {', '.join(available_isas())}")
    if name != "numpy":
        return NativeKernels(name)
    # Here and not above, because these modules take as long to import as all else of this room, and where there is a native core nobody needs them.
    from weightpack.kernels.numpy_backend import NumpyKernels

    return NumpyKernels()


_active: Kernels | None = None


def active() -> Kernels:
    """Return the backend in use, chosen at the first call."""
    global _active
    if _active is None:
        forced = os.environ.get("WEIGHTPACK_ISA")
        if not forced and not native.available():
            warnings.warn(
                "weightpack's native core is not built: using numpy, which is slow. "
                "Install a C compiler and Python's headers, then reinstall weightpack; `weightpack doctor` shows the state.",
                RuntimeWarning,
                stacklevel=2,
            )
        _active = _make(forced or available_isas()[-1])
    return _active


def isa() -> str:
    """Return the name of the backend in use."""
    return active().name


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Use a backend by name inside a `with` block, for the whole process.

    Raises
    ------
    OptionError
        The name is unknown, or this machine can't run it.
    """
    global _active
    before, _active = _active, _make(name)
    try:
        yield
    finally:
        _active = before


def chunk_crc(data: Bytes, chunk_number: int) -> int:
    """Return the CRC-32C of `u32 chunk_number || data` (FORMAT 6.2), data as (n,) uint8."""
    return numbered_crc(active().crc32c, data, chunk_number)


def crc32c_of(*parts: Buffer) -> int:
    """Return the CRC-32C of buffers as if they stood one after the other."""
    kernels, crc = active(), 0
    for part in parts:
        if len(part):
            crc = kernels.crc32c(np.frombuffer(part, np.uint8), crc)
    return crc
