/* SPDX-License-Identifier: Apache-2.0
 *
 * Section 8.3 around the kernels: codebooks, stream heads, and the symbols after the last whole group.
 */
#include "rans.h"
#include "mem.h"

/* ---- decoding ---- */

void wp_rans_complete_table(wp_rans_table *t) {
    const unsigned n_ranks = t->n_symbols + (t->has_escape ? 1u : 0u);
    for (unsigned i = 0; i < 4; i++)
        for (unsigned r = 0; r < 16; r++) {
            const unsigned above = r + (1u << i);
            t->threshold[i][r] = above < 16 && above < n_ranks ? (uint8_t)(t->start[above] - 1) : 255;
        }
    for (unsigned r = 0; r < n_ranks; r++)
        for (unsigned i = 0; i < t->freq[r]; i++) {
            t->rank_of_slot[t->start[r] + i] = (uint8_t)r;
            t->by_slot[t->start[r] + i] = t->freq[r] | i << 8 | (uint32_t)t->symbol[r] << 16 | (uint32_t)(r == t->n_symbols) << 24;
        }
}

wp_status wp_rans_open_table(wp_rans_table *t, const uint8_t **p, const uint8_t *end, unsigned plane_bits) {
    if (end - *p < 2) return WP_TRUNCATED;
    const unsigned k = (*p)[0], escape = (*p)[1];
    if (k < 1 || k > 16 || (escape && k > 15)) return WP_CORRUPT;
    if (end - *p < 2 + 2 * (ptrdiff_t)k) return WP_TRUNCATED;
    const uint8_t *symbols = *p + 2, *freqs = *p + 2 + k;
    uint8_t seen[256] = {0};
    unsigned start = 0;
    t->n_symbols = (uint8_t)k;
    t->has_escape = escape != 0;
    memset(t->freq, 0, 16);
    memset(t->start, 255, 16);
    memset(t->symbol, 0, 16);
    for (unsigned r = 0; r <= k; r++) {
        unsigned f = r < k ? freqs[r] : escape, s = r < k ? symbols[r] : 0;
        if (r < k && (f == 0 || seen[s]++ || s >> plane_bits)) return WP_CORRUPT;
        if (f == 0) break;
        if (start + f > 256) return WP_CORRUPT;
        t->freq[r] = (uint8_t)f;
        t->start[r] = (uint8_t)start;
        t->symbol[r] = (uint8_t)s;
        start += f;
    }
    if (start != 256) return WP_CORRUPT;
    wp_rans_complete_table(t);
    *p += 2 + 2 * k;
    return WP_OK;
}

static unsigned id_bits_of(unsigned n_tables) { return n_tables <= 2 ? n_tables - 1 : n_tables <= 4 ? 2 : 4; }
static size_t blocks_of(size_t n, size_t block_groups) { return (n + block_groups * WP_BLOCK - 1) / (block_groups * WP_BLOCK); }
static unsigned id_of(const wp_rans_decoder *d, size_t block) { return d->ids[block * d->id_bits / 8] >> block * d->id_bits % 8 & ((1u << d->id_bits) - 1); }

/* Parses the tables and ids of section 8.7; *p moves behind them. */
static wp_status open_tables(wp_rans_decoder *d, const uint8_t **p, const uint8_t *end, size_t n, unsigned plane_bits) {
    if (end - *p < 2) return WP_TRUNCATED;
    d->n_tables = (*p)[0] + 1u;
    d->block_groups = (*p)[1];
    if (d->n_tables < 2 || d->n_tables > WP_MAX_TABLES || d->block_groups == 0) return WP_CORRUPT;
    *p += 2;
    for (unsigned i = 0; i < d->n_tables; i++) {
        wp_status status = wp_rans_open_table(&d->tables[i], p, end, plane_bits);
        if (status != WP_OK) return status;
    }
    const size_t n_blocks = blocks_of(n, d->block_groups);
    d->id_bits = id_bits_of(d->n_tables);
    const size_t id_bytes = (n_blocks * d->id_bits + 7) / 8;
    if ((size_t)(end - *p) < id_bytes) return WP_TRUNCATED;
    d->ids = *p;
    *p += id_bytes;
    for (size_t block = 0; block < n_blocks; block++)
        if (id_of(d, block) >= d->n_tables) return WP_CORRUPT;
    const unsigned used = (unsigned)(n_blocks * d->id_bits % 8);
    return used && d->ids[id_bytes - 1] >> used ? WP_CORRUPT : WP_OK;
}

