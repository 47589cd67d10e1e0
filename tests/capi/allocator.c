/* The engine's allocator is used for every cached tensor, and the memory figures are exact to the byte. */
#include "ledger.h"

/* ---- a model of two streams in any dtype ---- */

enum { IMG = 40, TXT = 12, BLOCKS = 6, MOST_STACKED = 2 };

typedef struct model_t {
    dc_dtype_t dtype;
    uint32_t   blocks, stacked;
    int        keeps_input; /* block 0 writes to buffers of its own */
    uint32_t   img[MOST_STACKED * IMG], txt[MOST_STACKED * TXT]; /* room for any dtype */
    uint32_t   img_in[MOST_STACKED * IMG], txt_in[MOST_STACKED * TXT];
} model_t;

static dc_tensor_t tensor_of(void *data, dc_dtype_t dtype, int64_t rows, int64_t columns)
{
    dc_tensor_t x = floats(data, rows);
    x.dtype = dtype;
    x.ndim = 2;
    x.shape[1] = columns;
    return x;
}

/* Writes 1.0 + k/8 into every element; k < 8. */
static void set(void *data, dc_dtype_t dtype, size_t n, unsigned k)
{
    for (size_t j = 0; j < n; j++) {
        if (dtype == DC_F32) ((float *)data)[j] = 1.0f + 0.125f * (float)k;
        else ((uint16_t *)data)[j] = (uint16_t)(dtype == DC_F16 ? 0x3c00 + (k << 7) : 0x3f80 + (k << 4));
    }
}

static double get(const void *data, dc_dtype_t dtype)
{
    uint16_t bits;
    if (dtype == DC_F32) return *(const float *)data;
    memcpy(&bits, data, sizeof bits);
    return dtype == DC_F16 ? 1.0 + (bits - 0x3c00) / 1024.0 : 1.0 + (bits - 0x3f80) / 128.0;
}

/* A pass over `n` stacked branches. The values are 1 before the front, 1.25 after it and 1.75 after the span, in
 * every pass, so that reuse is exact in every dtype; true if the span was skipped. */
static int run_pass(dc_cache_t *cache, model_t *m, const dc_pass_t *pass, dc_status_t wanted)
{
    int64_t n = pass->n_branches;
    dc_tensor_t in[2], x[2];
    int skipped = 0;
    x[0] = in[0] = tensor_of(m->img, m->dtype, n, IMG);
    x[1] = in[1] = tensor_of(m->txt, m->dtype, n, TXT);
    if (m->keeps_input) in[0].data = m->img_in, in[1].data = m->txt_in;
    set(in[0].data, m->dtype, (size_t)n * IMG, 0);
    set(in[1].data, m->dtype, (size_t)n * TXT, 0);
    (void)dc_cache_begin_pass(cache, pass);
    for (uint32_t i = 0; i < m->blocks; i++)
        if (dc_cache_before_block(cache, i, i == 0 ? in : x, NULL, 2) == DC_COMPUTE) {
            set(m->img, m->dtype, (size_t)n * IMG, i + 1 == m->blocks ? 6 : 2);
            set(m->txt, m->dtype, (size_t)n * TXT, i + 1 == m->blocks ? 6 : 2);
            dc_cache_after_block(cache, i, x, 2);
        } else {
            skipped = 1;
        }
    CHECK_STATUS(dc_cache_end_pass(cache), wanted);
    CHECK(get(m->img, m->dtype) == 1.75 && get(m->txt, m->dtype) == 1.75);
    return skipped;
}

/* One step of all branches, `stacked` of them in a pass; how many passes were skipped. */
static int run_step(dc_cache_t *cache, model_t *m, uint32_t step, uint32_t branches, dc_status_t wanted)
{
    int skipped = 0;
    for (uint32_t first = 0; first < branches; first += m->stacked) {
        dc_pass_t pass = pass_of(step, 0);
        pass.n_branches = branches - first < m->stacked ? branches - first : m->stacked;
        for (uint32_t k = 0; k < pass.n_branches; k++) pass.branches[k] = first + pass.n_branches - 1 - k;
        skipped += run_pass(cache, m, &pass, wanted);
    }
    return skipped;
}

