# SPDX-License-Identifier: Apache-2.0
"""Figures for people."""

from __future__ import annotations


def human_bytes(n_bytes: float) -> str:
    """Format a count of bytes in powers of 1000, as disks and the Hub do."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n_bytes) < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.{1 if n_bytes >= 10 else 2}f} {unit}"
        n_bytes /= 1000
    raise AssertionError


def percent(part: int, whole: int) -> str:
    """Format part / whole."""
    return f"{100 * part / whole:.2f} %" if whole else "100 %"


def table(rows: list[list[str]], *, right: str) -> str:
    """Lay out rows in columns; `right` has an "r" for each column that is aligned right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(w) if r == "r" else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
