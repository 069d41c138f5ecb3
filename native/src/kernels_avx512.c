/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. AVX-512 with VBMI, VBMI2 and VPCLMULQDQ.
 * rANS: the 128 16-bit states are four registers; registers 2h and 2h + 1 are half h of a group. Their low bytes (the slots) are packed into one
 * register, even bytes from the first, odd bytes from the second, and 64 ranks come out of four 64-byte tables at once; rank -> frequency,
 * start and symbol are 16-entry shuffles. Renormalisation reads up to 32 bytes and expands them into the lanes that fell below 256.
 * Over-read: at most 32 bytes behind the 128 that a group may use, inside WP_OVERREAD. Nothing is written outside the outputs.
 */
#include "kernels_scalar.h"
#include "mem.h"

#ifdef WP_X86_64
#include <immintrin.h>

/* One set of compiler flags serves all files: what this file may use is said here. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,vpclmulqdq,pclmul,sse4.2,avx2,bmi,bmi2,popcnt"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,vpclmulqdq,pclmul,sse4.2,avx2,bmi,bmi2,popcnt")
#endif

static inline __m512i load(const void *p) { return _mm512_loadu_si512(p); }
static inline void store(void *p, __m512i v) { _mm512_storeu_si512(p, v); }
static inline __m512i table16(const uint8_t *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)); }
/* 256-entry byte look-up. */
static inline __m512i lookup256(const __m512i t[4], __m512i i) {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(i), _mm512_permutex2var_epi8(t[0], i, t[1]), _mm512_permutex2var_epi8(t[2], i, t[3]));
}

/* ---- CRC-32C: fold 256 bytes by carry-less multiplication, then let the crc32 instruction finish (Gopal et al., Intel, 2009) ---- */

/* Bit-reflected x^(T + 32) and x^(T - 32) mod P, shifted left by one, for a fold over T bits. */
#define FOLD_2048 _mm512_set4_epi32(0, (int)0xb9e02b86, 0, (int)0xdcb17aa4)
#define FOLD_512 _mm512_set4_epi32(0, (int)0x9e4addf8, 0, 0x740eef02)

static inline __m512i fold(__m512i x, __m512i k, __m512i next) {
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, k, 0x00), _mm512_clmulepi64_epi128(x, k, 0x11), next, 0x96);
}

static uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t c = ~crc;
    if (n >= 256) {
        const __m512i k = FOLD_2048, k1 = FOLD_512;
        __m512i a = _mm512_xor_si512(load(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)(uint32_t)c)));
        __m512i b = load(p + 64), d = load(p + 128), e = load(p + 192);
        for (p += 256, n -= 256; n >= 256; p += 256, n -= 256) {
            a = fold(a, k, load(p)); b = fold(b, k, load(p + 64)); d = fold(d, k, load(p + 128)); e = fold(e, k, load(p + 192));
        }
        a = fold(fold(fold(a, k1, b), k1, d), k1, e);
        for (; n >= 64; p += 64, n -= 64) a = fold(a, k1, load(p));
        uint8_t rest[64];
        store(rest, a);
        c = 0;
        for (int i = 0; i < 64; i += 8) c = _mm_crc32_u64(c, wp_load64(rest + i));
    }
    for (; n >= 8; p += 8, n -= 8) c = _mm_crc32_u64(c, wp_load64(p));
    for (; n; p++, n--) c = _mm_crc32_u8((uint32_t)c, *p);
    return ~(uint32_t)c;
}

/* ---- rANS ---- */

/* Lanes that fell below 256 take the next bytes, in lane order. */
static inline __m512i renorm(__m512i x, const uint8_t **p) {
    __mmask32 low = _mm512_cmplt_epu16_mask(x, _mm512_set1_epi16(256));
    __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)*p));
    *p += _mm_popcnt_u32(low);
    return _mm512_or_si512(_mm512_mask_slli_epi16(x, low, x, 8), _mm512_maskz_expand_epi16(low, bytes));
}

