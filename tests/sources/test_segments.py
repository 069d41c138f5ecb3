# SPDX-License-Identifier: Apache-2.0
"""Which bytes of a source are tensors: PyTorch's zips, GGUF, ONNX, numpy, and any other file. Whatever they hold, they come back byte for byte."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import samples
import torch
from trips import round_trip

import weightpack
from weightpack import reference
from weightpack.errors import CorruptionError, OptionError
from weightpack.io.files import MemoryFile
from weightpack.sources import segment

FILES = samples.other_files()


def segments(data):
    return segment(MemoryFile([data], "source"))


@pytest.mark.parametrize("name", FILES)
def test_round_trip(isa, tmp_path, name):
    packed = round_trip(tmp_path, FILES[name], options=weightpack.PackOptions(chunk_elems=1280))
    assert reference.decode_file(packed) == FILES[name]
    assert weightpack.verify(tmp_path / "packed", against=tmp_path / "source")
    kind = name.split("-")[0].replace("text", "bytes").replace("one", "bytes").replace("empty", "bytes")
    assert weightpack.api.source_format(tmp_path / "packed") == kind


def test_gguf_tensors():
    tensors = {tensor.name: (tensor.dtype, tensor.shape) for tensor in segments(FILES["gguf"]).tensors}
    assert tensors == {
        "out.weight": ("F32", (50, 60)), "half": ("F16", (1500,)), "brain": ("BF16", (2000,)), "ids": ("I32", (4,)), "Q8_0": ("U8", (50, 34)),
        "Q4_0": ("U8", (50, 18)), "MXFP4": ("U8", (50, 17)),
    }  # fmt: skip
    odd = segments(FILES["gguf-unknown-type"])
    assert [tensor.dtype for tensor in odd.tensors] == ["F32", "U8"]  # what lies behind the one that is known is bytes
    assert odd.tensors[1].n_bytes > 70000


def test_onnx_tensors():
    tensors = {tensor.name: (tensor.dtype, tensor.shape) for tensor in segments(FILES["onnx"]).tensors}
    assert tensors == {"w": ("F32", (60, 50)), "q": ("I8", (40, 30)), "same": ("F16", (1500,)), "constant": ("F32", (1000,))}


def test_what_onnx_saves(tmp_path):
    """The onnx package writes a model; its tensors are found, two of one name, one as typed data, one in a graph within the graph."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    arrays = {"a": rng.standard_normal((30, 40)).astype("f4"), "b": rng.integers(0, 9, (70,)).astype("u1"), "c": rng.standard_normal(50)}
    initialisers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [100], arrays["a"].ravel()[:100])
    inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(arrays["a"], "a"))], "inner", [], [])
    graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)], "outer", [], [], [*initialisers, typed])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    found = segments(data)
    assert found.source_format == "onnx"
    kinds = {tensor.name: (tensor.dtype, tensor.shape) for tensor in found.tensors}
    a = ("F32", (30, 40))
    assert kinds == {"a": a, "a#2": a, "a#3": a, "b": ("U8", (70,)), "c": ("F64", (50,)), "typed": ("F32", (100,))}
    round_trip(tmp_path, data)
    with weightpack.safe_open(tmp_path / "packed") as opened:
        assert np.array_equal(opened.get_tensor("a#2"), arrays["a"])


