/* An allocator that keeps books, shared by the tests of memory. */
#ifndef DIFFCACHE_TESTS_LEDGER_H
#define DIFFCACHE_TESTS_LEDGER_H

#include "check.h"

enum { MOST_BLOCKS = 512 };

typedef struct ledger_t {
    struct { void *data; size_t size; } live[MOST_BLOCKS];
    size_t   n_live;
    uint64_t asked, held, peak; /* bytes: all ever asked for, held now, most ever held */
    long     calls, frees;
    long     fail_at;           /* the call that returns null, from 1; 0 = none */
    int      fail_on;           /* and every later one as well */
} ledger_t;

static inline void *ledger_alloc(void *user, size_t size, void *stream)
{
    ledger_t *books = user;
    (void)stream;
    CHECK(size > 0);
    books->calls++;
    int failing = books->calls == books->fail_at || (books->fail_on && books->calls > books->fail_at);
    if (books->fail_at != 0 && failing) return NULL;
    CHECK(books->n_live < MOST_BLOCKS);
    void *data = room(size);
    CHECK(data != NULL);
    memset(data, 0xff, size); /* memory is never promised to be zero: NaN in every dtype */
    books->live[books->n_live].data = data;
    books->live[books->n_live++].size = size;
    books->asked += size;
    books->held += size;
    if (books->held > books->peak) books->peak = books->held;
    return data;
}

static inline void ledger_free(void *user, void *data, size_t size, void *stream)
{
    ledger_t *books = user;
    settle(stream); /* it may be freed while work that reads it is queued */
    for (size_t k = 0; k < books->n_live; k++)
        if (books->live[k].data == data) {
            CHECK(books->live[k].size == size);
            memset(data, 0xdd, size); /* whoever still reads it shows */
            give_back(data);
            books->live[k] = books->live[--books->n_live];
            books->held -= size;
            books->frees++;
            return;
        }
    check_failed(__FILE__, __LINE__, "what is freed was allocated here, and is freed once");
}

static inline void keep_books(dc_engine_t *engine, ledger_t *books)
{
    memset(books, 0, sizeof *books);
    engine->mem_alloc = ledger_alloc;
    engine->mem_free = ledger_free;
    engine->mem_user = books;
}

#endif
