# SPDX-License-Identifier: Apache-2.0
"""Pictures of where the bits go: of any name, of directories, and of files that are damaged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import samples
from command import call, refused

import weightpack
from weightpack import errors
from weightpack.format.record import CHUNK_HEAD_BYTES
from weightpack.io.files import LocalFile
from weightpack.reading.inspect import inspect_planes
from weightpack.reading.packed_file import PackedFile
from weightpack.tools.plot import plot_planes

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")


@pytest.fixture
def packed(tmp_path):
    (tmp_path / "plain.safetensors").write_bytes(samples.bf16_file(seed=1, name="w", n=5000))
    return weightpack.pack(tmp_path / "plain.safetensors", tmp_path / "packed.safetensors").target


@needs_matplotlib
@pytest.mark.parametrize("name", ["$x^$", "$$", r"\frac{", "a\x1b[2J\u202eb", "_^{}%&#~"])
def test_names_are_drawn_as_they_are(tmp_path, name):
    """No formula is seen in them, in the tensor's or in the file's."""
    file = "$x^$ " + name.replace("/", "")
    (tmp_path / file).write_bytes(samples.bf16_file(seed=1, name=name, n=5000))
    weightpack.pack(tmp_path / file, tmp_path / "packed")
    (tmp_path / "packed").rename(tmp_path / file)
    assert plot_planes(tmp_path / file, tmp_path / "p.svg") == [tmp_path / "p.svg"]
    assert (tmp_path / "p.svg").stat().st_size > 5000


@needs_matplotlib
def test_a_directory_gets_a_picture_of_each_file(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for i in (1, 2):
        (model / f"model-{i:05}-of-00002.safetensors").write_bytes(samples.bf16_file(seed=i, name=f"w{i}", n=5000))
    weightpack.pack(model)
    done = call("inspect", "model-wp", "--plot", "planes.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pictures = [f"planes-model-{i:05}-of-00002.png" for i in (1, 2)]
    assert done.stdout.splitlines()[:2] == [f"{picture} is drawn" for picture in pictures]
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    (model / "model-00002-of-00002.safetensors").unlink()
    weightpack.pack(model, tmp_path / "single")
    assert call("inspect", "single", "--plot", "single.png", "--json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "single.png").exists()
    (model / "sub").mkdir()
    (model / "sub" / "model-00001-of-00002.safetensors").write_bytes(samples.bf16_file(seed=3, name="w", n=5000))
    weightpack.pack(model, tmp_path / "parts")
    refused(call("inspect", "parts", "--plot", "parts.png", cwd=tmp_path), 2, "one name")
    refused(call("inspect", "single", "parts", "--plot", "x.png", cwd=tmp_path), 2, "one source")
    refused(call("inspect", "model/sub", "--plot", "x.png", cwd=tmp_path), 1, "not a packed file")
    refused(call("inspect", "./none", "--plot", "x.png", cwd=tmp_path), 2, "./none")
    refused(call("inspect", "single", "--plot", "x.gif", cwd=tmp_path), 2, ".png")


def damaged(path, change):
    """Change the first chunk's header, and return the file."""
    with LocalFile(path) as file:
        opened = PackedFile(file)
        stored = opened.stored("w")
        begin = stored.begin + int(opened.record_head(stored).offsets[0])
    data = bytearray(Path(path).read_bytes())
    change(data, begin)
    Path(path).write_bytes(data)
    return path


def set_streams(count):
    def change(data, begin):
        data[begin + 1] = count

    return change


def set_mode(mode):
    def change(data, begin):
        data[begin] = mode

    return change


def lengthen(data, begin):
    data[begin + CHUNK_HEAD_BYTES + 3] = 0xFF


@pytest.mark.parametrize(
    ("change", "error"),
    [(set_streams(n), errors.CorruptionError) for n in (0, 1, 2, 4, 7, 8)]
    + [(set_streams(255), errors.TruncatedError), (set_mode(1), errors.CorruptionError), (set_mode(99), errors.UnsupportedError)]
    + [(lengthen, errors.TruncatedError)],
)
def test_damaged_chunks(packed, change, error):
    with LocalFile(damaged(packed, change)) as file, pytest.raises(error) as caught:
        inspect_planes(PackedFile(file))
    assert (caught.value.tensor, caught.value.chunk, caught.value.path) == ("w", 0, packed)


def test_a_chunk_of_each_kind_is_counted_to_the_byte(tmp_path):
    """What the planes and tables have is what the record has."""
    (tmp_path / "plain").write_bytes(samples.mixed_file())
    target = weightpack.pack(tmp_path / "plain", tmp_path / "packed").target
    with LocalFile(target) as file:
        opened = PackedFile(file)
        reports = {report.name: report.planes for report in inspect_planes(opened)}
    (inspected,) = json.loads(call("inspect", "packed", "--json", cwd=tmp_path).stdout)
    for tensor in inspected["tensors"]:
        if tensor["name"] in reports:
            assert sum(reports[tensor["name"]].values()) == tensor["packed_bytes"]
            assert min(reports[tensor["name"]].values()) >= 0
