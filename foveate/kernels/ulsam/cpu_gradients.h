/* The backward pass; part of cpu.c.

dA = sum over a group of dy x        dx = dy + A dy + scale dz        (then add_affine, for the statistics of a batch)

dz is the gradient of what enters the first ReLU. A window gives its score's gradient to the first of its maxima in the
order of reading, as torch does, found in two steps: side is the column of the first maximum of three in a row, level
the row of the first of these. A maximum of 0 gives nothing, for the ReLU is closed there; so a neighbour counts only if
it is above TINY, which stands for 0, and outside the image stands 0. */

/* dA for the positions p0 .. p1 of one image. */
static void map_gradient_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size C = s->C, G = C / s->g, hw = s->h * s->w, part = parts(hw, a->strips), p0 = task % a->strips * part;
    const size p1 = least(p0 + part, hw), b = task / a->strips;
    const STORED *restrict x = a->x + b * C * hw, *restrict dy = a->dy + b * C * hw;
    (void)scratch;
    for (size n = 0; s->last == 0 && n < s->g; n++) {
        REAL *restrict dmap = a->made + (b * s->g + n) * hw;
        for (size i = p0; i < p1; i++) dmap[i] = 0;
        for (size c = n * G; c < (n + 1) * G; c++)
            for (size i = p0; i < p1; i++) dmap[i] += load(x[c * hw + i]) * load(dy[c * hw + i]);
    }
    for (size p = p0; s->last && p < p1; p++)
        for (size n = 0; n < s->g; n++) {
            REAL sum = 0;
            for (size i = p * C + n * G; i < p * C + (n + 1) * G; i++) sum += load(x[i]) * load(dy[i]);
            a->made[(b * s->g + n) * hw + p] = sum;
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

/* Rows of one group with two more on both sides; element i of a buffer is position i + move of the image's plane. */
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

/* One position, LANES channels: what stands there, the maximum of three in its row, whose that is, and what the windows hand
   to that row. Three rows of them are kept, for in the images positions are so far apart that they push each other out of the
   first cache. */
typedef struct {
    Lanes x, wide, passed;
    Bits left, here, right;
} Place;

/* What belongs to LANES channels of one image. x, dy, dx: of the first; group: where the maps of their groups begin; n: how
   many there are. */
typedef struct {
    const STORED *x, *dy;
    STORED *dx;
    const REAL *dscore, *map;
    size n, group[LANES];
    Lanes scale, shift, point, centre, dscale, dshift, dpoint;
} Column;

/* dscore or map of one position, for each channel. */
static inline Lanes spread(const REAL *map, const size *group) {
    Lanes out;
    if (group[0] == group[LANES - 1])
        for (size c = 0; c < LANES; c++) out[c] = map[group[0]];
    else
        for (size c = 0; c < LANES; c++) out[c] = map[group[c]];
    return out;
}

/* The maximum of three; before, after: where it is the one before or after, and the first. */
static inline Lanes first_of_lanes(Lanes up, Lanes here, Lanes down, Bits *before, Bits *after) {
    const Lanes base = greater(all(TINY), here), most = greater(up, base);
    *after = down > most;
    *before = (up >= base) & ~*after;
    return greater(most, down);
}

/* One row of x: its maxima of three. */
static inline __attribute__((always_inline)) void read_row(const Column *by, size n, const STORED *x, size w, size C,
                                                           Place *row, const STORED *next) {
    Lanes value = load_lanes(x, n), here = greater(all(0), value * by->scale + by->shift), before = all(0);
    for (size p = 0; p < w; p++) {
        Lanes following = value, after = all(0);
        if (p + 1 < w) {
            following = load_lanes(x + (p + 1) * C, n);
            after = greater(all(0), following * by->scale + by->shift);
        }
        __builtin_prefetch(next + p * C);
        Bits left, right;
        row[p].x = value;
        row[p].wide = first_of_lanes(before, here, after, &left, &right);
        row[p].left = left, row[p].right = right, row[p].here = ~(left | right) & (here > all(0));
        before = here, here = after, value = following;
    }
}

/* The windows around one row: up, here and down have the maxima in the rows. */
static void windows(Column *by, const REAL *dscore, size w, Place *up, Place *here, Place *down) {
    Lanes dpoint = by->dpoint;
    for (size p = 0; p < w; p++) {
        const Lanes d = spread(dscore + p, by->group);
        Bits above, below;
        dpoint += d * first_of_lanes(up[p].wide, here[p].wide, down[p].wide, &above, &below);
        up[p].passed += keep_lanes(d, above);
        here[p].passed += keep_lanes(d, ~(above | below));
        down[p].passed = keep_lanes(d, below);
    }
    by->dpoint = dpoint;
}

/* dx of one row. */
static inline __attribute__((always_inline)) void write_row(Column *by, size n, const REAL *map, const STORED *dy,
                                                            STORED *dx, size w, size C, const Place *row) {
    Lanes dscale = by->dscale, dshift = by->dshift, before = all(0), here = keep_lanes(row->passed, row->here);
    for (size p = 0; p < w; p++) {
        Lanes sum = before + here;
        before = keep_lanes(row[p].passed, row[p].right);
        if (p + 1 < w) {
            sum += keep_lanes(row[p + 1].passed, row[p + 1].left);
            here = keep_lanes(row[p + 1].passed, row[p + 1].here);
        }
        const Lanes dz = by->point * sum, d = load_lanes(dy + p * C, n);
        store_lanes(dx + p * C, d + spread(map + p, by->group) * d + by->scale * dz, n);
        dscale += dz * (row[p].x - by->centre);
        dshift += dz;
    }
    by->dscale = dscale, by->dshift = dshift;
}

static Column column_of(const Setting *s, const Arguments *a, size b, size c0, size n) {
    const size C = s->C, hw = s->h * s->w, start = b * hw * C + c0, maps = b * s->g * hw;
    Column by = {.x = a->x + start, .dy = a->dy + start, .dx = a->out + start, .n = n,
                 .dscore = a->dscore + maps, .map = a->map + maps};
    for (size c = 0; c < LANES; c++) by.group[c] = least(c0 + c, C - 1) / (C / s->g) * hw;
    for (size c = 0; c < n; c++) {
        by.scale[c] = a->folded[c0 + c], by.shift[c] = a->folded[C + c0 + c], by.point[c] = a->folded[2 * C + c0 + c];
        by.centre[c] = a->centre[c0 + c];
    }
    return by;
}

/* Channels c0 .. c0 + n of one image, at most a line of the cache, row after row: at row y the windows of row y - 1 are
   complete, and with them what row y - 2 gets. */
static void gradients_last(const Setting *s, const Arguments *a, size b, size c0, size n, Place *scratch) {
    const size C = s->C, h = s->h, w = s->w, columns = parts(n, LANES);
    Column by[LINE / LANES];
    for (size k = 0; k < columns; k++) by[k] = column_of(s, a, b, c0 + k * LANES, least(n - k * LANES, LANES));
    for (size p = 0; p < 3 * w * columns; p++) scratch[p] = (Place){0};
    for (size y = 0; y < h + 2; y++) { /* rows y, y - 1, y - 2 */
        for (size k = 0; k < columns; k++) {
            Place *rows = scratch + 3 * w * k, *now = rows + y % 3 * w, *mid = rows + (y + 2) % 3 * w;
            Place *old = rows + (y + 1) % 3 * w;
            const STORED *x = by[k].x + y * w * C, *next = y + 1 < h ? x + w * C : x;
            if (y < h && by[k].n == LANES)
                read_row(by + k, LANES, x, w, C, now, next);
            else if (y < h)
                read_row(by + k, by[k].n, x, w, C, now, next);
            else
                for (size p = 0; p < w; p++) now[p].wide = all(0);
            for (size p = 0; y == 0 && p < w; p++) now[p].passed = all(0);
            if (y >= 1 && y <= h) windows(by + k, by[k].dscore + (y - 1) * w, w, old, mid, now);
            if (y >= 2) {
                const size at = (y - 2) * w;
                const STORED *dy = by[k].dy + at * C;
                if (by[k].n == LANES)
                    write_row(by + k, LANES, by[k].map + at, dy, by[k].dx + at * C, w, C, old);
                else
                    write_row(by + k, by[k].n, by[k].map + at, dy, by[k].dx + at * C, w, C, old);
            }
        }
        for (size p = 0; y >= 1 && y <= h && p < w; p++) { /* what write_row takes and gives next */
            __builtin_prefetch(by->dy + ((y - 1) * w + p) * C);
            __builtin_prefetch(by->dx + ((y - 1) * w + p) * C, 1);
        }
    }
    REAL *sums = a->sums + (b * C + c0) * 3;
    for (size c = 0; c < n; c++, sums += 3) {
        const Column *k = by + c / LANES;
        sums[0] = k->dscale[c % LANES], sums[1] = k->dshift[c % LANES], sums[2] = k->dpoint[c % LANES];
    }
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
