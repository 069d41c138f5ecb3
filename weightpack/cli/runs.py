# SPDX-License-Identifier: Apache-2.0
"""The verb on a training run: series."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from weightpack._humane import human_bytes, percent
from weightpack.cli.failures import GOES_ON, WHOLE_OR_ABSENT, after_interrupt
from weightpack.cli.options import PATH, force_option, json_option, pack_options, profile_option, quiet_option, threads_option
from weightpack.cli.output import say, say_json, say_table
from weightpack.cli.progress import Bar
from weightpack.cli.report import TimedJob, report_job
from weightpack.errors import OptionError

if TYPE_CHECKING:
    from weightpack.models.jobs import Job
    from weightpack.series import Checkpoint, Series


@click.command()
@click.argument("run", type=PATH)
@click.option("--pack", "do_pack", is_flag=True, help="Pack the checkpoints that are complete and plain, in place, the earliest first.")
@click.option("--anchor-every", type=click.IntRange(min=1), help="With --pack: each Nth is packed whole, the others as deltas to the one before. [default: 8]")
@profile_option
@click.option("--restore", "step", metavar="STEP", type=click.IntRange(min=0), help="Restore the checkpoint of this step into the directory -o.")
@click.option("-o", "--output", "dst", type=PATH, help="With --restore: the target.")
@click.option("--verify", "do_verify", is_flag=True, help="Prove that each packed file restores to the SHA-256 that its index names.")
@threads_option
@force_option
@json_option
@quiet_option
def series(
    run: str, do_pack: bool, anchor_every: int | None, profile: str, step: int | None, dst: str | None, do_verify: bool, threads: int | None,
    force: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """List, pack, verify or restore the checkpoints of a training run, the directories checkpoint-STEP in RUN."""
    from weightpack import series as checkpoints
    from weightpack.io.parallel import thread_count
    from weightpack.models.jobs import Job

    if sum((do_pack, step is not None, do_verify)) > 1:
        raise OptionError("one of --pack, --restore and --verify at a time")
    if (step is None) != (dst is None):
        raise OptionError("--restore STEP and -o (--output) belong together")
    if anchor_every is not None and not do_pack:
        raise OptionError("--anchor-every belongs to --pack")
    verb = "unpacking" if step is not None else "verifying" if do_verify else "packing"
    with after_interrupt(GOES_ON if do_pack else WHOLE_OR_ABSENT), Bar(verb, quiet) as progress:
        job = Job(threads=thread_count(threads), overwrite=force, progress=progress, options=pack_options(profile, "auto"))
        if step is not None and dst is not None:
            _restore(run, step, dst, job, as_json, quiet)
            return
        if do_verify:
            _verify(run, job, as_json, quiet)
            return
        packed = checkpoints.pack_run(run, job, anchor_every=anchor_every or checkpoints.ANCHOR_EVERY) if do_pack else []
    listed = checkpoints.series(run)
    if as_json:
        rows = [{**asdict(row), "source_bytes": row.source_bytes, "packed_bytes": row.packed_bytes, "depth": row.depth} for row in listed.checkpoints]
        say_json({"path": listed.path, "store_bytes": listed.store_bytes, "checkpoints": rows})
    elif not quiet:
        if do_pack:
            say(f"packed {len(packed)} checkpoint{'s'[: len(packed) != 1]}")
            say()
        _show(listed)


def _restore(run: str, step: int, dst: str, job: Job, as_json: bool, quiet: bool) -> None:
    from weightpack.series import restore

    start = time.perf_counter()
    restored = TimedJob(restore(run, step, dst, job), time.perf_counter() - start)
    if as_json:
        say_json(restored.as_json())
    elif not quiet:
        report_job(restored, packing=False)


def _verify(run: str, job: Job, as_json: bool, quiet: bool) -> None:
    from weightpack.series import verify

    verified = verify(run, job)
    if as_json:
        say_json([{"path": path, **asdict(result)} for path, result in verified])
    for path, result in () if as_json or quiet else verified:
        say(f"ok: {path} restores to {human_bytes(result.source_bytes)}, SHA-256 {result.source_sha256}")


def _show(listed: Series) -> None:
    if not listed.checkpoints:
        say(f"no checkpoints in {listed.path}")
        return
    rows = [["step", "files", "original", "packed", "of original", "kind", "depth", "state"]]
    for row in listed.checkpoints:
        sizes = [human_bytes(row.source_bytes), human_bytes(row.packed_bytes), percent(row.packed_bytes, row.source_bytes)]
        rows.append([str(row.step), str(len(row.files)), *sizes, _kind(row), str(row.depth), row.problem or "complete"])
    source, packed = (sum(sizes) for sizes in zip(*((row.source_bytes, row.packed_bytes) for row in listed.checkpoints), strict=True))
    rows.append(["all", "", human_bytes(source), human_bytes(packed), percent(packed, source), "", "", ""])
    say_table(rows, right="rrrrrlrl")
    if listed.store_bytes:
        say()
        say(f"and {human_bytes(listed.store_bytes)} that they need of checkpoints that were deleted")


def _kind(row: Checkpoint) -> str:
    n_packed = sum(file.packed for file in row.files)
    if n_packed == 0:
        return "plain"
    if row.depth == 0:
        kind = "full"
    else:
        kind = f"delta to {row.base_step}" if row.base_step is not None else "delta to a deleted one"
    return f"{kind}, {len(row.files) - n_packed} plain" if n_packed < len(row.files) else kind
