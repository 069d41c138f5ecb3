# SPDX-License-Identifier: Apache-2.0
"""Work for the processes of a distributed checkpoint; a module of its own, because spawned ones import it by name. What goes wrong in them, `spawn` raises."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import weightpack
import weightpack.dcp

WORLD = 2
OBJECTS = {"step": 7, "name": "run 1", "nested": {"lr": 1e-4, "seen": [1, 2, None]}, "rng": bytes(range(256)) * 5}


def tensors():
    """Return what is saved, whole: the same in every process."""
    generator = torch.Generator().manual_seed(20261123)
    weights = torch.randn(300, 258, generator=generator) * 0.04
    strange = weights[:33, :6].contiguous()
    strange.view(torch.int32)[5] = 0x7FC01234  # NaNs with a payload
    strange[7] = -0.0
    return {
        "f32": weights, "bf16": weights.bfloat16(), "f16": weights.half(), "f64": weights.double(), "f8": weights.to(torch.float8_e5m2),
        "i64": torch.arange(5000).reshape(100, 50), "bool": weights > 0.03, "strange": strange, "small": torch.randn(3, 2, generator=generator),
        "zeros": torch.zeros(70, 90), "empty": torch.zeros(0, 4), "c64": torch.complex(weights, weights + 1),
    }  # fmt: skip


def bits(tensor):
    """Return a tensor's bytes, which NaNs can be compared by."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same(loaded, expected):
    return loaded.dtype == expected.dtype and loaded.shape == expected.shape and torch.equal(bits(loaded), bits(expected))


def network():
    """Return a model, the same in every process."""
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(96, 130), torch.nn.LayerNorm(130), torch.nn.GELU(), torch.nn.Linear(130, 40))


def train(model, optimizer, steps, seed):
    torch.manual_seed(seed)
    for _ in range(steps):
        model(torch.randn(8, 96)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def join(rank, folder, job):
    """Meet the others in a file, so that tests need no free port."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a name that the machine has for itself may not resolve
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{job}.meet", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    return init_device_mesh("cpu", (WORLD,))


def sharded(mesh, placement, of=tensors):
    return {name: distribute_tensor(tensor, mesh, [placement], src_data_rank=None) for name, tensor in of().items()}


def save(rank, folder):
    """Save `tensors` by rows, in the foreground and in the background, packed and plain; and a model that FSDP has trained."""
    mesh = join(rank, folder, "save")
    state = {**sharded(mesh, Shard(0)), "scalar": torch.tensor(0.125), **OBJECTS}
    dcp.save(state, storage_writer=weightpack.dcp.writer(folder / "sync"))
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / "plain"))
    dcp.save(state, storage_writer=weightpack.dcp.writer(folder / "threads", thread_count=2, threads=2))
    pending = dcp.async_save(state, storage_writer=weightpack.dcp.writer(folder / "async"))
    for value in state.values():  # what was staged is saved, not what comes of it
        if isinstance(value, torch.Tensor) and value.dtype != torch.float8_e5m2:
            (value.to_local() if hasattr(value, "to_local") else value).zero_()
    pending.result()

    model = network()
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, 3, seed=1)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, storage_writer=weightpack.dcp.writer(folder / "trained"))
    train(model, optimizer, 1, seed=2)
    whole = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    if rank == 0:
        torch.save(whole, folder / "one-step-later.pt")
    dist.destroy_process_group()


def load(rank, folder):
    """Load what `save` has saved, by columns and whole, and the model into FSDP again; each process compares its part."""
    mesh = join(rank, folder, "load")
    for name in ("sync", "async"):
        for placement in (Shard(1), Shard(0), Replicate()) if name == "sync" else (Shard(1),):
            target = {key: torch.zeros_like(value) for key, value in sharded(mesh, placement).items()}
            state = {**target, "scalar": torch.zeros(()), **dict.fromkeys(OBJECTS)}
            state["nested"] = {"lr": None, "seen": [None] * 3}
            dcp.load(state, storage_reader=weightpack.dcp.reader(folder / name))
            for key, expected in sharded(mesh, placement).items():
                assert same(state[key].to_local(), expected.to_local()), (name, placement, key)
            assert state["scalar"] == 0.125
            assert {key: state[key] for key in OBJECTS} == OBJECTS, (name, placement)

    model = network()
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.load({"model": model_state, "optimizer": optimizer_state}, storage_reader=weightpack.dcp.reader(folder / "trained"))
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    train(model, optimizer, 1, seed=2)
    later = torch.load(folder / "one-step-later.pt")
    for name, tensor in model.state_dict().items():
        assert same(tensor.full_tensor(), later[name]), name

    weightpack.enable()
    state = {key: torch.zeros_like(value) for key, value in sharded(mesh, Shard(1), of=weights).items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder / "hf")))
    for key, expected in sharded(mesh, Shard(1), of=weights).items():
        assert same(state[key].to_local(), expected.to_local()), key
    dist.destroy_process_group()


def weights():
    """Return the `tensors` that a model's file would hold."""
    return {name: tensor for name, tensor in tensors().items() if name in ("f32", "bf16", "f16", "i64")}
