# SPDX-License-Identifier: Apache-2.0
"""Verbs on a store of models: store init, add, ls, log, du, get, verify, rm, gc, rebase, export, serve."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from weightpack._humane import human_bytes, percent
from weightpack.cli.failures import GOES_ON, WHOLE_OR_ABSENT, after_interrupt
from weightpack.cli.options import PATH, force_option, json_option, pack_options, profile_option, quiet_option, threads_option
from weightpack.cli.output import complain, finish, say, say_json, say_table
from weightpack.cli.progress import Bar

if TYPE_CHECKING:
    from weightpack.store import Ref, Usage

url_argument = click.argument("url", type=PATH)


@click.group()
def store() -> None:
    """Keep many models in one place, URL: a folder, or whatever fsspec writes to, such as s3://bucket/prefix (`pip install weightpack[store]`).

    Tensors are stored once, those that are alike as differences, and every file comes back byte for byte.
    """


@store.command()
@url_argument
def init(url: str) -> None:
    """Make a store."""
    from weightpack.store import Store

    Store(url, make=True)


@store.command()
@url_argument
@click.argument("model", nargs=-1, required=True, type=PATH)
@click.option("--name", help="What MODEL is to be called, `name` or `owner/name`. [default: the repo id, or the folder's name]")
@click.option(
    "--base", default="auto", show_default=True, metavar="auto|none|NAME", help="What tensors may differ from: what is alike; nothing; a model first."
)
@click.option("--ray", metavar="ADDRESS|local", help="Pack on the workers of a Ray cluster, or of one that is started on this machine.")
@profile_option
@threads_option
@json_option
@quiet_option
def add(
    url: str, model: tuple[str, ...], name: str | None, base: str, ray: str | None, profile: str, threads: int | None, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Add each MODEL: a file, a folder, or a repo id of a Hub. One that was interrupted goes on when it is added again."""
    from weightpack.errors import OptionError
    from weightpack.store import Store

    if name is not None and len(model) > 1:
        raise OptionError("several models can't have one name: add them one by one, or without --name")
    opened = Store(url, threads=threads, options=pack_options(profile, "auto"), ray=ray)
    refs = []
    for path in model:
        start = time.perf_counter()
        with after_interrupt(GOES_ON), Bar("adding", quiet) as progress:
            ref = opened.add(path, name, base=base, progress=progress)
        refs.append(ref)
        if not quiet and not as_json:
            _report(ref, time.perf_counter() - start)
    if as_json:
        say_json([asdict(ref) for ref in refs])


def _report(ref: Ref, seconds: float) -> None:
    sizes = f"{human_bytes(ref.source_bytes)} -> {human_bytes(ref.new_bytes)} ({percent(ref.new_bytes, ref.source_bytes)} of original)"
    say(f"{ref.name}: {sizes}, {ref.new_tensors} of {ref.tensors} tensors are new, {seconds:.2f} s")
    for note in ref.left_out:
        say(f"  left out: {note.name}: {note.reason}")


@store.command()
@url_argument
@json_option
def ls(url: str, as_json: bool) -> None:
    """List the models."""
    from weightpack.store import Store

    refs = Store(url).ls()
    if as_json:
        say_json([{"name": ref.name, "commit": ref.commit, "source_bytes": ref.source_bytes} for ref in refs])
    elif refs:
        say_table([["model", "original", "commit"], *([ref.name, human_bytes(ref.source_bytes), ref.commit[:12]] for ref in refs)], right="lrl")
    else:
        say("no models")


@store.command()
@url_argument
@click.argument("name", required=False)
@json_option
def du(url: str, name: str | None, as_json: bool) -> None:
    """Say what each model, or the one of this NAME, costs, given the others.

    "alone": what removing it would set free. "shared": what others need, too. "share": of what is shared, the part of one of those who need it.
    """
    from weightpack.store import Store

    opened = Store(url)
    if name is not None:
        opened.manifest(name)  # must be there
    rows, stored = [row for row in opened.du() if name in (None, row.name)], opened.stored_bytes()
    if as_json:
        say_json({"stored_bytes": stored, "models": [asdict(row) for row in rows]})
        return
    table = [["model", "original", "alone", "shared", "share", "of original"]]
    table += [[row.name, *_cells(row)] for row in rows]
    if name is None:
        source = sum(row.source_bytes for row in rows)
        table.append(["the store", human_bytes(source), "", "", human_bytes(stored), percent(stored, source)])
    say_table(table, right="lrrrrr")


def _cells(row: Usage) -> list[str]:
    share = round(row.fair_bytes)
    return [human_bytes(row.source_bytes), human_bytes(row.own_bytes), human_bytes(row.shared_bytes), human_bytes(share), percent(share, row.source_bytes)]


@store.command()
@url_argument
@click.option("--plot", type=PATH, help="Draw the tree, too, and what each model takes, into this picture (.png, .svg, .pdf).")
@json_option
def log(url: str, plot: str | None, as_json: bool) -> None:
    """Show the models as a tree: each below the one that it has most tensors of, or differs from most."""
    from weightpack.store import Store

    branches = Store(url).log()
    if plot is not None:
        from weightpack.tools.plot import plot_tree

        plot_tree(branches, plot)
    if as_json:
        say_json([{"name": branch.name, "parent": branch.parent, "depth": branch.depth, **asdict(branch.usage)} for branch in branches])
        return
    rows = [["model", "original", "alone", "shared", "share", "of original"]]
    rows += [[f"{'   ' * (branch.depth - 1)}{'└─ ' if branch.depth else ''}{branch.name}", *_cells(branch.usage)] for branch in branches]
    say_table(rows, right="lrrrrr")


