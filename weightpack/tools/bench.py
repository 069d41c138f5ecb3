# SPDX-License-Identifier: Apache-2.0
"""How small and how fast on this machine, on these weights: the work of `weightpack bench`. Each round trip is compared before anything is timed."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightpack import api, kernels
from weightpack.errors import LosslessError, OptionError
from weightpack.format.constants import MAX_CHUNK_BYTES
from weightpack.format.layouts import layout_of
from weightpack.format.record import record_bound
from weightpack.io.files import RandomReader, read_at
from weightpack.io.parallel import thread_count
from weightpack.options import PackOptions, load_profile
from weightpack.reading.record import decode_record
from weightpack.reading.tensors import TensorReader
from weightpack.writing.record import encode_record
from weightpack.writing.save import safetensors_image

if TYPE_CHECKING:
    from weightpack.format.buffers import Bytes


_MIN_REPEATS = 5
_SECONDS = 0.5  # of repeats, beyond the least count
CODECS = ("auto", "rans", "huffman", "zstd")


@dataclass(frozen=True, slots=True)
class MemorySpeed:
    """Encoding and decoding one buffer in memory: seconds are medians; `packed_bytes` of the record."""

    isa: str
    codec: str
    threads: int
    packed_bytes: int
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The elements of one dtype: how many bytes were measured, what copying them takes, and each way to code them."""

    dtype: str
    source_bytes: int
    memcpy_seconds: float
    speeds: tuple[MemorySpeed, ...]


