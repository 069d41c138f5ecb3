/* SPDX-License-Identifier: Apache-2.0 */
/* wp_encode_chunks, or the encoders of differences: every ISA gives the same bytes, which every ISA decodes. Input: layout, flags, u16 count of elements, u8
 * blocks of a chunk, elements; or layout, flags, u16 count of elements, shift, rates, codebooks, base exponent, count of frequent differences, elements, and
 * what changed out of them. */
#include "fuzz.h"
#include "../tests/coded_difference.h"

enum { WITHOUT_RANS = 1, TABLES = 2, DIFFERENCE = 4, HUFFMAN = 8, MOST_ELEMS = 4400, MOST_CHANGED = 1300, MOST_CHUNKS = MOST_ELEMS / WP_BLOCK + 1 };

typedef struct {
    uint32_t sizes[MOST_CHUNKS], crcs[MOST_CHUNKS];
    size_t n_chunks;
    wp_encoded_chunk last;
    uint8_t *bytes;
    size_t n_bytes;
} encoded;

static void encode(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, size_t chunk_elems, wp_codecs codecs, encoded *e) {
    const size_t most = n_elems < chunk_elems ? n_elems : chunk_elems, room = (n_elems + chunk_elems - 1) / chunk_elems * wp_encode_bound(layout, most);
    uint8_t *workspace = take(wp_encode_workspace_bytes(layout, most), 0x5A + (int)isa);
    memset(e, 0, sizeof *e);
    e->bytes = take(room, 0x5A + (int)isa);
    /* It stops behind chunks that repeat or are not smaller than their elements: go on behind them. */
    for (size_t done = 0; done < n_elems;) {
        size_t n;
        int stopped;
        CHECK(wp_encode_chunks(isa, layout, elems + done * wp_layout_of(layout)->elem_bytes, n_elems - done, chunk_elems, (uint32_t)e->n_chunks, codecs, 1,
                               workspace, e->bytes + e->n_bytes, e->sizes + e->n_chunks, e->crcs + e->n_chunks, &n, &stopped, &e->last) == WP_OK);
        CHECK(n >= 1);
        for (size_t i = 0; i < n; i++) e->n_bytes += e->sizes[e->n_chunks + i];
        e->n_chunks += n;
        done += n * chunk_elems;
        CHECK(stopped || done >= n_elems);
        CHECK(e->n_bytes <= room);
    }
    free(workspace);
}

static void decode(unsigned isa, unsigned layout, const encoded *e, const uint8_t *elems, size_t n_elems, size_t chunk_elems) {
    const size_t n_bytes = n_elems * wp_layout_of(layout)->elem_bytes;
    int64_t offsets[MOST_CHUNKS + 1] = {0};
    for (size_t i = 0; i < e->n_chunks; i++) offsets[i + 1] = offsets[i] + e->sizes[i];
    uint8_t *chunks = take_copy(e->bytes, e->n_bytes), *out = take(n_bytes, 0x55);
    size_t next = 0;
    CHECK(wp_decode_chunks(isa, layout, chunks, e->n_bytes, offsets, e->crcs, e->n_chunks, chunk_elems, n_elems, 0, workspace_of(isa), out, &next) == WP_OK);
    CHECK(next == e->n_chunks && memcmp(out, elems, n_bytes) == 0);
    free(chunks);
    free(out);
}

