/* The model of train.py: a class-conditional diffusion transformer for 16x16 digits.
 *
 *     dit_embed
 *     for each block:  dit_modulate,  dit_attention, dit_add,  dit_mlp, dit_add
 *     dit_velocity
 *
 * Hidden states and what the parts of a block put out are [n][DIT_TOKENS][DIT_WIDTH], conditions [n][DIT_WIDTH],
 * modulations [n][DIT_MODULATION], images and velocities [n][DIT_PIXELS], all in the memory of the model's maths.
 * Attention and MLP are nearly all of the work, and whatever only one of them needs it computes itself: a part that is
 * skipped costs nothing. */
#ifndef DIT_H
#define DIT_H

#include "maths.h"

#include <stdbool.h>

enum {
    DIT_SIDE = 16,
    DIT_PIXELS = DIT_SIDE * DIT_SIDE,
    DIT_PATCH = 2,
    DIT_TOKENS = DIT_PIXELS / (DIT_PATCH * DIT_PATCH),
    DIT_WIDTH = 64,
    DIT_HEADS = 4,
    DIT_BLOCKS = 8,
    DIT_MODULATION = 6 * DIT_WIDTH, /* shift, scale and gate, for each of the two parts */
    DIT_NULL = 10,                  /* the label that stands for none; digits are 0..9 */
    DIT_PARAMETERS = 619524         /* what dit_load reads */
};

/* The two parts of a block. */
typedef enum { DIT_ATTENTION, DIT_MLP, DIT_PARTS } dit_part;

/* Work for one picture: multiply-adds in matrix products. */
enum {
    DIT_WORK_EMBED = DIT_PIXELS * DIT_WIDTH + 2 * DIT_WIDTH * DIT_WIDTH,
    DIT_WORK_MODULATE = DIT_WIDTH * DIT_MODULATION,
    DIT_WORK_ATTENTION = 4 * DIT_TOKENS * DIT_WIDTH * DIT_WIDTH + 2 * DIT_TOKENS * DIT_TOKENS * DIT_WIDTH,
    DIT_WORK_MLP = 8 * DIT_TOKENS * DIT_WIDTH * DIT_WIDTH,
    DIT_WORK_VELOCITY = 2 * DIT_WIDTH * DIT_WIDTH + DIT_PIXELS * DIT_WIDTH,
};

typedef struct {
    int in, out;
    const float *weight; /* [in][out] */
    const float *bias;   /* [out] */
} dit_linear;

typedef struct {
    const maths *maths;
    dit_linear patch, time1, time2, final_modulation, final;
    const float *position; /* [DIT_TOKENS][DIT_WIDTH] */
    const float *label;    /* [11][DIT_WIDTH] */
    struct {
        dit_linear modulation, qkv, proj, up, down;
    } blocks[DIT_BLOCKS];
    const float *frequency;               /* [DIT_WIDTH / 2] of the waves that tell the time */
    const int *to_patches, *from_patches; /* [DIT_PIXELS] the pixels' order, token by token, and back */
    float *memory;                        /* holds all of the above */
    float *narrow, *wide;                 /* room for the results inside a part, of maths->at_once pictures */
} dit_model;

/* Loads the model for these maths. False, with a message on stderr, if `path` does not hold it. */
bool dit_load(dit_model *model, const maths *maths, const char *path);
void dit_free(dit_model *model);

/* Images at times t[n] (1 = noise, 0 = image) for labels[n] -> hidden states and conditions. */
void dit_embed(const dit_model *model, const float *images, const float *t, const int *labels, int n, float *x,
               float *condition);

/* What the two parts of a block take from the condition. */
void dit_modulate(const dit_model *model, int block, const float *condition, int n, float *modulation);

/* The two parts of a block, up to the gate: hidden states -> out. */
void dit_attention(const dit_model *model, int block, const float *x, const float *modulation, int n, float *out);
void dit_mlp(const dit_model *model, int block, const float *x, const float *modulation, int n, float *out);

/* Adds to the hidden states what a part put out, through its gate. */
void dit_add(const dit_model *model, dit_part part, const float *modulation, int n, const float *out, float *x);

/* Hidden states after the last block -> the predicted dx/dt. */
void dit_velocity(const dit_model *model, const float *x, const float *condition, int n, float *velocity);

#endif
