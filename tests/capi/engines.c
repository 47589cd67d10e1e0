/* Engines in miniature: the shapes that real engines have, with toy maths in host memory. Each checks every pass
 * by itself: a computed pass against the model, a skipped one against (in of the span) + (what the last computed
 * pass added to it). */
#include "ledger.h"
#include "low_pass.h"

#define SPAN_RULE "threshold=0.2," NO_RAILS

/* Branches of guidance. */
enum { COND = 0, UNCOND = 1 };

/* The toy maths of a transformer block: every row is scaled and gets a share of the other stream. */
static void mix(float *x, int64_t n, float scale, float shift)
{
    for (int64_t j = 0; j < n; j++) x[j] = x[j] * scale + shift;
}

static float mean(const float *x, int64_t n)
{
    float sum = 0.0f;
    for (int64_t j = 0; j < n; j++) sum += x[j];
    return sum / (float)n;
}

static void all_close(const float *got, const float *wanted, int64_t n)
{
    for (int64_t j = 0; j < n; j++) CHECK(close_to(got[j], wanted[j]));
}

static void add(float *to, const float *x, int64_t n)
{
    for (int64_t j = 0; j < n; j++) to[j] += x[j];
}

static void difference(float *to, const float *a, const float *b, int64_t n)
{
    for (int64_t j = 0; j < n; j++) to[j] = a[j] - b[j];
}

/* The latents of a step: slowly changing, different in every element. */
static void embed(float *x, int64_t n, uint32_t step, float base)
{
    for (int64_t j = 0; j < n; j++) x[j] = base + 0.05f * (float)j + 0.002f * (float)step;
}

/* ---- 1. eager FLUX: double blocks on (img, txt), single blocks on views of one joint buffer [txt; img] ---- */

enum { FLUX_DOUBLE = 3, FLUX_BLOCKS = 7, IMG = 5, TXT = 3, WIDTH = 4, IMG_N = IMG * WIDTH, TXT_N = TXT * WIDTH };

typedef struct flux_t { float img[IMG_N], txt[TXT_N], joint[IMG_N + TXT_N]; } flux_t;

static void flux_concat(flux_t *f)
{
    memcpy(f->joint, f->txt, sizeof f->txt);
    memcpy(f->joint + TXT_N, f->img, sizeof f->img);
}

static void flux_block(flux_t *f, uint32_t i)
{
    if (i < FLUX_DOUBLE) {
        float from_img = mean(f->img, IMG_N), from_txt = mean(f->txt, TXT_N);
        mix(f->img, IMG_N, 1.01f, 0.02f * from_txt + 0.1f);
        mix(f->txt, TXT_N, 0.99f, 0.03f * from_img + 0.05f);
    } else {
        mix(f->joint, IMG_N + TXT_N, 1.005f, 0.01f * mean(f->joint, IMG_N + TXT_N) + 0.01f * (float)i);
    }
}

static void eager_flux(const char *method, uint32_t front, uint32_t back)
{
    dc_engine_t engine = an_engine(FLUX_BLOCKS, 1);
    engine.hooks = DC_HOOK_EACH;
    dc_cache_t *c = a_cache(&engine, method);
    flux_t f, want;
    float kept[IMG_N + TXT_N] = {0};
    int skips = 0;
    begin_run(c, 12);
    for (uint32_t step = 0; step < 12; step++) {
        dc_pass_t p = DC_PASS_INIT;
        dc_tensor_t d[2], s[2];
        int skipped = 0;
        d[0] = rows_of(f.img, IMG, WIDTH, WIDTH), d[1] = rows_of(f.txt, TXT, WIDTH, WIDTH);
        s[0] = rows_of(f.joint + TXT_N, IMG, WIDTH, WIDTH), s[1] = rows_of(f.joint, TXT, WIDTH, WIDTH);
        embed(f.img, IMG_N, step, 1.0f);
        embed(f.txt, TXT_N, 0, 0.5f);
        memset(f.joint, 0x7f, sizeof f.joint); /* the last step's, or anything */
        want = f;

        p.step = step;
        CHECK_OK(dc_cache_begin_pass(c, &p));
        for (uint32_t i = 0; i < FLUX_BLOCKS; i++) {
            if (i == FLUX_DOUBLE) flux_concat(&f); /* outside the question: also after a skip */
            if (dc_cache_before_block(c, i, i < FLUX_DOUBLE ? d : s, NULL, 2) == DC_COMPUTE) {
                flux_block(&f, i);
                dc_cache_after_block(c, i, i < FLUX_DOUBLE ? d : s, 2);
            } else {
                CHECK(i >= front && i < FLUX_BLOCKS - back);
                skipped = 1;
            }
        }
        CHECK_OK(dc_cache_end_pass(c));

        flux_t start;
        for (uint32_t i = 0; i < front; i++) flux_block(&want, i);
        start = want;
        flux_concat(&start);
        if (skipped) {
            flux_concat(&want);
            add(want.joint, kept, IMG_N + TXT_N);
        } else {
            for (uint32_t i = front; i < FLUX_BLOCKS - back; i++) {
                if (i == FLUX_DOUBLE) flux_concat(&want);
                flux_block(&want, i);
            }
            difference(kept, want.joint, start.joint, IMG_N + TXT_N);
        }
        for (uint32_t i = FLUX_BLOCKS - back; i < FLUX_BLOCKS; i++) flux_block(&want, i);
        all_close(f.joint, want.joint, IMG_N + TXT_N);
        skips += skipped;
    }
    CHECK(skips > 6);
    CHECK(stats_of(c).passes_skipped == (uint64_t)skips);
    CHECK(stats_of(c).blocks_skipped == (uint64_t)skips * (FLUX_BLOCKS - front - back));
    dc_cache_destroy(c);
}

/* ---- 2. ggml: two graph segments, cuts in buffers of their own, four conditions, the caller synchronises ---- */

