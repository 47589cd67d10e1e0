/* Guidance: what stands in for the unconditional branch, number by number, and every way to ask for it wrongly: then
 * the branch runs, both predictions are as they were, and the next step is served as ever. */
#include "ledger.h"
#include "low_pass.h"

enum { COND = 0, UNCOND = 1 };

static dc_engine_t a_guided_engine(void)
{
    dc_engine_t engine = an_engine(4, 2);
    engine.hooks |= DC_HOOK_GUIDE;
    engine.max_stacked = 2;
    return engine;
}

static dc_cache_t *a_guided_cache(const char *text)
{
    dc_engine_t engine = a_guided_engine();
    return a_cache(&engine, text);
}

/* `planes` planes, a row of them if there is one row only. */
static dc_tensor_t planes_of(float *data, int64_t planes, int64_t height, int64_t width)
{
    dc_tensor_t x = floats(data, planes);
    x.ndim = 3;
    x.shape[1] = height, x.shape[2] = width;
    return x;
}

/* Both predictions of a step. Their difference at step s is (s + 1) * (1, 2, 3, ...), so it tells its step. */
enum { SIZE = 4 };

typedef struct pair_t { float cond[SIZE], uncond[SIZE]; } pair_t;

static void predict(pair_t *pair, uint32_t step)
{
    for (int j = 0; j < SIZE; j++) {
        pair->cond[j] = 100.0f + (float)step + 10.0f * (float)j;
        pair->uncond[j] = pair->cond[j] + (float)(step + 1) * (float)(j + 1);
    }
}

/* One step of an engine with nothing but guidance. True if the branch was left out, of which then the difference of
 * step `from` stands in, or UINT32_MAX: it must run. */
static void step_with(dc_cache_t *cache, const dc_pass_t *u, uint32_t from)
{
    pair_t pair, want;
    dc_tensor_t cond = floats(pair.cond, SIZE), uncond = floats(pair.uncond, SIZE);
    predict(&pair, u->step);
    want = pair;
    memset(pair.uncond, 0x7f, sizeof pair.uncond);
    if (dc_cache_before_uncond(cache, u, &cond, &uncond) == DC_COMPUTE) {
        CHECK(from == UINT32_MAX);
        predict(&pair, u->step);
        CHECK_OK(dc_cache_after_uncond(cache, u, &cond, &uncond));
    } else {
        CHECK(from != UINT32_MAX);
        for (int j = 0; j < SIZE; j++) want.uncond[j] = want.cond[j] + (float)(from + 1) * (float)(j + 1);
    }
    CHECK(memcmp(&pair, &want, sizeof pair) == 0);
}

static void computes(dc_cache_t *cache, uint32_t step)
{
    dc_pass_t u = pass_of(step, UNCOND);
    step_with(cache, &u, UINT32_MAX);
}

static void skips(dc_cache_t *cache, uint32_t step, uint32_t from)
{
    dc_pass_t u = pass_of(step, UNCOND);
    step_with(cache, &u, from);
}

/* ---- numbers ---- */

/* d is 1 2 / 3 6, whose mean is all that such a plane has of low frequencies. */
static void a_plane_of_two_by_two_by_hand(void)
{
    static const float want[6][4] = {
        {14, 25, 36, 49}, {20, 31, 42, 55}, {32, 43, 54, 67}, {56, 67, 78, 91}, /* 3 * 1, 3, 7 and 15 more */
        {56, 67, 78, 91}, {56, 67, 78, 91},                                     /* no higher power than 4 */
    };
    dc_cache_t *cache = a_guided_cache("none,guidance.every=8,guidance.low=2");
    float cond[4] = {10, 20, 30, 40}, uncond[4] = {11, 22, 33, 46};
    dc_tensor_t c = rows_of(cond, 2, 2, 2), u = rows_of(uncond, 2, 2, 2);
    begin_run(cache, 20);
    for (int round = 0; round < 2; round++) {
        dc_pass_t pass = pass_of(8 * (uint32_t)round, UNCOND);
        CHECK(dc_cache_before_uncond(cache, &pass, &c, &u) == DC_COMPUTE);
        uncond[0] = 11, uncond[1] = 22, uncond[2] = 33, uncond[3] = 46;
        CHECK_OK(dc_cache_after_uncond(cache, &pass, &c, &u));
        for (int k = 0; k < 6; k++) {
            pass.step++;
            CHECK(dc_cache_before_uncond(cache, &pass, &c, &u) == DC_SKIP);
            for (int j = 0; j < 4; j++) CHECK(close_to(uncond[j], want[k][j]));
        }
    }
    CHECK(cond[0] == 10 && cond[3] == 40);
    dc_cache_destroy(cache);
}

