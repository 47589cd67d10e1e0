#include "maths.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One binary for every x86-64: the loader picks AVX-512, AVX2 or SSE2. (Address sanitisers and the resolvers that do
 * the picking do not mix.) Elsewhere the compiler's target decides. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && \
    !defined(__SANITIZE_ADDRESS__)
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_CPU
#endif
/* Part of its caller, so that it is compiled for the same CPU. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum { ROWS = 8, WIDE = 16, NARROW = 4 }; /* ROWS x WIDE sums stay in registers: 8 of AVX-512, 16 of AVX2 */

/* ROWS rows of the product. `columns` is a constant after inlining, so that the sums need no memory. */
INLINE void tile(int columns, int k, const float *a, int lda, const float *b, int ldb, const float *bias, float *c,
                 int ldc)
{
    float sum[ROWS][WIDE];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < columns; j++)
            sum[i][j] = bias ? bias[j] : 0;
    for (int p = 0; p < k; p++)
        for (int i = 0; i < ROWS; i++) {
#pragma omp simd
            for (int j = 0; j < columns; j++)
                sum[i][j] += a[i * lda + p] * b[p * ldb + j];
        }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < columns; j++)
            c[i * ldc + j] = sum[i][j];
}

/* What does not fill a tile. */
INLINE void edge(int m, int n, int k, const float *a, int lda, const float *b, int ldb, const float *bias, float *c,
                 int ldc)
{
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++)
            c[i * ldc + j] = bias ? bias[j] : 0;
        for (int p = 0; p < k; p++) {
#pragma omp simd
            for (int j = 0; j < n; j++)
                c[i * ldc + j] += a[i * lda + p] * b[p * ldb + j];
        }
    }
}

/* c[m][n] = a[m][k] * b[k][n] + bias[n]. lda, ldb, ldc: elements from one row to the next. bias: null = zeros. */
EVERY_CPU
static void gemm(int m, int n, int k, const float *a, int lda, const float *b, int ldb, const float *bias, float *c,
                 int ldc)
{
    int rows = m - m % ROWS, j = 0;
    edge(m - rows, n, k, a + rows * lda, lda, b, ldb, bias, c + rows * ldc, ldc);
    for (; j + WIDE <= n; j += WIDE)
        for (int i = 0; i < rows; i += ROWS)
            tile(WIDE, k, a + i * lda, lda, b + j, ldb, bias ? bias + j : NULL, c + i * ldc + j, ldc);
    for (; j + NARROW <= n; j += NARROW)
        for (int i = 0; i < rows; i += ROWS)
            tile(NARROW, k, a + i * lda, lda, b + j, ldb, bias ? bias + j : NULL, c + i * ldc + j, ldc);
    edge(rows, n - j, k, a, lda, b + j, ldb, bias ? bias + j : NULL, c + j, ldc);
}

/* exp within 2 ulp, in a form the compiler can vectorise: 2^n times the polynomial of Cephes on -ln2/2..ln2/2. */
INLINE float fast_exp(float x)
{
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    int32_t n = (int32_t)(x * 1.44269504f + 128.5f) - 128; /* to the nearest, without a call */
    float f = x - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1;
    union {
        int32_t bits;
        float value;
    } power = {(n + 127) << 23};
    return p * power.value;
}

/* Each row of x[rows][columns] becomes exp(row) / sum(exp(row)). */
EVERY_CPU
static void softmax(float *x, int rows, int columns)
{
    for (float *end = x + rows * columns; x < end; x += columns) {
        float top = x[0], sum = 0;
#pragma omp simd reduction(max : top)
        for (int j = 0; j < columns; j++)
            top = x[j] > top ? x[j] : top;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < columns; j++)
            sum += x[j] = fast_exp(x[j] - top);
        for (int j = 0; j < columns; j++)
            x[j] /= sum;
    }
}

EVERY_CPU
static void normalise_picture(int rows, int columns, const float *x, const float *scale, const float *shift, float *out)
{
    for (int i = 0; i < rows; i++, x += columns, out += columns) {
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < columns; j++)
            sum += x[j];
        float mean = sum / (float)columns;
#pragma omp simd reduction(+ : squares)
        for (int j = 0; j < columns; j++)
            squares += (x[j] - mean) * (x[j] - mean);
        float factor = 1 / sqrtf(squares / (float)columns + 1e-5f);
        for (int j = 0; j < columns; j++)
            out[j] = (x[j] - mean) * factor * (1 + scale[j]) + shift[j];
    }
}