static void ggml_segments(void)
{
    enum { CONDITIONS = 4, STEPS = 8 };
    dc_engine_t engine = an_engine(2, CONDITIONS);
    dc_cache_t *c = a_cache(&engine, "fbcache," SPAN_RULE);
    float kept[CONDITIONS][IMG_N + TXT_N];
    char decisions[CONDITIONS][STEPS + 1] = {{0}};
    begin_run(c, 0); /* evaluations, their number unknown */
    for (uint32_t e = 0; e < STEPS; e++)
        for (uint32_t k = 0; k < CONDITIONS; k++) {
            float a[IMG_N], b[TXT_N], f[IMG_N], g[TXT_N], last[IMG_N + TXT_N], cut[IMG_N + TXT_N];
            dc_tensor_t x0[2], h[2], y[2];
            dc_pass_t p = DC_PASS_INIT;
            int skipped;
            x0[0] = rows_of(a, IMG, WIDTH, WIDTH), x0[1] = rows_of(b, TXT, WIDTH, WIDTH);
            h[0] = rows_of(f, IMG, WIDTH, WIDTH), h[1] = rows_of(g, TXT, WIDTH, WIDTH);
            y[0] = rows_of(last + TXT_N, IMG, WIDTH, WIDTH), y[1] = rows_of(last, TXT, WIDTH, WIDTH);
            p.step = e;
            p.branches[0] = k;
            p.stream = DC_STREAM_SYNC;
            p.flags = DC_PASS_TIMESTEP;
            p.timestep = 14.0f / (float)(e + 1);
            CHECK_OK(dc_cache_begin_pass(c, &p));
            /* prelude and head run as one segment, before the library is asked about either */
            embed(a, IMG_N, e, 1.0f + (float)k);
            embed(b, TXT_N, 0, 0.5f);
            memcpy(f, a, sizeof f), memcpy(g, b, sizeof g);
            mix(f, IMG_N, 1.01f, 0.1f * (float)(k + 1)), mix(g, TXT_N, 0.99f, 0.2f);
            memcpy(cut, g, sizeof g), memcpy(cut + TXT_N, f, sizeof f);
            if (dc_cache_before_block(c, 0, x0, h, 2) == DC_COMPUTE) dc_cache_after_block(c, 0, h, 2);
            skipped = dc_cache_before_block(c, 1, h, y, 2) == DC_SKIP;
            if (!skipped) {
                memcpy(last, cut, sizeof last);
                mix(last, IMG_N + TXT_N, 1.3f, 0.4f + 0.1f * (float)k);
                dc_cache_after_block(c, 1, y, 2);
                difference(kept[k], last, cut, IMG_N + TXT_N);
            }
            CHECK_OK(dc_cache_end_pass(c));
            all_close(f, cut + TXT_N, IMG_N); /* the head's cut may share memory with something live */
            all_close(g, cut, TXT_N);
            add(cut, kept[k], IMG_N + TXT_N);
            all_close(last, cut, IMG_N + TXT_N);
            decisions[k][e] = skipped ? 's' : 'C';
        }
    for (uint32_t k = 0; k < CONDITIONS; k++) CHECK(strcmp(decisions[k], "Csssssss") == 0);
    dc_cache_destroy(c);
}

/* ---- 3. video: batched guidance [uncond; cond], the uncond half dropped on some steps ---- */

static void batched_video(void)
{
    enum { BLOCKS = 4, STEPS = 16 };
    dc_engine_t engine = an_engine(BLOCKS, 2);
    engine.max_stacked = 2;
    dc_cache_t *c = a_cache(&engine, "fbcache,threshold=0.012," NO_RAILS); /* now and then it must compute */
    float kept[2][IMG_N] = {{0}};
    int skips = 0, computed = 0;
    begin_run(c, STEPS);
    for (uint32_t step = 0; step < STEPS; step++) {
        int dropped = step >= 2 && step % 3 != 0; /* B = 2 2 1 ... */
        uint32_t b = dropped ? 1 : 2;
        float x[2 * IMG_N], want[2 * IMG_N], start[2 * IMG_N];
        dc_tensor_t t = rows_of(x, b, IMG, WIDTH);
        dc_pass_t p = DC_PASS_INIT;
        int skipped = 0;
        t.ndim = 3; /* [b, IMG, WIDTH] */
        t.shape[0] = b, t.shape[1] = IMG, t.shape[2] = WIDTH;
        t.stride[0] = IMG_N, t.stride[1] = WIDTH, t.stride[2] = 1;
        p.step = step;
        p.n_branches = b;
        p.branches[0] = dropped ? COND : UNCOND;
        p.branches[1] = COND;
        for (uint32_t r = 0; r < b; r++) embed(x + r * IMG_N, IMG_N, 4 * step, p.branches[r] == COND ? 1.0f : 2.0f);
        memcpy(want, x, sizeof want);

        CHECK_OK(dc_cache_begin_pass(c, &p));
        for (uint32_t i = 0; i < BLOCKS; i++)
            if (dc_cache_before_block(c, i, &t, NULL, 1) == DC_COMPUTE) {
                mix(x, b * IMG_N, 1.05f, 0.02f * (float)i);
                dc_cache_after_block(c, i, &t, 1);
            } else {
                skipped = 1;
            }
        CHECK_OK(dc_cache_end_pass(c));

        mix(want, b * IMG_N, 1.05f, 0.0f);
        memcpy(start, want, sizeof start);
        for (uint32_t i = 1; i < BLOCKS && !skipped; i++) mix(want, b * IMG_N, 1.05f, 0.02f * (float)i);
        for (uint32_t r = 0; r < b; r++) { /* what is kept belongs to a branch */
            if (skipped) add(want + r * IMG_N, kept[p.branches[r]], IMG_N);
            else difference(kept[p.branches[r]], want + r * IMG_N, start + r * IMG_N, IMG_N);
        }
        all_close(x, want, b * IMG_N);
        skips += skipped;
        computed += !skipped;
    }
    CHECK(skips >= 4 && computed >= 3);
    dc_cache_destroy(c);
}

/* ---- 3. video again: attention by layers and guidance, with FasterCache and PAB ---- */

enum {
    KINDS = 3, /* spatial, temporal, cross: the first of dc_kind_t */
    VIDEO_BLOCKS = 3, VIDEO_LAYERS = VIDEO_BLOCKS * KINDS, VIDEO_STEPS = 20,
    FRAMES = 2, HEIGHT = 5, ACROSS = 7, PLANE = HEIGHT * ACROSS, VIDEO = FRAMES * PLANE,
};

/* A method, and by hand what it does: a line for each kind of layer and one for the unconditional branch, a letter
 * for each step. The timestep falls from 1000 by 50 a step. */
typedef struct video_method_t {
    const char *text, *layers[KINDS], *uncond;
    int         extrapolates; /* FasterCache, whose weight goes from 0.2 to 0.8 */
    int         cond_only;
    double      low, high;    /* of guidance; they grow with each skipped step, in these steps */
    uint32_t    low_until, high_from;
} video_method_t;

