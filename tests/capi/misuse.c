/* Every way to hold the library wrong that it promises to survive: a defined answer, a text that names the
 * argument, a right output, and a cache that works again afterwards. */
#include "check.h"

/* ---- null ---- */

static void a_null_cache_means_caching_off(void)
{
    float v[TOY] = {1, 2, 3, 4, 5, 6, 7, 8};
    dc_tensor_t x = floats(v, TOY);
    dc_run_t run = DC_RUN_INIT;
    dc_pass_t pass = DC_PASS_INIT;
    dc_trace_t record;
    dc_stats_t stats;
    size_t n = 99;

    CHECK_OK(dc_cache_begin_run(NULL, &run));
    CHECK_OK(dc_cache_begin_pass(NULL, &pass));
    CHECK(dc_cache_before_block(NULL, 0, &x, NULL, 1) == DC_COMPUTE);
    dc_cache_after_block(NULL, 0, &x, 1);
    CHECK(dc_cache_before_layer(NULL, 0, DC_KIND_MLP, &x, 1) == DC_COMPUTE);
    CHECK(dc_cache_before_layer(NULL, UINT32_MAX, UINT32_MAX, NULL, 77) == DC_COMPUTE);
    dc_cache_after_layer(NULL, 0, &x, 1);
    CHECK(dc_cache_before_uncond(NULL, &pass, &x, &x) == DC_COMPUTE);
    CHECK(dc_cache_before_uncond(NULL, NULL, NULL, NULL) == DC_COMPUTE);
    CHECK_OK(dc_cache_after_uncond(NULL, &pass, &x, &x));
    CHECK_OK(dc_cache_after_uncond(NULL, NULL, NULL, NULL));
    CHECK(dc_cache_decide(NULL, DC_UNDECIDED) == DC_COMPUTE);
    CHECK(dc_cache_decide(NULL, DC_SKIP) == DC_COMPUTE);
    CHECK(dc_cache_peek(NULL, &pass, 0) == DC_COMPUTE);
    CHECK(dc_cache_peek(NULL, &pass, DC_LAYER(3)) == DC_COMPUTE);
    CHECK(dc_cache_peek(NULL, &pass, DC_UNCOND) == DC_COMPUTE);
    CHECK(dc_cache_peek(NULL, NULL, DC_MODEL) == DC_COMPUTE);
    CHECK_OK(dc_cache_end_pass(NULL));
    CHECK_OK(dc_cache_end_run(NULL));
    CHECK_OK(dc_cache_trim(NULL, NULL));
    memset(&stats, 0, sizeof stats);
    stats.struct_size = (uint32_t)sizeof stats;
    CHECK_OK(dc_cache_stats(NULL, &stats));
    CHECK(stats.passes == 0 && stats.errors == 0 && stats.first_error == DC_OK);
    CHECK_OK(dc_cache_trace(NULL, &record, sizeof record, 1, &n));
    CHECK(n == 0);
    dc_cache_destroy(NULL);
    for (int j = 0; j < TOY; j++) CHECK(v[j] == (float)(j + 1));
}

static void null_arguments_are_refused(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_options_t options = options_of("fbcache");
    dc_cache_t *cache = NULL;
    dc_shape_t shape;
    dc_trace_t record;
    uint64_t bytes = 0;
    size_t n = 0;
    char text[8];

    CHECK_STATUS(dc_engine_init(NULL, sizeof engine), DC_ERR_ARG);
    CHECK_STATUS(dc_options_init(NULL, sizeof options, "fbcache"), DC_ERR_ARG);
    CHECK_STATUS(dc_options_parse(NULL, "fbcache"), DC_ERR_ARG);
    CHECK_STATUS(dc_options_parse(&options, NULL), DC_ERR_ARG);
    CHECK_STATUS(dc_options_format(NULL, text, sizeof text, &n), DC_ERR_ARG);
    CHECK_STATUS(dc_options_format(&options, NULL, sizeof text, &n), DC_ERR_ARG);
    memset(&shape, 0, sizeof shape);
    CHECK_STATUS(dc_memory_needed(NULL, &options, &shape, 1, &bytes), DC_ERR_ARG);
    CHECK_STATUS(dc_memory_needed(&engine, NULL, &shape, 1, &bytes), DC_ERR_ARG);
    CHECK_STATUS(dc_memory_needed(&engine, &options, NULL, 1, &bytes), DC_ERR_ARG);
    CHECK_STATUS(dc_memory_needed(&engine, &options, &shape, 1, NULL), DC_ERR_ARG);
    CHECK_STATUS(dc_cache_create(&engine, &options, NULL), DC_ERR_ARG);
    cache = (dc_cache_t *)(void *)&record;
    CHECK_STATUS(dc_cache_create(NULL, &options, &cache), DC_ERR_ARG);
    CHECK(cache == NULL); /* caching is off, whatever the engine does with the status */
    CHECK_STATUS(dc_cache_create(&engine, NULL, &cache), DC_ERR_ARG);
    CHECK(cache == NULL);

    CHECK_OK(dc_cache_create(&engine, &options, &cache));
    CHECK_STATUS(dc_cache_begin_run(cache, NULL), DC_ERR_ARG);
    begin_run(cache, 4);
    CHECK_STATUS(dc_cache_begin_pass(cache, NULL), DC_ERR_ARG);
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_ARG);
    CHECK_STATUS(dc_cache_stats(cache, NULL), DC_ERR_ARG);
    CHECK_STATUS(dc_cache_trace(cache, NULL, sizeof record, 5, &n), DC_ERR_ARG);
    CHECK_OK(dc_cache_trace(cache, NULL, sizeof record, 0, &n)); /* asks how many */
    dc_cache_destroy(cache);
}

/* ---- sizes, magic, versions ---- */

struct newer_engine { dc_engine_t known; uint64_t future; };
struct newer_options { dc_options_t known; uint64_t future; };
struct newer_run { dc_run_t known; uint64_t future; };
struct newer_pass { dc_pass_t known; uint64_t future; };

static void sizes_no_struct_ever_had_are_refused(void)
{
    dc_engine_t engine;
    dc_options_t options;
    dc_stats_t stats;
    static const size_t sizes[] = {0, 1, 3, 7, (size_t)1 << 40, SIZE_MAX / 2, SIZE_MAX};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        CHECK_STATUS(dc_engine_init(&engine, sizes[k]), DC_ERR_ARG);
        CHECK_STATUS(dc_options_init(&options, sizes[k], "fbcache"), DC_ERR_ARG);
    }
    dc_engine_t good = an_engine(4, 1);
    dc_cache_t *cache = a_cache(&good, "fbcache"), *none = cache;
    options = options_of("fbcache");
    memset(&stats, 0, sizeof stats);
    CHECK_STATUS(dc_cache_stats(cache, &stats), DC_ERR_ARG); /* struct_size left 0 */
    CHECK_SAYS("struct_size");
    good.struct_size = UINT32_MAX;
    CHECK_STATUS(dc_cache_create(&good, &options, &none), DC_ERR_ARG);
    CHECK(none == NULL);
    good = an_engine(4, 1);
    options.struct_size = 5;
    CHECK_STATUS(dc_cache_create(&good, &options, &none), DC_ERR_ARG);
    dc_run_t run = DC_RUN_INIT;
    run.struct_size = 3;
    CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_ARG);
    begin_run(cache, 4);
    dc_pass_t pass = DC_PASS_INIT;
    pass.struct_size = 0;
    CHECK_STATUS(dc_cache_begin_pass(cache, &pass), DC_ERR_ARG);
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_ARG);
    dc_trace_t record;
    size_t n = 0;
    CHECK_STATUS(dc_cache_trace(cache, &record, 0, 1, &n), DC_ERR_ARG);
    dc_cache_destroy(cache);
}

