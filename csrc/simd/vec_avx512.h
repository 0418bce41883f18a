#pragma once
// GCC 12 takes the deliberately undefined operands inside these intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace fastattn::FASTATTN_TARGET {

#define FA_INLINE static inline __attribute__((always_inline))

struct Vec {
    __m512 v;
};
struct Mask {
    __mmask16 m;
};

inline constexpr int kTileVecs = 4;

FA_INLINE Mask first_lanes(int n) {
    return {static_cast<__mmask16>((1u << n) - 1u)};
}
FA_INLINE Vec zero() {
    return {_mm512_setzero_ps()};
}
FA_INLINE Vec broadcast(float x) {
    return {_mm512_set1_ps(x)};
}
FA_INLINE Vec load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
FA_INLINE Vec load_partial(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(first_lanes(n).m, p)};
}
FA_INLINE void store(float* p, Vec a) {
    _mm512_storeu_ps(p, a.v);
}
FA_INLINE void store_partial(float* p, Vec a, int n) {
    _mm512_mask_storeu_ps(p, first_lanes(n).m, a.v);
}

FA_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
FA_INLINE Vec add(Vec a, Vec b) {
    return {_mm512_add_ps(a.v, b.v)};
}
FA_INLINE Vec sub(Vec a, Vec b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
FA_INLINE Vec mul(Vec a, Vec b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
FA_INLINE Vec div(Vec a, Vec b) {
    return {_mm512_div_ps(a.v, b.v)};
}
FA_INLINE Vec sqrt(Vec a) {
    return {_mm512_sqrt_ps(a.v)};
}
FA_INLINE Vec abs(Vec a) {
    return {_mm512_abs_ps(a.v)};
}
FA_INLINE Vec neg(Vec a) {
    return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))};
}
FA_INLINE Vec copysign(Vec a, Vec b) {
    const __m512 sign = _mm512_set1_ps(-0.0f);
    return {_mm512_or_ps(_mm512_andnot_ps(sign, a.v), _mm512_and_ps(sign, b.v))};
}
FA_INLINE Vec max(Vec a, Vec b) {
    return {_mm512_max_ps(a.v, b.v)};
}
FA_INLINE Vec min(Vec a, Vec b) {
    return {_mm512_min_ps(a.v, b.v)};
}

FA_INLINE Mask less(Vec a, Vec b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
FA_INLINE Mask not_less(Vec a, Vec b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ)};
}
FA_INLINE Mask equal(Vec a, Vec b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)};
}
FA_INLINE Mask is_nan(Vec a) {
    return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)};
}
FA_INLINE bool any(Mask m) {
    return m.m != 0;
}
FA_INLINE Vec select(Mask m, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(m.m, b.v, a.v)};
}

FA_INLINE Vec round_even(Vec a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FA_INLINE Vec times_pow2(Vec a, Vec n) {
    return {_mm512_scalef_ps(a.v, n.v)};
}
FA_INLINE Vec times_pow2_wide(Vec a, Vec n) {
    return {_mm512_scalef_ps(a.v, n.v)};
}

FA_INLINE float reduce_add(Vec a) {
    __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
FA_INLINE float reduce_max(Vec a) {
    __m256 x = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

}  // namespace fastattn::FASTATTN_TARGET