/* Below five rows or columns the low frequencies are the mean; above, what their definition says. */
static void planes_of_every_small_size(void)
{
    enum { MOST = 11, PLANES = 3 };
    static const double low = 1.5, high = 0.75;
    for (int height = 1; height <= MOST; height++)
        for (int width = 1; width <= MOST; width++)
            for (int strided = 0; strided < 2; strided++) {
                int n = height * width, gap = strided ? 5 : 0; /* apart are the planes of a strided one */
                float cond[PLANES * (MOST * MOST + 5)], uncond[PLANES * (MOST * MOST + 5)];
                float d[MOST * MOST], lp[MOST * MOST];
                dc_tensor_t c = planes_of(cond, PLANES, height, width), u = planes_of(uncond, PLANES, height, width);
                dc_pass_t pass = pass_of(0, UNCOND);
                dc_cache_t *cache = a_guided_cache("none,guidance.every=2,guidance.low=1.5,guidance.high=0.75");
                u.stride[0] = n + gap, u.stride[1] = width, u.stride[2] = 1;
                for (int p = 0; p < PLANES; p++)
                    for (int j = 0; j < n; j++) {
                        cond[p * n + j] = 0.1f * (float)(j % 7) - 0.3f * (float)p;
                        uncond[p * (n + gap) + j] = cond[p * n + j] + 0.05f * (float)((j * j + p) % 11);
                    }
                begin_run(cache, 4);
                CHECK_OK(dc_cache_after_uncond(cache, &pass, &c, &u)); /* an engine that looked ahead need not ask */
                pass.step = 1;
                CHECK(dc_cache_before_uncond(cache, &pass, &c, &u) == DC_SKIP);
                for (int p = 0; p < PLANES; p++) {
                    double sum = 0.0;
                    for (int j = 0; j < n; j++) sum += d[j] = 0.05f * (float)((j * j + p) % 11);
                    low_pass(lp, d, height, width);
                    for (int j = 0; j < n; j++) {
                        if (height < 5 || width < 5) CHECK(close_to(lp[j], sum / n)); /* a radius of 0 */
                        CHECK(close_to(uncond[p * (n + gap) + j], cond[p * n + j] + high * d[j] + (low - high) * lp[j]));
                    }
                }
                dc_cache_destroy(cache);
            }
}

/* Any number of dimensions: the planes are the last two, and one dimension is a plane of one row. */
static void dimensions_that_an_engine_leaves_out_or_adds(void)
{
    static const struct { uint32_t ndim; int64_t shape[DC_MAX_DIMS]; int planes; } views[] = {
        {1, {12}, 1}, {2, {3, 4}, 1}, {2, {1, 12}, 1}, {2, {12, 1}, 1}, {3, {3, 2, 2}, 3}, {3, {3, 1, 4}, 3},
        {6, {1, 3, 1, 1, 2, 2}, 3}, {3, {12, 1, 1}, 12},
    };
    for (size_t k = 0; k < sizeof views / sizeof *views; k++) {
        dc_cache_t *cache = a_guided_cache("none,guidance.every=2,guidance.low=2");
        float cond[12], uncond[12];
        dc_tensor_t c = floats(cond, 0), u = floats(uncond, 0);
        dc_pass_t pass = pass_of(0, UNCOND);
        int n = 12 / views[k].planes;
        c.ndim = u.ndim = views[k].ndim;
        memcpy(c.shape, views[k].shape, sizeof c.shape), memcpy(u.shape, views[k].shape, sizeof u.shape);
        for (int j = 0; j < 12; j++) cond[j] = (float)j, uncond[j] = (float)j + (float)(j * j % 5);
        begin_run(cache, 4);
        CHECK_OK(dc_cache_after_uncond(cache, &pass, &c, &u));
        pass.step = 1;
        CHECK(dc_cache_before_uncond(cache, &pass, &c, &u) == DC_SKIP);
        for (int j = 0; j < 12; j++) {
            double sum = 0.0;
            for (int i = j / n * n; i < j / n * n + n; i++) sum += i * i % 5;
            CHECK(close_to(uncond[j], j + j * j % 5 + sum / n));
        }
        dc_cache_destroy(cache);
    }
}

/* Bytes of two float16: 1 is 0x3c00, 2 is 0x4000. */
static void predictions_in_other_dtypes_and_of_two(void)
{
    dc_cache_t *cache = a_guided_cache("none,guidance.every=2");
    uint16_t half[2] = {0x3c00, 0x4000};
    float full[2] = {3.0f, 5.0f};
    dc_tensor_t c = floats(full, 2), u = floats((float *)(void *)half, 2);
    dc_pass_t pass = pass_of(0, UNCOND);
    u.dtype = DC_F16;
    begin_run(cache, 4);
    CHECK_OK(dc_cache_after_uncond(cache, &pass, &c, &u)); /* d is -2, -3 */
    pass.step = 1;
    full[0] = 4.0f, full[1] = 4.0f;
    CHECK(dc_cache_before_uncond(cache, &pass, &c, &u) == DC_SKIP);
    CHECK(half[0] == 0x4000 && half[1] == 0x3c00); /* 2, 1 */
    dc_cache_destroy(cache);
}

