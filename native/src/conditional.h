/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WP_CONDITIONAL_H
#define WP_CONDITIONAL_H
#include "kernels.h"

/* Section 8.8. A decoder between calls: that of the states, and which codebook each cell has. */
typedef struct {
    wp_rans_decoder rans;
    wp_conditional_tables tables;
    uint8_t base_exponent, n_rates;
    uint8_t map[WP_N_CELLS]; /* [rate * WP_N_CONTEXTS + exponent context] -> codebook */
} wp_conditional_decoder;

/* Parses and checks a stream's head. */
wp_status wp_conditional_open(wp_conditional_decoder *d, const uint8_t *stream, size_t n_bytes);
/* Decodes the next n <= 128 symbols, all of one block with this rate; fewer than 128 in the last call only. `exponents` are the base's, of the same elements.
 */
wp_status wp_conditional_next(const wp_kernels *k, wp_conditional_decoder *d, unsigned rate, const uint8_t *exponents, uint8_t *out, size_t n);
/* All states 256, all bytes used. */
wp_status wp_conditional_close(const wp_conditional_decoder *d);

#endif
