// One lane per GPU thread: the part of vec.h that kernels/math.h needs, so that its functions are written once. g++
// compiles the same header for the emulation (csrc/native_tests/cuda_emulation.h). Operations are IEEE and round to
// nearest even with any compiler flags: the intrinsics are never contracted.
#pragma once
#include <math.h>

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FA_INLINE static __device__ __forceinline__
#else
#define FA_INLINE static inline __attribute__((always_inline))
#endif

namespace fastattn::FASTATTN_TARGET {

using Vec = float;
using Mask = bool;

#ifdef __CUDA_ARCH__
FA_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return __fmaf_rn(a, b, c);
}
FA_INLINE Vec add(Vec a, Vec b) {
    return __fadd_rn(a, b);
}
FA_INLINE Vec sub(Vec a, Vec b) {
    return __fsub_rn(a, b);
}
FA_INLINE Vec mul(Vec a, Vec b) {
    return __fmul_rn(a, b);
}
FA_INLINE Vec div(Vec a, Vec b) {
    return __fdiv_rn(a, b);
}
FA_INLINE uint32_t bits_of(float a) {
    return __float_as_uint(a);
}
FA_INLINE float float_of(uint32_t bits) {
    return __uint_as_float(bits);
}
#else
FA_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return __builtin_fmaf(a, b, c);
}
FA_INLINE Vec add(Vec a, Vec b) {
    return a + b;
}
FA_INLINE Vec sub(Vec a, Vec b) {
    return a - b;
}
FA_INLINE Vec mul(Vec a, Vec b) {
    return a * b;
}
FA_INLINE Vec div(Vec a, Vec b) {
    return a / b;
}
FA_INLINE uint32_t bits_of(float a) {
    uint32_t bits;
    std::memcpy(&bits, &a, sizeof bits);
    return bits;
}
FA_INLINE float float_of(uint32_t bits) {
    float a;
    std::memcpy(&a, &bits, sizeof a);
    return a;
}
#endif

FA_INLINE Vec round_even(Vec a) {
    return rintf(a);
}
FA_INLINE Vec abs(Vec a) {
    return fabsf(a);
}
FA_INLINE Vec copysign(Vec a, Vec b) {
    return copysignf(a, b);
}
FA_INLINE Vec zero() {
    return 0.0f;
}
FA_INLINE Vec broadcast(float a) {
    return a;
}
FA_INLINE Vec neg(Vec a) {
    return -a;
}
FA_INLINE Vec max(Vec a, Vec b) {
    return a > b ? a : b;
}
FA_INLINE Vec min(Vec a, Vec b) {
    return a < b ? a : b;
}
FA_INLINE Mask less(Vec a, Vec b) {
    return a < b;
}
FA_INLINE Vec select(Mask mask, Vec a, Vec b) {
    return mask ? a : b;
}
// In two steps, because 2^n alone may not be a normal number. The first step is exact.
FA_INLINE Vec times_pow2_wide(Vec a, Vec n) {
    const int all = static_cast<int>(n), half = all >> 1;
    const auto power = [](int exponent) { return float_of(static_cast<uint32_t>(exponent + 127) << 23); };
    return mul(mul(a, power(half)), power(all - half));
}

}  // namespace fastattn::FASTATTN_TARGET
