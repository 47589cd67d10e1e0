// What diffcache costs and saves at the shapes of real models: the matrix products of a diffusion transformer in bf16,
// block after block, with random weights. Prints a Markdown table. `block_loop --help` lists the options.
//
// A block here is its six products: queries, keys and values; scores; their sum; projection; and the two of the MLP.
// Softmax, activation and normalisation are left out. A real block takes longer, so the library's share of the time is,
// if anything, overstated.
#include <diffcache.h>

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace
{

struct Shape {
    const char *name;
    int tokens, width, mlp, blocks;
};
const Shape FLUX = {"FLUX", 4608, 3072, 4 * 3072, 19 + 38}; // 4096 of image and 512 of text, double and single blocks
const Shape WAN = {"Wan 2.1 14B", 32760, 5120, 13824, 40};  // 81 frames of 480 x 832

constexpr int HEAD = 128;               // channels of an attention head
constexpr int WEIGHT_SETS = 4;          // blocks share them in turn; one set is larger than any GPU's cache
constexpr double MOST_SCORES = 2.3e9;   // elements: heads are taken so many at a time
constexpr float RESIDUAL = 0.02f;       // what a part of a block adds, relative to its input
constexpr unsigned DISTINCT_INPUTS = 2; // of the model, in turn, so that there is a change to measure

[[noreturn]] void fail(const char *what, const char *why)
{
    std::fprintf(stderr, "block_loop: %s: %s\n", what, why);
    std::exit(1);
}

void check(cudaError_t error, const char *what)
{
    if (error != cudaSuccess)
        fail(what, cudaGetErrorString(error));
}

void check(cublasStatus_t error, const char *what)
{
    if (error != CUBLAS_STATUS_SUCCESS)
        fail(what, cublasGetStatusString(error));
}

void check(dc_status_t error, const char *what)
{
    if (error != DC_OK)
        fail(what, dc_last_error());
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> values)
{
    std::sort(values.begin(), values.end());
    return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

// ---- the model ----

// Uniform between -limit and limit.
__global__ void fill_random(__nv_bfloat16 *x, size_t count, uint64_t seed, float limit)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        uint64_t z = (seed << 40) + i + 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        x[i] = __float2bfloat16(limit * ((float)(z >> 40) * 0x1p-23f - 1.0f));
    }
}

// Device memory with elements of variance `variance`.
__nv_bfloat16 *random_matrix(size_t count, uint64_t seed, double variance)
{
    __nv_bfloat16 *memory = nullptr;
    check(cudaMalloc(&memory, count * sizeof *memory), "allocating memory");
    fill_random<<<1024, 256>>>(memory, count, seed, (float)std::sqrt(3 * variance));
    check(cudaGetLastError(), "filling memory");
    return memory;
}

class Model
{
  public:
    const Shape shape;
    cudaStream_t stream = nullptr;
    __nv_bfloat16 *x; // [tokens][width] hidden states

    explicit Model(const Shape &s) : shape(s), heads(s.width / HEAD)
    {
        const size_t tokens = (size_t)s.tokens, width = (size_t)s.width, mlp = (size_t)s.mlp;
        heads_at_once = std::max(1, std::min(heads, (int)(MOST_SCORES / ((double)tokens * (double)tokens))));
        uint64_t seed = 1;
        for (Weights &w : weights) {
            w.qkv = random_matrix(width * 3 * width, seed++, 1.0 / s.width);
            w.projection = random_matrix(width * width, seed++, 1.0 / s.width);
            w.up = random_matrix(width * mlp, seed++, 1.0 / s.width);
            w.down = random_matrix(mlp * width, seed++, 1.0 / s.mlp);
        }
        for (__nv_bfloat16 *&input : inputs)
            input = random_matrix(tokens * width, seed++, 1);
        x = random_matrix(tokens * width, seed++, 1);
        qkv = random_matrix(tokens * 3 * width, seed++, 1);
        attended = random_matrix(tokens * width, seed++, 1);
        wide = random_matrix(tokens * mlp, seed++, 1);
        scores = random_matrix(tokens * tokens * (size_t)heads_at_once, seed++, 1);
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
        check(cublasCreate(&blas), "starting cuBLAS");
        check(cublasSetStream(blas, stream), "starting cuBLAS");
        check(cudaDeviceSynchronize(), "filling memory");
    }

