/* Columns (solve.h) shortened to the keys that have a weight, and the products that touch these alone. A column stays in
   its lane, its scores moved up in place; which keys they belong to, and how many there are, stands in a list. */
#ifndef ATTN_PLUGINS_SPARSE_H
#define ATTN_PLUGINS_SPARSE_H

#include "vector.h"

/* A key that is gathered costs several times what it costs in a dense product, and a list has a price of its own: it pays
   where fewer than one key in FEW is used, and there are at least MANY. */
#ifndef FEW
#define FEW (LANES == 16 ? 4 : 6)
#endif
#define MANY 100

typedef struct {
    int32_t *key; /* [LANES][room], the keys of each lane in order */
    long room;    /* at least keys + LANES */
    int32_t count[LANES];
    int filled; /* whether a column has been shortened */
} list;

INLINE long list_room(long keys) { return round_up(keys, 2 * LANES) + LANES; }

/* Whether so few of n keys are used, over all lanes, that a list pays. */
INLINE int few(ivec used, long n) {
    long total = 0;
    for (int i = 0; i < LANES; i++) total += used[i];
    return total * FEW < n * LANES;
}

/* How many of x[0..n) are above floor, per lane. */
INLINE ivec above(const float *x, long n, long ld, vec floor) {
    ivec used = {0};
    for (long j = 0; j < n; j++) used -= load(x + j * ld) > floor;
    return used;
}

/* Write down for every lane which of x[0..n) are above floor, or NaN. */
#if defined(__AVX512BW__)
INLINE void note(list *l, const float *x, long n, long ld, vec floor) {
    /* One bit per lane and key, turned around so that a lane has the bits of 32 keys, whose numbers are compressed:
       no branch depends on the scores. */
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    memset(l->count, 0, sizeof l->count);
    for (long j = 0; j < n; j += 32) {
        uint16_t kept[32] = {0};
        for (long i = 0; i < 32 && j + i < n; i++) kept[i] = (uint16_t)bits(~(load(x + (j + i) * ld) <= floor));
        __m512i rows = _mm512_loadu_si512(kept);
        if (!_mm512_test_epi16_mask(rows, rows)) continue;
        __m512i low = _mm512_add_epi32(first, _mm512_set1_epi32((int)j)), high = _mm512_add_epi32(low, _mm512_set1_epi32(16));
        for (int i = 0; i < LANES; i++) {
            uint32_t lane = _mm512_movepi16_mask(_mm512_sll_epi16(rows, _mm_cvtsi32_si128(15 - i)));
            int32_t *key = l->key + i * l->room + l->count[i];
            _mm512_storeu_si512(key, _mm512_maskz_compress_epi32((__mmask16)lane, low));
            key += __builtin_popcount(lane & 0xffff);
            _mm512_storeu_si512(key, _mm512_maskz_compress_epi32((__mmask16)(lane >> 16), high));
            l->count[i] += __builtin_popcount(lane);
        }
    }
}
#elif defined(__AVX2__)
INLINE void note(list *l, const float *x, long n, long ld, vec floor) {
    /* The same of 64 keys, which are then counted off: one branch of each lane is guessed wrongly, not one a key. */
    memset(l->count, 0, sizeof l->count);
    for (long j = 0; j < n; j += 64) {
        uint8_t kept[64] = {0};
        for (long i = 0; i < 64 && j + i < n; i++) kept[i] = (uint8_t)bits(~(load(x + (j + i) * ld) <= floor));
        __m256i low = _mm256_loadu_si256((__m256i *)kept), high = _mm256_loadu_si256((__m256i *)(kept + 32));
        for (int i = 0; i < LANES; i++) {
            __m128i up = _mm_cvtsi32_si128(7 - i);
            uint64_t left = (uint32_t)_mm256_movemask_epi8(_mm256_sll_epi16(high, up));
            left = left << 32 | (uint32_t)_mm256_movemask_epi8(_mm256_sll_epi16(low, up));
            int32_t *key = l->key + i * l->room;
            for (; left; left &= left - 1) key[l->count[i]++] = (int32_t)j + __builtin_ctzll(left);
        }
    }
}
#else
INLINE void note(list *l, const float *x, long n, long ld, vec floor) {
    memset(l->count, 0, sizeof l->count);
    for (long j = 0; j < n; j++)
        for (uint32_t left = bits(~(load(x + j * ld) <= floor)); left; left &= left - 1) {
            int i = __builtin_ctz(left);
            l->key[i * l->room + l->count[i]++] = (int32_t)j;
        }
}
#endif

/* Keep of every lane of x[0..n) what is above floor, or NaN, padded with -infinity to the longest. Returns its
   length. */
