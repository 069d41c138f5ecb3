# SPDX-License-Identifier: Apache-2.0
"""Each field of a packed file, made bad: product and reference decoder refuse it as docs/FORMAT.md says, and both for the same kind of reason.

Fields are found by what the dump in FORMAT section 13 calls them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import packed_parts
import pytest
import samples
import zstandard
from packed_parts import claimed, gap, restore, rewrite_header, rewrite_index, wide_window, with_index
from specimen import SOURCE, SPECIMEN, offset_of, sections

import weightpack
from weightpack import reference
from weightpack.errors import (
    BaseNotFoundError,
    ChecksumError,
    CorruptionError,
    FormatError,
    LimitError,
    NotPackedError,
    TruncatedError,
    UnsupportedError,
    WrongBaseError,
)
from weightpack.io.files import MemoryFile
from weightpack.kernels import active
from weightpack.reading.frame import decode_bytes
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.pieces import restored_pieces
from weightpack.writing.frame import encode_bytes

KINDS = {"corrupt": (CorruptionError, TruncatedError), "unsupported": UnsupportedError, "limit": LimitError, "not packed": NotPackedError}
REFERENCE_KINDS = {
    "corrupt": reference.CorruptError, "unsupported": reference.UnsupportedError, "limit": reference.UnsupportedError, "not packed": reference.NotPackedError,
}  # fmt: skip


def check(data, kind, decode=restore, oracle=reference.decode_file, right=SOURCE):
    """Both decoders refuse `data` as `kind`, or both give `right` if that is "same"."""
    if kind == "same":
        assert decode(data) == right == oracle(data)
        return
    with pytest.raises((FormatError, LimitError)) as error:
        decode(data)
    assert isinstance(error.value, KINDS[kind]), repr(error.value)
    with pytest.raises(reference.FormatError) as error:
        oracle(data)
    assert isinstance(error.value, REFERENCE_KINDS[kind]), repr(error.value)


BINARY = [  # section, tensor, field, bytes from its begin, new bytes, kind
    ("4.1", "", "Header_Bytes", 0, (100_000_001).to_bytes(8, "little"), "corrupt"),
    ("4.1", "", "Header_Bytes", 0, (1 << 60).to_bytes(8, "little"), "corrupt"),
    ("1.6", "", "Header_Bytes", 0, (9999).to_bytes(8, "little"), "corrupt"),
    ("6", "mask", "Layout", 0, b"\0", "unsupported"),
    ("6", "mask", "Layout", 0, b"\xc8", "unsupported"),
    ("6.3", "mask", "Layout", 0, b"\x03", "corrupt"),
    ("6", "mask", "Reserved", 0, b"\x01", "corrupt"),
    ("6", "mask", "Chunk_Blocks", 0, b"\0\0", "corrupt"),
    ("6", "w", "Chunk_Blocks", 0, b"\xff\xff", "corrupt"),
    ("6", "mask", "Chunk_Blocks", 0, b"\xff\xff", "same"),
    ("6", "w", "Chunk_Blocks", 0, b"\x01\0", "corrupt"),
    ("6", "mask", "Record_Bytes_16", 0, b"\x12", "corrupt"),
    ("6", "mask", "Record_Bytes_16", 0, b"\xff\xff\xff\xff", "corrupt"),
    ("6.1", "mask", "Chunk_Offset_16", 0, b"\0", "corrupt"),
    ("6.1", "mask", "Chunk_Offset_16", 0, b"\x02", "corrupt"),
    ("6.1", "mask", "Chunk_Offset_16", 0, b"\xff\xff\xff\xff", "corrupt"),
    ("6.2", "mask", "Chunk_CRC", 0, b"\0", "corrupt"),
    ("6.3", "w", "Mode", 0, b"\x09", "unsupported"),
    ("6.7", "w", "Mode", 0, b"\x03", "corrupt"),
    ("6.8", "w", "Mode", 0, b"\x04", "corrupt"),
    ("6.6", "w", "Mode", 0, b"\x02", "corrupt"),
    ("6.6", "mask", "Mode", 0, b"\x02", "corrupt"),
    ("6.3", "w", "Mode", 0, b"\x01", "corrupt"),
    ("6.4", "mask", "Mode", 0, b"\x01", "same"),
    ("6.3", "w", "N_Streams", 0, b"\0", "corrupt"),
    ("6.3", "w", "N_Streams", 0, b"\xff", "corrupt"),
    ("6.3", "w", "N_Streams", 1, b"\x01", "corrupt"),
    ("8", "w", "exponents: Codec", 0, b"\xc8", "unsupported"),
    ("8.6", "w", "exponents: Codec", 0, b"\x05", "corrupt"),
    ("8", "w", "bits: Codec", 0, b"\xff", "unsupported"),
    ("7.5", "w", "bits: Codec", 0, b"\x01", "corrupt"),
    ("7.5", "w", "bits: Codec", 0, b"\x02", "corrupt"),
    ("7.5", "w", "bits: Codec", 0, b"\x03", "corrupt"),
    ("7.5", "w", "bits: Codec", 0, b"\x05", "corrupt"),
    ("7.5", "w", "bits: Codec", 0, b"\x06", "corrupt"),
    ("7.5", "w", "bits: Codec", 0, b"\x07", "corrupt"),
    ("8.8", "w", "exponents: Codec", 0, b"\x07", "corrupt"),
    ("8.8", "mask", "byte: Codec", 0, b"\x07", "corrupt"),
    ("8.7", "mask", "byte: Codec", 0, b"\x06", "corrupt"),
    ("7.5", "w", "bits: Codec", 1, b"\x2f", "corrupt"),
    ("7.5", "w", "bits: Codec", 1, b"\x31", "corrupt"),
    ("1.10", "w", "bits: Codec", 0, b"\x04", "corrupt"),
    ("1.6", "w", "bits: Codec", 1, b"\xff\xff\xff", "corrupt"),
    ("8.2", "zeros", "exponents: Codec", 1, b"\x02", "corrupt"),
    ("8.2", "zeros", "exponents: Codec", 1, b"\0", "corrupt"),
    ("8.1", "zeros", "exponents: Codec", 0, b"\0", "corrupt"),
    ("7.2", "zeros", "exponents: all", 0, b"\x20", "corrupt"),
    ("7.3", "zeros", "widths: all", 0, b"\x0c", "corrupt"),
    ("7.3", "w", "widths: block", 0, b"\x09", "corrupt"),
    ("7.5", "w", "widths: block", 1, b"\x01", "corrupt"),
    ("6.1", "mask", "padding", 0, b"\x01", "corrupt"),
    ("6.1", "zeros", "padding", 13, b"\x01", "corrupt"),
    ("8.3", "mask", "byte: K", 0, b"\0", "corrupt"),
    ("8.3", "mask", "byte: K", 0, b"\x10", "corrupt"),
    ("8.3", "mask", "byte: K", 0, b"\xff", "corrupt"),
    ("8.3.1", "mask", "Escape_Freq", 0, b"\0", "corrupt"),
    ("8.3", "mask", "Symbols", 1, b"\0", "corrupt"),
    ("8.3.1", "mask", "Freqs", 1, b"\x04", "corrupt"),
    ("8.3", "mask", "Freqs", 0, b"\xff\x00", "corrupt"),
    ("8.3", "mask", "States", 0, b"\xff\x00", "corrupt"),
    ("8.3.3", "mask", "Renorm_Bytes", 0, b"\x05", "corrupt"),
    ("8.3.3", "mask", "Renorm_Bytes", 0, b"\x07", "corrupt"),
    ("1.6", "mask", "Renorm_Bytes", 0, b"\xff\xff\xff\xff", "corrupt"),
    ("8.4", "w", "exponents: S_1", 0, b"\0", "corrupt"),
    ("8.4", "w", "exponents: S_1", 0, b"\xff", "corrupt"),
    ("8.4", "w", "Symbol_Set", 0, b"\x73", "corrupt"),
    ("8.4", "w", "Symbol_Set", 0, b"\x7c", "corrupt"),
    ("8.4", "w", "Lengths", 0, b"\x60", "corrupt"),
    ("8.4", "w", "Lengths", 0, b"\x6d", "corrupt"),
    ("8.4.1", "w", "Lengths", 0, b"\x65", "corrupt"),
    ("8.4.3", "w", "Sizes", 0, b"\x0b", "corrupt"),
    ("1.6", "w", "Sizes", 0, b"\xff\xff\xff", "corrupt"),
    ("8.4.3", "w", "bitstream 3", 11, b"\x81", "corrupt"),
    ("5.5", "", "bias, kept", 0, b"\x01", "corrupt"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "tensor", "field", "begin", "new", "kind"), BINARY, ids=lambda value: value.hex() if isinstance(value, bytes) else None)
def test_binary_field(isa, section, tensor, field, begin, new, kind):
    assert section in sections()
    at = offset_of(tensor, field) + begin
    assert SPECIMEN[at : at + len(new)] != new
    check(SPECIMEN[:at] + new + SPECIMEN[at + len(new) :], kind)


def replaced(old, new):
    """Return a change of the header's text."""

    def change(header):
        text = json.dumps(header).encode()
        assert text.count(old) == 1
        return text.replace(old, new)

    return change


