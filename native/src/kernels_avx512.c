/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. The kernels for AVX-512 with VBMI, VBMI2, BITALG, GFNI and VPCLMULQDQ (Ice Lake, Zen 4 and later).
 * rANS keeps 64 states as two vectors of bytes in lane order: `hi` has the high byte of each state, `lo` the low one. So the slot is `lo` as it
 * stands, "state < 256" is "byte of hi is 0", one 64-bit mask has the lanes in stream order, and one byte expand (decoder) or compress (encoder)
 * moves the renormalisation bytes of 64 lanes. Only the multiplication needs 16 bits: even and odd lanes apart, and joined again with a shift and a
 * select. The two halves of a group are independent but for the stream's pointer, which hides most of the latency.
 * Over-read: the decoder loads 64 bytes at both pointers and uses those that it needs; wp_rans_guard vouches for the rest. Nothing else reads or
 * writes outside its buffers; the encoder's stores are masked.
 */
#include "kernels.h"
#include "mem.h"
#ifdef WP_X86_64
#include <immintrin.h>

/* clang: "crc32" by name, because zig cc takes it out of its baseline and sse4.2 does not bring it back. */
#if defined(__clang__)
#pragma clang attribute push(                                                                                                                        \
    __attribute__((                                                                                                                                  \
        target("avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512bitalg,gfni,vpclmulqdq,pclmul,sse4.2,crc32,bmi,bmi2,popcnt,avx2"))), \
    apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512bitalg,gfni,vpclmulqdq,pclmul,sse4.2,bmi,bmi2,popcnt,avx2")
#endif
#ifdef _MSC_VER
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

/* ---- vectors of 64 bytes, for kernels_generic.h ---- */

typedef __m512i V;
enum { V_LANES = 64 };
#define V_SHL(v, n) _mm512_slli_epi16(v, n)
#define V_SHR(v, n) _mm512_srli_epi16(v, n)
INLINE V v_set(uint8_t c) { return _mm512_set1_epi8((char)c); }
INLINE V v_or(V a, V b) { return _mm512_or_si512(a, b); }
INLINE V v_and(V a, V b) { return _mm512_and_si512(a, b); }
INLINE V v_select(V m, V a, V b) { return _mm512_ternarylogic_epi32(m, a, b, 0xCA); }
INLINE V v_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE void v_store(uint8_t *p, V v) { _mm512_storeu_si512(p, v); }
INLINE V v_with_bits(V v, const uint8_t *p, uint8_t c) { return _mm512_mask_mov_epi8(v, wp_load64(p), v_or(v, v_set(c))); }
INLINE void v_to_bits(uint8_t *p, V v, unsigned bit) { wp_store64(p, _mm512_test_epi8_mask(v, v_set((uint8_t)(1u << bit)))); }
INLINE unsigned first_one(uint64_t word) { return (unsigned)_tzcnt_u64(word); }
INLINE uint64_t v_or_words(const uint8_t *p, size_t n) {
    V any = v_or(v_load(p), v_load(p + 64));
    for (size_t i = 128; i < n; i += 64) any = v_or(any, v_load(p + i));
    __m256i y = _mm256_or_si256(_mm512_castsi512_si256(any), _mm512_extracti64x4_epi64(any, 1));
    __m128i x = _mm_or_si128(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    return (uint64_t)_mm_cvtsi128_si64(x) | (uint64_t)_mm_extract_epi64(x, 1);
}
/* Each byte becomes a bit, 1 << (value - first), in one of two bytes; 8 of those are an 8x8 bit matrix, whose transpose has a byte for each value. */
INLINE size_t v_count_window(const uint8_t *p, size_t n, uint8_t first, uint32_t *counts) {
    const V low = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0));
    const V high = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, -128));
    const V identity = _mm512_set1_epi64((long long)0x8040201008040201u), low8 = _mm512_set1_epi16(0xff);
    const size_t n_vectors = n / V_LANES;
    for (size_t i = 0; i < n_vectors;) {
        V words[4] = {v_set(0), v_set(0), v_set(0), v_set(0)}; /* values 0, 2, 4, 6; 1, 3, 5, 7; the same of the upper 8 */
        for (size_t end = n_vectors - i < 255 * 31 ? n_vectors : i + 255 * 31; i < end;) { /* 255 * 31 * 8 < 65536 */
            V lows = v_set(0), highs = v_set(0);
            for (size_t stop = end - i < 31 ? end : i + 31; i < stop; i++) { /* 31 * 8 < 256 */
                V place = _mm512_sub_epi8(v_load(p + i * V_LANES), v_set(first));
                __mmask64 others = _mm512_test_epi8_mask(place, v_set(0xf0));
                lows = _mm512_add_epi8(lows, _mm512_popcnt_epi8(_mm512_gf2p8affine_epi64_epi8(identity, _mm512_maskz_shuffle_epi8(~others, low, place), 0)));
                highs = _mm512_add_epi8(highs, _mm512_popcnt_epi8(_mm512_gf2p8affine_epi64_epi8(identity, _mm512_maskz_shuffle_epi8(~others, high, place), 0)));
                for (; others; others &= others - 1) counts[p[i * V_LANES + _tzcnt_u64(others)]]++;
            }
            words[0] = _mm512_add_epi16(words[0], v_and(lows, low8));
            words[1] = _mm512_add_epi16(words[1], V_SHR(lows, 8));
            words[2] = _mm512_add_epi16(words[2], v_and(highs, low8));
            words[3] = _mm512_add_epi16(words[3], V_SHR(highs, 8));
        }
        uint16_t sums[4][32];
        for (int k = 0; k < 4; k++) _mm512_storeu_si512(sums[k], words[k]);
        for (int k = 0; k < 16; k++)
            for (int q = 0; q < 8; q++) counts[first + k] += sums[k / 8 * 2 + k % 2][q * 4 + k % 8 / 2];
    }
    return n_vectors * V_LANES;
}

