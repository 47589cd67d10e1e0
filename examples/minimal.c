/* minimal.c: diffcache in an engine, all of it.
 *
 * The model is a toy: a stack of blocks, each adding a little to the hidden state h, as a transformer's do. At every step
 * the sampler asks it where to move x. From one step to the next x changes little, and so does what the stack adds to it.
 * diffcache lets the first block run and sees by how much its addition has changed: where that is little, it adds what the
 * other eleven added last time and answers SKIP. */
#include <diffcache.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N_BLOCKS = 12, N_STEPS = 30, N = 256 };
static int blocks_run;

static void run_block(uint32_t i, float *h) /* h <- h * (1 + k), another k for each block and element */
{
    for (int j = 0; j < N; j++) h[j] *= 1.0f + 0.1f * sinf((float)j + 0.1f * (float)i);
    blocks_run++;
}

static void must(dc_status_t status)
{
    if (status != DC_OK) fprintf(stderr, "%s\n", dc_last_error()), exit(2);
}

/* One evaluation of the model: h <- model(x). */
static dc_status_t evaluate(dc_cache_t *cache, uint32_t step, uint32_t flags, const float *x, float *h)
{
    dc_tensor_t view = {.data = h, .dtype = DC_F32, .ndim = 1, .shape = {N}};
    dc_pass_t pass = DC_PASS_INIT;
    pass.step = step;
    pass.flags = flags;
    for (int j = 0; j < N; j++) h[j] = x[j];
    dc_cache_begin_pass(cache, &pass);
    for (uint32_t i = 0; i < N_BLOCKS; i++)
        if (dc_cache_before_block(cache, i, &view, NULL, 1) == DC_COMPUTE) {
            run_block(i, h);
            dc_cache_after_block(cache, i, &view, 1);
        }
    return dc_cache_end_pass(cache);
}

/* One sampling run, from noise to x. Without a cache (NULL) every block runs. */
static void sample(dc_cache_t *cache, float *x)
{
    float h[N];
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = N_STEPS;
    must(dc_cache_begin_run(cache, &run));
    for (int j = 0; j < N; j++) x[j] = cosf(7.0f * (float)j);
    for (uint32_t step = 0; step < N_STEPS; step++) {
        int before = blocks_run;
        if (evaluate(cache, step, 0, x, h) == DC_ERR_DISCARD) /* the one error to act on: once more, without reuse */
            must(evaluate(cache, step, DC_PASS_COMPUTE, x, h));
        for (int j = 0; j < N; j++) x[j] -= (h[j] - x[j]) / N_STEPS;
        if (cache) printf("step %2d: %2d of %d blocks ran\n", (int)step, blocks_run - before, N_BLOCKS);
    }
}

int main(void)
{
    float plain[N], cached[N], error = 0, size = 0;
    dc_engine_t engine; /* what the engine is: set once, by its author */
    dc_options_t options; /* what the user wants: text, for each request */
    dc_cache_t *cache = NULL;
    must(dc_engine_init(&engine, sizeof engine));
    engine.n_blocks = N_BLOCKS;
    engine.hooks = DC_HOOK_EACH;
    must(dc_options_init(&options, sizeof options, "fbcache"));
    must(dc_options_parse(&options, "threshold=0.08"));
    must(dc_cache_create(&engine, &options, &cache));
    sample(NULL, plain);
    sample(cache, cached);
    dc_cache_destroy(cache);
    blocks_run -= N_STEPS * N_BLOCKS; /* the plain run's */
    for (int j = 0; j < N; j++) error += fabsf(cached[j] - plain[j]), size += fabsf(plain[j]);
    printf("%d of %d blocks ran, result off by %.2f %%\n", blocks_run, N_STEPS * N_BLOCKS, 100 * error / size);
    return blocks_run < N_STEPS * N_BLOCKS * 2 / 3 && error < 0.02f * size ? 0 : 1;
}
