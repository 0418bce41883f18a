#include "kernels/kernel_list.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// Sum of x, or of (x - center)^2. Four accumulators make the additions independent.
template <bool kSquares>
FA_INLINE float sum(const float* x, int n, float center) {
    const Vec c = broadcast(center);
    Vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    const auto accumulate = [&](Vec s, Vec v) {
        if constexpr (!kSquares) return add(s, v);
        const Vec d = sub(v, c);
        return fma(d, d, s);
    };
    int i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
        s0 = accumulate(s0, load(x + i));
        s1 = accumulate(s1, load(x + i + kLanes));
        s2 = accumulate(s2, load(x + i + 2 * kLanes));
        s3 = accumulate(s3, load(x + i + 3 * kLanes));
    }
    for (; i + kLanes <= n; i += kLanes) s0 = accumulate(s0, load(x + i));
    if (i < n) {
        const Vec s = accumulate(s1, load_partial(x + i, n - i));
        s1 = select(first_lanes(n - i), s, s1);
    }
    return reduce_add(add(add(s0, s1), add(s2, s3)));
}

template <bool kWeight, bool kBias>
void rows(const LayerNormF32Args& args) {
    const int n = args.n;
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        float* out = args.out + r * args.out_stride;
        const float mean = sum<false>(x, n, 0.0f) / static_cast<float>(n);
        const float variance = sum<true>(x, n, mean) / static_cast<float>(n);
        const Vec scale = broadcast(1.0f / __builtin_sqrtf(variance + args.eps));
        const Vec center = broadcast(mean);
        const auto normalize = [&](Vec v, Vec weight, Vec bias) {
            const Vec y = mul(sub(v, center), scale);
            if constexpr (kWeight && kBias) return fma(y, weight, bias);
            if constexpr (kWeight) return mul(y, weight);
            if constexpr (kBias) return add(y, bias);
            return y;
        };
        int i = 0;
        for (; i + kLanes <= n; i += kLanes)
            store(out + i, normalize(load(x + i), kWeight ? load(args.weight + i) : zero(),
                                     kBias ? load(args.bias + i) : zero()));
        if (const int tail = n - i; tail > 0)
            store_partial(out + i,
                          normalize(load_partial(x + i, tail), kWeight ? load_partial(args.weight + i, tail) : zero(),
                                    kBias ? load_partial(args.bias + i, tail) : zero()),
                          tail);
    }
}

}  // namespace

void layer_norm_f32(const LayerNormF32Args& args) {
    if (args.weight && args.bias) return rows<true, true>(args);
    if (args.weight) return rows<true, false>(args);
    if (args.bias) return rows<false, true>(args);
    rows<false, false>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
