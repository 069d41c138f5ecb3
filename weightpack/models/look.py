# SPDX-License-Identifier: Apache-2.0
"""A directory described without decoding it, and what packing it would save."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from weightpack.errors import NotPackedError, located
from weightpack.format.manifest import PACKED_SUFFIX
from weightpack.io.files import LocalFile
from weightpack.models.directory import has_manifest, model_files
from weightpack.models.jobs import Job
from weightpack.models.plan import plan_packing, refuse_packed
from weightpack.models.report import Reports, Total
from weightpack.models.standing import refuse_missing, stand
from weightpack.options import DEFAULT_LIMITS, Limits, PackOptions
from weightpack.reading.bases import lineage
from weightpack.reading.inspect import FileReport, inspect_file, inspect_plain
from weightpack.reading.packed_file import PackedFile
from weightpack.sources.safetensors import is_packed_file
from weightpack.writing.estimate import EstimateReport, estimate_file


def inspect_directory(folder: Path, limits: Limits = DEFAULT_LIMITS, *, codecs: bool = True) -> Reports[FileReport]:
    """Describe each packed file of a directory, and those that should be packed.

    Raises
    ------
    NotPackedError
        None is packed.
    TruncatedError
        A packed file is missing.
    """
    if not has_manifest(folder):
        return _inspect_without_manifest(folder, limits, codecs)
    standing = stand(folder)
    refuse_missing(standing, carried=False)
    packed = set(standing.packed.values())
    reports = [_inspect(folder / path, limits, codecs, path in packed) for path in sorted((*packed, *standing.plain.values()))]
    others = (*standing.carried.values(), *standing.extra)
    source_bytes = sum(report.source_bytes for report in reports) + _bytes(folder, others) + sum(map(len, standing.manifest.originals.values()))
    packed_bytes = sum(report.packed_bytes for report in reports if report.state == "packed") + standing.other_bytes
    return Reports(reports, Total(len(reports) + len(others) + len(standing.changed), source_bytes, packed_bytes, standing.unfinished))


def _inspect_without_manifest(folder: Path, limits: Limits, codecs: bool) -> Reports[FileReport]:
    files = model_files(folder)
    packed = {path for path in (*files.weights, *files.other_weights) if path.suffix in (".safetensors", PACKED_SUFFIX) and is_packed_file(folder / path)}
    if not packed:
        raise NotPackedError("not a packed directory: neither a manifest nor a packed file is in it", path=str(folder))
    described = sorted({*packed, *files.weights})
    reports = [_inspect(folder / path, limits, codecs, path in packed) for path in described]
    others = _bytes(folder, (path for path in files.files if path not in described))
    source_bytes, packed_bytes = sum(report.source_bytes for report in reports), sum(report.packed_bytes for report in reports)
    return Reports(reports, Total(len(files.files), source_bytes + others, packed_bytes + others))


def _inspect(path: Path, limits: Limits, codecs: bool, is_packed: bool) -> FileReport:
    with located(path=str(path)), LocalFile(path) as file:
        if not is_packed:
            return inspect_plain(file)
        packed = PackedFile(file, limits)
        return inspect_file(packed, codecs=codecs, lineage=tuple(lineage(packed, limits)))


def _bytes(folder: Path, names: Iterable[PurePosixPath]) -> int:
    return sum((folder / name).stat().st_size for name in names)


def estimate_directory(folder: Path, options: PackOptions) -> Reports[EstimateReport]:
    """Say what packing a directory would give, from samples of each file that would be packed.

    Raises
    ------
    OptionError, FormatError, OSError
        It can't be packed, as in `pack`.
    """
    refuse_packed(folder)
    plan = plan_packing(folder, Job(options=options))
    reports = []
    for name in plan.packed:
        with located(path=str(folder / name)), LocalFile(folder / name) as file:
            reports.append(estimate_file(file, options))
    others = _bytes(folder, (name for name in plan.files.files if name not in plan.packed))
    source_bytes, packed_bytes = sum(report.source_bytes for report in reports), sum(report.packed_bytes for report in reports)
    return Reports(reports, Total(len(plan.files.files), source_bytes + others, packed_bytes + others))
