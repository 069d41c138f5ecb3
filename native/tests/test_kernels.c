/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. Compares every kernel of every available ISA with the scalar one, which is the definition, and every encoder with every decoder.
 * Every buffer that a kernel sees stands flush with an unmapped page, once at its end and once at its beginning, so that one byte too far is a crash.
 * Fixed seed; the exit status is 1 if anything differs. Needs POSIX (mmap). From the root of the repository:
 *     gcc -std=c11 -O2 -g -fsanitize=address,undefined -Inative/include -Inative/src native/tests/test_kernels.c native/src/?*.c -o test_kernels
 */
#define _GNU_SOURCE
#include "fenced.h"
#include "coded_difference.h"
#include "conditional.h"
#include "rans.h"
#include "words.h"

#include <signal.h>

/* ---- counting ---- */

static unsigned n_passed, n_failed, line_checks, line_failures;
static char line_name[64];

static void begin_line(unsigned isa, const char *kernel) {
    snprintf(line_name, sizeof line_name, "%s %s", wp_isa_name(isa), kernel);
    line_checks = line_failures = 0;
}
static void end_line(void) {
    printf("%-28s %7u checks%s\n", line_name, line_checks, line_failures ? "  FAILED" : "");
    fflush(stdout);
}
static void check(int ok, const char *what) {
    line_checks++;
    if (ok) {
        n_passed++;
        return;
    }
    n_failed++;
    if (line_failures++ < 5) printf("%s: %s\n", line_name, what);
}
static void on_crash(int signal_number) {
    static const char text[] = ": touched memory outside its buffers\n";
    (void)signal_number;
    if (write(1, line_name, strlen(line_name)) < 0 || write(1, text, sizeof text - 1) < 0) _exit(2);
    _exit(1);
}

static int same(const uint8_t *a, const uint8_t *b, size_t n) { return n == 0 || memcmp(a, b, n) == 0; }

/* ---- crc32c ---- */

static void test_crc32c(unsigned isa) {
    const wp_kernels *scalar = wp_kernels_of(WP_ISA_SCALAR), *k = wp_kernels_of(isa);
    begin_line(isa, "crc32c");
    check(k->crc32c(0, (const uint8_t *)"123456789", 9) == 0xE3069283u, "check value");
    enum { MOST = 40000 };
    static uint8_t data[MOST];
    fill_random(data, MOST);
    for (size_t i = 0; i < 2100 + 300; i++) {
        size_t n = i < 2100 ? i : below(MOST);
        uint32_t start = i % 3 ? (uint32_t)next_random() : 0, expected = scalar->crc32c(start, data, n);
        for (int at_end = 0; at_end < 2; at_end++) {
            buffer b = take_copy(data, n, at_end);
            check(k->crc32c(start, b.p, n) == expected, "differs");
            size_t cut = below((uint32_t)n + 1);
            check(k->crc32c(k->crc32c(start, b.p, cut), b.p + cut, n - cut) == expected, "differs in two parts");
            give(b);
        }
    }
    memset(data, 0, MOST);
    for (size_t n = 0; n < MOST; n += 331) check(k->crc32c(0, data, n) == scalar->crc32c(0, data, n), "differs on zeros");
    end_line();
}

/* ---- histogram ---- */

static void test_histogram(unsigned isa) {
    const wp_kernels *scalar = wp_kernels_of(WP_ISA_SCALAR), *k = wp_kernels_of(isa);
    begin_line(isa, "histogram");
    enum { MOST = 100000 };
    static uint8_t data[MOST];
    for (unsigned kind = 0; kind < 7; kind++) {
        for (size_t i = 0; i < MOST; i++) { /* random; a bell; constant; runs; bells with rare others, at both ends too */
            data[i] = (uint8_t)(kind == 0 ? below(256) : kind == 1 ? 110 + below(4) + below(5) + below(6) : kind == 2 ? 255 : i / 700);
            if (kind >= 4) data[i] = (uint8_t)(below(300) == 0 ? below(256) : (kind == 4 ? 110 : kind == 5 ? 0 : 241) + below(8) + below(8));
        }
        for (size_t i = 0; i < 400; i++) {
            size_t n = i < 300 ? i : below(MOST);
            buffer b = take_copy(data, n, i & 1);
            uint32_t expected[256], counts[256];
            fill_random((uint8_t *)counts, sizeof counts);
            scalar->histogram(b.p, n, expected);
            k->histogram(b.p, n, counts);
            check(memcmp(counts, expected, sizeof counts) == 0, "differs");
            give(b);
        }
    }
    end_line();
}

/* ---- split and merge ---- */

static const size_t block_counts[] = {0, 1, 2, 3, 4, 5, 33};

/* Everything a split gives, and a merge takes. */
typedef struct {
    size_t n_planes;
    buffer planes[WP_MAX_PLANES], widths, bits;
    uint8_t *plane_pointers[WP_MAX_PLANES];
} parts;

static parts take_parts(const wp_layout *l, size_t n_blocks, int at_end) {
    parts s = {.n_planes = l->n_planes};
    for (size_t p = 0; p < s.n_planes; p++) {
        s.planes[p] = take(n_blocks * WP_BLOCK, at_end);
        s.plane_pointers[p] = s.planes[p].p;
    }
    s.widths = take(l->raw_bits ? n_blocks : 0, at_end);
    s.bits = take(n_blocks * wp_block_bytes(l->raw_bits, WP_BLOCK), at_end);
    return s;
}
static void give_parts(parts s) {
    for (size_t p = 0; p < s.n_planes; p++) give(s.planes[p]);
    give(s.widths);
    give(s.bits);
}

/* Elements of a block, by kind: random; zeros; low bits zero from a random one on; one bit set in all of the block. */
static void make_elements(unsigned kind, const wp_layout *l, size_t n_blocks, uint8_t *elems) {
    size_t bytes = l->elem_bytes, block_bytes = bytes * WP_BLOCK;
    fill_random(elems, n_blocks * block_bytes);
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t *p = elems + b * block_bytes;
        unsigned cut = below((uint32_t)(8 * bytes + 1));
        if (kind == 1 || kind == 3) memset(p, 0, block_bytes);
        if (kind == 2)
            for (size_t i = 0; i < block_bytes; i++) {
                unsigned bit = (unsigned)(i % bytes) * 8;
                p[i] &= (uint8_t)(cut >= bit + 8 ? 0 : cut <= bit ? 0xff : 0xff << (cut - bit));
            }
        if (kind == 3) p[below((uint32_t)block_bytes)] = (uint8_t)(1u << below(8));
    }
}

