/* ULSAM on a CPU: what ulsam.py defines, in as few passes over the memory as there can be.

c_compiler.py compiles this at the first use, for one type of element at a time; cpu.py calls it. No headers of torch:
plain pointers, plain sizes. Images are (B, C, h, w), in planes (contiguous) or with the channels last.

folded = scale (C), shift (C), point (C), bias (g):
    score_n(p) = bias_n + sum over c in group n of point_c * max over 3 x 3 positions of relu(scale_c x_c + shift_c)
    A_n = softmax(relu(score_n))        out = x + A x

Outside the image stands 0, which changes no maximum of what a ReLU gives. The flags of the compiler allow sums in any
order; they do not assume finite numbers. A NaN in the middle of its window stays the maximum, so it reaches one score at
least, and by the softmax the whole map of its group: as in the definition. */

#include "cpu.h"

/* ---- scores, channels last ---- */

/* LANES channels: what is folded of them; the two positions before this one, of each the maximum of its three rows. */
typedef struct {
    Lanes scale, shift, point, far, near;
} Slice;

static inline Slice slice(const REAL *folded, size n, size C) {
    return (Slice){some(folded, n), some(folded + C, n), some(folded + 2 * C, n), all(0), all(0)};
}

/* sum, and the product at the position before, now that this one is known. x: NULL below the image; top, mid: what the ReLU
   gives in the two rows above; top is overwritten by this row. zero: as a constant it would be one instruction more. */
static inline __attribute__((always_inline)) Lanes add_before(Lanes sum, Slice *k, const STORED *x, size n, Lanes zero,
                                                             Lanes *top, const Lanes *mid) {
    const Lanes here = x ? greater(zero, load_lanes(x, n) * k->scale + k->shift) : zero;
    const Lanes v = greater(here, greater(*top, *mid));
    sum += k->point * greater(v, greater(k->far, k->near));
    if (x) *top = here;
    k->far = k->near, k->near = v;
    return sum;
}

/* n channels of one row: add their products to the scores of the row above it, of which score[-1] is not a position. next: what
   is read after this row. */
static inline __attribute__((always_inline)) void row_of_scores(const STORED *x, size n, size w, size C,
                                                               const REAL *folded, Lanes zero, Lanes *top,
                                                               const Lanes *mid, Lanes *score, const STORED *next) {
    const size first = least(n, LANES), second = n - first, vectors = second ? 2 : 1;
    Slice a = slice(folded, first, C), b = second ? slice(folded + LANES, second, C) : a;
    for (size p = 0; p < w; p++, top += vectors, mid += vectors) {
        Lanes sum = add_before(score[p - 1], &a, x ? x + p * C : NULL, first, zero, top, mid);
        if (second) sum = add_before(sum, &b, x ? x + p * C + LANES : NULL, second, zero, top + 1, mid + 1);
        score[p - 1] = sum;
        if (x) __builtin_prefetch(next + p * C, 0, 2); /* not into the first cache, where far strides meet */
    }
    score[w - 1] += a.point * greater(a.far, a.near);
    if (second) score[w - 1] += b.point * greater(b.far, b.near);
}

/* Add what was found for one row. The last channels that it is of: c .. to, which end the group of c, or lie across. */
static void add_row(const Lanes *found, size w, size c, size to, size G, REAL *score, size hw) {
    size group = c / G;
    if (to <= (group + 1) * G) {
        for (size p = 0; p < w; p++) {
            REAL sum = 0;
            for (size i = 0; i < LANES; i++) sum += found[p][i];
            score[group * hw + p] += sum;
        }
        return;
    }
    for (size from = c; from < to; group++) {
        const size end = least((group + 1) * G, to);
        for (size p = 0; p < w; p++) {
            REAL sum = found[p][from - c];
            for (size i = from + 1 - c; i < end - c; i++) sum += found[p][i];
            score[group * hw + p] += sum;
        }
        from = end;
    }
}

static volatile const REAL nothing = 0;

