/* The backward pass; part of ulsam_cpu.c.

dA = sum over a group of dy x        dx = dy + A dy + scale dz        (then add_affine, for the statistics of a batch)

dz is the gradient of what enters the first ReLU. A window gives its score's gradient to the first of its maxima in the
order of reading, as torch does, found in two steps: side is the column of the first maximum of three in a row, level
the row of the first of these. A maximum of 0 gives nothing, for the ReLU is closed there; so a neighbour counts only if
it is above TINY, which stands for 0, and outside the image stands 0. */

/* dA for the places p0 .. p1 of one image. */
static void map_gradient_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size C = s->C, G = C / s->g, hw = s->h * s->w, part = parts(hw, a->strips), p0 = task % a->strips * part;
    const size p1 = least(p0 + part, hw), b = task / a->strips;
    const STORED *restrict x = a->x + b * C * hw, *restrict dy = a->dy + b * C * hw;
    (void)scratch;
    for (size n = 0; s->last == 0 && n < s->g; n++) {
        REAL *restrict dmap = a->score + (b * s->g + n) * hw;
        for (size i = p0; i < p1; i++) dmap[i] = 0;
        for (size c = n * G; c < (n + 1) * G; c++)
            for (size i = p0; i < p1; i++) dmap[i] += load(x[c * hw + i]) * load(dy[c * hw + i]);
    }
    for (size p = p0; s->last && p < p1; p++)
        for (size n = 0; n < s->g; n++) {
            REAL sum = 0;
            for (size i = p * C + n * G; i < p * C + (n + 1) * G; i++) sum += load(x[i]) * load(dy[i]);
            a->score[(b * s->g + n) * hw + p] = sum;
        }
}

/* The maximum of three and where its first is: -1, 0, 1. */
static inline REAL first_of_three(REAL before, REAL here, REAL after, MASK *where) {
    const REAL base = max(TINY, here), most = max(before, base);
    const MASK found = before >= base ? -1 : 0;
    *where = after > most ? 1 : found;
    return max(most, after);
}

/* ---- planes ---- */

/* Rows of one group with two more on both sides; place i of a buffer is place i + move of the image's plane. */
typedef struct {
    size w, move, real0, real1, own0, own1, window0, window1;
    REAL *hidden, *wide, *passed, *dscore;
    MASK *side, *level, *first, *last;
} Rows;

static Rows rows_of(const Setting *s, const REAL *dscore, size y0, size y1, REAL *scratch) {
    const size h = s->h, w = s->w, length = (y1 - y0 + 4) * w, pitch = length + 2;
    Rows r = {.w = w, .move = (y0 - 2) * w, .own0 = 2 * w, .own1 = length - 2 * w};
    r.real0 = y0 > 2 ? 0 : (2 - y0) * w, r.real1 = length - (y1 + 2 > h ? (y1 + 2 - h) * w : 0);
    r.window0 = r.own0 - (y0 > 0) * w, r.window1 = r.own1 + (y1 < h) * w;
    r.hidden = scratch + 1, r.wide = r.hidden + pitch, r.passed = r.wide + pitch, r.dscore = r.passed + pitch;
    r.side = (MASK *)(r.dscore + pitch), r.level = r.side + pitch, r.first = r.level + pitch, r.last = r.first + pitch;
    for (size i = -1; i <= length; i++) {
        const int inside = i >= r.real0 && i < r.real1;
        r.hidden[i] = r.wide[i] = r.passed[i] = 0;
        r.dscore[i] = inside ? dscore[i + r.move] : 0;
        r.side[i] = r.level[i] = 2; /* nowhere */
        r.first[i] = inside && i % w > 0 ? -1 : 0, r.last[i] = inside && i % w < w - 1 ? -1 : 0;
    }
    return r;
}

