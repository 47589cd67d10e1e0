#define _POSIX_C_SOURCE 200809L
#include "compare.h"

#include "sheet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *options; /* EVERY_2 and its like stand for a mask */
    bool sequential;
    bool on_sheet;
} setting;

/* FasterCache all over the run, and without making low and high frequencies stronger. */
#define WIDE "window=0:0.9,guidance.window=0:0.9,last_steps=1,guidance.low=1,guidance.high=1"

/* The first two are the baselines, one for each kind of guidance. */
static const setting SETTINGS[] = {
    {"none", false, true},
    {"none", true, false},
    {"fbcache", false, false},
    {"fbcache,threshold=0.1", false, true},
    {"fbcache,estimator=taylor", false, false},
    {"fbcache,threshold=0.1,estimator=taylor", false, true},
    {"fbcache,threshold=0.1,estimator=newton,order=2", false, false},
    {"fbcache,threshold=0.1,compat=diffusers", false, false},
    {"fbcache,threshold=0.1", true, false},
    {"fbcache,threshold=0.1,share=1", true, false},
    {"dbcache,front_blocks=2,back_blocks=1,threshold=0.1,estimator=taylor", false, true},
    {"mask,mask=EVERY_2,estimator=taylor", false, false},
    {"mask,mask=EVERY_4,estimator=taylor", false, true},
    {"taylorseer", false, false},
    {"taylorseer,every=4,warmup_steps=5,last_steps=1", false, true},
    {"taylorseer,every=4,warmup_steps=5,last_steps=1,compat=diffusers", false, false},
    {"taylorseer,every=4,warmup_steps=5,last_steps=1,estimator=foca", false, false},
    {"taylorseer,every=4,warmup_steps=5,last_steps=1,scope=block,on_residual=1", false, false},
    {"taylorseer,every=4,warmup_steps=5,last_steps=1,scope=stack,on_residual=1", false, true},
    {"taylorseer,every=4,warmup_steps=5,last_steps=1,scope=model", false, true},
    {"hicache,every=4,warmup_steps=5,last_steps=1,scale=0.7", false, true},
    {"pab,window=0:0.9,last_steps=1", false, true},
    {"pab,window=0:0.9,last_steps=1,spatial.every=4,estimator=taylor", false, false},
    {"pab,window=0:0.9,last_steps=1,spatial.every=3,mlp.every=3", false, false},
    {"pab,window=0:0.9,last_steps=1,spatial.every=3,mlp.every=3,estimator=taylor", false, true},
    {"fastercache", false, false},
    {"fastercache," WIDE, false, true},
    {"fastercache," WIDE, true, false},
    {"fastercache," WIDE ",mlp.every=2", false, false},
    {"none,guidance.every=5,last_steps=1", false, true},
};
enum { FIXED = sizeof SETTINGS / sizeof *SETTINGS, MAX_ROWS = FIXED + 1, MAX_REPEAT = 99, PICTURES = 10, GAIN = 20 };

typedef struct {
    const char *options;
    sampling sampling;
    bool on_sheet;
    dc_cache_t *cache;
    float *images;
    double seconds[MAX_REPEAT]; /* of each run */
    double time, spread;        /* their median, and half their range relative to it */
    sampling_cost cost;         /* of one run */
    double work;                /* multiply-adds run, as a share of those of all steps in full */
    int full;                   /* steps in which nothing was left out */
    char steps[DC_MAX_STEPS + 1];
    double psnr, mib;
    int rival; /* as many steps of plain sampling do as much work, or a little more */
    double rival_psnr;
} row;

double psnr(const float *images, const float *exact, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double d = fmax(-1, fmin(1, (double)images[i])) - fmax(-1, fmin(1, (double)exact[i]));
        sum += d * d;
    }
    return 10 * log10(4 * n / sum); /* the peak is 2 */
}

/* ---- running ---- */

/* "EVERY_n" becomes: compute a tenth of the steps, then every n-th, and the last. */
static void expand_mask(const char *options, int steps, char *out, size_t size)
{
    const char *name = strstr(options, "EVERY_");
    snprintf(out, size, "%s", options);
    if (!name)
        return;
    int every = atoi(name + 6), first = steps / 10;
    char *at = out + (name - options);
    for (int i = 0; i < steps; i++)
        *at++ = i < first || (i - first) % every == every - 1 || i == steps - 1 ? '1' : '0';
    snprintf(at, size - (size_t)(at - out), "%s", name + 7);
}

static void progress(int done, int all, const char *what)
{
    enum { WIDTH = 30 };
    static const char bar[] = "##############################..............................";
    if (!isatty(2))
        return;
    if (done < all)
        fprintf(stderr, "\r[%.*s] %d/%d %.40s\033[K", WIDTH, bar + WIDTH - WIDTH * done / all, done, all, what);
    else
        fprintf(stderr, "\r\033[K");
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, by_size);
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

/* Each step's share of the work, in tenths; # = all of it. */
static void read_steps(row *r)
{
    uint64_t all = full_work(&r->sampling);
    for (int step = 0; step < r->sampling.steps; step++) {
        uint64_t done = r->cost.work[step];
        r->steps[step] = done >= all ? '#' : (char)('0' + 10 * done / all);
        r->full += done >= all;
    }
}

