/* SPDX-License-Identifier: Apache-2.0 */
/* Byte shuffles that move bytes between a stream and those of 8 lanes that a mask of 8 bits selects. Included by the SIMD files whose vectors have no such
 * instruction. */
#ifndef WP_LANES8_H
#define WP_LANES8_H

#include <stdint.h>

#define BIT(m, l) ((uint64_t)((m) >> (l) & 1))
#define ONES(m) (BIT(m, 0) + BIT(m, 1) + BIT(m, 2) + BIT(m, 3) + BIT(m, 4) + BIT(m, 5) + BIT(m, 6) + BIT(m, 7))
#define ALL_LANES(f, m) (f(m, 0) | f(m, 1) | f(m, 2) | f(m, 3) | f(m, 4) | f(m, 5) | f(m, 6) | f(m, 7))
#define ROW4(f, m) ALL_LANES(f, m), ALL_LANES(f, (m) + 1), ALL_LANES(f, (m) + 2), ALL_LANES(f, (m) + 3)
#define ROW16(f, m) ROW4(f, m), ROW4(f, (m) + 4), ROW4(f, (m) + 8), ROW4(f, (m) + 12)
#define ROW64(f, m) ROW16(f, m), ROW16(f, (m) + 16), ROW16(f, (m) + 32), ROW16(f, (m) + 48)
#define MASKS(f) ROW64(f, 0u), ROW64(f, 64u), ROW64(f, 128u), ROW64(f, 192u)

/* A byte shuffle: the k-th byte goes to the k-th lane of the mask, other lanes get zero. */
#define EXPAND(m, l) ((BIT(m, l) ? ONES((m) & ((1u << (l)) - 1)) : 0x80) << 8 * (l))
static const uint64_t wp_expand8[256] = {MASKS(EXPAND)};
/* The reverse, flush with the end: the last lane of the mask goes to byte 7, the one before it to byte 6, and so on. */
#define COMPRESS(m, l) (BIT(m, l) ? (uint64_t)(l) << 8 * (8 - ONES((m) >> (l))) : 0)
static const uint64_t wp_compress8[256] = {MASKS(COMPRESS)};

#endif
