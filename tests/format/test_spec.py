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
from weightpack.format.layouts import DTYPE_BITS, LAYOUTS, LayoutId, layout_of
from weightpack.kernels import native, numpy_differences

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "native" / "include" / "weightpack.h").read_text()


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


def plain(text):
    """Return a source's text without comments."""
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)


def enumerators(enum):
    """Return what one of the header's enums says, without the prefix: name -> number."""
    values, following = {}, 0
    for name, number in re.findall(r"WP_(\w+)(?: = (-?\d+))?", enum):
        values[name] = following = int(number) if number else following
        following += 1
    return values


def named_enum(name):
    return enumerators(re.search(rf"typedef enum \{{([^}}]*)\}} {name};", plain(HEADER))[1])


def test_enums_of_the_native_core():
    """Codecs, modes, layouts and statuses have the same numbers in C and in Python; those of the format are checked against the text above."""
    assert named_enum("wp_codec") == {codec.name: codec for codec in constants.Codec} | {"N_CODECS": len(constants.Codec)}
    assert named_enum("wp_mode") == {f"MODE_{mode.name}": mode for mode in constants.Mode}
    assert named_enum("wp_layout_id") == {layout.name: layout for layout in LayoutId} | {"N_LAYOUTS": len(LayoutId) + 1}
    assert named_enum("wp_status") == {status.name: status for status in native.Status}


# What the text says of each number of constants.py: (pattern, what to make of its group).
OF_THE_TEXT = {
    "MAX_HEADER_BYTES": (r"\| header, and source header \| ([\d,]+) bytes", lambda text: int(text.replace(",", ""))),
    "MAX_RECORD_BYTES": (r"\| record \| 16 \* \(2\^(\d+) - 1\) bytes", lambda text: 16 * ((1 << int(text)) - 1)),
    "KEPT_PIECE_BYTES": (r"checked in pieces of ([\d,]+) bytes", lambda text: int(text.replace(",", ""))),
    "ALIGN_BYTES": (r"All records then start at a multiple of (\d+)", int),
    "BLOCK_ELEMS": (r"`chunk_elems = (\d+) \* Chunk_Blocks`", int),
    "LANES": (r"with (\d+) lanes, 16-bit states", int),
    "MAX_STREAMS": (r"fields: 2\.\.(\d+);", int),
    "MAX_CHUNK_BYTES": (r"\| chunk, decoded \| 2\^(\d+) bytes", lambda text: 1 << int(text)),
    "MAX_CHUNK_BLOCKS": (r"\| Chunk_Blocks \| 2 \| 1\.\.(\d+);", int),
    "MAX_TABLES": (r"the count `T` is [12]\.\.(\d+)", int),
    "MAX_CODE_BITS": (r"prefix code with lengths of at most (\d+) bits", int),
    "N_CONTEXTS": (r"for each context `c = 0 \.\. (\d+)`", lambda text: int(text) + 1),
    "MAX_RATE": (r"one a block: 0\.\.(\d+), others corrupt", int),
    "N_CELLS": (r"is `16 \* rate \+ min\(max\(e - Base_Exponent, 0\), (\d+)\)`", lambda text: 16 * constants.MAX_RATE + int(text) + 1),
    "CLASS_BITS": (r"A class `c`, 0\.\.(\d+), and extra bits", lambda text: int(text).bit_length()),
    "N_CLASSES": (r"A class `c`, 0\.\.(\d+), and extra bits", lambda text: int(text) + 1),
    "FIRST_FREQUENT": (r"`c >= (\d+)`: `D = Frequent", int),
    "MAX_FREQUENT": (r"`u8 N_Frequent` \(0\.\.(\d+)\)", int),
    "NO_SCALE": (r"If one of the two is (-\d+),", int),
    "MAX_SCALED_COLS": (r"`Cols` is 1\.\.2\^(\d+)", lambda text: 1 << int(text)),
    "MAX_TILE_SIDE": (r"`u32 Tile_Cols`, each 1\.\.2\^(\d+)", lambda text: 1 << int(text)),
    "MAX_VALUES": (r"`u16 N_Values`, 1\.\.(\d+)", int),
    "VERBATIM_TILE": (r"or `(0x\w+)`: the tile is \*verbatim\*", lambda text: int(text, 16)),
    "MAX_TURNED_BYTES": (r"as many elements as the tensor, in at most 2\^(\d+) bytes", lambda text: 1 << int(text)),
    "MAX_SCALE_BYTES": (r"symbols, at most 2\^(\d+), is `n_rows`", lambda text: 1 << int(text)),
}


