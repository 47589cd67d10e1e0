/* Tensors and data that make no sense, or little: whatever they are, the pass computes and its output is right. */
#include "check.h"

enum place { INTO_FIRST, OUT_OF_FRONT, INTO_SPAN, OUT_OF_LAST, PLACES };

/* A pass of four blocks in which one call gets `bad`; the engine computes whatever it is told to. */
static dc_status_t pass_with(toy_t *toy, uint32_t step, const dc_tensor_t *bad, size_t n, enum place place)
{
    dc_pass_t pass = pass_of(step, 0);
    toy_input(toy, 1.0f);
    CHECK_OK(dc_cache_begin_pass(toy->cache, &pass));
    for (uint32_t i = 0; i < 4; i++) {
        dc_tensor_t x = floats(toy->x, TOY);
        int in = (i == 0 && place == INTO_FIRST) || (i == 1 && place == INTO_SPAN);
        int out = (i == 0 && place == OUT_OF_FRONT) || (i == 3 && place == OUT_OF_LAST);
        dc_action_t action = dc_cache_before_block(toy->cache, i, in ? bad : &x, NULL, in ? n : 1);
        if (action == DC_SKIP) {
            CHECK(place == OUT_OF_LAST); /* then the call that would go wrong is never made */
            continue;
        }
        toy_block(toy->x, TOY, i);
        dc_cache_after_block(toy->cache, i, out ? bad : &x, out ? n : 1);
    }
    return dc_cache_end_pass(toy->cache);
}

static void bad_tensors_compute_and_say_so(void)
{
    float v[TOY];
    struct { const char *what; dc_tensor_t tensor; size_t n; int null, written; dc_status_t status; } cases[16];
    int k = 0;
    memset(cases, 0, sizeof cases);
#define CASE(name, ...)                       \
    do {                                      \
        cases[k].what = name;                 \
        cases[k].tensor = floats(v, TOY);     \
        cases[k].n = 1;                       \
        cases[k].status = DC_ERR_ARG;         \
        __VA_ARGS__;                          \
        k++;                                  \
    } while (0)
#define X cases[k].tensor
    CASE("no array", cases[k].null = 1);
    CASE("more tensors than a block can have", cases[k].n = 77);
    CASE("no data", X.data = NULL);
    CASE("no dimension", X.ndim = 0);
    CASE("seven dimensions", X.ndim = 7);
    CASE("a million dimensions", X.ndim = 1000000);
    CASE("a negative shape", X.shape[0] = -8);
    CASE("a shape whose product overflows", X.ndim = 2; X.shape[0] = INT64_MAX / 2; X.shape[1] = 8);
    CASE("a byte size that overflows", X.shape[0] = INT64_MAX / 2);
    CASE("a negative stride", X.stride[0] = -1);
    CASE("a stride whose span overflows", X.stride[0] = INT64_MAX / 4);
    CASE("a broadcast where a result is written", X.ndim = 2; X.shape[1] = 1; X.stride[0] = 0; X.stride[1] = 1;
         cases[k].written = 1);
    CASE("a reserved word that is used", X.reserved = 1);
    CASE("an unknown flag", X.flags = 1u << 9);
    CASE("no dtype", X.dtype = 0; cases[k].status = DC_ERR_UNSUPPORTED);
    CASE("an unknown dtype", X.dtype = 99; cases[k].status = DC_ERR_UNSUPPORTED);
#undef X
#undef CASE
    CHECK(k == 16);
    for (int c = 0; c < k; c++) {
        for (int place = 0; place < PLACES; place++) {
            if (cases[c].written && (place == OUT_OF_FRONT || place == OUT_OF_LAST)) continue; /* only read there */
            toy_t toy = an_fbcache_toy(4, 1);
            uint32_t step = 0;
            begin_run(toy.cache, 100);
            for (int learnt = 0; learnt < 2; learnt++) { /* in a pass that computes anyway, and in one that would skip */
                const dc_tensor_t *bad = cases[c].null ? NULL : &cases[c].tensor;
                dc_status_t status = pass_with(&toy, step++, bad, cases[c].n, (enum place)place);
                int skipped_before_it = learnt && place == OUT_OF_LAST; /* then the call is never made */
                dc_status_t wanted = skipped_before_it ? DC_OK : cases[c].status;
                if (status != wanted) fprintf(stderr, "%s, place %d\n", cases[c].what, place);
                CHECK_STATUS(status, wanted);
                (void)toy_step(&toy, step++, 1.0f);
                CHECK(toy_step(&toy, step++, 1.0f) == 's'); /* the cache works again */
            }
            CHECK(stats_of(toy.cache).errors > 0);
            dc_cache_destroy(toy.cache);
        }
    }
}

