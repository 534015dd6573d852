// Batch normalisation and ReLU of bfloat16 values in the layout (rows, channels), forward and backward.
//
// Each direction passes over its inputs twice, once for the sums over rows and once for the result. Sums are float32
// over blocks of rows that stay in a core's cache, and double over the blocks, whose cut does not depend on the number of
// threads: neither does any bit of the result.
//
// The channels are repeated until `width`, a multiple of TILE, so that a narrow layer fills the vectors: the matrix is
// read as (values / width, width). No Python or torch header is needed; OpenMP is the one that torch has loaded.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using bfloat16 = uint16_t;

constexpr int PARTS = 4, TILE = 16 * PARTS;  // columns worked on at a time, in registers
constexpr int64_t BLOCK_ROWS = 128;          // of a tile: 16 KiB, half a first-level cache

__m512 load(const bfloat16* from) {
    __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

void store(bfloat16* to, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
}

struct Columns {  // one float32 for each column of a tile
    __m512 part[PARTS];

    Columns() {
        for (auto& values : part) values = _mm512_setzero_ps();
    }
    explicit Columns(const float* from) {
        for (int i = 0; i < PARTS; i++) part[i] = _mm512_loadu_ps(from + 16 * i);
    }
    void write(float* to) const {
        for (int i = 0; i < PARTS; i++) _mm512_storeu_ps(to + 16 * i, part[i]);
    }
};

struct Matrix {
    int64_t rows, width, channels, blocks;

    Matrix(int64_t values, int64_t channels, int64_t width)
        : rows(values / width), width(width), channels(channels), blocks((rows + BLOCK_ROWS - 1) / BLOCK_ROWS) {}

    int64_t count(int64_t block) const { return std::min(BLOCK_ROWS, rows - block * BLOCK_ROWS); }

    // work(block, first column, index of the first value, number of rows) for every block of every tile
    template <class Work>
    void each(int threads, Work work) const {
        const int64_t tiles = width / TILE;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < blocks * tiles; i++) {
            const int64_t block = i / tiles, column = i % tiles * TILE;
            work(block, column, block * BLOCK_ROWS * width + column, count(block));
        }
    }

    std::vector<float> repeated(const float* per_channel) const {
        std::vector<float> all(width);
        for (int64_t j = 0; j < width; j++) all[j] = per_channel[j % channels];
        return all;
    }

    // The sum over blocks and repetitions of a channel: value(index in blocks x width, block)
    template <class Value>
    double total(int64_t channel, Value value) const {
        double sum = 0;
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t j = channel; j < width; j += channels) sum += value(block * width + j, block);
        return sum;
    }
};

// Where ReLU lets pass: NaN too, as torch's does.
__mmask16 passes(__m512 x, __m512 scale, __m512 shift) {
    return _mm512_cmp_ps_mask(_mm512_fmadd_ps(x, scale, shift), _mm512_setzero_ps(), _CMP_NLE_UQ);
}

}  // namespace

