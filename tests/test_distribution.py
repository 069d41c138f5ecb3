# SPDX-License-Identifier: Apache-2.0
"""What the files that build, test and publish the package say of each other. `scripts/test-install` and `scripts/test-oldest` do what they describe."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def versions(lines, sign):
    """Return name -> version of lines such as "numpy>=1.24"."""
    pairs = (line.split("#")[0].strip().split(sign) for line in lines if line.split("#")[0].strip())
    return {name: tuple(int(part) for part in re.findall(r"\d+", version)) for name, version in pairs}


def test_oldest_constraints_are_the_lower_bounds():
    constraints = versions((ROOT / "constraints-oldest.txt").read_text().splitlines(), "==")
    extras = PROJECT["project"]["optional-dependencies"]
    bounds = versions([*PROJECT["project"]["dependencies"], *extras["torch"], *extras["test"]], ">=")
    del bounds["torch"]  # constraints-oldest.txt says why
    for name, bound in bounds.items():
        exact = constraints[name]
        assert exact[: len(bound)] == bound, name
        assert not any(exact[len(bound) :]), name


def test_wheels_are_tested_with_files_that_exist():
    wheels = PROJECT["tool"]["cibuildwheel"]
    sources = [ROOT / name for name in wheels["test-sources"]]
    assert all(path.exists() for path in sources)
    tests = [ROOT / word for word in wheels["test-command"].split() if word.startswith("tests/")]
    assert tests
    assert all(path.is_file() and ROOT / "tests" in sources for path in tests)


def test_actions_are_named_by_commit():
    if not WORKFLOWS:
        pytest.skip("no workflows here: this is an sdist")
    uses = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert uses
    for line in uses:
        assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line