wp_status wp_rans_open(wp_rans_decoder *d, const uint8_t *p, size_t n_bytes, size_t n, unsigned plane_bits, int has_tables) {
    const uint8_t *const end = p + n_bytes;
    d->n_tables = 1;
    d->id_bits = 0;
    d->block_groups = SIZE_MAX / WP_BLOCK;
    d->group = 0;
    d->ids = NULL;
    wp_status status = has_tables ? open_tables(d, &p, end, n, plane_bits) : wp_rans_open_table(&d->tables[0], &p, end, plane_bits);
    return status == WP_OK ? wp_rans_open_states(d, p, end, plane_bits) : status;
}

wp_status wp_rans_open_states(wp_rans_decoder *d, const uint8_t *p, const uint8_t *end, unsigned plane_bits) {
    if (end - p < 2 * WP_BLOCK + 4) return WP_TRUNCATED;
    for (int l = 0; l < WP_BLOCK; l++, p += 2) {
        d->x[l] = wp_load16(p);
        if (d->x[l] < 256) return WP_CORRUPT;
    }
    size_t renorm_bytes = wp_load32(p);
    p += 4;
    if (renorm_bytes > (size_t)(end - p)) return WP_TRUNCATED;
    d->renorm = p;
    d->renorm_end = d->literals = p + renorm_bytes;
    d->literals_end = end;
    unsigned escapes = 0;
    for (unsigned i = 0; i < d->n_tables; i++) escapes |= d->tables[i].has_escape;
    if (!escapes && d->literals != d->literals_end) return WP_CORRUPT;
    if (plane_bits < 8)
        for (const uint8_t *q = d->literals; q < d->literals_end; q++)
            if (*q >> plane_bits) return WP_CORRUPT;
    d->renorm_in_tail = d->literals_in_tail = 0;
    return WP_OK;
}

/* Makes the table of the next group the kernels'; returns how many groups have it, at most `most`. */
static size_t next_table(wp_rans_decoder *d, size_t most) {
    d->table = &d->tables[0];
    if (d->id_bits == 0) return most;
    size_t block = d->group / d->block_groups, left = d->block_groups - d->group % d->block_groups;
    const unsigned id = id_of(d, block);
    d->table = &d->tables[id];
    while (left < most && id_of(d, ++block) == id) left += d->block_groups;
    return left < most ? left : most;
}

wp_status wp_rans_next(const wp_kernels *kernels, wp_rans_decoder *d, uint8_t *out, size_t n) {
    for (size_t left = n / WP_BLOCK; left;) {
        const size_t groups = next_table(d, left);
        wp_status status = kernels->rans_decode(d, out, groups);
        if (status != WP_OK) return status;
        d->group += groups;
        left -= groups;
        out += groups * WP_BLOCK;
    }
    if (n % WP_BLOCK == 0) return WP_OK;
    next_table(d, 1);
    wp_rans_guard(d);
    for (size_t l = 0; l < n % WP_BLOCK; l++) {
        uint32_t x = d->x[l], t = d->table->by_slot[x & 255];
        x = (t & 255) * (x >> 8) + (t >> 8 & 255);
        if (x < 256) x = x << 8 | *d->renorm++;
        d->x[l] = (uint16_t)x;
        out[l] = t >> 24 ? *d->literals++ : (uint8_t)(t >> 16);
    }
    return d->renorm > d->renorm_end || d->literals > d->literals_end ? WP_TRUNCATED : WP_OK;
}

