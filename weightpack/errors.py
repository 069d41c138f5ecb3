# SPDX-License-Identifier: Apache-2.0
"""Exceptions, split by what the caller can do.

::

    WeightpackError
    ├── FormatError (ValueError)       the bytes are not what the format allows: retrying won't help
    │   ├── NotPackedError             a file without a weightpack index, bytes that are no tensor frame
    │   ├── TruncatedError             the data ends early: fetch it again
    │   ├── CorruptionError            a field or a stream contradicts another
    │   │   ├── ChecksumError          decoded, and the checksum differs
    │   │   └── FolderError            files of a directory are not what they should be: `problems` has each
    │   └── UnsupportedError           newer than this library: upgrade
    ├── LimitError (ValueError)        larger than `Limits` allows: raise the limit if you trust the file
    ├── OptionError (ValueError)       an argument is wrong
    │   └── PathNotFoundError (FileNotFoundError)  there is no file, directory or repo of that name
    ├── BaseNotFoundError (LookupError)  the file is a difference from a base that is not here: name it
    ├── WrongBaseError (ValueError)    the base that was named is not the one that the file needs
    ├── TensorNotFoundError (KeyError)
    ├── LosslessError (RuntimeError)   what was packed does not decode to the source: a bug, or the source changed; nothing was written
    └── MissingExtraError (ImportError)  names the extra to install

Errors of the operating system pass through as OSError.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import TracebackType

__all__ = [
    "WeightpackError", "FormatError", "NotPackedError", "TruncatedError", "CorruptionError", "ChecksumError", "FolderError", "UnsupportedError", "LimitError",
    "OptionError", "PathNotFoundError", "BaseNotFoundError", "WrongBaseError", "TensorNotFoundError", "LosslessError", "MissingExtraError",
]  # fmt: skip


class WeightpackError(Exception):
    """Base of all errors that weightpack raises itself. `path`, `tensor` and `chunk` say where, as far as known."""

    def __init__(self, reason: str, *, path: str | None = None, tensor: str | None = None, chunk: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.path, self.tensor, self.chunk = reason, path, tensor, chunk

    def __str__(self) -> str:
        where = [self.path] if self.path else []
        if self.tensor is not None:
            where.append(f"tensor {self.tensor!r}")
        if self.chunk is not None:
            where.append(f"chunk {self.chunk}")
        return ": ".join([", ".join(where), self.reason] if where else [self.reason])


class FormatError(WeightpackError, ValueError):
    """The bytes are not a file that the format allows."""


class NotPackedError(FormatError):
    """The file has no weightpack index, or the bytes are no tensor frame."""


class TruncatedError(FormatError):
    """The data ends early."""


class CorruptionError(FormatError):
    """A field or a stream contradicts another."""


class ChecksumError(CorruptionError):
    """Decoded, and the checksum differs."""


class FolderError(CorruptionError):
    """A directory is not what it should be; `problems` has an error for each file that differs, is missing or is too many, with its path."""

    def __init__(self, problems: Sequence[WeightpackError], n_files: int, *, path: str) -> None:
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}, in {n_files} files:{lines}", path=path)
        self.problems, self.n_files = tuple(problems), n_files


class UnsupportedError(FormatError):
    """The file needs a newer weightpack."""


class LimitError(WeightpackError, ValueError):
    """Larger than `Limits` allows."""


class OptionError(WeightpackError, ValueError):
    """An argument is wrong."""


class PathNotFoundError(OptionError, FileNotFoundError):
    """There is no file, directory or repo of the name that was given: the same through every function, and what Python's own `open` raises."""

    def __init__(self, reason: str, *, path: str | None = None, tensor: str | None = None, chunk: int | None = None) -> None:
        super().__init__(reason, path="''" if path == "" else path, tensor=tensor, chunk=chunk)
        self.errno, self.strerror = errno.ENOENT, reason

    @property
    def filename(self) -> str | None:
        """The path, as other errors of the operating system have it."""
        return self.path


class BaseNotFoundError(WeightpackError, LookupError):
    """The file is a difference from a base that was not found."""


class WrongBaseError(WeightpackError, ValueError):
    """The base that was named is another than the file needs."""


class TensorNotFoundError(WeightpackError, KeyError):
    """The file has no tensor of that name."""


class LosslessError(WeightpackError, RuntimeError):
    """What was packed does not decode to the source."""


class MissingExtraError(WeightpackError, ImportError):
    """An optional dependency is missing."""


class located:
    """Add to errors from inside what only the caller knows of the place; inner knowledge wins."""

    __slots__ = ("_chunk", "_path", "_tensor")

    def __init__(self, *, path: str | None = None, tensor: str | None = None, chunk: int | None = None) -> None:
        self._path, self._tensor, self._chunk = path, tensor, chunk

    def __enter__(self) -> None:
        pass

    def __exit__(self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, WeightpackError):
            error.path = error.path if error.path is not None else self._path
            error.tensor = error.tensor if error.tensor is not None else self._tensor
            error.chunk = error.chunk if error.chunk is not None else self._chunk
