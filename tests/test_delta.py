# SPDX-License-Identifier: Apache-2.0
"""Deltas of tensors in memory: made and applied with numpy and torch, decoded by the reference decoder, refused where anything is damaged."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import samples
from finetunes import stepped, weights

import weightpack.delta
from weightpack import reference
from weightpack.arrays.contents import contents
from weightpack.errors import CorruptionError, FormatError, LimitError, OptionError, TensorNotFoundError, WrongBaseError
from weightpack.format import delta as format_of_delta
from weightpack.kernels import crc32c_of, use_isa
from weightpack.options import PackOptions


def halves(values):
    return samples.bf16(values).astype("<u2")


@pytest.fixture
def base():
    return {"w": weights(1), "same": weights(2), "count": np.array(7, "<i8"), "bytes": np.arange(256, dtype=np.uint8), "empty": np.empty((0, 4), "<f4")}


@pytest.fixture
def tensors(base):
    random = np.random.default_rng(5).integers(0, 256, 3000, np.uint8)
    return {**base, "w": stepped(base["w"], 3), "count": np.array(8, "<i8"), "new": weights(4, 5000), "noise": random}


def copies(tensors, **more):
    return {name: np.array(tensor) for name, tensor in {**tensors, **more}.items()}


def received(base, tensors):
    """Return what a receiver has before: the base, and room for what is new."""
    return copies(base, **{name: np.zeros_like(tensor) for name, tensor in tensors.items() if name not in base})


def test_back_to_the_last_bit(base, tensors, isa):
    delta = weightpack.delta.encode(tensors, base)
    there = received(base, tensors)
    assert weightpack.delta.apply(delta, there) == list(tensors)
    for name, tensor in tensors.items():
        assert there[name].tobytes() == tensor.tobytes(), name
        assert there[name].shape == tensor.shape
    decoded = reference.decode_delta(delta, {name: tensor.tobytes() for name, tensor in base.items()})
    assert {name: data for name, (_, _, data) in decoded.items()} == {name: tensor.tobytes() for name, tensor in tensors.items()}


def test_it_is_small_and_what_did_not_change_costs_an_entry(base):
    tuned = {name: stepped(weights(n), 30 + n) for n, name in enumerate("abcdefgh")}
    before = {name: weights(n) for n, name in enumerate("abcdefgh")}
    n_bytes = sum(tensor.nbytes for tensor in tuned.values())
    assert len(weightpack.delta.encode(tuned, before)) < 0.55 * n_bytes
    assert len(weightpack.delta.encode(before, before)) < 300


def test_bytes_depend_on_nothing_but_the_tensors(base, tensors):
    deltas = {weightpack.delta.encode(tensors, base, threads=threads) for threads in (1, 3)}
    with use_isa("numpy"):
        deltas.add(weightpack.delta.encode(tensors, base))
    assert len(deltas) == 1


def test_buckets_are_applied_in_any_order(base, tensors):
    asked = []

    def gathered():
        for name, tensor in tensors.items():
            asked.append(name)
            yield name, tensor

    buckets = weightpack.delta.encode_buckets(gathered(), base, bucket_bytes=100_000)
    parts = [next(buckets)]
    assert asked == ["w"]  # no more is gathered than a bucket needs
    parts += buckets
    assert len(parts) > 2
    there = received(base, tensors)
    for part in reversed(parts):
        weightpack.delta.apply(part, there)
    assert all(there[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())
    with pytest.raises(OptionError):
        next(weightpack.delta.encode_buckets(tensors, base, bucket_bytes=0))


def test_nothing_is_changed_by_a_delta_that_does_not_fit(base, tensors):
    delta = weightpack.delta.encode(tensors, base)

    def refused(error, **change):
        there = {**received(base, tensors), **change}
        before = copies({name: tensor for name, tensor in there.items() if tensor is not None})
        there = {name: tensor for name, tensor in there.items() if tensor is not None}
        with pytest.raises(error) as caught:
            weightpack.delta.apply(delta, there)
        assert all(there[name].tobytes() == tensor.tobytes() for name, tensor in before.items())
        return caught.value

    assert refused(WrongBaseError, w=tensors["w"].copy()).tensor == "w"
    other = base["same"].copy()
    other[-1] += 1
    assert refused(WrongBaseError, same=other).tensor == "same"
    assert refused(TensorNotFoundError, new=None).tensor == "new"
    assert refused(OptionError, new=np.zeros((50, 100), "<f4")).tensor == "new"
    assert refused(OptionError, new=np.zeros(5000, "<i4")).tensor == "new"
    frozen = np.zeros(5000, "<f4")
    frozen.flags.writeable = False
    assert refused(OptionError, new=frozen).tensor == "new"


def test_a_base_of_another_shape_or_dtype_is_none(base):
    table = weights(1).reshape(-1, 64)
    for other in (table[:-1], table.astype("<f2"), table.reshape(64, -1)):
        delta = weightpack.delta.encode({"w": table}, {"w": np.ascontiguousarray(other)})
        there = {"w": np.zeros_like(table)}
        weightpack.delta.apply(delta, there)
        assert there["w"].tobytes() == table.tobytes()


def test_profiles(base, tensors):
    delta = weightpack.delta.encode(tensors, base, options=PackOptions(codecs=("zstd",)))
    there = received(base, tensors)
    weightpack.delta.apply(delta, there)
    assert all(there[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())


# ---- torch


def test_torch_tensors_and_modules():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 320), torch.nn.Linear(320, 96)).bfloat16()
    sent = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 1e-3
    delta = weightpack.delta.encode(model.state_dict(), sent)
    engine = torch.nn.Sequential(torch.nn.Linear(96, 320), torch.nn.Linear(320, 96)).bfloat16()
    engine.load_state_dict(sent)
    addresses = [parameter.data_ptr() for parameter in engine.parameters()]
    weightpack.delta.apply(delta, dict(engine.named_parameters()))
    assert [parameter.data_ptr() for parameter in engine.parameters()] == addresses
    assert all(torch.equal(engine.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_and_transposed_tensors():
    """What shares its memory is stored once, and changed once; a view that is not contiguous is changed through a copy."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    table = torch.randn(320, 96)
    base = {"embed": table.clone(), "head": table.clone()}
    tuned = table + torch.randn_like(table) * 1e-4
    alone, tied = weightpack.delta.encode({"embed": tuned}, base), weightpack.delta.encode({"embed": tuned, "head": tuned}, base)
    assert len(tied) < len(alone) + 100
    engine = table.clone()
    weightpack.delta.apply(tied, {"embed": engine, "head": engine})
    assert torch.equal(engine, tuned)
    decoded = reference.decode_delta(tied, {name: tensor.numpy().tobytes() for name, tensor in base.items()})
    assert decoded["head"] == decoded["embed"] == ("F32", (320, 96), tuned.numpy().tobytes())
    with pytest.raises(OptionError, match="shares its memory with 'embed'"):
        engine = table.clone()
        weightpack.delta.apply(weightpack.delta.encode({"embed": tuned, "head": tuned + 1}, base), {"embed": engine, "head": engine})
    assert torch.equal(engine, table)
    engine = table.t().contiguous().t()
    weightpack.delta.apply(alone, {"embed": engine})
    assert torch.equal(engine, tuned)
    assert not engine.is_contiguous()
    array = np.asfortranarray(table.numpy())
    weightpack.delta.apply(alone, {"embed": array})
    assert array.tobytes() == tuned.numpy().tobytes()


