/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. Chunks that cross machines: `exchange write ISA FILE` encodes every layout, many statistics and lengths with one ISA, alone and as differences
 * from a base, `exchange read ISA FILE` decodes such a file with another, compares, and encodes anew to the same bytes. Buffers stand flush with unmapped
 * pages. `exchange isas` lists what runs here. Both ends make the same elements from a fixed seed. Exit status 1 if anything differs. Run by scripts/neon.
 */
#define _GNU_SOURCE
#include "fenced.h"
#include "coded_difference.h"
#include "kernels.h"
#include "mem.h"

static const size_t far_lengths[] = {4095, 4096, 4097, 8191, 8193, 12289, 65535, 65536, 65537};
enum { N_FAR = sizeof far_lengths / sizeof *far_lengths, N_LENGTHS = 258 + N_FAR };

enum { NOISE, ZEROS, FEW, WEIGHTS, SHORT_WEIGHTS, RARE, N_KINDS };
static const char *const kinds[N_KINDS] = {"noise", "zeros", "few", "weights", "short weights", "rare"};

/* Elements as the floats of a layout have them: exponents that fall off geometrically below a top, random signs and mantissas. */
static uint64_t weight(const wp_layout *l, int zeros, unsigned row) {
    unsigned exponent_bits = 0, exponent;
    for (unsigned p = 0; p < l->n_planes; p++) exponent_bits += l->plane_bits[p];
    unsigned man = l->raw_bits ? l->raw_bits - 1 : 0;
    for (exponent = 0; exponent < 14 && below(3); exponent++) {}
    exponent += row; /* rows of their own scale */
    exponent = ((1u << exponent_bits) - 1) * 3 / 5 - (exponent < (1u << exponent_bits) / 4 ? exponent : 0);
    uint64_t raw = next_random() >> 1;
    if (zeros && man > 2) raw = raw >> (man - 2) << (man - 2);
    return (raw >> 62 & 1) << (man + exponent_bits) | (uint64_t)exponent << man | (raw & (((uint64_t)1 << man) - 1));
}

static void fill(uint8_t *p, const wp_layout *l, size_t n, int kind) {
    static const uint8_t few[] = {0, 1, 2, 0x3f, 0x80, 0xff};
    const size_t n_bytes = n * l->elem_bytes;
    if (kind == NOISE) fill_random(p, n_bytes);
    else if (kind == ZEROS) memset(p, 0, n_bytes);
    else if (kind == FEW)
        for (size_t i = 0; i < n_bytes; i++) p[i] = few[below(sizeof few)];
    else if (kind == RARE)
        for (size_t i = 0; i < n_bytes; i++) p[i] = below(40) ? (uint8_t)(100 + below(4)) : (uint8_t)below(256);
    else
        for (size_t i = 0; i < n; i++) {
            uint64_t v = l->raw_bits ? weight(l, kind == SHORT_WEIGHTS && i / 300 % 2, (unsigned)(i / 900 % 3)) : next_random();
            memcpy(p + i * l->elem_bytes, &v, l->elem_bytes);
        }
}

static wp_status encode(unsigned isa, unsigned layout, const uint8_t *elems, size_t n, uint32_t number, uint8_t *out, wp_encoded_chunk *chunk) {
    buffer workspace = take(wp_encode_workspace_bytes(layout, n), 1);
    wp_status status = wp_encode_chunk(isa, layout, elems, n, number, (wp_codecs){number % 2 ? WP_MAX_TABLES : 1, number / 2 % 2}, workspace.p, out, chunk);
    give(workspace);
    return status;
}

static int fails(const char *what, unsigned layout, size_t n, int kind) {
    printf("layout %u, %zu elements of %s: %s\n", layout, n, kinds[kind], what);
    return 1;
}

static int write_one(unsigned isa, FILE *f, unsigned layout, const uint8_t *elems, size_t n, int kind, uint32_t number) {
    buffer out = take(wp_encode_bound(layout, n), 1);
    wp_encoded_chunk chunk;
    int failed = encode(isa, layout, elems, n, number, out.p, &chunk) != WP_OK && fails("can't be encoded", layout, n, kind);
    uint32_t head[2] = {(uint32_t)chunk.n_bytes, chunk.crc};
    failed |= fwrite(head, sizeof head, 1, f) != 1 || fwrite(out.p, chunk.n_bytes, 1, f) != 1;
    give(out);
    return failed;
}