/* One channel. by: its scale, shift, point and centre; sums: of dz (x - centre), of dz, and the gradient of point. */
static void channel_gradients(const Rows *r, const STORED *restrict x, const STORED *restrict dy,
                              const REAL *restrict map, STORED *restrict dx, const REAL *by, REAL *sums) {
    const REAL scale = by[0], shift = by[1], point = by[2], centre = by[3];
    const size w = r->w, own0 = r->own0, own1 = r->own1;
    const REAL *restrict dscore = r->dscore;
    const MASK *restrict first = r->first, *restrict last = r->last;
    REAL *restrict hidden = r->hidden, *restrict wide = r->wide, *restrict passed = r->passed;
    MASK *restrict side = r->side, *restrict level = r->level;
    for (size i = r->real0; i < r->real1; i++) hidden[i] = max(0, load(x[i]) * scale + shift);
    for (size i = r->real0; i < r->real1; i++) {
        const REAL before = keep(hidden[i - 1], first[i]), after = keep(hidden[i + 1], last[i]);
        wide[i] = first_of_three(before, hidden[i], after, &side[i]);
    }
    REAL dpoint = 0, dscale = 0, dshift = 0;
    for (size i = r->window0; i < r->window1; i++)
        passed[i] = first_of_three(wide[i - w], wide[i], wide[i + w], &level[i]);
    for (size i = own0; i < own1; i++) dpoint += dscore[i] * passed[i];
    for (size i = own0; i < own1; i++)
        passed[i] = keep(dscore[i], -(level[i] == 0)) + keep(dscore[i - w], -(level[i - w] == 1))
                  + keep(dscore[i + w], -(level[i + w] == -1));
    for (size i = own0; i < own1; i++) {
        const REAL v = load(x[i]), d = load(dy[i]);
        const REAL sum = keep(passed[i], -(side[i] == 0)) + keep(passed[i - 1], -(side[i - 1] == 1))
                       + keep(passed[i + 1], -(side[i + 1] == -1));
        const REAL dz = keep(point * sum, -(hidden[i] > 0));
        dx[i] = store(d + map[i] * d + scale * dz);
        dscale += dz * (v - centre);
        dshift += dz;
    }
    sums[0] += dscale, sums[1] += dshift, sums[2] += dpoint;
}

/* Channels c0 .. c1 of one image, all in one group. */
static void gradients_planes(const Setting *s, const Arguments *a, size b, size c0, size c1, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w, strip = STRIP / s->w > 4 ? STRIP / s->w : 4;
    const size group = (b * s->g + c0 / (C / s->g)) * hw;
    for (size y = 0; y < s->h; y += strip) {
        const Rows r = rows_of(s, a->dscore + group, y, least(y + strip, s->h), scratch);
        for (size c = c0; c < c1; c++) {
            const size at = (b * C + c) * hw + r.move;
            const REAL by[4] = {a->folded[c], a->folded[C + c], a->folded[2 * C + c], a->centre[c]};
            channel_gradients(&r, a->x + at, a->dy + at, a->map + group + r.move, a->out + at, by,
                              a->sums + (b * C + c) * 3);
        }
    }
}

/* ---- channels last ---- */

/* dscore or map of one place, for each of the channels c0 .. c1. */
static inline void spread(const REAL *restrict map, size hw, size G, size c0, size c1, REAL *restrict out) {
    for (size c = c0; c < c1;) {
        const REAL value = map[c / G * hw];
        for (const size end = least(c1, (c / G + 1) * G); c < end; c++) out[c - c0] = value;
    }
}

/* The windows around one place: up, here and down are the maxima in the rows. */
static void one_window(const REAL *restrict up, const REAL *restrict here, const REAL *restrict down,
                       const REAL *restrict dscore, REAL *restrict to_up, REAL *restrict to_here, REAL *restrict to_down,
                       REAL *restrict dpoint, size K) {
    for (size c = 0; c < K; c++) {
        MASK level;
        const REAL d = dscore[c];
        dpoint[c] += d * first_of_three(up[c], here[c], down[c], &level);
        to_up[c] += keep(d, -(level == -1));
        to_here[c] += keep(d, -(level == 0));
        to_down[c] = keep(d, -(level == 1));
    }
}

/* dx at one place; passed and side reach one place to both sides. */
static void one_gradient(const STORED *restrict x, const STORED *restrict dy, const REAL *restrict map,
                         const REAL *restrict hidden, const REAL *restrict passed, const MASK *restrict side,
                         const REAL *restrict scale, const REAL *restrict point, const REAL *restrict centre,
                         STORED *restrict dx, REAL *restrict dscale, REAL *restrict dshift, size K) {
    for (size c = 0; c < K; c++) {
        const REAL v = load(x[c]), d = load(dy[c]);
        const REAL sum = keep(passed[c], -(side[c] == 0)) + keep(passed[c - K], -(side[c - K] == 1))
                       + keep(passed[c + K], -(side[c + K] == -1));
        const REAL dz = keep(point[c] * sum, -(hidden[c] > 0));
        dx[c] = store(d + map[c] * d + scale[c] * dz);
        dscale[c] += dz * (v - centre[c]);
        dshift[c] += dz;
    }
}

/* Channels c0 .. c1 of one image, row after row: at row y the windows of row y - 1 are complete, and with them what row
   y - 2 gets. Three rows are kept of each buffer, a column of zeros on both sides. */
