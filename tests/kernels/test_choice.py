# SPDX-License-Identifier: Apache-2.0
"""Which backend runs: the best that the CPU can, the one that is named, numpy where no core was compiled."""

from __future__ import annotations

import pytest

from weightpack import kernels
from weightpack.errors import OptionError


def test_unknown_isa_is_an_error(monkeypatch):
    with pytest.raises(OptionError, match="numpy"), kernels.use_isa("sse9"):
        pass
    monkeypatch.setenv("WEIGHTPACK_ISA", "sse9")
    monkeypatch.setattr(kernels, "_active", None)
    with pytest.raises(OptionError, match="sse9"):
        kernels.active()


def test_best_isa_is_what_the_cpu_says(monkeypatch):
    try:
        with open("/proc/cpuinfo") as file:
            flags = set(next(line for line in file if line.startswith("flags")).split())
    except (OSError, StopIteration):
        pytest.skip("no /proc/cpuinfo with x86 flags here")
    best = "scalar"
    if {"avx2", "bmi1", "bmi2", "pclmulqdq", "sse4_2", "popcnt"} <= flags:
        best = "avx2"
        if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vbmi2", "vpclmulqdq"} <= flags:
            best = "avx512"
    monkeypatch.delenv("WEIGHTPACK_ISA", raising=False)
    monkeypatch.setattr(kernels, "_active", None)
    assert kernels.isa() == best


def test_numpy_alone_works_and_says_so_once(monkeypatch):
    from weightpack.kernels import native

    monkeypatch.delenv("WEIGHTPACK_ISA", raising=False)
    monkeypatch.setattr(native, "_BUILT", False)
    monkeypatch.setattr(kernels, "_active", None)
    with pytest.warns(RuntimeWarning, match="native core is not built"):
        assert kernels.isa() == "numpy"
    assert kernels.isa() == "numpy"  # warnings are errors here: a second one would fail
