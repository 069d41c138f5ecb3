/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. The kernels for AArch64: Advanced SIMD, and the CRC32 instructions of ARMv8.1 (optional before it).
 * rANS keeps 16 states as two vectors of bytes in lane order, as kernels_avx2.c does: `hi` has the high byte of each state, `lo` the low one. Bytes
 * multiply into words here (UMULL), so nothing has to be taken apart for the product. The rank of a slot comes out of a binary search over the 16 starts.
 * Half a group, 64 lanes, goes through together: their comparisons become one 64-bit mask, and one multiplication gives the places of all eight
 * runs of 8 lanes in the stream.
 * Over-read: the decoder loads 8 bytes at both pointers for each 8 lanes and uses those that it needs; wp_rans_guard vouches for the rest. The
 * encoder stores 8 bytes that end where the stream begins: up to 8 bytes of rubbish stand below its pointers, inside the 64 that kernels.h grants.
 */
#include "kernels.h"
#include "mem.h"
#ifdef WP_AARCH64
#include <arm_acle.h>
#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("crc"))), apply_to = function)
#else
#pragma GCC target("+crc")
#endif
#define INLINE static inline __attribute__((always_inline))

/* ---- vectors of 16 bytes, for kernels_generic.h ---- */

typedef uint8x16_t V;
enum { V_LANES = 16 };
#define V_SHL(v, n) vshlq_n_u8(v, n)
#define V_SHR(v, n) vshrq_n_u8(v, n)
INLINE V v_set(uint8_t c) { return vdupq_n_u8(c); }
INLINE V v_or(V a, V b) { return vorrq_u8(a, b); }
INLINE V v_and(V a, V b) { return vandq_u8(a, b); }
INLINE V v_select(V m, V a, V b) { return vbslq_u8(m, a, b); }
INLINE V v_load(const uint8_t *p) { return vld1q_u8(p); }
INLINE void v_store(uint8_t *p, V v) { vst1q_u8(p, v); }
INLINE V bit_of_lane(void) { return vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u)); }
INLINE V v_with_bits(V v, const uint8_t *p, uint8_t c) {
    V bits = vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1]));
    return v_or(v, v_and(vtstq_u8(bits, bit_of_lane()), v_set(c)));
}
INLINE void v_to_bits(uint8_t *p, V v, int bit) {
    V bits = v_and(vtstq_u8(v, v_set((uint8_t)(1 << bit))), bit_of_lane());
    p[0] = vaddv_u8(vget_low_u8(bits));
    p[1] = vaddv_u8(vget_high_u8(bits));
}
INLINE uint64_t v_or_words(const uint8_t *p, size_t n) {
    V any = v_or(v_load(p), v_load(p + 16));
    for (size_t i = 32; i < n; i += 16) any = v_or(any, v_load(p + i));
    uint64x2_t words = vreinterpretq_u64_u8(any);
    return vgetq_lane_u64(words, 0) | vgetq_lane_u64(words, 1);
}
INLINE unsigned first_one(uint64_t word) { return (unsigned)__builtin_ctzll(word); }
/* Compares with each value; a comparison's -1 is subtracted from its counter. */
INLINE size_t v_count_window(const uint8_t *p, size_t n, uint8_t first, uint32_t *counts) {
    const size_t n_vectors = n / V_LANES;
    for (size_t i = 0, end; i < n_vectors; i = end) {
        end = n_vectors - i < 255 ? n_vectors : i + 255; /* a counter has 8 bits */
        V counters[16];
        for (unsigned k = 0; k < 16; k++) counters[k] = v_set(0);
        for (size_t j = i; j < end; j++) {
            V place = vsubq_u8(v_load(p + j * V_LANES), v_set(first));
            for (unsigned k = 0; k < 16; k++) counters[k] = vsubq_u8(counters[k], vceqq_u8(place, v_set((uint8_t)k)));
            if (vmaxvq_u8(place) < 16) continue;
            for (unsigned l = 0; l < V_LANES; l++) {
                uint8_t symbol = p[j * V_LANES + l];
                counts[symbol] += (uint8_t)(symbol - first) >= 16;
            }
        }
        for (unsigned k = 0; k < 16; k++) counts[first + k] += vaddlvq_u8(counters[k]);
    }
    return n_vectors * V_LANES;
}

