/* SPDX-License-Identifier: Apache-2.0
 *
 * Section 8.3 around the kernels: codebooks, stream heads, and the symbols after the last whole group.
 */
#include "rans.h"
#include "mem.h"

/* ---- decoding ---- */

wp_status wp_rans_open(wp_rans_decoder *d, const uint8_t *p, size_t n_bytes, unsigned plane_bits) {
    if (n_bytes < 2) return WP_TRUNCATED;
    unsigned k = p[0], escape = p[1];
    if (k < 1 || k > 16 || (escape && k > 15)) return WP_CORRUPT;
    size_t head = 2 + 2 * (size_t)k + 2 * WP_BLOCK + 4;
    if (n_bytes < head) return WP_TRUNCATED;
    const uint8_t *symbols = p + 2, *freqs = p + 2 + k;

    uint8_t seen[256] = {0};
    unsigned start = 0;
    d->n_symbols = (uint8_t)k;
    d->has_escape = escape != 0;
    memset(d->freq, 0, 16); memset(d->start, 255, 16); memset(d->symbol, 0, 16);
    for (unsigned r = 0; r <= k; r++) {
        unsigned f = r < k ? freqs[r] : escape, s = r < k ? symbols[r] : 0;
        if (r < k && (f == 0 || seen[s]++ || s >> plane_bits)) return WP_CORRUPT;
        if (f == 0) break;
        if (start + f > 256) return WP_CORRUPT;
        d->freq[r] = (uint8_t)f; d->start[r] = (uint8_t)start; d->symbol[r] = (uint8_t)s;
        for (unsigned i = 0; i < f; i++) {
            d->rank_of_slot[start + i] = (uint8_t)r;
            d->by_slot[start + i] = f | i << 8 | s << 16 | (uint32_t)(r == k) << 24;
        }
        start += f;
    }
    if (start != 256) return WP_CORRUPT;

    p += 2 + 2 * k;
    for (int l = 0; l < WP_BLOCK; l++, p += 2) {
        d->x[l] = wp_load16(p);
        if (d->x[l] < 256) return WP_CORRUPT;
    }
    size_t renorm_bytes = wp_load32(p);
    p += 4;
    if (renorm_bytes > n_bytes - head) return WP_TRUNCATED;
    d->renorm = p;
    d->renorm_end = d->literals = p + renorm_bytes;
    d->literals_end = d->literals + (n_bytes - head - renorm_bytes);
    if (!escape && d->literals != d->literals_end) return WP_CORRUPT;
    if (plane_bits < 8)
        for (const uint8_t *q = d->literals; q < d->literals_end; q++)
            if (*q >> plane_bits) return WP_CORRUPT;
    d->renorm_in_tail = d->literals_in_tail = 0;
    return WP_OK;
}

wp_status wp_rans_next(const wp_kernels *kernels, wp_rans_decoder *d, uint8_t *out, size_t n) {
    wp_status status = kernels->rans_decode(d, out, n / WP_BLOCK);
    if (status != WP_OK) return status;
    out += n / WP_BLOCK * WP_BLOCK;
    wp_rans_guard(d);
    for (size_t l = 0; l < n % WP_BLOCK; l++) {
        uint32_t x = d->x[l], t = d->by_slot[x & 255];
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
        if (x >> 32) { fraction |= 1; x >>= 1; }
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
            uint64_t change = up ? counts[i] * (uint64_t)(log2s[freqs[i] + 1] - log2s[freqs[i]]) : counts[i] * (uint64_t)(log2s[freqs[i]] - log2s[freqs[i] - 1]);
            if (best == n || (up ? change > best_change : change < best_change)) { best = i; best_change = change; }
        }
        if (up) { freqs[best]++; sum++; } else { freqs[best]--; sum--; }
    }
    uint64_t cost = 0;
    for (unsigned i = 0; i < n; i++) cost += counts[i] * (uint64_t)((8u << 16) - log2s[freqs[i]]);
    return cost;
}

