/* SPDX-License-Identifier: Apache-2.0 */
/* Section 7: how an element's bits are dealt out to planes; and, for section 14, where its exponent is. Of bytes the upper four bits serve as one. */
#include "kernels.h"

static const wp_layout layouts[WP_N_LAYOUTS] = {
    [WP_BYTES1] = {.elem_bytes = 1, .n_planes = 1, .plane_bits = {8}, .exponent_shift = 4, .exponent_bits = 4},
    [WP_BYTES2] = {.elem_bytes = 2, .n_planes = 2, .plane_bits = {8, 8}},
    [WP_BYTES4] = {.elem_bytes = 4, .n_planes = 4, .plane_bits = {8, 8, 8, 8}},
    [WP_BYTES8] = {.elem_bytes = 8, .n_planes = 8, .plane_bits = {8, 8, 8, 8, 8, 8, 8, 8}},
    [WP_BF16] = {.elem_bytes = 2, .n_planes = 1, .plane_bits = {8}, .raw_bits = 8, .exponent_shift = 7, .exponent_bits = 8},
    [WP_F16] = {.elem_bytes = 2, .n_planes = 1, .plane_bits = {5}, .raw_bits = 11, .exponent_shift = 10, .exponent_bits = 5},
    [WP_F32] = {.elem_bytes = 4, .n_planes = 1, .plane_bits = {8}, .raw_bits = 24, .exponent_shift = 23, .exponent_bits = 8},
    [WP_F64] = {.elem_bytes = 8, .n_planes = 2, .plane_bits = {8, 3}, .raw_bits = 53, .exponent_shift = 52, .exponent_bits = 11},
    [WP_F8_E4M3] = {.elem_bytes = 1, .n_planes = 1, .plane_bits = {4}, .raw_bits = 4, .exponent_shift = 3, .exponent_bits = 4},
    [WP_F8_E5M2] = {.elem_bytes = 1, .n_planes = 1, .plane_bits = {5}, .raw_bits = 3, .exponent_shift = 2, .exponent_bits = 5},
    [WP_BF16_LEAD] = {.elem_bytes = 2, .n_planes = 2, .plane_bits = {2, 8}, .raw_bits = 6, .exponent_shift = 7, .exponent_bits = 8},
    [WP_F16_LEAD] = {.elem_bytes = 2, .n_planes = 2, .plane_bits = {2, 5}, .raw_bits = 9, .exponent_shift = 10, .exponent_bits = 5},
    [WP_F32_LEAD] = {.elem_bytes = 4, .n_planes = 2, .plane_bits = {2, 8}, .raw_bits = 22, .exponent_shift = 23, .exponent_bits = 8},
    [WP_F8_E4M3_LEAD] = {.elem_bytes = 1, .n_planes = 2, .plane_bits = {2, 4}, .raw_bits = 2, .exponent_shift = 3, .exponent_bits = 4},
    [WP_F8_E5M2_LEAD] = {.elem_bytes = 1, .n_planes = 2, .plane_bits = {2, 5}, .raw_bits = 1, .exponent_shift = 2, .exponent_bits = 5},
};

const wp_layout *wp_layout_of(unsigned id) { return id >= WP_BYTES1 && id < WP_N_LAYOUTS ? &layouts[id] : NULL; }

size_t wp_bits_bound(unsigned layout, size_t n_elems) {
    const wp_layout *l = wp_layout_of(layout);
    /* split.c writes its last block in full before it shortens it. */
    return l ? (n_elems + WP_BLOCK - 1) / WP_BLOCK * wp_block_bytes(l->raw_bits, WP_BLOCK) : 0;
}
