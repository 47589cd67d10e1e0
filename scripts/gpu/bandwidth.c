/* The library's kernels alone, by the driver's API and from the PTX that the library carries.
 *
 *     bandwidth KERNELS/PTX            a Markdown table: bytes moved a second, by size and dtype, beside the driver's
 * own copy bandwidth --check KERNELS/PTX    small odd shapes of everything, compared with exact results: for
 * compute-sanitizer
 *
 * Needs cuda.h and libcuda. The structs are those of the kernels. */
#include <cuda.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the kernels' parameters ---- */

typedef enum { F32, F16, BF16, DTYPES } dtype;
static const char *const DTYPE_NAMES[DTYPES] = {"f32", "f16", "bf16"};

typedef struct {
    uint64_t data, pitch; /* pitch in elements */
    uint32_t dtype, unused;
} rows_view;

typedef struct {
    rows_view out, x, y[16];
    float c[16];
    uint64_t rows, cols;
    uint32_t n, has_x, each_term, first_block, blocks, unused;
} sum_of_rows;

enum { MOST_SUMS = 4 };
typedef struct {
    sum_of_rows sum[MOST_SUMS];
    uint32_t n, unused;
} combine_rows;

typedef struct {
    rows_view x, base, earlier, keep;
    uint64_t rows, cols;
    uint32_t has_base, has_keep, first_block, blocks;
} compared_rows;

typedef struct {
    compared_rows compared[4];
    uint64_t partials, counter, result;
    uint32_t n, rounded;
} measure_rows;

typedef struct {
    rows_view y, rung[5];
    uint64_t rows, cols;
    uint32_t n_rungs, held;
    float gap;
    uint32_t unused;
} ladder_rows;

typedef union {
    combine_rows combine;
    measure_rows measure;
    ladder_rows ladder;
} parameters;

/* ---- the cases ---- */

typedef enum { COMBINE, MEASURE, LADDER, FAMILIES } family;
static const char *const FAMILY_NAMES[FAMILIES] = {"combine", "measure", "ladder"};

enum { TENSORS = 7, MOST_TERMS = 5, LADDER_RUNGS = 2 };
static const float WEIGHTS[MOST_TERMS] = {1, -0.5f, 0.5f, -1, 2}; /* all results of small whole numbers are exact */

/* combine: tensor 0 := tensor 1 (if has_x) + terms tensors from 2 on. measure: tensor 1 against 2; with a base, 1 - 0,
 * which is kept in 0. ladder: tensor 2 onto the rungs 0 and 1. */
typedef struct {
    const char *what;
    const char *kernel;
    family family;
    int terms;     /* combine */
    bool has_x;    /* combine */
    bool has_base; /* measure */
    int reads, writes;
} test_case;

static const test_case CASES[] = {
    {"copy", "combine_rows_0", COMBINE, 0, true, false, 1, 1},
    {"difference, or hold on a residual", "combine_rows_1", COMBINE, 1, true, false, 2, 1},
    {"order 1 on an output", "combine_rows_2", COMBINE, 2, false, false, 2, 1},
    {"order 1 on a residual", "combine_rows_2", COMBINE, 2, true, false, 3, 1},
    {"order 2 on a residual", "combine_rows_3", COMBINE, 3, true, false, 4, 1},
    {"order 3 on a residual", "combine_rows_4", COMBINE, 4, true, false, 5, 1},
    {"order 4 on a residual", "combine_rows_n", COMBINE, 5, true, false, 6, 1},
    {"change", "measure_rows", MEASURE, 0, false, false, 2, 0},
    {"change of a residual, which is kept", "measure_rows", MEASURE, 0, false, true, 3, 1},
    {"ladder of order 1 (compat)", "ladder_rows", LADDER, 0, false, false, 2, 2},
};
enum { CASE_COUNT = sizeof CASES / sizeof *CASES };

/* ---- the device ---- */

enum { THREADS = 256, VECTORS = 2, MOST_BLOCKS = 1 << 20, MOST_BLOCKS_MEASURING = 1024 };

static CUstream stream;
static CUfunction functions[CASE_COUNT];
static CUdeviceptr partials, counter, result_on_device;
static volatile double *result;

static void check(CUresult error, const char *what)
{
    const char *name = "?";
    if (error == CUDA_SUCCESS)
        return;
    (void)cuGetErrorName(error, &name);
    fprintf(stderr, "bandwidth: %s: %s\n", what, name);
    exit(1);
}

static char *read_text(const char *path)
{
    FILE *file = fopen(path, "rb");
    long size = file && fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    char *text = size >= 0 ? calloc((size_t)size + 1, 1) : NULL;
    if (text)
        rewind(file);
    if (!text || fread(text, 1, (size_t)size, file) != (size_t)size) {
        perror(path);
        exit(1);
    }
    fclose(file);
    return text;
}

