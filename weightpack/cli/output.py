# SPDX-License-Identifier: Apache-2.0
"""Everything that is printed goes through here: lines for people, whose names can do nothing to a terminal, and JSON, which is ASCII."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, NoReturn

import click

from weightpack._humane import printable, table
from weightpack.errors import OptionError


class ReaderLeft(Exception):
    """Whoever read standard output has closed it."""


@contextmanager
def _standard_output() -> Iterator[None]:
    """Tell a reader that left from other broken pipes, and name standard output in what else goes wrong with it."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        error.filename = StandardOutput.name
        raise


def say(text: str = "") -> None:
    """Print one line."""
    with _standard_output():
        click.echo(printable(text))


def say_aside(text: str) -> None:
    """Print one line on stderr. One that can't be printed there changes nothing else: the exit code says how the command ended."""
    with suppress(OSError):
        click.echo(printable(text), err=True)


def say_table(rows: list[list[str]], *, right: str) -> None:
    """Print a table."""
    with _standard_output():
        click.echo(table(rows, right=right))


def say_json(value: object) -> None:
    """Print a value as JSON."""
    with _standard_output():
        click.echo(json.dumps(value))


def finish() -> None:
    """Write what standard output holds back."""
    if sys.stdout is not None:
        with _standard_output():
            sys.stdout.flush()


def leave(code: int) -> NoReturn:
    """End the program. What a stream that failed holds back is dropped: the interpreter would write it again, fail, and end with its own code, 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
    sys.exit(code)


def complain(text: str, details: Iterable[str] = ()) -> None:
    """Print one line of ours on stderr, and such as belong to it."""
    say_aside(f"weightpack: {text}")
    for detail in details:
        say_aside(f"  {detail}")


def tolerate_any_encoding() -> None:
    """Let characters that a terminal's encoding lacks be printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class StandardOutput:
    """Standard output, for bytes.

    Raises
    ------
    OptionError
        It is a terminal, and nobody insists.
    OSError
        It is closed.
    """

    name = "standard output"

    def __init__(self, *, force: bool) -> None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.name)
        if sys.stdout.isatty() and not force:
            raise OptionError("bytes are not written to a terminal: send them into a file or a pipe, or insist with --force")
        self._stream: BinaryIO = sys.stdout.buffer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        with _standard_output():
            while len(view):  # unbuffered (PYTHONUNBUFFERED), a stream may take a part
                n_written = self._stream.write(view)
                if n_written is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                view = view[n_written:]

    def flush(self) -> None:
        """Write what is held back."""
        with _standard_output():
            self._stream.flush()
