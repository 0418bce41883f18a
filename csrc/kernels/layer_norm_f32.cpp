#include "kernels/kernel_list.h"
#include "kernels/row_sum.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

template <bool kWeight, bool kBias>
void rows(const LayerNormF32Args& args) {
    const int n = args.n;
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        float* out = args.out + r * args.out_stride;
        const float mean = row_sum(x, n, [](Vec s, Vec v) { return add(s, v); }) / static_cast<float>(n);
        const Vec center = broadcast(mean);
        const auto add_square = [&](Vec s, Vec v) {
            const Vec d = sub(v, center);
            return fma(d, d, s);
        };
        const float variance = row_sum(x, n, add_square) / static_cast<float>(n);
        const Vec scale = broadcast(1.0f / __builtin_sqrtf(variance + args.eps));
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
