/* SPDX-License-Identifier: Apache-2.0 */
/* wp_decode_chunk. Input: layout, u16 count of elements, chunk. */
#include "fuzz.h"

enum { MOST_ELEMS = 12300 }; /* three batches, and an end */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned layout = next_layout(&in);
    const size_t n_elems = next16(&in) % MOST_ELEMS;
    const wp_layout *l = wp_layout_of(layout);
    const size_t out_bytes = l ? n_elems * l->elem_bytes : 0;
    const uint32_t number = 7;
    uint8_t *chunk = take_copy(in.p, in.n), *expected = take(out_bytes, 0xAA);

    /* No input guesses its CRC: the first decoder gets a wrong one, the others that of what the first gave. */
    wp_status status = wp_decode_chunk(WP_ISA_SCALAR, layout, chunk, in.n, n_elems, number, 0, workspace_of(WP_ISA_SCALAR), expected);
    uint32_t crc = 0;
    if (status == WP_CHECKSUM) {
        crc = numbered_crc(number, expected, out_bytes);
        status = WP_OK;
    }
    CHECK(status == WP_OK || status == WP_UNSUPPORTED || status == WP_CORRUPT || status == WP_TRUNCATED || status == WP_NEEDS_ZSTD ||
          status == WP_NEEDS_CALLER);
    FOR_EACH_OTHER_ISA(isa) {
        uint8_t *out = take(out_bytes, 0x55);
        CHECK(wp_decode_chunk(isa, layout, chunk, in.n, n_elems, number, crc, workspace_of(isa), out) == status);
        if (status == WP_OK) CHECK(memcmp(out, expected, out_bytes) == 0);
        free(out);
    }
    free(chunk);
    free(expected);
    return 0;
}
