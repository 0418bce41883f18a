// Exponential, hyperbolic tangent, logarithm and the activation functions, with the same bits on every target: explicit
// fma, fixed order, coefficients from tools/fit_polynomials.py. NaN gives NaN everywhere.
#pragma once
#include <cstring>

#include "kernels/kernels.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {

inline constexpr float kInf = __builtin_inff();

// c[0] + c[1] x + c[2] x^2 + ...
template <int N>
FA_INLINE Vec polynomial(Vec x, const float (&c)[N]) {
    Vec p = broadcast(c[N - 1]);
    for (int i = N - 2; i >= 0; --i) p = fma(p, x, broadcast(c[i]));
    return p;
}

// e^x, with an error of at most 1 ulp: e^x = 2^n e^r with |r| <= ln(2) / 2.
FA_INLINE Vec exp(Vec x) {
    // e^r = 1 + r (1 + r P(r))
    constexpr float kExp[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558aep-5f, 0x1.123988p-7f, 0x1.6a4f88p-10f};
    // Beyond these the result is 0 or inf anyway. The order of the operands preserves NaN.
    x = min(broadcast(89.0f), max(broadcast(-104.0f), x));
    const Vec n = round_even(mul(x, broadcast(0x1.715476p+0f)));
    Vec r = fma(n, broadcast(-0x1.62e43p-1f), x);  // ln 2 in two parts; the first is short enough for
    r = fma(n, broadcast(0x1.05c610p-29f), r);     // n times it to cancel exactly
    const Vec one = broadcast(1.0f);
    return times_pow2_wide(fma(fma(polynomial(r, kExp), r, one), r, one), n);
}

// 2^x, x in [-160, 0]
FA_INLINE Vec exp2_nonpositive(Vec x) {
    constexpr float kExp2[] = {0x1.62e43p-1f,  0x1.ebfbdcp-3f,  0x1.c6af7ap-5f,
                               0x1.3b2dd2p-7f, 0x1.5f0946p-10f, 0x1.417a5cp-13f};
    const Vec n = round_even(x);
    const Vec r = sub(x, n);
    return times_pow2_wide(fma(polynomial(r, kExp2), r, broadcast(1.0f)), n);
}

// 2^x with a relative error of at most 1.02e-4, for x <= 0 (1 for x > 0). This is far below the error of rounding the
// result to bfloat16 or int8. 0 for -inf. kNeverPositive: x <= 0 or NaN is certain.
template <bool kNeverPositive = false>
FA_INLINE Vec exp2_rough(Vec x) {
    constexpr float kExp2Rough[] = {0x1.62f5fcp-1f, 0x1.f00c4ep-3f, 0x1.c2a1a4p-5f};
    // The order of the operands preserves NaN.
    x = max(broadcast(-160.0f), x);
    // Only rounding can make x positive, but by a lot if the scores are huge.
    if constexpr (!kNeverPositive) x = min(zero(), x);
    const Vec n = round_even(x);
    const Vec r = sub(x, n);
    return times_pow2_wide(fma(polynomial(r, kExp2Rough), r, broadcast(1.0f)), n);
}

FA_INLINE Vec tanh(Vec x) {
    // tanh(x) = x + x^3 P(x^2) where 1 - 2 / (e^2|x| + 1) would cancel
    constexpr float kTanh[] = {-0x1.555532p-2f, 0x1.1106fcp-3f, -0x1.b83738p-5f, 0x1.5207b8p-6f, -0x1.75619ap-8f};
    const Vec t = abs(x);
    const Vec one = broadcast(1.0f);
    const Vec large = sub(one, div(broadcast(2.0f), add(exp(add(t, t)), one)));
    const Vec t2 = mul(t, t);
    const Vec small = fma(mul(t2, t), polynomial(t2, kTanh), t);
    return copysign(select(less(t, broadcast(0.625f)), small, large), x);
}

