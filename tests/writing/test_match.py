# SPDX-License-Identifier: Apache-2.0
"""Which tensor of the base a tensor differs from, and how its rows have moved."""

from __future__ import annotations

import numpy as np
import pytest
import samples
import torch
from finetunes import model_file, stepped, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from weightpack.io.files import LocalFile
from weightpack.reading import bases
from weightpack.sources import segment
from weightpack.writing import match


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), max_size=60), st.lists(st.integers(0, 30), max_size=60))
def test_moves_stay_inside_and_carry_equal_rows(rows, base_rows):
    digests, base_digests = [bytes([r]) for r in rows], [bytes([r]) for r in base_rows]
    moves = match._moves(digests, base_digests, 1)
    for to, from_, n in moves or ():
        assert to >= 0 and to + n <= len(rows) and from_ >= 0 and from_ + n <= len(base_rows) and n > 0
    starts = [to for to, _, _ in moves or ()]
    assert starts == sorted(set(starts))
    if moves is not None:
        reached = {to + i: from_ + i for to, from_, n in moves for i in range(n)}
        assert all(base_rows[reached[i]] == row for i, row in enumerate(rows) if rows.count(row) == base_rows.count(row) == 1)


def test_rows_that_stand_several_times_set_no_shift():
    """Rows of zeros are everywhere: they move with the rows around them."""
    base_rows = [bytes([n]) if n % 3 else b"zeros" for n in range(90)]
    assert match._moves([b"new", b"newer", *base_rows], base_rows, 10) == ((20, 0, 900),)
    assert match._moves([b"zeros"] * 50, [b"zeros"] * 40, 10) is None


def test_matching_by_name_prefix_and_content(tmp_path):
    values = [weights(i) for i in range(3)]
    (tmp_path / "base.safetensors").write_bytes(model_file({"a.x": values[0], "b.x": values[1], "c": values[2]}))
    (tmp_path / "new.safetensors").write_bytes(model_file({"pre.a.x": values[0], "x": values[1], "what": stepped(values[2], 9), "none": weights(77)}))
    with bases.Base((tmp_path / "base.safetensors",)).opened() as base, LocalFile(tmp_path / "new.safetensors") as new:
        segments = segment(new)
        found = match.match_tensors(new, segments, base)
        offsets = {tensor.name: tensor.offset for tensor in base[0].segments.tensors}
    assert found["pre.a.x"].offset == offsets["a.x"]
    assert found["x"].offset == offsets["b.x"]  # two tails fit by name, the content decides
    assert found["what"].offset == offsets["c"]
    assert "none" not in found


def matched(tmp_path, base_content, content):
    """Return the matches of a file with a base, and the base's tensors by name."""
    (tmp_path / "base").write_bytes(base_content)
    (tmp_path / "new").write_bytes(content)
    with bases.Base((tmp_path / "base",)).opened() as base, LocalFile(tmp_path / "new") as new:
        return match.match_tensors(new, segment(new), base), {tensor.name: tensor for tensor in base[0].segments.tensors}


def test_fused_and_split_projections(tmp_path):
    """Query, key and value, one after the other, are the rows of one matrix in other programs."""
    parts = {name: weights(i, n) for i, (name, n) in enumerate((("q", 256 * 64), ("k", 64 * 64), ("v", 64 * 64)))}
    apart = samples.safetensors_file({name: ("F32", (values.size // 64, 64), values.tobytes()) for name, values in parts.items()})
    fused = samples.safetensors_file({"qkv": ("F32", (384, 64), stepped(np.concatenate(list(parts.values())), 9).tobytes())})
    found, there = matched(tmp_path, apart, fused)
    first = min(tensor.offset for tensor in there.values())
    assert found["qkv"].moves == tuple(
        (begin, (there[name].offset - first) // 4, there[name].n_bytes // 4) for name, begin in (("q", 0), ("k", 256 * 64), ("v", 320 * 64))
    )
    found, there = matched(tmp_path, fused, apart)
    begins = {name: (base.offset - there["qkv"].offset) // 4 for name, base in found.items()}
    assert begins == {"q": 0, "k": 256 * 64, "v": 320 * 64}


@pytest.mark.parametrize("shape", [(96, 320), (320, 96), (175, 175)])
def test_a_matrix_that_is_turned(tmp_path, shape):
    """As programs of other frameworks have it, and those with layers of one dimension in place of linear ones."""
    values = weights(1, shape[0] * shape[1]).reshape(shape)
    tuned = stepped(np.ascontiguousarray(values.T).reshape(-1), 9)
    found, there = matched(tmp_path, model_file({"w": values}, "F32", shape), model_file({"w": tuned}, "F32", shape[::-1]))
    assert (found["w"].columns, found["w"].moves, found["w"].offset) == (shape[1], None, there["w"].offset)
    found, _ = matched(tmp_path, model_file({"w": values}, "F32", shape), model_file({"w": weights(2, values.size)}, "F32", shape[::-1]))
    assert not any(base.columns for base in found.values())


def test_tensors_of_a_torch_file(tmp_path):
    """Its storages have no names, and no shapes."""
    values = {f"layer.{i}": weights(i).reshape(-1, 64) for i in range(4)}
    torch.save({name: torch.from_numpy(value) for name, value in values.items()}, tmp_path / "model.bin")
    plain = model_file({name: stepped(value.reshape(-1), 9) for name, value in values.items()})
    found, there = matched(tmp_path, (tmp_path / "model.bin").read_bytes(), plain)
    assert sorted(base.offset for base in found.values()) == sorted(tensor.offset for tensor in there.values())
    found, there = matched(tmp_path, plain, (tmp_path / "model.bin").read_bytes())
    assert sorted(base.offset for base in found.values()) == sorted(tensor.offset for tensor in there.values())


def test_rows_in_another_order_and_rows_that_all_changed(tmp_path):
    table = weights(1, 200 * 64).reshape(200, 64)
    order = np.random.default_rng(2).permutation(200)
    found, _ = matched(tmp_path, model_file({"w": table}, "F32", table.shape), model_file({"w": table[order]}, "F32", table.shape))
    assert found["w"].moves is not None
    assert sum(n for _, _, n in found["w"].moves) == table.size
    longer = np.concatenate([weights(3, 5 * 64).reshape(5, 64), stepped(table.reshape(-1), 9).reshape(table.shape)])
    found, _ = matched(tmp_path, model_file({"w": table}, "F32", table.shape), model_file({"w": longer}, "F32", longer.shape))
    assert found["w"].moves == ((5 * 64, 0, 200 * 64),)
