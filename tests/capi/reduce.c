/* Ranks that share one model: four threads with unequal shards, a cache each, and one sum over all of them. They
 * decide as one rank with all rows would, and a rank that fails takes the others with it into computing, never
 * into waiting. */
#include "check.h"

#include <pthread.h>
#include <unistd.h>

enum { RANKS = 4, BLOCKS = 5, STEPS = 24, ROWS = 15, WIDTH = 6, MOST_SUMS = 16 };

/* ---- the collective: everyone arrives, then everyone has the sum ---- */

typedef struct collective_t {
    pthread_mutex_t lock;
    pthread_cond_t  turn;
    int             arrived;
    long            round;
    size_t          n;
    double          sums[MOST_SUMS], result[MOST_SUMS];
} collective_t;

typedef struct rank_t {
    int           number, first, rows;    /* its shard of the rows */
    collective_t *all;
    thread_t      thread;
    long          reduced;                /* calls of its reduce */
    char          decisions[STEPS + 1];
    dc_status_t   statuses[STEPS];
    dc_reason_t   reasons[STEPS];
    int           fails;                  /* how this rank fails: enum failure, 0 = not at all */
    uint32_t      fails_at;               /* in which step */
    float         kept[ROWS * WIDTH];
} rank_t;

enum failure { NOTHING, NO_MEMORY, NOT_A_NUMBER, BAD_TENSOR, BAD_AFTER_FRONT, REDUCE_ERROR, FORGETS };

static int32_t sum_over_ranks(void *user, double *sums, size_t n, void *stream)
{
    rank_t *rank = user;
    collective_t *all = rank->all;
    double own[MOST_SUMS];
    rank->reduced++;
    CHECK(n > 0 && n <= MOST_SUMS);
    read_device(own, sums, n * sizeof *own, stream);
    CHECK(pthread_mutex_lock(&all->lock) == 0);
    long round = all->round;
    if (all->arrived == 0) {
        all->n = n;
        memset(all->sums, 0, sizeof all->sums);
    }
    CHECK(all->n == n); /* every rank brings as many */
    for (size_t k = 0; k < n; k++) all->sums[k] += own[k];
    if (++all->arrived == RANKS) {
        memcpy(all->result, all->sums, sizeof all->sums);
        all->arrived = 0;
        all->round++;
        CHECK(pthread_cond_broadcast(&all->turn) == 0);
    }
    while (all->round == round) CHECK(pthread_cond_wait(&all->turn, &all->lock) == 0);
    memcpy(own, all->result, n * sizeof *own);
    CHECK(pthread_mutex_unlock(&all->lock) == 0);
    write_device(sums, own, n * sizeof *own);
    return 0;
}

/* ---- the model: rows change slowly, some faster than others ---- */

static void embed(float *x, int first, int rows, uint32_t step)
{
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < WIDTH; j++)
            x[r * WIDTH + j] = 1.0f + 0.1f * (float)j + 0.004f * (float)step * (float)(first + r);
}

static void block(float *x, int rows, uint32_t i)
{
    for (int j = 0; j < rows * WIDTH; j++) x[j] = x[j] * (1.0f + 0.02f * (float)(i + 1)) + 0.05f;
}

static const char *const METHOD = "fbcache,threshold=0.05," NO_RAILS ",warmup_steps=2,last_steps=1";

static void *no_memory(void *user, size_t size, void *stream)
{
    (void)user, (void)size, (void)stream;
    return NULL;
}

static void nothing_to_free(void *user, void *data, size_t size, void *stream)
{
    (void)user, (void)data, (void)size, (void)stream;
    abort();
}

static dc_cache_t *a_ranks_cache(rank_t *rank, const char *method)
{
    dc_engine_t engine = an_engine(BLOCKS, 1);
    if (rank->all != NULL) {
        engine.reduce = sum_over_ranks;
        engine.reduce_user = rank;
    }
    if (rank->fails == NO_MEMORY) {
        engine.mem_alloc = no_memory;
        engine.mem_free = nothing_to_free;
    }
    snprintf(engine.label, sizeof engine.label, "rank %d", rank->number);
    return a_cache(&engine, method);
}

