/* ULSAM on a CPU: what ulsam.py defines, in as few passes over the memory as there can be.

compiled.py compiles this at the first use, for one type of element at a time; ulsam_cpu.py calls it. No headers of torch:
plain pointers, plain sizes. Images are (B, C, h, w), in planes (contiguous) or with the channels last.

folded = scale (C), shift (C), point (C), bias (g):
    score_n(p) = bias_n + sum over c in group n of point_c * max over 3 x 3 places of relu(scale_c x_c + shift_c)
    A_n = softmax(relu(score_n))        out = x + A x

Outside the image stands 0, which changes no maximum of what a ReLU gives. The flags of the compiler allow sums in any
order; they do not assume finite numbers. A NaN in the middle of its window stays the maximum, so it reaches one score at
least, and by the softmax the whole map of its group: as in the definition. */

#include "ulsam_cpu.h"

/* ---- scores, channels last ---- */

/* One place. x: NULL outside the image. top, mid: this column in the two rows above; top is overwritten by this row.
   far, near: the maxima of the two columns before; far is overwritten by this column's. Gives the sum of the products,
   or the products themselves. */
static inline REAL place(const STORED *restrict x, const REAL *restrict scale, const REAL *restrict shift,
                               const REAL *restrict point, REAL *restrict top, const REAL *restrict mid,
                               REAL *restrict far, const REAL *restrict near, REAL *restrict products, size n) {
    REAL sum = 0;
    for (size c = 0; c < n; c++) {
        const REAL z = x ? max(0, load(x[c]) * scale[c] + shift[c]) : 0;
        const REAL v = max(z, max(top[c], mid[c]));
        const REAL product = point[c] * max(v, max(far[c], near[c]));
        if (x) top[c] = z;
        far[c] = v;
        if (products) products[c] = product;
        else sum += product;
    }
    return sum;
}

/* Add channels c0 .. c1, of one group or whole groups, to the scores of rows y0 .. y1. */
static void scores_last(const Setting *s, const STORED *x, const REAL *folded, size c0, size c1, size y0, size y1,
                              REAL *score, REAL *scratch) {
    const size C = s->C, G = C / s->g, h = s->h, w = s->w, K = c1 - c0;
    const REAL *scale = folded + c0, *shift = folded + C + c0, *point = folded + 2 * C + c0;
    REAL *top = scratch, *mid = top + w * K, *columns = mid + w * K, *zero = columns + 2 * K, *products = zero + K;
    for (size i = 0; i < (2 * w + 3) * K; i++) scratch[i] = 0;
    score += c0 / G * h * w;
    for (size y = y0 > 0 ? y0 - 1 : 0; y <= y1; y++) {
        REAL *far = columns, *near = columns + K, *swap;
        for (size i = 0; i < 2 * K; i++) columns[i] = 0;
        for (size column = 0; column <= w; column++) {
            const STORED *here = y < h && column < w ? x + (y * w + column) * C + c0 : NULL;
            if (y + 1 < h && column < w) fetch_ahead(x + ((y + 1) * w + column) * C + c0, K);
            REAL *old = column < w ? top + column * K : zero, *recent = column < w ? mid + column * K : zero;
            REAL *done = score + (y - 1) * w + column - 1;
            const int inside = y > y0 && column > 0;
            if (K <= G) {
                const REAL sum = place(here, scale, shift, point, old, recent, far, near, NULL, K);
                if (inside) *done += sum;
            } else {
                place(here, scale, shift, point, old, recent, far, near, products, K);
                for (size n = 0; inside && n < K / G; n++) {
                    REAL sum = 0;
                    for (size c = n * G; c < (n + 1) * G; c++) sum += products[c];
                    done[n * h * w] += sum;
                }
            }
            swap = far, far = near, near = swap;
        }
        swap = top;
        top = mid, mid = swap;
    }
}

/* ---- scores, planes ---- */

/* Add one group to the scores of rows y0 .. y1. A row's end and the next row's start are neighbours in memory: edge says
   where no neighbour is. */
