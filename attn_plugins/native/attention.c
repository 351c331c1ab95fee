/* Entmax attention, forward and backward, one (batch, head) at a time in cache.

   A block of up to TILE_VECS * LANES queries is laid out with queries along the lanes: scores are [keys][queries], so
   the threshold of LANES rows is solved at once (solve.h). The forward keeps the two numbers per row that find the
   weights again, never the weights. Plain C, float32, called through ctypes by attention/cpu.py. */
#include <omp.h>
#include <stdlib.h>

#include "matmul.h"
#include "solve.h"

typedef struct { float *at; int64_t b, h, n, s; } tensor; /* strides in elements; s is 1 for all but the mask */
typedef struct {
    int64_t batch, heads, queries, keys, dim, value_dim;
    float scale;
    int32_t causal, threads;
    const float *alpha; /* [heads] */
} problem;

typedef struct { long first, count, vecs; } block; /* queries first .. first + count, in vecs * LANES lanes */

static float *take(float **pool, long floats) {
    float *at = *pool;
    *pool += round_up(floats, LANES);
    return at;
}

/* Room for one thread: `floats` in up to 16 pieces, each rounded up to whole vectors. */
static long room(long floats) { return round_up(floats, LANES) + 16 * LANES; }

INLINE float *row(const tensor *t, long b, long h, long n) { return t->at + b * t->b + h * t->h + n * t->n; }

/* dst[rows][ld] = src rows of `cols` floats, zeros up to ld */
static void pack(float *dst, const float *src, long stride, long rows, long cols, long ld) {
    for (long i = 0; i < rows; i++) {
        memcpy(dst + i * ld, src + i * stride, cols * sizeof(float));
        memset(dst + i * ld + cols, 0, (ld - cols) * sizeof(float));
    }
}

/* dst[cols][ld] = factor * src[rows][cols] transposed, zeros in the lanes from rows to ld */
static void pack_transposed(float *dst, const float *src, long stride, long rows, long cols, long ld, float factor) {
    for (long j = 0; j < cols; j++)
        for (long i = rows; i < ld; i++) dst[j * ld + i] = 0;
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < cols; j++) dst[j * ld + i] = factor * src[i * stride + j];
}

static void unpack(float *dst, long stride, const float *src, long rows, long cols, long ld, float factor) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < cols; j++) dst[i * stride + j] = factor * src[i * ld + j];
}

static block block_at(const problem *p, long index, long blocks) {
    long vecs = (p->queries + LANES - 1) / LANES, first = vecs * index / blocks, end = vecs * (index + 1) / blocks;
    long last = end * LANES < p->queries ? end * LANES : p->queries;
    return (block){first * LANES, last - first * LANES, end - first};
}

static long blocks_of(const problem *p) {
    long vecs = (p->queries + LANES - 1) / LANES;
    return (vecs + TILE_VECS - 1) / TILE_VECS;
}

/* x[keys][lanes] = scale * q k^T + mask; qt is scratch for the transposed queries. */
static void scores(const problem *p, const tensor *q, const tensor *mask, const float *k, long ldk, long b, long h,
                   block t, float *qt, float *x) {
    long ld = t.vecs * LANES;
    pack_transposed(qt, row(q, b, h, t.first), q->n, t.count, p->dim, ld, p->scale);
    matmul(p->keys, t.vecs, p->dim, (operand){k, ldk, 1}, qt, ld, x, ld, 0);
    if (mask->at)
        for (long i = 0; i < t.count; i++) {
            const float *m = row(mask, b, h, t.first + i);
            for (long j = 0; j < p->keys; j++) x[j * ld + i] += m[j * mask->s];
        }
    if (p->causal)
        for (long i = 0; i < t.count; i++)
            for (long j = t.first + i + 1; j < p->keys; j++) x[j * ld + i] = -INFINITY;
}

static void solve_columns(float alpha, float *x, long keys, long vecs, float *top, float *tau) {
    long ld = vecs * LANES;
    for (long j = 0; j < ld; j += LANES) {
        vec m, t;
        switch (family_of(alpha)) {
            case ENTMAX15: solve(ENTMAX15, x + j, keys, ld, 2, &m, &t); break;
            case SPARSEMAX: solve(SPARSEMAX, x + j, keys, ld, 1, &m, &t); break;
            case ENTMAX: solve(ENTMAX, x + j, keys, ld, 1 / (alpha - 1), &m, &t); break;
        }
        store(top + j, m);
        store(tau + j, t);
    }
}

