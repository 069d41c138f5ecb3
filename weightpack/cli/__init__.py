# SPDX-License-Identifier: Apache-2.0
"""The command `weightpack`. The only room that prints.

Exit codes: 0 done, 1 the data is bad, 2 the call is bad, 3 input or output failed.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import NoReturn

import click

from weightpack._version import __version__
from weightpack.cli import files, hub, machine, runs
from weightpack.cli.failures import ExitCode, explain


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="weightpack")
def cli() -> None:
    """Make model checkpoints smaller without changing a bit, and restore them byte for byte."""


for command in (
    files.pack, files.unpack, files.verify, files.inspect, files.estimate, hub.push, hub.pull, runs.series, machine.bench, machine.doctor,
):  # fmt: skip
    cli.add_command(command)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line; every failure is one line on stderr and an exit code."""
    warnings.showwarning = lambda message, *_: click.echo(f"weightpack: warning: {message}", err=True)
    try:
        sys.exit(cli.main(args, prog_name="weightpack", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.BAD_CALL)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: say nothing more
        sys.exit(ExitCode.IO)
    except BaseException as error:
        explained = explain(error)
        if explained is None:
            raise
        code, line = explained
        click.echo(f"weightpack: {line}", err=True)
        sys.exit(code)
