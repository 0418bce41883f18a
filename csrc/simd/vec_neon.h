#pragma once
#include <arm_neon.h>

#include <cstring>

namespace fastattn::FASTATTN_TARGET {

struct Vec {
    float32x4_t v[4];  // lanes 0-3, 4-7, 8-11, 12-15
};
struct Mask {
    uint32x4_t m[4];  // all bits of a lane set or clear
};

inline constexpr int kTileVecs = 1;  // six rows of one Vec use 24 of the 32 registers

#define FA_EACH for (int i = 0; i < 4; ++i)

FA_INLINE Mask first_lanes(int n) {
    static constexpr int32_t kIota[4] = {0, 1, 2, 3};
    const int32x4_t iota = vld1q_s32(kIota);
    Mask r;
    FA_EACH r.m[i] = vcltq_s32(iota, vdupq_n_s32(n - 4 * i));
    return r;
}
FA_INLINE Vec broadcast(float x) {
    Vec r;
    FA_EACH r.v[i] = vdupq_n_f32(x);
    return r;
}
FA_INLINE Vec zero() {
    return broadcast(0.0f);
}
FA_INLINE Vec load(const float* p) {
    Vec r;
    FA_EACH r.v[i] = vld1q_f32(p + 4 * i);
    return r;
}
FA_INLINE void store(float* p, Vec a) {
    FA_EACH vst1q_f32(p + 4 * i, a.v[i]);
}
FA_INLINE Vec load_partial(const float* p, int n) {
    float lanes[16] = {};
    std::memcpy(lanes, p, sizeof(float) * static_cast<unsigned>(n));
    return load(lanes);
}
FA_INLINE void store_partial(float* p, Vec a, int n) {
    float lanes[16];
    store(lanes, a);
    std::memcpy(p, lanes, sizeof(float) * static_cast<unsigned>(n));
}

FA_INLINE Vec fma(Vec a, Vec b, Vec c) {
    FA_EACH c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
}
#define FA_BINARY(type, name, expression) \
    FA_INLINE type name(type a, type b) { \
        FA_EACH a.v[i] = expression;      \
        return a;                         \
    }
FA_BINARY(Vec, add, vaddq_f32(a.v[i], b.v[i]))
FA_BINARY(Vec, sub, vsubq_f32(a.v[i], b.v[i]))
FA_BINARY(Vec, mul, vmulq_f32(a.v[i], b.v[i]))
FA_BINARY(Vec, div, vdivq_f32(a.v[i], b.v[i]))
// Not vmaxq/vminq: they return NaN if either operand is NaN, and they order the zeros.
FA_BINARY(Vec, max, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
FA_BINARY(Vec, min, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
FA_BINARY(Vec, copysign, vbslq_f32(vdupq_n_u32(0x80000000u), b.v[i], a.v[i]))
#define FA_UNARY(result, name, type, expression) \
    FA_INLINE result name(type a) {              \
        result r;                                \
        FA_EACH r.v[i] = expression;             \
        return r;                                \
    }
FA_UNARY(Vec, sqrt, Vec, vsqrtq_f32(a.v[i]))
FA_UNARY(Vec, abs, Vec, vabsq_f32(a.v[i]))
FA_UNARY(Vec, neg, Vec, vnegq_f32(a.v[i]))
FA_UNARY(Vec, round_even, Vec, vrndnq_f32(a.v[i]))

#define FA_COMPARE(name, expression)    \
    FA_INLINE Mask name(Vec a, Vec b) { \
        Mask r;                         \
        FA_EACH r.m[i] = expression;    \
        return r;                       \
    }
FA_COMPARE(less, vcltq_f32(a.v[i], b.v[i]))
FA_COMPARE(not_less, vmvnq_u32(vcltq_f32(a.v[i], b.v[i])))
FA_COMPARE(equal, vceqq_f32(a.v[i], b.v[i]))
FA_INLINE Mask is_nan(Vec a) {
    Mask r;
    FA_EACH r.m[i] = vmvnq_u32(vceqq_f32(a.v[i], a.v[i]));
    return r;
}
FA_INLINE bool any(Mask m) {
    return vmaxvq_u32(vorrq_u32(vorrq_u32(m.m[0], m.m[1]), vorrq_u32(m.m[2], m.m[3]))) != 0;
}
FA_INLINE Vec select(Mask m, Vec a, Vec b) {
    FA_EACH a.v[i] = vbslq_f32(m.m[i], a.v[i], b.v[i]);
    return a;
}

FA_INLINE float32x4_t power_of_two(int32x4_t n) {  // n in [-126, 127]
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
FA_INLINE Vec times_pow2(Vec a, Vec n) {
    FA_EACH a.v[i] = vmulq_f32(a.v[i], power_of_two(vcvtq_s32_f32(n.v[i])));
    return a;
}
FA_INLINE Vec times_pow2_wide(Vec a, Vec n) {
    for (int i = 0; i < 4; ++i) {
        const int32x4_t all = vcvtq_s32_f32(n.v[i]);
        const int32x4_t half = vshrq_n_s32(all, 1);
        // With a in [0.5, 2] the first product is exact, so the result is rounded only once, even if it is denormal.
        a.v[i] = vmulq_f32(vmulq_f32(a.v[i], power_of_two(half)), power_of_two(vsubq_s32(all, half)));
    }
    return a;
}
FA_INLINE Vec rotate_pairs(Vec a, Vec t) {
    static constexpr uint32_t kSigns[4] = {0x80000000u, 0, 0x80000000u, 0};  // the first of each pair is subtracted
    const uint32x4_t signs = vld1q_u32(kSigns);
    for (int i = 0; i < 4; ++i) {
        const float32x4_t other = vmulq_f32(vrev64q_f32(a.v[i]), vtrn2q_f32(t.v[i], t.v[i]));
        const float32x4_t added = vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(other), signs));
        a.v[i] = vfmaq_f32(added, a.v[i], vtrn1q_f32(t.v[i], t.v[i]));
    }
    return a;
}

FA_INLINE float reduce_add(Vec a) {
    const float32x4_t x = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t y = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    return vget_lane_f32(y, 0) + vget_lane_f32(y, 1);
}
FA_INLINE float reduce_max(Vec a) {
    Vec x = a;
    x.v[0] = vbslq_f32(vcgtq_f32(a.v[0], a.v[2]), a.v[0], a.v[2]);
    x.v[1] = vbslq_f32(vcgtq_f32(a.v[1], a.v[3]), a.v[1], a.v[3]);
    const float32x4_t y = vbslq_f32(vcgtq_f32(x.v[0], x.v[1]), x.v[0], x.v[1]);
    const float32x2_t low = vget_low_f32(y), high = vget_high_f32(y);
    const float32x2_t z = vbsl_f32(vcgt_f32(low, high), low, high);
    const float p = vget_lane_f32(z, 0), q = vget_lane_f32(z, 1);
    return p > q ? p : q;
}

struct Words {
    int32x4_t v[4];
};

FA_INLINE Words broadcast_word(int32_t x) {
    Words r;
    FA_EACH r.v[i] = vdupq_n_s32(x);
    return r;
}
FA_INLINE Words zero_words() {
    return broadcast_word(0);
}
FA_INLINE Words load_words(const void* p) {
    Words r;
    FA_EACH r.v[i] = vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p) + 16 * i));
    return r;
}
FA_INLINE void store_words(void* p, Words a) {
    FA_EACH vst1q_u8(static_cast<uint8_t*>(p) + 16 * i, vreinterpretq_u8_s32(a.v[i]));
}
FA_UNARY(Vec, as_floats, Words, vreinterpretq_f32_s32(a.v[i]))
FA_UNARY(Vec, to_float, Words, vcvtq_f32_s32(a.v[i]))
FA_UNARY(Words, round_to_int, Vec, vcvtnq_s32_f32(a.v[i]))
FA_BINARY(Words, add_int, vaddq_s32(a.v[i], b.v[i]))
FA_INLINE Words max_unsigned(Words a, Words b) {
    for (int i = 0; i < 4; ++i)
        a.v[i] = vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(a.v[i]), vreinterpretq_u32_s32(b.v[i])));
    return a;
}
FA_UNARY(Words, magnitude_bits, Vec, vreinterpretq_s32_f32(vabsq_f32(a.v[i])))
FA_BINARY(Words, mul_int, vmulq_s32(a.v[i], b.v[i]))
FA_INLINE Vec lookup(const float* p, Words index) {
    uint8x16x4_t table;
    FA_EACH table.val[i] = vreinterpretq_u8_f32(vld1q_f32(p + 4 * i));
    const int32x4_t bytes = vdupq_n_s32(0x03020100);  // of the float at index 0
    Vec r;
    for (int i = 0; i < 4; ++i) {
        const int32x4_t at = vmlaq_s32(bytes, index.v[i], vdupq_n_s32(0x04040404));
        r.v[i] = vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_s32(at)));
    }
    return r;
}

