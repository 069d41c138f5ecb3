# SPDX-License-Identifier: Apache-2.0
"""Execute a notebook of docs/notebooks in an empty folder, and keep what it printed:  scripts/run_notebook.py [NOTEBOOK]

What depends on the run (times, the version of Python) is left out, so that the same notebook gives the same file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

QUICKSTART = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "quickstart.ipynb"


def executed(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a fresh run; a cell that fails raises."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else QUICKSTART
    nbformat.write(executed(path), path)
