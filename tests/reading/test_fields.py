# SPDX-License-Identifier: Apache-2.0
"""Chunks of blocks of bytes, coded field by field (FORMAT 6.6): product beside reference, from good bytes and from bad."""

from __future__ import annotations

import numpy as np
import pytest
import samples
import zstandard
from trips import round_trip

import weightpack
from weightpack import reference
from weightpack.errors import CorruptionError, TruncatedError, UnsupportedError
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import RecordHead, build_chunk
from weightpack.kernels import chunk_crc
from weightpack.reading.record import decode_record


def fields_chunk(streams, widths, mode=2):
    return build_chunk(mode, streams, widths)


RAW, CONSTANT = 0, 1
TWO = [(RAW, bytes(range(10))), (CONSTANT, b"x")]  # blocks of 1 + 3 bytes, ten of them
FIELDS = {
    "sound": (fields_chunk(TWO, [1, 3]), "same"),
    "zstd": (fields_chunk([(4, zstandard.compress(bytes(range(10)))), (CONSTANT, b"x")], [1, 3]), "same"),
    "other_widths": (fields_chunk(TWO, [1, 4]), "corrupt"),  # as many bytes, but the first stream is too long
    "no_block": (fields_chunk(TWO, [1, 2]), "corrupt"),
    "width_0": (fields_chunk(TWO, [4, 0]), "corrupt"),
    "one_field": (fields_chunk([(RAW, bytes(40))], [4]), "corrupt"),
    "nine_fields": (fields_chunk([(CONSTANT, b"x")] * 9, [1] * 8 + [2]), "corrupt"),
    "reserved": (b"\2\2\1" + fields_chunk(TWO, [1, 3])[3:], "corrupt"),
    "widths_cut": (fields_chunk(TWO, [1, 3])[:13], "corrupt"),
    "stream_cut": (fields_chunk([(RAW, bytes(9)), (CONSTANT, b"x")], [1, 3]), "corrupt"),
    "context": (fields_chunk([(5, bytes(400)), (CONSTANT, b"x")], [1, 3]), "corrupt"),
    "unknown_codec": (fields_chunk([(99, bytes(10)), (CONSTANT, b"x")], [1, 3]), "unsupported"),
    "byte_behind": (fields_chunk(TWO, [1, 3])[:-1] + b"\1", "corrupt"),
}


@pytest.mark.parametrize(("chunk", "kind"), FIELDS.values(), ids=FIELDS)
def test_fields_of_a_chunk(isa, chunk, kind):
    """FORMAT 6.6, product beside reference."""
    expected = b"".join(bytes([i]) + b"xxx" for i in range(10))
    chunk = chunk.ljust(-(-len(chunk) // 16) * 16, b"\0") if kind != "corrupt" or len(chunk) % 16 == 0 else chunk.ljust(16, b"\0")
    crc = chunk_crc(np.frombuffer(expected, np.uint8), 0)
    record = RecordHead(LAYOUTS[LayoutId.BYTES1], 40, 128, np.array([16, 16 + len(chunk)]), np.array([crc], np.uint32)).to_bytes() + chunk
    out = np.empty(40, np.uint8)
    if kind == "same":
        decode_record(memoryview(record), out)
        assert out.tobytes() == expected == reference.decode_record(record, 40)
        return
    with pytest.raises(UnsupportedError if kind == "unsupported" else (CorruptionError, TruncatedError)):
        decode_record(memoryview(record), out)
    with pytest.raises(reference.UnsupportedError if kind == "unsupported" else reference.CorruptError):
        reference.decode_record(record, 40)


def test_fields_are_of_bytes_alone():
    chunk = fields_chunk([(RAW, bytes(10)), (RAW, bytes(30))], [1, 3])
    record = RecordHead(LAYOUTS[LayoutId.BYTES2], 20, 128, np.array([16, 16 + len(chunk)]), np.array([0], np.uint32)).to_bytes() + chunk
    with pytest.raises(CorruptionError):
        decode_record(memoryview(record), np.empty(40, np.uint8))
    with pytest.raises(reference.CorruptError):
        reference.decode_record(record, 40)


def test_blocks_are_coded_field_by_field(isa, tmp_path):
    """Scales and quants have statistics of their own; chunks end between blocks, and any part of a tensor can be read."""
    rng = np.random.default_rng(5)
    blocks = np.empty((4000, 34), np.uint8)
    blocks[:, 0], blocks[:, 1] = rng.integers(0, 256, 4000), 36 + rng.integers(0, 2, 4000)
    blocks[:, 2:] = rng.integers(-20, 20, (4000, 32)).astype(np.int8).view(np.uint8)
    data = samples.gguf_file({"q": (8, (320, 400), blocks.tobytes())})
    packed = round_trip(tmp_path, data, options=weightpack.PackOptions(chunk_elems=128 * 40))
    assert reference.decode_file(packed) == data
    assert len(packed) < 0.85 * len(data)
    report = weightpack.inspect(tmp_path / "packed", codecs=True)[0].tensors[0]
    assert report.codec.startswith("fields:raw+")
    with weightpack.safe_open(tmp_path / "packed") as opened:
        assert np.array_equal(opened.get_tensor("q"), blocks)
        assert np.array_equal(opened.get_slice("q")[1001:1077], blocks[1001:1077])
    noise = samples.gguf_file({"q": (8, (320, 4), rng.integers(0, 256, 40 * 34).astype(np.uint8).tobytes())})
    round_trip(tmp_path, noise)
