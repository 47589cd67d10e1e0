/* Claims and a toy model, shared by the C tests. Include it first.
 *
 * A test is a program. A claim that does not hold prints itself with the library's last error and ends the
 * program with 1. The toy model checks every pass it runs: a skipped pass must hold exactly what went into the
 * span plus what the last computed pass added to it. */
#ifndef DIFFCACHE_TESTS_CHECK_H
#define DIFFCACHE_TESTS_CHECK_H

#include "device.h"

#include <math.h>

/* ---- claims ---- */

#define CHECK(claim)                                                                                        \
    do {                                                                                                    \
        if (!(claim)) check_failed(__FILE__, __LINE__, #claim);                                             \
    } while (0)

#define CHECK_STATUS(call, wanted) check_status(__FILE__, __LINE__, #call, (call), (wanted))
#define CHECK_OK(call)             CHECK_STATUS(call, DC_OK)

/* The last error says `word`. */
#define CHECK_SAYS(word)                                                                                    \
    do {                                                                                                    \
        if (strstr(dc_last_error(), (word)) == NULL) check_failed(__FILE__, __LINE__, "the text says: " word); \
    } while (0)

static inline void check_failed(const char *file, int line, const char *claim)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n  last error: %s\n", file, line, claim, dc_last_error());
    exit(1);
}

static inline void check_status(const char *file, int line, const char *call, dc_status_t got, dc_status_t wanted)
{
    if (got != wanted) {
        fprintf(stderr, "%s:%d: %s is %s, wanted %s\n  last error: %s\n", file, line, call, dc_status_name(got),
                dc_status_name(wanted), dc_last_error());
        exit(1);
    }
}

static inline int close_to(double got, double wanted)
{
    return fabs(got - wanted) <= 1e-5 * (1.0 + fabs(wanted));
}

/* How often a hammering test repeats: a hundredth where every instruction is interpreted. */
static inline long often(long times)
{
    return getenv("DIFFCACHE_TEST_LIGHT") == NULL ? times : times / 100;
}

/* ---- short forms ---- */

#define UNLIMITED UINT32_MAX

/* Switches the rails off, so that a test sees only the rule it is about. */
#define NO_RAILS "warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,max_gain=none,max_age=none"

/* An engine of `blocks` blocks that calls for every block. */
static inline dc_engine_t an_engine(uint32_t blocks, uint32_t branches)
{
    dc_engine_t engine;
    CHECK_OK(dc_engine_init(&engine, sizeof engine));
    engine.hooks = DC_HOOK_EACH | DC_HOOK_BLOCKS;
    engine.n_blocks = blocks;
    engine.n_branches = branches;
    engine.n_threads = 1;
    put_on_backend(&engine);
    return engine;
}

static inline dc_options_t options_of(const char *text)
{
    dc_options_t options;
    CHECK_OK(dc_options_init(&options, sizeof options, NULL));
    CHECK_OK(dc_options_parse(&options, text));
    return options;
}

static inline dc_cache_t *a_cache(const dc_engine_t *engine, const char *text)
{
    dc_options_t options = options_of(text);
    dc_cache_t *cache = NULL;
    CHECK_OK(dc_cache_create(engine, &options, &cache));
    CHECK(cache != NULL);
    return cache;
}

/* Opens a run of `steps` steps; 0 = unknown. */
static inline void begin_run(dc_cache_t *cache, uint32_t steps)
{
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = steps;
    CHECK_OK(dc_cache_begin_run(cache, &run));
}

static inline dc_pass_t pass_of(uint32_t step, uint32_t branch)
{
    dc_pass_t pass = DC_PASS_INIT;
    pass.step = step;
    pass.branches[0] = branch;
    return pass;
}

/* A dense row of `n` floats. */
static inline dc_tensor_t floats(float *data, int64_t n)
{
    dc_tensor_t tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.data = data;
    tensor.dtype = DC_F32;
    tensor.ndim = 1;
    tensor.shape[0] = n;
    return tensor;
}

/* `rows` rows of `columns` floats, `stride` floats apart. */
static inline dc_tensor_t rows_of(float *data, int64_t rows, int64_t columns, int64_t stride)
{
    dc_tensor_t tensor = floats(data, rows);
    tensor.ndim = 2;
    tensor.shape[1] = columns;
    tensor.stride[0] = stride;
    tensor.stride[1] = 1;
    return tensor;
}

static inline dc_stats_t stats_of(const dc_cache_t *cache)
{
    dc_stats_t stats;
    memset(&stats, 0, sizeof stats);
    stats.struct_size = (uint32_t)sizeof stats;
    CHECK_OK(dc_cache_stats(cache, &stats));
    return stats;
}

