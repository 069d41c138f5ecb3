# SPDX-License-Identifier: Apache-2.0
# The native core, native/python/module.c. A status is a wp_status of native/include/weightpack.h.
from collections.abc import Buffer, Sequence

def isas() -> list[tuple[str, bool]]: ...
def crc32c(isa: int, data: Buffer, crc: int, /) -> int: ...
def histogram(isa: int, symbols: Buffer, counts: Buffer, /) -> None: ...
def split(isa: int, layout: int, elems: Buffer, symbols: Buffer, widths: Buffer, bits: Buffer, /) -> tuple[int, int]: ...
def bits_bound(layout: int, n_elems: int, /) -> int: ...
def rans_choose(counts: Buffer, /) -> tuple[int, bytes, int]: ...
def rans_encode(isa: int, book: Buffer, symbols: Buffer, scratch: Buffer, out: Buffer, /) -> tuple[int, int]: ...
def rans_scratch(n: int, /) -> int: ...
def huffman_lengths(counts: Buffer, /) -> tuple[int, bytes]: ...
def huffman_encode(lengths: Buffer, symbols: Buffer, out: Buffer, /) -> tuple[int, int]: ...
def decode_streams(
    isa: int, layout: int, mode: int, streams: Sequence[tuple[int, Buffer]], n_elems: int, chunk_number: int, out: Buffer, workspace: Buffer, /
) -> tuple[int, int]: ...
def decode_chunks(
    isa: int,
    layout: int,
    data: Buffer,
    offsets: Buffer,
    crcs: Buffer,
    next: int,
    chunk_elems: int,
    n_elems: int,
    first_number: int,
    out: Buffer,
    workspace: Buffer,
    /,
) -> tuple[int, int]: ...
def multiply_chunks(
    isa: int,
    layout: int,
    data: Buffer,
    offsets: Buffer,
    crcs: Buffer,
    next: int,
    chunk_elems: int,
    n_elems: int,
    first_number: int,
    type: int,
    x: Buffer,
    n_cols: int,
    sums: Buffer,
    workspace: Buffer,
    /,
) -> tuple[int, int]: ...
def multiply(isa: int, type: int, elems: Buffer, elem: int, x: Buffer, n_cols: int, sums: Buffer, /) -> int: ...
def encode_chunks(
    isa: int,
    layout: int,
    elems: Buffer,
    chunk_elems: int,
    first_number: int,
    most_tables: int,
    huffman: bool,
    repeat_share: int,
    workspace: Buffer,
    out: Buffer,
    sizes: Buffer,
    crcs: Buffer,
    /,
) -> tuple[int, int, tuple[int, list[tuple[int, int, int, int, int, int, int, int]]] | None]: ...
def encode_workspace_bytes(layout: int, n_elems: int, /) -> int: ...
def workspace_bytes() -> int: ...
def decode_difference(
    isa: int,
    layout: int,
    shift: int,
    frequent: Buffer,
    streams: Sequence[tuple[int, Buffer]],
    base: Buffer,
    n_elems: int,
    chunk_number: int,
    out: Buffer,
    workspace: Buffer,
    /,
) -> tuple[int, int]: ...
def difference_planes(isa: int, layout: int, shift: int, elems: Buffer, base: Buffer, exponents: Buffer, scales: Buffer, /) -> int: ...
def modular_differences(layout: int, shift: int, elems: Buffer, base: Buffer, differences: Buffer, /) -> int: ...
def difference_code(
    isa: int,
    layout: int,
    shift: int,
    elems: Buffer,
    base: Buffer,
    rates: Buffer,
    base_exponent: int,
    frequent: Buffer,
    cells: Buffer,
    classes: Buffer,
    counts: Buffer,
    extras: Buffer,
    /,
) -> tuple[int, int, int]: ...
def conditional_books(counts: Buffer, logs: Buffer, book_of: Buffer, /) -> tuple[int, bytes, int]: ...
def conditional_encode(
    isa: int, books: Buffer, base_exponent: int, n_rates: int, book_of: Buffer, cells: Buffer, symbols: Buffer, scratch: Buffer, out: Buffer, /
) -> tuple[int, int]: ...
def scaled_base(layout: int, scales: Buffer, cols: int, phase: int, signs: Buffer, n_elems: int, base: Buffer, /) -> int: ...
def scales_gain(upper: Buffer, n_cols: int, logs: Buffer, /) -> int: ...
def quantised_decode(
    isa: int, layout: int, values: Buffer, scales: Buffer, cols: int, tile_rows: int, tile_cols: int, codes: Buffer, verbatim: Buffer, chunk_number: int,
    out: Buffer, /,
) -> tuple[int, int]: ...  # fmt: skip
def quantised_scratch(n_elems: int, /) -> int: ...
def quantised_fit(
    layout: int, elems: Buffer, cols: int, tile_rows: int, tile_cols: int, values: Buffer, anchors: Buffer, from_least: bool,
    scratch: Buffer, scales: Buffer, codes: Buffer, /,
) -> tuple[int, int]: ...  # fmt: skip
def equal(one: Buffer, other: Buffer, /) -> bool: ...
def sample_repeats(data: Buffer, /) -> int: ...
