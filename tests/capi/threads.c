/* Threads: one at a time per cache is the rule, any thread, any number of caches. Breaking the rule is a defined
 * error, and an output that the library does not disown is right. */
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

enum { BLOCKS = 6, THREADS = 8 };

/* Every block adds one and the same number, so that reuse is exact: a right pass adds BLOCKS / 4, whatever was
 * skipped and whoever computed what is reused. */
static const float STEP_UP = 0.25f;

typedef struct worker_t {
    dc_cache_t *cache;
    float       base;        /* this thread's input; a residual mixed from two threads shows */
    long        passes;      /* to run */
    long        right, disowned, skipped, refused;
    pthread_t   thread;
} worker_t;

static void start(worker_t *worker, void *(*work)(void *))
{
    CHECK(pthread_create(&worker->thread, NULL, work, worker) == 0);
}

static void finish(worker_t *worker)
{
    CHECK(pthread_join(worker->thread, NULL) == 0);
}

/* One pass as an engine runs it, status by status as they come. */
static dc_status_t run_pass(worker_t *worker, uint32_t step)
{
    float x[TOY];
    dc_pass_t pass = pass_of(step, 0);
    dc_status_t status;
    int skipped = 0;
    for (int j = 0; j < TOY; j++) x[j] = worker->base + (float)j;
    (void)dc_cache_begin_pass(worker->cache, &pass);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        dc_tensor_t tensor = floats(x, TOY);
        if (dc_cache_before_block(worker->cache, i, &tensor, NULL, 1) == DC_COMPUTE) {
            for (int j = 0; j < TOY; j++) x[j] += STEP_UP;
            dc_cache_after_block(worker->cache, i, &tensor, 1);
        } else {
            skipped = 1;
        }
    }
    status = dc_cache_end_pass(worker->cache);
    if (status == DC_ERR_DISCARD) {
        worker->disowned++;
        return status;
    }
    for (int j = 0; j < TOY; j++) {
        float wanted = worker->base + (float)j + BLOCKS * STEP_UP; /* exact in binary */
        if (x[j] != wanted) fprintf(stderr, "step %u, %s: %g for %g\n", step, dc_status_name(status), x[j], wanted);
        CHECK(x[j] == wanted);
    }
    worker->right++;
    worker->skipped += skipped;
    worker->refused += status != DC_OK;
    return status;
}

static dc_cache_t *a_worked_cache(void)
{
    dc_engine_t engine = an_engine(BLOCKS, 1);
    return a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS);
}

static void *hammer(void *argument)
{
    worker_t *worker = argument;
    for (long k = 0; k < worker->passes; k++) {
        if (k % 50 == 0) {
            dc_run_t run = DC_RUN_INIT;
            dc_status_t status = dc_cache_begin_run(worker->cache, &run); /* also in the other thread's pass */
            CHECK(status == DC_OK || status == DC_ERR_BUSY);
        }
        (void)run_pass(worker, (uint32_t)(k % 50));
    }
    return NULL;
}

static void two_threads_on_one_handle_are_never_silently_wrong(void)
{
    worker_t workers[2];
    dc_cache_t *cache = a_worked_cache();
    memset(workers, 0, sizeof workers);
    for (int t = 0; t < 2; t++) {
        workers[t].cache = cache;
        workers[t].base = t == 0 ? 1.0f : 1024.0f;
        workers[t].passes = often(100000);
    }
    for (int t = 0; t < 2; t++) start(&workers[t], hammer);
    for (int t = 0; t < 2; t++) finish(&workers[t]);
    for (int t = 0; t < 2; t++) CHECK(workers[t].right > 0);

    /* the same cache, one thread: as if nothing had been */
    begin_run(cache, 50);
    for (uint32_t step = 0; step < 50; step++) CHECK_OK(run_pass(&workers[0], step));
    CHECK(stats_of(cache).passes_skipped == 49);
    dc_cache_destroy(cache);
}

/* The rule is one thread at a time, not one thread for ever. */
static void *one_pass(void *argument)
{
    worker_t *worker = argument;
    CHECK_OK(run_pass(worker, (uint32_t)worker->passes));
    return NULL;
}

static void a_cache_may_move_from_thread_to_thread(void)
{
    worker_t worker;
    memset(&worker, 0, sizeof worker);
    worker.cache = a_worked_cache();
    worker.base = 1.0f;
    begin_run(worker.cache, 10);
    for (worker.passes = 0; worker.passes < 10; worker.passes++) {
        start(&worker, one_pass);
        finish(&worker);
    }
    CHECK(worker.skipped == 9 && worker.refused == 0);
    dc_cache_destroy(worker.cache);
}

static void *until_it_is_gone(void *argument)
{
    worker_t *worker = argument;
    for (uint32_t step = 0;; step++) {
        dc_status_t status = run_pass(worker, step);
        CHECK(status == DC_OK || status == DC_ERR_HANDLE || status == DC_ERR_DISCARD);
        if (status == DC_ERR_HANDLE) return NULL;
    }
}

static void destroy_from_another_thread_in_mid_pass_is_safe(void)
{
    for (long k = 0; k < often(400); k++) {
        worker_t worker;
        memset(&worker, 0, sizeof worker);
        worker.cache = a_worked_cache();
        worker.base = 1.0f;
        begin_run(worker.cache, 0);
        start(&worker, until_it_is_gone);
        while (*(volatile long *)&worker.right == 0) (void)sched_yield(); /* it is under way ... */
        for (volatile long idle = 0; idle < 40 * k; idle++) {}            /* ... and somewhere in a pass */
        dc_cache_destroy(worker.cache);
        finish(&worker); /* it ends: the handle is dead for good */
    }
}