/* Unpacks work inside 128-bit quarters: quarter k of store j must get the elements that belong there, hence a transposition of pairs (quarter, piece)
 * before the unpacks, or after the packs. */
INLINE V transpose_dwords(V v) { return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v); }
static const uint16_t words_to_quarters[32] = {0, 4, 8,  12, 16, 20, 24, 28, 1, 5, 9,  13, 17, 21, 25, 29,
                                               2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31};
static const uint16_t quarters_to_words[32] = {0, 8,  16, 24, 1, 9,  17, 25, 2, 10, 18, 26, 3, 11, 19, 27,
                                               4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31};

INLINE void v_store2(uint8_t *p, const V *v) {
    V a = _mm512_unpacklo_epi8(v[0], v[1]), b = _mm512_unpackhi_epi8(v[0], v[1]);
    v_store(p, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b));
    v_store(p + 64, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b));
}
INLINE void v_load2(const uint8_t *p, V *v) {
    const V order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    V a = _mm512_shuffle_epi8(v_load(p), order), b = _mm512_shuffle_epi8(v_load(p + 64), order);
    v[0] = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), b);
    v[1] = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), b);
}
INLINE void v_store4(uint8_t *p, const V *v) {
    V a = transpose_dwords(v[0]), b = transpose_dwords(v[1]), c = transpose_dwords(v[2]), d = transpose_dwords(v[3]);
    V ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b), cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    v_store(p, _mm512_unpacklo_epi16(ab0, cd0));
    v_store(p + 64, _mm512_unpackhi_epi16(ab0, cd0));
    v_store(p + 128, _mm512_unpacklo_epi16(ab1, cd1));
    v_store(p + 192, _mm512_unpackhi_epi16(ab1, cd1));
}
INLINE void v_load4(const uint8_t *p, V *v) {
    const V order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    V a = _mm512_shuffle_epi8(v_load(p), order), b = _mm512_shuffle_epi8(v_load(p + 64), order);
    V c = _mm512_shuffle_epi8(v_load(p + 128), order), d = _mm512_shuffle_epi8(v_load(p + 192), order);
    V ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b), cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
    v[0] = transpose_dwords(_mm512_unpacklo_epi64(ab0, cd0));
    v[1] = transpose_dwords(_mm512_unpackhi_epi64(ab0, cd0));
    v[2] = transpose_dwords(_mm512_unpacklo_epi64(ab1, cd1));
    v[3] = transpose_dwords(_mm512_unpackhi_epi64(ab1, cd1));
}
INLINE void v_store8(uint8_t *p, const V *v) {
    const V order = _mm512_loadu_si512(words_to_quarters);
    V w[8], pair[8]; /* pair[2k], pair[2k + 1]: bytes 2k and 2k + 1 of the first and the last 32 elements */
    for (int k = 0; k < 8; k++) w[k] = _mm512_permutexvar_epi16(order, v[k]);
    for (int k = 0; k < 8; k += 2) {
        pair[k] = _mm512_unpacklo_epi8(w[k], w[k + 1]);
        pair[k + 1] = _mm512_unpackhi_epi8(w[k], w[k + 1]);
    }
    for (int h = 0; h < 2; h++, p += 256) {
        V a0 = _mm512_unpacklo_epi16(pair[h], pair[h + 2]), a1 = _mm512_unpackhi_epi16(pair[h], pair[h + 2]);
        V b0 = _mm512_unpacklo_epi16(pair[h + 4], pair[h + 6]), b1 = _mm512_unpackhi_epi16(pair[h + 4], pair[h + 6]);
        v_store(p, _mm512_unpacklo_epi32(a0, b0));
        v_store(p + 64, _mm512_unpackhi_epi32(a0, b0));
        v_store(p + 128, _mm512_unpacklo_epi32(a1, b1));
        v_store(p + 192, _mm512_unpackhi_epi32(a1, b1));
    }
}
INLINE void v_load8(const uint8_t *p, V *v) {
    const V order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    const V back = _mm512_loadu_si512(quarters_to_words);
    V w[8], x[8]; /* w: words of byte k of two elements; x[2k], x[2k + 1]: dwords of bytes 0..3 and 4..7 */
    for (int k = 0; k < 8; k++) w[k] = _mm512_shuffle_epi8(v_load(p + 64 * k), order);
    for (int k = 0; k < 8; k += 2) {
        x[k] = _mm512_unpacklo_epi16(w[k], w[k + 1]);
        x[k + 1] = _mm512_unpackhi_epi16(w[k], w[k + 1]);
    }
    for (int h = 0; h < 2; h++, v += 4) {
        V a0 = _mm512_unpacklo_epi32(x[h], x[h + 2]), a1 = _mm512_unpackhi_epi32(x[h], x[h + 2]);
        V b0 = _mm512_unpacklo_epi32(x[h + 4], x[h + 6]), b1 = _mm512_unpackhi_epi32(x[h + 4], x[h + 6]);
        v[0] = _mm512_permutexvar_epi16(back, _mm512_unpacklo_epi64(a0, b0));
        v[1] = _mm512_permutexvar_epi16(back, _mm512_unpackhi_epi64(a0, b0));
        v[2] = _mm512_permutexvar_epi16(back, _mm512_unpacklo_epi64(a1, b1));
        v[3] = _mm512_permutexvar_epi16(back, _mm512_unpackhi_epi64(a1, b1));
    }
}

