// Sixteen float lanes on any hardware: one zmm, two ymm, four NEON registers or a plain array.
// All targets compute on the same sixteen lanes, so every reduction has the same tree. A kernel is written once on this
// header and gives the same bits on every target (docs/numerics.md).
//
// Each vec_<target>.h provides, in namespace fastattn::<target>:
//   struct Vec, struct Mask
//   constexpr int kTileVecs            vectors along n in the register tile of the matrix product
//   zero() broadcast(float) load(p) load_partial(p, n) store(p, v) store_partial(p, v, n)   n in 0..16, the rest is 0
//   stream(p, v), stream_bf16(p, v), end_streams()
//                                      stores that bypass the caches, of floats or bfloat16; p is a multiple of the
//                                      bytes stored; other threads see them after end_streams; only with AVX-512
//   fma(a, b, c) = a * b + c, rounded once
//   add sub mul div sqrt abs neg
//   max(a, b) = a > b ? a : b      min(a, b) = a < b ? a : b      (a NaN in either gives b, as on x86)
//   copysign(a, b)                     magnitude of a, sign of b
//   less(a, b) not_less(a, b) equal(a, b) -> Mask     not_less is also true if either is NaN
//   first_lanes(n) -> Mask, is_nan(a) -> Mask, any(mask)
//   select(mask, a, b)                 mask ? a : b
//   round_even(a)                      to the nearest integer, ties to even
//   times_pow2(a, n)                   a * 2^n for integer-valued n in [-126, 127], rounded once
//   times_pow2_wide(a, n)              the same for n in [-252, 254], but only for a in [0.5, 2]
//   reduce_add(v) reduce_max(v)        lanes i and i + 8, then i + 4, i + 2, i + 1
//   rotate_pairs(a, t)                 lanes 2 i and 2 i + 1: (a0, a1) rotated by the angle with cosine t0 and sine t1,
//                                      as fma(a0, t0, -(a1 t1)) and fma(a1, t0, a0 t1)
//
//   struct Words                       sixteen 32-bit lanes: an integer, two bfloat16 or four int8 each
//   zero_words() broadcast_word(x) load_words(p) store_words(p, w) as_floats(w)
//   to_float(w) round_to_int(v)        to nearest, ties to even; v within the range of int32
//   add_int(a, b) mul_int(a, b)        modulo 2^32
//   as_words(v) and_words(a, b) or_words(a, b) shift_left<bits>(w)
//   transpose(Words (&w)[16])          swaps lane i of w[j] with lane j of w[i]
//   magnitude_bits(v) -> Words         the bits of |v|
//   lookup(p, index)                   p[index] in each lane; index in 0..15. Reads sixteen floats
//   max_unsigned(a, b)                 the larger one; NaN is above infinity if both are magnitude_bits
//   load_bf16(p) -> Vec, store_bf16(p, v)    sixteen bfloat16, rounded to nearest even; NaN stays NaN
//   round_bf16(v) -> Words             the same as store_bf16, in the low half of each lane
//   load_int8(p) -> Words, store_int8(p, w)    sixteen bytes, sign-extended; stores the low byte of each lane
//   pack_int8(a, b, c, d) -> Words     their 64 numbers as bytes, in order; all must be within int8
//   interleave_bytes(Words (&w)[4])    byte j of lane l of w[i] becomes the former byte 16 i + l of w[j]
//   dot_bf16(sum, a, b)                sum + a[0] b[0] + a[1] b[1] in each lane, with the rounding of the instruction;
//                                      only if FASTATTN_HAS_DOT_BF16 is 1
//   fma_even_bf16(a, b, c)             a[0] b[0] + c in each lane, rounded once
//   fma_odd_bf16(a, b, c)              a[1] b[1] + c
//   dot_int8(sum, a, b)                sum + a[0] b[0] + ... + a[3] b[3], exact; bytes in [-127, 127]. The bytes of `a`
//                                      must have kInt8Offset added; the sum then includes kInt8Offset times the bytes
//                                      of `b`. Bytes of `a` in [0, 127] may also be passed without it.
//   add_int8_offset(w)                 adds kInt8Offset to every byte
//   unpack_int4(w, low, high)          nibbles of each byte minus 8, as int8
//   scale_int8(w, scale)               the four bytes of each lane times the lane's integer; products must fit in int8
//
//   PairSums<rows>                     sums of int8 products, two words at a time; only with FASTATTN_HAS_INT8_PAIRS,
//                                      where kInt8Offset is 0 and kTileVecs is 1
//     zero()
//     add_products(a, a_stride, b, b_stride)   adds a[r, 0] b[0] + a[r, 1] b[1] to row r; a_stride in words, b_stride
//                                              in bytes
//     row(r) -> Words
#pragma once

