/* digits: draws handwritten digits with a small diffusion transformer, and shows what diffcache does for it.
 * `digits --help` lists the options. */
#include "bench.h"
#include "compare.h"
#include "safetensors.h"
#include "sheet.h"
#include "smoke.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char HELP[] =
    "usage: digits [options]\n"
    "  --cache TEXT       how to cache, for example \"fbcache,threshold=0.1\" (default: not at all)\n"
    "  --compare          every method: a table, and a contact sheet of ten pictures each with their errors\n"
    "  --bench            what a cache costs that never skips, what it saves of what it could, and its memory\n"
    "  --check VECTOR     compare the model with PyTorch's output in the file VECTOR\n"
    "  --smoke            compare some short runs with the CPU's\n"
    "  --backend NAME     \"cpu\" or \"cuda\": where the model runs, and the cache (cpu)\n"
    "  --trace            print every decision of the cache, and why\n"
    "  --steps N          sampling steps (50)\n"
    "  --batch N          pictures: 0, 1, ... 9, 0, 1, ... (32)\n"
    "  --guidance G       strength of classifier-free guidance (3)\n"
    "  --cfg batched      both branches of guidance stacked in one pass (default)\n"
    "  --cfg sequential   a pass for each\n"
    "  --seed N           of the noise (0)\n"
    "  --repeat N         runs to take the median time of (1; with --compare 3, with --bench 7)\n"
    "  --weights FILE     the model (" DIGITS_WEIGHTS ")\n"
    "  --out FILE.png     the pictures (digits.png)\n";

typedef struct {
    sampling sampling;
    const char *cache, *check, *weights, *out;
    bool compare, bench, smoke, trace, cuda;
    int repeat;
} arguments;

/* False, with a message on stderr, if an option is unknown, or its value missing or out of range. */
static bool parse(int argc, char **argv, arguments *a)
{
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = NULL;
        char *end = NULL;
        if (strcmp(option, "--compare") == 0) {
            a->compare = true;
            continue;
        }
        if (strcmp(option, "--bench") == 0) {
            a->bench = true;
            continue;
        }
        if (strcmp(option, "--smoke") == 0) {
            a->smoke = true;
            continue;
        }
        if (strcmp(option, "--trace") == 0) {
            a->trace = true;
            continue;
        }
        if (i + 1 < argc)
            value = argv[++i];
        double number = value ? strtod(value, &end) : 0;
        bool is_number = value && *value && !*end, is_count = is_number && number >= 1 && number == floor(number);
        bool ok = value != NULL;
        if (!ok)
            ;
        else if (strcmp(option, "--cache") == 0)
            a->cache = value;
        else if (strcmp(option, "--check") == 0)
            a->check = value;
        else if (strcmp(option, "--weights") == 0)
            a->weights = value;
        else if (strcmp(option, "--out") == 0)
            a->out = value;
        else if (strcmp(option, "--backend") == 0 && (strcmp(value, "cpu") == 0 || strcmp(value, "cuda") == 0))
            a->cuda = value[1] == 'u';
        else if (strcmp(option, "--steps") == 0 && is_count && number <= DC_MAX_STEPS)
            a->sampling.steps = (int)number;
        else if (strcmp(option, "--batch") == 0 && is_count && number <= 4096)
            a->sampling.batch = (int)number;
        else if (strcmp(option, "--repeat") == 0 && is_count && number <= 99)
            a->repeat = (int)number;
        else if (strcmp(option, "--guidance") == 0 && is_number)
            a->sampling.guidance = (float)number;
        else if (strcmp(option, "--seed") == 0 && is_number)
            a->sampling.seed = strtoull(value, NULL, 10);
        else if (strcmp(option, "--cfg") == 0 && (strcmp(value, "batched") == 0 || strcmp(value, "sequential") == 0))
            a->sampling.sequential = *value == 's';
        else
            ok = false;
        if (!ok) {
            fprintf(stderr, "%s %s: unknown, or no such value. --help lists the options.\n", option, value ? value : "");
            return false;
        }
    }
    return true;
}

