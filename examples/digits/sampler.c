#define _POSIX_C_SOURCE 200809L
#include "sampler.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The branches of classifier-free guidance. The cache keeps a state for each. */
enum { COND = 0, UNCOND = 1, BRANCHES = 2 };

/* What the passes of one run share. Rows: those of the pass's first branch, then those of the second. What follows
 * `host_labels` is in the device's memory. */
struct sampling_run {
    const sampling *set;
    const maths *maths;
    dc_cache_t *cache;
    sampling_cost *cost;
    bool warned;
    float times[DC_MAX_STEPS + 1]; /* of each step, and 0 */
    int step;          /* the next one */
    uint64_t *work;    /* of the current one */
    float *host_t;     /* [rows] as below, on their way there */
    int *host_labels;  /* [rows] */
    float *images;     /* [rows][DIT_PIXELS] what the model is given */
    float *velocity;   /* [rows][DIT_PIXELS] what it says */
    float *t;          /* [rows] */
    int *labels;       /* [rows] */
    float *condition;  /* [rows][DIT_WIDTH] */
    float *modulation; /* [rows][DIT_MODULATION] of the current block */
    float *x;          /* [rows][DIT_TOKENS][DIT_WIDTH] hidden states */
    float *out;        /* [rows][DIT_TOKENS][DIT_WIDTH] of an attention or MLP */
    float *drawing;    /* [batch][DIT_PIXELS] */
};

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

/* What this engine is, and what the user wants of the cache. */
static dc_status_t describe(const sampling *s, const char *text, dc_engine_t *engine, dc_options_t *options)
{
    const maths *maths = s->model->maths;
    dc_status_t status = dc_engine_init(engine, sizeof *engine);
    if (!status)
        status = dc_options_init(options, sizeof *options, NULL);
    if (!status)
        status = dc_options_parse(options, text);
    engine->backend = maths->backend;
    engine->device = maths->device;
    engine->hooks = DC_HOOK_EACH | DC_HOOK_LAYERS | DC_HOOK_MODEL | DC_HOOK_GUIDE; /* all that are called below */
    engine->n_blocks = DIT_BLOCKS;
    engine->n_layers = DIT_BLOCKS * DIT_PARTS;
    engine->n_branches = BRANCHES;
    engine->uncond_branch = UNCOND;
    engine->max_stacked = s->sequential ? 1 : BRANCHES;
    engine->n_threads = 1; /* as the engine itself */
    snprintf(engine->label, sizeof engine->label, "digits");
    return status;
}

/* What one branch's tensors look like, so that all memory is taken at the start of a run and none later. */
typedef struct {
    dc_tensor_t hidden, picture;
    dc_shape_t rows[5];
} tensor_shapes;

static void describe_tensors(const sampling *s, tensor_shapes *t)
{
    const uint32_t ANY = UINT32_MAX;
    t->hidden = hidden_states(NULL, s->batch), t->picture = pictures(NULL, s->batch);
    dc_shape_t rows[] = {
        {.hook = DC_HOOK_EACH, .branch = ANY, .tensors = &t->hidden, .n = 1},
        {.hook = DC_HOOK_LAYERS, .branch = ANY, .tensors = &t->hidden, .n = 1, .kind = DC_KIND_SPATIAL, .count = DIT_BLOCKS},
        {.hook = DC_HOOK_LAYERS, .branch = ANY, .tensors = &t->hidden, .n = 1, .kind = DC_KIND_MLP, .count = DIT_BLOCKS},
        {.hook = DC_HOOK_MODEL, .branch = ANY, .tensors = &t->picture, .n = 1},
        {.hook = DC_HOOK_GUIDE, .branch = ANY, .tensors = &t->picture, .n = 1},
    };
    _Static_assert(sizeof rows == sizeof t->rows, "as many as there is room for");
    memcpy(t->rows, rows, sizeof rows);
}

