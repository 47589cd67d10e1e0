/* Captures: a stream that is being captured is refused and its capture left whole; so are captures of other threads. */
#include "tape.h"

/* Where a capture begins: before which call of the pass (see meanwhile_t). */
typedef struct capture_t {
    const tape_t *tape;
    void         *stream;
    int           begins_at;
} capture_t;

static void begin_capture(const tape_t *tape, void *stream)
{
    void *popped;
    CUDA_OK(tape->cuda->CtxPushCurrent(tape->context));
    CUDA_OK(tape->cuda->StreamBeginCapture(stream, CUDA_CAPTURE_GLOBAL));
    CUDA_OK(tape->cuda->CtxPopCurrent(&popped));
}

/* The capture is as whole as if nobody had been there. */
static void end_capture(const tape_t *tape, void *stream)
{
    void *graph = NULL, *popped;
    CUDA_OK(tape->cuda->CtxPushCurrent(tape->context));
    CUDA_OK(tape->cuda->StreamEndCapture(stream, &graph));
    CHECK(graph != NULL);
    CUDA_OK(tape->cuda->GraphDestroy(graph));
    CUDA_OK(tape->cuda->CtxPopCurrent(&popped));
}

static void begin_when_due(void *user, int call)
{
    const capture_t *capture = user;
    if (call == capture->begins_at) begin_capture(capture->tape, capture->stream);
}

/* The run up to the pass, the pass with its capture, and two passes after it. */
static void a_pass_with_a_capture(const cuda_t *driver, void *primary, const char *method, uint32_t at, int begins_at)
{
    tape_t tape = a_tape(driver, primary, 0);
    capture_t capture = {&tape, a_stream(&tape), begins_at};
    give_cache(&tape, method);
    begin_run(tape.cache, TAPE_STEPS);
    for (uint32_t step = 0; step < at; step++) {
        tape_pass(&tape, step, capture.stream);
        CHECK_STATUS(tape.ended[step], DC_OK);
    }
    tape_pass_with(&tape, at, capture.stream, begin_when_due, &capture);
    CHECK(tape.decisions[at] == 'C');
    CHECK_STATUS(tape.ended[at], DC_ERR_CAPTURE);
    CHECK_SAYS("captured");
    CHECK(newest(tape.cache).reason == DC_REASON_CAPTURE);
    end_capture(&tape, capture.stream);
    for (uint32_t step = at + 1; step < at + 3; step++) {
        tape_pass(&tape, step, capture.stream);
        CHECK_STATUS(tape.ended[step], DC_OK);
    }
    CHECK(tape.decisions[at + 2] == 's'); /* the cache works again */
    dc_cache_destroy(tape.cache);
    end_stream(&tape, capture.stream);
    end_tape(&tape);
}

/* Of rules that measure and of those that do not: a replay would not advance the state of either. */
static void a_capturing_stream_is_refused_and_its_capture_stays_whole(const cuda_t *driver, void *primary)
{
    static const char *const methods[] = {"fbcache,threshold=0.9," NO_RAILS, "mask,mask=10000000,front_blocks=1"};
    for (int m = 0; m < 2; m++)
        for (uint32_t at = 0; at < 3; at++)
            for (int begins_at = 0; begins_at < 4; begins_at++) /* up to the call that would settle the pass */
                a_pass_with_a_capture(driver, primary, methods[m], at, begins_at);
}

/* ---- captures of others ---- */

static void *run_the_tape(void *user)
{
    tape_t *tape = user;
    void *stream = a_stream(tape);
    give_cache(tape, TAPE_METHOD);
    begin_run(tape->cache, TAPE_STEPS);
    for (uint32_t step = 0; step < TAPE_STEPS; step++) tape_pass(tape, step, stream);
    dc_cache_destroy(tape->cache);
    return NULL;
}

/* In global mode a capture forbids every thread what the library does in a first run: to load kernels, to allocate. */
static void a_capture_elsewhere_survives_the_librarys_first_run(const cuda_t *driver, void *primary)
{
    char decisions[TAPE_STEPS + 1];
    tape_on_cpu(decisions);
    for (int same_thread = 0; same_thread < 2; same_thread++) {
        tape_t tape = a_tape(driver, primary, 0);
        void *captured = a_stream(&tape);
        begin_capture(&tape, captured);
        if (same_thread) {
            (void)run_the_tape(&tape);
        } else {
            pthread_t thread; /* its stack is its own affair */
            CHECK(pthread_create(&thread, NULL, run_the_tape, &tape) == 0);
            CHECK(pthread_join(thread, NULL) == 0);
        }
        end_capture(&tape, captured);
        tape_is(&tape, decisions);
        end_stream(&tape, captured);
        end_tape(&tape);
    }
}

int main(void)
{
    const cuda_t *driver = cuda();
    void *primary;
    CUDA_OK(driver->PrimaryCtxRetain(&primary, 0));
    a_capture_elsewhere_survives_the_librarys_first_run(driver, primary); /* the first: nothing is loaded yet */
    a_capturing_stream_is_refused_and_its_capture_stays_whole(driver, primary);
    return 0;
}
