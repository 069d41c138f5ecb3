/* SPDX-License-Identifier: Apache-2.0 */
/* wp_decode_chunks. Input: layout, flags, u8 count of chunks, u8 blocks of a chunk, u16 count of elements, u16 begin of each chunk and of the end in units of
 * 16 bytes, chunks. */
#include "fuzz.h"

enum { LONG = 1, MOST_CHUNKS = 8, MOST_BLOCKS = 70, LONG_ELEMS = 64 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned layout = next_layout(&in), flags = next8(&in);
    const size_t n_chunks = next8(&in) % (MOST_CHUNKS + 1), chunk_elems = (1 + next8(&in) % MOST_BLOCKS) * WP_BLOCK;
    size_t n_elems = next16(&in), out_elems = n_elems;
    /* A run of 64 MB and more is written past the cache. Only the chunks that there are need room, so a claim to be the begin of such a run is cheap. */
    if (flags & LONG) {
        n_elems = LONG_ELEMS;
        out_elems = n_chunks * chunk_elems;
    }
    int64_t *offsets = malloc((n_chunks + 1) * sizeof *offsets);
    uint32_t *crcs = calloc(n_chunks + 1, sizeof *crcs);
    if (!offsets || !crcs) exit(2);
    for (size_t i = 0; i <= n_chunks; i++) offsets[i] = (int64_t)next16(&in) * 16;
    const wp_layout *l = wp_layout_of(layout);
    const size_t elem_bytes = l ? l->elem_bytes : 0, out_bytes = out_elems * elem_bytes;
    uint8_t *chunks = take_copy(in.p, in.n), *expected = take(out_bytes, 0xAA);

    /* Chunk by chunk: whose CRC is wrong gets the right one, and is decoded again. */
    size_t stopped = 0;
    wp_status status;
    for (;;) {
        status = wp_decode_chunks(WP_ISA_SCALAR, layout, chunks, in.n, offsets, crcs, n_chunks, chunk_elems, n_elems, 3, workspace_of(WP_ISA_SCALAR), expected,
                                  &stopped);
        if (status != WP_CHECKSUM) break;
        CHECK(stopped < n_chunks && stopped * chunk_elems < n_elems);
        size_t begin = stopped * chunk_elems, n = n_elems - begin < chunk_elems ? n_elems - begin : chunk_elems;
        uint32_t crc = numbered_crc(3 + (uint32_t)stopped, expected + begin * elem_bytes, n * elem_bytes);
        CHECK(crc != crcs[stopped]);
        crcs[stopped] = crc;
    }
    CHECK(status == WP_OK ? stopped == n_chunks : !l || stopped < n_chunks);
    FOR_EACH_OTHER_ISA(isa) {
        uint8_t *out = take(out_bytes, 0x55);
        size_t next = 0, good = stopped * chunk_elems < n_elems ? stopped * chunk_elems : n_elems;
        CHECK(wp_decode_chunks(isa, layout, chunks, in.n, offsets, crcs, n_chunks, chunk_elems, n_elems, 3, workspace_of(isa), out, &next) == status);
        CHECK(next == stopped && memcmp(out, expected, good * elem_bytes) == 0);
        free(out);
    }
    free(offsets);
    free(crcs);
    free(chunks);
    free(expected);
    return 0;
}
