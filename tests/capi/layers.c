/* Attention and MLP layers: what is asked and reported wrongly computes and says so, what is not at hand computes by
 * itself, and whatever was answered, every output is right. */
#include "ledger.h"

enum { LAYERS = 4, BRANCHES = 2 };

/* Every second step is skipped, of all kinds. */
#define EVERY_2 "none,rule=schedule,scope=layers,on_residual=0,every=2"

/* Two blocks, each with attention and an MLP. */
static const dc_kind_t kind_of[LAYERS] = {DC_KIND_SPATIAL, DC_KIND_MLP, DC_KIND_SPATIAL, DC_KIND_MLP};

static dc_engine_t a_layered_engine(uint32_t branches)
{
    dc_engine_t engine = an_engine(2, branches);
    engine.hooks = DC_HOOK_LAYERS;
    engine.n_layers = LAYERS;
    return engine;
}

/* A model whose layers show what they like, and what they showed last. */
typedef struct model_t {
    dc_cache_t *cache;
    float       kept[BRANCHES][LAYERS][TOY];
    int         failed;              /* something went wrong in this pass, so the library no longer learns */
    char        answers[LAYERS + 1]; /* of the last pass, a letter for each layer */
} model_t;

static model_t a_model(const char *text)
{
    dc_engine_t engine = a_layered_engine(1);
    model_t model;
    memset(&model, 0, sizeof model);
    model.cache = a_cache(&engine, text);
    return model;
}

static void layer_output(float *out, uint32_t step, uint32_t branch, uint32_t layer)
{
    for (int j = 0; j < TOY; j++) out[j] = (float)(100 * branch + 10 * layer + step) + 0.1f * (float)j;
}

/* Asks, runs and reports one layer, and checks what it is left with. */
static void one_layer(model_t *m, const dc_pass_t *pass, uint32_t layer)
{
    float out[TOY];
    dc_tensor_t o = floats(out, TOY);
    uint32_t branch = pass->branches[0];
    memset(out, 0x7f, sizeof out);
    if (dc_cache_before_layer(m->cache, layer, kind_of[layer], &o, 1) == DC_COMPUTE) {
        layer_output(out, pass->step, branch, layer);
        dc_cache_after_layer(m->cache, layer, &o, 1);
        if (!m->failed) memcpy(m->kept[branch][layer], out, sizeof out);
        m->answers[layer] = 'C';
    } else {
        CHECK(memcmp(out, m->kept[branch][layer], sizeof out) == 0);
        m->answers[layer] = 's';
    }
}

static const char *answers(model_t *m, const dc_pass_t *pass)
{
    CHECK_OK(dc_cache_begin_pass(m->cache, pass));
    for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(m, pass, layer);
    CHECK_OK(dc_cache_end_pass(m->cache));
    return m->answers;
}

/* A pass without a hitch; a letter for each layer. */
static const char *at_step(model_t *m, uint32_t step)
{
    dc_pass_t pass = pass_of(step, 0);
    return answers(m, &pass);
}

static void is(const char *got, const char *wanted)
{
    if (strcmp(got, wanted) != 0) {
        fprintf(stderr, "%s, wanted %s\n", got, wanted);
        check_failed(__FILE__, __LINE__, "the layers are answered as wanted");
    }
}

static void says(const char *what, const char *word)
{
    if (strstr(dc_last_error(), word) == NULL) {
        fprintf(stderr, "%s: wanted %s\n", what, word);
        check_failed(__FILE__, __LINE__, "the text says it");
    }
}

/* ---- what one call gets wrong ---- */

typedef struct slip_t {
    const char *what, *word, *value;
    uint32_t    layer;
    dc_kind_t   kind;
    dc_tensor_t tensor;
    size_t      n;
    int         null, written; /* no array; wrong only where it is written */
    dc_status_t status;
} slip_t;

enum { MOST_SLIPS = 32, BAD_ONE = 2 };