def with_depth(n):
    """Return a change that nests an unknown field of the index `n` deep."""
    return lambda h: with_index(h, h["__metadata__"]["weightpack"][:-1] + ',"novelty":' + "[" * n + "]" * n + "}")


HEADER = [  # section, change of the packed file's header, kind
    ("4.1", lambda h: None, "same"),
    ("4.1", lambda h: b" \n" + json.dumps(h).encode() + b"\t\r ", "same"),
    ("4.1", lambda h: json.dumps(dict(reversed(h.items())), indent=3).encode(), "same"),
    ("4.1", lambda h: h["w"].update(novelty=[1]), "same"),
    ("1.9", lambda h: b"\xef\xbb\xbf" + json.dumps(h).encode(), "corrupt"),
    ("1.9", lambda h: json.dumps(h).encode("utf-16"), "corrupt"),
    ("1.9", lambda h: json.dumps(h).encode() + b"{}", "corrupt"),
    ("1.9", lambda h: b"[" + json.dumps(h).encode() + b"]", "corrupt"),
    ("1.9", lambda h: b"", "corrupt"),
    ("1.9", replaced(b'"format": "pt"', b'"format": "\\udc00"'), "corrupt"),
    ("1.9", replaced(b'"format": "pt"', b'"format": "\\uD83D\\uDE00"'), "same"),
    ("1.9", replaced(b'"shape": [0]', b'"shape": [0], "x": NaN'), "corrupt"),
    ("1.9", replaced(b'"shape": [0]', b'"shape": [0], "x": -Infinity'), "corrupt"),
    ("1.9", replaced(b'"shape": [0]', b'"shape": [0], "shape": [0]'), "corrupt"),
    ("1.9", replaced(b'"shape": [0]', b'"shape": [0.0]'), "corrupt"),
    ("1.9", replaced(b'"shape": [0]', b'"shape": [false]'), "corrupt"),
    ("1.9", replaced(b'"shape": [0]', b'"shape": [0, 9223372036854775808]'), "corrupt"),
    ("1.9", with_depth(100), "same"),
    ("1.9", with_depth(100_000), "corrupt"),
    ("4.1", lambda h: h["w"].pop("dtype"), "corrupt"),
    ("4.1", lambda h: h["w"].update(dtype=1), "corrupt"),
    ("7.6", lambda h: h["w"].update(dtype="F31"), "unsupported"),
    ("4.1", lambda h: h["w"].update(shape=160), "corrupt"),
    ("4.1", lambda h: h["w"].update(shape=[-160]), "corrupt"),
    ("4.1", lambda h: h["w"].update(shape=[1] * 64 + [160]), "corrupt"),
    ("4.1", lambda h: h["w"].update(shape=[159]), "corrupt"),
    ("7.6", lambda h: h["w"].update(dtype="F4", shape=[319]), "corrupt"),
    ("4.1", lambda h: h["w"].update(data_offsets=[304]), "corrupt"),
    ("4.1", lambda h: h["w"].update(data_offsets=[464, 304]), "corrupt"),
    ("4.1", lambda h: h["w"].update(data_offsets=[304, (1 << 63) - 1]), "corrupt"),
    ("4.1", lambda h: h["w"].update(data_offsets=[320, 480]), "corrupt"),
    ("4.1", lambda h: h["w"].update(data_offsets=[0, 160]), "corrupt"),
    ("4.1", lambda h: h.update(w=[]), "corrupt"),
    ("4.2", lambda h: h.pop("w.tied"), "corrupt"),
    ("4.2", lambda h: h.update(other=h["w.tied"]), "corrupt"),
    ("4.2", lambda h: h.update({"w_tied": h.pop("w.tied")}), "corrupt"),
    ("4.3", lambda h: h["__metadata__"].update(format="tf", more=""), "same"),
    ("4.3", lambda h: h["__metadata__"].update(format=1), "corrupt"),
    ("4.3", lambda h: h.update(__metadata__=[]), "corrupt"),
    ("4.3", lambda h: h.update(__metadata__=None), "not packed"),
    ("4.3", lambda h: h.pop("__metadata__"), "not packed"),
    ("4.3", lambda h: h["__metadata__"].pop("weightpack"), "not packed"),
    ("4.3", lambda h: h["__metadata__"].pop("weightpack.crc32c"), "corrupt"),
    ("4.3", lambda h: h["__metadata__"].update({"weightpack.crc32c": h["__metadata__"]["weightpack.crc32c"].upper()}), "corrupt"),
    ("5.4", lambda h: h["w"].update(dtype="I8"), "corrupt"),
    ("5.4", lambda h: h["w"].update(shape=[80, 2]), "corrupt"),
    ("5.4", lambda h: h["w.tied"].update(dtype="I8"), "corrupt"),
    ("5.4", lambda h: h["w.tied"].update(shape=[0, 1]), "corrupt"),
    ("5.5", lambda h: h["bias"].update(shape=[2, 1]), "corrupt"),
    ("5.5", lambda h: h["bias"].update(dtype="I32"), "corrupt"),
    ("1.9", lambda h: with_index(h, "[]"), "corrupt"),
    ("1.9", lambda h: with_index(h, h["__metadata__"]["weightpack"] + " x"), "corrupt"),
    ("1.9", lambda h: with_index(h, h["__metadata__"]["weightpack"][:-1] + ',"tied":[2]}'), "corrupt"),
    ("1.9", lambda h: with_index(h, h["__metadata__"]["weightpack"][:-1] + ',"novelty":NaN}'), "corrupt"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "change", "kind"), HEADER)
def test_header(section, change, kind):
    assert section in sections()
    check(rewrite_header(change), kind)


def source_header(change):
    """Return a change of the index: the source's header (a dict) changed, its length kept by spaces."""

    def apply(index):
        old = reference.decode_file(SPECIMEN)[: index["gaps"][0][1]]
        header = json.loads(old[8:])
        text = change(header)
        new = (text if isinstance(text, bytes) else json.dumps(header, separators=(",", ":")).encode()).ljust(len(old) - 8)
        gap(index, struct.pack("<Q", len(new)) + new)

    return apply


