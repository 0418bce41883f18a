// Sixteen float lanes, whatever the hardware: one zmm, two ymm, four NEON registers or a plain array.
// Because every target computes on the same sixteen lanes, every reduction has the same tree and every kernel,
// written once on this header, gives the same bits on every target (docs/numerics.md).
//
// Each vec_<target>.h provides, in namespace fastattn::<target>:
//   struct Vec, struct Mask
//   constexpr int kTileVecs            vectors across n in the register tile of the matrix product
//   zero() broadcast(float) load(p) load_partial(p, n) store(p, v) store_partial(p, v, n)   n in 0..16, rest is 0
//   fma(a, b, c) = a * b + c, rounded once
//   add sub mul div sqrt abs neg
//   max(a, b) = a > b ? a : b      min(a, b) = a < b ? a : b      (a NaN in either gives b, as on x86)
//   copysign(a, b)                     magnitude of a, sign of b
//   less(a, b) -> Mask, not_less(a, b) -> Mask (also where either is NaN), equal(a, b) -> Mask, first_lanes(n) -> Mask, select(mask, a, b) = mask ? a : b, is_nan(a) ->
//   Mask, any(mask) round_even(a)                      to the nearest integer, ties to even times_pow2(a, n) a * 2^n
//   for integer-valued n in [-126, 127]: exponent arithmetic, one rounding times_pow2_wide(a, n)              the same
//   for n in [-252, 254], but only for a in [0.5, 2] reduce_add(v) reduce_max(v)        lanes i and i + 8, then i + 4,
//   i + 2, i + 1
#pragma once

#include <cstdint>

#define FASTATTN_LANES 16

#if defined(FASTATTN_TARGET_avx512)
#include "simd/vec_avx512.h"
#elif defined(FASTATTN_TARGET_avx2)
#include "simd/vec_avx2.h"
#elif defined(FASTATTN_TARGET_neon)
#include "simd/vec_neon.h"
#else
#include "simd/vec_scalar.h"
#endif

namespace fastattn::FASTATTN_TARGET {
inline constexpr int kLanes = FASTATTN_LANES;
inline constexpr int kTileRows = 6;
inline constexpr int kLineFloats = 16;  // of a cache line

// Rows of a head lie far apart and are a few lines each, too short for the hardware to see them coming.
FA_INLINE void prefetch_rows(const float* p, int64_t stride, int rows, int width) {
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < width; i += kLineFloats) __builtin_prefetch(p + r * stride + i);
}
}  // namespace fastattn::FASTATTN_TARGET
