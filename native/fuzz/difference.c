/* SPDX-License-Identifier: Apache-2.0 */
/* wp_decode_difference, and wp_scaled_base if the flags say so. Input: layout, flags, shift, codecs of rates, classes and extra bits, u8 count of frequent
 * differences, u16 count of elements, u16 columns, u16 bytes of the base (of the scales), of the rates and of the classes; then frequent differences, base,
 * rates, classes, extra bits. */
#include "fuzz.h"

enum { IS_SCALED = 1, ANY_CODEC = 2, MOST_ELEMS = 12300, MOST_COLS = 700 };

static uint8_t *next_bytes(input *in, size_t n) {
    const size_t there = n < in->n ? n : in->n;
    uint8_t *p = take(n, 0);
    if (there) memcpy(p, in->p, there);
    in->p += there;
    in->n -= there;
    return p;
}
static unsigned next_codec(input *in, unsigned flags) { return flags & ANY_CODEC ? next8(in) : next8(in) % (WP_N_CODECS + 1); }

/* The base elements that scales make, out of the input's bytes again and again; of no layout that has none. */
static int scaled(unsigned layout, input in, size_t n_elems, size_t n_cols, uint8_t *base) {
    const size_t phase = next16(&in) % n_cols, n_rows = (phase + n_elems + n_cols - 1) / n_cols;
    uint8_t *scales = take_cycled(in, 2 * (n_rows + n_cols)), *signs = take_cycled(in, (n_elems + 7) / 8);
    const wp_status status = wp_scaled_base(layout, scales, n_rows + n_cols, n_cols, phase, signs, n_elems, base);
    CHECK(status == WP_OK || status == WP_CORRUPT);
    if (status == WP_OK) {
        CHECK(wp_scaled_base(layout, scales, n_rows + n_cols + 1, n_cols, phase, signs, n_elems, base) == WP_ARGUMENT);
        CHECK(wp_scaled_base(layout, scales, n_rows + n_cols - 1, n_cols, phase, signs, n_elems, base) == WP_ARGUMENT);
    }
    free(scales);
    free(signs);
    return status == WP_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned layout = next_layout(&in), flags = next8(&in), shift = next8(&in);
    wp_stream streams[3];
    for (int i = 0; i < 3; i++) streams[i].codec = next_codec(&in, flags);
    const unsigned n_frequent = next8(&in) % 65;
    const size_t n_elems = next16(&in) % MOST_ELEMS, n_cols = 1 + next16(&in) % MOST_COLS, base_bytes = next16(&in);
    for (int i = 0; i < 2; i++) streams[i].n_bytes = next16(&in);
    uint8_t *frequent = next_bytes(&in, 4 * n_frequent);
    const size_t elem_bytes = wp_layout_of(layout) ? wp_layout_of(layout)->elem_bytes : 0, out_bytes = n_elems * elem_bytes;
    const input of_base = {in.p, base_bytes < in.n ? base_bytes : in.n};
    uint8_t *base = take_cycled(of_base, out_bytes);
    if (flags & IS_SCALED && n_elems && !scaled(layout, of_base, n_elems, n_cols, base)) memset(base, 0, out_bytes);
    in.p += of_base.n;
    in.n -= of_base.n;
    uint8_t *held[3];
    for (int i = 0; i < 3; i++) {
        if (i == 2 || streams[i].n_bytes > in.n) streams[i].n_bytes = in.n;
        streams[i].data = held[i] = next_bytes(&in, streams[i].n_bytes);
    }

    uint8_t *expected = take(out_bytes, 0xAA);
    uint32_t crc;
    const wp_status status = wp_decode_difference(WP_ISA_SCALAR, layout, shift, frequent, n_frequent, streams, base, n_elems, 7, workspace_of(WP_ISA_SCALAR),
                                                  expected, &crc);
    CHECK(status == WP_OK || status == WP_UNSUPPORTED || status == WP_CORRUPT || status == WP_TRUNCATED || status == WP_NEEDS_ZSTD);
    if (status == WP_OK) CHECK(crc == numbered_crc(7, expected, out_bytes));
    FOR_EACH_OTHER_ISA(isa) {
        uint8_t *out = take(out_bytes, 0x55);
        uint32_t other_crc;
        CHECK(wp_decode_difference(isa, layout, shift, frequent, n_frequent, streams, base, n_elems, 7, workspace_of(isa), out, &other_crc) == status);
        if (status == WP_OK) CHECK(other_crc == crc && memcmp(out, expected, out_bytes) == 0);
        free(out);
    }
    for (int i = 0; i < 3; i++) free(held[i]);
    free(frequent);
    free(base);
    free(expected);
    return 0;
}