FA_UNARY(Words, as_words, Vec, vreinterpretq_s32_f32(a.v[i]))
FA_BINARY(Words, and_words, vandq_s32(a.v[i], b.v[i]))
FA_BINARY(Words, or_words, vorrq_s32(a.v[i], b.v[i]))
template <int kBits>
FA_INLINE Words shift_left(Words a) {
    FA_EACH a.v[i] = vshlq_n_s32(a.v[i], kBits);
    return a;
}
FA_INLINE int32x4_t pack_int8(Words a) {  // sixteen numbers
    const int16x8_t lo = vcombine_s16(vqmovn_s32(a.v[0]), vqmovn_s32(a.v[1]));
    const int16x8_t hi = vcombine_s16(vqmovn_s32(a.v[2]), vqmovn_s32(a.v[3]));
    return vreinterpretq_s32_s8(vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)));
}
FA_INLINE Words pack_int8(Words a, Words b, Words c, Words d) {
    return {{pack_int8(a), pack_int8(b), pack_int8(c), pack_int8(d)}};
}
FA_INLINE void interleave_bytes(Words (&w)[4]) {
    Words out[4];
    for (int i = 0; i < 4; ++i) {
        const int8x16_t a = vreinterpretq_s8_s32(w[0].v[i]), b = vreinterpretq_s8_s32(w[1].v[i]);
        const int8x16_t c = vreinterpretq_s8_s32(w[2].v[i]), d = vreinterpretq_s8_s32(w[3].v[i]);
        const int8x16x2_t ab = vzipq_s8(a, b), cd = vzipq_s8(c, d);
        for (int j = 0; j < 2; ++j) {
            const int16x8x2_t x = vzipq_s16(vreinterpretq_s16_s8(ab.val[j]), vreinterpretq_s16_s8(cd.val[j]));
            out[i].v[2 * j] = vreinterpretq_s32_s16(x.val[0]);
            out[i].v[2 * j + 1] = vreinterpretq_s32_s16(x.val[1]);
        }
    }
    for (int i = 0; i < 4; ++i) w[i] = out[i];
}
FA_INLINE void transpose(Words (&w)[16]) {
    Words t[16];
    for (int r = 0; r < 4; ++r)
        for (int c = 0; c < 4; ++c) {  // four rows by four columns
            const int32x4x2_t p = vtrnq_s32(w[4 * r].v[c], w[4 * r + 1].v[c]);
            const int32x4x2_t q = vtrnq_s32(w[4 * r + 2].v[c], w[4 * r + 3].v[c]);
            t[4 * c].v[r] = vcombine_s32(vget_low_s32(p.val[0]), vget_low_s32(q.val[0]));
            t[4 * c + 1].v[r] = vcombine_s32(vget_low_s32(p.val[1]), vget_low_s32(q.val[1]));
            t[4 * c + 2].v[r] = vcombine_s32(vget_high_s32(p.val[0]), vget_high_s32(q.val[0]));
            t[4 * c + 3].v[r] = vcombine_s32(vget_high_s32(p.val[1]), vget_high_s32(q.val[1]));
        }
    for (int i = 0; i < 16; ++i) w[i] = t[i];
}

