# SPDX-License-Identifier: Apache-2.0
"""Every block of docs/RECIPES.md, as it stands there: the blocks of a section one after the other, in a folder of its own that holds what the page says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import finetunes
import fuse
import hub_double
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "RECIPES.md").read_text()
SECTIONS = {section.splitlines()[0]: re.findall(r"```(sh|python)\n(.*?)```", section, re.S) for section in PAGE.split("\n## ")[1:]}
LIBRARIES = ("transformers", "diffusers", "peft", "sentence_transformers")
TENSORS = [f"encoder.layer.{i}.weight" for i in range(3)]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """What the page takes for granted."""
    torch = pytest.importorskip("torch")
    import series_run

    folder = tmp_path_factory.mktemp("material")
    weights = {name: finetunes.weights(i) for i, name in enumerate(TENSORS)}
    tuned = {name: finetunes.stepped(values, 9) for name, values in weights.items()}
    for name, tensors in {"my-model": weights, "my-finetune": tuned}.items():
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(finetunes.model_file(tensors))
        (folder / name / "config.json").write_text('{"model_type": "bert"}')
        (folder / name / "README.md").write_text("# Tiny\n")
    shutil.copy(folder / "my-model" / "model.safetensors", folder)
    torch.save({name: torch.from_numpy(values) for name, values in weights.items()}, folder / "pytorch_model.bin")
    series_run.plain(folder / "run", 3)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A folder for PATH, with a `weightpack` of the code under test."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "weightpack").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m weightpack "$@"\n')
    (folder / "weightpack").chmod(0o755)
    return folder


def test_each_section_has_a_block():
    assert len(SECTIONS) > 10
    assert all(SECTIONS.values())
    assert PAGE.count("\n```") == 2 * sum(map(len, SECTIONS.values())), "a block that is neither sh nor python does not run"


@pytest.mark.parametrize("section", SECTIONS)
def test_recipe(section, material, program, tmp_path, request):
    code = "".join(block for _, block in SECTIONS[section])
    for library in LIBRARIES:
        if re.search(rf"^(?:from|import) {library}\b", code, re.M) and importlib.util.find_spec(library) is None:
            pytest.skip(f"scripts/test-ecosystem installs {library} and runs this")
    if "weightpack mount" in code and fuse.REASON:
        pytest.skip(fuse.REASON)
    folder = tmp_path / "folder"
    shutil.copytree(material, folder)
    if '"minilm"' in code:
        shutil.copytree(request.getfixturevalue("model")("minilm"), folder / "minilm")
    with hub_double.serve() as hub:
        environment = {**os.environ, **hub_double.Client(hub, tmp_path).env, "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("HF_HUB_OFFLINE", None)  # set by scripts/test-ecosystem; the Hub here is the test's own
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        for language, block in SECTIONS[section]:
            command = ["bash", "-euo", "pipefail", "-c", block] if language == "sh" else [sys.executable, "-c", block]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
