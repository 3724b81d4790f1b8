/* A training step: the passes in their order, and the algebra of vectors between them; part of cpu.c.

    z = scale x + shift        score = bias + sum point * maxpool(relu(z))        A = softmax(relu(BN(score)))

Forward, x is read for its mean and variance (a batch norm after a 1x1 convolution of one channel needs no more), for the
scores, and for the result; backward for dA, for dz, and for what goes through mean and variance. What is added up over a
batch is added up in float64. */

/* Of DW: weight, bias; its batch norm's weight, bias; the same four of PW. Then the mean and variance that the batch norms
   take: of the first, of the second; NULL: of the batch. */
enum { DW, DW_BIAS, NORM, NORM_BIAS, PW, PW_BIAS, POINT_NORM, POINT_NORM_BIAS, MEAN, VAR, POINT_MEAN, POINT_VAR };

/* Of each group: BN(score) = factor score + shift; the scores' mean and 1 / standard deviation;
   dscore = first d + second (score - mean) + last. */
enum { FACTOR, SHIFT, CENTRE, INVERSE, FIRST, SECOND, LAST, BY_GROUP };

/* The memory between the passes; see work_of. partial: what each task adds up. */
typedef struct {
    double *partial;
    REAL *folded, *by_group, *pivot, *dmap, *sums, *affine, *end;
} Work;

static size moment_parts(const Setting *s) { return least(4 * s->threads, s->B * s->h * s->w); }

static Work work_of(const Setting *s, char *memory) {
    const size tasks = s->B * s->g, doubles = (2 * moment_parts(s) + 1) * s->C;
    Work m = {.partial = (double *)memory};
    m.folded = (REAL *)(m.partial + (2 * tasks > doubles ? 2 * tasks : doubles));
    m.by_group = m.folded + 3 * s->C + s->g;
    m.pivot = m.by_group + BY_GROUP * s->g;
    m.dmap = m.pivot + s->C;
    m.sums = m.dmap + tasks * s->h * s->w;
    m.affine = m.sums + 3 * s->B * s->C;
    m.end = m.affine + 2 * s->C;
    return m;
}

size training_bytes(const Setting *s) { return (char *)work_of(s, NULL).end - (char *)NULL; }

/* ---- mean and variance of each channel ---- */

/* For a part of the positions: the sums of x - pivot and of its square, (2, C). The pivot is a value of that channel: the
   difference of the squares keeps its digits. */
static void moments_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w, part = parts(s->B * hw, a->strips), q0 = task * part;
    const size q1 = least(q0 + part, s->B * hw);
    double *restrict sum = a->partial + task * 2 * C, *restrict square = sum + C;
    (void)scratch;
    for (size c = 0; c < 2 * C; c++) sum[c] = 0;
    for (size q = q0; s->last && q < q1; q += 8) /* so many rows of x are read side by side */
        for (size c = 0; c < C; c += LANES) {
            const size n = least(C - c, LANES), end = least(q + 8, q1);
            const Lanes pivot = some(a->centre + c, n);
            Lanes first = all(0), second = all(0);
            for (size k = q; k < end; k++) {
                const Lanes d = load_lanes(a->x + k * C + c, n) - pivot;
                first += d, second += d * d;
            }
            add_lanes(sum + c, first, n), add_lanes(square + c, second, n);
        }
    for (size q = q0; s->last == 0 && q < q1; q = (q / hw + 1) * hw) {
        const size p0 = q % hw, p1 = least(hw, q1 - q / hw * hw);
        for (size c = 0; c < C; c++) {
            const STORED *restrict x = a->x + (q / hw * C + c) * hw;
            for (size p = p0; p < p1; p += STRIP) {
                REAL first = 0, second = 0;
                for (size i = p; i < least(p + STRIP, p1); i++) {
                    const REAL d = load(x[i]) - a->centre[c];
                    first += d, second += d * d;
                }
                sum[c] += first, square[c] += second;
            }
        }
    }
}

static void moments(const Setting *s, const STORED *x, const Work *m, REAL *mean, REAL *var) {
    const size C = s->C, n = s->B * s->h * s->w, step = s->last ? 1 : s->h * s->w;
    const Arguments a = {.x = x, .partial = m->partial, .centre = m->pivot, .strips = moment_parts(s)};
    for (size c = 0; c < C; c++) m->pivot[c] = load(x[c * step]);
    run(s, a.strips, moments_task, &a);
    for (size task = 1; task < a.strips; task++)
        for (size c = 0; c < 2 * C; c++) m->partial[c] += m->partial[task * 2 * C + c];
    for (size c = 0; c < C; c++) {
        const double off = m->partial[c] / n, square = m->partial[C + c] / n - off * off;
        mean[c] = m->pivot[c] + off;
        var[c] = square > 0 || square != square ? square : 0;
    }
}