/* One pass over this rank's rows, checked against its own model. */
static void run_pass(rank_t *rank, dc_cache_t *cache, uint32_t step)
{
    float x[ROWS * WIDTH], want[ROWS * WIDTH], from[ROWS * WIDTH];
    int n = rank->rows * WIDTH, skipped = 0, failing = rank->fails != NOTHING && rank->fails_at == step;
    dc_pass_t pass = pass_of(step, 0);
    embed(x, rank->first, rank->rows, step);
    if (failing && rank->fails == NOT_A_NUMBER) x[1] = NAN;
    if (failing && rank->fails == FORGETS) pass.flags |= DC_PASS_FORGET;
    memcpy(want, x, sizeof want);
    (void)dc_cache_begin_pass(cache, &pass);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        dc_tensor_t t = rows_of(x, rank->rows, WIDTH, WIDTH), bad = t;
        bad.shape[0] = -1;
        dc_tensor_t *in = failing && rank->fails == BAD_TENSOR && i <= 1 ? &bad : &t;
        dc_tensor_t *out = failing && rank->fails == BAD_AFTER_FRONT && i == 0 ? &bad : &t;
        if (dc_cache_before_block(cache, i, in, NULL, 1) == DC_COMPUTE) {
            block(x, rank->rows, i);
            dc_cache_after_block(cache, i, out, 1);
        } else {
            skipped = 1;
        }
    }
    rank->statuses[step] = dc_cache_end_pass(cache);
    rank->reasons[step] = newest(cache).reason;
    rank->decisions[step] = skipped ? 's' : 'C';
    CHECK(rank->statuses[step] != DC_ERR_DISCARD);
    block(want, rank->rows, 0);
    memcpy(from, want, sizeof from);
    for (uint32_t i = 1; i < BLOCKS && !skipped; i++) block(want, rank->rows, i);
    for (int j = 0; j < n; j++) {
        if (skipped) want[j] += rank->kept[j];
        else if (rank->statuses[step] == DC_OK) rank->kept[j] = want[j] - from[j];
        CHECK(close_to(x[j], want[j]) || (isnan(x[j]) && isnan(want[j])));
    }
}

static const char *method_of_the_test;

static void *run_rank(void *argument)
{
    rank_t *rank = argument;
    dc_cache_t *cache = a_ranks_cache(rank, method_of_the_test);
    begin_run(cache, STEPS);
    for (uint32_t step = 0; step < STEPS; step++) run_pass(rank, cache, step);
    dc_cache_destroy(cache);
    return NULL;
}

static collective_t collective;

/* Runs all ranks to their end; one of them may fail. */
static void run_ranks(rank_t ranks[RANKS], int failing_rank, enum failure how, uint32_t at)
{
    static const int rows[RANKS] = {1, 2, 4, 8}; /* unequal shards of the ROWS */
    int first = 0;
    memset(ranks, 0, RANKS * sizeof *ranks);
    memset(&collective, 0, sizeof collective);
    CHECK(pthread_mutex_init(&collective.lock, NULL) == 0 && pthread_cond_init(&collective.turn, NULL) == 0);
    for (int r = 0; r < RANKS; r++) {
        ranks[r].number = r;
        ranks[r].first = first;
        ranks[r].rows = rows[r];
        ranks[r].all = &collective;
        if (r == failing_rank) ranks[r].fails = (int)how, ranks[r].fails_at = at;
        first += rows[r];
    }
    CHECK(first == ROWS);
    for (int r = 0; r < RANKS; r++) start_thread(&ranks[r].thread, run_rank, &ranks[r]);
    for (int r = 0; r < RANKS; r++) join_thread(&ranks[r].thread);
    CHECK(collective.arrived == 0); /* nobody is left waiting */
    for (int r = 1; r < RANKS; r++) {
        CHECK(strcmp(ranks[r].decisions, ranks[0].decisions) == 0);
        CHECK(ranks[r].reduced == ranks[0].reduced);
    }
}