#include "kernels_generic.h"

/* ---- CRC-32C ---- */

/* Register r, followed by D zero bits, is r_low * x^(D + 32) + r_high * x^(D - 32) mod P, where r_low and r_high are the (reflected) 64-bit halves. A
 * constant is x^n mod P with its 32 bits reversed, shifted left by one because the product of two reflected numbers comes out one place too low. */
INLINE V fold(V r, V k, V data) { return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(r, k, 0x00), _mm512_clmulepi64_epi128(r, k, 0x11), data, 0x96); }
#define FOLD_CONSTANTS(low, high) _mm512_broadcast_i32x4(_mm_set_epi64x(high, low))

static uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t c = ~crc;
    if (n >= 256) {
        const V by_256 = FOLD_CONSTANTS(0xdcb17aa4, 0xb9e02b86), by_64 = FOLD_CONSTANTS(0x740eef02, 0x9e4addf8);
        V r0 = _mm512_xor_si512(v_load(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)(uint32_t)c)));
        V r1 = v_load(p + 64), r2 = v_load(p + 128), r3 = v_load(p + 192);
        for (p += 256, n -= 256; n >= 256; p += 256, n -= 256) {
            r0 = fold(r0, by_256, v_load(p));
            r1 = fold(r1, by_256, v_load(p + 64));
            r2 = fold(r2, by_256, v_load(p + 128));
            r3 = fold(r3, by_256, v_load(p + 192));
        }
        r0 = fold(fold(fold(r0, by_64, r1), by_64, r2), by_64, r3);
        for (; n >= 64; p += 64, n -= 64) r0 = fold(r0, by_64, v_load(p));
        /* What is left has 512 bits: its CRC is that of 64 message bytes, from a register of zero. */
        uint64_t words[8];
        _mm512_storeu_si512(words, r0);
        c = 0;
        for (int i = 0; i < 8; i++) c = _mm_crc32_u64(c, words[i]);
    }
    for (; n >= 8; n -= 8, p += 8) c = _mm_crc32_u64(c, wp_load64(p));
    uint32_t c32 = (uint32_t)c;
    for (; n; n--, p++) c32 = _mm_crc32_u8(c32, *p);
    return ~c32;
}

/* ---- rANS ---- */

INLINE V table16(const uint8_t *t) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)t)); }

typedef struct { V quarter[4]; } table256;
INLINE table256 load_table256(const uint8_t *t) { return (table256){{v_load(t), v_load(t + 64), v_load(t + 128), v_load(t + 192)}}; }
INLINE V look_up(const table256 *t, V i) {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(i), _mm512_permutex2var_epi8(t->quarter[0], i, t->quarter[1]),
                                  _mm512_permutex2var_epi8(t->quarter[2], i, t->quarter[3]));
}

/* 64 states; memory has them as little-endian words, which is byte 0 and byte 1 of 64 elements. */
typedef struct { V lo_hi[2]; } states;

/* The next states: freq * (x >> 8) + bias, and the next bytes of the stream where that fell below 256. */
INLINE void advance(states *s, V freq, V bias, const uint8_t **renorm) {
    const V low8 = _mm512_set1_epi16(0xff), old = s->lo_hi[1];
    V even = _mm512_add_epi16(_mm512_mullo_epi16(v_and(freq, low8), v_and(old, low8)), v_and(bias, low8));
    /* (256 a)(256 b) >> 16 is a b: no shifts needed to get at the odd bytes. */
    V odd = _mm512_add_epi16(_mm512_mulhi_epu16(_mm512_andnot_si512(low8, freq), _mm512_andnot_si512(low8, old)), V_SHR(bias, 8));
    V lo = v_select(low8, even, V_SHL(odd, 8)), hi = v_select(low8, V_SHR(even, 8), odd);
    __mmask64 need = _mm512_testn_epi8_mask(hi, hi);
    s->lo_hi[1] = _mm512_mask_mov_epi8(hi, need, lo);
    s->lo_hi[0] = _mm512_mask_expand_epi8(lo, need, v_load(*renorm));
    *renorm += _mm_popcnt_u64(need);
}

