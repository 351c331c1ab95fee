/* GCC's vector types instead of intrinsics, so that the same source serves AVX-512, AVX2, SSE and NEON.
   LANES is one register; a tile of TILE_ROWS x TILE_VECS accumulators fits the register file and hides FMA latency. */
#ifndef ATTN_PLUGINS_VECTOR_H
#define ATTN_PLUGINS_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512DQ__)
#define LANES 16
#define TILE_ROWS 8 /* divides LANES */
#elif defined(__AVX__)
#define LANES 8
#define TILE_ROWS 4
#else
#define LANES 4
#define TILE_ROWS 4
#endif
#define TILE_VECS 3

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

INLINE long round_up(long n, long to) { return (n + to - 1) / to * to; }
INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
INLINE vec splat(float x) { return (vec){0} + x; }
INLINE vec blend(ivec take, vec a, vec b) { return (vec)(((ivec)a & take) | ((ivec)b & ~take)); }
INLINE int any(ivec m) { int r = 0; for (int i = 0; i < LANES; i++) r |= m[i]; return r; }

/* The first halves of two vectors, their lanes in turn, and the second halves. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#if LANES == 16
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif

/* Bit i is set where lane i of a comparison is true; what GCC's vector types lack. */
INLINE uint32_t bits(ivec m) {
#if defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)m);
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)m);
#elif defined(__SSE__)
    return _mm_movemask_ps((__m128)m);
#else
    uint32_t r = 0;
    for (int i = 0; i < LANES; i++) r |= (uint32_t)(m[i] < 0) << i;
    return r;
#endif
}

INLINE float sum(vec v) {
#if defined(__AVX512DQ__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float half[LANES / 2];
    for (int i = 0; i < LANES / 2; i++) half[i] = v[i] + v[i + LANES / 2];
    float r = 0;
    for (int i = 0; i < LANES / 2; i++) r += half[i];
    return r;
#endif
}

/* max(x, 0); a NaN stays a NaN, so that it reaches the output: where there is one, x86 answers the second operand. */
INLINE vec relu(vec x) {
#if defined(__AVX512DQ__)
    return (vec)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x);
#elif defined(__AVX__)
    return (vec)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
#elif defined(__SSE__)
    return (vec)_mm_max_ps(_mm_setzero_ps(), (__m128)x);
#else
    return (vec)((ivec)x & ~(x <= 0));
#endif
}

INLINE vec vsqrt(vec x) { vec r; for (int i = 0; i < LANES; i++) r[i] = __builtin_sqrtf(x[i]); return r; }

/* x * 2^k for whole k from -126 to 127 */
INLINE vec times_power(vec x, vec k) {
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)x, (__m512)k);
#else
    return x * (vec)((__builtin_convertvector(k, ivec) + 127) << 23);
#endif
}

/* log2(x) for normal x > 0: x = m * 2^k with m in [sqrt(1/2), sqrt(2)), then a polynomial that is minimax to 3e-8: no
   division, which takes as long. Its terms are added in pairs, in a third of the steps that wait for each other. */
INLINE vec vlog2(vec x) {
    ivec bits = (ivec)x - 0x3f3504f3;
    vec k = __builtin_convertvector(bits >> 23, vec);
    vec r = (vec)((bits & 0x007fffff) + 0x3f3504f3) - 1, r2 = r * r, r4 = r2 * r2;
    vec low = (1.44269502f - .721347332f * r) + (.480910629f - .360703677f * r) * r2;
    vec high = (.287916243f - .238944814f * r) + (.215715602f - .207269758f * r) * r2;
    return k + r * (low + (high + .125837058f * r4) * r4);
}

/* 2^x; 0 below -126, where results would be denormal. */
INLINE vec vexp2(vec x) {
    vec magic = splat(12582912.f), whole = (x + magic) - magic; /* adding 1.5 * 2^23 rounds to an integer */
    vec f = x - whole, f2 = f * f;
    vec y = (1.f + 6.9314718e-1f * f) + (2.4022651e-1f + 5.5503327e-2f * f) * f2;
    y += ((9.6179266e-3f + 1.3408431e-3f * f) + 1.5469797e-4f * f2) * (f2 * f2);
    return (vec)((ivec)times_power(y, whole) & ~(x < -126.f));
}

/* log2(x) to 7e-4 and 2^x to 1e-4, in two thirds of the time. */
INLINE vec rough_log2(vec x) {
#if defined(__AVX512F__)
    vec k = (vec)_mm512_getexp_ps((__m512)x), m = (vec)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
#else
    vec k = __builtin_convertvector(((ivec)x >> 23) - 127, vec);
    vec m = (vec)(((ivec)x & 0x007fffff) | 0x3f800000);
#endif
    return (k + (3.0478842f * m - 2.1536207f)) + (.1582487f * m - 1.051875f) * (m * m);
}

INLINE vec rough_exp2(vec x) {
    vec magic = splat(12582912.f), whole = (x + magic) - magic, f = x - whole;
    vec y = (.99992807f + .69326099f * f) + (.24261112f + .05517167f * f) * (f * f);
    return (vec)((ivec)times_power(y, whole) & ~(x < -126.f));
}

#endif
