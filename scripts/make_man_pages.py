#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write man/*.1 from the command line, by click-man:  python scripts/make_man_pages.py [FOLDER]   (scripts/docs --man does it in its environment)

No date stands in them, so that they change with the command line alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest import mock

import click
from click_man.core import write_man_pages

from weightpack import cli
from weightpack._version import __version__

FOLDER = Path(__file__).resolve().parents[1] / "man"


def _first_sentence(command: click.Command, limit: int = 0) -> str:
    """Return what click cuts off at 45 characters."""
    paragraph = " ".join((command.help or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.;])\s", paragraph)[0].rstrip(".;")


def _tidied(page: str, command: str) -> str:
    page = re.sub(r"^\.TH .*$", f'.TH "{command.upper()}" "1" "" "weightpack {__version__}" "weightpack manual"', page, count=1, flags=re.M)
    page = page.replace(".SH COMMANDS\n.PP\n", ".SH COMMANDS\n")
    lines = [re.sub(r"^(?=')", r"\\&", line).rstrip() for line in page.splitlines()]
    codes = " ".join((cli.__doc__ or "").partition("Exit codes: ")[2].split())
    lines += [".SH EXIT STATUS", codes]
    if command != "weightpack":
        lines += [".SH SEE ALSO", r"\fBweightpack\fP(1)"]
    return "\n".join(lines) + "\n"


def make(folder: Path) -> list[Path]:
    """Write a page for the program and one for each verb; return them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.1"):
        old.unlink()
    with mock.patch("click_man.core.get_short_help_str", _first_sentence):
        write_man_pages("weightpack", cli.cli, version=__version__, target_dir=str(folder))
    pages = sorted(folder.glob("*.1"))
    for page in pages:
        page.write_text(_tidied(page.read_text(encoding="utf-8"), page.stem), encoding="utf-8")
    return pages


if __name__ == "__main__":
    for page in make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(page)
