/* SPDX-License-Identifier: Apache-2.0
 *
 * The hot loops, one table of function pointers for each ISA. A kernel sees whole groups of 128 elements only; the callers (split.c,
 * decode.c, rans.c, context.c, conditional.c) handle ends. Kernels have no state, allocate nothing, and must give the same bytes on every ISA: scalar is the
 * definition.
 */
#ifndef WP_KERNELS_H
#define WP_KERNELS_H

#include "weightpack.h"

/* A rANS decoder between calls. renorm and literals point into the stream until fewer than WP_TAIL bytes are left; then wp_rans_guard()
 * moves them to the zero-padded copies below, so that a kernel may read WP_OVERREAD bytes beyond the end without leaving a buffer. */
enum { WP_TAIL = 256, WP_OVERREAD = 256 };

/* What a codebook says, as decoders need it. */
typedef struct {
    uint8_t n_symbols;                 /* K: the rank of the escape */
    uint8_t has_escape;
    /* By rank, 16 entries. Unused ranks: freq 0, start 255, symbol 0. With 15 symbols or fewer, entry K is the escape. */
    uint8_t freq[16], start[16], symbol[16];
    /* threshold[i][r]: a slot above it belongs to rank r + 2^i or more; 255 if there is no such rank. */
    uint8_t threshold[4][16];
    uint8_t rank_of_slot[256];
    /* By slot: freq | (slot - start) << 8 | symbol << 16 | is_escape << 24. */
    uint32_t by_slot[256];
} wp_rans_table;

typedef struct {
    uint16_t x[WP_BLOCK];
    const uint8_t *renorm, *renorm_end, *literals, *literals_end;
    uint8_t renorm_in_tail, literals_in_tail;
    const wp_rans_table *table;        /* of the groups that a kernel is called for */
    uint8_t renorm_tail[WP_TAIL + WP_OVERREAD], literals_tail[WP_TAIL + WP_OVERREAD];
    /* What is not the kernels'. Section 8.7: the table of block j is number id j of `ids`, each `id_bits` wide. Section 8.3: one table, no ids. */
    unsigned n_tables, id_bits;
    size_t block_groups, group;        /* groups of a block; the next group's number */
    const uint8_t *ids;
    wp_rans_table tables[WP_MAX_TABLES];
} wp_rans_decoder;

/* Near its end, a stream moves to a zero-padded copy. */
static inline void wp_guard_stream(const uint8_t **p, const uint8_t **end, uint8_t *in_tail, uint8_t tail[WP_TAIL + WP_OVERREAD]) {
    if (*in_tail || *end - *p >= WP_TAIL) return;
    size_t left = (size_t)(*end - *p);
    for (size_t i = 0; i < WP_TAIL + WP_OVERREAD; i++) tail[i] = i < left ? (*p)[i] : 0;
    *p = tail;
    *end = tail + left;
    *in_tail = 1;
}

/* Call before each group. Afterwards WP_OVERREAD bytes may be read at `renorm` and at `literals`. After a group that ran on tail copies, the kernel must check
 * renorm <= renorm_end and literals <= literals_end (else WP_TRUNCATED); before that, a group (at most 128 bytes each) can't pass the end. */
static inline void wp_rans_guard(wp_rans_decoder *d) {
    wp_guard_stream(&d->renorm, &d->renorm_end, &d->renorm_in_tail, d->renorm_tail);
    wp_guard_stream(&d->literals, &d->literals_end, &d->literals_in_tail, d->literals_tail);
}

/* Section 8.8. Codebook b's rank r at [16 b + r]; the escape is a symbol of its own. step8[b], step4[2 b + i], step2[4 b + i], step1[8 b + i]: a slot above it
 * belongs to rank 8, to 4 + 8 i, 2 + 4 i, 1 + 2 i or more; 255 if there is no such rank. */
enum { WP_CONDITIONAL_ESCAPE = 255 };

typedef struct {
    uint8_t freq[256], start[256], symbol[256];
    uint8_t step8[16], step4[64], step2[64], step1[128];
    uint32_t by_slot[16 * 256]; /* [256 b + slot]: freq | (slot - start) << 8 | symbol << 16 */
} wp_conditional_tables;

/* Section 14.3. Of a class: how many extra bits it has, the sign among them, | the magnitude without them << 8; of a frequent difference 0 | itself << 8; of
 * one that must not be, WP_NO_CLASS. The same by bytes, for vectors: extra bits, 0x80 for no class; and the magnitude. */
