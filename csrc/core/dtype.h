// Element types of checkpoints, and their conversion to float32.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "core/error.h"

namespace fastattn {

enum class DType { kF32, kF16, kBF16, kF64, kU8 };  // kU8: the bytes of a packed weight

inline DType dtype_from_name(std::string_view name) {
    if (name == "F32") return DType::kF32;
    if (name == "F16") return DType::kF16;
    if (name == "BF16") return DType::kBF16;
    if (name == "F64") return DType::kF64;
    throw Error(ErrorKind::kDtype, "dtype: expected F64, F32, F16 or BF16, got " + std::string(name.substr(0, 40)));
}

inline int64_t dtype_bytes(DType dtype) {
    return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : dtype == DType::kU8 ? 1 : 2;
}

inline double load_f64(const std::byte* src, int64_t i) {
    double x;
    std::memcpy(&x, src + 8 * i, 8);
    return x;
}

inline float float_from_bf16(uint16_t x) {
    return std::bit_cast<float>(uint32_t{x} << 16);
}

inline float float_from_f16(uint16_t x) {
    const uint32_t sign = uint32_t{x & 0x8000u} << 16;
    const uint32_t magnitude = x & 0x7fffu;
    if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    // Put exponent and mantissa in place and rescale by 2^112. This is exact for both normal and subnormal halves.
    const float scaled = std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>(uint32_t{239} << 23);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | sign);
}

// Converts n elements of `dtype` at `src` (any alignment) to floats. float64 is rounded to nearest even.
inline void to_float(const std::byte* src, DType dtype, int64_t n, float* dst) {
    if (dtype == DType::kF32) {
        std::memcpy(dst, src, static_cast<size_t>(n) * 4);
        return;
    }
    if (dtype == DType::kF64) {
        for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<float>(load_f64(src, i));
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        uint16_t x;
        std::memcpy(&x, src + 2 * i, 2);
        dst[i] = dtype == DType::kF16 ? float_from_f16(x) : float_from_bf16(x);
    }
}

// Whether a finite number among the n float64 at `src` became infinite in `floats`. `found` receives the first one.
inline bool beyond_float32(const std::byte* src, const float* floats, int64_t n, double* found) {
    for (int64_t i = 0; i < n; ++i)
        if (std::isinf(floats[i]) && std::isfinite(load_f64(src, i))) {
            *found = load_f64(src, i);
            return true;
        }
    return false;
}

}  // namespace fastattn
