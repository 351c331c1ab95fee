/* Entmax along a column of vectors: lane i of x[0..n) is row i of scores, so LANES rows are solved at once and no step
   needs a horizontal sum. With y = (alpha - 1)(x - max x) and p = 1 / (alpha - 1), the weights are max(y - tau, 0)^p,
   where ||max(y - tau, 0)||_p = 1. That norm is convex and decreasing in tau, so Newton from tau = -1 climbs to the
   root without overshooting (functional/solver.py has the proof). Where the exponent is not whole, every step costs a
   power for each key: the first ones are rough, and for p > 2 they are Halley's, after which one exact step is enough. */
#ifndef ATTN_PLUGINS_SOLVE_H
#define ATTN_PLUGINS_SOLVE_H

#include "sparse.h"

enum family { ENTMAX15, SPARSEMAX, ENTMAX125, BELOW15, ABOVE15 };
#define MAX_STEPS 64    /* never reached: each step divides (norm - 1) * slope by 4 or more */
#define CONVERGED 1e-6f /* a step this small beside tau is followed by none that float32 could tell */
#define ROUGH_STEPS 3
#define ROUGH 5e-4f     /* beside tau, how far from the root rough powers lead */
#define CHUNK 32        /* rows summed before they join the total */

/* Where 1 / (alpha - 1) is a whole number, no logarithm is needed. */
static enum family family_of(float alpha) {
    if (alpha == 1.5f) return ENTMAX15;
    if (alpha == 2.f) return SPARSEMAX;
    if (alpha == 1.25f) return ENTMAX125;
    return alpha < 1.5f ? BELOW15 : ABOVE15;
}

/* `call` with the family that the compiler knows, and its power. */
#define AT_FAMILY(call, alpha) \
    switch (family_of(alpha)) { \
        case ENTMAX15: call(ENTMAX15, 2); break; \
        case SPARSEMAX: call(SPARSEMAX, 1); break; \
        case ENTMAX125: call(ENTMAX125, 4); break; \
        case BELOW15: call(BELOW15, 1 / ((alpha) - 1)); break; \
        case ABOVE15: call(ABOVE15, 1 / ((alpha) - 1)); break; \
    }

/* d^q. Where d <= 1e-37 the logarithm has no normal number to work on; the weight there is 0 to any precision. */
INLINE vec power_of(vec d, float q, int rough) {
    vec s = rough ? rough_exp2(q * rough_log2(d)) : vexp2(q * vlog2(d));
    return (vec)((ivec)s & (d > 1e-37f)) + d * 0; /* NaN where d is */
}

/* s = d^(p-1), the derivative of the weights up to a constant; the weight itself is s * d. */
INLINE vec slope(enum family f, vec d, float power) {
    if (f == ENTMAX15) return d;
    if (f == SPARSEMAX) return blend(d > 0, splat(1), d);
    if (f == ENTMAX125) return d * d * d;
    return power_of(d, power - 1, 0);
}

/* (alpha - 1)(x - max x). The factor comes last: before, it would round scores that may be large. */
INLINE vec shifted(enum family f, vec x, vec top, float power) {
    return f == SPARSEMAX ? x - top : f == ENTMAX15 ? (x - top) * .5f : f == ENTMAX125 ? (x - top) * .25f : (x - top) / power;
}

/* One step from tau: Newton's or, where the power is above 2 and the second derivative is therefore known, Halley's, which
   goes further. With `top`, x holds scores, and y is stored in their place. With `used`, the number of keys above tau is
   counted. With `rough`, powers are. `rest` is what the next step may be at most: no more than this one or, with the
   second derivative, what Newton's leaves. `below` are the lanes that Halley's has not led past the root. */
