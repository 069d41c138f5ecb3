/* SPDX-License-Identifier: Apache-2.0
 *
 * Section 8.6 around the kernels: rANS of the leading mantissa bits, with frequencies that depend on the exponent. Weights are close to a normal distribution:
 * the larger the exponent, the steeper it falls, and the rarer are large mantissas.
 */
#include "context.h"
#include "mem.h"
#include "rans.h"

enum { STARTS = WP_CONTEXT_SYMBOLS - 1, HEAD_BYTES = 1 + STARTS * WP_N_CONTEXTS + 2 * WP_BLOCK };

/* ---- decoding ---- */

wp_status wp_context_open(wp_context_decoder *d, const uint8_t *p, size_t n_bytes, unsigned plane_bits) {
    if (n_bytes < HEAD_BYTES) return WP_TRUNCATED;
    if (plane_bits != 2) return WP_CORRUPT; /* no layout has such a plane */
    d->base = *p++;
    for (int c = 0; c < WP_N_CONTEXTS; c++) {
        unsigned before = 0;
        for (int s = 0; s < STARTS; s++, p++) {
            if (*p <= before) return WP_CORRUPT;
            d->start[s][c] = *p;
            before = *p;
        }
    }
    for (int l = 0; l < WP_BLOCK; l++, p += 2) {
        d->x[l] = wp_load16(p);
        if (d->x[l] < 256) return WP_CORRUPT;
    }
    d->renorm = p;
    d->renorm_end = p + (n_bytes - HEAD_BYTES);
    d->renorm_in_tail = 0;
    return WP_OK;
}

wp_status wp_context_next(const wp_kernels *kernels, wp_context_decoder *d, const uint8_t *next, uint8_t *out, size_t n) {
    const size_t whole = n / WP_BLOCK * WP_BLOCK, rest = n - whole;
    wp_status status = kernels->context_decode(d, next, out, n / WP_BLOCK);
    if (status != WP_OK || rest == 0) return status;
    wp_context_guard(d);
    for (size_t l = 0; l < rest; l++) {
        const unsigned c = wp_context_of(next[whole + l], d->base), slot = d->x[l] & 255u;
        unsigned s = 0, start = 0, end = 256;
        while (s < STARTS && slot >= d->start[s][c]) start = d->start[s++][c];
        if (s < STARTS) end = d->start[s][c];
        uint32_t x = (end - start) * (d->x[l] >> 8) + slot - start;
        if (x < 256) x = x << 8 | *d->renorm++;
        d->x[l] = (uint16_t)x;
        out[whole + l] = (uint8_t)s;
    }
    return d->renorm > d->renorm_end ? WP_TRUNCATED : WP_OK;
}

wp_status wp_context_close(const wp_context_decoder *d) {
    unsigned differ = 0;
    for (int l = 0; l < WP_BLOCK; l++) differ |= d->x[l] ^ 256u;
    return differ || d->renorm != d->renorm_end ? WP_CORRUPT : WP_OK;
}

/* ---- encoding ---- */

/* The 16 consecutive symbols that hold most of the plane; the lowest such, so that every machine chooses the same. */
static uint8_t choose_base(const uint32_t counts[256]) {
    uint64_t in_window = 0, most = 0;
    unsigned base = 0;
    for (unsigned s = 0; s < 256; s++) {
        in_window += counts[s];
        if (s >= WP_N_CONTEXTS) in_window -= counts[s - WP_N_CONTEXTS];
        if (s + 1 >= WP_N_CONTEXTS && in_window > most) {
            most = in_window;
            base = s + 1 - WP_N_CONTEXTS;
        }
    }
    return (uint8_t)base;
}

wp_status wp_context_encode(unsigned isa, const uint8_t *next, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                            size_t *out_bytes) {
    const wp_kernels *kernels = wp_kernels_of(isa);
    wp_context_encoder e;
    uint32_t counts[256], log2s[257];
    kernels->histogram(next, n, counts);
    e.base = choose_base(counts);
    /* What was counted together: the index of the tables, context * 4 + symbol. */
    for (size_t i = 0; i < n; i++) {
        uint8_t above = next[i] < e.base ? 0 : (uint8_t)(next[i] - e.base);
        scratch[i] = (uint8_t)((above < WP_N_CONTEXTS ? above : WP_N_CONTEXTS - 1) << 2 | symbols[i]);
    }
    kernels->histogram(scratch, n, counts);
    wp_log2_table(log2s);
    for (unsigned c = 0; c < WP_N_CONTEXTS; c++) {
        uint8_t *freq = e.freq + WP_CONTEXT_SYMBOLS * c, *start = e.start + WP_CONTEXT_SYMBOLS * c;
        const uint32_t *count = counts + WP_CONTEXT_SYMBOLS * c;
        uint64_t total = (uint64_t)count[0] + count[1] + count[2] + count[3];
        if (total) wp_share_frequencies(count, WP_CONTEXT_SYMBOLS, total, log2s, freq);
        else memset(freq, 256 / WP_CONTEXT_SYMBOLS, WP_CONTEXT_SYMBOLS);
        start[0] = 0;
        for (unsigned s = 1; s < WP_CONTEXT_SYMBOLS; s++) start[s] = (uint8_t)(start[s - 1] + freq[s - 1]);
    }

    uint8_t *renorm_end = scratch + wp_rans_scratch(n);
    e.renorm = renorm_end;
    for (int l = 0; l < WP_BLOCK; l++) e.x[l] = 256;
    for (size_t i = n; i-- > n / WP_BLOCK * WP_BLOCK;) {
        const unsigned t = wp_context_of(next[i], e.base) * WP_CONTEXT_SYMBOLS + symbols[i], l = (unsigned)(i % WP_BLOCK);
        uint32_t x = e.x[l], f = e.freq[t];
        if (x >= f << 8) {
            *--e.renorm = (uint8_t)x;
            x >>= 8;
        }
        e.x[l] = (uint16_t)((x / f << 8) + x % f + e.start[t]);
    }
    kernels->context_encode(&e, next, symbols, n / WP_BLOCK);

    size_t renorm_bytes = (size_t)(renorm_end - e.renorm);
    if (HEAD_BYTES + renorm_bytes > capacity) return WP_NO_SPACE;
    *out++ = e.base;
    for (unsigned c = 0; c < WP_N_CONTEXTS; c++, out += STARTS) memcpy(out, e.start + WP_CONTEXT_SYMBOLS * c + 1, STARTS);
    for (int l = 0; l < WP_BLOCK; l++, out += 2) wp_store16(out, e.x[l]);
    memcpy(out, e.renorm, renorm_bytes);
    *out_bytes = HEAD_BYTES + renorm_bytes;
    return WP_OK;
}
