/* SPDX-License-Identifier: Apache-2.0 */
/* Planes of symbols, whatever their codec is, and the scratch of the decoders. */
#ifndef WP_PLANE_H
#define WP_PLANE_H
#include "conditional.h"
#include "huffman.h"

enum { WP_BATCH_BLOCKS = 32, WP_BATCH_ELEMS = WP_BATCH_BLOCKS * WP_BLOCK };

/* One plane being decoded. */
typedef struct {
    unsigned codec;
    const uint8_t *raw; /* codec raw: what is left of the stream */
    union {
        wp_rans_decoder rans;
        wp_huffman_decoder huffman;
        wp_context_decoder context;
    } u;
} wp_plane;

struct wp_workspace {
    union {
        wp_plane planes[WP_MAX_PLANES];
        wp_conditional_decoder conditional;
    } u;
    uint8_t symbols[WP_MAX_PLANES][WP_BATCH_ELEMS];
    uint8_t widths[WP_MAX_CHUNK_BLOCKS];
    uint8_t bits[WP_BLOCK * 7];        /* one block in full width */
    uint8_t elems[WP_BLOCK * 8];       /* one block of output */
    uint8_t batch[WP_BATCH_ELEMS * 8]; /* of output that is streamed */
};

/* Checks the stream's head. `fill` gets fill_bytes symbols at once if the plane is constant. `has_context`: another plane may tell what to expect of this one.
 */
wp_status wp_plane_open(wp_plane *p, const wp_stream *s, size_t n, unsigned plane_bits, int has_context, uint8_t *fill, size_t fill_bytes);
/* The next n symbols are at *symbols afterwards: in `buffer`, or in the stream itself. `next` are those of the plane that follows, if there is one. */
wp_status wp_plane_next(const wp_kernels *k, wp_plane *p, size_t n, const uint8_t *next, uint8_t *buffer, const uint8_t **symbols);
wp_status wp_plane_close(const wp_plane *p);
/* A whole plane at once. */
wp_status wp_plane_decode(const wp_kernels *k, wp_plane *p, const wp_stream *s, size_t n, uint8_t *out);

#endif
