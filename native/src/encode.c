/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. One chunk, elements -> streams, while it is in the second-level cache. First batch by batch: take the elements' CRC and split them. Then,
 * plane by plane: histogram, codebook, stream, straight into the chunk. What else might shrink a plane (Huffman, zstd) is the caller's to try: he gets the
 * planes and what their statistics say.
 */
#include "context.h"
#include "mem.h"
#include "rans.h"
#include "tables.h"

enum { BATCH_ELEMS = 32 * WP_BLOCK, SAMPLE_WORDS = 1024, TABLE_WORDS = 2 * SAMPLE_WORDS };

/* Open addressing; 0 marks a free slot, so the word 0 is counted apart. */
static size_t count_repeats(const uint8_t *words, size_t n) {
    uint64_t table[TABLE_WORDS] = {0};
    size_t repeats = 0, zeros = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t v = wp_load64(words + 8 * i);
        if (v == 0) {
            repeats += zeros++ > 0;
            continue;
        }
        size_t slot = (size_t)(v * 0x9E3779B97F4A7C15u >> 32) % TABLE_WORDS;
        while (table[slot] && table[slot] != v) slot = (slot + 1) % TABLE_WORDS;
        if (table[slot]) repeats++;
        else table[slot] = v;
    }
    return repeats;
}

size_t wp_sample_repeats(const uint8_t *data, size_t n_bytes) {
    const size_t half = 8 * SAMPLE_WORDS, middle = n_bytes / 2 / 8 * 8, rest = n_bytes - middle;
    return count_repeats(data, (n_bytes < half ? n_bytes : half) / 8) + count_repeats(data + middle, (rest < half ? rest : half) / 8);
}

static size_t aligned(size_t n) { return (n + 63) / 64 * 64; }

/* The workspace: symbol planes, widths, bits, scratch of the rANS encoder and of what chooses its tables. */
typedef struct { size_t widths, bits, tables, scratch, end; } places;

static places places_in_workspace(const wp_layout *l, unsigned layout, size_t n_elems) {
    places p;
    size_t n_blocks = (n_elems + WP_BLOCK - 1) / WP_BLOCK;
    p.widths = aligned(l->n_planes * n_elems);
    p.bits = p.widths + aligned(l->raw_bits ? n_blocks : 0);
    p.tables = p.bits + aligned(wp_bits_bound(layout, n_elems));
    p.scratch = p.tables + wp_tables_scratch(n_elems);
    p.end = p.scratch + wp_rans_scratch(n_elems);
    return p;
}

size_t wp_encode_workspace_bytes(unsigned layout, size_t n_elems) {
    const wp_layout *l = wp_layout_of(layout);
    return l ? places_in_workspace(l, layout, n_elems).end : 0;
}

size_t wp_encode_bound(unsigned layout, size_t n_elems) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l) return 0;
    size_t n_blocks = (n_elems + WP_BLOCK - 1) / WP_BLOCK;
    return 4 + 4 * WP_MAX_STREAMS + l->n_planes * n_elems + (l->raw_bits ? n_blocks + wp_bits_bound(layout, n_elems) : 0) + 15;
}

/* Splits all elements and takes their CRC; returns the length of the bits. */
static size_t split(const wp_kernels *k, unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, uint8_t *symbols, uint8_t *widths, uint8_t *bits,
                    uint32_t *crc) {
    const wp_layout *l = wp_layout_of(layout);
    size_t bits_bytes = 0;
    for (size_t i = 0; i < n_elems; i += BATCH_ELEMS, elems += BATCH_ELEMS * l->elem_bytes) {
        size_t n = n_elems - i < BATCH_ELEMS ? n_elems - i : BATCH_ELEMS, batch_bytes;
        uint8_t *planes[WP_MAX_PLANES];
        for (unsigned p = 0; p < l->n_planes; p++) planes[p] = symbols + p * n_elems + i;
        *crc = k->crc32c(*crc, elems, n * l->elem_bytes);
        wp_split(isa, layout, elems, n, planes, widths + i / WP_BLOCK, bits + bits_bytes, &batch_bytes);
        bits_bytes += batch_bytes;
    }
    return bits_bytes;
}

