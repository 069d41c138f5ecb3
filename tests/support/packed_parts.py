# SPDX-License-Identifier: Apache-2.0
"""Packed files in parts: taken apart, changed, and put together so that everything else fits."""

from __future__ import annotations

import base64
import json
import struct

import zstandard
from specimen import SPECIMEN

from weightpack.io.files import MemoryFile
from weightpack.kernels import active
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.pieces import restored_pieces


def restore(data):
    packed = PackedFile(MemoryFile([data], "memory"))
    return b"".join(piece.result for piece in restored_pieces(packed, 1, lambda _, piece: bytes(piece)))


class Parts:
    """A packed file in parts that can be changed; `build` makes a file of them in which every offset and the index's CRC fit."""

    def __init__(self, data):
        n = int.from_bytes(data[:8], "little")
        self.header = json.loads(data[8 : 8 + n])
        self.metadata = self.header.pop("__metadata__")
        self.index = json.loads(self.metadata["weightpack"])
        self.bodies = {name: bytearray(data[8 + n + entry["data_offsets"][0] : 8 + n + entry["data_offsets"][1]]) for name, entry in self.header.items()}

    def build(self):
        position, data = 0, b""
        for name, body in self.bodies.items():
            entry = self.header[name]
            entry["data_offsets"] = [position, position + len(body)]
            if len(entry["shape"]) == 1 and entry["dtype"] == "U8":
                entry["shape"] = [len(body)]
            position += len(body)
            data += body
        index = json.dumps(self.index)
        metadata = self.metadata | {"weightpack": index, "weightpack.crc32c": f"{active().crc32c(index.encode()):08x}"}
        header = json.dumps({"__metadata__": metadata, **self.header}).encode()
        return struct.pack("<Q", len(header)) + header + data


class Record:
    """A record in parts: its head, and (chunk with padding, CRC) pairs."""

    def __init__(self, body, n_chunks):
        self.head = bytes(body[:4])
        table = [struct.unpack_from("<II", body, 8 + 8 * i) for i in range(n_chunks)]
        ends = [16 * offset for offset, _ in table[1:]] + [len(body)]
        self.chunks = [(bytes(body[16 * offset : end]), crc) for (offset, crc), end in zip(table, ends, strict=True)]

    def build(self, between=b"", behind=b""):
        """Return the record; `between` stands before each chunk but the first, `behind` after the last."""
        position = -(-(8 + 8 * len(self.chunks)) // 16) * 16
        table, data = b"", b""
        for i, (chunk, crc) in enumerate(self.chunks):
            data += between if i else b""
            table += struct.pack("<II", (position + len(data)) // 16, crc)
            data += chunk
        body = (self.head + bytes(4) + table).ljust(position, b"\0") + data + behind
        return bytearray(body[:4] + struct.pack("<I", len(body) // 16) + body[8:])


def rewrite_index(packed, change):
    """Apply `change` to the index (a dict) of a packed file and fix its CRC."""
    n = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + n])
    index = json.loads(header["__metadata__"]["weightpack"])
    change(index)
    text = json.dumps(index, separators=(",", ":"))
    header["__metadata__"] |= {"weightpack": text, "weightpack.crc32c": f"{active().crc32c(text.encode()):08x}"}
    new = json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + packed[8 + n :]


def rewrite_header(change):
    """Return the specimen with its header's JSON (a dict) changed; `change` may also return the text."""
    n = int.from_bytes(SPECIMEN[:8], "little")
    header = json.loads(SPECIMEN[8 : 8 + n])
    text = change(header)
    new = text if isinstance(text, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + SPECIMEN[8 + n :]


def with_index(header, index):
    """Put the text of an index, and its CRC, in a header."""
    header["__metadata__"] |= {"weightpack": index, "weightpack.crc32c": f"{active().crc32c(index.encode()):08x}"}


def gap(index, data):
    """Let the first gap of an index hold `data`."""
    index["gaps"][0][1:] = [len(data), base64.b64encode(zstandard.ZstdCompressor().compress(data)).decode()]


def claimed(n_bytes, source_bytes=None):
    """Return a file whose source has one tensor of `n_bytes`, if one may believe it; its record holds a thousandth of a chunk."""
    parts = Parts(SPECIMEN)
    parts.bodies, parts.header = {"w": parts.bodies["w"]}, {"w": parts.header["w"]}
    header = json.dumps({"w": {"dtype": "BF16", "shape": [n_bytes // 2], "data_offsets": [0, n_bytes]}}).encode()
    gap(parts.index, struct.pack("<Q", len(header)) + header)
    parts.index |= {"storage": "p", "tied": [], "kept_crc32c": ""}
    parts.index["source"]["bytes"] = 8 + len(header) + n_bytes if source_bytes is None else source_bytes
    return parts.build()


def wide_window():
    """Return a file whose first gap is a frame that asks for the largest window and claims no size, with a kilobyte in it."""
    parts = Parts(SPECIMEN)
    block = b"\x28\xb5\x2f\xfd" + bytes([0, (27 - 10) << 3]) + (1024 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b" "  # an RLE block, the last
    parts.index["gaps"][0][1:] = [396, base64.b64encode(block).decode()]
    return parts.build()
