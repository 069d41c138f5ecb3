/* SPDX-License-Identifier: Apache-2.0 */
/* A chunk of differences out of the core's functions, with simple choices, for tests and fuzz targets. Every buffer that the core gets is a malloc() of its
 * exact size. */
#ifndef WP_CODED_DIFFERENCE_H
#define WP_CODED_DIFFERENCE_H

#include <stdlib.h>
#include <string.h>

#include "weightpack.h"

enum { FREQUENT_BYTES = 4 * WP_MAX_FREQUENT };

/* Rates, classes and extra bits; `scales` and `exponents` are what all ISAs must agree on, too. */
typedef struct {
    wp_stream streams[3];
    uint8_t *exponents, *scales, *rates, *classes, *extras;
    size_t n_changed;
} coded_difference;

static inline uint8_t *exactly(size_t n_bytes) {
    uint8_t *p = malloc(n_bytes ? n_bytes : 1);
    if (!p) exit(2);
    memset(p, 0x5A, n_bytes);
    return p;
}
static inline uint8_t *cut_to(uint8_t *p, size_t n_bytes) {
    uint8_t *q = exactly(n_bytes);
    memcpy(q, p, n_bytes);
    free(p);
    return q;
}

static inline void free_difference(coded_difference *c) {
    free(c->exponents);
    free(c->scales);
    free(c->rates);
    free(c->classes);
    free(c->extras);
}

static inline wp_rans_book book_for(const uint32_t counts[256]) {
    wp_rans_book book;
    size_t cost;
    if (wp_rans_choose(counts, &book, &cost) == WP_OK) return book;
    memset(&book, 0, sizeof book); /* one symbol or none */
    book.n_symbols = 1;
    book.freqs[0] = 255;
    book.escape_freq = 1;
    for (unsigned s = 0; s < 256; s++)
        if (counts[s]) book.symbols[0] = (uint8_t)s;
    return book;
}

/* Blocks of the rate 1 + scale % n_rates; classes with `n_books` codebooks, dealt out to cells in turn, or raw if it is 0. WP_OK, unless the core refuses. */
static inline wp_status code_difference(unsigned isa, unsigned layout, unsigned shift, const uint8_t *frequent, unsigned n_frequent, const uint8_t *elems,
                                        const uint8_t *base, size_t n, unsigned n_rates, unsigned n_books, unsigned base_exponent, coded_difference *c) {
    const size_t n_blocks = (n + WP_BLOCK - 1) / WP_BLOCK;
    memset(c, 0, sizeof *c);
    c->exponents = exactly(n);
    c->scales = exactly(n_blocks);
    c->rates = exactly(n_blocks);
    wp_status status = wp_difference_planes(isa, layout, shift, elems, base, n, c->exponents, c->scales);
    if (status != WP_OK) return status;
    for (size_t b = 0; b < n_blocks; b++) c->rates[b] = (uint8_t)(c->scales[b] ? 1 + c->scales[b] % n_rates : 0);
    static uint32_t counts[2][WP_N_CELLS * WP_N_CLASSES];
    uint8_t *cells = exactly(n), *classes = exactly(n);
    size_t extras_bytes;
    c->extras = exactly(wp_difference_extras_bound(n));
    status = wp_difference_code(isa, layout, shift, elems, base, n, c->rates, base_exponent, frequent, n_frequent, cells, classes, counts, c->extras,
                                &c->n_changed, &extras_bytes);
    c->extras = cut_to(c->extras, status == WP_OK ? extras_bytes : 0);
    c->streams[0] = (wp_stream){WP_RAW, c->rates, n_blocks};
    c->streams[1] = (wp_stream){WP_RAW, NULL, c->n_changed};
    c->streams[2] = (wp_stream){WP_RAW, c->extras, extras_bytes};
    if (status == WP_OK && n_books && c->n_changed) {
        wp_rans_book books[WP_MAX_TABLES];
        uint8_t map[WP_N_CELLS];
        for (unsigned i = 0; i < WP_N_CELLS; i++) map[i] = (uint8_t)(i % n_books);
        for (unsigned b = 0; b < n_books; b++) {
            uint32_t sums[256] = {0};
            for (unsigned i = b; i < WP_N_CELLS; i += n_books)
                for (unsigned s = 0; s < WP_N_CLASSES; s++) sums[s] += counts[0][i * WP_N_CLASSES + s];
            books[b] = book_for(sums);
        }
        const size_t room = 2 * c->n_changed + 2048;
        uint8_t *out = exactly(room), *scratch = exactly(wp_rans_scratch(c->n_changed)), *coded_cells = cut_to(cells, c->n_changed),
                *coded_classes = cut_to(classes, c->n_changed);
        status = wp_conditional_encode(isa, books, n_books, base_exponent, n_rates, map, coded_cells, coded_classes, c->n_changed, scratch, out, room,
                                       &c->streams[1].n_bytes);
        c->streams[1].codec = WP_CONDITIONAL;
        free(scratch);
        free(coded_cells);
        cells = NULL;
        free(coded_classes);
        classes = out;
    }
    free(cells);
    c->classes = cut_to(classes, status == WP_OK ? c->streams[1].n_bytes : 0);
    c->streams[1].data = c->classes;
    return status;
}

#endif
