#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure one tool on one corpus, in the tool's own environment; called by suite.py, prints JSON.

    python adapter.py '{"tool": "zipnn", "threads": 1, "dtype": "BF16", "elements": "x.bin", "file": "x.safetensors", "repeats": 5, "seconds": 2}'

A tool is a class with `encode(input)`, which gives the packed bytes or the packed file's path, `decode(packed)`, and `same(restored)`, which compares
with the original. The round trip is compared before anything is timed. Needs numpy, and the tool.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NUMPY_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F8_E4M3": "u1", "F8_E5M2": "u1", "I8": "i1", "U8": "u1", "I32": "<i4"}


class NotApplicable(Exception):
    """The tool does not take this; the message says why."""


class Memory:
    """A tool between buffers."""

    def __init__(self, spec):
        self.spec = spec
        self.data = np.fromfile(spec["elements"], np.uint8)
        self.n_bytes = self.data.size

    def fresh_input(self):
        """What `encode` gets; made outside the timed part."""
        return self.data

    def fresh_packed(self, packed):
        """What `decode` gets; made outside the timed part."""
        return packed

    def size(self, packed):
        return len(packed)

    def same(self, restored):
        return np.array_equal(np.frombuffer(restored, np.uint8), self.data)

    def copy(self):
        """memcpy of the same bytes, both buffers warm."""
        if not hasattr(self, "_copy"):
            self._copy = np.zeros_like(self.data)
        np.copyto(self._copy, self.data)


