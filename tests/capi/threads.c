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

typedef struct worker_t worker_t;
struct worker_t {
    dc_cache_t *cache;
    dc_status_t (*pass)(worker_t *worker, uint32_t step);
    float       base;        /* this thread's input; a residual mixed from two threads shows */
    long        passes;      /* to run */
    long        right, disowned, skipped, refused;
    thread_t    thread;
};

static void start(worker_t *worker, void *(*work)(void *))
{
    start_thread(&worker->thread, work, worker);
}

static void finish(worker_t *worker)
{
    join_thread(&worker->thread);
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
        (void)worker->pass(worker, (uint32_t)(k % 50));
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
        workers[t].pass = run_pass;
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

/* ---- layers and guidance ---- */

enum { LAYERS = 6, COND = 0, UNCOND = 1 };

static dc_engine_t a_layered_engine(void)
{
    dc_engine_t engine = an_engine(BLOCKS, 2);
    engine.hooks = DC_HOOK_LAYERS | DC_HOOK_GUIDE;
    engine.n_layers = LAYERS;
    return engine;
}

#define EVERY_2 "none,rule=schedule,scope=layers,on_residual=0,every=2,guidance.every=2"

/* A layer shows the same at every step, so that what is held is right whoever computed it. */
static void layer_output(float out[TOY], uint32_t layer)
{
    for (int j = 0; j < TOY; j++) out[j] = (float)(10 * layer) + (float)j;
}

/* Asks, runs and reports; checks what is there in the end. */
static dc_action_t one_layer(dc_cache_t *cache, uint32_t layer)
{
    float out[TOY], want[TOY];
    dc_tensor_t o = floats(out, TOY);
    memset(out, 0x7f, sizeof out);
    layer_output(want, layer);
    dc_action_t action = dc_cache_before_layer(cache, layer, layer % 2 ? DC_KIND_MLP : DC_KIND_SPATIAL, &o, 1);
    if (action == DC_COMPUTE) {
        memcpy(out, want, sizeof out);
        dc_cache_after_layer(cache, layer, &o, 1);
    }
    CHECK(memcmp(out, want, sizeof out) == 0);
    return action;
}

/* A pass and the question about guidance that follows it. */
static dc_status_t run_layers(worker_t *worker, uint32_t step)
{
    float predicted[2] = {2.0f, 3.0f};
    dc_tensor_t cond = floats(&predicted[0], 1), uncond = floats(&predicted[1], 1);
    dc_pass_t pass = pass_of(step, COND), u = pass_of(step, UNCOND);
    (void)dc_cache_begin_pass(worker->cache, &pass);
    for (uint32_t layer = 0; layer < LAYERS; layer++) worker->skipped += one_layer(worker->cache, layer) == DC_SKIP;
    dc_status_t status = dc_cache_end_pass(worker->cache);
    if (dc_cache_before_uncond(worker->cache, &u, &cond, &uncond) == DC_COMPUTE)
        (void)dc_cache_after_uncond(worker->cache, &u, &cond, &uncond);
    CHECK(predicted[0] == 2.0f && predicted[1] == 3.0f);
    CHECK(status != DC_ERR_DISCARD);
    worker->right++;
    worker->refused += status != DC_OK;
    return status;
}

static void two_threads_on_one_handle_never_see_a_wrong_layer(void)
{
    worker_t workers[2];
    dc_engine_t engine = a_layered_engine();
    dc_cache_t *cache = a_cache(&engine, EVERY_2);
    memset(workers, 0, sizeof workers);
    for (int t = 0; t < 2; t++) {
        workers[t].cache = cache;
        workers[t].pass = run_layers;
        workers[t].passes = often(30000);
    }
    for (int t = 0; t < 2; t++) start(&workers[t], hammer);
    for (int t = 0; t < 2; t++) finish(&workers[t]);
    for (int t = 0; t < 2; t++) CHECK(workers[t].right == often(30000));

    /* the same cache, one thread: as if nothing had been */
    begin_run(cache, 50);
    for (uint32_t step = 0; step < 50; step++) CHECK_OK(run_layers(&workers[0], step));
    CHECK(stats_of(cache).layers_skipped == 25 * LAYERS && stats_of(cache).uncond_skipped == 25);
    dc_cache_destroy(cache);
}

static void *observe_layers(void *argument)
{
    worker_t *worker = argument;
    while (!stop) {
        dc_trace_t records[64];
        size_t n = 0;
        dc_stats_t stats = stats_of(worker->cache);
        CHECK(stats.layers_computed + stats.layers_skipped == LAYERS * stats.passes); /* never half a pass */
        CHECK(stats.uncond_computed + stats.uncond_skipped <= stats.passes && stats.errors == 0);
        CHECK_OK(dc_cache_trace(worker->cache, records, sizeof *records, 64, &n));
        for (size_t k = 1; k < n && k < 64; k++) CHECK(records[k].step >= records[k - 1].step);
        worker->passes++;
    }
    return NULL;
}

static void observers_of_layers_never_make_a_call_fail(void)
{
    worker_t watchers[3], worker;
    dc_engine_t engine = a_layered_engine();
    memset(watchers, 0, sizeof watchers);
    memset(&worker, 0, sizeof worker);
    worker.cache = a_cache(&engine, EVERY_2);
    stop = 0;
    for (int t = 0; t < 3; t++) {
        watchers[t].cache = worker.cache;
        start(&watchers[t], observe_layers);
    }
    for (long run = 0; run < often(300); run++) {
        begin_run(worker.cache, 50);
        for (uint32_t step = 0; step < 50; step++) CHECK_OK(run_layers(&worker, step));
    }
    stop = 1;
    for (int t = 0; t < 3; t++) finish(&watchers[t]);
    CHECK(worker.refused == 0);
    CHECK(worker.skipped == 25 * LAYERS * often(300));
    dc_cache_destroy(worker.cache);
}

/* Another thread, while this one is inside a call: the allocator's, which waits for it. */
static void *intrude(void *argument)
{
    worker_t *worker = argument;
    float predicted[2] = {2.0f, 3.0f};
    dc_tensor_t cond = floats(&predicted[0], 1), uncond = floats(&predicted[1], 1);
    dc_pass_t coming = pass_of(3, COND), u = pass_of(1, UNCOND);
    CHECK(one_layer(worker->cache, 1) == DC_COMPUTE); /* which the pass would skip */
    CHECK_SAYS("another thread");
    CHECK(dc_cache_before_uncond(worker->cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_SAYS("another thread");
    CHECK_STATUS(dc_cache_after_uncond(worker->cache, &u, &cond, &uncond), DC_ERR_BUSY);
    CHECK(predicted[0] == 2.0f && predicted[1] == 3.0f);
    CHECK(dc_cache_peek(worker->cache, NULL, DC_LAYER(1)) == DC_UNDECIDED);
    CHECK(dc_cache_peek(worker->cache, &u, DC_UNCOND) == DC_UNDECIDED);
    CHECK_STATUS(dc_cache_begin_pass(worker->cache, &coming), DC_ERR_BUSY);
    CHECK(one_layer(worker->cache, 1) == DC_COMPUTE);
    CHECK_STATUS(dc_cache_end_pass(worker->cache), DC_ERR_BUSY);
    CHECK(stats_of(worker->cache).passes == 1); /* looking is for any thread at any time */
    return NULL;
}

static void *alloc_meanwhile(void *user, size_t size, void *stream)
{
    worker_t *intruder = user;
    (void)stream;
    if (intruder->passes == 1) {
        intruder->passes = 0;
        start(intruder, intrude);
        finish(intruder);
    }
    return room(size);
}

static void free_it(void *user, void *data, size_t size, void *stream)
{
    (void)user, (void)size, (void)stream;
    give_back(data);
}

static void a_second_thread_inside_a_call_makes_a_layer_compute(void)
{
    worker_t intruder;
    dc_engine_t engine = a_layered_engine();
    dc_pass_t pass = pass_of(0, COND);
    memset(&intruder, 0, sizeof intruder);
    engine.mem_alloc = alloc_meanwhile;
    engine.mem_free = free_it;
    engine.mem_user = &intruder;
    dc_cache_t *cache = intruder.cache = a_cache(&engine, EVERY_2);
    begin_run(cache, 8);
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    for (uint32_t layer = 1; layer < LAYERS; layer++) CHECK(one_layer(cache, layer) == DC_COMPUTE);
    CHECK_OK(dc_cache_end_pass(cache));

    intruder.passes = 1; /* layer 0 is new at a step that skips the others: memory is taken for it */
    pass = pass_of(1, COND);
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    CHECK(one_layer(cache, 0) == DC_COMPUTE);
    CHECK(intruder.passes == 0);
    for (uint32_t layer = 1; layer < LAYERS; layer++) (void)one_layer(cache, layer); /* whatever it says is right */
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_BUSY);
    CHECK_SAYS("another thread");

    for (uint32_t step = 2; step < 8; step++) {
        pass = pass_of(step, COND);
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            CHECK(one_layer(cache, layer) == (step % 2 ? DC_SKIP : DC_COMPUTE));
        CHECK_OK(dc_cache_end_pass(cache));
    }
    CHECK(stats_of(cache).discarded == 0);
    dc_cache_destroy(cache);
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
    two_threads_on_one_handle_never_see_a_wrong_layer();
    observers_of_layers_never_make_a_call_fail();
    a_second_thread_inside_a_call_makes_a_layer_compute();
    return 0;
}
