// SPDX-License-Identifier: Apache-2.0
//
// Chunks -> elements on a GPU (docs/FORMAT.md, sections 6.3 to 8.3, 8.6 and 8.7): one warp a chunk, checksum included.
//
// READ ME FIRST. A warp of 32 threads decodes a chunk by groups of 128 elements, the lanes of rans128x8 (8.3): thread t has lanes 4t to 4t + 3, so that it
// writes its four elements at once. The lanes that need a byte take them in order: a thread's first is as many bytes ahead as threads before it take, which
// four votes and four counts of bits tell. The bytes stand in a ring of 256 in shared memory; a thread asks for its word of the next 128 long before it is
// needed. The CRC-32C is taken from the registers, a CRC for each of a thread's words, and put together at the end.
//
// A chunk's status is 0 only if every rule of the format that the CPU's decoder checks holds and the CRC matches. Anything else, bad or only unknown here, is
// 1: the CPU decodes it, and says what is wrong.
//
// Nothing outside [in, in + in_bytes + READ_PAST) is read, none of it after in_bytes is looked at, and nothing outside [out, out + n_elems * elem_bytes) is written, whatever the bytes are.
//
// The same text is compiled for the host, with a warp of 32 fibres in lock step (native/tests/gpu_host.cpp), which is how it is tested without a GPU.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef WP_HOST
#define WP_DEVICE static __device__ __forceinline__
#define WP_ONCE static __device__ __noinline__
#define WP_METHOD __device__ __forceinline__
#define WP_CONSTEXPR constexpr __host__ __device__
WP_DEVICE u32 lane_id() { return threadIdx.x & 31; }
WP_DEVICE u32 vote(bool is) { return __ballot_sync(0xffffffffu, is); }
WP_DEVICE u32 shuffle(u32 v, u32 from) { return __shfl_sync(0xffffffffu, v, from); }
WP_DEVICE void sync_warp() { __syncwarp(); }
WP_DEVICE u32 count_bits(u32 v) { return __popc(v); }
WP_DEVICE u32 load_word(const u8 *p) { return __ldg((const u32 *)p); }
WP_DEVICE u32 load_byte(const u8 *p) { return __ldg(p); }
WP_DEVICE bool is_any(bool is) { return __any_sync(0xffffffffu, is); }
WP_DEVICE u32 permute(u32 a, u32 b, u32 which) { return __byte_perm(a, b, which); }
WP_DEVICE u32 funnel(u32 low, u32 high, u32 bits) { return __funnelshift_r(low, high, bits); }
#define WP_UNROLL _Pragma("unroll")
#endif

enum { BLOCK = 128, MAX_TABLES = 4, RING = 256, N_CONTEXTS = 16, READ_PAST = 512 };
enum { RAW = 0, CONSTANT = 1, RANS = 2, CONTEXT = 5, TABLES = 6 };

// A chunk to decode. `in`: 16-byte aligned, header, streams and up to 15 bytes of padding, in_bytes of them, a multiple of 16; READ_PAST bytes after them can
// be read. `out`: 16-byte aligned.
struct wp_chunk {
    u64 in, out;
    u32 in_bytes, n_elems, number, crc;
};

// What a warp has in shared memory.
struct Warp {
    u32 crc_table[1024];         // crc_step
    u32 tables[MAX_TABLES][256]; // of the last plane: by slot, frequency | slot - start << 8 | symbol << 16 | escape << 24
    u32 other[256];              // of the plane before it, or of the widths
    u32 rings[3][RING / 4];
    u32 widths[BLOCK / 4];
    u32 starts[N_CONTEXTS];      // of the codec context: start[1] | start[2] << 8 | start[3] << 16
};

// ---- CRC-32C, of polynomials with bit 31 as x^0 ----

constexpr u32 POLYNOMIAL = 0x82f63b78u, ONE = 0x80000000u;

WP_CONSTEXPR u32 product(u32 a, u32 b) {
    u32 p = 0;
    for (u32 i = 0; i < 32; i++) {
        if (a >> 31) p ^= b;
        a <<= 1;
        b = b & 1 ? b >> 1 ^ POLYNOMIAL : b >> 1;
    }
    return p;
}

WP_CONSTEXPR u32 power(u32 bits) { // x^bits
    u32 result = ONE, square = ONE >> 1;
    for (; bits; bits >>= 1) {
        if (bits & 1) result = product(result, square);
        square = product(square, square);
    }
    return result;
}

