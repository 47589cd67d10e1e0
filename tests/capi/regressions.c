/* What must never come back: passes that go wrong in the middle, values and references of different ages, and
 * promises that something in between could break.
 *
 * Where a pass may be skipped here it is fed what the pass it reuses was fed. So every output is that of the whole
 * model, and a value that is older or newer than its reference shows. */
#include "check.h"

#include <pthread.h>

enum { BLOCKS = 4, WIDTH = 16, MOST = 4096, TENSORS = 2 };

/* One skips whenever it may, the other only where next to nothing has changed. */
static const char *const WIDE = "fbcache,threshold=0.9," NO_RAILS;
static const char *const NARROW = "fbcache,threshold=0.05," NO_RAILS;

/* ---- a model ---- */

/* Block 0 writes to buffers of its own, so it serves engines that keep their input as well. */
typedef struct model_t {
    dc_cache_t *cache;
    uint32_t    n;           /* tensors of its blocks */
    uint32_t    rows, width; /* of each of them; a row for every branch stacked in a pass */
    uint32_t    ids[TENSORS];
    float       in[TENSORS][MOST], x[TENSORS][MOST];
} model_t;

static model_t a_model(dc_cache_t *cache)
{
    model_t m;
    memset(&m, 0, sizeof m);
    m.cache = cache;
    m.n = 1;
    m.rows = 1;
    m.width = WIDTH;
    return m;
}

static model_t a_model_with(const char *method, uint32_t branches)
{
    dc_engine_t engine = an_engine(BLOCKS, branches);
    engine.max_stacked = branches;
    return a_model(a_cache(&engine, method));
}

static void see(const model_t *m, float data[TENSORS][MOST], dc_tensor_t views[TENSORS])
{
    for (uint32_t k = 0; k < m->n; k++) {
        views[k] = rows_of(data[k], m->rows, m->width, m->width);
        views[k].id = m->ids[k];
    }
}

/* The inputs of a pass, one base for each tensor. */
static void feed(model_t *m, float first, float second)
{
    for (uint32_t j = 0; j < m->rows * m->width; j++) {
        m->in[0][j] = first + 0.01f * (float)(j % m->width);
        m->in[1][j] = second + 0.01f * (float)(j % m->width);
    }
}

static dc_status_t open_pass(model_t *m, const dc_pass_t *pass, float base)
{
    feed(m, base, base);
    return dc_cache_begin_pass(m->cache, pass);
}

static dc_action_t ask(model_t *m, uint32_t block)
{
    dc_tensor_t views[TENSORS];
    see(m, block == 0 ? m->in : m->x, views);
    return dc_cache_before_block(m->cache, block, views, NULL, m->n);
}

static void run_block(model_t *m, uint32_t block)
{
    size_t n = m->rows * m->width;
    for (uint32_t k = 0; k < m->n; k++) {
        if (block == 0) memcpy(m->x[k], m->in[k], n * sizeof *m->x[k]);
        toy_block(m->x[k], n, block);
    }
}

static void report(model_t *m, uint32_t block)
{
    dc_tensor_t views[TENSORS];
    see(m, m->x, views);
    dc_cache_after_block(m->cache, block, views, m->n);
}

/* Blocks `from` .. `to` - 1 as an engine walks them; how many were left out. */
static uint32_t walk(model_t *m, uint32_t from, uint32_t to)
{
    uint32_t left_out = 0;
    for (uint32_t i = from; i < to; i++) {
        if (ask(m, i) == DC_COMPUTE) {
            run_block(m, i);
            report(m, i);
        } else {
            left_out++;
        }
    }
    return left_out;
}

/* The output is what all blocks make of the input. */
static void is_whole(const model_t *m)
{
    static float want[MOST];
    size_t n = m->rows * m->width;
    for (uint32_t k = 0; k < m->n; k++) {
        memcpy(want, m->in[k], n * sizeof *want);
        for (uint32_t i = 0; i < BLOCKS; i++) toy_block(want, n, i);
        for (size_t j = 0; j < n; j++) CHECK(close_to(m->x[k][j], want[j]));
    }
}

/* One pass over what was fed. */
static outcome_t pass_over(model_t *m, const dc_pass_t *pass)
{
    outcome_t outcome;
    outcome.began = dc_cache_begin_pass(m->cache, pass);
    outcome.decision = walk(m, 0, BLOCKS) > 0 ? 's' : 'C';
    outcome.ended = dc_cache_end_pass(m->cache);
    if (outcome.ended != DC_ERR_DISCARD) is_whole(m);
    return outcome;
}

/* A pass of one branch without a hitch; its decision. */
static char branch_step(model_t *m, uint32_t step, uint32_t branch, uint32_t flags, float base)
{
    dc_pass_t pass = pass_of(step, branch);
    pass.flags = flags;
    feed(m, base, base);
    outcome_t outcome = pass_over(m, &pass);
    CHECK_OK(outcome.began);
    CHECK_OK(outcome.ended);
    return outcome.decision;
}