extern "C" {

// y = max(0, scale x + shift) with scale = weight / sqrt(variance + eps), shift = bias - scale mean; mean and (biased)
// variance are those of each channel of x. Writes y and the four rows of `statistics`: mean, variance, scale, shift.
void norm_relu_forward(
    const bfloat16* x, int64_t values, int64_t channels, int64_t width, const float* weight, const float* bias, double eps,
    bfloat16* y, float* statistics, int threads
) {
    const Matrix matrix(values, channels, width);
    std::vector<float> means(matrix.blocks * width), squares(matrix.blocks * width);
    matrix.each(threads, [&](int64_t block, int64_t column, int64_t first, int64_t count) {
        Columns mean, square;
        for (int64_t r = 0, at = first; r < count; r++, at += width)
            for (int i = 0; i < PARTS; i++) mean.part[i] = _mm512_add_ps(mean.part[i], load(x + at + 16 * i));
        for (auto& sum : mean.part) sum = _mm512_div_ps(sum, _mm512_set1_ps(static_cast<float>(count)));
        for (int64_t r = 0, at = first; r < count; r++, at += width)
            for (int i = 0; i < PARTS; i++) {
                const __m512 centred = _mm512_sub_ps(load(x + at + 16 * i), mean.part[i]);
                square.part[i] = _mm512_fmadd_ps(centred, centred, square.part[i]);
            }
        mean.write(&means[block * width + column]);
        square.write(&squares[block * width + column]);
    });
    const double n = static_cast<double>(values / channels);
    for (int64_t c = 0; c < channels; c++) {
        const double mean = matrix.total(c, [&](int64_t i, int64_t block) { return means[i] * double(matrix.count(block)); }) / n;
        const double square = matrix.total(c, [&](int64_t i, int64_t block) {
            return squares[i] + (means[i] - mean) * (means[i] - mean) * double(matrix.count(block));
        });
        const double scale = weight[c] / std::sqrt(square / n + eps);
        statistics[c] = static_cast<float>(mean);
        statistics[channels + c] = static_cast<float>(square / n);
        statistics[2 * channels + c] = static_cast<float>(scale);
        statistics[3 * channels + c] = static_cast<float>(bias[c] - scale * mean);
    }
    const auto scales = matrix.repeated(statistics + 2 * channels), shifts = matrix.repeated(statistics + 3 * channels);
    matrix.each(threads, [&](int64_t, int64_t column, int64_t first, int64_t count) {
        const Columns scale(&scales[column]), shift(&shifts[column]);
        for (int64_t r = 0, at = first; r < count; r++, at += width)
            for (int i = 0; i < PARTS; i++) {
                const __m512 value = _mm512_fmadd_ps(load(x + at + 16 * i), scale.part[i], shift.part[i]);
                store(y + at + 16 * i, _mm512_max_ps(_mm512_setzero_ps(), value));  // of a NaN: the second, the NaN
            }
    });
}

// With g the gradient where ReLU let pass, and sums over the n rows: d_bias = sum g, d_weight = sum g (x - mean) / s,
// d_x = scale (g - d_bias / n - (x - mean) / s d_weight / n), s = sqrt(variance + eps).
void norm_relu_backward(
    const bfloat16* gradient, const bfloat16* x, int64_t values, int64_t channels, int64_t width, const float* statistics,
    double eps, bfloat16* d_x, float* d_weight, float* d_bias, int threads
) {
    const Matrix matrix(values, channels, width);
    const auto means = matrix.repeated(statistics);
    const auto scales = matrix.repeated(statistics + 2 * channels), shifts = matrix.repeated(statistics + 3 * channels);
    std::vector<float> sums(matrix.blocks * width), products(matrix.blocks * width);
    matrix.each(threads, [&](int64_t block, int64_t column, int64_t first, int64_t count) {
        const Columns mean(&means[column]), scale(&scales[column]), shift(&shifts[column]);
        Columns sum, product;
        for (int64_t r = 0, at = first; r < count; r++, at += width)
            for (int i = 0; i < PARTS; i++) {
                const __m512 value = load(x + at + 16 * i);
                const __mmask16 passed = passes(value, scale.part[i], shift.part[i]);
                const __m512 g = _mm512_maskz_mov_ps(passed, load(gradient + at + 16 * i));
                sum.part[i] = _mm512_add_ps(sum.part[i], g);
                product.part[i] = _mm512_fmadd_ps(g, _mm512_sub_ps(value, mean.part[i]), product.part[i]);
            }
        sum.write(&sums[block * width + column]);
        product.write(&products[block * width + column]);
    });
    const double n = static_cast<double>(values / channels);
    std::vector<float> slope(channels), offset(channels);  // d_x = scale g + slope (x - mean) + offset
    for (int64_t c = 0; c < channels; c++) {
        const double sum = matrix.total(c, [&](int64_t i, int64_t) { return sums[i]; });
        const double product = matrix.total(c, [&](int64_t i, int64_t) { return products[i]; });
        const double variance = statistics[channels + c] + eps, scale = statistics[2 * channels + c];
        d_bias[c] = static_cast<float>(sum);
        d_weight[c] = static_cast<float>(product / std::sqrt(variance));
        slope[c] = static_cast<float>(-scale * product / variance / n);
        offset[c] = static_cast<float>(-scale * sum / n);
    }
    const auto slopes = matrix.repeated(slope.data()), offsets = matrix.repeated(offset.data());
    matrix.each(threads, [&](int64_t, int64_t column, int64_t first, int64_t count) {
        const Columns mean(&means[column]), scale(&scales[column]), shift(&shifts[column]);
        const Columns slope(&slopes[column]), offset(&offsets[column]);
        for (int64_t r = 0, at = first; r < count; r++, at += width)
            for (int i = 0; i < PARTS; i++) {
                const __m512 value = load(x + at + 16 * i), centred = _mm512_sub_ps(value, mean.part[i]);
                const __m512 rest = _mm512_fmadd_ps(centred, slope.part[i], offset.part[i]);
                const __mmask16 passed = passes(value, scale.part[i], shift.part[i]);
                store(d_x + at + 16 * i, _mm512_mask3_fmadd_ps(load(gradient + at + 16 * i), scale.part[i], rest, passed));
            }
    });
}

}  // extern "C"
