/* SPDX-License-Identifier: Apache-2.0 */
/* wp_decode_streams, one stream of which is the input's: codebooks and states of the codecs. Input: layout, which plane, codec, u16 count of elements, stream.
 */
#include "fuzz.h"

enum { MOST_ELEMS = 12300 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned layout = 1 + next8(&in) % (WP_N_LAYOUTS - 1), plane = next8(&in), codec = next8(&in) % (WP_N_CODECS + 1);
    const size_t n_elems = next16(&in) % MOST_ELEMS;
    const wp_layout *l = wp_layout_of(layout);
    const unsigned n_streams = l->n_planes + (l->raw_bits ? 2u : 0u);
    const size_t out_bytes = n_elems * l->elem_bytes;
    uint8_t *stream = take_copy(in.p, in.n), *zero = take(1, 0), *expected = take(out_bytes, 0xAA);
    wp_stream streams[WP_MAX_STREAMS];
    for (unsigned i = 0; i < n_streams; i++) streams[i] = (wp_stream){WP_CONSTANT, zero, 1};
    if (l->raw_bits) streams[n_streams - 1] = (wp_stream){WP_RAW, zero, 0}; /* no bits: all widths are 0 */
    streams[plane % n_streams] = (wp_stream){codec, stream, in.n};

    uint32_t crc;
    const wp_status status = wp_decode_streams(WP_ISA_SCALAR, layout, WP_MODE_SPLIT, streams, n_streams, n_elems, 7, workspace_of(WP_ISA_SCALAR), expected,
                                               &crc);
    CHECK(status == WP_OK || status == WP_UNSUPPORTED || status == WP_CORRUPT || status == WP_TRUNCATED || status == WP_NEEDS_ZSTD);
    if (status == WP_OK) CHECK(crc == numbered_crc(7, expected, out_bytes));
    FOR_EACH_OTHER_ISA(isa) {
        uint8_t *out = take(out_bytes, 0x55);
        uint32_t other_crc;
        CHECK(wp_decode_streams(isa, layout, WP_MODE_SPLIT, streams, n_streams, n_elems, 7, workspace_of(isa), out, &other_crc) == status);
        if (status == WP_OK) CHECK(other_crc == crc && memcmp(out, expected, out_bytes) == 0);
        free(out);
    }
    free(stream);
    free(zero);
    free(expected);
    return 0;
}
