# SPDX-License-Identifier: Apache-2.0
"""Hostile and odd sources: whatever a file says of itself, it is packed and comes back, in bounded memory; only what is named .safetensors may be refused."""

from __future__ import annotations

import io
import pickletools
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import samples

import weightpack
import weightpack.numpy
from weightpack import reference
from weightpack.errors import FormatError, OptionError
from weightpack.format.safetensors import METADATA_KEY
from weightpack.io.files import MemoryFile
from weightpack.sources import segment
from weightpack.sources import zip as zip_file
from weightpack.sources.pickle import storage_kinds

WEIGHTS = samples.weights(30_000, "F32")


def segments(data, name="source"):
    return segment(MemoryFile([data], name))


def round_trip(tmp_path, data, *, verify=True):
    """Pack a file, unchecked at will, and restore it twice: here and by the reference."""
    (tmp_path / "source").write_bytes(data)
    weightpack.pack(tmp_path / "source", tmp_path / "packed", overwrite=True, threads=1, verify=verify)
    weightpack.unpack(tmp_path / "packed", tmp_path / "back", overwrite=True, threads=1)
    assert (tmp_path / "back").read_bytes() == data
    assert reference.decode_file((tmp_path / "packed").read_bytes()) == data
    return weightpack.inspect(tmp_path / "packed")[0]


# ---- zip files


def checkpoint(pickle, compression, storage=WEIGHTS):
    """Build a checkpoint of one storage, 0."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle, compression)
        archive.writestr(zipfile.ZipInfo("archive/data/0"), storage)
    return room.getvalue()


def storage_pickle(key="0", storage="FloatStorage"):
    """Pickle, by hand, the persistent id of a storage."""
    return b"\x80\x02(X\x07\0\0\0storagectorch\n" + storage.encode() + b"\nX" + struct.pack("<I", len(key)) + key.encode() + b"X\x03\0\0\0cpuJ\0\0\1\0tQ."


COMPRESSIONS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


@pytest.mark.parametrize("compression", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_damaged_pickles(tmp_path, compression):
    """Each byte of the compressed pickle and of its header, changed: the storage is there all the same, of the dtype that it looks like."""
    data = checkpoint(storage_pickle() + b"\0" * 50, compression)
    end = data.index(b"archive/data/0")
    round_trip(tmp_path, data)
    for at in range(end):
        for value in (0, 0xFF, data[at] ^ 1):
            damaged = data[:at] + bytes([value]) + data[at + 1 :]
            found = segments(damaged)
            assert sum(tensor.n_bytes for tensor in found.tensors if tensor.dtype == "F32") > 0.9 * len(WEIGHTS)
    round_trip(tmp_path, data[: end - 60] + b"\xff" * 10 + data[end - 50 :])


@pytest.mark.parametrize("compression", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_damage_anywhere_in_a_zip_file(compression):
    data, rng = checkpoint(storage_pickle(), compression, WEIGHTS[:2000]), samples.rng()
    for _ in range(1500):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), int(rng.integers(1, 5))):
            damaged[-int(at) if rng.random() < 0.8 and at < 300 else at] = int(rng.choice([0, 1, 8, 12, 14, 127, 128, 255]))
        segments(bytes(damaged))


LIMITED = """
import os, resource, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import weightpack, weightpack.reading.unpack
from weightpack.sources import segment
from weightpack.io.files import LocalFile
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[2]),) * 2)
with LocalFile(sys.argv[1]) as file:
    found = segment(file)
