/* Runs the kernels on the problem in a file, for processors that cannot load a library into this Python. */
#include <stdio.h>

#include "attention.c"

int rows_forward(const float *scores, float *weights, int64_t rows, int64_t n, float alpha, int threads);
int rows_backward(const float *weights, const float *grad, float *out, int64_t rows, int64_t n, float alpha,
                  int threads);

static float *floats(FILE *file, long count) {
    float *at = malloc(count * sizeof(float));
    if (file && fread(at, sizeof(float), count, file) != (size_t)count) exit(3);
    return at;
}

/* [B, H, N, D], contiguous */
static tensor view(float *at, long h, long n, long d) { return (tensor){at, h * n * d, n * d, d, 1}; }

int main(int count, char **names) {
    FILE *in = count == 3 ? fopen(names[1], "rb") : NULL, *out = in ? fopen(names[2], "wb") : NULL;
    int64_t s[6];
    float scale;
    if (!out || fread(s, sizeof *s, 6, in) != 6 || fread(&scale, sizeof scale, 1, in) != 1) return 2;
    long pairs = s[0] * s[1], nq = pairs * s[2] * s[4], nk = pairs * s[3] * s[4], nv = pairs * s[3] * s[5];
    long no = pairs * s[2] * s[5], ns = pairs * s[2];
    float *alpha = floats(in, s[1]), *q = floats(in, nq), *k = floats(in, nk), *v = floats(in, nv), *g = floats(in, no);
    float *o = floats(NULL, no), *stats = floats(NULL, 2 * ns), *dq = floats(NULL, nq), *dk = floats(NULL, nk);
    float *dv = floats(NULL, nv), *da = calloc(pairs, sizeof(float)), *w = floats(NULL, nq), *dw = floats(NULL, nq);
    problem p = {s[0], s[1], s[2], s[3], s[4], s[5], scale, 0, 2, alpha};
    tensor tq = view(q, s[1], s[2], s[4]), tk = view(k, s[1], s[3], s[4]), tv = view(v, s[1], s[3], s[5]);
    tensor none = {NULL, 0, 0, 0, 0}, to = view(o, s[1], s[2], s[5]), tg = view(g, s[1], s[2], s[5]);
    tensor tdq = view(dq, s[1], s[2], s[4]), tdk = view(dk, s[1], s[3], s[4]), tdv = view(dv, s[1], s[3], s[5]);
    if (attention_forward(&p, &tq, &tk, &tv, &none, &to, stats)) return 4;
    if (attention_backward(&p, &tq, &tk, &tv, &none, &tg, stats, &tdq, &tdk, &tdv, da)) return 5;
    if (rows_forward(q, w, pairs * s[2], s[4], 1.5f, 2) || rows_backward(w, q, dw, pairs * s[2], s[4], 1.5f, 2)) return 6;
    float *results[] = {o, dq, dk, dv, da, w, dw};
    long lengths[] = {no, nq, nk, nv, pairs, nq, nq};
    for (int i = 0; i < 7; i++) fwrite(results[i], sizeof(float), lengths[i], out);
    return fclose(out);
}
