# SPDX-License-Identifier: Apache-2.0
"""Verbs on files and directories: pack, unpack, verify, inspect, estimate."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from weightpack._humane import human_bytes, percent, table
from weightpack.cli.failures import GOES_ON, WHOLE_OR_ABSENT, after_interrupt
from weightpack.cli.options import (
    base_to_unpack_option,
    codec_option,
    delete_source_option,
    force_option,
    hf_flag_option,
    in_place_option,
    json_option,
    pack_options,
    profile_option,
    quiet_option,
    revision_option,
    threads_option,
    token_option,
)
from weightpack.cli.progress import Bar
from weightpack.cli.report import report_job


@click.command()
@click.argument("src")
@click.option("-o", "--output", "dst", help="Target. [default: model.wp.safetensors beside model.safetensors; NAME-wp for a directory or repo NAME]")
@click.option("--base", help="Store SRC as its difference from this: what it was trained from, or an earlier checkpoint; a file, directory or repo.")
@profile_option
@codec_option
@threads_option
@force_option
@click.option("--no-verify", is_flag=True, help="Do not decode and compare the result before it gets its name.")
@in_place_option
@delete_source_option
@hf_flag_option
@revision_option
@token_option
@click.option("--cache-dir", help="Where the Hub client keeps its files.")
@json_option
@quiet_option
def pack(
    src: str, dst: str | None, base: str | None, profile: str, codec: str, threads: int | None, force: bool, no_verify: bool, in_place: bool,
    delete_source: bool, hf_flag: bool, revision: str | None, token: str | None, cache_dir: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Pack SRC: a file of any kind (safetensors, .bin, GGUF, ONNX, ...), a model directory, or a Hub repo id such as bert-base-uncased."""
    from weightpack import api

    start = time.perf_counter()
    with after_interrupt(GOES_ON if in_place else WHOLE_OR_ABSENT), Bar("packing", quiet) as progress:
        job = api.pack(
            src, dst, base=base, options=pack_options(profile, codec), threads=threads, verify=not no_verify, overwrite=force, in_place=in_place,
            delete_source=delete_source, hf_flag=hf_flag, revision=revision, token=token, cache_dir=cache_dir, progress=progress,
        )  # fmt: skip
    report_job(job, time.perf_counter() - start, as_json, packing=True)


@click.command()
@click.argument("src")
@click.option("-o", "--output", "dst", help="Target. [default: the name without .wp, or without -wp]")
@base_to_unpack_option
@in_place_option
@delete_source_option
@threads_option
@force_option
@json_option
@quiet_option
def unpack(
    src: str, dst: str | None, base: str | None, in_place: bool, delete_source: bool, threads: int | None, force: bool, as_json: bool, quiet: bool
) -> None:
    """Restore the original of SRC, a packed file or directory, byte for byte."""
    from weightpack import api

    start = time.perf_counter()
    with after_interrupt(GOES_ON if in_place else WHOLE_OR_ABSENT), Bar("unpacking", quiet) as progress:
        job = api.unpack(src, dst, base=base, threads=threads, overwrite=force, in_place=in_place, delete_source=delete_source, progress=progress)
    report_job(job, time.perf_counter() - start, as_json, packing=False)


