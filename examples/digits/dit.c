#include "dit.h"

#include "maths.h"
#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { W = DIT_WIDTH, T = DIT_TOKENS, HEAD = DIT_WIDTH / DIT_HEADS, PATCH_PIXELS = DIT_PATCH * DIT_PATCH };

/* ---- loading ---- */

typedef struct {
    safetensors file;
    float *next; /* free memory */
    bool ok;
} loader;

/* The tensor `prefix.name`. After a failure all others fail in silence. */
static const float *load(loader *l, const char *prefix, const char *name, int count)
{
    char full[64];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    float *here = l->next;
    l->ok = l->ok && safetensors_read(&l->file, full, here, (size_t)count);
    l->next += l->ok ? count : 0;
    return here;
}

static dit_linear load_linear(loader *l, const char *prefix, int in, int out)
{
    /* The file has [out][in]. Transposed, the inner loop of gemm runs along memory. */
    const float *weight = load(l, prefix, ".weight", in * out);
    float *transposed = l->next;
    if (l->ok) {
        for (int i = 0; i < in; i++)
            for (int o = 0; o < out; o++)
                transposed[i * out + o] = weight[o * in + i];
        memmove(l->next - in * out, transposed, sizeof(float) * (size_t)(in * out));
    }
    return (dit_linear){in, out, weight, load(l, prefix, ".bias", out)};
}

