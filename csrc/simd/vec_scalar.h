#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastattn::FASTATTN_TARGET {

#define FA_INLINE static inline __attribute__((always_inline))

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
#define FA_BINARY(name, expression)    \
    FA_INLINE Vec name(Vec a, Vec b) { \
        FA_EACH a.v[i] = expression;   \
        return a;                      \
    }
FA_BINARY(add, a.v[i] + b.v[i])
FA_BINARY(sub, a.v[i] - b.v[i])
FA_BINARY(mul, a.v[i] * b.v[i])
FA_BINARY(div, a.v[i] / b.v[i])
FA_BINARY(max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
FA_BINARY(min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
#undef FA_BINARY
FA_INLINE Vec sqrt(Vec a) {
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
FA_INLINE Vec copysign(Vec a, Vec b) {
    FA_EACH a.v[i] = __builtin_copysignf(a.v[i], b.v[i]);
    return a;
}
FA_INLINE Mask less(Vec a, Vec b) {
    Mask r;
    FA_EACH r.m[i] = a.v[i] < b.v[i];
    return r;
}
FA_INLINE Mask not_less(Vec a, Vec b) {
    Mask r;
    FA_EACH r.m[i] = !(a.v[i] < b.v[i]);
    return r;
}
FA_INLINE Mask equal(Vec a, Vec b) {
    Mask r;
    FA_EACH r.m[i] = a.v[i] == b.v[i];
    return r;
}
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
FA_INLINE Vec round_even(Vec a) {
    FA_EACH a.v[i] = __builtin_rintf(a.v[i]);
    return a;
}
FA_INLINE Vec times_pow2(Vec a, Vec n) {
    FA_EACH a.v[i] = __builtin_ldexpf(a.v[i], static_cast<int>(n.v[i]));
    return a;
}
FA_INLINE Vec times_pow2_wide(Vec a, Vec n) {
    return times_pow2(a, n);
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
#undef FA_EACH

}  // namespace fastattn::FASTATTN_TARGET