@click.command()
@click.argument("packed")
@click.option("--against", help="Compare with this original: a file or directory, by bytes; or a repo NAME[@REVISION], by the SHA-256 that the Hub publishes.")
@click.option("--no-decode", is_flag=True, help="Only compare the SHA-256 in the index with that of the repo --against; nothing is downloaded but headers.")
@base_to_unpack_option
@threads_option
@revision_option
@token_option
@json_option
@quiet_option
def verify(
    packed: str, against: str | None, no_decode: bool, base: str | None, threads: int | None, revision: str | None, token: str | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Prove that PACKED (a file, directory or Hub repo) restores to the file that its index names by SHA-256."""
    from weightpack import api

    with Bar("verifying", quiet) as progress:
        results = api.verify(
            packed, against=against, base=base, decode=not no_decode, threads=threads, revision=revision, token=token, progress=progress
        )
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results]))
        return
    for result in results:
        click.echo(f"ok: {'says it ' if no_decode else ''}restores to {human_bytes(result.source_bytes)}, SHA-256 {result.source_sha256}")
    if against:
        click.echo(f"ok: {'the SHA-256 is that of' if no_decode else 'identical to'} {against}")


@click.command()
@click.argument("packed")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--plot", metavar="FILE", help="Draw where the bits of each tensor go into a picture: .png, .svg or .pdf (needs matplotlib).")
@revision_option
@token_option
@json_option
def inspect(packed: str, tensors: bool, plot: str | None, revision: str | None, token: str | None, as_json: bool) -> None:
    """Show what is in PACKED (a file, directory, URL or Hub repo), by dtype and by tensor, without decoding it; of what is remote only headers are fetched."""
    from weightpack import api

    if plot is not None:
        from weightpack.tools.plot import plot_planes

        plot_planes(packed, plot)
    reports = api.inspect(packed, revision=revision, token=token, codecs=tensors or None)
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports]))
        return
    for report in reports:
        share = percent(report.packed_bytes, report.source_bytes)
        click.echo(f"{report.path}: {human_bytes(report.source_bytes)} -> {human_bytes(report.packed_bytes)} ({share} of original)")
        click.echo(f"SHA-256 of the original: {report.source_sha256}")
        for line in report.lineage:
            click.echo(f"a difference from: {line}")
        click.echo("")
        groups: dict[str, list[int]] = {}
        for tensor in report.tensors:
            group = groups.setdefault(tensor.dtype, [0, 0, 0])
            group[0] += 1
            group[1] += tensor.source_bytes
            group[2] += tensor.packed_bytes
        rows = [["dtype", "tensors", "original", "packed", "of original"]]
        rows += [[dtype, str(n), human_bytes(a), human_bytes(b), percent(b, a)] for dtype, (n, a, b) in sorted(groups.items())]
        click.echo(table(rows, right="lrrrr"))
        if tensors:
            rows = [["tensor", "dtype", "shape", "original", "packed", "of original", "bits/element", "codec"]]
            for t in report.tensors:
                bits = "-" if t.codec.startswith("tied") else f"{t.bits_per_element:.3f}"
                shape = "x".join(map(str, t.shape)) or "-"
                sizes = [human_bytes(t.source_bytes), human_bytes(t.packed_bytes), percent(t.packed_bytes, t.source_bytes)]
                rows.append([t.name, t.dtype, shape, *sizes, bits, t.codec])
            click.echo("\n" + table(rows, right="lllrrrrl"))


@click.command()
@click.argument("src")
@profile_option
@codec_option
@revision_option
@token_option
@click.option("--steps", is_flag=True, help="What each step of modelling gains, instead of one profile's size.")
@json_option
def estimate(src: str, profile: str, codec: str, revision: str | None, token: str | None, steps: bool, as_json: bool) -> None:
    """Say what packing SRC (a file, directory, URL or Hub repo) would save, from samples, without writing anything; of what is remote little is fetched."""
    from weightpack import api

    if steps:
        _estimate_steps(src, revision, token, as_json)
        return
    reports = api.estimate(src, options=pack_options(profile, codec), revision=revision, token=token)
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports]))
        return
    for report in reports:
        rows = [["dtype", "original", "packed, about", "of original"]]
        rows += [[dtype, human_bytes(a), human_bytes(b), percent(b, a)] for dtype, (a, b) in sorted(report.by_dtype.items())]
        rows += [["file", human_bytes(report.source_bytes), human_bytes(report.packed_bytes), percent(report.packed_bytes, report.source_bytes)]]
        click.echo(f"{report.path} ({human_bytes(report.sampled_bytes)} sampled)\n{table(rows, right='lrrr')}")


def _estimate_steps(src: str, revision: str | None, token: str | None, as_json: bool) -> None:
    from weightpack import api
    from weightpack.writing.estimate import MODELLING_STEPS

    steps = {name: api.estimate(src, options=options, revision=revision, token=token) for name, options in MODELLING_STEPS.items()}
    if as_json:
        click.echo(json.dumps({name: [asdict(report) for report in reports] for name, reports in steps.items()}))
        return
    for reports in zip(*steps.values(), strict=True):
        dtypes = sorted(reports[0].by_dtype)
        rows = [["with", *dtypes, "file"]]
        for name, report in zip(steps, reports, strict=True):
            sizes = [report.by_dtype[dtype] for dtype in dtypes] + [(report.source_bytes, report.packed_bytes)]
            rows.append([name, *(percent(packed, source) for source, packed in sizes)])
        click.echo(f"{reports[0].path}, of the original, about\n{table(rows, right='l' + 'r' * (len(dtypes) + 1))}")