def add_to_frame(data):
    """Return a change of the index: bytes behind the zstd frame of the first gap."""
    return lambda x: x["gaps"][0].__setitem__(2, base64.b64encode(base64.b64decode(x["gaps"][0][2]) + data).decode())


def listed(change=lambda tensors: None, **source):
    """Return a change of the index: the source is of another format, its tensors are listed, and the list is changed."""

    def apply(index):
        index["source"] |= {"format": "other", **source}
        index["tensors"] = [[tensor.dtype, list(tensor.shape), tensor.offset] for tensor in reference.read_index(SPECIMEN, 1 << 30).tensors]
        change(index["tensors"])

    return apply


INDEX = [  # section, change of the index, kind
    ("5.7", listed(), "same"),
    ("5.7", listed(format="safetensors"), "same"),  # an unknown key
    ("5.7", lambda x: x["source"].update(format="other"), "unsupported"),
    ("5.7", lambda x: x.update(tensors=7, source=x["source"] | {"format": "other"}), "corrupt"),
    ("5.7", listed(lambda t: t.pop()), "corrupt"),
    ("5.7", listed(lambda t: t.append(t[0])), "corrupt"),
    ("5.7", listed(lambda t: t.reverse()), "corrupt"),
    ("5.7", listed(lambda t: t[0].pop()), "corrupt"),
    ("5.7", listed(lambda t: t[0].append(1)), "corrupt"),
    ("5.7", listed(lambda t: t.__setitem__(0, "x")), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(0, 3)), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(0, "F31")), "unsupported"),
    ("5.7", listed(lambda t: t[0].__setitem__(0, "F64")), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(1, 2)), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(1, [-2])), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(1, [1] * 64 + [2])), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(1, [1 << 40, 1 << 40])), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(2, -1)), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(2, t[0][2] - 4)), "corrupt"),
    ("5.7", listed(lambda t: t[0].__setitem__(2, 1 << 62)), "corrupt"),
    ("5.7", listed(lambda t: t[1].__setitem__(2, t[2][2])), "corrupt"),
    ("5", lambda x: x.update(version=[1, 99], novelty={"a": [None, 1.5]}), "same"),
    ("5", lambda x: x.update(version=[0, 9]), "unsupported"),
    ("5", lambda x: x.update(version=[2, 0], storage="?"), "unsupported"),
    ("5", lambda x: x.update(version=[1]), "corrupt"),
    ("5", lambda x: x.update(version=[1, 1 << 63]), "corrupt"),
    ("5", lambda x: x.update(version=[True, 0]), "corrupt"),
    *[("5", lambda x, key=key: x.pop(key), "corrupt") for key in ("version", "source", "gaps", "storage", "tied", "kept_crc32c")],
    *[("5", lambda x, key=key: x.update({key: 7}), "corrupt") for key in ("version", "source", "gaps", "storage", "tied", "kept_crc32c")],
    *[("5", lambda x, key=key: x["source"].pop(key), "corrupt") for key in ("format", "bytes", "sha256")],
    ("5", lambda x: x["source"].update(format="npz"), "unsupported"),
    ("5", lambda x: x["source"].update(bytes=-1), "corrupt"),
    ("1.8", lambda x: x["source"].update(bytes=1 << 60), "limit"),
    ("5.1", lambda x: x["source"].update(bytes=x["source"]["bytes"] - 1), "corrupt"),
    ("5.1", lambda x: x["source"].update(bytes=0), "corrupt"),
    ("5", lambda x: x["source"].update(sha256=x["source"]["sha256"].upper()), "corrupt"),
    ("5", lambda x: x["source"].update(sha256=x["source"]["sha256"] + "\n"), "corrupt"),
    ("5", lambda x: x["gaps"].append([1, 1, x["gaps"][0][2]]), "corrupt"),
    ("5", lambda x: x["gaps"].append([1 << 60, 1 << 60, x["gaps"][0][2]]), "corrupt"),
    ("5", lambda x: x["gaps"].append(x["gaps"][0]), "corrupt"),
    ("5", lambda x: x["gaps"][0].append(1), "corrupt"),
    ("5", lambda x: x["gaps"][0].__setitem__(1, 0), "corrupt"),
    ("5.2", lambda x: x["gaps"][0].__setitem__(0, 1), "corrupt"),
    ("5.2", lambda x: gap(x, b"\0" * 7), "corrupt"),
    ("5.2", lambda x: gap(x, struct.pack("<Q", 389) + b" " * 388), "corrupt"),
    ("5.2", lambda x: gap(x, struct.pack("<Q", 100_000_001) + b" " * 388), "corrupt"),
    ("1.10", add_to_frame(b"\0"), "corrupt"),
    ("1.10", add_to_frame(b"\x50\x2a\x4d\x18\0\0\0\0"), "corrupt"),
    ("1.10", lambda x: x["gaps"][0].__setitem__(2, x["gaps"][0][2][:-8]), "corrupt"),
    ("1.10", lambda x: x["gaps"][0].__setitem__(2, ""), "corrupt"),
    ("5", lambda x: x["gaps"][0].__setitem__(2, x["gaps"][0][2].rstrip("=")[:-1]), "corrupt"),
    ("5", lambda x: x["gaps"][0].__setitem__(2, " " + x["gaps"][0][2]), "corrupt"),
    ("5.3", source_header(lambda h: None), "same"),
    ("5.3", source_header(lambda h: h["w"].update(shape=[33, 5])), "corrupt"),
    ("5.3", source_header(lambda h: h["w"].update(data_offsets=h["mask"]["data_offsets"])), "corrupt"),
    ("5.3", source_header(lambda h: h["w"].update(data_offsets=[1 << 60, (1 << 60) + 264])), "corrupt"),
    ("5.3", source_header(lambda h: h.pop("zeros")), "corrupt"),
    ("5.3", source_header(lambda h: h.update(x=h.pop("w"))), "corrupt"),
    ("1.9", source_header(lambda h: json.dumps(h).replace('"pt"', "NaN", 1).encode()), "corrupt"),
    ("4.3", source_header(lambda h: json.dumps(h).replace('"pt"', "1", 1).encode()), "corrupt"),
    ("5", lambda x: x.update(storage="kppt"), "corrupt"),
    ("5", lambda x: x.update(storage="kpptpp"), "corrupt"),
    ("5", lambda x: x.update(storage="kpptP"), "unsupported"),
    ("5.4", lambda x: x.update(storage="ppptp"), "corrupt"),
    ("5.4", lambda x: x.update(storage="kpkpt"), "corrupt"),
    ("5", lambda x: x.update(tied=[]), "corrupt"),
    ("5", lambda x: x.update(tied=[2, 2]), "corrupt"),
    ("5.4", lambda x: x.update(tied=[3]), "corrupt"),
    ("5.4", lambda x: x.update(tied=[1]), "corrupt"),
    ("5", lambda x: x.update(tied=[5]), "corrupt"),
    ("5", lambda x: x.update(tied=[1 << 62]), "corrupt"),
    ("5", lambda x: x.update(tied=["2"]), "corrupt"),
    ("5.5", lambda x: x.update(kept_crc32c="AAAA"), "corrupt"),
    ("5.5", lambda x: x.update(kept_crc32c=""), "corrupt"),
    ("5.5", lambda x: x.update(kept_crc32c="AAAAAAAAAAA="), "corrupt"),
    ("5.5", lambda x: x.update(kept_crc32c="AAAAAA=="), "corrupt"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "change", "kind"), INDEX)
