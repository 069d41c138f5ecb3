/* SPDX-License-Identifier: Apache-2.0
 *
 * READ ME FIRST. Fuzz targets of the native core, one a file. Each defines LLVMFuzzerTestOneInput(), which takes any bytes and calls abort() where the core
 * breaks its contract: an ISA that gives another status or other bytes than the rest, or what was encoded and is not decoded to itself. The first bytes of an
 * input choose the parameters, the others are the data. Every buffer that the core gets is a malloc() of its exact size, so that AddressSanitizer sees the
 * first byte beyond it. libFuzzer drives them (scripts/fuzz), and replay.c runs files through them where there is no clang (scripts/sanitize).
 */
#ifndef WP_FUZZ_H
#define WP_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weightpack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __FILE__, __LINE__))
static inline void fail(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
    abort();
}

/* Exactly n bytes, filled with `fill`, so that a byte that nobody writes shows. */
static inline uint8_t *take(size_t n, int fill) {
    uint8_t *p = malloc(n);
    if (!p && n) {
        perror("malloc");
        exit(2);
    }
    if (n) memset(p, fill, n);
    return p;
}
static inline uint8_t *take_copy(const uint8_t *from, size_t n) {
    uint8_t *p = take(n, 0);
    if (n) memcpy(p, from, n);
    return p;
}

/* What is left of an input; behind its end there are zeros. */
typedef struct {
    const uint8_t *p;
    size_t n;
} input;
static inline unsigned next8(input *in) { return in->n ? (in->n--, *in->p++) : 0; }
static inline unsigned next16(input *in) {
    unsigned low = next8(in);
    return low | next8(in) << 8;
}

/* A layout, and now and then an id that there is not. */
static inline unsigned next_layout(input *in) { return next8(in) % (WP_N_LAYOUTS + 1); }

/* `n` bytes out of what is left, again and again from its begin: long inputs out of short ones. */
static inline uint8_t *take_cycled(input in, size_t n) {
    uint8_t *p = take(n, 0);
    for (size_t i = 0; in.n && i < n; i += in.n) memcpy(p + i, in.p, n - i < in.n ? n - i : in.n);
    return p;
}

/* One for each ISA, kept from input to input: no decoder may rely on what it finds there. */
static inline wp_workspace *workspace_of(unsigned isa) {
    static wp_workspace *workspaces[WP_N_ISAS];
    if (!workspaces[isa]) workspaces[isa] = (wp_workspace *)take(wp_workspace_bytes(), 0x5A + (int)isa);
    return workspaces[isa];
}

static inline uint32_t numbered_crc(uint32_t number, const uint8_t *data, size_t n_bytes) {
    const uint8_t first[4] = {(uint8_t)number, (uint8_t)(number >> 8), (uint8_t)(number >> 16), (uint8_t)(number >> 24)};
    return wp_crc32c(WP_ISA_SCALAR, wp_crc32c(WP_ISA_SCALAR, 0, first, 4), data, n_bytes);
}

/* For each ISA that runs here but scalar, which all are compared with. */
#define FOR_EACH_OTHER_ISA(isa)                                    \
    for (unsigned isa = WP_ISA_SCALAR + 1; isa < WP_N_ISAS; isa++) \
        if (wp_isa_available(isa))

#endif
