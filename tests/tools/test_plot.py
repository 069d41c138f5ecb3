# SPDX-License-Identifier: Apache-2.0
"""weightpack inspect --plot: a picture of what each plane costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import samples

import weightpack
from weightpack.errors import OptionError
from weightpack.tools.plot import plot_planes


def test_plot_of_the_planes(tmp_path):
    (tmp_path / "model.gguf").write_bytes(samples.other_files()["gguf"])
    packed = weightpack.pack(tmp_path / "model.gguf", options=weightpack.load_profile("dense")).target
    done = subprocess.run([sys.executable, "-m", "weightpack", "inspect", packed, "--plot", "p.svg"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "p.svg").read_text()
    assert picture.lstrip().startswith("<?xml")
    with pytest.raises(OptionError, match=r"\.png"):
        plot_planes(packed, tmp_path / "p.gif")
