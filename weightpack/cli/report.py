# SPDX-License-Identifier: Apache-2.0
"""What a finished job is said to have done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from weightpack._humane import human_bytes, percent
from weightpack.cli.output import complain, say

if TYPE_CHECKING:
    from weightpack.models.jobs import JobResult


@dataclass(frozen=True, slots=True)
class TimedJob:
    """A job and the seconds that it took."""

    job: JobResult
    seconds: float

    def as_json(self) -> dict[str, object]:
        """Return what --json prints."""
        job = self.job
        return {**asdict(job), "source_bytes": job.source_bytes, "packed_bytes": job.packed_bytes, "seconds": round(self.seconds, 3)}


def _sizes(source_bytes: int, packed_bytes: int, packing: bool) -> str:
    if packing:
        return f"{human_bytes(source_bytes)} -> {human_bytes(packed_bytes)} ({percent(packed_bytes, source_bytes)} of original)"
    return f"{human_bytes(packed_bytes)} -> {human_bytes(source_bytes)}"


def report_job(done: TimedJob, *, packing: bool, in_place: bool = False, verbose: bool = False) -> None:
    """Print a job for people: a line, with `verbose` one for each file, and what is not as one might expect."""
    job = done.job
    rate = human_bytes(job.source_bytes / done.seconds) if done.seconds else "-"
    say(f"{job.target}: {_sizes(job.source_bytes, job.packed_bytes, packing)}, {done.seconds:.2f} s, {rate}/s")
    for file in job.files if verbose else ():
        say(f"  {file.source} -> {file.target}: {_sizes(file.source_bytes, file.packed_bytes, packing)}, SHA-256 of the original {file.source_sha256}")
    for note in job.kept:
        say(f"  carried over as it is: {note.name}: {note.reason}")
    for note in job.left_out:
        say(f"  {'not looked at' if in_place else 'left out'}: {note.name}: {note.reason}")
    for note in job.warnings:
        complain(f"warning: {note.name}: {note.reason}")


def report_total(tally: str, jobs: Sequence[TimedJob], *, packing: bool) -> None:
    """Print what several jobs did together."""
    source_bytes, packed_bytes = sum(done.job.source_bytes for done in jobs), sum(done.job.packed_bytes for done in jobs)
    say(f"{tally}, {_sizes(source_bytes, packed_bytes, packing)}")
