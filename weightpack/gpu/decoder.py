# SPDX-License-Identifier: Apache-2.0
"""The GPU of a torch device as a decoder of chunks: which it can decode, and the launch."""

from __future__ import annotations

import ctypes
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from weightpack.format.constants import Codec, Mode
from weightpack.format.layouts import LAYOUTS, Layout, LayoutId
from weightpack.format.record import Chunk, RecordHead
from weightpack.gpu.compiler import CudaError, checked, cubin

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

CHUNK = np.dtype([("src", "<u8"), ("dst", "<u8"), ("src_bytes", "<u4"), ("n_elems", "<u4"), ("number", "<u4"), ("crc", "<u4")])
"""A chunk to decode (wp_chunk in decode.cu): addresses on the device, both multiples of 16; what the chunk's place in its record says."""


def describe(head: RecordHead, first: int, last: int, src: int, dst: int) -> NDArray[np.void]:
    """Return chunks [first, last) of a record as CHUNK, (last - first,).

    `src` is the address on the device of the first one's packed bytes, the others' follow as in the record; `dst` that of its elements, in the same way.
    """
    chunks, offsets = np.zeros(last - first, CHUNK), head.offsets[first : last + 1]
    chunks["src"] = src + (offsets[:-1] - offsets[0])
    chunks["src_bytes"] = offsets[1:] - offsets[:-1]
    chunks["dst"] = dst + np.arange(last - first) * (head.chunk_elems * head.layout.elem_bytes)
    chunks["n_elems"] = head.chunk_elems
    if last == head.n_chunks:
        chunks["n_elems"][-1] = head.elems_of(last - 1)
    chunks["number"] = np.arange(first, last)
    chunks["crc"] = head.crcs[first:last]
    return chunks


READ_PAST = 512
"""Bytes after a chunk that can be read, whatever is there, as in decode.cu."""

_OF_NO_KERNEL = {LayoutId.BYTES4, LayoutId.BYTES8, LayoutId.F64}
_MIN_CAPABILITY = (7, 0)  # votes and shuffles that name their threads

decodable = frozenset(LAYOUTS) - _OF_NO_KERNEL
"""Layouts that have a kernel."""


class Mark(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Wait until the stream has come to it."""


class GpuDecoder:
    """The compiled kernels in the context of one device."""

    def __init__(self, device: torch.device) -> None:
        import torch
        from cuda.bindings import driver

        capability = torch.cuda.get_device_capability(device)
        if capability < _MIN_CAPABILITY:
            raise CudaError(f"its compute capability is {capability[0]}.{capability[1]}, and {_MIN_CAPABILITY[0]}.{_MIN_CAPABILITY[1]} is the least")
        self.device, self._driver = device, driver
        with torch.cuda.device(device):
            torch.cuda.synchronize(device)  # makes the context
        self._capability, self._lock = capability, threading.Lock()
        self._functions: dict[LayoutId, Any] = {}
        self._function(LayoutId.BF16)  # shows at once whether there is a compiler

    def _function(self, layout: LayoutId) -> Any:
        with self._lock:
            if layout not in self._functions:
                module = checked(self._driver.cuModuleLoadData(cubin(self._capability, LAYOUTS[layout])))
                self._functions[layout] = checked(self._driver.cuModuleGetFunction(module, b"weightpack_decode"))
            return self._functions[layout]

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which torch's calls and launches are this device's."""
        import torch

        return torch.cuda.device(self.device)

    def pinned(self, n_bytes: int) -> torch.Tensor:
        """Return host memory that can be uploaded while the host goes on, (n_bytes,) uint8; torch gives it out again when the upload has ended."""
        import torch

        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Mark:
        """Return what can be waited for: the end of all that was asked of the current stream until now."""
        import torch

        event: Mark = torch.cuda.current_stream(self.device).record_event()
        return event

    def launch(self, layout: LayoutId, chunks: int, n_chunks: int, status: int) -> None:
        """Decode chunks of one layout on the current stream: nothing is allocated, nothing is waited for.

        Parameters
        ----------
        chunks
            Address on the device of n_chunks CHUNK.
        status
            Address on the device of (n_chunks,) uint32: 0 where a chunk is decoded and its checksum right, 1 where the CPU must see to it.

        Raises
        ------
        CudaError
            The layout's kernel could not be made or launched.
        """
        import torch

        stream = torch.cuda.current_stream(self.device).cuda_stream
        values = (chunks, status), (ctypes.c_void_p, ctypes.c_void_p)
        checked(self._driver.cuLaunchKernel(self._function(layout), n_chunks, 1, 1, 32, 1, 1, 0, stream, values, 0))


_CODECS = {Codec.RAW, Codec.CONSTANT, Codec.RANS}
_MAX_TABLES = 4  # as in decode.cu


def decodes(chunk: Chunk, layout: Layout) -> bool:
    """Does the GPU decode a chunk, if it is sound? What it does not decode is the CPU's."""
    if layout.id not in decodable or chunk.mode != Mode.SPLIT:
        return False
    n_planes, (last_codec, last) = len(layout.plane_bits), chunk.streams[len(layout.plane_bits) - 1]
    codecs = [codec for codec, _ in chunk.streams]
    good = last_codec in _CODECS or (last_codec == Codec.TABLES and last[0] < _MAX_TABLES)
    if n_planes == 2:
        good &= codecs[0] in _CODECS or (codecs[0] == Codec.CONTEXT and layout.has_context(0))
    if layout.raw_bits:
        widths, bits = codecs[n_planes:]
        good &= widths in _CODECS and bits == Codec.RAW and not (n_planes == 2 and codecs[0] == widths == Codec.RANS)
    return good


_lock = threading.Lock()
_decoders: dict[int, GpuDecoder | str] = {}


def decoder_or_reason(device: torch.device) -> GpuDecoder | str:
    """Return the decoder of a CUDA device, made once a process; or why there is none."""
    import torch

    if device.type != "cuda":
        return f"{device.type} is no CUDA device"
    if torch.version.hip:
        return "there is no decoder for ROCm"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock:
        if index not in _decoders:
            _decoders[index] = _make(torch.device("cuda", index))
        return _decoders[index]


def _make(device: torch.device) -> GpuDecoder | str:
    try:
        return GpuDecoder(device)
    except ImportError as error:
        return f"cuda-bindings is missing ({error}): `pip install weightpack[cuda]`"
    except (CudaError, RuntimeError, OSError) as error:  # no NVRTC, a driver too old, a GPU too old or too new for it
        return str(error)