#define WP_NO_CLASS ((uint64_t)1 << 63)
typedef struct {
    uint64_t entry[WP_N_CLASSES];
    uint8_t extra[WP_N_CLASSES], lead[4][WP_N_CLASSES];
} wp_class_table;
/* Of a block: in 16 bits for words of 16, else in 32. */
typedef union {
    uint16_t of_2[WP_BLOCK];
    uint32_t of_4[WP_BLOCK];
} wp_differences;

/* Section 8.6. A decoder between calls; `start[s - 1][c]` is where symbol s = 1, 2, 3 starts in context c. The same guard holds for `renorm`. */
enum { WP_CONTEXT_SYMBOLS = 4 };

typedef struct {
    uint16_t x[WP_BLOCK];
    const uint8_t *renorm, *renorm_end;
    uint8_t renorm_in_tail, base;
    uint8_t start[WP_CONTEXT_SYMBOLS - 1][WP_N_CONTEXTS];
    uint8_t renorm_tail[WP_TAIL + WP_OVERREAD];
} wp_context_decoder;

static inline void wp_context_guard(wp_context_decoder *d) { wp_guard_stream(&d->renorm, &d->renorm_end, &d->renorm_in_tail, d->renorm_tail); }

static inline unsigned wp_context_of(uint8_t symbol, uint8_t base) {
    unsigned above = symbol < base ? 0 : (unsigned)(symbol - base);
    return above < WP_N_CONTEXTS ? above : WP_N_CONTEXTS - 1;
}

/* What a codebook says, as encoders need it. */
typedef struct {
    uint8_t n_symbols, has_escape;
    uint8_t rank_of_symbol[256];       /* K for an escaped symbol */
    uint16_t freq[17], start[17];      /* by rank; [K] is the escape */
    uint16_t reciprocal[17];           /* min(65535, ceil(65536 / freq)): see rans_encode in kernels_scalar.c */
    /* For vectors, which need 16 entries: rank 16 is an escape that a book of 16 symbols does not have. */
    uint8_t freq8[16], start8[16];
    uint16_t quotient[32];             /* min(65535, floor(65536 / freq)) of 16 ranks, and zeros */
    uint8_t quotient_low[16], quotient_high[16];
    /* Ranks by symbol, for each high nibble that a coded symbol has (two or three for the exponents of a tensor): rank ^ K, so that 0 is "not coded". */
    uint8_t n_nibbles, nibble[16], ranks_of_nibble[16][16];
} wp_rans_encoder_table;

/* A rANS encoder between calls: it runs backwards. Both pointers move down; a kernel may write up to 64 bytes below them. */
typedef struct {
    uint16_t x[WP_BLOCK];
    uint8_t *renorm, *literals;
    const wp_rans_encoder_table *table;
} wp_rans_encoder;

/* Section 8.8: entry[book * WP_N_CLASSES + class]: freq | start << 8 | is_escape << 16; freq is 0 for an escape that a book does not have. */
typedef struct {
    uint16_t x[WP_BLOCK];
    uint8_t *renorm, *literals;
    uint8_t map[WP_N_CELLS];           /* cell -> book */
    uint32_t entry[WP_MAX_TABLES * WP_N_CLASSES];
} wp_conditional_encoder;

/* The same in a context (section 8.6). Tables are indexed by context * 4 + symbol; frequencies are 1 to 253. */
typedef struct {
    uint16_t x[WP_BLOCK];
    uint8_t *renorm;
    uint8_t base;
    uint8_t freq[WP_N_CONTEXTS * WP_CONTEXT_SYMBOLS], start[WP_N_CONTEXTS * WP_CONTEXT_SYMBOLS];
} wp_context_encoder;

