/* The gradient of a 3x3 conv's weights (stride 1, padding 1) in bfloat16 with matrix instructions (AMX), summed in float32.

   w[o][tap][c] is the sum of g[p][o] x[p + tap][c] over all pixels p. Maps are channels last. With a zero after each row and
   a row of zeros after each image, p + tap is p and a constant, so that nine products of shifted matrices take the place of
   windows. Some images at a time are laid out as the instructions want them: g by channels, x by pairs of pixels and 16
   channels; a block of 32x32 channels is summed for all nine taps while it is in the cache. */
#ifdef __AMX_BF16__
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PIXELS = 2048, IN_CACHE = 256 }; /* laid out, and multiplied, at a time */

/* 0, or 1 where the system allows no matrix instructions or memory is out; channels and out are multiples of 32. */
int conv_weights(const uint16_t *x, const uint16_t *g, float *w, size_t images, size_t height, size_t width,
                 size_t channels, size_t out) {
    const size_t line = width + 1, cell = line * (height + 1), shift = (line + 2) / 2 * 2;
    const size_t parts = (images * cell + PIXELS - 1) / PIXELS, many = (images + parts - 1) / parts;
    const size_t depth = (many * cell + 31) / 32 * 32;
    const size_t row = (depth + 2 * shift + 63) / 64 * 64 + 32; /* no power of 2, which would share few cache lines */
    uint32_t *by_channel = aligned_alloc(64, 2 * out * row), *by_pair = aligned_alloc(64, 2 * depth * channels);
    uint16_t *zeros = calloc(channels + out, 2);
    const int able = by_channel && by_pair && zeros && !syscall(SYS_arch_prctl, 0x1023, 18); /* XTILEDATA */
    if (able) {
        const struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {
            1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
        _tile_loadconfig(&tiles);
        memset(by_channel, 0, 2 * out * row);
        memset(w, 0, 4 * 9 * out * channels);
    }
    for (size_t first = 0; able && first < images; first += many) {
        for (size_t n = 0; n < depth; n += 2) {
            const uint16_t *of_x[2], *of_g[2];
            for (size_t k = 0; k < 2; k++) {
                const size_t p = n + k, image = first + p / cell, y = p % cell / line, column = p % line;
                const int inside = p / cell < many && image < images && y < height && column < width;
                const size_t pixel = (image * height + y) * width + column;
                of_x[k] = inside ? x + pixel * channels : zeros, of_g[k] = inside ? g + pixel * out : zeros;
            }
            for (size_t c = 0; c < channels; c++)
                by_pair[(c / 16 * depth + n) * 8 + c % 16] = of_x[0][c] | (uint32_t)of_x[1][c] << 16;
            for (size_t o = 0; o < out; o++)
                by_channel[(o * row + shift + n) / 2] = of_g[0][o] | (uint32_t)of_g[1][o] << 16;
        }
        for (size_t o = 0; o < out; o += 32)
            for (size_t c = 0; c < channels; c += 32) {
                float sums[9][4][16][16] __attribute__((aligned(64))) = {0};
                for (size_t from = 0; from < depth; from += IN_CACHE)
                    for (size_t tap = 0; tap < 9; tap++) {
                        const size_t back = tap / 3 * line + tap % 3, to = from + IN_CACHE;
                        const uint16_t *a = (uint16_t *)by_channel + o * row + shift + line + 1 - back;
                        const uint32_t *b = by_pair + c * depth / 2;
                        _tile_loadd(0, sums[tap][0], 64);
                        _tile_loadd(1, sums[tap][1], 64);
                        _tile_loadd(2, sums[tap][2], 64);
                        _tile_loadd(3, sums[tap][3], 64);
                        for (size_t n = from; n < depth && n < to; n += 32) {
                            _tile_loadd(4, a + n, 2 * row);
                            _tile_loadd(5, a + n + 16 * row, 2 * row);
                            _tile_loadd(6, b + 8 * n, 64);
                            _tile_loadd(7, b + 8 * (n + depth), 64);
                            _tile_dpbf16ps(0, 4, 6);
                            _tile_dpbf16ps(1, 4, 7);
                            _tile_dpbf16ps(2, 5, 6);
                            _tile_dpbf16ps(3, 5, 7);
                        }
                        _tile_stored(0, sums[tap][0], 64);
                        _tile_stored(1, sums[tap][1], 64);
                        _tile_stored(2, sums[tap][2], 64);
                        _tile_stored(3, sums[tap][3], 64);
                    }
                for (size_t tap = 0; tap < 9; tap++)
                    for (size_t tile = 0; tile < 4; tile++)
                        for (size_t i = 0; i < 16; i++)
                            for (size_t k = 0; k < 16; k++)
                                w[((o + tile / 2 * 16 + i) * 9 + tap) * channels + c + tile % 2 * 16 + k] +=
                                    sums[tap][tile][i][k];
            }
    }
    if (able) _tile_release();
    free(by_channel), free(by_pair), free(zeros);
    return !able;
}
#endif
