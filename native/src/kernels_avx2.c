/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. AVX2 with BMI2 and PCLMULQDQ.
 * rANS: registers of 16 states are taken in pairs. Their low bytes (the slots) are packed into one register, even bytes from the first, odd bytes from
 * the second; the rank comes out of a binary search over the 16 starts, four byte shuffles and compares. Bytes move between the stream and the
 * lanes through tables of shuffles indexed by an 8-bit mask.
 * Over-read: at most 8 bytes behind the 128 that a group may use, inside WP_OVERREAD. The encoder writes 8 bytes at a time downwards: up to 8 bytes of
 * rubbish stand below its pointer, inside the 64 that kernels.h grants.
 */
#include "kernels_scalar.h"
#include "mem.h"

#ifdef WP_X86_64
#include <immintrin.h>

#include "byte_shuffles.h"

/* One set of compiler flags serves all files: what this file may use is said here. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt,sse4.2,pclmul"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,bmi,bmi2,lzcnt,popcnt,sse4.2,pclmul")
#endif

static inline __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void store(void *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline __m128i load128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline __m256i table16(const uint8_t *p) { return _mm256_broadcastsi128_si256(load128(p)); }
static inline __m256i both(__m128i low, __m128i high) { return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1); }

/* ---- CRC-32C: fold 128 bytes by carry-less multiplication, then let the crc32 instruction finish (Gopal et al., Intel, 2009) ---- */

static inline __m128i fold(__m128i x, __m128i k, __m128i next) {
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), next);
}

static uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t c = ~crc;
    if (n >= 128) {
        /* Bit-reflected x^(T + 32) and x^(T - 32) mod P, shifted left by one, for T = 1024 and T = 128 bits. */
        const __m128i k = _mm_set_epi64x(0x0d3b6092, 0x6992cea2), k1 = _mm_set_epi64x(0x14cd00bd6, 0xf20c0dfe);
        __m128i a[8];
        for (int i = 0; i < 8; i++) a[i] = load128(p + 16 * i);
        a[0] = _mm_xor_si128(a[0], _mm_cvtsi32_si128((int)(uint32_t)c));
        for (p += 128, n -= 128; n >= 128; p += 128, n -= 128)
            for (int i = 0; i < 8; i++) a[i] = fold(a[i], k, load128(p + 16 * i));
        for (int i = 1; i < 8; i++) a[i] = fold(a[i - 1], k1, a[i]);
        for (; n >= 16; p += 16, n -= 16) a[7] = fold(a[7], k1, load128(p));
        c = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(a[7]));
        c = _mm_crc32_u64(c, (uint64_t)_mm_extract_epi64(a[7], 1));
    }
    for (; n >= 8; p += 8, n -= 8) c = _mm_crc32_u64(c, wp_load64(p));
    for (; n; p++, n--) c = _mm_crc32_u8((uint32_t)c, *p);
    return ~(uint32_t)c;
}

/* ---- rANS ---- */

/* The next bytes of the stream, one for each set bit of `mask`, each in the low half of its 16-bit lane. */
static inline __m128i expand(const uint8_t **p, uint32_t mask) {
    __m128i v = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)*p), load128(wp_expand[mask]));
    *p += _mm_popcnt_u32(mask);
    return v;
}

