/* The arithmetic on a CUDA device, by the kernels of maths.cu. Needs the driver when it runs, and nothing of CUDA
 * before. */
#include "maths.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern const char MATHS_PTX[]; /* maths.sm75.ptx, made into C by CMake */

typedef uint64_t device_pointer;

/* The part of the driver that is used: name here, name there, parameters. */
#define DRIVER(X)                                                                                             \
    X(initialise, "cuInit", (unsigned flags))                                                                 \
    X(error_name, "cuGetErrorName", (int error, const char **name))                                           \
    X(device_get, "cuDeviceGet", (int *device, int ordinal))                                                  \
    X(context_retain, "cuDevicePrimaryCtxRetain", (void **context, int device))                               \
    X(context_set, "cuCtxSetCurrent", (void *context))                                                        \
    X(stream_create, "cuStreamCreate", (void **stream, unsigned flags))                                       \
    X(stream_wait, "cuStreamSynchronize", (void *stream))                                                     \
    X(module_load, "cuModuleLoadData", (void **module, const void *image))                                    \
    X(module_function, "cuModuleGetFunction", (void **function, void *module, const char *name))              \
    X(allocate, "cuMemAlloc_v2", (device_pointer * memory, size_t size))                                      \
    X(release, "cuMemFree_v2", (device_pointer memory))                                                       \
    X(upload, "cuMemcpyHtoDAsync_v2", (device_pointer to, const void *host, size_t size, void *stream))       \
    X(download, "cuMemcpyDtoHAsync_v2", (void *host, device_pointer from, size_t size, void *stream))         \
    X(copy, "cuMemcpyDtoDAsync_v2", (device_pointer to, device_pointer from, size_t size, void *stream))      \
    X(launch, "cuLaunchKernel",                                                                               \
      (void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared, void *stream, void **parameters, void **extra))

static struct {
#define MEMBER(here, there, parameters) int(*here) parameters;
    DRIVER(MEMBER)
#undef MEMBER
} driver;

#define KERNELS(X) \
    X(linear) X(attention) X(normalise) X(add_gated) X(add) X(add_chosen) X(permute) X(silu) X(gelu) X(waves) X(advance)

static struct {
#define MEMBER(name) void *name;
    KERNELS(MEMBER)
#undef MEMBER
} kernels;

static void *stream; /* all work goes here */

static const char *name_of(int error)
{
    const char *name = NULL;
    return driver.error_name(error, &name) || !name ? "an error without a name" : name;
}

static void check(int error, const char *what)
{
    if (!error)
        return;
    fprintf(stderr, "CUDA: %s: %s\n", what, name_of(error));
    exit(1);
}

/* ---- memory ---- */

static void *allocate_on_device(size_t size)
{
    device_pointer memory = 0;
    check(driver.allocate(&memory, size), "allocating memory");
    return (void *)(uintptr_t)memory;
}

static void release(void *memory) { check(driver.release((uintptr_t)memory), "freeing memory"); }

static void upload(void *to, const void *host, size_t size)
{
    check(driver.upload((uintptr_t)to, host, size, stream), "copying to the device");
}

static void download(void *host, const void *from, size_t size)
{
    check(driver.download(host, (uintptr_t)from, size, stream), "copying from the device");
    check(driver.stream_wait(stream), "waiting for the device");
}

static void copy(void *to, const void *from, size_t size)
{
    check(driver.copy((uintptr_t)to, (uintptr_t)from, size, stream), "copying on the device");
}

/* ---- operations ---- */

enum { THREADS = 256, TILE = 64 /* as in maths.cu */ };

static unsigned blocks(int count, int each) { return ((unsigned)count + (unsigned)each - 1) / (unsigned)each; }

static void launch(void *kernel, unsigned grid_x, unsigned grid_y, int threads, size_t shared, void **parameters)
{
    check(driver.launch(kernel, grid_x, grid_y, 1, (unsigned)threads, 1, 1, (unsigned)shared, stream, parameters, NULL),
          "launching a kernel");
}

/* The kernels take pointers to their parameters, in their order. */
#define PARAMETERS(...) ((void *[]){__VA_ARGS__})

static void linear(int rows, int in, int out, const float *x, const float *weight, const float *bias, float *y)
{
    launch(kernels.linear, blocks(out, TILE), blocks(rows, TILE), THREADS, 0,
           PARAMETERS(&rows, &in, &out, &x, &weight, &bias, &y));
}

