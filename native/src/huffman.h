/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WP_HUFFMAN_H
#define WP_HUFFMAN_H
#include "kernels.h"

enum { WP_HUFFMAN_STREAMS = 4 };

typedef struct {
    const uint8_t *p, *end;
    uint64_t bits;
    unsigned n_bits;
} wp_bit_reader;

typedef struct {
    wp_bit_reader in[WP_HUFFMAN_STREAMS];
    uint16_t table[1 << WP_MAX_CODE_BITS];   /* symbol | length << 8, by the next 12 bits */
} wp_huffman_decoder;

wp_status wp_huffman_open(wp_huffman_decoder *d, const uint8_t *stream, size_t n_bytes, unsigned plane_bits);
/* Decodes the next n symbols; n is a multiple of 4 except in the last call. */
wp_status wp_huffman_next(wp_huffman_decoder *d, uint8_t *out, size_t n);
wp_status wp_huffman_close(const wp_huffman_decoder *d);

#endif
