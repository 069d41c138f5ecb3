/* SPDX-License-Identifier: Apache-2.0 */
/* Section 8: each codec behind the same three calls. */
#include "plane.h"
#include "context.h"
#include "mem.h"
#include "rans.h"

wp_status wp_plane_open(wp_plane *p, const wp_stream *s, size_t n, unsigned plane_bits, int has_context, uint8_t *fill, size_t fill_bytes) {
    p->codec = s->codec;
    switch (s->codec) {
    case WP_RAW:
        if (s->n_bytes != n) return s->n_bytes < n ? WP_TRUNCATED : WP_CORRUPT;
        if (plane_bits < 8)
            for (size_t i = 0; i < n; i++)
                if (s->data[i] >> plane_bits) return WP_CORRUPT;
        p->raw = s->data;
        return WP_OK;
    case WP_CONSTANT:
        if (s->n_bytes != 1) return s->n_bytes < 1 ? WP_TRUNCATED : WP_CORRUPT;
        if (s->data[0] >> plane_bits) return WP_CORRUPT;
        memset(fill, s->data[0], fill_bytes < n ? fill_bytes : n);
        return WP_OK;
    case WP_RANS:
    case WP_TABLES: return wp_rans_open(&p->u.rans, s->data, s->n_bytes, n, plane_bits, s->codec == WP_TABLES);
    case WP_HUFFMAN: return wp_huffman_open(&p->u.huffman, s->data, s->n_bytes, plane_bits);
    case WP_ZSTD: return WP_NEEDS_ZSTD;
    case WP_CONTEXT: return has_context ? wp_context_open(&p->u.context, s->data, s->n_bytes, plane_bits) : WP_CORRUPT;
    case WP_CONDITIONAL: return WP_CORRUPT; /* of classes of differences only, where it is not asked here */
    default: return WP_UNSUPPORTED;
    }
}

wp_status wp_plane_next(const wp_kernels *k, wp_plane *p, size_t n, const uint8_t *next, uint8_t *buffer, const uint8_t **symbols) {
    *symbols = buffer;
    switch (p->codec) {
    case WP_RAW:
        *symbols = p->raw;
        p->raw += n;
        return WP_OK;
    case WP_RANS:
    case WP_TABLES: return wp_rans_next(k, &p->u.rans, buffer, n);
    case WP_HUFFMAN: return wp_huffman_next(&p->u.huffman, buffer, n);
    case WP_CONTEXT: return wp_context_next(k, &p->u.context, next, buffer, n);
    default: return WP_OK;
    }
}

wp_status wp_plane_close(const wp_plane *p) {
    switch (p->codec) {
    case WP_RANS:
    case WP_TABLES: return wp_rans_close(&p->u.rans);
    case WP_HUFFMAN: return wp_huffman_close(&p->u.huffman);
    case WP_CONTEXT: return wp_context_close(&p->u.context);
    default: return WP_OK;
    }
}

wp_status wp_plane_decode(const wp_kernels *k, wp_plane *p, const wp_stream *s, size_t n, uint8_t *out) {
    const uint8_t *symbols;
    wp_status status = wp_plane_open(p, s, n, 8, 0, out, n);
    if (status == WP_OK) status = wp_plane_next(k, p, n, NULL, out, &symbols);
    if (status == WP_OK) status = wp_plane_close(p);
    if (status == WP_OK && symbols != out) memcpy(out, symbols, n);
    return status;
}