static wp_status rans_decode(wp_rans_decoder *d, uint8_t *out, size_t n_groups) {
    /* Thresholds of the binary search: start[r + step], 255 where there is no such rank; slot 255 needs the last minimum. */
    uint8_t t[4][16];
    const unsigned last = d->n_symbols - (d->has_escape ? 0u : 1u);
    for (unsigned r = 0; r < 16; r++)
        for (unsigned i = 0, step = 8; i < 4; i++, step /= 2) t[i][r] = r + step < 16 ? d->start[r + step] : 255;
    const __m256i t8 = _mm256_set1_epi8((char)t[0][0]), t4 = table16(t[1]), t2 = table16(t[2]), t1 = table16(t[3]);
    const __m256i freqs = table16(d->freq), starts = table16(d->start), symbols = table16(d->symbol);
    const __m256i low_bytes = _mm256_set1_epi16(255), zero = _mm256_setzero_si256();
    const __m256i escape = _mm256_set1_epi8((char)d->n_symbols), max_rank = _mm256_set1_epi8((char)last);
    uint16_t x[WP_BLOCK];
    memcpy(x, d->x, sizeof x);
    wp_rans_guard(d);
    const uint8_t *p = d->renorm, *q = d->literals;
    for (size_t g = 0; g < n_groups; g++, out += WP_BLOCK) {
        if ((!d->renorm_in_tail && d->renorm_end - p < WP_TAIL) || (!d->literals_in_tail && d->literals_end - q < WP_TAIL)) {
            d->renorm = p; d->literals = q;
            wp_rans_guard(d);
            p = d->renorm; q = d->literals;
        }
#if defined(__GNUC__)
#pragma GCC unroll 4
#endif
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            __m256i x0 = load(x + i), x1 = load(x + i + 16);
            __m256i slot = _mm256_or_si256(_mm256_and_si256(x0, low_bytes), _mm256_slli_epi16(x1, 8));
#define AT_LEAST(threshold, step) _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_max_epu8(slot, threshold), slot), _mm256_set1_epi8(step))
            __m256i rank = AT_LEAST(t8, 8);
            rank = _mm256_or_si256(rank, AT_LEAST(_mm256_shuffle_epi8(t4, rank), 4));
            rank = _mm256_or_si256(rank, AT_LEAST(_mm256_shuffle_epi8(t2, rank), 2));
            rank = _mm256_or_si256(rank, AT_LEAST(_mm256_shuffle_epi8(t1, rank), 1));
#undef AT_LEAST
            rank = _mm256_min_epu8(rank, max_rank);
            __m256i f = _mm256_shuffle_epi8(freqs, rank), bias = _mm256_sub_epi8(slot, _mm256_shuffle_epi8(starts, rank));
            __m256i s = _mm256_shuffle_epi8(symbols, rank);
            x0 = _mm256_add_epi16(_mm256_mullo_epi16(_mm256_srli_epi16(x0, 8), _mm256_and_si256(f, low_bytes)), _mm256_and_si256(bias, low_bytes));
            x1 = _mm256_add_epi16(_mm256_mullo_epi16(_mm256_srli_epi16(x1, 8), _mm256_srli_epi16(f, 8)), _mm256_srli_epi16(bias, 8));
            __m256i low0 = _mm256_cmpeq_epi16(_mm256_srli_epi16(x0, 8), zero), low1 = _mm256_cmpeq_epi16(_mm256_srli_epi16(x1, 8), zero);
            /* Bits 0-7: lanes 0-7 of x0; 8-15: 0-7 of x1; 16-23: 8-15 of x0; 24-31: 8-15 of x1. */
            uint32_t low = (uint32_t)_mm256_movemask_epi8(_mm256_packs_epi16(low0, low1));
            __m128i a = expand(&p, low & 255), b = expand(&p, low >> 16 & 255), c = expand(&p, low >> 8 & 255), e = expand(&p, low >> 24);
            store(x + i, _mm256_or_si256(_mm256_blendv_epi8(x0, _mm256_slli_epi16(x0, 8), low0), both(a, b)));
            store(x + i + 16, _mm256_or_si256(_mm256_blendv_epi8(x1, _mm256_slli_epi16(x1, 8), low1), both(c, e)));
            uint32_t escaped = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(rank, escape));
            s = _mm256_permute4x64_epi64(_mm256_packus_epi16(_mm256_and_si256(s, low_bytes), _mm256_srli_epi16(s, 8)), 0xD8);
            store(out + i, s);
            if (escaped) {
                escaped = _pext_u32(escaped, 0x55555555) | _pext_u32(escaped, 0xAAAAAAAA) << 16;
                for (; escaped; escaped &= escaped - 1) out[i + _tzcnt_u32(escaped)] = *q++;
            }
        }
        if ((d->renorm_in_tail && p > d->renorm_end) || (d->literals_in_tail && q > d->literals_end)) return WP_TRUNCATED;
    }
    d->renorm = p; d->literals = q;
    memcpy(d->x, x, sizeof x);
    return WP_OK;
}