static void test_split(unsigned isa, unsigned layout) {
    const wp_kernels *scalar = wp_kernels_of(WP_ISA_SCALAR), *k = wp_kernels_of(isa);
    const wp_layout *l = wp_layout_of(layout);
    char name[32];
    snprintf(name, sizeof name, "split layout %u", layout);
    begin_line(isa, name);
    for (unsigned kind = 0; kind < 4; kind++)
        for (size_t c = 0; c < 2 * sizeof block_counts / sizeof *block_counts; c++) {
            int at_end = c & 1;
            size_t n_blocks = block_counts[c / 2], n = n_blocks * WP_BLOCK;
            buffer elems = take(n * l->elem_bytes, at_end), back = take(n * l->elem_bytes, at_end);
            make_elements(kind, l, n_blocks, elems.p);
            parts expected = take_parts(l, n_blocks, at_end), got = take_parts(l, n_blocks, at_end);
            scalar->split[layout](elems.p, n_blocks, expected.plane_pointers, expected.widths.p, expected.bits.p);
            k->split[layout](elems.p, n_blocks, got.plane_pointers, got.widths.p, got.bits.p);
            for (size_t p = 0; p < l->n_planes; p++) check(same(got.planes[p].p, expected.planes[p].p, n), "plane differs");
            check(same(got.widths.p, expected.widths.p, l->raw_bits ? n_blocks : 0), "widths differ");
            check(same(got.bits.p, expected.bits.p, n_blocks * wp_block_bytes(l->raw_bits, WP_BLOCK)), "bits differ");
            k->merge[layout]((const uint8_t *const *)got.plane_pointers, got.bits.p, n_blocks, back.p);
            check(same(back.p, elems.p, n * l->elem_bytes), "merge does not restore");
            give_parts(expected);
            give_parts(got);
            give(elems);
            give(back);
        }
    end_line();
}

static void test_merge(unsigned isa, unsigned layout) {
    const wp_kernels *scalar = wp_kernels_of(WP_ISA_SCALAR), *k = wp_kernels_of(isa);
    const wp_layout *l = wp_layout_of(layout);
    char name[32];
    snprintf(name, sizeof name, "merge layout %u", layout);
    begin_line(isa, name);
    for (size_t c = 0; c < 8 * sizeof block_counts / sizeof *block_counts; c++) {
        int at_end = c & 1;
        size_t n_blocks = block_counts[c / 8], bytes = n_blocks * WP_BLOCK * l->elem_bytes;
        parts in = take_parts(l, n_blocks, at_end);
        /* Also symbols that are too wide for their field: a caller must reject them, and until then all ISAs give the same. */
        for (size_t p = 0; p < l->n_planes; p++) {
            fill_random(in.planes[p].p, n_blocks * WP_BLOCK);
            if (c & 2)
                for (size_t i = 0; i < n_blocks * WP_BLOCK; i++) in.planes[p].p[i] &= (uint8_t)((1u << l->plane_bits[p]) - 1);
        }
        fill_random(in.bits.p, n_blocks * wp_block_bytes(l->raw_bits, WP_BLOCK));
        buffer expected = take(bytes, at_end), got = take(bytes, at_end);
        scalar->merge[layout]((const uint8_t *const *)in.plane_pointers, in.bits.p, n_blocks, expected.p);
        k->merge[layout]((const uint8_t *const *)in.plane_pointers, in.bits.p, n_blocks, got.p);
        check(same(got.p, expected.p, bytes), "differs");
        give_parts(in);
        give(expected);
        give(got);
    }
    end_line();
}

/* ---- rANS ---- */

typedef struct {
    unsigned n_symbols, n_ranks;
    uint8_t symbols[16];
    unsigned freqs[17], starts[17];
} book;

/* `shape`: 0 even shares, 1 random cuts, 2 one rank takes what the others leave. */
static book make_book(unsigned n_symbols, int escape, unsigned shape) {
    book b = {.n_symbols = n_symbols, .n_ranks = n_symbols + (escape ? 1u : 0u)};
    uint8_t seen[256] = {0};
    unsigned first = below(200), window = below(2) ? 256 : 40;
    for (unsigned r = 0; r < n_symbols;) {
        uint8_t s = (uint8_t)(first + below(window));
        if (!seen[s]) {
            seen[s] = 1;
            b.symbols[r++] = s;
        }
    }
    unsigned left = 256 - b.n_ranks, big = below(b.n_ranks);
    for (unsigned r = 0; r < b.n_ranks; r++) b.freqs[r] = 1;
    while (left) {
        unsigned r = shape == 0 ? left % b.n_ranks : shape == 1 ? below(b.n_ranks) : big;
        unsigned share = shape == 0 ? 1 : shape == 1 ? 1 + below(left) : left;
        if (b.freqs[r] + share > 255) share = 255 - b.freqs[r];
        if (shape == 2 && share == 0) {
            big = (big + 1) % b.n_ranks;
            continue;
        }
        b.freqs[r] += share;
        left -= share;
    }
    for (unsigned r = 1; r <= b.n_ranks && r <= 16; r++) b.starts[r] = b.starts[r - 1] + b.freqs[r - 1];
    return b;
}

static wp_rans_encoder make_encoder(const book *b, uint8_t *renorm, uint8_t *literals) {
    static wp_rans_encoder_table table; /* one encoder at a time */
    wp_rans_book made = {(uint8_t)b->n_symbols, b->n_ranks > b->n_symbols ? (uint8_t)b->freqs[b->n_symbols] : 0, {0}, {0}};
    for (unsigned r = 0; r < b->n_symbols; r++) {
        made.symbols[r] = b->symbols[r];
        made.freqs[r] = (uint8_t)b->freqs[r];
    }
    wp_rans_encoder_table_of(&made, &table);
    wp_rans_encoder e;
    memset(&e, 0, sizeof e);
    for (int l = 0; l < WP_BLOCK; l++) e.x[l] = 256;
    e.renorm = renorm;
    e.literals = literals;
    e.table = &table;
    return e;
}

