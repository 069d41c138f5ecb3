# SPDX-License-Identifier: Apache-2.0
"""An interrupted command says what is true after it, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import samples

import weightpack


def interrupted(folder, *arguments):
    """Run a command on the slowest kernels, interrupt it when its working file appears, and return what it says on stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "weightpack", *arguments, "--threads", "1"], cwd=folder, env={**os.environ, "WEIGHTPACK_ISA": "numpy"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(folder.rglob(".*wp-partial")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    line = stderr.splitlines()[-1]
    assert [each for each in stderr.splitlines() if "warning:" not in each] == [line], stderr
    assert line.startswith("weightpack: interrupted")
    return line


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_bytes(samples.safetensors_file({"w": ("F32", (4_000_000,), samples.weights(4_000_000, "F32"))}))
    return folder


def test_to_a_target(model):
    assert interrupted(model, "pack", "a.safetensors").endswith("no file is half written")
    assert sorted(path.name for path in model.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_in_place(model):
    """Working files of a.safetensors or b.safetensors are there only while one of them is replaced: after it, the other is as it was."""
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    line = interrupted(model.parent, "pack", "--in-place", "model")
    assert "run the same command again, it goes on where it stopped" in line
    assert "no target" not in line
    weightpack.pack(model, in_place=True)
    weightpack.unpack(model, in_place=True)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