static int slips(slip_t cases[MOST_SLIPS], float *data)
{
    int k = 0;
    memset(cases, 0, MOST_SLIPS * sizeof *cases);
#define CASE(name, says, number, ...)         \
    do {                                      \
        CHECK(k < MOST_SLIPS);                \
        cases[k].what = name;                 \
        cases[k].word = says;                 \
        cases[k].value = number;              \
        cases[k].layer = BAD_ONE;             \
        cases[k].kind = kind_of[BAD_ONE];     \
        cases[k].tensor = floats(data, TOY);  \
        cases[k].n = 1;                       \
        cases[k].status = DC_ERR_ARG;         \
        __VA_ARGS__;                          \
        k++;                                  \
    } while (0)
#define X cases[k].tensor
    CASE("no array", "out", "null", cases[k].null = 1);
    CASE("no tensor", "n is 0", "4", cases[k].n = 0);
    CASE("more tensors than there may be", "n is 5", "4", cases[k].n = DC_MAX_TENSORS + 1);
    CASE("many more", "n is 77", "4", cases[k].n = 77);
    CASE("no data", "out[0]", "null", X.data = NULL);
    CASE("no dimension", "ndim is 0", "6", X.ndim = 0);
    CASE("seven dimensions", "ndim is 7", "6", X.ndim = 7);
    CASE("a negative shape", "shape", "-8", X.shape[0] = -8);
    CASE("a shape whose product overflows", "out[0]", "", X.ndim = 2; X.shape[0] = INT64_MAX / 2; X.shape[1] = 8);
    CASE("a negative stride", "stride", "-1", X.stride[0] = -1);
    CASE("a broadcast", "tensor 0", "stride of 0", X.ndim = 2; X.shape[1] = 1; X.stride[1] = 1; cases[k].written = 1);
    CASE("a reserved word that is used", "reserved", "0x7", X.reserved = 7);
    CASE("an unknown flag", "flags", "0x200", X.flags = 1u << 9);
    CASE("no dtype", "dtype is 0", "DC_F32", X.dtype = 0; cases[k].status = DC_ERR_UNSUPPORTED);
    CASE("an unknown dtype", "dtype is 99", "DC_F32", X.dtype = 99; cases[k].status = DC_ERR_UNSUPPORTED);
    CASE("the next kind", "kind is 4", "DC_KIND_SPATIAL", cases[k].kind = 4);
    CASE("no kind at all", "kind is 4294967295", "MLP", cases[k].kind = UINT32_MAX);
    CASE("a number used for two kinds", "kind of layer 2", "spatial", cases[k].kind = DC_KIND_MLP);
    CASE("a layer too many", "layer is 4", "n_layers, 4", cases[k].layer = LAYERS);
    CASE("no layer at all", "layer is 4294967295", "n_layers, 4", cases[k].layer = UINT32_MAX);
#undef X
#undef CASE
    return k;
}

/* A pass in which the call before or after one layer gets it wrong. */
static dc_status_t pass_with(model_t *m, uint32_t step, const slip_t *slip, int after)
{
    float out[TOY];
    const dc_tensor_t o = floats(out, TOY), *bad = slip->null ? NULL : &slip->tensor;
    dc_pass_t pass = pass_of(step, 0);
    CHECK_OK(dc_cache_begin_pass(m->cache, &pass));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        if (layer != BAD_ONE) {
            one_layer(m, &pass, layer);
        } else if (after) {
            if (dc_cache_before_layer(m->cache, layer, kind_of[layer], &o, 1) == DC_COMPUTE)
                dc_cache_after_layer(m->cache, slip->layer, bad, slip->n);
        } else {
            CHECK(dc_cache_before_layer(m->cache, slip->layer, slip->kind, bad, slip->n) == DC_COMPUTE);
            layer_output(out, step, 0, layer);
            dc_cache_after_layer(m->cache, layer, &o, 1); /* the engine ran it, and reports it rightly */
        }
    }
    return dc_cache_end_pass(m->cache);
}

static void what_one_call_gets_wrong_computes_and_is_named(void)
{
    float data[TOY];
    slip_t cases[MOST_SLIPS];
    int n = slips(cases, data);
    for (int c = 0; c < n; c++)
        for (int after = 0; after < 2; after++) {
            int about_kind = cases[c].kind != kind_of[BAD_ONE];
            if (after && (cases[c].written || about_kind)) continue; /* only read there; no kind is told */
            model_t m = a_model(EVERY_2);
            uint64_t errors = 0;
            begin_run(m.cache, 100);
            is(at_step(&m, 0), "CCCC");
            for (uint32_t skipping = 0; skipping < 2; skipping++) { /* where it would compute, and where it would skip */
                uint32_t step = 10 * (skipping + 1) + skipping;
                if (after && skipping) continue; /* then the call is never made */
                dc_status_t status = pass_with(&m, step, &cases[c], after);
                if (status != cases[c].status) fprintf(stderr, "%s\n", cases[c].what);
                CHECK_STATUS(status, cases[c].status);
                says(cases[c].what, cases[c].word);
                says(cases[c].what, cases[c].value);
                if (skipping) { m.answers[BAD_ONE] = '.'; is(m.answers, "ss.s"); } /* the others are as good as ever */
                errors++;
                if (cases[c].kind == DC_KIND_MLP) { /* the last word about a layer counts, so it is taken back once */
                    dc_pass_t pass = pass_of(step + 1, 0);
                    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
                    one_layer(&m, &pass, BAD_ONE);
                    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_ARG);
                    CHECK_SAYS("kind of layer 2 is spatial, it was mlp");
                    errors++;
                }
                is(at_step(&m, step + 2 + skipping), "CCCC");
                is(at_step(&m, step + 3 + skipping), "ssss"); /* and the cache works again */
            }
            CHECK(stats_of(m.cache).errors == errors && stats_of(m.cache).discarded == 0);
            dc_cache_destroy(m.cache);
        }
}

/* Where the first layer of a pass fails, the kinds have not decided yet: all of them compute. */
static void a_failure_at_the_first_layer_computes_them_all(void)
{
    model_t m = a_model(EVERY_2);
    dc_pass_t pass = pass_of(1, 0);
    float out[TOY];
    dc_tensor_t o = floats(out, TOY);
    begin_run(m.cache, 10);
    is(at_step(&m, 0), "CCCC");
    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
    o.ndim = 0;
    CHECK(dc_cache_before_layer(m.cache, 0, kind_of[0], &o, 1) == DC_COMPUTE);
    for (uint32_t layer = 1; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
    is(m.answers, "CCCC");
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_ARG);
    CHECK_SAYS("ndim is 0");
    dc_cache_destroy(m.cache);
}

