/* The gates on a CPU: x + sigmoid(c + p) x, how the stages are run, and what Python calls. See cpu.c. */

/* ---- both branches under one sigmoid ---- */

enum { NEAR = 40 }; /* |score| up to which the product of two exponentials is far from the ends of float32 */

static int all_near(const REAL *scores, size n) {
    int near = 1;
    for (size i = 0; i < n; i++) near &= scores[i] <= NEAR && scores[i] >= -NEAR;
    return near;
}

static inline Lanes joint(Lanes channel, Lanes position, size product) {
    return sigmoids(product ? channel * position : channel + position);
}

/* One run of n elements whose scores are those of a channel or a position, `fixed`, with those of the other axis. */
static inline void join_run(const STORED *restrict x, STORED *restrict out, size n, REAL fixed, const REAL *restrict other,
                            size product) {
    for (size i = 0; i < n; i += LANES) {
        const size few = least(LANES, n - i);
        const Lanes v = load_lanes(x + i, few);
        store_lanes(out + i, v + v * joint(all(fixed), some(other + i, few), product), few);
    }
}

/* The same where sigmoid(c + p) = 1 / (1 + exp(-c) exp(-p)). */
static inline void join_near(const STORED *restrict x, STORED *restrict out, size n, REAL fixed,
                             const REAL *restrict other) {
    for (size i = 0; i < n; i++) {
        const REAL v = load(x[i]);
        out[i] = store(v + v / (1 + fixed * other[i]));
    }
}

/* scratch: C + h w. */
static void residual(const Setting *s, const Arguments *a, size b, size k, REAL *scratch) {
    const size C = s->C, hw = s->h * s->w, inner = s->last ? C : hw;
    const STORED *x = a->x + b * C * hw;
    STORED *out = a->out + b * C * hw;
    const REAL *channel = a->channel + b * C, *position = a->position + b * hw;
    const REAL *outside = s->last ? position : channel, *inside = s->last ? channel : position;
    REAL *outer = scratch + inner;
    const int near = !a->product && all_near(channel, C) && all_near(position, hw);
    size from, to;
    strip(s, a, k, &from, &to);
    if (near) inverse_exponentials_of(inside, scratch, inner), inverse_exponentials_of(outside + from, outer, to - from);
    for (size i = from; i < to; i++) {
        if (near)
            join_near(x + i * inner, out + i * inner, inner, outer[i - from], scratch);
        else
            join_run(x + i * inner, out + i * inner, inner, outside[i], inside, a->product);
    }
}

/* ---- the stages one after the other ---- */

typedef void (*stage_fn)(const Setting *, const Arguments *, size b, size strip, REAL *scratch);
static const stage_fn STAGES[] = {[POOL] = pool, [SQUEEZE] = squeeze, [CONVOLVE] = convolve, [WEIGH] = weigh};

/* A few images through all stages. */
static void images_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    const size b0 = task * a->images, b1 = least(b0 + a->images, s->B);
    for (size n = 0; n < a->count; n++)
        if (a->stages[n] == LAYERS)
            layers(s, a, b0, b1 - b0, scratch);
        else
            for (size k = 0; k < b1 - b0; k++) /* back and forth: what was read last is still in the cache */
                STAGES[a->stages[n]](s, a, n / 2 % 2 ? b1 - 1 - k : b0 + k, 0, scratch);
}

/* One strip, or for the layers one image. */
static void pool_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    pool(s, a, task / a->strips, task % a->strips, scratch);
}
static void layers_task(const Setting *s, const Arguments *a, size task, REAL *scratch) { layers(s, a, task, 1, scratch); }
static void squeeze_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    squeeze(s, a, task / a->strips, task % a->strips, scratch);
}
static void convolve_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    convolve(s, a, task / a->strips, task % a->strips, scratch);
}
static void weigh_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    weigh(s, a, task / a->strips, task % a->strips, scratch);
}
static void residual_task(const Setting *s, const Arguments *a, size task, REAL *scratch) {
    residual(s, a, task / a->strips, task % a->strips, scratch);
}
static const task_fn TASKS[] = {pool_task, layers_task, squeeze_task, convolve_task, weigh_task};

/* How many images a task takes: as many as stay in the second cache together, and leave work for each thread. */
enum { CACHED = 1 << 20 };
static size images_of(const Setting *s) {
    const size each = s->C * s->h * s->w * (size)sizeof(STORED), fit = each < CACHED ? CACHED / each : 1;
    return least(least(fit, TOGETHER), parts(s->B, s->threads));
}

static size strips_of(const Setting *s) { return s->threads > 1 && s->B < 2 * s->threads ? parts(2 * s->threads, s->B) : 1; }

/* ---- what Python calls ---- */

/* order: 0 channel, 1 spatial, 2 channel-spatial, 3 spatial-channel, 4 parallel, 5 along the channels, for which conv has
   `kernel` weights, bias1 one number, and circular says what is beyond the ends. memory: what memory_bytes says. */
