/* The arithmetic of the model, in f32: all that a device must be able to do for this engine. maths.c does it on the
 * CPU, maths_cuda.c on a CUDA device.
 *
 * Pointers are to the device's memory unless they are called `host`. Work is queued, and done in order; only `download`
 * waits for it. Matrices are dense rows, and pictures lie one after the other. What goes wrong on a device ends the
 * program with a message. */
#ifndef MATHS_H
#define MATHS_H

#include <diffcache.h>

typedef struct {
    dc_backend_t backend; /* where the memory is, in the library's words */
    int device;           /* CUDA ordinal */
    void *stream;         /* where the work is queued; null on the CPU */
    int at_once;          /* pictures a call is best given: few fit a CPU's cache, many fill a GPU */

    void *(*allocate)(size_t size);
    void (*release)(void *memory);
    void (*upload)(void *to, const void *host, size_t size); /* `host` may be overwritten at once */
    void (*download)(void *host, const void *from, size_t size);
    void (*copy)(void *to, const void *from, size_t size);

    /* y[rows][out] = x[rows][in] * weight[in][out] + bias[out] */
    void (*linear)(int rows, int in, int out, const float *x, const float *weight, const float *bias, float *y);

    /* qkv: for each of n * tokens a row of queries | keys | values, `width` each, split into heads. out: [n *
     * tokens][width]. */
    void (*attention)(int n, int tokens, int heads, int width, const float *qkv, float *out);

    /* Layer normalisation of each row, then scale and shift, which are one row for all of a picture:
     * out = (x - mean) / deviation * (1 + scale) + shift. stride: from one picture's to the next's. */
    void (*normalise)(int n, int rows, int columns, const float *x, const float *scale, const float *shift, int stride,
                      float *out);

    /* x += gate * y, the gate being one row for all of a picture. */
    void (*add_gated)(int n, int rows, int columns, const float *gate, int stride, const float *y, float *x);

    void (*add)(int n, int count, const float *y, float *x); /* x[n][count] += y[count] */
    /* x[row] += table[index[row]] */
    void (*add_chosen)(int rows, int columns, const float *table, const int *index, float *x);
    /* out[n][i] = x[n][order[i]] */
    void (*permute)(int n, int count, const float *x, const int *order, float *out);

    void (*silu)(int count, float *x); /* x / (1 + exp(-x)) */
    void (*gelu)(int count, float *x); /* the tanh form */

    /* out[n] = cos | sin of 1000 * t[n] * frequency[count] */
    void (*waves)(int n, int count, const float *t, const float *frequency, float *out);

    /* Euler's method with classifier-free guidance: x += dt * (uncond + guidance * (cond - uncond)) */
    void (*advance)(int count, float dt, float guidance, const float *uncond, const float *cond, float *x);
} maths;

/* Host memory: malloc that ends the program instead of returning null. */
void *allocate(size_t count, size_t size);

const maths *maths_cpu(void);
const maths *maths_cuda(void); /* null, with a message on stderr, where there is no CUDA device */

#endif
