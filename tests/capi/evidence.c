/* The programs that broke the first draft of this API, each turned into a claim with the right answer. */
#include "check.h"

#include <pthread.h>

/* ---- handles and errors ---- */

static void a_stale_handle_never_names_a_new_cache(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_cache_t *a = a_cache(&engine, "fbcache"), *b = NULL;
    dc_cache_destroy(a);
    for (int k = 0; k < 5000; k++) {
        b = a_cache(&engine, "fbcache");
        CHECK(b != a);
        if (k < 4999) dc_cache_destroy(b);
    }
    dc_cache_destroy(a); /* a request's second destroy hits nobody */
    begin_run(b, 10);
    toy_t toy = a_toy(b, 4, 1, 0);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    dc_cache_destroy(b);
}

/* printf("%s: %s", name(f()), dc_last_error()): the text may be fetched before the call that fails. */
static void the_error_one_liner_never_reads_dead_memory(void)
{
    dc_engine_t engine;
    const char *early = dc_last_error();
    char line[512];
    CHECK_STATUS(dc_engine_init(&engine, 3), DC_ERR_ARG);
    CHECK(dc_last_error() == early); /* one buffer a thread, wherever it is asked for */
    const char *kept = dc_last_error();
    for (int k = 0; k < 1000; k++) {
        dc_options_t options = options_of("fbcache");
        const char *text = k % 2 ? "x=1" : "threshold=a_much_longer_value_than_any_number";
        CHECK_STATUS(dc_options_parse(&options, text), DC_ERR_ARG);
        CHECK(strlen(kept) > 0);
    }
    snprintf(line, sizeof line, "%s: %s", dc_status_name(dc_engine_init(&engine, 5)), dc_last_error());
    CHECK(strncmp(line, "DC_ERR_ARG: ", 12) == 0);
}

static void *fails_in_its_own_way(void *seen)
{
    dc_engine_t engine;
    CHECK(dc_last_error()[0] == '\0'); /* a thread that has not failed has no text */
    CHECK_STATUS(dc_engine_init(&engine, 1), DC_ERR_ARG);
    snprintf(seen, 256, "%s", dc_last_error());
    return NULL;
}