static wp_status rans_decode(wp_rans_decoder *d, uint8_t *out, size_t n_groups) {
    const __m512i ranks[4] = {load(d->rank_of_slot), load(d->rank_of_slot + 64), load(d->rank_of_slot + 128), load(d->rank_of_slot + 192)};
    const __m512i freqs = table16(d->freq), starts = table16(d->start), symbols = table16(d->symbol);
    const __m512i escape = _mm512_set1_epi8((char)d->n_symbols), low_bytes = _mm512_set1_epi16(255);
    /* Even bytes first, then odd ones: back to lane order. */
    uint8_t order[64];
    for (int i = 0; i < 64; i++) order[i] = (uint8_t)(i < 32 ? 2 * i : 2 * i - 63);
    const __m512i natural = load(order);
    __m512i x[4] = {load(d->x), load(d->x + 32), load(d->x + 64), load(d->x + 96)};
    wp_rans_guard(d);
    const uint8_t *p = d->renorm, *q = d->literals;
    for (size_t g = 0; g < n_groups; g++, out += WP_BLOCK) {
        if ((!d->renorm_in_tail && d->renorm_end - p < WP_TAIL) || (!d->literals_in_tail && d->literals_end - q < WP_TAIL)) {
            d->renorm = p; d->literals = q;
            wp_rans_guard(d);
            p = d->renorm; q = d->literals;
        }
#if defined(__GNUC__)
#pragma GCC unroll 2
#endif
        for (int h = 0; h < 2; h++) {
            __m512i x0 = x[2 * h], x1 = x[2 * h + 1];
            __m512i slot = _mm512_ternarylogic_epi32(low_bytes, x0, _mm512_slli_epi16(x1, 8), 0xCA);
            __m512i rank = lookup256(ranks, slot);
            __m512i f = _mm512_shuffle_epi8(freqs, rank), s = _mm512_shuffle_epi8(symbols, rank);
            __m512i bias = _mm512_sub_epi8(slot, _mm512_shuffle_epi8(starts, rank));
            x0 = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(x0, 8), _mm512_and_si512(f, low_bytes)), _mm512_and_si512(bias, low_bytes));
            x1 = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(x1, 8), _mm512_srli_epi16(f, 8)), _mm512_srli_epi16(bias, 8));
            x[2 * h] = renorm(x0, &p);
            x[2 * h + 1] = renorm(x1, &p);
            s = _mm512_permutexvar_epi8(natural, s);
            uint64_t escaped = _mm512_cmpeq_epi8_mask(rank, escape);
            if (escaped) {
                escaped = _pext_u64(escaped, 0x5555555555555555u) | _pext_u64(escaped, 0xAAAAAAAAAAAAAAAAu) << 32;
                s = _mm512_mask_expand_epi8(s, escaped, load(q));
                q += _mm_popcnt_u64(escaped);
            }
            store(out + 64 * h, s);
        }
        if ((d->renorm_in_tail && p > d->renorm_end) || (d->literals_in_tail && q > d->literals_end)) return WP_TRUNCATED;
    }
    d->renorm = p; d->literals = q;
    for (int i = 0; i < 4; i++) store(d->x + 32 * i, x[i]);
    return WP_OK;
}

static void rans_encode(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups) {
    const __m512i ranks[4] = {load(e->rank_of_symbol), load(e->rank_of_symbol + 64), load(e->rank_of_symbol + 128), load(e->rank_of_symbol + 192)};
    uint16_t padded[3][32] = {{0}};
    memcpy(padded[0], e->freq, sizeof e->freq);
    memcpy(padded[1], e->start, sizeof e->start);
    memcpy(padded[2], e->reciprocal, sizeof e->reciprocal);
    const __m512i freqs = load(padded[0]), starts = load(padded[1]), reciprocals = load(padded[2]);
    const __m512i escape = _mm512_set1_epi8((char)e->n_symbols), low_bytes = _mm512_set1_epi16(255), one = _mm512_set1_epi16(1);
    __m512i x[4] = {load(e->x), load(e->x + 32), load(e->x + 64), load(e->x + 96)};
    uint8_t *p = e->renorm, *q = e->literals;
    uint8_t rank_bytes[WP_BLOCK];
    for (size_t g = n_groups; g-- > 0;) {
        for (int h = 1; h >= 0; h--) {
            __m512i s = load(symbols + g * WP_BLOCK + 64 * h), rank = lookup256(ranks, s);
            store(rank_bytes + 64 * h, rank);
            uint64_t escaped = _mm512_cmpeq_epi8_mask(rank, escape);
            if (escaped) {
                unsigned k = (unsigned)_mm_popcnt_u64(escaped);
                q -= k;
                _mm512_mask_storeu_epi8(q, k == 64 ? ~(__mmask64)0 : ((__mmask64)1 << k) - 1, _mm512_maskz_compress_epi8(escaped, s));
            }
        }
#if defined(__GNUC__)
#pragma GCC unroll 4
#endif
        for (int i = 3; i >= 0; i--) {
            __m512i rank = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(rank_bytes + 32 * i)));
            __m512i f = _mm512_permutexvar_epi16(rank, freqs), start = _mm512_permutexvar_epi16(rank, starts);
            __m512i v = x[i];
            __mmask32 over = _mm512_cmpge_epu16_mask(_mm512_srli_epi16(v, 8), f); /* v >= f << 8 */
            __m512i bytes = _mm512_maskz_compress_epi16(over, _mm512_and_si512(v, low_bytes));
            unsigned k = (unsigned)_mm_popcnt_u32(over);
            p -= k;
            _mm256_mask_storeu_epi8(p, (__mmask32)(((uint64_t)1 << k) - 1), _mm512_cvtepi16_epi8(bytes));
            v = _mm512_mask_srli_epi16(v, over, v, 8);
            /* As in kernels_scalar.c: the product's high half is v div f, or one more. */
            __m512i quotient = _mm512_mulhi_epu16(v, _mm512_permutexvar_epi16(rank, reciprocals));
            quotient = _mm512_mask_mov_epi16(quotient, _mm512_cmpeq_epi16_mask(f, one), v);
            __m512i rest = _mm512_sub_epi16(v, _mm512_mullo_epi16(quotient, f));
            __mmask32 too_big = _mm512_cmpgt_epu16_mask(rest, v);
            quotient = _mm512_mask_sub_epi16(quotient, too_big, quotient, one);
            rest = _mm512_mask_add_epi16(rest, too_big, rest, f);
            x[i] = _mm512_add_epi16(_mm512_add_epi16(_mm512_slli_epi16(quotient, 8), rest), start);
        }
    }
    e->renorm = p; e->literals = q;
    for (int i = 0; i < 4; i++) store(e->x + 32 * i, x[i]);
}