/* The newest record of the trace. */
static inline dc_trace_t newest(const dc_cache_t *cache)
{
    size_t n = 0, again = 0;
    CHECK_OK(dc_cache_trace(cache, NULL, sizeof(dc_trace_t), 0, &n));
    CHECK(n > 0);
    dc_trace_t *records = malloc(n * sizeof *records), record;
    CHECK(records != NULL);
    CHECK_OK(dc_cache_trace(cache, records, sizeof *records, n, &again));
    CHECK(again == n);
    record = records[n - 1];
    free(records);
    return record;
}

/* ---- the toy model ---- */

enum { TOY = 8 }; /* elements of its one tensor */

/* What block `i` does. Its residual depends on its input: reuse of a wrong value shows. */
static inline void toy_block(float *x, size_t n, uint32_t i)
{
    for (size_t j = 0; j < n; j++) x[j] = x[j] * (1.0f + 0.01f * (float)(i + 1)) + 0.1f;
}

/* A stack of blocks with a cache, and what its last computed pass added to the skippable span. */
typedef struct toy_t {
    dc_cache_t *cache;
    uint32_t    blocks, front, back;
    float       x[TOY], kept[TOY];
} toy_t;

/* What became of a pass. `decision` is 's' if the span was skipped, else 'C'. */
typedef struct outcome_t {
    dc_status_t began, ended;
    char        decision;
} outcome_t;

static inline toy_t a_toy(dc_cache_t *cache, uint32_t blocks, uint32_t front, uint32_t back)
{
    toy_t toy;
    memset(&toy, 0, sizeof toy);
    toy.cache = cache;
    toy.blocks = blocks;
    toy.front = front;
    toy.back = back;
    return toy;
}

/* The toy with fbcache, every rail off, and a threshold that slow changes stay below. */
static inline toy_t an_fbcache_toy(uint32_t blocks, uint32_t branches)
{
    dc_engine_t engine = an_engine(blocks, branches);
    return a_toy(a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS), blocks, 1, 0);
}

static inline void toy_input(toy_t *toy, float base)
{
    for (int j = 0; j < TOY; j++) toy->x[j] = base + 0.1f * (float)j;
}

/* Walks the blocks as an engine does; true if the span was skipped. */
static inline int toy_walk(toy_t *toy)
{
    int skipped = 0;
    for (uint32_t i = 0; i < toy->blocks; i++) {
        dc_tensor_t x = floats(toy->x, TOY);
        if (dc_cache_before_block(toy->cache, i, &x, NULL, 1) == DC_COMPUTE) {
            toy_block(toy->x, TOY, i);
            dc_cache_after_block(toy->cache, i, &x, 1);
        } else {
            skipped = 1;
        }
    }
    return skipped;
}

/* Checks what toy_walk left behind for this input, and keeps what the span added if it was computed and learnt. */
static inline void toy_verify(toy_t *toy, float base, int skipped, int learnt)
{
    toy_t shadow = *toy;
    float start[TOY];
    toy_input(&shadow, base);
    for (uint32_t i = 0; i < toy->front; i++) toy_block(shadow.x, TOY, i);
    memcpy(start, shadow.x, sizeof start);
    if (skipped) {
        for (int j = 0; j < TOY; j++) shadow.x[j] += toy->kept[j];
    } else {
        for (uint32_t i = toy->front; i < toy->blocks - toy->back; i++) toy_block(shadow.x, TOY, i);
        if (learnt)
            for (int j = 0; j < TOY; j++) toy->kept[j] = shadow.x[j] - start[j];
    }
    for (uint32_t i = toy->blocks - toy->back; i < toy->blocks; i++) toy_block(shadow.x, TOY, i);
    for (int j = 0; j < TOY; j++) CHECK(close_to(toy->x[j], shadow.x[j]));
}

/* One whole pass from the input `base`; its output is checked unless the library disowns it. */
static inline outcome_t toy_pass(toy_t *toy, const dc_pass_t *pass, float base)
{
    outcome_t outcome;
    int skipped;
    toy_input(toy, base);
    outcome.began = dc_cache_begin_pass(toy->cache, pass);
    skipped = toy_walk(toy);
    outcome.ended = dc_cache_end_pass(toy->cache);
    outcome.decision = skipped ? 's' : 'C';
    if (outcome.ended != DC_ERR_DISCARD) toy_verify(toy, base, skipped, outcome.ended == DC_OK);
    return outcome;
}

/* A pass without a hitch; returns its decision. */
static inline char toy_step(toy_t *toy, uint32_t step, float base)
{
    dc_pass_t pass = pass_of(step, 0);
    outcome_t outcome = toy_pass(toy, &pass, base);
    CHECK_OK(outcome.began);
    CHECK_OK(outcome.ended);
    return outcome.decision;
}

/* The decisions of steps `from` .. `to` - 1 on slowly changing inputs, "CCsC...". */
static inline const char *toy_decisions(toy_t *toy, uint32_t from, uint32_t to, char text[64])
{
    for (uint32_t step = from; step < to; step++) text[step - from] = toy_step(toy, step, 1.0f + 0.001f * (float)step);
    text[to - from] = '\0';
    return text;
}

#endif
