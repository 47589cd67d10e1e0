#include "maths.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* One binary for every x86-64: the loader picks AVX-512, AVX2 or SSE2. (Address sanitisers and the resolvers that do
 * the picking do not mix.) Elsewhere the compiler's target decides. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
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
INLINE void tile(int columns, int k, const float *a, int lda, const float *b, int ldb, const float *bias, float *c, int ldc)
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
INLINE void edge(int m, int n, int k, const float *a, int lda, const float *b, int ldb, const float *bias, float *c, int ldc)
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

EVERY_CPU
void gemm(int m, int n, int k, const float *a, int lda, const float *b, int ldb, const float *bias, float *c, int ldc)
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

EVERY_CPU
void softmax(float *x, int rows, int columns)
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
void normalise(const float *x, int rows, int columns, const float *scale, const float *shift, float *out)
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
void add_gated(float *x, int rows, int columns, const float *gate, const float *y)
{
    for (int i = 0; i < rows; i++, x += columns, y += columns)
        for (int j = 0; j < columns; j++)
            x[j] += gate[j] * y[j];
}

EVERY_CPU
void silu(float *x, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        x[i] /= 1 + fast_exp(-x[i]);
}

EVERY_CPU
void gelu(float *x, int n)
{
    /* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3) */
#pragma omp simd
    for (int i = 0; i < n; i++)
        x[i] /= 1 + fast_exp(-1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
}