/* One symbol for each of 64 lanes. */
INLINE V decode_half(states *s, const table256 *ranks, V freqs, V starts, V symbols, V escape, int has_escape, const uint8_t **renorm,
                     const uint8_t **literals) {
    V slot = s->lo_hi[0], rank = look_up(ranks, slot);
    advance(s, _mm512_shuffle_epi8(freqs, rank), _mm512_sub_epi8(slot, _mm512_shuffle_epi8(starts, rank)), renorm);
    V symbol = _mm512_shuffle_epi8(symbols, rank);
    if (has_escape) {
        __mmask64 escaped = _mm512_cmpeq_epi8_mask(rank, escape);
        symbol = _mm512_mask_expand_epi8(symbol, escaped, v_load(*literals));
        *literals += _mm_popcnt_u64(escaped);
    }
    return symbol;
}

INLINE int overran(const wp_rans_decoder *d) {
    return (d->renorm_in_tail && d->renorm > d->renorm_end) || (d->literals_in_tail && d->literals > d->literals_end);
}

INLINE wp_status decode_groups(wp_rans_decoder *d, uint8_t *out, size_t n_groups, int has_escape) {
    const table256 ranks = load_table256(d->table->rank_of_slot);
    const V freqs = table16(d->table->freq), starts = table16(d->table->start), symbols = table16(d->table->symbol), escape = v_set(d->table->n_symbols);
    const uint8_t *renorm = d->renorm, *literals = d->literals, *renorm_check = renorm, *literals_check = literals;
    states s[2];
    v_load2((const uint8_t *)d->x, s[0].lo_hi);
    v_load2((const uint8_t *)(d->x + 64), s[1].lo_hi);
    for (size_t g = 0; g < n_groups; g++, out += WP_BLOCK) {
        /* One comparison a pointer says both "time for the guard" and, on a tail copy, "beyond the end". */
        if (g == 0 || renorm > renorm_check || literals > literals_check) {
            d->renorm = renorm;
            d->literals = literals;
            if (overran(d)) return WP_TRUNCATED;
            wp_rans_guard(d);
            renorm = d->renorm;
            literals = d->literals;
            renorm_check = d->renorm_in_tail ? d->renorm_end : d->renorm_end - WP_TAIL;
            literals_check = d->literals_in_tail ? d->literals_end : d->literals_end - WP_TAIL;
        }
        v_store(out, decode_half(&s[0], &ranks, freqs, starts, symbols, escape, has_escape, &renorm, &literals));
        v_store(out + 64, decode_half(&s[1], &ranks, freqs, starts, symbols, escape, has_escape, &renorm, &literals));
    }
    v_store2((uint8_t *)d->x, s[0].lo_hi);
    v_store2((uint8_t *)(d->x + 64), s[1].lo_hi);
    d->renorm = renorm;
    d->literals = literals;
    return overran(d) ? WP_TRUNCATED : WP_OK;
}

static wp_status rans_decode(wp_rans_decoder *d, uint8_t *out, size_t n_groups) {
    return d->table->has_escape ? decode_groups(d, out, n_groups, 1) : decode_groups(d, out, n_groups, 0);
}

/* Writes the bytes of v that `lanes` selects below *p, in lane order. Masked, because what is above has been written already. */
INLINE void push(uint8_t **p, __mmask64 lanes, V v) {
    unsigned n = (unsigned)_mm_popcnt_u64(lanes);
    *p -= n;
    _mm512_mask_storeu_epi8(*p, _bzhi_u64(~(uint64_t)0, n), _mm512_maskz_compress_epi8(lanes, v));
}

/* The next state of 32 lanes, in 16 bits. `reciprocal` is floor(65536 / freq), at most 65535, so that the quotient is right or one too small. */
INLINE V encode_words(V x, V freq, V start, V reciprocal) {
    V q = _mm512_mulhi_epu16(x, reciprocal), rest = _mm512_sub_epi16(x, _mm512_mullo_epi16(q, freq));
    __mmask32 one_more = _mm512_cmpge_epu16_mask(rest, freq);
    V y = _mm512_add_epi16(_mm512_add_epi16(rest, start), V_SHL(q, 8));
    return _mm512_mask_add_epi16(y, one_more, y, _mm512_sub_epi16(_mm512_set1_epi16(256), freq));
}

typedef struct {
    table256 ranks;
    V freqs, starts, reciprocals, escape;
} encoder_tables;

/* The next states of 64 lanes; full ones give a byte to the stream first. The reciprocals are those of the even and of the odd lanes. */
INLINE void retreat(states *s, V freq, V start, V reciprocal_even, V reciprocal_odd, uint8_t **renorm) {
    const V low8 = _mm512_set1_epi16(0xff);
    V lo = s->lo_hi[0], hi = s->lo_hi[1];
    __mmask64 full = _mm512_cmpge_epu8_mask(hi, freq);
    push(renorm, full, lo);
    lo = _mm512_mask_mov_epi8(lo, full, hi);
    hi = _mm512_maskz_mov_epi8(~full, hi);
    V even = encode_words(v_select(low8, lo, V_SHL(hi, 8)), v_and(freq, low8), v_and(start, low8), reciprocal_even);
    V odd = encode_words(v_select(low8, V_SHR(lo, 8), hi), V_SHR(freq, 8), V_SHR(start, 8), reciprocal_odd);
    s->lo_hi[0] = v_select(low8, even, V_SHL(odd, 8));
    s->lo_hi[1] = v_select(low8, V_SHR(even, 8), odd);
}

