# SPDX-License-Identifier: Apache-2.0
"""The hot loops as plain functions on buffers, behind one interface.

`active()` is what the road calls: the native core on the best ISA that this CPU has, or numpy where no core was compiled.
`WEIGHTPACK_ISA` or `use_isa` force one by name. Every backend gives the same bytes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from weightpack.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.dtypes import Layout

    Bytes = NDArray[np.uint8]
    Stream = Bytes | bytes | bytearray | memoryview

__all__ = ["Kernels", "RansBook", "SplitPlanes", "active", "available_isas", "isa", "use_isa"]


@dataclass(frozen=True, slots=True)
class RansBook:
    """A rANS codebook (FORMAT 8.3): `symbols` by rank with `freqs`, and the escape's frequency (0: no escape); all sum to 256."""

    symbols: bytes
    freqs: bytes
    escape_freq: int


@dataclass(frozen=True, slots=True)
class SplitPlanes:
    """A split chunk of n elements: `symbols` (n_planes, n) uint8, `widths` (ceil(n/128),) uint8, `bits` (any,) uint8; FORMAT section 7."""

    symbols: Bytes
    widths: Bytes
    bits: Bytes


class Kernels(Protocol):
    """What a backend provides. Buffers are C-contiguous uint8 arrays or bytes-likes; all functions release the GIL where they can."""

    name: str

    def crc32c(self, data: Bytes | bytes, crc: int = 0) -> int:
        """CRC-32C, continuing from `crc`."""

    def histogram(self, symbols: Bytes) -> NDArray[np.uint32]:
        """Return the (256,) uint32 counts."""

    def split(self, layout: Layout, elems: Bytes) -> SplitPlanes:
        """Split elements into planes, each block with its least width."""

    def rans_choose(self, counts: NDArray[np.uint32]) -> tuple[RansBook, int]:
        """Return the codebook of least estimated size, and that size in bytes; at least two symbols must occur."""

    def rans_encode(self, book: RansBook, symbols: Bytes) -> Bytes:
        """Return the stream of FORMAT 8.3."""

    def huffman_encode(self, lengths: bytes, symbols: Bytes) -> Bytes:
        """Return the stream of FORMAT 8.4 for 256 code lengths (0: no code)."""

    def decode_chunk(self, layout: Layout, chunk: Stream, n_elems: int, chunk_number: int, crc: int, out: Bytes) -> bool:
        """Decode a chunk (FORMAT 6.3) into `out` and check its CRC. False, and nothing done, if it has zstd streams: expand them, call `decode_streams`."""

    def decode_streams(
        self, layout: Layout, mode: int, streams: Sequence[tuple[int, Stream]], n_elems: int, chunk_number: int, out: Bytes
    ) -> int:
        """Decode (codec, stream) pairs, none of them zstd, into `out`; return the CRC-32C of `u32 chunk_number || out`."""

    def count_repeats(self, words: Bytes) -> int:
        """Count 8-byte words that equal an earlier one (a tail of under 8 bytes is ignored)."""


def _native_isas() -> list[str]:
    from weightpack.kernels import native

    return native.available()


def available_isas() -> list[str]:
    """Return the names that `use_isa` takes, slowest first: "numpy" always, then the native core's, if it was compiled."""
    return ["numpy", *_native_isas()]


def _make(name: str) -> Kernels:
    if name not in available_isas():
        raise OptionError(f"unknown or unavailable ISA {name!r}: this machine has {', '.join(available_isas())}")
    if name == "numpy":
        from weightpack.kernels.portable import PortableKernels

        return PortableKernels()
    from weightpack.kernels.native import NativeKernels

    return NativeKernels(name)


_active: Kernels | None = None


def active() -> Kernels:
    """Return the backend in use, chosen at the first call."""
    global _active
    if _active is None:
        forced = os.environ.get("WEIGHTPACK_ISA")
        if not forced and not _native_isas():
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
