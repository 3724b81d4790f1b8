/* The gates on a CPU: what is read of x, and the sums over it. See cpu.c. */

#include "../cpu_common.h"

enum { AHEAD = 4096 };     /* elements that are fetched before they are asked for, over the ends of pages */
enum { BLOCK = 1024 }; /* elements that are summed in REAL; the blocks' sums are added in double */

/* What the stages read and write. Scores and weights are kept for each image: pooled (strips, 2, C), the maximum first;
   channel (C); planes (2, h, w); position (h, w). */
struct Arguments {
    const STORED *x;
    STORED *out;
    REAL *pooled, *channel, *planes, *position;
    const REAL *seen_in_pool, *seen_in_squeeze; /* weights of positions, of channels, that x is seen with; or NULL */
    size stages[5], count;
    size pools, hidden, kernel;     /* pools: 1 mean, 2 maximum, 3 both */
    size along, circular;           /* along: the scores are the convolution of the means along the channels */
    const REAL *fc1, *bias1, *fc2, *bias2, *conv;
    REAL scale, shift; /* of the batch norm */
    size strips, images, product;
    const STORED *gradient; /* in training: of the result, like x */
    const REAL *added;      /* in training: to weighted channels, like channel */
};

/* ---- sigmoid ---- */

static inline Lanes either(Bits which, Lanes a, Lanes b) { return (Lanes)(((Bits)a & which) | ((Bits)b & ~which)); }

/* 1 / (1 + exp(-x)) without overflow. Below -87 the exponential of cpu_common.h ends, and that of the library serves. */
static inline Lanes sigmoids(Lanes x) {
    const Bits above = x > 0, far = x < -87;
    const Lanes e = exponentials(either(above, -x, x)), upper = 1 / (1 + e);
    Lanes out = either(above, upper, e * upper);
    MASK any = 0;
    for (int i = 0; i < LANES; i++) any |= far[i];
    if (any)
        for (int i = 0; i < LANES; i++)
            if (far[i]) out[i] = (REAL)exp((double)x[i]);
    return out;
}

/* exp(-x), where no x is far from 0. */
static void inverse_exponentials_of(const REAL *x, REAL *out, size n) {
    for (size i = 0; i < n; i += LANES) {
        const size few = least(LANES, n - i);
        const Lanes v = some(x + i, few), e = exponentials(either(v > 0, -v, v)), found = either(v > 0, e, 1 / e);
        for (size k = 0; k < few; k++) out[i + k] = found[k];
    }
}

static void sigmoid_of(const REAL *scores, REAL *out, size n) {
    for (size i = 0; i < n; i += LANES) {
        const size few = least(LANES, n - i);
        const Lanes found = sigmoids(some(scores + i, few));
        for (size k = 0; k < few; k++) out[i + k] = found[k];
    }
}

/* ---- maximum and sum over the positions ---- */

typedef REAL Half __attribute__((vector_size(16)));

/* The sum of all lanes, the largest of all: by halves, for one after the other each would wait for the one before. */
static inline REAL sum_of(Lanes v) {
    Half a, b;
    __builtin_memcpy(&a, &v, sizeof a);
    __builtin_memcpy(&b, (char *)&v + sizeof a, sizeof b);
    a += b;
    REAL sum = a[0] + a[1];
    for (int k = 2; k < LANES / 2; k += 2) sum += a[k] + a[k + 1];
    return sum;
}

/* The sums of four vectors: in float32 by turning the four quarters, which is a third of the steps. */
static inline void four_sums(const Lanes *v, REAL *sums) {
#if !defined(FLOAT64)
    Half h[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        Half a, b;
        __builtin_memcpy(&a, &v[k], sizeof a);
        __builtin_memcpy(&b, (const char *)&v[k] + sizeof a, sizeof b);
        h[k] = a + b;
    }
#if defined(__clang__)
#define TURN(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define TURN(a, b, i, j, k, l) __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){i, j, k, l})
#endif
    const Half first = TURN(h[0], h[1], 0, 4, 1, 5) + TURN(h[0], h[1], 2, 6, 3, 7);
    const Half second = TURN(h[2], h[3], 0, 4, 1, 5) + TURN(h[2], h[3], 2, 6, 3, 7);
    const Half all_four = TURN(first, second, 0, 1, 4, 5) + TURN(first, second, 2, 3, 6, 7);
    __builtin_memcpy(sums, &all_four, sizeof all_four);
#undef TURN
#else
    for (int k = 0; k < 4; k++) sums[k] = sum_of(v[k]);
#endif
}

