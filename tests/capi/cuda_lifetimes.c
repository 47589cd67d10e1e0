/* What the library uses after a call has returned: nothing of the engine's. Streams end in the middle of a pass, after a
 * failure, or before somebody looks ahead; threads and contexts change. On the stand-in, whose log shows a use of what is
 * gone, and which faults on work without order. */
#include "softcuda.h"

static const cuda_t *driver;
static softcuda_t soft;
static char healthy[TAPE_STEPS + 1]; /* decisions */

/* Since log_start() no call has failed. */
static void no_call_failed(void)
{
    static char text[1 << 20];
    size_t length;
    CUDA_OK(soft.log_text(text, sizeof text, &length));
    CHECK(length < sizeof text);
    if (strstr(text, " = ") == NULL) return;
    fprintf(stderr, "%s", text);
    CHECK(!"a call of the driver failed");
}

static void run_steps(tape_t *tape, uint32_t from, uint32_t to, void *stream)
{
    for (uint32_t step = from; step < to; step++) tape_pass(tape, step, stream);
}

/* The cache ends, after a whole run on a stream and tensors that know nothing of what went before, if there is `another`. */
static void go_on(tape_t *tape, int another)
{
    soft.log_start();
    if (another) {
        tape_t next = a_tape(driver, tape->context, tape->ordinal);
        void *stream = a_stream(&next);
        next.cache = tape->cache;
        begin_run(next.cache, TAPE_STEPS);
        run_steps(&next, 0, TAPE_STEPS, stream);
        dc_cache_destroy(next.cache);
        no_call_failed();
        tape_is(&next, healthy);
        end_stream(&next, stream);
        end_tape(&next);
        return;
    }
    dc_cache_destroy(tape->cache);
    no_call_failed();
    tape_settle(tape);
}

/* ---- passes that are left open ---- */


/* The first calls of a pass, after which the engine gives up, and its stream with it. */
static void open_a_pass(tape_t *tape, uint32_t step, void *stream, int calls)
{
    dc_tensor_t x = floats(tape_x(tape, step), TAPE_N);
    dc_pass_t pass = pass_of(step, 0);
    pass.stream = stream;
    tape_run(tape, step, -1, stream);
    CHECK_OK(dc_cache_begin_pass(tape->cache, &pass));
    for (int call = 0; call < calls; call++) {
        if (call % 2 == 0) {
            if (dc_cache_before_block(tape->cache, (uint32_t)call / 2, &x, NULL, 1) == DC_SKIP) return;
            continue;
        }
        tape_run(tape, step, call / 2, stream);
        dc_cache_after_block(tape->cache, (uint32_t)call / 2, &x, 1);
    }
}

static void a_pass_may_be_abandoned_with_its_stream(tape_t *tape)
{
    for (int another = 0; another < 2; another++)
        for (int calls = 0; calls < 5; calls++) {
            void *stream = a_stream(tape);
            give_cache(tape, TAPE_METHOD);
            begin_run(tape->cache, TAPE_STEPS);
            run_steps(tape, 0, 1, stream);
            open_a_pass(tape, 1, stream, calls);
            end_stream(tape, stream);
            go_on(tape, another);
        }
}

/* ---- passes that fail ---- */

static void what_a_failed_pass_queued_is_in_order_with_what_follows(tape_t *tape)
{
    enum { LAUNCH_OUT_OF_RESOURCES = 701 };
    for (int another = 0; another < 2; another++)
        for (uint64_t nth = 1; nth < 5; nth++) {
            void *stream = a_stream(tape);
            give_cache(tape, TAPE_METHOD);
            begin_run(tape->cache, TAPE_STEPS);
            CUDA_OK(soft.fail("cuLaunchKernel", nth, LAUNCH_OUT_OF_RESOURCES));
            uint32_t step = 0;
            do tape_pass(tape, step, stream);
            while (tape->ended[step++] == DC_OK);
            end_stream(tape, stream);
            go_on(tape, another);
        }
}

