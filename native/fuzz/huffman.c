/* SPDX-License-Identifier: Apache-2.0 */
/* wp_huffman_encode, and back. Input: flags, u8 count of splits, u8 first symbol, u8 stride, u16 count of symbols, u16 capacity, splits, symbols. */
#include "fuzz.h"

enum { ANY_LENGTHS = 1, ANY_SYMBOLS = 2, SMALL = 4, MOST_SYMBOLS = 2600 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned flags = next8(&in), n_splits = next8(&in) % 255, first = next8(&in), stride = next8(&in) | 1;
    const size_t n = next16(&in) % MOST_SYMBOLS, given = next16(&in);
    uint8_t lengths[256] = {0}, symbols_of_code[256];
    unsigned n_codes = 2;
    /* A complete code: from two codes of one bit on, each split makes two out of one. */
    for (unsigned i = 0; i < 256; i++) symbols_of_code[i] = (uint8_t)(first + i * stride);
    lengths[symbols_of_code[0]] = lengths[symbols_of_code[1]] = 1;
    for (unsigned i = 0; i < n_splits; i++) {
        uint8_t *length = &lengths[symbols_of_code[next8(&in) % n_codes]];
        if (*length == 12) continue;
        ++*length;
        lengths[symbols_of_code[n_codes++]] = *length;
    }
    if (flags & ANY_LENGTHS)
        for (unsigned i = 0; i < 16; i++) lengths[next8(&in)] = (uint8_t)(next8(&in) % 14);
    uint8_t *symbols = take_cycled(in, n);
    if (!(flags & ANY_SYMBOLS))
        for (size_t i = 0; i < n; i++) symbols[i] = symbols_of_code[symbols[i] % n_codes];

    int covered = 1;
    for (size_t i = 0; i < n; i++) covered &= lengths[symbols[i]] != 0;
    const size_t bound = n * 3 / 2 + 256, capacity = flags & SMALL && given < bound ? given : bound;
    uint8_t *out = take(capacity, 0xAA);
    size_t out_bytes = 0;
    const wp_status status = wp_huffman_encode(lengths, symbols, n, out, capacity, &out_bytes);
    CHECK(status == WP_OK || status == WP_ARGUMENT || (status == WP_NO_SPACE && capacity < bound));
    if (!(flags & (ANY_LENGTHS | ANY_SYMBOLS))) CHECK(status != WP_ARGUMENT);
    if (status == WP_OK) {
        CHECK(covered && out_bytes <= capacity);
        if (n) {
            uint8_t *stream = take_copy(out, out_bytes), *back = take(n, 0x55);
            const wp_stream one = {WP_HUFFMAN, stream, out_bytes};
            uint32_t crc;
            CHECK(wp_decode_streams(WP_ISA_SCALAR, WP_BYTES1, WP_MODE_SPLIT, &one, 1, n, 0, workspace_of(WP_ISA_SCALAR), back, &crc) == WP_OK);
            CHECK(memcmp(back, symbols, n) == 0);
            free(stream);
            free(back);
        }
    }
    free(symbols);
    free(out);
    return 0;
}
