/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. One pass from a chunk's streams to the caller's buffer. A batch is a few thousand elements: its symbols are decoded into the
 * workspace, merged with its raw bits into the output, and the output's CRC is taken, all while the batch is in the first-level cache. So symbols never travel
 * to memory, and any codec works with any layout on any ISA.
 */
#include "mem.h"
#include "plane.h"
#include "prefetch.h"
#include "product.h"

enum { BATCH_BLOCKS = WP_BATCH_BLOCKS, BATCH_ELEMS = WP_BATCH_ELEMS, STEP_ELEMS = 4 * WP_BLOCK, STREAMED_BYTES = 64 << 20 };

size_t wp_workspace_bytes(void) { return sizeof(wp_workspace); }

/* ---- blocks of raw bits ---- */

/* Bit i -> bit 0 of byte i. */
static inline uint64_t spread(uint8_t bits) {
    uint64_t one_each = bits * 0x0101010101010101u & 0x8040201008040201u;
    return (one_each + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

/* Widens a block of `m` elements from width `w` to `r` (128 elements); what is missing becomes zero. */
static void widen_block(const uint8_t *in, unsigned w, unsigned r, size_t m, uint8_t *out) {
    memset(out, 0, wp_block_bytes(r, WP_BLOCK));
    for (unsigned k = 0; k < w / 8; k++, in += m, out += WP_BLOCK) memcpy(out, in, m);
    size_t plane = (m + 7) / 8;
    for (unsigned k = 0; k < w % 8; k++, in += plane) {
        if (w / 8 == r / 8) memcpy(out + k * (WP_BLOCK / 8), in, plane);
        else
            for (size_t i = 0; i < plane; i++) wp_store64(out + 8 * i, wp_load64(out + 8 * i) | spread(in[i]) << (7 - k));
    }
}

/* Unused bits behind the block's last element must be zero. */
static int padding_is_zero(const uint8_t *in, unsigned w, size_t m) {
    if (m % 8 == 0) return 1;
    in += (size_t)(w / 8) * m + m / 8;
    for (unsigned k = 0; k < w % 8; k++, in += (m + 7) / 8)
        if (*in >> (m % 8)) return 0;
    return 1;
}

/* ---- chunks ---- */

/* Where batches go. `streamed`: the output is so long that the cache loses it before anyone reads it. Then each batch is made in the workspace and written
 * past the cache, which saves reading every line of the output before it is overwritten. `sum`, if it is not NULL: batches are made in the workspace, and
 * added there; `out` is not used. */
typedef struct {
    uint8_t *out;
    int streamed;
    wp_summation *sum;
} target;

static wp_status decode_split(unsigned isa, unsigned layout, const wp_stream *streams, size_t n_elems, target to_target, wp_workspace *ws, uint32_t *crc) {
    const wp_layout *l = wp_layout_of(layout);
    const wp_kernels *k = wp_kernels_of(isa);
    const unsigned r = l->raw_bits;
    const int in_place = !to_target.streamed && !to_target.sum;
    uint8_t *out = to_target.out;
    const size_t n_blocks = (n_elems + WP_BLOCK - 1) / WP_BLOCK, full = wp_block_bytes(r, WP_BLOCK);
    const uint8_t *bits = NULL, *bits_end = NULL;
    wp_status status;
    if (r) {
        const wp_stream *s = &streams[l->n_planes];
        if (s[1].codec == WP_ZSTD) return WP_NEEDS_ZSTD;
        if (s[1].codec != WP_RAW) return s[1].codec < WP_N_CODECS ? WP_CORRUPT : WP_UNSUPPORTED;
        if ((status = wp_plane_decode(k, &ws->u.planes[0], &s[0], n_blocks, ws->widths)) != WP_OK) return status;
        uint64_t need = 0;
        for (size_t b = 0; b < n_blocks; b++) {
            if (ws->widths[b] > r) return WP_CORRUPT;
            need += wp_block_bytes(ws->widths[b], b + 1 < n_blocks ? WP_BLOCK : n_elems - b * WP_BLOCK);
        }
        if (need != s[1].n_bytes) return s[1].n_bytes < need ? WP_TRUNCATED : WP_CORRUPT;
        bits = s[1].data;
        bits_end = bits + s[1].n_bytes;
    }
    for (unsigned p = 0; p < l->n_planes; p++)
        if ((status = wp_plane_open(&ws->u.planes[p], &streams[p], n_elems, l->plane_bits[p], wp_has_context(l, p), ws->symbols[p], BATCH_ELEMS)) != WP_OK)
            return status;

    for (size_t block = 0; block < n_blocks; block += BATCH_BLOCKS) {
        size_t n = n_elems - block * WP_BLOCK;
        if (n > BATCH_ELEMS) n = BATCH_ELEMS;
        const uint8_t *planes[WP_MAX_PLANES], *step_planes[WP_MAX_PLANES + 1] = {NULL};
        /* What the next batch will write and read, where it is a whole one. */
        size_t n_ahead = n_elems - block * WP_BLOCK >= 2 * BATCH_ELEMS ? BATCH_ELEMS : 0;
        for (size_t i = 0; i < n; i += STEP_ELEMS) {
            size_t m = n - i < STEP_ELEMS ? n - i : STEP_ELEMS;
            for (unsigned p = l->n_planes; p-- > 0;) { /* the last plane first: it may be another's context */
                if ((status = wp_plane_next(k, &ws->u.planes[p], m, step_planes[p + 1], ws->symbols[p] + i, &step_planes[p])) != WP_OK) return status;
                if (i == 0) planes[p] = step_planes[p];
            }
            if (in_place) wp_prefetch_share((wp_range){out + n * l->elem_bytes, n_ahead * l->elem_bytes}, i / STEP_ELEMS, BATCH_ELEMS / STEP_ELEMS);
            if (r && n_ahead) {
                size_t left = (size_t)(bits_end - bits), batch = BATCH_BLOCKS * full;
                if (left >= 2 * batch) wp_prefetch_share((wp_range){bits + batch, batch}, i / STEP_ELEMS, BATCH_ELEMS / STEP_ELEMS);
            }
        }

        uint8_t *made = in_place ? out : ws->batch, *to = made;
        for (size_t b = 0; b * WP_BLOCK < n;) {
            size_t m = n - b * WP_BLOCK < WP_BLOCK ? n - b * WP_BLOCK : WP_BLOCK, run = 0;
            /* Runs of whole blocks in full width go to the kernel as they are. */
            while ((b + run + 1) * WP_BLOCK <= n && (!r || ws->widths[block + b + run] == r)) run++;
            if (run) {
                k->merge[layout](planes, bits, run, to);
                if (r) bits += run * full;
            } else {
                unsigned w = r ? ws->widths[block + b] : 0;
                uint8_t tail[WP_MAX_PLANES][WP_BLOCK];
                const uint8_t *from[WP_MAX_PLANES];
                for (unsigned p = 0; p < l->n_planes; p++) {
                    from[p] = planes[p];
                    if (m < WP_BLOCK) {
                        memset(tail[p], 0, WP_BLOCK);
                        memcpy(tail[p], planes[p], m);
                        from[p] = tail[p];
                    }
                }
                if (r) {
                    if (!padding_is_zero(bits, w, m)) return WP_CORRUPT;
                    widen_block(bits, w, r, m, ws->bits);
                    bits += wp_block_bytes(w, m);
                }
                k->merge[layout](from, ws->bits, 1, m < WP_BLOCK ? ws->elems : to);
                if (m < WP_BLOCK) memcpy(to, ws->elems, m * l->elem_bytes);
                run = 1;
            }
            b += run;
            for (unsigned p = 0; p < l->n_planes; p++) planes[p] += run * WP_BLOCK;
            to += run * WP_BLOCK * l->elem_bytes;
        }
        *crc = k->crc32c(*crc, made, n * l->elem_bytes);
        if (to_target.sum) wp_summation_add(to_target.sum, made, n * l->elem_bytes);
        else {
            if (to_target.streamed) wp_stream_copy(out, made, n * l->elem_bytes);
            out += n * l->elem_bytes;
        }
    }
    for (unsigned p = 0; p < l->n_planes; p++)
        if ((status = wp_plane_close(&ws->u.planes[p])) != WP_OK) return status;
    return WP_OK;
}

static unsigned n_streams_of(const wp_layout *l, unsigned mode) { return mode == WP_MODE_WHOLE ? 1 : l->n_planes + (l->raw_bits ? 2u : 0u); }

static wp_status decode_streams(unsigned isa, unsigned layout, unsigned mode, const wp_stream *streams, unsigned n_streams, size_t n_elems,
                                uint32_t chunk_number, target to, wp_workspace *ws, uint32_t *crc) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l || (mode != WP_MODE_SPLIT && mode != WP_MODE_WHOLE)) return WP_UNSUPPORTED;
    if (n_streams != n_streams_of(l, mode)) return WP_CORRUPT;
    if (n_elems == 0 || n_elems > WP_MAX_CHUNK_BYTES / l->elem_bytes || (n_elems - 1) / WP_BLOCK >= WP_MAX_CHUNK_BLOCKS) return WP_CORRUPT;
    uint8_t number[4];
    wp_store32(number, chunk_number);
    *crc = wp_crc32c(WP_ISA_SCALAR, 0, number, 4);
    if (mode == WP_MODE_WHOLE) {
        layout = WP_BYTES1;
        n_elems *= l->elem_bytes;
    }
    return decode_split(isa, layout, streams, n_elems, to, ws, crc);
}

