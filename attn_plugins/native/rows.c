/* Entmax over the rows of a matrix and its gradient, for functional/: LANES rows at a time are laid side by side. */
#include <omp.h>
#include <stdlib.h>

#include "solve.h"

/* tile[n][LANES] = LANES rows of src from `first`, the last one repeated where there are fewer */
static void gather(float *tile, const float *src, long first, long rows, long n) {
    for (long i = 0; i < LANES; i++) {
        const float *from = src + (first + i < rows ? first + i : rows - 1) * n;
        for (long j = 0; j < n; j++) tile[j * LANES + i] = from[j];
    }
}

static void scatter(float *dst, const float *tile, long first, long rows, long n) {
    for (long i = 0; i < LANES && first + i < rows; i++)
        for (long j = 0; j < n; j++) dst[(first + i) * n + j] = tile[j * LANES + i];
}

/* weights = entmax(scores) for rows of n contiguous floats. Returns 0, or -1: no memory. */
int rows_forward(const float *scores, float *weights, int64_t rows, int64_t n, float alpha, int threads) {
    float *memory = malloc(threads * n * LANES * sizeof(float));
    if (!memory) return -1;
#pragma omp parallel num_threads(threads)
    {
        float *x = memory + omp_get_thread_num() * n * LANES;
#pragma omp for schedule(static)
        for (long first = 0; first < rows; first += LANES) {
            vec top, tau;
            gather(x, scores, first, rows, n);
#define SOLVE(family, power) solve(family, x, n, LANES, power, &top, &tau, NULL)
            AT_FAMILY(SOLVE, alpha)
#undef SOLVE
            scatter(weights, x, first, rows, n);
        }
    }
    free(memory);
    return 0;
}

/* out = gradient of the scores, from the weights and their gradient; rows of n contiguous floats. */
int rows_backward(const float *weights, const float *grad, float *out, int64_t rows, int64_t n, float alpha,
                  int threads) {
    float *memory = malloc(2 * threads * n * LANES * sizeof(float));
    if (!memory) return -1;
#pragma omp parallel num_threads(threads)
    {
        float *s = memory + 2 * omp_get_thread_num() * n * LANES, *g = s + n * LANES;
#pragma omp for schedule(static)
        for (long first = 0; first < rows; first += LANES) {
            gather(s, weights, first, rows, n);
            gather(g, grad, first, rows, n);
            for (long i = 0; i < n; i++) { /* d^(p-1) = weights^(2 - alpha) */
                vec p = load(s + i * LANES);
                switch (family_of(alpha)) {
                    case ENTMAX15: store(s + i * LANES, vsqrt(p)); break;
                    case SPARSEMAX: store(s + i * LANES, blend(p > 0, splat(1), p)); break;
                    case ENTMAX125: /* the root of the root, cubed: dearer to write than the general power */
                    case BELOW15:
                    case ABOVE15: store(s + i * LANES, power_of(p, 2 - alpha, 0)); break;
                }
            }
            pull_back(s, g, n, LANES, weighted_mean(s, g, n, LANES));
            scatter(out, g, first, rows, n);
        }
    }
    free(memory);
    return 0;
}
