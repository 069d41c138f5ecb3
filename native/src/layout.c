/* SPDX-License-Identifier: Apache-2.0 */
/* Section 7: how an element's bits are dealt out to planes. */
#include "kernels.h"

static const wp_layout layouts[WP_N_LAYOUTS] = {
    [WP_BYTES1]  = {1, 1, {8}, 0},
    [WP_BYTES2]  = {2, 2, {8, 8}, 0},
    [WP_BYTES4]  = {4, 4, {8, 8, 8, 8}, 0},
    [WP_BYTES8]  = {8, 8, {8, 8, 8, 8, 8, 8, 8, 8}, 0},
    [WP_BF16]    = {2, 1, {8}, 8},
    [WP_F16]     = {2, 1, {5}, 11},
    [WP_F32]     = {4, 1, {8}, 24},
    [WP_F64]     = {8, 2, {8, 3}, 53},
    [WP_F8_E4M3] = {1, 1, {4}, 4},
    [WP_F8_E5M2] = {1, 1, {5}, 3},
    [WP_BF16_LEAD] = {2, 2, {2, 8}, 6},
    [WP_F16_LEAD]  = {2, 2, {2, 5}, 9},
    [WP_F32_LEAD]  = {4, 2, {2, 8}, 22},
    [WP_F8_E4M3_LEAD] = {1, 2, {2, 4}, 2},
    [WP_F8_E5M2_LEAD] = {1, 2, {2, 5}, 1},
};

const wp_layout *wp_layout_of(unsigned id) { return id >= WP_BYTES1 && id < WP_N_LAYOUTS ? &layouts[id] : NULL; }

size_t wp_bits_bound(unsigned layout, size_t n_elems) {
    const wp_layout *l = wp_layout_of(layout);
    /* split.c writes its last block in full before it shortens it. */
    return l ? (n_elems + WP_BLOCK - 1) / WP_BLOCK * wp_block_bytes(l->raw_bits, WP_BLOCK) : 0;
}
