# SPDX-License-Identifier: Apache-2.0
"""Elements <-> planes in numpy (FORMAT section 7). Words are as wide as elements, not wider: a chunk's temporaries stay a few times its size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from weightpack.errors import CorruptionError, TruncatedError, UnsupportedError
from weightpack.format.constants import BLOCK_ELEMS, CODEC_NAMES, Codec
from weightpack.kernels.interface import SplitPlanes
from weightpack.kernels.numpy_checks import need
from weightpack.kernels.numpy_codecs import decode_plane

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes
    from weightpack.format.layouts import Layout


def split(layout: Layout, data: Bytes) -> SplitPlanes:
    n, r, mantissa = data.size // layout.elem_bytes, layout.raw_bits, layout.mantissa_bits
    if mantissa is None:
        return SplitPlanes(np.ascontiguousarray(data.reshape(n, layout.elem_bytes).T), np.empty(0, np.uint8), np.empty(0, np.uint8))
    elems = data.view(f"<u{layout.elem_bytes}")
    symbols, shift = [], mantissa
    for width in layout.plane_bits:
        symbols.append((elems >> shift & (1 << width) - 1).astype(np.uint8))
        shift += width
    raw = np.zeros((-(-n // BLOCK_ELEMS), BLOCK_ELEMS), elems.dtype)
    raw.reshape(-1)[:n] = elems >> shift << mantissa | elems & (1 << mantissa) - 1
    union = np.bitwise_or.reduce(raw, axis=1)
    # 7.3: the least width is r less the union's trailing zeros, which is how many of its r non-empty low parts are not 0.
    widths: Bytes = np.stack([union & (2 << k) - 1 != 0 for k in range(r)]).sum(axis=0, dtype=np.uint8)
    begins = _begins(widths, n)
    bits = np.empty(begins[-1], np.uint8)
    for w, m, blocks in _groups(widths, n):
        coded = _block_bytes(raw[blocks, :m] >> (r - w), w)
        sliding_window_view(bits, coded.shape[1], writeable=True)[begins[blocks]] = coded
    return SplitPlanes(np.stack(symbols), widths, bits)


def _begins(widths: Bytes, n: int) -> NDArray[np.int64]:
    """Return where each block's bits begin (7.4), and where the last one's end."""
    sizes = 16 * widths.astype(np.int64)
    if n % BLOCK_ELEMS:
        sizes[-1] = _block_size(int(widths[-1]), n % BLOCK_ELEMS)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _block_size(w: int, m: int) -> int:
    return w // 8 * m + w % 8 * ((m + 7) // 8)


def _groups(widths: Bytes, n: int) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
    """Yield (width, elements of a block, blocks): those that are coded alike go together."""
    full = widths[: n // BLOCK_ELEMS]
    for w in np.unique(full).tolist():
        yield w, BLOCK_ELEMS, np.flatnonzero(full == w)
    if n % BLOCK_ELEMS:
        yield int(widths[-1]), n % BLOCK_ELEMS, np.array([n // BLOCK_ELEMS])


def _block_bytes(v: NDArray[Any], w: int) -> Bytes:
    """Code blocks (7.4), one a row of values."""
    planes: list[Bytes] = [(v >> (w - 8 * (k + 1))).astype(np.uint8) for k in range(w // 8)]
    low = v.astype(np.uint8)
    planes += [np.packbits(low >> k & 1, axis=1, bitorder="little") for k in reversed(range(w % 8))]
    return np.concatenate(planes, axis=1) if planes else np.empty((len(v), 0), np.uint8)


def _block_values(data: Bytes, w: int, m: int, v: NDArray[Any]) -> None:
    """Decode blocks (7.4), one a row, into `v`, which is zero."""
    for k in range(w // 8):
        v <<= 8
        v |= data[:, k * m : (k + 1) * m]
    begin, size = w // 8 * m, (m + 7) // 8
    for k in range(w % 8):
        plane = np.unpackbits(data[:, begin + k * size : begin + (k + 1) * size], axis=1, bitorder="little")
        need(not plane[:, m:].any(), "the unused bits of a bit plane")
        v <<= 1
        v |= plane[:, :m]


def merge(layout: Layout, streams: list[tuple[int, Bytes]], n: int, out: Bytes) -> None:
    r, mantissa, word = layout.raw_bits, layout.mantissa_bits, np.dtype(f"<u{layout.elem_bytes}")
    if mantissa is not None:
        codec, bits = streams[-1]
        if codec != Codec.RAW:  # 7.5
            raise (CorruptionError if codec in CODEC_NAMES else UnsupportedError)(f"the bits have codec {codec}")
        widths = decode_plane(*streams[-2], -(-n // BLOCK_ELEMS), 8)
        need(int(widths.max()) <= r, "a block's width")  # 7.3
        begins = _begins(widths, n)
        need(bits.size >= int(begins[-1]), "the bits stream", TruncatedError)
        need(bits.size == int(begins[-1]), "the bits stream's length")
    planes: list[Bytes] = []
    for i in reversed(range(len(layout.plane_bits))):  # the last one first: it may be another's context
        planes.insert(0, decode_plane(*streams[i], n, layout.plane_bits[i], planes[0] if layout.has_context(i) else None))
    if mantissa is None:
        for i, plane in enumerate(planes):
            out.reshape(n, -1)[:, i] = plane
        return
    raw = np.zeros((widths.size, BLOCK_ELEMS), word)
    for w, m, blocks in _groups(widths, n):
        values = np.zeros((blocks.size, m), word)
        _block_values(sliding_window_view(bits, _block_size(w, m))[begins[blocks]], w, m, values)
        raw[blocks, :m] = values << (r - w)
    flat = raw.reshape(-1)[:n]
    elems, shift = flat & (1 << mantissa) - 1, mantissa
    for plane, width in zip(planes, layout.plane_bits, strict=True):
        elems |= plane.astype(word) << shift
        shift += width
    elems |= flat >> mantissa << shift
    out[:] = elems.astype(word, copy=False).view(np.uint8)
