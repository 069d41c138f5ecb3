// SPDX-License-Identifier: Apache-2.0
//
// The GPU's decoder on the host: a warp is 32 fibres that go on in turn from one common operation (vote, shuffle, barrier) to the next. A thread that leaves a
// common operation out, or does another, is found: the program ends. Between two of them each fibre runs alone, so a missing barrier is found only where the
// order of the fibres lets it.
//
//     gpu_host CASES     cases of the form u32 layout, in_bytes, n_elems, number, crc, expected status; then in_bytes, and n_elems * elem_bytes decoded ones
//
// As a shared library it is wp_gpu_host_decode.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

typedef unsigned int Word;

namespace warp {
enum { THREADS = 32, STACK = 256 << 10 };
ucontext_t scheduler, fibres[THREADS];
alignas(16) char stacks[THREADS][STACK];
unsigned running;
int kinds[THREADS], lines[THREADS]; // which operation each has come to; 0: it has ended
Word values[THREADS], results[THREADS], froms[THREADS];
void (*body)();

Word common(int kind, Word value, Word from, int line) {
    const unsigned t = running;
    kinds[t] = kind;
    lines[t] = line;
    values[t] = value;
    froms[t] = from;
    swapcontext(&fibres[t], &scheduler);
    return results[t];
}

void begin() {
    body();
    kinds[running] = 0;
    swapcontext(&fibres[running], &scheduler);
}

void run(void (*function)()) {
    body = function;
    for (unsigned t = 0; t < THREADS; t++) {
        getcontext(&fibres[t]);
        fibres[t].uc_stack.ss_sp = stacks[t];
        fibres[t].uc_stack.ss_size = STACK;
        fibres[t].uc_link = nullptr;
        makecontext(&fibres[t], begin, 0);
    }
    for (bool forwards = true;; forwards = !forwards) { // the order changes, so that nothing leans on it
        for (unsigned i = 0; i < THREADS; i++) {
            running = forwards ? i : THREADS - 1 - i;
            swapcontext(&scheduler, &fibres[running]);
        }
        Word vote = 0;
        for (unsigned t = 0; t < THREADS; t++) {
            if (kinds[t] != kinds[0] || lines[t] != lines[0]) {
                fprintf(stderr, "threads of a warp part: thread 0 is at line %d, thread %u at line %d\n", lines[0], t, lines[t]);
                abort();
            }
            vote |= (values[t] != 0) << t;
        }
        if (kinds[0] == 0) return;
        for (unsigned t = 0; t < THREADS; t++) results[t] = kinds[0] == 1 ? vote : values[froms[t] & 31];
    }
}
} // namespace warp

#define WP_HOST
#define WP_DEVICE static inline
#define WP_ONCE static
#define WP_METHOD inline
#define WP_CONSTEXPR constexpr
#define WP_UNROLL
WP_DEVICE Word lane_id() { return warp::running; }
WP_DEVICE Word vote(bool is, int line = __builtin_LINE()) { return warp::common(1, is, 0, line); }
WP_DEVICE Word shuffle(Word v, Word from, int line = __builtin_LINE()) { return warp::common(2, v, from, line); }
WP_DEVICE void sync_warp(int line = __builtin_LINE()) { warp::common(3, 0, 0, line); }
WP_DEVICE bool is_any(bool is, int line = __builtin_LINE()) { return warp::common(1, is, 0, line) != 0; }
WP_DEVICE Word permute(Word a, Word b, Word which) {
    Word result = 0;
    for (int i = 0; i < 4; i++) {
        const Word from = which >> 4 * i & 7;
        result |= ((from < 4 ? a : b) >> from % 4 * 8 & 255) << 8 * i;
    }
    return result;
}
WP_DEVICE Word count_bits(Word v) { return (Word)__builtin_popcount(v); }
WP_DEVICE Word load_word(const unsigned char *p) { return *(const Word *)p; }
WP_DEVICE Word load_byte(const unsigned char *p) { return *p; }
WP_DEVICE Word funnel(Word low, Word high, Word bits) { return (Word)(((unsigned long long)high << 32 | low) >> bits); }

#include "../../weightpack/gpu/decode.cu"

namespace {
wp_chunk chunk;
Warp shared;
bool goods[32];

template <class L> void decode() { goods[lane_id()] = decode_chunk<L>(chunk, shared); }

template <class L> Word decode_as() {
    memset(&shared, 0xa5, sizeof shared);
    warp::run(decode<L>);
    for (int t = 1; t < 32; t++)
        if (goods[t] != goods[0]) {
            fprintf(stderr, "threads of a warp differ about the chunk\n");
            abort();
        }
    return goods[0] ? 0 : 1;
}

struct Name {
    const char *name;
    Word elem_bytes;
    Word (*decode)();
};
#define WP_NAME(name, ...) {name, Layout<__VA_ARGS__>::elem_bytes, decode_as<Layout<__VA_ARGS__>>}
const Name NAMES[] = {
#include WP_NAMES // WP_NAME(...), for each layout that the package has compiled
};
const Word N_NAMES = sizeof NAMES / sizeof NAMES[0];
} // namespace

// Decodes a chunk of the layout of this name into `out`; returns its status, or 2 for a name that there is not. `in` is 16-byte aligned.
extern "C" __attribute__((visibility("default"))) Word wp_gpu_host_decode(const char *layout, const unsigned char *in, Word in_bytes, Word n_elems, Word number, Word crc,
                                                                         unsigned char *out) {
    for (Word i = 0; i < N_NAMES; i++)
        if (!strcmp(NAMES[i].name, layout)) {
            chunk = wp_chunk{(u64)in, (u64)out, in_bytes, n_elems, number, crc};
            return NAMES[i].decode();
        }
    return 2;
}

int main(int argc, char **argv) {
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : nullptr;
    if (!file) return fprintf(stderr, "usage: gpu_host CASES\n"), 2;
    char name[16];
    Word head[5], n_cases = 0;
    while (fread(name, 1, sizeof name, file) == sizeof name && fread(head, 4, 5, file) == 5) {
        Word elem_bytes = 1;
        for (const Name &known : NAMES)
            if (!strcmp(known.name, name)) elem_bytes = known.elem_bytes;
        // Blocks of no more than is promised, so that the sanitizer sees a byte too far. malloc's blocks are 16-byte aligned.
        unsigned char *in = (unsigned char *)malloc(head[0] + READ_PAST), *out = (unsigned char *)malloc((size_t)head[1] * elem_bytes);
        std::vector<unsigned char> expected((size_t)head[1] * elem_bytes);
        if (fread(in, 1, head[0], file) != head[0] || fread(expected.data(), 1, expected.size(), file) != expected.size()) return fprintf(stderr, "the cases are cut\n"), 2;
        memset(out, 0xee, expected.size());
        const Word status = wp_gpu_host_decode(name, in, head[0], head[1], head[2], head[3], out);
        if (status != head[4] || (status == 0 && memcmp(out, expected.data(), expected.size())))
            return fprintf(stderr, "case %u (%s, %u elements): status %u for %u, or other bytes\n", n_cases, name, head[1], status, head[4]), 1;
        free(in);
        free(out);
        n_cases++;
    }
    fclose(file);
    printf("%u cases\n", n_cases);
    return n_cases == 0;
}
