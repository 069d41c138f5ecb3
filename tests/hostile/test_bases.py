# SPDX-License-Identifier: Apache-2.0
"""Files that claim anything of their bases: ranges, moves, dtypes, layouts, chains. Product and reference refuse alike, with our own errors alone."""

from __future__ import annotations

import hashlib
import json
import struct

import fuzz_targets
import numpy as np
import pytest
import samples
from packed_parts import Parts, gap

import weightpack
from weightpack import reference
from weightpack.errors import BaseNotFoundError, FormatError, LimitError, WeightpackError
from weightpack.io.files import LocalFile, MemoryFile
from weightpack.reading.packed_file import PackedFile

N = 700
VALUES = (np.random.default_rng(1).standard_normal(N) * 0.03).astype("<f4")
STEPS = np.random.default_rng(2).integers(-3, 4, N).astype("<i4")
BASE = samples.safetensors_file({"w": ("F32", (N,), VALUES.tobytes())})
SOURCE = samples.safetensors_file({"w": ("F32", (N,), (VALUES.view("<i4") + STEPS).tobytes())})


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A file whose only tensor differs from BASE."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "base").write_bytes(BASE)
    (folder / "source").write_bytes(SOURCE)
    weightpack.pack(folder / "source", folder / "packed", base=folder / "base", options=weightpack.PackOptions(chunk_elems=256))
    data = (folder / "packed").read_bytes()
    assert Parts(data).index["storage"] == "d"
    assert judged(data) == SOURCE
    return data


def judged(data):
    """What product and reference make of a file: bytes, or None if both refuse it."""
    try:
        ours = fuzz_targets.restore(data, BASE)
    except WeightpackError:  # anything else fails the test
        ours = None
    try:
        theirs = reference.decode_file(data, 1 << 40, [BASE])
    except (reference.FormatError, reference.BaseNotFoundError):
        theirs = None
    assert ours == theirs
    return ours


def with_range(packed, **fields):
    parts = Parts(packed)
    old = dict(zip(("file", "dtype", "offset", "n_bytes", "moves"), parts.index["ranges"][0], strict=True))
    parts.index["ranges"][0] = list((old | fields).values())
    return parts.build()


BIG = [1 << 31, 1 << 32, (1 << 62) + 4, (1 << 63) - 4, 1 << 63, 1 << 64, 10**400]
RANGES = [
    *({"dtype": dtype} for dtype in ("C64", "F64", "I64", "F4", "F6_E2M3", "U8", "I8", "I32", "U32", "I16", "F8_E4M3", "BOOL", "X", "", 3, None, ["F32"])),
    *({"n_bytes": n} for n in (0, 1, 2, 3, 4 * N - 1, 4 * N + 1, 4 * N + 4, -4, 4.0, "4", None, *BIG)),
    *({"offset": n} for n in (len(BASE) - 4 * N + 1, len(BASE), len(BASE) + 1, -1, -8, 1.5, None, *BIG)),
    *({"file": n} for n in (1, 2, -1, None, 0.0, "0", *BIG)),
    *({"moves": moves} for moves in ("", {}, 0, [0], [[]], [[0, 0]], [[0, 0, 0]], [[0, 0, 1, 1]], [[0, 0, N + 1]], [[1, 0, N]], [[0, 1, N]])),
    *({"moves": moves} for moves in ([[-1, 0, 1]], [[0, -1, 1]])),
    *({"moves": moves} for moves in ([[0, 0, 5], [4, 0, 5]], [[5, 0, 5], [0, 0, 5]], [[0, 0, "5"]], [[0.0, 0, 1]], [[True, 0, 1]], [None])),
    *({"moves": [[n, 0, 1]]} for n in BIG), *({"moves": [[0, n, 1]]} for n in BIG),
    *({"moves": [[0, 0, n]]} for n in BIG), *({"moves": [[n, n, n]]} for n in BIG),
    {"dtype": "F16", "n_bytes": 3}, {"dtype": "BF16", "n_bytes": 2 * N, "moves": [[0, N, 1]]},
]  # fmt: skip


@pytest.mark.parametrize("fields", RANGES, ids=lambda fields: str(fields)[:60])
def test_ranges_that_can_not_be(packed, fields):
    assert judged(with_range(packed, **fields)) is None


def test_ranges_that_can_be(packed):
    """The same elements, said in other ways; and others, which only the CRCs tell."""
    assert judged(with_range(packed, moves=[[0, 0, N]])) == SOURCE
    assert judged(with_range(packed, moves=[[i, i, 1] for i in range(N)])) == SOURCE
    for moves in ([], [[0, 1, N - 1]], [[i, N - 1 - i, 1] for i in range(N)], [[i, 0, 1] for i in range(N)]):
        assert judged(with_range(packed, moves=moves)) is None
    for fields in ({"offset": 0}, {"dtype": "F16"}, {"dtype": "BF16"}, {"n_bytes": 4}, {"n_bytes": 0}):
        assert judged(with_range(packed, **fields)) is None


@pytest.mark.parametrize("layout", range(256))
def test_records_of_other_layouts(packed, layout):
    """15.5: elements of another length than the dtype's are refused before the base is looked at, or are none of a difference."""
    parts = Parts(packed)
    parts.bodies["w"][0] = layout
    assert judged(parts.build()) == (SOURCE if layout in (3, 7, 13) else None)  # no step crosses 0: integers of magnitude and sign take the same ones