/* clang has the stores as macros, which take a compound literal's commas for their own. */
INLINE void v_store2(uint8_t *p, const V *v) {
    const uint8x16x2_t both = {{v[0], v[1]}};
    vst2q_u8(p, both);
}
INLINE void v_load2(const uint8_t *p, V *v) {
    uint8x16x2_t x = vld2q_u8(p);
    v[0] = x.val[0];
    v[1] = x.val[1];
}
INLINE void v_store4(uint8_t *p, const V *v) {
    const uint8x16x4_t all = {{v[0], v[1], v[2], v[3]}};
    vst4q_u8(p, all);
}
INLINE void v_load4(const uint8_t *p, V *v) {
    uint8x16x4_t x = vld4q_u8(p);
    for (int k = 0; k < 4; k++) v[k] = x.val[k];
}
/* Bytes k and k + 4 alternate in a vector, so that interleaving four of them interleaves eight bytes. */
INLINE void v_store8(uint8_t *p, const V *v) {
    V low[4], high[4];
    for (int k = 0; k < 4; k++) {
        low[k] = vzip1q_u8(v[k], v[k + 4]);
        high[k] = vzip2q_u8(v[k], v[k + 4]);
    }
    v_store4(p, low);
    v_store4(p + 64, high);
}
INLINE void v_load8(const uint8_t *p, V *v) {
    V low[4], high[4];
    v_load4(p, low);
    v_load4(p + 64, high);
    for (int k = 0; k < 4; k++) {
        v[k] = vuzp1q_u8(low[k], high[k]);
        v[k + 4] = vuzp2q_u8(low[k], high[k]);
    }
}

#include "kernels_generic.h"

/* ---- CRC-32C: three runs at once, since an instruction takes one cycle but its result two or three ---- */

/* The register `crc` after N zero bytes: the product with x^(8 N), here `power`, modulo the polynomial; all bits reversed. PMULL would do it at once, but small
 * cores lack it, and once in 4 KiB this is no matter. */
INLINE uint32_t shifted(uint32_t crc, uint32_t power) {
    uint32_t product = 0;
    for (int i = 31; i >= 0; i--) {
        product ^= power & -(crc >> i & 1);
        power = power >> 1 ^ (0x82f63b78 & -(power & 1));
    }
    return product;
}
/* A batch of 4096 bf16 is two LONGs and little more. The powers are x^(8 RUN) and x^(16 RUN). */
enum { RUN = 1360, LONG = 3 * RUN };
#define POWER_RUN 0xd6a79573
#define POWER_2_RUN 0x4672c7f2

static uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    uint32_t c = ~crc;
    for (; n >= LONG; p += LONG, n -= LONG) {
        uint32_t a = c, b = 0;
        c = 0;
        for (const uint8_t *q = p; q != p + RUN; q += 8) {
            a = __crc32cd(a, wp_load64(q));
            b = __crc32cd(b, wp_load64(q + RUN));
            c = __crc32cd(c, wp_load64(q + 2 * RUN));
        }
        c ^= shifted(a, POWER_2_RUN) ^ shifted(b, POWER_RUN);
    }
    for (; n >= 8; n -= 8, p += 8) c = __crc32cd(c, wp_load64(p));
    for (; n; n--, p++) c = __crc32cb(c, *p);
    return ~c;
}

/* ---- moving bytes of 8 lanes by a mask of 8 bits, 64 lanes at a time ---- */

#include "lanes8.h"
#include "difference_kernels.h"

/* Bit l: lane l of 64 is 0xff, not 0. */
INLINE uint64_t mask_of(const V *lanes) {
    V bits[4];
    for (int i = 0; i < 4; i++) bits[i] = v_and(lanes[i], bit_of_lane());
    V sums = vpaddq_u8(vpaddq_u8(bits[0], bits[1]), vpaddq_u8(bits[2], bits[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)), 0);
}
/* Byte k: the ones in the mask's bytes 0 to k. At most 64, so no byte carries into the next. */
INLINE uint64_t ones_up_to(uint64_t mask) { return vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(mask))), 0) * 0x0101010101010101u; }

