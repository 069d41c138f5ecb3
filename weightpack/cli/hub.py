# SPDX-License-Identifier: Apache-2.0
"""Verbs on a Hub: push, pull."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from weightpack._humane import human_bytes, percent
from weightpack.cli.failures import GOES_ON, after_interrupt
from weightpack.cli.options import (
    PATH,
    codec_option,
    force_option,
    hf_flag_option,
    json_option,
    pack_options,
    profile_option,
    quiet_option,
    revision_option,
    threads_option,
    token_option,
)
from weightpack.cli.output import say, say_json
from weightpack.cli.progress import Bar


def _quiet_hub(quiet: bool) -> None:
    """The Hub client draws bars of its own."""
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the client is imported


@click.command()
@click.argument("src", type=PATH)
@click.argument("repo")
@click.option("--base-model", help="The original's repo id, for the model card. [default: SRC if that is a repo]")
@click.option("--private/--public", default=None, help="Of a repo that is made. [default: as the Hub has it]")
@click.option("--revision", help="Branch to commit to; made if there is none.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--commit-message", help="Default: the sizes.")
@token_option
@profile_option
@codec_option
@threads_option
@click.option("--no-verify", is_flag=True, help="Do not decode and compare what was packed before it is uploaded.")
@hf_flag_option
@json_option
@quiet_option
def push(
    src: str, repo: str, base_model: str | None, private: bool | None, revision: str | None, create_pr: bool, commit_message: str | None, token: str | None,
    profile: str, codec: str, threads: int | None, no_verify: bool, hf_flag: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Pack SRC, a model directory (or a Hub repo), and push it to REPO. An interrupted push goes on where it stopped when it is run again."""
    from weightpack import hub

    _quiet_hub(quiet or as_json)
    with after_interrupt(f"what was uploaded stays there; {GOES_ON}"), Bar("packing", quiet) as progress:
        result = hub.push(
            src, repo, options=pack_options(profile, codec), threads=threads, verify=not no_verify, base_model=base_model, hf_flag=hf_flag, private=private,
            revision=revision, create_pr=create_pr, commit_message=commit_message, token=token, progress=progress,
        )  # fmt: skip
    if as_json:
        say_json(asdict(result))
    elif not quiet:
        saved, share = human_bytes(result.source_bytes - result.packed_bytes), percent(result.packed_bytes, result.source_bytes)
        say(f"{result.url}: {human_bytes(result.source_bytes)} -> {human_bytes(result.packed_bytes)} ({share} of original), {saved} saved")


@click.command()
@click.argument("repo")
@click.argument("target", required=False, type=PATH)
@click.option("--unpack", is_flag=True, help="Restore the original files.")
@click.option("--include", multiple=True, help="Only files that match this pattern (repeatable).")
@revision_option
@token_option
@threads_option
@force_option
@quiet_option
def pull(
    repo: str, target: str | None, unpack: bool, include: tuple[str, ...], revision: str | None, token: str | None, threads: int | None, force: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Download REPO into TARGET (default: its name), packed as it is or unpacked."""
    from weightpack import hub

    _quiet_hub(quiet)
    with after_interrupt(GOES_ON), Bar("unpacking", quiet) as progress:
        folder = hub.pull(
            repo, target, unpack=unpack, include=include, revision=revision, token=token, threads=threads, overwrite=force, progress=progress
        )  # fmt: skip
    if not quiet:
        say(f"{folder}")