static void an_output_is_an_alias_or_apart_never_half(void)
{
    dc_engine_t engine = an_engine(3, 1);
    float memory[2 * TOY], other[TOY];
    /* where the span's output lies: floats behind its input, or in a buffer of its own */
    static const struct { int offset; int apart; dc_status_t status; } cases[] = {
        {0, 0, DC_OK}, {1, 0, DC_ERR_ARG}, {TOY - 1, 0, DC_ERR_ARG}, {TOY, 0, DC_OK}, {0, 1, DC_OK},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.5," NO_RAILS);
        float residual[TOY];
        begin_run(cache, 10);
        for (uint32_t step = 0; step < 3; step++) {
            float *to = cases[k].apart ? other : memory + cases[k].offset, h1[TOY];
            dc_tensor_t in = floats(memory, TOY), out = floats(to, TOY);
            dc_pass_t pass = pass_of(step, 0);
            for (int j = 0; j < TOY; j++) memory[j] = 1.0f + 0.1f * (float)j + 0.001f * (float)step;
            CHECK_OK(dc_cache_begin_pass(cache, &pass));
            CHECK(dc_cache_before_block(cache, 0, &in, NULL, 1) == DC_COMPUTE);
            toy_block(memory, TOY, 0);
            dc_cache_after_block(cache, 0, &in, 1);
            memcpy(h1, memory, sizeof h1);
            if (dc_cache_before_block(cache, 1, &in, &out, 1) == DC_COMPUTE) {
                CHECK(step == 0 || cases[k].status != DC_OK);
                for (int j = 0; j < TOY; j++) CHECK(memory[j] == h1[j]); /* a refusal writes nothing */
                memmove(to, h1, sizeof h1);
                toy_block(to, TOY, 1);
                dc_cache_after_block(cache, 1, &out, 1);
                CHECK(dc_cache_before_block(cache, 2, &out, NULL, 1) == DC_COMPUTE);
                toy_block(to, TOY, 2);
                dc_cache_after_block(cache, 2, &out, 1);
                for (int j = 0; j < TOY; j++) residual[j] = to[j] - h1[j];
            } else {
                CHECK(step > 0 && dc_cache_before_block(cache, 2, &out, NULL, 1) == DC_SKIP);
                for (int j = 0; j < TOY; j++) CHECK(close_to(to[j], h1[j] + residual[j]));
                if (cases[k].offset == TOY || cases[k].apart)
                    for (int j = 0; j < TOY; j++) CHECK(memory[j] == h1[j]); /* `in` is only read */
            }
            CHECK_STATUS(dc_cache_end_pass(cache), cases[k].status);
        }
        dc_cache_destroy(cache);
    }
}

/* No audio this time: a tensor without elements is a tensor. */
static void empty_tensors_are_legal(void)
{
    dc_engine_t engine = an_engine(2, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.5," NO_RAILS);
    float v[TOY];
    begin_run(cache, 4);
    for (uint32_t step = 0; step < 3; step++) {
        dc_tensor_t x[2];
        dc_pass_t pass = pass_of(step, 0);
        int ran = 0;
        x[0] = floats(v, TOY);
        x[1] = floats(v, 0);
        x[1].data = NULL;
        for (int j = 0; j < TOY; j++) v[j] = 1.0f;
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < 2; i++)
            if (dc_cache_before_block(cache, i, x, NULL, 2) == DC_COMPUTE) {
                toy_block(v, TOY, i);
                dc_cache_after_block(cache, i, x, 2);
                ran++;
            }
        CHECK_OK(dc_cache_end_pass(cache));
        CHECK(ran == (step == 0 ? 2 : 1));
        CHECK(close_to(v[0], 1.11 * 1.02 + 0.1));
    }
    dc_cache_destroy(cache);
}

static void a_shape_that_changes_within_a_run_computes_and_starts_again(void)
{
    dc_engine_t engine = an_engine(2, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.5," NO_RAILS);
    float v[2 * TOY];
    static const int sizes[] = {8, 8, 16, 16, 8, 8};
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 6; step++) {
        dc_pass_t pass = pass_of(step, 0);
        dc_tensor_t x = floats(v, sizes[step]);
        int ran = 0, changed = step == 2 || step == 4;
        for (int j = 0; j < 2 * TOY; j++) v[j] = 1.0f;
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < 2; i++)
            if (dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE) {
                toy_block(v, (size_t)sizes[step], i);
                dc_cache_after_block(cache, i, &x, 1);
                ran++;
            }
        CHECK_STATUS(dc_cache_end_pass(cache), changed ? DC_ERR_SHAPE : DC_OK);
        CHECK(ran == (step == 0 || changed ? 2 : 1)); /* the computed pass is where it starts again */
        for (int j = 0; j < sizes[step]; j++) CHECK(close_to(v[j], 1.11 * 1.02 + 0.1));
    }
    dc_cache_destroy(cache);
}

