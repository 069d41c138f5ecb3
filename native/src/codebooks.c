/* SPDX-License-Identifier: Apache-2.0
 *
 * Which codebook for which cell of a chunk of differences (section 8.8): k-means over the cells' histograms, a codebook's bits being the distance; then books
 * that don't pay are joined. Integers only, so that every machine finds the same.
 */
#include "rans.h"
#include "words.h"

enum {
    SYMBOLS_A_BOOK = 1 << 11,              /* with fewer, a book's bytes cost more than it gains */
    ROUNDS = 8,
    STREAM_HEAD = 2 * WP_BLOCK + 4 + 2,    /* of section 8.3, in the estimates of a codebook */
    FRACTION_BITS = 12,                    /* of the bits of a class */
    NO_CLUSTER = 1 << 20                   /* bits, in those fractions, of any class in a cluster that has no cell */
};

/* The cells that occur, the classes that do, and how often they do together: counts[cell * WP_N_CLASSES + class]. */
typedef struct {
    const uint32_t *counts;
    unsigned n_cells, highest_cell, n_classes, n_books;
    uint8_t cell[WP_N_CELLS], class_of[WP_N_CLASSES], cluster[WP_N_CELLS];
    uint64_t totals[WP_N_CELLS], total;
} histograms;

static uint32_t count_of(const histograms *h, unsigned i, unsigned j) { return h->counts[h->cell[i] * WP_N_CLASSES + h->class_of[j]]; }

/* A codebook in the making: the classes of clusters that are neighbours, and what it takes. */
typedef struct {
    uint32_t counts[WP_N_CLASSES];
    wp_rans_book book;
    int64_t cost;
} group;

static void gather(histograms *h, const uint32_t *counts) {
    memset(h, 0, sizeof *h);
    h->counts = counts;
    uint64_t of_class[WP_N_CLASSES] = {0};
    for (unsigned cell = 0; cell < WP_N_CELLS; cell++) {
        const uint32_t *row = counts + cell * WP_N_CLASSES;
        uint64_t total = 0;
        for (unsigned c = 0; c < WP_N_CLASSES; c++) {
            total += row[c];
            of_class[c] += row[c];
        }
        if (!total) continue;
        h->totals[h->n_cells] = total;
        h->cell[h->n_cells++] = (uint8_t)cell;
        h->highest_cell = cell;
        h->total += total;
    }
    for (unsigned c = 0; c < WP_N_CLASSES; c++)
        if (of_class[c]) h->class_of[h->n_classes++] = (uint8_t)c;
    const uint64_t most = h->total / SYMBOLS_A_BOOK;
    h->n_books = h->n_cells < WP_MAX_TABLES ? h->n_cells : WP_MAX_TABLES;
    if (most < h->n_books) h->n_books = most ? (unsigned)most : 1;
}