/* Scores x become weights, and s their slope d^(p-1). */
INLINE void restore(enum family f, float *x, float *s, long n, long ld, float power, vec top, vec tau) {
    for (long i = 0; i < n; i++) {
        vec d = relu(shifted(f, load(x + i * ld), top, power) - tau), si = slope(f, d, power);
        store(s + i * ld, si);
        store(x + i * ld, si * d);
    }
}

/* x: scores to weights; g: the weights' gradient to the scores'. Returns the gradient of alpha if it is wanted. */
static float backward_columns(float alpha, float *x, float *g, float *s, long keys, block t, const float *top,
                              const float *tau, int want_alpha) {
    long ld = t.vecs * LANES;
    float alpha_grad = 0;
    for (long j = 0; j < ld; j += LANES) {
        vec m = load(top + j), u = load(tau + j);
        switch (family_of(alpha)) {
            case ENTMAX15: restore(ENTMAX15, x + j, s + j, keys, ld, 2, m, u); break;
            case SPARSEMAX: restore(SPARSEMAX, x + j, s + j, keys, ld, 1, m, u); break;
            case ENTMAX: restore(ENTMAX, x + j, s + j, keys, ld, 1 / (alpha - 1), m, u); break;
        }
        vec delta = weighted_mean(s + j, g + j, keys, ld);
        if (want_alpha) {
            vec rows = pull_back_alpha(x + j, g + j, keys, ld, alpha, delta);
            for (long i = 0; i < LANES && j + i < t.count; i++) alpha_grad += rows[i];
        }
        pull_back(s + j, g + j, keys, ld, delta);
    }
    return alpha_grad;
}

/* out = entmax(scale * q k^T + mask) v; stats [2][batch][heads][queries] = maximum and threshold of every row.
   Returns 0, or -1 if there is no memory. */
int attention_forward(const problem *p, const tensor *q, const tensor *k, const tensor *v, const tensor *mask,
                      tensor *out, float *stats) {
    long ldk = round_up(p->dim, LANES), ldv = round_up(p->value_dim, LANES), keys = round_up(p->keys, TILE_ROWS);
    long lanes = TILE_VECS * LANES, blocks = blocks_of(p), rows = p->batch * p->heads * p->queries;
    long pairs = p->batch * p->heads, splits = 1;
    /* Few heads and many threads: split a head's queries, each part packing the keys again. */
    while (splits < blocks && pairs * splits < 2 * p->threads) splits++;
    long floats = room(keys * (ldk + ldv + lanes) + lanes * (p->dim + ldv + 2));
    void *memory;
    if (posix_memalign(&memory, 64, p->threads * floats * sizeof(float))) return -1;
#pragma omp parallel num_threads(p->threads)
    {
        float *pool = (float *)memory + omp_get_thread_num() * floats;
        float *kp = take(&pool, keys * ldk), *vp = take(&pool, keys * ldv), *x = take(&pool, keys * lanes);
        float *qt = take(&pool, p->dim * lanes), *o = take(&pool, lanes * ldv);
        float *top = take(&pool, lanes), *tau = take(&pool, lanes);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < pairs * splits; task++) {
            long pair = task / splits, part = task % splits, b = pair / p->heads, h = pair % p->heads;
            pack(kp, row(k, b, h, 0), k->n, p->keys, p->dim, ldk);
            pack(vp, row(v, b, h, 0), v->n, p->keys, p->value_dim, ldv);
            for (long i = blocks * part / splits; i < blocks * (part + 1) / splits; i++) {
                block t = block_at(p, i, blocks);
                long ld = t.vecs * LANES, at = pair * p->queries + t.first;
                scores(p, q, mask, kp, ldk, b, h, t, qt, x);
                solve_columns(p->alpha[h], x, p->keys, t.vecs, top, tau);
                matmul(ld, ldv / LANES, p->keys, (operand){x, 1, ld}, vp, ldv, o, ldv, 0);
                unpack(row(out, b, h, t.first), out->n, o, t.count, p->value_dim, ldv, 1);
                memcpy(stats + at, top, t.count * sizeof(float));
                memcpy(stats + rows + at, tau, t.count * sizeof(float));
            }
        }
    }
    free(memory);
    return 0;
}

