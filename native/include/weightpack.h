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

/* Numbers of the format; those that Python needs, too, have the same names in weightpack/format/constants.py. */
enum {
    WP_BLOCK = 128,           /* elements of a block (section 7.3), and lanes of rans128x8 (8.3) */
    WP_MAX_PLANES = 8,        /* symbol planes of a layout */
    WP_MAX_STREAMS = 8,       /* streams of a chunk */
    WP_MAX_CHUNK_BLOCKS = 65535,
    WP_MAX_TABLES = 16,       /* codebooks of a stream (sections 8.7, 8.8) */
    WP_MAX_CODE_BITS = 12,    /* of a Huffman code (section 8.4) */
    WP_N_CONTEXTS = 16,       /* of an exponent (sections 8.6, 14.4) */
    WP_MAX_RATE = 15,         /* of a block of differences (section 14.4) */
    WP_N_CELLS = 256,         /* a rate and a context */
    WP_CLASS_BITS = 7,        /* of a class of differences (section 14.3) */
    WP_N_CLASSES = 128,
    WP_FIRST_FREQUENT = 64,   /* from here on, classes are frequent differences */
    WP_MAX_FREQUENT = 64,
    WP_NO_SCALE = -32768,     /* section 14.5 */
    WP_MAX_TILE_SIDE = 8388608, /* section 18.1 */
};

#define WP_MAX_CHUNK_BYTES (1u << 23)
#define WP_MAX_BATCH 64   /* rows of a product; no number of the format */
#define WP_MAX_ANCHORS 16   /* of a grid; no number of the format */
#define WP_MAX_SAMPLE 4096 /* elements of a sample of which scales are tried; no number of the format */
#define WP_MAX_STREAM_BYTES ((1u << 24) - 1)
#define WP_VERBATIM_TILE 0xFFFFFFFFu /* in place of a scale: section 18.2 */

/* Grouped by tens; pinned: the Python side maps them to exceptions. */
typedef enum {
    WP_OK = 0,
    WP_UNSUPPORTED = 10,     /* an id that this library does not know */
    WP_CORRUPT = 20,         /* a field or a stream contradicts another */
    WP_CHECKSUM = 21,        /* decoded, and the CRC differs */
    WP_TRUNCATED = 30,       /* bytes are missing */
    WP_ARGUMENT = 40,        /* the caller broke this header's contract */
    WP_NO_SPACE = 41,        /* the output buffer is too small: nothing useful was written */
    WP_NEEDS_ZSTD = 50,      /* a stream is zstd: expand it, and come again with a raw one */
    WP_NEEDS_CALLER = 51, /* the chunk's mode is beyond a decoder of chunks: put its fields together (section 6.6), find its base (6.7, 6.8), look its codes up
                             (6.9), or copy another (6.10) */
} wp_status;

typedef enum { WP_ISA_SCALAR = 0, WP_ISA_AVX2 = 1, WP_ISA_AVX512 = 2, WP_ISA_NEON = 3, WP_N_ISAS = 4 } wp_isa;

/* Section 6.3: how a chunk is coded. */
typedef enum {
    WP_MODE_SPLIT = 0,
    WP_MODE_WHOLE = 1,
    WP_MODE_FIELDS = 2,
    WP_MODE_DIFFERENCE = 3,
    WP_MODE_SCALED = 4,
    WP_MODE_QUANTISED = 5,
    WP_MODE_REPEATED = 6
} wp_mode;

typedef enum { WP_RAW = 0, WP_CONSTANT = 1, WP_RANS = 2, WP_HUFFMAN = 3, WP_ZSTD = 4, WP_CONTEXT = 5, WP_TABLES = 6, WP_CONDITIONAL = 7, WP_N_CODECS } wp_codec;

typedef enum {
    WP_BYTES1 = 1,
    WP_BYTES2,
    WP_BYTES4,
    WP_BYTES8,
    WP_BF16,
    WP_F16,
    WP_F32,
    WP_F64,
    WP_F8_E4M3,
    WP_F8_E5M2,
    WP_BF16_LEAD,
    WP_F16_LEAD,
    WP_F32_LEAD,
    WP_F8_E4M3_LEAD,
    WP_F8_E5M2_LEAD,
    WP_N_LAYOUTS
} wp_layout_id;