/* What the engine of a model tells about its tensors: one branch's rows. */
static dc_shape_t shape_of(const dc_tensor_t tensors[2])
{
    dc_shape_t shape;
    memset(&shape, 0, sizeof shape);
    shape.hook = DC_HOOK_EACH;
    shape.branch = UINT32_MAX;
    shape.count = 1;
    shape.tensors = tensors;
    shape.n = 2;
    return shape;
}

typedef struct setting_t {
    char       text[256];
    dc_dtype_t dtype;
    uint32_t   branches, stacked, flags;
} setting_t;

static dc_engine_t engine_of(const setting_t *setting, ledger_t *books)
{
    dc_engine_t engine = an_engine(BLOCKS, setting->branches);
    engine.hooks = DC_HOOK_EACH;
    engine.max_stacked = setting->stacked;
    engine.flags = setting->flags;
    keep_books(&engine, books);
    return engine;
}

static uint64_t bytes_needed(const setting_t *setting)
{
    ledger_t books;
    dc_engine_t engine = engine_of(setting, &books);
    dc_options_t options = options_of(setting->text);
    dc_tensor_t tensors[2];
    dc_shape_t shape = shape_of(tensors);
    uint64_t bytes = UINT64_MAX;
    tensors[0] = tensor_of(NULL, setting->dtype, 1, IMG);
    tensors[1] = tensor_of(NULL, setting->dtype, 1, TXT);
    CHECK_OK(dc_memory_needed(&engine, &options, &shape, 1, &bytes));
    CHECK(books.calls == 0); /* asking allocates nothing */
    return bytes;
}

static model_t model_of(const setting_t *setting)
{
    model_t m;
    memset(&m, 0, sizeof m);
    m.dtype = setting->dtype;
    m.blocks = BLOCKS;
    m.stacked = setting->stacked;
    m.keeps_input = (setting->flags & DC_ENGINE_KEEPS_INPUT) != 0;
    return m;
}

/* ---- exact figures ---- */

static void asked_exactly(uint64_t needed, const ledger_t *books, const setting_t *setting)
{
    if (books->asked != needed)
        fprintf(stderr, "%s, dtype %u, branches %u in passes of %u, flags %u: asked %.0f, needed %.0f\n", setting->text,
                setting->dtype, setting->branches, setting->stacked, setting->flags, (double)books->asked,
                (double)needed);
    CHECK(books->asked == needed);
}

static void memory_is_exact(const setting_t *setting)
{
    ledger_t books;
    dc_engine_t engine = engine_of(setting, &books);
    dc_tensor_t tensors[2];
    dc_shape_t shape = shape_of(tensors);
    dc_run_t run = DC_RUN_INIT;
    model_t m = model_of(setting);
    uint64_t needed = bytes_needed(setting);
    int skipped = 0;
    tensors[0] = tensor_of(NULL, setting->dtype, 1, IMG);
    tensors[1] = tensor_of(NULL, setting->dtype, 1, TXT);

    /* with shapes: all of it in begin_run, nothing after */
    dc_cache_t *cache = a_cache(&engine, setting->text);
    CHECK(books.calls == 0); /* creating takes none */
    run.n_steps = 8;
    run.n_shapes = 1;
    run.shapes = &shape;
    CHECK_OK(dc_cache_begin_run(cache, &run));
    asked_exactly(needed, &books, setting);
    long calls = books.calls;
    for (uint32_t step = 0; step < 8; step++) skipped += run_step(cache, &m, step, setting->branches, DC_OK);
    if (!skipped) fprintf(stderr, "%s, branches %u in passes of %u\n", setting->text, setting->branches, setting->stacked);
    CHECK(skipped > 0);
    CHECK(books.calls == calls && books.frees == 0);
    dc_stats_t stats = stats_of(cache);
    CHECK(stats.bytes_held == books.held && stats.bytes_peak == books.peak && stats.allocations == (uint64_t)calls);
    /* the next run keeps it */
    CHECK_OK(dc_cache_begin_run(cache, &run));
    for (uint32_t step = 0; step < 3; step++) (void)run_step(cache, &m, step, setting->branches, DC_OK);
    CHECK(books.calls == calls && books.frees == 0);
    dc_cache_destroy(cache);
    CHECK(books.n_live == 0 && books.held == 0 && books.frees == books.calls);

    /* without: all of it by the end of each branch's first computed pass, and the same bytes */
    engine = engine_of(setting, &books);
    cache = a_cache(&engine, setting->text);
    begin_run(cache, 8);
    CHECK(books.calls == 0);
    (void)run_step(cache, &m, 0, setting->branches, DC_OK);
    asked_exactly(needed, &books, setting);
    calls = books.calls;
    for (uint32_t step = 1; step < 8; step++) (void)run_step(cache, &m, step, setting->branches, DC_OK);
    CHECK(books.calls == calls);
    CHECK(stats_of(cache).bytes_held == needed);
    dc_cache_destroy(cache);
    CHECK(books.n_live == 0 && books.frees == books.calls);
}