wp_status wp_rans_close(const wp_rans_decoder *d) {
    unsigned differ = 0;
    for (int l = 0; l < WP_BLOCK; l++) differ |= d->x[l] ^ 256u;
    return differ || d->renorm != d->renorm_end || d->literals != d->literals_end ? WP_CORRUPT : WP_OK;
}

/* ---- choosing a codebook ---- */

/* By repeated squaring. */
static uint32_t log2_fixed(uint32_t v) {
    uint32_t whole = 0;
    while (v >> (whole + 1)) whole++;
    uint64_t x = (uint64_t)v << (31 - whole); /* in [2^31, 2^32) */
    uint32_t fraction = 0;
    for (int i = 0; i < 17; i++) {
        x = x * x >> 31;
        fraction <<= 1;
        if (x >> 32) {
            fraction |= 1;
            x >>= 1;
        }
    }
    return (whole << 16) + ((fraction + 1) >> 1);
}

void wp_log2_table(uint32_t log2s[257]) {
    for (uint32_t v = 1; v <= 256; v++) log2s[v] = log2_fixed(v);
}

uint64_t wp_share_frequencies(const uint32_t *counts, unsigned n, uint64_t total, const uint32_t log2s[257], uint8_t *freqs) {
    unsigned sum = 0;
    for (unsigned i = 0; i < n; i++) {
        uint64_t f = ((uint64_t)counts[i] << 8) / total;
        freqs[i] = (uint8_t)(f < 1 ? 1 : f > 255 ? 255 : f);
        sum += freqs[i];
    }
    while (sum != 256) {
        /* Take from where it costs least, or give to where it gains most; ties go to the lower rank. */
        int up = sum < 256;
        unsigned best = n;
        uint64_t best_change = 0;
        for (unsigned i = 0; i < n; i++) {
            if (up ? freqs[i] == 255 : freqs[i] == 1) continue;
            uint64_t change = up ? counts[i] * (uint64_t)(log2s[freqs[i] + 1] - log2s[freqs[i]])
                                 : counts[i] * (uint64_t)(log2s[freqs[i]] - log2s[freqs[i] - 1]);
            if (best == n || (up ? change > best_change : change < best_change)) {
                best = i;
                best_change = change;
            }
        }
        if (up) {
            freqs[best]++;
            sum++;
        } else {
            freqs[best]--;
            sum--;
        }
    }
    uint64_t cost = 0;
    for (unsigned i = 0; i < n; i++) cost += counts[i] * (uint64_t)((8u << 16) - log2s[freqs[i]]);
    return cost;
}

wp_status wp_rans_choose(const uint32_t counts[256], wp_rans_book *book, size_t *cost_bytes) {
    uint32_t log2s[257];
    wp_log2_table(log2s);
    return wp_rans_choose_by(counts, log2s, book, cost_bytes);
}

wp_status wp_rans_choose_by(const uint32_t counts[256], const uint32_t log2s[257], wp_rans_book *book, size_t *cost_bytes) {
    /* Symbols by falling count, equal counts by symbol; only the first 16 can be coded. */
    unsigned order[16], n_order = 0, n_distinct = 0;
    uint64_t total = 0;
    for (unsigned s = 0; s < 256; s++) {
        if (!counts[s]) continue;
        total += counts[s];
        n_distinct++;
        unsigned i = n_order;
        while (i > 0 && counts[order[i - 1]] < counts[s]) i--;
        if (i == 16) continue;
        if (n_order < 16) n_order++;
        for (unsigned j = n_order - 1; j > i; j--) order[j] = order[j - 1];
        order[i] = s;
    }
    if (n_distinct < 2) return WP_ARGUMENT;

    uint64_t best = UINT64_MAX;
    uint64_t kept = 0;
    for (unsigned k = 1; k <= n_order; k++) {
        kept += counts[order[k - 1]];
        int escapes = k < n_distinct;
        if (escapes && k == 16) break;
        uint32_t c[17];
        uint8_t freqs[17];
        for (unsigned i = 0; i < k; i++) c[i] = counts[order[i]];
        c[k] = (uint32_t)(total - kept);
        unsigned n = k + (unsigned)escapes;
        if (n < 2) continue;
        uint64_t cost = wp_share_frequencies(c, n, total, log2s, freqs) + (((total - kept) * 8 + 16 * k) << 16);
        if (cost < best) {
            best = cost;
            memset(book, 0, sizeof *book);
            book->n_symbols = (uint8_t)k;
            book->escape_freq = escapes ? freqs[k] : 0;
            for (unsigned i = 0; i < k; i++) {
                book->symbols[i] = (uint8_t)order[i];
                book->freqs[i] = freqs[i];
            }
        }
    }
    *cost_bytes = (size_t)(best >> 19) + 1 + 2 * WP_BLOCK + 6;
    return WP_OK;
}

