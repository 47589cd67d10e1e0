/* Makes calls of each kind, for scripts/instructions.py to count their instructions: `calls ROUNDS` makes a round of each,
 * so often, and prints for each kind its function here, how many of them a round makes, and what it is. The engine has 57
 * blocks and stacks 4 branches of 16 floats, so that next to nothing of the cost is tensors. */
#include <diffcache.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 57, LAYERS = 2 * BLOCKS, BRANCHES = 4, WIDTH = 16 };

#define CHECK(claim)                                                                        \
    do {                                                                                    \
        if (!(claim)) {                                                                     \
            fprintf(stderr, "line %d: does not hold: %s\n  last error: %s\n", __LINE__, #claim, dc_last_error()); \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

/* Nothing but the rule decides. */
#define NO_RAILS "warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,max_gain=none,max_age=none"

/* What is counted is a function of its own. */
#define COUNTED __attribute__((noinline)) static void

static float data[BRANCHES * WIDTH];
static dc_tensor_t x;

/* A cache, in a run without an end. */
typedef struct scene_t {
    dc_cache_t *cache;
    dc_pass_t   pass;
    uint32_t    first, end; /* the span */
} scene_t;

static dc_engine_t an_engine(void)
{
    dc_engine_t engine;
    CHECK(dc_engine_init(&engine, sizeof engine) == DC_OK);
    engine.hooks = DC_HOOK_EACH | DC_HOOK_BLOCKS | DC_HOOK_LAYERS;
    engine.n_blocks = BLOCKS;
    engine.n_layers = LAYERS;
    engine.n_branches = engine.max_stacked = BRANCHES;
    engine.n_threads = 1;
    return engine;
}

static scene_t a_scene(const char *text)
{
    scene_t scene = {NULL, DC_PASS_INIT, 1, BLOCKS};
    dc_engine_t engine = an_engine();
    dc_options_t options;
    dc_run_t run = DC_RUN_INIT;
    CHECK(dc_options_init(&options, sizeof options, NULL) == DC_OK);
    CHECK(dc_options_parse(&options, text) == DC_OK);
    CHECK(dc_cache_create(&engine, &options, &scene.cache) == DC_OK);
    run.timestep_max = 1000.0f;
    CHECK(dc_cache_begin_run(scene.cache, &run) == DC_OK);
    scene.pass.n_branches = BRANCHES;
    for (uint32_t k = 0; k < BRANCHES; k++) scene.pass.branches[k] = k;
    scene.pass.flags = DC_PASS_TIMESTEP;
    scene.pass.timestep = 500.0f;
    return scene;
}

/* ---- what is counted ---- */

static void pair(dc_cache_t *cache, uint32_t block, dc_action_t expected)
{
    dc_action_t action = dc_cache_before_block(cache, block, &x, NULL, 1);
    CHECK(action == expected);
    if (action == DC_COMPUTE) {
        data[0] *= 2.0f; /* so that what the front adds is new in every pass */
        dc_cache_after_block(cache, block, &x, 1);
    }
}

COUNTED null_pair(scene_t *none)
{
    (void)none;
    pair(NULL, 3, DC_COMPUTE);
}

static void pass_of_blocks(scene_t *scene, dc_action_t expected, void (*inside)(scene_t *))
{
    data[0] = 1.0f + (float)scene->pass.step;
    CHECK(dc_cache_begin_pass(scene->cache, &scene->pass) == DC_OK);
    scene->pass.step++;
    for (uint32_t block = 0; block < scene->first; block++) pair(scene->cache, block, DC_COMPUTE);
    pair(scene->cache, scene->first, expected);
    inside(scene);
    pair(scene->cache, scene->end - 1, expected);
    CHECK(dc_cache_end_pass(scene->cache) == DC_OK);
}

/* All of a span but its first and last block. */
static void inside(scene_t *scene, dc_action_t expected)
{
    for (uint32_t block = scene->first + 1; block < scene->end - 1; block++) pair(scene->cache, block, expected);
}

#define PAIRS (BLOCKS - 3)

COUNTED pairs_of_none(scene_t *scene) { inside(scene, DC_COMPUTE); }
COUNTED pairs_computed(scene_t *scene) { inside(scene, DC_COMPUTE); }
COUNTED pairs_skipped(scene_t *scene) { inside(scene, DC_SKIP); }

COUNTED pass_of_none(scene_t *scene) { pass_of_blocks(scene, DC_COMPUTE, pairs_of_none); }
COUNTED pass_computed(scene_t *scene) { pass_of_blocks(scene, DC_COMPUTE, pairs_computed); }
COUNTED pass_skipped(scene_t *scene) { pass_of_blocks(scene, DC_SKIP, pairs_skipped); }

COUNTED empty_pass(scene_t *scene)
{
    CHECK(dc_cache_begin_pass(scene->cache, &scene->pass) == DC_OK);
    scene->pass.step++;
    CHECK(dc_cache_end_pass(scene->cache) == DC_OK);
}

static void layers(scene_t *scene, dc_action_t expected)
{
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        dc_kind_t kind = layer % 2 == 0 ? DC_KIND_SPATIAL : DC_KIND_MLP;
        dc_action_t action = dc_cache_before_layer(scene->cache, layer, kind, &x, 1);
        CHECK(action == expected);
        if (action == DC_COMPUTE) dc_cache_after_layer(scene->cache, layer, &x, 1);
    }
}

COUNTED layers_of_none(scene_t *scene) { layers(scene, DC_COMPUTE); }
COUNTED layers_computed(scene_t *scene) { layers(scene, DC_COMPUTE); }
COUNTED layers_skipped(scene_t *scene) { layers(scene, DC_SKIP); }

static void pass_of_layers(scene_t *scene, void (*of)(scene_t *))
{
    CHECK(dc_cache_begin_pass(scene->cache, &scene->pass) == DC_OK);
    scene->pass.step++;
    of(scene);
    CHECK(dc_cache_end_pass(scene->cache) == DC_OK);
}

COUNTED peek_ahead(scene_t *scene) { CHECK(dc_cache_peek(scene->cache, &scene->pass, 1) == DC_COMPUTE); }
COUNTED peek_at_open(scene_t *scene) { CHECK(dc_cache_peek(scene->cache, NULL, 1) == DC_COMPUTE); }

COUNTED run_begun(scene_t *scene)
{
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = 50;
    CHECK(dc_cache_begin_run(scene->cache, &run) == DC_OK);
}

COUNTED created_and_destroyed(scene_t *none)
{
    static dc_engine_t engine;
    static dc_options_t options;
    dc_cache_t *cache = NULL;
    (void)none;
    if (options.struct_size == 0) {
        engine = an_engine();
        CHECK(dc_options_init(&options, sizeof options, "fbcache") == DC_OK);
    }
    CHECK(dc_cache_create(&engine, &options, &cache) == DC_OK);
    dc_cache_destroy(cache);
}

COUNTED stats_read(scene_t *scene)
{
    dc_stats_t stats;
    memset(&stats, 0, sizeof stats);
    stats.struct_size = (uint32_t)sizeof stats;
    CHECK(dc_cache_stats(scene->cache, &stats) == DC_OK);
}

/* ---- all of it ---- */

static const struct { const char *function, *what; int units; } KINDS[] = {
    {"null_pair", "before and after a block, null cache", 1},
    {"pairs_of_none", "before and after a block, preset none", PAIRS},
    {"pairs_computed", "before and after a block, inside a computed span", PAIRS},
    {"pairs_skipped", "before a block, inside a skipped span", PAIRS},
    {"empty_pass", "begin_pass and end_pass, of two kinds of layers", 1},
    {"pass_of_none", "a pass of 57 blocks, preset none", 1},
    {"pass_computed", "a pass of 57 blocks, computed by fbcache", 1},
    {"pass_skipped", "a pass of 57 blocks, skipped by fbcache", 1},
    {"layers_of_none", "before and after a layer, preset none", LAYERS},
    {"layers_computed", "before and after a layer, computed by taylorseer", LAYERS},
    {"layers_skipped", "before a layer, skipped by taylorseer", LAYERS},
    {"peek_ahead", "peek at a coming pass", 1},
    {"peek_at_open", "peek at the open pass", 1},
    {"run_begun", "begin_run", 1},
    {"created_and_destroyed", "create and destroy", 1},
    {"stats_read", "stats", 1},
};

int main(int argc, char **argv)
{
    long rounds = argc > 1 ? atol(argv[1]) : 10;
    scene_t none = a_scene("none");
    scene_t computed = a_scene("fbcache,threshold=1e-9," NO_RAILS);
    scene_t skipped = a_scene("fbcache,threshold=1e9," NO_RAILS);
    scene_t idle = a_scene("pab,spatial.every=2,mlp.every=2");
    scene_t taught = a_scene("taylorseer,warmup_steps=4000000000");
    scene_t guessed = a_scene("taylorseer,every=4000000000," NO_RAILS);
    scene_t peeked = a_scene("fbcache,warmup_steps=4000000000"), open = peeked;

    for (int k = 0; k < BRANCHES * WIDTH; k++) data[k] = 1.0f + 0.01f * (float)k;
    memset(&x, 0, sizeof x);
    x.data = data;
    x.dtype = DC_F32;
    x.ndim = 2;
    x.shape[0] = BRANCHES;
    x.shape[1] = WIDTH;

    /* The first passes compute, and take memory. */
    pass_of_blocks(&skipped, DC_COMPUTE, pairs_computed);
    pass_of_layers(&guessed, layers_computed);
    open = a_scene("fbcache,warmup_steps=4000000000");
    CHECK(dc_cache_begin_pass(open.cache, &open.pass) == DC_OK);
    for (long round = 0; round < rounds; round++) {
        null_pair(NULL);
        pass_of_none(&none);
        pass_computed(&computed);
        pass_skipped(&skipped);
        empty_pass(&idle);
        pass_of_layers(&none, layers_of_none);
        pass_of_layers(&taught, layers_computed);
        pass_of_layers(&guessed, layers_skipped);
        peek_ahead(&peeked);
        peek_at_open(&open);
        run_begun(&peeked);
        created_and_destroyed(NULL);
        stats_read(&computed);
    }
    for (size_t k = 0; k < sizeof KINDS / sizeof *KINDS; k++)
        printf("%s\t%d\t%s\n", KINDS[k].function, KINDS[k].units, KINDS[k].what);
    return 0;
}
