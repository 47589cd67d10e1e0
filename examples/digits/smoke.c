#include "smoke.h"

#include "compare.h"

#include <stdio.h>
#include <stdlib.h>

/* Blocks, layers, the whole model, and guidance; what is measured and what is scheduled. */
static const struct {
    const char *options; /* null = no cache */
    bool sequential;
} SETTINGS[] = {
    {NULL, false},
    {"fbcache,threshold=0.5,estimator=taylor", false},
    {"taylorseer,every=2,warmup_steps=1", false},
    {"taylorseer,every=2,warmup_steps=1,scope=model", true},
    {"fastercache,window=0:1,guidance.window=0:1,guidance.every=2,warmup_steps=2", true},
};
static const double LEAST = 60; /* dB */

/* Draws the pictures. False, with a message on stderr, if the cache cannot be had or met an error. */
static bool draw(const sampling *s, const char *options, float *images, sampling_cost *cost)
{
    dc_cache_t *cache = NULL;
    if (options && !(cache = open_cache(s, options))) {
        fprintf(stderr, "%s: %s\n", options, dc_last_error());
        return false;
    }
    sample(s, cache, images, cost);
    dc_stats_t stats = {.struct_size = sizeof stats};
    bool ok = !cache || (dc_cache_stats(cache, &stats) == DC_OK && stats.errors == 0);
    if (!ok)
        fprintf(stderr, "%s: the cache met an error\n", options);
    dc_cache_destroy(cache);
    return ok;
}

static bool same_pictures(const sampling *tested, const sampling *reference, const char *options)
{
    int pixels = tested->batch * DIT_PIXELS;
    float *images = allocate((size_t)pixels, sizeof(float)), *expected = allocate((size_t)pixels, sizeof(float));
    sampling_cost cost, expected_cost;
    bool ok = draw(tested, options, images, &cost) && draw(reference, options, expected, &expected_cost);
    if (ok) {
        double similarity = psnr(images, expected, pixels);
        double work = work_share(tested, &cost), expected_work = work_share(reference, &expected_cost);
        ok = similarity > LEAST && work == expected_work && (!options || work < 1);
        printf("%s  %5.1f dB, %3.0f%% of the work, %3.0f%% on the CPU: %s\n", ok ? "ok    " : "FAILED", similarity,
               100 * work, 100 * expected_work, options ? options : "no cache");
    }
    free(images), free(expected);
    return ok;
}

int smoke(const dit_model *model, const dit_model *reference)
{
    int failures = 0;
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++) {
        sampling tested = {.model = model, .steps = 4, .batch = 1, .guidance = 3, .sequential = SETTINGS[i].sequential};
        sampling on_cpu = tested;
        on_cpu.model = reference;
        failures += !same_pictures(&tested, &on_cpu, SETTINGS[i].options);
    }
    return failures ? 1 : 0;
}