/* ---- calls out of order ---- */

static void layers_out_of_order_compute_and_say_so(void)
{
    model_t m = a_model(EVERY_2);
    float out[TOY] = {0};
    dc_tensor_t o = floats(out, TOY);
    dc_pass_t pass;

    /* no run; no pass */
    CHECK(dc_cache_before_layer(m.cache, 0, DC_KIND_SPATIAL, &o, 1) == DC_COMPUTE);
    CHECK_SAYS("before_layer(0) outside begin_pass");
    begin_run(m.cache, 100);
    CHECK(dc_cache_before_layer(m.cache, 3, DC_KIND_MLP, &o, 1) == DC_COMPUTE);
    CHECK_SAYS("before_layer(3) outside begin_pass");
    dc_cache_after_layer(m.cache, 3, &o, 1);
    CHECK_SAYS("after_layer(3) outside begin_pass");

    /* reported without having been asked, in a pass; once as a stranger, once known */
    for (uint32_t step = 0; step < 4; step += 2) {
        pass = pass_of(step, 0);
        CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
        dc_cache_after_layer(m.cache, 1, &o, 1);
        m.failed = 1;
        one_layer(&m, &pass, 0);
        m.failed = 0;
        CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
        CHECK_SAYS("after_layer(1) before before_layer(1)");
        is(at_step(&m, step + 1), step == 0 ? "CCCC" : "ssss");
    }
    is(at_step(&m, 4), "CCCC");

    /* asked twice: where it computes and where it skips, the second answer is to compute */
    for (uint32_t step = 5; step < 7; step++) {
        pass = pass_of(step, 0);
        CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
        for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
        is(m.answers, step == 5 ? "ssss" : "CCCC");
        out[0] = -1.0f;
        CHECK(dc_cache_before_layer(m.cache, 2, kind_of[2], &o, 1) == DC_COMPUTE);
        CHECK(out[0] == -1.0f); /* untouched: the engine computes it now */
        CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
        CHECK_SAYS("before_layer(2) a second time");
    }
    is(at_step(&m, 7), "ssss");

    /* answered SKIP and reported: it wrote over what was filled in, so nothing has to be thrown away */
    pass = pass_of(9, 0);
    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
    for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
    is(m.answers, "ssss");
    dc_cache_after_layer(m.cache, 1, &o, 1);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
    CHECK_SAYS("layer 1 was answered SKIP and ran");
    CHECK(stats_of(m.cache).discarded == 0 && stats_of(m.cache).layers_skipped >= LAYERS);
    is(at_step(&m, 11), "ssss"); /* what is kept is what was kept before */

    /* never reported: the end names it, and it is not learned from */
    pass = pass_of(12, 0);
    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        if (layer == 2) CHECK(dc_cache_before_layer(m.cache, 2, kind_of[2], &o, 1) == DC_COMPUTE);
        else one_layer(&m, &pass, layer);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
    CHECK_SAYS("after_layer(2)");
    is(at_step(&m, 13), "ssCs"); /* the one of which nothing is kept computes by itself */
    is(at_step(&m, 15), "ssss");

    /* reported twice */
    pass = pass_of(16, 0);
    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
    for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
    dc_cache_after_layer(m.cache, 0, &o, 1);
    CHECK(dc_cache_end_pass(m.cache) != DC_ERR_DISCARD);
    is(at_step(&m, 17), "ssss"); /* the first report counts */

    /* layers come in any order, and need not all come */
    pass = pass_of(18, 0);
    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
    for (uint32_t layer = LAYERS; layer-- > 1;) one_layer(&m, &pass, layer);
    CHECK_OK(dc_cache_end_pass(m.cache));
    is(at_step(&m, 19), "ssss"); /* layer 0 with what it showed at step 16 */
    pass = pass_of(20, 0);
    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
    CHECK_OK(dc_cache_end_pass(m.cache)); /* none at all: a model may be without */
    dc_cache_destroy(m.cache);
}

static void a_run_begun_in_mid_pass_cancels_it_and_forgets_its_layers(void)
{
    for (uint32_t begun = 0; begun <= LAYERS; begun++)
        for (uint32_t step = 2; step < 4; step++) { /* cancelled in a pass that computes, and in one that skips */
            model_t m = a_model(EVERY_2);
            dc_pass_t pass = pass_of(step, 0);
            begin_run(m.cache, 10);
            is(at_step(&m, 0), "CCCC");
            CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
            for (uint32_t layer = 0; layer < begun; layer++) one_layer(&m, &pass, layer);
            begin_run(m.cache, 10);
            CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_STATE);
            CHECK_SAYS("end_pass without begin_pass");
            CHECK(stats_of(m.cache).layers_skipped == 0 && stats_of(m.cache).layers_computed == 0);
            is(at_step(&m, 1), "CCCC"); /* a new run has nothing to skip with, whatever the schedule says */
            CHECK(newest(m.cache).reason == DC_REASON_NO_HISTORY);
            is(at_step(&m, 3), "ssss");
            dc_cache_destroy(m.cache);
        }
}

/* ---- shapes ---- */