static bool is_same(const row *r, const char *what, uint64_t engine, uint64_t library)
{
    if (engine != library)
        fprintf(stderr, "%s: %s: %llu by the engine's count, %llu by the library's\n", r->options, what,
                (unsigned long long)engine, (unsigned long long)library);
    return engine == library;
}

/* False if the library met an error, or counted what ran and what was left out otherwise than the engine. */
static bool check_counts(const row *r, const dc_stats_t *stats)
{
    static dc_trace_t records[8 * DC_MAX_STEPS];
    const sampling_cost *cost = &r->cost;
    uint64_t computed = 0, skipped = 0, unconds = 0, steps = (uint64_t)r->sampling.steps;
    bool layers = false, decided[DIT_PARTS] = {false};
    size_t n = 0;
    if (dc_cache_trace(r->cache, records, sizeof *records, sizeof records / sizeof *records, &n))
        return false;
    for (size_t i = 0; i < n && i < sizeof records / sizeof *records; i++) {
        decided[DIT_ATTENTION] |= records[i].unit == DC_KIND(DC_KIND_SPATIAL);
        decided[DIT_MLP] |= records[i].unit == DC_KIND(DC_KIND_MLP);
        unconds += records[i].unit == DC_UNCOND;
    }
    /* The library counts the layers that the method is for; of those, with pab-latte and its like, not even all. */
    for (dit_part part = 0; part < DIT_PARTS; part++) {
        layers |= decided[part];
        computed += decided[part] ? cost->parts[part] : 0;
        skipped += cost->blocks - cost->parts[part];
    }
    bool all = !strstr(r->options, "pab-") && !strstr(r->options, ".layers=");
    return is_same(r, "errors", 0, stats->errors) && is_same(r, "blocks run", cost->blocks, stats->blocks_computed) &&
           is_same(r, "layers left out", skipped, stats->layers_skipped) &&
           (!layers || !all || is_same(r, "layers run", computed, stats->layers_computed)) &&
           is_same(r, "branches left out", steps - (uint64_t)cost->unconds, stats->uncond_skipped) &&
           (!unconds || is_same(r, "branches run", (uint64_t)cost->unconds, stats->uncond_computed));
}

static bool read_results(row *r, const float *exact, int repeat)
{
    dc_stats_t stats = {.struct_size = sizeof stats};
    if (dc_cache_stats(r->cache, &stats) || !check_counts(r, &stats))
        return false;
    read_steps(r);
    r->work = work_share(&r->sampling, &r->cost);
    r->rival = (int)ceil(r->work * r->sampling.steps - 1e-9);
    r->mib = (double)stats.bytes_peak / (1 << 20);
    r->psnr = psnr(r->images, exact, r->sampling.batch * DIT_PIXELS);
    r->time = median(r->seconds, repeat);
    r->spread = (r->seconds[repeat - 1] - r->seconds[0]) / 2 / r->time;
    return true;
}

/* Plain sampling with as many steps as the row's work pays for. */
static void run_rival(row *rows, int i, const float *exact, float *scratch)
{
    for (int k = 0; k < i; k++)
        if (rows[k].rival == rows[i].rival) {
            rows[i].rival_psnr = rows[k].rival_psnr;
            return;
        }
    sampling plain = rows[0].sampling;
    sampling_cost cost;
    plain.steps = rows[i].rival;
    sample(&plain, NULL, scratch, &cost);
    rows[i].rival_psnr = psnr(scratch, exact, plain.batch * DIT_PIXELS);
}

/* ---- reporting ---- */

static double speed_up(const row *rows, const row *r)
{
    return rows[r->sampling.sequential].time / r->time;
}

enum { WIDTH = 64 }; /* of the column of options */

/* How much of the options goes into a line: up to the last comma that fits. */
static int line_of(const char *options)
{
    int n = (int)strlen(options);
    if (n <= WIDTH)
        return n;
    for (n = WIDTH; n > 0; n--)
        if (options[n - 1] == ',')
            return n;
    return WIDTH;
}

