/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. merge and split of every layout (FORMAT.md section 7) and the histogram, written once over vectors of V_LANES bytes; kernels_avx2.c,
 * kernels_avx512.c and kernels_neon.c include it after they have defined:
 *   V, V_LANES                       a vector and its count of bytes, a divisor of 128
 *   V_SHL(v, n), V_SHR(v, n)         shift bytes or 16-bit words by a constant: what crosses a byte's border is garbage, and every use masks it away
 *   v_set(c), v_or, v_and            c in each byte; bitwise
 *   v_select(m, a, b)                a where the bit of m is 1, else b
 *   v_load, v_store                  unaligned
 *   v_store2/4/8(p, v), v_load2/4/8  interleave: byte i of v[k] <-> p[i * 2/4/8 + k]
 *   v_with_bits(v, p, c)             v, with the bits of c set in the lanes whose bit in the bit plane at p is 1
 *   v_to_bits(p, v, bit)             one bit of each byte -> bit plane
 *   v_or_words(p, n)                 OR of the n bytes at p as 64-bit words; n is a multiple of 128
 *   v_count_window(p, n, first, counts)  count n bytes at p, exactly, rounded down to whole vectors, and return how many; fast where most of them are
 *                                    first to first + 15
 *   first_one(word)                  the place of the lowest 1 of a 64-bit word that has one
 * The trick: elements are taken apart into byte k of every element first, so that a vector has one byte of V_LANES consecutive elements. All masking
 * then works on bytes, and planes are loaded and stored as they are. Each byte is the OR of its fields, as in kernels_scalar.c, also where a hostile
 * symbol is wider than its field.
 */
#ifndef WP_KERNELS_GENERIC_H
#define WP_KERNELS_GENERIC_H

#define MERGE(name) static void merge_##name(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems)
#define SPLIT(name) static void split_##name(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits)
enum { BIT_PLANE = WP_BLOCK / 8 };

/* `any` is v_or_words of the block. Which bits belong to the raw word is the same for the OR as for each element. */
static inline uint8_t width_of(uint64_t any, unsigned bytes, unsigned exp, unsigned man) {
    if (bytes < 8) any |= any >> 32;
    if (bytes < 4) any |= any >> 16;
    if (bytes < 2) any |= any >> 8;
    uint64_t raw = (any >> (man + exp) & 1) << man | (any & (((uint64_t)1 << man) - 1));
    return raw ? (uint8_t)(man + 1 - first_one(raw)) : 0;
}

/* ---- bytes ---- */

MERGE(bytes1) {
    (void)bits;
    for (size_t i = 0; i < n_blocks * WP_BLOCK; i += V_LANES) v_store(elems + i, v_load(planes[0] + i));
}
SPLIT(bytes1) {
    (void)widths;
    (void)bits;
    for (size_t i = 0; i < n_blocks * WP_BLOCK; i += V_LANES) v_store(planes[0] + i, v_load(elems + i));
}

#define BYTES_LAYOUT(n)                                               \
    MERGE(bytes##n) {                                                 \
        (void)bits;                                                   \
        for (size_t i = 0; i < n_blocks * WP_BLOCK; i += V_LANES) {   \
            V v[n];                                                   \
            for (int p = 0; p < n; p++) v[p] = v_load(planes[p] + i); \
            v_store##n(elems + n * i, v);                             \
        }                                                             \
    }                                                                 \
    SPLIT(bytes##n) {                                                 \
        (void)widths;                                                 \
        (void)bits;                                                   \
        for (size_t i = 0; i < n_blocks * WP_BLOCK; i += V_LANES) {   \
            V v[n];                                                   \
            v_load##n(elems + n * i, v);                              \
            for (int p = 0; p < n; p++) v_store(planes[p] + i, v[p]); \
        }                                                             \
    }
BYTES_LAYOUT(2)
BYTES_LAYOUT(4)
BYTES_LAYOUT(8)

/* ---- floats: the raw word's bytes are b0, b1, ... from the top, an element's bytes are v[0], v[1], ... from the bottom ---- */

