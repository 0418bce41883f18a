// Element types of checkpoints, and their conversion to float32.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "core/error.h"

namespace fastattn {

enum class DType { kF32, kF16, kBF16 };

inline DType dtype_from_name(std::string_view name) {
    if (name == "F32") return DType::kF32;
    if (name == "F16") return DType::kF16;
    if (name == "BF16") return DType::kBF16;
    throw Error(ErrorKind::kDtype, "dtype: expected F32, F16 or BF16, got " + std::string(name));
}

inline int64_t dtype_bytes(DType dtype) {
    return dtype == DType::kF32 ? 4 : 2;
}

inline float float_from_bf16(uint16_t x) {
    return std::bit_cast<float>(uint32_t{x} << 16);
}

inline float float_from_f16(uint16_t x) {
    const uint32_t sign = uint32_t{x & 0x8000u} << 16;
    const uint32_t magnitude = x & 0x7fffu;
    if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    // Put exponent and mantissa in place and rescale by 2^112: exact for normal and subnormal halves alike.
    const float scaled = std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>(uint32_t{239} << 23);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | sign);
}

// n elements of `dtype` at `src` (any alignment) to floats.
inline void to_float(const std::byte* src, DType dtype, int64_t n, float* dst) {
    if (dtype == DType::kF32) {
        std::memcpy(dst, src, static_cast<size_t>(n) * 4);
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        uint16_t x;
        std::memcpy(&x, src + 2 * i, 2);
        dst[i] = dtype == DType::kF16 ? float_from_f16(x) : float_from_bf16(x);
    }
}

}  // namespace fastattn