    void begin_step(unsigned step)
    {
        const size_t size = (size_t)shape.tokens * (size_t)shape.width * sizeof *x;
        check(cudaMemcpyAsync(x, inputs[step % DISTINCT_INPUTS], size, cudaMemcpyDeviceToDevice, stream), "copying");
    }

    void run_block(unsigned block)
    {
        const Weights &w = weights[block % WEIGHT_SETS];
        product(shape.width, 3 * shape.width, x, w.qkv, qkv, 1, 0);
        attention();
        product(shape.width, shape.width, attended, w.projection, x, RESIDUAL, 1);
        product(shape.width, shape.mlp, x, w.up, wide, 1, 0);
        product(shape.mlp, shape.width, wide, w.down, x, RESIDUAL, 1);
    }

    void wait() { check(cudaStreamSynchronize(stream), "running"); }

  private:
    struct Weights {
        __nv_bfloat16 *qkv, *projection, *up, *down; // [in][out]
    } weights[WEIGHT_SETS];
    const int heads;
    int heads_at_once;
    cublasHandle_t blas = nullptr;
    __nv_bfloat16 *inputs[DISTINCT_INPUTS], *qkv, *attended, *wide, *scores;

    // y[tokens][out] = scale * in[tokens][n_in] * weight[n_in][n_out] + keep * y. cuBLAS counts columns first: to it
    // all is transposed.
    void product(int n_in, int n_out, const __nv_bfloat16 *in, const __nv_bfloat16 *weight, __nv_bfloat16 *y,
                 float scale, float keep)
    {
        check(cublasGemmEx(blas, CUBLAS_OP_N, CUBLAS_OP_N, n_out, shape.tokens, n_in, &scale, weight, CUDA_R_16BF,
                           n_out, in, CUDA_R_16BF, n_in, &keep, y, CUDA_R_16BF, n_out, CUBLAS_COMPUTE_32F,
                           CUBLAS_GEMM_DEFAULT),
              "a matrix product");
    }

    void attention()
    {
        const int tokens = shape.tokens, row = 3 * shape.width;
        const long long plane = (long long)tokens * tokens;
        const float first = 1 / std::sqrt((float)HEAD), second = 1 / (float)tokens, zero = 0;
        for (int head = 0; head < heads; head += heads_at_once) {
            const int count = std::min(heads_at_once, heads - head);
            const __nv_bfloat16 *q = qkv + head * HEAD, *k = q + shape.width, *v = k + shape.width;
            check(cublasGemmStridedBatchedEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, tokens, tokens, HEAD, &first, k,
                                             CUDA_R_16BF, row, HEAD, q, CUDA_R_16BF, row, HEAD, &zero, scores,
                                             CUDA_R_16BF, tokens, plane, count, CUBLAS_COMPUTE_32F,
                                             CUBLAS_GEMM_DEFAULT),
                  "the scores");
            check(cublasGemmStridedBatchedEx(blas, CUBLAS_OP_N, CUBLAS_OP_N, HEAD, tokens, tokens, &second, v,
                                             CUDA_R_16BF, row, HEAD, scores, CUDA_R_16BF, tokens, plane, &zero,
                                             attended + head * HEAD, CUDA_R_16BF, shape.width, HEAD, count,
                                             CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                  "the attention");
        }
    }
};

// ---- runs ----

struct Setting {
    const char *name;
    std::string options; // empty = no cache
    bool skips;          // something should be left out
    dc_cache_t *cache;
    dc_stats_t stats;
    std::vector<double> seconds, call_seconds; // of each run: all of it, and in the library's calls
};

