# SPDX-License-Identifier: Apache-2.0
"""What `scripts/fuzz` needs beside a compiler: seeds for all targets, and the drive for the Python ones.

    python scripts/fuzz.py seeds FOLDER              one folder of inputs for each target, out of tests/golden
    python scripts/fuzz.py run TARGET LIBFUZZER...   a target of tests/support/fuzz_targets.py, under atheris
    python scripts/fuzz.py keep                      what reached new code in the last run, into tests/fuzz_corpus: a few dozen inputs for each target

Mutated files die at the first checksum. So the mutators repair some: those of the index, of chunks and kept pieces, of the frame's head, and the source's
SHA-256. Then the damage reaches the decoders.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
MOST_SEED_BYTES = 4096  # a seed that is longer makes every execution slow
ODD_NUMBERS = [0, 1, -1, 2, 127, 255, 1 << 31, (1 << 63) - 1, 1 << 63, 1 << 64, 10**400, 1e999, 0.5]
ODD_VALUES = [*ODD_NUMBERS, True, None, "", "p", "k", "t", "d", "U8", "F4", "\ud800", [], {}, [0], [[]]]


# ---- seeds ----


def write_seeds(folder: Path) -> None:
    """Write FOLDER/TARGET/... for each target, native and Python."""
    for name, data in seeds():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / hashlib.sha1(data).hexdigest()).write_bytes(data)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield (target, input): the golden files, and what they are made of."""
    from fuzz_targets import golden_files

    from weightpack.io.files import MemoryFile
    from weightpack.reading.packed_file import PackedFile
    from weightpack.writing.frame import encode_bytes

    for number, (file, source) in enumerate(golden_files()):
        packed = PackedFile(MemoryFile([file]))
        n = int.from_bytes(file[:8], "little")
        yield "damaged", bytes([number])
        yield "damaged", bytes([number, 0]) + (8 + n).to_bytes(3, "little") + b"\xff"
        yield "damaged", bytes([number, 4]) + (8 + n + 100).to_bytes(3, "little") + b"\xff"
        source_begin = 8 + int.from_bytes(source[:8], "little")
        if len(file) <= MOST_SEED_BYTES:
            yield "packed", file
            yield "header", b"\0" + struct.pack("<H", min(65535, len(file) - 8 - n)) + file[8 : 8 + n]
            yield "header", b"\xff" + struct.pack("<H", min(65535, len(source) - source_begin)) + source[8:source_begin]
            yield "index", json.loads(file[8 : 8 + n])["__metadata__"]["weightpack"].encode()
        for stored in packed.tensors.values():
            tensor = stored.tensor
            data = source[tensor.offset : tensor.offset + tensor.n_bytes]
            if tensor.n_bytes and tensor.n_bytes <= MOST_SEED_BYTES and tensor.dtype in ("BF16", "F16", "F32", "F64", "U8", "I64", "F4", "F8_E4M3"):
                yield "frame", encode_bytes(np.frombuffer(data, np.uint8), tensor.dtype, tensor.shape)
            if stored.storage == "p":
                yield from _record_seeds(packed, stored, file, data)
    yield from lead_seeds()
    yield from tables_seeds()
    yield from difference_seeds()
    yield from quantised_seeds()
    for file in small_files():
        yield "packed", file
    for file in based_files():
        yield "based", file
        yield "index", json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])["__metadata__"]["weightpack"].encode()
    packed_file = b'{"a.safetensors": {"source_bytes": 1, "packed_bytes": 2, "sha256": "00"}}'
    yield "manifest", b'{"weightpack_manifest": 1, "packed": ' + packed_file + b', "originals": {"config.json": "e30K"}}'
    yield "shards", b'{"metadata": {"total_size": 1}, "weight_map": {"a": "a.safetensors", "b": "sub/b.safetensors"}}'
    yield "shards", b'{"weight_map": {"a": "a.safetensors"}}'


def small_files() -> Iterator[bytes]:
    """Yield packed files of about 1 kB, each codec and each kind of storage in one of them: the golden ones that have all are ten times as long."""
    import samples

    import weightpack

    bf16, f32 = ("BF16", (400,), samples.weights(400, "BF16")), ("F32", (90,), samples.weights(90, "F32"))
    tensors = {"a": bf16, "b": f32, "c": f32, "d": ("F16", (300,), bytes(600)), "e": ("U8", (40,), bytes(range(40)))}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "packed"
        source.write_bytes(samples.safetensors_file(tensors, {"format": "pt"}))
        for codec in weightpack.options.CODEC_CHOICES:
            weightpack.pack(source, target, options=weightpack.PackOptions(codecs=(codec,), chunk_elems=256, exhaustive=True), overwrite=True)
            yield target.read_bytes()