static const video_method_t video_methods[] = {
    {"fastercache,temporal.every=3,cross.every=2,weight=0.2:0.8",
     {"CCCCCCCCCsCsCsCCCsCs", "CCCCCCCCsCCsCssCssCs", "CCCCCCCCCsCsCsCCCsCs"}, "CCCCCCCCssCssssCssss",
     1, 1, 1.1, 1.1, 19, 14},
    {"fastercache,estimator=hold,cond_only=0,temporal.every=3,guidance.low=0.9,guidance.high_window=none",
     {"CCCCCCCsCsCsCsCsCsCs", "CCCCCCCssCssCssCssCs", "CCCCCCCCCCCCCCCCCCCC"}, "CCCCCCCCssCssssCssss",
     0, 0, 0.9, 1.1, 19, 0},
    {"pab,temporal.every=3,cross.every=4",
     {"CCCCCsCsCsCsCsCsCsCC", "CCCCCsCssCssCssCssCC", "CCCCCsssCsssCsssCsCC"}, "CCCCCCCCCCCCCCCCCCCC",
     0, 0, 1.0, 1.0, 0, 0},
    {"pab,temporal.every=3,cross.every=4,guidance.every=4,guidance.window=0.1:0.6,guidance.low=1.2",
     {"CCCCCsCsCsCsCsCsCsCC", "CCCCCsCssCssCssCssCC", "CCCCCsssCsssCsssCsCC"}, "CCCCCCCCCsssCsssCsCC",
     0, 0, 1.2, 1.0, 20, 0},
};

/* The values that a layer of a branch showed last, newest first. */
typedef struct shown_t { float value[2][VIDEO]; uint32_t step[2]; int n; } shown_t;

typedef struct video_t {
    const video_method_t *method;
    dc_cache_t *cache;
    float    x[2 * VIDEO], att[2 * VIDEO], pred[2][VIDEO]; /* x and att: what is in the pass, stacked */
    float    plain[2][VIDEO];                              /* what should be in pred */
    shown_t  shown[2][VIDEO_LAYERS];
    float    apart[VIDEO], apart_low[VIDEO];               /* uncond - cond of the last step with both */
    int      low_power, high_power;
    uint64_t passes, layers[2], uncond[2];                 /* computed, skipped */
} video_t;

/* The first block works on the first frame only, so the layers of a kind come in two shapes. */
static int64_t frames_of(uint32_t layer)
{
    return layer < KINDS ? 1 : FRAMES;
}

/* Spatial attention goes along a plane, temporal along the frames, cross along all of it. */
static dc_tensor_t attention(float *data, int64_t batch, uint32_t layer)
{
    int64_t frames = frames_of(layer);
    dc_tensor_t x = floats(data, batch);
    x.ndim = layer % KINDS == DC_KIND_CROSS ? 2 : 3;
    x.shape[1] = frames, x.shape[2] = PLANE;
    x.stride[0] = VIDEO, x.stride[1] = PLANE, x.stride[2] = 1;
    if (layer % KINDS == DC_KIND_TEMPORAL) x.shape[1] = PLANE, x.shape[2] = frames, x.stride[1] = 1, x.stride[2] = PLANE;
    if (layer % KINDS == DC_KIND_CROSS) x.shape[1] = frames * PLANE, x.stride[1] = 1;
    return x;
}

static dc_tensor_t prediction(float *data)
{
    dc_tensor_t x = floats(data, FRAMES);
    x.ndim = 3;
    x.shape[1] = HEIGHT, x.shape[2] = ACROSS;
    return x;
}

static void video_input(float *x, uint32_t step, uint32_t branch)
{
    for (int j = 0; j < VIDEO; j++)
        x[j] = (branch == COND ? 1.0f : 0.8f) + 0.5f * cosf(0.2f * (float)step + 0.1f * (float)j + (float)branch);
}

static void video_layer(float *att, const float *x, uint32_t layer)
{
    int64_t n = frames_of(layer) * PLANE;
    for (int64_t j = 0; j < n; j++)
        att[j] = (0.3f + 0.02f * (float)layer) * x[j] + 0.1f * x[(j + 3 * (int64_t)layer) % n] * x[j];
}

static void video_finish(float *x, const float *att, uint32_t layer)
{
    for (int64_t j = 0; j < frames_of(layer) * PLANE; j++) x[j] += 0.25f * att[j]; /* gate, residual: always */
}

static void video_head(float *pred, const float *x)
{
    for (int j = 0; j < VIDEO; j++) pred[j] = 1.5f * x[j] - 0.1f;
}

/* What a branch should come to at this step, given which layers are skipped; and what is remembered of it. */
static void video_reference(video_t *v, uint32_t step, uint32_t branch)
{
    float x[VIDEO], att[VIDEO];
    float weight = 0.2f + 0.6f * (float)step / (VIDEO_STEPS - 1);
    video_input(x, step, branch);
    for (uint32_t layer = 0; layer < VIDEO_LAYERS; layer++) {
        shown_t *shown = &v->shown[branch][layer];
        if (v->method->layers[layer % KINDS][step] == 's') {
            float gap = (float)(step - shown->step[0]) / (float)(shown->step[0] - shown->step[1]);
            CHECK(shown->n == 2);
            for (int j = 0; j < VIDEO; j++) {
                att[j] = shown->value[0][j];
                if (v->method->extrapolates) att[j] += weight * gap * (shown->value[0][j] - shown->value[1][j]);
            }
        } else {
            memset(att, 0, sizeof att);
            video_layer(att, x, layer);
            memcpy(shown->value[1], shown->value[0], sizeof att);
            memcpy(shown->value[0], att, sizeof att);
            shown->step[1] = shown->step[0];
            shown->step[0] = step;
            shown->n = shown->n < 2 ? shown->n + 1 : 2;
        }
        video_finish(x, att, layer);
    }
    video_head(v->plain[branch], x);
}

static void video_guidance_reference(video_t *v, uint32_t step)
{
    const video_method_t *m = v->method;
    if (m->uncond[step] == 'C') {
        difference(v->apart, v->plain[UNCOND], v->plain[COND], VIDEO);
        for (int f = 0; f < FRAMES; f++) low_pass(v->apart_low + f * PLANE, v->apart + f * PLANE, HEIGHT, ACROSS);
        v->low_power = v->high_power = 0;
        return;
    }
    if (v->low_power < 4 && step < m->low_until) v->low_power++; /* 4: guidance.max_growth */
    if (v->high_power < 4 && step >= m->high_from) v->high_power++;
    double low = pow(m->low, v->low_power), high = pow(m->high, v->high_power);
    for (int j = 0; j < VIDEO; j++)
        v->plain[UNCOND][j] = (float)(v->plain[COND][j] + high * v->apart[j] + (low - high) * v->apart_low[j]);
}

