/* SPDX-License-Identifier: Apache-2.0
 *
 * Section 14: elements as integer differences from a base. Floats are compared in the order of their values, in which neighbours differ by one, so that a small
 * step of training is a small number whatever it does to the bits.
 */
#include "plane.h"
#include "words.h"

enum { MAX_EXTRA = 32, BITS_GUARD = 16 };

static unsigned exponent_mask_of(const wp_layout *l) { return (1u << l->exponent_bits) - 1; }

/* The layout, if its elements may be coded as differences that drop `shift` bits; else NULL. */
static const wp_layout *differing(unsigned layout, unsigned shift) {
    const wp_layout *l = wp_layout_of(layout);
    return l && wp_has_differences(l) && shift <= 8u * l->elem_bytes - 2u ? l : NULL;
}

/* ---- decoding ---- */

/* Classes of words of `bits` bits: those whose magnitude would need more are none. */
static void fill_classes(wp_class_table *t, unsigned bits, const uint8_t *frequent, unsigned n_frequent) {
    t->entry[0] = 0;
    t->entry[1] = 1 | 1 << 8;
    for (unsigned i = 0; i < WP_MAX_FREQUENT; i++) t->entry[WP_FIRST_FREQUENT + i] = i < n_frequent ? (uint64_t)wp_load32(frequent + 4 * i) << 8 : WP_NO_CLASS;
    for (unsigned c = 2; c < WP_FIRST_FREQUENT; c++) {
        const unsigned low = (c >> 1) - 1;
        t->entry[c] = c < 2 * bits - 1 ? (low + 1) | (uint64_t)((2u | (c & 1)) << low) << 8 : WP_NO_CLASS;
    }
    for (unsigned c = 0; c < WP_N_CLASSES; c++) {
        t->extra[c] = t->entry[c] == WP_NO_CLASS ? 0x80 : (uint8_t)t->entry[c];
        for (unsigned i = 0; i < 4; i++) t->lead[i][c] = (uint8_t)(t->entry[c] >> (8 + 8 * i));
    }
}

