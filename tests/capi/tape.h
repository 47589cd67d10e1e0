/* An engine that queues its work, for the tests of CUDA streams and memory. What its blocks compute is known beforehand,
 * as if it were on a tape, and running a block is a copy on the pass's stream: so nothing waits but the library. It
 * works in host memory just the same, and what the CPU backend makes of it is what CUDA must make of it, to the bit. */
#ifndef DIFFCACHE_TESTS_TAPE_H
#define DIFFCACHE_TESTS_TAPE_H

#include "check.h"

enum { TAPE_STEPS = 12, TAPE_BLOCKS = 4, TAPE_N = 1000 };

#define TAPE_METHOD "fbcache,threshold=0.05," NO_RAILS

/* What goes into a step's first block (block -1), or comes out of a block. */
static inline float tape_value(uint32_t step, int block, int j)
{
    float drift = 1.0f + 0.02f * (float)step;
    return 1.0f + 0.1f * (float)(j % 7) + 0.01f * (float)step + 0.25f * drift * (float)(block + 1);
}

typedef struct tape_t {
    const cuda_t *cuda;    /* null: in host memory */
    void         *context; /* of its memory, and current only while it queues a copy */
    int           ordinal;
    float        *values;  /* of all steps and blocks */
    float        *x;       /* each step has a tensor of its own */
    float        *beside;  /* a second tensor, in host memory on any backend; null = none */
    int           doomed;  /* the device is about to fail: so may the engine's own work */
    dc_cache_t   *cache;
    char          decisions[TAPE_STEPS + 1];
    dc_status_t   ended[TAPE_STEPS];
} tape_t;

static inline size_t tape_at(uint32_t step, int block)
{
    return ((size_t)step * (TAPE_BLOCKS + 1) + (size_t)(block + 1)) * TAPE_N;
}

/* On a device, whose `context` need not be current; on the host if `driver` is null. */
static inline tape_t a_tape(const cuda_t *driver, void *context, int ordinal)
{
    size_t floats = (size_t)TAPE_STEPS * (TAPE_BLOCKS + 1) * TAPE_N;
    float *values = malloc(floats * sizeof *values);
    tape_t tape;
    memset(&tape, 0, sizeof tape);
    CHECK(values != NULL);
    for (uint32_t step = 0; step < TAPE_STEPS; step++)
        for (int block = -1; block < TAPE_BLOCKS; block++)
            for (int j = 0; j < TAPE_N; j++) values[tape_at(step, block) + (size_t)j] = tape_value(step, block, j);
    tape.cuda = driver;
    tape.context = context;
    tape.ordinal = ordinal;
    tape.values = values;
    if (driver == NULL) {
        tape.x = malloc(TAPE_STEPS * TAPE_N * sizeof *tape.x);
        CHECK(tape.x != NULL);
        return tape;
    }
    void *data, *popped;
    CUDA_OK(driver->CtxPushCurrent(context));
    CUDA_OK(driver->MemAlloc(&data, TAPE_STEPS * TAPE_N * sizeof *tape.x));
    tape.x = data;
    CUDA_OK(driver->MemAlloc(&data, floats * sizeof *values));
    tape.values = data;
    CUDA_OK(driver->CopyToDevice(tape.values, values, floats * sizeof *values));
    CUDA_OK(driver->CtxPopCurrent(&popped));
    free(values);
    return tape;
}

static inline void end_tape(tape_t *tape)
{
    void *popped;
    free(tape->beside);
    if (tape->cuda == NULL) {
        free(tape->values);
        free(tape->x);
        return;
    }
    CUDA_OK(tape->cuda->CtxPushCurrent(tape->context));
    CUDA_OK(tape->cuda->MemFree(tape->values));
    CUDA_OK(tape->cuda->MemFree(tape->x));
    CUDA_OK(tape->cuda->CtxPopCurrent(&popped));
}

/* A stream of the engine's, in the context of its tensors. */
static inline void *a_stream(const tape_t *tape)
{
    void *stream, *popped;
    CUDA_OK(tape->cuda->CtxPushCurrent(tape->context));
    CUDA_OK(tape->cuda->StreamCreate(&stream, CUDA_NON_BLOCKING));
    CUDA_OK(tape->cuda->CtxPopCurrent(&popped));
    return stream;
}

