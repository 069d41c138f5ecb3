# SPDX-License-Identifier: Apache-2.0
"""These tests need libraries that the package does not: scripts/test-ecosystem installs them. Elsewhere they are skipped, by module."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before any Hub client is imported: there is no Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def enabled():
    """Packed files are read through safetensors for the length of a test."""
    import weightpack

    weightpack.enable()
    yield
    weightpack.disable()