def test_index(section, change, kind):
    assert section in sections()
    data = rewrite_index(SPECIMEN, change)
    if kind == "same":  # the SHA-256 is of the old source
        assert len(restore(data)) == len(SOURCE)
        return
    check(data, kind)


PROGRAM = r"""
import pickle, resource, sys
sys.path.insert(0, sys.argv[1])
from packed_parts import restore
from specimen import SPECIMEN
from weightpack import reference
from weightpack.errors import FormatError, LimitError

with open(sys.argv[2], "rb") as file:
    hostile = pickle.load(file)
restore(SPECIMEN)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (192 << 20), now + (192 << 20)))
refused = 0
for data in hostile:
    for decode in (restore, reference.decode_file):
        try:
            decode(data)
        except (FormatError, LimitError, reference.FormatError):
            refused += 1
print(len(hostile), refused)
"""


def test_hostile_files_are_refused_with_little_memory(tmp_path):
    """Every field above made bad, and files that claim to hold far more than they do."""
    if sys.platform != "linux":
        pytest.skip("RLIMIT_AS and /proc are Linux's")
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer reserves more address space than the test allows")
    hostile = [claimed(n) for n in (1 << 30, 1 << 40, 1 << 43, 1 << 60)] + [claimed(1 << 40, n) for n in (0, 1 << 40, 1 << 62)] + [wide_window()]
    for _, tensor, field, begin, new, _ in BINARY:
        at = offset_of(tensor, field) + begin
        hostile.append(SPECIMEN[:at] + new + SPECIMEN[at + len(new) :])
    hostile += [rewrite_header(change) for _, change, _ in HEADER] + [rewrite_index(SPECIMEN, change) for _, change, _ in INDEX]
    (tmp_path / "hostile").write_bytes(pickle.dumps(hostile))
    arguments = [str(Path(packed_parts.__file__).parent), str(tmp_path / "hostile")]
    result = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    tried, refused = map(int, result.stdout.split())
    assert tried == len(hostile) > 150
    assert refused > 1.8 * tried


def test_sha256_of_the_source():
    """Only a whole restoration can compare it, so it is the unpacker's to refuse."""
    with pytest.raises(reference.CorruptError, match="SHA-256"):
        reference.decode_file(rewrite_index(SPECIMEN, lambda x: x["source"].update(sha256="0" * 64)))


FRAME = encode_bytes(np.frombuffer(bytes(range(24)), np.uint8), "F32", (2, 3))


def head(change, data=FRAME, crc=True):
    """Return a frame with its head (27 bytes, before the CRC) changed, by default with the CRC that fits."""
    begin = bytearray(data[:27])
    change(begin)
    return bytes(begin) + (active().crc32c(bytes(begin)).to_bytes(4, "little") if crc else data[27:31]) + data[31:]


FRAMES = [
    (lambda: FRAME, "same"),
    (lambda: b"\x88" + FRAME[1:], "not packed"),
    (lambda: head(lambda b: b.__setitem__(4, 2), crc=False), "unsupported"),
    (lambda: head(lambda b: b.__setitem__(5, 2)), "unsupported"),
    (lambda: head(lambda b: b.__setitem__(5, 2), crc=False), "corrupt"),
    (lambda: head(lambda b: b.__setitem__(5, 1)), "unsupported"),
    (lambda: head(lambda b: b.__setitem__(6, 0)), "corrupt"),
    (lambda: head(lambda b: b.__setitem__(6, 33)), "corrupt"),
    (lambda: head(lambda b: b.__setitem__(7, 65)), "corrupt"),
    (lambda: head(lambda b: b.__setitem__(slice(8, 11), b"Q32")), "unsupported"),
    (lambda: head(lambda b: b.__setitem__(slice(8, 11), b"\xff32")), "corrupt"),
    (lambda: head(lambda b: b.__setitem__(slice(11, 19), b"\xff" * 8)), "limit"),
    (lambda: head(lambda b: b.__setitem__(11, 1)), "corrupt"),
    (lambda: head(lambda b: b.__setitem__(11, 3)), "corrupt"),
    (lambda: FRAME[:27] + b"\0\0\0\0" + FRAME[31:], "corrupt"),
    (lambda: FRAME[:31] + b"\0\0\0\0" + FRAME[35:], "corrupt"),
    (lambda: FRAME[:-1], "corrupt"),
    (lambda: FRAME + b"\0", "corrupt"),
    (lambda: b"", "corrupt"),
]


@pytest.mark.parametrize(("make", "kind"), FRAMES)
def test_tensor_frame(make, kind):
    check(make(), kind, lambda data: decode_bytes(data)[0].tobytes(), lambda data: reference.decode_frame(data)[2], bytes(range(24)))


# ---- differences and bases: one tensor, built by hand, each of its fields made bad

N = 300  # elements: two whole blocks, and a part of one
LAYOUT_AND_WORD = {"BF16": (5, "<u2"), "F32": (7, "<u4"), "F16": (6, "<u2"), "I8": (1, "<u1"), "F64": (8, "<u8")}
BASE_AT = 10
BASE = b"0123456789" + samples.float_words("F32", 2 * N, 5).tobytes() + b"behind"


