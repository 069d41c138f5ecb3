# SPDX-License-Identifier: Apache-2.0
"""The command `weightpack`. The only module that prints.

Exit codes: 0 done, 1 the data is bad, 2 the call is bad, 3 input or output failed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import click

from weightpack._humane import human_bytes, percent, table
from weightpack._version import __version__

if TYPE_CHECKING:
    from weightpack.models.jobs import FileProgress, JobResult
    from weightpack.options import PackOptions
    from weightpack.series import Series

_BAD_DATA, _BAD_CALL, _IO = 1, 2, 3


class _Bar:
    """A progress bar that shows itself when a file takes over a second, on a terminal."""

    def __init__(self, verb: str, quiet: bool) -> None:
        self._verb, self._quiet = verb, quiet
        self._path: str | None = None
        self._bar: Any = None

    def __enter__(self) -> FileProgress | None:
        return None if self._quiet else self._update

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _update(self, path: str, done: int, total: int) -> None:
        if path != self._path:
            from tqdm import tqdm

            self.__exit__()
            self._path = path
            self._bar = tqdm(
                total=total, unit="B", unit_scale=True, desc=f"{self._verb} {os.path.basename(path)}", delay=1, leave=False, disable=None, file=sys.stderr
            )
        self._bar.update(done - self._bar.n)


def _fail(code: int, message: str) -> NoReturn:
    click.echo(f"weightpack: {message}", err=True)
    sys.exit(code)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line; every failure is one line on stderr and an exit code."""
    from weightpack import errors

    warnings.showwarning = lambda message, *_: click.echo(f"weightpack: warning: {message}", err=True)
    try:
        sys.exit(cli.main(args, prog_name="weightpack", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(_BAD_CALL)
    except (click.Abort, KeyboardInterrupt):
        _fail(130, "interrupted; no target was written")
    except (errors.OptionError, errors.TensorNotFoundError, errors.MissingExtraError, errors.BaseNotFoundError, errors.WrongBaseError) as error:
        _fail(_BAD_CALL, str(error))
    except errors.LimitError as error:
        _fail(_BAD_DATA, str(error))
    except errors.WeightpackError as error:
        _fail(_BAD_DATA, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: say nothing more
        sys.exit(_IO)
    except OSError as error:
        _fail(_IO, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))


_threads = click.option("--threads", type=click.IntRange(min=1), help="Threads to use; the result does not depend on it. [default: the CPUs there are]")
_force = click.option("--force", is_flag=True, help="Replace the target if it exists.")
_quiet = click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_profile = click.option("--profile", default="fast", show_default=True, help="A profile's name, or the path of a .toml file (see `weightpack doctor`).")
_codec = click.option(
    "--codec", type=click.Choice(["auto", "rans", "huffman", "zstd", "raw"]), default="auto", show_default=True, help="Use this codec alone."
)
_in_place = click.option("--in-place", is_flag=True, help="Replace SRC itself, once the result was proven; a directory's files one after the other.")
_delete_source = click.option("--delete-source", is_flag=True, help="Delete SRC once the result was proven.")
_hf_flag = click.option(
    "--hf-flag", is_flag=True, help="Let config.json say that the model is packed, so that transformers without weightpack names it when it fails."
)
_revision = click.option("--revision", help="Branch, tag or commit of a Hub repo.")
_token = click.option("--token", help="Access token for the Hub. [default: the one of `hf auth login`]")


_base_to_unpack = click.option(
    "--base", help="What PACKED is a difference from: a file, directory or repo. [default: looked for beside it, in WEIGHTPACK_BASES, on the Hub]"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="weightpack")
def cli() -> None:
    """Make model checkpoints smaller without changing a bit, and restore them byte for byte."""


def _options(profile: str, codec: str) -> PackOptions:
    from weightpack.options import load_profile

    return load_profile(profile, codec=codec)


def _quiet_hub(quiet: bool) -> None:
    """The Hub client draws bars of its own."""
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the client is imported


def _report_job(job: JobResult, seconds: float, as_json: bool, *, packing: bool) -> None:
    if as_json:
        click.echo(json.dumps({**asdict(job), "source_bytes": job.source_bytes, "packed_bytes": job.packed_bytes, "seconds": round(seconds, 3)}))
        return
    before, after = (job.source_bytes, job.packed_bytes) if packing else (job.packed_bytes, job.source_bytes)
    rate = human_bytes(job.source_bytes / seconds) if seconds else "-"
    share = f" ({percent(job.packed_bytes, job.source_bytes)} of original)" if packing else ""
    click.echo(f"{job.target}: {human_bytes(before)} -> {human_bytes(after)}{share}, {seconds:.2f} s, {rate}/s")


@cli.command()
@click.argument("src")
@click.option("-o", "--output", "dst", help="Target. [default: model.wp.safetensors beside model.safetensors; NAME-wp for a directory or repo NAME]")
@click.option("--base", help="Store SRC as its difference from this: what it was trained from, or an earlier checkpoint; a file, directory or repo.")
@_profile
@_codec
@_threads
@_force
@click.option("--no-verify", is_flag=True, help="Do not decode and compare the result before it gets its name.")
@_in_place
@_delete_source
@_hf_flag
@_revision
@_token
@click.option("--cache-dir", help="Where the Hub client keeps its files.")
@_as_json
@_quiet
def pack(
    src: str, dst: str | None, base: str | None, profile: str, codec: str, threads: int | None, force: bool, no_verify: bool, in_place: bool,
    delete_source: bool, hf_flag: bool, revision: str | None, token: str | None, cache_dir: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Pack SRC: a .safetensors file, a model directory, or a Hub repo id such as bert-base-uncased."""
    from weightpack import api

    start = time.perf_counter()
    with _Bar("packing", quiet) as progress:
        job = api.pack(
            src, dst, base=base, options=_options(profile, codec), threads=threads, verify=not no_verify, overwrite=force, in_place=in_place,
            delete_source=delete_source, hf_flag=hf_flag, revision=revision, token=token, cache_dir=cache_dir, progress=progress,
        )  # fmt: skip
    _report_job(job, time.perf_counter() - start, as_json, packing=True)


@cli.command()
@click.argument("src")
@click.option("-o", "--output", "dst", help="Target. [default: the name without .wp, or without -wp]")
@_base_to_unpack
@_in_place
@_delete_source
@_threads
@_force
@_as_json
@_quiet
def unpack(
    src: str, dst: str | None, base: str | None, in_place: bool, delete_source: bool, threads: int | None, force: bool, as_json: bool, quiet: bool
) -> None:
    """Restore the original of SRC, a packed file or directory, byte for byte."""
    from weightpack import api

    start = time.perf_counter()
    with _Bar("unpacking", quiet) as progress:
        job = api.unpack(src, dst, base=base, threads=threads, overwrite=force, in_place=in_place, delete_source=delete_source, progress=progress)
    _report_job(job, time.perf_counter() - start, as_json, packing=False)


@cli.command()
@click.argument("packed")
@click.option("--against", help="Compare with this original: a file or directory, by bytes; or a repo NAME[@REVISION], by the SHA-256 that the Hub publishes.")
@click.option("--no-decode", is_flag=True, help="Only compare the SHA-256 in the index with that of the repo --against; nothing is downloaded but headers.")
@_base_to_unpack
@_threads
@_revision
@_token
@_as_json
@_quiet
def verify(
    packed: str, against: str | None, no_decode: bool, base: str | None, threads: int | None, revision: str | None, token: str | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Prove that PACKED (a file, directory or Hub repo) restores to the file that its index names by SHA-256."""
    from weightpack import api

    with _Bar("verifying", quiet) as progress:
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


@cli.command()
@click.argument("packed")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--plot", metavar="FILE", help="Draw where the bits of each tensor go into a picture: .png, .svg or .pdf (needs matplotlib).")
@_revision
@_token
@_as_json
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


@cli.command()
@click.argument("src")
@_profile
@_codec
@_revision
@_token
@click.option("--steps", is_flag=True, help="What each step of modelling gains, instead of one profile's size.")
@_as_json
def estimate(src: str, profile: str, codec: str, revision: str | None, token: str | None, steps: bool, as_json: bool) -> None:
    """Say what packing SRC (a file, directory, URL or Hub repo) would save, from samples, without writing anything; of what is remote little is fetched."""
    from weightpack import api

    if steps:
        _estimate_steps(src, revision, token, as_json)
        return
    reports = api.estimate(src, options=_options(profile, codec), revision=revision, token=token)
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


@cli.command()
@click.argument("src")
@click.argument("repo")
@click.option("--base-model", help="The original's repo id, for the model card. [default: SRC if that is a repo]")
@click.option("--private/--public", default=None, help="Of a repo that is made. [default: as the Hub has it]")
@click.option("--revision", help="Branch to commit to; made if there is none.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--commit-message", help="Default: the sizes.")
@_token
@_profile
@_codec
@_threads
@click.option("--no-verify", is_flag=True, help="Do not decode and compare what was packed before it is uploaded.")
@_hf_flag
@_as_json
@_quiet
def push(
    src: str, repo: str, base_model: str | None, private: bool | None, revision: str | None, create_pr: bool, commit_message: str | None, token: str | None,
    profile: str, codec: str, threads: int | None, no_verify: bool, hf_flag: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Pack SRC, a model directory (or a Hub repo), and push it to REPO. An interrupted push goes on where it stopped when it is run again."""
    from weightpack import hub

    _quiet_hub(quiet or as_json)
    with _Bar("packing", quiet) as progress:
        result = hub.push(
            src, repo, options=_options(profile, codec), threads=threads, verify=not no_verify, base_model=base_model, hf_flag=hf_flag, private=private,
            revision=revision, create_pr=create_pr, commit_message=commit_message, token=token, progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(asdict(result)))
        return
    saved, share = human_bytes(result.source_bytes - result.packed_bytes), percent(result.packed_bytes, result.source_bytes)
    click.echo(f"{result.url}: {human_bytes(result.source_bytes)} -> {human_bytes(result.packed_bytes)} ({share} of original), {saved} saved")


@cli.command()
@click.argument("repo")
@click.argument("target", required=False)
@click.option("--unpack", is_flag=True, help="Restore the original files.")
@click.option("--include", multiple=True, help="Only files that match this pattern (repeatable).")
@_revision
@_token
@_threads
@_force
@_quiet
def pull(
    repo: str, target: str | None, unpack: bool, include: tuple[str, ...], revision: str | None, token: str | None, threads: int | None, force: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Download REPO into TARGET (default: its name), packed as it is or unpacked."""
    from weightpack import hub

    _quiet_hub(quiet)
    with _Bar("unpacking", quiet) as progress:
        folder = hub.pull(
            repo, target, unpack=unpack, include=include, revision=revision, token=token, threads=threads, overwrite=force, progress=progress
        )  # fmt: skip
    click.echo(f"{folder}")


@cli.command()
@click.argument("src", required=False)
@click.option("--megabytes", default=128, show_default=True, type=click.IntRange(min=1), help="Measure up to this much of each dtype.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False), help="Where files are written; its disk is what is measured. [default: temporary]")
@_profile
@_threads
@_as_json
def bench(src: str | None, megabytes: int, folder: str | None, profile: str, threads: int | None, as_json: bool) -> None:
    """Measure this machine on the weights of SRC (a file, directory or Hub repo; without it, on synthetic ones): size, speed, and speed of memcpy.

    In memory each ISA, all threads, and each codec alone; then files, beside a plain copy. Round trips are compared before anything is timed; times are
    medians; checksums are included.
    """
    from pathlib import Path

    from weightpack.tools import bench as measure

    def step(what: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"measuring {what} ...", err=True)

    report = measure.bench(
        src, max_bytes=megabytes * 1_000_000, threads=threads, profile=profile, folder=Path(folder) if folder else None, step=step
    )
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    click.echo(report.source)
    for m in report.memory:

        def rate(seconds: float, m: measure.MemoryReport = m) -> list[str]:
            return [f"{m.source_bytes / seconds / 1e9:.2f}", f"{m.memcpy_seconds / seconds:.2f}"]

        rows = [["ISA", "codec", "threads", "of original", "encode GB/s", "/memcpy", "decode GB/s", "/memcpy"]]
        rows += [
            [s.isa, s.codec, str(s.threads), percent(s.packed_bytes, m.source_bytes), *rate(s.encode_seconds), *rate(s.decode_seconds)] for s in m.speeds
        ]
        click.echo(f"\n{m.dtype}, {human_bytes(m.source_bytes)} in memory; memcpy {rate(m.memcpy_seconds)[0]} GB/s\n{table(rows, right='llrrrrrr')}")
    rows = [["threads", "of original", "copy GB/s", "pack GB/s", "unpack GB/s", "unpack / copy"]]
    for f in report.files:
        rates = [f"{f.source_bytes / seconds / 1e9:.2f}" for seconds in (f.copy_seconds, f.pack_seconds, f.unpack_seconds)]
        rows.append([str(f.threads), percent(f.packed_bytes, f.source_bytes), *rates, f"{f.copy_seconds / f.unpack_seconds:.2f}"])
    f = report.files[0]
    click.echo(f"\na file of {human_bytes(f.source_bytes)} in {f.folder}; packing includes SHA-256 and verification\n{table(rows, right='rrrrrr')}")


@cli.command()
@_as_json
def doctor(as_json: bool) -> None:
    """Show versions, the CPU's kernels, and what is installed."""
    from importlib import metadata

    from weightpack import kernels, options
    from weightpack.format.constants import VERSION

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        in_use = kernels.isa()
    available = kernels.available_isas()
    state: dict[str, Any] = {
        "weightpack": __version__,
        "format": f"reads and writes {VERSION[0]}.{VERSION[1]}",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "isa": in_use,
        "isas_available": available,
        "native": len(available) > 1,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "profiles": options.profiles(),
        "packages": {name: version(name) for name in ("numpy", "zstandard", "dahuffman", "huggingface_hub", "safetensors", "torch")},
    }
    if as_json:
        click.echo(json.dumps(state))
        return
    show: Callable[[Any], str] = lambda v: ", ".join(v) if isinstance(v, list) else str(v)  # noqa: E731
    for key, value in state.items():
        if key == "packages":
            for name, installed in value.items():
                click.echo(f"{name:16}{installed or 'not installed'}")
        elif key == "native":
            click.echo(f"{'native core':16}{'built' if value else 'not built: numpy is used, slowly. Install a C compiler and reinstall'}")
        else:
            click.echo(f"{key:16}{show(value)}")


@cli.command("series")
@click.argument("run")
@click.option("--pack", "do_pack", is_flag=True, help="Pack the checkpoints that are complete and plain, in place, the earliest first.")
@click.option("--anchor-every", type=click.IntRange(min=1), help="With --pack: each Nth is packed whole, the others as deltas to the one before. [default: 8]")
@_profile
@click.option("--restore", "step", metavar="STEP", type=click.IntRange(min=0), help="Restore the checkpoint of this step into the directory -o.")
@click.option("-o", "--output", "dst", help="With --restore: the target.")
@click.option("--verify", "do_verify", is_flag=True, help="Prove that each packed file restores to the SHA-256 that its index names.")
@_threads
@_force
@_as_json
@_quiet
def series_(
    run: str, do_pack: bool, anchor_every: int | None, profile: str, step: int | None, dst: str | None, do_verify: bool, threads: int | None,
    force: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """List, pack, verify or restore the checkpoints of a training run, the directories checkpoint-STEP in RUN."""
    from weightpack import errors, series
    from weightpack.io.parallel import thread_count
    from weightpack.models.jobs import Job

    if sum((do_pack, step is not None, do_verify)) > 1:
        raise errors.OptionError("one of --pack, --restore and --verify at a time")
    if (step is None) != (dst is None):
        raise errors.OptionError("--restore STEP and -o (--output) belong together")
    if anchor_every is not None and not do_pack:
        raise errors.OptionError("--anchor-every belongs to --pack")
    start = time.perf_counter()
    with _Bar("unpacking" if step is not None else "verifying" if do_verify else "packing", quiet) as progress:
        job = Job(thread_count(threads), force, progress, _options(profile, "auto"))
        if step is not None and dst is not None:
            restored = series.restore(run, step, dst, job)
        elif do_verify:
            verified = series.verify(run, job)
        elif do_pack:
            packed = series.pack_run(run, job, anchor_every=anchor_every or series.ANCHOR_EVERY)
    if step is not None:
        _report_job(restored, time.perf_counter() - start, as_json, packing=False)
    elif do_verify:
        if as_json:
            click.echo(json.dumps([{"path": path, **asdict(result)} for path, result in verified]))
            return
        for path, result in verified:
            click.echo(f"ok: {path} restores to {human_bytes(result.source_bytes)}, SHA-256 {result.source_sha256}")
    elif as_json:
        found = series.series(run)
        rows = [{**asdict(each), "source_bytes": each.source_bytes, "packed_bytes": each.packed_bytes, "depth": each.depth} for each in found.checkpoints]
        click.echo(json.dumps({"path": found.path, "store_bytes": found.store_bytes, "checkpoints": rows}))
    else:
        if do_pack:
            click.echo(f"packed {len(packed)} checkpoint{'s'[: len(packed) != 1]}\n")
        _show_series(series.series(run))


def _show_series(found: Series) -> None:
    if not found.checkpoints:
        click.echo(f"no checkpoints in {found.path}")
        return
    rows = [["step", "files", "original", "packed", "of original", "kind", "depth", "state"]]
    for each in found.checkpoints:
        n_packed = sum(file.packed for file in each.files)
        if n_packed == 0:
            kind = "plain"
        elif each.depth == 0:
            kind = "full"
        else:
            kind = f"delta to {each.base_step}" if each.base_step is not None else "delta to a deleted one"
        if 0 < n_packed < len(each.files):
            kind += f", {len(each.files) - n_packed} plain"
        sizes = [human_bytes(each.source_bytes), human_bytes(each.packed_bytes), percent(each.packed_bytes, each.source_bytes)]
        rows.append([str(each.step), str(len(each.files)), *sizes, kind, str(each.depth), each.problem or "complete"])
    source, packed = (sum(sizes) for sizes in zip(*((each.source_bytes, each.packed_bytes) for each in found.checkpoints), strict=True))
    rows.append(["all", "", human_bytes(source), human_bytes(packed), percent(packed, source), "", "", ""])
    click.echo(table(rows, right="rrrrrlrl"))
    if found.store_bytes:
        click.echo(f"\nand {human_bytes(found.store_bytes)} that they need of checkpoints that were deleted")