static void scores_planes(const Setting *s, const STORED *x, const REAL *folded, size n, size y0, size y1,
                                REAL *score, REAL *scratch) {
    const size C = s->C, G = C / s->g, h = s->h, w = s->w;
    const size from = y0 > 0 ? y0 - 1 : 0, to = least(y1 + 1, h), length = (to - from) * w, rows = y1 - y0;
    REAL *restrict hidden = scratch + 1, *restrict wide = hidden + length + 1;
    REAL *restrict inside = wide + (from + 1 - y0) * w;
    MASK *restrict first = (MASK *)(wide + (rows + 2) * w), *restrict last = first + length;
    for (size i = 0; i < (rows + 2) * w; i++) wide[i] = 0;
    for (size i = 0; i < length; i++) first[i] = -(i % w > 0), last[i] = -(i % w < w - 1);
    hidden[-1] = hidden[length] = 0;
    score += (n * h + y0) * w;
    for (size c = n * G; c < (n + 1) * G; c++) {
        const STORED *restrict plane = x + (c * h + from) * w;
        const REAL scale = folded[c], shift = folded[C + c], point = folded[2 * C + c];
        for (size i = 0; i < length; i++) hidden[i] = max(0, load(plane[i]) * scale + shift);
        for (size i = 0; i < length; i++) {
            REAL left = keep(hidden[i - 1], first[i]), right = keep(hidden[i + 1], last[i]);
            inside[i] = max(max(left, right), hidden[i]);
        }
        for (size i = 0; i < rows * w; i++) score[i] += point * max(max(wide[i], wide[i + 2 * w]), wide[i + w]);
    }
}

/* ---- scores: either format ---- */

/* Groups that are taken together: where channels come last all, so that an image is read and written from its start to
   its end, unless the threads would have nothing to do. */
static size together(const Setting *s) {
    if (!s->last) return 1;
    return s->B >= s->threads ? s->g : least(parts(ENOUGH, s->C / s->g), s->g);
}

static void scores_of(const Setting *s, const Arguments *a, size b, size n0, size n1, size y0, size y1,
                            REAL *scratch) {
    const size C = s->C, G = C / s->g, hw = s->h * s->w;
    const STORED *x = a->x + b * C * hw;
    REAL *score = a->score + b * s->g * hw;
    for (size n = n0; n < n1; n++)
        for (size i = y0 * s->w; i < y1 * s->w; i++) score[n * hw + i] = a->folded[3 * C + n];
    if (!s->last) {
        const size rows = STRIP / s->w > 1 ? STRIP / s->w : 1;
        for (size n = n0; n < n1; n++)
            for (size y = y0; y < y1; y += rows)
                scores_planes(s, x, a->folded, n, y, least(y + rows, y1), score, scratch);
    } else {
        const size whole = G < BLOCK ? BLOCK / G : 1; /* groups; of a larger one a part at a time */
        for (size n = n0; n < n1; n += whole)
            for (size c = n * G, end = least(n + whole, n1) * G; c < end; c += BLOCK)
                scores_last(s, x, a->folded, c, least(c + BLOCK, end), y0, y1, score, scratch);
    }
}

static void scores_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size strip = task % a->strips, rows = parts(s->h, a->strips), k = together(s), blocks = parts(s->g, k);
    const size block = task / a->strips % blocks, b = task / a->strips / blocks;
    if (strip * rows < s->h)
        scores_of(s, a, b, block * k, least((block + 1) * k, s->g), strip * rows,
                        least((strip + 1) * rows, s->h), scratch);
}

/* ---- maps and the sum ---- */

/* softmax(relu(map)), in place. Many values may be equal, for which sums in float32 are always rounded the same way. */
static void softmax(REAL *restrict map, size hw) {
    REAL most = 0;
    double sum = 0;
    for (size i = 0; i < hw; i++) most = max(map[i], most);
    for (size i = 0; i < hw; i++) {
        map[i] = exponential(max(0, map[i]) - most);
        sum += map[i];
    }
    const REAL share = 1 / sum;
    for (size i = 0; i < hw; i++) map[i] *= share;
}

