/* Every method side by side: one table on stdout and a contact sheet. */
#ifndef COMPARE_H
#define COMPARE_H

#include "sampler.h"

/* Samples with each setting of its list, and with `extra` (null = none), `repeat` times. Returns an exit code. */
int compare(const sampling *base, const char *extra, int repeat, const char *picture);

/* Peak signal-to-noise ratio of n values against `exact` in dB, both clamped to -1..1. Infinite if they are equal. */
double psnr(const float *images, const float *exact, int n);

/* Sorts the n values. */
double median(double *values, int n);

#endif