static void rows_that_do_not_divide_by_the_branches_are_refused(void)
{
    float v[6] = {1, 2, 3, 4, 5, 6};
    dc_engine_t engine = a_layered_engine(2);
    engine.max_stacked = 2;
    dc_cache_t *cache = a_cache(&engine, EVERY_2);
    begin_run(cache, 10);
    for (uint32_t rows = 1; rows <= 3; rows++) {
        dc_tensor_t x = rows_of(v, rows, 2, 2);
        dc_pass_t both = pass_of(2 * rows, 0);
        both.n_branches = 2;
        both.branches[1] = 1;
        CHECK_OK(dc_cache_begin_pass(cache, &both));
        CHECK(dc_cache_before_layer(cache, 0, DC_KIND_SPATIAL, &x, 1) == DC_COMPUTE);
        dc_cache_after_layer(cache, 0, &x, 1);
        CHECK_STATUS(dc_cache_end_pass(cache), rows == 2 ? DC_OK : DC_ERR_ARG);
        if (rows == 2) continue;
        says("shape[0]", rows == 1 ? "shape[0] is 1" : "shape[0] is 3");
        CHECK_SAYS("2 stacked branches");
    }
    dc_cache_destroy(cache);
}

static void a_layer_that_changes_shape_computes_and_starts_again(void)
{
    enum { STEPS = 10 };
    /* what layer 2 shows: elements, tensors, dtype of the first */
    static const struct { int64_t elements; size_t n; dc_dtype_t dtype; } changes[] = {
        {TOY / 2, 1, DC_F32}, {TOY, 2, DC_F32}, {TOY, 1, DC_F16},
    };
    for (size_t c = 0; c < sizeof changes / sizeof *changes; c++) {
        model_t m = a_model(EVERY_2);
        float a[TOY] = {0}, b[TOY] = {0};
        begin_run(m.cache, STEPS);
        for (uint32_t step = 0; step < 3; step++) (void)at_step(&m, step);
        for (uint32_t step = 3; step < STEPS; step++) { /* changed from a step on that would be skipped */
            dc_pass_t pass = pass_of(step, 0);
            dc_tensor_t o[2];
            o[0] = floats(a, changes[c].elements);
            o[0].dtype = changes[c].dtype;
            o[1] = floats(b, 3);
            CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                if (layer != 2) {
                    one_layer(&m, &pass, layer);
                    continue;
                }
                m.answers[2] = dc_cache_before_layer(m.cache, 2, kind_of[2], o, changes[c].n) == DC_SKIP ? 's' : 'C';
                if (m.answers[2] == 's') continue;
                memset(a, 0, sizeof a);
                dc_cache_after_layer(m.cache, 2, o, changes[c].n);
            }
            is(m.answers, step == 3 ? "ssCs" : step % 2 == 0 ? "CCCC" : "ssss");
            CHECK_STATUS(dc_cache_end_pass(m.cache), step == 3 ? DC_ERR_SHAPE : DC_OK);
            if (step == 3) CHECK_SAYS("tensor");
        }
        dc_cache_destroy(m.cache);
    }
}

/* A joint attention shows two tensors, picture and text; four are the most. */
static void a_layer_may_show_several_tensors(void)
{
    for (size_t n = 1; n <= DC_MAX_TENSORS; n++) {
        dc_engine_t engine = a_layered_engine(1);
        dc_cache_t *cache = a_cache(&engine, EVERY_2);
        begin_run(cache, 4);
        for (uint32_t step = 0; step < 4; step++) {
            float out[DC_MAX_TENSORS][TOY];
            dc_tensor_t o[DC_MAX_TENSORS];
            dc_pass_t pass = pass_of(step, 0);
            for (int k = 0; k < DC_MAX_TENSORS; k++) o[k] = floats(out[k], k + 1);
            memset(out, 0x7f, sizeof out);
            CHECK_OK(dc_cache_begin_pass(cache, &pass));
            if (dc_cache_before_layer(cache, 0, DC_KIND_SPATIAL, o, n) == DC_COMPUTE) {
                CHECK(step % 2 == 0);
                for (uint32_t k = 0; k < n; k++) layer_output(out[k], step, 0, k);
                dc_cache_after_layer(cache, 0, o, n);
            }
            CHECK_OK(dc_cache_end_pass(cache));
            for (uint32_t k = 0; k < n; k++) {
                float want[TOY];
                layer_output(want, step / 2 * 2, 0, k);
                CHECK(memcmp(out[k], want, (k + 1) * sizeof(float)) == 0);
            }
        }
        CHECK(stats_of(cache).layers_skipped == 2);
        dc_cache_destroy(cache);
    }
}

/* ---- flags, steering ---- */

