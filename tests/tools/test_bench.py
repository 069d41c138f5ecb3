# SPDX-License-Identifier: Apache-2.0
"""weightpack bench: its figures are of real round trips. What they are is not tested."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import samples

from weightpack import kernels
from weightpack.errors import LosslessError, OptionError
from weightpack.tools import bench as measure


def bench(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "weightpack", "bench", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_bench_of_a_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(samples.bf16_file(seed=1, name="w", n=300_000))
    done = bench("model.safetensors", "--json", "--folder", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (memory,) = report["memory"]
    assert (memory["dtype"], memory["source_bytes"]) == ("BF16", 600_000)
    assert {speed["isa"] for speed in memory["speeds"]} == {isa for isa in kernels.available_isas() if isa != "numpy"} or len(kernels.available_isas()) == 1
    assert {speed["codec"] for speed in memory["speeds"]} == set(measure.CODECS)
    sizes = {speed["packed_bytes"] for speed in memory["speeds"] if speed["codec"] == "auto"}
    assert len(sizes) == 1
    assert 0.6 < sizes.pop() / 600_000 < 0.75
    assert all(speed[key] > 0 for speed in memory["speeds"] for key in ("encode_seconds", "decode_seconds"))
    assert all(file["folder"] == str(tmp_path) and file["packed_bytes"] < file["source_bytes"] for file in report["files"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_bench_without_a_file(tmp_path):
    done = bench("--megabytes", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "memcpy" in done.stdout
    assert "F32" in done.stdout


def test_bench_of_nothing(tmp_path):
    (tmp_path / "small.safetensors").write_bytes(samples.bf16_file(seed=1, name="w", n=100))
    assert bench("small.safetensors", cwd=tmp_path).returncode == 2
    assert bench("none.safetensors", cwd=tmp_path).returncode == 2
    with pytest.raises(OptionError):
        measure.bench(str(tmp_path / "small.safetensors"))


def test_a_wrong_round_trip_is_not_timed(monkeypatch):
    monkeypatch.setattr(measure, "decode_record", lambda record, out, threads: None)
    with pytest.raises(LosslessError):
        measure.measure_memory("BF16", np.frombuffer(samples.weights(100_000, "BF16"), np.uint8), threads=1)
