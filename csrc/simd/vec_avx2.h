#pragma once
#include <immintrin.h>

#include <cstddef>

namespace fastattn::FASTATTN_TARGET {

struct Vec {
    __m256 lo, hi;  // lanes 0-7, 8-15
};
struct Mask {
    __m256 lo, hi;  // all bits of a lane set or clear
};

inline constexpr int kTileVecs = 1;  // six rows of one Vec use twelve of the sixteen registers

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

#define FA_BINARY(type, name, intrinsic)                       \
    FA_INLINE type name(type a, type b) {                      \
        return {intrinsic(a.lo, b.lo), intrinsic(a.hi, b.hi)}; \
    }

FA_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
FA_BINARY(Vec, add, _mm256_add_ps)
FA_BINARY(Vec, sub, _mm256_sub_ps)
FA_BINARY(Vec, mul, _mm256_mul_ps)
FA_BINARY(Vec, div, _mm256_div_ps)
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
FA_BINARY(Vec, max, _mm256_max_ps)
FA_BINARY(Vec, min, _mm256_min_ps)

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
    // With a in [0.5, 2] the first product is exact, so the result is rounded only once, even if it is denormal.
    return _mm256_mul_ps(_mm256_mul_ps(a, power_of_two(half)), power_of_two(_mm256_sub_epi32(all, half)));
}
FA_INLINE Vec times_pow2(Vec a, Vec n) {
    return {_mm256_mul_ps(a.lo, power_of_two(_mm256_cvtps_epi32(n.lo))),
            _mm256_mul_ps(a.hi, power_of_two(_mm256_cvtps_epi32(n.hi)))};
}
FA_INLINE Vec times_pow2_wide(Vec a, Vec n) {
    return {times_pow2_wide(a.lo, n.lo), times_pow2_wide(a.hi, n.hi)};
}
FA_INLINE __m256 rotate_pairs(__m256 a, __m256 t) {
    const __m256 other = _mm256_mul_ps(_mm256_permute_ps(a, 0b10110001), _mm256_movehdup_ps(t));
    return _mm256_fmaddsub_ps(a, _mm256_moveldup_ps(t), other);
}
FA_INLINE Vec rotate_pairs(Vec a, Vec t) {
    return {rotate_pairs(a.lo, t.lo), rotate_pairs(a.hi, t.hi)};
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

struct Words {
    __m256i lo, hi;
};

FA_INLINE Words zero_words() {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
FA_INLINE Words broadcast_word(int32_t x) {
    return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
FA_INLINE Words load_words(const void* p) {
    const auto* at = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
FA_INLINE void store_words(void* p, Words a) {
    auto* at = static_cast<__m256i*>(p);
    _mm256_storeu_si256(at, a.lo);
    _mm256_storeu_si256(at + 1, a.hi);
}
FA_INLINE Vec as_floats(Words a) {
    return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
FA_INLINE Vec to_float(Words a) {
    return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
FA_INLINE Words round_to_int(Vec a) {
    return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
FA_BINARY(Words, add_int, _mm256_add_epi32)
FA_BINARY(Words, max_unsigned, _mm256_max_epu32)
FA_INLINE Words magnitude_bits(Vec a) {
    const __m256i bits = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(a.lo), bits), _mm256_and_si256(_mm256_castps_si256(a.hi), bits)};
}
FA_BINARY(Words, mul_int, _mm256_mullo_epi32)
FA_INLINE __m256 lookup(__m256 low, __m256 high, __m256i index) {
    // The sign bit of a lane, which chooses, is bit 3 of the index.
    const __m256 from_high = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), from_high);
}
FA_INLINE Vec lookup(const float* p, Words index) {
    const __m256 low = _mm256_loadu_ps(p), high = _mm256_loadu_ps(p + 8);
    return {lookup(low, high, index.lo), lookup(low, high, index.hi)};
}

FA_INLINE Words as_words(Vec a) {
    return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
FA_BINARY(Words, and_words, _mm256_and_si256)
FA_BINARY(Words, or_words, _mm256_or_si256)
template <int kBits>
FA_INLINE Words shift_left(Words a) {
    return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
FA_INLINE __m256i pack_int8(Words a, Words b) {  // 32 numbers
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(a.lo, a.hi), _mm256_packs_epi32(b.lo, b.hi));
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
FA_INLINE Words pack_int8(Words a, Words b, Words c, Words d) {
    return {pack_int8(a, b), pack_int8(c, d)};
}
FA_INLINE void interleave_bytes(__m256i (&w)[4]) {  // 32 bytes of each, in order
    const __m256i ab = _mm256_unpacklo_epi8(w[0], w[1]), ab_ = _mm256_unpackhi_epi8(w[0], w[1]);
    const __m256i cd = _mm256_unpacklo_epi8(w[2], w[3]), cd_ = _mm256_unpackhi_epi8(w[2], w[3]);
    const __m256i x0 = _mm256_unpacklo_epi16(ab, cd), x1 = _mm256_unpackhi_epi16(ab, cd);
    const __m256i x2 = _mm256_unpacklo_epi16(ab_, cd_), x3 = _mm256_unpackhi_epi16(ab_, cd_);
    w[0] = _mm256_permute2x128_si256(x0, x1, 0x20);
    w[1] = _mm256_permute2x128_si256(x2, x3, 0x20);
    w[2] = _mm256_permute2x128_si256(x0, x1, 0x31);
    w[3] = _mm256_permute2x128_si256(x2, x3, 0x31);
}
FA_INLINE void interleave_bytes(Words (&w)[4]) {
    __m256i lo[4] = {w[0].lo, w[1].lo, w[2].lo, w[3].lo}, hi[4] = {w[0].hi, w[1].hi, w[2].hi, w[3].hi};
    interleave_bytes(lo);
    interleave_bytes(hi);
    w[0] = {lo[0], lo[1]}, w[1] = {lo[2], lo[3]}, w[2] = {hi[0], hi[1]}, w[3] = {hi[2], hi[3]};
}
FA_INLINE void transpose8(__m256i (&w)[8]) {
    __m256i a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm256_unpacklo_epi32(w[2 * i], w[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(w[2 * i], w[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        w[j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x20);
        w[4 + j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x31);
    }
}
FA_INLINE void transpose(Words (&w)[16]) {
    __m256i a[4][8];  // quarters: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15
    for (int i = 0; i < 8; ++i) a[0][i] = w[i].lo, a[1][i] = w[8 + i].lo, a[2][i] = w[i].hi, a[3][i] = w[8 + i].hi;
    for (auto& quarter : a) transpose8(quarter);
    for (int i = 0; i < 8; ++i) w[i] = {a[0][i], a[1][i]}, w[8 + i] = {a[2][i], a[3][i]};
}

FA_INLINE Vec load_bf16(const uint16_t* p) {
    const auto* at = reinterpret_cast<const __m128i*>(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1)), 16))};
}
FA_INLINE Words load_int8(const int8_t* p) {
    const auto* at = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(at)), _mm256_cvtepi8_epi32(_mm_bsrli_si128(_mm_loadu_si128(at), 8))};
}
FA_INLINE __m128i low_halves(__m256i a) {  // the low halves of eight 32-bit lanes
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 4, 5, 8, 9,
                                           12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_shuffle_epi8(a, order), 0b1000));
}
FA_INLINE void store_int8(int8_t* p, Words a) {
    const __m128i low_byte = _mm_set1_epi16(0xff);
    const __m128i lo = _mm_and_si128(low_halves(a.lo), low_byte), hi = _mm_and_si128(low_halves(a.hi), low_byte);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(lo, hi));
}