/* Section 7. */
typedef struct {
    uint8_t elem_bytes;
    uint8_t n_planes; /* symbol planes */
    uint8_t plane_bits[WP_MAX_PLANES]; /* width of each symbol */
    uint8_t raw_bits; /* r: width of the raw word; 0: none, the elements are no floats */
    uint8_t exponent_shift, exponent_bits; /* where an element says how large it is (section 14.4); 0 bits: nowhere */
} wp_layout;

static inline int wp_is_float(const wp_layout *l) { return l->raw_bits != 0; }
/* Section 14: may elements be coded as differences? */
static inline int wp_has_differences(const wp_layout *l) { return l->elem_bytes <= 4; }
/* Section 14.5: may scales predict them? They make floats of 8 exponent bits. */
static inline int wp_has_scales(const wp_layout *l) { return wp_is_float(l) && l->exponent_bits == 8; }

/* Section 18: may elements be products of a value and a scale? Floats that one of single precision is rounded to. */
static inline int wp_has_products(const wp_layout *l) { return wp_is_float(l) && (l->elem_bytes == 2 || l->elem_bytes == 4); }

/* Section 8.6: a plane of at most 2 bits that another symbol plane follows may be coded in the context of that one. */
static inline int wp_has_context(const wp_layout *l, unsigned plane) { return plane + 1u < l->n_planes && l->plane_bits[plane] <= 2; }

/* NULL if `id` is unknown. */
const wp_layout *wp_layout_of(unsigned id);

/* "scalar", "avx2", "avx512", "neon"; NULL if out of range. */
const char *wp_isa_name(unsigned isa);
/* 1 if this CPU and operating system can run it (asked each time: no global state). */
int wp_isa_available(unsigned isa);

/* CRC-32C of `data`, continuing from `crc` (0 to start). */
uint32_t wp_crc32c(unsigned isa, uint32_t crc, const uint8_t *data, size_t n_bytes);

/* Occurrences of each symbol; overwrites `counts`. */
void wp_histogram(unsigned isa, const uint8_t *symbols, size_t n, uint32_t counts[256]);

/* Section 7. Splits `n_elems` elements into n_planes symbol planes (n_elems bytes at each planes[p]), one width a block, and the bits stream. `widths` holds
 * ceil(n_elems / 128) bytes and `bits` wp_bits_bound() bytes; both unused where raw_bits is 0. */
wp_status wp_split(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, uint8_t *const *planes, uint8_t *widths, uint8_t *bits,
                   size_t *bits_bytes);
size_t wp_bits_bound(unsigned layout, size_t n_elems);

/* A rANS codebook: which symbols are coded, and how often. Integer arithmetic only, so the same everywhere. */
typedef struct {
    uint8_t n_symbols; /* K */
    uint8_t escape_freq;
    uint8_t symbols[16];
    uint8_t freqs[16];
} wp_rans_book;

/* Chooses the codebook with the least estimated size for these counts (sum >= 1, at least two symbols occur; else WP_ARGUMENT).
 * `cost_bytes` estimates the whole stream. */
wp_status wp_rans_choose(const uint32_t counts[256], wp_rans_book *book, size_t *cost_bytes);

/* Section 8.3. `scratch` holds wp_rans_scratch(n) bytes. Returns WP_NO_SPACE if the stream exceeds `capacity`. */
wp_status wp_rans_encode(unsigned isa, const wp_rans_book *book, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out, size_t capacity,
                         size_t *out_bytes);
size_t wp_rans_scratch(size_t n);

/* Code lengths of section 8.4 for these counts (at least two symbols occur, else WP_ARGUMENT): Huffman's, of at most 12 bits. Integers, so the same
 * everywhere. Depths are at most 255: the counts of a plane, of at most 2^24 symbols in all, make no deeper tree. */
wp_status wp_huffman_lengths(const uint32_t counts[256], uint8_t lengths[256]);
/* The length of the stream that they give, but for the fill bits of its bitstreams: at most so much. */
size_t wp_huffman_bytes(const uint8_t lengths[256], const uint32_t counts[256]);

/* Section 8.4. `lengths[s]` is 0 or 1..12; they must form a complete code that covers `symbols`, else WP_ARGUMENT. */
wp_status wp_huffman_encode(const uint8_t lengths[256], const uint8_t *symbols, size_t n, uint8_t *out, size_t capacity, size_t *out_bytes);