static void unsharded(char decisions[STEPS + 1])
{
    static rank_t one;
    memset(&one, 0, sizeof one);
    one.rows = ROWS;
    dc_cache_t *cache = a_ranks_cache(&one, method_of_the_test);
    begin_run(cache, STEPS);
    for (uint32_t step = 0; step < STEPS; step++) run_pass(&one, cache, step);
    dc_cache_destroy(cache);
    memcpy(decisions, one.decisions, STEPS + 1);
}

static void ranks_decide_as_one_rank_with_all_rows(void)
{
    static rank_t ranks[RANKS];
    static const char *const methods[] = {
        "fbcache,threshold=0.05," NO_RAILS ",warmup_steps=2,last_steps=1",
        "fbcache,threshold=0.05", /* with its rails */
        "fbcache,threshold=0.05,lagged=1," NO_RAILS,
        "mask,mask=110010010001,front_blocks=1",
    };
    for (int m = 0; m < 4; m++) {
        char alone[STEPS + 1] = {0};
        method_of_the_test = methods[m];
        unsharded(alone);
        run_ranks(ranks, -1, NOTHING, 0);
        CHECK(strcmp(ranks[0].decisions, alone) == 0);
        CHECK(strchr(alone, 's') != NULL && strchr(strchr(alone, 's'), 'C') != NULL);
        for (int r = 0; r < RANKS; r++)
            for (int step = 0; step < STEPS; step++) CHECK(ranks[r].statuses[step] == DC_OK);
    }
    method_of_the_test = METHOD;
}

/* Warm-up and the last step are facts that all ranks share: nothing is asked. Every other pass asks once. */
static void reduce_is_called_once_in_every_pass_that_could_skip(void)
{
    static rank_t ranks[RANKS];
    run_ranks(ranks, -1, NOTHING, 0);
    CHECK(ranks[0].reduced == STEPS - 2 - 1);
}

static void a_rank_that_fails_once_takes_all_into_computing(void)
{
    static const struct { enum failure how; dc_reason_t own, others; } failures[] = {
        {NOT_A_NUMBER, DC_REASON_NOT_FINITE, DC_REASON_NOT_FINITE},
        {BAD_TENSOR, DC_REASON_ERROR, DC_REASON_VETO},
        {BAD_AFTER_FRONT, DC_REASON_ERROR, DC_REASON_VETO},
        {FORGETS, DC_REASON_NO_HISTORY, DC_REASON_VETO},
    };
    static rank_t ranks[RANKS];
    char healthy[STEPS + 1];
    uint32_t at = 3;
    run_ranks(ranks, -1, NOTHING, 0);
    memcpy(healthy, ranks[0].decisions, sizeof healthy);
    while (healthy[at] != 's') at++; /* a step that would be skipped */
    for (size_t f = 0; f < sizeof failures / sizeof *failures; f++)
        for (int r = 0; r < RANKS; r++) {
            run_ranks(ranks, r, failures[f].how, at);
            for (int k = 0; k < RANKS; k++) {
                CHECK(memcmp(ranks[k].decisions, healthy, at) == 0);
                CHECK(ranks[k].decisions[at] == 'C');
                CHECK(strchr(ranks[k].decisions + at, 's') != NULL); /* later they skip again */
                int told = k == r && (failures[f].how == BAD_TENSOR || failures[f].how == BAD_AFTER_FRONT);
                CHECK(ranks[k].statuses[at] == (told ? DC_ERR_ARG : DC_OK)); /* the others did nothing wrong */
                CHECK(ranks[k].reasons[at] == (k == r ? failures[f].own : failures[f].others));
            }
            CHECK(ranks[r].reduced == STEPS - 2 - 1); /* the failed rank voted too */
        }
}

