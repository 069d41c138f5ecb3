/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. The kernels for AVX2 with FMA, F16C, BMI2, POPCNT, SSE4.2 and PCLMULQDQ.
 * rANS keeps 32 states as two vectors of bytes in lane order: `hi` has the high byte of each state, `lo` the low one. So the slot is `lo` as it
 * stands, "state < 256" is "byte of hi is 0", and movemask has the lanes in stream order. Only the multiplication needs 16 bits: even and odd lanes
 * apart, and joined again with shifts and masks. The rank of a slot comes out of a binary search over the 16 starts: four compares, three shuffles.
 * Renormalisation bytes and literals move 8 lanes at a time, by a byte shuffle that the 8 mask bits select.
 * Over-read: the decoder loads 8 bytes at both pointers for each 8 lanes and uses those that it needs; wp_rans_guard vouches for the rest. The
 * encoder stores 8 bytes that end where the stream begins: up to 8 bytes of rubbish stand below its pointers, inside the 64 that kernels.h grants.
 */
#include "kernels.h"
#include "mem.h"
#ifdef WP_X86_64
#include <immintrin.h>

/* clang: "crc32" by name, because zig cc takes it out of its baseline and sse4.2 does not bring it back. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt,sse4.2,crc32,pclmul"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt,sse4.2,pclmul")
#endif
#ifdef _MSC_VER
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

/* ---- vectors of 32 bytes, for kernels_generic.h ---- */

typedef __m256i V;
enum { V_LANES = 32 };
#define V_SHL(v, n) _mm256_slli_epi16(v, n)
#define V_SHR(v, n) _mm256_srli_epi16(v, n)
INLINE V v_set(uint8_t c) { return _mm256_set1_epi8((char)c); }
INLINE V v_or(V a, V b) { return _mm256_or_si256(a, b); }
INLINE V v_and(V a, V b) { return _mm256_and_si256(a, b); }
INLINE V v_select(V m, V a, V b) { return _mm256_or_si256(_mm256_and_si256(m, a), _mm256_andnot_si256(m, b)); }
INLINE V v_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void v_store(uint8_t *p, V v) { _mm256_storeu_si256((__m256i *)p, v); }
/* The same 16 bytes in both halves. */
INLINE V v_twice(__m128i v) { return _mm256_broadcastsi128_si256(v); }
INLINE V v_with_bits(V v, const uint8_t *p, uint8_t c) {
    const V byte = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const V bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    V bits = _mm256_shuffle_epi8(_mm256_set1_epi32((int)wp_load32(p)), byte);
    return v_or(v, v_and(_mm256_cmpeq_epi8(v_and(bits, bit), bit), v_set(c)));
}
INLINE void v_to_bits(uint8_t *p, V v, int bit) { wp_store32(p, (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(v, 7 - bit))); }
INLINE unsigned first_one(uint64_t word) { return (unsigned)_tzcnt_u64(word); }
INLINE uint64_t v_or_words(const uint8_t *p, size_t n) {
    V any = v_or(v_load(p), v_load(p + 32));
    for (size_t i = 64; i < n; i += 32) any = v_or(any, v_load(p + i));
    __m128i x = _mm_or_si128(_mm256_castsi256_si128(any), _mm256_extracti128_si256(any, 1));
    return (uint64_t)_mm_cvtsi128_si64(x) | (uint64_t)_mm_extract_epi64(x, 1);
}
INLINE uint32_t sum_bytes(V v) {
    V sums = _mm256_sad_epu8(v, _mm256_setzero_si256());
    __m128i x = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return (uint32_t)_mm_cvtsi128_si32(x) + (uint32_t)_mm_extract_epi32(x, 2);
}
/* Compares with each value; a comparison's -1 is subtracted from its counter. */
INLINE size_t v_count_window(const uint8_t *p, size_t n, uint8_t first, uint32_t *counts) {
    const size_t n_vectors = n / V_LANES;
    for (size_t i = 0, end; i < n_vectors; i = end) {
        end = n_vectors - i < 255 ? n_vectors : i + 255; /* a counter has 8 bits */
        for (unsigned half = 0; half < 16; half += 8) { /* eight counters fit in registers */
            V counters[8];
            for (unsigned k = 0; k < 8; k++) counters[k] = v_set(0);
            for (size_t j = i; j < end; j++) {
                V place = _mm256_sub_epi8(v_load(p + j * V_LANES), v_set(first));
                for (unsigned k = 0; k < 8; k++) counters[k] = _mm256_sub_epi8(counters[k], _mm256_cmpeq_epi8(place, v_set((uint8_t)(half + k))));
                if (half) continue;
                uint32_t others = (uint32_t)~_mm256_movemask_epi8(_mm256_cmpeq_epi8(v_and(place, v_set(0xf0)), _mm256_setzero_si256()));
                for (; others; others &= others - 1) counts[p[j * V_LANES + _tzcnt_u32(others)]]++;
            }
            for (unsigned k = 0; k < 8; k++) counts[first + half + k] += sum_bytes(counters[k]);
        }
    }
    return n_vectors * V_LANES;
}

