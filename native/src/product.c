/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. A matrix times rows of x while the matrix is decoded: decode.c hands over each batch of elements while it is in the first-level cache. A chunk
 * begins and ends inside a row as it happens; what it adds to a row is summed by itself, so that sums do not depend on which thread decoded which chunk.
 */
#include "product.h"

static size_t bytes_of(unsigned type) { return type == WP_FLOAT_F32 ? 4 : 2; }

int wp_product_is_sound(const wp_product *p, size_t elem_bytes) {
    return p->type < WP_N_FLOATS && bytes_of(p->type) == elem_bytes && p->n_cols > 0 && p->batch > 0 && p->batch <= WP_MAX_BATCH;
}

void wp_summation_begin(wp_summation *s, unsigned isa, const wp_product *product, uint64_t elem) {
    s->product = product;
    s->dot = wp_kernels_of(isa)->dot[product->type];
    s->elem_bytes = bytes_of(product->type);
    s->col = (size_t)(elem % product->n_cols);
    s->row = product->sums + (size_t)(elem / product->n_cols) * product->batch;
    for (size_t b = 0; b < product->batch; b++) s->partial[b] = 0;
}

void wp_summation_end(wp_summation *s) {
    for (size_t b = 0; b < s->product->batch; b++) {
        s->row[b] += s->partial[b];
        s->partial[b] = 0;
    }
}

void wp_summation_add(wp_summation *s, const uint8_t *elems, size_t n_bytes) {
    const wp_product *p = s->product;
    for (size_t n = n_bytes / s->elem_bytes; n;) {
        const size_t left = p->n_cols - s->col, m = n < left ? n : left;
        s->dot(elems, m, p->x + s->col, p->n_cols, p->batch, s->partial);
        elems += m * s->elem_bytes;
        n -= m;
        s->col += m;
        if (s->col < p->n_cols) return;
        wp_summation_end(s);
        s->col = 0;
        s->row += p->batch;
    }
}

wp_status wp_multiply(unsigned isa, const wp_product *product, const uint8_t *elems, size_t n_elems, uint64_t elem) {
    if (product->type >= WP_N_FLOATS || !wp_product_is_sound(product, bytes_of(product->type))) return WP_ARGUMENT;
    wp_summation s;
    wp_summation_begin(&s, isa, product, elem);
    wp_summation_add(&s, elems, n_elems * s.elem_bytes);
    if (s.col) wp_summation_end(&s);
    return WP_OK;
}
