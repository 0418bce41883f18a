// Kernels on rows: the CPU's bits, in float32 and rounded, for any width and alignment.
#include "native_tests/cuda/testing.h"

namespace fastattn::cuda::tests {
namespace {

constexpr int kWidths[] = {1, 3, 4, 15, 16, 20, 35, 64, 68, 100, 128, 255, 256, 260, 768};
constexpr int kRows = 19, kMostRows = 24;  // more room than rows, as in a bucket

const KernelTable& cpu() {
    return scalar::kernel_table();
}

// Memory for both outputs of an op, float32 and rounded, with rows that can (aligned) or cannot be written in fours.
// check() compares both with `expected` [rows, width].
struct Outputs {
    Outputs(int width, Type type, bool aligned)
        : width(width),
          stride(aligned ? (width + 3) / 4 * 4 : width + 1),
          data(kMostRows * int64_t{stride}),
          rounded(kMostRows * row_elements(width)),
          output{.data = data.data(),
                 .stride = stride,
                 .rounded = rounded.data(),
                 .rounded_stride = row_elements(width),
                 .type = type} {}

    void check(Check& check, const std::string& what, const float* expected, int rows = kRows) const {
        const int64_t rounded_width = row_elements(width);
        for (int row = 0; row < rows; ++row) {
            check.same(what, data.data() + row * stride, expected + row * width, width);
            std::vector<uint16_t> bits(static_cast<size_t>(rounded_width), 0);
            for (int i = 0; i < width; ++i)
                bits[static_cast<size_t>(i)] = tests::rounded(output.type, expected[row * width + i]);
            check.same(what + " rounded", rounded.data() + row * rounded_width, bits.data(), rounded_width);
        }
        // Nothing after the rows is written.
        for (int64_t i = int64_t{rows} * stride; i < data.size(); ++i)
            check.that(what + ": wrote after the last row", std::isnan(data[i]));
        for (int64_t i = rows * rounded_width; i < rounded.size(); ++i)
            check.that(what + ": wrote after the last rounded row", rounded[i] == 0xffff);
    }

