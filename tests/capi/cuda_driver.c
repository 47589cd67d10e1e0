/* Machines that cannot do CUDA: each is an error that says what is missing, and the CPU works on. Which machine this is
 * says DC_TEST_DRIVER; without it, one with a driver that works. */
#include "check.h"

typedef struct machine_t {
    const char *name, *says, *and_says; /* what helps */
} machine_t;

static const machine_t machines[] = {
    {"none", "there is no CUDA driver", "libcuda.so.1"},
    {"deviceless", "finds no device", "CUDA_VISIBLE_DEVICES"},
    {"stub", "stub", "LD_LIBRARY_PATH"},
    {"old", "for CUDA 9.2", "10.0 (driver 410)"},
    {"lacking", "cuStreamGetCtx", "10.0 (driver 410)"},
};

/* Twice, as an engine that asks again gets the same answer. */
static void creating_a_cache_says_what_is_missing(const machine_t *machine)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_options_t options = options_of("fbcache");
    engine.backend = DC_BACKEND_CUDA;
    for (int again = 0; again < 2; again++)
        for (engine.device = -1; engine.device < 2; engine.device++) {
            dc_cache_t *cache = (dc_cache_t *)(void *)&engine;
            CHECK_STATUS(dc_cache_create(&engine, &options, &cache), DC_ERR_DEVICE);
            CHECK(cache == NULL);
            CHECK(strstr(dc_last_error(), machine->says) != NULL);
            CHECK(strstr(dc_last_error(), machine->and_says) != NULL);
        }
}

static void preparing_says_the_same(const machine_t *machine)
{
    for (int device = -1; device < 2; device++) {
        CHECK_STATUS(dc_backend_prepare(DC_BACKEND_CUDA, device), DC_ERR_DEVICE);
        CHECK(strstr(dc_last_error(), machine->says) != NULL);
        CHECK(strstr(dc_last_error(), machine->and_says) != NULL);
    }
}

static void the_cpu_works_on(void)
{
    char text[64];
    CHECK_OK(dc_backend_prepare(DC_BACKEND_CPU, 0));
    toy_t toy = an_fbcache_toy(4, 1);
    begin_run(toy.cache, 8);
    CHECK(strchr(toy_decisions(&toy, 0, 8, text), 's') != NULL);
    dc_cache_destroy(toy.cache);
}

/* Nothing is asked of a device before it is needed: a cache costs microseconds, and no memory. */
static void a_driver_that_works_is_taken(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_options_t options = options_of("fbcache");
    dc_cache_t *cache;
    (void)cuda(); /* or the program ends here, as skipped */
    engine.backend = DC_BACKEND_CUDA;
    for (engine.device = -1; engine.device < 1; engine.device++) {
        CHECK_OK(dc_cache_create(&engine, &options, &cache));
        CHECK(stats_of(cache).bytes_held == 0);
        dc_cache_destroy(cache);
        CHECK_OK(dc_backend_prepare(DC_BACKEND_CUDA, engine.device));
    }
    engine.device = 1000;
    CHECK_STATUS(dc_cache_create(&engine, &options, &cache), DC_ERR_DEVICE);
    CHECK(cache == NULL);
    CHECK_SAYS("device is 1000");
}

int main(void)
{
    const char *name = getenv("DC_TEST_DRIVER");
    if (name == NULL) {
        a_driver_that_works_is_taken();
        the_cpu_works_on();
        return 0;
    }
    if (strcmp(name, "none") == 0 && dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) != NULL) {
        printf("SKIPPED: this machine has a CUDA driver\n");
        return SKIPPED;
    }
    for (size_t k = 0; k < sizeof machines / sizeof *machines; k++)
        if (strcmp(machines[k].name, name) == 0) {
            creating_a_cache_says_what_is_missing(&machines[k]);
            preparing_says_the_same(&machines[k]);
            the_cpu_works_on();
            return 0;
        }
    fprintf(stderr, "DC_TEST_DRIVER is %s\n", name);
    return 1;
}