MERGE(bf16) {
    const V sign = v_set(0x80);
    for (size_t i = 0; i < n_blocks * WP_BLOCK; i += V_LANES) {
        V e = v_load(planes[0] + i), b0 = v_load(bits + i);
        V v[2] = {v_select(sign, V_SHL(e, 7), b0), v_select(sign, b0, V_SHR(e, 1))};
        v_store2(elems + 2 * i, v);
    }
}
SPLIT(bf16) {
    const V sign = v_set(0x80), low = v_set(1);
    for (size_t b = 0; b < n_blocks; b++, elems += 2 * WP_BLOCK, bits += WP_BLOCK) {
        widths[b] = width_of(v_or_words(elems, 2 * WP_BLOCK), 2, 8, 7);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V v[2];
            v_load2(elems + 2 * i, v);
            v_store(planes[0] + b * WP_BLOCK + i, v_select(low, V_SHR(v[0], 7), V_SHL(v[1], 1)));
            v_store(bits + i, v_select(sign, v[1], v[0]));
        }
    }
}

MERGE(f16) {
    const uint8_t *e_plane = planes[0];
    for (size_t b = 0; b < n_blocks; b++, e_plane += WP_BLOCK, elems += 2 * WP_BLOCK, bits += WP_BLOCK + 3 * BIT_PLANE)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            const uint8_t *low = bits + WP_BLOCK + i / 8;
            V e = v_load(e_plane + i), b0 = v_load(bits + i), v[2];
            v[0] = v_and(V_SHL(b0, 3), v_set(0xf8));
            v[0] = v_with_bits(v_with_bits(v_with_bits(v[0], low, 4), low + BIT_PLANE, 2), low + 2 * BIT_PLANE, 1);
            v[1] = v_or(v_and(V_SHL(e, 2), v_set(0xfc)), v_select(v_set(0x80), b0, v_and(V_SHR(b0, 5), v_set(0x03))));
            v_store2(elems + 2 * i, v);
        }
}
SPLIT(f16) {
    uint8_t *e_plane = planes[0];
    for (size_t b = 0; b < n_blocks; b++, e_plane += WP_BLOCK, elems += 2 * WP_BLOCK, bits += WP_BLOCK + 3 * BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems, 2 * WP_BLOCK), 2, 5, 10);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            uint8_t *low = bits + WP_BLOCK + i / 8;
            V v[2];
            v_load2(elems + 2 * i, v);
            v_store(e_plane + i, v_and(V_SHR(v[1], 2), v_set(0x1f)));
            v_store(bits + i, v_select(v_set(0x80), v[1], v_select(v_set(0x60), V_SHL(v[1], 5), v_and(V_SHR(v[0], 3), v_set(0x1f)))));
            v_to_bits(low, v[0], 2);
            v_to_bits(low + BIT_PLANE, v[0], 1);
            v_to_bits(low + 2 * BIT_PLANE, v[0], 0);
        }
    }
}

MERGE(f32) {
    const V sign = v_set(0x80);
    const uint8_t *e_plane = planes[0];
    for (size_t b = 0; b < n_blocks; b++, e_plane += WP_BLOCK, elems += 4 * WP_BLOCK, bits += 3 * WP_BLOCK)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V e = v_load(e_plane + i), b0 = v_load(bits + i);
            V v[4] = {v_load(bits + 2 * WP_BLOCK + i), v_load(bits + WP_BLOCK + i), v_select(sign, V_SHL(e, 7), b0), v_select(sign, b0, V_SHR(e, 1))};
            v_store4(elems + 4 * i, v);
        }
}
SPLIT(f32) {
    const V sign = v_set(0x80), low = v_set(1);
    uint8_t *e_plane = planes[0];
    for (size_t b = 0; b < n_blocks; b++, e_plane += WP_BLOCK, elems += 4 * WP_BLOCK, bits += 3 * WP_BLOCK) {
        widths[b] = width_of(v_or_words(elems, 4 * WP_BLOCK), 4, 8, 23);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V v[4];
            v_load4(elems + 4 * i, v);
            v_store(e_plane + i, v_select(low, V_SHR(v[2], 7), V_SHL(v[3], 1)));
            v_store(bits + i, v_select(sign, v[3], v[2]));
            v_store(bits + WP_BLOCK + i, v[1]);
            v_store(bits + 2 * WP_BLOCK + i, v[0]);
        }
    }
}