static void each_thread_has_its_own_last_error(void)
{
    pthread_t thread;
    char theirs[256], mine[256];
    dc_options_t options = options_of("fbcache");
    CHECK_STATUS(dc_options_parse(&options, "bogus_of_the_main_thread=1"), DC_ERR_ARG);
    snprintf(mine, sizeof mine, "%s", dc_last_error());
    CHECK(pthread_create(&thread, NULL, fails_in_its_own_way, theirs) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(strncmp(dc_last_error(), mine, strlen(mine)) == 0 && strstr(mine, "bogus_of_the_main_thread") != NULL);
    CHECK(theirs[0] != '\0' && strstr(theirs, "bogus") == NULL);
}

/* The failing call lies many calls before end_pass. */
static void end_pass_repeats_the_first_error_of_its_pass(void)
{
    toy_t toy = an_fbcache_toy(4, 1);
    dc_tensor_t bad = floats(toy.x, -5), x = floats(toy.x, TOY);
    dc_pass_t pass = pass_of(0, 0);
    dc_engine_t engine;
    begin_run(toy.cache, 4);
    toy_input(&toy, 1.0f);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    CHECK(dc_cache_before_block(toy.cache, 0, &bad, NULL, 1) == DC_COMPUTE);
    CHECK_SAYS("-5");
    CHECK(dc_cache_before_block(toy.cache, 1, &x, NULL, 1) == DC_COMPUTE);
    CHECK_STATUS(dc_engine_init(&engine, 1), DC_ERR_ARG); /* another failure in between */
    CHECK_STATUS(dc_cache_end_pass(toy.cache), DC_ERR_ARG);
    CHECK_SAYS("-5");
    dc_cache_destroy(toy.cache);
}

/* ---- steps ---- */

static void cancelling_in_mid_pass_then_begin_run_works(void)
{
    toy_t toy = an_fbcache_toy(4, 1);
    for (uint32_t blocks = 0; blocks <= 4; blocks++) /* cancelled after so many blocks, computing and skipping */
        for (uint32_t step = 0; step < 2; step++) {
            dc_pass_t pass = pass_of(step, 0);
            begin_run(toy.cache, 10);
            if (step == 1) CHECK(toy_step(&toy, 0, 1.0f) == 'C');
            toy_input(&toy, 1.0f);
            CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
            for (uint32_t i = 0; i < blocks; i++) {
                dc_tensor_t x = floats(toy.x, TOY);
                if (dc_cache_before_block(toy.cache, i, &x, NULL, 1) == DC_SKIP) continue;
                toy_block(toy.x, TOY, i);
                if (i + 1 < blocks) dc_cache_after_block(toy.cache, i, &x, 1); /* also between the pair */
            }
            begin_run(toy.cache, 10);
            CHECK(stats_of(toy.cache).passes == 0);
            CHECK(toy_step(&toy, 0, 2.0f) == 'C'); /* nothing leaks from the run before */
            CHECK(toy_step(&toy, 1, 2.0f) == 's');
        }
    dc_cache_destroy(toy.cache);
}

/* Heun's engines once counted one step twice: two histories in one, a zero distance between nodes. */
static void the_same_evaluation_twice_computes_and_is_said(void)
{
    char text[64];
    dc_engine_t engine = an_engine(4, 1);
    toy_t toy = a_toy(a_cache(&engine, "fbcache,threshold=0.2,estimator=taylor,order=1," NO_RAILS), 4, 1, 0);
    begin_run(toy.cache, 10);
    dc_pass_t pass = pass_of(3, 0);
    outcome_t outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(outcome.began == DC_OK && outcome.ended == DC_OK);
    outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(outcome.began == DC_ERR_STATE && outcome.ended == DC_ERR_STATE && outcome.decision == 'C');
    CHECK_SAYS("3");
    /* counted as evaluations, Heun works: 2 n - 1 of them */
    begin_run(toy.cache, 39);
    (void)toy_decisions(&toy, 0, 39, text);
    CHECK(strchr(text, 's') != NULL);
    dc_cache_destroy(toy.cache);
}

static void img2img_warms_up_from_its_first_step(void)
{
    char text[64];
    dc_engine_t engine = an_engine(4, 1);
    toy_t toy = a_toy(a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS ",warmup_steps=4,last_steps=1"), 4, 1, 0);
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = 20;
    run.first_step = 12;
    CHECK_OK(dc_cache_begin_run(toy.cache, &run));
    CHECK(strcmp(toy_decisions(&toy, 12, 20, text), "CCCCsssC") == 0);
    run.first_step = 0;
    run.end_step = 8; /* the high-noise expert: its own last step computes */
    CHECK_OK(dc_cache_begin_run(toy.cache, &run));
    CHECK(strcmp(toy_decisions(&toy, 0, 8, text), "CCCCsssC") == 0);
    dc_cache_destroy(toy.cache);

    /* a mask keeps counting in the full schedule */
    toy = a_toy(a_cache(&engine, "mask,mask=11111111111111001010,front_blocks=0"), 4, 0, 0);
    run.first_step = 12;
    run.end_step = 0;
    CHECK_OK(dc_cache_begin_run(toy.cache, &run));
    CHECK(strcmp(toy_decisions(&toy, 12, 20, text), "CCssCsCs") == 0);
    dc_cache_destroy(toy.cache);
}

/* ---- where results are written ---- */

