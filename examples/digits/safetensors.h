/* Reads the .safetensors files that train.py writes. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    char *header;        /* the JSON text, as a string */
    unsigned char *data; /* the tensors' bytes */
    size_t size;         /* of data */
} safetensors;

/* False, with a message on stderr, if the file cannot be read or is not such a file. */
bool safetensors_open(safetensors *file, const char *path);
void safetensors_close(safetensors *file);

/* How many elements the tensor has; 0 if there is no such tensor. */
size_t safetensors_count(const safetensors *file, const char *name);

/* Writes the tensor's elements (F16, F32 or I32) to `out` as f32. False, with a message on stderr, if the
 * file has no such tensor of `count` elements. */
bool safetensors_read(const safetensors *file, const char *name, float *out, size_t count);

#endif