static void memory_is_exact_for_every_setting(void)
{
    static const char *const presets[] = {
        "fbcache,threshold=0.5",
        "dbcache,threshold=0.5,front_blocks=2,back_blocks=1",
        "mask,mask=10000000,front_blocks=0",
    };
    static const char *const estimators[] = {"hold", "taylor,order=1", "newton,order=2"};
    static const char *const histories[] = {"tensor", "f32", "f16", "bf16"};
    static const dc_dtype_t dtypes[] = {DC_F32, DC_F16, DC_BF16};
    /* where every instruction is interpreted, each fifth: all values of all axes, and all pairs, are still among them */
    int number = 0, every = often(100) < 100 ? 5 : 1;
    for (int p = 0; p < 3; p++)
        for (int e = 0; e < 3; e++)
            for (int h = 0; h < 4; h++)
                for (int d = 0; d < 3; d++)
                    for (uint32_t bits = 0; bits < 16; bits++) {
                        if (number++ % every != 0) continue;
                        setting_t setting;
                        memset(&setting, 0, sizeof setting);
                        setting.dtype = dtypes[d];
                        setting.branches = bits & 1 ? 2 : 1;
                        setting.stacked = bits & 2 ? setting.branches : 1;
                        setting.flags = bits & 4 ? DC_ENGINE_KEEPS_INPUT : 0;
                        snprintf(setting.text, sizeof setting.text, "%s,estimator=%s,history_dtype=%s,share=%d," NO_RAILS,
                                 presets[p], estimators[e], histories[h], bits & 8 ? 1 : 0);
                        memory_is_exact(&setting);
                    }
}

/* N image and E text elements a branch, B branches. */
static void fbcache_costs_what_the_manual_says(void)
{
    for (uint32_t b = 1; b <= 2; b++)
        for (uint32_t stacked = 1; stacked <= b; stacked++) {
            setting_t s = {"fbcache", DC_F32, b, stacked, 0};
            CHECK(bytes_needed(&s) == 4 * (b * (2 * IMG + TXT) + stacked * IMG));
            s.flags = DC_ENGINE_KEEPS_INPUT;
            CHECK(bytes_needed(&s) == 4 * (b * (2 * IMG + TXT)));
            s.dtype = DC_BF16;
            CHECK(bytes_needed(&s) == 2 * (b * (2 * IMG + TXT)));
        }
    /* a schedule measures nothing: it keeps the span's residual and no more */
    setting_t mask = {"mask,mask=10,front_blocks=0", DC_F32, 2, 1, 0};
    CHECK(bytes_needed(&mask) == 4 * 2 * (IMG + TXT));
    /* a value more for each order of the estimator */
    setting_t taylor = {"fbcache,estimator=taylor,order=1", DC_F32, 1, 1, DC_ENGINE_KEEPS_INPUT};
    CHECK(bytes_needed(&taylor) == 4 * (3 * IMG + 2 * TXT));
    /* followers keep no front residual */
    setting_t shared = {"fbcache,share=1", DC_F32, 2, 1, DC_ENGINE_KEEPS_INPUT};
    CHECK(bytes_needed(&shared) == 4 * (3 * IMG + 2 * TXT));
    /* a stream that is not restored is not kept */
    setting_t image = {"fbcache,fill=0", DC_F32, 1, 1, DC_ENGINE_KEEPS_INPUT};
    CHECK(bytes_needed(&image) == 4 * (2 * IMG));
    /* no method, no memory */
    setting_t none = {"none", DC_F32, 2, 2, 0};
    CHECK(bytes_needed(&none) == 0);
}

