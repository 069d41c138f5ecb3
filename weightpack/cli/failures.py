# SPDX-License-Identifier: Apache-2.0
"""What ends a command: its exit code and its line on stderr."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

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


def explain(error: BaseException) -> tuple[ExitCode, str] | None:
    """Return the exit code for an error and a line that says what is wrong; None for what only a bug can raise."""
    if isinstance(error, Interrupted):
        return ExitCode.INTERRUPTED, f"interrupted: {error}"
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted"
    if isinstance(error, _BAD_CALLS):
        return ExitCode.BAD_CALL, str(error)
    if isinstance(error, errors.WeightpackError):
        return ExitCode.BAD_DATA, str(error)
    if isinstance(error, OSError):
        name = error.filename2 if error.errno in _FULL and error.filename2 else error.filename  # of a copy, the target
        return ExitCode.IO, f"{name}: {error.strerror}" if name and error.strerror else str(error)
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and "failed to map segment" in str(error)):
        return ExitCode.IO, f"there is not enough memory{f': {error}' if str(error) else ''}"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return ExitCode.IO, "the system lets no more threads start: ask for fewer with --threads"
    if isinstance(error, UnicodeError):
        return ExitCode.IO, f"a text can't be written here: {error}"
    return None
