#define _POSIX_C_SOURCE 200809L
#include "sampler.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The branches of classifier-free guidance. The cache keeps a state for each. */
enum { COND = 0, UNCOND = 1, BRANCHES = 2 };

/* What the passes of one run share. Rows: those of the pass's first branch, then those of the second. */
typedef struct {
    const sampling *set;
    dc_cache_t *cache;
    sampling_cost *cost;
    float *images;    /* [rows][DIT_PIXELS] what the model is given */
    float *t;         /* [rows] */
    int *labels;      /* [rows] */
    float *x;         /* [rows][DIT_TOKENS][DIT_WIDTH] hidden states */
    float *condition; /* [rows][DIT_WIDTH] */
    bool warned;
} run_state;

void *allocate(size_t count, size_t size)
{
    void *memory = malloc(count * size);
    if (!memory) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return memory;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- noise ---- */

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Standard normal, by Box and Muller. */
static void gaussian(uint64_t seed, uint64_t picture, float *out, int n)
{
    uint64_t state = seed;
    state = splitmix64(&state) ^ picture << 32;
    for (int i = 0; i < n; i += 2) {
        double u = ((double)(splitmix64(&state) >> 11) + 0.5) * 0x1p-53, v = (double)(splitmix64(&state) >> 11) * 0x1p-53;
        double radius = sqrt(-2 * log(u)), angle = 6.283185307179586 * v;
        out[i] = (float)(radius * cos(angle));
        if (i + 1 < n)
            out[i + 1] = (float)(radius * sin(angle));
    }
}

/* ---- the cache ---- */

/* Hidden states of `rows` pictures, as the cache sees them. */
static dc_tensor_t hidden_states(float *x, int rows)
{
    return (dc_tensor_t){.data = x, .dtype = DC_F32, .ndim = 3, .shape = {rows, DIT_TOKENS, DIT_WIDTH}};
}

dc_cache_t *open_cache(const sampling *s, const char *text)
{
    dc_engine_t engine;
    dc_options_t options;
    dc_cache_t *cache = NULL;
    if (dc_engine_init(&engine, sizeof engine) || dc_options_init(&options, sizeof options, NULL) ||
        dc_options_parse(&options, text))
        return NULL;
    engine.hooks = DC_HOOK_EACH;
    engine.n_blocks = DIT_BLOCKS;
    engine.n_branches = BRANCHES;
    engine.max_stacked = s->sequential ? 1 : BRANCHES;
    engine.n_threads = 1; /* as the engine itself */
    snprintf(engine.label, sizeof engine.label, "digits");
    return dc_cache_create(&engine, &options, &cache) == DC_OK ? cache : NULL;
}

/* An error of the cache never spoils a picture, it only costs time: say so once and go on. */
static void warn(run_state *r, dc_status_t status)
{
    if (status != DC_OK && !r->warned)
        fprintf(stderr, "the cache is idle: %s: %s\n", dc_status_name(status), dc_last_error());
    r->warned = r->warned || status != DC_OK;
}

/* ---- one evaluation of the model ---- */

static void run_block(run_state *r, uint32_t i, int rows)
{
    double start = now();
    dit_block(r->set->model, (int)i, r->x, r->condition, rows);
    r->cost->block_seconds += now() - start;
    r->cost->blocks++;
}

static dc_status_t run_blocks(run_state *r, const dc_pass_t *pass, int rows)
{
    dc_cache_t *cache = r->cache;
    dc_tensor_t x = hidden_states(r->x, rows);
    (void)dc_cache_begin_pass(cache, pass); /* what went wrong here, end_pass says too */
    for (uint32_t i = 0; i < DIT_BLOCKS; i++)
        if (dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE) {
            run_block(r, i, rows);
            dc_cache_after_block(cache, i, &x, 1);
        }
    return dc_cache_end_pass(cache);
}

/* The velocities of `images` in the pass's branches: velocity[n_branches][batch][DIT_PIXELS]. */
static void evaluate(run_state *r, dc_pass_t pass, float t, const float *images, float *velocity)
{
    const sampling *s = r->set;
    int rows = (int)pass.n_branches * s->batch;
    for (int row = 0; row < rows; row++) {
        int picture = row % s->batch;
        memcpy(r->images + row * DIT_PIXELS, images + picture * DIT_PIXELS, sizeof(float) * DIT_PIXELS);
        r->labels[row] = pass.branches[row / s->batch] == COND ? picture % 10 : DIT_NULL;
        r->t[row] = t;
    }
    dit_embed(s->model, r->images, r->t, r->labels, rows, r->x, r->condition);
    dc_status_t status = run_blocks(r, &pass, rows);
    if (status == DC_ERR_DISCARD) { /* some blocks were left out, but their result was not restored */
        pass.flags |= DC_PASS_COMPUTE;
        dit_embed(s->model, r->images, r->t, r->labels, rows, r->x, r->condition);
        status = run_blocks(r, &pass, rows);
    }
    warn(r, status);
    dit_velocity(s->model, r->x, r->condition, rows, velocity);
}

/* ---- a sampling run ---- */

static void begin_run(run_state *r, const float *times)
{
    dc_tensor_t rows = hidden_states(NULL, r->set->batch); /* of one branch */
    dc_shape_t shape = {.hook = DC_HOOK_EACH, .branch = UINT32_MAX, .count = 1, .tensors = &rows, .n = 1};
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = (uint32_t)r->set->steps;
    run.timesteps = times;
    run.timestep_max = 1;
    run.n_shapes = 1; /* so all memory is taken here */
    run.shapes = &shape;
    warn(r, dc_cache_begin_run(r->cache, &run));
}

void sample(const sampling *s, dc_cache_t *cache, float *images, sampling_cost *cost)
{
    double start = now();
    size_t batch = (size_t)s->batch, rows = BRANCHES * batch;
    *cost = (sampling_cost){0};
    run_state r = {.set = s, .cache = cache, .cost = cost};
    r.images = allocate(rows * DIT_PIXELS, sizeof(float));
    r.t = allocate(rows, sizeof(float));
    r.labels = allocate(rows, sizeof(int));
    r.x = allocate(rows * DIT_TOKENS * DIT_WIDTH, sizeof(float));
    r.condition = allocate(rows * DIT_WIDTH, sizeof(float));
    float *uncond = allocate(rows * DIT_PIXELS, sizeof(float)), *cond = uncond + batch * DIT_PIXELS;
    float *times = allocate((size_t)s->steps + 1, sizeof(float));
    for (int step = 0; step <= s->steps; step++)
        times[step] = 1 - (float)step / (float)s->steps;
    for (size_t k = 0; k < batch; k++)
        gaussian(s->seed, k, images + k * DIT_PIXELS, DIT_PIXELS);

    begin_run(&r, times);
    for (int step = 0; step < s->steps; step++) {
        dc_pass_t pass = DC_PASS_INIT;
        pass.step = (uint32_t)step;
        if (s->sequential) {
            pass.branches[0] = COND;
            evaluate(&r, pass, times[step], images, cond);
            pass.branches[0] = UNCOND;
            evaluate(&r, pass, times[step], images, uncond);
        } else {
            pass.n_branches = 2;
            pass.branches[0] = UNCOND;
            pass.branches[1] = COND;
            evaluate(&r, pass, times[step], images, uncond); /* and cond, which follows it */
        }
        float dt = times[step + 1] - times[step];
        for (size_t i = 0; i < batch * DIT_PIXELS; i++)
            images[i] += dt * (uncond[i] + s->guidance * (cond[i] - uncond[i]));
    }
    (void)dc_cache_end_run(cache);

    free(r.images), free(r.t), free(r.labels), free(r.x), free(r.condition), free(uncond), free(times);
    cost->seconds = now() - start;
}
