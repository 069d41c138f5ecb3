# SPDX-License-Identifier: Apache-2.0
"""The conda recipe, the image and the workflow say of the package what pyproject.toml says. `scripts/wheels` and `scripts/test-install` build what they can."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from weightpack._version import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RECIPE = ROOT / "conda" / "recipe.yaml"
DOCKERFILE = ROOT / "Dockerfile"


def requirement(line):
    """Return name and bound, without white space, of "numpy >=1.24" or "numpy>=1.24"."""
    return line.replace(" ", "")


def test_recipe_has_the_version_and_the_dependencies():
    yaml = pytest.importorskip("yaml", reason="huggingface_hub brings PyYAML")
    recipe = yaml.safe_load(RECIPE.read_text())
    assert recipe["context"]["version"] == __version__
    assert f">={recipe['context']['python_min']}" == PROJECT["project"]["requires-python"]
    run = [requirement(line) for line in recipe["requirements"]["run"][1:]]
    assert run == [requirement(line) for line in PROJECT["project"]["dependencies"]]
    optional = {requirement(line).replace("torch", "pytorch", 1) for line in PROJECT["project"]["optional-dependencies"]["torch"]}
    assert {requirement(line) for line in recipe["requirements"]["run_constraints"]} == optional
    (script,) = PROJECT["project"]["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(script)]
    assert recipe["about"]["summary"] == PROJECT["project"]["description"]
    assert requirement(next(line for line in recipe["requirements"]["host"] if line.startswith("setuptools"))) in PROJECT["build-system"]["requires"]


def test_rattler_build_takes_the_recipe():
    rattler_build = pytest.importorskip("rattler_build", reason="scripts/test-install installs py-rattler-build and runs this")
    variants = rattler_build.VariantConfig({"c_compiler": ["gcc"], "c_stdlib": ["sysroot"]})
    (rendered,) = rattler_build.Stage0Recipe.from_file(RECIPE).render(variants, rattler_build.RenderConfig())
    assert rendered.recipe.package.name == "weightpack"
    assert rendered.recipe.package.version == __version__


def test_image_is_built_from_files_that_are_there():
    allowed = [line[1:].removesuffix("/**") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in allowed), allowed
    needed = {"weightpack", "native", "configs", "man", "pyproject.toml", "setup.py", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    text = DOCKERFILE.read_text()
    needed |= set(re.findall(r"^COPY (?:--\S+ )*([\w./]+\w) /", text, re.M)) | set(re.findall(r"-c (\S+)", text))
    assert needed <= set(allowed)
    assert re.search(r"^USER (?!root)\w+$", text, re.M)
    assert 'ENTRYPOINT ["weightpack"]' in text


def test_everything_that_is_built_is_tried_by_the_same_program():
    smoke = "scripts/smoke.py"
    assert smoke in PROJECT["tool"]["cibuildwheel"]["test-command"]
    for name in ("scripts/wheels", "conda/recipe.yaml", "Dockerfile"):
        assert smoke in (ROOT / name).read_text(), name
