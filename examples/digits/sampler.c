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
    uint64_t *work;    /* of the current step */
    float *images;     /* [rows][DIT_PIXELS] what the model is given */
    float *t;          /* [rows] */
    int *labels;       /* [rows] */
    float *condition;  /* [rows][DIT_WIDTH] */
    float *modulation; /* [rows][DIT_MODULATION] of the current block */
    float *x;          /* [rows][DIT_TOKENS][DIT_WIDTH] hidden states */
    float *out;        /* [rows][DIT_TOKENS][DIT_WIDTH] of an attention or MLP */
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

/* Hidden states of `rows` pictures, and what attentions and MLPs put out, as the cache sees them. */
static dc_tensor_t hidden_states(float *x, int rows)
{
    return (dc_tensor_t){.data = x, .dtype = DC_F32, .ndim = 3, .shape = {rows, DIT_TOKENS, DIT_WIDTH}};
}

/* Pictures and velocities. Guidance looks at the last two dimensions as height and width. */
static dc_tensor_t pictures(float *pixels, int rows)
{
    return (dc_tensor_t){.data = pixels, .dtype = DC_F32, .ndim = 3, .shape = {rows, DIT_SIDE, DIT_SIDE}};
}

dc_cache_t *open_cache(const sampling *s, const char *text)
{
    dc_engine_t engine;
    dc_options_t options;
    dc_cache_t *cache = NULL;
    if (dc_engine_init(&engine, sizeof engine) || dc_options_init(&options, sizeof options, NULL) ||
        dc_options_parse(&options, text))
        return NULL;
    engine.hooks = DC_HOOK_EACH | DC_HOOK_LAYERS | DC_HOOK_MODEL | DC_HOOK_GUIDE; /* all that are called below */
    engine.n_blocks = DIT_BLOCKS;
    engine.n_layers = DIT_BLOCKS * DIT_PARTS;
    engine.n_branches = BRANCHES;
    engine.uncond_branch = UNCOND;
    engine.max_stacked = s->sequential ? 1 : BRANCHES;
    engine.n_threads = 1; /* as the engine itself */
    snprintf(engine.label, sizeof engine.label, "digits");
    return dc_cache_create(&engine, &options, &cache) == DC_OK ? cache : NULL;
}

/* What one branch's tensors look like, so that all memory is taken here and none later. */
static dc_status_t begin_run(run_state *r, const float *times)
{
    dc_tensor_t hidden = hidden_states(NULL, r->set->batch), picture = pictures(NULL, r->set->batch);
    const uint32_t ANY = UINT32_MAX;
    dc_shape_t shapes[] = {
        {.hook = DC_HOOK_EACH, .branch = ANY, .tensors = &hidden, .n = 1},
        {.hook = DC_HOOK_LAYERS, .branch = ANY, .tensors = &hidden, .n = 1, .kind = DC_KIND_SPATIAL, .count = DIT_BLOCKS},
        {.hook = DC_HOOK_LAYERS, .branch = ANY, .tensors = &hidden, .n = 1, .kind = DC_KIND_MLP, .count = DIT_BLOCKS},
        {.hook = DC_HOOK_MODEL, .branch = ANY, .tensors = &picture, .n = 1},
        {.hook = DC_HOOK_GUIDE, .branch = ANY, .tensors = &picture, .n = 1},
    };
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = (uint32_t)r->set->steps;
    run.timesteps = times;
    run.timestep_max = 1;
    run.shapes = shapes;
    run.n_shapes = sizeof shapes / sizeof *shapes;
    return dc_cache_begin_run(r->cache, &run);
}

/* An error of the cache never spoils a picture, it only costs time: say so once and go on. */
static void warn(run_state *r, bool failed)
{
    if (failed && !r->warned)
        fprintf(stderr, "the cache is idle: %s\n", dc_last_error());
    r->warned = r->warned || failed;
}

/* ---- one evaluation of the model ---- */

uint64_t full_work(const sampling *s)
{
    uint64_t block = DIT_WORK_MODULATE + DIT_WORK_ATTENTION + DIT_WORK_MLP;
    return (DIT_WORK_EMBED + DIT_BLOCKS * block + DIT_WORK_VELOCITY) * BRANCHES * (uint64_t)s->batch;
}

double work_share(const sampling *s, const sampling_cost *cost)
{
    uint64_t sum = 0;
    for (int step = 0; step < s->steps; step++)
        sum += cost->work[step];
    return (double)sum / ((double)full_work(s) * s->steps);
}

/* Attention or MLP of a block: x -> out. */
static void run_part(run_state *r, dit_part part, int block, int rows)
{
    double start = now();
    (part == DIT_MLP ? dit_mlp : dit_attention)(r->set->model, block, r->x, r->modulation, rows, r->out);
    r->cost->part_seconds[part] += now() - start;
    r->cost->parts[part]++;
    *r->work += (uint64_t)rows * (part == DIT_MLP ? DIT_WORK_MLP : DIT_WORK_ATTENTION);
}