static void fill_decoder(wp_rans_decoder *d, const book *b, const uint16_t *x, const uint8_t *renorm, size_t n_renorm, const uint8_t *literals,
                         size_t n_literals) {
    memset(d, 0, sizeof *d);
    memcpy(d->x, x, sizeof d->x);
    d->renorm = renorm;
    d->renorm_end = renorm + n_renorm;
    d->literals = literals;
    d->literals_end = literals + n_literals;
    wp_rans_table *t = &d->tables[0];
    d->table = t;
    t->n_symbols = (uint8_t)b->n_symbols;
    t->has_escape = b->n_ranks > b->n_symbols;
    memset(t->start, 255, 16);
    for (unsigned r = 0; r < b->n_ranks; r++) {
        t->freq[r] = (uint8_t)b->freqs[r];
        t->start[r] = (uint8_t)b->starts[r];
        t->symbol[r] = r < b->n_symbols ? b->symbols[r] : 0;
    }
    wp_rans_complete_table(t);
}

/* `kind`: 0 as the book expects, 1 one symbol only, 2 many escapes (where there are any), 3 all coded symbols equally. */
static void make_symbols(const book *b, unsigned kind, uint8_t *symbols, size_t n) {
    unsigned one = below(b->n_ranks);
    for (size_t i = 0; i < n; i++) {
        unsigned r = 0, slot = below(256);
        while (r + 1 < b->n_ranks && slot >= b->starts[r + 1]) r++;
        if (kind == 1) r = one;
        if (kind == 2 && below(10) < 9) r = b->n_ranks - 1;
        if (kind == 3) r = below(b->n_ranks);
        uint8_t s;
        if (r < b->n_symbols) s = b->symbols[r];
        else
            for (int coded = 1; coded;) {
                s = (uint8_t)below(256);
                coded = 0;
                for (unsigned j = 0; j < b->n_symbols; j++) coded |= b->symbols[j] == s;
            }
        symbols[i] = s;
    }
}

enum { MOST_GROUPS = 40, MOST_SYMBOLS = MOST_GROUPS * WP_BLOCK };
static const size_t group_counts[] = {0, 1, 2, 3, 5, 9, MOST_GROUPS};

/* A stream as the scalar encoder makes it. */
typedef struct {
    book b;
    size_t n_groups, n_renorm, n_literals;
    uint16_t x[WP_BLOCK];
    uint8_t symbols[MOST_SYMBOLS], renorm[MOST_SYMBOLS], literals[MOST_SYMBOLS];
} stream;

/* The cases 0 .. N_STREAMS - 1: every count of symbols, with and without escape, every shape, every kind of data. */
enum { N_STREAMS = 16 * 2 * 3 * 4 };
static void make_stream(stream *s, unsigned i, size_t n_groups) {
    unsigned n_symbols = 1 + i % 16;
    int escape = n_symbols == 1 || (n_symbols < 16 && i / 16 % 2);
    s->b = make_book(n_symbols, escape, i / 32 % 3);
    s->n_groups = n_groups;
    make_symbols(&s->b, i / 96 % 4, s->symbols, n_groups * WP_BLOCK);
    static uint8_t renorm[MOST_SYMBOLS + 64], literals[MOST_SYMBOLS + 64];
    wp_rans_encoder e = make_encoder(&s->b, renorm + sizeof renorm, literals + sizeof literals);
    wp_kernels_of(WP_ISA_SCALAR)->rans_encode(&e, s->symbols, n_groups);
    s->n_renorm = (size_t)(renorm + sizeof renorm - e.renorm);
    s->n_literals = (size_t)(literals + sizeof literals - e.literals);
    memcpy(s->renorm, e.renorm, s->n_renorm);
    memcpy(s->literals, e.literals, s->n_literals);
    memcpy(s->x, e.x, sizeof s->x);
}

static void test_encode(unsigned isa) {
    static stream s;
    begin_line(isa, "rans_encode");
    for (unsigned i = 0; i < 2 * N_STREAMS; i++) {
        int at_end = i >= N_STREAMS;
        size_t n_groups = group_counts[below(sizeof group_counts / sizeof *group_counts)], n = n_groups * WP_BLOCK;
        make_stream(&s, i % N_STREAMS, n_groups);
        /* The pointers begin at the end of room for one byte a symbol, with the 64 bytes below that the contract grants. At the beginning of a map:
         * for what is really written, so that byte 65 below is out of bounds. */
        size_t room = at_end ? n : s.n_renorm, literal_room = at_end ? n : s.n_literals;
        buffer symbols = take_copy(s.symbols, n, at_end), renorm = take(64 + room, at_end), literals = take(64 + literal_room, at_end);
        wp_rans_encoder e = make_encoder(&s.b, renorm.p + 64 + room, literals.p + 64 + literal_room);
        size_t first = n_groups ? below((uint32_t)n_groups + 1) : 0; /* in two calls */
        wp_kernels_of(isa)->rans_encode(&e, symbols.p + first * WP_BLOCK, n_groups - first);
        wp_kernels_of(isa)->rans_encode(&e, symbols.p, first);
        check((size_t)(renorm.p + 64 + room - e.renorm) == s.n_renorm && same(e.renorm, s.renorm, s.n_renorm), "renorm differs");
        check((size_t)(literals.p + 64 + literal_room - e.literals) == s.n_literals && same(e.literals, s.literals, s.n_literals), "literals differ");
        check(memcmp(e.x, s.x, sizeof s.x) == 0, "states differ");
        give(symbols);
        give(renorm);
        give(literals);
    }
    end_line();
}