@store.command()
@url_argument
@click.argument("name")
@click.option("-o", "--output", "dst", type=PATH, help="The folder to restore into. [default: the last part of NAME, here]")
@force_option
@threads_option
@json_option
@quiet_option
def get(url: str, name: str, dst: str | None, force: bool, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Restore the files of a model into a folder, byte for byte, with permissions and times."""
    from weightpack.store import Store

    opened, start = Store(url, threads=threads), time.perf_counter()
    with after_interrupt(WHOLE_OR_ABSENT), Bar("restoring", quiet) as progress:
        folder = opened.get(name, dst or name.rsplit("/")[-1], overwrite=force, progress=progress)
    seconds, n_bytes = time.perf_counter() - start, opened.manifest(name).n_bytes
    if as_json:
        say_json({"name": name, "target": str(folder), "source_bytes": n_bytes, "seconds": round(seconds, 3)})
    elif not quiet:
        say(f"{folder}: {human_bytes(n_bytes)}, {seconds:.2f} s")


@store.command()
@url_argument
@click.argument("name", nargs=-1)
@click.option("--no-decode", is_flag=True, help="Prove objects by their SHA-256 alone, which is faster.")
@threads_option
@json_option
@quiet_option
def verify(url: str, name: tuple[str, ...], no_decode: bool, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Prove that all objects are whole, that each tensor decodes to what its key says, and that models name what is there.

    Of models that are named the files are put together, too, and their SHA-256s compared.
    """
    from weightpack.store import Store

    with Bar("verifying", quiet) as progress:
        verified = Store(url, threads=threads).verify(name, decode=not no_decode, progress=progress)
    if as_json:
        say_json(asdict(verified))
    elif not quiet:
        say(f"ok: {verified.models} models, {verified.tensors} tensors in {verified.objects} objects, {human_bytes(verified.n_bytes)}")


@store.command()
@url_argument
@click.argument("name", nargs=-1, required=True)
def rm(url: str, name: tuple[str, ...]) -> None:
    """Remove models. What they alone needed stays until `store gc`."""
    from weightpack.store import Store

    opened = Store(url)
    for each in name:
        opened.rm(each)


@store.command()
@url_argument
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def gc(url: str, dry_run: bool, as_json: bool) -> None:
    """Remove what no model needs: what removed models have left, and what a killed `add` has. It does nothing while somebody adds."""
    from weightpack.store import Store

    collected = Store(url).gc(dry_run=dry_run)
    if as_json:
        say_json(asdict(collected))
    else:
        say(f"{'would remove' if dry_run else 'removed'} {collected.objects} object{'s'[: collected.objects != 1]}, {human_bytes(collected.n_bytes)}")
        if collected.repacked:
            say(f"repacked what is needed of {collected.repacked} more: the next gc removes them")


@store.command()
@url_argument
@click.argument("name", nargs=-1)
@click.option("--depth", default=0, show_default=True, type=click.IntRange(0), help="How many tensors may have to be decoded before the one that is wanted.")
@profile_option
@threads_option
@json_option
@quiet_option
def rebase(url: str, name: tuple[str, ...], depth: int, profile: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Shorten chains of differences of the models of these NAMEs, or of all, so that they are read faster; the store grows."""
    from weightpack.store import Store

    opened = Store(url, threads=threads, options=pack_options(profile, "auto"))
    with after_interrupt(GOES_ON), Bar("rebasing", quiet) as progress:
        n_tensors = opened.rebase(name, depth=depth, progress=progress)
    if as_json:
        say_json({"tensors": n_tensors})
    elif not quiet:
        say(f"stored {n_tensors} tensor{'s'[: n_tensors != 1]} anew")


@store.command()
@url_argument
@click.argument("name", nargs=-1)
@click.option("--dir", "folder", required=True, type=PATH, help="The folder that gets a folder for each model.")
@threads_option
@json_option
@quiet_option
def export(url: str, name: tuple[str, ...], folder: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Restore the models of these NAMEs, or all, each into the folder of its name in DIR. Those that are there are left as they are."""
    from weightpack.store import Store

    with after_interrupt(GOES_ON), Bar("restoring", quiet) as progress:
        targets = Store(url, threads=threads).export(folder, name, progress=progress)
    if as_json:
        say_json([str(target) for target in targets])
    elif not quiet:
        say(f"{len(targets)} model{'s'[: len(targets) != 1]} in {folder}")


@store.command()
@url_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on. Everybody who reaches it can read every model.")
@click.option("--port", default=8500, show_default=True, type=click.IntRange(0, 65535), help="The port; 0 for one that is free.")
@quiet_option
def serve(url: str, host: str, port: int, quiet: bool) -> None:
    """Answer as a Hub from which models can be read, until ctrl-C: with HF_ENDPOINT set to its address, `from_pretrained` and every client loads NAME."""
    from weightpack.store import Store

    with Store(url).serve(host, port, report=complain) as server:
        address = f"[{host}]" if ":" in host else host
        if not quiet:
            say(f"HF_ENDPOINT=http://{address}:{server.server_address[1]}")
            finish()
        with suppress(KeyboardInterrupt):
            server.serve_forever()