def test_dtypes_of_torch():
    torch = pytest.importorskip("torch")
    for dtype in (torch.bool, torch.int64, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.uint16, torch.float64):
        tensor = torch.arange(600).reshape(2, 300).to(dtype)
        there = {"t": torch.zeros_like(tensor)}
        weightpack.delta.apply(weightpack.delta.encode({"t": tensor}, {}), there)
        assert contents(there["t"])[2].tobytes() == contents(tensor)[2].tobytes(), dtype
    with pytest.raises(OptionError, match="complex128"):
        weightpack.delta.encode({"t": torch.zeros(3, dtype=torch.complex128)}, {})


def test_what_is_no_tensor_of_bytes_is_refused():
    torch = pytest.importorskip("torch")
    for tensor in (torch.empty(3, device="meta"), torch.eye(3).to_sparse(), np.array(["text"]), np.arange(3, dtype=">f4")):
        with pytest.raises(OptionError, match="tensor 't'"):
            weightpack.delta.encode({"t": tensor}, {})
    for pairs in ([(3, np.zeros(2))], [("a", np.zeros(2)), ("a", np.ones(2))], [("\udc80", np.zeros(2))]):
        with pytest.raises(OptionError, match="names"):
            weightpack.delta.encode(pairs, {})
    conjugate = torch.view_as_complex(torch.arange(6.0).reshape(3, 2)).conj()
    for view in (conjugate, conjugate.imag):  # what torch has not carried out yet
        there = {"t": torch.zeros_like(view.clone())}
        weightpack.delta.apply(weightpack.delta.encode({"t": view}, {}), there)
        assert torch.equal(there["t"], view.resolve_conj().resolve_neg())
    delta = weightpack.delta.encode({"t": torch.ones(4, 3)}, {})
    for target in (torch.zeros(1, 3).expand(4, 3), np.zeros((4, 3), "<f4").tolist()):
        with pytest.raises(OptionError):
            weightpack.delta.apply(delta, {"t": target})


# ---- damage


def small():
    base = {"w": halves(weights(1, 300)), "same": np.arange(5, dtype=np.uint8)}
    tensors = {"w": halves(stepped(weights(1, 300), 2, 1e-3)), "same": base["same"], "new": np.arange(40, dtype=np.uint8)}
    return base, tensors, weightpack.delta.encode(tensors, base)


def applied(delta, base, tensors):
    there = received(base, tensors)
    weightpack.delta.apply(delta, there)
    return {name: tensor.tobytes() for name, tensor in there.items()}


