/* SPDX-License-Identifier: Apache-2.0
 *
 * Section 8.8 around the kernels: rANS in which each symbol has one of up to 16 codebooks, by the rate of its block and the exponent of its base. The same
 * update moves a small weight by many steps of its last place and a large one by none: that is what the exponent tells, and the rate how large the block's
 * updates are.
 */
#include "conditional.h"
#include "mem.h"
#include "rans.h"

enum { HEAD_BYTES = 3, ROW_BYTES = WP_N_CONTEXTS / 2 };

/* ---- decoding ---- */

static void complete_tables(wp_conditional_tables *t, const wp_rans_table *books, unsigned n_books) {
    memset(t, 0, sizeof *t);
    for (unsigned b = 0; b < n_books; b++) {
        const unsigned n_ranks = books[b].n_symbols + (books[b].has_escape ? 1u : 0u);
        for (unsigned r = 0; r < 16; r++) {
            const unsigned i = b * 16 + r;
            t->start[i] = books[b].start[r];
            t->freq[i] = books[b].freq[r];
            t->symbol[i] = r < books[b].n_symbols ? books[b].symbol[r] : WP_CONDITIONAL_ESCAPE;
        }
        /* A slot above it belongs to rank r or more; 255 if there is no such rank. */
#define BELOW(r) (uint8_t)((r) < n_ranks ? books[b].start[r] - 1 : 255)
        t->step8[b] = BELOW(8);
        for (unsigned i = 0; i < 2; i++) t->step4[b * 2 + i] = BELOW(4 + 8 * i);
        for (unsigned i = 0; i < 4; i++) t->step2[b * 4 + i] = BELOW(2 + 4 * i);
        for (unsigned i = 0; i < 8; i++) t->step1[b * 8 + i] = BELOW(1 + 2 * i);
#undef BELOW
        for (unsigned slot = 0; slot < 256; slot++)
            t->by_slot[256 * b + slot] = (books[b].by_slot[slot] & 0xffff) | (uint32_t)t->symbol[16 * b + books[b].rank_of_slot[slot]] << 16;
    }
}

wp_status wp_conditional_open(wp_conditional_decoder *d, const uint8_t *p, size_t n_bytes) {
    const uint8_t *const end = p + n_bytes;
    if (n_bytes < HEAD_BYTES) return WP_TRUNCATED;
    const unsigned n_books = p[0] + 1u;
    d->base_exponent = p[1];
    d->n_rates = p[2];
    if (n_books > WP_MAX_TABLES || d->n_rates < 1 || d->n_rates > WP_MAX_RATE) return WP_CORRUPT;
    p += HEAD_BYTES;
    if (end - p < ROW_BYTES * (ptrdiff_t)d->n_rates) return WP_TRUNCATED;
    memset(d->map, 0, sizeof d->map);
    for (unsigned i = 0; i < (unsigned)d->n_rates * WP_N_CONTEXTS; i++) {
        const unsigned book = p[i / 2] >> i % 2 * 4 & 15;
        if (book >= n_books) return WP_CORRUPT;
        d->map[WP_N_CONTEXTS + i] = (uint8_t)book;
    }
    p += ROW_BYTES * d->n_rates;
    d->rans.n_tables = n_books;
    d->rans.id_bits = 0;
    d->rans.block_groups = 1;
    d->rans.group = 0;
    d->rans.ids = NULL;
    for (unsigned b = 0; b < n_books; b++) {
        wp_status status = wp_rans_open_table(&d->rans.tables[b], &p, end, WP_CLASS_BITS);
        if (status != WP_OK) return status;
    }
    complete_tables(&d->tables, d->rans.tables, n_books);
    return wp_rans_open_states(&d->rans, p, end, WP_CLASS_BITS);
}

wp_status wp_conditional_next(const wp_kernels *kernels, wp_conditional_decoder *d, unsigned rate, const uint8_t *exponents, uint8_t *out, size_t n) {
    if (rate > d->n_rates) return WP_CORRUPT;
    const uint8_t *row = d->map + rate * WP_N_CONTEXTS;
    if (n == WP_BLOCK) return kernels->conditional_decode(&d->rans, &d->tables, row, d->base_exponent, exponents, out);
    wp_rans_guard(&d->rans);
    for (size_t l = 0; l < n; l++) {
        uint32_t x = d->rans.x[l], t = d->rans.tables[row[wp_context_of(exponents[l], d->base_exponent)]].by_slot[x & 255];
        x = (t & 255) * (x >> 8) + (t >> 8 & 255);
        if (x < 256) x = x << 8 | *d->rans.renorm++;
        d->rans.x[l] = (uint16_t)x;
        out[l] = t >> 24 ? *d->rans.literals++ : (uint8_t)(t >> 16);
    }
    return d->rans.renorm > d->rans.renorm_end || d->rans.literals > d->rans.literals_end ? WP_TRUNCATED : WP_OK;
}

