/* The gates on a CPU: what attention/se.py, cbam.py and bam.py define and timm's EcaModule and CecaModule, in as
few passes over x as there can be.

c_compiler.py compiles this at the first use, for one type of element at a time; cpu.py calls it. Images are (B, C, h, w),
in planes (contiguous) or with the channels last.

    channel    Mc = sigmoid(sum over pools of W2 relu(W1 pool_hw(x)))
    along      Mc = sigmoid(conv1d_c(mean_hw(x)) + bias), zeros beyond the first and the last channel, or in a circle
    spatial    Ms = sigmoid(BN(conv k x k [max_c; mean_c]))
    out = Mc Ms x, each of the two of x or of what the other one made of it; or x + sigmoid(score_c + score_p) x

A gate is a list of stages. Where there are images enough for the threads, a task takes a few images through all stages,
while they are in the cache; else each stage is cut into strips: of channels in planes, of positions with the channels
last. The last stage goes backwards: the end of an image was read last. The flags of the compiler allow sums in any order;
they do not assume finite numbers. */

#include "cpu.h"

enum { POOL, LAYERS, SQUEEZE, CONVOLVE, WEIGH }; /* the stages */
enum { TOGETHER = 8 };                           /* images that a task takes at most */

/* ---- strips ---- */

/* How much of an image strip number k is: of channels, or of positions. */
static void strip(const Setting *s, const Arguments *a, size k, size *from, size *to) {
    const size whole = s->last ? s->h * s->w : s->C, part = parts(whole, a->strips);
    *from = least(k * part, whole), *to = least(*from + part, whole);
}

/* ---- the channel gate ---- */

static void pool(const Setting *s, const Arguments *a, size b, size k, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w;
    const STORED *x = a->x + b * C * hw;
    const REAL *weight = a->seen_in_pool ? a->seen_in_pool + b * hw : NULL;
    REAL *pooled = a->pooled + b * a->strips * 2 * C;
    size from, to;
    strip(s, a, k, &from, &to);
    if (s->last) {
        pooled += k * 2 * C;
        if (weight)
            pool_rows(x, weight, C, from, to, 1, pooled, pooled + C, scratch);
        else if (a->pools == 1)
            pool_rows(x, NULL, C, from, to, 0, pooled, pooled + C, scratch);
        else
            pool_rows(x, NULL, C, from, to, 1, pooled, pooled + C, scratch);
        return;
    }
    for (size c = from; c < to; c++) {
        double total;
        if (weight)
            pool_plane(x + c * hw, weight, hw, 1, pooled + c, &total);
        else if (a->pools == 1)
            pool_plane(x + c * hw, NULL, hw, 0, pooled + c, &total);
        else
            pool_plane(x + c * hw, NULL, hw, 1, pooled + c, &total);
        pooled[C + c] = (REAL)total;
    }
}

/* The strips' sums as one mean, and their maxima as one, in the first strip's place. */
static void join(const Setting *s, const Arguments *a, size b) {
    const size C = s->C, hw = s->h * s->w;
    REAL *pooled = a->pooled + b * a->strips * 2 * C;
    const REAL share = 1 / (REAL)hw, *weight = a->seen_in_pool ? a->seen_in_pool + b * hw : NULL;
    for (size k = 1; k < (s->last ? a->strips : 1); k++)
        for (size c = 0; c < C; c++) {
            pooled[c] = max(pooled[k * 2 * C + c], pooled[c]);
            pooled[C + c] += pooled[k * 2 * C + C + c];
        }
    for (size c = 0; c < C; c++) {
        if (pooled[C + c] != pooled[C + c] && has_nan(s, a->x + b * C * hw, weight, c)) pooled[c] = pooled[C + c];
        pooled[C + c] *= share;
    }
}

/* out = W in + bias for several inputs, each n apart, the outputs rows apart: four rows and two inputs at a time, so that
   the weights are read once for both. */
