# SPDX-License-Identifier: Apache-2.0
"""What is said of the files of a directory, with their total."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

_Report = TypeVar("_Report")


@dataclass(frozen=True, slots=True)
class Total:
    """All files together, weights and others, as they are on the disk. `unfinished`: the job in place that has not ended, "pack" or "unpack"."""

    n_files: int
    source_bytes: int
    packed_bytes: int
    unfinished: str | None = None

    @property
    def ratio(self) -> float:
        """Packed bytes / source bytes: smaller is better."""
        return self.packed_bytes / self.source_bytes if self.source_bytes else 1.0


class Reports(list[_Report]):
    """One report a file, and the total of all files: of a directory also of those that have no report."""

    def __init__(self, reports: Iterable[_Report], total: Total) -> None:
        super().__init__(reports)
        self.total = total
