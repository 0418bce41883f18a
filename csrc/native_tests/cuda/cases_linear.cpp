// Linears: float32 has the CPU's bits, 16 bits have a derived bound. A row has the same bits among few rows and many.
#include "native_tests/cuda/testing.h"

namespace fastattn::cuda::tests {
namespace {

struct Size {
    int rows, n, k;
};
constexpr Size kSizes[] = {{1, 1, 1},     {1, 70, 127},  {3, 64, 128}, {16, 33, 129},
                           {17, 65, 260}, {65, 130, 96}, {70, 7, 300}, {2, 24, 770}};

struct Options {
    Activation activation;
    bool rough, bias, residual;
};
constexpr Options kOptions[] = {{Activation::kNone, false, false, false},
                                {Activation::kGeluTanh, false, true, false},
                                {Activation::kGeluErf, true, true, true},
                                {Activation::kNone, false, true, true}};

// Operands of a linear, and a launch for some of its rows.
struct Linear {
    Linear(Type type, Size size, bool aligned)
        : type(type),
          size(size),
          stride(type == Type::kFloat32 ? (aligned ? (size.k + 3) / 4 * 4 : size.k + 1) : row_elements(size.k)),
          bytes(type == Type::kFloat32 ? 4 : 2),
          x(size.rows * stride * bytes + 4),
          weight(size.n * stride * bytes + 4),
          bias(size.n, 3),
          residual(size.rows * int64_t{size.n}, 4) {
        fill(x, size.rows, 1);
        fill(weight, size.n, 2);
    }
    // 16-bit rows are zero after k, float32 rows are NaN.
    void fill(Memory<unsigned char>& memory, int rows, uint64_t stream) const {
        for (int row = 0; row < rows; ++row)
            for (int64_t i = 0; i < (type == Type::kFloat32 ? size.k : stride); ++i) {
                const float value = i < size.k ? number(stream, row, i) : 0.0f;
                if (type == Type::kFloat32)
                    reinterpret_cast<float*>(memory.data())[row * stride + i] = value;
                else
                    reinterpret_cast<uint16_t*>(memory.data())[row * stride + i] = rounded(type, value);
            }
    }
    float number(uint64_t stream, int row, int64_t i) const {
        return number_at(stream, static_cast<uint64_t>(row * int64_t{size.k} + i));
    }
    double held_number(uint64_t stream, int row, int64_t i) const { return held(type, number(stream, row, i)); }

    // Rows [begin, begin + rows), with room for `most`. Returns [rows, n].
    std::vector<float> run(const Options& options, int begin, int rows, int most, std::vector<uint16_t>* half) const {
        const Memory<int32_t> count = {rows};
        Memory<float> out((most + 1) * int64_t{size.n});
        Memory<uint16_t> out_rounded((most + 1) * row_elements(size.n));
        launch_linear({.x = x.data() + begin * stride * bytes,
                       .x_stride = stride,
                       .weight = weight.data(),
                       .weight_stride = stride,
                       .type = type,
                       .k = size.k,
                       .epilogue = {.bias = options.bias ? bias.data() : nullptr,
                                    .residual = options.residual ? residual.data() + begin * int64_t{size.n} : nullptr,
                                    .residual_stride = size.n,
                                    .activation = options.activation,
                                    .rough = options.rough,
                                    .rows = {.count = count.data(), .most = most},
                                    .n = size.n,
                                    .out = {.data = out.data(),
                                            .stride = size.n,
                                            .rounded = out_rounded.data(),
                                            .rounded_stride = row_elements(size.n),
                                            .type = Type::kBfloat16}}},
                      nullptr);
        if (half) *half = {out_rounded.data(), out_rounded.data() + rows * row_elements(size.n)};
        return {out.data(), out.data() + rows * int64_t{size.n}};
    }

