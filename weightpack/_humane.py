# SPDX-License-Identifier: Apache-2.0
"""Figures and texts for people."""

from __future__ import annotations


def human_bytes(n_bytes: float) -> str:
    """Format a count of bytes in powers of 1000, as disks and the Hub do."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n_bytes) < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.{1 if n_bytes >= 10 else 2}f} {unit}"
        n_bytes /= 1000
    raise AssertionError


def percent(part: int, whole: int) -> str:
    """Format part / whole; of nothing there is no share."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def printable(text: str) -> str:
    """Return a text from anywhere as one harmless line for a terminal.

    Names in files are anybody's: an escape sequence can clear the screen or fill the clipboard, a line end fake a line of ours, a mark of direction turn a name
    round. Whatever is no visible character or plain space stands as Python's escape.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def table(rows: list[list[str]], *, right: str) -> str:
    """Lay out rows in columns, each cell `printable`; `right` has an "r" for each column that is aligned right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(w) if r == "r" else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