static int all_equal(const uint8_t *p, size_t n) { return n == 0 || memcmp(p, p + 1, n - 1) == 0; }

/* Encodes one plane at `out`, which has room for it raw; `next` is the plane that tells what to expect of this one, or NULL. */
static wp_status encode_plane(unsigned isa, wp_encoded_stream *s, const uint8_t *next, unsigned most_tables, uint8_t *tables_scratch, uint8_t *scratch,
                              uint8_t *out) {
    const size_t n = s->plane_bytes;
    s->codec = WP_RAW;
    s->n_bytes = s->rans_bytes = n;
    if (all_equal(s->plane, n)) {
        s->codec = WP_CONSTANT;
        s->n_bytes = 1;
        out[0] = s->plane[0];
        return WP_OK;
    }
    if (most_tables && next) {
        wp_status status = wp_context_encode(isa, next, s->plane, n, scratch, out, n - 1, &s->n_bytes);
        if (status == WP_OK) {
            s->codec = WP_CONTEXT;
            s->rans_bytes = s->n_bytes;
            return WP_OK;
        }
        if (status != WP_NO_SPACE) return status;
        s->n_bytes = n;
    } else if (most_tables) {
        uint32_t counts[256];
        wp_rans_book book;
        wp_histogram(isa, s->plane, n, counts);
        wp_status status = wp_rans_choose(counts, &book, &s->rans_bytes);
        if (status != WP_OK) return status;
        s->escapes = n;
        for (unsigned i = 0; i < book.n_symbols; i++) s->escapes -= counts[book.symbols[i]];
        wp_rans_tables tables = {0};
        if (most_tables > 1) wp_rans_choose_tables(s->plane, n, counts, most_tables, tables_scratch, &tables);
        const int several = tables.n_books && tables.cost_bytes < s->rans_bytes;
        if (several) {
            s->rans_bytes = tables.cost_bytes;
            s->escapes = tables.escapes;
        }
        if (s->rans_bytes < n) {
            if (several)
                status = wp_rans_encode_tables(isa, tables.books, tables.n_books, tables.ids, WP_TABLE_GROUPS, s->plane, n, scratch, out, n - 1, &s->n_bytes);
            else status = wp_rans_encode_known(isa, &book, s->plane, n, scratch, out, n - 1, &s->n_bytes);
            if (status == WP_OK) {
                s->codec = several ? WP_TABLES : WP_RANS;
                return WP_OK;
            }
            if (status != WP_NO_SPACE) return status;
            s->n_bytes = n;
        }
    }
    memcpy(out, s->plane, n);
    return WP_OK;
}