/* ---- observers ---- */

static volatile int stop;

static void *observe(void *argument)
{
    worker_t *worker = argument;
    while (!stop) {
        dc_trace_t records[64];
        size_t n = 0;
        dc_stats_t stats = stats_of(worker->cache);
        CHECK(stats.passes_skipped <= stats.passes && stats.errors == 0);
        CHECK_OK(dc_cache_trace(worker->cache, records, sizeof *records, 64, &n));
        for (size_t k = 1; k < n && k < 64; k++) /* never half a record */
            CHECK(records[k].step == records[k - 1].step + 1);
        worker->passes++;
    }
    return NULL;
}

static void observers_never_make_a_call_fail(void)
{
    worker_t watchers[3], worker;
    memset(watchers, 0, sizeof watchers);
    memset(&worker, 0, sizeof worker);
    worker.cache = a_worked_cache();
    worker.base = 1.0f;
    stop = 0;
    for (int t = 0; t < 3; t++) {
        watchers[t].cache = worker.cache;
        start(&watchers[t], observe);
    }
    for (long run = 0; run < often(400); run++) {
        begin_run(worker.cache, 50);
        for (uint32_t step = 0; step < 50; step++) CHECK_OK(run_pass(&worker, step));
    }
    stop = 1;
    for (int t = 0; t < 3; t++) finish(&watchers[t]);
    CHECK(worker.refused == 0 && worker.disowned == 0);
    CHECK(worker.skipped == 49 * often(400));
    dc_cache_destroy(worker.cache);
}

/* ---- many ---- */

/* A request of its own: cache, input, threshold; all of it a function of its number. */
static void run_request(int number, char decisions[64])
{
    char text[160];
    dc_engine_t engine = an_engine(BLOCKS, 1);
    snprintf(text, sizeof text, "fbcache,threshold=%g," NO_RAILS, 0.002 + 0.001 * number);
    toy_t toy = a_toy(a_cache(&engine, text), BLOCKS, 1, 0);
    begin_run(toy.cache, 40);
    for (uint32_t step = 0; step < 40; step++) decisions[step] = toy_step(&toy, step, 1.0f + 0.1f * (float)step);
    decisions[40] = '\0';
    dc_cache_destroy(toy.cache);
}

static char alone[THREADS][64];

static void *serve(void *argument)
{
    worker_t *worker = argument;
    for (long k = 0; k < worker->passes; k++) {
        char decisions[64];
        int number = (int)((k + (long)worker->base) % THREADS);
        run_request(number, decisions);
        CHECK(strcmp(decisions, alone[number]) == 0);
    }
    return NULL;
}

static void many_caches_on_many_threads_decide_as_one_alone(void)
{
    worker_t workers[THREADS];
    memset(workers, 0, sizeof workers);
    for (int number = 0; number < THREADS; number++) {
        run_request(number, alone[number]);
        CHECK(strchr(alone[number] + 1, 'C') != NULL);
    }
    CHECK(strcmp(alone[0], alone[THREADS - 1]) != 0 && strchr(alone[THREADS - 1], 's') != NULL);
    for (int t = 0; t < THREADS; t++) {
        workers[t].base = (float)t;
        workers[t].passes = often(200) + 1;
        start(&workers[t], serve);
    }
    for (int t = 0; t < THREADS; t++) finish(&workers[t]);
}

/* ---- handles ---- */

static void *create_and_destroy(void *argument)
{
    enum { REMEMBERED = 64 };
    worker_t *worker = argument;
    dc_cache_t *dead[REMEMBERED] = {NULL};
    dc_engine_t engine = an_engine(BLOCKS, 1);
    dc_options_t options = options_of("fbcache");
    for (long k = 0; k < worker->passes; k++) {
        dc_cache_t *cache = NULL;
        dc_run_t run = DC_RUN_INIT;
        CHECK_OK(dc_cache_create(&engine, &options, &cache));
        for (int d = 0; d < REMEMBERED; d++) CHECK(dead[d] != cache); /* never an old name */
        if (k % 16 == 0) {
            dc_cache_t *old = dead[k % REMEMBERED];
            CHECK_STATUS(dc_cache_begin_run(old, &run), old == NULL ? DC_OK : DC_ERR_HANDLE);
            dc_cache_destroy(old);
        }
        CHECK_OK(dc_cache_begin_run(cache, &run));
        dc_cache_destroy(cache);
        CHECK_STATUS(dc_cache_end_run(cache), DC_ERR_HANDLE);
        dead[(k * 7) % REMEMBERED] = cache;
    }
    return NULL;
}

static void a_hundred_thousand_caches_leave_no_living_handle(void)
{
    worker_t workers[2];
    memset(workers, 0, sizeof workers);
    for (int t = 0; t < 2; t++) {
        workers[t].passes = often(50000);
        start(&workers[t], create_and_destroy);
    }
    for (int t = 0; t < 2; t++) finish(&workers[t]);
}

int main(void)
{
    alarm(300); /* a deadlock is a failure, not a wait */
    two_threads_on_one_handle_are_never_silently_wrong();
    a_cache_may_move_from_thread_to_thread();
    destroy_from_another_thread_in_mid_pass_is_safe();
    observers_never_make_a_call_fail();
    many_caches_on_many_threads_decide_as_one_alone();
    a_hundred_thousand_caches_leave_no_living_handle();
    return 0;
}
