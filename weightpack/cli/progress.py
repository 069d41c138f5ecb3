# SPDX-License-Identifier: Apache-2.0
"""The progress bar."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from weightpack._humane import printable

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
            described = printable(f"{self._verb} {os.path.basename(path)}")
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc=described, delay=1, leave=False, disable=None, file=sys.stderr)
        self._bar.update(done - self._bar.n)
