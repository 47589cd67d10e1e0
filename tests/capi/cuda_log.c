/* A run as the driver sees it: on the engine's stream and no other, waiting for nothing but its measurements, with all
 * memory taken at its beginning and given back in order at its end. On the stand-in, which keeps an access log. */
#include "softcuda.h"

enum { LOG_ROOM = 1 << 20, FRONT_IS_ASKED = 3 /* the call of a pass that settles it: before_block(1) */ };

typedef struct world_t {
    softcuda_t soft;
    tape_t     tape;
    void      *stream;
    char       log[LOG_ROOM];
    uint64_t   waits[2 * TAPE_BLOCKS + 2]; /* calls that wait, before each call of a pass */
    int        calls;
} world_t;

/* ---- reading the log ---- */

static void read_log(world_t *world)
{
    size_t length;
    CUDA_OK(world->soft.log_text(world->log, sizeof world->log, &length));
    CHECK(length < sizeof world->log);
}

/* Lines that begin with `word`; all of them if it is empty. */
static int lines_of(const char *log, const char *word)
{
    int n = 0;
    for (const char *line = log; *line != '\0'; line = strchr(line, '\n') + 1) n += strncmp(line, word, strlen(word)) == 0;
    return n;
}

/* The number behind `key=` in a line, or 0. */
static void *value_in(const char *line, const char *key)
{
    size_t length = strcspn(line, "\n");
    const char *found = strstr(line, key);
    if (found == NULL || found >= line + length) return NULL;
    return (void *)(uintptr_t)strtoull(found + strlen(key), NULL, 16);
}

/* The stream that every line speaks of which speaks of one. */
static void *only_stream(const char *log)
{
    void *only = NULL;
    for (const char *line = log; *line != '\0'; line = strchr(line, '\n') + 1) {
        void *stream = value_in(line, " stream=");
        if (stream == NULL) continue;
        CHECK(only == NULL || stream == only);
        only = stream;
    }
    return only;
}

/* What was changed of the thread was changed back, and nothing failed: a failed call ends with " = " and its error. The
 * question whose a stream is may fail on a thread without a context; it is then asked again. */
static void is_even(const char *log)
{
    CHECK(lines_of(log, "push") == lines_of(log, "pop"));
    CHECK(lines_of(log, "exchange_capture_mode") % 2 == 0);
    CHECK(lines_of(log, "set_current") == 0);
    for (const char *line = log; *line != '\0'; line = strchr(line, '\n') + 1) {
        const char *failed = strstr(line, " = ");
        CHECK(failed == NULL || failed > strchr(line, '\n') || strncmp(line, "cuStreamGetCtx", 14) == 0);
    }
}

/* ---- the run ---- */

static void begin_with_shapes(world_t *world)
{
    CHECK_OK(begin_run_with_shapes(world->tape.cache, world->stream));
}

static void count_waits(void *user, int call)
{
    world_t *world = user;
    world->waits[call] = soft_stats(&world->soft).synchronises;
    world->calls = call + 1;
}

/* One pass: what it launches and copies, and which of its calls waits. */
static void a_pass_queues_little_and_waits_once(world_t *world, uint32_t step)
{
    softcuda_stats_t before = soft_stats(&world->soft);
    world->soft.log_start();
    tape_pass_with(&world->tape, step, world->stream, count_waits, world);
    softcuda_stats_t after = soft_stats(&world->soft);
    read_log(world);
    int skipped = world->tape.decisions[step] == 's', measured = step > 0;

    CHECK_OK(world->tape.ended[step]);
    is_even(world->log);
    CHECK(only_stream(world->log) == world->stream);
    CHECK(lines_of(world->log, "alloc") == 0 && lines_of(world->log, "free") == 0);

    /* front: what the block added, measured and kept in one launch; then the span's result, or what it added */
    CHECK(after.launches - before.launches == 2);
    CHECK(lines_of(world->log, "launch") == 2);
    CHECK(lines_of(world->log, "launch measure_rows") == measured);
    CHECK(lines_of(world->log, "launch combine_rows_1") == 2 - measured);
    /* copies: block 0's input and, if the span computes, the span's; beside them the engine's own */
    int engines = 1 + (skipped ? 1 : TAPE_BLOCKS);
    CHECK(lines_of(world->log, "copy_dtod") - engines == (skipped ? 1 : 2));
    CHECK(lines_of(world->log, "copy") == lines_of(world->log, "copy_dtod"));

    CHECK(lines_of(world->log, "sync") == measured && lines_of(world->log, "sync_event") == measured);
    CHECK(strstr(world->log, "(sync_") == NULL); /* nor is anything called that waits among other things */
    for (int call = 0; call < world->calls; call++) {
        uint64_t next = call + 1 < world->calls ? world->waits[call + 1] : after.synchronises;
        CHECK(next - world->waits[call] == (uint64_t)(call == FRONT_IS_ASKED && measured));
    }
}