def test_numbers():
    text = re.sub(r"\s+", " ", SPEC)
    numbers = {name: value for name, value in vars(constants).items() if type(value) is int}
    assert set(numbers) == set(OF_THE_TEXT)
    for name, (pattern, meaning) in OF_THE_TEXT.items():
        stated = re.findall(pattern, text)
        assert stated and {meaning(each) for each in stated} == {numbers[name]}, name


def test_numbers_of_the_native_core():
    numbers = enumerators(re.search(r"^enum \{(.*?)\};", plain(HEADER), re.S | re.M)[1])
    assert numbers.pop("BLOCK") == constants.BLOCK_ELEMS == constants.LANES
    assert numbers.pop("MAX_PLANES") == max(len(layout.plane_bits) for layout in LAYOUTS.values())
    assert numbers == {name: getattr(constants, name, None) for name in numbers}
    assert {1 << int(bits) for bits in re.findall(r"#define WP_MAX_CHUNK_BYTES \(1u << (\d+)\)", HEADER)} == {constants.MAX_CHUNK_BYTES}
    assert re.findall(r"\| stream \| 2\^(\d+) - 1 bytes", SPEC) == re.findall(r"#define WP_MAX_STREAM_BYTES \(\(1u << (\d+)\) - 1\)", HEADER)


def test_no_number_is_dead():
    """Every constant of Python is used in another module, every name of the native core's headers somewhere but where it is defined."""
    modules = [path.read_text() for path in (ROOT / "weightpack").rglob("*.py") if path.name not in ("constants.py", "reference.py")]
    for name in vars(constants):
        assert name.startswith("__") or any(re.search(rf"\b{name}\b", module) for module in modules), name
    sources = [plain(path.read_text()) for path in (ROOT / "native").rglob("*.[ch]")]
    names = {name for source in sources for name in re.findall(r"\bWP_[A-Z]\w+", source)}
    assert len(names) > 60
    for name in names:
        assert sum(len(re.findall(rf"\b{name}\b", source)) for source in sources) > 1, name


def test_files_that_comments_name_exist():
    sources = [*(ROOT / "native").rglob("*.[ch]"), *(ROOT / "weightpack").rglob("*.py"), ROOT / "weightpack" / "_core.pyi"]
    there, named = {path.name for path in sources}, 0
    for path in sources:
        for name in re.findall(r"\b(\w+\.[ch])\b", re.sub("#include <.*>", "", path.read_text())):
            named += 1
            assert name in there, (path, name)
    assert named > 80


def numbers_of(text):
    """Return "1, 2, 9 to 11 and 13" as a set."""
    return {n for first, last in re.findall(r"(\d+)(?: to (\d+))?", text) for n in range(int(first), int(last or first) + 1)}


