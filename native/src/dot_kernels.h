/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. Dot products of elements of a matrix and rows of single precision, written once over vectors of F_LANES floats; each kernels_*.c includes it
 * after it has defined:
 *   F, F_LANES                         a vector of floats, and how many
 *   f_zero(), f_add, f_sum             zeros; sum of two vectors, and of a vector's lanes
 *   f_fma(a, b, c)                     a * b + c
 *   f_bf16(p), f_f16(p), f_f32(p)      F_LANES elements at p, unaligned
 * Elements become floats once for four rows of x. Each ISA adds in an order of its own, so the last bits differ from one to the other.
 */
#ifndef WP_DOT_KERNELS_H
#define WP_DOT_KERNELS_H
#include "mem.h"

static inline float wp_float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline float wp_f32_at(const uint8_t *p) { return wp_float_of(wp_load32(p)); }
static inline float wp_bf16_at(const uint8_t *p) { return wp_float_of((uint32_t)wp_load16(p) << 16); }
static inline float wp_f16_at(const uint8_t *p) {
    const uint32_t half = wp_load16(p), sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ffu;
    if (exponent == 0) { /* zero and subnormals: so many times 2^-24 */
        const float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    return wp_float_of(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13);
}

enum { DOT_ROWS = 4, DOT_STEPS = 2 }; /* rows of x at once, and vectors of each: enough sums that no addition waits for the one before */

#define DOT(name, bytes)                                                                                                                   \
    static void dot_##name(const uint8_t *elems, size_t n, const float *x, size_t stride, size_t batch, float *sums) {                     \
        for (; batch >= DOT_ROWS; batch -= DOT_ROWS, x += DOT_ROWS * stride, sums += DOT_ROWS) {                                           \
            F s[DOT_ROWS][DOT_STEPS];                                                                                                      \
            size_t i = 0;                                                                                                                  \
            for (int r = 0; r < DOT_ROWS; r++)                                                                                             \
                for (int k = 0; k < DOT_STEPS; k++) s[r][k] = f_zero();                                                                    \
            for (; i + DOT_STEPS * F_LANES <= n; i += DOT_STEPS * F_LANES)                                                                 \
                for (int k = 0; k < DOT_STEPS; k++) {                                                                                      \
                    const size_t at = i + (size_t)k * F_LANES;                                                                             \
                    const F e = f_##name(elems + at * bytes);                                                                              \
                    for (int r = 0; r < DOT_ROWS; r++) s[r][k] = f_fma(e, f_f32((const uint8_t *)(x + (size_t)r * stride + at)), s[r][k]); \
                }                                                                                                                          \
            for (int r = 0; r < DOT_ROWS; r++) {                                                                                           \
                float rest = 0;                                                                                                            \
                for (size_t j = i; j < n; j++) rest += wp_##name##_at(elems + j * bytes) * x[(size_t)r * stride + j];                      \
                sums[r] += f_sum(f_add(s[r][0], s[r][1])) + rest;                                                                          \
            }                                                                                                                              \
        }                                                                                                                                  \
        for (; batch; batch--, x += stride, sums++) {                                                                                      \
            F s[2 * DOT_STEPS];                                                                                                            \
            float rest = 0;                                                                                                                \
            size_t i = 0;                                                                                                                  \
            for (int k = 0; k < 2 * DOT_STEPS; k++) s[k] = f_zero();                                                                       \
            for (; i + 2 * DOT_STEPS * F_LANES <= n; i += 2 * DOT_STEPS * F_LANES)                                                         \
                for (int k = 0; k < 2 * DOT_STEPS; k++) {                                                                                  \
                    const size_t at = i + (size_t)k * F_LANES;                                                                             \
                    s[k] = f_fma(f_##name(elems + at * bytes), f_f32((const uint8_t *)(x + at)), s[k]);                                    \
                }                                                                                                                          \
            for (; i < n; i++) rest += wp_##name##_at(elems + i * bytes) * x[i];                                                           \
            *sums += f_sum(f_add(f_add(s[0], s[1]), f_add(s[2], s[3]))) + rest;                                                            \
        }                                                                                                                                  \
    }

DOT(bf16, 2)
DOT(f16, 2)
DOT(f32, 4)

#define WP_DOTS {[WP_FLOAT_BF16] = dot_bf16, [WP_FLOAT_F16] = dot_f16, [WP_FLOAT_F32] = dot_f32}

#endif