/* Unpacks work inside 128-bit halves: half k of store j must get the elements that belong there, hence a transposition of pairs (half, piece)
 * before the unpacks, or after the packs. */
INLINE void v_store2(uint8_t *p, const V *v) {
    V a = _mm256_unpacklo_epi8(v[0], v[1]), b = _mm256_unpackhi_epi8(v[0], v[1]);
    v_store(p, _mm256_permute2x128_si256(a, b, 0x20));
    v_store(p + 32, _mm256_permute2x128_si256(a, b, 0x31));
}
INLINE void v_load2(const uint8_t *p, V *v) {
    const V order = v_twice(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    V a = _mm256_shuffle_epi8(v_load(p), order), b = _mm256_shuffle_epi8(v_load(p + 32), order);
    v[0] = _mm256_permute4x64_epi64(_mm256_unpacklo_epi64(a, b), 0xD8);
    v[1] = _mm256_permute4x64_epi64(_mm256_unpackhi_epi64(a, b), 0xD8);
}
INLINE void v_store4(uint8_t *p, const V *v) {
    const V order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    V a = _mm256_permutevar8x32_epi32(v[0], order), b = _mm256_permutevar8x32_epi32(v[1], order);
    V c = _mm256_permutevar8x32_epi32(v[2], order), d = _mm256_permutevar8x32_epi32(v[3], order);
    V ab0 = _mm256_unpacklo_epi8(a, b), ab1 = _mm256_unpackhi_epi8(a, b), cd0 = _mm256_unpacklo_epi8(c, d), cd1 = _mm256_unpackhi_epi8(c, d);
    v_store(p, _mm256_unpacklo_epi16(ab0, cd0));
    v_store(p + 32, _mm256_unpackhi_epi16(ab0, cd0));
    v_store(p + 64, _mm256_unpacklo_epi16(ab1, cd1));
    v_store(p + 96, _mm256_unpackhi_epi16(ab1, cd1));
}
INLINE void v_load4(const uint8_t *p, V *v) {
    const V order = v_twice(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)), back = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    V a = _mm256_shuffle_epi8(v_load(p), order), b = _mm256_shuffle_epi8(v_load(p + 32), order);
    V c = _mm256_shuffle_epi8(v_load(p + 64), order), d = _mm256_shuffle_epi8(v_load(p + 96), order);
    V ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b), cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d);
    v[0] = _mm256_permutevar8x32_epi32(_mm256_unpacklo_epi64(ab0, cd0), back);
    v[1] = _mm256_permutevar8x32_epi32(_mm256_unpackhi_epi64(ab0, cd0), back);
    v[2] = _mm256_permutevar8x32_epi32(_mm256_unpacklo_epi64(ab1, cd1), back);
    v[3] = _mm256_permutevar8x32_epi32(_mm256_unpackhi_epi64(ab1, cd1), back);
}
INLINE void v_store8(uint8_t *p, const V *v) {
    /* Even words to the low half, odd words to the high one. */
    const V order = v_twice(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    V w[8], pair[8]; /* pair[2k], pair[2k + 1]: bytes 2k and 2k + 1 of the first and the last 16 elements */
    for (int k = 0; k < 8; k++) w[k] = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v[k], order), 0xD8);
    for (int k = 0; k < 8; k += 2) {
        pair[k] = _mm256_unpacklo_epi8(w[k], w[k + 1]);
        pair[k + 1] = _mm256_unpackhi_epi8(w[k], w[k + 1]);
    }
    for (int h = 0; h < 2; h++, p += 128) {
        V a0 = _mm256_unpacklo_epi16(pair[h], pair[h + 2]), a1 = _mm256_unpackhi_epi16(pair[h], pair[h + 2]);
        V b0 = _mm256_unpacklo_epi16(pair[h + 4], pair[h + 6]), b1 = _mm256_unpackhi_epi16(pair[h + 4], pair[h + 6]);
        v_store(p, _mm256_unpacklo_epi32(a0, b0));
        v_store(p + 32, _mm256_unpackhi_epi32(a0, b0));
        v_store(p + 64, _mm256_unpacklo_epi32(a1, b1));
        v_store(p + 96, _mm256_unpackhi_epi32(a1, b1));
    }
}
/* Undoes `order` of v_store8. */
INLINE V join_words(V v) {
    const V order = v_twice(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    return _mm256_shuffle_epi8(_mm256_permute4x64_epi64(v, 0xD8), order);
}
INLINE void v_load8(const uint8_t *p, V *v) {
    const V order = v_twice(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    V w[8], x[8]; /* w: words of byte k of two elements; x[2k], x[2k + 1]: dwords of bytes 0..3 and 4..7 */
    for (int k = 0; k < 8; k++) w[k] = _mm256_shuffle_epi8(v_load(p + 32 * k), order);
    for (int k = 0; k < 8; k += 2) {
        x[k] = _mm256_unpacklo_epi16(w[k], w[k + 1]);
        x[k + 1] = _mm256_unpackhi_epi16(w[k], w[k + 1]);
    }
    for (int h = 0; h < 2; h++, v += 4) {
        V a0 = _mm256_unpacklo_epi32(x[h], x[h + 2]), a1 = _mm256_unpackhi_epi32(x[h], x[h + 2]);
        V b0 = _mm256_unpacklo_epi32(x[h + 4], x[h + 6]), b1 = _mm256_unpackhi_epi32(x[h + 4], x[h + 6]);
        v[0] = join_words(_mm256_unpacklo_epi64(a0, b0));
        v[1] = join_words(_mm256_unpackhi_epi64(a0, b0));
        v[2] = join_words(_mm256_unpacklo_epi64(a1, b1));
        v[3] = join_words(_mm256_unpackhi_epi64(a1, b1));
    }
}

#include "kernels_generic.h"

/* ---- CRC-32C: carry-less multiplication and the crc32 instruction run on different ports, so long inputs use both at once ---- */

INLINE __m128i load128(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }

/* Register r, followed by D zero bits, is r_low * x^(D + 32) + r_high * x^(D - 32) mod P, where r_low and r_high are the (reflected) 64-bit halves. A
 * constant is x^n mod P with its 32 bits reversed, shifted left by one because the product of two reflected numbers comes out one place too low. */
INLINE __m128i fold(__m128i r, __m128i k, __m128i data) {
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(r, k, 0x00), _mm_clmulepi64_si128(r, k, 0x11)), data);
}
#define FOLD_BY_16 _mm_set_epi64x(0x14cd00bd6, 0xf20c0dfe)
#define FOLD_BY_64 _mm_set_epi64x(0x9e4addf8, 0x740eef02)

