/* C (+)= A B for small matrices in cache. B and C are rows of whole vectors; A has any strides, so a transpose costs
   nothing. Sizes are padded by the caller: A may be read and C written up to the next multiple of TILE_ROWS rows. */
#ifndef ATTN_PLUGINS_MATMUL_H
#define ATTN_PLUGINS_MATMUL_H

#include "vector.h"

typedef struct { const float *at; long row, col; } operand; /* element (i, j) is at[i * row + j * col] */

/* One tile of TILE_ROWS x nv vectors, held in registers while it walks the depth. */
INLINE void tile(const int nv, const float *a, long row, long col, long depth, const float *b, long ldb, float *c,
                 long ldc, int add) {
    vec acc[TILE_ROWS][TILE_VECS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < nv; j++) acc[i][j] = add ? load(c + i * ldc + j * LANES) : splat(0);
    for (long p = 0; p < depth; p++) {
        vec bp[TILE_VECS];
        for (int j = 0; j < nv; j++) bp[j] = load(b + p * ldb + j * LANES);
        for (int i = 0; i < TILE_ROWS; i++) {
            float x = a[i * row + p * col];
            for (int j = 0; j < nv; j++) acc[i][j] += x * bp[j];
        }
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < nv; j++) store(c + i * ldc + j * LANES, acc[i][j]);
}

/* c[rows][vecs * LANES] (+)= a[rows][depth] b[depth][vecs * LANES] */
static void matmul(long rows, long vecs, long depth, operand a, const float *b, long ldb, float *c, long ldc, int add) {
    long parts = (vecs + TILE_VECS - 1) / TILE_VECS;
    for (long j = 0, part = parts; part > 0; part--) {
        int nv = (int)((vecs - j + part - 1) / part); /* as even as possible: 4 vectors are 2 + 2, not 3 + 1 */
        for (long i = 0; i < rows; i += TILE_ROWS) {
            const float *ai = a.at + i * a.row, *bj = b + j * LANES;
            float *cij = c + i * ldc + j * LANES;
            if (nv == 1) tile(1, ai, a.row, a.col, depth, bj, ldb, cij, ldc, add);
            if (nv == 2) tile(2, ai, a.row, a.col, depth, bj, ldb, cij, ldc, add);
            if (nv == 3) tile(3, ai, a.row, a.col, depth, bj, ldb, cij, ldc, add);
        }
        j += nv;
    }
}

#endif
