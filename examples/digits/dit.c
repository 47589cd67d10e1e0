#include "dit.h"

#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { W = DIT_WIDTH, T = DIT_TOKENS, PATCH_PIXELS = DIT_PATCH * DIT_PATCH };

/* ---- loading ---- */

typedef struct {
    safetensors file;
    const float *device; /* the model's memory */
    float *host;         /* what will be copied there */
    size_t used;
    bool ok;
} loader;

/* Where `count` numbers go, and where they will be. */
static float *place(loader *l, int count, const float **device)
{
    float *host = l->host + l->used;
    *device = l->device + l->used;
    l->used += (size_t)count;
    return host;
}

/* The tensor `prefix.name`. After a failure all others fail in silence. */
static const float *load(loader *l, const char *prefix, const char *name, int count)
{
    char full[64];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const float *device;
    float *host = place(l, count, &device);
    l->ok = l->ok && safetensors_read(&l->file, full, host, (size_t)count);
    return device;
}

static dit_linear load_linear(loader *l, const char *prefix, int in, int out)
{
    /* The file has [out][in]. Transposed, the inner loop of a product runs along memory. */
    float *host = l->host + l->used, *transposed = allocate((size_t)(in * out), sizeof(float));
    const float *weight = load(l, prefix, ".weight", in * out);
    for (int i = 0; i < in; i++)
        for (int o = 0; o < out; o++)
            transposed[i * out + o] = host[o * in + i];
    memcpy(host, transposed, sizeof(float) * (size_t)(in * out));
    free(transposed);
    return (dit_linear){in, out, weight, load(l, prefix, ".bias", out)};
}

