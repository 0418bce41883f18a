#include "program/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"
#include "runtime/cpu.h"

namespace fastattn {
namespace {

constexpr int64_t kGroupWords = kInt4Group / 4;
constexpr int32_t kMostInt4Scale = 15;  // -8 * 15 is an int8

// One row of words as column `column` of a matrix of words.
void store_column(const int32_t* words, int64_t n_words, std::byte* panels, int64_t column) {
    auto* to = reinterpret_cast<int32_t*>(panels + column / kPanelWidth * n_words * kPanelWordBytes);
    to += column % kPanelWidth;
    for (int64_t p = 0; p < n_words; ++p) to[p * kPanelWidth] = words[p];
}

// The integer scale of a group and its nibbles, so that scale * nibble * column_scale is near x: of the scales around
// the one that holds the highest magnitude, that with the least squared error. Its sign makes the highest a -8, of
// which there is no positive one.
int32_t best_int4(const float* x, float column_scale, int8_t* nibbles) {
    float extreme = 0.0f;
    for (int i = 0; i < kInt4Group; ++i)
        if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
    const float inverse = column_scale > 0.0f ? 1.0f / column_scale : 0.0f;
    const auto nearest = static_cast<int32_t>(std::nearbyint(std::fabs(extreme) * inverse / 8.0f));
    const auto quantise = [&](int32_t scale, int i) {
        return std::min(7.0f, std::max(-8.0f, std::nearbyint(x[i] * (inverse / static_cast<float>(scale)))));
    };
    float least = INFINITY;
    int32_t best = 1;
    for (int32_t size = std::max(1, nearest - 2); size <= std::min(kMostInt4Scale, nearest + 2); ++size) {
        const int32_t scale = extreme > 0.0f ? -size : size;
        const float step = column_scale * static_cast<float>(scale);
        float error = 0.0f;
        for (int i = 0; i < kInt4Group; ++i) {
            const float d = x[i] - quantise(scale, i) * step;
            error += d * d;
        }
        if (error < least) least = error, best = scale;
    }
    for (int i = 0; i < kInt4Group; ++i) nibbles[i] = static_cast<int8_t>(quantise(best, i));
    return best;
}

// One row [k] as column `column` of an int4 matrix; returns its sum over k.
int32_t pack_int4(const float* x, int64_t k, float column_scale, std::byte* panels, int64_t words, int64_t column) {
    const int64_t lane = column % kPanelWidth;
    std::byte* group = panels + column / kPanelWidth * (words / kGroupWords) * kInt4GroupBytes;
    int32_t sum = 0;
    for (int64_t k0 = 0; k0 < words * 4; k0 += kInt4Group, group += kInt4GroupBytes) {
        float values[kInt4Group] = {};
        if (k0 < k) std::memcpy(values, x + k0, static_cast<size_t>(std::min<int64_t>(kInt4Group, k - k0)) * 4);
        int8_t nibbles[kInt4Group];
        const int32_t scale = best_int4(values, column_scale, nibbles);
        group[lane] = static_cast<std::byte>(scale);
        for (int i = 0; i < kInt4Group / 2; ++i) {
            const int low = nibbles[i] + 8, high = nibbles[i + kInt4Group / 2] + 8;
            group[kPanelWidth + i / 4 * kPanelWordBytes + lane * 4 + i % 4] = static_cast<std::byte>(low | high << 4);
            sum += (low - 8 + high - 8) * scale;
        }
    }
    return sum;
}

int32_t byte_sum(const int32_t* words, int64_t n_words) {
    const auto* bytes = reinterpret_cast<const int8_t*>(words);
    int32_t sum = 0;
    for (int64_t i = 0; i < 4 * n_words; ++i) sum += bytes[i];
    return sum;
}

// The scale of an int4 column: its highest magnitude is 8 of the largest steps.
float int4_column_scale(const float* x, int64_t k) {
    float highest = 0.0f;
    for (int64_t i = 0; i < k; ++i) {
        if (!std::isfinite(x[i])) return NAN;
        highest = std::max(highest, std::fabs(x[i]));
    }
    return highest / (8.0f * kMostInt4Scale);
}

}  // namespace

void pack_float32(const float* src, int64_t k, int64_t n, float* panels, int64_t first) {
    // 16 x 16 blocks: both sides then stay within a few cache lines.
    constexpr int64_t kTile = 16;
    for (int64_t row = 0; row < n;) {
        const int64_t lane = (first + row) % kPanelWidth;
        const int64_t width = std::min({kTile, kPanelWidth - lane, n - row});
        float* panel = panels + (first + row) / kPanelWidth * k * kPanelWidth + lane;
        for (int64_t p0 = 0; p0 < k; p0 += kTile)
            for (int64_t p = p0; p < std::min(p0 + kTile, k); ++p)
                for (int64_t i = 0; i < width; ++i) panel[p * kPanelWidth + i] = src[(row + i) * k + p];
        row += width;
    }
}

void allocate(Weight& weight, const std::string& name) {
    const bool matrix = weight.use == Weight::Use::kMatrix;
    const bool table = weight.use == Weight::Use::kTable;
    const bool scaled = weight.format == Format::kInt8 || weight.format == Format::kInt4;
    if ((table && weight.format == Format::kInt4) || (!matrix && !table && weight.format != Format::kFloat32))
        throw Error(ErrorKind::kConfig, "weight " + name + ": no such format for its use");
    const int64_t panels = (weight.rows + kPanelWidth - 1) / kPanelWidth;
    int64_t bytes = panels * ops::panel_bytes_of(weight.format, weight.columns);
    if (!matrix)
        bytes = weight.rows * weight.columns *
                (weight.format == Format::kFloat32    ? 4
                 : weight.format == Format::kBfloat16 ? 2
                                                      : 1);
    // A product of int8 over k sums at most 255 * 127 a term.
    if (matrix && scaled && weight.columns > 65536)
        throw Error(ErrorKind::kConfig, "weight " + name + ": int8 and int4 take at most 65536 input features");
    weight.data = Buffer(static_cast<size_t>(bytes));
    if (scaled) weight.scales = Buffer(static_cast<size_t>(panels * kPanelWidth) * sizeof(float));
    if (scaled && matrix) weight.sums = Buffer(static_cast<size_t>(panels * kPanelWidth) * sizeof(int32_t));
}

void pack_rows(const float* src, int64_t k, int64_t n, Weight& weight, int64_t first) {
    if (weight.format == Format::kFloat32) return pack_float32(src, k, n, weight.data.floats(), first);
    const KernelTable& kernels = active_kernels();
    const int32_t n_words = ops::words_of(weight.format, k);
    std::vector<int32_t> words(static_cast<size_t>(ops::quantized_stride(n_words)));
    auto* sums = reinterpret_cast<int32_t*>(weight.sums.floats());
    for (int64_t i = 0; i < n; ++i) {
        const float* x = src + i * k;
        const int64_t column = first + i;
        if (weight.format == Format::kInt4) {
            const float scale = int4_column_scale(x, k);
            weight.scales.floats()[column] = scale;
            if (scale == scale) sums[column] = pack_int4(x, k, scale, weight.data.data(), n_words, column);
            continue;
        }
        float scale = 0.0f;
        const QuantizeArgs args{.x = x,
                                .x_stride = k,
                                .out = words.data(),
                                .out_stride = static_cast<int64_t>(words.size()),
                                .scales = &scale,
                                .rows = 1,
                                .n = static_cast<int32_t>(k),
                                .words = n_words,
                                .offset = 0};
        if (weight.format == Format::kBfloat16) {
            kernels.quantize_bfloat16(args);
        } else {
            kernels.quantize_int8(args);
            weight.scales.floats()[column] = scale;
            sums[column] = byte_sum(words.data(), n_words);
        }
        store_column(words.data(), n_words, weight.data.data(), column);
    }
}

void pack_k_major(const float* src, int64_t first_k, int64_t n, int64_t columns, Weight& weight, int64_t first) {
    const int64_t k = weight.columns;
    for (int64_t column = 0; column < columns;) {
        const int64_t at = first + column;
        const int64_t lane = at % kPanelWidth;
        const int64_t width = std::min<int64_t>(kPanelWidth - lane, columns - column);
        float* panel = weight.data.floats() + at / kPanelWidth * k * kPanelWidth + lane;
        for (int64_t i = 0; i < n; ++i)
            std::memcpy(panel + (first_k + i) * kPanelWidth, src + i * columns + column,
                        static_cast<size_t>(width) * 4);
        column += width;
    }
}

void pack_table(const float* src, int64_t n, Weight& weight, int64_t first) {
    const int64_t k = weight.columns;
    if (weight.format == Format::kFloat32) {
        std::memcpy(weight.data.floats() + first * k, src, static_cast<size_t>(n * k) * sizeof(float));
        return;
    }
    const KernelTable& kernels = active_kernels();
    const int64_t row_bytes = k * (weight.format == Format::kBfloat16 ? 2 : 1);
    const int32_t n_words = ops::words_of(weight.format, k);
    std::vector<int32_t> words(static_cast<size_t>(ops::quantized_stride(n_words)));
    for (int64_t i = 0; i < n; ++i) {
        float scale = 0.0f;
        const QuantizeArgs args{.x = src + i * k,
                                .x_stride = k,
                                .out = words.data(),
                                .out_stride = static_cast<int64_t>(words.size()),
                                .scales = &scale,
                                .rows = 1,
                                .n = static_cast<int32_t>(k),
                                .words = n_words,
                                .offset = 0};
        if (weight.format == Format::kBfloat16) {
            kernels.quantize_bfloat16(args);
        } else {
            kernels.quantize_int8(args);
            weight.scales.floats()[first + i] = scale;
        }
        std::memcpy(weight.data.data() + (first + i) * row_bytes, words.data(), static_cast<size_t>(row_bytes));
    }
}

ops::Matrix Weight::matrix() const {
    return {.format = format,
            .panels = data.data(),
            .scales = scales.floats(),
            .sums = reinterpret_cast<const int32_t*>(sums.floats()),
            .words = ops::words_of(format, columns),
            .panel_bytes = ops::panel_bytes_of(format, columns),
            .count = (rows + kPanelWidth - 1) / kPanelWidth};
}

void read_row(const Weight& weight, int64_t row, float* out) {
    const int64_t k = weight.columns;
    const std::byte* data = weight.data.data();
    const bool matrix = weight.use == Weight::Use::kMatrix;
    const float scale = weight.scales.bytes() > 0 ? weight.scales.floats()[row] : 1.0f;
    const int64_t lane = row % kPanelWidth;
    const std::byte* panel = data + row / kPanelWidth * ops::panel_bytes_of(weight.format, k);
    // Where value p of the row lies, in a format of `size` bytes a value.
    const auto at = [&](int64_t p, int64_t size) {
        if (!matrix) return data + (row * k + p) * size;
        const int64_t values = kWordBytes / size;
        return panel + p / values * kPanelWordBytes + lane * kWordBytes + p % values * size;
    };
    switch (weight.format) {
        case Format::kFloat32:
            for (int64_t p = 0; p < k; ++p) std::memcpy(out + p, at(p, 4), 4);
            return;
        case Format::kBfloat16:
            for (int64_t p = 0; p < k; ++p) {
                uint16_t bits;
                std::memcpy(&bits, at(p, 2), 2);
                out[p] = float_from_bf16(bits);
            }
            return;
        case Format::kInt8:
            for (int64_t p = 0; p < k; ++p) out[p] = static_cast<float>(static_cast<int8_t>(*at(p, 1))) * scale;
            return;
        case Format::kInt4:
            for (int64_t p = 0; p < k; ++p) {
                const std::byte* group = panel + p / kInt4Group * kInt4GroupBytes;
                const int64_t i = p % kInt4Group, half = kInt4Group / 2;
                const auto both =
                    std::to_integer<int>(group[kPanelWidth + i % half / 4 * kPanelWordBytes + lane * 4 + i % 4]);
                const int q = (i < half ? both & 15 : both >> 4) - 8;
                out[p] = static_cast<float>(q * static_cast<int8_t>(group[lane])) * scale;
            }
            return;
    }
}

}  // namespace fastattn
