#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastattn::FASTATTN_TARGET {

// For functions outside the inner loops of products. Inlining them at sixteen lanes each only makes compilation slower.
#define FA_CALLED [[maybe_unused]] static __attribute__((noinline))

struct Vec {
    float v[16];
};
struct Mask {
    bool m[16];
};

inline constexpr int kTileVecs = 1;

#define FA_EACH for (int i = 0; i < 16; ++i)

FA_INLINE Mask first_lanes(int n) {
    Mask r;
    FA_EACH r.m[i] = i < n;
    return r;
}
FA_INLINE Vec broadcast(float x) {
    Vec r;
    FA_EACH r.v[i] = x;
    return r;
}
FA_INLINE Vec zero() {
    return broadcast(0.0f);
}
FA_INLINE Vec load(const float* p) {
    Vec r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
FA_INLINE Vec load_partial(const float* p, int n) {
    Vec r = zero();
    for (int i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
}
FA_INLINE void store(float* p, Vec a) {
    std::memcpy(p, a.v, sizeof a.v);
}
FA_INLINE void store_partial(float* p, Vec a, int n) {
    for (int i = 0; i < n; ++i) p[i] = a.v[i];
}

FA_INLINE Vec fma(Vec a, Vec b, Vec c) {
    FA_EACH c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
#define FA_BINARY(type, name, expression) \
    FA_INLINE type name(type a, type b) { \
        FA_EACH a.v[i] = expression;      \
        return a;                         \
    }
FA_BINARY(Vec, add, a.v[i] + b.v[i])
FA_BINARY(Vec, sub, a.v[i] - b.v[i])
FA_BINARY(Vec, mul, a.v[i] * b.v[i])
FA_BINARY(Vec, div, a.v[i] / b.v[i])
FA_BINARY(Vec, max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
FA_BINARY(Vec, copysign, __builtin_copysignf(a.v[i], b.v[i]))
FA_BINARY(Vec, min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
FA_CALLED Vec sqrt(Vec a) {
    FA_EACH a.v[i] = __builtin_sqrtf(a.v[i]);
    return a;
}
FA_INLINE Vec abs(Vec a) {
    FA_EACH a.v[i] = __builtin_fabsf(a.v[i]);
    return a;
}
FA_INLINE Vec neg(Vec a) {
    FA_EACH a.v[i] = -a.v[i];
    return a;
}
#define FA_COMPARE(name, expression)    \
    FA_INLINE Mask name(Vec a, Vec b) { \
        Mask r;                         \
        FA_EACH r.m[i] = expression;    \
        return r;                       \
    }
FA_COMPARE(less, a.v[i] < b.v[i])
FA_COMPARE(not_less, !(a.v[i] < b.v[i]))
FA_COMPARE(equal, a.v[i] == b.v[i])
FA_INLINE Mask is_nan(Vec a) {
    Mask r;
    FA_EACH r.m[i] = a.v[i] != a.v[i];
    return r;
}
FA_INLINE bool any(Mask m) {
    bool r = false;
    FA_EACH r |= m.m[i];
    return r;
}
FA_INLINE Vec select(Mask m, Vec a, Vec b) {
    FA_EACH a.v[i] = m.m[i] ? a.v[i] : b.v[i];
    return a;
}
FA_CALLED Vec round_even(Vec a) {
    FA_EACH a.v[i] = __builtin_rintf(a.v[i]);
    return a;
}
FA_CALLED Vec times_pow2(Vec a, Vec n) {
    FA_EACH if (n.v[i] == n.v[i]) a.v[i] = __builtin_ldexpf(a.v[i], static_cast<int>(n.v[i]));  // else NaN, like n
    return a;
}
FA_INLINE Vec times_pow2_wide(Vec a, Vec n) {
    return times_pow2(a, n);
}
FA_INLINE Vec rotate_pairs(Vec a, Vec t) {
    Vec r;
    for (int i = 0; i < 16; i += 2) {
        r.v[i] = __builtin_fmaf(a.v[i], t.v[i], -(a.v[i + 1] * t.v[i + 1]));
        r.v[i + 1] = __builtin_fmaf(a.v[i + 1], t.v[i], a.v[i] * t.v[i + 1]);
    }
    return r;
}
FA_INLINE float reduce_add(Vec a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
    return a.v[0];
}
FA_INLINE float reduce_max(Vec a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}

struct Words {
    int32_t v[16];
};

FA_INLINE Words broadcast_word(int32_t x) {
    Words r;
    FA_EACH r.v[i] = x;
    return r;
}
FA_INLINE Words zero_words() {
    return broadcast_word(0);
}
FA_INLINE Words load_words(const void* p) {
    Words r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
FA_INLINE void store_words(void* p, Words a) {
    std::memcpy(p, a.v, sizeof a.v);
}
FA_INLINE Vec as_floats(Words a) {
    Vec r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
FA_INLINE Vec to_float(Words a) {
    Vec r;
    FA_EACH r.v[i] = static_cast<float>(a.v[i]);
    return r;
}
FA_CALLED Words round_to_int(Vec a) {
    Words r;
    FA_EACH r.v[i] = static_cast<int32_t>(__builtin_rintf(a.v[i]));
    return r;
}
FA_BINARY(Words, add_int, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i])))
FA_BINARY(Words, max_unsigned, static_cast<uint32_t>(a.v[i]) > static_cast<uint32_t>(b.v[i]) ? a.v[i] : b.v[i])
FA_INLINE Words magnitude_bits(Vec a) {
    Words r;
    std::memcpy(r.v, a.v, sizeof r.v);
    FA_EACH r.v[i] &= 0x7fffffff;
    return r;
}
FA_BINARY(Words, mul_int, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b.v[i])))
FA_INLINE Vec lookup(const float* p, Words index) {
    Vec r;
    FA_EACH r.v[i] = p[index.v[i]];
    return r;
}

FA_INLINE Words as_words(Vec a) {
    Words r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
FA_BINARY(Words, and_words, a.v[i] & b.v[i])
FA_BINARY(Words, or_words, a.v[i] | b.v[i])
template <int kBits>
FA_INLINE Words shift_left(Words a) {
    FA_EACH a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << kBits);
    return a;
}
FA_CALLED Words pack_int8(Words a, Words b, Words c, Words d) {
    int8_t bytes[64];
    for (int i = 0; i < 16; ++i) {
        bytes[i] = static_cast<int8_t>(a.v[i]);
        bytes[16 + i] = static_cast<int8_t>(b.v[i]);
        bytes[32 + i] = static_cast<int8_t>(c.v[i]);
        bytes[48 + i] = static_cast<int8_t>(d.v[i]);
    }
    return load_words(bytes);
}
FA_CALLED void interleave_bytes(Words (&w)[4]) {
    int8_t in[4][64], out[256];
    for (int j = 0; j < 4; ++j) std::memcpy(in[j], w[j].v, 64);
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j < 4; ++j) out[4 * i + j] = in[j][i];
    for (int i = 0; i < 4; ++i) std::memcpy(w[i].v, out + 64 * i, 64);
}
FA_CALLED void transpose(Words (&w)[16]) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < i; ++j) {
            const int32_t x = w[i].v[j];
            w[i].v[j] = w[j].v[i];
            w[j].v[i] = x;
        }
}