static void a_separate_tail_buffer_holds_the_result_of_a_skip(void)
{
    dc_engine_t engine = an_engine(2, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS);
    float v[TOY], h[TOY], t[TOY];
    int skips = 0;
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 4; step++) {
        dc_pass_t pass = pass_of(step, 0);
        dc_tensor_t in = floats(v, TOY), head = floats(h, TOY), tail = floats(t, TOY);
        for (int j = 0; j < TOY; j++) v[j] = 1.0f + 0.01f * (float)step;
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        CHECK(dc_cache_before_block(cache, 0, &in, &head, 1) == DC_COMPUTE);
        for (int j = 0; j < TOY; j++) h[j] = v[j] + 0.1f;
        dc_cache_after_block(cache, 0, &head, 1);
        if (dc_cache_before_block(cache, 1, &head, &tail, 1) == DC_COMPUTE) {
            for (int j = 0; j < TOY; j++) t[j] = h[j] + 1.0f;
            dc_cache_after_block(cache, 1, &tail, 1);
        } else {
            skips++;
        }
        CHECK_OK(dc_cache_end_pass(cache));
        for (int j = 0; j < TOY; j++) {
            CHECK(close_to(t[j], v[j] + 1.1));       /* what `finish` reads */
            CHECK(close_to(h[j], (double)v[j] + 0.1)); /* what the tail would have read, untouched */
        }
    }
    CHECK(skips == 3);
    dc_cache_destroy(cache);
}

/* ---- batches, branches, blocks that are left out ---- */

static void dropping_the_uncond_half_keeps_the_cond_half_skipping(void)
{
    dc_engine_t engine = an_engine(4, 2);
    engine.max_stacked = 2;
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS);
    float v[2 * TOY];
    char text[16] = {0};
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 8; step++) {
        uint32_t branches = step % 2 ? 1 : 2;
        dc_pass_t pass = DC_PASS_INIT;
        dc_tensor_t x = rows_of(v, branches, TOY, TOY);
        int ran = 0;
        pass.step = step;
        pass.n_branches = branches;
        pass.branches[0] = branches == 2 ? 1 : 0; /* [uncond; cond], or cond alone */
        pass.branches[1] = 0;
        for (int j = 0; j < 2 * TOY; j++) v[j] = 1.0f + 0.001f * (float)step;
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < 4; i++)
            if (dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE) {
                for (uint32_t j = 0; j < branches * TOY; j++) v[j] += 0.1f;
                dc_cache_after_block(cache, i, &x, 1);
                ran++;
            }
        CHECK_OK(dc_cache_end_pass(cache));
        text[step] = ran == 4 ? 'C' : 's';
        for (uint32_t j = 0; j < branches * TOY; j++) CHECK(close_to(v[j], 1.4 + 0.001 * step));
    }
    CHECK(strcmp(text, "Csssssss") == 0);
    dc_cache_destroy(cache);
}

/* Skip-layer guidance: the engine leaves blocks 1 and 2 out of one branch's passes. */
static void a_skip_layer_pass_is_a_branch_of_its_own(void)
{
    dc_engine_t engine = an_engine(4, 2);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS);
    float v[TOY];
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 3; step++)
        for (uint32_t branch = 0; branch < 2; branch++) {
            dc_pass_t pass = pass_of(step, branch);
            dc_tensor_t x = floats(v, TOY);
            int ran = 0;
            for (int j = 0; j < TOY; j++) v[j] = 1.0f + 0.001f * (float)step;
            CHECK_OK(dc_cache_begin_pass(cache, &pass));
            for (uint32_t i = 0; i < 4; i++) {
                if (branch == 1 && (i == 1 || i == 2)) continue;
                if (dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE) {
                    for (int j = 0; j < TOY; j++) v[j] += 0.1f;
                    dc_cache_after_block(cache, i, &x, 1);
                    ran++;
                }
            }
            CHECK_OK(dc_cache_end_pass(cache));
            CHECK(ran == (step > 0 ? 1 : branch == 0 ? 4 : 2));
            CHECK(close_to(v[0], (branch == 0 ? 1.4 : 1.2) + 0.001 * step));
        }
    dc_cache_destroy(cache);
}

