/* SPDX-License-Identifier: Apache-2.0
 *
 * The C API of weightpack's codec core. Pure functions on buffers: no allocation, no I/O, no globals, no Python.
 * Every function reads only inside its inputs and writes only inside its outputs, for any input bytes.
 * Section numbers are those of docs/FORMAT.md.
 */
#ifndef WEIGHTPACK_H
#define WEIGHTPACK_H

#include <stddef.h>
#include <stdint.h>

enum {
    WP_BLOCK = 128,           /* elements of a block, and lanes of rans128x8 */
    WP_MAX_PLANES = 8,        /* symbol planes of a layout */
    WP_MAX_STREAMS = 8,       /* streams of a chunk */
    WP_RANS_BOOK_BYTES = 64,  /* upper bound of a serialised rANS codebook */
};

#define WP_MAX_CHUNK_BYTES (1u << 23)
#define WP_MAX_STREAM_BYTES ((1u << 24) - 1)

/* Grouped by tens; pinned: the Python side maps them to exceptions. */
typedef enum {
    WP_OK = 0,
    WP_UNSUPPORTED = 10,     /* an id that this library does not know */
    WP_CORRUPT = 20,         /* a field or a stream contradicts another */
    WP_CHECKSUM = 21,        /* decoded, and the CRC differs */
    WP_TRUNCATED = 30,       /* bytes are missing */
    WP_ARGUMENT = 40,        /* the caller broke this header's contract */
    WP_NO_SPACE = 41,        /* the output buffer is too small: nothing useful was written */
    WP_NEEDS_ZSTD = 50,      /* the chunk has a zstd stream: expand it and call wp_decode_streams */
} wp_status;

typedef enum { WP_ISA_SCALAR = 0, WP_ISA_AVX2 = 1, WP_ISA_AVX512 = 2, WP_N_ISAS = 3 } wp_isa;

typedef enum { WP_RAW = 0, WP_CONSTANT = 1, WP_RANS = 2, WP_HUFFMAN = 3, WP_ZSTD = 4 } wp_codec;

typedef enum {
    WP_BYTES1 = 1, WP_BYTES2, WP_BYTES4, WP_BYTES8,
    WP_BF16, WP_F16, WP_F32, WP_F64, WP_F8_E4M3, WP_F8_E5M2,
    WP_N_LAYOUTS
} wp_layout_id;

/* Section 7. */
typedef struct {
    uint8_t elem_bytes;
    uint8_t n_planes;                    /* symbol planes */
    uint8_t plane_bits[WP_MAX_PLANES];   /* width of each symbol */
    uint8_t raw_bits;                    /* r: width of the raw word; 0: none */
} wp_layout;

/* NULL if `id` is unknown. */
const wp_layout *wp_layout_of(unsigned id);

/* "scalar", "avx2", "avx512"; NULL if out of range. */
const char *wp_isa_name(unsigned isa);
/* 1 if this CPU and operating system can run it (CPUID and XGETBV, asked each time: no global state). */
int wp_isa_available(unsigned isa);

/* CRC-32C of `data`, continuing from `crc` (0 to start). */
uint32_t wp_crc32c(unsigned isa, uint32_t crc, const uint8_t *data, size_t n_bytes);

/* Occurrences of each symbol; overwrites `counts`. */
void wp_histogram(unsigned isa, const uint8_t *symbols, size_t n, uint32_t counts[256]);

/* Section 7. Splits `n_elems` elements into n_planes symbol planes (plane p at symbols + p * n_elems), one width a block, and the bits
 * stream. `widths` holds ceil(n_elems / 128) bytes and `bits` wp_bits_bound() bytes; both unused where raw_bits is 0. */
wp_status wp_split(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems,
                   uint8_t *symbols, uint8_t *widths, uint8_t *bits, size_t *bits_bytes);
size_t wp_bits_bound(unsigned layout, size_t n_elems);

/* A rANS codebook: which symbols are coded, and how often. Integer arithmetic only, so the same everywhere. */
typedef struct {
    uint8_t n_symbols;       /* K */
    uint8_t escape_freq;
    uint8_t symbols[16];
    uint8_t freqs[16];
} wp_rans_book;

/* Chooses the codebook with the least estimated size for these counts (sum >= 1, at least two symbols occur; else WP_ARGUMENT).
 * `cost_bytes` estimates the whole stream. */
wp_status wp_rans_choose(const uint32_t counts[256], wp_rans_book *book, size_t *cost_bytes);

/* Section 8.3. `scratch` holds wp_rans_scratch(n) bytes. Returns WP_NO_SPACE if the stream exceeds `capacity`. */
wp_status wp_rans_encode(unsigned isa, const wp_rans_book *book, const uint8_t *symbols, size_t n,
                         uint8_t *scratch, uint8_t *out, size_t capacity, size_t *out_bytes);
size_t wp_rans_scratch(size_t n);

/* Section 8.4. `lengths[s]` is 0 or 1..12; they must form a complete code that covers `symbols`, else WP_ARGUMENT. */
wp_status wp_huffman_encode(const uint8_t lengths[256], const uint8_t *symbols, size_t n,
                            uint8_t *out, size_t capacity, size_t *out_bytes);

typedef struct { unsigned codec; const uint8_t *data; size_t n_bytes; } wp_stream;

/* Scratch of the decoders; allocate with wp_workspace_bytes(), no initialisation needed, one a thread. */
typedef struct wp_workspace wp_workspace;
size_t wp_workspace_bytes(void);

/* Sections 6.3 to 8. Decodes one chunk, cache-sized batch by batch, straight into `out` (n_elems * elem_bytes), and returns the CRC-32C of
 * `u32 chunk_number || out` in `crc`. `mode` 0 split, 1 whole. On failure the contents of `out` are undefined. A zstd stream is WP_NEEDS_ZSTD. */
wp_status wp_decode_streams(unsigned isa, unsigned layout, unsigned mode, const wp_stream *streams, unsigned n_streams,
                            size_t n_elems, uint32_t chunk_number, wp_workspace *ws, uint8_t *out, uint32_t *crc);

/* Section 6.3. Decodes one chunk (header, streams, and up to 15 bytes of padding) into `out` and checks its CRC. WP_NEEDS_ZSTD if a stream is zstd. */
wp_status wp_decode_chunk(unsigned isa, unsigned layout, const uint8_t *chunk, size_t chunk_bytes, size_t n_elems, uint32_t chunk_number,
                          uint32_t expected_crc, wp_workspace *ws, uint8_t *out);

/* Among `n` 8-byte words: how many repeat an earlier one? The packer's cue to try zstd. `table` holds 2 * n rounded up to a power of two words, n >= 1. */
size_t wp_count_repeats(const uint8_t *words, size_t n, uint64_t *table, size_t table_words);

#endif