/* ---- planes ---- */

static inline __m512i widen(const uint8_t *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
static inline void narrow(uint8_t *p, __m512i words) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi16_epi8(words)); }

/* Width of a block from the OR of its raw words. */
static inline uint8_t width_of(uint32_t any, unsigned r) { return (uint8_t)(any ? r - (unsigned)_tzcnt_u32(any) : 0); }
static inline uint32_t or_words(__m512i v) { uint32_t x = (uint32_t)_mm512_reduce_or_epi32(v); return (x | x >> 16) & 0xffff; }
static inline uint32_t or_bytes(__m512i v) { uint32_t x = or_words(v); return (x | x >> 8) & 0xff; }

static void merge_bf16(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {
    const uint8_t *exponents = planes[0];
    const __m512i sign = _mm512_set1_epi16((short)0x8000), mantissa = _mm512_set1_epi16(0x7f);
    for (size_t i = 0; i < n_blocks * WP_BLOCK; i += 32) {
        __m512i e = widen(exponents + i), a = widen(bits + i);
        /* (a << 8 & sign) | (a & mantissa) | e << 7 */
        __m512i rest = _mm512_or_si512(_mm512_slli_epi16(e, 7), _mm512_and_si512(a, mantissa));
        store(elems + 2 * i, _mm512_ternarylogic_epi32(_mm512_slli_epi16(a, 8), sign, rest, 0xEA));
    }
}

static void split_bf16(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {
    const __m512i low7 = _mm512_set1_epi16(0x7f), bit7 = _mm512_set1_epi16(0x80);
    for (size_t b = 0; b < n_blocks; b++) {
        __m512i any = _mm512_setzero_si512();
        for (size_t i = b * WP_BLOCK; i < (b + 1) * WP_BLOCK; i += 32) {
            __m512i v = load(elems + 2 * i), a = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v, 8), bit7, _mm512_and_si512(v, low7), 0xEA);
            any = _mm512_or_si512(any, a);
            narrow(planes[0] + i, _mm512_srli_epi16(v, 7)); /* truncates to the low byte */
            narrow(bits + i, a);
        }
        widths[b] = width_of(or_words(any), 8);
    }
}

static void merge_f16(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {
    const __m512i sign = _mm512_set1_epi16((short)0x8000), high = _mm512_set1_epi16(0x3f8);
    for (size_t b = 0; b < n_blocks; b++, bits += 176)
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            __m512i e = widen(planes[0] + b * WP_BLOCK + i), a = widen(bits + i);
            __m512i v = _mm512_or_si512(_mm512_slli_epi16(e, 10), _mm512_and_si512(_mm512_slli_epi16(a, 3), high));
            v = _mm512_ternarylogic_epi32(_mm512_slli_epi16(a, 8), sign, v, 0xEA);
            /* The three bit planes hold bits 2, 1 and 0; bits of a sum that do not overlap are a union. */
            v = _mm512_mask_add_epi16(v, wp_load32(bits + 128 + i / 8), v, _mm512_set1_epi16(4));
            v = _mm512_mask_add_epi16(v, wp_load32(bits + 144 + i / 8), v, _mm512_set1_epi16(2));
            v = _mm512_mask_add_epi16(v, wp_load32(bits + 160 + i / 8), v, _mm512_set1_epi16(1));
            store(elems + 2 * (b * WP_BLOCK + i), v);
        }
}

