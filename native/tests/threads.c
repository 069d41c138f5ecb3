/* SPDX-License-Identifier: Apache-2.0
 *
 * The core has no state of its own: threads encode and decode at once, the same chunks and different ones, on every ISA, and each result is compared with that
 * of one thread. For ThreadSanitizer; run by scripts/sanitize. Exit status 1 if anything differs.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weightpack.h"

enum { N_THREADS = 8, N_ROUNDS = 3, CHUNK_ELEMS = 4992, N_CHUNKS = 3, N_ELEMS = 2 * CHUNK_ELEMS + 77 };

/* One input: elements of a layout, and what one thread made of them. Threads read it together. */
typedef struct {
    unsigned layout;
    size_t n_bytes;
    uint8_t *elems, *coded;
    uint32_t sizes[N_CHUNKS], crcs[N_CHUNKS];
    int64_t offsets[N_CHUNKS + 1];
} input;

static input inputs[WP_N_LAYOUTS];

static void *room(size_t n_bytes) {
    void *p = malloc(n_bytes);
    if (!p) {
        perror("malloc");
        exit(2);
    }
    return p;
}

static int encode(unsigned isa, const input *in, uint8_t *out, uint32_t *sizes, uint32_t *crcs) {
    uint8_t *workspace = room(wp_encode_workspace_bytes(in->layout, CHUNK_ELEMS));
    size_t done = 0, n = 0;
    int stopped = 0;
    wp_encoded_chunk last;
    wp_status status = WP_OK;
    const uint8_t *elems = in->elems;
    const size_t elem_bytes = wp_layout_of(in->layout)->elem_bytes;
    uint8_t *to = out;
    while (status == WP_OK && done < N_CHUNKS) { /* it stops behind chunks that do not shrink */
        const size_t begin = done * CHUNK_ELEMS;
        status = wp_encode_chunks(isa, in->layout, elems + begin * elem_bytes, N_ELEMS - begin, CHUNK_ELEMS, (uint32_t)done, (wp_codecs){1, 1}, 1, workspace,
                                  to, sizes + done, crcs + done, &n, &stopped, &last);
        if (status == WP_OK && n == 0) status = WP_ARGUMENT;
        for (size_t i = done; status == WP_OK && i < done + n; i++) to += sizes[i];
        done += n;
    }
    free(workspace);
    return status == WP_OK;
}

static int decode(unsigned isa, const input *in, uint8_t *out) {
    wp_workspace *workspace = room(wp_workspace_bytes());
    size_t next = 0;
    wp_status status = wp_decode_chunks(isa, in->layout, in->coded, (size_t)in->offsets[N_CHUNKS], in->offsets, in->crcs, N_CHUNKS, CHUNK_ELEMS, N_ELEMS, 0,
                                        workspace, out, &next);
    free(workspace);
    return status == WP_OK && next == N_CHUNKS;
}

/* What a thread does: the same input as all others first, then one after the other from where it stands. */
static void *work(void *argument) {
    const unsigned number = *(const unsigned *)argument;
    int good = 1;
    for (unsigned round = 0; round < N_ROUNDS; round++)
        for (unsigned step = 0; step < WP_N_LAYOUTS; step++) {
            const input *in = &inputs[step == 0 ? WP_F32 : 1 + (step + number) % (WP_N_LAYOUTS - 1)];
            uint8_t *out = room(N_CHUNKS * wp_encode_bound(in->layout, CHUNK_ELEMS)), *back = room(in->n_bytes);
            uint32_t sizes[N_CHUNKS], crcs[N_CHUNKS], counts[256];
            wp_rans_book book;
            size_t cost;
            for (unsigned isa = 0; isa < WP_N_ISAS; isa++) {
                if (!wp_isa_available(isa)) continue;
                good &= encode(isa, in, out, sizes, crcs) && memcmp(sizes, in->sizes, sizeof sizes) == 0 && memcmp(crcs, in->crcs, sizeof crcs) == 0 &&
                        memcmp(out, in->coded, (size_t)in->offsets[N_CHUNKS]) == 0;
                good &= decode(isa, in, back) && memcmp(back, in->elems, in->n_bytes) == 0;
                wp_histogram(isa, in->elems, in->n_bytes, counts);
                good &= wp_rans_choose(counts, &book, &cost) == WP_OK;
            }
            free(out);
            free(back);
        }
    return good ? argument : NULL;
}

int main(void) {
    uint64_t random = 88172645463325252u;
    for (unsigned layout = 1; layout < WP_N_LAYOUTS; layout++) {
        input *in = &inputs[layout];
        in->layout = layout;
        in->n_bytes = N_ELEMS * (size_t)wp_layout_of(layout)->elem_bytes;
        in->elems = room(in->n_bytes);
        in->coded = room(N_CHUNKS * wp_encode_bound(layout, CHUNK_ELEMS));
        for (size_t i = 0; i < in->n_bytes; i++) { /* few values and rare ones, so that planes are rANS with escapes, raw and constant */
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            in->elems[i] = (uint8_t)(i % 3 == 0 ? 0x3c + random % 5 : random % 50 ? random >> 8 & 0x81 : random >> 8);
        }
        if (!encode(WP_ISA_SCALAR, in, in->coded, in->sizes, in->crcs)) {
            printf("layout %u can't be encoded\n", layout);
            return 1;
        }
        for (int i = 0; i < N_CHUNKS; i++) in->offsets[i + 1] = in->offsets[i] + in->sizes[i];
    }
    pthread_t threads[N_THREADS];
    unsigned numbers[N_THREADS];
    for (unsigned i = 0; i < N_THREADS; i++) {
        numbers[i] = i;
        if (pthread_create(&threads[i], NULL, work, &numbers[i])) {
            perror("pthread_create");
            return 2;
        }
    }
    int failed = 0;
    for (unsigned i = 0; i < N_THREADS; i++) {
        void *result;
        if (pthread_join(threads[i], &result) || !result) failed = 1;
    }
    for (unsigned layout = 1; layout < WP_N_LAYOUTS; layout++) {
        free(inputs[layout].elems);
        free(inputs[layout].coded);
    }
    printf("%d threads, %d rounds, %d layouts%s\n", N_THREADS, N_ROUNDS, WP_N_LAYOUTS - 1, failed ? "  FAILED" : "");
    return failed;
}