/* ---- what is asked wrongly ---- */

typedef struct slip_t {
    const char *what, *word, *value;
    dc_pass_t   pass;
    dc_tensor_t cond, uncond;
    int         no_pass, no_cond, no_uncond;
    dc_status_t status;
} slip_t;

enum { MOST_SLIPS = 40 };

/* At `step`, with both predictions in `pair`. */
static int slips_at(slip_t cases[MOST_SLIPS], pair_t *pair, float other[2 * SIZE], uint32_t step)
{
    int k = 0;
    memset(cases, 0, MOST_SLIPS * sizeof *cases);
#define CASE(name, says, number, code, ...)             \
    do {                                                \
        CHECK(k < MOST_SLIPS);                          \
        cases[k].what = name;                           \
        cases[k].word = says;                           \
        cases[k].value = number;                        \
        cases[k].status = (code);                       \
        cases[k].pass = pass_of(step, UNCOND);          \
        cases[k].cond = floats(pair->cond, SIZE);       \
        cases[k].uncond = floats(pair->uncond, SIZE);   \
        __VA_ARGS__;                                    \
        k++;                                            \
    } while (0)
#define P cases[k].pass
#define C cases[k].cond
#define U cases[k].uncond
    CASE("no pass", "dc_pass_t", "null", DC_ERR_ARG, cases[k].no_pass = 1);
    CASE("no cond", "cond", "null", DC_ERR_ARG, cases[k].no_cond = 1);
    CASE("no uncond", "uncond", "null", DC_ERR_ARG, cases[k].no_uncond = 1);
    CASE("a struct of no size", "struct_size", "0", DC_ERR_ARG, P.struct_size = 0);
    CASE("the other branch", "pass->branches", "[1]", DC_ERR_ARG, P.branches[0] = COND);
    CASE("a branch that is none", "pass->branches[0] is 2", "n_branches, 2", DC_ERR_ARG, P.branches[0] = 2);
    CASE("both branches", "pass->branches", "[1]", DC_ERR_ARG, P.n_branches = 2; P.branches[0] = 1; P.branches[1] = 0);
    CASE("no branch", "n_branches is 0", "1 to 2", DC_ERR_ARG, P.n_branches = 0);
    CASE("nine branches", "n_branches is 9", "8", DC_ERR_ARG, P.n_branches = 9);
    CASE("a step too many", "step is 1000", "below 1000", DC_ERR_ARG, P.step = 1000);
    CASE("a step back", "step 1,", "answered", DC_ERR_STATE, P.step = 1);
    CASE("the step before again", "uncond at step", "was answered", DC_ERR_STATE, P.step = step - 1);
    CASE("an unknown flag", "flags is 0x100", "0xf", DC_ERR_ARG, P.flags = 1u << 8);
    CASE("no number", "timestep is NaN", "finite", DC_ERR_ARG, P.flags = DC_PASS_TIMESTEP; P.timestep = NAN);
    CASE("cond without data", "cond[0]", "null", DC_ERR_ARG, C.data = NULL);
    CASE("uncond without data", "uncond[0]", "null", DC_ERR_ARG, U.data = NULL);
    CASE("no dimension", "uncond[0]: ndim is 0", "6", DC_ERR_ARG, U.ndim = 0);
    CASE("seven dimensions", "cond[0]: ndim is 7", "6", DC_ERR_ARG, C.ndim = 7);
    CASE("a negative shape", "cond[0]", "-4", DC_ERR_ARG, C.shape[0] = -4);
    CASE("an unknown dtype", "uncond[0]: dtype is 9", "DC_F32", DC_ERR_UNSUPPORTED, U.dtype = 9);
    CASE("a reserved word that is used", "reserved", "0x1", DC_ERR_ARG, C.reserved = 1);
    CASE("fewer elements in one", "uncond is F32[3]", "cond is F32[4]", DC_ERR_SHAPE, U.shape[0] = 3);
    CASE("more elements in one", "uncond is F32[4]", "cond is F32[8]", DC_ERR_SHAPE, C = floats(other, 2 * SIZE));
    CASE("other planes", "uncond is F32[4]", "cond is F32[2, 2]", DC_ERR_SHAPE, C = rows_of(pair->cond, 2, 2, 2));
    CASE("planes that lie otherwise", "uncond is", "cond is", DC_ERR_SHAPE, C = rows_of(pair->cond, 4, 1, 1));
    CASE("elements in one place", "uncond", "stride", DC_ERR_ARG, U = rows_of(pair->uncond, 4, 1, 1); U.stride[0] = 0;
         C = rows_of(pair->cond, 4, 1, 1));
    CASE("the same tensor", "cond and uncond", "overlap", DC_ERR_ARG, U = C);
    CASE("tensors that overlap in part", "cond and uncond", "overlap", DC_ERR_ARG, C = floats(other, SIZE);
         U = floats(other + SIZE - 1, SIZE));
#undef P
#undef C
#undef U
#undef CASE
    return k;
}