INLINE long shorten(list *l, float *x, long n, long ld, vec floor) {
    long longest = 0;
    note(l, x, n, ld, floor);
    l->filled = 1;
    for (int i = 0; i < LANES; i++) longest = l->count[i] > longest ? l->count[i] : longest;
    for (int i = 0; i < LANES; i++) {
        const int32_t *key = l->key + i * l->room;
        for (long c = 0; c < l->count[i]; c++) x[c * ld + i] = x[key[c] * ld + i];
        for (long c = l->count[i]; c < longest; c++) x[c * ld + i] = -INFINITY;
    }
    return longest;
}

/* out[i] = sum over lane i's list of x[c][i] * rows[key], rows of `width` vectors `ldr` floats apart. */
INLINE void gather_row(const long width, const list *l, int i, const float *x, long ld, const float *rows, long ldr,
                       float *out) {
    const int32_t *key = l->key + i * l->room;
    vec acc[2][4]; /* two sums in turn: one would wait for itself */
    for (long v = 0; v < width; v++) acc[0][v] = acc[1][v] = splat(0);
    long c = 0, n = l->count[i];
    for (; c + 1 < n; c += 2)
        for (int half = 0; half < 2; half++) {
            const float *row = rows + key[c + half] * ldr;
            float w = x[(c + half) * ld + i];
            for (long v = 0; v < width; v++) acc[half][v] += w * load(row + v * LANES);
        }
    if (c < n)
        for (long v = 0; v < width; v++) acc[0][v] += x[c * ld + i] * load(rows + key[c] * ldr + v * LANES);
    for (long v = 0; v < width; v++) store(out + v * LANES, acc[0][v] + acc[1][v]);
}

/* out[LANES][ldr] = the lists' weights x times rows[keys][ldr]. */
INLINE void gather_product(const list *l, const float *x, long ld, const float *rows, long ldr, float *out) {
    for (long v = 0; v < ldr; v += 4 * LANES)
        for (int i = 0; i < LANES; i++) {
            float *to = out + i * ldr + v;
            switch ((ldr - v) / LANES) {
                case 1: gather_row(1, l, i, x, ld, rows + v, ldr, to); break;
                case 2: gather_row(2, l, i, x, ld, rows + v, ldr, to); break;
                case 3: gather_row(3, l, i, x, ld, rows + v, ldr, to); break;
                default: gather_row(4, l, i, x, ld, rows + v, ldr, to);
            }
        }
}

/* g[c][i] = row i of a . rows[key], for the first `lanes` lists; 0 beyond a list's end. */
INLINE void gather_dots(const list *l, long lanes, float *g, long n, long ld, const float *a, const float *rows,
                        const long ldr) {
    for (long c = 0; c < n; c++) store(g + c * ld, splat(0));
    for (long i = 0; i < lanes; i++)
        for (long c = 0; c < l->count[i]; c++) {
            const float *row = rows + l->key[i * l->room + c] * ldr;
            vec acc = load(a + i * ldr) * load(row);
            for (long v = LANES; v < ldr; v += LANES) acc += load(a + i * ldr + v) * load(row + v);
            g[c * ld + i] = sum(acc);
        }
}

/* to[key] += x[c][i] * row i of a, for the first `lanes` lists. */
INLINE void scatter_add(const list *l, long lanes, const float *x, long ld, const float *a, float *to, const long ldr) {
    for (long i = 0; i < lanes; i++)
        for (long c = 0; c < l->count[i]; c++) {
            float *row = to + l->key[i * l->room + c] * ldr, w = x[c * ld + i];
            for (long v = 0; v < ldr; v += LANES) store(row + v, load(row + v) + w * load(a + i * ldr + v));
        }
}

/* `call` with a width of `ldr` floats that the compiler knows where it is a usual one: it keeps a row in registers. */
#define AT_WIDTH(call, ldr) \
    switch ((ldr) / LANES) { \
        case 1: call(1 * LANES); break; \
        case 2: call(2 * LANES); break; \
        case 3: call(3 * LANES); break; \
        case 4: call(4 * LANES); break; \
        case 5: call(5 * LANES); break; \
        case 6: call(6 * LANES); break; \
        case 8: call(8 * LANES); break; \
        default: call(ldr); \
    }

/* The gradient of weights with respect to values: g[c][i] = a[i] . rows[key]. */
INLINE void dots(const list *l, long lanes, float *g, long n, long ld, const float *a, const float *rows, long ldr) {
#define DOTS(width) gather_dots(l, lanes, g, n, ld, a, rows, width)
    AT_WIDTH(DOTS, ldr)
#undef DOTS
}

/* The transposed product: to[key] += x[c][i] * a[i]. */
INLINE void add_transposed(const list *l, long lanes, const float *x, long ld, const float *a, float *to, long ldr) {
#define ADD(width) scatter_add(l, lanes, x, ld, a, to, width)
    AT_WIDTH(ADD, ldr)
#undef ADD
}

#endif
