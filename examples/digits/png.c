/* A small PNG writer. Each row is stored as its difference to the row above; of deflate it uses the fixed code and runs
 * of one byte, which is much for pictures that were enlarged by repeating pixels. */
#include "png.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    unsigned char *data;
    size_t size;
    uint32_t bits; /* not yet in data, first bit lowest */
    int n_bits;
} stream;

/* The `n` low bits of `value`, lowest first. */
static void put(stream *s, uint32_t value, int n)
{
    s->bits |= value << s->n_bits;
    for (s->n_bits += n; s->n_bits >= 8; s->n_bits -= 8, s->bits >>= 8)
        s->data[s->size++] = (unsigned char)s->bits;
}

/* A symbol of the fixed code: 0..255 a byte, 256 the end, 257..264 repeat 3..10 times, 285 repeat 258 times. */
static void symbol(stream *s, int value)
{
    int n = value < 144 ? 8 : value < 256 ? 9 : value < 280 ? 7 : 8, reversed = 0;
    int code = value < 144 ? 0x30 + value : value < 256 ? 0x190 + value - 144 : value < 280 ? value - 256 : 0xc0 + value - 280;
    for (int i = 0; i < n; i++)
        reversed |= (code >> i & 1) << (n - 1 - i);
    put(s, (uint32_t)reversed, n);
}

static void deflate(stream *s, const unsigned char *raw, size_t n)
{
    put(s, 0x0178, 16); /* zlib header */
    put(s, 3, 3);       /* the last block, fixed code */
    for (size_t i = 0; i < n;) {
        size_t run = 0;
        while (i && i + run < n && run < 258 && raw[i + run] == raw[i - 1])
            run++;
        size_t use = run == 258 ? 258 : run > 10 ? 10 : run;
        if (use < 3) {
            symbol(s, raw[i++]);
            continue;
        }
        symbol(s, use == 258 ? 285 : 254 + (int)use);
        put(s, 0, 5); /* distance 1 */
        i += use;
    }
    symbol(s, 256);
    put(s, 0, 7); /* to a whole byte */
    s->n_bits = 0, s->bits = 0;
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < n; i++)
        a = (a + raw[i]) % 65521, b = (b + a) % 65521;
    for (int shift = 24; shift >= 0; shift -= 8)
        put(s, (b << 16 | a) >> shift & 255, 8);
}

static void big_endian(uint32_t value, unsigned char *out)
{
    for (int i = 0; i < 4; i++)
        out[i] = (unsigned char)(value >> (24 - 8 * i));
}

static bool chunk(FILE *f, const char *kind, const unsigned char *data, size_t size)
{
    unsigned char head[8] = {0, 0, 0, 0, (unsigned char)kind[0], (unsigned char)kind[1], (unsigned char)kind[2], (unsigned char)kind[3]};
    unsigned char tail[4];
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < 4 + size; i++) {
        crc ^= i < 4 ? head[4 + i] : data[i - 4];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    big_endian((uint32_t)size, head);
    big_endian(~crc, tail);
    return fwrite(head, 1, 8, f) == 8 && fwrite(data, 1, size, f) == size && fwrite(tail, 1, 4, f) == 4;
}

bool png_write(const char *path, const unsigned char *grey, int width, int height)
{
    size_t row = (size_t)width + 1, n = row * (size_t)height;
    unsigned char *raw = malloc(n), *packed = malloc(n / 8 * 9 + 64); /* no symbol is longer than 9 bits */
    FILE *f = raw && packed ? fopen(path, "wb") : NULL;
    bool ok = false;
    if (f) {
        for (size_t i = 0; i < n; i++) {
            size_t y = i / row, x = i % row, at = y * (row - 1) + x - 1;
            raw[i] = (unsigned char)(x == 0 ? 2 : grey[at] - (y ? grey[at - (row - 1)] : 0)); /* 2: "up" */
        }
        stream s = {.data = packed};
        deflate(&s, raw, n);
        unsigned char header[13] = {[8] = 8}; /* 8 bits, grey */
        big_endian((uint32_t)width, header);
        big_endian((uint32_t)height, header + 4);
        ok = fwrite("\x89PNG\r\n\x1a\n", 1, 8, f) == 8 && chunk(f, "IHDR", header, 13) && chunk(f, "IDAT", packed, s.size) &&
             chunk(f, "IEND", header, 0);
        ok = fclose(f) == 0 && ok;
    }
    if (!ok)
        perror(path);
    free(raw), free(packed);
    return ok;
}
