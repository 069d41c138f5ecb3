/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. One chunk, elements -> streams, while it is in the second-level cache. First batch by batch: take the elements' CRC and split them. Then,
 * plane by plane: histogram, codebook, stream, straight into the chunk. Whether zstd might shrink a plane is the caller's to try: he gets the planes and what
 * their statistics say.
 */
#include "context.h"
#include "mem.h"
#include "rans.h"
#include "tables.h"

enum {
    BATCH_ELEMS = 32 * WP_BLOCK,
    SAMPLE_WORDS = 1024,
    TABLE_WORDS = 2 * SAMPLE_WORDS,
    TINY_BYTES = 4096, /* looked at as a whole */
    HASH_BITS = 11,
    LEAST_MATCH = 6,
    MATCH_COST = 5, /* bytes that a match takes, about */
    /* Huffman can win only where rANS pays for its 256 bytes of states or for escapes; elsewhere rANS's fractional bits are always fewer. */
    SMALL_PLANE = 1 << 15,
    ESCAPE_SHARE = 64,
};

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

/* Bytes that matches save; at each place the last one with the same hash is tried, and what it matches is passed over. */
static size_t matched_bytes(const uint8_t *data, size_t n) {
    uint16_t last[1 << HASH_BITS] = {0}; /* place + 1 */
    size_t saved = 0;
    for (size_t i = 0; i + 4 <= n;) {
        const uint32_t v = wp_load32(data + i);
        uint16_t *slot = &last[v * 0x9E3779B1u >> (32 - HASH_BITS)];
        const size_t from = *slot;
        size_t length = 0;
        *slot = (uint16_t)(i + 1);
        if (from)
            while (i + length < n && data[from - 1 + length] == data[i + length]) length++;
        if (length >= LEAST_MATCH) {
            saved += length - MATCH_COST;
            i += length;
        } else i++;
    }
    return saved;
}

size_t wp_sample_repeats(const uint8_t *data, size_t n_bytes) {
    if (n_bytes <= TINY_BYTES) return matched_bytes(data, n_bytes) / 8;
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
static wp_status encode_plane(unsigned isa, wp_encoded_stream *s, const uint8_t *next, wp_codecs codecs, uint8_t *tables_scratch, uint8_t *scratch,
                              uint8_t *out) {
    const size_t n = s->plane_bytes;
    size_t least = n, escapes = n; /* of the stream, as far as it is known or estimated; and symbols that it spells out */
    wp_status status;
    uint32_t counts[256];
    wp_rans_book book;
    wp_rans_tables tables = {0};
    s->codec = WP_RAW;
    s->n_bytes = n;
    if (all_equal(s->plane, n)) {
        s->codec = WP_CONSTANT;
        s->n_bytes = 1;
        out[0] = s->plane[0];
        return WP_OK;
    }
    wp_histogram(isa, s->plane, n, counts);
    if (codecs.most_tables && next) {
        status = wp_context_encode(isa, next, s->plane, n, scratch, out, n - 1, &s->n_bytes);
        if (status == WP_OK) {
            s->codec = WP_CONTEXT;
            least = s->n_bytes;
            escapes = 0;
        } else if (status != WP_NO_SPACE) return status;
    } else if (codecs.most_tables) {
        status = wp_rans_choose(counts, &book, &least);
        if (status != WP_OK) return status;
        for (unsigned i = 0; i < book.n_symbols; i++) escapes -= counts[book.symbols[i]];
        if (codecs.most_tables > 1) wp_rans_choose_tables(s->plane, n, counts, codecs.most_tables, tables_scratch, &tables);
        if (tables.n_books && tables.cost_bytes < least) {
            least = tables.cost_bytes;
            escapes = tables.escapes;
        } else tables.n_books = 0;
    }
    if (codecs.huffman && (n < SMALL_PLANE || escapes * ESCAPE_SHARE > n)) {
        uint8_t lengths[256];
        status = wp_huffman_lengths(counts, lengths);
        if (status != WP_OK) return status;
        if (wp_huffman_bytes(lengths, counts) < (least < n ? least : n)) {
            s->codec = WP_HUFFMAN;
            return wp_huffman_encode(lengths, s->plane, n, out, n + 8, &s->n_bytes); /* which wants room for a word behind the last */
        }
    }
    if (s->codec == WP_CONTEXT) return WP_OK;
    if (least < n) {
        if (tables.n_books)
            status = wp_rans_encode_tables(isa, tables.books, tables.n_books, tables.ids, WP_TABLE_GROUPS, s->plane, n, scratch, out, n - 1, &s->n_bytes);
        else status = wp_rans_encode_known(isa, &book, s->plane, n, scratch, out, n - 1, &s->n_bytes);
        if (status == WP_OK) {
            s->codec = tables.n_books ? WP_TABLES : WP_RANS;
            return WP_OK;
        }
        if (status != WP_NO_SPACE) return status;
    }
    s->n_bytes = n;
    memcpy(out, s->plane, n);
    return WP_OK;
}

wp_status wp_encode_chunk(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, uint32_t chunk_number, wp_codecs codecs, uint8_t *workspace,
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
            s->n_bytes = s->plane_bytes;
            memcpy(p, s->plane, s->plane_bytes);
        } else {
            wp_status status = encode_plane(isa, s, wp_has_context(l, i) ? s[1].plane : NULL, codecs, workspace + at.tables, workspace + at.scratch, p);
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

static int repeats_enough(size_t repeats, size_t n_bytes, size_t share) {
    enum { SAMPLE_BYTES = 16 * SAMPLE_WORDS };
    return repeats * share > (n_bytes < SAMPLE_BYTES ? n_bytes : SAMPLE_BYTES) / 8;
}

static int deserves_zstd(const wp_encoded_chunk *c, size_t n_bytes, size_t share) {
    int found = !share || c->n_bytes >= n_bytes || repeats_enough(c->repeats, n_bytes, share);
    for (const wp_encoded_stream *s = c->streams; s < c->streams + c->n_streams; s++)
        found |= s->codec != WP_CONSTANT && repeats_enough(s->repeats, s->plane_bytes, share);
    return found;
}

wp_status wp_encode_chunks(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, size_t chunk_elems, uint32_t first_number, wp_codecs codecs,
                           size_t repeat_share, uint8_t *workspace, uint8_t *out, uint32_t *sizes, uint32_t *crcs, size_t *n_done, int *stopped,
                           wp_encoded_chunk *last) {
    const wp_layout *l = wp_layout_of(layout);
    *n_done = 0;
    *stopped = 0;
    if (!l) return WP_UNSUPPORTED;
    if (chunk_elems == 0) return WP_ARGUMENT;
    for (size_t i = 0; i < n_elems && !*stopped; i += chunk_elems) {
        size_t n = n_elems - i < chunk_elems ? n_elems - i : chunk_elems;
        wp_status status = wp_encode_chunk(isa, layout, elems + i * l->elem_bytes, n, first_number + (uint32_t)*n_done, codecs, workspace, out, last);
        if (status != WP_OK) return status;
        out += last->n_bytes;
        sizes[*n_done] = (uint32_t)last->n_bytes;
        crcs[*n_done] = last->crc;
        ++*n_done;
        *stopped = deserves_zstd(last, n * l->elem_bytes, repeat_share);
    }
    return WP_OK;
}
