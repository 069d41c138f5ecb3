# SPDX-License-Identifier: Apache-2.0
"""Damaged chunks: each backend gives the same answer, our own error or the right bytes, in bounded memory.

Section numbers are those of docs/FORMAT.md.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import samples
from backends import (
    BACKENDS,
    CONSTANT,
    CONTEXT,
    FASTEST,
    FIRST,
    HUFFMAN,
    NAMES,
    RANS,
    RAW,
    SPLIT,
    TABLES,
    WHOLE,
    ZSTD,
    chunk_by_kernels,
    chunk_crc,
    encode_plane,
    make_chunk,
    split_all,
    split_chunk,
    streams_of,
    tables_by_hand,
)
from elements import elements
from hypothesis import given, settings
from hypothesis import strategies as st

from weightpack.errors import ChecksumError, CorruptionError, FormatError, TruncatedError, UnsupportedError
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.kernels import RansBook
from weightpack.options import PackOptions


def outcome(backend, layout, chunk, n, crc):
    """Return the class that was raised, or what was decoded; with the bytes, where only the checksum told."""
    out = np.zeros(n * layout.elem_bytes, np.uint8)
    try:
        done = samples.decode_one(backend, layout, chunk, n, 0, crc, out)
    except ChecksumError:
        return ChecksumError, out.tobytes()
    except FormatError as error:  # anything else fails the test
        return type(error), b""
    return (True, out.tobytes()) if done else (False, b"")


def agreed_outcome(layout, chunk, n, crc, what, exact=True):
    outcomes = {name: outcome(backend, layout, chunk, n, crc) for name, backend in BACKENDS.items()}
    if exact:
        assert len(set(outcomes.values())) == 1, (what, {name: kind for name, (kind, _) in outcomes.items()})
    else:  # more than one thing may be wrong, and the native core meets them in another order
        assert len({kind if isinstance(kind, bool) else "refused" for kind, _ in outcomes.values()}) == 1, (what, outcomes)
    return outcomes[NAMES[0]]


DAMAGED = [
    # layout, kind, n, codec, mode
    (LayoutId.BF16, "gaussian", 130, RANS, SPLIT), (LayoutId.BF16, "many_escapes", 140, RANS, SPLIT), (LayoutId.BF16, "gaussian", 75, HUFFMAN, SPLIT),
    (LayoutId.F16, "trailing7_in_some_blocks", 133, HUFFMAN, SPLIT), (LayoutId.F16, "one_escape", 131, RANS, SPLIT),
    (LayoutId.F32, "trailing7", 9, RANS, SPLIT), (LayoutId.F32, "f16_in_some_rows_of_f32", 203, HUFFMAN, SPLIT),
    (LayoutId.F64, "gaussian", 21, RANS, SPLIT), (LayoutId.F64, "gaussian", 19, HUFFMAN, SPLIT), (LayoutId.F64, "constant", 13, RANS, SPLIT),
    (LayoutId.F8_E4M3, "gaussian", 201, RANS, SPLIT), (LayoutId.F8_E5M2, "gaussian", 77, HUFFMAN, SPLIT),
    (LayoutId.BYTES1, "many_escapes", 300, RANS, SPLIT), (LayoutId.BYTES1, "all256", 290, HUFFMAN, SPLIT),
    (LayoutId.BYTES2, "gaussian", 31, HUFFMAN, SPLIT), (LayoutId.BYTES4, "gaussian", 5, RAW, SPLIT), (LayoutId.BYTES8, "constant", 40, RANS, SPLIT),
    (LayoutId.F8_E5M2_LEAD, "gaussian", 450, CONTEXT, SPLIT), (LayoutId.BYTES1, "rows", 400, TABLES, SPLIT), (LayoutId.BF16_LEAD, "constant", 30, RANS, SPLIT),
    (LayoutId.F32, "gaussian", 70, HUFFMAN, WHOLE), (LayoutId.BF16, "one_escape", 66, RANS, WHOLE),
    # as packing makes them, with these codecs
    (LayoutId.BF16, "weights", 700, ("rans",), SPLIT), (LayoutId.F16, "weights", 150, ("huffman",), SPLIT), (LayoutId.F32, "weights", 650, ("rans",), SPLIT),
    (LayoutId.BYTES1, "weights_capped", 900, ("rans",), SPLIT),
]  # fmt: skip


def damaged_id(value):
    names = {RAW: "raw", RANS: "rans", HUFFMAN: "huffman", CONTEXT: "context", TABLES: "tables"}
    layout, kind, n, codec, mode = value
    return f"{layout.name}-{kind}-{n}-{'-'.join(('packed', *codec)) if isinstance(codec, tuple) else names[codec]}{'-whole' if mode else ''}"


@pytest.fixture(params=DAMAGED, ids=damaged_id)
def sound(request):
    """A layout, n, source bytes, chunk and its CRC."""
    layout_id, kind, n, codec, mode = request.param
    layout = LAYOUTS[layout_id]
    data = elements(layout, n, kind)
    if codec == CONTEXT:
        chunk = chunk_by_kernels(layout, data)
    elif codec == TABLES:
        data, chunk = tables_by_hand()
    elif isinstance(codec, tuple):
        chunk = samples.encode_one(data, layout, PackOptions(codecs=codec))
        chunk = make_chunk(chunk[0], streams_of(chunk))  # without padding
    else:
        chunk = make_chunk(WHOLE, [encode_plane(codec, data)]) if mode else split_chunk(layout, split_all(layout, data), codec)
    codecs = {RANS, HUFFMAN} if isinstance(codec, tuple) else {codec}
    assert codec == RAW or kind == "constant" or codecs & set(chunk[4 : 4 + 4 * chunk[1] : 4]), "the sample misses its codec"
    crc = chunk_crc(data, 0)
    assert agreed_outcome(layout, chunk, n, crc, "sound") == (True, data.tobytes())
    return layout, n, data, chunk, crc


def test_every_truncation(sound):
    layout, n, _, chunk, crc = sound
    for size in range(len(chunk)):
        kind, _ = agreed_outcome(layout, chunk[:size], n, crc, f"{size} of {len(chunk)} bytes")
        assert kind is TruncatedError


def test_every_flipped_bit(sound, flipped_bits):
    layout, n, data, chunk, crc = sound
    table_end = 4 + 4 * chunk[1]
    # With wrong contexts, a stream may seem to end early before the plane that gave them is found to be wrong; numpy decodes that one to its end first.
    first_exact = 8 * (len(chunk) if layout.has_context(0) else table_end)
    for bit in flipped_bits(len(chunk)):
        bad = bytearray(chunk)
        bad[bit // 8] ^= 1 << bit % 8
        kind, out = agreed_outcome(layout, bad, n, crc, f"bit {bit % 8} of byte {bit // 8}", exact=bit >= first_exact)
        # A codec turned into zstd is the caller's to expand; nothing was decoded then.
        assert (kind is True and out == data.tobytes()) or (kind is False and bit < 8 * table_end) or not isinstance(kind, bool)


def test_random_damage(sound):
    layout, n, data, chunk, crc = sound
    rng = np.random.default_rng(len(chunk))
    for i in range(200):
        bad = np.frombuffer(chunk, np.uint8).copy()
        at = rng.integers(0, bad.size, 1 + i % 5)
        bad[at] = rng.choice(np.array([0, 1, 127, 128, 255, *rng.integers(0, 256, 5)], np.uint8), at.size)
        if i % 7 == 0:
            bad = np.delete(bad, slice(at[0], at[0] + 1 + i % 11))
        kind, out = agreed_outcome(layout, bad, n, crc, f"damage {i}", exact=False)
        assert kind is not True or out == data.tobytes()


def test_wrong_lengths_and_numbers(sound):
    layout, n, data, chunk, crc = sound
    for other in (n - 1, n + 1, n + 128, 2 * n):
        if other:
            assert agreed_outcome(layout, chunk, other, crc, f"{other} elements", exact=False)[0] is not True
    for backend in BACKENDS.values():
        with pytest.raises(ChecksumError):
            samples.decode_one(backend, layout, chunk, n, 1, crc, np.zeros(len(data), np.uint8))


def test_padding(sound):
    layout, n, data, chunk, crc = sound
    for size in range(1, 16):
        assert agreed_outcome(layout, chunk + bytes(size), n, crc, f"{size} bytes of padding") == (True, data.tobytes())
        assert agreed_outcome(layout, chunk + bytes(size - 1) + b"\1", n, crc, "padding of 1")[0] is CorruptionError
    assert agreed_outcome(layout, chunk + bytes(16), n, crc, "16 bytes of padding")[0] is CorruptionError


def hand_made(codec, symbols, extra):
    """A stream of a codebook that has a symbol, `extra`, which does not occur."""
    if codec == RANS:
        return bytes(FIRST.rans_encode(RansBook(bytes((1, 2, extra)), b"\x80\x7f\x01", 0), symbols))
    lengths = bytearray(256)
    lengths[1], lengths[2], lengths[extra] = 1, 2, 2
    return bytes(FIRST.huffman_encode(bytes(lengths), symbols))


BYTES1, F16, BF16 = LAYOUTS[LayoutId.BYTES1], LAYOUTS[LayoutId.F16], LAYOUTS[LayoutId.BF16]
AB = np.array([1, 2, 1], np.uint8)
BF16_LEAD = LAYOUTS[LayoutId.BF16_LEAD]
# One symbol of four that are as likely, in lane 0: its state goes from 1024 to 64 * 4 + 0. The other lanes have none.
IN_CONTEXT = bytes([7]) + bytes([64, 128, 192]) * 16 + b"\0\4" + b"\0\1" * 127


# 8.7: two codebooks of two symbols that are as likely, runs of one group; each symbol is a bit of its lane's state, so 129 of them need no other byte.
BOOK_A, BOOK_B = b"\2\0\1\2\x80\x80", b"\2\0\5\6\x80\x80"


def with_tables(first=b"\1", groups=b"\1", second=BOOK_B, ids=b"\2", symbols=129, end=b""):
    states = [1 << (8 + (lane < symbols) + (lane + 128 < symbols)) for lane in range(128)]
    return first + groups + BOOK_A + second + ids + np.array(states, "<u2").tobytes() + bytes(4) + end


def lead_chunk(codec, stream, exponents=(RAW, b"\7")):
    return make_chunk(SPLIT, [(codec, stream), exponents, (CONSTANT, b"\0"), (RAW, b"")])


def changed(at, value):
    return IN_CONTEXT[:at] + bytes([value]) + IN_CONTEXT[at + 1 :]


FIELDS = {
    # name: layout, n, chunk, expected
    "empty": (BYTES1, 1, b"", TruncatedError),
    "mode_2": (BYTES1, 1, b"\2\1\0\0\0\1\0\0a", False),  # fields are put together by the caller
    "mode_3": (BYTES1, 1, b"\3\1\0\0\0\1\0\0a", False),  # and bases found
    "mode_4": (BYTES1, 1, b"\4\1\0\0\0\1\0\0a", False),
    "mode_5": (BYTES1, 1, b"\5\1\0\0\0\1\0\0a", False),  # codes looked up
    "mode_6": (BYTES1, 1, b"\6\1\0\0\0\1\0\0a", False),  # and chunks copied
    "mode_7": (BYTES1, 1, b"\7\1\0\0\0\1\0\0a", UnsupportedError),
    "no_streams": (BYTES1, 1, b"\0\0\0\0", CorruptionError),
    "two_streams": (BYTES1, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"a")]), CorruptionError),
    "whole_of_no_streams": (BF16, 1, make_chunk(WHOLE, []), CorruptionError),
    "whole_of_two_streams": (BYTES1, 1, make_chunk(WHOLE, [(RAW, b"a"), (RAW, b"a")]), CorruptionError),
    "whole_of_split_streams": (BF16, 1, make_chunk(WHOLE, [(RAW, b"a"), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "reserved": (BYTES1, 1, b"\0\1\1\0\0\1\0\0a", CorruptionError),
    "codec_200": (BYTES1, 1, make_chunk(SPLIT, [(200, b"a")]), UnsupportedError),
    "zstd": (BYTES1, 1, make_chunk(SPLIT, [(ZSTD, b"a")]), False),
    "zstd_beside_codec_9": (BF16, 1, make_chunk(SPLIT, [(9, b"a"), (ZSTD, b"a"), (RAW, b"")]), False),
    "raw_short": (BYTES1, 2, make_chunk(SPLIT, [(RAW, b"a")]), TruncatedError),
    "raw_long": (BYTES1, 2, make_chunk(SPLIT, [(RAW, b"abc")]), CorruptionError),
    "constant_empty": (BYTES1, 2, make_chunk(SPLIT, [(CONSTANT, b"")]), TruncatedError),
    "constant_long": (BYTES1, 2, make_chunk(SPLIT, [(CONSTANT, b"aa")]), CorruptionError),
    "rans_empty": (BYTES1, 1, make_chunk(SPLIT, [(RANS, b"")]), TruncatedError),
    "huffman_empty": (BYTES1, 1, make_chunk(SPLIT, [(HUFFMAN, b"")]), TruncatedError),
    "bits_constant": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (CONSTANT, b"\0")]), CorruptionError),
    "bits_rans": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (RANS, b"\0")]), CorruptionError),
    "bits_huffman": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (HUFFMAN, b"\0")]), CorruptionError),
    "bits_codec_200": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (200, b"\0")]), UnsupportedError),
    "bits_context": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (CONTEXT, b"\0")]), CorruptionError),
    # 8.6
    "context_without_next_plane": (BYTES1, 1, make_chunk(SPLIT, [(CONTEXT, IN_CONTEXT)]), CorruptionError),
    "context_of_8_bits": (LAYOUTS[LayoutId.F64], 1, make_chunk(SPLIT, [(CONTEXT, IN_CONTEXT), (RAW, b"\0"), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "context_of_the_last_plane": (BF16_LEAD, 1, lead_chunk(RAW, b"\0", (CONTEXT, IN_CONTEXT)), CorruptionError),
    "context_of_a_whole_chunk": (BF16_LEAD, 1, make_chunk(WHOLE, [(CONTEXT, IN_CONTEXT)]), CorruptionError),
    "context_of_widths": (BF16_LEAD, 1, make_chunk(SPLIT, [(RAW, b"\0"), (RAW, b"\0"), (CONTEXT, IN_CONTEXT), (RAW, b"")]), CorruptionError),
    "context_empty": (BF16_LEAD, 1, lead_chunk(CONTEXT, b""), TruncatedError),
    "context_head_cut": (BF16_LEAD, 1, lead_chunk(CONTEXT, IN_CONTEXT[:304]), TruncatedError),
    "context_needs_a_byte": (BF16_LEAD, 2, lead_chunk(CONTEXT, IN_CONTEXT, (RAW, b"\7\7")), TruncatedError),
    "context_has_a_byte_more": (BF16_LEAD, 1, lead_chunk(CONTEXT, IN_CONTEXT + b"\0"), CorruptionError),
    "context_start_0": (BF16_LEAD, 1, lead_chunk(CONTEXT, changed(1, 0)), CorruptionError),
    "context_starts_equal": (BF16_LEAD, 1, lead_chunk(CONTEXT, changed(48, 128)), CorruptionError),
    "context_starts_fall": (BF16_LEAD, 1, lead_chunk(CONTEXT, changed(47, 200)), CorruptionError),
    "context_state_255": (BF16_LEAD, 1, lead_chunk(CONTEXT, changed(304, 0)), CorruptionError),
    "context_is_sound": (BF16_LEAD, 1, lead_chunk(CONTEXT, IN_CONTEXT), ChecksumError),
    "lead_of_3_bits": (BF16_LEAD, 1, lead_chunk(RAW, b"\4"), CorruptionError),
    "bits_tables": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (TABLES, b"\0")]), CorruptionError),
    # 8.7
    "tables_are_sound": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables())]), ChecksumError),
    "tables_in_a_whole_chunk": (BF16, 65, make_chunk(WHOLE, [(TABLES, with_tables(symbols=130))]), ChecksumError),
    "tables_empty": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, b"")]), TruncatedError),
    "tables_one": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(first=b"\0"))]), CorruptionError),
    "tables_17": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(first=b"\x10"))]), CorruptionError),
    "tables_of_3_that_are_2": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(first=b"\2"))]), CorruptionError),
    "tables_run_of_0_groups": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(groups=b"\0"))]), CorruptionError),
    "tables_run_of_2_groups": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(groups=b"\2"))]), CorruptionError),  # then bit 1 is unused
    "tables_bad_codebook": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(second=b"\2\0\5\6\x80\x7f"))]), CorruptionError),
    "tables_unused_bit": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(ids=b"\6"))]), CorruptionError),
    "tables_id_of_none": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(first=b"\2", second=BOOK_B + BOOK_A, ids=b"\x0c"))]), CorruptionError),
    "tables_ids_cut": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables()[:14])]), TruncatedError),
    "tables_literal_without_escape": (BYTES1, 129, make_chunk(SPLIT, [(TABLES, with_tables(end=b"a"))]), CorruptionError),
    "tables_symbol_too_wide": (
        F16,
        129,
        make_chunk(SPLIT, [(TABLES, with_tables(second=b"\2\0\5\x20\x80\x80")), (CONSTANT, b"\0"), (RAW, b"")]),
        CorruptionError,
    ),
    "bits_short": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\2"), (RAW, b"\0")]), TruncatedError),
    "bits_long": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (RAW, b"\0\0")]), CorruptionError),
    "width_9_of_8": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\x09"), (RAW, b"\0\0")]), CorruptionError),
    "unused_bit_set": (BF16, 1, make_chunk(SPLIT, [(RAW, b"a"), (RAW, b"\1"), (RAW, b"\2")]), CorruptionError),
    "field_raw": (F16, 1, make_chunk(SPLIT, [(RAW, b"\x20"), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "field_constant": (F16, 3, make_chunk(SPLIT, [(CONSTANT, b"\x20"), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    # FORMAT 7.2 leaves open whether a codebook's symbol that never occurs must fit the field; this is what the native core does.
    "field_rans_unused": (F16, 3, make_chunk(SPLIT, [(RANS, hand_made(RANS, AB, 32)), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "field_huffman_unused": (F16, 3, make_chunk(SPLIT, [(HUFFMAN, hand_made(HUFFMAN, AB, 32)), (RAW, b"\0"), (RAW, b"")]), CorruptionError),
    "field_rans_unused_but_fits": (F16, 3, make_chunk(SPLIT, [(RANS, hand_made(RANS, AB, 31)), (RAW, b"\0"), (RAW, b"")]), ChecksumError),
    "field_huffman_unused_but_fits": (F16, 3, make_chunk(SPLIT, [(HUFFMAN, hand_made(HUFFMAN, AB, 31)), (RAW, b"\0"), (RAW, b"")]), ChecksumError),
}


@pytest.mark.parametrize(("layout", "n", "chunk", "expected"), FIELDS.values(), ids=FIELDS)
def test_fields(layout, n, chunk, expected):
    assert agreed_outcome(layout, chunk, n, 0, "field")[0] is expected


STREAMS = {
    "mode_2": (2, [(RAW, b"a")], UnsupportedError),
    "whole_of_none": (WHOLE, [], CorruptionError),
    "whole_of_two": (WHOLE, [(RAW, b"a"), (RAW, b"a")], CorruptionError),
    "split_of_none": (SPLIT, [], CorruptionError),
    "codec_200": (SPLIT, [(200, b"a")], UnsupportedError),
}


@pytest.mark.parametrize(("mode", "streams", "expected"), STREAMS.values(), ids=STREAMS)
def test_decode_streams_refuses(mode, streams, expected):
    for backend in BACKENDS.values():
        with pytest.raises(expected):
            backend.decode_streams(BYTES1, mode, streams, 1, 0, np.zeros(1, np.uint8))


@pytest.mark.parametrize("layout_id", [LayoutId.BYTES1, LayoutId.BYTES8, LayoutId.BF16, LayoutId.F32, LayoutId.F8_E4M3], ids=lambda each: each.name)
def test_memory_stays_a_few_times_the_chunk(layout_id):
    layout, n_bytes = LAYOUTS[layout_id], 1 << 20
    n = n_bytes // layout.elem_bytes
    planes = FASTEST.split(layout, elements(layout, n, "gaussian"))
    streams = [(RAW, symbols) for symbols in planes.symbols] + ([(RAW, planes.widths), (RAW, planes.bits)] if layout.raw_bits else [])
    assert peak(lambda backend: backend.decode_streams(layout, SPLIT, streams, n, 0, np.empty(n_bytes, np.uint8))) < 8 * n_bytes


def test_memory_does_not_follow_a_stream_that_no_symbol_needs():
    """Four symbols, and a Huffman bitstream of megabytes behind them."""
    stream = bytes(FASTEST.huffman_encode(bytes([1, 1, *[0] * 254]), np.zeros(4, np.uint8))) + bytes(4 << 20)

    def decode(backend):
        with pytest.raises(CorruptionError):
            backend.decode_streams(BYTES1, SPLIT, [(HUFFMAN, stream)], 4, 0, np.zeros(4, np.uint8))

    assert peak(decode) < 3 * len(stream)


def peak(work):
    """Return the most that any backend allocates in Python and numpy."""
    most = 0
    for backend in BACKENDS.values():
        work(backend)  # tables that stay are not counted
        tracemalloc.start()
        try:
            work(backend)
            most = max(most, tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return most


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(LAYOUTS)), st.sampled_from([0, 1]), st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=400)), max_size=8),
    st.integers(1, 300),
)  # fmt: skip
def test_random_streams_are_refused_or_decode_alike(layout_id, mode, streams, n):
    layout = LAYOUTS[layout_id]
    outcomes = set()
    for backend in BACKENDS.values():
        out = np.zeros(n * layout.elem_bytes, np.uint8)
        try:
            wanted = layout.n_streams if mode == 0 else 1
            if len(streams) != wanted or any(codec == 4 for codec, _ in streams):
                return
            outcomes.add(backend.decode_streams(layout, mode, streams, n, 0, out))
        except FormatError:
            outcomes.add("refused")
    assert len(outcomes) == 1
