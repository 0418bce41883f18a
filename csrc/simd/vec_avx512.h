#pragma once
// GCC 12 warns about the deliberately undefined operands inside these intrinsics (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace fastattn::FASTATTN_TARGET {

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
// Bypasses the caches. p must be a multiple of 64 bytes. Other threads see the store after end_streams.
FA_INLINE void stream(float* p, Vec a) {
    _mm512_stream_ps(p, a.v);
}
FA_INLINE void end_streams() {
    _mm_sfence();
}
FA_INLINE void store_partial(float* p, Vec a, int n) {
    _mm512_mask_storeu_ps(p, first_lanes(n).m, a.v);
}

#define FA_BINARY(type, name, intrinsic)  \
    FA_INLINE type name(type a, type b) { \
        return {intrinsic(a.v, b.v)};     \
    }

FA_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
FA_BINARY(Vec, add, _mm512_add_ps)
FA_BINARY(Vec, sub, _mm512_sub_ps)
FA_BINARY(Vec, mul, _mm512_mul_ps)
FA_BINARY(Vec, div, _mm512_div_ps)
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
FA_BINARY(Vec, max, _mm512_max_ps)
FA_BINARY(Vec, min, _mm512_min_ps)

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
FA_INLINE Vec rotate_pairs(Vec a, Vec t) {
    const __m512 other = _mm512_mul_ps(_mm512_permute_ps(a.v, 0b10110001), _mm512_movehdup_ps(t.v));
    return {_mm512_fmaddsub_ps(a.v, _mm512_moveldup_ps(t.v), other)};
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

struct Words {
    __m512i v;
};

FA_INLINE Words zero_words() {
    return {_mm512_setzero_si512()};
}
FA_INLINE Words broadcast_word(int32_t x) {
    return {_mm512_set1_epi32(x)};
}
FA_INLINE Words load_words(const void* p) {
    return {_mm512_loadu_si512(p)};
}
FA_INLINE void store_words(void* p, Words a) {
    _mm512_storeu_si512(p, a.v);
}
FA_INLINE Vec as_floats(Words a) {
    return {_mm512_castsi512_ps(a.v)};
}
FA_INLINE Vec to_float(Words a) {
    // Without this, GCC 12 keeps dot_int8 sums in memory during a loop if they are converted after it.
    asm("" : "+v"(a.v));
    return {_mm512_cvtepi32_ps(a.v)};
}
FA_INLINE Words round_to_int(Vec a) {
    return {_mm512_cvtps_epi32(a.v)};
}
FA_BINARY(Words, add_int, _mm512_add_epi32)
FA_BINARY(Words, max_unsigned, _mm512_max_epu32)
FA_INLINE Words magnitude_bits(Vec a) {
    return {_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff))};
}
FA_BINARY(Words, mul_int, _mm512_mullo_epi32)
FA_INLINE Vec lookup(const float* p, Words index) {
    return {_mm512_permutexvar_ps(index.v, _mm512_loadu_ps(p))};
}

FA_INLINE Words as_words(Vec a) {
    return {_mm512_castps_si512(a.v)};
}
FA_BINARY(Words, and_words, _mm512_and_si512)
FA_BINARY(Words, or_words, _mm512_or_si512)
template <int kBits>
FA_INLINE Words shift_left(Words a) {
    return {_mm512_slli_epi32(a.v, kBits)};
}
FA_INLINE Words pack_int8(Words a, Words b, Words c, Words d) {
    // Each 128-bit part of `packed` has four numbers of each of a, b, c and d. This restores their order.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
    return {_mm512_permutexvar_epi32(order, packed)};
}
FA_INLINE void interleave_bytes(Words (&w)[4]) {
    const __m512i ab = _mm512_unpacklo_epi8(w[0].v, w[1].v), ab_ = _mm512_unpackhi_epi8(w[0].v, w[1].v);
    const __m512i cd = _mm512_unpacklo_epi8(w[2].v, w[3].v), cd_ = _mm512_unpackhi_epi8(w[2].v, w[3].v);
    // The j-th of these has bytes 16 i + 4 j to 16 i + 4 j + 3 in its 128-bit part i.
    const __m512i x0 = _mm512_unpacklo_epi16(ab, cd), x1 = _mm512_unpackhi_epi16(ab, cd);
    const __m512i x2 = _mm512_unpacklo_epi16(ab_, cd_), x3 = _mm512_unpackhi_epi16(ab_, cd_);
    const __m512i low = _mm512_shuffle_i32x4(x0, x1, 0x44), low_ = _mm512_shuffle_i32x4(x2, x3, 0x44);
    const __m512i high = _mm512_shuffle_i32x4(x0, x1, 0xee), high_ = _mm512_shuffle_i32x4(x2, x3, 0xee);
    w[0].v = _mm512_shuffle_i32x4(low, low_, 0x88);
    w[1].v = _mm512_shuffle_i32x4(low, low_, 0xdd);
    w[2].v = _mm512_shuffle_i32x4(high, high_, 0x88);
    w[3].v = _mm512_shuffle_i32x4(high, high_, 0xdd);
}
FA_INLINE void transpose(Words (&w)[16]) {
    __m512i a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // pairs of rows
        a[2 * i] = _mm512_unpacklo_epi32(w[2 * i].v, w[2 * i + 1].v);
        a[2 * i + 1] = _mm512_unpackhi_epi32(w[2 * i].v, w[2 * i + 1].v);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // groups of four rows; b[4 i + j] has columns j, j + 4, j + 8, j + 12
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x44),
                      low_ = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x44);
        const __m512i high = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xee),
                      high_ = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xee);
        w[j].v = _mm512_shuffle_i32x4(low, low_, 0x88);
        w[4 + j].v = _mm512_shuffle_i32x4(low, low_, 0xdd);
        w[8 + j].v = _mm512_shuffle_i32x4(high, high_, 0x88);
        w[12 + j].v = _mm512_shuffle_i32x4(high, high_, 0xdd);
    }
}