/* With DC_STREAM_SYNC the call that fills in also waits: where it cannot, it does not vouch for what it answered. */
static void a_skip_that_was_not_waited_for_is_disowned(tape_t *tape)
{
    enum { UNKNOWN = 999 };
    dc_tensor_t x = floats(tape_x(tape, 0), TAPE_N);
    dc_pass_t pass = pass_of(1, 0);
    pass.stream = DC_STREAM_SYNC;
    give_cache(tape, "mask,mask=10,front_blocks=1");
    begin_run(tape->cache, TAPE_STEPS);
    run_steps(tape, 0, 1, DC_STREAM_SYNC);
    CHECK_OK(dc_cache_begin_pass(tape->cache, &pass));
    CUDA_OK(soft.fail("cuEventSynchronize", 1, UNKNOWN));
    CHECK(dc_cache_before_block(tape->cache, 1, &x, NULL, 1) == DC_SKIP);
    CHECK_STATUS(dc_cache_end_pass(tape->cache), DC_ERR_DISCARD);
    CHECK_SAYS("cuEventSynchronize");
    dc_cache_destroy(tape->cache);
    tape_settle(tape);
}

/* Some of its work may have been queued before it failed, on a stream that the engine does not know. */
static void a_call_that_fails_waits_as_well(tape_t *tape)
{
    enum { LAUNCH_OUT_OF_RESOURCES = 701 };
    /* the second is not aligned, and so not in the launch of the first */
    dc_tensor_t both[2] = {floats(tape_x(tape, 0), TAPE_N), floats(tape_x(tape, 1) + 1, TAPE_N - 1)};
    give_cache(tape, "mask,mask=10,front_blocks=1");
    begin_run(tape->cache, TAPE_STEPS);
    for (uint32_t step = 0; step < 2; step++) {
        dc_pass_t pass = pass_of(step, 0);
        pass.stream = DC_STREAM_SYNC;
        for (uint32_t k = 0; k < 2; k++) tape_run(tape, k, -1, DC_STREAM_SYNC);
        CHECK_OK(dc_cache_begin_pass(tape->cache, &pass));
        if (step == 1) CUDA_OK(soft.fail("cuLaunchKernel", 2, LAUNCH_OUT_OF_RESOURCES));
        CHECK(dc_cache_before_block(tape->cache, 1, both, NULL, 2) == DC_COMPUTE);
        for (uint32_t k = 0; k < 2; k++) tape_run(tape, k, TAPE_BLOCKS - 1, DC_STREAM_SYNC);
        if (step == 0) dc_cache_after_block(tape->cache, TAPE_BLOCKS - 1, both, 2);
        CHECK_STATUS(dc_cache_end_pass(tape->cache), step == 0 ? DC_OK : DC_ERR_DISCARD);
    }
    dc_cache_destroy(tape->cache);
    tape_settle(tape); /* a kernel that came late would show here */
}

/* ---- captures ---- */

static void begin_at_the_first_block(void *stream, int call)
{
    if (call == 1) CUDA_OK(driver->StreamBeginCapture(stream, CUDA_CAPTURE_GLOBAL));
}

/* The pass has no use for what another run has left, and gives it back: not into the capture. */
static void what_a_refused_pass_frees_stays_out_of_the_capture(tape_t *tape)
{
    void *stream = a_stream(tape), *graph = NULL;
    size_t nodes = 1;
    give_cache(tape, TAPE_METHOD);
    begin_run(tape->cache, TAPE_STEPS);
    run_steps(tape, 0, 2, stream);
    begin_run(tape->cache, TAPE_STEPS);
    uint64_t held = stats_of(tape->cache).bytes_held;
    tape_pass_with(tape, 0, stream, begin_at_the_first_block, stream);
    CHECK_STATUS(tape->ended[0], DC_ERR_CAPTURE);
    CHECK(stats_of(tape->cache).bytes_held < held);
    CUDA_OK(driver->StreamEndCapture(stream, &graph));
    CUDA_OK(driver->GraphGetNodes(graph, NULL, &nodes));
    CHECK(nodes == TAPE_BLOCKS); /* the engine's own */
    CUDA_OK(driver->GraphDestroy(graph));
    dc_cache_destroy(tape->cache);
    tape_settle(tape);
    end_stream(tape, stream);
}

/* ---- guidance ---- */