FA_INLINE Vec load_bf16(const uint16_t* p) {
    Vec r;
    FA_EACH r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
    return r;
}
FA_INLINE Words round_bf16(Vec a) {
    const Mask nan = is_nan(a);
    Words r;
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t bits = vreinterpretq_u32_f32(a.v[i]);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
        r.v[i] = vreinterpretq_s32_u32(vshrq_n_u32(vbslq_u32(nan.m[i], quiet, rounded), 16));
    }
    return r;
}
FA_INLINE void store_bf16(uint16_t* p, Vec a) {
    const Words rounded = round_bf16(a);
    FA_EACH vst1_u16(p + 4 * i, vmovn_u32(vreinterpretq_u32_s32(rounded.v[i])));
}
FA_INLINE Words load_int8(const int8_t* p) {
    Words r;
    for (int i = 0; i < 2; ++i) {
        const int16x8_t x = vmovl_s8(vld1_s8(p + 8 * i));
        r.v[2 * i] = vmovl_s16(vget_low_s16(x));
        r.v[2 * i + 1] = vmovl_s16(vget_high_s16(x));
    }
    return r;
}
FA_INLINE void store_int8(int8_t* p, Words a) {
    for (int i = 0; i < 2; ++i)
        vst1_s8(p + 8 * i, vmovn_s16(vcombine_s16(vmovn_s32(a.v[2 * i]), vmovn_s32(a.v[2 * i + 1]))));
}

FA_INLINE Words dot_int8(Words sum, Words a, Words b) {
    for (int i = 0; i < 4; ++i) {
        const int8x16_t x = vreinterpretq_s8_s32(a.v[i]), y = vreinterpretq_s8_s32(b.v[i]);
#if defined(__ARM_FEATURE_DOTPROD)
        sum.v[i] = vdotq_s32(sum.v[i], x, y);
#else
        const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)));
        const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(x), vget_high_s8(y)));
        sum.v[i] = vaddq_s32(sum.v[i], vpaddq_s32(low, high));
