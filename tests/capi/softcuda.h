/* What the stand-in for the driver has beside the driver's own functions: failures on demand, an access log, counts. */
#ifndef DIFFCACHE_TESTS_SOFTCUDA_H
#define DIFFCACHE_TESTS_SOFTCUDA_H

#include "tape.h"

typedef struct softcuda_stats_t {
    uint64_t launches;
    uint64_t live_allocations, live_bytes; /* of device memory */
    uint64_t pinned_live;
    uint64_t contexts_retained, modules, events, streams;
    uint64_t synchronises; /* calls that wait, or may */
} softcuda_stats_t;

typedef struct softcuda_t {
    int (*fail)(const char *what, uint64_t nth, int code); /* once; "execute" is a kernel that runs; nth 0 = not any more */
    int (*lose)(int device);
    void (*log_start)(void);
    int (*log_text)(char *buffer, size_t capacity, size_t *length);
    int (*stats)(softcuda_stats_t *stats);
} softcuda_t;

/* False where the driver is a real one. */
static inline int find_softcuda(softcuda_t *soft)
{
    struct { const char *name; void *to; } functions[] = {
        {"softcuda_fail", &soft->fail},         {"softcuda_break", &soft->lose}, {"softcuda_log_start", &soft->log_start},
        {"softcuda_log_text", &soft->log_text}, {"softcuda_stats", &soft->stats},
    };
    for (size_t k = 0; k < sizeof functions / sizeof *functions; k++) {
        void *found = dlsym(cuda()->library, functions[k].name);
        if (found == NULL) return 0;
        memcpy(functions[k].to, &found, sizeof found);
    }
    return 1;
}

/* Ends the program as skipped where there is none. */
static inline softcuda_t softcuda(void)
{
    softcuda_t soft;
    if (find_softcuda(&soft)) return soft;
    printf("SKIPPED: a real driver does not fail on demand\n");
    exit(SKIPPED);
}

static inline softcuda_stats_t soft_stats(const softcuda_t *soft)
{
    softcuda_stats_t stats;
    CUDA_OK(soft->stats(&stats));
    return stats;
}

#endif
