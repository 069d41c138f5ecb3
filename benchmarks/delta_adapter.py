#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure one tool on one pair of files, target given base, in the tool's own environment; called by deltas.py, prints JSON.

    python delta_adapter.py '{"tool": "bitx", "target": "b.safetensors", "base": "a.safetensors", "timed": true, "repeats": 3}'

A tool is a class with `pack(base, target, packed)` and `unpack(base, packed, restored)`, on paths; `base` is None where there is none. What it restores is
compared before it is timed. Needs numpy, and the tool. Tools that have no files of their own get the tensors of the same name, dtype and shape as pairs, the
others alone; the target's header is kept with zstd.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ELEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F32", "F16", "BF16")
ZIPNN_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


class NotApplicable(Exception):
    """The tool does not take this; the message says why."""


def parse_header(text):
    """Return {name: entry} in the order of the tensors' bytes."""
    entries = json.loads(text)
    entries.pop("__metadata__", None)
    return dict(sorted(entries.items(), key=lambda item: item[1]["data_offsets"]))


def read_header(path):
    """Return the bytes up to the tensors, and the entries."""
    with Path(path).open("rb") as file:
        length = file.read(8)
        text = file.read(int.from_bytes(length, "little"))
    return length + text, parse_header(text)


def read_tensors(path):
    """Return {name: (dtype, shape, bytes)} in the order of the bytes; they are views of one buffer."""
    header, entries = read_header(path)
    data = np.fromfile(path, np.uint8)[len(header) :]
    return {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in entries.items()}


def parts(header, entries, data, base):
    """Yield (dtype, bytes, base's bytes or None) of each tensor: a pair has one name, dtype and shape, which is BitX's rule. `data` None: of the base alone."""
    for entry, pair in zip(entries.values(), (base.get(name) for name in entries), strict=True):
        begin, end = (len(header) + offset for offset in entry["data_offsets"])
        paired = pair is not None and pair[:2] == (entry["dtype"], entry["shape"])
        yield entry["dtype"], None if data is None else data[begin:end], pair[2] if paired else None, end - begin


def save_blobs(path, blobs):
    """Write blobs behind one another, eight bytes of length before each."""
    with Path(path).open("wb") as file:
        for blob in blobs:
            file.write(len(blob).to_bytes(8, "little"))
            file.write(blob)


def load_blobs(path):
    data, at, blobs = memoryview(Path(path).read_bytes()), 0, []
    while at < len(data):
        n = int.from_bytes(data[at : at + 8], "little")
        blobs.append(data[at + 8 : at + 8 + n])
        at += 8 + n
    return blobs


def rotated(data, dtype):
    """The words of floats with the sign last, so that the exponent is their top byte; other words as they are."""
    words = data.view(f"<u{ELEM_BYTES[dtype]}")
    return words << 1 | words >> (8 * words.itemsize - 1) if dtype in FLOATS else words


def planes(data, dtype):
    """Byte planes of the rotated words, (elem_bytes, n)."""
    words = rotated(data, dtype)
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, words.itemsize).T)


def unplanes(rows, dtype):
    words = np.ascontiguousarray(rows.T).reshape(-1).view(f"<u{ELEM_BYTES[dtype]}")
    return (words >> 1 | words << (8 * words.itemsize - 1) if dtype in FLOATS else words).view(np.uint8)


# ---- tools


class Weightpack:
    """Without its own verification: what is restored is compared here."""

    def __init__(self, spec):
        import weightpack

        self.weightpack, self.options = weightpack, weightpack.load_profile("dense" if "dense" in spec["tool"].split() else "fast")

    def pack(self, base, target, packed):
        self.weightpack.pack(target, packed, options=self.options, threads=1, verify=False, overwrite=True, **({"base": base} if base else {}))

    def unpack(self, base, packed, restored):
        self.weightpack.unpack(packed, restored, threads=1, overwrite=True, **({"base": base} if base else {}))


