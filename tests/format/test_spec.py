# SPDX-License-Identifier: Apache-2.0
"""docs/FORMAT.md, the code's constants and the reference decoder say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import samples
from specimen import SPEC, sections, specimen

import weightpack
from weightpack import reference
from weightpack.format import constants
from weightpack.format.layouts import DTYPE_BITS, LAYOUTS, layout_of
from weightpack.kernels import numpy_differences

ROOT = Path(__file__).resolve().parents[2]


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


def test_modes():
    listed = re.search(r"^\| Mode \| 1 \| (.*?); others", SPEC, re.M)[1]
    assert {int(i): name for i, name in re.findall(r"(\d) \*(\w+)\*", listed)} == {int(mode): mode.name.lower() for mode in constants.Mode}


def test_octave():
    """The sixteenths of an octave (14.5) in the text, in numpy, in the reference decoder and in C are those that its formula gives."""
    numbers = [int(number) for number in re.search(r"`M = ([\d, ]+)`", SPEC)[1].split(", ")]
    assert numbers == numpy_differences._MANTISSAS.tolist() == reference.SIXTEENTHS.tolist()
    assert all(((2 * number - 1 + (1 << 24)) ** 16 <= 1 << 384 + k <= (2 * number + 1 + (1 << 24)) ** 16) or number == 0 for k, number in enumerate(numbers))
    source = (ROOT / "native" / "src" / "difference.c").read_text()
    assert re.sub(r"\s+", " ", ", ".join(map(str, numbers))) in re.sub(r"\s+", " ", source)


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


NUMBERS = r"\d+(?:\.\d+)*(?:(?:, | and | to )\d+(?:\.\d+)*)*"


def test_sections_that_code_names_exist():
    known, named = sections(), 0
    assert {"1.9", "5.5", "8.3", "8.3.4", "13"} <= known
    for path in [*(ROOT / "weightpack").rglob("*.py"), *(ROOT / "native").rglob("*.[ch]"), *(ROOT / "tests").rglob("*.py")]:
        for numbers in re.findall(rf"(?:FORMAT|[Ss]ections?)(?: sections?)? ({NUMBERS})", path.read_text()):
            for number in re.findall(r"\d+(?:\.\d+)*", numbers):
                named += 1
                assert number in known, (path, number)
    assert named > 40


def test_reference_decoder_says_for_each_step_where_it_stands():
    tree, known, cited = ast.parse(Path(reference.__file__).read_text()), sections(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in ("error", "restore", "main"):
            number = re.match(r"(\d+(?:\.\d+)*)[. ]", ast.get_docstring(node) or "")
            assert number, f"{node.name} does not say what it is written from"
            cited.add(number[1])
    cited |= set(re.findall(r"# (\d\.\d)$", ast.unparse(tree), re.M)) | set(re.findall(r"  # (\d+(?:\.\d+)+)", Path(reference.__file__).read_text()))
    assert cited <= known, cited - known
    assert {number.split(".")[0] for number in cited} >= {"1", "4", "5", "6", "7", "8", "9", "14", "15"}


def test_dump_in_the_document_is_the_golden_file(tmp_path):
    data, lines = specimen()
    assert data == (ROOT / "tests" / "golden" / "1.0" / "specimen.safetensors").read_bytes()
    at = 0
    for offset, part, section in lines:
        assert offset == at
        assert section is None or section in sections()
        at += len(part)
    source = samples.specimen_file()
    assert reference.decode_file(data) == source
    (tmp_path / "dumped.safetensors").write_bytes(data)
    weightpack.unpack(tmp_path / "dumped.safetensors", tmp_path / "source.safetensors")
    assert (tmp_path / "source.safetensors").read_bytes() == source


def test_what_the_dump_says_of_the_header_is_the_header():
    """The notes beside the JSON are its text; those beside records name the offsets of their chunks."""
    dump = re.search(r"```hexdump\n(.*?)```", SPEC, re.S)[1]
    data, _ = specimen()
    end = 8 + int.from_bytes(data[:8], "little")
    notes = "".join(line[61:] for line in dump.splitlines()[1:] if line and int(line[:4], 16) < end)
    assert notes.replace("·", " ") == data[8:end].decode()
    starts = re.findall(r"chunk 0 starts at ([0-9a-f]{4})\n(?:.*\n)\1  ", dump)
    assert len(starts) == 3
