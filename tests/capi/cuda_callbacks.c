/* The engine's callbacks on CUDA: an allocator and a reduction that make contexts of their own current, and a rank on
 * which something fails, which owes the others its vote all the same. On the stand-in, which fails on demand. */
#include "softcuda.h"

static const cuda_t *driver;
static softcuda_t soft;
static char healthy[TAPE_STEPS + 1]; /* decisions */

typedef struct ranks_t {
    void  *stray;    /* made current by each callback, which does not put back what was */
    void  *stream;   /* that the last reduction was on */
    int    calls;    /* reductions of this pass */
    double vote;     /* against the skip, in the last one */
} ranks_t;

static int32_t reduce(void *user, double *sums, size_t n, void *stream)
{
    ranks_t *ranks = user;
    double seen[6];
    CHECK(n == 6);
    CUDA_OK(driver->StreamSynchronize(stream));
    CUDA_OK(driver->CopyToHost(seen, sums, sizeof seen));
    ranks->calls++;
    ranks->stream = stream;
    ranks->vote = seen[5];
    if (ranks->stray != NULL) CUDA_OK(driver->CtxSetCurrent(ranks->stray));
    return 0;
}

static void *allocate(void *user, size_t size, void *stream)
{
    ranks_t *ranks = user;
    void *address = NULL;
    (void)stream;
    CUDA_OK(driver->MemAlloc(&address, size));
    if (ranks->stray != NULL) CUDA_OK(driver->CtxSetCurrent(ranks->stray));
    return address;
}

static void release(void *user, void *address, size_t size, void *stream)
{
    ranks_t *ranks = user;
    (void)size;
    (void)stream;
    CUDA_OK(driver->MemFree(address));
    if (ranks->stray != NULL) CUDA_OK(driver->CtxSetCurrent(ranks->stray));
}

static void give_cache_with(tape_t *tape, ranks_t *ranks, int allocates)
{
    dc_engine_t engine = an_engine(TAPE_BLOCKS, 1);
    engine.backend = DC_BACKEND_CUDA;
    engine.device = tape->ordinal;
    engine.reduce = reduce;
    engine.reduce_user = ranks;
    if (allocates) {
        engine.mem_alloc = allocate;
        engine.mem_free = release;
        engine.mem_user = ranks;
    }
    tape->cache = a_cache(&engine, TAPE_METHOD);
}

/* The pass; its one vote, wherever it went. */
static void a_voting_pass(tape_t *tape, ranks_t *ranks, uint32_t step, void *stream, meanwhile_t meanwhile, void *user)
{
    ranks->calls = 0;
    tape_pass_with(tape, step, stream, meanwhile, user);
    CHECK(ranks->calls == 1);
}

static void callbacks_may_leave_another_context_current(tape_t *tape)
{
    ranks_t ranks = {0};
    void *stream = a_stream(tape);
    CUDA_OK(driver->CtxCreate(&ranks.stray, 0, 1));
    CUDA_OK(driver->CtxSetCurrent(tape->context));
    give_cache_with(tape, &ranks, 1);
    for (int run = 0; run < 2; run++) {
        begin_run(tape->cache, TAPE_STEPS);
        for (uint32_t step = 0; step < TAPE_STEPS; step++) {
            a_voting_pass(tape, &ranks, step, stream, NULL, NULL);
            CHECK(ranks.stream == stream);
        }
        tape_is(tape, healthy);
    }
    surroundings_t before = surroundings(driver);
    dc_cache_destroy(tape->cache);
    unchanged(tape, &before);
    tape_settle(tape);
    end_stream(tape, stream);
}

/* ---- the vote of a rank that failed ---- */

static void a_failed_launch_votes_against(tape_t *tape)
{
    enum { LAUNCH_OUT_OF_RESOURCES = 701 };
    for (uint64_t nth = 1, struck = 1; struck; nth++) {
        ranks_t ranks = {0};
        void *stream = a_stream(tape);
        give_cache_with(tape, &ranks, 0);
        begin_run(tape->cache, TAPE_STEPS);
        CUDA_OK(soft.fail("cuLaunchKernel", nth, LAUNCH_OUT_OF_RESOURCES));
        struck = 0;
        for (uint32_t step = 0; step < TAPE_STEPS; step++) {
            a_voting_pass(tape, &ranks, step, stream, NULL, NULL);
            if (struck) CHECK(ranks.vote == 1.0); /* in the pass itself it may have been cast before */
            struck |= tape->ended[step] != DC_OK;
        }
        CUDA_OK(soft.fail("cuLaunchKernel", 0, 0));
        tape_verify(tape);
        dc_cache_destroy(tape->cache);
        tape_settle(tape);
        end_stream(tape, stream);
    }
}

/* A run without its memory votes on the streams of its passes; that of the run may be gone. */
static void a_run_without_memory_votes_on_the_streams_of_its_passes(tape_t *tape)
{
    ranks_t ranks = {0};
    void *stream = a_stream(tape);
    give_cache_with(tape, &ranks, 0);
    CUDA_OK(soft.fail("cuMemAllocAsync", 1, CUDA_OUT_OF_MEMORY));
    CHECK_STATUS(begin_run_with_shapes(tape->cache, stream), DC_ERR_MEMORY);
    end_stream(tape, stream);
    stream = a_stream(tape);
    for (uint32_t step = 0; step < TAPE_STEPS; step++) {
        a_voting_pass(tape, &ranks, step, stream, NULL, NULL);
        CHECK_STATUS(tape->ended[step], DC_ERR_MEMORY);
        CHECK(ranks.stream == stream && ranks.vote == 1.0);
    }
    dc_cache_destroy(tape->cache);
    tape_settle(tape);
    end_stream(tape, stream);
}

typedef struct capture_t {
    const tape_t *tape;
    void         *stream;
    int           begins_at;
} capture_t;

static void begin_when_due(void *user, int call)
{
    const capture_t *capture = user;
    if (call == capture->begins_at) CUDA_OK(driver->StreamBeginCapture(capture->stream, CUDA_CAPTURE_GLOBAL));
}

static void a_rank_whose_stream_is_captured_votes_beside_it(tape_t *tape)
{
    for (uint32_t at = 0; at < 3; at++)
        for (int begins_at = 0; begins_at < 4; begins_at++) {
            ranks_t ranks = {0};
            capture_t capture = {tape, a_stream(tape), begins_at};
            void *graph = NULL;
            give_cache_with(tape, &ranks, 0);
            begin_run(tape->cache, TAPE_STEPS);
            for (uint32_t step = 0; step < at; step++) a_voting_pass(tape, &ranks, step, capture.stream, NULL, NULL);
            a_voting_pass(tape, &ranks, at, capture.stream, begin_when_due, &capture);
            CHECK_STATUS(tape->ended[at], DC_ERR_CAPTURE);
            CHECK(ranks.vote == 1.0 && ranks.stream != capture.stream);
            CUDA_OK(driver->StreamEndCapture(capture.stream, &graph));
            CHECK(graph != NULL);
            CUDA_OK(driver->GraphDestroy(graph));
            dc_cache_destroy(tape->cache);
            tape_settle(tape);
            end_stream(tape, capture.stream);
        }
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
    callbacks_may_leave_another_context_current(&tape);
    a_failed_launch_votes_against(&tape);
    a_run_without_memory_votes_on_the_streams_of_its_passes(&tape);
    a_rank_whose_stream_is_captured_votes_beside_it(&tape);
    end_tape(&tape);
    return 0;
}