/* SD3's last block returns no text. */
static void a_stream_that_ends_early_is_not_restored(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS);
    float img[TOY], txt[TOY];
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 4; step++) {
        dc_pass_t pass = pass_of(step, 0);
        dc_tensor_t x[2];
        int ran = 0;
        x[0] = floats(img, TOY), x[1] = floats(txt, TOY);
        for (int j = 0; j < TOY; j++) img[j] = txt[j] = 1.0f + 0.001f * (float)step;
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < 4; i++)
            if (dc_cache_before_block(cache, i, x, NULL, 2) == DC_COMPUTE) {
                for (int j = 0; j < TOY; j++) img[j] += 0.1f, txt[j] += 0.2f;
                dc_cache_after_block(cache, i, x, i == 3 ? 1 : 2);
                ran++;
            }
        CHECK_OK(dc_cache_end_pass(cache));
        CHECK(ran == (step == 0 ? 4 : 1));
        CHECK(close_to(img[0], 1.4 + 0.001 * step));
        if (step > 0) CHECK(close_to(txt[0], 1.2 + 0.001 * step)); /* as the front left it */
    }
    dc_cache_destroy(cache);
}

/* ControlNet, PuLID: what is added between two blocks belongs to the first of them. */
static void a_control_residual_after_a_front_block_is_counted_once(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS);
    float v[TOY];
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 4; step++) {
        dc_pass_t pass = pass_of(step, 0);
        dc_tensor_t x = floats(v, TOY);
        int ran = 0;
        for (int j = 0; j < TOY; j++) v[j] = 1.0f;
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < 4; i++)
            if (dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE) {
                for (int j = 0; j < TOY; j++) v[j] += 0.1f;
                dc_cache_after_block(cache, i, &x, 1);
                if (i == 0) /* as the manual says, inside the `if`; here even after the report */
                    for (int j = 0; j < TOY; j++) v[j] += 0.5f;
                ran++;
            }
        CHECK_OK(dc_cache_end_pass(cache));
        CHECK(ran == (step == 0 ? 4 : 1));
        CHECK(close_to(v[0], 1.9));
    }
    dc_cache_destroy(cache);
}

/* FLUX's joint buffer is [txt; img] where its double blocks hold (img, txt). */
static void streams_in_another_order_are_told_apart_by_id(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS);
    float img[TOY], txt[TOY];
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 3; step++) {
        dc_pass_t pass = pass_of(step, 0);
        dc_tensor_t a[2], b[2];
        int ran = 0;
        a[0] = floats(img, TOY), a[1] = floats(txt, TOY);
        a[0].id = 7, a[1].id = 3;
        b[0] = a[1], b[1] = a[0];
        for (int j = 0; j < TOY; j++) img[j] = txt[j] = 1.0f;
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < 4; i++) {
            dc_tensor_t *x = i < 2 ? a : b;
            if (dc_cache_before_block(cache, i, x, NULL, 2) == DC_COMPUTE) {
                for (int j = 0; j < TOY; j++) img[j] += 0.1f, txt[j] += 1.0f;
                dc_cache_after_block(cache, i, x, 2);
                ran++;
            }
        }
        CHECK_OK(dc_cache_end_pass(cache));
        CHECK(ran == (step == 0 ? 4 : 1));
        CHECK(close_to(img[0], 1.4) && close_to(txt[0], 5.0));
    }
    dc_cache_destroy(cache);
}

/* ---- threads ---- */

static volatile int stop;
static dc_cache_t *watched;

static void *a_metrics_thread(void *calls)
{
    dc_trace_t records[8];
    size_t n;
    while (!stop) {
        (void)stats_of(watched); /* checks its own status: an observer is never refused */
        CHECK_OK(dc_cache_trace(watched, records, sizeof *records, 8, &n));
        ++*(volatile long *)calls;
    }
    return NULL;
}