FA_INLINE __m256i bf16_bits(__m256 a) {  // in the low half of each lane
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
FA_INLINE Words round_bf16(Vec a) {
    return {bf16_bits(a.lo), bf16_bits(a.hi)};
}
FA_INLINE void store_bf16(uint16_t* p, Vec a) {
    auto* at = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(at, low_halves(bf16_bits(a.lo)));
    _mm_storeu_si128(at + 1, low_halves(bf16_bits(a.hi)));
}

FA_INLINE __m256i dot_int8(__m256i sum, __m256i a, __m256i b) {
    // |a| * (b with the sign of a): the sum of two products of at most 127 * 127 does not saturate 16 bits.
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
FA_INLINE Words dot_int8(Words sum, Words a, Words b) {
    return {dot_int8(sum.lo, a.lo, b.lo), dot_int8(sum.hi, a.hi, b.hi)};
}

// The sums of six rows need twelve registers. With |b| and the sign of b, both in registers for all rows, everything
// fits into the sixteen. dot_int8, row by row, needs |a| and both halves of b, and moves half of the sums to the stack.
template <int kRows>
class PairSums {
public:
    __attribute__((always_inline)) static PairSums zero() {
        PairSums r;
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i) r.sums_[half][i] = _mm256_setzero_si256();
        return r;
    }
    __attribute__((always_inline)) void add_products(const int32_t* a, int64_t a_stride, const void* b,
                                                     int64_t b_stride) {
        const auto* word = static_cast<const std::byte*>(b);
#pragma GCC unroll 2
        for (int w = 0; w < 2; ++w)
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word + w * b_stride) + half);
                const __m256i magnitude = _mm256_abs_epi8(y);
#pragma GCC unroll 8
                for (int i = 0; i < kRows; ++i) {
                    const __m256i x = _mm256_sign_epi8(_mm256_set1_epi32(a[i * a_stride + w]), y);
                    const __m256i pairs = _mm256_maddubs_epi16(magnitude, x);
                    sums_[half][i] = _mm256_add_epi32(sums_[half][i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                    // Emits no instruction. It keeps the order: the compiler would start later products early, for
                    // which there are no registers.
                    asm volatile("" : "+x"(sums_[half][i]) : : "memory");
                }
            }
    }
    __attribute__((always_inline)) Words row(int r) const { return {sums_[0][r], sums_[1][r]}; }

private:
    __m256i sums_[2][kRows];
};

FA_INLINE __m256i scale_int8(__m256i bytes, __m256i scale) {
    const __m256i scale16 = _mm256_blend_epi16(scale, _mm256_slli_epi32(scale, 16), 0xaa);
    const __m256i high = _mm256_set1_epi16(static_cast<short>(0xff00));
    const __m256i even = _mm256_andnot_si256(high, _mm256_mullo_epi16(bytes, scale16));
    return _mm256_or_si256(even, _mm256_mullo_epi16(_mm256_and_si256(bytes, high), scale16));
}
FA_INLINE Words scale_int8(Words bytes, Words scale) {
    return {scale_int8(bytes.lo, scale.lo), scale_int8(bytes.hi, scale.hi)};
}
FA_INLINE void unpack_int4(Words packed, Words& low, Words& high) {
    const __m256i nibble = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    low = {_mm256_sub_epi8(_mm256_and_si256(packed.lo, nibble), eight),
           _mm256_sub_epi8(_mm256_and_si256(packed.hi, nibble), eight)};
    high = {_mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(packed.lo, 4), nibble), eight),
            _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(packed.hi, 4), nibble), eight)};
}
#undef FA_BINARY

}  // namespace fastattn::FASTATTN_TARGET