    Type type;
    Size size;
    int64_t stride;
    int bytes;
    Memory<unsigned char> x, weight;
    Memory<float> bias, residual;
};

std::string name_of(const Size& size) {
    return "linear of " + std::to_string(size.rows) + " x " + std::to_string(size.n) + " x " + std::to_string(size.k);
}

// The CPU's kernel. Its rough activations belong to formats that round, so they are applied separately.
std::vector<float> cpu_float32(const Linear& linear, const Options& options) {
    const auto [rows, n, k] = linear.size;
    const int panels = (n + kPanelWidth - 1) / kPanelWidth;
    std::vector<float> packed(static_cast<size_t>(panels) * kPanelWidth * static_cast<size_t>(k)), x, out;
    for (int column = 0; column < n; ++column)
        for (int i = 0; i < k; ++i)
            packed[static_cast<size_t>((column / kPanelWidth * k + i) * kPanelWidth + column % kPanelWidth)] =
                linear.number(2, column, i);
    for (int row = 0; row < rows; ++row)
        for (int i = 0; i < k; ++i) x.push_back(linear.number(1, row, i));
    out.resize(static_cast<size_t>(rows * n));
    std::vector<float> scratch(kLinearScratch);
    const KernelTable& cpu = scalar::kernel_table();
    cpu.linear[0]({.a = x.data(),
                   .a_stride = k,
                   .a_scales = nullptr,
                   .panels = packed.data(),
                   .scales = nullptr,
                   .sums = nullptr,
                   .bias = options.bias ? linear.bias.data() : nullptr,
                   .residual = options.residual && !options.rough ? linear.residual.data() : nullptr,
                   .residual_stride = n,
                   .c = out.data(),
                   .c_stride = n,
                   .scratch = scratch.data(),
                   .m = rows,
                   .words = k,
                   .n = n,
                   .panel_begin = 0,
                   .panel_end = panels,
                   .activation = options.rough ? Activation::kNone : options.activation});
    if (options.rough) {
        cpu.activation_f32({.x = out.data(),
                            .out = out.data(),
                            .n = static_cast<int64_t>(out.size()),
                            .activation = options.activation,
                            .rough = true});
        for (size_t i = 0; options.residual && i < out.size(); ++i) out[i] += linear.residual[static_cast<int64_t>(i)];
    }
    return out;
}

void float32_as_cpu(Check& check) {
    for (const Size& size : kSizes)
        for (const bool aligned : {true, false})
            for (const Options& options : kOptions) {
                const Linear linear(Type::kFloat32, size, aligned);
                std::vector<uint16_t> half;
                const std::vector<float> expected = cpu_float32(linear, options);
                const std::vector<float> out = linear.run(options, 0, size.rows, size.rows + 3, &half);
                check.same(name_of(size), out.data(), expected.data(), static_cast<int64_t>(expected.size()));
                for (int row = 0; row < size.rows; ++row)
                    for (int i = 0; i < row_elements(size.n); ++i) {
                        const uint16_t bits =
                            i < size.n ? rounded(Type::kBfloat16, expected[static_cast<size_t>(row * size.n + i)])
                                       : uint16_t{0};
                        check.same(name_of(size), &half[static_cast<size_t>(row * row_elements(size.n) + i)], &bits, 1);
                    }
            }
}

void within_bounds(Check& check) {
    for (const Type type : {Type::kBfloat16, Type::kFloat16})
        for (const Size& size : kSizes) {
            const Linear linear(type, size, /*aligned=*/true);
            const Options options{Activation::kNone, false, true, true};
            const std::vector<float> out = linear.run(options, 0, size.rows, size.rows, nullptr);
            for (int row = 0; row < size.rows; ++row)
                for (int column = 0; column < size.n; ++column) {
                    double expected = 0.0, magnitude = 0.0;
                    for (int i = 0; i < size.k; ++i) {
                        const double product = linear.held_number(1, row, i) * linear.held_number(2, column, i);
                        expected += product;
                        magnitude += std::fabs(product);
                    }
                    const double bias = linear.bias[column], residual = linear.residual[row * int64_t{size.n} + column];
                    expected += bias + residual;
                    magnitude += std::fabs(bias) + std::fabs(residual);
                    // k + 2 additions; a tensor core may truncate each of them.
                    check.within(name_of(size), out[static_cast<size_t>(row * size.n + column)], expected,
                                 (size.k + 2) * 2 * kHalfUlp * magnitude);
                }
        }
}

// Compares each row computed in a small step with the same row in a step of many rows.
void alone_as_in_batch(Check& check) {
    for (const Type type : {Type::kFloat32, Type::kBfloat16, Type::kFloat16})
        for (const Size& size : kSizes) {
            const Linear linear(type, size, /*aligned=*/true);
            for (const Options& options : kOptions) {
                const std::vector<float> all = linear.run(options, 0, size.rows, size.rows + 64, nullptr);
                for (int row = 0; row < size.rows; row += 13) {
                    const std::vector<float> alone = linear.run(options, row, 1, 1, nullptr);
                    check.same(name_of(size), alone.data(), all.data() + row * size.n, size.n);
                }
            }
        }
}

}  // namespace

const std::vector<Case> kLinearCases = {{"linear_float32_as_cpu", float32_as_cpu},
                                        {"linear_within_bounds", within_bounds},
                                        {"linear_alone_as_in_batch", alone_as_in_batch}};

}  // namespace fastattn::cuda::tests
