# SPDX-License-Identifier: Apache-2.0
"""ComfyUI itself, on the CPU: text -> image through its own nodes, of a plain checkpoint, LoRA and VAE and of packed ones; `comfyui_pipeline.py` has the workflow.

WEIGHTPACK_COMFYUI names a checkout of it, and scripts/test-programs installs what it needs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import weightpack

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = os.environ.get("WEIGHTPACK_COMFYUI", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not COMFYUI, reason="WEIGHTPACK_COMFYUI names no checkout of ComfyUI"),
    pytest.mark.skipif(importlib.util.find_spec("torchsde") is None, reason="scripts/test-programs installs what ComfyUI needs"),
]
FOLDERS = ("checkpoints", "loras", "vae")


def pipeline(checkout, models, *arguments, **options):
    program = [sys.executable, ROOT / "tests" / "ecosystem" / "comfyui_pipeline.py", checkout, models, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(program, capture_output=True, text=True, env=environment, timeout=1200, check=False, **options)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy by links of the checkout, with the node pack in its custom_nodes."""
    folder = tmp_path_factory.mktemp("comfyui")
    for path in Path(COMFYUI).iterdir():
        if path.name not in ("custom_nodes", "models", "user", "output", "temp", "input", ".git"):
            (folder / path.name).symlink_to(path.resolve())
    shutil.copytree(ROOT / "integrations" / "comfyui", folder / "custom_nodes" / "weightpack")
    return folder


@pytest.fixture(scope="module")
def models(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = pipeline(checkout, folder, "make")
    assert made.returncode == 0, made.stderr
    for name in FOLDERS:
        weightpack.pack(folder / name / "plain.safetensors", folder / name / "packed.safetensors")
    return folder


@pytest.mark.parametrize("dynamic_vram", ["off", "on"])
def test_same_image(checkout, models, dynamic_vram):
    if dynamic_vram == "on" and not (checkout / "comfy" / "memory_management.py").exists():
        pytest.skip("this ComfyUI has no Dynamic VRAM")
    if dynamic_vram == "on" and importlib.util.find_spec("comfy_aimdo") is None:
        pytest.skip("scripts/test-programs installs comfy-aimdo")
    ran = pipeline(checkout, models, dynamic_vram, "plain.safetensors", "packed.safetensors")
    assert ran.returncode == 0, ran.stderr
    plain, packed = json.loads(ran.stdout.splitlines()[-1]).values()
    assert plain.pop("mapped") == (dynamic_vram == "on")
    assert not packed.pop("mapped")
    assert min(plain["spread"]) > 100, "it is a picture"
    assert packed == plain


def test_without_the_node_pack(checkout, models):
    """What makes the packed one load is the node pack, and nothing else."""
    (checkout / "custom_nodes" / "weightpack").rename(checkout / "custom_nodes" / "other")
    try:
        assert pipeline(checkout, models, "off", "packed.safetensors").returncode != 0
    finally:
        (checkout / "custom_nodes" / "other").rename(checkout / "custom_nodes" / "weightpack")