@dataclass(frozen=True, slots=True)
class FileSpeed:
    """A whole file, in a temporary folder on `folder`'s disk: seconds of pack (verified), unpack, and of copying it."""

    folder: str
    threads: int
    source_bytes: int
    packed_bytes: int
    copy_seconds: float
    pack_seconds: float
    unpack_seconds: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What `weightpack bench` shows."""

    source: str
    memory: tuple[MemoryReport, ...]
    files: tuple[FileSpeed, ...]


def median_seconds(work: Callable[[], object], repeats: int = _MIN_REPEATS) -> float:
    """Return the median time of `work`, after one warm-up, of at least `repeats` runs and about half a second of them."""
    work()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repeats or (time.perf_counter() - begin < _SECONDS and len(times) < 10 * repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_memory(dtype: str, data: Bytes, *, threads: int | None = None, profile: str = "fast") -> MemoryReport:
    """Measure one buffer of elements: the profile's choice of codecs on each ISA and, on the best, on all threads, then each codec alone.

    Parameters
    ----------
    dtype
        In safetensors' spelling.
    data : (n_bytes,) uint8

    Raises
    ------
    LosslessError
        A round trip gave other bytes: a bug.
    """
    out = np.zeros_like(data)
    memcpy = median_seconds(lambda: np.copyto(out, data))
    native = [isa for isa in kernels.available_isas() if isa != "numpy"] or ["numpy"]
    n_threads = thread_count(threads)
    runs = [(isa, "auto", 1) for isa in native]
    runs += [(native[-1], "auto", n_threads)] if n_threads > 1 else []
    runs += [(native[-1], codec, 1) for codec in CODECS[1:]]
    speeds = tuple(_measure_codec(dtype, data, out, isa, codec, n, profile) for isa, codec, n in runs)
    return MemoryReport(dtype, data.size, memcpy, speeds)


def _measure_codec(dtype: str, data: Bytes, out: Bytes, isa: str, codec: str, threads: int, profile: str) -> MemorySpeed:
    options = load_profile(profile, codec=codec)
    layout = options.layout(dtype, data.size)
    room = np.zeros(_room(dtype, data, options), np.uint8)
    with kernels.use_isa(isa):
        record = encode_record(data, layout, options, threads=threads, out=room)
        out[:] = 0
        decode_record(record, out, threads)
        if not np.array_equal(out, data):
            raise LosslessError(f"{dtype} on {isa} with codec {codec}: decoded to other bytes; this is a bug in weightpack")
        decode = median_seconds(lambda: decode_record(record, out, threads))
        encode = median_seconds(lambda: encode_record(data, layout, options, threads=threads, out=room))
    return MemorySpeed(isa, codec, threads, len(record), encode, decode)


def _room(dtype: str, data: Bytes, options: PackOptions) -> int:
    layout = options.layout(dtype, data.size)
    chunk_elems = min(options.chunk_elems * layout.elem_bytes, MAX_CHUNK_BYTES) // layout.elem_bytes
    return record_bound(layout, data.size // layout.elem_bytes, chunk_elems)


def measure_file(source: Path, folder: Path, *, threads: int | None = None, profile: str = "fast") -> FileSpeed:
    """Measure pack, unpack and a plain copy of a file in a temporary folder inside `folder`."""
    options, n_threads = load_profile(profile), thread_count(threads)
    with tempfile.TemporaryDirectory(prefix="weightpack-bench-", dir=folder) as name:
        original, packed, restored = Path(name, "original"), Path(name, "packed"), Path(name, "restored")
        shutil.copyfile(source, original)
        result = api.pack(original, packed, options=options, threads=n_threads)
        api.verify(packed, against=original, threads=n_threads)
        pack = median_seconds(lambda: api.pack(original, packed, options=options, threads=n_threads, overwrite=True))
        unpack = median_seconds(lambda: api.unpack(packed, restored, threads=n_threads, overwrite=True))
        copy = median_seconds(lambda: shutil.copyfile(original, restored))
    return FileSpeed(str(folder), n_threads, result.source_bytes, result.packed_bytes, copy, pack, unpack)


def elements_of(files: Sequence[RandomReader], max_bytes: int) -> dict[str, Bytes]:
    """Return up to `max_bytes` of the tensors of each dtype, joined, from packed or plain files; a dtype with less than 64 KiB is left out."""
    by_dtype: dict[str, list[Bytes]] = {}
    taken: dict[str, int] = {}
    for file in files:
        reader = TensorReader(file)
        for tensor in sorted(reader.tensors.values(), key=lambda t: t.offset):
            elem_bytes = layout_of(tensor.dtype).elem_bytes
            n = min(tensor.n_bytes, max_bytes - taken.get(tensor.dtype, 0)) // elem_bytes * elem_bytes
            if n > 0:
                part = np.empty(n, np.uint8)
                reader.read([(tensor.name, 0, part)])
                by_dtype.setdefault(tensor.dtype, []).append(part)
                taken[tensor.dtype] = taken.get(tensor.dtype, 0) + n
    return {dtype: np.concatenate(parts) for dtype, parts in by_dtype.items() if taken[dtype] >= 1 << 16}


def synthetic(max_bytes: int) -> dict[str, Bytes]:
    """Return weights that nobody trained, normally distributed, as bf16 and fp32: for a look at the machine, not at ratios."""
    values = (np.random.default_rng(0).standard_normal(max_bytes // 4, np.float32) * np.float32(0.02)).view(np.uint32)
    return {"BF16": (values >> 16).astype(np.uint16).view(np.uint8), "F32": values.view(np.uint8)}


def bench(
    source: str | None, *, max_bytes: int = 128 << 20, threads: int | None = None, profile: str = "fast", folder: Path | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> BenchReport:  # fmt: skip
    """Measure weights in memory and in files.

    Parameters
    ----------
    source
        A file (plain or packed), a directory, a URL or a repo id; None: synthetic weights.
    max_bytes
        Of each dtype, in memory, and of the file that is packed.
    folder
        Where files are written; default: the system's temporary folder.
    step
        Called with what is measured next.
    """
    folder = Path(tempfile.gettempdir()) if folder is None else folder
    if source is None:
        elements = synthetic(max_bytes)
    else:
        with api.open_weights(source) as opened:
            elements = elements_of(opened, max_bytes)
    if not elements:
        raise OptionError("no tensor large enough to measure", path=source)
    memory = []
    for dtype, data in elements.items():
        step(f"{dtype} in memory")
        memory.append(measure_memory(dtype, data, threads=threads, profile=profile))
    files = []
    with tempfile.TemporaryDirectory(prefix="weightpack-bench-", dir=folder) as name:
        plain = Path(name, "plain.safetensors")
        image = safetensors_image({dtype: (dtype, (data.size // layout_of(dtype).elem_bytes,), memoryview(data)) for dtype, data in elements.items()}, None)
        plain.write_bytes(read_at(image, 0, image.size))
        for n in sorted({1, thread_count(threads)}):
            step(f"files, {n} thread{'s' if n > 1 else ''}")
            files.append(measure_file(plain, folder, threads=n, profile=profile))
    return BenchReport(source or "synthetic weights", tuple(memory), tuple(files))


__all__ = ["BenchReport", "FileSpeed", "MemoryReport", "MemorySpeed", "bench", "measure_file", "measure_memory", "median_seconds"]