static void open_device(const char *folder)
{
    CUdevice device;
    CUcontext context;
    int major = 0;
    check(cuInit(0), "starting the driver");
    check(cuDeviceGet(&device, 0), "finding a device");
    check(cuDevicePrimaryCtxRetain(&context, device), "opening the device");
    check(cuCtxSetCurrent(context), "opening the device");
    check(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "creating a stream");
    check(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device), "asking the device");
    CUmodule modules[FAMILIES];
    for (int f = 0; f < FAMILIES; f++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s.sm%d.ptx", folder, FAMILY_NAMES[f], major >= 8 ? 80 : 75);
        char *text = read_text(path);
        check(cuModuleLoadData(&modules[f], text), path);
        free(text);
    }
    for (int c = 0; c < CASE_COUNT; c++)
        check(cuModuleGetFunction(&functions[c], modules[CASES[c].family], CASES[c].kernel), CASES[c].kernel);
    void *host;
    check(cuMemAlloc(&partials, 3 * sizeof(double) * MOST_BLOCKS_MEASURING), "allocating memory");
    check(cuMemAlloc(&counter, sizeof(uint32_t)), "allocating memory");
    check(cuMemsetD8Async(counter, 0, sizeof(uint32_t), stream), "clearing memory");
    check(cuMemHostAlloc(&host, 3 * sizeof(double), CU_MEMHOSTALLOC_DEVICEMAP), "allocating memory");
    check(cuMemHostGetDevicePointer(&result_on_device, host, 0), "allocating memory");
    result = host;
}

static size_t size_of(dtype type) { return type == F32 ? 4 : 2; }

/* ---- launching ---- */

typedef struct {
    CUdeviceptr tensor[TENSORS];
    dtype dtype;
    uint64_t rows, cols, pitch;
} problem;

/* From row number `first` on. */
static rows_view view_from(const problem *p, int i, uint64_t first)
{
    return (rows_view){p->tensor[i] + first * p->pitch * size_of(p->dtype), p->pitch, p->dtype, 0};
}

static rows_view view(const problem *p, int i) { return view_from(p, i, 0); }

/* A thread of a kernel for one dtype takes some vectors of 16 bytes, one of the others eight elements. */
static uint32_t blocks_for(const test_case *c, const problem *p, uint64_t rows)
{
    bool one_dtype = c->family == MEASURE || (c->family == COMBINE && c->terms < MOST_TERMS);
    uint64_t elements = one_dtype ? 16 / size_of(p->dtype) : 8, vectors = rows * ((p->cols + elements - 1) / elements);
    uint64_t each = THREADS * (one_dtype ? VECTORS : 1), blocks = (vectors + each - 1) / each;
    uint32_t most = c->family == MEASURE ? MOST_BLOCKS_MEASURING : MOST_BLOCKS;
    return blocks < most ? (uint32_t)blocks : most;
}

/* Shares the rows out, as if they were those of several tensors. Returns the number of blocks. */
static uint32_t set_sums(combine_rows *all, const test_case *c, const problem *p)
{
    uint32_t sums = p->rows < MOST_SUMS ? (uint32_t)p->rows : MOST_SUMS, blocks = 0;
    for (; all->n < sums; all->n++) {
        sum_of_rows *sum = &all->sum[all->n];
        uint64_t first = p->rows * all->n / sums, rows = p->rows * (all->n + 1) / sums - first;
        *sum = (sum_of_rows){.out = view_from(p, 0, first),
                             .x = view_from(p, 1, first),
                             .rows = rows,
                             .cols = p->cols,
                             .n = (uint32_t)c->terms,
                             .has_x = c->has_x,
                             .first_block = blocks,
                             .blocks = blocks_for(c, p, rows)};
        for (int j = 0; j < c->terms; j++) {
            sum->y[j] = view_from(p, 2 + j, first);
            sum->c[j] = WEIGHTS[j];
        }
        blocks += sum->blocks;
    }
    return blocks;
}

/* Returns the number of blocks. */
static uint32_t set_parameters(parameters *all, const test_case *c, const problem *p)
{
    memset(all, 0, sizeof *all);
    if (c->family == COMBINE)
        return set_sums(&all->combine, c, p);
    if (c->family == MEASURE) {
        all->measure = (measure_rows){.partials = partials, .counter = counter, .result = result_on_device, .n = 1};
        all->measure.compared[0] = (compared_rows){.x = view(p, 1),
                                                   .base = view(p, 0),
                                                   .earlier = view(p, 2),
                                                   .keep = view(p, 0),
                                                   .rows = p->rows,
                                                   .cols = p->cols,
                                                   .has_base = c->has_base,
                                                   .has_keep = c->has_base,
                                                   .blocks = blocks_for(c, p, p->rows)};
        return blocks_for(c, p, p->rows);
    }
    all->ladder = (ladder_rows){.y = view(p, 2),
                                .rung = {view(p, 0), view(p, 1)},
                                .rows = p->rows,
                                .cols = p->cols,
                                .n_rungs = LADDER_RUNGS,
                                .held = 1,
                                .gap = 2};
    return blocks_for(c, p, p->rows);
}

