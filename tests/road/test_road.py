# SPDX-License-Identifier: Apache-2.0
"""pack, then unpack: the same SHA-256 for real models and for odd files, on every backend and thread count, from identical packed bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import safetensors
import samples

import weightpack
from weightpack import kernels, reference


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def road(source, tmp_path, **kwargs):
    """Pack and unpack; return the packed bytes."""
    packed, back = tmp_path / "packed.safetensors", tmp_path / "back.safetensors"
    weightpack.pack(source, packed, overwrite=True, **kwargs)
    weightpack.unpack(packed, back, overwrite=True, threads=kwargs.get("threads"))
    assert sha256(back) == sha256(source)
    return packed.read_bytes()


def variant(name, folder, tmp_path):
    """Return a real model's file in another dtype."""
    source = folder / "model.safetensors"
    if name == "as shipped":
        return source
    import torch
    from safetensors.torch import load_file, save_file

    def int8(tensor):
        scale = tensor.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
        return (tensor / scale).round().to(torch.int8)

    casts = {
        "bf16": lambda t: t.to(torch.bfloat16),
        "fp16": lambda t: t.to(torch.float16),
        "e4m3": lambda t: (t * 8).to(torch.float8_e4m3fn),
        "e5m2": lambda t: t.to(torch.float8_e5m2),
        "int8": int8,
        "bf16 upcast": lambda t: t.to(torch.bfloat16).to(torch.float32),
    }
    path = tmp_path / "variant.safetensors"
    save_file({key: casts[name](t) if t.is_floating_point() and t.ndim else t for key, t in load_file(source).items()}, path, {"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("name", "dtype", "at_most"),
    [
        ("minilm", "as shipped", 0.830),
        ("minilm", "bf16", 0.666),
        ("minilm", "fp16", 0.87),
        ("minilm", "e4m3", 0.88),
        ("minilm", "e5m2", 0.82),
        ("minilm", "int8", 0.95),
        ("minilm", "bf16 upcast", 0.34),
        ("mgm", "as shipped", 0.70),
        ("wordllama", "as shipped", 0.87),
    ],
)
def test_real_model_round_trips_and_shrinks(model, tmp_path, name, dtype, at_most):
    source = variant(dtype, model(name), tmp_path)
    packed = road(source, tmp_path)
    assert len(packed) <= at_most * source.stat().st_size
    with safetensors.safe_open(tmp_path / "packed.safetensors", "pt") as opened, safetensors.safe_open(source, "pt") as original:
        assert sorted(opened.keys()) == sorted(original.keys())
        assert (original.metadata() or {}).items() <= opened.metadata().items()
        for key in opened.keys():
            assert opened.get_tensor(key).nbytes >= 0


def test_packed_bytes_are_the_same_on_every_backend_and_thread_count(tmp_path):
    source = tmp_path / "mixed.safetensors"
    source.write_bytes(samples.mixed_file())
    packed = set()
    for isa in kernels.available_isas():
        with kernels.use_isa(isa):
            packed |= {road(source, tmp_path, threads=threads) for threads in (1, 2)}
    assert len(packed) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "dtype"), [*(("minilm", dtype) for dtype in ("as shipped", "bf16", "fp16", "e4m3", "int8")), ("mgm", "as shipped"), ("wordllama", "as shipped")]
)
def test_real_model_packs_to_the_same_bytes_on_every_backend(model, tmp_path, name, dtype):
    source = variant(dtype, model(name), tmp_path)
    digests = set()
    for isa in kernels.available_isas():
        with kernels.use_isa(isa):
            for threads in (2,) if isa == "numpy" else (1, 2):
                digests.add(hashlib.sha256(road(source, tmp_path, threads=threads)).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("name", list(samples.foreign_files()))
def test_foreign_file_round_trips(isa, tmp_path, name):
    source = tmp_path / "foreign.safetensors"
    source.write_bytes(samples.foreign_files()[name])
    packed = road(source, tmp_path)
    assert reference.decode_file(packed) == source.read_bytes()
    with safetensors.safe_open(tmp_path / "packed.safetensors", "np") as opened:
        assert sorted(opened.keys()) == sorted(reference.decode_tensors(packed))


def test_reference_decoder_agrees_on_every_tensor(tmp_path):
    source = tmp_path / "mixed.safetensors"
    source.write_bytes(samples.mixed_file())
    packed = road(source, tmp_path)
    assert reference.decode_file(packed) == source.read_bytes()
    tensors = reference.decode_tensors(packed)
    with weightpack.safe_open(tmp_path / "packed.safetensors", "pt") as opened:
        import torch

        for name, (_, _, data) in tensors.items():
            assert opened.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes() == data


def test_thousand_tiny_tensors_shrink(tmp_path):
    source = tmp_path / "tiny.safetensors"
    source.write_bytes(samples.tiny_tensors())
    packed = road(source, tmp_path)
    # Exponents alone give 83 %; the rest is what 1,000 entries of header and index cost.
    assert len(packed) < 0.875 * source.stat().st_size
    with safetensors.safe_open(tmp_path / "packed.safetensors", "np") as opened:
        assert len(list(opened.keys())) == 1000


def test_equal_tensors_are_stored_once(tmp_path):
    data = samples.weights(100_000, "BF16")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    one.write_bytes(samples.safetensors_file({"a": ("BF16", (100_000,), data)}))
    two.write_bytes(samples.safetensors_file({"a": ("BF16", (100_000,), data), "b": ("BF16", (1000, 100), data)}))
    alone = len(road(one, tmp_path))
    assert len(road(two, tmp_path)) < alone + 400
    (report,) = weightpack.inspect(tmp_path / "packed.safetensors")
    assert [t.codec for t in report.tensors] == ["rans128x8", "tied to a"]


def test_rows_of_fp16_values_inside_fp32_shrink(tmp_path):
    values = np.frombuffer(samples.weights(384 * 2000, "F32"), "<f4").copy().reshape(2000, 384)
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(samples.safetensors_file({"w": ("F32", values.shape, values.tobytes())}))
    values[::10] = values[::10].astype("<f2")
    rows = tmp_path / "rows.safetensors"
    rows.write_bytes(samples.safetensors_file({"w": ("F32", values.shape, values.tobytes())}))
    # A tenth of the rows needs 13 bits less an element.
    saved = len(road(plain, tmp_path)) - len(road(rows, tmp_path))
    assert saved > 0.98 * 200 * 384 * 13 / 8 - 2000


def test_incompressible_file_grows_by_no_more_than_its_index(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    source = tmp_path / "noise.safetensors"
    source.write_bytes(samples.safetensors_file({"a": ("U8", (200_000,), data[:200_000]), "b": ("I32", (25_000,), data[200_000:])}))
    packed = road(source, tmp_path)
    assert len(packed) < source.stat().st_size + 700
    with safetensors.safe_open(tmp_path / "packed.safetensors", "np") as opened:
        assert opened.get_tensor("a").tobytes() == data[:200_000]
        assert opened.get_slice("b").get_dtype() == "I32"


@pytest.mark.parametrize("codec", ["auto", "rans", "huffman", "zstd", "raw"])
def test_each_codec_round_trips(isa, tmp_path, codec):
    source = tmp_path / "mixed.safetensors"
    source.write_bytes(samples.mixed_file())
    packed = road(source, tmp_path, options=weightpack.load_profile(codec=codec))
    assert reference.decode_file(packed) == source.read_bytes()


def test_thorough_profile_is_no_larger(tmp_path):
    source = tmp_path / "mixed.safetensors"
    source.write_bytes(samples.mixed_file())
    assert len(road(source, tmp_path, options=weightpack.load_profile("thorough"))) <= len(road(source, tmp_path))


def test_unchanged_tensor_packs_to_unchanged_bytes(tmp_path):
    a, b = samples.weights(300_000, "BF16"), samples.weights(50_000, "F32")
    streams = []
    for first in (b, b[::-1]):
        source = tmp_path / "source.safetensors"
        source.write_bytes(samples.safetensors_file({"first": ("F32", (50_000,), first), "second": ("BF16", (300_000,), a)}))
        road(source, tmp_path)
        with safetensors.safe_open(tmp_path / "packed.safetensors", "np") as opened:
            streams.append(opened.get_tensor("second").tobytes())
    assert streams[0] == streams[1]