static void flags_compute_and_forget(void)
{
    dc_engine_t engine = a_layered_engine(BRANCHES);
    model_t m;
    dc_pass_t pass;
    memset(&m, 0, sizeof m);
    m.cache = a_cache(&engine, EVERY_2);
    begin_run(m.cache, 20);
    for (uint32_t step = 0; step < 2; step++)
        for (uint32_t branch = 0; branch < BRANCHES; branch++) {
            pass = pass_of(step, branch);
            is(answers(&m, &pass), step == 0 ? "CCCC" : "ssss");
        }

    /* computed at the engine's wish, and learned from */
    pass = pass_of(3, 0);
    pass.flags = DC_PASS_COMPUTE;
    is(answers(&m, &pass), "CCCC");
    CHECK(newest(m.cache).reason == DC_REASON_ENGINE);
    CHECK(dc_cache_peek(m.cache, &pass, DC_LAYER(0)) == DC_COMPUTE);
    is(at_step(&m, 5), "ssss"); /* holds step 3 */

    /* one branch's weights changed: it computes, the other skips */
    for (uint32_t branch = 0; branch < BRANCHES; branch++) {
        pass = pass_of(7, branch);
        if (branch == 0) pass.flags = DC_PASS_FORGET;
        is(answers(&m, &pass), branch == 0 ? "CCCC" : "ssss");
        CHECK(newest(m.cache).reason == (branch == 0 ? DC_REASON_NO_HISTORY : DC_REASON_RULE));
    }
    is(at_step(&m, 9), "ssss"); /* holds step 7 */
    dc_cache_destroy(m.cache);
}

static void the_engine_overrules_before_the_first_layer(void)
{
    model_t m = a_model("none,rule=schedule,scope=layers,on_residual=0,spatial.every=2,mlp.every=3");
    float out[TOY];
    dc_tensor_t o = floats(out, TOY);
    dc_pass_t pass;
    begin_run(m.cache, 20);
    is(at_step(&m, 0), "CCCC");
    is(at_step(&m, 1), "ssss");
    is(at_step(&m, 2), "CsCs");
    is(at_step(&m, 3), "sCsC");
    /* what the rules say: one answer where the kinds agree, none where they differ */
    for (uint32_t step = 4; step < 8; step++) { /* CsCs ssss CCCC ssss */
        pass = pass_of(step, 0);
        CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
        dc_action_t all = dc_cache_decide(m.cache, DC_UNDECIDED);
        CHECK(all == (step == 4 ? DC_UNDECIDED : step == 6 ? DC_COMPUTE : DC_SKIP));
        CHECK(dc_cache_peek(m.cache, NULL, DC_LAYER(0)) == (step % 2 == 0 ? DC_COMPUTE : DC_SKIP));
        CHECK(dc_cache_peek(m.cache, NULL, DC_LAYER(1)) == (step % 3 == 0 ? DC_COMPUTE : DC_SKIP));
        for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
        CHECK(dc_cache_decide(m.cache, DC_SKIP) != DC_UNDECIDED || step == 4); /* too late to change anything */
        CHECK_OK(dc_cache_end_pass(m.cache));
    }
    /* its own wish */
    for (uint32_t wish = DC_COMPUTE; wish <= DC_SKIP; wish++) {
        pass = pass_of(8 + wish, 0); /* 8 is CsCs, 9 is sCsC */
        CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
        CHECK(dc_cache_decide(m.cache, wish) == wish);
        for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
        is(m.answers, wish == DC_SKIP ? "ssss" : "CCCC");
        CHECK_OK(dc_cache_end_pass(m.cache));
        CHECK(newest(m.cache).reason == DC_REASON_ENGINE);
    }
    /* a number that is no wish */
    pass = pass_of(11, 0);
    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
    CHECK(dc_cache_decide(m.cache, 77) == DC_COMPUTE);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        CHECK(dc_cache_before_layer(m.cache, layer, kind_of[layer], &o, 1) == DC_COMPUTE);
    CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_ARG);
    CHECK_SAYS("wish is 77");
    /* peeking at what is not there is answered, and names it */
    CHECK(dc_cache_peek(m.cache, &pass, DC_LAYER(LAYERS)) == DC_COMPUTE);
    CHECK_SAYS("layer 4");
    CHECK(dc_cache_peek(m.cache, NULL, DC_LAYER(0)) == DC_COMPUTE);
    CHECK_SAYS("none is open");
    CHECK(dc_cache_peek(m.cache, &pass, DC_KIND(DC_KIND_MLP)) == DC_COMPUTE);
    CHECK_SAYS("unit is 4294967043");
    dc_cache_destroy(m.cache);
}

/* Each kind has its own line in the trace. */
static void the_trace_tells_of_each_kind(void)
{
    model_t m = a_model("none,rule=schedule,scope=layers,on_residual=0,spatial.every=2,mlp.every=3");
    dc_trace_t records[16];
    size_t n = 0;
    begin_run(m.cache, 8);
    for (uint32_t step = 0; step < 4; step++) (void)at_step(&m, step); /* CCCC ssss CsCs sCsC */
    CHECK_OK(dc_cache_trace(m.cache, records, sizeof *records, 16, &n));
    CHECK(n == 8);
    for (size_t k = 0; k < n; k++) {
        int spatial = k % 2 == 0;
        int computes = records[k].step % (spatial ? 2 : 3) == 0;
        CHECK(records[k].step == k / 2 && records[k].branch == 0);
        CHECK(records[k].unit == (spatial ? DC_KIND(DC_KIND_SPATIAL) : DC_KIND(DC_KIND_MLP)));
        CHECK(records[k].action == (computes ? DC_COMPUTE : DC_SKIP));
        CHECK(records[k].reason == (computes ? DC_REASON_INTERVAL : DC_REASON_RULE));
        CHECK(isnan(records[k].timestep) && isnan(records[k].change) && isnan(records[k].threshold));
    }
    dc_cache_destroy(m.cache);
}

