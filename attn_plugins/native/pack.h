/* Tensors of any strides and precision to and from packed float32 rows of whole vectors. */
#ifndef ATTN_PLUGINS_PACK_H
#define ATTN_PLUGINS_PACK_H

#include "vector.h"

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };
typedef struct { void *at; int64_t b, h, n, s; int64_t dtype; } tensor; /* strides in elements; s is 1 for all but the mask */

/* `call` with the precision that the compiler knows. */
#define AT_DTYPE(call, dtype) \
    switch (dtype) { \
        case FLOAT32: call(FLOAT32); break; \
        case BFLOAT16: call(BFLOAT16); break; \
        default: call(FLOAT16); \
    }

INLINE void *row(const tensor *t, long b, long h, long n) {
    return (char *)t->at + (t->dtype == FLOAT32 ? 4 : 2) * (b * t->b + h * t->h + n * t->n);
}

INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* The conversions are exact one way and round to nearest even the other; in plain C, which compilers vectorise. */
INLINE float of_bfloat16(uint16_t x) { return float_of((uint32_t)x << 16); }

INLINE uint16_t to_bfloat16(float x) {
    uint32_t u = bits_of(x), rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0 : rounded);
}

INLINE float of_float16(uint16_t x) {
    float size = float_of((uint32_t)(x & 0x7fff) << 13) * 0x1p112f; /* the exponents' bias differs by 112 */
    uint32_t u = bits_of(size) | (size >= 0x1p16f ? 0x7f800000 : 0); /* infinity and NaN have the highest exponent */
    return float_of(u | (uint32_t)(x & 0x8000) << 16);
}

INLINE uint16_t to_float16(float x) {
    uint32_t u = bits_of(x) & 0x7fffffff, rounded = (u + 0xfff + (u >> 13 & 1) - (112u << 23)) >> 13;
    float size = float_of(u);
    uint32_t tiny = bits_of(size + .5f) - bits_of(.5f); /* below 2^-14, steps are those of 0.5 in float32 */
    uint32_t finite = size < 0x1p-14f ? tiny : size < 65520.f ? rounded : 0x7c00;
    return (uint16_t)((x != x ? 0x7e00 : finite) | (bits_of(x) >> 16 & 0x8000));
}

INLINE void pack_row(enum dtype dtype, float *to, const void *from, long n, long end) {
    const uint16_t *half = from;
    if (dtype == FLOAT32) memcpy(to, from, n * sizeof(float));
    else
        for (long j = 0; j < n; j++) to[j] = dtype == BFLOAT16 ? of_bfloat16(half[j]) : of_float16(half[j]);
    if (end > n) memset(to + n, 0, (end - n) * sizeof(float));
}

/* dst[rows][ld] = rows of `cols` numbers of a head from its row `first`, zeros up to ld and to `end` rows. */
static void pack(float *dst, const tensor *t, long b, long h, long first, long rows, long cols, long ld, long end) {
#define ROWS(dtype) \
    for (long i = 0; i < rows; i++) pack_row(dtype, dst + i * ld, row(t, b, h, first + i), cols, ld)
    AT_DTYPE(ROWS, t->dtype)
#undef ROWS
    if (end > rows) memset(dst + rows * ld, 0, (end - rows) * ld * sizeof(float));
}

INLINE void unpack_row(enum dtype dtype, void *to, const float *from, long n, float factor) {
    float *single = to;
    uint16_t *half = to;
    for (long j = 0; j < n; j++)
        if (dtype == FLOAT32) single[j] = factor * from[j];
        else half[j] = dtype == BFLOAT16 ? to_bfloat16(factor * from[j]) : to_float16(factor * from[j]);
}

/* The way back: rows of a head = factor * src[rows][ld]. */
static void unpack(const tensor *t, long b, long h, long first, const float *src, long rows, long cols, long ld,
                   float factor) {
#define ROWS(dtype) \
    for (long i = 0; i < rows; i++) unpack_row(dtype, row(t, b, h, first + i), src + i * ld, cols, factor)
    AT_DTYPE(ROWS, t->dtype)
#undef ROWS
}

/* dst[lds][ld] = factor * src[ld][lds] transposed; both are multiples of LANES. */
static void transpose(float *dst, const float *src, long ld, long lds, float factor) {
    for (long i = 0; i < ld; i += LANES)
        for (long j = 0; j < lds; j += LANES) {
            vec v[LANES], w[LANES];
            for (int k = 0; k < LANES; k++) v[k] = factor * load(src + (i + k) * lds + j);
            for (int done = 1; done < LANES; done *= 2) { /* a perfect shuffle of the rows, log2(LANES) times */
                for (int k = 0; k < LANES / 2; k++) {
                    w[2 * k] = ZIP_LOW(v[k], v[k + LANES / 2]);
                    w[2 * k + 1] = ZIP_HIGH(v[k], v[k + LANES / 2]);
                }
                memcpy(v, w, sizeof v);
            }
            for (int k = 0; k < LANES; k++) store(dst + (j + k) * ld + i, v[k]);
        }
}

#endif