bool dit_load(dit_model *model, const char *path)
{
    memset(model, 0, sizeof *model);
    loader l = {.ok = true};
    if (!safetensors_open(&l.file, path))
        return false;
    /* All parameters are f16, so there are half as many as bytes; and room to transpose the largest. */
    l.next = model->memory = malloc(sizeof(float) * (l.file.size / 2 + 6 * W * W));
    if (!model->memory) {
        safetensors_close(&l.file);
        return false;
    }
    model->patch = load_linear(&l, "patch", PATCH_PIXELS, W);
    model->position = load(&l, "position", "", T * W);
    model->label = load(&l, "label.weight", "", (DIT_NULL + 1) * W);
    model->time1 = load_linear(&l, "time1", W, W);
    model->time2 = load_linear(&l, "time2", W, W);
    for (int i = 0; i < DIT_BLOCKS; i++) {
        char name[32];
#define BLOCK_LINEAR(part, in, out) \
    (snprintf(name, sizeof name, "blocks.%d." #part, i), model->blocks[i].part = load_linear(&l, name, in, out))
        BLOCK_LINEAR(modulation, W, 6 * W);
        BLOCK_LINEAR(qkv, W, 3 * W);
        BLOCK_LINEAR(proj, W, W);
        BLOCK_LINEAR(up, W, 4 * W);
        BLOCK_LINEAR(down, 4 * W, W);
#undef BLOCK_LINEAR
    }
    model->final_modulation = load_linear(&l, "final_modulation", W, 2 * W);
    model->final = load_linear(&l, "final", W, PATCH_PIXELS);
    safetensors_close(&l.file);
    if (!l.ok)
        dit_free(model);
    return l.ok;
}

void dit_free(dit_model *model)
{
    free(model->memory);
    memset(model, 0, sizeof *model);
}

/* ---- the model ---- */

static void linear(const dit_linear *l, int rows, const float *x, float *out)
{
    gemm(rows, l->out, l->in, x, l->in, l->weight, l->out, l->bias, out, l->out);
}

/* Where pixel p of a token lies in its image. */
static int pixel(int token, int p)
{
    int across = DIT_SIDE / DIT_PATCH;
    int row = token / across * DIT_PATCH + p / DIT_PATCH, column = token % across * DIT_PATCH + p % DIT_PATCH;
    return row * DIT_SIDE + column;
}

void dit_embed(const dit_model *model, const float *images, const float *t, const int *labels, int n, float *x,
               float *condition)
{
    for (int s = 0; s < n; s++, images += DIT_PIXELS, x += T * W, condition += W) {
        float patches[T * PATCH_PIXELS], waves[W], hidden[W];
        for (int i = 0; i < T * PATCH_PIXELS; i++)
            patches[i] = images[pixel(i / PATCH_PIXELS, i % PATCH_PIXELS)];
        linear(&model->patch, T, patches, x);
        for (int i = 0; i < T * W; i++)
            x[i] += model->position[i];

        for (int i = 0; i < W / 2; i++) {
            float angle = 1000 * t[s] * expf(-logf(10000) * (float)i / (W / 2));
            waves[i] = cosf(angle);
            waves[W / 2 + i] = sinf(angle);
        }
        linear(&model->time1, 1, waves, hidden);
        silu(hidden, W);
        linear(&model->time2, 1, hidden, condition);
        for (int i = 0; i < W; i++)
            condition[i] += model->label[labels[s] * W + i];
        silu(condition, W); /* every use of the condition begins with this */
    }
}

/* qkv: a row per token, queries | keys | values, each split into heads. */
static void attention(const float *qkv, float *out)
{
    for (int h = 0; h < DIT_HEADS; h++) {
        const float *q = qkv + h * HEAD, *k = q + W, *v = k + W;
        float keys[HEAD * T], scores[T * T];
        for (int i = 0; i < T; i++)
            for (int j = 0; j < HEAD; j++)
                keys[j * T + i] = k[i * 3 * W + j] / sqrtf(HEAD);
        gemm(T, T, HEAD, q, 3 * W, keys, T, NULL, scores, T);
        softmax(scores, T, T);
        gemm(T, HEAD, T, scores, T, v, 3 * W, NULL, out + h * HEAD, W);
    }
}

/* The order of a block's modulation, as train.py has it. */
static const float *shift(dit_part part, const float *modulation) { return modulation + part * 3 * W; }
static const float *scale(dit_part part, const float *modulation) { return modulation + part * 3 * W + W; }
static const float *gate(dit_part part, const float *modulation) { return modulation + part * 3 * W + 2 * W; }

void dit_modulate(const dit_model *model, int block, const float *condition, int n, float *modulation)
{
    for (int s = 0; s < n; s++)
        linear(&model->blocks[block].modulation, 1, condition + s * W, modulation + s * DIT_MODULATION);
}

void dit_attention(const dit_model *model, int block, const float *x, const float *modulation, int n, float *out)
{
    for (int s = 0; s < n; s++, x += T * W, modulation += DIT_MODULATION, out += T * W) {
        float h[T * W], qkv[T * 3 * W];
        normalise(x, T, W, scale(DIT_ATTENTION, modulation), shift(DIT_ATTENTION, modulation), h);
        linear(&model->blocks[block].qkv, T, h, qkv);
        attention(qkv, h);
        linear(&model->blocks[block].proj, T, h, out);
    }
}

void dit_mlp(const dit_model *model, int block, const float *x, const float *modulation, int n, float *out)
{
    for (int s = 0; s < n; s++, x += T * W, modulation += DIT_MODULATION, out += T * W) {
        float h[T * W], wide[T * 4 * W];
        normalise(x, T, W, scale(DIT_MLP, modulation), shift(DIT_MLP, modulation), h);
        linear(&model->blocks[block].up, T, h, wide);
        gelu(wide, T * 4 * W);
        linear(&model->blocks[block].down, T, wide, out);
    }
}

void dit_add(dit_part part, const float *modulation, int n, const float *out, float *x)
{
    for (int s = 0; s < n; s++, modulation += DIT_MODULATION, out += T * W, x += T * W)
        add_gated(x, T, W, gate(part, modulation), out);
}

void dit_velocity(const dit_model *model, const float *x, const float *condition, int n, float *velocity)
{
    for (int s = 0; s < n; s++, x += T * W, condition += W, velocity += DIT_PIXELS) {
        float modulation[2 * W], h[T * W], patches[T * PATCH_PIXELS];
        linear(&model->final_modulation, 1, condition, modulation);
        normalise(x, T, W, modulation + W, modulation, h);
        linear(&model->final, T, h, patches);
        for (int i = 0; i < T * PATCH_PIXELS; i++)
            velocity[pixel(i / PATCH_PIXELS, i % PATCH_PIXELS)] = patches[i];
    }
}