static void gradients_last(const Setting *s, const Arguments *a, size b, size c0, size c1, REAL *scratch) {
    const size C = s->C, G = C / s->g, h = s->h, w = s->w, hw = h * w, K = c1 - c0, row = (w + 2) * K;
    const REAL *scale = a->folded + c0, *shift = scale + C, *point = shift + C, *centre = a->centre + c0;
    const REAL *dscore = a->dscore + b * s->g * hw, *map = a->map + b * s->g * hw;
    REAL *hidden = scratch + K, *wide = hidden + 3 * row, *passed = wide + 3 * row, *flat = passed + 3 * row;
    MASK *side = (MASK *)(flat + 2 * K);
    REAL sums[3][NARROW] = {{0}};
    for (size i = -K; i < 9 * row; i++) hidden[i] = 0;
    for (size i = -K; i < 3 * row; i++) side[i] = 2; /* nowhere */
    for (size y = 0; y < h + 2; y++) {
        const size now = y % 3 * row, mid = (y + 2) % 3 * row, old = (y + 1) % 3 * row; /* rows y, y - 1, y - 2 */
        for (size i = 0; i < w * K; i++) wide[now + i] = passed[now + i] = 0;
        if (y < h) {
            for (size p = 0; p < w; p++) {
                const STORED *restrict x = a->x + (b * hw + y * w + p) * C + c0;
                REAL *restrict to = hidden + now + p * K;
                for (size c = 0; c < K; c++) to[c] = max(0, load(x[c]) * scale[c] + shift[c]);
            }
            const REAL *restrict from = hidden + now;
            REAL *restrict to = wide + now;
            MASK *restrict found = side + now;
            for (size i = 0; i < w * K; i++) to[i] = first_of_three(from[i - K], from[i], from[i + K], &found[i]);
        }
        for (size p = 0; y >= 1 && y <= h && p < w; p++) {
            spread(dscore + (y - 1) * w + p, hw, G, c0, c1, flat);
            one_window(wide + old + p * K, wide + mid + p * K, wide + now + p * K, flat, passed + old + p * K,
                       passed + mid + p * K, passed + now + p * K, sums[2], K);
        }
        for (size p = 0; y >= 2 && p < w; p++) {
            const size at = (b * hw + (y - 2) * w + p) * C + c0;
            spread(map + (y - 2) * w + p, hw, G, c0, c1, flat);
            one_gradient(a->x + at, a->dy + at, flat, hidden + old + p * K, passed + old + p * K, side + old + p * K,
                         scale, point, centre, a->out + at, sums[0], sums[1], K);
        }
    }
    for (size c = 0; c < K; c++)
        for (size k = 0; k < 3; k++) a->sums[(b * C + c0 + c) * 3 + k] = sums[k][c];
}

/* ---- either format ---- */

/* Channels that one task takes: in planes those of one group only. */
static size taken(const Setting *s) { return s->last ? NARROW : least(NARROW, s->C / s->g); }

static size gradient_tasks(const Setting *s) {
    return s->last ? parts(s->C, NARROW) : s->g * parts(s->C / s->g, taken(s));
}

static void gradients_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size each = gradient_tasks(s), b = task / each, k = task % each;
    if (s->last) {
        gradients_last(s, a, b, k * NARROW, least((k + 1) * NARROW, s->C), scratch);
    } else {
        const size G = s->C / s->g, in_group = parts(G, taken(s)), start = k / in_group * G;
        const size c0 = start + k % in_group * taken(s);
        for (size i = (b * s->C + c0) * 3; i < (b * s->C + least(c0 + taken(s), start + G)) * 3; i++) a->sums[i] = 0;
        gradients_planes(s, a, b, c0, least(c0 + taken(s), start + G), scratch);
    }
}

/* dx += affine_0 + affine_1 x, for each channel: the mean and the variance of a batch move with x. */
static void add_affine_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w, part = parts(hw, a->strips), p0 = task % a->strips * part;
    const size p1 = least(p0 + part, hw), start = task / a->strips * C * hw;
    const STORED *restrict x = a->x + start;
    STORED *restrict dx = a->out + start;
    const REAL *restrict constant = a->affine, *restrict factor = a->affine + C;
    (void)scratch;
    for (size p = p0; s->last && p < p1; p++)
        for (size c = 0; c < C; c++)
            dx[p * C + c] = store(load(dx[p * C + c]) + constant[c] + factor[c] * load(x[p * C + c]));
    for (size c = 0; s->last == 0 && c < C; c++)
        for (size i = c * hw + p0; i < c * hw + p1; i++)
            dx[i] = store(load(dx[i]) + constant[c] + factor[c] * load(x[i]));
}