/* Decodes as much as there is with scalar and with `isa`, in the same pieces, and compares all that they leave behind. Returns the last status. */
static wp_status compare_decoders(unsigned isa, const book *b, const uint16_t *x, const uint8_t *renorm_bytes, size_t n_renorm, const uint8_t *literal_bytes,
                                  size_t n_literals, size_t n_groups, uint8_t *symbols) {
    static wp_rans_decoder d[2];
    int at_end = (int)below(2);
    buffer renorm = take_copy(renorm_bytes, n_renorm, at_end), literals = take_copy(literal_bytes, n_literals, at_end);
    for (int i = 0; i < 2; i++) fill_decoder(&d[i], b, x, renorm.p, n_renorm, literals.p, n_literals);
    wp_status status = WP_OK;
    for (size_t done = 0, calls = 0; status == WP_OK && (done < n_groups || calls == 0); calls++) {
        size_t m = below(3) ? n_groups - done : below((uint32_t)(n_groups - done) + 1);
        buffer expected = take(m * WP_BLOCK, at_end), got = take(m * WP_BLOCK, at_end);
        status = wp_kernels_of(WP_ISA_SCALAR)->rans_decode(&d[0], expected.p, m);
        check(wp_kernels_of(isa)->rans_decode(&d[1], got.p, m) == status, "status differs");
        if (status == WP_OK) {
            check(same(got.p, expected.p, m * WP_BLOCK), "symbols differ");
            check(memcmp(d[0].x, d[1].x, sizeof d[0].x) == 0, "states differ");
            check(d[0].renorm_in_tail == d[1].renorm_in_tail && d[0].literals_in_tail == d[1].literals_in_tail, "one is in a tail");
            check(d[0].renorm_in_tail
                      ? d[0].renorm - d[0].renorm_tail == d[1].renorm - d[1].renorm_tail && d[0].renorm_end - d[0].renorm == d[1].renorm_end - d[1].renorm
                      : d[0].renorm == d[1].renorm,
                  "renorm is elsewhere");
            check(d[0].literals_in_tail ? d[0].literals - d[0].literals_tail == d[1].literals - d[1].literals_tail &&
                                              d[0].literals_end - d[0].literals == d[1].literals_end - d[1].literals
                                        : d[0].literals == d[1].literals,
                  "literals are elsewhere");
            if (m && symbols) memcpy(symbols + done * WP_BLOCK, got.p, m * WP_BLOCK);
        }
        done += m;
        give(expected);
        give(got);
    }
    give(renorm);
    give(literals);
    return status;
}

static void test_decode(unsigned isa) {
    static stream s;
    static uint8_t symbols[MOST_SYMBOLS];
    begin_line(isa, "rans_decode");
    for (unsigned i = 0; i < N_STREAMS; i++) {
        make_stream(&s, i, group_counts[below(sizeof group_counts / sizeof *group_counts)]);
        check(compare_decoders(isa, &s.b, s.x, s.renorm, s.n_renorm, s.literals, s.n_literals, s.n_groups, symbols) == WP_OK, "fails");
        check(same(symbols, s.symbols, s.n_groups * WP_BLOCK), "does not restore");
    }
    end_line();

    begin_line(isa, "rans_decode truncated");
    for (unsigned i = 0; i < N_STREAMS; i += 5) {
        make_stream(&s, i, 1 + below(9));
        size_t stride = i % 20 ? 1 + below(40) : 1;
        for (size_t t = 1; t <= s.n_renorm; t += stride)
            check(compare_decoders(isa, &s.b, s.x, s.renorm, s.n_renorm - t, s.literals, s.n_literals, s.n_groups, NULL) == WP_TRUNCATED, "missed");
        for (size_t t = 1; t <= s.n_literals; t += stride)
            check(compare_decoders(isa, &s.b, s.x, s.renorm, s.n_renorm, s.literals, s.n_literals - t, s.n_groups, NULL) == WP_TRUNCATED, "missed");
    }
    end_line();

    begin_line(isa, "rans_decode hostile");
    for (unsigned i = 0; i < 4 * N_STREAMS; i++) {
        book b = make_book(1 + i % 16, i % 16 < 15 && (i % 16 == 0 || i / 16 % 2), i / 32 % 3);
        uint16_t x[WP_BLOCK];
        fill_random((uint8_t *)x, sizeof x);
        for (int l = 0; l < WP_BLOCK; l++) x[l] = i & 1 && l < 100 ? (uint16_t)(256 + below(8)) : x[l] < 256 ? (uint16_t)(x[l] + 256) : x[l];
        size_t n_renorm = below(3) ? below(MOST_SYMBOLS) : below(600), n_literals = below(3) ? below(MOST_SYMBOLS) : below(300);
        fill_random(s.renorm, n_renorm);
        fill_random(s.literals, n_literals);
        compare_decoders(isa, &b, x, s.renorm, n_renorm, s.literals, n_literals, 1 + below(MOST_GROUPS), NULL);
    }
    end_line();
}

/* What one ISA encodes, each other one decodes: to the same symbols, with all states at 256 and both streams used up. */
static void test_pair(unsigned encoder, unsigned decoder) {
    static stream s;
    static wp_rans_decoder d;
    static uint8_t renorm[MOST_SYMBOLS + 64], literals[MOST_SYMBOLS + 64], symbols[MOST_SYMBOLS];
    char name[32];
    snprintf(name, sizeof name, "encodes for %s", wp_isa_name(decoder));
    begin_line(encoder, name);
    for (unsigned i = 0; i < N_STREAMS; i++) {
        make_stream(&s, i, MOST_GROUPS);
        wp_rans_encoder e = make_encoder(&s.b, renorm + sizeof renorm, literals + sizeof literals);
        wp_kernels_of(encoder)->rans_encode(&e, s.symbols, s.n_groups);
        fill_decoder(&d, &s.b, e.x, e.renorm, (size_t)(renorm + sizeof renorm - e.renorm), e.literals, (size_t)(literals + sizeof literals - e.literals));
        check(wp_kernels_of(decoder)->rans_decode(&d, symbols, s.n_groups) == WP_OK, "fails");
        check(memcmp(symbols, s.symbols, sizeof symbols) == 0, "symbols differ");
        unsigned differ = 0;
        for (int l = 0; l < WP_BLOCK; l++) differ |= d.x[l] ^ 256u;
        check(!differ && d.renorm == d.renorm_end && d.literals == d.literals_end, "not at its end");
    }
    end_line();
}

/* ---- differences ---- */