/* A program compiled against an older header owns a shorter struct. */
static void nothing_is_written_past_struct_size(void)
{
    uint64_t memory[256];
    unsigned char *old = (unsigned char *)memory;
    size_t written;
    CHECK(sizeof(dc_engine_t) < sizeof memory && sizeof(dc_stats_t) < sizeof memory);
    for (size_t size = 0; size <= sizeof(dc_engine_t); size++) {
        memset(old, 0xee, sizeof memory);
        dc_status_t status = dc_engine_init((dc_engine_t *)(void *)memory, size);
        CHECK(status == DC_OK || status == DC_ERR_ARG);
        written = sizeof memory;
        while (written > 0 && old[written - 1] == 0xee) written--;
        CHECK(written <= size);
    }
    dc_engine_t engine = an_engine(4, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache");
    for (uint32_t size = 0; size <= sizeof(dc_stats_t); size++) {
        memset(old, 0xee, sizeof memory);
        memcpy(old, &size, sizeof size);
        dc_status_t status = dc_cache_stats(cache, (dc_stats_t *)(void *)memory);
        CHECK(status == DC_OK || status == DC_ERR_ARG);
        for (size_t j = size < 4 ? 4 : size; j < sizeof memory; j++) CHECK(old[j] == 0xee);
    }
    begin_run(cache, 8);
    toy_t toy = a_toy(cache, 4, 1, 0);
    (void)toy_step(&toy, 0, 1.0f);
    (void)toy_step(&toy, 1, 1.0f);
    for (size_t size = 16; size <= sizeof(dc_trace_t); size += 8) { /* two records, `size` bytes apart */
        size_t n = 0;
        uint32_t step;
        memset(old, 0xee, sizeof memory);
        CHECK_OK(dc_cache_trace(cache, (dc_trace_t *)(void *)memory, size, 2, &n));
        CHECK(n == 2);
        memcpy(&step, old + size, sizeof step);
        CHECK(step == 1);
        for (size_t j = 2 * size; j < sizeof memory; j++) CHECK(old[j] == 0xee);
    }
    dc_cache_destroy(cache);
}

static void a_newer_header_works_while_its_new_fields_are_unused(void)
{
    struct newer_engine engine;
    struct newer_options options;
    struct newer_run run = {DC_RUN_INIT, 0};
    struct newer_pass pass = {DC_PASS_INIT, 0};
    dc_cache_t *cache = NULL;
    uint64_t bytes = 0;
    size_t n = 0;
    memset(&engine, 0xff, sizeof engine);
    memset(&options, 0xff, sizeof options);
    CHECK_OK(dc_engine_init(&engine.known, sizeof engine));
    CHECK_OK(dc_options_init(&options.known, sizeof options, "fbcache"));
    CHECK(engine.future == 0 && options.future == 0);
    engine.known.hooks = DC_HOOK_EACH;
    engine.known.n_blocks = 4;
    CHECK_OK(dc_options_parse(&options.known, "threshold=0.3"));
    CHECK_OK(dc_options_format(&options.known, NULL, 0, &n));
    CHECK_OK(dc_cache_create(&engine.known, &options.known, &cache));
    run.known.struct_size = (uint32_t)sizeof run;
    run.known.n_steps = 4;
    pass.known.struct_size = (uint32_t)sizeof pass;
    CHECK_OK(dc_cache_begin_run(cache, &run.known));
    CHECK_OK(dc_cache_begin_pass(cache, &pass.known));
    CHECK(dc_cache_before_block(cache, 0, NULL, NULL, 0) == DC_COMPUTE);
    CHECK(dc_cache_end_pass(cache) != DC_ERR_VERSION);

    /* a used field of the future is refused, not ignored */
    run.future = 1;
    CHECK_STATUS(dc_cache_begin_run(cache, &run.known), DC_ERR_VERSION);
    run.future = 0;
    CHECK_OK(dc_cache_begin_run(cache, &run.known));
    pass.future = 1;
    CHECK_STATUS(dc_cache_begin_pass(cache, &pass.known), DC_ERR_VERSION);
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_VERSION);
    dc_cache_destroy(cache);
    engine.future = 1;
    CHECK_STATUS(dc_cache_create(&engine.known, &options.known, &cache), DC_ERR_VERSION);
    CHECK(cache == NULL);
    CHECK_STATUS(dc_memory_needed(&engine.known, &options.known, NULL, 0, &bytes), DC_ERR_VERSION);
    engine.future = 0;
    options.future = (uint64_t)1 << 63; /* the last byte of the tail counts as well */
    CHECK_STATUS(dc_cache_create(&engine.known, &options.known, &cache), DC_ERR_VERSION);
    CHECK_STATUS(dc_options_parse(&options.known, "threshold=0.3"), DC_ERR_VERSION);
    CHECK_STATUS(dc_options_format(&options.known, NULL, 0, &n), DC_ERR_VERSION);
}

static void structs_that_were_never_initialised_are_refused(void)
{
    static const int fills[] = {0x00, 0xa5, 0xff};
    dc_engine_t good_engine = an_engine(4, 1), engine;
    dc_options_t good_options = options_of("fbcache"), options;
    dc_cache_t *cache = NULL;
    size_t n = 0;
    uint64_t bytes = 0;
    for (size_t k = 0; k < sizeof fills / sizeof *fills; k++) {
        memset(&engine, fills[k], sizeof engine);
        memset(&options, fills[k], sizeof options);
        CHECK_STATUS(dc_cache_create(&engine, &good_options, &cache), DC_ERR_ARG);
        CHECK_SAYS("dc_engine_init");
        CHECK_STATUS(dc_cache_create(&good_engine, &options, &cache), DC_ERR_ARG);
        CHECK_SAYS("dc_options_init");
        CHECK(cache == NULL);
        CHECK_STATUS(dc_memory_needed(&engine, &good_options, NULL, 0, &bytes), DC_ERR_ARG);
        CHECK_STATUS(dc_options_parse(&options, "fbcache"), DC_ERR_ARG);
        CHECK_STATUS(dc_options_format(&options, NULL, 0, &n), DC_ERR_ARG);
    }
    /* the right size with the wrong magic: one struct where the other belongs */
    good_engine.magic = good_options.magic;
    CHECK_STATUS(dc_cache_create(&good_engine, &good_options, &cache), DC_ERR_ARG);
}