static char a_step(model_t *m, uint32_t step, float base)
{
    return branch_step(m, step, 0, 0, base);
}

static dc_pass_t stacked(uint32_t step, uint32_t first, uint32_t second)
{
    dc_pass_t pass = pass_of(step, first);
    pass.n_branches = 2;
    pass.branches[1] = second;
    return pass;
}

/* ---- memory that runs out ---- */

typedef struct store_t {
    long   calls, empty_from; /* the first call that returns null, from 1; 0 = none */
    size_t held;
} store_t;

static void *store_take(void *user, size_t size, void *stream)
{
    store_t *store = user;
    (void)stream;
    store->calls++;
    if (store->empty_from != 0 && store->calls >= store->empty_from) return NULL;
    void *data = room(size);
    CHECK(data != NULL);
    memset(data, 0xff, size); /* NaN: what was never written shows */
    store->held += size;
    return data;
}

static void store_give_back(void *user, void *data, size_t size, void *stream)
{
    store_t *store = user;
    (void)stream;
    store->held -= size;
    give_back(data);
}

static void take_from(dc_engine_t *engine, store_t *store)
{
    memset(store, 0, sizeof *store);
    engine->mem_alloc = store_take;
    engine->mem_free = store_give_back;
    engine->mem_user = store;
}

/* ---- the span begins where it begins ---- */

static void a_span_whose_first_block_was_refused_is_not_entered_at_the_next(void)
{
    for (int decided = 0; decided < 2; decided++) {
        model_t m = a_model_with(WIDE, 1);
        dc_pass_t pass = pass_of(1, 0);
        begin_run(m.cache, 10);
        CHECK(a_step(&m, 0, 1.0f) == 'C');
        CHECK_OK(open_pass(&m, &pass, 1.0f));
        CHECK(walk(&m, 0, 1) == 0);
        if (decided) CHECK(dc_cache_decide(m.cache, DC_UNDECIDED) == DC_SKIP);
        dc_tensor_t bad = floats(m.x[0], WIDTH);
        bad.ndim = DC_MAX_DIMS + 1;
        CHECK(dc_cache_before_block(m.cache, 1, &bad, NULL, 1) == DC_COMPUTE);
        run_block(&m, 1);
        report(&m, 1);
        CHECK(walk(&m, 2, BLOCKS) == 0);
        CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_ARG);
        is_whole(&m);
        CHECK(stats_of(m.cache).passes_skipped == 0);
        CHECK(a_step(&m, 2, 1.0f) == 's'); /* what was kept before is still right */
        dc_cache_destroy(m.cache);
    }
}