wp_status wp_conditional_close(const wp_conditional_decoder *d) { return wp_rans_close(&d->rans); }

/* ---- encoding ---- */

static void fill_entries(const wp_rans_book *book, uint32_t entries[WP_N_CLASSES]) {
    unsigned start = 0;
    for (unsigned r = 0; r < book->n_symbols; r++) start += book->freqs[r];
    for (unsigned s = 0; s < WP_N_CLASSES; s++) entries[s] = book->escape_freq | (start & 255) << 8 | 1u << 16;
    start = 0;
    for (unsigned r = 0; r < book->n_symbols; start += book->freqs[r++]) {
        if (book->symbols[r] >> WP_CLASS_BITS == 0) entries[book->symbols[r]] = book->freqs[r] | start << 8; /* others are asked for by no one */
    }
}

wp_status wp_conditional_encode(unsigned isa, const wp_rans_book *books, unsigned n_books, unsigned base_exponent, unsigned n_rates,
                                const uint8_t map[WP_N_CELLS], const uint8_t *cells, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out,
                                size_t capacity, size_t *out_bytes) {
    if (n_books < 1 || n_books > WP_MAX_TABLES || n_rates < 1 || n_rates > WP_MAX_RATE || base_exponent > 255) return WP_ARGUMENT;
    wp_conditional_encoder e;
    size_t head = HEAD_BYTES + ROW_BYTES * n_rates + 2 * WP_BLOCK + 4;
    for (unsigned b = 0; b < n_books; b++) {
        if (!wp_rans_book_is_sound(&books[b])) return WP_ARGUMENT;
        fill_entries(&books[b], e.entry + b * WP_N_CLASSES);
        head += 2 + 2 * (size_t)books[b].n_symbols;
    }
    for (unsigned i = 0; i < WP_N_CELLS; i++)
        if (map[i] >= n_books) return WP_ARGUMENT;
    uint8_t all = 0;
    for (size_t i = 0; i < n; i++) all |= symbols[i];
    if (all >> WP_CLASS_BITS) return WP_ARGUMENT;

    uint8_t *const renorm_end = scratch + 64 + n, *const literals_end = renorm_end + 64 + n;
    e.renorm = renorm_end;
    e.literals = literals_end;
    memcpy(e.map, map, sizeof e.map);
    for (int l = 0; l < WP_BLOCK; l++) e.x[l] = 256;
    for (size_t end = n; end;) {
        const size_t begin = (end - 1) / WP_BLOCK * WP_BLOCK;
        const wp_status status = wp_kernels_of(isa)->conditional_encode(&e, cells + begin, symbols + begin, end - begin);
        if (status != WP_OK) return status;
        end = begin;
    }

    const size_t renorm_bytes = (size_t)(renorm_end - e.renorm), literal_bytes = (size_t)(literals_end - e.literals),
                 need = head + renorm_bytes + literal_bytes;
    if (need > capacity) return WP_NO_SPACE;
    *out++ = (uint8_t)(n_books - 1);
    *out++ = (uint8_t)base_exponent;
    *out++ = (uint8_t)n_rates;
    for (unsigned i = 0; i < n_rates * WP_N_CONTEXTS; i += 2) *out++ = (uint8_t)(map[WP_N_CONTEXTS + i] | map[WP_N_CONTEXTS + i + 1] << 4);
    for (unsigned b = 0; b < n_books; b++) out = wp_rans_put_book(&books[b], out);
    for (int l = 0; l < WP_BLOCK; l++, out += 2) wp_store16(out, e.x[l]);
    wp_store32(out, (uint32_t)renorm_bytes);
    memcpy(out + 4, e.renorm, renorm_bytes);
    memcpy(out + 4 + renorm_bytes, e.literals, literal_bytes);
    *out_bytes = need;
    return WP_OK;
}