/* A 64-bit word whose CRC from a register of zero is `crc` followed by N zero bytes; k is x^(8 N - 33) mod P, bits reversed. Below, N is 3, 2 and
 * 1 times RUN. */
INLINE uint64_t shifted(uint64_t crc, uint32_t k) {
    return (uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi64_si128((long long)(uint64_t)k), 0));
}

/* FOLDED bytes by multiplication, then three runs of RUN bytes by instruction. */
enum { STEPS = 36, FOLDED = STEPS * 64, RUN = STEPS * 16, LONG = FOLDED + 3 * RUN };

/* Four registers in the order of the stream; each step folds the next 64 bytes in. */
typedef struct { __m128i a, b, c, d; } folded64;
INLINE folded64 fold_open(uint64_t crc, const uint8_t *p) {
    return (folded64){_mm_xor_si128(load128(p), _mm_cvtsi32_si128((int)(uint32_t)crc)), load128(p + 16), load128(p + 32), load128(p + 48)};
}
INLINE void fold_step(folded64 *r, const uint8_t *p) {
    r->a = fold(r->a, FOLD_BY_64, load128(p));
    r->b = fold(r->b, FOLD_BY_64, load128(p + 16));
    r->c = fold(r->c, FOLD_BY_64, load128(p + 32));
    r->d = fold(r->d, FOLD_BY_64, load128(p + 48));
}
/* The last 16 bytes stand for all before them: their CRC from a register of zero is the stream's. */
INLINE uint64_t fold_close(const folded64 *r) {
    __m128i last = fold(fold(fold(r->a, FOLD_BY_16, r->b), FOLD_BY_16, r->c), FOLD_BY_16, r->d);
    return _mm_crc32_u64(_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(last)), (uint64_t)_mm_extract_epi64(last, 1));
}