/* As difference.c fills it, for differences of `bits` bits; every second frequent one is none. */
static void fill_class_table(wp_class_table *t, unsigned bits) {
    t->entry[0] = 0;
    t->entry[1] = 1 | 1 << 8;
    for (unsigned c = 2; c < WP_FIRST_FREQUENT; c++) t->entry[c] = c < 2 * bits - 1 ? c / 2 | (uint64_t)(2u | (c & 1)) << (c / 2 - 1) << 8 : WP_NO_CLASS;
    for (unsigned c = WP_FIRST_FREQUENT; c < WP_N_CLASSES; c++) t->entry[c] = c % 2 ? WP_NO_CLASS : (next_random() >> 32 & wp_word_mask(bits)) << 8;
    for (unsigned c = 0; c < WP_N_CLASSES; c++) {
        t->extra[c] = t->entry[c] == WP_NO_CLASS ? 0x80 : (uint8_t)t->entry[c];
        for (unsigned i = 0; i < 4; i++) t->lead[i][c] = (uint8_t)(t->entry[c] >> (8 + 8 * i));
    }
}

static void test_differences(unsigned isa) {
    const wp_kernels *scalar = wp_kernels_of(WP_ISA_SCALAR), *k = wp_kernels_of(isa);
    begin_line(isa, "differences");
    for (unsigned bytes = 1; bytes <= 4; bytes *= 2)
        for (unsigned i = 0; i < 8 * WP_BLOCK; i++) {
            const unsigned kind = i / WP_BLOCK, start = below(8), v = 8 * bytes - (kind & 1 ? below(8 * bytes - 1) : 0);
            const size_t m = 1 + i % WP_BLOCK;
            wp_class_table table;
            fill_class_table(&table, v);
            buffer classes = take(m, (int)(i & 1));
            size_t n_bits = start;
            for (size_t j = 0; j < m; j++) { /* all lengths; rare ones; none; the longest; frequent ones; small ones, of up to 8 bits and of up to 16 */
                unsigned c = kind == 1   ? (below(9) ? 0 : below(2 * v - 1))
                             : kind == 2 ? 0
                             : kind == 3 ? 2 * v - 2
                             : kind == 4 ? WP_FIRST_FREQUENT + 2 * below(32)
                             : kind == 5 ? below(4)
                             : kind == 6 ? below(18)
                             : kind == 7 ? below(34)
                                         : below(2 * v - 1);
                if (c < WP_FIRST_FREQUENT && c >= 2 * v - 1) c = below(2 * v - 1);
                classes.p[j] = (uint8_t)c;
                n_bits += table.entry[c] & 255;
            }
            /* 16 bytes behind the last bit, and not one more. */
            buffer bits = take((n_bits + 7) / 8 + 16, 1);
            fill_random(bits.p, (n_bits + 7) / 8 + 16);
            wp_differences expected, got;
            memset(&expected, 0x11, sizeof expected);
            memset(&got, 0x22, sizeof got);
            check(scalar->differences(&table, classes.p, m, bits.p, start, bytes, &expected) == n_bits, "scalar ends elsewhere");
            check(k->differences(&table, classes.p, m, bits.p, start, bytes, &got) == n_bits, "ends elsewhere");
            check(memcmp(&expected, &got, m * (bytes == 2 ? 2 : 4)) == 0, "differs");
            /* Classes that must not be, anywhere; what is read then is no more than all others may have. */
            give(bits);
            bits = take(WP_BLOCK * 4 + 16, 1);
            for (unsigned bad = 2 * v - 1; bad < WP_N_CLASSES; bad += 1 + below(20)) {
                if (table.entry[bad] != WP_NO_CLASS) continue;
                const size_t at = below((uint32_t)m);
                const uint8_t before = classes.p[at];
                classes.p[at] = (uint8_t)bad;
                check(scalar->differences(&table, classes.p, m, bits.p, start, bytes, &expected) == UINT64_MAX, "scalar takes what is no class");
                check(k->differences(&table, classes.p, m, bits.p, start, bytes, &got) == UINT64_MAX, "takes what is no class");
                classes.p[at] = before;
            }
            give(classes);
            give(bits);
        }
    end_line();

    begin_line(isa, "apply");
    for (unsigned bytes = 1; bytes <= 4; bytes *= 2)
        for (unsigned shift = 0; shift + 2 <= 8 * bytes; shift++)
            for (size_t m = 1; m <= WP_BLOCK; m += shift ? 1 + below(40) : 1)
                for (int is_float = 0; is_float < 2; is_float++) {
                    wp_differences d;
                    fill_random((uint8_t *)&d, sizeof d);
                    buffer base = take(m * bytes, is_float), expected = take(m * bytes, is_float), got = take(m * bytes, is_float);
                    fill_random(base.p, m * bytes);
                    scalar->apply(base.p, bytes, shift, is_float, &d, m, expected.p);
                    k->apply(base.p, bytes, shift, is_float, &d, m, got.p);
                    check(same(got.p, expected.p, m * bytes), "differs");
                    give(base);
                    give(expected);
                    give(got);
                }
    end_line();

    begin_line(isa, "exponents");
    for (size_t m = 1; m < 400; m++)
        for (unsigned bytes = 1; bytes <= 4; bytes *= 2) {
            const unsigned shift = below(8 * bytes), mask = (1u << below(9)) - 1;
            buffer base = take(m * bytes, (int)(m & 1)), expected = take(m, (int)(m & 1)), got = take(m, (int)(m & 1));
            fill_random(base.p, m * bytes);
            scalar->exponents(base.p, m, bytes, shift, mask, expected.p);
            k->exponents(base.p, m, bytes, shift, mask, got.p);
            check(same(got.p, expected.p, m), "differs");
            give(base);
            give(expected);
            give(got);
        }
    end_line();
}

/* A stream of section 8.8 of `n` classes in blocks of 128 of random rates; `cut` bytes less of renormalisation. What a rank is, `exponents` and `rates` say. */
typedef struct {
    uint8_t bytes[40000], classes[MOST_SYMBOLS], exponents[MOST_SYMBOLS], rates[MOST_GROUPS];
    size_t n, n_bytes;
} conditional_stream;

