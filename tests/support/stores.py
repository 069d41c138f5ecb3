# SPDX-License-Identifier: Apache-2.0
"""Models for stores, and what comes out of these."""

from __future__ import annotations

import shutil

from finetunes import COLS, ROWS, model_file, stepped, weights


def model(folder, tensors, dtype="BF16", shape=(ROWS, COLS)):
    """Write a model that has these tensors."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(model_file(tensors, dtype, shape))
    (folder / "config.json").write_text('{"model_type": "any"}')
    return folder


def some_weights(seed=0, n=3):
    return {f"layer.{i}.weight": weights(seed + i) for i in range(n)}


def steps(tensors, seed):
    return {name: stepped(values, seed + i) for i, (name, values) in enumerate(tensors.items())}


def restored(store, ref, folder):
    shutil.rmtree(folder, ignore_errors=True)
    return store.get(ref, folder)


def packing_what_changed(store, folder):
    """Return what packs units as the store does, but flips a bit of the model before."""
    pack = store._pack_units

    def change_and_pack(units, tell):
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-5] ^= 1
        (folder / "model.safetensors").write_bytes(data)
        return pack(units, tell)

    return change_and_pack


class Counting:
    """A folder that counts what is read of it."""

    def __init__(self, inner):
        self.inner, self.url, self.reads = inner, inner.url, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def read(self, name, begin, end):
        self.reads.append((name, begin, end))
        return self.inner.read(name, begin, end)