/* ---- encoding ---- */

/* At most one renormalisation byte and one literal a symbol, and 64 bytes of room below each for the kernels. */
size_t wp_rans_scratch(size_t n) { return 2 * (n + 64); }

int wp_rans_book_is_sound(const wp_rans_book *book) {
    unsigned k = book->n_symbols, sum = book->escape_freq;
    uint8_t coded[256] = {0};
    if (k < 1 || k > 16 || (book->escape_freq && k > 15)) return 0;
    for (unsigned r = 0; r < k; r++) {
        if (book->freqs[r] == 0 || coded[book->symbols[r]]++) return 0;
        sum += book->freqs[r];
    }
    return sum == 256;
}

uint8_t *wp_rans_put_book(const wp_rans_book *book, uint8_t *out) {
    const size_t k = book->n_symbols;
    *out++ = (uint8_t)k;
    *out++ = book->escape_freq;
    memcpy(out, book->symbols, k);
    memcpy(out + k, book->freqs, k);
    return out + 2 * k;
}

wp_status wp_rans_encode(unsigned isa, const wp_rans_book *book, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                         size_t *out_bytes) {
    uint8_t coded[256] = {0};
    if (!wp_rans_book_is_sound(book)) return WP_ARGUMENT;
    for (unsigned r = 0; r < book->n_symbols; r++) coded[book->symbols[r]] = 1;
    if (!book->escape_freq)
        for (size_t i = 0; i < n; i++)
            if (!coded[symbols[i]]) return WP_ARGUMENT;
    return wp_rans_encode_known(isa, book, symbols, n, scratch, out, capacity, out_bytes);
}

wp_status wp_rans_encode_known(unsigned isa, const wp_rans_book *book, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                               size_t *out_bytes) {
    return wp_rans_encode_tables(isa, book, 1, NULL, 0, symbols, n, scratch, out, capacity, out_bytes);
}

void wp_rans_encoder_table_of(const wp_rans_book *book, wp_rans_encoder_table *t) {
    const unsigned k = book->n_symbols;
    unsigned start = 0;
    memset(t, 0, sizeof *t);
    t->n_symbols = (uint8_t)k;
    t->has_escape = book->escape_freq != 0;
    memset(t->rank_of_symbol, (int)k, 256);
    for (unsigned r = 0; r <= k; r++) {
        const unsigned f = r < k ? book->freqs[r] : book->escape_freq, reciprocal = f ? (65536 + f - 1) / f : 0;
        if (r < k) t->rank_of_symbol[book->symbols[r]] = (uint8_t)r;
        t->freq[r] = (uint16_t)f;
        t->start[r] = (uint16_t)start;
        t->reciprocal[r] = (uint16_t)(reciprocal > 65535 ? 65535 : reciprocal);
        start += f;
    }
    for (unsigned r = 0; r < 16; r++) {
        const unsigned f = t->freq[r], quotient = f > 1 ? 65536 / f : 65535;
        t->freq8[r] = (uint8_t)f;
        t->start8[r] = (uint8_t)t->start[r];
        t->quotient[r] = (uint16_t)quotient;
        t->quotient_low[r] = (uint8_t)quotient;
        t->quotient_high[r] = (uint8_t)(quotient >> 8);
    }
    for (unsigned nibble = 0; nibble < 16; nibble++) {
        uint8_t any = 0, *ranks = t->ranks_of_nibble[t->n_nibbles];
        for (unsigned i = 0; i < 16; i++) any |= ranks[i] = t->rank_of_symbol[16 * nibble + i] ^ t->n_symbols;
        if (any) t->nibble[t->n_nibbles++] = (uint8_t)nibble;
    }
}

