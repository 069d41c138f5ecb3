/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. These are the kernels in plain C: they run on every CPU and define what the SIMD files must reproduce byte for byte.
 * rANS (section 8.3): 128 lanes take turns, lane l codes symbols l, l + 128, ...; all lanes share one byte stream, read in lane order.
 * The encoder runs backwards, so what the decoder reads first is written last.
 */
#include "kernels.h"
#include "mem.h"

#include "crc32c_table.h"

static uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    /* Slicing by 8: table k advances a byte over k further zero bytes. */
    crc = ~crc;
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t a = wp_load32(p) ^ crc, b = wp_load32(p + 4);
        crc = wp_crc_table[7][a & 255] ^ wp_crc_table[6][a >> 8 & 255] ^ wp_crc_table[5][a >> 16 & 255] ^ wp_crc_table[4][a >> 24] ^
              wp_crc_table[3][b & 255] ^ wp_crc_table[2][b >> 8 & 255] ^ wp_crc_table[1][b >> 16 & 255] ^ wp_crc_table[0][b >> 24];
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
        c[0][v & 255]++; c[1][v >> 8 & 255]++; c[2][v >> 16 & 255]++; c[3][v >> 24 & 255]++;
        c[0][v >> 32 & 255]++; c[1][v >> 40 & 255]++; c[2][v >> 48 & 255]++; c[3][v >> 56]++;
    }
    for (; i < n; i++) c[0][symbols[i]]++;
    for (int s = 0; s < 256; s++) counts[s] = c[0][s] + c[1][s] + c[2][s] + c[3][s];
}

static wp_status rans_decode(wp_rans_decoder *d, uint8_t *out, size_t n_groups) {
    for (size_t g = 0; g < n_groups; g++, out += WP_BLOCK) {
        wp_rans_guard(d);
        const uint8_t *p = d->renorm, *q = d->literals;
        for (int l = 0; l < WP_BLOCK; l++) {
            uint32_t x = d->x[l], t = d->by_slot[x & 255];
            x = (t & 255) * (x >> 8) + (t >> 8 & 255);
            /* Branch-free: the byte is read always and used if the state fell below 256. */
            uint32_t low = x < 256;
            x = x << (low << 3) | (*p & -low);
            p += low;
            d->x[l] = (uint16_t)x;
            out[l] = (uint8_t)(t >> 16);
            if (t >> 24) out[l] = *q++;
        }
        d->renorm = p; d->literals = q;
        if ((d->renorm_in_tail && p > d->renorm_end) || (d->literals_in_tail && q > d->literals_end)) return WP_TRUNCATED;
    }
    return WP_OK;
}

static void rans_encode(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups) {
    for (size_t g = n_groups; g-- > 0;) {
        const uint8_t *s = symbols + g * WP_BLOCK;
        for (int l = WP_BLOCK - 1; l >= 0; l--) {
            unsigned r = e->rank_of_symbol[s[l]];
            if (r == e->n_symbols) *--e->literals = s[l];
            uint32_t x = e->x[l], f = e->freq[r];
            if (x >= f << 8) { *--e->renorm = (uint8_t)x; x >>= 8; }
            /* x < 65536 and reciprocal = ceil(65536 / f): the product is x div f or one more. f = 1 has its own line, since 65536 needs 17 bits. */
            uint32_t q = f == 1 ? x : x * e->reciprocal[r] >> 16;
            uint32_t rem = x - q * f;
            if (rem > x) { q--; rem += f; }
            e->x[l] = (uint16_t)((q << 8) + rem + e->start[r]);
        }
    }
}

/* ---- planes ---- */

static uint64_t load_elem(const uint8_t *p, unsigned bytes) {
    return bytes == 1 ? *p : bytes == 2 ? wp_load16(p) : bytes == 4 ? wp_load32(p) : wp_load64(p);
}
static void store_elem(uint8_t *p, unsigned bytes, uint64_t v) {
    if (bytes == 1) *p = (uint8_t)v;
    else if (bytes == 2) wp_store16(p, (uint16_t)v);
    else if (bytes == 4) wp_store32(p, (uint32_t)v);
    else wp_store64(p, v);
}