enum { SHAPES = sizeof((tensor_shapes *)0)->rows / sizeof(dc_shape_t) };

dc_cache_t *open_cache(const sampling *s, const char *text)
{
    dc_engine_t engine;
    dc_options_t options;
    dc_cache_t *cache = NULL;
    const maths *maths = s->model->maths;
    if (dc_backend_prepare(maths->backend, maths->device) || describe(s, text, &engine, &options))
        return NULL;
    return dc_cache_create(&engine, &options, &cache) == DC_OK ? cache : NULL;
}

uint64_t memory_needed(const sampling *s, const char *text)
{
    dc_engine_t engine;
    dc_options_t options;
    tensor_shapes shapes;
    uint64_t bytes = 0;
    describe_tensors(s, &shapes);
    return describe(s, text, &engine, &options) || dc_memory_needed(&engine, &options, shapes.rows, SHAPES, &bytes) ? 0 : bytes;
}

static dc_status_t begin_run(sampling_run *r)
{
    tensor_shapes shapes;
    describe_tensors(r->set, &shapes);
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = (uint32_t)r->set->steps;
    run.timesteps = r->times;
    run.timestep_max = 1;
    run.shapes = shapes.rows;
    run.n_shapes = SHAPES;
    run.stream = r->maths->stream;
    return dc_cache_begin_run(r->cache, &run);
}

/* An error of the cache never spoils a picture, it only costs time: say so once and go on. */
static void warn(sampling_run *r, bool failed)
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
static void run_part(sampling_run *r, dit_part part, int block, int rows)
{
    double start = now();
    (part == DIT_MLP ? dit_mlp : dit_attention)(r->set->model, block, r->x, r->modulation, rows, r->out);
    r->cost->part_seconds[part] += now() - start;
    r->cost->parts[part]++;
    *r->work += (uint64_t)rows * (part == DIT_MLP ? DIT_WORK_MLP : DIT_WORK_ATTENTION);
}

/* The parts are offered one by one. On a skip `out` holds what the part would have put out. */
static void run_block(sampling_run *r, uint32_t i, int rows)
{
    static const dc_kind_t KINDS[] = {[DIT_ATTENTION] = DC_KIND_SPATIAL, [DIT_MLP] = DC_KIND_MLP};
    dc_tensor_t out = hidden_states(r->out, rows);
    double start = now();
    r->cost->blocks++;
    *r->work += (uint64_t)rows * DIT_WORK_MODULATE;
    dit_modulate(r->set->model, (int)i, r->condition, rows, r->modulation);
    for (dit_part part = 0; part < DIT_PARTS; part++) {
        uint32_t layer = i * DIT_PARTS + part;
        if (dc_cache_before_layer(r->cache, layer, KINDS[part], &out, 1) == DC_COMPUTE) {
            run_part(r, part, (int)i, rows);
            dc_cache_after_layer(r->cache, layer, &out, 1);
        }
        dit_add(r->set->model, part, r->modulation, rows, r->out, r->x);
    }
    r->cost->block_seconds += now() - start;
}

/* Methods differ in what they leave out: the whole model, blocks, or parts of blocks. Each asks at its own hooks, and
 * is answered DC_COMPUTE at the others. */