static uint64_t crc_long(uint64_t crc, const uint8_t *p) {
    const uint8_t *q = p + FOLDED;
    folded64 r = fold_open(crc, p);
    uint64_t a = 0, b = 0, c = 0;
    for (int step = 0;;) {
        a = _mm_crc32_u64(_mm_crc32_u64(a, wp_load64(q)), wp_load64(q + 8));
        b = _mm_crc32_u64(_mm_crc32_u64(b, wp_load64(q + RUN)), wp_load64(q + RUN + 8));
        c = _mm_crc32_u64(c, wp_load64(q + 2 * RUN));
        if (++step == STEPS) break; /* c lacks its last word, which takes the other three along */
        c = _mm_crc32_u64(c, wp_load64(q + 2 * RUN + 8));
        p += 64;
        q += 16;
        fold_step(&r, p);
    }
    return _mm_crc32_u64(c, wp_load64(q + 2 * RUN + 8) ^ shifted(fold_close(&r), 0x00bcf5f6) ^ shifted(a, 0x86d8e4d2) ^ shifted(b, 0x271d9844));
}

static uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t c = ~crc;
    for (; n >= LONG; p += LONG, n -= LONG) c = crc_long(c, p);
    if (n >= 128) {
        folded64 r = fold_open(c, p);
        for (p += 64, n -= 64; n >= 64; p += 64, n -= 64) fold_step(&r, p);
        c = fold_close(&r);
    }
    for (; n >= 8; n -= 8, p += 8) c = _mm_crc32_u64(c, wp_load64(p));
    uint32_t c32 = (uint32_t)c;
    for (; n; n--, p++) c32 = _mm_crc32_u8(c32, *p);
    return ~c32;
}

/* ---- moving bytes of 8 lanes by a mask of 8 bits ---- */

#include "lanes8.h"

#define WP_NONZERO64(p)                                                                                 \
    (~((uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v_load(p), _mm256_setzero_si256())) | \
       (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v_load((p) + 32), _mm256_setzero_si256())) << 32))
#include "difference_kernels.h"

INLINE __m128i expand_8_lanes(const uint8_t *p, uint32_t mask) {
    return _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)p), _mm_loadl_epi64((const __m128i *)&wp_expand8[mask]));
}

/* The next bytes of a stream, one for each bit of the mask, in its lane. */
INLINE V pull(const uint8_t **stream, uint32_t mask) {
    const uint8_t *p = *stream;
    *stream = p + _mm_popcnt_u32(mask);
    __m128i a = expand_8_lanes(p, mask & 0xff), b = expand_8_lanes(p + _mm_popcnt_u32(mask & 0xff), mask >> 8 & 0xff);
    __m128i c = expand_8_lanes(p + _mm_popcnt_u32(mask & 0xffff), mask >> 16 & 0xff);
    __m128i d = expand_8_lanes(p + _mm_popcnt_u32(mask & 0xffffff), mask >> 24);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi64(a, b)), _mm_unpacklo_epi64(c, d), 1);
}

INLINE void compress_8_lanes(uint8_t *end, __m128i v, uint32_t mask) {
    _mm_storel_epi64((__m128i *)(end - 8), _mm_shuffle_epi8(v, _mm_loadl_epi64((const __m128i *)&wp_compress8[mask])));
}

/* Writes the bytes that the mask selects below *stream, in lane order: from the last lanes down, so that each covers the rubbish before it. */
INLINE void push(uint8_t **stream, uint32_t mask, V v) {
    uint8_t *p = *stream;
    *stream = p - _mm_popcnt_u32(mask);
    __m128i low = _mm256_castsi256_si128(v), high = _mm256_extracti128_si256(v, 1);
    compress_8_lanes(p, _mm_unpackhi_epi64(high, high), mask >> 24);
    compress_8_lanes(p - _mm_popcnt_u32(mask >> 24), high, mask >> 16 & 0xff);
    compress_8_lanes(p - _mm_popcnt_u32(mask >> 16), _mm_unpackhi_epi64(low, low), mask >> 8 & 0xff);
    compress_8_lanes(p - _mm_popcnt_u32(mask >> 8), low, mask & 0xff);
}

/* ---- rANS ---- */

INLINE V table16(const uint8_t *t) { return v_twice(load128(t)); }

/* 32 states; memory has them as little-endian words, which is byte 0 and byte 1 of 32 elements. */
typedef struct { V lo_hi[2]; } states;

/* threshold_s finds, for a rank that is a multiple of 2 s, whether the slot's is at least s more. Compares are signed, so slots and starts have
 * bit 7 flipped. */