static void layer(const REAL *restrict W, const REAL *bias, size rows, size n, const REAL *const *in, size inputs,
                  REAL *restrict out, int relu) {
    for (size r = 0; r < rows; r += 4)
        for (size i = 0; i < inputs; i += 2) {
            const size most = least(4, rows - r);
            const REAL *u = in[i], *v = in[least(i + 1, inputs - 1)], *w[4];
            Lanes su[4], sv[4];
#pragma GCC unroll 4
            for (size k = 0; k < 4; k++) w[k] = W + (r + least(k, most - 1)) * n, su[k] = sv[k] = all(0);
            size c = 0;
            for (; c + LANES <= n; c += LANES) {
                const Lanes a = some(u + c, LANES), b = some(v + c, LANES);
#pragma GCC unroll 4
                for (size k = 0; k < 4; k++) {
                    const Lanes value = some(w[k] + c, LANES);
                    su[k] += value * a, sv[k] += value * b;
                }
            }
            REAL of_u[4], of_v[4];
            four_sums(su, of_u), four_sums(sv, of_v);
            for (size k = 0; k < most; k++) {
                const REAL start = bias ? bias[r + k] : 0;
                REAL first = start + of_u[k], second = start + of_v[k];
                for (size l = c; l < n; l++) first += w[k][l] * u[l], second += w[k][l] * v[l];
                out[i * rows + r + k] = relu ? max(0, first) : first;
                if (i + 1 < inputs) out[(i + 1) * rows + r + k] = relu ? max(0, second) : second;
            }
        }
}

/* ECA: from the means of one image to its channels' weights. scratch: 2 C + kernel. */
static void convolve_channels(const Setting *s, const Arguments *a, size b, REAL *scratch) {
    const size C = s->C, K = a->kernel, r = K / 2;
    const REAL *restrict mean = a->pooled + b * a->strips * 2 * C + C;
    REAL *restrict wide = scratch, *restrict scores = scratch + C + 2 * r;
    for (size i = 0; i < r; i++) wide[i] = a->circular ? mean[C - r + i] : 0, wide[r + C + i] = a->circular ? mean[i] : 0;
    for (size c = 0; c < C; c++) wide[r + c] = mean[c], scores[c] = a->bias1 ? a->bias1[0] : 0;
    for (size k = 0; k < K; k++)
        for (size c = 0; c < C; c++) scores[c] += a->conv[k] * wide[c + k];
    sigmoid_of(scores, a->channel + b * C, C);
}

/* From the pooled features of a few images to their channels' weights. scratch: (2 images, hidden + C). */
static void layers(const Setting *s, const Arguments *a, size b, size images, REAL *scratch) {
    const size C = s->C, each = a->pools == 3 ? 2 : 1, inputs = images * each;
    const REAL *in[2 * TOGETHER] = {NULL};
    REAL *hidden = scratch, *scores = hidden + inputs * a->hidden;
    for (size i = 0; i < images; i++) {
        const REAL *pooled = a->pooled + (b + i) * a->strips * 2 * C;
        join(s, a, b + i);
        in[i * each] = a->pools == 1 ? pooled + C : pooled;
        if (each == 2) in[i * each + 1] = pooled + C;
        if (a->along) convolve_channels(s, a, b + i, scratch);
    }
    if (a->along) return;
    layer(a->fc1, a->bias1, a->hidden, C, in, inputs, hidden, 1);
    for (size i = 0; i < inputs; i++) in[i] = hidden + i * a->hidden;
    layer(a->fc2, a->bias2, C, a->hidden, in, inputs, scores, 0);
    for (size i = 0; i < images; i++) {
        REAL *first = scores + i * each * C;
        if (each == 2)
            for (size c = 0; c < C; c++) first[c] += first[C + c];
        sigmoid_of(first, a->channel + (b + i) * C, C);
    }
}

/* ---- the spatial gate ---- */