/* Add channels c0 .. c1 to the scores of rows y0 .. y1. then: the rows that are read next, from c0 on. */
static void scores_last(const Setting *s, const STORED *x, const REAL *folded, size c0, size c1, size y0, size y1,
                        REAL *score, REAL *scratch, const STORED *then) {
    const size C = s->C, G = C / s->g, h = s->h, w = s->w, hw = h * w, first = y0 > 0 ? y0 - 1 : 0;
    const Lanes zero = all(nothing);
    Lanes *found = (Lanes *)scratch + 1, *rows = found + w;
    for (size i = -1; i < w + 2 * w * parts(c1 - c0, LANES); i++) found[i] = zero;
    for (size y = first; y <= y1; y++) {
        const STORED *row = y < h ? x + y * w * C : NULL, *next = y < least(y1, h - 1) ? row + w * C + c0 : then;
        size end = (c0 / G + 1) * G, n; /* of the group */
        Lanes *two = rows;
        for (size c = c0; c < c1; c += n) {
            n = G % LANES ? least(LANES, c1 - c) : least(2 * LANES, least(end, c1) - c);
            const STORED *here = row ? row + c : NULL, *after = next + (c - c0);
            const size vectors = parts(n, LANES) * w, to = c + n;
            Lanes *top = two + y % 2 * vectors, *mid = two + (1 - y % 2) * vectors;
            two += 2 * vectors;
            if (n == 2 * LANES && here)
                row_of_scores(here, 2 * LANES, w, C, folded + c, zero, top, mid, found, after);
            else if (n == 2 * LANES)
                row_of_scores(NULL, 2 * LANES, w, C, folded + c, zero, top, mid, found, after);
            else if (n == LANES)
                row_of_scores(here, LANES, w, C, folded + c, zero, top, mid, found, after);
            else
                row_of_scores(here, n, w, C, folded + c, zero, top, mid, found, after);
            if (to < c1 && least(to + LANES, c1) <= end) continue; /* the next ones are of the same group */
            if (y > y0) add_row(found, w, c, to, G, score + (y - 1) * w, hw);
            for (size p = 0; p < w; p++) found[p] = zero;
            end = (to / G + 1) * G;
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

/* Strips of rows of an image. Where channels come last no more than the threads need, for a strip lies together in memory
   and is read from its start to its end; each reads a row above and a row below it, too. */
static size strips_of(const Setting *s) {
    if (!s->last) return strips_for(s, s->B * s->g, parts(s->h, 4));
    return least(parts(s->threads, s->B), parts(s->h, 4));
}

/* Groups that are taken together: where channels come last all, unless the threads would have nothing to do. */
static size together(const Setting *s) {
    if (!s->last) return 1;
    const size blocks = parts(s->threads, s->B * strips_of(s)), few = parts(ENOUGH, s->C / s->g);
    const size k = parts(s->g, blocks);
    return least(k > few ? k : few, s->g);
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
        const STORED *row = x + (y0 > 0 ? y0 - 1 : 0) * s->w * C;
        for (size c = n0 * G; c < n1 * G; c += BLOCK) {
            const STORED *then = c + BLOCK < n1 * G ? row + c + BLOCK : b + 1 < s->B ? row + C * hw + n0 * G : row;
            scores_last(s, x, a->folded, c, least(c + BLOCK, n1 * G), y0, y1, score, scratch, then);
        }
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
    const size whole = hw - hw % LANES;
    const Lanes zero = all(0);
    Lanes highest = zero;
    double sums[LANES] = {0}, sum = 0;
    for (size i = 0; i < whole; i += LANES) highest = greater(some(map + i, LANES), highest);
    REAL most = 0;
    for (size c = 0; c < LANES; c++) most = max(highest[c], most);
    for (size i = whole; i < hw; i++) most = max(map[i], most);
    for (size i = 0; i < whole; i += LANES) {
        const Lanes e = exponentials(greater(zero, some(map + i, LANES)) - all(most));
        __builtin_memcpy(map + i, &e, sizeof e);
        add_lanes(sums, e, LANES);
    }
    for (size c = 0; c < LANES; c++) sum += sums[c];
    for (size i = whole; i < hw; i++) {
        const REAL e = exponentials(all(max(0, map[i]) - most))[0];
        sum += map[i] = e;
    }
    const REAL share = 1 / sum;
    for (size i = 0; i < hw; i++) map[i] *= share;
}

/* out = x + A x for the groups n0 .. n1 and the positions p0 .. p1. */
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

#include "cpu_gradients.h"
#include "cpu_training.h"

/* ---- what Python calls ---- */

/* vectors: of DW weight, bias; of its batch norm weight, bias, mean, variance; the same six of PW. */
void fold(const REAL *const *v, size C, size g, double eps, double point_eps, REAL *folded) {
    for (size c = 0; c < C; c++) {
        const REAL factor = v[2][c] / root(v[5][c] + (REAL)eps);
        folded[c] = v[0][c] * factor;
        folded[C + c] = (v[1][c] - v[4][c]) * factor + v[3][c];
    }
    for (size n = 0; n < g; n++) {
        const REAL factor = v[8][n] / root(v[11][n] + (REAL)point_eps);
        for (size c = n * (C / g); c < (n + 1) * (C / g); c++) folded[2 * C + c] = v[6][c] * factor;
        folded[3 * C + n] = (v[7][n] - v[10][n]) * factor + v[9][n];
    }
}

/* memory: for the maps; after them for what is folded, unless it is given. */
typedef struct {
    Setting setting;
    const STORED *x;
    STORED *out;
    REAL *memory;
    const REAL *folded;
    double eps, point_eps; /* from here on only without folded */
    const REAL *vectors[12];
} Inference;

void infer(const Inference *in) {
    const Setting *s = &in->setting;
    REAL *folded = in->memory + s->B * s->g * s->h * s->w;
    if (!in->folded) fold(in->vectors, s->C, s->g, in->eps, in->point_eps, folded);
    Arguments a = {.x = in->x, .folded = in->folded ? in->folded : folded, .score = in->memory, .map = in->memory,
                   .out = in->out, .strips = strips_of(s)};
    const size tasks = s->B * parts(s->g, together(s));
    if (a.strips == 1) {
        run(s, tasks, infer_task, &a);
        return;
    }
    Arguments last = a;
    last.strips = parts(s->threads, s->B);
    const Step steps[] = {{scores_task, &a, tasks * a.strips},
                          {softmax_task, &a, s->B * s->g},
                          {weigh_task, &last, s->B * last.strips}};
    run_steps(s, steps, 3);
}