static void fold_for_training(const Setting *s, const REAL *const *v, const REAL *mean, const REAL *var, double eps,
                              REAL *folded) {
    const size C = s->C;
    for (size c = 0; c < C; c++) {
        const double w = v[DW][c];
        if (v[MEAN]) {
            const double factor = v[NORM][c] / sqrt(var[c] + eps);
            folded[c] = w * factor, folded[C + c] = (v[DW_BIAS][c] - mean[c]) * factor + v[NORM_BIAS][c];
        } else { /* mean and var are of x; the bias of the convolution cancels */
            const double scale = v[NORM][c] * w / sqrt(w * w * var[c] + eps);
            folded[c] = scale, folded[C + c] = v[NORM_BIAS][c] - scale * mean[c];
        }
        folded[2 * C + c] = v[PW][c];
    }
    for (size n = 0; n < s->g; n++) folded[3 * C + n] = v[PW_BIAS][n];
}

/* ---- the batch norm of the scores ---- */

static void score_moments_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size hw = s->h * s->w;
    const REAL *restrict score = a->score + task * hw, pivot = a->score[task % s->g * hw];
    double sum = 0, square = 0;
    (void)scratch;
    for (size i = 0; i < hw; i++) {
        const double d = score[i] - pivot;
        sum += d, square += d * d;
    }
    a->partial[2 * task] = sum, a->partial[2 * task + 1] = square;
}

/* Fills FACTOR, SHIFT, CENTRE and INVERSE; of a batch gives mean and unbiased variance too, where seen is not NULL. */
static void norm_of_scores(const Setting *s, const REAL *const *v, REAL *score, double eps, const Work *m, REAL *seen) {
    const size g = s->g, hw = s->h * s->w;
    const double n = s->B * hw;
    const Arguments a = {.score = score, .partial = m->partial};
    if (!v[POINT_MEAN]) run(s, s->B * g, score_moments_task, &a);
    for (size k = 0; k < g; k++) {
        double mean, var;
        if (v[POINT_MEAN]) {
            mean = v[POINT_MEAN][k], var = v[POINT_VAR][k];
        } else {
            double sum = 0, square = 0;
            for (size b = 0; b < s->B; b++)
                sum += m->partial[2 * (b * g + k)], square += m->partial[2 * (b * g + k) + 1];
            mean = score[k * hw] + sum / n, var = square / n - sum / n * (sum / n);
            var = var > 0 || var != var ? var : 0;
            if (seen) seen[k] = mean, seen[g + k] = var * (n / (n - 1));
        }
        const double inverse = 1 / sqrt(var + eps), factor = v[POINT_NORM][k] * inverse;
        m->by_group[FACTOR * g + k] = factor;
        m->by_group[SHIFT * g + k] = v[POINT_NORM_BIAS][k] - mean * factor;
        m->by_group[CENTRE * g + k] = mean, m->by_group[INVERSE * g + k] = inverse;
    }
}

/* A from the scores. */
static void map_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size n = task % s->g, hw = s->h * s->w;
    const REAL *restrict score = a->score + task * hw, factor = a->by_group[n], shift = a->by_group[s->g + n];
    REAL *restrict map = a->made + task * hw;
    (void)scratch;
    for (size i = 0; i < hw; i++) map[i] = factor * score[i] + shift;
    softmax(map, hw);
}

/* dA becomes d, the gradient of what the batch norm of the scores gives; and the sums of d and of d (score - mean). */
static void map_gradient_of_norm_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size g = s->g, n = task % g, hw = s->h * s->w;
    const REAL *restrict score = a->score + task * hw, *restrict map = a->map + task * hw, *by = a->by_group + n;
    const REAL factor = by[FACTOR * g], shift = by[SHIFT * g], centre = by[CENTRE * g];
    REAL *restrict d = a->made + task * hw;
    double dot = 0, sum = 0, product = 0;
    (void)scratch;
    for (size i = 0; i < hw; i++) dot += map[i] * d[i];
    const REAL mean = dot;
    for (size i = 0; i < hw; i++) {
        d[i] = keep(map[i] * (d[i] - mean), -!(factor * score[i] + shift <= 0));
        sum += d[i], product += d[i] * (score[i] - centre);
    }
    a->partial[2 * task] = sum, a->partial[2 * task + 1] = product;
}

static void dscore_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size g = s->g, hw = s->h * s->w;
    const REAL *restrict score = a->score + task * hw, *by = a->by_group + task % g;
    const REAL first = by[FIRST * g], second = by[SECOND * g], last = by[LAST * g], centre = by[CENTRE * g];
    REAL *restrict d = a->made + task * hw;
    (void)scratch;
    for (size i = 0; i < hw; i++) d[i] = first * d[i] + second * (score[i] - centre) + last;
}

/* ---- what Python calls ---- */

/* mean, var: of x, (C); observed: what a running average takes in, mean and unbiased variance of both batch norms' inputs;
   each where it is of the batch. */
