# SPDX-License-Identifier: Apache-2.0
"""Float matrices whose first columns are zero, as those of a causal mask and of what is padded on the left, through every door that packs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import samples
import torch
import torch.distributed.checkpoint as dcp

import weightpack
import weightpack.dcp
import weightpack.numpy
import weightpack.torch
from weightpack.format.layouts import layout_of
from weightpack.models.jobs import Job
from weightpack.runs.pack import pack_checkpoint
from weightpack.writing.differences import scales_help


def causal_mask(n: int) -> np.ndarray:
    return np.triu(np.full((n, n), -np.inf, "f4"), 1)


def padded_left(n_rows: int, n_cols: int, zeros: int) -> np.ndarray:
    matrix = np.zeros((n_rows, n_cols), "f4")
    matrix[:, zeros:] = samples.rng().standard_normal((n_rows, n_cols - zeros)) * 0.02
    return matrix


def block_diagonal(n_blocks: int, n: int) -> np.ndarray:
    return np.kron(np.eye(n_blocks, dtype="f4"), samples.rng().standard_normal((n, n)).astype("f4"))


def second_moments(n_rows: int, n_cols: int, zeros: int) -> np.ndarray:
    """Return moments of Adam, which the scales of rows and columns predict; those of the first columns never came."""
    rng = samples.rng()
    moments = np.exp2(rng.normal(-30, 4, (n_rows, 1)) + rng.normal(0, 4, n_cols) + rng.normal(0, 0.2, (n_rows, n_cols))).astype("f4")
    moments[:, :zeros] = 0
    return moments


MATRICES = {
    **{f"causal_mask_{n}": causal_mask(n) for n in (77, 512, 700, 768, 1024)},
    "padded_left": padded_left(64, 1024, 600),
    "only_the_last_column": padded_left(300, 1024, 1023),
    "only_the_last_of_65_columns": padded_left(300, 65, 64),
    "block_diagonal": block_diagonal(4, 256),
    "second_moments": second_moments(256, 2000, 100),
    "zeros": np.zeros((512, 512), "f4"),
    "one_element": np.pad(np.ones((1, 1), "f4"), ((500, 11), (700, 3))),
}


@pytest.mark.parametrize("profile", ["fast", "dense"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("name", MATRICES)
def test_zero_columns(tmp_path, name, dtype, profile):
    matrix = MATRICES[name]
    content = matrix.tobytes() if dtype == "F32" else samples.bf16(matrix).tobytes()
    data = samples.safetensors_file({"w": (dtype, matrix.shape, content)})
    (tmp_path / "a.safetensors").write_bytes(data)
    weightpack.pack(tmp_path / "a.safetensors", tmp_path / "packed", options=weightpack.load_profile(profile))
    weightpack.unpack(tmp_path / "packed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert weightpack.estimate(tmp_path / "a.safetensors")[0].source_bytes == len(data)


@pytest.mark.parametrize("zeros", [0, 1, 63, 64, 100, 1000, 1990])
def test_scales_are_found_after_zero_columns(zeros):
    layout = layout_of("F32")
    moments = second_moments(256, 2000, zeros)
    data = np.frombuffer(moments.tobytes(), np.uint8)
    assert scales_help(lambda offset, n: data[offset : offset + n], data.size, layout, 2000, 0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_every_door(tmp_path):
    mask, moments = torch.from_numpy(causal_mask(1024)), torch.from_numpy(second_moments(256, 2000, 100))
    tensors = {"mask": mask, "moments": moments}

    def same(others):
        assert all(torch.equal(torch.as_tensor(others[name]), tensor) for name, tensor in tensors.items())

    weightpack.torch.save_file(tensors, tmp_path / "torch.safetensors")
    same(weightpack.torch.load_file(tmp_path / "torch.safetensors"))
    weightpack.numpy.save_file({name: tensor.numpy() for name, tensor in tensors.items()}, tmp_path / "numpy.safetensors")
    same(weightpack.numpy.load_file(tmp_path / "numpy.safetensors"))

    dcp.save(dict(tensors), storage_writer=weightpack.dcp.writer(tmp_path / "dcp"), no_dist=True)
    loaded = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    dcp.load(loaded, storage_reader=weightpack.dcp.reader(tmp_path / "dcp"), no_dist=True)
    same(loaded)

    checkpoint = tmp_path / "run" / "checkpoint-10"  # as the Trainer writes it
    checkpoint.mkdir(parents=True)
    torch.save({"state": {0: {"exp_avg_sq": moments}}, "mask": mask}, checkpoint / "optimizer.pt")
    torch.save({"last_epoch": 10}, checkpoint / "scheduler.pt")
    (checkpoint / "model.safetensors").write_bytes(samples.mixed_file())
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 10}))
    data = (checkpoint / "optimizer.pt").read_bytes()
    pack_checkpoint(tmp_path / "run", 10, Job())
    weightpack.unpack(checkpoint / "optimizer.pt", tmp_path / "optimizer.pt")
    assert (tmp_path / "optimizer.pt").read_bytes() == data

    (tmp_path / "plain.safetensors").write_bytes(samples.safetensors_file({"w": ("F32", (1024, 1024), mask.numpy().tobytes())}))
    done = subprocess.run([sys.executable, "-m", "weightpack", "pack", "plain.safetensors"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
