# SPDX-License-Identifier: Apache-2.0
"""Standard input and standard output as source and target, in pipes as users write them."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys

import pytest
import samples
from command import PROGRAM, call, refused, run

WEIGHTPACK = shlex.join(PROGRAM)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(samples.mixed_file())
    (tmp_path / "large.safetensors").write_bytes(samples.bf16_file(seed=4, name="w", n=3_000_000))
    return tmp_path


def shell(line, cwd, env=None):
    """Run a pipeline in bash; its exit code is the first that is not 0, from the right."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("weightpack", WEIGHTPACK)], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, timeout=300
    )


def test_pipes_both_ways(folder):
    """Temporary files stay nowhere: neither beside the target nor where temporary files are made."""
    (folder / "tmp").mkdir()
    env = {"TMPDIR": str(folder / "tmp")}
    plain = (folder / "model.safetensors").read_bytes()
    run("pack", "model.safetensors", "-o", "packed", cwd=folder)
    packed = (folder / "packed").read_bytes()
    for line in ("weightpack pack model.safetensors -c", "weightpack pack model.safetensors -o -", "weightpack pack < model.safetensors -",
                 "weightpack pack - -c < model.safetensors"):  # fmt: skip
        done = shell(line, folder, env)
        assert (done.returncode, done.stderr) == (0, b""), line
        assert done.stdout == packed, line
    assert shell("cat model.safetensors | weightpack pack - | weightpack unpack - -c", folder, env).stdout == plain
    assert shell("weightpack unpack packed -c", folder, env).stdout == plain
    assert shell("cat model.safetensors | weightpack pack - -o x.wp.safetensors", folder, env).returncode == 0
    assert (folder / "x.wp.safetensors").read_bytes() == packed
    assert shell("weightpack unpack - -o back < packed", folder, env).returncode == 0
    assert (folder / "back").read_bytes() == plain
    assert b"restores to" in shell("cat packed | weightpack verify -", folder, env).stdout
    assert shell("cat packed | weightpack inspect -", folder, env).stdout.startswith(b"-: ")
    assert shell("cat model.safetensors | weightpack estimate -", folder, env).stdout.startswith(b"- (")
    assert not list((folder / "tmp").iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["back", "large.safetensors", "model.safetensors", "packed", "tmp", "x.wp.safetensors"]


def test_what_can_not_be_is_refused(folder):
    run("pack", "model.safetensors", "-o", "packed", cwd=folder)
    (folder / "directory").mkdir()
    for arguments, word in [
        (("pack", "model.safetensors", "packed", "-c"), "several"), (("pack", "directory", "-c"), "directory"), (("pack", "-", "packed"), "standard input"),
        (("pack", "model.safetensors", "-c", "-o", "x"), "one target"), (("unpack", "packed", "-c", "--json"), "--json"),
        (("unpack", "packed", "-c", "--delete-source"), "deleted"), (("unpack", "packed", "--in-place", "-c"), "in place"),
        (("pack", "-", "--in-place"), "standard input"), (("pack", "-", "-o", "directory"), "name a file"), (("unpack", "./none", "-c"), "no such file"),
    ]:  # fmt: skip
        result = call(*arguments, cwd=folder, stdin=b"x")
        refused(result, 2, word)
        assert result.stdout == "", arguments
    refused(call("unpack", "-", "-c", cwd=folder, stdin=b"no packed file"), 1, "standard input: ")
    refused(call("unpack", "-", "-o", "x", cwd=folder, stdin=b"no packed file"), 1, "standard input: ")
    assert not (folder / "x").exists()
    call("pack", "-", "-o", "taken", cwd=folder, stdin=(folder / "model.safetensors").read_bytes())
    refused(call("pack", "-", "-o", "taken", cwd=folder, stdin=b"other"), 2, "--force")
    assert call("pack", "-", "-o", "taken", "--force", cwd=folder, stdin=b"other").returncode == 0
    assert run("unpack", "taken", "-c", cwd=folder).stdout == "other"


def test_damage_shows_in_the_exit_code(folder):
    run("pack", "large.safetensors", "-o", "packed", cwd=folder)
    damaged = bytearray((folder / "packed").read_bytes())
    damaged[len(damaged) * 3 // 4] ^= 1
    (folder / "packed").write_bytes(damaged)
    result = run("unpack", "packed", "-c", cwd=folder, binary=True)
    refused(result, 1, "packed", "tensor 'w'")
    plain = (folder / "large.safetensors").read_bytes()
    assert plain.startswith(result.stdout)
    assert len(result.stdout) < len(plain)


def test_a_reader_that_leaves(folder):
    """As other programs: nothing on stderr, and the exit code of SIGPIPE."""
    run("pack", "large.safetensors", "-o", "packed", cwd=folder)
    plain = (folder / "large.safetensors").read_bytes()
    for line in ("weightpack unpack packed -c", "weightpack pack large.safetensors -c", "weightpack cat packed w", "weightpack inspect packed --json"):
        done = shell(f"{line} | head -c 100 > /dev/null; exit ${{PIPESTATUS[0]}}", folder)
        assert done.stderr == b"", line
        assert done.returncode == 141 or "inspect" in line, line  # what fits into a pipe at once is written before its reader leaves
    for unbuffered in ("", "1"):
        assert shell("weightpack cat packed w | head -c 70000", folder, {"PYTHONUNBUFFERED": unbuffered}).stdout == plain[-6_000_000:][:70000]
    closed = shell("weightpack unpack packed -c >&-", folder)
    assert closed.returncode == 3, closed.stderr
    assert b"Traceback" not in closed.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_target(folder, unbuffered):
    """The interpreter must not write once more, when it ends, what could not be written: it would end with a code of its own."""
    run("pack", "large.safetensors", "-o", "packed", cwd=folder)
    for line in ("unpack packed -c", "inspect packed --json", "--version"):
        done = shell(f"weightpack {line} > /dev/full", folder, {"PYTHONUNBUFFERED": unbuffered})
        assert done.returncode == 3, (line, done.stderr)
        assert re.fullmatch(rb"weightpack: (standard output: )?No space left on device\n", done.stderr), line


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_can_not_be_said_on_stderr_changes_no_exit_code(folder, unbuffered):
    for line, code in (("pack model.safetensors -o packed --force", 0), ("inspect none", 3), ("inspect", 2)):
        assert shell(f"weightpack {line} 2> /dev/full", folder, {"PYTHONUNBUFFERED": unbuffered}).returncode == code, line


@pytest.mark.skipif(sys.platform != "linux", reason="what a terminal says at its end is Linux's")
def test_terminals(folder):
    """Bytes are not written to a terminal unless one insists, and nothing is read from one."""
    run("pack", "model.safetensors", "-o", "packed", cwd=folder)

    def on_terminal(*arguments):
        leader, follower = pty.openpty()
        process = subprocess.Popen([*PROGRAM, *arguments], cwd=folder, stdin=follower, stdout=follower, stderr=subprocess.PIPE)
        os.close(follower)
        written = b""
        try:
            while data := os.read(leader, 65536):
                written += data
        except OSError:  # the other side is closed
            pass
        os.close(leader)
        stderr = process.communicate(timeout=60)[1]
        return process.returncode, written, stderr

    for arguments in (("unpack", "packed", "-c"), ("pack", "model.safetensors", "-c"), ("cat", "packed", "int32")):
        code, written, stderr = on_terminal(*arguments)
        assert (code, written) == (2, b""), stderr
        assert b"terminal" in stderr
        assert b"--force" in stderr
    code, written, stderr = on_terminal("cat", "packed", "int32", "--force")
    assert code == 0, stderr
    assert len(written) >= 1200
    code, written, stderr = on_terminal("pack", "-", "-o", "x")
    assert code == 2
    assert b"standard input is a terminal" in stderr