static void make_conditional(conditional_stream *s, unsigned i) {
    static uint8_t cells[MOST_SYMBOLS], scratch[2 * MOST_SYMBOLS + 4096];
    const unsigned n_books = 1 + i % 16, n_rates = 1 + below(15);
    const uint8_t base_exponent = (uint8_t)below(256);
    wp_rans_book books[WP_MAX_TABLES];
    book shapes[WP_MAX_TABLES];
    uint8_t map[256];
    memset(books, 0, sizeof books);
    for (unsigned b = 0; b < n_books; b++) {
        const unsigned k = 1 + below(16);
        shapes[b] = make_book(k, k == 1 || (k < 16 && below(2)), below(3));
        uint8_t seen[128] = {0};
        for (unsigned r = 0; r < k;) {
            const unsigned c = below(128);
            if (!seen[c]) {
                seen[c] = 1;
                shapes[b].symbols[r++] = (uint8_t)c;
            }
        }
        books[b].n_symbols = (uint8_t)k;
        books[b].escape_freq = shapes[b].n_ranks > k ? (uint8_t)shapes[b].freqs[k] : 0;
        for (unsigned r = 0; r < k; r++) {
            books[b].symbols[r] = shapes[b].symbols[r];
            books[b].freqs[r] = (uint8_t)shapes[b].freqs[r];
        }
    }
    for (unsigned c = 0; c < 256; c++) map[c] = (uint8_t)below(n_books);
    s->n = i % 3 == 0 ? 1 + below(WP_BLOCK) : 1 + below(MOST_SYMBOLS);
    for (size_t j = 0; j < s->n; j++) {
        if (j % WP_BLOCK == 0) s->rates[j / WP_BLOCK] = (uint8_t)(1 + below(n_rates));
        s->exponents[j] = below(3) ? (uint8_t)(base_exponent + below(18)) : (uint8_t)below(256);
        cells[j] = (uint8_t)(s->rates[j / WP_BLOCK] * WP_N_CONTEXTS + wp_context_of(s->exponents[j], base_exponent));
        const book *b = &shapes[map[cells[j]]];
        const unsigned r = i & 16 ? below(b->n_ranks) : below(3) ? 0 : below(b->n_ranks);
        s->classes[j] = r < b->n_symbols ? b->symbols[r] : (uint8_t)below(128);
    }
    check(wp_conditional_encode(WP_ISA_SCALAR, books, n_books, base_exponent, n_rates, map, cells, s->classes, s->n, scratch, s->bytes, sizeof s->bytes,
                                &s->n_bytes) == WP_OK,
          "can't be encoded");
}

static wp_status compare_conditional(unsigned isa, const conditional_stream *s, const uint8_t *bytes, size_t n_bytes, int is_whole) {
    static wp_conditional_decoder d[2];
    const int at_end = (int)below(2);
    buffer stream = take_copy(bytes, n_bytes, at_end);
    wp_status status = wp_conditional_open(&d[0], stream.p, n_bytes);
    check(wp_conditional_open(&d[1], stream.p, n_bytes) == status, "heads differ");
    for (size_t done = 0; status == WP_OK && done < s->n; done += WP_BLOCK) {
        const size_t m = s->n - done < WP_BLOCK ? s->n - done : WP_BLOCK;
        buffer exponents = take_copy(s->exponents + done, m, at_end), expected = take(m, at_end), got = take(m, at_end);
        status = wp_conditional_next(wp_kernels_of(WP_ISA_SCALAR), &d[0], s->rates[done / WP_BLOCK], exponents.p, expected.p, m);
        check(wp_conditional_next(wp_kernels_of(isa), &d[1], s->rates[done / WP_BLOCK], exponents.p, got.p, m) == status, "status differs");
        if (status == WP_OK) {
            check(same(got.p, expected.p, m) && memcmp(d[0].rans.x, d[1].rans.x, sizeof d[0].rans.x) == 0, "differs");
            if (is_whole) check(same(got.p, s->classes + done, m), "does not restore");
        }
        give(exponents);
        give(expected);
        give(got);
    }
    if (status == WP_OK) {
        status = wp_conditional_close(&d[0]);
        check(wp_conditional_close(&d[1]) == status, "ends differ");
    }
    give(stream);
    return status;
}

static void test_conditional(unsigned isa) {
    static conditional_stream s;
    static uint8_t damaged[sizeof s.bytes];
    begin_line(isa, "conditional");
    for (unsigned i = 0; i < 320; i++) {
        make_conditional(&s, i);
        check(compare_conditional(isa, &s, s.bytes, s.n_bytes, 1) == WP_OK, "fails");
        for (unsigned j = 0; j < 6; j++) { /* bytes of the states and of what follows, cut or other ones */
            memcpy(damaged, s.bytes, s.n_bytes);
            size_t n_bytes = s.n_bytes;
            if (j == 0) n_bytes -= 1 + below((uint32_t)n_bytes);
            else
                for (unsigned c = 0; c < j; c++) damaged[below((uint32_t)n_bytes)] = (uint8_t)below(256);
            compare_conditional(isa, &s, damaged, n_bytes, 0);
        }
        /* Fewer bytes of renormalisation than states need, or of literals. */
        size_t head = 3 + 8u * s.bytes[2];
        for (unsigned b = 0; b <= s.bytes[0]; b++) head += 2 + 2u * s.bytes[head];
        const uint32_t n_renorm = wp_load32(s.bytes + head + 2 * WP_BLOCK);
        head += 2 * WP_BLOCK + 4;
        const size_t n_literals = s.n_bytes - head - n_renorm;
        for (unsigned j = 0; j < 4; j++) {
            const size_t cut = j & 1 ? 1 + below(20) : 1;
            if (n_renorm >= cut) {
                memcpy(damaged, s.bytes, s.n_bytes);
                wp_store32(damaged + head - 4, n_renorm - (uint32_t)cut);
                memmove(damaged + head + n_renorm - cut, damaged + head + n_renorm, n_literals);
                check(compare_conditional(isa, &s, damaged, s.n_bytes - cut, 0) == WP_TRUNCATED, "missing renormalisation is missed");
            }
            if (n_literals >= cut) check(compare_conditional(isa, &s, s.bytes, s.n_bytes - cut, 0) == WP_TRUNCATED, "missing literals are missed");
        }
    }
    end_line();
}

