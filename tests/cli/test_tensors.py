# SPDX-License-Identifier: Apache-2.0
"""Single tensors: `cat` writes one, `diff` compares those of two models."""

from __future__ import annotations

import io
import json
import os
import shutil

import numpy as np
import pytest
import samples
from command import call, refused, run
from safetensors import safe_open

import weightpack
from weightpack.format.layouts import DTYPE_BITS
from weightpack.tools.compare import float_values


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plain.safetensors").write_bytes(samples.mixed_file())
    weightpack.pack(tmp_path / "plain.safetensors", tmp_path / "packed.safetensors")
    return tmp_path


def sharded(path):
    """A model of two shards and an index; its second half has a part of its own, with a name that the first has, too."""
    path.mkdir()
    weight_map = {}
    for i in (1, 2):
        name = f"model-{i:05}-of-00002.safetensors"
        (path / name).write_bytes(samples.bf16_file(seed=i, name=f"layer.{i}", n=5000))
        weight_map[f"layer.{i}"] = name
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "vae").mkdir()
    (path / "vae" / "model.safetensors").write_bytes(samples.bf16_file(seed=3, name="layer.1", n=400))
    return path


# ---- cat


@pytest.mark.parametrize("name", ["plain.safetensors", "packed.safetensors"])
def test_cat_gives_the_bytes_of_each_tensor(folder, name):
    """Against the official reader, where numpy has the dtype; against the file's own bytes in all cases."""
    data = samples.mixed_file()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    with safe_open(folder / "plain.safetensors", "numpy") as official:
        for tensor, entry in header.items():
            if tensor == "__metadata__":
                continue
            begin, end = (8 + n + offset for offset in entry["data_offsets"])
            described = json.loads(call("cat", name, tensor, "--json", cwd=folder).stdout)
            assert (described["dtype"], described["shape"], described["n_bytes"]) == (entry["dtype"], entry["shape"], end - begin)
            written = call("cat", name, tensor, cwd=folder, binary=True)
            assert written.returncode == 0, written.stderr
            assert written.stdout == data[begin:end], tensor
            written = call("cat", name, tensor, "--npy", cwd=folder, binary=True)
            if DTYPE_BITS[entry["dtype"]] % 8:
                refused(written, 2, "without --npy", tensor)
                continue
            array = np.load(io.BytesIO(written.stdout))
            assert list(array.shape) == entry["shape"]
            assert array.tobytes() == data[begin:end], tensor
            if array.dtype.kind == "V":
                assert entry["dtype"] == "BF16" or entry["dtype"].startswith("F8")
            else:
                assert array.dtype == official.get_tensor(tensor).dtype, tensor


