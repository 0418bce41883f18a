#include "kernels/kernel_list.h"
#include "kernels/row_sum.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

void normalize(const float* x, const float* weight, float* out, int n, float eps) {
    const float squares = row_sum(x, n, [](Vec s, Vec v) { return fma(v, v, s); });
    const Vec scale = broadcast(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, mul(mul(load(x + i), scale), load(weight + i)));
    if (const int tail = n - i; tail > 0)
        store_partial(out + i, mul(mul(load_partial(x + i, tail), scale), load_partial(weight + i, tail)), tail);
}

}  // namespace

void rms_norm_f32(const RmsNormF32Args& args) {
    for (int r = 0; r < args.rows; ++r)
        for (int g = 0; g < args.groups; ++g) {
            const int64_t at = int64_t{g} * args.n;
            normalize(args.x + r * args.x_stride + at, args.weight, args.out + r * args.out_stride + at, args.n,
                      args.eps);
        }
}

}  // namespace fastattn::FASTATTN_TARGET