/* Dense or strided, with or without dimensions of one: the same rows. */
static void equal_shapes_may_be_written_differently(void)
{
    dc_engine_t engine = an_engine(2, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.5," NO_RAILS);
    float v[6 * 4];
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 6; step++) {
        dc_pass_t pass = pass_of(step, 0);
        dc_tensor_t x = rows_of(v, 6, 4, 4);
        int ran = 0;
        if (step % 3 == 1) memset(x.stride, 0, sizeof x.stride); /* dense by default */
        if (step % 3 == 2) {                                     /* [1, 6, 4] */
            x.ndim = 3;
            x.shape[0] = 1, x.shape[1] = 6, x.shape[2] = 4;
            x.stride[0] = 24, x.stride[1] = 4, x.stride[2] = 1;
        }
        for (int j = 0; j < 24; j++) v[j] = 1.0f;
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < 2; i++)
            if (dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE) {
                toy_block(v, 24, i);
                dc_cache_after_block(cache, i, &x, 1);
                ran++;
            }
        CHECK_OK(dc_cache_end_pass(cache));
        CHECK(ran == (step == 0 ? 2 : 1));
        for (int j = 0; j < 24; j++) CHECK(close_to(v[j], 1.11 * 1.02 + 0.1));
    }
    dc_cache_destroy(cache);
}

/* ---- data ---- */

static void data_that_is_not_finite_computes_and_is_counted(void)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < 3; k++) {
        toy_t toy = an_fbcache_toy(4, 1);
        begin_run(toy.cache, 20);
        CHECK(toy_step(&toy, 0, 1.0f) == 'C');
        CHECK(toy_step(&toy, 1, 1.0f) == 's');
        dc_pass_t pass = pass_of(2, 0);
        toy_input(&toy, 1.0f);
        toy.x[3] = bad[k];
        CHECK_OK(dc_cache_begin_pass(toy.cache, &pass));
        CHECK(!toy_walk(&toy));
        CHECK_OK(dc_cache_end_pass(toy.cache)); /* the engine's business, not an error */
        CHECK(!isfinite(toy.x[3]) && isfinite(toy.x[2]));
        CHECK(stats_of(toy.cache).not_finite == 1);
        /* what was kept of that pass is not finite either: the next one computes, then all is well again */
        CHECK(toy_step(&toy, 3, 1.0f) == 'C');
        CHECK(stats_of(toy.cache).not_finite == 2);
        CHECK(toy_step(&toy, 4, 1.0f) == 's');
        dc_cache_destroy(toy.cache);
    }
}

static void nothing_over_nothing_computes(void)
{
    dc_engine_t engine = an_engine(2, 1);
    dc_cache_t *cache = a_cache(&engine, "fbcache,threshold=0.5," NO_RAILS);
    float v[TOY] = {1, 2, 3, 4, 5, 6, 7, 8};
    dc_tensor_t x = floats(v, TOY);
    begin_run(cache, 10);
    for (uint32_t step = 0; step < 4; step++) { /* blocks that add nothing: every residual is zero */
        dc_pass_t pass = pass_of(step, 0);
        CHECK_OK(dc_cache_begin_pass(cache, &pass));
        for (uint32_t i = 0; i < 2; i++) {
            CHECK(dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE);
            dc_cache_after_block(cache, i, &x, 1);
        }
        CHECK_OK(dc_cache_end_pass(cache));
    }
    CHECK(stats_of(cache).not_finite == 3); /* the first pass had nothing to compare with */
    CHECK(stats_of(cache).passes_skipped == 0);
    dc_cache_destroy(cache);
}

int main(void)
{
    bad_tensors_compute_and_say_so();
    an_output_is_an_alias_or_apart_never_half();
    empty_tensors_are_legal();
    a_shape_that_changes_within_a_run_computes_and_starts_again();
    equal_shapes_may_be_written_differently();
    data_that_is_not_finite_computes_and_is_counted();
    nothing_over_nothing_computes();
    return 0;
}