// Lane r of the result combines the lanes of w[r], with the tree of reduce_add. A step halves the number of vectors and
// the lanes that a row has in them, with fewer shuffles than `transpose` needs.
#define FASTATTN_HAS_FOLD_ROWS
template <class F>
FA_INLINE Words fold_rows(const Words (&w)[16], const F& combine) {
    Words part[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        Words half[2];  // eight lanes of rows i and i + 4; of i + 8 and i + 12
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m512i a = w[i + 8 * j].v, b = w[i + 8 * j + 4].v;
            half[j] = combine(Words{_mm512_shuffle_i32x4(a, b, 0x44)}, Words{_mm512_shuffle_i32x4(a, b, 0xee)});
        }
        part[i] = combine(Words{_mm512_shuffle_i32x4(half[0].v, half[1].v, 0x88)},
                          Words{_mm512_shuffle_i32x4(half[0].v, half[1].v, 0xdd)});
    }
    const auto pairs = [&](Words a, Words b) {
        return _mm512_castsi512_ps(
            combine(Words{_mm512_unpacklo_epi64(a.v, b.v)}, Words{_mm512_unpackhi_epi64(a.v, b.v)}).v);
    };
    const __m512 low = pairs(part[0], part[1]), high = pairs(part[2], part[3]);
    return combine(Words{_mm512_castps_si512(_mm512_shuffle_ps(low, high, 0x88))},
                   Words{_mm512_castps_si512(_mm512_shuffle_ps(low, high, 0xdd))});
}

FA_INLINE Vec load_bf16(const uint16_t* p) {
    return {_mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
FA_INLINE Words load_int8(const int8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
FA_INLINE void store_int8(int8_t* p, Words a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

#if FASTATTN_HAS_DOT_BF16
FA_INLINE Vec dot_bf16(Vec sum, Words a, Words b) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
#endif
// Rounds to bfloat16, in the high half of each lane. Not the AVX512BF16 instruction, which flushes denormals to 0:
// stored values must be the same on every target.
FA_INLINE __m512i high_bf16(Vec a) {
    const __m512i bits = _mm512_castps_si512(a.v), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_mask_blend_epi32(is_nan(a).m, rounded, quiet);
}
FA_INLINE Words round_bf16(Vec a) {
    return {_mm512_srli_epi32(high_bf16(a), 16)};
}
FA_INLINE void store_bf16(uint16_t* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(round_bf16(a).v));
}

FA_INLINE void stream_bf16(uint16_t* p, Vec a) {  // p is a multiple of 32 bytes; see stream
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(round_bf16(a).v));
}
// 32 adjacent values, of which b has the second half. stream_bf16: p is a multiple of 64 bytes; see stream.
FA_INLINE __m512i pair_bf16(Vec a, Vec b) {
    const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                         23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(high_bf16(a), odd, high_bf16(b));
}
FA_INLINE void store_bf16(uint16_t* p, Vec a, Vec b) {
    _mm512_storeu_si512(p, pair_bf16(a, b));
}
FA_INLINE void stream_bf16(uint16_t* p, Vec a, Vec b) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), pair_bf16(a, b));
}
#if defined(__AVX512BF16__)
// The same for factors of products: denormal numbers become 0, as which products take them anyway.
FA_INLINE void store_factors_bf16(uint16_t* p, Vec a, Vec b) {
    _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b.v, a.v)));
}
FA_INLINE void stream_factors_bf16(uint16_t* p, Vec a, Vec b) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b.v, a.v)));
}
#endif

#if defined(__AVX512VNNI__)
// The instruction multiplies unsigned by signed bytes, so `a` is stored with 128 added.
#define FASTATTN_HAS_INT8_OFFSET
inline constexpr int kInt8Offset = 128;
FA_INLINE Words dot_int8(Words sum, Words a, Words b) {
    return {_mm512_dpbusd_epi32(sum.v, a.v, b.v)};
}
FA_INLINE Words add_int8_offset(Words a) {
    return {_mm512_xor_si512(a.v, _mm512_set1_epi32(static_cast<int>(0x80808080u)))};
}
#else
FA_INLINE Words dot_int8(Words sum, Words a, Words b) {
    // |a| * (b with the sign of a): the sum of two products of at most 127 * 127 does not saturate 16 bits.
    const __m512i signed_b = _mm512_mask_sub_epi8(b.v, _mm512_movepi8_mask(a.v), _mm512_setzero_si512(), b.v);
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(a.v), signed_b);
    return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
#endif

FA_INLINE Words scale_bytes(__m512i bytes, __m512i scale16) {
    const __m512i high = _mm512_set1_epi16(static_cast<short>(0xff00));
    const __m512i even = _mm512_andnot_si512(high, _mm512_mullo_epi16(bytes, scale16));
    return {_mm512_or_si512(even, _mm512_mullo_epi16(_mm512_and_si512(bytes, high), scale16))};
}
FA_INLINE void unpack_int4(Words packed, Words& low, Words& high) {
    const __m512i nibble = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
    low.v = _mm512_sub_epi8(_mm512_and_si512(packed.v, nibble), eight);
    high.v = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(packed.v, 4), nibble), eight);
}
FA_INLINE Words scale_int8(Words bytes, Words scale) {
    return scale_bytes(bytes.v, _mm512_mask_blend_epi16(0xaaaaaaaa, scale.v, _mm512_slli_epi32(scale.v, 16)));
}
#undef FA_BINARY

}  // namespace fastattn::FASTATTN_TARGET
