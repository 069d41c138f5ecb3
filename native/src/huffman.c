/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. Section 8.4: a canonical prefix code in four interleaved bitstreams, so that four table look-ups are in flight at once.
 * Bits are read from the low end of a 64-bit window; codes are stored with their first bit lowest, so the next 12 bits index the table directly.
 * The window is refilled eight bytes at a time while the stream has them, then byte by byte: nothing is read beyond a stream.
 */
#include "huffman.h"
#include "mem.h"

static unsigned reverse_bits(unsigned v, unsigned n) {
    unsigned r = 0;
    for (unsigned i = 0; i < n; i++) r |= (v >> i & 1) << (n - 1 - i);
    return r;
}

/* First bit lowest (as stored). Returns 0 unless the code is complete. */
static int assign_codes(const uint8_t lengths[256], uint16_t codes[256]) {
    unsigned per_length[WP_MAX_CODE_BITS + 1] = {0}, next[WP_MAX_CODE_BITS + 1] = {0}, code = 0, filled = 0;
    for (int s = 0; s < 256; s++) {
        if (lengths[s] > WP_MAX_CODE_BITS) return 0;
        if (lengths[s]) {
            per_length[lengths[s]]++;
            filled += 1u << (WP_MAX_CODE_BITS - lengths[s]);
        }
    }
    if (filled != 1u << WP_MAX_CODE_BITS) return 0;
    for (unsigned n = 1; n <= WP_MAX_CODE_BITS; n++) next[n] = code = (code + per_length[n - 1]) << 1;
    for (int s = 0; s < 256; s++)
        if (lengths[s]) codes[s] = (uint16_t)reverse_bits(next[lengths[s]]++, lengths[s]);
    return 1;
}

/* ---- decoding ---- */

wp_status wp_huffman_open(wp_huffman_decoder *d, const uint8_t *p, size_t n_bytes, unsigned plane_bits) {
    const uint8_t *end = p + n_bytes;
    uint8_t lengths[256] = {0}, symbols[256];
    uint16_t codes[256];
    if (n_bytes < 1) return WP_TRUNCATED;
    unsigned n_symbols = *p++ + 1u, n = 0;
    if (n_symbols < 2) return WP_CORRUPT;
    size_t set_bytes = n_symbols < 32 ? n_symbols : 32, length_bytes = (n_symbols + 1) / 2;
    if ((size_t)(end - p) < set_bytes + length_bytes + 9) return WP_TRUNCATED;
    if (n_symbols < 32) {
        for (; n < n_symbols; n++) {
            symbols[n] = p[n];
            if (n && symbols[n] <= symbols[n - 1]) return WP_CORRUPT;
        }
    } else {
        for (unsigned s = 0; s < 256; s++)
            if (p[s / 8] >> (s % 8) & 1) symbols[n++] = (uint8_t)s;
        if (n != n_symbols) return WP_CORRUPT;
    }
    if (symbols[n_symbols - 1] >> plane_bits) return WP_CORRUPT;
    p += set_bytes;
    for (unsigned i = 0; i < n_symbols; i++) {
        unsigned length = p[i / 2] >> (i % 2 * 4) & 15;
        if (length < 1 || length > WP_MAX_CODE_BITS) return WP_CORRUPT;
        lengths[symbols[i]] = (uint8_t)length;
    }
    if (n_symbols % 2 && p[n_symbols / 2] >> 4) return WP_CORRUPT;
    p += length_bytes;
    if (!assign_codes(lengths, codes)) return WP_CORRUPT;
    for (unsigned i = 0; i < n_symbols; i++) {
        unsigned s = symbols[i], length = lengths[s];
        for (unsigned v = codes[s]; v < 1u << WP_MAX_CODE_BITS; v += 1u << length) d->table[v] = (uint16_t)(s | length << 8);
    }
    const uint8_t *sizes = p;
    p += 9;
    for (int i = 0; i < WP_HUFFMAN_STREAMS; i++) {
        size_t left = (size_t)(end - p), size = i < 3 ? wp_load24(sizes + 3 * i) : left;
        if (size > left) return WP_TRUNCATED;
        d->in[i] = (wp_bit_reader){p, p + size, 0, 0};
        p += size;
    }
    return WP_OK;
}

static inline uint8_t take(wp_bit_reader *r, const uint16_t *table) {
    unsigned t = table[r->bits & ((1u << WP_MAX_CODE_BITS) - 1)];
    r->bits >>= t >> 8;
    r->n_bits -= t >> 8;
    return (uint8_t)t;
}

