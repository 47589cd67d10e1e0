/* The arithmetic of the model, in f32 on one thread. Matrices are dense rows unless a row length is given. */
#ifndef MATHS_H
#define MATHS_H

/* c[m][n] = a[m][k] * b[k][n] + bias[n]. lda, ldb, ldc: elements from one row to the next. bias: null = zeros. */
void gemm(int m, int n, int k, const float *a, int lda, const float *b, int ldb, const float *bias, float *c, int ldc);

/* Each row of x[rows][columns] becomes exp(row) / sum(exp(row)). */
void softmax(float *x, int rows, int columns);

/* Layer normalisation of each row of x, then scale and shift: out = (x - mean) / deviation * (1 + scale) + shift. */
void normalise(const float *x, int rows, int columns, const float *scale, const float *shift, float *out);

/* x += gate * y, the gate being one row for all. */
void add_gated(float *x, int rows, int columns, const float *gate, const float *y);

void silu(float *x, int n); /* x / (1 + exp(-x)) */
void gelu(float *x, int n); /* the tanh form */

#endif