typedef struct {
    uint32_t (*crc32c)(uint32_t crc, const uint8_t *data, size_t n_bytes);
    void (*histogram)(const uint8_t *symbols, size_t n, uint32_t counts[256]);
    /* Decodes n_groups groups of 128 symbols in order. */
    wp_status (*rans_decode)(wp_rans_decoder *d, uint8_t *out, size_t n_groups);
    /* Encodes n_groups groups of 128 symbols, the last group first. */
    void (*rans_encode)(wp_rans_encoder *e, const uint8_t *symbols, size_t n_groups);
    /* The same in the context of `next`, the symbols of the plane that follows. */
    wp_status (*context_decode)(wp_context_decoder *d, const uint8_t *next, uint8_t *out, size_t n_groups);
    void (*context_encode)(wp_context_encoder *e, const uint8_t *next, const uint8_t *symbols, size_t n_groups);
    /* Decodes one group of 128 symbols, each with the codebook row[context of its exponent] < n_tables of `d`; `t` says the same. */
    wp_status (*conditional_decode)(wp_rans_decoder *d, const wp_conditional_tables *t, const uint8_t row[16], uint8_t base_exponent, const uint8_t *exponents,
                                    uint8_t *out);
    /* Encodes n <= 128 symbols, each with the codebook of its cell, the last one first; WP_ARGUMENT if a codebook lacks one. */
    wp_status (*conditional_encode)(wp_conditional_encoder *e, const uint8_t *cells, const uint8_t *symbols, size_t n);
    /* Section 14, see difference_kernels.h. `differences` may read 16 bytes behind the last bit, and returns UINT64_MAX if there is a class that must not be.
     */
    void (*exponents)(const uint8_t *base, size_t m, unsigned bytes, unsigned shift, unsigned mask, uint8_t *out);
    uint64_t (*differences)(const wp_class_table *t, const uint8_t *classes, size_t m, const uint8_t *bits, uint64_t position, unsigned bytes,
                            wp_differences *d);
    void (*apply)(const uint8_t *base, unsigned bytes, unsigned shift, int is_float, const wp_differences *d, size_t m, uint8_t *out);
    /* Their reverse, of m <= 128 elements. */
    void (*difference_words)(const uint8_t *elems, const uint8_t *base, size_t m, unsigned bytes, unsigned shift, int is_float, uint32_t *magnitude,
                             uint32_t *negative);
    uint64_t (*difference_size)(const uint32_t *magnitude, const uint8_t *exponents, size_t m, unsigned lowest);
    void (*difference_classes)(const uint32_t *magnitude, const uint32_t *negative, size_t m, uint8_t *classes, uint8_t *n_extra, uint32_t *extra);
    /* Adds to sums[b], for each of `batch` rows of x, which are `stride` apart, the dot product with n elements. Indexed by wp_float. See dot_kernels.h. */
    void (*dot[WP_N_FLOATS])(const uint8_t *elems, size_t n, const float *x, size_t stride, size_t batch, float *sums);
    /* Whole blocks of full width: planes[p] + element, `bits` as in section 7.4 with w = raw_bits. Indexed by layout id. */
    void (*merge[WP_N_LAYOUTS])(const uint8_t *const *planes, const uint8_t *bits, size_t n_blocks, uint8_t *elems);
    /* The reverse. widths[b] gets the block's width; the bits of every block are written in full width all the same. */
    void (*split[WP_N_LAYOUTS])(const uint8_t *elems, size_t n_blocks, uint8_t *const *planes, uint8_t *widths, uint8_t *bits);
} wp_kernels;

/* The functions merge_<layout>() or split_<layout>() of a file, for the tables above. */
#define WP_BY_LAYOUT(f)                    \
    {[WP_BYTES1] = f##_bytes1,             \
     [WP_BYTES2] = f##_bytes2,             \
     [WP_BYTES4] = f##_bytes4,             \
     [WP_BYTES8] = f##_bytes8,             \
     [WP_BF16] = f##_bf16,                 \
     [WP_F16] = f##_f16,                   \
     [WP_F32] = f##_f32,                   \
     [WP_F64] = f##_f64,                   \
     [WP_F8_E4M3] = f##_f8_e4m3,           \
     [WP_F8_E5M2] = f##_f8_e5m2,           \
     [WP_BF16_LEAD] = f##_bf16_lead,       \
     [WP_F16_LEAD] = f##_f16_lead,         \
     [WP_F32_LEAD] = f##_f32_lead,         \
     [WP_F8_E4M3_LEAD] = f##_f8_e4m3_lead, \
     [WP_F8_E5M2_LEAD] = f##_f8_e5m2_lead}

extern const wp_kernels wp_kernels_scalar;
/* Of ISAs that have no faster one. */
wp_status wp_conditional_decode_scalar(wp_rans_decoder *d, const wp_conditional_tables *t, const uint8_t row[16], uint8_t base_exponent,
                                       const uint8_t *exponents, uint8_t *out);
wp_status wp_conditional_encode_scalar(wp_conditional_encoder *e, const uint8_t *cells, const uint8_t *symbols, size_t n);
#if defined(__x86_64__) || defined(_M_X64)
#define WP_X86_64 1
extern const wp_kernels wp_kernels_avx2;
extern const wp_kernels wp_kernels_avx512;
#elif defined(__aarch64__) && !defined(_MSC_VER)
#define WP_AARCH64 1
extern const wp_kernels wp_kernels_neon;
#endif

/* `isa` must be available. */
const wp_kernels *wp_kernels_of(unsigned isa);

/* Bytes of a block of `m` elements and width `w` (section 7.4). */
static inline size_t wp_block_bytes(unsigned w, size_t m) { return (size_t)(w / 8) * m + (size_t)(w % 8) * ((m + 7) / 8); }

#endif