void train_forward(const Setting *s, const STORED *x, const REAL *const *v, double eps, double point_eps, STORED *out,
                   REAL *map, REAL *score, REAL *mean, REAL *var, REAL *observed, char *memory) {
    const size C = s->C;
    const double n = s->B * s->h * s->w;
    const Work m = work_of(s, memory);
    if (!v[MEAN]) {
        moments(s, x, &m, mean, var);
        for (size c = 0; c < C; c++) {
            const double w = v[DW][c];
            observed[c] = w * mean[c] + v[DW_BIAS][c], observed[C + c] = w * w * var[c] * (n / (n - 1));
        }
        observed += 2 * C;
    }
    fold_for_training(s, v, v[MEAN] ? v[MEAN] : mean, v[MEAN] ? v[VAR] : var, eps, m.folded);
    Arguments a = {.x = x, .folded = m.folded, .score = score, .by_group = m.by_group, .made = map, .map = map, .out = out};
    a.strips = strips_of(s);
    run(s, s->B * parts(s->g, together(s)) * a.strips, scores_task, &a);
    norm_of_scores(s, v, score, point_eps, &m, observed);
    run(s, s->B * s->g, map_task, &a);
    a.strips = strips_for(s, s->B, s->h);
    run(s, s->B * a.strips, weigh_task, &a);
}

/* gradients: of the first eight of v. mean, var: as train_forward gave them. */
void train_backward(const Setting *s, const STORED *x, const STORED *dy, const REAL *const *v, double eps,
                    double point_eps, const REAL *map, REAL *score, const REAL *mean, const REAL *var, STORED *dx,
                    REAL *const *gradient, char *memory) {
    const size C = s->C, g = s->g, tasks = s->B * g;
    const double n = s->B * s->h * s->w;
    const Work m = work_of(s, memory);
    if (v[MEAN]) mean = v[MEAN], var = v[VAR];
    /* The small maps: softmax, ReLU, batch norm. */
    Arguments a = {.x = x, .dy = dy, .folded = m.folded, .map = map, .score = score, .dscore = m.dmap, .made = m.dmap,
                   .centre = mean, .affine = m.affine, .out = dx, .sums = m.sums, .partial = m.partial,
                   .by_group = m.by_group};
    norm_of_scores(s, v, score, point_eps, &m, NULL);
    a.strips = strips_for(s, s->B, s->h);
    run(s, s->B * a.strips, map_gradient_task, &a);
    run(s, tasks, map_gradient_of_norm_task, &a);
    for (size k = 0; k < g; k++) {
        double sum = 0, product = 0;
        for (size task = k; task < tasks; task += g) sum += m.partial[2 * task], product += m.partial[2 * task + 1];
        const double factor = m.by_group[FACTOR * g + k], r = m.by_group[INVERSE * g + k], of_batch = v[POINT_MEAN] ? 0 : 1 / n;
        gradient[POINT_NORM][k] = product * r, gradient[POINT_NORM_BIAS][k] = sum;
        gradient[PW_BIAS][k] = v[POINT_MEAN] ? factor * sum : 0; /* a bias before a batch's own mean does nothing */
        m.by_group[FIRST * g + k] = factor;
        m.by_group[SECOND * g + k] = -factor * r * r * product * of_batch;
        m.by_group[LAST * g + k] = -factor * sum * of_batch;
    }
    run(s, tasks, dscore_task, &a);
    /* The large ones. */
    fold_for_training(s, v, mean, var, eps, m.folded);
    run(s, s->B * gradient_tasks(s), gradients_task, &a);
    double *total = m.partial;
    for (size i = 0; i < 3 * C; i++) total[i] = m.sums[i];
    for (size b = 1; b < s->B; b++)
        for (size i = 0; i < 3 * C; i++) total[i] += m.sums[b * 3 * C + i];
    for (size c = 0; c < C; c++, total += 3) {
        const double with_x = total[0], plain = total[1]; /* of dz (x - mean), of dz */
        const double w = v[DW][c], weight = v[NORM][c];
        if (v[MEAN]) {
            const double r = 1 / sqrt(var[c] + eps), whole = with_x + mean[c] * plain;
            gradient[DW][c] = whole * weight * r, gradient[DW_BIAS][c] = plain * weight * r;
            gradient[NORM][c] = r * (w * whole + ((double)v[DW_BIAS][c] - mean[c]) * plain);
        } else {
            const double r = 1 / sqrt(w * w * var[c] + eps), cube = with_x * weight * r * r * r;
            gradient[DW][c] = cube * eps, gradient[DW_BIAS][c] = 0, gradient[NORM][c] = with_x * w * r;
            const double factor = -cube * w * w * w / n;
            m.affine[c] = -weight * w * r * plain / n - factor * mean[c], m.affine[C + c] = factor;
        }
        gradient[NORM_BIAS][c] = plain, gradient[PW][c] = total[2];
    }
    a.strips = strips_for(s, s->B, s->h);
    if (!v[MEAN]) run(s, s->B * a.strips, add_affine_task, &a);
}
