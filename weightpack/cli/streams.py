# SPDX-License-Identifier: Apache-2.0
"""Standard input as a source, standard output as a target, both written `-`."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from weightpack.cli.output import StandardOutput
from weightpack.errors import OptionError, PathNotFoundError, WeightpackError

if TYPE_CHECKING:
    from weightpack.models.jobs import JobResult

DASH = "-"
_INPUT = "standard input"
_COPY_BYTES = 1 << 20


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder of the system's temporary ones (TMPDIR) that nobody else can read."""
    with tempfile.TemporaryDirectory(prefix="weightpack-") as name:
        yield Path(name)


@contextmanager
def seekable(source: str, *, beside: Path | None = None, overwrite: bool = False) -> Iterator[str]:
    """Give a source whose bytes can be read at any offset: itself, or a temporary copy of standard input, whose name no error shows.

    Parameters
    ----------
    beside
        The target on whose disk the copy is made; by default it is made where temporary files are.
    overwrite
        May that target be replaced? If not, and it exists, nothing is read.

    Raises
    ------
    OptionError
        Standard input is a terminal, or the target exists.
    """
    if source != DASH:
        yield source
        return
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), _INPUT)
    if sys.stdin.isatty():
        raise OptionError("standard input is a terminal: send a file into it, or name one")
    if beside is None:
        with temporary_folder() as folder, _named_input(folder / "input"):
            with open(folder / "input", "wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy, _COPY_BYTES)
            yield str(folder / "input")
    else:
        from weightpack.io.atomic import AtomicFile

        with AtomicFile(beside, overwrite=overwrite) as file, _named_input(file.path):
            offset = 0
            while data := sys.stdin.buffer.read(_COPY_BYTES):
                file.write_at(offset, data)
                offset += len(data)
            yield str(file.path)


@contextmanager
def _named_input(copy: Path) -> Iterator[None]:
    try:
        yield
    except WeightpackError as error:
        if error.path == str(copy):
            error.path = _INPUT
        raise
    except OSError as error:
        if error.filename in (None, str(copy)):
            error.filename = f"the copy of {_INPUT} in {copy.parent}"
        raise


def without_copies(job: JobResult, source: str, target: str) -> JobResult:
    """Return what a job did with the names that the caller gave."""
    return replace(job, target=target, files=tuple(replace(file, source=source, target=target) for file in job.files)) if source == DASH else job


def copy_out(path: Path, output: StandardOutput) -> None:
    """Copy a file to standard output."""
    with open(path, "rb") as file:
        while data := file.read(_COPY_BYTES):
            output.write(data)
    output.flush()


def wants_standard_output(sources: tuple[str, ...], dst: str | None, to_stdout: bool) -> bool:
    """Is standard output the target? It is, too, of standard input that has no other.

    Raises
    ------
    OptionError
        The sources are no one stream, or there are two targets.
    """
    if DASH in sources and len(sources) > 1:
        raise OptionError("standard input is a source of its own: name no other beside it")
    wanted = to_stdout or dst == DASH or (DASH in sources and dst is None)
    if wanted and dst not in (None, DASH):
        raise OptionError("one target: either -o or -c (--stdout)")
    if wanted and len(sources) > 1:
        raise OptionError("several sources are no one stream: name a folder with -o")
    if wanted and sources[0] != DASH and not Path(sources[0]).exists():
        raise PathNotFoundError("no such file", path=sources[0])
    if wanted and Path(sources[0]).is_dir():
        raise OptionError("a directory is no stream of bytes", path=sources[0])
    if DASH in sources and dst is not None and Path(dst).is_dir():
        raise OptionError("standard input has no name: name a file in this directory", path=dst)
    return wanted
