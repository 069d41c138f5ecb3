# SPDX-License-Identifier: Apache-2.0
"""The GPU's decoder compiled for the host: what it takes is right to the last bit, what it gives back is what the package says, damage is never taken."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from elements import elements, elements_in_rows, kinds_of
from gpu_host import HostDecoder, compile_host

from weightpack.errors import FormatError
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import parse_chunk, parse_record_head
from weightpack.gpu.decoder import decodable, decodes
from weightpack.io.files import LocalFile, read_at
from weightpack.options import PackOptions
from weightpack.reading.chunks import decode_chunks
from weightpack.reading.packed_file import PackedFile
from weightpack.writing.record import encode_record

GOLDEN = sorted((Path(__file__).resolve().parents[1] / "golden").glob("*/*.safetensors"))
OPTIONS = {
    "rans": PackOptions(codecs=("rans",), chunk_elems=1 << 11),
    "tables": PackOptions(codecs=("rans",), chunk_elems=1 << 15, tables=4),
    "any": PackOptions(chunk_elems=1 << 11),
    "more tables": PackOptions(codecs=("rans",), chunk_elems=1 << 15, tables=16),
}
LAYOUT_IDS = sorted(decodable)


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    return HostDecoder(compile_host(tmp_path_factory.mktemp("gpu_host") / "gpu_host.so", "-shared", "-fPIC"))


def chunks_of(record, head):
    return [(i, bytes(record[begin:end]), int(head.crcs[i])) for i, (begin, end) in enumerate(pairwise(head.offsets.tolist()))]


def encoded(data, layout, options):
    record = bytes(encode_record(data, layout, options, threads=1))
    return record, parse_record_head(record, len(data), len(record))


def check(decode, data, layout, options):
    """Compare every chunk; return how many the GPU decodes."""
    n_decoded, size = 0, options.chunk_elems * layout.elem_bytes
    record, head = encoded(data, layout, options)
    for i, chunk, crc in chunks_of(record, head):
        status, out = decode(layout, chunk, head.elems_of(i), i, crc)
        assert (status == 0) == decodes(parse_chunk(chunk, layout), layout), f"chunk {i}: status {status}"
        if status == 0:
            n_decoded += 1
            assert out.tobytes() == bytes(data[i * size : (i + 1) * size]), f"chunk {i} differs"
    return n_decoded


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUT_IDS, ids=lambda id_: id_.name)
def test_every_kind_of_elements(decode, layout, options):
    layout = LAYOUTS[layout]
    n_decoded = sum(check(decode, elements(layout, n, kind), layout, OPTIONS[options]) for kind in kinds_of(layout) for n in (1, 3001))
    n_decoded += sum(check(decode, elements_in_rows(layout, 20_000, n_scales, 300), layout, OPTIONS[options]) for n_scales in (4, 9))
    assert n_decoded


@pytest.mark.parametrize("layout", LAYOUT_IDS, ids=lambda id_: id_.name)
def test_every_length_of_the_last_block(decode, layout):
    """From 2816 elements on, so that rANS with its states is smaller than the elements."""
    layout = LAYOUTS[layout]
    assert sum(check(decode, elements(layout, n, "gaussian"), layout, PackOptions(codecs=("rans",))) for n in (*range(1, 300, 13), *range(2816, 2946))) >= 130


def test_a_chunk_in_anothers_place_is_refused(decode):
    layout = LAYOUTS[LayoutId.BF16]
    record, head = encoded(elements(layout, 3000, "gaussian"), layout, PackOptions(codecs=("rans",)))
    ((number, chunk, crc),) = chunks_of(record, head)
    assert decode(layout, chunk, 3000, number, crc)[0] == 0
    assert decode(layout, chunk, 3000, number + 1, crc)[0] == 1
    assert decode(layout, chunk, 3000, number, crc ^ 1)[0] == 1
    assert decode(layout, chunk, 2999, number, crc)[0] == 1


def test_golden_files(decode):
    n_decoded = n_left = 0
    for path in GOLDEN:
        packed = PackedFile(LocalFile(path))
        for stored in packed.tensors.values():
            if stored.storage != "p" or packed.record_head(stored).layout.id not in decodable:
                continue
            head = packed.record_head(stored)
            record = read_at(packed.file, stored.begin, stored.packed_bytes)
            expected = np.empty(stored.tensor.n_bytes, np.uint8)
            for piece in packed.pieces(stored):
                packed.decode_piece(stored, piece, expected[piece.begin : piece.end])
            size = head.chunk_elems * head.layout.elem_bytes
            for i, chunk, crc in chunks_of(record, head):
                status, out = decode(head.layout, chunk, head.elems_of(i), i, crc)
                assert (status == 0) == decodes(parse_chunk(chunk, head.layout), head.layout), (path.name, stored.tensor.name, i)
                if status == 0:
                    assert out.tobytes() == expected[i * size : (i + 1) * size].tobytes()
                n_decoded, n_left = n_decoded + (status == 0), n_left + (status == 1)
    assert n_decoded > 20
    assert n_left > 5


def cpu_decodes(layout, chunk, n_elems, number, crc):
    """Return the CPU's bytes, or None where it finds damage."""
    out = np.empty(n_elems * layout.elem_bytes, np.uint8)
    try:
        decode_chunks(layout, chunk, np.array([0, len(chunk)]), np.array([crc], np.uint32), n_elems, n_elems, number, out)
    except FormatError:
        return None
    return out.tobytes()