static void load_all(loader *l, dit_model *model)
{
    model->patch = load_linear(l, "patch", PATCH_PIXELS, W);
    model->position = load(l, "position", "", T * W);
    model->label = load(l, "label.weight", "", (DIT_NULL + 1) * W);
    model->time1 = load_linear(l, "time1", W, W);
    model->time2 = load_linear(l, "time2", W, W);
    for (int i = 0; i < DIT_BLOCKS; i++) {
        char name[32];
#define BLOCK_LINEAR(part, in, out) \
    (snprintf(name, sizeof name, "blocks.%d." #part, i), model->blocks[i].part = load_linear(l, name, in, out))
        BLOCK_LINEAR(modulation, W, 6 * W);
        BLOCK_LINEAR(qkv, W, 3 * W);
        BLOCK_LINEAR(proj, W, W);
        BLOCK_LINEAR(up, W, 4 * W);
        BLOCK_LINEAR(down, 4 * W, W);
#undef BLOCK_LINEAR
    }
    model->final_modulation = load_linear(l, "final_modulation", W, 2 * W);
    model->final = load_linear(l, "final", W, PATCH_PIXELS);
}

/* Where pixel p of a token lies in its image. */
static int pixel(int token, int p)
{
    int across = DIT_SIDE / DIT_PATCH;
    int row = token / across * DIT_PATCH + p / DIT_PATCH, column = token % across * DIT_PATCH + p % DIT_PATCH;
    return row * DIT_SIDE + column;
}

/* What is not in the file. */
static void fill_tables(loader *l, dit_model *model)
{
    float *frequency = place(l, W / 2, &model->frequency);
    for (int i = 0; i < W / 2; i++)
        frequency[i] = expf(-logf(10000) * (float)i / (W / 2));
    int to_patches[DIT_PIXELS], from_patches[DIT_PIXELS];
    for (int i = 0; i < DIT_PIXELS; i++) {
        to_patches[i] = pixel(i / PATCH_PIXELS, i % PATCH_PIXELS);
        from_patches[to_patches[i]] = i;
    }
    const float *device;
    memcpy(place(l, DIT_PIXELS, &device), to_patches, sizeof to_patches);
    model->to_patches = (const int *)device;
    memcpy(place(l, DIT_PIXELS, &device), from_patches, sizeof from_patches);
    model->from_patches = (const int *)device;
}

bool dit_load(dit_model *model, const maths *maths, const char *path)
{
    *model = (dit_model){.maths = maths};
    loader l = {.ok = true};
    if (!safetensors_open(&l.file, path))
        return false;
    size_t size = sizeof(float) * (DIT_PARAMETERS + W / 2 + 2 * DIT_PIXELS), pictures = (size_t)maths->at_once;
    l.host = allocate(size, 1);
    l.device = model->memory = maths->allocate(size);
    load_all(&l, model);
    fill_tables(&l, model);
    maths->upload(model->memory, l.host, size);
    model->narrow = maths->allocate(sizeof(float) * pictures * T * W);
    model->wide = maths->allocate(sizeof(float) * pictures * T * 4 * W);
    free(l.host);
    safetensors_close(&l.file);
    if (!l.ok)
        dit_free(model);
    return l.ok;
}

void dit_free(dit_model *model)
{
    model->maths->release(model->memory);
    model->maths->release(model->narrow);
    model->maths->release(model->wide);
    memset(model, 0, sizeof *model);
}

/* ---- the model ---- */

static void linear(const dit_model *model, const dit_linear *l, int rows, const float *x, float *out)
{
    model->maths->linear(rows, l->in, l->out, x, l->weight, l->bias, out);
}

/* How many of n pictures to work on next. */
static int portion(const dit_model *model, int n) { return n < model->maths->at_once ? n : model->maths->at_once; }

void dit_embed(const dit_model *model, const float *images, const float *t, const int *labels, int n, float *x,
               float *condition)
{
    const maths *m = model->maths;
    for (int count; n > 0; n -= count, images += count * DIT_PIXELS, t += count, labels += count) {
        count = portion(model, n);
        m->permute(count, DIT_PIXELS, images, model->to_patches, model->narrow);
        linear(model, &model->patch, count * T, model->narrow, x);
        m->add(count, T * W, model->position, x);

        m->waves(count, W / 2, t, model->frequency, model->narrow);
        linear(model, &model->time1, count, model->narrow, model->wide);
        m->silu(count * W, model->wide);
        linear(model, &model->time2, count, model->wide, condition);
        m->add_chosen(count, W, model->label, labels, condition);
        m->silu(count * W, condition); /* every use of the condition begins with this */
        x += count * T * W, condition += count * W;
    }
}

/* The order of a block's modulation, as train.py has it. */
static const float *shift(dit_part part, const float *modulation) { return modulation + part * 3 * W; }
static const float *scale(dit_part part, const float *modulation) { return modulation + part * 3 * W + W; }
static const float *gate(dit_part part, const float *modulation) { return modulation + part * 3 * W + 2 * W; }

void dit_modulate(const dit_model *model, int block, const float *condition, int n, float *modulation)
{
    linear(model, &model->blocks[block].modulation, n, condition, modulation);
}

void dit_attention(const dit_model *model, int block, const float *x, const float *modulation, int n, float *out)
{
    const maths *m = model->maths;
    for (int count; n > 0; n -= count, x += count * T * W, modulation += count * DIT_MODULATION, out += count * T * W) {
        count = portion(model, n);
        m->normalise(count, T, W, x, scale(DIT_ATTENTION, modulation), shift(DIT_ATTENTION, modulation), DIT_MODULATION,
                     model->narrow);
        linear(model, &model->blocks[block].qkv, count * T, model->narrow, model->wide);
        m->attention(count, T, DIT_HEADS, W, model->wide, model->narrow);
        linear(model, &model->blocks[block].proj, count * T, model->narrow, out);
    }
}

void dit_mlp(const dit_model *model, int block, const float *x, const float *modulation, int n, float *out)
{
    const maths *m = model->maths;
    for (int count; n > 0; n -= count, x += count * T * W, modulation += count * DIT_MODULATION, out += count * T * W) {
        count = portion(model, n);
        m->normalise(count, T, W, x, scale(DIT_MLP, modulation), shift(DIT_MLP, modulation), DIT_MODULATION,
                     model->narrow);
        linear(model, &model->blocks[block].up, count * T, model->narrow, model->wide);
        m->gelu(count * T * 4 * W, model->wide);
        linear(model, &model->blocks[block].down, count * T, model->wide, out);
    }
}

void dit_add(const dit_model *model, dit_part part, const float *modulation, int n, const float *out, float *x)
{
    model->maths->add_gated(n, T, W, gate(part, modulation), DIT_MODULATION, out, x);
}

void dit_velocity(const dit_model *model, const float *x, const float *condition, int n, float *velocity)
{
    const maths *m = model->maths;
    for (int count; n > 0; n -= count, x += count * T * W, condition += count * W, velocity += count * DIT_PIXELS) {
        count = portion(model, n);
        float *modulation = model->wide, *patches = model->wide;
        linear(model, &model->final_modulation, count, condition, modulation);
        m->normalise(count, T, W, x, modulation + W, modulation, 2 * W, model->narrow);
        linear(model, &model->final, count * T, model->narrow, patches);
        m->permute(count, DIT_PIXELS, patches, model->from_patches, velocity);
    }
}
