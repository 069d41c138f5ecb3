# SPDX-License-Identifier: Apache-2.0
"""Weights, and what some steps of training make of them: files that are differences from each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import samples

import weightpack

ROWS, COLS = 96, 320


def weights(seed, n=ROWS * COLS, scale=0.03):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype("<f4")


def stepped(values, seed, size=2e-5):
    """What some steps of training make of weights."""
    return (values + np.random.default_rng(seed).standard_normal(values.size).astype("<f4") * np.float32(size)).astype("<f4")


def encoded(values, dtype):
    return {"F32": values.tobytes, "BF16": lambda: samples.bf16(values).tobytes(), "F16": lambda: values.astype("<f2").tobytes()}[dtype]()


def model_file(tensors, dtype="BF16", shape=(ROWS, COLS), **more):
    return samples.safetensors_file({name: (dtype, shape, encoded(values, dtype)) for name, values in tensors.items()}, {"format": "pt"}, **more)


def pair_of_files(folder):
    """Write a base and what it was trained to, each in a folder of its own; return both paths."""
    base = {f"layer.{i}.weight": weights(i) for i in range(4)}
    tuned = {name: stepped(values, 10 + i) for i, (name, values) in enumerate(base.items())}
    (folder / "base").mkdir()
    (folder / "tuned").mkdir()
    (folder / "base" / "model.safetensors").write_bytes(model_file(base))
    (folder / "tuned" / "model.safetensors").write_bytes(model_file(tuned))
    return folder / "base" / "model.safetensors", folder / "tuned" / "model.safetensors"


def restored(packed, base=None):
    target = Path(packed).with_suffix(".again")
    weightpack.unpack(packed, target, base=base, overwrite=True)
    return target.read_bytes()
