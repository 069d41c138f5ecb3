/* SPDX-License-Identifier: Apache-2.0 */
/* Products of a matrix that comes element by element, in the order of its bytes. */
#ifndef WP_PRODUCT_H
#define WP_PRODUCT_H
#include "kernels.h"

/* Where the next element goes. Sums of a row that are not in `sums` yet are in `partial`. */
typedef struct {
    const wp_product *product;
    void (*dot)(const uint8_t *elems, size_t n, const float *x, size_t stride, size_t batch, float *sums);
    size_t elem_bytes, col;
    float *row;
    float partial[WP_MAX_BATCH];
} wp_summation;

/* Does the product say what can be multiplied, elements of so many bytes? */
int wp_product_is_sound(const wp_product *p, size_t elem_bytes);
/* Begins at an element: its place in the matrix, counted from the first of the row that `product->sums` begins with. */
void wp_summation_begin(wp_summation *s, unsigned isa, const wp_product *product, uint64_t elem);
/* The next elements. */
void wp_summation_add(wp_summation *s, const uint8_t *elems, size_t n_bytes);
/* Adds what is left of a row to `sums`. */
void wp_summation_end(wp_summation *s);

#endif