print(found.source_format, len(found.tensors))
print(weightpack.estimate(sys.argv[1])[0].source_bytes)
weightpack.pack(sys.argv[1], sys.argv[1] + ".packed", threads=1, overwrite=True)
"""


def pack_in(tmp_path, data, more_bytes):
    """Segment, estimate and pack a file in a process that may take so many bytes more; return what it was taken for."""
    (tmp_path / "source.pt").write_bytes(data)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "source.pt"), str(more_bytes)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    weightpack.unpack(tmp_path / "source.pt.packed", tmp_path / "back", overwrite=True)
    assert (tmp_path / "back").read_bytes() == data
    return done.stdout.split()


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory, and what a process has taken, are Linux's")


@linux
def test_joined_names_do_not_double(tmp_path):
    """STACK_GLOBAL joins what is on the stack, which the memo gives again and again: 26 times twice as long."""
    pickle = b"\x80\x04\x8c\x28" + b"x" * 40 + b"\x94" + b"".join(b"h" + bytes([i]) * 1 + b"h" + bytes([i]) + b"\x93\x94" for i in range(26)) + b"."
    data = checkpoint(pickle, zipfile.ZIP_STORED, b"storage!")
    assert len(data) < 500
    assert pack_in(tmp_path, data, 256 << 20)[0] == "torch"


BOMBS = {
    "opcodes": b"\x80\x02" + b"N" * 99_000_000 + b".",
    "memo": b"\x80\x04N" + b"\x94" * 99_000_000 + b".",
    "one_text": b"\x80\x02X" + struct.pack("<I", 99_000_000) + b"x" * 99_000_000 + b".",
    "astral_text": b"\x80\x02X" + struct.pack("<I", 99_000_004) + "😀".encode() + b"x" * 99_000_000 + b".",
    "integer": b"\x80\x02\x8b" + struct.pack("<I", 99_000_000) + b"\x7f" * 99_000_000 + b".",
    "lines": b"\x80\x02" + b"c\n\n" * 33_000_000 + b".",
}


@linux
@pytest.mark.parametrize("bomb", BOMBS)
def test_deflated_pickles_that_expand(tmp_path, bomb):
    """96 kB that become 99 MB: no more of them is read than a pickle of that length has that somebody wrote."""
    data = checkpoint(BOMBS[bomb], zipfile.ZIP_DEFLATED, b"storage!")
    assert len(data) < 400_000
    assert pack_in(tmp_path, data, 512 << 20)[0] == "torch"


@pytest.mark.parametrize("bomb", ["one_text", "astral_text", "integer"])
def test_long_arguments_are_not_copied(bomb):
    tracemalloc.start()
    assert storage_kinds(BOMBS[bomb], 1) == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_end_of_a_long_pickle_is_not_read():
    """Of so many opcodes more than storages can have; the dtypes that it did not come to are then looked for in the bytes."""
    begin, declaration = b"\x80\x02", storage_pickle()[2:]
    assert storage_kinds(begin + b"N" * 500_000 + declaration, 1) == {"0": ("F32", ())}
    assert storage_kinds(begin + b"N" * 600_000 + declaration, 1) == {}
    assert storage_kinds(begin + b"N" * 600_000 + declaration, 1000) == {"0": ("F32", ())}
    found = segments(checkpoint(begin + b"N" * 600_000 + declaration, zipfile.ZIP_STORED))
    assert ("archive/data/0", "F32") in [(tensor.name, tensor.dtype) for tensor in found.tensors]


def test_a_pickle_longer_than_a_directory_may_be(monkeypatch):
    """It is read step by step, as such are that hold arrays of numpy."""
    monkeypatch.setattr(zip_file, "_MOST_DIRECTORY", 1 << 20)
    array = samples.rng().bytes(3 << 20)
    pickle = b"\x80\x02B" + struct.pack("<I", len(array)) + array + storage_pickle(storage="HalfStorage")[2:]
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = checkpoint(pickle, compression)
        assert ("archive/data/0", "F16") in [(tensor.name, tensor.dtype) for tensor in segments(data).tensors]


def test_every_opcode_ends_a_pickle():
    """Whatever stands last, and however little of its argument."""
    for opcode in pickletools.opcodes:
        for rest in (b"", b"\n", b"\n\n", b"\xff", b"\xff" * 8, b"\0" * 9, b"\x01\x02\x03\x04\x05\x06\x07\x08" * 3):
            storage_kinds(b"\x80\x02(X\x07\0\0\0storage" + opcode.code.encode("latin-1") + rest, 1)


def end_of_zip(n_members, directory_bytes, directory_at):
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n_members, n_members, directory_bytes, directory_at, 0)


@linux
def test_a_directory_that_is_longer_than_any(tmp_path):
    """A gigabyte of zeros, on no disk, whose last bytes say that it is all directory."""
    head = checkpoint(storage_pickle(), zipfile.ZIP_STORED, b"storage!")
    path = tmp_path / "source.pt"
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(1 << 30)
        file.seek(0, io.SEEK_END)
        file.write(end_of_zip(65535, (1 << 30) - len(head), len(head)))
    program = LIMITED.partition("print(weightpack.estimate")[0]
    done = subprocess.run([sys.executable, "-c", program, str(path), str(256 << 20)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["bytes"]), done.stderr[-2000:]


def test_members_that_share_bytes(tmp_path):
    """Many names for the same stored bytes, each a file in which much could be looked for."""
    inner = samples.safetensors_file({"w": ("F32", (30_000,), WEIGHTS)})
    data = samples.zip_file({"m.safetensors": inner})
    at = data.index(b"PK\1\2")
    entry, end = data[at:-22], data[-22:]
    shared = data[:at] + entry * 50 + end_of_zip(50, 50 * len(entry), at)
    assert len(end) == 22
    assert segments(shared).source_format == "bytes"
    round_trip(tmp_path, shared)


def test_nested_zips_end(tmp_path):
    data = samples.zip_file({"weights.npy": samples.npy_file(np.frombuffer(WEIGHTS, "<f4"))})
    for _ in range(30):
        data = samples.zip_file({"inner.zip": data})
    round_trip(tmp_path, data)


# ---- names and shapes


def onnx_file(tensors):
    fields = []
    for name, content in tensors:
        fields.append((5, samples.message((1, len(content)), (2, 2), (8, name), (9, content))))
    return samples.message((1, 8), (7, samples.message(*fields)))


def gguf(names, kind=0, dims=(100,), content=WEIGHTS[:400]):
    """Build a GGUF file of tensors of one kind, whose names are bytes."""
    infos = b"".join(
        struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, -(-len(content) // 32) * 32 * i)
        for i, name in enumerate(names)
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, len(names), 0) + infos
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + content.ljust(-(-len(content) // 32) * 32, b"\0") * len(names)


def zip_named(*names):
    room = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(room, "w") as archive:  # of names that are there
        for i, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(name), WEIGHTS[4000 * i : 4000 * i + 4000])
    return room.getvalue()


def npy_header(header):
    text = header.encode("latin-1")
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


ODD = {
    "metadata_gguf": gguf([b"__metadata__", b"w"]),
    "metadata_zip": zip_named("__metadata__", "w"),
    "metadata_onnx": onnx_file([(b"__metadata__", WEIGHTS[:400]), (b"w", WEIGHTS[400:800])]),
    "twice_gguf": gguf([b"w", b"w", b"w#2", b"w"]),
    "twice_zip": zip_named("w", "v", "w"),
    "twice_onnx": onnx_file([(b"w", WEIGHTS[:400]), (b"w", WEIGHTS[400:800]), (b"w#2", WEIGHTS[800:1200])]),
    "no_name_gguf": gguf([b"", b""]),
    "lone_surrogate_gguf": gguf([b"\xed\xa0\x80"]),
    "no_utf8_gguf": gguf([b"\xff\xfe"]),
    "nul_gguf": gguf([b"a\0b", b"a"]),
    "controls_gguf": gguf([bytes(range(1, 32)), '"\\/\u2028\u202e😀'.encode()]),
    "long_gguf": gguf([b"n" * 100_000]),
    "long_zip": zip_named("\x01" * 60_000, "n" * 65_535),
    "nul_zip": zip_named("a\1b").replace(b"a\1b", b"a\0b"),
    "no_utf8_zip": zip_named("nämen").replace("nämen".encode(), b"n\xff\xfemen"),
    "lone_surrogate_zip": zip_named("nämen").replace("nämen".encode(), b"\xed\xa0\x80men"),
    "long_onnx": onnx_file([(b"n" * 100_000, WEIGHTS[:400])]),
    "lone_surrogate_onnx": onnx_file([(b"\xed\xa0\x80", WEIGHTS[:400])]),
    "zero_by_2_63_gguf": gguf([b"w"], dims=(1 << 63, 0), content=b""),
    "zero_by_2_64_gguf": gguf([b"w"], dims=((1 << 64) - 1, 0, (1 << 64) - 1), content=b""),
    "zero_gguf": gguf([b"w"], dims=(0, 5), content=b""),
    "overflow_gguf": gguf([b"w"], dims=(1 << 32, 1 << 32, 1 << 32)),
    "blocks_overflow_gguf": gguf([b"w"], kind=8, dims=(1 << 63, 32)),
    "no_blocks_gguf": gguf([b"w"], kind=8, dims=(0, 1 << 63), content=b""),
    "no_dims_gguf": gguf([b"w"], dims=(), content=WEIGHTS[:4]),
    "zero_by_2_70_npy": npy_header(f"{{'descr':'<f4','fortran_order':False,'shape':(0,{1 << 70})}}"),
    "zero_by_2_62_npy": npy_header(f"{{'descr':'<f4','fortran_order':False,'shape':(0,{1 << 62})}}"),
    "overflow_npy": npy_header(f"{{'descr':'<f4','fortran_order':True,'shape':({1 << 62},{1 << 62})}}") + WEIGHTS[:400],
    "negative_npy": npy_header("{'descr':'<f4','fortran_order':True,'shape':(-10,-10)}") + WEIGHTS[:400],
    "true_npy": npy_header("{'descr':'<f4','fortran_order':False,'shape':(True,100)}") + WEIGHTS[:400],
    "65_dims_npy": npy_header("{'descr':'<f4','fortran_order':False,'shape':(%s100)}" % ("1," * 64)) + WEIGHTS[:400],
    "64_dims_npy": npy_header("{'descr':'<f4','fortran_order':True,'shape':(%s100)}" % ("1," * 63)) + WEIGHTS[:400],
    "deep_npy": npy_header("(" * 60_000),
    "two_npy": samples.npy_file(np.frombuffer(WEIGHTS, "<f4")) + samples.npy_file(np.arange(9)),
    "cut_npy": samples.npy_file(np.frombuffer(WEIGHTS, "<f4"))[:-1],
    "zero_by_2_63_onnx": samples.message((1, 8), (7, samples.message((5, samples.message((1, 1 << 63), (1, 0), (2, 1), (9, WEIGHTS[:400])))))),
    "overflow_onnx": samples.message((1, 8), (7, samples.message((5, samples.message(*[(1, 1 << 63)] * 64, (2, 1), (9, WEIGHTS[:400])))))),
}  # fmt: skip


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("name", ODD)
def test_odd_names_and_shapes(tmp_path, name, verify):
    report = round_trip(tmp_path, ODD[name], verify=verify)
    assert METADATA_KEY not in {tensor.name for tensor in report.tensors}


def test_names_that_are_taken_get_a_number(tmp_path):
    def names(data):
        return sorted(tensor.name for tensor in segments(data).tensors)

    assert names(ODD["metadata_gguf"]) == ["__metadata__#2", "w"]
    assert names(ODD["twice_gguf"]) == ["w", "w#2", "w#3", "w#4"]
    assert names(ODD["twice_zip"]) == ["v", "w", "w#2"]
    assert names(ODD["twice_onnx"]) == ["w", "w#2", "w#3"]
    round_trip(tmp_path, ODD["twice_gguf"])
    with weightpack.safe_open(tmp_path / "packed") as opened:
        assert opened.get_tensor("w#3").tobytes() == opened.get_tensor("w").tobytes() == WEIGHTS[:400]


def test_no_tensor_is_saved_by_the_name_of_the_metadata(tmp_path):
    with pytest.raises(OptionError, match="name of the metadata") as caught:
        weightpack.numpy.save_file({"__metadata__": np.zeros(3), "w": np.zeros(3)}, tmp_path / "a.safetensors")
    assert caught.value.tensor == "__metadata__"
    assert not list(tmp_path.iterdir())


ODD_SAFETENSORS = {
    "lone_surrogate": (b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "refused"),
    "bytes_of_a_surrogate": (b'{"\xed\xa0\x80":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "refused"),
    "name_twice": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "refused"),
    "metadata_is_a_tensor": (b'{"__metadata__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "refused"),
    "zero_by_2_63": (b'{"a":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', "refused"),
    "zero_by_2_62": (b'{"a":{"dtype":"U8","shape":[0,4611686018427387904],"data_offsets":[0,0]}}', "same"),
    "overflow": (b'{"a":{"dtype":"U8","shape":[4294967296,4294967296,1],"data_offsets":[0,1]}}', "refused"),
    "nul": (b'{"a\\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "same"),
    "no_name": (b'{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "same"),
    "long_name": (b'{"' + b"n" * 100_000 + b'":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "same"),
    "astral_name": ('{"😀":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.encode(), "same"),
}


@pytest.mark.parametrize(("header", "outcome"), ODD_SAFETENSORS.values(), ids=ODD_SAFETENSORS)
def test_odd_safetensors_files(tmp_path, header, outcome):
    """By another name they are bytes at worst."""
    data = len(header).to_bytes(8, "little") + header + b"\x07"
    round_trip(tmp_path, data, verify=False)
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    if outcome == "same":
        weightpack.pack(path)
        weightpack.unpack(tmp_path / "a.wp.safetensors", tmp_path / "back", overwrite=True)
        assert (tmp_path / "back").read_bytes() == data
    else:
        with pytest.raises(FormatError) as caught:
            weightpack.pack(path)
        assert caught.value.path == str(path)