/* One pass over the branches in `pass`, in its order; each writes its prediction. */
static void video_pass(video_t *v, const dc_pass_t *pass)
{
    const video_method_t *m = v->method;
    uint32_t n = pass->n_branches;
    for (uint32_t r = 0; r < n; r++) video_input(v->x + r * VIDEO, pass->step, pass->branches[r]);
    CHECK_OK(dc_cache_begin_pass(v->cache, pass));
    for (uint32_t layer = 0; layer < VIDEO_LAYERS; layer++) {
        uint32_t kind = layer % KINDS; /* spatial, temporal, cross of each block */
        dc_tensor_t o = attention(v->att, n, layer);
        dc_action_t wanted = m->layers[kind][pass->step] == 's' ? DC_SKIP : DC_COMPUTE;
        int for_it = strchr(m->layers[kind], 's') != NULL;
        memset(v->att, 0x7f, sizeof v->att); /* whatever is there */
        CHECK(dc_cache_peek(v->cache, NULL, DC_LAYER(layer)) == wanted);
        CHECK(dc_cache_before_layer(v->cache, layer, kind, &o, 1) == wanted);
        if (wanted == DC_COMPUTE) {
            for (uint32_t r = 0; r < n; r++) video_layer(v->att + r * VIDEO, v->x + r * VIDEO, layer);
            dc_cache_after_layer(v->cache, layer, &o, 1);
        }
        v->layers[wanted] += (uint64_t)for_it;
        for (uint32_t r = 0; r < n; r++) video_finish(v->x + r * VIDEO, v->att + r * VIDEO, layer);
    }
    CHECK_OK(dc_cache_end_pass(v->cache));
    for (uint32_t r = 0; r < n; r++) {
        video_head(v->pred[pass->branches[r]], v->x + r * VIDEO);
        video_reference(v, pass->step, pass->branches[r]);
    }
    v->passes++;
}

/* [uncond; cond] in one pass, or cond alone. */
static void video_step_batched(video_t *v, uint32_t step)
{
    dc_pass_t u = pass_of(step, UNCOND), p = pass_of(step, COND);
    dc_tensor_t cond = prediction(v->pred[COND]), uncond = prediction(v->pred[UNCOND]);
    dc_action_t wanted = v->method->uncond[step] == 's' ? DC_SKIP : DC_COMPUTE;
    CHECK(dc_cache_peek(v->cache, &u, DC_UNCOND) == wanted);
    if (wanted == DC_COMPUTE) {
        p.n_branches = 2;
        p.branches[0] = UNCOND, p.branches[1] = COND;
    }
    video_pass(v, &p);
    CHECK(dc_cache_before_uncond(v->cache, &u, &cond, &uncond) == wanted);
    if (wanted == DC_COMPUTE) CHECK_OK(dc_cache_after_uncond(v->cache, &u, &cond, &uncond));
}

/* One branch after the other. */
static void video_step_sequential(video_t *v, uint32_t step)
{
    dc_pass_t u = pass_of(step, UNCOND), p = pass_of(step, COND);
    dc_tensor_t cond = prediction(v->pred[COND]), uncond = prediction(v->pred[UNCOND]);
    video_pass(v, &p);
    if (dc_cache_before_uncond(v->cache, &u, &cond, &uncond) == DC_COMPUTE) {
        video_pass(v, &u);
        CHECK_OK(dc_cache_after_uncond(v->cache, &u, &cond, &uncond));
    }
}

/* Bytes that the method keeps, by hand: a layer's values for each branch of which they are kept. */
static uint64_t video_bytes(const video_method_t *m)
{
    uint64_t bytes = 0, floats_of_a_kind = PLANE * (1 + FRAMES * (VIDEO_BLOCKS - 1));
    for (int kind = 0; kind < KINDS; kind++)
        if (strchr(m->layers[kind], 's') != NULL)
            bytes += 4 * floats_of_a_kind * (m->extrapolates ? 2 : 1) * (m->cond_only ? 1 : 2);
    return bytes + (strchr(m->uncond, 's') != NULL ? 8 * VIDEO : 0);
}

static void video(const video_method_t *method, int batched, float predictions[VIDEO_STEPS][2][VIDEO])
{
    video_t v;
    ledger_t books;
    dc_engine_t engine = an_engine(VIDEO_BLOCKS, 2);
    dc_options_t options = options_of(method->text);
    float timesteps[VIDEO_STEPS];
    dc_tensor_t outputs[2 * KINDS], predicted = prediction(NULL);
    dc_shape_t shapes[2 * KINDS + 1];
    dc_run_t run = DC_RUN_INIT;
    uint64_t bytes = 0;

    engine.hooks = DC_HOOK_LAYERS | DC_HOOK_GUIDE;
    engine.n_layers = VIDEO_LAYERS;
    engine.max_stacked = batched ? 2 : 1;
    keep_books(&engine, &books);

    memset(&v, 0, sizeof v);
    v.method = method;
    CHECK_OK(dc_cache_create(&engine, &options, &v.cache));

    /* a row for each kind and shape, and one for a prediction */
    memset(shapes, 0, sizeof shapes);
    for (uint32_t k = 0; k < 2 * KINDS; k++) {
        uint32_t layer = k < KINDS ? k : KINDS + k % KINDS; /* of the first block, of a later one */
        outputs[k] = attention(NULL, 1, layer);
        shapes[k].hook = DC_HOOK_LAYERS;
        shapes[k].kind = layer % KINDS;
        shapes[k].count = k < KINDS ? 1 : VIDEO_BLOCKS - 1;
        shapes[k].tensors = &outputs[k];
    }
    shapes[2 * KINDS].hook = DC_HOOK_GUIDE;
    shapes[2 * KINDS].tensors = &predicted;
    for (uint32_t k = 0; k <= 2 * KINDS; k++) shapes[k].branch = UINT32_MAX, shapes[k].n = 1;
    CHECK_OK(dc_memory_needed(&engine, &options, shapes, 2 * KINDS + 1, &bytes));
    CHECK(bytes == video_bytes(method) && books.calls == 0);

    for (int s = 0; s < VIDEO_STEPS; s++) timesteps[s] = 1000.0f - 50.0f * (float)s;
    run.n_steps = VIDEO_STEPS;
    run.timesteps = timesteps;
    run.timestep_max = 1000.0f;
    run.shapes = shapes;
    run.n_shapes = 2 * KINDS + 1;
    CHECK_OK(dc_cache_begin_run(v.cache, &run));
    CHECK(books.asked == bytes);
    long calls = books.calls;

    for (uint32_t step = 0; step < VIDEO_STEPS; step++) {
        if (batched) video_step_batched(&v, step);
        else video_step_sequential(&v, step);
        video_guidance_reference(&v, step);
        v.uncond[method->uncond[step] == 's'] += strchr(method->uncond, 's') != NULL; /* else guidance is off */
        for (int b = 0; b < 2; b++) all_close(v.pred[b], v.plain[b], VIDEO);
        memcpy(predictions[step], v.pred, sizeof v.pred);
    }
    CHECK(books.calls == calls && books.frees == 0 && books.held == bytes);

    dc_stats_t stats = stats_of(v.cache);
    CHECK(stats.first_error == DC_OK && stats.errors == 0 && stats.discarded == 0);
    CHECK(stats.passes == v.passes && (v.passes == VIDEO_STEPS || !batched));
    CHECK(stats.layers_computed == v.layers[0] && stats.layers_skipped == v.layers[1]);
    CHECK(stats.uncond_computed == v.uncond[0] && stats.uncond_skipped == v.uncond[1]);
    CHECK(stats.blocks_skipped == 0);
    CHECK(stats.bytes_held == bytes && stats.bytes_peak == bytes && stats.allocations == (uint64_t)calls);
    dc_cache_destroy(v.cache);
    CHECK(books.n_live == 0);
}

