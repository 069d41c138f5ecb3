# SPDX-License-Identifier: Apache-2.0
"""Every example of docs/ECOSYSTEM.md and docs/RESIDENT.md, as it stands there, on MiniLM."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="scripts/test-ecosystem installs the libraries (beside transformers 5) and runs this")

import weightpack

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = [section for page in ("ECOSYSTEM.md", "RESIDENT.md") for section in (DOCS / page).read_text().split("\n## ")]
EXAMPLES = {section.splitlines()[0]: re.findall(r"```python\n(.*?)```", section, re.S) for section in SECTIONS}


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    weightpack.pack(model("minilm"), folder / "minilm-wp")
    return folder


ALL = [(section, i) for section, examples in EXAMPLES.items() for i in range(len(examples))]


@pytest.mark.parametrize(("section", "i"), [ALL[0], *(pytest.param(*each, marks=pytest.mark.long) for each in ALL[1:])])
def test_example(folder, section, i):
    done = subprocess.run([sys.executable, "-c", EXAMPLES[section][i]], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