/* One stream of an encoded chunk, and the plane that it stands for. */
typedef struct {
    unsigned codec; /* constant, rans, tables, context, huffman or raw */
    size_t begin, n_bytes; /* of the stream, from the chunk's begin */
    const uint8_t *plane; /* what was encoded; in the workspace, until its next use */
    size_t plane_bytes;
    size_t repeats; /* wp_sample_repeats of the plane */
} wp_encoded_stream;

typedef struct {
    wp_encoded_stream streams[WP_MAX_STREAMS];
    unsigned n_streams;
    size_t n_bytes; /* of the chunk, padding included */
    size_t repeats; /* wp_sample_repeats of the elements */
    uint32_t crc; /* of u32 chunk_number || elements */
} wp_encoded_chunk;

/* Which codecs are allowed: rans with up to `most_tables` codebooks, or context (0: neither), and huffman. */
typedef struct { unsigned most_tables, huffman; } wp_codecs;

/* Sections 6.3, 7, 8.3 and 8.4. Encodes one chunk in split mode, each plane constant, raw, or of an allowed codec, whichever is least by its statistics, in one
 * pass over the elements; `chunk` tells what a caller needs to know to try other codecs. `out` holds wp_encode_bound() bytes, `workspace`
 * wp_encode_workspace_bytes(). */
wp_status wp_encode_chunk(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, uint32_t chunk_number, wp_codecs codecs, uint8_t *workspace,
                          uint8_t *out, wp_encoded_chunk *chunk);
size_t wp_encode_bound(unsigned layout, size_t n_elems);

/* Encodes chunks of `chunk_elems` elements (the last one what is left), one behind the other in `out` (wp_encode_bound() for each), numbered from
 * `first_number`: their lengths to `sizes`, their CRCs to `crcs`, their count to `n_done`. Stops behind a chunk that zstd may make smaller, with `*stopped` 1:
 * more than 1/repeat_share (0: always) of a plane's sampled words repeated, or of the elements', or the chunk is not smaller than its elements;
 * `last` is the last chunk encoded. */
wp_status wp_encode_chunks(unsigned isa, unsigned layout, const uint8_t *elems, size_t n_elems, size_t chunk_elems, uint32_t first_number, wp_codecs codecs,
                           size_t repeat_share, uint8_t *workspace, uint8_t *out, uint32_t *sizes, uint32_t *crcs, size_t *n_done, int *stopped,
                           wp_encoded_chunk *last);
size_t wp_encode_workspace_bytes(unsigned layout, size_t n_elems);

typedef struct {
    unsigned codec;
    const uint8_t *data;
    size_t n_bytes;
} wp_stream;

/* Scratch of the decoders; allocate with wp_workspace_bytes(), no initialisation needed, one a thread. */
typedef struct wp_workspace wp_workspace;
size_t wp_workspace_bytes(void);

/* Sections 6.3 to 8. Decodes one chunk, cache-sized batch by batch, straight into `out` (n_elems * elem_bytes), and returns the CRC-32C of
 * `u32 chunk_number || out` in `crc`. `mode` is split or whole (others: WP_UNSUPPORTED). On failure the contents of `out` are undefined. A zstd stream is
 * WP_NEEDS_ZSTD. */
wp_status wp_decode_streams(unsigned isa, unsigned layout, unsigned mode, const wp_stream *streams, unsigned n_streams, size_t n_elems, uint32_t chunk_number,
                            wp_workspace *ws, uint8_t *out, uint32_t *crc);

/* Section 6.3. Decodes one chunk (header, streams, and up to 15 bytes of padding) into `out` and checks its CRC. WP_NEEDS_ZSTD if a stream is zstd,
 * WP_NEEDS_CALLER if the mode is neither split nor whole. */
wp_status wp_decode_chunk(unsigned isa, unsigned layout, const uint8_t *chunk, size_t chunk_bytes, size_t n_elems, uint32_t chunk_number, uint32_t expected_crc,
                          wp_workspace *ws, uint8_t *out);

/* Decodes the chunks [*next, n_chunks) of a record, each as wp_decode_chunk does: chunk i has n_chunk_elems elements (the last one what is left of n_elems),
 * stands at offsets[i] - offsets[0] of `data`, ends where the next begins, and goes to `out` behind its predecessors; chunk i's number is first_number + i.
 * Stops at the first that is not WP_OK and leaves its index in *next. offsets has n_chunks + 1 entries, crcs n_chunks. */