/* Unchanged blocks, and one changed block after the other. */
static wp_status decode_blocks(const wp_kernels *k, const wp_layout *l, unsigned shift, const uint8_t *frequent, unsigned n_frequent, const wp_stream *streams,
                               const uint8_t *base, size_t n_elems, wp_workspace *ws, uint8_t *out, uint32_t *crc) {
    const unsigned bytes = l->elem_bytes, word_bits = 8 * bytes - shift;
    const size_t n_blocks = (n_elems + WP_BLOCK - 1) / WP_BLOCK;
    const int conditional = streams[1].codec == WP_CONDITIONAL;
    for (unsigned i = 0; i < n_frequent; i++)
        if (wp_load32(frequent + 4 * i) & ~wp_word_mask(word_bits)) return WP_CORRUPT;
    wp_status status = wp_plane_decode(k, &ws->u.planes[0], &streams[0], n_blocks, ws->widths);
    if (status != WP_OK) return status;
    size_t n_changed = 0;
    for (size_t b = 0; b < n_blocks; b++) {
        if (ws->widths[b] > WP_MAX_RATE) return WP_CORRUPT;
        if (ws->widths[b]) n_changed += b + 1 < n_blocks ? WP_BLOCK : n_elems - b * WP_BLOCK;
    }
    if (streams[2].codec != WP_RAW) return streams[2].codec == WP_ZSTD ? WP_NEEDS_ZSTD : streams[2].codec < WP_N_CODECS ? WP_CORRUPT : WP_UNSUPPORTED;
    if (n_changed == 0) {
        if (streams[1].codec != WP_RAW || streams[1].n_bytes || streams[2].n_bytes) return WP_CORRUPT;
    } else if (conditional) {
        status = wp_conditional_open(&ws->u.conditional, streams[1].data, streams[1].n_bytes);
    } else {
        status = wp_plane_open(&ws->u.planes[0], &streams[1], n_changed, WP_CLASS_BITS, 0, ws->symbols[0], WP_BLOCK);
    }
    if (status != WP_OK) return status;

    wp_class_table table;
    fill_classes(&table, word_bits, frequent, n_frequent);
    const uint8_t *bits = streams[2].data;
    uint64_t n_bits = (uint64_t)streams[2].n_bytes * 8, position = 0;
    /* Where fewer bytes are left than a block may read, they are read from a copy with zeros behind it. */
    enum { MOST_READ = WP_BLOCK * MAX_EXTRA / 8 + BITS_GUARD };
    uint8_t tail[2 * MOST_READ];
    for (size_t b = 0; b < n_blocks;) {
        const size_t batch_end = b + WP_BATCH_BLOCKS < n_blocks ? b + WP_BATCH_BLOCKS : n_blocks;
        uint8_t *const batch = out;
        for (; b < batch_end; b++) {
            const size_t m = b + 1 < n_blocks ? WP_BLOCK : n_elems - b * WP_BLOCK;
            const unsigned rate = ws->widths[b];
            if (rate == 0) {
                memcpy(out, base, m * bytes);
            } else {
                uint8_t exponents[WP_BLOCK];
                wp_differences d;
                const uint8_t *classes = ws->symbols[0];
                if (conditional) {
                    k->exponents(base, m, bytes, l->exponent_shift, exponent_mask_of(l), exponents);
                    status = wp_conditional_next(k, &ws->u.conditional, rate, exponents, ws->symbols[0], m);
                } else {
                    status = wp_plane_next(k, &ws->u.planes[0], m, NULL, ws->symbols[0], &classes);
                }
                if (status != WP_OK) return status;
                if (bits != tail && n_bits / 8 - position / 8 < MOST_READ) {
                    const size_t begin = (size_t)(position / 8), left = (size_t)(n_bits / 8) - begin;
                    memset(tail, 0, sizeof tail);
                    if (left) memcpy(tail, bits + begin, left);
                    bits = tail;
                    position -= 8 * begin;
                    n_bits -= 8 * begin;
                }
                position = k->differences(&table, classes, m, bits, position, bytes, &d);
                if (position == UINT64_MAX) return WP_CORRUPT;
                if (position > n_bits) return WP_TRUNCATED;
                k->apply(base, bytes, shift, wp_is_float(l), &d, m, out);
            }
            out += m * bytes;
            base += m * bytes;
        }
        *crc = k->crc32c(*crc, batch, (size_t)(out - batch));
    }
    if (n_changed) {
        status = conditional ? wp_conditional_close(&ws->u.conditional) : wp_plane_close(&ws->u.planes[0]);
        if (status != WP_OK) return status;
    }
    if ((position + 7) / 8 != n_bits / 8) return WP_CORRUPT;
    return position % 8 && bits[position / 8] >> position % 8 ? WP_CORRUPT : WP_OK;
}

wp_status wp_decode_difference(unsigned isa, unsigned layout, unsigned shift, const uint8_t *frequent, unsigned n_frequent, const wp_stream streams[3],
                               const uint8_t *base, size_t n_elems, uint32_t chunk_number, wp_workspace *ws, uint8_t *out, uint32_t *crc) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l) return WP_UNSUPPORTED;
    if (n_frequent > WP_MAX_FREQUENT || !differing(layout, shift)) return WP_CORRUPT;
    if (n_elems == 0 || n_elems > WP_MAX_CHUNK_BYTES / l->elem_bytes || (n_elems - 1) / WP_BLOCK >= WP_MAX_CHUNK_BLOCKS) return WP_CORRUPT;
    uint8_t number[4];
    wp_store32(number, chunk_number);
    *crc = wp_crc32c(WP_ISA_SCALAR, 0, number, 4);
    return decode_blocks(wp_kernels_of(isa), l, shift, frequent, n_frequent, streams, base, n_elems, ws, out, crc);
}

/* ---- encoding ---- */

