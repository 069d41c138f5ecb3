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

/* The difference as sign and magnitude; its magnitude is at most 2^(bits - 1). Of floats it is negative if the element's magnitude is less. */
static inline uint32_t difference(uint32_t word, uint32_t base, unsigned bits, int is_float, uint32_t *negative) {
    const uint32_t turned = is_float ? base >> (bits - 1) : 0;
    if (is_float) {
        word = wp_in_order(word, bits);
        base = wp_in_order(base, bits);
    }
    const uint32_t d = (word - base) & wp_word_mask(bits), less = d >> (bits - 1) & 1;
    *negative = (less ^ turned) & (d != 0);
    return ((d ^ (0u - less)) + less) & wp_word_mask(bits);
}

/* The loops of the functions below, for constants of the cases that matter. */
#define FOR_KIND(loop)                                                  \
    if (bytes == 2 && wp_is_float(l) && shift == 0) loop(2, 0, 1);      \
    else if (bytes == 4 && wp_is_float(l) && shift == 0) loop(4, 0, 1); \
    else loop(bytes, shift, wp_is_float(l))

static inline void scales_of(const uint8_t *elems, const uint8_t *base, size_t n_elems, unsigned bytes, unsigned shift, int is_float, const uint8_t *exponents,
                             unsigned lowest, uint8_t *scales) {
    for (size_t b = 0; b * WP_BLOCK < n_elems; b++) {
        const size_t begin = b * WP_BLOCK, end = n_elems - begin < WP_BLOCK ? n_elems : begin + WP_BLOCK;
        uint64_t sum = 0;
        uint32_t any = 0;
        for (size_t i = begin; i < end; i++) {
            uint32_t negative;
            const uint32_t word = wp_load_word(elems, bytes, i), b_word = wp_load_word(base, bytes, i);
            const uint32_t m = difference(word >> shift, b_word >> shift, 8 * bytes - shift, is_float, &negative);
            const unsigned e = exponents[i], up = e > lowest ? e - lowest : 0, down = e < lowest ? lowest - e : 0;
            any |= word ^ b_word; /* the bits that are dropped, too: a block of rate 0 is its base as a whole */
            sum += ((uint64_t)m << up) >> (down < 31 ? down : 31);
        }
        scales[b] = any ? (uint8_t)(1 + (sum ? wp_highest_bit(sum) : 0)) : 0;
    }
}

wp_status wp_difference_planes(unsigned isa, unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, uint8_t *exponents,
                               uint8_t *scales) {
    const wp_layout *l = differing(layout, shift);
    if (!l || n_elems == 0) return WP_ARGUMENT;
    const unsigned bytes = l->elem_bytes;
    wp_kernels_of(isa)->exponents(base, n_elems, bytes, l->exponent_shift, exponent_mask_of(l), exponents);
    uint8_t highest = 0;
    for (size_t i = 0; i < n_elems; i++) highest = exponents[i] > highest ? exponents[i] : highest;
    const unsigned lowest = highest > 24 ? highest - 24u : 0; /* what is below is divided: the sums have 24 bits of range, and room for 128 of them */
#define LOOP(bytes, shift, is_float) scales_of(elems, base, n_elems, bytes, shift, is_float, exponents, lowest, scales)
    FOR_KIND(LOOP);
#undef LOOP
    return WP_OK;
}

/* What a sign and a magnitude say, modulo 2^bits. */
static inline uint32_t modular(uint32_t magnitude, uint32_t negative, unsigned bits) { return ((magnitude ^ (0u - negative)) + negative) & wp_word_mask(bits); }

static inline void modular_words(const uint8_t *elems, const uint8_t *base, size_t n_elems, unsigned bytes, unsigned shift, int is_float,
                                 uint32_t *differences) {
    for (size_t i = 0; i < n_elems; i++) {
        uint32_t negative;
        const uint32_t m = difference(wp_load_word(elems, bytes, i) >> shift, wp_load_word(base, bytes, i) >> shift, 8 * bytes - shift, is_float, &negative);
        differences[i] = modular(m, negative, 8 * bytes - shift);
    }
}

