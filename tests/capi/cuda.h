/* The CUDA driver API, as far as the tests use it, found at run time: nothing is linked, and no CUDA header is needed.
 * Handles and device addresses are plain pointers here, as they are 64 bits wide and CUDA's own types are opaque. */
#ifndef DIFFCACHE_TESTS_CUDA_H
#define DIFFCACHE_TESTS_CUDA_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ctest counts a program that ends so as skipped. */
enum { SKIPPED = 77 };

/* Values of the driver's enums. */
enum {
    CUDA_OUT_OF_MEMORY = 2,
    CUDA_NON_BLOCKING = 1,       /* a stream */
    CUDA_ATTACH_GLOBAL = 1,      /* managed memory */
    CUDA_CAPTURE_GLOBAL = 0,     /* capture modes */
    CUDA_CAPTURE_RELAXED = 2,
    CUDA_CONCURRENT_MANAGED = 89 /* attribute: host and device may use managed memory at the same time */
};

#define CUDA_FUNCTIONS(F)                                                                             \
    F(Init, "cuInit", (unsigned flags))                                                               \
    F(DeviceGetCount, "cuDeviceGetCount", (int *count))                                               \
    F(DeviceGetAttribute, "cuDeviceGetAttribute", (int *value, int attribute, int device))            \
    F(PrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (void **context, int device))                     \
    F(PrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", (int device))                                \
    F(CtxCreate, "cuCtxCreate_v2", (void **context, unsigned flags, int device))                      \
    F(CtxDestroy, "cuCtxDestroy_v2", (void *context))                                                 \
    F(CtxGetCurrent, "cuCtxGetCurrent", (void **context))                                             \
    F(CtxSetCurrent, "cuCtxSetCurrent", (void *context))                                              \
    F(CtxSynchronize, "cuCtxSynchronize", (void))                                                     \
    F(CtxPushCurrent, "cuCtxPushCurrent_v2", (void *context))                                         \
    F(CtxPopCurrent, "cuCtxPopCurrent_v2", (void **context))                                          \
    F(StreamCreate, "cuStreamCreate", (void **stream, unsigned flags))                                \
    F(StreamDestroy, "cuStreamDestroy_v2", (void *stream))                                            \
    F(StreamSynchronize, "cuStreamSynchronize", (void *stream))                                       \
    F(StreamBeginCapture, "cuStreamBeginCapture_v2", (void *stream, int mode))                        \
    F(StreamEndCapture, "cuStreamEndCapture", (void *stream, void **graph))                           \
    F(GraphGetNodes, "cuGraphGetNodes", (void *graph, void *nodes, size_t *count))                    \
    F(GraphDestroy, "cuGraphDestroy", (void *graph))                                                  \
    F(ExchangeCaptureMode, "cuThreadExchangeStreamCaptureMode", (int *mode))                          \
    F(MemAlloc, "cuMemAlloc_v2", (void **address, size_t bytes))                                      \
    F(MemAllocManaged, "cuMemAllocManaged", (void **address, size_t bytes, unsigned flags))           \
    F(MemHostAlloc, "cuMemHostAlloc", (void **address, size_t bytes, unsigned flags))                 \
    F(MemFree, "cuMemFree_v2", (void *address))                                                       \
    F(MemFreeHost, "cuMemFreeHost", (void *address))                                                  \
    F(CopyToDevice, "cuMemcpyHtoD_v2", (void *to, const void *from, size_t bytes))                    \
    F(CopyToHost, "cuMemcpyDtoH_v2", (void *to, const void *from, size_t bytes))                      \
    F(CopyOnDevice, "cuMemcpyDtoDAsync_v2", (void *to, const void *from, size_t bytes, void *stream))

typedef struct cuda_t {
#define CUDA_MEMBER(name, symbol, arguments) int(*name) arguments;
    CUDA_FUNCTIONS(CUDA_MEMBER)
#undef CUDA_MEMBER
    void *library;
} cuda_t;

/* The driver, opened and initialised once; null, and `*why`, if there is none that works. Not for two threads at once the
 * first time. */
static inline const cuda_t *cuda_driver(const char **why)
{
    static cuda_t driver;
    static int opened;
    *why = "";
    if (opened) return &driver;
    driver.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver.library == NULL) {
        *why = "there is no CUDA driver";
        return NULL;
    }
#define CUDA_FIND(name, symbol, arguments)                                                                  \
    do {                                                                                                    \
        void *found = dlsym(driver.library, symbol);                                                        \
        if (found == NULL) {                                                                                \
            *why = "the CUDA driver has no " symbol;                                                        \
            return NULL;                                                                                    \
        }                                                                                                   \
        memcpy(&driver.name, &found, sizeof found); /* ISO C has no cast from an object to a function */    \
    } while (0);
    CUDA_FUNCTIONS(CUDA_FIND)
#undef CUDA_FIND
    if (driver.Init(0) != 0) {
        *why = "the CUDA driver has no device";
        return NULL;
    }
    opened = 1;
    return &driver;
}

/* The same for programs that make no sense without. */
static inline const cuda_t *cuda(void)
{
    const char *why;
    const cuda_t *driver = cuda_driver(&why);
    if (driver != NULL) return driver;
    printf("SKIPPED: %s\n", why);
    exit(SKIPPED);
}

#define CUDA_OK(call) cuda_ok(__FILE__, __LINE__, #call, (call))

static inline void cuda_ok(const char *file, int line, const char *call, int code)
{
    if (code == 0) return;
    fprintf(stderr, "%s:%d: %s: CUDA error %d\n", file, line, call, code);
    exit(1);
}

#endif