def based_files() -> Iterator[bytes]:
    """Yield packed files that are differences from the base of the target `based`: of its dtypes and others, moved, longer; and scaled ones."""
    import samples
    from fuzz_targets import base_file

    import weightpack
    from weightpack.options import CODEC_CHOICES

    rng = np.random.default_rng(9)
    bf16, f16, f32 = (np.frombuffer(samples.weights(n, dtype), "<u2" if n != 260 else "<u4") for dtype, n in (("BF16", 420), ("F16", 300), ("F32", 260)))
    step = {name: (each + (rng.random(each.size) < 0.2)).astype(each.dtype) for name, each in (("BF16", bf16), ("F16", f16), ("F32", f32))}
    same_dtypes = {name: (name, (each.size,), each.tobytes()) for name, each in step.items()}
    narrower = {"F32": ("BF16", (260,), (step["F32"] >> 16).astype("<u2").tobytes()), "BF16": ("F32", (420,), (bf16.astype("<u4") << 16).tobytes())}
    table = np.frombuffer(bytes(i * i % 251 for i in range(300)), np.uint8).reshape(30, 10)
    longer = {"U8": ("U8", (33, 10), np.concatenate([table[:9], table[5:8] ^ 0x55, table[9:]]).tobytes()), "BF16": same_dtypes["BF16"]}
    moments = np.exp(rng.normal(-9, 3, (20, 1)) + rng.normal(0, 2, (1, 18))).astype("<f4")
    with tempfile.TemporaryDirectory() as folder:
        base, source, target = Path(folder) / "base", Path(folder) / "source", Path(folder) / "packed"
        base.write_bytes(base_file())
        for tensors in (same_dtypes, narrower, longer, {"v": ("F32", (20, 18), moments.tobytes())}):
            source.write_bytes(samples.safetensors_file(tensors))
            for codecs in ((), CODEC_CHOICES):
                options = weightpack.PackOptions(codecs=codecs, chunk_elems=256)
                weightpack.pack(source, target, options=options, base=None if "v" in tensors else base, overwrite=True)
                yield target.read_bytes()


