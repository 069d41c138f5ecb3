/* SPDX-License-Identifier: Apache-2.0 */
/* Elements as words, and as integers in the order of their values (section 14.2). */
#ifndef WP_WORDS_H
#define WP_WORDS_H
#include "mem.h"

static inline uint32_t wp_load_word(const uint8_t *p, unsigned bytes, size_t i) {
    return bytes == 2 ? wp_load16(p + 2 * i) : bytes == 4 ? wp_load32(p + 4 * i) : p[i];
}

static inline void wp_store_word(uint8_t *p, unsigned bytes, size_t i, uint32_t v) {
    if (bytes == 2) wp_store16(p + 2 * i, (uint16_t)v);
    else if (bytes == 4) wp_store32(p + 4 * i, v);
    else p[i] = (uint8_t)v;
}

static inline uint32_t wp_word_mask(unsigned bits) { return 0xffffffffu >> (32 - bits); }

/* Floats of `bits` bits <-> integers in the order of the values (two's complement, of as many bits). Its own inverse. */
static inline uint32_t wp_in_order(uint32_t word, unsigned bits) { return word ^ ((0u - (word >> (bits - 1))) & ((1u << (bits - 1)) - 1)); }

#if defined(__GNUC__) || defined(__clang__)
static inline unsigned wp_lowest_bit(uint64_t v) { return (unsigned)__builtin_ctzll(v); }
static inline unsigned wp_highest_bit(uint64_t v) { return 63u - (unsigned)__builtin_clzll(v); }
#else
static inline unsigned wp_highest_bit(uint64_t v) {
    unsigned n = 0;
    for (unsigned step = 32; step; step /= 2)
        if (v >> step) {
            v >>= step;
            n += step;
        }
    return n;
}
static inline unsigned wp_lowest_bit(uint64_t v) { return wp_highest_bit(v & (0 - v)); }
#endif

#endif
