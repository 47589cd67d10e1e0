/* Hands the library a buffer shorter than it says. Valgrind and AddressSanitizer must notice. */
#include <diffcache.h>
#include <stdlib.h>

int main(void)
{
    dc_engine_t engine;
    dc_options_t options;
    dc_cache_t *cache = NULL;
    dc_run_t run = DC_RUN_INIT;
    dc_pass_t pass = DC_PASS_INIT;
    float *rows = calloc(64, sizeof *rows);
    dc_tensor_t x = {.data = rows, .dtype = DC_F32, .ndim = 1, .shape = {65}};

    if (dc_engine_init(&engine, sizeof engine) || dc_options_init(&options, sizeof options, "fbcache")) return 1;
    engine.n_blocks = 2;
    engine.n_threads = 1;
    engine.hooks = DC_HOOK_EACH;
    if (dc_cache_create(&engine, &options, &cache) || dc_cache_begin_run(cache, &run)) return 1;
    dc_cache_begin_pass(cache, &pass);
    for (uint32_t i = 0; i < 2; i++)
        if (dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE) dc_cache_after_block(cache, i, &x, 1);
    if (dc_cache_end_pass(cache) != DC_OK) return 1;
    dc_cache_destroy(cache);
    free(rows);
    return 0;
}
