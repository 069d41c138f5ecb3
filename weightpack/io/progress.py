# SPDX-License-Identifier: Apache-2.0
"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from the calling thread."""


class Meter:
    """Adds up what is done of `total` bytes; more than that is not told."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, n_bytes: int) -> None:
        """Tell that `n_bytes` more are done."""
        self._done += n_bytes
        if self._progress:
            self._progress(min(self._done, self._total), self._total)