/* ---- timesteps ---- */

static void a_window_without_its_timesteps_computes_and_says_so(void)
{
    static const float times[6] = {1000, 800, 600, 400, 200, 100};
    model_t m = a_model(EVERY_2 ",window=0.1:0.9");
    dc_run_t run = DC_RUN_INIT;
    dc_pass_t pass;

    /* no scale: the run says so, and computes */
    run.n_steps = 6;
    CHECK_STATUS(dc_cache_begin_run(m.cache, &run), DC_ERR_ARG);
    CHECK_SAYS("timestep_max is 0");
    for (uint32_t step = 0; step < 3; step++) {
        pass = pass_of(step, 0);
        CHECK_STATUS(dc_cache_begin_pass(m.cache, &pass), DC_ERR_ARG);
        for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
        is(m.answers, "CCCC");
        CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_ARG);
        CHECK_SAYS("timestep_max is 0");
    }

    /* no timestep of this pass: it says so, and computes; the next one has its own */
    run.timestep_max = 1000.0f;
    CHECK_OK(dc_cache_begin_run(m.cache, &run));
    for (uint32_t step = 0; step < 6; step++) {
        int told = step != 3;
        pass = pass_of(step, 0);
        pass.flags = told ? DC_PASS_TIMESTEP : 0;
        pass.timestep = times[step];
        CHECK_STATUS(dc_cache_begin_pass(m.cache, &pass), told ? DC_OK : DC_ERR_ARG);
        if (!told) CHECK_SAYS("pass->timestep: step 3");
        m.failed = !told;
        for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
        is(m.answers, step == 1 ? "ssss" : "CCCC"); /* 5 is at the window's edge */
        CHECK_STATUS(dc_cache_end_pass(m.cache), told ? DC_OK : DC_ERR_ARG);
        if (!told) CHECK_SAYS("DC_PASS_TIMESTEP");
        if (!told) CHECK(newest(m.cache).reason == DC_REASON_TIMESTEP && isnan(newest(m.cache).timestep));
        if (step == 5) CHECK(newest(m.cache).reason == DC_REASON_WINDOW && newest(m.cache).timestep == 100.0f);
    }

    /* timesteps that are no numbers */
    for (int k = 0; k < 2; k++) {
        float list[6];
        memcpy(list, times, sizeof list);
        list[4] = k == 0 ? NAN : INFINITY;
        run.timesteps = list;
        CHECK_STATUS(dc_cache_begin_run(m.cache, &run), DC_ERR_ARG);
        CHECK_SAYS("timesteps[4] is");
        run.timesteps = times;
        CHECK_OK(dc_cache_begin_run(m.cache, &run));
        is(at_step(&m, 0), "CCCC");
        pass = pass_of(1, 0);
        pass.flags = DC_PASS_TIMESTEP;
        pass.timestep = list[4];
        CHECK_STATUS(dc_cache_begin_pass(m.cache, &pass), DC_ERR_ARG);
        m.failed = 1;
        for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
        m.failed = 0;
        is(m.answers, "CCCC");
        CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_ARG);
        CHECK_SAYS("pass->timestep is");
        is(at_step(&m, 2), "CCCC");
        is(at_step(&m, 3), "ssss");
    }
    dc_cache_destroy(m.cache);
}

/* ---- memory ---- */

static dc_shape_t layer_row(dc_kind_t kind, uint32_t count, const dc_tensor_t *tensor)
{
    dc_shape_t row;
    memset(&row, 0, sizeof row);
    row.hook = DC_HOOK_LAYERS;
    row.kind = kind;
    row.branch = UINT32_MAX;
    row.count = count;
    row.tensors = tensor;
    row.n = 1;
    return row;
}