/* Gradients of q, k, v and, where alpha_grad [batch][heads] is given, of alpha. Returns 0, or -1: no memory. */
int attention_backward(const problem *p, const tensor *q, const tensor *k, const tensor *v, const tensor *mask,
                       const tensor *grad, const float *stats, tensor *dq, tensor *dk, tensor *dv, float *alpha_grad) {
    long ldk = round_up(p->dim, LANES), ldv = round_up(p->value_dim, LANES), keys = round_up(p->keys, TILE_ROWS);
    long lanes = TILE_VECS * LANES, blocks = blocks_of(p), rows = p->batch * p->heads * p->queries;
    long floats = room(keys * (2 * ldk + 2 * ldv + 3 * lanes) + lanes * (p->dim + p->value_dim + 2 * ldk + ldv + 2));
    void *memory;
    if (posix_memalign(&memory, 64, p->threads * floats * sizeof(float))) return -1;
#pragma omp parallel num_threads(p->threads)
    {
        float *pool = (float *)memory + omp_get_thread_num() * floats;
        float *kp = take(&pool, keys * ldk), *vp = take(&pool, keys * ldv);
        float *dkp = take(&pool, keys * ldk), *dvp = take(&pool, keys * ldv);
        float *x = take(&pool, keys * lanes), *g = take(&pool, keys * lanes), *s = take(&pool, keys * lanes);
        float *qt = take(&pool, p->dim * lanes), *gt = take(&pool, p->value_dim * lanes);
        float *qp = take(&pool, lanes * ldk), *dqp = take(&pool, lanes * ldk), *gp = take(&pool, lanes * ldv);
        float *top = take(&pool, lanes), *tau = take(&pool, lanes);
#pragma omp for schedule(dynamic)
        for (long pair = 0; pair < p->batch * p->heads; pair++) {
            long b = pair / p->heads, h = pair % p->heads;
            float alpha_sum = 0;
            pack(kp, row(k, b, h, 0), k->n, p->keys, p->dim, ldk);
            pack(vp, row(v, b, h, 0), v->n, p->keys, p->value_dim, ldv);
            memset(dkp, 0, keys * ldk * sizeof(float));
            memset(dvp, 0, keys * ldv * sizeof(float));
            for (long i = 0; i < blocks; i++) {
                block t = block_at(p, i, blocks);
                long ld = t.vecs * LANES, at = pair * p->queries + t.first;
                const float *grad_rows = row(grad, b, h, t.first);
                for (long j = 0; j < ld; j++) {
                    top[j] = j < t.count ? stats[at + j] : 0;
                    tau[j] = j < t.count ? stats[rows + at + j] : 0;
                }
                scores(p, q, mask, kp, ldk, b, h, t, qt, x);
                pack_transposed(gt, grad_rows, grad->n, t.count, p->value_dim, ld, 1);
                matmul(p->keys, t.vecs, p->value_dim, (operand){vp, ldv, 1}, gt, ld, g, ld, 0);
                alpha_sum += backward_columns(p->alpha[h], x, g, s, p->keys, t, top, tau, alpha_grad != NULL);
                pack(qp, row(q, b, h, t.first), q->n, t.count, p->dim, ldk);
                pack(gp, grad_rows, grad->n, t.count, p->value_dim, ldv);
                matmul(p->keys, ldv / LANES, t.count, (operand){x, ld, 1}, gp, ldv, dvp, ldv, 1);
                matmul(p->keys, ldk / LANES, t.count, (operand){g, ld, 1}, qp, ldk, dkp, ldk, 1);
                matmul(ld, ldk / LANES, p->keys, (operand){g, 1, ld}, kp, ldk, dqp, ldk, 0);
                unpack(row(dq, b, h, t.first), dq->n, dqp, t.count, p->dim, ldk, p->scale);
            }
            unpack(row(dk, b, h, 0), dk->n, dkp, p->keys, p->dim, ldk, p->scale);
            unpack(row(dv, b, h, 0), dv->n, dvp, p->keys, p->value_dim, ldv, 1);
            if (alpha_grad) alpha_grad[pair] = alpha_sum;
        }
    }
    free(memory);
    return 0;
}
