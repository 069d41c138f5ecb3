# SPDX-License-Identifier: Apache-2.0
"""Each field of a packed file, made bad: product and reference decoder refuse it as docs/FORMAT.md says, and both for the same kind of reason.

Fields are found by what the dump in FORMAT section 13 calls them.
"""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
import samples
import zstandard
from test_container import restore, rewrite_index
from test_spec import SPEC, sections, specimen

from weightpack import reference
from weightpack.errors import CorruptionError, FormatError, LimitError, NotPackedError, TruncatedError, UnsupportedError
from weightpack.frame import decode_bytes, encode_bytes
from weightpack.kernels import active

SPECIMEN, _ = specimen()
SOURCE = samples.specimen_file()
DUMP = SPEC[SPEC.index("```hexdump") :]
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


def offset_of(tensor, note):
    """Return where the dump has a field, by the begin of its note, inside a tensor's record."""
    block = DUMP[DUMP.index(f" {tensor}: Layout") - 61 :] if tensor else DUMP
    line = next(line for line in block.splitlines() if line[61:].removeprefix(f"{tensor}: ").startswith(note))
    return int(line[:4], 16)


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
    ("6.3", "w", "Mode", 0, b"\x03", "unsupported"),
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


def rewrite_header(change):
    """Return the specimen with its header's JSON (a dict) changed; `change` may also return the text."""
    n = int.from_bytes(SPECIMEN[:8], "little")
    header = json.loads(SPECIMEN[8 : 8 + n])
    text = change(header)
    new = text if isinstance(text, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + SPECIMEN[8 + n :]


def replaced(old, new):
    """Return a change of the header's text."""

    def change(header):
        text = json.dumps(header).encode()
        assert text.count(old) == 1
        return text.replace(old, new)

    return change


def with_index(header, index):
    """Put the text of an index, and its CRC, in a header."""
    header["__metadata__"] |= {"weightpack": index, "weightpack.crc32c": f"{active().crc32c(index.encode()):08x}"}


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


def gap(index, data):
    """Let the first gap of an index hold `data`."""
    index["gaps"][0][1:] = [len(data), base64.b64encode(zstandard.ZstdCompressor().compress(data)).decode()]


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