static void squeeze(const Setting *s, const Arguments *a, size b, size k, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w, part = parts(hw, a->strips), p0 = least(k * part, hw);
    const size p1 = least(p0 + part, hw);
    const STORED *x = a->x + b * C * hw;
    const REAL *weight = a->seen_in_squeeze ? a->seen_in_squeeze + b * C : NULL;
    REAL *most = a->planes + b * 2 * hw, *sum = most + hw;
    (void)scratch;
    if (s->last && weight)
        squeeze_rows(x, weight, C, p0, p1, most, sum);
    else if (s->last)
        squeeze_rows(x, NULL, C, p0, p1, most, sum);
    else if (weight)
        squeeze_planes(x, weight, C, hw, p0, p1, most, sum);
    else
        squeeze_planes(x, NULL, C, hw, p0, p1, most, sum);
    finish_squeeze(s, x, weight, p0, p1, most, sum);
}

/* Both planes with their margin of zeros stand row after row in the scratch, so that a tap is one distance for all
   positions; what is computed between the rows is not used. */
static void convolve(const Setting *s, const Arguments *a, size b, size k, REAL *scratch) {
    const size h = s->h, w = s->w, hw = h * w, K = a->kernel, r = K / 2, W = w + 2 * r;
    const size part = parts(h, a->strips), y0 = least(k * part, h), y1 = least(y0 + part, h), rows = y1 - y0 + 2 * r;
    const REAL *planes = a->planes + b * 2 * hw;
    REAL *position = a->position + b * hw, *found = scratch + 2 * rows * W + K + 4 * LANES;
    if (y0 == y1) return;
    for (size i = 0; i < 2 * rows * W + K + 4 * LANES; i++) scratch[i] = 0;
    for (size plane = 0; plane < 2; plane++)
        for (size y = 0; y < rows; y++) {
            const size from = y0 + y - r;
            if (from < 0 || from >= h) continue;
            for (size i = 0; i < w; i++) scratch[(plane * rows + y) * W + r + i] = planes[plane * hw + from * w + i];
        }
    for (size i = 0; i < (y1 - y0) * W; i += 4 * LANES) {
        Lanes sum[4];
#pragma GCC unroll 4
        for (size l = 0; l < 4; l++) sum[l] = all(0);
        for (size plane = 0; plane < 2; plane++)
            for (size dy = 0; dy < K; dy++)
                for (size dx = 0; dx < K; dx++) {
                    const REAL *at = scratch + (plane * rows + dy) * W + dx + i;
                    const Lanes tap = all(a->conv[(plane * K + dy) * K + dx]);
#pragma GCC unroll 4
                    for (size l = 0; l < 4; l++) sum[l] += tap * some(at + l * LANES, LANES);
                }
#pragma GCC unroll 4
        for (size l = 0; l < 4; l++) {
            const Lanes score = sum[l] * a->scale + a->shift;
            for (int j = 0; j < LANES; j++) found[i + l * LANES + j] = score[j];
        }
    }
    for (size y = y0; y < y1; y++) sigmoid_of(found + (y - y0) * W, position + y * w, w);
}

/* ---- the result ---- */

static void weigh(const Setting *s, const Arguments *a, size b, size k, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w;
    const STORED *restrict x = a->x + b * C * hw;
    STORED *restrict out = a->out + b * C * hw;
    const REAL *restrict channel = a->channel ? a->channel + b * C : NULL;
    const REAL *restrict position = a->position ? a->position + b * hw : NULL;
    size from, to;
    (void)scratch;
    strip(s, a, k, &from, &to);
    for (size i = from; i < to; i++) {
        if (s->last) {
            const STORED *restrict row = x + i * C;
            STORED *restrict made = out + i * C;
            const REAL p = position ? position[i] : 1;
            if (channel)
                for (size c = 0; c < C; c++) made[c] = store(load(row[c]) * channel[c] * p);
            else
                for (size c = 0; c < C; c++) made[c] = store(load(row[c]) * p);
        } else {
            const STORED *restrict plane = x + i * hw;
            STORED *restrict made = out + i * hw;
            const REAL c = channel ? channel[i] : 1;
            if (position)
                for (size p = 0; p < hw; p++) made[p] = store(load(plane[p]) * c * position[p]);
            else
                for (size p = 0; p < hw; p++) made[p] = store(load(plane[p]) * c);
        }
    }
}

#include "cpu_entry.h"
#include "cpu_gradients.h"
