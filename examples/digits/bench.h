/* What the cache costs this engine, for the table of `make bench`. */
#ifndef BENCH_H
#define BENCH_H

#include "sampler.h"

/* Runs with a cache and without are timed in turn, `repeat` times. A row for each figure on stdout, and to the file that the environment
 * variable DC_FIGURES names. Returns an exit code. */
int bench(const sampling *s, int repeat);

#endif
