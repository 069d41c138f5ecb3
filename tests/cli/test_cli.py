# SPDX-License-Identifier: Apache-2.0
"""The command line as a user runs it: in a process of its own, by exit codes and what it prints."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import hub_double
import pytest
import samples
from command import refused, run

import weightpack


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(samples.mixed_file())
    return tmp_path


def test_pack_verify_inspect_unpack(folder):
    packed = run("pack", "model.safetensors", cwd=folder)
    assert packed.returncode == 0, packed.stderr
    assert "of original" in packed.stdout
    assert (folder / "model.wp.safetensors").exists()
    verified = run("verify", "model.wp.safetensors", "--against", "model.safetensors", cwd=folder)
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in verified.stdout
    inspected = run("inspect", "model.wp.safetensors", "--tensors", cwd=folder)
    assert "zéro.名前" in inspected.stdout
    assert "tied to tied.a" in inspected.stdout
    (folder / "model.safetensors").rename(folder / "original")
    assert run("unpack", "model.wp.safetensors", cwd=folder).returncode == 0
    assert (folder / "model.safetensors").read_bytes() == (folder / "original").read_bytes()


def test_json(folder):
    job = json.loads(run("pack", "model.safetensors", "--json", cwd=folder).stdout)
    assert job["packed_bytes"] == (folder / "model.wp.safetensors").stat().st_size
    (report,) = json.loads(run("inspect", "model.wp.safetensors", "--json", cwd=folder).stdout)
    assert report["source_bytes"] == (folder / "model.safetensors").stat().st_size
    assert sum(t["packed_bytes"] for t in report["tensors"]) < report["packed_bytes"]
    (estimate,) = json.loads(run("estimate", "model.safetensors", "--json", cwd=folder).stdout)
    assert abs(estimate["packed_bytes"] - job["packed_bytes"]) < 0.2 * job["packed_bytes"]
    steps = json.loads(run("estimate", "model.safetensors", "--steps", "--json", cwd=folder).stdout)
    sizes = [report["packed_bytes"] for (report,) in steps.values()]
    assert len(sizes) == 5
    assert sizes[-1] < sizes[0]
    assert list(steps)[-1] in run("estimate", "model.safetensors", "--steps", cwd=folder).stdout
    assert json.loads(run("doctor", "--json", cwd=folder).stdout)["weightpack"] == weightpack.__version__
    assert json.loads(run("verify", "model.wp.safetensors", "--json", cwd=folder).stdout)[0]["compared"] is False


def test_bad_calls_exit_2(folder):
    refused(run("pack", "nothing/here.safetensors", cwd=folder), 2, "no such file")
    refused(run("pack", cwd=folder), 2, "SRC")
    refused(run("pack", "model.safetensors", "--profile", "nope", cwd=folder), 2, "fast")
    refused(run("pack", "model.safetensors", "--threads", "0", cwd=folder), 2, "threads")
    refused(run("pack", "model.safetensors", cwd=folder, env={"WEIGHTPACK_ISA": "mmx"}), 2, "mmx", "numpy")
    assert run("pack", "model.safetensors", cwd=folder).returncode == 0
    refused(run("pack", "model.safetensors", cwd=folder), 2, "--force", "model.wp.safetensors")
    assert run("pack", "model.safetensors", "--force", cwd=folder).returncode == 0
    refused(run("unpack", "model.wp.safetensors", cwd=folder), 2, "--force")
    refused(run("pack", "model.wp.safetensors", cwd=folder), 2, "already")


def test_bad_data_exits_1(folder):
    run("pack", "model.safetensors", cwd=folder)
    packed = bytearray((folder / "model.wp.safetensors").read_bytes())
    packed[len(packed) // 2] ^= 4
    (folder / "bad.wp.safetensors").write_bytes(packed)
    refused(run("unpack", "bad.wp.safetensors", cwd=folder), 1, "bad.wp.safetensors", "tensor")
    refused(run("verify", "bad.wp.safetensors", cwd=folder), 1, "bad.wp.safetensors")
    (folder / "cut.wp.safetensors").write_bytes(packed[:-100])
    refused(run("unpack", "cut.wp.safetensors", cwd=folder), 1, "cut.wp.safetensors")
    refused(run("unpack", "model.safetensors", "-o", "x", cwd=folder), 1, "not a packed file")
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"\xfe")
    refused(run("verify", "model.wp.safetensors", "--against", "other.safetensors", cwd=folder), 1, "other.safetensors")
    assert not (folder / "x").exists()
    assert not (folder / "bad.safetensors").exists()


def test_profile_from_a_file(folder):
    (folder / "mine.toml").write_text("chunk_elems = 1280\ncodecs = ['huffman']\n")
    assert run("pack", "model.safetensors", "--profile", "mine.toml", cwd=folder).returncode == 0
    assert run("verify", "model.wp.safetensors", "--against", "model.safetensors", cwd=folder).returncode == 0
    (folder / "mine.toml").write_text("chunk_elems = 100\n")
    refused(run("pack", "model.safetensors", "--profile", "mine.toml", "--force", cwd=folder), 2, "128")
    (folder / "mine.toml").write_text("speed = 9\n")
    refused(run("pack", "model.safetensors", "--profile", "mine.toml", "--force", cwd=folder), 2, "speed")


def test_full_disk_exits_3_and_leaves_nothing(folder):
    """A file size limit stands in for a full disk: write() fails the same way, in the middle."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    before = sorted(p.name for p in folder.iterdir())
    refused(run("pack", "model.safetensors", cwd=folder, preexec_fn=limit), 3)
    assert sorted(p.name for p in folder.iterdir()) == before
    run("pack", "model.safetensors", "-o", "packed", cwd=folder)
    refused(run("unpack", "packed", "-o", "back", cwd=folder, preexec_fn=limit), 3)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*before, "packed"])