typedef struct { V threshold_8, threshold_4, threshold_2, threshold_1, freqs, starts, symbols, escape; } decoder_tables;

INLINE decoder_tables load_decoder_tables(const wp_rans_table *t) {
    const V flip = v_set(0x80);
    return (decoder_tables){_mm256_xor_si256(v_set(t->threshold[3][0]), flip),
                            _mm256_xor_si256(table16(t->threshold[2]), flip),
                            _mm256_xor_si256(table16(t->threshold[1]), flip),
                            _mm256_xor_si256(table16(t->threshold[0]), flip),
                            table16(t->freq),
                            table16(t->start),
                            table16(t->symbol),
                            v_set(t->n_symbols)};
}

/* The next states: freq * (x >> 8) + bias, and the next bytes of the stream where that fell below 256. */
INLINE void advance(states *s, V freq, V bias, const uint8_t **renorm) {
    const V low8 = _mm256_set1_epi16(0xff), old = s->lo_hi[1];
    V even = _mm256_add_epi16(_mm256_mullo_epi16(v_and(freq, low8), v_and(old, low8)), v_and(bias, low8));
    V odd = _mm256_add_epi16(_mm256_mullo_epi16(V_SHR(freq, 8), V_SHR(old, 8)), V_SHR(bias, 8));
    V lo = v_or(v_and(even, low8), V_SHL(odd, 8)), hi = v_or(V_SHR(even, 8), _mm256_andnot_si256(low8, odd));
    V need = _mm256_cmpeq_epi8(hi, _mm256_setzero_si256());
    s->lo_hi[1] = v_or(hi, v_and(need, lo)); /* what is needed is 0 in hi, and the others are 0 in the pulled bytes */
    s->lo_hi[0] = v_or(_mm256_andnot_si256(need, lo), pull(renorm, (uint32_t)_mm256_movemask_epi8(need)));
}

/* One symbol for each of 32 lanes. */
INLINE V decode_quarter(states *s, const decoder_tables *t, const uint8_t **renorm, const uint8_t **literals) {
    const V lo = s->lo_hi[0], slot = _mm256_xor_si256(lo, v_set(0x80));
    V rank = v_and(_mm256_cmpgt_epi8(slot, t->threshold_8), v_set(8));
    rank = v_or(rank, v_and(_mm256_cmpgt_epi8(slot, _mm256_shuffle_epi8(t->threshold_4, rank)), v_set(4)));
    rank = v_or(rank, v_and(_mm256_cmpgt_epi8(slot, _mm256_shuffle_epi8(t->threshold_2, rank)), v_set(2)));
    rank = v_or(rank, v_and(_mm256_cmpgt_epi8(slot, _mm256_shuffle_epi8(t->threshold_1, rank)), v_set(1)));
    advance(s, _mm256_shuffle_epi8(t->freqs, rank), _mm256_sub_epi8(lo, _mm256_shuffle_epi8(t->starts, rank)), renorm);
    V symbol = _mm256_shuffle_epi8(t->symbols, rank), escaped = _mm256_cmpeq_epi8(rank, t->escape);
    uint32_t mask = (uint32_t)_mm256_movemask_epi8(escaped);
    if (mask) symbol = v_or(_mm256_andnot_si256(escaped, symbol), pull(literals, mask));
    return symbol;
}

INLINE int overran(const wp_rans_decoder *d) {
    return (d->renorm_in_tail && d->renorm > d->renorm_end) || (d->literals_in_tail && d->literals > d->literals_end);
}

static wp_status rans_decode(wp_rans_decoder *d, uint8_t *out, size_t n_groups) {
    const decoder_tables t = load_decoder_tables(d->table);
    const uint8_t *renorm = d->renorm, *literals = d->literals, *renorm_check = renorm, *literals_check = literals;
    states s[4];
    for (int i = 0; i < 4; i++) v_load2((const uint8_t *)(d->x + 32 * i), s[i].lo_hi);
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
        v_store(out, decode_quarter(&s[0], &t, &renorm, &literals));
        v_store(out + 32, decode_quarter(&s[1], &t, &renorm, &literals));
        v_store(out + 64, decode_quarter(&s[2], &t, &renorm, &literals));
        v_store(out + 96, decode_quarter(&s[3], &t, &renorm, &literals));
    }
    for (int i = 0; i < 4; i++) v_store2((uint8_t *)(d->x + 32 * i), s[i].lo_hi);
    d->renorm = renorm;
    d->literals = literals;
    return overran(d) ? WP_TRUNCATED : WP_OK;
}