/* The next bytes of a stream, one for each bit of the mask, in its lane. */
INLINE void pull(const uint8_t **stream, uint64_t mask, V *lanes) {
    const uint8_t *p = *stream;
    uint64_t ones = ones_up_to(mask), before = ones << 8;
    uint8x8_t eight[8];
    for (int k = 0; k < 8; k++) eight[k] = vtbl1_u8(vld1_u8(p + (before >> 8 * k & 255)), vcreate_u8(wp_expand8[mask >> 8 * k & 255]));
    for (int k = 0; k < 4; k++) lanes[k] = vcombine_u8(eight[2 * k], eight[2 * k + 1]);
    *stream = p + (ones >> 56);
}

/* Writes the bytes that the mask selects below *stream, in lane order: from the last lanes down, so that each covers the rubbish before it. */
INLINE void push(uint8_t **stream, uint64_t mask, const V *lanes) {
    uint64_t ones = ones_up_to(mask);
    uint8_t *begin = *stream - (ones >> 56);
    for (int k = 7; k >= 0; k--) {
        uint8x8_t eight = k & 1 ? vget_high_u8(lanes[k / 2]) : vget_low_u8(lanes[k / 2]);
        vst1_u8(begin + (ones >> 8 * k & 255) - 8, vtbl1_u8(eight, vcreate_u8(wp_compress8[mask >> 8 * k & 255])));
    }
    *stream = begin;
}

/* ---- rANS ---- */

INLINE V look_up(V table, V index) { return vqtbl1q_u8(table, index); }

/* 64 states; memory has them as little-endian words, which is byte 0 and byte 1 of 64 elements. */
typedef struct { V lo[4], hi[4]; } states;

INLINE void load_states(states *s, const uint16_t *x) {
    for (int i = 0; i < 4; i++) {
        uint8x16x2_t v = vld2q_u8((const uint8_t *)(x + 16 * i));
        s->lo[i] = v.val[0];
        s->hi[i] = v.val[1];
    }
}
INLINE void store_states(uint16_t *x, const states *s) {
    for (int i = 0; i < 4; i++) {
        const uint8x16x2_t words = {{s->lo[i], s->hi[i]}};
        vst2q_u8((uint8_t *)(x + 16 * i), words);
    }
}

/* threshold_s finds, for a rank that is a multiple of 2 s, whether the slot's is at least s more. */
typedef struct { V threshold_8, threshold_4, threshold_2, threshold_1, freqs, starts, symbols, escape; } decoder_tables;

INLINE decoder_tables load_decoder_tables(const wp_rans_table *t) {
    return (decoder_tables){v_set(t->threshold[3][0]), v_load(t->threshold[2]), v_load(t->threshold[1]), v_load(t->threshold[0]),
                            v_load(t->freq),           v_load(t->start),        v_load(t->symbol),       v_set(t->n_symbols)};
}

/* One symbol for each of 64 lanes. */
INLINE void decode_half(states *s, const decoder_tables *t, const uint8_t **renorm, const uint8_t **literals, uint8_t *out) {
    V need[4], escaped[4], pulled[4];
    for (int i = 0; i < 4; i++) {
        V slot = s->lo[i], hi = s->hi[i], rank = v_and(vcgtq_u8(slot, t->threshold_8), v_set(8));
        rank = v_or(rank, v_and(vcgtq_u8(slot, look_up(t->threshold_4, rank)), v_set(4)));
        rank = v_or(rank, v_and(vcgtq_u8(slot, look_up(t->threshold_2, rank)), v_set(2)));
        rank = v_or(rank, v_and(vcgtq_u8(slot, look_up(t->threshold_1, rank)), v_set(1)));
        v_store(out + 16 * i, look_up(t->symbols, rank));
        escaped[i] = vceqq_u8(rank, t->escape);
        V freq = look_up(t->freqs, rank), bias = vsubq_u8(slot, look_up(t->starts, rank));
        uint8x16_t low = vreinterpretq_u8_u16(vaddw_u8(vmull_u8(vget_low_u8(freq), vget_low_u8(hi)), vget_low_u8(bias)));
        uint8x16_t high = vreinterpretq_u8_u16(vaddw_high_u8(vmull_high_u8(freq, hi), bias));
        s->lo[i] = vuzp1q_u8(low, high);
        s->hi[i] = vuzp2q_u8(low, high);
        need[i] = vceqzq_u8(s->hi[i]);
    }
    pull(renorm, mask_of(need), pulled);
    for (int i = 0; i < 4; i++) {
        s->hi[i] = v_select(need[i], s->lo[i], s->hi[i]);
        s->lo[i] = v_select(need[i], pulled[i], s->lo[i]);
    }
    uint64_t mask = mask_of(escaped);
    if (!mask) return;
    pull(literals, mask, pulled);
    for (int i = 0; i < 4; i++) v_store(out + 16 * i, v_select(escaped[i], pulled[i], v_load(out + 16 * i)));
}