static void says(const slip_t *slip)
{
    if (strstr(dc_last_error(), slip->word) == NULL || strstr(dc_last_error(), slip->value) == NULL) {
        fprintf(stderr, "%s: wanted %s and %s\n", slip->what, slip->word, slip->value);
        check_failed(__FILE__, __LINE__, "the text says it");
    }
}

/* Where the branch would be left out. */
static void what_is_asked_wrongly_computes_and_is_named(void)
{
    dc_cache_t *cache = a_guided_cache("none,guidance.every=3");
    begin_run(cache, 1000);
    for (int c = 0, n = 1; c < n; c++) {
        pair_t pair, before;
        float other[2 * SIZE] = {0};
        slip_t cases[MOST_SLIPS];
        uint32_t step = 3 * (uint32_t)(c + 1), asked = step + 1;
        n = slips_at(cases, &pair, other, asked);
        slip_t *slip = &cases[c];
        computes(cache, step);
        predict(&pair, asked);
        before = pair;
        CHECK(dc_cache_before_uncond(cache, slip->no_pass ? NULL : &slip->pass, slip->no_cond ? NULL : &slip->cond,
                                     slip->no_uncond ? NULL : &slip->uncond) == DC_COMPUTE);
        says(slip);
        CHECK(memcmp(&pair, &before, sizeof pair) == 0);
        CHECK(stats_of(cache).errors == (uint64_t)(c + 1) && stats_of(cache).first_error == DC_ERR_ARG);
        skips(cache, asked, step); /* and asked rightly, the same step is served */
    }
    dc_cache_destroy(cache);
}

/* Where it ran. */
static void what_is_reported_wrongly_is_named_and_not_learned(void)
{
    dc_cache_t *cache = a_guided_cache("none,guidance.every=3");
    begin_run(cache, 1000);
    computes(cache, 0);
    for (int c = 0, n = 1; c < n; c++) {
        pair_t pair, before;
        dc_tensor_t cond = floats(pair.cond, SIZE), uncond = floats(pair.uncond, SIZE);
        float other[2 * SIZE] = {0};
        slip_t cases[MOST_SLIPS];
        uint32_t step = 6 * (uint32_t)(c + 1);
        dc_pass_t u = pass_of(step, UNCOND);
        n = slips_at(cases, &pair, other, step);
        slip_t *slip = &cases[c];
        predict(&pair, step);
        before = pair;
        CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
        dc_status_t status = dc_cache_after_uncond(cache, slip->no_pass ? NULL : &slip->pass,
                                                   slip->no_cond ? NULL : &slip->cond,
                                                   slip->no_uncond ? NULL : &slip->uncond);
        if (status != slip->status) fprintf(stderr, "%s\n", slip->what);
        CHECK_STATUS(status, slip->status);
        says(slip);
        CHECK(memcmp(&pair, &before, sizeof pair) == 0);
        skips(cache, step + 1, c == 0 ? 0 : step - 3); /* by what was kept before */
        computes(cache, step + 3);
    }
    dc_cache_destroy(cache);
}