def rans(books, ids, symbols):
    """8.3.4 with a codebook for each symbol: the codebooks, and what follows them."""
    x, renorm, literals = [256] * 128, b"", b""
    for i in reversed(range(len(symbols))):
        freqs, escape = books[ids[i]]
        ranks, all_freqs = list(freqs), [*freqs.values(), escape]
        rank = ranks.index(symbols[i]) if symbols[i] in freqs else len(ranks)
        state, freq = x[i % 128], all_freqs[rank]
        if rank == len(ranks):
            literals = bytes([symbols[i]]) + literals
        if state >= freq << 8:
            renorm, state = renorm + bytes([state & 255]), state >> 8
        x[i % 128] = (state // freq << 8) + state % freq + sum(all_freqs[:rank])
    heads = b"".join(bytes([len(freqs), escape, *freqs, *freqs.values()]) for freqs, escape in books)
    return heads, struct.pack("<128HI", *x, len(renorm)) + renorm[::-1] + literals


def bit_field(bits):
    return np.packbits(np.array(bits, bool), bitorder="little").tobytes()


def good(dtype="BF16", *, scaled=False, rates=(0, 3, 15), shift=0, classes=(0, 1, 3, 2, 4, 9, 5), frequent=(), conditional=False, n_rates=15):
    """Return the fields of a good chunk; its classes are these, again and again."""
    layout, word = LAYOUT_AND_WORD[dtype]
    base = np.frombuffer(BASE, word, N, BASE_AT).astype(np.int64)
    streams = {}
    if scaled:
        scales = np.arange(44 + 7) * 3 - 40
        scales[[2, 45]] = -32768
        streams = {"scales": (0, scales.astype("<i2").tobytes()), "signs": (0, bit_field(np.arange(N) % 3 == 0))}
        base = reference.scaled_elements(reference.LAYOUTS[layout], 7, 3, list(streams.values()), N).astype(np.int64)
    rate_of = np.repeat(rates, 128)[:N]
    changed = np.flatnonzero(rate_of)
    symbols = [classes[i % len(classes)] for i in range(len(changed))]
    n_bits = sum((c > 0) + max(c // 2 - 1, 0) for c in symbols if c < 64)
    streams |= {"rates": (0, bytes(rates)), "classes": (0, bytes(symbols)), "extra": (0, bit_field(np.arange(n_bits) * 7 % 5 < 2))}
    if conditional:
        low, width = reference.LAYOUTS[layout].fields[-1]
        cells = 16 * rate_of[changed] + np.clip((base[changed] >> low & (1 << width) - 1) - 118, 0, 15)
        spread = [50, 50, 50, 50, 20, 20, 16] if len(classes) == 7 else [52, 51, 51, 51, 51]
        books = [(dict(zip(classes, spread, strict=True)), 0), ({0: 100, 1: 80, 127: 6}, 70)]
        heads, rest = rans(books, (cells % 2).tolist(), symbols)
        streams["classes"] = 7, bytes([1, 118, n_rates]) + b"\x10" * 8 * n_rates + heads + rest
    fields = {"mode": 3 + scaled, "reserved": 0, "layout": layout, "dtype": dtype, "shift": shift, "frequent": list(frequent), "cols": 7, "phase": 3}
    return fields | {"streams": streams}


def chunk_of(fields):
    """Return a chunk, with its padding; fields may give wrong lengths, and a wrong count of streams."""
    streams, lengths = fields["streams"], fields.get("lengths", {})
    table = b"".join(bytes([codec]) + lengths.get(name, len(data)).to_bytes(3, "little") for name, (codec, data) in streams.items())
    behind = bytes([fields["shift"], fields.get("n_frequent", len(fields["frequent"]))])
    behind += struct.pack("<II", fields["cols"], fields["phase"]) if fields["mode"] == 4 else b""
    behind += struct.pack(f"<{len(fields['frequent'])}I", *fields["frequent"])
    chunk = struct.pack("<BBH", fields["mode"], fields.get("n_streams", len(streams)), fields["reserved"]) + table + behind
    chunk += b"".join(data for _, data in streams.values())
    return chunk + bytes(-len(chunk) % 16)


def record_of(fields, decoded):
    """Return a record of one chunk."""
    chunk = chunk_of(fields)
    return struct.pack("<BBHIII", fields["layout"], 0, 16, 1 + len(chunk) // 16, 1, reference.numbered_crc(0, decoded)) + chunk


def difference_file(fields, right=None):
    """Return a packed file of one tensor, and one tied to it, and its source; `right` are the fields that the tensor has been made from."""
    right, dtype = right or fields, fields["dtype"]
    layout = reference.LAYOUTS[right["layout"]]
    base = np.frombuffer(BASE, f"<u{layout.elem_bytes}", N, BASE_AT).astype(np.uint64)
    decoded, _ = reference.decode_chunk(chunk_of(right), 0, layout, N, (dtype, lambda first, n: base[first : first + n]))
    source = samples.safetensors_file({"w": (dtype, (N,), decoded), "w.tied": (dtype, (N,), decoded)})
    gap_bytes = source[: len(source) - 2 * len(decoded)]
    index = {
        "version": [1, 2], "source": {"format": "safetensors", "bytes": len(source), "sha256": hashlib.sha256(source).hexdigest()},
        "gaps": [[0, len(gap_bytes), base64.b64encode(zstandard.ZstdCompressor().compress(gap_bytes)).decode()]],
        "storage": "dt" if right["mode"] == 3 else "pt", "tied": [0], "kept_crc32c": "",
        "base": {"files": [["its name", len(BASE), hashlib.sha256(BASE).hexdigest()]], "repo": None, "revision": None, "depth": 1},
        "ranges": [[0, dtype, BASE_AT, len(decoded), None]],
    }  # fmt: skip
    if index["storage"] == "pt":
        del index["base"], index["ranges"]
    record = record_of(fields, decoded)
    lengths, end = {"w": len(record), "w.tied": 0}, len(record)
    header = {name: {"dtype": "U8", "shape": [n], "data_offsets": [end - n, end]} for name, n in lengths.items()}
    header["__metadata__"] = {}
    with_index(header, json.dumps(index))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + record, source


def restore_with_base(data):
    packed = PackedFile(MemoryFile([data], "memory"), bases=[MemoryFile([BASE], "base")])
    return b"".join(piece.result for piece in restored_pieces(packed, 1, lambda _, piece: bytes(piece)))


def check_with_base(data, kind, right):
    """As `check`; and that no checksum was needed to see it."""
    check(data, kind, restore_with_base, lambda data: reference.decode_file(data, bases=[BASE]), right)
    if kind != "same":
        with pytest.raises(FormatError) as error:
            restore_with_base(data)
        assert not isinstance(error.value, ChecksumError)
        with pytest.raises(reference.FormatError) as error:
            reference.decode_file(data, bases=[BASE])
        assert not re.search("CRC|does not match", str(error.value))


GOOD = {
    "plain": lambda: good(), "f32": lambda: good("F32", classes=(0, 1, 2, 62, 33, 40)), "f16": lambda: good("F16"), "i8": lambda: good("I8"),
    "shift": lambda: good(shift=3), "most shift": lambda: good(shift=14, classes=(0, 1, 2)), "highest class": lambda: good(classes=(30, 1)),
    "conditional": lambda: good(conditional=True), "fewer rates": lambda: good(rates=(0, 3, 2), conditional=True, n_rates=3),
    "frequent": lambda: good(classes=(0, 64, 1, 127, 3), frequent=[i * 1000 for i in range(64)]),
    "frequent f32": lambda: good("F32", shift=7, classes=(64, 65, 66, 40), frequent=((1 << 25) - 1, 5, 0)),
    "frequent scaled": lambda: good(scaled=True, classes=(64, 5), frequent=(65535,)),
    "frequent conditional": lambda: good(classes=(0, 64, 66, 1, 5), frequent=(3, 65530, 77), conditional=True),
    "unchanged": lambda: good(rates=(0, 0, 0)), "scaled": lambda: good("F32", scaled=True), "scaled bf16": lambda: good(scaled=True, conditional=True),
}  # fmt: skip


def stream(name, codec=None, data=lambda data: data):
    """Return a change of a stream: its codec, its bytes."""

    def apply(fields):
        old_codec, old = fields["streams"][name]
        fields["streams"][name] = old_codec if codec is None else codec, data(old)

    return apply


def at(position, new):
    return lambda data: data[:position] + new + data[position:][len(new) :]


def compressed(data):
    return zstandard.ZstdCompressor().compress(data)


MAP_END = 3 + 8 * 15
LAST_BOOK = MAP_END + 2 + 2 * 7
STATES = LAST_BOOK + 2 + 2 * 3
CHUNKS = [  # section, the good chunk, change of its fields, kind
    *[("6.7", name, lambda f: None, "same") for name in GOOD],
    ("6.3", "plain", lambda f: f.update(mode=9), "unsupported"),
    ("6.3", "plain", lambda f: f.update(reserved=1), "corrupt"),
    ("6.3", "plain", lambda f: f.update(n_streams=2), "corrupt"),
    ("6.3", "plain", lambda f: f.update(n_streams=4), "corrupt"),
    ("6.3", "scaled", lambda f: f.update(n_streams=4), "corrupt"),
    ("6.3", "scaled", lambda f: f.update(mode=3), "corrupt"),
    ("6.3", "plain", lambda f: f.update(mode=4), "corrupt"),
    ("1.6", "plain", lambda f: f.update(lengths={"extra": 10_000}), "corrupt"),
    ("6.7", "plain", lambda f: f.update(n_frequent=65, frequent=[0] * 65), "corrupt"),
    ("6.7", "plain", lambda f: f.update(n_frequent=255, frequent=[0] * 255), "corrupt"),
    ("6.8", "scaled", lambda f: f.update(n_frequent=65, frequent=[0] * 65), "corrupt"),
    ("6.7", "plain", lambda f: f.update(frequent=[1, 65535]), "same"),
    ("6.7", "unchanged", lambda f: f.update(n_frequent=64), "corrupt"),
    ("14.3", "unchanged", lambda f: f.update(frequent=[1 << 16]), "corrupt"),
    ("14.3", "frequent", lambda f: f["frequent"].__setitem__(9, 1 << 16), "corrupt"),
    ("14.3", "frequent f32", lambda f: f["frequent"].__setitem__(0, 1 << 25), "corrupt"),
    ("14.3", "frequent f32", lambda f: f["frequent"].pop(), "corrupt"),
    ("14.3", "frequent scaled", lambda f: f["frequent"].clear(), "corrupt"),
    ("14.3", "frequent conditional", lambda f: f["frequent"].pop(), "corrupt"),
    ("14.3", "plain", stream("classes", 0, at(0, b"\x40")), "corrupt"),
    ("14.3", "plain", stream("classes", 0, at(0, b"\x80")), "corrupt"),
    ("14.3", "plain", stream("classes", 0, at(0, b"\xff")), "corrupt"),
    ("14.3", "frequent", stream("classes", 0, at(0, b"\x80")), "corrupt"),
    ("6.8", "scaled", lambda f: f.update(cols=0, phase=0), "corrupt"),
    ("6.8", "scaled", lambda f: f.update(cols=(1 << 20) + 1), "corrupt"),
    ("6.8", "scaled", lambda f: f.update(cols=(1 << 32) - 1), "corrupt"),
    ("6.8", "scaled", lambda f: f.update(phase=7), "corrupt"),
    ("6.8", "scaled", lambda f: f.update(phase=(1 << 32) - 1), "corrupt"),
    ("14", "scaled", lambda f: f.update(layout=8), "corrupt"),
    ("14.5", "scaled", lambda f: f.update(layout=3), "corrupt"),
    ("14.5", "scaled bf16", lambda f: f.update(layout=2), "corrupt"),
    ("14.5", "scaled bf16", lambda f: f.update(layout=6), "corrupt"),
    ("15.5", "plain", lambda f: f.update(layout=3), "corrupt"),
    ("15.5", "f32", lambda f: f.update(layout=2), "corrupt"),
    ("15.5", "f32", lambda f: f.update(layout=8), "corrupt"),
    ("15.5", "f32", lambda f: f.update(layout=4), "corrupt"),
    ("14.1", "plain", lambda f: f.update(shift=15), "corrupt"),
    ("14.1", "plain", lambda f: f.update(shift=255), "corrupt"),
    ("14.1", "scaled", lambda f: f.update(shift=31), "corrupt"),
    ("14.1", "i8", lambda f: f.update(shift=7), "corrupt"),
    ("14.3", "highest class", lambda f: f.update(good(classes=(31, 1))), "corrupt"),
    ("14.3", "plain", stream("classes", 1, lambda _: b"\x1f"), "corrupt"),
    ("14.3", "f32", lambda f: f.update(good("F32", classes=(63, 1))), "corrupt"),
    ("14.3", "shift", lambda f: f.update(good(shift=3, classes=(25, 1))), "corrupt"),
    ("14.3", "most shift", lambda f: f.update(good(shift=14, classes=(3, 1))), "corrupt"),
    ("14.3", "i8", stream("classes", 0, at(0, b"\x0f")), "corrupt"),
    ("14.4", "plain", stream("rates", 0, at(0, b"\x10")), "corrupt"),
    ("14.4", "plain", stream("rates", 0, at(1, b"\xff")), "corrupt"),
    ("14.4", "plain", stream("rates", 0, lambda d: d + b"\0"), "corrupt"),
    ("14.4", "plain", stream("rates", 0, lambda d: d[:-1]), "corrupt"),
    ("14.4", "plain", stream("rates", 4, lambda d: compressed(d + b"\0")), "corrupt"),
    ("14.4", "plain", stream("rates", 4, compressed), "same"),
    ("14.4", "plain", stream("rates", 1, lambda _: b"\0"), "corrupt"),
    ("8.8", "plain", stream("rates", 7), "corrupt"),
    ("8.6", "plain", stream("rates", 5), "corrupt"),
    ("8", "plain", stream("rates", 200), "unsupported"),
    ("14.4", "plain", stream("classes", 0, lambda d: d + b"\0"), "corrupt"),
    ("14.4", "plain", stream("classes", 0, lambda d: d[:-1]), "corrupt"),
    ("14.4", "plain", stream("classes", 4, compressed), "same"),
    ("14.4", "plain", stream("classes", 4, lambda d: compressed(d + b"\0")), "corrupt"),
    ("8.6", "plain", stream("classes", 5), "corrupt"),
    ("8", "plain", stream("classes", 200), "unsupported"),
    ("14.4", "plain", stream("extra", 0, lambda d: d + b"\0"), "corrupt"),
    ("14.4", "plain", stream("extra", 0, lambda d: d[:-1]), "corrupt"),
    ("14.4", "plain", stream("extra", 0, lambda _: b""), "corrupt"),
    ("14.4", "plain", stream("extra", 0, lambda d: d[:-1] + bytes([d[-1] | 0x80])), "corrupt"),
    ("14.4", "plain", stream("extra", 4, compressed), "same"),
    ("14.4", "plain", stream("extra", 4, lambda d: compressed(d + b"\0")), "corrupt"),
    ("14.4", "plain", stream("extra", 4, lambda d: compressed(bytes(1 << 20))), "corrupt"),
    ("14.4", "plain", stream("extra", 4, lambda d: compressed(d)[:-1]), "corrupt"),
    *[("14.4", "plain", stream("extra", codec, lambda _: b"\0"), "corrupt") for codec in (1, 2, 3, 5, 6, 7)],
    ("8", "plain", stream("extra", 200), "unsupported"),
    ("14.4", "unchanged", stream("classes", 0, lambda _: b"\0"), "corrupt"),
    ("14.4", "unchanged", stream("classes", 1, lambda _: b"\0"), "corrupt"),
    ("14.4", "unchanged", stream("classes", 1), "corrupt"),
    ("14.4", "unchanged", stream("classes", 7), "corrupt"),
    ("14.4", "unchanged", stream("classes", 4, compressed), "corrupt"),
    ("14.4", "unchanged", stream("extra", 0, lambda _: b"\0"), "corrupt"),
    ("14.4", "unchanged", stream("extra", 4, compressed), "corrupt"),
    ("14.4", "unchanged", stream("rates", 1, lambda _: b"\0"), "same"),
    ("8.8", "conditional", stream("classes", None, at(0, b"\x10")), "corrupt"),
    ("8.8", "conditional", stream("classes", None, at(0, b"\xff")), "corrupt"),
    ("8.8", "conditional", stream("classes", None, at(0, b"\0")), "corrupt"),
    ("8.8", "conditional", stream("classes", None, at(2, b"\0")), "corrupt"),
    ("8.8", "conditional", stream("classes", None, at(2, b"\x10")), "corrupt"),
    ("8.8", "conditional", lambda f: f.update(good(conditional=True, n_rates=14)), "corrupt"),
    ("8.8", "conditional", stream("classes", None, at(3, b"\x12")), "corrupt"),
    ("8.8", "conditional", stream("classes", None, at(MAP_END - 1, b"\x20")), "corrupt"),
    ("8.8", "conditional", stream("classes", None, at(LAST_BOOK + 4, b"\x80")), "corrupt"),
    ("8.8", "conditional", stream("classes", None, at(LAST_BOOK + 4, b"\xff")), "corrupt"),
    ("8.3", "conditional", stream("classes", None, at(LAST_BOOK + 4, b"\0")), "corrupt"),
    ("8.3.1", "conditional", stream("classes", None, at(LAST_BOOK + 1, b"\x47")), "corrupt"),
    ("8.3", "conditional", stream("classes", None, at(LAST_BOOK, b"\0")), "corrupt"),
    ("8.3", "conditional", stream("classes", None, at(STATES, b"\xff\0")), "corrupt"),
    ("8.3.3", "conditional", stream("classes", None, lambda d: d[:-1]), "corrupt"),
    ("8.3.3", "conditional", stream("classes", None, lambda d: d + b"\0"), "corrupt"),
    ("8.8", "conditional", stream("classes", None, lambda d: d[:-1] + b"\x80"), "corrupt"),
    ("8.3.3", "conditional", stream("classes", None, at(STATES + 256, b"\x01\0\0\0")), "corrupt"),
    ("1.6", "conditional", stream("classes", None, at(STATES + 256, b"\xff\xff\xff\xff")), "corrupt"),
    *[("1.6", "conditional", stream("classes", None, lambda d, n=n: d[:n]), "corrupt") for n in (0, 2, 50, MAP_END, STATES - 1, STATES + 200, STATES + 258)],
    ("8.8", "scaled", stream("scales", 7), "corrupt"),
    ("8.8", "scaled", stream("signs", 7), "corrupt"),
    ("14.5", "scaled", stream("scales", 0, lambda d: d + b"\0\0"), "corrupt"),
    ("14.5", "scaled", stream("scales", 0, lambda d: d[:-2]), "corrupt"),
    ("14.5", "scaled", stream("scales", 0, lambda d: d[:-1]), "corrupt"),
    ("14.5", "scaled", stream("scales", 4, compressed), "same"),
    ("14.5", "scaled", stream("scales", 4, lambda d: compressed(d + b"\0\0")), "corrupt"),
    ("14.5", "scaled", lambda f: f.update(cols=8), "corrupt"),
    ("14.5", "scaled", stream("signs", 0, lambda d: d + b"\0"), "corrupt"),
    ("14.5", "scaled", stream("signs", 0, lambda d: d[:-1]), "corrupt"),
    ("14.5", "scaled", stream("signs", 0, lambda d: d[:-1] + bytes([d[-1] | 0x80])), "corrupt"),
    ("14.5", "scaled", stream("signs", 4, lambda d: compressed(d[:-1] + bytes([d[-1] | 0x10]))), "corrupt"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "name", "change", "kind"), CHUNKS)
def test_chunk_of_differences(isa, section, name, change, kind):
    assert section in sections()
    fields = GOOD[name]()
    change(fields)
    data, source = difference_file(fields, GOOD[name]())
    check_with_base(data, kind, source)


def range_(**parts):
    """Return a change of the index: parts of the range of the only tensor with a base."""

    def apply(index):
        for key, value in parts.items():
            index["ranges"][0][("file", "dtype", "offset", "n_bytes", "moves").index(key)] = value

    return apply


def turned(columns, **parts):
    """Return a change of the index: the tensor is the transpose of a matrix of so many columns, of one row or one column if nothing is to change."""

    def apply(index):
        index["storage"] = index["storage"].replace("d", "x")
        range_(moves=columns, **parts)(index)

    return apply


def base_file(position, value):
    return lambda x: x["base"]["files"][0].__setitem__(position, value)


BASES = [  # section, change of the index, kind
    ("15", lambda x: x["base"].update(novelty=1), "same"),
    ("15.3", range_(moves=[[0, 0, N]]), "same"),
    ("15.3", range_(moves=[[0, 0, 100], [100, 100, N - 100]]), "same"),
    ("15.2", range_(n_bytes=2 * N + 20), "same"),
    ("15.3", range_(offset=0, n_bytes=2 * N + 10, moves=[[0, 5, N]]), "same"),
    ("15", lambda x: x["base"].update(repo="a/b", revision="main", depth=1 << 40), "same"),
    ("5", lambda x: x.pop("base"), "corrupt"),
    ("5", lambda x: x.pop("ranges"), "corrupt"),
    ("5", lambda x: x.update(base=None), "corrupt"),
    ("5", lambda x: x.update(ranges={}), "corrupt"),
    *[("15", lambda x, key=key: x["base"].pop(key), "corrupt") for key in ("files", "repo", "revision", "depth")],
    *[("15", lambda x, key=key: x["base"].update({key: 1.5}), "corrupt") for key in ("files", "repo", "revision", "depth")],
    ("15", lambda x: x["base"].update(depth=0), "corrupt"),
    ("15", lambda x: x["base"].update(depth=True), "corrupt"),
    ("15", lambda x: x["base"].update(files=[]), "corrupt"),
    ("15", lambda x: x["base"]["files"][0].pop(), "corrupt"),
    ("15", lambda x: x["base"]["files"][0].append(0), "corrupt"),
    ("15", base_file(0, 1), "corrupt"),
    ("15", base_file(1, -1), "corrupt"),
    ("15", base_file(1, "1"), "corrupt"),
    ("15", base_file(2, hashlib.sha256(BASE).hexdigest().upper()), "corrupt"),
    ("15", base_file(2, ""), "corrupt"),
    ("15", lambda x: x["ranges"].clear(), "corrupt"),
    ("15", lambda x: x["ranges"].append(x["ranges"][0]), "corrupt"),
    ("15", lambda x: x["ranges"].__setitem__(0, None), "corrupt"),
    ("15", lambda x: x["ranges"][0].pop(), "corrupt"),
    ("15", lambda x: x["ranges"][0].append(0), "corrupt"),
    ("15.2", range_(file=1), "corrupt"),
    ("15.2", range_(file=-1), "corrupt"),
    ("15.2", range_(file=0.0), "corrupt"),
    ("15.2", range_(offset=len(BASE) - 2 * N + 1), "corrupt"),
    ("15.2", range_(offset=(1 << 63) - 1), "corrupt"),
    ("15.2", range_(n_bytes=(1 << 63) - 2), "corrupt"),
    ("15.2", range_(n_bytes=2 * N + 1), "corrupt"),
    ("15.2", range_(n_bytes=None), "corrupt"),
    ("15.4", range_(dtype="I16"), "corrupt"),
    ("15.4", range_(dtype="F64"), "corrupt"),
    ("15.4", range_(dtype="F31"), "corrupt"),
    ("15.4", range_(dtype=7), "corrupt"),
    ("15.2", range_(dtype="F32", n_bytes=4 * N + 2), "corrupt"),
    ("15.3", range_(moves=7), "corrupt"),
    ("15.3", range_(moves=[7]), "corrupt"),
    ("15.3", range_(moves=[[0, 0]]), "corrupt"),
    ("15.3", range_(moves=[[0, 0, -1]]), "corrupt"),
    ("15.3", range_(moves=[[0, 0, 1.0]]), "corrupt"),
    ("15.3", range_(moves=[[0, 0, N], [N, 0, 0]]), "corrupt"),
    ("15.3", range_(moves=[[0, 0, 100], [99, 99, N - 99]]), "corrupt"),
    ("15.3", range_(moves=[[100, 100, N - 100], [0, 0, 100]]), "corrupt"),
    ("15.3", range_(moves=[[0, 0, N + 1]], n_bytes=2 * N + 20), "corrupt"),
    ("15.3", range_(moves=[[0, 1, N]]), "corrupt"),
    ("15.3", range_(moves=[[0, (1 << 63) - 1, N]]), "corrupt"),
    ("15.3", range_(moves=[[(1 << 63) - 1, 0, N]]), "corrupt"),
    ("15.6", turned(1), "same"),
    ("15.6", turned(N), "same"),
    *[("15.6", turned(columns), "corrupt") for columns in (0, -1, None, 1.0, True, [[0, 0, N]], 1 << 62, 11)],
    ("15.6", turned(1, n_bytes=2 * N + 20), "corrupt"),
    ("6.7", lambda x: x.update(storage="pt"), "corrupt"),
    ("5", lambda x: x.update(storage="kd"), "corrupt"),
    ("5.4", lambda x: x.update(storage="dd", tied=[]), "corrupt"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "change", "kind"), BASES)
def test_base(section, change, kind):
    assert section in sections()
    data, source = difference_file(good())
    check_with_base(rewrite_index(data, change), kind, source)


def same_file(**changes):
    """Return a packed file that says that it is a file of its base, which is that; and its source."""
    source = samples.safetensors_file({"a": ("BF16", (40,), bytes(range(80))), "b": ("I64", (0,), b""), "c": ("U8", (3,), b"abc")})
    gap_bytes = source[:-83]
    index = {
        "version": [1, 5], "source": {"format": "safetensors", "bytes": len(source), "sha256": hashlib.sha256(source).hexdigest()},
        "gaps": [[0, len(gap_bytes), base64.b64encode(zstandard.ZstdCompressor().compress(gap_bytes)).decode()]], "storage": "", "tied": [], "kept_crc32c": "",
        "base": {
            "files": [["other", 5, hashlib.sha256(b"other").hexdigest()], ["its name", len(source), hashlib.sha256(source).hexdigest()]],
            "repo": None, "revision": None, "depth": 1,
        },
        "ranges": [], "same": 1,
    } | changes  # fmt: skip
    header = {"__metadata__": {}}
    with_index(header, json.dumps(index))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text, source


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "same"), ({"same": 0}, "corrupt"), ({"same": 2}, "corrupt"), ({"same": -1}, "corrupt"), ({"same": True}, "corrupt"), ({"same": "1"}, "corrupt"),
        ({"ranges": [[1, "U8", 0, 80, None]]}, "corrupt"), ({"ranges": None}, "corrupt"), ({"base": None}, "corrupt"), ({"storage": "k"}, "corrupt"),
        ({"gaps": []}, "corrupt"), ({"tied": [0]}, "corrupt"), ({"kept_crc32c": "AAAA"}, "corrupt"),
    ],
)  # fmt: skip
def test_same_as_a_file_of_the_base(changes, kind):
    """15.7."""
    data, source = same_file(**changes)

    def decode(data):
        packed = PackedFile(MemoryFile([data]), bases=[MemoryFile([b"other"]), MemoryFile([source])])
        return b"".join(piece.result for piece in restored_pieces(packed, 1, lambda _, piece: bytes(piece)))

    check(data, kind, decode, lambda data: reference.decode_file(data, bases=[b"other", source]), source)


def test_a_base_that_is_not_asked_for_is_ignored():
    check(rewrite_index(SPECIMEN, lambda x: x.update(base=7, ranges="x")), "same")


@pytest.mark.parametrize("layout", [3, 7, 13])
def test_elements_are_converted_and_moved(isa, layout):
    """A base of another dtype, in another order, with a gap; the record's layout is its own business (15.4, 15.5)."""
    fields = good("F32", rates=(0, 0, 0)) | {"layout": layout}
    moves = [[0, 250, 50], [60, 0, 200], [260, 7, 40]]
    bf16 = np.frombuffer(BASE, "<u2", N, BASE_AT)
    moved = np.concatenate([bf16[250:], np.zeros(10, "<u2"), bf16[:200], bf16[7:47]]).astype("<u4") << 16
    data, _ = difference_file(fields)
    chunk_crc = reference.numbered_crc(0, moved.tobytes())
    record_at = len(data) - len(record_of(fields, b""))
    data = data[: record_at + 12] + struct.pack("<I", chunk_crc) + data[record_at + 16 :]
    data = rewrite_index(data, range_(dtype="BF16", n_bytes=2 * N, moves=moves))
    assert restore_with_base(data)[-4 * N :] == moved.tobytes()
    (dtype, shape, content), _ = reference.decode_tensors(data, bases={"": BASE}).values()
    assert (dtype, shape, content) == ("F32", (N,), moved.tobytes())


def frame_of(fields, decoded=b"", n=N):
    """Return a tensor frame."""
    begin = b"\x89WPT" + bytes([1, 1, len(fields["dtype"]), 1]) + fields["dtype"].encode() + struct.pack("<Q", n)
    return begin + struct.pack("<I", reference.crc32c(begin)) + record_of(fields, decoded)


def test_tensor_frames_have_no_base():
    """But scales they may have (6.7, 6.8)."""
    check(frame_of(good()), "corrupt", decode_bytes, reference.decode_frame)
    scaled = good("F32", scaled=True)
    _, source = difference_file(scaled)
    frame = frame_of(scaled, source[-4 * N :])
    check(frame, "same", lambda data: decode_bytes(data)[0].tobytes(), lambda data: reference.decode_frame(data)[2], source[-4 * N :])


def test_count_of_scales():
    """14.5: one more than 2^22 bytes of them are corrupt."""
    n = 1 << 21
    streams = {"scales": (1, b"\0"), "signs": (1, b"\0"), "rates": (1, b"\0"), "classes": (0, b""), "extra": (0, b"")}
    frame = bytearray(frame_of(good(scaled=True) | {"streams": streams, "cols": 1, "phase": 0}, n=n))
    frame[26:28] = (n // 128).to_bytes(2, "little")  # Chunk_Blocks
    check(bytes(frame), "corrupt", decode_bytes, reference.decode_frame)
    with pytest.raises(CorruptionError, match="scales"):
        decode_bytes(bytes(frame))
    with pytest.raises(reference.CorruptError, match="scales"):
        reference.decode_frame(bytes(frame))


def test_bases_are_found_by_their_sha256(tmp_path):
    data, source = difference_file(good())
    (tmp_path / "packed").write_bytes(data)
    (tmp_path / "other").write_bytes(BASE + b"x")
    with pytest.raises(WrongBaseError):
        weightpack.unpack(tmp_path / "packed", tmp_path / "out", base=tmp_path / "other")
    with pytest.raises(BaseNotFoundError):
        weightpack.unpack(tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for bases in ((), [BASE + b"x"], {hashlib.sha256(BASE).hexdigest(): BASE + b"x"}):
        with pytest.raises(reference.BaseNotFoundError, match=hashlib.sha256(BASE).hexdigest()):
            reference.decode_file(data, bases=bases)
    assert reference.decode_file(data, bases={hashlib.sha256(BASE).hexdigest(): BASE}) == source


def test_reference_decoder_as_a_program(tmp_path, capsys):
    """Its bases may be packed, and differences themselves; of a circle it says so."""
    data, source = difference_file(good())
    (tmp_path / "base").write_bytes(BASE)
    (tmp_path / "packed").write_bytes(data)
    weightpack.pack(tmp_path / "base", tmp_path / "packed-base")
    out = str(tmp_path / "out")
    for base in ("base", "packed-base"):
        assert reference.main([str(tmp_path / "packed"), "--base", str(tmp_path / "packed"), "--base", str(tmp_path / base), "-o", out]) == 0
        assert (tmp_path / "out").read_bytes() == source
    assert reference.main([str(tmp_path / "packed"), "-o", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
    (tmp_path / "circle").write_bytes(rewrite_index(data, base_file(2, hashlib.sha256(source).hexdigest())))
    assert reference.main([str(tmp_path / "circle"), "--base", str(tmp_path / "circle"), "-o", str(tmp_path / "none")]) == 1
    assert "chain" in capsys.readouterr().err
