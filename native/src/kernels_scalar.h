/* SPDX-License-Identifier: Apache-2.0 */
/* Scalar kernels that other ISAs' tables may point at, where their own would be no faster. */
#ifndef WP_KERNELS_SCALAR_H
#define WP_KERNELS_SCALAR_H
#include "kernels.h"

void wp_histogram_scalar(const uint8_t *symbols, size_t n, uint32_t counts[256]);
void wp_merge_bytes1_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_bytes2_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_bytes4_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_bytes8_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_bf16_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_f16_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_f32_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_f64_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_f8_e4m3_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_merge_f8_e5m2_scalar(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
void wp_split_bytes1_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_bytes2_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_bytes4_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_bytes8_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_bf16_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_f16_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_f32_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_f64_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_f8_e4m3_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
void wp_split_f8_e5m2_scalar(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);

#define WP_SCALAR_MERGES \
    { \
        NULL, wp_merge_bytes1_scalar, wp_merge_bytes2_scalar, wp_merge_bytes4_scalar, wp_merge_bytes8_scalar, wp_merge_bf16_scalar, \
        wp_merge_f16_scalar, wp_merge_f32_scalar, wp_merge_f64_scalar, wp_merge_f8_e4m3_scalar, wp_merge_f8_e5m2_scalar, \
    }

#define WP_SCALAR_SPLITS \
    { \
        NULL, wp_split_bytes1_scalar, wp_split_bytes2_scalar, wp_split_bytes4_scalar, wp_split_bytes8_scalar, wp_split_bf16_scalar, \
        wp_split_f16_scalar, wp_split_f32_scalar, wp_split_f64_scalar, wp_split_f8_e4m3_scalar, wp_split_f8_e5m2_scalar, \
    }

#endif