static int read_one(unsigned isa, FILE *f, unsigned layout, const uint8_t *elems, size_t n, int kind, uint32_t number) {
    const size_t n_bytes = n * wp_layout_of(layout)->elem_bytes;
    uint32_t head[2];
    if (fread(head, sizeof head, 1, f) != 1 || head[0] > wp_encode_bound(layout, n)) return fails("the file ends", layout, n, kind);
    buffer in = take(head[0], 1), decoded = take(n_bytes, 1), workspace = take(wp_workspace_bytes(), 1), again = take(wp_encode_bound(layout, n), 1);
    wp_encoded_chunk chunk;
    int failed = 0;
    if (fread(in.p, head[0], 1, f) != 1) failed = fails("the file ends", layout, n, kind);
    else if (wp_decode_chunk(isa, layout, in.p, head[0], n, number, head[1], (wp_workspace *)workspace.p, decoded.p) != WP_OK)
        failed = fails("can't be decoded", layout, n, kind);
    else if (memcmp(decoded.p, elems, n_bytes)) failed = fails("decoded to other elements", layout, n, kind);
    else if (encode(isa, layout, elems, n, number, again.p, &chunk) != WP_OK || chunk.n_bytes != head[0] || memcmp(again.p, in.p, head[0]))
        failed = fails("encoded to other bytes", layout, n, kind);
    give(in);
    give(decoded);
    give(workspace);
    give(again);
    return failed;
}

/* ---- differences ---- */

/* What is written of a chunk: the lengths of its streams, the codec of its classes, its CRC; then the streams. */
typedef struct { uint32_t n_bytes[3], class_codec, crc; } difference_head;

/* Elements that are a base with changes in two blocks of three, or all of them; which of the smallest steps are classes of their own, by number. */
static void step(const wp_layout *l, const uint8_t *base, size_t n, uint32_t number, uint8_t *elems, uint8_t *frequent, unsigned *n_frequent) {
    for (size_t i = 0; i < n; i++) {
        uint32_t v = 0;
        memcpy(&v, base + i * l->elem_bytes, l->elem_bytes);
        if (number % 2 || i / WP_BLOCK % 3) v += number % 5 == 4 ? (uint32_t)next_random() : below(3) ? 0 : (below(40) ? below(9) : below(9) << below(30)) - 4;
        memcpy(elems + i * l->elem_bytes, &v, l->elem_bytes);
    }
    *n_frequent = number % 3 ? 0 : number % 65;
    for (unsigned i = 0; i < *n_frequent; i++) wp_store32(frequent + 4 * i, i);
}