static void calls_out_of_order_are_answered(void)
{
    dc_cache_t *cache = a_guided_cache("none,guidance.every=4");
    pair_t pair, before;
    dc_tensor_t cond = floats(pair.cond, SIZE), uncond = floats(pair.uncond, SIZE);
    dc_pass_t u = pass_of(0, UNCOND);
    predict(&pair, 0);
    before = pair;

    /* no run */
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_SAYS("begin_run");
    CHECK_STATUS(dc_cache_after_uncond(cache, &u, &cond, &uncond), DC_ERR_STATE);
    CHECK_SAYS("begin_run");

    /* reported without having been asked: an engine that looked ahead need not ask */
    begin_run(cache, 20);
    CHECK_OK(dc_cache_after_uncond(cache, &u, &cond, &uncond));
    skips(cache, 1, 0);
    /* ... and asked afterwards: the step was answered */
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_SAYS("step 0");

    /* asked twice in a step; the first answer stands */
    u.step = 1;
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_SAYS("before_uncond at step 1, but step 1 was answered");

    /* reported after a SKIP: what the engine computed is right, and not learned */
    CHECK_STATUS(dc_cache_after_uncond(cache, &u, &cond, &uncond), DC_ERR_STATE);
    CHECK_SAYS("step 1 was answered SKIP");
    skips(cache, 2, 0);

    /* steps that go back */
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_SAYS("step 1, but step 2");
    CHECK_STATUS(dc_cache_after_uncond(cache, &u, &cond, &uncond), DC_ERR_STATE);
    CHECK_SAYS("step 1, but step 2");
    CHECK(memcmp(&pair, &before, sizeof pair) == 0);
    skips(cache, 3, 0);

    /* never reported: the next steps go by what there is */
    u.step = 4;
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    skips(cache, 5, 0);

    /* gaps are fine, the end of a run is not */
    computes(cache, 8);
    skips(cache, 11, 8);
    CHECK_OK(dc_cache_end_run(cache));
    u.step = 12;
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_SAYS("begin_run");

    /* a new run has nothing to go by */
    begin_run(cache, 20);
    computes(cache, 1);
    skips(cache, 2, 1);
    dc_cache_destroy(cache);
}

/* A method without guidance, or an engine that has it switched off: whatever it says, its branch runs. */
static void without_guidance_the_branch_runs(void)
{
    static const char *const texts[] = {"none", "fbcache", "fbcache,guidance.every=1", "fbcache,guidance.every=none"};
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        dc_cache_t *cache = a_guided_cache(texts[k]);
        begin_run(cache, 8);
        for (uint32_t step = 0; step < 8; step++) {
            dc_pass_t u = pass_of(step, UNCOND);
            CHECK(dc_cache_peek(cache, &u, DC_UNCOND) == DC_COMPUTE);
            computes(cache, step);
        }
        CHECK(dc_cache_before_uncond(cache, NULL, NULL, NULL) == DC_COMPUTE);
        CHECK(stats_of(cache).uncond_skipped == 0 && stats_of(cache).errors == 0);
        dc_cache_destroy(cache);
    }
}

/* The branch may have any number: here the engine's first is the one that may be left out. */
static void the_engine_says_which_branch_it_is(void)
{
    dc_engine_t engine = a_guided_engine();
    engine.uncond_branch = 0;
    dc_cache_t *cache = a_cache(&engine, "none,guidance.every=2");
    dc_pass_t u = pass_of(0, 0);
    begin_run(cache, 4);
    step_with(cache, &u, UINT32_MAX);
    u.step = 1;
    step_with(cache, &u, 0);
    dc_trace_t record = newest(cache);
    CHECK(record.branch == 0 && record.unit == DC_UNCOND && record.action == DC_SKIP && record.step == 1);
    u = pass_of(2, 1);
    pair_t pair;
    dc_tensor_t cond = floats(pair.cond, SIZE), uncond = floats(pair.uncond, SIZE);
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_SAYS("[0]");
    dc_cache_destroy(cache);
}

/* ---- flags, limits, reasons ---- */

static void flags_and_limits_make_the_branch_run(void)
{
    dc_cache_t *cache = a_guided_cache("none,guidance.every=5,warmup_steps=2,last_steps=1,max_age=3");
    dc_pass_t u, cond = pass_of(11, COND);
    begin_run(cache, 14);
    computes(cache, 0); /* 0 and 1 are the warm-up, 6 and 11 the interval's turn */
    CHECK(newest(cache).reason == DC_REASON_WARMUP);
    computes(cache, 1);
    skips(cache, 2, 1), skips(cache, 3, 1), skips(cache, 4, 1);
    CHECK(newest(cache).reason == DC_REASON_RULE);
    computes(cache, 5); /* what is kept is four steps old */
    CHECK(newest(cache).reason == DC_REASON_AGE);
    computes(cache, 6);
    CHECK(newest(cache).reason == DC_REASON_INTERVAL);
    u = pass_of(7, UNCOND); /* the engine wants it computed */
    u.flags = DC_PASS_COMPUTE;
    CHECK(dc_cache_peek(cache, &u, DC_UNCOND) == DC_COMPUTE);
    step_with(cache, &u, UINT32_MAX);
    CHECK(newest(cache).reason == DC_REASON_ENGINE);
    skips(cache, 8, 7);
    u = pass_of(9, UNCOND); /* its weights changed */
    u.flags = DC_PASS_FORGET;
    CHECK(dc_cache_peek(cache, &u, DC_UNCOND) == DC_COMPUTE);
    step_with(cache, &u, UINT32_MAX);
    CHECK(newest(cache).reason == DC_REASON_NO_HISTORY);
    skips(cache, 10, 9);
    cond.flags = DC_PASS_FORGET; /* those of the other branch: what the two differ by is as stale */
    CHECK_OK(dc_cache_begin_pass(cache, &cond));
    CHECK_OK(dc_cache_end_pass(cache));
    computes(cache, 11);
    skips(cache, 12, 11);
    computes(cache, 13);
    CHECK(newest(cache).reason == DC_REASON_LAST);
    CHECK(stats_of(cache).uncond_computed == 8 && stats_of(cache).uncond_skipped == 6);

    begin_run(cache, 0); /* an unknown end, told when it comes */
    computes(cache, 0), computes(cache, 1);
    skips(cache, 2, 1);
    u = pass_of(3, UNCOND);
    u.flags = DC_PASS_LAST;
    step_with(cache, &u, UINT32_MAX);

    /* trim takes what the branches differed by */
    begin_run(cache, 14);
    computes(cache, 1);
    CHECK_OK(dc_cache_trim(cache, NULL));
    CHECK(stats_of(cache).bytes_held == 0);
    computes(cache, 2);
    skips(cache, 3, 2);
    dc_cache_destroy(cache);
}