static void video_batched_and_one_branch_after_the_other(void)
{
    static float batched[VIDEO_STEPS][2][VIDEO], sequential[VIDEO_STEPS][2][VIDEO];
    for (size_t m = 0; m < sizeof video_methods / sizeof *video_methods; m++) {
        video(&video_methods[m], 1, batched);
        video(&video_methods[m], 0, sequential);
        CHECK(memcmp(batched, sequential, sizeof batched) == 0);
    }
}

/* ---- 4. Wan: a cache per expert, sequential guidance (its four ranks are in reduce.c) ---- */

static void two_experts(void)
{
    enum { BLOCKS = 5, STEPS = 14, SPLIT = 6 };
    dc_engine_t engine = an_engine(BLOCKS, 2);
    float timesteps[STEPS];
    char decisions[2][STEPS + 1] = {{0}};
    toy_t toys[2][2]; /* expert, branch */
    dc_cache_t *c[2];
    for (int s = 0; s < STEPS; s++) timesteps[s] = 1000.0f - 70.0f * (float)s;
    for (int e = 0; e < 2; e++) {
        dc_run_t r = DC_RUN_INIT;
        c[e] = a_cache(&engine, e == 0 ? "fbcache,threshold=0.2," NO_RAILS ",warmup_steps=2,last_steps=1"
                                       : "fbcache,threshold=0.3," NO_RAILS ",warmup_steps=3,last_steps=1");
        r.n_steps = STEPS;
        r.timesteps = timesteps;
        r.timestep_max = 1000.0f;
        r.first_step = e ? SPLIT : 0;
        r.end_step = e ? STEPS : SPLIT; /* warm-up and last step belong to the expert */
        CHECK_OK(dc_cache_begin_run(c[e], &r));
        for (int k = 0; k < 2; k++) toys[e][k] = a_toy(c[e], BLOCKS, 1, 0);
    }
    for (uint32_t step = 0; step < STEPS; step++) {
        int e = step >= SPLIT;
        if (step == SPLIT) {
            CHECK_OK(dc_cache_end_run(c[0]));
            CHECK_OK(dc_cache_trim(c[0], NULL));
            CHECK(stats_of(c[0]).bytes_held == 0);
        }
        for (uint32_t k = 0; k < 2; k++) {
            dc_pass_t p = pass_of(step, k);
            outcome_t outcome = toy_pass(&toys[e][k], &p, (k ? 2.0f : 1.0f) + 0.001f * (float)step);
            CHECK_OK(outcome.began);
            CHECK_OK(outcome.ended);
            decisions[k][step] = outcome.decision;
        }
        dc_trace_t record = newest(c[e]);
        CHECK(record.step == step && record.branch == 1 && record.timestep == timesteps[step]);
    }
    for (int k = 0; k < 2; k++) CHECK(strcmp(decisions[k], "CCsssC" "CCCssssC") == 0);
    /* a pass outside the expert's steps is refused */
    dc_pass_t p = pass_of(STEPS, 0);
    CHECK_STATUS(toy_pass(&toys[1][0], &p, 1.0f).ended, DC_ERR_ARG);
    dc_cache_destroy(c[0]);
    dc_cache_destroy(c[1]);
}

/* ---- 5. TensorRT: head, tail, finish; a skip writes the address that `finish` was captured with ---- */

static void captured_plans(void)
{
    dc_engine_t engine = an_engine(2, 1);
    engine.hooks = DC_HOOK_BLOCKS;
    dc_cache_t *c = a_cache(&engine, "fbcache," SPAN_RULE);
    float in[IMG_N], head_out[IMG_N], tail_out[IMG_N], finish[IMG_N], want[IMG_N], kept[IMG_N] = {0};
    int skips = 0;
    begin_run(c, 8);
    for (uint32_t step = 0; step < 8; step++) {
        dc_pass_t p = pass_of(step, 0);
        dc_tensor_t x = rows_of(in, IMG, WIDTH, WIDTH), h = rows_of(head_out, IMG, WIDTH, WIDTH),
                    y = rows_of(tail_out, IMG, WIDTH, WIDTH);
        int skipped;
        embed(in, IMG_N, step, 1.0f);
        CHECK_OK(dc_cache_begin_pass(c, &p));
        CHECK(dc_cache_before_block(c, 0, &x, &h, 1) == DC_COMPUTE);
        memcpy(head_out, in, sizeof in); /* launch of the head's graph */
        mix(head_out, IMG_N, 1.02f, 0.3f);
        dc_cache_after_block(c, 0, &h, 1);
        skipped = dc_cache_before_block(c, 1, &h, &y, 1) == DC_SKIP;
        if (!skipped) {
            memcpy(tail_out, head_out, sizeof in); /* the tail's */
            mix(tail_out, IMG_N, 1.2f, 0.7f);
            dc_cache_after_block(c, 1, &y, 1);
        }
        CHECK_OK(dc_cache_end_pass(c));
        memcpy(finish, tail_out, sizeof in); /* and the last one: it knows one address only */

        embed(want, IMG_N, step, 1.0f);
        mix(want, IMG_N, 1.02f, 0.3f);
        all_close(head_out, want, IMG_N);
        if (skipped) {
            add(want, kept, IMG_N);
        } else {
            mix(want, IMG_N, 1.2f, 0.7f);
            difference(kept, want, head_out, IMG_N);
        }
        all_close(finish, want, IMG_N);
        skips += skipped;
    }
    CHECK(skips == 7);
    dc_cache_destroy(c);
}

/* ---- 6. server: a cache per request, rows of one batch, boundary calls only, perhaps all or none ---- */

enum { REQUESTS = 4, SERVER_BLOCKS = 5 };