class Files:
    """A tool between files, on the disk of the corpus (tmpfs in the committed results)."""

    def __init__(self, spec):
        self.spec = spec
        self.source = Path(spec["file"])
        self.n_bytes = self.source.stat().st_size
        self.folder = Path(tempfile.mkdtemp(prefix="adapter-", dir=self.source.parent))
        self.packed, self.restored = self.folder / "packed", self.folder / f"restored{self.source.suffix}"

    def fresh_input(self):
        self._remove(self.packed)

    def fresh_packed(self, packed):
        self._remove(self.restored)
        return packed

    def _remove(self, path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def size(self, packed):
        return packed.stat().st_size

    def same(self, restored):
        return restored.read_bytes() == self.source.read_bytes()

    def copy(self):
        """cp, in this process: what shutil does with the system's fastest call."""
        shutil.copyfile(self.source, self.folder / "copy")


# ---- weightpack


def profile_of(tool):
    """The profile of "weightpack dense avx2"; without a name in between, the default."""
    return "dense" if "dense" in tool.split() else "fast"


class Weightpack(Memory):
    def __init__(self, spec):
        super().__init__(spec)
        from weightpack import kernels
        from weightpack.format.record import record_bound
        from weightpack.options import load_profile
        from weightpack.reading.record import decode_record
        from weightpack.writing.record import encode_record

        isa, profile = spec["tool"].split()[-1], profile_of(spec["tool"])
        if isa not in kernels.available_isas():
            raise NotApplicable(f"this CPU has no {isa}")
        kernels._active = kernels._make(isa)
        self.options, threads = load_profile(profile), spec["threads"]
        self.layout = self.options.layout(spec["dtype"], self.n_bytes)
        elem_bytes = self.layout.elem_bytes
        self.out = np.zeros_like(self.data)
        self.room = np.zeros(record_bound(self.layout, self.n_bytes // elem_bytes, self.options.chunk_elems), np.uint8)
        self.encode = lambda data: encode_record(data, self.layout, self.options, threads=threads, out=self.room)

        def decode(packed):
            decode_record(packed, self.out, threads)
            return self.out

        self.decode = decode


class WeightpackFiles(Files):
    def __init__(self, spec):
        super().__init__(spec)
        import weightpack

        verify, options = spec["tool"].endswith(" verified"), weightpack.load_profile(profile_of(spec["tool"]))

        def encode(_):
            weightpack.pack(self.source, self.packed, options=options, threads=spec["threads"], verify=verify)
            return self.packed

        def decode(packed):
            weightpack.unpack(packed, self.restored, threads=spec["threads"])
            return self.restored

        self.encode, self.decode = encode, decode


# ---- rivals


class Zstd(Memory):
    def __init__(self, spec):
        super().__init__(spec)
        import zstandard

        level, threads = int(spec["tool"].split("-")[1]), spec["threads"]
        compressor = zstandard.ZstdCompressor(level=level, threads=threads if threads > 1 else 0)
        self.encode, self.decode = compressor.compress, zstandard.ZstdDecompressor().decompress


class Zipnn(Memory):
    def __init__(self, spec):
        super().__init__(spec)
        from zipnn import ZipNN

        names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
        if spec["dtype"] not in names:
            raise NotApplicable("takes bf16, fp16 and fp32")
        zipnn = ZipNN(bytearray_dtype=names[spec["dtype"]], input_format="byte", threads=spec["threads"])
        self.encode, self.decode = zipnn.compress, zipnn.decompress

    def fresh_input(self):
        return bytearray(self.data)  # it changes its input

    def fresh_packed(self, packed):
        return bytes(packed)


class Openzl(Memory):
    def __init__(self, spec):
        super().__init__(spec)
        import openzl.ext as zl

        if spec["threads"] > 1:
            raise NotApplicable("its Python API has no threads")
        compressor = zl.Compressor()
        nodes = {"BF16": zl.nodes.BFloat16Deconstruct, "F16": zl.nodes.Float16Deconstruct, "F32": zl.nodes.Float32Deconstruct}
        if spec["dtype"] in nodes:
            exponents = {"huffman": zl.graphs.Huffman, "fse": zl.graphs.Fse}[spec["tool"].split()[1]]()
            graph = nodes[spec["dtype"]]()(compressor, zl.graphs.Compress()(compressor), exponents(compressor))
            kind, array = zl.Type.Numeric, self.data.view({2: "<u2", 4: "<u4"}[np.dtype(NUMPY_DTYPES[spec["dtype"]]).itemsize])
        else:
            if spec["tool"] != "openzl huffman":
                raise NotApplicable("one generic graph is enough for integers: see openzl huffman")
            graph, kind, array = zl.graphs.Compress()(compressor), zl.Type.Serial, self.data
        compressor.select_starting_graph(graph)
        context, decoder = zl.CCtx(), zl.DCtx()
        compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        context.set_parameter(zl.CParam.StickyParameters, 1)
        context.ref_compressor(compressor)
        self.encode = lambda _: context.compress([zl.Input(kind, array)])
        self.decode = lambda packed: decoder.decompress(packed)[0].content.as_nparray()

    def same(self, restored):
        return np.array_equal(np.ascontiguousarray(restored).reshape(-1).view(np.uint8), self.data)


class Z4ai(Memory):
    def __init__(self, spec):
        super().__init__(spec)
        import z4ai

        dtype = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}.get(spec["dtype"])
        original = self.data.tobytes()
        self.encode = lambda _: z4ai.compress(original, dtype=dtype, threads=spec["threads"])
        self.decode = z4ai.decompress


class Blosc2(Memory):
    def __init__(self, spec):
        super().__init__(spec)
        import blosc2

        itemsize = np.dtype(NUMPY_DTYPES[spec["dtype"]]).itemsize
        blosc2.set_nthreads(spec["threads"])
        filters = [blosc2.Filter.BITSHUFFLE] if itemsize > 1 else [blosc2.Filter.NOFILTER]
        self.encode = lambda data: blosc2.compress2(data, typesize=itemsize, codec=blosc2.Codec.ZSTD, clevel=5, filters=filters, nthreads=spec["threads"])
        self.decode = lambda packed: blosc2.decompress2(packed, nthreads=spec["threads"])


class Pcodec(Memory):
    def __init__(self, spec):
        super().__init__(spec)
        from pcodec import ChunkConfig, standalone

        if spec["threads"] > 1:
            raise NotApplicable("it has no threads")
        array = self.data.view(NUMPY_DTYPES[spec["dtype"]])  # bf16 goes as 16-bit integers: it has no bf16
        config = ChunkConfig()
        self.encode = lambda _: standalone.simple_compress(array, config)
        self.decode = standalone.simple_decompress

    def same(self, restored):
        return np.array_equal(np.ascontiguousarray(restored).view(np.uint8), self.data)


class Lmz(Files):
    def __init__(self, spec):
        super().__init__(spec)
        from lmz import api

        def encode(_):
            api.compress(str(self.source), str(self.packed), workers=spec["threads"])
            return self.packed

        def decode(packed):
            api.decompress(str(packed), str(self.restored), workers=spec["threads"])
            return self.restored

        self.encode, self.decode = encode, decode


class Bigsmall(Files):
    def __init__(self, spec):
        super().__init__(spec)
        from bigsmall.decoder import decompress
        from bigsmall.encoder import compress

        packed_path = self.folder / "packed.bs"
        self.packed = packed_path

        def encode(_):
            compress(self.source, packed_path, workers=spec["threads"], progress=False)
            return packed_path

        def decode(packed):
            decompress(packed, self.restored, progress=False)
            return self.restored

        self.encode, self.decode = encode, decode

    def same(self, restored):
        """Its file has another header; the tensors are compared."""

        def tensors(path):
            blob = path.read_bytes()
            n = int.from_bytes(blob[:8], "little")
            header = json.loads(blob[8 : 8 + n])
            header.pop("__metadata__", None)
            return {k: (v["dtype"], v["shape"], blob[8 + n + v["data_offsets"][0] : 8 + n + v["data_offsets"][1]]) for k, v in header.items()}

        return tensors(restored) == tensors(self.source)


TOOLS = {
    "weightpack": Weightpack, "weightpack-files": WeightpackFiles, "zstd": Zstd, "zipnn": Zipnn, "openzl": Openzl, "z4ai": Z4ai, "blosc2": Blosc2,
    "pcodec": Pcodec, "lmz": Lmz, "bigsmall": Bigsmall,
}  # fmt: skip


def timed(work, prepare, repeats, seconds):
    """Median seconds of `work(prepare())` after a warm-up; the preparation is not timed."""
    work(prepare())
    times, begin = [], time.perf_counter()
    while len(times) < repeats or (time.perf_counter() - begin < seconds and len(times) < 5 * repeats):
        argument = prepare()
        start = time.perf_counter()
        work(argument)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_rss():
    """Peak resident bytes since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def measure(spec):
    """Measure one tool; return the figures, or why there are none."""
    if hasattr(os, "sched_setaffinity") and spec["threads"] == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        tool = TOOLS[spec["tool"].split()[0].split("-")[0] if spec["tool"].startswith("zstd") else spec["tool"].split()[0]](spec)
    except NotApplicable as reason:
        return {"not_applicable": str(reason)}
    try:
        before = reset_peak()
        packed = tool.encode(tool.fresh_input())
        restored = tool.decode(tool.fresh_packed(packed))
        peak = peak_rss() - before
        if not tool.same(restored):
            return {"not_applicable": "the round trip gave other bytes"}
        packed_bytes = tool.size(packed)
        del restored
        repeats, seconds = spec["repeats"], spec["seconds"]
        copy = timed(lambda _: tool.copy(), lambda: None, repeats, seconds / 4)
        encode = timed(tool.encode, tool.fresh_input, repeats, seconds)
        packed = tool.encode(tool.fresh_input())
        decode = timed(tool.decode, lambda: tool.fresh_packed(packed), repeats, seconds)
        return {
            "road": "memory" if isinstance(tool, Memory) else "files", "source_bytes": tool.n_bytes, "packed_bytes": packed_bytes, "copy_seconds": copy,
            "encode_seconds": encode, "decode_seconds": decode, "peak_rss_bytes": peak,
        }  # fmt: skip
    finally:
        if isinstance(tool, Files):
            shutil.rmtree(tool.folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        result = measure(json.loads(sys.argv[1]))
    except Exception as error:
        result = {"not_applicable": f"{type(error).__name__}: {str(error)[:200]}"}
    print("\n" + json.dumps(result))