def test_cat_in_a_process_and_of_shards(folder):
    model = sharded(folder / "model")
    weightpack.pack(model, folder / "model-wp")
    expected = samples.bf16_file(seed=2, name="layer.2", n=5000)[-10_000:]
    for path in ("model", "model-wp", "model-wp/model-00002-of-00002.safetensors"):
        done = run("cat", path, "layer.2", cwd=folder, binary=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")
    refused(call("cat", "model", "layer.1", cwd=folder), 2, "several files", "vae/model.safetensors")
    refused(call("cat", "model", "layer.9", cwd=folder), 2, "layer.9", "no such tensor")
    refused(call("cat", "./none", "layer.9", cwd=folder), 2, "./none: no such file")
    refused(call("cat", "model/model.safetensors.index.json", "layer.1", cwd=folder), 1, "index.json")
    refused(call("cat", "model", "layer.2", "--npy", "--json", cwd=folder), 2, "--npy")


def test_cat_streams_a_large_tensor(folder):
    """More than one window of it, some of them of several chunks."""
    data = samples.weights(20_000_000, "BF16")
    (folder / "large.safetensors").write_bytes(samples.safetensors_file({"w": ("BF16", (20_000_000,), data)}))
    weightpack.pack(folder / "large.safetensors", folder / "large.wp")
    assert call("cat", "large.wp", "w", cwd=folder, binary=True).stdout == data


# ---- diff


def test_equal_whatever_the_form(folder):
    model = sharded(folder / "model")
    weightpack.pack(model, folder / "model-wp")
    for first, second, n in [("plain.safetensors", "packed.safetensors", 28), ("packed.safetensors", "packed.safetensors", 28), ("model", "model-wp", 3)]:
        done = run("diff", first, second, cwd=folder)
        assert (done.returncode, done.stdout) == (0, f"{n} tensors: {n} equal\n"), done.stderr
        assert json.loads(call("diff", first, second, "--json", cwd=folder).stdout)["equal"] is True
    assert call("diff", "model", "model-wp", "-q", cwd=folder).stdout == ""
    assert call("diff", "model", "model-wp", "-v", cwd=folder).stdout.count(" equal ") == 3


def test_what_differs_and_how_much(folder):
    x = np.linspace(-1, 1, 6000, dtype="<f4").reshape(60, 100)
    y = x.copy()
    y[3, 5:8] += np.float32(0.5)
    z = x.copy()
    z[0, 0], z[0, 1], z[0, 2] = np.inf, np.nan, -0.0
    integers = np.arange(500, dtype="<i8")
    changed = integers.copy()
    changed[[1, 2]] = 9
    nibbles = np.arange(256, dtype=np.uint8)
    other_nibbles = nibbles.copy()
    other_nibbles[[7, 9]] ^= np.array([0x10, 0x11], np.uint8)

    def file(name, tensors):
        (folder / name).write_bytes(samples.safetensors_file({k: (dtype, shape, array.tobytes()) for k, (dtype, shape, array) in tensors.items()}))

    same = {"same": ("F32", (60, 100), x), "only.one": ("U8", (3,), nibbles[:3])}
    file("one", same | {"y": ("F32", (60, 100), x), "z": ("F32", (60, 100), x), "i": ("I64", (500,), integers), "s": ("F32", (100, 60), x),
                        "d": ("F32", (1500,), x[:15]), "n": ("F4", (512,), nibbles)})  # fmt: skip
    file("two", {"same": same["same"], "y": ("F32", (60, 100), y), "z": ("F32", (60, 100), z), "i": ("I64", (500,), changed), "s": ("F32", (60, 100), x),
                 "d": ("I32", (1500,), x[:15]), "n": ("F4", (512,), other_nibbles), "only.two": ("U8", (3,), nibbles[:3])})  # fmt: skip
    weightpack.pack(folder / "two", folder / "two.wp")
    for second in ("two", "two.wp"):
        done = call("diff", "one", second, "--json", cwd=folder)
        assert done.returncode == 1, done.stderr
        result = json.loads(done.stdout)
        assert result["equal"] is False
        tensors = {entry["name"]: entry for entry in result["tensors"]}
        assert {name: entry["change"] for name, entry in tensors.items()} == {
            "same": "equal", "y": "values", "z": "values", "i": "values", "n": "values", "s": "shape", "d": "dtype", "only.one": "only in the first",
            "only.two": "only in the second",
        }  # fmt: skip
        assert [tensors[name]["n_different"] for name in ("same", "y", "z", "i", "n", "s")] == [0, 3, 3, 2, 3, 0]
        assert [tensors[name]["n_elems"] for name in ("same", "n", "s")] == [6000, 512, 0]
        assert tensors["y"]["max_abs_difference"] == float(np.abs(y.astype("f8") - x.astype("f8")).max())
        assert tensors["z"]["max_abs_difference"] == "inf"
        assert tensors["i"]["max_abs_difference"] is None
        assert tensors["only.two"]["dtypes"] == [None, "U8"]
    shown = run("diff", "one", "two", cwd=folder)
    assert shown.returncode == 1
    assert "9 tensors: 1 equal, 4 with other values, 1 of another shape, 1 of another dtype, 1 only in the first, 1 only in the second" in shown.stdout
    assert "0.5" in next(line for line in shown.stdout.splitlines() if line.startswith("y "))
    assert "same" not in shown.stdout
    refused(call("diff", "one", "./three", cwd=folder), 2, "./three")


def test_folders_are_compared_by_part_and_name(folder):
    model = sharded(folder / "model")
    shutil.copytree(model, folder / "other")
    (folder / "other" / "vae" / "model.safetensors").write_bytes(samples.bf16_file(seed=4, name="layer.1", n=400))
    (changed,) = [t for t in json.loads(call("diff", "model", "other", "--json", cwd=folder).stdout)["tensors"] if t["change"] != "equal"]
    assert changed["name"] == "vae/layer.1"
    variant = samples.bf16_file(seed=5, name="layer.1", n=5000)
    for path in (model, folder / "other"):
        (path / "model.fp16.safetensors").write_bytes(variant)  # a name twice in one folder
    names = [t["name"] for t in json.loads(call("diff", "model", "other", "--json", cwd=folder).stdout)["tensors"]]
    assert "model.fp16.safetensors: layer.1" in names
    assert len(names) == 4


def test_difference_of_a_packed_difference(folder):
    """The base is found, as by `unpack`."""
    base, tuned = (samples.base_files()[name][0] for name in ("base-dtypes", "tuned-dtypes"))
    (folder / "base.safetensors").write_bytes(base)
    (folder / "tuned").write_bytes(tuned)
    weightpack.pack(folder / "tuned", folder / "delta.wp.safetensors", base=folder / "base.safetensors")
    assert call("diff", "tuned", "delta.wp.safetensors", cwd=folder).returncode == 0
    assert call("diff", "base.safetensors", "delta.wp.safetensors", "-q", cwd=folder).returncode == 1
    (folder / "away").mkdir()
    (folder / "base.safetensors").rename(folder / "away" / "base")
    refused(call("diff", "tuned", "delta.wp.safetensors", cwd=folder), 2, "base")
    assert call("diff", "tuned", "delta.wp.safetensors", "--base", "away/base", cwd=folder).returncode == 0


@pytest.mark.parametrize("other", ["damaged.safetensors", "text.safetensors", "cut.safetensors", "none.safetensors", "pipe"])
def test_what_can_not_be_compared_is_no_difference(folder, other):
    """Exit code 1 means that tensors differ, as of diff(1)."""
    packed = bytearray((folder / "packed.safetensors").read_bytes())
    (folder / "cut.safetensors").write_bytes(packed[:-100])
    packed[-20] ^= 1
    (folder / "damaged.safetensors").write_bytes(packed)
    (folder / "text.safetensors").write_text("no model at all")
    os.mkfifo(folder / "pipe")
    for pair in (("plain.safetensors", other), (other, "plain.safetensors")):
        refused(call("diff", *pair, cwd=folder), 2, other)


@pytest.mark.parametrize(
    ("dtype", "reference"),
    [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("F8_E4M3FNUZ", "float8_e4m3fnuz"), ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
     ("F8_E8M0", "float8_e8m0fnu"), ("BF16", "bfloat16"), ("F16", "float16")],
)  # fmt: skip
def test_every_float_of_a_dtype_has_its_value(dtype, reference):
    words = np.arange(1 << DTYPE_BITS[dtype]).astype(f"<u{DTYPE_BITS[dtype] // 8}")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.dtype(getattr(ml_dtypes, reference, reference))
    with np.errstate(invalid="ignore"):
        expected = words.view(kind).astype(np.float64)
    np.testing.assert_array_equal(float_values(dtype, words), expected)