@pytest.mark.parametrize("skip", range(4))
def test_floats_in_bytes_of_no_known_format(tmp_path, skip):
    """Wherever arrays begin; text and zeros stay bytes."""
    kinds = ("F32", "BF16", "F16")
    data = b"t" * skip + b"".join(samples.weights(200_000 // (4 if kind == "F32" else 2), kind) for kind in kinds)
    data += b"some text of words and of words again " * 6000
    found = segments(data)
    assert found.source_format == "bytes"
    assert [tensor.dtype for tensor in sorted(found.tensors, key=lambda t: t.offset)] == [*kinds, "U8"]
    at = {tensor.dtype: tensor.offset for tensor in found.tensors}
    assert (at["F32"] - skip) % 4 == (at["BF16"] - skip) % 2 == (at["F16"] - skip) % 2 == 0
    assert len(round_trip(tmp_path, data)) < 0.7 * len(data)


def test_torch_storages_and_the_dtypes_that_the_pickle_names():
    tensors = {tensor.name.removeprefix("archive/data/"): (tensor.dtype, tensor.shape) for tensor in segments(FILES["torch"]).tensors}
    assert tensors == {"0": ("F32", (3000,)), "1": ("BF16", (2000,)), "2": ("F32", (3000,)), "3": ("U8", (3000,)), "4": ("I64", (100,))}


def test_what_torch_saves(tmp_path):
    state = {
        "w": torch.randn(100, 60), "b": torch.randn(300).bfloat16(), "h": torch.randn(200).half(), "f8": torch.randn(64).to(torch.float8_e4m3fn),
        "i": torch.arange(50), "flags": torch.tensor([True, False]), "d": torch.randn(9, dtype=torch.float64), "nested": {"step": 7, "m": torch.zeros(40)},
    }  # fmt: skip
    state["tied"] = state["w"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    result = weightpack.pack(tmp_path / "pytorch_model.bin")
    assert result.target == str(tmp_path / "pytorch_model.bin.wp")
    dtypes = sorted(tensor.dtype for tensor in weightpack.inspect(result.target)[0].tensors)
    assert dtypes == sorted(["F32", "BF16", "F16", "F8_E4M3", "I64", "BOOL", "F64", "F32"])
    original = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").unlink()
    weightpack.unpack(result.target)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == original
    assert torch.equal(torch.load(tmp_path / "pytorch_model.bin", weights_only=True)["w"], state["w"])
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert segments((tmp_path / "legacy.pt").read_bytes()).source_format == "bytes"
    round_trip(tmp_path, (tmp_path / "legacy.pt").read_bytes())


def test_no_code_of_a_pickle_runs(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"w": torch.ones(5000), "x": Harm()}, tmp_path / "model.pt")
    weightpack.pack(tmp_path / "model.pt")
    assert [t.dtype for t in weightpack.inspect(tmp_path / "model.pt.wp")[0].tensors] == ["F32"]
    assert not (tmp_path / "harm").exists()


def test_numpy_arrays(tmp_path):
    room, values = io.BytesIO(), {"a": np.linspace(0, 1, 700, dtype="f4").reshape(70, 10), "b": np.arange(9, dtype="u2")}
    values |= {"c": np.array(["x", "yz"]), "e": np.empty((0, 3))}
    np.savez(room, **values)
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in segments(room.getvalue()).tensors}
    assert found == {"a.npy": ("F32", (70, 10)), "b.npy": ("U16", (9,)), "c.npy": ("U8", (16,)), "e.npy": ("F64", (0, 3))}
    round_trip(tmp_path, room.getvalue())
    with weightpack.safe_open(tmp_path / "packed") as opened:
        assert np.array_equal(opened.get_tensor("a.npy"), values["a"])
        assert opened.metadata() is None
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert [tensor.dtype for tensor in segments(objects.getvalue()).tensors] == ["U8"]


@pytest.mark.parametrize("name", ["gguf", "torch", "npy", "npz", "zip", "onnx"])
def test_damaged_sources_are_packed_all_the_same(tmp_path, name):
    """A source may be anything: what is not understood is bytes, and comes back."""
    data, rng = FILES[name], np.random.default_rng(1)
    for cut in sorted({*range(0, 200, 7), *rng.integers(0, len(data), 12).tolist(), len(data) - 1, len(data) - 20}):
        round_trip(tmp_path, data[:cut], threads=1, verify=False)
    for _ in range(60):
        bad = bytearray(data)
        at = rng.integers(0, min(len(data), 900) if rng.random() < 0.7 else len(data), 3)
        for i in at.tolist():
            bad[i] = int(rng.choice([0, 1, 255, 128, int(rng.integers(256))]))
        round_trip(tmp_path, bytes(bad), threads=1, verify=False)
    for _ in range(20):  # the zip's directory, at its end
        bad = bytearray(data)
        bad[len(data) - 1 - int(rng.integers(0, min(len(data), 600)))] = int(rng.integers(256))
        round_trip(tmp_path, bytes(bad), threads=1, verify=False)


def test_hostile_gguf_is_bytes():
    huge, one_value = struct.pack("<Q", 1 << 62), struct.pack("<IQQQ", 3, 0, 1, 1) + b"k"
    for head in (
        struct.pack("<I", 3) + huge * 2, struct.pack("<IQQ", 3, 0, 1) + huge, struct.pack("<I", 99) + bytes(40),
        one_value + struct.pack("<IIQ", 9, 8, 1 << 60), one_value + struct.pack("<IIQ", 9, 9, 1) * 9,
    ):  # fmt: skip
        assert segments(b"GGUF" + head + bytes(100)).source_format == "bytes"


def test_a_file_named_safetensors_must_be_one(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(FILES["text"])
    with pytest.raises(CorruptionError):
        weightpack.pack(tmp_path / "model.safetensors")


def test_not_in_place(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(FILES["gguf"])
    with pytest.raises(OptionError, match="no gguf file"):
        weightpack.pack(path, in_place=True)
    assert path.read_bytes() == FILES["gguf"]


def test_command_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(FILES["gguf"])

    def run(*arguments):
        done = subprocess.run([sys.executable, "-m", "weightpack", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("pack", "model.gguf", "--delete-source")
    assert not (tmp_path / "model.gguf").exists()
    assert "Q8_0" in run("inspect", "model.gguf.wp", "--tensors")
    run("verify", "model.gguf.wp")
    run("unpack", "model.gguf.wp")
    assert (tmp_path / "model.gguf").read_bytes() == FILES["gguf"]
    assert "U8" in run("estimate", "model.gguf")
    run("unpack", "model.gguf.wp", "--force", "-o", ".")