INLINE int overran(const wp_rans_decoder *d) {
    return (d->renorm_in_tail && d->renorm > d->renorm_end) || (d->literals_in_tail && d->literals > d->literals_end);
}

static wp_status rans_decode(wp_rans_decoder *d, uint8_t *out, size_t n_groups) {
    const decoder_tables t = load_decoder_tables(d->table);
    const uint8_t *renorm = d->renorm, *literals = d->literals, *renorm_check = renorm, *literals_check = literals;
    states first, second;
    load_states(&first, d->x);
    load_states(&second, d->x + 64);
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
        decode_half(&first, &t, &renorm, &literals, out);
        decode_half(&second, &t, &renorm, &literals, out + 64);
    }
    store_states(d->x, &first);
    store_states(d->x + 64, &second);
    d->renorm = renorm;
    d->literals = literals;
    return overran(d) ? WP_TRUNCATED : WP_OK;
}

/* One 16-entry table for each high nibble that a coded symbol has; the tables' answers can be ORed: a look-up beyond a table gives 0 too. */
typedef struct {
    unsigned n;
    V base[16], ranks[16];
    V freqs, starts, reciprocals_low, reciprocals_high, escape;
} encoder_tables;

INLINE V rank_of(const encoder_tables *t, V symbol) {
    V rank = v_set(0);
    for (unsigned i = 0; i < t->n; i++) rank = v_or(rank, look_up(t->ranks[i], veorq_u8(symbol, t->base[i])));
    return veorq_u8(rank, t->escape);
}

/* The next state of 8 lanes. `reciprocal` is floor(65536 / freq), at most 65535, so that the quotient is right or one too small. */
INLINE uint16x8_t encode_words(uint16x8_t x, uint16x8_t freq, uint16x8_t start, uint16x8_t reciprocal) {
    uint32x4_t low = vmull_u16(vget_low_u16(x), vget_low_u16(reciprocal)), high = vmull_high_u16(x, reciprocal);
    uint16x8_t q = vuzp2q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high)), rest = vmlsq_u16(x, q, freq);
    uint16x8_t more = vandq_u16(vcgeq_u16(rest, freq), vsubq_u16(vdupq_n_u16(256), freq));
    return vaddq_u16(vaddq_u16(vaddq_u16(rest, start), vshlq_n_u16(q, 8)), more);
}

/* 8 lanes of two vectors of bytes as words. */
INLINE uint16x8_t low_words(V lo, V hi) { return vreinterpretq_u16_u8(vzip1q_u8(lo, hi)); }
INLINE uint16x8_t high_words(V lo, V hi) { return vreinterpretq_u16_u8(vzip2q_u8(lo, hi)); }

INLINE void encode_half(states *s, const uint8_t *symbols, const encoder_tables *t, uint8_t **renorm, uint8_t **literals) {
    V symbol[4], rank[4], escaped[4], freq[4], full[4];
    for (int i = 0; i < 4; i++) {
        symbol[i] = v_load(symbols + 16 * i);
        rank[i] = rank_of(t, symbol[i]);
        escaped[i] = vceqq_u8(rank[i], t->escape);
        freq[i] = look_up(t->freqs, rank[i]);
        full[i] = vcgeq_u8(s->hi[i], freq[i]);
    }
    uint64_t mask = mask_of(escaped);
    if (mask) push(literals, mask, symbol);
    push(renorm, mask_of(full), s->lo);
    for (int i = 0; i < 4; i++) {
        const V zero = v_set(0), start = look_up(t->starts, rank[i]);
        V lo = v_select(full[i], s->hi[i], s->lo[i]), hi = vbicq_u8(s->hi[i], full[i]);
        V reciprocal_low = look_up(t->reciprocals_low, rank[i]), reciprocal_high = look_up(t->reciprocals_high, rank[i]);
        V first = vreinterpretq_u8_u16(
            encode_words(low_words(lo, hi), low_words(freq[i], zero), low_words(start, zero), low_words(reciprocal_low, reciprocal_high)));
        V second = vreinterpretq_u8_u16(
            encode_words(high_words(lo, hi), high_words(freq[i], zero), high_words(start, zero), high_words(reciprocal_low, reciprocal_high)));
        s->lo[i] = vuzp1q_u8(first, second);
        s->hi[i] = vuzp2q_u8(first, second);
    }
}