static void versions_and_names_agree(void)
{
    char text[32];
    CHECK(dc_version_number() == DC_VERSION_MAJOR * 10000u + DC_VERSION_MINOR * 100u + DC_VERSION_PATCH);
    snprintf(text, sizeof text, "%d.%d.%d", DC_VERSION_MAJOR, DC_VERSION_MINOR, DC_VERSION_PATCH);
    CHECK(strcmp(dc_version_string(), text) == 0);

    static const struct { dc_status_t status; const char *name; } names[] = {
        {DC_OK, "DC_OK"}, {DC_ERR_ARG, "DC_ERR_ARG"}, {DC_ERR_STATE, "DC_ERR_STATE"},
        {DC_ERR_HANDLE, "DC_ERR_HANDLE"}, {DC_ERR_BUSY, "DC_ERR_BUSY"}, {DC_ERR_SHAPE, "DC_ERR_SHAPE"},
        {DC_ERR_MEMORY, "DC_ERR_MEMORY"}, {DC_ERR_DEVICE, "DC_ERR_DEVICE"},
        {DC_ERR_UNSUPPORTED, "DC_ERR_UNSUPPORTED"}, {DC_ERR_VERSION, "DC_ERR_VERSION"},
        {DC_ERR_INTERNAL, "DC_ERR_INTERNAL"}, {DC_ERR_CAPTURE, "DC_ERR_CAPTURE"},
        {DC_ERR_DISCARD, "DC_ERR_DISCARD"},
    };
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        CHECK(strcmp(dc_status_name(names[k].status), names[k].name) == 0);
        CHECK(dc_status_name(names[k].status) == dc_status_name(names[k].status)); /* static */
    }
    static const dc_status_t unknown[] = {1, -12, -99, -101, INT32_MIN, INT32_MAX};
    for (size_t k = 0; k < sizeof unknown / sizeof *unknown; k++) {
        const char *name = dc_status_name(unknown[k]);
        CHECK(name != NULL && name[0] != '\0' && strcmp(name, "DC_OK") != 0);
    }
}

/* ---- create ---- */

static void refused(const dc_engine_t *engine, const dc_options_t *options, dc_status_t status, const char *word)
{
    dc_cache_t *cache = (dc_cache_t *)(void *)&status;
    CHECK_STATUS(dc_cache_create(engine, options, &cache), status);
    CHECK(cache == NULL);
    if (strstr(dc_last_error(), word) == NULL) {
        fprintf(stderr, "wanted the word %s\n", word);
        check_failed(__FILE__, __LINE__, "the text names what is wrong");
    }
}

static void *never_called_alloc(void *user, size_t size, void *stream)
{
    (void)user, (void)size, (void)stream;
    abort();
}

static void never_called_free(void *user, void *data, size_t size, void *stream)
{
    (void)user, (void)data, (void)size, (void)stream;
    abort();
}

