/* SPDX-License-Identifier: Apache-2.0 */
/* Which ISAs this machine can run. On x86 our own CPUID and XGETBV, because compilers' helpers lie under some of them (zig cc answers 0 for all). */
#include "kernels.h"

static const char *const names[WP_N_ISAS] = {"scalar", "avx2", "avx512", "neon"};

const char *wp_isa_name(unsigned isa) { return isa < WP_N_ISAS ? names[isa] : NULL; }

#ifdef WP_X86_64
#if defined(_MSC_VER) && !defined(__clang__) /* clang-cl has the intrinsic, but not in functions for every CPU */
#include <intrin.h>
static void cpuid(unsigned leaf, unsigned r[4]) {
    int v[4];
    __cpuidex(v, (int)leaf, 0);
    for (int i = 0; i < 4; i++) r[i] = (unsigned)v[i];
}
static uint64_t xgetbv0(void) { return _xgetbv(0); }
#else
#include <cpuid.h>
static void cpuid(unsigned leaf, unsigned r[4]) { __cpuid_count(leaf, 0, r[0], r[1], r[2], r[3]); }
static uint64_t xgetbv0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}
#endif

static unsigned bit(unsigned word, unsigned i) { return word >> i & 1; }

int wp_isa_available(unsigned isa) {
    if (isa == WP_ISA_SCALAR) return 1;
    if (isa != WP_ISA_AVX2 && isa != WP_ISA_AVX512) return 0;
    unsigned r[4]; /* eax ebx ecx edx */
    cpuid(0, r);
    if (r[0] < 7) return 0;
    cpuid(1, r);
    unsigned c1 = r[2];
    /* SSE4.2, POPCNT, PCLMULQDQ, FMA, F16C, OSXSAVE, AVX */
    if (!(bit(c1, 20) && bit(c1, 23) && bit(c1, 1) && bit(c1, 12) && bit(c1, 29) && bit(c1, 27) && bit(c1, 28))) return 0;
    uint64_t saved = xgetbv0();
    cpuid(7, r);
    unsigned b7 = r[1], c7 = r[2];
    /* AVX2, BMI1, BMI2; the OS saves xmm and ymm */
    if (!(bit(b7, 5) && bit(b7, 3) && bit(b7, 8)) || (saved & 0x6) != 0x6) return 0;
    if (isa == WP_ISA_AVX2) return 1;
    /* AVX-512 F, DQ, BW, VL, VBMI, VBMI2, GFNI, VPCLMULQDQ, BITALG; the OS saves opmask and zmm */
    return bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31) && bit(c7, 1) && bit(c7, 6) && bit(c7, 8) && bit(c7, 10) && bit(c7, 12) &&
           (saved & 0xe6) == 0xe6;
}

const wp_kernels *wp_kernels_of(unsigned isa) { return isa == WP_ISA_AVX512 ? &wp_kernels_avx512 : isa == WP_ISA_AVX2 ? &wp_kernels_avx2 : &wp_kernels_scalar; }
#elif defined(WP_AARCH64)
#if defined(__linux__)
#include <sys/auxv.h>
/* Advanced SIMD is part of AArch64; the CRC32 instructions are not quite. */
static int has_crc32(void) { return (getauxval(AT_HWCAP) >> 7 & 1) != 0; }
#elif defined(__APPLE__) || defined(__ARM_FEATURE_CRC32)
static int has_crc32(void) { return 1; }
#else
static int has_crc32(void) { return 0; }
#endif

int wp_isa_available(unsigned isa) { return isa == WP_ISA_SCALAR || (isa == WP_ISA_NEON && has_crc32()); }

const wp_kernels *wp_kernels_of(unsigned isa) { return isa == WP_ISA_NEON ? &wp_kernels_neon : &wp_kernels_scalar; }
#else
int wp_isa_available(unsigned isa) { return isa == WP_ISA_SCALAR; }
const wp_kernels *wp_kernels_of(unsigned isa) {
    (void)isa;
    return &wp_kernels_scalar;
}
#endif

uint32_t wp_crc32c(unsigned isa, uint32_t crc, const uint8_t *data, size_t n_bytes) { return wp_kernels_of(isa)->crc32c(crc, data, n_bytes); }

void wp_histogram(unsigned isa, const uint8_t *symbols, size_t n, uint32_t counts[256]) { wp_kernels_of(isa)->histogram(symbols, n, counts); }
