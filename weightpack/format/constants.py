# SPDX-License-Identifier: Apache-2.0
"""Numbers of docs/FORMAT.md."""

from enum import IntEnum

VERSION = (1, 5)

INDEX_KEY = "weightpack"
INDEX_CRC_KEY = "weightpack.crc32c"

MAX_HEADER_BYTES = 100_000_000
MAX_RECORD_BYTES = 16 * ((1 << 32) - 1)
KEPT_PIECE_BYTES = 1 << 20
ALIGN_BYTES = 16

# The native core has these, too, in native/include/weightpack.h.
BLOCK_ELEMS = 128  # 7.3
LANES = 128  # 8.3
MAX_STREAMS = 8  # 6.3
MAX_CHUNK_BYTES = 1 << 23
MAX_CHUNK_BLOCKS = 65535
MAX_TURNED_BYTES = 1 << 28  # of a base's matrix that is turned, 15.6: it is read as a whole
MAX_TABLES = 16  # codebooks of a stream, 8.7 and 8.8
MAX_CODE_BITS = 12  # 8.4
N_CONTEXTS = 16  # 8.6, 14.4
MAX_RATE = 15  # 14.4
N_CELLS = (MAX_RATE + 1) * N_CONTEXTS
CLASS_BITS = 7  # 14.3
N_CLASSES = 1 << CLASS_BITS
FIRST_FREQUENT = 64
MAX_FREQUENT = 64
NO_SCALE = -32768  # 14.5

MAX_SCALED_COLS = 1 << 20
MAX_SCALE_BYTES = 1 << 22
MAX_TILE_SIDE = 1 << 23  # 18.1
MAX_VALUES = 256  # 18.2
VERBATIM_TILE = 0xFFFFFFFF


class Codec(IntEnum):
    """FORMAT section 8."""

    RAW = 0
    CONSTANT = 1
    RANS = 2
    HUFFMAN = 3
    ZSTD = 4
    CONTEXT = 5
    TABLES = 6
    CONDITIONAL = 7


CODEC_NAMES = {
    Codec.RAW: "raw", Codec.CONSTANT: "constant", Codec.RANS: "rans128x8", Codec.HUFFMAN: "huffman", Codec.ZSTD: "zstd", Codec.CONTEXT: "context",
    Codec.TABLES: "tables", Codec.CONDITIONAL: "conditional",
}  # fmt: skip


class Mode(IntEnum):
    """FORMAT 6.3: how a chunk is coded."""

    SPLIT = 0
    WHOLE = 1
    FIELDS = 2
    DIFFERENCE = 3
    SCALED = 4
    QUANTISED = 5
    REPEATED = 6


MINOR_VERSIONS: dict[Mode | str, int] = {Mode.DIFFERENCE: 2, Mode.SCALED: 2, "g": 3, Mode.QUANTISED: 4, Mode.REPEATED: 4, "x": 5, "same": 5}
"""The minor version of the format that knows a mode, or a storage; 0 for the others (FORMAT section 12)."""


def aligned(n_bytes: int) -> int:
    """Round up to a multiple of 16."""
    return -(-n_bytes // ALIGN_BYTES) * ALIGN_BYTES