@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_interrupt_leaves_the_old_target_whole(tmp_path, verb):
    data = samples.safetensors_file({"w": ("F32", (8_000_000,), samples.weights(8_000_000, "F32"))})
    (tmp_path / "model.safetensors").write_bytes(data)
    weightpack.pack(tmp_path / "model.safetensors")
    source, target = ("model.safetensors", "model.wp.safetensors") if verb == "pack" else ("model.wp.safetensors", "model.safetensors")
    before = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in (source, target)}
    command = [sys.executable, "-m", "weightpack", verb, source, "-o", target, "--force", "--threads", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, "WEIGHTPACK_ISA": "scalar"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*wp-partial")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (0, 130), stderr  # 0: it was done before the signal came
    assert b"Traceback" not in stderr
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in (source, target)} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source, target])


def test_memory_does_not_grow_with_the_file(tmp_path):
    """400 MB in one tensor, packed and unpacked with far less memory than that."""
    piece = samples.weights(1 << 22, "F32")
    n = 24
    header = json.dumps({"w": {"dtype": "F32", "shape": [n << 22], "data_offsets": [0, n * len(piece)]}}).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for i in range(n):
            file.write(piece[4 * i :] + piece[: 4 * i])
    program = (
        "import sys, resource, weightpack\n"
        "weightpack.pack('small.safetensors', 'small.wp', threads=2); weightpack.unpack('small.wp', 'small.out', threads=2)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "weightpack.pack('big.safetensors', 'big.wp', threads=2); weightpack.unpack('big.wp', 'big.out', threads=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    (tmp_path / "small.safetensors").write_bytes(samples.safetensors_file({"w": ("F32", (1 << 20,), piece[: 4 << 20])}))
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 60_000  # kB
    assert (tmp_path / "big.out").stat().st_size == (tmp_path / "big.safetensors").stat().st_size


def test_help_and_import_are_quick_and_light():
    program = "import sys, weightpack; sys.exit(bool({'torch', 'numpy', 'huggingface_hub', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture
def hub(tmp_path):
    repo = tmp_path / "served"
    repo.mkdir()
    (repo / "model.safetensors").write_bytes(samples.mixed_file())
    (repo / "config.json").write_text('{"model_type": "bert"}')
    (repo / "pytorch_model.bin").write_bytes(b"not wanted")
    with hub_double.serve({"org/tiny-bert": repo}) as server:
        server.old_names["tiny-bert"] = "org/tiny-bert"
        env = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}
        yield repo, env, server


@pytest.mark.parametrize("repo_id", ["org/tiny-bert", "tiny-bert"])
def test_pack_a_hub_repo(hub, tmp_path, repo_id):
    repo, env, server = hub
    result = run("pack", repo_id, "--json", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    packed = tmp_path / "tiny-bert-wp"
    assert (packed / "config.json").read_bytes() == (repo / "config.json").read_bytes()
    assert not any("pytorch_model" in line for line in server.log())
    weightpack.verify(packed / "model.safetensors", against=repo / "model.safetensors")
    assert run("estimate", repo_id, cwd=tmp_path, env=env).returncode == 0


def test_hub_errors_are_plain(hub, tmp_path):
    _, env, _ = hub
    refused(run("pack", "org/absent", cwd=tmp_path, env=env), 2, "org/absent")
    refused(run("pack", "org/tiny-bert", "--revision", "nope", cwd=tmp_path, env=env), 2, "nope")
    refused(run("pack", "org/tiny-bert", cwd=tmp_path, env={**env, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}), 3, "reached")
    assert not (tmp_path / "absent-wp").exists()
