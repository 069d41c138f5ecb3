/* SPDX-License-Identifier: Apache-2.0 */
/* Fetching memory while the ALU is busy. Entropy coding waits for nothing but the ALU; splitting, merging and copying wait for nothing but memory. So while one
 * runs, step by step, the lines that the next will touch are fetched, or the two would take turns at waiting. */
#ifndef WP_PREFETCH_H
#define WP_PREFETCH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define WP_PREFETCH(p) __builtin_prefetch((p), 1)
#else
#define WP_PREFETCH(p) ((void)(p))
#endif

/* Memory that will be wanted soon; n_bytes may be 0. */
typedef struct {
    const uint8_t *p;
    size_t n_bytes;
} wp_range;

/* Fetches the share `part` of `n_parts` of a range. */
static inline void wp_prefetch_share(wp_range range, size_t part, size_t n_parts) {
    for (size_t i = range.n_bytes * part / n_parts, end = range.n_bytes * (part + 1) / n_parts; i < end; i += 64) WP_PREFETCH(range.p + i);
}

#endif