// log(x) of one number, for x >= 2^-126, inf or NaN
FA_INLINE float log(float x) {
    // log(1 + f) = f - f^2 / 2 + f^3 P(f), f in [sqrt(1/2) - 1, sqrt(2) - 1]
    constexpr float kLog[] = {0x1.555548p-2f,  -0x1.000006p-2f, 0x1.99a476p-3f,  -0x1.555c46p-3f, 0x1.233ba8p-3f,
                              -0x1.fc2884p-4f, 0x1.e6bf38p-4f,  -0x1.de02d6p-4f, 0x1.14763ap-4f};
    if (!(x < kInf)) return x;
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    // Subtracting the bits of sqrt(1/2) makes the exponent field change at sqrt(1/2) instead of at powers of two.
    const uint32_t shifted = bits - 0x3f3504f3u;
    const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
    bits = (shifted & 0x7fffffu) + 0x3f3504f3u;
    float mantissa;
    std::memcpy(&mantissa, &bits, sizeof mantissa);
    const float f = mantissa - 1.0f, n = static_cast<float>(exponent);
    float p = kLog[8];
    for (int i = 7; i >= 0; --i) p = __builtin_fmaf(p, f, kLog[i]);
    const float f2 = f * f;
    float r = __builtin_fmaf(n, -0x1.05c610p-29f, f2 * f * p);
    r = __builtin_fmaf(-0.5f, f2, r) + f;
    return __builtin_fmaf(n, 0x1.62e43p-1f, r);
}

// x Phi(x) = max(x, 0) - |x| (1 - Phi(|x|)): no cancellation on either side of 0, and the tail keeps its precision.
FA_INLINE Vec gelu_erf(Vec x) {
    // 1 - Phi(t) = 2^-(1 + t P(t))
    constexpr float kNormalTail[] = {0x1.26aeecp+0f,   0x1.d637cap-2f,  0x1.ae38f6p-5f,   -0x1.ceb9bcp-8f,
                                     0x1.79cc78p-14f,  0x1.f7bb48p-13f, -0x1.1a8006p-14f, 0x1.56cd7p-17f,
                                     -0x1.01da52p-20f, 0x1.dbeb1cp-25f, -0x1.ec5f6ep-30f, 0x1.b47ef8p-36f};
    const Vec t = min(broadcast(16.0f), abs(x));  // the tail is below every float from 14.4 on
    const Vec e = max(broadcast(-160.0f), mul(neg(t), polynomial(t, kNormalTail)));
    return fma(mul(t, broadcast(-0.5f)), exp2_nonpositive(e), max(zero(), x));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
FA_INLINE Vec gelu_tanh(Vec x) {
    x = max(broadcast(-32.0f), x);  // the result is -0 well before this; -inf would give inf / inf
    const Vec u = mul(x, fma(mul(x, x), broadcast(-0x1.2444f2p-4f), broadcast(-0x1.988454p+0f)));
    return div(x, add(broadcast(1.0f), exp(u)));
}

FA_INLINE Vec silu(Vec x) {
    x = max(broadcast(-128.0f), x);
    return div(x, add(broadcast(1.0f), exp(neg(x))));
}

FA_INLINE Vec sigmoid(Vec x) {
    return div(broadcast(1.0f), add(broadcast(1.0f), exp(neg(x))));
}

// Either gelu within 2.5e-5: max(x, 0) - |x| 2^-(1 + |x| P(|x|)) with P of low degree. Half the operations of the
// functions above, for a result that the next linear rounds to bfloat16 or int8.
template <int N>
FA_INLINE Vec gelu_rough(Vec x, const float (&tail)[N]) {
    const Vec t = min(broadcast(16.0f), abs(x));
    const Vec power = exp2_rough(mul(neg(t), polynomial(t, tail)));
    return fma(mul(t, broadcast(-0.5f)), power, max(zero(), x));
}

template <Activation A, bool kRough = false>
FA_INLINE Vec activate(Vec x) {
    if constexpr (kRough && A == Activation::kGeluErf) {
        constexpr float kNormalTailRough[] = {0x1.26a7e4p+0f, 0x1.d6a194p-2f, 0x1.ab223ap-5f, -0x1.d7910cp-8f,
                                              0x1.ff3ce4p-12f};
        return gelu_rough(x, kNormalTailRough);
    }
    if constexpr (kRough && A == Activation::kGeluTanh) {
        constexpr float kTanhTailRough[] = {0x1.26778ep+0f, 0x1.d8e8ap-2f, 0x1.9ae8e4p-5f, -0x1.3d9d6cp-7f,
                                            0x1.1369d4p-9f};
        return gelu_rough(x, kTanhTailRough);
    }
    if constexpr (A == Activation::kGeluErf) return gelu_erf(x);
    if constexpr (A == Activation::kGeluTanh) return gelu_tanh(x);
    if constexpr (A == Activation::kRelu) return max(zero(), x);
    if constexpr (A == Activation::kTanh) return tanh(x);
    if constexpr (A == Activation::kSilu) return silu(x);
    if constexpr (A == Activation::kSigmoid) return sigmoid(x);
    return x;
}

}  // namespace fastattn::FASTATTN_TARGET
