/* A short test of an engine: the CPU's is its reference. */
#ifndef SMOKE_H
#define SMOKE_H

#include "sampler.h"

/* Samples on `model` and on `reference`, without a cache and with some. Returns an exit code. */
int smoke(const dit_model *model, const dit_model *reference);

#endif