static inline void end_stream(const tape_t *tape, void *stream)
{
    void *popped;
    CUDA_OK(tape->cuda->CtxPushCurrent(tape->context));
    CUDA_OK(tape->cuda->StreamDestroy(stream));
    CUDA_OK(tape->cuda->CtxPopCurrent(&popped));
}

static inline void give_cache(tape_t *tape, const char *method)
{
    dc_engine_t engine = an_engine(TAPE_BLOCKS, 1);
    engine.backend = tape->cuda == NULL ? DC_BACKEND_CPU : DC_BACKEND_CUDA;
    engine.device = tape->ordinal;
    engine.measure = tape->beside == NULL ? 1 : 3;
    tape->cache = a_cache(&engine, method);
}

/* Begins a run that takes all its memory at once. */
static inline dc_status_t begin_run_with_shapes(dc_cache_t *cache, void *stream)
{
    dc_tensor_t row = floats(NULL, TAPE_N);
    dc_shape_t shape;
    dc_run_t run = headers_run;
    memset(&shape, 0, sizeof shape);
    shape.hook = DC_HOOK_EACH;
    shape.branch = UINT32_MAX;
    shape.tensors = &row;
    shape.n = 1;
    run.n_steps = TAPE_STEPS;
    run.n_shapes = 1;
    run.shapes = &shape;
    run.stream = stream;
    return dc_cache_begin_run(cache, &run);
}

/* ---- the thread ---- */

/* What no call of the library may change. */
typedef struct surroundings_t {
    void *context;
    int   mode;
} surroundings_t;

static inline surroundings_t surroundings(const cuda_t *driver)
{
    surroundings_t now = {NULL, CUDA_CAPTURE_RELAXED};
    if (driver == NULL) return now;
    CUDA_OK(driver->CtxGetCurrent(&now.context));
    CUDA_OK(driver->ExchangeCaptureMode(&now.mode));
    int mode = now.mode;
    CUDA_OK(driver->ExchangeCaptureMode(&mode));
    return now;
}

static inline void unchanged(const tape_t *tape, const surroundings_t *before)
{
    surroundings_t now = surroundings(tape->cuda);
    CHECK(now.context == before->context && now.mode == before->mode);
}

/* ---- a pass ---- */

static inline float *tape_x(const tape_t *tape, uint32_t step) { return tape->x + (size_t)step * TAPE_N; }

/* The engine's work: what `block` computes is put into the step's tensors. `stream` is where the engine queues. */
static inline void tape_run(const tape_t *tape, uint32_t step, int block, void *stream)
{
    const float *from = tape->values + tape_at(step, block);
    size_t bytes = TAPE_N * sizeof *from;
    if (tape->beside != NULL)
        for (int j = 0; j < TAPE_N; j++) tape->beside[(size_t)step * TAPE_N + (size_t)j] = 2.0f * tape_value(step, block, j);
    if (tape->cuda == NULL) {
        memcpy(tape_x(tape, step), from, bytes);
        return;
    }
    void *popped;
    CUDA_OK(tape->cuda->CtxPushCurrent(tape->context));
    int code = tape->cuda->CopyOnDevice(tape_x(tape, step), from, bytes, stream == DC_STREAM_SYNC ? NULL : stream);
    if (!tape->doomed) CUDA_OK(code);
    if (stream == DC_STREAM_SYNC) CUDA_OK(tape->cuda->StreamSynchronize(NULL));
    CUDA_OK(tape->cuda->CtxPopCurrent(&popped));
}

/* Called before each call into the library, in the middle of a pass: call 0 is begin_pass, call 1 before_block(0), and so
 * on. */
typedef void (*meanwhile_t)(void *user, int call);

