// The kernels on rows: products, norms, softmax, activations, pooling.
#include <limits>

#include "native_tests/support.h"

namespace fastattn::native_tests {
namespace {

constexpr int kSizes[] = {0, 1, 15, 16, 17, 35, 64, 100, 768};
constexpr int kRowCounts[] = {0, 1, 3};
constexpr Activation kActivations[] = {Activation::kNone,   Activation::kGeluErf, Activation::kGeluTanh,
                                       Activation::kRelu,   Activation::kTanh,    Activation::kSilu,
                                       Activation::kSigmoid};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kSpecial[] = {kNan, kInfinity, -kInfinity, 0.0f, -0.0f, 1e-40f, -1e-40f, 1e30f, -1e30f};

// Replaces about every ninth number with one of kSpecial.
void add_specials(const GuardedBuffer& buffer, uint64_t stream) {
    for (int64_t i = 0; i < buffer.size(); ++i) {
        const uint64_t bits = bits_at(stream, static_cast<uint64_t>(i));
        if (bits % 9 == 0) buffer.data()[i] = kSpecial[(bits >> 8) % std::size(kSpecial)];
    }
}

void linear_case(const KernelTable& table, Record& record, int m, int k, int n, Activation activation, bool extras) {
    const int panels = (n + kPanelWidth - 1) / kPanelWidth;
    const GuardedBuffer a(int64_t{m} * k, 1), packed(int64_t{panels} * k * kPanelWidth, 2), bias(n, 3);
    const GuardedBuffer residual(int64_t{m} * n, 4), c(int64_t{m} * n, 5), scratch(kLinearScratch, 6);
    for (int64_t i = 0; i < packed.size(); ++i)
        if (i / (int64_t{k} * kPanelWidth) * kPanelWidth + i % kPanelWidth >= n) packed.data()[i] = 0.0f;
    table.linear[0]({.a = a.data(),
                     .a_stride = k,
                     .panels = packed.data(),
                     .bias = extras ? bias.data() : nullptr,
                     .residual = extras ? residual.data() : nullptr,
                     .residual_stride = n,
                     .c = c.data(),
                     .c_stride = n,
                     .scratch = scratch.data(),
                     .m = m,
                     .words = k,
                     .n = n,
                     .panel_begin = 0,
                     .panel_end = panels,
                     .activation = activation});
    record.add(c.data(), c.size());
}

void linear(const KernelTable& table, Record& record) {
    for (int m : {0, 1, 2, 5, 6, 7, 13})
        for (int k : {0, 1, 17, 64})
            for (int n : {1, 15, 16, 17, 35, 64, 65, 130})
                linear_case(table, record, m, k, n, Activation::kNone, m % 2);
    for (Activation activation : kActivations)
        for (int m : {1, 7}) linear_case(table, record, m, 33, 100, activation, true);
    linear_case(table, record, 2 * kLinearRowBlock + 5, 20, 70, Activation::kGeluErf, true);
    linear_case(table, record, 9, 1500, 128, Activation::kNone, true);
}

void layer_norm(const KernelTable& table, Record& record) {
    for (int rows : kRowCounts)
        for (int n : kSizes)
            for (int parts = 0; parts < 4; ++parts) {
                const GuardedBuffer x(int64_t{rows} * n, 11), weight(n, 12), bias(n, 13), out(int64_t{rows} * n, 14);
                table.layer_norm_f32({.x = x.data(),
                                      .x_stride = n,
                                      .weight = parts & 1 ? weight.data() : nullptr,
                                      .bias = parts & 2 ? bias.data() : nullptr,
                                      .out = out.data(),
                                      .out_stride = n,
                                      .rows = rows,
                                      .n = n,
                                      .eps = 1e-5f});
                record.add(out.data(), out.size());
            }
}

void rms_norm(const KernelTable& table, Record& record) {
    for (bool special : {false, true})
        for (int rows : kRowCounts)
            for (int groups : {1, 3})
                for (int n : kSizes) {
                    const int64_t width = int64_t{groups} * n;
                    const GuardedBuffer x(rows * width, 81), weight(n, 82), out(rows * width, 83);
                    if (special) add_specials(x, 84);
                    table.rms_norm_f32({.x = x.data(),
                                        .x_stride = width,
                                        .weight = weight.data(),
                                        .out = out.data(),
                                        .out_stride = width,
                                        .rows = rows,
                                        .groups = groups,
                                        .n = n,
                                        .eps = 1e-6f});
                    record.add(out.data(), out.size());
                }
}

void lora(const KernelTable& table, Record& record) {
    for (bool special : {false, true})
        for (int rows : kRowCounts)
            for (int rank : {1, 9, 16})
                for (int k : {1, 16, 37})
                    for (int n : {1, 16, 83}) {
                        const GuardedBuffer x(int64_t{rows} * k, 89), down(int64_t{rank} * k, 90);
                        const GuardedBuffer up(int64_t{rank} * n, 91), y(int64_t{rows} * n, 92);
                        const GuardedBuffer inner(int64_t{rows} * rank, 93);
                        if (special) add_specials(x, 94);
                        table.lora_f32({.x = x.data(),
                                        .x_stride = k,
                                        .down = down.data(),
                                        .up = up.data(),
                                        .y = y.data(),
                                        .y_stride = n,
                                        .out = y.data(),
                                        .out_stride = n,
                                        .inner = inner.data(),
                                        .rows = rows,
                                        .rank = rank,
                                        .k = k,
                                        .n = n});
                        record.add(y.data(), y.size());
                    }
}

void rotary_case(const KernelTable& table, Record& record, int rows, int head_dim, int dimensions, bool interleaved,
                 bool special) {
    constexpr int kHeads = 3, kPositions = 5;
    const int64_t width = kHeads * int64_t{head_dim};
    const GuardedBuffer x(rows * width, 85), angles(int64_t{kPositions} * dimensions, 86), out(rows * width, 87);
    if (special) add_specials(x, 88);
    const int32_t positions[] = {kPositions - 1, 0, 3};
    RotaryF32Args args{.x = x.data(),
                       .x_stride = width,
                       .table = angles.data(),
                       .positions = positions,
                       .out = out.data(),
                       .out_stride = width,
                       .rows = rows,
                       .n_head = kHeads,
                       .head_dim = head_dim,
                       .dimensions = dimensions,
                       .interleaved = interleaved};
    table.rotary_f32(args);
    record.add(out.data(), out.size());
    args.out = x.data();
    table.rotary_f32(args);
    record.add(x.data(), x.size());
}

void rotary(const KernelTable& table, Record& record) {
    for (bool interleaved : {false, true})
        for (bool special : {false, true})
            for (int rows : kRowCounts)
                for (int dimensions : {0, 2, 14, 16, 18, 30, 32, 34, 64, 70, 128})
                    for (int rest : {0, 1, 16, 35})
                        rotary_case(table, record, rows, dimensions + rest, dimensions, interleaved, special);
}

void softmax(const KernelTable& table, Record& record) {
    for (bool log : {false, true})
        for (bool special : {false, true})
            for (int rows : kRowCounts)
                for (int n : kSizes) {
                    const GuardedBuffer x(int64_t{rows} * n, 21, 30.0f), out(int64_t{rows} * n, 22);
                    if (special) add_specials(x, 23);
                    table.softmax_f32({.x = x.data(),
                                       .x_stride = n,
                                       .out = out.data(),
                                       .out_stride = n,
                                       .rows = rows,
                                       .n = n,
                                       .log = log});
                    record.add(out.data(), out.size());
                }
}

void activation(const KernelTable& table, Record& record) {
    for (Activation activation : kActivations)
        for (float factor : {1e-3f, 1.0f, 10.0f, 100.0f})
            for (int n : kSizes) {
                const GuardedBuffer x(n, 31, factor), out(n, 32);
                add_specials(x, 33);
                for (bool rough : {false, true}) {
                    table.activation_f32(
                        {.x = x.data(), .out = out.data(), .n = n, .activation = activation, .rough = rough});
                    record.add(out.data(), n);
                }
            }
}

template <void (*KernelTable::*kKernel)(const ElementwiseF32Args&)>
void combine(const KernelTable& table, Record& record) {
    for (int n : kSizes) {
        const GuardedBuffer x(n, 41), y(n, 42), out(n, 43);
        add_specials(x, 44);
        (table.*kKernel)({.x = x.data(), .y = y.data(), .out = out.data(), .n = n});
        record.add(out.data(), n);
    }
}

void pool(const KernelTable& table, Record& record) {
    for (PoolKind kind : {PoolKind::kMean, PoolKind::kMax, PoolKind::kMeanSqrtLen})
        for (bool special : {false, true})
            for (int rows : kRowCounts)
                for (int n : kSizes) {
                    const GuardedBuffer x(int64_t{rows} * n, 51), out(n, 52);
                    if (special) add_specials(x, 53);
                    table.pool_f32(
                        {.x = x.data(), .x_stride = n, .out = out.data(), .rows = rows, .n = n, .kind = kind});
                    record.add(out.data(), n);
                }
}

void l2_normalize(const KernelTable& table, Record& record) {
    for (int rows : kRowCounts)
        for (int n : kSizes) {
            const GuardedBuffer x(int64_t{rows} * n, 61), out(int64_t{rows} * n, 62);
            table.l2_normalize_f32({.x = x.data(),
                                    .x_stride = n,
                                    .out = out.data(),
                                    .out_stride = n,
                                    .rows = rows,
                                    .n = n,
                                    .eps = 1e-12f});
            record.add(out.data(), out.size());
        }
}

void argmax(const KernelTable& table, Record& record) {
    for (int n : kSizes)
        for (int variant = 0; variant < 4; ++variant) {  // plain, ties, a NaN, only -inf
            const GuardedBuffer x(n, 71);
            for (int i = 0; i < n; ++i) {
                if (variant == 1) x.data()[i] = i % 5 == 3 ? 2.0f : -1.0f;
                if (variant == 3) x.data()[i] = -kInfinity;
            }
            if (variant == 2 && n > 0) x.data()[n - 1] = kNan;
            int32_t index = 0;
            float value = 0;
            table.argmax_f32({.x = x.data(), .n = n, .index = &index, .value = &value});
            record.add(index);
            record.add(&value, 1);
        }
}

void find(const KernelTable& table, Record& record) {
    for (int n : kSizes)
        for (int variant = 0; variant < 4; ++variant) {  // often, at the end, a NaN at the end, nowhere
            const GuardedBuffer x(n, 73);
            if (variant > 0 && n > 0) x.data()[n - 1] = variant == 2 ? kNan : 9.0f;
            const float threshold = variant == 0 ? 1.5f : variant == 3 ? kInfinity : 8.0f;
            for (int i = 0; i <= n; ++i) {
                i += table.find_f32({.x = x.data() + i, .n = n - i, .threshold = threshold});
                record.add(i);
            }
        }
}

void exp_sum(const KernelTable& table, Record& record) {
    for (int n : kSizes)
        for (float factor : {1.0f, 60.0f}) {
            const GuardedBuffer x(n, 74, factor), out(n, 75);
            float sums[4];
            table.exp_sum_f32({.x = x.data(), .out = nullptr, .n = n, .shift = 1.0f, .sum = sums, .log_sum = sums + 1});
            table.exp_sum_f32(
                {.x = x.data(), .out = out.data(), .n = n, .shift = 1.0f, .sum = sums + 2, .log_sum = sums + 3});
            record.add(sums, 4);
            record.add(out.data(), out.size());
        }
}

template <auto kernel, int gates>
void cell(const KernelTable& table, Record& record) {
    for (bool special : {false, true})
        for (float limit : {0.0f, 0.5f})
            for (int n : kSizes) {
                const GuardedBuffer x(int64_t{gates} * n, 91), sums(int64_t{gates} * n, 92), state(n, 93), out(n, 94);
                if (special) add_specials(x, 95);
                (table.*kernel)({.x = x.data(),
                                 .sums = sums.data(),
                                 .state = state.data(),
                                 .out = out.data(),
                                 .n = n,
                                 .clip = limit});
                record.add(out.data(), out.size());
                record.add(state.data(), state.size());
            }
}

void clip(const KernelTable& table, Record& record) {
    for (bool special : {false, true})
        for (int n : kSizes) {
            const GuardedBuffer x(n, 96), out(n, 97);
            if (special) add_specials(x, 98);
            table.clip_f32({.x = x.data(), .out = out.data(), .n = n, .clip = 0.5f});
            record.add(out.data(), out.size());
        }
}

void query_scores(const KernelTable& table, Record& record) {
    for (bool special : {false, true})
        for (bool weighted : {false, true})
            for (int rows : kRowCounts)
                for (int n : kSizes) {
                    const GuardedBuffer query(n, 101), keys(int64_t{rows} * n, 102), weight(n, 103), out(rows, 104);
                    if (special) add_specials(keys, 105);
                    table.query_scores_f32({.query = query.data(),
                                            .keys = keys.data(),
                                            .keys_stride = n,
                                            .weight = weighted ? weight.data() : nullptr,
                                            .out = out.data(),
                                            .rows = rows,
                                            .n = n});
                    record.add(out.data(), out.size());
                }
}

void weighted_sum(const KernelTable& table, Record& record) {
    for (bool special : {false, true})
        for (int rows : kRowCounts)
            for (int n : kSizes) {
                const GuardedBuffer weights(rows, 106), x(int64_t{rows} * n, 107), out(n, 108);
                if (special) add_specials(x, 109);
                table.weighted_sum_f32({.weights = weights.data(),
                                        .weights_stride = 1,
                                        .x = x.data(),
                                        .x_stride = n,
                                        .out = out.data(),
                                        .rows = rows,
                                        .n = n});
                record.add(out.data(), out.size());
            }
}

}  // namespace

const std::vector<KernelCases> kRowCases = {
    {"linear_f32", linear},
    {"layer_norm_f32", layer_norm},
    {"rms_norm_f32", rms_norm},
    {"lora_f32", lora},
    {"rotary_f32", rotary},
    {"softmax_f32", softmax},
    {"activation_f32", activation},
    {"add_f32", combine<&KernelTable::add_f32>},
    {"multiply_f32", combine<&KernelTable::multiply_f32>},
    {"pool_f32", pool},
    {"l2_normalize_f32", l2_normalize},
    {"argmax_f32", argmax},
    {"find_f32", find},
    {"exp_sum_f32", exp_sum},
    {"lstm_cell_f32", cell<&KernelTable::lstm_cell_f32, 4>},
    {"gru_cell_f32", cell<&KernelTable::gru_cell_f32, 3>},
    {"clip_f32", clip},
    {"query_scores_f32", query_scores},
    {"weighted_sum_f32", weighted_sum},
};

}  // namespace fastattn::native_tests