static void rans_encode(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups) {
    encoder_tables t;
    t.n = e->table->n_nibbles;
    for (unsigned i = 0; i < t.n; i++) {
        t.base[i] = v_set((uint8_t)(16 * e->table->nibble[i]));
        t.ranks[i] = v_load(e->table->ranks_of_nibble[i]);
    }
    t.freqs = v_load(e->table->freq8);
    t.starts = v_load(e->table->start8);
    t.reciprocals_low = v_load(e->table->quotient_low);
    t.reciprocals_high = v_load(e->table->quotient_high);
    t.escape = v_set(e->table->n_symbols);
    uint8_t *renorm = e->renorm, *literals = e->literals;
    states first, second;
    load_states(&first, e->x);
    load_states(&second, e->x + 64);
    for (const uint8_t *p = symbols + n_groups * WP_BLOCK; p != symbols;) {
        p -= WP_BLOCK;
        encode_half(&second, p + 64, &t, &renorm, &literals);
        encode_half(&first, p, &t, &renorm, &literals);
    }
    store_states(e->x, &first);
    store_states(e->x + 64, &second);
    e->renorm = renorm;
    e->literals = literals;
}

/* ---- rANS in a context ---- */

INLINE V context_of(V next, V base) { return vminq_u8(vqsubq_u8(next, base), v_set(WP_N_CONTEXTS - 1)); }

INLINE void context_half(states *s, const uint8_t *next, V base, const V *thresholds, const uint8_t **renorm, uint8_t *out) {
    V need[4], pulled[4];
    for (int i = 0; i < 4; i++) {
        V slot = s->lo[i], hi = s->hi[i], c = context_of(v_load(next + 16 * i), base);
        V one = look_up(thresholds[0], c), two = look_up(thresholds[1], c), three = look_up(thresholds[2], c);
        V is_1 = vcgeq_u8(slot, one), is_2 = vcgeq_u8(slot, two), is_3 = vcgeq_u8(slot, three);
        V start = v_select(is_3, three, v_select(is_2, two, v_and(is_1, one)));
        V end = vbicq_u8(v_select(is_2, three, v_select(is_1, two, one)), is_3); /* 0 for 256 */
        v_store(out + 16 * i, vsubq_u8(v_set(0), vaddq_u8(vaddq_u8(is_1, is_2), is_3)));
        V freq = vsubq_u8(end, start), bias = vsubq_u8(slot, start);
        uint8x16_t low = vreinterpretq_u8_u16(vaddw_u8(vmull_u8(vget_low_u8(freq), vget_low_u8(hi)), vget_low_u8(bias)));
        uint8x16_t high = vreinterpretq_u8_u16(vaddw_high_u8(vmull_high_u8(freq, hi), bias));
        s->lo[i] = vuzp1q_u8(low, high);
        s->hi[i] = vuzp2q_u8(low, high);
        need[i] = vceqzq_u8(s->hi[i]);
    }
    pull(renorm, mask_of(need), pulled);
    for (int i = 0; i < 4; i++) {
        s->hi[i] = v_select(need[i], s->lo[i], s->hi[i]);
        s->lo[i] = v_select(need[i], pulled[i], s->lo[i]);
    }
}