wp_status wp_rans_choose(const uint32_t counts[256], wp_rans_book *book, size_t *cost_bytes) {
    uint32_t log2s[257];
    wp_log2_table(log2s);

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
            for (unsigned i = 0; i < k; i++) { book->symbols[i] = (uint8_t)order[i]; book->freqs[i] = freqs[i]; }
        }
    }
    *cost_bytes = (size_t)(best >> 19) + 1 + 2 * WP_BLOCK + 6;
    return WP_OK;
}

/* ---- encoding ---- */

/* At most one renormalisation byte and one literal a symbol, and 64 bytes of room below each for the kernels. */
size_t wp_rans_scratch(size_t n) { return 2 * (n + 64); }

wp_status wp_rans_encode(unsigned isa, const wp_rans_book *book, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                         size_t *out_bytes) {
    unsigned k = book->n_symbols, sum = book->escape_freq;
    uint8_t coded[256] = {0};
    if (k < 1 || k > 16 || (book->escape_freq && k > 15)) return WP_ARGUMENT;
    for (unsigned r = 0; r < k; r++) {
        if (book->freqs[r] == 0 || coded[book->symbols[r]]++) return WP_ARGUMENT;
        sum += book->freqs[r];
    }
    if (sum != 256) return WP_ARGUMENT;
    if (!book->escape_freq)
        for (size_t i = 0; i < n; i++)
            if (!coded[symbols[i]]) return WP_ARGUMENT;
    return wp_rans_encode_known(isa, book, symbols, n, scratch, out, capacity, out_bytes);
}

wp_status wp_rans_encode_known(unsigned isa, const wp_rans_book *book, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                               size_t *out_bytes) {
    unsigned k = book->n_symbols, start = 0;
    wp_rans_encoder e;
    memset(&e, 0, sizeof e);
    e.n_symbols = (uint8_t)k;
    e.has_escape = book->escape_freq != 0;
    memset(e.rank_of_symbol, (int)k, 256);
    for (unsigned r = 0; r <= k; r++) {
        unsigned f = r < k ? book->freqs[r] : book->escape_freq, reciprocal = f ? (65536 + f - 1) / f : 0;
        if (r < k) e.rank_of_symbol[book->symbols[r]] = (uint8_t)r;
        e.freq[r] = (uint16_t)f;
        e.start[r] = (uint16_t)start;
        e.reciprocal[r] = (uint16_t)(reciprocal > 65535 ? 65535 : reciprocal);
        start += f;
    }

    uint8_t *renorm_end = scratch + 64 + n, *literals_end = renorm_end + 64 + n;
    e.renorm = renorm_end;
    e.literals = literals_end;
    for (int l = 0; l < WP_BLOCK; l++) e.x[l] = 256;
    for (size_t i = n; i-- > n / WP_BLOCK * WP_BLOCK;) {
        unsigned r = e.rank_of_symbol[symbols[i]], l = (unsigned)(i % WP_BLOCK);
        if (r == k) *--e.literals = symbols[i];
        uint32_t x = e.x[l], f = e.freq[r];
        if (x >= f << 8) { *--e.renorm = (uint8_t)x; x >>= 8; }
        e.x[l] = (uint16_t)((x / f << 8) + x % f + e.start[r]);
    }
    wp_kernels_of(isa)->rans_encode(&e, symbols, n / WP_BLOCK);

    size_t renorm_bytes = (size_t)(renorm_end - e.renorm), literal_bytes = (size_t)(literals_end - e.literals);
    size_t need = 2 + 2 * k + 2 * WP_BLOCK + 4 + renorm_bytes + literal_bytes;
    if (need > capacity) return WP_NO_SPACE;
    out[0] = (uint8_t)k;
    out[1] = book->escape_freq;
    memcpy(out + 2, book->symbols, k);
    memcpy(out + 2 + k, book->freqs, k);
    out += 2 + 2 * k;
    for (int l = 0; l < WP_BLOCK; l++, out += 2) wp_store16(out, e.x[l]);
    wp_store32(out, (uint32_t)renorm_bytes);
    memcpy(out + 4, e.renorm, renorm_bytes);
    memcpy(out + 4 + renorm_bytes, e.literals, literal_bytes);
    *out_bytes = need;
    return WP_OK;
}
