#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pack and upload a list of models, and report what it saved. What is done is not done again; one that fails does not stop the others.

    python scripts/upload_models.py models.txt me --report report.md

Each line of models.txt is a model directory or a repo id, and optionally the target's name behind it; # begins a comment. Without a name the target is
NAME-wp under the owner given. `models.txt.state.json` remembers what is done; delete a line there to push that model again. Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import weightpack
from weightpack._humane import human_bytes, percent


def wanted(path: Path, owner: str) -> list[tuple[str, str]]:
    """Return (source, target repo) of each line."""
    models = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split("#", 1)[0].split()
        if words:
            name = words[1] if len(words) > 1 else f"{Path(words[0]).name}-wp"
            models.append((words[0], name if "/" in name else f"{owner}/{name}"))
    return models


def write(path: Path, text: str) -> None:
    """Replace a file, whole or not at all."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def table(models: list[tuple[str, str]], done: dict[str, dict], failed: dict[str, str]) -> str:
    """Return the report in Markdown."""
    lines = ["| model | packed repo | original | packed | of original |", "|---|---|---|---|---|"]
    before = after = 0
    for source, repo in models:
        if repo in failed:
            lines.append(f"| {source} | {repo} | failed: {failed[repo]} | | |")
        elif repo in done:
            a, b = done[repo]["source_bytes"], done[repo]["packed_bytes"]
            before, after = before + a, after + b
            lines.append(f"| {source} | [{repo}]({done[repo]['url']}) | {human_bytes(a)} | {human_bytes(b)} | {percent(b, a)} |")
    lines.append(f"| all | {len(done)} of {len(models)} | {human_bytes(before)} | {human_bytes(after)} | {percent(after, before)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="the list")
    parser.add_argument("owner", help="user or organisation of the targets")
    parser.add_argument("--report", type=Path, help="write the table here too; a name that ends in .json gets JSON")
    parser.add_argument("--private", action="store_true")
    arguments = parser.parse_args()
    models = wanted(arguments.models, arguments.owner)
    state = arguments.models.with_name(f"{arguments.models.name}.state.json")
    known = json.loads(state.read_text()) if state.exists() else {}
    done = {repo: known[repo] for _, repo in models if repo in known}
    failed: dict[str, str] = {}
    for source, repo in models:
        if repo in done:
            print(f"{repo}: done before")
            continue
        try:
            result = weightpack.push(source, repo, private=arguments.private or None)
        except (weightpack.WeightpackError, OSError) as error:
            failed[repo] = str(error)
            print(f"{repo}: failed: {error}", file=sys.stderr)
            continue
        done[repo] = known[repo] = asdict(result)
        write(state, json.dumps(known, indent=1) + "\n")
        print(f"{repo}: {human_bytes(result.source_bytes)} -> {human_bytes(result.packed_bytes)}")
    report = table(models, done, failed)
    print(f"\n{report}", end="")
    if arguments.report:
        as_json = arguments.report.suffix == ".json"
        write(arguments.report, json.dumps({"done": done, "failed": failed}, indent=1) + "\n" if as_json else report)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
