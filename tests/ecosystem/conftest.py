# SPDX-License-Identifier: Apache-2.0
"""These tests need libraries that the package does not: scripts/test-ecosystem installs them. Elsewhere they are skipped, by module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def enabled():
    """Packed files are read through safetensors for the length of a test."""
    import weightpack

    weightpack.enable()
    yield
    weightpack.disable()
