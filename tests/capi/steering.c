/* Steering a pass (decide, peek, flags, share, lagged), and looking inside (trace, stats, log). */
#include "check.h"

enum { BLOCKS = 5 };

static const char *const SLOW = "fbcache,threshold=0.2," NO_RAILS;

static toy_t a_toy_with(const char *text, uint32_t branches)
{
    dc_engine_t engine = an_engine(BLOCKS, branches);
    dc_options_t options = options_of(text);
    return a_toy(a_cache(&engine, text), BLOCKS, options.front_blocks, options.back_blocks);
}

/* A pass in which the engine settles before the first skippable block; `wish` in, what was decided out. */
static outcome_t pass_with_wish(toy_t *toy, uint32_t step, float base, dc_action_t wish, dc_action_t *decided)
{
    dc_pass_t pass = pass_of(step, 0);
    dc_tensor_t x = floats(toy->x, TOY);
    outcome_t outcome;
    int skipped = 0;
    toy_input(toy, base);
    outcome.began = dc_cache_begin_pass(toy->cache, &pass);
    for (uint32_t i = 0; i < toy->blocks; i++) {
        if (i == toy->front) *decided = dc_cache_decide(toy->cache, wish);
        if (dc_cache_before_block(toy->cache, i, &x, NULL, 1) == DC_COMPUTE) {
            toy_block(toy->x, TOY, i);
            dc_cache_after_block(toy->cache, i, &x, 1);
        } else {
            skipped = 1;
        }
    }
    outcome.ended = dc_cache_end_pass(toy->cache);
    outcome.decision = skipped ? 's' : 'C';
    toy_verify(toy, base, skipped, outcome.ended == DC_OK);
    return outcome;
}

/* ---- decide ---- */

static void decide_without_a_wish_says_what_the_rule_says(void)
{
    toy_t toy = a_toy_with(SLOW, 1);
    dc_action_t decided = DC_UNDECIDED;
    begin_run(toy.cache, 10);
    CHECK(pass_with_wish(&toy, 0, 1.0f, DC_UNDECIDED, &decided).decision == 'C' && decided == DC_COMPUTE);
    CHECK(pass_with_wish(&toy, 1, 1.0f, DC_UNDECIDED, &decided).decision == 's' && decided == DC_SKIP);
    CHECK(newest(toy.cache).reason == DC_REASON_RULE);
    CHECK(pass_with_wish(&toy, 2, 900.0f, DC_UNDECIDED, &decided).decision == 'C' && decided == DC_COMPUTE);
    CHECK(newest(toy.cache).reason == DC_REASON_RULE);
    dc_cache_destroy(toy.cache);
}

static void a_wish_overrules_the_rule_and_is_traced_as_the_engines(void)
{
    toy_t toy = a_toy_with(SLOW, 1);
    dc_action_t decided = DC_UNDECIDED;
    begin_run(toy.cache, 10);
    CHECK(pass_with_wish(&toy, 0, 1.0f, DC_SKIP, &decided).decision == 'C'); /* nothing to reuse yet */
    CHECK(decided == DC_COMPUTE && newest(toy.cache).reason == DC_REASON_NO_HISTORY);
    CHECK(pass_with_wish(&toy, 1, 1.0f, DC_COMPUTE, &decided).decision == 'C');
    CHECK(decided == DC_COMPUTE && newest(toy.cache).reason == DC_REASON_ENGINE);
    CHECK(pass_with_wish(&toy, 2, 900.0f, DC_SKIP, &decided).decision == 's'); /* the rule would compute */
    CHECK(decided == DC_SKIP && newest(toy.cache).reason == DC_REASON_ENGINE);
    CHECK(stats_of(toy.cache).passes_skipped == 1 && stats_of(toy.cache).errors == 0);
    dc_cache_destroy(toy.cache);
}

