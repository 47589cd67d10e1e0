// minimal.cpp: minimal.c with the C++ header. The same toy model, the same decisions, the same result.
#include <diffcache.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

static const uint32_t n_blocks = 12, n_steps = 30;
static const int n = 256;
static unsigned blocks_run = 0;

static void run_block(uint32_t i, std::vector<float> &h)
{
    for (int j = 0; j < n; j++) h[j] *= 1.0f + 0.1f * std::sin(float(j) + 0.1f * float(i));
    blocks_run++;
}

static std::vector<float> sample(const diffcache::Cache &cache)
{
    std::vector<float> x(n), h(n);
    for (int j = 0; j < n; j++) x[j] = std::cos(7.0f * float(j));

    diffcache::Run run(cache, n_steps);
    for (uint32_t step = 0; step < n_steps; step++) {
        run.evaluate(step, [&](diffcache::Pass &pass) {
            h = x;
            for (uint32_t i = 0; i < n_blocks; i++)
                pass.block(i, diffcache::tensor(h.data(), {n}), [&] { run_block(i, h); });
        });
        for (int j = 0; j < n; j++) x[j] -= (h[j] - x[j]) / n_steps;
    }
    return x;
}

int main()
try {
    diffcache::Engine engine;
    engine.n_blocks = n_blocks;
    engine.hooks = DC_HOOK_EACH;
    diffcache::Cache cache(engine, diffcache::Options("fbcache,threshold=0.08"));

    std::vector<float> plain = sample(diffcache::Cache()); // caching off
    blocks_run = 0;
    std::vector<float> cached = sample(cache);

    for (const dc_trace_t &record : cache.trace()) std::putchar(record.action == DC_SKIP ? 's' : 'C');
    double error = 0, size = 0;
    for (int j = 0; j < n; j++) error += std::fabs(cached[j] - plain[j]), size += std::fabs(plain[j]);
    std::printf("\n%u of %u blocks ran; the result differs by %.2f %%\n", blocks_run, n_steps * n_blocks, 100 * error / size);
    return blocks_run < n_steps * n_blocks * 2 / 3 && error < 0.02 * size ? 0 : 1;
} catch (const diffcache::Error &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
}
