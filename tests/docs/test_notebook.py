# SPDX-License-Identifier: Apache-2.0
"""The notebooks of docs/ do what their committed outputs say: run as plain programs everywhere, and as notebooks where nbclient is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the notebook is for PyTorch")

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "docs" / "notebooks" / "quickstart.ipynb"


def printed(cells):
    """Return what each code cell printed."""
    return ["".join("".join(output.get("text", "")) for output in cell["outputs"]) for cell in cells if cell["cell_type"] == "code"]


def test_cells_print_what_is_committed(tmp_path):
    cells = json.loads(QUICKSTART.read_text(encoding="utf-8"))["cells"]
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(printed(cells)), "scripts/docs --notebook runs it anew"


def test_every_cell_was_executed():
    cells = [cell for cell in json.loads(QUICKSTART.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.get("name") for cell in cells for output in cell["outputs"]} == {"stdout"}, "an error or a warning is shown"


@pytest.mark.filterwarnings("ignore")  # of jupyter's own
def test_notebook_executes():
    pytest.importorskip("nbclient", reason="scripts/docs --check installs nbclient and runs this")
    import run_notebook

    assert printed(run_notebook.executed(QUICKSTART)["cells"]) == printed(json.loads(QUICKSTART.read_text(encoding="utf-8"))["cells"])