// Every n-th step computes, and the first two.
std::string mask_of_every(unsigned n, unsigned steps)
{
    std::string mask = "mask,mask=";
    for (unsigned i = 0; i < steps; i++)
        mask += i % n == 0 || i < 2 ? '1' : '0';
    return mask;
}

dc_cache_t *open_cache(const Model &model, const std::string &text)
{
    dc_engine_t engine;
    dc_options_t options;
    dc_cache_t *cache = nullptr;
    check(dc_engine_init(&engine, sizeof engine), "dc_engine_init");
    engine.backend = DC_BACKEND_CUDA;
    engine.hooks = DC_HOOK_EACH;
    engine.n_blocks = (uint32_t)model.shape.blocks;
    check(dc_options_init(&options, sizeof options, nullptr), "dc_options_init");
    check(dc_options_parse(&options, text.c_str()), text.c_str());
    check(dc_cache_create(&engine, &options, &cache), text.c_str());
    return cache;
}

dc_tensor_t hidden_states(const Model &model)
{
    dc_tensor_t tensor = {};
    tensor.data = model.x;
    tensor.dtype = DC_BF16;
    tensor.ndim = 2;
    tensor.shape[0] = model.shape.tokens;
    tensor.shape[1] = model.shape.width;
    return tensor;
}

// Adds up the time between its start and stop.
class Stopwatch
{
  public:
    double seconds = 0;
    void start() { begun = now(); }
    void stop() { seconds += now() - begun; }

  private:
    double begun = 0;
};

void begin_run(const Model &model, dc_cache_t *cache, unsigned steps)
{
    dc_tensor_t x = hidden_states(model);
    dc_shape_t shape = {};
    shape.hook = DC_HOOK_EACH;
    shape.branch = UINT32_MAX;
    shape.tensors = &x;
    shape.n = 1;
    dc_run_t run = DC_RUN_INIT;
    run.n_steps = steps;
    run.shapes = &shape;
    run.n_shapes = 1;
    run.stream = model.stream;
    check(dc_cache_begin_run(cache, &run), "dc_cache_begin_run");
}

void run_steps(Model &model, dc_cache_t *cache, unsigned steps, Stopwatch &calls)
{
    const dc_tensor_t x = hidden_states(model);
    const uint32_t blocks = (uint32_t)model.shape.blocks;
    for (unsigned step = 0; step < steps; step++) {
        dc_pass_t pass = DC_PASS_INIT;
        pass.step = step;
        pass.stream = model.stream;
        model.begin_step(step);
        calls.start();
        (void)dc_cache_begin_pass(cache, &pass); // dc_cache_end_pass reports
        for (uint32_t block = 0; block < blocks; block++) {
            const bool compute = dc_cache_before_block(cache, block, &x, nullptr, 1) == DC_COMPUTE;
            calls.stop();
            if (compute)
                model.run_block(block);
            calls.start();
            if (compute)
                dc_cache_after_block(cache, block, &x, 1);
        }
        check(dc_cache_end_pass(cache), "dc_cache_end_pass");
        calls.stop();
    }
}

void run(Model &model, Setting &setting, unsigned steps)
{
    Stopwatch calls;
    begin_run(model, setting.cache, steps);
    model.wait();
    const double start = now();
    run_steps(model, setting.cache, steps, calls);
    model.wait();
    setting.seconds.push_back(now() - start);
    setting.call_seconds.push_back(calls.seconds);
    setting.stats.struct_size = sizeof setting.stats;
    check(dc_cache_stats(setting.cache, &setting.stats), "dc_cache_stats");
    if (setting.cache && (setting.stats.passes_skipped > 0) != setting.skips)
        fail(setting.options.c_str(), setting.skips ? "nothing was left out" : "something was left out");
}

// ---- report ----

// The time of a run in which nothing but the blocks left out makes a difference.
double ideal(const Setting &plain, const Setting &s)
{
    const double computed = (double)s.stats.blocks_computed, all = computed + (double)s.stats.blocks_skipped;
    return median(plain.seconds) * computed / all;
}