/* Differences by themselves say the same: added to the base they give the elements, by the kernel that the decoder uses. */
static void check_modular(unsigned isa, unsigned layout, unsigned shift, buffer elems, buffer base, size_t n, int at_end) {
    const wp_layout *l = wp_layout_of(layout);
    buffer d = take(4 * n, at_end), out = take(n * l->elem_bytes, at_end);
    uint32_t all = 0;
    check(wp_modular_differences(layout, shift, elems.p, base.p, n, (uint32_t *)(void *)d.p) == WP_OK, "no modular differences");
    for (size_t begin = 0; begin < n; begin += WP_BLOCK) {
        const size_t m = n - begin < WP_BLOCK ? n - begin : WP_BLOCK;
        wp_differences block;
        for (size_t i = 0; i < m; i++) {
            const uint32_t one = wp_load32(d.p + 4 * (begin + i));
            all |= one;
            if (l->elem_bytes == 2) block.of_2[i] = (uint16_t)one;
            else block.of_4[i] = one;
        }
        wp_kernels_of(isa)->apply(base.p + begin * l->elem_bytes, l->elem_bytes, shift, wp_is_float(l), &block, m, out.p + begin * l->elem_bytes);
    }
    check(all <= wp_word_mask(8 * l->elem_bytes - shift), "a modular difference has too many bits");
    check(same(out.p, elems.p, n * l->elem_bytes), "modular differences give other elements");
    give(d);
    give(out);
}

/* Whole chunks of differences: what each ISA codes is the same, and each decodes it; nothing outside the buffers. */
static void test_difference_chunks(unsigned isa, unsigned layout) {
    const size_t bytes = wp_layout_of(layout)->elem_bytes;
    char name[40];
    snprintf(name, sizeof name, "difference layout %u", layout);
    begin_line(isa, name);
    buffer workspace = take(wp_workspace_bytes(), 1);
    for (size_t n = 1; n < 1500; n += n < 300 ? 1 : 97)
        for (unsigned kind = 0; kind < 3; kind++) {
            const int at_end = (int)(n & 1);
            const unsigned shift = n % 3 ? 0 : below(8 * (unsigned)bytes - 1), n_frequent = kind == 1 ? below(65) : 0;
            buffer elems = take(n * bytes, at_end), base = take(n * bytes, at_end), out = take(n * bytes, at_end);
            uint8_t frequent[FREQUENT_BYTES] = {0};
            fill_random(base.p, n * bytes);
            for (size_t i = 0; i < n; i++) {
                const uint32_t step = kind == 2 ? (uint32_t)next_random() : i / WP_BLOCK % 2 ? 0 : below(7) - 3u;
                wp_store_word(elems.p, (unsigned)bytes, i, (wp_load_word(base.p, (unsigned)bytes, i) >> shift << shift) + (step << shift));
            }
            for (unsigned i = 0; i < n_frequent; i++) wp_store32(frequent + 4 * i, (i - 3u) & wp_word_mask(8 * (unsigned)bytes - shift));
            check_modular(isa, layout, shift, elems, base, n, at_end);
            coded_difference c, expected;
            const unsigned n_books = below(3) ? 1 + below(16) : 0;
            check(code_difference(WP_ISA_SCALAR, layout, shift, frequent, n_frequent, elems.p, base.p, n, 15, n_books, 100, &expected) == WP_OK,
                  "scalar fails");
            check(code_difference(isa, layout, shift, frequent, n_frequent, elems.p, base.p, n, 15, n_books, 100, &c) == WP_OK, "fails");
            check(same(c.scales, expected.scales, (n + WP_BLOCK - 1) / WP_BLOCK) && same(c.exponents, expected.exponents, n), "planes differ");
            buffer streams[3];
            for (int i = 0; i < 3; i++) {
                check(c.streams[i].n_bytes == expected.streams[i].n_bytes && same(c.streams[i].data, expected.streams[i].data, c.streams[i].n_bytes),
                      "streams differ");
                streams[i] = take_copy(c.streams[i].data, c.streams[i].n_bytes, at_end);
                c.streams[i].data = streams[i].p;
            }
            uint32_t crc;
            check(wp_decode_difference(isa, layout, shift, frequent, n_frequent, c.streams, base.p, n, 7, (wp_workspace *)workspace.p, out.p, &crc) == WP_OK,
                  "can't be decoded");
            check(same(out.p, elems.p, n * bytes), "decodes to other elements");
            if (c.streams[2].n_bytes) { /* extra bits that end early, on the page's edge */
                give(streams[2]);
                const size_t cut = 1 + below((uint32_t)c.streams[2].n_bytes);
                streams[2] = take_copy(expected.streams[2].data, c.streams[2].n_bytes -= cut, at_end);
                c.streams[2].data = streams[2].p;
                check(wp_decode_difference(isa, layout, shift, frequent, n_frequent, c.streams, base.p, n, 7, (wp_workspace *)workspace.p, out.p, &crc) ==
                          WP_TRUNCATED,
                      "missing bits are missed");
            }
            for (int i = 0; i < 3; i++) give(streams[i]);
            free_difference(&c);
            free_difference(&expected);
            give(elems);
            give(base);
            give(out);
        }
    give(workspace);
    end_line();
}

/* ---- products ---- */

static void put_float(uint8_t *p, unsigned type, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (type == WP_FLOAT_F32) memcpy(p, &bits, 4);
    else {
        const uint16_t half = (uint16_t)(bits >> 16 & 0x8000u) | (uint16_t)(((bits >> 23 & 255) - 112) << 10) | (uint16_t)(bits >> 13 & 0x3ffu);
        const uint16_t word = type == WP_FLOAT_BF16 ? (uint16_t)(bits >> 16) : value == 0 ? 0 : half;
        memcpy(p, &word, 2);
    }
}
static float small_integer(void) { return (float)below(17) - 8; }

