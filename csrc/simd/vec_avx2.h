#pragma once
#include <immintrin.h>

namespace fastattn::FASTATTN_TARGET {

#define FA_INLINE static inline __attribute__((always_inline))

struct Vec {
    __m256 lo, hi;  // lanes 0-7, 8-15
};
struct Mask {
    __m256 lo, hi;  // all bits of a lane set or clear
};

inline constexpr int kTileVecs = 1;  // six rows of one Vec fill twelve of the sixteen registers

FA_INLINE Mask first_lanes(int n) {
    const __m256i count = _mm256_set1_epi32(n);
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))),
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)))};
}
FA_INLINE Vec zero() {
    return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
FA_INLINE Vec broadcast(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
FA_INLINE Vec load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
FA_INLINE Vec load_partial(const float* p, int n) {
    const Mask m = first_lanes(n);
    return {_mm256_maskload_ps(p, _mm256_castps_si256(m.lo)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi))};
}
FA_INLINE void store(float* p, Vec a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
FA_INLINE void store_partial(float* p, Vec a, int n) {
    const Mask m = first_lanes(n);
    _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), a.lo);
    _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), a.hi);
}

FA_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
FA_INLINE Vec add(Vec a, Vec b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
FA_INLINE Vec sub(Vec a, Vec b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
FA_INLINE Vec mul(Vec a, Vec b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
FA_INLINE Vec div(Vec a, Vec b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
FA_INLINE Vec sqrt(Vec a) {
    return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
FA_INLINE Vec abs(Vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
FA_INLINE Vec neg(Vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(a.lo, sign), _mm256_xor_ps(a.hi, sign)};
}
FA_INLINE Vec copysign(Vec a, Vec b) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(sign, a.lo), _mm256_and_ps(sign, b.lo)),
            _mm256_or_ps(_mm256_andnot_ps(sign, a.hi), _mm256_and_ps(sign, b.hi))};
}
FA_INLINE Vec max(Vec a, Vec b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
FA_INLINE Vec min(Vec a, Vec b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}

FA_INLINE Mask less(Vec a, Vec b) {
    return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
FA_INLINE Mask not_less(Vec a, Vec b) {
    return {_mm256_cmp_ps(a.lo, b.lo, _CMP_NLT_UQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_NLT_UQ)};
}
FA_INLINE Mask equal(Vec a, Vec b) {
    return {_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)};
}
FA_INLINE Mask is_nan(Vec a) {
    return {_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)};
}
FA_INLINE bool any(Mask m) {
    return _mm256_movemask_ps(_mm256_or_ps(m.lo, m.hi)) != 0;
}
FA_INLINE Vec select(Mask m, Vec a, Vec b) {
    return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}

FA_INLINE Vec round_even(Vec a) {
    return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

FA_INLINE __m256 power_of_two(__m256i n) {  // n in [-126, 127]
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
FA_INLINE __m256 times_pow2_wide(__m256 a, __m256 n) {
    const __m256i all = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(all, 1);
    // With a in [0.5, 2] the first product is exact, so the second one rounds once, denormal or not.
    return _mm256_mul_ps(_mm256_mul_ps(a, power_of_two(half)), power_of_two(_mm256_sub_epi32(all, half)));
}
FA_INLINE Vec times_pow2(Vec a, Vec n) {
    return {_mm256_mul_ps(a.lo, power_of_two(_mm256_cvtps_epi32(n.lo))),
            _mm256_mul_ps(a.hi, power_of_two(_mm256_cvtps_epi32(n.hi)))};
}
FA_INLINE Vec times_pow2_wide(Vec a, Vec n) {
    return {times_pow2_wide(a.lo, n.lo), times_pow2_wide(a.hi, n.hi)};
}

FA_INLINE float reduce_add(Vec a) {
    const __m256 x = _mm256_add_ps(a.lo, a.hi);
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
FA_INLINE float reduce_max(Vec a) {
    const __m256 x = _mm256_max_ps(a.lo, a.hi);
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

}  // namespace fastattn::FASTATTN_TARGET
