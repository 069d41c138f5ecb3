# SPDX-License-Identifier: Apache-2.0
"""Files that are cut, grown, spliced and doubled, in the raw and with everything else made to fit: our own error or the same bytes, in bounded memory."""

from __future__ import annotations

import pytest
import samples
from packed_parts import Parts, Record, claimed, restore
from specimen import SOURCE, SPECIMEN

import weightpack
from weightpack import reference
from weightpack.errors import ChecksumError, CorruptionError, FormatError, LimitError
from weightpack.io.files import MemoryFile
from weightpack.reading.packed_file import PackedFile

CHUNK_ELEMS = 1280


def pack(tmp_path, source, options=None):
    (tmp_path / "source").write_bytes(source)
    weightpack.pack(tmp_path / "source", tmp_path / "packed", options=options, overwrite=True)
    return (tmp_path / "packed").read_bytes()


def refused_or_same(data, source):
    """Does the product refuse `data`? Then the reference decoder does, too; otherwise both give `source`."""
    try:
        result = restore(data)
    except (FormatError, LimitError):
        result = None
    try:
        oracle = reference.decode_file(data)
    except reference.FormatError:
        oracle = None
    assert result == oracle
    assert result in (None, source)
    return result is None


def edits(data):
    """Yield (what, data) for every place: bytes put in, left out, doubled, swapped with their neighbours."""
    for at in range(len(data) + 1):
        for new in (b"\0", b" ", bytes(16), b"\xff" * 3):
            yield "grown", data[:at] + new + data[at:]
    for at in range(len(data)):
        for n in (1, 16):
            yield "cut out", data[:at] + data[at + n :]
            yield "doubled", data[: at + n] + data[at:]
            if data[at : at + n] != data[at + n : at + 2 * n]:
                yield "swapped", data[:at] + data[at + n : at + 2 * n] + data[at : at + n] + data[at + 2 * n :]


def test_bytes_put_in_left_out_doubled_swapped_at_every_place():
    tried = {}
    for what, data in edits(SPECIMEN):
        try:
            assert restore(data) == SOURCE, what
            refused = 0
        except (FormatError, LimitError):
            refused = 1
        tried[what] = [tried.get(what, [0, 0])[0] + 1, tried.get(what, [0, 0])[1] + refused]
    assert sum(n for n, _ in tried.values()) > 12_000
    for what, (n, refused) in tried.items():  # what is not refused: white space for white space, and copies of the source's metadata
        assert refused > 0.95 * n, (what, n, refused)