class Buffers:
    """A tool without files of its own: gives one or more blobs for what belongs together."""

    needs_base = True

    def __init__(self, spec):
        import zstandard

        if self.needs_base and spec["base"] is None:
            raise NotApplicable("is for pairs")
        self.level = int(spec["tool"].rsplit("-", 1)[1]) if "zstd-" in spec["tool"] else 3
        self.zstd, self.unzstd = zstandard.ZstdCompressor(level=self.level).compress, zstandard.ZstdDecompressor().decompress

    def pack(self, base, target, packed):
        header, entries = read_header(target)
        data, pairs = np.fromfile(target, np.uint8), self.base_for(entries, base)
        save_blobs(packed, [self.zstd(header), *self.encode(list(parts(header, entries, data, pairs)))])

    def unpack(self, base, packed, restored):
        first, *blobs = load_blobs(packed)
        header = self.unzstd(first)
        entries = parse_header(header[8:])
        with Path(restored).open("wb") as file:
            file.write(header)
            for tensor in self.decode(list(parts(header, entries, None, self.base_for(entries, base))), blobs):
                file.write(tensor)

    def base_for(self, entries, base):
        """The base's tensors by name."""
        return read_tensors(base) if base else {}


class Bitx(Buffers):
    """As in JerryW35/ZipLLM, src/bitx/bitx_bytes.rs and src/compression.rs, here in numpy.

    Each pair's XOR, as 16-bit words whatever the dtype, is split into bits 14 to 7 and the others, each through zstd -3 by itself; tensors without a pair go
    through zstd -3.
    """

    def encode(self, tensors):
        for _, data, pair, n in tensors:
            if pair is None or n < 2 or n % 2:
                yield self.zstd(data)
                continue
            words = data.view("<u2") ^ pair.view("<u2")
            yield self.zstd((words >> 7).astype(np.uint8))
            yield self.zstd((words >> 8 & 0x80 | words & 0x7F).astype(np.uint8))

    def decode(self, tensors, blobs):
        blobs = iter(blobs)
        for _, _, pair, n in tensors:
            if pair is None or n < 2 or n % 2:
                yield self.unzstd(next(blobs))
                continue
            exponents, rest = (np.frombuffer(self.unzstd(next(blobs)), np.uint8).astype(np.uint16) for _ in range(2))
            yield (exponents << 7 | (rest & 0x80) << 8 | rest & 0x7F) ^ pair.view("<u2")


def cast_base(dtype, pair):
    """Base as the target's dtype, if both are floats: fp32 rounds to the nearest bf16, ties to even."""
    if pair[0] == dtype or (pair[0], dtype) != ("F32", "BF16"):
        return pair
    words = pair[2].view("<u4")
    return dtype, pair[1], ((words + (0x7FFF + (words >> 16 & 1))) >> 16).astype("<u2").view(np.uint8)


class Grouped(Buffers):
    """Joins the pairs of each dtype, and the rest of each dtype; base tensors of another float dtype are cast first."""

    def base_for(self, entries, base):
        tensors = super().base_for(entries, base)
        return {name: cast_base(entry["dtype"], tensors[name]) for name, entry in entries.items() if name in tensors}

    def groups(self, tensors):
        """{(dtype, paired): indices of tensors}."""
        found = {}
        for i, (dtype, _, pair, _) in enumerate(tensors):
            found.setdefault((dtype, pair is not None), []).append(i)
        return found

    def encode(self, tensors):
        for (dtype, paired), members in self.groups(tensors).items():
            data = np.concatenate([tensors[i][1] for i in members])
            yield from self.encode_group(data, np.concatenate([tensors[i][2] for i in members]) if paired else None, dtype)

    def decode(self, tensors, blobs):
        blobs, out = iter(blobs), [None] * len(tensors)
        for (dtype, paired), members in self.groups(tensors).items():
            data = self.decode_group(blobs, np.concatenate([tensors[i][2] for i in members]) if paired else None, dtype)
            at = 0
            for i in members:
                out[i], at = data[at : at + tensors[i][3]], at + tensors[i][3]
        return out


