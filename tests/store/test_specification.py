# SPDX-License-Identifier: Apache-2.0
"""A store that was written once is read for ever; and by a decoder that was written from docs/STORE.md alone."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from folders import contents
from stores import model, restored, some_weights, steps

from weightpack import Store, reference

GOLDEN = Path(__file__).parent / "golden" / "1"


@pytest.fixture
def golden(tmp_path):
    return Store(shutil.copytree(GOLDEN, tmp_path / "golden"), threads=1)


def test_the_golden_store_is_unchanged():
    digest = hashlib.sha256()
    for name, data in sorted(contents(GOLDEN).items()):
        if data is not None:  # a clone has no empty folders
            digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
    assert digest.hexdigest() == "531757c4c2b7f70072f06835c21e3326ad0817217e390baa1823b7bd7ae90bd3", "golden files are never changed"


def test_the_golden_store_is_read(golden, tmp_path):
    assert [ref.name for ref in golden.ls()] == ["base", "further", "tuned"]
    assert [branch.name for branch in golden.log()] == ["base", "tuned", "further"]
    assert {placed.depth for placed in golden.manifest("further").own_items.values()} == {0, 2}
    assert golden.verify(["base", "tuned", "further"]).tensors == 7
    for name in ("base", "tuned", "further"):
        assert contents(restored(golden, name, tmp_path / "again")) == reference.decode_model(GOLDEN, name)


def test_the_reference_decoder_reads_what_is_written_now(store, tmp_path, monkeypatch):
    monkeypatch.setattr("weightpack.store.pack.PART_BYTES", 1 << 14)
    base = some_weights(n=1)
    store.add(model(tmp_path / "base", base, "F32"))
    store.add(model(tmp_path / "tuned", steps(base, 10), "F16"), "me/tuned")
    for folder, name in (("base", "base"), ("tuned", "me/tuned")):
        assert reference.decode_model(Path(store.url), name) == contents(tmp_path / folder)
    path = next(Path(store.url, "objects").rglob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(reference.FormatError):
        for name in ("base", "me/tuned"):
            reference.decode_model(Path(store.url), name)
