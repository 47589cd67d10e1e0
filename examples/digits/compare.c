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
} setting;

/* The first two are the baselines, one for each kind of guidance. */
static const setting SETTINGS[] = {
    {"none", false},
    {"none", true},
    {"fbcache", false},
    {"fbcache,threshold=0.1", false},
    {"fbcache,threshold=0.2", false},
    {"fbcache,estimator=taylor,order=1", false},
    {"fbcache,threshold=0.1,estimator=taylor,order=1", false},
    {"fbcache,threshold=0.2,estimator=taylor,order=1", false},
    {"fbcache,threshold=0.1,estimator=newton,order=2", false},
    {"fbcache,threshold=0.1,compat=diffusers", false},
    {"fbcache,threshold=0.1", true},
    {"fbcache,threshold=0.1,share=1", true},
    {"dbcache,front_blocks=2,back_blocks=2,threshold=0.1", false},
    {"dbcache,front_blocks=2,back_blocks=2,threshold=0.1,estimator=taylor,order=1", false},
    {"mask,mask=EVERY_2", false},
    {"mask,mask=EVERY_2,estimator=taylor,order=1", false},
    {"mask,mask=EVERY_4,estimator=taylor,order=1", false},
};
enum { FIXED = sizeof SETTINGS / sizeof *SETTINGS, MAX_ROWS = FIXED + 1, MAX_REPEAT = 99, PICTURES = 10, GAIN = 20 };


typedef struct {
    const char *options;
    sampling sampling;
    dc_cache_t *cache;
    float *images;
    double seconds[MAX_REPEAT]; /* of each run */
    double time, spread;        /* their median, and half their range relative to it */
    uint64_t blocks;            /* run by the engine in one run */
    char decisions[DC_MAX_STEPS + 1];
    int full; /* steps in which every block ran */
    double psnr, mib;
    int rival; /* as many steps of plain sampling run as many blocks, or a few more */
    double rival_psnr;
} row;

/* Peak signal-to-noise ratio of n values against `exact` in dB, both clamped to -1..1. Infinite if they are equal. */
static double psnr(const float *images, const float *exact, int n)
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

/* What the conditional branch did at each step: C computed, s skipped. */
static void read_decisions(row *r)
{
    static dc_trace_t records[4 * DC_MAX_STEPS];
    size_t n = 0;
    memset(r->decisions, '-', (size_t)r->sampling.steps);
    if (dc_cache_trace(r->cache, records, sizeof *records, sizeof records / sizeof *records, &n))
        return;
    for (size_t i = 0; i < n && i < sizeof records / sizeof *records; i++)
        if (records[i].branch == 0 && records[i].step < (uint32_t)r->sampling.steps)
            r->decisions[records[i].step] = records[i].action == DC_SKIP ? 's' : 'C';
}

/* False if the library's count of blocks is not the engine's. */
static bool read_results(row *r, const float *exact, int repeat)
{
    dc_stats_t stats = {.struct_size = sizeof stats};
    if (dc_cache_stats(r->cache, &stats) || stats.blocks_computed != r->blocks) {
        fprintf(stderr, "%s: the engine ran %llu blocks, the library counted %llu\n", r->options,
                (unsigned long long)r->blocks, (unsigned long long)stats.blocks_computed);
        return false;
    }
    int passes = r->sampling.steps * (r->sampling.sequential ? 2 : 1), per_step = DIT_BLOCKS * passes / r->sampling.steps;
    r->full = (int)((uint64_t)passes - stats.passes_skipped) * r->sampling.steps / passes;
    r->rival = (int)((r->blocks + (uint64_t)per_step - 1) / (uint64_t)per_step);
    r->mib = (double)stats.bytes_peak / (1 << 20);
    r->psnr = psnr(r->images, exact, r->sampling.batch * DIT_PIXELS);
    r->time = median(r->seconds, repeat);
    r->spread = (r->seconds[repeat - 1] - r->seconds[0]) / 2 / r->time;
    read_decisions(r);
    return true;
}

/* Plain sampling with as many steps as the row's blocks pay for. */
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

static void print_table(const row *rows, int n, int repeat)
{
    int width = 0;
    for (int i = 0; i < n; i++)
        if ((int)strlen(rows[i].options) > width)
            width = (int)strlen(rows[i].options);
    printf("%-*s                             time                     cached   fewer steps\n", width, "");
    printf("%-*s  cfg    full  blocks run      s  +- %%   speed   PSNR    MiB  steps   PSNR  decisions\n", width, "options");
    for (int i = 0; i < n; i++) {
        const row *r = &rows[i];
        int steps = r->sampling.steps, blocks = DIT_BLOCKS * steps * (r->sampling.sequential ? 2 : 1);
        printf("%-*s  %-5s  %4d  %4d  %3.0f%%  %6.3f  %4.1f  %5.2fx  %5.1f  %5.2f  %5d  %5.1f  %s\n", width, r->options,
               r->sampling.sequential ? "seq" : "batch", r->full, (int)r->blocks, 100.0 * (double)r->blocks / blocks, r->time,
               100 * r->spread, speed_up(rows, r), r->psnr, r->mib, r->rival, r->rival_psnr,
               r->decisions);
    }
    printf("\n%d pictures in %d steps. Columns:\n"
           "cfg          guidance: both branches in one batch, or one after the other (seq)\n"
           "full         steps in which every block ran\n"
           "time         median of %d runs, and half their range; speed: against `none`\n"
           "PSNR         in dB, against the pictures of `none`\n"
           "fewer steps  the rival: plain sampling in as many steps as the blocks run pay for, rounded up\n"
           "decisions    a letter a step: C computed, s skipped, - nothing to decide; EVERY_n stands for the mask seen there\n",
           rows[0].sampling.batch, rows[0].sampling.steps, repeat);
}

/* A row for each setting: ten pictures, and how far each is from the uncached one, GAIN times enlarged. */
static bool write_sheet(const row *rows, int n, const char *path)
{
    int pictures = rows[0].sampling.batch < PICTURES ? rows[0].sampling.batch : PICTURES;
    sheet s = sheet_new(n, 2 * pictures, true);
    for (int i = 0; i < n; i++) {
        const row *r = &rows[i];
        char text[80], options[160];
        snprintf(options, sizeof options, "%s%s", r->options, r->sampling.sequential ? " (2 passes)" : "");
        int line = sheet_text(&s, i, 0, options);
        snprintf(text, sizeof text, "%d/%d  %.2fx  %.1f dB", r->full, r->sampling.steps, speed_up(rows, r),
                 r->psnr);
        sheet_text(&s, i, line, text);
        for (int k = 0; k < pictures; k++) {
            float difference[DIT_PIXELS];
            const float *image = r->images + k * DIT_PIXELS, *exact = rows[0].images + k * DIT_PIXELS;
            for (int p = 0; p < DIT_PIXELS; p++)
                difference[p] = GAIN * fabsf(image[p] - exact[p]) - 1;
            sheet_picture(&s, i, k, image);
            sheet_picture(&s, i, pictures + k, difference);
        }
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
            sampling_cost cost;
            progress(done++, n * (repeat + 1), rows[i].options);
            sample(&rows[i].sampling, rows[i].cache, rows[i].images, &cost);
            rows[i].seconds[k] = cost.seconds;
            rows[i].blocks = cost.blocks;
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
