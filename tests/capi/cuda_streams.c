/* Streams of every kind, and engines that change them: the results are the CPU's, and the thread is left as it was. */
#include "softcuda.h"

enum kind { ONE, ALTERNATING, DESTROYED, NULL_STREAM, LEGACY, PER_THREAD, SYNCHRONISED, KINDS };
enum current { OURS, NONE, ANOTHER, CURRENTS };

static const char *const kinds[] = {"one", "alternating", "destroyed", "null", "legacy", "per thread", "synchronised"};

/* Allocations on the device; 0 where the driver does not tell. */
static uint64_t live_allocations(void)
{
    softcuda_t soft;
    return find_softcuda(&soft) ? soft_stats(&soft).live_allocations : 0;
}

/* A run of one step after the other; which stream each is on. */
static void run_on(tape_t *tape, enum kind kind, void *const streams[2])
{
    for (uint32_t step = 0; step < TAPE_STEPS; step++) {
        void *stream = streams[0];
        switch (kind) {
        case ALTERNATING: stream = streams[step / 2 % 2]; break;
        case DESTROYED: stream = a_stream(tape); break;
        case NULL_STREAM: stream = NULL; break;
        case LEGACY: stream = (void *)1; break;
        case PER_THREAD: stream = (void *)2; break;
        case SYNCHRONISED: stream = DC_STREAM_SYNC; break;
        default: break;
        }
        tape_pass(tape, step, stream);
        if (kind == DESTROYED) end_stream(tape, stream);
    }
}

static void every_stream_gives_what_the_cpu_gives(const cuda_t *driver, void *primary, void *other)
{
    char decisions[TAPE_STEPS + 1];
    tape_on_cpu(decisions);
    for (int kind = 0; kind < KINDS; kind++)
        for (int current = 0; current < CURRENTS; current++) {
            /* a stream without a context means that of the current one, where the tensors are not */
            if (kind >= NULL_STREAM && current == ANOTHER) continue;
            CUDA_OK(driver->CtxSetCurrent(current == OURS ? primary : current == ANOTHER ? other : NULL));
            surroundings_t before = surroundings(driver);
            tape_t tape = a_tape(driver, primary, 0);
            void *streams[2] = {a_stream(&tape), a_stream(&tape)};
            uint64_t live = live_allocations();
            give_cache(&tape, TAPE_METHOD);
            unchanged(&tape, &before);
            for (int run = 0; run < 2; run++) { /* the second on other streams, without a word */
                begin_run(tape.cache, TAPE_STEPS);
                unchanged(&tape, &before);
                run_on(&tape, (enum kind)kind, streams);
                if (strcmp(tape.decisions, decisions) != 0) fprintf(stderr, "stream: %s\n", kinds[kind]);
                tape_is(&tape, decisions);
                end_stream(&tape, streams[0]);
                streams[0] = streams[1];
                streams[1] = a_stream(&tape);
            }
            end_stream(&tape, streams[0]);
            end_stream(&tape, streams[1]);
            (void)stats_of(tape.cache);
            unchanged(&tape, &before);
            dc_cache_destroy(tape.cache);
            unchanged(&tape, &before);
            CHECK(live_allocations() == live); /* although no stream of the engine's is left */
            end_tape(&tape);
        }
}

/* Kept tensors in one pass, freed while their work is queued. */
static void what_is_freed_early_is_freed_in_order(const cuda_t *driver, void *primary)
{
    for (int trim = 0; trim < 2; trim++) {
        tape_t tape = a_tape(driver, primary, 0);
        void *stream = a_stream(&tape);
        CUDA_OK(driver->CtxSetCurrent(NULL));
        surroundings_t before = surroundings(driver);
        give_cache(&tape, TAPE_METHOD);
        begin_run(tape.cache, TAPE_STEPS);
        for (uint32_t step = 0; step < 3; step++) tape_pass(&tape, step, stream);
        if (trim) {
            CHECK_OK(dc_cache_trim(tape.cache, stream));
            CHECK(stats_of(tape.cache).bytes_held == 0);
            for (uint32_t step = 3; step < 6; step++) tape_pass(&tape, step, stream);
        }
        dc_cache_destroy(tape.cache); /* nobody has waited for the last pass */
        unchanged(&tape, &before);
        end_stream(&tape, stream);
        end_tape(&tape);
    }
}

/* The calls that only prepare leave the thread alone as well. */
static void preparing_leaves_the_thread_alone(const cuda_t *driver, void *other)
{
    for (int current = 0; current < 2; current++) {
        CUDA_OK(driver->CtxSetCurrent(current ? other : NULL));
        surroundings_t before = surroundings(driver), after;
        CHECK_OK(dc_backend_prepare(DC_BACKEND_CUDA, 0));
        CHECK_OK(dc_backend_prepare(DC_BACKEND_CUDA, -1));
        CHECK_STATUS(dc_backend_prepare(DC_BACKEND_CUDA, 1000), DC_ERR_DEVICE);
        CHECK_SAYS("1000");
        after = surroundings(driver);
        CHECK(after.context == before.context && after.mode == before.mode);
    }
}

int main(void)
{
    const cuda_t *driver = cuda();
    void *primary, *other;
    CUDA_OK(driver->PrimaryCtxRetain(&primary, 0));
    CUDA_OK(driver->CtxCreate(&other, 0, 0));
    preparing_leaves_the_thread_alone(driver, other);
    every_stream_gives_what_the_cpu_gives(driver, primary, other);
    what_is_freed_early_is_freed_in_order(driver, primary);
    CUDA_OK(driver->CtxSetCurrent(NULL));
    CUDA_OK(driver->CtxDestroy(other));
    return 0;
}