/* Writes the bytes of the set bits of `mask`, in order, so that they end at `p`; returns where they begin. */
static inline uint8_t *emit(uint8_t *p, __m128i bytes, uint32_t mask) {
    _mm_storel_epi64((__m128i *)(p - 8), _mm_shuffle_epi8(bytes, _mm_loadl_epi64((const __m128i *)wp_compress[mask])));
    return p - _mm_popcnt_u32(mask);
}

static void rans_encode(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups) {
    /* With an escape there are at most 15 symbols, so 16 ranks always do. */
    uint8_t freq[16], start[16], reciprocal_low[16], reciprocal_high[16];
    for (int r = 0; r < 16; r++) {
        freq[r] = (uint8_t)e->freq[r]; start[r] = (uint8_t)e->start[r];
        reciprocal_low[r] = (uint8_t)e->reciprocal[r]; reciprocal_high[r] = (uint8_t)(e->reciprocal[r] >> 8);
    }
    const __m256i freqs = table16(freq), starts = table16(start), lows = table16(reciprocal_low), highs = table16(reciprocal_high);
    const __m256i low_bytes = _mm256_set1_epi16(255), one = _mm256_set1_epi16(1), blank = _mm256_set1_epi16((short)0x8000);
    uint8_t *p = e->renorm, *q = e->literals;
    uint8_t rank_bytes[WP_BLOCK];
    for (size_t g = n_groups; g-- > 0;) {
        const uint8_t *s = symbols + g * WP_BLOCK;
        for (int i = 0; i < WP_BLOCK; i++) rank_bytes[i] = e->rank_of_symbol[s[i]];
        if (e->has_escape) {
            const __m256i escape = _mm256_set1_epi8((char)e->n_symbols);
            for (int i = WP_BLOCK - 32; i >= 0; i -= 32) {
                uint32_t escaped = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(load(rank_bytes + i), escape));
                while (escaped) {
                    unsigned top = 31 - (unsigned)_lzcnt_u32(escaped);
                    *--q = s[(unsigned)i + top];
                    escaped ^= 1u << top;
                }
            }
        }
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
        for (int i = WP_BLOCK - 16; i >= 0; i -= 16) {
            /* 0x80 in the high byte of each lane: shuffles leave it zero. */
            __m256i rank = _mm256_or_si256(_mm256_cvtepu8_epi16(load128(rank_bytes + i)), blank);
            __m256i f = _mm256_shuffle_epi8(freqs, rank), c = _mm256_shuffle_epi8(starts, rank);
            __m256i reciprocal = _mm256_or_si256(_mm256_shuffle_epi8(lows, rank), _mm256_slli_epi16(_mm256_shuffle_epi8(highs, rank), 8));
            __m256i x = load(e->x + i), high = _mm256_srli_epi16(x, 8);
            __m256i over = _mm256_cmpeq_epi16(_mm256_max_epu16(high, f), high); /* x >= f << 8 */
            __m256i bytes = _mm256_packus_epi16(_mm256_and_si256(x, low_bytes), over); /* each half: 8 bytes, then 8 of the mask's sign */
            uint32_t mask = (uint32_t)_mm256_movemask_epi8(_mm256_packs_epi16(over, over));
            p = emit(p, _mm256_extracti128_si256(bytes, 1), mask >> 16 & 255);
            p = emit(p, _mm256_castsi256_si128(bytes), mask & 255);
            x = _mm256_blendv_epi8(x, high, over);
            /* As in kernels_scalar.c: the product's high half is x div f, or one more. */
            __m256i quotient = _mm256_blendv_epi8(_mm256_mulhi_epu16(x, reciprocal), x, _mm256_cmpeq_epi16(f, one));
            __m256i rest = _mm256_sub_epi16(x, _mm256_mullo_epi16(quotient, f));
            __m256i fine = _mm256_cmpeq_epi16(_mm256_min_epu16(rest, x), rest); /* rest <= x: no wrap */
            quotient = _mm256_sub_epi16(quotient, _mm256_andnot_si256(fine, one));
            rest = _mm256_add_epi16(rest, _mm256_andnot_si256(fine, f));
            store(e->x + i, _mm256_add_epi16(_mm256_add_epi16(_mm256_slli_epi16(quotient, 8), rest), c));
        }
    }
    e->renorm = p; e->literals = q;
}

