/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WP_RANS_H
#define WP_RANS_H
#include "kernels.h"

/* Parses and checks a stream's head (section 8.3, or 8.7 if it `has_tables`) for n symbols. `plane_bits`: symbols must fit. */
wp_status wp_rans_open(wp_rans_decoder *d, const uint8_t *stream, size_t n_bytes, size_t n, unsigned plane_bits, int has_tables);
/* Its two parts: a codebook, *p moves behind it; and states, renormalisation bytes and literals, once the tables are there. */
wp_status wp_rans_open_table(wp_rans_table *t, const uint8_t **p, const uint8_t *end, unsigned plane_bits);
wp_status wp_rans_open_states(wp_rans_decoder *d, const uint8_t *p, const uint8_t *end, unsigned plane_bits);
/* Decodes the next n symbols; n is a multiple of 128 except in the last call. */
wp_status wp_rans_next(const wp_kernels *k, wp_rans_decoder *d, uint8_t *out, size_t n);
/* All states 256, all bytes used. */
wp_status wp_rans_close(const wp_rans_decoder *d);

/* Frequencies that sum to 256, distinct symbols. */
int wp_rans_book_is_sound(const wp_rans_book *book);
/* Writes a codebook as section 8.3 has it; returns the end. */
uint8_t *wp_rans_put_book(const wp_rans_book *book, uint8_t *out);
/* What encoders need of a codebook. */
void wp_rans_encoder_table_of(const wp_rans_book *book, wp_rans_encoder_table *t);
/* Fills in what follows from freq, start, symbol, n_symbols and has_escape. */
void wp_rans_complete_table(wp_rans_table *t);

/* Section 8.7: block j of `block_groups` groups is coded with the book number ids[j]; each book has an escape or every symbol of its blocks. Writes a stream
 * of 8.3 if there is one book. `scratch` holds wp_rans_scratch(n) bytes. */
wp_status wp_rans_encode_tables(unsigned isa, const wp_rans_book *books, unsigned n_books, const uint8_t *ids, size_t block_groups, const uint8_t *symbols,
                                size_t n, uint8_t *scratch, uint8_t *out, size_t capacity, size_t *out_bytes);

/* wp_rans_encode where it is known that the codebook is sound, and has an escape or every symbol. */
wp_status wp_rans_encode_known(unsigned isa, const wp_rans_book *book, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                               size_t *out_bytes);

/* round(2^16 * log2(v)) for v = 1..256 at [v], in integers: the same on every machine. */
void wp_log2_table(uint32_t log2s[257]);
/* wp_rans_choose, for one that has that table. */
wp_status wp_rans_choose_by(const uint32_t counts[256], const uint32_t log2s[257], wp_rans_book *book, size_t *cost_bytes);
/* Shares 256 among n counts (their sum is `total`, not 0), each at least 1 and at most 255, close to the least cost; returns the cost in bits * 2^16. */
uint64_t wp_share_frequencies(const uint32_t *counts, unsigned n, uint64_t total, const uint32_t log2s[257], uint8_t *freqs);

#endif