wp_status wp_modular_differences(unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, uint32_t *differences) {
    const wp_layout *l = differing(layout, shift);
    if (!l) return WP_ARGUMENT;
    const unsigned bytes = l->elem_bytes;
#define LOOP(bytes, shift, is_float) modular_words(elems, base, n_elems, bytes, shift, is_float, differences)
    FOR_KIND(LOOP);
#undef LOOP
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

/* What `code_words` makes; n_changed and extras_bytes at the end. */
typedef struct {
    uint8_t *cells, *classes, *extras;
    uint32_t (*counts)[WP_N_CELLS * WP_N_CLASSES];
    size_t n_changed, extras_bytes;
} coded;

static inline void code_words(const uint8_t *elems, const uint8_t *base, size_t n_elems, unsigned bytes, unsigned shift, int is_float, const wp_layout *l,
                              const uint8_t *rates, uint8_t base_exponent, const frequent_table *frequent, coded *out) {
    uint64_t held = 0; /* bits that are not written yet, `n_held` of them, below 8 after each element */
    unsigned n_held = 0;
    uint8_t *p = out->extras, *cells = out->cells, *classes = out->classes;
    /* Two histograms in turn: the same pair often comes twice, and the second would wait for the first. */
    uint32_t *even = out->counts[0], *odd = out->counts[1];
    const uint32_t exponent_mask = exponent_mask_of(l);
    const unsigned exponent_shift = l->exponent_shift;
    for (size_t begin = 0; begin < n_elems; begin += WP_BLOCK) {
        const unsigned rate = rates[begin / WP_BLOCK];
        const size_t end = n_elems - begin < WP_BLOCK ? n_elems : begin + WP_BLOCK;
        if (rate == 0) continue;
        for (size_t i = begin; i < end; i++) {
            uint32_t negative;
            const uint32_t b = wp_load_word(base, bytes, i);
            const uint32_t m = difference(wp_load_word(elems, bytes, i) >> shift, b >> shift, 8 * bytes - shift, is_float, &negative);
            /* Without branches: which elements changed can't be foreseen. */
            const unsigned k = wp_highest_bit(m | 1), low = k - (k != 0);
            unsigned symbol = 2 * k + (m >> low & 1), n_extra = low + (m != 0);
            if (frequent) {
                const unsigned known = frequent->class_of[slot_of(frequent, modular(m, negative, 8 * bytes - shift))];
                symbol = known ? known : symbol;
                n_extra = known ? 0 : n_extra;
            }
            const unsigned cell = rate * WP_N_CONTEXTS + wp_context_of((uint8_t)(b >> exponent_shift & exponent_mask), base_exponent);
            *cells++ = (uint8_t)cell;
            *classes++ = (uint8_t)symbol;
            even[cell * WP_N_CLASSES + symbol]++;
            uint32_t *const next = odd;
            odd = even;
            even = next;
            const uint64_t extra = (uint64_t)(m & ((1u << low) - 1)) << 1 | negative;
            held |= (extra & (((uint64_t)1 << n_extra) - 1)) << n_held;
            n_held += n_extra;
            wp_store64(p, held);
            p += n_held / 8;
            held >>= n_held & ~7u;
            n_held &= 7;
        }
    }
    out->n_changed = (size_t)(classes - out->classes);
    out->extras_bytes = (size_t)(p - out->extras) + (n_held != 0);
}

wp_status wp_difference_code(unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, const uint8_t *rates,
                             unsigned base_exponent, const uint8_t *frequent, unsigned n_frequent, uint8_t *cells, uint8_t *classes,
                             uint32_t counts[2][WP_N_CELLS * WP_N_CLASSES], uint8_t *extras, size_t *n_changed, size_t *extras_bytes) {
    const wp_layout *l = differing(layout, shift);
    if (!l || base_exponent > 255 || n_frequent > WP_MAX_FREQUENT) return WP_ARGUMENT;
    frequent_table table;
    fill_frequent(&table, frequent, n_frequent);
    for (size_t b = 0; b * WP_BLOCK < n_elems; b++)
        if (rates[b] > WP_MAX_RATE) return WP_ARGUMENT;
    const unsigned bytes = l->elem_bytes;
    coded out = {cells, classes, extras, counts, 0, 0};
    memset(counts, 0, 2 * sizeof counts[0]);
#define LOOP(bytes, shift, is_float)                                                                                              \
    do {                                                                                                                          \
        if (n_frequent) code_words(elems, base, n_elems, bytes, shift, is_float, l, rates, (uint8_t)base_exponent, &table, &out); \
        else code_words(elems, base, n_elems, bytes, shift, is_float, l, rates, (uint8_t)base_exponent, NULL, &out);              \
    } while (0)
    FOR_KIND(LOOP);
#undef LOOP
    for (size_t i = 0; i < WP_N_CELLS * WP_N_CLASSES; i++) counts[0][i] += counts[1][i];
    *n_changed = out.n_changed;
    *extras_bytes = out.extras_bytes;
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
