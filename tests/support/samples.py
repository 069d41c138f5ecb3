# SPDX-License-Identifier: Apache-2.0
"""Source files for tests: small ones that hold what real files hold, written by hand where the official writer would not."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import quantised

from weightpack.format.layouts import layout_of

RNG_SEED = 20261123


def rng() -> np.random.Generator:
    return np.random.default_rng(RNG_SEED)


def bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 bits (to nearest, ties to even)."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def safetensors_file(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata=None, *, order=None, indent=None, pad=b"", hole=0, trailer=b"") -> bytes:
    """Build a file: tensors' bytes in dict order, entries in `order`; `pad` behind the header, `hole` bytes between tensors, `trailer` at the end."""
    entries, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content + b"\xa5" * hole
    if hole:
        data = data[:-hole]
    root = {name: entries[name] for name in (order or entries)}
    if metadata is not None:
        root = {**root, "__metadata__": metadata}
    header = json.dumps(root, indent=indent, ensure_ascii=False).encode() + pad
    return struct.pack("<Q", len(header)) + header + data + trailer


def rows(dtype: str, n_rows: int, n_columns: int) -> bytes:
    """Return a matrix whose rows have one of four scales: floats with random signs and mantissas."""
    layout, generator = layout_of(dtype), rng()
    (bits,), mantissa = layout.plane_bits, layout.mantissa_bits
    scale = generator.integers(0, 4, (n_rows, 1))
    exponent = np.clip(generator.standard_normal((n_rows, n_columns)) + (1 << bits - 1) - 2 * scale, 0, (1 << bits) - 1).astype(np.uint32)
    low, sign = generator.integers(0, 1 << mantissa, exponent.shape, np.uint32), generator.integers(0, 2, exponent.shape, np.uint32)
    words = exponent << mantissa | low | sign << mantissa + bits
    return words.astype(f"<u{layout.elem_bytes}").tobytes()


