// The kernels of bfloat16, int8 and int4: rows of activations, columns of weights, products.
#include <limits>

#include "native_tests/support.h"

namespace fastattn::native_tests {
namespace {

constexpr int kDepths[] = {0, 1, 3, 4, 15, 16, 17, 31, 32, 33, 100, 768};
constexpr Format kFormatsHere[] = {Format::kBfloat16, Format::kInt8, Format::kInt4};

int64_t panel_words(Format format, int k) {  // words of 4 bytes
    return panel_bytes_of(format, words_of(format, k)) / kWordBytes;
}

void clear(const GuardedBuffer& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) buffer.data()[i] = 0.0f;
}

// Makes one number infinite: its column of weights or row of activations is then not finite.
void spoil(const GuardedBuffer& buffer, int64_t at) {
    if (at < buffer.size()) buffer.data()[at] = std::numeric_limits<float>::infinity();
}

struct Quantized {
    GuardedBuffer words, scales;
};

// Rows without gaps, so that the last one ends at the guard page.
Quantized quantized(const KernelTable& table, const GuardedBuffer& x, int rows, int k, Format format, int32_t offset) {
    const int32_t words = words_of(format, k), stride = (words + 15) / 16 * 16;
    const GuardedBuffer wide(int64_t{rows} * stride, 1);
    Quantized found{GuardedBuffer(int64_t{rows} * words, 2), GuardedBuffer(rows, 3)};
    table.quantize[static_cast<int>(format)]({.x = x.data(),
                                              .x_stride = k,
                                              .out = wide.data(),
                                              .out_stride = stride,
                                              .scales = found.scales.data(),
                                              .rows = rows,
                                              .n = k,
                                              .words = words,
                                              .offset = offset});
    for (int r = 0; r < rows; ++r)
        std::memcpy(found.words.data() + int64_t{r} * words, wide.data() + int64_t{r} * stride,
                    static_cast<size_t>(words) * kWordBytes);
    return found;
}

void quantize(const KernelTable& table, Record& record) {
    for (Format format : {Format::kBfloat16, Format::kInt8})
        for (int rows : {0, 1, 3})
            for (int k : kDepths)
                for (bool special : {false, true}) {
                    const GuardedBuffer x(int64_t{rows} * k, 11);
                    if (special) spoil(x, k / 2);
                    const Quantized found = quantized(table, x, rows, k, format, 0);
                    record.add_words(found.words.data(), found.words.size());
                    if (format == Format::kInt8) record.add(found.scales.data(), rows);
                }
}

struct Packed {
    GuardedBuffer panels, scales, sums;
};

Packed packed(const KernelTable& table, const GuardedBuffer& weight, int k, int n, Format format) {
    const int panels = (n + kPanelWidth - 1) / kPanelWidth;
    Packed found{GuardedBuffer(panels * panel_words(format, k), 4), GuardedBuffer(int64_t{panels} * kPanelWidth, 5),
                 GuardedBuffer(int64_t{panels} * kPanelWidth, 6)};
    clear(found.panels), clear(found.scales), clear(found.sums);
    for (int first = 0; first < n;) {
        const int lane = first % kPanelWidth;
        int width = first % 7 == 0 ? 16 : 5;  // whole and partial vectors, at any lane
        if (width > 16 - lane % 16) width = 16 - lane % 16;
        if (width > n - first) width = n - first;
        table.pack[static_cast<int>(format)](
            {.x = weight.data() + first,
             .x_stride = n,
             .panel = found.panels.data() + first / kPanelWidth * panel_words(format, k),
             .scales = found.scales.data() + first,
             .sums = reinterpret_cast<int32_t*>(found.sums.data()) + first,
             .k = k,
             .n = width,
             .words = words_of(format, k),
             .lane = lane});
        first += width;
    }
    return found;
}

// Records panels as if each had one strip, so that targets with other strips agree.
void record_panels(const KernelTable& table, Record& record, const Packed& found, Format format, int k) {
    const int64_t words = words_of(format, k), strip = table.strip_columns[static_cast<int>(format)];
    if (strip == kPanelWidth) return record.add_words(found.panels.data(), found.panels.size());
    const GuardedBuffer whole(found.panels.size(), 7);
    for (int64_t i = 0; i < whole.size(); ++i) {
        const int64_t panel = i / (words * kPanelWidth), word = i / kPanelWidth % words, lane = i % kPanelWidth;
        const int64_t from = ((panel * kPanelWidth / strip + lane / strip) * words + word) * strip + lane % strip;
        std::memcpy(whole.data() + i, found.panels.data() + from, kWordBytes);
    }
    record.add_words(whole.data(), whole.size());
}

void pack(const KernelTable& table, Record& record) {
    for (Format format : kFormatsHere)
        for (int n : {1, 15, 16, 17, 64, 65, 130})
            for (int k : kDepths)
                for (bool special : {false, true}) {
                    const GuardedBuffer weight(int64_t{k} * n, 21);
                    if (special) spoil(weight, n / 2);
                    const Packed found = packed(table, weight, k, n, format);
                    record_panels(table, record, found, format, k);
                    record.add(found.scales.data(), found.scales.size());
                    record.add_words(found.sums.data(), found.sums.size());
                }
}

void linear_case(const KernelTable& table, Record& record, Format format, int m, int k, int n, bool extras,
                 Activation activation = Activation::kGeluTanh, bool c_bfloat16 = false) {
    const GuardedBuffer x(int64_t{m} * k, 31), weight(int64_t{k} * n, 32), bias(n, 33), c(int64_t{m} * n, 34);
    const GuardedBuffer residual(int64_t{m} * n, 35), scratch(kLinearScratch, 36);
    if (extras && m > 2) spoil(x, 2 * k);
    const Quantized a = quantized(table, x, m, k, format, table.int8_offset);
    const Packed b = packed(table, weight, k, n, format);
    table.linear[static_cast<int>(format)]({.a = a.words.data(),
                                            .a_stride = words_of(format, k),
                                            .a_scales = a.scales.data(),
                                            .panels = b.panels.data(),
                                            .scales = b.scales.data(),
                                            .sums = reinterpret_cast<const int32_t*>(b.sums.data()),
                                            .bias = extras ? bias.data() : nullptr,
                                            .residual = extras ? residual.data() : nullptr,
                                            .residual_stride = n,
                                            .c = c.data(),
                                            .c_stride = c_bfloat16 ? n / 2 : n,
                                            .scratch = scratch.data(),
                                            .m = m,
                                            .words = words_of(format, k),
                                            .n = n,
                                            .panel_begin = 0,
                                            .panel_end = (n + kPanelWidth - 1) / kPanelWidth,
                                            .activation = extras ? activation : Activation::kNone,
                                            .c_bfloat16 = c_bfloat16});
    if (c_bfloat16)
        record.add_words(c.data(), int64_t{m} * n / 2);
    else
        record.add(c.data(), c.size());
}

template <Format kFormat>
void linear(const KernelTable& table, Record& record) {
    for (int m : {0, 1, 2, 5, 6, 7, 13})
        for (int k : kDepths)
            for (int n : {1, 15, 16, 17, 35, 64, 65, 130}) linear_case(table, record, kFormat, m, k, n, m % 2);
    for (int n : {35, 64, 130}) linear_case(table, record, kFormat, 7, 33, n, true, Activation::kNone);
    for (int n : {16, 64, 144})
        for (Activation activation : {Activation::kNone, Activation::kGeluErf})
            if (kFormat == Format::kBfloat16) linear_case(table, record, kFormat, 7, 33, n, true, activation, true);
    linear_case(table, record, kFormat, 2 * kLinearRowBlock + 5, 20, 70, true);
    linear_case(table, record, kFormat, 1, 6500, 128, true);
    linear_case(table, record, kFormat, 9, 6500, 128, true);
}

}  // namespace

const std::vector<KernelCases> kFormatCases = {
    {"quantize", quantize},
    {"pack", pack},
    {"linear_int8", linear<Format::kInt8>},
    {"linear_int4", linear<Format::kInt4>},
    {.kernel = "linear_bfloat16", .run = linear<Format::kBfloat16>, .bfloat16_sums = true},
};

}  // namespace fastattn::native_tests
