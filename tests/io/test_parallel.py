# SPDX-License-Identifier: Apache-2.0
"""How many threads work, where nobody says how many."""

from __future__ import annotations

import os

import pytest

from weightpack.errors import OptionError
from weightpack.io.parallel import THREADS_VARIABLE, thread_count


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_processes_of_a_machine_share_its_cpus(monkeypatch):
    assert thread_count(None) == 8
    assert thread_count(None, 3) == 2
    assert thread_count(None, 100) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun
    assert thread_count(None) == 2
    assert thread_count(None, 1) == 8
    assert thread_count(5) == 5


def test_the_variable_names_the_number(monkeypatch):
    monkeypatch.setenv(THREADS_VARIABLE, "3")
    assert thread_count(None) == thread_count(None, 2) == 3
    assert thread_count(5) == 5
    for text in ("0", "-1", "many"):
        monkeypatch.setenv(THREADS_VARIABLE, text)
        with pytest.raises(OptionError, match=THREADS_VARIABLE):
            thread_count(None)