/* The next state of 16 lanes, in 16 bits. `reciprocal` is floor(65536 / freq), at most 65535, so that the quotient is right or one too small. */
INLINE V encode_words(V x, V freq, V start, V reciprocal) {
    V q = _mm256_mulhi_epu16(x, reciprocal), rest = _mm256_sub_epi16(x, _mm256_mullo_epi16(q, freq));
    V right = _mm256_cmpgt_epi16(freq, rest); /* signed will do: rest < 2 * freq */
    V y = _mm256_add_epi16(_mm256_add_epi16(rest, start), V_SHL(q, 8));
    return _mm256_add_epi16(y, _mm256_andnot_si256(right, _mm256_sub_epi16(_mm256_set1_epi16(256), freq)));
}

/* One 16-entry table for each high nibble that a coded symbol has; the tables' answers can be ORed. */
typedef struct {
    unsigned n;
    V base[16], ranks[16];
    V freqs, starts, reciprocals_low, reciprocals_high, escape;
} encoder_tables;

INLINE V rank_of(const encoder_tables *t, V symbol) {
    V rank = _mm256_setzero_si256();
    for (unsigned i = 0; i < t->n; i++) /* 0x00..0x0f become 0x70..0x7f; all else gets bit 7, which makes the shuffle give 0 */
        rank = v_or(rank, _mm256_shuffle_epi8(t->ranks[i], _mm256_adds_epu8(_mm256_xor_si256(symbol, t->base[i]), v_set(0x70))));
    return _mm256_xor_si256(rank, t->escape);
}

/* The next states of 32 lanes; full ones give a byte to the stream first. */
INLINE void retreat(states *s, V freq, V start, V reciprocal_low, V reciprocal_high, uint8_t **renorm) {
    const V low8 = _mm256_set1_epi16(0xff);
    V lo = s->lo_hi[0], hi = s->lo_hi[1];
    V full = _mm256_cmpeq_epi8(_mm256_max_epu8(hi, freq), hi);
    push(renorm, (uint32_t)_mm256_movemask_epi8(full), lo);
    lo = _mm256_blendv_epi8(lo, hi, full);
    hi = _mm256_andnot_si256(full, hi);
    V even = encode_words(v_or(v_and(lo, low8), V_SHL(hi, 8)), v_and(freq, low8), v_and(start, low8),
                          v_or(v_and(reciprocal_low, low8), V_SHL(reciprocal_high, 8)));
    V odd = encode_words(v_or(V_SHR(lo, 8), _mm256_andnot_si256(low8, hi)), V_SHR(freq, 8), V_SHR(start, 8),
                         v_or(V_SHR(reciprocal_low, 8), _mm256_andnot_si256(low8, reciprocal_high)));
    s->lo_hi[0] = v_or(v_and(even, low8), V_SHL(odd, 8));
    s->lo_hi[1] = v_or(V_SHR(even, 8), _mm256_andnot_si256(low8, odd));
}

INLINE void encode_quarter(states *s, V symbol, const encoder_tables *t, uint8_t **renorm, uint8_t **literals) {
    V rank = rank_of(t, symbol);
    uint32_t escaped = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(rank, t->escape));
    if (escaped) push(literals, escaped, symbol);
    retreat(s, _mm256_shuffle_epi8(t->freqs, rank), _mm256_shuffle_epi8(t->starts, rank), _mm256_shuffle_epi8(t->reciprocals_low, rank),
            _mm256_shuffle_epi8(t->reciprocals_high, rank), renorm);
}

static void rans_encode(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups) {
    encoder_tables t;
    t.n = e->table->n_nibbles;
    for (unsigned i = 0; i < t.n; i++) {
        t.base[i] = v_set((uint8_t)(16 * e->table->nibble[i]));
        t.ranks[i] = table16(e->table->ranks_of_nibble[i]);
    }
    t.freqs = table16(e->table->freq8);
    t.starts = table16(e->table->start8);
    t.reciprocals_low = table16(e->table->quotient_low);
    t.reciprocals_high = table16(e->table->quotient_high);
    t.escape = v_set(e->table->n_symbols);
    uint8_t *renorm = e->renorm, *literals = e->literals;
    states s[4];
    for (int i = 0; i < 4; i++) v_load2((const uint8_t *)(e->x + 32 * i), s[i].lo_hi);
    for (const uint8_t *p = symbols + n_groups * WP_BLOCK; p != symbols;) {
        p -= WP_BLOCK;
        encode_quarter(&s[3], v_load(p + 96), &t, &renorm, &literals);
        encode_quarter(&s[2], v_load(p + 64), &t, &renorm, &literals);
        encode_quarter(&s[1], v_load(p + 32), &t, &renorm, &literals);
        encode_quarter(&s[0], v_load(p), &t, &renorm, &literals);
    }
    for (int i = 0; i < 4; i++) v_store2((uint8_t *)(e->x + 32 * i), s[i].lo_hi);
    e->renorm = renorm;
    e->literals = literals;
}