/* ---- planes ---- */

static inline __m256i widen(const uint8_t *p) { return _mm256_cvtepu8_epi16(load128(p)); }
/* Low bytes of two registers of words, in order. */
static inline __m256i narrow(__m256i a, __m256i b) {
    const __m256i low = _mm256_set1_epi16(255);
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low)), 0xD8);
}
static inline uint8_t width_of(uint32_t any, unsigned r) { return (uint8_t)(any ? r - (unsigned)_tzcnt_u32(any) : 0); }
static inline uint32_t or_dwords(__m256i v) {
    __m128i x = _mm_or_si128(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    uint64_t y = (uint64_t)_mm_cvtsi128_si64(x) | (uint64_t)_mm_extract_epi64(x, 1);
    return (uint32_t)(y | y >> 32);
}
/* 32 bits as 32 bytes of 0 or -1. */
static inline __m256i spread(const uint8_t *bits) {
    const __m256i source = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i each = _mm256_set1_epi64x((long long)0x8040201008040201u);
    __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32((int)wp_load32(bits)), source);
    return _mm256_cmpeq_epi8(_mm256_and_si256(v, each), each);
}

static void merge_bf16(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {
    const __m256i sign = _mm256_set1_epi16((short)0x8000), mantissa = _mm256_set1_epi16(0x7f);
    for (size_t i = 0; i < n_blocks * WP_BLOCK; i += 16) {
        __m256i e = widen(planes[0] + i), a = widen(bits + i);
        __m256i v = _mm256_or_si256(_mm256_slli_epi16(e, 7), _mm256_and_si256(a, mantissa));
        store(elems + 2 * i, _mm256_or_si256(v, _mm256_and_si256(_mm256_slli_epi16(a, 8), sign)));
    }
}

static void split_bf16(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {
    const __m256i low7 = _mm256_set1_epi16(0x7f), bit7 = _mm256_set1_epi16(0x80);
    for (size_t b = 0; b < n_blocks; b++) {
        __m256i any = _mm256_setzero_si256();
        for (size_t i = b * WP_BLOCK; i < (b + 1) * WP_BLOCK; i += 32) {
            __m256i v0 = load(elems + 2 * i), v1 = load(elems + 2 * i + 32);
            __m256i a0 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v0, 8), bit7), _mm256_and_si256(v0, low7));
            __m256i a1 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v1, 8), bit7), _mm256_and_si256(v1, low7));
            any = _mm256_or_si256(any, _mm256_or_si256(a0, a1));
            store(planes[0] + i, narrow(_mm256_srli_epi16(v0, 7), _mm256_srli_epi16(v1, 7)));
            store(bits + i, narrow(a0, a1));
        }
        uint32_t v = or_dwords(any);
        widths[b] = width_of((v | v >> 16) & 0xff, 8);
    }
}

static void merge_f16(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {
    const __m256i sign = _mm256_set1_epi16((short)0x8000), high = _mm256_set1_epi16(0x3f8);
    for (size_t b = 0; b < n_blocks; b++, bits += 176)
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            __m256i low = _mm256_or_si256(_mm256_and_si256(spread(bits + 128 + i / 8), _mm256_set1_epi8(4)),
                                          _mm256_and_si256(spread(bits + 144 + i / 8), _mm256_set1_epi8(2)));
            low = _mm256_or_si256(low, _mm256_and_si256(spread(bits + 160 + i / 8), _mm256_set1_epi8(1)));
            for (unsigned h = 0; h < 2; h++) {
                __m256i e = widen(planes[0] + b * WP_BLOCK + i + 16 * h), a = widen(bits + i + 16 * h);
                __m256i v = _mm256_or_si256(_mm256_slli_epi16(e, 10), _mm256_and_si256(_mm256_slli_epi16(a, 3), high));
                v = _mm256_or_si256(v, _mm256_and_si256(_mm256_slli_epi16(a, 8), sign));
                __m128i part = h ? _mm256_extracti128_si256(low, 1) : _mm256_castsi256_si128(low);
                store(elems + 2 * (b * WP_BLOCK + i + 16 * h), _mm256_or_si256(v, _mm256_cvtepu8_epi16(part)));
            }
        }
}

