/* SPDX-License-Identifier: Apache-2.0
 *
 * Which codebook for which block (section 8.7): k-means over the blocks' histograms, with the bits that a codebook would take as the distance. Integers only,
 * so that every machine finds the same.
 */
#include "tables.h"
#include "mem.h"
#include "rans.h"

/* 15 classes for the commonest symbols and one for all others. */
enum { CLASSES = 16, OTHERS = CLASSES - 1, ROUNDS = 3, BINS = 256, LEAST_FOR_2 = 1 << 14, LEAST_FOR_4 = 1 << 17, NEVER = 1 << 20 };

static size_t blocks_of(size_t n) { return (n + WP_TABLE_GROUPS * WP_BLOCK - 1) / (WP_TABLE_GROUPS * WP_BLOCK); }

size_t wp_tables_scratch(size_t n) { return (blocks_of(n) * (CLASSES * sizeof(uint16_t) + sizeof(uint32_t) + 1) + 127) / 64 * 64; }

/* Classes of the commonest symbols, the lower of equally common ones first; they stand in the symbols' order. */
static void classify(const uint32_t counts[256], uint8_t class_of[256]) {
    uint8_t chosen[256] = {0};
    for (unsigned i = 0; i < OTHERS; i++) {
        unsigned best = 256;
        for (unsigned s = 0; s < 256; s++)
            if (counts[s] && !chosen[s] && (best == 256 || counts[s] > counts[best])) best = s;
        if (best == 256) break;
        chosen[best] = 1;
    }
    for (unsigned s = 0, c = 0; s < 256; s++) class_of[s] = chosen[s] ? (uint8_t)c++ : OTHERS;
}

/* Equal shares of the blocks, by falling mean class: a start that needs few rounds. Returns 0 if all are equal. */
static int first_ids(const uint32_t *means, size_t n_blocks, unsigned n_tables, uint8_t *ids) {
    uint32_t low = UINT32_MAX, high = 0;
    size_t in_bin[BINS] = {0};
    uint8_t id_of_bin[BINS];
    for (size_t b = 0; b < n_blocks; b++) {
        low = means[b] < low ? means[b] : low;
        high = means[b] > high ? means[b] : high;
    }
    if (low == high) return 0;
    for (size_t b = 0; b < n_blocks; b++) in_bin[(uint64_t)(means[b] - low) * (BINS - 1) / (high - low)]++;
    size_t before = 0;
    for (unsigned i = 0; i < BINS; before += in_bin[i++]) id_of_bin[i] = (uint8_t)((before + in_bin[i] / 2) * n_tables / (n_blocks + 1));
    for (size_t b = 0; b < n_blocks; b++) ids[b] = id_of_bin[(uint64_t)(means[b] - low) * (BINS - 1) / (high - low)];
    return 1;
}

/* Bits * 2^12 of each class under the codebook that its blocks would have. */
static void costs_of(const uint32_t sums[CLASSES], const uint32_t log2s[257], uint32_t costs[CLASSES]) {
    uint64_t total = 0;
    for (unsigned c = 0; c < CLASSES; c++) total += sums[c];
    for (unsigned c = 0; c < CLASSES; c++) {
        uint64_t f = total ? (uint64_t)sums[c] * 256 / total : 1;
        costs[c] = total ? ((8u << 16) - log2s[f < 1 ? 1 : f > 255 ? 255 : f]) >> 4 : NEVER;
    }
    costs[OTHERS] += 8u << 12; /* an escape's literal */
}