/* ---- rANS in a context ---- */

INLINE V context_of(V next, V base) { return _mm256_min_epu8(_mm256_subs_epu8(next, base), v_set(WP_N_CONTEXTS - 1)); }
INLINE V at_least(V a, V b) { return _mm256_cmpeq_epi8(_mm256_max_epu8(a, b), a); }

INLINE V context_quarter(states *s, V next, V base, const V *thresholds, const uint8_t **renorm) {
    const V slot = s->lo_hi[0], c = context_of(next, base);
    V one = _mm256_shuffle_epi8(thresholds[0], c), two = _mm256_shuffle_epi8(thresholds[1], c), three = _mm256_shuffle_epi8(thresholds[2], c);
    V is_1 = at_least(slot, one), is_2 = at_least(slot, two), is_3 = at_least(slot, three);
    V start = _mm256_blendv_epi8(_mm256_blendv_epi8(v_and(is_1, one), two, is_2), three, is_3);
    V end = _mm256_andnot_si256(is_3, _mm256_blendv_epi8(_mm256_blendv_epi8(one, two, is_1), three, is_2)); /* 0 for 256 */
    advance(s, _mm256_sub_epi8(end, start), _mm256_sub_epi8(slot, start), renorm);
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(_mm256_add_epi8(is_1, is_2), is_3));
}

static wp_status context_decode(wp_context_decoder *d, const uint8_t *next, uint8_t *out, size_t n_groups) {
    const V base = v_set(d->base), thresholds[3] = {table16(d->start[0]), table16(d->start[1]), table16(d->start[2])};
    states s[4];
    for (int i = 0; i < 4; i++) v_load2((const uint8_t *)(d->x + 32 * i), s[i].lo_hi);
    for (size_t g = 0; g < n_groups; g++, next += WP_BLOCK, out += WP_BLOCK) {
        wp_context_guard(d);
        const uint8_t *renorm = d->renorm;
        for (int i = 0; i < 4; i++) v_store(out + 32 * i, context_quarter(&s[i], v_load(next + 32 * i), base, thresholds, &renorm));
        d->renorm = renorm;
        if (d->renorm_in_tail && renorm > d->renorm_end) return WP_TRUNCATED;
    }
    for (int i = 0; i < 4; i++) v_store2((uint8_t *)(d->x + 32 * i), s[i].lo_hi);
    return WP_OK;
}

/* By symbol, then by context. */
typedef struct { V of[WP_CONTEXT_SYMBOLS]; } context_table;

INLINE context_table load_context_table(const uint8_t *by_context) {
    context_table t;
    uint8_t one[WP_N_CONTEXTS];
    for (int s = 0; s < WP_CONTEXT_SYMBOLS; s++) {
        for (int c = 0; c < WP_N_CONTEXTS; c++) one[c] = by_context[WP_CONTEXT_SYMBOLS * c + s];
        t.of[s] = table16(one);
    }
    return t;
}

INLINE V look_up(const context_table *t, V context, const V *is_symbol) {
    V found = _mm256_shuffle_epi8(t->of[0], context);
    for (int s = 1; s < WP_CONTEXT_SYMBOLS; s++) found = _mm256_blendv_epi8(found, _mm256_shuffle_epi8(t->of[s], context), is_symbol[s]);
    return found;
}

