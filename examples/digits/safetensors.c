/* The format: the header's length as a 64-bit little-endian number, the header, the data. The header is JSON,
 *
 *     {"name":{"dtype":"F16","shape":[64,256],"data_offsets":[128,32896]}, ...}
 *
 * and this is a reader for headers without blanks inside, as the safetensors package writes them; it is no JSON
 * parser. The data are little-endian, and so must this machine be. */
#include "safetensors.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char dtype[4];
    size_t begin, end; /* within the data */
} entry;

bool safetensors_open(safetensors *file, const char *path)
{
    memset(file, 0, sizeof *file);
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return false;
    }
    long end = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
    uint64_t length = 0;
    rewind(f);
    bool ok = end >= 8 && fread(&length, 8, 1, f) == 1 && length <= (uint64_t)end - 8;
    if (ok) {
        file->size = (size_t)end - 8 - (size_t)length;
        file->header = calloc((size_t)length + 1, 1);
        file->data = malloc(file->size + 1);
        ok = file->header && file->data && fread(file->header, 1, (size_t)length, f) == length &&
             fread(file->data, 1, file->size, f) == file->size;
    }
    fclose(f);
    if (!ok) {
        fprintf(stderr, "%s: not a safetensors file\n", path);
        safetensors_close(file);
    }
    return ok;
}

void safetensors_close(safetensors *file)
{
    free(file->header);
    free(file->data);
    memset(file, 0, sizeof *file);
}

/* What follows `key` within the JSON object that starts at `object`; null if it is not there. */
static const char *after(const char *object, const char *key)
{
    const char *at = strstr(object, key), *end = strchr(object, '}');
    return at && end && at < end ? at + strlen(key) : NULL;
}

static bool find(const safetensors *file, const char *name, entry *found)
{
    char key[80];
    snprintf(key, sizeof key, "\"%s\":{", name);
    const char *object = strstr(file->header, key);
    const char *dtype = object ? after(object, "\"dtype\":\"") : NULL;
    const char *offsets = object ? after(object, "\"data_offsets\":[") : NULL;
    return dtype && offsets && sscanf(dtype, "%3[A-Z0-9]", found->dtype) == 1 &&
           sscanf(offsets, "%zu,%zu", &found->begin, &found->end) == 2 && found->begin <= found->end &&
           found->end <= file->size;
}

size_t safetensors_count(const safetensors *file, const char *name)
{
    entry e;
    return find(file, name, &e) ? (e.end - e.begin) / (strcmp(e.dtype, "F16") == 0 ? 2 : 4) : 0;
}

static float from_half(uint16_t half)
{
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                      : exponent == 0 ? ldexpf((float)fraction, -24)
                                      : ldexpf((float)(fraction + 1024), exponent - 25);
    return half >> 15 ? -magnitude : magnitude;
}

bool safetensors_read(const safetensors *file, const char *name, float *out, size_t count)
{
    entry e;
    if (count == 0 || safetensors_count(file, name) != count || !find(file, name, &e)) {
        fprintf(stderr, "the file has no tensor %s of %zu elements\n", name, count);
        return false;
    }
    const unsigned char *data = file->data + e.begin;
    if (strcmp(e.dtype, "F32") == 0) {
        memcpy(out, data, 4 * count);
    } else if (strcmp(e.dtype, "I32") == 0) {
        for (size_t i = 0; i < count; i++) {
            int32_t value;
            memcpy(&value, data + 4 * i, 4);
            out[i] = (float)value;
        }
    } else if (strcmp(e.dtype, "F16") == 0) {
        for (size_t i = 0; i < count; i++)
            out[i] = from_half((uint16_t)(data[2 * i] | data[2 * i + 1] << 8));
    } else {
        fprintf(stderr, "tensor %s is %s; F16, F32 and I32 are known\n", name, e.dtype);
        return false;
    }
    return true;
}
