# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints of torch.distributed.checkpoint: two processes that shard in different ways, one process, damage, and what is not packed."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gc
import hashlib
import importlib.util
import io
import json
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import dcp_processes as work
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import weightpack
import weightpack.dcp
from weightpack import reference
from weightpack.dcp import WeightpackExtension
from weightpack.errors import ChecksumError, FormatError, LimitError, NotPackedError, OptionError, TruncatedError, UnsupportedError
from weightpack.kernels import active
from weightpack.options import load_profile
from weightpack.reading.item import covered_bytes, decode_rest, unpack_item
from weightpack.writing.item import pack_item

pytestmark = [
    # One process saves and loads here, which is what these tests are about.
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
]
FAST = load_profile()
ROOT = Path(__file__).resolve().parents[1]


def saved(value):
    """Return what torch.save writes: what DCP hands to a transform."""
    room = io.BytesIO()
    torch.save(value, room)
    return room.getvalue()


def second_moments(rows=512, cols=512):
    """Return a matrix as Adam's second moment of one is: nearly the product of a scale for each row and one for each column."""
    generator = torch.Generator().manual_seed(5)
    scales = torch.exp(3 * torch.randn(rows, 1, generator=generator)) * torch.exp(3 * torch.randn(1, cols, generator=generator))
    return 1e-12 * scales * (1 + 0.3 * torch.rand(rows, cols, generator=generator))


def packed(source, options=FAST, **kwargs):
    return b"".join(pack_item(source, options, **kwargs))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints that two processes have saved."""
    folder = tmp_path_factory.mktemp("dcp")
    dcp_save_hf(folder)
    torch.multiprocessing.spawn(work.save, (folder,), nprocs=work.WORLD)
    return folder


def dcp_save_hf(folder):
    """Save in the layout of Hugging Face, in one process, and pack it in place, as docs/DCP.md says."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        dcp.save(work.weights(), storage_writer=HuggingFaceStorageWriter(str(folder / "hf")))
    (file,) = (folder / "hf").glob("*.safetensors")
    plain = file.stat().st_size
    weightpack.pack(file, folder / "packed.safetensors")
    (folder / "packed.safetensors").replace(file)
    assert file.stat().st_size < 0.85 * plain


def bytes_in(folder):
    return sum(file.stat().st_size for file in folder.glob("*.distcp"))


def test_two_processes_load_what_was_sharded_otherwise(checkpoints):
    torch.multiprocessing.spawn(work.load, (checkpoints,), nprocs=work.WORLD)


@pytest.mark.parametrize("name", ["sync", "async", "threads"])
def test_one_process_loads_what_two_have_saved(checkpoints, name):
    state = {key: torch.zeros_like(tensor) for key, tensor in work.tensors().items()}
    state |= {"scalar": torch.zeros(()), **dict.fromkeys(work.OBJECTS), "nested": {"lr": None, "seen": [None] * 3}}
    dcp.load(state, storage_reader=weightpack.dcp.reader(checkpoints / name, threads=None))
    for key, expected in work.tensors().items():
        assert work.same(state[key], expected), key
    assert {key: state[key] for key in work.OBJECTS} == work.OBJECTS


def test_checkpoint_is_smaller_and_says_what_it_is(checkpoints):
    assert bytes_in(checkpoints / "sync") < 0.75 * bytes_in(checkpoints / "plain")
    assert bytes_in(checkpoints / "sync") == bytes_in(checkpoints / "async")
    storage = weightpack.dcp.reader(checkpoints / "sync").read_metadata().storage_data
    assert len(storage) > 20
    assert all(info.transform_descriptors == ["stream.weightpack/1"] for info in storage.values())