static int one_difference(unsigned isa, FILE *f, int writing, unsigned layout, size_t n, int kind, uint32_t number) {
    const wp_layout *l = wp_layout_of(layout);
    const size_t n_bytes = n * l->elem_bytes;
    buffer base = take(n_bytes, 1), elems = take(n_bytes, 1);
    uint8_t frequent[FREQUENT_BYTES];
    unsigned n_frequent;
    fill(base.p, l, n, kind);
    step(l, base.p, n, number, elems.p, frequent, &n_frequent);
    coded_difference c;
    difference_head head;
    int failed = code_difference(isa, layout, 0, frequent, n_frequent, elems.p, base.p, n, 1 + number % 15, number % 4 ? 1 + number % 16 : 0, number * 37 % 256,
                                 &c) != WP_OK &&
                 fails("can't be coded as a difference", layout, n, kind);
    if (writing && !failed) {
        for (int i = 0; i < 3; i++) head.n_bytes[i] = (uint32_t)c.streams[i].n_bytes;
        head.class_codec = c.streams[1].codec;
        const uint8_t first[4] = {(uint8_t)number, (uint8_t)(number >> 8), (uint8_t)(number >> 16), (uint8_t)(number >> 24)};
        head.crc = wp_crc32c(isa, wp_crc32c(isa, 0, first, 4), elems.p, n_bytes);
        failed = fwrite(&head, sizeof head, 1, f) != 1;
        for (int i = 0; i < 3; i++) failed |= c.streams[i].n_bytes && fwrite(c.streams[i].data, c.streams[i].n_bytes, 1, f) != 1;
    } else if (!failed) {
        if (fread(&head, sizeof head, 1, f) != 1) {
            give(base);
            give(elems);
            free_difference(&c);
            return fails("the file ends", layout, n, kind);
        }
        buffer streams[3], decoded = take(n_bytes, 1), workspace = take(wp_workspace_bytes(), 1);
        wp_stream read[3];
        for (int i = 0; i < 3; i++) {
            if (head.n_bytes[i] > 8 * n_bytes + 65536) head.n_bytes[i] = 0;
            streams[i] = take(head.n_bytes[i], 1);
            if (head.n_bytes[i] && fread(streams[i].p, head.n_bytes[i], 1, f) != 1) failed = fails("the file ends", layout, n, kind);
            read[i] = (wp_stream){i == 1 ? head.class_codec : WP_RAW, streams[i].p, head.n_bytes[i]};
            if (head.n_bytes[i] != c.streams[i].n_bytes || (head.n_bytes[i] && memcmp(streams[i].p, c.streams[i].data, head.n_bytes[i])))
                failed = fails("coded to other bytes", layout, n, kind);
        }
        uint32_t crc = 0;
        if (!failed &&
            (wp_decode_difference(isa, layout, 0, frequent, n_frequent, read, base.p, n, number, (wp_workspace *)workspace.p, decoded.p, &crc) != WP_OK ||
             crc != head.crc || memcmp(decoded.p, elems.p, n_bytes)))
            failed = fails("a difference decodes to other elements", layout, n, kind);
        for (int i = 0; i < 3; i++) give(streams[i]);
        give(decoded);
        give(workspace);
    }
    free_difference(&c);
    give(base);
    give(elems);
    return failed;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "isas") == 0) {
        for (unsigned isa = 0; isa < WP_N_ISAS; isa++)
            if (wp_isa_available(isa)) printf("%s\n", wp_isa_name(isa));
        return 0;
    }
    unsigned isa = 0;
    if (argc == 4)
        while (isa < WP_N_ISAS && strcmp(wp_isa_name(isa), argv[2]) != 0) isa++;
    const int writing = argc == 4 && strcmp(argv[1], "write") == 0;
    if (argc != 4 || isa == WP_N_ISAS || !wp_isa_available(isa)) {
        fprintf(stderr, "usage: exchange isas | write ISA FILE | read ISA FILE\n");
        return 2;
    }
    FILE *f = fopen(argv[3], writing ? "wb" : "rb");
    if (!f) {
        perror(argv[3]);
        return 2;
    }
    int failed = 0;
    uint32_t number = 0;
    for (unsigned layout = 1; layout < WP_N_LAYOUTS; layout++)
        for (int kind = 0; kind < N_KINDS; kind++)
            for (size_t i = 1; i < N_LENGTHS; i++, number++) {
                const size_t n = i < 258 ? i : far_lengths[i - 258];
                buffer elems = take(n * wp_layout_of(layout)->elem_bytes, 1);
                fill(elems.p, wp_layout_of(layout), n, kind);
                failed |= (writing ? write_one : read_one)(isa, f, layout, elems.p, n, kind, number);
                give(elems);
            }
    for (unsigned layout = 1; layout < WP_N_LAYOUTS; layout++)
        for (int kind = 0; kind < N_KINDS; kind++)
            for (size_t i = 1 + (size_t)kind; i < N_LENGTHS && wp_layout_of(layout)->elem_bytes <= 4; i += i < 250 ? N_KINDS : 1, number++)
                failed |= one_difference(isa, f, writing, layout, i < 258 ? i : far_lengths[i - 258], kind, number);
    if (!writing && fgetc(f) != EOF) failed = 1;
    if (fclose(f)) failed = 1;
    printf("%s %u chunks with %s%s\n", writing ? "wrote" : "read", number, wp_isa_name(isa), failed ? "  FAILED" : "");
    return failed;
}
