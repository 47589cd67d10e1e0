/* The low frequencies of a plane by their definition, shared by the tests of guidance. */
#ifndef DIFFCACHE_TESTS_LOW_PASS_H
#define DIFFCACHE_TESTS_LOW_PASS_H

#include "check.h"

/* What the waves of up to r = a fifth of the shorter side, ky^2 + kx^2 <= r^2, make up of `x`. */
static inline void low_pass(float *out, const float *x, int height, int width)
{
    const double turn = 6.283185307179586;
    int r = (height < width ? height : width) / 5;
    for (int at = 0; at < height * width; at++) {
        double sum = 0.0;
        for (int ky = -r; ky <= r; ky++)
            for (int kx = -r; kx <= r; kx++)
                for (int from = 0; from < height * width && ky * ky + kx * kx <= r * r; from++) {
                    double rows = (double)(ky * (at / width - from / width)) / height;
                    double columns = (double)(kx * (at % width - from % width)) / width;
                    sum += x[from] * cos(turn * (rows + columns));
                }
        out[at] = (float)(sum / (height * width));
    }
}

#endif