def test_one_process_goes_on_with_what_two_have_trained(checkpoints):
    """Model and AdamW of FSDP, loaded whole, take the same step: the optimizer's state is exact too."""
    model = work.network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.load({"model": model_state, "optimizer": optimizer_state}, storage_reader=weightpack.dcp.reader(checkpoints / "trained"))
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    assert all(state["step"] == 3 for state in optimizer.state.values())
    plain, packed = (checkpoints / "trained-again" / kind for kind in ("plain", "packed"))
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(plain))
    dcp.save(state, storage_writer=weightpack.dcp.writer(packed, options=load_profile("dense")))
    assert bytes_in(packed) < 0.8 * bytes_in(plain)
    for folder in (plain, packed):
        again = work.network()
        optimizer_again = torch.optim.AdamW(again.parameters(), lr=1e-3)
        model_state, optimizer_state = get_state_dict(again, optimizer_again)
        dcp.load({"model": model_state, "optimizer": optimizer_state}, storage_reader=weightpack.dcp.reader(folder))
        set_state_dict(again, optimizer_again, model_state_dict=model_state, optim_state_dict=optimizer_state)
        for one, other in zip(optimizer.state.values(), optimizer_again.state.values(), strict=True):
            assert all(work.same(one[key], other[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
        assert all(work.same(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_without_the_registry_loading_fails(checkpoints):
    with pytest.raises(CheckpointException, match=r"stream\.weightpack"):
        dcp.load({"f32": torch.zeros(300, 258)}, storage_reader=dcp.FileSystemReader(checkpoints / "sync"))


def test_same_state_gives_same_bytes(checkpoints, tmp_path):
    state = {**work.tensors(), **work.OBJECTS}
    for name, kwargs in (("a", {}), ("b", {}), ("c", {"threads": 2, "verify": False})):
        dcp.save(state, storage_writer=weightpack.dcp.writer(tmp_path / name, **kwargs))
    (first,) = {(tmp_path / name / "__0_0.distcp").read_bytes() for name in "abc"}
    assert len(first) < bytes_in(checkpoints / "plain")
    for file in (checkpoints / "sync").glob("*.distcp"):
        assert file.read_bytes() == (checkpoints / "async" / file.name).read_bytes()


def test_hugging_face_reader_reads_packed_files(checkpoints):
    weightpack.enable()
    try:
        state = {key: torch.zeros_like(tensor) for key, tensor in work.weights().items()}
        dcp.load(state, storage_reader=HuggingFaceStorageReader(str(checkpoints / "hf")))
    finally:
        weightpack.disable()
    assert all(work.same(state[key], tensor) for key, tensor in work.weights().items())


def test_through_fsspec(tmp_path):
    url = f"file://{tmp_path}/remote"
    dcp.save(work.weights(), storage_writer=weightpack.dcp.writer(url))
    assert bytes_in(tmp_path / "remote") < 0.75 * sum(tensor.nbytes for tensor in work.weights().values())
    state = {key: torch.zeros_like(tensor) for key, tensor in work.weights().items()}
    dcp.load(state, storage_reader=weightpack.dcp.reader(url))
    assert all(work.same(state[key], tensor) for key, tensor in work.weights().items())


ITEMS = {
    "weights": saved(torch.randn(600, generator=torch.Generator().manual_seed(1)).bfloat16()),  # a record
    "kept storage": saved(torch.randint(0, 256, (700,), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))),
    "scalar": saved(torch.tensor(3.0)),
    "object": saved({"lr": 1e-4, "betas": (0.9, 0.999)}),
    "kept": np.random.default_rng(3).bytes(300),
    "several": saved([torch.zeros(900), "x" * 70, torch.randn(500, generator=torch.Generator().manual_seed(4))]),
    "empty": b"",
}

# Items as the first release wrote them, and the SHA-256 of what they hold. They are never changed.
GOLDEN = {
    "scalar": (
        "iC0iW0Ricz6A~!~00000004IY0000000000001bpFa2OC1#JTWgaaul1}Rc;2Xt`=QgI0Y5Wtm=0001vEhzv1KtPGn;iok>H!(RkGdVamHZd?aH8M9iIi}6m``!{D5MyWT0S}-+GzW?)"
        "G{J!jbr~8taUhUbg8_@AIq*t-C{~5BL)T_na!n8mTZAGdtp",
        "1719ffc14bd761b46af3ef3683d7fabf82bc924755e18fc2827c222dbab58770",
    ),
    "record": (
        "iC0iW0Re5x5_KsG00000004#n0000000031006)O000000000400000001xm00000008sUh2|)=Fa2OC1?2+(qytR=0!;t{Z!exmn*aa+n;;xa)4nPILq9Y%IXN&mGc`9bF*P_iIXN*l"
        "FeEo^bL-Fs2L}lU000008=xRllWEUD<B@vdyB*qeqB(wiLPz0nq2^F5b1smqEi6){bg!8BPBsw5>UZo)BWTfMEQ(pt@4$95im6=z1pojD0{{R30RR91{*us=00RI30RaF20RaF200000"
        "e*gdg000000000000000",
        "7537a116a9ac47accf29f6d0e196d2e48c3a302b1497c65d5e4abbcdbed7f6bc",
    ),
    "kept part": (
        "iC0iW0Re=4_2DT900000006E40000000031006)O0000000002000000000200000008E=DRC&ZFa2OC1tkRlqy=4Z009CDaRUSeO#lLPaRyOK08Ib_g>eT62`N%>3UqM`QgIAnkOai4"
        "n*aa+n;;z3i~Df^Lq9b+Gcz?aH8(dnH#apgI5IUdGyn6oI_uB`1qBBM00000AfS<5Q?t0V+)(q(9w8kL9bHil8a+ov$>pMCqgdi#;9Iq@h!QCtWn17(Ac`vQY+9ohT@oLQOBz)?&vj#V"
        "ovw)EC`xG!C7#^6AA6<WCkEEa90fT7R?EUl?yl%l`(QX1k$@UxcT6(@FM6nkmCUhRXN-Q5ahLuqJdE$IhZM)r_S$o7)ipOd%mESkgcx*$@epeszm#65kBVO#;zCcM={qCT7h_=2;o<K}"
        "$fD%R>qqnE$s~*H3eGU>(AG<7%}4*H_+C+E+)32KL^6pYQ(dH2ti)=TD5TpB9D2xGvi%wR*MT^hMRxGnOChv|#`bPkBA+Qf5JXkeYb+|Nkj7A{q7ClzW0Us+s|ZwD)j(wy!RR1@CPwE-"
        "ITn4EwVW?`j^yHv&x*0;a+|mMvMV3=rShq`NLg|I33-AKG}xDDkgp!?xxpAu4s{*Ez(b4t%~%znOtdK`#B>s8Ni~1??e&sw{{UirVVKyT*EV)O{NGd*LpIr3QoeJ~qx~o?ybmr0oyR|i"
        "a80X0o`tUfZ;i$4Ka_m7T?^e-U$($NSyI!Hb@~#$1*j9_^5ABgX?_a_uxcA69R$fLl|Ar$D{lxbGORajn|ov+x^lw~i8S=}qanP3Gmn_*P?`s@+d&DL5e(%6M&rLuZQ3Uj%hHH<Vd}fB"
        "&`x-8oP$kb(xGUk@fC$;h@dgI;Pm;uxZabkQCkC!FbZves@-@5zRu@Df5jT!v$f?qMOY(Tvn0Ex3_Cm-xt%@ggH<su",
        "fa28a669fea151ab5fccf6b890280c5ba60d9c3ffab20d22508a2ba7c59933c5",
    ),
    "kept": ("iC0iW0RR{O_9bg&aC8", "79f076abdd19a752db7267bfff2f9022161d120dea919fdaca2ffdfc24ca8c96"),
}


@pytest.mark.parametrize("profile", ["fast", "dense"])
@pytest.mark.parametrize("name", ITEMS)
def test_items(name, profile):
    source = ITEMS[name]
    item = packed(source, load_profile(profile))
    assert unpack_item(item).getvalue() == reference.decode_item(item) == source
    assert packed(bytearray(source), load_profile(profile), threads=2, verify=False) == item
    assert len(item) <= len(source) + 10
    if not name.startswith(("kept", "empty")):
        assert len(item) < 0.85 * len(source)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_of_an_optimizer_has_its_scales(dtype):
    """Rows go on where a storage is cut into parts, and a row may begin anywhere in a part."""
    source = saved(second_moments(1500, 6007).to(dtype))  # 36 MB in fp32: two parts
    item = packed(source)
    assert len(item) < 0.93 * len(packed(source, dataclasses.replace(FAST, scales=False)))
    assert unpack_item(item).getvalue() == source
    assert packed(source, threads=2) == item
    small = saved(second_moments().to(dtype))
    assert reference.decode_item(packed(small)) == small


def test_what_surrounds_small_tensors_is_small():
    assert len(packed(saved(torch.tensor(3.0)))) < 0.15 * len(saved(torch.tensor(3.0)))
    assert len(packed(saved(torch.ones(50)))) < 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex128, torch.float8_e4m3fn], ids=str)
def test_dtypes_and_views(dtype):
    tensor = (torch.randn(130, 70) * 3).to(dtype)
    for value in (tensor, tensor.t(), tensor[3:50:2], torch.nn.Parameter(tensor, requires_grad=False)):
        source = saved(value)
        assert unpack_item(packed(source)).getvalue() == source


def test_storages_that_are_cut():
    tensor = torch.zeros(9_000_001, dtype=torch.int32)
    tensor[::1000] = torch.randint(-100, 100, (9001,), dtype=torch.int32)
    source = saved([tensor, tensor[:5].clone()])
    item = packed(source)
    assert len(item) < 0.2 * len(source)
    assert unpack_item(item, threads=2).getvalue() == source


def test_stream():
    """Written once, at the first close, whatever the pieces; never by a destructor."""
    source, extension = ITEMS["weights"], WeightpackExtension()

    class Output(io.BytesIO):
        closed_times = 0

        def close(self):
            self.closed_times += 1

    output = Output()
    stream = extension.transform_to(output)
    for i in range(0, len(source), 97):
        assert stream.write(memoryview(source)[i : i + 97]) == len(source[i : i + 97])
    stream.write(np.empty(0, np.uint16))
    assert output.getvalue() == b""
    stream.close()
    stream.close()
    assert (output.getvalue(), output.closed_times) == (packed(source), 1)
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"x")

    output = Output()
    stream = extension.transform_to(output)
    stream.write(source)
    del stream
    gc.collect()
    assert (output.getvalue(), output.closed_times) == (b"", 0)

    class Trickle(io.BytesIO):
        def read(self, n=-1):
            return super().read(min(n, 100) if n >= 0 else 100)

    back = extension.transform_from(Trickle(packed(source)))
    assert back.seekable()
    assert back.read() == source


@pytest.mark.parametrize("name", [name for name in ITEMS if name != "empty"])
def test_every_flipped_bit_and_every_truncation_of_an_item(name):
    source, item = ITEMS[name], packed(ITEMS[name])
    _, n_rest, n_parts = struct.unpack_from("<QQI", item, 10)
    frame = range(30 + 28 * n_parts, 30 + 28 * n_parts + n_rest) if item[5] else range(0)
    for i in range(8 * len(item)):
        damaged = bytearray(item)
        damaged[i // 8] ^= 1 << i % 8
        try:
            decoded = unpack_item(damaged).getvalue()
        except (FormatError, LimitError):
            if i % 61 == 0:  # the reference decoder takes its time
                with pytest.raises(reference.FormatError):
                    reference.decode_item(bytes(damaged))
            continue
        assert reference.decode_item(bytes(damaged)) == decoded
        assert i // 8 in frame  # the header of a zstd frame has bits that nothing depends on; the checksum is of what the frame holds
        assert decoded == source
    for n in range(len(item)):
        with pytest.raises(FormatError):
            unpack_item(item[:n])
        if n % 7 == 0:
            with pytest.raises(reference.FormatError):
                reference.decode_item(item[:n])
    with pytest.raises(FormatError):
        unpack_item(item + b"\0")


def test_damaged_files_of_a_checkpoint(tmp_path):
    weights = torch.randn(40, 40, generator=torch.Generator().manual_seed(7)).bfloat16()  # always the same, so that each bit that is flipped matters
    state = {"w": weights, "scalar": torch.tensor(2.0), "object": {"a": [1, "b"]}}
    dcp.save(state, storage_writer=weightpack.dcp.writer(tmp_path / "c"))
    (file,) = (tmp_path / "c").glob("*.distcp")
    good = file.read_bytes()

    def failure():
        target = {"w": torch.zeros(40, 40).bfloat16(), "scalar": torch.tensor(0.0), "object": {"a": [0, ""]}}
        with pytest.raises(CheckpointException) as caught:
            dcp.load(target, storage_reader=weightpack.dcp.reader(tmp_path / "c"))
        ((error, _),) = caught.value.failures.values()
        return error

    for i in range(0, len(good), 41):
        file.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        assert isinstance(failure(), FormatError | LimitError), i
    for n in range(0, len(good), 157):
        file.write_bytes(good[:n])
        assert isinstance(failure(), FormatError), n
    file.write_bytes(good)
    target = {"w": torch.zeros(40, 40).bfloat16()}
    with pytest.raises(CheckpointException) as caught:
        dcp.load(target, storage_reader=weightpack.dcp.reader(tmp_path / "c", max_bytes=1000))
    assert isinstance(caught.value.failures[0][0], LimitError)


def sealed(sizes, rest=b"", stored=None, parts=b""):
    """Build a packed item whose checksum is right, whatever it says."""
    crc32c = active().crc32c
    head = b"\x89WPD\x01\x01"
    crc = crc32c(rest, crc32c(sizes, crc32c(head)))
    return head + struct.pack("<I", crc) + sizes + (rest if stored is None else stored) + parts


def test_hostile_items():
    entry = struct.Struct("<QQQI").pack
    for item, error in {
        sealed(struct.pack("<QQI", 1 << 62, 0, 0)): LimitError,
        sealed(struct.pack("<QQI", 1 << 39, 0, 0)): FormatError,
        sealed(struct.pack("<QQI", 1 << 39, 8, 0), b"", b"\x28\xb5\x2f\xfd" + bytes(4)): FormatError,
        sealed(struct.pack("<QQI", 0, 0, (1 << 32) - 1)): TruncatedError,
        sealed(struct.pack("<QQI", 10, (1 << 64) - 1, 0)): TruncatedError,
        sealed(struct.pack("<QQI", 5, 0, 1) + entry(0, 5, 0, 0)): FormatError,  # an empty part
        sealed(struct.pack("<QQI", 5, 0, 1) + entry(0, 5, 6, 0), parts=bytes(6)): FormatError,  # larger than what it stands for
        sealed(struct.pack("<QQI", 5, 0, 1) + entry((1 << 64) - 5, 5, 5, 0), parts=bytes(5)): FormatError,
        sealed(struct.pack("<QQI", 1 << 39, 0, 1) + entry(0, 1 << 39, 16, 0), parts=bytes(16)): FormatError,  # a record of no layout
        b"\x89WPD\x02\x00" + bytes(4): UnsupportedError, b"\x89WPT\x01\x00" + bytes(4): NotPackedError, b"": TruncatedError,
        b"\x89WPD\x01\x00" + bytes(4): ChecksumError,
    }.items():  # fmt: skip
        with pytest.raises(error):
            unpack_item(item)
    assert unpack_item(sealed(struct.pack("<QQI", 5, 5, 0), b"abcde")).getvalue() == b"abcde"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_sealed_items_never_do_worse_than_our_errors(data):
    """Tables and parts of any content, with the checksum that belongs to them."""
    number = st.one_of(st.integers(0, 40), st.sampled_from([1 << 31, 1 << 39, (1 << 64) - 1]))
    rest, parts = data.draw(st.binary(max_size=30)), data.draw(st.binary(max_size=80))
    n_parts = data.draw(st.integers(0, 3))
    table = b"".join(struct.pack("<QQQI", *(data.draw(number) for _ in range(3)), data.draw(st.integers(0, 9))) for _ in range(n_parts))
    sizes = struct.pack("<QQI", data.draw(number), data.draw(st.one_of(st.just(len(rest)), number)), n_parts) + table
    with contextlib.suppress(FormatError, LimitError):
        unpack_item(sealed(sizes, rest, parts=parts))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_records_of_any_content(data):
    """The checksums of the item and of its parts are right, what they are of is not: the record finds it."""
    item = bytearray(packed(ITEMS["weights"]))
    _, n_rest, n_parts = struct.unpack_from("<QQI", item, 10)
    rest = bytes(decode_rest(bytes(item[30 + 28 * n_parts :][:n_rest]), rest_bytes(item)))
    at = 30 + 28 * n_parts + n_rest
    begins = [at]
    for i in range(n_parts):
        begins.append(begins[-1] + struct.unpack_from("<QQQI", item, 30 + 28 * i)[2])
    chunk_blocks = {begin + i for begin in begins for i in (2, 3)}  # of a record of one chunk, more say the same
    for i in data.draw(st.sets(st.integers(at, len(item) - 1).filter(lambda i: i not in chunk_blocks), min_size=1, max_size=4)):
        item[i] ^= data.draw(st.integers(1, 255))
    for i in range(n_parts):
        _, n_bytes, n_stored, _ = struct.unpack_from("<QQQI", item, 30 + 28 * i)
        stored = memoryview(item)[at : at + n_stored]
        try:
            crc = active().crc32c(bytes(stored[: covered_bytes(stored, n_bytes)]))
        except FormatError:
            crc = 0  # it is refused before its checksum is
        struct.pack_into("<I", item, 30 + 28 * i + 24, crc)
        at += n_stored
    damaged = sealed(bytes(item[10 : 30 + 28 * n_parts]), rest, bytes(item[30 + 28 * n_parts :]))
    with pytest.raises(FormatError):
        unpack_item(damaged)
    with pytest.raises(reference.FormatError):
        reference.decode_item(bytes(damaged))


def rest_bytes(item):
    n_bytes, _, n_parts = struct.unpack_from("<QQI", item, 10)
    return n_bytes - sum(struct.unpack_from("<QQQI", item, 30 + 28 * i)[1] for i in range(n_parts))


def test_registry_and_options():
    (extension,) = weightpack.dcp.registry(threads=2, max_bytes=5).from_descriptor_list(["stream.weightpack/1"])
    assert isinstance(extension, WeightpackExtension)
    assert (extension.threads, extension.max_bytes) == (2, 5)
    assert isinstance(WeightpackExtension.from_descriptor("1"), WeightpackExtension)
    with pytest.raises(UnsupportedError):
        weightpack.dcp.registry().from_descriptor_list(["stream.weightpack/2"])
    with pytest.raises(OptionError):
        WeightpackExtension(threads=0)


def test_plain_checkpoints_are_read_too(tmp_path):
    dcp.save(work.weights(), storage_writer=dcp.FileSystemWriter(tmp_path / "plain"))
    state = {key: torch.zeros_like(tensor) for key, tensor in work.weights().items()}
    dcp.load(state, storage_reader=weightpack.dcp.reader(tmp_path / "plain"))
    assert all(work.same(state[key], tensor) for key, tensor in work.weights().items())


def test_writer_can_be_pickled(tmp_path):
    """async_save by a process of its own sends it there."""
    writer = pickle.loads(pickle.dumps(weightpack.dcp.writer(tmp_path / "c", options=load_profile("dense"), verify=False)))
    dcp.save(work.weights(), storage_writer=writer)
    dcp.save(work.weights(), storage_writer=weightpack.dcp.writer(tmp_path / "d", options=load_profile("dense")))
    assert (tmp_path / "c" / "__0_0.distcp").read_bytes() == (tmp_path / "d" / "__0_0.distcp").read_bytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_items_of_earlier_releases(name):
    item, sha256 = GOLDEN[name]
    assert hashlib.sha256(reference.decode_item(base64.b85decode(item))).hexdigest() == sha256
    assert hashlib.sha256(unpack_item(base64.b85decode(item)).getvalue()).hexdigest() == sha256


def test_torch_without_extensions():
    """None in sys.modules is how Python remembers that there is no such module."""
    program = "import sys; sys.modules['torch.distributed.checkpoint._extension'] = None\nimport weightpack.dcp"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingExtraError: weightpack.dcp needs a PyTorch whose distributed checkpoints have stream extensions, 2.7 or later" in done.stderr


def test_page(tmp_path):
    """The examples of docs/DCP.md as they stand there, and its figures, which are those of the committed results."""
    page = (ROOT / "docs" / "DCP.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(examples) == 2
    program = "\n".join(["import warnings", "warnings.filterwarnings('ignore', 'torch.distributed is disabled')", *examples])
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("benchmark_dcp", ROOT / "benchmarks" / "dcp.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    results = json.loads(benchmark.RESULTS.read_text())["results"]
    assert benchmark.with_figures(page, results) == page, "run benchmarks/dcp.py"
