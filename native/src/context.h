/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WP_CONTEXT_H
#define WP_CONTEXT_H
#include "kernels.h"

/* Parses and checks a stream's head (section 8.6). `plane_bits` is 1 or 2: symbols must fit. */
wp_status wp_context_open(wp_context_decoder *d, const uint8_t *stream, size_t n_bytes, unsigned plane_bits);
/* Decodes the next n symbols, in the context of `next`; n is a multiple of 128 except in the last call. */
wp_status wp_context_next(const wp_kernels *k, wp_context_decoder *d, const uint8_t *next, uint8_t *out, size_t n);
/* All states 256, all bytes used. */
wp_status wp_context_close(const wp_context_decoder *d);

/* Encodes n symbols of at most 2 bits. `scratch` holds wp_rans_scratch(n) bytes. WP_NO_SPACE if the stream exceeds `capacity`. */
wp_status wp_context_encode(unsigned isa, const uint8_t *next, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                            size_t *out_bytes);

#endif