static void after_a_shape_error_nothing_is_learned_one_block_late(void)
{
    model_t m = a_model_with(WIDE, 1);
    dc_pass_t pass = pass_of(0, 0);
    float half[WIDTH / 2];
    begin_run(m.cache, 10);
    CHECK_OK(open_pass(&m, &pass, 1.0f));
    CHECK(walk(&m, 0, 1) == 0);
    dc_tensor_t in = floats(m.x[0], WIDTH), out = floats(half, WIDTH / 2);
    CHECK(dc_cache_before_block(m.cache, 1, &in, &out, 1) == DC_COMPUTE);
    run_block(&m, 1);
    report(&m, 1);
    CHECK(walk(&m, 2, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_SHAPE);
    is_whole(&m);
    CHECK(a_step(&m, 1, 1.0f) == 'C'); /* there is nothing to reuse */
    CHECK(a_step(&m, 2, 1.0f) == 's');
    dc_cache_destroy(m.cache);
}

static void a_span_block_that_is_reported_unasked_leaves_nothing_out(void)
{
    model_t m = a_model_with(WIDE, 1);
    dc_pass_t pass = pass_of(1, 0);
    begin_run(m.cache, 10);
    CHECK(a_step(&m, 0, 1.0f) == 'C');
    CHECK_OK(open_pass(&m, &pass, 1.0f));
    CHECK(walk(&m, 0, 1) == 0);
    run_block(&m, 1);
    report(&m, 1);
    CHECK(walk(&m, 2, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
    is_whole(&m);
    CHECK(a_step(&m, 2, 1.0f) == 's');
    dc_cache_destroy(m.cache);
}

static void a_history_that_began_at_another_block_is_not_reused(void)
{
    model_t m = a_model_with(WIDE, 1);
    dc_pass_t pass = pass_of(1, 0);
    begin_run(m.cache, 10);
    CHECK(a_step(&m, 0, 1.0f) == 'C');
    CHECK_OK(open_pass(&m, &pass, 1.0f));
    CHECK(walk(&m, 0, 1) == 0);
    run_block(&m, 1); /* neither asked nor reported */
    CHECK(walk(&m, 2, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
    is_whole(&m);
    /* and not the other way round: from block 1 again */
    pass.step = 2;
    CHECK(pass_over(&m, &pass).decision == 'C');
    CHECK(a_step(&m, 3, 1.0f) == 's');
    dc_cache_destroy(m.cache);
}

/* ---- a value and its reference are of the same pass ---- */

/* The k-th allocation and all after it fail, while step 1 is being kept. Returns whether any did. */
static int a_value_that_found_no_room(uint32_t flags, const uint32_t order[2], long k)
{
    store_t store;
    dc_engine_t engine = an_engine(BLOCKS, 2);
    engine.max_stacked = 2;
    engine.flags = flags;
    take_from(&engine, &store);
    model_t m = a_model(a_cache(&engine, NARROW));
    begin_run(m.cache, 10);
    CHECK(a_step(&m, 0, 1.0f) == 'C');

    store.empty_from = store.calls + k;
    dc_pass_t pass = stacked(1, order[0], order[1]);
    m.rows = 2;
    feed(&m, 5.0f, 5.0f);
    outcome_t outcome = pass_over(&m, &pass);
    int failed = outcome.ended != DC_OK;
    CHECK(outcome.decision == 'C');
    CHECK_STATUS(outcome.ended, failed ? DC_ERR_MEMORY : DC_OK);

    m.rows = 1;
    feed(&m, 5.0f, 5.0f);
    for (uint32_t step = 2; step < 4; step++) { /* nothing of step 0 stands in for step 1 */
        pass = pass_of(step, 0);
        outcome = pass_over(&m, &pass);
        if (step == 2 || !failed) CHECK(outcome.decision == (failed ? 'C' : 's'));
    }
    store.empty_from = 0;
    (void)a_step(&m, 4, 5.0f);
    CHECK(a_step(&m, 5, 5.0f) == 's');
    dc_cache_destroy(m.cache);
    CHECK(store.held == 0);
    return failed;
}

static void after_a_memory_failure_nothing_is_reused_by_a_newer_reference(void)
{
    static const uint32_t orders[][2] = {{0, 1}, {1, 0}};
    for (uint32_t flags = 0; flags <= DC_ENGINE_KEEPS_INPUT; flags++)
        for (int order = 0; order < 2; order++) {
            long k = 1;
            while (a_value_that_found_no_room(flags, orders[order], k)) k++;
            CHECK(k > 1);
        }
}

static void streams_that_change_places_are_compared_with_themselves(void)
{
    model_t m = a_model_with(NARROW, 1);
    dc_pass_t pass = pass_of(0, 0);
    begin_run(m.cache, 10);
    m.n = 2;
    m.ids[0] = 1, m.ids[1] = 2;
    feed(&m, 1.0f, 2.0f);
    CHECK(pass_over(&m, &pass).decision == 'C');
    m.ids[0] = 2, m.ids[1] = 1;
    pass = pass_of(1, 0);
    pass.flags = DC_PASS_COMPUTE;
    feed(&m, 9.0f, 4.0f);
    CHECK(pass_over(&m, &pass).decision == 'C');
    m.ids[0] = 1, m.ids[1] = 2;
    pass = pass_of(2, 0);
    feed(&m, 1.0f, 9.0f); /* stream 1 as it was in step 0, and the value is of step 1 */
    CHECK(pass_over(&m, &pass).decision == 'C');
    CHECK(newest(m.cache).reason == DC_REASON_NO_HISTORY);
    pass = pass_of(3, 0);
    CHECK(pass_over(&m, &pass).decision == 's');
    dc_cache_destroy(m.cache);
}

/* Memory does not grow with every change of places. */
static void references_that_are_given_up_are_used_again(void)
{
    store_t store;
    dc_engine_t engine = an_engine(BLOCKS, 1);
    take_from(&engine, &store);
    model_t m = a_model(a_cache(&engine, WIDE));
    size_t held = 0;
    begin_run(m.cache, 20);
    m.n = 2;
    for (uint32_t step = 0; step < 12; step++) {
        m.ids[0] = 1 + step % 2, m.ids[1] = 2 - step % 2;
        (void)a_step(&m, step, 1.0f);
        if (step == 3) held = store.held;
    }
    CHECK(held > 0 && store.held == held);
    dc_cache_destroy(m.cache);
}

static void a_measured_stream_that_was_absent_has_nothing_to_be_compared_with(void)
{
    dc_engine_t engine = an_engine(BLOCKS, 1);
    engine.measure = 3;
    model_t m = a_model(a_cache(&engine, "fbcache,threshold=0.05,fill=0," NO_RAILS));
    begin_run(m.cache, 10);
    m.n = 2;
    CHECK(a_step(&m, 0, 1.0f) == 'C');
    m.n = 1;
    CHECK(branch_step(&m, 1, 0, DC_PASS_COMPUTE, 9.0f) == 'C');
    m.n = 2;
    dc_pass_t pass = pass_of(2, 0);
    feed(&m, 9.0f, 1.0f); /* each as when it was last seen, but in different passes */
    CHECK(pass_over(&m, &pass).decision == 'C');
    dc_cache_destroy(m.cache);
}

static void a_follower_whose_value_is_older_than_its_leaders_computes(void)
{
    model_t m = a_model_with("fbcache,threshold=0.05,share=1," NO_RAILS, 2);
    begin_run(m.cache, 10);
    for (uint32_t branch = 0; branch < 2; branch++) CHECK(branch_step(&m, 0, branch, 0, 1.0f) == 'C');
    CHECK(branch_step(&m, 1, 0, 0, 9.0f) == 'C'); /* branch 1 is absent */
    CHECK(branch_step(&m, 2, 0, 0, 9.0f) == 's');
    CHECK(branch_step(&m, 2, 1, 0, 9.0f) == 'C');
    for (uint32_t branch = 0; branch < 2; branch++) CHECK(branch_step(&m, 3, branch, 0, 9.0f) == 's');
    dc_cache_destroy(m.cache);
}

static void after_a_discarded_pass_the_reference_is_of_the_pass_done_again(void)
{
    static const char *const methods[] = {"fbcache,threshold=0.05,share=1," NO_RAILS,
                                          "fbcache,threshold=0.05,share=0," NO_RAILS};
    static const float then[] = {1.0f, 9.0f};
    for (int method = 0; method < 2; method++)
        for (int k = 0; k < 2; k++) {
            model_t m = a_model_with(methods[method], 1);
            dc_pass_t pass = pass_of(1, 0);
            begin_run(m.cache, 10);
            CHECK(a_step(&m, 0, 1.0f) == 'C');
            CHECK_OK(open_pass(&m, &pass, 9.0f));
            CHECK(dc_cache_decide(m.cache, DC_SKIP) == DC_SKIP);
            for (uint32_t i = 0; i < BLOCKS; i++) { /* an engine that does not listen */
                CHECK(ask(&m, i) == (i == 0 ? DC_COMPUTE : DC_SKIP));
                run_block(&m, i);
                report(&m, i);
            }
            CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_DISCARD);
            CHECK(branch_step(&m, 1, 0, DC_PASS_COMPUTE, 9.0f) == 'C');
            CHECK(a_step(&m, 2, then[k]) == (then[k] == 9.0f ? 's' : 'C'));
            dc_cache_destroy(m.cache);
        }
}

/* ---- the front ---- */

/* Tensor 1 comes out of the front at half its size. */
static void fail_in_the_front(model_t *m, uint32_t step, uint32_t flags)
{
    dc_pass_t pass = pass_of(step, 0);
    pass.flags = flags;
    dc_tensor_t views[TENSORS];
    CHECK_OK(open_pass(m, &pass, 1.0f));
    CHECK(ask(m, 0) == DC_COMPUTE);
    run_block(m, 0);
    see(m, m->x, views);
    views[1] = floats(m->x[1], WIDTH / 2);
    dc_cache_after_block(m->cache, 0, views, 2);
    CHECK(walk(m, 1, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m->cache), DC_ERR_SHAPE);
    is_whole(m);
}

static void a_front_that_fails_leaves_no_half_made_reference(void)
{
    static const struct { uint32_t step, flags; } failures[] = {{0, 0}, {1, 0}, {1, DC_PASS_COMPUTE}};
    for (int f = 0; f < 3; f++) {
        dc_engine_t engine = an_engine(BLOCKS, 1);
        engine.measure = 3;
        model_t m = a_model(a_cache(&engine, NARROW));
        begin_run(m.cache, 10);
        m.n = 2;
        if (failures[f].step == 1) CHECK(a_step(&m, 0, 1.0f) == 'C');
        fail_in_the_front(&m, failures[f].step, failures[f].flags);
        if (failures[f].step == 0) {
            CHECK(a_step(&m, 1, 1.0f) == 'C');
            CHECK(newest(m.cache).reason == DC_REASON_NO_HISTORY);
        }
        CHECK(a_step(&m, 2, 1.0f) == 's');
        CHECK(newest(m.cache).change == 0.0);
        dc_cache_destroy(m.cache);
    }
}

static void sums_that_overflow_compute(void)
{
    static const float bases[] = {3.0e38f, 2.78e38f, 3.0e38f, 1.0f, 1.0f};
    model_t m = a_model_with(NARROW, 1);
    begin_run(m.cache, 10);
    m.width = MOST;
    for (uint32_t step = 0; step < 5; step++) CHECK(a_step(&m, step, bases[step]) == (step == 4 ? 's' : 'C'));
    dc_cache_destroy(m.cache);
}

static void a_tensor_that_appears_later_makes_the_pass_compute(void)
{
    model_t m = a_model_with(WIDE, 1);
    dc_pass_t pass = pass_of(1, 0);
    begin_run(m.cache, 10);
    CHECK(a_step(&m, 0, 1.0f) == 'C');
    m.n = 2;
    feed(&m, 1.0f, 3.0f);
    outcome_t outcome = pass_over(&m, &pass);
    CHECK(outcome.decision == 'C');
    CHECK_STATUS(outcome.ended, DC_ERR_SHAPE);
    pass = pass_of(2, 0);
    outcome = pass_over(&m, &pass);
    CHECK(outcome.decision == 's'); /* both are known now */
    CHECK_OK(outcome.ended);
    dc_cache_destroy(m.cache);
}

/* ---- where the result of a skip may go ---- */

/* A pass that could be skipped is asked to put its result into `out`, from `in`: refused, and it computes. */
static void refused(model_t *m, const dc_pass_t *pass, const dc_tensor_t *in, const dc_tensor_t *out)
{
    CHECK_OK(open_pass(m, pass, 1.0f));
    CHECK(walk(m, 0, 1) == 0);
    CHECK(dc_cache_before_block(m->cache, 1, in, out, m->n) == DC_COMPUTE);
    run_block(m, 1);
    report(m, 1);
    CHECK(walk(m, 2, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m->cache), DC_ERR_ARG);
    CHECK_SAYS("out tensor");
    is_whole(m);
}

static void a_stacked_branch_never_writes_over_the_rows_of_another(void)
{
    model_t m = a_model_with(WIDE, 2);
    float rows[3 * WIDTH] = {0};
    dc_tensor_t low = rows_of(rows, 2, WIDTH, WIDTH), high = rows_of(rows + WIDTH, 2, WIDTH, WIDTH);
    dc_pass_t pass = stacked(0, 0, 1);
    begin_run(m.cache, 10);
    m.rows = 2;
    feed(&m, 1.0f, 1.0f);
    CHECK(pass_over(&m, &pass).decision == 'C');
    pass.step = 1;
    refused(&m, &pass, &low, &high);
    pass.step = 2;
    refused(&m, &pass, &high, &low);
    for (int j = 0; j < 3 * WIDTH; j++) CHECK(rows[j] == 0.0f);
    pass.step = 3;
    CHECK(pass_over(&m, &pass).decision == 's');
    dc_cache_destroy(m.cache);
}

static void two_results_never_share_a_place(void)
{
    model_t m = a_model_with(WIDE, 1);
    float place[2 * WIDTH] = {0};
    begin_run(m.cache, 10);
    m.n = 2;
    CHECK(a_step(&m, 0, 1.0f) == 'C');
    for (uint32_t step = 1; step < 3; step++) {
        dc_pass_t pass = pass_of(step, 0);
        dc_tensor_t in[TENSORS], out[TENSORS];
        see(&m, m.x, in);
        out[0] = rows_of(place, 1, WIDTH, WIDTH);
        out[1] = rows_of(place + (step == 1 ? WIDTH / 2 : 0), 1, WIDTH, WIDTH); /* in part, then all of it */
        refused(&m, &pass, in, out);
    }
    for (int j = 0; j < 2 * WIDTH; j++) CHECK(place[j] == 0.0f);
    CHECK(a_step(&m, 3, 1.0f) == 's');
    dc_cache_destroy(m.cache);
}

/* ---- a lagged measurement ---- */

static const char *const LAGGED = "fbcache,threshold=0.05,lagged=1," NO_RAILS;

static void a_lagged_measurement_is_for_the_same_branches(void)
{
    static const struct { uint32_t first, second; float base; char decision; } steps[] = {
        {0, 1, 1.0f, 'C'}, {0, 1, 1.0f, 'C'}, {0, 1, 1.0f, 's'}, {1, 0, 8.0f, 'C'}, {0, 1, 16.0f, 'C'},
    };
    model_t m = a_model_with(LAGGED, 2);
    begin_run(m.cache, 10);
    m.rows = 2;
    for (uint32_t step = 0; step < 5; step++) {
        dc_pass_t pass = stacked(step, steps[step].first, steps[step].second);
        feed(&m, steps[step].base, steps[step].base);
        outcome_t outcome = pass_over(&m, &pass);
        CHECK_OK(outcome.ended);
        CHECK(outcome.decision == steps[step].decision);
    }
    CHECK(newest(m.cache).reason == DC_REASON_NO_HISTORY);
    dc_cache_destroy(m.cache);
}

static void a_lagged_measurement_is_for_the_very_next_pass(void)
{
    model_t m = a_model_with(LAGGED, 1);
    dc_pass_t pass = pass_of(3, 0);
    begin_run(m.cache, 10);
    for (uint32_t step = 0; step < 3; step++) CHECK(a_step(&m, step, 1.0f) == (step == 2 ? 's' : 'C'));
    CHECK_OK(open_pass(&m, &pass, 9.0f)); /* measures, and then fails */
    CHECK(walk(&m, 0, 1) == 0);
    for (uint32_t i = 1; i < BLOCKS; i++) {
        dc_tensor_t bad = floats(m.x[0], WIDTH);
        bad.ndim = DC_MAX_DIMS + 1;
        CHECK(dc_cache_before_block(m.cache, i, &bad, NULL, 1) == DC_COMPUTE);
        run_block(&m, i);
        report(&m, i);
    }
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_ARG);
    is_whole(&m);
    CHECK(a_step(&m, 4, 20.0f) == 'C'); /* that of step 2 is too old */
    dc_cache_destroy(m.cache);
}

/* ---- handles, ranks, limits ---- */

static void begin_pass_on_a_destroyed_cache_forgets_the_pass_before(void)
{
    model_t m = a_model_with(WIDE, 1);
    dc_pass_t pass = pass_of(1, 0);
    begin_run(m.cache, 10);
    CHECK(a_step(&m, 0, 1.0f) == 'C');
    CHECK_OK(open_pass(&m, &pass, 1.0f));
    CHECK(walk(&m, 0, 2) == 1);
    dc_cache_destroy(m.cache);
    CHECK(ask(&m, 2) == DC_SKIP); /* the result is in place */
    pass = pass_of(2, 0);         /* and this pass is abandoned */
    CHECK_STATUS(open_pass(&m, &pass, 1.0f), DC_ERR_HANDLE);
    CHECK(walk(&m, 0, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_HANDLE);
    is_whole(&m);
}

static int32_t count_votes(void *user, double *sums, size_t n, void *stream)
{
    (void)sums, (void)n, (void)stream;
    ++*(long *)user;
    return 0;
}

static void a_rank_on_which_something_went_wrong_still_votes(void)
{
    long votes = 0;
    dc_engine_t engine = an_engine(BLOCKS, 1);
    engine.reduce = count_votes;
    engine.reduce_user = &votes;
    model_t m = a_model(a_cache(&engine, WIDE));
    dc_pass_t pass = pass_of(3, 0);
    begin_run(m.cache, 10);
    for (uint32_t step = 0; step < 3; step++) (void)a_step(&m, step, 1.0f);
    CHECK(votes == 3);

    CHECK_OK(open_pass(&m, &pass, 1.0f)); /* what the front adds is not known */
    run_block(&m, 0);
    CHECK(walk(&m, 1, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
    CHECK(votes == 4);
    is_whole(&m);

    pass.step = 4;
    CHECK_OK(open_pass(&m, &pass, 1.0f)); /* ends before the span */
    CHECK(walk(&m, 0, 1) == 0);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
    CHECK(votes == 5);

    CHECK_STATUS(open_pass(&m, &pass, 1.0f), DC_ERR_STATE); /* this step has been */
    CHECK(walk(&m, 0, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
    CHECK(votes == 6);

    pass = stacked(5, 0, 0); /* refused for its arguments, which all ranks share */
    CHECK_STATUS(open_pass(&m, &pass, 1.0f), DC_ERR_ARG);
    CHECK(walk(&m, 0, BLOCKS) == 0);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_ARG);
    CHECK(votes == 6);
    dc_cache_destroy(m.cache);
}

static void trim_keeps_what_the_limits_have_counted(void)
{
    model_t m = a_model_with("fbcache,threshold=0.9,warmup_steps=0,last_steps=0,max_total=2,max_error=none", 1);
    char decisions[13] = {0};
    begin_run(m.cache, 20);
    for (uint32_t step = 0; step < 12; step++) {
        if (step == 2 || step == 6) CHECK_OK(dc_cache_trim(m.cache, NULL));
        decisions[step] = a_step(&m, step, 1.0f);
    }
    CHECK(strcmp(decisions, "CsCsCCCCCCCC") == 0);
    dc_cache_destroy(m.cache);
}

/* ---- promises ---- */

/* Peeks at the next pass while one is open, `at` blocks in. */
static void a_promise_made_in_an_open_pass_is_kept(void)
{
    static const struct { const char *method; float jump; int certain; } cases[] = {
        {"mask,mask=10000000,front_blocks=1,max_consecutive=2", 1.0f, 1},
        {"mask,mask=10000000,front_blocks=1,max_age=3", 1.0f, 1},
        {"fbcache,threshold=0.05,lagged=1," NO_RAILS, 9.0f, 0},
        {"fbcache,threshold=0.05,max_consecutive=1,warmup_steps=0,last_steps=0", 9.0f, 0},
    };
    for (int c = 0; c < 4; c++)
        for (uint32_t at = 0; at <= BLOCKS; at++) {
            model_t m = a_model_with(cases[c].method, 1);
            dc_action_t promise = DC_UNDECIDED;
            int promised = 0;
            begin_run(m.cache, 8);
            for (uint32_t step = 0; step < 8; step++) {
                dc_pass_t pass = pass_of(step, 0), next = pass_of(step + 1, 0);
                dc_action_t expected = promise;
                CHECK_OK(open_pass(&m, &pass, step < 3 ? 1.0f : cases[c].jump));
                uint32_t left_out = walk(&m, 0, at);
                if (step < 7) promise = dc_cache_peek(m.cache, &next, 1);
                left_out += walk(&m, at, BLOCKS);
                CHECK_OK(dc_cache_end_pass(m.cache));
                CHECK(expected == DC_UNDECIDED || expected == (left_out > 0 ? DC_SKIP : DC_COMPUTE));
                promised += expected != DC_UNDECIDED;
            }
            if (cases[c].certain) CHECK(promised == 7);
            CHECK(stats_of(m.cache).passes_skipped > 0);
            dc_cache_destroy(m.cache);
        }
}

static void a_follower_is_promised_nothing_before_its_leader_has_decided(void)
{
    model_t m = a_model_with("fbcache,threshold=0.05,lagged=1,share=1," NO_RAILS, 2);
    begin_run(m.cache, 10);
    for (uint32_t step = 0; step < 5; step++) {
        dc_pass_t follower = pass_of(step, 1);
        CHECK(dc_cache_peek(m.cache, &follower, 1) == DC_UNDECIDED);
        char leads = branch_step(&m, step, 0, 0, 1.0f);
        CHECK(leads == (step < 2 ? 'C' : 's'));
        CHECK(dc_cache_peek(m.cache, &follower, 1) == (leads == 's' ? DC_SKIP : DC_COMPUTE));
        CHECK(branch_step(&m, step, 1, 0, 1.0f) == leads);
    }
    dc_cache_destroy(m.cache);
}

static void decide_before_the_front_is_known_settles_nothing(void)
{
    for (uint32_t asked = 0; asked < 2; asked++) { /* before block 0, and within it */
        model_t m = a_model_with(NARROW, 1);
        begin_run(m.cache, 10);
        for (uint32_t step = 0; step < 6; step++) {
            dc_pass_t pass = pass_of(step, 0);
            char wanted = step == 0 || step == 3 ? 'C' : 's';
            CHECK_OK(open_pass(&m, &pass, step < 3 ? 1.0f : 9.0f));
            if (asked == 1) CHECK(ask(&m, 0) == DC_COMPUTE);
            CHECK(dc_cache_decide(m.cache, DC_UNDECIDED) == (step == 0 ? DC_COMPUTE : DC_UNDECIDED));
            if (asked == 0) CHECK(ask(&m, 0) == DC_COMPUTE);
            run_block(&m, 0);
            report(&m, 0);
            CHECK(dc_cache_decide(m.cache, DC_UNDECIDED) == (wanted == 's' ? DC_SKIP : DC_COMPUTE));
            CHECK(walk(&m, 1, BLOCKS) == (wanted == 's' ? BLOCKS - 1 : 0));
            CHECK_OK(dc_cache_end_pass(m.cache));
            is_whole(&m);
        }
        dc_cache_destroy(m.cache);
    }
}

/* ---- memory after a change of size ---- */

/* FBCache on one tensor and one branch: the value, the reference, and the copy of the input. */
static uint64_t bytes_for(uint32_t width)
{
    return 3 * sizeof(float) * width;
}

static void the_next_run_costs_what_its_own_size_needs(void)
{
    static const uint32_t widths[][2] = {{16, 20}, {20, 16}};
    for (int w = 0; w < 2; w++) {
        dc_engine_t engine = an_engine(BLOCKS, 1);
        engine.memory_budget = bytes_for(20);
        model_t m = a_model(a_cache(&engine, WIDE));
        for (int run = 0; run < 2; run++) {
            begin_run(m.cache, 10);
            m.width = widths[w][run];
            for (uint32_t step = 0; step < 3; step++) {
                CHECK(a_step(&m, step, 1.0f) == (step == 0 ? 'C' : 's'));
                CHECK(stats_of(m.cache).bytes_held == bytes_for(m.width));
            }
        }
        CHECK(stats_of(m.cache).bytes_peak <= engine.memory_budget);
        dc_cache_destroy(m.cache);
    }
}

static void a_size_that_changes_within_a_run_costs_what_it_needs(void)
{
    for (uint32_t flags = 0; flags <= DC_PASS_FORGET; flags += DC_PASS_FORGET) {
        dc_engine_t engine = an_engine(BLOCKS, 1);
        engine.memory_budget = bytes_for(20);
        model_t m = a_model(a_cache(&engine, WIDE));
        begin_run(m.cache, 10);
        CHECK(a_step(&m, 0, 1.0f) == 'C');
        dc_pass_t pass = pass_of(1, 0);
        pass.flags = flags;
        m.width = 20;
        feed(&m, 1.0f, 1.0f);
        outcome_t outcome = pass_over(&m, &pass);
        CHECK(outcome.decision == 'C');
        CHECK_STATUS(outcome.ended, flags == 0 ? DC_ERR_SHAPE : DC_OK); /* forgotten: there is nothing to change */
        CHECK(a_step(&m, 2, 1.0f) == 's');
        CHECK(stats_of(m.cache).bytes_held == bytes_for(20));
        dc_cache_destroy(m.cache);
    }
}

/* Memory is taken in advance, for other sizes than the run before had; the budget has no room for both. */
static void branches_may_exchange_their_sizes_between_runs(void)
{
    store_t store;
    dc_tensor_t small = rows_of(NULL, 1, 16, 16), large = rows_of(NULL, 1, 64, 64);
    dc_shape_t shapes[2];
    dc_engine_t engine = an_engine(BLOCKS, 2);
    dc_options_t options = options_of(WIDE);
    memset(shapes, 0, sizeof shapes);
    for (uint32_t branch = 0; branch < 2; branch++) {
        shapes[branch].hook = DC_HOOK_BLOCKS;
        shapes[branch].branch = branch;
        shapes[branch].n = 1;
    }
    shapes[0].tensors = &small;
    shapes[1].tensors = &large;
    take_from(&engine, &store);
    CHECK_OK(dc_memory_needed(&engine, &options, shapes, 2, &engine.memory_budget));
    model_t m = a_model(a_cache(&engine, WIDE));
    for (int run = 0; run < 3; run++) {
        dc_run_t with = DC_RUN_INIT;
        with.n_steps = 10;
        with.n_shapes = 2;
        with.shapes = shapes;
        shapes[0].tensors = run % 2 == 0 ? &small : &large;
        shapes[1].tensors = run % 2 == 0 ? &large : &small;
        CHECK_OK(dc_cache_begin_run(m.cache, &with));
        CHECK(store.held == engine.memory_budget);
        long calls = store.calls;
        for (uint32_t step = 0; step < 2; step++)
            for (uint32_t branch = 0; branch < 2; branch++) {
                m.width = (uint32_t)shapes[branch].tensors->shape[1];
                CHECK(branch_step(&m, step, branch, 0, 1.0f) == (step == 0 ? 'C' : 's'));
            }
        CHECK(store.calls == calls);
    }
    dc_cache_destroy(m.cache);
    CHECK(store.held == 0);
}

/* ---- calls that come between ---- */

static volatile int stop;

static void *peek_at_the_far_future(void *cache)
{
    dc_pass_t pass = pass_of((uint32_t)1 << 30, 0);
    long answers = 0;
    do {
        answers += dc_cache_peek(cache, &pass, 1) <= DC_UNDECIDED;
        for (volatile int pause = 0; pause < 200; pause++) continue; /* some calls are served, some turned away */
    } while (!stop);
    CHECK(answers > 0);
    return NULL;
}

/* A pass of which a call was turned away computes, or is to be thrown away; its output is never wrong otherwise. */
static void a_thread_that_peeks_never_spoils_an_output_in_silence(void)
{
    model_t m = a_model_with(WIDE, 1);
    pthread_t thread;
    stop = 0;
    begin_run(m.cache, 0);
    CHECK(pthread_create(&thread, NULL, peek_at_the_far_future, m.cache) == 0);
    for (long run = 0; run < often(4000); run++) {
        dc_run_t again = DC_RUN_INIT;
        dc_status_t status;
        do status = dc_cache_begin_run(m.cache, &again);
        while (status == DC_ERR_BUSY);
        CHECK_OK(status);
        feed(&m, 1.0f, 1.0f);
        for (uint32_t step = 0; step < 20; step++) {
            dc_pass_t pass = pass_of(step, 0);
            (void)pass_over(&m, &pass);
        }
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    dc_cache_destroy(m.cache);
}

int main(void)
{
    a_span_whose_first_block_was_refused_is_not_entered_at_the_next();
    after_a_shape_error_nothing_is_learned_one_block_late();
    a_span_block_that_is_reported_unasked_leaves_nothing_out();
    a_history_that_began_at_another_block_is_not_reused();
    after_a_memory_failure_nothing_is_reused_by_a_newer_reference();
    streams_that_change_places_are_compared_with_themselves();
    references_that_are_given_up_are_used_again();
    a_measured_stream_that_was_absent_has_nothing_to_be_compared_with();
    a_follower_whose_value_is_older_than_its_leaders_computes();
    after_a_discarded_pass_the_reference_is_of_the_pass_done_again();
    a_front_that_fails_leaves_no_half_made_reference();
    sums_that_overflow_compute();
    a_tensor_that_appears_later_makes_the_pass_compute();
    a_stacked_branch_never_writes_over_the_rows_of_another();
    two_results_never_share_a_place();
    a_lagged_measurement_is_for_the_same_branches();
    a_lagged_measurement_is_for_the_very_next_pass();
    begin_pass_on_a_destroyed_cache_forgets_the_pass_before();
    a_rank_on_which_something_went_wrong_still_votes();
    trim_keeps_what_the_limits_have_counted();
    a_promise_made_in_an_open_pass_is_kept();
    a_follower_is_promised_nothing_before_its_leader_has_decided();
    decide_before_the_front_is_known_settles_nothing();
    the_next_run_costs_what_its_own_size_needs();
    a_size_that_changes_within_a_run_costs_what_it_needs();
    branches_may_exchange_their_sizes_between_runs();
    a_thread_that_peeks_never_spoils_an_output_in_silence();
    return 0;
}