static void launch(const test_case *c, const problem *p)
{
    parameters all;
    uint32_t blocks = set_parameters(&all, c, p);
    void *arguments[] = {&all};
    check(cuLaunchKernel(functions[c - CASES], blocks, 1, 1, THREADS, 1, 1, 0, stream, arguments, NULL), c->kernel);
}

/* ---- checking ---- */

/* Whole numbers and halves up to 256 are exact in all dtypes, and so is this. */
static void encode(float value, dtype type, unsigned char *out)
{
    uint32_t bits;
    uint16_t narrow = 0;
    memcpy(&bits, &value, 4);
    if (type == F32) {
        memcpy(out, &bits, 4);
        return;
    }
    if (type == BF16)
        narrow = (uint16_t)(bits >> 16);
    else if (value != 0)
        narrow = (uint16_t)((bits >> 16 & 0x8000) | ((bits >> 23 & 0xff) - 112) << 10 | (bits >> 13 & 0x3ff));
    memcpy(out, &narrow, 2);
}

/* Element i of tensor number `tensor`. */
static float value_of(int tensor, uint64_t i) { return (float)((i * 7 + (uint64_t)tensor * 5) % 17) - 8; }

static void fill(const problem *p, int tensor, unsigned char *host, size_t size)
{
    memset(host, 0xff, size);
    for (uint64_t row = 0; row < p->rows; row++)
        for (uint64_t col = 0; col < p->cols; col++)
            encode(value_of(tensor, row * p->cols + col), p->dtype, host + (row * p->pitch + col) * size_of(p->dtype));
    check(cuMemcpyHtoD(p->tensor[tensor], host, size), "copying");
}

/* What becomes of element i of `tensor`. */
static float expected(const test_case *c, int tensor, uint64_t i)
{
    if (c->family == COMBINE && tensor == 0) {
        float sum = c->has_x ? value_of(1, i) : 0;
        for (int j = 0; j < c->terms; j++)
            sum += WEIGHTS[j] * value_of(2 + j, i);
        return sum;
    }
    if (c->family == MEASURE && c->has_base && tensor == 0)
        return value_of(1, i) - value_of(0, i);
    if (c->family == LADDER && tensor < LADDER_RUNGS)
        return tensor == 0 ? value_of(2, i) : (value_of(2, i) - value_of(0, i)) / 2;
    return value_of(tensor, i);
}

static bool sums_are_right(const test_case *c, const problem *p)
{
    double sum[3] = {0};
    for (uint64_t i = 0; i < p->rows * p->cols; i++) {
        double u = c->has_base ? value_of(1, i) - value_of(0, i) : value_of(1, i), v = value_of(2, i);
        sum[0] += fabs(u - v), sum[1] += fabs(u), sum[2] += fabs(v);
    }
    return c->family != MEASURE || (result[0] == sum[0] && result[1] == sum[1] && result[2] == sum[2]);
}

static bool is_right(const test_case *c, dtype type, uint64_t rows, uint64_t cols)
{
    problem p = {.dtype = type, .rows = rows, .cols = cols, .pitch = (cols + 7) / 8 * 8};
    size_t element = size_of(type), size = ((rows - 1) * p.pitch + cols) * element; /* nothing after the last */
    unsigned char *host = malloc(size), *want = malloc(size);
    if (!host || !want)
        exit(1);
    for (int i = 0; i < TENSORS; i++) {
        check(cuMemAlloc(&p.tensor[i], size), "allocating memory");
        fill(&p, i, host, size);
    }
    launch(c, &p);
    check(cuStreamSynchronize(stream), c->kernel);
    bool right = sums_are_right(c, &p);
    for (int i = 0; i < TENSORS; i++) {
        check(cuMemcpyDtoH(host, p.tensor[i], size), "copying");
        memset(want, 0xff, size);
        for (uint64_t row = 0; row < rows; row++)
            for (uint64_t col = 0; col < cols; col++)
                encode(expected(c, i, row * cols + col), type, want + (row * p.pitch + col) * element);
        right = right && memcmp(host, want, size) == 0;
        check(cuMemFree(p.tensor[i]), "freeing memory");
    }
    if (!right)
        printf("WRONG: %s (%s), %s, %llu rows of %llu\n", c->what, c->kernel, DTYPE_NAMES[type],
               (unsigned long long)rows, (unsigned long long)cols);
    free(host), free(want);
    return right;
}