typedef struct {
    Setting setting;
    const STORED *x;
    STORED *out;
    REAL *memory;
    size order, pools, hidden, kernel, circular;
    const REAL *fc1, *bias1, *fc2, *bias2, *conv, *norm[4]; /* of the batch norm: weight, bias, mean, variance */
    double eps;
} Inference;

static Arguments arguments_of(const Setting *s, REAL *memory) {
    const size C = s->C, hw = s->h * s->w;
    Arguments a = {.strips = strips_of(s), .images = images_of(s), .pooled = memory};
    a.channel = a.pooled + s->B * a.strips * 2 * C;
    a.planes = a.channel + s->B * C;
    a.position = a.planes + s->B * 2 * hw;
    return a;
}

size strip_count(const Setting *s) { return strips_of(s); }

/* Bytes for all threads. */
size memory_bytes(const Setting *s) {
    const Arguments a = arguments_of(s, NULL);
    return (size)sizeof(REAL) * ((a.position - a.pooled) + s->B * s->h * s->w);
}

/* Bytes for each thread. */
size scratch_bytes(const Setting *s, size hidden, size kernel) {
    const size margin = 2 * (kernel / 2), W = s->w + margin, H = s->h + margin;
    const size first = 2 * TOGETHER * (hidden + s->C), second = 2 * H * W + s->h * W + kernel + 12 * LANES;
    const size third = s->C + s->h * s->w, fourth = 2 * s->C + kernel;
    const size most = first > second ? first : second, other = third > fourth ? third : fourth;
    return (size)sizeof(REAL) * ((most > other ? most : other) + 16);
}

void infer(const Inference *in) {
    static const size LISTS[6][5] = {{POOL, LAYERS, WEIGH},
                                     {SQUEEZE, CONVOLVE, WEIGH},
                                     {POOL, LAYERS, SQUEEZE, CONVOLVE, WEIGH},
                                     {SQUEEZE, CONVOLVE, POOL, LAYERS, WEIGH},
                                     {POOL, LAYERS, SQUEEZE, CONVOLVE, WEIGH},
                                     {POOL, LAYERS, WEIGH}};
    const size channel_only = in->order == 0 || in->order == 5;
    const Setting *s = &in->setting;
    Arguments a = arguments_of(s, in->memory);
    a.x = in->x, a.out = in->out, a.pools = in->pools, a.hidden = in->hidden, a.kernel = in->kernel;
    a.fc1 = in->fc1, a.bias1 = in->bias1, a.fc2 = in->fc2, a.bias2 = in->bias2, a.conv = in->conv;
    a.along = in->order == 5, a.circular = in->circular;
    a.count = channel_only || in->order == 1 ? 3 : 5;
    a.seen_in_pool = in->order == 3 ? a.position : NULL, a.seen_in_squeeze = in->order == 2 ? a.channel : NULL;
    for (size n = 0; n < 5; n++) a.stages[n] = LISTS[in->order][n];
    if (channel_only) a.position = NULL;
    if (in->order == 1) a.channel = NULL;
    if (!channel_only) {
        a.scale = in->norm[0][0] / root(in->norm[3][0] + (REAL)in->eps);
        a.shift = in->norm[1][0] - in->norm[2][0] * a.scale;
    }
    if (a.strips == 1) {
        run(s, parts(s->B, a.images), images_task, &a);
        return;
    }
    Step steps[5];
    for (size n = 0; n < a.count; n++)
        steps[n] = (Step){TASKS[a.stages[n]], &a, a.stages[n] == LAYERS ? s->B : s->B * a.strips};
    run_steps(s, steps, a.count);
}

/* One pass. what: 0 pool over the positions, into memory (B, strips, 2, C), of which the first strip gets the result; 1 over the channels, into memory
   (B, 2, h, w); 2 the product with both gates; 3 both under one sigmoid, product: of their product. Each takes scores or
   NULL; sigmoids: B (C + h w) elements for their sigmoids. */
typedef struct {
    Setting setting;
    const STORED *x;
    STORED *out;
    REAL *memory;
    const REAL *channel, *position;
    REAL *sigmoids;
    size what, product, pools;
} Pass;

void pass(const Pass *in) {
    const Setting *s = &in->setting;
    const size hw = s->h * s->w;
    Arguments a = {.x = in->x, .out = in->out, .strips = strips_of(s), .images = 1, .product = in->product, .pools = in->pools};
    if (in->what == 3) {
        a.channel = (REAL *)in->channel, a.position = (REAL *)in->position;
        run(s, s->B * a.strips, residual_task, &a);
        return;
    }
    if (in->channel) sigmoid_of(in->channel, a.channel = in->sigmoids, s->B * s->C);
    if (in->position) sigmoid_of(in->position, a.position = in->sigmoids + s->B * s->C, s->B * hw);
    a.pooled = a.planes = in->memory, a.seen_in_pool = a.position, a.seen_in_squeeze = a.channel;
    if (in->what == 0) {
        run(s, s->B * a.strips, pool_task, &a);
        for (size b = 0; b < s->B; b++) join(s, &a, b);
    } else if (in->what == 1) {
        run(s, s->B * a.strips, squeeze_task, &a);
    } else {
        run(s, s->B * a.strips, weigh_task, &a);
    }
}