INLINE void encode_half(states *s, V symbol, const encoder_tables *t, int has_escape, uint8_t **renorm, uint8_t **literals) {
    V rank = look_up(&t->ranks, symbol);
    if (has_escape) push(literals, _mm512_cmpeq_epi8_mask(rank, t->escape), symbol);
    /* vpermw looks at the low 5 bits of each word only: the other lane's rank above them does not matter. */
    retreat(s, _mm512_shuffle_epi8(t->freqs, rank), _mm512_shuffle_epi8(t->starts, rank), _mm512_permutexvar_epi16(rank, t->reciprocals),
            _mm512_permutexvar_epi16(V_SHR(rank, 8), t->reciprocals), renorm);
}

INLINE void encode_groups(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups, int has_escape) {
    const encoder_tables t = {load_table256(e->table->rank_of_symbol), table16(e->table->freq8), table16(e->table->start8),
                              _mm512_loadu_si512(e->table->quotient), v_set(e->table->n_symbols)};
    uint8_t *renorm = e->renorm, *literals = e->literals;
    states s[2];
    v_load2((const uint8_t *)e->x, s[0].lo_hi);
    v_load2((const uint8_t *)(e->x + 64), s[1].lo_hi);
    for (const uint8_t *p = symbols + n_groups * WP_BLOCK; p != symbols;) {
        p -= WP_BLOCK;
        encode_half(&s[1], v_load(p + 64), &t, has_escape, &renorm, &literals);
        encode_half(&s[0], v_load(p), &t, has_escape, &renorm, &literals);
    }
    v_store2((uint8_t *)e->x, s[0].lo_hi);
    v_store2((uint8_t *)(e->x + 64), s[1].lo_hi);
    e->renorm = renorm;
    e->literals = literals;
}

static void rans_encode(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups) {
    if (e->table->has_escape) encode_groups(e, symbols, n_groups, 1);
    else encode_groups(e, symbols, n_groups, 0);
}

/* ---- rANS in a context ---- */

INLINE V context_of(V next, V base) { return _mm512_min_epu8(_mm512_subs_epu8(next, base), v_set(WP_N_CONTEXTS - 1)); }

INLINE V context_half(states *s, V next, V base, const V *thresholds, const uint8_t **renorm) {
    const V slot = s->lo_hi[0], c = context_of(next, base);
    V one = _mm512_shuffle_epi8(thresholds[0], c), two = _mm512_shuffle_epi8(thresholds[1], c), three = _mm512_shuffle_epi8(thresholds[2], c);
    __mmask64 is_1 = _mm512_cmpge_epu8_mask(slot, one), is_2 = _mm512_cmpge_epu8_mask(slot, two), is_3 = _mm512_cmpge_epu8_mask(slot, three);
    V start = _mm512_mask_mov_epi8(_mm512_mask_mov_epi8(_mm512_maskz_mov_epi8(is_1, one), is_2, two), is_3, three);
    V end = _mm512_maskz_mov_epi8(~is_3, _mm512_mask_mov_epi8(_mm512_mask_mov_epi8(one, is_1, two), is_2, three)); /* 0 for 256 */
    advance(s, _mm512_sub_epi8(end, start), _mm512_sub_epi8(slot, start), renorm);
    return _mm512_mask_mov_epi8(_mm512_mask_mov_epi8(_mm512_maskz_mov_epi8(is_1, v_set(1)), is_2, v_set(2)), is_3, v_set(3));
}

static wp_status context_decode(wp_context_decoder *d, const uint8_t *next, uint8_t *out, size_t n_groups) {
    const V base = v_set(d->base), thresholds[3] = {table16(d->start[0]), table16(d->start[1]), table16(d->start[2])};
    states s[2];
    v_load2((const uint8_t *)d->x, s[0].lo_hi);
    v_load2((const uint8_t *)(d->x + 64), s[1].lo_hi);
    for (size_t g = 0; g < n_groups; g++, next += WP_BLOCK, out += WP_BLOCK) {
        wp_context_guard(d);
        const uint8_t *renorm = d->renorm;
        v_store(out, context_half(&s[0], v_load(next), base, thresholds, &renorm));
        v_store(out + 64, context_half(&s[1], v_load(next + 64), base, thresholds, &renorm));
        d->renorm = renorm;
        if (d->renorm_in_tail && renorm > d->renorm_end) return WP_TRUNCATED;
    }
    v_store2((uint8_t *)d->x, s[0].lo_hi);
    v_store2((uint8_t *)(d->x + 64), s[1].lo_hi);
    return WP_OK;
}

typedef struct { V base, freqs, starts, reciprocals[2]; } context_tables;