wp_status wp_decode_chunks(unsigned isa, unsigned layout, const uint8_t *data, size_t data_bytes, const int64_t *offsets, const uint32_t *crcs, size_t n_chunks,
                           size_t chunk_elems, size_t n_elems, uint32_t first_number, wp_workspace *ws, uint8_t *out, size_t *next);

/* ---- Products with a matrix while it is decoded. */

typedef enum { WP_FLOAT_BF16 = 0, WP_FLOAT_F16 = 1, WP_FLOAT_F32 = 2, WP_N_FLOATS = 3 } wp_float;

/* Rows of n_cols elements of a type, each times each of `batch` rows of x (n_cols floats, one after the other; at most WP_MAX_BATCH): the products are added to
 * `sums`, `batch` floats for each row of the matrix, in single precision and an order that the ISA has. `sums` begins with the row that the first element is
 * of. */
typedef struct {
    unsigned type;
    size_t n_cols, batch;
    const float *x;
    float *sums;
} wp_product;

/* As wp_decode_chunks, but elements are multiplied in place of being written. Chunk 0 begins with element first_number * chunk_elems of the matrix. What is in
 * `sums` after a failure, but for WP_NEEDS_ZSTD and WP_NEEDS_CALLER, is undefined. WP_ARGUMENT if the type does not fit the layout, or there are too many rows.
 */
wp_status wp_multiply_chunks(unsigned isa, unsigned layout, const uint8_t *data, size_t data_bytes, const int64_t *offsets, const uint32_t *crcs,
                             size_t n_chunks, size_t chunk_elems, size_t n_elems, uint32_t first_number, const wp_product *product, wp_workspace *ws,
                             size_t *next);

/* The same for n_elems that are decoded; the first is number `elem` of the matrix, counted from the first of the row that `sums` begins with. */
wp_status wp_multiply(unsigned isa, const wp_product *product, const uint8_t *elems, size_t n_elems, uint64_t elem);

/* ---- Section 14: elements as differences from a base. Layouts of 1, 2 and 4 bytes; both sides have the same layout. `shift`: low bits that are dropped, zero
 * in the elements; at most word bits - 2. `frequent` are n_frequent differences (u32, modulo 2^(word bits - shift)), at most 64, that are classes of their own.
 */

/* Decodes the streams of sections 6.7 and 6.8 that say the differences (rates, classes, extras; none of them zstd) onto `base` (n_elems * elem_bytes). As
 * wp_decode_streams. */
wp_status wp_decode_difference(unsigned isa, unsigned layout, unsigned shift, const uint8_t *frequent, unsigned n_frequent, const wp_stream streams[3],
                               const uint8_t *base, size_t n_elems, uint32_t chunk_number, wp_workspace *ws, uint8_t *out, uint32_t *crc);

/* The first look: the contexts of the elements (n_elems bytes), and of each block 0 if it equals its base, else 1 + floor(log2) of the sum of its differences,
 * each weighted by its base's exponent. */
wp_status wp_difference_planes(unsigned isa, unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, uint8_t *exponents,
                               uint8_t *scales);

/* The second, with each block's rate (0..15) known: of the blocks whose rate is not 0, each element's cell (rate * 16 + exponent context) and class, how often
 * each pair occurs (counts[0][cell * WP_N_CLASSES + class]; counts[1] is scratch), and the extra bits (wp_difference_extras_bound). `cells` and `classes` have
 * room for n_elems bytes. */
wp_status wp_difference_code(unsigned isa, unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, const uint8_t *rates,
                             unsigned base_exponent, const uint8_t *frequent, unsigned n_frequent, uint8_t *cells, uint8_t *classes,
                             uint32_t counts[2][WP_N_CELLS * WP_N_CLASSES], uint8_t *extras, size_t *n_changed, size_t *extras_bytes);
size_t wp_difference_extras_bound(size_t n_elems);

/* Differences themselves, modulo 2^(word bits - shift) (section 14.2), n_elems of them: what `frequent` is chosen from. */
wp_status wp_modular_differences(unsigned layout, unsigned shift, const uint8_t *elems, const uint8_t *base, size_t n_elems, uint32_t *differences);

/* Chooses codebooks of section 8.8 for counts[cell * WP_N_CLASSES + class], whose sum is 1 to 2^32 - 1, none in a cell of rate 0 (else WP_ARGUMENT): each
 * cell's is books[map[cell]]; rates above n_rates do not occur. `logs[v]` is floor(2^12 * log2(v)) for v = 1..4096. */