@pytest.mark.parametrize("kind", ["gaussian", "many_escapes", "trailing7_in_some_blocks"])
@pytest.mark.parametrize("layout", [LayoutId.BF16, LayoutId.F16, LayoutId.F32_LEAD, LayoutId.BF16_LEAD], ids=lambda id_: id_.name)
def test_damage(decode, layout, kind):
    """The CRC is made right for what the CPU decodes of a damaged chunk, so that only the rules of the format stand in the way. Both must agree."""
    layout, n = LAYOUTS[layout], 700
    record, head = encoded(elements(layout, n, kind), layout, PackOptions(codecs=("rans",), tables=4))
    ((number, chunk, crc),) = chunks_of(record, head)
    rng = np.random.default_rng(7)
    refused = taken = 0
    for i in range(600):
        damaged = bytearray(chunk)
        for at in rng.integers(0, len(chunk) if i % 2 else 40, rng.integers(1, 3)):
            damaged[at] = rng.integers(0, 256)
        if i % 7 == 0:
            damaged = damaged[: 16 * int(rng.integers(0, len(chunk) // 16))]
        damaged, crc_of = bytes(damaged), crc
        if i % 3 and len(damaged) > 16:
            crc_of = crc_without_check(layout, damaged, n, number, crc)
        status, out = decode(layout, damaged, n, number, crc_of)
        expected = cpu_decodes(layout, damaged, n, number, crc_of)
        if status == 0:
            taken += 1
            assert out.tobytes() == expected
        else:
            refused += 1
            if expected is not None:
                assert not decodes(parse_chunk(damaged, layout), layout), "the CPU decodes a chunk that the GPU should"
    assert refused > 100


def crc_without_check(layout, chunk, n_elems, number, crc):
    """Return the CRC of what the chunk decodes to, if it decodes to anything."""
    from weightpack.kernels import active

    try:
        parsed = parse_chunk(chunk, layout)
        return active().decode_streams(layout, parsed.mode, list(parsed.streams), n_elems, number, np.empty(n_elems * layout.elem_bytes, np.uint8))
    except Exception:
        return crc


@pytest.mark.long
def test_under_sanitizers(tmp_path):
    """Inputs and outputs are blocks of what is promised and no more, so that a byte read or written too far is found."""
    program = compile_host(tmp_path / "gpu_host", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    cases, n_cases = tmp_path / "cases", 0
    rng = np.random.default_rng(11)
    with cases.open("wb") as file:
        for id_ in LAYOUT_IDS:
            layout = LAYOUTS[id_]
            for kind in ("gaussian", "many_escapes", *(("trailing7_in_some_blocks",) if layout.raw_bits else ())):
                data = elements(layout, 2990, kind)
                record, head = encoded(data, layout, PackOptions(codecs=("rans",), tables=4))
                ((number, chunk, crc),) = chunks_of(record, head)
                for i in range(20):
                    damaged = bytearray(chunk)
                    if i:
                        damaged[int(rng.integers(0, len(chunk) if i % 2 else 60))] = int(rng.integers(0, 256))
                    sound = cpu_decodes(layout, bytes(damaged), 2990, number, crc) is not None  # some damage is none: a context that never comes
                    decoded = sound and decodes(parse_chunk(damaged, layout), layout)
                    file.write(id_.name.lower().encode().ljust(16, b"\0"))
                    file.write(np.array([len(chunk), 2990, number, crc, 0 if decoded else 1], "<u4").tobytes() + bytes(damaged) + data.tobytes())
                    n_cases += 1
    ran = subprocess.run([program, cases], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{n_cases} cases\n"
