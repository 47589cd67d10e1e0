/* Draws digits, with or without a cache: the part of this program that an engine author copies from. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "dit.h"

#include <diffcache.h>
#include <stdint.h>

typedef struct {
    const dit_model *model;
    int steps;       /* Euler steps from t = 1 to t = 0, at most DC_MAX_STEPS */
    int batch;       /* pictures; picture k shows digit k % 10 */
    float guidance;  /* 1 = none */
    uint64_t seed;   /* picture k starts from the same noise in a batch of any size */
    bool sequential; /* classifier-free guidance as two passes a step, not as one stacked pass */
} sampling;

typedef struct {
    double seconds;                 /* the whole run */
    double block_seconds;           /* of that, in blocks */
    double part_seconds[DIT_PARTS]; /* of that, in attention and in MLPs */
    uint64_t blocks;                /* blocks entered: each asks about both its parts */
    uint64_t parts[DIT_PARTS];      /* attentions and MLPs that ran */
    int unconds;                    /* steps that evaluated the unconditional branch */
    uint64_t work[DC_MAX_STEPS];    /* multiply-adds of each step */
} sampling_cost;

/* Multiply-adds of a step in which nothing is left out, and what share of all steps' a run did. */
uint64_t full_work(const sampling *s);
double work_share(const sampling *s, const sampling_cost *cost);

/* A cache for these samplings with the user's options, for example "fbcache,threshold=0.1".
 * Null if they are no good: dc_last_error() says why. */
dc_cache_t *open_cache(const sampling *s, const char *options);

/* What the cache of such a sampling will hold, in bytes; 0 if the options are no good. */
uint64_t memory_needed(const sampling *s, const char *options);

/* Draws images[batch][DIT_PIXELS], about -1..1. cache: null = none. */
void sample(const sampling *s, dc_cache_t *cache, float *images, sampling_cost *cost);

/* The same in pieces: as many steps as `s` says, between a beginning and an end. */
typedef struct sampling_run sampling_run;
sampling_run *begin_sampling(const sampling *s, dc_cache_t *cache, sampling_cost *cost);
void sample_step(sampling_run *run);
void end_sampling(sampling_run *run, float *images);

#endif
