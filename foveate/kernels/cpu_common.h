/* What the passes on a CPU share: the type of the elements, vectors, the threads. */

#include <math.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t size;

/* ---- the type: STORED in the images, REAL in every sum, MASK as wide as REAL ---- */

#if defined(FLOAT64)
typedef double STORED, REAL;
typedef int64_t MASK;
static const REAL TINY = 1e-150;
static inline REAL load(STORED value) { return value; }
static inline STORED store(REAL value) { return value; }
static inline REAL root(REAL value) { return sqrt(value); }
#else
typedef float REAL;
typedef int32_t MASK;
static const REAL TINY = 1e-20f; /* far from the denormals, also times a gradient */
static inline REAL root(REAL value) { return sqrtf(value); }

#if defined(BFLOAT16)
typedef uint16_t STORED;
static inline REAL load(STORED stored) {
    const uint32_t bits = (uint32_t)stored << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
static inline STORED store(REAL value) { /* to the nearest, ties to even */
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (STORED)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
#else
typedef float STORED;
static inline REAL load(STORED value) { return value; }
static inline STORED store(REAL value) { return value; }
#endif
#endif

/* Of a NaN in a the other is taken, of a NaN in b the NaN: one instruction. */
static inline REAL max(REAL a, REAL b) { return a > b ? a : b; }

/* The value where all bits of the mask are set, else 0. */
static inline REAL keep(REAL value, MASK mask) {
    MASK bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits &= mask;
    __builtin_memcpy(&value, &bits, sizeof bits);
    return value;
}

/* ---- vectors of 32 bytes, whatever the processor has ---- */

typedef REAL Lanes __attribute__((vector_size(32)));
typedef MASK Bits __attribute__((vector_size(32)));
enum { LANES = 32 / sizeof(REAL) };

static inline Lanes all(REAL value) {
    Lanes out;
    for (int c = 0; c < LANES; c++) out[c] = value;
    return out;
}

/* max, lane by lane; NaN as there. */
static inline Lanes greater(Lanes a, Lanes b) {
    Lanes out;
    for (int c = 0; c < LANES; c++) out[c] = a[c] > b[c] ? a[c] : b[c];
    return out;
}

#if defined(FLOAT64)
static inline Lanes exponentials(Lanes x) {
    for (int c = 0; c < LANES; c++) x[c] = exp(x[c]);
    return x;
}
#else
/* exp(x) for x <= 0, to 2e-7; below -87 it stays at exp(-87). NaN stays NaN. */
static inline Lanes exponentials(Lanes x) {
    x = greater(all(-87), x);
    const Bits n = __builtin_convertvector(x * 1.44269504f - 0.5f, Bits);
    const Lanes r = x - __builtin_convertvector(n, Lanes) * 0.693147181f;
    const Lanes e = 1 + r * (1 + r * (0.5f + r * (0.166666672f + r * (0.0416664667f + r * (0.00833337288f
                    + r * 0.00139304355f)))));
    return e * (Lanes)((n + 127) << 23);
}
#endif

static inline Lanes keep_lanes(Lanes value, Bits mask) { return (Lanes)((Bits)value & mask); }

/* n elements; the other lanes are 0. */
static inline Lanes load_lanes(const STORED *x, ptrdiff_t n) {
    Lanes out = {0};
    if (n == LANES)
        for (int c = 0; c < LANES; c++) out[c] = load(x[c]);
    else
        for (int c = 0; c < n; c++) out[c] = load(x[c]);
    return out;
}

static inline Lanes some(const REAL *x, ptrdiff_t n) {
    Lanes out = {0};
    for (int c = 0; c < LANES; c++) out[c] = c < n ? x[c] : 0;
    return out;
}

static inline void add_lanes(double *sum, Lanes value, ptrdiff_t n) {
    if (n == LANES)
        for (int c = 0; c < LANES; c++) sum[c] += value[c];
    else
        for (int c = 0; c < n; c++) sum[c] += value[c];
}

static inline void store_lanes(STORED *x, Lanes value, ptrdiff_t n) {
    if (n == LANES)
        for (int c = 0; c < LANES; c++) x[c] = store(value[c]);
    else
        for (int c = 0; c < n; c++) x[c] = store(value[c]);
}

static inline size least(size a, size b) { return a < b ? a : b; }
static inline size parts(size whole, size part) { return (whole + part - 1) / part; }

/* ---- the work and the threads ---- */

/* GOMP_parallel of the OpenMP library that torch has loaded: one pool of threads, not two. NULL: one thread. */
typedef void (*parallel_fn)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*number_fn)(void); /* omp_get_thread_num of the same library */

/* B, C, g, h, w: of the images; last: the channels come last; scratch_bytes: of the scratch of one thread. */
typedef struct {
    size B, C, g, h, w, last, threads, scratch_bytes;
    char *scratch;
    parallel_fn parallel;
    number_fn number;
} Setting;

/* What a task reads and writes. */
typedef struct Arguments Arguments;

typedef void (*task_fn)(const Setting *, const Arguments *, size task, REAL *scratch);

/* One pass over the data: its tasks need what the step before wrote, not each other's. */
typedef struct {
    task_fn task;
    const Arguments *arguments;
    size tasks;
} Step;

enum { MOST = 256, STEPS = 5 }; /* threads; steps at a time */

/* Of each step each thread has a part of the tasks, always the same ones, so that what it wrote in the call before is in
   its own cache; one that is ready early takes from the others' parts. next: of each part, a line of the cache apart. */
typedef struct {
    const Setting *setting;
    const Step *steps;
    size count, seats;
    size done[STEPS][8], next[STEPS][MOST][8];
} Job;

/* Until the others are ready with what they have begun. Nobody waits for a thread that has not begun. */
static void wait_for(const size *done, size tasks) {
    for (size k = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < tasks; k++) {
        if (k > 20000) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
}

static void work(void *shared) {
    Job *job = shared;
    const Setting *s = job->setting;
    const size threads = least(s->threads, MOST), seat = __atomic_fetch_add(&job->seats, 1, __ATOMIC_RELAXED);
    const size own = s->number ? s->number() : seat;
    for (size k = 0; k < job->count; k++) {
        const Step step = job->steps[k];
        size ready = 0;
        for (size i = 0; i < threads; i++) {
            const size part = (own + i) % threads, end = (part + 1) * step.tasks / threads;
            for (;; ready++) {
                const size task = __atomic_fetch_add(&job->next[k][part][0], 1, __ATOMIC_RELAXED);
                if (task >= end) break;
                step.task(s, step.arguments, task, (REAL *)(s->scratch + seat * s->scratch_bytes));
            }
        }
        if (k + 1 == job->count) break; /* whoever called waits for all */
        __atomic_fetch_add(&job->done[k][0], ready, __ATOMIC_RELEASE);
        wait_for(&job->done[k][0], step.tasks);
    }
}

/* One step after the other, without going back to one thread in between. */
static void run_steps(const Setting *s, const Step *steps, size count) {
    Job job; /* not cleared as a whole: it is long */
    job.setting = s, job.steps = steps, job.count = count, job.seats = 0;
    const size threads = least(s->threads, MOST);
    size most = 0;
    for (size k = 0; k < count; k++) {
        job.done[k][0] = 0;
        for (size part = 0; part < threads; part++) job.next[k][part][0] = part * steps[k].tasks / threads;
        most = steps[k].tasks > most ? steps[k].tasks : most;
    }
    if (s->parallel && threads > 1 && most > 1)
        s->parallel(work, &job, (unsigned)threads, 0);
    else
        work(&job);
}

static void run(const Setting *s, size tasks, task_fn task, const Arguments *arguments) {
    const Step step = {task, arguments, tasks};
    run_steps(s, &step, 1);
}

/* Into how many strips a whole of so many parts is cut, so that each thread has work. */
static inline size strips_for(const Setting *s, size tasks, size whole) {
    return tasks < 2 * s->threads ? least(parts(2 * s->threads, tasks), whole) : 1;
}