class XorPlanes(Grouped):
    """XOR, byte planes (the exponent's first), each through zstd."""

    needs_base = False

    def encode_group(self, data, base, dtype):
        return [self.zstd(plane) for plane in planes(data if base is None else data ^ base, dtype)]

    def decode_group(self, blobs, base, dtype):
        data = unplanes(np.stack([np.frombuffer(self.unzstd(next(blobs)), np.uint8) for _ in range(ELEM_BYTES[dtype])]), dtype)
        return data if base is None else data ^ base


class Zipnn(Grouped):
    """Its own delta mode, which is the XOR of both buffers and its usual coder; integers through zstd -3."""

    needs_base = False

    def make(self, dtype, base):
        from zipnn import ZipNN

        mode = {} if base is None else {"delta_compressed_type": "byte"}
        return ZipNN(bytearray_dtype=ZIPNN_DTYPES[dtype], input_format="byte", threads=1, **mode), {} if base is None else {"delta_second_data": base.tobytes()}

    def encode_group(self, data, base, dtype):
        if dtype not in ZIPNN_DTYPES:
            return [self.zstd(data if base is None else data ^ base)]
        zipnn, more = self.make(dtype, base)
        return [zipnn.compress(bytearray(data), **more)]

    def decode_group(self, blobs, base, dtype):
        blob = next(blobs)
        if dtype not in ZIPNN_DTYPES:
            data = np.frombuffer(self.unzstd(blob), np.uint8)
            return data if base is None else data ^ base
        zipnn, more = self.make(dtype, base)
        return np.frombuffer(zipnn.decompress(bytes(blob), **more), np.uint8)


class Zstd:
    """The whole file."""

    def __init__(self, spec):
        import zstandard

        self.zstandard, self.level = zstandard, int(spec["tool"].rsplit("-", 1)[1])

    def pack(self, base, target, packed):
        Path(packed).write_bytes(self.zstandard.ZstdCompressor(level=self.level).compress(Path(target).read_bytes()))

    def unpack(self, base, packed, restored):
        Path(restored).write_bytes(self.zstandard.ZstdDecompressor().decompress(Path(packed).read_bytes()))


class PatchFrom:
    """`zstd --patch-from`: the base as a prefix in the window, with long distances."""

    def __init__(self, spec):
        from backports import zstd

        if spec["base"] is None:
            raise NotApplicable("is for pairs")
        self.zstd, self.level = zstd, int(spec["tool"].rsplit("-", 1)[1])

    def pack(self, base, target, packed):
        before, data, names = Path(base).read_bytes(), Path(target).read_bytes(), self.zstd.CompressionParameter
        window_log = max(20, (len(before) + len(data)).bit_length())
        options = {names.compression_level: self.level, names.window_log: window_log, names.enable_long_distance_matching: 1}
        Path(packed).write_bytes(self.zstd.compress(data, options=options, zstd_dict=self.zstd.ZstdDict(before, is_raw=True).as_prefix))

    def unpack(self, base, packed, restored):
        prefix = self.zstd.ZstdDict(Path(base).read_bytes(), is_raw=True).as_prefix
        options = {self.zstd.DecompressionParameter.window_log_max: 31}
        Path(restored).write_bytes(self.zstd.decompress(Path(packed).read_bytes(), prefix, options))


class Lmz:
    """Its delta coding: `append` to an archive that has the base; the size is what the archive grows by. Without a base, an archive of the target alone."""

    def __init__(self, spec):
        from lmz import api

        self.api, self.archive, self.base_bytes = api, None, 0

    def prepare(self, base, folder):
        if base:
            self.archive = folder / "base.lmz"
            self.api.compress(str(base), str(self.archive), workers=1)
            self.base_bytes = self.archive.stat().st_size

    def before_pack(self, packed):
        if self.archive:
            shutil.copyfile(self.archive, packed)

    def pack(self, base, target, packed):
        if base:
            self.api.append(str(packed), str(target), workers=1)
        else:
            self.api.compress(str(target), str(packed), workers=1)
        self.member = Path(target).name

    def unpack(self, base, packed, restored):
        if base:
            self.api.extract(str(packed), self.member, str(restored), workers=1)
        else:
            self.api.decompress(str(packed), str(restored), workers=1)