def test_what_a_layout_can_do():
    text = re.sub(r"\s+", " ", SPEC)
    differing = numbers_of(re.search(r"in records of the layouts ([\d, to]+); in layouts", text)[1])
    assert {layout.id for layout in LAYOUTS.values() if layout.has_differences} == differing
    scaled = numbers_of(re.search(r"\*Scales\*, in layouts ([\d and]+ \(and [\d and]+\)) only", text)[1])
    assert {layout.id for layout in LAYOUTS.values() if layout.has_scales} == scaled
    fields = numbers_of(re.search(r"\*Fields\*, since 1\.1, in layout (\d+) only", text)[1])
    assert {layout.id for layout in LAYOUTS.values() if layout.has_fields} == fields
    contexts = numbers_of(re.search(r"\(plane 0 of layouts ([\d to]+)\)", text)[1])
    assert {(layout.id, 0) for layout in map(LAYOUTS.get, contexts)} == {(i, p) for i, layout in LAYOUTS.items() for p in range(8) if layout.has_context(p)}
    leads, of = re.search(r"Ids ([\d to]+) \(since 1\.1\) are ids ([\d, and]+) with the mantissa's two leading bits", text).groups()
    assert [layout.lead for layout in LAYOUTS.values() if layout.lead] == sorted(numbers_of(leads))
    assert [i for i, layout in LAYOUTS.items() if layout.lead] == sorted(numbers_of(of))
    floats = numbers_of(re.search(r"In layouts of floats \(([\d, ]+)\) `order", text)[1]) | numbers_of(leads)
    assert {i for i, layout in LAYOUTS.items() if layout.is_float and layout.has_differences} == floats
    low, high = re.search(r"bits (\d)\.\.(\d) in layout 1; 0 in layouts 2 and 3", text).groups()
    exponents = {1: (int(low), int(high)), 2: (0, -1), 3: (0, -1)}
    for i, planes in re.findall(r"^\| (\d+) \| \w+ \| [^|]+ \| \d \| (bits [^|]+) \|", SPEC, re.M):
        bits = [tuple(map(int, each)) for each in re.findall(r"bits (\d+)\.\.(\d+)", planes)]
        assert [last - first + 1 for first, last in bits] == list(LAYOUTS[int(i)].plane_bits)
        exponents[int(i)] = bits[-1]
    for i in differing:
        first, last = exponents[i]
        assert (LAYOUTS[i].exponent_shift, LAYOUTS[i].exponent_bits) == (first, last - first + 1)


def test_table_of_layouts_of_the_native_core():
    rows = re.findall(r"\[WP_(\w+)\] = \{(.*)\},$", (ROOT / "native" / "src" / "layout.c").read_text(), re.M)
    assert [name for name, _ in rows] == [layout.id.name for layout in LAYOUTS.values()]
    for name, row in rows:
        fields, layout = dict(re.findall(r"\.(\w+) = (\{[\d, ]+\}|\d+)", row)), LAYOUTS[LayoutId[name]]
        expected = {
            "elem_bytes": layout.elem_bytes, "n_planes": len(layout.plane_bits), "plane_bits": "{" + ", ".join(map(str, layout.plane_bits)) + "}",
            "raw_bits": layout.raw_bits, "exponent_shift": layout.exponent_shift, "exponent_bits": layout.exponent_bits,
        }  # fmt: skip
        assert fields == {field: str(value) for field, value in expected.items() if value}, name


def test_every_isa_has_every_kernel():
    """Those that this machine can't run, too: what a table leaves out would be a NULL pointer there."""
    sources = ROOT / "native" / "src"
    struct = re.search(r"typedef struct \{((?:(?!typedef).)*)\} wp_kernels;", plain((sources / "kernels.h").read_text()), re.S)[1]
    kernels = re.findall(r"\(\*(\w+)(?:\[\w+\])?\)\(", struct)
    assert len(kernels) == struct.count(";") > 10
    isas = [name.removeprefix("ISA_").lower() for name in named_enum("wp_isa") if name != "N_ISAS"]
    assert re.findall(r'"(\w+)"', re.search(r"names\[WP_N_ISAS\] = \{(.*?)\};", (sources / "dispatch.c").read_text())[1]) == isas
    assert sorted(path.name for path in sources.glob("kernels_*.c")) == sorted(f"kernels_{isa}.c" for isa in isas)
    for isa in isas:
        table = re.search(rf"const wp_kernels wp_kernels_{isa} = \{{(.*?)\n\}};", (sources / f"kernels_{isa}.c").read_text(), re.S)[1]
        assert re.findall(r"^    \.(\w+) = [^{},]+,$", table, re.M) == kernels, isa
    by_layout = re.search(r"#define WP_BY_LAYOUT\(f\)(.*?)\n\n", (sources / "kernels.h").read_text(), re.S)[1]
    assert re.findall(r"\[WP_(\w+)\] = f##_(\w+)", by_layout) == [(layout.name, layout.name.lower()) for layout in LayoutId]


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
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in ("error", "restore", "main", "decode_model"):
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
