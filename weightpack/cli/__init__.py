# SPDX-License-Identifier: Apache-2.0
"""The command `weightpack`. The only room that prints.

Exit codes: 0 done; 1 the data is bad, or `diff` found a difference; 2 the call is bad; 3 input or output failed, or memory or threads ran out. 130 and 141 as
shells have them: interrupted, and whoever read the output left. 70 is a bug.
"""

from __future__ import annotations

import gc
import traceback
import warnings
from typing import Any, NoReturn

import click

from weightpack._version import __version__
from weightpack.cli import files, hub, machine, mount, runs, store, tensors
from weightpack.cli.failures import ExitCode, Explained, explain
from weightpack.cli.output import ReaderLeft, complain, finish, leave, say_aside, tolerate_any_encoding


class _Program(click.Group):
    """Pipes that broke: click takes each for standard output, and ends with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise OSError(f"a connection broke: {error}") from error


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="weightpack")
def cli() -> None:
    """Make model checkpoints smaller without changing a bit, and restore them byte for byte."""


for command in (
    files.pack, files.unpack, files.verify, files.inspect, files.estimate, tensors.cat, tensors.diff, hub.push, hub.pull, runs.series, machine.bench,
    machine.doctor, mount.mount, mount.umount, store.store,
):  # fmt: skip
    cli.add_command(command)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line; every failure is one line on stderr and an exit code."""
    gc.set_threshold(1 << 17, 50, 50)  # a command ends soon: looking for circles among the objects of 200,000 tensors takes longer than all else
    warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
    tolerate_any_encoding()
    try:
        code = cli.main(args, prog_name="weightpack", standalone_mode=False)
        finish()
        leave(code or ExitCode.DONE)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        if context is not None:
            say_aside(context.get_usage())
            say_aside(f"Try '{context.command_path} -h' for help.")
        complain(error.format_message())
        leave(ExitCode.BAD_CALL)
    except ReaderLeft:
        leave(ExitCode.READER_LEFT)
    except Exception as error:
        explained = explain(error)
        if explained is None:
            for line in "".join(traceback.format_exception(error)).splitlines():
                say_aside(line)
            explained = Explained(ExitCode.BUG, "this is a bug: please report it with the lines above")
        complain(explained.reason, explained.details)
        leave(explained.code)
    except KeyboardInterrupt:  # outside of what click watches over
        leave(ExitCode.INTERRUPTED)