class Bigsmall:
    """Its delta mode, which takes XOR or the tensor alone, whichever is smaller. It restores tensors, not the header."""

    packed_name = "packed.bs"

    def __init__(self, spec):
        from bigsmall import decoder, encoder

        self.encoder, self.decoder = encoder, decoder

    def pack(self, base, target, packed):
        if base:
            self.encoder.compress_delta(target, base, packed, workers=1, progress=False)
        else:
            self.encoder.compress(target, packed, workers=1, progress=False)

    def unpack(self, base, packed, restored):
        if base:
            self.decoder.decompress_delta(packed, base, restored, progress=False)
        else:
            self.decoder.decompress(packed, restored, progress=False)

    def same(self, target, restored):
        one, other = read_tensors(target), read_tensors(restored)
        return one.keys() == other.keys() and all(one[name][:2] == other[name][:2] and np.array_equal(one[name][2], other[name][2]) for name in one)


def make_tool(spec):
    classes = {
        "weightpack": Weightpack, "bitx": Bitx, "xor": XorPlanes, "zipnn": Zipnn, "zstd-3": Zstd, "zstd": PatchFrom, "lmz": Lmz, "bigsmall": Bigsmall,
    }  # fmt: skip
    return classes[spec["tool"].split()[0]](spec)


def timed(work, prepare, repeats):
    """Median seconds of `work()`."""
    times = []
    for _ in range(repeats):
        prepare()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(spec):
    """Measure one tool; return the figures, or why there are none."""
    if hasattr(os, "sched_setaffinity") and spec.get("cpu") is not None:
        os.sched_setaffinity(0, {spec["cpu"]})
    target, base = Path(spec["target"]), Path(spec["base"]) if spec["base"] else None
    try:
        tool = make_tool(spec)
    except NotApplicable as reason:
        return {"not_applicable": str(reason)}
    folder = Path(tempfile.mkdtemp(prefix="deltas-", dir=spec.get("folder")))
    try:
        packed, restored = folder / getattr(tool, "packed_name", "packed.safetensors"), folder / "restored.safetensors"
        if hasattr(tool, "prepare"):
            tool.prepare(base, folder)

        def before_pack():
            packed.unlink(missing_ok=True)
            getattr(tool, "before_pack", lambda _: None)(packed)

        def pack():
            tool.pack(base, target, packed)

        def unpack():
            tool.unpack(base, packed, restored)

        before_pack()
        start = time.perf_counter()
        pack()
        first = time.perf_counter() - start
        unpack()
        same = tool.same(target, restored) if hasattr(tool, "same") else target.read_bytes() == restored.read_bytes()
        if not same:
            return {"not_applicable": "the round trip gave other bytes", "wrong": True}
        result = {"source_bytes": target.stat().st_size, "packed_bytes": packed.stat().st_size - getattr(tool, "base_bytes", 0)}
        if spec["timed"]:
            data = np.fromfile(target, np.uint8)
            room = np.zeros_like(data)
            result["memcpy_seconds"] = timed(lambda: np.copyto(room, data), lambda: None, 5)
            del data, room
            result["copy_seconds"] = timed(lambda: shutil.copyfile(target, folder / "copy"), lambda: None, 3)
            result["pack_runs"] = 1 if first > spec["slow_seconds"] else spec["repeats"]
            result["pack_seconds"] = first if result["pack_runs"] == 1 else timed(pack, before_pack, spec["repeats"])
            result["unpack_seconds"] = timed(unpack, lambda: restored.unlink(missing_ok=True), spec["repeats"])
            result["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return result
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        result = measure(json.loads(sys.argv[1]))
    except Exception as error:
        result = {"not_applicable": f"{type(error).__name__}: {str(error)[:200]}"}
    print("\n" + json.dumps(result))