INLINE void context_encode_half(states *s, V next, V symbol, const context_tables *t, uint8_t **renorm) {
    V i = v_or(V_SHL(context_of(next, t->base), 2), symbol), odd = V_SHR(i, 8);
    /* vpermi2w looks at the low 6 bits of each word only. */
    retreat(s, _mm512_permutexvar_epi8(i, t->freqs), _mm512_permutexvar_epi8(i, t->starts), _mm512_permutex2var_epi16(t->reciprocals[0], i, t->reciprocals[1]),
            _mm512_permutex2var_epi16(t->reciprocals[0], odd, t->reciprocals[1]), renorm);
}

static void context_encode(wp_context_encoder *e, const uint8_t *next, const uint8_t *symbols, size_t n_groups) {
    uint16_t reciprocals[64];
    for (int i = 0; i < 64; i++) reciprocals[i] = (uint16_t)(e->freq[i] > 1 ? 65536u / e->freq[i] : 65535u);
    const context_tables t = {v_set(e->base), v_load(e->freq), v_load(e->start), {_mm512_loadu_si512(reciprocals), _mm512_loadu_si512(reciprocals + 32)}};
    uint8_t *renorm = e->renorm;
    states s[2];
    v_load2((const uint8_t *)e->x, s[0].lo_hi);
    v_load2((const uint8_t *)(e->x + 64), s[1].lo_hi);
    for (size_t i = n_groups * WP_BLOCK; i;) {
        i -= WP_BLOCK;
        context_encode_half(&s[1], v_load(next + i + 64), v_load(symbols + i + 64), &t, &renorm);
        context_encode_half(&s[0], v_load(next + i), v_load(symbols + i), &t, &renorm);
    }
    v_store2((uint8_t *)e->x, s[0].lo_hi);
    v_store2((uint8_t *)(e->x + 64), s[1].lo_hi);
    e->renorm = renorm;
}

/* ---- rANS with a codebook a symbol ---- */

typedef struct {
    V step8, step4, step2, step1[2];
    table256 freqs, starts, symbols;
} conditional_tables;

/* The next bits of the stream, dealt out by a mask: its ones are where they go, the lowest first. */
INLINE uint64_t deposit(const uint8_t *bits, uint64_t *position, uint64_t mask) {
    const uint8_t *p = bits + (*position >> 3);
    const unsigned shift = (unsigned)*position & 7;
    *position += _mm_popcnt_u64(mask);
    return _pdep_u64(wp_load64(p) >> shift | (wp_load64(p + 8) << 1) << (63 - shift), mask);
}

INLINE V look_up128(const uint8_t *t, V i) { return _mm512_permutex2var_epi8(v_load(t), i, v_load(t + 64)); }
INLINE V part16(const V *v, int i) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)((const uint8_t *)v + 32 * i))); }
INLINE V part32(const V *v, int i) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)((const uint8_t *)v + 16 * i))); }

/* Sign and lower bits of 64 elements in lanes of `lane_bits`, where the widest has room. n: how many bits each has. */
INLINE uint64_t deal_out(const V *n, unsigned lane_bits, const uint8_t *bits, uint64_t position, uint64_t *lanes) {
    for (unsigned i = 0; i < lane_bits / 8; i++) {
        V mask;
        if (lane_bits == 8) {
            mask = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 3, 7, 15, 31, 63, 127, -1, -1, -1, -1, -1, -1, -1, -1)), *n);
        } else if (lane_bits == 16) {
            mask = _mm512_sub_epi16(_mm512_sllv_epi16(_mm512_set1_epi16(1), part16(n, (int)i)), _mm512_set1_epi16(1));
        } else {
            mask = _mm512_sub_epi32(_mm512_sllv_epi32(_mm512_set1_epi32(1), part32(n, (int)i)), _mm512_set1_epi32(1));
        }
        uint64_t masks[8];
        _mm512_storeu_si512(masks, mask);
        for (unsigned k = 0; k < 8; k++) lanes[8 * i + k] = deposit(bits, &position, masks[k]);
    }
    return position;
}

INLINE V signed16(V magnitude, V v) {
    const V sign = _mm512_and_si512(v, _mm512_set1_epi16(1));
    magnitude = v_or(magnitude, V_SHR(v, 1));
    return _mm512_add_epi16(_mm512_xor_si512(magnitude, _mm512_sub_epi16(_mm512_setzero_si512(), sign)), sign);
}
INLINE V signed32(V magnitude, V v) {
    const V sign = _mm512_and_si512(v, _mm512_set1_epi32(1));
    magnitude = v_or(magnitude, _mm512_srli_epi32(v, 1));
    return _mm512_add_epi32(_mm512_xor_si512(magnitude, _mm512_sub_epi32(_mm512_setzero_si512(), sign)), sign);
}