static inline void tape_pass_with(tape_t *tape, uint32_t step, void *stream, meanwhile_t meanwhile, void *user)
{
    surroundings_t before = surroundings(tape->cuda);
    dc_pass_t pass = pass_of(step, 0);
    dc_tensor_t x[2];
    int call = 0, n = tape->beside == NULL ? 1 : 2;
#define CALL(it)                                  \
    do {                                          \
        if (meanwhile) meanwhile(user, call);     \
        call++;                                   \
        it;                                       \
        unchanged(tape, &before);                 \
    } while (0)
    pass.stream = stream;
    x[0] = floats(tape_x(tape, step), TAPE_N);
    if (n == 2) {
        x[1] = floats(tape->beside + (size_t)step * TAPE_N, TAPE_N);
        x[1].flags = tape->cuda == NULL ? 0 : DC_TENSOR_HOST;
    }
    tape->decisions[step] = 'C';
    tape_run(tape, step, -1, stream);
    CALL((void)dc_cache_begin_pass(tape->cache, &pass));
    for (int i = 0; i < TAPE_BLOCKS; i++) {
        dc_action_t action;
        CALL(action = dc_cache_before_block(tape->cache, (uint32_t)i, x, NULL, (size_t)n));
        if (action == DC_SKIP) {
            tape->decisions[step] = 's';
            continue;
        }
        tape_run(tape, step, i, stream);
        CALL(dc_cache_after_block(tape->cache, (uint32_t)i, x, (size_t)n));
    }
    CALL(tape->ended[step] = dc_cache_end_pass(tape->cache));
#undef CALL
}

static inline void tape_pass(tape_t *tape, uint32_t step, void *stream)
{
    tape_pass_with(tape, step, stream, NULL, NULL);
}

/* All that was queued on the device is done. */
static inline void tape_settle(const tape_t *tape)
{
    void *popped;
    CUDA_OK(tape->cuda->CtxPushCurrent(tape->context));
    CUDA_OK(tape->cuda->CtxSynchronize());
    CUDA_OK(tape->cuda->CtxPopCurrent(&popped));
}

/* ---- what came out ---- */

/* The tensors of all steps, once the device is done. */
static inline void tape_read(const tape_t *tape, float out[TAPE_STEPS * TAPE_N])
{
    size_t bytes = TAPE_STEPS * TAPE_N * sizeof *out;
    void *popped;
    if (tape->cuda == NULL) {
        memcpy(out, tape->x, bytes);
        return;
    }
    tape_settle(tape);
    CUDA_OK(tape->cuda->CtxPushCurrent(tape->context));
    CUDA_OK(tape->cuda->CopyToHost(out, tape->x, bytes));
    CUDA_OK(tape->cuda->CtxPopCurrent(&popped));
}

/* The output of every step that the library did not disown is right, to the bit. */
static inline void tape_verify(const tape_t *tape)
{
    static float out[TAPE_STEPS * TAPE_N];
    int newest = -1; /* the last step whose result is kept */
    tape_read(tape, out);
    for (uint32_t step = 0; step < TAPE_STEPS; step++) {
        if (tape->decisions[step] == 'C' && tape->ended[step] == DC_OK) newest = (int)step;
        if (tape->ended[step] == DC_ERR_DISCARD) continue;
        for (int j = 0; j < TAPE_N; j++) {
            float want = tape_value(step, TAPE_BLOCKS - 1, j);
            if (tape->decisions[step] == 's') {
                uint32_t kept = (uint32_t)newest;
                float residual = tape_value(kept, TAPE_BLOCKS - 1, j) - tape_value(kept, 0, j);
                CHECK(newest >= 0);
                want = tape_value(step, 0, j) + residual;
            }
            CHECK(out[step * TAPE_N + (uint32_t)j] == want);
        }
    }
}

/* The decisions of a run in which nothing goes wrong, on the CPU. */
static inline void tape_on_cpu(char decisions[TAPE_STEPS + 1])
{
    tape_t tape = a_tape(NULL, NULL, 0);
    give_cache(&tape, TAPE_METHOD);
    begin_run(tape.cache, TAPE_STEPS);
    for (uint32_t step = 0; step < TAPE_STEPS; step++) tape_pass(&tape, step, NULL);
    tape_verify(&tape);
    dc_cache_destroy(tape.cache);
    strcpy(decisions, tape.decisions);
    CHECK(strchr(decisions, 's') != NULL && strchr(strchr(decisions, 's'), 'C') != NULL);
    end_tape(&tape);
}

/* Nothing went wrong, and the run is that of the CPU. */
static inline void tape_is(const tape_t *tape, const char *decisions)
{
    for (uint32_t step = 0; step < TAPE_STEPS; step++) CHECK_STATUS(tape->ended[step], DC_OK);
    if (strcmp(tape->decisions, decisions) != 0) fprintf(stderr, "%s, on the CPU %s\n", tape->decisions, decisions);
    CHECK(strcmp(tape->decisions, decisions) == 0);
    tape_verify(tape);
}

#endif
