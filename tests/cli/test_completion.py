# SPDX-License-Identifier: Apache-2.0
"""Completions, by the protocol that the shells' scripts speak: COMP_WORDS and COMP_CWORD in, one offer a line out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import samples
from command import PROGRAM

import weightpack
from weightpack.options import profiles

ROOT = Path(__file__).resolve().parents[2]


def offers(cwd, line):
    """Return what bash is told of the last word of a line: (type, value) each."""
    words = line.split(" ")
    env = {**os.environ, "_WEIGHTPACK_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    program = "import sys; sys.argv[0] = 'weightpack'; import weightpack.cli; weightpack.cli.main()"
    done = subprocess.run([PROGRAM[0], "-c", program], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [tuple(row.split(",", 1)) for row in done.stdout.splitlines() if row]


def test_verbs_profiles_files_and_tensors(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(samples.mixed_file())
    weightpack.pack(tmp_path / "model.safetensors")
    assert ("plain", "pack") in offers(tmp_path, "weightpack pa")
    assert {value for _, value in offers(tmp_path, "weightpack pack --profile ")} == set(profiles())
    assert offers(tmp_path, "weightpack pack --profile de") == [("plain", "dense")]
    assert offers(tmp_path, "weightpack pack --profile ./mine") == [("file", "./mine")]
    for line in ("weightpack pack mod", "weightpack pack a.safetensors -o mod", "weightpack unpack mod", "weightpack pack --base mod", "weightpack diff a mod"):
        assert offers(tmp_path, line) == [("file", "mod")], line
    assert ("plain", "--codec") in offers(tmp_path, "weightpack pack --co")
    assert offers(tmp_path, "weightpack pack --codec h") == [("plain", "huffman")]
    for name in ("model.safetensors", "model.wp.safetensors"):
        assert offers(tmp_path, f"weightpack cat {name} tied") == [("plain", "tied.a"), ("plain", "tied.b")]
    assert offers(tmp_path, "weightpack cat none.safetensors tied") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_and_the_documentation_says_how(tmp_path, shell):
    env = {**os.environ, "_WEIGHTPACK_COMPLETE": f"{shell}_source"}
    done = subprocess.run([*PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    if shell == "bash" and done.returncode:
        pytest.skip(f"click makes no script for this bash: {done.stderr}")
    assert f"_WEIGHTPACK_COMPLETE={shell}_complete" in done.stdout
    assert f"_WEIGHTPACK_COMPLETE={shell}_source" in (ROOT / "docs" / "COMMAND_LINE.md").read_text()


def test_bash_completes_with_it(tmp_path):
    """The script in a real bash, as Tab would call it."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "weightpack"
    program.write_text(f'#!/bin/sh\nexec {PROGRAM[0]} -m weightpack "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(_WEIGHTPACK_COMPLETE=bash_source weightpack)"\n'
        "COMP_WORDS=(weightpack pack --profile de); COMP_CWORD=3\n"
        '_weightpack_completion weightpack; echo "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["dense"], done.stderr