static void engines_that_make_no_sense_are_refused_by_name(void)
{
    dc_options_t options = options_of("fbcache");
    dc_engine_t engine;
#define REFUSED(field, value, status)                 \
    do {                                              \
        engine = an_engine(4, 2);                     \
        engine.field = (value);                       \
        refused(&engine, &options, (status), #field); \
    } while (0)
    REFUSED(backend, 7, DC_ERR_ARG);
    REFUSED(hooks, 0, DC_ERR_ARG);
    REFUSED(hooks, 1u << 20, DC_ERR_ARG);
    REFUSED(flags, 1u << 20, DC_ERR_ARG);
    REFUSED(n_blocks, 0, DC_ERR_ARG);
    REFUSED(n_branches, 0, DC_ERR_ARG);
    REFUSED(n_branches, DC_MAX_BRANCHES + 1, DC_ERR_ARG);
    REFUSED(max_stacked, 0, DC_ERR_ARG);
    REFUSED(max_stacked, DC_MAX_BRANCHES + 1, DC_ERR_ARG);
    REFUSED(measure, 0, DC_ERR_ARG);                     /* the rule would have nothing to judge by */
    REFUSED(measure, 1u << DC_MAX_TENSORS, DC_ERR_ARG);
    REFUSED(mem_alloc, never_called_alloc, DC_ERR_ARG);  /* both or neither */
    REFUSED(mem_free, never_called_free, DC_ERR_ARG);
    REFUSED(n_layers, 5, DC_ERR_ARG);                    /* without the hook */
    CHECK_SAYS("DC_HOOK_LAYERS");
    REFUSED(uncond_branch, DC_MAX_BRANCHES, DC_ERR_ARG);
    REFUSED(reserved0, 1, DC_ERR_VERSION);
#undef REFUSED
    static const uint32_t n_layers[] = {0, (1u << 20) + 1, UINT32_MAX};
    for (size_t k = 0; k < sizeof n_layers / sizeof *n_layers; k++) { /* the hook without layers, and with too many */
        engine = an_engine(4, 2);
        engine.hooks |= DC_HOOK_LAYERS;
        engine.n_layers = n_layers[k];
        refused(&engine, &options, DC_ERR_ARG, "n_layers");
        CHECK_SAYS("DC_HOOK_LAYERS");
        CHECK_SAYS("1048576");
    }

    /* a label without its end is cut, not read past */
    dc_cache_t *cache = NULL;
    engine = an_engine(4, 1);
    memset(engine.label, 'x', sizeof engine.label);
    CHECK_OK(dc_cache_create(&engine, &options, &cache));
    dc_cache_destroy(cache);
}

static void methods_that_need_another_hook_are_refused_by_its_name(void)
{
    static const struct { const char *text; uint32_t hooks; const char *hook; } needs[] = {
        {"fbcache", DC_HOOK_MODEL, "DC_HOOK_BLOCKS"},
        {"mask,mask=1010,scope=model", DC_HOOK_EACH, "DC_HOOK_MODEL"},
        {"fbcache,scope=block", DC_HOOK_BLOCKS, "DC_HOOK_EACH"},
        {"mask,mask=10,scope=layers,on_residual=0", DC_HOOK_EACH, "DC_HOOK_LAYERS"},
        {"taylorseer", DC_HOOK_EACH | DC_HOOK_BLOCKS | DC_HOOK_MODEL, "DC_HOOK_LAYERS"},
        {"pab", DC_HOOK_GUIDE | DC_HOOK_EACH, "DC_HOOK_LAYERS"},
        {"fastercache", DC_HOOK_LAYERS, "DC_HOOK_GUIDE"},
        {"fbcache,guidance.every=2", DC_HOOK_EACH, "DC_HOOK_GUIDE"},
    };
    for (size_t k = 0; k < sizeof needs / sizeof *needs; k++) {
        dc_engine_t engine = an_engine(4, 2);
        dc_options_t options = options_of(needs[k].text);
        engine.hooks = needs[k].hooks;
        engine.n_layers = engine.hooks & DC_HOOK_LAYERS ? 4 : 0;
        refused(&engine, &options, DC_ERR_UNSUPPORTED, needs[k].hook);
        CHECK(strstr(dc_last_error(), options.preset) != NULL);
    }
    dc_engine_t engine = an_engine(4, 1);
    engine.hooks = DC_HOOK_BLOCKS; /* the boundary blocks are all that fbcache asks for */
    dc_cache_destroy(a_cache(&engine, "fbcache"));
    engine.hooks = DC_HOOK_LAYERS; /* no block, no stack: layers are all that an engine need have */
    engine.n_blocks = 0;
    engine.n_layers = 4;
    dc_cache_destroy(a_cache(&engine, "pab"));

    /* a branch that may be left out has to be one of the engine's */
    dc_options_t guided = options_of("none,guidance.every=5");
    for (uint32_t branches = 1; branches <= 2; branches++) {
        engine = an_engine(4, branches);
        engine.hooks |= DC_HOOK_GUIDE;
        engine.uncond_branch = branches;
        refused(&engine, &guided, DC_ERR_UNSUPPORTED, "uncond_branch");
        CHECK(strstr(dc_last_error(), branches == 1 ? "n_branches is 1" : "n_branches is 2") != NULL);
        CHECK_SAYS("guidance.every");
        engine.uncond_branch = 0;
        dc_cache_destroy(a_cache(&engine, "none,guidance.every=5"));
        engine.uncond_branch = branches; /* without guidance it does not matter */
        dc_cache_destroy(a_cache(&engine, "none,guidance.every=1"));
    }
}

/* Options that are fine each by itself and not together. */
static void combinations_that_can_never_skip_are_refused_with_the_reason(void)
{
    static const struct { const char *text; dc_status_t status; const char *word, *reason; } cases[] = {
        {"taylorseer,on_residual=1", DC_ERR_UNSUPPORTED, "on_residual=0", "scope=layers"},
        {"taylorseer,rule=change", DC_ERR_UNSUPPORTED, "rule=change", "layers"},
        {"mask,mask=10,scope=model,rule=change", DC_ERR_UNSUPPORTED, "rule=change", "model"},
        {"fbcache,front_blocks=0", DC_ERR_ARG, "front_blocks is 0", "rule=change"},
        {"fbcache,scope=block,front_blocks=0", DC_ERR_ARG, "front_blocks is 0", "rule=change"},
        {"none,rule=schedule", DC_ERR_ARG, "rule=schedule", "every"},
        {"none,rule=schedule,every=1", DC_ERR_ARG, "every is 1", "2 and above"},
        {"none,rule=schedule,window=0.1:0.8", DC_ERR_ARG, "rule=schedule", "mask"},
        {"mask", DC_ERR_ARG, "mask", "rule=schedule"},
        {"mask,mask=111", DC_ERR_ARG, "mask with a 0", "rule=schedule"},
        {"pab,spatial.every=auto,every=none", DC_ERR_ARG, "spatial.every", "mlp.at"},
        {"pab,spatial.every=1", DC_ERR_ARG, "spatial.every", "rule=schedule"},
        {"none,rule=schedule,scope=layers,on_residual=0,mlp.at=0.5,mlp.every=1", DC_ERR_ARG, "mlp.at", "never skips"},
        {"mask,mask=10,lagged=1", DC_ERR_UNSUPPORTED, "lagged=1", "rule=change"},
        {"mask,mask=10,compat=diffusers", DC_ERR_UNSUPPORTED, "compat=diffusers", "mask"},
        {"mask,mask=10,compat=paper", DC_ERR_UNSUPPORTED, "compat=paper", "mask"},
        {"none,rule=schedule,every=2,estimator=taylor,compat=diffusers", DC_ERR_UNSUPPORTED, "on_residual=0", "taylor"},
        {"mask,mask=10,scope=block,front_blocks=3,back_blocks=1", DC_ERR_ARG, "front_blocks is 3", "back_blocks is 1"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        dc_engine_t engine = an_engine(4, 2);
        dc_options_t options = options_of(cases[k].text);
        engine.hooks |= DC_HOOK_LAYERS | DC_HOOK_MODEL | DC_HOOK_GUIDE;
        engine.n_layers = 4;
        refused(&engine, &options, cases[k].status, cases[k].word);
        if (strstr(dc_last_error(), cases[k].reason) == NULL) fprintf(stderr, "%s\n", cases[k].text);
        CHECK(strstr(dc_last_error(), cases[k].reason) != NULL);
    }
}

static void a_stack_without_a_skippable_block_is_refused(void)
{
    static const struct { uint32_t blocks; const char *text, *value; } stacks[] = {
        {1, "fbcache", "1"},
        {4, "dbcache,front_blocks=4", "4"},
        {4, "dbcache,front_blocks=3,back_blocks=1", "3"},
        {4, "dbcache,front_blocks=1,back_blocks=3", "3"},
        {4, "dbcache,front_blocks=4294967295,back_blocks=2", "4294967295"}, /* their sum overflows */
        {8, "dbcache", "8"},
    };
    for (size_t k = 0; k < sizeof stacks / sizeof *stacks; k++) {
        dc_engine_t engine = an_engine(stacks[k].blocks, 1);
        dc_options_t options = options_of(stacks[k].text);
        char allowed[16];
        refused(&engine, &options, DC_ERR_ARG, "front_blocks");
        CHECK_SAYS("back_blocks");
        CHECK(strstr(dc_last_error(), stacks[k].value) != NULL);
        snprintf(allowed, sizeof allowed, "%u", stacks[k].blocks); /* n_blocks: what the sum must stay below */
        CHECK(strstr(dc_last_error(), allowed) != NULL);
    }
    dc_engine_t one = an_engine(1, 1); /* one block is enough where nothing is measured on a front */
    dc_cache_destroy(a_cache(&one, "mask,mask=10,front_blocks=0"));
}

static void options_that_make_no_sense_are_refused_by_name(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_options_t options;
#define REFUSED(field, value, status)                 \
    do {                                              \
        options = options_of("fbcache");              \
        options.field = (value);                      \
        refused(&engine, &options, (status), #field); \
    } while (0)
    REFUSED(rule, 99, DC_ERR_ARG);
    REFUSED(scope, 99, DC_ERR_ARG);
    REFUSED(estimator, 99, DC_ERR_ARG);
    REFUSED(compat, 99, DC_ERR_ARG);
    REFUSED(history_dtype, 99, DC_ERR_ARG);
    REFUSED(on_residual, 2, DC_ERR_ARG);
    REFUSED(lagged, 2, DC_ERR_ARG);
    REFUSED(share, 2, DC_ERR_ARG);
    REFUSED(order, 5, DC_ERR_ARG);
    REFUSED(fill, 0, DC_ERR_ARG);
    REFUSED(threshold, 0.0, DC_ERR_ARG);
    REFUSED(threshold, -0.1, DC_ERR_ARG);
    REFUSED(threshold, (double)NAN, DC_ERR_ARG);
    REFUSED(max_error, (double)NAN, DC_ERR_ARG);
    REFUSED(max_run_error, (double)NAN, DC_ERR_ARG);
    REFUSED(max_gain, (double)NAN, DC_ERR_ARG);
    REFUSED(mask_len, DC_MAX_STEPS + 1, DC_ERR_ARG);
    REFUSED(front_blocks, 0, DC_ERR_ARG); /* the change of the front's residual needs a front */
#undef REFUSED
    options = options_of("mask,mask=1010");
    options.mask[2] = 7;
    refused(&engine, &options, DC_ERR_ARG, "mask");
}

/* The later fields: named as in a text. `preset` decides nothing here: numbers that make no sense are refused also where
 * the method does without them. */
static void later_options_that_make_no_sense_are_refused_by_name(void)
{
    static const char *const presets[] = {"none", "pab", "fbcache"};
    dc_engine_t engine = an_engine(4, 2);
    dc_options_t options;
    engine.hooks |= DC_HOOK_LAYERS | DC_HOOK_GUIDE;
    engine.n_layers = 4;
    for (size_t p = 0; p < sizeof presets / sizeof *presets; p++) {
#define REFUSED(status, word, value, ...)               \
    do {                                                \
        options = options_of(presets[p]);               \
        __VA_ARGS__;                                    \
        refused(&engine, &options, (status), (word));   \
        CHECK_SAYS(value);                              \
    } while (0)
#define WINDOW(field, name)                                                                                  \
    do {                                                                                                     \
        REFUSED(DC_ERR_ARG, name " is 0.8:0.2", "low < high", options.field[0] = 0.8; options.field[1] = 0.2); \
        REFUSED(DC_ERR_ARG, name " is 0.5:0.5", "low < high", options.field[0] = 0.5; options.field[1] = 0.5); \
        REFUSED(DC_ERR_ARG, name " is 0.5:0", "low < high", options.field[0] = 0.5; options.field[1] = 0.0);   \
        REFUSED(DC_ERR_ARG, name " is NaN:1", "low:high", options.field[0] = NAN; options.field[1] = 1.0);     \
        REFUSED(DC_ERR_ARG, name " is 0:NaN", "low:high", options.field[0] = 0.0; options.field[1] = NAN);     \
        REFUSED(DC_ERR_ARG, name " is 0:inf", "low:high", options.field[0] = 0.0; options.field[1] = INFINITY); \
        REFUSED(DC_ERR_ARG, name " is -inf:1", "low:high", options.field[0] = -INFINITY; options.field[1] = 1.0); \
    } while (0)
        WINDOW(window, "window");
        WINDOW(kind_window[DC_KIND_SPATIAL], "spatial.window");
        WINDOW(kind_window[DC_KIND_TEMPORAL], "temporal.window");
        WINDOW(kind_window[DC_KIND_CROSS], "cross.window");
        WINDOW(kind_window[DC_KIND_MLP], "mlp.window");
        WINDOW(guide_window, "guidance.window");
        WINDOW(guide_low_window, "guidance.low_window");
        WINDOW(guide_high_window, "guidance.high_window");
        REFUSED(DC_ERR_ARG, "order is 5", "0 to 4", options.order = 5);
        REFUSED(DC_ERR_ARG, "scope is 4", "0 to 3", options.scope = 4);
        REFUSED(DC_ERR_ARG, "rule is 3", "0 to 2", options.rule = 3);
        REFUSED(DC_ERR_ARG, "estimator is 6", "0 to 5", options.estimator = 6);
        REFUSED(DC_ERR_ARG, "compat is 3", "0 to 2", options.compat = 3);
        REFUSED(DC_ERR_ARG, "cond_only is 2", "1", options.cond_only = 2);
        REFUSED(DC_ERR_ARG, "mlp.skips is 0", "1 and above", options.mlp_skips = 0);
        REFUSED(DC_ERR_ARG, "warmup_interval is 0", "1 and above", options.warmup_interval = 0);
        REFUSED(DC_ERR_ARG, "n_mlp_at is 17", "16", options.n_mlp_at = DC_MAX_MARKS + 1);
        REFUSED(DC_ERR_ARG, "n_mlp_at is 4294967295", "16", options.n_mlp_at = UINT32_MAX);
        REFUSED(DC_ERR_ARG, "mlp.at has 0,", "above 0", options.n_mlp_at = 2; options.mlp_at[0] = 0.5);
        REFUSED(DC_ERR_ARG, "mlp.at has -0.5", "above 0", options.n_mlp_at = 1; options.mlp_at[0] = -0.5);
        REFUSED(DC_ERR_ARG, "mlp.at has NaN", "above 0", options.n_mlp_at = 1; options.mlp_at[0] = NAN);
        REFUSED(DC_ERR_ARG, "mlp.at has inf", "above 0", options.n_mlp_at = 1; options.mlp_at[0] = INFINITY);
        REFUSED(DC_ERR_ARG, "weight is NaN", "finite", options.weight[0] = NAN);
        REFUSED(DC_ERR_ARG, "weight is inf", "finite", options.weight[1] = INFINITY);
        REFUSED(DC_ERR_ARG, "scale is 0", "above 0", options.scale = 0);
        REFUSED(DC_ERR_ARG, "scale is -1", "above 0", options.scale = -1);
        REFUSED(DC_ERR_ARG, "scale is NaN", "above 0", options.scale = NAN);
        REFUSED(DC_ERR_ARG, "guidance.low is NaN", "finite", options.guide_low = NAN);
        REFUSED(DC_ERR_ARG, "guidance.high is -inf", "finite", options.guide_high = -INFINITY);
        /* what this version does not know */
        REFUSED(DC_ERR_VERSION, "reserved0", "0", options.reserved0 = 1);
        REFUSED(DC_ERR_VERSION, "reserved1", "0", options.reserved1 = 1);
        REFUSED(DC_ERR_VERSION, "table", "0", options.n_table = 1);
        REFUSED(DC_ERR_VERSION, "table", "0", options.table[DC_MAX_TABLE - 1] = 1e-300);
        REFUSED(DC_ERR_VERSION, "kind_", "4", options.kind_every[4] = 2);
        REFUSED(DC_ERR_VERSION, "kind_", "4", options.kind_layers[DC_MAX_KINDS - 1] = 2);
        REFUSED(DC_ERR_VERSION, "kind_", "4", options.kind_window[5][1] = 0.5);
#undef WINDOW
#undef REFUSED
    }
    /* windows may reach past both ends: such bounds are never met */
    options = options_of("pab");
    options.window[0] = -1.0, options.window[1] = 7.0;
    dc_cache_t *cache = NULL;
    CHECK_OK(dc_cache_create(&engine, &options, &cache));
    dc_cache_destroy(cache);
}

/* ---- runs and passes ---- */

static void runs_that_make_no_sense_are_refused(void)
{
    dc_engine_t engine = an_engine(4, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache");
    const float times[4] = {1000, 700, 400, 100};
    dc_tensor_t x = floats(NULL, TOY);
    dc_shape_t shape;
    dc_run_t run;
    memset(&shape, 0, sizeof shape);
    shape.hook = DC_HOOK_EACH;
    shape.branch = UINT32_MAX;
    shape.count = 1;
    shape.tensors = &x;
    shape.n = 1;
#define REFUSED(word, ...)                                           \
    do {                                                             \
        dc_run_t fresh = DC_RUN_INIT;                                \
        run = fresh;                                                 \
        run.n_steps = 4;                                             \
        __VA_ARGS__;                                                 \
        CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_ARG);   \
        CHECK_SAYS(word);                                            \
    } while (0)
    REFUSED("end_step", run.end_step = 5);
    REFUSED("first_step", run.first_step = 4);
    REFUSED("first_step", run.first_step = 3; run.end_step = 3);
    REFUSED("timestep_max", run.timesteps = times);
    REFUSED("timestep_max", run.timesteps = times; run.timestep_max = -1.0f);
    REFUSED("timestep_max", run.timesteps = times; run.timestep_max = NAN);
    REFUSED("n_steps", run.n_steps = 0; run.timesteps = times; run.timestep_max = 1000);
    REFUSED("shapes", run.n_shapes = 1);
    REFUSED("hook", run.n_shapes = 1; run.shapes = &shape; shape.hook = 0);
    REFUSED("hook", run.n_shapes = 1; run.shapes = &shape; shape.hook = DC_HOOK_EACH | DC_HOOK_MODEL);
    REFUSED("branch", run.n_shapes = 1; run.shapes = &shape; shape.hook = DC_HOOK_EACH; shape.branch = 1);
    REFUSED("shape", run.n_shapes = 1; run.shapes = &shape; shape.branch = 0; x.shape[0] = -1);
    REFUSED("tensors", run.n_shapes = 1; run.shapes = &shape; x.shape[0] = TOY; shape.tensors = NULL);
#undef REFUSED
    /* after a refused run a pass has nothing to stand on: it computes, and says so */
    toy_t toy = a_toy(cache, 4, 1, 0);
    dc_pass_t pass = pass_of(0, 0);
    outcome_t outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(outcome.decision == 'C' && outcome.began == DC_ERR_STATE && outcome.ended == DC_ERR_STATE);
    begin_run(cache, 4);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    dc_cache_destroy(cache);
}

/* A pass that is refused computes everything, end_pass says why again, and the next pass is served as ever. */
static void passes_that_make_no_sense_compute_and_say_so(void)
{
    dc_engine_t engine = an_engine(4, 2);
    engine.max_stacked = 2;
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS);
    toy_t toy = a_toy(cache, 4, 1, 0);
    uint32_t step = 0;
    begin_run(cache, 100);
    CHECK(toy_step(&toy, step++, 1.0f) == 'C');
#define REFUSED(status, word, ...)                                                    \
    do {                                                                              \
        dc_pass_t pass = pass_of(step, 0);                                            \
        __VA_ARGS__;                                                                  \
        outcome_t outcome = toy_pass(&toy, &pass, 1.0f);                              \
        CHECK_STATUS(outcome.began, (status));                                        \
        CHECK_STATUS(outcome.ended, (status));                                        \
        CHECK_SAYS(word);                                                             \
        CHECK(outcome.decision == 'C');                                               \
        CHECK(toy_step(&toy, ++step, 1.0f) == 's'); /* what was kept is still good */ \
        step++;                                                                       \
    } while (0)
    REFUSED(DC_ERR_ARG, "branch", pass.branches[0] = 2);
    REFUSED(DC_ERR_ARG, "branch", pass.branches[0] = UINT32_MAX);
    REFUSED(DC_ERR_ARG, "n_branches", pass.n_branches = 0);
    REFUSED(DC_ERR_ARG, "n_branches", pass.n_branches = DC_MAX_BRANCHES + 1);
    REFUSED(DC_ERR_ARG, "n_branches", pass.n_branches = UINT32_MAX);
    REFUSED(DC_ERR_ARG, "branch", pass.n_branches = 2; pass.branches[1] = 0); /* branch 0 twice */
    REFUSED(DC_ERR_ARG, "flags", pass.flags = 1u << 31);
    REFUSED(DC_ERR_ARG, "step", pass.step = 100);
    REFUSED(DC_ERR_ARG, "step", pass.step = UINT32_MAX);
    REFUSED(DC_ERR_STATE, "step", pass.step = step - 1); /* seen before */
    REFUSED(DC_ERR_STATE, "step", pass.step = 0);        /* falling */
#undef REFUSED
    dc_cache_destroy(cache);

    /* more branches in one pass than the engine said */
    engine.max_stacked = 1;
    cache = a_cache(&engine, "fbcache");
    begin_run(cache, 4);
    dc_pass_t both = DC_PASS_INIT;
    both.n_branches = 2;
    both.branches[1] = 1;
    CHECK_STATUS(dc_cache_begin_pass(cache, &both), DC_ERR_ARG);
    CHECK_SAYS("max_stacked");
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_ARG);
    dc_cache_destroy(cache);
}

static void rows_that_do_not_divide_by_the_branches_are_refused(void)
{
    float v[6] = {1, 2, 3, 4, 5, 6};
    dc_engine_t engine = an_engine(2, 2);
    engine.max_stacked = 2;
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.5," NO_RAILS);
    dc_pass_t both = DC_PASS_INIT;
    both.n_branches = 2;
    both.branches[1] = 1;
    begin_run(cache, 10);
    for (uint32_t rows = 1; rows <= 3; rows++) {
        dc_tensor_t x = rows_of(v, rows, 2, 2);
        both.step = rows;
        CHECK_OK(dc_cache_begin_pass(cache, &both));
        CHECK(dc_cache_before_block(cache, 0, &x, NULL, 1) == DC_COMPUTE);
        dc_cache_after_block(cache, 0, &x, 1);
        CHECK(dc_cache_before_block(cache, 1, &x, NULL, 1) == DC_COMPUTE);
        dc_cache_after_block(cache, 1, &x, 1);
        CHECK_STATUS(dc_cache_end_pass(cache), rows == 2 ? DC_OK : DC_ERR_ARG);
    }
    dc_cache_destroy(cache);
}

static void n_steps_unknown_is_legal(void)
{
    char text[64];
    toy_t toy = an_fbcache_toy(4, 1);
    begin_run(toy.cache, 0);
    CHECK(strcmp(toy_decisions(&toy, 0, 6, text), "Csssss") == 0);
    dc_pass_t pass = pass_of(1000000, 0);
    CHECK(toy_pass(&toy, &pass, 1.0f).ended == DC_OK);
    dc_cache_destroy(toy.cache);
}

/* ---- calls out of order ---- */

static void calls_out_of_order_compute_and_say_so(void)
{
    toy_t toy = an_fbcache_toy(4, 1);
    dc_cache_t *cache = toy.cache;
    dc_tensor_t x = floats(toy.x, TOY);
    dc_pass_t pass = pass_of(0, 0);
    outcome_t outcome;

    /* no run */
    outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(outcome.decision == 'C' && outcome.began == DC_ERR_STATE && outcome.ended == DC_ERR_STATE);

    /* no pass */
    begin_run(cache, 40);
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_STATE);
    CHECK(dc_cache_before_block(cache, 0, &x, NULL, 1) == DC_COMPUTE);
    dc_cache_after_block(cache, 0, &x, 1);
    CHECK(dc_cache_decide(cache, DC_SKIP) == DC_COMPUTE);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    CHECK(toy_step(&toy, 1, 1.0f) == 's');

    /* a pass inside a pass: the old one is cancelled, the new one computes */
    pass = pass_of(2, 0);
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    CHECK(dc_cache_before_block(cache, 0, &x, NULL, 1) == DC_COMPUTE);
    pass = pass_of(3, 0);
    outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(outcome.decision == 'C' && outcome.began == DC_ERR_STATE && outcome.ended == DC_ERR_STATE);
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_STATE); /* and there is no pass left to end */
    (void)toy_step(&toy, 4, 1.0f);
    CHECK(toy_step(&toy, 5, 1.0f) == 's');

    /* the front was never shown: nothing can be measured */
    pass = pass_of(6, 0);
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    for (uint32_t i = 1; i < 4; i++) {
        CHECK(dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE);
        dc_cache_after_block(cache, i, &x, 1);
    }
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_STATE);

    /* backwards */
    pass = pass_of(7, 0);
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    (void)dc_cache_decide(cache, DC_COMPUTE);
    for (uint32_t i = 4; i-- > 0;) {
        CHECK(dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE);
        dc_cache_after_block(cache, i, &x, 1);
    }
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_STATE);

    /* the span's end was never reported */
    pass = pass_of(8, 0);
    pass.flags = DC_PASS_COMPUTE;
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    CHECK(dc_cache_before_block(cache, 0, &x, NULL, 1) == DC_COMPUTE);
    dc_cache_after_block(cache, 0, &x, 1);
    CHECK(dc_cache_before_block(cache, 1, &x, NULL, 1) == DC_COMPUTE);
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_STATE);

    /* block numbers that do not exist */
    pass = pass_of(9, 0);
    CHECK_OK(dc_cache_begin_pass(cache, &pass));
    CHECK(dc_cache_before_block(cache, 77, &x, NULL, 1) == DC_COMPUTE);
    CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_ARG);
    CHECK_SAYS("77");

    /* none of it did any harm */
    (void)toy_step(&toy, 10, 1.0f);
    CHECK(toy_step(&toy, 11, 1.0f) == 's');

    /* end_run closes the run */
    CHECK_OK(dc_cache_end_run(cache));
    pass = pass_of(12, 0);
    outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(outcome.decision == 'C' && outcome.ended == DC_ERR_STATE);
    dc_cache_destroy(cache);
}