static void rows_of_shapes_that_make_no_sense_are_refused(void)
{
    dc_engine_t engine = a_layered_engine(2);
    dc_options_t options = options_of(EVERY_2);
    dc_cache_t *cache = a_cache(&engine, EVERY_2);
    float data[1];
    dc_tensor_t tensor = floats(data, TOY);
    uint64_t bytes = 0;
#define REFUSED(status, word, value, ...)                                                 \
    do {                                                                                  \
        dc_shape_t row = layer_row(DC_KIND_MLP, 2, &tensor);                              \
        dc_run_t run = DC_RUN_INIT;                                                       \
        __VA_ARGS__;                                                                      \
        run.n_steps = 4;                                                                  \
        run.shapes = &row;                                                                \
        run.n_shapes = 1;                                                                 \
        CHECK_STATUS(dc_cache_begin_run(cache, &run), (status));                          \
        CHECK_SAYS("shapes[0]");                                                          \
        CHECK_SAYS(word);                                                                 \
        CHECK_SAYS(value);                                                                \
        CHECK_STATUS(dc_memory_needed(&engine, &options, &row, 1, &bytes), (status));     \
        CHECK_SAYS(word);                                                                 \
    } while (0)
    REFUSED(DC_ERR_ARG, "hook is 0", "4", row.hook = 0);
    REFUSED(DC_ERR_ARG, "hook is 16", "32", row.hook = 16);
    REFUSED(DC_ERR_ARG, "hook is 64", "32", row.hook = 64);
    REFUSED(DC_ERR_ARG, "hook is 12", "8", row.hook = DC_HOOK_LAYERS | DC_HOOK_MODEL);
    REFUSED(DC_ERR_ARG, "kind is 4", "MLP", row.kind = 4);
    REFUSED(DC_ERR_ARG, "kind is 4294967295", "MLP", row.kind = UINT32_MAX);
    REFUSED(DC_ERR_ARG, "count is 2", "layers and blocks", row.hook = DC_HOOK_MODEL; row.kind = 0);
    REFUSED(DC_ERR_ARG, "kind is 3", "DC_HOOK_LAYERS", row.hook = DC_HOOK_EACH; row.count = 1);
    REFUSED(DC_ERR_ARG, "count is 2", "layers and blocks", row.hook = DC_HOOK_GUIDE; row.kind = 0);
    REFUSED(DC_ERR_ARG, "count is 4294967295", "allowed is up to", row.count = UINT32_MAX);
    REFUSED(DC_ERR_ARG, "branch is 2", "n_branches is 2", row.branch = 2);
    REFUSED(DC_ERR_ARG, "n is 0", "4", row.n = 0);
    REFUSED(DC_ERR_ARG, "n is 5", "4", row.n = DC_MAX_TENSORS + 1);
    REFUSED(DC_ERR_ARG, "tensors is null", "", row.tensors = NULL);
    REFUSED(DC_ERR_VERSION, "reserved0 is 1", "0", row.reserved0 = 1);
#undef REFUSED
    /* rows that the method needs nothing of are ignored; kinds that have none are not there */
    dc_tensor_t large = floats(data, 1000000);
    dc_shape_t rows[3];
    rows[0] = layer_row(DC_KIND_MLP, 3, &tensor);
    rows[1] = layer_row(0, 0, &large);
    rows[1].hook = DC_HOOK_MODEL;
    rows[2] = layer_row(0, 0, &large);
    rows[2].hook = DC_HOOK_GUIDE;
    CHECK_OK(dc_memory_needed(&engine, &options, rows, 3, &bytes));
    CHECK(bytes == 2 * 3 * TOY * sizeof(float));
    dc_cache_destroy(cache);
}

/* The bytes of PAB, TaylorSeer and FasterCache as the manual has them: L layers of A bytes, B branches. */
static void layers_cost_what_the_manual_says(void)
{
    enum { L = 7, A = 4 * TOY, B = 2 };
    static const struct { const char *text; uint64_t bytes; } methods[] = {
        {"pab", B * L * A},
        {"taylorseer", B * L * A * 2},
        {"taylorseer,order=3", B * L * A * 4},
        {"taylorseer,compat=diffusers", B * L * A * 2},
        {"hicache", B * L * A * 3},
        {"fastercache", 2 * (B - 1) * L * A + 8 * TOY},
        {"fastercache,guidance.low=1.3,guidance.high=1.3,guidance.low_window=none,guidance.high_window=none",
         2 * (B - 1) * L * A + 4 * TOY},
        {"fastercache,guidance.every=none,cond_only=0", 2 * B * L * A},
        {"fastercache,spatial.layers=2,guidance.every=none,cond_only=0", 2 * B * 2 * A},
        {"pab,history_dtype=bf16", B * L * A / 2},
        {"pab,spatial.every=1,cross.every=2", 0}, /* this model has spatial layers only */
    };
    dc_engine_t engine = a_layered_engine(B);
    float data[1];
    dc_tensor_t tensor = floats(data, TOY);
    dc_shape_t rows[2];
    engine.hooks |= DC_HOOK_GUIDE;
    engine.n_layers = L;
    rows[0] = layer_row(DC_KIND_SPATIAL, L, &tensor);
    rows[1] = layer_row(0, 0, &tensor);
    rows[1].hook = DC_HOOK_GUIDE;
    for (size_t k = 0; k < sizeof methods / sizeof *methods; k++) {
        dc_options_t options = options_of(methods[k].text);
        uint64_t bytes = 1;
        CHECK_OK(dc_memory_needed(&engine, &options, rows, 2, &bytes));
        if (bytes != methods[k].bytes) fprintf(stderr, "%s: %.0f\n", methods[k].text, (double)bytes);
        CHECK(bytes == methods[k].bytes);
    }
}

/* One null in mid-pass, at each layer in turn: the pass computes and says so; then that layer works as the others do. */
static void a_failed_allocation_of_a_layer_is_a_pass_without_the_cache(void)
{
    for (long failing = 1; failing <= LAYERS; failing++)
        for (int for_good = 0; for_good < 2; for_good++) {
            ledger_t books;
            dc_engine_t engine = a_layered_engine(1);
            model_t m;
            memset(&m, 0, sizeof m);
            keep_books(&engine, &books);
            m.cache = a_cache(&engine, EVERY_2);
            books.fail_at = failing;
            books.fail_on = for_good;
            begin_run(m.cache, 20);
            dc_pass_t pass = pass_of(0, 0);
            CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
            for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
            is(m.answers, "CCCC");
            CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_MEMORY);
            CHECK(strlen(dc_last_error()) > 0);
            CHECK(stats_of(m.cache).first_error == DC_ERR_MEMORY);
            char wanted[LAYERS + 1] = "ssss"; /* what was had before the failure is of use */
            memset(wanted + failing - 1, 'C', (size_t)(LAYERS + 1 - failing));
            books.fail_at = 0; /* memory is to be had again */
            is(at_step(&m, 1), wanted);
            is(at_step(&m, 3), "ssss");
            CHECK(books.held == LAYERS * TOY * sizeof(float)); /* nothing is held twice */
            dc_cache_destroy(m.cache);
            CHECK(books.n_live == 0);
        }
}