/* 53 raw bits do not start at a byte's border: byte k of the mantissa is the low 3 bits of one raw byte over the high 5 of the next. */
MERGE(f64) {
    const V high3 = v_set(0xe0), high4 = v_set(0xf0);
    for (size_t b = 0; b < n_blocks; b++, elems += 8 * WP_BLOCK, bits += 6 * WP_BLOCK + 5 * BIT_PLANE)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            const uint8_t *low = bits + 6 * WP_BLOCK + i / 8;
            V e0 = v_load(planes[0] + b * WP_BLOCK + i), e1 = v_load(planes[1] + b * WP_BLOCK + i), raw[6], v[8];
            for (int k = 0; k < 6; k++) raw[k] = v_load(bits + k * WP_BLOCK + i);
            v[0] = v_and(V_SHL(raw[5], 5), high3);
            for (int k = 0; k < 5; k++) v[0] = v_with_bits(v[0], low + k * BIT_PLANE, (uint8_t)(16 >> k));
            for (int k = 1; k < 6; k++) v[k] = v_select(high3, V_SHL(raw[5 - k], 5), V_SHR(raw[6 - k], 3));
            v[6] = v_select(high4, V_SHL(e0, 4), V_SHR(raw[0], 3));
            v[7] = v_or(v_and(raw[0], v_set(0x80)), v_select(high4, V_SHL(e1, 4), V_SHR(e0, 4)));
            v_store8(elems + 8 * i, v);
        }
}
SPLIT(f64) {
    const V low3 = v_set(0x07), high4 = v_set(0xf0);
    for (size_t b = 0; b < n_blocks; b++, elems += 8 * WP_BLOCK, bits += 6 * WP_BLOCK + 5 * BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems, 8 * WP_BLOCK), 8, 11, 52);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            uint8_t *low = bits + 6 * WP_BLOCK + i / 8;
            V v[8];
            v_load8(elems + 8 * i, v);
            v_store(planes[0] + b * WP_BLOCK + i, v_select(high4, V_SHL(v[7], 4), V_SHR(v[6], 4)));
            v_store(planes[1] + b * WP_BLOCK + i, v_and(V_SHR(v[7], 4), low3));
            v_store(bits + i, v_select(v_set(0x80), v[7], v_select(low3, V_SHR(v[5], 5), V_SHL(v[6], 3))));
            for (int k = 1; k < 6; k++) v_store(bits + k * WP_BLOCK + i, v_select(low3, V_SHR(v[5 - k], 5), V_SHL(v[6 - k], 3)));
            v_to_bits(low, v[0], 4);
            v_to_bits(low + BIT_PLANE, v[0], 3);
            v_to_bits(low + 2 * BIT_PLANE, v[0], 2);
            v_to_bits(low + 3 * BIT_PLANE, v[0], 1);
            v_to_bits(low + 4 * BIT_PLANE, v[0], 0);
        }
    }
}

MERGE(f8_e4m3) {
    for (size_t b = 0; b < n_blocks; b++, bits += 4 * BIT_PLANE)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            const uint8_t *low = bits + i / 8;
            V v = v_and(V_SHL(v_load(planes[0] + b * WP_BLOCK + i), 3), v_set(0xf8));
            v = v_with_bits(v_with_bits(v, low, 0x80), low + BIT_PLANE, 4);
            v_store(elems + b * WP_BLOCK + i, v_with_bits(v_with_bits(v, low + 2 * BIT_PLANE, 2), low + 3 * BIT_PLANE, 1));
        }
}
SPLIT(f8_e4m3) {
    for (size_t b = 0; b < n_blocks; b++, elems += WP_BLOCK, bits += 4 * BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems, WP_BLOCK), 1, 4, 3);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            uint8_t *low = bits + i / 8;
            V v = v_load(elems + i);
            v_store(planes[0] + b * WP_BLOCK + i, v_and(V_SHR(v, 3), v_set(0x0f)));
            v_to_bits(low, v, 7);
            v_to_bits(low + BIT_PLANE, v, 2);
            v_to_bits(low + 2 * BIT_PLANE, v, 1);
            v_to_bits(low + 3 * BIT_PLANE, v, 0);
        }
    }
}