/* What was taken is freed after an event that stands behind the last pass, on a stream that waits for it. */
static void all_is_freed_in_order(world_t *world, const char *taken)
{
    static char last_pass[LOG_ROOM];
    memcpy(last_pass, world->log, sizeof last_pass);
    world->soft.log_start();
    dc_cache_destroy(world->tape.cache);
    read_log(world);
    is_even(world->log);
    CHECK(lines_of(world->log, "sync") == 0);

    void *own = only_stream(world->log);
    CHECK(own != NULL && own != world->stream);
    const char *last = NULL; /* the last word on the engine's stream */
    for (const char *line = last_pass; *line != '\0'; line = strchr(line, '\n') + 1)
        if (value_in(line, " stream=") != NULL) last = line;
    CHECK(last != NULL && strncmp(last, "record_event", 12) == 0);
    const char *waits = strstr(world->log, "wait_event"), *frees = strstr(world->log, "free_async");
    CHECK(waits != NULL && frees != NULL && waits < frees);
    CHECK(value_in(waits, " event=") == value_in(last, " event="));

    CHECK(lines_of(world->log, "free_async") == lines_of(taken, "alloc_async"));
    for (const char *line = taken; *line != '\0'; line = strchr(line, '\n') + 1) {
        char wanted[64];
        if (strncmp(line, "alloc_async", 11) != 0) continue;
        snprintf(wanted, sizeof wanted, "free_async %#zx ", (size_t)strtoull(line + 12, NULL, 16));
        CHECK(strstr(world->log, wanted) != NULL);
    }
}

static void a_run_with_shapes(world_t *world)
{
    static char taken[LOG_ROOM];
    uint64_t live = soft_stats(&world->soft).live_allocations;
    give_cache(&world->tape, TAPE_METHOD);
    CHECK(soft_stats(&world->soft).live_allocations == live); /* creating one takes no memory */

    world->soft.log_start();
    begin_with_shapes(world);
    read_log(world);
    memcpy(taken, world->log, sizeof taken);
    is_even(taken);
    CHECK(only_stream(taken) == world->stream);
    CHECK(lines_of(taken, "alloc_async") == 3 && lines_of(taken, "alloc") == 3); /* B(2N) + N, with B = 1 */
    CHECK(lines_of(taken, "sync") == 0 && lines_of(taken, "launch") == 0 && lines_of(taken, "module_load") == 0);

    for (uint32_t step = 0; step < TAPE_STEPS; step++) a_pass_queues_little_and_waits_once(world, step);
    all_is_freed_in_order(world, taken);
    CHECK(soft_stats(&world->soft).live_allocations == live);
    tape_verify(&world->tape);
    CHECK(strchr(world->tape.decisions, 's') != NULL && strchr(world->tape.decisions + 1, 'C') != NULL);
}

int main(void)
{
    static world_t world; /* large */
    const cuda_t *driver = cuda();
    void *primary;
    world.soft = softcuda();
    CUDA_OK(driver->PrimaryCtxRetain(&primary, 0));
    world.tape = a_tape(driver, primary, 0);
    world.stream = a_stream(&world.tape);
    CHECK_OK(dc_backend_prepare(DC_BACKEND_CUDA, 0));
    for (int current = 0; current < 2; current++) {
        CUDA_OK(driver->CtxSetCurrent(current ? primary : NULL));
        a_run_with_shapes(&world);
    }
    end_stream(&world.tape, world.stream);
    end_tape(&world.tape);
    return 0;
}
