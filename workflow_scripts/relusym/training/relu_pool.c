/* ReLU and 2x2 max pooling of bfloat16 maps, channels last. Rows and columns are those of the pooled maps, with the rows
   of all images one after the other. Non-negative bfloat16s have the order of the 16-bit integers of the same bits. */
#include <stddef.h>
#include <stdint.h>

/* A negative NaN as a positive one, which counts as the largest value. */
static inline int16_t positive_nan(int16_t x) { return (uint16_t)x > 0xFF80 ? 0x7FFF : x; }

/* which: the window's pixel, 0 to 3, that is the largest, the first if several are; 4 if none is positive. */
void relu_pool(const int16_t *restrict x, int16_t *restrict y, int16_t *restrict which,
               size_t rows, size_t columns, size_t channels) {
    const size_t line = 2 * columns * channels;
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++) {
            const int16_t *top = x + 2 * row * line + 2 * column * channels, *bottom = top + line;
            const size_t out = (row * columns + column) * channels;
            for (size_t c = 0; c < channels; c++) {
                const int16_t window[] = {positive_nan(top[c]), positive_nan(top[channels + c]),
                                          positive_nan(bottom[c]), positive_nan(bottom[channels + c])};
                int16_t largest = 0, from = 4;
                for (int pixel = 0; pixel < 4; pixel++) {
                    from = window[pixel] > largest ? pixel : from;
                    largest = window[pixel] > largest ? window[pixel] : largest;
                }
                y[out + c] = largest, which[out + c] = from;
            }
        }
}

/* The gradient of x from that of y; every entry is written. */
void relu_pool_backward(const int16_t *restrict of_y, const int16_t *restrict which, int16_t *restrict of_x,
                        size_t rows, size_t columns, size_t channels) {
    const size_t line = 2 * columns * channels;
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++) {
            int16_t *top = of_x + 2 * row * line + 2 * column * channels, *bottom = top + line;
            const size_t out = (row * columns + column) * channels;
            for (size_t c = 0; c < channels; c++) {
                const int16_t gradient = of_y[out + c], from = which[out + c];
                top[c] = from == 0 ? gradient : 0;
                top[channels + c] = from == 1 ? gradient : 0;
                bottom[c] = from == 2 ? gradient : 0;
                bottom[channels + c] = from == 3 ? gradient : 0;
            }
        }
}
