/* What a program in C does without any check: copy records of ROW_BYTES out of memory, asking for the lines of the one
 * DISTANCE records ahead, and for those of the output a little before they are written. benchmarks/gather.py compiles
 * it with the system's compiler and holds the engines against it. */
#include <stdint.h>
#include <string.h>

#ifndef ROW_BYTES
#define ROW_BYTES 264
#endif
#define DISTANCE 16
#define WRITE_AHEAD_BYTES 1024

static inline void ask(const uint8_t *record) {
    for (int line = 0; line < ROW_BYTES; line += 64) __builtin_prefetch(record + line, 0, 3);
    __builtin_prefetch(record + ROW_BYTES - 1, 0, 3);
}

/* Row k of `rows` lies at base + rows[k] * ROW_BYTES and goes to out + k * ROW_BYTES, for start <= k < stop. */
void gather(const uint8_t *base, const int64_t *rows, int64_t start, int64_t stop, uint8_t *out) {
    int64_t first = start + DISTANCE < stop ? start + DISTANCE : stop;
    for (int64_t k = start; k < first; k++) ask(base + rows[k] * ROW_BYTES);
    for (int64_t k = start; k < stop; k++) {
        if (k + DISTANCE < stop) ask(base + rows[k + DISTANCE] * ROW_BYTES);
        uint8_t *target = out + k * ROW_BYTES;
        for (int line = 0; line < ROW_BYTES; line += 64) __builtin_prefetch(target + WRITE_AHEAD_BYTES + line, 1, 3);
        memcpy(target, base + rows[k] * ROW_BYTES, ROW_BYTES);
    }
}