static void print_table(const row *rows, int n, int repeat)
{
    printf("%-*s                           time                   cached  fewer steps\n", WIDTH, "");
    printf("%-*s  cfg    full  work       s  +- %%  speed   PSNR     MiB  steps   PSNR  each step\n", WIDTH, "options");
    for (int i = 0; i < n; i++) {
        const row *r = &rows[i];
        const char *options = r->options;
        int line = line_of(options);
        printf("%-*.*s  %-5s  %4d  %3.0f%%", WIDTH, line, options, r->sampling.sequential ? "seq" : "batch", r->full,
               100 * r->work);
        printf("  %6.3f  %4.1f  %4.2fx  %5.1f  %6.2f", r->time, 100 * r->spread, speed_up(rows, r), r->psnr, r->mib);
        printf("  %5d  %5.1f  %s\n", r->rival, r->rival_psnr, r->steps);
        while (*(options += line)) {
            line = line_of(options);
            printf("    %.*s\n", line, options);
        }
    }
    printf("\n%d pictures in %d steps. Columns:\n"
           "cfg          guidance: both branches in one batch, or one after the other (seq)\n"
           "full         steps in which nothing was left out\n"
           "work         multiply-adds run, of those of all steps in full\n"
           "time         median of %d runs, and half their range; speed: against `none`\n"
           "PSNR         in dB, against the pictures of `none`\n"
           "fewer steps  the rival: plain sampling in as many steps as that work pays for, rounded up\n"
           "each step    its work in tenths, # is all; EVERY_n stands for the mask seen there\n",
           rows[0].sampling.batch, rows[0].sampling.steps, repeat);
    const sampling_cost *plain = &rows[0].cost;
    double work = (double)full_work(&rows[0].sampling) / (2 * rows[0].sampling.batch);
    if (rows[0].sampling.model->maths->backend != DC_BACKEND_CPU)
        return; /* where work is only queued, the time of a part is not known */
    printf("Without a cache %.0f%% of the time and %.0f%% of the work is attention, %.0f%% and %.0f%% MLPs.\n",
           100 * plain->part_seconds[DIT_ATTENTION] / plain->seconds, 100 * DIT_BLOCKS * DIT_WORK_ATTENTION / work,
           100 * plain->part_seconds[DIT_MLP] / plain->seconds, 100 * DIT_BLOCKS * DIT_WORK_MLP / work);
}

/* A row for some of the settings: ten pictures, and how far each is from the uncached one, GAIN times enlarged. */
static bool write_sheet(const row *rows, int n, const char *path)
{
    int pictures = rows[0].sampling.batch < PICTURES ? rows[0].sampling.batch : PICTURES, chosen = 0, line = 0;
    for (int i = 0; i < n; i++)
        chosen += rows[i].on_sheet;
    sheet s = sheet_new(chosen, 2 * pictures, true);
    for (int i = 0; i < n; i++) {
        const row *r = &rows[i];
        if (!r->on_sheet)
            continue;
        char text[80], options[160];
        snprintf(options, sizeof options, "%s%s", r->options, r->sampling.sequential ? " (2 passes)" : "");
        snprintf(text, sizeof text, "%.0f%% work  %.2fx  %.1f dB", 100 * r->work, speed_up(rows, r), r->psnr);
        sheet_text(&s, line, sheet_text(&s, line, 0, options), text);
        for (int k = 0; k < pictures; k++) {
            float difference[DIT_PIXELS];
            const float *image = r->images + k * DIT_PIXELS, *exact = rows[0].images + k * DIT_PIXELS;
            for (int p = 0; p < DIT_PIXELS; p++)
                difference[p] = GAIN * fabsf(image[p] - exact[p]) - 1;
            sheet_picture(&s, line, k, image);
            sheet_picture(&s, line, pictures + k, difference);
        }
        line++;
    }
    return sheet_finish(&s, path);
}

int compare(const sampling *base, const char *extra, int repeat, const char *picture)
{
    row *rows = allocate(MAX_ROWS, sizeof *rows);
    int n = FIXED + (extra != NULL), pixels = base->batch * DIT_PIXELS, done = 0, code = 0;
    memset(rows, 0, MAX_ROWS * sizeof *rows);
    for (int i = 0; i < n && !code; i++) {
        char options[DC_MAX_STEPS + 80];
        row *r = &rows[i];
        r->options = i < FIXED ? SETTINGS[i].options : extra;
        r->sampling = *base;
        r->sampling.sequential = i < FIXED ? SETTINGS[i].sequential : base->sequential;
        r->on_sheet = i >= FIXED || SETTINGS[i].on_sheet;
        r->images = allocate((size_t)pixels, sizeof(float));
        expand_mask(r->options, base->steps, options, sizeof options);
        r->cache = open_cache(&r->sampling, options);
        if (!r->cache) {
            fprintf(stderr, "%s\n", dc_last_error());
            code = 2;
        }
    }
    /* One run of each in turn, so that a change in the machine's pace meets all of them. */
    for (int k = 0; k < repeat && !code; k++)
        for (int i = 0; i < n; i++) {
            row *r = &rows[i];
            progress(done++, n * (repeat + 1), r->options);
            sample(&r->sampling, r->cache, r->images, &r->cost);
            r->seconds[k] = r->cost.seconds;
        }
    float *scratch = allocate((size_t)pixels, sizeof(float));
    for (int i = 0; i < n && !code; i++) {
        progress(done++, n * (repeat + 1), "fewer steps");
        if (read_results(&rows[i], rows[0].images, repeat))
            run_rival(rows, i, rows[0].images, scratch);
        else
            code = 1;
    }
    progress(1, 1, "");
    if (!code) {
        print_table(rows, n, repeat);
        code = write_sheet(rows, n, picture) ? 0 : 1;
    }
    free(scratch);
    for (int i = 0; i < n; i++) {
        dc_cache_destroy(rows[i].cache);
        free(rows[i].images);
    }
    free(rows);
    return code;
}