wp_status wp_huffman_next(wp_huffman_decoder *d, uint8_t *out, size_t n) {
    const uint16_t *table = d->table;
    wp_bit_reader a = d->in[0], b = d->in[1], c = d->in[2], e = d->in[3];
    size_t i = 0;
    /* The window's upper bits may hold part of the next byte already; OR-ing the same byte again changes nothing. */
#define REFILL(r) (r.bits |= wp_load64(r.p) << r.n_bits, r.p += (63 - r.n_bits) >> 3, r.n_bits |= 56)
#define ROUND(j) \
    (out[i + 4 * j] = take(&a, table), out[i + 4 * j + 1] = take(&b, table), out[i + 4 * j + 2] = take(&c, table), out[i + 4 * j + 3] = take(&e, table))
    while (n - i >= 16 && a.end - a.p >= 8 && b.end - b.p >= 8 && c.end - c.p >= 8 && e.end - e.p >= 8) {
        REFILL(a);
        REFILL(b);
        REFILL(c);
        REFILL(e);
        ROUND(0);
        ROUND(1);
        ROUND(2);
        ROUND(3); /* 4 * 12 bits <= 56 */
        i += 16;
    }
#undef ROUND
#undef REFILL
    d->in[0] = a;
    d->in[1] = b;
    d->in[2] = c;
    d->in[3] = e;
    for (; i < n; i++) {
        wp_bit_reader *r = &d->in[i % WP_HUFFMAN_STREAMS];
        r->bits &= ((uint64_t)1 << r->n_bits) - 1;
        while (r->n_bits <= 48 && r->p < r->end) {
            r->bits |= (uint64_t)*r->p++ << r->n_bits;
            r->n_bits += 8;
        }
        if (r->n_bits < table[r->bits & ((1u << WP_MAX_CODE_BITS) - 1)] >> 8) return WP_TRUNCATED;
        out[i] = take(r, table);
    }
    return WP_OK;
}

wp_status wp_huffman_close(const wp_huffman_decoder *d) {
    for (int i = 0; i < WP_HUFFMAN_STREAMS; i++) {
        const wp_bit_reader *r = &d->in[i];
        if (r->p != r->end || r->n_bits >= 8 || r->bits & (((uint64_t)1 << r->n_bits) - 1)) return WP_CORRUPT;
    }
    return WP_OK;
}

/* ---- encoding ---- */

/* Ascending by count, then by symbol. */
static unsigned sorted_leaves(const uint32_t counts[256], uint64_t leaves[256]) {
    unsigned n = 0;
    for (unsigned s = 0; s < 256; s++)
        if (counts[s]) leaves[n++] = (uint64_t)counts[s] << 8 | s;
    for (unsigned gap = n / 2; gap; gap /= 2)
        for (unsigned i = gap; i < n; i++) {
            uint64_t v = leaves[i];
            unsigned j = i;
            for (; j >= gap && leaves[j - gap] > v; j -= gap) leaves[j] = leaves[j - gap];
            leaves[j] = v;
        }
    return n;
}

wp_status wp_huffman_lengths(const uint32_t counts[256], uint8_t lengths[256]) {
    enum { FULL = 1 << WP_MAX_CODE_BITS };
    uint64_t leaves[256], inner[256];
    uint16_t parent[512]; /* of leaves 0 .. n - 1, then of inner nodes in the order in which they are made: that is by rising weight */
    uint8_t depth[512];
    const unsigned n = sorted_leaves(counts, leaves);
    memset(lengths, 0, 256);
    if (n < 2) return WP_ARGUMENT;
    for (unsigned made = 0, leaf = 0, node = 0; made + 1 < n; made++) {
        inner[made] = 0;
        for (int child = 0; child < 2; child++) {
            const int is_leaf = leaf < n && (node >= made || leaves[leaf] >> 8 <= inner[node]);
            inner[made] += is_leaf ? leaves[leaf] >> 8 : inner[node];
            parent[is_leaf ? leaf++ : n + node++] = (uint16_t)(n + made);
        }
    }
    depth[2 * n - 2] = 0;
    for (unsigned i = 2 * n - 2; i-- > 0;) depth[i] = (uint8_t)(depth[parent[i]] + 1);
    /* Codes that are too long are cut, and the sum of 2^-length is repaired: by lengthening the rarest below the limit, then by shortening the commonest that
     * still fit. */
    unsigned used = 0;
    for (unsigned i = 0; i < n; i++) {
        if (depth[i] > WP_MAX_CODE_BITS) depth[i] = WP_MAX_CODE_BITS;
        used += FULL >> depth[i];
    }
    for (unsigned i = 0; used > FULL;) {
        if (depth[i] == WP_MAX_CODE_BITS) i++;
        else used -= FULL >> ++depth[i];
    }
    for (unsigned i = n; i-- > 0;)
        for (; depth[i] > 1 && used + (FULL >> depth[i]) <= FULL; depth[i]--) used += FULL >> depth[i];
    for (unsigned i = 0; i < n; i++) lengths[leaves[i] & 255] = depth[i];
    return WP_OK;
}