/* Clusters start as equal shares of the symbols, by rising mean class. */
static void first_clusters(histograms *h) {
    uint64_t means[WP_N_CELLS], before = 0;
    unsigned order[WP_N_CELLS];
    for (unsigned i = 0; i < h->n_cells; i++) {
        uint64_t sum = 0;
        for (unsigned j = 0; j < h->n_classes; j++) sum += (uint64_t)count_of(h, i, j) * j;
        means[i] = sum * 256 / h->totals[i];
        unsigned at = i;
        for (; at > 0 && means[order[at - 1]] > means[i]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    for (unsigned i = 0; i < h->n_cells; i++) {
        h->cluster[order[i]] = (uint8_t)(before * h->n_books / h->total);
        before += h->totals[order[i]];
    }
}

static void sum_clusters(const histograms *h, uint32_t sums[WP_MAX_TABLES][WP_N_CLASSES], uint64_t totals[WP_MAX_TABLES]) {
    memset(sums, 0, WP_MAX_TABLES * sizeof sums[0]);
    memset(totals, 0, WP_MAX_TABLES * sizeof totals[0]);
    for (unsigned i = 0; i < h->n_cells; i++) {
        uint32_t *sum = sums[h->cluster[i]];
        for (unsigned j = 0; j < h->n_classes; j++) sum[j] += count_of(h, i, j);
        totals[h->cluster[i]] += h->totals[i];
    }
}

/* Moves each cell to the cluster whose frequencies code it in the fewest bits; returns whether any moved. */
static int move_cells(histograms *h, uint32_t sums[WP_MAX_TABLES][WP_N_CLASSES], const uint64_t totals[WP_MAX_TABLES], const uint16_t *logs) {
    uint32_t costs[WP_N_CLASSES][WP_MAX_TABLES] = {{0}};
    for (unsigned b = 0; b < h->n_books; b++)
        for (unsigned j = 0; j < h->n_classes; j++)
            costs[j][b] = totals[b] ? (FRACTION_BITS << FRACTION_BITS) - logs[(uint64_t)sums[b][j] * 4096 / totals[b]] : NO_CLUSTER;
    int moved = 0;
    for (unsigned i = 0; i < h->n_cells; i++) {
        uint64_t bits[WP_MAX_TABLES] = {0};
        for (unsigned j = 0; j < h->n_classes; j++) {
            const uint64_t n = count_of(h, i, j);
            if (n)
                for (unsigned b = 0; b < WP_MAX_TABLES; b++) bits[b] += n * costs[j][b];
        }
        unsigned nearest = 0;
        for (unsigned b = 1; b < h->n_books; b++) nearest = bits[b] < bits[nearest] ? b : nearest;
        moved |= nearest != h->cluster[i];
        h->cluster[i] = (uint8_t)nearest;
    }
    return moved;
}

/* The codebook of a group's counts, and the bytes that it and its symbols take. */
static void code(group *g, const histograms *h, const uint32_t log2s[257]) {
    uint32_t counts[256] = {0};
    uint64_t total = 0;
    unsigned n_present = 0, present = 0;
    for (unsigned j = 0; j < h->n_classes; j++) {
        counts[h->class_of[j]] = g->counts[j];
        total += g->counts[j];
        if (g->counts[j]) {
            n_present++;
            present = h->class_of[j];
        }
    }
    if (n_present == 1) {
        g->book = (wp_rans_book){.n_symbols = 1, .escape_freq = 1, .symbols = {(uint8_t)present}, .freqs = {255}};
        g->cost = 4 + (int64_t)(total / 1024);
        return;
    }
    size_t cost;
    wp_rans_choose_by(counts, log2s, &g->book, &cost);
    g->cost = (int64_t)cost - STREAM_HEAD + 2;
}

static void join(const group *a, const group *b, const histograms *h, const uint32_t log2s[257], group *both) {
    for (unsigned j = 0; j < h->n_classes; j++) both->counts[j] = a->counts[j] + b->counts[j];
    code(both, h, log2s);
}

wp_status wp_conditional_books(const uint32_t counts[WP_N_CELLS * WP_N_CLASSES], const uint16_t logs[4097], wp_rans_book books[WP_MAX_TABLES],
                               unsigned *n_books, uint8_t map[WP_N_CELLS], unsigned *n_rates) {
    histograms h;
    gather(&h, counts);
    if (!h.total || h.cell[0] < WP_N_CONTEXTS || h.total > UINT32_MAX) return WP_ARGUMENT;
    first_clusters(&h);
    uint32_t sums[WP_MAX_TABLES][WP_N_CLASSES];
    uint64_t totals[WP_MAX_TABLES];
    sum_clusters(&h, sums, totals);
    for (unsigned round = 0; round < ROUNDS && move_cells(&h, sums, totals, logs); round++) sum_clusters(&h, sums, totals);

    /* Neighbours (clusters stand in the order of their means) are joined while that makes the stream smaller: those first that gain most. */
    uint32_t log2s[257];
    wp_log2_table(log2s);
    group groups[WP_MAX_TABLES], joined[WP_MAX_TABLES]; /* joined[i]: of groups i and i + 1 */
    uint8_t group_of[WP_MAX_TABLES] = {0};
    unsigned n = 0;
    for (unsigned b = 0; b < h.n_books; b++) {
        group_of[b] = (uint8_t)n;
        if (!totals[b]) continue;
        memcpy(groups[n].counts, sums[b], sizeof sums[b]);
        code(&groups[n++], &h, log2s);
    }
    for (unsigned i = 0; i + 1 < n; i++) join(&groups[i], &groups[i + 1], &h, log2s, &joined[i]);
    while (n > 1) {
        unsigned best = n;
        int64_t best_gain = 0;
        for (unsigned i = 0; i + 1 < n; i++) {
            const int64_t gain = groups[i].cost + groups[i + 1].cost - joined[i].cost;
            if (gain > best_gain) {
                best = i;
                best_gain = gain;
            }
        }
        if (best == n) break;
        groups[best] = joined[best];
        n--;
        for (unsigned i = best + 1; i < n; i++) groups[i] = groups[i + 1];
        for (unsigned i = best + 1; i + 1 < n; i++) joined[i] = joined[i + 1];
        for (unsigned b = 0; b < h.n_books; b++)
            if (group_of[b] > best) group_of[b]--;
        if (best) join(&groups[best - 1], &groups[best], &h, log2s, &joined[best - 1]);
        if (best + 1 < n) join(&groups[best], &groups[best + 1], &h, log2s, &joined[best]);
    }
    memset(map, 0, WP_N_CELLS); /* cells that do not occur have book 0 */
    for (unsigned i = 0; i < h.n_cells; i++) map[h.cell[i]] = group_of[h.cluster[i]];
    for (unsigned i = 0; i < n; i++) books[i] = groups[i].book;
    *n_books = n;
    *n_rates = h.highest_cell / WP_N_CONTEXTS;
    return WP_OK;
}