EVERY_CPU
static void add_gated_picture(int rows, int columns, const float *gate, const float *y, float *x)
{
    for (int i = 0; i < rows; i++, x += columns, y += columns)
        for (int j = 0; j < columns; j++)
            x[j] += gate[j] * y[j];
}

EVERY_CPU
static void silu(int count, float *x)
{
#pragma omp simd
    for (int i = 0; i < count; i++)
        x[i] /= 1 + fast_exp(-x[i]);
}

EVERY_CPU
static void gelu(int count, float *x)
{
    /* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3) */
#pragma omp simd
    for (int i = 0; i < count; i++)
        x[i] /= 1 + fast_exp(-1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
}

/* ---- the operations on several pictures ---- */

static void linear(int rows, int in, int out, const float *x, const float *weight, const float *bias, float *y)
{
    gemm(rows, out, in, x, in, weight, out, bias, y, out);
}

/* One head of one picture. */
static void attention_head(int tokens, int size, int width, const float *q, float *out)
{
    const float *k = q + width, *v = k + width;
    float keys[size * tokens], scores[tokens * tokens];
    for (int i = 0; i < tokens; i++)
        for (int j = 0; j < size; j++)
            keys[j * tokens + i] = k[i * 3 * width + j] / sqrtf((float)size);
    gemm(tokens, tokens, size, q, 3 * width, keys, tokens, NULL, scores, tokens);
    softmax(scores, tokens, tokens);
    gemm(tokens, size, tokens, scores, tokens, v, 3 * width, NULL, out, width);
}

static void attention(int n, int tokens, int heads, int width, const float *qkv, float *out)
{
    int size = width / heads;
    for (int s = 0; s < n; s++, qkv += tokens * 3 * width, out += tokens * width)
        for (int h = 0; h < heads; h++)
            attention_head(tokens, size, width, qkv + h * size, out + h * size);
}

static void normalise(int n, int rows, int columns, const float *x, const float *scale, const float *shift, int stride,
                      float *out)
{
    for (int s = 0; s < n; s++, x += rows * columns, scale += stride, shift += stride, out += rows * columns)
        normalise_picture(rows, columns, x, scale, shift, out);
}

static void add_gated(int n, int rows, int columns, const float *gate, int stride, const float *y, float *x)
{
    for (int s = 0; s < n; s++, gate += stride, y += rows * columns, x += rows * columns)
        add_gated_picture(rows, columns, gate, y, x);
}

static void add(int n, int count, const float *y, float *x)
{
    for (int s = 0; s < n; s++, x += count)
        for (int i = 0; i < count; i++)
            x[i] += y[i];
}

static void add_chosen(int rows, int columns, const float *table, const int *index, float *x)
{
    for (int row = 0; row < rows; row++)
        add(1, columns, table + index[row] * columns, x + row * columns);
}

static void permute(int n, int count, const float *x, const int *order, float *out)
{
    for (int s = 0; s < n; s++, x += count, out += count)
        for (int i = 0; i < count; i++)
            out[i] = x[order[i]];
}

static void waves(int n, int count, const float *t, const float *frequency, float *out)
{
    for (int s = 0; s < n; s++, out += 2 * count)
        for (int i = 0; i < count; i++) {
            float angle = 1000 * t[s] * frequency[i];
            out[i] = cosf(angle);
            out[count + i] = sinf(angle);
        }
}

static void advance(int count, float dt, float guidance, const float *uncond, const float *cond, float *x)
{
    for (int i = 0; i < count; i++)
        x[i] += dt * (uncond[i] + guidance * (cond[i] - uncond[i]));
}

/* ---- memory ---- */

void *allocate(size_t count, size_t size)
{
    void *memory = malloc(count * size);
    if (!memory) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return memory;
}

static void *allocate_bytes(size_t size) { return allocate(size, 1); }

static void copy(void *to, const void *from, size_t size) { memcpy(to, from, size); }

const maths *maths_cpu(void)
{
    static const maths CPU = {
        .backend = DC_BACKEND_CPU,
        .at_once = 1,
        .allocate = allocate_bytes,
        .release = free,
        .upload = copy,
        .download = copy,
        .copy = copy,
        .linear = linear,
        .attention = attention,
        .normalise = normalise,
        .add_gated = add_gated,
        .add = add,
        .add_chosen = add_chosen,
        .permute = permute,
        .silu = silu,
        .gelu = gelu,
        .waves = waves,
        .advance = advance,
    };
    return &CPU;
}
