/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WP_RANS_H
#define WP_RANS_H
#include "kernels.h"

/* Parses and checks a stream's head (section 8.3). `plane_bits`: symbols must fit. */
wp_status wp_rans_open(wp_rans_decoder *d, const uint8_t *stream, size_t n_bytes, unsigned plane_bits);
/* Decodes the next n symbols; n is a multiple of 128 except in the last call. */
wp_status wp_rans_next(const wp_kernels *k, wp_rans_decoder *d, uint8_t *out, size_t n);
/* All states 256, all bytes used. */
wp_status wp_rans_close(const wp_rans_decoder *d);

/* wp_rans_encode where it is known that the codebook is sound, and has an escape or every symbol. */
wp_status wp_rans_encode_known(unsigned isa, const wp_rans_book *book, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                               size_t *out_bytes);

#endif