static void server(int all_or_none)
{
    dc_engine_t engine = an_engine(SERVER_BLOCKS, 1);
    dc_cache_t *c[REQUESTS];
    float batch[REQUESTS][IMG_N], sub[REQUESTS][IMG_N], kept[REQUESTS][IMG_N], want[IMG_N], start[IMG_N];
    int mixed = 0, skips = 0;
    engine.hooks = DC_HOOK_BLOCKS;
    for (int r = 0; r < REQUESTS; r++) {
        c[r] = a_cache(&engine, "fbcache,threshold=0.01," NO_RAILS);
        begin_run(c[r], 100);
    }
    for (uint32_t tick = 0; tick < 20; tick++) {
        int keep[REQUESTS], any = 0, computed = 0, k = 0;
        for (int r = 0; r < REQUESTS; r++) { /* every request is at a step of its own, and changes at a pace of its own */
            dc_pass_t p = pass_of(tick + 3 * (uint32_t)r, 0);
            dc_tensor_t x = rows_of(batch[r], IMG, WIDTH, WIDTH);
            embed(batch[r], IMG_N, tick * (uint32_t)(r + 1), 1.0f);
            CHECK_OK(dc_cache_begin_pass(c[r], &p));
            CHECK(dc_cache_before_block(c[r], 0, &x, NULL, 1) == DC_COMPUTE); /* a front block always computes */
        }
        for (int r = 0; r < REQUESTS; r++) mix(batch[r], IMG_N, 1.05f, 0.0f);
        for (int r = 0; r < REQUESTS; r++) {
            dc_tensor_t x = rows_of(batch[r], IMG, WIDTH, WIDTH);
            dc_cache_after_block(c[r], 0, &x, 1);
        }
        for (int r = 0; r < REQUESTS; r++) any |= dc_cache_decide(c[r], DC_UNDECIDED) == DC_COMPUTE;
        for (int r = 0; r < REQUESTS; r++) {
            dc_tensor_t x = rows_of(batch[r], IMG, WIDTH, WIDTH);
            if (all_or_none && any) CHECK(dc_cache_decide(c[r], DC_COMPUTE) == DC_COMPUTE);
            memcpy(sub[k], batch[r], sizeof sub[k]); /* compact: its row, if it stays in the batch */
            keep[r] = dc_cache_before_block(c[r], 1, &x, NULL, 1) == DC_COMPUTE;
            if (keep[r]) k++;
            computed += keep[r];
        }
        for (int r = 0; r < k; r++)
            for (int i = 1; i < SERVER_BLOCKS; i++) mix(sub[r], IMG_N, 1.05f, 0.02f * (float)i);
        k = 0;
        for (int r = 0; r < REQUESTS; r++) {
            if (keep[r]) {
                dc_tensor_t y = rows_of(sub[k], IMG, WIDTH, WIDTH);
                dc_cache_after_block(c[r], SERVER_BLOCKS - 1, &y, 1);
                memcpy(batch[r], sub[k++], sizeof batch[r]);
            }
            CHECK_OK(dc_cache_end_pass(c[r]));

            embed(want, IMG_N, tick * (uint32_t)(r + 1), 1.0f);
            mix(want, IMG_N, 1.05f, 0.0f);
            memcpy(start, want, sizeof start);
            for (int i = 1; i < SERVER_BLOCKS && keep[r]; i++) mix(want, IMG_N, 1.05f, 0.02f * (float)i);
            if (keep[r]) difference(kept[r], want, start, IMG_N);
            else add(want, kept[r], IMG_N);
            all_close(batch[r], want, IMG_N);
        }
        if (all_or_none) CHECK(computed == 0 || computed == REQUESTS);
        mixed |= computed > 0 && computed < REQUESTS;
        skips += REQUESTS - computed;
    }
    CHECK(skips > 0);
    CHECK(mixed == !all_or_none);
    for (int r = 0; r < REQUESTS; r++) dc_cache_destroy(c[r]);
}

/* ---- 7. weight streaming: cond and uncond per loaded block; two caches, the first decides; uploads by peek ---- */

/* `early`: the method knows the whole pass before it starts, so nothing is uploaded in vain. */
static void weight_streaming(const char *method, int early)
{
    enum { BLOCKS = 6, STEPS = 12, AHEAD = 2 };
    dc_engine_t engine = an_engine(BLOCKS, 1);
    toy_t toys[2];
    int uploads = 0, used = 0, skipped_passes = 0;
    for (int k = 0; k < 2; k++) {
        toys[k] = a_toy(a_cache(&engine, method), BLOCKS, 1, 0);
        begin_run(toys[k].cache, STEPS);
    }
    for (uint32_t step = 0; step < STEPS; step++) {
        dc_pass_t p = pass_of(step, 0);
        uint32_t ahead = 0;
        int uploaded[BLOCKS] = {0}, skipped[2] = {0, 0};
        float base[2];
        for (int k = 0; k < 2; k++) {
            base[k] = (k ? 2.0f : 1.0f) + 0.001f * (float)step;
            toy_input(&toys[k], base[k]);
            CHECK_OK(dc_cache_begin_pass(toys[k].cache, &p));
        }
        for (uint32_t b = 0; b < BLOCKS; b++) {
            for (; ahead < BLOCKS && ahead <= b + AHEAD; ahead++)
                if (dc_cache_peek(toys[0].cache, NULL, ahead) != DC_SKIP) uploaded[ahead] = 1, uploads++;
            if (b == 1) {
                dc_action_t first = dc_cache_decide(toys[0].cache, DC_UNDECIDED);
                CHECK(first != DC_UNDECIDED);
                CHECK(dc_cache_decide(toys[1].cache, first) == first);
                CHECK(dc_cache_peek(toys[0].cache, NULL, b) == first); /* settled: certain */
            }
            for (int k = 0; k < 2; k++) {
                dc_tensor_t x = floats(toys[k].x, TOY);
                if (dc_cache_before_block(toys[k].cache, b, &x, NULL, 1) == DC_COMPUTE) {
                    CHECK(uploaded[b]); /* a promise to skip is kept */
                    used += k == 0;
                    toy_block(toys[k].x, TOY, b);
                    dc_cache_after_block(toys[k].cache, b, &x, 1);
                } else {
                    skipped[k] = 1;
                }
            }
        }
        CHECK(skipped[0] == skipped[1]);
        skipped_passes += skipped[0];
        for (int k = 0; k < 2; k++) {
            CHECK_OK(dc_cache_end_pass(toys[k].cache));
            toy_verify(&toys[k], base[k], skipped[k], 1);
        }
    }
    CHECK(skipped_passes > 3);
    if (early) CHECK(uploads == used);
    else CHECK(uploads <= used + skipped_passes * (AHEAD + 1)); /* wasted: what was fetched before the answer */
    for (int k = 0; k < 2; k++) dc_cache_destroy(toys[k].cache);
}

