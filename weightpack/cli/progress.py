# SPDX-License-Identifier: Apache-2.0
"""The progress bar."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightpack.models.jobs import FileProgress


class Bar:
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