/* out = x + A x for the groups n0 .. n1 and the places p0 .. p1. */
static void weigh(const Setting *s, const Arguments *a, const REAL *map, size b, size n0, size n1, size p0,
                        size p1) {
    const size C = s->C, G = C / s->g, hw = s->h * s->w;
    const STORED *restrict x = a->x + b * C * hw;
    STORED *restrict out = a->out + b * C * hw;
    map += b * s->g * hw;
    if (s->last) {
        for (size p = p0; p < p1; p++)
            for (size n = n0; n < n1; n++) {
                const REAL A = map[n * hw + p];
                for (size c = p * C + n * G; c < p * C + (n + 1) * G; c++) {
                    const REAL v = load(x[c]);
                    out[c] = store(v + A * v);
                }
            }
    } else {
        for (size c = n0 * G; c < n1 * G; c++) {
            const REAL *restrict A = map + c / G * hw;
            for (size i = p0; i < p1; i++) {
                const REAL v = load(x[c * hw + i]);
                out[c * hw + i] = store(v + A[i] * v);
            }
        }
    }
}

static void weigh_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size part = parts(s->h * s->w, a->strips), p0 = task % a->strips * part;
    (void)scratch;
    if (p0 < s->h * s->w) weigh(s, a, a->map, task / a->strips, 0, s->g, p0, least(p0 + part, s->h * s->w));
}

static void softmax_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    (void)scratch;
    softmax(a->score + task * s->h * s->w, s->h * s->w);
}

/* Everything for some groups of one image, while they are in the cache. */
static void infer_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size k = together(s), blocks = parts(s->g, k), b = task / blocks, hw = s->h * s->w;
    const size n0 = task % blocks * k, n1 = least(n0 + k, s->g);
    scores_of(s, a, b, n0, n1, 0, s->h, scratch);
    for (size n = n0; n < n1; n++) softmax(a->score + (b * s->g + n) * hw, hw);
    weigh(s, a, a->score, b, n0, n1, 0, hw);
}

#include "ulsam_cpu_gradients.h"
#include "ulsam_cpu_training.h"

/* ---- what Python calls ---- */

/* vectors: of DW weight, bias; of its batch norm weight, bias, mean, variance; the same six of PW. */
void fold(const REAL *const *v, size C, size g, double eps, double point_eps, REAL *folded) {
    for (size c = 0; c < C; c++) {
        const REAL factor = v[2][c] / (REAL)sqrt(v[5][c] + eps);
        folded[c] = v[0][c] * factor;
        folded[C + c] = (v[1][c] - v[4][c]) * factor + v[3][c];
    }
    for (size n = 0; n < g; n++) {
        const REAL factor = v[8][n] / (REAL)sqrt(v[11][n] + point_eps);
        for (size c = n * (C / g); c < (n + 1) * (C / g); c++) folded[2 * C + c] = v[6][c] * factor;
        folded[3 * C + n] = (v[7][n] - v[10][n]) * factor + v[9][n];
    }
}

void infer(const Setting *s, const STORED *x, const REAL *folded, REAL *score, STORED *out) {
    Arguments a = {.x = x, .folded = folded, .score = score, .map = score, .out = out, .strips = 1};
    const size tasks = s->B * parts(s->g, together(s));
    if (tasks >= s->threads) {
        run(s, tasks, infer_task, &a);
        return;
    }
    a.strips = strips_for(s, tasks, parts(s->h, 4));
    run(s, tasks * a.strips, scores_task, &a);
    run(s, s->B * s->g, softmax_task, &a);
    a.strips = strips_for(s, s->B, s->h);
    run(s, s->B * a.strips, weigh_task, &a);
}

void evaluate(const Setting *s, const STORED *x, const REAL *const *vectors, double eps, double point_eps, REAL *memory,
              STORED *out) {
    fold(vectors, s->C, s->g, eps, point_eps, memory);
    infer(s, x, memory, memory + 3 * s->C + s->g, out);
}
