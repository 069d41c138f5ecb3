/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. These are the kernels in plain C: they run on every CPU and define what the SIMD files must reproduce byte for byte.
 * rANS (section 8.3): 128 lanes take turns, lane l codes symbols l, l + 128, ...; all lanes share one byte stream, read in lane order.
 * The encoder runs backwards, so what the decoder reads first is written last.
 */
#include "kernels.h"
#include "mem.h"

#include "crc32c_table.h"
#include "difference_kernels.h"

static uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    /* Slicing by 16: table k advances a byte over k further zero bytes. */
    crc = ~crc;
    for (; n >= 16; n -= 16, p += 16) {
        uint64_t a = wp_load64(p) ^ crc, b = wp_load64(p + 8);
        crc = 0;
        for (int k = 0; k < 8; k++) crc ^= wp_crc_table[15 - k][a >> 8 * k & 255] ^ wp_crc_table[7 - k][b >> 8 * k & 255];
    }
    for (; n; n--, p++) crc = crc >> 8 ^ wp_crc_table[0][(crc ^ *p) & 255];
    return ~crc;
}

static void histogram(const uint8_t *symbols, size_t n, uint32_t counts[256]) {
    /* Four tables, so that a run of one symbol does not wait for its own last store. */
    uint32_t c[4][256] = {{0}};
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t v = wp_load64(symbols + i);
        c[0][v & 255]++;
        c[1][v >> 8 & 255]++;
        c[2][v >> 16 & 255]++;
        c[3][v >> 24 & 255]++;
        c[0][v >> 32 & 255]++;
        c[1][v >> 40 & 255]++;
        c[2][v >> 48 & 255]++;
        c[3][v >> 56]++;
    }
    for (; i < n; i++) c[0][symbols[i]]++;
    for (int s = 0; s < 256; s++) counts[s] = c[0][s] + c[1][s] + c[2][s] + c[3][s];
}

static wp_status rans_decode(wp_rans_decoder *d, uint8_t *out, size_t n_groups) {
    /* `restrict` and a copy, because a store of a symbol could otherwise change the decoder for all the compiler knows. */
    const uint32_t *const restrict by_slot = d->table->by_slot;
    uint16_t x[WP_BLOCK];
    uint8_t escapes[WP_BLOCK];
    memcpy(x, d->x, sizeof x);
    for (size_t g = 0; g < n_groups; g++, out += WP_BLOCK) {
        wp_rans_guard(d);
        const uint8_t *p = d->renorm, *q = d->literals;
        uint32_t any = 0;
        for (int l = 0; l < WP_BLOCK; l++) {
            uint32_t state = x[l], t = by_slot[state & 255];
            state = (t & 255) * (state >> 8) + (t >> 8 & 255);
            /* Branch-free: the byte is read always and used if the state fell below 256. */
            uint32_t low = state < 256;
            x[l] = (uint16_t)(state << (low << 3) | (*p & -low));
            p += low;
            out[l] = (uint8_t)(t >> 16);
            escapes[l] = (uint8_t)(t >> 24);
            any |= t;
        }
        if (any >> 24)
            for (int l = 0; l < WP_BLOCK; l++)
                if (escapes[l]) out[l] = *q++;
        d->renorm = p;
        d->literals = q;
        if ((d->renorm_in_tail && p > d->renorm_end) || (d->literals_in_tail && q > d->literals_end)) return WP_TRUNCATED;
    }
    memcpy(d->x, x, sizeof x);
    return WP_OK;
}

wp_status wp_conditional_encode_scalar(wp_conditional_encoder *e, const uint8_t *cells, const uint8_t *symbols, size_t n) {
    uint8_t *renorm = e->renorm, *literals = e->literals;
    for (size_t i = n; i-- > 0;) {
        const uint32_t entry = e->entry[e->map[cells[i]] * WP_N_CLASSES + symbols[i]], f = entry & 255;
        if (entry >> 16) {
            if (!f) return WP_ARGUMENT;
            *--literals = symbols[i];
        }
        /* Branch-free: the byte is written always and counts if the state is full. */
        uint32_t state = e->x[i];
        const uint32_t full = state >= f << 8;
        renorm[-1] = (uint8_t)state;
        renorm -= full;
        state >>= full << 3;
        e->x[i] = (uint16_t)((state / f << 8) + state % f + (entry >> 8 & 255));
    }
    e->renorm = renorm;
    e->literals = literals;
    return WP_OK;
}