static inline REAL most_of(Lanes v) {
    REAL four[LANES / 2];
    for (int k = 0; k < LANES / 2; k++) four[k] = max(v[k], v[k + LANES / 2]);
    REAL most = max(four[0], four[1]);
    for (int k = 2; k < LANES / 2; k += 2) most = max(max(four[k], four[k + 1]), most);
    return most;
}

static inline REAL lowest(void) { return (REAL)-INFINITY; }

/* The maximum, if both are wanted, passes over what is not a number, and the sum does not: whoever finds such a sum looks
   again. */
static inline __attribute__((always_inline)) void pool_plane(const STORED *restrict x, const REAL *restrict weight,
                                                            size n, int both, REAL *most, double *total) {
    Lanes m0 = all(lowest()), m1 = m0;
    *total = 0;
    for (size from = 0; from < n; from += BLOCK) {
        const size end = least(from + BLOCK, n);
        Lanes s0 = all(0), s1 = s0, s2 = s0, s3 = s0;
        size i = from;
        for (; i + 4 * LANES <= end; i += 4 * LANES) {
            Lanes v0 = load_lanes(x + i, LANES), v1 = load_lanes(x + i + LANES, LANES);
            Lanes v2 = load_lanes(x + i + 2 * LANES, LANES), v3 = load_lanes(x + i + 3 * LANES, LANES);
            if (weight) {
                v0 *= some(weight + i, LANES), v1 *= some(weight + i + LANES, LANES);
                v2 *= some(weight + i + 2 * LANES, LANES), v3 *= some(weight + i + 3 * LANES, LANES);
            }
            __builtin_prefetch(x + i + AHEAD, 0, 2), __builtin_prefetch(x + i + AHEAD + 2 * LANES, 0, 2);
            s0 += v0, s1 += v1, s2 += v2, s3 += v3;
            if (both) m0 = greater(m0, greater(v0, v1)), m1 = greater(m1, greater(v2, v3));
        }
        for (; i + LANES <= end; i += LANES) {
            Lanes v = load_lanes(x + i, LANES);
            if (weight) v *= some(weight + i, LANES);
            s0 += v;
            if (both) m0 = greater(m0, v);
        }
        s0 += s1, s2 += s3, s0 += s2;
        REAL sum = 0, high = lowest();
        for (; i < end; i++) {
            const REAL v = load(x[i]) * (weight ? weight[i] : 1);
            sum += v, high = max(v, high);
        }
        sum += sum_of(s0);
        if (both) m0 = greater(m0, all(high));
        *total += sum;
    }
    *most = both ? most_of(greater(m0, m1)) : 0;
}

/* Add the positions from .. to of one image, channels last. partial: C. */
static inline __attribute__((always_inline)) void pool_rows(const STORED *restrict x, const REAL *restrict weight, size C,
                                                           size from, size to, int both, REAL *restrict most,
                                                           REAL *restrict total, REAL *restrict partial) {
    for (size c = 0; c < C; c++) most[c] = lowest(), total[c] = 0;
    for (size start = from; start < to; start += 64) {
        const size end = least(start + 64, to);
        for (size c = 0; c < C; c++) partial[c] = 0;
        size p = start;
        for (; p + 4 <= end; p += 4) {
            const STORED *restrict a = x + p * C, *restrict b = a + C, *restrict d = b + C, *restrict e = d + C;
            const REAL wa = weight ? weight[p] : 1, wb = weight ? weight[p + 1] : 1;
            const REAL wd = weight ? weight[p + 2] : 1, we = weight ? weight[p + 3] : 1;
            for (size c = 0; c < C; c++) {
                const REAL va = load(a[c]) * wa, vb = load(b[c]) * wb, vd = load(d[c]) * wd, ve = load(e[c]) * we;
                partial[c] += (va + vb) + (vd + ve);
                if (both) most[c] = max(max(max(va, vb), max(vd, ve)), most[c]);
            }
        }
        for (; p < end; p++) {
            const REAL wp = weight ? weight[p] : 1;
            for (size c = 0; c < C; c++) {
                const REAL v = load(x[p * C + c]) * wp;
                partial[c] += v;
                if (both) most[c] = max(v, most[c]);
            }
        }
        for (size c = 0; c < C; c++) total[c] += partial[c];
    }
}