static void over_budget_is_said_with_both_numbers_and_computes(void)
{
    enum { NEEDED = LAYERS * TOY * sizeof(float) };
    float data[1];
    dc_tensor_t tensor = floats(data, TOY);
    dc_shape_t rows[2];
    rows[0] = layer_row(DC_KIND_SPATIAL, 2, &tensor);
    rows[1] = layer_row(DC_KIND_MLP, 2, &tensor);
    for (uint64_t budget = NEEDED - 1; budget <= NEEDED; budget++) {
        ledger_t books;
        dc_engine_t engine = a_layered_engine(1);
        dc_run_t run = DC_RUN_INIT;
        model_t m;
        char number[24];
        memset(&m, 0, sizeof m);
        keep_books(&engine, &books);
        engine.memory_budget = budget;
        m.cache = a_cache(&engine, EVERY_2);
        run.n_steps = 4;
        run.shapes = rows;
        run.n_shapes = 2;
        CHECK_STATUS(dc_cache_begin_run(m.cache, &run), budget < NEEDED ? DC_ERR_MEMORY : DC_OK);
        if (budget == NEEDED) {
            is(at_step(&m, 0), "CCCC");
            is(at_step(&m, 1), "ssss");
            CHECK(books.asked == NEEDED);
        } else {
            CHECK_SAYS("memory_budget");
            for (uint64_t k = budget; k <= NEEDED; k++) {
                snprintf(number, sizeof number, "%d", (int)k);
                says("both numbers", number);
            }
            dc_pass_t pass = pass_of(0, 0);
            CHECK_STATUS(dc_cache_begin_pass(m.cache, &pass), DC_ERR_MEMORY);
            for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
            is(m.answers, "CCCC");
            CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_MEMORY);
            CHECK(newest(m.cache).reason == DC_REASON_MEMORY && books.calls == 0);
            /* without shapes it shows at the layer that does not fit; those before it work */
            begin_run(m.cache, 4);
            pass = pass_of(0, 0);
            CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
            for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
            CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_MEMORY);
            CHECK_SAYS("memory_budget");
            CHECK(books.peak <= budget && stats_of(m.cache).bytes_peak <= budget);
            pass = pass_of(1, 0);
            CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
            for (uint32_t layer = 0; layer < LAYERS; layer++) one_layer(&m, &pass, layer);
            is(m.answers, "sssC");
            CHECK_STATUS(dc_cache_end_pass(m.cache), DC_ERR_MEMORY);
        }
        dc_cache_destroy(m.cache);
        CHECK(books.n_live == 0);
    }
}

static void trim_gives_the_layers_back_and_the_cache_goes_on(void)
{
    ledger_t books;
    dc_engine_t engine = a_layered_engine(1);
    model_t m;
    memset(&m, 0, sizeof m);
    keep_books(&engine, &books);
    m.cache = a_cache(&engine, EVERY_2);
    begin_run(m.cache, 10);
    is(at_step(&m, 0), "CCCC");
    CHECK_OK(dc_cache_trim(m.cache, NULL));
    CHECK(books.n_live == 0 && stats_of(m.cache).bytes_held == 0);
    is(at_step(&m, 1), "CCCC");
    is(at_step(&m, 3), "ssss");
    /* in mid-pass there is something to lose */
    dc_pass_t pass = pass_of(5, 0);
    CHECK_OK(dc_cache_begin_pass(m.cache, &pass));
    one_layer(&m, &pass, 0);
    CHECK_STATUS(dc_cache_trim(m.cache, NULL), DC_ERR_STATE);
    dc_cache_destroy(m.cache); /* nor does ending it all in mid-pass leave anything behind */
    CHECK(books.n_live == 0);
}

int main(void)
{
    what_one_call_gets_wrong_computes_and_is_named();
    a_failure_at_the_first_layer_computes_them_all();
    layers_out_of_order_compute_and_say_so();
    a_run_begun_in_mid_pass_cancels_it_and_forgets_its_layers();
    rows_that_do_not_divide_by_the_branches_are_refused();
    a_layer_that_changes_shape_computes_and_starts_again();
    a_layer_may_show_several_tensors();
    flags_compute_and_forget();
    the_engine_overrules_before_the_first_layer();
    the_trace_tells_of_each_kind();
    a_window_without_its_timesteps_computes_and_says_so();
    rows_of_shapes_that_make_no_sense_are_refused();
    layers_cost_what_the_manual_says();
    a_failed_allocation_of_a_layer_is_a_pass_without_the_cache();
    over_budget_is_said_with_both_numbers_and_computes();
    trim_gives_the_layers_back_and_the_cache_goes_on();
    return 0;
}