MERGE(f8_e5m2) {
    for (size_t b = 0; b < n_blocks; b++, bits += 3 * BIT_PLANE)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            const uint8_t *low = bits + i / 8;
            V v = v_and(V_SHL(v_load(planes[0] + b * WP_BLOCK + i), 2), v_set(0xfc));
            v_store(elems + b * WP_BLOCK + i, v_with_bits(v_with_bits(v_with_bits(v, low, 0x80), low + BIT_PLANE, 2), low + 2 * BIT_PLANE, 1));
        }
}
SPLIT(f8_e5m2) {
    for (size_t b = 0; b < n_blocks; b++, elems += WP_BLOCK, bits += 3 * BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems, WP_BLOCK), 1, 5, 2);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            uint8_t *low = bits + i / 8;
            V v = v_load(elems + i);
            v_store(planes[0] + b * WP_BLOCK + i, v_and(V_SHR(v, 2), v_set(0x1f)));
            v_to_bits(low, v, 7);
            v_to_bits(low + BIT_PLANE, v, 1);
            v_to_bits(low + 2 * BIT_PLANE, v, 0);
        }
    }
}

/* ---- floats whose two leading mantissa bits are symbols: planes[0] has them, planes[1] the exponents ---- */

MERGE(bf16_lead) {
    const V sign = v_set(0x80), lead = v_set(0x60);
    for (size_t b = 0; b < n_blocks; b++, bits += 6 * BIT_PLANE)
        for (size_t i = b * WP_BLOCK; i < (b + 1) * WP_BLOCK; i += V_LANES) {
            const uint8_t *low = bits + i % WP_BLOCK / 8;
            V e = v_load(planes[1] + i), v[2];
            v[0] = v_or(v_and(V_SHL(e, 7), sign), v_and(V_SHL(v_load(planes[0] + i), 5), lead));
            for (int k = 1; k < 6; k++) v[0] = v_with_bits(v[0], low + k * BIT_PLANE, (uint8_t)(32 >> k));
            v[1] = v_with_bits(v_and(V_SHR(e, 1), v_set(0x7f)), low, 0x80);
            v_store2(elems + 2 * i, v);
        }
}
SPLIT(bf16_lead) {
    const V low1 = v_set(1), low2 = v_set(3);
    for (size_t b = 0; b < n_blocks; b++, bits += 6 * BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems + 2 * b * WP_BLOCK, 2 * WP_BLOCK), 2, 10, 5);
        for (size_t i = b * WP_BLOCK; i < (b + 1) * WP_BLOCK; i += V_LANES) {
            uint8_t *low = bits + i % WP_BLOCK / 8;
            V v[2];
            v_load2(elems + 2 * i, v);
            v_store(planes[0] + i, v_and(V_SHR(v[0], 5), low2));
            v_store(planes[1] + i, v_select(low1, V_SHR(v[0], 7), V_SHL(v[1], 1)));
            v_to_bits(low, v[1], 7);
            v_to_bits(low + BIT_PLANE, v[0], 4);
            v_to_bits(low + 2 * BIT_PLANE, v[0], 3);
            v_to_bits(low + 3 * BIT_PLANE, v[0], 2);
            v_to_bits(low + 4 * BIT_PLANE, v[0], 1);
            v_to_bits(low + 5 * BIT_PLANE, v[0], 0);
        }
    }
}

MERGE(f16_lead) {
    for (size_t b = 0; b < n_blocks; b++, bits += WP_BLOCK + BIT_PLANE)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V e = v_load(planes[1] + b * WP_BLOCK + i), lead = v_load(planes[0] + b * WP_BLOCK + i), b0 = v_load(bits + i), v[2];
            v[0] = v_with_bits(v_and(V_SHL(b0, 1), v_set(0xfe)), bits + WP_BLOCK + i / 8, 1);
            v[1] = v_or(v_and(V_SHL(e, 2), v_set(0xfc)), v_select(v_set(0x80), b0, v_and(lead, v_set(3))));
            v_store2(elems + 2 * (b * WP_BLOCK + i), v);
        }
}
SPLIT(f16_lead) {
    for (size_t b = 0; b < n_blocks; b++, bits += WP_BLOCK + BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems + 2 * b * WP_BLOCK, 2 * WP_BLOCK), 2, 7, 8);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V v[2];
            v_load2(elems + 2 * (b * WP_BLOCK + i), v);
            v_store(planes[0] + b * WP_BLOCK + i, v_and(v[1], v_set(3)));
            v_store(planes[1] + b * WP_BLOCK + i, v_and(V_SHR(v[1], 2), v_set(0x1f)));
            v_store(bits + i, v_select(v_set(0x80), v[1], V_SHR(v[0], 1)));
            v_to_bits(bits + WP_BLOCK + i / 8, v[0], 0);
        }
    }
}