static dc_status_t run_model(sampling_run *r, const dc_pass_t *pass, int rows, float *velocity)
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
static void evaluate(sampling_run *r, dc_pass_t pass, float t, const float *images, float *velocity)
{
    const maths *m = r->maths;
    int batch = r->set->batch, rows = (int)pass.n_branches * batch;
    for (int row = 0; row < rows; row++) {
        r->host_t[row] = t;
        r->host_labels[row] = pass.branches[row / batch] == COND ? row % batch % 10 : DIT_NULL;
    }
    m->upload(r->t, r->host_t, sizeof(float) * (size_t)rows);
    m->upload(r->labels, r->host_labels, sizeof(int) * (size_t)rows);
    for (int row = 0; row < rows; row += batch)
        m->copy(r->images + row * DIT_PIXELS, images, sizeof(float) * (size_t)batch * DIT_PIXELS);
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
static void evaluate_branches(sampling_run *r, uint32_t step, float t, const float *images, float *velocity)
{
    int batch = r->set->batch;
    float *uncond = velocity, *cond = velocity + batch * DIT_PIXELS;
    dc_tensor_t uncond_view = pictures(uncond, batch), cond_view = pictures(cond, batch);
    dc_pass_t of_both = DC_PASS_INIT;
    of_both.step = step;
    of_both.stream = r->maths->stream;
    dc_pass_t of_cond = of_both, of_uncond = of_both;
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

static void allocate_rows(sampling_run *r)
{
    size_t rows = BRANCHES * (size_t)r->set->batch, size = sizeof(float) * rows;
    r->host_t = allocate(rows, sizeof(float));
    r->host_labels = allocate(rows, sizeof(int));
    r->drawing = r->maths->allocate(size / BRANCHES * DIT_PIXELS);
    r->images = r->maths->allocate(size * DIT_PIXELS);
    r->velocity = r->maths->allocate(size * DIT_PIXELS);
    r->t = r->maths->allocate(size);
    r->labels = r->maths->allocate(sizeof(int) * rows);
    r->condition = r->maths->allocate(size * DIT_WIDTH);
    r->modulation = r->maths->allocate(size * DIT_MODULATION);
    r->x = r->maths->allocate(size * DIT_TOKENS * DIT_WIDTH);
    r->out = r->maths->allocate(size * DIT_TOKENS * DIT_WIDTH);
}

static void release_rows(sampling_run *r)
{
    void *all[] = {r->drawing, r->images, r->velocity, r->t, r->labels, r->condition, r->modulation, r->x, r->out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        r->maths->release(all[i]);
    free(r->host_t), free(r->host_labels);
}

sampling_run *begin_sampling(const sampling *s, dc_cache_t *cache, sampling_cost *cost)
{
    sampling_run *r = allocate(1, sizeof *r);
    *r = (sampling_run){.set = s, .maths = s->model->maths, .cache = cache, .cost = cost};
    *cost = (sampling_cost){0};
    allocate_rows(r);
    double start = now();
    size_t size = sizeof(float) * DIT_PIXELS * (size_t)s->batch;
    float *noise = allocate(size, 1);
    for (int k = 0; k < s->batch; k++)
        gaussian(s->seed, (uint64_t)k, noise + k * DIT_PIXELS, DIT_PIXELS);
    r->maths->upload(r->drawing, noise, size);
    free(noise);
    for (int step = 0; step <= s->steps; step++)
        r->times[step] = 1 - (float)step / (float)s->steps;
    warn(r, begin_run(r) != DC_OK);
    cost->seconds += now() - start;
    return r;
}

void sample_step(sampling_run *r)
{
    double start = now();
    int step = r->step++, pixels = r->set->batch * DIT_PIXELS;
    float *uncond = r->velocity, *cond = r->velocity + pixels;
    r->work = &r->cost->work[step];
    evaluate_branches(r, (uint32_t)step, r->times[step], r->drawing, r->velocity);
    r->maths->advance(pixels, r->times[step + 1] - r->times[step], r->set->guidance, uncond, cond, r->drawing);
    r->cost->seconds += now() - start;
}

void end_sampling(sampling_run *r, float *images)
{
    double start = now();
    (void)dc_cache_end_run(r->cache);
    r->maths->download(images, r->drawing, sizeof(float) * DIT_PIXELS * (size_t)r->set->batch);
    r->cost->seconds += now() - start;
    release_rows(r);
    free(r);
}

void sample(const sampling *s, dc_cache_t *cache, float *images, sampling_cost *cost)
{
    sampling_run *run = begin_sampling(s, cache, cost);
    for (int step = 0; step < s->steps; step++)
        sample_step(run);
    end_sampling(run, images);
}