/* All or none: first asked, then overruled, both before anything is written. */
static void decide_may_be_overruled_until_the_first_skippable_block(void)
{
    toy_t toy = a_toy_with(SLOW, 1);
    dc_tensor_t x = floats(toy.x, TOY);
    begin_run(toy.cache, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    for (uint32_t step = 1; step < 3; step++) {
        dc_pass_t pass = pass_of(step, 0);
        float front[TOY];
        toy_input(&toy, 1.0f);
        CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
        CHECK(dc_cache_before_block(toy.cache, 0, &x, NULL, 1) == DC_COMPUTE);
        toy_block(toy.x, TOY, 0);
        dc_cache_after_block(toy.cache, 0, &x, 1);
        memcpy(front, toy.x, sizeof front);
        CHECK(dc_cache_decide(toy.cache, DC_UNDECIDED) == DC_SKIP);
        CHECK(dc_cache_decide(toy.cache, DC_UNDECIDED) == DC_SKIP); /* asking again changes nothing */
        if (step == 2) CHECK(dc_cache_decide(toy.cache, DC_COMPUTE) == DC_COMPUTE);
        CHECK(memcmp(toy.x, front, sizeof front) == 0); /* no tensor was touched */
        CHECK(dc_cache_before_block(toy.cache, 1, &x, NULL, 1) == (step == 2 ? DC_COMPUTE : DC_SKIP));
        if (step == 1) CHECK(dc_cache_decide(toy.cache, DC_COMPUTE) == DC_SKIP); /* too late: the result is written */
        for (uint32_t i = 1; i < BLOCKS; i++) {
            if (step == 1) {
                CHECK(dc_cache_before_block(toy.cache, i, &x, NULL, 1) == DC_SKIP);
                continue;
            }
            if (i > 1) CHECK(dc_cache_before_block(toy.cache, i, &x, NULL, 1) == DC_COMPUTE);
            toy_block(toy.x, TOY, i);
            dc_cache_after_block(toy.cache, i, &x, 1);
        }
        dc_status_t status = dc_cache_end_pass(toy.cache);
        CHECK(status != DC_ERR_DISCARD && (step == 1 || status == DC_OK));
        toy_verify(&toy, 1.0f, step == 1, 1);
    }
    dc_cache_destroy(toy.cache);
}

/* ---- peek ---- */

static void peek_over_a_whole_scheduled_run_equals_the_run(void)
{
    static const struct { const char *text; uint32_t branches; } methods[] = {
        {"mask,mask=1101001000,front_blocks=0", 1},
        {"mask,mask=1101001000,front_blocks=2,back_blocks=1", 2},
        {"mask,mask=1000000000,front_blocks=0,max_consecutive=2", 1},
        {"mask,mask=1000000000,front_blocks=0,warmup_steps=3,last_steps=2", 1},
        {"mask,mask=1000000000,front_blocks=0,max_total=3", 1},
        {"mask,mask=1000000000,front_blocks=0,max_age=3", 1},
        {"mask,mask=1000000000,front_blocks=0,warmup_steps=6,warmup_interval=2", 1},
        {"none", 1},
    };
    for (size_t m = 0; m < sizeof methods / sizeof *methods; m++) {
        toy_t toys[2];
        toys[0] = toys[1] = a_toy_with(methods[m].text, methods[m].branches);
        int skips = 0;
        begin_run(toys[0].cache, 10);
        for (uint32_t step = 0; step < 10; step++)
            for (uint32_t branch = 0; branch < methods[m].branches; branch++) {
                toy_t *toy = &toys[branch];
                dc_pass_t pass = pass_of(step, branch);
                dc_action_t promised[BLOCKS];
                for (uint32_t i = 0; i < BLOCKS; i++) promised[i] = dc_cache_peek(toy->cache, &pass, i);
                CHECK(promised[toy->front] == dc_cache_peek(toy->cache, &pass, toy->front)); /* asking moves nothing */
                outcome_t outcome = toy_pass(toy, &pass, 1.0f + 0.001f * (float)step);
                CHECK(outcome.began == DC_OK && outcome.ended == DC_OK);
                for (uint32_t i = 0; i < BLOCKS; i++) {
                    int skippable = i >= toy->front && i < BLOCKS - toy->back;
                    CHECK(promised[i] == (skippable && outcome.decision == 's' ? DC_SKIP : DC_COMPUTE));
                }
                skips += outcome.decision == 's';
            }
        CHECK((skips > 0) == (m < 7));
        dc_cache_destroy(toys[0].cache);
    }
}

static void peek_of_a_measuring_rule_is_certain_only_where_nothing_is_measured(void)
{
    toy_t toy = a_toy_with("fbcache,threshold=0.2," NO_RAILS ",warmup_steps=2,last_steps=1,max_consecutive=2", 1);
    dc_pass_t pass;
    const char *const decisions = "CCssCsC"; /* warm-up, two skips in a row at most, the last step */
    begin_run(toy.cache, 7);
    for (uint32_t step = 0; step < 7; step++) {
        pass = pass_of(step, 0);
        CHECK(dc_cache_peek(toy.cache, &pass, 0) == DC_COMPUTE); /* the front always computes */
        CHECK(dc_cache_peek(toy.cache, &pass, 2) == (decisions[step] == 's' ? DC_UNDECIDED : DC_COMPUTE));
        CHECK(toy_step(&toy, step, 1.0f) == decisions[step]);
    }
    /* COMPUTE asked for by a flag is certain as well */
    begin_run(toy.cache, 7);
    for (uint32_t step = 0; step < 3; step++) (void)toy_step(&toy, step, 1.0f);
    pass = pass_of(3, 0);
    pass.flags = DC_PASS_COMPUTE;
    CHECK(dc_cache_peek(toy.cache, &pass, 1) == DC_COMPUTE);
    pass.flags = DC_PASS_FORGET;
    CHECK(dc_cache_peek(toy.cache, &pass, 1) == DC_COMPUTE);
    pass.flags = DC_PASS_LAST;
    CHECK(dc_cache_peek(toy.cache, &pass, 1) == DC_COMPUTE);
    dc_cache_destroy(toy.cache);
}

static void peek_in_an_open_pass_is_certain_once_it_is_settled(void)
{
    toy_t toy = a_toy_with(SLOW, 1);
    dc_tensor_t x = floats(toy.x, TOY);
    begin_run(toy.cache, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    for (uint32_t step = 1; step < 3; step++) {
        dc_action_t wish = step == 1 ? DC_UNDECIDED : DC_COMPUTE, decided = step == 1 ? DC_SKIP : DC_COMPUTE;
        dc_pass_t pass = pass_of(step, 0);
        toy_input(&toy, 1.0f);
        CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
        CHECK(dc_cache_peek(toy.cache, NULL, 1) == DC_UNDECIDED);
        CHECK(dc_cache_before_block(toy.cache, 0, &x, NULL, 1) == DC_COMPUTE);
        toy_block(toy.x, TOY, 0);
        dc_cache_after_block(toy.cache, 0, &x, 1);
        CHECK(dc_cache_decide(toy.cache, wish) == decided);
        for (uint32_t i = 0; i < BLOCKS; i++) CHECK(dc_cache_peek(toy.cache, NULL, i) == (i == 0 ? DC_COMPUTE : decided));
        for (uint32_t i = 1; i < BLOCKS; i++)
            if (dc_cache_before_block(toy.cache, i, &x, NULL, 1) == DC_COMPUTE) {
                toy_block(toy.x, TOY, i);
                dc_cache_after_block(toy.cache, i, &x, 1);
            }
        CHECK_OK(dc_cache_end_pass(toy.cache));
        toy_verify(&toy, 1.0f, decided == DC_SKIP, 1);
    }
    dc_cache_destroy(toy.cache);
}

/* ---- lagged ---- */

static void a_lagged_decision_is_known_before_its_pass(void)
{
    toy_t toy = a_toy_with("fbcache,threshold=0.2,lagged=1," NO_RAILS, 1);
    char text[64] = {0};
    begin_run(toy.cache, 20);
    for (uint32_t step = 0; step < 20; step++) {
        dc_pass_t pass = pass_of(step, 0);
        dc_action_t promised = dc_cache_peek(toy.cache, &pass, 1);
        CHECK(promised != DC_UNDECIDED);
        text[step] = toy_step(&toy, step, step < 10 ? 1.0f : 900.0f); /* a jump at step 10 */
        CHECK(text[step] == (promised == DC_SKIP ? 's' : 'C'));
    }
    CHECK(text[9] == 's' && text[10] == 's'); /* the measurement of step 9 saw no jump */
    CHECK(text[11] == 'C');                   /* that of step 10 did */
    CHECK(text[19] == 's');                   /* and all is calm again */
    dc_cache_destroy(toy.cache);
}

/* ---- flags ---- */

static void the_flags_of_a_pass_do_what_they_say(void)
{
    toy_t toy = a_toy_with("fbcache,threshold=0.2," NO_RAILS ",last_steps=1", 1);
    dc_pass_t pass;
    outcome_t outcome;
    begin_run(toy.cache, 0); /* so that only the flag can say which step is the last */
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    CHECK(toy_step(&toy, 1, 1.0f) == 's');

    pass = pass_of(2, 0);
    pass.flags = DC_PASS_LAST;
    outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(outcome.ended == DC_OK && outcome.decision == 'C' && newest(toy.cache).reason == DC_REASON_LAST);

    pass = pass_of(3, 0);
    pass.flags = DC_PASS_COMPUTE; /* computes, and learns: what follows is measured against it */
    outcome = toy_pass(&toy, &pass, 500.0f);
    CHECK(outcome.ended == DC_OK && outcome.decision == 'C' && newest(toy.cache).reason == DC_REASON_ENGINE);
    CHECK(toy_step(&toy, 4, 500.0f) == 's'); /* with the residual of step 3, as toy_step checks */

    pass = pass_of(5, 0);
    pass.flags = DC_PASS_FORGET;
    outcome = toy_pass(&toy, &pass, 500.0f);
    CHECK(outcome.ended == DC_OK && outcome.decision == 'C' && newest(toy.cache).reason == DC_REASON_NO_HISTORY);
    CHECK(toy_step(&toy, 6, 500.0f) == 's');
    dc_cache_destroy(toy.cache);
}

static void forgetting_concerns_only_the_branches_of_the_pass(void)
{
    toy_t cond = a_toy_with(SLOW, 2), uncond = cond;
    dc_pass_t pass;
    begin_run(cond.cache, 10);
    for (uint32_t step = 0; step < 2; step++) {
        pass = pass_of(step, 0);
        CHECK(toy_pass(&cond, &pass, 1.0f).ended == DC_OK);
        pass = pass_of(step, 1);
        CHECK(toy_pass(&uncond, &pass, 2.0f).ended == DC_OK);
    }
    pass = pass_of(2, 1);
    pass.flags = DC_PASS_FORGET;
    CHECK(toy_pass(&uncond, &pass, 2.0f).decision == 'C');
    pass = pass_of(2, 0);
    CHECK(toy_pass(&cond, &pass, 1.0f).decision == 's');
    dc_cache_destroy(cond.cache);
}

static void the_timestep_of_a_pass_is_its_own_or_the_runs(void)
{
    toy_t toy = a_toy_with(SLOW, 1);
    const float timesteps[3] = {999.0f, 500.5f, 20.25f};
    dc_run_t run = DC_RUN_INIT;
    dc_pass_t pass;
    run.n_steps = 3;
    run.timesteps = timesteps;
    run.timestep_max = 1000.0f;
    CHECK_OK(dc_cache_begin_run(toy.cache, &run));
    for (uint32_t step = 0; step < 3; step++) {
        pass = pass_of(step, 0);
        pass.timestep = 77.0f; /* set, but not said to be */
        if (step == 1) pass.flags = DC_PASS_TIMESTEP;
        CHECK(toy_pass(&toy, &pass, 1.0f).ended == DC_OK);
        CHECK(newest(toy.cache).timestep == (step == 1 ? 77.0f : timesteps[step]));
    }
    begin_run(toy.cache, 3);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    CHECK(isnan(newest(toy.cache).timestep)); /* nobody told */
    dc_cache_destroy(toy.cache);
}

/* ---- share ---- */

static void with_share_the_first_branch_of_a_step_decides(void)
{
    /* step 2: only the follower's input jumps; step 4: only the leader's; step 5: back again */
    static const float jump[6][2] = {{0, 0}, {0, 0}, {0, 300}, {0, 0}, {300, 0}, {0, 0}};
    toy_t toys[2];
    dc_pass_t pass;
    toys[0] = toys[1] = a_toy_with("fbcache,threshold=0.2,share=1," NO_RAILS, 2);
    begin_run(toys[0].cache, 20);
    for (uint32_t step = 0; step < 6; step++)
        for (uint32_t branch = 0; branch < 2; branch++) {
            pass = pass_of(step, branch);
            outcome_t outcome = toy_pass(&toys[branch], &pass, 1.0f + (float)branch + jump[step][branch]);
            CHECK(outcome.ended == DC_OK);
            CHECK(outcome.decision == "CsssCC"[step]);
            CHECK((newest(toys[0].cache).reason == DC_REASON_SHARED) == (branch == 1));
        }
    dc_cache_destroy(toys[0].cache);
}

/* Whoever comes first: some engines evaluate cond first, some uncond. */
static void with_share_it_does_not_matter_which_branch_leads(void)
{
    toy_t toys[2];
    int skips = 0;
    toys[0] = toys[1] = a_toy_with("fbcache,threshold=0.2,share=1," NO_RAILS, 2);
    begin_run(toys[0].cache, 20);
    for (uint32_t step = 0; step < 12; step++) {
        char leader = 0;
        for (uint32_t k = 0; k < 2; k++) {
            uint32_t branch = step / 4 % 2 ? 1 - k : k;
            dc_pass_t pass = pass_of(step, branch);
            outcome_t outcome = toy_pass(&toys[branch], &pass, 1.0f + (float)branch);
            CHECK(outcome.ended == DC_OK);
            if (k == 0) leader = outcome.decision;
            CHECK(outcome.decision == leader);
        }
        skips += leader == 's';
    }
    CHECK(skips > 6);
    dc_cache_destroy(toys[0].cache);
}

static void with_share_a_follower_without_history_computes_all_the_same(void)
{
    toy_t toys[2];
    dc_pass_t pass;
    toys[0] = toys[1] = a_toy_with("fbcache,threshold=0.2,share=1," NO_RAILS, 2);
    begin_run(toys[0].cache, 20);
    CHECK(toy_step(&toys[0], 0, 1.0f) == 'C');
    CHECK(toy_step(&toys[0], 1, 1.0f) == 's');
    pass = pass_of(1, 1); /* guidance begins late */
    CHECK(toy_pass(&toys[1], &pass, 2.0f).decision == 'C');
    CHECK(newest(toys[1].cache).reason == DC_REASON_NO_HISTORY);
    CHECK(toy_step(&toys[0], 2, 1.0f) == 's');
    pass = pass_of(2, 1);
    CHECK(toy_pass(&toys[1], &pass, 2.0f).decision == 's');
    dc_cache_destroy(toys[0].cache);
}

/* ---- trace ---- */

static dc_reason_t reason_after(toy_t *toy, uint32_t step, float base, char decision)
{
    CHECK(toy_step(toy, step, base) == decision);
    dc_trace_t record = newest(toy->cache);
    CHECK(record.step == step && record.action == (decision == 's' ? DC_SKIP : DC_COMPUTE));
    return record.reason;
}

static void every_decision_has_its_reason(void)
{
    toy_t toy = a_toy_with("fbcache,threshold=0.2," NO_RAILS
                           ",warmup_steps=2,last_steps=1,max_consecutive=2,max_total=4", 1);
    begin_run(toy.cache, 12);
    (void)reason_after(&toy, 0, 1.0f, 'C'); /* no history, and warm-up */
    CHECK(reason_after(&toy, 1, 1.0f, 'C') == DC_REASON_WARMUP);
    CHECK(reason_after(&toy, 2, 1.0f, 's') == DC_REASON_RULE);
    CHECK(reason_after(&toy, 3, 900.0f, 'C') == DC_REASON_RULE);
    CHECK(reason_after(&toy, 4, 900.0f, 's') == DC_REASON_RULE);
    CHECK(reason_after(&toy, 5, 900.0f, 's') == DC_REASON_RULE);
    CHECK(reason_after(&toy, 6, 900.0f, 'C') == DC_REASON_MAX_CONSECUTIVE);
    CHECK(reason_after(&toy, 7, 900.0f, 's') == DC_REASON_RULE);
    CHECK(reason_after(&toy, 8, 900.0f, 'C') == DC_REASON_MAX_TOTAL);
    CHECK(reason_after(&toy, 11, 900.0f, 'C') == DC_REASON_LAST);
    dc_cache_destroy(toy.cache);

    toy = a_toy_with("fbcache,threshold=0.2," NO_RAILS ",max_error=0.05", 1);
    begin_run(toy.cache, 12);
    CHECK(reason_after(&toy, 0, 1.0f, 'C') == DC_REASON_NO_HISTORY);
    for (uint32_t step = 1;; step++) { /* a change of about 0.02 a step: the sum of a streak reaches 0.05 */
        CHECK(step < 12);
        char decision = toy_step(&toy, step, 1.0f + 0.25f * (float)step);
        if (decision == 'C') break;
    }
    CHECK(newest(toy.cache).reason == DC_REASON_MAX_ERROR);
    dc_cache_destroy(toy.cache);

    toy = a_toy_with(SLOW, 1);
    begin_run(toy.cache, 12);
    CHECK(reason_after(&toy, 0, 1.0f, 'C') == DC_REASON_NO_HISTORY);
    dc_pass_t pass = pass_of(1, 0);
    toy_input(&toy, NAN);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    CHECK(!toy_walk(&toy));
    CHECK_OK(dc_cache_end_pass(toy.cache));
    CHECK(newest(toy.cache).reason == DC_REASON_NOT_FINITE);
    CHECK(reason_after(&toy, 2, 1.0f, 'C') == DC_REASON_NOT_FINITE); /* what was kept is not finite */
    CHECK(reason_after(&toy, 3, 1.0f, 's') == DC_REASON_RULE);

    float small[4] = {1, 2, 3, 4};
    dc_tensor_t x = floats(small, 4);
    pass = pass_of(4, 0);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    for (uint32_t i = 0; i < BLOCKS; i++) {
        CHECK(dc_cache_before_block(toy.cache, i, &x, NULL, 1) == DC_COMPUTE);
        toy_block(small, 4, i);
        dc_cache_after_block(toy.cache, i, &x, 1);
    }
    CHECK_STATUS(dc_cache_end_pass(toy.cache), DC_ERR_SHAPE);
    CHECK(newest(toy.cache).reason == DC_REASON_SHAPE);

    x.shape[0] = -1;
    pass = pass_of(5, 0);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    CHECK(dc_cache_before_block(toy.cache, 0, &x, NULL, 1) == DC_COMPUTE);
    CHECK_STATUS(dc_cache_end_pass(toy.cache), DC_ERR_ARG);
    CHECK(newest(toy.cache).reason == DC_REASON_ERROR);
    dc_cache_destroy(toy.cache);

    toy = a_toy_with("mask,mask=1010,front_blocks=0", 1);
    begin_run(toy.cache, 4);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    for (uint32_t step = 1; step < 4; step++)
        CHECK(reason_after(&toy, step, 1.0f, step % 2 ? 's' : 'C') == DC_REASON_RULE);
    dc_trace_t record = newest(toy.cache);
    CHECK(record.unit == 0 && isnan(record.change)); /* a schedule measures nothing */
    dc_cache_destroy(toy.cache);
}

static void the_trace_holds_what_was_measured(void)
{
    toy_t toy = a_toy_with("fbcache,threshold=0.2," NO_RAILS, 1);
    float previous[TOY];
    double sum = 0;
    begin_run(toy.cache, 8);
    for (uint32_t step = 0; step < 6; step++) {
        float base = 1.0f + 0.1f * (float)step, residual[TOY];
        double difference = 0, magnitude = 0;
        toy_input(&toy, base);
        for (int j = 0; j < TOY; j++) {
            float x = toy.x[j];
            toy_block(&x, 1, 0);
            residual[j] = x - toy.x[j];
            if (step == 0) previous[j] = residual[j];
            difference += fabs((double)residual[j] - previous[j]);
            magnitude += fabs((double)previous[j]);
        }
        char decision = toy_step(&toy, step, base);
        dc_trace_t record = newest(toy.cache);
        CHECK(record.step == step && record.branch == 0 && record.unit == 1); /* the first skippable block */
        CHECK(record.threshold == 0.2);
        if (step == 0) {
            CHECK(isnan(record.change));
        } else {
            CHECK(decision == 's'); /* so that all is measured against step 0 */
            sum += difference / magnitude;
            CHECK(close_to(record.change, difference / magnitude));
            CHECK(close_to(record.accumulated, sum));
        }
    }
    dc_cache_destroy(toy.cache);
}

static void the_trace_comes_oldest_first_and_keeps_the_newest(void)
{
    enum { PASSES = 5000, KEPT = 4096 };
    static dc_trace_t records[PASSES];
    toy_t toy = a_toy_with("mask,mask=10,front_blocks=0", 1);
    size_t n = 0;
    begin_run(toy.cache, 0);
    CHECK_OK(dc_cache_trace(toy.cache, records, sizeof *records, PASSES, &n));
    CHECK(n == 0);
    for (uint32_t step = 0; step < 10; step++) (void)toy_step(&toy, step, 1.0f);
    CHECK_OK(dc_cache_trace(toy.cache, records, sizeof *records, 4, &n)); /* capacity smaller than what exists */
    CHECK(n == 10);
    for (uint32_t k = 0; k < 4; k++) CHECK(records[k].step == k);
    CHECK_OK(dc_cache_trace(toy.cache, NULL, sizeof *records, 0, &n));
    CHECK(n == 10);
    for (uint32_t step = 10; step < PASSES; step++) (void)toy_step(&toy, step, 1.0f);
    CHECK_OK(dc_cache_trace(toy.cache, records, sizeof *records, PASSES, &n));
    CHECK(n == KEPT);
    for (uint32_t k = 0; k < KEPT; k++) CHECK(records[k].step == PASSES - KEPT + k);
    begin_run(toy.cache, 0); /* a new run, a new trace */
    CHECK_OK(dc_cache_trace(toy.cache, records, sizeof *records, PASSES, &n));
    CHECK(n == 0);
    dc_cache_destroy(toy.cache);
}

static void a_pass_of_two_branches_leaves_two_records(void)
{
    dc_engine_t engine = an_engine(2, 2);
    engine.max_stacked = 2;
    dc_cache_t *cache = a_cache(&engine, SLOW);
    float v[2 * TOY] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    dc_tensor_t x = rows_of(v, 2, TOY, TOY);
    dc_pass_t pass = DC_PASS_INIT;
    dc_trace_t records[4];
    size_t n = 0;
    pass.n_branches = 2;
    pass.branches[0] = 1;
    begin_run(cache, 4);
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    for (uint32_t i = 0; i < 2; i++) {
        CHECK(dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE);
        toy_block(v, 2 * TOY, i);
        dc_cache_after_block(cache, i, &x, 1);
    }
    CHECK_OK(dc_cache_end_pass(cache));
    CHECK_OK(dc_cache_trace(cache, records, sizeof *records, 4, &n));
    CHECK(n == 2 && records[0].branch == 1 && records[1].branch == 0);
    CHECK(stats_of(cache).passes == 1);
    dc_cache_destroy(cache);
}

/* ---- stats ---- */

static void stats_count_what_was_done(void)
{
    toy_t toy = a_toy_with("dbcache,front_blocks=1,back_blocks=2,threshold=0.2," NO_RAILS, 1);
    double changes[9];
    dc_trace_t records[16];
    size_t n = 0;
    begin_run(toy.cache, 12);
    dc_stats_t stats = stats_of(toy.cache);
    CHECK(stats.passes == 0 && isnan(stats.change_p5) && isnan(stats.change_p50) && isnan(stats.change_p95));
    for (uint32_t step = 0; step < 10; step++)
        CHECK(toy_step(&toy, step, 1.0f + 0.05f * (float)step) == (step == 0 ? 'C' : 's'));
    dc_pass_t pass = pass_of(9, 0);
    CHECK(toy_pass(&toy, &pass, 1.0f).ended == DC_ERR_STATE); /* one error */
    stats = stats_of(toy.cache);
    CHECK(stats.passes == 11 && stats.passes_skipped == 9);
    CHECK(stats.blocks_skipped == 9 * 2 && stats.blocks_computed == 9 * 3 + 2 * 5);
    CHECK(stats.layers_computed == 0 && stats.layers_skipped == 0);
    CHECK(stats.uncond_computed == 0 && stats.uncond_skipped == 0);
    CHECK(stats.errors >= 1 && stats.first_error == DC_ERR_STATE && stats.discarded == 0 && stats.not_finite == 0);
    CHECK(stats.bytes_held > 0 && stats.bytes_peak >= stats.bytes_held && stats.allocations > 0);
    CHECK(stats.threshold == 0.2);
    /* the changes of a slow drift rise, so that their quantiles are known */
    CHECK_OK(dc_cache_trace(toy.cache, records, sizeof *records, 16, &n));
    CHECK(n >= 10);
    for (int k = 0; k < 9; k++) changes[k] = records[k + 1].change;
    for (int k = 1; k < 9; k++) CHECK(changes[k] > changes[k - 1]);
    CHECK(stats.change_p5 >= changes[0] && stats.change_p5 <= changes[1]);
    CHECK(fabs(stats.change_p50 - changes[4]) <= 1e-6);
    CHECK(stats.change_p95 >= changes[7] && stats.change_p95 <= changes[8]);
    /* a new run starts its counts again, but holds its memory */
    begin_run(toy.cache, 12);
    dc_stats_t fresh = stats_of(toy.cache);
    CHECK(fresh.passes == 0 && fresh.errors == 0 && fresh.first_error == DC_OK && fresh.bytes_held == stats.bytes_held);
    dc_cache_destroy(toy.cache);
}

/* ---- log ---- */

typedef struct lines_t { int n; dc_log_level_t level[32]; char text[32][512]; } lines_t;

static void write_down(void *user, dc_log_level_t level, const char *message)
{
    lines_t *lines = user;
    CHECK(lines->n < 32);
    lines->level[lines->n] = level;
    snprintf(lines->text[lines->n++], sizeof *lines->text, "%s", message);
}

static const char *line_of(const lines_t *lines, dc_log_level_t level)
{
    const char *found = NULL;
    for (int k = 0; k < lines->n; k++) {
        if (lines->level[k] != level) continue;
        CHECK(found == NULL); /* one line, not a flood */
        found = lines->text[k];
    }
    return found;
}

/* A run of ten steps on inputs that drift by `drift` a step, ended; what was logged. */
static void log_of_a_run(lines_t *lines, const char *method, float drift)
{
    dc_engine_t engine = an_engine(BLOCKS, 1);
    snprintf(engine.label, sizeof engine.label, "request 4711");
    toy_t toy = a_toy(a_cache(&engine, method), BLOCKS, 1, 0);
    begin_run(toy.cache, 10);
    memset(lines, 0, sizeof *lines);
    for (uint32_t step = 0; step < 10; step++) (void)toy_step(&toy, step, 1.0f + drift * (float)step);
    CHECK_OK(dc_cache_end_run(toy.cache));
    for (int k = 0; k < lines->n; k++) CHECK(strncmp(lines->text[k], "request 4711", 12) == 0); /* whose line it is */
    dc_cache_destroy(toy.cache);
}

static void a_run_ends_with_a_line_and_idle_ones_with_a_warning(void)
{
    static lines_t lines;
    const char *line;
    dc_set_log(write_down, &lines, DC_LOG_INFO);

    log_of_a_run(&lines, "fbcache,threshold=0.03," NO_RAILS, 0.2f); /* some computed, some skipped */
    line = line_of(&lines, DC_LOG_INFO);
    CHECK(line != NULL && line_of(&lines, DC_LOG_WARN) == NULL);
    CHECK(strstr(line, "10 passes") != NULL && strstr(line, "skipped") != NULL);
    CHECK(strstr(line, "p5") != NULL && strstr(line, "p50") != NULL && strstr(line, "p95") != NULL);
    CHECK(strstr(line, "0.03") != NULL); /* beside the threshold */

    log_of_a_run(&lines, "fbcache,threshold=0.00001," NO_RAILS, 0.2f);
    line = line_of(&lines, DC_LOG_WARN);
    CHECK(line != NULL && strstr(line, "threshold") != NULL); /* nothing was skipped */

    log_of_a_run(&lines, "fbcache,threshold=100," NO_RAILS, 0.2f);
    line = line_of(&lines, DC_LOG_WARN);
    CHECK(line != NULL && strstr(line, "threshold") != NULL); /* everything was */

    dc_set_log(write_down, &lines, DC_LOG_ERROR);
    log_of_a_run(&lines, "fbcache,threshold=100," NO_RAILS, 0.2f);
    CHECK(lines.n == 0); /* the level is respected */

    dc_set_log(write_down, &lines, DC_LOG_OFF);
    log_of_a_run(&lines, "fbcache,threshold=100," NO_RAILS, 0.2f);
    CHECK(lines.n == 0);
    dc_set_log(NULL, NULL, DC_LOG_WARN);
}

static void begin_run_and_destroy_imply_the_line_of_the_run_before(void)
{
    static lines_t lines;
    memset(&lines, 0, sizeof lines);
    dc_set_log(write_down, &lines, DC_LOG_INFO);
    toy_t toy = a_toy_with(SLOW, 1);
    begin_run(toy.cache, 4);
    (void)toy_step(&toy, 0, 1.0f);
    (void)toy_step(&toy, 1, 1.0f);
    lines.n = 0;
    begin_run(toy.cache, 4);
    CHECK(lines.n > 0);
    (void)toy_step(&toy, 0, 1.0f);
    (void)toy_step(&toy, 1, 1.0f);
    lines.n = 0;
    dc_cache_destroy(toy.cache);
    CHECK(lines.n > 0);
    dc_set_log(NULL, NULL, DC_LOG_WARN);
}

int main(void)
{
    decide_without_a_wish_says_what_the_rule_says();
    a_wish_overrules_the_rule_and_is_traced_as_the_engines();
    decide_may_be_overruled_until_the_first_skippable_block();
    peek_over_a_whole_scheduled_run_equals_the_run();
    peek_of_a_measuring_rule_is_certain_only_where_nothing_is_measured();
    peek_in_an_open_pass_is_certain_once_it_is_settled();
    a_lagged_decision_is_known_before_its_pass();
    the_flags_of_a_pass_do_what_they_say();
    forgetting_concerns_only_the_branches_of_the_pass();
    the_timestep_of_a_pass_is_its_own_or_the_runs();
    with_share_the_first_branch_of_a_step_decides();
    with_share_it_does_not_matter_which_branch_leads();
    with_share_a_follower_without_history_computes_all_the_same();
    every_decision_has_its_reason();
    the_trace_holds_what_was_measured();
    the_trace_comes_oldest_first_and_keeps_the_newest();
    a_pass_of_two_branches_leaves_two_records();
    stats_count_what_was_done();
    a_run_ends_with_a_line_and_idle_ones_with_a_warning();
    begin_run_and_destroy_imply_the_line_of_the_run_before();
    return 0;
}