/* Small integers, so that every order of additions has the same sum. */
static void test_dot(unsigned isa, unsigned type) {
    static const char *const names[] = {"dot bf16", "dot f16", "dot f32"};
    const wp_kernels *scalar = wp_kernels_of(WP_ISA_SCALAR), *k = wp_kernels_of(isa);
    const size_t bytes = type == WP_FLOAT_F32 ? 4 : 2;
    begin_line(isa, names[type]);
    for (unsigned i = 0; i < 600; i++) {
        const size_t n = i < 200 ? i : below(3000), batch = 1 + below(11), stride = n + below(9);
        const size_t x_bytes = 4 * ((batch - 1) * stride + n);
        buffer elems = take(n * bytes, (int)(i & 1)), x = take(x_bytes, (int)(i & 1));
        float sums[11], expected[11];
        for (size_t j = 0; j < n; j++) put_float(elems.p + j * bytes, type, small_integer());
        for (size_t j = 0; j < x_bytes; j += 4) put_float(x.p + j, WP_FLOAT_F32, small_integer());
        for (size_t b = 0; b < batch; b++) sums[b] = expected[b] = small_integer();
        k->dot[type](elems.p, n, (const float *)x.p, stride, batch, sums);
        scalar->dot[type](elems.p, n, (const float *)x.p, stride, batch, expected);
        check(memcmp(sums, expected, 4 * batch) == 0, "differs");
        give(elems);
        give(x);
    }
    /* Every value of 16 bits, in a vector and behind the last one: subnormals, infinities, NaNs. */
    for (uint32_t word = 0; type != WP_FLOAT_F32 && word < 65536; word++) {
        uint8_t elems[2 * 70] = {0};
        float x[70] = {0}, sum = 0, expected = 0;
        const size_t at = word % 70;
        const uint16_t half = (uint16_t)word;
        memcpy(elems + 2 * at, &half, 2);
        x[at] = 1;
        k->dot[type](elems, 70, x, 70, 1, &sum);
        scalar->dot[type](elems + 2 * at, 1, x + at, 1, 1, &expected);
        check(memcmp(&sum, &expected, 4) == 0 || (sum != sum && expected != expected), "a value differs");
    }
    end_line();
}

/* Chunks that begin and end inside rows, multiplied while they are decoded, and after; rows longer and shorter than a batch. */
static void test_products(unsigned isa) {
    enum { CHUNK = 4992, N_CHUNKS = 3, N = 2 * CHUNK + 77, MOST_ROWS = N / 5 + 2 };
    static const unsigned layouts[] = {WP_BF16, WP_F16, WP_F32_LEAD};
    static const size_t n_cols_of[] = {5, 128, 1000, 4096, 9000};
    static uint8_t elems[4 * N], coded[5 * N + 4096];
    static float x[3 * 9000], sums[3 * MOST_ROWS], expected[3 * MOST_ROWS];
    begin_line(isa, "products");
    for (unsigned type = 0; type < WP_N_FLOATS; type++) {
        const unsigned layout = layouts[type];
        const size_t bytes = wp_layout_of(layout)->elem_bytes;
        uint8_t *workspace = malloc(wp_encode_workspace_bytes(layout, CHUNK)), *decoder = malloc(wp_workspace_bytes());
        uint32_t sizes[N_CHUNKS], crcs[N_CHUNKS];
        size_t n_done = 0;
        int stopped = 0;
        wp_encoded_chunk last;
        for (size_t i = 0; i < N; i++) put_float(elems + i * bytes, type, small_integer());
        check(wp_encode_chunks(isa, layout, elems, N, CHUNK, 7, (wp_codecs){1, 1}, 1, workspace, coded, sizes, crcs, &n_done, &stopped, &last) == WP_OK &&
                  n_done == N_CHUNKS,
              "can't be encoded");
        int64_t offsets[N_CHUNKS + 1] = {1000};
        for (int i = 0; i < N_CHUNKS; i++) offsets[i + 1] = offsets[i] + sizes[i];
        for (size_t c = 0; c < sizeof n_cols_of / sizeof *n_cols_of; c++) {
            const size_t n_cols = n_cols_of[c], batch = 1 + c % 3;
            for (size_t i = 0; i < batch * n_cols; i++) x[i] = small_integer();
            memset(sums, 0, sizeof sums);
            memset(expected, 0, sizeof expected);
            wp_product product = {type, n_cols, batch, x, sums};
            size_t next = 0;
            check(wp_multiply_chunks(isa, layout, coded, (size_t)(offsets[N_CHUNKS] - 1000), offsets, crcs, N_CHUNKS, CHUNK, N, 7, &product,
                                     (wp_workspace *)decoder, &next) == WP_OK &&
                      next == N_CHUNKS,
                  "fails");
            product.sums = expected;
            check(wp_multiply(WP_ISA_SCALAR, &product, elems, N, 7 * CHUNK % n_cols) == WP_OK, "fails");
            check(memcmp(sums, expected, sizeof sums) == 0, "differs");
            product.batch = WP_MAX_BATCH + 1;
            check(wp_multiply(isa, &product, elems, N, 0) == WP_ARGUMENT, "too many rows");
            product = (wp_product){type == WP_FLOAT_F32 ? WP_FLOAT_BF16 : WP_FLOAT_F32, n_cols, 1, x, sums};
            next = 0;
            check(wp_multiply_chunks(isa, layout, coded, (size_t)(offsets[N_CHUNKS] - 1000), offsets, crcs, N_CHUNKS, CHUNK, N, 7, &product,
                                     (wp_workspace *)decoder, &next) == WP_ARGUMENT,
                  "elements of another size");
        }
        free(workspace);
        free(decoder);
    }
    end_line();
}

int main(void) {
    signal(SIGSEGV, on_crash);
    signal(SIGBUS, on_crash);
    for (unsigned isa = 1; isa < WP_N_ISAS; isa++) {
        if (!wp_isa_available(isa)) {
            printf("%s is not available here: skipped\n", wp_isa_name(isa));
            continue;
        }
        test_crc32c(isa);
        test_histogram(isa);
        test_encode(isa);
        test_decode(isa);
        for (unsigned layout = 1; layout < WP_N_LAYOUTS; layout++) {
            test_split(isa, layout);
            test_merge(isa, layout);
        }
        test_differences(isa);
        test_conditional(isa);
        for (unsigned type = 0; type < WP_N_FLOATS; type++) test_dot(isa, type);
        test_products(isa);
        for (unsigned layout = 1; layout < WP_N_LAYOUTS; layout++)
            if (wp_has_differences(wp_layout_of(layout))) test_difference_chunks(isa, layout);
    }
    for (unsigned a = 0; a < WP_N_ISAS; a++)
        for (unsigned b = 0; b < WP_N_ISAS; b++)
            if (wp_isa_available(a) && wp_isa_available(b)) test_pair(a, b);
    printf("%u passed, %u failed\n", n_passed, n_failed);
    return n_failed ? 1 : 0;
}
