# SPDX-License-Identifier: Apache-2.0
"""weightpack.numpy and weightpack.torch beside safetensors' own, on packed and plain files."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import textwrap

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import samples
import torch

import weightpack
import weightpack.numpy
import weightpack.torch
from weightpack import reference
from weightpack.errors import CorruptionError, FormatError, LimitError, MissingExtraError, OptionError, TruncatedError


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 600, generator=generator) * 0.05
    result = {
        "w.f32": weight, "w.bf16": weight.bfloat16(), "w.f16": weight.half(), "w.e4m3": weight.to(torch.float8_e4m3fn), "w.f64": weight[:50].double(),
        "ids": torch.arange(100), "flag": torch.tensor([True, False] * 50), "scalar": torch.tensor(0.25), "empty": torch.empty(0, 4),
    }  # fmt: skip
    if tuple(int(part) for part in safetensors.__version__.split(".")[:2]) >= (0, 7):  # older ones know no complex numbers
        result["c"] = weight[:9, :8].to(torch.complex64)
    return result


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8))


@pytest.fixture(params=["packed", "plain"])
def path(request, tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    save = weightpack.torch.save_file if request.param == "packed" else safetensors.torch.save_file
    save(tensors, path, {"format": "pt", "note": "ü"})
    return path


def test_torch_load_file(path, tensors):
    loaded = weightpack.torch.load_file(path)
    assert sorted(loaded) == sorted(tensors)
    assert all(same(loaded[name], tensors[name]) for name in tensors)
    assert all(same(tensor, tensors[name]) for name, tensor in weightpack.torch.load(path.read_bytes()).items())


def test_safe_open_has_the_methods_of_safetensors(path, tensors, tmp_path):
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(tensors, plain, {"format": "pt", "note": "ü"})
    with weightpack.safe_open(path, "pt", device="cpu") as ours, safetensors.safe_open(plain, "pt", device="cpu") as stock:
        assert ours.keys() == list(stock.keys())
        assert ours.metadata() == stock.metadata()
        assert sorted(ours.offset_keys()) == sorted(stock.offset_keys() if hasattr(stock, "offset_keys") else stock.keys())  # old ones lack it
        for name in stock.keys():
            assert same(ours.get_tensor(name), stock.get_tensor(name))
            assert ours.get_slice(name).get_shape() == stock.get_slice(name).get_shape()
            assert ours.get_slice(name).get_dtype() == stock.get_slice(name).get_dtype()
    with pytest.raises(OptionError, match="closed"):
        ours.keys()


@pytest.mark.parametrize(
    "index",
    [
        (slice(0, 10),), (slice(500, 700),), (slice(None), slice(3, 9)), (slice(100, 300), slice(0, 1)), (5,), (-1,), (slice(-20, None),), (Ellipsis,),
        (slice(10, 5),), (3, 7), (slice(None), 5), (slice(0, 700, 3),), (slice(0, 0),),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["w.f32", "w.bf16"])
def test_slices_equal_indexing(path, tensors, name, index):
    with weightpack.safe_open(path, "pt") as opened:
        assert same(opened.get_slice(name)[index if len(index) > 1 else index[0]].contiguous(), tensors[name][index].contiguous())


def test_slice_decodes_only_the_chunks_that_it_needs(tensors, tmp_path, monkeypatch):
    from weightpack.reading.packed_file import PackedFile

    path = tmp_path / "model.safetensors"
    weightpack.torch.save_file({"w": torch.randn(4000, 512).bfloat16()}, path)
    decoded = []
    original = PackedFile.decode_piece

    def count(self, stored, piece, out):
        decoded.append((piece.first, piece.last))
        original(self, stored, piece, out)

    monkeypatch.setattr(PackedFile, "decode_piece", count)
    with weightpack.safe_open(path, "pt") as opened:
        opened.get_slice("w")[1000:1020]
        assert decoded == [(1, 2)]
        with pytest.raises(IndexError):
            opened.get_slice("w")[4000]


def test_numpy_functions(tmp_path):
    arrays: dict[str, np.ndarray] = {
        "a": np.linspace(-1, 1, 5000, dtype=np.float32).reshape(50, 100),
        "b": np.arange(7),
        "f": np.asfortranarray(np.ones((3, 4))),
    }
    weightpack.save_file(arrays, tmp_path / "x.safetensors", {"k": "v"})
    loaded = weightpack.load_file(tmp_path / "x.safetensors")
    assert all(np.array_equal(loaded[name], arrays[name]) and loaded[name].dtype == arrays[name].dtype for name in arrays)
    assert all(np.array_equal(array, arrays[name]) for name, array in weightpack.numpy.load(weightpack.numpy.save(arrays)).items())
    weightpack.unpack(tmp_path / "x.safetensors", tmp_path / "plain.safetensors")
    stock = safetensors.numpy.load_file(tmp_path / "plain.safetensors")
    assert all(np.array_equal(stock[name], arrays[name]) for name in arrays)


def test_what_save_file_packs_unpacks_to_a_file_that_safetensors_reads(tensors, tmp_path):
    weightpack.torch.save_file(tensors, tmp_path / "packed.safetensors", {"format": "pt"})
    weightpack.unpack(tmp_path / "packed.safetensors", tmp_path / "back.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "back.safetensors")
    assert all(same(loaded[name], tensors[name]) for name in tensors)
    assert len(loaded) == len(tensors)


def test_models_with_shared_tensors(tmp_path):
    def make():
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(300, 64), "head": torch.nn.Linear(64, 300, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    model, other = make(), make()
    with torch.no_grad():
        model["embed"].weight.mul_(2)
    weightpack.torch.save_model(model, str(tmp_path / "m.safetensors"))
    assert weightpack.torch.load_model(other, tmp_path / "m.safetensors") == ([], [])
    assert same(other["head"].weight, model["head"].weight)
    with pytest.raises(RuntimeError, match="Missing"):
        weightpack.torch.load_model(torch.nn.Linear(2, 2), tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["float32", "float16", "float64", "int8", "int64", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (300, 7), (2, 3, 0)])
def test_encode_decode(isa, name, shape):
    array = (np.random.default_rng(1).standard_normal(shape) * 20).astype(name)
    frame = weightpack.encode(array)
    back = weightpack.decode(frame)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert reference.decode_frame(frame)[2] == array.tobytes()


def test_damaged_frames_are_refused():
    array = np.frombuffer(samples.weights(300, "F32"), "<f4")
    frame = bytearray(weightpack.encode(array))
    for i in range(len(frame)):
        frame[i] ^= 0x11
        with contextlib.suppress(FormatError, LimitError):
            assert np.array_equal(weightpack.decode(bytes(frame)), array)
        frame[i] ^= 0x11
    for n in range(len(frame)):
        with pytest.raises(FormatError):
            weightpack.decode(bytes(frame[:n]))


def test_what_can_not_be_saved_is_refused(tmp_path):
    with pytest.raises(OptionError, match="dtype"):
        weightpack.save_file({"a": np.array(["text"])}, tmp_path / "x")
    with pytest.raises(OptionError, match="contiguous"):
        weightpack.torch.save_file({"a": torch.ones(3, 4).T}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_one_open_file_serves_many_threads(path, tensors):
    from concurrent.futures import ThreadPoolExecutor

    with weightpack.safe_open(path, "pt", threads=1) as opened, ThreadPoolExecutor(8) as pool:
        names = list(tensors) * 8
        for name, tensor in zip(names, pool.map(opened.get_tensor, names), strict=True):
            assert same(tensor, tensors[name])


# ---- directories


def shards(folder, save, files, index=None):
    folder.mkdir()
    for name, tensors in files.items():
        save(tensors, folder / name)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.parametrize("kind", ["packed", "plain", "both"])
def test_a_directory_is_loaded_as_its_shards(tensors, tmp_path, kind):
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:4], "model-00002-of-00002.safetensors": names[4:]}
    files = {file: {name: tensors[name] for name in part} for file, part in parts.items()}
    packed = {"packed": list(files), "plain": [], "both": list(files)[:1]}[kind]

    def save(content, path):
        (weightpack.torch if path.name in packed else safetensors.torch).save_file(content, path)

    index = {name: file for file, part in parts.items() for name in part}
    surplus = {"consolidated.safetensors": {"other": torch.zeros(3)}}
    for folder in (shards(tmp_path / "indexed", save, files | surplus, index), shards(tmp_path / "all", save, files)):
        for loaded in (weightpack.torch.load_file(folder), weightpack.torch.load_file(str(folder), device="cpu", threads=1)):
            assert sorted(loaded) == names
            assert all(same(loaded[name], tensors[name]) for name in names)
        arrays = weightpack.numpy.load_file(folder, raw=True)
        assert sorted(arrays) == names
        assert all(arrays[name].tobytes() == tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() for name in names)


def test_a_directory_with_a_whole_model_is_that_file(tmp_path):
    """As transformers has it, whatever an index says."""
    folder = shards(tmp_path / "m", safetensors.torch.save_file, {"model.safetensors": {"a": torch.ones(3)}, "x.safetensors": {"b": torch.ones(3)}}, {"c": "y"})
    assert list(weightpack.load_file(folder)) == ["a"]


def test_directories_that_say_not_what_to_load_are_refused(tmp_path):
    one, two = {"a": torch.ones(3)}, {"a": torch.zeros(3)}
    save = safetensors.torch.save_file
    with pytest.raises(OptionError, match=r"no \.safetensors"):
        weightpack.load_file(shards(tmp_path / "none", save, {}))
    with pytest.raises(OptionError, match="of this name") as raised:
        weightpack.load_file(shards(tmp_path / "twice", save, {"x.safetensors": one, "y.safetensors": two}))
    assert "y.safetensors" in str(raised.value)
    for shard in ("y.safetensors", "../none/z.safetensors", "/etc/passwd"):
        with pytest.raises(TruncatedError, match="not in this directory"):
            weightpack.load_file(shards(tmp_path / f"missing{len(shard)}", save, {"x.safetensors": one}, {"a": "x.safetensors", "b": shard}))
    for i, text in enumerate(("[]", "{}", "not json", '{"weight_map": {"a": 3}}')):
        folder = shards(tmp_path / f"odd{i}", save, {"x.safetensors": one})
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CorruptionError):
            weightpack.load_file(folder)
    folder = shards(tmp_path / "two", save, {"x.safetensors": one}, {"a": "x.safetensors"})
    (folder / "model.fp16.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    with pytest.raises(OptionError, match="several indices"):
        weightpack.load_file(folder)


# ---- dtypes that numpy lacks


@pytest.fixture
def no_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # an import fails


NARROW = {"w.bf16": "uint16", "w.e4m3": "uint8"}


def test_without_ml_dtypes_numpy_gets_words_where_it_asks_for_them(path, tensors, no_ml_dtypes):
    loaded = weightpack.load_file(path, raw=True)
    for opened in (weightpack.safe_open(path, raw=True), pickle.loads(pickle.dumps(weightpack.numpy.safe_open(path, raw=True)))):
        for name, dtype in NARROW.items():
            bits = tensors[name].view(getattr(torch, dtype)).numpy()
            for array in (loaded[name], opened.get_tensor(name), weightpack.numpy.load(path.read_bytes(), raw=True)[name]):
                assert array.dtype == dtype
                assert np.array_equal(array, bits)
            assert np.array_equal(opened.get_slice(name)[5:9, 3], bits[5:9, 3])
            assert opened.get_slice(name).get_dtype() == {"w.bf16": "BF16", "w.e4m3": "F8_E4M3"}[name]
        assert opened.get_tensor("w.f32").dtype == np.float32
    opened = weightpack.safe_open(path)
    for read in (lambda: weightpack.load_file(path), lambda: opened.get_tensor("w.bf16"), lambda: opened.get_slice("w.e4m3")[0]):
        with pytest.raises(MissingExtraError, match="raw=True"):
            read()
    with pytest.raises(OptionError, match="numpy"):
        weightpack.safe_open(path, "pt", raw=True)


def test_with_ml_dtypes_numpy_gets_them(path, tensors):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the bf16 of numpy")
    loaded, raw = weightpack.load_file(path), weightpack.load_file(path, raw=True)
    assert loaded["w.bf16"].dtype == ml_dtypes.bfloat16
    for name, dtype in NARROW.items():
        assert raw[name].dtype == dtype
        assert np.array_equal(loaded[name].view(dtype), raw[name])


# ---- types


@pytest.mark.long
def test_a_type_checker_knows_what_comes_out(tmp_path):
    mypy = pytest.importorskip("mypy.api", reason="scripts/check installs mypy")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        from typing import Any, assert_type
        import numpy as np
        import torch
        import weightpack
        import weightpack.numpy
        import weightpack.torch
        from numpy.typing import NDArray

        with weightpack.numpy.safe_open("x") as arrays:
            assert_type(arrays.get_tensor("w"), NDArray[Any])
            assert_type(arrays.get_slice("w")[1:3], NDArray[Any])
            assert_type(arrays.get_tensors(), dict[str, NDArray[Any]])
        with weightpack.torch.safe_open("x", device="cpu") as tensors:
            assert_type(tensors.get_tensor("w"), torch.Tensor)
            assert_type(tensors.get_slice("w")[1:3, 0], torch.Tensor)
            assert_type(tensors.get_tensors(["w"]), dict[str, torch.Tensor])
        assert_type(weightpack.safe_open("x").get_tensor("w"), NDArray[Any])
        assert_type(weightpack.safe_open("x", "pt", "cuda:0").get_tensor("w"), torch.Tensor)
        assert_type(weightpack.safe_open("x", str()).get_tensor("w"), Any)
        assert_type(weightpack.load_file("x"), dict[str, NDArray[Any]])
        assert_type(weightpack.torch.load_file("x"), dict[str, torch.Tensor])
        weightpack.torch.safe_open("x", "np")  # type: ignore[arg-type]
    """)
    )
    said, _, status = mypy.run(["--strict", "--enable-error-code=arg-type", "--python-version=3.12", f"--cache-dir={tmp_path / 'cache'}", str(program)])
    assert status == 0, said