static void split_f16(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {
    const __m256i low5 = _mm256_set1_epi16(0x1f), low7 = _mm256_set1_epi16(0x7f), bit7 = _mm256_set1_epi16(0x80);
    for (size_t b = 0; b < n_blocks; b++, bits += 176) {
        __m256i any = _mm256_setzero_si256();
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            __m256i v0 = load(elems + 2 * (b * WP_BLOCK + i)), v1 = load(elems + 2 * (b * WP_BLOCK + i) + 32);
            any = _mm256_or_si256(any, _mm256_or_si256(v0, v1));
            store(planes[0] + b * WP_BLOCK + i, narrow(_mm256_and_si256(_mm256_srli_epi16(v0, 10), low5), _mm256_and_si256(_mm256_srli_epi16(v1, 10), low5)));
            __m256i a0 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v0, 8), bit7), _mm256_and_si256(_mm256_srli_epi16(v0, 3), low7));
            __m256i a1 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v1, 8), bit7), _mm256_and_si256(_mm256_srli_epi16(v1, 3), low7));
            store(bits + i, narrow(a0, a1));
            __m256i low = narrow(v0, v1);
            wp_store32(bits + 128 + i / 8, (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(low, 5)));
            wp_store32(bits + 144 + i / 8, (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(low, 6)));
            wp_store32(bits + 160 + i / 8, (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(low, 7)));
        }
        uint32_t v = or_dwords(any);
        v |= v >> 16;
        widths[b] = width_of((v & 0x3ff) | (v >> 15 & 1) << 10, 11);
    }
}

static void merge_f32(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {
    const __m256i low7 = _mm256_set1_epi8(0x7f), bit7 = _mm256_set1_epi8((char)0x80);
    /* Unpacking works within 16-byte halves: with its dwords in this order, the input comes out in order. */
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    for (size_t b = 0; b < n_blocks; b++, bits += 384)
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            __m256i e = _mm256_permutevar8x32_epi32(load(planes[0] + b * WP_BLOCK + i), order), a = _mm256_permutevar8x32_epi32(load(bits + i), order);
            __m256i b1 = _mm256_permutevar8x32_epi32(load(bits + 128 + i), order), b0 = _mm256_permutevar8x32_epi32(load(bits + 256 + i), order);
            __m256i b3 = _mm256_or_si256(_mm256_and_si256(a, bit7), _mm256_and_si256(_mm256_srli_epi16(e, 1), low7));
            __m256i b2 = _mm256_or_si256(_mm256_and_si256(a, low7), _mm256_and_si256(_mm256_slli_epi16(e, 7), bit7));
            __m256i low = _mm256_unpacklo_epi8(b0, b1), high = _mm256_unpacklo_epi8(b2, b3);
            uint8_t *to = elems + 4 * (b * WP_BLOCK + i);
            store(to, _mm256_unpacklo_epi16(low, high));
            store(to + 32, _mm256_unpackhi_epi16(low, high));
            low = _mm256_unpackhi_epi8(b0, b1); high = _mm256_unpackhi_epi8(b2, b3);
            store(to + 64, _mm256_unpacklo_epi16(low, high));
            store(to + 96, _mm256_unpackhi_epi16(low, high));
        }
}

