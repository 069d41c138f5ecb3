/* SPDX-License-Identifier: Apache-2.0
 *
 * The hot loops of section 14, in plain C that compilers make vectors of; each kernels_<isa>.c includes it for its own instructions. A file whose vectors can
 * may define WP_NONZERO64(p), the mask of the bytes at p, 64 of them, that are not 0: then the unchanged elements among changed ones cost nothing; or
 * WP_OWN_DIFFERENCES, where it has a `differences` of its own.
 */
#ifndef WP_DIFFERENCE_KERNELS_H
#define WP_DIFFERENCE_KERNELS_H
#include "words.h"

/* The codebooks of 128 elements: what their exponents say, in a block of one rate. */
static void exponents_2(const uint8_t *base, size_t m, unsigned shift, unsigned mask, uint8_t *out) {
    for (size_t i = 0; i < m; i++) out[i] = (uint8_t)(wp_load16(base + 2 * i) >> shift & mask);
}
static void exponents_4(const uint8_t *base, size_t m, unsigned shift, unsigned mask, uint8_t *out) {
    for (size_t i = 0; i < m; i++) out[i] = (uint8_t)(wp_load32(base + 4 * i) >> shift & mask);
}
static void exponents_1(const uint8_t *base, size_t m, unsigned shift, unsigned mask, uint8_t *out) {
    for (size_t i = 0; i < m; i++) out[i] = (uint8_t)(base[i] >> shift & mask);
}
static void exponents(const uint8_t *base, size_t m, unsigned bytes, unsigned shift, unsigned mask, uint8_t *out) {
    if (bytes == 2) exponents_2(base, m, shift, mask, out);
    else if (bytes == 4) exponents_4(base, m, shift, mask, out);
    else exponents_1(base, m, shift, mask, out);
}

#ifndef WP_OWN_DIFFERENCES
static inline uint32_t read_one(uint64_t entry, const uint8_t *bits, uint64_t position) {
    const uint64_t v = wp_load64(bits + (position >> 3)) >> (position & 7) & (((uint64_t)1 << (entry & 255)) - 1);
    const uint32_t magnitude = (uint32_t)(entry >> 8) | (uint32_t)(v >> 1), sign = (uint32_t)(v & 1);
    return (magnitude ^ (0u - sign)) + sign;
}

static inline uint64_t read_all(const wp_class_table *t, const uint8_t *classes, size_t m, const uint8_t *bits, uint64_t position, unsigned bytes,
                                wp_differences *d) {
    uint64_t all = 0;
#define READ(i)                                           \
    const uint64_t entry = t->entry[classes[i]];          \
    const uint32_t one = read_one(entry, bits, position); \
    if (bytes == 2) d->of_2[i] = (uint16_t)one;           \
    else d->of_4[i] = one;                                \
    position += entry & 255;                              \
    all |= entry
#ifdef WP_NONZERO64
    if (m == WP_BLOCK) {
        if (bytes == 2) memset(d->of_2, 0, sizeof d->of_2);
        else memset(d->of_4, 0, sizeof d->of_4);
        for (size_t half = 0; half < WP_BLOCK; half += 64)
            for (uint64_t changed = WP_NONZERO64(classes + half); changed; changed &= changed - 1) {
                const size_t i = half + wp_lowest_bit(changed);
                READ(i);
            }
        return all & WP_NO_CLASS ? UINT64_MAX : position;
    }
#endif
    for (size_t i = 0; i < m; i++) { READ(i); }
#undef READ
    return all & WP_NO_CLASS ? UINT64_MAX : position;
}

/* Differences of the m <= 128 classes, whose extra bits are at `position`; returns the position behind them. As wide as the words, or 32 bits. */
static uint64_t differences(const wp_class_table *t, const uint8_t *classes, size_t m, const uint8_t *bits, uint64_t position, unsigned bytes,
                            wp_differences *d) {
    return bytes == 2 ? read_all(t, classes, m, bits, position, 2, d) : read_all(t, classes, m, bits, position, 4, d);
}
#endif

static inline void apply_words(const uint8_t *base, unsigned bytes, unsigned shift, int is_float, const wp_differences *d, size_t m, uint8_t *out) {
    const unsigned bits = 8 * bytes - shift;
    for (size_t i = 0; i < m; i++) {
        uint32_t b = wp_load_word(base, bytes, i) >> shift, step = bytes == 2 ? d->of_2[i] : d->of_4[i];
        const uint32_t turned = is_float ? b >> (bits - 1) : 0; /* of a negative base, steps away from zero are down */
        if (is_float) b = wp_in_order(b, bits);
        b = (b + (step ^ (0u - turned)) + turned) & wp_word_mask(bits);
        if (is_float) b = wp_in_order(b, bits);
        wp_store_word(out, bytes, i, b << shift);
    }
}

