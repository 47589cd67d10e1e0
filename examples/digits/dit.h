/* The model of train.py: a class-conditional diffusion transformer for 16x16 digits, in three stages.
 *
 * Hidden states are [n][DIT_TOKENS][DIT_WIDTH], conditions [n][DIT_WIDTH], images and velocities [n][DIT_PIXELS].
 * The first and last stage are cheap: all that a block needs beyond these it computes itself, so a block that is
 * skipped costs nothing. */
#ifndef DIT_H
#define DIT_H

#include <stdbool.h>

enum {
    DIT_SIDE = 16,
    DIT_PIXELS = DIT_SIDE * DIT_SIDE,
    DIT_PATCH = 2,
    DIT_TOKENS = DIT_PIXELS / (DIT_PATCH * DIT_PATCH),
    DIT_WIDTH = 64,
    DIT_HEADS = 4,
    DIT_BLOCKS = 8,
    DIT_NULL = 10 /* the label that stands for none; digits are 0..9 */
};

typedef struct {
    int in, out;
    const float *weight; /* [in][out], as gemm wants it */
    const float *bias;   /* [out] */
} dit_linear;

typedef struct {
    dit_linear patch, time1, time2, final_modulation, final;
    const float *position; /* [DIT_TOKENS][DIT_WIDTH] */
    const float *label;    /* [11][DIT_WIDTH] */
    struct {
        dit_linear modulation, qkv, proj, up, down;
    } blocks[DIT_BLOCKS];
    float *memory; /* holds all of the above */
} dit_model;

/* False, with a message on stderr, if `path` does not hold this model. */
bool dit_load(dit_model *model, const char *path);
void dit_free(dit_model *model);

/* Images at times t[n] (1 = noise, 0 = image) for labels[n] -> hidden states and conditions. */
void dit_embed(const dit_model *model, const float *images, const float *t, const int *labels, int n, float *x,
               float *condition);

/* One block, in place. */
void dit_block(const dit_model *model, int block, float *x, const float *condition, int n);

/* Hidden states after the last block -> the predicted dx/dt. */
void dit_velocity(const dit_model *model, const float *x, const float *condition, int n, float *velocity);

#endif