/* Elements and a base, which differ by small steps or by anything, in some blocks or everywhere. */
static int differences(unsigned layout, unsigned flags, size_t n, input in) {
    const size_t bytes = wp_layout_of(layout)->elem_bytes;
    if (bytes > 4) return 0;
    const unsigned shift = next8(&in) % (8 * (unsigned)bytes - 1), n_rates = 1 + next8(&in) % 15, n_books = next8(&in) % 17, base_exponent = next8(&in),
                   n_frequent = next8(&in) % 65;
    uint8_t *elems = take_cycled(in, n * bytes), *base = take(n * bytes, 0), frequent[FREQUENT_BYTES] = {0};
    for (size_t i = 0; i < n; i++) {
        uint32_t word = 0, change = in.n ? in.p[(i * 7 + i / WP_BLOCK) % in.n] : 0;
        memcpy(&word, elems + i * bytes, bytes);
        word = word >> shift << shift;
        memcpy(elems + i * bytes, &word, bytes);
        if (flags >> 3 & 1) change = i / WP_BLOCK % 2 ? change & 3 : 0;
        if (flags >> 4 & 1) change *= 0x01010101u;
        if (i < n_frequent) {
            const uint32_t d = (0u - change) & (0xffffffffu >> (32 - 8 * bytes));
            memcpy(frequent + 4 * i, &d, 4);
        }
        word += change;
        memcpy(base + i * bytes, &word, bytes);
    }
    coded_difference expected;
    CHECK(code_difference(WP_ISA_SCALAR, layout, shift, frequent, n_frequent, elems, base, n, n_rates, n_books, base_exponent, &expected) == WP_OK);
    /* Frequent differences of more bits than there are: the encoder finds none that is equal, the decoder refuses them. */
    int wide = 0;
    for (unsigned i = 0; i < n_frequent; i++) {
        uint32_t d;
        memcpy(&d, frequent + 4 * i, 4);
        wide |= (d & ~(0xffffffffu >> (32 - 8 * bytes + shift))) != 0;
    }
    for (unsigned isa = 0; isa < WP_N_ISAS; isa++) {
        if (!wp_isa_available(isa)) continue;
        coded_difference got;
        CHECK(code_difference(isa, layout, shift, frequent, n_frequent, elems, base, n, n_rates, n_books, base_exponent, &got) == WP_OK);
        CHECK(memcmp(got.exponents, expected.exponents, n) == 0 && memcmp(got.scales, expected.scales, (n + WP_BLOCK - 1) / WP_BLOCK) == 0);
        for (int i = 0; i < 3; i++)
            CHECK(got.streams[i].codec == expected.streams[i].codec && got.streams[i].n_bytes == expected.streams[i].n_bytes &&
                  (!got.streams[i].n_bytes || memcmp(got.streams[i].data, expected.streams[i].data, got.streams[i].n_bytes) == 0));
        free_difference(&got);
        uint8_t *out = take(n * bytes, 0x55);
        uint32_t crc;
        const wp_status status = wp_decode_difference(isa, layout, shift, frequent, n_frequent, expected.streams, base, n, 5, workspace_of(isa), out, &crc);
        CHECK(status == (wide ? WP_CORRUPT : WP_OK));
        if (!wide) CHECK(memcmp(out, elems, n * bytes) == 0 && crc == numbered_crc(5, elems, n * bytes));
        free(out);
    }
    free_difference(&expected);
    free(elems);
    free(base);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned layout = 1 + next8(&in) % (WP_N_LAYOUTS - 1), flags = next8(&in);
    const size_t n_elems = 1 + next16(&in) % MOST_ELEMS;
    if (flags & DIFFERENCE) return differences(layout, flags, 1 + n_elems % MOST_CHANGED, in);
    const size_t chunk_elems = (1 + next8(&in) % MOST_CHUNKS) * WP_BLOCK;
    uint8_t *elems = take_cycled(in, n_elems * wp_layout_of(layout)->elem_bytes);
    encoded expected;
    const wp_codecs codecs = {flags & WITHOUT_RANS ? 0 : flags & TABLES ? WP_MAX_TABLES : 1, !!(flags & HUFFMAN)};
    encode(WP_ISA_SCALAR, layout, elems, n_elems, chunk_elems, codecs, &expected);
    decode(WP_ISA_SCALAR, layout, &expected, elems, n_elems, chunk_elems);
    FOR_EACH_OTHER_ISA(isa) {
        encoded got;
        encode(isa, layout, elems, n_elems, chunk_elems, codecs, &got);
        CHECK(got.n_chunks == expected.n_chunks && got.n_bytes == expected.n_bytes && memcmp(got.bytes, expected.bytes, got.n_bytes) == 0);
        CHECK(memcmp(got.sizes, expected.sizes, sizeof got.sizes) == 0 && memcmp(got.crcs, expected.crcs, sizeof got.crcs) == 0);
        CHECK(got.last.repeats == expected.last.repeats && got.last.n_streams == expected.last.n_streams);
        for (unsigned i = 0; i < got.last.n_streams; i++) {
            const wp_encoded_stream *a = &got.last.streams[i], *b = &expected.last.streams[i];
            CHECK(a->codec == b->codec && a->begin == b->begin && a->n_bytes == b->n_bytes && a->repeats == b->repeats);
        }
        decode(isa, layout, &expected, elems, n_elems, chunk_elems);
        free(got.bytes);
    }
    free(expected.bytes);
    free(elems);
    return 0;
}