static void a_rank_without_memory_makes_all_compute_and_nobody_wait(void)
{
    static rank_t ranks[RANKS];
    for (int r = 0; r < RANKS; r++) {
        run_ranks(ranks, r, NO_MEMORY, 0);
        for (int k = 0; k < RANKS; k++) {
            CHECK(strchr(ranks[k].decisions, 's') == NULL);
            for (int step = 0; step < STEPS; step++) CHECK(ranks[k].statuses[step] == (k == r ? DC_ERR_MEMORY : DC_OK));
        }
        CHECK(ranks[0].reduced == STEPS - 2 - 1);
    }
}

/* The same for a fixed schedule: its decision is common, its failures are not. */
static void schedules_vote_as_well(void)
{
    static rank_t ranks[RANKS];
    method_of_the_test = "mask,mask=100000000000000000000000,front_blocks=1";
    run_ranks(ranks, 2, NO_MEMORY, 0);
    CHECK(strchr(ranks[0].decisions, 's') == NULL);
    run_ranks(ranks, 1, FORGETS, 7);
    CHECK(ranks[0].decisions[6] == 's' && ranks[0].decisions[7] == 'C' && ranks[0].decisions[8] == 's');
    method_of_the_test = METHOD;
}

/* A collective that reports an error is a failure like any other: the pass computes and says so. */
static int32_t broken(void *calls, double *sums, size_t n, void *stream)
{
    (void)sums, (void)n, (void)stream;
    ++*(long *)calls;
    return 1;
}

static void a_failing_reduce_computes(void)
{
    long calls = 0;
    dc_engine_t engine = an_engine(BLOCKS, 1);
    engine.reduce = broken;
    engine.reduce_user = &calls;
    toy_t toy = a_toy(a_cache(&engine, "fbcache,threshold=0.2," NO_RAILS), BLOCKS, 1, 0);
    begin_run(toy.cache, 8);
    for (uint32_t step = 0; step < 4; step++) {
        dc_pass_t pass = pass_of(step, 0);
        outcome_t outcome = toy_pass(&toy, &pass, 1.0f);
        CHECK(outcome.decision == 'C');
        CHECK(outcome.ended != DC_OK && outcome.ended != DC_ERR_DISCARD);
    }
    CHECK(calls == 4);
    dc_cache_destroy(toy.cache);
}

/* With one reduce of its own a lone rank decides as without. */
static int32_t identity(void *user, double *sums, size_t n, void *stream)
{
    (void)user, (void)sums, (void)n, (void)stream;
    return 0;
}

static void a_world_of_one_changes_nothing(void)
{
    char with[64], without[64];
    for (int k = 0; k < 2; k++) {
        dc_engine_t engine = an_engine(BLOCKS, 1);
        if (k == 0) engine.reduce = identity;
        toy_t toy = a_toy(a_cache(&engine, "fbcache,threshold=0.001," NO_RAILS), BLOCKS, 1, 0);
        begin_run(toy.cache, 40);
        (void)toy_decisions(&toy, 0, 40, k == 0 ? with : without);
        dc_cache_destroy(toy.cache);
    }
    CHECK(strcmp(with, without) == 0 && strchr(with, 's') != NULL && strchr(with + 1, 'C') != NULL);
}

int main(void)
{
    alarm(120); /* a deadlock is a failure, not a wait */
    method_of_the_test = METHOD;
    ranks_decide_as_one_rank_with_all_rows();
    reduce_is_called_once_in_every_pass_that_could_skip();
    a_rank_that_fails_once_takes_all_into_computing();
    a_rank_without_memory_makes_all_compute_and_nobody_wait();
    schedules_vote_as_well();
    a_failing_reduce_computes();
    a_world_of_one_changes_nothing();
    return 0;
}