/* The same by layers, whose schedule is known long before: also across the end of a pass nothing is uploaded in vain. */
static void weight_streaming_by_layers(const char *method)
{
    enum { BLOCKS = 4, LAYERS = 2 * BLOCKS, STEPS = 12, AHEAD = 3 };
    static const uint32_t kinds[2] = {DC_KIND_SPATIAL, DC_KIND_MLP};
    dc_engine_t engine = an_engine(BLOCKS, 1);
    engine.hooks = DC_HOOK_LAYERS;
    engine.n_layers = LAYERS;
    dc_cache_t *c = a_cache(&engine, method);
    float x[TOY], out[TOY], kept[LAYERS][TOY];
    uint32_t ahead = 0; /* position of the next upload, counted over all steps */
    int uploaded[STEPS + 1][LAYERS] = {{0}}, uploads = 0, used = 0;
    begin_run(c, STEPS);
    for (uint32_t step = 0; step < STEPS; step++) {
        dc_pass_t p = pass_of(step, 0);
        embed(x, TOY, step, 1.0f);
        CHECK_OK(dc_cache_begin_pass(c, &p));
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            for (; ahead < STEPS * LAYERS && ahead <= step * LAYERS + layer + AHEAD; ahead++) {
                uint32_t at = ahead / LAYERS, number = ahead % LAYERS;
                dc_pass_t coming = pass_of(at, 0);
                dc_action_t action = dc_cache_peek(c, at == step ? NULL : &coming, DC_LAYER(number));
                CHECK(action != DC_UNDECIDED);
                if (action == DC_COMPUTE) uploaded[at][number] = 1, uploads++;
            }
            dc_tensor_t o = floats(out, TOY);
            memset(out, 0x7f, sizeof out);
            if (dc_cache_before_layer(c, layer, kinds[layer % 2], &o, 1) == DC_COMPUTE) {
                CHECK(uploaded[step][layer]);
                used++;
                for (int j = 0; j < TOY; j++) kept[layer][j] = out[j] = 0.1f * x[j] + (float)layer;
                dc_cache_after_layer(c, layer, &o, 1);
            } else {
                CHECK(!uploaded[step][layer]);
            }
            CHECK(memcmp(out, kept[layer], sizeof out) == 0);
            add(x, out, TOY);
        }
        CHECK_OK(dc_cache_end_pass(c));
    }
    CHECK(uploads == used && used < STEPS * LAYERS);
    CHECK(stats_of(c).layers_skipped == (uint64_t)(STEPS * LAYERS - used));
    dc_cache_destroy(c);
}

/* ---- 9. U-Net ---- */

/* UCache's place: the whole model, latents in, prediction out. */
static void unet_whole_model(void)
{
    const char *mask = "1011001010";
    dc_engine_t engine = an_engine(1, 1);
    engine.hooks = DC_HOOK_MODEL;
    dc_cache_t *c = a_cache(&engine, "mask,mask=1011001010,scope=model,on_residual=1");
    float latents[IMG_N], pred[IMG_N], want[IMG_N], kept[IMG_N] = {0};
    begin_run(c, 10);
    for (uint32_t step = 0; step < 10; step++) {
        dc_pass_t p = pass_of(step, 0);
        dc_tensor_t in = rows_of(latents, IMG, WIDTH, WIDTH), out = rows_of(pred, IMG, WIDTH, WIDTH);
        embed(latents, IMG_N, 10 * step, 1.0f);
        memcpy(want, latents, sizeof want);
        CHECK(dc_cache_peek(c, &p, DC_MODEL) == (mask[step] == '1' ? DC_COMPUTE : DC_SKIP));
        CHECK_OK(dc_cache_begin_pass(c, &p));
        if (dc_cache_before_block(c, DC_MODEL, &in, &out, 1) == DC_COMPUTE) {
            CHECK(mask[step] == '1');
            memcpy(pred, latents, sizeof pred);
            mix(pred, IMG_N, 1.5f, -0.2f);
            dc_cache_after_block(c, DC_MODEL, &out, 1);
            difference(kept, pred, latents, IMG_N);
        } else {
            CHECK(mask[step] == '0');
        }
        CHECK_OK(dc_cache_end_pass(c));
        all_close(latents, want, IMG_N); /* the sampler's own buffer */
        add(want, kept, IMG_N);
        all_close(pred, want, IMG_N);
        CHECK(newest(c).unit == DC_MODEL);
    }
    CHECK(stats_of(c).passes_skipped == 5);
    dc_cache_destroy(c);
}

/* Inpainting: nine channels in, four out. What is kept is the output itself. */
static void unet_other_channels(void)
{
    enum { PIXELS = 6, IN = 9 * PIXELS, OUT = 4 * PIXELS };
    dc_engine_t engine = an_engine(1, 1);
    engine.hooks = DC_HOOK_MODEL;
    dc_cache_t *c = a_cache(&engine, "mask,mask=10010,scope=model,on_residual=0");
    float latents[IN], pred[OUT], want[OUT] = {0};
    begin_run(c, 5);
    for (uint32_t step = 0; step < 5; step++) {
        dc_pass_t p = pass_of(step, 0);
        dc_tensor_t in = rows_of(latents, 9, PIXELS, PIXELS), out = rows_of(pred, 4, PIXELS, PIXELS);
        embed(latents, IN, step, 1.0f);
        memset(pred, 0x7f, sizeof pred);
        CHECK_OK(dc_cache_begin_pass(c, &p));
        if (dc_cache_before_block(c, DC_MODEL, &in, &out, 1) == DC_COMPUTE) {
            for (int j = 0; j < OUT; j++) pred[j] = want[j] = latents[j] * latents[j + PIXELS] + (float)step;
            dc_cache_after_block(c, DC_MODEL, &out, 1);
        }
        CHECK_OK(dc_cache_end_pass(c));
        for (int j = 0; j < OUT; j++) CHECK(pred[j] == want[j]); /* held, bit for bit */
    }
    CHECK(stats_of(c).passes_skipped == 3);
    dc_cache_destroy(c);
}

/* DeepCache: one skippable unit, whose input is a skip connection too and whose output has another shape. What is kept
 * is the output, so that is what the engine tells of its shapes. */