static int check_all(void)
{
    static const uint64_t SHAPES[][2] = {{1, 1}, {1, 7}, {1, 8}, {1, 4099}, {3, 37}, {5, 2048}, {64, 129}};
    int count = 0, wrong = 0;
    for (size_t c = 0; c < CASE_COUNT; c++)
        for (dtype type = F32; type < DTYPES; type++)
            for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++, count++)
                wrong += !is_right(&CASES[c], type, SHAPES[s][0], SHAPES[s][1]);
    printf("%d of %d launches did what they should\n", count - wrong, count);
    return wrong ? 1 : 0;
}

/* ---- timing ---- */

enum { REPEAT = 9 };

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Seconds that one launch takes in a row of them; c: null = the driver's copy. */
static double seconds_of(const test_case *c, const problem *p)
{
    CUevent start, stop;
    size_t size = p->cols * size_of(p->dtype);
    int launches = (int)(((size_t)256 << 20) / size) + 1;
    float times[REPEAT];
    check(cuEventCreate(&start, CU_EVENT_DEFAULT), "creating an event");
    check(cuEventCreate(&stop, CU_EVENT_DEFAULT), "creating an event");
    for (int i = -1; i < REPEAT; i++) { /* the first is a warm-up */
        check(cuEventRecord(start, stream), "timing");
        for (int k = 0; k < launches; k++)
            if (c)
                launch(c, p);
            else
                check(cuMemcpyDtoDAsync(p->tensor[0], p->tensor[1], size, stream), "copying");
        check(cuEventRecord(stop, stream), "timing");
        check(cuEventSynchronize(stop), "timing");
        if (i >= 0)
            check(cuEventElapsedTime(&times[i], start, stop), "timing");
    }
    check(cuEventDestroy(start), "timing");
    check(cuEventDestroy(stop), "timing");
    qsort(times, REPEAT, sizeof *times, by_size);
    return 1e-3 * times[REPEAT / 2] / launches;
}

enum { SIZES = 6 };
static size_t size_at(int i) { return (size_t)1 << (20 + 2 * i); } /* 1 MiB to 1 GiB */

static void print_table(dtype type)
{
    static double rate[CASE_COUNT + 1][SIZES]; /* bytes a second; the last row is the driver's copy */
    int sizes = 0;
    for (; sizes < SIZES; sizes++) {
        problem p = {
            .dtype = type, .rows = 1, .cols = size_at(sizes) / size_of(type), .pitch = size_at(sizes) / size_of(type)};
        CUdeviceptr memory;
        if (cuMemAlloc(&memory, TENSORS * size_at(sizes)) != CUDA_SUCCESS)
            break; /* a smaller GPU */
        check(cuMemsetD8Async(memory, 0, TENSORS * size_at(sizes), stream), "clearing memory");
        for (int i = 0; i < TENSORS; i++)
            p.tensor[i] = memory + (size_t)i * size_at(sizes);
        for (int c = 0; c <= CASE_COUNT; c++) {
            const test_case *this = c < CASE_COUNT ? &CASES[c] : NULL;
            int streams = this ? this->reads + this->writes : 2;
            rate[c][sizes] = streams * (double)size_at(sizes) / seconds_of(this, &p);
        }
        check(cuMemFree(memory), "freeing memory");
    }
    printf("%s: GB moved a second, and as a share of the driver's copy, by the size of one tensor.\n\n| kernel | reads "
           "+ writes |",
           DTYPE_NAMES[type]);
    for (int s = 0; s < sizes; s++)
        printf(" %zu MiB |", size_at(s) >> 20);
    printf("\n|---|---|");
    for (int s = 0; s < sizes; s++)
        printf("---|");
    for (int c = CASE_COUNT; c >= 0; c--) {
        if (c == CASE_COUNT)
            printf("\n| the driver's copy | 1 + 1 |");
        else
            printf("\n| %s | %d + %d |", CASES[c].what, CASES[c].reads, CASES[c].writes);
        for (int s = 0; s < sizes; s++)
            printf(c == CASE_COUNT ? " %.0f |" : " %.0f (%.2f) |", 1e-9 * rate[c][s], rate[c][s] / rate[CASE_COUNT][s]);
    }
    printf("\n\n");
}

int main(int argc, char **argv)
{
    bool checking = argc == 3 && strcmp(argv[1], "--check") == 0;
    if (argc != 2 + checking) {
        fprintf(stderr, "usage: bandwidth [--check] KERNELS/PTX\n");
        return 2;
    }
    open_device(argv[argc - 1]);
    if (checking)
        return check_all();
    for (dtype type = F32; type < DTYPES; type++)
        print_table(type);
    return 0;
}