static void split_f16(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {
    const __m512i low5 = _mm512_set1_epi16(0x1f), low7 = _mm512_set1_epi16(0x7f), bit7 = _mm512_set1_epi16(0x80);
    for (size_t b = 0; b < n_blocks; b++, bits += 176) {
        __m512i any = _mm512_setzero_si512();
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            __m512i v = load(elems + 2 * (b * WP_BLOCK + i));
            any = _mm512_or_si512(any, v);
            narrow(planes[0] + b * WP_BLOCK + i, _mm512_and_si512(_mm512_srli_epi16(v, 10), low5));
            narrow(bits + i, _mm512_ternarylogic_epi32(_mm512_srli_epi16(v, 8), bit7, _mm512_and_si512(_mm512_srli_epi16(v, 3), low7), 0xEA));
            wp_store32(bits + 128 + i / 8, _mm512_movepi16_mask(_mm512_slli_epi16(v, 13)));
            wp_store32(bits + 144 + i / 8, _mm512_movepi16_mask(_mm512_slli_epi16(v, 14)));
            wp_store32(bits + 160 + i / 8, _mm512_movepi16_mask(_mm512_slli_epi16(v, 15)));
        }
        uint32_t v = or_words(any);
        widths[b] = width_of((v & 0x3ff) | (v >> 15) << 10, 11);
    }
}

/* 4x4 transposition of a register's 16 dwords. */
static inline __m512i transpose(__m512i v) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}