static void the_sum_that_overflows_is_refused(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_options_t options = options_of("fbcache");
    dc_tensor_t tensors[2];
    dc_shape_t shape = shape_of(tensors);
    uint64_t bytes = 0;
    tensors[0] = tensor_of(NULL, DC_F32, 1, INT64_MAX / 8);
    tensors[1] = tensors[0];
    CHECK_STATUS(dc_memory_needed(&engine, &options, &shape, 1, &bytes), DC_ERR_ARG);
}

/* Without an allocator of the engine's, the library's own: no difference that an engine could see. */
static void the_librarys_own_memory_is_counted_too(void)
{
    setting_t setting = {"fbcache,threshold=0.5," NO_RAILS, DC_F32, 1, 1, 0};
    dc_engine_t engine = an_engine(BLOCKS, 1);
    model_t m = model_of(&setting);
    dc_cache_t *cache = a_cache(&engine, setting.text);
    begin_run(cache, 4);
    for (uint32_t step = 0; step < 4; step++) CHECK(run_step(cache, &m, step, 1, DC_OK) == (step > 0));
    CHECK(stats_of(cache).bytes_held == bytes_needed(&setting));
    CHECK_OK(dc_cache_trim(cache, NULL));
    CHECK(stats_of(cache).bytes_held == 0 && stats_of(cache).bytes_peak == bytes_needed(&setting));
    dc_cache_destroy(cache);
}

/* ---- trim ---- */

static void trim_gives_back_everything_and_the_cache_goes_on(void)
{
    setting_t setting = {"fbcache,threshold=0.5," NO_RAILS, DC_F32, 2, 2, 0};
    ledger_t books;
    dc_engine_t engine = engine_of(&setting, &books);
    dc_tensor_t tensors[2];
    dc_shape_t shape = shape_of(tensors);
    model_t m = model_of(&setting);
    dc_run_t run = DC_RUN_INIT;
    dc_cache_t *cache = a_cache(&engine, setting.text);
    tensors[0] = tensor_of(NULL, DC_F32, 1, IMG);
    tensors[1] = tensor_of(NULL, DC_F32, 1, TXT);
    run.n_steps = 20;
    run.n_shapes = 1;
    run.shapes = &shape;
    CHECK_OK(dc_cache_trim(cache, NULL)); /* nothing yet */
    CHECK_OK(dc_cache_begin_run(cache, &run));
    CHECK(run_step(cache, &m, 0, 2, DC_OK) == 0);
    CHECK(run_step(cache, &m, 1, 2, DC_OK) == 1);
    CHECK_OK(dc_cache_trim(cache, NULL));
    CHECK(books.n_live == 0 && stats_of(cache).bytes_held == 0);
    CHECK(run_step(cache, &m, 2, 2, DC_OK) == 0); /* what was kept is gone: it computes, and takes memory again */
    CHECK(run_step(cache, &m, 3, 2, DC_OK) == 1);
    CHECK(books.held == bytes_needed(&setting));
    /* inside a pass there is something to lose: refused */
    dc_pass_t pass = pass_of(4, 0);
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    CHECK_STATUS(dc_cache_trim(cache, NULL), DC_ERR_STATE);
    CHECK(books.held == bytes_needed(&setting));
    CHECK_OK(dc_cache_begin_run(cache, &run));
    CHECK(run_step(cache, &m, 0, 2, DC_OK) == 0);
    CHECK_OK(dc_cache_trim(cache, NULL));
    CHECK_OK(dc_cache_trim(cache, NULL)); /* twice */
    CHECK_OK(dc_cache_begin_run(cache, &run));
    CHECK(books.held == bytes_needed(&setting)); /* with shapes: in begin_run again */
    dc_cache_destroy(cache);
    CHECK(books.n_live == 0 && books.calls == books.frees);
}