INLINE uint64_t differences_64(const wp_class_table *t, const uint8_t *classes, const uint8_t *bits, uint64_t position, unsigned bytes, uint8_t *d) {
    const V c = v_load(classes);
    V n = look_up128(t->extra, c), lead[4];
    uint64_t lanes[32];
    if (_mm512_movepi8_mask(n)) return UINT64_MAX;
    for (unsigned i = 0; i < (bytes == 2 ? 2 : 4); i++) lead[i] = look_up128(t->lead[i], c);
    const int wide = _mm512_cmpgt_epu8_mask(n, v_set(8)) != 0, wider = bytes != 2 && _mm512_cmpgt_epu8_mask(n, v_set(16)) != 0;
    if (wider) position = deal_out(&n, 32, bits, position, lanes);
    else if (wide) position = deal_out(&n, 16, bits, position, lanes);
    else position = deal_out(&n, 8, bits, position, lanes);
    const V *const v = (const V *)(const void *)lanes;
    if (bytes == 2) {
        for (int i = 0; i < 2; i++) {
            V bits16 = wide ? _mm512_loadu_si512((const uint8_t *)lanes + 64 * i) : part16(v, i);
            _mm512_storeu_si512(d + 64 * i, signed16(v_or(part16(&lead[0], i), V_SHL(part16(&lead[1], i), 8)), bits16));
        }
    } else {
        for (int i = 0; i < 4; i++) {
            V bits32 = wider  ? _mm512_loadu_si512((const uint8_t *)lanes + 64 * i)
                       : wide ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)((const uint8_t *)lanes + 32 * i)))
                              : part32(v, i);
            V magnitude = v_or(v_or(part32(&lead[0], i), _mm512_slli_epi32(part32(&lead[1], i), 8)),
                               v_or(_mm512_slli_epi32(part32(&lead[2], i), 16), _mm512_slli_epi32(part32(&lead[3], i), 24)));
            _mm512_storeu_si512(d + 64 * i, signed32(magnitude, bits32));
        }
    }
    return position;
}

/* See difference_kernels.h. Extra bits are dealt out by pdep, as many elements at once as the widest among 64 allows. */
static uint64_t differences(const wp_class_table *t, const uint8_t *classes, size_t m, const uint8_t *bits, uint64_t position, unsigned bytes,
                            wp_differences *d) {
    uint8_t padded[WP_BLOCK] = {0};
    if (m < WP_BLOCK) {
        memcpy(padded, classes, m);
        classes = padded;
    }
    for (size_t half = 0; half < WP_BLOCK && position != UINT64_MAX; half += 64)
        position = bytes == 2 ? differences_64(t, classes + half, bits, position, 2, (uint8_t *)(d->of_2 + half))
                              : differences_64(t, classes + half, bits, position, 4, (uint8_t *)(d->of_4 + half));
    return position;
}
#define WP_OWN_DIFFERENCES
#include "difference_kernels.h"

INLINE V conditional_half(states *s, V book, const conditional_tables *t, const uint8_t **renorm, const uint8_t **literals) {
    const V slot = s->lo_hi[0];
    /* Four steps of a binary search; i is book * 2^k + the leading bits of the rank. */
    V i = book, below = _mm512_shuffle_epi8(t->step8, i);
    i = _mm512_mask_add_epi8(_mm512_add_epi8(i, i), _mm512_cmpgt_epu8_mask(slot, below), _mm512_add_epi8(i, i), v_set(1));
    below = _mm512_permutexvar_epi8(i, t->step4);
    i = _mm512_mask_add_epi8(_mm512_add_epi8(i, i), _mm512_cmpgt_epu8_mask(slot, below), _mm512_add_epi8(i, i), v_set(1));
    below = _mm512_permutexvar_epi8(i, t->step2);
    i = _mm512_mask_add_epi8(_mm512_add_epi8(i, i), _mm512_cmpgt_epu8_mask(slot, below), _mm512_add_epi8(i, i), v_set(1));
    below = _mm512_permutex2var_epi8(t->step1[0], i, t->step1[1]);
    i = _mm512_mask_add_epi8(_mm512_add_epi8(i, i), _mm512_cmpgt_epu8_mask(slot, below), _mm512_add_epi8(i, i), v_set(1));
    advance(s, look_up(&t->freqs, i), _mm512_sub_epi8(slot, look_up(&t->starts, i)), renorm);
    V symbol = look_up(&t->symbols, i);
    const __mmask64 escaped = _mm512_movepi8_mask(symbol); /* classes have 7 bits */
    if (escaped) {
        symbol = _mm512_mask_expand_epi8(symbol, escaped, v_load(*literals));
        *literals += _mm_popcnt_u64(escaped);
    }
    return symbol;
}

static wp_status conditional_decode(wp_rans_decoder *d, const wp_conditional_tables *c, const uint8_t row[16], uint8_t base_exponent, const uint8_t *exponents,
                                    uint8_t *out) {
    const V books = table16(row), base = v_set(base_exponent);
    const conditional_tables t = {table16(c->step8),      v_load(c->step4),        v_load(c->step2),        {v_load(c->step1), v_load(c->step1 + 64)},
                                  load_table256(c->freq), load_table256(c->start), load_table256(c->symbol)};
    states s[2];
    v_load2((const uint8_t *)d->x, s[0].lo_hi);
    v_load2((const uint8_t *)(d->x + 64), s[1].lo_hi);
    wp_rans_guard(d);
    v_store(out, conditional_half(&s[0], _mm512_shuffle_epi8(books, context_of(v_load(exponents), base)), &t, &d->renorm, &d->literals));
    v_store(out + 64, conditional_half(&s[1], _mm512_shuffle_epi8(books, context_of(v_load(exponents + 64), base)), &t, &d->renorm, &d->literals));
    v_store2((uint8_t *)d->x, s[0].lo_hi);
    v_store2((uint8_t *)(d->x + 64), s[1].lo_hi);
    return overran(d) ? WP_TRUNCATED : WP_OK;
}