def test_every_flipped_bit_and_every_truncation():
    base, tensors, delta = small()
    as_bytes = {name: tensor.tobytes() for name, tensor in base.items()}
    for i in range(8 * len(delta)):
        damaged = bytearray(delta)
        damaged[i // 8] ^= 1 << i % 8
        with pytest.raises((FormatError, LimitError)):
            applied(damaged, base, tensors)
        if i % 61 == 0:
            with pytest.raises(reference.FormatError):
                reference.decode_delta(bytes(damaged), as_bytes)
    for n in range(len(delta)):
        with pytest.raises(FormatError):
            applied(delta[:n], base, tensors)
    with pytest.raises(FormatError):
        applied(delta + b"\0", base, tensors)


def entry(name=b"w", storage=0, dtype=b"U8", shape=(4,), base_crc=0, body=0, body_bytes=4, body_crc=None, n_dims=None):
    crc = crc32c_of(b"abcd") if body_crc is None else body_crc
    fixed = struct.pack("<BBBxIIIIQ", storage, len(dtype), len(shape) if n_dims is None else n_dims, len(name), base_crc, crc, body, body_bytes)
    return fixed + dtype + struct.pack(f"<{len(shape)}Q", *shape) + name


def delta_of(*entries, bodies=b"abcd", n=None, table_bytes=None, version=1, reserved=0):
    table = b"".join(entries)
    head = struct.pack(
        "<4sBHxIII", b"\x89WPU", version, reserved, len(entries) if n is None else n, len(table) if table_bytes is None else table_bytes, len(table)
    )
    return head + table + struct.pack("<I", crc32c_of(head + table)) + bodies


BAD = {
    "version": delta_of(entry(), version=2),
    "reserved bytes": delta_of(entry(), reserved=1),
    "too many entries": delta_of(entry(), n=2),
    "too few entries": delta_of(entry(), n=0),
    "a great many entries": delta_of(entry(), n=1 << 31),
    "a table above the limit": delta_of(entry(), table_bytes=(1 << 28) + 1),
    "a table that is no frame": delta_of(entry(), table_bytes=1 << 20),
    "storage": delta_of(entry(storage=4)),
    "dimensions": delta_of(entry(n_dims=65)),
    "a dtype that is none": delta_of(entry(dtype=b"X8")),
    "a dtype that is no text": delta_of(entry(dtype=b"\xff8")),
    "a name that is no text": delta_of(entry(name=b"\xff")),
    "the same name twice": delta_of(entry(), entry(body=1), bodies=b"abcdabcd"),
    "a body that is too short": delta_of(entry(shape=(5,))),
    "a body that is too long": delta_of(entry(shape=(3,))),
    "a record that is longer than the tensor": delta_of(entry(storage=1, shape=(3,))),
    "a record without bytes": delta_of(entry(storage=1, body_bytes=0, body_crc=0), bodies=b""),
    "an unchanged tensor with a body": delta_of(entry(storage=3)),
    "a base that is not needed": delta_of(entry(base_crc=1)),
    "a later body": delta_of(entry(body=1), entry(name=b"v", body=1)),
    "another's body of another shape": delta_of(entry(), entry(name=b"v", shape=(2, 2))),
    "a checksum of the body": delta_of(entry(body_crc=1)),
    "no record": delta_of(entry(storage=1)),
    "a size beyond all": delta_of(entry(shape=(1 << 63, 1 << 63))),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_fields(what):
    names = {"w": np.zeros(4, np.uint8), "v": np.zeros(4, np.uint8)}
    with pytest.raises((FormatError, LimitError)) as caught:
        weightpack.delta.apply(BAD[what], names)
    assert type(caught.value) is not OptionError
    with pytest.raises((reference.FormatError, reference.BaseNotFoundError)):
        reference.decode_delta(BAD[what], {})
    assert not any(tensor.any() for tensor in names.values())


def test_bodies_that_are_shared():
    delta = delta_of(entry(), entry(name=b"v"))
    there = {"w": np.zeros(4, np.uint8), "v": np.zeros(4, np.uint8)}
    weightpack.delta.apply(delta, there)
    assert there["w"].tobytes() == there["v"].tobytes() == b"abcd"
    assert reference.decode_delta(delta, {})["v"] == ("U8", (4,), b"abcd")


def test_what_is_stored_as_standing_alone_has_no_base():
    base, tensors, delta = small()
    head = format_of_delta.head_bytes(memoryview(delta))
    first, *others = format_of_delta.parse_head(memoryview(delta)[:head])
    assert first.storage == format_of_delta.Storage.DIFFERENCE
    forged = format_of_delta.head_of([replace(first, storage=format_of_delta.Storage.PACKED, base_crc=0), *others])
    forged += struct.pack("<I", crc32c_of(forged)) + delta[head + 4 :]
    with pytest.raises(CorruptionError, match="no base"):
        applied(forged, base, tensors)
    with pytest.raises(reference.CorruptError, match="no base"):
        reference.decode_delta(forged, {name: tensor.tobytes() for name, tensor in base.items()})
