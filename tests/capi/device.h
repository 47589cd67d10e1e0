/* The backend the tests run on. With DC_TEST_BACKEND=cuda in the environment every program runs a second time, unchanged, on
 * the first CUDA device; else on the CPU.
 *
 * The programs do their toy maths in host code, on tensors that lie on the stack. On CUDA they may stay there, because
 * the stack is managed memory, which host and device both reach: `main` runs the program on a thread with such a stack.
 * Passes then use DC_STREAM_SYNC: when a call returns, its work is done. What is allocated comes from room(), threads
 * from start_thread(). Tests of streams and of device memory proper are the cuda_*.c. */
#ifndef DIFFCACHE_TESTS_DEVICE_H
#define DIFFCACHE_TESTS_DEVICE_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* threads, aligned memory, alarm */
#endif

#include "cuda.h"

#include <diffcache.h>

#include <pthread.h>

static inline int on_cuda(void)
{
    const char *backend = getenv("DC_TEST_BACKEND");
    return backend != NULL && strcmp(backend, "cuda") == 0;
}

/* ---- what an engine, a run and a pass say ---- */

static inline void put_on_backend(dc_engine_t *engine)
{
    if (!on_cuda()) return;
    engine->backend = DC_BACKEND_CUDA;
    engine->device = 0;
}

static inline void *the_stream(void)
{
    return on_cuda() ? DC_STREAM_SYNC : NULL;
}

/* As the header starts them. */
static const dc_run_t  headers_run = DC_RUN_INIT;
static const dc_pass_t headers_pass = DC_PASS_INIT;

static inline dc_run_t a_run(void)
{
    dc_run_t run = headers_run;
    run.stream = the_stream();
    return run;
}

static inline dc_pass_t a_pass(void)
{
    dc_pass_t pass = headers_pass;
    pass.stream = the_stream();
    return pass;
}

#undef DC_RUN_INIT
#undef DC_PASS_INIT
#define DC_RUN_INIT  a_run()
#define DC_PASS_INIT a_pass()

/* ---- memory ---- */

static void *primary_context; /* of the first device */

/* The first device is the current one of this thread until leave_device(). */
static inline void enter_device(void)
{
    CUDA_OK(cuda()->CtxPushCurrent(primary_context));
}

static inline void leave_device(void)
{
    void *context;
    CUDA_OK(cuda()->CtxPopCurrent(&context));
}

/* `bytes` that host and device reach, aligned to 256. */
static inline void *room(size_t bytes)
{
    void *data = NULL;
    if (!on_cuda()) return posix_memalign(&data, 256, bytes) == 0 ? data : NULL;
    enter_device();
    CUDA_OK(cuda()->MemAllocManaged(&data, bytes, CUDA_ATTACH_GLOBAL));
    leave_device();
    return data;
}

static inline void give_back(void *data)
{
    if (!on_cuda()) {
        free(data);
        return;
    }
    enter_device();
    CUDA_OK(cuda()->MemFree(data));
    leave_device();
}

/* What was queued on `stream` is done. In callbacks: elsewhere every call returns when its work is. */
static inline void settle(void *stream)
{
    if (!on_cuda()) return;
    enter_device();
    CUDA_OK(cuda()->StreamSynchronize(stream));
    leave_device();
}

/* Copies between the host and memory of the backend, which a callback may be given. */
static inline void read_device(void *to, const void *from, size_t bytes, void *stream)
{
    if (!on_cuda()) {
        memcpy(to, from, bytes);
        return;
    }
    settle(stream);
    enter_device();
    CUDA_OK(cuda()->CopyToHost(to, from, bytes));
    leave_device();
}

static inline void write_device(void *to, const void *from, size_t bytes)
{
    if (!on_cuda()) {
        memcpy(to, from, bytes);
        return;
    }
    enter_device();
    CUDA_OK(cuda()->CopyToDevice(to, from, bytes));
    leave_device();
}

/* ---- threads ---- */

typedef struct thread_t {
    pthread_t id;
    void     *stack;
} thread_t;

static inline void thread_ok(int code)
{
    if (code == 0) return;
    fprintf(stderr, "a thread: %s\n", strerror(code));
    exit(1);
}

/* A thread whose local variables are tensors for the backend. */
static inline void start_thread(thread_t *thread, void *(*work)(void *), void *argument)
{
    enum { STACK = 4 << 20 };
    pthread_attr_t attributes;
    thread_ok(pthread_attr_init(&attributes));
    thread->stack = on_cuda() ? room(STACK) : NULL;
    if (thread->stack != NULL) thread_ok(pthread_attr_setstack(&attributes, thread->stack, STACK));
    thread_ok(pthread_create(&thread->id, &attributes, work, argument));
    thread_ok(pthread_attr_destroy(&attributes));
}

static inline void join_thread(thread_t *thread)
{
    thread_ok(pthread_join(thread->id, NULL));
    if (thread->stack != NULL) give_back(thread->stack);
}

/* ---- the program ---- */

int test_main(void);

static inline void *run_test_main(void *status)
{
    *(int *)status = test_main();
    return NULL;
}

int main(void)
{
    int status = 1, concurrent = 0;
    thread_t thread;
    if (!on_cuda()) return test_main();
    CUDA_OK(cuda()->DeviceGetAttribute(&concurrent, CUDA_CONCURRENT_MANAGED, 0));
    if (!concurrent) {
        printf("SKIPPED: host and device cannot use managed memory at the same time\n");
        return SKIPPED;
    }
    CUDA_OK(cuda()->PrimaryCtxRetain(&primary_context, 0));
    start_thread(&thread, run_test_main, &status);
    join_thread(&thread);
    return status;
}

#define main test_main

#endif
