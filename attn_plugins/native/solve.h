/* Entmax along a column of vectors: lane i of x[0..n) is row i of scores, so LANES rows are solved at once and no step
   needs a horizontal sum. With y = (alpha - 1)(x - max x) and p = 1 / (alpha - 1), the weights are max(y - tau, 0)^p,
   where ||max(y - tau, 0)||_p = 1. That norm is convex and decreasing in tau, so Newton from tau = -1 climbs to the
   root without overshooting (functional/solver.py has the proof). */
#ifndef ATTN_PLUGINS_SOLVE_H
#define ATTN_PLUGINS_SOLVE_H

#include "sparse.h"

enum family { ENTMAX15, SPARSEMAX, ENTMAX125, ENTMAX };
#define MAX_STEPS 64    /* never reached: each step divides (norm - 1) * slope by 4 or more */
#define CONVERGED 1e-6f /* a step this small beside tau is followed by none that float32 could tell */
#define ROUGH_STEPS 3
#define CHUNK 32        /* rows summed before they join the total */

/* Where 1 / (alpha - 1) is a whole number, no logarithm is needed. */
static enum family family_of(float alpha) {
    return alpha == 1.5f ? ENTMAX15 : alpha == 2.f ? SPARSEMAX : alpha == 1.25f ? ENTMAX125 : ENTMAX;
}

/* `call` with the family that the compiler knows, and its power. */
#define AT_FAMILY(call, alpha) \
    switch (family_of(alpha)) { \
        case ENTMAX15: call(ENTMAX15, 2); break; \
        case SPARSEMAX: call(SPARSEMAX, 1); break; \
        case ENTMAX125: call(ENTMAX125, 4); break; \
        case ENTMAX: call(ENTMAX, 1 / ((alpha) - 1)); break; \
    }

/* s = d^(p-1), the derivative of the weights up to a constant; the weight itself is s * d. */
INLINE vec slope(enum family f, vec d, float power) {
    if (f == ENTMAX15) return d;
    if (f == SPARSEMAX) return blend(d > 0, splat(1), d);
    if (f == ENTMAX125) return d * d * d;
    /* Where d <= 1e-37 the logarithm has no normal number to work on; the weight there is 0 to any precision. */
    vec s = vexp2((power - 1) * vlog2(blend(d > 1e-37f, d, splat(1))));
    return blend(d > 1e-37f, s, d * 0);
}

INLINE vec rough_slope(vec d, float power) {
    vec s = rough_exp2((power - 1) * rough_log2(blend(d > 1e-37f, d, splat(1))));
    return blend(d > 1e-37f, s, d * 0);
}

/* (alpha - 1)(x - max x). The factor comes last: before, it would round scores that may be large. */
INLINE vec shifted(enum family f, vec x, vec top, float power) {
    return f == SPARSEMAX ? x - top : f == ENTMAX15 ? (x - top) * .5f : f == ENTMAX125 ? (x - top) * .25f : (x - top) / power;
}

/* One Newton step from tau. With `top`, x holds scores, and y is stored in their place. With `used`, the number of keys
   above tau is counted. With `rough`, the weights are known to a few per cent. */
INLINE vec newton(enum family f, float *x, long n, long ld, const vec *top, vec tau, float power, ivec *used, int rough) {
    vec sum_s = {0}, sum_p = {0}, lost = {0};
    for (long c = 0; c < n; c += CHUNK) {
        long end = c + CHUNK < n ? c + CHUNK : n;
        vec part_s = {0}, part_p = {0};
        for (long i = c; i < end; i++) {
            vec y = load(x + i * ld);
            if (top) store(x + i * ld, y = shifted(f, y, *top, power));
            if (used) *used -= y > tau;
            vec d = relu(y - tau), s = rough ? rough_slope(d, power) : slope(f, d, power);
            part_s += s;
            part_p += s * d;
        }
        sum_s += part_s;
        /* Kahan's sum: the weights of a long row are small beside their total, which has to be 1. */
        vec gain = part_p - lost, total = sum_p + gain;
        lost = (total - sum_p) - gain;
        sum_p = total;
    }
    vec norm = sum_p;
    if (f == ENTMAX15) norm = vsqrt(sum_p);
    if (f == ENTMAX125) norm = vsqrt(vsqrt(sum_p));
    if (f == ENTMAX) norm = vexp2(vlog2(sum_p) / power);
    vec step = (norm - 1) * sum_p / (norm * sum_s);
    return (vec)((ivec)step & ~(sum_p == 0)); /* every key masked: nothing to solve */
}

