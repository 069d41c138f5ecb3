# SPDX-License-Identifier: Apache-2.0
"""A store, and a cache of its own for the database of objects."""

from __future__ import annotations

import pytest

from weightpack import Store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTPACK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", make=True, threads=2)