static void a_window_needs_its_timesteps(void)
{
    static const char *const texts[] = {
        "none,guidance.every=2,guidance.window=0.1:0.9",
        "none,guidance.every=2,guidance.low=1.1,guidance.low_window=0.1:0.9",
        "none,guidance.every=2,guidance.high=1.1,guidance.high_window=0.1:0.9",
    };
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        dc_cache_t *cache = a_guided_cache(texts[k]);
        pair_t pair, before;
        dc_tensor_t cond = floats(pair.cond, SIZE), uncond = floats(pair.uncond, SIZE);
        dc_run_t run = DC_RUN_INIT;
        dc_pass_t u = pass_of(0, UNCOND);
        predict(&pair, 0);
        before = pair;
        run.n_steps = 6;
        CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_ARG);
        CHECK_SAYS("timestep_max is 0");
        CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
        CHECK_SAYS("timestep_max is 0");
        CHECK(dc_cache_peek(cache, &u, DC_UNCOND) == DC_COMPUTE);

        run.timestep_max = 1.0f;
        CHECK_OK(dc_cache_begin_run(cache, &run));
        u.flags = DC_PASS_TIMESTEP;
        u.timestep = 0.5f;
        CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
        CHECK_OK(dc_cache_after_uncond(cache, &u, &cond, &uncond));
        u.step = 1;
        u.flags = 0;
        CHECK(dc_cache_peek(cache, &u, DC_UNCOND) != DC_SKIP || k > 0);
        CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
        CHECK_SAYS("pass->timestep: step 1 has none");
        CHECK(memcmp(&pair, &before, sizeof pair) == 0);
        u.flags = DC_PASS_TIMESTEP;
        CHECK(dc_cache_peek(cache, &u, DC_UNCOND) == DC_SKIP);
        CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_SKIP);
        CHECK(newest(cache).timestep == 0.5f);
        dc_cache_destroy(cache);
    }
}

/* Both calls stand outside passes; in one they do it no harm. */
static void calls_inside_a_pass_do_it_no_harm(void)
{
    dc_engine_t engine = a_guided_engine();
    toy_t toy = a_toy(a_cache(&engine, "fbcache,threshold=0.2,guidance.every=2," NO_RAILS), 4, 1, 0);
    begin_run(toy.cache, 8);
    for (uint32_t step = 0; step < 8; step++) {
        dc_pass_t pass = pass_of(step, COND), u = pass_of(step, UNCOND);
        toy_input(&toy, 1.0f);
        CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
        step_with(toy.cache, &u, step % 2 == 0 ? UINT32_MAX : step - 1);
        int skipped = toy_walk(&toy);
        CHECK_OK(dc_cache_end_pass(toy.cache));
        CHECK(skipped == (step > 0));
        toy_verify(&toy, 1.0f, skipped, 1);
    }
    dc_cache_destroy(toy.cache);
}

