/* Calls cost nothing but their work: in a run like the one before it, no pass takes memory, gives any back or reads a clock,
 * whatever the method; and the run itself takes next to none. This program stands in for libc's allocator
 * and clocks and counts how they are used. */
#define _GNU_SOURCE /* clock_gettime is declared here, and so is libc's allocator under its other names */
#include "check.h"

#include <sys/time.h>
#include <time.h>

enum { BLOCKS = 12, KINDS = 4, LAYERS = BLOCKS * KINDS, BRANCHES = 4, WIDTH = 16, STEPS = 24, FEW = 2 };

/* ---- counts ---- */

typedef struct uses_t {
    long allocations, frees, clocks;
} uses_t;

static uses_t uses;

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void  __libc_free(void *);

void *malloc(size_t n)
{
    uses.allocations++;
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    uses.allocations++;
    return __libc_calloc(n, size);
}

void *realloc(void *old, size_t n)
{
    uses.allocations++;
    return __libc_realloc(old, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    uses.allocations++;
    return __libc_memalign(alignment, n);
}

int posix_memalign(void **out, size_t alignment, size_t n)
{
    uses.allocations++;
    *out = __libc_memalign(alignment, n);
    return *out == NULL;
}

void free(void *data)
{
    uses.frees += data != NULL;
    __libc_free(data);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    uses.clocks++;
    now->tv_sec = now->tv_nsec = 0;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    uses.clocks++;
    now->tv_sec = now->tv_usec = 0;
    return 0;
}

/* ---- an engine that makes every call there is ---- */

typedef struct method_t {
    const char *options;
    int         model, guided; /* whole-model calls; the unconditional branch may be left out */
} method_t;

static float x[BRANCHES * WIDTH], y[BRANCHES * WIDTH], cond[WIDTH], uncond[WIDTH];

static float timestep_of(uint32_t step)
{
    return 1000.0f - 40.0f * (float)step;
}

/* Rows of the branches of a pass. */
static dc_tensor_t stacked_rows(float *data, const dc_pass_t *pass)
{
    return rows_of(data, pass->n_branches, WIDTH, WIDTH);
}

static void work(float *data, uint32_t step)
{
    for (int k = 0; k < BRANCHES * WIDTH; k++) data[k] = 0.9f * data[k] + 0.01f * (float)((k + (int)step) % 7);
}

static void block(dc_cache_t *cache, const dc_pass_t *pass, uint32_t unit)
{
    dc_tensor_t in = stacked_rows(x, pass);
    if (dc_cache_before_block(cache, unit, &in, NULL, 1) == DC_COMPUTE) {
        work(x, pass->step);
        dc_cache_after_block(cache, unit, &in, 1);
    }
}

static void layers(dc_cache_t *cache, const dc_pass_t *pass)
{
    dc_tensor_t out = stacked_rows(y, pass);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        if (dc_cache_before_layer(cache, layer, layer % KINDS, &out, 1) == DC_COMPUTE) {
            work(y, pass->step);
            dc_cache_after_layer(cache, layer, &out, 1);
        }
}

static void one_pass(dc_cache_t *cache, const method_t *method, dc_pass_t *pass)
{
    for (int k = 0; k < BRANCHES * WIDTH; k++) x[k] = 1.0f + 0.1f * (float)k;
    dc_action_t before = dc_cache_peek(cache, pass, 1);
    CHECK_OK(dc_cache_begin_pass(cache, pass));
    dc_action_t now = dc_cache_peek(cache, NULL, 1);
    CHECK(before == DC_UNDECIDED || now == DC_UNDECIDED || before == now);
    if (method->model) {
        block(cache, pass, DC_MODEL);
    } else {
        for (uint32_t i = 0; i < BLOCKS; i++) block(cache, pass, i);
        layers(cache, pass);
    }
    dc_pass_t later = *pass;
    later.step = pass->step + 3 < STEPS ? pass->step + 3 : STEPS - 1;
    later.timestep = timestep_of(later.step);
    if (later.step > pass->step) CHECK(dc_cache_peek(cache, &later, 1) <= DC_UNDECIDED); /* what lies between is played */
    CHECK_OK(dc_cache_end_pass(cache));
}

static void guidance(dc_cache_t *cache, const dc_pass_t *like)
{
    dc_pass_t pass = *like;
    dc_tensor_t c = rows_of(cond, 4, WIDTH / 4, WIDTH / 4), u = rows_of(uncond, 4, WIDTH / 4, WIDTH / 4);
    pass.n_branches = 1;
    pass.branches[0] = 1;
    if (dc_cache_before_uncond(cache, &pass, &c, &u) == DC_COMPUTE) CHECK_OK(dc_cache_after_uncond(cache, &pass, &c, &u));
}

/* All passes of a step: one for all branches, or one for each. */
static void one_step(dc_cache_t *cache, const method_t *method, uint32_t step, int stacked)
{
    dc_pass_t pass = pass_of(step, 0);
    pass.flags = DC_PASS_TIMESTEP;
    pass.timestep = timestep_of(step);
    if (stacked) {
        for (uint32_t b = 1; b < BRANCHES; b++) pass.branches[pass.n_branches++] = b;
        if (method->guided) pass.n_branches = 1;
        one_pass(cache, method, &pass);
    } else {
        for (uint32_t b = 0; b < BRANCHES; b++) {
            pass.branches[0] = b;
            if (!method->guided || b != 1) one_pass(cache, method, &pass);
        }
    }
    if (method->guided) guidance(cache, &pass);
}

static void open_run(dc_cache_t *cache)
{
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = STEPS;
    run.timestep_max = 1000.0f;
    CHECK_OK(dc_cache_begin_run(cache, &run));
}

/* ---- the claim ---- */

static void is_frugal(const method_t *method, int stacked)
{
    dc_engine_t engine = an_engine(BLOCKS, BRANCHES);
    engine.hooks = method->model ? DC_HOOK_MODEL : DC_HOOK_EACH | DC_HOOK_BLOCKS | DC_HOOK_LAYERS;
    if (method->guided) engine.hooks |= DC_HOOK_GUIDE;
    engine.n_layers = method->model ? 0 : LAYERS;
    engine.max_stacked = BRANCHES;
    dc_cache_t *cache = a_cache(&engine, method->options);
    open_run(cache);
    for (uint32_t step = 0; step < STEPS; step++) one_step(cache, method, step, stacked);
    CHECK_OK(dc_cache_end_run(cache));
    CHECK(uses.allocations > 0); /* they are seen */

    uses_t start = uses;
    open_run(cache);
    uses_t begun = uses;
    for (uint32_t step = 0; step < STEPS; step++) one_step(cache, method, step, stacked);
    uses_t end = uses;
    if (end.allocations != begun.allocations || end.frees != begun.frees || end.clocks != begun.clocks)
        fprintf(stderr, "%s, %s: %ld allocations, %ld frees, %ld clock reads\n", method->options,
                stacked ? "stacked" : "one by one", end.allocations - begun.allocations, end.frees - begun.frees,
                end.clocks - begun.clocks);
    CHECK(end.allocations == begun.allocations);
    CHECK(end.frees == begun.frees);
    CHECK(end.clocks == begun.clocks);
    CHECK(begun.allocations - start.allocations <= FEW);

    /* It was not idle. */
    dc_stats_t stats = stats_of(cache);
    CHECK(strcmp(method->options, "none") == 0 || stats.passes_skipped + stats.uncond_skipped > 0);
    CHECK(stats.passes == (uint64_t)STEPS * (stacked ? 1 : method->guided ? BRANCHES - 1 : BRANCHES));
    CHECK(stats.errors == 0);
    dc_cache_destroy(cache);
}

int main(void)
{
    static const method_t methods[] = {
        {"none", 0, 0},
        {"fbcache,threshold=0.5", 0, 0},
        {"fbcache,threshold=0.5,estimator=taylor", 0, 0},
        {"fbcache,threshold=0.5,estimator=foca", 0, 0},
        {"fbcache,threshold=0.5,lagged=1", 0, 0},
        {"fbcache,threshold=0.5,share=1", 0, 0},
        {"fbcache,threshold=0.5,history_dtype=bf16", 0, 0},
        {"fbcache,threshold=0.5,compat=diffusers", 0, 0},
        {"dbcache,threshold=0.5", 0, 0},
        {"mask,mask=110010010010010010010011", 0, 0},
        {"mask,scope=block,mask=110010010010010010010011", 0, 0},
        {"mask,scope=model,on_residual=0,mask=110010010010010010010011", 1, 0},
        {"taylorseer", 0, 0},
        {"taylorseer,compat=diffusers", 0, 0},
        {"taylorseer,scope=block,on_residual=1", 0, 0},
        {"hicache", 0, 0},
        {"pab", 0, 0},
        {"pab-latte", 0, 0},
        {"fastercache", 0, 1},
        {"fastercache,compat=diffusers", 0, 1},
    };
    if (on_cuda()) return 77; /* a driver has its own ways */
    for (size_t k = 0; k < sizeof methods / sizeof *methods; k++) {
        is_frugal(&methods[k], 0);
        is_frugal(&methods[k], 1);
    }
    return 0;
}
