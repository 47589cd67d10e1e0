// The C++ header: what goes wrong in setting up throws, what is opened is closed, also by an exception, and a pass through
// it is the pass that the C loop makes.
#include "device.h"

#include <diffcache.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define CHECK(claim)                                                                                                   \
    do {                                                                                                               \
        if (!(claim)) failed(__LINE__, #claim);                                                                        \
    } while (0)
#define CHECK_OK(call) CHECK((call) == DC_OK)

static void failed(int line, const char *claim)
{
    std::fprintf(stderr, "raii.cpp:%d: does not hold: %s\n  last error: %s\n", line, claim, dc_last_error());
    std::exit(1);
}

using diffcache::Cache;
using diffcache::Engine;
using diffcache::Error;
using diffcache::Options;
using diffcache::Outcome;
using diffcache::Pass;
using diffcache::Run;
using diffcache::tensor;

static_assert(!std::is_copy_constructible<Cache>::value && !std::is_copy_assignable<Cache>::value, "a cache has one owner");
static_assert(std::is_nothrow_move_constructible<Cache>::value && std::is_nothrow_move_assignable<Cache>::value, "it moves");
static_assert(!std::is_copy_constructible<Pass>::value && !std::is_copy_constructible<Run>::value, "so have run and pass");
static_assert(!std::is_convertible<std::string, Options>::value, "a text does not become options unasked");

// ---- a toy engine ----

static const uint32_t blocks = 6;
enum { width = 8 };

// Skips whenever the input changes slowly: without the rails only the rule decides.
static const std::string eager = "fbcache,threshold=0.2,warmup_steps=0,last_steps=0,max_consecutive=none,max_error=none,"
                                 "max_gain=none,max_age=none";

static Cache a_cache_of(const std::string &text, uint32_t n_blocks = blocks)
{
    Engine engine;
    put_on_backend(&engine);
    engine.hooks = DC_HOOK_EACH;
    engine.n_blocks = n_blocks;
    return Cache(engine, Options(text));
}

struct Toy {
    float x[width];

    void load(uint32_t step)
    {
        for (int j = 0; j < width; j++) x[j] = 1.0f + 0.001f * (float)step + 0.1f * (float)j;
    }
    void block(uint32_t i)
    {
        for (float &value : x) value = value * (1.0f + 0.01f * (float)(i + 1)) + 0.1f;
    }
    dc_tensor_t view() { return tensor(x, {width}); }
};

// Loads the step's input and walks the stack; how many blocks ran.
static unsigned walk(Pass &pass, Toy &toy, uint32_t step)
{
    unsigned ran = 0;
    toy.load(step);
    for (uint32_t i = 0; i < blocks; i++)
        ran += pass.block(i, toy.view(), [&] { toy.block(i); });
    return ran;
}

// A pass without a hitch; how many blocks ran.
static unsigned clean_pass(Run &run, uint32_t step)
{
    Toy toy;
    Pass pass = run.pass(step);
    CHECK_OK(pass.status());
    unsigned ran = walk(pass, toy, step);
    CHECK(pass.end() == Outcome::keep);
    CHECK_OK(pass.status());
    return ran;
}

template <class Call>
static dc_status_t thrown_by(Call &&call, const char *word)
{
    try {
        call();
    } catch (const Error &error) {
        CHECK(std::string(error.what()).find(word) != std::string::npos);
        return error.status();
    }
    return DC_OK;
}

// ---- setting up ----

static void a_mistake_in_setting_up_throws_the_librarys_own_words()
{
    CHECK(thrown_by([] { Options("fbcache,treshold=1"); }, "treshold") == DC_ERR_ARG);
    CHECK(thrown_by([] { Options("no-such-preset"); }, "no-such-preset") == DC_ERR_ARG);
    CHECK(thrown_by([] { Cache(Engine(), Options("fbcache")); }, "DC_ERR_") != DC_OK); // no blocks, no hooks
}

static void options_keep_their_values_when_a_text_is_refused()
{
    Options options("fbcache,threshold=0.125");
    CHECK(thrown_by([&] { options.parse("threshold=0.5,nonsense=1"); }, "nonsense") == DC_ERR_ARG);
    CHECK(options.threshold == 0.125);
}

static void the_text_of_options_reads_back()
{
    Options options("fbcache,threshold=0.125");
    CHECK(options.text() == "fbcache,threshold=0.125");
    CHECK(Options(options.text()).text() == options.text());
    CHECK(Options().text() == "none");
}

static void a_tensor_says_what_it_was_told()
{
    float data[6];
    dc_tensor_t view = tensor(data, DC_BF16, {2, 3});
    CHECK(view.data == data && view.dtype == DC_BF16 && view.ndim == 2);
    CHECK(view.shape[0] == 2 && view.shape[1] == 3 && view.shape[2] == 0 && view.stride[0] == 0);
    CHECK(tensor(data, {1, 1, 1, 1, 1, 1, 6}).ndim == 7); // refused by the library, not cut
}

// ---- ownership ----

static void a_cache_moves_and_leaves_caching_off_behind()
{
    Cache first = a_cache_of(eager), second;
    CHECK(first && !second);
    second = std::move(first);
    CHECK(!first && second); // NOLINT: what a moved-from cache is, is the claim
    Cache third(std::move(second));
    Run run(third, 4);
    CHECK_OK(run.status());
    CHECK(clean_pass(run, 0) == blocks && clean_pass(run, 1) == 1);
}

static void a_default_cache_computes_everything()
{
    Cache off;
    Run run(off, 3);
    CHECK_OK(run.status());
    for (uint32_t step = 0; step < 3; step++) CHECK(clean_pass(run, step) == blocks);
    CHECK(off.stats().passes == 0 && off.trace().empty());
    off.trim();
}

static void count_infos(void *count, dc_log_level_t level, const char *)
{
    if (level == DC_LOG_INFO) ++*static_cast<int *>(count);
}

static void a_run_ends_with_its_scope()
{
    int infos = 0;
    Cache cache = a_cache_of(eager);
    dc_set_log(count_infos, &infos, DC_LOG_INFO);
    {
        Run run(cache, 1);
        clean_pass(run, 0);
        CHECK(infos == 0);
    }
    dc_set_log(nullptr, nullptr, DC_LOG_OFF);
    CHECK(infos == 1); // the summary
}

// ---- passes ----

static void a_pass_is_the_pass_of_the_c_loop()
{
    const uint32_t steps = 12;
    Cache cache = a_cache_of(eager), plain = a_cache_of(eager);
    Run run(cache, steps), c_run(plain, steps);
    unsigned skipped = 0;
    for (uint32_t step = 0; step < steps; step++) {
        Toy toy, c_toy;
        unsigned ran = 0, c_ran = 0;
        CHECK_OK(run.evaluate(step, [&](Pass &pass) { ran = walk(pass, toy, step); }));

        dc_pass_t c_pass = DC_PASS_INIT;
        c_pass.step = step;
        dc_tensor_t x = c_toy.view();
        c_toy.load(step);
        CHECK_OK(dc_cache_begin_pass(plain.get(), &c_pass));
        for (uint32_t i = 0; i < blocks; i++)
            if (dc_cache_before_block(plain.get(), i, &x, NULL, 1) == DC_COMPUTE) {
                c_toy.block(i);
                dc_cache_after_block(plain.get(), i, &x, 1);
                c_ran++;
            }
        CHECK_OK(dc_cache_end_pass(plain.get()));

        CHECK(ran == c_ran && std::memcmp(toy.x, c_toy.x, sizeof toy.x) == 0);
        skipped += ran < blocks;
    }
    CHECK(skipped > 0 && skipped < steps);
    CHECK(cache.stats().passes == steps && cache.stats().passes_skipped == skipped);

    std::vector<dc_trace_t> trace = cache.trace();
    CHECK(trace.size() == steps);
    for (uint32_t step = 0; step < steps; step++) CHECK(trace[step].step == step);
}

static void separate_outputs_leave_the_input_alone()
{
    Cache cache = a_cache_of(eager, 2); // the toy's first block, and its other five as one
    Run run(cache, 6);
    unsigned skipped = 0;
    for (uint32_t step = 0; step < 6; step++) {
        Toy in, middle, out, expected;
        in.load(step);
        CHECK_OK(run.evaluate(step, [&](Pass &pass) {
            pass.block(0, in.view(), middle.view(), [&] {
                middle = in;
                middle.block(0);
            });
            expected = middle;
            skipped += !pass.block(1, middle.view(), out.view(), [&] {
                out = middle;
                for (uint32_t i = 1; i < blocks; i++) out.block(i);
            });
        }));
        CHECK(std::memcmp(middle.x, expected.x, sizeof middle.x) == 0);
        for (uint32_t i = 1; i < blocks; i++) expected.block(i);
        for (int j = 0; j < width; j++) CHECK(std::fabs(out.x[j] - expected.x[j]) < 0.02f);
    }
    CHECK(skipped > 0);
}

static void a_block_takes_several_tensors()
{
    Cache cache = a_cache_of(eager);
    Run run(cache, 6);
    unsigned ran = 0;
    for (uint32_t step = 0; step < 6; step++) {
        Toy image, text;
        image.load(step);
        text.load(step + 100);
        const dc_tensor_t x[2] = {image.view(), text.view()};
        CHECK_OK(run.evaluate(step, [&](Pass &pass) {
            for (uint32_t i = 0; i < blocks; i++)
                ran += pass.block(i, x, [&] {
                    image.block(i);
                    text.block(i);
                });
        }));
    }
    CHECK(ran < 6 * blocks);

    Toy toy;
    const dc_tensor_t two[2] = {toy.view(), toy.view()};
    Pass pass = run.pass(6);
    bool refused = false;
    try {
        pass.block(0, two, toy.view(), [] {});
    } catch (const std::invalid_argument &) {
        refused = true;
    }
    CHECK(refused);
}

static void an_exception_of_the_engine_leaves_the_cache_usable()
{
    struct Stop {};
    Cache cache = a_cache_of(eager);
    Run run(cache, 12);
    CHECK(clean_pass(run, 0) == blocks);
    for (uint32_t failing = 0; failing < blocks; failing++) {
        bool caught = false;
        uint32_t step = 1 + failing;
        try {
            dc_pass_t description = DC_PASS_INIT;
            description.step = step;
            description.flags = DC_PASS_COMPUTE; // so that every block is reached
            run.evaluate(description, [&](Pass &pass) {
                Toy toy;
                toy.load(step);
                for (uint32_t i = 0; i < blocks; i++)
                    pass.block(i, toy.view(), [&] {
                        if (i == failing) throw Stop();
                        toy.block(i);
                    });
            });
        } catch (const Stop &) {
            caught = true;
        }
        CHECK(caught);
    }
    unsigned ran = 0;
    for (uint32_t step = 8; step < 12; step++) ran += clean_pass(run, step);
    CHECK(ran < 4 * blocks);
}

static void a_pass_left_unfinished_is_closed()
{
    Cache cache = a_cache_of(eager);
    Run run(cache, 4);
    {
        Toy toy;
        toy.load(0);
        Pass pass = run.pass(0);
        CHECK(pass.block(0, toy.view(), [] {}));
    }
    CHECK(clean_pass(run, 1) == blocks);
    CHECK(clean_pass(run, 2) == 1);
}

static void a_pass_ends_once_and_computes_from_then_on()
{
    Toy toy;
    Cache cache = a_cache_of(eager);
    Run run(cache, 2);
    Pass pass = run.pass(0);
    walk(pass, toy, 0);
    Pass moved(std::move(pass));
    CHECK(moved.end() == Outcome::keep && moved.end() == Outcome::keep);
    CHECK_OK(moved.status());
    CHECK(walk(moved, toy, 0) == blocks && moved.decide() == DC_COMPUTE && moved.peek(1) == DC_COMPUTE);
    CHECK(cache.stats().errors == 0);
}

static void a_discarded_pass_is_run_again_in_full()
{
    Toy toy;
    Cache cache = a_cache_of(eager);
    Run run(cache, 4);
    clean_pass(run, 0);
    std::vector<unsigned> ran;
    CHECK_OK(run.evaluate(1, [&](Pass &pass) {
        ran.push_back(walk(pass, toy, 1));
        dc_tensor_t x = toy.view();
        if (ran.size() == 1) dc_cache_after_block(cache.get(), 3, &x, 1); // reports a block that was answered SKIP
    }));
    CHECK((ran == std::vector<unsigned>{1, blocks}));

    Toy full;
    full.load(1);
    for (uint32_t i = 0; i < blocks; i++) full.block(i);
    CHECK(std::memcmp(toy.x, full.x, sizeof full.x) == 0);
}

static void a_run_over_its_budget_says_so_and_computes()
{
    Engine engine;
    put_on_backend(&engine);
    engine.hooks = DC_HOOK_EACH;
    engine.n_blocks = blocks;
    engine.memory_budget = 1;
    Cache cache(engine, Options(eager));

    dc_tensor_t rows = tensor(static_cast<float *>(nullptr), {width});
    dc_shape_t shape = dc_shape_t();
    shape.hook = DC_HOOK_EACH;
    shape.branch = UINT32_MAX;
    shape.count = 1;
    shape.tensors = &rows;
    shape.n = 1;
    dc_run_t description = DC_RUN_INIT;
    description.n_steps = 3;
    description.shapes = &shape;
    description.n_shapes = 1;

    Run run(cache, description);
    CHECK(run.status() == DC_ERR_MEMORY);
    for (uint32_t step = 0; step < 3; step++) {
        Toy toy;
        unsigned ran = 0;
        CHECK(run.evaluate(step, [&](Pass &pass) { ran = walk(pass, toy, step); }) == DC_ERR_MEMORY);
        CHECK(ran == blocks);
    }
}

// ---- layers and guidance ----

static_assert(noexcept(std::declval<Run &>().peek_uncond(0)), "looking never throws");
static_assert(noexcept(std::declval<Pass &>().peek(0)), "nor does looking at a pass");

static const uint32_t layers = 4;

// Layers skip every second step, the unconditional branch two of three.
static const std::string scheduled = "none,rule=schedule,scope=layers,on_residual=0,every=2,guidance.every=3,"
                                     "guidance.low=1.5";

static Engine a_layered_engine()
{
    Engine engine;
    put_on_backend(&engine);
    engine.hooks = DC_HOOK_LAYERS | DC_HOOK_GUIDE;
    engine.n_layers = layers;
    engine.n_branches = 2;
    return engine;
}

// What a branch predicts: the toy's blocks, each with an attention whose output is kept, and added.
struct Model {
    Toy latents, attention;
    unsigned ran;

    void load(uint32_t step, uint32_t branch)
    {
        latents.load(step + 50 * branch);
        ran = 0;
    }
    void attend(uint32_t layer)
    {
        attention = latents;
        attention.block(layer);
        ran++;
    }
    void add()
    {
        for (int j = 0; j < width; j++) latents.x[j] += 0.5f * attention.x[j];
    }
};

static dc_kind_t kind_of(uint32_t layer) { return layer % 2 == 0 ? DC_KIND_SPATIAL : DC_KIND_MLP; }

static dc_pass_t of_branch(uint32_t step, uint32_t branch)
{
    dc_pass_t pass = DC_PASS_INIT;
    pass.step = step;
    pass.branches[0] = branch;
    return pass;
}

static void walk_layers(Pass &pass, Model &model)
{
    for (uint32_t i = 0; i < layers; i++) {
        const dc_action_t foreseen = pass.peek(DC_LAYER(i));
        const bool ran = pass.layer(i, kind_of(i), model.attention.view(), [&] { model.attend(i); });
        CHECK(foreseen == (ran ? DC_COMPUTE : DC_SKIP));
        model.add();
    }
}

static void walk_layers_in_c(dc_cache_t *cache, Model &model)
{
    for (uint32_t i = 0; i < layers; i++) {
        dc_tensor_t out = model.attention.view();
        if (dc_cache_before_layer(cache, i, kind_of(i), &out, 1) == DC_COMPUTE) {
            model.attend(i);
            dc_cache_after_layer(cache, i, &out, 1);
        }
        model.add();
    }
}

static void layers_and_guidance_are_those_of_the_c_loop()
{
    const uint32_t steps = 12, cond = 0, uncond = 1;
    Cache cache(a_layered_engine(), Options(scheduled)), plain(a_layered_engine(), Options(scheduled));
    Run run(cache, steps), c_run(plain, steps);
    unsigned left_out = 0;
    for (uint32_t step = 0; step < steps; step++) {
        Model a[2], b[2];
        std::memset(a, 0, sizeof a); // so that all of it can be compared
        std::memset(b, 0, sizeof b);

        const dc_action_t foreseen = run.peek_uncond(step);
        CHECK_OK(run.evaluate(step, [&](Pass &pass) {
            a[cond].load(step, cond);
            walk_layers(pass, a[cond]);
        }));
        const bool ran = run.uncond(step, a[cond].latents.view(), a[uncond].latents.view(), [&] {
            CHECK_OK(run.evaluate(of_branch(step, uncond), [&](Pass &pass) {
                a[uncond].load(step, uncond);
                walk_layers(pass, a[uncond]);
            }));
        });
        CHECK(foreseen == (ran ? DC_COMPUTE : DC_SKIP) && ran == (step % 3 == 0));
        CHECK(a[cond].ran == (step % 2 == 0 ? layers : 0));
        left_out += !ran;

        dc_pass_t pass = of_branch(step, cond), u = of_branch(step, uncond);
        dc_tensor_t c_cond = b[cond].latents.view(), c_uncond = b[uncond].latents.view();
        CHECK_OK(dc_cache_begin_pass(plain.get(), &pass));
        b[cond].load(step, cond);
        walk_layers_in_c(plain.get(), b[cond]);
        CHECK_OK(dc_cache_end_pass(plain.get()));
        if (dc_cache_before_uncond(plain.get(), &u, &c_cond, &c_uncond) == DC_COMPUTE) {
            CHECK_OK(dc_cache_begin_pass(plain.get(), &u));
            b[uncond].load(step, uncond);
            walk_layers_in_c(plain.get(), b[uncond]);
            CHECK_OK(dc_cache_end_pass(plain.get()));
            CHECK_OK(dc_cache_after_uncond(plain.get(), &u, &c_cond, &c_uncond));
        }
        CHECK(std::memcmp(a, b, sizeof a) == 0);
    }
    const dc_stats_t stats = cache.stats(), c_stats = plain.stats();
    CHECK(left_out == 8 && stats.uncond_skipped == left_out && stats.uncond_computed == steps - left_out);
    CHECK(stats.layers_skipped == c_stats.layers_skipped && stats.layers_skipped > 0 && stats.errors == 0);
    CHECK(stats.layers_computed == c_stats.layers_computed && stats.passes == c_stats.passes);
}

// Stacked, an engine looks ahead; by its description of the step, where it has one.
static void a_branch_may_be_foreseen_and_reported_afterwards()
{
    Engine engine = a_layered_engine();
    engine.uncond_branch = 0; // remembered, also when the cache moves
    Cache first(engine, Options("none,guidance.every=2")), cache;
    cache = std::move(first);
    Run run(cache, 6);
    for (uint32_t step = 0; step < 6; step++) {
        float cond[2] = {1.0f + (float)step, 2.0f}, uncond[2] = {0.5f + (float)step, 4.0f};
        dc_pass_t description = of_branch(step, 0);
        description.flags = DC_PASS_TIMESTEP;
        description.timestep = 1.0f - 0.1f * (float)step;
        CHECK(run.peek_uncond(step) == run.peek_uncond(description));
        const bool leave_out = run.peek_uncond(step) == DC_SKIP;
        if (leave_out) uncond[0] = uncond[1] = NAN;
        const bool ran = run.uncond(description, tensor(cond, {2}), tensor(uncond, {2}), [] {});
        CHECK(ran == !leave_out && leave_out == (step % 2 == 1));
        CHECK(uncond[0] == 0.5f + (float)step && uncond[1] == 4.0f); // they differ by the same in every step
    }
    CHECK(cache.trace().back().timestep == 0.5f && cache.trace().back().branch == 0);
}

static void caching_off_runs_every_layer_and_both_branches()
{
    Cache off;
    Run run(off, 2);
    for (uint32_t step = 0; step < 2; step++) {
        Model model;
        Toy other;
        CHECK_OK(run.evaluate(step, [&](Pass &pass) {
            model.load(step, 0);
            walk_layers(pass, model);
        }));
        CHECK(model.ran == layers && run.peek_uncond(step) == DC_COMPUTE);
        CHECK(run.uncond(step, model.latents.view(), other.view(), [&] { other.load(step); }));
        CHECK(other.x[0] == 1.0f + 0.001f * (float)step);
    }
    CHECK(off.stats().layers_computed == 0 && off.stats().uncond_computed == 0);

    // after its end a pass is caching off, too
    Cache cache(a_layered_engine(), Options(scheduled));
    Run on(cache, 2);
    Model model;
    model.load(0, 0);
    Pass pass = on.pass(0);
    walk_layers(pass, model);
    CHECK(pass.end() == Outcome::keep);
    CHECK(pass.layer(0, kind_of(0), model.attention.view(), [] {}) && cache.stats().errors == 0);
}

static void a_layer_shows_several_tensors()
{
    Cache cache(a_layered_engine(), Options(scheduled));
    Run run(cache, 4);
    for (uint32_t step = 0; step < 4; step++) {
        Toy image, text;
        const dc_tensor_t both[2] = {image.view(), tensor(text.x, {3})};
        std::memset(&image, 0, sizeof image);
        CHECK_OK(run.evaluate(step, [&](Pass &pass) {
            const bool ran = pass.layer(0, DC_KIND_SPATIAL, both, [&] {
                image.load(step);
                text.load(step);
            });
            CHECK(ran == (step % 2 == 0));
        }));
        CHECK(image.x[0] == 1.0f + 0.001f * (float)(step / 2 * 2));
    }
}

// Nothing of what threw is learned: a skip afterwards goes by what was kept before.
static void an_exception_of_a_layer_or_a_branch_leaves_the_cache_usable()
{
    struct Stop {};
    Cache cache(a_layered_engine(), Options(scheduled));
    Run run(cache, 100);
    uint32_t step = 0;
    for (uint32_t failing = 0; failing < layers; failing++, step += 6) {
        bool caught = false;
        try {
            run.evaluate(step, [&](Pass &pass) {
                Model model;
                model.load(step, 0);
                for (uint32_t i = 0; i < layers; i++)
                    pass.layer(i, kind_of(i), model.attention.view(), [&] {
                        if (i == failing) throw Stop();
                        model.attend(i);
                    });
            });
        } catch (const Stop &) {
            caught = true;
        }
        CHECK(caught);

        for (uint32_t next = step + 2; next < step + 4; next++) {
            Model model;
            CHECK_OK(run.evaluate(next, [&](Pass &pass) {
                model.load(next, 0);
                walk_layers(pass, model);
            }));
            CHECK(model.ran == (next % 2 == 0 ? layers : 0));
        }
    }

    step = 99; // the interval's turn
    float cond[1] = {1.0f}, uncond[1] = {4.0f};
    Run again(cache, 200);
    CHECK(again.uncond(96, tensor(cond, {1}), tensor(uncond, {1}), [] {}));
    bool caught = false;
    try {
        again.uncond(step, tensor(cond, {1}), tensor(uncond, {1}), [&] {
            uncond[0] = 100.0f;
            throw Stop();
        });
    } catch (const Stop &) {
        caught = true;
    }
    CHECK(caught);
    CHECK(!again.uncond(100, tensor(cond, {1}), tensor(uncond, {1}), [] {}));
    CHECK(uncond[0] == 1.0f + 3.0f * 1.5f); // one value is all low frequency
    CHECK(cache.stats().first_error == DC_OK);
}

// What the library refuses, the engine computes; why, the statistics tell.
static void a_mistake_with_a_layer_or_a_branch_computes()
{
    Cache cache(a_layered_engine(), Options(scheduled));
    Run run(cache, 4);
    Model model;
    model.load(0, 0);
    {
        Pass pass = run.pass(0);
        CHECK(pass.layer(layers, DC_KIND_MLP, model.attention.view(), [&] { model.attend(0); }) && model.ran == 1);
        CHECK(pass.end() == Outcome::keep && pass.status() == DC_ERR_ARG);
    }
    CHECK(cache.stats().errors == 1);
    float cond[1] = {1.0f}, uncond[2] = {4.0f, 4.0f};
    CHECK(run.uncond(0, tensor(cond, {1}), tensor(uncond, {2}), [] {}));
    CHECK(cache.stats().errors > 1 && cache.stats().first_error == DC_ERR_ARG);
    CHECK(thrown_by([] { Cache(a_layered_engine(), Options("fbcache")); }, "DC_HOOK_BLOCKS") == DC_ERR_UNSUPPORTED);
}

int main()
{
    a_mistake_in_setting_up_throws_the_librarys_own_words();
    options_keep_their_values_when_a_text_is_refused();
    the_text_of_options_reads_back();
    a_tensor_says_what_it_was_told();
    a_cache_moves_and_leaves_caching_off_behind();
    a_default_cache_computes_everything();
    a_run_ends_with_its_scope();
    a_pass_is_the_pass_of_the_c_loop();
    separate_outputs_leave_the_input_alone();
    a_block_takes_several_tensors();
    an_exception_of_the_engine_leaves_the_cache_usable();
    a_pass_left_unfinished_is_closed();
    a_pass_ends_once_and_computes_from_then_on();
    a_discarded_pass_is_run_again_in_full();
    a_run_over_its_budget_says_so_and_computes();
    layers_and_guidance_are_those_of_the_c_loop();
    a_branch_may_be_foreseen_and_reported_afterwards();
    caching_off_runs_every_layer_and_both_branches();
    a_layer_shows_several_tensors();
    an_exception_of_a_layer_or_a_branch_leaves_the_cache_usable();
    a_mistake_with_a_layer_or_a_branch_computes();
    return 0;
}
