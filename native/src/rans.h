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

/* round(2^16 * log2(v)) for v = 1..256 at [v], in integers: the same on every machine. */
void wp_log2_table(uint32_t log2s[257]);
/* Shares 256 among n counts (their sum is `total`, not 0), each at least 1 and at most 255, close to the least cost; returns the cost in bits * 2^16. */
uint64_t wp_share_frequencies(const uint32_t *counts, unsigned n, uint64_t total, const uint32_t log2s[257], uint8_t *freqs);

#endif
