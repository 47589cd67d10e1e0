/* Draws digits, with or without a cache: the part of this program that an engine author copies from. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "dit.h"

#include <diffcache.h>
#include <stdint.h>

typedef struct {
    const dit_model *model;
    int steps;       /* Euler steps from t = 1 to t = 0 */
    int batch;       /* pictures; picture k shows digit k % 10 */
    float guidance;  /* 1 = none */
    uint64_t seed;   /* picture k starts from the same noise in a batch of any size */
    bool sequential; /* classifier-free guidance as two passes a step, not as one stacked pass */
} sampling;

typedef struct {
    double seconds;       /* the whole run */
    double block_seconds; /* of that, inside dit_block */
    uint64_t blocks;      /* calls of dit_block */
} sampling_cost;

/* A cache for these samplings with the user's options, for example "fbcache,threshold=0.1".
 * Null if they are no good: dc_last_error() says why. */
dc_cache_t *open_cache(const sampling *s, const char *options);

/* Draws images[batch][DIT_PIXELS], about -1..1. cache: null = none. */
void sample(const sampling *s, dc_cache_t *cache, float *images, sampling_cost *cost);

/* malloc that ends the program instead of returning null. */
void *allocate(size_t count, size_t size);

#endif
