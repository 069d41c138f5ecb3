# SPDX-License-Identifier: Apache-2.0
"""A picture of where the bits of a packed file go, tensor by tensor and plane by plane."""

from __future__ import annotations

import os
from pathlib import Path

from weightpack.errors import MissingExtraError, OptionError
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import LocalFile
from weightpack.reading.inspect import PlanesReport, inspect_planes
from weightpack.reading.packed_file import PackedFile

_MOST_TENSORS = 40
_SUFFIXES = (".png", ".svg", ".pdf")


def plot_planes(src: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Draw bits per element by tensor and plane, of a packed file's largest tensors, into a picture (.png, .svg or .pdf).

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    OptionError
        The target is of another kind, or the file has no tensors.
    """
    if Path(target).suffix not in _SUFFIXES:
        raise OptionError(f"a picture is one of {', '.join(_SUFFIXES)}", path=os.fspath(target))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("a picture needs matplotlib: pip install 'weightpack[plot]'") from None
    with LocalFile(src) as file:
        reports = inspect_planes(PackedFile(file))
    if not reports:
        raise OptionError("the file has no tensors", path=os.fspath(src))
    shown = reports[:_MOST_TENSORS]
    names = sorted({name for report in shown for name in report.planes}, key=lambda name: -sum(report.planes.get(name, 0) for report in shown))
    figure = Figure(figsize=(11, 1.6 + 0.26 * len(shown)), layout="constrained")
    axis = figure.add_subplot()
    labels = [f"{_shortened(report.name)}  {report.dtype}" for report in shown]
    lefts = [0.0] * len(shown)
    for name in names:
        bits = [8 * report.planes.get(name, 0) / report.n_elems for report in shown]
        axis.barh(range(len(shown)), bits, left=lefts, label=name, height=0.75)
        lefts = [left + width for left, width in zip(lefts, bits, strict=True)]
    for row, report in enumerate(shown):  # what it was
        full = DTYPE_BITS.get(report.dtype, 8)
        axis.plot([full, full], [row - 0.4, row + 0.4], color="black", linewidth=1.2)
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("bits an element in the packed file; a black line: in the original")
    axis.set_title(_title(os.fspath(src), reports, len(shown)), fontsize=10)
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.6 / figure.get_figheight()), ncols=4, fontsize=8, frameon=False)
    figure.savefig(target, dpi=110)


def _shortened(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:28]}...{name[-28:]}"


def _title(src: str, reports: list[PlanesReport], n_shown: int) -> str:
    rest = f", the {n_shown} largest of {len(reports)} tensors" if n_shown < len(reports) else ""
    return f"{Path(src).name}{rest}"
