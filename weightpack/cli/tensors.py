# SPDX-License-Identifier: Apache-2.0
"""Verbs on single tensors: cat, diff."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from weightpack._humane import percent
from weightpack.cli.failures import ExitCode, explain
from weightpack.cli.options import PATH, base_to_unpack_option, json_option, quiet_option, revision_option, threads_option, token_option, verbose_option
from weightpack.cli.output import StandardOutput, complain, say, say_json, say_table
from weightpack.errors import OptionError, WeightpackError

if TYPE_CHECKING:
    from weightpack.tools.compare import TensorDifference


def _complete_tensor(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the names of the tensors of the file or directory that was named; such as no shell could be given are left out."""
    from pathlib import Path

    from weightpack import api
    from weightpack.errors import WeightpackError
    from weightpack.tools.extract import tensor_names

    model = ctx.params.get("file")
    try:
        if model is None or not Path(model).exists():  # nothing is fetched to complete a name
            return []
        with api.open_weights(model) as files:
            names = sorted({name for file in files for name in tensor_names(file)})
    except (WeightpackError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete) and name.isprintable()]


@click.command()
@click.argument("file", type=PATH)
@click.argument("tensor", shell_complete=_complete_tensor)
@click.option("--npy", is_flag=True, help="Write a .npy file: shape and dtype before the bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print dtype, shape and length as JSON instead of the bytes.")
@click.option("--base", type=PATH, help="What FILE is a difference from: a file or directory. [default: looked for beside it, in WEIGHTPACK_BASES, on the Hub]")
@threads_option
@click.option("--force", "-f", is_flag=True, help="Write to a terminal, too.")
@revision_option
@token_option
def cat(file: str, tensor: str, npy: bool, as_json: bool, base: str | None, threads: int | None, force: bool, revision: str | None, token: str | None) -> None:
    """Write the bytes of one TENSOR of FILE, plain or packed, to standard output. FILE may be a directory with shards, a URL or a Hub repo, too."""
    from weightpack import api
    from weightpack.io.parallel import thread_count
    from weightpack.reading.tensors import TensorReader
    from weightpack.tools.extract import file_with, npy_header, tensor_windows

    if npy and as_json:
        raise OptionError("one of --npy and --json")
    with api.open_weights(file, revision=revision, token=token) as files, ExitStack() as stack:
        reader = stack.enter_context(closing(TensorReader(file_with(files, tensor), base=base)))
        wanted = reader.tensor(tensor)
        if as_json:
            say_json({"file": reader.file.name, "name": wanted.name, "dtype": wanted.dtype, "shape": wanted.shape, "n_bytes": wanted.n_bytes})
            return
        head = npy_header(wanted) if npy else b""
        output = StandardOutput(force=force)
        output.write(head)
        for window in tensor_windows(reader, wanted, thread_count(threads)):
            output.write(memoryview(window))
        output.flush()


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@base_to_unpack_option
@threads_option
@json_option
@verbose_option
@quiet_option
def diff(first: str, second: str, base: str | None, threads: int | None, as_json: bool, verbose: bool, quiet: bool) -> ExitCode:
    """Say which tensors differ between FIRST and SECOND (files, directories, URLs or Hub repos, plain or packed), and how much.

    Elements differ if a bit of them does. Exit code 0: all tensors are equal; 1: some differ, or only one side has them; 2: they could not be compared, as
    one is damaged, or not there.
    """
    from weightpack.tools.compare import Change, compare

    try:
        compared = list(compare(first, second, threads=threads, base=base))
    except WeightpackError as error:  # 1 means that they differ
        if (explained := explain(error)) is not None:
            complain(explained.reason, explained.details)
        return ExitCode.BAD_CALL
    counts = Counter(tensor.change for tensor in compared)
    equal = counts[Change.EQUAL] == len(compared)
    if as_json:
        say_json({"equal": equal, "tensors": [_as_json(tensor) for tensor in compared]})
    elif not quiet:
        shown = [tensor for tensor in compared if verbose or tensor.change != Change.EQUAL]
        if shown:
            rows = [["tensor", "differs in", "first", "second", "elements", "differ", "of all", "max |difference|"]]
            say_table(rows + [_row(tensor) for tensor in shown], right="llllrrrr")
        say(f"{len(compared)} tensors: {', '.join(f'{counts[change]} {_IN_ALL[change]}' for change in Change if counts[change]) or 'none'}")
    return ExitCode.DONE if equal else ExitCode.DIFFERENT


_IN_ALL = {
    "equal": "equal", "values": "with other values", "shape": "of another shape", "dtype": "of another dtype", "only in the first": "only in the first",
    "only in the second": "only in the second",
}  # fmt: skip


def _row(tensor: TensorDifference) -> list[str]:
    sides = [f"{dtype} {'x'.join(map(str, shape or ()))}" if dtype else "-" for dtype, shape in zip(tensor.dtypes, tensor.shapes, strict=True)]
    counts = [str(tensor.n_elems), str(tensor.n_different), percent(tensor.n_different, tensor.n_elems)] if tensor.n_elems else ["", "", ""]
    return [tensor.name, str(tensor.change), *sides, *counts, "" if tensor.max_abs_difference is None else f"{tensor.max_abs_difference:.3g}"]


def _as_json(tensor: TensorDifference) -> dict[str, object]:
    """Describe a tensor; JSON has no infinity, so that is the text "inf"."""
    most = tensor.max_abs_difference
    return {**asdict(tensor), "max_abs_difference": "inf" if most is not None and math.isinf(most) else most}
