/* SPDX-License-Identifier: Apache-2.0
 *
 * Section 18: elements that were quantised once and written out again, value times scale. Doubles here are exact or rounded once, by IEEE 754, so that every
 * machine does the same.
 */
#include "kernels.h"
#include "mem.h"

enum { FLOAT_ONE = 127, MAX_DISTINCT = 512 };

static double from_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return (double)f;
}

static uint32_t to_float(double d) {
    float f = (float)d;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static uint32_t bf16_of(uint32_t f) { return (f + 0x7fff + (f >> 16 & 1)) >> 16; }

/* To the nearest, ties to even; beyond the largest to infinity. `f` is finite. */
static uint32_t f16_of(uint32_t f) {
    uint32_t sign = f >> 16 & 0x8000, magnitude = f & 0x7fffffff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude >= 0x38800000) return sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
    if (magnitude <= 0x33000000) return sign; /* half of the least one, and less */
    uint32_t drop = 126 - (magnitude >> 23), m = (magnitude & 0x7fffff) | 0x800000;
    return sign | ((m + (1u << (drop - 1)) - 1 + (m >> drop & 1)) >> drop);
}

/* The element that value times scale is (18.3). */
static uint32_t product(const wp_layout *l, double scale, double value) {
    uint32_t f = to_float(scale * value);
    return l->elem_bytes == 4 ? f : l->exponent_bits == 8 ? bf16_of(f) : f16_of(f);
}

size_t wp_tiles(wp_tiling t, size_t n_elems) {
    const size_t n_rows = (n_elems - 1) / t.cols + 1, across = (t.cols - 1) / t.tile_cols + 1;
    return ((n_rows - 1) / t.tile_rows + 1) * across;
}

static int tiling_ok(wp_tiling t, size_t n_elems) {
    return t.cols && t.cols <= WP_MAX_TILE_SIDE && t.tile_rows && t.tile_rows <= WP_MAX_TILE_SIDE && t.tile_cols && t.tile_cols <= t.cols && n_elems &&
           n_elems <= WP_MAX_CHUNK_BYTES;
}

/* A tile's part of a row: `n` elements from element `begin` of the chunk; 0 if the row or the chunk ends before. */
static size_t segment(wp_tiling t, size_t n_elems, size_t row, size_t across, size_t *begin) {
    size_t col = across * t.tile_cols, n = t.cols - col < t.tile_cols ? t.cols - col : t.tile_cols;
    *begin = row * t.cols + col;
    return *begin >= n_elems ? 0 : n_elems - *begin < n ? n_elems - *begin : n;
}

/* Of magnitudes that are no zeros, the least and the largest; 0 for none. */
static void widen(double *least, double *most, double value) {
    const double magnitude = value < 0 ? -value : value;
    if (magnitude > *most) *most = magnitude;
    if (magnitude > 0 && (*least == 0 || magnitude < *least)) *least = magnitude;
}

/* Are products zeros or normal floats (18.3)? So no mode of the processor that flushes small ones can matter. */
static int in_range(double scale, double least, double most) { return scale * most <= 0x1.fffffep127 && (least == 0 || scale * least >= 0x1p-126); }

static uint32_t load_elem(const uint8_t *elems, size_t i, unsigned elem_bytes) { return elem_bytes == 2 ? wp_load16(elems + 2 * i) : wp_load32(elems + 4 * i); }

static void store_elem(uint8_t *elems, size_t i, unsigned elem_bytes, uint32_t word) {
    if (elem_bytes == 2) wp_store16(elems + 2 * i, (uint16_t)word);
    else wp_store32(elems + 4 * i, word);
}