wp_status wp_encode_chunk(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, uint32_t chunk_number, unsigned most_tables, uint8_t *workspace,
                          uint8_t *out, wp_encoded_chunk *chunk) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l) return WP_UNSUPPORTED;
    if (n_elems == 0 || n_elems > WP_MAX_CHUNK_BYTES / l->elem_bytes) return WP_ARGUMENT;
    const size_t n_blocks = (n_elems + WP_BLOCK - 1) / WP_BLOCK;
    const places at = places_in_workspace(l, layout, n_elems);
    uint8_t number[4];
    memset(chunk, 0, sizeof *chunk);
    wp_store32(number, chunk_number);
    chunk->crc = wp_crc32c(WP_ISA_SCALAR, 0, number, 4);
    size_t bits_bytes = split(wp_kernels_of(isa), isa, layout, elems, n_elems, workspace, workspace + at.widths, workspace + at.bits, &chunk->crc);
    chunk->repeats = wp_sample_repeats(elems, n_elems * l->elem_bytes); /* after the split, which has brought them into the cache */

    wp_encoded_stream *s = chunk->streams;
    for (unsigned p = 0; p < l->n_planes; p++, s++) {
        s->plane = workspace + p * n_elems;
        s->plane_bytes = n_elems;
    }
    if (l->raw_bits) {
        s->plane = workspace + at.widths;
        s++->plane_bytes = n_blocks;
        s->plane = workspace + at.bits;
        s++->plane_bytes = bits_bytes;
    }
    chunk->n_streams = (unsigned)(s - chunk->streams);

    uint8_t *table = out + 4, *p = table + 4 * chunk->n_streams;
    out[0] = WP_MODE_SPLIT;
    out[1] = (uint8_t)chunk->n_streams;
    out[2] = out[3] = 0;
    for (unsigned i = 0; i < chunk->n_streams; i++, table += 4) {
        s = &chunk->streams[i];
        s->begin = (size_t)(p - out);
        if (l->raw_bits && i + 1 == chunk->n_streams) { /* bits are raw, whatever they are (section 7.5) */
            s->codec = WP_RAW;
            s->n_bytes = s->rans_bytes = s->plane_bytes;
            memcpy(p, s->plane, s->plane_bytes);
        } else {
            wp_status status = encode_plane(isa, s, wp_has_context(l, i) ? s[1].plane : NULL, most_tables, workspace + at.tables, workspace + at.scratch, p);
            if (status != WP_OK) return status;
        }
        if (s->codec != WP_CONSTANT) s->repeats = wp_sample_repeats(s->plane, s->plane_bytes);
        wp_store32(table, (uint32_t)s->n_bytes << 8 | s->codec);
        p += s->n_bytes;
    }
    while ((p - out) % 16) *p++ = 0;
    chunk->n_bytes = (size_t)(p - out);
    return WP_OK;
}

static int deserves_attention(const wp_encoded_chunk *c, size_t n_bytes, const wp_attention *a) {
    enum { SAMPLE_BYTES = 16 * SAMPLE_WORDS };
    int found = c->n_bytes >= n_bytes || c->repeats * a->repeat_share > (n_bytes < SAMPLE_BYTES ? n_bytes : SAMPLE_BYTES) / 8;
    for (const wp_encoded_stream *s = c->streams; s < c->streams + c->n_streams; s++) {
        if (s->codec == WP_CONSTANT) continue;
        size_t sample = (s->plane_bytes < SAMPLE_BYTES ? s->plane_bytes : SAMPLE_BYTES) / 8;
        found |= s->plane_bytes < a->small_plane || s->escapes * a->escape_share > s->plane_bytes || s->repeats * a->repeat_share > sample;
    }
    return found;
}

wp_status wp_encode_chunks(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, size_t chunk_elems, uint32_t first_number, unsigned most_tables,
                           const wp_attention *attention, uint8_t *workspace, uint8_t *out, uint32_t *sizes, uint32_t *crcs, size_t *n_done, int *stopped,
                           wp_encoded_chunk *last) {
    const wp_layout *l = wp_layout_of(layout);
    *n_done = 0;
    *stopped = 0;
    if (!l) return WP_UNSUPPORTED;
    if (chunk_elems == 0) return WP_ARGUMENT;
    for (size_t i = 0; i < n_elems && !*stopped; i += chunk_elems) {
        size_t n = n_elems - i < chunk_elems ? n_elems - i : chunk_elems;
        wp_status status = wp_encode_chunk(isa, layout, elems + i * l->elem_bytes, n, first_number + (uint32_t)*n_done, most_tables, workspace, out, last);
        if (status != WP_OK) return status;
        out += last->n_bytes;
        sizes[*n_done] = (uint32_t)last->n_bytes;
        crcs[*n_done] = last->crc;
        ++*n_done;
        *stopped = deserves_attention(last, n * l->elem_bytes, attention);
    }
    return WP_OK;
}
