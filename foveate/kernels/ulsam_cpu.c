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

/* LANES channels of one row: add their products to the scores of the row above it. x: NULL below the image; n: how many
   channels there are. top, mid: what the ReLU gives in the two rows above; top is overwritten by this row. */
static inline __attribute__((always_inline)) void row_of_scores(const STORED *x, size n, size w, size C, Lanes scale,
                                                               Lanes shift, Lanes point, Lanes *top, const Lanes *mid,
                                                               Lanes *score, const STORED *next) {
    Lanes far = all(0), near = all(0);
    for (size p = 0; p < w; p++) {
        Lanes here = all(0);
        if (x) {
            here = greater(all(0), load_lanes(x + p * C, n) * scale + shift);
            __builtin_prefetch(next + p * C);
        }
        const Lanes v = greater(here, greater(top[p], mid[p]));
        if (x) top[p] = here;
        if (p) score[p - 1] += point * greater(v, greater(far, near));
        far = near, near = v;
    }
    score[w - 1] += point * greater(far, near);
}

/* Add what was found for one row, and begin again; lanes: of which group each is, or NULL: all of the first. */
static void add_row(Lanes *found, size w, const size *lanes, size n, REAL *score, size hw) {
    for (size p = 0; p < w; p++) {
        REAL sum = 0;
        for (size c = 0; c < LANES; c++) sum += found[p][c];
        if (!lanes)
            score[p] += sum;
        else
            for (size c = 0; c < n; c++) score[lanes[c] * hw + p] += found[p][c];
        found[p] = all(0);
    }
}

/* Add channels c0 .. c1 to the scores of rows y0 .. y1. */
static void scores_last(const Setting *s, const STORED *x, const REAL *folded, size c0, size c1, size y0, size y1,
                        REAL *score, REAL *scratch) {
    const size C = s->C, G = C / s->g, h = s->h, w = s->w, hw = h * w, columns = parts(c1 - c0, LANES);
    Lanes *rows = (Lanes *)scratch, *found = rows + 2 * w * columns;
    for (size i = 0; i < 2 * w * columns + w; i++) rows[i] = all(0);
    for (size y = y0 > 0 ? y0 - 1 : 0; y <= y1; y++)
        for (size k = 0; k < columns; k++) {
            const size c = c0 + k * LANES, n = least(c1 - c, LANES), group = c / G, last = (c + n - 1) / G;
            const Lanes scale = some(folded + c, n), shift = some(folded + C + c, n);
            const Lanes point = some(folded + 2 * C + c, n);
            const STORED *here = y < h ? x + y * w * C + c : NULL, *next = y + 1 < h ? here + w * C : here;
            Lanes *top = rows + (2 * k + y % 2) * w, *mid = rows + (2 * k + 1 - y % 2) * w;
            REAL *done = score + (y - 1) * w;
            if (n == LANES)
                row_of_scores(here, LANES, w, C, scale, shift, point, top, mid, found, next);
            else
                row_of_scores(here, n, w, C, scale, shift, point, top, mid, found, next);
            if (y <= y0) { /* only what the rows below it need */
                for (size p = 0; p < w; p++) found[p] = all(0);
            } else if (group != last) {
                size lanes[LANES];
                for (size i = 0; i < n; i++) lanes[i] = (c + i) / G;
                add_row(found, w, lanes, n, done, hw);
            } else if (k + 1 == columns || least(c + 2 * LANES, c1) > (group + 1) * G) {
                add_row(found, w, NULL, n, done + group * hw, hw);
            }
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
        for (size c = n0 * G; c < n1 * G; c += BLOCK)
            scores_last(s, x, a->folded, c, least(c + BLOCK, n1 * G), y0, y1, score, scratch);
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