/* The velocities of n images. All pointers are to the device's memory. */
static void evaluate(const dit_model *model, const float *images, const float *t, const int *labels, int n,
                     float *velocity)
{
    const maths *m = model->maths;
    size_t size = sizeof(float) * (size_t)n;
    float *x = m->allocate(size * DIT_TOKENS * DIT_WIDTH), *out = m->allocate(size * DIT_TOKENS * DIT_WIDTH);
    float *condition = m->allocate(size * DIT_WIDTH), *modulation = m->allocate(size * DIT_MODULATION);
    dit_embed(model, images, t, labels, n, x, condition);
    for (int i = 0; i < DIT_BLOCKS; i++) {
        dit_modulate(model, i, condition, n, modulation);
        dit_attention(model, i, x, modulation, n, out);
        dit_add(model, DIT_ATTENTION, modulation, n, out, x);
        dit_mlp(model, i, x, modulation, n, out);
        dit_add(model, DIT_MLP, modulation, n, out, x);
    }
    dit_velocity(model, x, condition, n, velocity);
    m->release(x), m->release(out), m->release(condition), m->release(modulation);
}

/* A copy in the device's memory. */
static void *to_device(const maths *m, const void *host, size_t size)
{
    void *memory = m->allocate(size);
    m->upload(memory, host, size);
    return memory;
}

/* The model against PyTorch: the largest difference, relative to the largest output. */
static int check(const dit_model *model, const char *path)
{
    const float limit = 1e-3f;
    const maths *m = model->maths;
    safetensors file;
    if (!safetensors_open(&file, path))
        return 1;
    size_t n = safetensors_count(&file, "t"), size = sizeof(float) * n;
    float *images = allocate(n * DIT_PIXELS + 1, sizeof(float)), *expected = allocate(n * DIT_PIXELS + 1, sizeof(float));
    float *t = allocate(n + 1, sizeof(float)), *label = allocate(n + 1, sizeof(float));
    int *labels = allocate(n + 1, sizeof(int));
    bool ok = safetensors_read(&file, "x", images, n * DIT_PIXELS) && safetensors_read(&file, "t", t, n) &&
              safetensors_read(&file, "label", label, n) && safetensors_read(&file, "velocity", expected, n * DIT_PIXELS);
    if (ok) {
        for (size_t i = 0; i < n; i++)
            labels[i] = (int)label[i];
        float *x = to_device(m, images, size * DIT_PIXELS), *times = to_device(m, t, size);
        int *digits = to_device(m, labels, sizeof(int) * n);
        evaluate(model, x, times, digits, (int)n, x);
        m->download(images, x, size * DIT_PIXELS);
        m->release(x), m->release(times), m->release(digits);
        float largest = 0, error = 0;
        for (size_t i = 0; i < n * DIT_PIXELS; i++) {
            largest = fmaxf(largest, fabsf(expected[i]));
            float d = fabsf(images[i] - expected[i]);
            error = d <= error ? error : d; /* NaN stays */
        }
        error /= largest;
        ok = error <= limit;
        printf("%zu pictures: largest error %.2g of the largest output, %s the limit of %g\n", n, (double)error,
               ok ? "within" : "over", (double)limit);
    }
    free(images), free(expected), free(t), free(label), free(labels);
    safetensors_close(&file);
    return ok ? 0 : 1;
}

/* What was decided about. */
static const char *unit_name(uint32_t unit, char *text, size_t size)
{
    if (unit == DC_MODEL || unit == DC_UNCOND)
        return unit == DC_MODEL ? "model" : "branch";
    if (unit == DC_KIND(DC_KIND_SPATIAL) || unit == DC_KIND(DC_KIND_MLP))
        return unit == DC_KIND(DC_KIND_MLP) ? "MLPs" : "attention";
    snprintf(text, size, "block %u..", unit);
    return text;
}