static void a_metrics_thread_never_disturbs_a_pass(void)
{
    char text[64];
    volatile long calls = 0;
    pthread_t thread;
    toy_t toy = an_fbcache_toy(57, 1);
    watched = toy.cache;
    stop = 0;
    begin_run(toy.cache, 50);
    CHECK(pthread_create(&thread, NULL, a_metrics_thread, (void *)&calls) == 0);
    for (long run = 0; run < often(200) || calls < 10; run++) {
        begin_run(toy.cache, 50);
        (void)toy_decisions(&toy, 0, 50, text); /* every status OK, every output right */
        for (int step = 0; step < 50; step++) CHECK(text[step] == (step == 0 ? 'C' : 's'));
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(stats_of(toy.cache).errors == 0);
    dc_cache_destroy(toy.cache);
}

/* An allocator that calls back into the cache it allocates for: certainly a call inside a call. */
static dc_cache_t *caller;
static int refusals;

static void *alloc_that_calls_back(void *user, size_t size, void *stream)
{
    dc_pass_t pass = DC_PASS_INIT;
    dc_run_t run = DC_RUN_INIT;
    (void)user, (void)stream;
    CHECK_STATUS(dc_cache_begin_pass(caller, &pass), DC_ERR_BUSY);
    CHECK_STATUS(dc_cache_end_pass(caller), DC_ERR_BUSY);
    CHECK_STATUS(dc_cache_begin_run(caller, &run), DC_ERR_BUSY);
    (void)stats_of(caller); /* this one is for any thread at any time */
    refusals++;
    return room(size);
}

static void free_that_calls_back(void *user, void *data, size_t size, void *stream)
{
    (void)user, (void)size, (void)stream;
    give_back(data);
}

static void a_cache_recovers_from_refused_calls(void)
{
    dc_engine_t engine = an_engine(4, 1);
    engine.mem_alloc = alloc_that_calls_back;
    engine.mem_free = free_that_calls_back;
    toy_t toy = a_toy(a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS), 4, 1, 0);
    dc_pass_t pass = pass_of(0, 0);
    caller = toy.cache;
    begin_run(toy.cache, 10);
    outcome_t outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(refusals > 0);
    CHECK(outcome.began == DC_OK && outcome.ended != DC_ERR_DISCARD && outcome.decision == 'C');
    begin_run(toy.cache, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    CHECK(toy_step(&toy, 1, 1.0f) == 's');
    dc_cache_destroy(toy.cache);
}

/* ---- C++ ---- */

/* `&(dc_run_t){...}` is no C++. This is both languages, and every field is set. */
static void a_run_starts_from_its_macro(void)
{
    const float timesteps[3] = {1000.0f, 500.0f, 0.0f};
    dc_run_t run = headers_run;
    dc_pass_t pass = headers_pass;
    CHECK(run.struct_size == sizeof run && run.n_steps == 0 && run.first_step == 0 && run.end_step == 0);
    CHECK(run.timesteps == NULL && run.timestep_max == 0 && run.n_shapes == 0 && run.shapes == NULL);
    CHECK(run.stream == NULL);
    CHECK(pass.struct_size == sizeof pass && pass.step == 0 && pass.n_branches == 1 && pass.flags == 0);
    for (int k = 0; k < DC_MAX_BRANCHES; k++) CHECK(pass.branches[k] == 0);
    CHECK(pass.timestep == 0 && pass.stream == NULL);
    run.stream = the_stream();
    run.n_steps = 3;
    run.timesteps = timesteps;
    run.timestep_max = 1000.0f;
    toy_t toy = an_fbcache_toy(4, 1);
    CHECK_OK(dc_cache_begin_run(toy.cache, &run));
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    dc_cache_destroy(toy.cache);
}

int main(void)
{
    a_stale_handle_never_names_a_new_cache();
    the_error_one_liner_never_reads_dead_memory();
    each_thread_has_its_own_last_error();
    end_pass_repeats_the_first_error_of_its_pass();
    cancelling_in_mid_pass_then_begin_run_works();
    the_same_evaluation_twice_computes_and_is_said();
    img2img_warms_up_from_its_first_step();
    a_separate_tail_buffer_holds_the_result_of_a_skip();
    dropping_the_uncond_half_keeps_the_cond_half_skipping();
    a_skip_layer_pass_is_a_branch_of_its_own();
    a_stream_that_ends_early_is_not_restored();
    a_control_residual_after_a_front_block_is_counted_once();
    streams_in_another_order_are_told_apart_by_id();
    a_metrics_thread_never_disturbs_a_pass();
    a_cache_recovers_from_refused_calls();
    a_run_starts_from_its_macro();
    return 0;
}