wp_status wp_difference_planes(unsigned isa, unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, uint8_t *exponents,
                               uint8_t *scales) {
    const wp_layout *l = differing(layout, shift);
    const wp_kernels *const k = wp_kernels_of(isa);
    if (!l || n_elems == 0) return WP_ARGUMENT;
    const unsigned bytes = l->elem_bytes;
    k->exponents(base, n_elems, bytes, l->exponent_shift, exponent_mask_of(l), exponents);
    uint8_t highest = 0;
    for (size_t i = 0; i < n_elems; i++) highest = exponents[i] > highest ? exponents[i] : highest;
    const unsigned lowest = highest > 24 ? highest - 24u : 0; /* what is below is divided: the sums have 24 bits of range, and room for 128 of them */
    uint32_t magnitude[WP_BLOCK], negative[WP_BLOCK];
    for (size_t b = 0; b * WP_BLOCK < n_elems; b++) {
        const size_t begin = b * WP_BLOCK, m = n_elems - begin < WP_BLOCK ? n_elems - begin : WP_BLOCK;
        scales[b] = 0;
        /* The bits that are dropped count, too: a block of rate 0 is its base as a whole. */
        if (memcmp(elems + begin * bytes, base + begin * bytes, m * bytes) == 0) continue;
        k->difference_words(elems + begin * bytes, base + begin * bytes, m, bytes, shift, wp_is_float(l), magnitude, negative);
        const uint64_t sum = k->difference_size(magnitude, exponents + begin, m, lowest);
        scales[b] = (uint8_t)(1 + (sum ? wp_highest_bit(sum) : 0));
    }
    return WP_OK;
}

/* What a sign and a magnitude say, modulo 2^bits. */
static inline uint32_t modular(uint32_t magnitude, uint32_t negative, unsigned bits) { return ((magnitude ^ (0u - negative)) + negative) & wp_word_mask(bits); }

wp_status wp_modular_differences(unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, uint32_t *differences) {
    const wp_layout *l = differing(layout, shift);
    if (!l) return WP_ARGUMENT;
    const unsigned bytes = l->elem_bytes;
    uint32_t negative[WP_BLOCK];
    for (size_t begin = 0; begin < n_elems; begin += WP_BLOCK) {
        const size_t m = n_elems - begin < WP_BLOCK ? n_elems - begin : WP_BLOCK;
        wp_kernels_of(WP_ISA_SCALAR)
            ->difference_words(elems + begin * bytes, base + begin * bytes, m, bytes, shift, wp_is_float(l), differences + begin, negative);
        for (size_t i = 0; i < m; i++) differences[begin + i] = modular(differences[begin + i], negative[i], 8 * bytes - shift);
    }
    return WP_OK;
}

size_t wp_difference_extras_bound(size_t n_elems) { return n_elems * MAX_EXTRA / 8 + 16; }

/* Frequent differences by value: open addressing, at most a quarter full. `class_of` is 0 where there is none. */
enum { SLOTS = 256 };
typedef struct {
    uint32_t value[SLOTS];
    uint8_t class_of[SLOTS];
} frequent_table;

/* Where a value is, or would be. */
static inline unsigned slot_of(const frequent_table *t, uint32_t value) {
    unsigned slot = value * 0x9e3779b1u >> 24;
    while (t->class_of[slot] && t->value[slot] != value) slot = (slot + 1) % SLOTS;
    return slot;
}

static void fill_frequent(frequent_table *t, const uint8_t *frequent, unsigned n_frequent) {
    memset(t, 0, sizeof *t);
    for (unsigned i = 0; i < n_frequent; i++) {
        const uint32_t value = wp_load32(frequent + 4 * i);
        const unsigned slot = slot_of(t, value);
        t->value[slot] = value;
        if (!t->class_of[slot]) t->class_of[slot] = (uint8_t)(WP_FIRST_FREQUENT + i); /* the first of equal ones */
    }
}

/* Bits that follow each other, below 8 of them held back. */
typedef struct {
    uint64_t held;
    unsigned n_held;
    uint8_t *p;
} bit_writer;