FA_INLINE Vec load_bf16(const uint16_t* p) {
    Words r;
    FA_EACH r.v[i] = static_cast<int32_t>(uint32_t{p[i]} << 16);
    return as_floats(r);
}
FA_CALLED Words round_bf16(Vec a) {
    Words r;
    for (int i = 0; i < 16; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &a.v[i], sizeof bits);
        const uint32_t word = a.v[i] != a.v[i] ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
        r.v[i] = static_cast<int32_t>(word >> 16);
    }
    return r;
}
FA_INLINE void store_bf16(uint16_t* p, Vec a) {
    const Words rounded = round_bf16(a);
    FA_EACH p[i] = static_cast<uint16_t>(rounded.v[i]);
}
FA_INLINE Words load_int8(const int8_t* p) {
    Words r;
    FA_EACH r.v[i] = p[i];
    return r;
}
FA_INLINE void store_int8(int8_t* p, Words a) {
    FA_EACH p[i] = static_cast<int8_t>(a.v[i]);
}

FA_INLINE Words dot_int8(Words sum, Words a, Words b) {
    int8_t x[64], y[64];
    std::memcpy(x, a.v, sizeof x);
    std::memcpy(y, b.v, sizeof y);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) sum.v[i] += int32_t{x[4 * i + j]} * int32_t{y[4 * i + j]};
    return sum;
}
FA_INLINE Words scale_int8(Words bytes, Words scale) {
    int8_t x[64];
    std::memcpy(x, bytes.v, sizeof x);
    for (int i = 0; i < 64; ++i) x[i] = static_cast<int8_t>(x[i] * scale.v[i / 4]);
    return load_words(x);
}
FA_INLINE void unpack_int4(Words packed, Words& low, Words& high) {
    uint8_t x[64];
    int8_t lo[64], hi[64];
    std::memcpy(x, packed.v, sizeof x);
    for (int i = 0; i < 64; ++i) {
        lo[i] = static_cast<int8_t>((x[i] & 15) - 8);
        hi[i] = static_cast<int8_t>((x[i] >> 4) - 8);
    }
    low = load_words(lo);
    high = load_words(hi);
}
#undef FA_COMPARE
#undef FA_BINARY
#undef FA_EACH

}  // namespace fastattn::FASTATTN_TARGET