static void context_encode(wp_context_encoder *e, const uint8_t *next, const uint8_t *symbols, size_t n_groups) {
    uint8_t reciprocals_low[64], reciprocals_high[64];
    for (int i = 0; i < 64; i++) {
        uint32_t reciprocal = e->freq[i] > 1 ? 65536u / e->freq[i] : 65535u;
        reciprocals_low[i] = (uint8_t)reciprocal;
        reciprocals_high[i] = (uint8_t)(reciprocal >> 8);
    }
    const context_table freqs = load_context_table(e->freq), starts = load_context_table(e->start);
    const context_table low = load_context_table(reciprocals_low), high = load_context_table(reciprocals_high);
    const V base = v_set(e->base);
    uint8_t *renorm = e->renorm;
    states s[4];
    for (int i = 0; i < 4; i++) v_load2((const uint8_t *)(e->x + 32 * i), s[i].lo_hi);
    for (size_t at = n_groups * WP_BLOCK; at;) {
        at -= WP_BLOCK;
        for (int i = 3; i >= 0; i--) {
            V c = context_of(v_load(next + at + 32 * i), base), symbol = v_load(symbols + at + 32 * i), is_symbol[WP_CONTEXT_SYMBOLS];
            for (int k = 1; k < WP_CONTEXT_SYMBOLS; k++) is_symbol[k] = _mm256_cmpeq_epi8(symbol, v_set((uint8_t)k));
            retreat(&s[i], look_up(&freqs, c, is_symbol), look_up(&starts, c, is_symbol), look_up(&low, c, is_symbol), look_up(&high, c, is_symbol), &renorm);
        }
    }
    for (int i = 0; i < 4; i++) v_store2((uint8_t *)(e->x + 32 * i), s[i].lo_hi);
    e->renorm = renorm;
}

/* ---- rANS with a codebook a symbol ---- */

/* One symbol for each of 32 lanes. What a codebook says of a slot is gathered: the lanes of a gather are chosen so that unpacking puts all in order again. */
INLINE V conditional_quarter(states *s, V book, const wp_conditional_tables *t, const uint8_t **renorm, const uint8_t **literals) {
    const V zero = _mm256_setzero_si256(), fields = v_twice(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const V low = _mm256_unpacklo_epi8(s->lo_hi[0], book), high = _mm256_unpackhi_epi8(s->lo_hi[0], book);
    const V index[4] = {_mm256_unpacklo_epi16(low, zero), _mm256_unpackhi_epi16(low, zero), _mm256_unpacklo_epi16(high, zero),
                        _mm256_unpackhi_epi16(high, zero)};
    V found[4];
    for (int i = 0; i < 4; i++) found[i] = _mm256_shuffle_epi8(_mm256_i32gather_epi32((const int *)t->by_slot, index[i], 4), fields);
    const V a = _mm256_unpacklo_epi32(found[0], found[1]), b = _mm256_unpacklo_epi32(found[2], found[3]);
    advance(s, _mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b), renorm);
    V symbol = _mm256_unpacklo_epi64(_mm256_unpackhi_epi32(found[0], found[1]), _mm256_unpackhi_epi32(found[2], found[3]));
    const uint32_t escaped = (uint32_t)_mm256_movemask_epi8(symbol); /* classes have 7 bits */
    if (escaped) symbol = _mm256_blendv_epi8(symbol, pull(literals, escaped), symbol);
    return symbol;
}

static wp_status conditional_decode(wp_rans_decoder *d, const wp_conditional_tables *t, const uint8_t row[16], uint8_t base_exponent, const uint8_t *exponents,
                                    uint8_t *out) {
    const V books = table16(row), base = v_set(base_exponent), most = v_set(WP_N_CONTEXTS - 1);
    wp_rans_guard(d);
    for (int i = 0; i < 4; i++) {
        const V context = _mm256_min_epu8(_mm256_subs_epu8(v_load(exponents + 32 * i), base), most);
        states s;
        v_load2((const uint8_t *)(d->x + 32 * i), s.lo_hi);
        v_store(out + 32 * i, conditional_quarter(&s, _mm256_shuffle_epi8(books, context), t, &d->renorm, &d->literals));
        v_store2((uint8_t *)(d->x + 32 * i), s.lo_hi);
    }
    return overran(d) ? WP_TRUNCATED : WP_OK;
}

/* ---- vectors of 8 floats, for dot_kernels.h ---- */

typedef __m256 F;
enum { F_LANES = 8 };
INLINE F f_zero(void) { return _mm256_setzero_ps(); }
INLINE F f_add(F a, F b) { return _mm256_add_ps(a, b); }
INLINE F f_fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
INLINE float f_sum(F v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
INLINE F f_bf16(const uint8_t *p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16)); }
INLINE F f_f16(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE F f_f32(const uint8_t *p) { return _mm256_loadu_ps((const float *)p); }

#include "dot_kernels.h"

const wp_kernels wp_kernels_avx2 = {
    .crc32c = crc32c,
    .histogram = histogram,
    .rans_decode = rans_decode,
    .rans_encode = rans_encode,
    .context_decode = context_decode,
    .context_encode = context_encode,
    .conditional_decode = conditional_decode,
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

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
