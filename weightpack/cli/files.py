# SPDX-License-Identifier: Apache-2.0
"""Verbs on files and directories: pack, unpack, verify, inspect, estimate."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from weightpack._humane import human_bytes, percent
from weightpack.cli.failures import GOES_ON, WHOLE_OR_ABSENT, ExitCode, after_interrupt
from weightpack.cli.options import (
    PATH,
    base_to_unpack_option,
    codec_option,
    delete_source_option,
    force_option,
    hf_flag_option,
    in_place_option,
    json_option,
    keep_option,
    pack_options,
    profile_option,
    quiet_option,
    revision_option,
    stdout_option,
    threads_option,
    token_option,
    verbose_option,
)
from weightpack.cli.output import StandardOutput, say, say_json, say_table
from weightpack.cli.progress import Bar
from weightpack.cli.report import TimedJob, report_job, report_total
from weightpack.cli.sources import Batch, Targets, refuse_several
from weightpack.cli.streams import DASH, copy_out, seekable, temporary_folder, wants_standard_output, without_copies
from weightpack.errors import OptionError

if TYPE_CHECKING:
    from weightpack.models.report import Reports, Total
    from weightpack.reading.inspect import FileReport
    from weightpack.reading.verify import VerifyResult
    from weightpack.writing.estimate import EstimateReport

    Report = TypeVar("Report", FileReport, EstimateReport)


@click.command()
@click.argument("src", nargs=-1, required=True, type=PATH)
@click.option(
    "-o", "--output", "dst", type=PATH,
    help="Target; of several SRC a folder. [default: model.wp.safetensors beside model.safetensors, NAME.wp beside any other file; NAME-wp for a directory "
    "or repo]",
)  # fmt: skip
@stdout_option
@click.option("--base", type=PATH, help="Store SRC as its difference from this: what it was trained from, or an earlier checkpoint; a file, directory or repo.")
@profile_option
@codec_option
@threads_option
@force_option
@keep_option
@click.option("--no-verify", is_flag=True, help="Do not decode and compare the result before it gets its name.")
@in_place_option
@delete_source_option
@hf_flag_option
@revision_option
@token_option
@click.option("--cache-dir", type=PATH, help="Where the Hub client keeps its files.")
@json_option
@verbose_option
@quiet_option
def pack(
    src: tuple[str, ...], dst: str | None, to_stdout: bool, base: str | None, profile: str, codec: str, threads: int | None, force: bool, keep: bool,
    no_verify: bool, in_place: bool, delete_source: bool, hf_flag: bool, revision: str | None, token: str | None, cache_dir: str | None, as_json: bool,
    verbose: bool, quiet: bool,
) -> ExitCode:  # fmt: skip
    """Pack each SRC: a file of any kind (safetensors, .bin, GGUF, ONNX, ...), a model directory, a Hub repo id such as bert-base-uncased, or - for standard
    input."""
    from weightpack import api

    output = _output(src, dst, to_stdout, force, in_place, delete_source, keep, as_json)
    targets = Targets(src, dst, api.packed_path)
    options = pack_options(profile, codec)

    def work(source: str) -> TimedJob:
        start, target = time.perf_counter(), None if in_place or output else targets.of(source)
        with ExitStack() as stack:
            stack.enter_context(after_interrupt(GOES_ON if in_place else WHOLE_OR_ABSENT))
            progress = stack.enter_context(Bar("packing", quiet))
            path = stack.enter_context(seekable(source, beside=None if target is None else Path(target), overwrite=force))
            written = str(stack.enter_context(temporary_folder()) / "packed") if output else target
            job = api.pack(
                path, written, base=base, options=options, threads=threads, verify=not no_verify, overwrite=force, in_place=in_place,
                delete_source=delete_source, hf_flag=hf_flag, revision=revision, token=token, cache_dir=cache_dir, progress=progress,
            )  # fmt: skip
            if output:
                copy_out(Path(job.target), output)
        return TimedJob(without_copies(job, source, DASH if output else job.target), time.perf_counter() - start)

    return _run_jobs(src, work, output, packing=True, in_place=in_place, as_json=as_json, verbose=verbose, quiet=quiet)


@click.command()
@click.argument("src", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", "dst", type=PATH, help="Target; of several SRC a folder. [default: the name without .wp, or without -wp]")
@stdout_option
@base_to_unpack_option
@click.option("--no-verify", is_flag=True, help="Restore a directory even if files beside its weights are not what the manifest says.")
@in_place_option
@delete_source_option
@threads_option
@force_option
@keep_option
@json_option
@verbose_option
@quiet_option
def unpack(
    src: tuple[str, ...], dst: str | None, to_stdout: bool, base: str | None, no_verify: bool, in_place: bool, delete_source: bool, threads: int | None,
    force: bool, keep: bool, as_json: bool, verbose: bool, quiet: bool,
) -> ExitCode:  # fmt: skip
    """Restore the original of each SRC, a packed file or directory, or - for standard input, byte for byte."""
    from weightpack import api
    from weightpack.models.jobs import JobResult

    output = _output(src, dst, to_stdout, force, in_place, delete_source, keep, as_json)
    targets = Targets(src, dst, lambda source, folder: api.unpacked_path(source, folder))

    def work(source: str) -> TimedJob:
        start, target = time.perf_counter(), None if in_place or output else targets.of(source)
        with ExitStack() as stack:
            stack.enter_context(after_interrupt(GOES_ON if in_place else WHOLE_OR_ABSENT))
            progress = stack.enter_context(Bar("unpacking", quiet))
            path = stack.enter_context(seekable(source, beside=None if target is None else Path(target), overwrite=force))
            if output:
                job = JobResult(DASH, (api.unpack_stream(path, output.write, base=base, threads=threads, progress=progress),))
                output.flush()
            else:
                job = api.unpack(
                    path, target, base=base, threads=threads, verify=not no_verify, overwrite=force, in_place=in_place, delete_source=delete_source,
                    progress=progress,
                )  # fmt: skip
        return TimedJob(without_copies(job, source, job.target), time.perf_counter() - start)

    return _run_jobs(src, work, output, packing=False, in_place=in_place, as_json=as_json, verbose=verbose, quiet=quiet)


def _output(
    sources: tuple[str, ...], dst: str | None, to_stdout: bool, force: bool, in_place: bool, delete_source: bool, keep: bool, as_json: bool
) -> StandardOutput | None:
    """Return standard output if it is the target; OptionError for options that contradict each other."""
    if keep and (in_place or delete_source):
        raise OptionError(f"--keep and {'--in-place' if in_place else '--delete-source'} contradict each other")
    if DASH in sources and (in_place or delete_source):
        raise OptionError("standard input can't be replaced or deleted")
    if in_place and (dst is not None or to_stdout):
        raise OptionError("in place there is no other target")
    if not wants_standard_output(sources, dst, to_stdout):
        return None
    if delete_source:
        raise OptionError("a source is deleted only once its target was proven, and what left through standard output can't be read again")
    if as_json:
        raise OptionError("standard output can't have both the bytes and --json")
    return StandardOutput(force=force)


def _run_jobs(
    sources: tuple[str, ...], work: Callable[[str], TimedJob], output: StandardOutput | None, *, packing: bool, in_place: bool,
    as_json: bool, verbose: bool, quiet: bool,
) -> ExitCode:  # fmt: skip
    batch = Batch(sources, work)
    silent = quiet or as_json or output is not None
    for _, done in batch.run():
        if not silent:
            report_job(done, packing=packing, in_place=in_place, verbose=verbose)
    if as_json:
        say_json(batch.as_json(TimedJob.as_json))
    elif batch.several and not silent:
        report_total(batch.tally, [done for _, done in batch.results], packing=packing)
    return batch.exit_code


@click.command()
@click.argument("packed", nargs=-1, required=True, type=PATH)
@click.option(
    "--against", type=PATH, help="Compare with this original: a file or directory, by bytes; or a repo NAME[@REVISION], by the SHA-256 that the Hub publishes."
)
@click.option("--no-decode", is_flag=True, help="Only compare the SHA-256 in the index with that of the repo --against; nothing is downloaded but headers.")
@base_to_unpack_option
@threads_option
@revision_option
@token_option
@json_option
@quiet_option
def verify(
    packed: tuple[str, ...], against: str | None, no_decode: bool, base: str | None, threads: int | None, revision: str | None, token: str | None,
    as_json: bool, quiet: bool,
) -> ExitCode:  # fmt: skip
    """Prove that each PACKED (a file, directory or Hub repo, or - for standard input) restores to the file that its index names by SHA-256."""
    from weightpack import api

    if against is not None:
        refuse_several(packed, "--against")

    def work(source: str) -> Reports[VerifyResult]:
        with after_interrupt("nothing was written"), Bar("verifying", quiet) as progress, seekable(source) as path:
            results = api.verify(path, against=against, base=base, decode=not no_decode, threads=threads, revision=revision, token=token, progress=progress)
            if source == DASH:
                results[:] = [replace(result, name=DASH) for result in results]
            return results

    batch = Batch(packed, work)
    for source, results in batch.run():
        if not (quiet or as_json):
            _show_verified(source if batch.several else "", results, "says it restores" if no_decode else "restores")
    if as_json:
        say_json(batch.as_json(lambda results: [asdict(result) for result in results]))
    elif not quiet and against:
        say(f"ok: {'the SHA-256 is that of' if no_decode else 'identical to'} {against}")
    elif not quiet and batch.several:
        say(f"{batch.tally} are proven")
    return batch.exit_code


def _show_verified(source: str, results: Reports[VerifyResult], restores: str) -> None:
    """Print what was proven: of an only file without its name, of a directory each packed file, and how many others."""
    for result in results:
        if result.state == "packed":
            parts = [source] if source else []
            parts += [result.name] if len(results) > 1 else []
            name = f"{'/'.join(parts)} " if parts else ""
            say(f"ok: {name}{restores} to {human_bytes(result.source_bytes)}, SHA-256 {result.source_sha256}")
    n_as_they_were = sum(result.state in ("carried", "changed") for result in results)
    if n_as_they_were:
        say(f"ok: {n_as_they_were} other file{'s'[: n_as_they_were != 1]} can be given back as they were")
    for result in results:
        if result.state in ("added", "not covered"):
            say(f"not proven: {result.name}: {'the source had no such file' if result.state == 'added' else 'the manifest does not know it'}")
    if len(results) > 1:
        total = results.total
        say(f"all {total.n_files} files: {human_bytes(total.packed_bytes)} for {human_bytes(total.source_bytes)} of the source")


@click.command()
@click.argument("packed", nargs=-1, required=True, type=PATH)
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option(
    "--plot", metavar="FILE", type=PATH,
    help="Draw where the bits of each tensor go into a picture: .png, .svg or .pdf (needs matplotlib); of a directory, one of each file.",
)  # fmt: skip
@revision_option
@token_option
@json_option
def inspect(packed: tuple[str, ...], tensors: bool, plot: str | None, revision: str | None, token: str | None, as_json: bool) -> ExitCode:
    """Show what is in each PACKED (a file, directory, URL or Hub repo, or - for standard input), by dtype and by tensor, without decoding it; of what is
    remote only headers are fetched."""
    from weightpack import api

    if plot is not None:
        refuse_several(packed, "--plot")

    def work(source: str) -> Reports[FileReport]:
        with seekable(source) as path:
            if plot is not None:
                from weightpack.tools.plot import plot_planes

                for picture in plot_planes(path, plot, revision=revision, token=token):
                    if not as_json:
                        say(f"{picture} is drawn")
            return _of_source(api.inspect(path, revision=revision, token=token, codecs=tensors or None), source)

    batch = Batch(packed, work)
    for _, reports in batch.run():
        if not as_json:
            for report in reports:
                _show_report(report, tensors)
            _show_all_files(reports)
    if as_json:
        say_json(batch.as_json(lambda reports: [asdict(report) for report in reports]))
    elif batch.several:
        _show_total(batch.tally, [reports.total for _, reports in batch.results])
    return batch.exit_code


def _of_source(reports: Reports[Report], source: str) -> Reports[Report]:
    """Return reports with the name that the caller gave: not that of a copy."""
    if source == DASH:
        reports[:] = [replace(report, path=DASH) for report in reports]
    return reports


def _show_all_files(reports: Reports[FileReport] | Reports[EstimateReport], about: str = "") -> None:
    """Print the total of a directory, where that has more than the one file."""
    if reports.total.n_files > 1:
        _show_total(f"all {reports.total.n_files} files", [reports.total], about)
    if reports.total.unfinished is not None:
        say(f"`{reports.total.unfinished} --in-place` has not ended: run it again")


def _show_report(report: FileReport, tensors: bool) -> None:
    if report.state == "plain":
        say(f"{report.path}: {human_bytes(report.source_bytes)}, not packed")
        say()
        return
    share = percent(report.packed_bytes, report.source_bytes)
    say(f"{report.path}: {human_bytes(report.source_bytes)} -> {human_bytes(report.packed_bytes)} ({share} of original)")
    say(f"SHA-256 of the original: {report.source_sha256}")
    for line in report.lineage:
        say(f"a difference from: {line}")
    say()
    groups: dict[str, list[int]] = {}
    for tensor in report.tensors:
        group = groups.setdefault(tensor.dtype, [0, 0, 0])
        group[0] += 1
        group[1] += tensor.source_bytes
        group[2] += tensor.packed_bytes
    rows = [["dtype", "tensors", "original", "packed", "of original"]]
    rows += [[dtype, str(n), human_bytes(a), human_bytes(b), percent(b, a)] for dtype, (n, a, b) in sorted(groups.items())]
    say_table(rows, right="lrrrr")
    if not tensors:
        return
    rows = [["tensor", "dtype", "shape", "original", "packed", "of original", "bits/element", "codec"]]
    for t in report.tensors:
        bits = "-" if t.codec.startswith("tied") else f"{t.bits_per_element:.3f}"
        shape = "x".join(map(str, t.shape)) or "-"
        sizes = [human_bytes(t.source_bytes), human_bytes(t.packed_bytes), percent(t.packed_bytes, t.source_bytes)]
        rows.append([t.name, t.dtype, shape, *sizes, bits, t.codec])
    say()
    say_table(rows, right="lllrrrrl")


def _show_total(tally: str, totals: list[Total], about: str = "") -> None:
    source_bytes, packed_bytes = sum(total.source_bytes for total in totals), sum(total.packed_bytes for total in totals)
    say(f"{tally}, {human_bytes(source_bytes)} -> {about}{human_bytes(packed_bytes)} ({percent(packed_bytes, source_bytes)} of original)")


@click.command()
@click.argument("src", nargs=-1, required=True, type=PATH)
@profile_option
@codec_option
@revision_option
@token_option
@click.option("--steps", is_flag=True, help="What each step of modelling gains, instead of one profile's size.")
@json_option
def estimate(src: tuple[str, ...], profile: str, codec: str, revision: str | None, token: str | None, steps: bool, as_json: bool) -> ExitCode:
    """Say what packing each SRC (a file, directory, URL or Hub repo, or - for standard input) would save, from samples, without writing anything; of what is
    remote little is fetched."""
    from weightpack import api
    from weightpack.writing.estimate import MODELLING_STEPS

    asked = MODELLING_STEPS if steps else {"": pack_options(profile, codec)}

    def work(source: str) -> dict[str, Reports[EstimateReport]]:
        with seekable(source) as path:
            return {name: _of_source(api.estimate(path, options=options, revision=revision, token=token), source) for name, options in asked.items()}

    def described(by_step: dict[str, Reports[EstimateReport]]) -> object:
        lists = {name: [asdict(report) for report in reports] for name, reports in by_step.items()}
        return lists if steps else lists[""]

    batch = Batch(src, work)
    for _, by_step in batch.run():
        if not as_json:
            _show_steps(by_step) if steps else _show_estimates(by_step[""])
    if as_json:
        say_json(batch.as_json(described))
    elif batch.several and not steps:
        _show_total(batch.tally, [by_step[""].total for _, by_step in batch.results], "about ")
    return batch.exit_code


def _show_estimates(reports: Reports[EstimateReport]) -> None:
    for report in reports:
        rows = [["dtype", "original", "packed, about", "of original"]]
        rows += [[dtype, human_bytes(a), human_bytes(b), percent(b, a)] for dtype, (a, b) in sorted(report.by_dtype.items())]
        rows += [["file", human_bytes(report.source_bytes), human_bytes(report.packed_bytes), percent(report.packed_bytes, report.source_bytes)]]
        say(f"{report.path} ({human_bytes(report.sampled_bytes)} sampled)")
        say_table(rows, right="lrrr")
    _show_all_files(reports, "about ")


def _show_steps(by_step: dict[str, Reports[EstimateReport]]) -> None:
    for reports in zip(*by_step.values(), strict=True):
        dtypes = sorted(reports[0].by_dtype)
        rows = [["with", *dtypes, "file"]]
        for name, report in zip(by_step, reports, strict=True):
            sizes = [report.by_dtype[dtype] for dtype in dtypes] + [(report.source_bytes, report.packed_bytes)]
            rows.append([name, *(percent(packed, source) for source, packed in sizes)])
        say(f"{reports[0].path}, of the original, about")
        say_table(rows, right="l" + "r" * (len(dtypes) + 1))
