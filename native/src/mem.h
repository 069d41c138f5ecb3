/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian unaligned loads and stores, and stores past the cache. */
#ifndef WP_MEM_H
#define WP_MEM_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weightpack's native core needs a little-endian machine; the numpy path works everywhere"
#endif

static inline uint16_t wp_load16(const void *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}
static inline uint32_t wp_load32(const void *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static inline uint64_t wp_load64(const void *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
static inline uint32_t wp_load24(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16; }
static inline void wp_store16(void *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void wp_store32(void *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void wp_store64(void *p, uint64_t v) { memcpy(p, &v, 8); }

/* memcpy past the cache, where the machine has that and `to` is aligned to 16. */
#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
static inline void wp_stream_copy(uint8_t *to, const uint8_t *from, size_t n) {
    size_t i = 0;
    if (((uintptr_t)to & 15) == 0) {
        for (; i + 16 <= n; i += 16) _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
        _mm_sfence(); /* before another thread may be told that the bytes are there */
    }
    memcpy(to + i, from + i, n - i);
}
#else
static inline void wp_stream_copy(uint8_t *to, const uint8_t *from, size_t n) { memcpy(to, from, n); }
#endif

#endif
