/* A contact sheet: rows of digits, each with a few words on its left. */
#ifndef SHEET_H
#define SHEET_H

#include <stdbool.h>

enum { SHEET_LINES = 4, SHEET_CHARACTERS = 40 }; /* of a row's text; what is longer goes on in the next line, or is cut */

typedef struct {
    unsigned char *grey;
    int width, height, text_width, row_height;
} sheet;

sheet sheet_new(int rows, int columns, bool with_text);
/* Line `line` of a row's text, and those after it if it is long. Returns the line after. */
int sheet_text(sheet *s, int row, int line, const char *text);
/* A picture of DIT_PIXELS values, -1 (black) to 1 (white). */
void sheet_picture(sheet *s, int row, int column, const float *pixels);
/* Writes the PNG file and frees the sheet. */
bool sheet_finish(sheet *s, const char *path);

#endif
