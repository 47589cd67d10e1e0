#include "bench.h"

#include "compare.h"

#include <stdio.h>
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

enum { MOST_PAIRS = 99, PAGE = 4096 };
static const char SECTION[] = "digits, end to end";

static const char NEVER_SKIPS[] = "fbcache,threshold=1e-9";
static const char SKIPS_HALF[] = "fbcache,threshold=0.07";

/* A row: the median of the n values, their quartiles, and what is asked of it. */
static void report(const char *figure, double *values, int n, const char *unit, const char *target, const char *rival)
{
    const char *path = getenv("DC_FIGURES");
    FILE *file = path ? fopen(path, "a") : NULL;
    double middle = median(values, n), low = values[n / 4], high = values[3 * n / 4];
    printf("%s: %s: %.4f %s (%.4f to %.4f) %s %s\n", SECTION, figure, middle, unit, low, high, target, rival);
    if (file) {
        fprintf(file, "%s\t%s\t%.9g\t%.9g\t%.9g\t%s\t%s\t%s\n", SECTION, figure, middle, low, high, unit, target, rival);
        fclose(file);
    }
}

/* ---- time ---- */

typedef struct {
    sampling_cost plain, cached;
} pair;

/* A run without a cache and one with it, side by side, a step of each in turn: what is looked for is smaller than what the
 * pace of a machine changes by within a run. */
static pair run_pair(const sampling *s, dc_cache_t *cache, float *images)
{
    pair p;
    sampling_run *plain = begin_sampling(s, NULL, &p.plain), *cached = begin_sampling(s, cache, &p.cached);
    for (int step = 0; step < s->steps; step++) { /* neither is always second */
        sample_step(step % 2 ? cached : plain);
        sample_step(step % 2 ? plain : cached);
    }
    end_sampling(plain, images);
    end_sampling(cached, images);
    return p;
}

/* n pairs, after one to warm up. False if the options are no good. */
static bool run_pairs(const sampling *s, const char *options, int n, pair *pairs)
{
    dc_cache_t *cache = open_cache(s, options);
    float *images = allocate((size_t)s->batch * DIT_PIXELS, sizeof(float));
    for (int k = -1; k < n && cache; k++)
        pairs[k < 0 ? 0 : k] = run_pair(s, cache, images);
    if (!cache)
        fprintf(stderr, "%s\n", dc_last_error());
    dc_cache_destroy(cache);
    free(images);
    return cache != NULL;
}

static bool bench_checks(const sampling *s, int n, pair *pairs)
{
    double overhead[MOST_PAIRS];
    if (!run_pairs(s, NEVER_SKIPS, n, pairs))
        return false;
    for (int k = 0; k < n; k++)
        overhead[k] = 100 * (pairs[k].cached.seconds / pairs[k].plain.seconds - 1);
    report("FBCache that never skips, over no cache", overhead, n, "%", "<=1", "no cache");
    return true;
}

static bool bench_skips(const sampling *s, int n, pair *pairs)
{
    double of_ideal[MOST_PAIRS], speed_up[MOST_PAIRS], skipped[MOST_PAIRS];
    if (!run_pairs(s, SKIPS_HALF, n, pairs))
        return false;
    for (int k = 0; k < n; k++) {
        const sampling_cost *plain = &pairs[k].plain, *cached = &pairs[k].cached;
        double left_out = 1 - (double)cached->blocks / (double)plain->blocks;
        of_ideal[k] = (plain->seconds - left_out * plain->block_seconds) / cached->seconds;
        speed_up[k] = plain->seconds / cached->seconds;
        skipped[k] = 100 * left_out;
    }
    report("FBCache that skips half, of its ideal speed-up", of_ideal, n, "x", ">=0.97", "no cache, less the blocks");
    report("... its speed-up", speed_up, n, "x", "", "no cache");
    report("... blocks skipped", skipped, n, "%", "", "");
    return true;
}

/* ---- memory ---- */

/* Bytes of this process that are in memory and its own; 0 where that is not told. */
static double resident(void)
{
#ifdef __GLIBC__
    malloc_trim(0); /* what is free goes back to the system: a tensor that comes to lie there is seen */
#endif
    FILE *file = fopen("/proc/self/smaps_rollup", "r"); /* counts, where /proc/self/status estimates */
    char line[128];
    double kib = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "Anonymous: %lf kB", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return 1024 * kib;
}

/* What a cache adds to the process, beside what the library said it would take. */
static bool bench_memory(const sampling *s, const char *options)
{
    float *images = allocate((size_t)s->batch * DIT_PIXELS, sizeof(float));
    sampling_cost cost;
    sample(s, NULL, images, &cost); /* all else that a run touches */
    double before = resident();
    dc_cache_t *cache = open_cache(s, options);
    if (!cache || before == 0) {
        fprintf(stderr, "%s\n", cache ? "the memory of this process cannot be told" : dc_last_error());
        free(images);
        return cache != NULL;
    }
    sample(s, cache, images, &cost);
    double needed = (double)memory_needed(s, options), added = resident() - before, share = added / needed;
    dc_stats_t stats = {.struct_size = sizeof stats};
    bool ok = dc_cache_stats(cache, &stats) == DC_OK;
    char figure[96], target[32], rival[64];
    snprintf(figure, sizeof figure, "resident memory over dc_memory_needed, %s", options);
    /* Where a tensor begins and ends on a page of its own, that is up to two pages more; and some for the cache itself. */
    snprintf(target, sizeof target, "<=%.4f", 1 + (double)(2 * stats.allocations + 4) * PAGE / needed);
    snprintf(rival, sizeof rival, "%.0f KiB in %llu tensors", needed / 1024, (unsigned long long)stats.allocations);
    report(figure, &share, 1, "x", target, rival);
    dc_cache_destroy(cache);
    free(images);
    return ok;
}

int bench(const sampling *s, int repeat)
{
    pair *pairs = allocate(MOST_PAIRS, sizeof *pairs);
    bool ok = bench_checks(s, repeat, pairs) && bench_skips(s, repeat, pairs) && bench_memory(s, SKIPS_HALF) &&
              bench_memory(s, "taylorseer");
    free(pairs);
    return ok ? 0 : 1;
}
