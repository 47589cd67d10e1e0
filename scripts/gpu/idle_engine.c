/* For rivals.py: an engine whose blocks take no time, so that all the time of a pass is the cache's. The tensors are
 * the caller's, one dense [rows][columns] of bf16 each. Built as a shared library beside libdiffcache. */
#include <diffcache.h>

#include <stdint.h>
#include <stdlib.h>

typedef struct {
    dc_cache_t *cache;
    int64_t rows, columns;
    uint32_t step;
} idle_engine;

static dc_tensor_t tensor_at(const idle_engine *engine, void *data)
{
    return (dc_tensor_t){.data = data, .dtype = DC_BF16, .ndim = 2, .shape = {engine->rows, engine->columns}};
}

void idle_close(idle_engine *engine)
{
    if (engine)
        dc_cache_destroy(engine->cache);
    free(engine);
}

/* Null if the cache cannot be had: dc_last_error() says why. */
idle_engine *idle_open(const char *text, int on_cuda, int64_t rows, int64_t columns)
{
    dc_engine_t description;
    dc_options_t options;
    dc_run_t run = DC_RUN_INIT; /* of unknown length */
    idle_engine *engine = calloc(1, sizeof *engine);
    if (!engine || dc_engine_init(&description, sizeof description))
        return NULL;
    engine->rows = rows;
    engine->columns = columns;
    description.backend = on_cuda ? DC_BACKEND_CUDA : DC_BACKEND_CPU;
    description.hooks = DC_HOOK_EACH | DC_HOOK_LAYERS;
    description.n_blocks = 2;
    description.n_layers = 1;
    if (dc_options_init(&options, sizeof options, NULL) || dc_options_parse(&options, text) ||
        dc_cache_create(&description, &options, &engine->cache) || dc_cache_begin_run(engine->cache, &run)) {
        idle_close(engine);
        return NULL;
    }
    return engine;
}

static dc_pass_t next_pass(idle_engine *engine, void *stream)
{
    dc_pass_t pass = DC_PASS_INIT;
    pass.step = engine->step++;
    pass.stream = stream;
    return pass;
}

/* A pass of two blocks: the first made `front` of `x`, the second makes `out` of `front`. 1 = it was skipped, 0 = not,
 * below 0 = an error. */
int idle_blocks(idle_engine *engine, void *x, void *front, void *out, void *stream)
{
    dc_pass_t pass = next_pass(engine, stream);
    dc_tensor_t in = tensor_at(engine, x), between = tensor_at(engine, front), end = tensor_at(engine, out);
    (void)dc_cache_begin_pass(engine->cache, &pass);
    if (dc_cache_before_block(engine->cache, 0, &in, &between, 1) == DC_COMPUTE)
        dc_cache_after_block(engine->cache, 0, &between, 1);
    dc_action_t action = dc_cache_before_block(engine->cache, 1, &between, &end, 1);
    if (action == DC_COMPUTE)
        dc_cache_after_block(engine->cache, 1, &end, 1);
    dc_status_t status = dc_cache_end_pass(engine->cache);
    return status ? status : action == DC_SKIP;
}

/* A pass of one layer, which makes `out`. */
int idle_layer(idle_engine *engine, void *out, void *stream)
{
    dc_pass_t pass = next_pass(engine, stream);
    dc_tensor_t end = tensor_at(engine, out);
    (void)dc_cache_begin_pass(engine->cache, &pass);
    dc_action_t action = dc_cache_before_layer(engine->cache, 0, DC_KIND_SPATIAL, &end, 1);
    if (action == DC_COMPUTE)
        dc_cache_after_layer(engine->cache, 0, &end, 1);
    dc_status_t status = dc_cache_end_pass(engine->cache);
    return status ? status : action == DC_SKIP;
}

/* Since the cache was opened. */
double idle_seconds_waited(const idle_engine *engine)
{
    dc_stats_t stats = {.struct_size = sizeof stats};
    return dc_cache_stats(engine->cache, &stats) ? -1 : 1e-9 * (double)stats.wait_ns;
}