static void unet_deepcache(const char *method)
{
    enum { DOWN = 3 * 8, UP = 6 * 8, EVERY = 3 };
    ledger_t books;
    dc_engine_t engine = an_engine(1, 1);
    dc_run_t run = DC_RUN_INIT;
    dc_shape_t shape;
    float down[DOWN], up[UP], want[UP] = {0}, skip_connection[DOWN];
    dc_tensor_t in = rows_of(down, 3, 8, 8), out = rows_of(up, 6, 8, 8);
    keep_books(&engine, &books);
    dc_cache_t *c = a_cache(&engine, method);
    memset(&shape, 0, sizeof shape);
    shape.hook = DC_HOOK_BLOCKS;
    shape.branch = UINT32_MAX;
    shape.tensors = &out;
    shape.n = 1;
    run.n_steps = 9;
    run.shapes = &shape;
    run.n_shapes = 1;
    CHECK_OK(dc_cache_begin_run(c, &run));
    CHECK(books.calls == 1 && books.asked == sizeof up);
    for (uint32_t step = 0; step < 9; step++) {
        dc_pass_t p = pass_of(step, 0);
        embed(down, DOWN, step, 1.0f);
        memcpy(skip_connection, down, sizeof down);
        memset(up, 0x7f, sizeof up);
        CHECK(dc_cache_peek(c, &p, 0) == (step % EVERY == 0 ? DC_COMPUTE : DC_SKIP));
        CHECK_OK(dc_cache_begin_pass(c, &p));
        if (dc_cache_before_block(c, 0, &in, &out, 1) == DC_COMPUTE) {
            CHECK(step % EVERY == 0);
            for (int j = 0; j < UP; j++) up[j] = want[j] = 2.0f * down[j % DOWN] + (float)j;
            dc_cache_after_block(c, 0, &out, 1);
        } else {
            CHECK(step % EVERY != 0);
        }
        CHECK_OK(dc_cache_end_pass(c));
        for (int j = 0; j < UP; j++) CHECK(up[j] == want[j]);
        for (int j = 0; j < DOWN; j++) CHECK(down[j] == skip_connection[j]);
    }
    CHECK(stats_of(c).blocks_computed == 3 && stats_of(c).blocks_skipped == 6);
    CHECK(books.calls == 1 && books.frees == 0);
    dc_cache_destroy(c);
    CHECK(books.n_live == 0);
}

/* Each block for itself, every one with shapes of its own: 2 rows in, 2, 4 and 8 out. */
static void unet_each_block_for_itself(void)
{
    enum { UNITS = 3, COLUMNS = 4, MOST = 8 * COLUMNS, EVERY = 4 };
    static const int64_t rows[UNITS + 1] = {2, 2, 4, 8};
    dc_engine_t engine = an_engine(UNITS, 1);
    engine.hooks = DC_HOOK_EACH;
    dc_cache_t *c = a_cache(&engine, "none,rule=schedule,scope=block,every=4,on_residual=0");
    float h[UNITS + 1][MOST], kept[UNITS + 1][MOST];
    begin_run(c, 9);
    for (uint32_t step = 0; step < 9; step++) {
        dc_pass_t p = pass_of(step, 0);
        embed(h[0], MOST, step, 1.0f);
        CHECK_OK(dc_cache_begin_pass(c, &p));
        for (uint32_t i = 0; i < UNITS; i++) {
            dc_tensor_t in = rows_of(h[i], rows[i], COLUMNS, COLUMNS);
            dc_tensor_t out = rows_of(h[i + 1], rows[i + 1], COLUMNS, COLUMNS);
            int64_t n = rows[i + 1] * COLUMNS;
            memset(h[i + 1], 0x7f, sizeof h[i + 1]);
            if (dc_cache_before_block(c, i, &in, &out, 1) == DC_COMPUTE) {
                CHECK(step % EVERY == 0);
                for (int64_t j = 0; j < n; j++) h[i + 1][j] = 1.1f * h[i][j / 2] + (float)i;
                memcpy(kept[i + 1], h[i + 1], sizeof h[i + 1]);
                dc_cache_after_block(c, i, &out, 1);
            } else {
                CHECK(step % EVERY != 0);
            }
            CHECK(memcmp(h[i + 1], kept[i + 1], (size_t)n * sizeof(float)) == 0);
        }
        CHECK_OK(dc_cache_end_pass(c));
    }
    CHECK(stats_of(c).blocks_computed == 3 * UNITS && stats_of(c).blocks_skipped == 6 * UNITS);
    CHECK(stats_of(c).bytes_held == (2 + 4 + 8) * COLUMNS * sizeof(float));
    dc_cache_destroy(c);
}

/* An integration that asks about blocks and about the model runs either kind of method. */
static void one_integration_serves_both_scopes(void)
{
    static const char *const methods[] = {"mask,mask=100,front_blocks=0", "mask,mask=100,scope=model", "none"};
    for (int m = 0; m < 3; m++) {
        dc_engine_t engine = an_engine(3, 1);
        engine.hooks = DC_HOOK_EACH | DC_HOOK_BLOCKS | DC_HOOK_MODEL;
        dc_cache_t *c = a_cache(&engine, methods[m]);
        float latents[TOY], pred[TOY], h[TOY];
        int ran = 0, models = 0;
        begin_run(c, 3);
        for (uint32_t step = 0; step < 3; step++) {
            dc_pass_t p = pass_of(step, 0);
            dc_tensor_t in = floats(latents, TOY), out = floats(pred, TOY), x = floats(h, TOY);
            for (int j = 0; j < TOY; j++) latents[j] = 1.0f;
            CHECK_OK(dc_cache_begin_pass(c, &p));
            if (dc_cache_before_block(c, DC_MODEL, &in, &out, 1) == DC_COMPUTE) {
                models++;
                memcpy(h, latents, sizeof h);
                for (uint32_t i = 0; i < 3; i++)
                    if (dc_cache_before_block(c, i, &x, NULL, 1) == DC_COMPUTE) {
                        toy_block(h, TOY, i);
                        dc_cache_after_block(c, i, &x, 1);
                        ran++;
                    }
                memcpy(pred, h, sizeof h);
                dc_cache_after_block(c, DC_MODEL, &out, 1);
            }
            CHECK_OK(dc_cache_end_pass(c));
            CHECK(close_to(pred[0], ((1.01 + 0.1) * 1.02 + 0.1) * 1.03 + 0.1));
        }
        CHECK(models == (m == 1 ? 1 : 3));
        CHECK(ran == (m == 2 ? 9 : 3));
        dc_cache_destroy(c);
    }
}

int main(void)
{
    eager_flux("fbcache," SPAN_RULE, 1, 0);
    eager_flux("dbcache,front_blocks=2,back_blocks=2," SPAN_RULE, 2, 2);
    eager_flux("mask,mask=100000000000,front_blocks=1", 1, 0);
    ggml_segments();
    batched_video();
    video_batched_and_one_branch_after_the_other();
    two_experts();
    captured_plans();
    server(0);
    server(1);
    weight_streaming("mask,mask=110100100101,front_blocks=1", 1);
    weight_streaming("fbcache,lagged=1," SPAN_RULE, 1);
    weight_streaming("fbcache," SPAN_RULE, 0);
    weight_streaming_by_layers("none,rule=schedule,scope=layers,on_residual=0,every=3");
    weight_streaming_by_layers("none,rule=schedule,scope=layers,on_residual=0,spatial.every=2,mlp.every=5");
    unet_whole_model();
    unet_other_channels();
    unet_deepcache("mask,mask=100100100,front_blocks=0,on_residual=0");
    unet_deepcache("none,rule=schedule,every=3,on_residual=0");
    unet_deepcache("none,rule=schedule,every=3,on_residual=0,scope=block");
    unet_each_block_for_itself();
    one_integration_serves_both_scopes();
    return 0;
}