wp_status wp_quantised_decode(unsigned isa, unsigned layout, const uint8_t *values, size_t n_values, const uint8_t *scales, wp_tiling t, const uint8_t *codes,
                              size_t n_elems, const uint8_t *verbatim, size_t verbatim_bytes, uint32_t chunk_number, uint8_t *out, uint32_t *crc) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l || !wp_has_products(l) || n_values == 0 || n_values > 256 || !tiling_ok(t, n_elems)) return WP_CORRUPT;
    const unsigned elem_bytes = l->elem_bytes;
    const size_t n_tiles = wp_tiles(t, n_elems), across = (t.cols - 1) / t.tile_cols + 1, n_rows = (n_elems - 1) / t.cols + 1;
    if (n_tiles > n_elems) return WP_CORRUPT;
    double value[256], least = 0, most = 0;
    for (size_t k = 0; k < n_values; k++) {
        const uint32_t bits = wp_load32(values + 4 * k), exponent = bits >> 23 & 255;
        if (exponent == 255 || (exponent == 0 && bits << 1)) return WP_CORRUPT;
        value[k] = from_float(bits);
        widen(&least, &most, value[k]);
    }
    uint8_t highest = 0;
    for (size_t i = 0; i < n_elems; i++) highest = codes[i] > highest ? codes[i] : highest;
    if (highest >= n_values) return WP_CORRUPT;
    size_t n_verbatim = 0;
    for (size_t tile = 0; tile < n_tiles; tile++) {
        const size_t row = tile / across * t.tile_rows, a = tile % across;
        const uint32_t bits = (uint32_t)scales[tile] << 24 | (uint32_t)scales[n_tiles + tile] << 16 | (uint32_t)scales[2 * n_tiles + tile] << 8 |
                              scales[3 * n_tiles + tile];
        uint32_t table[256];
        size_t begin, n;
        const int is_verbatim = bits == WP_VERBATIM_TILE;
        if (!is_verbatim) {
            const double scale = from_float(bits);
            if (bits >> 31 || (bits >> 23) == 255 || (bits >> 23) == 0) return WP_CORRUPT;
            if (!in_range(scale, least, most)) return WP_CORRUPT;
            if (t.tile_rows * t.tile_cols >= n_values)
                for (size_t k = 0; k < n_values; k++) table[k] = product(l, scale, value[k]);
        }
        for (size_t r = row; r < n_rows && r < row + t.tile_rows; r++) {
            if ((n = segment(t, n_elems, r, a, &begin)) == 0) break;
            if (is_verbatim) {
                for (size_t i = begin; i < begin + n; i++)
                    if (codes[i]) return WP_CORRUPT;
                n_verbatim += n;
            } else if (t.tile_rows * t.tile_cols < n_values) {
                for (size_t i = begin; i < begin + n; i++) store_elem(out, i, elem_bytes, product(l, from_float(bits), value[codes[i]]));
            } else if (elem_bytes == 2) {
                for (size_t i = begin; i < begin + n; i++) wp_store16(out + 2 * i, (uint16_t)table[codes[i]]);
            } else {
                for (size_t i = begin; i < begin + n; i++) wp_store32(out + 4 * i, table[codes[i]]);
            }
        }
    }
    if (verbatim_bytes != n_verbatim * elem_bytes) return verbatim_bytes < n_verbatim * elem_bytes ? WP_TRUNCATED : WP_CORRUPT;
    for (size_t r = 0, begin, n; n_verbatim && r < n_rows; r++)
        for (size_t a = 0; a < across; a++) {
            const uint8_t *scale = scales + r / t.tile_rows * across + a;
            if ((scale[0] & scale[n_tiles] & scale[2 * n_tiles] & scale[3 * n_tiles]) != 255 || (n = segment(t, n_elems, r, a, &begin)) == 0) continue;
            memcpy(out + begin * elem_bytes, verbatim, n * elem_bytes);
            verbatim += n * elem_bytes;
        }
    uint8_t number[4];
    wp_store32(number, chunk_number);
    *crc = wp_crc32c(WP_ISA_SCALAR, 0, number, 4);
    *crc = wp_kernels_of(isa)->crc32c(*crc, out, n_elems * elem_bytes);
    return WP_OK;
}

/* ---- Writing: the scale of a tile is an interval that each element narrows. */

enum { N_WORDS = 65536 }; /* of 16 bits */

/* The code of each word of 16 bits, in which tile it was seen last, and room for two orders of a tile's elements. */
size_t wp_quantised_scratch(size_t n_elems) { return 5 * N_WORDS + 8 * n_elems; }

/* Ascending by magnitude: elements with the sign turned to the lowest bit; `other` has as much room. Returns which of the two holds them. */
static uint32_t *sorted(uint32_t *keys, uint32_t *other, size_t n, unsigned elem_bytes) {
    if (n <= 32) {
        for (size_t i = 1; i < n; i++) {
            const uint32_t key = keys[i];
            size_t j = i;
            for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
            keys[j] = key;
        }
        return keys;
    }
    for (unsigned shift = 0; shift < 8 * elem_bytes; shift += 8) {
        uint32_t at[257] = {0};
        for (size_t i = 0; i < n; i++) at[(keys[i] >> shift & 255) + 1]++;
        for (unsigned s = 0; s < 256; s++) at[s + 1] += at[s];
        for (size_t i = 0; i < n; i++) other[at[keys[i] >> shift & 255]++] = keys[i];
        uint32_t *swap = keys;
        keys = other;
        other = swap;
    }
    return keys;
}

/* The magnitude of an element as a double, and what is half way to its neighbours. */
typedef struct { double low, value, high; } rounded;

