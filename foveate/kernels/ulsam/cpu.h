/* ULSAM on a CPU: what its tasks are cut into and what they get. See cpu.c. */

#include "../cpu_common.h"

/* Channels that are taken together where they come last, so that their rows stay in the first cache: BLOCK; in the
   backward pass, which keeps more, LINE. Of planes: NARROW channels in one task, STRIP elements of each at a time. */
enum { BLOCK = 128, ENOUGH = 64, LINE = 16, NARROW = 32, STRIP = 4096 };

/* What a task reads and writes; each uses some of it. The maps are (B, g, h, w). */
struct Arguments {
    const STORED *x, *dy;
    STORED *out;
    const REAL *folded, *map, *dscore, *centre, *affine, *by_group;
    REAL *score, *made, *sums;
    double *partial;
    size strips; /* parts of the rows, or of the positions */
};