wp_status wp_decode_streams(unsigned isa, unsigned layout, unsigned mode, const wp_stream *streams, unsigned n_streams, size_t n_elems, uint32_t chunk_number,
                            wp_workspace *ws, uint8_t *out, uint32_t *crc) {
    return decode_streams(isa, layout, mode, streams, n_streams, n_elems, chunk_number, (target){out, 0, NULL}, ws, crc);
}

static wp_status decode_chunk(unsigned isa, unsigned layout, const uint8_t *chunk, size_t chunk_bytes, size_t n_elems, uint32_t chunk_number,
                              uint32_t expected_crc, target to, wp_workspace *ws) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l) return WP_UNSUPPORTED;
    if (chunk_bytes < 4) return WP_TRUNCATED;
    unsigned mode = chunk[0], n_streams = chunk[1];
    switch (mode) {
    case WP_MODE_SPLIT:
    case WP_MODE_WHOLE: break;
    case WP_MODE_FIELDS:
    case WP_MODE_DIFFERENCE:
    case WP_MODE_SCALED:
    case WP_MODE_QUANTISED:
    case WP_MODE_REPEATED: return WP_NEEDS_CALLER;
    default: return WP_UNSUPPORTED;
    }
    if (chunk[2] || chunk[3] || n_streams != n_streams_of(l, mode)) return WP_CORRUPT;
    if (chunk_bytes < 4 + 4 * n_streams) return WP_TRUNCATED;
    wp_stream streams[WP_MAX_STREAMS];
    const uint8_t *data = chunk + 4 + 4 * n_streams, *end = chunk + chunk_bytes;
    int zstd = 0;
    for (unsigned i = 0; i < n_streams; i++) {
        uint32_t entry = wp_load32(chunk + 4 + 4 * i), n = entry >> 8;
        if (n > (size_t)(end - data)) return WP_TRUNCATED;
        streams[i] = (wp_stream){entry & 255, data, n};
        zstd |= streams[i].codec == WP_ZSTD;
        data += n;
    }
    if (end - data >= 16) return WP_CORRUPT;
    for (; data < end; data++)
        if (*data) return WP_CORRUPT;
    if (zstd) return WP_NEEDS_ZSTD;
    uint32_t crc;
    wp_status status = decode_streams(isa, layout, mode, streams, n_streams, n_elems, chunk_number, to, ws, &crc);
    return status != WP_OK ? status : crc != expected_crc ? WP_CHECKSUM : WP_OK;
}

