# SPDX-License-Identifier: Apache-2.0
"""Options and arguments that several verbs have, and what a shell offers to complete them with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from weightpack.options import PackOptions


def _complete_profile(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the names of profiles; where none fits, files."""
    from weightpack.options import profile_descriptions

    named = [CompletionItem(name, help=text) for name, text in profile_descriptions().items() if name.startswith(incomplete)]
    return named or [CompletionItem(incomplete, type="file")]


class _ProfileOption(click.Option):
    """Its help lists the profiles: read only when help is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from weightpack.options import profile_descriptions

        self.help = "A profile, or the path of a .toml file. " + " ".join(f"{name}: {text}" for name, text in profile_descriptions().items())
        return super().get_help_record(ctx)


class _Path(click.Path):
    """A path, or what else names something; but not nothing, which would be the folder that one is in."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> str | bytes | os.PathLike[str]:
        if not os.fspath(value):
            self.fail("it is empty: a variable that is not set?", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(allow_dash=True)  # of any kind, existing or not: repos and URLs are names, too

threads_option = click.option("--threads", type=click.IntRange(min=1), help="Threads to use; the result does not depend on it. [default: the CPUs there are]")
force_option = click.option("--force", "-f", is_flag=True, help="Replace the target if it exists.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors, and JSON where it was asked for.")
verbose_option = click.option("--verbose", "-v", is_flag=True, help="Say what was done with each file.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
profile_option = click.option("--profile", cls=_ProfileOption, shell_complete=_complete_profile, default="fast", show_default=True)
codec_option = click.option(
    "--codec", type=click.Choice(["auto", "rans", "huffman", "zstd", "raw"]), default="auto", show_default=True, help="Use this codec alone."
)
in_place_option = click.option("--in-place", is_flag=True, help="Replace SRC itself, once the result was proven; a directory's files one after the other.")
delete_source_option = click.option("--delete-source", is_flag=True, help="Delete SRC once the result was proven.")
keep_option = click.option("--keep", "-k", is_flag=True, help="Keep SRC: the default, accepted for the habit.")
stdout_option = click.option("--stdout", "-c", "to_stdout", is_flag=True, help="Write to standard output; the same as -o -.")
hf_flag_option = click.option(
    "--hf-flag", is_flag=True, help="Let config.json say that the model is packed, so that transformers without weightpack names it when it fails."
)
revision_option = click.option("--revision", help="Branch, tag or commit of a Hub repo.")
token_option = click.option("--token", help="Access token for the Hub. [default: the one of `hf auth login`]")
base_to_unpack_option = click.option(
    "--base", type=PATH, help="What PACKED is a difference from: a file, directory or repo. [default: looked for beside it, in WEIGHTPACK_BASES, on the Hub]"
)


def pack_options(profile: str, codec: str) -> PackOptions:
    """Return what --profile and --codec ask for."""
    from weightpack.options import load_profile

    return load_profile(profile, codec=codec)
