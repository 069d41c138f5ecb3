# SPDX-License-Identifier: Apache-2.0
"""ComfyUI itself, on the CPU: text -> image through its own nodes, of a plain checkpoint, LoRA and VAE and of packed ones. `comfyui_pipeline.py` has the
workflow.

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


def pipeline(base, *arguments):
    program = [sys.executable, ROOT / "tests" / "ecosystem" / "comfyui_pipeline.py", COMFYUI, base, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(program, capture_output=True, text=True, env=environment, timeout=1200, check=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What ComfyUI calls its base directory, with models, plain and packed, and the node pack."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(ROOT / "integrations" / "comfyui", folder / "custom_nodes" / "weightpack")
    made = pipeline(folder, "make")
    assert made.returncode == 0, made.stderr
    for kind in FOLDERS:
        weightpack.pack(folder / "models" / kind / "plain.safetensors", folder / "models" / kind / "packed.safetensors")
    return folder


@pytest.mark.parametrize("dynamic_vram", ["off", "on"])
def test_same_image(base, dynamic_vram):
    if dynamic_vram == "on" and not (Path(COMFYUI) / "comfy" / "memory_management.py").exists():
        pytest.skip("this ComfyUI has no Dynamic VRAM")
    if dynamic_vram == "on" and importlib.util.find_spec("comfy_aimdo") is None:
        pytest.skip("scripts/test-programs installs comfy-aimdo")
    ran = pipeline(base, dynamic_vram, "plain.safetensors", "packed.safetensors")
    assert ran.returncode == 0, ran.stderr
    plain, packed = json.loads(ran.stdout.splitlines()[-1]).values()
    assert plain.pop("mapped") == (dynamic_vram == "on")
    assert not packed.pop("mapped")
    assert min(plain["spread"]) > 100, "it is a picture"
    assert packed == plain


def test_without_the_node_pack(base):
    """What makes the packed one load is the node pack, and nothing else."""
    (base / "custom_nodes" / "weightpack").rename(base / "elsewhere")
    try:
        assert pipeline(base, "off", "packed.safetensors").returncode != 0
    finally:
        (base / "elsewhere").rename(base / "custom_nodes" / "weightpack")