/* The raw word is sign, then 21 bits: what the second byte plane has too little for a byte of the mantissa, the first has too much. */
MERGE(f32_lead) {
    const V sign = v_set(0x80), lead = v_set(0x60), high2 = v_set(0xc0);
    for (size_t b = 0; b < n_blocks; b++, bits += 2 * WP_BLOCK + 6 * BIT_PLANE)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            const uint8_t *low = bits + 2 * WP_BLOCK + i / 8;
            V e = v_load(planes[1] + b * WP_BLOCK + i), l = v_load(planes[0] + b * WP_BLOCK + i), b0 = v_load(bits + i), b1 = v_load(bits + WP_BLOCK + i), v[4];
            v[0] = v_and(V_SHL(b1, 6), high2);
            for (int k = 0; k < 6; k++) v[0] = v_with_bits(v[0], low + k * BIT_PLANE, (uint8_t)(32 >> k));
            v[1] = v_select(high2, V_SHL(b0, 6), V_SHR(b1, 2));
            v[2] = v_select(sign, V_SHL(e, 7), v_select(lead, V_SHL(l, 5), V_SHR(b0, 2)));
            v[3] = v_select(sign, b0, V_SHR(e, 1));
            v_store4(elems + 4 * (b * WP_BLOCK + i), v);
        }
}
SPLIT(f32_lead) {
    const V sign = v_set(0x80), low1 = v_set(1), low2 = v_set(3);
    for (size_t b = 0; b < n_blocks; b++, bits += 2 * WP_BLOCK + 6 * BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems + 4 * b * WP_BLOCK, 4 * WP_BLOCK), 4, 10, 21);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            uint8_t *low = bits + 2 * WP_BLOCK + i / 8;
            V v[4];
            v_load4(elems + 4 * (b * WP_BLOCK + i), v);
            v_store(planes[0] + b * WP_BLOCK + i, v_and(V_SHR(v[2], 5), low2));
            v_store(planes[1] + b * WP_BLOCK + i, v_select(low1, V_SHR(v[2], 7), V_SHL(v[3], 1)));
            v_store(bits + i, v_select(sign, v[3], v_select(low2, V_SHR(v[1], 6), V_SHL(v[2], 2))));
            v_store(bits + WP_BLOCK + i, v_select(low2, V_SHR(v[0], 6), V_SHL(v[1], 2)));
            v_to_bits(low, v[0], 5);
            v_to_bits(low + BIT_PLANE, v[0], 4);
            v_to_bits(low + 2 * BIT_PLANE, v[0], 3);
            v_to_bits(low + 3 * BIT_PLANE, v[0], 2);
            v_to_bits(low + 4 * BIT_PLANE, v[0], 1);
            v_to_bits(low + 5 * BIT_PLANE, v[0], 0);
        }
    }
}

MERGE(f8_e4m3_lead) {
    for (size_t b = 0; b < n_blocks; b++, bits += 2 * BIT_PLANE)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V v = v_or(v_and(V_SHL(v_load(planes[1] + b * WP_BLOCK + i), 3), v_set(0xf8)), v_and(V_SHL(v_load(planes[0] + b * WP_BLOCK + i), 1), v_set(6)));
            v_store(elems + b * WP_BLOCK + i, v_with_bits(v_with_bits(v, bits + i / 8, 0x80), bits + BIT_PLANE + i / 8, 1));
        }
}
SPLIT(f8_e4m3_lead) {
    for (size_t b = 0; b < n_blocks; b++, bits += 2 * BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems + b * WP_BLOCK, WP_BLOCK), 1, 6, 1);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V v = v_load(elems + b * WP_BLOCK + i);
            v_store(planes[0] + b * WP_BLOCK + i, v_and(V_SHR(v, 1), v_set(3)));
            v_store(planes[1] + b * WP_BLOCK + i, v_and(V_SHR(v, 3), v_set(0x0f)));
            v_to_bits(bits + i / 8, v, 7);
            v_to_bits(bits + BIT_PLANE + i / 8, v, 0);
        }
    }
}