wp_status wp_decode_chunk(unsigned isa, unsigned layout, const uint8_t *chunk, size_t chunk_bytes, size_t n_elems, uint32_t chunk_number, uint32_t expected_crc,
                          wp_workspace *ws, uint8_t *out) {
    return decode_chunk(isa, layout, chunk, chunk_bytes, n_elems, chunk_number, expected_crc, (target){out, 0, NULL}, ws);
}

/* What both functions below do with chunks [*next, n_chunks); the summation begins anew with each. */
typedef struct {
    const uint8_t *data;
    size_t data_bytes;
    const int64_t *offsets;
    const uint32_t *crcs;
    size_t n_chunks, chunk_elems, n_elems;
    uint32_t first_number;
} chunk_run;

static wp_status decode_run(unsigned isa, unsigned layout, chunk_run run, target to, const wp_product *product, wp_workspace *ws, size_t *next) {
    const wp_layout *l = wp_layout_of(layout);
    const uint64_t skipped = product ? (uint64_t)run.first_number * run.chunk_elems % product->n_cols : 0;
    for (size_t i = *next; i < run.n_chunks; i++) {
        *next = i;
        int64_t begin = run.offsets[i] - run.offsets[0], end = run.offsets[i + 1] - run.offsets[0];
        if (begin < 0 || end < begin || (uint64_t)end > run.data_bytes || i * run.chunk_elems >= run.n_elems) return WP_ARGUMENT;
        size_t left = run.n_elems - i * run.chunk_elems, n = left < run.chunk_elems ? left : run.chunk_elems;
        target here = to;
        if (product) wp_summation_begin(here.sum, isa, product, skipped + (uint64_t)i * run.chunk_elems);
        else here.out += i * run.chunk_elems * l->elem_bytes;
        wp_status status = decode_chunk(isa, layout, run.data + begin, (size_t)(end - begin), n, run.first_number + (uint32_t)i, run.crcs[i], here, ws);
        if (status != WP_OK) return status;
        if (product && here.sum->col) wp_summation_end(here.sum);
    }
    *next = run.n_chunks;
    return WP_OK;
}

