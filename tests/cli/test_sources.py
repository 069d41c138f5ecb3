# SPDX-License-Identifier: Apache-2.0
"""Several sources in one command: one that fails does not stop the others."""

from __future__ import annotations

import json

import pytest
import samples
from command import call, refused, run


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(samples.bf16_file(seed=1, name="w", n=5000))
    (tmp_path / "b.safetensors").write_bytes(samples.bf16_file(seed=2, name="w", n=6000))
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (600,), }".ljust(118) + bytes(2400))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(samples.bf16_file(seed=3, name="w", n=7000))
    (model / "config.json").write_text("{}")
    return tmp_path


ALL = ("a.safetensors", "b.safetensors", "c.npy", "model")


def content(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_beside_themselves_and_back(folder):
    before = content(folder)
    packed = run("pack", *ALL, cwd=folder)
    assert packed.returncode == 0, packed.stderr
    assert "total: 4 of 4 sources" in packed.stdout.splitlines()[-1]
    assert len(packed.stdout.splitlines()) == 5
    targets = ("a.wp.safetensors", "b.wp.safetensors", "c.npy.wp", "model-wp")
    verified = run("verify", *targets, cwd=folder)
    assert verified.returncode == 0, verified.stderr
    proven = [*targets[:-1], "model-wp/model.safetensors", "1", "2"]
    assert [line.split()[1] for line in verified.stdout.splitlines()[:-1]] == proven  # and 1 other file, config.json; all 2 files
    assert run("unpack", *targets, "--force", cwd=folder).returncode == 0
    assert {name: data for name, data in content(folder).items() if name in before} == before


def test_into_a_folder_and_back(folder):
    """Safetensors files keep their names there, so that what loads them finds them; the others get an end that tells."""
    packed = run("pack", *ALL, "-o", "new/packed", cwd=folder)
    assert packed.returncode == 0, packed.stderr
    assert sorted(path.name for path in (folder / "new/packed").iterdir()) == ["a.safetensors", "b.safetensors", "c.npy.wp", "model"]
    assert run("unpack", *(folder / "new/packed").iterdir(), "-o", "back", cwd=folder).returncode == 0
    assert content(folder / "back") == {name: data for name, data in content(folder).items() if name.split("/")[0] in ALL}
    single = run("unpack", "new/packed/a.safetensors", "-o", "other/", cwd=folder)
    assert single.returncode == 0, single.stderr
    assert (folder / "other/a.safetensors").read_bytes() == (folder / "a.safetensors").read_bytes()


def test_the_others_are_done_and_the_worst_code_counts(folder):
    """1: bad data; 2: no such source; 3, the worst here: a file that can't be read."""
    call("pack", *ALL, cwd=folder)
    damaged = bytearray((folder / "b.wp.safetensors").read_bytes())
    damaged[-700] ^= 1
    (folder / "b.wp.safetensors").write_bytes(damaged)
    sources = ("a.wp.safetensors", "b.wp.safetensors", "./none.wp.safetensors", "c.npy.wp")
    result = run("verify", *sources, cwd=folder)
    refused(result, 2, "b.wp.safetensors", "./none.wp.safetensors: no such file")
    assert len(result.stderr.splitlines()) == 2
    assert result.stdout.splitlines()[-1] == "total: 2 of 4 sources are proven"
    refused(call("verify", *sources[:2], cwd=folder), 1)
    unpacked = call("unpack", *sources, "-o", "back", "--json", cwd=folder)
    refused(unpacked, 2)
    results = json.loads(unpacked.stdout)
    assert [entry["source"] for entry in results] == list(sources)
    assert [entry.get("exit_code", 0) for entry in results] == [0, 1, 2, 0]
    assert results[0]["result"]["files"][0]["source_bytes"] == (folder / "a.safetensors").stat().st_size
    assert sorted(path.name for path in (folder / "back").iterdir()) == ["a.safetensors", "c.npy"]
    assert "total: 2 of 3 sources" in call("estimate", "a.safetensors", "./none", "b.safetensors", cwd=folder).stdout
    inspected = call("inspect", *sources[:3], cwd=folder)
    refused(inspected, 2)
    assert "total: 2 of 3 sources" in inspected.stdout
    assert len(json.loads(call("inspect", "a.wp.safetensors", "c.npy.wp", "--json", cwd=folder).stdout)) == 2


def test_a_directory_is_described_and_refused_file_by_file(folder):
    """What it has beside its weights counts in its total; each file that is not as it was has its line."""
    (folder / "model" / "second.safetensors").write_bytes(samples.bf16_file(seed=8, name="v", n=4000))
    (folder / "model" / "text.bin").write_bytes(samples.rng().bytes(200_000))
    (folder / "model" / "dead link").symlink_to("nowhere")
    packed = call("pack", "model", cwd=folder)
    assert packed.returncode == 0, packed.stderr
    assert "left out: dead link: " in packed.stdout
    assert "carried over as it is: text.bin: " in packed.stdout
    verified = call("verify", "model-wp", cwd=folder)
    assert verified.stdout.count("restores to") == 2
    assert "ok: second.safetensors restores to" in verified.stdout
    assert "ok: 2 other files can be given back as they were" in verified.stdout
    assert "all 4 files, " in call("inspect", "model-wp", cwd=folder).stdout
    assert "all 4 files, " in call("estimate", "model", cwd=folder).stdout
    for name in ("text.bin", "config.json"):
        (folder / "model-wp" / name).write_bytes(b"something else")
    for arguments in (("verify", "model-wp"), ("unpack", "model-wp", "-o", "back")):
        done = run(*arguments, cwd=folder)
        refused(done, 1, "model-wp: 2 problems, in ", "  model-wp/text.bin: ", "  model-wp/config.json: ")
        assert len(done.stderr.splitlines()) == 3
    several = json.loads(call("verify", "model-wp", "model-wp/model.safetensors", "--json", cwd=folder).stdout)
    assert "text.bin" in several[0]["error"]
    assert several[1]["result"][0]["name"] == "model.safetensors"
    assert not (folder / "back").exists()
    unpacked = call("unpack", "model-wp", "-o", "back", "--no-verify", cwd=folder)
    assert unpacked.returncode == 0, unpacked.stderr
    assert "warning: " in unpacked.stderr


def test_calls_that_could_lose_something_are_refused(folder):
    (folder / "other").mkdir()
    (folder / "other" / "a.safetensors").write_bytes(samples.bf16_file(seed=9, name="w", n=5000))
    twice = call("pack", "a.safetensors", "other/a.safetensors", "-o", "out", "--force", cwd=folder)
    refused(twice, 2, "same target")
    assert call("verify", "out/a.safetensors", "--against", "a.safetensors", cwd=folder).returncode == 0
    refused(call("pack", "a.safetensors", "b.safetensors", "-o", "c.npy", cwd=folder), 2, "c.npy", "folder")
    refused(call("pack", "a.safetensors", "--keep", "--delete-source", cwd=folder), 2, "--keep", "--delete-source")
    refused(call("verify", "out/a.safetensors", "out/a.safetensors", "b.safetensors", "--against", "a.safetensors", cwd=folder), 2, "one source")
    before = content(folder)
    refused(call("pack", "model", "-o", ".", cwd=folder), 2, "same" if (folder / "model").samefile(folder) else "target")
    refused(call("pack", "model", "-o", ".", "--force", cwd=folder), 2, "the source lies in the target")
    refused(call("pack", "model", "-o", "..", "--force", cwd=folder), 2, "the source lies in the target")
    refused(call("pack", ".", "-o", ".", "--force", cwd=folder / "model"), 2, "the same")
    assert content(folder) == before


def test_quiet_verbose_keep_force(folder):
    quiet = call("pack", "model", "a.safetensors", "-q", "-k", cwd=folder)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    refused(call("pack", "a.safetensors", "-q", cwd=folder), 2, "--force")
    verbose = call("pack", "model", "-f", "-v", cwd=folder)
    assert verbose.returncode == 0, verbose.stderr
    assert any("model/model.safetensors -> " in line and "SHA-256" in line for line in verbose.stdout.splitlines())
    for arguments in (("verify", "model-wp"), ("unpack", "model-wp", "-o", "back")):
        assert call(*arguments, "-q", cwd=folder).stdout == ""