def test_reference_decoder_judges_edited_files_alike():
    for _, data in list(edits(SPECIMEN))[::23]:
        refused_or_same(data, SOURCE)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two tensors of one layout, three chunks each of equal length and of different bytes, and a shorter one."""
    r = samples.rng()
    values = {name: r.integers(0, 256, n).astype("<u2") for name, n in (("a", 3 * CHUNK_ELEMS), ("b", 3 * CHUNK_ELEMS), ("short", CHUNK_ELEMS + 7))}
    tensors = {name: ("U16", (array.size,), array.tobytes()) for name, array in values.items()}
    source = samples.safetensors_file(tensors)
    packed = pack(tmp_path_factory.mktemp("twins"), source, weightpack.PackOptions(codecs=(), chunk_elems=CHUNK_ELEMS))
    assert Parts(packed).index["storage"] == "ppp"
    assert restore(Parts(packed).build()) == source
    return packed, source


def changed(packed, name, n_chunks, change):
    """Return a packed file with one record changed, everything around it made to fit."""
    parts = Parts(packed)
    record = Record(parts.bodies[name], n_chunks)
    assert record.build() == parts.bodies[name]
    parts.bodies[name] = change(record, parts) or record.build()
    return parts.build()


@pytest.mark.parametrize(
    "change",
    [
        lambda r, _: r.build(behind=bytes(16)),
        lambda r, _: r.build(between=bytes(16)),
        lambda r, _: r.build(between=bytes(1 << 20)),
        lambda r, _: r.chunks.__setitem__(0, (r.chunks[0][0] + bytes(16), r.chunks[0][1])),
        lambda r, _: r.chunks.__setitem__(2, (r.chunks[2][0] + bytes(16), r.chunks[2][1])),
        lambda r, _: r.chunks.__setitem__(2, (r.chunks[2][0][:-16], r.chunks[2][1])),
    ],
    ids=["behind the last chunk", "before chunks", "a lot", "behind chunk 0", "behind chunk 2", "cut"],
)  # fmt: skip
def test_enlarged_padding_is_refused(twins, change):
    packed, source = twins
    assert refused_or_same(changed(packed, "a", 3, change), source)


@pytest.mark.parametrize(
    "change",
    [
        lambda r, _: r.chunks.__setitem__(1, r.chunks[0]),
        lambda r, _: r.chunks.insert(1, r.chunks[0]),
        lambda r, _: r.chunks.append(r.chunks[2]),
        lambda r, _: r.chunks.__delitem__(2),
        lambda r, _: r.chunks.reverse(),
        lambda r, p: r.chunks.__setitem__(1, (Record(p.bodies["b"], 3).chunks[1][0], r.chunks[1][1])),
        lambda r, p: r.chunks.__setitem__(1, Record(p.bodies["b"], 3).chunks[2]),
        lambda r, p: r.chunks.__setitem__(2, Record(p.bodies["short"], 2).chunks[1]),
        lambda r, p: p.bodies["short"],
    ],
    ids=[
        "doubled", "doubled, one more", "one more at the end", "one less", "reversed", "of another tensor", "of another tensor and number", "shorter",
        "whole record",
    ],
)  # fmt: skip
def test_doubled_and_spliced_chunks_are_refused(twins, change):
    packed, source = twins
    assert refused_or_same(changed(packed, "a", 3, change), source)


def test_table_entries_that_point_to_one_chunk_are_refused(twins):
    packed, source = twins
    for target in (0, 1, 2):
        parts = Parts(packed)
        body = parts.bodies["a"]
        for i in range(3):
            body[8 + 8 * i : 16 + 8 * i] = body[8 + 8 * target : 16 + 8 * target]
        assert refused_or_same(parts.build(), source)


def test_what_only_the_sha256_can_tell_is_refused_by_verify(twins, tmp_path):
    """A chunk, or a record, that is right in itself stands where another one should, with its checksums: from another tensor, and from another file.

    No accident does this. `unpack` and `safe_open` check each chunk against its own checksum and can't tell: SECURITY.md says so.
    """
    packed, _ = twins
    other_file = Parts(
        pack(tmp_path, samples.safetensors_file({"x": ("U16", (3 * CHUNK_ELEMS,), bytes(6 * CHUNK_ELEMS))}), weightpack.PackOptions(chunk_elems=CHUNK_ELEMS))
    ).bodies["x"]
    for change in (lambda r, p: r.chunks.__setitem__(1, Record(p.bodies["b"], 3).chunks[1]), lambda r, p: p.bodies["b"], lambda r, p: other_file):
        path = tmp_path / "spliced.safetensors"
        path.write_bytes(changed(packed, "a", 3, change))
        with pytest.raises(ChecksumError, match="SHA-256"):
            weightpack.verify(path)
        with pytest.raises(reference.CorruptError, match="SHA-256"):
            reference.decode_file(path.read_bytes())


@pytest.mark.parametrize("tied", [[0, 0, 0], [1, 2, 3], [2, 1, 0], [1, 1, 1], [0, 1, 2], [3, 3, 3], [0, 0, 3]])
def test_ties_that_loop_are_refused(tmp_path, tied):
    data = samples.weights(300, "BF16")
    source = samples.safetensors_file(dict.fromkeys("abcd", ("BF16", (300,), data)))
    parts = Parts(pack(tmp_path, source))
    assert (parts.index["storage"], parts.index["tied"]) == ("pttt", [0, 0, 0])
    parts.index["tied"] = tied
    assert refused_or_same(parts.build(), source) == (tied != [0, 0, 0])


@pytest.mark.parametrize("n_bytes", [1 << 30, 1 << 40, 1 << 43, 1 << 60])
def test_tensor_that_claims_too_much_is_refused_before_memory_is_asked_for(tmp_path, n_bytes):
    path = tmp_path / "claims.safetensors"
    path.write_bytes(claimed(n_bytes))
    for framework in ("numpy", "torch"):
        with pytest.raises((CorruptionError, LimitError)), weightpack.safe_open(path, framework) as opened:
            opened.get_tensor("w")
        with pytest.raises((CorruptionError, LimitError)), weightpack.safe_open(path, framework) as opened:
            opened.get_slice("w")[:100]
    with pytest.raises((CorruptionError, LimitError)):  # before room on the disk is asked for, too
        weightpack.unpack(path, tmp_path / "out")
    assert refused_or_same(path.read_bytes(), b"")


def test_every_bit_of_a_record_head_is_read_or_refused_by_safe_open(twins, tmp_path):
    """Reading one tensor: what it gives is right, or our error."""
    packed, _ = twins
    file = PackedFile(MemoryFile([packed]))
    stored, right = file.stored("a"), None
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(packed)
    with weightpack.safe_open(path) as opened:
        right = opened.get_tensor("a").tobytes()
    for bit in range(8 * 48):
        data = bytearray(packed)
        data[stored.begin + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with weightpack.safe_open(path) as opened:
            try:
                assert opened.get_tensor("a").tobytes() == right
            except FormatError as error:
                assert error.tensor == "a"
                assert error.path == str(path)