    int width, stride;
    Memory<float> data;
    Memory<uint16_t> rounded;
    Output output;
};

const Memory<int32_t> kCount = {kRows};
const cuda::Rows kRowCount{.count = kCount.data(), .most = kMostRows};

// For all widths, alignments and types: compares run(rows in and out) with expect(x row, out row, width).
void for_rows(Check& check, const std::string& what, const std::function<void(const RowArgs&)>& run,
              const std::function<void(const float*, float*, int)>& expect) {
    for (const int width : kWidths)
        for (const bool aligned : {true, false}) {
            const int64_t stride = aligned ? (width + 3) / 4 * 4 : width + 1;
            const Memory<float> x(kRows * stride + 1, /*stream=*/1, 3.0f);
            const float* from = x.data() + (aligned ? 0 : 1);
            std::vector<float> expected(static_cast<size_t>(kRows * width));
            for (int row = 0; row < kRows; ++row) expect(from + row * stride, expected.data() + row * width, width);
            for (const Type type : {Type::kBfloat16, Type::kFloat16}) {
                const Outputs out(width, type, aligned);
                run({.x = from, .x_stride = stride, .rows = kRowCount, .width = width, .out = out.output});
                out.check(check, what + " of width " + std::to_string(width), expected.data());
            }
        }
}

void layer_norm(Check& check) {
    const Memory<float> weight(1024, 2), bias(1024, 3);
    for (const bool affine : {true, false})
        for_rows(
            check, "layer_norm",
            [&](const RowArgs& io) {
                launch_layer_norm({.io = io,
                                   .weight = affine ? weight.data() : nullptr,
                                   .bias = affine ? bias.data() : nullptr,
                                   .eps = 1e-5f},
                                  nullptr);
            },
            [&](const float* x, float* out, int width) {
                cpu().layer_norm_f32({.x = x,
                                      .x_stride = width,
                                      .weight = affine ? weight.data() : nullptr,
                                      .bias = affine ? bias.data() : nullptr,
                                      .out = out,
                                      .out_stride = width,
                                      .rows = 1,
                                      .n = width,
                                      .eps = 1e-5f});
            });
}

void rms_norm(Check& check) {
    const Memory<float> weight(1024, 2);
    for (const int most_groups : {1, 4, 5})
        for_rows(
            check, "rms_norm",
            [&](const RowArgs& io) {
                launch_rms_norm({.io = io,
                                 .weight = weight.data(),
                                 .eps = 1e-6f,
                                 .groups = io.width % most_groups == 0 ? most_groups : 1},
                                nullptr);
            },
            [&](const float* x, float* out, int width) {
                const int groups = width % most_groups == 0 ? most_groups : 1;
                cpu().rms_norm_f32({.x = x,
                                    .x_stride = width,
                                    .weight = weight.data(),
                                    .out = out,
                                    .out_stride = width,
                                    .rows = 1,
                                    .groups = groups,
                                    .n = width / groups,
                                    .eps = 1e-6f});
            });
}

// With `tokens`, the rows are a selection of the step's tokens, one of them of an empty sequence.
void rotary_case(Check& check, int head_dim, int dimensions, bool interleaved, bool selected) {
    constexpr int kHeads = 3, kTableRows = 50;
    const int width = kHeads * head_dim;
    const int64_t stride = width + 1;
    const Memory<float> x(kRows * stride, 1), table(kTableRows * int64_t{dimensions}, 2);
    Memory<int32_t> positions(kRows), tokens(kRows), expected_positions(kRows);
    for (int row = 0; row < kRows; ++row) {
        positions[row] = static_cast<int32_t>(bits_at(7, static_cast<uint64_t>(row)) % kTableRows);
        tokens[row] = row == 4 ? -1 : (row * 7) % kRows;
    }
    for (int row = 0; row < kRows; ++row) {
        const int token = selected ? tokens[row] : row;
        expected_positions[row] = token < 0 ? 0 : positions[token];
    }
    std::vector<float> expected(static_cast<size_t>(kRows * width));
    cpu().rotary_f32({.x = x.data(),
                      .x_stride = stride,
                      .table = table.data(),
                      .positions = expected_positions.data(),
                      .out = expected.data(),
                      .out_stride = width,
                      .rows = kRows,
                      .n_head = kHeads,
                      .head_dim = head_dim,
                      .dimensions = dimensions,
                      .interleaved = interleaved});
    const Outputs out(width, Type::kBfloat16, /*aligned=*/false);
    RotaryArgs args{.x = x.data(),
                    .x_stride = stride,
                    .table = table.data(),
                    .table_stride = dimensions,
                    .positions = positions.data(),
                    .tokens = selected ? tokens.data() : nullptr,
                    .rows = kRowCount,
                    .n_head = kHeads,
                    .head_dim = head_dim,
                    .dimensions = dimensions,
                    .interleaved = interleaved,
                    .out = out.output};
    launch_rotary(args, nullptr);
    out.check(check, "rotary of " + std::to_string(dimensions), expected.data());
    Memory<float> in_place(kRows * stride, 1);
    args.x = in_place.data(), args.out = {.data = in_place.data(), .stride = stride};
    launch_rotary(args, nullptr);
    for (int row = 0; row < kRows; ++row)
        check.same("rotary in place", in_place.data() + row * stride, expected.data() + row * width, width);
}

void rotary(Check& check) {
    for (const bool interleaved : {false, true})
        for (const bool selected : {false, true})
            for (const int dimensions : {2, 10, 32, 64, 128})
                for (const int rest : {0, 1, 40})
                    rotary_case(check, dimensions + rest, dimensions, interleaved, selected);
}

void l2_normalize(Check& check) {
    for_rows(
        check, "l2_normalize", [](const RowArgs& io) { launch_l2_normalize({.io = io, .eps = 1e-12f}, nullptr); },
        [](const float* x, float* out, int width) {
            cpu().l2_normalize_f32(
                {.x = x, .x_stride = width, .out = out, .out_stride = width, .rows = 1, .n = width, .eps = 1e-12f});
        });
}

constexpr Activation kActivations[] = {Activation::kNone,   Activation::kGeluErf, Activation::kGeluTanh,
                                       Activation::kRelu,   Activation::kTanh,    Activation::kSilu,
                                       Activation::kSigmoid};

void activation(Check& check) {
    for (const Activation kind : kActivations)
        for (const bool rough : {false, true})
            for_rows(
                check, "activation " + std::to_string(static_cast<int>(kind)),
                [&](const RowArgs& io) { launch_activation({.io = io, .activation = kind, .rough = rough}, nullptr); },
                [&](const float* x, float* out, int width) {
                    cpu().activation_f32({.x = x, .out = out, .n = width, .activation = kind, .rough = rough});
                });
}

// The polynomials over the whole range of floats, including those that are not numbers.
void activation_range(Check& check) {
    constexpr int kNumbers = 1 << 15;
    Memory<float> x(kNumbers);
    for (int i = 0; i < kNumbers; ++i) x[i] = std::bit_cast<float>(static_cast<uint32_t>(i) << 17 | 0x5a5a);
    Memory<float> got(kNumbers), expected(kNumbers);
    for (const Activation kind : kActivations)
        for (const bool rough : {false, true}) {
            launch_activation({.io = {.x = x.data(),
                                      .x_stride = kNumbers,
                                      .rows = {.count = nullptr, .most = 1},
                                      .width = kNumbers,
                                      .out = {.data = got.data(), .stride = kNumbers}},
                               .activation = kind,
                               .rough = rough},
                              nullptr);
            cpu().activation_f32(
                {.x = x.data(), .out = expected.data(), .n = kNumbers, .activation = kind, .rough = rough});
            check.same("activation " + std::to_string(static_cast<int>(kind)), got.data(), expected.data(), kNumbers);
        }
}

void round(Check& check) {
    for_rows(
        check, "round", [](const RowArgs& io) { launch_round(io, nullptr); },
        [](const float* x, float* out, int width) { std::copy(x, x + width, out); });
}

void add(Check& check) {
    for_rows(
        check, "add",
        [](const RowArgs& io) {
            launch_add({.a = io.x,
                        .a_stride = io.x_stride,
                        .b = io.x,
                        .b_stride = io.x_stride,
                        .rows = io.rows,
                        .width = io.width,
                        .out = io.out},
                       nullptr);
        },
        [](const float* x, float* out, int width) { cpu().add_f32({.x = x, .y = x, .out = out, .n = width}); });
}

void multiply(Check& check) {
    const Memory<float> factors(1024, 2);
    for_rows(
        check, "multiply",
        [&](const RowArgs& io) {
            launch_multiply({.a = io.x,
                             .a_stride = io.x_stride,
                             .b = factors.data(),
                             .b_stride = 0,
                             .rows = io.rows,
                             .width = io.width,
                             .out = io.out},
                            nullptr);
        },
        [&](const float* x, float* out, int width) {
            cpu().multiply_f32({.x = x, .y = factors.data(), .out = out, .n = width});
        });
}

void epilogue(Check& check) {
    const Memory<float> bias(1024, 2), residual(kMostRows * 1024, 4);
    for (const bool whole : {true, false})
        for (const Activation kind : kActivations) {
            int row = 0;
            for_rows(
                check, "epilogue",
                [&](const RowArgs& io) {
                    row = 0;
                    launch_epilogue({.product = io.x,
                                     .product_stride = io.x_stride,
                                     .epilogue = {.bias = whole ? bias.data() : nullptr,
                                                  .residual = whole ? residual.data() : nullptr,
                                                  .residual_stride = 1024,
                                                  .activation = kind,
                                                  .rows = io.rows,
                                                  .n = io.width,
                                                  .out = io.out}},
                                    nullptr);
                },
                [&](const float* x, float* out, int width) {
                    for (int i = 0; i < width; ++i) out[i] = whole ? x[i] + bias[i] : x[i];
                    cpu().activation_f32({.x = out, .out = out, .n = width, .activation = kind});
                    for (int i = 0; whole && i < width; ++i) out[i] += residual[row * 1024 + i];
                    ++row;
                });
            (void)row;
        }
}

void gather(Check& check) {
    for (const int width : kWidths) {
        const Memory<float> x(7 * width, 1);
        const Memory<int32_t> index = {3, 3, -1, 0, 6, -1, 5, 1, 2, 4, 0, 1, 2, 3, 4, 5, 6, -1, 0};
        std::vector<float> expected;
        for (int row = 0; row < kRows; ++row)
            for (int i = 0; i < width; ++i) expected.push_back(index[row] < 0 ? 0.0f : x[index[row] * width + i]);
        const Outputs out(width, Type::kBfloat16, /*aligned=*/true);
        launch_gather({.io = {.x = x.data(), .x_stride = width, .rows = kRowCount, .width = width, .out = out.output},
                       .index = index.data()},
                      nullptr);
        out.check(check, "gather of width " + std::to_string(width), expected.data());
    }
}

void embedding(Check& check) {
    constexpr int kTableRows = 11, kOffset = 2;
    Memory<int32_t> ids(kRows);
    for (int row = 0; row < kRows; ++row)
        ids[row] = static_cast<int32_t>(bits_at(5, static_cast<uint64_t>(row)) % (kTableRows - kOffset));
    for (const int width : kWidths)
        for (const Type type : {Type::kFloat32, Type::kBfloat16, Type::kFloat16})
            for (const bool indexed : {false, true}) {
                const int64_t stride = row_elements(width);
                const Memory<float> plain(kTableRows * stride, 1);
                Memory<uint16_t> half(kTableRows * stride);
                for (int64_t i = 0; i < half.size(); ++i) half[i] = tests::rounded(type, plain[i]);
                Memory<float> out(kMostRows * stride);
                launch_embedding(
                    {.table = type == Type::kFloat32 ? static_cast<const void*>(plain.data()) : half.data(),
                     .type = type,
                     .stride = stride,
                     .index = indexed ? ids.data() : nullptr,
                     .offset = kOffset,
                     .rows = kRowCount,
                     .width = width,
                     .out = out.data(),
                     .out_stride = stride},
                    nullptr);
                for (int row = 0; row < kRows; ++row)
                    for (int i = 0; i < width; ++i) {
                        const int64_t from = ((indexed ? ids[row] : 0) + kOffset) * stride + i;
                        const float expected = held(type, plain[from]);
                        check.same("embedding", &out[row * stride + i], &expected, 1);
                    }
            }
}

void pool(Check& check) {
    const Memory<int32_t> cu_seqlens = {0, 5, 5, 6, 40}, count = {4};
    for (const int width : kWidths)
        for (const PoolKind kind : {PoolKind::kMean, PoolKind::kMax, PoolKind::kMeanSqrtLen}) {
            Memory<float> x(40 * width, 1);
            x[7 * width] = std::numeric_limits<float>::quiet_NaN();
            std::vector<float> expected(static_cast<size_t>(4 * width));
            for (int s = 0; s < 4; ++s)
                cpu().pool_f32({.x = x.data() + cu_seqlens[s] * width,
                                .x_stride = width,
                                .out = expected.data() + s * width,
                                .rows = cu_seqlens[s + 1] - cu_seqlens[s],
                                .n = width,
                                .kind = kind});
            const Outputs out(width, Type::kFloat16, /*aligned=*/false);
            launch_pool({.io = {.x = x.data(),
                                .x_stride = width,
                                .rows = {.count = count.data(), .most = kMostRows},
                                .width = width,
                                .out = out.output},
                         .cu_seqlens = cu_seqlens.data(),
                         .kind = kind},
                        nullptr);
            out.check(check, "pool of width " + std::to_string(width), expected.data(), /*rows=*/4);
        }
}

// The 16-bit roundings of the emulation itself: every number of the type is unchanged, and ties go to even.
void roundings(Check& check) {
    for (const Type type : {Type::kBfloat16, Type::kFloat16})
        for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
            const auto low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
            const double a = to_double(type, low), b = to_double(type, high);
            if (!std::isfinite(b)) break;
            const auto middle = static_cast<float>((a + b) / 2);  // exact: one bit more than the type has
            const uint16_t even = bits % 2 == 0 ? low : high;
            const uint16_t got[] = {rounded(type, static_cast<float>(a)), rounded(type, middle),
                                    rounded(type, std::nextafter(middle, 0.0f)),
                                    rounded(type, std::nextafter(middle, 1e38f))};
            const uint16_t expected[] = {low, even, low, high};
            check.same("rounding", got, expected, 4);
        }
}

}  // namespace

const std::vector<Case> kRowCases = {{"roundings", roundings},
                                     {"embedding", embedding},
                                     {"add", add},
                                     {"multiply", multiply},
                                     {"layer_norm", layer_norm},
                                     {"rms_norm", rms_norm},
                                     {"rotary", rotary},
                                     {"round", round},
                                     {"epilogue", epilogue},
                                     {"activation", activation},
                                     {"activation_range", activation_range},
                                     {"gather", gather},
                                     {"pool", pool},
                                     {"l2_normalize", l2_normalize}};

}  // namespace fastattn::cuda::tests
