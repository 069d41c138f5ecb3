# SPDX-License-Identifier: Apache-2.0
"""Which tensor of the base a tensor differs from, and how its rows have moved."""

from __future__ import annotations

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
        assert all(base_rows[reached[i]] == row for i, row in enumerate(rows) if row in base_rows)


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