/* At most 56 bits. */
static inline void put_bits(bit_writer *w, uint64_t bits, unsigned n) {
    w->held |= bits << w->n_held;
    w->n_held += n;
    wp_store64(w->p, w->held);
    w->p += w->n_held / 8;
    w->held >>= w->n_held & ~7u;
    w->n_held &= 7;
}

wp_status wp_difference_code(unsigned isa, unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, const uint8_t *rates,
                             unsigned base_exponent, const uint8_t *frequent, unsigned n_frequent, uint8_t *cells, uint8_t *classes,
                             uint32_t counts[2][WP_N_CELLS * WP_N_CLASSES], uint8_t *extras, size_t *n_changed, size_t *extras_bytes) {
    const wp_layout *l = differing(layout, shift);
    const wp_kernels *const k = wp_kernels_of(isa);
    if (!l || base_exponent > 255 || n_frequent > WP_MAX_FREQUENT) return WP_ARGUMENT;
    frequent_table table;
    fill_frequent(&table, frequent, n_frequent);
    for (size_t b = 0; b * WP_BLOCK < n_elems; b++)
        if (rates[b] > WP_MAX_RATE) return WP_ARGUMENT;
    const unsigned bytes = l->elem_bytes, word_bits = 8 * bytes - shift;
    uint32_t magnitude[WP_BLOCK], negative[WP_BLOCK], extra[WP_BLOCK];
    uint8_t n_extra[WP_BLOCK];
    bit_writer writer = {0, 0, extras};
    *n_changed = 0;
    memset(counts, 0, 2 * sizeof counts[0]);
    for (size_t begin = 0; begin < n_elems; begin += WP_BLOCK) {
        const unsigned rate = rates[begin / WP_BLOCK];
        const size_t m = n_elems - begin < WP_BLOCK ? n_elems - begin : WP_BLOCK;
        if (rate == 0) continue;
        k->difference_words(elems + begin * bytes, base + begin * bytes, m, bytes, shift, wp_is_float(l), magnitude, negative);
        k->difference_classes(magnitude, negative, m, classes, n_extra, extra);
        if (n_frequent)
            for (size_t i = 0; i < m; i++) {
                const unsigned known = table.class_of[slot_of(&table, modular(magnitude[i], negative[i], word_bits))];
                classes[i] = known ? (uint8_t)known : classes[i];
                n_extra[i] = known ? 0 : n_extra[i];
                extra[i] = known ? 0 : extra[i];
            }
        k->exponents(base + begin * bytes, m, bytes, l->exponent_shift, exponent_mask_of(l), cells);
        for (size_t i = 0; i < m; i++) cells[i] = (uint8_t)(rate * WP_N_CONTEXTS + wp_context_of(cells[i], (uint8_t)base_exponent));
        /* Two histograms in turn: the same pair often comes twice, and the second would wait for the first. */
        for (size_t i = 0; i < m; i++) counts[i & 1][cells[i] * WP_N_CLASSES + classes[i]]++;
        size_t i = 0;
        if (bytes <= 2)
            for (; i + 2 < m; i += 3) /* at most 16 bits each */
                put_bits(&writer, extra[i] | (uint64_t)extra[i + 1] << n_extra[i] | (uint64_t)extra[i + 2] << (n_extra[i] + n_extra[i + 1]),
                         n_extra[i] + n_extra[i + 1] + n_extra[i + 2]);
        for (; i < m; i++) put_bits(&writer, extra[i], n_extra[i]);
        cells += m;
        classes += m;
        *n_changed += m;
    }
    for (size_t i = 0; i < WP_N_CELLS * WP_N_CLASSES; i++) counts[0][i] += counts[1][i];
    *extras_bytes = (size_t)(writer.p - extras) + (writer.n_held != 0);
    return WP_OK;
}

/* ---- a base from the scales of rows and columns ---- */

/* round(2^23 * (2^(k/16) - 1)) */
static const uint32_t mantissas[16] = {0,       371395,  759234,  1164243, 1587184, 2028850, 2490071, 2971711,
                                       3474675, 3999908, 4548394, 5121164, 5719293, 6343903, 6996167, 7677309};