MERGE(f8_e5m2_lead) {
    for (size_t b = 0; b < n_blocks; b++, bits += BIT_PLANE)
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V v = v_or(v_and(V_SHL(v_load(planes[1] + b * WP_BLOCK + i), 2), v_set(0xfc)), v_and(v_load(planes[0] + b * WP_BLOCK + i), v_set(3)));
            v_store(elems + b * WP_BLOCK + i, v_with_bits(v, bits + i / 8, 0x80));
        }
}
SPLIT(f8_e5m2_lead) {
    for (size_t b = 0; b < n_blocks; b++, bits += BIT_PLANE) {
        widths[b] = width_of(v_or_words(elems + b * WP_BLOCK, WP_BLOCK), 1, 7, 0);
        for (size_t i = 0; i < WP_BLOCK; i += V_LANES) {
            V v = v_load(elems + b * WP_BLOCK + i);
            v_store(planes[0] + b * WP_BLOCK + i, v_and(v, v_set(3)));
            v_store(planes[1] + b * WP_BLOCK + i, v_and(V_SHR(v, 2), v_set(0x1f)));
            v_to_bits(bits + i / 8, v, 7);
        }
    }
}

/* ---- histogram ---- */

static void count_bytes(const uint8_t *symbols, size_t n, uint32_t counts[256]) {
    /* Eight tables, so that a run of one symbol does not wait for its own last store. */
    uint32_t c[8][256];
    memset(c, 0, sizeof c);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t v = wp_load64(symbols + i);
        c[0][v & 255]++;
        c[1][v >> 8 & 255]++;
        c[2][v >> 16 & 255]++;
        c[3][v >> 24 & 255]++;
        c[4][v >> 32 & 255]++;
        c[5][v >> 40 & 255]++;
        c[6][v >> 48 & 255]++;
        c[7][v >> 56]++;
    }
    for (; i < n; i++) c[0][symbols[i]]++;
    for (int s = 0; s < 256; s++) counts[s] = c[0][s] + c[1][s] + c[2][s] + c[3][s] + c[4][s] + c[5][s] + c[6][s] + c[7][s];
}

/* Exponents of weights lie in a window of a few values: those are counted by comparing whole vectors, the rare others one by one. A sample says whether
 * that pays and where the window is; the counts are exact whatever it says. */
enum { WINDOW = 16, SAMPLE = 4096, SAMPLE_RUN = 64 };

/* Where the WINDOW consecutive values begin that hold most of the sample, or -1 if more than 1/64 of it lies outside them. */
static int find_window(const uint8_t *symbols, size_t n) {
    uint8_t sample[SAMPLE];
    uint32_t counts[256], in_window = 0, most = 0;
    for (size_t i = 0; i < SAMPLE; i += SAMPLE_RUN) memcpy(sample + i, symbols + (n - SAMPLE_RUN) / (SAMPLE / SAMPLE_RUN) * (i / SAMPLE_RUN), SAMPLE_RUN);
    count_bytes(sample, SAMPLE, counts);
    int begin = 0;
    for (int s = 0; s < 256; s++) {
        in_window += counts[s] - (s < WINDOW ? 0 : counts[s - WINDOW]);
        if (in_window > most) {
            most = in_window;
            begin = s < WINDOW ? 0 : s - WINDOW + 1;
        }
    }
    return SAMPLE - most > SAMPLE / 64 ? -1 : begin;
}

static void histogram(const uint8_t *symbols, size_t n, uint32_t counts[256]) {
    int begin = n < 8 * SAMPLE ? -1 : find_window(symbols, n);
    if (begin < 0) {
        count_bytes(symbols, n, counts);
        return;
    }
    memset(counts, 0, 256 * sizeof *counts);
    size_t done = v_count_window(symbols, n, (uint8_t)begin, counts);
    for (; done < n; done++) counts[symbols[done]]++;
}

#endif