/* ---- not enough ---- */

static int digits_said(uint64_t number)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return strstr(dc_last_error(), text) != NULL;
}

static void over_budget_is_said_with_both_numbers_and_computes(void)
{
    setting_t setting = {"fbcache,threshold=0.5," NO_RAILS, DC_F32, 2, 1, 0};
    uint64_t needed = bytes_needed(&setting);
    const uint64_t budgets[] = {1, needed - 1};
    for (int b = 0; b < 2; b++) {
        ledger_t books;
        dc_engine_t engine = engine_of(&setting, &books);
        dc_tensor_t tensors[2];
        dc_shape_t shape = shape_of(tensors);
        model_t m = model_of(&setting);
        dc_run_t run = DC_RUN_INIT;
        engine.memory_budget = budgets[b];
        run.n_steps = 8;
        run.n_shapes = 1;
        run.shapes = &shape;
        tensors[0] = tensor_of(NULL, DC_F32, 1, IMG);
        tensors[1] = tensor_of(NULL, DC_F32, 1, TXT);
        dc_cache_t *cache = a_cache(&engine, setting.text);
        CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_MEMORY);
        CHECK(digits_said(needed) && digits_said(budgets[b]));
        for (uint32_t step = 0; step < 4; step++) CHECK(run_step(cache, &m, step, 2, DC_ERR_MEMORY) == 0);
        CHECK(books.peak <= budgets[b]);
        CHECK(newest(cache).reason == DC_REASON_MEMORY);

        /* without shapes it shows in the first pass that does not fit */
        uint64_t first_branch = 4 * (2 * IMG + TXT + IMG);
        dc_pass_t pass = pass_of(0, 0);
        begin_run(cache, 8);
        CHECK(run_pass(cache, &m, &pass, budgets[b] < first_branch ? DC_ERR_MEMORY : DC_OK) == 0);
        pass = pass_of(0, 1);
        CHECK(run_pass(cache, &m, &pass, DC_ERR_MEMORY) == 0);
        CHECK(books.peak <= budgets[b] && stats_of(cache).bytes_peak <= budgets[b]);
        dc_cache_destroy(cache);
        CHECK(books.n_live == 0);
    }
}

static void a_run_that_fits_its_budget_to_the_byte_works_also_after_one_that_did_not(void)
{
    setting_t setting = {"fbcache,threshold=0.5," NO_RAILS, DC_F32, 2, 1, 0};
    ledger_t books;
    dc_engine_t engine = engine_of(&setting, &books);
    dc_tensor_t tensors[2];
    dc_shape_t shape = shape_of(tensors);
    model_t m = model_of(&setting);
    dc_run_t run = DC_RUN_INIT;
    engine.memory_budget = bytes_needed(&setting);
    dc_cache_t *cache = a_cache(&engine, setting.text);
    run.n_steps = 8;
    run.n_shapes = 1;
    run.shapes = &shape;
    for (int64_t rows = 2; rows > 0; rows--) { /* twice as large, then as large as the budget */
        tensors[0] = tensor_of(NULL, DC_F32, rows, IMG);
        tensors[1] = tensor_of(NULL, DC_F32, rows, TXT);
        CHECK_STATUS(dc_cache_begin_run(cache, &run), rows == 2 ? DC_ERR_MEMORY : DC_OK);
    }
    for (uint32_t step = 0; step < 4; step++) CHECK(run_step(cache, &m, step, 2, DC_OK) == (step == 0 ? 0 : 2));
    CHECK(books.held == engine.memory_budget);
    dc_cache_destroy(cache);
}

/* The engine's allocator returns null once, at every place where it can: no leak, no wrong output, and the next
 * run works. */