static double magnitude_of(const wp_layout *l, uint32_t magnitude) {
    if (l->elem_bytes == 4) return from_float(magnitude);
    if (l->exponent_bits == 8) return from_float(magnitude << 16);
    const uint32_t e = magnitude >> 10, m = magnitude & 1023;
    return e ? from_float((e + 112) << 23 | m << 13) : (double)m * 0x1p-24;
}

static rounded rounded_of(const wp_layout *l, uint32_t magnitude) {
    rounded r;
    const double before = magnitude_of(l, magnitude - 1);
    r.value = magnitude_of(l, magnitude);
    r.low = (before + r.value) / 2;
    r.high = r.value + (magnitude_of(l, magnitude + 1) - r.value) / 2;
    return r;
}

typedef struct {
    double value[256], inverse[256], between[256], least, most; /* magnitudes, but for zeros; `between[k]`: half way from value k to the next */
    size_t n;
    int zero, minus_zero; /* codes; -1: there is none */
} grid_table;

static void grid_table_of(const wp_grid *grid, grid_table *g) {
    g->n = grid->n_values;
    g->zero = g->minus_zero = -1;
    g->least = g->most = 0;
    for (size_t k = 0; k < g->n; k++) {
        g->value[k] = from_float(grid->values[k]);
        g->inverse[k] = 1 / g->value[k];
        widen(&g->least, &g->most, g->value[k]);
        if (grid->values[k] == 0) g->zero = (int)k;
        if (grid->values[k] == 0x80000000) g->minus_zero = (int)k;
    }
    for (size_t k = 0; k + 1 < g->n; k++) g->between[k] = (g->value[k] + g->value[k + 1]) / 2;
}

/* The value next to x, the lower of two as near. From `code` on, which was next to something near x. */
static unsigned nearest(const grid_table *g, double x, unsigned code) {
    while (code + 1 < g->n && g->between[code] < x) code++;
    while (code > 0 && !(g->between[code - 1] < x)) code--;
    return code;
}

/* The float in [low, high] with the most trailing zeros; 0 if there is none. */
static uint32_t simplest(double low, double high) {
    uint32_t a = to_float(low), b = to_float(high);
    if (from_float(a) < low) a++;
    if (from_float(b) > high) b--;
    if (a > b) return 0;
    uint32_t differ = a ^ b, mask = 0;
    while (mask < differ) mask = mask << 1 | 1;
    return (a & mask) == 0 ? a : b & ~(mask >> 1);
}

/* Are all n distinct elements, ascending by magnitude, values of the grid times one scale that gives `anchor` times scale for element `at`? */
static uint32_t scale_of(const wp_layout *l, const uint32_t *keys, size_t n, unsigned word_bits, size_t at, double anchor, const grid_table *g,
                         uint8_t *codes) {
    const rounded first = rounded_of(l, keys[at] >> 1);
    double low = first.low / anchor, high = first.high / anchor, inverse = 1 / ((low + high) / 2);
    unsigned last[2] = {nearest(g, 0, 0), nearest(g, 0, 0)}; /* codes of the last element of each sign: magnitudes rise */
    for (size_t i = 0; i < n; i++) {
        const uint32_t magnitude = keys[i] >> 1, negative = keys[i] & 1;
        if (magnitude == 0) {
            const int code = negative ? g->minus_zero : g->zero;
            if (code < 0) return 0;
            codes[i] = (uint8_t)code;
            continue;
        }
        const rounded r = rounded_of(l, magnitude);
        const double x = r.value * inverse;
        const unsigned code = last[negative] = nearest(g, negative ? -x : x, last[negative]);
        const double per_value = negative ? -g->inverse[code] : g->inverse[code];
        if (!(per_value > 0) || g->value[code] == 0) return 0;
        const double least = r.low * per_value, most = r.high * per_value;
        codes[i] = (uint8_t)code;
        if (least <= low && most >= high) continue;
        low = least > low ? least : low;
        high = most < high ? most : high;
        if (low > high) return 0;
        inverse = 1 / ((low + high) / 2);
    }
    const uint32_t scales[2] = {simplest(low, high), to_float((low + high) / 2)}; /* the first may be a bound, which rounds to the neighbour */
    for (unsigned s = 0; s < 2; s++) {
        size_t i = 0;
        if (scales[s] >> 23 == 0 || scales[s] >> 23 >= 255) continue;
        while (i < n && product(l, from_float(scales[s]), g->value[codes[i]]) == (keys[i] >> 1 | (keys[i] & 1) << (word_bits - 1))) i++;
        if (i == n) return scales[s];
    }
    return 0;
}

