# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files: the source's and the packed file's own (FORMAT section 4)."""

from __future__ import annotations

import base64
import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from weightpack.errors import CorruptionError, LimitError, OptionError, TruncatedError, UnsupportedError
from weightpack.format.constants import MAX_HEADER_BYTES
from weightpack.format.layouts import DTYPE_BITS, tensor_bytes

# numpy and torch count dimensions in a byte or less; more is nobody's tensor.
MAX_DIMS = 64
METADATA_KEY = "__metadata__"  # of a header, where others have a tensor's name

_ASTRAL = re.compile(rb"[\xf0-\xff]")  # the first byte of four, of a character beyond 0xFFFF
_ASTRAL_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F])|.)", re.DOTALL)


class Entry(NamedTuple):
    """A tensor's entry; `begin` and `end` count from the start of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """`data_begin` counts from the start of the file; `metadata` is None if the header has none."""

    entries: dict[str, Entry]
    metadata: dict[str, str] | None
    data_begin: int


def header_bytes(first_8: bytes, file_bytes: int) -> int:
    """Return the length of the JSON header from a file's first bytes, checked against the file's size."""
    if len(first_8) < 8:
        raise TruncatedError(f"a safetensors file has at least 8 bytes, this one {len(first_8)}")
    n = int.from_bytes(first_8[:8], "little")
    if n > MAX_HEADER_BYTES:
        raise CorruptionError(f"the header claims {n} bytes, more than the {MAX_HEADER_BYTES} of a safetensors file: this is not one")
    if n > file_bytes - 8:
        raise TruncatedError(f"the header claims {n} bytes, the file has {file_bytes}")
    return n


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CorruptionError("the header has a key twice")
    return result


def _no_constant(text: str) -> NoReturn:
    raise CorruptionError(f"not JSON: {text}")


def _text_memory(text: bytes) -> int:
    """Estimate what JSON's text takes while it is parsed, beside its objects: decoded, and in strings. Strings with escapes are built from pieces.

    A character of Python's strings has as many bytes as the widest of the string needs: one that is astral makes each take four, and a pair of escapes can
    name it.
    """
    escaped = 2 if b"\\" in text else 1
    if text.isascii():
        return len(text) * (1 + escaped * (4 if _ASTRAL_ESCAPE.search(text) else 2 if b"\\u" in text else 1))
    return len(text) * max(9, 4 * (1 + escaped) if _ASTRAL.search(text) or _ASTRAL_ESCAPE.search(text) else 0)


def _lone_surrogate(text: bytes) -> bool:
    """Does JSON's text name half a surrogate pair? It would be a str to Python, but have no UTF-8."""
    return any(match[1] for match in _ESCAPE.finditer(text)) if _ASTRAL_ESCAPE.search(text) else False


def parse_json(text: bytes, max_memory: int = 1 << 30) -> Any:
    """Parse JSON from an untrusted file: duplicate keys, NaN, bad UTF-8 and deep nesting are corruption (FORMAT 1.9).

    What its objects may take in memory is estimated, generously, before it is parsed: a few bytes of JSON can make a hundred of Python's.

    Raises
    ------
    CorruptionError
    LimitError
        It would take more than `max_memory`.
    """
    memory = _text_memory(text)
    memory += sum(n_bytes * text.count(sign) for sign, n_bytes in ((b"{", 72), (b"[", 64), (b",", 48), (b":", 120)))
    if memory > max_memory:
        raise LimitError(f"the header may take {memory} bytes of memory, the limit is {max_memory}: raise Limits.max_json_memory if you trust the file")
    try:
        root = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except CorruptionError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"not JSON: {error}") from None
    if _lone_surrogate(text):
        raise CorruptionError("not JSON: half a surrogate pair")
    return root


def from_base64(text: object, what: str) -> bytes:
    """Return the bytes that a text of JSON is base64 of; CorruptionError, which names `what` it is, if it is no such text."""
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except ValueError:
        pass
    raise CorruptionError(f"{what} is not base64")


def is_count(value: object) -> bool:
    """Is it an integer that a file may claim as a size?"""
    return type(value) is int and 0 <= value < 1 << 63


def parse_header(text: bytes, data_bytes: int, *, unknown_dtypes: bool = False, max_memory: int = 1 << 30) -> Header:
    """Parse a JSON header and check every entry; `data_bytes` is the length of what follows the header.

    Entries may leave holes; callers that forbid them use `check_tiles`. A source's header may have `unknown_dtypes` (FORMAT 7.6).

    Raises
    ------
    CorruptionError, TruncatedError, UnsupportedError, LimitError
    """
    with _no_search_for_garbage():
        root = parse_json(text, max_memory)
        if not isinstance(root, dict):
            raise CorruptionError("the header is not a JSON object")
        metadata = root.pop(METADATA_KEY, None)
        if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
            raise CorruptionError("__metadata__ does not map strings to strings")
        entries = {name: _parse_entry(name, value, data_bytes, unknown_dtypes) for name, value in root.items()}
    return Header(entries, metadata, 8 + len(text))


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Keep Python from looking through all objects for circles again and again while millions are made, none of them in one: it takes most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse_entry(name: str, value: object, data_bytes: int, unknown_dtypes: bool) -> Entry:
    if not isinstance(value, dict):
        raise CorruptionError("the entry is not an object", tensor=name)
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str):
        raise CorruptionError("the entry has no dtype", tensor=name)
    if dtype not in DTYPE_BITS and not unknown_dtypes:
        raise UnsupportedError(f"unknown dtype {dtype!r}", tensor=name)
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMS and all(map(is_count, shape))):
        raise CorruptionError("the entry's shape is not a list of sizes", tensor=name)
    if not (isinstance(offsets, list) and len(offsets) == 2 and is_count(offsets[0]) and is_count(offsets[1])):
        raise CorruptionError("the entry's data_offsets are not two sizes", tensor=name)
    begin, end = offsets
    if begin > end:
        raise CorruptionError(f"the entry ends ({end}) before it begins ({begin})", tensor=name)
    if end > data_bytes:
        raise TruncatedError(f"the entry ends at byte {end} of the data section, which has {data_bytes}", tensor=name)
    if dtype in DTYPE_BITS and tensor_bytes(dtype, tuple(shape)) != end - begin:
        raise CorruptionError(f"{end - begin} bytes do not hold {dtype} of shape {shape}", tensor=name)
    return Entry(name, dtype, tuple(shape), begin, end)


def check_tiles(header: Header, data_bytes: int) -> None:
    """Check that the entries cover the data section exactly, as safetensors demands."""
    position = 0
    for entry in sorted(header.entries.values(), key=lambda e: (e.begin, e.end)):
        if entry.begin != position:
            raise CorruptionError(f"the entry begins at byte {entry.begin} of the data section, expected {position}", tensor=entry.name)
        position = entry.end
    if position != data_bytes:
        raise CorruptionError(f"the tensors end at byte {position} of the data section, which has {data_bytes}")


def build_header(metadata: Mapping[str, str] | None, entries: list[Entry]) -> bytes:
    """Serialise a header: metadata first, then entries by name, no spaces. The same input gives the same bytes.

    Raises
    ------
    OptionError
        A tensor has the name of the metadata.
    """
    root: dict[str, object] = {} if metadata is None else {METADATA_KEY: dict(sorted(metadata.items()))}
    for entry in sorted(entries, key=lambda e: e.name):
        if entry.name == METADATA_KEY:
            raise OptionError("in a safetensors file this is the name of the metadata: give the tensor another", tensor=entry.name)
        root[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
    return json.dumps(root, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
