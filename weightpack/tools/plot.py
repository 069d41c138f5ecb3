# SPDX-License-Identifier: Apache-2.0
"""Pictures: where the bits of a packed file go, tensor by tensor and plane by plane; and the models of a store, as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightpack import api
from weightpack._humane import printable
from weightpack.errors import MissingExtraError, OptionError
from weightpack.format.layouts import DTYPE_BITS
from weightpack.io.files import RandomReader
from weightpack.reading.inspect import PlanesReport, inspect_planes
from weightpack.reading.packed_file import PackedFile
from weightpack.store.usage import Branch

_MOST_TENSORS, _MOST_MODELS = 40, 200
_SUFFIXES = (".png", ".svg", ".pdf")


def plot_planes(src: api.PathLike, target: api.PathLike, *, revision: str | None = None, token: str | None = None) -> list[Path]:
    """Draw bits per element by tensor and plane, of a packed file's largest tensors, into a picture (.png, .svg or .pdf).

    Parameters
    ----------
    src
        A file, a directory, a URL or a repo id.
    target
        Of a directory or repo with several files, each gets a picture with its name in it: `planes-model-00001-of-00002.png` for `planes.png`.

    Returns
    -------
    list of Path
        The pictures.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    OptionError
        The target is of another kind, or a file has no tensors.
    FormatError
        A file is not packed, or damaged.
    """
    goal = _picture(target)
    with api.open_weights(src, revision=revision, token=token) as files:
        stems = [Path(file.name).stem for file in files]
        pictures = [goal] if len(files) == 1 else [goal.with_name(f"{goal.stem}-{stem}{goal.suffix}") for stem in stems]
        if len(set(pictures)) < len(pictures):
            raise OptionError("files in several folders have one name: name a folder, or a file", path=str(src))
        for file, picture in zip(files, pictures, strict=True):
            _plot_file(file, picture)
    return pictures


def plot_tree(branches: Sequence[Branch], target: api.PathLike) -> Path:
    """Draw the models of a store as a tree, and what each had and takes, into a picture (.png, .svg or .pdf); return it.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    OptionError
        The target is of another kind, or there are no models, or more than a picture shows.
    """
    goal = _picture(target)
    if not 0 < len(branches) <= _MOST_MODELS:
        raise OptionError(f"a picture shows 1 to {_MOST_MODELS} models, not {len(branches)}", path=str(goal))
    rows, figure = range(len(branches)), _figure()(figsize=(11, 1.4 + 0.3 * len(branches)), layout="constrained")
    axis = figure.add_subplot()
    axis.barh(rows, [branch.usage.source_bytes / 1e6 for branch in branches], height=0.8, color="0.88", label="original")
    axis.barh(rows, [branch.usage.fair_bytes / 1e6 for branch in branches], height=0.5, label="its share of what is stored")
    axis.barh(rows, [branch.usage.own_bytes / 1e6 for branch in branches], height=0.5, label="what removing it sets free")
    labels = [f"{'    ' * branch.depth}{_shortened(branch.name)}" for branch in branches]
    width = max(map(len, labels))
    axis.set_yticks(rows, [printable(label.ljust(width)) for label in labels], fontsize=8, family="monospace", parse_math=False)
    axis.invert_yaxis()
    axis.set_xlabel("MB")
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(goal, dpi=110)
    return goal


def _picture(target: api.PathLike) -> Path:
    goal = Path(target)
    if goal.suffix not in _SUFFIXES:
        raise OptionError(f"a picture is one of {', '.join(_SUFFIXES)}", path=str(goal))
    return goal


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("a picture needs matplotlib: pip install 'weightpack[plot]'") from None
    return Figure


def _plot_file(file: RandomReader, target: Path) -> None:
    make_figure, reports = _figure(), inspect_planes(PackedFile(file))
    if not reports:
        raise OptionError("the file has no tensors", path=file.name)
    shown = reports[:_MOST_TENSORS]
    names = sorted({name for report in shown for name in report.planes}, key=lambda name: -sum(report.planes.get(name, 0) for report in shown))
    figure = make_figure(figsize=(11, 1.6 + 0.26 * len(shown)), layout="constrained")
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
    axis.set_yticks(range(len(shown)), [printable(label) for label in labels], fontsize=8, parse_math=False)  # a name is no formula
    axis.invert_yaxis()
    axis.set_xlabel("bits an element in the packed file; a black line: in the original")
    axis.set_title(printable(_title(file.name, reports, len(shown))), fontsize=10, parse_math=False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.6 / figure.get_figheight()), ncols=4, fontsize=8, frameon=False)
    figure.savefig(target, dpi=110)


def _shortened(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:28]}...{name[-28:]}"


def _title(src: str, reports: list[PlanesReport], n_shown: int) -> str:
    rest = f", the {n_shown} largest of {len(reports)} tensors" if n_shown < len(reports) else ""
    return f"{Path(src).name}{rest}"