wp_status wp_quantised_fit(unsigned layout, const uint8_t *elems, size_t n_elems, wp_tiling t, const wp_grid *grid, uint8_t *scratch, uint32_t *scales,
                           uint8_t *codes, size_t *n_verbatim) {
    const wp_layout *l = wp_layout_of(layout);
    if (!l || !wp_has_products(l) || !tiling_ok(t, n_elems) || grid->n_values < 2 || grid->n_values > 256 || grid->n_anchors > WP_MAX_ANCHORS)
        return WP_ARGUMENT;
    const unsigned elem_bytes = l->elem_bytes, word_bits = 8 * elem_bytes;
    const uint32_t inf = ((1u << l->exponent_bits) - 1) << l->exponent_shift;
    const size_t n_tiles = wp_tiles(t, n_elems), across = (t.cols - 1) / t.tile_cols + 1, n_rows = (n_elems - 1) / t.cols + 1;
    uint8_t *code_of_word = scratch;
    uint32_t *seen = (uint32_t *)(void *)(scratch + N_WORDS), *keys = seen + N_WORDS, *other = keys + n_elems;
    memset(seen, 0, 4 * N_WORDS);
    grid_table g;
    grid_table_of(grid, &g);
    *n_verbatim = 0;
    for (size_t tile = 0; tile < n_tiles; tile++) {
        const size_t row = tile / across * t.tile_rows, a = tile % across;
        size_t n = 0, n_keys = 0, begin, m;
        for (size_t r = row; r < n_rows && r < row + t.tile_rows && (m = segment(t, n_elems, r, a, &begin)) != 0; r++, n += m)
            for (size_t i = begin; i < begin + m; i++) {
                const uint32_t word = load_elem(elems, i, elem_bytes);
                if (elem_bytes == 2) { /* each word once */
                    if (seen[word] == tile + 1) continue;
                    seen[word] = (uint32_t)tile + 1;
                }
                keys[n_keys++] = (elem_bytes == 2 ? word << 1 & 0xffff : word << 1) | word >> (word_bits - 1);
            }
        uint8_t distinct_codes[MAX_DISTINCT];
        uint32_t distinct[MAX_DISTINCT], scale = 0;
        const int many = elem_bytes == 2 && n_keys >= MAX_DISTINCT;
        const uint32_t *in_order = many ? keys : sorted(keys, other, n_keys, elem_bytes);
        size_t k = many ? MAX_DISTINCT : 0, first = 0; /* `first`: the first that is no zero */
        for (size_t i = 0; i < n_keys && k < MAX_DISTINCT; i++)
            if (k == 0 || in_order[i] != distinct[k - 1]) distinct[k++] = in_order[i];
        while (first < k && distinct[first] < 2) first++;
        if (k < MAX_DISTINCT && k && distinct[k - 1] >> 1 < inf) {
            if (first == k) { /* zeros alone: any scale will do */
                scale = (uint32_t)FLOAT_ONE << 23;
                for (size_t i = 0; i < k && scale; i++) {
                    const int code = distinct[i] ? g.minus_zero : g.zero;
                    if (code < 0) scale = 0;
                    else distinct_codes[i] = (uint8_t)code;
                }
            }
            for (unsigned j = 0; j < grid->n_anchors && !scale && first < k; j++)
                scale = scale_of(l, distinct, k, word_bits, grid->from_least ? first : k - 1, from_float(grid->anchors[j]), &g, distinct_codes);
            if (scale && !in_range(from_float(scale), g.least, g.most)) scale = 0;
        }
        scales[tile] = scale ? scale : WP_VERBATIM_TILE;
        if (!scale) *n_verbatim += n;
        else if (elem_bytes == 2)
            for (size_t i = 0; i < k; i++) code_of_word[distinct[i] >> 1 | (distinct[i] & 1) << 15] = distinct_codes[i];
        for (size_t r = row; r < n_rows && r < row + t.tile_rows && (m = segment(t, n_elems, r, a, &begin)) != 0; r++) {
            if (!scale) memset(codes + begin, 0, m);
            else if (elem_bytes == 2)
                for (size_t i = begin; i < begin + m; i++) codes[i] = code_of_word[wp_load16(elems + 2 * i)];
            else
                for (size_t i = begin; i < begin + m; i++) {
                    const uint32_t word = wp_load32(elems + 4 * i), key = word << 1 | word >> 31;
                    size_t low = 0, left = k;
                    while (left > 1) {
                        const size_t half = left / 2;
                        if (distinct[low + half] <= key) low += half;
                        left -= half;
                    }
                    codes[i] = distinct_codes[low];
                }
        }
    }
    return WP_OK;
}
