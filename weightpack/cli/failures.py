# SPDX-License-Identifier: Apache-2.0
"""What ends a command: its exit code and its line on stderr."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NamedTuple

import click

from weightpack import errors

GOES_ON = "run the same command again, it goes on where it stopped"
WHOLE_OR_ABSENT = "no file is half written"


class ExitCode(IntEnum):
    """What the shell gets."""

    DONE = 0
    BAD_DATA = 1
    DIFFERENT = 1  # of `diff`
    BAD_CALL = 2
    IO = 3  # or memory, or threads
    BUG = 70  # EX_SOFTWARE
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    READER_LEFT = 141  # 128 + SIGPIPE


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BAD_CALLS = (errors.OptionError, errors.TensorNotFoundError, errors.MissingExtraError, errors.BaseNotFoundError, errors.WrongBaseError)


class Interrupted(Exception):
    """An interrupt, with what is true after it. No KeyboardInterrupt: click has its own way with those."""


@contextmanager
def after_interrupt(what_is_true: str) -> Iterator[None]:
    """Let an interrupt of the block say in what state it leaves things."""
    try:
        yield
    except (click.Abort, KeyboardInterrupt):
        raise Interrupted(what_is_true) from None


class Explained(NamedTuple):
    """An exit code, a line that says what is wrong, and further lines where one does not do."""

    code: ExitCode
    reason: str
    details: tuple[str, ...] = ()


def explain(error: BaseException) -> Explained | None:
    """Return the exit code for an error, and what is wrong; None for what only a bug can raise."""
    if isinstance(error, errors.FolderError):
        n_problems = len(error.problems)
        what = f"{error.path}: {n_problems} problem{'s'[: n_problems != 1]}, in {error.n_files} files:"
        return Explained(ExitCode.BAD_DATA, what, tuple(str(problem) for problem in error.problems))
    if isinstance(error, Interrupted):
        return Explained(ExitCode.INTERRUPTED, f"interrupted: {error}")
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Explained(ExitCode.INTERRUPTED, "interrupted")
    if isinstance(error, _BAD_CALLS):
        return Explained(ExitCode.BAD_CALL, str(error))
    if isinstance(error, errors.WeightpackError):
        return Explained(ExitCode.BAD_DATA, str(error))
    if isinstance(error, OSError):
        name = error.filename2 if error.errno in _FULL and error.filename2 else error.filename  # of a copy, the target
        return Explained(ExitCode.IO, f"{name}: {error.strerror}" if name and error.strerror else error.strerror or str(error))
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and "failed to map segment" in str(error)):
        return Explained(ExitCode.IO, f"there is not enough memory{f': {error}' if str(error) else ''}")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return Explained(ExitCode.IO, "the system lets no more threads start: ask for fewer with --threads")
    if isinstance(error, UnicodeError):
        return Explained(ExitCode.IO, f"a text can't be written here: {error}")
    return None