static void print_trace(dc_cache_t *cache)
{
    static const char *const reasons[] = {
        [DC_REASON_NONE] = "-",
        [DC_REASON_WARMUP] = "warm-up",
        [DC_REASON_LAST] = "last step",
        [DC_REASON_NO_HISTORY] = "no history",
        [DC_REASON_RULE] = "rule",
        [DC_REASON_MAX_CONSECUTIVE] = "max_consecutive",
        [DC_REASON_MAX_TOTAL] = "max_total",
        [DC_REASON_MAX_ERROR] = "max_error",
        [DC_REASON_NOT_FINITE] = "not finite",
        [DC_REASON_SHAPE] = "shape",
        [DC_REASON_MEMORY] = "memory",
        [DC_REASON_CAPTURE] = "capture",
        [DC_REASON_VETO] = "veto",
        [DC_REASON_ENGINE] = "the engine",
        [DC_REASON_SHARED] = "shared",
        [DC_REASON_ERROR] = "error",
        [DC_REASON_AGE] = "max_age",
        [DC_REASON_INTERVAL] = "interval",
        [DC_REASON_WINDOW] = "window",
        [DC_REASON_UNLISTED] = "not listed",
        [DC_REASON_GUIDANCE] = "guidance",
        [DC_REASON_TIMESTEP] = "no timestep",
    };
    enum { CAPACITY = 8 * DC_MAX_STEPS }; /* a record for each branch and kind of layer, and one for guidance */
    static dc_trace_t records[CAPACITY];
    size_t n = 0;
    if (dc_cache_trace(cache, records, sizeof *records, CAPACITY, &n))
        return;
    printf("step  time   branch  unit       action   reason           change    accumulated  threshold\n");
    for (size_t i = 0; i < n && i < CAPACITY; i++) {
        const dc_trace_t *r = &records[i];
        char unit[24];
        printf("%4u  %-5.3g  %-6s  %-9s  %-7s  %-15s", r->step, (double)r->timestep, r->branch ? "uncond" : "cond",
               unit_name(r->unit, unit, sizeof unit), r->action == DC_SKIP ? "skip" : "compute",
               r->reason < sizeof reasons / sizeof *reasons ? reasons[r->reason] : "?");
        if (!isnan(r->threshold)) /* else nothing is measured */
            printf("  %-8.4f  %-11.4f  %.4f", r->change, r->accumulated, r->threshold);
        printf("\n");
    }
}

/* One setting: the pictures, and a line that says what they cost. */
static int draw(const arguments *a)
{
    enum { COLUMNS = 10 };
    const sampling *s = &a->sampling;
    dc_cache_t *cache = NULL;
    if (a->cache && !(cache = open_cache(s, a->cache))) {
        fprintf(stderr, "%s\n", dc_last_error());
        return 2;
    }
    float *images = allocate((size_t)s->batch * DIT_PIXELS, sizeof(float));
    double seconds[99];
    sampling_cost cost;
    for (int i = 0; i < a->repeat; i++) {
        sample(s, cache, images, &cost);
        seconds[i] = cost.seconds;
    }
    if (a->trace)
        print_trace(cache);
    printf("%d pictures in %d steps: %.3f s, %.0f%% of the work: %llu blocks with %llu attentions and %llu MLPs, and the "
           "unconditional branch in %d steps\n",
           s->batch, s->steps, median(seconds, a->repeat), 100 * work_share(s, &cost), (unsigned long long)cost.blocks,
           (unsigned long long)cost.parts[DIT_ATTENTION], (unsigned long long)cost.parts[DIT_MLP], cost.unconds);

    sheet page = sheet_new((s->batch + COLUMNS - 1) / COLUMNS, COLUMNS, false);
    for (int i = 0; i < s->batch; i++)
        sheet_picture(&page, i / COLUMNS, i % COLUMNS, images + i * DIT_PIXELS);
    int code = sheet_finish(&page, a->out) ? 0 : 1;
    free(images);
    dc_cache_destroy(cache);
    return code;
}

static int smoke_on(const dit_model *model, const char *weights)
{
    dit_model reference;
    if (!dit_load(&reference, maths_cpu(), weights))
        return 1;
    int code = smoke(model, &reference);
    dit_free(&reference);
    return code;
}

int main(int argc, char **argv)
{
    arguments a = {.sampling = {.steps = 50, .batch = 32, .guidance = 3}, .weights = DIGITS_WEIGHTS, .out = "digits.png"};
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(HELP, stdout);
        return 0;
    }
    if (!parse(argc, argv, &a))
        return 2;
    const maths *maths = a.cuda ? maths_cuda() : maths_cpu();
    dit_model model;
    if (!maths || !dit_load(&model, maths, a.weights))
        return 1;
    a.sampling.model = &model;
    if (a.repeat == 0)
        a.repeat = a.compare ? 3 : a.bench ? 7 : 1;
    int code = a.check     ? check(&model, a.check)
               : a.smoke   ? smoke_on(&model, a.weights)
               : a.bench   ? bench(&a.sampling, a.repeat)
               : a.compare ? compare(&a.sampling, a.cache, a.repeat, a.out)
                           : draw(&a);
    dit_free(&model);
    return code;
}
