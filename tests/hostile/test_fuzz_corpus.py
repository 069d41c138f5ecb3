# SPDX-License-Identifier: Apache-2.0
"""What fuzzing found or reached before, and the golden files, go through the fuzz targets again; `scripts/sanitize` replays the inputs of native targets."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_targets import GOLDEN, TARGETS

from weightpack import kernels

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz_corpus"


def inputs(target):
    return sorted((CORPUS / target).iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_of_the_corpus_keep_the_promise(target):
    files = inputs(target)
    assert files
    for path in files:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(ROOT)} breaks the target {target!r}") from error


@pytest.mark.parametrize("target", ["tensor", "frame", "packed"])
def test_inputs_of_decoders_keep_the_promise_on_each_backend(isa, target):
    if isa == kernels.available_isas()[-1]:
        pytest.skip("the best backend ran them already")
    test_inputs_of_the_corpus_keep_the_promise(target)


@pytest.mark.parametrize("path", sorted(path for path in GOLDEN.glob("*.safetensors") if path.stat().st_size < 16_000), ids=lambda path: path.stem)
def test_golden_files_keep_the_promise(path):
    TARGETS["packed"](path.read_bytes())


def test_every_target_has_a_corpus():
    native = {path.stem for path in (ROOT / "native" / "fuzz").glob("*.c")} - {"replay"}
    assert {path.name for path in CORPUS.iterdir()} == native | set(TARGETS)
    assert all(inputs(target) for target in native)