#endif
    }
    return sum;
}
FA_INLINE Words scale_int8(Words bytes, Words scale) {
    for (int i = 0; i < 4; ++i) {
        const int32x4_t all = vmulq_n_s32(vandq_s32(scale.v[i], vdupq_n_s32(255)), 0x01010101);
        bytes.v[i] = vreinterpretq_s32_s8(vmulq_s8(vreinterpretq_s8_s32(bytes.v[i]), vreinterpretq_s8_s32(all)));
    }
    return bytes;
}
FA_INLINE void unpack_int4(Words packed, Words& low, Words& high) {
    for (int i = 0; i < 4; ++i) {
        const uint8x16_t x = vreinterpretq_u8_s32(packed.v[i]);
        const int8x16_t lo = vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(15)));
        const int8x16_t hi = vreinterpretq_s8_u8(vshrq_n_u8(x, 4));
        low.v[i] = vreinterpretq_s32_s8(vsubq_s8(lo, vdupq_n_s8(8)));
        high.v[i] = vreinterpretq_s32_s8(vsubq_s8(hi, vdupq_n_s8(8)));
    }
}

#if FASTATTN_HAS_BF16_FMA
FA_INLINE Vec fma_even_bf16(Words a, Words b, Vec c) {
    FA_EACH c.v[i] = vbfmlalbq_f32(c.v[i], vreinterpretq_bf16_s32(a.v[i]), vreinterpretq_bf16_s32(b.v[i]));
    return c;
}
FA_INLINE Vec fma_odd_bf16(Words a, Words b, Vec c) {
    FA_EACH c.v[i] = vbfmlaltq_f32(c.v[i], vreinterpretq_bf16_s32(a.v[i]), vreinterpretq_bf16_s32(b.v[i]));
    return c;
}
#endif

#if FASTATTN_HAS_INT8_PAIRS
// smmla multiplies two rows of eight bytes with two columns of eight bytes. Its four sums are in one register: both
// columns of the first row, then both of the second.
template <int kRows>
class PairSums {
public:
    __attribute__((always_inline)) static PairSums zero() {
        PairSums r;
#pragma GCC unroll 4
        for (int i = 0; i < kPairs; ++i)
#pragma GCC unroll 8
            for (int c = 0; c < 8; ++c) r.sums_[i][c] = vdupq_n_s32(0);
        return r;
    }
    __attribute__((always_inline)) void add_products(const int32_t* a, int64_t a_stride, const void* b,
                                                     int64_t b_stride) {
        int8x16_t rows[kPairs];
#pragma GCC unroll 4
        for (int i = 0; i < kPairs; ++i) {  // the last of an odd number of rows is its own partner
            const int32_t* first = a + 2 * i * a_stride;
            const int32_t* second = 2 * i + 1 < kRows ? first + a_stride : first;
            rows[i] = vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(first)),
                                  vld1_s8(reinterpret_cast<const int8_t*>(second)));
        }
        const auto* word = static_cast<const uint8_t*>(b);
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {  // four columns at a time, because all sixteen would not fit in the registers
            const int32x4_t x = vreinterpretq_s32_u8(vld1q_u8(word + 16 * c));
            const int32x4_t y = vreinterpretq_s32_u8(vld1q_u8(word + b_stride + 16 * c));
            const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(x, y)), high = vreinterpretq_s8_s32(vzip2q_s32(x, y));
#pragma GCC unroll 4
            for (int i = 0; i < kPairs; ++i) {
                sums_[i][2 * c] = vmmlaq_s32(sums_[i][2 * c], rows[i], low);
                sums_[i][2 * c + 1] = vmmlaq_s32(sums_[i][2 * c + 1], rows[i], high);
            }
            // Emits no instruction. It keeps GCC from loading the next columns early, which moved sums to the stack.
            asm("" : "+r"(word), "+w"(sums_[kPairs - 1][2 * c + 1]));
        }
    }
    __attribute__((always_inline)) Words row(int r) const {
        Words out;
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
            const int64x2_t low = vreinterpretq_s64_s32(sums_[r / 2][2 * c]);
            const int64x2_t high = vreinterpretq_s64_s32(sums_[r / 2][2 * c + 1]);
            out.v[c] = vreinterpretq_s32_s64(r % 2 == 0 ? vzip1q_s64(low, high) : vzip2q_s64(low, high));
        }
        return out;
    }

private:
    static constexpr int kPairs = (kRows + 1) / 2;
    int32x4_t sums_[kPairs][8];
};
#endif
#undef FA_COMPARE
#undef FA_UNARY
#undef FA_BINARY
#undef FA_EACH

}  // namespace fastattn::FASTATTN_TARGET