static void what_is_promised_is_kept(void)
{
    static const char *const texts[] = {
        "none,guidance.every=3", "none,guidance.every=4,warmup_steps=3,last_steps=2", "none,guidance.every=9,max_age=2",
    };
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        enum { STEPS = 20 };
        dc_cache_t *cache = a_guided_cache(texts[k]);
        dc_action_t promised[STEPS][STEPS];
        begin_run(cache, STEPS);
        for (uint32_t step = 0; step < STEPS; step++) {
            pair_t pair;
            dc_tensor_t cond = floats(pair.cond, SIZE), uncond = floats(pair.uncond, SIZE);
            dc_pass_t u;
            for (uint32_t coming = step; coming < STEPS; coming++) {
                u = pass_of(coming, UNCOND);
                promised[step][coming] = dc_cache_peek(cache, &u, DC_UNCOND);
            }
            u = pass_of(step, UNCOND);
            predict(&pair, step);
            dc_action_t action = dc_cache_before_uncond(cache, &u, &cond, &uncond);
            if (action == DC_COMPUTE) CHECK_OK(dc_cache_after_uncond(cache, &u, &cond, &uncond));
            for (uint32_t early = 0; early <= step; early++) CHECK(promised[early][step] == action);
            CHECK(dc_cache_peek(cache, &u, DC_UNCOND) == action); /* also of a step that is over */
        }
        CHECK(stats_of(cache).uncond_skipped > STEPS / 3);
        dc_cache_destroy(cache);
    }
}

/* ---- shapes and memory ---- */

static void predictions_that_change_shape_start_again(void)
{
    dc_cache_t *cache = a_guided_cache("none,guidance.every=9");
    float cond[24] = {0}, uncond[24], kept[24];
    dc_pass_t u = pass_of(0, UNCOND);
    begin_run(cache, 60);
    computes(cache, 0);
    for (uint32_t step = 1; step <= 6; step += 2) { /* ever larger, at steps that would be skipped */
        dc_tensor_t c = planes_of(cond, step, 2, 2), n = planes_of(uncond, step, 2, 2);
        for (uint32_t j = 0; j < 4 * step; j++) uncond[j] = (float)j;
        memcpy(kept, uncond, sizeof uncond);
        u.step = step;
        CHECK(dc_cache_before_uncond(cache, &u, &c, &n) == DC_COMPUTE);
        CHECK_SAYS("cond is");
        CHECK_SAYS("it was");
        CHECK(memcmp(kept, uncond, 4 * step * sizeof(float)) == 0);
        CHECK_OK(dc_cache_after_uncond(cache, &u, &c, &n));
        memset(uncond, 0x7f, sizeof uncond);
        u.step = step + 1;
        CHECK(dc_cache_before_uncond(cache, &u, &c, &n) == DC_SKIP);
        for (uint32_t j = 0; j < 4 * step; j++) CHECK(uncond[j] == (float)j);
        CHECK(stats_of(cache).bytes_held == 4 * 4 * step); /* nothing of the old shapes */
    }
    CHECK(stats_of(cache).first_error == DC_ERR_SHAPE);
    dc_cache_destroy(cache);
}

static void empty_predictions_are_legal(void)
{
    dc_cache_t *cache = a_guided_cache("none,guidance.every=2,guidance.low=2");
    dc_tensor_t c = floats(NULL, 0), n = floats(NULL, 0);
    begin_run(cache, 4);
    for (uint32_t step = 0; step < 4; step++) {
        dc_pass_t u = pass_of(step, UNCOND);
        dc_action_t action = dc_cache_before_uncond(cache, &u, &c, &n);
        CHECK(action == (step % 2 == 0 ? DC_COMPUTE : DC_SKIP));
        if (action == DC_COMPUTE) CHECK_OK(dc_cache_after_uncond(cache, &u, &c, &n));
    }
    dc_cache_destroy(cache);
}

static void memory_is_exact_or_the_branch_runs(void)
{
    static const struct { const char *text; uint64_t bytes; } methods[] = {
        {"none,guidance.every=4", 4 * SIZE},               /* d */
        {"none,guidance.every=4,guidance.low=1.25", 8 * SIZE}, /* d and its low frequencies */
        {"none,guidance.every=1", 0},
    };
    for (size_t k = 0; k < sizeof methods / sizeof *methods; k++)
        for (int with_shapes = 0; with_shapes < 2; with_shapes++)
            for (long failing = 0; failing <= (long)(methods[k].bytes / (4 * SIZE)); failing++) {
                ledger_t books;
                dc_engine_t engine = a_guided_engine();
                dc_options_t options = options_of(methods[k].text);
                pair_t pair, before;
                dc_tensor_t cond = floats(pair.cond, SIZE), uncond = floats(pair.uncond, SIZE);
                dc_shape_t shape;
                dc_run_t run = DC_RUN_INIT;
                dc_pass_t u = pass_of(0, UNCOND);
                uint64_t bytes = 1;
                keep_books(&engine, &books);
                memset(&shape, 0, sizeof shape);
                shape.hook = DC_HOOK_GUIDE;
                shape.branch = failing == 0 ? UINT32_MAX : UNCOND; /* for all, or its own */
                shape.tensors = &cond;
                shape.n = 1;
                CHECK_OK(dc_memory_needed(&engine, &options, &shape, 1, &bytes));
                CHECK(bytes == methods[k].bytes);
                dc_cache_t *cache = a_cache(&engine, methods[k].text);
                run.n_steps = 20;
                if (with_shapes) run.shapes = &shape, run.n_shapes = 1;
                books.fail_at = failing; /* 0 = none */
                CHECK_STATUS(dc_cache_begin_run(cache, &run), with_shapes && failing ? DC_ERR_MEMORY : DC_OK);
                predict(&pair, 0);
                before = pair;
                CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
                CHECK_STATUS(dc_cache_after_uncond(cache, &u, &cond, &uncond), failing ? DC_ERR_MEMORY : DC_OK);
                CHECK(memcmp(&pair, &before, sizeof pair) == 0);
                if (failing) CHECK(strlen(dc_last_error()) > 0 && stats_of(cache).first_error == DC_ERR_MEMORY);
                if (failing && !with_shapes) computes(cache, 1); /* nothing was kept; now there is memory */
                if (failing && with_shapes) CHECK_OK(dc_cache_begin_run(cache, &run));
                if (failing && with_shapes) computes(cache, 0);
                if (bytes == 4 * SIZE) skips(cache, 2, failing && !with_shapes ? 1 : 0); /* alike in every frequency */
                if (!failing) CHECK(books.asked == bytes);
                CHECK(books.held == bytes); /* nothing is held twice */
                dc_cache_destroy(cache);
                CHECK(books.n_live == 0);
            }
}

