/* The gates on a CPU in training: sums of products over the positions, and weights times x with a shift. See cpu.c. */

/* The sum over n elements of x y. */
static inline double dot_plane(const STORED *restrict x, const STORED *restrict y, size n) {
    double total = 0;
    for (size from = 0; from < n; from += BLOCK) {
        const size end = least(from + BLOCK, n);
        Lanes s0 = all(0), s1 = s0, s2 = s0, s3 = s0;
        size i = from;
        for (; i + 4 * LANES <= end; i += 4 * LANES) {
            __builtin_prefetch(x + i + AHEAD, 0, 2), __builtin_prefetch(x + i + AHEAD + 2 * LANES, 0, 2);
            __builtin_prefetch(y + i + AHEAD, 0, 2), __builtin_prefetch(y + i + AHEAD + 2 * LANES, 0, 2);
            s0 += load_lanes(x + i, LANES) * load_lanes(y + i, LANES);
            s1 += load_lanes(x + i + LANES, LANES) * load_lanes(y + i + LANES, LANES);
            s2 += load_lanes(x + i + 2 * LANES, LANES) * load_lanes(y + i + 2 * LANES, LANES);
            s3 += load_lanes(x + i + 3 * LANES, LANES) * load_lanes(y + i + 3 * LANES, LANES);
        }
        for (; i + LANES <= end; i += LANES) s0 += load_lanes(x + i, LANES) * load_lanes(y + i, LANES);
        REAL sum = 0;
        for (; i < end; i++) sum += load(x[i]) * load(y[i]);
        s0 += s1, s2 += s3, s0 += s2;
        total += sum + sum_of(s0);
    }
    return total;
}

/* The same for each channel over the positions from .. to of one image, channels last. partial: C. */
static void dot_rows(const STORED *restrict x, const STORED *restrict y, size C, size from, size to,
                     REAL *restrict total, REAL *restrict partial) {
    for (size c = 0; c < C; c++) total[c] = 0;
    for (size start = from; start < to; start += 64) {
        const size end = least(start + 64, to);
        for (size c = 0; c < C; c++) partial[c] = 0;
        size p = start;
        for (; p + 4 <= end; p += 4) {
            const STORED *restrict xa = x + p * C, *restrict xb = xa + C, *restrict xd = xb + C, *restrict xe = xd + C;
            const STORED *restrict ya = y + p * C, *restrict yb = ya + C, *restrict yd = yb + C, *restrict ye = yd + C;
            for (size c = 0; c < C; c++)
                partial[c] += (load(xa[c]) * load(ya[c]) + load(xb[c]) * load(yb[c]))
                              + (load(xd[c]) * load(yd[c]) + load(xe[c]) * load(ye[c]));
        }
        for (; p < end; p++)
            for (size c = 0; c < C; c++) partial[c] += load(x[p * C + c]) * load(y[p * C + c]);
        for (size c = 0; c < C; c++) total[c] += partial[c];
    }
}

/* pooled: (B, strips, C); of planes the first strip has all channels. */
static void dot(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w, b = task / a->strips, k = task % a->strips;
    const STORED *x = a->x + b * C * hw, *y = a->gradient + b * C * hw;
    REAL *sums = a->pooled + b * a->strips * C;
    size from, to;
    strip(s, a, k, &from, &to);
    if (s->last)
        dot_rows(x, y, C, from, to, sums + k * C, scratch);
    else
        for (size c = from; c < to; c++) sums[c] = (REAL)dot_plane(x + c * hw, y + c * hw, hw);
}

static void weigh_and_shift(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w, b = task / a->strips, k = task % a->strips;
    const STORED *restrict x = a->x + b * C * hw;
    STORED *restrict out = a->out + b * C * hw;
    const REAL *restrict weight = a->channel + b * C, *restrict shift = a->added + b * C;
    size from, to;
    (void)scratch;
    strip(s, a, k, &from, &to);
    for (size i = from; i < to; i++) {
        if (s->last) {
            const STORED *restrict row = x + i * C;
            STORED *restrict made = out + i * C;
            for (size c = 0; c < C; c++) made[c] = store(load(row[c]) * weight[c] + shift[c]);
        } else {
            const STORED *restrict plane = x + i * hw;
            STORED *restrict made = out + i * hw;
            const REAL w = weight[i], d = shift[i];
            for (size p = 0; p < hw; p++) made[p] = store(load(plane[p]) * w + d);
        }
    }
}

/* ---- what Python calls ---- */

/* what: 0 the sums of x gradient over the positions, into memory (B, strips, C), of which the first strip gets the result;
   1 out = weight x; 2 out = weight x + shift. Weight and shift: (B, C). */
typedef struct {
    Setting setting;
    const STORED *x, *gradient;
    STORED *out;
    REAL *memory;
    const REAL *weight, *shift;
    size what;
} Training;

void train(const Training *in) {
    const Setting *s = &in->setting;
    Arguments a = {.x = in->x, .gradient = in->gradient, .out = in->out, .pooled = in->memory, .strips = strips_of(s)};
    a.images = 1, a.channel = (REAL *)in->weight, a.added = in->shift;
    run(s, s->B * a.strips, in->what == 0 ? dot : in->what == 1 ? weigh_task : weigh_and_shift, &a);
    if (in->what == 0 && s->last)
        for (size b = 0; b < s->B; b++)
            for (size k = 1; k < a.strips; k++)
                for (size c = 0; c < s->C; c++) in->memory[b * a.strips * s->C + c] += in->memory[(b * a.strips + k) * s->C + c];
}
