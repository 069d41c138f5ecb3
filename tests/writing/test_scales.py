# SPDX-License-Identifier: Apache-2.0
"""Scales of rows and columns help through every door, since one function chooses the mode of a chunk."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import weightpack
from weightpack import reference

FAST = weightpack.load_profile("fast")
PLAIN = dataclasses.replace(FAST, scales=False)


@pytest.fixture(scope="module")
def moments():
    """A matrix as Adam's second moment of one is, (512, 640) float32: nearly a product of row and column scales."""
    rng = np.random.default_rng(5)
    return (1e-12 * np.exp(3 * rng.normal(size=(512, 1))) * np.exp(3 * rng.normal(size=(1, 640))) * (1 + 0.3 * rng.random((512, 640)))).astype(np.float32)


def test_frames(moments, isa):
    frame = weightpack.encode(moments)
    assert len(frame) < 0.95 * len(weightpack.encode(moments, options=PLAIN))
    assert np.array_equal(weightpack.decode(frame), moments)
    assert reference.decode_frame(frame)[2] == moments.tobytes()


def test_frames_do_not_depend_on_threads(moments):
    tall = np.concatenate([moments] * 7)
    for chunk_elems in (128 * 300, 128 * 1000, 1 << 18):
        options = dataclasses.replace(FAST, chunk_elems=chunk_elems)
        assert weightpack.encode(tall, options=options, threads=3) == weightpack.encode(tall, options=options, threads=1)


def test_modules(moments):
    torch = pytest.importorskip("torch")
    from weightpack.torch import HuffmanCompressor, HuffmanDecompressor

    packed = HuffmanCompressor("auto")(torch.from_numpy(moments))
    assert packed.numel() < 0.95 * len(weightpack.encode(moments, options=PLAIN))
    assert torch.equal(HuffmanDecompressor()(packed), torch.from_numpy(moments))


def test_estimates_and_files(moments, tmp_path):
    path = tmp_path / "state.safetensors"
    weightpack.save_file({"exp_avg_sq": moments}, tmp_path / "packed.safetensors")
    weightpack.unpack(tmp_path / "packed.safetensors", path)
    (estimated,) = weightpack.estimate(path)
    (plain,) = weightpack.estimate(path, options=PLAIN)
    assert estimated.packed_bytes < 0.95 * plain.packed_bytes
    assert abs(estimated.packed_bytes - (tmp_path / "packed.safetensors").stat().st_size) < 0.02 * estimated.packed_bytes