static wp_status context_decode(wp_context_decoder *d, const uint8_t *next, uint8_t *out, size_t n_groups) {
    const V base = v_set(d->base), thresholds[3] = {v_load(d->start[0]), v_load(d->start[1]), v_load(d->start[2])};
    states first, second;
    load_states(&first, d->x);
    load_states(&second, d->x + 64);
    for (size_t g = 0; g < n_groups; g++, next += WP_BLOCK, out += WP_BLOCK) {
        wp_context_guard(d);
        const uint8_t *renorm = d->renorm;
        context_half(&first, next, base, thresholds, &renorm, out);
        context_half(&second, next + 64, base, thresholds, &renorm, out + 64);
        d->renorm = renorm;
        if (d->renorm_in_tail && renorm > d->renorm_end) return WP_TRUNCATED;
    }
    store_states(d->x, &first);
    store_states(d->x + 64, &second);
    return WP_OK;
}

typedef struct {
    V base;
    uint8x16x4_t freqs, starts, reciprocals_low, reciprocals_high;
} context_tables;

INLINE uint8x16x4_t load_table64(const uint8_t *t) { return (uint8x16x4_t){{v_load(t), v_load(t + 16), v_load(t + 32), v_load(t + 48)}}; }

INLINE void context_encode_half(states *s, const uint8_t *next, const uint8_t *symbols, const context_tables *t, uint8_t **renorm) {
    V index[4], freq[4], full[4];
    for (int i = 0; i < 4; i++) {
        index[i] = v_or(vshlq_n_u8(context_of(v_load(next + 16 * i), t->base), 2), v_load(symbols + 16 * i));
        freq[i] = vqtbl4q_u8(t->freqs, index[i]);
        full[i] = vcgeq_u8(s->hi[i], freq[i]);
    }
    push(renorm, mask_of(full), s->lo);
    for (int i = 0; i < 4; i++) {
        const V zero = v_set(0), start = vqtbl4q_u8(t->starts, index[i]);
        V lo = v_select(full[i], s->hi[i], s->lo[i]), hi = vbicq_u8(s->hi[i], full[i]);
        V reciprocal_low = vqtbl4q_u8(t->reciprocals_low, index[i]), reciprocal_high = vqtbl4q_u8(t->reciprocals_high, index[i]);
        V first = vreinterpretq_u8_u16(
            encode_words(low_words(lo, hi), low_words(freq[i], zero), low_words(start, zero), low_words(reciprocal_low, reciprocal_high)));
        V second = vreinterpretq_u8_u16(
            encode_words(high_words(lo, hi), high_words(freq[i], zero), high_words(start, zero), high_words(reciprocal_low, reciprocal_high)));
        s->lo[i] = vuzp1q_u8(first, second);
        s->hi[i] = vuzp2q_u8(first, second);
    }
}

static void context_encode(wp_context_encoder *e, const uint8_t *next, const uint8_t *symbols, size_t n_groups) {
    uint8_t reciprocals_low[64], reciprocals_high[64];
    for (int i = 0; i < 64; i++) {
        uint32_t reciprocal = e->freq[i] > 1 ? 65536u / e->freq[i] : 65535u;
        reciprocals_low[i] = (uint8_t)reciprocal;
        reciprocals_high[i] = (uint8_t)(reciprocal >> 8);
    }
    const context_tables t = {v_set(e->base), load_table64(e->freq), load_table64(e->start), load_table64(reciprocals_low), load_table64(reciprocals_high)};
    uint8_t *renorm = e->renorm;
    states first, second;
    load_states(&first, e->x);
    load_states(&second, e->x + 64);
    for (size_t i = n_groups * WP_BLOCK; i;) {
        i -= WP_BLOCK;
        context_encode_half(&second, next + i + 64, symbols + i + 64, &t, &renorm);
        context_encode_half(&first, next + i, symbols + i, &t, &renorm);
    }
    store_states(e->x, &first);
    store_states(e->x + 64, &second);
    e->renorm = renorm;
}

/* ---- vectors of 4 floats, for dot_kernels.h ---- */

typedef float32x4_t F;
enum { F_LANES = 4 };
INLINE F f_zero(void) { return vdupq_n_f32(0); }
INLINE F f_add(F a, F b) { return vaddq_f32(a, b); }
INLINE F f_fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
INLINE float f_sum(F v) { return vaddvq_f32(v); }
INLINE F f_bf16(const uint8_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16)); }
INLINE F f_f16(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
INLINE F f_f32(const uint8_t *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }

#include "dot_kernels.h"

const wp_kernels wp_kernels_neon = {
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

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
