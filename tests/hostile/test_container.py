# SPDX-License-Identifier: Apache-2.0
"""Bad and hostile files: our own error that says where and why, never wrong bytes, nothing written."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc

import pytest
import samples
from packed_parts import restore, rewrite_index

import weightpack
from weightpack import reference
from weightpack.errors import (
    ChecksumError,
    CorruptionError,
    FormatError,
    LimitError,
    LosslessError,
    NotPackedError,
    OptionError,
    TensorNotFoundError,
    TruncatedError,
    UnsupportedError,
)  # fmt: skip
from weightpack.io.files import MemoryFile
from weightpack.reading.packed_file import PackedFile


def pack_bytes(tmp_path, data, **kwargs):
    source = tmp_path / "source.safetensors"
    source.write_bytes(data)
    weightpack.pack(source, tmp_path / "packed.safetensors", overwrite=True, **kwargs)
    return (tmp_path / "packed.safetensors").read_bytes()


def small_file():
    """Under 4 kB packed, with every kind of storage and several codecs."""
    tied = samples.weights(150, "F32")
    return samples.safetensors_file(
        {
            "a": ("F32", (150,), tied), "b": ("F32", (150,), tied), "noise": ("U8", (40,), samples.rng().bytes(40)), "zeros": ("F16", (99,), bytes(198)),
            "ids": ("I64", (64,), b"".join(i.to_bytes(8, "little") for i in range(64))),
        },
        {"format": "pt"},
    )  # fmt: skip


def test_every_prefix_is_refused(tmp_path):
    packed = pack_bytes(tmp_path, small_file())
    assert len(packed) < 5000
    for n in range(len(packed)):
        with pytest.raises(FormatError):
            restore(packed[:n])


def test_every_flipped_bit_gives_the_same_bytes_or_our_error(tmp_path):
    source = small_file()
    packed = bytearray(pack_bytes(tmp_path, source))
    refused = 0
    for i in range(len(packed)):
        for bit in range(8):
            packed[i] ^= 1 << bit
            try:
                assert restore(bytes(packed)) == source
            except FormatError:
                refused += 1
            packed[i] ^= 1 << bit
    assert refused > 0.9 * 8 * len(packed) - 8 * 200  # the copied metadata and the header's padding may change unnoticed


def test_reference_decoder_refuses_what_the_product_refuses(tmp_path):
    source = small_file()
    packed = bytearray(pack_bytes(tmp_path, source))
    for i in range(0, len(packed), 3):
        packed[i] ^= 0x10
        try:
            product = restore(bytes(packed))
        except FormatError:
            product = None
        try:
            oracle = reference.decode_file(bytes(packed))
        except reference.FormatError:
            oracle = None
        assert product == oracle
        packed[i] ^= 0x10


def test_swapped_chunks_are_refused(tmp_path):
    """Two chunks of equal length and their table entries trade places: their CRCs hold the chunk's number."""
    data = b"\x80\x3f" * (1 << 18) + b"\x00\x40" * (1 << 18)
    packed = bytearray(pack_bytes(tmp_path, samples.safetensors_file({"a": ("BF16", (2 << 18,), data)})))
    file = PackedFile(MemoryFile([bytes(packed)]))
    stored = file.stored("a")
    first = stored.begin + 8
    entries = packed[first : first + 16]
    offsets, crcs = (entries[:4], entries[8:12]), (entries[4:8], entries[12:])
    begin = [stored.begin + 16 * int.from_bytes(offset, "little") for offset in offsets]
    length = begin[1] - begin[0]
    packed[first + 4 : first + 8], packed[first + 12 : first + 16] = crcs[1], crcs[0]
    packed[begin[0] : begin[1]], packed[begin[1] : begin[1] + length] = packed[begin[1] : begin[1] + length], packed[begin[0] : begin[1]]
    with pytest.raises(ChecksumError) as error:
        restore(bytes(packed))
    assert (error.value.tensor, error.value.chunk) == ("a", 0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x.update(version=[2, 0]), UnsupportedError),
        (lambda x: x.update(version=[1, 7], novelty=1), None),
        (lambda x: x.update(version="1"), CorruptionError),
        (lambda x: x["source"].update(format="gguf"), UnsupportedError),
        (lambda x: x["source"].update(bytes=1 << 60), LimitError),
        (lambda x: x["source"].update(bytes=x["source"]["bytes"] + 1), CorruptionError),
        (lambda x: x["source"].update(sha256="0" * 63), CorruptionError),
        (lambda x: x.update(storage=x["storage"][:-1]), CorruptionError),
        (lambda x: x.update(storage="z" * len(x["storage"])), UnsupportedError),
        (lambda x: x.update(storage=x["storage"].replace("p", "k")), CorruptionError),
        (lambda x: x.update(tied=[0, 0]), CorruptionError),
        (lambda x: x.update(tied=[1]), CorruptionError),
        (lambda x: x.update(tied=[2]), CorruptionError),
        (lambda x: x.update(tied=[99]), CorruptionError),
        (lambda x: x.update(tied=[-1]), CorruptionError),
        (lambda x: x.update(kept_crc32c=""), CorruptionError),
        (lambda x: x.update(kept_crc32c="!!!!"), CorruptionError),
        (lambda x: x.update(gaps=[]), CorruptionError),
        (lambda x: x["gaps"][0].__setitem__(1, 1 << 60), CorruptionError),
        (lambda x: x["gaps"][0].__setitem__(1, x["gaps"][0][1] - 1), CorruptionError),
        (lambda x: x["gaps"][0].__setitem__(2, "AAAA"), CorruptionError),
        (lambda x: x.pop("gaps"), CorruptionError),
    ],
)  # fmt: skip
def test_hostile_index(tmp_path, change, error):
    source = small_file()
    packed = rewrite_index(pack_bytes(tmp_path, source), change)
    if error is None:
        assert restore(packed) == source
        return
    with pytest.raises(error):
        restore(packed)


