# SPDX-License-Identifier: Apache-2.0
"""docs/FORMAT.md as tests need it: its sections, and the specimen, a packed file that it dumps whole in section 13."""

from __future__ import annotations

import re
from pathlib import Path

import samples

SPEC = (Path(__file__).resolve().parents[2] / "docs" / "FORMAT.md").read_text()
DUMP = SPEC[SPEC.index("```hexdump") :]


def sections():
    """Return every number that the text gives: 8, 8.3, and the items of lists, 5.5 and 8.3.2."""
    found, heading = set(), ""
    for line in SPEC.splitlines():
        if match := re.match(r"#+ (\d+(?:\.\d+)?) ", line):
            heading = match[1]
            found.add(heading)
        elif heading and (match := re.match(r"(\d+)\. ", line)):
            found.add(f"{heading}.{match[1]}")
    return found


def specimen():
    """Return the bytes that the document dumps, and its lines as (offset, bytes, section)."""
    dump = re.search(r"```hexdump\n(.*?)```", SPEC, re.S)[1]
    lines = [re.fullmatch(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+) *(?:  (\d+\.\d+|\d+)?  .*)?", line) for line in dump.splitlines() if line]
    return b"".join(bytes.fromhex(line[2]) for line in lines), [(int(line[1], 16), bytes.fromhex(line[2]), line[3]) for line in lines]


def offset_of(tensor, note):
    """Return where the dump has a field, by the begin of its note, inside a tensor's record."""
    block = DUMP[DUMP.index(f" {tensor}: Layout") - 61 :] if tensor else DUMP
    line = next(line for line in block.splitlines() if line[61:].removeprefix(f"{tensor}: ").startswith(note))
    return int(line[:4], 16)


SPECIMEN, _ = specimen()
SOURCE = samples.specimen_file()
