# SPDX-License-Identifier: Apache-2.0
"""Golden files: what a release wrote, every backend and the reference decoder read, and the writer still writes the same bytes."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import samples
import zstandard

import weightpack
from weightpack import reference

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
MANIFESTS = {version.name: json.loads((version / "manifest.json").read_text()) for version in sorted(GOLDEN.iterdir())}
CASES = [(version, name) for version, manifest in MANIFESTS.items() for name in manifest]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def bases_of(version, name):
    """Return the golden files that one needs as its base."""
    return [GOLDEN / version / f"{each}.safetensors" for each in MANIFESTS[version][name].get("bases", ())]


def ancestors(version, name):
    """Return those, and what they need."""
    return [path for each in bases_of(version, name) for path in (each, *ancestors(version, each.stem))]


def test_there_are_golden_files():
    assert len(CASES) >= 15
    assert any(len(bases_of(*case)) > 1 for case in CASES)
    assert any(len(ancestors(*case)) > len(bases_of(*case)) for case in CASES)
    for version, manifest in MANIFESTS.items():
        assert {p.stem for p in (GOLDEN / version).glob("*.safetensors")} == set(manifest)


@pytest.mark.parametrize(("version", "name"), CASES, ids=lambda value: value)
def test_golden_file_is_unchanged_and_decodes(isa, tmp_path, version, name):
    path, expected = GOLDEN / version / f"{name}.safetensors", MANIFESTS[version][name]
    assert sha256(path.read_bytes()) == expected["sha256"], "a golden file was changed: they are append-only"
    weightpack.unpack(path, tmp_path / "source", base=samples.base_path(bases_of(version, name), tmp_path / "base"))
    assert sha256((tmp_path / "source").read_bytes()) == expected["source_sha256"]


@pytest.mark.parametrize(("version", "name"), CASES, ids=lambda value: value)
def test_reference_decoder_reads_golden_file(version, name):
    bases = [path.read_bytes() for path in ancestors(version, name)]
    source = reference.decode_file((GOLDEN / version / f"{name}.safetensors").read_bytes(), bases=bases)
    assert sha256(source) == MANIFESTS[version][name]["source_sha256"]


@pytest.mark.parametrize(("version", "name"), CASES, ids=lambda value: value)
def test_writer_still_writes_the_golden_bytes(isa, tmp_path, version, name, pytestconfig):
    expected = MANIFESTS[version][name]
    if not expected["written_by"].endswith(f"zstandard {zstandard.__version__}"):
        pytest.skip(f"written with {expected['written_by']}: another zstd library may write other bytes (FORMAT section 10)")
    if "writer_changed" in expected:
        pytest.skip(f"today's writer writes it otherwise: {expected['writer_changed']}")
    if (isa, name) == ("numpy", "quantised") and not pytestconfig.getoption("--all"):
        pytest.skip("long: runs with --all")
    golden = GOLDEN / version / f"{name}.safetensors"
    base = samples.base_path(bases_of(version, name), tmp_path / "base")
    weightpack.unpack(golden, tmp_path / "source", base=base)
    options = weightpack.PackOptions(**{key: tuple(value) if key == "codecs" else value for key, value in {"scales": False, **expected["options"]}.items()})
    weightpack.pack(tmp_path / "source", tmp_path / "packed", base=base, options=options)
    assert (tmp_path / "packed").read_bytes() == golden.read_bytes()


def test_golden_files_are_append_only():
    """No commit changed or removed a golden file."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def commits(changes):
        log = ["git", "log", f"--diff-filter={changes}", "--format=%h", "--", "tests/golden/*.safetensors"]
        return subprocess.run(log, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

    assert commits("A")
    assert commits("MDRT") == []