static void merge_f32(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {
    const __m512i low7 = _mm512_set1_epi8(0x7f), bit7 = _mm512_set1_epi8((char)0x80);
    for (size_t b = 0; b < n_blocks; b++, bits += 384)
        for (unsigned i = 0; i < WP_BLOCK; i += 64) {
            /* Unpacking works within 16-byte lanes: with its dwords transposed first, the input comes out in order. */
            __m512i e = transpose(load(planes[0] + b * WP_BLOCK + i)), a = transpose(load(bits + i));
            __m512i b1 = transpose(load(bits + 128 + i)), b0 = transpose(load(bits + 256 + i));
            __m512i b3 = _mm512_ternarylogic_epi32(a, bit7, _mm512_and_si512(_mm512_srli_epi16(e, 1), low7), 0xEA);
            __m512i b2 = _mm512_ternarylogic_epi32(a, low7, _mm512_and_si512(_mm512_slli_epi16(e, 7), bit7), 0xEA);
            __m512i low = _mm512_unpacklo_epi8(b0, b1), high = _mm512_unpacklo_epi8(b2, b3);
            uint8_t *to = elems + 4 * (b * WP_BLOCK + i);
            store(to, _mm512_unpacklo_epi16(low, high));
            store(to + 64, _mm512_unpackhi_epi16(low, high));
            low = _mm512_unpackhi_epi8(b0, b1); high = _mm512_unpackhi_epi8(b2, b3);
            store(to + 128, _mm512_unpacklo_epi16(low, high));
            store(to + 192, _mm512_unpackhi_epi16(low, high));
        }
}

static void split_f32(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {
    const __m512i low7 = _mm512_set1_epi8(0x7f), bit7 = _mm512_set1_epi8((char)0x80), bit0 = _mm512_set1_epi8(1);
    const __m512i by_byte = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    for (size_t b = 0; b < n_blocks; b++, bits += 384) {
        __m512i any = _mm512_setzero_si512();
        for (unsigned i = 0; i < WP_BLOCK; i += 64) {
            const uint8_t *from = elems + 4 * (b * WP_BLOCK + i);
            __m512i v0 = load(from), v1 = load(from + 64), v2 = load(from + 128), v3 = load(from + 192);
            any = _mm512_or_si512(any, _mm512_or_si512(_mm512_or_si512(v0, v1), _mm512_or_si512(v2, v3)));
            v0 = _mm512_shuffle_epi8(v0, by_byte); v1 = _mm512_shuffle_epi8(v1, by_byte);
            v2 = _mm512_shuffle_epi8(v2, by_byte); v3 = _mm512_shuffle_epi8(v3, by_byte);
            __m512i l01 = _mm512_unpacklo_epi32(v0, v1), l23 = _mm512_unpacklo_epi32(v2, v3);
            __m512i h01 = _mm512_unpackhi_epi32(v0, v1), h23 = _mm512_unpackhi_epi32(v2, v3);
            __m512i b0 = _mm512_unpacklo_epi64(l01, l23), b1 = _mm512_unpackhi_epi64(l01, l23);
            __m512i b2 = _mm512_unpacklo_epi64(h01, h23), b3 = _mm512_unpackhi_epi64(h01, h23);
            __m512i e = _mm512_ternarylogic_epi32(_mm512_add_epi8(b3, b3), _mm512_srli_epi16(b2, 7), bit0, 0xF8); /* b3 << 1 | (b2 >> 7 & 1) */
            store(planes[0] + b * WP_BLOCK + i, transpose(e));
            store(bits + i, transpose(_mm512_ternarylogic_epi32(b3, bit7, _mm512_and_si512(b2, low7), 0xEA)));
            store(bits + 128 + i, transpose(b1));
            store(bits + 256 + i, transpose(b0));
        }
        uint32_t v = (uint32_t)_mm512_reduce_or_epi32(any);
        widths[b] = width_of((v & 0x7fffff) | (v >> 31) << 23, 24);
    }
}

/* fp8: `man` mantissa bits; the raw word is `man` + 1 bit planes, the sign's first. */
static inline void merge_f8(const unsigned man, const uint8_t *exponents, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {
    for (size_t b = 0; b < n_blocks; b++, bits += 16 * (man + 1))
        for (unsigned i = 0; i < WP_BLOCK; i += 64) {
            __m512i v = _mm512_slli_epi16(load(exponents + b * WP_BLOCK + i), (int)man); /* symbols fit their field, so nothing crosses bytes */
            v = _mm512_mask_add_epi8(v, wp_load64(bits + i / 8), v, _mm512_set1_epi8((char)0x80));
            for (unsigned k = 1; k <= man; k++) v = _mm512_mask_add_epi8(v, wp_load64(bits + 16 * k + i / 8), v, _mm512_set1_epi8((char)(1 << (man - k))));
            store(elems + b * WP_BLOCK + i, v);
        }
}

static inline void split_f8(const unsigned man, const uint8_t *elems, size_t n_blocks, uint8_t *exponents, uint8_t *widths, uint8_t *bits) {
    const __m512i field = _mm512_set1_epi8((char)(0x7f >> man));
    for (size_t b = 0; b < n_blocks; b++, bits += 16 * (man + 1)) {
        __m512i any = _mm512_setzero_si512();
        for (unsigned i = 0; i < WP_BLOCK; i += 64) {
            __m512i v = load(elems + b * WP_BLOCK + i);
            any = _mm512_or_si512(any, v);
            store(exponents + b * WP_BLOCK + i, _mm512_and_si512(_mm512_srli_epi16(v, (int)man), field));
            wp_store64(bits + i / 8, _mm512_movepi8_mask(v));
            for (unsigned k = 1; k <= man; k++) wp_store64(bits + 16 * k + i / 8, _mm512_movepi8_mask(_mm512_slli_epi16(v, (int)(7 - man + k))));
        }
        uint32_t v = or_bytes(any);
        widths[b] = width_of((v & ((1u << man) - 1)) | (v >> 7) << man, man + 1);
    }
}

static void merge_f8_e4m3(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) { merge_f8(3, planes[0], bits, n_blocks, elems); }
static void merge_f8_e5m2(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) { merge_f8(2, planes[0], bits, n_blocks, elems); }
static void split_f8_e4m3(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {
    split_f8(3, elems, n_blocks, planes[0], widths, bits);
}
static void split_f8_e5m2(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {
    split_f8(2, elems, n_blocks, planes[0], widths, bits);
}

/* Scalar where compilers vectorise the loop well enough, or where the dtype is rare in checkpoints (fp64, integers). */
const wp_kernels wp_kernels_avx512 = {
    crc32c, wp_histogram_scalar, rans_decode, rans_encode,
    {NULL, wp_merge_bytes1_scalar, wp_merge_bytes2_scalar, wp_merge_bytes4_scalar, wp_merge_bytes8_scalar,
     merge_bf16, merge_f16, merge_f32, wp_merge_f64_scalar, merge_f8_e4m3, merge_f8_e5m2},
    {NULL, wp_split_bytes1_scalar, wp_split_bytes2_scalar, wp_split_bytes4_scalar, wp_split_bytes8_scalar,
     split_bf16, split_f16, split_f32, wp_split_f64_scalar, split_f8_e4m3, split_f8_e5m2},
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
