# SPDX-License-Identifier: Apache-2.0
"""What is in numpy files and in members of zip files is found by its content: nothing is larger for being inside one."""

from __future__ import annotations

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
import samples
import torch

import weightpack
from weightpack import reference
from weightpack.io.files import MemoryFile
from weightpack.sources import segment

FORMAT_BYTES = 800  # of a header, of a zip file's directory, and of what they add to the packed file's own header


def segments(data):
    return segment(MemoryFile([data], "source"))


def kinds(data):
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in segments(data).tensors}


def packed_bytes(tmp_path, data):
    (tmp_path / "source").write_bytes(data)
    size = weightpack.pack(tmp_path / "source", tmp_path / "packed", overwrite=True).packed_bytes
    weightpack.unpack(tmp_path / "packed", tmp_path / "back", overwrite=True)
    assert (tmp_path / "back").read_bytes() == data
    assert reference.decode_file((tmp_path / "packed").read_bytes()) == data
    return size


def saved(value):
    room = io.BytesIO()
    torch.save(value, room)
    return room.getvalue()


def normal(*shape, dtype="f4"):
    return (samples.rng().standard_normal(shape) * 0.02).astype(dtype)


ARRAYS = {
    "fortran": np.asfortranarray(normal(300, 200)), "fortran_3d": np.asfortranarray(normal(30, 40, 50)), "big_endian": normal(300, 200).astype(">f4"),
    "big_endian_half": normal(300, 200).astype(">f2"), "bfloat16": normal(300, 200).astype(ml_dtypes.bfloat16),
    "fortran_bfloat16": np.asfortranarray(normal(300, 200).astype(ml_dtypes.bfloat16)), "float8": normal(300, 200).astype(ml_dtypes.float8_e4m3fn),
    "complex": (normal(200, 100) + 1j * normal(100)).astype("c16"), "long_double": normal(90, 90).astype("g"), "plain": normal(300, 200),
    "records": np.rec.fromarrays([np.arange(9000), normal(9000)], dtype=[("i", "i4"), ("v", "f4")]), "half": normal(300, 200, dtype="f2"),
}  # fmt: skip


def npy(array):
    room = io.BytesIO()
    np.lib.format.write_array(room, array)
    return room.getvalue()


@pytest.mark.parametrize("name", ARRAYS)
def test_a_numpy_header_costs_nothing(tmp_path, name):
    """The array is no larger than its bytes alone; nor is it as a member of an .npz."""
    array = ARRAYS[name]
    alone = packed_bytes(tmp_path, array.tobytes("A"))
    assert packed_bytes(tmp_path, npy(array)) <= alone + FORMAT_BYTES
    assert packed_bytes(tmp_path, samples.zip_file({"a.npy": npy(array)})) <= alone + FORMAT_BYTES


def test_what_numpy_arrays_are_taken_for():
    assert kinds(npy(ARRAYS["fortran"])) == {"array": ("F32", (60_000,))}  # as they lie there, not as they are indexed
    assert kinds(npy(ARRAYS["bfloat16"])) == {"array": ("BF16", (60_000,))}
    assert kinds(npy(ARRAYS["plain"])) == {"array": ("F32", (300, 200))}
    assert kinds(npy(np.asfortranarray(np.zeros((5, 0), "f4")))) == {"array": ("F32", (5, 0))}
    rows = {name: segments(npy(ARRAYS[name])).tensors[0].row_elems for name in ("fortran", "fortran_3d", "bfloat16", "fortran_bfloat16", "plain")}
    assert rows == {"fortran": 300, "fortran_3d": 30, "bfloat16": 200, "fortran_bfloat16": 300, "plain": 200}
    two = segments(npy(ARRAYS["plain"]) + npy(ARRAYS["half"]))  # of two calls of np.save
    assert sorted(tensor.dtype for tensor in two.tensors) == ["F16", "F32"]