INLINE vec column_max(const float *x, long n, long ld) {
    vec top = splat(-INFINITY);
    for (long i = 0; i < n; i++) {
        vec v = load(x + i * ld);
        top = blend(v > top, v, top);
    }
    return blend(top == -INFINITY, splat(0), top);
}

/* Scores to weights in place. top and tau are what the backward pass needs to find the weights again.

   With `list`, the column is shortened to the keys that may have a weight if they are few (sparse.h). */
INLINE void solve(enum family f, float *x, long n, long ld, float power, vec *top, vec *tau, list *list) {
    *top = column_max(x, n, ld);
    vec t = splat(-1), step;
    int left = MAX_STEPS;
    if (f == ENTMAX) { /* powers are dear: come near first */
        vec highest = splat(-powf(n, -1 / power)); /* the largest of n weights is 1 / n or more */
        for (int i = 0; i < ROUGH_STEPS; i++) {
            t += newton(f, x, n, ld, i ? NULL : top, t, power, NULL, 1);
            t = blend(t > -1, t, splat(-1));
            t = blend(t < highest, t, highest);
        }
    } else
        t += newton(f, x, n, ld, top, t, power, NULL, 0);
    /* Exact from here. A step from above the root ends below it, and a key below tau then has no weight. */
    int tried = !list;
    do {
        ivec used = {0};
        if (tried) step = newton(f, x, n, ld, NULL, t, power, NULL, 0);
        else step = newton(f, x, n, ld, NULL, t, power, &used, 0);
        t += step;
        if (!tried && few(used, n)) n = shorten(list, x, n, ld, t);
        tried = 1;
    } while (any(blend(step < 0, -step, step) > CONVERGED * -t) && --left > 0);
    for (long i = 0; i < n; i++) {
        vec d = relu(load(x + i * ld) - t);
        store(x + i * ld, slope(f, d, power) * d);
    }
    *tau = t;
}

/* delta = sum(s g) / sum(s) for s = d^(p-1) and the weights' gradient g. Where s = 0, g does not matter, even if
   it is NaN; a fully masked row has delta 0. */
INLINE vec weighted_mean(const float *s, const float *g, long n, long ld) {
    vec total = {0}, dot = {0};
    for (long i = 0; i < n; i++) {
        vec si = load(s + i * ld);
        total += si;
        dot += si * (vec)((ivec)load(g + i * ld) & (si != 0));
    }
    return (vec)((ivec)(dot / total) & (total != 0));
}

/* The weights' gradient g becomes the scores' gradient s * (g - delta), in place. */
INLINE void pull_back(const float *s, float *g, long n, long ld, vec delta) {
    for (long i = 0; i < n; i++) {
        vec si = load(s + i * ld);
        store(g + i * ld, (vec)((ivec)(si * (load(g + i * ld) - delta)) & (si != 0)));
    }
}

/* The gradient of alpha from weights p, their gradient g and their weighted mean delta, by implicit differentiation
   (Correia et al. 2019, equation 9): with h = -p log p,
   (sum(g p) - delta) / (alpha - 1)^2 + (sum(g h) - delta sum(h)) / (alpha - 1). Per lane. */
INLINE vec pull_back_alpha(const float *p, const float *g, long n, long ld, float alpha, vec delta) {
    vec gp = {0}, gh = {0}, h = {0};
    for (long i = 0; i < n; i++) {
        vec pi = load(p + i * ld), gi = (vec)((ivec)load(g + i * ld) & (pi != 0));
        vec hi = pi * vlog2(blend(pi > 1e-37f, pi, splat(1))) * -0.69314718f;
        gp += gi * pi;
        gh += gi * hi;
        h += hi;
    }
    float a = 1 / (alpha - 1);
    return (gp - delta) * (a * a) + (gh - delta * h) * a;
}

#endif
