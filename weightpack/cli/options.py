# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from weightpack.options import PackOptions

threads_option = click.option("--threads", type=click.IntRange(min=1), help="Threads to use; the result does not depend on it. [default: the CPUs there are]")
force_option = click.option("--force", is_flag=True, help="Replace the target if it exists.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
profile_option = click.option("--profile", default="fast", show_default=True, help="A profile's name, or the path of a .toml file (see `weightpack doctor`).")
codec_option = click.option(
    "--codec", type=click.Choice(["auto", "rans", "huffman", "zstd", "raw"]), default="auto", show_default=True, help="Use this codec alone."
)
in_place_option = click.option("--in-place", is_flag=True, help="Replace SRC itself, once the result was proven; a directory's files one after the other.")
delete_source_option = click.option("--delete-source", is_flag=True, help="Delete SRC once the result was proven.")
hf_flag_option = click.option(
    "--hf-flag", is_flag=True, help="Let config.json say that the model is packed, so that transformers without weightpack names it when it fails."
)
revision_option = click.option("--revision", help="Branch, tag or commit of a Hub repo.")
token_option = click.option("--token", help="Access token for the Hub. [default: the one of `hf auth login`]")
base_to_unpack_option = click.option(
    "--base", help="What PACKED is a difference from: a file, directory or repo. [default: looked for beside it, in WEIGHTPACK_BASES, on the Hub]"
)


def pack_options(profile: str, codec: str) -> PackOptions:
    """Return what --profile and --codec ask for."""
    from weightpack.options import load_profile

    return load_profile(profile, codec=codec)
