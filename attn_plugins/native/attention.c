/* Entmax attention, forward and backward, one (batch, head) at a time in cache.

   A block of up to TILE_VECS * LANES queries is laid out with queries along the lanes: scores are [keys][queries], so
   the threshold of LANES rows is solved at once (solve.h). Where few keys have a weight, products take those alone
   (sparse.h). The forward keeps the two numbers per row that find the weights again, never the weights. Plain C, in
   float32, called through ctypes by attention/cpu.py. */
#include <omp.h>
#include <stdlib.h>

#include "matmul.h"
#include "pack.h"
#include "solve.h"

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

/* Whether no number among n, a multiple of LANES, is infinite or NaN: zero weights hide what they multiply only then. */
static int all_finite(const float *x, long n) {
    vec zeros = {0};
    for (long i = 0; i < n; i += LANES) zeros += load(x + i) * 0;
    return !any(zeros != 0);
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

/* x[keys][lanes] = scale * q k^T + mask; qp[lanes][ldk] gets the queries, and qt is scratch for them transposed. */
static void scores(const problem *p, const tensor *q, const tensor *mask, const float *k, long ldk, long b, long h,
                   block t, float *qp, float *qt, float *x) {
    long ld = t.vecs * LANES;
    pack(qp, q, b, h, t.first, t.count, p->dim, ldk, ld);
    transpose(qt, qp, ld, ldk, p->scale);
    matmul(p->keys, t.vecs, p->dim, (operand){k, ldk, 1}, qt, ld, x, ld, 0);
    if (mask->at)
        for (long i = 0; i < t.count; i++) {
            const float *m = row(mask, b, h, t.first + i);
            for (long j = 0; j < p->keys; j++) x[j * ld + i] += m[j * mask->s];
        }
    for (long j = 0; t.count < ld && j < p->keys; j++) /* no row is there: none of its keys counts */
        for (long i = t.count; i < ld; i++) x[j * ld + i] = -INFINITY;
    if (p->causal)
        for (long i = 0; i < t.count; i++)
            for (long j = t.first + i + 1; j < p->keys; j++) x[j * ld + i] = -INFINITY;
}

static void solve_column(float alpha, float *x, long keys, long ld, vec *top, vec *tau, list *list) {
#define SOLVE(family, power) solve(family, x, keys, ld, power, top, tau, list)
    AT_FAMILY(SOLVE, alpha)
#undef SOLVE
}

/* Scores x become weights, and s their slope d^(p-1). */
INLINE void restore(enum family f, float *x, float *s, long n, long ld, float power, vec top, vec tau) {
    for (long i = 0; i < n; i++) {
        vec d = relu(shifted(f, load(x + i * ld), top, power) - tau), si = slope(f, d, power);
        store(s + i * ld, si);
        store(x + i * ld, si * d);
    }
}

/* x: scores to weights; g: the weights' gradient to the scores'; for one vector of rows, the first `lanes` of which
   are used. Returns the gradient of alpha if it is wanted. */
static float backward_column(float alpha, float *x, float *g, float *s, long keys, long ld, long lanes, vec top,
                             vec tau, int want_alpha) {
    float alpha_grad = 0;
#define RESTORE(family, power) restore(family, x, s, keys, ld, power, top, tau)
    AT_FAMILY(RESTORE, alpha)
#undef RESTORE
    vec delta = weighted_mean(s, g, keys, ld);
    if (want_alpha) {
        vec rows = pull_back_alpha(x, g, keys, ld, alpha, delta);
        for (long i = 0; i < lanes; i++) alpha_grad += rows[i];
    }
    pull_back(s, g, keys, ld, delta);
    return alpha_grad;
}

static long min(long a, long b) { return a < b ? a : b; }

/* The least score with a weight, a little less where rounding may tell otherwise. */
static vec floor_of(float alpha, vec top, vec tau) {
    vec floor = top + tau / (alpha - 1), size = blend(top < 0, -top, top) - tau / (alpha - 1);
    return floor - 1e-6f * size;
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
    long floats = room(keys * (ldk + ldv + lanes) + lanes * (2 * ldk + ldv) + LANES * list_room(p->keys));
    void *memory;
    if (posix_memalign(&memory, 64, p->threads * floats * sizeof(float))) return -1;
#pragma omp parallel num_threads(p->threads)
    {
        float *pool = (float *)memory + omp_get_thread_num() * floats;
        float *kp = take(&pool, keys * ldk), *vp = take(&pool, keys * ldv), *x = take(&pool, keys * lanes);
        float *qp = take(&pool, lanes * ldk), *qt = take(&pool, lanes * ldk), *o = take(&pool, lanes * ldv);
        list list = {(int32_t *)take(&pool, LANES * list_room(p->keys)), list_room(p->keys)};
#pragma omp for schedule(dynamic)
        for (long task = 0; task < pairs * splits; task++) {
            long pair = task / splits, part = task % splits, b = pair / p->heads, h = pair % p->heads;
            pack(kp, k, b, h, 0, p->keys, p->dim, ldk, 0);
            pack(vp, v, b, h, 0, p->keys, p->value_dim, ldv, 0);
            int sparse = p->keys >= MANY && all_finite(vp, p->keys * ldv);
            for (long i = blocks * part / splits; i < blocks * (part + 1) / splits; i++) {
                block t = block_at(p, i, blocks);
                long ld = t.vecs * LANES, at = pair * p->queries + t.first;
                scores(p, q, mask, kp, ldk, b, h, t, qp, qt, x);
                int whole[TILE_VECS];
                for (long j = 0; j < t.vecs; j++) {
                    vec top, tau;
                    float *column = x + j * LANES;
                    list.filled = 0;
                    solve_column(p->alpha[h], column, p->keys, ld, &top, &tau, sparse ? &list : NULL);
                    whole[j] = !list.filled;
                    if (!whole[j]) gather_product(&list, column, ld, vp, ldv, o + j * LANES * ldv);
                    long used = min(t.count - j * LANES, LANES) * sizeof(float);
                    memcpy(stats + at + j * LANES, &top, used);
                    memcpy(stats + rows + at + j * LANES, &tau, used);
                }
                for (long j = 0; j < t.vecs; j++)
                    if (whole[j])
                        matmul(LANES, ldv / LANES, p->keys, (operand){x + j * LANES, 1, ld}, vp, ldv,
                               o + j * LANES * ldv, ldv, 0);
                unpack(out, b, h, t.first, o, t.count, p->value_dim, ldv, 1);
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
    long floats = room(keys * (2 * ldk + 2 * ldv + 3 * lanes) + lanes * (3 * ldk + 2 * ldv + 2) +
                       LANES * list_room(p->keys));
    void *memory;
    if (posix_memalign(&memory, 64, p->threads * floats * sizeof(float))) return -1;
#pragma omp parallel num_threads(p->threads)
    {
        float *pool = (float *)memory + omp_get_thread_num() * floats;
        float *kp = take(&pool, keys * ldk), *vp = take(&pool, keys * ldv);
        float *dkp = take(&pool, keys * ldk), *dvp = take(&pool, keys * ldv);
        float *x = take(&pool, keys * lanes), *g = take(&pool, keys * lanes), *s = take(&pool, keys * lanes);
        float *qt = take(&pool, lanes * ldk), *gt = take(&pool, lanes * ldv);
        float *qp = take(&pool, lanes * ldk), *dqp = take(&pool, lanes * ldk), *gp = take(&pool, lanes * ldv);
        float *top = take(&pool, lanes), *tau = take(&pool, lanes);
        list list = {(int32_t *)take(&pool, LANES * list_room(p->keys)), list_room(p->keys)};
#pragma omp for schedule(dynamic)
        for (long pair = 0; pair < p->batch * p->heads; pair++) {
            long b = pair / p->heads, h = pair % p->heads;
            float alpha_sum = 0;
            pack(kp, k, b, h, 0, p->keys, p->dim, ldk, 0);
            pack(vp, v, b, h, 0, p->keys, p->value_dim, ldv, 0);
            int sparse = p->keys >= MANY && all_finite(kp, p->keys * ldk) && all_finite(vp, p->keys * ldv);
            memset(dkp, 0, keys * ldk * sizeof(float));
            memset(dvp, 0, keys * ldv * sizeof(float));
            for (long i = 0; i < blocks; i++) {
                block t = block_at(p, i, blocks);
                long ld = t.vecs * LANES, at = pair * p->queries + t.first;
                for (long j = 0; j < ld; j++) {
                    top[j] = j < t.count ? stats[at + j] : 0;
                    tau[j] = j < t.count ? stats[rows + at + j] : 0;
                }
                scores(p, q, mask, kp, ldk, b, h, t, qp, qt, x);
                pack(gp, grad, b, h, t.first, t.count, p->value_dim, ldv, ld);
                ivec used = {0};
                for (long j = 0; sparse && j < ld; j += LANES)
                    used += above(x + j, p->keys, ld, floor_of(p->alpha[h], load(top + j), load(tau + j)));
                if (sparse && few(used, t.vecs * p->keys) && all_finite(qp, t.count * ldk) && all_finite(gp, t.count * ldv)) {
                    for (long j = 0; j < ld; j += LANES) {
                        long used = min(t.count - j, LANES);
                        vec m = load(top + j), u = load(tau + j);
                        long n = shorten(&list, x + j, p->keys, ld, floor_of(p->alpha[h], m, u));
                        dots(&list, used, g + j, n, ld, gp + j * ldv, vp, ldv);
                        alpha_sum += backward_column(p->alpha[h], x + j, g + j, s + j, n, ld, used, m, u, !!alpha_grad);
                        add_transposed(&list, used, x + j, ld, gp + j * ldv, dvp, ldv);
                        add_transposed(&list, used, g + j, ld, qp + j * ldk, dkp, ldk);
                        gather_product(&list, g + j, ld, kp, ldk, dqp + j * ldk);
                    }
                } else {
                    transpose(gt, gp, ld, ldv, 1);
                    matmul(p->keys, t.vecs, p->value_dim, (operand){vp, ldv, 1}, gt, ld, g, ld, 0);
                    for (long j = 0; j < ld; j += LANES)
                        alpha_sum += backward_column(p->alpha[h], x + j, g + j, s + j, p->keys, ld, min(t.count - j, LANES),
                                                     load(top + j), load(tau + j), !!alpha_grad);
                    matmul(p->keys, ldv / LANES, t.count, (operand){x, ld, 1}, gp, ldv, dvp, ldv, 1);
                    matmul(p->keys, ldk / LANES, t.count, (operand){g, ld, 1}, qp, ldk, dkp, ldk, 1);
                    matmul(ld, ldk / LANES, p->keys, (operand){g, 1, ld}, kp, ldk, dqp, ldk, 0);
                }
                unpack(dq, b, h, t.first, dqp, t.count, p->dim, ldk, p->scale);
            }
            unpack(dk, b, h, 0, dkp, p->keys, p->dim, ldk, p->scale);
            unpack(dv, b, h, 0, dvp, p->keys, p->value_dim, ldv, 1);
            if (alpha_grad) alpha_grad[pair] = alpha_sum;
        }
    }
    free(memory);
    return 0;
}