def test_claims_of_huge_sizes_allocate_nothing(tmp_path):
    packed = pack_bytes(tmp_path, small_file())
    hostile = [
        rewrite_index(packed, lambda x: x["source"].update(bytes=1 << 43)),
        rewrite_index(packed, lambda x: x["gaps"][0].__setitem__(1, 200 << 20)),
        struct.pack("<Q", 1 << 60) + packed[8:],
    ]
    tracemalloc.start()
    for data in hostile:
        with pytest.raises(FormatError):
            restore(data)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", TruncatedError),
        (b"\0" * 7, TruncatedError),
        (struct.pack("<Q", 100) + b"{}", TruncatedError),
        (struct.pack("<Q", 1 << 62) + b"{}", CorruptionError),
        (struct.pack("<Q", 2) + b"[]", CorruptionError),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", CorruptionError),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, CorruptionError),
        (samples.safetensors_file({"a": ("F32", (2,), b"1234")}), CorruptionError),
        (samples.safetensors_file({"a": ("F32", (1,), b"1234")})[:-1], TruncatedError),
        (struct.pack("<Q", 60) + b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.ljust(60), CorruptionError),
        (struct.pack("<Q", 4) + b'"PK"', CorruptionError),
    ],
)  # fmt: skip
def test_source_that_is_no_safetensors_file(tmp_path, data, error):
    source = tmp_path / "bad.safetensors"
    source.write_bytes(data)
    with pytest.raises(error) as caught:
        weightpack.pack(source)
    assert "bad.safetensors" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.safetensors"]


def test_duplicate_key_is_refused(tmp_path):
    source = tmp_path / "bad.safetensors"
    entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = b"{" + entry + b"," + entry + b"}"
    source.write_bytes(struct.pack("<Q", len(header)) + header + b"x")
    with pytest.raises(CorruptionError, match="twice"):
        weightpack.pack(source)


def test_plain_file_is_not_packed(tmp_path):
    source = tmp_path / "plain.safetensors"
    source.write_bytes(small_file())
    with pytest.raises(NotPackedError):
        weightpack.unpack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packing_twice_is_refused(tmp_path):
    pack_bytes(tmp_path, small_file())
    with pytest.raises(OptionError, match="already"):
        weightpack.pack(tmp_path / "packed.safetensors")


def test_error_names_file_tensor_and_reason(tmp_path):
    packed = bytearray(pack_bytes(tmp_path, small_file()))
    file = PackedFile(MemoryFile([bytes(packed)]))
    packed[file.stored("a").end - 40] ^= 255
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(packed)
    with pytest.raises(CorruptionError) as error:
        weightpack.unpack(path, tmp_path / "out.safetensors")
    assert str(error.value).startswith(f"{path}, tensor 'a', chunk 0: ")
    assert not (tmp_path / "out.safetensors").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_unknown_tensor(tmp_path):
    pack_bytes(tmp_path, small_file())
    with weightpack.safe_open(tmp_path / "packed.safetensors") as opened, pytest.raises(TensorNotFoundError, match="nothere"):
        opened.get_tensor("nothere")


def test_source_that_changes_while_it_is_packed_is_refused(tmp_path, monkeypatch):
    from weightpack.writing import chunks, plain

    source = tmp_path / "source.safetensors"
    source.write_bytes(small_file())
    original = plain.encode_chunks

    def change_meanwhile(*args):
        with source.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\xff")
        return original(*args)

    monkeypatch.setattr(chunks, "encode_chunks", change_meanwhile)
    with pytest.raises(LosslessError):
        weightpack.pack(source, threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["source.safetensors"]


def test_wrong_encoder_is_caught_before_the_target_appears(tmp_path, monkeypatch):
    """The verification is real: break the encoder and no file comes out."""
    from weightpack.writing import chunks, plain

    source = tmp_path / "source.safetensors"
    source.write_bytes(small_file())
    original = plain.encode_chunks
    monkeypatch.setattr(chunks, "encode_chunks", lambda data, *rest: original(data[::-1].copy(), *rest))
    with pytest.raises((LosslessError, FormatError)):
        weightpack.pack(source)
    assert [p.name for p in tmp_path.iterdir()] == ["source.safetensors"]


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer reserves more address space than the test allows")
@pytest.mark.parametrize("filling", [b"[]", b"{}", b'""', b"1"])
def test_json_that_would_fill_the_memory_is_refused_before_it_is_parsed(tmp_path, filling):
    """Up to 40 bytes of Python for each of JSON: 99 MB of it in a child that may have 700 MB."""
    n = 99_000_000 // (len(filling) + 1)
    header = b'{"__metadata__":[' + filling + (b"," + filling) * (n - 1) + b"]}"
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    program = (
        "import resource, sys, weightpack\n"
        "from weightpack.reading.tensors import safe_open\n"
        "from weightpack.errors import LimitError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))\n"
        "try:\n    safe_open(sys.argv[1])\nexcept LimitError as error:\n    assert 'max_json_memory' in str(error)\nelse:\n    sys.exit('accepted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