static void running_a_skipped_block_is_the_one_thing_to_discard(void)
{
    toy_t toy = an_fbcache_toy(4, 1);
    dc_pass_t pass = pass_of(1, 0);
    begin_run(toy.cache, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    toy_input(&toy, 1.0f);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    for (uint32_t i = 0; i < 4; i++) { /* an engine that does not listen */
        dc_tensor_t x = floats(toy.x, TOY);
        CHECK(dc_cache_before_block(toy.cache, i, &x, NULL, 1) == (i == 0 ? DC_COMPUTE : DC_SKIP));
        toy_block(toy.x, TOY, i);
        dc_cache_after_block(toy.cache, i, &x, 1);
    }
    CHECK_STATUS(dc_cache_end_pass(toy.cache), DC_ERR_DISCARD);
    CHECK(stats_of(toy.cache).discarded == 1);
    /* redo as the manual says: a later evaluation number, computed */
    pass = pass_of(2, 0);
    pass.flags = DC_PASS_COMPUTE;
    outcome_t outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK(outcome.ended == DC_OK && outcome.decision == 'C');
    CHECK(toy_step(&toy, 3, 1.0f) == 's');
    dc_cache_destroy(toy.cache);
}

/* The discarded evaluation itself may be redone under its own number. */
static void a_discarded_pass_can_be_redone_at_its_own_step(void)
{
    toy_t toy = an_fbcache_toy(4, 1);
    dc_pass_t pass = pass_of(1, 0);
    dc_tensor_t x = floats(toy.x, TOY);
    begin_run(toy.cache, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    toy_input(&toy, 1.0f);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    CHECK(dc_cache_before_block(toy.cache, 0, &x, NULL, 1) == DC_COMPUTE);
    toy_block(toy.x, TOY, 0);
    dc_cache_after_block(toy.cache, 0, &x, 1);
    CHECK(dc_cache_before_block(toy.cache, 1, &x, NULL, 1) == DC_SKIP);
    dc_cache_after_block(toy.cache, 1, &x, 1);
    CHECK_STATUS(dc_cache_end_pass(toy.cache), DC_ERR_DISCARD);
    pass.flags = DC_PASS_COMPUTE;
    outcome_t outcome = toy_pass(&toy, &pass, 1.0f);
    CHECK_OK(outcome.began);
    CHECK_OK(outcome.ended);
    CHECK(outcome.decision == 'C');
    dc_cache_destroy(toy.cache);
}

static void an_error_after_a_reuse_never_computes_on_top_of_it(void)
{
    toy_t toy = an_fbcache_toy(4, 1);
    dc_pass_t pass = pass_of(1, 0);
    begin_run(toy.cache, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    toy_input(&toy, 1.0f);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    for (uint32_t i = 0; i < 4; i++) {
        dc_tensor_t x = floats(toy.x, TOY);
        int bad = i >= 2; /* nonsense once the span is entered */
        if (bad) x.shape[0] = -1;
        if (dc_cache_before_block(toy.cache, i, &x, NULL, bad ? 77 : 1) == DC_COMPUTE) {
            CHECK(i == 0);
            toy_block(toy.x, TOY, i);
            dc_cache_after_block(toy.cache, i, &x, 1);
        }
    }
    CHECK(dc_cache_end_pass(toy.cache) != DC_ERR_DISCARD);
    toy_verify(&toy, 1.0f, 1, 0);
    dc_cache_destroy(toy.cache);
}

/* ---- unknown numbers ---- */

static void unknown_numbers_are_answered_not_obeyed(void)
{
    toy_t toy = an_fbcache_toy(4, 1);
    dc_pass_t pass = pass_of(1, 0);
    dc_action_t action;
    begin_run(toy.cache, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');

    action = dc_cache_peek(toy.cache, &pass, 77); /* no such block: it can never be skipped */
    CHECK(action != DC_SKIP);
    pass.branches[0] = 9;
    CHECK(dc_cache_peek(toy.cache, &pass, 1) != DC_SKIP);

    pass = pass_of(1, 0);
    toy_input(&toy, 1.0f);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    CHECK(dc_cache_decide(toy.cache, 77) != DC_SKIP);
    CHECK(!toy_walk(&toy));
    CHECK_STATUS(dc_cache_end_pass(toy.cache), DC_ERR_ARG);
    toy_verify(&toy, 1.0f, 0, 0);
    dc_cache_destroy(toy.cache);

    CHECK_STATUS(dc_backend_prepare(99, 0), DC_ERR_ARG);
    CHECK_OK(dc_backend_prepare(DC_BACKEND_CPU, 0));
    CHECK_OK(dc_backend_prepare(DC_BACKEND_CPU, -1));
}

/* ---- handles ---- */

static void dead_and_wild_handles_are_named_errors(void)
{
    uint64_t junk[8] = {0};
    float kept[TOY];
    toy_t toy = an_fbcache_toy(4, 1);
    dc_cache_t *dead = toy.cache;
    begin_run(dead, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    dc_cache_destroy(dead);
    dc_cache_t *handles[] = {
        dead, (dc_cache_t *)(void *)junk, (dc_cache_t *)(void *)(junk + 1),
        (dc_cache_t *)(uintptr_t)1, (dc_cache_t *)UINTPTR_MAX, (dc_cache_t *)(UINTPTR_MAX / 2),
    };
    for (size_t k = 0; k < sizeof handles / sizeof *handles; k++) {
        dc_cache_t *cache = handles[k];
        dc_run_t run = DC_RUN_INIT;
        dc_pass_t pass = DC_PASS_INIT;
        dc_stats_t stats;
        dc_trace_t record;
        size_t n = 0;
        memset(&stats, 0, sizeof stats);
        stats.struct_size = (uint32_t)sizeof stats;
        CHECK_STATUS(dc_cache_begin_run(cache, &run), DC_ERR_HANDLE);
        CHECK_STATUS(dc_cache_begin_pass(cache, &pass), DC_ERR_HANDLE);
        toy.cache = cache;
        toy_input(&toy, 1.0f);
        CHECK(!toy_walk(&toy)); /* an engine that goes on computes, and its output is right */
        toy_verify(&toy, 1.0f, 0, 0);
        dc_tensor_t x = floats(toy.x, TOY), apart = floats(kept, TOY);
        memcpy(kept, toy.x, sizeof kept);
        CHECK(dc_cache_before_layer(cache, 0, DC_KIND_MLP, &x, 1) == DC_COMPUTE);
        dc_cache_after_layer(cache, 0, &x, 1);
        CHECK(dc_cache_before_uncond(cache, &pass, &apart, &x) == DC_COMPUTE);
        CHECK_STATUS(dc_cache_after_uncond(cache, &pass, &apart, &x), DC_ERR_HANDLE);
        CHECK(memcmp(kept, toy.x, sizeof kept) == 0);
        CHECK(dc_cache_decide(cache, DC_SKIP) == DC_COMPUTE);
        CHECK(dc_cache_peek(cache, &pass, 1) == DC_COMPUTE);
        CHECK(dc_cache_peek(cache, &pass, DC_LAYER(0)) == DC_COMPUTE);
        CHECK(dc_cache_peek(cache, &pass, DC_UNCOND) == DC_COMPUTE);
        CHECK_STATUS(dc_cache_end_pass(cache), DC_ERR_HANDLE);
        CHECK_STATUS(dc_cache_end_run(cache), DC_ERR_HANDLE);
        CHECK_STATUS(dc_cache_trim(cache, NULL), DC_ERR_HANDLE);
        CHECK_STATUS(dc_cache_stats(cache, &stats), DC_ERR_HANDLE);
        CHECK_STATUS(dc_cache_trace(cache, &record, sizeof record, 1, &n), DC_ERR_HANDLE);
        dc_cache_destroy(cache); /* once more */
        dc_cache_destroy(cache);
    }
}

/* Its own cache destroyed in the middle of a skipped range: the answer stays, the output is right. */
static void destroying_in_the_middle_of_a_pass_keeps_its_output_right(void)
{
    toy_t toy = an_fbcache_toy(4, 1);
    dc_pass_t pass = pass_of(1, 0);
    dc_tensor_t x = floats(toy.x, TOY);
    begin_run(toy.cache, 10);
    CHECK(toy_step(&toy, 0, 1.0f) == 'C');
    toy_input(&toy, 1.0f);
    CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
    CHECK(dc_cache_before_block(toy.cache, 0, &x, NULL, 1) == DC_COMPUTE);
    toy_block(toy.x, TOY, 0);
    dc_cache_after_block(toy.cache, 0, &x, 1);
    CHECK(dc_cache_before_block(toy.cache, 1, &x, NULL, 1) == DC_SKIP);
    dc_cache_destroy(toy.cache);
    CHECK(dc_cache_before_block(toy.cache, 2, &x, NULL, 1) == DC_SKIP);
    CHECK(dc_cache_before_block(toy.cache, 3, &x, NULL, 1) == DC_SKIP);
    CHECK_STATUS(dc_cache_end_pass(toy.cache), DC_ERR_HANDLE);
    toy_verify(&toy, 1.0f, 1, 0);
}

int main(void)
{
    a_null_cache_means_caching_off();
    null_arguments_are_refused();
    sizes_no_struct_ever_had_are_refused();
    nothing_is_written_past_struct_size();
    a_newer_header_works_while_its_new_fields_are_unused();
    structs_that_were_never_initialised_are_refused();
    versions_and_names_agree();
    engines_that_make_no_sense_are_refused_by_name();
    methods_that_need_another_hook_are_refused_by_its_name();
    combinations_that_can_never_skip_are_refused_with_the_reason();
    a_stack_without_a_skippable_block_is_refused();
    options_that_make_no_sense_are_refused_by_name();
    later_options_that_make_no_sense_are_refused_by_name();
    runs_that_make_no_sense_are_refused();
    passes_that_make_no_sense_compute_and_say_so();
    rows_that_do_not_divide_by_the_branches_are_refused();
    n_steps_unknown_is_legal();
    calls_out_of_order_compute_and_say_so();
    running_a_skipped_block_is_the_one_thing_to_discard();
    a_discarded_pass_can_be_redone_at_its_own_step();
    an_error_after_a_reuse_never_computes_on_top_of_it();
    unknown_numbers_are_answered_not_obeyed();
    dead_and_wild_handles_are_named_errors();
    destroying_in_the_middle_of_a_pass_keeps_its_output_right();
    return 0;
}
