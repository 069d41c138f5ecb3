# SPDX-License-Identifier: Apache-2.0
"""Pipes, devices, sockets and files without a size, where a file is expected: refused at once with a word on what to do, and passed over by searches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import samples

import weightpack
from weightpack.errors import BaseNotFoundError, OptionError
from weightpack.io.files import LocalFile
from weightpack.sources.safetensors import looks_packed

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")


@pytest.fixture(params=["pipe", "socket", "/dev/zero", "/dev/null", "/proc/self/status"])
def odd_path(request, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            monkeypatch.chdir(tmp_path)  # the names of sockets are short
            server.bind(path.name)
    elif not Path(request.param).exists():
        pytest.skip(f"the system has no {request.param}")
    else:
        path.symlink_to(request.param)
    return path


def test_only_regular_files_are_opened(odd_path):
    with pytest.raises(OptionError, match="to a file first") as caught:
        LocalFile(odd_path)
    assert caught.value.path == str(odd_path)
    assert not looks_packed(odd_path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        LocalFile(tmp_path)
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize("command", [["pack"], ["estimate"], ["unpack", "-o", "out"], ["verify"], ["inspect"]], ids=lambda command: command[0])
def test_commands_refuse_them(odd_path, command):
    done = subprocess.run(  # the limit of time only ends what would hang
        [sys.executable, "-m", "weightpack", *command, odd_path.name], cwd=odd_path.parent, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "model.safetensors" in done.stderr
    assert "to a file first" in done.stderr
    assert sorted(path.name for path in odd_path.parent.iterdir()) == ["model.safetensors"]


def test_files_without_bytes_are_files(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert LocalFile(tmp_path / "empty").size == 0
    assert weightpack.pack(tmp_path / "empty").source_bytes == 0


def test_the_search_for_a_base_passes_them_over(tmp_path):
    """It opens whatever has the name of weights in the folder and the one above it."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal(20_000).astype("<f4")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "zz-base.safetensors").write_bytes(samples.safetensors_file({"w": ("F32", (20_000,), base.tobytes())}))
    base.view("<u4")[:] += rng.integers(0, 2, 20_000).astype("<u4")
    data = samples.safetensors_file({"w": ("F32", (20_000,), base.tobytes())})
    (tmp_path / "a" / "next").write_bytes(data)
    for folder in (tmp_path, tmp_path / "a"):
        os.mkfifo(folder / "aa.safetensors")
    packed = tmp_path / "a" / "next.wp.safetensors"
    weightpack.pack(tmp_path / "a" / "next", packed, base=tmp_path / "a" / "zz-base.safetensors")
    weightpack.unpack(packed, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    (tmp_path / "a" / "zz-base.safetensors").unlink()
    with pytest.raises(BaseNotFoundError):
        weightpack.unpack(packed, tmp_path / "back", overwrite=True)
    assert weightpack.inspect(packed)[0].lineage


def test_none_is_a_base(odd_path, tmp_path, monkeypatch):
    """And no repo of a Hub is looked for under its name."""
    if odd_path.resolve() == Path("/proc/self/status").resolve() or "/proc/" in os.path.realpath(odd_path):
        pytest.skip("a regular file, which is refused as it is opened")
    source = tmp_path / "tuned.safetensors"
    source.write_bytes(samples.bf16_file(seed=1, name="w", n=4000))
    packed = weightpack.pack(source).target
    monkeypatch.chdir(tmp_path)
    for call in (lambda: weightpack.pack(source, "x", base=odd_path.name), lambda: weightpack.unpack(packed, "y", base=odd_path.name)):
        with pytest.raises(OptionError, match="to a file first"):
            call()