/* Whether one channel has a value that is none. */
static int has_nan(const Setting *s, const STORED *x, const REAL *weight, size c) {
    const size hw = s->h * s->w, step = s->last ? s->C : 1;
    x += s->last ? c : c * hw;
    for (size p = 0; p < hw; p++) {
        const REAL v = load(x[p * step]) * (weight ? weight[p] : 1);
        if (v != v) return 1;
    }
    return 0;
}

/* ---- maximum and mean over the channels ---- */

/* Positions p0 .. p1 of one image in planes. */
static inline __attribute__((always_inline)) void squeeze_planes(const STORED *restrict x, const REAL *restrict weight,
                                                                size C, size hw, size p0, size p1,
                                                                REAL *restrict most, REAL *restrict sum) {
    for (size from = p0; from < p1; from += BLOCK) {
        const size end = least(from + BLOCK, p1);
        for (size i = from; i < end; i++) most[i] = lowest(), sum[i] = 0;
        size c = 0;
        for (; c + 4 <= C; c += 4) {
            const STORED *restrict a = x + c * hw, *restrict b = a + hw, *restrict d = b + hw, *restrict e = d + hw;
            const REAL wa = weight ? weight[c] : 1, wb = weight ? weight[c + 1] : 1;
            const REAL wd = weight ? weight[c + 2] : 1, we = weight ? weight[c + 3] : 1;
            for (size i = from; i < end; i++) {
                const REAL va = load(a[i]) * wa, vb = load(b[i]) * wb, vd = load(d[i]) * wd, ve = load(e[i]) * we;
                sum[i] += (va + vb) + (vd + ve);
                most[i] = max(max(max(va, vb), max(vd, ve)), most[i]);
            }
        }
        for (; c < C; c++) {
            const REAL wc = weight ? weight[c] : 1;
            for (size i = from; i < end; i++) {
                const REAL v = load(x[c * hw + i]) * wc;
                sum[i] += v, most[i] = max(v, most[i]);
            }
        }
    }
}

/* The same, channels last. */
static inline __attribute__((always_inline)) void squeeze_rows(const STORED *restrict x, const REAL *restrict weight,
                                                              size C, size p0, size p1, REAL *restrict most,
                                                              REAL *restrict sum) {
    for (size p = p0; p < p1; p++) {
        const STORED *restrict row = x + p * C;
        Lanes m0 = all(lowest()), m1 = m0, s0 = all(0), s1 = s0;
        size c = 0;
        for (; c + 2 * LANES <= C; c += 2 * LANES) {
            Lanes a = load_lanes(row + c, LANES), b = load_lanes(row + c + LANES, LANES);
            if (weight) a *= some(weight + c, LANES), b *= some(weight + c + LANES, LANES);
            s0 += a, s1 += b, m0 = greater(m0, a), m1 = greater(m1, b);
        }
        REAL high = lowest(), total = 0;
        for (; c < C; c++) {
            const REAL v = load(row[c]) * (weight ? weight[c] : 1);
            total += v, high = max(v, high);
        }
        m0 = greater(m0, m1), s0 += s1;
        most[p] = max(most_of(m0), high), sum[p] = total + sum_of(s0);
    }
}

/* From sums to means; a maximum that passed over what is not a number becomes that. */
static void finish_squeeze(const Setting *s, const STORED *x, const REAL *weight, size p0, size p1, REAL *most,
                           REAL *sum) {
    const size hw = s->h * s->w, step = s->last ? 1 : hw;
    const REAL share = 1 / (REAL)s->C;
    for (size p = p0; p < p1; p++) {
        if (sum[p] != sum[p])
            for (size c = 0; c < s->C; c++) {
                const REAL v = load(x[(s->last ? p * s->C : p) + c * step]) * (weight ? weight[c] : 1);
                if (v != v) most[p] = v;
            }
        sum[p] *= share;
    }
}