/* Asked inside a pass, with a stream of its own, it leaves the pass where it was. */
static void guidance_leaves_the_pass_on_its_stream(tape_t *tape)
{
    enum { OF_PASS = 0, COND = 1, UNCOND = 2 };
    void *stream = a_stream(tape), *beside = a_stream(tape);
    dc_engine_t engine = an_engine(TAPE_BLOCKS, 2);
    engine.backend = DC_BACKEND_CUDA;
    engine.hooks |= DC_HOOK_GUIDE;
    tape->cache = a_cache(&engine, "mask,mask=1000,front_blocks=1,guidance.every=8");
    begin_run(tape->cache, TAPE_STEPS);
    dc_tensor_t x = floats(tape_x(tape, OF_PASS), TAPE_N), predictions[2];
    for (int k = 0; k < 2; k++) predictions[k] = rows_of(tape_x(tape, k == 0 ? COND : UNCOND), 10, TAPE_N / 10, TAPE_N / 10);
    for (uint32_t step = 0; step < 3; step++) {
        dc_pass_t pass = pass_of(step, 0), guided = pass_of(step, 1);
        pass.stream = stream;
        guided.stream = beside;
        tape_run(tape, OF_PASS, -1, stream);
        tape_run(tape, COND, 0, beside);
        CHECK_OK(dc_cache_begin_pass(tape->cache, &pass));
        if (dc_cache_before_uncond(tape->cache, &guided, &predictions[0], &predictions[1]) == DC_COMPUTE) {
            CHECK(step == 0);
            tape_run(tape, UNCOND, 1, beside);
            CHECK_OK(dc_cache_after_uncond(tape->cache, &guided, &predictions[0], &predictions[1]));
        }
        if (dc_cache_before_block(tape->cache, 1, &x, NULL, 1) == DC_COMPUTE) {
            CHECK(step == 0);
            tape_run(tape, OF_PASS, TAPE_BLOCKS - 1, stream);
            dc_cache_after_block(tape->cache, TAPE_BLOCKS - 1, &x, 1);
        }
        CHECK_OK(dc_cache_end_pass(tape->cache));
    }
    dc_cache_destroy(tape->cache);
    tape_settle(tape);
    end_stream(tape, stream);
    end_stream(tape, beside);
}

/* ---- between passes ---- */

static void looking_ahead_does_not_need_the_stream(tape_t *tape)
{
    void *stream = a_stream(tape), *other = a_stream(tape);
    give_cache(tape, TAPE_METHOD ",lagged=1");
    begin_run(tape->cache, TAPE_STEPS);
    run_steps(tape, 0, 3, stream);
    end_stream(tape, stream);
    soft.log_start();
    dc_pass_t next = pass_of(3, 0);
    next.stream = other;
    dc_action_t promised = dc_cache_peek(tape->cache, &next, 1);
    no_call_failed();
    CHECK(promised != DC_UNDECIDED);
    tape_pass(tape, 3, other);
    CHECK(tape->decisions[3] == (promised == DC_SKIP ? 's' : 'C'));
    dc_cache_destroy(tape->cache);
    tape_settle(tape);
    end_stream(tape, other);
}

/* ---- threads and contexts ---- */

typedef struct step_t {
    tape_t  *tape;
    uint32_t step;
} step_t;

static void *one_step(void *user)
{
    const step_t *it = user;
    CUDA_OK(driver->CtxSetCurrent(it->tape->context));
    tape_pass(it->tape, it->step, (void *)2);
    CUDA_OK(driver->CtxSetCurrent(NULL));
    return NULL;
}

static void the_per_thread_stream_of_each_thread_is_another(tape_t *tape)
{
    give_cache(tape, TAPE_METHOD);
    begin_run(tape->cache, TAPE_STEPS);
    for (uint32_t step = 0; step < TAPE_STEPS; step++) {
        step_t it = {tape, step};
        thread_t thread;
        start_thread(&thread, one_step, &it);
        join_thread(&thread);
    }
    tape_is(tape, healthy);
    dc_cache_destroy(tape->cache);
}