/* One float layout: `man` mantissa bits below `exp` exponent bits below the sign. Inlined with constants, so that each use is specialised. */
static inline void merge_float(unsigned bytes, unsigned exp, unsigned man, const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks,
                               uint8_t *elems) {
    const unsigned r = man + 1, n_bytes = r / 8, n_bits = r % 8;
    uint64_t raw[WP_BLOCK];
    for (size_t b = 0; b < n_blocks; b++) {
        for (int i = 0; i < WP_BLOCK; i++) raw[i] = 0;
        for (unsigned k = 0; k < n_bytes; k++, bits += WP_BLOCK)
            for (int i = 0; i < WP_BLOCK; i++) raw[i] = raw[i] << 8 | bits[i];
        for (unsigned k = 0; k < n_bits; k++, bits += WP_BLOCK / 8)
            for (int i = 0; i < WP_BLOCK; i++) raw[i] = raw[i] << 1 | (bits[i / 8] >> (i % 8) & 1);
        for (int i = 0; i < WP_BLOCK; i++) {
            size_t k = b * WP_BLOCK + (size_t)i;
            uint64_t e = planes[0][k];
            if (exp > 8) e |= (uint64_t)planes[1][k] << 8;
            store_elem(elems + k * bytes, bytes, raw[i] >> man << (man + exp) | e << man | (raw[i] & (((uint64_t)1 << man) - 1)));
        }
    }
}

static inline void split_float(unsigned bytes, unsigned exp, unsigned man, const uint8_t *elems, size_t n_blocks, uint8_t *const *planes,
                               uint8_t *widths, uint8_t *bits) {
    const unsigned r = man + 1, n_bytes = r / 8, n_bits = r % 8;
    uint64_t raw[WP_BLOCK];
    for (size_t b = 0; b < n_blocks; b++) {
        uint64_t any = 0;
        for (int i = 0; i < WP_BLOCK; i++) {
            size_t k = b * WP_BLOCK + (size_t)i;
            uint64_t v = load_elem(elems + k * bytes, bytes), e = v >> man & (((uint64_t)1 << exp) - 1);
            planes[0][k] = (uint8_t)e;
            if (exp > 8) planes[1][k] = (uint8_t)(e >> 8);
            raw[i] = v >> (man + exp) << man | (v & (((uint64_t)1 << man) - 1));
            any |= raw[i];
        }
        unsigned zeros = 0;
        while (zeros < r && !(any >> zeros & 1)) zeros++;
        widths[b] = (uint8_t)(r - zeros);
        for (unsigned k = 0; k < n_bytes; k++, bits += WP_BLOCK)
            for (int i = 0; i < WP_BLOCK; i++) bits[i] = (uint8_t)(raw[i] >> (r - 8 * (k + 1)));
        for (unsigned k = 0; k < n_bits; k++, bits += WP_BLOCK / 8)
            for (int i = 0; i < WP_BLOCK; i += 8) {
                unsigned v = 0;
                for (int j = 0; j < 8; j++) v |= (unsigned)(raw[i + j] >> (n_bits - 1 - k) & 1) << j;
                bits[i / 8] = (uint8_t)v;
            }
    }
}

#define FLOAT_LAYOUT(name, bytes, exp, man)                                                                                               \
    static void merge_##name(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {                        \
        merge_float(bytes, exp, man, planes, bits, n_blocks, elems);                                                                      \
    }                                                                                                                                     \
    static void split_##name(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {             \
        split_float(bytes, exp, man, elems, n_blocks, planes, widths, bits);                                                              \
    }
FLOAT_LAYOUT(bf16, 2, 8, 7)
FLOAT_LAYOUT(f16, 2, 5, 10)
FLOAT_LAYOUT(f32, 4, 8, 23)
FLOAT_LAYOUT(f64, 8, 11, 52)
FLOAT_LAYOUT(f8_e4m3, 1, 4, 3)
FLOAT_LAYOUT(f8_e5m2, 1, 5, 2)

#define BYTES_LAYOUT(n)                                                                                                                   \
    static void merge_bytes##n(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {                      \
        (void)bits;                                                                                                                       \
        for (size_t i = 0; i < n_blocks * WP_BLOCK; i++)                                                                                  \
            for (unsigned p = 0; p < n; p++) elems[i * n + p] = planes[p][i];                                                             \
    }                                                                                                                                     \
    static void split_bytes##n(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {           \
        (void)widths; (void)bits;                                                                                                         \
        for (size_t i = 0; i < n_blocks * WP_BLOCK; i++)                                                                                  \
            for (unsigned p = 0; p < n; p++) planes[p][i] = elems[i * n + p];                                                             \
    }
BYTES_LAYOUT(1)
BYTES_LAYOUT(2)
BYTES_LAYOUT(4)
BYTES_LAYOUT(8)

const wp_kernels wp_kernels_scalar = {
    crc32c, histogram, rans_decode, rans_encode,
    {NULL, merge_bytes1, merge_bytes2, merge_bytes4, merge_bytes8, merge_bf16, merge_f16, merge_f32, merge_f64, merge_f8_e4m3, merge_f8_e5m2},
    {NULL, split_bytes1, split_bytes2, split_bytes4, split_bytes8, split_bf16, split_f16, split_f32, split_f64, split_f8_e4m3, split_f8_e5m2},
};
