#ifndef PNG_H
#define PNG_H

#include <stdbool.h>

/* Writes an 8-bit grey picture. False, with a message on stderr, if that fails. */
bool png_write(const char *path, const unsigned char *grey, int width, int height);

#endif
