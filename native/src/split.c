/* SPDX-License-Identifier: Apache-2.0
 *
 * Section 7, writing: elements -> symbol planes, widths, bits. The kernels write each block in full width; blocks that need less are shortened here.
 */
#include "kernels.h"
#include "mem.h"

/* Rewrites a block of `m` elements from width `r` (128 elements, full planes) to width `w`, at `out` <= `in`; returns its length. */
static size_t shorten_block(const uint8_t *in, unsigned r, unsigned w, size_t m, uint8_t *out) {
    uint8_t *begin = out;
    for (unsigned k = 0; k < w / 8; k++, out += m) memmove(out, in + k * WP_BLOCK, m);
    const uint8_t *rest = in + (size_t)(w / 8) * WP_BLOCK;
    size_t plane = (m + 7) / 8;
    if (w % 8 == 0) return (size_t)(out - begin);
    if (w / 8 == r / 8) { /* the same bit planes, fewer of them or shorter */
        for (unsigned k = 0; k < w % 8; k++, out += plane) memmove(out, rest + k * (WP_BLOCK / 8), plane);
    } else { /* the top bits of a byte plane */
        uint8_t bytes[WP_BLOCK];
        memcpy(bytes, rest, WP_BLOCK);
        for (unsigned k = 0; k < w % 8; k++, out += plane) {
            /* Bit 7 - k of byte i -> bit i; behind the block's end are zeros. */
            for (size_t i = 0; i < plane; i++) out[i] = (uint8_t)((wp_load64(bytes + 8 * i) >> (7 - k) & 0x0101010101010101u) * 0x0102040810204080u >> 56);
        }
    }
    return (size_t)(out - begin);
}

wp_status wp_split(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, uint8_t *const *planes, uint8_t *widths, uint8_t *bits,
                   size_t *bits_bytes) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l) return WP_UNSUPPORTED;
    const wp_kernels *kernels = wp_kernels_of(isa);
    size_t n_blocks = n_elems / WP_BLOCK, tail = n_elems % WP_BLOCK;
    unsigned r = l->raw_bits;
    kernels->split[layout](elems, n_blocks, planes, widths, bits);
    if (tail) { /* as one block with zeros behind its end */
        uint8_t block[WP_BLOCK * 8] = {0}, tail_planes[WP_MAX_PLANES][WP_BLOCK];
        uint8_t *to[WP_MAX_PLANES];
        for (unsigned p = 0; p < l->n_planes; p++) to[p] = tail_planes[p];
        memcpy(block, elems + n_blocks * WP_BLOCK * l->elem_bytes, tail * l->elem_bytes);
        kernels->split[layout](block, 1, to, r ? widths + n_blocks : NULL, r ? bits + n_blocks * wp_block_bytes(r, WP_BLOCK) : NULL);
        for (unsigned p = 0; p < l->n_planes; p++) memcpy(planes[p] + n_blocks * WP_BLOCK, to[p], tail);
    }
    *bits_bytes = 0;
    if (!r) return WP_OK;
    const uint8_t *in = bits;
    uint8_t *out = bits;
    for (size_t b = 0; b < n_blocks + (tail != 0); b++, in += wp_block_bytes(r, WP_BLOCK)) {
        size_t m = b < n_blocks ? WP_BLOCK : tail;
        if (in == out && widths[b] == r && m == WP_BLOCK) out += wp_block_bytes(r, WP_BLOCK);
        else out += shorten_block(in, r, widths[b], m, out);
    }
    *bits_bytes = (size_t)(out - bits);
    return WP_OK;
}