static void a_budget_and_rows_that_do_not_do_are_said(void)
{
    dc_engine_t engine = a_guided_engine();
    float data[SIZE];
    dc_tensor_t tensor = floats(data, SIZE);
    dc_options_t options = options_of("none,guidance.every=4,guidance.low=1.25");
    dc_shape_t shape;
    dc_run_t run = DC_RUN_INIT;
    dc_pass_t u = pass_of(0, UNCOND);
    dc_cache_t *cache = NULL;
    pair_t pair;
    dc_tensor_t cond = floats(pair.cond, SIZE), uncond = floats(pair.uncond, SIZE);
    uint64_t bytes = 0;
    memset(&shape, 0, sizeof shape);
    shape.hook = DC_HOOK_GUIDE;
    shape.branch = UINT32_MAX;
    shape.tensors = &tensor;
    shape.n = 1;
    run.shapes = &shape;
    run.n_shapes = 1;
    run.n_steps = 8;
    predict(&pair, 0);

    engine.memory_budget = 8 * SIZE - 1;
    CHECK_OK(dc_cache_create(&engine, &options, &cache));
    CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_MEMORY);
    CHECK_SAYS("memory_budget is 31");
    CHECK_SAYS("32");
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_SAYS("memory_budget");
    CHECK(dc_cache_peek(cache, &u, DC_UNCOND) == DC_COMPUTE);
    begin_run(cache, 8); /* without shapes it shows in the first report */
    CHECK(dc_cache_before_uncond(cache, &u, &cond, &uncond) == DC_COMPUTE);
    CHECK_STATUS(dc_cache_after_uncond(cache, &u, &cond, &uncond), DC_ERR_MEMORY);
    CHECK_SAYS("memory_budget");
    CHECK(stats_of(cache).bytes_peak <= engine.memory_budget);
    dc_cache_destroy(cache);

    engine.memory_budget = 0;
    CHECK_OK(dc_cache_create(&engine, &options, &cache));
    shape.hook = DC_HOOK_EACH; /* rows, but none of a prediction */
    CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_ARG);
    CHECK_SAYS("DC_HOOK_GUIDE");
    CHECK_STATUS(dc_memory_needed(&engine, &options, &shape, 1, &bytes), DC_ERR_ARG);
    CHECK_SAYS("DC_HOOK_GUIDE");
    shape.hook = DC_HOOK_GUIDE;
    shape.branch = COND; /* nor of this branch */
    CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_ARG);
    CHECK_SAYS("branch 1");
    dc_cache_destroy(cache);
}

int main(void)
{
    a_plane_of_two_by_two_by_hand();
    planes_of_every_small_size();
    dimensions_that_an_engine_leaves_out_or_adds();
    predictions_in_other_dtypes_and_of_two();
    what_is_asked_wrongly_computes_and_is_named();
    what_is_reported_wrongly_is_named_and_not_learned();
    calls_out_of_order_are_answered();
    without_guidance_the_branch_runs();
    the_engine_says_which_branch_it_is();
    flags_and_limits_make_the_branch_run();
    a_window_needs_its_timesteps();
    calls_inside_a_pass_do_it_no_harm();
    what_is_promised_is_kept();
    predictions_that_change_shape_start_again();
    empty_predictions_are_legal();
    memory_is_exact_or_the_branch_runs();
    a_budget_and_rows_that_do_not_do_are_said();
    return 0;
}