wp_status wp_rans_encode_tables(unsigned isa, const wp_rans_book *books, unsigned n_books, const uint8_t *ids, size_t block_groups, const uint8_t *symbols,
                                size_t n, uint8_t *scratch, uint8_t *out, size_t capacity, size_t *out_bytes) {
    const size_t n_groups = n / WP_BLOCK, n_blocks = ids ? blocks_of(n, block_groups) : 1;
    wp_rans_encoder_table tables[WP_MAX_TABLES];
    size_t head = 2 * WP_BLOCK + 4;
    if (n_books < 1 || n_books > WP_MAX_TABLES) return WP_ARGUMENT;
    for (unsigned i = 0; i < n_books; i++) {
        wp_rans_encoder_table_of(&books[i], &tables[i]);
        head += 2 + 2 * (size_t)books[i].n_symbols;
    }
    if (n_books > 1) head += 2 + (n_blocks * id_bits_of(n_books) + 7) / 8;

    wp_rans_encoder e;
    uint8_t *renorm_end = scratch + 64 + n, *literals_end = renorm_end + 64 + n;
    e.renorm = renorm_end;
    e.literals = literals_end;
    for (int l = 0; l < WP_BLOCK; l++) e.x[l] = 256;
    e.table = &tables[n_books > 1 ? ids[n_blocks - 1] : 0];
    for (size_t i = n; i-- > n_groups * WP_BLOCK;) {
        unsigned r = e.table->rank_of_symbol[symbols[i]], l = (unsigned)(i % WP_BLOCK);
        if (r == e.table->n_symbols) *--e.literals = symbols[i];
        uint32_t x = e.x[l], f = e.table->freq[r];
        if (x >= f << 8) {
            *--e.renorm = (uint8_t)x;
            x >>= 8;
        }
        e.x[l] = (uint16_t)((x / f << 8) + x % f + e.table->start[r]);
    }
    /* From the last group down, as many at once as have the same table. */
    for (size_t end = n_groups; end;) {
        size_t begin = 0;
        if (n_books > 1) {
            size_t block = (end - 1) / block_groups;
            e.table = &tables[ids[block]];
            while (block && ids[block - 1] == ids[block]) block--;
            begin = block * block_groups;
        }
        wp_kernels_of(isa)->rans_encode(&e, symbols + begin * WP_BLOCK, end - begin);
        end = begin;
    }

    const size_t renorm_bytes = (size_t)(renorm_end - e.renorm), literal_bytes = (size_t)(literals_end - e.literals),
                 need = head + renorm_bytes + literal_bytes;
    if (need > capacity) return WP_NO_SPACE;
    if (n_books > 1) {
        *out++ = (uint8_t)(n_books - 1);
        *out++ = (uint8_t)block_groups;
    }
    for (unsigned i = 0; i < n_books; i++) out = wp_rans_put_book(&books[i], out);
    if (n_books > 1) {
        const unsigned bits = id_bits_of(n_books);
        memset(out, 0, (n_blocks * bits + 7) / 8);
        for (size_t block = 0; block < n_blocks; block++) out[block * bits / 8] |= (uint8_t)(ids[block] << block * bits % 8);
        out += (n_blocks * bits + 7) / 8;
    }
    for (int l = 0; l < WP_BLOCK; l++, out += 2) wp_store16(out, e.x[l]);
    wp_store32(out, (uint32_t)renorm_bytes);
    memcpy(out + 4, e.renorm, renorm_bytes);
    memcpy(out + 4 + renorm_bytes, e.literals, literal_bytes);
    *out_bytes = need;
    return WP_OK;
}
