# SPDX-License-Identifier: Apache-2.0
"""Verbs on mounts: mount, umount."""

from __future__ import annotations

import datetime
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpack._humane import human_bytes
from weightpack.cli.options import PATH, base_to_unpack_option, quiet_option, threads_option
from weightpack.cli.output import ReaderLeft, complain, say

if TYPE_CHECKING:
    from weightpack.integrations.mount import MountedFiles


@click.command()
@click.argument("packed", nargs=-1, required=True, type=PATH)
@click.argument("folder", metavar="DIR", type=PATH)
@base_to_unpack_option
@click.option("--cache", "cache_megabytes", default=256, show_default=True, type=click.IntRange(min=1), help="Megabytes of decoded weights to keep in memory.")
@click.option("--daemon", is_flag=True, help="Go on in the background, and return when DIR is ready.")
@click.option("--log", type=PATH, help="With --daemon: the file to which lines about damage are added, which go to the terminal otherwise.")
@click.option("--allow-other", is_flag=True, help="Let other users in as well. One who is not root needs `user_allow_other` in /etc/fuse.conf for it.")
@threads_option
@quiet_option
def mount(
    packed: tuple[str, ...], folder: str, base: str | None, cache_megabytes: int, daemon: bool, log: str | None, allow_other: bool, threads: int | None,
    quiet: bool,
) -> None:  # fmt: skip
    """Show the original files of each PACKED file or directory in DIR, read-only, decoded as they are read: any program opens them, and maps them.

    One directory's files are in DIR itself; of several PACKED each has its own name there. A directory without a manifest, such as a collection of models,
    shows its packed files by the names of their sources, and all others as they are. DIR is made if it is not there.

    It runs until it is ended with ctrl-C, or until `weightpack umount DIR` (or fusermount3 -u DIR): then DIR is empty again. What is added to PACKED meanwhile
    does not show. Bytes that are damaged can't be read (EIO), and a line says which file, tensor and chunk they are.

    Needs FUSE: `pip install weightpack[mount]`, and libfuse (Debian: `apt install fuse3`).
    """
    from weightpack import api
    from weightpack.integrations import mount as fuse
    from weightpack.integrations.source_tree import source_tree
    from weightpack.io.parallel import thread_count

    fuse.fuse_library()  # before what takes longer
    tree = source_tree(packed)
    log_path = None if log is None else Path(log).absolute()

    def report(line: str) -> None:
        if log_path is not None:
            with open(log_path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{datetime.datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")
        else:
            with suppress(ReaderLeft, OSError):  # nobody listens: what reads is told by EIO
                complain(line)

    def ready(files: MountedFiles) -> None:
        if not (quiet or daemon):
            with suppress(ReaderLeft, OSError):
                n_files = f"{len(tree.files)} file{'s'[: len(tree.files) != 1]}"
                say(f"{folder} shows {n_files}, {human_bytes(files.n_bytes)}; ctrl-C or `weightpack umount {folder}` ends it")
                sys.stdout.flush()

    for note in () if quiet else tree.left_out:
        complain(f"not shown: {note.name}: {note.reason}")
    found = api.found_base(base)
    fuse.mount(
        tree, Path(folder), report=report, ready=ready, base=None if found is None else found.paths, threads=thread_count(threads),
        cache_bytes=cache_megabytes * 1_000_000, daemon=daemon, allow_other=allow_other,
    )  # fmt: skip


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
def umount(folder: str) -> None:
    """Unmount DIR, which `weightpack mount` has mounted; the same as fusermount3 -u DIR."""
    from weightpack.integrations.mount import unmount

    unmount(Path(folder))
