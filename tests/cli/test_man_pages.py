# SPDX-License-Identifier: Apache-2.0
"""man/ is what the command line says; the wheel installs it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from weightpack.cli import cli

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "man"


def pages(name, command):
    """Return page -> command, of a command and of what is below it."""
    found = {name: command}
    for below, inner in getattr(command, "commands", {}).items():
        found |= pages(f"{name}-{below}", inner)
    return found


PAGES = pages("weightpack", cli)


def words(text):
    """Return a page's text, or a help text, without roff and white space."""
    text = re.sub(r"^\.[A-Z]+\b|\\f[BPIR]|\\&", "", text, flags=re.M)
    return " ".join(text.replace("\\-", "-").split())


def test_there_is_a_page_for_each_verb():
    assert {path.stem for path in FOLDER.iterdir()} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_page_says_what_help_says(page):
    command, text = PAGES[page], words((FOLDER / f"{page}.1").read_text(encoding="utf-8"))
    assert words(command.help) in text, "run scripts/docs --man"
    with click.Context(command, info_name=page) as context:
        for option in command.get_params(context):
            record = option.get_help_record(context)
            if record and "--help" not in record[0]:
                assert words(" ".join(record)) in text, "run scripts/docs --man"


@pytest.mark.filterwarnings("ignore:.*click.utils.*:DeprecationWarning")  # of click-man's own
def test_pages_are_those_that_are_made_now(tmp_path):
    pytest.importorskip("click_man", reason="scripts/docs --check installs click-man and runs this")
    import make_man_pages

    made = {path.name: path.read_text(encoding="utf-8") for path in make_man_pages.make(tmp_path)}
    assert made == {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}, "run scripts/docs --man"


def test_wheel_installs_them():
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    assert files == {"share/man/man1": ["man/*.1"]}