def gguf_file(tensors: dict[str, tuple[int, tuple[int, ...], bytes]], alignment: int = 32) -> bytes:
    """Build a GGUF file, version 3: name -> (type, dimensions, innermost first, bytes); and some values of every kind."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    values = [
        text("general.alignment") + struct.pack("<II", 4, alignment), text("general.name") + struct.pack("<I", 8) + text("a name"),
        text("tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("bc") + text(""), text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
        text("yes") + struct.pack("<IB", 7, 1), text("big") + struct.pack("<Iq", 11, -5), text("nested") + struct.pack("<IIQIQ2B", 9, 9, 1, 0, 2, 1, 2),
    ]  # fmt: skip
    infos, data = b"", b""
    for name, (kind, dims, content) in tensors.items():
        infos += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += content.ljust(-(-len(content) // alignment) * alignment, b"\0")
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values) + infos
    return head.ljust(-(-len(head) // alignment) * alignment, b"\0") + data


def torch_file(storages: dict[str, tuple[str, bytes]]) -> bytes:
    """Build a checkpoint as `torch.save` does: key -> (name of the storage's class, bytes); the first of a class is pushed, the others come from the memo."""
    memo: dict[str, int] = {}

    def remembered(opcode: bytes, value: str) -> bytes:
        if value in memo:
            return b"h" + bytes([memo[value]])
        memo[value] = len(memo)
        body = value.replace(" ", "\n").encode() + b"\n" if opcode == b"c" else struct.pack("<I", len(value)) + value.encode()
        return opcode + body + b"q" + bytes([memo[value]])

    pickle = b"\x80\x02]"
    for key, (storage, content) in storages.items():
        pickle += b"(" + remembered(b"X", "storage") + remembered(b"c", f"torch {storage}") + remembered(b"X", key) + remembered(b"X", "cpu")
        pickle += b"J" + struct.pack("<i", len(content)) + b"tQa"
    members = {"archive/data.pkl": pickle + b".", "archive/byteorder": b"little"}
    members |= {f"archive/data/{key}": content for key, (_, content) in storages.items()} | {"archive/version": b"3\n"}
    return zip_file(members)


def zip_file(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Build a zip file, with times that do not change."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return room.getvalue()


def npy_file(array: np.ndarray) -> bytes:
    room = io.BytesIO()
    np.lib.format.write_array(room, array, version=(1, 0))
    return room.getvalue()


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Build a protobuf message of integers and of bytes."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    parts = []
    for number, value in fields:
        parts.append(varint(number << 3) + varint(value) if isinstance(value, int) else varint(number << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


def onnx_file(tensors: dict[str, tuple[int, tuple[int, ...], bytes]], constant: bytes) -> bytes:
    """Build an ONNX model: initialisers as name -> (type, shape, raw data), and a constant of floats in the branch of an If."""
    initialisers = [(5, message(*((1, size) for size in shape), (2, kind), (8, name.encode()), (9, raw))) for name, (kind, shape, raw) in tensors.items()]
    value = message((1, len(constant) // 4), (2, 1), (4, constant), (8, b"constant"))
    branch = message((1, message((2, b"y"), (4, b"Constant"), (5, message((1, b"value"), (5, value), (20, 4))))), (2, b"then"))
    node = message((1, b"x"), (4, b"If"), (5, message((1, b"then_branch"), (6, branch), (20, 5))))
    return message((1, 9), (2, b"samples"), (7, message((1, node), (2, b"main"), *initialisers)), (8, message((1, b""), (2, 17))))


def other_files() -> dict[str, bytes]:
    """Return files of other kinds than safetensors, by what they are."""
    generator = rng()
    f32, bf16_, f16 = weights(3000, "F32"), weights(2000, "BF16"), weights(1500, "F16")
    blocks = {"Q8_0": (8, 34), "Q4_0": (2, 18), "MXFP4": (39, 17)}
    gguf = {"out.weight": (0, (60, 50), f32), "half": (1, (1500,), f16), "brain": (30, (2000,), bf16_), "ids": (26, (4,), bytes(range(16)))}
    gguf |= {name: (kind, (320, 5), generator.integers(90, 160, 50 * size).astype(np.uint8).tobytes()) for name, (kind, size) in blocks.items()}
    arrays = {"f32.npy": np.frombuffer(f32, "<f4").reshape(60, 50), "big.npy": np.arange(90, dtype=">f4")}
    arrays["fortran.npy"] = np.asfortranarray(np.arange(600, dtype="<i8").reshape(20, 30))
    torch = {"0": ("FloatStorage", f32), "1": ("BFloat16Storage", bf16_), "2": ("FloatStorage", f32), "3": ("StrangeStorage", f16)}
    torch["4"] = "LongStorage", bytes(800)
    blocks_of_int8 = np.rint(generator.standard_normal(1200) * 20).astype(np.int8).tobytes()
    return {
        "gguf": gguf_file(gguf), "gguf-unknown-type": gguf_file({"a": (0, (3000,), f32), "b": (9, (64,), f16), "c": (31, (4,), bytes(70000))}, 64),
        "torch": torch_file(torch), "npy": npy_file(arrays["f32.npy"]), "npz": zip_file({name: npy_file(array) for name, array in arrays.items()}),
        "npz-deflated": zip_file({name: npy_file(array) for name, array in arrays.items()}, zipfile.ZIP_DEFLATED),
        "zip": zip_file({"a.txt": b"text " * 900, "b": f32}),
        "onnx": onnx_file({"w": (1, (60, 50), f32), "q": (3, (40, 30), blocks_of_int8), "same": (10, (1500,), f16), "small": (7, (2,), bytes(16))}, f32[:4000]),
        "bytes-with-floats": b"a header of text" * 5000 + b"x" + f32 * 14 + bf16_ * 20 + f16 * 30 + bytes(90_000), "text": b"a line of text\n" * 700,
        "one-byte": b"x", "empty": b"",
    }  # fmt: skip


def weights(n: int, dtype: str, scale: float = 0.04) -> bytes:
    """Bytes of n Gaussian weights."""
    values = (rng().standard_normal(n) * scale).astype("<f4")
    if dtype == "BF16":
        return bf16(values).tobytes()
    if dtype in ("F8_E4M3", "F8_E5M2"):
        import torch

        target = torch.float8_e4m3fn if dtype == "F8_E4M3" else torch.float8_e5m2
        return torch.from_numpy(values * 10).to(target).view(torch.uint8).numpy().tobytes()
    numpy_dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]
    return values.astype(numpy_dtype).tobytes()


def bf16_file(*, seed: int, name: str, n: int = 100_000) -> bytes:
    """Return a file with one bf16 tensor of n elements, rows of 100."""
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32) * np.float32(0.04)
    n = n // 100 * 100
    return safetensors_file({name: ("BF16", (n // 100, 100), bf16(values[:n]).tobytes())})


def special_floats() -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """NaN payloads, both zeros, subnormals, infinities, in every float dtype."""
    words = {
        "F32": np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x00400000] * 40, "<u4"),
        "BF16": np.array([0x7FC1, 0xFFFF, 0x7F81, 0x8000, 0, 1, 0x807F, 0x7F80, 0xFF80, 0x0040] * 40, "<u2"),
        "F16": np.array([0x7E01, 0xFFFF, 0x7C01, 0x8000, 0, 1, 0x83FF, 0x7C00, 0xFC00, 0x0200] * 40, "<u2"),
        "F64": np.array([0x7FF8000000000001, 0xFFF0000000000001, 1 << 63, 0, 1, 0x800FFFFFFFFFFFFF, 0x7FF0000000000000] * 40, "<u8"),
        "F8_E4M3": np.arange(256, dtype=np.uint8),
        "F8_E5M2": np.arange(256, dtype=np.uint8),
    }
    return {f"special.{dtype}": (dtype, (array.size,), array.tobytes()) for dtype, array in words.items()}


def mixed_file() -> bytes:
    """One file with most of what can happen: each dtype, shapes, structure, ties, names."""
    r = rng()
    f32 = np.frombuffer(weights(40_000, "F32"), "<f4").copy().reshape(100, 400)
    f32[10:20] = f32[10:20].astype("<f2")  # rows of fp16 values
    upcast = (bf16(np.frombuffer(weights(5000, "F32"), "<f4")).astype("<u4") << 16).tobytes()
    trailing = (np.frombuffer(weights(5000, "F32"), "<u4") & np.uint32(0xFFFFFF80)).tobytes()
    tied = weights(3000, "BF16")
    tensors = {
        "embed": ("F32", (100, 400), f32.tobytes()),
        "upcast": ("F32", (5000,), upcast),
        "trailing": ("F32", (5000,), trailing),
        "zéro.名前": ("F32", (64, 64), bytes(64 * 64 * 4)),
        "ones": ("BF16", (700,), np.full(700, 0x3F80, "<u2").tobytes()),
        "tied.a": ("BF16", (30, 100), tied),
        "tied.b": ("BF16", (100, 30), tied),
        "half": ("F16", (33, 77), weights(33 * 77, "F16")),
        "double": ("F64", (1001,), weights(1001, "F64")),
        "e4m3": ("F8_E4M3", (4001,), weights(4001, "F8_E4M3")),
        "e5m2": ("F8_E5M2", (4001,), weights(4001, "F8_E5M2")),
        "int8": ("I8", (100, 99), np.clip(np.round(r.standard_normal(9900) * 20), -127, 127).astype(np.int8).tobytes()),
        "uint8": ("U8", (5000,), r.integers(0, 256, 5000, np.uint8).tobytes()),
        "position_ids": ("I64", (1, 512), np.arange(512, dtype="<i8").tobytes()),
        "int32": ("I32", (300,), r.integers(-1000, 1000, 300).astype("<i4").tobytes()),
        "int16": ("I16", (300,), r.integers(-100, 100, 300).astype("<i2").tobytes()),
        "bool": ("BOOL", (999,), r.integers(0, 2, 999, np.uint8).tobytes()),
        "scale": ("F8_E8M0", (500,), r.integers(118, 126, 500, np.uint8).tobytes()),
        "fp4": ("F4", (64, 32), r.integers(0, 256, 1024, np.uint8).tobytes()),
        "complex": ("C64", (100, 3), weights(600, "F32")),
        "scalar": ("F32", (), np.float32(0.5).tobytes()),
        "empty": ("BF16", (0, 7), b""),
        **special_floats(),
    }
    return safetensors_file(tensors, {"format": "pt", "z": "ü", "a": "1"})


def tiny_tensors(n: int = 1000) -> bytes:
    """A file of many small tensors, as converters from ONNX write them: 4 kB each."""
    data = weights(1024 * n, "F32")
    return safetensors_file({f"layer.{i}.weight": ("F32", (32, 32), data[4096 * i : 4096 * (i + 1)]) for i in range(n)}, {"format": "pt"})


def foreign_files() -> dict[str, bytes]:
    """Valid or tolerated files that the official writer would not write."""
    a, b = ("BF16", (600,), weights(600, "BF16")), ("F32", (500,), weights(500, "F32"))
    return {
        "header order": safetensors_file({"b": b, "a": a}, {"x": "1", "format": "pt"}, order=["a", "b"]),
        "indented header": safetensors_file({"a": a, "b": b}, indent=2),
        "padded header": safetensors_file({"a": a}, pad=b" " * 37),
        "unaligned header": safetensors_file({"a": a}, pad=b" " * 3),
        "no metadata": safetensors_file({"a": a}),
        "empty metadata": safetensors_file({"a": a}, {}),
        "no tensors": safetensors_file({}, {"format": "pt"}),
        "empty header": struct.pack("<Q", 2) + b"{}",
        "hole": safetensors_file({"a": a, "b": b}, hole=13),
        "trailer": safetensors_file({"a": a}, trailer=b"\0" * 999),
        "only empty tensors": safetensors_file({"a": ("F32", (0,), b""), "b": ("F32", (3, 0), b"")}),
        "scalar only": safetensors_file({"s": ("I64", (), bytes(8))}),
        "newline padding": safetensors_file({"a": a}, pad=b" \n\t\r "),
        "unknown dtypes": safetensors_file(
            {"a": ("F31", (7, 9), weights(900, "BF16")), "b": ("C128", (2,), rng().bytes(50)), "c": ("X", (0,), b""), "d": a, "e": ("X", (), a[2])}
        ),
        "odd names": safetensors_file({"": a, 'a b\n"\\': b, "__metadata": ("U8", (1,), b"x"), "\u00fc\U0001f600": ("U8", (3,), b"abc")}),
    }


# ---- pairs of a file and its base, of integers alone: the same on every machine


def float_words(dtype: str, n: int, seed: int, low_zeros: int = 0) -> np.ndarray:
    """Bits of n floats whose exponents fall off as those of weights do; the lowest bits of the mantissa are zero."""
    layout, generator = layout_of(dtype), np.random.default_rng(seed)
    bits, mantissa = layout.plane_bits[-1], layout.mantissa_bits
    smaller = sum((generator.integers(0, 1 << k + 1, n) == 0).astype(np.int64) for k in range(4))
    exponents = np.maximum((1 << bits - 1) - 5 - smaller, 0)
    words = exponents << mantissa | generator.integers(0, 1 << mantissa, n) | generator.integers(0, 2, n) << bits + mantissa
    return (words >> low_zeros << low_zeros).astype(f"<u{layout.elem_bytes}")


def stepped(words: np.ndarray, dtype: str, seed: int, low_zeros: int = 0) -> np.ndarray:
    """What training makes of words: an eighth untouched, the rest moved by steps of about one size, so by more units where exponents are small."""
    layout, generator, size = layout_of(dtype), np.random.default_rng(seed), 8 * words.dtype.itemsize
    if layout.raw_bits:
        exponents = (words >> layout.mantissa_bits & (1 << layout.plane_bits[-1]) - 1).astype(np.int64)
        units = np.clip((1 << layout.plane_bits[-1] - 1) - 5 - exponents, 0, 6)
    else:
        units = np.zeros(words.size, np.int64)
    steps = (generator.integers(-2, 3, words.size) << units) + generator.integers(-1, 2, words.size) << low_zeros
    steps[: words.size // 8] = 0
    steps[words.size // 2 : words.size // 2 + 300] *= 16
    return (words.astype(np.int64) + steps & (1 << size) - 1).astype(words.dtype)


def _file_of(tensors: dict[str, tuple[str, tuple[int, ...], np.ndarray]]) -> bytes:
    return safetensors_file({name: (dtype, shape, words.tobytes()) for name, (dtype, shape, words) in tensors.items()}, {"format": "pt"})


def _specials(dtype: str) -> np.ndarray:
    """Floats that change when they are converted: NaN, infinities, zeros, subnormals, ties, what overflows."""
    words = {
        "F32": [0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x00400000, 0x7F7FFFFF, 0x477FF000, 0x477FEFFF,
                0x33000000, 0x33000001, 0x387FE000, 0x3F808000, 0x3F818000, 0x3F801000, 0x3F803000, 0xC7800000, 0x38000FFF],
        "BF16": [0x7FC1, 0xFFFF, 0x7F81, 0x8000, 0, 1, 0x807F, 0x7F80, 0xFF80, 0x0040, 0x7F7F, 0x4780, 0x3300, 0x3380],
        "F16": [0x7E01, 0xFFFF, 0x7C01, 0x8000, 0, 1, 0x83FF, 0x7C00, 0xFC00, 0x0200, 0x7BFF, 0x0400],
    }[dtype]  # fmt: skip
    return np.array(words * 8, f"<u{layout_of(dtype).elem_bytes}")


def _with_specials(dtype: str, n: int, seed: int) -> np.ndarray:
    words = float_words(dtype, n, seed)
    words[200 : 200 + _specials(dtype).size] = _specials(dtype)
    return words


def _converted(words: np.ndarray, dtype: str, to: str) -> np.ndarray:
    from weightpack.reading.convert import convert

    return convert(words.view(np.uint8), dtype, to).view(f"<u{layout_of(to).elem_bytes}")


_TUNED = {"bf16": ("BF16", 8192), "f16": ("F16", 4096), "f32": ("F32", 4096), "e4m3": ("F8_E4M3", 4096), "e5m2": ("F8_E5M2", 4096)}
_WHOLE = {"i8": ("I8", "<u1", 4096, 40), "i16": ("I16", "<u2", 2048, 900), "i32": ("I32", "<u4", 1000, 90_000)}
_CONVERTED = {"a": ("F32", "BF16"), "b": ("F32", "F16"), "c": ("BF16", "F32"), "d": ("F16", "F32"), "e": ("F16", "BF16"), "f": ("BF16", "F16")}


def base_files() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Return name -> a source, and the names of those that are its base; a base stands before what needs it."""
    generator = np.random.default_rng(3)
    base = {name: (dtype, (n,), float_words(dtype, n, i)) for i, (name, (dtype, n)) in enumerate(_TUNED.items())}
    base |= {name: (dtype, (n,), generator.integers(-most, most, n).astype(f"<i{kind[2]}").view(kind)) for name, (dtype, kind, n, most) in _WHOLE.items()}
    tuned = {name: (dtype, shape, stepped(words, dtype, 20 + i)) for i, (name, (dtype, shape, words)) in enumerate(base.items())}
    again = {name: (*tuned[name][:2], stepped(tuned[name][2], name.upper(), 40)) for name in ("bf16", "f16")} | {"f32": tuned["f32"], "i16": tuned["i16"]}
    lead = {"w": ("BF16", (128, 256), float_words("BF16", 1 << 15, 50, 4))}
    some_rows = np.concatenate([lead["w"][2][:16384], stepped(lead["w"][2][16384:], "BF16", 51)])
    vocabulary = float_words("F32", 96 * 64, 60).reshape(96, 64)
    rows = float_words("F32", 5 * 64, 61).reshape(5, 64)
    grown = np.concatenate([stepped(vocabulary[:9].reshape(-1), "F32", 62).reshape(9, 64), vocabulary[9:], rows])
    cut = np.delete(vocabulary, slice(31, 40), axis=0)
    floats = {name: (dtype, (2000,), _with_specials(dtype, 2000, 70 + i)) for i, (name, (dtype, _)) in enumerate(_CONVERTED.items())}
    converted = {
        name: (to, (2000,), stepped(_converted(floats[name][2], dtype, to), to, 80 + i, 13 * (to == "F32")))
        for i, (name, (dtype, to)) in enumerate(_CONVERTED.items())
    }
    decayed = stepped(base["f32"][2], "F32", 63)
    decayed[1000:3400] = base["f32"][2][1000:3400] - np.array([574, 574, 583, 861], "<u4")[np.random.default_rng(64).integers(0, 4, 2400)]
    upcast = float_words("F32", 2048, 90, 16)
    upcast_tuned = stepped(upcast, "F32", 91, 16)
    upcast_tuned[256:384] = upcast[256:384]
    upcast_base = upcast.copy()
    upcast_base[256:384] |= 0x1234  # dropped bits that blocks of rate 0 would keep
    torch = {"0": ("FloatStorage", float_words("F32", 1500, 95).tobytes()), "1": ("BFloat16Storage", float_words("BF16", 2000, 96).tobytes())}
    torch_tuned = {
        "0": ("FloatStorage", stepped(np.frombuffer(torch["0"][1], "<u4"), "F32", 97).tobytes()),
        "1": ("BFloat16Storage", stepped(np.frombuffer(torch["1"][1], "<u2"), "BF16", 98).tobytes()), "2": ("LongStorage", bytes(80)),
    }  # fmt: skip
    matrices = {
        name: (dtype, shape, float_words(dtype, 48 * 64, 110 + i)) for i, (name, dtype, shape) in enumerate((("a", "F32", (48, 64)), ("b", "BF16", (64, 48))))
    }
    turned = {
        name: (dtype, shape[::-1], stepped(np.ascontiguousarray(words.reshape(shape).T).reshape(-1), dtype, 120))
        for name, (dtype, shape, words) in matrices.items()
    }
    return {
        "base-matrices": (_file_of(matrices), ()), "tuned-turned": (_file_of(turned), ("base-matrices",)), "same": (_file_of(matrices), ("base-matrices",)),
        "base-dtypes": (_file_of(base), ()), "tuned-dtypes": (_file_of(tuned), ("base-dtypes",)), "tuned-again": (_file_of(again), ("tuned-dtypes",)),
        "tuned-rans": (_file_of({k: tuned[k] for k in ("f32", "f16", "e4m3", "i8")}), ("base-dtypes",)),
        "tuned-decay": (_file_of({"f32": ("F32", (4096,), decayed)}), ("base-dtypes",)),
        "tuned-identical": (_file_of(base), ("base-dtypes",)), "tuned-small-chunks": (_file_of({k: tuned[k] for k in ("bf16", "i16")}), ("base-dtypes",)),
        "base-lead": (_file_of(lead), ()), "tuned-lead": (_file_of({"w": (*lead["w"][:2], some_rows)}), ("base-lead",)),
        "base-vocabulary": (_file_of({"embed": ("F32", (96, 64), vocabulary)}), ()),
        "tuned-vocabulary-grown": (_file_of({"embed": ("F32", (101, 64), grown)}), ("base-vocabulary",)),
        "tuned-vocabulary-cut": (_file_of({"embed": ("F32", (87, 64), cut)}), ("base-vocabulary",)),
        "base-floats": (_file_of(floats), ()), "tuned-floats": (_file_of(converted), ("base-floats",)),
        "base-upcast": (_file_of({"up": ("F32", (2048,), upcast_base)}), ()),
        "tuned-upcast": (_file_of({"up": ("F32", (2048,), upcast_tuned)}), ("base-upcast",)),
        "tuned-several-bases": (_file_of({"c": converted["c"], "embed": ("F32", (87, 64), cut), "up": ("F32", (2048,), upcast_tuned)}),
                                ("base-floats", "base-upcast", "base-vocabulary")),
        "base-torch": (torch_file(torch), ()), "tuned-torch": (torch_file(torch_tuned), ("base-torch",)),
    }  # fmt: skip


def base_path(paths: list[Path], folder: Path) -> Path | None:
    """Return what to name as the base: none, the one file, whose own bases are beside it, or a folder that holds copies of these and nothing else."""
    if len(paths) < 2:
        return paths[0] if paths else None
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder)
    return folder


def moments_file(n_rows: int = 40, n_columns: int = 72) -> bytes:
    """State of an optimizer: each row and each column has its scale; zero rows and columns; second moments, and first ones, which have signs."""

    def grid(dtype: str, seed: int, signed: bool) -> np.ndarray:
        generator, mantissa = np.random.default_rng(seed), layout_of(dtype).mantissa_bits
        exponent = generator.integers(60, 110, (n_rows, 1)) - generator.integers(0, 12, (1, n_columns))
        words = exponent << mantissa | generator.integers(0, 1 << mantissa, exponent.shape)
        words[[3, n_rows - 1]], words[:, [0, 17]] = 0, 0
        words[5, 40:44] = 0, 1, 5 << mantissa - 4, 0xFE << mantissa
        words |= generator.integers(0, 2, words.shape) << 8 * layout_of(dtype).elem_bytes - 1 if signed else 0
        return words.astype(f"<u{layout_of(dtype).elem_bytes}")

    shape = n_rows, n_columns
    return _file_of({
        "exp_avg": ("BF16", shape, grid("BF16", 1, True)), "exp_avg.f32": ("F32", shape, grid("F32", 2, True)),
        "exp_avg_sq": ("F32", shape, grid("F32", 3, False)), "exp_avg_sq.bf16": ("BF16", shape, grid("BF16", 4, False)),
    })  # fmt: skip


def specimen_file() -> bytes:
    """The file that docs/FORMAT.md dumps when packed: small, a tensor of each kind of storage, planes of each codec but zstd (which its gap has)."""
    r = np.random.default_rng(7)
    mask = np.zeros(2560, np.uint8)
    mask[r.choice(2560, 30, replace=False)] = 1
    mask[[900, 2000]] = 7, 9
    w = bf16(r.standard_normal(132).astype("<f4") * np.float32(0.04)) & 0xFFE0  # two bits of mantissa
    w[128:] &= 0x7F80  # neither sign nor mantissa
    return safetensors_file(
        {
            "bias": ("F32", (2,), np.array([0.5, -2], "<f4").tobytes()), "mask": ("U8", (2560,), mask.tobytes()), "w": ("BF16", (33, 4), w.tobytes()),
            "w.tied": ("BF16", (4, 33), w.tobytes()), "zeros": ("F16", (64,), bytes(128)),
        },
        {"format": "pt"},
    )  # fmt: skip


def encode_one(data, layout, options, number=0):
    """Return one chunk that holds all of `data`."""
    from weightpack.format.record import chunk_bound
    from weightpack.writing.plain import encode_chunks

    n_elems = data.size // layout.elem_bytes
    out = np.empty(chunk_bound(layout, n_elems), np.uint8)
    (chunk,) = encode_chunks(data, layout, n_elems, number, options, out)
    return out[: chunk.n_bytes].tobytes()


def decode_one(backend, layout, chunk, n_elems, number, crc, out):
    """Decode one chunk with a backend; False, and nothing done, if it has zstd streams."""
    offsets, crcs = np.array([0, len(chunk)], np.int64), np.array([crc], np.uint32)
    return backend.decode_chunks(layout, chunk, offsets, crcs, 0, n_elems, n_elems, number, out) == 1


def repeated_file() -> bytes:
    """Copies inside tensors: a table tiled for a batch, and two experts of four that are the same."""
    table = np.frombuffer(weights(64 * 128, "F32"), "<u4").reshape(1, 64, 128)
    experts = np.frombuffer(weights(128 * 256, "BF16"), "<u2").reshape(128, 256)
    tables, fused = np.concatenate([table] * 8), np.stack([experts, experts + np.uint16(1), experts, experts + np.uint16(2)])
    return safetensors_file({"table": ("F32", tables.shape, tables.tobytes()), "experts": ("BF16", fused.shape, fused.tobytes())})


def quantised_file() -> bytes:
    """Weights that were quantised and written out again, of several kinds and dtypes, and one that was not."""
    kinds = quantised.kinds(128, 128)
    names = ("fp8 blocks, bf16", "fp8 blocks, fp32", "int4 groups, fp16", "int8 rows, fp32", "int8 columns, fp16", "MXFP4, bf16", "NF4, fp16", "palette, fp16")
    tensors = {name: (kinds[name][0], kinds[name][1].shape, kinds[name][1].tobytes()) for name in names}
    spoilt = kinds["int4 groups, fp16"][1].copy()
    spoilt[::8, 5] ^= 0x155
    tensors["spoilt"] = "F16", spoilt.shape, spoilt.tobytes()
    tensors["ordinary"] = "BF16", (64, 256), weights(64 * 256, "BF16")
    return safetensors_file(tensors)


def tiny_file() -> bytes:
    """Tiny neighbours: two groups of one dtype each, one of several, and tensors that are in none: too large, empty, alone, or the same as another."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for i in range(70):
        tensors[f"scale.{69 - i}"] = "F32", (3,), weights(3, "F32", 0.01 * (i + 1))
    tensors["large"] = "BF16", (700,), weights(700, "BF16")
    tensors["empty"] = "BF16", (0,), b""
    for i in range(64):
        tensors[f"b.{i}"] = "BF16", (1, 1 + i % 3), weights(1 + i % 3, "BF16", 0.01 * (i + 1))
    tensors["large too"] = "BF16", (700,), weights(700, "BF16")
    for i in range(40):
        tensors[f"mixed.{i}"] = "U8", (5,), bytes((i, 1, 2, 3, 4))
        tensors[f"mixed.{i}.zero"] = "I32", (), i.to_bytes(4, "little")
    tensors["z"] = "F64", (400,), weights(400, "F64")
    tensors["z.alone"] = "F32", (2,), weights(2, "F32")
    return safetensors_file(tensors)
