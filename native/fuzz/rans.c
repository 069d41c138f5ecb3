/* SPDX-License-Identifier: Apache-2.0 */
/* wp_rans_choose and wp_rans_encode, and back. Input: flags, u16 count of symbols, u16 capacity, codebook (34 bytes, if the flags say so), symbols. */
#include "fuzz.h"

enum { GIVEN_BOOK = 1, MENDED = 2, SMALL = 4, MOST_SYMBOLS = 2600 };

static void next_book(input *in, int mended, wp_rans_book *book) {
    uint8_t *to = (uint8_t *)book;
    for (size_t i = 0; i < sizeof *book; i++) to[i] = (uint8_t)next8(in);
    if (!mended) return;
    /* The last frequency takes what the others leave, as far as one byte can. */
    book->n_symbols = (uint8_t)(1 + book->n_symbols % 15);
    unsigned sum = book->escape_freq;
    for (unsigned r = 0; r + 1 < book->n_symbols; r++) sum += book->freqs[r] = (uint8_t)(book->freqs[r] % 16 + 1);
    book->freqs[book->n_symbols - 1u] = (uint8_t)(256 - sum);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned flags = next8(&in);
    const size_t n = next16(&in) % MOST_SYMBOLS, given = next16(&in);
    wp_rans_book book;
    memset(&book, 0, sizeof book);
    if (flags & GIVEN_BOOK) next_book(&in, flags & MENDED, &book);
    uint8_t *symbols = take_cycled(in, n);
    uint32_t counts[256], distinct = 0;
    wp_histogram(WP_ISA_SCALAR, symbols, n, counts);
    for (unsigned s = 0; s < 256; s++) distinct += counts[s] != 0;
    wp_rans_book chosen;
    size_t cost;
    const wp_status choice = wp_rans_choose(counts, &chosen, &cost);
    CHECK(choice == (distinct < 2 ? WP_ARGUMENT : WP_OK));
    if (!(flags & GIVEN_BOOK) && choice == WP_OK) book = chosen;

    /* A renormalisation byte and a literal for each symbol, and the head. */
    const size_t bound = 2 * n + 2 + 2 * 16 + 2 * WP_BLOCK + 4, capacity = flags & SMALL && given < bound ? given : bound;
    uint8_t *expected = take(capacity, 0xAA), *scratch = take(wp_rans_scratch(n), 0);
    size_t expected_bytes = 0;
    const wp_status status = wp_rans_encode(WP_ISA_SCALAR, &book, symbols, n, scratch, expected, capacity, &expected_bytes);
    CHECK(status == WP_OK || status == WP_ARGUMENT || (status == WP_NO_SPACE && capacity < bound));
    if (!(flags & GIVEN_BOOK) && choice == WP_OK) CHECK(status != WP_ARGUMENT);
    CHECK(expected_bytes <= capacity);
    free(scratch);
    uint8_t *stream = take_copy(expected, expected_bytes);
    const wp_stream one = {WP_RANS, stream, expected_bytes};
    for (unsigned isa = 0; isa < WP_N_ISAS; isa++) {
        if (!wp_isa_available(isa)) continue;
        uint8_t *out = take(capacity, 0x55), *back = take(n, 0x55);
        size_t out_bytes = 0;
        scratch = take(wp_rans_scratch(n), 0xFF);
        CHECK(wp_rans_encode(isa, &book, symbols, n, scratch, out, capacity, &out_bytes) == status);
        if (status == WP_OK) CHECK(out_bytes == expected_bytes && memcmp(out, expected, out_bytes) == 0);
        if (status == WP_OK && n) {
            uint32_t crc;
            CHECK(wp_decode_streams(isa, WP_BYTES1, WP_MODE_SPLIT, &one, 1, n, 0, workspace_of(isa), back, &crc) == WP_OK);
            CHECK(memcmp(back, symbols, n) == 0);
        }
        uint32_t other_counts[256];
        wp_histogram(isa, symbols, n, other_counts);
        CHECK(memcmp(other_counts, counts, sizeof counts) == 0);
        CHECK(wp_crc32c(isa, 1, symbols, n) == wp_crc32c(WP_ISA_SCALAR, 1, symbols, n));
        free(scratch);
        free(out);
        free(back);
    }
    free(stream);
    free(expected);
    free(symbols);
    return 0;
}
