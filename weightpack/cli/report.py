# SPDX-License-Identifier: Apache-2.0
"""What a finished job is said to have done."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from weightpack._humane import human_bytes, percent

if TYPE_CHECKING:
    from weightpack.models.jobs import JobResult


def report_job(job: JobResult, seconds: float, as_json: bool, *, packing: bool) -> None:
    """Print a job, as JSON or for people."""
    if as_json:
        click.echo(json.dumps({**asdict(job), "source_bytes": job.source_bytes, "packed_bytes": job.packed_bytes, "seconds": round(seconds, 3)}))
        return
    before, after = (job.source_bytes, job.packed_bytes) if packing else (job.packed_bytes, job.source_bytes)
    rate = human_bytes(job.source_bytes / seconds) if seconds else "-"
    share = f" ({percent(job.packed_bytes, job.source_bytes)} of original)" if packing else ""
    click.echo(f"{job.target}: {human_bytes(before)} -> {human_bytes(after)}{share}, {seconds:.2f} s, {rate}/s")