def lead_seeds() -> Iterator[tuple[str, bytes]]:
    """Yield inputs with the codec `context`, which no file has below 32,768 elements of a tensor."""
    from fuzz_targets import MOST_TENSOR_BYTES

    from weightpack.format.layouts import LAYOUTS
    from weightpack.format.record import RecordHead, chunk_bound, parse_chunk, table_end
    from weightpack.options import load_profile
    from weightpack.writing.chunks import EncodedChunk, encode_chunks

    rng = np.random.default_rng(1)
    for layout in (layout for layout in LAYOUTS.values() if layout.has_context(0)):
        n = 1500
        elems = rng.integers(0, 1 << 8 * layout.elem_bytes, n, np.uint64)
        low, high = (layout.mantissa_bits or 0) + layout.plane_bits[0], 8 * layout.elem_bytes - 1  # of the exponent
        exponents = np.clip(rng.standard_normal(n) * 1.5 + (1 << (high - low - 1)), 0, (1 << (high - low)) - 1).astype(np.uint64)
        elems = elems >> np.uint64(high) << np.uint64(high) | exponents << np.uint64(low) | elems & np.uint64((1 << low) - 1)
        data = elems.astype(f"<u{layout.elem_bytes}").view(np.uint8)
        out = np.empty(chunk_bound(layout, n), np.uint8)
        chunk: EncodedChunk = encode_chunks(data, layout, 128 * 20, 0, load_profile(codec="rans"), out)[0]
        coded, begin = out[: chunk.n_bytes].tobytes(), table_end(1)
        head = RecordHead(layout, n, 128 * 20, np.array([begin, begin + chunk.n_bytes]), np.array([chunk.crc], np.uint32))
        yield "chunk", struct.pack("<BH", layout.id, n) + coded
        yield "record", struct.pack("<BBBBH", layout.id, 0, 1, 19, n) + struct.pack("<HH", 0, chunk.n_bytes // 16) + coded
        yield "encode", struct.pack("<BBHB", layout.id - 1, 0, n, 10) + data.tobytes()
        if len(data) < MOST_TENSOR_BYTES:
            yield "tensor", struct.pack("<H", len(data)) + head.to_bytes() + coded
        for plane, (codec, stream) in enumerate(parse_chunk(coded, layout).streams):
            yield "stream", struct.pack("<BBBH", layout.id - 1, plane, codec, n) + bytes(stream)


def tables_seeds() -> Iterator[tuple[str, bytes]]:
    """Yield inputs with the codec `tables`, which no plane has below 16,384 symbols: a plane of three codebooks, made by hand."""
    from weightpack.format.constants import Codec
    from weightpack.format.layouts import LayoutId
    from weightpack.kernels import RansBook, numpy_rans

    books = [RansBook(b"\1\2\3", bytes([200, 40, 10]), 6), RansBook(b"\7", b"\xff", 1), RansBook(b"\5\6", bytes([100, 156]), 0)]
    which, rng = np.array([2, 0, 1, 0]).repeat(128)[:400], np.random.default_rng(3)
    symbols = np.choose(which, [rng.choice([1, 2, 3, 9, 250], 400), rng.choice([7, 7, 7, 99], 400), rng.choice([5, 6], 400)]).astype(np.uint8)
    head = bytes([2, 1]) + b"".join(bytes((len(b.symbols), b.escape_freq)) + b.symbols + b.freqs for b in books) + bytes([2 | 1 << 4])
    stream = head + numpy_rans.encode_symbols(books, which, symbols).tobytes()
    yield "stream", struct.pack("<BBBH", LayoutId.BYTES1 - 1, 0, Codec.TABLES, 400) + stream
    chunk = struct.pack("<BBH", 0, 1, 0) + struct.pack("<I", Codec.TABLES | len(stream) << 8) + stream
    yield "chunk", struct.pack("<BH", LayoutId.BYTES1, 400) + chunk


def difference_seeds() -> Iterator[tuple[str, bytes]]:
    """Yield chunks of differences, each with its base, and elements for their encoder."""
    from weightpack.format.constants import Mode
    from weightpack.format.layouts import LAYOUTS, LayoutId
    from weightpack.format.record import parse_chunk
    from weightpack.options import PackOptions
    from weightpack.writing.differences import encode_difference, encode_scaled

    rng = np.random.default_rng(4)
    for layout in (layout for layout in LAYOUTS.values() if layout.elem_bytes <= 4):
        for n, step in ((90, 1), (300, 3), (1100, 2)):
            word = f"<u{layout.elem_bytes}"
            base = rng.integers(1 << 8 * layout.elem_bytes - 3, 1 << 8 * layout.elem_bytes - 2, n).astype(word)
            steps = rng.integers(-step, step + 1, n) * (np.arange(n) // 128 % 2 == 0) + 5000 * (rng.random(n) < 0.3) * (step == 3)
            elems = (base.astype(np.int64) + steps).astype(word)
            chunk = parse_chunk(encode_difference(elems.view(np.uint8), base.view(np.uint8), layout, PackOptions(codecs=("rans", "huffman"))), layout)
            yield "difference", _difference_seed(int(layout.id), 0, n, 0, chunk, base.tobytes())
            head = struct.pack("<BBHBBBBB", layout.id - 1, 4 | step << 3, n, step - 1, 3, 5 * step, 0x70, 2 * step)
            yield "encode", head + elems.tobytes()[:900]
    for layout in (LAYOUTS[LayoutId.F32], LAYOUTS[LayoutId.BF16]):
        values = np.exp(rng.normal(-9, 2, (8, 1)) + rng.normal(0, 2, (1, 20))).astype("<f4").view("<u4") >> (32 - 8 * layout.elem_bytes)
        data = values.astype(f"<u{layout.elem_bytes}").view(np.uint8).reshape(-1)
        chunk = parse_chunk(encode_scaled(data, layout, 20, 0, PackOptions(codecs=("rans", "huffman"))), layout)
        assert chunk.mode == Mode.SCALED
        yield "difference", _difference_seed(int(layout.id), 1, 160, 19, chunk, b"\0\0" + bytes(chunk.streams[0][1]))


def quantised_seeds() -> Iterator[tuple[str, bytes]]:
    """Yield chunks of codes and scales, and what stands in them."""
    import quantised

    from weightpack.format.layouts import layout_of
    from weightpack.format.record import Tiling
    from weightpack.options import PackOptions
    from weightpack.writing.quantised import Quantisation, encode_quantised, grid_named

    for kind, (dtype, words), tiling in (
        ("integers", ("F16", quantised.groups_of_integers(3, 128, "F16", 4, 32)), Tiling(32, 1, 32)),
        ("rounded", ("F32", quantised.fake_int8(4, 60, "F32")), Tiling(60, 1, 60)),
        ("e2m1", ("BF16", quantised.mxfp4(5, 64)), Tiling(32, 1, 32)),
        ("e4m3", ("BF16", quantised.blocks_of_fp8(17, 24, "BF16", 0, 8)), Tiling(24, 8, 8)),
    ):
        layout, data = layout_of(dtype), words.reshape(-1).view(np.uint8)
        chunk = encode_quantised(data, layout, Quantisation(grid_named(kind), tiling), PackOptions(codecs=("rans", "huffman")))
        assert chunk is not None
        yield "chunk", struct.pack("<BH", layout.id, words.size) + chunk
        head = struct.pack("<BBBHHBBH", layout.id, 12, 30, words.size, tiling.cols - 1, tiling.tile_rows - 1, tiling.tile_cols - 1, 0)
        yield "quantised", head + np.arange(1, 32, dtype="<f4").tobytes() + bytes(range(0, 250, 3))
        yield "quantised", head[:1] + b"\3" + head[2:] + np.arange(1, 32, dtype="<f4").tobytes() + data[:800].tobytes()


def delta_seeds() -> Iterator[tuple[str, bytes]]:
    """Yield deltas from bases as the target has them."""
    from weightpack import delta

    base = {"w": (np.arange(1200) & 255).astype(np.uint8).view("<f4"), "b": (np.arange(60) & 255).astype(np.uint8)}
    tensors = {"w": base["w"] * np.float32(1.001), "b": base["b"], "n": np.zeros((3, 40), "<f2"), "t": base["w"] * np.float32(1.001)}
    for names in (["w"], ["b"], ["n"], [*tensors]):
        yield "delta", delta.encode({name: tensors[name] for name in names}, base)


def _difference_seed(layout: int, flags: int, n: int, cols: int, chunk: Any, base: bytes) -> bytes:
    codecs, streams = zip(*((codec, bytes(stream)) for codec, stream in chunk.streams[-3:]), strict=True)
    head = struct.pack("<BBB3BBHHHHH", layout, flags, chunk.shift, *codecs, len(chunk.frequent) // 4, n, cols, len(base), len(streams[0]), len(streams[1]))
    return head + chunk.frequent + base + b"".join(streams)


def _record_seeds(packed: Any, stored: Any, file: bytes, data: bytes) -> Iterator[tuple[str, bytes]]:
    from fuzz_targets import MOST_TENSOR_BYTES

    from weightpack.format.record import parse_chunk

    head = packed.record_head(stored)
    layout, elem_bytes = head.layout, head.layout.elem_bytes
    record = file[stored.begin : stored.end]
    if len(data) < MOST_TENSOR_BYTES:
        yield "tensor", struct.pack("<H", len(data)) + record
    sample = data[:1500]
    yield "encode", struct.pack("<BBHB", layout.id - 1, 0, min(4399, len(data) // elem_bytes), 10) + sample
    yield "huffman", struct.pack("<BBBBHH", 0, 40, sample[0], 1, min(2599, len(data)), 0) + bytes(range(40)) + sample
    for flags in (0, 3, 4):
        yield "rans", struct.pack("<BHH", flags, min(2599, len(data)), 300) + sample
    if head.chunk_elems > 9000:
        return
    n_chunks = min(8, head.n_chunks)
    offsets = head.offsets[: n_chunks + 1] - head.offsets[0]
    body = record[int(head.offsets[0]) : int(head.offsets[n_chunks])]
    for flags in (0, 1):
        start = struct.pack("<BBBBH", layout.id, flags, n_chunks, head.chunk_elems // 128 - 1, min(head.n_elems, n_chunks * head.chunk_elems))
        yield "record", start + (offsets // 16).astype("<u2").tobytes() + body
    for i in range(n_chunks):
        chunk = record[int(head.offsets[i]) : int(head.offsets[i + 1])]
        yield "chunk", struct.pack("<BH", layout.id, head.elems_of(i)) + chunk
        parsed = parse_chunk(chunk, layout)
        for plane, (codec, stream) in enumerate(parsed.streams):
            yield "stream", struct.pack("<BBBH", 0 if parsed.mode else layout.id - 1, plane, codec, head.elems_of(i)) + bytes(stream)


def keep_corpus(found: Path, corpus: Path, n_kept: int = 40) -> None:
    """Copy inputs of every length out of what a run found worth keeping; regression files that are there already stay."""
    for folder in sorted(found.iterdir()):
        inputs = sorted((path for path in folder.iterdir() if path.stat().st_size <= MOST_SEED_BYTES), key=lambda path: (path.stat().st_size, path.name))
        step = max(1, len(inputs) // n_kept)
        (corpus / folder.name).mkdir(parents=True, exist_ok=True)
        for path in inputs[::step][:n_kept]:
            (corpus / folder.name / path.name).write_bytes(path.read_bytes())


# ---- mutators ----


def repair_record(record: bytes, n_bytes: int, base: Any = None) -> bytes:
    """Put the right CRC in the table for each chunk that can be decoded; `base` is what the reference decoder takes."""
    from weightpack import reference
    from weightpack.errors import WeightpackError
    from weightpack.format.record import parse_record_head

    fixed = bytearray(record)
    try:
        head = parse_record_head(record, n_bytes, len(record))
        layout = reference.LAYOUTS[int(head.layout.id)]
        for i in range(head.n_chunks):
            chunk, _ = reference.decode_chunk(record, int(head.offsets[i]), layout, head.elems_of(i), base, i * head.chunk_elems)
            struct.pack_into("<I", fixed, 8 + 8 * i + 4, reference.numbered_crc(i, chunk))
    except (WeightpackError, reference.FormatError):
        pass  # the rest stays as it is
    return bytes(fixed)


def mutate_tensor(data: bytes, mutate: Callable[[bytes, int], bytes], max_size: int, rng: random.Random) -> bytes:
    """The record's size field follows its length in half of the cases, and the CRCs in most."""
    from fuzz_targets import MOST_TENSOR_BYTES

    changed = mutate(data, max_size)
    if len(changed) < 10:
        return changed
    if rng.random() < 0.5:
        changed = changed[: 2 + (len(changed) - 2) // 16 * 16]
        changed = changed[:6] + struct.pack("<I", (len(changed) - 2) // 16) + changed[10:]
    return changed[:2] + repair_record(changed[2:], int.from_bytes(changed[:2], "little") % MOST_TENSOR_BYTES) if rng.random() < 0.8 else changed


def mutate_frame(data: bytes, mutate: Callable[[bytes, int], bytes], max_size: int, rng: random.Random) -> bytes:
    """Mutate head or body; then the head's CRC, and those of the body."""
    from weightpack import reference

    changed = bytearray(mutate(data, max_size))
    if len(changed) < 12 or rng.random() < 0.1:
        return bytes(changed)
    head = 8 + changed[6] + 8 * changed[7]
    if len(changed) < head + 4:
        return bytes(changed)
    changed[head : head + 4] = struct.pack("<I", reference.crc32c(bytes(changed[:head])))
    body = bytes(changed[head + 4 :])
    try:
        shape = struct.unpack_from(f"<{changed[7]}Q", changed, 8 + changed[6])
        n_bytes = reference.tensor_bytes(bytes(changed[8 : 8 + changed[6]]).decode("latin-1"), shape)
    except reference.FormatError:
        return bytes(changed)
    if changed[5] == 1:
        body = repair_record(body, n_bytes)
    elif len(body) > 4:
        body = struct.pack("<I", reference.numbered_crc(0, body[4:])) + body[4:]
    return bytes(changed[: head + 4]) + body


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value in a JSON tree."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(pairs):
        yield value, key
        yield from _nodes(child)


def _change_node(tree: Any, rng: random.Random) -> None:
    nodes = list(_nodes(tree))
    if not nodes:
        return
    where, key = rng.choice(nodes)
    old, roll = where[key], rng.random()
    if roll < 0.3 and type(old) is int:
        where[key] = old + rng.choice([-1, 1, 8, -8, 16, 128, 1 << 20])
    elif roll < 0.5 and isinstance(old, str) and old:
        i = rng.randrange(len(old))
        where[key] = old[:i] + rng.choice(["", old[i] * 2, "\0", "=", "p", "k", "t", "\u00fc"]) + old[i + 1 :]
    elif roll < 0.6 and isinstance(old, list):
        rng.shuffle(old)
    elif roll < 0.7:
        del where[key]
    elif roll < 0.8:
        other, other_key = rng.choice(nodes)
        where[key] = other.get(other_key) if isinstance(other, dict) else old
    elif isinstance(where, dict) and roll < 0.85:
        where[str(key) + "2"] = where[key]
    else:
        where[key] = rng.choice(ODD_VALUES)


def mutate_json(data: bytes, mutate: Callable[[bytes, int], bytes], max_size: int, rng: random.Random) -> bytes:
    """Change a value of the tree, or bytes of the text."""
    try:
        tree = json.loads(data)
        if rng.random() < 0.6:
            for _ in range(rng.randint(1, 3)):
                _change_node(tree, rng)
            return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        pass
    return mutate(data, max_size)


def mutate_header(data: bytes, mutate: Callable[[bytes, int], bytes], max_size: int, rng: random.Random) -> bytes:
    """Leave the first three bytes alone, mostly."""
    return data[:3].ljust(3, b"\0") + mutate_json(data[3:], mutate, max_size - 3, rng) if rng.random() < 0.9 else mutate(data, max_size)


def mutate_packed(data: bytes, mutate: Callable[[bytes, int], bytes], max_size: int, rng: random.Random) -> bytes:
    """Mutate one part of the file, and mend what stands before it."""
    try:
        n = int.from_bytes(data[:8], "little")
        header, section = json.loads(data[8 : 8 + n]), data[8 + n :]
        text = header["__metadata__"]["weightpack"]
        index = json.loads(text)
        part = rng.choice(["any", "header", "header", "index text", "index", "index", "source", "source", "section", "section", "section"])
        if part == "any":
            return mutate(data, max_size)
        if part == "header":
            changed = mutate_json(data[8 : 8 + n], mutate, n + 64, rng)
            return struct.pack("<Q", len(changed)) + changed + section
        if part == "index text":
            text = mutate(text.encode(), len(text) + 64).decode("utf-8", "surrogateescape")
        elif part == "index":
            _change_node(index, rng)
            text = json.dumps(index)
        elif part == "source":
            text = json.dumps(_change_source(index, mutate, rng))
        else:
            entries = [entry for key, entry in header.items() if key != "__metadata__"]
            begin, end = rng.choice(entries)["data_offsets"]
            begin, end = min(begin, len(section)), min(end, len(section))  # a damaged file may claim any size
            changed = mutate(section[begin:end], end - begin)[: end - begin]
            section = section[:begin] + changed.ljust(end - begin, b"\0") + section[end:]
            section = _repair_section(header, index, section)
            text = json.dumps(index)
        file = _sealed(header, text, section)
        return _with_sha256(header, text, section) or file if rng.random() < 0.8 else file
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError, MemoryError, struct.error, zstandard.ZstdError):
        return mutate(data, max_size)  # it was no packed file before


def _sealed(header: Any, text: str, section: bytes) -> bytes:
    from weightpack import reference

    header["__metadata__"] |= {"weightpack": text, "weightpack.crc32c": f"{reference.crc32c(text.encode('utf-8', 'surrogatepass')):08x}"}
    new = json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + section


def _with_sha256(header: Any, text: str, section: bytes) -> bytes | None:
    """Set the source's SHA-256 to that of what the file restores to; None if it restores to nothing."""
    from fuzz_targets import base_file, opened

    from weightpack.errors import WeightpackError
    from weightpack.reading.pieces import restored_pieces

    try:
        packed = opened(_sealed(header, text, section), base_file())
        digest = hashlib.sha256()
        for piece in restored_pieces(packed, 1, lambda _, part: part.tobytes()):
            digest.update(piece.result)
    except WeightpackError:
        return None
    return _sealed(header, text.replace(packed.index.source_sha256, digest.hexdigest()), section)


def _change_source(index: Any, mutate: Callable[[bytes, int], bytes], rng: random.Random) -> Any:
    """Mutate the source's header in the first gap; the sizes follow."""
    offset, n_bytes, frame = index["gaps"][0]
    if rng.random() < 0.2:  # the frame itself
        index["gaps"][0][2] = base64.b64encode(mutate(base64.b64decode(frame), len(frame) + 32)).decode()
        return index
    first = zstandard.ZstdDecompressor().decompress(base64.b64decode(frame), max_output_size=1 << 20)
    n = int.from_bytes(first[:8], "little")
    text = mutate_json(first[8 : 8 + n], mutate, n + 64, rng)
    if rng.random() < 0.8:  # as long as before, if white space can do it
        text = text.ljust(min(n, len(first)))
    new = struct.pack("<Q", len(text)) + text + first[8 + n :]
    index["gaps"][0] = [offset, len(new), base64.b64encode(zstandard.ZstdCompressor().compress(new)).decode()]
    index["source"]["bytes"] += len(new) - n_bytes
    return index


def _repair_section(header: Any, index: Any, section: bytes) -> bytes:
    """Repair the CRCs of records and kept tensors (of one piece) in the data section; those of kept ones are in the index."""
    from weightpack import reference

    first = zstandard.ZstdDecompressor().decompress(base64.b64decode(index["gaps"][0][2]), max_output_size=1 << 20)
    source = json.loads(first[8 : 8 + int.from_bytes(first[:8], "little")])
    kept = b""
    ranges = iter(index.get("ranges", ()))
    for name, kind in zip(sorted(key for key in header if key != "__metadata__"), index["storage"], strict=True):
        begin, end = header[name]["data_offsets"]
        source_begin, source_end = source[name]["data_offsets"]
        if kind == "p":
            section = section[:begin] + repair_record(section[begin:end], source_end - source_begin) + section[end:]
        elif kind == "d":
            section = section[:begin] + repair_record(section[begin:end], source_end - source_begin, _base_of(source[name], next(ranges, None))) + section[end:]
        elif kind == "k" and end > begin:
            kept += struct.pack("<I", reference.numbered_crc(0, section[begin:end]))
    index["kept_crc32c"] = base64.b64encode(kept).decode()
    return section


def _base_of(entry: Any, item: Any) -> Any:
    """Return what the reference decoder takes for the base of a tensor of the target `based`."""
    from fuzz_targets import base_file

    from weightpack import reference

    n = entry["data_offsets"][1] - entry["data_offsets"][0]
    tensor = reference.Tensor("", entry["dtype"], (), 0, n, "d", memoryview(b""), memoryview(b""))
    try:
        (range_,) = reference.read_ranges([item], [reference.BaseFile(len(base_file()), "")], [tensor])
    except (reference.FormatError, KeyError):
        return None
    return entry["dtype"], reference.base_elements(range_, [base_file()])


MUTATORS = {
    "header": mutate_header, "index": mutate_json, "manifest": mutate_json, "shards": mutate_json, "tensor": mutate_tensor, "frame": mutate_frame,
    "packed": mutate_packed, "based": mutate_packed,
}  # fmt: skip


def run(target: str, arguments: list[str]) -> None:
    """Fuzz one target; does not return."""
    import atheris

    with atheris.instrument_imports(include=["weightpack"]):
        from fuzz_targets import TARGETS

        from weightpack import kernels, reference
    # The reference's own CRC, byte by byte, takes most of the time; that it is right is tested elsewhere.
    crc32c = kernels.active().crc32c
    reference.crc32c = lambda data, crc=0: crc32c(bytes(data), crc)
    mutator = MUTATORS.get(target)

    def custom_mutator(data: bytes, max_size: int, seed: int) -> bytes:
        assert mutator is not None
        # A size out of a damaged file may be anything; libFuzzer allocates what it is told.
        return mutator(data, lambda part, size: atheris.Mutate(part, max(len(part), min(size, max_size))), max_size, random.Random(seed))[:max_size]

    atheris.Setup([target, *arguments], TARGETS[target], **({"custom_mutator": custom_mutator} if mutator else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == "seeds":
        write_seeds(Path(sys.argv[2]))
    elif sys.argv[1] == "keep":
        keep_corpus(ROOT / "build" / "fuzz" / "corpus", ROOT / "tests" / "fuzz_corpus")
    else:
        run(sys.argv[2], sys.argv[3:])
