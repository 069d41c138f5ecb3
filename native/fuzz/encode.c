/* SPDX-License-Identifier: Apache-2.0 */
/* wp_encode_chunks: every ISA gives the same bytes, which every ISA decodes. Input: layout, flags, u16 count of elements, u8 blocks of a chunk, elements. */
#include "fuzz.h"

enum { WITHOUT_RANS = 1, TABLES = 2, MOST_ELEMS = 4400, MOST_CHUNKS = MOST_ELEMS / WP_BLOCK + 1 };
static const wp_attention never = {0, 0, 0};

typedef struct {
    uint32_t sizes[MOST_CHUNKS], crcs[MOST_CHUNKS];
    size_t n_chunks;
    wp_encoded_chunk last;
    uint8_t *bytes;
    size_t n_bytes;
} encoded;

static void encode(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, size_t chunk_elems, unsigned most_tables, encoded *e) {
    const size_t most = n_elems < chunk_elems ? n_elems : chunk_elems, room = (n_elems + chunk_elems - 1) / chunk_elems * wp_encode_bound(layout, most);
    uint8_t *workspace = take(wp_encode_workspace_bytes(layout, most), 0x5A + (int)isa);
    memset(e, 0, sizeof *e);
    e->bytes = take(room, 0x5A + (int)isa);
    /* Without a share nothing deserves attention but a chunk that is not smaller than its elements: go on behind it. */
    for (size_t done = 0; done < n_elems;) {
        size_t n;
        int stopped;
        CHECK(wp_encode_chunks(isa, layout, elems + done * wp_layout_of(layout)->elem_bytes, n_elems - done, chunk_elems, (uint32_t)e->n_chunks, most_tables, &never, workspace,
                               e->bytes + e->n_bytes, e->sizes + e->n_chunks, e->crcs + e->n_chunks, &n, &stopped, &e->last) == WP_OK);
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    input in = {data, n_bytes};
    const unsigned layout = 1 + next8(&in) % (WP_N_LAYOUTS - 1), flags = next8(&in);
    const size_t n_elems = 1 + next16(&in) % MOST_ELEMS, chunk_elems = (1 + next8(&in) % MOST_CHUNKS) * WP_BLOCK;
    uint8_t *elems = take_cycled(in, n_elems * wp_layout_of(layout)->elem_bytes);
    encoded expected;
    encode(WP_ISA_SCALAR, layout, elems, n_elems, chunk_elems, flags & WITHOUT_RANS ? 0 : flags & TABLES ? WP_MAX_TABLES : 1, &expected);
    decode(WP_ISA_SCALAR, layout, &expected, elems, n_elems, chunk_elems);
    FOR_EACH_OTHER_ISA(isa) {
        encoded got;
        encode(isa, layout, elems, n_elems, chunk_elems, flags & WITHOUT_RANS ? 0 : flags & TABLES ? WP_MAX_TABLES : 1, &got);
        CHECK(got.n_chunks == expected.n_chunks && got.n_bytes == expected.n_bytes && memcmp(got.bytes, expected.bytes, got.n_bytes) == 0);
        CHECK(memcmp(got.sizes, expected.sizes, sizeof got.sizes) == 0 && memcmp(got.crcs, expected.crcs, sizeof got.crcs) == 0);
        CHECK(got.last.repeats == expected.last.repeats && got.last.n_streams == expected.last.n_streams);
        for (unsigned i = 0; i < got.last.n_streams; i++) {
            const wp_encoded_stream *a = &got.last.streams[i], *b = &expected.last.streams[i];
            CHECK(a->codec == b->codec && a->begin == b->begin && a->n_bytes == b->n_bytes && a->rans_bytes == b->rans_bytes && a->escapes == b->escapes && a->repeats == b->repeats);
        }
        decode(isa, layout, &expected, elems, n_elems, chunk_elems);
        free(got.bytes);
    }
    free(expected.bytes);
    free(elems);
    return 0;
}