/* Sixteen of them, in 32 bits; returns whether a codebook lacks one. A state below freq * 256 has a quotient below 256: the product with the reciprocal, made
 * a little too small, is the quotient or one less. */
INLINE int conditional_encode_16(uint16_t *x, const uint32_t *entries, const uint8_t *books, const uint8_t *symbols, __mmask16 lanes, uint8_t **renorm,
                                 uint8_t **literals) {
    const __m128i symbol = _mm_loadu_si128((const __m128i *)symbols);
    const V i = v_or(_mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)books)), 7), _mm512_cvtepu8_epi32(symbol));
    const V entry = _mm512_i32gather_epi32(i, entries, 4), byte = _mm512_set1_epi32(255);
    const V freq = v_and(entry, byte), start = v_and(_mm512_srli_epi32(entry, 8), byte);
    V state = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    const __mmask16 escapes = _mm512_mask_cmpge_epu32_mask(lanes, entry, _mm512_set1_epi32(1 << 16));
    const __mmask16 full = _mm512_mask_cmpge_epu32_mask(lanes, state, _mm512_slli_epi32(freq, 8));
    if (escapes) {
        *literals -= _mm_popcnt_u32(escapes);
        _mm_mask_storeu_epi8(*literals, (__mmask16)((1u << _mm_popcnt_u32(escapes)) - 1), _mm_maskz_compress_epi8(escapes, symbol));
    }
    *renorm -= _mm_popcnt_u32(full);
    _mm_mask_storeu_epi8(*renorm, (__mmask16)((1u << _mm_popcnt_u32(full)) - 1), _mm_maskz_compress_epi8(full, _mm512_cvtepi32_epi8(state)));
    state = _mm512_mask_srli_epi32(state, full, state, 8);
    const __m512 reciprocal = _mm512_mul_ps(_mm512_rcp14_ps(_mm512_cvtepi32_ps(freq)), _mm512_set1_ps(1 - 1.0f / 4096));
    V quotient = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(state), reciprocal));
    V rest = _mm512_sub_epi32(state, _mm512_mullo_epi16(quotient, freq));
    const __mmask16 less = _mm512_cmpge_epu32_mask(rest, freq);
    quotient = _mm512_mask_add_epi32(quotient, less, quotient, _mm512_set1_epi32(1));
    rest = _mm512_mask_sub_epi32(rest, less, rest, freq);
    const V next = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(quotient, 8), rest), start);
    _mm256_mask_storeu_epi16(x, lanes, _mm512_cvtepi32_epi16(next));
    return _mm512_mask_testn_epi32_mask(lanes, freq, freq) != 0;
}

static wp_status conditional_encode(wp_conditional_encoder *e, const uint8_t *cells, const uint8_t *symbols, size_t n) {
    uint8_t books[WP_BLOCK], padded[2][WP_BLOCK] = {{0}};
    if (n < WP_BLOCK) {
        memcpy(padded[0], cells, n);
        memcpy(padded[1], symbols, n);
        cells = padded[0];
        symbols = padded[1];
    }
    const table256 map = load_table256(e->map);
    for (size_t i = 0; i < WP_BLOCK; i += 64) v_store(books + i, look_up(&map, v_load(cells + i)));
    uint8_t *renorm = e->renorm, *literals = e->literals;
    int lacks = 0;
    for (size_t i = (n + 15) / 16 * 16; i > 0;) {
        i -= 16;
        const __mmask16 lanes = (__mmask16)(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
        lacks |= conditional_encode_16(e->x + i, e->entry, books + i, symbols + i, lanes, &renorm, &literals);
    }
    e->renorm = renorm;
    e->literals = literals;
    return lacks ? WP_ARGUMENT : WP_OK;
}

/* ---- vectors of 16 floats, for dot_kernels.h ---- */

typedef __m512 F;
enum { F_LANES = 16 };
INLINE F f_zero(void) { return _mm512_setzero_ps(); }
INLINE F f_add(F a, F b) { return _mm512_add_ps(a, b); }
INLINE F f_fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float f_sum(F v) { return _mm512_reduce_add_ps(v); }
INLINE F f_bf16(const uint8_t *p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16)); }
INLINE F f_f16(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE F f_f32(const uint8_t *p) { return _mm512_loadu_ps(p); }

#include "dot_kernels.h"

const wp_kernels wp_kernels_avx512 = {
    .crc32c = crc32c,
    .histogram = histogram,
    .rans_decode = rans_decode,
    .rans_encode = rans_encode,
    .context_decode = context_decode,
    .context_encode = context_encode,
    .conditional_decode = conditional_decode,
    .conditional_encode = conditional_encode,
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

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