def inner_files():
    """Files of every kind, large enough to be looked into."""
    weights = normal(300, 200)
    hdf5 = b"\x89HDF\r\n\x1a\n" + bytes(2000) + weights.tobytes() + bytes(3000)
    return {
        "m.safetensors": samples.safetensors_file({"w": ("F32", (300, 200), weights.tobytes()), "new": ("Q3", (4,), bytes(5000))}),
        "m.onnx": samples.onnx_file({"w": (1, (300, 200), weights.tobytes())}, weights[0].tobytes()),
        "m.gguf": samples.gguf_file({"w": (0, (200, 300), weights.tobytes())}),
        "m.npy": npy(weights), "m.pt": saved({"w": torch.from_numpy(weights)}), "m.h5": hdf5, "m.bin": weights.tobytes(),
        "m.npz": samples.zip_file({"w.npy": npy(weights)}),
    }  # fmt: skip


@pytest.mark.parametrize("name", inner_files())
def test_a_stored_member_is_as_small_as_alone(tmp_path, name):
    """As in .keras, .pt2 and other archives; also in an archive in an archive."""
    data = inner_files()[name]
    (tmp_path / name).write_bytes(data)
    alone = weightpack.pack(tmp_path / name).packed_bytes
    inside = samples.zip_file({"config.json": b"{}", name: data})
    assert packed_bytes(tmp_path, inside) <= alone + FORMAT_BYTES
    assert packed_bytes(tmp_path, samples.zip_file({"a": b"text", "inner.zip": inside})) <= alone + 2 * FORMAT_BYTES


def test_what_members_are_taken_for():
    found = kinds(samples.zip_file(inner_files()))
    expected = {
        "m.safetensors/w": ("F32", (300, 200)), "m.safetensors/new": ("U8", (5000,)), "m.onnx/w": ("F32", (300, 200)), "m.gguf/w": ("F32", (300, 200)),
        "m.npy": ("F32", (300, 200)), "m.pt/archive/data/0": ("F32", (60_000,)), "m.bin": ("F32", (60_000,)), "m.npz/w.npy": ("F32", (300, 200)),
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert segments(samples.zip_file({"m.bin": bytes(100)})).source_format == "zip"
    deflated = kinds(samples.zip_file(inner_files(), zipfile.ZIP_DEFLATED))
    assert all(name.startswith("bytes at ") for name in deflated)


def test_a_packed_file_in_a_zip_file(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(inner_files()["m.safetensors"])
    weightpack.pack(tmp_path / "m.safetensors")
    packed = (tmp_path / "m.wp.safetensors").read_bytes()
    assert packed_bytes(tmp_path, samples.zip_file({"m.safetensors": packed})) < len(packed) + FORMAT_BYTES


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_storages_that_the_pickle_says_nothing_of(tmp_path):
    """Checkpoints of complex numbers, of the other byte order, and whose pickle is damaged."""
    checkpoint = saved({"w": torch.from_numpy(normal(300, 200)), "c": torch.from_numpy(normal(300, 400)).view(torch.complex64).to(torch.complex32)})
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert kinds(samples.zip_file(members))["archive/data/1"][0] == "F16"
    other_order = {name: content.replace(b"little", b"big") for name, content in members.items()}
    other_order["archive/data/0"] = np.frombuffer(members["archive/data/0"], "<f4").astype(">f4").tobytes()
    assert packed_bytes(tmp_path, samples.zip_file(other_order)) < packed_bytes(tmp_path, samples.zip_file(members)) + 4096
    cut = {**members, "archive/data.pkl": members["archive/data.pkl"][:20]}
    assert kinds(samples.zip_file(cut))["archive/data/0"] == ("F32", (60_000,))


def test_thousands_of_tiny_storages(tmp_path):
    """An entry of each would take many times its bytes."""
    few, many = (saved({str(i): torch.full((4,), float(i)) for i in range(n)}) for n in (100, 3000))
    assert len([name for name in kinds(few) if name.startswith("archive/data/")]) == 100
    assert packed_bytes(tmp_path, many) < 0.3 * len(many)
    mixed = saved({str(i): torch.from_numpy(normal(3000)) if i % 1000 == 0 else torch.zeros(1) for i in range(3000)})
    found = kinds(mixed)
    assert [found[f"archive/data/{i}"] for i in (0, 1000, 2000)] == [("F32", (3000,))] * 3
    assert packed_bytes(tmp_path, mixed) < 0.3 * len(mixed)
