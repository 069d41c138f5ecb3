# SPDX-License-Identifier: Apache-2.0
"""docs/FORMAT.md, the code's constants and the reference decoder say the same."""

from __future__ import annotations

import re
from pathlib import Path

from weightpack import reference
from weightpack.dtypes import DTYPE_BITS, LAYOUTS, layout_of
from weightpack.format import constants

ROOT = Path(__file__).resolve().parents[1]
SPEC = (ROOT / "docs" / "FORMAT.md").read_text()


def test_codec_ids():
    rows = re.findall(r"^\| (\d) \| (\w+) \| 8\.\d \|$", SPEC, re.M)
    assert {int(i): name for i, name in rows} == {int(codec): name for codec, name in constants.CODEC_NAMES.items()}


def test_layouts():
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+?) \| (\d) \| (.+?) \| (none|(\d+) bits.*?) \|$", SPEC, re.M)
    assert len(rows) == len(LAYOUTS)
    for i, name, dtypes, elem_bytes, _, raw, raw_bits in rows:
        layout = LAYOUTS[int(i)]
        assert (layout.id.name, layout.elem_bytes, layout.raw_bits) == (name, int(elem_bytes), int(raw_bits or 0)), raw
        for dtype in re.findall(r"[A-Z][A-Z0-9_]+", dtypes):
            if dtype in DTYPE_BITS:
                assert layout_of(dtype) is layout
    streams = [int(n) for n in re.search(r"`N_Streams` is ([\d, ]+?)\s+for ids", SPEC.replace("\n", " "))[1].split(", ")]
    assert streams == [layout.n_streams for layout in LAYOUTS.values()]


def test_dtype_bits():
    section = SPEC[SPEC.index("6. Bits of an element by dtype") :]
    listed = {}
    for part in section[: section.index(". A tensor")].split(":", 1)[1].split(";"):
        *names, bits = re.findall(r"[A-Z]\w+|\d+$", part.strip())
        listed |= dict.fromkeys(names, int(bits))
    assert listed == DTYPE_BITS == reference.DTYPE_BITS


def test_version():
    assert f"version {constants.VERSION[0]}.{constants.VERSION[1]}" in SPEC.splitlines()[0]
    assert re.search(rf"^\| {constants.VERSION[0]}\.{constants.VERSION[1]} \| weightpack", SPEC, re.M)


def test_sections_that_code_names_exist():
    sections = set(re.findall(r"^#+ (\d+(?:\.\d+)?) ", SPEC, re.M))
    for path in [*(ROOT / "weightpack").rglob("*.py"), *(ROOT / "native").rglob("*.[ch]")]:
        for number in re.findall(r"FORMAT (?:section )?(\d+)(?:\.\d+)?", path.read_text()):
            assert number in sections, (path, number)