static void split_f32(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits) {
    const __m256i low7 = _mm256_set1_epi8(0x7f), bit7 = _mm256_set1_epi8((char)0x80), bit0 = _mm256_set1_epi8(1);
    const __m256i by_byte = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (size_t b = 0; b < n_blocks; b++, bits += 384) {
        __m256i any = _mm256_setzero_si256();
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            const uint8_t *from = elems + 4 * (b * WP_BLOCK + i);
            __m256i v0 = load(from), v1 = load(from + 32), v2 = load(from + 64), v3 = load(from + 96);
            any = _mm256_or_si256(any, _mm256_or_si256(_mm256_or_si256(v0, v1), _mm256_or_si256(v2, v3)));
            v0 = _mm256_shuffle_epi8(v0, by_byte); v1 = _mm256_shuffle_epi8(v1, by_byte);
            v2 = _mm256_shuffle_epi8(v2, by_byte); v3 = _mm256_shuffle_epi8(v3, by_byte);
            __m256i l01 = _mm256_unpacklo_epi32(v0, v1), l23 = _mm256_unpacklo_epi32(v2, v3);
            __m256i h01 = _mm256_unpackhi_epi32(v0, v1), h23 = _mm256_unpackhi_epi32(v2, v3);
            __m256i b0 = _mm256_unpacklo_epi64(l01, l23), b1 = _mm256_unpackhi_epi64(l01, l23);
            __m256i b2 = _mm256_unpacklo_epi64(h01, h23), b3 = _mm256_unpackhi_epi64(h01, h23);
            __m256i e = _mm256_or_si256(_mm256_add_epi8(b3, b3), _mm256_and_si256(_mm256_srli_epi16(b2, 7), bit0));
            __m256i a = _mm256_or_si256(_mm256_and_si256(b3, bit7), _mm256_and_si256(b2, low7));
            store(planes[0] + b * WP_BLOCK + i, _mm256_permutevar8x32_epi32(e, order));
            store(bits + i, _mm256_permutevar8x32_epi32(a, order));
            store(bits + 128 + i, _mm256_permutevar8x32_epi32(b1, order));
            store(bits + 256 + i, _mm256_permutevar8x32_epi32(b0, order));
        }
        uint32_t v = or_dwords(any);
        widths[b] = width_of((v & 0x7fffff) | (v >> 31) << 23, 24);
    }
}

/* fp8: `man` mantissa bits; the raw word is `man` + 1 bit planes, the sign's first. */
static inline void merge_f8(const unsigned man, const uint8_t *exponents, const uint8_t *bits, size_t n_blocks, uint8_t *elems) {
    for (size_t b = 0; b < n_blocks; b++, bits += 16 * (man + 1))
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            __m256i v = _mm256_slli_epi16(load(exponents + b * WP_BLOCK + i), (int)man); /* symbols fit their field, so nothing crosses bytes */
            v = _mm256_or_si256(v, _mm256_and_si256(spread(bits + i / 8), _mm256_set1_epi8((char)0x80)));
            for (unsigned k = 1; k <= man; k++)
                v = _mm256_or_si256(v, _mm256_and_si256(spread(bits + 16 * k + i / 8), _mm256_set1_epi8((char)(1 << (man - k)))));
            store(elems + b * WP_BLOCK + i, v);
        }
}

static inline void split_f8(const unsigned man, const uint8_t *elems, size_t n_blocks, uint8_t *exponents, uint8_t *widths, uint8_t *bits) {
    const __m256i field = _mm256_set1_epi8((char)(0x7f >> man));
    for (size_t b = 0; b < n_blocks; b++, bits += 16 * (man + 1)) {
        __m256i any = _mm256_setzero_si256();
        for (unsigned i = 0; i < WP_BLOCK; i += 32) {
            __m256i v = load(elems + b * WP_BLOCK + i);
            any = _mm256_or_si256(any, v);
            store(exponents + b * WP_BLOCK + i, _mm256_and_si256(_mm256_srli_epi16(v, (int)man), field));
            wp_store32(bits + i / 8, (uint32_t)_mm256_movemask_epi8(v));
            for (unsigned k = 1; k <= man; k++) wp_store32(bits + 16 * k + i / 8, (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(v, (int)(7 - man + k))));
        }
        uint32_t v = or_dwords(any);
        v |= v >> 16;
        v |= v >> 8;
        widths[b] = width_of((v & ((1u << man) - 1)) | (v >> 7 & 1) << man, man + 1);
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
const wp_kernels wp_kernels_avx2 = {
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