@pytest.mark.parametrize("dtype", ["C64", "F64", "I64", "U64", "F4", "F6_E2M3", "F8_E5M2", "U8", "BOOL", "I32", "U32", "BF16", "F16", "I16", "X"])
def test_tensors_of_other_dtypes(packed, dtype):
    """The source's header, and so its SHA-256, is another; what is decoded stands."""
    bits = {"C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "BF16": 16, "F16": 16, "I16": 16, "I32": 32, "U32": 32, "X": 32}.get(dtype, 8)
    for base_dtype in ("F32", dtype):
        parts = Parts(with_range(packed, dtype=base_dtype))
        header = json.dumps({"w": {"dtype": dtype, "shape": [-(-32 * N // bits)], "data_offsets": [0, 4 * N]}}).encode()
        gap(parts.index, struct.pack("<Q", len(header)) + header)
        parts.index["source"]["bytes"] = 8 + len(header) + 4 * N
        assert judged(parts.build()) is None


BASES = [
    None, [], {}, "", {"files": None}, {"files": [[]]}, {"files": {}}, {"depth": 0}, {"depth": -1}, {"depth": None}, {"depth": 1.0}, {"depth": True},
    {"repo": 3}, {"revision": []}, {"files": [["a", -1, "0" * 64]]}, {"files": [["a", 1, "0" * 63]]}, {"files": [["a", 1, "G" * 64]]},
    {"files": [[None, 1, "0" * 64]]},
    {"files": [["a", 1 << 63, "0" * 64]]}, {"files": []},
    {"files": [["a", 1, "0" * 64]]}, {"files": [["a", len(BASE), "0" * 64]]},
    {"files": [["a", 1 << 60, "0" * 64]]},
]  # fmt: skip


@pytest.mark.parametrize("base", BASES, ids=lambda base: str(base)[:60])
def test_bases_that_can_not_be(packed, base):
    parts = Parts(packed)
    parts.index["base"] = parts.index["base"] | base if isinstance(base, dict) and base else base
    assert judged(parts.build()) is None


def test_what_is_missing_of_the_index(packed):
    for change in (lambda i: i.pop("base"), lambda i: i.pop("ranges"), lambda i: i["ranges"].clear(), lambda i: i["ranges"].append(i["ranges"][0])):
        parts = Parts(packed)
        change(parts.index)
        assert judged(parts.build()) is None
    parts = Parts(packed)
    parts.index["storage"] = "p"  # differences in a tensor that has no base
    assert judged(parts.build()) is None


def test_without_its_base_a_file_is_described_but_not_decoded(packed):
    file = PackedFile(MemoryFile([packed]))
    stored = file.tensors["w"]
    with pytest.raises(BaseNotFoundError):
        file.decode_piece(stored, file.pieces(stored)[0], np.empty(4 * N, np.uint8))


@pytest.mark.parametrize("shorter", [0, 1, 4, 4 * N])
def test_a_base_that_is_cut_is_refused(packed, shorter):
    """The caller vouches for a base's bytes; one that ends early is our own error all the same."""
    file = PackedFile(MemoryFile([packed]), bases=[MemoryFile([BASE[: len(BASE) - shorter]])])
    stored, out = file.tensors["w"], np.empty(4 * N, np.uint8)
    if shorter == 0:
        file.decode_piece(stored, file.pieces(stored)[0], out[: 4 * N])
        return
    with pytest.raises(FormatError):
        for piece in file.pieces(stored):
            file.decode_piece(stored, piece, out[: piece.n_bytes])


# ---- chains


def naming(packed, of, base):
    """The packed file as the source `of` (any name), which is a difference from the source `base`."""
    parts = Parts(packed)
    length = parts.index["source"]["bytes"]
    parts.index["source"]["sha256"] = of * 64
    parts.index["base"]["files"] = [["base.safetensors", length, each * 64] for each in base]
    return parts.build()


@pytest.mark.parametrize("chain", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "a"}, {"a": "aa"}, {"a": "bb", "b": "aa"}])
def test_chains_that_end_nowhere(packed, tmp_path, chain):
    for i, (of, base) in enumerate(chain.items()):
        (tmp_path / f"{i}.safetensors").write_bytes(naming(packed, of, base))
        (tmp_path / f"copy-{i}.safetensors").write_bytes(naming(packed, of, base))
    for limits in (weightpack.Limits(), weightpack.Limits(max_depth=3)):
        with pytest.raises((LimitError, BaseNotFoundError)):
            weightpack.safe_open(tmp_path / "0.safetensors", limits=limits)
    with pytest.raises((LimitError, BaseNotFoundError)):
        weightpack.unpack(tmp_path / "0.safetensors", tmp_path / "out")
    weightpack.inspect(tmp_path / "0.safetensors")


def test_each_base_is_opened_once_however_many_ways_lead_to_it(packed, tmp_path, monkeypatch):
    """Forty files, each of which needs the one before twice: 2^40 ways."""
    names = [hashlib.sha256(bytes([i])).hexdigest() for i in range(40)]
    for i, name in enumerate(names):
        parts = Parts(packed)
        length = parts.index["source"]["bytes"]
        parts.index["source"]["sha256"] = name
        if i:
            parts.index["base"]["files"] = [["x", length, names[i - 1]]] * 2
        (tmp_path / f"{i:02}.safetensors").write_bytes(parts.build())
    (tmp_path / "base.safetensors").write_bytes(BASE)
    opens, opened = [], LocalFile.__init__

    def count(self, path):
        opens.append(path)
        opened(self, path)

    monkeypatch.setattr(LocalFile, "__init__", count)
    with weightpack.safe_open(tmp_path / "39.safetensors"):
        pass
    assert len(opens) < 40 * 42
    with pytest.raises(LimitError):
        weightpack.safe_open(tmp_path / "39.safetensors", limits=weightpack.Limits(max_depth=39))
    with weightpack.safe_open(tmp_path / "39.safetensors", limits=weightpack.Limits(max_depth=40)):
        pass