void print_table(const std::vector<Setting> &settings, const Model &model, unsigned steps)
{
    const Shape &s = model.shape;
    std::printf("%s: %d tokens of %d channels in bf16, %d blocks, %u steps. Median of %zu runs, times per step.\n\n",
                s.name, s.tokens, s.width, s.blocks, steps, settings[0].seconds.size());
    std::printf("| setting | options | blocks run | ms | against ideal | ms waited | us in calls, without waiting |\n");
    std::printf("|---|---|---|---|---|---|---|\n");
    for (const Setting &setting : settings) {
        const double time = median(setting.seconds);
        std::printf("| %s | ", setting.name);
        if (!setting.cache) {
            std::printf("| 100 %% | %.3f | | | |\n", 1e3 * time / steps);
            continue;
        }
        const double computed = (double)setting.stats.blocks_computed,
                     all = computed + (double)setting.stats.blocks_skipped;
        const double waited = 1e-9 * (double)setting.stats.wait_ns;
        std::printf("`%s` | %.0f %% | %.3f | %+.2f %% | %.3f | %.0f |\n", setting.options.c_str(), 100 * computed / all,
                    1e3 * time / steps, 100 * (time / ideal(settings[0], setting) - 1), 1e3 * waited / steps,
                    1e6 * (setting.call_seconds.back() - waited) / steps);
    }
    std::printf("\nAgainst ideal: the time of the blocks that ran, without the library. Waited: from the measurement's "
                "arrival in "
                "the queue to its result,\nwhich with a full queue is the front block's own time; of the last run, as "
                "the calls "
                "are.\n");
}

unsigned count_of(const char *text, const char *option)
{
    const int value = text ? std::atoi(text) : 0;
    if (value < 4 && std::strcmp(option, "--steps") == 0)
        fail(option, "at least 4");
    if (value < 1 || value > DC_MAX_STEPS)
        fail(option, "a count is missing, or out of range");
    return (unsigned)value;
}

} // namespace

int main(int argc, char **argv)
{
    Shape shape = FLUX;
    unsigned steps = 20, repeat = 5;
    for (int i = 1; i < argc; i++) {
        const std::string option = argv[i];
        if (option == "--wan")
            shape = WAN;
        else if (option == "--steps")
            steps = count_of(argv[++i], "--steps");
        else if (option == "--repeat")
            repeat = count_of(argv[++i], "--repeat");
        else {
            std::fprintf(stderr, "usage: block_loop [--wan] [--steps N] [--repeat N]\n");
            return option == "--help" ? 0 : 2;
        }
    }
    check(dc_backend_prepare(DC_BACKEND_CUDA, 0), "preparing diffcache");
    Model model(shape);
    std::vector<Setting> settings;
    auto add = [&](const char *name, const std::string &options, bool skips) {
        dc_cache_t *cache = options.empty() ? nullptr : open_cache(model, options);
        settings.push_back({name, options, skips, cache, {}, {}, {}});
    };
    // The inputs differ by far more than these thresholds from step to step.
    add("uncached", "", false);
    add("asked, never skipped", "fbcache,threshold=1e-6", false);
    add("the same, decided a step ahead", "fbcache,threshold=1e-6,lagged=1", false);
    add("every second step", mask_of_every(2, steps), true);
    add("every fourth step", mask_of_every(4, steps), true);
    add("every fourth step, Taylor", mask_of_every(4, steps) + ",estimator=taylor", true);

    // One run of each in turn, so that a change in the GPU's pace meets all of them. The first is a warm-up.
    for (unsigned k = 0; k <= repeat; k++)
        for (Setting &setting : settings) {
            run(model, setting, steps);
            if (k == 0) {
                setting.seconds.clear();
                setting.call_seconds.clear();
            }
        }
    print_table(settings, model, steps);
    for (Setting &setting : settings)
        dc_cache_destroy(setting.cache);
    return 0;
}
