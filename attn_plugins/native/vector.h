/* GCC's vector types instead of intrinsics, so that the same source serves AVX-512, AVX2, SSE and NEON.
   LANES is one register; a tile of TILE_ROWS x TILE_VECS accumulators fits the register file and hides FMA latency. */
#ifndef ATTN_PLUGINS_VECTOR_H
#define ATTN_PLUGINS_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
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

INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
INLINE vec splat(float x) { return (vec){0} + x; }
INLINE vec blend(ivec take, vec a, vec b) { return (vec)(((ivec)a & take) | ((ivec)b & ~take)); }
INLINE int any(ivec m) { int r = 0; for (int i = 0; i < LANES; i++) r |= m[i]; return r; }

/* max(x, 0); a NaN stays a NaN, so that it reaches the output. */
INLINE vec relu(vec x) { return (vec)((ivec)x & ~(x <= 0)); }

INLINE vec vsqrt(vec x) { vec r; for (int i = 0; i < LANES; i++) r[i] = __builtin_sqrtf(x[i]); return r; }

/* log2(x) for normal x > 0: x = m * 2^k with m in [sqrt(1/2), sqrt(2)), then the atanh series of m. */
INLINE vec vlog2(vec x) {
    ivec bits = (ivec)x - 0x3f3504f3;
    vec k = __builtin_convertvector(bits >> 23, vec);
    vec m = (vec)((bits & 0x007fffff) + 0x3f3504f3);
    vec s = (m - 1) / (m + 1), s2 = s * s;
    vec series = ((s2 * (1.f / 9) + 1.f / 7) * s2 + 1.f / 5) * s2 + 1.f / 3;
    return k + 2.885390082f * (s + s * s2 * series);
}

/* 2^x for x <= 0; 0 below -126, where results would be denormal. */
INLINE vec vexp2(vec x) {
    ivec flush = x < -126.f;
    vec c = blend(flush, splat(0), x), magic = splat(12582912.f); /* adding 1.5 * 2^23 rounds to an integer */
    vec whole = (c + magic) - magic, f = c - whole;
    vec y = ((((((f * 1.5252734e-5f + 1.5403530e-4f) * f + 1.3333558e-3f) * f + 9.6181291e-3f) * f + 5.5504109e-2f) * f +
              2.4022651e-1f) * f + 6.9314718e-1f) * f + 1.f;
    ivec scale = (__builtin_convertvector(whole, ivec) + 127) << 23;
    return (vec)((ivec)(y * (vec)scale) & ~flush);
}

#endif
