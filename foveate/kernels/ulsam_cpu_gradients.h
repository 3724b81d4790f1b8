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

/* One place, LINE channels: what stands there, and what the windows find. Three rows of them are kept, for in the images
   places are so far apart that they push each other out of the first cache. */
typedef struct {
    REAL x[LINE], dy[LINE], hidden[LINE], wide[LINE], passed[LINE];
    MASK side[LINE];
} Place;

/* What belongs to the channels. group: where the maps of their groups begin. */
typedef struct {
    REAL scale[LINE], shift[LINE], point[LINE], centre[LINE], dscale[LINE], dshift[LINE], dpoint[LINE];
    size group[LINE];
} Channels;

/* dscore or map of one place, for each channel. */
static inline void spread(const REAL *restrict map, const size *restrict group, REAL *restrict out) {
    if (group[0] == group[LINE - 1])
        for (size c = 0; c < LINE; c++) out[c] = map[group[0]];
    else
        for (size c = 0; c < LINE; c++) out[c] = map[group[c]];
}

static inline void read_place(const STORED *restrict x, const STORED *restrict dy, const Channels *restrict by,
                              Place *restrict to, size n) {
    if (n == LINE)
        for (size c = 0; c < LINE; c++) to->x[c] = load(x[c]), to->dy[c] = load(dy[c]);
    else
        for (size c = 0; c < n; c++) to->x[c] = load(x[c]), to->dy[c] = load(dy[c]);
    for (size c = 0; c < LINE; c++) {
        to->hidden[c] = max(0, to->x[c] * by->scale[c] + by->shift[c]);
        to->passed[c] = 0;
    }
}

/* The windows around one place: up, here and down have the maxima in the rows. */
static inline void one_window(Place *restrict up, Place *restrict here, Place *restrict down,
                              const REAL *restrict dscore, Channels *restrict by) {
    for (size c = 0; c < LINE; c++) {
        MASK level;
        by->dpoint[c] += dscore[c] * first_of_three(up->wide[c], here->wide[c], down->wide[c], &level);
        up->passed[c] += keep(dscore[c], -(level == -1));
        here->passed[c] += keep(dscore[c], -(level == 0));
        down->passed[c] = keep(dscore[c], -(level == 1));
    }
}

/* dx at one place, into dy. */
static inline void one_gradient(const Place *restrict before, Place *restrict here, const Place *restrict after,
                                const REAL *restrict map, Channels *restrict by) {
    for (size c = 0; c < LINE; c++) {
        const REAL sum = keep(here->passed[c], -(here->side[c] == 0)) + keep(before->passed[c], -(before->side[c] == 1))
                       + keep(after->passed[c], -(after->side[c] == -1));
        const REAL dz = keep(by->point[c] * sum, -(here->hidden[c] > 0));
        here->dy[c] = here->dy[c] + map[c] * here->dy[c] + by->scale[c] * dz;
        by->dscale[c] += dz * (here->x[c] - by->centre[c]);
        by->dshift[c] += dz;
    }
}

/* Channels c0 .. c0 + n of one image, row after row: at row y the windows of row y - 1 are complete, and with them what
   row y - 2 gets. A column of zeros stands on both sides. */
static void gradients_last(const Setting *s, const Arguments *a, size b, size c0, size n, Place *scratch) {
    const size C = s->C, h = s->h, w = s->w, hw = h * w, row = w + 2;
    const REAL *dscore = a->dscore + b * s->g * hw, *map = a->map + b * s->g * hw;
    Channels by = {0};
    REAL flat[LINE];
    for (size c = 0; c < LINE; c++) by.group[c] = least(c0 + c, C - 1) / (C / s->g) * hw;
    for (size c = 0; c < n; c++) {
        by.scale[c] = a->folded[c0 + c], by.shift[c] = a->folded[C + c0 + c], by.point[c] = a->folded[2 * C + c0 + c];
        by.centre[c] = a->centre[c0 + c];
    }
    for (size p = 0; p < 3 * row; p++) {
        scratch[p] = (Place){0};
        for (size c = 0; c < LINE; c++) scratch[p].side[c] = 2; /* nowhere */
    }
    for (size y = 0; y < h + 2; y++) { /* rows y, y - 1, y - 2 */
        Place *rows = scratch + 1, *now = rows + y % 3 * row, *mid = rows + (y + 2) % 3 * row;
        Place *old = rows + (y + 1) % 3 * row;
        const size start = (b * hw + y * w) * C + c0;
        for (size p = 0; y < h && p < w; p++) {
            const STORED *x = a->x + start + p * C, *dy = a->dy + start + p * C;
            fetch_ahead(x + (y + 1 < h) * w * C, n);
            fetch_ahead(dy + (y + 1 < h) * w * C, n);
            __builtin_prefetch(a->out + start + p * C, 1); /* written two rows later */
            read_place(x, dy, &by, now + p, n);
        }
        for (size p = 0; p < w; p++) {
            Place *at = now + p;
            if (y < h) {
                for (size c = 0; c < LINE; c++)
                    at->wide[c] = first_of_three(at[-1].hidden[c], at->hidden[c], at[1].hidden[c], &at->side[c]);
            } else {
                for (size c = 0; c < LINE; c++) at->wide[c] = 0;
            }
        }
        for (size p = 0; y >= 1 && y <= h && p < w; p++) {
            spread(dscore + (y - 1) * w + p, by.group, flat);
            one_window(old + p, mid + p, now + p, flat, &by);
        }
        for (size p = 0; y >= 2 && p < w; p++) {
            STORED *out = a->out + start + (p - 2 * w) * C;
            spread(map + (y - 2) * w + p, by.group, flat);
            one_gradient(old + p - 1, old + p, old + p + 1, flat, &by);
            if (n == LINE)
                for (size c = 0; c < LINE; c++) out[c] = store(old[p].dy[c]);
            else
                for (size c = 0; c < n; c++) out[c] = store(old[p].dy[c]);
        }
    }
    REAL *sums = a->sums + (b * C + c0) * 3;
    for (size c = 0; c < n; c++, sums += 3) sums[0] = by.dscale[c], sums[1] = by.dshift[c], sums[2] = by.dpoint[c];
}

/* ---- either format ---- */

/* Channels that one task takes: in planes those of one group only. */
static size taken(const Setting *s) { return s->last ? BLOCK : least(NARROW, s->C / s->g); }

static size gradient_tasks(const Setting *s) {
    return s->last ? parts(s->C, BLOCK) : s->g * parts(s->C / s->g, taken(s));
}

static void gradients_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size each = gradient_tasks(s), b = task / each, k = task % each;
    if (s->last) {
        for (size c = k * BLOCK; c < least((k + 1) * BLOCK, s->C); c += LINE)
            gradients_last(s, a, b, c, least(LINE, s->C - c), (Place *)scratch);
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
