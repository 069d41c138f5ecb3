/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers from a fixed seed, and buffers between unmapped pages, for the tests. Needs POSIX and _GNU_SOURCE. */
#ifndef WP_FENCED_H
#define WP_FENCED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t seed = 0x9E3779B97F4A7C15u;
static uint64_t next_random(void) { /* xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * 0x2545F4914F6CDD1Du;
}
static inline uint32_t below(uint32_t n) { return (uint32_t)((next_random() >> 32) * n >> 32); }
static inline void fill_random(uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(next_random() >> 40);
}

/* n bytes that end (or begin) where an unmapped page begins (or ends); the rest of the map is the slack on the other side. */
typedef struct {
    uint8_t *p, *map;
    size_t map_bytes;
} buffer;

static buffer take(size_t n, int at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (n + page - 1) / page * page;
    buffer b = {NULL, NULL, inside + 2 * page};
    b.map = mmap(NULL, b.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b.map == MAP_FAILED || (inside && mprotect(b.map + page, inside, PROT_READ | PROT_WRITE))) {
        perror("mmap");
        exit(2);
    }
    b.p = b.map + page + (at_end ? inside - n : 0);
    return b;
}
static inline buffer take_copy(const uint8_t *p, size_t n, int at_end) {
    buffer b = take(n, at_end);
    if (n) memcpy(b.p, p, n);
    return b;
}
static void give(buffer b) { munmap(b.map, b.map_bytes); }

#endif
