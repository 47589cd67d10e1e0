/* Whatever call of the driver fails, and whenever: an output that the library does not disown is right, the pass says what
 * was wrong, the next run works, and nothing is lost. On the stand-in, which fails on demand. */
#include "softcuda.h"

enum { LAUNCH_OUT_OF_RESOURCES = 701, ILLEGAL_ADDRESS = 700, UNKNOWN = 999, MOST_CALLS = 1000 };

static const cuda_t *driver;
static softcuda_t soft;
static char healthy[TAPE_STEPS + 1]; /* decisions */

static dc_status_t begin(tape_t *tape, int with_shapes, void *stream)
{
    dc_run_t run = headers_run;
    if (with_shapes) return begin_run_with_shapes(tape->cache, stream);
    run.n_steps = TAPE_STEPS;
    run.stream = stream;
    return dc_cache_begin_run(tape->cache, &run);
}

static void run_all(tape_t *tape, void *stream)
{
    for (uint32_t step = 0; step < TAPE_STEPS; step++) tape_pass(tape, step, stream);
}

static void *a_fresh_context(int device)
{
    void *context;
    CUDA_OK(driver->CtxCreate(&context, 0, device));
    CUDA_OK(driver->CtxSetCurrent(NULL));
    return context;
}

/* ---- failures that pass ---- */

/* A run in which the nth call of a function fails, and one after it. False if there are not as many calls. */
static int a_run_with_a_failure(tape_t *tape, const char *function, uint64_t nth, int code, int with_shapes)
{
    void *stream = a_stream(tape);
    give_cache(tape, TAPE_METHOD);
    CUDA_OK(soft.fail(function, nth, code));
    dc_status_t begun = begin(tape, with_shapes, stream), wanted = code == CUDA_OUT_OF_MEMORY ? DC_ERR_MEMORY : DC_ERR_DEVICE;
    CHECK(begun == DC_OK || begun == wanted);
    run_all(tape, stream);
    CUDA_OK(soft.fail(function, 0, 0)); /* too late by now */
    tape_verify(tape);
    uint64_t errors = begun != DC_OK;
    for (uint32_t step = 0; step < TAPE_STEPS; step++) {
        dc_status_t ended = tape->ended[step];
        CHECK(ended == DC_OK || ended == wanted || ended == DC_ERR_DISCARD);
        errors += ended != DC_OK;
        if (begun != DC_OK) CHECK(tape->decisions[step] == 'C' && ended == begun);
    }
    CHECK(stats_of(tape->cache).errors == errors);
    int struck = errors > 0 || strcmp(tape->decisions, healthy) != 0;

    CHECK_OK(begin(tape, with_shapes, stream));
    run_all(tape, stream);
    tape_is(tape, healthy);
    dc_cache_destroy(tape->cache);
    tape_settle(tape);
    end_stream(tape, stream);
    return struck;
}

static void any_call_may_fail_in_any_run(tape_t *tape)
{
    static const struct { const char *function; int code; int least; } calls[] = {
        {"cuMemAllocAsync", CUDA_OUT_OF_MEMORY, 3},
        {"cuLaunchKernel", LAUNCH_OUT_OF_RESOURCES, 2 * TAPE_STEPS},
        {"cuEventRecord", UNKNOWN, TAPE_STEPS},
        {"cuEventSynchronize", UNKNOWN, TAPE_STEPS - 1},
        {"cuPointerGetAttributes", UNKNOWN, TAPE_STEPS},
        {"cuStreamIsCapturing", UNKNOWN, TAPE_STEPS},
    };
    for (size_t k = 0; k < sizeof calls / sizeof *calls; k++)
        for (int with_shapes = 0; with_shapes < 2; with_shapes++) {
            softcuda_stats_t before = soft_stats(&soft);
            uint64_t n = 1;
            while (a_run_with_a_failure(tape, calls[k].function, n, calls[k].code, with_shapes)) CHECK(++n < MOST_CALLS);
            if (n <= (uint64_t)calls[k].least) fprintf(stderr, "%s: %d calls\n", calls[k].function, (int)n - 1);
            CHECK(n > (uint64_t)calls[k].least);
            softcuda_stats_t after = soft_stats(&soft);
            CHECK(after.live_allocations == before.live_allocations && after.pinned_live == before.pinned_live);
        }
}

