# SPDX-License-Identifier: Apache-2.0
"""Packed files straight into a GPU's memory. On a machine without one the host's memory is the device's, and the kernel compiled for the host decodes."""

from __future__ import annotations

import ctypes
import os
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from elements import elements, kinds_of
from gpu_host import HostDecoder, compile_host

from weightpack.errors import ChecksumError, FormatError
from weightpack.format.layouts import LAYOUTS, layout_of
from weightpack.gpu.decoder import CHUNK
from weightpack.options import PackOptions, load_profile

torch = pytest.importorskip("torch")
import weightpack.torch as wt  # noqa: E402
from weightpack.arrays.memory import TORCH_NAMES  # noqa: E402
from weightpack.reading import on_gpu  # noqa: E402

OPTIONS = {
    "fast": load_profile("fast"),
    "dense": load_profile("dense"),
    "rans": PackOptions(codecs=("rans",), chunk_elems=1 << 12),
    "zstd": PackOptions(codecs=("zstd",), chunk_elems=1 << 12),
}


def tensor_of(dtype, n, kind):
    data = elements(layout_of(dtype), n, kind)
    if dtype == "BOOL":
        data = data & 1
    return torch.from_numpy(np.array(data)).view(getattr(torch, TORCH_NAMES[dtype]))


def bytes_of(tensor):
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def tensors():
    """Every dtype, many kinds of elements, several lengths; as matrices where the length allows."""
    made = {}
    for dtype in ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2", "I8", "U8", "I16", "I32", "I64", "BOOL"):
        layout = layout_of(dtype)
        for kind in ("weights", *kinds_of(layout)):
            for n in (1, 130, 10_000):
                tensor = tensor_of(dtype, n, kind)
                made[f"{dtype}.{kind}.{n}"] = tensor.reshape(50, 200) if n == 10_000 else tensor
    made |= {f"tiny.{i}": tensor_of("F32", 4, "weights") + i for i in range(80)}  # a group
    made["empty"] = torch.empty(0, 3)
    made["scalar"] = torch.tensor(2.5)
    return made


class OnHost:
    """A GpuDecoder whose device is the host."""

    def __init__(self, decode):
        self.device, self._decode, self.n_decoded = torch.device("cpu"), decode, 0

    def active(self):
        return nullcontext()

    def pinned(self, n_bytes):
        return torch.empty(n_bytes, dtype=torch.uint8)  # torch's memory is aligned to 64 bytes

    def mark(self):
        return SimpleNamespace(synchronize=lambda: None)

    def launch(self, layout, chunks, n_chunks, status):
        described = np.ctypeslib.as_array((ctypes.c_uint8 * (n_chunks * CHUNK.itemsize)).from_address(chunks)).view(CHUNK)
        statuses = np.ctypeslib.as_array((ctypes.c_int32 * n_chunks).from_address(status))
        for i, chunk in enumerate(described):
            assert chunk["src"] % 16 == 0
            assert chunk["dst"] % 16 == 0
            statuses[i] = self._decode.at(LAYOUTS[layout], *(int(chunk[field]) for field in ("src", "src_bytes", "n_elems", "number", "crc", "dst")))
            self.n_decoded += int(statuses[i] == 0)


@pytest.fixture(scope="module")
def host_decoder(tmp_path_factory):
    return HostDecoder(compile_host(tmp_path_factory.mktemp("gpu_host") / "gpu_host.so", "-shared", "-fPIC"))