/* A cache of the second device, by its first stream; then streams that are of no context, in a thread that has none. */
static void a_cache_that_has_a_context_needs_no_current_one(void)
{
    void *second, *const streams[] = {DC_STREAM_SYNC, NULL, (void *)1};
    CUDA_OK(driver->PrimaryCtxRetain(&second, 1));
    for (size_t k = 0; k < sizeof streams / sizeof *streams; k++) {
        tape_t tape = a_tape(driver, second, -1);
        void *stream = a_stream(&tape);
        CUDA_OK(driver->CtxSetCurrent(NULL));
        give_cache(&tape, TAPE_METHOD);
        begin_run(tape.cache, TAPE_STEPS);
        run_steps(&tape, 0, 2, stream);
        run_steps(&tape, 2, TAPE_STEPS, streams[k]);
        tape_is(&tape, healthy);
        CHECK_OK(dc_cache_trim(tape.cache, streams[k]));
        dc_cache_destroy(tape.cache);
        end_stream(&tape, stream);
        end_tape(&tape);
    }
}

/* The same handle means another stream, of memory that is not the cache's: said, not done. */
static void the_null_stream_of_another_context_is_refused(tape_t *tape)
{
    void *other;
    CUDA_OK(driver->CtxCreate(&other, 0, 0));
    CUDA_OK(driver->CtxSetCurrent(tape->context));
    give_cache(tape, TAPE_METHOD);
    begin_run(tape->cache, TAPE_STEPS);
    run_steps(tape, 0, 2, NULL);
    CUDA_OK(driver->CtxSetCurrent(other));
    tape_pass(tape, 2, NULL);
    CHECK_STATUS(tape->ended[2], DC_ERR_DEVICE);
    CHECK_SAYS("context");
    CHECK(tape->decisions[2] == 'C');
    CUDA_OK(driver->CtxSetCurrent(tape->context));
    run_steps(tape, 3, 5, NULL);
    CHECK_OK(tape->ended[3]);
    CHECK_OK(tape->ended[4]);
    CHECK(tape->decisions[4] == 's');
    dc_cache_destroy(tape->cache);
    tape_settle(tape);
    CUDA_OK(driver->CtxSetCurrent(other));
    CUDA_OK(driver->CtxDestroy(other));
    CUDA_OK(driver->CtxSetCurrent(NULL));
}

/* As cudaDeviceReset() does: what the library holds there is gone, and is made anew. */
static void a_device_may_be_reset(void)
{
    CUDA_OK(driver->CtxSetCurrent(NULL));
    CHECK_OK(dc_backend_prepare(DC_BACKEND_CUDA, 1));
    while (driver->PrimaryCtxRelease(1) == 0) continue;
    CHECK_OK(dc_backend_prepare(DC_BACKEND_CUDA, 1));
    void *second;
    CUDA_OK(driver->PrimaryCtxRetain(&second, 1));
    tape_t tape = a_tape(driver, second, 1);
    give_cache(&tape, TAPE_METHOD);
    begin_run(tape.cache, TAPE_STEPS);
    run_steps(&tape, 0, TAPE_STEPS, DC_STREAM_SYNC);
    tape_is(&tape, healthy);
    dc_cache_destroy(tape.cache);
    end_tape(&tape);
}

int main(void)
{
    void *primary;
    driver = cuda();
    soft = softcuda();
    tape_on_cpu(healthy);
    CUDA_OK(driver->PrimaryCtxRetain(&primary, 0));
    CUDA_OK(driver->CtxSetCurrent(primary));
    tape_t tape = a_tape(driver, primary, 0);
    a_pass_may_be_abandoned_with_its_stream(&tape);
    what_a_failed_pass_queued_is_in_order_with_what_follows(&tape);
    a_skip_that_was_not_waited_for_is_disowned(&tape);
    a_call_that_fails_waits_as_well(&tape);
    what_a_refused_pass_frees_stays_out_of_the_capture(&tape);
    guidance_leaves_the_pass_on_its_stream(&tape);
    looking_ahead_does_not_need_the_stream(&tape);
    the_per_thread_stream_of_each_thread_is_another(&tape);
    a_cache_that_has_a_context_needs_no_current_one();
    the_null_stream_of_another_context_is_refused(&tape);
    end_tape(&tape);
    a_device_may_be_reset();
    return 0;
}