void wp_rans_choose_tables(const uint8_t *symbols, size_t n, const uint32_t counts[256], unsigned most, uint8_t *scratch, wp_rans_tables *t) {
    const size_t n_blocks = blocks_of(n);
    scratch += ((uintptr_t)0 - (uintptr_t)scratch) & 63; /* the caller's may stand anywhere */
    const unsigned n_tables = n < LEAST_FOR_2 ? 1 : n < LEAST_FOR_4 ? 2 : 4;
    uint16_t (*const histograms)[CLASSES] = (uint16_t (*)[CLASSES])(void *)scratch;
    uint32_t *const means = (uint32_t *)(void *)(scratch + n_blocks * sizeof *histograms), log2s[257];
    uint8_t *const ids = (uint8_t *)(means + n_blocks), class_of[256];
    const unsigned n_ids = n_tables < most ? n_tables : most;
    t->n_books = 0;
    t->ids = ids;
    if (n_ids < 2) return;
    classify(counts, class_of);
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t begin = b * WP_TABLE_GROUPS * WP_BLOCK, m = n - begin < WP_TABLE_GROUPS * WP_BLOCK ? n - begin : WP_TABLE_GROUPS * WP_BLOCK;
        uint16_t h[2][CLASSES] = {{0}};
        size_t i = 0;
        for (; i + 2 <= m; i += 2) {
            h[0][class_of[symbols[begin + i]]]++;
            h[1][class_of[symbols[begin + i + 1]]]++;
        }
        if (i < m) h[0][class_of[symbols[begin + i]]]++;
        means[b] = 0;
        for (unsigned c = 0; c < CLASSES; c++) {
            histograms[b][c] = (uint16_t)(h[0][c] + h[1][c]);
            if (c != OTHERS) means[b] += c * histograms[b][c];
        }
    }
    if (!first_ids(means, n_blocks, n_ids, ids)) return;

    wp_log2_table(log2s);
    for (int round = 0, changed = 1; round < ROUNDS && changed; round++) {
        uint32_t sums[WP_MAX_TABLES][CLASSES] = {{0}}, costs[WP_MAX_TABLES][CLASSES];
        for (size_t b = 0; b < n_blocks; b++)
            for (unsigned c = 0; c < CLASSES; c++) sums[ids[b]][c] += histograms[b][c];
        for (unsigned i = 0; i < n_ids; i++) costs_of(sums[i], log2s, costs[i]);
        changed = 0;
        for (size_t b = 0; b < n_blocks; b++) {
            uint32_t least = UINT32_MAX;
            unsigned best = 0;
            for (unsigned i = 0; i < n_ids; i++) {
                uint32_t cost = 0;
                for (unsigned c = 0; c < CLASSES; c++) cost += histograms[b][c] * costs[i][c];
                if (cost < least) {
                    least = cost;
                    best = i;
                }
            }
            changed |= best != ids[b];
            ids[b] = (uint8_t)best;
        }
    }

    uint32_t exact[WP_MAX_TABLES][256] = {{0}};
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t begin = b * WP_TABLE_GROUPS * WP_BLOCK, m = n - begin < WP_TABLE_GROUPS * WP_BLOCK ? n - begin : WP_TABLE_GROUPS * WP_BLOCK;
        for (unsigned s = 0; s < 256; s++)
            if (class_of[s] != OTHERS) exact[ids[b]][s] += histograms[b][class_of[s]];
        if (histograms[b][OTHERS])
            for (size_t i = 0; i < m; i++)
                if (class_of[symbols[begin + i]] == OTHERS) exact[ids[b]][symbols[begin + i]]++;
    }
    uint8_t new_id[WP_MAX_TABLES];
    size_t bytes = 2 * WP_BLOCK + 4 + 2;
    t->escapes = 0;
    for (unsigned i = 0; i < n_ids; i++) {
        unsigned distinct = 0, last = 0;
        for (unsigned s = 0; s < 256; s++)
            if (exact[i][s]) {
                distinct++;
                last = s;
            }
        if (!distinct) continue;
        wp_rans_book *book = &t->books[t->n_books];
        size_t cost;
        if (distinct == 1) {
            memset(book, 0, sizeof *book);
            book->n_symbols = 1;
            book->escape_freq = 1;
            book->symbols[0] = (uint8_t)last;
            book->freqs[0] = 255;
            cost = 4 + exact[i][last] / 1024;
        } else {
            wp_rans_choose(exact[i], book, &cost);
            cost -= 2 * WP_BLOCK + 4;
        }
        for (unsigned s = 0; s < 256; s++) t->escapes += exact[i][s];
        for (unsigned r = 0; r < book->n_symbols; r++) t->escapes -= exact[i][book->symbols[r]];
        bytes += cost;
        new_id[i] = (uint8_t)t->n_books++;
    }
    for (size_t b = 0; b < n_blocks; b++) ids[b] = new_id[ids[b]];
    t->cost_bytes = bytes + (n_blocks * (t->n_books <= 2 ? 1 : 2) + 7) / 8;
    if (t->n_books < 2) t->n_books = 0;
}
