#include "weights/pack.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

namespace fastattn {
namespace {

constexpr int64_t kTile = 16;  // rows that are transposed and packed together

int64_t panel_bytes(const Weight& weight) {
    return panel_bytes_of(weight.format, words_of(weight.format, weight.columns));
}

// Splits columns into blocks that do not cross a multiple of kTile: calls work(offset of the first column, number of
// columns).
template <class F>
void for_column_blocks(int64_t first, int64_t n, const F& work) {
    for (int64_t done = 0; done < n;) {
        const int64_t width = std::min(kTile - (first + done) % kTile, n - done);
        work(done, width);
        done += width;
    }
}

// Packs x [k, n], at most sixteen columns, into a matrix from column `first` on.
void pack_block(const float* x, int64_t x_stride, int64_t n, const KernelTable& kernels, Weight& weight,
                int64_t first) {
    const int64_t k = weight.columns;
    const bool scaled = weight.scales.bytes() > 0;
    kernels.pack[static_cast<int>(weight.format)](
        {.x = x,
         .x_stride = x_stride,
         .panel = weight.data.data() + first / kPanelWidth * panel_bytes(weight),
         .scales = scaled ? weight.scales.floats() + first : nullptr,
         .sums = scaled ? reinterpret_cast<int32_t*>(weight.sums.floats()) + first : nullptr,
         .k = static_cast<int32_t>(k),
         .n = static_cast<int32_t>(n),
         .words = words_of(weight.format, k),
         .lane = static_cast<int32_t>(first % kPanelWidth)});
}

// Floats [n, columns], row stride `stride`: rows [first_k, first_k + n) of k.
struct Lines {
    const float* src;
    int64_t stride, first_k, n, columns;
};

// Copies them into a float32 matrix from column `first` on.
void pack_lines(const Lines& lines, Weight& weight, int64_t first) {
    for (int64_t column = 0; column < lines.columns;) {
        const int64_t at = first + column, lane = at % kPanelWidth;
        const int64_t width = std::min<int64_t>(kPanelWidth - lane, lines.columns - column);
        float* panel = weight.data.floats() + at / kPanelWidth * weight.columns * kPanelWidth + lane;
        for (int64_t i = 0; i < lines.n; ++i)
            std::memcpy(panel + (lines.first_k + i) * kPanelWidth, lines.src + i * lines.stride + column,
                        static_cast<size_t>(width) * sizeof(float));
        column += width;
    }
}

}  // namespace

void pack_float32(const float* src, int64_t k, int64_t n, float* panels, int64_t first) {
    // 16 x 16 blocks, so that both sides stay within a few cache lines.
    for_column_blocks(first, n, [&](int64_t row, int64_t width) {
        float* panel = panels + (first + row) / kPanelWidth * k * kPanelWidth + (first + row) % kPanelWidth;
        for (int64_t p0 = 0; p0 < k; p0 += kTile)
            for (int64_t p = p0; p < std::min(p0 + kTile, k); ++p)
                for (int64_t i = 0; i < width; ++i) panel[p * kPanelWidth + i] = src[(row + i) * k + p];
    });
}

std::array<int64_t, 3> bytes_of(const Weight& weight, const std::string& name) {
    const bool matrix = weight.use == WeightUse::kMatrix;
    const bool table = weight.use == WeightUse::kTable;
    const bool scaled = traits_of(weight.format).integer;
    if ((table && weight.format == Format::kInt4) || (!matrix && !table && weight.format != Format::kFloat32))
        throw Error(ErrorKind::kConfig,
                    "weight " + name +
                        ": expected float32 for a vector, or a format other than int4 for a table, got " +
                        traits_of(weight.format).name);
    // A sum of int8 products over k is at most 255 * 127 per term.
    if (matrix && scaled && weight.columns > 65536)
        throw Error(ErrorKind::kConfig, "weight " + name +
                                            ": expected at most 65536 input features for int8 and int4, got " +
                                            std::to_string(weight.columns));
    const int64_t panels = (weight.rows + kPanelWidth - 1) / kPanelWidth;
    return {matrix ? panels * panel_bytes(weight) : weight.rows * weight.columns * value_bytes_of(weight.format),
            scaled ? panels * kPanelWidth * int64_t{sizeof(float)} : 0,
            scaled && matrix ? panels * kPanelWidth * int64_t{sizeof(int32_t)} : 0};
}

void allocate(Weight& weight, const std::string& name, const KernelTable& kernels) {
    const auto [data, scales, sums] = bytes_of(weight, name);
    weight.data = Buffer(static_cast<size_t>(data));
    weight.scales = Buffer(static_cast<size_t>(scales));
    weight.sums = Buffer(static_cast<size_t>(sums));
    set_strips(weight, kernels);
}

void set_strips(Weight& weight, const KernelTable& kernels) {
    if (weight.use == WeightUse::kMatrix) weight.strip_columns = kernels.strip_columns[static_cast<int>(weight.format)];
}

void change_strips(const Weight& weight, const std::byte* panel, std::byte* out, int64_t from, int64_t to) {
    const int64_t words = words_of(weight.format, weight.columns), width = std::min(from, to);
    const auto place = [words](int64_t word, int64_t column, int64_t strip) {
        return ((column / strip * words + word) * strip + column % strip) * kWordBytes;
    };
    for (int64_t w = 0; w < words; ++w)
        for (int64_t column = 0; column < kPanelWidth; column += width)
            std::memcpy(out + place(w, column, to), panel + place(w, column, from),
                        static_cast<size_t>(width * kWordBytes));
}

void pack_rows(const float* src, int64_t k, int64_t n, const KernelTable& kernels, Weight& weight, int64_t first,
               float* room) {
    if (weight.format == Format::kFloat32) return pack_float32(src, k, n, weight.data.floats(), first);
    for_column_blocks(first, n, [&](int64_t row, int64_t width) {
        for (int64_t p0 = 0; p0 < k; p0 += kTile)
            for (int64_t i = 0; i < width; ++i)
                for (int64_t p = p0; p < std::min(p0 + kTile, k); ++p) room[p * kTile + i] = src[(row + i) * k + p];
        pack_block(room, kTile, width, kernels, weight, first + row);
    });
}

void pack_columns(const float* src, int64_t stride, int64_t n, const KernelTable& kernels, Weight& weight,
                  int64_t first) {
    if (weight.format == Format::kFloat32)
        return pack_lines({.src = src, .stride = stride, .first_k = 0, .n = weight.columns, .columns = n}, weight,
                          first);
    for_column_blocks(first, n, [&](int64_t column, int64_t width) {
        pack_block(src + column, stride, width, kernels, weight, first + column);
    });
}

void pack_k_major(const float* src, int64_t first_k, int64_t n, int64_t columns, Weight& weight, int64_t first) {
    pack_lines({.src = src, .stride = columns, .first_k = first_k, .n = n, .columns = columns}, weight, first);
}

void pack_table(const float* src, int64_t n, const KernelTable& kernels, Weight& weight, int64_t first, float* room) {
    const int64_t k = weight.columns;
    if (weight.format == Format::kFloat32) {
        std::memcpy(weight.data.floats() + first * k, src, static_cast<size_t>(n * k) * sizeof(float));
        return;
    }
    const int64_t row_bytes = k * value_bytes_of(weight.format);
    const int32_t n_words = words_of(weight.format, k);
    for (int64_t i = 0; i < n; ++i) {
        float scale = 0.0f;
        kernels.quantize[static_cast<int>(weight.format)]({.x = src + i * k,
                                                           .x_stride = k,
                                                           .out = room,
                                                           .out_stride = ops::quantized_stride(n_words),
                                                           .scales = &scale,
                                                           .rows = 1,
                                                           .n = static_cast<int32_t>(k),
                                                           .words = n_words,
                                                           .offset = 0});
        if (weight.scales.bytes() > 0) weight.scales.floats()[first + i] = scale;
        std::memcpy(weight.data.data() + (first + i) * row_bytes, room, static_cast<size_t>(row_bytes));
    }
}

ops::Matrix Weight::matrix() const {
    return {.format = format,
            .panels = data.data(),
            .scales = scales.floats(),
            .sums = reinterpret_cast<const int32_t*>(sums.floats()),
            .words = words_of(format, columns),
            .panel_bytes = panel_bytes(*this),
            .count = (rows + kPanelWidth - 1) / kPanelWidth};
}

void read_row(const Weight& weight, int64_t row, float* out) {
    const int64_t k = weight.columns;
    const std::byte* data = weight.data.data();
    const bool matrix = weight.use == WeightUse::kMatrix;
    const float scale = weight.scales.bytes() > 0 ? weight.scales.floats()[row] : 1.0f;
    const int64_t lane = row % kPanelWidth, n_words = words_of(weight.format, k);
    const std::byte* panel = data + row / kPanelWidth * panel_bytes(weight);
    // Address of value p of the row, in a format of `size` bytes per value.
    const auto at = [&](int64_t p, int64_t size) {
        if (!matrix) return data + (row * k + p) * size;
        const int64_t values = kWordBytes / size, strip = weight.strip_columns, first = lane / strip * n_words;
        return panel + ((first + p / values) * strip + lane % strip) * kWordBytes + p % values * size;
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