#include <cstdint>

#define FASTATTN_LANES 16

#if defined(FASTATTN_TARGET_cuda_lane)  // one lane; only what kernels/math.h needs
#include "simd/vec_cuda.h"
#else

#define FA_INLINE static inline __attribute__((always_inline))

#if defined(FASTATTN_TARGET_avx512_bf16)
#define FASTATTN_HAS_DOT_BF16 1
#else
#define FASTATTN_HAS_DOT_BF16 0
#endif
#if defined(FASTATTN_TARGET_amx)
#define FASTATTN_HAS_TILES 1
#else
#define FASTATTN_HAS_TILES 0
#endif
#if defined(FASTATTN_TARGET_neon_i8mm)
#define FASTATTN_HAS_BF16_FMA 1
#else
#define FASTATTN_HAS_BF16_FMA 0
#endif
#if defined(FASTATTN_TARGET_neon_i8mm) || defined(FASTATTN_TARGET_avx2)
#define FASTATTN_HAS_INT8_PAIRS 1
#else
#define FASTATTN_HAS_INT8_PAIRS 0
#endif

#if defined(FASTATTN_TARGET_avx512) || defined(FASTATTN_TARGET_avx512_vnni) || defined(FASTATTN_TARGET_avx512_bf16) || \
    defined(FASTATTN_TARGET_amx)
#include "simd/vec_avx512.h"
#elif defined(FASTATTN_TARGET_avx2)
#include "simd/vec_avx2.h"
#elif defined(FASTATTN_TARGET_neon) || defined(FASTATTN_TARGET_neon_dotprod) || defined(FASTATTN_TARGET_neon_i8mm)
#include "simd/vec_neon.h"
#else
#include "simd/vec_scalar.h"
#endif

namespace fastattn::FASTATTN_TARGET {
inline constexpr int kLanes = FASTATTN_LANES;
inline constexpr int kTileRows = 6;
inline constexpr int kLineFloats = 16;  // floats per cache line
// Adjacent columns of bfloat16 and int8 panels (kernels/formats.h).
inline constexpr int kStripColumns = FASTATTN_HAS_TILES ? 16 : 64;

#if !FASTATTN_HAS_BF16_FMA
FA_INLINE Vec fma_even_bf16(Words a, Words b, Vec c) {
    return fma(as_floats(shift_left<16>(a)), as_floats(shift_left<16>(b)), c);
}
FA_INLINE Vec fma_odd_bf16(Words a, Words b, Vec c) {
    const Words high = broadcast_word(static_cast<int32_t>(0xffff0000u));
    return fma(as_floats(and_words(a, high)), as_floats(and_words(b, high)), c);
}
#endif

#ifndef FASTATTN_HAS_INT8_OFFSET
inline constexpr int kInt8Offset = 0;
FA_INLINE Words add_int8_offset(Words a) {
    return a;
}
#endif

// Prefetches a cache line. Takes an address, because it may be outside of any array, where a pointer is undefined.
template <bool kWrite = false>
FA_INLINE void prefetch_line(uintptr_t address) {
    __builtin_prefetch(reinterpret_cast<const void*>(address), kWrite);
}
FA_INLINE uintptr_t address_of(const void* p) {
    return reinterpret_cast<uintptr_t>(p);
}

// Rows of a head are far apart and only a few cache lines long, too short for the hardware prefetcher.
FA_INLINE void prefetch_rows(const float* p, int64_t stride, int rows, int width) {
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < width; i += kLineFloats) __builtin_prefetch(p + r * stride + i);
}
}  // namespace fastattn::FASTATTN_TARGET

#endif