/* In 16 bits throughout, so that vectors hold as many elements as they can. */
static inline uint16_t in_order_2(uint16_t w) { return (uint16_t)(w ^ ((uint16_t)((int16_t)w >> 15) & 0x7fff)); }
static void apply_float_2(const uint8_t *base, const wp_differences *d, size_t m, uint8_t *out) {
    for (size_t i = 0; i < m; i++) {
        const uint16_t b = wp_load16(base + 2 * i), turned = (uint16_t)((int16_t)b >> 15);
        wp_store16(out + 2 * i, in_order_2((uint16_t)(in_order_2(b) + (uint16_t)((d->of_2[i] ^ turned) - turned))));
    }
}

/* out = base + d, in the order of the values. */
static void apply(const uint8_t *base, unsigned bytes, unsigned shift, int is_float, const wp_differences *d, size_t m, uint8_t *out) {
    /* Constants for the cases that matter. */
    if (bytes == 2 && is_float && shift == 0) apply_float_2(base, d, m, out);
    else if (bytes == 4 && is_float && shift == 0) apply_words(base, 4, 0, 1, d, m, out);
    else apply_words(base, bytes, shift, is_float, d, m, out);
}

/* ---- encoding ---- */

/* Differences as signs and magnitudes, of at most 2^(bits - 1). That of floats is negative if the element's magnitude is less. */
static inline void signed_magnitudes(const uint8_t *elems, const uint8_t *base, size_t m, unsigned bytes, unsigned shift, int is_float, uint32_t *magnitude,
                                     uint32_t *negative) {
    const unsigned bits = 8 * bytes - shift;
    for (size_t i = 0; i < m; i++) {
        uint32_t word = wp_load_word(elems, bytes, i) >> shift, b = wp_load_word(base, bytes, i) >> shift;
        const uint32_t turned = is_float ? b >> (bits - 1) : 0;
        if (is_float) {
            word = wp_in_order(word, bits);
            b = wp_in_order(b, bits);
        }
        const uint32_t d = (word - b) & wp_word_mask(bits), less = d >> (bits - 1) & 1;
        negative[i] = (less ^ turned) & (d != 0);
        magnitude[i] = ((d ^ (0u - less)) + less) & wp_word_mask(bits);
    }
}

/* The loops below, for constants of the cases that matter. */
#define WP_FOR_KIND(loop)                                         \
    if (bytes == 2 && is_float && shift == 0) loop(2, 0, 1);      \
    else if (bytes == 4 && is_float && shift == 0) loop(4, 0, 1); \
    else loop(bytes, shift, is_float)

static void difference_words(const uint8_t *elems, const uint8_t *base, size_t m, unsigned bytes, unsigned shift, int is_float, uint32_t *magnitude,
                             uint32_t *negative) {
#define LOOP(bytes, shift, is_float) signed_magnitudes(elems, base, m, bytes, shift, is_float, magnitude, negative)
    WP_FOR_KIND(LOOP);
#undef LOOP
}

/* The sum of magnitudes, each times 2^(its exponent - lowest). */
static uint64_t difference_size(const uint32_t *magnitude, const uint8_t *exponents, size_t m, unsigned lowest) {
    uint64_t sum = 0;
    for (size_t i = 0; i < m; i++) {
        const unsigned e = exponents[i], up = e > lowest ? e - lowest : 0, down = e < lowest ? lowest - e : 0;
        sum += ((uint64_t)magnitude[i] << up) >> (down < 31 ? down : 31);
    }
    return sum;
}

/* floor(log2(v)) of v > 0, as vectors can: the exponent of a float that can't be rounded up. */
static inline uint32_t highest_bit(uint32_t v) {
    const float f = (float)(v & ~(v >> 1));
    uint32_t word;
    memcpy(&word, &f, 4);
    return (word >> 23) - 127;
}

/* Classes of signed magnitudes (section 14.3), and their extra bits. */
static void difference_classes(const uint32_t *magnitude, const uint32_t *negative, size_t m, uint8_t *classes, uint8_t *n_extra, uint32_t *extra) {
    for (size_t i = 0; i < m; i++) {
        const uint32_t v = magnitude[i], k = highest_bit(v | 1), low = k - (k != 0);
        classes[i] = (uint8_t)(2 * k + (v >> low & 1));
        n_extra[i] = (uint8_t)(low + (v != 0));
        extra[i] = (v & ((1u << low) - 1)) << 1 | negative[i]; /* of no difference it is 0, in as many bits */
    }
}

#endif