wp_status wp_conditional_decode_scalar(wp_rans_decoder *d, const wp_conditional_tables *tables, const uint8_t row[16], uint8_t base_exponent,
                                       const uint8_t *exponents, uint8_t *out) {
    const wp_rans_table *const restrict of_book = d->tables;
    uint16_t x[WP_BLOCK];
    (void)tables;
    wp_rans_guard(d);
    memcpy(x, d->x, sizeof x);
    const uint8_t *p = d->renorm, *q = d->literals;
    uint8_t escapes[WP_BLOCK], books[WP_BLOCK];
    uint32_t any = 0;
    for (int l = 0; l < WP_BLOCK; l++) books[l] = row[wp_context_of(exponents[l], base_exponent)];
    for (int l = 0; l < WP_BLOCK; l++) {
        uint32_t state = x[l], t = of_book[books[l]].by_slot[state & 255];
        state = (t & 255) * (state >> 8) + (t >> 8 & 255);
        uint32_t low = state < 256;
        x[l] = (uint16_t)(state << (low << 3) | (*p & -low));
        p += low;
        out[l] = (uint8_t)(t >> 16);
        escapes[l] = (uint8_t)(t >> 24);
        any |= t;
    }
    if (any >> 24)
        for (int l = 0; l < WP_BLOCK; l++)
            if (escapes[l]) out[l] = *q++;
    memcpy(d->x, x, sizeof x);
    d->renorm = p;
    d->literals = q;
    return (d->renorm_in_tail && p > d->renorm_end) || (d->literals_in_tail && q > d->literals_end) ? WP_TRUNCATED : WP_OK;
}

static void rans_encode(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups) {
    const wp_rans_encoder_table *const t = e->table;
    uint16_t x[WP_BLOCK];
    uint8_t *renorm = e->renorm, *literals = e->literals;
    memcpy(x, e->x, sizeof x);
    for (size_t g = n_groups; g-- > 0;) {
        const uint8_t *s = symbols + g * WP_BLOCK;
        for (int l = WP_BLOCK - 1; l >= 0; l--) {
            unsigned r = t->rank_of_symbol[s[l]];
            if (r == t->n_symbols) *--literals = s[l];
            /* Branch-free: the byte is written always and counts if the state is full. */
            uint32_t state = x[l], f = t->freq[r], full = state >= f << 8;
            renorm[-1] = (uint8_t)state;
            renorm -= full;
            state >>= full << 3;
            /* state < 65536 and reciprocal = ceil(65536 / f): the product is state div f or one more. f = 1 has its own line, since 65536 needs 17 bits. */
            uint32_t q = f == 1 ? state : state * t->reciprocal[r] >> 16;
            uint32_t over = q * f > state;
            q -= over;
            x[l] = (uint16_t)((q << 8) + (state - q * f) + t->start[r]);
        }
    }
    memcpy(e->x, x, sizeof x);
    e->renorm = renorm;
    e->literals = literals;
}

static wp_status context_decode(wp_context_decoder *d, const uint8_t *next, uint8_t *out, size_t n_groups) {
    uint16_t x[WP_BLOCK];
    memcpy(x, d->x, sizeof x);
    for (size_t g = 0; g < n_groups; g++, next += WP_BLOCK, out += WP_BLOCK) {
        wp_context_guard(d);
        const uint8_t *p = d->renorm;
        for (int l = 0; l < WP_BLOCK; l++) {
            unsigned c = wp_context_of(next[l], d->base), slot = x[l] & 255u;
            unsigned one = d->start[0][c], two = d->start[1][c], three = d->start[2][c];
            unsigned s = (slot >= one) + (slot >= two) + (slot >= three);
            unsigned start = s == 0 ? 0 : s == 1 ? one : s == 2 ? two : three, end = s == 0 ? one : s == 1 ? two : s == 2 ? three : 256;
            uint32_t state = (end - start) * (x[l] >> 8) + slot - start, low = state < 256;
            x[l] = (uint16_t)(state << (low << 3) | (*p & -low));
            p += low;
            out[l] = (uint8_t)s;
        }
        d->renorm = p;
        if (d->renorm_in_tail && p > d->renorm_end) return WP_TRUNCATED;
    }
    memcpy(d->x, x, sizeof x);
    return WP_OK;
}

