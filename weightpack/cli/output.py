# SPDX-License-Identifier: Apache-2.0
"""Everything that is printed goes through here: lines for people, whose names can do nothing to a terminal, and JSON, which is ASCII."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click

from weightpack._humane import printable, table
from weightpack.errors import OptionError


class ReaderLeft(Exception):
    """Whoever read standard output has closed it."""


@contextmanager
def _to_reader() -> Iterator[None]:
    """Tell a reader that left from other broken pipes, and name standard output in what else goes wrong with it."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        error.filename = StandardOutput.name
        raise


def say(text: str = "", *, err: bool = False) -> None:
    """Print one line."""
    with _to_reader():
        click.echo(printable(text), err=err)


def say_table(rows: list[list[str]], *, right: str) -> None:
    """Print a table."""
    with _to_reader():
        click.echo(table(rows, right=right))


def say_json(value: object) -> None:
    """Print a value as JSON."""
    with _to_reader():
        click.echo(json.dumps(value))


def finish() -> None:
    """Write what standard output holds back."""
    if sys.stdout is not None:
        with _to_reader():
            sys.stdout.flush()


def abandon() -> None:
    """Let nothing more reach a standard output that nobody reads: not what it holds back either, when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str, details: Iterable[str] = ()) -> None:
    """Print one line of ours on stderr, and such as belong to it."""
    say(f"weightpack: {text}", err=True)
    for detail in details:
        say(f"  {detail}", err=True)


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
        with _to_reader():
            while len(view):  # unbuffered (PYTHONUNBUFFERED), a stream may take a part
                n_written = self._stream.write(view)
                if n_written is None:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                view = view[n_written:]

    def flush(self) -> None:
        """Write what is held back."""
        with _to_reader():
            self._stream.flush()