wp_status wp_scaled_base(unsigned layout, const uint8_t *scales, size_t n_scales, size_t n_cols, size_t phase, const uint8_t *signs, size_t n_elems,
                         uint8_t *base) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l || !wp_has_scales(l)) return WP_CORRUPT;
    if (n_cols == 0 || phase >= n_cols || n_scales < n_cols || (phase + n_elems + n_cols - 1) / n_cols != n_scales - n_cols) return WP_ARGUMENT;
    const unsigned bytes = l->elem_bytes;
    const uint8_t *cols = scales + 2 * (n_scales - n_cols);
    size_t row = 0, col = phase;
    for (size_t i = 0; i < n_elems; i++) {
        const int r = (int16_t)wp_load16(scales + 2 * row), c = (int16_t)wp_load16(cols + 2 * col);
        const int sum = r + c + (127 << 4); /* biased, so that the shift below is of what is not negative */
        uint32_t word = 0;
        if (r != WP_NO_SCALE && c != WP_NO_SCALE && sum >= 16) word = sum >= 255 << 4 ? 0x7f7fffffu : (uint32_t)sum >> 4 << 23 | mantissas[sum & 15];
        word |= (uint32_t)(signs[i / 8] >> i % 8 & 1) << 31;
        wp_store_word(base, bytes, i, bytes == 2 ? word >> 16 : word);
        if (++col == n_cols) {
            col = 0;
            row++;
        }
    }
    return WP_OK;
}

/* ---- do scales help? ---- */

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

/* In sixteenths of a bit a value. */
static int64_t entropy(const uint16_t *counts, size_t n_values, size_t total, const uint8_t *logs) {
    int64_t information = 0;
    for (size_t i = 0; i < n_values; i++)
        if (counts[i]) information += (int64_t)counts[i] * (logs[total] - logs[counts[i]]);
    return information / (int64_t)total;
}

int wp_scales_gain(const uint16_t *upper, size_t n_rows, size_t n_cols, const uint8_t logs[WP_MAX_SAMPLE + 1]) {
    enum { ONE = 127 << 7, MIDDLE = 8192 }; /* log2 of 1; what is left of a value by its scales is far below MIDDLE */
    uint16_t plain[2048] = {0}, rest[2 * MIDDLE] = {0};
    int64_t sums[WP_MAX_SAMPLE] = {0};
    int32_t rows[WP_MAX_SAMPLE], cols[WP_MAX_SAMPLE];
    uint16_t in_col[WP_MAX_SAMPLE] = {0};
    size_t total = 0;
    if (n_rows == 0 || n_cols == 0 || n_rows > WP_MAX_SAMPLE / n_cols) return 0;
    for (size_t i = 0; i < n_rows; i++) {
        int64_t sum = 0, n = 0;
        for (size_t j = 0; j < n_cols; j++) {
            const int v = upper[i * n_cols + j] & 0x7fff;
            sum += v ? v - ONE : 0;
            n += v != 0;
        }
        rows[i] = (int32_t)floor_div(sum, n ? n : 1);
        for (size_t j = 0; j < n_cols; j++) {
            const int v = upper[i * n_cols + j] & 0x7fff;
            if (v) sums[j] += v - ONE - rows[i];
            in_col[j] += v != 0;
        }
        total += (size_t)n;
    }
    if (total == 0) return 0;
    for (size_t j = 0; j < n_cols; j++) cols[j] = (int32_t)floor_div(floor_div(sums[j], in_col[j] ? in_col[j] : 1) + 4, 8);
    for (size_t i = 0; i < n_rows; i++)
        for (size_t j = 0; j < n_cols; j++) {
            const int v = upper[i * n_cols + j] & 0x7fff;
            if (!v) continue;
            plain[v >> 4]++;
            rest[floor_div(v - ((int64_t)(floor_div(rows[i] + 4, 8) + cols[j]) * 8 + ONE), 16) + MIDDLE]++;
        }
    return (int)(entropy(plain, 2048, total, logs) - entropy(rest, 2 * MIDDLE, total, logs));
}
