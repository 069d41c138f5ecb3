# SPDX-License-Identifier: Apache-2.0
"""The verb on a training run: series."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from weightpack._humane import human_bytes, percent, table
from weightpack.cli.failures import GOES_ON, WHOLE_OR_ABSENT, after_interrupt
from weightpack.cli.options import force_option, json_option, pack_options, profile_option, quiet_option, threads_option
from weightpack.cli.progress import Bar
from weightpack.cli.report import report_job

if TYPE_CHECKING:
    from weightpack.series import Series


@click.command()
@click.argument("run")
@click.option("--pack", "do_pack", is_flag=True, help="Pack the checkpoints that are complete and plain, in place, the earliest first.")
@click.option("--anchor-every", type=click.IntRange(min=1), help="With --pack: each Nth is packed whole, the others as deltas to the one before. [default: 8]")
@profile_option
@click.option("--restore", "step", metavar="STEP", type=click.IntRange(min=0), help="Restore the checkpoint of this step into the directory -o.")
@click.option("-o", "--output", "dst", help="With --restore: the target.")
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
    from weightpack import errors
    from weightpack import series as checkpoints
    from weightpack.io.parallel import thread_count
    from weightpack.models.jobs import Job

    if sum((do_pack, step is not None, do_verify)) > 1:
        raise errors.OptionError("one of --pack, --restore and --verify at a time")
    if (step is None) != (dst is None):
        raise errors.OptionError("--restore STEP and -o (--output) belong together")
    if anchor_every is not None and not do_pack:
        raise errors.OptionError("--anchor-every belongs to --pack")
    start = time.perf_counter()
    verb = "unpacking" if step is not None else "verifying" if do_verify else "packing"
    with after_interrupt(GOES_ON if do_pack else WHOLE_OR_ABSENT), Bar(verb, quiet) as progress:
        job = Job(threads=thread_count(threads), overwrite=force, progress=progress, options=pack_options(profile, "auto"))
        if step is not None and dst is not None:
            restored = checkpoints.restore(run, step, dst, job)
        elif do_verify:
            verified = checkpoints.verify(run, job)
        elif do_pack:
            packed = checkpoints.pack_run(run, job, anchor_every=anchor_every or checkpoints.ANCHOR_EVERY)
    if step is not None:
        report_job(restored, time.perf_counter() - start, as_json, packing=False)
    elif do_verify:
        if as_json:
            click.echo(json.dumps([{"path": path, **asdict(result)} for path, result in verified]))
            return
        for path, result in verified:
            click.echo(f"ok: {path} restores to {human_bytes(result.source_bytes)}, SHA-256 {result.source_sha256}")
    elif as_json:
        found = checkpoints.series(run)
        rows = [{**asdict(each), "source_bytes": each.source_bytes, "packed_bytes": each.packed_bytes, "depth": each.depth} for each in found.checkpoints]
        click.echo(json.dumps({"path": found.path, "store_bytes": found.store_bytes, "checkpoints": rows}))
    else:
        if do_pack:
            click.echo(f"packed {len(packed)} checkpoint{'s'[: len(packed) != 1]}\n")
        _show_series(checkpoints.series(run))


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
