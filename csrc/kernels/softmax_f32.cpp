#include "kernels/kernel_list.h"
#include "kernels/math.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// A NaN may hide a larger value here. The sum below is then NaN, and so is the whole row.
FA_INLINE float row_max(const float* x, int n) {
    Vec m0 = broadcast(-kInf), m1 = m0, m2 = m0, m3 = m0;
    int i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
        m0 = max(m0, load(x + i));
        m1 = max(m1, load(x + i + kLanes));
        m2 = max(m2, load(x + i + 2 * kLanes));
        m3 = max(m3, load(x + i + 3 * kLanes));
    }
    for (; i + kLanes <= n; i += kLanes) m0 = max(m0, load(x + i));
    if (i < n) m1 = max(m1, select(first_lanes(n - i), load_partial(x + i, n - i), m1));
    return reduce_max(max(max(m0, m1), max(m2, m3)));
}

// Returns the sum of e^(x - shift), and writes the terms to `out` if kStore.
template <bool kStore>
FA_INLINE float exponentials(const float* x, int n, float shift, float* out) {
    const Vec m = broadcast(shift);
    Vec s0 = zero(), s1 = zero();
    const auto exponential = [&](int at) {
        const Vec e = exp(sub(load(x + at), m));
        if constexpr (kStore) store(out + at, e);
        return e;
    };
    int i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        s0 = add(s0, exponential(i));
        s1 = add(s1, exponential(i + kLanes));
    }
    for (; i + kLanes <= n; i += kLanes) s0 = add(s0, exponential(i));
    if (const int tail = n - i; tail > 0) {
        const Vec e = exp(sub(load_partial(x + i, tail), m));
        if constexpr (kStore) store_partial(out + i, e, tail);
        s1 = add(s1, select(first_lanes(tail), e, zero()));
    }
    return reduce_add(add(s0, s1));
}

template <class F>
FA_INLINE void map(const float* x, float* out, int n, F f) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(x + i)));
    if (i < n) store_partial(out + i, f(load_partial(x + i, n - i)), n - i);
}

}  // namespace

void softmax_f32(const SoftmaxF32Args& args) {
    for (int r = 0; r < args.rows; ++r) {
        const float* x = args.x + r * args.x_stride;
        float* out = args.out + r * args.out_stride;
        const float m = row_max(x, args.n);
        // A row of only -inf has probabilities 0, not NaN.
        const float shift = m == -kInf ? 0.0f : m;
        if (args.log) {
            const float total = exponentials<false>(x, args.n, shift, nullptr);
            const Vec center = broadcast(shift), log_total = broadcast(total == 0.0f ? 0.0f : log(total));
            map(x, out, args.n, [&](Vec v) { return sub(sub(v, center), log_total); });
        } else {
            const float total = exponentials<true>(x, args.n, shift, out);
            const Vec divisor = broadcast(total == 0.0f ? 1.0f : total);
            map(out, out, args.n, [&](Vec v) { return div(v, divisor); });
        }
    }
}

void exp_sum_f32(const ExpSumF32Args& args) {
    const float sum = args.out ? exponentials<true>(args.x, args.n, args.shift, args.out)
                               : exponentials<false>(args.x, args.n, args.shift, nullptr);
    *args.sum = sum;
    *args.log_sum = sum == 0.0f ? 0.0f : log(sum);
}

}  // namespace fastattn::FASTATTN_TARGET
