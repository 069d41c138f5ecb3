/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian unaligned loads and stores, and nothing else. */
#ifndef WP_MEM_H
#define WP_MEM_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weightpack's native core needs a little-endian machine; the numpy path works everywhere"
#endif

static inline uint16_t wp_load16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t wp_load32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t wp_load64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline uint32_t wp_load24(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16; }
static inline void wp_store16(void *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void wp_store32(void *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void wp_store64(void *p, uint64_t v) { memcpy(p, &v, 8); }

#endif