INLINE vec step_from(vec tau, enum family f, float *x, long n, long ld, const vec *top, float power, ivec *used, int rough,
                     ivec *below, vec *rest) {
    vec sum_b = {0}, sum_s = {0}, sum_p = {0}, lost = {0};
    for (long c = 0; c < n; c += CHUNK) {
        long end = c + CHUNK < n ? c + CHUNK : n;
        vec part_s = {0}, part_p = {0};
        for (long i = c; i < end; i++) {
            vec y = load(x + i * ld);
            if (top) store(x + i * ld, y = shifted(f, y, *top, power));
            if (used) *used -= y > tau;
            vec d = relu(y - tau), s;
            if (f == BELOW15) {
                vec base = power_of(d, power - 2, rough);
                sum_b += base;
                s = base * d;
            } else s = rough ? power_of(d, power - 1, 1) : slope(f, d, power);
            part_s += s;
            part_p += s * d;
        }
        sum_s += part_s;
        /* Kahan's sum: the weights of a long row are small beside their total, which has to be 1. */
        vec gain = part_p - lost, total = sum_p + gain;
        lost = (total - sum_p) - gain;
        sum_p = total;
    }
    vec norm = sum_p, excess;
    if (f == ENTMAX15) norm = vsqrt(sum_p);
    if (f == ENTMAX125) norm = vsqrt(vsqrt(sum_p));
    excess = norm - 1;
    if (f == BELOW15 || f == ABOVE15) { /* near 1, the norm has lost digits that its logarithm has */
        vec l = vlog2(sum_p) / power, near = l * (.69314718f + l * (.24022651f + l * .05550411f));
        norm = vexp2(l);
        excess = blend(l * l < 1e-4f, near, norm - 1);
    }
    vec step = (vec)((ivec)(excess * sum_p / (norm * sum_s)) & (sum_p != 0)); /* every key masked: nothing to solve */
    *rest = blend(step < 0, -step, step);
    if (f == BELOW15) {
        vec bend = (power - 1) * (sum_b * sum_p - sum_s * sum_s) / (2 * sum_s * sum_p); /* g'' / (2 |g'|), g = norm - 1 */
        vec share = bend * step;
        *rest *= blend((step > 0) & (share > 0), share, splat(1)); /* back to lower tau, it knows not of all keys */
        *below &= ~(step < 0);
        step = blend(*below & (share < .25f), step / (1 - share), step);
    }
    return step;
}

INLINE vec column_max(const float *x, long n, long ld) {
    vec top = splat(-INFINITY);
    for (long i = 0; i < n; i++) {
        vec v = load(x + i * ld);
        top = blend(v > top, v, top);
    }
    return blend(top == -INFINITY, splat(0), top);
}

/* tau between where the largest weight of a row is 1, and where it is 1 / n: the root is there. A NaN stays. */
INLINE vec bounded(vec tau, float highest) {
    tau = blend(tau < -1, splat(-1), tau);
    return blend(tau > highest, splat(highest), tau);
}

/* Scores to weights in place. top and tau are what the backward pass needs to find the weights again.

   With `list`, the column is shortened to the keys that may have a weight if they are few (sparse.h). */
INLINE void solve(enum family f, float *x, long n, long ld, float power, vec *top, vec *tau, list *list) {
    *top = column_max(x, n, ld);
    float highest = -powf(n, -1 / power);
    vec t = splat(-1), rest;
    ivec below = t < 0;
    int left = MAX_STEPS;
    if (f == BELOW15 || f == ABOVE15) { /* powers are dear: come near first */
        for (int i = 0; i < ROUGH_STEPS; i++) {
            t = bounded(t + step_from(t, f, x, n, ld, i ? NULL : top, power, NULL, 1, &below, &rest), highest);
            if (!any(rest > 10 * ROUGH * -t)) break;
        }
        if (f == BELOW15) t = bounded(t + ROUGH * t, highest); /* from below, `rest` is known */
        below = t < 0;
    } else
        t += step_from(t, f, x, n, ld, top, power, NULL, 0, &below, &rest);
    /* Exact from here. A step of Newton from above the root ends below it, and a key below that has no weight. */
    int tried = !list;
    do {
        ivec used = {0};
        if (tried) t += step_from(t, f, x, n, ld, NULL, power, NULL, 0, &below, &rest);
        else t += step_from(t, f, x, n, ld, NULL, power, &used, 0, &below, &rest);
        if (f == BELOW15) t = bounded(t, highest);
        if (!tried && few(used, n)) n = shorten(list, x, n, ld, f == BELOW15 ? t - 2 * rest : t);
        tried = 1;
    } while (any(rest > CONVERGED * -t) && --left > 0);
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