// Tables of a CRC's product with `factor`, one for each of its bytes. Each thread makes the product of one bit, and entries are sums of those.
WP_DEVICE void open_crc_table(u32 *table, u32 factor) {
    const u32 t = lane_id(), of_bit = product(factor, 1u << t);
    for (u32 byte = 0; byte < 4; byte++) {
        u32 entries[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (u32 bit = 0; bit < 8; bit++) {
            const u32 one = shuffle(of_bit, 8 * byte + bit);
            for (u32 i = 0; i < 8; i++)
                if ((32 * i + t) >> bit & 1) entries[i] ^= one;
        }
        for (u32 i = 0; i < 8; i++) table[256 * byte + 32 * i + t] = entries[i];
    }
}

WP_DEVICE u32 crc_step(const u32 *table, u32 crc) {
    return table[crc & 255] ^ table[256 + (crc >> 8 & 255)] ^ table[512 + (crc >> 16 & 255)] ^ table[768 + (crc >> 24)];
}

WP_DEVICE u32 crc_byte(u32 crc, u32 byte) {
    crc ^= byte;
    for (int i = 0; i < 8; i++) crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
    return crc;
}

// ---- rans128x8 ----

WP_DEVICE u32 load16(const u8 *p) { return load_byte(p) | load_byte(p + 1) << 8; }
WP_DEVICE u32 load32(const u8 *p) { return load16(p) | load16(p + 2) << 16; }

// Four lanes of a stream, and where its bytes are.
struct Rans {
    u32 x[4];
    const u8 *base, *limit; // the bytes from 16-byte aligned `base` on; `limit`: the chunk's end
    u32 position, end;      // of the renormalisation bytes, from `base`
    u32 window, ahead;      // its ring holds bytes [128 * window, 128 * window + 256); this thread's word after those
    const u8 *literals;
    u32 n_literals, literal; // their count, and the next
};

WP_DEVICE u32 window_word(const Rans &r, u32 window) {
    const u8 *p = r.base + window * 128u + lane_id() * 4u;
    return p < r.limit ? load_word(p) : 0;
}

WP_DEVICE bool open_states(Rans &r, const u8 *p, const u8 *end, bool has_literals, const u8 *limit, u32 *ring) {
    if (end - p < 2 * BLOCK + (has_literals ? 4 : 0)) return false;
    const u32 t = lane_id();
    bool low = false;
    for (u32 j = 0; j < 4; j++) {
        r.x[j] = load16(p + 8 * t + 2 * j);
        low |= r.x[j] < 256;
    }
    if (vote(low)) return false;
    p += 2 * BLOCK;
    u32 n = (u32)(end - p);
    if (has_literals) {
        n = load32(p);
        p += 4;
        if (n > (u64)(end - p)) return false;
    }
    r.literals = p + n;
    r.n_literals = (u32)(end - r.literals);
    r.literal = 0;
    r.position = (u32)((u64)p & 15);
    r.base = p - r.position;
    r.end = r.position + n;
    r.limit = limit;
    r.window = 0;
    sync_warp();
    ring[t] = window_word(r, 0);
    ring[32 + t] = window_word(r, 1);
    r.ahead = window_word(r, 2);
    sync_warp();
    return true;
}

// Which lanes of this thread take a byte -> how many bytes ahead its first one is; `total` of all threads.
WP_DEVICE u32 places(const bool need[4], u32 &total) {
    const u32 lower = (1u << lane_id()) - 1;
    u32 ahead = 0, own = 0;
    WP_UNROLL for (u32 j = 0; j < 4; j++) {
        ahead += count_bits(vote(need[j]) & lower);
        own += need[j];
    }
    total = shuffle(ahead + own, 31);
    return ahead;
}

WP_DEVICE void renormalise(Rans &r, u32 *ring, const bool need[4]) {
    u32 total, at = r.position + places(need, total);
    WP_UNROLL for (u32 j = 0; j < 4; j++) {
        if (need[j]) r.x[j] = r.x[j] << 8 | ((const u8 *)ring)[at & (RING - 1)];
        at += need[j];
    }
    r.position += total;
    if (r.position >> 7 != r.window) { // by one: a group takes at most 128 bytes
        r.window++;
        sync_warp();
        ring[(r.window + 1) % 2 * 32 + lane_id()] = r.ahead;
        r.ahead = window_word(r, r.window + 2);
        sync_warp();
    }
}

// One group: symbols of this thread's lanes at bits 16 to 23 of e[j]. Lanes from `m` on rest. False if a literal is none of `bits` bits.
template <bool WHOLE> WP_DEVICE bool next_symbols(Rans &r, u32 *ring, const u32 *table, u32 m, u32 bits, u32 e[4]) {
    bool need[4], good = true;
    const u32 lane = 4 * lane_id();
    WP_UNROLL for (u32 j = 0; j < 4; j++) {
        const bool is = WHOLE || lane + j < m;
        e[j] = is ? table[r.x[j] & 255] : 0;
        if (is) r.x[j] = (e[j] & 255) * (r.x[j] >> 8) + permute(e[j], 0, 0x4441);
        need[j] = is && r.x[j] < 256;
    }
    renormalise(r, ring, need);
    if (is_any((e[0] | e[1] | e[2] | e[3]) >> 24)) {
        bool escaped[4];
        for (u32 j = 0; j < 4; j++) escaped[j] = e[j] >> 24;
        u32 total, at = r.literal + places(escaped, total);
        for (u32 j = 0; j < 4; j++)
            if (escaped[j]) {
                const u32 symbol = at < r.n_literals ? load_byte(r.literals + at) : 0;
                at++;
                good &= symbol >> bits == 0;
                e[j] = symbol << 16;
            }
        r.literal += total;
    }
    return good;
}

// As next_symbols, of section 8.6, in the contexts of `next`, the symbols of the plane that follows, likewise at bits 16 to 23.
template <bool WHOLE> WP_DEVICE void next_in_context(Rans &r, u32 *ring, const u32 *starts, u32 base, u32 m, const u32 next[4], u32 e[4]) {
    bool need[4];
    const u32 lane = 4 * lane_id();
    WP_UNROLL for (u32 j = 0; j < 4; j++) {
        const bool is = WHOLE || lane + j < m;
        const int over = (int)(next[j] >> 16 & 255) - (int)base;
        const u32 s = starts[over < 0 ? 0 : over > 15 ? 15 : over], slot = r.x[j] & 255;
        const u32 s1 = s & 255, s2 = s >> 8 & 255, s3 = s >> 16;
        const bool a = slot >= s1, b = slot >= s2, c = slot >= s3;
        const u32 start = c ? s3 : b ? s2 : a ? s1 : 0, end = c ? 256 : b ? s3 : a ? s2 : s1;
        e[j] = is ? ((u32)a + b + c) << 16 : 0;
        if (is) r.x[j] = (end - start) * (r.x[j] >> 8) + slot - start;
        need[j] = is && r.x[j] < 256;
    }
    renormalise(r, ring, need);
}

WP_DEVICE bool is_used_up(const Rans &r) {
    const bool rest = r.x[0] != 256 || r.x[1] != 256 || r.x[2] != 256 || r.x[3] != 256;
    return !vote(rest) && r.position == r.end && r.literal == r.n_literals;
}

// A codebook (8.3): its table by slot; `p` moves to its end.
WP_ONCE bool open_table(u32 *table, const u8 *&p, const u8 *end, u32 bits, bool &escapes) {
    if (end - p < 2) return false;
    const u32 k = load_byte(p), escape = load_byte(p + 1), t = lane_id();
    if (k < 1 || k > 16 || (escape && k > 15) || end - p < 2 + 2 * (int)k) return false;
    const u32 own = t < k ? load_byte(p + 2 + t) : 256 + t;
    bool bad = t < k && own >> bits;
    u32 start = 0;
    for (u32 rank = 0; rank <= k; rank++) {
        const u32 f = rank < k ? load_byte(p + 2 + k + rank) : escape, symbol = rank < k ? load_byte(p + 2 + rank) : 0;
        bad |= (rank < k && f == 0) || (rank < k && rank != t && symbol == own);
        if (start + f > 256) return false;
        for (u32 i = t; i < f; i += 32) table[start + i] = f | i << 8 | symbol << 16 | (u32)(rank == k) << 24;
        start += f;
    }
    p += 2 + 2 * k;
    escapes |= escape != 0;
    return !vote(bad) && start == 256;
}

// ---- planes ----

struct Plane {
    u32 codec, constant, base; // `base`: of contexts
    const u8 *raw;
    u32 run_groups, id_bits, group, run; // of tables: `group` counts down to the next run, number `run`
    const u8 *ids;
    u32 table; // number of this run's
    Rans rans;

    // How many groups, at most `most`, go on with one table, number this->table.
    WP_METHOD u32 next_run(u32 most) {
        if (run_groups == 0) return most;
        if (group == 0) {
            const u32 at = run++ * id_bits;
            table = load_byte(ids + at / 8) >> at % 8 & ((1u << id_bits) - 1);
            group = run_groups;
        }
        const u32 n = group < most ? group : most;
        group -= n;
        return n;
    }
};

// Opens a plane of `n` symbols of `bits` bits; tables: room for n_tables of 256 entries.
WP_ONCE bool open_plane(Plane &plane, u32 codec, const u8 *p, u32 n_bytes, u32 n, u32 bits, bool has_context, u32 (*tables)[256], u32 n_tables, u32 *starts,
                        u32 *ring, const u8 *limit) {
    const u8 *const end = p + n_bytes;
    plane.codec = codec;
    plane.table = plane.run_groups = plane.group = plane.run = 0;
    switch (codec) {
    case RAW: {
        if (n_bytes != n) return false;
        bool bad = false;
        if (bits < 8)
            for (u32 i = lane_id(); i < n; i += 32) bad |= load_byte(p + i) >> bits != 0;
        plane.raw = p;
        return !vote(bad);
    }
    case CONSTANT:
        if (n_bytes != 1) return false;
        plane.constant = load_byte(p) << 16;
        return plane.constant >> 16 >> bits == 0;
    case RANS: {
        bool escapes = false;
        if (!open_table(tables[0], p, end, bits, escapes) || !open_states(plane.rans, p, end, true, limit, ring)) return false;
        return escapes || plane.rans.n_literals == 0;
    }
    case TABLES: {
        if (n_bytes < 2) return false;
        const u32 count = load_byte(p) + 1;
        plane.run_groups = load_byte(p + 1);
        if (count < 2 || count > n_tables || plane.run_groups == 0) return false;
        p += 2;
        bool escapes = false;
        for (u32 i = 0; i < count; i++)
            if (!open_table(tables[i], p, end, bits, escapes)) return false;
        const u32 run = BLOCK * plane.run_groups, n_runs = (n + run - 1) / run;
        plane.id_bits = count == 2 ? 1 : 2;
        const u32 mask = (1u << plane.id_bits) - 1;
        const u32 id_bytes = (n_runs * plane.id_bits + 7) / 8, used = n_runs * plane.id_bits % 8;
        if (end - p < (int)id_bytes) return false;
        plane.ids = p;
        bool bad = false;
        for (u32 i = lane_id(); i < n_runs; i += 32) bad |= (load_byte(p + i * plane.id_bits / 8) >> i * plane.id_bits % 8 & mask) >= count;
        if (vote(bad) || (used && load_byte(p + id_bytes - 1) >> used)) return false;
        p += id_bytes;
        return open_states(plane.rans, p, end, true, limit, ring) && (escapes || plane.rans.n_literals == 0);
    }
    case CONTEXT: {
        if (!has_context || n_bytes < 1 + 3 * N_CONTEXTS) return false;
        plane.base = load_byte(p++);
        bool bad = false;
        const u32 t = lane_id();
        if (t < N_CONTEXTS) {
            const u32 a = load_byte(p + 3 * t), b = load_byte(p + 3 * t + 1), c = load_byte(p + 3 * t + 2);
            bad = a == 0 || b <= a || c <= b;
            starts[t] = a | b << 8 | c << 16;
        }
        return !vote(bad) && open_states(plane.rans, p + 3 * N_CONTEXTS, end, false, limit, ring);
    }
    default: return false;
    }
}

// One group of a plane, as next_symbols.
template <bool WHOLE> WP_DEVICE bool next_of_plane(Plane &plane, u32 *ring, u32 m, u32 bits, u32 (*tables)[256], const u32 *starts, const u32 next[4], u32 e[4]) {
    switch (plane.codec) {
    case RAW: {
        const u32 lane = 4 * lane_id();
        WP_UNROLL for (u32 j = 0; j < 4; j++) e[j] = WHOLE || lane + j < m ? load_byte(plane.raw + lane + j) << 16 : 0;
        plane.raw += m;
        return true;
    }
    case CONSTANT: WP_UNROLL for (u32 j = 0; j < 4; j++) e[j] = plane.constant; return true;
    case CONTEXT: next_in_context<WHOLE>(plane.rans, ring, starts, plane.base, m, next, e); return true;
    default:
        plane.next_run(1);
        return next_symbols<WHOLE>(plane.rans, ring, tables[plane.table], m, bits, e);
    }
}

WP_DEVICE bool is_closed(const Plane &plane) { return plane.codec == RAW || plane.codec == CONSTANT || is_used_up(plane.rans); }

// ---- raw words ----

// A thread's four elements are E words of fields: E bytes for each element, as they go out.
template <u32 E> struct Fields {
    static const u32 ones = E == 1 ? 0x01010101u : E == 2 ? 0x00010001u : 1u;
    u32 v[E];

    WP_METHOD void clear() {
        WP_UNROLL for (u32 i = 0; i < E; i++) v[i] = 0;
    }

    // Eight more bits below each: byte j of `word` for element j.
    WP_METHOD void add_bytes(u32 word) {
        if (E == 1) v[0] = word;
        if (E == 2) {
            v[0] = v[0] << 8 | permute(word, 0, 0x4140);
            v[1 % E] = v[1 % E] << 8 | permute(word, 0, 0x4342);
        }
        if (E == 4) {
            WP_UNROLL for (u32 j = 0; j < E; j++) v[j] = v[j] << 8 | (word >> 8 * j & 255);
        }
    }

    // One more bit below each: bit j of `nibble` for element j; its other bits do not count.
    WP_METHOD void add_bits(u32 nibble) {
        if (E == 1) v[0] = v[0] << 1 | ((nibble & 15) * 0x00204081u & ones);
        if (E == 2) {
            v[0] = v[0] << 1 | ((nibble | nibble << 15) & ones);
            v[1 % E] = v[1 % E] << 1 | ((nibble >> 2 | nibble << 13) & ones);
        }
        if (E == 4) {
            WP_UNROLL for (u32 j = 0; j < E; j++) v[j] = v[j] << 1 | (nibble >> j & 1);
        }
    }

    WP_METHOD void shift(u32 bits) {
        WP_UNROLL for (u32 i = 0; i < E; i++) v[i] <<= bits;
    }
};

// Raw words of a whole block of width w, of r bits each (7.4), that begins anywhere in the chunk.
template <u32 E> WP_DEVICE void whole_block(const u8 *p, u32 w, u32 r, Fields<E> &raw) {
    raw.clear();
    const u32 skew = (u32)((u64)p & 3);
    for (u32 k = 0; k < w / 8; k++, p += BLOCK) {
        const u8 *words = p - skew + lane_id() * 4u;
        raw.add_bytes(funnel(load_word(words), load_word(words + 4), 8 * skew));
    }
    for (u32 k = 0; k < w % 8; k++, p += BLOCK / 8) raw.add_bits(load_byte(p + lane_id() / 2) >> 4 * (lane_id() & 1));
    raw.shift(r - w);
}

// The bytes of whole blocks of the full width, R bits: loaded a block ahead, and not looked at until then, so that nothing waits for them.
template <u32 E, u32 R> struct Ahead {
    static const u32 n_bytes = R / 8, n_bits = R % 8;
    u32 low[n_bytes + 1], high[n_bytes + 1], bits[n_bits + 1], skew; // skew: bits by which words are off
    const u8 *words, *nibbles;                                       // where this thread's are

    WP_METHOD void open(const u8 *p) {
        const u32 off = (u32)((u64)p & 3);
        skew = 8 * off;
        words = p - off + lane_id() * 4u;
        nibbles = p + n_bytes * BLOCK + lane_id() / 2;
        fetch();
    }

    WP_METHOD void fetch() {
        WP_UNROLL for (u32 k = 0; k < n_bytes; k++) {
            low[k] = load_word(words + k * BLOCK);
            high[k] = load_word(words + k * BLOCK + 4);
        }
        WP_UNROLL for (u32 k = 0; k < n_bits; k++) bits[k] = load_byte(nibbles + k * (BLOCK / 8));
    }

    // Raw words of the block that was fetched; the next one is asked for, past the last, too (READ_PAST).
    WP_METHOD void take(Fields<E> &raw) {
        u32 taken[n_bytes + 1], taken_bits[n_bits + 1];
        WP_UNROLL for (u32 k = 0; k < n_bytes; k++) taken[k] = funnel(low[k], high[k], skew);
        WP_UNROLL for (u32 k = 0; k < n_bits; k++) taken_bits[k] = bits[k];
        words += BLOCK / 8 * R;
        nibbles += BLOCK / 8 * R;
        fetch();
        raw.clear();
        WP_UNROLL for (u32 k = 0; k < n_bytes; k++) raw.add_bytes(taken[k]);
        WP_UNROLL for (u32 k = 0; k < n_bits; k++) raw.add_bits(taken_bits[k] >> 4 * (lane_id() & 1));
    }
};
static_assert(2 * BLOCK / 8 * 24 + 4 <= 2 * READ_PAST, "the block after the last is in reach");

// As whole_block, of a last block of m elements. False if unused bits are not 0.
template <u32 E> WP_DEVICE bool last_block(const u8 *p, u32 w, u32 r, u32 m, Fields<E> &raw) {
    const u32 plane = (m + 7) / 8, t = lane_id();
    const u8 *bits = p + w / 8 * m;
    raw.clear();
    for (u32 k = 0; k < w / 8; k++) {
        u32 word = 0;
        for (u32 j = 0; j < 4; j++)
            if (4 * t + j < m) word |= load_byte(p + k * m + 4 * t + j) << 8 * j;
        raw.add_bytes(word);
    }
    for (u32 k = 0; k < w % 8; k++) raw.add_bits(4 * t < m ? load_byte(bits + k * plane + t / 2) >> 4 * (t & 1) : 0);
    raw.shift(r - w);
    return !vote(t < w % 8 && m % 8 && load_byte(bits + t * plane + plane - 1) >> m % 8);
}

WP_DEVICE u32 block_bytes(u32 w, u32 m) { return w / 8 * m + w % 8 * ((m + 7) / 8); }

// ---- chunks ----

// Section 7: bytes of an element; one or two symbol planes of B0 and B1 bits, the lowest first; bits of the raw word.
template <u32 E, u32 N, u32 B0, u32 B1, u32 R> struct Layout {
    static const u32 elem_bytes = E, n_planes = N, bits0 = B0, bits1 = B1, raw_bits = R;
};

// Symbols, at bits 16 to 23 of e[j] and nothing above them, as fields.
template <u32 E> WP_DEVICE void add_symbols(Fields<E> &to, const u32 e[4], u32 shift) {
    if (E == 1) to.v[0] |= permute(permute(e[0], e[1], 0x0062), permute(e[2], e[3], 0x0062), 0x5410) << shift;
    if (E == 2) {
        to.v[0] |= permute(e[0], e[1], 0x7632) << shift;
        to.v[1 % E] |= permute(e[2], e[3], 0x7632) << shift;
    }
    if (E == 4) {
        WP_UNROLL for (u32 j = 0; j < E; j++) to.v[j] |= e[j] >> 16 << shift;
    }
}

// A thread's four elements.
template <class L> WP_DEVICE void assemble(const u32 first[4], const u32 last[4], const Fields<L::elem_bytes> &raw, Fields<L::elem_bytes> &words) {
    const u32 E = L::elem_bytes, R = L::raw_bits, below = R ? R - 1 : 0, ones = Fields<E>::ones;
    WP_UNROLL for (u32 i = 0; i < E; i++)
        words.v[i] = R ? (raw.v[i] & ones * ((1u << below) - 1)) | (raw.v[i] & ones << below) << (8 * E - 1 - below) : 0;
    add_symbols<E>(words, first, below);
    if (L::n_planes == 2) add_symbols<E>(words, last, below + L::bits0);
}

template <class L> WP_DEVICE void store(u8 *out, const u32 words[L::elem_bytes]) {
#ifndef WP_HOST
    if (L::elem_bytes == 4) {
        *(uint4 *)out = make_uint4(words[0], words[1], words[2], words[3 % L::elem_bytes]);
        return;
    }
    if (L::elem_bytes == 2) {
        *(uint2 *)out = make_uint2(words[0], words[1]);
        return;
    }
#endif
    for (u32 i = 0; i < L::elem_bytes; i++) ((u32 *)out)[i] = words[i];
}

// The elements after the last whole group; `to` is this thread's place.
template <class L> WP_DEVICE void last_elements(u8 *to, u32 m, const u32 first[4], const u32 last[4], const Fields<L::elem_bytes> &raw) {
    Fields<L::elem_bytes> words;
    assemble<L>(first, last, raw, words);
    for (u32 i = 0; i < 4 * L::elem_bytes; i++)
        if (4 * L::elem_bytes * lane_id() + i < m * L::elem_bytes) to[i] = (u8)(words.v[i / 4] >> i % 4 * 8);
}

// Decoded groups: their words go out, and into the CRC. A thread has a CRC for each of its E words; all go on by a whole group at a time.
template <class L> struct Output {
    static const u32 E = L::elem_bytes;
    u32 crcs[E];
    u8 *to;

    // The first word of all takes up the CRC so far: set back by as many bytes as the first step goes on. (x^(2^31 - 1) = 1 for this polynomial.)
    WP_METHOD void open(u8 *out, u32 crc) {
        constexpr u32 back = power(0x7fffffffu - 8 * BLOCK * E);
        WP_UNROLL for (u32 i = 0; i < E; i++) crcs[i] = 0;
        if (lane_id() == 0) crcs[0] = product(back, crc);
        to = out + lane_id() * (4 * E);
    }

    WP_METHOD void put(const u32 *crc_table, const u32 first[4], const u32 last[4], const Fields<E> &raw) {
        Fields<E> words;
        assemble<L>(first, last, raw, words);
        WP_UNROLL for (u32 i = 0; i < E; i++) crcs[i] = crc_step(crc_table, crcs[i]) ^ words.v[i];
        store<L>(to, words.v);
        to += BLOCK * E;
    }

    // The CRC of all groups: each word has those after it, up to its group's end, still to go by.
    WP_METHOD u32 close() {
        u32 sum = 0;
        for (u32 i = 0; i < E; i++) sum ^= product(crcs[i], power(32 * (32 * E - (lane_id() * E + i))));
        for (u32 step = 16; step; step >>= 1) sum ^= shuffle(sum, lane_id() ^ step);
        return sum;
    }
};

// Whole groups of which every plane is rANS (of two, the first in the context of the last) and every block has the full width: most chunks.
// Planes and output are copies here: what a function that is not inlined has seen is no register any more.
template <class L> WP_DEVICE bool common_groups(Plane opened[2], const u8 *&bits, u32 n_groups, Warp &warp, Output<L> &opened_output) {
    constexpr u32 E = L::elem_bytes, R = L::raw_bits, N = L::n_planes;
    Rans first_rans = opened[0].rans, last_rans = opened[N - 1].rans;
    Output<L> output = opened_output;
    const u32 base = opened[0].base;
    Ahead<E, R> ahead;
    bool good = true;
    ahead.open(bits);
    for (u32 left = n_groups; left;) {
        const u32 run = opened[N - 1].next_run(left);
        const u32 *const table = warp.tables[opened[N - 1].table];
        left -= run;
#ifndef WP_HOST
#pragma unroll 2
#endif
        for (u32 g = run; g; g--) {
            u32 first[4], last[4];
            Fields<E> raw;
            ahead.take(raw);
            good &= next_symbols<true>(last_rans, warp.rings[N - 1], table, BLOCK, N == 2 ? L::bits1 : L::bits0, last);
            if (N == 2) next_in_context<true>(first_rans, warp.rings[0], warp.starts, base, BLOCK, last, first);
            output.put(warp.crc_table, N == 2 ? first : last, last, raw);
        }
    }
    bits += (u64)n_groups * (BLOCK / 8 * R);
    opened[0].rans = first_rans;
    opened[N - 1].rans = last_rans;
    opened_output = output;
    return good;
}

// Any other groups, and the last elements.
template <class L> WP_ONCE bool other_groups(Plane planes[2], Plane &widths, const u8 *&bits, const u8 *bits_end, u32 g, u32 n_elems, Warp &warp, Output<L> &output) {
    constexpr u32 E = L::elem_bytes, R = L::raw_bits, N = L::n_planes;
    const u32 n_whole = n_elems / BLOCK, m_last = n_elems % BLOCK, t = lane_id();
    u32 width = widths.constant >> 16;
    bool good = true;
    for (; g < n_whole + (m_last != 0); g++) {
        const bool whole = g < n_whole;
        const u32 m = whole ? (u32)BLOCK : m_last;
        u32 first[4] = {0, 0, 0, 0}, last[4] = {0, 0, 0, 0};
        Fields<E> raw;
        raw.clear();
        if (R) {
            if (widths.codec != CONSTANT) {
                if (g % BLOCK == 0) {
                    const u32 left = n_whole + (m_last != 0) - g;
                    u32 e[4] = {0, 0, 0, 0};
                    good &= next_of_plane<false>(widths, warp.rings[2], left < (u32)BLOCK ? left : (u32)BLOCK, 8, &warp.other, warp.starts, e, e);
                    sync_warp();
                    warp.widths[t] = e[0] >> 16 | e[1] >> 16 << 8 | e[2] >> 16 << 16 | e[3] >> 16 << 24;
                    sync_warp();
                }
                width = ((const u8 *)warp.widths)[g % BLOCK];
            }
            const u32 need = block_bytes(width, m);
            if (width > R || bits_end - bits < (int)need) return false;
            if (whole) whole_block(bits, width, R, raw);
            else good &= last_block(bits, width, R, m, raw);
            bits += need;
        }
        if (N == 2) {
            good &= next_of_plane<false>(planes[1], warp.rings[1], m, L::bits1, warp.tables, warp.starts, last, last);
            good &= next_of_plane<false>(planes[0], warp.rings[0], m, L::bits0, &warp.other, warp.starts, last, first);
        } else {
            good &= next_of_plane<false>(planes[0], warp.rings[0], m, L::bits0, warp.tables, warp.starts, first, first);
        }
        if (whole) output.put(warp.crc_table, first, N == 2 ? last : first, raw);
        else last_elements<L>(output.to, m, first, N == 2 ? last : first, raw);
    }
    return good && (R == 0 || is_closed(widths));
}

template <class L> WP_DEVICE bool decode_chunk(const wp_chunk &chunk, Warp &warp) {
    const u8 *const in = (const u8 *)chunk.in, *const limit = in + chunk.in_bytes;
    const u32 n_streams = L::n_planes + (L::raw_bits ? 2 : 0), n = chunk.n_elems, t = lane_id();
    if (chunk.in_bytes < 4 + 4 * n_streams || chunk.in_bytes & 15 || n == 0 || load32(in) != n_streams << 8) return false; // Mode: split
    const u8 *streams[4];
    u32 codecs[4], sizes[4];
    const u8 *p = in + 4 + 4 * n_streams;
    for (u32 i = 0; i < n_streams; i++) {
        const u32 entry = load32(in + 4 + 4 * i);
        codecs[i] = entry & 255;
        sizes[i] = entry >> 8;
        streams[i] = p;
        if (sizes[i] > (u64)(limit - p)) return false;
        p += sizes[i];
    }
    if (limit - p >= 16 || vote(p + t < limit && load_byte(p + t))) return false;

    Plane planes[2], widths;
    widths.codec = CONSTANT;
    widths.constant = 0;
    const u8 *bits = p, *bits_end = p;
    u32 width = 0;
    if (L::n_planes == 2) {
        if (!open_plane(planes[1], codecs[1], streams[1], sizes[1], n, L::bits1, false, warp.tables, MAX_TABLES, warp.starts, warp.rings[1], limit)) return false;
        if (!open_plane(planes[0], codecs[0], streams[0], sizes[0], n, L::bits0, L::bits0 <= 2, &warp.other, 1, warp.starts, warp.rings[0], limit)) return false;
    } else if (!open_plane(planes[0], codecs[0], streams[0], sizes[0], n, L::bits0, false, warp.tables, MAX_TABLES, warp.starts, warp.rings[0], limit)) {
        return false;
    }
    if (L::raw_bits) {
        const u32 w = L::n_planes, used_other = L::n_planes == 2 && (codecs[0] == RANS || codecs[0] == TABLES);
        if (codecs[w + 1] != RAW || codecs[w] == CONTEXT || (used_other && (codecs[w] == RANS || codecs[w] == TABLES))) return false;
        if (!open_plane(widths, codecs[w], streams[w], sizes[w], (n + BLOCK - 1) / BLOCK, 8, false, &warp.other, 1, warp.starts, warp.rings[2], limit)) return false;
        bits = streams[w + 1];
        bits_end = bits + sizes[w + 1];
        width = widths.codec == CONSTANT ? widths.constant >> 16 : 0;
    }
    sync_warp();

    constexpr u32 word = power(32), step = power(8 * BLOCK * L::elem_bytes);
    u32 crc = product(word, 0xffffffffu ^ chunk.number);
    u8 *const out = (u8 *)chunk.out;
    const u32 n_whole = n / BLOCK, last_codec = planes[L::n_planes - 1].codec;
    const bool common = widths.codec == CONSTANT && width == L::raw_bits && (last_codec == RANS || last_codec == TABLES) && (L::n_planes == 1 || codecs[0] == CONTEXT) &&
                        (u64)(bits_end - bits) >= (u64)n_whole * block_bytes(L::raw_bits, BLOCK);
    open_crc_table(warp.crc_table, step);
    sync_warp();
    Output<L> output;
    output.open(out, crc);
    bool good = true;
    if (common && n_whole) good = common_groups<L>(planes, bits, n_whole, warp, output);
    good &= other_groups<L>(planes, widths, bits, bits_end, common ? n_whole : 0, n, warp, output);
    if (vote(!good) || bits != bits_end || !is_closed(planes[0]) || (L::n_planes == 2 && !is_closed(planes[1]))) return false;
    if (n_whole) crc = output.close();
    if (n % BLOCK) {
        sync_warp();
        const u8 *const rest = out + (u64)n_whole * (BLOCK * L::elem_bytes);
        if (t == 0)
            for (u32 i = 0; i < n % BLOCK * L::elem_bytes; i++) crc = crc_byte(crc, rest[i]);
        crc = shuffle(crc, 0);
    }
    return (crc ^ 0xffffffffu) == chunk.crc;
}

#ifndef WP_HOST
// One layout a compilation, WP_LAYOUT: all of them take half a minute.
extern "C" __global__ void __launch_bounds__(32) weightpack_decode(const wp_chunk *chunks, u32 *status) {
    __shared__ Warp warp;
    const bool good = decode_chunk<Layout<WP_LAYOUT>>(chunks[blockIdx.x], warp);
    if (lane_id() == 0) status[blockIdx.x] = good ? 0 : 1;
}
#endif
