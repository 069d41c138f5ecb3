# SPDX-License-Identifier: Apache-2.0
"""Several sources, one after the other: one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from weightpack.cli.failures import ExitCode, Explained, Interrupted, explain
from weightpack.cli.output import ReaderLeft, complain
from weightpack.errors import OptionError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failure:
    """A source that failed: with the exit code that it alone would have given, and why."""

    source: str
    explained: Explained


class Batch(Generic[Result]):
    """Does one thing to each source. `results` has (source, result), `failures` what went wrong; the error of an only source is raised instead."""

    def __init__(self, sources: Sequence[str], work: Callable[[str], Result]) -> None:
        self.sources, self._work = tuple(dict.fromkeys(sources)), work
        self.results: list[tuple[str, Result]] = []
        self.failures: list[Failure] = []

    def run(self) -> Iterator[tuple[str, Result]]:
        """Work; yield each source with its result, once it is there."""
        for source in self.sources:
            try:
                result = self._work(source)
            except ReaderLeft:
                raise
            except Interrupted as interrupted:
                raise Interrupted(f"{len(self.results)} of {len(self.sources)} sources are done; {interrupted}" if self.several else str(interrupted)) from None
            except Exception as error:
                explained = explain(error) if self.several else None
                if explained is None:
                    raise
                self.failures.append(Failure(source, explained))
                complain(explained.reason, explained.details)
            else:
                self.results.append((source, result))
                yield source, result

    @property
    def several(self) -> bool:
        return len(self.sources) > 1

    @property
    def exit_code(self) -> ExitCode:
        """The worst of all sources."""
        return max((failure.explained.code for failure in self.failures), default=ExitCode.DONE)

    def as_json(self, describe: Callable[[Result], object]) -> object:
        """Return what to print as JSON: of an only source its description; of several a list with an object for each, `result` or `error` in it."""
        if not self.several:
            return describe(self.results[0][1])
        described: dict[str, object] = {source: {"source": source, "result": describe(result)} for source, result in self.results}
        for failure in self.failures:
            code, reason, details = failure.explained
            described[failure.source] = {"source": failure.source, "error": " ".join((reason, *details)), "exit_code": int(code)}
        return [described[source] for source in self.sources]

    @property
    def tally(self) -> str:
        """Say how many were done."""
        return f"total: {len(self.results)} of {len(self.sources)} sources"


def refuse_several(sources: Sequence[str], option: str) -> None:
    """Raise OptionError if there is more than one source."""
    if len(sources) > 1:
        raise OptionError(f"{option} is for one source, {len(sources)} were named")


class Targets:
    """Where sources go: beside themselves, or to what -o names. Of several sources, and of a file if it ends with a slash, that is a folder, which is made.

    Raises
    ------
    OptionError
        The folder is a file.
    """

    def __init__(self, sources: Sequence[str], dst: str | None, place: Callable[[str, Path | None], Path]) -> None:
        self._dst, self._place = dst, place
        self._claimed: dict[Path, str] = {}
        self._several = len(sources) > 1 or (dst is not None and dst.endswith("/") and Path(sources[0]).is_file())
        if self._several and dst is not None:
            folder = Path(dst)
            if folder.exists() and not folder.is_dir():
                raise OptionError("-o (--output) is to be a folder here: this is a file", path=dst)
            folder.mkdir(parents=True, exist_ok=True)

    def of(self, source: str) -> str | None:
        """Return a source's target; None for that of an only one that goes beside itself. OptionError if another source of this command has the same."""
        if not self._several:
            return self._dst
        target = self._place(source, None if self._dst is None else Path(self._dst))
        other = self._claimed.setdefault(target.resolve(), source)
        if other != source:
            raise OptionError(f"the sources {other} and {source} have the same target", path=str(target))
        return str(target)