@pytest.fixture(autouse=True)
def device(monkeypatch, request):
    """The device that tests load to. A GPU that can't be used would be the CPU's work, and a warning: an error here."""
    monkeypatch.setenv("WEIGHTPACK_GPU", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if torch.cuda.is_available():
            yield "cuda"
            return
        decoder = OnHost(request.getfixturevalue("host_decoder"))
        monkeypatch.setattr("weightpack.reading.tensors.gpu_decoder", lambda _: decoder if os.environ["WEIGHTPACK_GPU"] == "1" else None)
        yield "cpu"
        assert decoder.n_decoded or "nothing" in request.node.name


@pytest.mark.parametrize("options", OPTIONS)
def test_all_tensors(tmp_path, tensors, options, device):
    wt.save_file(tensors, tmp_path / "m.safetensors", options=OPTIONS[options])
    loaded = wt.load_file(tmp_path / "m.safetensors", device=device)
    assert set(loaded) == set(tensors)
    for name, tensor in loaded.items():
        assert tensor.device.type == device
        assert tensor.dtype == tensors[name].dtype
        assert tensor.shape == tensors[name].shape
        assert bytes_of(tensor) == bytes_of(tensors[name]), name


def test_small_batches(tmp_path, tensors, monkeypatch, device):
    monkeypatch.setattr(on_gpu, "_BATCH_BYTES", 100_000)
    monkeypatch.setattr(on_gpu, "_READ_BYTES", 10_000)
    wt.save_file(tensors, tmp_path / "m.safetensors", options=OPTIONS["rans"])
    for name, tensor in wt.load_file(tmp_path / "m.safetensors", device=device, threads=3).items():
        assert bytes_of(tensor) == bytes_of(tensors[name]), name


def test_slices(tmp_path, tensors, device):
    wt.save_file(tensors, tmp_path / "m.safetensors", options=OPTIONS["rans"])
    with wt.safe_open(tmp_path / "m.safetensors", device=device) as opened:
        for name in ("BF16.weights.10000", "F32.gaussian.10000", "I8.gaussian.10000", "F64.weights.10000"):
            part = opened.get_slice(name)
            for key in (np.s_[3:27], np.s_[30:], np.s_[:, 5:9], np.s_[10:20, ::2], 7, np.s_[-1]):
                assert bytes_of(part[key]) == bytes_of(tensors[name][key]), (name, key)
        assert bytes_of(opened.get_tensor("BF16.weights.130")) == bytes_of(tensors["BF16.weights.130"])


def test_tied_and_on_another_stream(tmp_path, device):
    weight = tensor_of("BF16", 300_000, "weights")
    wt.save_file({"a": weight, "b": weight.clone()}, tmp_path / "m.safetensors")
    with torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext():
        loaded = wt.load_file(tmp_path / "m.safetensors", device=device)
        assert bytes_of(loaded["a"]) == bytes_of(loaded["b"]) == bytes_of(weight)


def test_damage_is_the_error_that_the_cpu_raises(tmp_path, device):
    path = tmp_path / "m.safetensors"
    wt.save_file({"w": tensor_of("BF16", 60_000, "weights")}, path, options=OPTIONS["rans"])
    data = bytearray(path.read_bytes())
    rng, raised = np.random.default_rng(3), set()
    for at in [len(data) - 40, *rng.integers(len(data) // 3, len(data), 20).tolist()]:
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        try:
            on_cpu = wt.load_file(path)["w"]
        except FormatError as error:
            with pytest.raises(type(error)) as caught:
                wt.load_file(path, device=device)
            assert str(caught.value) == str(error)
            raised.add(type(error))
        else:
            assert bytes_of(on_cpu) == bytes_of(wt.load_file(path, device=device)["w"])
    assert ChecksumError in raised


def test_nothing_is_decoded_there_unless_it_is_asked_for(tmp_path, tensors, monkeypatch, device):
    monkeypatch.setenv("WEIGHTPACK_GPU", "0")
    monkeypatch.setattr(on_gpu, "fill_on_gpu", None)
    wt.save_file({"w": tensors["BF16.weights.10000"]}, tmp_path / "m.safetensors")
    assert bytes_of(wt.load_file(tmp_path / "m.safetensors", device=device)["w"]) == bytes_of(tensors["BF16.weights.10000"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_decoded_there_and_a_reason_is_said():
    on_gpu._say.cache_clear()
    with pytest.warns(RuntimeWarning, match="on the CPU: torch sees no CUDA device"):
        assert on_gpu.gpu_decoder(torch.device("cuda")) is None
    assert on_gpu.gpu_decoder(torch.device("cuda", 0)) is None  # said once
    assert on_gpu.gpu_decoder(torch.device("cpu")) is None
