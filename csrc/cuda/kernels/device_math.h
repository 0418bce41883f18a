// The functions of kernels/math.h on one float, with the CPU's bits, and functions that write results.
#pragma once
#include "cuda/kernels/device.h"

#define FASTATTN_TARGET cuda_lane
#define FASTATTN_TARGET_cuda_lane 1
#include "kernels/math.h"
#undef FASTATTN_TARGET

namespace fastattn::cuda {

namespace math = fastattn::cuda_lane;
inline constexpr float kInf = math::kInf;

template <bool kRough>
FA_DEVICE float activate_as(float x, Activation activation) {
    switch (activation) {
        case Activation::kNone: return x;
        case Activation::kGeluErf: return math::activate<Activation::kGeluErf, kRough>(x);
        case Activation::kGeluTanh: return math::activate<Activation::kGeluTanh, kRough>(x);
        case Activation::kRelu: return math::activate<Activation::kRelu>(x);
        case Activation::kTanh: return math::activate<Activation::kTanh>(x);
        case Activation::kSilu: return math::activate<Activation::kSilu>(x);
        case Activation::kSigmoid: return math::activate<Activation::kSigmoid>(x);
    }
    return x;
}
FA_DEVICE float activate(float x, Activation activation, bool rough) {
    return rough ? activate_as<true>(x, activation) : activate_as<false>(x, activation);
}

FA_DEVICE uint16_t round_to(Type type, float x) {
    return static_cast<uint16_t>(type == Type::kBfloat16 ? round_pair<Bf16>(x, 0.0f) : round_pair<F16>(x, 0.0f));
}
FA_DEVICE uint32_t round_pair_to(Type type, float low, float high) {
    return type == Type::kBfloat16 ? round_pair<Bf16>(low, high) : round_pair<F16>(low, high);
}

// Element i of a row of `type`.
FA_DEVICE float read(const void* row, int64_t i, Type type) {
    if (type == Type::kFloat32) return static_cast<const float*>(row)[i];
    const uint16_t bits = static_cast<const uint16_t*>(row)[i];
    return type == Type::kBfloat16 ? float_of(Bf16{bits}) : float_of(F16{bits});
}

// Writes column i of a row of `width`. The thread of the last column also clears the padding after it.
FA_DEVICE void write(const Output& out, int64_t row, int i, int width, float x) {
    if (out.data != nullptr) out.data[row * out.stride + i] = x;
    if (out.rounded == nullptr) return;
    uint16_t* to = static_cast<uint16_t*>(out.rounded) + row * out.rounded_stride;
    to[i] = round_to(out.type, x);
    if (i == width - 1)
        for (int j = width; j < row_elements(width); ++j) to[j] = 0;
}

// Four columns at once, from a multiple of four on, in rows that start at multiples of 16 bytes.
struct Four {
    float x[4];
};
FA_DEVICE Four load_four(const float* p) {
    const Words16 words = load_16(p);
    return {{float_from_word(words.x), float_from_word(words.y), float_from_word(words.z), float_from_word(words.w)}};
}
FA_DEVICE void write_four(const Output& out, int64_t row, int i, int width, const Four& v) {
    if (out.data != nullptr)
        store_16(out.data + row * out.stride + i, {word_of(v.x[0]), word_of(v.x[1]), word_of(v.x[2]), word_of(v.x[3])});
    if (out.rounded == nullptr) return;
    uint32_t* to = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(out.rounded) + row * out.rounded_stride + i);
    to[0] = round_pair_to(out.type, v.x[0], v.x[1]);
    to[1] = round_pair_to(out.type, v.x[2], v.x[3]);
    if (i + 4 == width && width % 8 != 0) to[2] = to[3] = 0;
}

// Applies an epilogue to four sums of a linear. Without a bias or a residual, theirs are not read.
FA_DEVICE void finish(const Epilogue& epilogue, Four& v, const Four& bias, const Four& residual) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (epilogue.bias) v.x[j] += bias.x[j];
        v.x[j] = activate(v.x[j], epilogue.activation, epilogue.rough);
        if (epilogue.residual) v.x[j] += residual.x[j];
    }
}

// Whether the rows of a launch can be read and written in fours.
FA_BOTH bool by_four(const void* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
}
FA_BOTH bool by_four(const Output& out, int32_t width) {
    return width % 4 == 0 && by_four(out.data, out.stride);
}

// Writes the first n of four columns, all at once if rows and column allow it.
FA_DEVICE void write_some(const Output& out, int64_t row, int i, int width, const Four& v, int n) {
    if (n >= 4 && i % 4 == 0 && by_four(out, width)) return write_four(out, row, i, width, v);
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (j < n) write(out, row, i + j, width, v.x[j]);
}

}  // namespace fastattn::cuda