wp_status wp_conditional_books(const uint32_t counts[WP_N_CELLS * WP_N_CLASSES], const uint16_t logs[4097], wp_rans_book books[WP_MAX_TABLES],
                               unsigned *n_books, uint8_t map[WP_N_CELLS], unsigned *n_rates);

/* Section 8.8: symbol i has the codebook books[map[cells[i]]]. `scratch` holds wp_rans_scratch(n) bytes. */
wp_status wp_conditional_encode(unsigned isa, const wp_rans_book *books, unsigned n_books, unsigned base_exponent, unsigned n_rates,
                                const uint8_t map[WP_N_CELLS], const uint8_t *cells, const uint8_t *symbols, size_t n, uint8_t *scratch, uint8_t *out,
                                size_t capacity, size_t *out_bytes);

/* Section 14.5: the base that n_scales scales (i16: of rows, then of n_cols columns) and signs (one bit an element) make of n_elems elements, the first of
 * which is in column `phase`. WP_CORRUPT for a layout that has none, WP_ARGUMENT if the count of scales is not that of the rows and columns. */
wp_status wp_scaled_base(unsigned layout, const uint8_t *scales, size_t n_scales, size_t n_cols, size_t phase, const uint8_t *signs, size_t n_elems,
                         uint8_t *base);

/* How much scales of rows and columns tell of a sample of elements, `upper` being the 15 bits behind the sign of n_rows * n_cols <= WP_MAX_SAMPLE of them: the
 * entropy of eighths of an octave, in sixteenths of a bit, less that of what the scales leave. 0 if all are zero. `logs[v]` is floor(16 * log2(v)) for v up
 * to WP_MAX_SAMPLE. */
int wp_scales_gain(const uint16_t *upper, size_t n_rows, size_t n_cols, const uint8_t logs[WP_MAX_SAMPLE + 1]);

/* ---- Section 18: elements that are a value times the scale of their tile. Layouts of BF16, F16 and F32. */

/* Section 18.1: rows of `cols` elements, cut into tiles of tile_rows times tile_cols. */
typedef struct { size_t cols, tile_rows, tile_cols; } wp_tiling;

/* How many tiles n_elems (at least 1) are; each member of the tiling is at least 1. */
size_t wp_tiles(wp_tiling tiling, size_t n_elems);

/* Decodes a chunk whose planes are decoded: `values` are n_values floats (u32, 1..256 of them), `scales` the four byte planes of the tiles' scales, the highest
 * first, `codes` n_elems numbers of values, `verbatim` the elements of the tiles that have no scale. Returns the CRC as wp_decode_streams does. */
wp_status wp_quantised_decode(unsigned isa, unsigned layout, const uint8_t *values, size_t n_values, const uint8_t *scales, wp_tiling tiling,
                              const uint8_t *codes, size_t n_elems, const uint8_t *verbatim, size_t verbatim_bytes, uint32_t chunk_number, uint8_t *out,
                              uint32_t *crc);

/* What elements may have been quantised to: `values`, ascending floats (u32; minus zero, if it is there, before zero). A tile's scale is looked for with its
 * least element that is no zero (from_least), or its largest, taken for each of the anchors in turn. */
typedef struct {
    uint32_t values[256], anchors[WP_MAX_ANCHORS];
    unsigned n_values, n_anchors, from_least;
} wp_grid;

/* Finds the scale of each tile, the simplest that gives every element exactly, WP_VERBATIM_TILE if there is none, and each element's number in the grid's
 * values, 0 in such tiles; counts the elements of those in `n_verbatim`. `scratch`, aligned to 4, holds wp_quantised_scratch(n_elems) bytes. */
wp_status wp_quantised_fit(unsigned layout, const uint8_t *elems, size_t n_elems, wp_tiling tiling, const wp_grid *grid, uint8_t *scratch, uint32_t *scales,
                           uint8_t *codes, size_t *n_verbatim);
size_t wp_quantised_scratch(size_t n_elems);

/* How many 8-byte words of a sample repeat an earlier one? The packer's cue to try zstd. The sample is two runs of up to 8 KiB, from the begin and from the
 * middle (rounded down to 8), each counted for itself; less than a word at a run's end is ignored. Up to 4096 bytes are looked at as a whole, wherever what
 * repeats stands: each longest match of 6 bytes and more counts for all but 5 of them, and eight such bytes for a word. Exact, so the same on every machine. */
size_t wp_sample_repeats(const uint8_t *data, size_t n_bytes);

#endif