static void context_encode(wp_context_encoder *e, const uint8_t *next, const uint8_t *symbols, size_t n_groups) {
    uint16_t x[WP_BLOCK];
    uint8_t *renorm = e->renorm;
    memcpy(x, e->x, sizeof x);
    for (size_t g = n_groups; g-- > 0;)
        for (int l = WP_BLOCK - 1; l >= 0; l--) {
            const size_t i = g * WP_BLOCK + (size_t)l;
            const unsigned t = wp_context_of(next[i], e->base) * WP_CONTEXT_SYMBOLS + symbols[i];
            uint32_t state = x[l], f = e->freq[t], full = state >= f << 8;
            renorm[-1] = (uint8_t)state;
            renorm -= full;
            state >>= full << 3;
            x[l] = (uint16_t)((state / f << 8) + state % f + e->start[t]);
        }
    memcpy(e->x, x, sizeof x);
    e->renorm = renorm;
}

/* ---- planes ---- */

/* One float layout: `man` raw mantissa bits below `exp` bits of symbols below the sign. If those have two planes, the first has the `low` lowest of them (0:
 * there is one plane). `word` holds an element, and is no wider than it need be, so that compilers make vectors of the loops. */
#define FLOAT_LAYOUT(name, bytes, low, exp, man, word)                                                                        \
    static void merge_##name(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {            \
        enum { R = man + 1, N_BYTES = R / 8, N_BITS = R % 8 };                                                                \
        word raw[WP_BLOCK], out[WP_BLOCK];                                                                                    \
        for (size_t b = 0; b < n_blocks; b++, elems += WP_BLOCK * bytes) {                                                    \
            const uint8_t *e0 = planes[0] + b * WP_BLOCK, *e1 = low ? planes[1] + b * WP_BLOCK : e0;                          \
            memset(raw, 0, sizeof raw);                                                                                       \
            for (int k = 0; k < N_BYTES; k++, bits += WP_BLOCK)                                                               \
                for (int i = 0; i < WP_BLOCK; i++) raw[i] = (word)(k ? raw[i] << (k ? 8 : 0) | bits[i] : bits[i]);            \
            for (int k = 0; k < N_BITS; k++, bits += WP_BLOCK / 8)                                                            \
                for (int i = 0; i < WP_BLOCK; i++) raw[i] = (word)(raw[i] << 1 | (bits[i / 8] >> (i % 8) & 1));               \
            for (int i = 0; i < WP_BLOCK; i++) {                                                                              \
                word e = low ? (word)((e0[i] & ((1u << low) - 1)) | (word)((word)e1[i] << low)) : e0[i];                      \
                out[i] = (word)((raw[i] >> man) << (man + exp) | e << man | (raw[i] & (((word)1 << man) - 1)));               \
            }                                                                                                                 \
            memcpy(elems, out, sizeof out); /* little-endian, as mem.h demands */                                             \
        }                                                                                                                     \
    }                                                                                                                         \
    static void split_##name(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) { \
        enum { R = man + 1, N_BYTES = R / 8, N_BITS = R % 8 };                                                                \
        word in[WP_BLOCK], raw[WP_BLOCK];                                                                                     \
        for (size_t b = 0; b < n_blocks; b++, elems += WP_BLOCK * bytes) {                                                    \
            uint8_t *e0 = planes[0] + b * WP_BLOCK, *e1 = low ? planes[1] + b * WP_BLOCK : e0;                                \
            word any = 0;                                                                                                     \
            memcpy(in, elems, sizeof in);                                                                                     \
            for (int i = 0; i < WP_BLOCK; i++) {                                                                              \
                word e = (word)(in[i] >> man & (((word)1 << exp) - 1));                                                       \
                e0[i] = (uint8_t)(low ? e & (((word)1 << low) - 1) : e);                                                      \
                if (low) e1[i] = (uint8_t)(e >> low);                                                                         \
                raw[i] = (word)((in[i] >> (man + exp)) << man | (in[i] & (((word)1 << man) - 1)));                            \
                any |= raw[i];                                                                                                \
            }                                                                                                                 \
            unsigned zeros = 0;                                                                                               \
            while (zeros < R && !(any >> zeros & 1)) zeros++;                                                                 \
            widths[b] = (uint8_t)(R - zeros);                                                                                 \
            for (int k = 0; k < N_BYTES; k++, bits += WP_BLOCK)                                                               \
                for (int i = 0; i < WP_BLOCK; i++) bits[i] = (uint8_t)(raw[i] >> (R - 8 * (k + 1)));                          \
            for (int k = 0; k < N_BITS; k++, bits += WP_BLOCK / 8)                                                            \
                for (int i = 0; i < WP_BLOCK; i += 8) {                                                                       \
                    unsigned v = 0;                                                                                           \
                    for (int j = 0; j < 8; j++) v |= (unsigned)(raw[i + j] >> (N_BITS - 1 - k) & 1) << j;                     \
                    bits[i / 8] = (uint8_t)v;                                                                                 \
                }                                                                                                             \
        }                                                                                                                     \
    }