/* What a context needs once may fail as well, and is tried again. */
static void the_first_run_in_a_context_may_fail(void)
{
    static const struct { const char *function; int code; } calls[] = {
        {"cuModuleLoadData", CUDA_OUT_OF_MEMORY}, {"cuModuleGetFunction", UNKNOWN},
        {"cuMemHostAlloc", CUDA_OUT_OF_MEMORY},   {"cuMemAlloc_v2", CUDA_OUT_OF_MEMORY},
        {"cuStreamCreate", UNKNOWN},              {"cuEventCreate", UNKNOWN},
        {"cuMemsetD32Async", UNKNOWN},            {"cuMemHostGetDevicePointer_v2", UNKNOWN},
    };
    for (size_t k = 0; k < sizeof calls / sizeof *calls; k++)
        for (uint64_t n = 1; n < 3; n++) {
            void *context = a_fresh_context(0);
            tape_t tape = a_tape(driver, context, 0);
            (void)a_run_with_a_failure(&tape, calls[k].function, n, calls[k].code, n == 1);
            end_tape(&tape);
            CUDA_OK(driver->CtxDestroy(context));
        }
}

/* ---- failures that stay ---- */

/* From its first failed pass on nothing is skipped, and each pass says why. */
static void computes_from_then_on(const tape_t *tape)
{
    uint32_t step = 0;
    for (; step < TAPE_STEPS && tape->ended[step] == DC_OK; step++) CHECK(tape->decisions[step] == healthy[step]);
    CHECK(step < TAPE_STEPS);
    /* the pass in which it shows may have promised a skip that the device did not bring about */
    if (tape->ended[step] == DC_ERR_DISCARD) step++;
    for (; step < TAPE_STEPS; step++) {
        CHECK_STATUS(tape->ended[step], DC_ERR_DEVICE);
        CHECK(tape->decisions[step] == 'C');
    }
    CHECK(newest(tape->cache).reason == DC_REASON_ERROR);
}

static void others_are_not_harmed(tape_t *tape)
{
    void *stream = a_stream(tape);
    give_cache(tape, TAPE_METHOD);
    begin_run(tape->cache, TAPE_STEPS);
    run_all(tape, stream);
    tape_is(tape, healthy);
    dc_cache_destroy(tape->cache);
    end_stream(tape, stream);
}

static void an_error_that_stays_computes_to_the_end(tape_t *unharmed)
{
    for (uint64_t kernel = 1; kernel < 2 * TAPE_STEPS - 2; kernel++) {
        void *context = a_fresh_context(0);
        tape_t tape = a_tape(driver, context, 0);
        void *stream = a_stream(&tape);
        give_cache(&tape, TAPE_METHOD);
        CHECK_OK(begin(&tape, 0, stream));
        tape.doomed = 1;
        CUDA_OK(soft.fail("execute", kernel, ILLEGAL_ADDRESS));
        run_all(&tape, stream);
        computes_from_then_on(&tape);
        CHECK_STATUS(begin(&tape, 1, stream), DC_ERR_DEVICE); /* nor can a new run do anything about it */
        dc_cache_destroy(tape.cache);
        (void)driver->CtxDestroy(context); /* and its memory, whatever it says */
        CUDA_OK(driver->CtxSetCurrent(NULL));
    }
    others_are_not_harmed(unharmed);
}

static void a_device_may_be_lost(tape_t *unharmed)
{
    void *primary;
    CUDA_OK(driver->PrimaryCtxRetain(&primary, 1));
    tape_t tape = a_tape(driver, primary, 1);
    void *stream = a_stream(&tape);
    tape.doomed = 1;
    give_cache(&tape, TAPE_METHOD);
    CHECK_OK(begin(&tape, 0, stream));
    for (uint32_t step = 0; step < TAPE_STEPS; step++) {
        if (step == 5) CUDA_OK(soft.lose(1));
        tape_pass(&tape, step, stream);
    }
    computes_from_then_on(&tape);
    dc_cache_destroy(tape.cache);

    give_cache(&tape, TAPE_METHOD);
    CHECK_STATUS(begin(&tape, 1, stream), DC_ERR_DEVICE);
    run_all(&tape, stream);
    computes_from_then_on(&tape);
    dc_cache_destroy(tape.cache);
    others_are_not_harmed(unharmed);
}

int main(void)
{
    void *primary;
    driver = cuda();
    soft = softcuda();
    tape_on_cpu(healthy);
    CUDA_OK(driver->PrimaryCtxRetain(&primary, 0));
    CHECK_OK(dc_backend_prepare(DC_BACKEND_CUDA, 0));
    tape_t tape = a_tape(driver, primary, 0);
    others_are_not_harmed(&tape); /* all is there that is kept for good */
    any_call_may_fail_in_any_run(&tape);
    the_first_run_in_a_context_may_fail();
    an_error_that_stays_computes_to_the_end(&tape);
    a_device_may_be_lost(&tape);
    end_tape(&tape);
    return 0;
}