static void a_failed_allocation_computes_reports_and_leaves_the_cache_usable(void)
{
    static const char *const methods[] = {
        "fbcache,threshold=0.5," NO_RAILS,
        "dbcache,front_blocks=2,estimator=taylor,order=2,threshold=0.5," NO_RAILS,
        "mask,mask=10000000,front_blocks=0",
    };
    for (int method = 0; method < 3; method++)
        for (int with_shapes = 0; with_shapes < 2; with_shapes++)
            for (int for_good = 0; for_good < 2; for_good++) {
                long last = 1;
                for (long k = 1; k <= last; k++) {
                    setting_t setting = {"", DC_F32, 2, 2, 0};
                    ledger_t books;
                    dc_engine_t engine;
                    dc_tensor_t tensors[2];
                    dc_shape_t shape = shape_of(tensors);
                    model_t m;
                    dc_run_t run = DC_RUN_INIT;
                    snprintf(setting.text, sizeof setting.text, "%s", methods[method]);
                    engine = engine_of(&setting, &books);
                    m = model_of(&setting);
                    tensors[0] = tensor_of(NULL, DC_F32, 1, IMG);
                    tensors[1] = tensor_of(NULL, DC_F32, 1, TXT);
                    run.n_steps = 8;
                    if (with_shapes) run.n_shapes = 1, run.shapes = &shape;
                    books.fail_at = k;
                    books.fail_on = for_good;
                    dc_cache_t *cache = a_cache(&engine, setting.text);
                    if (with_shapes) {
                        CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_MEMORY);
                        for (uint32_t step = 0; step < 3; step++) CHECK(run_step(cache, &m, step, 2, DC_ERR_MEMORY) == 0);
                    } else {
                        CHECK_OK(dc_cache_begin_run(cache, &run));
                        CHECK(run_step(cache, &m, 0, 2, DC_ERR_MEMORY) == 0);
                        if (for_good) CHECK(run_step(cache, &m, 1, 2, DC_ERR_MEMORY) == 0);
                    }
                    CHECK(stats_of(cache).first_error == DC_ERR_MEMORY);
                    books.fail_at = 0; /* memory is to be had again */
                    CHECK_OK(dc_cache_begin_run(cache, &run));
                    CHECK(run_step(cache, &m, 0, 2, DC_OK) == 0);
                    CHECK(run_step(cache, &m, 1, 2, DC_OK) == 1);
                    CHECK(books.held == bytes_needed(&setting)); /* nothing is held twice */
                    dc_cache_destroy(cache);
                    CHECK(books.n_live == 0);
                    if (k == 1) { /* how many places there are */
                        engine = engine_of(&setting, &books);
                        cache = a_cache(&engine, setting.text);
                        CHECK_OK(dc_cache_begin_run(cache, &run));
                        (void)run_step(cache, &m, 0, 2, DC_OK);
                        last = books.calls;
                        CHECK(last > 0);
                        dc_cache_destroy(cache);
                    }
                }
            }
}

static void destroying_in_mid_run_and_mid_pass_frees_everything(void)
{
    for (uint32_t blocks = 0; blocks <= BLOCKS; blocks++) {
        setting_t setting = {"fbcache,threshold=0.5," NO_RAILS, DC_F32, 1, 1, 0};
        ledger_t books;
        dc_engine_t engine = engine_of(&setting, &books);
        model_t m = model_of(&setting);
        dc_cache_t *cache = a_cache(&engine, setting.text);
        dc_pass_t pass = pass_of(0, 0);
        dc_tensor_t x[2];
        x[0] = tensor_of(m.img, DC_F32, 1, IMG);
        x[1] = tensor_of(m.txt, DC_F32, 1, TXT);
        begin_run(cache, 4);
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < blocks; i++) {
            CHECK(dc_cache_before_block(cache, i, x, NULL, 2) == DC_COMPUTE);
            dc_cache_after_block(cache, i, x, 2);
        }
        dc_cache_destroy(cache);
        CHECK(books.n_live == 0 && books.calls == books.frees);
    }
}

int main(void)
{
    fbcache_costs_what_the_manual_says();
    memory_is_exact_for_every_setting();
    the_sum_that_overflows_is_refused();
    the_librarys_own_memory_is_counted_too();
    trim_gives_back_everything_and_the_cache_goes_on();
    over_budget_is_said_with_both_numbers_and_computes();
    a_run_that_fits_its_budget_to_the_byte_works_also_after_one_that_did_not();
    a_failed_allocation_computes_reports_and_leaves_the_cache_usable();
    destroying_in_mid_run_and_mid_pass_frees_everything();
    return 0;
}