FLOAT_LAYOUT(bf16, 2, 0, 8, 7, uint16_t)
FLOAT_LAYOUT(f16, 2, 0, 5, 10, uint16_t)
FLOAT_LAYOUT(f32, 4, 0, 8, 23, uint32_t)
FLOAT_LAYOUT(f64, 8, 8, 11, 52, uint64_t)
FLOAT_LAYOUT(f8_e4m3, 1, 0, 4, 3, uint8_t)
FLOAT_LAYOUT(f8_e5m2, 1, 0, 5, 2, uint8_t)
FLOAT_LAYOUT(bf16_lead, 2, 2, 10, 5, uint16_t)
FLOAT_LAYOUT(f16_lead, 2, 2, 7, 8, uint16_t)
FLOAT_LAYOUT(f32_lead, 4, 2, 10, 21, uint32_t)
FLOAT_LAYOUT(f8_e4m3_lead, 1, 2, 6, 1, uint8_t)
FLOAT_LAYOUT(f8_e5m2_lead, 1, 2, 7, 0, uint8_t)

#define BYTES_LAYOUT(n)                                                                                                         \
    static void merge_bytes##n(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {            \
        (void)bits;                                                                                                             \
        for (size_t i = 0; i < n_blocks * WP_BLOCK; i++)                                                                        \
            for (unsigned p = 0; p < n; p++) elems[i * n + p] = planes[p][i];                                                   \
    }                                                                                                                           \
    static void split_bytes##n(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) { \
        (void)widths;                                                                                                           \
        (void)bits;                                                                                                             \
        for (size_t i = 0; i < n_blocks * WP_BLOCK; i++)                                                                        \
            for (unsigned p = 0; p < n; p++) planes[p][i] = elems[i * n + p];                                                   \
    }
BYTES_LAYOUT(1)
BYTES_LAYOUT(2)
BYTES_LAYOUT(4)
BYTES_LAYOUT(8)

/* ---- one float, for dot_kernels.h ---- */

typedef float F;
enum { F_LANES = 1 };
#define f_bf16 wp_bf16_at
#define f_f16 wp_f16_at
#define f_f32 wp_f32_at
static inline F f_zero(void) { return 0; }
static inline F f_add(F a, F b) { return a + b; }
static inline F f_fma(F a, F b, F c) { return a * b + c; }
static inline float f_sum(F v) { return v; }

#include "dot_kernels.h"

const wp_kernels wp_kernels_scalar = {
    .crc32c = crc32c,
    .histogram = histogram,
    .rans_decode = rans_decode,
    .rans_encode = rans_encode,
    .context_decode = context_decode,
    .context_encode = context_encode,
    .conditional_decode = wp_conditional_decode_scalar,
    .conditional_encode = wp_conditional_encode_scalar,
    .exponents = exponents,
    .differences = differences,
    .apply = apply,
    .difference_words = difference_words,
    .difference_size = difference_size,
    .difference_classes = difference_classes,
    .dot = WP_DOTS,
    .merge = WP_BY_LAYOUT(merge),
    .split = WP_BY_LAYOUT(split),
};