size_t wp_huffman_bytes(const uint8_t lengths[256], const uint32_t counts[256]) {
    size_t bits = 0, n_symbols = 0;
    for (unsigned s = 0; s < 256; s++) {
        bits += (size_t)lengths[s] * counts[s];
        n_symbols += lengths[s] != 0;
    }
    return 1 + (n_symbols < 32 ? n_symbols : 32) + (n_symbols + 1) / 2 + 9 + bits / 8 + 4;
}

wp_status wp_huffman_encode(const uint8_t lengths[256], const uint8_t *symbols, size_t n, uint8_t *out, size_t capacity, size_t *out_bytes) {
    uint16_t codes[256] = {0};
    if (!assign_codes(lengths, codes)) return WP_ARGUMENT;
    unsigned n_symbols = 0;
    for (int s = 0; s < 256; s++) n_symbols += lengths[s] != 0;
    if (n_symbols < 2) return WP_ARGUMENT;
    size_t set_bytes = n_symbols < 32 ? n_symbols : 32, length_bytes = (n_symbols + 1) / 2, head = 1 + set_bytes + length_bytes + 9;
    if (head > capacity) return WP_NO_SPACE;
    memset(out, 0, head);
    out[0] = (uint8_t)(n_symbols - 1);
    for (unsigned s = 0, i = 0; s < 256; s++) {
        if (!lengths[s]) continue;
        if (n_symbols < 32) out[1 + i] = (uint8_t)s;
        else out[1 + s / 8] |= (uint8_t)(1u << (s % 8));
        out[1 + set_bytes + i / 2] |= (uint8_t)(lengths[s] << (i % 2 * 4));
        i++;
    }
    uint8_t *p = out + head, *end = out + capacity;
    uint32_t table[256]; /* code | length << 16; a symbol without a code has length 64, which no sum of coded ones reaches */
    for (int s = 0; s < 256; s++) table[s] = lengths[s] ? codes[s] | (uint32_t)lengths[s] << 16 : 64u << 16;
    for (unsigned stream = 0; stream < WP_HUFFMAN_STREAMS; stream++) {
        uint8_t *begin = p;
        uint64_t bits = 0;
        unsigned n_bits = 0;
        size_t i = stream;
        /* Four codes at a time: 7 bits left over and 4 * 12 new ones fit in 64. */
        for (; i + 3 * WP_HUFFMAN_STREAMS < n; i += 4 * WP_HUFFMAN_STREAMS) {
            uint32_t a = table[symbols[i]], b = table[symbols[i + 4]], c = table[symbols[i + 8]], d = table[symbols[i + 12]];
            unsigned ab = (a >> 16) + (b >> 16), abc = ab + (c >> 16), abcd = abc + (d >> 16);
            if (abcd >= 64) return WP_ARGUMENT;
            if (end - p < 8) return WP_NO_SPACE;
            uint64_t low = (a & 0xffff) | (uint64_t)(b & 0xffff) << (a >> 16), high = (c & 0xffff) | (uint64_t)(d & 0xffff) << (c >> 16);
            bits |= (low | high << ab) << n_bits;
            n_bits += abcd;
            wp_store64(p, bits);
            p += n_bits / 8;
            bits >>= n_bits & ~7u;
            n_bits %= 8;
        }
        for (; i < n; i += WP_HUFFMAN_STREAMS) {
            uint32_t t = table[symbols[i]];
            if (t >> 16 >= 64) return WP_ARGUMENT;
            bits |= (uint64_t)(t & 0xffff) << n_bits;
            n_bits += t >> 16; /* at most 7 + 3 * 12 */
        }
        for (; n_bits; n_bits -= n_bits < 8 ? n_bits : 8, bits >>= 8) {
            if (p == end) return WP_NO_SPACE;
            *p++ = (uint8_t)bits;
        }
        if (stream < 3) {
            size_t size = (size_t)(p - begin);
            if (size > WP_MAX_STREAM_BYTES) return WP_NO_SPACE;
            uint8_t *field = out + head - 9 + 3 * stream;
            field[0] = (uint8_t)size;
            field[1] = (uint8_t)(size >> 8);
            field[2] = (uint8_t)(size >> 16);
        }
    }
    *out_bytes = (size_t)(p - out);
    return WP_OK;
}