/* The parts are offered one by one. On a skip `out` holds what the part would have put out. */
static void run_block(run_state *r, uint32_t i, int rows)
{
    static const dc_kind_t KINDS[] = {[DIT_ATTENTION] = DC_KIND_SPATIAL, [DIT_MLP] = DC_KIND_MLP};
    dc_tensor_t out = hidden_states(r->out, rows);
    r->cost->blocks++;
    *r->work += (uint64_t)rows * DIT_WORK_MODULATE;
    dit_modulate(r->set->model, (int)i, r->condition, rows, r->modulation);
    for (dit_part part = 0; part < DIT_PARTS; part++) {
        uint32_t layer = i * DIT_PARTS + part;
        if (dc_cache_before_layer(r->cache, layer, KINDS[part], &out, 1) == DC_COMPUTE) {
            run_part(r, part, (int)i, rows);
            dc_cache_after_layer(r->cache, layer, &out, 1);
        }
        dit_add(part, r->modulation, rows, r->out, r->x);
    }
}

/* Methods differ in what they leave out: the whole model, blocks, or parts of blocks. Each asks at its own hooks, and
 * is answered DC_COMPUTE at the others. */
static dc_status_t run_model(run_state *r, const dc_pass_t *pass, int rows, float *velocity)
{
    const dit_model *model = r->set->model;
    dc_cache_t *cache = r->cache;
    dc_tensor_t in = pictures(r->images, rows), x = hidden_states(r->x, rows), out = pictures(velocity, rows);
    (void)dc_cache_begin_pass(cache, pass); /* what went wrong here, end_pass says too */
    if (dc_cache_before_block(cache, DC_MODEL, &in, &out, 1) == DC_COMPUTE) {
        dit_embed(model, r->images, r->t, r->labels, rows, r->x, r->condition);
        for (uint32_t i = 0; i < DIT_BLOCKS; i++)
            if (dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE) {
                run_block(r, i, rows);
                dc_cache_after_block(cache, i, &x, 1);
            }
        dit_velocity(model, r->x, r->condition, rows, velocity);
        *r->work += (uint64_t)rows * (DIT_WORK_EMBED + DIT_WORK_VELOCITY);
        dc_cache_after_block(cache, DC_MODEL, &out, 1);
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
    dc_status_t status = run_model(r, &pass, rows, velocity);
    if (status == DC_ERR_DISCARD) { /* something was left out, but its result was not restored */
        pass.flags |= DC_PASS_COMPUTE;
        status = run_model(r, &pass, rows, velocity);
    }
    warn(r, status != DC_OK);
}

/* ---- a sampling run ---- */

/* Classifier-free guidance: velocity[BRANCHES][batch][DIT_PIXELS], uncond first, in one stacked pass or in a pass each.
 * The cache may know the unconditional velocity without a pass. Stacked, that must be asked beforehand. */
static void evaluate_branches(run_state *r, uint32_t step, float t, const float *images, float *velocity)
{
    int batch = r->set->batch;
    float *uncond = velocity, *cond = velocity + batch * DIT_PIXELS;
    dc_tensor_t uncond_view = pictures(uncond, batch), cond_view = pictures(cond, batch);
    dc_pass_t of_cond = DC_PASS_INIT, of_uncond = DC_PASS_INIT, of_both = DC_PASS_INIT;
    of_cond.step = of_uncond.step = of_both.step = step;
    of_both.n_branches = 2;
    of_cond.branches[0] = of_both.branches[1] = COND;
    of_uncond.branches[0] = of_both.branches[0] = UNCOND;

    bool left_out = dc_cache_peek(r->cache, &of_uncond, DC_UNCOND) == DC_SKIP;
    bool stacked = !r->set->sequential && !left_out;
    if (stacked)
        evaluate(r, of_both, t, images, velocity);
    else
        evaluate(r, of_cond, t, images, cond);
    if (dc_cache_before_uncond(r->cache, &of_uncond, &cond_view, &uncond_view) == DC_SKIP)
        return; /* `uncond` holds the estimate */
    warn(r, left_out); /* the cache went back on its word, for something failed in it */
    if (!stacked)
        evaluate(r, of_uncond, t, images, uncond);
    warn(r, dc_cache_after_uncond(r->cache, &of_uncond, &cond_view, &uncond_view) != DC_OK);
    r->cost->unconds++;
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
    r.condition = allocate(rows * DIT_WIDTH, sizeof(float));
    r.modulation = allocate(rows * DIT_MODULATION, sizeof(float));
    r.x = allocate(rows * DIT_TOKENS * DIT_WIDTH, sizeof(float));
    r.out = allocate(rows * DIT_TOKENS * DIT_WIDTH, sizeof(float));
    float *velocity = allocate(rows * DIT_PIXELS, sizeof(float));
    float *uncond = velocity, *cond = velocity + batch * DIT_PIXELS;
    float *times = allocate((size_t)s->steps + 1, sizeof(float));
    for (int step = 0; step <= s->steps; step++)
        times[step] = 1 - (float)step / (float)s->steps;
    for (size_t k = 0; k < batch; k++)
        gaussian(s->seed, k, images + k * DIT_PIXELS, DIT_PIXELS);

    warn(&r, begin_run(&r, times) != DC_OK);
    for (int step = 0; step < s->steps; step++) {
        r.work = &cost->work[step];
        evaluate_branches(&r, (uint32_t)step, times[step], images, velocity);
        float dt = times[step + 1] - times[step];
        for (size_t i = 0; i < batch * DIT_PIXELS; i++)
            images[i] += dt * (uncond[i] + s->guidance * (cond[i] - uncond[i]));
    }
    (void)dc_cache_end_run(cache);

    free(r.images), free(r.t), free(r.labels), free(r.condition), free(r.modulation), free(r.x), free(r.out);
    free(velocity), free(times);
    cost->seconds = now() - start;
}
