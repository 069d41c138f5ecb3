/* SPDX-License-Identifier: Apache-2.0 */
/* wp_quantised_decode, and wp_quantised_fit of what it gives, or of any elements. Input: layout, flags, u8 count of values, u16 count of elements, u16 columns,
 * u8 rows and u8 columns of a tile, u16 bytes of the elements of tiles without a scale; then values, scales, codes, those elements. */
#include "fuzz.h"

enum { ANY_ELEMS = 1, FROM_LEAST = 2, SMALL_CODES = 4, PLAIN_SCALES = 8, MOST_ELEMS = 3000, MOST_COLS = 400 };

/* What is fitted is decoded again, from the tiles' scales and the codes, to the same elements. */
static void fitted(unsigned layout, wp_tiling tiling, const uint8_t *values, size_t n_values, unsigned flags, const uint8_t *elems, size_t n_elems) {
    const size_t elem_bytes = wp_layout_of(layout)->elem_bytes, n_tiles = wp_tiles(tiling, n_elems);
    wp_grid grid = {
        .n_values = (unsigned)n_values, .n_anchors = n_values < WP_MAX_ANCHORS ? (unsigned)n_values : WP_MAX_ANCHORS, .from_least = flags & FROM_LEAST};
    memcpy(grid.values, values, 4 * n_values);
    for (unsigned i = 0; i < grid.n_anchors; i++) grid.anchors[i] = grid.values[i] & 0x7fffffff;
    uint8_t *scratch = take(wp_quantised_scratch(n_elems), 0xC3), *codes = take(n_elems, 0xAA), *planes = take(4 * n_tiles, 0),
            *out = take(n_elems * elem_bytes, 0x55);
    uint32_t *scales = (uint32_t *)(void *)take(4 * n_tiles, 0x11), crc;
    size_t n_verbatim;
    const wp_status status = wp_quantised_fit(layout, elems, n_elems, tiling, &grid, scratch, scales, codes, &n_verbatim);
    CHECK(status == WP_OK || status == WP_ARGUMENT);
    if (status == WP_OK && n_tiles <= n_elems) {
        uint8_t *verbatim = take(n_verbatim * elem_bytes, 0), *end = verbatim;
        const size_t across = (tiling.cols - 1) / tiling.tile_cols + 1;
        for (size_t i = 0; i < n_elems; i++) {
            const size_t tile = i / tiling.cols / tiling.tile_rows * across + i % tiling.cols / tiling.tile_cols;
            if (scales[tile] != WP_VERBATIM_TILE) continue;
            memcpy(end, elems + i * elem_bytes, elem_bytes);
            end += elem_bytes;
        }
        CHECK((size_t)(end - verbatim) == n_verbatim * elem_bytes);
        for (size_t i = 0; i < n_tiles; i++)
            for (unsigned p = 0; p < 4; p++) planes[p * n_tiles + i] = (uint8_t)(scales[i] >> (24 - 8 * p));
        CHECK(wp_quantised_decode(WP_ISA_SCALAR, layout, values, n_values, planes, tiling, codes, n_elems, verbatim, n_verbatim * elem_bytes, 7, out, &crc) ==
              WP_OK);
        CHECK(memcmp(out, elems, n_elems * elem_bytes) == 0);
        free(verbatim);
    }
    free(scratch);
    free(codes);
    free(planes);
    free(out);
    free(scales);
}

/* Are they values of a grid: ascending, zeros or normal floats? */
static int ascending(const uint8_t *values, size_t n_values) {
    float last = 0, next;
    uint32_t bits;
    for (size_t k = 0; k < n_values; k++, last = next) {
        memcpy(&next, values + 4 * k, 4);
        memcpy(&bits, values + 4 * k, 4);
        if ((bits >> 23 & 255) == 255 || ((bits >> 23 & 255) == 0 && bits << 1) || (k && !(last < next))) return 0;
    }
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned layout = next_layout(&in), flags = next8(&in);
    const size_t n_values = 1 + next8(&in), n_elems = next16(&in) % MOST_ELEMS, cols = 1 + next16(&in) % MOST_COLS;
    const wp_tiling tiling = {cols, 1 + next8(&in), 1 + next8(&in) % cols};
    const size_t elem_bytes = wp_layout_of(layout) ? wp_layout_of(layout)->elem_bytes : 0, out_bytes = n_elems * elem_bytes;
    const size_t verbatim_bytes = next16(&in), n_tiles = n_elems ? wp_tiles(tiling, n_elems) : 0;
    uint8_t *values = take_cycled(in, 4 * n_values);
    for (size_t i = 0; i < 4 * n_values && in.n; i++) next8(&in);
    uint8_t *scales = take_cycled(in, 4 * n_tiles), *codes = take_cycled(in, n_elems), *verbatim = take_cycled(in, verbatim_bytes),
            *expected = take(out_bytes, 0xAA);
    if (flags & SMALL_CODES)
        for (size_t i = 0; i < n_elems; i++) codes[i] = (uint8_t)(codes[i] % n_values);
    if (flags & PLAIN_SCALES)
        for (size_t i = 0; i < n_tiles; i++) scales[i] = (uint8_t)(0x30 + scales[i] % 32);
    uint32_t crc;
    const wp_status status = wp_quantised_decode(WP_ISA_SCALAR, layout, values, n_values, scales, tiling, codes, n_elems, verbatim, verbatim_bytes, 7, expected,
                                                 &crc);
    CHECK(status == WP_OK || status == WP_CORRUPT || status == WP_TRUNCATED);
    if (status == WP_OK) CHECK(crc == numbered_crc(7, expected, out_bytes));
    FOR_EACH_OTHER_ISA(isa) {
        uint8_t *out = take(out_bytes, 0x55);
        uint32_t other_crc;
        CHECK(wp_quantised_decode(isa, layout, values, n_values, scales, tiling, codes, n_elems, verbatim, verbatim_bytes, 7, out, &other_crc) == status);
        if (status == WP_OK) CHECK(other_crc == crc && memcmp(out, expected, out_bytes) == 0);
        free(out);
    }
    if (n_elems && (status == WP_OK || flags & ANY_ELEMS) && elem_bytes && ascending(values, n_values)) {
        uint8_t *elems = flags & ANY_ELEMS ? take_cycled(in, out_bytes) : take_copy(expected, out_bytes);
        fitted(layout, tiling, values, n_values, flags, elems, n_elems);
        free(elems);
    }
    free(values);
    free(scales);
    free(codes);
    free(verbatim);
    free(expected);
    return 0;
}
