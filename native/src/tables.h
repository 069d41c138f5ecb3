/* SPDX-License-Identifier: Apache-2.0 */
#ifndef WP_TABLES_H
#define WP_TABLES_H
#include "kernels.h"

enum { WP_TABLE_GROUPS = 2 }; /* groups of a block: short rows have statistics of their own */

/* Codebooks and which block has which. `ids` is the caller's, one byte a block. */
typedef struct {
    unsigned n_books;
    wp_rans_book books[WP_MAX_TABLES];
    uint8_t *ids;
    size_t cost_bytes, escapes;
} wp_rans_tables;

/* Bytes of scratch for n symbols, a multiple of 64; ids are in it. */
size_t wp_tables_scratch(size_t n);
/* Finds up to `most` codebooks for blocks of the plane, whose histogram is `counts`; n_books is 0 if the blocks are too few or too much alike. */
void wp_rans_choose_tables(const uint8_t *symbols, size_t n, const uint32_t counts[256], unsigned most, uint8_t *scratch, wp_rans_tables *t);

#endif