static void attention(int n, int tokens, int heads, int width, const float *qkv, float *out)
{
    size_t shared = sizeof(float) * (size_t)(tokens * (2 * width / heads + tokens + 1));
    launch(kernels.attention, (unsigned)(n * heads), 1, tokens, shared,
           PARAMETERS(&tokens, &heads, &width, &qkv, &out));
}

static void normalise(int n, int rows, int columns, const float *x, const float *scale, const float *shift, int stride,
                      float *out)
{
    int all = n * rows;
    launch(kernels.normalise, blocks(all, THREADS / 32), 1, THREADS, 0,
           PARAMETERS(&all, &rows, &columns, &x, &scale, &shift, &stride, &out));
}

/* A thread for each of `count` elements. */
static void launch_elements(void *kernel, int count, void **parameters)
{
    launch(kernel, blocks(count, THREADS), 1, THREADS, 0, parameters);
}

static void add_gated(int n, int rows, int columns, const float *gate, int stride, const float *y, float *x)
{
    int count = n * rows * columns;
    launch_elements(kernels.add_gated, count, PARAMETERS(&count, &rows, &columns, &gate, &stride, &y, &x));
}

static void add(int n, int period, const float *y, float *x)
{
    int count = n * period;
    launch_elements(kernels.add, count, PARAMETERS(&count, &period, &y, &x));
}

static void add_chosen(int rows, int columns, const float *table, const int *index, float *x)
{
    int count = rows * columns;
    launch_elements(kernels.add_chosen, count, PARAMETERS(&count, &columns, &table, &index, &x));
}

static void permute(int n, int period, const float *x, const int *order, float *out)
{
    int count = n * period;
    launch_elements(kernels.permute, count, PARAMETERS(&count, &period, &x, &order, &out));
}

static void silu(int count, float *x) { launch_elements(kernels.silu, count, PARAMETERS(&count, &x)); }

static void gelu(int count, float *x) { launch_elements(kernels.gelu, count, PARAMETERS(&count, &x)); }

static void waves(int n, int half, const float *t, const float *frequency, float *out)
{
    int count = n * half;
    launch_elements(kernels.waves, count, PARAMETERS(&count, &half, &t, &frequency, &out));
}

static void advance(int count, float dt, float guidance, const float *uncond, const float *cond, float *x)
{
    launch_elements(kernels.advance, count, PARAMETERS(&count, &dt, &guidance, &uncond, &cond, &x));
}

/* ---- start ---- */

static bool load_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "CUDA: the NVIDIA driver is missing: %s\n", dlerror());
        return false;
    }
#define LOAD(here, there, parameters)                                                                \
    *(void **)&driver.here = dlsym(library, there);                                                  \
    if (!driver.here) {                                                                              \
        fprintf(stderr, "CUDA: the NVIDIA driver has no %s: it is too old, or a stand-in\n", there); \
        return false;                                                                                \
    }
    DRIVER(LOAD)
#undef LOAD
    return true;
}

/* The primary context of the first device is current in this thread ever after. */
static bool open_device(void)
{
    enum { NON_BLOCKING = 1 };
    int device = 0, error = driver.initialise(0);
    void *context = NULL, *module = NULL;
    if (!error)
        error = driver.device_get(&device, 0);
    if (error) {
        fprintf(stderr, "CUDA: there is a driver, but no device to use: %s\n", name_of(error));
        return false;
    }
    check(driver.context_retain(&context, device), "opening the device");
    check(driver.context_set(context), "opening the device");
    check(driver.stream_create(&stream, NON_BLOCKING), "creating a stream");
    check(driver.module_load(&module, MATHS_PTX), "loading the kernels");
#define LOAD(name) check(driver.module_function(&kernels.name, module, #name), "loading the kernel " #name);
    KERNELS(LOAD)
#undef LOAD
    return true;
}

const maths *maths_cuda(void)
{
    static maths cuda = {
        .backend = DC_BACKEND_CUDA,
        .at_once = 256,
        .allocate = allocate_on_device,
        .release = release,
        .upload = upload,
        .download = download,
        .copy = copy,
        .linear = linear,
        .attention = attention,
        .normalise = normalise,
        .add_gated = add_gated,
        .add = add,
        .add_chosen = add_chosen,
        .permute = permute,
        .silu = silu,
        .gelu = gelu,
        .waves = waves,
        .advance = advance,
    };
    if (!stream && (!load_driver() || !open_device()))
        return NULL;
    cuda.stream = stream;
    return &cuda;
}