wp_status wp_decode_chunks(unsigned isa, unsigned layout, const uint8_t *data, size_t data_bytes, const int64_t *offsets, const uint32_t *crcs, size_t n_chunks,
                           size_t chunk_elems, size_t n_elems, uint32_t first_number, wp_workspace *ws, uint8_t *out, size_t *next) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l) return WP_UNSUPPORTED;
    const target to = {out, n_elems >= STREAMED_BYTES / l->elem_bytes, NULL};
    return decode_run(isa, layout, (chunk_run){data, data_bytes, offsets, crcs, n_chunks, chunk_elems, n_elems, first_number}, to, NULL, ws, next);
}

wp_status wp_multiply_chunks(unsigned isa, unsigned layout, const uint8_t *data, size_t data_bytes, const int64_t *offsets, const uint32_t *crcs,
                             size_t n_chunks, size_t chunk_elems, size_t n_elems, uint32_t first_number, const wp_product *product, wp_workspace *ws,
                             size_t *next) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l) return WP_UNSUPPORTED;
    if (!wp_product_is_sound(product, l->elem_bytes)) return WP_ARGUMENT;
    wp_summation sum;
    const target to = {NULL, 0, &sum};
    return decode_run(isa, layout, (chunk_run){data, data_bytes, offsets, crcs, n_chunks, chunk_elems, n_elems, first_number}, to, product, ws, next);
}
