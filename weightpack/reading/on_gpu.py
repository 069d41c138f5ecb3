# SPDX-License-Identifier: Apache-2.0
"""Tensors of a packed file straight into a GPU's memory: packed bytes are read and uploaded in large pieces, and decoded there while the next are read.

What the GPU's decoder has no kernel for, or gives back, is decoded on the CPU and copied: Huffman and zstd streams, differences, kept tensors, damage. So what
comes out, and what is raised, is what the CPU's road gives.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import located
from weightpack.gpu.compiler import CudaError
from weightpack.gpu.decoder import CHUNK, READ_PAST, GpuDecoder, Mark, decodable, decoder_or_reason, describe
from weightpack.io.files import pieces
from weightpack.io.parallel import ordered_map
from weightpack.reading.packed_file import PackedFile, Piece, StoredTensor

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes
    from weightpack.format.record import RecordHead

_BATCH_BYTES = 64 << 20  # packed bytes that are uploaded at once
_IN_FLIGHT = 2  # batches that are uploaded or decoded while the next is read
_READ_BYTES = 4 << 20  # read by one thread at once


@cache
def _say(reason: str) -> None:
    warnings.warn(f"packed tensors for the GPU are decoded on the CPU: {reason}", RuntimeWarning, stacklevel=2)


def gpu_decoder(device: torch.device) -> GpuDecoder | None:
    """Return the decoder of a CUDA device if `WEIGHTPACK_GPU=1` asks for one; else None. Where there is none, one warning a process says why.

    It has to be asked for until this road, from file to tensor, has been run on a GPU: the kernels have, this file has on the host alone (docs/GPU.md).
    """
    if device.type != "cuda" or os.environ.get("WEIGHTPACK_GPU") != "1":
        return None
    found = decoder_or_reason(device)
    if isinstance(found, str):
        _say(found)
        return None
    return found


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive chunks of a record, [first, last), and where their elements go: (n_bytes,) uint8 on the device."""

    stored: StoredTensor
    head: RecordHead
    first: int
    last: int
    out: torch.Tensor

    @property
    def begin(self) -> int:
        """Where it is in the file."""
        return self.stored.begin + int(self.head.offsets[self.first])

    @property
    def n_bytes(self) -> int:
        """Packed bytes."""
        return int(self.head.offsets[self.last] - self.head.offsets[self.first])

    @property
    def n_chunks(self) -> int:
        return self.last - self.first

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a chunk."""
        return self.head.chunk_elems * self.head.layout.elem_bytes

    def parts(self, most: int) -> Iterator[_Run]:
        """Yield it in parts of at most `most` packed bytes, or of one chunk."""
        first, offsets = self.first, self.head.offsets
        while first < self.last:
            last = max(first + 1, min(self.last, int(np.searchsorted(offsets, offsets[first] + most, "right")) - 1))
            yield _Run(self.stored, self.head, first, last, self.out[(first - self.first) * self.chunk_bytes : (last - self.first) * self.chunk_bytes])
            first = last

    def describe(self, address: int) -> NDArray[np.void]:
        """Return its chunks for the decoder, if its packed bytes are at an address on the device."""
        return describe(self.head, self.first, self.last, address, self.out.data_ptr())


_CpuTask = tuple[StoredTensor, Piece, int, "torch.Tensor"]  # a piece, and the part of it from a byte of the tensor on that goes to memory on the device


def fill_on_gpu(packed: PackedFile, wanted: Sequence[tuple[str, int, torch.Tensor]], decoder: GpuDecoder, threads: int) -> None:
    """Fill tensors on the decoder's device. When it returns everything is decoded and checked.

    Parameters
    ----------
    wanted
        (name, begin, out): the `out.numel()` bytes of the tensor from byte `begin`; `out` is (n_bytes,) uint8 and its address a multiple of 16.
    threads
        That read, and decode what the GPU does not.

    Raises
    ------
    FormatError
        As `PackedFile.decode_piece`.
    """
    import torch

    with decoder.active():
        runs: list[_Run] = []
        on_cpu: list[_CpuTask] = []
        cuts: list[tuple[torch.Tensor, torch.Tensor]] = []  # what is decoded in whole chunks: from, to
        for name, begin, out in wanted:
            stored, within = packed.place(packed.stored(name))
            begin, end = within + begin, within + begin + out.numel()
            holder = packed.stored(stored.holder)
            head = packed.record_head(holder) if holder.storage == "p" and out.numel() else None
            if head is None or head.layout.id not in decodable:
                on_cpu += _pieces(packed, stored, begin, out)
                continue
            size, n_bytes = head.chunk_elems * head.layout.elem_bytes, stored.tensor.n_bytes
            first, last = begin // size, -(-end // size)
            if begin % size or (end % size and end != n_bytes):
                whole = torch.empty(min(last * size, n_bytes) - first * size, dtype=torch.uint8, device=decoder.device)
                cuts.append((whole[begin - first * size : end - first * size], out))
                out = whole
            runs += _Run(holder, head, first, last, out).parts(_BATCH_BYTES)
        on_cpu += _decode_on_gpu(packed, runs, decoder, threads)
        _decode_on_cpu(packed, on_cpu, threads)
        for cut, out in cuts:
            out.copy_(cut)


def _pieces(packed: PackedFile, stored: StoredTensor, begin: int, out: torch.Tensor) -> Iterator[_CpuTask]:
    """Yield what the CPU has to do for a part of a tensor."""
    for piece in packed.pieces(stored, begin, begin + out.numel()):
        low = max(begin, piece.begin)
        yield stored, piece, low, out[low - begin : min(begin + out.numel(), piece.end) - begin]


def _decode_on_gpu(packed: PackedFile, runs: Sequence[_Run], decoder: GpuDecoder, threads: int) -> list[_CpuTask]:
    """Decode runs; return the chunks that the GPU gave back."""
    in_flight: deque[Mark] = deque()
    decoded: list[tuple[list[_Run], torch.Tensor]] = []
    for batch in _batches(runs):
        if len(in_flight) == _IN_FLIGHT:
            in_flight.popleft().synchronize()
        decoded.append((batch, _decode_batch(packed, batch, decoder, threads)))
        in_flight.append(decoder.mark())
    return [task for batch, status in decoded for task in _given_back(packed, batch, status.cpu().numpy())]


def _batches(runs: Sequence[_Run]) -> Iterator[list[_Run]]:
    batch: list[_Run] = []
    n_bytes = 0
    for run in runs:
        if batch and n_bytes + run.n_bytes > _BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
        batch.append(run)
        n_bytes += run.n_bytes
    if batch:
        yield batch


def _decode_batch(packed: PackedFile, batch: list[_Run], decoder: GpuDecoder, threads: int) -> torch.Tensor:
    """Read and upload a batch, and have it decoded; return the status of its chunks, (n_chunks,) int32 on the device. Nothing is waited for but the reading."""
    import torch

    batch.sort(key=lambda run: run.head.layout.id)  # a launch for each layout; stable, so that neighbours in the file stay so
    n_chunks = sum(run.n_chunks for run in batch)
    begins = [0, *accumulate(run.n_bytes for run in batch)]
    described = begins[-1] + READ_PAST  # where the descriptions of the chunks stand, after the packed bytes: one upload for both
    pinned = decoder.pinned(described + n_chunks * CHUNK.itemsize)
    memory = pinned.numpy()
    _read(packed, batch, begins, memory, threads)
    memory[begins[-1] : described] = 0
    uploaded = torch.empty_like(pinned, device=decoder.device)
    memory[described:] = np.concatenate([run.describe(uploaded.data_ptr() + begin) for run, begin in zip(batch, begins, strict=False)]).view(np.uint8)
    uploaded.copy_(pinned, non_blocking=True)
    status = torch.ones(n_chunks, dtype=torch.int32, device=decoder.device)
    n_launched = 0
    for layout, same in groupby(batch, key=lambda run: run.head.layout.id):
        n = sum(run.n_chunks for run in same)
        chunks, statuses = uploaded.data_ptr() + described + n_launched * CHUNK.itemsize, status.data_ptr() + n_launched * status.itemsize
        try:
            decoder.launch(layout, chunks, n, statuses)
        except CudaError as error:  # its code could not be made: the status stays 1
            _say(f"{layout.name}: {error}")
        n_launched += n
    return status


def _read(packed: PackedFile, batch: Sequence[_Run], begins: Sequence[int], memory: Bytes, threads: int) -> None:
    """Read the packed bytes of runs to their places, neighbours in the file at once."""
    spans: list[tuple[int, int, int]] = []  # offset in the file, in memory, bytes
    for run, begin in zip(batch, begins, strict=False):
        if spans and spans[-1][0] + spans[-1][2] == run.begin:
            offset, to, n_bytes = spans.pop()
            spans.append((offset, to, n_bytes + run.n_bytes))
        else:
            spans.append((run.begin, begin, run.n_bytes))
    parts = [(offset + i, to + i, n) for offset, to, n_bytes in spans for i, n in pieces(n_bytes, _READ_BYTES)]
    view = memoryview(memory)

    def read(part: tuple[int, int, int]) -> None:
        offset, to, n = part
        packed.file.read_into(offset, view[to : to + n])

    with located(path=packed.file.name):
        for _ in ordered_map(read, parts, threads, lambda part: part[2]):
            pass


def _given_back(packed: PackedFile, batch: Sequence[_Run], status: NDArray[np.int32]) -> Iterator[_CpuTask]:
    done = 0
    for run in batch:
        for i in np.flatnonzero(status[done : done + run.n_chunks]).tolist():
            begin = (run.first + i) * run.chunk_bytes
            yield from _pieces(packed, run.stored, begin, run.out[i * run.chunk_bytes : (i + 1) * run.chunk_bytes])
        done += run.n_chunks


def _decode_on_cpu(packed: PackedFile, tasks: Sequence[_CpuTask], threads: int) -> None:
    """Decode pieces on the CPU and copy them to the device."""
    import torch

    def decode(task: _CpuTask) -> tuple[torch.Tensor, Bytes]:
        stored, piece, begin, out = task
        memory = np.empty(out.numel(), np.uint8)
        packed.decode_part(stored, piece, begin, memory)
        return out, memory

    for out, memory in ordered_map(decode, tasks, threads, lambda task: task[1].n_bytes):
        out.copy_(torch.from_numpy(memory))
